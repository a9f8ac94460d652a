//! What the store asks of its caller, and tells it.

use crate::{Buffer, Chunk, EntryError, ReadError, VolumeId, log::Entry};

/// Names an IO that was handed out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub u64);

/// Names something that was asked of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// IO to be carried out, in any order: the store waits for what has to come first. Places are in bytes
/// from the beginning of the file, of 4 KiB blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Io {
    /// Blocks are wanted.
    Read {
        /// From where.
        at: u64,
        /// How many.
        blocks: usize,
    },
    /// These blocks go there, one buffer after another.
    Write {
        /// To where.
        at: u64,
        /// What.
        buffers: Vec<Buffer>,
    },
    /// As [`Self::Write`], and these blocks survive a loss of power when it is done. Others do not by that.
    WriteSync {
        /// To where.
        at: u64,
        /// What.
        buffers: Vec<Buffer>,
    },
    /// All writes that are done have to survive a loss of power. Never tried again when it failed: the
    /// kernel may have dropped what it could not write.
    Sync,
}

/// What became of an IO.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Done {
    /// The blocks that were wanted.
    Read(Buffer),
    /// Written, or synced.
    Ok,
    /// It failed, and why.
    Failed(String),
}

/// What the store tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// What this ticket asked for, and all that was asked before, survives a loss of power.
    Durable {
        /// Of [`crate::Store::submit`] and the like.
        ticket: Ticket,
        /// For which volume.
        volume: VolumeId,
    },
    /// A read is done.
    Read {
        /// Of [`crate::Store::read`].
        ticket: Ticket,
        /// The blocks in their order, in one or more buffers.
        result: Result<Vec<Buffer>, ReadError>,
    },
    /// A chunk was read for a peer.
    Chunk {
        /// Of [`crate::Store::read_chunk`].
        ticket: Ticket,
        /// The chunk.
        result: Result<Chunk, ReadError>,
    },
    /// An entry was read back.
    Entry {
        /// Of [`crate::Store::read_entry`].
        ticket: Ticket,
        /// The entry.
        result: Result<Entry, EntryError>,
    },
    /// A checkpoint is durable.
    Checkpointed {
        /// Its number.
        sequence: u64,
    },
    /// The disk failed. Nothing is taken in or told to be durable any more.
    Dead {
        /// What failed, and why.
        cause: String,
    },
}
