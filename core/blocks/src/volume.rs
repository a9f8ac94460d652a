//! One volume's replica on this disk: its log, its map, and what is in memory only.

use crate::ahead::Ahead;
use crate::format::PageRef;
use crate::format::pages::VolumeState;
use crate::format::record::{Base, HardState};
use crate::log::{Kind, Log, Logged, Payload};
use crate::map::Map;
use crate::space::Space;
use crate::{Buffer, Digest, VolumeId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

#[derive(Debug)]
pub(crate) struct Volume {
    pub(crate) id: VolumeId,
    /// Tells it from another one that had its id.
    pub(crate) born: u64,
    /// That it was made is in a batch.
    pub(crate) announced: bool,
    pub(crate) blocks: u64,
    pub(crate) hard: HardState,
    /// The hard state differs from what was last put into a batch.
    pub(crate) hard_changed: bool,
    /// The last entry of the log that is in a batch.
    pub(crate) sealed: u64,
    pub(crate) log: Log,
    /// The last entry that took effect here, and its term.
    pub(crate) folded: (u64, u64),
    /// As far as the last durable checkpoint has it.
    pub(crate) checkpointed: u64,
    pub(crate) epoch: u64,
    pub(crate) config: (u64, Arc<[u8]>),
    pub(crate) map: Map,
    pub(crate) digest: Digest,
    /// Blocks that are newer in memory than on disk.
    pub(crate) dirty: BTreeMap<u64, Buffer>,
    /// Blocks that the running checkpoint is writing, as long as they are the newest.
    pub(crate) flushing: BTreeMap<u64, Buffer>,
    /// Blocks of committed entries that are on their way to extents of their own, with the entry's serial.
    pub(crate) unwritten: BTreeMap<u64, (u64, Buffer)>,
    /// Chunks of a peer that are not durable yet, by serial.
    pub(crate) chunks: BTreeSet<u64>,
    /// Its page in the directory differs from what it is.
    pub(crate) changed: bool,
    pub(crate) page: Option<PageRef>,
    /// Bytes of the log that entries which are not settled are answerable for.
    pub(crate) live: u64,
    settled: u64,
    /// What the map will be once all of the log took effect; of no use while it is mixed.
    pub(crate) ahead: Ahead,
    /// Entries that are yet to make it larger, and how large.
    grows: Vec<(u64, u64)>,
    /// Set when what the disk has of it cannot be used.
    pub(crate) broken: Option<String>,
}

impl Volume {
    pub(crate) fn new(id: VolumeId, born: u64, blocks: u64) -> Self {
        let state = VolumeState {
            blocks,
            hard: HardState::default(),
            index: 0,
            term: 0,
            epoch: 0,
            digest: Digest::default(),
            levels: 0,
            root: None,
            config_index: 0,
            config: Arc::new([]),
        };
        Self::restored(id, born, &state, None)
    }

    /// As a checkpoint has it; the map is yet to come.
    pub(crate) fn restored(
        id: VolumeId,
        born: u64,
        state: &VolumeState,
        page: Option<PageRef>,
    ) -> Self {
        Self {
            id,
            born,
            announced: page.is_some(),
            blocks: state.blocks,
            hard: state.hard,
            hard_changed: false,
            sealed: state.index,
            log: Log::new(state.index, state.term),
            folded: (state.index, state.term),
            checkpointed: state.index,
            epoch: state.epoch,
            config: (state.config_index, Arc::clone(&state.config)),
            map: Map::new(state.blocks),
            digest: state.digest,
            dirty: BTreeMap::new(),
            flushing: BTreeMap::new(),
            unwritten: BTreeMap::new(),
            chunks: BTreeSet::new(),
            changed: page.is_none(),
            page,
            live: 0,
            settled: state.index,
            ahead: Ahead::default(),
            grows: Vec::new(),
            broken: None,
        }
    }

    pub(crate) fn state(&self, root: Option<PageRef>) -> VolumeState {
        VolumeState {
            blocks: self.blocks,
            hard: self.hard,
            index: self.folded.0,
            term: self.folded.1,
            epoch: self.epoch,
            digest: self.digest,
            levels: self.map.levels(),
            root,
            config_index: self.config.0,
            config: Arc::clone(&self.config.1),
        }
    }

    pub(crate) fn append(&mut self, entry: Logged, space: &mut Space) {
        space.promise(entry.need);
        self.live += entry.cost(self.id);
        let index = self.log.last() + 1;
        if let Kind::Grow { blocks } = entry.kind {
            self.grows.push((index, blocks));
        }
        self.log.push(entry);
    }

    /// Nothing was ever said of it but its size.
    pub(crate) fn is_new(&self) -> bool {
        self.log.last() == 0 && self.config.0 == 0
    }

    /// Its size once all entries of its log took effect.
    pub(crate) fn blocks_in_log(&self) -> u64 {
        self.blocks_at(u64::MAX)
    }

    /// Its size once the entries up to this one took effect.
    pub(crate) fn blocks_at(&self, last: u64) -> u64 {
        let grows = self.grows.iter().filter(|(index, _)| *index <= last);
        grows.fold(self.blocks, |blocks, (_, more)| blocks.max(*more))
    }

    /// Chunks of a peer are in the map, and the log is not as far: what it holds is what no replica
    /// ever held at once.
    pub(crate) const fn is_mixed(&self) -> bool {
        self.map.newest() > self.folded.0
    }

    /// An entry whose payload was lost is there again.
    pub(crate) fn refill(&mut self, index: u64, mut entry: Logged) {
        let old = self
            .log
            .get_mut(index)
            .expect("damaged entries stay in the log");
        // What the old one was promised is enough for this one.
        entry.need = old.need;
        let (gone, come) = (old.cost(self.id), entry.cost(self.id));
        *old = entry;
        self.live = self.live - gone + come;
    }

    /// Blocks of an entry that is yet to take effect are not where it says.
    pub(crate) fn lose(&mut self, index: u64, blocks: Vec<u32>) {
        let id = self.id;
        let settled = index <= self.settled;
        let entry = self.log.get_mut(index).expect("it was just there");
        let gone = entry.cost(id);
        entry.durable = false;
        match &mut entry.kind {
            Kind::Redirected { lost, .. } => *lost = blocks,
            Kind::Write { at, .. } => *at = Payload::Lost(blocks),
            _ => unreachable!("only payloads are lost"),
        }
        if !settled {
            self.live = self.live - gone + entry.cost(id);
        }
        self.log.durable = self.log.durable.min(index - 1);
    }

    /// Entries after this one are no more.
    pub(crate) fn cut_after(&mut self, last: u64, space: &mut Space) {
        assert!(
            last >= self.folded.0,
            "what took effect stays: {} > {last}",
            self.folded.0
        );
        for entry in self.log.cut_after(last) {
            space.take_back(entry.need);
            self.live -= entry.cost(self.id);
            if let Kind::Redirected { extents, .. } = &entry.kind {
                extents.iter().for_each(|extent| space.free_extent(*extent));
            }
        }
        // What comes in their place is in no batch yet: that it is committed is not told before.
        self.sealed = self.sealed.min(last);
        self.forgot_after(last);
        self.ahead = self.ahead_at(last);
    }

    fn forgot_after(&mut self, last: u64) {
        self.settled = self.settled.min(last);
        self.grows.retain(|(index, _)| *index <= last);
    }

    /// The same while the log is played again: extents of entries that did not survive were never taken.
    pub(crate) fn forget_after(&mut self, last: u64) {
        for entry in self.log.cut_after(last) {
            self.live -= entry.cost(self.id);
        }
        self.forgot_after(last);
    }

    /// An entry that is neither durable nor in effect is live: the next checkpoint carries it on.
    pub(crate) const fn carried_from(&self) -> u64 {
        if self.log.durable < self.folded.0 {
            self.log.durable
        } else {
            self.folded.0
        }
    }

    /// Reckons anew which entries are live.
    pub(crate) fn settle(&mut self) {
        let until = self.carried_from();
        while self.settled < until {
            self.settled += 1;
            // One that the caller has no more use for may be gone from memory, not from the account.
            if let Some(entry) = self.log.get(self.settled) {
                self.live -= entry.cost(self.id);
            }
        }
    }

    /// It has so many blocks, if it had fewer.
    pub(crate) fn enlarge(&mut self, blocks: u64, space: &mut Space) {
        self.grows.retain(|(index, _)| *index > self.folded.0);
        if blocks > self.blocks {
            self.blocks = blocks;
            self.changed = true;
            self.map.grow(blocks, space);
        }
    }

    /// All up to there is in effect, as chunks of a peer have it. Gives the entries that are gone and
    /// never took effect here.
    pub(crate) fn rebase(&mut self, base: &Base, space: &mut Space) -> Vec<Logged> {
        let first = self.log.first();
        let mut gone = self.log.rebase(base.index, base.term);
        let in_effect = (self.folded.0 + 1).saturating_sub(first) as usize;
        for (_, entry) in (first..).zip(&gone).filter(|(at, _)| *at > self.settled) {
            self.live -= entry.cost(self.id);
        }
        if self.log.last() == base.index {
            self.forgot_after(base.index);
        }
        self.settled = self.settled.max(base.index);
        self.folded = (base.index, base.term);
        self.hard.commit = self.hard.commit.max(base.index);
        (self.hard_changed, self.changed) = (true, true);
        self.epoch = base.epoch;
        self.config = base.config.clone();
        self.enlarge(base.blocks, space);
        self.sealed = self.sealed.min(self.log.last());
        self.log.advance_durable();
        self.settle();
        gone.split_off(in_effect.min(gone.len()))
    }

    /// An entry is durable, and what it writes is where it belongs.
    pub(crate) fn durable(&mut self, index: u64, serial: u64) {
        let Some(entry) = self
            .log
            .get_mut(index)
            .filter(|entry| entry.serial == serial)
        else {
            return;
        };
        entry.durable = !entry.is_lost();
        if let Kind::Redirected { lba, crcs, .. } = &entry.kind {
            let within = self.unwritten.range(*lba..lba + crcs.len() as u64);
            let written = within.filter(|(_, (whose, _))| *whose == serial);
            let written: Vec<u64> = written.map(|(lba, _)| *lba).collect();
            written
                .iter()
                .for_each(|lba| _ = self.unwritten.remove(lba));
        }
        self.log.advance_durable();
        self.settle();
    }

    /// All that it has goes back.
    pub(crate) fn free_all(&mut self, space: &mut Space) {
        let folded = self.folded.0;
        let entries: Vec<Logged> = self
            .log
            .after(folded)
            .map(|(_, entry)| entry.clone())
            .collect();
        for entry in entries {
            space.take_back(entry.need);
            if let Kind::Redirected { extents, .. } = &entry.kind {
                extents.iter().for_each(|extent| space.free_extent(*extent));
            }
        }
        self.map.free_all(space);
        space.pages_needed -= 1;
        if let Some(page) = self.page {
            space.free_page(page.page);
        }
    }
}
