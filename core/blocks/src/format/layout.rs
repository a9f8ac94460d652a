//! What is where in the file.

use super::codec::{Put, Take};
use crate::{BLOCK_BYTES, EXTENT_BLOCKS};

/// Blocks from one superblock copy to the next: 1 MiB, so that no one scratch takes two of them.
pub const SUPERBLOCK_STRIDE: u64 = 256;
/// Copies of the superblock. Checkpoints write two of them in turn, so two old ones are whole
/// whatever becomes of the new ones.
pub const SUPERBLOCK_COPIES: u64 = 4;
/// Fewest blocks of a log, 1 MiB: an entry of the most bytes and the reserve for a checkpoint have to fit.
pub const FEWEST_WAL_BLOCKS: u32 = 256;
/// Most blocks of a log, 64 GiB.
pub const MOST_WAL_BLOCKS: u32 = 1 << 24;
const FEWEST_MAP_PAGES: u32 = 64;
/// Extents per page of the map: a map in which each page maps but a quarter of what it could, and all
/// of it twice, as a checkpoint may write every page to a new place.
const EXTENTS_PER_MAP_PAGE: u64 = 4;

/// `| superblock x4, 1 MiB apart | log | extents of 64 KiB | pages of the map |`, all of 4 KiB blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Blocks of the log.
    pub wal_blocks: u32,
    /// Extents.
    pub extents: u32,
    /// Pages of the map.
    pub map_pages: u32,
}

/// Why there is no layout for a size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadLayout {
    /// The log is too small or too large.
    #[error(
        "a log of {blocks} blocks: it has to have {FEWEST_WAL_BLOCKS} to {MOST_WAL_BLOCKS} of 4 KiB"
    )]
    Wal {
        /// How many it was to have.
        blocks: u64,
    },
    /// No room for extents.
    #[error(
        "{bytes} bytes leave no room for data beside a log of {wal_blocks} blocks; take a larger file or a smaller log"
    )]
    Small {
        /// Of the file.
        bytes: u64,
        /// Of the log.
        wal_blocks: u32,
    },
}

impl Layout {
    /// For a file of so many bytes.
    pub fn of(bytes: u64, wal_bytes: u64) -> Result<Self, BadLayout> {
        let blocks = wal_bytes / BLOCK_BYTES as u64;
        let wal_blocks = u32::try_from(blocks)
            .ok()
            .filter(|blocks| (FEWEST_WAL_BLOCKS..=MOST_WAL_BLOCKS).contains(blocks))
            .ok_or(BadLayout::Wal { blocks })?;
        let small = BadLayout::Small { bytes, wal_blocks };
        let fixed = SUPERBLOCK_COPIES * SUPERBLOCK_STRIDE
            + u64::from(wal_blocks)
            + u64::from(FEWEST_MAP_PAGES);
        let rest = (bytes / BLOCK_BYTES as u64)
            .checked_sub(fixed)
            .ok_or(small.clone())?;
        // 16 blocks an extent, and a page of the map for each four.
        let extents =
            rest * EXTENTS_PER_MAP_PAGE / (u64::from(EXTENT_BLOCKS) * EXTENTS_PER_MAP_PAGE + 1);
        let extents = u32::try_from(extents).unwrap_or(u32::MAX - 1);
        if extents == 0 {
            return Err(small);
        }
        let map_pages = extents / EXTENTS_PER_MAP_PAGE as u32 + FEWEST_MAP_PAGES;
        Ok(Self {
            wal_blocks,
            extents,
            map_pages,
        })
    }

    /// Where a superblock copy is, in bytes.
    pub const fn superblock_at(copy: u64) -> u64 {
        copy * SUPERBLOCK_STRIDE * BLOCK_BYTES as u64
    }

    /// Where a block of the log is, in bytes.
    pub const fn wal_at(&self, block: u32) -> u64 {
        (SUPERBLOCK_COPIES * SUPERBLOCK_STRIDE + block as u64) * BLOCK_BYTES as u64
    }

    /// Where a block of an extent is, in bytes.
    pub const fn extent_at(&self, extent: u32, block: u32) -> u64 {
        self.wal_at(self.wal_blocks)
            + (extent as u64 * EXTENT_BLOCKS as u64 + block as u64) * BLOCK_BYTES as u64
    }

    /// Where a page of the map is, in bytes.
    pub const fn page_at(&self, page: u32) -> u64 {
        self.extent_at(self.extents, 0) + page as u64 * BLOCK_BYTES as u64
    }

    /// How large the file is.
    pub const fn bytes(&self) -> u64 {
        self.page_at(self.map_pages)
    }

    pub(crate) fn put(&self, put: &mut Put) {
        put.u32(self.wal_blocks)
            .u32(self.extents)
            .u32(self.map_pages);
    }

    pub(crate) fn take(take: &mut Take<'_>) -> Option<Self> {
        let layout = Self {
            wal_blocks: take.u32()?,
            extents: take.u32()?,
            map_pages: take.u32()?,
        };
        let sound = (FEWEST_WAL_BLOCKS..=MOST_WAL_BLOCKS).contains(&layout.wal_blocks)
            && layout.extents > 0
            && layout.extents < u32::MAX
            && layout.map_pages < u32::MAX;
        sound.then_some(layout)
    }
}
