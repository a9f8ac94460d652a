//! Between the wire and our types: EVPN routes, path attributes, UPDATE messages.
//!
//! Routes and unknown attributes are kept as they came, so that a reflector hands on octet for
//! octet what it does not understand (RFC 7606 §5.4 lets a speaker drop such routes; a fabric
//! whose reflectors are older than its VTEPs cannot afford that).

use crate::membership;
use crate::rest::Rest;
use crate::{Rd, RouteTarget};
use bytes::{BufMut, Bytes, BytesMut};
use ipnet::IpNet;
use model::MacAddr;
use rustbgpd_wire as wire;
use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Weak};
use wire::{ExtendedCommunity, NotificationCode, NotificationMessage, Origin, PathAttribute};

/// AFI 25, SAFI 70: layer 2 VPN, EVPN (RFC 7432 §7).
const FAMILY: [u8; 3] = [0, 25, 70];
const MP_REACH: u8 = 14;
const MP_UNREACH: u8 = 15;
const EXTENDED_LENGTH: u8 = 0x10;
/// Tunnel type VXLAN (RFC 8365 §5.1.3, IANA).
const TUNNEL_VXLAN: u16 = 8;
/// Of a path that nobody has put before others or after them.
const LOCAL_PREF: u32 = 100;
/// Longest message without RFC 8654.
pub(crate) const MESSAGE_MAX_BYTES: usize = 4096;
const HEADER_BYTES: usize = 19;

/// What tells two routes apart. Labels and the Ethernet segment are no part of it
/// (RFC 7432 §7.2). Type-3 routes sort first: they are announced first, so that a VTEP is on the
/// flood list before frames for its MACs arrive.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum RouteKey {
    /// Type 3 (RFC 7432 §7.3).
    Imet {
        rd: Rd,
        tag: u32,
        originator: IpAddr,
    },
    /// Type 2 (RFC 7432 §7.2).
    MacIp {
        rd: Rd,
        tag: u32,
        mac: MacAddr,
        ip: Option<IpAddr>,
    },
    /// Any other type: the octets that identify it, or all of it if the type is unknown.
    Other { kind: u8, id: Bytes },
}

impl RouteKey {
    /// The route's type.
    pub(crate) fn kind(&self) -> u8 {
        match self {
            Self::Imet { .. } => 3,
            Self::MacIp { .. } => 2,
            Self::Other { kind, .. } => *kind,
        }
    }

    pub(crate) fn rd(&self) -> Option<Rd> {
        match self {
            Self::Imet { rd, .. } | Self::MacIp { rd, .. } => Some(*rd),
            Self::Other { kind: 1..=11, id } => Some(Rd::from_bytes(id.get(..8)?.try_into().ok()?)),
            Self::Other { .. } => None,
        }
    }
}

impl fmt::Display for RouteKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bits = |ip: &IpAddr| if ip.is_ipv4() { 32 } else { 128 };
        match self {
            Self::Imet {
                tag, originator, ..
            } => write!(f, "[3]:[{tag}]:[{}]:[{originator}]", bits(originator)),
            Self::MacIp { tag, mac, ip, .. } => {
                write!(f, "[2]:[{tag}]:[48]:[{mac}]")?;
                match ip {
                    Some(ip) => write!(f, ":[{}]:[{ip}]", bits(ip)),
                    None => Ok(()),
                }
            }
            Self::Other { kind: 5, id } if let Some(prefix) = self.prefix() => {
                let tag = id.get(8..12).and_then(|tag| tag.try_into().ok());
                let tag = tag.map_or(0, u32::from_be_bytes);
                let (bits, network) = (prefix.prefix_len(), prefix.network());
                write!(f, "[5]:[{tag}]:[{bits}]:[{network}]")
            }
            Self::Other { kind, id } => {
                write!(f, "[{kind}]:[")?;
                id.iter().try_for_each(|octet| write!(f, "{octet:02x}"))?;
                f.write_str("]")
            }
        }
    }
}

/// A route as it stands in an UPDATE.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Nlri {
    pub(crate) key: RouteKey,
    /// `| type 1 | length 1 | value |`, as received.
    pub(crate) raw: Bytes,
    /// First label of a Type-2 route.
    pub(crate) label: Option<u32>,
}

impl Nlri {
    pub(crate) fn imet(rd: Rd, tag: u32, originator: IpAddr) -> Self {
        let route = wire::EvpnRoute::Imet(wire::EvpnImet {
            rd: wire::RouteDistinguisher(rd.to_bytes()),
            ethernet_tag: wire::EthernetTagId(tag),
            originator_ip: originator,
        });
        Self {
            key: RouteKey::Imet {
                rd,
                tag,
                originator,
            },
            raw: encode_route(&route),
            label: None,
        }
    }

    /// With a second label the address is routed to as well: the VNI of the VPC's routers (RFC 9135
    /// §5.1).
    pub(crate) fn mac_ip(
        rd: Rd,
        tag: u32,
        mac: MacAddr,
        ip: Option<IpAddr>,
        label: u32,
        routed: Option<u32>,
    ) -> Self {
        let route = wire::EvpnRoute::MacIp(wire::EvpnMacIp {
            rd: wire::RouteDistinguisher(rd.to_bytes()),
            esi: wire::EthernetSegmentIdentifier::ZERO,
            ethernet_tag: wire::EthernetTagId(tag),
            mac: wire::MacAddress(mac.0),
            ip,
            label1: wire::MplsLabel::new(label),
            label2: routed.map(wire::MplsLabel::new),
        });
        Self {
            key: RouteKey::MacIp { rd, tag, mac, ip },
            raw: encode_route(&route),
            label: Some(label),
        }
    }

    /// Interface-less: no segment, no gateway (RFC 9136 §4.4.1).
    pub(crate) fn ip_prefix(rd: Rd, prefix: IpNet, label: u32) -> Self {
        let (value, gateway) = match prefix {
            IpNet::V4(net) => {
                let net = wire::Ipv4Prefix::new(net.network(), net.prefix_len());
                let gateway = Ipv4Addr::UNSPECIFIED.into();
                (wire::EvpnIpPrefixValue::V4(net), gateway)
            }
            IpNet::V6(net) => {
                let net = wire::Ipv6Prefix::new(net.network(), net.prefix_len());
                let gateway = Ipv6Addr::UNSPECIFIED.into();
                (wire::EvpnIpPrefixValue::V6(net), gateway)
            }
        };
        let raw = encode_route(&wire::EvpnRoute::IpPrefix(wire::EvpnIpPrefixRoute {
            rd: wire::RouteDistinguisher(rd.to_bytes()),
            esi: wire::EthernetSegmentIdentifier::ZERO,
            ethernet_tag: wire::EthernetTagId(0),
            prefix: value,
            gateway,
            label: wire::MplsLabel::new(label),
        }));
        Self::decode(raw).expect("it is well-formed")
    }

    /// Reads one route of known framing. None if it is of a known type and malformed.
    pub(crate) fn decode(raw: Bytes) -> Option<Self> {
        let kind = raw[0];
        // Copied out: a slice would keep the whole message alive for as long as the route.
        let plain = |id: &[u8]| RouteKey::Other {
            kind,
            id: Bytes::copy_from_slice(id),
        };
        match kind {
            2 => return Self::decode_mac_ip(raw),
            1 | 3..=6 => {}
            _ => {
                let key = plain(&raw[2..]);
                return Some(Self {
                    key,
                    raw,
                    label: None,
                });
            }
        }
        let decoded = wire::decode_evpn_nlri(&raw).ok()?;
        let key = match decoded.first()? {
            wire::EvpnRoute::Imet(route) => RouteKey::Imet {
                rd: Rd::from_bytes(route.rd.0),
                tag: route.ethernet_tag.0,
                originator: route.originator_ip,
            },
            // Without the label, RFC 7432 §7.1.
            wire::EvpnRoute::EadPerEs(_) | wire::EvpnRoute::EadPerEvi(_) => plain(&raw[2..2 + 22]),
            wire::EvpnRoute::IpPrefix(route) => {
                // Distinguisher, tag, prefix length, prefix (RFC 9136 §3.1); not the segment.
                let prefix_bytes = if route.gateway.is_ipv4() { 4 } else { 16 };
                plain(&[&raw[2..10], &raw[20..25 + prefix_bytes]].concat())
            }
            // Without the flags, RFC 9251 §9.1.
            wire::EvpnRoute::Smet(_) => plain(&raw[2..raw.len() - 1]),
            _ => plain(&raw[2..]),
        };
        Some(Self {
            key,
            raw,
            label: None,
        })
    }

    /// `| RD 8 | ESI 10 | tag 4 | mac bits 1 | MAC 6 | ip bits 1 | IP 0,4,16 | label 3 | label 0,3 |`
    /// (RFC 7432 §7.2). Read here and not by the codec's crate because nearly all routes are
    /// of this type.
    fn decode_mac_ip(raw: Bytes) -> Option<Self> {
        const FIXED: usize = 8 + 10 + 4 + 1 + 6 + 1;
        let (fixed, more) = raw[2..].split_first_chunk::<FIXED>()?;
        let part = |from: usize| &fixed[from..];
        if fixed[22] != 48 {
            return None;
        }
        let (ip, labels) = match fixed[29] {
            0 => (None, more),
            32 => {
                let (ip, labels) = more.split_first_chunk::<4>()?;
                (Some(IpAddr::from(*ip)), labels)
            }
            128 => {
                let (ip, labels) = more.split_first_chunk::<16>()?;
                (Some(IpAddr::from(*ip)), labels)
            }
            _ => return None,
        };
        let label = match *labels {
            [a, b, c] | [a, b, c, _, _, _] => u32::from_be_bytes([0, a, b, c]),
            _ => return None,
        };
        let key = RouteKey::MacIp {
            rd: Rd::from_bytes(*part(0).first_chunk()?),
            tag: u32::from_be_bytes(*part(18).first_chunk()?),
            mac: MacAddr(*part(23).first_chunk()?),
            ip,
        };
        Some(Self {
            key,
            raw,
            label: Some(label),
        })
    }

    /// What it says beside its key.
    pub(crate) fn rest(&self) -> Rest {
        Rest::of(&self.key, &self.raw)
    }
}

fn encode_route(route: &wire::EvpnRoute) -> Bytes {
    let mut raw = Vec::with_capacity(64);
    wire::encode_evpn_nlri(std::slice::from_ref(route), &mut raw)
        .expect("types 2, 3 and 5 have no value that does not fit");
    Bytes::from(raw)
}

/// Path attributes of a route, without the two that carry routes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Attrs {
    /// As received: 4 or 16 octets, or 32 with a link-local address.
    next_hop_raw: Bytes,
    pub(crate) next_hop: IpAddr,
    list: Vec<PathAttribute>,
    pub(crate) targets: Vec<RouteTarget>,
    pub(crate) sequence: u32,
    pub(crate) sticky: bool,
    pub(crate) neighbour_flags: NeighbourFlags,
    /// Router's MAC (RFC 9135 §8.1); none if two routers are named, which is nobody's.
    pub(crate) router_mac: Option<MacAddr>,
    /// False if the route names encapsulations and VXLAN is not among them (RFC 8365 §5.1.3).
    pub(crate) vxlan: bool,
    /// Label and endpoint of ingress replication (RFC 6514 §5, tunnel type 6).
    pub(crate) replication: Option<(u32, IpAddr)>,
    pub(crate) local_pref: u32,
    pub(crate) as_path_len: usize,
    pub(crate) origin: u8,
    pub(crate) med: u32,
    pub(crate) originator: Option<Ipv4Addr>,
    pub(crate) cluster_list: Vec<Ipv4Addr>,
    /// LLGR_STALE: long stale where it came from (RFC 9494 §4.4).
    pub(crate) long_lived_stale: bool,
    /// NO_LLGR: must not become so here.
    pub(crate) no_long_life: bool,
}

/// LLGR_STALE (RFC 9494 §4.4).
const LLGR_STALE: u32 = 0xffff_0006;
/// NO_LLGR (RFC 9494 §4.4).
const NO_LLGR: u32 = 0xffff_0007;
/// NO_EXPORT (RFC 1997).
const NO_EXPORT: u32 = 0xffff_ff01;

/// How old what we say is, and who hears it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Age {
    Fresh,
    /// Long stale, and the peer knows what that means.
    LongLived,
    /// Long stale, and the peer has to be told in other terms (RFC 9494 §4.6).
    LongLivedUnknown,
}

/// Flags of the ARP/ND extended community (RFC 9047 §3.1):
/// `| 0x06 | 0x08 | flags 1 | reserved 5 |`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct NeighbourFlags(pub(crate) u8);

impl NeighbourFlags {
    /// R, bit 7: the address is a router's.
    pub(crate) const ROUTER: u8 = 0x01;
    /// O, bit 6: a Neighbor Advertisement for it overrides what caches hold.
    pub(crate) const OVERRIDE: u8 = 0x02;
    /// I, bit 4: the address is of this MAC for good.
    pub(crate) const IMMUTABLE: u8 = 0x08;

    pub(crate) fn has(self, flag: u8) -> bool {
        self.0 & flag != 0
    }

    fn from_community(raw: [u8; 8]) -> Option<Self> {
        (raw[..2] == [0x06, 0x08]).then_some(Self(raw[2]))
    }

    fn to_community(self) -> [u8; 8] {
        [0x06, 0x08, self.0, 0, 0, 0, 0, 0]
    }
}

/// What our own routes say beside what identifies them.
pub(crate) struct OwnAttrs<'a> {
    pub(crate) next_hop: IpAddr,
    pub(crate) targets: &'a [RouteTarget],
    pub(crate) sequence: u32,
    pub(crate) sticky: bool,
    /// Of the address, for Type-2 routes.
    pub(crate) neighbour_flags: NeighbourFlags,
    /// VNI, for Type-3 routes.
    pub(crate) replication: Option<u32>,
    /// The router's, for Type-5 routes, and Type-2 routes with two labels.
    pub(crate) router_mac: Option<MacAddr>,
}

impl Attrs {
    pub(crate) fn own(own: &OwnAttrs<'_>) -> Self {
        let mut communities: Vec<ExtendedCommunity> = own
            .targets
            .iter()
            .map(|target| ExtendedCommunity::new(u64::from_be_bytes(target.to_bytes())))
            .collect();
        communities.push(ExtendedCommunity::bgp_encapsulation(TUNNEL_VXLAN));
        if own.sequence > 0 || own.sticky {
            communities.push(ExtendedCommunity::mac_mobility(own.sticky, own.sequence));
        }
        if own.neighbour_flags != NeighbourFlags::default() {
            let raw = own.neighbour_flags.to_community();
            communities.push(ExtendedCommunity::new(u64::from_be_bytes(raw)));
        }
        communities.extend(
            own.router_mac
                .map(|mac| ExtendedCommunity::router_mac(mac.0)),
        );
        // Whoever routes to a NIC's address compares the hosts that announce it as it does any unicast
        // paths, which know no sequence: the host that it moved to is the better one at once, rather
        // than as good as the one that it left until that one withdraws. ADR 0023.
        let moves = own.router_mac.map_or(0, |_| own.sequence);
        let mut list = vec![
            PathAttribute::Origin(Origin::Igp),
            PathAttribute::AsPath(wire::AsPath { segments: vec![] }),
            PathAttribute::LocalPref(LOCAL_PREF.saturating_add(moves)),
            PathAttribute::ExtendedCommunities(communities),
        ];
        if let Some(vni) = own.replication {
            list.push(PathAttribute::PmsiTunnel(
                wire::PmsiTunnel::for_evpn_ingress_replication(vni, own.next_hop),
            ));
        }
        let raw = match own.next_hop {
            IpAddr::V4(address) => Bytes::copy_from_slice(&address.octets()),
            IpAddr::V6(address) => Bytes::copy_from_slice(&address.octets()),
        };
        Self::new(raw, own.next_hop, list)
    }

    fn new(next_hop_raw: Bytes, next_hop: IpAddr, list: Vec<PathAttribute>) -> Self {
        let mut attrs = Self {
            next_hop_raw,
            next_hop,
            list: vec![],
            targets: vec![],
            sequence: 0,
            sticky: false,
            neighbour_flags: NeighbourFlags::default(),
            router_mac: None,
            vxlan: true,
            replication: None,
            local_pref: LOCAL_PREF,
            as_path_len: 0,
            origin: 2,
            med: 0,
            originator: None,
            cluster_list: vec![],
            long_lived_stale: false,
            no_long_life: false,
        };
        for attribute in &list {
            attrs.note(attribute);
        }
        attrs.list = list;
        attrs
    }

    fn note(&mut self, attribute: &PathAttribute) {
        match attribute {
            PathAttribute::Origin(origin) => self.origin = *origin as u8,
            PathAttribute::AsPath(path) => self.as_path_len = path.len(),
            PathAttribute::LocalPref(value) => self.local_pref = *value,
            PathAttribute::Med(value) => self.med = *value,
            PathAttribute::OriginatorId(id) => self.originator = Some(*id),
            PathAttribute::ClusterList(list) => self.cluster_list.clone_from(list),
            PathAttribute::PmsiTunnel(tunnel) | PathAttribute::PmsiTunnelPartial(tunnel) => {
                let endpoint = match tunnel.tunnel_identifier {
                    wire::PmsiTunnelIdentifier::Ipv4(address) => IpAddr::V4(address),
                    wire::PmsiTunnelIdentifier::Ipv6(address) => IpAddr::V6(address),
                    _ => return,
                };
                if tunnel.tunnel_type == wire::PmsiTunnelType::IngressReplication {
                    self.replication = Some((tunnel.mpls_label, endpoint));
                }
            }
            PathAttribute::Communities(list) | PathAttribute::CommunitiesPartial(list) => {
                self.long_lived_stale = list.contains(&LLGR_STALE);
                self.no_long_life = list.contains(&NO_LLGR);
            }
            PathAttribute::ExtendedCommunities(list)
            | PathAttribute::ExtendedCommunitiesPartial(list) => self.note_communities(list),
            _ => {}
        }
    }

    fn note_communities(&mut self, list: &[ExtendedCommunity]) {
        let mut encapsulations = vec![];
        let mut routers = vec![];
        for community in list {
            let raw = community.as_u64().to_be_bytes();
            self.targets.extend(RouteTarget::from_bytes(raw));
            if let Some(flags) = NeighbourFlags::from_community(raw) {
                self.neighbour_flags = flags;
            }
            encapsulations.extend(community.as_bgp_encapsulation());
            routers.extend(community.as_router_mac().map(MacAddr));
            if let Some((sticky, sequence)) = community.as_mac_mobility() {
                (self.sticky, self.sequence) = (sticky, sequence);
            }
        }
        routers.dedup();
        self.router_mac = routers.first().copied().filter(|_| routers.len() == 1);
        self.vxlan = encapsulations.is_empty() || encapsulations.contains(&TUNNEL_VXLAN);
    }

    /// True if the AS path holds the AS: the route went round (RFC 4271 §9.1.2).
    fn passed_through(&self, asn: u32) -> bool {
        self.list
            .iter()
            .any(|a| matches!(a, PathAttribute::AsPath(path) if path.contains_asn(asn)))
    }

    /// The attributes on the wire, for a peer; reflected ones with the marks of RFC 4456 §8.
    pub(crate) fn encode(
        &self,
        reflected: Option<&Reflected>,
        age: Age,
        four_octet_as: bool,
    ) -> Vec<u8> {
        let mut out = Vec::with_capacity(96);
        let mut list = match reflected {
            None => std::borrow::Cow::Borrowed(&self.list),
            Some(marks) => std::borrow::Cow::Owned(self.with_marks(marks)),
        };
        if age != Age::Fresh {
            mark_long_lived(list.to_mut(), age);
        }
        // The codec fails for route-carrying attributes alone, and there are none in the list.
        match wire::attribute::encode_path_attributes(&list, &mut out, four_octet_as, false) {
            Ok(()) => out,
            Err(_) => Vec::new(),
        }
    }

    fn with_marks(&self, marks: &Reflected) -> Vec<PathAttribute> {
        let mut clusters = vec![marks.cluster];
        clusters.extend_from_slice(&self.cluster_list);
        let mut list: Vec<_> = self
            .list
            .iter()
            .filter(|a| !matches!(a, PathAttribute::ClusterList(_)))
            .cloned()
            .collect();
        if self.originator.is_none() {
            list.push(PathAttribute::OriginatorId(marks.originator));
        }
        list.push(PathAttribute::ClusterList(clusters));
        list
    }

    pub(crate) fn next_hop_raw(&self) -> &Bytes {
        &self.next_hop_raw
    }
}

/// RFC 9494 §4.3; for a peer that does not know it, §4.6: the lowest preference, and no farther.
fn mark_long_lived(list: &mut Vec<PathAttribute>, age: Age) {
    let mut communities: Vec<u32> = list
        .iter()
        .filter_map(|attribute| match attribute {
            PathAttribute::Communities(held) | PathAttribute::CommunitiesPartial(held) => {
                Some(held)
            }
            _ => None,
        })
        .flatten()
        .copied()
        .collect();
    let mut add = |community| {
        if !communities.contains(&community) {
            communities.push(community);
        }
    };
    add(LLGR_STALE);
    if age == Age::LongLivedUnknown {
        add(NO_EXPORT);
        list.retain(|attribute| !matches!(attribute, PathAttribute::LocalPref(_)));
        list.push(PathAttribute::LocalPref(0));
    }
    list.retain(|attribute| {
        !matches!(
            attribute,
            PathAttribute::Communities(_) | PathAttribute::CommunitiesPartial(_)
        )
    });
    list.push(PathAttribute::Communities(communities));
}

/// What a reflector adds to a route (RFC 4456 §8).
pub(crate) struct Reflected {
    /// BGP identifier of the peer the route came from; used if it has no ORIGINATOR_ID yet.
    pub(crate) originator: Ipv4Addr,
    /// Our cluster.
    pub(crate) cluster: Ipv4Addr,
}

/// An UPDATE, read.
#[derive(Debug, Default)]
pub(crate) struct Update {
    pub(crate) withdrawn: Vec<Nlri>,
    pub(crate) announced: Vec<Nlri>,
    /// None: treat what is announced as withdrawn (RFC 7606 §2).
    pub(crate) attrs: Option<Arc<Attrs>>,
    pub(crate) end_of_rib: bool,
    /// Why `attrs` is none although routes were announced.
    pub(crate) unusable: Option<Unusable>,
    /// The next hop of routes that name us as their originator.
    pub(crate) named_us: Option<IpAddr>,
    pub(crate) attributes_discarded: u64,
    pub(crate) routes_discarded: u64,
    /// What was malformed and what became of it, in words.
    pub(crate) faults: Vec<String>,
}

/// Why announced routes count as withdrawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unusable {
    /// An attribute is malformed or missing.
    Malformed,
    /// The route went round in a circle.
    Loop,
}

/// Who reads an UPDATE, as far as it matters for loops and AS numbers.
pub(crate) struct Reader {
    pub(crate) asn: u32,
    pub(crate) router_id: Ipv4Addr,
    pub(crate) cluster: Ipv4Addr,
    pub(crate) four_octet_as: bool,
}

/// Reads an UPDATE. An error means that its routes cannot be told apart, and the session has to
/// go (RFC 7606 §7.11); everything else is dealt with here.
pub(crate) fn read_update(
    message: &wire::UpdateMessage,
    reader: &Reader,
    known: &mut KnownAttrs,
) -> Result<Update, NotificationMessage> {
    let sections = split_attributes(&message.path_attributes)?;
    let mut update = Update::default();
    if let Some(value) = &sections.unreach
        && value.get(..3) == Some(&FAMILY)
    {
        let (routes, bad) = split_routes(value.slice(3..))?;
        update.end_of_rib = routes.is_empty() && bad.is_empty() && sections.is_only_unreach();
        update.withdrawn = routes;
        update.note_routes(bad);
    }
    let Some(value) = &sections.reach else {
        return Ok(update);
    };
    if value.get(..3) != Some(&FAMILY) {
        return Ok(update);
    }
    let (next_hop_raw, routes) = split_reach(value)?;
    let (routes, bad) = split_routes(routes)?;
    update.announced = routes;
    update.note_routes(bad);
    let whole = (!sections.overrun && !sections.bad_flags)
        .then(|| known.key(&next_hop_raw, &sections.rest, reader));
    if let Some(attrs) = whole.as_ref().and_then(|key| known.get(key)) {
        update.attrs = Some(attrs);
        return Ok(update);
    }
    read_attributes(&mut update, &sections, next_hop_raw, reader);
    if let (Some(key), Some(attrs), 0) = (whole, &update.attrs, update.attributes_discarded) {
        known.note(key, attrs);
    }
    Ok(update)
}

/// Attributes in use, by what they were read from: what came before need not be read again, and
/// is held once. Only those without a fault are here.
#[derive(Debug, Default)]
pub(crate) struct KnownAttrs {
    table: BTreeMap<Box<[u8]>, Weak<Attrs>>,
    /// Entries after which those no longer in use are dropped.
    sweep_at: usize,
}

impl KnownAttrs {
    fn key(&self, next_hop: &[u8], list: &[u8], reader: &Reader) -> Box<[u8]> {
        let marks = [u8::from(reader.four_octet_as), next_hop.len() as u8];
        [&marks[..], next_hop, list].concat().into()
    }

    fn get(&self, key: &[u8]) -> Option<Arc<Attrs>> {
        self.table.get(key)?.upgrade()
    }

    fn note(&mut self, key: Box<[u8]>, attrs: &Arc<Attrs>) {
        if self.table.len() >= self.sweep_at {
            self.table.retain(|_, attrs| attrs.strong_count() > 0);
            self.sweep_at = 64 + self.table.len() * 2;
        }
        self.table.insert(key, Arc::downgrade(attrs));
    }
}

fn read_attributes(update: &mut Update, sections: &Sections, next_hop_raw: Bytes, reader: &Reader) {
    let rest = wire::UpdateMessage {
        withdrawn_routes: Bytes::new(),
        path_attributes: sections.rest.clone(),
        nlri: Bytes::new(),
    };
    let parsed = match rest.parse_revised(reader.four_octet_as, true, false, &[]) {
        Ok(parsed) => parsed,
        Err(error) => return update.treat_as_withdraw(format!("attributes: {error}")),
    };
    for bad in &parsed.malformed {
        let name = attribute_name(bad.type_code);
        let what = if bad.disposition == wire::ErrorDisposition::AttributeDiscard {
            "dropped"
        } else {
            update.unusable = Some(Unusable::Malformed);
            "routes count as withdrawn"
        };
        update.faults.push(format!("{name} is malformed: {what}"));
    }
    if sections.bad_flags {
        update.treat_as_withdraw("MP_REACH_NLRI or MP_UNREACH_NLRI with wrong flags".to_owned());
    }
    if sections.overrun {
        update.treat_as_withdraw("the last attribute is longer than the message".to_owned());
    }
    if update.unusable.is_some() {
        return;
    }
    update.attributes_discarded = parsed.malformed.len() as u64;
    let list: Vec<_> = parsed
        .update
        .attributes
        .into_iter()
        .filter(is_passed_on)
        .collect();
    let mandatory = list
        .iter()
        .filter(|a| matches!(a, PathAttribute::Origin(_) | PathAttribute::AsPath(_)))
        .count();
    let Some(next_hop) = address_of(&next_hop_raw) else {
        return update.treat_as_withdraw(format!("next hop of {} octets", next_hop_raw.len()));
    };
    if mandatory != 2 {
        return update.treat_as_withdraw("ORIGIN or AS_PATH is missing".to_owned());
    }
    let attrs = Attrs::new(next_hop_raw, next_hop, list);
    let looped = attrs.originator == Some(reader.router_id)
        || attrs.cluster_list.contains(&reader.cluster)
        || attrs.passed_through(reader.asn);
    if looped {
        update.named_us = (attrs.originator == Some(reader.router_id)).then_some(attrs.next_hop);
        update.unusable = Some(Unusable::Loop);
    } else {
        update.attrs = Some(Arc::new(attrs));
    }
}

impl Update {
    fn treat_as_withdraw(&mut self, what: String) {
        self.unusable = Some(Unusable::Malformed);
        self.faults.push(what + ": routes count as withdrawn");
    }

    fn note_routes(&mut self, bad: Vec<(u8, usize)>) {
        self.routes_discarded += bad.len() as u64;
        let text = |(kind, octets)| format!("type-{kind} route of {octets} octets: dropped");
        self.faults.extend(bad.into_iter().map(text));
    }
}

/// Names of attributes that a fabric sees (IANA, BGP Path Attributes).
fn attribute_name(code: u8) -> String {
    let name = match code {
        1 => "ORIGIN",
        2 => "AS_PATH",
        3 => "NEXT_HOP",
        4 => "MULTI_EXIT_DISC",
        5 => "LOCAL_PREF",
        6 => "ATOMIC_AGGREGATE",
        7 => "AGGREGATOR",
        8 => "COMMUNITIES",
        9 => "ORIGINATOR_ID",
        10 => "CLUSTER_LIST",
        14 => "MP_REACH_NLRI",
        15 => "MP_UNREACH_NLRI",
        16 => "EXTENDED_COMMUNITIES",
        22 => "PMSI_TUNNEL",
        23 => "TUNNEL_ENCAPSULATION",
        32 => "LARGE_COMMUNITIES",
        other => return format!("attribute {other}"),
    };
    name.to_owned()
}

/// Unknown attributes travel on only if they are transitive (RFC 4271 §5); NEXT_HOP of the base
/// protocol has no meaning beside MP_REACH_NLRI (RFC 4760 §3).
fn is_passed_on(attribute: &PathAttribute) -> bool {
    match attribute {
        PathAttribute::Unknown(raw) => raw.flags & 0x40 != 0,
        PathAttribute::NextHop(_)
        | PathAttribute::MpReachNlri(_)
        | PathAttribute::MpUnreachNlri(_) => false,
        _ => true,
    }
}

fn address_of(next_hop: &[u8]) -> Option<IpAddr> {
    match next_hop.len() {
        4 => {
            let octets: [u8; 4] = next_hop.try_into().ok()?;
            Some(IpAddr::from(octets))
        }
        16 | 32 => {
            let octets: [u8; 16] = next_hop.get(..16)?.try_into().ok()?;
            Some(IpAddr::V6(Ipv6Addr::from(octets)))
        }
        _ => None,
    }
}

/// The attribute list, with the two that carry routes taken out.
struct Sections {
    reach: Option<Bytes>,
    unreach: Option<Bytes>,
    rest: Bytes,
    /// The last attribute claims more octets than there are.
    overrun: bool,
    /// The routes came with flags that their attribute cannot have.
    bad_flags: bool,
}

impl Sections {
    fn is_only_unreach(&self) -> bool {
        self.reach.is_none() && self.rest.is_empty() && !self.overrun
    }
}

/// `| flags 1 | type 1 | length 1 or 2 | value |` each (RFC 4271 §4.3).
fn split_attributes(list: &Bytes) -> Result<Sections, NotificationMessage> {
    let mut sections = Sections {
        reach: None,
        unreach: None,
        rest: Bytes::new(),
        overrun: false,
        bad_flags: false,
    };
    let mut rest = BytesMut::new();
    let mut left = list.clone();
    while !left.is_empty() {
        let Some((kind, head, total)) = attribute_extent(&left) else {
            sections.overrun = true;
            break;
        };
        let attribute = left.split_to(total);
        let slot = match kind {
            MP_REACH => &mut sections.reach,
            MP_UNREACH => &mut sections.unreach,
            _ => {
                rest.put_slice(&attribute);
                continue;
            }
        };
        // Optional, not transitive (RFC 4760 §3).
        sections.bad_flags |= attribute[0] & 0xc0 != 0x80;
        if slot.replace(attribute.slice(head..)).is_some() {
            return Err(malformed_list()); // RFC 7606 §3 (g)
        }
    }
    sections.rest = rest.freeze();
    Ok(sections)
}

fn attribute_extent(left: &[u8]) -> Option<(u8, usize, usize)> {
    let (flags, kind) = (*left.first()?, *left.get(1)?);
    let (head, length) = if flags & EXTENDED_LENGTH == 0 {
        (3, usize::from(*left.get(2)?))
    } else {
        let length = [*left.get(2)?, *left.get(3)?];
        (4, usize::from(u16::from_be_bytes(length)))
    };
    (left.len() >= head + length).then_some((kind, head, head + length))
}

/// `| AFI 2 | SAFI 1 | length 1 | next hop | reserved 1 | routes |` (RFC 4760 §3).
fn split_reach(value: &Bytes) -> Result<(Bytes, Bytes), NotificationMessage> {
    let length = usize::from(*value.get(3).ok_or_else(malformed_list)?);
    // RFC 7606 §7.11: with a next hop of another length the routes may be elsewhere.
    if value.len() < 4 + length + 1 || !matches!(length, 4 | 16 | 32) {
        return Err(malformed_list());
    }
    Ok((value.slice(4..4 + length), value.slice(4 + length + 1..)))
}

/// Routes, and type and length of those dropped: EVPN routes carry their length, so one that is
/// malformed inside does not hide the next.
fn split_routes(mut left: Bytes) -> Result<SplitRoutes, NotificationMessage> {
    let (mut routes, mut bad) = (vec![], vec![]);
    while !left.is_empty() {
        let total = 2 + usize::from(*left.get(1).ok_or_else(malformed_list)?);
        if left.len() < total {
            return Err(malformed_list());
        }
        let raw = left.split_to(total);
        let (kind, octets) = (raw[0], raw.len() - 2);
        match Nlri::decode(raw) {
            Some(route) => routes.push(route),
            None => bad.push((kind, octets)),
        }
    }
    Ok((routes, bad))
}

type SplitRoutes = (Vec<Nlri>, Vec<(u8, usize)>);

fn malformed_list() -> NotificationMessage {
    NotificationMessage::new(
        NotificationCode::UpdateMessage,
        wire::notification::update_subcode::MALFORMED_ATTRIBUTE_LIST,
        Bytes::new(),
    )
}

/// UPDATEs that announce routes with the same attributes, or withdraw routes, each as full as it
/// gets.
#[derive(Debug)]
pub(crate) struct Packer {
    kind: u8,
    head: Bytes,
    attrs: Bytes,
    /// What a route that fits no other way may make of a message.
    max_bytes: usize,
    /// Up to the last route so far; empty between messages.
    open: BytesMut,
    pub(crate) messages: Vec<Bytes>,
}

impl Packer {
    pub(crate) fn announcing(attrs: Vec<u8>, next_hop: &[u8], max_bytes: usize) -> Self {
        let mut head = Vec::with_capacity(8 + next_hop.len());
        head.extend_from_slice(&FAMILY);
        head.push(u8::try_from(next_hop.len()).expect("next hops have at most 32 octets"));
        head.extend_from_slice(next_hop);
        head.push(0);
        Self::new(MP_REACH, head.into(), attrs.into(), max_bytes)
    }

    pub(crate) fn withdrawing() -> Self {
        let head = Bytes::from_static(&FAMILY);
        Self::new(MP_UNREACH, head, Bytes::new(), MESSAGE_MAX_BYTES)
    }

    fn new(kind: u8, head: Bytes, attrs: Bytes, max_bytes: usize) -> Self {
        Self {
            kind,
            head,
            attrs,
            max_bytes,
            open: BytesMut::new(),
            messages: vec![],
        }
    }

    /// Takes one more route. One that does not fit even alone is left out.
    pub(crate) fn push(&mut self, key: &RouteKey, rest: &Rest) {
        let length = rest.written_len(key);
        if !self.open.is_empty() && self.open.len() + length + self.attrs.len() > MESSAGE_MAX_BYTES
        {
            self.close();
        }
        if self.open.is_empty() {
            let fixed = UPDATE_HEAD_BYTES + self.head.len() + self.attrs.len();
            if fixed + length > self.max_bytes.max(MESSAGE_MAX_BYTES) {
                return;
            }
            self.start(MESSAGE_MAX_BYTES.max(fixed + length));
        }
        rest.write(key, &mut self.open);
    }

    fn start(&mut self, room: usize) {
        self.open.reserve(room);
        self.open.put_bytes(0xff, 16);
        self.open.put_bytes(0, UPDATE_HEAD_BYTES - 16);
        self.open.put_slice(&self.head);
    }

    /// Fills in the lengths. The attribute with the routes goes first (RFC 7606 §5.1).
    fn close(&mut self) {
        let value_bytes = self.open.len() - UPDATE_HEAD_BYTES;
        self.open.put_slice(&self.attrs);
        let total = self.open.len();
        let length = |bytes: usize| {
            u16::try_from(bytes)
                .expect("messages are cut to 65535 octets")
                .to_be_bytes()
        };
        let (all, list, value) = (
            length(total),
            length(total - HEADER_BYTES - 4),
            length(value_bytes),
        );
        let flags = 0x80 | EXTENDED_LENGTH;
        self.open[16..UPDATE_HEAD_BYTES].copy_from_slice(&[
            all[0], all[1], 2, 0, 0, list[0], list[1], flags, self.kind, value[0], value[1],
        ]);
        let message = self.open.split().freeze();
        self.messages.push(message);
    }

    /// The messages.
    pub(crate) fn finish(mut self) -> Vec<Bytes> {
        if !self.open.is_empty() {
            self.close();
        }
        self.messages
    }
}

/// Header, no routes of IPv4, length of the attributes, head of the attribute with the routes.
const UPDATE_HEAD_BYTES: usize = HEADER_BYTES + 4 + 4;

/// The UPDATE without routes that ends the first exchange (RFC 4724 §2).
pub(crate) fn end_of_rib() -> Bytes {
    update_of(MP_UNREACH, &FAMILY, &[])
}

/// An UPDATE of one attribute that carries routes, and others.
pub(crate) fn update_of(kind: u8, value: &[u8], attrs: &[u8]) -> Bytes {
    let head = Bytes::copy_from_slice(value);
    let attrs = Bytes::copy_from_slice(attrs);
    let mut packer = Packer::new(kind, head, attrs, MESSAGE_MAX_BYTES);
    packer.start(0);
    packer.close();
    packer.messages.remove(0)
}

/// What an UPDATE says about route target membership, if it is about that.
pub(crate) fn read_membership(message: &wire::UpdateMessage) -> Option<membership::Update> {
    let sections = split_attributes(&message.path_attributes).ok()?;
    let only = sections.is_only_unreach();
    membership::read(sections.reach.as_ref(), sections.unreach.as_ref(), only)
}
