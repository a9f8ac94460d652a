//! One volume's replica on this disk: its log, its map, and what is in memory only.

use crate::format::PageRef;
use crate::format::pages::VolumeState;
use crate::format::wal::HardState;
use crate::log::{Kind, Log, Logged, Payload};
use crate::map::Map;
use crate::space::{Need, Space};
use crate::{Buffer, Digest, EXTENT_BLOCKS, VolumeId};
use std::collections::BTreeMap;
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
    /// The last entry that is in a batch, issued or not yet.
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
    /// Its page in the directory differs from what it is.
    pub(crate) changed: bool,
    pub(crate) page: Option<PageRef>,
    /// Bytes of the log that entries which are not settled are answerable for.
    pub(crate) live: u64,
    settled: u64,
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
            changed: page.is_none(),
            page,
            live: 0,
            settled: state.index,
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
        self.log.push(entry);
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
        self.settled = self.settled.min(last);
    }

    /// Whether an entry that is yet to take effect empties extents.
    pub(crate) fn empties(&self) -> bool {
        self.log
            .after(self.folded.0)
            .any(|(_, entry)| matches!(entry.kind, Kind::Zero { .. }))
    }

    /// The same while the log is played again: extents of entries that did not survive were never taken.
    pub(crate) fn forget_after(&mut self, last: u64) {
        for entry in self.log.cut_after(last) {
            self.live -= entry.cost(self.id);
        }
        self.settled = self.settled.min(last);
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

    /// Whether the next entry finds the extents that it was promised. It does, unless the disk lies.
    pub(crate) fn has_room(&self, space: &Space) -> bool {
        let need = match self.log.get(self.folded.0 + 1) {
            // One that has no effect needs nothing.
            Some(entry) if entry.epoch >= self.epoch => match &entry.kind {
                Kind::Write { lba, crcs, .. } => self.need(*lba, crcs.len() as u64, false),
                _ => Need::default(),
            },
            _ => Need::default(),
        };
        need.extents <= space.extents.free()
    }

    /// Lets the next entry take effect. False: it is of an epoch that is over, and has none.
    pub(crate) fn fold_next(&mut self, space: &mut Space) -> bool {
        let index = self.folded.0 + 1;
        let entry = self
            .log
            .get_mut(index)
            .expect("committed entries are in the log");
        let need = std::mem::take(&mut entry.need);
        let (term, epoch, kind) = (entry.term, entry.epoch, entry.kind.clone());
        let (serial, durable) = (entry.serial, entry.durable);
        space.take_back(need);
        self.folded = (index, term);
        self.hard.commit = self.hard.commit.max(index);
        (self.hard_changed, self.changed) = (true, true);
        let writes = matches!(
            kind,
            Kind::Write { .. } | Kind::Redirected { .. } | Kind::Zero { .. }
        );
        let fenced = writes && epoch < self.epoch;
        match kind {
            Kind::Redirected { extents, .. } if fenced => {
                extents.iter().for_each(|extent| space.free_extent(*extent));
            }
            _ if fenced => {}
            Kind::Write {
                lba,
                crcs,
                data,
                at,
            } => self.fold_write(index, lba, &crcs, data.as_ref(), &at, space),
            Kind::Redirected {
                lba,
                extents,
                crcs,
                data,
            } => {
                self.fold_redirected(index, lba, &extents, &crcs, space);
                // A majority may have it before this disk has.
                if let Some(data) = data.filter(|_| !durable) {
                    let blocks = (0..data.blocks()).map(|block| (serial, data.part(block, 1)));
                    self.unwritten.extend((lba..).zip(blocks));
                }
            }
            Kind::Zero { lba, blocks } => {
                self.map.clear(lba, blocks, index, space, &mut self.digest);
                self.forget_range(lba, blocks);
            }
            Kind::Attach => self.epoch = self.epoch.max(epoch),
            Kind::Config(bytes) => self.config = (index, bytes),
            Kind::Empty => {}
        }
        self.settle();
        !fenced
    }

    fn fold_write(
        &mut self,
        index: u64,
        lba: u64,
        crcs: &[u32],
        data: Option<&Buffer>,
        at: &Payload,
        space: &mut Space,
    ) {
        for (offset, crc) in crcs.iter().enumerate() {
            let lba = lba + offset as u64;
            self.map.write(lba, *crc, index, space, &mut self.digest);
            self.flushing.remove(&lba);
            self.unwritten.remove(&lba);
            let lost = matches!(at, Payload::Lost(lost) if lost.contains(&(offset as u32)));
            match data {
                Some(data) if !lost => _ = self.dirty.insert(lba, data.part(offset, 1)),
                // What is on disk there does not match: reads say that the block is damaged.
                _ => _ = self.dirty.remove(&lba),
            }
        }
    }

    fn fold_redirected(
        &mut self,
        index: u64,
        lba: u64,
        extents: &[u32],
        crcs: &[u32],
        space: &mut Space,
    ) {
        let first = lba / u64::from(EXTENT_BLOCKS);
        let parts = extents.iter().zip(crcs.chunks(EXTENT_BLOCKS as usize));
        for (number, (extent, crcs)) in (first..).zip(parts) {
            self.map
                .replace(number, *extent, crcs, index, space, &mut self.digest);
        }
        self.forget_range(lba, crcs.len() as u64);
    }

    fn forget_range(&mut self, lba: u64, blocks: u64) {
        remove_range(&mut self.dirty, lba, blocks);
        remove_range(&mut self.flushing, lba, blocks);
        remove_range(&mut self.unwritten, lba, blocks);
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

    /// What a write there may take when it takes effect.
    pub(crate) fn need(&self, lba: u64, blocks: u64, emptied: bool) -> Need {
        self.map.need(lba, blocks, emptied)
    }
}

fn remove_range<T>(held: &mut BTreeMap<u64, T>, lba: u64, blocks: u64) {
    let within: Vec<u64> = held.range(lba..lba + blocks).map(|(lba, _)| *lba).collect();
    within.iter().for_each(|lba| _ = held.remove(lba));
}
