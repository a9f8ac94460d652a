//! Rows: forwarding databases, ARP and ND tables. One message type for all (`struct ndmsg`):
//! `| family 1 | pad 3 | ifindex 4 | state 2 | flags 1 | type 1 |`.
//!
//! The kernel keeps `NDA_PROTOCOL` on neighbour rows, and drops it from FDB rows: bridges and VXLAN
//! devices accept the attribute and forget it. There, `NTF_EXT_LEARNED` on a device that carries
//! our stamp says that a row is ours.

use crate::attr::{self, Message};
use crate::sys;
use host_plan::{FdbRow, FdbState, FdbTarget, Neighbour, NextHop};
use model::{MacAddr, VlanId};
use std::net::IpAddr;

const CREATE_OR_REPLACE: i32 = libc::NLM_F_CREATE | libc::NLM_F_REPLACE;

fn header(message: &mut Message, family: i32, index: u32, state: u16, flags: u8) {
    message
        .header(&[family as u8, 0, 0, 0])
        .header(&index.to_ne_bytes());
    let state = state.to_ne_bytes();
    message.header(&[state[0], state[1], flags, 0]);
}

/// Adds a row. A flood-list entry goes beside the others of its device (`NLM_F_APPEND`); any other
/// takes the place of the row of its MAC, in one step, so a MAC that moves is never unknown.
pub(crate) fn add(row: &FdbRow, index: u32) -> Message {
    let flood = row.mac == MacAddr::ZERO;
    let mode = if flood {
        libc::NLM_F_CREATE | libc::NLM_F_APPEND
    } else {
        CREATE_OR_REPLACE
    };
    let learned = match row.state {
        FdbState::ExternLearned => sys::NTF_EXT_LEARNED,
        FdbState::Local | FdbState::Static | FdbState::Dynamic => 0,
    };
    let mut message = Message::new(libc::RTM_NEWNEIGH, mode);
    match row.target {
        FdbTarget::Vtep(vtep) => {
            let flags = sys::NTF_SELF | learned;
            header(
                &mut message,
                libc::AF_BRIDGE,
                index,
                libc::NUD_PERMANENT,
                flags,
            );
            message
                .put(sys::NDA_LLADDR, &row.mac.0)
                .put_ip(sys::NDA_DST, vtep);
        }
        FdbTarget::Bridge(vlan) => {
            let state = match row.state {
                FdbState::Local => libc::NUD_PERMANENT,
                FdbState::Static => libc::NUD_NOARP,
                FdbState::ExternLearned | FdbState::Dynamic => libc::NUD_REACHABLE,
            };
            let flags = sys::NTF_MASTER | learned;
            header(&mut message, libc::AF_BRIDGE, index, state, flags);
            message.put(sys::NDA_LLADDR, &row.mac.0);
            if let Some(vlan) = vlan {
                message.put_u16(sys::NDA_VLAN, vlan.get());
            }
        }
    }
    message
}

/// Removes exactly this row.
pub(crate) fn delete(row: &FdbRow, index: u32) -> Message {
    let mut message = Message::new(libc::RTM_DELNEIGH, 0);
    match row.target {
        FdbTarget::Vtep(vtep) => {
            header(&mut message, libc::AF_BRIDGE, index, 0, sys::NTF_SELF);
            message
                .put(sys::NDA_LLADDR, &row.mac.0)
                .put_ip(sys::NDA_DST, vtep);
        }
        FdbTarget::Bridge(vlan) => {
            header(&mut message, libc::AF_BRIDGE, index, 0, sys::NTF_MASTER);
            message.put(sys::NDA_LLADDR, &row.mac.0);
            if let Some(vlan) = vlan {
                message.put_u16(sys::NDA_VLAN, vlan.get());
            }
        }
    }
    message
}

pub(crate) fn get_all() -> Message {
    let mut message = Message::new(libc::RTM_GETNEIGH, 0);
    // With strict checking the FDB's dump takes the neighbour header.
    header(&mut message, libc::AF_BRIDGE, 0, 0, 0);
    message
}

/// An FDB row as the kernel tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RawFdb {
    pub(crate) index: u32,
    pub(crate) mac: MacAddr,
    pub(crate) vlan: Option<VlanId>,
    pub(crate) dst: Option<IpAddr>,
    /// In the table of this bridge; none for a device's own.
    pub(crate) master: Option<u32>,
    pub(crate) state: FdbState,
}

impl RawFdb {
    pub(crate) fn parse(payload: &[u8]) -> Option<Self> {
        let (index, state, flags) = parse_header(payload)?;
        let mut mac = None;
        let (mut vlan, mut dst, mut master) = (None, None, None);
        for (kind, value) in attr::attributes(payload.get(12..)?) {
            match kind {
                sys::NDA_LLADDR => mac = attr::mac(value),
                sys::NDA_VLAN => vlan = attr::u16(value).and_then(|v| VlanId::new(v).ok()),
                sys::NDA_DST => dst = attr::ip(value),
                sys::NDA_MASTER => master = attr::u32(value),
                _ => {}
            }
        }
        let state = if flags & sys::NTF_EXT_LEARNED != 0 {
            FdbState::ExternLearned
        } else if master.is_some() && state & libc::NUD_PERMANENT != 0 {
            FdbState::Local
        } else if state & (libc::NUD_NOARP | libc::NUD_PERMANENT) != 0 {
            FdbState::Static
        } else {
            FdbState::Dynamic
        };
        Some(Self {
            index,
            mac: mac?,
            vlan,
            dst,
            master,
            state,
        })
    }
}

fn parse_header(payload: &[u8]) -> Option<(u32, u16, u8)> {
    let index = attr::u32(payload.get(4..)?)?;
    let state = attr::u16(payload.get(8..)?)?;
    Some((index, state, *payload.get(10)?))
}

pub(crate) fn set_neighbour(row: &Neighbour, index: u32) -> Message {
    let flag = |set, flag| if set { flag } else { 0 };
    let flags = flag(row.remote, sys::NTF_EXT_LEARNED) | flag(row.router, sys::NTF_ROUTER);
    permanent(index, row.ip, row.mac, flags)
}

fn permanent(index: u32, ip: IpAddr, mac: MacAddr, flags: u8) -> Message {
    let mut message = Message::new(libc::RTM_NEWNEIGH, CREATE_OR_REPLACE);
    header(&mut message, family(ip), index, libc::NUD_PERMANENT, flags);
    message
        .put_ip(sys::NDA_DST, ip)
        .put(sys::NDA_LLADDR, &mac.0)
        .put_u8(sys::NDA_PROTOCOL, sys::PROTOCOL);
    message
}

pub(crate) fn delete_neighbour(row: &Neighbour, index: u32) -> Message {
    forget(index, row.ip)
}

fn forget(index: u32, ip: IpAddr) -> Message {
    let mut message = Message::new(libc::RTM_DELNEIGH, 0);
    header(&mut message, family(ip), index, 0, 0);
    message.put_ip(sys::NDA_DST, ip);
    message
}

/// A neighbour of a router that nobody asks for.
pub(crate) fn set_next_hop(hop: &NextHop, index: u32) -> Message {
    permanent(index, hop.address, hop.mac, 0)
}

pub(crate) fn delete_next_hop(hop: &NextHop, index: u32) -> Message {
    forget(index, hop.address)
}

fn family(ip: IpAddr) -> i32 {
    match ip {
        IpAddr::V4(_) => libc::AF_INET,
        IpAddr::V6(_) => libc::AF_INET6,
    }
}

pub(crate) fn get_neighbours(family: i32) -> Message {
    let mut message = Message::new(libc::RTM_GETNEIGH, 0);
    header(&mut message, family, 0, 0, 0);
    message
}

/// A neighbour row as the kernel tells it. Permanent ones only: the others are the kernel's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RawNeighbour {
    pub(crate) index: u32,
    pub(crate) ip: IpAddr,
    pub(crate) mac: MacAddr,
    pub(crate) protocol: u8,
    pub(crate) remote: bool,
    pub(crate) router: bool,
}

impl RawNeighbour {
    /// None if it is not permanent.
    pub(crate) fn parse(payload: &[u8]) -> Option<Self> {
        let (row, permanent) = Self::parse_any(payload)?;
        permanent.then_some(row)
    }

    /// The row, and whether it is permanent. One that is being resolved has no MAC yet: zero.
    pub(crate) fn parse_any(payload: &[u8]) -> Option<(Self, bool)> {
        let (index, state, flags) = parse_header(payload)?;
        let (mut ip, mut mac, mut protocol) = (None, None, 0);
        for (kind, value) in attr::attributes(payload.get(12..)?) {
            match kind {
                sys::NDA_DST => ip = attr::ip(value),
                sys::NDA_LLADDR => mac = attr::mac(value),
                sys::NDA_PROTOCOL => protocol = *value.first()?,
                _ => {}
            }
        }
        let permanent = state & libc::NUD_PERMANENT != 0 && mac.is_some();
        let row = Self {
            index,
            ip: ip?,
            mac: mac.unwrap_or(MacAddr::ZERO),
            protocol,
            remote: flags & sys::NTF_EXT_LEARNED != 0,
            router: flags & sys::NTF_ROUTER != 0,
        };
        Some((row, permanent))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn garbage_never_panics(payload in proptest::collection::vec(any::<u8>(), 0..120)) {
            let _ = RawFdb::parse(&payload);
            let _ = RawNeighbour::parse(&payload);
        }

        #[test]
        fn a_request_reads_back(mac: [u8; 6], vlan in 1_u16..4095, index: u32, learned: bool) {
            let row = FdbRow {
                dev: model::IfName::new("n-1").unwrap(),
                mac: MacAddr(mac),
                target: FdbTarget::Bridge(Some(VlanId::new(vlan).unwrap())),
                state: if learned { FdbState::ExternLearned } else { FdbState::Static },
            };
            let payload = add(&row, index).finish(1)[attr::HEADER_BYTES..].to_vec();
            let raw = RawFdb::parse(&payload).unwrap();
            prop_assert_eq!((raw.index, raw.mac, raw.vlan), (index, row.mac, VlanId::new(vlan).ok()));
            prop_assert_eq!(raw.state, row.state);
        }
    }

    /// Why `NTF_EXT_LEARNED` is our stamp there.
    #[test]
    fn the_kernel_keeps_no_protocol_on_fdb_rows() {
        use crate::attr::attribute;
        use crate::link;
        use crate::netns::in_new_netns;
        use crate::socket::Socket;
        use model::{IfName, Mtu, Vni};

        let told = in_new_netns(|| {
            let mut socket = Socket::route().unwrap();
            let (bridge, tunnel) = (IfName::new("b-1").unwrap(), IfName::new("t-7").unwrap());
            let (mac, mtu) = (MacAddr([2, 0, 0, 0, 0, 1]), Mtu::new(1400).unwrap());
            let create = link::create_bridge(&bridge, mac, mtu, false);
            socket.request(create).unwrap();
            let (vni, local) = (Vni::new(7).unwrap(), "192.0.2.1".parse().unwrap());
            let create = link::create_vxlan(&tunnel, vni, local, host_plan::VXLAN_PORT, mac, mtu);
            socket.request(create).unwrap();
            let index = |name: &IfName| nix::net::if_::if_nametoindex(name.as_str()).unwrap();
            socket
                .request(link::set_master(&tunnel, index(&bridge)))
                .unwrap();
            let row = |target| FdbRow {
                dev: tunnel.clone(),
                mac: MacAddr([2, 0, 0, 0, 0, 5]),
                target,
                state: FdbState::ExternLearned,
            };
            for target in [
                FdbTarget::Vtep("192.0.2.2".parse().unwrap()),
                FdbTarget::Bridge(None),
            ] {
                let mut request = add(&row(target), index(&tunnel));
                request.put_u8(sys::NDA_PROTOCOL, sys::PROTOCOL);
                socket.request(request).unwrap();
            }
            let mut told = Vec::new();
            socket
                .dump(get_all(), |_, payload| {
                    let raw = RawFdb::parse(payload).unwrap();
                    if raw.mac == MacAddr([2, 0, 0, 0, 0, 5]) {
                        let kept = attribute(&payload[12..], sys::NDA_PROTOCOL).is_some();
                        told.push((raw.state, kept));
                    }
                })
                .unwrap();
            told
        });
        assert_eq!(told.unwrap(), [(FdbState::ExternLearned, false); 2]);
    }
}
