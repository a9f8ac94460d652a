//! From blocks of the log to the chain of batches that counts.

use super::OpenError;
use crate::format::layout::Layout;
use crate::format::record::{ChunkRecord, NotTaken, Record};
use crate::format::superblock::Superblock;
use crate::format::wal::{Header, Link, Start};
use crate::map::{blocks_of, chunk_extents};
use crate::{BLOCK_BYTES, Buffer, EXTENT_BLOCKS, Page, block_crc};
use std::collections::{BTreeMap, BTreeSet};

/// Headers read at once.
const HEADERS_AT_ONCE: usize = 256;

/// Blocks that begin like a header.
#[derive(Debug)]
pub(super) struct Candidates {
    superblock: Superblock,
    starts: Vec<Start>,
    /// Blocks that cannot be read: there may be headers among them.
    unreadable: BTreeSet<u32>,
    next: usize,
    /// Headers that are whole, by number and position.
    whole: BTreeMap<(u64, u32), (Header, [u8; 16])>,
}

/// The batches to be played again.
#[derive(Debug)]
pub(super) struct Chain {
    pub(super) superblock: Superblock,
    /// From the tail on.
    pub(super) links: Vec<ChainLink>,
    pub(super) next_seq: u64,
    /// A block outside of it cannot be read, or begins like a newer header and is damaged: it may have been the newest batch's header.
    pub(super) hides: bool,
}

/// A batch of the chain.
#[derive(Debug, Clone)]
pub(super) struct ChainLink {
    pub(super) link: Link,
    pub(super) records: Vec<Record>,
    /// Its header is damaged; what it says is known from the next one.
    damaged: bool,
}

impl Candidates {
    pub(super) const fn new(superblock: Superblock) -> Self {
        Self {
            superblock,
            starts: Vec::new(),
            unreadable: BTreeSet::new(),
            next: 0,
            whole: BTreeMap::new(),
        }
    }

    pub(super) const fn layout(&self) -> Layout {
        self.superblock.layout
    }

    /// Looks through blocks that were read from this position on.
    pub(super) fn scan(&mut self, position: u32, blocks: Option<&Buffer>) {
        let Some(blocks) = blocks else {
            self.unreadable.insert(position);
            return;
        };
        for (at, page) in (position..).zip(blocks.pages()) {
            let Some(start) = Start::of(page) else {
                continue;
            };
            let wal_blocks = u64::from(self.superblock.layout.wal_blocks);
            let counts = start.store == self.superblock.store
                && start.position == at
                && start.seq >= self.superblock.tail.seq
                && u64::from(at) + u64::from(start.blocks) <= wal_blocks;
            if counts {
                self.starts.push(start);
            }
        }
    }

    /// The headers to be read next.
    pub(super) fn header_reads(&self) -> Vec<(u64, usize)> {
        let next = self.starts[self.next..].iter().take(HEADERS_AT_ONCE);
        let layout = self.layout();
        next.map(|start| (layout.wal_at(start.position), start.header_blocks as usize))
            .collect()
    }

    /// Takes them; false when there are no more.
    pub(super) fn take_headers(&mut self, results: &[Option<Buffer>]) -> bool {
        for result in results {
            let header = result
                .as_ref()
                .and_then(|blocks| Header::decode(blocks.pages()));
            if let Some((header, hash)) = header {
                self.whole
                    .insert((header.seq, header.position), (header, hash));
            }
        }
        self.next += results.len();
        self.next < self.starts.len()
    }

    /// The chain from the newest batch back to the tail.
    pub(super) fn chain(self) -> Result<Chain, OpenError> {
        let Self {
            superblock,
            whole,
            unreadable,
            starts,
            ..
        } = self;
        let known = whole
            .values()
            .map(|(header, _)| header.checkpoint)
            .max()
            .unwrap_or(0);
        if known > superblock.sequence {
            return Err(OpenError::Stale {
                found: superblock.sequence,
                known,
            });
        }
        let tail = superblock.tail;
        let Some((header, hash)) = whole.values().next_back() else {
            // The tail's batch was durable, so it is damaged. It is no loss if the checkpoint has all of it.
            if !superblock.tail_is_empty {
                return Err(damaged(tail.seq));
            }
            let only = ChainLink {
                link: tail,
                records: Vec::new(),
                damaged: true,
            };
            return Ok(Chain {
                superblock,
                links: vec![only],
                next_seq: tail.seq + 2,
                hides: !unreadable.is_empty() || !starts.is_empty(),
            });
        };
        // One that is hidden now and is found later is never taken for one of another number.
        let next_seq = header.seq + 2;
        let links = walk(tail, &whole, header, *hash)?;
        let inside = |block: &u32| {
            let batches = links.iter().map(|link| link.link);
            batches
                .into_iter()
                .any(|link| (link.position..link.position + link.blocks).contains(block))
        };
        let newer = |start: &Start| start.seq > header.seq;
        let hides = !unreadable.iter().all(inside) || starts.iter().any(newer);
        Ok(Chain {
            superblock,
            links,
            next_seq,
            hides,
        })
    }
}

/// Follows the links backwards. A header that is damaged is known from the one after it; two such, one
/// after the other, are not.
fn walk(
    tail: Link,
    whole: &BTreeMap<(u64, u32), (Header, [u8; 16])>,
    last: &Header,
    hash: [u8; 16],
) -> Result<Vec<ChainLink>, OpenError> {
    let find = |link: Link| {
        let found = whole.get(&(link.seq, link.position));
        found
            .filter(|(_, hash)| *hash == link.hash)
            .map(|(header, _)| header)
    };
    let mut links = Vec::new();
    let (mut header, mut link) = (last, link_of(last, hash));
    loop {
        links.push(ChainLink {
            link,
            records: header.records.clone(),
            damaged: false,
        });
        if header.seq <= tail.seq {
            break;
        }
        link = header.previous;
        if let Some(previous) = find(link) {
            header = previous;
            continue;
        }
        links.push(ChainLink {
            link,
            records: header.previous_records.clone(),
            damaged: true,
        });
        if link.seq <= tail.seq {
            break;
        }
        link = header.before;
        header = find(link).ok_or_else(|| damaged(link.seq))?;
    }
    links.reverse();
    if links[0].link != tail {
        let what = format!(
            "the log begins with batch {} and not {}",
            links[0].link.seq, tail.seq
        );
        return Err(OpenError::Inconsistent { what });
    }
    Ok(links)
}

fn link_of(header: &Header, hash: [u8; 16]) -> Link {
    Link {
        seq: header.seq,
        position: header.position,
        blocks: header.blocks,
        carries: header.carries,
        hash,
    }
}

fn damaged(seq: u64) -> OpenError {
    let why = "its header and the copy of it are damaged".to_owned();
    OpenError::Log { seq, why }
}

impl Chain {
    pub(super) fn batches(&self) -> usize {
        self.links.len()
    }

    pub(super) fn damaged_headers(&self) -> Vec<u64> {
        let damaged = self.links.iter().filter(|link| link.damaged);
        damaged.map(|link| link.link.seq).collect()
    }

    /// What chunks of the last batch are: only there it is open whether they were ever durable.
    pub(super) fn last_chunks(&self) -> Vec<(u64, usize)> {
        let layout = &self.superblock.layout;
        let last = self.last_in_doubt().into_iter();
        let chunks = last.flat_map(|last| chunks(&last.records));
        let runs = chunks.flat_map(|chunk| runs_of(layout, chunk));
        runs.map(|(at, run)| (at, run.len())).collect()
    }

    /// Those of these chunks that are not what the batch says. The log goes on after a chunk only when it
    /// is durable, so without them the volume is as it was.
    pub(super) fn bad_chunks(&self, results: &[Option<Buffer>]) -> Vec<NotTaken> {
        let Some(last) = self.last_in_doubt() else {
            return Vec::new();
        };
        let mut results = results.iter();
        let mut bad = Vec::new();
        for chunk in chunks(&last.records) {
            let mut whole = true;
            for (_, run) in runs_of(&self.superblock.layout, chunk) {
                let data = results.next().and_then(Option::as_ref);
                let right = |((lba, crc), page): (&(u64, u32), &Page)| {
                    block_crc(chunk.volume, *lba, page) == *crc
                };
                whole &= data.is_some_and(|data| run.iter().zip(data.pages()).all(right));
            }
            if !whole {
                bad.push(NotTaken {
                    volume: chunk.volume,
                    seq: last.link.seq,
                    number: chunk.number,
                    changed: chunk.changed,
                });
            }
        }
        bad
    }

    /// Chunks that were found not to be whole before.
    pub(super) fn not_taken(&self) -> impl Iterator<Item = NotTaken> {
        let records = self.links.iter().flat_map(|link| &link.records);
        records.filter_map(|record| match record {
            Record::NotTaken(chunk) => Some(*chunk),
            _ => None,
        })
    }

    /// The last batch's number, if it may never have been durable.
    pub(super) fn in_doubt(&self) -> Option<u64> {
        self.last_in_doubt().map(|last| last.link.seq)
    }

    /// The number of a batch whose header there is no more, if there may be one.
    pub(super) fn hidden(&self) -> Option<u64> {
        self.hides.then_some(self.next_seq - 1)
    }

    /// The last batch, unless it is the tail's, which was durable before the superblock named it.
    fn last_in_doubt(&self) -> Option<&ChainLink> {
        self.links
            .last()
            .filter(|last| last.link.seq > self.superblock.tail.seq)
    }
}

fn chunks(records: &[Record]) -> impl Iterator<Item = &ChunkRecord> {
    records.iter().filter_map(|record| match record {
        Record::Chunk(chunk) => Some(chunk),
        _ => None,
    })
}

/// Where a chunk's blocks are, each run with the blocks' numbers and CRCs.
fn runs_of(layout: &Layout, chunk: &ChunkRecord) -> Vec<(u64, Vec<(u64, u32)>)> {
    let mut runs: Vec<(u64, Vec<(u64, u32)>)> = Vec::new();
    for extent in chunk.extents.iter().filter(|it| it.at < layout.extents) {
        let number = chunk_extents(chunk.number).start + u64::from(extent.number);
        for (block, crc) in blocks_of(extent.valid).zip(&extent.crcs) {
            let at = layout.extent_at(extent.at, block as u32);
            let here = (number * u64::from(EXTENT_BLOCKS) + block, *crc);
            match runs.last_mut() {
                Some((start, run)) if *start + (run.len() * BLOCK_BYTES) as u64 == at => {
                    run.push(here);
                }
                _ => runs.push((at, vec![here])),
            }
        }
    }
    runs
}
