//! How much there is, without a walk over routes.

use crate::Speaker;
use std::collections::BTreeMap;

/// Sizes of what a speaker holds, for counters that are read every few seconds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// Routes by type (RFC 7432 §7); several paths to one are one route.
    pub routes: BTreeMap<u8, usize>,
    /// MAC-VRFs of this host.
    pub instances: usize,
    /// MACs of NICs on this host, wherever they are in use.
    pub local_macs: usize,
    /// MACs that are behind other VTEPs, with a row.
    pub remote_macs: usize,
    /// MACs that have no row, because their instance has too many.
    pub waiting_macs: usize,
    /// MACs that are frozen as duplicates.
    pub frozen_macs: usize,
    /// Addresses that are frozen as duplicates.
    pub frozen_addresses: usize,
}

impl Speaker {
    /// Sizes. Costs as much as there are instances, and MACs and addresses that moved.
    pub fn counts(&self) -> Counts {
        let mut counts = Counts {
            routes: self.rib.count_by_type(),
            instances: self.vrfs.vrfs.len(),
            remote_macs: self.forwarding().evis.values().map(|e| e.macs.len()).sum(),
            ..Counts::default()
        };
        for vrf in self.vrfs.vrfs.values() {
            counts.local_macs += vrf.locals.len();
            counts.waiting_macs += vrf.waiting.len();
            counts.frozen_macs += vrf.mac_watches.values().filter(|w| w.frozen).count();
            counts.frozen_addresses += vrf.ip_watches.values().filter(|w| w.frozen).count();
        }
        counts
    }
}
