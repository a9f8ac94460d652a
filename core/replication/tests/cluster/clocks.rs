//! Clocks that run as differently as they may, and jump.

use crate::clients::{BLOCKS, Clients, page};
use crate::random::go_on;
use crate::scenarios::{ask, done, isolate, reply, session, write};
use crate::world::{MIB, MILLIS, SECONDS, World};
use blocks::{Buffer, VolumeId};
use replication::{Answered, MOST_DRIFT_PERCENT, MOST_JUMP_MICROS, Op, PROMISE_MICROS, SessionId};

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

/// By its own clock a leader was never without a majority; by the others' clocks it was, and another one leads. What it hears
/// first is that a host is there again, and it answers no read by that.
#[test]
fn a_leader_that_others_replaced_in_a_moment_reads_nothing_old() {
    let mut replaced = 0;
    for seed in 1..=60 {
        let mut world = World::new(seed, 3, 64 * MIB, 4 * MIB);
        world.create(VOLUME, BLOCKS, &[0, 1, 2]);
        let a = session(&mut world, 0, 1);
        done(&mut world, 0, a, Op::Attach { claim: 0 });
        assert!(world.run_until(5 * SECONDS, |world| world.leader(VOLUME) == Some(0)));
        done(&mut world, 0, a, write(1, 11));
        for node in 0..3 {
            world.run_at(node, if node == 0 { SLOW } else { FAST });
        }
        let cut = |world: &mut World, node: usize| {
            world.block(0, node);
            world.block(node, 0);
        };
        cut(&mut world, 2);
        world.run_until(2 * SECONDS, |_| false);
        cut(&mut world, 1);
        let cut_at = world.now;
        let (b, id) = (SessionId(2), world.nodes[2].id);
        let host = world.nodes[2].host.as_mut().expect("it is up");
        host.open_session(b, VOLUME, vec![id]);
        let attach = ask(&mut world, 2, b, Op::Attach { claim: 1 });
        let answered = |world: &mut World, request| {
            let until = cut_at + 700 * MILLIS;
            let left = until.saturating_sub(world.now);
            world.run_until(left, |world| {
                world.replies.iter().any(|(_, it)| it.request == request)
            })
        };
        if !answered(&mut world, attach) {
            continue;
        }
        let written = ask(&mut world, 2, b, write(1, 22));
        if !answered(&mut world, written) {
            continue;
        }
        replaced += 1;
        world.blocked.remove(&(0, 2));
        world.blocked.remove(&(2, 0));
        let reader = session(&mut world, 0, 3);
        let reads: Vec<_> = (0..20)
            .map(|_| {
                world.run_until(MILLIS, |_| false);
                ask(&mut world, 0, reader, Op::Read { lba: 1, blocks: 1 })
            })
            .collect();
        world.blocked.clear();
        for read in reads {
            let data = vec![Buffer::from_pages(vec![page(22)])];
            let expected = Some(Ok(Answered::Data(data)));
            assert_eq!(reply(&mut world, read), expected, "seed {seed}");
        }
    }
    assert!(replaced > 2, "{replaced}");
}

/// Who starts anew has forgotten whom it promised not to help another one: it helps nobody for as long as a promise lasts.
#[test]
fn who_starts_anew_keeps_the_promise_that_it_forgot() {
    for seed in 1..=20 {
        let mut world = World::new(seed, 3, 64 * MIB, 4 * MIB);
        world.create(VOLUME, BLOCKS, &[0, 1, 2]);
        for node in 0..3 {
            world.run_at(node, 1000);
        }
        let a = session(&mut world, 0, 1);
        done(&mut world, 0, a, Op::Attach { claim: 0 });
        assert!(world.run_until(5 * SECONDS, |world| world.leader(VOLUME) == Some(0)));
        // One would like to lead, and the other has promised not to help it.
        world.block(0, 2);
        world.block(2, 0);
        world.run_until(2 * SECONDS, |_| false);
        assert_eq!(world.leader(VOLUME), Some(0), "seed {seed}");
        world.kill(1, false);
        world.start(1);
        world.block(0, 1);
        world.block(1, 0);
        let other = |world: &mut World| world.leader(VOLUME).is_some_and(|node| node != 0);
        let early = world.run_until(PROMISE_MICROS * 9 / 10, other);
        assert!(
            !early,
            "seed {seed}: another leads while the first may answer reads"
        );
        assert!(world.run_until(5 * SECONDS, other), "seed {seed}");
    }
}
