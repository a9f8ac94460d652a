//! What changed, held once for all peers that are told the same.
//!
//! Each source has a lane, in which its changes stand in order. A route stands in one place only,
//! that of its latest change, and is named, not copied: so the journal is bounded by the number of
//! routes, and a peer that lags costs no more than its place in the lanes. What was written for one
//! peer is kept for a while for others that come to the same place.

use crate::PeerId;
use crate::codec::RouteKey;
use crate::link::Updates;
use crate::rib::Source;
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound::{Excluded, Included, Unbounded};
use std::sync::Arc;

/// Octets of UPDATEs that are kept for those who come later. For who lags by more they are written
/// again, without what has passed since.
const KEPT_OCTETS: usize = 2 << 20;

/// Who in a group is told something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum For {
    AllBut(Source),
    Only(Source),
}

impl For {
    pub(crate) fn includes(self, id: PeerId) -> bool {
        match self {
            Self::AllBut(source) => source != Source::Peer(id),
            Self::Only(source) => source == Source::Peer(id),
        }
    }
}

/// A route whose best path changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Note {
    pub(crate) key: RouteKey,
    /// Another source had it before: the new one was told so, and hears that this is over.
    pub(crate) moved: bool,
}

/// A part of a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) source: Source,
    /// The number of the last note before it.
    pub(crate) after: u64,
}

/// Notes put into messages.
#[derive(Debug)]
pub(crate) struct Piece {
    /// The number of the last note in it.
    end: u64,
    /// The newest note of the journal when it was written.
    at: u64,
    notes: usize,
    octets: usize,
    pub(crate) messages: Vec<Told>,
}

/// Messages that go to the same members, one after the other.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) whom: For,
    pub(crate) updates: Updates,
}

#[derive(Debug, Default)]
struct Lane {
    notes: BTreeMap<u64, Note>,
    /// When a route went from here to another lane. Pieces written before may say what is not so
    /// any more, to who was told better already.
    left_at: u64,
}

/// How far a member has come.
#[derive(Debug)]
struct Progress {
    /// All notes up to this one are done, in all lanes.
    told: u64,
    /// In these lanes more is done.
    lanes: BTreeMap<Source, u64>,
    /// The lane that had its turn last.
    turn: Option<Source>,
}

impl Progress {
    fn in_lane(&self, source: Source) -> u64 {
        let more = self.lanes.get(&source).copied();
        more.unwrap_or(0).max(self.told)
    }
}

/// See the module's description.
#[derive(Debug, Default)]
pub(crate) struct Journal {
    /// The number of the newest note.
    last: u64,
    lanes: BTreeMap<Source, Lane>,
    /// Where a route's note is.
    noted: BTreeMap<RouteKey, (Source, u64)>,
    members: BTreeMap<PeerId, Progress>,
    /// Members that have not been told all.
    behind: usize,
    kept: BTreeMap<Place, Arc<Piece>>,
    /// Oldest first.
    kept_order: VecDeque<Place>,
    kept_octets: usize,
}

impl Journal {
    /// A member joins that has been told all there is.
    pub(crate) fn join(&mut self, id: PeerId) {
        let progress = Progress {
            told: self.last,
            lanes: BTreeMap::new(),
            turn: None,
        };
        self.members.insert(id, progress);
    }

    /// A member goes: what it has not been told.
    pub(crate) fn leave(&mut self, id: PeerId) -> Vec<(Source, RouteKey)> {
        let Some(progress) = self.members.remove(&id) else {
            return vec![];
        };
        let mut missed = vec![];
        for (source, lane) in &self.lanes {
            let after = progress.in_lane(*source);
            let notes = lane.notes.range((Excluded(after), Unbounded));
            let notes = notes.filter(|(_, note)| *source != Source::Peer(id) || note.moved);
            missed.extend(notes.map(|(_, note)| (*source, note.key.clone())));
        }
        if progress.told != self.last {
            self.caught_up();
        }
        missed
    }

    pub(crate) fn members(&self) -> impl Iterator<Item = &PeerId> {
        self.members.keys()
    }

    pub(crate) fn is_deserted(&self) -> bool {
        self.members.is_empty()
    }

    /// Takes note of a change; `moved` if another source had the route before.
    pub(crate) fn note(&mut self, source: Source, key: &RouteKey, moved: bool) {
        self.last += 1;
        self.behind = self.members.len();
        let mut note = Note {
            key: key.clone(),
            moved,
        };
        if let Some((from, at)) = self.noted.insert(key.clone(), (source, self.last)) {
            let lane = self.lanes.get_mut(&from).expect("a route was noted there");
            let before = lane.notes.remove(&at);
            note.moved |= from != source || before.is_some_and(|note| note.moved);
            if from != source {
                lane.left_at = self.last;
            }
        }
        let lane = self.lanes.entry(source).or_default();
        lane.notes.insert(self.last, note);
    }

    /// Where a member is to be told more, each lane in its turn: one source's whole table does not
    /// hold up the news of another.
    pub(crate) fn next(&mut self, id: PeerId) -> Option<Place> {
        let progress = self.members.get_mut(&id)?;
        if progress.told == self.last {
            return None;
        }
        let after = |turn: Option<Source>| (turn.map_or(Unbounded, Excluded), Unbounded);
        let mut lanes = self.lanes.range(after(progress.turn)).chain(&self.lanes);
        let more = lanes.find_map(|(source, lane)| {
            let (last, _) = lane.notes.last_key_value()?;
            let (source, after) = (*source, progress.in_lane(*source));
            (*last > after).then_some(Place { source, after })
        });
        if let Some(place) = more {
            progress.turn = Some(place.source);
            return Some(place);
        }
        progress.told = self.last;
        progress.lanes.clear();
        self.caught_up();
        None
    }

    /// One member less is behind. What all were told is forgotten.
    fn caught_up(&mut self) {
        self.behind -= 1;
        if self.behind == 0 {
            self.lanes.clear();
            self.noted.clear();
            self.kept.clear();
            self.kept_order.clear();
            self.kept_octets = 0;
        }
    }

    /// What was written for another member at that place, unless most of it has passed.
    pub(crate) fn piece_at(&mut self, place: Place) -> Option<Arc<Piece>> {
        let piece = Arc::clone(self.kept.get(&place)?);
        let lane = self.lanes.get(&place.source)?;
        let left = lane
            .notes
            .range((Excluded(place.after), Included(piece.end)));
        if piece.at >= lane.left_at && left.count() * 2 >= piece.notes {
            return Some(piece);
        }
        self.kept.remove(&place);
        self.kept_octets -= piece.octets;
        None
    }

    /// What to write next there, a share of so many for each lane, and the number of the last. It ends
    /// where a piece begins that was written already: who lags comes to be told the same as others.
    pub(crate) fn notes_at(&mut self, place: Place, most: usize) -> (Vec<Note>, u64) {
        let end = loop {
            let lane_end = Place {
                after: u64::MAX,
                ..place
            };
            let mut further = self.kept.range((Excluded(place), Excluded(lane_end)));
            let Some((known, _)) = further.next() else {
                break u64::MAX;
            };
            let known = *known;
            if self.piece_at(known).is_some() {
                break known.after;
            }
        };
        let busy = self.lanes.values().filter(|lane| !lane.notes.is_empty());
        let share = (most / busy.count().max(1)).max(1);
        let Some(lane) = self.lanes.get(&place.source) else {
            return (vec![], place.after);
        };
        let notes = lane.notes.range((Excluded(place.after), Unbounded));
        let notes: Vec<_> = notes
            .take_while(|(at, _)| **at <= end)
            .take(share)
            .collect();
        let last = notes.last().map(|(at, _)| **at);
        // Up to a known piece there may be nothing left.
        let end = match last {
            Some(at) if notes.len() == share => at,
            _ if end < u64::MAX => end,
            last => last.unwrap_or(place.after),
        };
        (notes.into_iter().map(|(_, n)| n.clone()).collect(), end)
    }

    /// Keeps what was written for those who come there later.
    pub(crate) fn keep(
        &mut self,
        place: Place,
        (notes, end): (usize, u64),
        messages: Vec<(For, Bytes)>,
    ) -> Arc<Piece> {
        self.forget_told(place.source);
        let octets = messages.iter().map(|(_, message)| message.len()).sum();
        let same = messages.chunk_by(|(a, _), (b, _)| a == b);
        let joined = same.map(|run| {
            let messages: Vec<Bytes> = run.iter().map(|(_, message)| message.clone()).collect();
            Told {
                whom: run[0].0,
                updates: Updates::join(&messages),
            }
        });
        let messages = joined.collect();
        let at = self.last;
        let piece = Arc::new(Piece {
            end,
            at,
            notes,
            octets,
            messages,
        });
        if self.behind > 1 {
            self.kept_octets += octets;
            self.kept.insert(place, Arc::clone(&piece));
            self.kept_order.push_back(place);
            while self.kept_octets > KEPT_OCTETS
                && let Some(oldest) = self.kept_order.pop_front()
            {
                let gone = self.kept.remove(&oldest);
                self.kept_octets -= gone.map_or(0, |piece| piece.octets);
            }
        }
        piece
    }

    /// A member is told a piece.
    pub(crate) fn advance(&mut self, id: PeerId, place: Place, piece: &Piece) {
        if let Some(progress) = self.members.get_mut(&id) {
            progress.lanes.insert(place.source, piece.end);
        }
    }

    /// Notes that all members have passed are not needed.
    fn forget_told(&mut self, source: Source) {
        let least = self.members.values().map(|p| p.in_lane(source)).min();
        let Some((lane, least)) = self.lanes.get_mut(&source).zip(least) else {
            return;
        };
        while let Some((at, note)) = lane.notes.pop_first() {
            if at > least {
                lane.notes.insert(at, note);
                return;
            }
            self.noted.remove(&note.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::IpAddr;

    fn key(n: u32) -> RouteKey {
        let id = Bytes::copy_from_slice(&n.to_be_bytes());
        RouteKey::Other { kind: 99, id }
    }

    fn peer(n: u8) -> PeerId {
        IpAddr::from([10, 0, 0, n])
    }

    /// Tells a member one piece of at most so many notes: from which source, which routes, and
    /// whether that was written for it.
    fn tell(journal: &mut Journal, id: PeerId, most: usize) -> Option<(Source, Vec<u32>, bool)> {
        let place = journal.next(id)?;
        let known = journal.piece_at(place);
        let written = known.is_none();
        let piece = known.unwrap_or_else(|| {
            let (notes, end) = journal.notes_at(place, most);
            // Each note in the place of a message.
            let ids = notes.iter().map(|note| match &note.key {
                RouteKey::Other { id, .. } => id.clone(),
                _ => panic!("no such key here"),
            });
            let messages = ids.map(|id| (For::AllBut(place.source), id)).collect();
            journal.keep(place, (notes.len(), end), messages)
        });
        journal.advance(id, place, &piece);
        let octets = piece.messages.iter().map(|told| &told.updates.octets);
        let ids = octets.flat_map(|octets| octets.chunks(4));
        let ids = ids.map(|id| u32::from_be_bytes(id.try_into().unwrap()));
        Some((place.source, ids.collect(), written))
    }

    fn journal() -> Journal {
        let mut journal = Journal::default();
        (1..=3).for_each(|n| journal.join(peer(n)));
        journal
    }

    #[test]
    fn written_once_for_all_and_then_forgotten() {
        let (mut journal, from) = (journal(), Source::Peer(peer(1)));
        (0..100).for_each(|n| journal.note(from, &key(n), false));
        for id in [2, 3, 1] {
            for part in 0..10 {
                let (_, told, written) = tell(&mut journal, peer(id), 10).unwrap();
                assert_eq!(told, Vec::from_iter(part * 10..part * 10 + 10));
                assert_eq!(written, id == 2);
            }
            assert_eq!(tell(&mut journal, peer(id), 10), None);
        }
        assert!(journal.noted.is_empty() && journal.lanes.is_empty() && journal.kept.is_empty());
        assert_eq!(journal.kept_octets, 0);
    }

    #[test]
    fn one_that_lags_is_told_what_is_left_and_meets_the_others() {
        let (mut journal, from) = (journal(), Source::Peer(peer(1)));
        for round in 0..50 {
            (0..10).for_each(|n| journal.note(from, &key(n), false));
            journal.note(from, &key(100 + round), false);
            while tell(&mut journal, peer(2), 10).is_some() {}
            while tell(&mut journal, peer(1), 10).is_some() {}
        }
        assert_eq!(journal.noted.len(), 60);
        let mut all = vec![];
        while let Some((_, told, _)) = tell(&mut journal, peer(3), 10) {
            all.extend(told);
        }
        assert!(all.len() <= 70, "{all:?}");
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 60);
        journal.note(from, &key(0), false);
        assert!(tell(&mut journal, peer(3), 10).unwrap().2);
        assert!(!tell(&mut journal, peer(2), 10).unwrap().2);
    }

    #[test]
    fn a_table_does_not_hold_up_news() {
        let mut journal = journal();
        let (one, other) = (Source::Peer(peer(1)), Source::Peer(peer(2)));
        (0..1000).for_each(|n| journal.note(one, &key(n), false));
        journal.note(other, &key(5000), false);
        let first = tell(&mut journal, peer(3), 10).unwrap();
        let second = tell(&mut journal, peer(3), 10).unwrap();
        assert_eq!((first.0, second.0, second.1), (one, other, vec![5000]));
    }

    #[test]
    fn what_moved_is_not_told_as_it_was() {
        let mut journal = journal();
        let (one, other) = (Source::Peer(peer(1)), Source::Peer(peer(2)));
        (0..4).for_each(|n| journal.note(one, &key(n), false));
        assert_eq!(tell(&mut journal, peer(1), 10).unwrap().1, [0, 1, 2, 3]);
        journal.note(other, &key(1), true);
        assert_eq!(tell(&mut journal, peer(3), 10).unwrap().1, [0, 2, 3]);
        assert_eq!(
            journal.leave(peer(2)).len(),
            4,
            "its own moved: it is told so"
        );
        assert_eq!(tell(&mut journal, peer(3), 10).unwrap().1, [1]);
        assert_eq!(tell(&mut journal, peer(3), 10), None);
    }
}
