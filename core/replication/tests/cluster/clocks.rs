//! Clocks that run as differently as they may, and jump.

use crate::clients::{BLOCKS, Clients};
use crate::random::go_on;
use crate::scenarios::isolate;
use crate::world::{MIB, MILLIS, SECONDS, World};
use blocks::VolumeId;
use replication::{MOST_DRIFT_PERCENT, MOST_JUMP_MICROS};

const VOLUME: VolumeId = VolumeId::new(7);

/// A slow one, and one that is as much faster as is allowed, in thousandths.
const SLOW: u64 = 910;
const FAST: u64 = SLOW * (100 + MOST_DRIFT_PERCENT) / 100;

/// A leader that is cut off, by whose clock little time passes, and others that soon think that it is over.
#[test]
fn reads_are_linearizable_while_clocks_run_fast_and_slow_and_jump() {
    let (mut done, mut jumps, mut takeovers) = (0, 0, 0);
    for seed in 1..=4 {
        let mut world = World::new(seed, 3, 64 * MIB, 4 * MIB);
        let mut clients = Clients::default();
        world.create(VOLUME, BLOCKS, &[0, 1, 2]);
        for looks_on in [false, true, true] {
            clients.add(&mut world, VOLUME, vec![0, 1, 2], looks_on);
        }
        let until = world.now + 2 * SECONDS;
        go_on(&mut world, &mut clients, None, until, |_, _| false);
        for round in 0..4 {
            let Some(leader) = world.leader(VOLUME) else {
                continue;
            };
            for node in 0..3 {
                world.run_at(node, if node == leader { SLOW } else { FAST });
            }
            let until = world.now + SECONDS;
            go_on(&mut world, &mut clients, None, until, |_, _| false);
            isolate(&mut world, leader);
            // One of the two jumps, while the promise lasts that was made last.
            let until = world.now + world.rng.below(300 * MILLIS);
            go_on(&mut world, &mut clients, None, until, |_, _| false);
            let (who, forward) = match round % 2 {
                0 => (leader, false),
                _ => ((leader + 1) % 3, true),
            };
            world.jump(who, forward, MOST_JUMP_MICROS);
            let until = world.now + 2 * SECONDS;
            go_on(&mut world, &mut clients, None, until, |_, _| false);
            takeovers += u64::from(world.leader(VOLUME) != Some(leader));
            world.blocked.clear();
            let until = world.now + SECONDS;
            go_on(&mut world, &mut clients, None, until, |_, _| false);
        }
        (done, jumps) = (done + clients.done, jumps + world.faults.jumps);
    }
    println!("{done} requests, {jumps} jumps of a clock, {takeovers} times another led");
    assert!(done > 500 && jumps >= 12 && takeovers >= 12);
}
