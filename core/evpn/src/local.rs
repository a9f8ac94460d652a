//! What is behind this host, and the routes that announce it.

use crate::codec::{Attrs, NeighbourFlags, Nlri, OwnAttrs, RouteKey};
use crate::vrf::{MacKey, is_usable_vtep};
use crate::{Config, Rd, RouteTarget};
use ipnet::IpNet;
use model::{Encoding, MacAddr, Tag, Vni};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

/// Everything behind this host. Set as a whole; the speaker announces and withdraws the
/// difference to what it announced before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalState {
    /// This host's VTEP address: next hop of all its routes.
    pub vtep: IpAddr,
    /// EVPN instances in use here. Forwarding state is kept for these alone.
    pub evis: BTreeMap<Vni, LocalEvi>,
    /// Routers here, by the local part of their route distinguisher, which no instance of `evis` has.
    pub ip_vrfs: BTreeMap<u16, LocalIpVrf>,
}

impl LocalState {
    /// A host with nothing behind it.
    pub fn empty(vtep: IpAddr) -> Self {
        Self {
            vtep,
            evis: BTreeMap::new(),
            ip_vrfs: BTreeMap::new(),
        }
    }
}

/// One router on this host: its part of a VPC's IP-VRF, which all routers with the same VNI share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalIpVrf {
    /// What routers of the VPC send to each other over (L3VNI); no instance has it.
    pub vni: Vni,
    /// Route targets.
    pub targets: RouteTargets,
    /// Inner destination of what is sent to it: the Router's MAC (RFC 9135 §8.1).
    pub mac: MacAddr,
    /// What is reached by it: one Type-5 route each.
    pub prefixes: BTreeSet<IpNet>,
}

/// One EVPN instance (MAC-VRF) on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalEvi {
    /// Whether routes carry Ethernet Tags.
    pub encoding: Encoding,
    /// Local part of the route distinguisher `router-id:index` (RFC 7432 §7.9, type 1). The
    /// caller keeps it unique on the host and the same across restarts.
    pub rd_index: u16,
    /// Route targets.
    pub targets: RouteTargets,
    /// Broadcast domains in use here, each announced as a Type-3 route: `None` for
    /// [`Encoding::VlanBased`], VLANs for [`Encoding::VlanAwareBundle`].
    pub domains: BTreeSet<Tag>,
    /// MACs behind this host, each in one of `domains`.
    pub macs: BTreeMap<(Tag, MacAddr), LocalMac>,
    /// The router on this host by which others reach the addresses of `macs`; none if they are
    /// bridged to only. Of [`Encoding::VlanBased`] instances.
    pub routed: Option<Routed>,
}

/// Symmetric routing and bridging (RFC 9135 §5): what an address of a MAC-VRF is routed by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Routed {
    /// The VNI of the VPC's routers (L3VNI), the routes' second label.
    pub vni: Vni,
    /// Targets of the VPC's routers, put on the routes beside the instance's own.
    pub targets: RouteTargets,
    /// The Router's MAC (RFC 9135 §8.1).
    pub mac: MacAddr,
}

impl LocalEvi {
    /// An instance without domains or MACs, with automatic route targets.
    pub fn new(encoding: Encoding, rd_index: u16) -> Self {
        Self {
            encoding,
            rd_index,
            targets: RouteTargets::Auto,
            domains: BTreeSet::new(),
            macs: BTreeMap::new(),
            routed: None,
        }
    }
}

/// A MAC behind this host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LocalMac {
    /// Its addresses: one Type-2 route each, beside the MAC-only one.
    pub addresses: BTreeSet<IpAddr>,
    /// The static bit (RFC 7432 §15.2): no other VTEP may take this MAC over.
    pub sticky: bool,
    /// Its IPv6 addresses are a router's: others answer Neighbor Solicitations for them with the
    /// Router flag (RFC 9047, R and O).
    pub router: bool,
    /// Its addresses are its own for good: no other MAC may take them over (RFC 9047, I).
    pub immutable: bool,
    /// The mobility sequence that it is announced with at least: who moves a MAC and counts the
    /// moves knows that its old host, whatever befalls it, does not win it back.
    pub sequence: u32,
    /// It is on its way to another VTEP, and is not taken back from one that has it.
    pub leaving: bool,
}

impl LocalMac {
    /// A MAC with these addresses that may move.
    pub fn with_addresses(addresses: impl IntoIterator<Item = IpAddr>) -> Self {
        Self {
            addresses: addresses.into_iter().collect(),
            ..Self::default()
        }
    }

    /// Flags for the route with this address.
    fn flags(&self, ip: Option<IpAddr>) -> NeighbourFlags {
        let router = self.router && ip.is_some_and(|ip| ip.is_ipv6());
        let immutable = self.immutable && ip.is_some();
        let bit = |on: bool, flags: u8| if on { flags } else { 0 };
        NeighbourFlags(
            bit(router, NeighbourFlags::ROUTER | NeighbourFlags::OVERRIDE)
                | bit(immutable, NeighbourFlags::IMMUTABLE),
        )
    }
}

/// Route targets of an instance.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum RouteTargets {
    /// Announces `AS:VNI`, the AS cut to its low 16 bits as FRR does. Takes in what any
    /// speaker derives for the VNI: `*:VNI`, as FRR does, and the form of RFC 8365 with any AS.
    #[default]
    Auto,
    /// The same, but announces the form of RFC 8365 §5.1.2.1.
    AutoRfc8365,
    /// Exactly these. Import takes routes with any of them.
    Manual {
        /// Routes with one of these are taken in.
        import: BTreeSet<RouteTarget>,
        /// Put on our routes.
        export: BTreeSet<RouteTarget>,
    },
}

/// Local state that cannot be announced. Nothing of it was taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadLocalState {
    /// Two instances would share a route distinguisher.
    #[error(
        "EVPN instances {0} and {1} have the same route distinguisher index {2}: give each its own"
    )]
    SharedRd(Vni, Vni, u16),
    /// A router would share one with an instance.
    #[error(
        "EVPN instance {0} and a router of VNI {1} have the same route distinguisher index {2}: give each its own"
    )]
    SharedRouterRd(Vni, Vni, u16),
    /// A VNI of an instance and of routers: whatever came with it would be for both.
    #[error("VNI {0} is of an EVPN instance and of routers: give each its own")]
    SharedVni(Vni),
    /// A tag that the encoding does not have.
    #[error(
        "EVPN instance {vni} is {encoding} and cannot have broadcast domain {tag:?}: vlan-based has none, vlan-aware-bundle a VLAN"
    )]
    WrongTag {
        /// The instance.
        vni: Vni,
        /// Its encoding.
        encoding: Encoding,
        /// The tag.
        tag: Tag,
    },
    /// A MAC in a broadcast domain that is not in use.
    #[error(
        "MAC {mac} of EVPN instance {vni} is in broadcast domain {tag:?}, which is not among the instance's domains: add it there"
    )]
    NoDomain {
        /// The instance.
        vni: Vni,
        /// The MAC.
        mac: MacAddr,
        /// The tag.
        tag: Tag,
    },
    /// A MAC that no interface has.
    #[error("MAC {mac} of EVPN instance {vni} is not a unicast address")]
    UnusableMac {
        /// The instance.
        vni: Vni,
        /// The MAC.
        mac: MacAddr,
    },
    /// A VTEP address that frames cannot be sent to.
    #[error("VTEP address {0} is not a unicast address of a host")]
    UnusableVtep(IpAddr),
}

/// A route of our own, as announced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OwnRoute {
    pub(crate) nlri: Nlri,
    pub(crate) attrs: Arc<Attrs>,
}

pub(crate) fn check(state: &LocalState) -> Result<(), BadLocalState> {
    if !is_usable_vtep(state.vtep) {
        return Err(BadLocalState::UnusableVtep(state.vtep));
    }
    let mut by_index: BTreeMap<u16, Vni> = BTreeMap::new();
    for (vni, evi) in &state.evis {
        if let Some(other) = by_index.insert(evi.rd_index, *vni) {
            return Err(BadLocalState::SharedRd(other, *vni, evi.rd_index));
        }
        let tagged = evi.encoding == Encoding::VlanAwareBundle;
        if let Some(tag) = evi.domains.iter().find(|tag| tag.is_some() != tagged) {
            return Err(BadLocalState::WrongTag {
                vni: *vni,
                encoding: evi.encoding,
                tag: *tag,
            });
        }
        for (tag, mac) in evi.macs.keys() {
            let (vni, tag, mac) = (*vni, *tag, *mac);
            if !mac.is_usable() {
                return Err(BadLocalState::UnusableMac { vni, mac });
            }
            if !evi.domains.contains(&tag) {
                return Err(BadLocalState::NoDomain { vni, mac, tag });
            }
        }
        if let Some(routed) = &evi.routed {
            if state.evis.contains_key(&routed.vni) {
                return Err(BadLocalState::SharedVni(routed.vni));
            }
            if !routed.mac.is_usable() {
                let (vni, mac) = (routed.vni, routed.mac);
                return Err(BadLocalState::UnusableMac { vni, mac });
            }
        }
    }
    for (index, vrf) in &state.ip_vrfs {
        if let Some(other) = by_index.get(index) {
            return Err(BadLocalState::SharedRouterRd(*other, vrf.vni, *index));
        }
        if state.evis.contains_key(&vrf.vni) {
            return Err(BadLocalState::SharedVni(vrf.vni));
        }
        if !vrf.mac.is_usable() {
            let (vni, mac) = (vrf.vni, vrf.mac);
            return Err(BadLocalState::UnusableMac { vni, mac });
        }
    }
    Ok(())
}

/// All routes that announce an instance. `sequence` says with which mobility sequence a MAC, or a
/// MAC with an address, is announced, and that it is not while somebody else has it.
pub(crate) fn routes_of(
    vni: Vni,
    evi: &LocalEvi,
    vtep: IpAddr,
    speaker: &Config,
    sequence: impl Fn(MacKey, Option<IpAddr>) -> Option<u32>,
) -> BTreeMap<RouteKey, OwnRoute> {
    let rd = Rd::of_instance(speaker.router_id, evi.rd_index);
    let targets = exported(&evi.targets, vni, speaker);
    let both: Vec<RouteTarget> = evi.routed.as_ref().map_or_else(Vec::new, |routed| {
        let more = exported(&routed.targets, routed.vni, speaker);
        targets.iter().copied().chain(more).collect()
    });
    let attrs = |sequence, sticky, neighbour_flags, replication, routed: Option<&Routed>| {
        Arc::new(Attrs::own(&OwnAttrs {
            next_hop: vtep,
            targets: if routed.is_some() { &both } else { &targets },
            sequence,
            sticky,
            neighbour_flags,
            replication,
            router_mac: routed.map(|routed| routed.mac),
        }))
    };
    let mut routes = BTreeMap::new();
    let mut put = |nlri: Nlri, attrs: &Arc<Attrs>| {
        let attrs = Arc::clone(attrs);
        routes.insert(nlri.key.clone(), OwnRoute { nlri, attrs });
    };
    let flood = attrs(0, false, NeighbourFlags::default(), Some(vni.get()), None);
    for tag in &evi.domains {
        put(Nlri::imet(rd, wire_tag(*tag), vtep), &flood);
    }
    let mut shared: BTreeMap<(u32, bool, NeighbourFlags, bool), Arc<Attrs>> = BTreeMap::new();
    for ((tag, mac), held) in &evi.macs {
        let addresses = held.addresses.iter().copied().map(Some);
        for ip in std::iter::once(None).chain(addresses) {
            let Some(sequence) = sequence((vni, *tag, *mac), ip) else {
                continue;
            };
            let (sticky, flags) = (held.sticky, held.flags(ip));
            // A MAC is only bridged to.
            let routed = evi.routed.as_ref().filter(|_| ip.is_some());
            let attrs = shared
                .entry((sequence, sticky, flags, routed.is_some()))
                .or_insert_with(|| attrs(sequence, sticky, flags, None, routed));
            let label = routed.map(|routed| routed.vni.get());
            let nlri = Nlri::mac_ip(rd, wire_tag(*tag), *mac, ip, vni.get(), label);
            put(nlri, attrs);
        }
    }
    routes
}

fn exported(targets: &RouteTargets, vni: Vni, speaker: &Config) -> Vec<RouteTarget> {
    match targets {
        RouteTargets::Auto => vec![RouteTarget::auto(speaker.asn, vni)],
        RouteTargets::AutoRfc8365 => vec![RouteTarget::auto_rfc8365(speaker.asn, vni)],
        RouteTargets::Manual { export, .. } => export.iter().copied().collect(),
    }
}

/// All routes that announce a router.
pub(crate) fn prefixes_of(
    rd_index: u16,
    vrf: &LocalIpVrf,
    vtep: IpAddr,
    speaker: &Config,
) -> Vec<(RouteKey, OwnRoute)> {
    let rd = Rd::of_instance(speaker.router_id, rd_index);
    let attrs = Arc::new(Attrs::own(&OwnAttrs {
        next_hop: vtep,
        targets: &exported(&vrf.targets, vrf.vni, speaker),
        sequence: 0,
        sticky: false,
        neighbour_flags: NeighbourFlags::default(),
        replication: None,
        router_mac: Some(vrf.mac),
    }));
    let route = |prefix: &IpNet| {
        let nlri = Nlri::ip_prefix(rd, *prefix, vrf.vni.get());
        let attrs = Arc::clone(&attrs);
        (nlri.key.clone(), OwnRoute { nlri, attrs })
    };
    vrf.prefixes.iter().map(route).collect()
}

/// Instances whose announcement differs between two states, those that are gone included.
pub(crate) fn changed(before: Option<&LocalState>, after: &LocalState) -> BTreeSet<Vni> {
    let Some(before) = before else {
        return after.evis.keys().copied().collect();
    };
    let moved = before.vtep != after.vtep;
    let all = before.evis.keys().chain(after.evis.keys());
    all.filter(|vni| moved || before.evis.get(vni) != after.evis.get(vni))
        .copied()
        .collect()
}

fn wire_tag(tag: Tag) -> u32 {
    tag.map_or(0, |vlan| u32::from(vlan.get()))
}
