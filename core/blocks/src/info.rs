//! What is known of a store and of its volumes.

use crate::{Digest, EntryHead, HardState, Identity, Layout, MOST_ENTRY_BLOCKS, Store, VolumeId};
use std::sync::Arc;

/// What is known of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeInfo {
    /// Its size.
    pub blocks: u64,
    /// Term, vote and commit.
    pub hard: HardState,
    /// First entry that can be read back.
    pub first: u64,
    /// Last entry.
    pub last: u64,
    /// All entries up to this one are durable here.
    pub durable: u64,
    /// Last entry that took effect.
    pub applied: u64,
    /// The attachment that may write.
    pub epoch: u64,
    /// Index of the configuration that is in force, and itself.
    pub config: (u64, Arc<[u8]>),
    /// Of its blocks, at `applied`.
    pub digest: Digest,
    /// Chunks of a peer are in it, and its log is not as far yet: see [`Store::install`]. The digest is
    /// that of no entry then.
    pub mixed: bool,
    /// What is wrong, if it cannot be used.
    pub broken: Option<String>,
}

/// Extents of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpaceUse {
    /// All of them.
    pub extents: u32,
    /// Those that are free.
    pub free: u32,
    /// Of the free ones, those that accepted entries may take.
    pub promised: u32,
    /// Those that are free after the next checkpoint.
    pub freed_soon: u32,
}

impl SpaceUse {
    /// Less than a tenth is left: time to tell somebody, before writes are refused.
    pub const fn is_low(&self) -> bool {
        self.free.saturating_sub(self.promised) < self.extents / 10
    }
}

/// What was done since the store was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Batches of the log.
    pub batches: u64,
    /// Checkpoints.
    pub checkpoints: u64,
    /// Syncs.
    pub syncs: u64,
    /// Bytes written to the log.
    pub log_bytes: u64,
    /// Bytes written to extents, by batches and by checkpoints.
    pub extent_bytes: u64,
    /// Bytes written to the map and to superblocks.
    pub map_bytes: u64,
    /// Blocks read that were damaged.
    pub damaged_blocks: u64,
    /// Blocks that were repaired from a peer's copy.
    pub repaired_blocks: u64,
    /// Chunks that were taken in from a peer.
    pub chunks: u64,
}

impl Store {
    /// What is known of a volume.
    pub fn volume(&self, volume: VolumeId) -> Option<VolumeInfo> {
        let held = self.volumes.get(&volume)?;
        Some(VolumeInfo {
            blocks: held.blocks,
            hard: held.hard,
            first: held.log.first(),
            last: held.log.last(),
            durable: held.log.durable,
            applied: held.folded.0,
            epoch: held.epoch,
            config: held.config.clone(),
            digest: held.digest,
            mixed: held.is_mixed(),
            broken: held.broken.clone(),
        })
    }

    /// The volumes on this disk.
    pub fn volumes(&self) -> impl Iterator<Item = VolumeId> {
        self.volumes.keys().copied()
    }

    /// An entry's term, also of the last one that is gone.
    pub fn term(&self, volume: VolumeId, index: u64) -> Option<u64> {
        self.volumes.get(&volume)?.log.term(index)
    }

    /// What an entry is, if it is in the log. Nothing is read from the disk.
    pub fn entry_head(&self, volume: VolumeId, index: u64) -> Option<EntryHead> {
        let entry = self.volumes.get(&volume)?.log.get(index)?;
        let mut head = entry.head();
        head.lost &= index > self.volumes[&volume].folded.0;
        Some(head)
    }

    /// Extents that are free.
    pub fn space(&self) -> SpaceUse {
        SpaceUse {
            extents: self.superblock.layout.extents,
            free: self.space.extents.free(),
            promised: self.space.extents_promised,
            freed_soon: self.space.freed_soon() as u32,
        }
    }

    /// What was done so far.
    pub const fn counters(&self) -> Counters {
        self.counters
    }

    /// The random number that was drawn when the disk was formatted.
    pub const fn format(&self) -> u128 {
        self.superblock.store
    }

    /// Whose disk it is.
    pub const fn identity(&self) -> Identity {
        self.superblock.identity
    }

    /// What is where.
    pub const fn layout(&self) -> Layout {
        self.superblock.layout
    }

    /// Blocks that one entry may write: fewer where the log is small.
    pub fn most_entry_blocks(&self) -> u32 {
        MOST_ENTRY_BLOCKS.min(self.superblock.layout.wal_blocks / 16)
    }
}
