//! What tells one request of one attachment from all others.

use std::fmt;

/// Bits of how often an endpoint began by one claim.
const BEGUN_BITS: u32 = 8;
/// Bits of a sequence number: a trillion requests of one attachment, then it attaches anew.
const SEQ_BITS: u32 = 40;

/// An attachment and the number of a request in it. Stamps are ordered by attachment first, so that the
/// store, which compares an entry's stamp with that of the last attachment, drops those of earlier ones.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stamp(u64);

impl Stamp {
    /// Of the request that attaches, and of entries that are of no attachment in epoch 0.
    pub const NONE: Self = Self(0);
    /// Attachments of a volume.
    pub const MOST_EPOCH: u64 = (1 << (64 - SEQ_BITS)) - 1;
    /// Requests of an attachment.
    pub const MOST_SEQ: u64 = (1 << SEQ_BITS) - 1;

    /// The epoch in which the endpoint of `claim` begins, after one of epoch `last`; nothing if another's claim
    /// came later, which holds.
    ///
    /// An epoch is a claim in the upper 16 bits of its 24, and how often an endpoint began by it: one that is
    /// started anew fences what it left under way. Claim 0 comes after whatever there was.
    pub(crate) const fn next_epoch(last: u64, claim: u64) -> Option<u64> {
        // One that is too large gives an epoch that is too large.
        let claim = if claim > Self::MOST_EPOCH {
            Self::MOST_EPOCH
        } else {
            claim
        };
        let first = claim << BEGUN_BITS;
        if claim == 0 || claim == last >> BEGUN_BITS {
            return Some(last + 1);
        }
        if first < last { None } else { Some(first) }
    }

    /// Nothing when a number is too large.
    pub const fn new(epoch: u64, seq: u64) -> Option<Self> {
        if epoch > Self::MOST_EPOCH || seq > Self::MOST_SEQ {
            return None;
        }
        Some(Self(epoch << SEQ_BITS | seq))
    }

    /// As it is in an entry.
    pub const fn from_entry(epoch: u64) -> Self {
        Self(epoch)
    }

    /// For an entry.
    pub const fn to_entry(self) -> u64 {
        self.0
    }

    /// The attachment: 1 for a volume's first.
    pub const fn epoch(self) -> u64 {
        self.0 >> SEQ_BITS
    }

    /// The request's number: 0 is that which attaches.
    pub const fn seq(self) -> u64 {
        self.0 & Self::MOST_SEQ
    }
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch(), self.seq())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_later_claim_holds_however_often_an_earlier_one_begins() {
        let next = |last, claim| Stamp::next_epoch(last, claim);
        assert_eq!(next(0, 1), Some(0x100));
        assert_eq!(next(0x100, 1), Some(0x101));
        assert_eq!(next(0x101, 2), Some(0x200));
        assert_eq!(next(0x200, 1), None);
        // By nobody's claim it is the next, whatever there was.
        assert_eq!((next(0, 0), next(0x2ff, 0)), (Some(1), Some(0x300)));
        // The 256th of a claim would be the next one's: whoever asks sees that it is not its own.
        assert_eq!(next(0x1ff, 1), Some(0x200));
        assert_eq!(next(0x200, 1), None);
        for large in [0x1_0000, 1 << 24, 1 << 56, u64::MAX] {
            let epoch = next(0, large).unwrap();
            assert_eq!(Stamp::new(epoch, 0), None, "{large:x}");
        }
    }
}
