//! A new disk.

use crate::format::layout::{BadLayout, Layout, SUPERBLOCK_COPIES};
use crate::format::superblock::Superblock;
use crate::format::wal::{Header, Link};
use crate::{Buffer, Identity};

/// What makes an empty store of a file of zeroes: first all of `log`, a sync, all of `superblocks`, a
/// sync. Until then it is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Formatted {
    /// What is where.
    pub layout: Layout,
    /// Places in bytes, and blocks.
    pub log: Vec<(u64, Buffer)>,
    /// The same of all superblocks.
    pub superblocks: Vec<(u64, Buffer)>,
}

impl Formatted {
    /// For a file of so many bytes, so many of them for the log. `store` is a random number, never used
    /// before: what an earlier store left in the file cannot be taken for this one's.
    pub fn new(
        identity: Identity,
        store: u128,
        bytes: u64,
        wal_bytes: u64,
    ) -> Result<Self, BadLayout> {
        let layout = Layout::of(bytes, wal_bytes)?;
        let header = Header {
            store,
            seq: 1,
            position: 0,
            blocks: 1,
            carries: true,
            checkpoint: 0,
            previous: Link::default(),
            before: Link::default(),
            records: Vec::new(),
            previous_records: Vec::new(),
        };
        let (pages, hash) = header.encode();
        let tail = Link {
            seq: 1,
            position: 0,
            blocks: 1,
            carries: true,
            hash,
        };
        let superblock = Superblock {
            identity,
            store,
            layout,
            sequence: 1,
            tail,
            as_of: tail.seq,
            tail_is_empty: true,
            directory: None,
        };
        let copies = (0..SUPERBLOCK_COPIES).map(|copy| {
            let page = superblock.encode(copy as u16);
            (Layout::superblock_at(copy), Buffer::from_pages(vec![page]))
        });
        Ok(Self {
            layout,
            log: vec![(layout.wal_at(0), Buffer::from_pages(pages))],
            superblocks: copies.collect(),
        })
    }
}
