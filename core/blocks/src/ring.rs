//! The log's ring: where the next batch goes, and what it overwrites.

use crate::VolumeId;
use crate::format::record::Record;
use crate::format::wal::Link;
use std::collections::VecDeque;

/// Places are counted on and on; modulo the ring's size they are blocks of it.
#[derive(Debug)]
pub(crate) struct Ring {
    blocks: u64,
    head: u64,
    /// From here on everything is needed.
    tail: u64,
    pub(crate) next_seq: u64,
    pub(crate) last: Link,
    pub(crate) before: Link,
    pub(crate) last_records: Vec<Record>,
    batches: VecDeque<Kept>,
}

/// A batch that is still there.
#[derive(Debug, Clone)]
pub(crate) struct Kept {
    pub(crate) seq: u64,
    pub(crate) start: u64,
    /// Those with entries in it.
    pub(crate) volumes: Vec<VolumeId>,
}

impl Ring {
    /// Nothing is there but the batch of this link.
    pub(crate) fn new(blocks: u32, tail: Link) -> Self {
        let start = u64::from(tail.position);
        Self {
            blocks: u64::from(blocks),
            head: start,
            tail: start,
            next_seq: tail.seq,
            last: Link::default(),
            before: Link::default(),
            last_records: Vec::new(),
            batches: VecDeque::new(),
        }
    }

    /// Where a batch of so many blocks goes: batches do not wrap.
    pub(crate) const fn start_of(&self, blocks: u32) -> u64 {
        let left = self.blocks - self.head % self.blocks;
        if blocks as u64 <= left {
            self.head
        } else {
            self.head + left
        }
    }

    pub(crate) const fn position(&self, start: u64) -> u32 {
        (start % self.blocks) as u32
    }

    /// Whether it fits, and leaves so much.
    pub(crate) const fn fits(&self, blocks: u32, reserve: u64) -> bool {
        self.start_of(blocks) + blocks as u64 + reserve <= self.tail + self.blocks
    }

    pub(crate) const fn used(&self) -> u64 {
        self.head - self.tail
    }

    /// A batch is written at its place; gives those that it overwrites, whole or in part.
    pub(crate) fn push(
        &mut self,
        link: Link,
        records: Vec<Record>,
        volumes: Vec<VolumeId>,
    ) -> Vec<Kept> {
        let start = self.start_of(link.blocks);
        assert_eq!(
            self.position(start),
            link.position,
            "batch {} is where it says",
            link.seq
        );
        self.head = start + u64::from(link.blocks);
        assert!(
            self.head <= self.tail + self.blocks,
            "batch {} overwrites what the last checkpoint needs",
            link.seq
        );
        self.before = std::mem::replace(&mut self.last, link);
        self.last_records = records;
        self.next_seq = link.seq + 1;
        let seq = link.seq;
        self.batches.push_back(Kept {
            seq,
            start,
            volumes,
        });
        let (head, blocks) = (self.head, self.blocks);
        std::iter::from_fn(|| self.batches.pop_front_if(|kept| kept.start + blocks < head))
            .collect()
    }

    /// A batch of an earlier run, which is at `position`: no sooner than where the last one ended.
    pub(crate) fn skip_to(&mut self, position: u32) {
        let ahead = (u64::from(position) + self.blocks - self.head % self.blocks) % self.blocks;
        self.head += ahead;
    }

    /// A checkpoint begins its replay with the batch of this number.
    pub(crate) fn set_tail(&mut self, seq: u64) {
        let kept = self.batches.iter().find(|kept| kept.seq == seq);
        self.tail = kept
            .expect("nothing overwrites the tail of a checkpoint")
            .start;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(ring: &Ring, seq: u64, blocks: u32) -> Link {
        let position = ring.position(ring.start_of(blocks));
        Link {
            seq,
            position,
            blocks,
            ..Link::default()
        }
    }

    #[test]
    fn batches_do_not_wrap_and_what_they_overwrite_is_told() {
        let mut ring = Ring::new(
            10,
            Link {
                seq: 1,
                ..Link::default()
            },
        );
        for seq in 1..=3 {
            let link = link(&ring, seq, 3);
            assert!(ring.push(link, Vec::new(), Vec::new()).is_empty());
        }
        assert!(!ring.fits(3, 0), "the tail is the first one");
        ring.set_tail(3);
        assert!(ring.fits(3, 3) && !ring.fits(3, 4));
        let next = link(&ring, 4, 3);
        assert_eq!(next.position, 0);
        let gone = ring.push(next, Vec::new(), Vec::new());
        assert_eq!(gone.iter().map(|kept| kept.seq).collect::<Vec<_>>(), [1]);
    }
}
