//! Volumes on hosts that fail at random, from a seed.

use crate::clients::{BLOCKS, Clients};
use crate::faults::Mix;
use crate::world::{Event, FINE, Faults, MIB, Node, SECONDS, World};
use blocks::VolumeId;

/// What a seed did.
#[derive(Debug, Default, PartialEq, Eq)]
struct Outcome {
    trace: u64,
    done: u64,
    moves: u64,
    fenced: u64,
    /// Blocks that came from peers, as a host's own were damaged.
    mended: u64,
    /// Reads that were told so, while those who have the blocks were out of reach.
    damaged: u64,
    /// Chunks that replicas took in, as they lacked what no log had any more.
    chunks: u64,
    /// Writes for which there was no room.
    no_room: u64,
    /// Entries that no replica had any more, as all that had them lost power.
    given_up: u64,
    faults: Faults,
}

fn run(seed: u64) -> Outcome {
    let hosts = [3, 3, 4, 5][(seed % 4) as usize];
    // A small log has soon no more what a host lacks that was away.
    let wal = [1, 1, 4, 16][(seed / 4 % 4) as usize];
    // Some disks are so small that somebody else soon takes all room.
    let bytes = if (seed / 16).is_multiple_of(3) {
        wal + 8
    } else {
        64
    };
    let mut world = World::new(seed, hosts, bytes * MIB, wal * MIB);
    let mut clients = Clients::default();
    let mut volumes = Vec::new();
    for number in 1..=1 + world.rng.below(3) {
        let volume = VolumeId::new(u128::from(number) << 64 | 7);
        let replicas = if hosts == 5 && world.rng.one_in(2) {
            5
        } else {
            3
        };
        let first = world.rng.below(hosts as u64) as usize;
        let members: Vec<usize> = (0..replicas).map(|at| (first + at) % hosts).collect();
        world.create(volume, BLOCKS, &members);
        volumes.push((volume, members.clone()));
        clients.add(&mut world, volume, members.clone(), false);
        for _ in 0..world.rng.below(3) {
            clients.add(&mut world, volume, members.clone(), true);
        }
    }
    let mix = Mix::draw(&mut world);
    world.after(2 * SECONDS, Event::Fault);
    world.after(2 * SECONDS, Event::Manage);
    for node in 0..hosts {
        let now = world.clock(node);
        let host = world.nodes[node].host.as_mut().expect("all are up");
        host.scrub(world.scrubs, now);
        world.drain(node);
    }
    let end = 4 * SECONDS + world.rng.below(6 * SECONDS);
    go_on(&mut world, &mut clients, Some(&mix), end, |_, _| false);
    for (volume, _) in &volumes {
        world.same_digests(*volume);
    }
    recover(&mut world, &mut clients, &volumes);
    for (volume, _) in &volumes {
        world.same_digests(*volume);
    }
    Outcome {
        trace: world.trace,
        done: clients.done,
        moves: clients.moves,
        fenced: clients.fenced,
        chunks: world.chunks(),
        mended: world.mended(),
        damaged: clients.damaged,
        no_room: clients.no_room,
        given_up: world.given_up(),
        faults: world.faults,
    }
}

/// All that are to have a volume have all of it, and no others have any.
pub(crate) fn is_settled(world: &World, volume: VolumeId) -> bool {
    let Some(wanted) = world.wanted(volume) else {
        return false;
    };
    let has = |node: &Node| {
        let host = node.host.as_ref();
        host.is_some_and(|host| host.store().volume(volume).is_some())
    };
    let others = (0..world.nodes.len()).filter(|node| !wanted.contains(node));
    let mut others = others.map(|node| &world.nodes[node]);
    world.is_level(volume, &wanted) && !others.any(has)
}

/// Faults end: everything has to come to rest, and to be as it was told.
fn recover(world: &mut World, clients: &mut Clients, volumes: &[(VolumeId, Vec<usize>)]) {
    world.weather = FINE;
    world.blocked.clear();
    for node in 0..world.nodes.len() {
        world.nodes[node].paused_until = 0;
        world.replug(node);
        if world.nodes[node].host.is_none() {
            world.start(node);
        }
        world.empty_disk(node);
    }
    clients.still = Some(world.now);
    let level = |world: &mut World, clients: &mut Clients| {
        let still = clients.is_quiet(world) && clients.lost.is_empty();
        still && volumes.iter().all(|(volume, _)| is_settled(world, *volume))
    };
    let until = world.now + 30 * SECONDS;
    if !go_on(world, clients, None, until, level) {
        let groups = volumes.iter().flat_map(|(volume, _)| {
            let of = move |node: &Node| {
                let host = node.host.as_ref()?;
                let there = host.store().volume(*volume)?;
                let group = host.group(*volume).map(|group| group.to_string());
                let without = || format!("no replica, but {there:?}; {:?}", host.unusable());
                Some(format!(
                    "{volume} on {}: {}",
                    node.id,
                    group.unwrap_or_else(without)
                ))
            };
            world.nodes.iter().filter_map(of)
        });
        let groups: Vec<String> = groups.collect();
        panic!(
            "not at rest 30 s after the last fault:\n{}\n{:?}",
            groups.join("\n"),
            clients.clients
        );
    }
    clients.later_changes_hold(world);
    clients.read_all(world);
    let until = world.now + 5 * SECONDS;
    assert!(
        go_on(world, clients, None, until, |world, clients| clients
            .is_quiet(world)),
        "reads are not answered"
    );
}

pub(crate) fn go_on(
    world: &mut World,
    clients: &mut Clients,
    mix: Option<&Mix>,
    until: u64,
    ends: impl Fn(&mut World, &mut Clients) -> bool,
) -> bool {
    let mut steps = 0;
    while let Some(event) = world.step(until) {
        match event {
            Event::Client { client } => clients.turn(world, client),
            Event::Manage => clients.manage(world),
            Event::Resume { node } => clients.asked_meanwhile(world, node),
            Event::Fault => {
                if let Some(mix) = mix {
                    mix.strike(world, clients);
                }
            }
            Event::Heal { from, to } if from != usize::MAX => _ = world.blocked.remove(&(from, to)),
            _ => {}
        }
        if !world.replies.is_empty() {
            clients.take_replies(world);
        }
        steps += 1;
        if steps % 256 == 0 {
            let volumes: Vec<VolumeId> = clients.clients.iter().map(|it| it.volume).collect();
            for volume in &volumes {
                world.same_digests(*volume);
                world.once_each(*volume);
                clients.members_are_those_asked_for(world, *volume);
            }
        }
        if steps % 64 == 0 && ends(world, clients) {
            return true;
        }
    }
    ends(world, clients)
}

/// `VPC_REPLICATION_SEEDS` seeds from `VPC_REPLICATION_FIRST` on; without them the same few, so that a run says what
/// a change did. `make soak` takes fresh ones.
#[test]
fn volumes_survive_what_happens_to_hosts() {
    let variable = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let first = variable("VPC_REPLICATION_FIRST").unwrap_or(1);
    let count = variable("VPC_REPLICATION_SEEDS").unwrap_or(8);
    let twice = variable("VPC_REPLICATION_TWICE").unwrap_or(1);
    let mut total = Outcome::default();
    println!("seeds {first} to {}", first + count - 1);
    for seed in first..first + count {
        println!(
            "seed {seed}: VPC_REPLICATION_FIRST={seed} VPC_REPLICATION_SEEDS=1 cargo test -p replication --test cluster volumes_survive -- --nocapture"
        );
        let outcome = run(seed);
        if twice == 1 {
            assert_eq!(outcome, run(seed), "seed {seed} is not the same twice");
        }
        total.done += outcome.done;
        total.moves += outcome.moves;
        total.fenced += outcome.fenced;
        total.chunks += outcome.chunks;
        total.mended += outcome.mended;
        total.damaged += outcome.damaged;
        total.no_room += outcome.no_room;
        total.given_up += outcome.given_up;
        total.faults.add(&outcome.faults);
    }
    println!("{count} seeds: {total:?}");
    assert!(total.done > count * 50, "little was done: {total:?}");
}
