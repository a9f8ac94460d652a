//! Route distinguisher indexes: one for each EVPN instance on the host, the same for good.
//!
//! `router-id:index` has 16 bits for the index (RFC 7432 §7.9, type 1), a VNI has 24, so the index
//! is not the VNI. It is kept on disk: an instance that changed its index over a restart would be
//! announced anew beside its own stale routes.

use model::Vni;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Index by VNI.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RdIndexes {
    by_vni: BTreeMap<Vni, u16>,
}

impl RdIndexes {
    /// The index of each instance in use; instances that have none get the lowest free one.
    /// Indexes of instances no longer in use stay theirs until no other is left.
    pub(crate) fn assign(&mut self, in_use: &BTreeSet<Vni>) -> BTreeMap<Vni, u16> {
        for vni in in_use {
            if self.by_vni.contains_key(vni) {
                continue;
            }
            let index = self.free().or_else(|| self.reclaim(in_use));
            // 65,535 instances on one host: the bridge's VLANs and memory end long before.
            let Some(index) = index else { break };
            self.by_vni.insert(*vni, index);
        }
        in_use
            .iter()
            .filter_map(|vni| Some((*vni, *self.by_vni.get(vni)?)))
            .collect()
    }

    fn free(&self) -> Option<u16> {
        let taken: BTreeSet<u16> = self.by_vni.values().copied().collect();
        (1..=u16::MAX).find(|index| !taken.contains(index))
    }

    fn reclaim(&mut self, in_use: &BTreeSet<Vni>) -> Option<u16> {
        let idle = *self.by_vni.keys().find(|vni| !in_use.contains(vni))?;
        self.by_vni.remove(&idle)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_keeps_its_index() {
        let vni = |raw| Vni::new(raw).unwrap();
        let mut indexes = RdIndexes::default();
        let first = indexes.assign(&BTreeSet::from([vni(100_000), vni(100_001)]));
        assert_eq!(
            first,
            BTreeMap::from([(vni(100_000), 1), (vni(100_001), 2)])
        );
        indexes.assign(&BTreeSet::from([vni(100_001)]));
        let back = indexes.assign(&BTreeSet::from([vni(99), vni(100_000)]));
        assert_eq!(back, BTreeMap::from([(vni(99), 3), (vni(100_000), 1)]));
    }

    #[test]
    fn idle_instances_give_way_when_none_is_left() {
        let vni = |raw| Vni::new(raw).unwrap();
        let all: BTreeSet<Vni> = (1..=65_535).map(vni).collect();
        let by_vni = all
            .iter()
            .zip(1..=u16::MAX)
            .map(|(vni, index)| (*vni, index))
            .collect();
        let mut indexes = RdIndexes { by_vni };
        let used: BTreeSet<Vni> = (2..=65_536).map(vni).collect();
        assert_eq!(indexes.assign(&used)[&vni(65_536)], 1);
    }
}
