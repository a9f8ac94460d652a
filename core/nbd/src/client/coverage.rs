//! What of a read has come.

use std::collections::BTreeMap;

/// Pieces of one read at most: as many as there are sectors of 512 bytes in the largest.
const PIECES_MAX: u32 = 1 << 16;

/// Ranges of one buffer that do not overlap, neighbours joined.
#[derive(Debug, Default)]
pub(super) struct Coverage {
    /// From where up to where.
    ranges: BTreeMap<u32, u32>,
    pieces: u32,
}

impl Coverage {
    /// False if some of it has come before, or it is one piece too many.
    pub(super) fn add(&mut self, at: u32, len: u32) -> bool {
        let mut start = at;
        let mut end = at + len;
        self.pieces += 1;
        if self.pieces > PIECES_MAX {
            return false;
        }
        let before = self.ranges.range(..end).next_back();
        if let Some((&from, &to)) = before {
            if to > at {
                return false;
            }
            if to == at {
                start = from;
            }
        }
        if let Some(to) = self.ranges.remove(&end) {
            end = to;
        }
        self.ranges.insert(start, end);
        true
    }

    /// Whether nothing is missing of so many bytes.
    pub(super) fn is_whole(&self, len: u32) -> bool {
        len == 0 || self.ranges.iter().eq([(&0, &len)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_in_any_order_make_a_whole_once() {
        let mut coverage = Coverage::default();
        for (at, len) in [(8, 4), (0, 4), (12, 4), (4, 4)] {
            assert!(!coverage.is_whole(16));
            assert!(coverage.add(at, len));
        }
        assert!(coverage.is_whole(16));
        for (at, len) in [(0, 1), (15, 1), (3, 2), (0, 16)] {
            assert!(!coverage.add(at, len), "{at}+{len}");
        }
    }

    #[test]
    fn a_piece_around_or_inside_another_overlaps() {
        let mut coverage = Coverage::default();
        assert!(coverage.add(4, 4));
        assert!(!coverage.add(2, 8));
        assert!(!coverage.add(5, 1));
        assert!(!coverage.add(7, 2));
        assert!(!coverage.add(2, 3));
        assert!(coverage.add(2, 2));
        assert!(coverage.add(8, 2));
        assert!(!coverage.is_whole(10));
    }
}
