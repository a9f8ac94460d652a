//! Checkpoints: what took effect goes to its place, the log's ring gets free.
//!
//! A checkpoint is as of a moment: the batch that is sealed then carries on all that is live, and is where
//! the log is replayed from. Order, and what each step is for:
//! 1. The batch is durable, so all commits that took effect until the moment are (I1).
//! 2. Reads that were under way at the moment are done: none sees a block half overwritten.
//! 3. Blocks go to their extents, pages of the map to new places. One sync for both (I2).
//! 4. Two of the four superblocks. A sync.
//! 5. The ring's tail moves up; what was freed before the moment is free (I4).

use crate::format::PageRef;
use crate::format::pages::{DIRECTORY_PAGES, PageBody};
use crate::format::superblock::Superblock;
use crate::format::wal::Link;
use crate::map::PageWriter;
use crate::store::Purpose;
use crate::{BLOCK_BYTES, Buffer, Event, Io, Layout, Page, Store, VolumeId};
use std::collections::VecDeque;

/// IO of a checkpoint at once: it is not in a hurry, and the log is.
const MOST_WRITES: usize = 16;
/// Blocks of one write at most.
const MOST_WRITE_BLOCKS: usize = 64;

/// A checkpoint under way.
#[derive(Debug)]
pub(crate) struct Checkpoint {
    stage: Stage,
    superblock: Superblock,
    /// Blocks and pages, yet to be handed out.
    writes: VecDeque<(u64, Vec<Buffer>)>,
    under_way: usize,
    /// Reads from this one on know where its blocks are in memory.
    first_read: u64,
    /// As far as each volume is in it.
    volumes: Vec<(VolumeId, u64, u64)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The batch is being written.
    Log,
    /// Blocks and pages are.
    Data,
    DataSync,
    Superblocks,
    SuperblocksSync,
}

impl Store {
    /// A checkpoint without a batch of its own, when a disk is opened whose ring has no room for one: each
    /// time that a checkpoint was cut off left its batch there. The last of these carries all that is
    /// live as well as a new one would, and all that took effect is durable.
    pub(crate) fn begin_checkpoint_again(&mut self, tail: Link) {
        self.begin_checkpoint(tail, false);
        if self.checkpoint.is_some() {
            self.checkpoint_batch_is_durable();
        }
    }

    /// The moment: what the checkpoint has is decided here.
    pub(crate) fn begin_checkpoint(&mut self, tail: Link, tail_is_empty: bool) {
        let layout = self.superblock.layout;
        let sequence = self.superblock.sequence + 1;
        let mut blocks = self.take_dirty();
        let mut volumes = Vec::new();
        let mut writer = PageWriter {
            space: &mut self.space,
            store: self.superblock.store,
            checkpoint: sequence,
            written: Vec::new(),
            full: false,
        };
        for held in self
            .volumes
            .values_mut()
            .filter(|held| held.broken.is_none())
        {
            volumes.push((held.id, held.born, held.folded.0));
            if !held.changed && !held.map.is_dirty() {
                continue;
            }
            let root = held.map.write_pages(held.id, &mut writer);
            let page = writer.write(held.id, 0, 0, &PageBody::Volume(held.state(root)));
            if let Some(old) = held.page.replace(page) {
                writer.space.free_page(old.page);
            }
            held.changed = false;
            self.directory_changed = true;
        }
        let mut directory = self.superblock.directory;
        if self.directory_changed {
            let pages = self.volumes.values();
            let pages = pages
                .filter_map(|held| Some((held.id, held.page?)))
                .collect::<Vec<_>>();
            self.directory
                .drain(..)
                .for_each(|old| writer.space.free_page(old));
            directory = write_directory(&pages, &mut writer, &mut self.directory);
            self.directory_changed = false;
        }
        let (pages, full) = (writer.written, writer.full);
        if full {
            return self.die(Purpose::Checkpoint, "no page of the map is free for a copy");
        }
        self.space.checkpoint_begins();
        self.counters.map_bytes += ((pages.len() + 2) * BLOCK_BYTES) as u64;
        self.counters.extent_bytes += (blocks.len() * BLOCK_BYTES) as u64;
        blocks.extend(
            pages
                .into_iter()
                .map(|(page, bytes)| (layout.page_at(page), Buffer::from_pages(vec![bytes]))),
        );
        self.checkpoint = Some(Checkpoint {
            stage: Stage::Log,
            superblock: Superblock {
                sequence,
                tail,
                as_of: self.ring.last.seq,
                tail_is_empty,
                directory,
                ..self.superblock.clone()
            },
            writes: in_runs(blocks),
            under_way: 0,
            first_read: self.next,
            volumes,
        });
    }

    /// All blocks that are newer in memory, with their places.
    fn take_dirty(&mut self) -> Vec<(u64, Buffer)> {
        let layout = self.superblock.layout;
        let mut blocks = Vec::new();
        for held in self
            .volumes
            .values_mut()
            .filter(|held| held.broken.is_none())
        {
            // I1: what is about to go in place is committed, and the batch just sealed says so.
            assert!(held.folded.0 <= held.hard.commit && held.folded.0 <= held.sealed);
            for (lba, block) in std::mem::take(&mut held.dirty) {
                let place = held.map.place(lba).expect("dirty blocks are in the map");
                blocks.push((layout.extent_at(place.extent, place.block), block.clone()));
                held.flushing.insert(lba, block);
            }
        }
        blocks
    }

    pub(crate) fn checkpoint_batch_is_durable(&mut self) {
        let checkpoint = self.checkpoint.as_mut().expect("it began with the batch");
        checkpoint.stage = Stage::Data;
    }

    /// Hands out what the stage allows.
    pub(crate) fn go_on_with_checkpoint(&mut self) {
        let oldest_read = self.oldest_read();
        let Some(checkpoint) = self
            .checkpoint
            .as_mut()
            .filter(|it| it.stage == Stage::Data)
        else {
            return;
        };
        if oldest_read.is_some_and(|read| read <= checkpoint.first_read) {
            return;
        }
        let room = MOST_WRITES - checkpoint.under_way;
        let number = room.min(checkpoint.writes.len());
        let writes: Vec<_> = checkpoint.writes.drain(..number).collect();
        checkpoint.under_way += number;
        // Entries that are only carried on change no block and no page.
        if checkpoint.under_way == 0 {
            checkpoint.stage = Stage::DataSync;
            self.issue(Purpose::Checkpoint, Io::Sync);
        }
        for (at, buffers) in writes {
            self.issue(Purpose::Checkpoint, Io::Write { at, buffers });
        }
    }

    pub(crate) fn checkpoint_done(&mut self) {
        let checkpoint = self.checkpoint.as_mut().expect("its IO was handed out");
        match checkpoint.stage {
            Stage::Log => unreachable!("nothing is handed out before the batch is durable"),
            Stage::Data | Stage::Superblocks => {
                checkpoint.under_way -= 1;
                if checkpoint.under_way > 0 || !checkpoint.writes.is_empty() {
                    return;
                }
                let data = checkpoint.stage == Stage::Data;
                checkpoint.stage = if data {
                    Stage::DataSync
                } else {
                    Stage::SuperblocksSync
                };
                self.issue(Purpose::Checkpoint, Io::Sync);
            }
            Stage::DataSync => self.write_superblocks(),
            Stage::SuperblocksSync => self.end_checkpoint(),
        }
    }

    /// I2: all that the superblock refers to is synced.
    fn write_superblocks(&mut self) {
        let checkpoint = self.checkpoint.as_mut().expect("it is under way");
        assert!(checkpoint.writes.is_empty() && checkpoint.under_way == 0);
        checkpoint.stage = Stage::Superblocks;
        let copies = Superblock::copies(checkpoint.superblock.sequence);
        checkpoint.under_way = copies.len();
        let pages = copies.map(|copy| (copy, checkpoint.superblock.encode(copy)));
        for (copy, page) in pages {
            let at = Layout::superblock_at(u64::from(copy));
            let buffers = vec![Buffer::from_pages(vec![page])];
            self.issue(Purpose::Checkpoint, Io::Write { at, buffers });
        }
    }

    fn end_checkpoint(&mut self) {
        let checkpoint = self.checkpoint.take().expect("it is under way");
        for (volume, born, index) in checkpoint.volumes {
            if let Some(held) = self
                .volumes
                .get_mut(&volume)
                .filter(|held| held.born == born)
            {
                held.checkpointed = index;
                held.flushing.clear();
                held.log.forget_data_until(index);
            }
        }
        self.ring.set_tail(checkpoint.superblock.tail.seq);
        self.superblock = checkpoint.superblock;
        self.space.checkpoint_ends(self.next + 1);
        let oldest = self.oldest_read().unwrap_or(u64::MAX);
        self.space.reads_done_before(oldest);
        self.counters.checkpoints += 1;
        let sequence = self.superblock.sequence;
        self.events.push_back(Event::Checkpointed { sequence });
    }
}

/// Writes the directory from its end on, as each page refers to the next.
fn write_directory(
    volumes: &[(VolumeId, PageRef)],
    writer: &mut PageWriter<'_>,
    pages: &mut Vec<u32>,
) -> Option<PageRef> {
    let none = VolumeId::new(0);
    let mut next = None;
    for (number, volumes) in volumes.chunks(DIRECTORY_PAGES).enumerate().rev() {
        let volumes = volumes.to_vec();
        let page = writer.write(
            none,
            0,
            number as u64,
            &PageBody::Directory { next, volumes },
        );
        pages.push(page.page);
        next = Some(page);
    }
    next
}

/// Blocks that lie one behind the other are one write.
pub(crate) fn in_runs(mut blocks: Vec<(u64, Buffer)>) -> VecDeque<(u64, Vec<Buffer>)> {
    blocks.sort_by_key(|(at, _)| *at);
    let mut runs: VecDeque<(u64, Vec<Buffer>)> = VecDeque::new();
    for (at, block) in blocks {
        match runs.back_mut() {
            Some((start, run))
                if run.len() < MOST_WRITE_BLOCKS
                    && *start + (run.len() * BLOCK_BYTES) as u64 == at =>
            {
                run.push(block);
            }
            _ => runs.push_back((at, vec![block])),
        }
    }
    runs
}

const _: () = assert!(size_of::<Page>() == BLOCK_BYTES);
