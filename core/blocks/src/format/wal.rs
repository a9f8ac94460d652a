//! Batches of the log.
//!
//! ```text
//! | header: 1 or more blocks | payload: blocks of the entries, in their order |
//! header: | magic 8 | crc32c 4 | version 2 | 0 2 | store 16 | seq 8 | position 4 | header blocks 4 |
//!         | blocks 4 | whether a checkpoint begins with it 4 | checkpoint 8 | previous 36 |
//!         | the one before that 36 |
//!         | bytes 4 and number 4 of records | the same of the previous batch's records |
//!         | records | the previous batch's records once more |
//! link:   | seq 8 | position 4 | blocks 4 | whether a checkpoint begins with it 4 | hash 16 |
//! ```
//!
//! A batch is issued when the one before it is durable. So whatever precedes a readable header in the
//! chain was durable once: if it cannot be read now it is damaged. Only the last batch can be torn; what
//! an intact header of it says is kept, as it may have been durable.
//! Each header has the records of the batch before it once more: which entries a damaged header named
//! is known from the next one.

use super::VERSION;
use super::codec::{Put, Take};
use super::record::{Record, count, decode_all, encode_all};
use crate::{BLOCK_BYTES, Page};
use sha2::{Digest as _, Sha256};

const MAGIC: [u8; 8] = *b"vpcLOG\r\n";
const CRC_AT: usize = 8;
const CRC_END: usize = 12;
const FIXED_BYTES: usize = 152;
/// Numbers of batches and checkpoints go up one by one: none gets anywhere near.
pub(crate) const MOST_NUMBER: u64 = u64::MAX / 2;

/// Names a batch: where it is, and what its header hashes to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Link {
    /// Batches are numbered, with gaps where a torn one was.
    pub seq: u64,
    /// First block, from the log's first.
    pub position: u32,
    /// Blocks of header and payload.
    pub blocks: u32,
    /// A checkpoint begins with it: it has all entries that were live then, so that the log can be
    /// played again from here.
    pub carries: bool,
    /// The first half of SHA-256 of the header.
    pub hash: [u8; 16],
}

impl Link {
    pub(crate) fn put(&self, put: &mut Put) {
        put.u64(self.seq).u32(self.position).u32(self.blocks);
        put.u32(u32::from(self.carries)).bytes(&self.hash);
    }

    pub(crate) fn take(take: &mut Take<'_>) -> Option<Self> {
        Some(Self {
            seq: take.u64()?,
            position: take.u32()?,
            blocks: take.u32()?,
            carries: take.u32()? != 0,
            hash: *take.bytes(16)?.first_chunk()?,
        })
    }

    /// Whether it is within a log of so many blocks.
    pub(crate) fn fits(&self, wal_blocks: u32) -> bool {
        u64::from(self.position) + u64::from(self.blocks) <= u64::from(wal_blocks)
    }
}

/// A batch's header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Which format of the disk it belongs to.
    pub store: u128,
    /// Its number.
    pub seq: u64,
    /// First block, from the log's first.
    pub position: u32,
    /// Blocks of header and payload.
    pub blocks: u32,
    /// See [`Link::carries`].
    pub carries: bool,
    /// The newest checkpoint when it was written.
    pub checkpoint: u64,
    /// The batch before it.
    pub previous: Link,
    /// And the one before that, for when the previous header is damaged.
    pub before: Link,
    /// What it says.
    pub records: Vec<Record>,
    /// What the previous one says.
    pub previous_records: Vec<Record>,
}

impl Header {
    /// The header's blocks, with CRC, and what they hash to. Needs [`Self::blocks_for`] blocks.
    pub(crate) fn encode(&self) -> (Vec<Page>, [u8; 16]) {
        let (records, previous) = (
            encode_all(&self.records),
            encode_all(&self.previous_records),
        );
        let bytes = FIXED_BYTES + records.len() + previous.len();
        let header_blocks = bytes.div_ceil(BLOCK_BYTES);
        let mut put = Put::default();
        put.bytes(&MAGIC)
            .u32(0)
            .u16(VERSION)
            .u16(0)
            .u128(self.store);
        put.u64(self.seq)
            .u32(self.position)
            .u32(count(header_blocks))
            .u32(self.blocks);
        put.u32(u32::from(self.carries));
        put.u64(self.checkpoint);
        self.previous.put(&mut put);
        self.before.put(&mut put);
        put.u32(count(records.len())).u32(count(self.records.len()));
        put.u32(count(previous.len()))
            .u32(count(self.previous_records.len()));
        put.bytes(&records).bytes(&previous);
        put.0.resize(header_blocks * BLOCK_BYTES, 0);
        let crc = crc32c::crc32c(&put.0[CRC_END..]);
        put.0[CRC_AT..CRC_END].copy_from_slice(&crc.to_le_bytes());
        let hash = hash(&put.0[..bytes]);
        let pages = put.0.chunks_exact(BLOCK_BYTES).map(|chunk| {
            let mut page = Page::ZERO;
            page.0.copy_from_slice(chunk);
            page
        });
        (pages.collect(), hash)
    }

    /// Blocks that a header with these records takes.
    pub(crate) fn blocks_for(records_bytes: usize, previous_bytes: usize) -> u32 {
        count((FIXED_BYTES + records_bytes + previous_bytes).div_ceil(BLOCK_BYTES))
    }

    /// Reads a whole header; gives its hash too.
    pub fn decode(pages: &[Page]) -> Option<(Self, [u8; 16])> {
        let bytes: Vec<u8> = pages.iter().flat_map(|page| page.0).collect();
        let start = Start::of(pages.first()?)?;
        let whole = bytes.get(..start.header_blocks as usize * BLOCK_BYTES)?;
        let mut take = Take(whole);
        take.bytes(CRC_AT)?;
        if take.u32()? != crc32c::crc32c(&whole[CRC_END..]) {
            return None;
        }
        take.bytes(4 + 16 + 8 + 4 + 4 + 4)?;
        let carries = take.u32()? != 0;
        let checkpoint = take.u64()?;
        let (previous, before) = (Link::take(&mut take)?, Link::take(&mut take)?);
        let (bytes_here, count_here) = (take.u32()? as usize, take.u32()?);
        let (bytes_there, count_there) = (take.u32()? as usize, take.u32()?);
        let records = decode_all(take.bytes(bytes_here)?, count_here)?;
        let previous_records = decode_all(take.bytes(bytes_there)?, count_there)?;
        let header = Self {
            store: start.store,
            seq: start.seq,
            position: start.position,
            blocks: start.blocks,
            carries,
            checkpoint,
            previous,
            before,
            records,
            previous_records,
        };
        let used = FIXED_BYTES + bytes_here + bytes_there;
        header
            .is_sound(start.header_blocks)
            .then(|| (header, hash(&whole[..used])))
    }

    /// Payloads are within their batches, and the previous batches are before this one.
    fn is_sound(&self, header_blocks: u32) -> bool {
        let place = |link: &Link| link.position.checked_add(link.blocks).is_some();
        place(&self.previous)
            && place(&self.before)
            && self
                .records
                .iter()
                .all(|record| record.is_within(self.blocks))
            && self
                .previous_records
                .iter()
                .all(|record| record.is_within(self.previous.blocks))
            && header_blocks <= self.blocks
            && self.previous.seq < self.seq
            && (self.before.seq < self.previous.seq || self.previous.seq == 0)
    }
}

/// What the first block of a header says by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Start {
    pub(crate) store: u128,
    pub(crate) seq: u64,
    pub(crate) position: u32,
    pub(crate) header_blocks: u32,
    pub(crate) blocks: u32,
}

impl Start {
    /// Nothing if it is no header's first block. The CRC is not looked at.
    pub(crate) fn of(page: &Page) -> Option<Self> {
        let mut take = Take(&page.0);
        if take.bytes(8)? != MAGIC {
            return None;
        }
        take.u32()?;
        if take.u16()? != VERSION {
            return None;
        }
        take.u16()?;
        let start = Self {
            store: take.u128()?,
            seq: take.u64()?,
            position: take.u32()?,
            header_blocks: take.u32()?,
            blocks: take.u32()?,
        };
        let sound = (1..=start.blocks).contains(&start.header_blocks) && start.seq <= MOST_NUMBER;
        sound.then_some(start)
    }
}

fn hash(bytes: &[u8]) -> [u8; 16] {
    let whole: [u8; 32] = Sha256::digest(bytes).into();
    let mut half = [0; 16];
    half.copy_from_slice(&whole[..16]);
    half
}
