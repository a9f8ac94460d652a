//! Where a volume's blocks are: leaves in memory, nodes above them made at checkpoints.

use crate::format::PageRef;
use crate::format::pages::{
    Extent, LEAF_CHUNKS, LEAF_EXTENTS, Leaf, NODE_PAGES, PageBody, PageHead,
};
use crate::format::record::ChunkRecord;
use crate::space::{Need, Space};
use crate::{CHUNK_BLOCKS, Digest, EXTENT_BLOCKS, Page, VolumeId};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Range, RangeInclusive};
use std::sync::Arc;

const LEAF_BLOCKS: u64 = LEAF_EXTENTS as u64 * EXTENT_BLOCKS as u64;

/// The map of one volume.
#[derive(Debug)]
pub(crate) struct Map {
    leaves: BTreeMap<u64, Slot>,
    /// By level and number. None: there is to be one, but no checkpoint wrote it yet.
    nodes: BTreeMap<(u32, u64), Option<PageRef>>,
    dirty: BTreeSet<u64>,
    levels: u32,
    /// Index of the last entry that changed any chunk.
    newest: u64,
}

#[derive(Debug)]
struct Slot {
    leaf: Arc<Leaf>,
    page: Option<PageRef>,
}

/// Where a block is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) extent: u32,
    pub(crate) block: u32,
    pub(crate) crc: u32,
}

/// Pages for a checkpoint.
pub(crate) struct PageWriter<'a> {
    pub(crate) space: &'a mut Space,
    pub(crate) store: u128,
    pub(crate) checkpoint: u64,
    pub(crate) written: Vec<(u32, Page)>,
    /// There was none for a page. A disk that we wrote has half of them for copies; one that somebody made up need not.
    pub(crate) full: bool,
}

impl PageWriter<'_> {
    /// Puts a page to a place that no checkpoint refers to. Where there is none, the checkpoint is not to be written.
    pub(crate) fn write(
        &mut self,
        volume: VolumeId,
        level: u32,
        number: u64,
        body: &PageBody,
    ) -> PageRef {
        let Some(page) = self.space.pages.take() else {
            self.full = true;
            return PageRef { page: 0, crc: 0 };
        };
        let head = PageHead {
            store: self.store,
            volume,
            page,
            level,
            number,
            checkpoint: self.checkpoint,
        };
        let (bytes, crc) = body.encode(&head);
        self.written.push((page, bytes));
        PageRef { page, crc }
    }
}

impl Map {
    pub(crate) fn new(blocks: u64) -> Self {
        Self {
            leaves: BTreeMap::new(),
            nodes: BTreeMap::new(),
            dirty: BTreeSet::new(),
            levels: levels(blocks),
            newest: 0,
        }
    }

    pub(crate) const fn levels(&self) -> u32 {
        self.levels
    }

    /// As many levels as a checkpoint has; false if these are too few.
    pub(crate) fn restore_levels(&mut self, levels: u32) -> bool {
        let enough = levels >= self.levels;
        self.levels = self.levels.max(levels);
        enough
    }

    /// A leaf that a checkpoint has.
    pub(crate) fn restore_leaf(&mut self, number: u64, leaf: Arc<Leaf>, page: PageRef) {
        let page = Some(page);
        self.newest = leaf.changed.iter().copied().fold(self.newest, u64::max);
        self.leaves.insert(number, Slot { leaf, page });
    }

    /// A node that a checkpoint has.
    pub(crate) fn restore_node(&mut self, level: u32, number: u64, page: PageRef) {
        self.nodes.insert((level, number), Some(page));
    }

    pub(crate) fn grow(&mut self, blocks: u64, space: &mut Space) {
        self.levels = levels(blocks).max(self.levels);
        // Any one leaf's path makes all nodes that are new.
        if let Some(first) = self.leaves.keys().next().copied() {
            self.dirty.insert(first);
            self.add_nodes(first, space);
        }
    }

    pub(crate) fn place(&self, lba: u64) -> Option<Place> {
        let extent = self.extent(lba / u64::from(EXTENT_BLOCKS))?;
        let block = (lba % u64::from(EXTENT_BLOCKS)) as u32;
        let valid = extent.valid & 1 << block != 0;
        valid.then(|| Place {
            extent: extent.at.expect("valid blocks are somewhere"),
            block,
            crc: extent.crcs[block as usize],
        })
    }

    pub(crate) fn extent(&self, number: u64) -> Option<&Extent> {
        let slot = self.leaves.get(&(number / LEAF_EXTENTS as u64))?;
        Some(&slot.leaf.extents[(number % LEAF_EXTENTS as u64) as usize])
    }

    /// Blocks of an extent that are there.
    pub(crate) fn valid(&self, number: u64) -> u16 {
        self.extent(number).map_or(0, |extent| extent.valid)
    }

    /// Whether it has a page, by level and number.
    pub(crate) fn has_page(&self, page: (u32, u64)) -> bool {
        match page {
            (0, leaf) => self.leaves.contains_key(&leaf),
            node => self.nodes.contains_key(&node),
        }
    }

    /// Those of these extents that are there.
    pub(crate) fn extents_in(
        &self,
        numbers: RangeInclusive<u64>,
    ) -> impl Iterator<Item = u64> + '_ {
        let (first, last) = numbers.into_inner();
        let all = LEAF_EXTENTS as u64;
        let leaves = self.leaves.range(first / all..=last / all);
        let extents = leaves.flat_map(move |(leaf, slot)| (leaf * all..).zip(&slot.leaf.extents));
        let there = move |(number, extent): (u64, &Extent)| {
            (extent.valid != 0 && (first..=last).contains(&number)).then_some(number)
        };
        extents.filter_map(there)
    }

    /// What a write there can take. `emptied`: the extents may be gone by then.
    pub(crate) fn need(&self, lba: u64, blocks: u64, emptied: bool) -> Need {
        let mut need = Need::default();
        let last = lba + blocks - 1;
        for number in lba / u64::from(EXTENT_BLOCKS)..=last / u64::from(EXTENT_BLOCKS) {
            let taken = self
                .extent(number)
                .is_some_and(|extent| extent.at.is_some());
            if emptied || !taken {
                need.extents += 1;
            }
        }
        for number in lba / LEAF_BLOCKS..=last / LEAF_BLOCKS {
            if !self.leaves.contains_key(&number) {
                need.pages += 1 + self.levels;
            }
        }
        need
    }

    /// A block has new contents, to be written to where this says.
    pub(crate) fn write(
        &mut self,
        lba: u64,
        crc: u32,
        index: u64,
        space: &mut Space,
        digest: &mut Digest,
    ) {
        let number = lba / u64::from(EXTENT_BLOCKS);
        let block = lba % u64::from(EXTENT_BLOCKS);
        let extent = self.change(number, index, space);
        if extent.at.is_none() {
            let at = space
                .extents
                .take()
                .expect("promised when the entry was accepted");
            (extent.at, extent.birth) = (Some(at), index);
        }
        let held = &mut extent.crcs[block as usize];
        if extent.valid & 1 << block != 0 {
            digest.remove(lba, *held);
        }
        *held = crc;
        extent.valid |= 1 << block;
        digest.add(lba, crc);
    }

    /// A whole extent is replaced by another one.
    pub(crate) fn replace(
        &mut self,
        number: u64,
        at: u32,
        crcs: &[u32],
        index: u64,
        space: &mut Space,
        digest: &mut Digest,
    ) {
        let first = number * u64::from(EXTENT_BLOCKS);
        let extent = self.change(number, index, space);
        forget(extent, first, u16::MAX, digest);
        if let Some(old) = extent.at.replace(at) {
            space.free_extent(old);
        }
        (extent.birth, extent.valid) = (index, u16::MAX);
        extent.crcs.copy_from_slice(crcs);
        for (lba, crc) in (first..).zip(crcs) {
            digest.add(lba, *crc);
        }
    }

    /// Blocks read as zeroes from now on. Where there is nothing, nothing is made.
    pub(crate) fn clear(
        &mut self,
        lba: u64,
        blocks: u64,
        index: u64,
        space: &mut Space,
        digest: &mut Digest,
    ) {
        let end = lba + blocks;
        let leaves = lba / LEAF_BLOCKS..end.div_ceil(LEAF_BLOCKS);
        let known: Vec<u64> = self
            .leaves
            .range(leaves)
            .map(|(number, _)| *number)
            .collect();
        for leaf in known {
            let chunks = leaf * LEAF_CHUNKS as u64..;
            let newer: Vec<bool> = chunks
                .take(LEAF_CHUNKS)
                .map(|chunk| self.changed(chunk) >= index)
                .collect();
            for number in (leaf * LEAF_EXTENTS as u64..).take(LEAF_EXTENTS) {
                let first = number * u64::from(EXTENT_BLOCKS);
                let mask = mask(lba.saturating_sub(first), end.saturating_sub(first));
                let held = self.extent(number).expect("in a leaf that is there");
                let chunk = first / u64::from(CHUNK_BLOCKS) - leaf * LEAF_CHUNKS as u64;
                if held.at.is_none() || mask == 0 || newer[chunk as usize] {
                    continue;
                }
                let extent = self.change(number, index, space);
                forget(extent, first, mask, digest);
                if extent.valid == 0
                    && let Some(old) = extent.at.take()
                {
                    space.free_extent(old);
                }
            }
        }
    }

    /// The volume is no more.
    pub(crate) fn free_all(&mut self, space: &mut Space) {
        let leaves = std::mem::take(&mut self.leaves);
        let nodes = std::mem::take(&mut self.nodes);
        space.pages_needed -= (leaves.len() + nodes.len()) as u32;
        for slot in leaves.values() {
            slot.leaf
                .extents
                .iter()
                .filter_map(|e| e.at)
                .for_each(|at| space.free_extent(at));
        }
        let pages = leaves.values().filter_map(|slot| slot.page);
        pages
            .chain(nodes.values().copied().flatten())
            .for_each(|page| space.free_page(page.page));
    }

    /// Index of the last entry that changed any chunk: beyond the last that took effect while chunks of
    /// a peer are in it and the log is not as far.
    pub(crate) const fn newest(&self) -> u64 {
        self.newest
    }

    /// Index of the last entry that changed a 1 MiB chunk.
    pub(crate) fn changed(&self, chunk: u64) -> u64 {
        let slot = self.leaves.get(&(chunk / LEAF_CHUNKS as u64));
        slot.map_or(0, |slot| {
            slot.leaf.changed[(chunk % LEAF_CHUNKS as u64) as usize]
        })
    }

    /// 1 MiB chunks from this one on that entries after this index changed, each with the last of these.
    pub(crate) fn changes(&self, since: u64, from: u64) -> impl Iterator<Item = (u64, u64)> {
        let leaves = self.leaves.range(from / LEAF_CHUNKS as u64..);
        let chunks = leaves
            .flat_map(|(number, slot)| (number * LEAF_CHUNKS as u64..).zip(slot.leaf.changed));
        chunks.filter(move |(chunk, changed)| *changed > since && *chunk >= from)
    }

    /// What a chunk holds, in short.
    pub(crate) fn chunk_digest(&self, chunk: u64) -> Digest {
        let mut digest = Digest::default();
        for number in chunk_extents(chunk) {
            let Some(extent) = self.extent(number) else {
                continue;
            };
            let lbas = number * u64::from(EXTENT_BLOCKS)..;
            for (block, (lba, crc)) in lbas.zip(extent.crcs).enumerate() {
                if extent.valid & 1 << block != 0 {
                    digest.add(lba, crc);
                }
            }
        }
        digest
    }

    /// What a chunk of a peer may take.
    pub(crate) fn chunk_need(&self, chunk: u64, extents: usize) -> Need {
        let there = self.leaves.contains_key(&(chunk / LEAF_CHUNKS as u64));
        Need {
            extents: extents as u32,
            pages: if there { 0 } else { 1 + self.levels },
        }
    }

    /// A chunk is as a peer has it, in extents of its own.
    pub(crate) fn install(&mut self, record: &ChunkRecord, space: &mut Space, digest: &mut Digest) {
        let (chunk, changed) = (record.number, record.changed);
        for number in chunk_extents(chunk) {
            let first = number * u64::from(EXTENT_BLOCKS);
            let extent = self.change(number, changed, space);
            forget(extent, first, u16::MAX, digest);
            if let Some(old) = extent.at.take() {
                space.free_extent(old);
            }
        }
        for come in &record.extents {
            let number = chunk_extents(chunk).start + u64::from(come.number);
            let first = number * u64::from(EXTENT_BLOCKS);
            let extent = self.change(number, changed, space);
            (extent.at, extent.birth, extent.valid) = (Some(come.at), changed, come.valid);
            for (block, crc) in blocks_of(come.valid).zip(&come.crcs) {
                extent.crcs[block as usize] = *crc;
                digest.add(first + block, *crc);
            }
        }
    }

    /// Pages that it has: leaves and nodes.
    pub(crate) fn pages(&self) -> u32 {
        (self.leaves.len() + self.nodes.len()) as u32
    }

    pub(crate) fn is_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// Writes what changed to new places; gives the root.
    pub(crate) fn write_pages(
        &mut self,
        volume: VolumeId,
        writer: &mut PageWriter<'_>,
    ) -> Option<PageRef> {
        let mut above = BTreeSet::new();
        for number in std::mem::take(&mut self.dirty) {
            let slot = self
                .leaves
                .get_mut(&number)
                .expect("dirty leaves are there");
            let page = writer.write(volume, 0, number, &PageBody::Leaf(Arc::clone(&slot.leaf)));
            if let Some(old) = slot.page.replace(page) {
                writer.space.free_page(old.page);
            }
            above.insert(number / NODE_PAGES as u64);
        }
        for level in 1..=self.levels {
            for number in std::mem::take(&mut above) {
                let node = PageBody::Node(self.children(level, number));
                let page = writer.write(volume, level, number, &node);
                if let Some(old) = self.nodes.insert((level, number), Some(page)).flatten() {
                    writer.space.free_page(old.page);
                }
                above.insert(number / NODE_PAGES as u64);
            }
        }
        self.nodes.get(&(self.levels, 0)).copied().flatten()
    }

    fn children(&self, level: u32, number: u64) -> Vec<Option<PageRef>> {
        let children = (number * NODE_PAGES as u64..).take(NODE_PAGES);
        let page = |child| match level {
            1 => self.leaves.get(&child).and_then(|slot| slot.page),
            _ => self.nodes.get(&(level - 1, child)).copied().flatten(),
        };
        children.map(page).collect()
    }

    fn change(&mut self, number: u64, index: u64, space: &mut Space) -> &mut Extent {
        let leaf = number / LEAF_EXTENTS as u64;
        if !self.leaves.contains_key(&leaf) {
            space.pages_needed += 1;
            self.add_nodes(leaf, space);
        }
        self.dirty.insert(leaf);
        let slot = self.leaves.entry(leaf).or_insert_with(|| Slot {
            leaf: Arc::new(Leaf::EMPTY),
            page: None,
        });
        let leaf = Arc::make_mut(&mut slot.leaf);
        let within = (number % LEAF_EXTENTS as u64) as usize;
        let chunk = within * EXTENT_BLOCKS as usize / CHUNK_BLOCKS as usize;
        leaf.changed[chunk] = leaf.changed[chunk].max(index);
        self.newest = self.newest.max(index);
        &mut leaf.extents[within]
    }

    fn add_nodes(&mut self, leaf: u64, space: &mut Space) {
        let mut number = leaf;
        for level in 1..=self.levels {
            number /= NODE_PAGES as u64;
            self.nodes.entry((level, number)).or_insert_with(|| {
                space.pages_needed += 1;
                None
            });
        }
    }
}

/// The extents of a chunk, by number in the volume.
pub(crate) fn chunk_extents(chunk: u64) -> Range<u64> {
    let extents = u64::from(CHUNK_BLOCKS / EXTENT_BLOCKS);
    chunk * extents..(chunk + 1) * extents
}

/// The blocks of an extent that are valid.
pub(crate) fn blocks_of(valid: u16) -> impl Iterator<Item = u64> {
    (0..u64::from(EXTENT_BLOCKS)).filter(move |block| valid & 1 << block != 0)
}

/// Pages on the way to these blocks, by level and number.
pub(crate) fn path_of(blocks: &Range<u64>, levels: u32) -> impl Iterator<Item = (u32, u64)> {
    let leaves = blocks.start / LEAF_BLOCKS..=(blocks.end - 1) / LEAF_BLOCKS;
    leaves.flat_map(move |leaf| {
        let above = |&(level, number): &(u32, u64)| Some((level + 1, number / NODE_PAGES as u64));
        std::iter::successors(Some((0, leaf)), above).take(levels as usize + 1)
    })
}

/// Levels of nodes that a volume of so many blocks needs.
pub(crate) fn levels(blocks: u64) -> u32 {
    let mut reach = LEAF_BLOCKS * NODE_PAGES as u64;
    let mut levels = 1;
    while reach < blocks {
        reach = reach.saturating_mul(NODE_PAGES as u64);
        levels += 1;
    }
    levels
}

/// Bits of the blocks `from..to` of an extent.
pub(crate) fn mask(from: u64, to: u64) -> u16 {
    let below = |bits: u64| ((1_u32 << bits.min(u64::from(EXTENT_BLOCKS))) - 1) as u16;
    below(to) & !below(from)
}

fn forget(extent: &mut Extent, first: u64, mask: u16, digest: &mut Digest) {
    for block in 0..EXTENT_BLOCKS as usize {
        if extent.valid & mask & 1 << block != 0 {
            digest.remove(first + block as u64, extent.crcs[block]);
        }
    }
    extent.valid &= !mask;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks() {
        let cases = [
            (0, 16, 0xffff),
            (0, 100, 0xffff),
            (3, 5, 0b11000),
            (16, 20, 0),
            (0, 0, 0),
        ];
        for (from, to, bits) in cases {
            assert_eq!(mask(from, to), bits, "{from}..{to}");
        }
    }

    #[test]
    fn a_tree_is_as_high_as_it_has_to_be() {
        assert_eq!(levels(1), 1);
        assert_eq!(levels(512 * 128), 1);
        assert_eq!(levels(512 * 128 + 1), 2);
        assert_eq!(levels(crate::MOST_VOLUME_BLOCKS), 4);
    }

    #[test]
    fn what_is_cleared_is_freed_when_all_of_an_extent_is() {
        let (mut map, mut space) = (Map::new(1 << 20), Space::new(8, 64));
        let mut digest = Digest::default();
        map.write(5, 1, 1, &mut space, &mut digest);
        map.write(6, 2, 2, &mut space, &mut digest);
        map.clear(0, 6, 3, &mut space, &mut digest);
        assert!(map.place(5).is_none() && map.place(6).is_some());
        assert_eq!(space.freed_soon(), 0);
        map.clear(6, 1000, 4, &mut space, &mut digest);
        assert_eq!((space.freed_soon(), digest), (1, Digest::default()));
        assert_eq!(map.changes(3, 0).collect::<Vec<_>>(), vec![(0, 4)]);
        assert_eq!((map.changes(4, 0).count(), map.newest()), (0, 4));
    }
}
