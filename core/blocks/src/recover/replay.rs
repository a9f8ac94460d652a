//! From the newest checkpoint and the log after it to a store.

use super::OpenError;
use super::chain::{Chain, ChainLink};
use super::maps::MapPage;
use super::payloads::Payloads;
use crate::format::PageRef;
use crate::format::layout::Layout;
use crate::format::record::{BodyRecord, ChunkRecord, EntryRecord, NotTaken, Record};
use crate::log::{Kind, Logged, Payload};
use crate::map::chunk_extents;
use crate::refused::check_size;
use crate::ring::Ring;
use crate::space::{Need, Space};
use crate::volume::Volume;
use crate::{Buffer, CHUNK_BLOCKS, Digest, EXTENT_BLOCKS, Io, VolumeId};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Pages, or payloads, read at once.
pub(super) const AT_ONCE: usize = 256;

/// A store in the making.
#[derive(Debug)]
pub(super) struct Replay {
    pub(super) chain: Chain,
    pub(super) space: Space,
    pub(super) volumes: BTreeMap<VolumeId, Volume>,
    pub(super) next_directory: Option<PageRef>,
    pub(super) directory: Vec<u32>,
    pub(super) directory_changed: bool,
    pub(super) listed: Vec<(VolumeId, PageRef)>,
    pub(super) pages: VecDeque<MapPage>,
    pub(super) pages_asked: Vec<MapPage>,
    pub(super) digests: BTreeMap<VolumeId, Digest>,
    pub(super) payloads: Payloads,
    /// Chunks that are not taken, and those of them of which the log does not say so yet.
    pub(super) not_taken: BTreeSet<NotTaken>,
    pub(super) untold: Vec<NotTaken>,
    pub(super) ring: Option<Ring>,
    pub(super) born: u64,
}

impl Replay {
    /// Without the chunks of the last batch that are bad.
    pub(super) fn new(chain: Chain, bad: Vec<NotTaken>) -> Self {
        let layout = chain.superblock.layout;
        Self {
            next_directory: chain.superblock.directory,
            not_taken: chain.not_taken().chain(bad.iter().copied()).collect(),
            untold: bad,
            chain,
            space: Space::new(layout.extents, layout.map_pages),
            volumes: BTreeMap::new(),
            directory: Vec::new(),
            directory_changed: false,
            listed: Vec::new(),
            pages: VecDeque::new(),
            pages_asked: Vec::new(),
            digests: BTreeMap::new(),
            payloads: Payloads::default(),
            ring: None,
            born: 0,
        }
    }

    pub(super) const fn layout(&self) -> Layout {
        self.chain.superblock.layout
    }

    pub(super) fn break_volume(&mut self, volume: VolumeId, why: String) {
        if let Some(held) = self.volumes.get_mut(&volume) {
            held.broken.get_or_insert(why);
            held.changed = false;
        }
    }

    /// Plays the batches again, without payloads.
    pub(super) fn play(&mut self) -> Result<(), OpenError> {
        let as_of = self.chain.superblock.as_of;
        for ChainLink { link, records, .. } in self.chain.links.clone() {
            for record in &records {
                // The checkpoint has all that batches up to its moment say of volumes.
                let entries = matches!(record, Record::Entry(_) | Record::LogEnd { .. });
                if link.seq > as_of || entries {
                    self.play_record(record, link.seq, link.position);
                }
            }
        }
        self.take_extents();
        let doubt = self.chain.in_doubt();
        for held in self.volumes.values().filter(|held| held.broken.is_none()) {
            for (index, entry) in held.log.after(held.folded.0) {
                // What a committed one lacks in its extents is lacking in the blocks.
                let open = index > held.hard.commit || Some(entry.batch) == doubt;
                let stored = match entry.kind {
                    Kind::Write { .. } => true,
                    Kind::Redirected { .. } => open,
                    _ => false,
                };
                if stored {
                    self.payloads.want(held.id, index);
                }
            }
        }
        self.ring = Some(ring(&self.chain)?);
        Ok(())
    }

    /// Only entries that are still in the log have extents: those of others may be somebody else's by now.
    fn take_extents(&mut self) {
        let mut wrong = Vec::new();
        for held in self.volumes.values().filter(|held| held.broken.is_none()) {
            for (index, entry) in held.log.after(held.folded.0) {
                let Kind::Redirected { extents, .. } = &entry.kind else {
                    continue;
                };
                for extent in extents.iter() {
                    if !self.space.extents.mark(*extent) {
                        let why =
                            format!("extent {extent} of entry {index} has two uses, or is none");
                        wrong.push((held.id, why));
                    }
                }
            }
        }
        wrong
            .into_iter()
            .for_each(|(volume, why)| self.break_volume(volume, why));
    }

    fn play_record(&mut self, record: &Record, seq: u64, position: u32) {
        match record {
            Record::Create { volume, blocks } => {
                self.born += 1;
                let mut held = Volume::new(*volume, self.born, *blocks);
                held.announced = true;
                self.volumes.entry(*volume).or_insert(held);
                self.directory_changed = true;
            }
            Record::Delete { volume } => {
                self.directory_changed = true;
                if let Some(mut held) = self.volumes.remove(volume) {
                    self.space.pages_needed += held.map.pages() + 1;
                    held.forget_after(held.folded.0);
                    held.free_all(&mut self.space);
                }
            }
            Record::Grow { volume, blocks } => {
                if let Some(held) = self.usable(*volume) {
                    held.blocks = held.blocks.max(*blocks);
                    held.changed = true;
                    let blocks = held.blocks;
                    let held = self.volumes.get_mut(volume).expect("it is usable");
                    held.map.grow(blocks, &mut self.space);
                }
            }
            Record::Hard { volume, hard } => {
                if let Some(held) = self.usable(*volume) {
                    held.hard = *hard;
                    held.changed = true;
                }
            }
            Record::Chunk(chunk) => {
                let named = NotTaken {
                    volume: chunk.volume,
                    seq,
                    number: chunk.number,
                    changed: chunk.changed,
                };
                if self.not_taken.contains(&named) {
                    return;
                }
                if let Err(why) = self.play_chunk(chunk) {
                    self.break_volume(chunk.volume, why);
                }
            }
            Record::Base { volume, base } => {
                if let Some(held) = self.volumes.get_mut(volume)
                    && held.broken.is_none()
                    && (base.index > held.folded.0 || held.is_new())
                {
                    // Extents of entries that are gone were never taken.
                    drop(held.rebase(base, &mut self.space));
                }
            }
            Record::NotTaken(_) => {}
            Record::LogEnd { volume, last } => {
                if let Some(held) = self.volumes.get_mut(volume)
                    && held.broken.is_none()
                    && *last >= held.folded.0
                {
                    held.forget_after(*last);
                }
            }
            Record::Entry(entry) => {
                if let Err(why) = self.play_entry(entry, seq, position) {
                    self.break_volume(entry.volume, why);
                }
            }
        }
    }

    /// A chunk of a peer: its extents were taken since the checkpoint, so nobody else has them.
    fn play_chunk(&mut self, chunk: &ChunkRecord) -> Result<(), String> {
        let Some(held) = self.volumes.get_mut(&chunk.volume) else {
            return Ok(());
        };
        if held.broken.is_some() || chunk.changed <= held.map.changed(chunk.number) {
            return Ok(());
        }
        // It may have grown by an entry whose commit is not known to be durable.
        let (number, blocks) = (chunk.number, held.blocks_in_log());
        let last = chunk.extents.last().map_or(0, |it| {
            let extent = chunk_extents(number).start + u64::from(it.number);
            extent * u64::from(EXTENT_BLOCKS) + u64::from(it.valid.ilog2()) + 1
        });
        if last > blocks || number * u64::from(CHUNK_BLOCKS) >= blocks {
            return Err(format!("chunk {number} is beyond its {blocks} blocks"));
        }
        for extent in &chunk.extents {
            if !self.space.extents.mark(extent.at) {
                let at = extent.at;
                return Err(format!(
                    "extent {at} of chunk {number} has two uses, or is none"
                ));
            }
        }
        held.map.grow(blocks, &mut self.space);
        held.install(chunk, Vec::new(), 0, &mut self.space);
        Ok(())
    }

    fn usable(&mut self, volume: VolumeId) -> Option<&mut Volume> {
        self.volumes
            .get_mut(&volume)
            .filter(|held| held.broken.is_none())
    }

    fn play_entry(&mut self, entry: &EntryRecord, seq: u64, position: u32) -> Result<(), String> {
        let Some(held) = self
            .volumes
            .get_mut(&entry.volume)
            .filter(|it| it.broken.is_none())
        else {
            return Ok(());
        };
        let index = entry.index;
        if index <= held.folded.0 {
            return Ok(());
        }
        if index > held.log.last() + 1 {
            return Err(format!(
                "its log has no entry {} before {index}",
                held.log.last() + 1
            ));
        }
        let logged = logged(entry, held.blocks_in_log(), seq, position)?;
        let old = held.log.get(index).filter(|old| old.term == entry.term);
        if let Some(old) = old {
            if let Kind::Write {
                at: Payload::At(at),
                ..
            } = old.kind
            {
                self.payloads.another((entry.volume, index, entry.term), at);
            }
            held.refill(index, logged);
        } else {
            held.forget_after(index - 1);
            held.append(logged, &mut self.space);
        }
        Ok(())
    }

    /// The next payloads.
    pub(super) fn payloads(&mut self) -> Vec<(u64, usize)> {
        let layout = self.layout();
        self.payloads.next(&self.volumes, &layout)
    }

    pub(super) fn take_payloads(&mut self, results: &[Option<Buffer>]) {
        self.payloads.take(&mut self.volumes, results);
    }

    /// What is written anew.
    pub(super) fn mends(&self) -> Vec<Io> {
        self.payloads.mends(&self.layout())
    }
}

fn logged(
    entry: &EntryRecord,
    volume_blocks: u64,
    seq: u64,
    position: u32,
) -> Result<Logged, String> {
    let (kind, end) = match &entry.body {
        BodyRecord::Write { lba, payload, crcs } => {
            let all = || Payload::Lost((0..crcs.len() as u32).collect());
            let kind = Kind::Write {
                lba: *lba,
                crcs: crcs.clone(),
                at: payload.map_or_else(all, |offset| Payload::At(position + offset)),
                data: None,
            };
            (kind, lba + crcs.len() as u64)
        }
        BodyRecord::Redirected { lba, extents, crcs } => {
            let kind = Kind::Redirected {
                lba: *lba,
                extents: extents.clone(),
                crcs: crcs.clone(),
                data: None,
                lost: Vec::new(),
            };
            (kind, lba + crcs.len() as u64)
        }
        BodyRecord::Zero { lba, blocks } => {
            let (lba, blocks) = (*lba, *blocks);
            if blocks == 0 {
                return Err(format!("entry {} empties no blocks", entry.index));
            }
            (Kind::Zero { lba, blocks }, lba + blocks)
        }
        BodyRecord::Attach => (Kind::Attach, 0),
        BodyRecord::Config(bytes) => (Kind::Config(bytes.clone()), 0),
        BodyRecord::Empty => (Kind::Empty, 0),
        BodyRecord::Grow { blocks } => {
            check_size(*blocks).map_err(|error| error.to_string())?;
            (Kind::Grow { blocks: *blocks }, 0)
        }
    };
    if end > volume_blocks {
        return Err(format!(
            "entry {} is for blocks beyond its {volume_blocks}",
            entry.index
        ));
    }
    let mut logged = Logged {
        term: entry.term,
        epoch: entry.epoch,
        kind,
        need: Need::default(),
        serial: 0,
        batch: seq,
        durable: true,
    };
    logged.durable = !logged.is_lost();
    Ok(logged)
}

fn ring(chain: &Chain) -> Result<Ring, OpenError> {
    let blocks = chain.superblock.layout.wal_blocks;
    let mut ring = Ring::new(blocks, chain.superblock.tail);
    for ChainLink { link, records, .. } in &chain.links {
        ring.skip_to(link.position);
        if !link.fits(blocks) || !ring.fits(link.blocks, 0) {
            let why = "it overlaps the batches before it".to_owned();
            return Err(OpenError::Log { seq: link.seq, why });
        }
        let volumes = records.iter().filter_map(|record| match record {
            Record::Entry(entry) => Some(entry.volume),
            _ => None,
        });
        let volumes: BTreeSet<VolumeId> = volumes.collect();
        ring.push(*link, records.clone(), volumes.into_iter().collect());
    }
    ring.next_seq = chain.next_seq;
    Ok(ring)
}
