//! Volumes written, cut, committed and read at random, on a disk that loses power now and then.

use crate::machine::open_in_part;
use crate::model::data;
use crate::rng::Rng;
use crate::world::World;
use blocks::{Body, Entry, Io, Refused, Submission, VolumeId};

const MIB: u64 = 1 << 20;
const OPERATIONS: u64 = 220;

/// What one seed did.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) crashes: u64,
    pub(crate) torn: u64,
    pub(crate) lost: u64,
    pub(crate) checkpoints: u64,
    pub(crate) full: u64,
    pub(crate) busy: u64,
    pub(crate) redirected: u64,
    pub(crate) trace: u64,
}

pub(crate) fn run(seed: u64) -> Outcome {
    let mut rng = Rng(seed);
    let (wal, disk) = if rng.one_in(3) {
        (4 * MIB, 24 * MIB)
    } else {
        (MIB, 8 * MIB)
    };
    let mut world = World::new(disk, wal);
    let mut outcome = Outcome::default();
    // Each seed has its own mix: what is rare in one is common in another.
    let mix = Mix {
        large: 1 + rng.below(8),
        zero: 1 + rng.below(8),
        crash: 15 + rng.below(60),
        hurry: 1 + rng.below(12),
        cut: 4 + rng.below(20),
        spread: [24, 80, 2000][rng.below(3) as usize],
        lingers: rng.below(3),
        burst: [1, 1, 8][rng.below(3) as usize],
        local: [3, 12][rng.below(2) as usize],
    };
    for number in 1..=1 + rng.below(3) {
        world
            .create(VolumeId::new(u128::from(number)), mix.spread)
            .expect("there is room");
    }
    for _ in 0..OPERATIONS {
        // Sometimes much comes at once: more than a batch takes.
        let steps = if rng.one_in(6) { mix.burst } else { 1 };
        for _ in 0..steps {
            step(&mut world, &mix, &mut rng, &mut outcome);
        }
        for _ in 0..rng.below(mix.hurry * 2) {
            world.poll();
            if !world.ios.is_empty() {
                let next = rng.below(world.ios.len() as u64) as usize;
                // A reader may be slow, and much may be written meanwhile.
                let lingers = matches!(world.ios[next].1, Io::Read { .. }) && mix.lingers > 0;
                if !lingers || rng.one_in(mix.lingers * 12) {
                    world.complete(next);
                }
            }
        }
        if rng.one_in(mix.crash) {
            crash(&mut world, &mut rng, &mut outcome);
        }
    }
    world.read_all(&mut rng);
    world.mend(&mut rng);
    world.check_room(&mut rng);
    outcome.checkpoints += world.store.counters().checkpoints;
    crash(&mut world, &mut rng, &mut outcome);
    outcome.trace = world.trace;
    outcome
}

pub(crate) struct Mix {
    pub(crate) large: u64,
    pub(crate) zero: u64,
    pub(crate) crash: u64,
    pub(crate) hurry: u64,
    pub(crate) cut: u64,
    pub(crate) spread: u64,
    /// How slow reads are.
    pub(crate) lingers: u64,
    /// Operations that come at once.
    pub(crate) burst: u64,
    /// How rarely volumes come, go and grow.
    pub(crate) local: u64,
}

impl Mix {
    pub(crate) const PLAIN: Self = Self {
        large: 3,
        zero: 4,
        crash: u64::MAX,
        hurry: 1,
        cut: 5,
        spread: 40,
        lingers: 0,
        burst: 1,
        local: 12,
    };
}

fn crash(world: &mut World, rng: &mut Rng, outcome: &mut Outcome) {
    outcome.checkpoints += world.store.counters().checkpoints;
    let power = !rng.one_in(3);
    world.crash(power, rng);
    if rng.one_in(3) {
        let (bytes, most) = (world.bytes, rng.below(40));
        open_in_part(&mut world.disk, bytes, most, rng);
    }
    let recovered = world.reopen(rng).expect("a crash damages nothing");
    outcome.crashes += 1;
    outcome.torn += u64::from(recovered.torn.is_some());
    outcome.lost += recovered.damaged.len() as u64;
    // What was only in the disk's cache when it was opened was told to be durable.
    if rng.one_in(3) {
        world.crash(true, rng);
        let again = world.reopen(rng).expect("a crash damages nothing");
        assert_eq!(again.damaged, recovered.damaged);
    }
    // The others are not always there at once.
    if !rng.one_in(4) {
        world.mend(rng);
    }
}

pub(crate) fn step(world: &mut World, mix: &Mix, rng: &mut Rng, outcome: &mut Outcome) {
    let volumes: Vec<VolumeId> = world.model.volumes.keys().copied().collect();
    let Some(volume) = volumes
        .get(rng.below(volumes.len() as u64) as usize)
        .copied()
    else {
        let volume = VolumeId::new(u128::from(100 + world.model.next()));
        world.create(volume, mix.spread).expect("there is room");
        return;
    };
    match rng.below(20) {
        0..=7 => submit(world, volume, mix, rng, outcome),
        8..=11 => commit(world, volume, rng),
        12..=14 => read(world, volume, rng),
        15 if rng.one_in(mix.cut) => cut(world, volume, rng),
        16 => {
            let hard = Some((world.model.next_term(), rng.below(4)));
            let entries = Vec::new();
            world
                .submit(volume, Submission { hard, entries })
                .expect("votes are always taken in");
        }
        17 if rng.one_in(4) => world.store.checkpoint(),
        18 if rng.one_in(mix.local) => local(world, volume, rng),
        19 => {
            let info = world.store.volume(volume).expect("it is there");
            if info.last >= info.first {
                world.read_entry(volume, info.first + rng.below(info.last - info.first + 1));
            }
        }
        _ => {}
    }
}

fn local(world: &mut World, volume: VolumeId, rng: &mut Rng) {
    match rng.below(3) {
        0 if world.model.volumes.len() > 1 => world.delete(volume).expect("it is there"),
        1 => {
            let blocks = world.model.volumes[&volume].blocks();
            match world.grow(volume, blocks + 1 + rng.below(70_000)) {
                Ok(()) | Err(Refused::MapFull) => {}
                Err(error) => panic!("{error}"),
            }
        }
        _ => {
            let volume = VolumeId::new(u128::from(1000 + world.model.next()));
            match world.create(volume, 40) {
                Ok(()) | Err(Refused::MapFull) => {}
                Err(error) => panic!("{error}"),
            }
        }
    }
}

fn submit(world: &mut World, volume: VolumeId, mix: &Mix, rng: &mut Rng, outcome: &mut Outcome) {
    let held = &world.model.volumes[&volume];
    let (last, size) = (held.last(), held.blocks().min(mix.spread));
    let replaces = rng.one_in(mix.cut) && held.commit < last;
    let first = if replaces {
        held.commit + 1 + rng.below(last - held.commit)
    } else {
        last + 1
    };
    let mut term = held.log.last().map_or(1, |entry| entry.term);
    if replaces || term <= held.commit / 1000 {
        term = world.model.next_term().max(term + 1);
        world.model.term = term;
    }
    // Terms are never used twice, so an index and a term name an entry for good.
    let known = &world.model.volumes[&volume].all;
    while known.contains_key(&(first, term)) {
        term += 1;
        world.model.term = world.model.term.max(term);
    }
    let mut entries = Vec::new();
    for index in first..first + 1 + rng.below(4) {
        let uid = world.model.next();
        let body = body(
            uid,
            size,
            mix,
            rng,
            u64::from(world.store.most_entry_blocks()),
        );
        let epoch = if body == Body::Attach {
            rng.below(4)
        } else {
            3 - rng.below(2).min(rng.below(2))
        };
        let whole =
            matches!(&body, Body::Write { lba, data } if lba % 16 == 0 && data.blocks() % 16 == 0);
        outcome.redirected += u64::from(whole);
        entries.push(Entry {
            index,
            term,
            epoch,
            body,
        });
    }
    let fresh = |entry: &Entry| {
        !world.model.volumes[&volume]
            .all
            .contains_key(&(entry.index, entry.term))
    };
    if !entries.iter().all(fresh) {
        return;
    }
    match world.submit(
        volume,
        Submission {
            hard: None,
            entries,
        },
    ) {
        Ok(()) => {}
        Err(Refused::Busy { .. } | Refused::NotYet { .. }) => outcome.busy += 1,
        Err(Refused::NoSpace { .. } | Refused::MapFull) => outcome.full += 1,
        Err(error) => panic!("{error}"),
    }
}

pub(crate) fn body(uid: u64, size: u64, mix: &Mix, rng: &mut Rng, most: u64) -> Body {
    if rng.one_in(mix.large + 2) && size >= 16 {
        let extents = (1 + rng.below(2)).min(most / 16).min(size / 16);
        let lba = rng.below(size / 16 - extents + 1) * 16;
        let data = data(uid, extents * 16);
        return Body::Write { lba, data };
    }
    if rng.one_in(mix.zero + 4) {
        let blocks = 1 + rng.below(size.min(60));
        let lba = rng.below(size - blocks + 1);
        return Body::Zero { lba, blocks };
    }
    match rng.below(24) {
        0 => Body::Attach,
        1 => Body::Config(uid.to_le_bytes().to_vec().into()),
        2 => Body::Empty,
        _ => {
            let blocks = (1 + rng.below(4)).min(size);
            let lba = rng.below(size - blocks + 1);
            let data = data(uid, blocks);
            Body::Write { lba, data }
        }
    }
}

fn commit(world: &mut World, volume: VolumeId, rng: &mut Rng) {
    let held = &world.model.volumes[&volume];
    let (from, to) = (held.commit, held.last());
    if from < to {
        let most = if rng.one_in(3) { 1 } else { to - from };
        world.commit(volume, from + 1 + rng.below(most));
    }
}

fn read(world: &mut World, volume: VolumeId, rng: &mut Rng) {
    let size = world.model.volumes[&volume].blocks();
    let blocks = (1 + rng.below(40)).min(size);
    let near = (size - blocks + 1).min(100);
    world.read(volume, rng.below(near), blocks);
}

fn cut(world: &mut World, volume: VolumeId, rng: &mut Rng) {
    let held = &world.model.volumes[&volume];
    let (commit, last) = (held.commit, held.last());
    if commit < last {
        world
            .truncate(volume, commit + rng.below(last - commit))
            .expect("it is not committed");
    }
}

/// How many seeds: some by default, more by `BLOCKS_SEEDS`, from `BLOCKS_SEED` on.
#[expect(
    clippy::disallowed_methods,
    reason = "which seeds is the tester's affair"
)]
pub(crate) fn seeds(default: u64) -> std::ops::Range<u64> {
    let number = |name| {
        std::env::var(name)
            .ok()
            .and_then(|value| value.parse::<u64>().ok())
    };
    let first = number("BLOCKS_SEED").unwrap_or(1);
    first..first + number("BLOCKS_SEEDS").unwrap_or(default)
}

/// Fewer than by default, as when one that failed is run again: these need not get everywhere.
pub(crate) fn are_few(default: u64) -> bool {
    let seeds = seeds(default);
    seeds.end - seeds.start < default
}

#[test]
fn whatever_happens_what_was_acknowledged_is_there() {
    let mut sum = Outcome::default();
    for seed in seeds(60) {
        println!("BLOCKS_SEED={seed}");
        let outcome = run(seed);
        sum.crashes += outcome.crashes;
        sum.torn += outcome.torn;
        sum.lost += outcome.lost;
        sum.checkpoints += outcome.checkpoints;
        sum.full += outcome.full;
        sum.busy += outcome.busy;
        sum.redirected += outcome.redirected;
    }
    println!("{sum:?}");
    // A test that never gets there proves nothing.
    let all = [
        sum.crashes,
        sum.torn,
        sum.lost,
        sum.checkpoints,
        sum.full,
        sum.busy,
        sum.redirected,
    ];
    assert!(
        are_few(60) || all.iter().all(|number| *number > 0),
        "{sum:?}"
    );
}

#[test]
fn a_seed_does_the_same_again() {
    for seed in 1..6 {
        assert_eq!(run(seed), run(seed), "seed {seed}");
    }
}
