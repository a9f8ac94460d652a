//! Hosts, voters and a planner under delays, losses, partitions, crashes, clocks of different speed and
//! changing sets of voters: never two owners of a router at once, and one soon after all is well.

use lease::{Ask, Claim, HOLD, LEASE, Owner, Voter};
use model::{HostId, RouterId, Voter as Who, VoterSet};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

const HOSTS: usize = 4;
const SEEDS: u64 = 300;
/// Of trouble, in microseconds.
const TROUBLE: u64 = 30_000_000;
/// Within this, once all is well, the router is run where it was placed.
const SOON: u64 = 6_000_000;

struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % limit
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

enum Event {
    /// A host asks all.
    Turn(usize),
    Asked {
        from: usize,
        to: Who,
        sent: Instant,
        ask: Ask,
        life: u32,
    },
    Answered {
        from: Who,
        to: usize,
        sent: Instant,
        claims: Vec<Claim>,
        life: u32,
    },
    /// The planner's word comes to a host.
    Configured(usize, Config),
    /// A host's word comes to the planner.
    Reported(usize, VoterSet),
    Plan,
    Mischief,
}

#[derive(Clone)]
struct Config {
    generation: u64,
    /// The router is this host's.
    epoch: Option<u64>,
    sets: Vec<VoterSet>,
}

/// The kernel of a host lives on when its agent dies.
struct Machine {
    alive: bool,
    life: u32,
    /// Parts in ten thousand that its clock is fast.
    drift: i64,
    owner: Owner,
    voter: Voter,
    config: Config,
    /// By its own clock.
    open_until: Option<Instant>,
}

struct World {
    random: Random,
    now: u64,
    queue: BTreeMap<(u64, u64), Event>,
    count: u64,
    zero: Instant,
    machines: Vec<Machine>,
    server: Voter,
    /// Who is in which part of the network; the last is the server.
    parts: Vec<u64>,
    calm: bool,
    epoch: u64,
    placed: usize,
    generation: u64,
    set: VoterSet,
    reported: Vec<VoterSet>,
    handed_over: u32,
}

fn router() -> RouterId {
    RouterId::from_random(1)
}

fn id(host: usize) -> HostId {
    HostId::from_random(100 + host as u64)
}

fn index(who: Who) -> usize {
    match who {
        Who::Server => HOSTS,
        Who::Host(host) => (0..HOSTS).find(|n| id(*n) == host).expect("one of ours"),
    }
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        #[expect(clippy::disallowed_methods, reason = "any moment will do for a start")]
        let zero = Instant::now();
        let set = VoterSet::from([Who::Server, Who::Host(id(0)), Who::Host(id(1))]);
        let machines = (0..HOSTS).map(|host| Machine {
            alive: true,
            life: 0,
            // Ten times what quartz does.
            drift: random.below(41) as i64 * 10 - 200,
            owner: Owner::default(),
            voter: Voter::forgetful(zero),
            config: Config {
                generation: 0,
                epoch: (host == 0).then_some(1),
                sets: vec![set.clone()],
            },
            open_until: None,
        });
        let mut machines: Vec<Machine> = machines.collect();
        for machine in &mut machines {
            machine.adopt(zero);
        }
        let mut world = Self {
            random,
            now: 0,
            queue: BTreeMap::new(),
            count: 0,
            zero,
            machines,
            server: Voter::forgetful(zero),
            parts: vec![0; HOSTS + 1],
            calm: false,
            epoch: 1,
            placed: 0,
            generation: 0,
            reported: vec![set.clone(); HOSTS],
            set,
            handed_over: 0,
        };
        for host in 0..HOSTS {
            world.after(0, Event::Turn(host));
        }
        world.after(500_000, Event::Plan);
        world.after(300_000, Event::Mischief);
        world
    }

    fn after(&mut self, micros: u64, event: Event) {
        self.count += 1;
        self.queue.insert((self.now + micros, self.count), event);
    }

    /// What a clock says.
    fn clock(&self, drift: i64) -> Instant {
        let own = self.now as i64 + self.now as i64 * drift / 10_000;
        self.zero + Duration::from_micros(own as u64)
    }

    fn at(&self, host: usize) -> Instant {
        self.clock(self.machines[host].drift)
    }

    fn send(&mut self, from: usize, to: usize, event: Event) {
        // Often quick: the nearer an answer is to its question, the less there is to spare.
        let quick = self.calm || self.random.chance(60);
        let most = if quick { 5_000 } else { 400_000 };
        let loss = if self.calm { 0 } else { 15 };
        if self.parts[from] != self.parts[to] || self.random.chance(loss) {
            return;
        }
        let delay = self.random.below(most);
        self.after(delay, event);
    }

    fn run(&mut self, until: u64) {
        while let Some(entry) = self.queue.first_entry() {
            if entry.key().0 > until {
                return;
            }
            self.now = entry.key().0;
            let event = entry.remove();
            self.take(event);
            let open: Vec<usize> = (0..HOSTS)
                .filter(|host| {
                    let until = self.machines[*host].open_until;
                    until.is_some_and(|until| until > self.at(*host))
                })
                .collect();
            assert!(open.len() < 2, "at {} us {open:?} both run it", self.now);
        }
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Turn(host) => self.turn(host),
            Event::Asked {
                from,
                to,
                sent,
                ask,
                life,
            } => {
                let now = match to {
                    Who::Server => self.clock(0),
                    Who::Host(_) => self.at(index(to)),
                };
                let voter = match to {
                    Who::Server => &mut self.server,
                    Who::Host(_) => {
                        let machine = &mut self.machines[index(to)];
                        if !machine.alive {
                            return;
                        }
                        &mut machine.voter
                    }
                };
                let claims = voter.answer(now, id(from), &ask);
                let answer = Event::Answered {
                    from: to,
                    to: from,
                    sent,
                    claims,
                    life,
                };
                self.send(index(to), from, answer);
            }
            Event::Answered {
                from,
                to,
                sent,
                claims,
                life,
            } => {
                let now = self.at(to);
                let machine = &mut self.machines[to];
                if machine.alive && machine.life == life {
                    machine.owner.confirmed(from, sent, &claims);
                    machine.renew(now);
                }
            }
            Event::Configured(host, config) => {
                let now = self.at(host);
                let machine = &mut self.machines[host];
                if machine.alive && machine.config.generation < config.generation {
                    machine.config = config;
                    machine.adopt(now);
                }
            }
            Event::Reported(host, set) => self.reported[host] = set,
            Event::Plan => self.plan(),
            Event::Mischief => self.mischief(),
        }
    }

    fn turn(&mut self, host: usize) {
        let now = self.at(host);
        let pace = self.machines[host].owner.pace(now).as_micros() as u64;
        self.after(pace, Event::Turn(host));
        if !self.machines[host].alive {
            return;
        }
        let ask = self.machines[host].owner.ask(now);
        let life = self.machines[host].life;
        for to in 0..=HOSTS {
            let who = if to == HOSTS {
                Who::Server
            } else {
                Who::Host(id(to))
            };
            let event = Event::Asked {
                from: host,
                to: who,
                sent: now,
                ask: ask.clone(),
                life,
            };
            self.send(host, to, event);
        }
        let report = Event::Reported(host, self.machines[host].config.sets[0].clone());
        self.send(host, HOSTS, report);
    }

    /// Sometimes another placement or another set of voters; always the newest to all.
    fn plan(&mut self) {
        self.after(200_000, Event::Plan);
        if !self.calm && self.random.chance(15) {
            self.epoch += 1;
            self.placed = self.random.below(HOSTS as u64) as usize;
            self.handed_over += 1;
        }
        if !self.calm && self.random.chance(10) {
            let mut set: VoterSet = (0..HOSTS)
                .filter(|_| self.random.chance(60))
                .map(|host| Who::Host(id(host)))
                .collect();
            if set.is_empty() || self.random.chance(50) {
                set.insert(Who::Server);
            }
            self.set = set;
        }
        self.generation += 1;
        let mut sets = vec![self.set.clone()];
        let others: BTreeSet<&VoterSet> = self.reported.iter().collect();
        sets.extend(others.into_iter().filter(|set| **set != self.set).cloned());
        for host in 0..HOSTS {
            let config = Config {
                generation: self.generation,
                epoch: (host == self.placed).then_some(self.epoch),
                sets: sets.clone(),
            };
            self.send(HOSTS, host, Event::Configured(host, config));
        }
    }

    fn mischief(&mut self) {
        if self.calm {
            return;
        }
        self.after(300_000, Event::Mischief);
        let victim = self.random.below(HOSTS as u64 + 1) as usize;
        match self.random.below(5) {
            0 => {
                let parts = (0..=HOSTS).map(|_| self.random.below(2)).collect();
                self.parts = parts;
            }
            1 => self.parts = vec![0; HOSTS + 1],
            2 if victim == HOSTS => self.server = Voter::forgetful(self.clock(0)),
            2 => self.machines[victim].alive = false,
            _ if victim == HOSTS => {}
            _ => self.start(victim),
        }
    }

    fn start(&mut self, host: usize) {
        let now = self.at(host);
        let remembers = self.random.chance(50);
        let machine = &mut self.machines[host];
        if machine.alive {
            return;
        }
        machine.alive = true;
        machine.life += 1;
        machine.voter = match remembers {
            true => Voter::remembering(now, machine.voter.promises()),
            false => Voter::forgetful(now),
        };
        machine.owner = Owner::default();
        machine.adopt(now);
    }
}

impl Machine {
    fn adopt(&mut self, now: Instant) {
        self.owner.set_voters(self.config.sets.clone());
        let claims: BTreeMap<_, _> = self
            .config
            .epoch
            .map(|epoch| (router(), epoch))
            .into_iter()
            .collect();
        if claims.is_empty() {
            self.open_until = None;
        }
        self.owner.want(now, &claims);
    }

    fn renew(&mut self, now: Instant) {
        if let Some(until) = self.owner.held(now).get(&router()) {
            // What was set before, by this agent or one before it, is never longer than was right.
            self.open_until = self.open_until.max(Some(*until));
        }
    }
}

#[test]
fn two_never_run_a_router_and_one_soon_does() {
    let seeds = match std::env::var_os("VPC_SEED") {
        Some(seed) => {
            let seed: u64 = seed.to_str().and_then(|text| text.parse().ok()).unwrap();
            seed..seed + 1
        }
        None => 1..SEEDS,
    };
    let mut handed_over = 0;
    for seed in seeds {
        let outcome = std::panic::catch_unwind(|| {
            let mut world = World::new(seed);
            world.run(TROUBLE);
            world.calm = true;
            world.parts = vec![0; HOSTS + 1];
            for host in 0..HOSTS {
                world.start(host);
            }
            world.run(TROUBLE + SOON);
            let placed = world.placed;
            let until = world.machines[placed].open_until;
            assert!(
                until.is_some_and(|until| until > world.at(placed)),
                "nobody runs it"
            );
            world.handed_over
        });
        match outcome {
            Ok(moves) => handed_over += moves,
            Err(panic) => panic!("VPC_SEED={seed}: {:?}", panic.downcast_ref::<String>()),
        }
    }
    assert!(handed_over > 0);
}

#[test]
fn a_lease_is_counted_from_the_question_and_ends_when_given_up() {
    #[expect(clippy::disallowed_methods, reason = "any moment will do for a start")]
    let start = Instant::now();
    let claim = |epoch| Claim {
        router: router(),
        epoch,
    };
    let mut voter = Voter::remembering(start, BTreeMap::new());
    let mut one = Owner::default();
    one.set_voters(vec![VoterSet::from([Who::Server])]);
    one.want(start, &BTreeMap::from([(router(), 1)]));
    let ask = one.ask(start);
    let later = start + Duration::from_millis(300);
    let confirmed = voter.answer(later, id(0), &ask);
    assert_eq!(confirmed, [claim(1)]);
    one.confirmed(Who::Server, start, &confirmed);
    assert_eq!(one.until(router()), Some(start + LEASE));

    let other = Ask {
        claims: vec![claim(2)],
        ended: Vec::new(),
    };
    assert!(
        voter
            .answer(later + HOLD - Duration::from_millis(1), id(1), &other)
            .is_empty()
    );
    // From now on the first waits in vain.
    assert!(voter.answer(later, id(0), &ask).is_empty());
    one.want(later, &BTreeMap::new());
    let ask = one.ask(later);
    assert_eq!(ask.ended, [claim(1)]);
    assert!(voter.answer(later, id(0), &ask).is_empty());
    assert_eq!(voter.answer(later, id(1), &other), [claim(2)]);
    assert!(one.held(later).is_empty());
}
