//! A disk with a volatile cache: what no sync covered may be there after a crash, or not, or in part.

use crate::rng::Rng;
use blocks::{BLOCK_BYTES, Buffer, Done, Io, Page};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Sectors that a disk writes whole.
const SECTOR_BYTES: usize = 512;

/// Each block with its versions: the first is durable, the others are in the cache, newest last. Contents are shared
/// with who wrote them and with clones of the disk.
#[derive(Debug, Clone, Default)]
pub(crate) struct Disk {
    blocks: BTreeMap<u64, Versions>,
    /// Those of which something is in the cache.
    open: BTreeSet<u64>,
    writes: u64,
    /// Blocks whose reads fail.
    pub(crate) unreadable: Vec<u64>,
}

#[derive(Debug, Clone, Default)]
struct Versions {
    /// Nothing: zeroes.
    durable: Option<Contents>,
    cached: Vec<(u64, Contents)>,
}

/// What a block has: one block of a buffer, or a page that the disk made itself.
#[derive(Debug, Clone)]
enum Contents {
    Written(Buffer),
    Made(Arc<Page>),
}

impl Contents {
    fn page(&self) -> &Page {
        match self {
            Self::Written(buffer) => &buffer.pages()[0],
            Self::Made(page) => page,
        }
    }
}

impl Disk {
    pub(crate) fn write(&mut self, at: u64, buffers: &[Buffer]) {
        let parts = |buffer: &Buffer| {
            let buffer = buffer.clone();
            (0..buffer.blocks()).map(move |block| buffer.part(block, 1))
        };
        let parts = buffers.iter().flat_map(parts);
        for (block, part) in (at / BLOCK_BYTES as u64..).zip(parts) {
            self.writes += 1;
            let version = (self.writes, Contents::Written(part));
            self.versions(block).cached.push(version);
            self.open.insert(block);
            self.unreadable.retain(|bad| *bad != block);
        }
    }

    pub(crate) fn read(&self, at: u64, blocks: usize) -> Result<Buffer, String> {
        let first = at / BLOCK_BYTES as u64;
        let range = first..first + blocks as u64;
        if let Some(bad) = self.unreadable.iter().find(|bad| range.contains(bad)) {
            return Err(format!("EIO at block {bad}"));
        }
        let mut read = Buffer::zeroed(blocks);
        let pages = read.pages_mut().expect("nobody has it yet");
        for (block, versions) in self.blocks.range(range) {
            pages[(block - first) as usize].0 = versions.newest().0;
        }
        Ok(read)
    }

    pub(crate) fn current(&self, block: u64) -> Page {
        let versions = self.blocks.get(&block);
        versions.map_or(Page::ZERO, |versions| versions.newest().clone())
    }

    /// How far a sync that is issued now reaches.
    pub(crate) fn mark(&self) -> u64 {
        self.writes
    }

    /// Writes up to the mark are durable.
    pub(crate) fn sync(&mut self, mark: u64) {
        self.each_open(|versions| {
            let reached = versions
                .cached
                .iter()
                .take_while(|(number, _)| *number <= mark)
                .count();
            if let Some((_, page)) = versions.cached.drain(..reached).next_back() {
                versions.durable = Some(page);
            }
        });
    }

    /// Does something to all blocks that have something in the cache, lowest first.
    fn each_open(&mut self, mut act: impl FnMut(&mut Versions)) {
        let blocks = &mut self.blocks;
        self.open.retain(|block| {
            let versions = blocks.get_mut(block).expect("it was written");
            act(versions);
            !versions.cached.is_empty()
        });
    }

    /// The newest versions of these are durable, and nothing else by that.
    pub(crate) fn sync_blocks(&mut self, at: u64, buffers: &[Buffer]) {
        let blocks: usize = buffers.iter().map(Buffer::blocks).sum();
        let first = at / BLOCK_BYTES as u64;
        for (block, versions) in self.blocks.range_mut(first..first + blocks as u64) {
            if let Some((_, page)) = versions.cached.drain(..).next_back() {
                versions.durable = Some(page);
            }
            self.open.remove(block);
        }
    }

    /// A sync fails: what was to be written is durable, or is not and will not be, or is in the cache as
    /// it was.
    pub(crate) fn fail_sync(&mut self, rng: &mut Rng) {
        self.each_open(|versions| match rng.below(3) {
            0 => versions.cached.clear(),
            1 => {
                if let Some((_, page)) = versions.cached.drain(..).next_back() {
                    versions.durable = Some(page);
                }
            }
            _ => {}
        });
    }

    /// The blocks that a loss of power may change, and how many versions each may have.
    pub(crate) fn open_blocks(&self) -> Vec<(u64, usize)> {
        let count = |block: &u64| (*block, self.blocks[block].cached.len() + 1);
        self.open.iter().map(count).collect()
    }

    /// Power is lost, and of each open block this version stays: 0 is the durable one.
    pub(crate) fn keep(&mut self, chosen: &BTreeMap<u64, usize>) {
        for block in std::mem::take(&mut self.open) {
            let versions = self.blocks.get_mut(&block).expect("it was written");
            let choice = chosen.get(&block).copied().unwrap_or(0);
            if choice > 0 {
                versions.durable = Some(versions.cached[choice - 1].1.clone());
            }
            versions.cached.clear();
        }
    }

    /// Power is lost: each open block has any of its versions, or sectors of several.
    pub(crate) fn lose_power(&mut self, rng: &mut Rng) {
        self.each_open(|versions| {
            let torn = rng.one_in(3);
            let whole = rng.below(versions.cached.len() as u64 + 1) as usize;
            let kept = if torn {
                let mut page = versions.version(whole).clone();
                let sectors = page.0.chunks_mut(SECTOR_BYTES).enumerate();
                for (number, sector) in sectors {
                    let from = rng.below(versions.cached.len() as u64 + 1) as usize;
                    let start = number * SECTOR_BYTES;
                    sector.copy_from_slice(&versions.version(from).0[start..start + SECTOR_BYTES]);
                }
                Some(Contents::Made(Arc::new(page)))
            } else {
                let cached = whole.checked_sub(1);
                cached.map(|cached| versions.cached[cached].1.clone())
            };
            versions.durable = kept.or(versions.durable.take());
            versions.cached.clear();
        });
    }

    /// The disk damages a block by itself. Not its first bytes: a last header that is none any more is
    /// what one disk cannot tell from one that never was.
    pub(crate) fn corrupt(&mut self, block: u64, rng: &mut Rng) {
        let byte = 64 + rng.below(BLOCK_BYTES as u64 - 64) as usize;
        let bit = 1 << rng.below(8);
        let versions = self.versions(block);
        let flip = |page: &Page| {
            let mut page = page.clone();
            page.0[byte] ^= bit;
            Contents::Made(Arc::new(page))
        };
        versions.durable = Some(flip(versions.version(0)));
        for (_, contents) in &mut versions.cached {
            *contents = flip(contents.page());
        }
    }

    /// A write went to the wrong place.
    pub(crate) fn misdirect(&mut self, from: u64, to: u64) {
        let page = self.current(from);
        let versions = self.versions(to);
        versions.cached.clear();
        versions.durable = Some(Contents::Made(Arc::new(page)));
        self.open.remove(&to);
    }

    /// Where this very block is.
    pub(crate) fn find(&self, page: &Page) -> Vec<u64> {
        self.written()
            .into_iter()
            .filter(|block| self.blocks[block].newest() == page)
            .collect()
    }

    /// Blocks that were ever written.
    pub(crate) fn written(&self) -> Vec<u64> {
        self.blocks.keys().copied().collect()
    }

    fn versions(&mut self, block: u64) -> &mut Versions {
        self.blocks.entry(block).or_default()
    }
}

impl Versions {
    /// Version 0 is the durable one, the others are those in the cache.
    fn version(&self, number: usize) -> &Page {
        static ZERO: Page = Page::ZERO;
        let contents = match number.checked_sub(1) {
            None => self.durable.as_ref(),
            Some(cached) => Some(&self.cached[cached].1),
        };
        contents.map_or(&ZERO, Contents::page)
    }

    fn newest(&self) -> &Page {
        self.version(self.cached.len())
    }
}

/// Carries out an IO; what a sync reaches is what was written up to the mark.
pub(crate) fn carry_out(disk: &mut Disk, io: &Io, mark: u64) -> Done {
    match io {
        Io::Read { at, blocks } => match disk.read(*at, *blocks) {
            Ok(data) => Done::Read(data),
            Err(why) => Done::Failed(why),
        },
        Io::Write { at, buffers } => {
            disk.write(*at, buffers);
            Done::Ok
        }
        Io::WriteSync { at, buffers } => {
            disk.write(*at, buffers);
            disk.sync_blocks(*at, buffers);
            Done::Ok
        }
        Io::Sync => {
            disk.sync(mark);
            Done::Ok
        }
    }
}
