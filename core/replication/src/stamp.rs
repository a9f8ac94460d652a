//! What tells one request of one attachment from all others.

use std::fmt;

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
