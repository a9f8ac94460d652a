//! Update groups: peers that are told the same are told it in the same octets, written once.
//!
//! A peer is in a group from when it has been told the whole table. Before, it is on its own: owed
//! keys for itself, until it is owed none. A slow member holds up nobody, and costs no more than
//! its place in the group's journal.

use crate::PeerRole;
use crate::codec::RouteKey;
use crate::journal::Journal;
use crate::membership::Wants;
use crate::rib::{Path, Source};
use std::collections::{BTreeMap, BTreeSet};

/// Names a group for as long as it has members. Numbers are never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct GroupId(pub(crate) u64);

/// What makes two peers be told the same, and in the same words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Terms {
    pub(crate) role: PeerRole,
    pub(crate) four_octet_as: bool,
    pub(crate) extended_messages: bool,
    /// Knows LLGR_STALE (RFC 9494 §4.4).
    pub(crate) long_lived: bool,
    /// Which routes they want; none: all.
    pub(crate) wants: Option<Wants>,
}

impl Terms {
    pub(crate) fn admit(&self, path: &Path) -> bool {
        self.wants.as_ref().is_none_or(|wants| wants.admit(path))
    }
}

/// Peers that are told the same.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) terms: Terms,
    pub(crate) journal: Journal,
}

/// Routes that are owed, by where the news came from. A route is named, not copied: what is sent
/// is what is best at that time, so that what has passed is skipped.
#[derive(Debug, Clone, Default)]
pub(crate) struct Owed(BTreeMap<Source, BTreeSet<RouteKey>>);

impl Owed {
    #[cfg(test)]
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn note(&mut self, source: Source, key: &RouteKey) {
        let keys = self.0.entry(source).or_default();
        keys.insert(key.clone());
    }

    /// Takes some out, the same share of each source: one that tells its whole table does not hold
    /// up the news of another.
    pub(crate) fn take(&mut self, most: usize) -> Vec<(Source, RouteKey)> {
        let share = (most / self.0.len().max(1)).max(1);
        let mut taken = Vec::with_capacity(share.min(most));
        self.0.retain(|source, keys| {
            if keys.len() <= share {
                let all = std::mem::take(keys);
                taken.extend(all.into_iter().map(|key| (*source, key)));
                return false;
            }
            let some = std::iter::from_fn(|| keys.pop_first()).take(share);
            taken.extend(some.map(|key| (*source, key)));
            true
        });
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use std::net::{IpAddr, Ipv4Addr};

    fn key(n: u32) -> RouteKey {
        let id = Bytes::copy_from_slice(&n.to_be_bytes());
        RouteKey::Other { kind: 99, id }
    }

    #[test]
    fn a_table_does_not_hold_up_news() {
        let peer = |n| Source::Peer(IpAddr::V4(Ipv4Addr::new(10, 0, 0, n)));
        let mut owed = Owed::default();
        (0..1000).for_each(|n| owed.note(peer(1), &key(n)));
        owed.note(peer(2), &key(2000));
        let first = owed.take(100);
        assert_eq!(first.len(), 51);
        assert_eq!(first.last(), Some(&(peer(2), key(2000))));
        assert_eq!(first.first(), Some(&(peer(1), key(0))));
        let mut rest = 0;
        while !owed.is_empty() {
            rest += owed.take(100).len();
        }
        assert_eq!(rest, 950);
    }
}
