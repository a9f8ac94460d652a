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
    /// Replicas that lack what no log has any more.
    left_behind: usize,
    faults: Faults,
}

fn run(seed: u64) -> Outcome {
    let hosts = [3, 3, 4, 5][(seed % 4) as usize];
    let mut world = World::new(seed, hosts, 64 * MIB, 16 * MIB);
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
        left_behind: volumes
            .iter()
            .filter_map(|(volume, members)| world.is_level(*volume, members))
            .sum(),
        faults: world.faults,
    }
}

/// Faults end: everything has to come to rest, and to be as it was told.
fn recover(world: &mut World, clients: &mut Clients, volumes: &[(VolumeId, Vec<usize>)]) {
    world.weather = FINE;
    world.blocked.clear();
    for node in 0..world.nodes.len() {
        world.nodes[node].paused_until = 0;
        if world.nodes[node].host.is_none() {
            world.start(node);
        }
    }
    clients.still = true;
    let level = |world: &mut World, clients: &mut Clients| {
        clients.is_quiet(world)
            && volumes
                .iter()
                .all(|(volume, members)| world.is_level(*volume, members).is_some())
    };
    let until = world.now + 15 * SECONDS;
    if !go_on(world, clients, None, until, level) {
        let groups = volumes.iter().flat_map(|(volume, _)| {
            let of = |node: &Node| node.host.as_ref().and_then(|host| host.group(*volume));
            world
                .nodes
                .iter()
                .map(move |node| (*volume, node.id, of(node)))
        });
        let groups: Vec<_> = groups.filter(|(.., group)| group.is_some()).collect();
        panic!("not at rest 15 s after the last fault: {groups:#?} {clients:?}");
    }
    clients.read_all(world);
    let until = world.now + 5 * SECONDS;
    assert!(
        go_on(world, clients, None, until, |world, clients| clients
            .is_quiet(world)),
        "reads are not answered"
    );
}

fn go_on(
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
            Event::Resume { node } => clients.asked_meanwhile(world, node),
            Event::Fault => {
                if let Some(mix) = mix {
                    mix.strike(world);
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
            volumes
                .iter()
                .for_each(|volume| world.same_digests(*volume));
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
        total.left_behind += outcome.left_behind;
        total.faults.add(&outcome.faults);
    }
    println!("{count} seeds: {total:?}");
    assert!(total.done > count * 50, "little was done: {total:?}");
}
