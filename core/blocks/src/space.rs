//! Which extents and which pages of the map are free, promised, or free soon.

use std::collections::VecDeque;

/// Things of one size, by number.
#[derive(Debug)]
pub(crate) struct Pool {
    used: Vec<u64>,
    total: u32,
    free: u32,
    next: u32,
}

impl Pool {
    pub(crate) fn new(total: u32) -> Self {
        Self {
            used: vec![0; total.div_ceil(64) as usize],
            total,
            free: total,
            next: 0,
        }
    }

    pub(crate) const fn free(&self) -> u32 {
        self.free
    }

    /// One that is free, after the one that was given last: what is written together lies together.
    pub(crate) fn take(&mut self) -> Option<u32> {
        if self.free == 0 {
            return None;
        }
        let words = self.used.len();
        let first = (self.next / 64) as usize;
        for step in 0..=words {
            let word = (first + step) % words;
            let mut candidates = !self.used[word];
            if step == 0 {
                candidates &= u64::MAX << (self.next % 64);
            }
            if candidates == 0 {
                continue;
            }
            let number = word as u32 * 64 + candidates.trailing_zeros();
            if number < self.total {
                assert!(self.mark(number), "{number} was free");
                self.next = (number + 1) % self.total;
                return Some(number);
            }
        }
        None
    }

    /// Takes this one; false if it is taken already, or is none of ours.
    pub(crate) fn mark(&mut self, number: u32) -> bool {
        if number >= self.total {
            return false;
        }
        let (word, bit) = ((number / 64) as usize, 1 << (number % 64));
        if self.used[word] & bit != 0 {
            return false;
        }
        self.used[word] |= bit;
        self.free -= 1;
        true
    }

    pub(crate) fn release(&mut self, number: u32) {
        let (word, bit) = ((number / 64) as usize, 1 << (number % 64));
        assert!(self.used[word] & bit != 0, "{number} is released twice");
        self.used[word] &= !bit;
        self.free += 1;
    }
}

/// Extents and pages of a disk.
#[derive(Debug)]
pub(crate) struct Space {
    pub(crate) extents: Pool,
    pub(crate) pages: Pool,
    /// Extents that accepted entries may yet take.
    pub(crate) extents_promised: u32,
    /// Pages that accepted entries may yet make necessary.
    pub(crate) pages_promised: u32,
    /// Pages that all maps have now.
    pub(crate) pages_needed: u32,
    total_pages: u32,
    freed: Vec<u32>,
    freed_before_checkpoint: Vec<u32>,
    waiting: VecDeque<(u64, Vec<u32>)>,
    pages_freed: Vec<u32>,
    pages_freed_before_checkpoint: Vec<u32>,
}

/// Extents and pages that an entry may take when it takes effect.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Need {
    pub(crate) extents: u32,
    pub(crate) pages: u32,
}

impl Need {
    pub(crate) const fn add(&mut self, more: Self) {
        self.extents += more.extents;
        self.pages += more.pages;
    }

    pub(crate) const fn take(&mut self, less: Self) {
        self.extents -= less.extents;
        self.pages -= less.pages;
    }
}

impl Space {
    pub(crate) fn new(extents: u32, pages: u32) -> Self {
        Self {
            extents: Pool::new(extents),
            pages: Pool::new(pages),
            extents_promised: 0,
            pages_promised: 0,
            pages_needed: 1,
            total_pages: pages,
            freed: Vec::new(),
            freed_before_checkpoint: Vec::new(),
            waiting: VecDeque::new(),
            pages_freed: Vec::new(),
            pages_freed_before_checkpoint: Vec::new(),
        }
    }

    /// Extents that nobody was promised. None while an entry and the one that it replaces both count.
    pub(crate) const fn unpromised(&self) -> u32 {
        self.extents.free().saturating_sub(self.extents_promised)
    }

    /// Whether that much can be promised. Half of the pages are for the next checkpoint's copies.
    pub(crate) const fn has(&self, need: Need) -> bool {
        (need.extents == 0 || self.unpromised() >= need.extents)
            && (need.pages == 0
                || self.pages_needed + self.pages_promised + need.pages <= self.total_pages / 2)
    }

    pub(crate) const fn promise(&mut self, need: Need) {
        self.extents_promised += need.extents;
        self.pages_promised += need.pages;
    }

    pub(crate) fn take_back(&mut self, need: Need) {
        self.extents_promised -= need.extents;
        self.pages_promised -= need.pages;
    }

    /// I4: an extent that nothing refers to any more is used again only after the checkpoint that says
    /// so, and when all reads that may look there are done.
    pub(crate) fn free_extent(&mut self, extent: u32) {
        self.freed.push(extent);
    }

    pub(crate) fn free_page(&mut self, page: u32) {
        self.pages_freed.push(page);
    }

    /// What was freed until now is not in the checkpoint that begins: its pages are made already.
    pub(crate) fn checkpoint_begins(&mut self) {
        assert!(
            self.freed_before_checkpoint.is_empty()
                && self.pages_freed_before_checkpoint.is_empty(),
            "one checkpoint at a time"
        );
        self.freed_before_checkpoint = std::mem::take(&mut self.freed);
        self.pages_freed_before_checkpoint = std::mem::take(&mut self.pages_freed);
    }

    /// The checkpoint is durable; reads from this one on know nothing of what it freed.
    pub(crate) fn checkpoint_ends(&mut self, next_read: u64) {
        let freed = std::mem::take(&mut self.freed_before_checkpoint);
        self.waiting.push_back((next_read, freed));
        for page in std::mem::take(&mut self.pages_freed_before_checkpoint) {
            self.pages.release(page);
        }
    }

    /// All reads before this one are done.
    pub(crate) fn reads_done_before(&mut self, oldest: u64) {
        while let Some((_, freed)) = self.waiting.pop_front_if(|(stamp, _)| *stamp <= oldest) {
            freed
                .into_iter()
                .for_each(|extent| self.extents.release(extent));
        }
    }

    pub(crate) fn freed_soon(&self) -> usize {
        let waiting: usize = self.waiting.iter().map(|(_, freed)| freed.len()).sum();
        self.freed.len() + self.freed_before_checkpoint.len() + waiting
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_gives_each_once() {
        let mut pool = Pool::new(130);
        let all: Vec<_> = std::iter::from_fn(|| pool.take()).collect();
        assert_eq!(all, (0..130).collect::<Vec<_>>());
        pool.release(7);
        assert_eq!((pool.free(), pool.take(), pool.take()), (1, Some(7), None));
        assert!(!pool.mark(7) && !pool.mark(130));
    }

    #[test]
    fn an_extent_waits_for_the_checkpoint_and_for_readers() {
        let mut space = Space::new(4, 8);
        let extent = space.extents.take().expect("all are free");
        space.free_extent(extent);
        space.reads_done_before(u64::MAX);
        assert_eq!(space.extents.free(), 3, "no checkpoint yet");
        space.checkpoint_begins();
        space.checkpoint_ends(5);
        space.reads_done_before(4);
        assert_eq!(space.extents.free(), 3, "read 4 may look there");
        space.reads_done_before(5);
        assert_eq!(space.extents.free(), 4);
    }
}
