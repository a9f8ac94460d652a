//! Disks that lie: what is damaged is named, what is wrong is never returned.

use crate::disk::Disk;
use crate::disk::carry_out;
use crate::machine::{IDENTITY, open};
use crate::model::{data, page};
use crate::random::{Mix, Outcome, are_few, seeds, step};
use crate::rng::Rng;
use crate::world::World;
use blocks::format::layout::SUPERBLOCK_STRIDE;
use blocks::{
    BLOCK_BYTES, Body, Entry, Event, Identity, Io, OpenError, Opening, Refused, RepairRefused,
    Submission, VolumeId,
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

fn try_write_at(world: &mut World, index: u64, lba: u64, blocks: u64) -> Result<(), Refused> {
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
fn superblocks() {
    let mut world = world();
    write(&mut world, 1);
    world.commit(V, 1);
    world.store.checkpoint();
    world.settle(&mut Rng(1));
    let whole = world.disk.clone();
    let open_without = |copies: &[u64], world: &World| {
        let mut disk = whole.clone();
        let mut rng = Rng(1);
        copies
            .iter()
            .for_each(|copy| disk.corrupt(copy * SUPERBLOCK_STRIDE, &mut rng));
        open(&mut disk, world.bytes, &mut Rng(1)).map(|(store, recovered)| {
            let applied = store.volume(V).map(|info| info.applied);
            (applied, recovered.superblocks)
        })
    };
    // The checkpoint was number 2: copies 0 and 2 are the new ones.
    assert_eq!(open_without(&[], &world), Ok((Some(1), 4)));
    assert_eq!(open_without(&[0], &world), Ok((Some(1), 3)));
    assert_eq!(open_without(&[2, 1, 3], &world), Ok((Some(1), 1)));
    // No batch came after it: the old ones and the log say as much.
    assert_eq!(open_without(&[0, 2], &world), Ok((Some(1), 2)));
    let none = open_without(&[0, 1, 2, 3], &world);
    assert!(
        matches!(
            none,
            Err(OpenError::NoSuperblock { .. } | OpenError::Version { .. })
        ),
        "{none:?}"
    );

    write(&mut world, 2);
    let mut disk = world.disk.clone();
    [0, 2]
        .iter()
        .for_each(|copy| disk.corrupt(copy * SUPERBLOCK_STRIDE, &mut Rng(1)));
    let stale = open(&mut disk, world.bytes, &mut Rng(1)).map(|_| ());
    assert_eq!(stale, Err(OpenError::Stale { found: 1, known: 2 }));
}

#[test]
fn a_disk_that_is_not_the_one() {
    let world = world();
    let opened = |identity, bytes, mut disk: Disk| {
        let mut opening = Opening::new(identity, bytes);
        while let Some((token, io)) = opening.poll_io() {
            let Io::Read { at, blocks } = io else {
                panic!("only reads until it is known whose disk it is");
            };
            let data = disk.read(at, blocks).expect("it can be read");
            opening.handle_done(token, blocks::Done::Read(data));
            disk.unreadable.clear();
            if opening.is_finished() {
                break;
            }
        }
        opening.finish().expect("it is finished").map(|_| ())
    };
    let other = Identity {
        host: 2,
        ..IDENTITY
    };
    let error = opened(other, world.bytes, world.disk.clone());
    let message = error.expect_err("another host's").to_string();
    assert!(
        message.contains("host 00000000000000000000000000000001") && message.contains("and not"),
        "{message}"
    );
    let empty = opened(IDENTITY, world.bytes, Disk::default());
    assert_eq!(empty, Err(OpenError::NotFormatted));
    assert_eq!(
        opened(IDENTITY, 0, Disk::default()),
        Err(OpenError::NotFormatted)
    );
    let small = opened(IDENTITY, world.bytes / 2, world.disk.clone());
    assert!(matches!(small, Err(OpenError::Small { .. })), "{small:?}");
}

#[test]
fn another_format_is_told_as_that() {
    let world = world();
    for (at, what) in [(12, "format 9"), (16, "features 0x9")] {
        let mut disk = world.disk.clone();
        for copy in 0..4 {
            let mut page = disk.current(copy * SUPERBLOCK_STRIDE);
            page.0[at] = 9;
            let crc = crc32c::crc32c(&page.0[12..]);
            page.0[8..12].copy_from_slice(&crc.to_le_bytes());
            let buffer = blocks::Buffer::from_pages(vec![page]);
            disk.write(copy * SUPERBLOCK_STRIDE * BLOCK_BYTES as u64, &[buffer]);
        }
        let error = open(&mut disk, world.bytes, &mut Rng(1))
            .map(|_| ())
            .expect_err("it is unknown");
        assert!(error.to_string().contains(what), "{error}");
    }
}

#[test]
fn a_damaged_map_takes_one_volume_with_it() {
    let mut world = world();
    let other = VolumeId::new(8);
    world.create(other, 10).expect("there is room");
    write(&mut world, 1);
    world.commit(V, 1);
    world.store.checkpoint();
    world.settle(&mut Rng(1));
    let map = world.store.layout().page_at(0) / BLOCK_BYTES as u64;
    let of_volume = |block: &u64| {
        let page = world.disk.current(*block);
        page.0[..4] == *b"vpcM" && page.0[4] == 1 && page.0[24] == 7
    };
    let leaf = world
        .disk
        .written()
        .into_iter()
        .filter(|block| *block >= map)
        .find(of_volume);
    world
        .disk
        .corrupt(leaf.expect("it has a leaf"), &mut Rng(2));
    let recovered = reopened(&mut world);
    let [(broken, why)] = &recovered.broken[..] else {
        panic!("{recovered:?}");
    };
    assert!(*broken == V && why.contains("is damaged"), "{why}");
    assert!(matches!(
        world.store.read(V, 0, 1),
        Err(Refused::Broken { .. })
    ));
    world
        .store
        .read(other, 0, 1)
        .expect("the other one is whole");
    world.store.delete(V).expect("that is how it ends");
    world.store.create(V, 200).expect("there is room");
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
fn a_full_disk_refuses_what_needs_room_and_nothing_else() {
    let mut world = World::new(8 * MIB, MIB);
    world.create(V, 4000).expect("there is room");
    world.settle(&mut Rng(1));
    let extents = u64::from(world.store.space().extents);
    let mut index = 0;
    for extent in 0..extents {
        index += 1;
        write_at(&mut world, index, extent * 16, 1);
        world.settle(&mut Rng(index));
        world.commit(V, index);
    }
    assert!(world.store.space().is_low());
    let refused = try_write_at(&mut world, index + 1, extents * 16, 1);
    assert!(
        matches!(refused, Err(Refused::NoSpace { free: 0, needed: 1 })),
        "{refused:?}"
    );
    // Overwrites, small and large, go on; so do votes.
    write_at(&mut world, index + 1, 3, 2);
    write_at(&mut world, index + 2, 16, 16);
    let hard = Some((9, 1));
    let entries = Vec::new();
    world
        .submit(V, Submission { hard, entries })
        .expect("votes are always taken in");
    submit(&mut world, index + 3, Body::Zero { lba: 0, blocks: 64 }).expect("zeroes free");
    world.commit(V, index + 3);
    world.store.checkpoint();
    world.settle(&mut Rng(1));
    assert_eq!(world.store.space().free, 4);
    write_at(&mut world, index + 4, extents * 16, 1);
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
        write_at(&mut world, index, (index - 1) * 16, 1);
        world.settle(&mut Rng(index));
        world.commit(V, index);
    }
    world.store.checkpoint();
    world.settle(&mut Rng(1));
    submit(&mut world, extents + 1, Body::Zero { lba: 0, blocks: 16 }).expect("zeroes free");
    world.commit(V, extents + 1);
    let refused = try_write_at(&mut world, extents + 2, extents * 16, 1);
    assert_eq!(refused, Err(Refused::NotYet { needed: 1 }));
    world.settle(&mut Rng(1));
    write_at(&mut world, extents + 2, extents * 16, 1);
}

#[test]
fn a_reader_that_takes_long_sees_what_was_there() {
    let mut world = world();
    write(&mut world, 1);
    world.commit(V, 1);
    world.store.checkpoint();
    world.settle(&mut Rng(1));
    world.read(V, 0, 4);
    write_at(&mut world, 2, 1, 1);
    world.commit(V, 2);
    world.store.checkpoint();
    let slow = |io: &Io| matches!(io, Io::Read { .. });
    loop {
        world.poll();
        let Some(next) = world.ios.iter().position(|(_, io, _)| !slow(io)) else {
            break;
        };
        world.complete(next);
    }
    assert_eq!(world.ios.len(), 1, "the checkpoint waits for the reader");
    world.settle(&mut Rng(1));
    assert!(world.store.is_idle());
}

#[test]
fn a_checkpoint_that_changes_nothing_ends() {
    let mut world = world();
    world.store.checkpoint();
    world.settle(&mut Rng(1));
    let checkpoints = world.store.counters().checkpoints;
    // Never committed, each in the place of the one before.
    for term in 1..200 {
        let body = Body::Write {
            lba: 0,
            data: data(term, 4),
        };
        let entry = Entry {
            index: 1,
            term,
            epoch: 0,
            body,
        };
        let entries = vec![entry];
        let submission = Submission {
            hard: None,
            entries,
        };
        world.submit(V, submission).expect("there is room");
        world.settle(&mut Rng(term));
    }
    assert!(world.store.is_idle() && world.store.counters().checkpoints > checkpoints + 1);
    world.reopen(&mut Rng(1)).expect("it is whole");
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
            for _ in 0..rng.below(3) {
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
    assert!(are_few(200) || opened > 0 && refused > 0 && damaged > 0);
}

/// Puts bytes into a superblock, and its checksum right: a disk that somebody made up.
fn forge(world: &mut World, copy: u64, at: usize, bytes: &[u8]) {
    let block = copy * SUPERBLOCK_STRIDE;
    let mut page = world.disk.current(block);
    page.0[at..at + bytes.len()].copy_from_slice(bytes);
    let crc = crc32c::crc32c(&page.0[12..]);
    page.0[8..12].copy_from_slice(&crc.to_le_bytes());
    let buffer = blocks::Buffer::from_pages(vec![page]);
    world.disk.write(block * BLOCK_BYTES as u64, &[buffer]);
}

#[test]
fn a_map_without_room_for_its_next_copy_is_a_disk_that_failed() {
    let mut world = world();
    write(&mut world, 1);
    world.commit(V, 1);
    world.store.checkpoint();
    world.settle(&mut Rng(1));
    for copy in 0..4 {
        forge(&mut world, copy, 96, &5_u32.to_le_bytes());
    }
    let bytes = world.bytes;
    let opened = open(&mut world.disk, bytes, &mut Rng(1));
    let (mut store, _) = opened.expect("what it has can be read");
    for term in 2..10_u64 {
        let submission = Submission {
            hard: Some((term, 0)),
            ..Submission::default()
        };
        // Refused once it has failed.
        drop(store.submit(V, submission));
        store.checkpoint();
        while let Some((token, io)) = store.poll_io() {
            let mark = world.disk.mark();
            store.handle_done(token, carry_out(&mut world.disk, &io, mark));
        }
    }
    let mut events = std::iter::from_fn(|| store.poll_event());
    let died = events.find(|event| matches!(event, Event::Dead { .. }));
    let told = format!("{died:?}");
    assert!(told.contains("no page of the map is free"), "{told}");
}
