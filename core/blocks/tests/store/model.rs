//! What a store has to be: per volume a log, and the blocks that its committed part makes.

use blocks::{BLOCK_BYTES, Body, Buffer, Digest, Entry, Page, VolumeId};
use std::collections::{BTreeMap, BTreeSet};

/// Everything that was asked of a store, and what it said is durable.
#[derive(Debug, Clone, Default)]
pub(crate) struct Model {
    pub(crate) volumes: BTreeMap<VolumeId, Volume>,
    /// Volumes that were deleted, as they were, and by which operation.
    pub(crate) deleted: BTreeMap<VolumeId, (u64, Volume)>,
    /// Operations are numbered; all up to this one are durable.
    pub(crate) durable: u64,
    pub(crate) operation: u64,
    /// For terms, which are never used twice.
    pub(crate) term: u64,
    /// Entries that a store said are damaged when it was opened, by volume, index and term. They may be
    /// in its log no more.
    pub(crate) damaged: BTreeSet<(VolumeId, u64, u64)>,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Volume {
    pub(crate) created: u64,
    /// Sizes, and since which operation.
    pub(crate) sizes: Vec<(u64, u64)>,
    pub(crate) log: Vec<Entry>,
    /// All that ever was: an entry that was replaced may be the one that survives a crash.
    pub(crate) all: BTreeMap<(u64, u64), Entry>,
    /// By which operation each was submitted last.
    pub(crate) made: BTreeMap<(u64, u64), u64>,
    /// Those that were damaged, and were submitted again.
    pub(crate) refilled: BTreeSet<(u64, u64)>,
    pub(crate) commit: u64,
    /// A commit that reaches an entry which was found damaged, and at which operation that was: it holds
    /// again once that one's payload is there, until a later batch says otherwise.
    doubted: Option<(u64, u64)>,
    /// Term and vote, and since which operation.
    pub(crate) hard: Vec<(u64, (u64, u64))>,
    /// The terms of the log's entries after each operation.
    pub(crate) history: Vec<(u64, Vec<u64>)>,
    /// Digests seen, by the last entry that took effect: its index and term.
    pub(crate) digests: BTreeMap<(u64, u64), Digest>,
}

/// A block that tells where it is from, in each of its sectors.
pub(crate) fn page(uid: u64, block: u64) -> Page {
    let mut page = Page::ZERO;
    for word in page.0.chunks_mut(16) {
        word[..8].copy_from_slice(&uid.to_le_bytes());
        word[8..].copy_from_slice(&block.to_le_bytes());
    }
    page
}

pub(crate) fn data(uid: u64, blocks: u64) -> Buffer {
    Buffer::from_pages((0..blocks).map(|block| page(uid, block)).collect())
}

impl Model {
    pub(crate) fn next(&mut self) -> u64 {
        self.operation += 1;
        self.operation
    }

    /// The first entry of a log that is damaged.
    pub(crate) fn first_damaged(&self) -> Option<(VolumeId, u64, u64)> {
        let mut damaged = self.damaged.iter();
        let there = |(volume, index, term): &&(VolumeId, u64, u64)| {
            let held = self.volumes.get(volume);
            held.and_then(|held| held.term(*index)) == Some(*term)
        };
        damaged.find(there).copied()
    }

    pub(crate) fn is_damaged(&self, volume: VolumeId, index: u64) -> bool {
        let held = self.volumes.get(&volume);
        let term = held.and_then(|held| held.term(index));
        term.is_some_and(|term| self.damaged.contains(&(volume, index, term)))
    }

    pub(crate) fn next_term(&mut self) -> u64 {
        self.term += 1;
        self.term
    }
}

impl Volume {
    pub(crate) fn new(created: u64, blocks: u64) -> Self {
        Self {
            created,
            sizes: vec![(created, blocks)],
            hard: vec![(created, (0, 0))],
            history: vec![(created, Vec::new())],
            ..Self::default()
        }
    }

    pub(crate) fn blocks(&self) -> u64 {
        self.sizes.last().expect("it has a size").1
    }

    pub(crate) fn last(&self) -> u64 {
        self.log.len() as u64
    }

    pub(crate) fn term(&self, index: u64) -> Option<u64> {
        let at = index.checked_sub(1)?;
        self.log.get(at as usize).map(|entry| entry.term)
    }

    pub(crate) fn terms(&self) -> Vec<u64> {
        self.log.iter().map(|entry| entry.term).collect()
    }

    /// Appends, or replaces a suffix.
    pub(crate) fn append(&mut self, operation: u64, entry: Entry) {
        let at = entry.index as usize - 1;
        let name = (entry.index, entry.term);
        self.made.entry(name).or_insert(operation);
        // The same one again, from a peer, changes nothing.
        if self.log.get(at).is_some_and(|old| old.term == entry.term) {
            return;
        }
        self.log.truncate(at);
        self.all.insert((entry.index, entry.term), entry.clone());
        self.log.push(entry);
        self.history.push((operation, self.terms()));
    }

    /// Entries after this one that are cut while the disk may still have no whole copy of them: it never
    /// gets one, and that they are cut may not be durable either.
    pub(crate) fn cut_while_damaged(&self, last: u64, durable: u64) -> Vec<(u64, u64)> {
        let cut = self.log.iter().skip(last as usize);
        let names = cut.map(|entry| (entry.index, entry.term));
        let open = |name: &(u64, u64)| self.refilled.contains(name) && self.made[name] > durable;
        names.filter(open).collect()
    }

    pub(crate) fn truncate(&mut self, operation: u64, last: u64) {
        self.log.truncate(last as usize);
        self.history.push((operation, self.terms()));
    }

    /// The blocks that the entries up to this one make, and the epoch.
    pub(crate) fn contents(&self, commit: u64) -> BTreeMap<u64, Buffer> {
        let mut blocks = BTreeMap::new();
        let mut epoch = 0;
        for entry in &self.log[..commit as usize] {
            match &entry.body {
                Body::Attach => epoch = epoch.max(entry.epoch),
                _ if entry.epoch < epoch => {}
                Body::Write { lba, data } => {
                    let parts = (0..data.blocks()).map(|block| data.part(block, 1));
                    blocks.extend((*lba..).zip(parts));
                }
                Body::Zero {
                    lba,
                    blocks: number,
                } => {
                    blocks.retain(|at, _| !(*lba..lba + number).contains(at));
                }
                Body::Config(_) | Body::Empty | Body::Grow { .. } => {}
            }
        }
        blocks
    }

    /// Extents that it has once the entries up to this one took effect, each with the blocks there.
    pub(crate) fn extents(&self, last: u64) -> BTreeMap<u64, u16> {
        let mut extents = BTreeMap::new();
        for lba in self.contents(last).into_keys() {
            *extents.entry(lba / 16).or_default() |= 1 << (lba % 16);
        }
        extents
    }

    /// Extents that entries which come after all there are take, if none is freed meanwhile.
    pub(crate) fn takes(&self, entries: &[Entry]) -> u32 {
        let mut extents = self.extents(self.last());
        let attaches = self.log.iter().filter(|entry| entry.body == Body::Attach);
        let mut epoch = attaches.map(|entry| entry.epoch).max().unwrap_or(0);
        let mut takes = 0;
        for entry in entries {
            match &entry.body {
                Body::Attach => epoch = epoch.max(entry.epoch),
                _ if entry.epoch < epoch => {}
                Body::Write { lba, data } => {
                    for lba in *lba..lba + data.blocks() as u64 {
                        let valid = extents.entry(lba / 16).or_default();
                        takes += u32::from(*valid == 0);
                        *valid |= 1 << (lba % 16);
                    }
                }
                Body::Zero { lba, blocks } => {
                    for lba in *lba..lba + blocks {
                        if let Some(valid) = extents.get_mut(&(lba / 16)) {
                            *valid &= !(1 << (lba % 16));
                        }
                    }
                }
                Body::Config(_) | Body::Empty | Body::Grow { .. } => {}
            }
        }
        takes
    }

    /// As far as entries may have taken effect when a store is opened again.
    pub(crate) fn most_commit(&self, durable: u64) -> u64 {
        let doubted = self.doubted.filter(|(since, _)| durable <= *since);
        doubted.map_or(self.commit, |(_, told)| told.max(self.commit))
    }

    /// Takes what a store had after a crash for what there is, once it was found to be what may be.
    pub(crate) fn restart(
        &mut self,
        operation: u64,
        durable: u64,
        terms: &[u64],
        commit: u64,
        is_damaged: impl Fn(u64) -> bool,
    ) {
        let told = self.most_commit(durable).min(terms.len() as u64);
        let doubted = (commit + 1..=told).next().filter(|next| is_damaged(*next));
        self.doubted = doubted.map(|_| (operation, told));
        let entries = (1..)
            .zip(terms)
            .map(|(index, term)| self.all[&(index, *term)].clone());
        self.log = entries.collect();
        self.commit = commit;
        self.history = vec![(operation, terms.to_vec())];
    }
}

/// The blocks of a range, as a read has to bring them.
pub(crate) fn range(contents: &BTreeMap<u64, Buffer>, lba: u64, blocks: u64) -> Vec<Buffer> {
    let block = |lba| contents.get(&lba).cloned();
    (lba..lba + blocks)
        .map(|lba| block(lba).unwrap_or_else(|| Buffer::zeroed(1)))
        .collect()
}

const _: () = assert!(BLOCK_BYTES.is_multiple_of(16));
