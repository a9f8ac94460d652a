//! A volume of which all but a minority is lost goes on from what is left; and what was lost comes back.

use crate::care::{VOLUME, changed, has, level, members, table, voters, world};
use crate::clients::page;
use crate::scenarios::{ask, done, reply, session, value_at, write};
use crate::world::{MIB, SECONDS, World};
use blocks::Buffer;
use replication::{Answered, Failure, NotRecovered, Op, Outcome, Recovery, SessionId};

fn recover(world: &mut World, node: usize, number: u64, claim: u64) -> Result<(), NotRecovered> {
    let now = world.clock(node);
    let host = world.nodes[node].host.as_mut().expect("it is up");
    let recovered = host.recover(VOLUME, Recovery { number, claim }, now);
    world.drain(node);
    recovered
}

fn attach(world: &mut World, node: usize, session: SessionId, claim: u64) -> Outcome {
    let request = ask(world, node, session, Op::Attach { claim });
    reply(world, request).expect("it is answered")
}

/// A volume on hosts 0 to 2, attached to host 3: two of its replicas have what the third, which is given, was cut off
/// from, and are away.
fn two_are_lost(mut world: World) -> (World, SessionId, usize, Vec<usize>) {
    let a = session(&mut world, 3, 1);
    assert!(attach(&mut world, 3, a, 1).is_ok());
    done(&mut world, 3, a, write(1, 100));
    level(&mut world, &[0, 1, 2]);
    let left = (0..3)
        .find(|node| world.leader(VOLUME) != Some(*node))
        .expect("one leads");
    for other in (0..4).filter(|other| *other != left) {
        world.block(left, other);
        world.block(other, left);
    }
    done(&mut world, 3, a, write(5, 500));
    let lost: Vec<usize> = (0..3).filter(|node| *node != left).collect();
    lost.iter().for_each(|node| world.kill(*node, true));
    world.blocked.clear();
    (world, a, left, lost)
}

fn leads(world: &mut World, node: usize) {
    let leads = world.run_until(10 * SECONDS, |world| world.leader(VOLUME) == Some(node));
    assert!(leads, "{}", table(world));
}

#[test]
fn it_goes_on_from_what_is_left_and_those_that_come_back_are_none_of_it() {
    let (mut world, before, left, lost) = two_are_lost(world(4, MIB));
    world.run_until(3 * SECONDS, |_| false);
    assert_eq!(world.leader(VOLUME), None, "{}", table(&world));
    assert_eq!(recover(&mut world, left, 1, 2), Ok(()));
    leads(&mut world, left);
    assert_eq!(voters(&world), [[left as u64 + 1]]);
    // Who was attached remembers what is lost.
    let stale = ask(&mut world, 3, before, write(1, 101));
    assert_eq!(reply(&mut world, stale), Some(Err(Failure::Fenced)));
    let late = session(&mut world, 3, 2);
    assert_eq!(attach(&mut world, 3, late, 1), Err(Failure::Fenced));
    let after = session(&mut world, 3, 3);
    assert!(attach(&mut world, 3, after, 3).is_ok());
    let value = |value| Buffer::from_pages(vec![page(value)]);
    assert_eq!(value_at(&mut world, 3, after, 1), value(100));
    let only_theirs = value_at(&mut world, 3, after, 5);
    assert_eq!(only_theirs, Buffer::zeroed(1), "it was never here");
    done(&mut world, 3, after, write(5, 600));
    // The others are a majority of what there was.
    lost.iter().for_each(|node| world.start(*node));
    let gone = world.run_until(20 * SECONDS, |world| {
        lost.iter().all(|node| !has(world, *node))
    });
    assert!(gone, "{}", table(&world));
    assert_eq!(value_at(&mut world, 3, after, 5), value(600));
    // Their hosts may have others.
    let target = [(left as u64 + 1, left), (4, 3), (5, lost[0])];
    let target = members(&target, &world);
    let change = Op::Change {
        number: 1,
        members: target.clone(),
    };
    assert_eq!(done(&mut world, 3, after, change), Answered::Done);
    changed(&mut world, &target);
    assert_eq!(recover(&mut world, left, 1, 2), Ok(()), "it was done");
    assert_eq!(voters(&world).len(), 3, "{}", table(&world));
    assert_eq!(value_at(&mut world, 3, after, 5), value(600));
}

#[test]
fn what_somebody_leads_is_not_recovered() {
    let mut world = world(3, MIB);
    for node in 0..3 {
        let led = Err(NotRecovered::Led { volume: VOLUME });
        assert_eq!(recover(&mut world, node, 1, 1), led);
    }
    let zero = Err(NotRecovered::Number { number: 0 });
    assert_eq!(recover(&mut world, 0, 0, 1), zero);
    level(&mut world, &[0, 1, 2]);
}

#[test]
fn a_crash_on_the_way_takes_nothing_back() {
    for seed in 1..=24 {
        let mut made = World::new(seed, 4, 64 * MIB, MIB);
        made.create(VOLUME, 4096, &[0, 1, 2]);
        level(&mut made, &[0, 1, 2]);
        let (mut world, _, left, _) = two_are_lost(made);
        world.run_until(2 * SECONDS, |_| false);
        assert_eq!(recover(&mut world, left, 1, 2), Ok(()), "seed {seed}");
        // Sooner or later in what it has to write.
        world.run_until(seed * 200, |_| false);
        world.kill(left, true);
        world.start(left);
        world.run_until(SECONDS / 2, |_| false);
        assert_eq!(recover(&mut world, left, 1, 2), Ok(()), "seed {seed}");
        leads(&mut world, left);
        assert_eq!(voters(&world), [[left as u64 + 1]], "seed {seed}");
    }
}
