//! Type-5 routes (RFC 9136), and Type-2 routes that are routed to (RFC 9135): what stands in them, and
//! whether this host can use one.

use crate::codec::RouteKey;
use crate::rest::Rest;
use crate::rib::Path;
use crate::vrf::is_usable_vtep;
use ipnet::IpNet;
use model::{MacAddr, Vni};
use std::cmp::Reverse;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

/// `| RD 8 | tag 4 | length 1 | prefix 4,16 |`: what identifies a Type-5 route (RFC 9136 §3.1).
const PREFIX_AT: usize = 8 + 4 + 1;

impl RouteKey {
    /// What a route leads to, if it may be routed: the prefix of a Type-5 route, the address of a
    /// Type-2 route.
    pub(crate) fn destination(&self) -> Option<IpNet> {
        match self {
            Self::MacIp { ip, .. } => Some(IpNet::from((*ip)?)),
            _ => self.prefix(),
        }
    }

    /// The prefix of a Type-5 route, without host bits.
    pub(crate) fn prefix(&self) -> Option<IpNet> {
        let Self::Other { kind: 5, id } = self else {
            return None;
        };
        let address = address_of(id.get(PREFIX_AT..)?)?;
        let net = IpNet::new(address, *id.get(PREFIX_AT - 1)?).ok()?;
        Some(net.trunc())
    }
}

fn address_of(octets: &[u8]) -> Option<IpAddr> {
    match octets.len() {
        4 => Some(IpAddr::from(<[u8; 4]>::try_from(octets).ok()?)),
        16 => Some(IpAddr::from(<[u8; 16]>::try_from(octets).ok()?)),
        _ => None,
    }
}

/// What a Type-5 route says beside its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Says {
    segment: bool,
    gateway: IpAddr,
    label: u32,
}

impl Says {
    /// `| type 1 | length 1 | RD 8 | ESI 10 | tag 4 | length 1 | prefix 4,16 | gateway 4,16 | label 3 |`
    fn read(rest: &Rest) -> Option<Self> {
        let Rest::Whole(raw) = rest else {
            return None;
        };
        let addresses = raw.get(25..raw.len().checked_sub(3)?)?;
        let gateway = addresses.get(addresses.len() / 2..)?;
        let label = raw.last_chunk::<3>()?;
        Some(Self {
            segment: raw.get(10..20)?.iter().any(|octet| *octet != 0),
            gateway: address_of(gateway)?,
            label: u32::from_be_bytes([0, label[0], label[1], label[2]]),
        })
    }
}

/// The label of a Type-5 route.
pub(crate) fn label(rest: &Rest) -> Option<u32> {
    Says::read(rest).map(|says| says.label)
}

/// A way to a prefix that this host can use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Claim {
    pub(crate) vtep: IpAddr,
    /// The router's MAC: inner destination of what goes there.
    pub(crate) mac: MacAddr,
    /// Greater is better; those that are equal share the flows.
    pub(crate) rank: Rank,
    pub(crate) since: Instant,
}

/// RFC 4271 §9.1.2.2 as far as it chooses between hosts; that a path is stale for a while says
/// nothing about the way (RFC 4724 §4.2). Before that, where a MAC is: who has an address is nearer than
/// who has its prefix.
pub(crate) type Rank = (
    bool,
    Option<Seat>,
    u32,
    Reverse<usize>,
    Reverse<u8>,
    Reverse<u32>,
);

/// Which of two hosts that announce a MAC has it, as in a MAC-VRF: static bit, sequence, lower address
/// (RFC 7432 §15).
pub(crate) type Seat = (bool, u32, Reverse<IpAddr>);

/// Why a route that is meant for a VPC here makes no row. Its peers are told of it in other ways
/// than RFC 7606's: it is well-formed, and others may be able to use it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unused {
    Encapsulation,
    Segment,
    Gateway(IpAddr),
    NoRouterMac,
    RouterMac(MacAddr),
    Label(u32),
    NextHop(IpAddr),
    Prefix,
    OneLabel,
}

impl fmt::Display for Unused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Encapsulation => f.write_str("with other encapsulations than VXLAN"),
            Self::Segment => f.write_str("with an Ethernet segment as overlay index"),
            Self::Gateway(ip) => write!(f, "with gateway {ip} as overlay index"),
            Self::NoRouterMac => f.write_str("without Router's MAC community"),
            Self::RouterMac(mac) => write!(f, "with router's MAC {mac}, which no interface has"),
            Self::Label(label) => write!(f, "with label {label}, which is not the VPC's VNI"),
            Self::NextHop(ip) => write!(f, "with next hop {ip}, which is not another VTEP"),
            Self::OneLabel => f.write_str("with one label, and nothing that is routed over"),
            Self::Prefix => f.write_str("with a prefix that is not routed"),
        }
    }
}

/// Judges a route that `vni` takes in, at the VTEP `own` (RFC 9136 §3.2, §4.4.1; RFC 9135 §5.2).
pub(crate) fn judge(
    vni: Vni,
    own: Option<IpAddr>,
    prefix: IpNet,
    key: &RouteKey,
    path: &Path,
) -> Result<Claim, Unused> {
    let attrs = &path.attrs;
    let says = match key {
        // The segment of a MAC is where it is bridged to.
        RouteKey::MacIp { .. } => Says {
            segment: false,
            gateway: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            label: path.rest.routed_label(key).ok_or(Unused::OneLabel)?,
        },
        _ => Says::read(&path.rest).ok_or(Unused::Prefix)?,
    };
    if !attrs.vxlan {
        return Err(Unused::Encapsulation);
    }
    if says.segment {
        return Err(Unused::Segment);
    }
    if !says.gateway.is_unspecified() {
        return Err(Unused::Gateway(says.gateway));
    }
    let mac = attrs.router_mac.ok_or(Unused::NoRouterMac)?;
    if !mac.is_usable() {
        return Err(Unused::RouterMac(mac));
    }
    if says.label != vni.get() {
        return Err(Unused::Label(says.label));
    }
    let vtep = attrs.next_hop;
    if !is_usable_vtep(vtep) || own == Some(vtep) {
        return Err(Unused::NextHop(vtep));
    }
    if !is_routed(prefix) {
        return Err(Unused::Prefix);
    }
    Ok(Claim {
        vtep,
        mac,
        rank: (
            !path.is_last_resort(),
            matches!(key, RouteKey::MacIp { .. }).then_some((
                attrs.sticky,
                attrs.sequence,
                Reverse(vtep),
            )),
            attrs.local_pref,
            Reverse(attrs.as_path_len),
            Reverse(attrs.origin),
            Reverse(attrs.med),
        ),
        since: path.since,
    })
}

/// False for what is of one link or host, or is no destination of one packet.
fn is_routed(prefix: IpNet) -> bool {
    let address = prefix.network();
    let one_link = match address {
        IpAddr::V4(address) => address.is_link_local() || address.is_broadcast(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    !(one_link || address.is_multicast() || address.is_loopback())
}
