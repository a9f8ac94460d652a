//! Pages of the map: what is written to a new place at each checkpoint that changed it.
//!
//! ```text
//! | magic 4 | kind 2 | version 2 | store 16 | volume 16 | page 4 | level 4 | number 8 | checkpoint 8 |
//! leaf:      | last change of each 1 MiB chunk 2 x 8 | 32 x extent |
//!   extent:  | extent + 1 4 | 0 4 | birth 8 | valid 2 | 0 14 | crc32c of each block 16 x 4 |
//! node:      | 128 x page 8 |
//! volume:    | blocks 8 | term 8 | vote 8 | commit 8 | index 8 | its term 8 | epoch 8 | digest 16 |
//!            | levels 4 | root 8 | config's index 8 | length 4 | bytes |
//! directory: | next page 8 | number 4 | volume 16 and its page 8, of each |
//! page:      | page + 1 4 | crc32c 4 |
//! ```
//!
//! Who refers to a page has its CRC, so a page needs none of its own. The 14 bytes of an extent are for
//! a parent extent (snapshots and clones: blocks that are not valid here are read there).

use super::codec::{Put, Take};
use super::record::HardState;
use super::{PageRef, VERSION};
use crate::{BLOCK_BYTES, Digest, EXTENT_BLOCKS, MOST_CONFIG_BYTES, Page, VolumeId};
use std::sync::Arc;

const MAGIC: [u8; 4] = *b"vpcM";
/// Extents that a leaf maps: 2 MiB.
pub const LEAF_EXTENTS: usize = 32;
/// Chunks that a leaf maps.
pub const LEAF_CHUNKS: usize = 2;
/// Pages that a node refers to.
pub const NODE_PAGES: usize = 128;
/// Volumes that a page of the directory refers to.
pub const DIRECTORY_PAGES: usize = 160;

/// What is on a page, and for what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageHead {
    /// Which format of the disk.
    pub store: u128,
    /// Whose map; 0 for the directory.
    pub volume: VolumeId,
    /// Where the page is.
    pub page: u32,
    /// 0 for a leaf, 1 for the nodes above, and so on.
    pub level: u32,
    /// Which one of its level.
    pub number: u64,
    /// The checkpoint that wrote it.
    pub checkpoint: u64,
}

/// Kinds of pages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PageBody {
    /// Extents of 2 MiB of a volume.
    Leaf(Arc<Leaf>),
    /// Pages one level below.
    Node(Vec<Option<PageRef>>),
    /// A volume's state at the checkpoint.
    Volume(VolumeState),
    /// The volumes.
    Directory {
        /// More of them.
        next: Option<PageRef>,
        /// A page for each.
        volumes: Vec<(VolumeId, PageRef)>,
    },
}

/// A leaf of the map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaf {
    /// Index of the last entry that changed a block of the chunk.
    pub changed: [u64; LEAF_CHUNKS],
    /// The extents.
    pub extents: [Extent; LEAF_EXTENTS],
}

impl Leaf {
    pub(crate) const EMPTY: Self = Self {
        changed: [0; LEAF_CHUNKS],
        extents: [Extent::EMPTY; LEAF_EXTENTS],
    };
}

/// Where 64 KiB of a volume are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Which extent of the disk, if any.
    pub at: Option<u32>,
    /// Index of the entry that took it.
    pub birth: u64,
    /// Blocks that were written; the others read as zeroes.
    pub valid: u16,
    /// Of each block that is valid.
    pub crcs: [u32; EXTENT_BLOCKS as usize],
}

impl Extent {
    pub(crate) const EMPTY: Self = Self {
        at: None,
        birth: 0,
        valid: 0,
        crcs: [0; EXTENT_BLOCKS as usize],
    };
}

/// A volume as a checkpoint has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeState {
    /// Its size.
    pub blocks: u64,
    /// What Raft has to remember.
    pub hard: HardState,
    /// The last entry that is in the map.
    pub index: u64,
    /// That entry's term.
    pub term: u64,
    /// The attachment that may write.
    pub epoch: u64,
    /// Of what the map has.
    pub digest: Digest,
    /// Levels of nodes above the leaves.
    pub levels: u32,
    /// The uppermost node.
    pub root: Option<PageRef>,
    /// The entry that brought the configuration.
    pub config_index: u64,
    /// The group's members, in the consensus's own form.
    pub config: Arc<[u8]>,
}

impl PageBody {
    const fn kind(&self) -> u16 {
        match self {
            Self::Leaf(_) => 1,
            Self::Node(_) => 2,
            Self::Volume(_) => 3,
            Self::Directory { .. } => 4,
        }
    }

    pub(crate) fn encode(&self, head: &PageHead) -> (Page, u32) {
        let mut put = Put::default();
        put.bytes(&MAGIC)
            .u16(self.kind())
            .u16(VERSION)
            .u128(head.store);
        put.u128(head.volume.get()).u32(head.page).u32(head.level);
        put.u64(head.number).u64(head.checkpoint);
        match self {
            Self::Leaf(leaf) => put_leaf(leaf, &mut put),
            Self::Node(pages) => pages.iter().for_each(|page| PageRef::put(*page, &mut put)),
            Self::Volume(state) => put_volume(state, &mut put),
            Self::Directory { next, volumes } => {
                PageRef::put(*next, &mut put);
                put.u32(u32::try_from(volumes.len()).expect("a page's worth"));
                for (volume, page) in volumes {
                    put.u128(volume.get());
                    PageRef::put(Some(*page), &mut put);
                }
            }
        }
        assert!(
            put.0.len() <= BLOCK_BYTES,
            "a page of {} bytes",
            put.0.len()
        );
        let mut page = Page::ZERO;
        page.0[..put.0.len()].copy_from_slice(&put.0);
        let crc = crc32c::crc32c(&page.0);
        (page, crc)
    }

    /// Reads a page. Whether it is the one that was meant is for the caller to see from the head.
    pub fn decode(page: &Page) -> Option<(PageHead, Self)> {
        let mut take = Take(&page.0);
        if take.bytes(4)? != MAGIC {
            return None;
        }
        let kind = take.u16()?;
        if take.u16()? != VERSION {
            return None;
        }
        let head = PageHead {
            store: take.u128()?,
            volume: VolumeId::new(take.u128()?),
            page: take.u32()?,
            level: take.u32()?,
            number: take.u64()?,
            checkpoint: take.u64()?,
        };
        let body = match kind {
            1 => Self::Leaf(Arc::new(take_leaf(&mut take)?)),
            2 => Self::Node(
                (0..NODE_PAGES)
                    .map(|_| PageRef::take(&mut take))
                    .collect::<Option<_>>()?,
            ),
            3 => Self::Volume(take_volume(&mut take)?),
            4 => {
                let next = PageRef::take(&mut take)?;
                let number = take.u32()? as usize;
                if number > DIRECTORY_PAGES {
                    return None;
                }
                let mut volumes = Vec::new();
                for _ in 0..number {
                    volumes.push((VolumeId::new(take.u128()?), PageRef::take(&mut take)??));
                }
                Self::Directory { next, volumes }
            }
            _ => return None,
        };
        Some((head, body))
    }
}

fn put_leaf(leaf: &Leaf, put: &mut Put) {
    leaf.changed.iter().for_each(|index| _ = put.u64(*index));
    for extent in &leaf.extents {
        put.u32(extent.at.map_or(0, |at| at + 1)).u32(0);
        put.u64(extent.birth).u16(extent.valid).bytes(&[0; 14]);
        extent.crcs.iter().for_each(|crc| _ = put.u32(*crc));
    }
}

fn take_leaf(take: &mut Take<'_>) -> Option<Leaf> {
    let mut leaf = Leaf::EMPTY;
    for index in &mut leaf.changed {
        *index = take.u64()?;
    }
    for extent in &mut leaf.extents {
        extent.at = take.u32()?.checked_sub(1);
        take.u32()?;
        extent.birth = take.u64()?;
        extent.valid = take.u16()?;
        take.bytes(14)?;
        for crc in &mut extent.crcs {
            *crc = take.u32()?;
        }
        if extent.at.is_none() && extent.valid != 0 {
            return None;
        }
    }
    Some(leaf)
}

fn put_volume(state: &VolumeState, put: &mut Put) {
    let hard = &state.hard;
    put.u64(state.blocks)
        .u64(hard.term)
        .u64(hard.vote)
        .u64(hard.commit);
    put.u64(state.index)
        .u64(state.term)
        .u64(state.epoch)
        .u128(state.digest.0)
        .u32(state.levels);
    PageRef::put(state.root, put);
    put.u64(state.config_index);
    put.u32(u32::try_from(state.config.len()).expect("bounded when it was taken in"));
    put.bytes(&state.config);
}

fn take_volume(take: &mut Take<'_>) -> Option<VolumeState> {
    let blocks = take.u64()?;
    let hard = HardState {
        term: take.u64()?,
        vote: take.u64()?,
        commit: take.u64()?,
    };
    let (index, term, epoch) = (take.u64()?, take.u64()?, take.u64()?);
    let digest = Digest(take.u128()?);
    let levels = take.u32()?;
    let root = PageRef::take(take)?;
    let config_index = take.u64()?;
    let len = take.u32()? as usize;
    if len > MOST_CONFIG_BYTES || !(1..=5).contains(&levels) {
        return None;
    }
    Some(VolumeState {
        blocks,
        hard,
        index,
        term,
        epoch,
        digest,
        levels,
        root,
        config_index,
        config: take.bytes(len)?.into(),
    })
}
