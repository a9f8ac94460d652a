//! What goes wrong, and when.

use crate::clients::Clients;
use crate::world::{Event, MILLIS, SECONDS, Weather, World};
use replication::MOST_JUMP_MICROS;

/// Each seed has its own mix: what is rare in one is common in another.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mix {
    kill: u64,
    power: u64,
    pause: u64,
    isolate: u64,
    one_way: u64,
    /// Of one host's disk only: what is committed stays whole elsewhere.
    damage: u64,
    /// Of any host's disk: its writes and syncs fail.
    fail: u64,
    /// Of any host's disk: others take all room.
    full: u64,
    /// A host loses its disk for good, while all others are whole.
    gone: u64,
    jump: u64,
    change: u64,
    grow: u64,
    every: u64,
}

impl Mix {
    pub(crate) fn draw(world: &mut World) -> Self {
        let rng = &mut world.rng;
        let mut some = |most: u64| if rng.one_in(3) { 0 } else { rng.below(most) };
        let mix = Self {
            kill: some(6),
            power: some(6),
            pause: some(5),
            isolate: some(6),
            one_way: some(8),
            damage: some(8),
            fail: some(5),
            full: some(6),
            gone: some(3),
            jump: some(4),
            change: some(4),
            grow: some(2),
            every: 150 * MILLIS,
        };
        if mix.damage > 0 {
            let hosts = world.nodes.len() as u64;
            world.victim = Some(world.rng.below(hosts) as usize);
        }
        world.scrubs = [0, 0, 20, 200][world.rng.below(4) as usize];
        let pick = |rng: &mut crate::rng::Rng, most: u64| {
            if rng.one_in(2) {
                0
            } else {
                4 + rng.below(most)
            }
        };
        world.weather = Weather {
            loss: pick(&mut world.rng, 60),
            twice: pick(&mut world.rng, 30),
            damage: pick(&mut world.rng, 100),
            delay: [200, 1000, 8000][world.rng.below(3) as usize],
            slow_io: [0, 5000, 60_000][world.rng.below(3) as usize],
        };
        Self {
            every: 100 * MILLIS + world.rng.below(900 * MILLIS),
            ..mix
        }
    }

    /// Something goes wrong, or nothing, and the next thing later.
    pub(crate) fn strike(&self, world: &mut World, clients: &mut Clients) {
        let hosts = world.nodes.len() as u64;
        let node = world.rng.below(hosts) as usize;
        let disks = self.damage + self.fail + self.full + self.gone;
        let rare = disks + self.jump + self.change + self.grow;
        let all = self.kill + self.power + self.pause + self.isolate + self.one_way + rare + 1;
        let mut choice = world.rng.below(all);
        let mut chosen = |weight: u64| match choice.checked_sub(weight) {
            None => true,
            Some(rest) => {
                choice = rest;
                false
            }
        };
        let long = 50 * MILLIS + world.rng.below(2500 * MILLIS);
        // While a replica is gone for good no other one may lose anything.
        let spares = clients.lost.is_empty();
        if chosen(self.kill) || chosen(self.power) {
            let power = world.rng.below(self.kill + self.power) >= self.kill;
            // Together, so that what only one of them had on disk is missed.
            let all = power && world.rng.one_in(2);
            for at in 0..hosts as usize {
                if spares && (at == node || all) && world.nodes[at].host.is_some() {
                    world.kill(at, power);
                    let most = if world.rng.one_in(2) {
                        20 * MILLIS
                    } else {
                        long
                    };
                    let long = 1 + world.rng.below(most);
                    world.after(long, Event::Start { node: at });
                }
            }
        } else if chosen(self.pause) {
            let long = 2 * long;
            world.pause(node, long);
        } else if chosen(self.isolate) {
            world.faults.partitions += 1;
            for other in (0..hosts as usize).filter(|other| *other != node) {
                for (from, to) in [(node, other), (other, node)] {
                    world.block(from, to);
                    world.after(long, Event::Heal { from, to });
                }
            }
        } else if chosen(self.one_way) {
            world.faults.partitions += 1;
            let to = world.rng.below(hosts) as usize;
            world.block(node, to);
            world.after(long, Event::Heal { from: node, to });
        } else if chosen(self.damage) {
            if spares {
                world.damage_extents();
            }
        } else if chosen(self.fail) {
            if spares {
                world.fail_disk(node, SECONDS / 2 + long);
            }
        } else if chosen(self.full) {
            world.fill_disk(node, SECONDS + long);
        } else if chosen(self.gone) {
            clients.lose_host(world, node);
        } else if chosen(self.jump) {
            let forward = world.rng.one_in(2);
            let far = world.rng.below(MOST_JUMP_MICROS);
            world.jump(node, forward, far);
        } else if chosen(self.change) {
            clients.change_members(world);
        } else if chosen(self.grow) {
            clients.grow(world);
        }
        let next = self.every / 2 + world.rng.below(self.every);
        world.after(next, Event::Fault);
    }
}
