//! Pages of the map, which go to new places at each checkpoint.

use crate::model::data;
use crate::random::{are_few, seeds};
use crate::rng::Rng;
use crate::world::World;
use blocks::{Body, Entry, Submission, VolumeId};

const MIB: u64 = 1 << 20;
const VOLUMES: u64 = 5;
const ROUNDS: u64 = 300;

/// Writes a block of a volume, and lets it take effect.
fn write(world: &mut World, volume: VolumeId, rng: &mut Rng) {
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
                    write(&mut world, VolumeId::new(u128::from(volume)), &mut rng);
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
