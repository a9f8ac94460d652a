//! Mobility sequences that grew here, for whoever keeps them over a restart.

use crate::Speaker;
use model::{MacAddr, Tag, Vni};
use std::collections::BTreeMap;

/// Mobility sequences of local MACs.
pub type Sequences = BTreeMap<(Vni, Tag, MacAddr), u32>;

impl Speaker {
    /// Local MACs with a higher mobility sequence than [`crate::LocalMac::sequence`] asked for, because another
    /// VTEP had the MAC, or another MAC its address (RFC 7432 §15, RFC 9721 §7). It changes with
    /// [`Speaker::set_local`] alone.
    ///
    /// A speaker that starts anew does not know them, and would lose such a MAC to whoever it had won it
    /// from, unless it is told to begin there.
    pub fn raised(&self) -> Sequences {
        let mut raised = Sequences::new();
        for (vni, evi) in self.local.iter().flat_map(|local| &local.evis) {
            for ((tag, mac), asked) in &evi.macs {
                let key = (*vni, *tag, *mac);
                let held = self.vrfs.local_sequence(key);
                if let Some(held) = held.filter(|held| *held > asked.sequence) {
                    raised.insert(key, held);
                }
            }
        }
        raised
    }
}
