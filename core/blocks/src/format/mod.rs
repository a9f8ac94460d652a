//! The format on disk. docs/storage/format.md has the whole picture, and the order of syncs.

pub(crate) mod codec;
pub mod layout;
pub mod pages;
pub mod record;
pub mod superblock;
pub mod wal;

use codec::{Put, Take};

/// The format that this program writes and reads. 1: the first.
pub const VERSION: u16 = 1;

/// A page of the map, and what has to be in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageRef {
    /// Which page of the map area.
    pub page: u32,
    /// CRC32C of its 4 KiB. A page that an earlier checkpoint left there does not pass for it.
    pub crc: u32,
}

impl PageRef {
    /// `| page + 1, or 0 for none 4 | crc32c 4 |`
    pub(crate) fn put(this: Option<Self>, put: &mut Put) {
        match this {
            Some(this) => put.u32(this.page + 1).u32(this.crc),
            None => put.u32(0).u32(0),
        };
    }

    /// Nothing where there are too few bytes, `Some(None)` for no page.
    pub(crate) fn take(take: &mut Take<'_>) -> Option<Option<Self>> {
        let (page, crc) = (take.u32()?, take.u32()?);
        Some(page.checked_sub(1).map(|page| Self { page, crc }))
    }
}
