//! The last batch of the log: what becomes of it when it is not whole, and what it says of commits.

use crate::faults::{V, payload, reopened, submit, world, write, write_at};
use crate::machine::open;
use crate::model::{data, page};
use crate::rng::Rng;
use crate::world::World;
use blocks::{Body, Entry, Refused, Submission, VolumeId};

/// Several entries and a vote that are one batch.
fn batch(world: &mut World, bodies: Vec<Body>, hard: (u64, u64)) {
    let first = world.model.volumes[&V].last() + 1;
    let entries = (first..).zip(bodies).map(|(index, body)| Entry {
        index,
        term: 1,
        epoch: 0,
        body,
    });
    let entries = entries.collect();
    let hard = Some(hard);
    let submission = Submission { hard, entries };
    world.submit(V, submission).expect("there is room");
    world.settle(&mut Rng(first));
}

fn body(index: u64, lba: u64, blocks: u64) -> Body {
    let data = data(1000 + index, blocks);
    Body::Write { lba, data }
}

#[test]
fn what_an_intact_header_of_the_last_batch_says_is_kept() {
    let mut world = world();
    (1..=3).for_each(|index| write(&mut world, index));
    batch(
        &mut world,
        vec![body(4, 4, 2), body(5, 8, 1), body(6, 16, 16)],
        (9, 2),
    );
    let flipped = payload(&world, 4);
    world.disk.corrupt(flipped, &mut Rng(9));
    // Nobody submitted it again: it stays as it is; a checkpoint carries on that it is lost.
    let opened = [(&[4][..], false), (&[4], true), (&[4, 5], false)];
    for (lost, checkpoint) in opened {
        let recovered = reopened(&mut world);
        let [damaged] = &recovered.damaged[..] else {
            panic!("{recovered:?}");
        };
        assert_eq!((damaged.index, &damaged.lbas[..]), (4, lost));
        assert_eq!((damaged.applied, recovered.torn), (false, None));
        let info = world.store.volume(V).expect("it is there");
        assert_eq!((info.last, info.durable), (6, 3));
        assert_eq!((info.hard.term, info.hard.vote), (9, 2), "votes are kept");
        assert_eq!(world.store.committed(V, 6), Err(Refused::Lost { index: 4 }));
        if checkpoint {
            world.store.checkpoint();
            world.settle(&mut Rng(1));
        }
    }
    submit(&mut world, 4, body(4, 4, 2)).expect("it has its promise");
    world.settle(&mut Rng(1));
    world.commit(V, 6);
    world.store.checkpoint();
    world.settle(&mut Rng(1));
    world.may_be_damaged = false;
    world.read_all(&mut Rng(4));
}

#[test]
fn a_payload_in_extents_that_is_damaged_comes_again_to_the_same() {
    let mut world = world();
    batch(&mut world, vec![body(1, 16, 16)], (2, 1));
    let bad = world.disk.find(&page(1001, 10));
    let before = world.store.space();
    world.disk.corrupt(bad[0], &mut Rng(9));
    let recovered = reopened(&mut world);
    let [damaged] = &recovered.damaged[..] else {
        panic!("{recovered:?}");
    };
    assert_eq!((damaged.index, &damaged.lbas[..]), (1, &[26][..]));
    assert_eq!(world.store.committed(V, 1), Err(Refused::Lost { index: 1 }));
    assert_eq!(world.store.space(), before, "its extents are its own");
    let other = submit(&mut world, 1, body(2, 16, 16));
    assert!(matches!(other, Err(Refused::Invalid { .. })), "{other:?}");
    submit(&mut world, 1, body(1, 16, 16)).expect("it has its promise");
    world.settle(&mut Rng(1));
    assert_eq!(world.disk.find(&page(1001, 10)), bad);
    world.may_be_damaged = false;
    world.commit(V, 1);
    world.settle(&mut Rng(1));
    world.reopen(&mut Rng(1)).expect("it is whole");
}

#[test]
fn a_commit_of_what_the_last_batch_lacks_is_told_again() {
    let mut world = world();
    write(&mut world, 1);
    write_at(&mut world, 2, 2, 1);
    world.commit(V, 2);
    world.settle(&mut Rng(1));
    let bad = payload(&world, 2);
    world.disk.corrupt(bad, &mut Rng(9));
    world.may_be_damaged = true;
    let (store, recovered) =
        open(&mut world.disk.clone(), world.bytes, &mut Rng(1)).expect("it is");
    let info = store.volume(V).expect("it is there");
    assert_eq!((info.applied, info.hard.commit, info.last), (1, 1, 2));
    assert!(!recovered.damaged[0].applied, "{recovered:?}");
}

#[test]
fn an_entry_that_was_carried_on_is_taken_from_where_it_was() {
    let mut world = world();
    (1..=3).for_each(|index| write(&mut world, index));
    let first = payload(&world, 2);
    // The checkpoint's batch is there, and the checkpoint is not.
    world.commit(V, 1);
    world.store.checkpoint();
    world.poll();
    while world.store.counters().checkpoints == 0 {
        let copies = world.disk.find(&page(1002, 0));
        if copies.len() == 2 {
            break;
        }
        world.complete(0);
    }
    world.crash(false, &mut Rng(1));
    for _ in 0..2 {
        let copies = world.disk.find(&page(1002, 0));
        let second = copies.into_iter().find(|block| *block != first);
        let second = second.expect("it was carried on");
        world.disk.corrupt(second, &mut Rng(9));
        let recovered = reopened(&mut world);
        assert_eq!(recovered.damaged, Vec::new());
        // The newest copy is whole again.
        assert_eq!(world.disk.find(&page(1002, 0)).len(), 2);
        let mut without = world.disk.clone();
        without.corrupt(first, &mut Rng(9));
        let opened = open(&mut without, world.bytes, &mut Rng(1));
        let (_, recovered) = opened.expect("one copy is enough");
        assert_eq!(recovered.damaged, Vec::new());
    }
    let second = world.disk.find(&page(1002, 0));

    for block in second {
        world.disk.corrupt(block, &mut Rng(9));
    }
    let recovered = reopened(&mut world);
    assert_eq!(recovered.damaged.len(), 1, "{recovered:?}");
}

#[test]
fn a_last_header_that_is_damaged_takes_its_batch_with_it_and_is_told() {
    let mut world = world();
    (1..=4).for_each(|index| write(&mut world, index));
    world.model.durable -= 1;
    let header = payload(&world, 4) - 1;
    world.disk.corrupt(header, &mut Rng(9));
    let recovered = reopened(&mut world);
    assert!(recovered.torn.is_some() && recovered.damaged.is_empty());
    assert_eq!(world.store.volume(V).expect("it is there").last, 3);
}

/// An entry of a later term takes the place of one that is in the log. Until it is there itself, nothing
/// says that its place is committed.
#[test]
fn a_commit_is_told_no_sooner_than_its_entry() {
    let mut world = world();
    let other = VolumeId::new(8);
    world.create(other, 200).expect("there is room");
    (1..=3).for_each(|index| write(&mut world, index));
    let write_other = |world: &mut World, index, blocks| {
        let entries = vec![Entry {
            index,
            term: 1,
            epoch: 0,
            body: body(index, 1, blocks),
        }];
        let hard = None;
        let submission = Submission { hard, entries };
        world.submit(other, submission).expect("there is room");
    };
    // One batch is under way, and the next one has no room for more than this.
    write_other(&mut world, 1, 1);
    world.poll();
    write_other(&mut world, 2, 16);
    let entries = vec![Entry {
        index: 3,
        term: 2,
        epoch: 0,
        body: body(9, 3, 1),
    }];
    let hard = None;
    let submission = Submission { hard, entries };
    world.submit(V, submission).expect("there is room");
    world.commit(V, 3);
    let batches = world.store.counters().batches;
    while world.store.counters().batches < batches + 2 {
        world.complete(0);
    }
    world.ios.clear();
    world.reopen(&mut Rng(1)).expect("it is whole");
    let info = world.store.volume(V).expect("it is there");
    assert_eq!((info.last, info.applied, info.hard.commit), (3, 2, 2));
}

#[test]
fn an_entry_that_is_lost_comes_back_though_the_log_is_full() {
    let mut world = world();
    batch(&mut world, vec![body(1, 4, 8)], (2, 1));
    let flipped = payload(&world, 1);
    world.disk.corrupt(flipped, &mut Rng(9));
    let recovered = reopened(&mut world);
    assert_eq!(recovered.damaged.len(), 1);
    // None of those behind it takes effect, and gives room, before it does.
    let mut last = 1;
    let refused = loop {
        match submit(&mut world, last + 1, body(last + 1, 4, 8)) {
            Ok(_) => last += 1,
            Err(refused) => break refused,
        }
        world.settle(&mut Rng(last));
    };
    assert!(matches!(refused, Refused::Busy { .. }), "{refused:?}");
    submit(&mut world, 1, body(1, 4, 8)).expect("it has its room");
    world.settle(&mut Rng(1));
    world.commit(V, last);
    world.settle(&mut Rng(1));
    world.may_be_damaged = false;
    world.read_all(&mut Rng(4));
}
