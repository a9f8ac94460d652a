//! The store: its volumes, and its IO on the way out and back.

use crate::batch::{Batch, Queued};
use crate::checkpoint::Checkpoint;
use crate::format::record::{NotTaken, Record};
use crate::format::superblock::Superblock;
use crate::read::{EntryReading, Reading};
use crate::refused::{check_size, invalid};
use crate::ring::Ring;
use crate::space::{Need, Space};
use crate::volume::Volume;
use crate::{
    BLOCK_BYTES, Buffer, Counters, Done, Event, Io, Refused, RepairRefused, Ticket, Token,
    VolumeId, block_crc,
};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Nodes that a larger volume may need: one for each level.
pub(crate) const GROW_PAGES: u32 = 4;

/// The block store of one disk.
#[derive(Debug)]
pub struct Store {
    pub(crate) superblock: Superblock,
    pub(crate) volumes: BTreeMap<VolumeId, Volume>,
    pub(crate) space: Space,
    pub(crate) ring: Ring,
    pub(crate) queue: VecDeque<Queued>,
    /// Chunks that were not whole when it was opened; the next batch says so.
    pub(crate) not_taken: Vec<NotTaken>,
    /// Bytes of records in the queue that are no entries.
    pub(crate) queued_bytes: usize,
    /// Bytes of the log that all volumes' live entries are answerable for.
    pub(crate) live: u64,
    /// Volumes whose hard state differs from what was last put into a batch.
    pub(crate) hard_changed: BTreeSet<VolumeId>,
    pub(crate) batch: Option<Batch>,
    pub(crate) checkpoint: Option<Checkpoint>,
    pub(crate) checkpoint_wanted: bool,
    /// Volumes came or went since the last checkpoint.
    pub(crate) directory_changed: bool,
    pub(crate) directory: Vec<u32>,
    pub(crate) reads: BTreeMap<u64, Reading>,
    pub(crate) entry_reads: BTreeMap<u64, EntryReading>,
    pub(crate) inflight: BTreeMap<Token, Purpose>,
    pub(crate) out: VecDeque<(Token, Io)>,
    pub(crate) events: VecDeque<Event>,
    pub(crate) dead: Option<String>,
    pub(crate) next: u64,
    pub(crate) counters: Counters,
}

/// What an IO is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    Batch,
    BatchSync,
    Checkpoint,
    Read { read: u64, part: usize },
    Entry { read: u64, part: usize },
}

impl Store {
    /// Makes an empty volume.
    pub fn create(&mut self, volume: VolumeId, blocks: u64) -> Result<Ticket, Refused> {
        self.alive()?;
        if self.volumes.contains_key(&volume) {
            return Err(Refused::Exists { volume });
        }
        check_size(blocks)?;
        self.room_for_local()?;
        let page = Need {
            extents: 0,
            pages: 1,
        };
        if !self.space.has(page) || self.volumes.len() as u64 >= self.most_volumes() {
            return Err(Refused::MapFull);
        }
        self.space.pages_needed += 1;
        let born = self.number();
        self.volumes
            .insert(volume, Volume::new(volume, born, blocks));
        self.directory_changed = true;
        let record = Record::Create { volume, blocks };
        self.enqueue(Queued::Record { record, born });
        Ok(self.ticket(volume))
    }

    /// Deletes a volume with all it has. There is no way back: who wants one waits before calling this.
    pub fn delete(&mut self, volume: VolumeId) -> Result<Ticket, Refused> {
        self.alive()?;
        self.room_for_local()?;
        let mut gone = self
            .volumes
            .remove(&volume)
            .ok_or(Refused::NoVolume { volume })?;
        gone.free_all(&mut self.space);
        self.live -= gone.live;
        self.hard_changed.remove(&volume);
        self.directory_changed = true;
        self.say(Record::Delete { volume });
        Ok(self.ticket(volume))
    }

    /// Makes a volume larger.
    pub fn grow(&mut self, volume: VolumeId, blocks: u64) -> Result<Ticket, Refused> {
        check_size(blocks)?;
        self.room_for_local()?;
        let full = !self.space.has(Need {
            extents: 0,
            pages: GROW_PAGES,
        });
        let (held, space) = self.volume_mut(volume)?;
        if blocks < held.blocks {
            let has = held.blocks;
            return Err(invalid(format!(
                "volume {volume} has {has} blocks; it cannot shrink to {blocks}"
            )));
        }
        if full {
            return Err(Refused::MapFull);
        }
        held.enlarge(blocks, space);
        held.reckon(space);
        self.say(Record::Grow { volume, blocks });
        Ok(self.ticket(volume))
    }

    /// Writes a block anew that was found damaged, from a peer's copy. It has to be what was last written
    /// here, which its CRC shows: so nothing can become older or newer by it.
    pub fn repair(
        &mut self,
        volume: VolumeId,
        lba: u64,
        data: &Buffer,
    ) -> Result<(), RepairRefused> {
        let (held, _) = self.volume_mut(volume)?;
        if data.blocks() != 1 {
            return Err(invalid("blocks are repaired one by one".to_owned()).into());
        }
        let place = held
            .map
            .place(lba)
            .filter(|_| !held.dirty.contains_key(&lba));
        let place = place.ok_or(RepairRefused::NotStored { lba })?;
        if place.crc != block_crc(volume, lba, &data.pages()[0]) {
            return Err(RepairRefused::Differs { lba });
        }
        held.dirty.insert(lba, data.clone());
        held.changed = true;
        self.counters.repaired_blocks += 1;
        Ok(())
    }

    /// Asks for a checkpoint: the log's work is done then, and a restart is quick.
    pub fn checkpoint(&mut self) {
        let changed = |volume: &Volume| volume.changed || volume.map.is_dirty();
        self.checkpoint_wanted |= self.directory_changed
            || !self.queue.is_empty()
            || self.space.freed_soon() > 0
            || self.volumes.values().any(changed);
    }

    /// What there is to be told.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// IO to carry out. To be asked until there is none, after each call and each completion.
    pub fn poll_io(&mut self) -> Option<(Token, Io)> {
        if self.dead.is_some() {
            return None;
        }
        if self.out.is_empty() {
            self.seal();
            self.go_on_with_checkpoint();
        }
        self.out.pop_front()
    }

    /// Whether nothing is under way, nor waits to be.
    pub fn is_idle(&self) -> bool {
        let busy = self.batch.is_some() || self.checkpoint.is_some() || self.checkpoint_wanted;
        !busy && self.queue.is_empty() && self.inflight.is_empty() && self.out.is_empty()
    }

    /// Says what became of an IO.
    ///
    /// # Panics
    /// When no such IO was handed out.
    pub fn handle_done(&mut self, token: Token, done: Done) {
        if self.dead.is_some() {
            return;
        }
        let purpose = self
            .inflight
            .remove(&token)
            .expect("completions are of IO that was handed out");
        match (purpose, done) {
            (Purpose::Read { read, part }, done) => self.read_done(read, part, done),
            (Purpose::Entry { read, part }, done) => self.entry_done(read, part, done),
            (_, Done::Failed(why)) => self.die(purpose, &why),
            (Purpose::Batch | Purpose::BatchSync, _) => self.batch_done(purpose),
            (Purpose::Checkpoint, _) => self.checkpoint_done(),
        }
    }

    /// A write or a sync failed: what the disk has is not known any more, and another try tells nothing.
    pub(crate) fn die(&mut self, purpose: Purpose, why: &str) {
        let what = match purpose {
            Purpose::Batch => "writing the log",
            Purpose::BatchSync => "syncing the log",
            Purpose::Checkpoint => "writing a checkpoint",
            Purpose::Read { .. } | Purpose::Entry { .. } => "reading",
        };
        let cause = format!("{what}: {why}");
        self.dead = Some(cause.clone());
        self.out.clear();
        self.events.push_back(Event::Dead { cause });
    }

    pub(crate) fn issue(&mut self, purpose: Purpose, io: Io) -> Token {
        self.counters.syncs += u64::from(matches!(io, Io::Sync | Io::WriteSync { .. }));
        let token = Token(self.number());
        self.inflight.insert(token, purpose);
        self.out.push_back((token, io));
        token
    }

    pub(crate) const fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    pub(crate) fn volume_mut(
        &mut self,
        volume: VolumeId,
    ) -> Result<(&mut Volume, &mut Space), Refused> {
        self.alive()?;
        let held = self
            .volumes
            .get_mut(&volume)
            .ok_or(Refused::NoVolume { volume })?;
        match &held.broken {
            Some(why) => Err(Refused::Broken {
                volume,
                why: why.clone(),
            }),
            None => Ok((held, &mut self.space)),
        }
    }

    fn alive(&self) -> Result<(), Refused> {
        match &self.dead {
            Some(cause) => Err(Refused::Dead {
                cause: cause.clone(),
            }),
            None => Ok(()),
        }
    }

    pub(crate) fn say(&mut self, record: Record) {
        self.enqueue(Queued::Record { record, born: 0 });
    }

    pub(crate) fn enqueue(&mut self, queued: Queued) {
        self.queued_bytes += queued.local_bytes();
        self.queue.push_back(queued);
    }

    pub(crate) fn ticket(&mut self, volume: VolumeId) -> Ticket {
        let ticket = Ticket(self.number());
        self.queue.push_back(Queued::Ticket(ticket, volume));
        ticket
    }

    /// Bytes of the log that entries which are not settled may take: an eighth, as the next checkpoint
    /// has to carry them on in one batch.
    pub(crate) fn most_live(&self) -> u64 {
        u64::from(self.superblock.layout.wal_blocks) * BLOCK_BYTES as u64 / 8
    }

    /// Bytes of records in a batch, beside those that a checkpoint carries on.
    pub(crate) fn most_records(&self) -> usize {
        self.superblock.layout.wal_blocks as usize * BLOCK_BYTES / 64
    }

    fn most_volumes(&self) -> u64 {
        u64::from(self.superblock.layout.wal_blocks) / 2
    }

    pub(crate) fn room_for_local(&self) -> Result<(), Refused> {
        let queued = self.queued_bytes;
        if queued < self.most_records() / 2 {
            return Ok(());
        }
        Err(Refused::Busy {
            live: queued as u64,
            most: self.most_records() as u64 / 2,
        })
    }
}
