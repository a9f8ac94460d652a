//! Every state that a loss of power can leave, within bounds, at each sync of short workloads.

use crate::disk::Disk;
use crate::random::{Mix, Outcome, seeds, step};
use crate::rng::Rng;
use crate::world::World;
use blocks::{Io, VolumeId};
use std::collections::BTreeMap;

const MIB: u64 = 1 << 20;
/// States of one moment that are all gone through; where there are more, so many are drawn.
const MOST_STATES: usize = 128;

#[test]
fn every_state_that_a_crash_may_leave_is_recovered() {
    let mut sum = (0, 0, 0);
    for seed in seeds(2) {
        println!("BLOCKS_SEED={seed}");
        let (moments, states, all) = enumerate(seed);
        sum = (sum.0 + moments, sum.1 + states, sum.2 + all);
    }
    println!(
        "{} moments, {} states; {} moments with all of their states",
        sum.0, sum.1, sum.2
    );
    assert!(sum.1 > 1000 && sum.2 > 10, "{sum:?}");
}

/// Moments, states, and moments all of whose states were gone through.
fn enumerate(seed: u64) -> (u64, u64, u64) {
    let mut rng = Rng(seed ^ 0xc4a5);
    let mut world = World::new(8 * MIB, MIB);
    let mix = Mix {
        large: 3,
        zero: 4,
        crash: u64::MAX,
        hurry: 1,
        cut: 5,
        spread: 40,
    };
    for volume in 1..=2 {
        world
            .create(VolumeId::new(volume), mix.spread)
            .expect("there is room");
    }
    let mut count = (0, 0, 0);
    for number in 0..40 {
        step(&mut world, &mix, &mut rng, &mut Outcome::default());
        if number % 8 == 7 {
            world.store.checkpoint();
        }
        world.poll();
        while !world.ios.is_empty() && !rng.one_in(3) {
            let next = rng.below(world.ios.len() as u64) as usize;
            // Before a sync most is open.
            if world.ios[next].1 == Io::Sync {
                let (states, all) = crash_here(&world, &mut rng);
                count = (count.0 + 1, count.1 + states, count.2 + u64::from(all));
            }
            world.complete(next);
        }
    }
    count
}

fn crash_here(world: &World, rng: &mut Rng) -> (u64, bool) {
    let mut disk = world.disk.clone();
    // What was handed out and is not done may be there as well.
    for (_, io, _) in &world.ios {
        if let Io::Write { at, buffers } = io {
            disk.write(*at, buffers);
        }
    }
    let open = disk.open_blocks();
    let combinations = open
        .iter()
        .try_fold(1_usize, |all, (_, versions)| all.checked_mul(*versions));
    let all = combinations.filter(|all| *all <= MOST_STATES);
    let states = match all {
        Some(all) => (0..all).map(|number| combination(&open, number)).collect(),
        None => drawn(&open, rng),
    };
    for state in &states {
        let mut disk: Disk = disk.clone();
        disk.keep(state);
        let opened = World::of_disk(disk, world.model.clone(), world.bytes, false, &mut Rng(1));
        let recovered = opened
            .map(|(_, recovered)| recovered)
            .expect("a crash damages nothing");
        assert!(
            recovered.damaged.is_empty() && recovered.damaged_headers.is_empty(),
            "{recovered:?}"
        );
    }
    (states.len() as u64, all.is_some())
}

type State = BTreeMap<u64, usize>;

fn combination(open: &[(u64, usize)], mut number: usize) -> State {
    let mut state = State::new();
    for (block, versions) in open {
        state.insert(*block, number % versions);
        number /= versions;
    }
    state
}

/// Nothing, everything, each block alone, all but each one, and some at random.
fn drawn(open: &[(u64, usize)], rng: &mut Rng) -> Vec<State> {
    let newest: State = open
        .iter()
        .map(|(block, versions)| (*block, versions - 1))
        .collect();
    let mut states = vec![State::new(), newest.clone()];
    for (block, versions) in open {
        states.push(State::from([(*block, versions - 1)]));
        let mut all_but = newest.clone();
        all_but.insert(*block, 0);
        states.push(all_but);
    }
    while states.len() < MOST_STATES {
        let any = open
            .iter()
            .map(|(block, versions)| (*block, rng.below(*versions as u64) as usize));
        states.push(any.collect());
    }
    states
}
