//! The log as the consensus sees it: places, without what entries do.

use crate::Stamp;
use blocks::{Body, Entry, EntryHead, EntryKind};
use raft::eraftpb::{ConfState, Entry as RaftEntry, HardState};
use raft::{Error, GetEntriesContext, RaftState, Storage, StorageError};
use std::collections::{BTreeMap, VecDeque};

/// An entry without its payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) term: u64,
    /// Nothing for those that are of no attachment.
    pub(crate) stamp: Option<Stamp>,
    pub(crate) attaches: bool,
    /// It has the group's members.
    pub(crate) configures: bool,
}

impl Header {
    pub(crate) fn of(entry: &Entry) -> Self {
        let stamped = matches!(
            entry.body,
            Body::Write { .. } | Body::Zero { .. } | Body::Attach
        );
        Self {
            term: entry.term,
            stamp: stamped.then_some(Stamp::from_entry(entry.epoch)),
            attaches: entry.body == Body::Attach,
            configures: matches!(entry.body, Body::Config(_)),
        }
    }

    pub(crate) const fn of_head(head: &EntryHead) -> Self {
        let stamped = matches!(
            head.kind,
            EntryKind::Write | EntryKind::Zero | EntryKind::Attach
        );
        Self {
            term: head.term,
            stamp: if stamped {
                Some(Stamp::from_entry(head.epoch))
            } else {
                None
            },
            attaches: matches!(head.kind, EntryKind::Attach),
            configures: matches!(head.kind, EntryKind::Config),
        }
    }
}

/// Headers of all entries that can be read back from the store.
#[derive(Debug)]
pub(crate) struct Log {
    /// Index and term of the entry before the first.
    before: (u64, u64),
    headers: VecDeque<Header>,
    /// Where requests are.
    places: BTreeMap<Stamp, u64>,
    state: RaftState,
}

impl Log {
    pub(crate) fn new(
        before: (u64, u64),
        members: ConfState,
        hard: (u64, u64),
        commit: u64,
    ) -> Self {
        let mut state = HardState::default();
        (state.term, state.vote) = hard;
        state.commit = commit;
        Self {
            before,
            headers: VecDeque::new(),
            places: BTreeMap::new(),
            state: RaftState::new(state, members),
        }
    }

    /// Index of the entry before the first.
    pub(crate) const fn before(&self) -> u64 {
        self.before.0
    }

    pub(crate) fn last(&self) -> u64 {
        self.before.0 + self.headers.len() as u64
    }

    pub(crate) fn get(&self, index: u64) -> Option<&Header> {
        let at = index.checked_sub(self.before.0 + 1)?;
        self.headers.get(usize::try_from(at).ok()?)
    }

    /// Puts an entry in its place; those that were there and after it are gone.
    pub(crate) fn put(&mut self, index: u64, header: Header) {
        let keep = index - self.before.0 - 1;
        assert!(keep <= self.headers.len() as u64, "entries have no gaps");
        for gone in self.headers.drain(keep as usize..) {
            if let Some(stamp) = gone.stamp {
                self.places.remove(&stamp);
            }
        }
        if let Some(stamp) = header.stamp {
            self.places.insert(stamp, index);
        }
        self.headers.push_back(header);
    }

    /// Where a request is.
    pub(crate) fn find(&self, stamp: Stamp) -> Option<u64> {
        self.places.get(&stamp).copied()
    }

    /// Forgets those before `first`, which the store has no more.
    pub(crate) fn trim(&mut self, first: u64) {
        while self.before.0 + 1 < first {
            let Some(header) = self.headers.pop_front() else {
                return;
            };
            self.before = (self.before.0 + 1, header.term);
            let place = header
                .stamp
                .filter(|stamp| self.find(*stamp) == Some(self.before.0));
            place.map(|stamp| self.places.remove(&stamp));
        }
    }

    pub(crate) fn after(&self, index: u64) -> impl DoubleEndedIterator<Item = (u64, &Header)> {
        let skip = index.saturating_sub(self.before.0) as usize;
        let first = self.before.0 + 1;
        let all = self.headers.iter().enumerate().skip(skip);
        all.map(move |(at, header)| (first + at as u64, header))
    }
}

impl Storage for Log {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(self.state.clone())
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _: GetEntriesContext,
    ) -> raft::Result<Vec<RaftEntry>> {
        if low <= self.before.0 {
            return Err(Error::Store(StorageError::Compacted));
        }
        let headers = self.after(low - 1).take((high - low) as usize);
        let mut entries: Vec<RaftEntry> = headers
            .map(|(index, header)| {
                let mut entry = RaftEntry::default();
                (entry.index, entry.term) = (index, header.term);
                entry
            })
            .collect();
        raft::util::limit_size(&mut entries, max_size.into());
        Ok(entries)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index == self.before.0 {
            return Ok(self.before.1);
        }
        if index < self.before.0 {
            return Err(Error::Store(StorageError::Compacted));
        }
        let header = self.get(index);
        header
            .map(|header| header.term)
            .ok_or(Error::Store(StorageError::Unavailable))
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.before.0 + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last())
    }

    /// A follower that lacks what the log has no more takes chunks, which is none of the consensus's affair.
    fn snapshot(&self, _: u64, _: u64) -> raft::Result<raft::eraftpb::Snapshot> {
        Err(Error::Store(StorageError::SnapshotTemporarilyUnavailable))
    }
}
