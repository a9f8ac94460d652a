//! Checksums of blocks and pages, and the digest of a volume.

use crate::{Page, VolumeId};

/// CRC32C of a block, begun with whose it is and where: right bytes in a wrong place do not pass.
pub fn block_crc(volume: VolumeId, lba: u64, page: &Page) -> u32 {
    let mut whose = [0; 24];
    whose[..16].copy_from_slice(&volume.get().to_le_bytes());
    whose[16..].copy_from_slice(&lba.to_le_bytes());
    crc32c::crc32c_append(crc32c::crc32c(&whose), &page.0)
}

/// What a volume holds, in short: equal on all replicas that took in the same entries.
///
/// A sum over the volume's written blocks, so that it is kept as blocks change, at no cost. It finds
/// faults, not forgers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub u128);

impl Digest {
    /// Of blocks, each by its place and [`block_crc`].
    pub fn of(blocks: impl IntoIterator<Item = (u64, u32)>) -> Self {
        let mut digest = Self::default();
        for (lba, crc) in blocks {
            digest.add(lba, crc);
        }
        digest
    }

    pub(crate) fn add(&mut self, lba: u64, crc: u32) {
        self.0 = self.0.wrapping_add(term(lba, crc));
    }

    pub(crate) fn remove(&mut self, lba: u64, crc: u32) {
        self.0 = self.0.wrapping_sub(term(lba, crc));
    }
}

fn term(lba: u64, crc: u32) -> u128 {
    let low = scramble(lba ^ (u64::from(crc) << 32 | u64::from(crc)));
    let high = scramble(low ^ lba.rotate_left(17));
    u128::from(high) << 64 | u128::from(low)
}

/// The finalizer of SplitMix64 (Steele, Lea, Flood 2014).
const fn scramble(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
