//! What EVPN learned: the only source of remote forwarding rows.

use crate::{MacAddr, VlanId, Vni};
use ipnet::IpNet;
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
    /// What is behind routers elsewhere, by the VNI that they route over (L3VNI).
    pub ip_vrfs: BTreeMap<Vni, IpVrfForwarding>,
}

/// Remote forwarding state of one VPC's routers (IP-VRF).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IpVrfForwarding {
    /// Which VTEP a router's MAC is behind (the Router's MAC community of Type-5 routes).
    pub routers: BTreeMap<MacAddr, IpAddr>,
    /// By which routers a prefix is reached (Type 5): all of them the same, flows are shared. Each
    /// is in `routers`; none of the sets is empty.
    pub prefixes: BTreeMap<IpNet, BTreeSet<MacAddr>>,
}

/// Remote forwarding state of one EVPN instance (MAC-VRF).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EviForwarding {
    /// VTEPs that want this broadcast domain's broadcast, unknown unicast and multicast (Type 3).
    pub flood: BTreeSet<(Tag, IpAddr)>,
    /// Which VTEP a MAC is behind (Type 2).
    pub macs: BTreeMap<(Tag, MacAddr), IpAddr>,
    /// Those of `macs` that are behind this host as well: another VTEP announces them and wins.
    pub lost: BTreeSet<(Tag, MacAddr)>,
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
            .chain(
                self.ip_vrfs
                    .values()
                    .flat_map(|vrf| vrf.routers.values().copied()),
            )
            .collect()
    }

    /// What is new or other here than in `before`. Never complete: of what went it says nothing, nor
    /// of what is behind routers, whose rows are not of this namespace.
    pub fn news_since(&self, before: &Forwarding) -> Forwarding {
        let empty = EviForwarding::default();
        let news = |(vni, evi): (&Vni, &EviForwarding)| {
            let old = before.evis.get(vni).unwrap_or(&empty);
            let mut neighbours = difference(&evi.neighbours, &old.neighbours);
            // The flag is part of the row.
            let flagged = evi.routers.symmetric_difference(&old.routers);
            let held = |key: &(Tag, IpAddr)| Some((*key, *evi.neighbours.get(key)?));
            neighbours.extend(flagged.filter_map(held));
            let is_new = |key: &&(Tag, IpAddr)| neighbours.contains_key(*key);
            let routers = evi.routers.iter().filter(is_new).copied().collect();
            let mut macs = difference(&evi.macs, &old.macs);
            // Whether this host has lost it says where its row is.
            let contested = evi.lost.symmetric_difference(&old.lost);
            let held = |key: &(Tag, MacAddr)| Some((*key, *evi.macs.get(key)?));
            macs.extend(contested.filter_map(held));
            let is_new = |key: &&(Tag, MacAddr)| macs.contains_key(*key);
            let lost = evi.lost.iter().filter(is_new).copied().collect();
            let news = EviForwarding {
                flood: evi.flood.difference(&old.flood).copied().collect(),
                macs,
                lost,
                neighbours,
                routers,
            };
            (news != empty).then_some((*vni, news))
        };
        Forwarding {
            complete: false,
            evis: self.evis.iter().filter_map(news).collect(),
            ip_vrfs: BTreeMap::new(),
        }
    }
}

/// What `new` has and `old` has not, or has otherwise. Both are walked once.
fn difference<K: Ord + Copy, V: PartialEq + Copy>(
    new: &BTreeMap<K, V>,
    old: &BTreeMap<K, V>,
) -> BTreeMap<K, V> {
    let mut old = old.iter().peekable();
    new.iter()
        .filter(|(key, value)| {
            while old.next_if(|(other, _)| other < key).is_some() {}
            old.next_if(|(other, _)| other == key)
                .is_none_or(|(_, held)| held != *value)
        })
        .map(|(key, value)| (*key, *value))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MacAddr;

    fn state(macs: &[(u8, u8)]) -> Forwarding {
        let mac = |n: u8| (None, MacAddr([2, 0, 0, 0, 0, n]));
        let evi = EviForwarding {
            macs: macs
                .iter()
                .map(|(n, vtep)| (mac(*n), [10, 0, 0, *vtep].into()))
                .collect(),
            ..EviForwarding::default()
        };
        Forwarding {
            complete: true,
            evis: [(Vni::new(7).unwrap(), evi)].into(),
            ip_vrfs: BTreeMap::new(),
        }
    }

    #[test]
    fn news_are_what_is_new_or_other() {
        let before = state(&[(1, 1), (2, 1), (4, 1), (5, 1)]);
        let now = state(&[(0, 1), (2, 1), (3, 1), (4, 2), (6, 1)]);
        let expected = Forwarding {
            complete: false,
            ..state(&[(0, 1), (3, 1), (4, 2), (6, 1)])
        };
        assert_eq!(now.news_since(&before), expected);
        assert_eq!(now.news_since(&now), Forwarding::default());
        // Only what went: no news.
        assert_eq!(state(&[]).news_since(&before), Forwarding::default());
        assert_eq!(before.news_since(&Forwarding::default()).evis, before.evis);
    }
}
