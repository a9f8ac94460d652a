//! A disk with a volatile cache: what no sync covered may be there after a crash, or not, or in part.

use crate::rng::Rng;
use blocks::{BLOCK_BYTES, Buffer, Done, Io, Page};
use std::collections::BTreeMap;

/// Sectors that a disk writes whole.
const SECTOR_BYTES: usize = 512;

/// Each block with its versions: the first is durable, the others are in the cache, newest last.
#[derive(Debug, Clone, Default)]
pub(crate) struct Disk {
    blocks: BTreeMap<u64, Versions>,
    writes: u64,
    /// Blocks whose reads fail.
    pub(crate) unreadable: Vec<u64>,
}

#[derive(Debug, Clone)]
struct Versions {
    durable: Page,
    cached: Vec<(u64, Page)>,
}

impl Disk {
    pub(crate) fn write(&mut self, at: u64, buffers: &[Buffer]) {
        let pages = buffers.iter().flat_map(Buffer::pages);
        for (block, page) in (at / BLOCK_BYTES as u64..).zip(pages) {
            self.writes += 1;
            let number = self.writes;
            self.versions(block).cached.push((number, page.clone()));
            self.unreadable.retain(|bad| *bad != block);
        }
    }

    pub(crate) fn read(&self, at: u64, blocks: usize) -> Result<Buffer, String> {
        let first = at / BLOCK_BYTES as u64;
        let range = first..first + blocks as u64;
        if let Some(bad) = self.unreadable.iter().find(|bad| range.contains(bad)) {
            return Err(format!("EIO at block {bad}"));
        }
        Ok(Buffer::from_pages(
            range.map(|block| self.current(block)).collect(),
        ))
    }

    pub(crate) fn current(&self, block: u64) -> Page {
        let Some(versions) = self.blocks.get(&block) else {
            return Page::ZERO;
        };
        versions
            .cached
            .last()
            .map_or_else(|| versions.durable.clone(), |(_, page)| page.clone())
    }

    /// How far a sync that is issued now reaches.
    pub(crate) fn mark(&self) -> u64 {
        self.writes
    }

    /// Writes up to the mark are durable.
    pub(crate) fn sync(&mut self, mark: u64) {
        for versions in self.blocks.values_mut() {
            let reached = versions
                .cached
                .iter()
                .take_while(|(number, _)| *number <= mark)
                .count();
            if let Some((_, page)) = versions.cached.drain(..reached).next_back() {
                versions.durable = page;
            }
        }
    }

    /// The newest versions of these are durable, and nothing else by that.
    pub(crate) fn sync_blocks(&mut self, at: u64, buffers: &[Buffer]) {
        let blocks: usize = buffers.iter().map(Buffer::blocks).sum();
        let first = at / BLOCK_BYTES as u64;
        for (_, versions) in self.blocks.range_mut(first..first + blocks as u64) {
            if let Some((_, page)) = versions.cached.drain(..).next_back() {
                versions.durable = page;
            }
        }
    }

    /// A sync fails: what was to be written is durable, or is not and will not be, or is in the cache as
    /// it was.
    pub(crate) fn fail_sync(&mut self, rng: &mut Rng) {
        for versions in self.blocks.values_mut() {
            match rng.below(3) {
                0 => versions.cached.clear(),
                1 => {
                    if let Some((_, page)) = versions.cached.drain(..).next_back() {
                        versions.durable = page;
                    }
                }
                _ => {}
            }
        }
    }

    /// The blocks that a loss of power may change, and how many versions each may have.
    pub(crate) fn open_blocks(&self) -> Vec<(u64, usize)> {
        let open = self
            .blocks
            .iter()
            .filter(|(_, versions)| !versions.cached.is_empty());
        open.map(|(block, versions)| (*block, versions.cached.len() + 1))
            .collect()
    }

    /// Power is lost, and of each open block this version stays: 0 is the durable one.
    pub(crate) fn keep(&mut self, chosen: &BTreeMap<u64, usize>) {
        for (block, versions) in &mut self.blocks {
            let choice = chosen.get(block).copied().unwrap_or(0);
            if choice > 0 {
                versions.durable = versions.cached[choice - 1].1.clone();
            }
            versions.cached.clear();
        }
    }

    /// Power is lost: each open block has any of its versions, or sectors of several.
    pub(crate) fn lose_power(&mut self, rng: &mut Rng) {
        for versions in self.blocks.values_mut() {
            if versions.cached.is_empty() {
                continue;
            }
            let torn = rng.one_in(3);
            let whole = rng.below(versions.cached.len() as u64 + 1) as usize;
            let mut page = versions.version(whole).clone();
            if torn {
                let sectors = page.0.chunks_mut(SECTOR_BYTES).enumerate();
                for (number, sector) in sectors {
                    let from = rng.below(versions.cached.len() as u64 + 1) as usize;
                    let start = number * SECTOR_BYTES;
                    sector.copy_from_slice(&versions.version(from).0[start..start + SECTOR_BYTES]);
                }
            }
            versions.durable = page;
            versions.cached.clear();
        }
    }

    /// The disk damages a block by itself. Not its first bytes: a last header that is none any more is
    /// what one disk cannot tell from one that never was.
    pub(crate) fn corrupt(&mut self, block: u64, rng: &mut Rng) {
        let byte = 64 + rng.below(BLOCK_BYTES as u64 - 64) as usize;
        let bit = 1 << rng.below(8);
        let versions = self.versions(block);
        versions.durable.0[byte] ^= bit;
        for (_, page) in &mut versions.cached {
            page.0[byte] ^= bit;
        }
    }

    /// A write went to the wrong place.
    pub(crate) fn misdirect(&mut self, from: u64, to: u64) {
        let page = self.current(from);
        let versions = self.versions(to);
        versions.cached.clear();
        versions.durable = page;
    }

    /// Where this very block is.
    pub(crate) fn find(&self, page: &Page) -> Vec<u64> {
        self.written()
            .into_iter()
            .filter(|block| self.current(*block) == *page)
            .collect()
    }

    /// Blocks that were ever written.
    pub(crate) fn written(&self) -> Vec<u64> {
        self.blocks.keys().copied().collect()
    }

    fn versions(&mut self, block: u64) -> &mut Versions {
        self.blocks.entry(block).or_insert_with(|| Versions {
            durable: Page::ZERO,
            cached: Vec::new(),
        })
    }
}

impl Versions {
    fn version(&self, number: usize) -> &Page {
        match number.checked_sub(1) {
            None => &self.durable,
            Some(cached) => &self.cached[cached].1,
        }
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
