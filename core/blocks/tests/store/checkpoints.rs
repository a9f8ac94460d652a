//! Checkpoints: what waits for them and for what they wait, and pages of the map, which go to new places at each.

use crate::disk::carry_out;
use crate::faults::{V, world, write, write_at};
use crate::machine::open;
use crate::model::data;
use crate::random::{are_few, seeds};
use crate::rng::Rng;
use crate::world::World;
use blocks::format::layout::SUPERBLOCK_STRIDE;
use blocks::{BLOCK_BYTES, Body, Entry, Event, Io, Submission, VolumeId};

const MIB: u64 = 1 << 20;
const VOLUMES: u64 = 5;
const ROUNDS: u64 = 300;

/// Writes a block of a volume, and lets it take effect.
fn write_in(world: &mut World, volume: VolumeId, rng: &mut Rng) {
    let index = world.model.volumes[&volume].last() + 1;
    let data = data(world.model.next(), 1);
    let lba = rng.below(40);
    let entry = Entry {
        index,
        term: 1 + world.model.operation,
        epoch: 0,
        body: Body::Write { lba, data },
    };
    let entries = vec![entry];
    let hard = None;
    let submission = Submission { hard, entries };
    match world.submit(volume, submission) {
        Ok(()) => world.commit(volume, index),
        Err(blocks::Refused::Busy { .. }) => world.settle(rng),
        Err(error) => panic!("{error}"),
    }
}

/// Checkpoints one after another, cut off now and then: most volumes change rarely, so that their pages
/// are at all places of the map when those of another are written.
#[test]
fn a_page_that_a_superblock_may_refer_to_stays_as_it_is() {
    let (mut checkpoints, mut crashes) = (0, 0);
    for seed in seeds(10) {
        println!("BLOCKS_SEED={seed}");
        let mut rng = Rng(seed ^ 0x9a6e);
        let mut world = World::new(8 * MIB, MIB);
        for volume in 1..=VOLUMES {
            world
                .create(VolumeId::new(u128::from(volume)), 40)
                .expect("there is room");
        }
        // One that is not there after a crash is no part of this.
        world.settle(&mut rng);
        for _ in 0..ROUNDS {
            for volume in 1..=VOLUMES {
                if rng.one_in(volume * volume) {
                    write_in(&mut world, VolumeId::new(u128::from(volume)), &mut rng);
                }
            }
            world.store.checkpoint();
            world.poll();
            for _ in 0..rng.below(60) {
                if !world.ios.is_empty() {
                    world.complete(rng.below(world.ios.len() as u64) as usize);
                }
            }
            if rng.one_in(10) {
                checkpoints += world.store.counters().checkpoints;
                world.crash(true, &mut rng);
                world.reopen(&mut rng).expect("a crash damages nothing");
                world.mend(&mut rng);
                crashes += 1;
            }
        }
        world.settle(&mut rng);
        checkpoints += world.store.counters().checkpoints;
    }
    println!("{checkpoints} checkpoints, {crashes} crashes");
    assert!(are_few(10) || checkpoints > 100 && crashes > 10);
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
