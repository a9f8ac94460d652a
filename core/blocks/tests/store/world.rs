//! A store on a disk, and what it has to be.

use crate::disk::Disk;
use crate::machine::{Machine, formatted};
use crate::model::{Model, Volume, range};
use crate::rng::Rng;
use blocks::{
    BLOCK_BYTES, Body, Buffer, Digest, Done, Entry, EntryError, Event, Io, OpenError, Page,
    ReadError, Recovered, Refused, Submission, Ticket, VolumeId,
};
use std::collections::{BTreeMap, BTreeSet};

pub(crate) struct World {
    pub(crate) machine: Machine,
    pub(crate) model: Model,
    tickets: BTreeMap<Ticket, u64>,
    reads: BTreeMap<Ticket, (VolumeId, u64, Vec<Buffer>)>,
    entries: BTreeMap<Ticket, (VolumeId, u64)>,
    /// Volumes with damage of which the test knows: reads may say so.
    pub(crate) may_be_damaged: bool,
    pub(crate) damaged_seen: u64,
    /// Batches that were handed out since it was opened.
    batches: u64,
    /// Of these, those that are not on the disk, with what was durable before each.
    lost_batches: BTreeMap<u64, u64>,
    /// How often the disk was full.
    pub(crate) full: u64,
    pub(crate) dead: Option<String>,
    /// What happened, to be compared with another run of the same seed.
    pub(crate) trace: u64,
}

impl std::ops::Deref for World {
    type Target = Machine;

    fn deref(&self) -> &Machine {
        &self.machine
    }
}

impl std::ops::DerefMut for World {
    fn deref_mut(&mut self) -> &mut Machine {
        &mut self.machine
    }
}

impl World {
    pub(crate) fn new(bytes: u64, wal_bytes: u64) -> Self {
        let disk = formatted(bytes, wal_bytes);
        let opened = Self::of_disk(disk, Model::default(), bytes, false, &mut Rng(0));
        let (world, recovered) = opened.expect("it was just formatted");
        assert_eq!((recovered.superblocks, recovered.torn), (4, None));
        world
    }

    fn note(&mut self, what: u64) {
        self.trace = (self.trace ^ what)
            .wrapping_mul(0x0100_0000_01b3)
            .rotate_left(5);
    }

    /// Takes new IO and events.
    pub(crate) fn poll(&mut self) {
        while let Some((token, io)) = self.machine.take_io() {
            self.note(
                token.0
                    ^ if let Io::Write { at, .. } | Io::WriteSync { at, .. } | Io::Read { at, .. } =
                        &io
                    {
                        *at
                    } else {
                        1
                    },
            );
            self.batches += u64::from(self.is_batch(&io));
        }
        while let Some(event) = self.store.poll_event() {
            self.event(event);
        }
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Durable { ticket, .. } => {
                let operation = self.tickets.remove(&ticket).expect("tickets are told once");
                self.note(operation);
                self.model.durable = self.model.durable.max(operation);
            }
            Event::Read { ticket, result } => self.read_done(ticket, result),
            Event::Chunk { .. } => panic!("no chunk was asked for"),
            Event::Entry { ticket, result } => self.entry_done(ticket, result),
            Event::Checkpointed { sequence } => self.note(sequence),
            Event::Dead { cause } => self.dead = Some(cause),
        }
    }

    fn read_done(&mut self, ticket: Ticket, result: Result<Vec<Buffer>, ReadError>) {
        let (volume, lba, expected) = self.reads.remove(&ticket).expect("reads end once");
        match result {
            Ok(buffers) => {
                let pages: Vec<&Page> = buffers.iter().flat_map(Buffer::pages).collect();
                assert_eq!(pages.len(), expected.len());
                for (lba, (page, expected)) in (lba..).zip(pages.into_iter().zip(&expected)) {
                    let expected = &expected.pages()[0];
                    assert!(
                        page == expected,
                        "wrong-bytes: block {lba} of {volume} is {page:?} and was to be {expected:?}"
                    );
                }
            }
            Err(ReadError::Damaged { lbas }) => {
                assert!(
                    self.may_be_damaged,
                    "false-damage: blocks {lbas:?} of {volume}"
                );
                self.damaged_seen += lbas.len() as u64;
            }
        }
    }

    fn entry_done(&mut self, ticket: Ticket, result: Result<Entry, EntryError>) {
        let (volume, index) = self.entries.remove(&ticket).expect("reads end once");
        match result {
            Ok(entry) => {
                let expected = self.model.volumes.get(&volume);
                let expected = expected.and_then(|held| held.all.get(&(index, entry.term)));
                if let Some(expected) = expected {
                    assert!(entry == *expected, "wrong-entry: {index} of {volume}");
                }
            }
            Err(EntryError::Compacted { .. }) => {}
            Err(EntryError::Damaged { .. }) => {
                let known = self.model.is_damaged(volume, index);
                assert!(
                    self.may_be_damaged || known,
                    "false-damage: entry {index} of {volume}"
                );
            }
        }
    }

    /// Carries out one IO that was handed out.
    pub(crate) fn complete(&mut self, number: usize) {
        let token = self.machine.carry_out(number);
        self.note(token.0);
        self.poll();
    }

    pub(crate) fn fail(&mut self, number: usize, why: &str) {
        let (token, ..) = self.ios.remove(number);
        self.store.handle_done(token, Done::Failed(why.to_owned()));
        self.poll();
    }

    /// Whether it is a batch of the log.
    fn is_batch(&self, io: &Io) -> bool {
        let layout = self.store.layout();
        let log = layout.wal_at(0)..layout.extent_at(0, 0);
        matches!(io, Io::Write { at, .. } | Io::WriteSync { at, .. } if log.contains(at))
    }

    /// A write is reported as done, and is not there; or it is in another place.
    pub(crate) fn lose_write(&mut self, number: usize, elsewhere: Option<u64>) {
        let (token, io, _) = self.ios.remove(number);
        let (Io::Write { buffers, .. } | Io::WriteSync { buffers, .. }) = &io else {
            panic!("only writes are lost");
        };
        if self.is_batch(&io) {
            self.lost_batches.insert(self.batches, self.model.durable);
        }
        if let Some(block) = elsewhere {
            self.disk.write(block * BLOCK_BYTES as u64, buffers);
        }
        self.store.handle_done(token, Done::Ok);
        self.poll();
    }

    /// What nothing on the disk tells of any more: batches that are not there, and none after them.
    pub(crate) fn forget_lost_batches(&mut self) {
        let mut batch = self.batches;
        let mut durable = self.lost_batches.get(&batch).copied();
        // The last one may not be there, as it was under way.
        while let Some(before) = self.lost_batches.get(&(batch.wrapping_sub(1))) {
            durable = Some(*before);
            batch -= 1;
        }
        self.model.durable = self.model.durable.min(durable.unwrap_or(u64::MAX));
    }

    /// Carries out all there is, and what comes of it.
    pub(crate) fn settle(&mut self, rng: &mut Rng) {
        self.poll();
        while !self.ios.is_empty() {
            self.complete(rng.below(self.ios.len() as u64) as usize);
        }
    }

    fn ticket(&mut self, ticket: Ticket, operation: u64) {
        self.tickets.insert(ticket, operation);
    }

    pub(crate) fn create(&mut self, volume: VolumeId, blocks: u64) -> Result<(), Refused> {
        let ticket = self.store.create(volume, blocks)?;
        let operation = self.model.next();
        self.model
            .volumes
            .insert(volume, Volume::new(operation, blocks));
        self.ticket(ticket, operation);
        Ok(())
    }

    pub(crate) fn delete(&mut self, volume: VolumeId) -> Result<(), Refused> {
        let ticket = self.store.delete(volume)?;
        let operation = self.model.next();
        let held = self
            .model
            .volumes
            .remove(&volume)
            .expect("the store had it");
        self.model.deleted.insert(volume, (operation, held));
        self.ticket(ticket, operation);
        Ok(())
    }

    pub(crate) fn grow(&mut self, volume: VolumeId, blocks: u64) -> Result<(), Refused> {
        let ticket = self.store.grow(volume, blocks)?;
        let operation = self.model.next();
        let held = self
            .model
            .volumes
            .get_mut(&volume)
            .expect("the store has it");
        held.sizes.push((operation, blocks));
        self.ticket(ticket, operation);
        Ok(())
    }

    pub(crate) fn submit(
        &mut self,
        volume: VolumeId,
        submission: Submission,
    ) -> Result<(), Refused> {
        let ticket = match self.store.submit(volume, submission.clone()) {
            Err(Refused::NoSpace { free, needed }) => {
                self.no_space(volume, &submission.entries);
                return Err(Refused::NoSpace { free, needed });
            }
            other => other?,
        };
        let operation = self.model.next();
        let held = self
            .model
            .volumes
            .get_mut(&volume)
            .expect("the store has it");
        if let Some(hard) = submission.hard {
            held.hard.push((operation, hard));
        }
        for entry in submission.entries {
            let name = (entry.index, entry.term);
            if held
                .term(entry.index)
                .is_some_and(|term| term != entry.term)
            {
                let cut = held.cut_while_damaged(entry.index - 1, self.model.durable);
                let cut = cut.into_iter().map(|(index, term)| (volume, index, term));
                self.model.damaged.extend(cut);
            }
            if self.model.damaged.remove(&(volume, name.0, name.1)) {
                held.refilled.insert(name);
                held.made.insert(name, operation);
            }
            held.append(operation, entry);
        }
        self.ticket(ticket, operation);
        Ok(())
    }

    /// A disk is called full only when there would be no room even if all that was accepted took effect.
    fn no_space(&mut self, volume: VolumeId, entries: &[Entry]) {
        let held = &self.model.volumes[&volume];
        if entries[0].index <= held.last() {
            return;
        }
        let takes = held.takes(entries);
        let used = self.used(Volume::last);
        let extents = self.store.space().extents;
        assert!(
            used + takes > extents,
            "full-too-early: {used} of {extents} extents are used, {takes} are needed; {:?}",
            self.store.space()
        );
        self.full += 1;
    }

    /// Extents that volumes have once their entries up to one took effect.
    fn used(&self, last: impl Fn(&Volume) -> u64) -> u32 {
        let held = self.model.volumes.values();
        held.map(|held| held.extents(last(held)).len() as u32).sum()
    }

    /// All room that nothing has is there, once all is at its place.
    pub(crate) fn check_room(&mut self, rng: &mut Rng) {
        let volumes: Vec<VolumeId> = self.model.volumes.keys().copied().collect();
        for volume in volumes {
            let last = self.model.volumes[&volume].last();
            if last > self.model.volumes[&volume].commit {
                self.commit(volume, last);
            }
        }
        // What is freed while a checkpoint is under way is free after the next one.
        for _ in 0..2 {
            self.store.checkpoint();
            self.settle(rng);
        }
        let space = self.store.space();
        let used = self.used(|held| held.commit);
        assert_eq!(
            (space.free, space.promised, space.freed_soon),
            (space.extents - used, 0, 0),
            "room-lost: {used} of {} extents are used",
            space.extents
        );
    }

    /// Peers' copies of entries that are damaged, or another leader's entries instead.
    pub(crate) fn mend(&mut self, rng: &mut Rng) {
        while let Some((volume, index, term)) = self.model.first_damaged() {
            if self.commit_of(volume) < index && rng.one_in(4) {
                self.truncate(volume, index - 1)
                    .expect("it is not committed");
                continue;
            }
            let entry = self.model.volumes[&volume].all[&(index, term)].clone();
            let entries = vec![entry];
            let hard = None;
            let submission = Submission { hard, entries };
            match self.submit(volume, submission) {
                Ok(()) => {}
                Err(Refused::Busy { .. }) => self.settle(rng),
                Err(error) => panic!("entry {index} of {volume} has its promise: {error}"),
            }
        }
    }

    fn commit_of(&self, volume: VolumeId) -> u64 {
        self.model.volumes[&volume].commit
    }

    pub(crate) fn truncate(&mut self, volume: VolumeId, last: u64) -> Result<(), Refused> {
        let ticket = self.store.truncate(volume, last)?;
        let operation = self.model.next();
        let held = self
            .model
            .volumes
            .get_mut(&volume)
            .expect("the store has it");
        let cut = held.cut_while_damaged(last, self.model.durable);
        held.truncate(operation, last);
        let cut = cut.into_iter().map(|(index, term)| (volume, index, term));
        self.model.damaged.extend(cut);
        self.ticket(ticket, operation);
        Ok(())
    }

    pub(crate) fn commit(&mut self, volume: VolumeId, index: u64) {
        let held = self
            .model
            .volumes
            .get_mut(&volume)
            .expect("the store has it");
        let fenced = match self.machine.store.committed(volume, index) {
            Ok(fenced) => fenced,
            Err(Refused::Lost { index }) => {
                let known = self.model.is_damaged(volume, index);
                return assert!(self.may_be_damaged || known, "entry {index} is not lost");
            }
            Err(error) => panic!("committing {index}: {error}"),
        };
        let before = held.commit;
        held.commit = held.commit.max(index);
        let epochs = epochs_before(&held.log);
        let expected = (before + 1..=held.commit).filter(|index| {
            let entry = &held.log[*index as usize - 1];
            let writes = matches!(entry.body, Body::Write { .. } | Body::Zero { .. });
            writes && entry.epoch < epochs[*index as usize - 1]
        });
        assert_eq!(fenced, expected.collect::<Vec<_>>(), "fenced entries");
        self.same_digest(volume);
    }

    /// I6: the digest at an index is the same whenever it is seen.
    pub(crate) fn same_digest(&mut self, volume: VolumeId) {
        let info = self.store.volume(volume).expect("the store has it");
        let held = self
            .model
            .volumes
            .get_mut(&volume)
            .expect("the store has it");
        let name = (info.applied, held.term(info.applied).unwrap_or(0));
        let digest: Digest = *held.digests.entry(name).or_insert(info.digest);
        assert_eq!(
            digest, info.digest,
            "digest of {volume} at {}",
            info.applied
        );
    }

    pub(crate) fn read(&mut self, volume: VolumeId, lba: u64, blocks: u64) {
        let held = &self.model.volumes[&volume];
        let expected = range(&held.contents(held.commit), lba, blocks);
        let ticket = self
            .store
            .read(volume, lba, blocks)
            .expect("it is in the volume");
        self.reads.insert(ticket, (volume, lba, expected));
        self.poll();
    }

    pub(crate) fn read_entry(&mut self, volume: VolumeId, index: u64) {
        let ticket = self
            .store
            .read_entry(volume, index)
            .expect("it is not beyond the last");
        self.entries.insert(ticket, (volume, index));
        self.poll();
    }

    /// Opens again, and compares all there is with all there has to be.
    pub(crate) fn reopen(&mut self, rng: &mut Rng) -> Result<Recovered, OpenError> {
        let disk = std::mem::take(&mut self.disk);
        let model = std::mem::take(&mut self.model);
        let (mut world, recovered) =
            Self::of_disk(disk, model, self.bytes, self.may_be_damaged, rng)?;
        world.trace = self.trace;
        world.damaged_seen += self.damaged_seen;
        world.full += self.full;
        *self = world;
        Ok(recovered)
    }

    /// What a disk has after a crash, compared with what it has to have.
    pub(crate) fn of_disk(
        disk: Disk,
        model: Model,
        bytes: u64,
        may_be_damaged: bool,
        rng: &mut Rng,
    ) -> Result<(Self, Recovered), OpenError> {
        let (machine, recovered) = Machine::open(disk, bytes, rng)?;
        let mut world = Self {
            machine,
            model,
            tickets: BTreeMap::new(),
            reads: BTreeMap::new(),
            entries: BTreeMap::new(),
            may_be_damaged,
            damaged_seen: 0,
            batches: 0,
            lost_batches: BTreeMap::new(),
            full: 0,
            dead: None,
            trace: 0,
        };
        world.check_damaged(&recovered);
        world.check_volumes();
        world.read_all(rng);
        Ok((world, recovered))
    }

    /// Reads all that was ever written, and the log.
    pub(crate) fn read_all(&mut self, rng: &mut Rng) {
        let volumes: Vec<VolumeId> = self.model.volumes.keys().copied().collect();
        for volume in volumes {
            let held = &self.model.volumes[&volume];
            let mut chunks: BTreeSet<u64> = BTreeSet::new();
            for entry in &held.log {
                if let Body::Write { lba, data } = &entry.body {
                    chunks.extend(lba / 16..=(lba + data.blocks() as u64 - 1) / 16);
                }
            }
            let (size, last) = (held.blocks(), held.last());
            for chunk in chunks {
                let lba = chunk * 16;
                if lba < size {
                    self.read(volume, lba, 16.min(size - lba));
                }
            }
            let first = self.store.volume(volume).expect("known").first;
            for index in first..=last {
                self.read_entry(volume, index);
            }
        }
        self.settle(rng);
        assert!(
            self.reads.is_empty() && self.entries.is_empty(),
            "all reads end"
        );
    }
}

/// The epoch that was in force when each entry took effect.
fn epochs_before(log: &[Entry]) -> Vec<u64> {
    let mut epoch = 0;
    let attach = |entry: &Entry| {
        let before = epoch;
        if entry.body == Body::Attach {
            epoch = epoch.max(entry.epoch);
        }
        before
    };
    log.iter().map(attach).collect()
}
