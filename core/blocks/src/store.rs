//! The store: what is asked of it, and what it says no to.

use crate::batch::{Batch, Queued};
use crate::checkpoint::Checkpoint;
use crate::format::superblock::Superblock;
use crate::format::wal::{HardState, Record};
use crate::log::{Body, Entry, Kind, Logged, Payload};
use crate::read::{EntryReading, Reading};
use crate::ring::Ring;
use crate::space::{Need, Space};
use crate::volume::Volume;
use crate::{
    BLOCK_BYTES, Buffer, Digest, Done, EXTENT_BLOCKS, Event, Identity, Io, Layout,
    MOST_CONFIG_BYTES, MOST_ENTRY_BLOCKS, MOST_VOLUME_BLOCKS, Ticket, Token, VolumeId, block_crc,
};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// The block store of one disk.
#[derive(Debug)]
pub struct Store {
    pub(crate) superblock: Superblock,
    pub(crate) volumes: BTreeMap<VolumeId, Volume>,
    pub(crate) space: Space,
    pub(crate) ring: Ring,
    pub(crate) queue: VecDeque<Queued>,
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

/// What Raft wants to be durable together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Submission {
    /// Term and vote, if they changed.
    pub hard: Option<(u64, u64)>,
    /// Entries one after another. The first may replace one that is there, and all after that; those
    /// that are there already, with the same term, are left alone.
    pub entries: Vec<Entry>,
}

/// Why the store does not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The disk failed.
    #[error("the disk failed and takes nothing in: {cause}")]
    Dead {
        /// What failed.
        cause: String,
    },
    /// There is no such volume on this disk.
    #[error("no volume {volume} on this disk")]
    NoVolume {
        /// Which.
        volume: VolumeId,
    },
    /// There is one already.
    #[error("volume {volume} is on this disk already")]
    Exists {
        /// Which.
        volume: VolumeId,
    },
    /// Its map cannot be read.
    #[error(
        "volume {volume} cannot be used: {why}; delete this replica and make a new one from its peers"
    )]
    Broken {
        /// Which.
        volume: VolumeId,
        /// What is wrong.
        why: String,
    },
    /// No extents for it. Overwrites, zeroes and reads go on.
    #[error(
        "the disk is full: {free} extents of 64 KiB are free, {needed} more are needed; delete or trim volumes, or move some to another disk"
    )]
    NoSpace {
        /// Free and not promised.
        free: u32,
        /// What it would take.
        needed: u32,
    },
    /// There is room for it after the next checkpoint, which is on its way: overwrites of whole extents
    /// and zeroes leave extents that are free only then.
    #[error(
        "{needed} extents of 64 KiB are needed and free after the next checkpoint; try again then"
    )]
    NotYet {
        /// What it takes.
        needed: u32,
    },
    /// Too many volumes, or their map is full.
    #[error("the disk's map is full; delete volumes, or move some to another disk")]
    MapFull,
    /// Too much is not committed or not durable yet. Asked again after the next event it may pass.
    #[error(
        "{live} bytes of the log are not settled yet, at most {most} may be; try again when some are"
    )]
    Busy {
        /// How many.
        live: u64,
        /// At most.
        most: u64,
    },
    /// The caller asks for what can never be.
    #[error("{what}")]
    Invalid {
        /// What, and why.
        what: String,
    },
    /// A committed entry's payload is lost here; it has to be submitted again.
    #[error("entry {index} is damaged on this disk; submit it again from a peer's copy")]
    Lost {
        /// Which.
        index: u64,
    },
}

/// Why a block is not repaired.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RepairRefused {
    /// The volume is not there, or the disk is dead.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// It reads as zeroes, or is newer in memory.
    #[error("block {lba} has nothing on disk to be repaired")]
    NotStored {
        /// Which.
        lba: u64,
    },
    /// It is not what was written here last.
    #[error(
        "these are not the bytes that were last written to block {lba}; read it from a peer again"
    )]
    Differs {
        /// Which.
        lba: u64,
    },
}

/// What is known of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeInfo {
    /// Its size.
    pub blocks: u64,
    /// Term, vote and commit.
    pub hard: HardState,
    /// First entry that can be read back.
    pub first: u64,
    /// Last entry.
    pub last: u64,
    /// All entries up to this one are durable here.
    pub durable: u64,
    /// Last entry that took effect.
    pub applied: u64,
    /// The attachment that may write.
    pub epoch: u64,
    /// Index of the configuration that is in force, and itself.
    pub config: (u64, Arc<[u8]>),
    /// Of its blocks, at `applied`.
    pub digest: Digest,
    /// What is wrong, if it cannot be used.
    pub broken: Option<String>,
}

/// Extents of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpaceUse {
    /// All of them.
    pub extents: u32,
    /// Those that are free.
    pub free: u32,
    /// Of the free ones, those that accepted entries may take.
    pub promised: u32,
    /// Those that are free after the next checkpoint.
    pub freed_soon: u32,
}

impl SpaceUse {
    /// Less than a tenth is left: time to tell somebody, before writes are refused.
    pub const fn is_low(&self) -> bool {
        self.free.saturating_sub(self.promised) < self.extents / 10
    }
}

/// What was done since the store was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Batches of the log.
    pub batches: u64,
    /// Checkpoints.
    pub checkpoints: u64,
    /// Syncs.
    pub syncs: u64,
    /// Bytes written to the log.
    pub log_bytes: u64,
    /// Bytes written to extents, by batches and by checkpoints.
    pub extent_bytes: u64,
    /// Bytes written to the map and to superblocks.
    pub map_bytes: u64,
    /// Blocks read that were damaged.
    pub damaged_blocks: u64,
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
        self.queue.push_back(Queued::Record {
            record: Record::Create { volume, blocks },
            born,
        });
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
            pages: 4,
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
        held.blocks = blocks;
        held.changed = true;
        held.map.grow(blocks, space);
        self.say(Record::Grow { volume, blocks });
        Ok(self.ticket(volume))
    }

    /// Takes in what Raft wants durable; [`Event::Durable`] says when it is. All or nothing is taken.
    pub fn submit(&mut self, volume: VolumeId, submission: Submission) -> Result<Ticket, Refused> {
        let need = self.check(volume, &submission)?;
        let (held, space) = self.volume_mut(volume)?;
        if let Some((term, vote)) = submission.hard {
            (held.hard.term, held.hard.vote) = (term, vote);
            (held.hard_changed, held.changed) = (true, true);
        }
        // Promised as a whole, so that no entry takes what a later one needs.
        space.promise(need);
        for entry in submission.entries {
            self.append(volume, entry);
        }
        self.space.take_back(need);
        Ok(self.ticket(volume))
    }

    /// Drops the entries after this one.
    pub fn truncate(&mut self, volume: VolumeId, last: u64) -> Result<Ticket, Refused> {
        let (held, space) = self.volume_mut(volume)?;
        let folded = held.folded.0;
        if last < folded {
            return Err(invalid(format!(
                "entries up to {folded} are committed; none after {last} can go"
            )));
        }
        if last < held.log.last() {
            held.cut_after(last, space);
            self.say(Record::LogEnd { volume, last });
        }
        Ok(self.ticket(volume))
    }

    /// Entries up to this one are committed, and take effect: reads see them. Gives those that have none,
    /// as they are of an epoch that is over. That the commit is durable comes with a later batch.
    pub fn committed(&mut self, volume: VolumeId, index: u64) -> Result<Vec<u64>, Refused> {
        let (held, space) = self.volume_mut(volume)?;
        if index > held.log.last() {
            let last = held.log.last();
            return Err(invalid(format!(
                "entry {index} cannot be committed: the last one here is {last}"
            )));
        }
        let lost = held
            .log
            .after(held.folded.0)
            .find(|(_, entry)| entry.is_lost());
        if let Some((lost, _)) = lost
            && lost <= index
        {
            return Err(Refused::Lost { index: lost });
        }
        let mut fenced = Vec::new();
        while held.folded.0 < index {
            if !held.has_room(space) {
                let why = format!("there is no room for entry {}", held.folded.0 + 1);
                held.broken = Some(why.clone());
                return Err(Refused::Broken { volume, why });
            }
            if !held.fold_next(space) {
                fenced.push(held.folded.0);
            }
        }
        Ok(fenced)
    }

    /// The caller has no use for entries up to this one. They may be gone before it says so: see
    /// [`VolumeInfo::first`].
    pub fn compact(&mut self, volume: VolumeId, index: u64) -> Result<(), Refused> {
        let (held, _) = self.volume_mut(volume)?;
        let until = index.min(held.carried_from());
        held.log.forget_until(until);
        Ok(())
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
        Ok(())
    }

    /// Asks for a checkpoint: the log's work is done then, and a restart is quick.
    pub fn checkpoint(&mut self) {
        let changed = |volume: &Volume| volume.changed || volume.map.is_dirty();
        self.checkpoint_wanted |=
            self.directory_changed || !self.queue.is_empty() || self.volumes.values().any(changed);
    }

    /// What is known of a volume.
    pub fn volume(&self, volume: VolumeId) -> Option<VolumeInfo> {
        let held = self.volumes.get(&volume)?;
        Some(VolumeInfo {
            blocks: held.blocks,
            hard: held.hard,
            first: held.log.first(),
            last: held.log.last(),
            durable: held.log.durable,
            applied: held.folded.0,
            epoch: held.epoch,
            config: held.config.clone(),
            digest: held.digest,
            broken: held.broken.clone(),
        })
    }

    /// The volumes on this disk.
    pub fn volumes(&self) -> impl Iterator<Item = VolumeId> {
        self.volumes.keys().copied()
    }

    /// An entry's term, also of the last one that is gone.
    pub fn term(&self, volume: VolumeId, index: u64) -> Option<u64> {
        self.volumes.get(&volume)?.log.term(index)
    }

    /// 1 MiB chunks of a volume that entries after this one changed: all that who has everything up to
    /// there lacks.
    pub fn chunks_changed_since(&self, volume: VolumeId, index: u64) -> Option<Vec<u64>> {
        Some(self.volumes.get(&volume)?.map.chunks_changed_since(index))
    }

    /// Extents that are free.
    pub fn space(&self) -> SpaceUse {
        SpaceUse {
            extents: self.superblock.layout.extents,
            free: self.space.extents.free(),
            promised: self.space.extents_promised,
            freed_soon: self.space.freed_soon() as u32,
        }
    }

    /// What was done so far.
    pub const fn counters(&self) -> Counters {
        self.counters
    }

    /// Whose disk it is.
    pub const fn identity(&self) -> Identity {
        self.superblock.identity
    }

    /// What is where.
    pub const fn layout(&self) -> Layout {
        self.superblock.layout
    }

    /// Blocks that one entry may write: fewer where the log is small.
    pub fn most_entry_blocks(&self) -> u32 {
        MOST_ENTRY_BLOCKS.min(self.superblock.layout.wal_blocks / 16)
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
    fn die(&mut self, purpose: Purpose, why: &str) {
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
        self.counters.syncs += u64::from(io == Io::Sync);
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

    fn say(&mut self, record: Record) {
        self.queue.push_back(Queued::Record { record, born: 0 });
    }

    fn ticket(&mut self, volume: VolumeId) -> Ticket {
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

    fn room_for_local(&self) -> Result<(), Refused> {
        let queued: usize = self.queue.iter().map(Queued::local_bytes).sum();
        if queued < self.most_records() / 2 {
            return Ok(());
        }
        Err(Refused::Busy {
            live: queued as u64,
            most: self.most_records() as u64 / 2,
        })
    }

    /// Checks a submission whole before anything of it is taken in. Gives what it may take.
    fn check(&mut self, volume: VolumeId, submission: &Submission) -> Result<Need, Refused> {
        let (most_live, most_blocks) = (self.most_live(), self.most_entry_blocks());
        let live: u64 = self.volumes.values().map(|held| held.live).sum();
        let (held, space) = self.volume_mut(volume)?;
        if let Some((term, _)) = submission.hard
            && term < held.hard.term
        {
            let has = held.hard.term;
            return Err(invalid(format!("term {term} after term {has}")));
        }
        let fresh = fresh_entries(held, &submission.entries)?;
        let Some(first) = fresh.first() else {
            return Ok(Need::default());
        };
        let mut need = Need::default();
        let mut cost = 0;
        let mut emptied = held.empties();
        for entry in fresh {
            check_body(entry, held.blocks, most_blocks)?;
            cost += most_cost(&entry.body);
            match &entry.body {
                Body::Write { lba, data } => {
                    let more = held.need(*lba, data.blocks() as u64, emptied);
                    need.extents += more.extents;
                    need.pages += more.pages;
                }
                Body::Zero { .. } => emptied = true,
                Body::Attach | Body::Config(_) | Body::Empty => {}
            }
        }
        // What is replaced does not stand in the way of what replaces it.
        let replaced = held.log.after(first.index - 1).map(|(_, old)| old);
        let (mut gone, mut gone_cost) = (Need::default(), 0);
        for old in replaced {
            gone.extents += old.need.extents;
            gone.pages += old.need.pages;
            gone_cost += old.cost(volume);
        }
        let live = live - gone_cost + cost;
        if live > most_live {
            return Err(Refused::Busy {
                live,
                most: most_live,
            });
        }
        space.take_back(gone);
        let (has, free) = (space.has(need), space.unpromised());
        space.promise(gone);
        if !has {
            let needed = need.extents;
            let soon = free as usize + self.space.freed_soon();
            if free < needed && soon >= needed as usize {
                self.checkpoint_wanted = true;
                return Err(Refused::NotYet { needed });
            }
            let map_full = free >= needed;
            return Err(if map_full {
                Refused::MapFull
            } else {
                Refused::NoSpace { free, needed }
            });
        }
        Ok(need)
    }

    fn append(&mut self, volume: VolumeId, entry: Entry) {
        let serial = self.number();
        let held = self.volumes.get_mut(&volume).expect("it was checked");
        let space = &mut self.space;
        let Entry {
            index,
            term,
            epoch,
            body,
        } = entry;
        if is_there(held, index, term) {
            return;
        }
        let refills = held.log.get(index).is_some_and(|old| old.term == term);
        if !refills && index <= held.log.last() {
            held.cut_after(index - 1, space);
        }
        let (kind, need) = kind_of(body, held, space);
        let logged = Logged {
            term,
            epoch,
            kind,
            need,
            serial,
            batch: 0,
            durable: false,
        };
        if refills {
            held.refill(index, logged);
        } else {
            held.append(logged, space);
        }
        self.queue.push_back(Queued::Entry {
            volume,
            index,
            serial,
        });
    }
}

/// Whether an entry needs no second time: it took effect, or is in the log, undamaged.
fn is_there(held: &Volume, index: u64, term: u64) -> bool {
    let same = held.log.get(index).filter(|old| old.term == term);
    index <= held.folded.0 || same.is_some_and(|old| !old.is_lost())
}

/// The entries of a submission without those, at its beginning, that are there.
fn fresh_entries<'a>(held: &Volume, entries: &'a [Entry]) -> Result<&'a [Entry], Refused> {
    for (offset, entry) in entries.iter().enumerate() {
        if entry.index != entries[0].index + offset as u64 {
            return Err(invalid(format!(
                "entry {} is out of its place",
                entry.index
            )));
        }
        let (index, folded) = (entry.index, held.folded.0);
        if index == 0 || index <= folded && held.log.term(index).is_some_and(|t| t != entry.term) {
            return Err(invalid(format!(
                "entry {index} cannot be replaced: {folded} are committed"
            )));
        }
    }
    let there = |entry: &&Entry| is_there(held, entry.index, entry.term);
    let fresh = &entries[entries.iter().take_while(there).count()..];
    let last = held.log.last();
    match fresh.first() {
        Some(first) if first.index > last + 1 => Err(invalid(format!(
            "entry {} does not follow entry {last}",
            first.index
        ))),
        _ => Ok(fresh),
    }
}

/// What an entry is answerable for in the log at most.
fn most_cost(body: &Body) -> u64 {
    let fixed = 200;
    match body {
        Body::Write { data, .. } => fixed + data.blocks() as u64 * (BLOCK_BYTES as u64 + 10),
        Body::Config(bytes) => fixed + 2 * bytes.len() as u64,
        Body::Zero { .. } | Body::Attach | Body::Empty => fixed,
    }
}

/// Decides where a payload goes: whole extents are written once, to where they stay.
fn kind_of(body: Body, held: &Volume, space: &mut Space) -> (Kind, Need) {
    let (lba, data) = match body {
        Body::Write { lba, data } => (lba, data),
        Body::Zero { lba, blocks } => return (Kind::Zero { lba, blocks }, Need::default()),
        Body::Attach => return (Kind::Attach, Need::default()),
        Body::Config(bytes) => return (Kind::Config(bytes), Need::default()),
        Body::Empty => return (Kind::Empty, Need::default()),
    };
    let blocks = data.blocks() as u64;
    let crcs: Arc<[u32]> = (lba..)
        .zip(data.pages())
        .map(|(lba, page)| block_crc(held.id, lba, page))
        .collect();
    let need = held.need(lba, blocks, held.empties());
    let extent = u64::from(EXTENT_BLOCKS);
    let whole = lba.is_multiple_of(extent) && blocks.is_multiple_of(extent);
    let extents = (blocks / u64::from(EXTENT_BLOCKS)) as u32;
    if whole && may_redirect(extents, need, space) {
        let taken: Option<Arc<[u32]>> = (0..extents).map(|_| space.extents.take()).collect();
        let kind = Kind::Redirected {
            lba,
            extents: taken.expect("they were counted"),
            crcs,
            data: Some(data),
        };
        let need = Need { extents: 0, ..need };
        return (kind, need);
    }
    let kind = Kind::Write {
        lba,
        crcs,
        at: Payload::Queued,
        data: Some(data),
    };
    (kind, need)
}

/// Extents that an overwrite leaves are free only after a checkpoint: when the disk is nearly full it
/// goes in place, so that it leaves others what they were promised.
const fn may_redirect(extents: u32, need: Need, space: &Space) -> bool {
    let free = space.unpromised();
    let fresh = need.extents >= extents;
    if fresh {
        free >= extents
    } else {
        free >= extents * 4
    }
}

fn check_size(blocks: u64) -> Result<(), Refused> {
    if (1..=MOST_VOLUME_BLOCKS).contains(&blocks) {
        return Ok(());
    }
    Err(invalid(format!(
        "a volume of {blocks} blocks: it may have 1 to {MOST_VOLUME_BLOCKS}"
    )))
}

fn check_body(entry: &Entry, volume_blocks: u64, most_blocks: u32) -> Result<(), Refused> {
    let (lba, blocks, most) = match &entry.body {
        Body::Write { lba, data } => (*lba, data.blocks() as u64, u64::from(most_blocks)),
        Body::Zero { lba, blocks } => (*lba, *blocks, u64::MAX),
        Body::Config(bytes) if bytes.len() > MOST_CONFIG_BYTES => {
            let bytes = bytes.len();
            return Err(invalid(format!(
                "a configuration of {bytes} bytes: at most {MOST_CONFIG_BYTES}"
            )));
        }
        Body::Config(_) | Body::Attach | Body::Empty => return Ok(()),
    };
    let end = lba.checked_add(blocks).filter(|end| *end <= volume_blocks);
    if blocks == 0 || blocks > most || end.is_none() {
        let index = entry.index;
        return Err(invalid(format!(
            "entry {index} is for {blocks} blocks at {lba} of {volume_blocks}, of at most {most} at once"
        )));
    }
    Ok(())
}

pub(crate) const fn invalid(what: String) -> Refused {
    Refused::Invalid { what }
}
