//! From blocks of the log to the chain of batches that counts.

use super::{OpenError, TornTail};
use crate::format::layout::Layout;
use crate::format::superblock::Superblock;
use crate::format::wal::{BodyRecord, EntryRecord, Header, Link, Record, Start};
use crate::{Buffer, EXTENT_BLOCKS, Page, block_crc};
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

    /// What the last batch has beside its header: only there it is open whether it was ever durable.
    pub(super) fn last_payload(&self) -> Vec<(u64, usize)> {
        let Some(last) = self.last_in_doubt() else {
            return Vec::new();
        };
        let entries = entries(&last.records);
        entries
            .flat_map(|entry| payload_of(&self.superblock.layout, last.link, entry))
            .collect()
    }

    /// Drops the last batch if it is not whole. What cannot be read at all is damaged, not torn.
    pub(super) fn judge_last(
        &mut self,
        results: &[Option<Buffer>],
    ) -> Result<Option<TornTail>, OpenError> {
        let Some(last) = self.last_in_doubt() else {
            return Ok(self.hidden());
        };
        let layout = self.superblock.layout;
        let mut results = results.iter();
        let mut whole = true;
        for entry in entries(&last.records) {
            let (lba, crcs) = match &entry.body {
                BodyRecord::Write {
                    lba,
                    crcs,
                    payload: Some(_),
                } => (*lba, crcs),
                BodyRecord::Redirected { lba, crcs, .. } => (*lba, crcs),
                _ => continue,
            };
            let reads = payload_of(&layout, last.link, entry).len();
            let parts: Vec<_> = results.by_ref().take(reads).collect();
            if parts.iter().any(|part| part.is_none()) {
                continue;
            }
            let pages = parts.into_iter().flatten().flat_map(|part| part.pages());
            let right = |((lba, page), crc): ((u64, &Page), &u32)| {
                block_crc(entry.volume, lba, page) == *crc
            };
            whole &= (lba..).zip(pages).zip(crcs.iter()).all(right);
        }
        if whole {
            return Ok(self.hidden());
        }
        let last = self.links.pop().expect("there is one in doubt");
        let named = entries(&last.records).map(|entry| (entry.volume, entry.index, entry.term));
        Ok(Some(TornTail {
            seq: last.link.seq,
            entries: named.collect(),
        }))
    }

    fn hidden(&self) -> Option<TornTail> {
        self.hides.then(|| TornTail {
            seq: self.next_seq - 1,
            entries: Vec::new(),
        })
    }

    /// The last batch, unless it is the tail's, which was durable before the superblock named it.
    fn last_in_doubt(&self) -> Option<&ChainLink> {
        self.links
            .last()
            .filter(|last| last.link.seq > self.superblock.tail.seq)
    }
}

fn entries(records: &[Record]) -> impl Iterator<Item = &EntryRecord> {
    records.iter().filter_map(|record| match record {
        Record::Entry(entry) => Some(entry),
        _ => None,
    })
}

/// Where an entry's payload is. An extent that the disk has not is none of the last batch's doing.
pub(super) fn payload_of(layout: &Layout, link: Link, entry: &EntryRecord) -> Vec<(u64, usize)> {
    match &entry.body {
        BodyRecord::Write {
            payload: Some(offset),
            crcs,
            ..
        } if *offset < link.blocks => {
            let blocks = crcs.len().min((link.blocks - *offset) as usize);
            vec![(layout.wal_at(link.position + offset), blocks)]
        }
        BodyRecord::Redirected { extents, .. } => extents
            .iter()
            .filter(|extent| **extent < layout.extents)
            .map(|extent| (layout.extent_at(*extent, 0), EXTENT_BLOCKS as usize))
            .collect(),
        _ => Vec::new(),
    }
}
