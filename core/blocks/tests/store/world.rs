//! A store on a disk, and what it has to be.

use crate::disk::Disk;
use crate::model::{Model, Volume, range};
use crate::rng::Rng;
use blocks::{
    Body, Buffer, Digest, Done, Entry, EntryError, Event, Formatted, Identity, Io, OpenError,
    Opening, Page, ReadError, Recovered, Refused, Store, Submission, Ticket, Token, VolumeId,
};
use std::collections::{BTreeMap, BTreeSet};

pub(crate) const IDENTITY: Identity = Identity {
    cluster: 0xc1,
    host: 0x01,
    disk: 0xd1,
};

pub(crate) struct World {
    pub(crate) disk: Disk,
    pub(crate) bytes: u64,
    pub(crate) store: Store,
    pub(crate) model: Model,
    /// IO that was handed out and is not done; for a sync, what it reaches.
    pub(crate) ios: Vec<(Token, Io, u64)>,
    tickets: BTreeMap<Ticket, u64>,
    reads: BTreeMap<Ticket, (VolumeId, u64, Vec<Page>)>,
    entries: BTreeMap<Ticket, (VolumeId, u64)>,
    /// Volumes with damage of which the test knows: reads may say so.
    pub(crate) may_be_damaged: bool,
    pub(crate) damaged_seen: u64,
    pub(crate) dead: Option<String>,
    /// What happened, to be compared with another run of the same seed.
    pub(crate) trace: u64,
}

/// Makes an empty disk.
pub(crate) fn formatted(bytes: u64, wal_bytes: u64) -> Disk {
    let formatted = Formatted::new(IDENTITY, 0x5eed, bytes, wal_bytes).expect("it is large enough");
    let mut disk = Disk::default();
    for (at, buffer) in formatted.log.iter().chain(&formatted.superblocks) {
        disk.write(*at, std::slice::from_ref(buffer));
        disk.sync(disk.mark());
    }
    disk
}

/// Opens it, doing its IO in some order.
pub(crate) fn open(
    disk: &mut Disk,
    bytes: u64,
    rng: &mut Rng,
) -> Result<(Store, Recovered), OpenError> {
    let mut opening = Opening::new(IDENTITY, bytes);
    let mut ios = Vec::new();
    loop {
        ios.extend(std::iter::from_fn(|| opening.poll_io()));
        if ios.is_empty() {
            return opening
                .finish()
                .expect("nothing is under way: it is finished");
        }
        let (token, io) = ios.swap_remove(rng.below(ios.len() as u64) as usize);
        opening.handle_done(token, carry_out(disk, &io, u64::MAX));
    }
}

fn carry_out(disk: &mut Disk, io: &Io, mark: u64) -> Done {
    match io {
        Io::Read { at, blocks } => match disk.read(*at, *blocks) {
            Ok(data) => Done::Read(data),
            Err(why) => Done::Failed(why),
        },
        Io::Write { at, buffers } => {
            disk.write(*at, buffers);
            Done::Ok
        }
        Io::Sync => {
            disk.sync(mark);
            Done::Ok
        }
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
        while let Some((token, io)) = self.store.poll_io() {
            let mark = self.disk.mark();
            self.note(
                token.0
                    ^ if let Io::Write { at, .. } | Io::Read { at, .. } = &io {
                        *at
                    } else {
                        1
                    },
            );
            self.ios.push((token, io, mark));
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
            Event::Entry { ticket, result } => self.entry_done(ticket, result),
            Event::Checkpointed { sequence } => self.note(sequence),
            Event::Dead { cause } => self.dead = Some(cause),
        }
    }

    fn read_done(&mut self, ticket: Ticket, result: Result<Vec<Buffer>, ReadError>) {
        let (volume, lba, expected) = self.reads.remove(&ticket).expect("reads end once");
        match result {
            Ok(buffers) => {
                let pages: Vec<Page> = buffers.iter().flat_map(Buffer::pages).cloned().collect();
                assert_eq!(pages.len(), expected.len());
                for (lba, (page, expected)) in (lba..).zip(pages.iter().zip(&expected)) {
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
                assert!(
                    self.may_be_damaged,
                    "false-damage: entry {index} of {volume}"
                );
            }
        }
    }

    /// Carries out one IO that was handed out.
    pub(crate) fn complete(&mut self, number: usize) {
        let (token, io, mark) = self.ios.remove(number);
        let done = carry_out(&mut self.disk, &io, mark);
        self.note(token.0);
        self.store.handle_done(token, done);
        self.poll();
    }

    pub(crate) fn fail(&mut self, number: usize, why: &str) {
        let (token, ..) = self.ios.remove(number);
        self.store.handle_done(token, Done::Failed(why.to_owned()));
        self.poll();
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
        let ticket = self.store.submit(volume, submission.clone())?;
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
            held.append(operation, entry);
        }
        self.ticket(ticket, operation);
        Ok(())
    }

    pub(crate) fn truncate(&mut self, volume: VolumeId, last: u64) -> Result<(), Refused> {
        let ticket = self.store.truncate(volume, last)?;
        let operation = self.model.next();
        let held = self
            .model
            .volumes
            .get_mut(&volume)
            .expect("the store has it");
        held.truncate(operation, last);
        self.ticket(ticket, operation);
        Ok(())
    }

    pub(crate) fn commit(&mut self, volume: VolumeId, index: u64) {
        let held = self
            .model
            .volumes
            .get_mut(&volume)
            .expect("the store has it");
        let fenced = match self.store.committed(volume, index) {
            Ok(fenced) => fenced,
            Err(Refused::Lost { .. }) => return assert!(self.may_be_damaged),
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
    fn same_digest(&mut self, volume: VolumeId) {
        let info = self.store.volume(volume).expect("the store has it");
        let held = self
            .model
            .volumes
            .get_mut(&volume)
            .expect("the store has it");
        let digest: Digest = *held.digests.entry(info.applied).or_insert(info.digest);
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

    /// The process ends. What was handed out may be carried out or not; power may be lost too.
    pub(crate) fn crash(&mut self, power: bool, rng: &mut Rng) {
        for (_, io, _) in std::mem::take(&mut self.ios) {
            if let Io::Write { at, buffers } = &io
                && rng.one_in(2)
            {
                self.disk.write(*at, buffers);
            }
        }
        if power {
            self.disk.lose_power(rng);
        }
    }

    /// Opens again, and compares all there is with all there has to be.
    pub(crate) fn reopen(&mut self, rng: &mut Rng) -> Result<Recovered, OpenError> {
        let (disk, model) = (
            std::mem::take(&mut self.disk),
            std::mem::take(&mut self.model),
        );
        let (mut world, recovered) =
            Self::of_disk(disk, model, self.bytes, self.may_be_damaged, rng)?;
        world.trace = self.trace;
        world.damaged_seen += self.damaged_seen;
        *self = world;
        Ok(recovered)
    }

    /// What a disk has after a crash, compared with what it has to have.
    pub(crate) fn of_disk(
        mut disk: Disk,
        model: Model,
        bytes: u64,
        may_be_damaged: bool,
        rng: &mut Rng,
    ) -> Result<(Self, Recovered), OpenError> {
        let (store, recovered) = open(&mut disk, bytes, rng)?;
        let mut world = Self {
            disk,
            bytes,
            store,
            model,
            ios: Vec::new(),
            tickets: BTreeMap::new(),
            reads: BTreeMap::new(),
            entries: BTreeMap::new(),
            may_be_damaged,
            damaged_seen: 0,
            dead: None,
            trace: 0,
        };
        world.check_volumes();
        world.read_all(rng);
        Ok((world, recovered))
    }

    fn check_volumes(&mut self) {
        let durable = self.model.durable;
        let there: BTreeSet<VolumeId> = self.store.volumes().collect();
        for (volume, (operation, held)) in std::mem::take(&mut self.model.deleted) {
            if operation <= durable {
                assert!(
                    !there.contains(&volume) || self.model.volumes.contains_key(&volume),
                    "deleted-is-back: {volume}"
                );
            } else if there.contains(&volume) {
                self.model.volumes.insert(volume, held);
            }
        }
        let known: Vec<VolumeId> = self.model.volumes.keys().copied().collect();
        for volume in known {
            if !there.contains(&volume) {
                let created = self.model.volumes[&volume].created;
                assert!(
                    created > durable,
                    "volume-lost: {volume}, made by {created}, durable {durable}"
                );
                self.model.volumes.remove(&volume);
                continue;
            }
            self.check_volume(volume);
        }
        for volume in there {
            let known = self.model.volumes.contains_key(&volume) || self.may_be_damaged;
            assert!(known, "volume-from-nowhere: {volume}");
        }
        self.model.durable = self.model.operation;
    }

    fn check_volume(&mut self, volume: VolumeId) {
        let durable = self.model.durable;
        let operation = self.model.operation;
        let info = self.store.volume(volume).expect("just listed");
        if info.broken.is_some() {
            assert!(self.may_be_damaged, "broken: {:?}", info.broken);
            self.model.volumes.remove(&volume);
            return;
        }
        let held = self.model.volumes.get_mut(&volume).expect("known");
        let (terms, since) = surviving_log(&self.store, volume, held, durable);
        assert!(
            since.is_some(),
            "log-lost: {volume} has {terms:?}; durable operation {durable}, history {:?}",
            held.history
        );
        let hard = (info.hard.term, info.hard.vote);
        let newest = held
            .hard
            .iter()
            .rposition(|(operation, _)| *operation <= durable)
            .unwrap_or(0);
        assert!(
            held.hard[newest..].iter().any(|(_, known)| *known == hard),
            "vote-lost: {volume} has {hard:?}, told {:?}, durable {durable}",
            held.hard
        );
        assert!(
            info.applied <= held.commit,
            "commit-from-nowhere: {} > {}",
            info.applied,
            held.commit
        );
        let newest = held
            .sizes
            .iter()
            .rposition(|(operation, _)| *operation <= durable)
            .unwrap_or(0);
        assert!(
            held.sizes[newest..]
                .iter()
                .any(|(_, blocks)| *blocks == info.blocks),
            "size-lost: {volume}"
        );
        held.restart(operation, &terms, info.applied, info.blocks, hard);
        self.same_digest(volume);
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

/// The terms of a store's log, and the operation of which it is a part, if it is one that may survive:
/// a beginning of what the log was at some time after the last durable operation, with all that was
/// durable by then and never replaced.
fn surviving_log(
    store: &Store,
    volume: VolumeId,
    held: &Volume,
    durable: u64,
) -> (Vec<u64>, Option<u64>) {
    let info = store.volume(volume).expect("known");
    let before = held
        .history
        .iter()
        .rposition(|(operation, _)| *operation <= durable)
        .unwrap_or(0);
    let at_durable = &held.history[before].1;
    // What was durable and never cut since.
    let sure = held.history[before..]
        .iter()
        .map(|(_, terms)| common(terms, at_durable))
        .min()
        .unwrap_or(0);
    let known: Vec<Option<u64>> = (1..=info.last)
        .map(|index| store.term(volume, index))
        .collect();
    let found = held.history[before..].iter().find(|(_, terms)| {
        let fits = known
            .iter()
            .zip(terms)
            .all(|(found, term)| found.is_none_or(|found| found == *term));
        info.last as usize <= terms.len() && fits && info.last as usize >= sure
    });
    let terms = found.map(|(_, terms)| terms[..info.last as usize].to_vec());
    (
        terms.unwrap_or_default(),
        found.map(|(operation, _)| *operation),
    )
}

fn common(one: &[u64], other: &[u64]) -> usize {
    one.iter()
        .zip(other)
        .take_while(|(one, other)| one == other)
        .count()
}
