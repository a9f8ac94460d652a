//! Disks that lie: what is damaged is named, what is wrong is never returned.

use crate::machine::open;
use crate::model::{data, page};
use crate::random::{Mix, Outcome, are_few, seeds, step};
use crate::rng::Rng;
use crate::world::World;
use blocks::{
    BLOCK_BYTES, Body, Entry, Event, Io, OpenError, Refused, RepairRefused, Submission, VolumeId,
};

const MIB: u64 = 1 << 20;
pub(crate) const V: VolumeId = VolumeId::new(7);

pub(crate) fn world() -> World {
    let mut world = World::new(8 * MIB, MIB);
    world.create(V, 200).expect("there is room");
    world.settle(&mut Rng(1));
    world
}

/// Entry `index` writes block `index`, each in a batch of its own.
pub(crate) fn write(world: &mut World, index: u64) {
    write_at(world, index, index, 1);
    world.settle(&mut Rng(index));
}

pub(crate) fn write_at(world: &mut World, index: u64, lba: u64, blocks: u64) {
    try_write_at(world, index, lba, blocks).expect("there is room");
}

pub(crate) fn try_write_at(
    world: &mut World,
    index: u64,
    lba: u64,
    blocks: u64,
) -> Result<(), Refused> {
    let data = data(1000 + index, blocks);
    let body = Body::Write { lba, data };
    submit(world, index, body)
}

pub(crate) fn submit(world: &mut World, index: u64, body: Body) -> Result<(), Refused> {
    let entry = Entry {
        index,
        term: 1,
        epoch: 0,
        body,
    };
    let entries = vec![entry];
    world.submit(
        V,
        Submission {
            hard: None,
            entries,
        },
    )
}

/// Where in the log the payload of an entry is: nothing but the log has it yet.
pub(crate) fn payload(world: &World, index: u64) -> u64 {
    let found = world.disk.find(&page(1000 + index, 0));
    assert_eq!(found.len(), 1, "{found:?}");
    found[0]
}

pub(crate) fn reopened(world: &mut World) -> blocks::Recovered {
    world.may_be_damaged = true;
    world
        .reopen(&mut Rng(3))
        .expect("one fault is not too much")
}

#[test]
fn a_damaged_entry_is_named_and_nothing_is_cut() {
    let mut world = world();
    (1..=5).for_each(|index| write(&mut world, index));
    let bad = payload(&world, 3);
    world.disk.corrupt(bad, &mut Rng(9));
    let recovered = reopened(&mut world);
    let [damaged] = &recovered.damaged[..] else {
        panic!("{recovered:?}");
    };
    assert_eq!(
        (damaged.index, damaged.term, damaged.applied),
        (3, 1, false)
    );
    assert_eq!((&damaged.lbas[..], recovered.torn), (&[3][..], None));
    let info = world.store.volume(V).expect("it is there");
    assert_eq!(
        (info.last, info.durable),
        (5, 2),
        "it vouches for what it has"
    );
    assert_eq!(world.store.committed(V, 5), Err(Refused::Lost { index: 3 }));
    // A peer's copy puts it right, for good.
    write(&mut world, 3);
    assert_eq!(world.store.volume(V).expect("it is there").durable, 5);
    world.commit(V, 5);
    world.may_be_damaged = false;
    world.settle(&mut Rng(4));
    let recovered = world.reopen(&mut Rng(5)).expect("it is whole");
    assert_eq!(recovered.damaged, Vec::new());
}

#[test]
fn a_damaged_entry_that_took_effect_is_damaged_blocks() {
    let mut world = world();
    (1..=3).for_each(|index| write(&mut world, index));
    world.commit(V, 3);
    write(&mut world, 4);
    let bad = payload(&world, 2);
    world.disk.corrupt(bad, &mut Rng(9));
    let recovered = reopened(&mut world);
    assert!(recovered.damaged[0].applied, "{recovered:?}");
    assert_eq!(world.damaged_seen, 1);
    world
        .store
        .repair(V, 2, &data(1002, 1))
        .expect("that is what was there");
    world.may_be_damaged = false;
    world.store.checkpoint();
    world.settle(&mut Rng(4));
    world.reopen(&mut Rng(5)).expect("it is whole");
}

#[test]
fn a_damaged_header_is_known_from_the_next() {
    let mut world = world();
    (1..=5).for_each(|index| write(&mut world, index));
    let header = payload(&world, 3) - 1;
    world.disk.corrupt(header, &mut Rng(9));
    let recovered = reopened(&mut world);
    assert_eq!(
        (recovered.damaged_headers.len(), recovered.damaged.len()),
        (1, 0)
    );
    assert_eq!(world.store.volume(V).expect("it is there").durable, 5);
    // It cannot be read at all: the same.
    let header = payload(&world, 2) - 1;
    world.disk.unreadable.push(header);
    let bad = payload(&world, 4);
    world.disk.unreadable.push(bad);
    let recovered = world.reopen(&mut Rng(5));
    assert!(
        matches!(recovered, Err(OpenError::Log { .. })),
        "two headers in a row: {recovered:?}"
    );
}

#[test]
fn a_block_that_is_not_what_was_written_is_never_returned() {
    let mut world = world();
    (1..=2).for_each(|index| write(&mut world, index));
    world.commit(V, 2);
    world.store.checkpoint();
    world.settle(&mut Rng(1));
    world.may_be_damaged = true;
    let extents = world.store.layout().extent_at(0, 0) / BLOCK_BYTES as u64;
    let stored = |world: &World, index: u64| {
        let found = world.disk.find(&page(1000 + index, 0));
        found
            .into_iter()
            .find(|block| *block >= extents)
            .expect("the checkpoint put it there")
    };
    let (one, two) = (stored(&world, 1), stored(&world, 2));
    // Right bytes of another block, as a misdirected write leaves them.
    world.disk.misdirect(two, one);
    world.read(V, 0, 8);
    world.settle(&mut Rng(1));
    assert_eq!(
        (world.damaged_seen, world.store.counters().damaged_blocks),
        (1, 1)
    );
    let wrong = world.store.repair(V, 1, &data(1002, 1));
    assert_eq!(wrong, Err(RepairRefused::Differs { lba: 1 }));
    assert_eq!(
        world.store.repair(V, 5, &data(1, 1)),
        Err(RepairRefused::NotStored { lba: 5 })
    );
    world
        .store
        .repair(V, 1, &data(1001, 1))
        .expect("that is what was there");
    world.read(V, 0, 8);
    world.settle(&mut Rng(1));
    world.store.checkpoint();
    world.settle(&mut Rng(1));
    world.read(V, 0, 8);
    world.settle(&mut Rng(1));
    assert_eq!(world.damaged_seen, 1, "it is whole again");
    world.disk.unreadable.push(two);
    world.read(V, 2, 1);
    world.settle(&mut Rng(1));
    assert_eq!(world.damaged_seen, 2);
}

#[test]
fn a_disk_that_does_not_sync_is_dead() {
    let mut world = world();
    write_at(&mut world, 1, 1, 1);
    world.poll();
    let durable = world.model.durable;
    while world.dead.is_none() {
        let syncs = |io: &Io| matches!(io, Io::Sync | Io::WriteSync { .. });
        let sync = world.ios.iter().position(|(_, io, _)| syncs(io));
        match sync {
            Some(sync) => world.fail(sync, "EIO"),
            None => world.complete(0),
        }
    }
    assert_eq!(world.dead.as_deref(), Some("writing the log: EIO"));
    assert!(matches!(
        try_write_at(&mut world, 2, 2, 1),
        Err(Refused::Dead { .. })
    ));
    world.store.checkpoint();
    assert_eq!(world.store.poll_io(), None, "nothing is tried again");
    assert_eq!(
        (world.model.durable, world.store.poll_event()),
        (durable, None)
    );
}

#[test]
fn what_can_never_be_is_refused() {
    let mut world = world();
    write(&mut world, 1);
    world.commit(V, 1);
    let invalid = |result: Result<(), Refused>| {
        assert!(matches!(result, Err(Refused::Invalid { .. })), "{result:?}")
    };
    invalid(try_write_at(&mut world, 3, 0, 1));
    invalid(try_write_at(&mut world, 2, 200, 1));
    invalid(try_write_at(&mut world, 2, u64::MAX, 1));
    invalid(try_write_at(&mut world, 2, 0, 17));
    invalid(submit(&mut world, 0, Body::Empty));
    invalid(submit(&mut world, 2, Body::Zero { lba: 0, blocks: 0 }));
    invalid(submit(&mut world, 2, Body::Config(vec![0; 3000].into())));
    invalid(world.store.truncate(V, 0).map(|_| ()));
    invalid(world.store.committed(V, 2).map(|_| ()));
    invalid(world.store.read(V, 199, 2).map(|_| ()));
    invalid(world.store.grow(V, 10).map(|_| ()));
    invalid(world.store.create(VolumeId::new(1), 0).map(|_| ()));
    let entries = Vec::new();
    world
        .submit(
            V,
            Submission {
                hard: Some((5, 1)),
                entries: entries.clone(),
            },
        )
        .expect("it is newer");
    invalid(world.submit(
        V,
        Submission {
            hard: Some((4, 1)),
            entries,
        },
    ));
    assert!(matches!(
        world.store.read(VolumeId::new(3), 0, 1),
        Err(Refused::NoVolume { .. })
    ));
    assert!(matches!(
        world.store.create(V, 5),
        Err(Refused::Exists { .. })
    ));
}

#[test]
fn a_log_that_was_gone_round_many_times_gives_what_is_left() {
    let mut world = world();
    for index in 1..=400 {
        write_at(&mut world, index, index % 100, 1);
        world.settle(&mut Rng(index));
        world.commit(V, index);
    }
    let info = world.store.volume(V).expect("it is there");
    assert!(info.first > 1 && info.first < info.last, "{info:?}");
    let changed = |since| {
        let changes = world.store.chunks_changed_since(V, since, 0);
        changes.expect("it is there").collect::<Vec<_>>()
    };
    assert_eq!((changed(399), changed(400)), (vec![(0, 400)], Vec::new()));
    world.read_entry(V, info.first - 1);
    world.read_all(&mut Rng(1));
    while let Some(event) = world.store.poll_event() {
        assert!(!matches!(event, Event::Dead { .. }));
    }
}

#[test]
fn damage_at_random_never_gives_wrong_bytes() {
    let (mut opened, mut refused, mut damaged, mut in_doubt) = (0, 0, 0, 0);
    let mut faults = 0;
    for seed in seeds(200) {
        println!("BLOCKS_SEED={seed}");
        let mut rng = Rng(seed ^ 0xfa17);
        let mut world = World::new(8 * MIB, MIB);
        world.may_be_damaged = true;
        let mix = Mix {
            zero: 5,
            hurry: 6,
            cut: 10,
            spread: 120,
            ..Mix::PLAIN
        };
        world.create(V, mix.spread).expect("there is room");
        world
            .create(VolumeId::new(8), mix.spread)
            .expect("there is room");
        for round in 0..4 {
            for _ in 0..40 + 20 * round {
                step(&mut world, &mix, &mut rng, &mut Outcome::default());
                world.poll();
                while !world.ios.is_empty() && !rng.one_in(4) {
                    world.complete(rng.below(world.ios.len() as u64) as usize);
                }
            }
            world.crash(true, &mut rng);
            let blocks = world.disk.written();
            let layout = world.store.layout();
            let log =
                layout.wal_at(0) / BLOCK_BYTES as u64..layout.extent_at(0, 0) / BLOCK_BYTES as u64;
            // Few faults are survived, and many are told.
            let most = if rng.one_in(5) { 30 } else { 3 };
            for _ in 0..rng.below(most) {
                let block = blocks[rng.below(blocks.len() as u64) as usize];
                faults += 1;
                match rng.below(3) {
                    0 => world.disk.unreadable.push(block),
                    // A write of elsewhere over the last header: one disk cannot tell.
                    1 if !log.contains(&block) => {
                        let from = blocks[rng.below(blocks.len() as u64) as usize];
                        world.disk.misdirect(from, block);
                    }
                    _ => world.disk.corrupt(block, &mut rng),
                }
            }
            // One disk cannot tell a last batch that was damaged from one that was torn.
            match open(&mut world.disk.clone(), world.bytes, &mut Rng(seed)) {
                Ok((_, recovered)) if recovered.torn.is_some() => {
                    in_doubt += 1;
                    break;
                }
                Ok((_, recovered)) => damaged += recovered.damaged.len(),
                Err(error) => {
                    assert!(!error.to_string().is_empty());
                    refused += 1;
                    break;
                }
            }
            world.reopen(&mut rng).expect("it was opened a moment ago");
            opened += 1;
            damaged += world.damaged_seen as usize;
        }
    }
    println!(
        "{faults} faults: {opened} opened, {refused} refused, {damaged} damaged, {in_doubt} in doubt"
    );
    assert!(are_few(200) || opened > 100 && refused > 5 && damaged > 100);
}
