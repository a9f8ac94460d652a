//! A replica that lacks what the log has no more: chunks of a peer that goes on writing, then its log.

use crate::machine::{Machine, formatted};
use crate::model::data;
use crate::random::{Mix, are_few, body, seeds};
use crate::rng::Rng;
use blocks::{
    Base, Body, Buffer, Chunk, Digest, Entry, Event, InstallRefused, Page, Recovered, Refused,
    Store, Submission, Ticket, VolumeId,
};
use std::collections::BTreeMap;

const MIB: u64 = 1 << 20;
const V: VolumeId = VolumeId::new(7);
const BYTES: u64 = 32 * MIB;

/// A store on a disk, without a reference: two of them are compared with each other.
struct Peer {
    machine: Machine,
    chunks: BTreeMap<Ticket, Chunk>,
    reads: BTreeMap<Ticket, Vec<Page>>,
}

impl std::ops::Deref for Peer {
    type Target = Machine;

    fn deref(&self) -> &Machine {
        &self.machine
    }
}

impl std::ops::DerefMut for Peer {
    fn deref_mut(&mut self) -> &mut Machine {
        &mut self.machine
    }
}

impl Peer {
    fn new(blocks: u64) -> Self {
        let disk = formatted(BYTES, 2 * MIB);
        let opened = Machine::open(disk, BYTES, &mut Rng(1));
        let (machine, _) = opened.expect("it was just formatted");
        let (chunks, reads) = (BTreeMap::new(), BTreeMap::new());
        let mut peer = Self {
            machine,
            chunks,
            reads,
        };
        peer.store.create(V, blocks).expect("there is room");
        peer.settle(&mut Rng(1));
        peer
    }

    fn poll(&mut self) {
        while self.take_io().is_some() {}
        while let Some(event) = self.store.poll_event() {
            match event {
                Event::Chunk { ticket, result } => {
                    let chunk = result.expect("a crash damages nothing");
                    self.chunks.insert(ticket, chunk);
                }
                Event::Read { ticket, result } => {
                    let buffers = result.expect("a crash damages nothing");
                    let pages = buffers.iter().flat_map(Buffer::pages).cloned();
                    self.reads.insert(ticket, pages.collect());
                }
                Event::Dead { cause } => panic!("{cause}"),
                Event::Durable { .. } | Event::Entry { .. } | Event::Checkpointed { .. } => {}
            }
        }
    }

    fn some_io(&mut self, rng: &mut Rng) {
        for _ in 0..rng.below(8) {
            self.poll();
            if !self.ios.is_empty() {
                self.complete(rng);
            }
        }
    }

    fn complete(&mut self, rng: &mut Rng) {
        let next = rng.below(self.ios.len() as u64) as usize;
        self.carry_out(next);
        self.poll();
    }

    fn settle(&mut self, rng: &mut Rng) {
        self.poll();
        while !self.ios.is_empty() {
            self.complete(rng);
        }
    }

    /// Entries of the last batch may be lost; they come from the other's log.
    fn crash(&mut self, log: &[Entry], rng: &mut Rng) -> Recovered {
        let power = !rng.one_in(3);
        self.machine.crash(power, rng);
        let disk = std::mem::take(&mut self.disk);
        let opened = Machine::open(disk, BYTES, rng);
        let (machine, recovered) = opened.expect("a crash damages nothing");
        self.machine = machine;
        assert_eq!(recovered.broken, Vec::new());
        for damaged in &recovered.damaged {
            assert!(!damaged.applied, "{damaged:?}");
            let entries = vec![log[damaged.index as usize - 1].clone()];
            let hard = None;
            let submission = Submission { hard, entries };
            let taken = self.store.submit(V, submission);
            taken.expect("it has its promise");
        }
        recovered
    }

    fn applied(&self) -> u64 {
        self.store.volume(V).expect("it is there").applied
    }

    /// Takes entries in, as far as there is room, and lets some take effect.
    fn follow(&mut self, log: &[Entry], rng: &mut Rng) {
        let info = self.store.volume(V).expect("it is there");
        let from = info.last as usize;
        let to = (from + 1 + rng.below(6) as usize).min(log.len());
        if from < to {
            let submission = Submission {
                hard: None,
                entries: log[from..to].to_vec(),
            };
            match self.store.submit(V, submission) {
                Ok(_) => {}
                Err(Refused::Busy { .. } | Refused::NotYet { .. }) => self.settle(rng),
                Err(error) => panic!("{error}"),
            }
        }
        let last = self.store.volume(V).expect("it is there").last;
        let until = info.applied + rng.below(last - info.applied + 1);
        self.store.committed(V, until).expect("they are there");
    }

    fn chunk(&mut self, number: u64, rng: &mut Rng) -> Chunk {
        let ticket = self.store.read_chunk(V, number).expect("it is there");
        self.settle(rng);
        self.chunks.remove(&ticket).expect("it was read")
    }

    fn contents(&mut self, rng: &mut Rng) -> Vec<Page> {
        let blocks = self.store.volume(V).expect("it is there").blocks;
        let ticket = self.store.read(V, 0, blocks).expect("it is there");
        self.settle(rng);
        self.reads.remove(&ticket).expect("it was read")
    }
}

/// What went on in a seed.
#[derive(Debug, Default)]
struct Outcome {
    crashes: u64,
    chunks: u64,
    skipped: u64,
    rounds: u64,
    fenced: u64,
    mixed: u64,
    lost: u64,
    not_taken: u64,
}

struct Pair {
    rng: Rng,
    mix: Mix,
    log: Vec<Entry>,
    leader: Peer,
    follower: Peer,
    /// The leader's at each entry.
    digests: BTreeMap<u64, Digest>,
    outcome: Outcome,
}

impl Pair {
    fn new(seed: u64) -> Self {
        let mut rng = Rng(seed ^ 0xc0de);
        let blocks = [300, 700, 1500][rng.below(3) as usize];
        let mix = Mix {
            large: 1 + rng.below(4),
            zero: 1 + rng.below(6),
            crash: 4 + rng.below(30),
            cut: 1,
            spread: blocks,
            ..Mix::PLAIN
        };
        Self {
            rng,
            mix,
            log: Vec::new(),
            leader: Peer::new(blocks),
            follower: Peer::new(blocks),
            digests: BTreeMap::new(),
            outcome: Outcome::default(),
        }
    }

    /// The leader goes on, its log as well.
    fn write(&mut self, entries: u64) {
        for _ in 0..entries {
            let index = self.log.len() as u64 + 1;
            let blocks = self.leader.store.volume(V).expect("it is there").blocks;
            let body = match self.rng.below(60) {
                0 => Body::Grow {
                    blocks: blocks + self.rng.below(40),
                },
                _ => body(index, blocks, &self.mix, &mut self.rng, 32),
            };
            let attaches = body == Body::Attach;
            let epoch = index / 40 + if attaches { 1 } else { self.rng.below(2) };
            let entry = Entry {
                index,
                term: 1,
                epoch,
                body,
            };
            let entries = vec![entry.clone()];
            let submission = Submission {
                hard: None,
                entries,
            };
            match self.leader.store.submit(V, submission) {
                Ok(_) => {}
                Err(Refused::Busy { .. } | Refused::NotYet { .. }) => {
                    self.leader.settle(&mut self.rng);
                    continue;
                }
                Err(error) => panic!("{error}"),
            }
            self.log.push(entry);
            let fenced = self.leader.store.committed(V, index).expect("it is there");
            self.outcome.fenced += fenced.len() as u64;
            let info = self.leader.store.volume(V).expect("it is there");
            self.digests.insert(index, info.digest);
            self.leader.some_io(&mut self.rng);
        }
    }

    fn check(&mut self) {
        let info = self.follower.store.volume(V).expect("it is there");
        if info.mixed {
            self.outcome.mixed += 1;
        } else if info.applied > 0 {
            assert_eq!(
                info.digest, self.digests[&info.applied],
                "what it holds at {}",
                info.applied
            );
        }
    }

    fn perhaps_crash(&mut self) {
        if self.rng.one_in(self.mix.crash) {
            let recovered = self.follower.crash(&self.log, &mut self.rng);
            self.outcome.crashes += 1;
            self.outcome.lost += recovered.damaged.len() as u64;
            self.outcome.not_taken += recovered.not_taken.len() as u64;
            self.check();
        }
    }

    /// One round: what changed since, and the base after it. False: it was cut off.
    fn catch_up(&mut self) -> bool {
        self.outcome.rounds += 1;
        let since = self.follower.applied();
        let base: Base = self.leader.store.base(V).expect("it is whole");
        let changes = self.leader.store.chunks_changed_since(V, since, 0);
        let mut changes: Vec<(u64, u64)> = changes.expect("it is there").collect();
        while !changes.is_empty() {
            let next = self.rng.below(changes.len() as u64) as usize;
            let (number, changed) = changes.swap_remove(next);
            if self.follower.store.chunk_changed(V, number) == Some(changed) {
                self.outcome.skipped += 1;
                continue;
            }
            let more = self.rng.below(4);
            self.write(more);
            let chunk = self.leader.chunk(number, &mut self.rng);
            loop {
                match self.follower.store.install(V, &chunk) {
                    Ok(_) => break,
                    Err(InstallRefused::Refused(Refused::Busy { .. } | Refused::NotYet { .. })) => {
                        self.follower.settle(&mut self.rng)
                    }
                    // A chunk of a part that it does not have yet.
                    Err(InstallRefused::Refused(Refused::Invalid { .. })) => {
                        return self.grow(&base);
                    }
                    Err(error) => panic!("{error}"),
                }
            }
            self.outcome.chunks += 1;
            self.follower.some_io(&mut self.rng);
            let before = self.outcome.crashes;
            self.perhaps_crash();
            if self.outcome.crashes > before {
                return false;
            }
        }
        if base.index > self.follower.applied() {
            if let Err(refused) = self.follower.store.rebase(V, &base) {
                assert_eq!(refused, Refused::Unsettled { volume: V });
                self.follower.settle(&mut self.rng);
                self.follower
                    .store
                    .rebase(V, &base)
                    .expect("all is settled");
            }
            self.follower.some_io(&mut self.rng);
            self.perhaps_crash();
        }
        true
    }

    fn grow(&mut self, base: &Base) -> bool {
        let blocks = self.leader.store.volume(V).expect("it is there").blocks;
        self.follower
            .store
            .grow(V, blocks.max(base.blocks))
            .expect("there is room");
        false
    }
}

fn run(seed: u64) -> Outcome {
    let mut pair = Pair::new(seed);
    for _ in 0..3 {
        // It follows for a while, then it does not, then its log goes on elsewhere.
        for _ in 0..pair.rng.below(30) {
            pair.write(1);
            pair.follower.follow(&pair.log, &mut pair.rng);
            pair.follower.some_io(&mut pair.rng);
            pair.perhaps_crash();
        }
        let more = pair.rng.below(60);
        pair.write(more);
        while !pair.catch_up() {}
        pair.check();
        let end = pair.log.len() as u64;
        while pair.follower.applied() < end {
            pair.follower.follow(&pair.log, &mut pair.rng);
            pair.check();
            pair.follower.some_io(&mut pair.rng);
            pair.perhaps_crash();
        }
        let (leader, follower) = (&mut pair.leader, &mut pair.follower);
        let info = follower.store.volume(V).expect("it is there");
        assert!(!info.mixed, "the log is as far as all chunks");
        assert_eq!(
            info,
            blocks::VolumeInfo {
                first: info.first,
                durable: info.durable,
                hard: info.hard,
                ..leader.store.volume(V).expect("it is there")
            }
        );
        let changes = |store: &Store| {
            let all = store.chunks_changed_since(V, 0, 0).expect("it is there");
            all.map(|it| (it, store.chunk_digest(V, it.0)))
                .collect::<Vec<_>>()
        };
        assert_eq!(changes(&leader.store), changes(&follower.store));
        assert!(leader.contents(&mut pair.rng) == follower.contents(&mut pair.rng));
        follower.store.checkpoint();
        follower.settle(&mut pair.rng);
    }
    pair.outcome
}

#[test]
fn who_lacks_what_the_log_has_no_more_takes_chunks_and_is_the_same() {
    let mut sum = Outcome::default();
    for seed in seeds(40) {
        println!("BLOCKS_SEED={seed}");
        let outcome = run(seed);
        sum.crashes += outcome.crashes;
        sum.chunks += outcome.chunks;
        sum.skipped += outcome.skipped;
        sum.rounds += outcome.rounds;
        sum.fenced += outcome.fenced;
        sum.mixed += outcome.mixed;
        sum.lost += outcome.lost;
        sum.not_taken += outcome.not_taken;
    }
    println!("{sum:?}");
    let all = [
        sum.crashes,
        sum.chunks,
        sum.skipped,
        sum.rounds,
        sum.fenced,
        sum.mixed,
        sum.lost,
        sum.not_taken,
    ];
    assert!(
        are_few(40) || all.iter().all(|number| *number > 0),
        "{sum:?}"
    );
}

#[test]
fn a_chunk_that_changed_on_its_way_is_not_taken_in() {
    let mut pair = Pair::new(1);
    let body = Body::Write {
        lba: 3,
        data: data(1, 2),
    };
    let entry = Entry {
        index: 1,
        term: 1,
        epoch: 0,
        body,
    };
    let entries = vec![entry];
    let submission = Submission {
        hard: None,
        entries,
    };
    pair.leader
        .store
        .submit(V, submission)
        .expect("there is room");
    pair.leader.store.committed(V, 1).expect("it is there");
    let chunk = pair.leader.chunk(0, &mut Rng(1));
    assert_eq!((chunk.blocks(), chunk.written[0]), (2, 0b11000));
    let damaged = Chunk {
        data: vec![data(2, 2)],
        ..chunk
    };
    let store = &mut pair.follower.store;
    let refused = store.install(V, &damaged);
    assert_eq!(refused, Err(InstallRefused::Differs { number: 0 }));
    for wrong in [
        Chunk {
            number: u64::MAX,
            ..chunk.clone()
        },
        Chunk {
            data: vec![data(1, 3)],
            ..chunk.clone()
        },
        Chunk {
            written: [u16::MAX; 16],
            ..chunk.clone()
        },
    ] {
        let refused = store.install(V, &wrong);
        let invalid = matches!(
            refused,
            Err(InstallRefused::Refused(Refused::Invalid { .. }))
        );
        assert!(invalid, "{refused:?}");
    }
    store.install(V, &chunk).expect("it is right");
    assert!(store.volume(V).expect("it is there").mixed);
    assert_eq!(store.base(V), None, "it is no base for anybody");
}
