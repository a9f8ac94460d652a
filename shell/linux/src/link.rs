//! Interfaces: requests about them, and what the kernel tells of them.

use crate::attr::{self, Message};
use crate::sys;
use host_plan::{BridgePortFlags, TrunkPair, VethToNetns, VlanMembership};
use ipnet::IpNet;
use model::{IfName, MacAddr, Mtu, VlanId, Vni};
use std::collections::BTreeMap;
use std::net::IpAddr;

const CREATE: i32 = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
/// DSCP and TTL of tunnel packets are not the tenant's business; the kernel's own default of
/// "inherit" would let a tenant's TTL of 1 end in the underlay.
const TUNNEL_TTL: u8 = 64;
/// `VXLAN_DF_SET`.
const VXLAN_DF_SET: u8 = 1;

fn new(kind: u16, flags: i32) -> Message {
    let mut message = Message::new(kind, flags);
    message.ifinfo(libc::AF_UNSPEC, 0, 0, 0);
    message
}

fn create(name: &IfName) -> Message {
    let mut message = new(libc::RTM_NEWLINK, CREATE);
    message.put_text(sys::IFLA_IFNAME, name.as_str());
    message
}

/// A change of an interface by its name. `RTM_NEWLINK` without `NLM_F_CREATE`: unlike
/// `RTM_SETLINK` it takes the flags of a bridge port.
pub(crate) fn change(name: &IfName) -> Message {
    let mut message = new(libc::RTM_NEWLINK, 0);
    message.put_text(sys::IFLA_IFNAME, name.as_str());
    message
}

fn info(message: &mut Message, kind: &str, data: impl FnOnce(&mut Message)) {
    message.nest(sys::IFLA_LINKINFO, |m| {
        m.put(sys::IFLA_INFO_KIND, kind.as_bytes());
        m.nest(sys::IFLA_INFO_DATA, data);
    });
}

/// A bridge, with an MTU that is not the wanted one: only a *change* of the MTU tells the bridge
/// to keep it instead of following its ports', so [`finish_bridge`] changes it.
pub(crate) fn create_bridge(
    name: &IfName,
    mac: MacAddr,
    mtu: Mtu,
    vlan_filtering: bool,
) -> Message {
    let mut message = create(name);
    message
        .put(sys::IFLA_ADDRESS, &mac.0)
        .put_u32(sys::IFLA_MTU, u32::from(mtu.get()) - 1);
    info(&mut message, "bridge", |m| {
        // A kernel that could filter keeps VLAN 1 even on a bridge that does not, and doubles each
        // FDB row for it; one that cannot ignores the attribute.
        m.put_u8(sys::IFLA_BR_MCAST_SNOOPING, 0)
            .put_u16(sys::IFLA_BR_VLAN_DEFAULT_PVID, 0)
            // Without the spanning tree nothing is delayed, but each port's timer runs, and 15 s after it went up the
            // kernel tells of it once more: of hundreds at once, after a start.
            .put_u32(sys::IFLA_BR_FORWARD_DELAY, 0);
        if vlan_filtering {
            m.put_u8(sys::IFLA_BR_VLAN_FILTERING, 1);
        }
    });
    message
}

pub(crate) fn finish_bridge(name: &IfName, mtu: Mtu, alias: &str) -> Message {
    let mut message = set_mtu(name, mtu);
    message.put_text(sys::IFLA_IFALIAS, alias);
    message
}

pub(crate) fn create_vxlan(
    name: &IfName,
    vni: Vni,
    local: IpAddr,
    port: u16,
    mac: MacAddr,
    mtu: Mtu,
) -> Message {
    let mut message = create(name);
    message
        .put(sys::IFLA_ADDRESS, &mac.0)
        .put_u32(sys::IFLA_MTU, mtu.get().into());
    info(&mut message, "vxlan", |m| {
        m.put_u32(sys::IFLA_VXLAN_ID, vni.get())
            .put(sys::IFLA_VXLAN_PORT, &port.to_be_bytes())
            .put_u8(sys::IFLA_VXLAN_LEARNING, 0)
            .put_u8(sys::IFLA_VXLAN_TTL, TUNNEL_TTL);
        match local {
            IpAddr::V4(_) => {
                m.put_ip(sys::IFLA_VXLAN_LOCAL, local)
                    .put_u8(sys::IFLA_VXLAN_DF, VXLAN_DF_SET);
            }
            IpAddr::V6(_) => {
                // RFC 7348 §5: senders may leave the checksum out, so take packets without one.
                m.put_ip(sys::IFLA_VXLAN_LOCAL6, local)
                    .put_u8(sys::IFLA_VXLAN_UDP_ZERO_CSUM6_RX, 1);
            }
        }
    });
    message
}

pub(crate) fn create_vlan_device(name: &IfName, bridge: u32, vlan: VlanId) -> Message {
    let mut message = create(name);
    message.put_u32(sys::IFLA_LINK, bridge);
    info(&mut message, "vlan", |m| {
        m.put_u16(sys::IFLA_VLAN_ID, vlan.get());
        // Without it the device comes up with its bridge, and has to stay down.
        let mut flags = sys::VLAN_FLAG_LOOSE_BINDING.to_ne_bytes().to_vec();
        flags.extend(sys::VLAN_FLAG_LOOSE_BINDING.to_ne_bytes());
        m.put(sys::IFLA_VLAN_FLAGS, &flags);
    });
    message
}

pub(crate) fn create_veth(veth: &VethToNetns, netns: i32) -> Message {
    let mtu = u32::from(veth.mtu.get());
    let mut message = create(&veth.name);
    message.put_u32(sys::IFLA_MTU, mtu);
    info(&mut message, "veth", |m| {
        m.nest(sys::VETH_INFO_PEER, |m| {
            m.ifinfo(libc::AF_UNSPEC, 0, 0, 0)
                .put_text(sys::IFLA_IFNAME, veth.device.as_str())
                .put(sys::IFLA_ADDRESS, &veth.mac.0)
                .put_u32(sys::IFLA_MTU, mtu)
                .put(sys::IFLA_NET_NS_FD, &netns.to_ne_bytes());
        });
    });
    message
}

pub(crate) fn create_trunk_pair(pair: &TrunkPair) -> Message {
    let mtu = u32::from(pair.mtu.get());
    let mut message = create(&pair.inner);
    message.put_u32(sys::IFLA_MTU, mtu);
    info(&mut message, "veth", |m| {
        m.nest(sys::VETH_INFO_PEER, |m| {
            m.ifinfo(libc::AF_UNSPEC, 0, 0, 0)
                .put_text(sys::IFLA_IFNAME, pair.outer.as_str())
                .put_u32(sys::IFLA_MTU, mtu);
        });
    });
    message
}

pub(crate) fn set_alias(name: &IfName, alias: &str) -> Message {
    let mut message = change(name);
    // Not NUL-terminated: an empty value takes the alias off.
    message.put(sys::IFLA_IFALIAS, alias.as_bytes());
    message
}

/// How an interface makes its link-local address.
pub(crate) fn set_addr_gen_mode(message: &mut Message, mode: u8) {
    message.nest(sys::IFLA_AF_SPEC, |m| {
        m.nest(libc::AF_INET6 as u16, |m| {
            m.put_u8(sys::IFLA_INET6_ADDR_GEN_MODE, mode);
        });
    });
}

pub(crate) fn set_mtu(name: &IfName, mtu: Mtu) -> Message {
    let mut message = change(name);
    message.put_u32(sys::IFLA_MTU, mtu.get().into());
    message
}

pub(crate) fn set_mac(name: &IfName, mac: MacAddr) -> Message {
    let mut message = change(name);
    message.put(sys::IFLA_ADDRESS, &mac.0);
    message
}

pub(crate) fn set_up(name: &IfName, up: bool) -> Message {
    let mut message = Message::new(libc::RTM_NEWLINK, 0);
    message
        .ifinfo(
            libc::AF_UNSPEC,
            0,
            if up { libc::IFF_UP } else { 0 },
            libc::IFF_UP,
        )
        .put_text(sys::IFLA_IFNAME, name.as_str());
    message
}

/// `bridge` 0 takes it out.
pub(crate) fn set_master(name: &IfName, bridge: u32) -> Message {
    let mut message = change(name);
    message.put_u32(sys::IFLA_MASTER, bridge);
    message
}

fn port_data(message: &mut Message, data: impl FnOnce(&mut Message)) {
    message.nest(sys::IFLA_LINKINFO, |m| {
        m.put(sys::IFLA_INFO_SLAVE_KIND, b"bridge");
        m.nest(sys::IFLA_INFO_SLAVE_DATA, data);
    });
}

pub(crate) fn isolate(name: &IfName) -> Message {
    let mut message = change(name);
    port_data(&mut message, |m| {
        m.put_u8(sys::IFLA_BRPORT_ISOLATED, 1);
    });
    message
}

pub(crate) fn set_port_flags(name: &IfName, flags: BridgePortFlags) -> Message {
    let mut message = change(name);
    port_data(&mut message, |m| {
        m.put_u8(sys::IFLA_BRPORT_ISOLATED, flags.isolated.into())
            .put_u8(sys::IFLA_BRPORT_LEARNING, flags.learning.into())
            .put_u8(sys::IFLA_BRPORT_UNICAST_FLOOD, flags.unicast_flood.into())
            .put_u8(sys::IFLA_BRPORT_NEIGH_SUPPRESS, flags.neigh_suppress.into());
    });
    message
}

/// `kind` is `RTM_SETLINK` or `RTM_DELLINK`; the bridge family takes no names.
fn port_vlan(kind: u16, index: u32, vlan: VlanId, flags: u16) -> Message {
    let mut message = Message::new(kind, 0);
    message.ifinfo(libc::AF_BRIDGE, index, 0, 0);
    message.nest(sys::IFLA_AF_SPEC, |m| {
        let mut value = [0; 4];
        value[..2].copy_from_slice(&flags.to_ne_bytes());
        value[2..].copy_from_slice(&vlan.get().to_ne_bytes());
        m.put(sys::IFLA_BRIDGE_VLAN_INFO, &value);
    });
    message
}

pub(crate) fn add_vlan(index: u32, vlan: VlanId, membership: VlanMembership) -> Message {
    let flags = match membership {
        VlanMembership::Access => sys::BRIDGE_VLAN_INFO_PVID | sys::BRIDGE_VLAN_INFO_UNTAGGED,
        VlanMembership::Tagged => 0,
    };
    port_vlan(libc::RTM_SETLINK, index, vlan, flags)
}

pub(crate) fn delete_vlan(index: u32, vlan: VlanId) -> Message {
    port_vlan(libc::RTM_DELLINK, index, vlan, 0)
}

pub(crate) fn set_group(name: &IfName, group: u32) -> Message {
    let mut message = change(name);
    message.put_u32(sys::IFLA_GROUP, group);
    message
}

pub(crate) fn delete(name: &IfName) -> Message {
    let mut message = new(libc::RTM_DELLINK, 0);
    message.put_text(sys::IFLA_IFNAME, name.as_str());
    message
}

pub(crate) fn delete_group(group: u32) -> Message {
    let mut message = new(libc::RTM_DELLINK, 0);
    message.put_u32(sys::IFLA_GROUP, group);
    message
}

pub(crate) fn get(name: &IfName) -> Message {
    let mut message = new(libc::RTM_GETLINK, 0);
    message
        .put_text(sys::IFLA_IFNAME, name.as_str())
        .put_u32(sys::IFLA_EXT_MASK, sys::RTEXT_FILTER_SKIP_STATS);
    message
}

pub(crate) fn get_index(index: u32) -> Message {
    let mut message = Message::new(libc::RTM_GETLINK, 0);
    message.ifinfo(libc::AF_UNSPEC, index, 0, 0);
    message.put_u32(sys::IFLA_EXT_MASK, sys::RTEXT_FILTER_SKIP_STATS);
    message
}

pub(crate) fn get_all() -> Message {
    let mut message = new(libc::RTM_GETLINK, 0);
    message.put_u32(sys::IFLA_EXT_MASK, sys::RTEXT_FILTER_SKIP_STATS);
    message
}

pub(crate) fn get_port_vlans() -> Message {
    let mut message = Message::new(libc::RTM_GETLINK, 0);
    message
        .ifinfo(libc::AF_BRIDGE, 0, 0, 0)
        .put_u32(sys::IFLA_EXT_MASK, sys::RTEXT_FILTER_BRVLAN_COMPRESSED);
    message
}

/// `struct ifaddrmsg` and the address; no duplicate address detection, as the addresses are ours
/// to give and a workload should not wait a second for its own.
pub(crate) fn add_address(index: u32, address: IpNet) -> Message {
    let mut message = Message::new(libc::RTM_NEWADDR, CREATE);
    address_of(&mut message, index, address);
    message.put_u32(sys::IFA_FLAGS, sys::IFA_F_NODAD);
    message
}

pub(crate) fn delete_address(index: u32, address: IpNet) -> Message {
    let mut message = Message::new(libc::RTM_DELADDR, 0);
    address_of(&mut message, index, address);
    message
}

fn address_of(message: &mut Message, index: u32, address: IpNet) {
    let family = match address {
        IpNet::V4(_) => libc::AF_INET,
        IpNet::V6(_) => libc::AF_INET6,
    };
    message
        .header(&[family as u8, address.prefix_len(), 0, 0])
        .header(&index.to_ne_bytes())
        .put_ip(sys::IFA_LOCAL, address.addr())
        .put_ip(sys::IFA_ADDRESS, address.addr());
}

pub(crate) fn get_addresses() -> Message {
    let mut message = Message::new(libc::RTM_GETADDR, 0);
    message.header(&[0; 8]);
    message
}

/// An address as the kernel tells it: the index of its interface, and itself.
pub(crate) fn parse_address(payload: &[u8]) -> Option<(u32, IpNet)> {
    let prefix = *payload.get(1)?;
    let index = attr::u32(payload.get(4..)?)?;
    let (mut local, mut address) = (None, None);
    for (kind, value) in attr::attributes(payload.get(8..)?) {
        match kind {
            sys::IFA_LOCAL => local = attr::ip(value),
            sys::IFA_ADDRESS => address = attr::ip(value),
            _ => {}
        }
    }
    Some((index, IpNet::new(local.or(address)?, prefix).ok()?))
}

/// An interface as the kernel tells it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct RawLink {
    pub(crate) index: u32,
    pub(crate) up: bool,
    pub(crate) name: String,
    pub(crate) alias: Option<String>,
    pub(crate) mac: Option<MacAddr>,
    pub(crate) mtu: u32,
    pub(crate) group: u32,
    pub(crate) master: Option<u32>,
    /// `IFLA_LINK`: what it is stacked on, or a veth's other end.
    pub(crate) link: Option<u32>,
    /// `IFLA_LINK_NETNSID`: the namespace of that; none if it is in this one.
    pub(crate) link_netns: Option<i32>,
    pub(crate) ipv6_disabled: bool,
    pub(crate) kind: String,
    /// `IFLA_INFO_DATA`: attributes of the kind.
    pub(crate) data: Vec<u8>,
    /// Flags, where it is a bridge's port.
    pub(crate) port: Option<BridgePortFlags>,
}

impl RawLink {
    pub(crate) fn parse(payload: &[u8]) -> Option<Self> {
        let mut link = RawLink {
            index: attr::u32(payload.get(4..)?)?,
            up: attr::u32(payload.get(8..)?)? & libc::IFF_UP as u32 != 0,
            // Without the family's part there is no IPv6 on it: its MTU is too small, or the
            // kernel has none.
            ipv6_disabled: true,
            ..RawLink::default()
        };
        for (kind, value) in attr::attributes(payload.get(16..)?) {
            match kind {
                sys::IFLA_IFNAME => link.name = attr::text(value)?.to_owned(),
                sys::IFLA_IFALIAS => link.alias = attr::text(value).map(str::to_owned),
                sys::IFLA_ADDRESS => link.mac = attr::mac(value),
                sys::IFLA_MTU => link.mtu = attr::u32(value)?,
                sys::IFLA_GROUP => link.group = attr::u32(value)?,
                sys::IFLA_MASTER => link.master = attr::u32(value),
                sys::IFLA_LINK => link.link = attr::u32(value),
                sys::IFLA_LINK_NETNSID => link.link_netns = attr::u32(value).map(|id| id as i32),
                sys::IFLA_LINKINFO => link.parse_info(value),
                sys::IFLA_AF_SPEC => {
                    let conf = attr::attribute(value, libc::AF_INET6 as u16)
                        .and_then(|inet6| attr::attribute(inet6, sys::IFLA_INET6_CONF));
                    if let Some(conf) = conf {
                        let disabled = conf
                            .get(4 * sys::DEVCONF_DISABLE_IPV6..)
                            .and_then(attr::u32);
                        link.ipv6_disabled = disabled.is_some_and(|value| value != 0);
                    }
                }
                _ => {}
            }
        }
        Some(link)
    }

    fn parse_info(&mut self, info: &[u8]) {
        let mut is_bridge_port = false;
        for (kind, value) in attr::attributes(info) {
            match kind {
                sys::IFLA_INFO_KIND => self.kind = attr::text(value).unwrap_or("").to_owned(),
                sys::IFLA_INFO_DATA => self.data = value.to_vec(),
                sys::IFLA_INFO_SLAVE_KIND => is_bridge_port = attr::text(value) == Some("bridge"),
                sys::IFLA_INFO_SLAVE_DATA if is_bridge_port => {
                    let flag = |kind| attr::attribute(value, kind).is_some_and(|v| v == [1]);
                    self.port = Some(BridgePortFlags {
                        isolated: flag(sys::IFLA_BRPORT_ISOLATED),
                        learning: flag(sys::IFLA_BRPORT_LEARNING),
                        unicast_flood: flag(sys::IFLA_BRPORT_UNICAST_FLOOD),
                        neigh_suppress: flag(sys::IFLA_BRPORT_NEIGH_SUPPRESS),
                    });
                }
                _ => {}
            }
        }
    }

    pub(crate) fn data_u8(&self, kind: u16) -> Option<u8> {
        attr::attribute(&self.data, kind)?.first().copied()
    }

    pub(crate) fn data_u16(&self, kind: u16) -> Option<u16> {
        attr::u16(attr::attribute(&self.data, kind)?)
    }

    pub(crate) fn data_u32(&self, kind: u16) -> Option<u32> {
        attr::u32(attr::attribute(&self.data, kind)?)
    }

    pub(crate) fn data_ip(&self, kind: u16) -> Option<IpAddr> {
        attr::ip(attr::attribute(&self.data, kind)?).filter(|ip| !ip.is_unspecified())
    }
}

/// A port's VLANs: its index and memberships. A membership that is neither an access port's nor a
/// trunk's (PVID but tagged, or the reverse) is told as a trunk's.
pub(crate) fn parse_port_vlans(payload: &[u8]) -> Option<(u32, BTreeMap<VlanId, VlanMembership>)> {
    let index = attr::u32(payload.get(4..)?)?;
    let spec = attr::attribute(payload.get(16..)?, sys::IFLA_AF_SPEC)?;
    let mut vlans = BTreeMap::new();
    let mut begin = None;
    for (kind, value) in attr::attributes(spec) {
        if kind != sys::IFLA_BRIDGE_VLAN_INFO {
            continue;
        }
        let (Some(flags), Some(vlan)) = (attr::u16(value), value.get(2..).and_then(attr::u16))
        else {
            continue;
        };
        if flags & sys::BRIDGE_VLAN_INFO_RANGE_BEGIN != 0 {
            begin = Some(vlan);
            continue;
        }
        let access = sys::BRIDGE_VLAN_INFO_PVID | sys::BRIDGE_VLAN_INFO_UNTAGGED;
        let membership = if flags & access == access {
            VlanMembership::Access
        } else {
            VlanMembership::Tagged
        };
        let first = begin
            .take()
            .filter(|_| flags & sys::BRIDGE_VLAN_INFO_RANGE_END != 0)
            .unwrap_or(vlan);
        for vlan in first..=vlan {
            if let Ok(vlan) = VlanId::new(vlan) {
                vlans.insert(vlan, membership);
            }
        }
    }
    Some((index, vlans))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn garbage_never_panics(payload in proptest::collection::vec(any::<u8>(), 0..400)) {
            drop(RawLink::parse(&payload));
            drop(parse_port_vlans(&payload));
            let _ = parse_address(&payload);
        }

        #[test]
        fn nested_garbage_never_panics(
            attributes in proptest::collection::vec(
                (prop_oneof![Just(sys::IFLA_LINKINFO), Just(sys::IFLA_AF_SPEC), 0_u16..60],
                 proptest::collection::vec((0_u16..45, proptest::collection::vec(any::<u8>(), 0..30)), 0..6)),
                0..6)
        ) {
            let mut message = Message::new(16, 0);
            message.ifinfo(0, 1, 0, 0);
            for (kind, inner) in &attributes {
                message.nest(*kind, |m| for (kind, value) in inner { m.put(*kind, value); });
            }
            let payload = message.finish(1)[attr::HEADER_BYTES..].to_vec();
            drop(RawLink::parse(&payload));
            drop(parse_port_vlans(&payload));
        }
    }

    #[test]
    fn ranges_of_vlans_are_spread_out() {
        let mut message = Message::new(16, 0);
        message.ifinfo(libc::AF_BRIDGE, 9, 0, 0);
        message.nest(sys::IFLA_AF_SPEC, |m| {
            for (flags, vlan) in [(6_u16, 5_u16), (8, 10), (16, 12)] {
                let value = [flags.to_ne_bytes(), vlan.to_ne_bytes()].concat();
                m.put(sys::IFLA_BRIDGE_VLAN_INFO, &value);
            }
        });
        let payload = message.finish(1)[attr::HEADER_BYTES..].to_vec();
        let (index, vlans) = parse_port_vlans(&payload).unwrap();
        let told: Vec<_> = vlans.iter().map(|(v, m)| (v.get(), *m)).collect();
        assert_eq!(index, 9);
        assert_eq!(
            told,
            [
                (5, VlanMembership::Access),
                (10, VlanMembership::Tagged),
                (11, VlanMembership::Tagged),
                (12, VlanMembership::Tagged)
            ]
        );
    }
}
