//! Replicas that cannot vouch for what they hold: they settle it, or wait for who can.

use crate::care::{VOLUME, attached, attached_with, damage, info, level, table};
use crate::clients::page;
use crate::scenarios::{ask, done, isolate, reply, session, value_at, write};
use crate::world::{MIB, SECONDS, World};
use blocks::Buffer;
use replication::{Op, RequestId, Role};

/// Two writes in batches of their own on all disks, of which nobody heard that they are committed.
fn unacknowledged(world: &mut World, a: replication::SessionId) -> [RequestId; 2] {
    world.block(1, 0);
    world.block(2, 0);
    [(1, 701), (2, 702)].map(|(lba, value)| {
        let asked = ask(world, 0, a, write(lba, value));
        world.run_until(SECONDS / 20, |_| false);
        asked
    })
}

fn is_led(world: &World) -> bool {
    let nodes = world.nodes.iter().filter_map(|node| node.host.as_ref());
    let roles = nodes.filter_map(|host| host.group(VOLUME).map(|group| group.role));
    roles.into_iter().any(|role| role == Role::Leader)
}

fn reads(world: &mut World, number: u128, lba: u64) -> Buffer {
    let b = session(world, 1, number);
    value_at(world, 1, b, lba)
}

#[test]
fn an_entry_that_the_leader_has_in_effect_and_no_more_in_its_log_comes_as_chunks() {
    let (mut world, a) = attached_with(MIB);
    let first = info(&world, 0).last + 1;
    world.kill(1, true);
    world.block(2, 0);
    let asked: Vec<RequestId> = (1..=8)
        .map(|number| {
            let asked = ask(&mut world, 0, a, write(number, 700 + number));
            world.run_until(SECONDS / 50, |_| false);
            asked
        })
        .collect();
    let last = info(&world, 2).last;
    world.kill(2, true);
    damage(&mut world, 2, 701);
    world.start(1);
    for asked in asked {
        assert!(matches!(reply(&mut world, asked), Some(Ok(_))));
    }
    // Its log begins after that entry, and before the others that this one has.
    for number in 0.. {
        done(&mut world, 0, a, write(20 + number % 10, 800 + number));
        let info = info(&world, 0);
        if info.first > first {
            assert!(info.first <= last, "{info}");
            break;
        }
    }
    world.blocked.clear();
    world.start(2);
    level(&mut world, &[0, 1, 2]);
    let counters = world.nodes[2].host.as_ref().expect("it is up").store();
    assert!(counters.counters().chunks > 0, "{}", table(&world));
    assert_eq!(info(&world, 2).entries_given_up, 0);
    assert_eq!(
        reads(&mut world, 10, 1),
        Buffer::from_pages(vec![page(701)])
    );
}

#[test]
fn an_entry_that_others_took_the_place_of_is_waited_for_by_nobody() {
    let (mut world, a) = attached();
    // On the leader's own disk only.
    isolate(&mut world, 0);
    for (lba, value) in [(1, 701), (2, 702)] {
        ask(&mut world, 0, a, write(lba, value));
        world.run_until(SECONDS / 20, |_| false);
    }
    world.kill(0, true);
    damage(&mut world, 0, 701);
    let b = session(&mut world, 1, 2);
    done(&mut world, 1, b, Op::Attach { claim: 0 });
    for lba in 0..4 {
        done(&mut world, 1, b, write(lba, 801 + lba));
    }
    level(&mut world, &[1, 2]);
    world.settle(1);
    world.settle(2);
    world.blocked.clear();
    world.start(0);
    level(&mut world, &[0, 1, 2]);
    let info = info(&world, 0);
    assert_eq!((info.damaged_entries, info.entries_given_up), (0, 0));
    assert_eq!(
        reads(&mut world, 10, 1),
        Buffer::from_pages(vec![page(802)])
    );
}

#[test]
fn when_all_that_have_an_entry_are_in_doubt_it_is_given_up() {
    let (mut world, a) = attached();
    unacknowledged(&mut world, a);
    (0..3).for_each(|node| world.kill(node, true));
    (0..3).for_each(|node| damage(&mut world, node, 701));
    world.blocked.clear();
    (0..3).for_each(|node| world.start(node));
    level(&mut world, &[0, 1, 2]);
    assert!(
        (0..3).any(|node| info(&world, node).entries_given_up > 0),
        "{}",
        table(&world)
    );
    let b = session(&mut world, 1, 2);
    done(&mut world, 1, b, Op::Attach { claim: 0 });
    for lba in [1, 2] {
        assert_eq!(value_at(&mut world, 1, b, lba), Buffer::zeroed(1));
        done(&mut world, 1, b, write(lba, 800 + lba));
        let held = Buffer::from_pages(vec![page(800 + lba)]);
        assert_eq!(value_at(&mut world, 1, b, lba), held);
    }
}

#[test]
fn what_one_that_is_away_may_have_is_not_given_up() {
    let (mut world, a) = attached();
    unacknowledged(&mut world, a);
    (0..3).for_each(|node| world.kill(node, true));
    (0..2).for_each(|node| damage(&mut world, node, 701));
    world.blocked.clear();
    (0..2).for_each(|node| world.start(node));
    world.run_until(8 * SECONDS, |_| false);
    assert!(!is_led(&world), "{}", table(&world));
    for node in 0..2 {
        let info = info(&world, node);
        assert_eq!((info.damaged_entries, info.entries_given_up), (1, 0));
    }
    world.start(2);
    level(&mut world, &[0, 1, 2]);
    for (lba, value) in [(1, 701), (2, 702)] {
        let held = Buffer::from_pages(vec![page(value)]);
        assert_eq!(reads(&mut world, 10 + u128::from(lba), lba), held);
    }
}
