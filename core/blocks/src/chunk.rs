//! Chunks of 1 MiB from replica to replica, for who lacks what the log has no more.
//!
//! A chunk is read as of the moment, and tells the index of the last entry that changed it. Who takes it
//! in has it at that index while its log is not as far: the volume is *mixed* then. Entries have no effect
//! on a chunk that is newer than they are ([`Volume`](crate::volume::Volume)), so once the log is as far as
//! the newest chunk all is as it is on the peer. Nothing is pinned or frozen for it, and what is done is
//! known from the map itself: it goes on after a crash, and with another peer.

use crate::batch::Queued;
use crate::checkpoint::in_runs;
use crate::format::record::{ChunkExtent, ChunkRecord, Record};
use crate::log::Kind;
use crate::map::{blocks_of, chunk_extents};
use crate::read::parts_of;
use crate::refused::{check_size, invalid};
use crate::room::promise_all;
use crate::{
    Buffer, CHUNK_BLOCKS, Digest, EXTENT_BLOCKS, Layout, MOST_CONFIG_BYTES, Refused, Store, Ticket,
    VolumeId, block_crc,
};

use std::collections::VecDeque;

pub use crate::format::record::Base;

/// Extents of a chunk.
const CHUNK_EXTENTS: usize = 16;
const _: () = assert!(CHUNK_EXTENTS as u32 == CHUNK_BLOCKS / EXTENT_BLOCKS);

/// A chunk of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// Which 1 MiB.
    pub number: u64,
    /// Index of the last entry that changed it: two chunks with the same are the same.
    pub changed: u64,
    /// Blocks of each 64 KiB that were written, the lowest bit for the first; others read as zeroes.
    pub written: [u16; 16],
    /// Of the blocks as they were written, as the map has it: bytes that changed on their way do not
    /// pass.
    pub digest: Digest,
    /// The blocks that were written, one after another.
    pub data: Vec<Buffer>,
}

/// Why a chunk is not taken in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InstallRefused {
    /// The store cannot, or not now.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// It is not what its digest says.
    #[error("chunk {number} is not what its digest says; ask for it again")]
    Differs {
        /// Which.
        number: u64,
    },
}

impl Chunk {
    /// Blocks that were written.
    pub fn blocks(&self) -> usize {
        let ones = self.written.iter().map(|valid| valid.count_ones());
        ones.sum::<u32>() as usize
    }

    /// Their places.
    fn lbas(&self) -> impl Iterator<Item = u64> {
        let extents = chunk_extents(self.number).zip(self.written);
        extents.flat_map(|(number, valid)| {
            blocks_of(valid).map(move |block| number * u64::from(EXTENT_BLOCKS) + block)
        })
    }
}

impl Store {
    /// Chunks from this one on that entries after `since` changed, each with the last of these: with
    /// them, who has all up to there has all. None: there is no such volume.
    pub fn chunks_changed_since(
        &self,
        volume: VolumeId,
        since: u64,
        from: u64,
    ) -> Option<impl Iterator<Item = (u64, u64)>> {
        Some(self.volumes.get(&volume)?.map.changes(since, from))
    }

    /// The last entry that changed a chunk, as far as it is known here.
    pub fn chunk_changed(&self, volume: VolumeId, chunk: u64) -> Option<u64> {
        Some(self.volumes.get(&volume)?.map.changed(chunk))
    }

    /// What a chunk holds, in short: equal on all replicas at one entry.
    pub fn chunk_digest(&self, volume: VolumeId, chunk: u64) -> Option<Digest> {
        Some(self.volumes.get(&volume)?.map.chunk_digest(chunk))
    }

    /// Where a replica is that took in chunks from here: what is in effect now. None: not here, or mixed.
    pub fn base(&self, volume: VolumeId) -> Option<Base> {
        let held = self.volumes.get(&volume).filter(|held| !held.is_mixed())?;
        Some(Base {
            index: held.folded.0,
            term: held.folded.1,
            epoch: held.epoch,
            blocks: held.blocks,
            config: held.config.clone(),
        })
    }

    /// Reads a chunk for a peer, as of now. [`crate::Event::Chunk`] brings it.
    pub fn read_chunk(&mut self, volume: VolumeId, number: u64) -> Result<Ticket, Refused> {
        let layout = self.superblock.layout;
        let (held, _) = self.volume_mut(volume)?;
        let first = number.checked_mul(u64::from(CHUNK_BLOCKS));
        if first.is_none_or(|first| first >= held.blocks) {
            let has = held.blocks;
            return Err(invalid(format!(
                "chunk {number} of a volume of {has} blocks"
            )));
        }
        let mut written = [0; 16];
        for (valid, extent) in written.iter_mut().zip(chunk_extents(number)) {
            *valid = held.map.extent(extent).map_or(0, |extent| extent.valid);
        }
        let chunk = Chunk {
            number,
            changed: held.map.changed(number),
            written,
            digest: held.map.chunk_digest(number),
            data: Vec::new(),
        };
        let parts = parts_of(held, &layout, chunk.lbas());
        Ok(self.begin_read(volume, parts, Some(chunk)))
    }

    /// Takes a chunk of a peer in. One that is no newer than what is here changes nothing.
    pub fn install(&mut self, volume: VolumeId, chunk: &Chunk) -> Result<Ticket, InstallRefused> {
        self.room_for_local()?;
        let layout = self.superblock.layout;
        let (held, space) = self.volume_mut(volume)?;
        let number = chunk.number;
        let blocks: usize = chunk.data.iter().map(Buffer::blocks).sum();
        let first = number.checked_mul(u64::from(CHUNK_BLOCKS));
        let inside = first.is_some_and(|first| first < held.blocks)
            && chunk.lbas().last().is_none_or(|lba| lba < held.blocks);
        if !inside || blocks != chunk.blocks() {
            let has = held.blocks;
            let what = format!("chunk {number} with {blocks} blocks, of a volume of {has}");
            return Err(invalid(what).into());
        }
        if chunk.changed <= held.folded.0 || chunk.changed <= held.map.changed(number) {
            return Ok(self.ticket(volume));
        }
        let pages = chunk.data.iter().flat_map(Buffer::pages);
        let crcs: Vec<u32> = (chunk.lbas().zip(pages))
            .map(|(lba, page)| block_crc(volume, lba, page))
            .collect();
        if Digest::of(chunk.lbas().zip(crcs.iter().copied())) != chunk.digest {
            return Err(InstallRefused::Differs { number });
        }
        if !held.is_mixed() && !promise_all(held, space) {
            let need = held.map.chunk_need(number, CHUNK_EXTENTS);
            let free = space.unpromised();
            return Err(self.no_room(need, free).into());
        }
        let extents = chunk.written.iter().filter(|valid| **valid != 0).count();
        let need = held.map.chunk_need(number, extents);
        if !space.has(need) {
            let free = space.unpromised();
            return Err(self.no_room(need, free).into());
        }
        let (record, writes) = place(chunk, volume, &crcs, &layout, || {
            space.extents.take().expect("they were counted")
        });
        let serial = self.number();
        let (held, space) = self.volume_mut(volume)?;
        let lbas = chunk.lbas().zip(chunk.data.iter().flat_map(parts_of_one));
        held.install(&record, lbas.collect(), serial, space);
        held.chunks.insert(serial);
        self.counters.chunks += 1;
        self.enqueue(Queued::Chunk {
            record,
            serial,
            writes,
        });
        Ok(self.ticket(volume))
    }

    /// Says that all up to an entry is in effect: all chunks that it and those before it changed were
    /// taken in. The log goes on after it. Refused until what is in effect is in a checkpoint,
    /// and the chunks are durable: those of a batch that is not whole are not taken.
    pub fn rebase(&mut self, volume: VolumeId, base: &Base) -> Result<Ticket, Refused> {
        self.room_for_local()?;
        check_size(base.blocks)?;
        let (held, space) = self.volume_mut(volume)?;
        let (index, folded) = (base.index, held.folded.0);
        if index <= folded && !held.is_new() || base.config.1.len() > MOST_CONFIG_BYTES {
            return Err(invalid(format!(
                "the log of volume {volume} cannot begin after {index}: {folded} are in effect"
            )));
        }
        // With the entries that took effect here their payloads leave the log.
        if held.checkpointed < folded {
            self.checkpoint_wanted = true;
            return Err(Refused::Unsettled { volume });
        }
        if !held.chunks.is_empty() {
            return Err(Refused::Unsettled { volume });
        }
        let before = held.live;
        for entry in held.rebase(base, space) {
            space.take_back(entry.need);
            if let Kind::Redirected { extents, .. } = &entry.kind {
                extents.iter().for_each(|extent| space.free_extent(*extent));
            }
        }
        held.reckon(space);
        self.account(volume, before);
        let base = base.clone();
        self.enqueue(Queued::Record {
            record: Record::Base { volume, base },
            born: 0,
        });
        Ok(self.ticket(volume))
    }
}

fn parts_of_one(buffer: &Buffer) -> impl Iterator<Item = Buffer> {
    (0..buffer.blocks()).map(|block| buffer.part(block, 1))
}

/// A chunk in extents: what the log says of it, and what is written where.
fn place(
    chunk: &Chunk,
    volume: VolumeId,
    crcs: &[u32],
    layout: &Layout,
    mut take: impl FnMut() -> u32,
) -> (ChunkRecord, VecDeque<(u64, Vec<Buffer>)>) {
    let mut writes = Vec::new();
    let mut extents = Vec::new();
    let mut blocks = chunk.data.iter().flat_map(parts_of_one);
    let mut crcs = crcs.iter().copied();
    for (number, valid) in (0..).zip(chunk.written).filter(|(_, valid)| *valid != 0) {
        let at = take();
        for block in blocks_of(valid) {
            let data = blocks.next().expect("they were counted");
            writes.push((layout.extent_at(at, block as u32), data));
        }
        let crcs = crcs.by_ref().take(valid.count_ones() as usize).collect();
        extents.push(ChunkExtent {
            number,
            valid,
            at,
            crcs,
        });
    }
    let record = ChunkRecord {
        volume,
        number: chunk.number,
        changed: chunk.changed,
        extents,
    };
    (record, in_runs(writes))
}
