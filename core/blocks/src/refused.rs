//! What the store says no to, and why.

use crate::{MOST_VOLUME_BLOCKS, VolumeId};

/// Why the store does not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The disk failed.
    #[error("the disk failed and takes nothing in: {cause}")]
    Dead {
        /// What failed.
        cause: String,
    },
    /// There is no such volume on this disk.
    #[error("no volume {volume} on this disk")]
    NoVolume {
        /// Which.
        volume: VolumeId,
    },
    /// There is one already.
    #[error("volume {volume} is on this disk already")]
    Exists {
        /// Which.
        volume: VolumeId,
    },
    /// Its map cannot be read.
    #[error(
        "volume {volume} cannot be used: {why}; delete this replica and make a new one from its peers"
    )]
    Broken {
        /// Which.
        volume: VolumeId,
        /// What is wrong.
        why: String,
    },
    /// No extents for it. Overwrites, zeroes and reads go on.
    #[error(
        "the disk is full: {free} extents of 64 KiB are free, {needed} more are needed; delete or trim volumes, or move some to another disk"
    )]
    NoSpace {
        /// Free and not promised.
        free: u32,
        /// What it would take.
        needed: u32,
    },
    /// There is room for it once what was accepted took effect and is in a checkpoint: overwrites of whole
    /// extents and zeroes leave extents that are free only then.
    #[error(
        "{needed} extents of 64 KiB are needed, and free once what is under way is done; try again then"
    )]
    NotYet {
        /// What it takes.
        needed: u32,
    },
    /// What is in effect has to be at its place before the log can go on elsewhere.
    #[error(
        "volume {volume} has effects that are in the log only; they are on their way; try again then"
    )]
    Unsettled {
        /// Which.
        volume: VolumeId,
    },
    /// Too many volumes, or their map is full.
    #[error("the disk's map is full; delete volumes, or move some to another disk")]
    MapFull,
    /// Too much is not committed or not durable yet. Asked again after the next event it may pass.
    #[error(
        "{live} bytes of the log are not settled yet, at most {most} may be; try again when some are"
    )]
    Busy {
        /// How many.
        live: u64,
        /// At most.
        most: u64,
    },
    /// The caller asks for what can never be.
    #[error("{what}")]
    Invalid {
        /// What, and why.
        what: String,
    },
    /// A committed entry's payload is lost here; it has to be submitted again.
    #[error("entry {index} is damaged on this disk; submit it again from a peer's copy")]
    Lost {
        /// Which.
        index: u64,
    },
}

/// Why a block is not repaired.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RepairRefused {
    /// The volume is not there, or the disk is dead.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// It reads as zeroes, or is newer in memory.
    #[error("block {lba} has nothing on disk to be repaired")]
    NotStored {
        /// Which.
        lba: u64,
    },
    /// It is not what was written here last.
    #[error(
        "these are not the bytes that were last written to block {lba}; read it from a peer again"
    )]
    Differs {
        /// Which.
        lba: u64,
    },
}

pub(crate) fn check_size(blocks: u64) -> Result<(), Refused> {
    if (1..=MOST_VOLUME_BLOCKS).contains(&blocks) {
        return Ok(());
    }
    Err(invalid(format!(
        "a volume of {blocks} blocks: it may have 1 to {MOST_VOLUME_BLOCKS}"
    )))
}

pub(crate) const fn invalid(what: String) -> Refused {
    Refused::Invalid { what }
}
