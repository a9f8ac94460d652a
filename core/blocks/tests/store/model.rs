//! What a store has to be: per volume a log, and the blocks that its committed part makes.

use blocks::{BLOCK_BYTES, Body, Buffer, Digest, Entry, Page, VolumeId};
use std::collections::BTreeMap;

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
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Volume {
    pub(crate) created: u64,
    /// Sizes, and since which operation.
    pub(crate) sizes: Vec<(u64, u64)>,
    pub(crate) log: Vec<Entry>,
    /// All that ever was: an entry that was replaced may be the one that survives a crash.
    pub(crate) all: BTreeMap<(u64, u64), Entry>,
    pub(crate) commit: u64,
    /// Term and vote, and since which operation.
    pub(crate) hard: Vec<(u64, (u64, u64))>,
    /// The terms of the log's entries after each operation.
    pub(crate) history: Vec<(u64, Vec<u64>)>,
    /// Digests seen, by applied index.
    pub(crate) digests: BTreeMap<u64, Digest>,
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

    pub(crate) fn terms(&self) -> Vec<u64> {
        self.log.iter().map(|entry| entry.term).collect()
    }

    /// Appends, or replaces a suffix.
    pub(crate) fn append(&mut self, operation: u64, entry: Entry) {
        let at = entry.index as usize - 1;
        // The same one again, from a peer, changes nothing.
        if self.log.get(at).is_some_and(|old| old.term == entry.term) {
            return;
        }
        self.log.truncate(at);
        self.all.insert((entry.index, entry.term), entry.clone());
        self.log.push(entry);
        self.history.push((operation, self.terms()));
    }

    pub(crate) fn truncate(&mut self, operation: u64, last: u64) {
        self.log.truncate(last as usize);
        self.history.push((operation, self.terms()));
    }

    /// The blocks that the entries up to this one make, and the epoch.
    pub(crate) fn contents(&self, commit: u64) -> BTreeMap<u64, Page> {
        let mut blocks = BTreeMap::new();
        let mut epoch = 0;
        for entry in &self.log[..commit as usize] {
            match &entry.body {
                Body::Attach => epoch = epoch.max(entry.epoch),
                _ if entry.epoch < epoch => {}
                Body::Write { lba, data } => {
                    blocks.extend((*lba..).zip(data.pages().iter().cloned()));
                }
                Body::Zero {
                    lba,
                    blocks: number,
                } => {
                    blocks.retain(|at, _| !(*lba..lba + number).contains(at));
                }
                Body::Config(_) | Body::Empty => {}
            }
        }
        blocks
    }

    /// Takes what a store had after a crash for what there is.
    pub(crate) fn restart(
        &mut self,
        operation: u64,
        terms: &[u64],
        commit: u64,
        blocks: u64,
        hard: (u64, u64),
    ) {
        let entries = (1..)
            .zip(terms)
            .map(|(index, term)| self.all[&(index, *term)].clone());
        self.log = entries.collect();
        self.commit = commit;
        self.sizes = vec![(operation, blocks)];
        self.hard = vec![(operation, hard)];
        self.history = vec![(operation, terms.to_vec())];
        self.digests.retain(|index, _| *index <= commit);
    }
}

/// The blocks of a range, as a read has to bring them.
pub(crate) fn range(contents: &BTreeMap<u64, Page>, lba: u64, blocks: u64) -> Vec<Page> {
    let block = |lba| contents.get(&lba).cloned().unwrap_or(Page::ZERO);
    (lba..lba + blocks).map(block).collect()
}

const _: () = assert!(BLOCK_BYTES.is_multiple_of(16));
