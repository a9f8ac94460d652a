//! What opening a disk comes to: what was found on it, or why it cannot be opened.

use crate::format::VERSION;
use crate::{Identity, VolumeId};

/// Why a disk cannot be opened. Nothing was written to it but payloads of the log that were damaged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// It never was one of ours.
    #[error(
        "there is no block store here: no superblock in any of its four places; format it first"
    )]
    NotFormatted,
    /// No superblock can be used.
    #[error(
        "all superblocks of the block store are damaged ({copies}); replace this disk and make its replicas anew from their peers"
    )]
    NoSuperblock {
        /// What is wrong with each.
        copies: String,
    },
    /// Another program wrote it.
    #[error(
        "the block store has format {found}, this program reads {VERSION}; use the release that wrote it, or a later one that converts it"
    )]
    Version {
        /// The format's version.
        found: u16,
    },
    /// Another program wrote it.
    #[error(
        "the block store uses features {features:#x} that this program does not know; use the release that wrote it"
    )]
    Features {
        /// Unknown ones, as bits.
        features: u64,
    },
    /// It is somebody else's.
    #[error("this is {found}, and not {expected}; check which disk is configured")]
    Foreign {
        /// Whose it is.
        found: Identity,
        /// Whose it was to be.
        expected: Identity,
    },
    /// The file is smaller than when it was formatted.
    #[error(
        "the block store's file has {bytes} bytes and was formatted with {formatted}; something cut it off"
    )]
    Small {
        /// Its size.
        bytes: u64,
        /// What it was.
        formatted: u64,
    },
    /// The newest superblocks are gone.
    #[error(
        "the newest superblock that can be read is of checkpoint {found}, but the log knows of {known}; replace this disk and make its replicas anew from their peers"
    )]
    Stale {
        /// The superblock's checkpoint.
        found: u64,
        /// A batch's.
        known: u64,
    },
    /// Batches are gone with what would name them.
    #[error(
        "the log cannot be read at batch {seq}: {why}; replace this disk and make its replicas anew from their peers"
    )]
    Log {
        /// Which.
        seq: u64,
        /// What is wrong.
        why: String,
    },
    /// The directory of volumes cannot be read.
    #[error(
        "the directory of volumes is damaged at page {page} of the map; replace this disk and make its replicas anew from their peers"
    )]
    Directory {
        /// Which page.
        page: u32,
    },
    /// Two things that have to agree do not.
    #[error(
        "the block store contradicts itself: {what}; replace this disk and make its replicas anew from their peers"
    )]
    Inconsistent {
        /// What.
        what: String,
    },
    /// The disk does not write.
    #[error("writing damaged blocks of the log anew, from their other copy: {why}")]
    Mend {
        /// What it said.
        why: String,
    },
    /// The disk does not sync.
    #[error("syncing the disk: {why}")]
    Sync {
        /// What it said.
        why: String,
    },
}

/// What was found when a disk was opened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recovered {
    /// The checkpoint that it began with.
    pub checkpoint: u64,
    /// Superblock copies that can be read, of four.
    pub superblocks: usize,
    /// Batches that were played again.
    pub batches: usize,
    /// Batches whose header was damaged, and known from the next one.
    pub damaged_headers: Vec<u64>,
    /// Entries whose payload is damaged, or was never written: those of the last batch may never have been
    /// told to be durable. A peer's copy has to be submitted, or, where it took effect already, its blocks
    /// be repaired.
    pub damaged: Vec<DamagedEntry>,
    /// The number of a last batch whose header cannot be read: it was never told to be durable, unless the
    /// disk damaged it since. One disk cannot tell, so who relies on this replica's word compares with its
    /// peers.
    pub torn: Option<u64>,
    /// Chunks of peers that were on their way and are not whole: they are not there, and are asked for
    /// again.
    pub not_taken: Vec<(VolumeId, u64)>,
    /// Volumes that cannot be used, and why.
    pub broken: Vec<(VolumeId, String)>,
}

/// An entry whose payload cannot be read, or is not what was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DamagedEntry {
    /// Whose log.
    pub volume: VolumeId,
    /// Which.
    pub index: u64,
    /// Its term.
    pub term: u64,
    /// Whether it took effect: then its blocks are to be repaired, else it is to be submitted again.
    pub applied: bool,
    /// The blocks that are damaged.
    pub lbas: Vec<u64>,
}
