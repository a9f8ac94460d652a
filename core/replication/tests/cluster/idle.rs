//! What volumes cost that nobody uses. `VPC_REPLICATION_VOLUMES` says how many.

use crate::world::{FINE, MIB, SECONDS, World};
use blocks::VolumeId;

fn volumes() -> u128 {
    let set = std::env::var("VPC_REPLICATION_VOLUMES").ok();
    set.and_then(|text| text.parse().ok()).unwrap_or(1000)
}

#[test]
fn idle_volumes_cost_nothing() {
    let mut world = World::new(1, 3, 8192 * MIB, 128 * MIB);
    world.weather = FINE;
    for number in 0..volumes() {
        world.create(VolumeId::new(number), 16, &[0, 1, 2]);
    }
    let awake = |world: &World| {
        let groups = (0..volumes()).map(VolumeId::new).flat_map(|volume| {
            world
                .nodes
                .iter()
                .map(move |node| node.host.as_ref().and_then(|host| host.group(volume)))
        });
        groups
            .flatten()
            .filter(|group| group.awake || group.leader.is_none())
            .count()
    };
    let mut next = 0;
    let asleep = world.run_until(60 * SECONDS, |world| {
        if world.now < next {
            return false;
        }
        next = world.now + SECONDS;
        awake(world) == 0
    });
    assert!(asleep, "{} replicas are still awake", awake(&world));
    let count = |world: &World| -> Vec<(u64, u64, u64)> {
        let counters = world
            .nodes
            .iter()
            .map(|node| node.host.as_ref().expect("it is up").counters());
        let counters = counters.map(|it| (it.messages, it.steps));
        let syncs = world.nodes.iter().map(|node| {
            node.host
                .as_ref()
                .expect("it is up")
                .store()
                .counters()
                .syncs
        });
        counters
            .zip(syncs)
            .map(|((messages, steps), syncs)| (messages, steps, syncs))
            .collect()
    };
    let (before, frames) = (count(&world), world.frames);
    world.run_until(10 * SECONDS, |_| false);
    assert_eq!(
        count(&world),
        before,
        "messages, steps of groups, and syncs"
    );
    // Six pairs, ten times a second by clocks that are up to 8 % off.
    let beats = world.frames - frames;
    let groups = 3 * volumes();
    println!(
        "{groups} idle replicas on 3 hosts: {beats} frames in ten seconds, no message, no step of a group, no sync"
    );
    assert!(
        (500..=680).contains(&beats),
        "{beats} frames in ten seconds"
    );
}
