//! Mobility sequences that grew while this host held a MAC against another claim.
//!
//! They are kept on disk: a speaker that started from 0 again would lose the MAC to whoever claims it with a
//! lower sequence than this host had, and a NIC of this host would be cut off by a restart.

use evpn::{LocalState, Sequences};
use model::{MacAddr, Tag, Vni};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// The highest of each MAC that is configured here: as many at most as there are such MACs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<Entry>", into = "Vec<Entry>")]
pub(crate) struct Kept(Sequences);

type Entry = (Vni, Tag, MacAddr, u32);

impl From<Vec<Entry>> for Kept {
    fn from(entries: Vec<Entry>) -> Self {
        let key = |(vni, tag, mac, sequence)| ((vni, tag, mac), sequence);
        Self(entries.into_iter().map(key).collect())
    }
}

impl From<Kept> for Vec<Entry> {
    fn from(kept: Kept) -> Self {
        let entry = |((vni, tag, mac), sequence)| (vni, tag, mac, sequence);
        kept.0.into_iter().map(entry).collect()
    }
}

impl Kept {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes in what the speaker says; a sequence never becomes lower.
    pub(crate) fn raise(&mut self, raised: &Sequences) {
        for (key, sequence) in raised {
            let kept = self.0.entry(*key).or_default();
            *kept = (*kept).max(*sequence);
        }
    }

    /// Forgets MACs that are not this host's any more.
    pub(crate) fn retain(&mut self, configured: &BTreeSet<(Vni, Tag, MacAddr)>) {
        self.0.retain(|key, _| configured.contains(key));
    }

    /// Has the speaker begin where an earlier one was.
    pub(crate) fn apply(&self, local: &mut LocalState) {
        for ((vni, tag, mac), sequence) in &self.0 {
            let evi = local.evis.get_mut(vni);
            if let Some(held) = evi.and_then(|evi| evi.macs.get_mut(&(*tag, *mac))) {
                held.sequence = held.sequence.max(*sequence);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use evpn::{LocalEvi, LocalMac};
    use model::Encoding;

    #[test]
    fn the_highest_of_what_is_configured_is_kept_and_given_back() {
        let vni = Vni::new(100).unwrap();
        let key = |last| (vni, None, MacAddr([2, 0, 0, 0, 0, last]));
        let mut kept = Kept::default();
        kept.raise(&Sequences::from([(key(1), 7), (key(2), 3)]));
        kept.raise(&Sequences::from([(key(1), 5)]));
        let text = serde_json::to_string(&kept).unwrap();
        assert_eq!(serde_json::from_str::<Kept>(&text).unwrap(), kept);

        let mut local = LocalState::empty("100.64.0.2".parse().unwrap());
        let mut evi = LocalEvi::new(Encoding::VlanBased, 1);
        let moved = LocalMac {
            sequence: 9,
            ..LocalMac::default()
        };
        evi.macs.insert((None, key(1).2), LocalMac::default());
        evi.macs.insert((None, key(2).2), moved);
        evi.macs.insert((None, key(3).2), LocalMac::default());
        local.evis.insert(vni, evi);
        kept.apply(&mut local);
        let sequences: Vec<u32> = local.evis[&vni].macs.values().map(|m| m.sequence).collect();
        assert_eq!(sequences, [7, 9, 0]);

        kept.retain(&BTreeSet::from([key(2), key(3)]));
        assert_eq!(kept, Kept(Sequences::from([(key(2), 3)])));
    }
}
