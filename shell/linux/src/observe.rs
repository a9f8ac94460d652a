//! What is there: a few dumps, put together.

use crate::attr::{self, Message};
use crate::error::{Cause, Doing, Error};
use crate::fdb::{self, RawFdb, RawNeighbour};
use crate::link::{self, RawLink};
use crate::netns::Netns;
use crate::socket::Socket;
use crate::sys;
use host_plan::{BridgePort, InsideLink, Link, LinkKind, NetnsState, Scope, VlanMembership};
use ipnet::IpNet;
use model::{IfName, MacAddr, NetnsName, VlanId, Vni};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Namespaces that are open at a time.
const OPEN_NAMESPACES: usize = 128;

/// All interfaces of the socket's namespace.
pub(crate) fn raw_links(socket: &mut Socket) -> Result<Vec<RawLink>, Cause> {
    let mut links = Vec::new();
    socket.dump(link::get_all(), |kind, payload| {
        if kind == libc::RTM_NEWLINK {
            links.extend(RawLink::parse(payload));
        }
    })?;
    Ok(links)
}

pub(crate) type PortVlans = HashMap<u32, BTreeMap<VlanId, VlanMembership>>;

pub(crate) fn port_vlans(socket: &mut Socket) -> Result<PortVlans, Cause> {
    let mut vlans = HashMap::new();
    socket.dump(link::get_port_vlans(), |_, payload| {
        vlans.extend(link::parse_port_vlans(payload));
    })?;
    Ok(vlans)
}

/// An interface, told by its name. A veth's far end is told without its namespace.
pub(crate) fn link(
    raw: &RawLink,
    master: Option<&RawLink>,
    vlans: Option<&BTreeMap<VlanId, VlanMembership>>,
) -> Option<(IfName, Link)> {
    let name = IfName::new(raw.name.as_str()).ok()?;
    let port = raw.port.and_then(|flags| {
        Some(BridgePort {
            bridge: IfName::new(master?.name.as_str()).ok()?,
            isolated: flags.isolated,
            learning: flags.learning,
            unicast_flood: flags.unicast_flood,
            neigh_suppress: flags.neigh_suppress,
            vlans: vlans.cloned().unwrap_or_default(),
        })
    });
    let link = Link {
        index: raw.index,
        kind: kind(raw),
        alias: raw.alias.clone(),
        mac: raw.mac.unwrap_or(MacAddr::ZERO),
        mtu: raw.mtu,
        up: raw.up,
        ipv6_disabled: raw.ipv6_disabled,
        port,
    };
    Some((name, link))
}

fn kind(raw: &RawLink) -> LinkKind {
    let is = |kind| raw.data_u8(kind).is_some_and(|value| value != 0);
    let other = || LinkKind::Other(raw.kind.clone());
    match raw.kind.as_str() {
        "bridge" => LinkKind::Bridge {
            vlan_filtering: is(sys::IFLA_BR_VLAN_FILTERING),
            default_pvid: raw.data_u16(sys::IFLA_BR_VLAN_DEFAULT_PVID).unwrap_or(0),
            mcast_snooping: is(sys::IFLA_BR_MCAST_SNOOPING),
        },
        "vxlan" => LinkKind::Vxlan {
            vni: raw
                .data_u32(sys::IFLA_VXLAN_ID)
                .filter(|_| !is(sys::IFLA_VXLAN_COLLECT_METADATA))
                .and_then(|vni| Vni::new(vni).ok()),
            local: raw
                .data_ip(sys::IFLA_VXLAN_LOCAL)
                .or_else(|| raw.data_ip(sys::IFLA_VXLAN_LOCAL6)),
            port: raw.data_u16(sys::IFLA_VXLAN_PORT).map_or(0, u16::from_be),
            learning: is(sys::IFLA_VXLAN_LEARNING),
        },
        "vlan" => match raw.data_u16(sys::IFLA_VLAN_ID).map(VlanId::new) {
            Some(Ok(vlan)) => LinkKind::Vlan {
                parent: raw.link.unwrap_or(0),
                vlan,
            },
            _ => other(),
        },
        "veth" => LinkKind::Veth {
            peer: raw.link.unwrap_or(0),
            peer_netns: None,
            peer_is_local: raw.link_netns.is_none() && raw.link.is_some_and(|peer| peer != 0),
        },
        "tun" if raw.data_u8(sys::IFLA_TUN_TYPE).map(u32::from) == Some(sys::IFF_TAP) => {
            LinkKind::Tap {
                multi_queue: is(sys::IFLA_TUN_MULTI_QUEUE),
                vnet_hdr: is(sys::IFLA_TUN_VNET_HDR),
            }
        }
        _ => other(),
    }
}

/// All rows of forwarding databases.
pub(crate) fn fdb(socket: &mut Socket) -> Result<Vec<RawFdb>, Cause> {
    let mut rows = Vec::new();
    socket.dump(fdb::get_all(), |_, payload| {
        rows.extend(RawFdb::parse(payload));
    })?;
    Ok(rows)
}

/// Permanent rows of ARP and ND tables.
pub(crate) fn neighbours(socket: &mut Socket) -> Result<Vec<RawNeighbour>, Cause> {
    let mut rows = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let result = socket.dump(fdb::get_neighbours(family), |_, payload| {
            rows.extend(RawNeighbour::parse(payload));
        });
        match result {
            // A kernel without IPv6.
            Err(cause) if cause.errno() == Some(libc::EOPNOTSUPP) => {}
            other => other?,
        }
    }
    Ok(rows)
}

/// What was found in the namespaces of a scope.
#[derive(Debug, Default)]
pub(crate) struct Namespaces {
    pub(crate) states: BTreeMap<NetnsName, NetnsState>,
    /// Names by the number that our namespace has for them.
    pub(crate) names: HashMap<i32, NetnsName>,
}

/// Looks at the far ends of our veth pairs in namespaces, through our own socket: a namespace with
/// such an end has a number in ours. Nothing is entered, and nothing is listed whole: for each
/// `RTM_GETLINK` dump the kernel walks all interfaces of the *asking* namespace to size its buffer,
/// so that a dump per namespace would cost the square of their number.
pub(crate) fn namespaces<'a>(
    socket: &mut Socket,
    scope: &Scope,
    raw: impl Iterator<Item = &'a RawLink>,
) -> Result<Namespaces, Error> {
    let mut found = Namespaces::default();
    let all: Vec<&NetnsName> = scope.netns.iter().collect();
    for names in all.chunks(OPEN_NAMESPACES) {
        let mut open = Vec::with_capacity(names.len());
        for name in names {
            if let Some(netns) = Netns::find(name)? {
                open.push((*name, netns));
            }
        }
        let mut questions: Vec<Message> = open
            .iter()
            .map(|(_, netns)| {
                let mut question = Message::new(sys::RTM_GETNSID, 0);
                question
                    .header(&[libc::AF_UNSPEC as u8])
                    .put(sys::NETNSA_FD, &netns.raw().to_ne_bytes());
                question
            })
            .collect();
        let mut ids = vec![None; open.len()];
        let results = socket.ask(&mut questions, |position, payload| {
            ids[position] = payload
                .get(4..)
                .and_then(|attributes| attr::attribute(attributes, sys::NETNSA_NSID))
                .and_then(attr::u32)
                .map(|id| id as i32)
                .filter(|id| *id >= 0);
        });
        for (((name, _), id), result) in open.iter().zip(ids).zip(results) {
            match result {
                // Not a namespace: a file that somebody left there.
                Err(cause) if cause.errno() == Some(libc::EINVAL) => continue,
                other => other.doing(|| format!("look into namespace {name}"))?,
            }
            found.names.extend(id.map(|id| (id, (*name).clone())));
            found.states.insert((*name).clone(), NetnsState::default());
        }
    }
    if found.names.is_empty() {
        return Ok(found);
    }
    far_ends(socket, raw, &mut found).doing(|| "look into namespaces".to_owned())?;
    Ok(found)
}

fn far_ends<'a>(
    socket: &mut Socket,
    raw: impl Iterator<Item = &'a RawLink>,
    found: &mut Namespaces,
) -> Result<(), Cause> {
    let ends: Vec<(i32, u32)> = raw
        .filter(|link| link.kind == "veth")
        .filter_map(|link| Some((link.link_netns?, link.link?)))
        .filter(|(id, _)| found.names.contains_key(id))
        .collect();
    let mut questions: Vec<Message> = ends
        .iter()
        .map(|(id, index)| {
            let mut question = Message::new(libc::RTM_GETLINK, 0);
            question
                .ifinfo(libc::AF_UNSPEC, *index, 0, 0)
                .put_u32(sys::IFLA_EXT_MASK, sys::RTEXT_FILTER_SKIP_STATS)
                .put(sys::IFLA_TARGET_NETNSID, &id.to_ne_bytes());
            question
        })
        .collect();
    let mut links: BTreeMap<i32, HashMap<u32, (IfName, InsideLink)>> = BTreeMap::new();
    let results = socket.ask(&mut questions, |position, payload| {
        let Some(raw) = RawLink::parse(payload) else {
            return;
        };
        let Ok(name) = IfName::new(raw.name) else {
            return;
        };
        let link = InsideLink {
            index: raw.index,
            mac: raw.mac.unwrap_or(MacAddr::ZERO),
            mtu: raw.mtu,
            up: raw.up,
            addresses: BTreeSet::new(),
        };
        let of_namespace = links.entry(ends[position].0).or_default();
        of_namespace.insert(raw.index, (name, link));
    });
    for result in results {
        match result {
            // It went away between two questions.
            Err(cause) if matches!(cause.errno(), Some(libc::ENODEV | libc::EINVAL)) => {}
            other => other?,
        }
    }
    for (id, mut links) in links {
        let mut request = link::get_addresses();
        request.put(sys::IFA_TARGET_NETNSID, &id.to_ne_bytes());
        let result = socket.dump(request, |_, payload| {
            if let Some((index, address)) = link::parse_address(payload)
                && let Some((_, link)) = links.get_mut(&index)
            {
                link.addresses.insert(address);
            }
        });
        match result {
            Err(cause) if cause.errno() == Some(libc::EINVAL) => continue,
            other => other?,
        }
        if let Some(state) = found.states.get_mut(&found.names[&id]) {
            state.links = links.into_values().collect();
        }
    }
    Ok(())
}

/// Addresses of one interface of the socket's namespace.
pub(crate) fn addresses_of(socket: &mut Socket, index: u32) -> Result<Vec<IpNet>, Cause> {
    let mut addresses = Vec::new();
    socket.dump(link::get_addresses(), |_, payload| {
        if let Some((owner, address)) = link::parse_address(payload)
            && owner == index
        {
            addresses.push(address);
        }
    })?;
    Ok(addresses)
}
