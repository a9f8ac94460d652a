//! Every state that a loss of power can leave, within bounds, at each sync of short workloads.

use crate::disk::Disk;
use crate::random::{Mix, Outcome, are_few, seeds, step};
use crate::rng::Rng;
use crate::world::World;
use blocks::{Io, VolumeId};
use std::collections::BTreeMap;

const MIB: u64 = 1 << 20;
/// States of one moment that are all gone through; where there are more, so many are drawn.
const MOST_STATES: usize = 128;

#[test]
fn every_state_that_a_crash_may_leave_is_recovered() {
    let mut sum = Count::default();
    for seed in seeds(2) {
        println!("BLOCKS_SEED={seed}");
        let count = enumerate(seed);
        sum.moments += count.moments;
        sum.states += count.states;
        sum.whole += count.whole;
        sum.lost += count.lost;
    }
    println!("{sum:?}");
    assert!(
        are_few(2) || sum.states > 1000 && sum.whole > 10 && sum.lost > 10,
        "{sum:?}"
    );
}

#[derive(Debug, Default)]
struct Count {
    moments: u64,
    states: u64,
    /// Moments all of whose states were gone through.
    whole: u64,
    /// States with entries that are named and not there.
    lost: u64,
}

fn enumerate(seed: u64) -> Count {
    let mut rng = Rng(seed ^ 0xc4a5);
    let mut world = World::new(8 * MIB, MIB);
    let mix = Mix::PLAIN;
    for volume in 1..=2 {
        world
            .create(VolumeId::new(volume), mix.spread)
            .expect("there is room");
    }
    let mut count = Count::default();
    for number in 0..40 {
        step(&mut world, &mix, &mut rng, &mut Outcome::default());
        if number % 8 == 7 {
            world.store.checkpoint();
        }
        world.poll();
        while !world.ios.is_empty() && !rng.one_in(3) {
            let next = rng.below(world.ios.len() as u64) as usize;
            // Before a sync most is open.
            if matches!(world.ios[next].1, Io::Sync | Io::WriteSync { .. }) {
                let (states, all, lost) = crash_here(&world, &mut rng);
                count.moments += 1;
                count.states += states;
                count.whole += u64::from(all);
                count.lost += lost;
            }
            world.complete(next);
        }
    }
    count
}

fn crash_here(world: &World, rng: &mut Rng) -> (u64, bool, u64) {
    let mut disk = world.disk.clone();
    // What was handed out and is not done may be there as well.
    for (_, io, _) in &world.ios {
        if let Io::Write { at, buffers } | Io::WriteSync { at, buffers } = io {
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
    let mut lost = 0;
    for state in &states {
        let mut disk: Disk = disk.clone();
        disk.keep(state);
        let opened = World::of_disk(disk, world.model.clone(), world.bytes, false, &mut Rng(1));
        let (mut world, recovered) = opened.expect("a crash damages nothing");
        let again = world.reopen(&mut Rng(2)).expect("a crash damages nothing");
        assert_eq!(again.damaged, recovered.damaged);
        lost += u64::from(!recovered.damaged.is_empty());
    }
    (states.len() as u64, all.is_some(), lost)
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
