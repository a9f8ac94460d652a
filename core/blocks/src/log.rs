//! The log of one volume, as it is in memory.

use crate::format::record::{BodyRecord, EntryRecord};
use crate::space::Need;
use crate::{BLOCK_BYTES, Buffer, VolumeId};
use std::collections::VecDeque;
use std::sync::Arc;

/// An entry of a volume's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its place in the log, from 1.
    pub index: u64,
    /// The leader's term.
    pub term: u64,
    /// The attachment it is of: [`Body::Attach`] begins this one, others are of it.
    pub epoch: u64,
    /// What it does.
    pub body: Body,
}

/// What an entry does when it is committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// Blocks are written.
    Write {
        /// The first one.
        lba: u64,
        /// Their new contents.
        data: Buffer,
    },
    /// Blocks read as zeroes, and take no space.
    Zero {
        /// The first one.
        lba: u64,
        /// How many.
        blocks: u64,
    },
    /// Writes of earlier epochs that come later have no effect.
    Attach,
    /// The group's members, in the consensus's own form.
    Config(Arc<[u8]>),
    /// A new leader's first.
    Empty,
    /// The volume is that large from then on, if it was smaller.
    Grow {
        /// Its size in blocks.
        blocks: u64,
    },
}

/// What is known of an entry without its payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntryHead {
    /// The leader's term.
    pub term: u64,
    /// The attachment it is of.
    pub epoch: u64,
    /// What it does.
    pub kind: EntryKind,
    /// Its payload is damaged on this disk, and it is yet to take effect: it has to be submitted again.
    pub lost: bool,
}

/// What an entry does, in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    /// [`Body::Write`].
    Write,
    /// [`Body::Zero`].
    Zero,
    /// [`Body::Attach`].
    Attach,
    /// [`Body::Config`].
    Config,
    /// [`Body::Empty`].
    Empty,
    /// [`Body::Grow`].
    Grow,
}

/// An entry as the log keeps it.
#[derive(Debug, Clone)]
pub(crate) struct Logged {
    pub(crate) term: u64,
    pub(crate) epoch: u64,
    pub(crate) kind: Kind,
    /// Promised to it until it takes effect.
    pub(crate) need: Need,
    /// Tells it from another one that was at its index.
    pub(crate) serial: u64,
    /// The batch that has its record; 0 while there is none.
    pub(crate) batch: u64,
    pub(crate) durable: bool,
}

#[derive(Debug, Clone)]
pub(crate) enum Kind {
    Write {
        lba: u64,
        crcs: Arc<[u32]>,
        at: Payload,
        /// Until a checkpoint has it.
        data: Option<Buffer>,
    },
    Redirected {
        lba: u64,
        extents: Arc<[u32]>,
        crcs: Arc<[u32]>,
        /// Until a checkpoint has it; nothing after a restart.
        data: Option<Buffer>,
        /// Blocks of it that are not what was written; it is yet to take effect.
        lost: Vec<u32>,
    },
    Zero {
        lba: u64,
        blocks: u64,
    },
    Attach,
    Config(Arc<[u8]>),
    Empty,
    Grow {
        blocks: u64,
    },
}

/// Where a payload is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Payload {
    /// In memory only.
    Queued,
    /// In the log, from this block on.
    At(u32),
    /// Some blocks of it (or all) are nowhere on this disk.
    Lost(Vec<u32>),
}

impl Logged {
    pub(crate) fn is_lost(&self) -> bool {
        !self.lost().is_empty()
    }

    /// Its blocks that are lost, from the first one that it writes.
    pub(crate) fn lost(&self) -> &[u32] {
        match &self.kind {
            Kind::Write {
                at: Payload::Lost(lost),
                ..
            }
            | Kind::Redirected { lost, .. } => lost,
            _ => &[],
        }
    }

    /// Blocks of payload that a batch with it has.
    pub(crate) fn payload_blocks(&self) -> u32 {
        match &self.kind {
            Kind::Write { crcs, .. } if !self.is_lost() => crcs.len() as u32,
            _ => 0,
        }
    }

    /// Bytes of the log that it is answerable for: its payload, and its record here and in the next header. One whose
    /// payload is lost keeps the room for it: those behind it wait for it to come back.
    pub(crate) fn cost(&self, volume: VolumeId) -> u64 {
        let record = crate::format::record::Record::Entry(self.record(volume, 0, 0));
        let payload = match &self.kind {
            Kind::Write { crcs, .. } => crcs.len(),
            _ => 0,
        };
        (payload * BLOCK_BYTES + 2 * record.bytes()) as u64
    }

    /// What a header says of it, when its payload is that far into the batch.
    pub(crate) fn record(&self, volume: VolumeId, index: u64, payload: u32) -> EntryRecord {
        let body = match &self.kind {
            Kind::Write { lba, crcs, .. } => BodyRecord::Write {
                lba: *lba,
                payload: (!self.is_lost()).then_some(payload),
                crcs: Arc::clone(crcs),
            },
            Kind::Redirected {
                lba, extents, crcs, ..
            } => BodyRecord::Redirected {
                lba: *lba,
                extents: Arc::clone(extents),
                crcs: Arc::clone(crcs),
            },
            Kind::Zero { lba, blocks } => BodyRecord::Zero {
                lba: *lba,
                blocks: *blocks,
            },
            Kind::Attach => BodyRecord::Attach,
            Kind::Config(bytes) => BodyRecord::Config(Arc::clone(bytes)),
            Kind::Empty => BodyRecord::Empty,
            Kind::Grow { blocks } => BodyRecord::Grow { blocks: *blocks },
        };
        EntryRecord {
            volume,
            index,
            term: self.term,
            epoch: self.epoch,
            body,
        }
    }

    /// The entry itself, if what it writes is in memory.
    pub(crate) fn in_memory(&self, index: u64) -> Option<Entry> {
        let body = match &self.kind {
            Kind::Write { .. } | Kind::Redirected { .. } if self.is_lost() => return None,
            Kind::Write { lba, data, .. } | Kind::Redirected { lba, data, .. } => Body::Write {
                lba: *lba,
                data: data.clone()?,
            },
            Kind::Zero { lba, blocks } => Body::Zero {
                lba: *lba,
                blocks: *blocks,
            },
            Kind::Attach => Body::Attach,
            Kind::Config(bytes) => Body::Config(Arc::clone(bytes)),
            Kind::Empty => Body::Empty,
            Kind::Grow { blocks } => Body::Grow { blocks: *blocks },
        };
        Some(Entry {
            index,
            term: self.term,
            epoch: self.epoch,
            body,
        })
    }

    pub(crate) fn head(&self) -> EntryHead {
        EntryHead {
            term: self.term,
            epoch: self.epoch,
            kind: match self.kind {
                Kind::Write { .. } | Kind::Redirected { .. } => EntryKind::Write,
                Kind::Zero { .. } => EntryKind::Zero,
                Kind::Attach => EntryKind::Attach,
                Kind::Config(_) => EntryKind::Config,
                Kind::Empty => EntryKind::Empty,
                Kind::Grow { .. } => EntryKind::Grow,
            },
            lost: self.is_lost(),
        }
    }

    pub(crate) fn forget_data(&mut self) {
        if let Kind::Write { data, .. } | Kind::Redirected { data, .. } = &mut self.kind {
            *data = None;
        }
    }
}

/// The log: entries one after another, the first ones gone.
#[derive(Debug)]
pub(crate) struct Log {
    /// The last entry that is gone, and its term.
    pub(crate) before: (u64, u64),
    entries: VecDeque<Logged>,
    /// All entries up to this one are durable.
    pub(crate) durable: u64,
}

impl Log {
    pub(crate) const fn new(index: u64, term: u64) -> Self {
        Self {
            before: (index, term),
            entries: VecDeque::new(),
            durable: index,
        }
    }

    pub(crate) const fn first(&self) -> u64 {
        self.before.0 + 1
    }

    pub(crate) fn last(&self) -> u64 {
        self.before.0 + self.entries.len() as u64
    }

    pub(crate) fn term(&self, index: u64) -> Option<u64> {
        if index == self.before.0 {
            return Some(self.before.1);
        }
        self.get(index).map(|entry| entry.term)
    }

    pub(crate) fn get(&self, index: u64) -> Option<&Logged> {
        self.entries
            .get(usize::try_from(index.checked_sub(self.first())?).ok()?)
    }

    pub(crate) fn get_mut(&mut self, index: u64) -> Option<&mut Logged> {
        let at = index.checked_sub(self.first())?;
        self.entries.get_mut(usize::try_from(at).ok()?)
    }

    /// Entries after this index.
    pub(crate) fn after(&self, index: u64) -> impl Iterator<Item = (u64, &Logged)> {
        let skip =
            (index.saturating_add(1).saturating_sub(self.first()) as usize).min(self.entries.len());
        let first = self.first() + skip as u64;
        (first..first + (self.entries.len() - skip) as u64).zip(self.entries.range(skip..))
    }

    pub(crate) fn push(&mut self, entry: Logged) {
        self.entries.push_back(entry);
    }

    /// Takes the entries after this one out.
    pub(crate) fn cut_after(&mut self, last: u64) -> Vec<Logged> {
        let keep = last.saturating_add(1).saturating_sub(self.first()) as usize;
        self.durable = self.durable.min(last);
        self.entries.split_off(keep.min(self.entries.len())).into()
    }

    /// Goes on as far as entries are durable without a gap; gives those that newly are.
    pub(crate) fn advance_durable(&mut self) -> u64 {
        while self
            .get(self.durable + 1)
            .is_some_and(|entry| entry.durable)
        {
            self.durable += 1;
        }
        self.durable
    }

    /// Entries whose batch is this one or older are no longer in the log's ring.
    pub(crate) fn forget_batches(&mut self, seq: u64, checkpointed: u64) {
        while let Some(entry) = self
            .entries
            .pop_front_if(|entry| entry.batch != 0 && entry.batch <= seq)
        {
            self.before = (self.before.0 + 1, entry.term);
            // I1: only what a checkpoint has leaves the log.
            assert!(
                self.before.0 <= checkpointed,
                "entry {} leaves the log, and the checkpoint has but {checkpointed}",
                self.before.0
            );
        }
    }

    /// Entries up to this one are the caller's affair no longer.
    pub(crate) fn forget_until(&mut self, index: u64) {
        while self.before.0 < index {
            let Some(entry) = self.entries.pop_front() else {
                break;
            };
            self.before = (self.before.0 + 1, entry.term);
        }
    }

    /// The log goes on after this entry. Gives what was there and is no part of it any more.
    pub(crate) fn rebase(&mut self, index: u64, term: u64) -> Vec<Logged> {
        let agrees = self.get(index).is_some_and(|entry| entry.term == term);
        let number = if agrees {
            (index - self.before.0) as usize
        } else {
            self.entries.len()
        };
        let gone = self.entries.drain(..number).collect();
        self.before = (index, term);
        self.durable = self.durable.max(index);
        if !agrees {
            self.durable = index;
        }
        gone
    }

    pub(crate) fn forget_data_until(&mut self, index: u64) {
        let number = (index + 1).saturating_sub(self.first()) as usize;
        // Older ones were told before: those with data are the newest.
        for entry in self.entries.iter_mut().take(number).rev() {
            let had = matches!(
                &entry.kind,
                Kind::Write { data: Some(_), .. } | Kind::Redirected { data: Some(_), .. }
            );
            let plain = !matches!(&entry.kind, Kind::Write { .. } | Kind::Redirected { .. });
            if !had && !plain {
                break;
            }
            entry.forget_data();
        }
    }
}
