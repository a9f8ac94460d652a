//! Disks that fail while they are used: writes and syncs that fail, writes that are reported and are not
//! there, or are elsewhere. Reads that are right or say that they are not, and what was acknowledged.

use crate::random::{Mix, Outcome, are_few, seeds, step};
use crate::rng::Rng;
use crate::world::World;
use blocks::{BLOCK_BYTES, Io, Refused, Submission, VolumeId};

const MIB: u64 = 1 << 20;
const OPERATIONS: u64 = 160;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sickness {
    Writes,
    Syncs,
    Lost,
    Misdirected,
}

/// What went wrong, and what came of it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Seen {
    writes: u64,
    syncs: u64,
    lost: u64,
    lost_batches: u64,
    misdirected: u64,
    opened: u64,
    refused: u64,
    damaged: u64,
    full: u64,
}

fn run(seed: u64, seen: &mut Seen) -> u64 {
    let sickness = [
        Sickness::Writes,
        Sickness::Syncs,
        Sickness::Lost,
        Sickness::Misdirected,
    ][(seed % 4) as usize];
    let mut rng = Rng(seed ^ 0x51c4);
    // Small ones, so that they are full now and then.
    let mut world = World::new(7 * MIB, MIB);
    let mix = Mix {
        large: 1 + rng.below(6),
        zero: 1 + rng.below(8),
        cut: 4 + rng.below(10),
        spread: [60, 400][rng.below(2) as usize],
        ..Mix::PLAIN
    };
    for volume in 1..=2 {
        world
            .create(VolumeId::new(volume), mix.spread)
            .expect("there is room");
    }
    let rare = 10 + rng.below(60);
    for _ in 0..OPERATIONS {
        step(&mut world, &mix, &mut rng, &mut Outcome::default());
        for _ in 0..rng.below(10) {
            world.poll();
            if !world.ios.is_empty() {
                let next = rng.below(world.ios.len() as u64) as usize;
                if rng.one_in(rare) {
                    go_wrong(&mut world, next, sickness, &mut rng, seen);
                } else {
                    world.complete(next);
                }
            }
            if world.dead.is_some() {
                break;
            }
        }
        let dead = world.dead.is_some();
        if dead {
            is_dead(&mut world);
        }
        if (dead || rng.one_in(40)) && !open_again(&mut world, &mut rng, seen) {
            break;
        }
    }
    seen.full += world.full;
    world.trace
}

fn go_wrong(world: &mut World, next: usize, sickness: Sickness, rng: &mut Rng, seen: &mut Seen) {
    match (sickness, world.ios[next].1.clone()) {
        (Sickness::Writes, Io::Write { at, buffers } | Io::WriteSync { at, buffers }) => {
            // Some of it may be there.
            let blocks: usize = buffers.iter().map(blocks::Buffer::blocks).sum();
            let pages = buffers.iter().flat_map(blocks::Buffer::pages);
            let some = rng.below(blocks as u64 + 1) as usize;
            let pages = pages.take(some).cloned().collect();
            world.disk.write(at, &[blocks::Buffer::from_pages(pages)]);
            world.fail(next, "EIO");
            seen.writes += 1;
        }
        (Sickness::Syncs, Io::Sync) => {
            world.disk.fail_sync(rng);
            world.fail(next, "EIO");
            seen.syncs += 1;
        }
        (Sickness::Syncs, Io::WriteSync { at, buffers }) => {
            world.disk.write(at, &buffers);
            world.disk.fail_sync(rng);
            world.fail(next, "EIO");
            seen.syncs += 1;
        }
        (Sickness::Lost, Io::Write { at, .. } | Io::WriteSync { at, .. }) => {
            world.may_be_damaged = true;
            let log = world.store.layout().extent_at(0, 0);
            seen.lost_batches += u64::from((world.store.layout().wal_at(0)..log).contains(&at));
            world.lose_write(next, None);
            seen.lost += 1;
        }
        (Sickness::Misdirected, Io::Write { .. } | Io::WriteSync { .. }) => {
            world.may_be_damaged = true;
            // Over the log it may hit the last header, which one disk cannot tell.
            let extents = world.store.layout().extent_at(0, 0) / BLOCK_BYTES as u64;
            let places = world.disk.written().into_iter();
            let places: Vec<u64> = places.filter(|block| *block >= extents).collect();
            let to = rng.below(places.len().max(1) as u64) as usize;
            world.lose_write(next, places.get(to).copied());
            seen.misdirected += 1;
        }
        _ => world.complete(next),
    }
}

/// A disk that failed takes nothing in, hands nothing out, and says of nothing that it is durable.
fn is_dead(world: &mut World) {
    let durable = world.model.durable;
    let volumes: Vec<VolumeId> = world.store.volumes().collect();
    let dead = |result: Result<(), Refused>| {
        assert!(matches!(result, Err(Refused::Dead { .. })), "{result:?}");
    };
    for volume in volumes {
        let hard = Some((u64::MAX, 1));
        let entries = Vec::new();
        let submission = Submission { hard, entries };
        dead(world.store.submit(volume, submission).map(drop));
        dead(world.store.committed(volume, 1).map(drop));
        dead(world.store.read(volume, 0, 1).map(drop));
    }
    dead(world.store.create(VolumeId::new(99), 1).map(drop));
    world.store.checkpoint();
    while !world.ios.is_empty() {
        world.complete(0);
    }
    assert_eq!(world.store.poll_io(), None, "nothing is tried again");
    assert_eq!(world.model.durable, durable);
}

/// The host starts again, on the same disk. False: it cannot be opened any more.
fn open_again(world: &mut World, rng: &mut Rng, seen: &mut Seen) -> bool {
    world.crash(true, rng);
    world.forget_lost_batches();
    let mut disk = world.disk.clone();
    if let Err(error) = crate::machine::open(&mut disk, world.bytes, &mut rng.clone()) {
        assert!(world.may_be_damaged, "{error}");
        seen.refused += 1;
        return false;
    }
    let before = world.damaged_seen;
    let recovered = world.reopen(rng).expect("it was opened a moment ago");
    if world.may_be_damaged {
        seen.damaged += recovered.damaged.len() as u64 + world.damaged_seen - before;
    }
    seen.opened += 1;
    true
}

#[test]
fn a_disk_that_fails_loses_nothing_and_one_that_lies_is_found_out() {
    let mut seen = Seen::default();
    for seed in seeds(80) {
        println!("BLOCKS_SEED={seed}");
        run(seed, &mut seen);
    }
    println!("{seen:?}");
    let all = [
        seen.writes,
        seen.syncs,
        seen.lost,
        seen.lost_batches,
        seen.misdirected,
        seen.opened,
        seen.refused,
        seen.damaged,
        seen.full,
    ];
    assert!(
        are_few(80) || all.iter().all(|number| *number > 0),
        "{seen:?}"
    );
}

#[test]
fn a_sickness_goes_the_same_way_again() {
    for seed in 1..9 {
        let once = run(seed, &mut Seen::default());
        assert_eq!(once, run(seed, &mut Seen::default()), "seed {seed}");
    }
}
