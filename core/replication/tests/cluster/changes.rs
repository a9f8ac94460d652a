//! Changes of replicas that come in another order than they were asked for.

use crate::care::{VOLUME, changed, has, level, members, table, voters, world};
use crate::scenarios::{ask, done, reply, session, write};
use crate::world::{FINE, MIB, SECONDS, World};
use replication::{Answered, Failure, Members, Op, SessionId};

fn change(number: u64, members: &Members) -> Op {
    let members = members.clone();
    Op::Change { number, members }
}

fn holds(world: &World, number: u64, target: &Members) {
    let members = world.members_of(VOLUME).expect("somebody leads");
    assert_eq!(
        (members.change(), members.wanted()),
        (number, target.wanted()),
        "{}",
        table(world)
    );
}

#[test]
fn a_change_that_was_on_its_way_does_not_undo_a_later_one() {
    let mut world = world(4, MIB);
    let leader = world.leader(VOLUME).expect("somebody leads");
    let others: Vec<usize> = (0..3).filter(|node| *node != leader).collect();
    let list = |replica: u64, node: usize, out: usize| {
        let stay = (0..3).filter(|it| *it != out);
        let stay = stay.map(|it| (it as u64 + 1, it));
        stay.chain([(replica, node)]).collect::<Vec<_>>()
    };
    // The old one is stuck where it was asked for, far from whoever leads.
    let earlier = members(&list(8, 3, others[0]), &world);
    let later = members(&list(9, 3, others[1]), &world);
    for node in 0..3 {
        world.block(3, node);
        world.block(node, 3);
    }
    let a = session(&mut world, 3, 1);
    let late = ask(&mut world, 3, a, change(1, &earlier));
    world.run_until(SECONDS / 2, |_| false);
    let b = session(&mut world, leader, 2);
    done(&mut world, leader, b, change(2, &later));
    world.blocked.clear();
    let refused = reply(&mut world, late);
    assert!(
        matches!(refused, Some(Err(Failure::Invalid { .. }))),
        "{refused:?}"
    );
    changed(&mut world, &later);
    holds(&world, 2, &later);
    let there: Vec<usize> = (0..4).filter(|node| *node != others[1]).collect();
    level(&mut world, &there);
    // A host that has an old configuration leads, and asks by it.
    let leader = world.leader(VOLUME).expect("somebody leads");
    world.kill(leader, false);
    let c = session(&mut world, 3, 3);
    for old in [change(1, &earlier), change(2, &earlier), change(0, &later)] {
        let asked = ask(&mut world, 3, c, old.clone());
        let refused = reply(&mut world, asked);
        let invalid = matches!(refused, Some(Err(Failure::Invalid { .. })));
        assert!(invalid, "{old:?}: {refused:?}");
    }
    world.start(leader);
    level(&mut world, &there);
    holds(&world, 2, &later);
    let all = voters(&world);
    assert!(all.iter().all(|it| it.contains(&9) && !it.contains(&8)));
}

#[test]
fn the_same_replicas_by_a_later_change_keep_out_what_was_between() {
    let mut world = world(4, MIB);
    let as_is = world.members(&[0, 1, 2]);
    let between = members(&[(1, 0), (2, 1), (8, 3)], &world);
    let a = session(&mut world, 0, 1);
    assert_eq!(done(&mut world, 0, a, change(3, &as_is)), Answered::Done);
    assert_eq!(done(&mut world, 0, a, change(3, &as_is)), Answered::Done);
    let asked = ask(&mut world, 0, a, change(2, &between));
    let refused = reply(&mut world, asked);
    assert!(
        matches!(refused, Some(Err(Failure::Invalid { .. }))),
        "{refused:?}"
    );
    holds(&world, 3, &as_is);
    // It is in the log: who starts anew knows of it.
    (0..3).for_each(|node| world.kill(node, true));
    (0..3).for_each(|node| world.start(node));
    level(&mut world, &[0, 1, 2]);
    let b = session(&mut world, 1, 2);
    let asked = ask(&mut world, 1, b, change(2, &between));
    assert!(matches!(
        reply(&mut world, asked),
        Some(Err(Failure::Invalid { .. }))
    ));
    done(&mut world, 1, b, change(4, &between));
    changed(&mut world, &between);
    holds(&world, 4, &between);
}

#[test]
fn who_misses_its_removal_is_told_by_those_that_saw_it() {
    let mut world = world(4, MIB);
    let a = session(&mut world, 0, 1);
    done(&mut world, 0, a, Op::Attach { claim: 0 });
    assert!(world.run_until(5 * SECONDS, |world| world.leader(VOLUME) == Some(0)));
    level(&mut world, &[0, 1, 2]);
    // It follows node 0, which is there all the time and leads no more; who leads then it does not hear.
    for node in [1, 3] {
        world.block(node, 2);
        world.block(2, node);
    }
    let b = session(&mut world, 1, 2);
    done(&mut world, 1, b, Op::Attach { claim: 1 });
    assert!(world.run_until(5 * SECONDS, |world| world.leader(VOLUME) == Some(1)));
    let target = members(&[(1, 0), (2, 1), (4, 3)], &world);
    done(&mut world, 1, b, change(1, &target));
    changed(&mut world, &target);
    let gone = world.run_until(10 * SECONDS, |world| !has(world, 2));
    assert!(gone, "{}", table(&world));
}

#[test]
fn who_comes_back_under_its_number_is_asked_to_whatever_it_said_before() {
    for seed in 1..=30 {
        let mut world = World::new(seed, 4, 64 * MIB, MIB);
        world.create(VOLUME, 4096, &[0, 1, 2]);
        level(&mut world, &[0, 1, 2]);
        let a = session(&mut world, 0, 1);
        done(&mut world, 0, a, Op::Attach { claim: 0 });
        // What the one that goes says of its log comes late, when another one of its number is to come.
        world.weather.delay = SECONDS / 8;
        let few = members(&[(1, 0), (2, 1)], &world);
        done(&mut world, 0, a, change(1, &few));
        changed(&mut world, &few);
        let all = members(&[(1, 0), (2, 1), (3, 2)], &world);
        done(&mut world, 0, a, change(2, &all));
        world.weather = FINE;
        changed(&mut world, &all);
        level(&mut world, &[0, 1, 2]);
    }
}

#[test]
fn who_was_away_while_all_others_went_hears_those_that_came() {
    let mut world = world(5, MIB);
    let a = session(&mut world, 1, 1);
    done(&mut world, 1, a, Op::Attach { claim: 0 });
    level(&mut world, &[0, 1, 2]);
    for node in 1..5 {
        world.block(0, node);
        world.block(node, 0);
    }
    let targets = [
        members(&[(1, 0), (3, 2), (4, 3)], &world),
        members(&[(1, 0), (4, 3), (5, 4)], &world),
    ];
    for (number, target) in (1_u64..).zip(&targets) {
        let b = session(&mut world, 2, 1 + u128::from(number));
        done(&mut world, 2, b, change(number, target));
        changed(&mut world, target);
    }
    let gone = world.run_until(20 * SECONDS, |world| !has(world, 1) && !has(world, 2));
    assert!(gone, "{}", table(&world));
    world.blocked.clear();
    level(&mut world, &[0, 3, 4]);
}

#[test]
fn whose_space_is_given_back_nobody_needs_any_more() {
    for seed in 1..=20 {
        let mut world = World::new(seed, 4, 64 * MIB, MIB);
        world.create(VOLUME, 4096, &[0, 1, 2]);
        level(&mut world, &[0, 1, 2]);
        let a = session(&mut world, 0, 1);
        done(&mut world, 0, a, Op::Attach { claim: 0 });
        done(&mut world, 0, a, write(1, 11));
        let target = members(&[(1, 0), (2, 1), (4, 3)], &world);
        done(&mut world, 0, a, change(1, &target));
        let gone = world.run_until(20 * SECONDS, |world| !has(world, 2));
        assert!(gone, "seed {seed}: {}", table(&world));
        // The power goes that very moment, and one host does not come back.
        [0, 1, 3].iter().for_each(|node| world.kill(*node, true));
        [1, 3].iter().for_each(|node| world.start(*node));
        let led = world.run_until(20 * SECONDS, |world| world.leader(VOLUME).is_some());
        assert!(led, "seed {seed}: {}", table(&world));
        let b = session(&mut world, 3, 2);
        done(&mut world, 3, b, Op::Attach { claim: 1 });
        done(&mut world, 3, b, write(2, 12));
    }
}

/// One of three hears nobody while two of them go on with a third, which leads; and a session at that one's host.
fn away_meanwhile() -> (World, SessionId) {
    let mut world = world(4, MIB);
    let a = session(&mut world, 0, 1);
    done(&mut world, 0, a, Op::Attach { claim: 0 });
    assert!(world.run_until(5 * SECONDS, |world| world.leader(VOLUME) == Some(0)));
    level(&mut world, &[0, 1, 2]);
    for node in [0, 1, 3] {
        world.block(node, 2);
        world.block(2, node);
    }
    let target = members(&[(2, 1), (3, 2), (9, 3)], &world);
    done(&mut world, 0, a, change(1, &target));
    changed(&mut world, &target);
    let b = session(&mut world, 3, 2);
    done(&mut world, 3, b, Op::Attach { claim: 1 });
    assert!(world.run_until(5 * SECONDS, |world| world.leader(VOLUME) == Some(3)));
    (world, b)
}

#[test]
fn who_was_away_hears_a_leader_that_came_meanwhile() {
    let (mut world, b) = away_meanwhile();
    for number in 0..300 {
        done(&mut world, 3, b, write(number % 1024, 100 + number));
    }
    // Of those that it knows one is gone, the other follows one that it does not know.
    world.blocked.clear();
    level(&mut world, &[1, 2, 3]);
}

#[test]
fn two_that_take_each_other_for_none_say_so_now_and_then() {
    let (mut world, _) = away_meanwhile();
    // The one that was away hears only one that it does not know, some of it twice.
    world.blocked.remove(&(2, 3));
    world.blocked.remove(&(3, 2));
    world.weather.twice = 5;
    // Each link has 10 beats a second; a storm would not end.
    let most = world.frames + 1000;
    let storm = world.run_until(5 * SECONDS, |world| world.frames > most);
    assert!(!storm, "more than 1,000 frames in 5 s");
    world.weather = FINE;
    world.blocked.clear();
    level(&mut world, &[1, 2, 3]);
}
