//! Room: each extent is promised once, and a disk is full only when it is.

use crate::faults;
use crate::model::data;
use crate::random::{Mix, Outcome, are_few, seeds, step};
use crate::rng::Rng;
use crate::world::World;
use blocks::{Body, Entry, Io, Refused, Submission, VolumeId};

const MIB: u64 = 1 << 20;
const V: VolumeId = VolumeId::new(7);

/// A disk on which so many extents are left; the first extent of the volume that has none.
fn nearly_full(left: u32) -> (World, u64) {
    let mut world = World::new(8 * MIB, MIB);
    world.create(V, 4000).expect("there is room");
    world.settle(&mut Rng(1));
    let mut extent = 0;
    while world.store.space().free > left {
        write(&mut world, extent * 16, 1).expect("there is room");
        world.settle(&mut Rng(extent));
        let last = world.model.volumes[&V].last();
        world.commit(V, last);
        extent += 1;
    }
    world.store.checkpoint();
    world.settle(&mut Rng(1));
    (world, extent)
}

fn write(world: &mut World, lba: u64, blocks: u64) -> Result<(), Refused> {
    let data = data(world.model.next(), blocks);
    submit(world, vec![Body::Write { lba, data }])
}

fn submit(world: &mut World, bodies: Vec<Body>) -> Result<(), Refused> {
    let first = world.model.volumes[&V].last() + 1;
    let entries = (first..).zip(bodies).map(|(index, body)| Entry {
        index,
        term: 1,
        epoch: 0,
        body,
    });
    let submission = Submission {
        hard: None,
        entries: entries.collect(),
    };
    world.submit(V, submission)
}

fn commit_all(world: &mut World) {
    let last = world.model.volumes[&V].last();
    world.commit(V, last);
    world.settle(&mut Rng(last));
}

#[test]
fn writes_to_one_extent_are_promised_it_once() {
    let (mut world, first) = nearly_full(2);
    for block in 0..16 {
        write(&mut world, first * 16 + block, 1).expect("it is the same extent");
    }
    let space = world.store.space();
    assert_eq!((space.free, space.promised), (2, 1));
    write(&mut world, (first + 1) * 16, 1).expect("one is left");
    assert_eq!(
        write(&mut world, (first + 2) * 16, 1),
        Err(Refused::NoSpace { free: 0, needed: 1 })
    );
    // While the batch is under way, when it is durable, and when some took effect.
    world.poll();
    write(&mut world, first * 16 + 3, 2).expect("it is promised");
    world.settle(&mut Rng(1));
    write(&mut world, first * 16 + 3, 2).expect("it is promised");
    let held = &world.model.volumes[&V];
    let some = held.commit + 3;
    world.commit(V, some);
    let space = world.store.space();
    assert_eq!((space.free, space.promised), (1, 1));
    write(&mut world, first * 16 + 3, 2).expect("it is there");
    // And when it is opened again.
    world.settle(&mut Rng(1));
    world.reopen(&mut Rng(1)).expect("it is whole");
    let space = world.store.space();
    assert_eq!(space.free - space.promised, 0, "{space:?}");
    commit_all(&mut world);
    world.check_room(&mut Rng(1));
}

#[test]
fn what_replaces_entries_has_their_room() {
    let (mut world, first) = nearly_full(1);
    write(&mut world, first * 16, 1).expect("one is left");
    world.settle(&mut Rng(1));
    let last = world.model.volumes[&V].last();
    let entry = Entry {
        index: last,
        term: 2,
        epoch: 0,
        body: Body::Write {
            lba: (first + 1) * 16,
            data: data(9, 1),
        },
    };
    let entries = vec![entry];
    let hard = None;
    let submission = Submission { hard, entries };
    world.submit(V, submission).expect("the other one goes");
    assert_eq!(world.store.space().promised, 1);
    world.truncate(V, last - 1).expect("it is not committed");
    assert_eq!(world.store.space().promised, 0);
    write(&mut world, (first + 2) * 16, 1).expect("nobody else has it");
    commit_all(&mut world);
    world.check_room(&mut Rng(1));
}

#[test]
fn whole_extents_take_the_last_ones() {
    let (mut world, first) = nearly_full(2);
    for (extent, left) in [(first, 1), (first + 1, 0)] {
        write(&mut world, extent * 16, 16).expect("that is what is left");
        let space = world.store.space();
        assert_eq!((space.free, space.promised), (left, 0), "written once");
    }
    commit_all(&mut world);
    world.check_room(&mut Rng(1));
}

#[test]
fn what_zeroes_free_is_not_called_full() {
    let (mut world, first) = nearly_full(0);
    assert_eq!(
        write(&mut world, first * 16, 1),
        Err(Refused::NoSpace { free: 0, needed: 1 })
    );
    submit(&mut world, vec![Body::Zero { lba: 0, blocks: 15 }]).expect("zeroes free");
    // That extent has no other block.
    assert_eq!(
        write(&mut world, first * 16, 1),
        Err(Refused::NotYet { needed: 1 })
    );
    world.settle(&mut Rng(1));
    assert_eq!(
        write(&mut world, first * 16, 1),
        Err(Refused::NotYet { needed: 1 })
    );
    commit_all(&mut world);
    assert_eq!(
        write(&mut world, first * 16, 1),
        Err(Refused::NotYet { needed: 1 })
    );
    world.settle(&mut Rng(1));
    write(&mut world, first * 16, 1).expect("a checkpoint freed it");
    commit_all(&mut world);
    world.check_room(&mut Rng(1));
}

#[test]
fn an_extent_that_a_reader_may_look_at_is_not_used_again() {
    let (mut world, first) = nearly_full(0);
    world.read(V, 0, 1);
    submit(&mut world, vec![Body::Zero { lba: 0, blocks: 16 }]).expect("zeroes free");
    let last = world.model.volumes[&V].last();
    world.commit(V, last);
    world.store.checkpoint();
    loop {
        world.poll();
        let slow = |io: &Io| matches!(io, Io::Read { .. });
        let Some(next) = world.ios.iter().position(|(_, io, _)| !slow(io)) else {
            break;
        };
        world.complete(next);
    }
    let refused = write(&mut world, first * 16, 1);
    assert_eq!(refused, Err(Refused::NotYet { needed: 1 }));
    assert_eq!(world.store.space().free, 0, "it is being read");
    world.settle(&mut Rng(1));
    write(&mut world, first * 16, 1).expect("a checkpoint freed it");
    commit_all(&mut world);
    world.check_room(&mut Rng(1));
}

#[test]
fn a_full_disk_refuses_what_needs_room_and_nothing_else() {
    let mut world = World::new(8 * MIB, MIB);
    world.create(V, 4000).expect("there is room");
    world.settle(&mut Rng(1));
    let extents = u64::from(world.store.space().extents);
    let mut index = 0;
    for extent in 0..extents {
        index += 1;
        faults::write_at(&mut world, index, extent * 16, 1);
        world.settle(&mut Rng(index));
        world.commit(V, index);
    }
    assert!(world.store.space().is_low());
    let refused = faults::try_write_at(&mut world, index + 1, extents * 16, 1);
    assert!(
        matches!(refused, Err(Refused::NoSpace { free: 0, needed: 1 })),
        "{refused:?}"
    );
    // Overwrites, small and large, go on; so do votes.
    faults::write_at(&mut world, index + 1, 3, 2);
    faults::write_at(&mut world, index + 2, 16, 16);
    let hard = Some((9, 1));
    let entries = Vec::new();
    world
        .submit(V, Submission { hard, entries })
        .expect("votes are always taken in");
    faults::submit(&mut world, index + 3, Body::Zero { lba: 0, blocks: 64 }).expect("zeroes free");
    world.commit(V, index + 3);
    world.store.checkpoint();
    world.settle(&mut Rng(1));
    assert_eq!(world.store.space().free, 4);
    faults::write_at(&mut world, index + 4, extents * 16, 1);
    world.settle(&mut Rng(1));
    world.reopen(&mut Rng(1)).expect("it is whole");
}

#[test]
fn what_is_free_after_a_checkpoint_is_not_called_full() {
    let mut world = World::new(8 * MIB, MIB);
    world.create(V, 4000).expect("there is room");
    world.settle(&mut Rng(1));
    let extents = u64::from(world.store.space().extents);
    for index in 1..=extents {
        faults::write_at(&mut world, index, (index - 1) * 16, 1);
        world.settle(&mut Rng(index));
        world.commit(V, index);
    }
    world.store.checkpoint();
    world.settle(&mut Rng(1));
    faults::submit(&mut world, extents + 1, Body::Zero { lba: 0, blocks: 16 })
        .expect("zeroes free");
    world.commit(V, extents + 1);
    let refused = faults::try_write_at(&mut world, extents + 2, extents * 16, 1);
    assert_eq!(refused, Err(Refused::NotYet { needed: 1 }));
    world.settle(&mut Rng(1));
    faults::write_at(&mut world, extents + 2, extents * 16, 1);
}

/// On small disks, with few blocks that are ever zeroes: the reference says when they are full.
#[test]
fn a_disk_is_full_when_it_is() {
    let (mut full, mut crashes) = (0, 0);
    for seed in seeds(30) {
        println!("BLOCKS_SEED={seed}");
        let mut rng = Rng(seed ^ 0xf011);
        let mut world = World::new(7 * MIB, MIB);
        let mix = Mix {
            large: 1 + rng.below(6),
            zero: 1 + rng.below(12),
            cut: 4 + rng.below(10),
            spread: 1000,
            burst: 2,
            ..Mix::PLAIN
        };
        for volume in 1..=2 {
            world
                .create(VolumeId::new(volume), mix.spread)
                .expect("there is room");
        }
        for _ in 0..250 {
            for _ in 0..1 + rng.below(mix.burst) {
                step(&mut world, &mix, &mut rng, &mut Outcome::default());
            }
            for _ in 0..rng.below(12) {
                world.poll();
                if !world.ios.is_empty() {
                    world.complete(rng.below(world.ios.len() as u64) as usize);
                }
            }
            if rng.one_in(60) {
                world.crash(true, &mut rng);
                world.reopen(&mut rng).expect("a crash damages nothing");
                world.mend(&mut rng);
                crashes += 1;
            }
        }
        world.settle(&mut rng);
        world.mend(&mut rng);
        world.check_room(&mut rng);
        full += world.full;
    }
    println!("{full} times full, {crashes} crashes");
    assert!(are_few(30) || full > 0 && crashes > 0);
}
