//! How entries and chunks take effect: in the map, and in what is in memory of blocks.

use crate::ahead::Effect;
use crate::format::record::ChunkRecord;
use crate::log::{Kind, Payload};
use crate::space::{Need, Space};
use crate::store::GROW_PAGES;
use crate::volume::Volume;
use crate::{Buffer, CHUNK_BLOCKS, EXTENT_BLOCKS};
use std::collections::BTreeMap;

impl Volume {
    /// Whether the next entry finds the extents that it was promised. It does, unless the disk lies.
    pub(crate) fn has_room(&self, space: &Space) -> bool {
        let need = match self.log.get(self.folded.0 + 1) {
            // One that has no effect needs nothing.
            Some(entry) if entry.epoch >= self.epoch => match &entry.kind {
                Kind::Write { lba, crcs, .. } => self.map.need(*lba, crcs.len() as u64, false),
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
        let (was_mixed, effect) = (self.is_mixed(), Effect::of_kind(&kind));
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
                ..
            } => {
                // A majority may have it before this disk has.
                let data = data.filter(|_| !durable).map(|data| (serial, data));
                self.fold_redirected(index, lba, &extents, &crcs, data, space);
            }
            Kind::Zero { lba, blocks } => {
                self.map.clear(lba, blocks, index, space, &mut self.digest);
                self.forget_range(index, lba, blocks);
            }
            Kind::Attach => self.epoch = self.epoch.max(epoch),
            // The log may begin with a later one.
            Kind::Config(bytes) if index > self.config.0 => self.config = (index, bytes),
            Kind::Config(_) => {}
            Kind::Empty => {}
            Kind::Grow { blocks } => self.enlarge(blocks, space),
        }
        self.ahead.took_effect(index, &effect, GROW_PAGES);
        if was_mixed && !self.is_mixed() {
            self.reckon(space);
        }
        self.settle();
        !fenced
    }

    /// Whether a chunk is newer than an entry: it came from a peer.
    fn is_newer(&self, lba: u64, index: u64) -> bool {
        self.map.newest() >= index && self.map.changed(lba / u64::from(CHUNK_BLOCKS)) >= index
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
        // Before anything is written: this entry is then the newest.
        let lbas = lba..lba + crcs.len() as u64;
        let newer: Vec<bool> = lbas.map(|lba| self.is_newer(lba, index)).collect();
        for (offset, crc) in crcs.iter().enumerate() {
            if newer[offset] {
                continue;
            }
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
        unwritten: Option<(u64, Buffer)>,
        space: &mut Space,
    ) {
        let first = lba / u64::from(EXTENT_BLOCKS);
        let blocks = u64::from(EXTENT_BLOCKS);
        let newer: Vec<bool> = (first..)
            .take(extents.len())
            .map(|number| self.is_newer(number * blocks, index))
            .collect();
        let parts = extents.iter().zip(crcs.chunks(EXTENT_BLOCKS as usize));
        for (at, (extent, crcs)) in parts.enumerate() {
            if newer[at] {
                space.free_extent(*extent);
                continue;
            }
            let number = first + at as u64;
            self.map
                .replace(number, *extent, crcs, index, space, &mut self.digest);
            self.forget_range(index, number * blocks, blocks);
            if let Some((serial, data)) = &unwritten {
                let data = data.part(at * EXTENT_BLOCKS as usize, EXTENT_BLOCKS as usize);
                let parts = (0..data.blocks()).map(|block| (*serial, data.part(block, 1)));
                self.unwritten.extend((number * blocks..).zip(parts));
            }
        }
    }

    /// What is in memory of blocks that were changed at `index`, unless they are newer.
    fn forget_range(&mut self, index: u64, lba: u64, blocks: u64) {
        let map = &self.map;
        let newer =
            |lba: u64| map.newest() > index && map.changed(lba / u64::from(CHUNK_BLOCKS)) > index;
        remove_range(&mut self.dirty, lba, blocks, newer);
        remove_range(&mut self.flushing, lba, blocks, newer);
        remove_range(&mut self.unwritten, lba, blocks, newer);
    }

    /// A chunk is as a peer has it. Its blocks are on their way to their extents.
    pub(crate) fn install(
        &mut self,
        record: &ChunkRecord,
        blocks: Vec<(u64, Buffer)>,
        serial: u64,
        space: &mut Space,
    ) {
        self.map.install(record, space, &mut self.digest);
        let all = u64::from(CHUNK_BLOCKS);
        self.forget_range(record.changed, record.number * all, all);
        let blocks = blocks
            .into_iter()
            .map(|(lba, block)| (lba, (serial, block)));
        self.unwritten.extend(blocks);
        self.changed = true;
    }

    /// A chunk's blocks are where they belong.
    pub(crate) fn chunk_durable(&mut self, chunk: u64, serial: u64) {
        self.chunks.remove(&serial);
        let all = u64::from(CHUNK_BLOCKS);
        let within = self.unwritten.range(chunk * all..(chunk + 1) * all);
        let written = within.filter(|(_, (whose, _))| *whose == serial);
        let written: Vec<u64> = written.map(|(lba, _)| *lba).collect();
        written
            .iter()
            .for_each(|lba| _ = self.unwritten.remove(lba));
    }
}

fn remove_range<T>(
    held: &mut BTreeMap<u64, T>,
    lba: u64,
    blocks: u64,
    stays: impl Fn(u64) -> bool,
) {
    let within = held.range(lba..lba + blocks).map(|(lba, _)| *lba);
    let within: Vec<u64> = within.filter(|lba| !stays(*lba)).collect();
    within.iter().for_each(|lba| _ = held.remove(lba));
}
