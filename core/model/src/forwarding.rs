//! What EVPN learned: the only source of remote forwarding rows.

use crate::{MacAddr, VlanId, Vni};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// The Ethernet Tag ID of a route: none for VLAN-based service, the subnet's VLAN in a bundle.
pub type Tag = Option<VlanId>;

/// Remote forwarding state of this host, as the speaker computed it from its best routes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Forwarding {
    /// False from the start of the speaker until every reflector sent its End-of-RIB or the
    /// deferral timer ran out (RFC 4724 §4.1). Until then rows may be added, none removed.
    pub complete: bool,
    /// By the VNI of the EVPN instance.
    pub evis: BTreeMap<Vni, EviForwarding>,
}

/// Remote forwarding state of one EVPN instance (MAC-VRF).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EviForwarding {
    /// VTEPs that want this broadcast domain's broadcast, unknown unicast and multicast (Type 3).
    pub flood: BTreeSet<(Tag, IpAddr)>,
    /// Which VTEP a MAC is behind (Type 2).
    pub macs: BTreeMap<(Tag, MacAddr), IpAddr>,
    /// Which MAC has an address (Type 2 with an IP part). Its MAC is in `macs` too, unless the
    /// address is in dispute and frozen.
    pub neighbours: BTreeMap<(Tag, IpAddr), MacAddr>,
    /// Addresses among `neighbours` that are a router's: a Neighbor Advertisement for them has the
    /// Router flag (RFC 9047, R).
    pub routers: BTreeSet<(Tag, IpAddr)>,
}

impl Forwarding {
    /// All VTEPs that any row points to.
    pub fn vteps(&self) -> BTreeSet<IpAddr> {
        self.evis
            .values()
            .flat_map(|evi| {
                evi.flood
                    .iter()
                    .map(|(_, vtep)| *vtep)
                    .chain(evi.macs.values().copied())
            })
            .collect()
    }
}
