//! The block store of one disk: what is acknowledged is not lost, what is read is what was written.
//! No files, clock, threads or tasks.
//!
//! One store per disk, shared by the replicas of all volumes on it. [`Store`] takes calls and completions
//! of IO, and hands out IO and events: [`Store::poll_io`] is carried out by the caller, in any order and
//! any number at once; [`Store::handle_done`] says what became of it; [`Store::poll_event`] says what is
//! durable, read or dead. [`Opening`] reads what a disk has, [`Formatted`] makes a new one.
//!
//! A volume here is one replica's half of a Raft group: a durable log and hard state ([`Store::submit`]),
//! whose committed entries ([`Store::committed`]) take effect in order. Consensus itself is elsewhere.
//!
//! Invariants, asserted where they are kept; docs/storage/format.md tells them at length:
//! * I1 A block is overwritten in place only by a committed entry, whose commit is durable, and whose
//!   record stays in the log until the checkpoint that synced the block.
//! * I2 No superblock refers to a page, nor a page to a block, that is not synced.
//! * I3 What may be dirty at a crash is covered by the log from the checkpoint's tail on: a block that
//!   does not match its CRC outside of that is damaged.
//! * I4 A freed extent is used again only after the checkpoint that freed it, and after all reads that
//!   may look there.
//! * I5 An extent has the index at which it was taken, so that snapshots can be told by indexes alone.
//! * I6 What a volume holds at an index, and its digest, follow from the log alone.

mod ahead;
mod allocation;
mod batch;
mod buffer;
mod checkpoint;
mod checksum;
mod chunk;
mod fold;
pub mod format;
mod info;
mod io;
mod log;
mod map;
mod read;
mod recover;
mod refused;
mod ring;
mod room;
mod space;
mod store;
mod submit;
mod volume;

pub use allocation::Run;
pub use buffer::{Buffer, Page};
pub use checksum::{Digest, block_crc};
pub use chunk::{Base, Chunk, InstallRefused};
pub use format::layout::{BadLayout, Layout};
pub use format::record::HardState;
pub use format::superblock::{BadSuperblock, Identity};
pub use info::{Counters, SpaceUse, VolumeInfo};
pub use io::{Done, Event, Io, Ticket, Token};
pub use log::{Body, Entry, EntryHead, EntryKind};
pub use read::{EntryError, ReadError};
pub use recover::{DamagedEntry, Formatted, OpenError, Opening, Recovered};
pub use refused::{Refused, RepairRefused};
pub use store::Store;
pub use submit::Submission;

use std::fmt;

/// The unit of all IO.
pub const BLOCK_BYTES: usize = 4096;
/// Blocks of an extent, the unit of allocation: 64 KiB.
pub const EXTENT_BLOCKS: u32 = 16;
/// Blocks of a chunk, for which the last change is known: 1 MiB.
pub const CHUNK_BLOCKS: u32 = 256;
/// Blocks that one entry writes at most: 1 MiB. Larger requests are several entries.
pub const MOST_ENTRY_BLOCKS: u32 = 256;
/// Bytes of a configuration at most: it has to fit on a volume's page.
pub const MOST_CONFIG_BYTES: usize = 2048;
/// Blocks of a volume at most: 512 TiB.
pub const MOST_VOLUME_BLOCKS: u64 = 1 << 37;

/// A volume, and so the Raft group of its replicas.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VolumeId(u128);

impl VolumeId {
    /// From its number.
    pub const fn new(id: u128) -> Self {
        Self(id)
    }

    /// Its number.
    pub const fn get(self) -> u128 {
        self.0
    }
}

impl fmt::Display for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}
