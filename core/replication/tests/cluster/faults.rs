//! What goes wrong, and when.

use crate::world::{Event, MILLIS, Weather, World};

/// Each seed has its own mix: what is rare in one is common in another.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mix {
    kill: u64,
    power: u64,
    pause: u64,
    isolate: u64,
    one_way: u64,
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
            every: 150 * MILLIS,
        };
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
    pub(crate) fn strike(&self, world: &mut World) {
        let hosts = world.nodes.len() as u64;
        let node = world.rng.below(hosts) as usize;
        let all = self.kill + self.power + self.pause + self.isolate + self.one_way + 1;
        let mut choice = world.rng.below(all);
        let mut chosen = |weight: u64| match choice.checked_sub(weight) {
            None => true,
            Some(rest) => {
                choice = rest;
                false
            }
        };
        let long = 50 * MILLIS + world.rng.below(2500 * MILLIS);
        if chosen(self.kill) || chosen(self.power) {
            let power = world.rng.below(self.kill + self.power) >= self.kill;
            // Together, so that what only one of them had on disk is missed.
            let all = power && world.rng.one_in(2);
            for at in 0..hosts as usize {
                if (at == node || all) && world.nodes[at].host.is_some() {
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
        }
        let next = self.every / 2 + world.rng.below(self.every);
        world.after(next, Event::Fault);
    }
}
