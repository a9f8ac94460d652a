//! Route distinguisher indexes: one for each EVPN instance and router on the host, the same for good.
//!
//! `router-id:index` has 16 bits for the index (RFC 7432 §7.9, type 1), a VNI has 24, so the index
//! is not the VNI. It is kept on disk: an instance that changed its index over a restart would be
//! announced anew beside its own stale routes.

use model::{RouterId, Vni};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// What has an index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Of {
    /// An EVPN instance.
    Instance(Vni),
    /// A router.
    Router(RouterId),
}

/// Index by VNI, and by router.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RdIndexes {
    by_vni: BTreeMap<Vni, u16>,
    #[serde(default)]
    by_router: BTreeMap<RouterId, u16>,
}

impl RdIndexes {
    /// The index of each that is in use; those that have none get the lowest free one. Indexes of what
    /// is no longer in use stay its own until no other is left.
    pub(crate) fn assign(&mut self, in_use: &BTreeSet<Of>) -> BTreeMap<Of, u16> {
        let mut taken: Option<BTreeSet<u16>> = None;
        for of in in_use {
            if self.get(*of).is_some() {
                continue;
            }
            let held = self.by_vni.values().chain(self.by_router.values());
            let taken = taken.get_or_insert_with(|| held.copied().collect());
            let free = (1..=u16::MAX).find(|index| !taken.contains(index));
            let index = free.or_else(|| self.reclaim(in_use));
            // 65,535 of them on one host: the bridge's VLANs and memory end long before.
            let Some(index) = index else { break };
            taken.insert(index);
            match of {
                Of::Instance(vni) => self.by_vni.insert(*vni, index),
                Of::Router(router) => self.by_router.insert(*router, index),
            };
        }
        let index = |of: &Of| Some((*of, self.get(*of)?));
        in_use.iter().filter_map(index).collect()
    }

    fn get(&self, of: Of) -> Option<u16> {
        match of {
            Of::Instance(vni) => self.by_vni.get(&vni).copied(),
            Of::Router(router) => self.by_router.get(&router).copied(),
        }
    }

    fn reclaim(&mut self, in_use: &BTreeSet<Of>) -> Option<u16> {
        let idle = |vni: &&Vni| !in_use.contains(&Of::Instance(**vni));
        if let Some(vni) = self.by_vni.keys().find(idle).copied() {
            return self.by_vni.remove(&vni);
        }
        let idle = |router: &&RouterId| !in_use.contains(&Of::Router(**router));
        let router = *self.by_router.keys().find(idle)?;
        self.by_router.remove(&router)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_keeps_its_index() {
        let vni = |raw| Of::Instance(Vni::new(raw).unwrap());
        let mut indexes = RdIndexes::default();
        let first = indexes.assign(&BTreeSet::from([vni(100_000), vni(100_001)]));
        assert_eq!(
            first,
            BTreeMap::from([(vni(100_000), 1), (vni(100_001), 2)])
        );
        indexes.assign(&BTreeSet::from([vni(100_001)]));
        let router = Of::Router(RouterId::from_random(7));
        let back = indexes.assign(&BTreeSet::from([vni(99), vni(100_000), router]));
        assert_eq!(
            back,
            BTreeMap::from([(vni(99), 3), (vni(100_000), 1), (router, 4)])
        );
    }

    #[test]
    fn idle_instances_give_way_when_none_is_left() {
        let vni = |raw| Vni::new(raw).unwrap();
        let all = (1..=65_535).map(vni);
        let by_vni = all.zip(1..=u16::MAX).collect();
        let mut indexes = RdIndexes {
            by_vni,
            ..RdIndexes::default()
        };
        let used = (2..=65_536).map(|raw| Of::Instance(vni(raw))).collect();
        assert_eq!(indexes.assign(&used)[&Of::Instance(vni(65_536))], 1);
    }
}
