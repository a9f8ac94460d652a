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
//! chain was durable once: if it cannot be read now it is damaged. Only the last batch can be torn.
//! Each header has the records of the batch before it once more: which entries a damaged header named
//! is known from the next one.

use super::VERSION;
use super::codec::{Put, Take};
use crate::{BLOCK_BYTES, EXTENT_BLOCKS, MOST_CONFIG_BYTES, MOST_ENTRY_BLOCKS, Page, VolumeId};
use sha2::{Digest as _, Sha256};
use std::sync::Arc;

const MAGIC: [u8; 8] = *b"vpcLOG\r\n";
const CRC_AT: usize = 8;
const CRC_END: usize = 12;
const FIXED_BYTES: usize = 152;
/// Numbers of batches and checkpoints go up one by one: none gets anywhere near.
pub(crate) const MOST_NUMBER: u64 = u64::MAX / 2;
/// Payload that is lost: a damaged entry that a checkpoint carried on.
const LOST: u32 = u32::MAX;

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

/// What a batch says, one thing after another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// `| 1 | volume 16 | blocks 8 |` A volume is made.
    Create {
        /// Which.
        volume: VolumeId,
        /// Its size in blocks.
        blocks: u64,
    },
    /// `| 2 | volume 16 |` A volume is no more.
    Delete {
        /// Which.
        volume: VolumeId,
    },
    /// `| 3 | volume 16 | blocks 8 |` A volume has another size.
    Grow {
        /// Which.
        volume: VolumeId,
        /// Its size in blocks.
        blocks: u64,
    },
    /// `| 4 | volume 16 | term 8 | vote 8 | commit 8 |`
    Hard {
        /// Of which volume.
        volume: VolumeId,
        /// Its term, vote and commit.
        hard: HardState,
    },
    /// `| 5 | volume 16 | index 8 | term 8 | epoch 8 | body |` An entry of a volume's log. It replaces
    /// one of another term at its index, and all after that.
    Entry(EntryRecord),
    /// `| 6 | volume 16 | last 8 |` There is no entry after this one.
    LogEnd {
        /// Of which volume.
        volume: VolumeId,
        /// Index of the last entry.
        last: u64,
    },
}

/// What Raft has to remember beside its log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HardState {
    /// The newest term that was heard of.
    pub term: u64,
    /// Whom this replica voted for in it, 0 for nobody.
    pub vote: u64,
    /// Up to where the log is committed.
    pub commit: u64,
}

/// An entry without its payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryRecord {
    /// Whose log.
    pub volume: VolumeId,
    /// Which entry.
    pub index: u64,
    /// The leader's term.
    pub term: u64,
    /// Of which attachment it is.
    pub epoch: u64,
    /// What it does.
    pub body: BodyRecord,
}

/// What an entry does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BodyRecord {
    /// `| 1 | lba 8 | blocks 4 | payload's first block in the batch 4 | crc32c 4 for each block |`
    Write {
        /// First block of the volume.
        lba: u64,
        /// Where the payload is, from the batch's first block; nothing if it was lost.
        payload: Option<u32>,
        /// Of each block, see [`crate::block_crc`].
        crcs: Arc<[u32]>,
    },
    /// `| 2 | lba 8 | blocks 4 | extent 4 for each 16 blocks | crc32c 4 for each block |` The payload
    /// is in extents already.
    Redirected {
        /// First block of the volume.
        lba: u64,
        /// One for each 16 blocks.
        extents: Arc<[u32]>,
        /// Of each block.
        crcs: Arc<[u32]>,
    },
    /// `| 3 | lba 8 | blocks 8 |` Blocks that read as zeroes from then on.
    Zero {
        /// First block of the volume.
        lba: u64,
        /// How many.
        blocks: u64,
    },
    /// `| 4 |` Entries of earlier epochs that come later have no effect.
    Attach,
    /// `| 5 | length 4 | bytes |` The group's members, in the consensus's own form.
    Config(Arc<[u8]>),
    /// `| 6 |` A new leader's first.
    Empty,
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

fn count(number: usize) -> u32 {
    u32::try_from(number).expect("batches are far below 4 GiB")
}

fn encode_all(records: &[Record]) -> Vec<u8> {
    let mut put = Put::default();
    records.iter().for_each(|record| record.put(&mut put));
    put.0
}

fn decode_all(bytes: &[u8], count: u32) -> Option<Vec<Record>> {
    let mut take = Take(bytes);
    let mut records = Vec::new();
    for _ in 0..count {
        records.push(Record::take(&mut take)?);
    }
    take.0.is_empty().then_some(records)
}

impl Record {
    /// Bytes that it takes in a header.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Create { .. } | Self::Grow { .. } | Self::LogEnd { .. } => 26,
            Self::Delete { .. } => 18,
            Self::Hard { .. } => 42,
            Self::Entry(entry) => 44 + entry.body.bytes(),
        }
    }

    /// Whether its payload is in a batch of so many blocks.
    fn is_within(&self, blocks: u32) -> bool {
        let Self::Entry(entry) = self else {
            return true;
        };
        match &entry.body {
            BodyRecord::Write {
                payload: Some(at),
                crcs,
                ..
            } => u64::from(*at) + crcs.len() as u64 <= u64::from(blocks),
            _ => true,
        }
    }

    fn put(&self, put: &mut Put) {
        match self {
            Self::Create { volume, blocks } => put.u16(1).u128(volume.get()).u64(*blocks),
            Self::Delete { volume } => put.u16(2).u128(volume.get()),
            Self::Grow { volume, blocks } => put.u16(3).u128(volume.get()).u64(*blocks),
            Self::Hard { volume, hard } => {
                put.u16(4).u128(volume.get());
                put.u64(hard.term).u64(hard.vote).u64(hard.commit)
            }
            Self::Entry(entry) => {
                put.u16(5).u128(entry.volume.get());
                put.u64(entry.index).u64(entry.term).u64(entry.epoch);
                entry.body.put(put);
                put
            }
            Self::LogEnd { volume, last } => put.u16(6).u128(volume.get()).u64(*last),
        };
    }

    fn take(take: &mut Take<'_>) -> Option<Self> {
        let kind = take.u16()?;
        let volume = VolumeId::new(take.u128()?);
        Some(match kind {
            1 => Self::Create {
                volume,
                blocks: take.u64()?,
            },
            2 => Self::Delete { volume },
            3 => Self::Grow {
                volume,
                blocks: take.u64()?,
            },
            4 => Self::Hard {
                volume,
                hard: HardState {
                    term: take.u64()?,
                    vote: take.u64()?,
                    commit: take.u64()?,
                },
            },
            5 => Self::Entry(EntryRecord {
                volume,
                index: take.u64()?,
                term: take.u64()?,
                epoch: take.u64()?,
                body: BodyRecord::take(take)?,
            }),
            6 => Self::LogEnd {
                volume,
                last: take.u64()?,
            },
            _ => return None,
        })
    }
}

impl BodyRecord {
    fn bytes(&self) -> usize {
        match self {
            Self::Write { crcs, .. } => 16 + 4 * crcs.len(),
            Self::Redirected { extents, crcs, .. } => 12 + 4 * (extents.len() + crcs.len()),
            Self::Zero { .. } => 16,
            Self::Attach | Self::Empty => 0,
            Self::Config(bytes) => 4 + bytes.len(),
        }
    }

    fn put(&self, put: &mut Put) {
        match self {
            Self::Write { lba, payload, crcs } => {
                put.u16(1)
                    .u64(*lba)
                    .u32(count(crcs.len()))
                    .u32(payload.unwrap_or(LOST));
                crcs.iter().for_each(|crc| _ = put.u32(*crc));
            }
            Self::Redirected { lba, extents, crcs } => {
                put.u16(2).u64(*lba).u32(count(crcs.len()));
                extents
                    .iter()
                    .chain(crcs.iter())
                    .for_each(|word| _ = put.u32(*word));
            }
            Self::Zero { lba, blocks } => _ = put.u16(3).u64(*lba).u64(*blocks),
            Self::Attach => _ = put.u16(4),
            Self::Config(bytes) => _ = put.u16(5).u32(count(bytes.len())).bytes(bytes),
            Self::Empty => _ = put.u16(6),
        }
    }

    fn take(take: &mut Take<'_>) -> Option<Self> {
        Some(match take.u16()? {
            1 => {
                let (lba, blocks, at) = (take.u64()?, take.u32()?, take.u32()?);
                let crcs = words(take, blocks)?;
                lba.checked_add(u64::from(blocks))?;
                let payload = (at != LOST).then_some(at);
                Self::Write { lba, payload, crcs }
            }
            2 => {
                let (lba, blocks) = (take.u64()?, take.u32()?);
                lba.checked_add(u64::from(blocks))?;
                if lba % u64::from(EXTENT_BLOCKS) != 0 || blocks % EXTENT_BLOCKS != 0 {
                    return None;
                }
                let extents = words(take, blocks / EXTENT_BLOCKS)?;
                let crcs = words(take, blocks)?;
                Self::Redirected { lba, extents, crcs }
            }
            3 => {
                let (lba, blocks) = (take.u64()?, take.u64()?);
                lba.checked_add(blocks)?;
                Self::Zero { lba, blocks }
            }
            4 => Self::Attach,
            5 => {
                let len = take.u32()? as usize;
                if len > MOST_CONFIG_BYTES {
                    return None;
                }
                Self::Config(take.bytes(len)?.into())
            }
            6 => Self::Empty,
            _ => return None,
        })
    }
}

fn words(take: &mut Take<'_>, number: u32) -> Option<Arc<[u32]>> {
    if number == 0 || number > MOST_ENTRY_BLOCKS {
        return None;
    }
    (0..number).map(|_| take.u32()).collect()
}
