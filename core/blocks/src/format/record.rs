//! Records: what a batch says, one thing after another.

use super::codec::{Put, Take};
use super::wal::MOST_NUMBER;
use crate::{
    CHUNK_BLOCKS, EXTENT_BLOCKS, MOST_CONFIG_BYTES, MOST_ENTRY_BLOCKS, MOST_VOLUME_BLOCKS, VolumeId,
};
use std::sync::Arc;

/// Payload that is lost: a damaged entry that a checkpoint carried on.
const LOST: u32 = u32::MAX;

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
    /// `| 7 | volume 16 | chunk 8 | changed 8 | extents 4 | extent.. |` A chunk as a peer has it: what it
    /// does not name reads as zeroes. Entries up to `changed` have no effect on it any more.
    Chunk(ChunkRecord),
    /// `| 8 | volume 16 | index 8 | term 8 | epoch 8 | blocks 8 | config's index 8 | length 4 | bytes |`
    /// The log goes on after this entry, which is in effect with all before it.
    Base {
        /// Of which volume.
        volume: VolumeId,
        /// What is in effect.
        base: Base,
    },
    /// `| 9 | volume 16 | batch 8 | chunk 8 | changed 8 |` A chunk that an earlier batch names was not
    /// whole when the disk was opened, and is not taken.
    NotTaken(NotTaken),
}

/// Names a chunk of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct NotTaken {
    /// Of which volume.
    pub volume: VolumeId,
    /// The batch that names it.
    pub seq: u64,
    /// Which 1 MiB.
    pub number: u64,
    /// Index of the last entry that changed it.
    pub changed: u64,
}

/// A chunk that came from a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkRecord {
    /// Of which volume.
    pub volume: VolumeId,
    /// Which 1 MiB of it.
    pub number: u64,
    /// Index of the last entry that changed it.
    pub changed: u64,
    /// Where its blocks are, by number.
    pub extents: Vec<ChunkExtent>,
}

/// `| number 2 | valid 2 | extent 4 | crc32c 4 for each block that is valid |` One of a chunk's extents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkExtent {
    /// Which of the chunk's 16.
    pub number: u16,
    /// Blocks that were written, at least one.
    pub valid: u16,
    /// Which extent of the disk.
    pub at: u32,
    /// Of each block that is valid.
    pub crcs: Vec<u32>,
}

/// What a volume is at an entry, beside its blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base {
    /// The entry.
    pub index: u64,
    /// Its term.
    pub term: u64,
    /// The attachment that may write then.
    pub epoch: u64,
    /// The volume's size.
    pub blocks: u64,
    /// Index of the configuration that is in force then, and itself.
    pub config: (u64, Arc<[u8]>),
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
    /// `| 7 | blocks 8 |` The volume is that large from then on.
    Grow {
        /// Its size in blocks.
        blocks: u64,
    },
}

pub(super) fn count(number: usize) -> u32 {
    u32::try_from(number).expect("batches are far below 4 GiB")
}

pub(super) fn encode_all(records: &[Record]) -> Vec<u8> {
    let mut put = Put::default();
    records.iter().for_each(|record| record.put(&mut put));
    put.0
}

pub(super) fn decode_all(bytes: &[u8], count: u32) -> Option<Vec<Record>> {
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
            Self::Chunk(chunk) => chunk.bytes(),
            Self::Base { base, .. } => 62 + base.config.1.len(),
            Self::NotTaken(_) => 42,
        }
    }

    /// Whether its payload is in a batch of so many blocks.
    pub(super) fn is_within(&self, blocks: u32) -> bool {
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
            Self::Chunk(chunk) => {
                chunk.put(put);
                put
            }
            Self::Base { volume, base } => {
                put.u16(8).u128(volume.get());
                base.put(put);
                put
            }
            Self::NotTaken(chunk) => {
                put.u16(9).u128(chunk.volume.get());
                put.u64(chunk.seq).u64(chunk.number).u64(chunk.changed)
            }
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
            7 => Self::Chunk(ChunkRecord::take(volume, take)?),
            8 => Self::Base {
                volume,
                base: Base::take(take)?,
            },
            9 => Self::NotTaken(NotTaken {
                volume,
                seq: take.u64()?,
                number: take.u64()?,
                changed: take.u64()?,
            }),
            _ => return None,
        })
    }
}

impl ChunkRecord {
    /// Bytes that it takes in a header.
    pub(crate) fn bytes(&self) -> usize {
        let extents = self.extents.iter();
        38 + extents.map(|it| 8 + 4 * it.crcs.len()).sum::<usize>()
    }

    fn put(&self, put: &mut Put) {
        put.u16(7).u128(self.volume.get());
        put.u64(self.number).u64(self.changed);
        put.u32(count(self.extents.len()));
        for extent in &self.extents {
            put.u16(extent.number).u16(extent.valid).u32(extent.at);
            extent.crcs.iter().for_each(|crc| _ = put.u32(*crc));
        }
    }

    fn take(volume: VolumeId, take: &mut Take<'_>) -> Option<Self> {
        let (number, changed) = (take.u64()?, take.u64()?);
        number
            .checked_add(1)?
            .checked_mul(u64::from(CHUNK_BLOCKS))?;
        let mut extents: Vec<ChunkExtent> = Vec::new();
        for _ in 0..take.u32()? {
            let (number, valid, at) = (take.u16()?, take.u16()?, take.u32()?);
            let follows = extents.last().is_none_or(|last| last.number < number);
            if valid == 0 || !follows || u32::from(number) >= CHUNK_BLOCKS / EXTENT_BLOCKS {
                return None;
            }
            let crcs = words(take, valid.count_ones())?.to_vec();
            extents.push(ChunkExtent {
                number,
                valid,
                at,
                crcs,
            });
        }
        Some(Self {
            volume,
            number,
            changed,
            extents,
        })
    }
}

impl Base {
    fn put(&self, put: &mut Put) {
        put.u64(self.index).u64(self.term).u64(self.epoch);
        put.u64(self.blocks).u64(self.config.0);
        put.u32(count(self.config.1.len())).bytes(&self.config.1);
    }

    fn take(take: &mut Take<'_>) -> Option<Self> {
        let (index, term, epoch) = (take.u64()?, take.u64()?, take.u64()?);
        let (blocks, config) = (take.u64()?, take.u64()?);
        let len = take.u32()? as usize;
        if len > MOST_CONFIG_BYTES || index > MOST_NUMBER || blocks > MOST_VOLUME_BLOCKS {
            return None;
        }
        Some(Self {
            index,
            term,
            epoch,
            blocks,
            config: (config, take.bytes(len)?.into()),
        })
    }
}

impl BodyRecord {
    fn bytes(&self) -> usize {
        match self {
            Self::Write { crcs, .. } => 16 + 4 * crcs.len(),
            Self::Redirected { extents, crcs, .. } => 12 + 4 * (extents.len() + crcs.len()),
            Self::Zero { .. } => 16,
            Self::Grow { .. } => 8,
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
            Self::Grow { blocks } => _ = put.u16(7).u64(*blocks),
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
            7 => Self::Grow {
                blocks: take.u64()?,
            },
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
