//! Who may run a router, and what its standby knows: what route hosts say to each other, on its way through the
//! wire's form, and what becomes of it whatever is late, lost, repeated or begun anew.

use api::v1;
use lease::{Ask, Claim, HOLD, Owner, Promise, Voter};
use model::{Ends, HostId, Protocol, RouterId, Tracked, VoterSet};
use prost::Message;
use standby::{Batch, Event, Key, Outbox, Refused, Store};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

/// `| which 1 | a message |`: another host's bytes, as they come in.
pub fn lease_messages(data: &[u8]) {
    let Some((which, bytes)) = data.split_first() else {
        return;
    };
    match which % 4 {
        0 => {
            if let Ok(wire) = v1::ReplicateRequest::decode(bytes)
                && let Ok((claim, batch)) = api::replicated(wire)
            {
                assert_eq!(over_the_wire(&claim, &batch), (claim, batch.clone()));
                let mut store = Store::new(MOST);
                store.want(&BTreeSet::from([claim.router]));
                for from in [1, 1, 2] {
                    let taken = store.take(host(from), (claim.router, claim.epoch), batch.clone());
                    assert!(taken.is_err() || taken.is_ok_and(|t| t.kept <= MOST as u64));
                }
                store.give(claim.router);
            }
        }
        1 => drop(v1::HandOverRequest::decode(bytes).map(api::handed_over)),
        2 => {
            if let Ok(wire) = v1::ConfirmReply::decode(bytes)
                && let Ok(claims) = api::confirmed(wire)
            {
                let now = Instant::now();
                let mut owner = Owner::default();
                owner.set_voters(vec![VoterSet::from([model::Voter::Server])]);
                owner.want(now, &claims.iter().map(|c| (c.router, c.epoch)).collect());
                owner.confirmed(model::Voter::Server, now, &claims);
                owner.held(now);
            }
        }
        _ => {
            if let Ok(wire) = v1::ConfirmRequest::decode(bytes)
                && let Ok(ask) = Ask::try_from(wire)
            {
                let now = Instant::now();
                let mut voter = Voter::remembering(now, BTreeMap::new());
                let confirmed = voter.answer(now, host(1), &ask);
                assert!(confirmed.iter().all(|claim| ask.claims.contains(claim)));
                let again = Voter::remembering(now, voter.promises());
                assert_eq!(again.promises(), voter.promises());
            }
        }
    }
}

fn host(number: u8) -> HostId {
    HostId::from_random(number.into())
}

fn router(number: u8) -> RouterId {
    RouterId::from_random(number.into())
}

fn over_the_wire(claim: &Claim, batch: &Batch) -> (Claim, Batch) {
    let wire = v1::ReplicateRequest::from((claim, batch)).encode_to_vec();
    let wire = v1::ReplicateRequest::decode(&wire[..]).expect("our encoding is read");
    api::replicated(wire).expect("what is sent is taken")
}

/// Takes a script apart; it ends when there is no more.
struct Script<'a>(&'a [u8]);

impl Script<'_> {
    fn next(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }
}

const OWNERS: u8 = 3;
const ROUTERS: u8 = 2;
const VOTERS: u8 = 3;
/// Messages that are on their way at once, at most.
const FLYING: usize = 64;

/// What is on its way; questions and answers know when the question was sent.
enum Flying {
    Asks(u8, model::Voter, Instant, Vec<u8>),
    Confirms(u8, model::Voter, Instant, Vec<u8>),
}

/// A voter and its disk, which is written before an answer is given, and not before all that a voter without a
/// memory may have promised has run out.
struct Voting {
    voter: Voter,
    remembers_from: Instant,
    disk: Option<BTreeMap<RouterId, Promise>>,
}

impl Voting {
    fn start(now: Instant, disk: Option<BTreeMap<RouterId, Promise>>) -> Self {
        let (voter, remembers_from) = match &disk {
            Some(promises) => (Voter::remembering(now, promises.clone()), now),
            None => (Voter::forgetful(now), now + HOLD),
        };
        Self {
            voter,
            remembers_from,
            disk,
        }
    }

    fn answer(&mut self, now: Instant, from: HostId, ask: &Ask) -> Vec<Claim> {
        let confirmed = self.voter.answer(now, from, ask);
        if now >= self.remembers_from {
            self.disk = Some(self.voter.promises());
        }
        confirmed
    }
}

struct Leases {
    now: Instant,
    owners: Vec<Owner>,
    voters: Vec<Voting>,
    /// Where each router is placed; a placement has a higher epoch than all before it.
    placed: BTreeMap<RouterId, (u8, u64)>,
    epoch: u64,
    flying: Vec<Flying>,
}

/// A script of one-byte steps with one-byte arguments: routers are placed, hosts hear of it or not, ask, hear late
/// or never or twice, start anew; voters start anew, with and without their memory; time passes. Two hosts never
/// may run one router.
pub fn lease(data: &[u8]) {
    let now = Instant::now();
    let voter = |number: u8| match number {
        0 => model::Voter::Server,
        number => model::Voter::Host(host(number)),
    };
    let all: VoterSet = (0..VOTERS).map(voter).collect();
    let owner = || {
        let mut owner = Owner::default();
        owner.set_voters(vec![all.clone()]);
        owner
    };
    let mut world = Leases {
        now,
        owners: (0..OWNERS).map(|_| owner()).collect(),
        voters: (0..VOTERS)
            .map(|_| Voting::start(now, Some(BTreeMap::new())))
            .collect(),
        placed: BTreeMap::new(),
        epoch: 0,
        flying: Vec::new(),
    };
    let mut script = Script(data);
    while let (Some(step), Some(arg)) = (script.next(), script.next()) {
        let whose = arg % OWNERS;
        match step % 10 {
            0 => world.now += Duration::from_millis(arg.into()),
            1 => world.now += Duration::from_millis(u64::from(arg) * 10),
            2 => {
                world.epoch += 1;
                let router = router(arg / OWNERS % ROUTERS);
                world.placed.insert(router, (whose, world.epoch));
            }
            3 => world.hears(whose),
            4 => {
                let ask = world.owners[usize::from(whose)].ask(world.now);
                let wire = v1::ConfirmRequest::from(&ask).encode_to_vec();
                for number in 0..VOTERS {
                    let ask = Flying::Asks(whose, voter(number), world.now, wire.clone());
                    world.flying.push(ask);
                }
            }
            5 => world.arrives(arg.into(), false),
            6 => world.arrives(arg.into(), true),
            7 => {
                if !world.flying.is_empty() {
                    let which = usize::from(arg) % world.flying.len();
                    world.flying.swap_remove(which);
                }
            }
            8 => {
                let number = usize::from(arg % VOTERS);
                let disk = world.voters[number].disk.take().filter(|_| arg < 128);
                world.voters[number] = Voting::start(world.now, disk);
            }
            _ => {
                world.owners[usize::from(whose)] = owner();
                world.hears(whose);
            }
        }
        let excess = world.flying.len().saturating_sub(FLYING);
        world.flying.drain(..excess);
        for router in (0..ROUTERS).map(router) {
            let held = world.owners.iter().map(|owner| owner.held(world.now));
            let held = held.filter(|held| held.contains_key(&router)).count();
            assert!(held <= 1, "{held} hosts hold router {router}");
        }
    }
}

impl Leases {
    /// A host hears where routers are placed.
    fn hears(&mut self, whose: u8) {
        let placed = self.placed.iter().filter(|(_, (host, _))| *host == whose);
        let claims = placed.map(|(router, (_, epoch))| (*router, *epoch));
        self.owners[usize::from(whose)].want(self.now, &claims.collect());
    }

    /// One message comes to where it goes; it may come again later.
    fn arrives(&mut self, which: usize, again: bool) {
        if self.flying.is_empty() {
            return;
        }
        let which = which % self.flying.len();
        let place = |voter: model::Voter| {
            let number = (0..VOTERS).find(|n| voter == model::Voter::Host(host(*n)));
            usize::from(number.unwrap_or_default())
        };
        let answer = match &self.flying[which] {
            Flying::Asks(from, voter, sent, wire) => {
                let wire = v1::ConfirmRequest::decode(&wire[..]).expect("our encoding is read");
                let ask = Ask::try_from(wire).expect("what is sent is taken");
                let claims = self.voters[place(*voter)].answer(self.now, host(*from), &ask);
                let reply = v1::ConfirmReply {
                    confirmed: claims.iter().map(Into::into).collect(),
                };
                let reply = Flying::Confirms(*from, *voter, *sent, reply.encode_to_vec());
                Some(reply)
            }
            Flying::Confirms(to, voter, sent, wire) => {
                let wire = v1::ConfirmReply::decode(&wire[..]).expect("our encoding is read");
                let claims = api::confirmed(wire).expect("what is sent is taken");
                self.owners[usize::from(*to)].confirmed(*voter, *sent, &claims);
                None
            }
        };
        if !again {
            self.flying.swap_remove(which);
        }
        self.flying.extend(answer);
    }
}

/// Connections that a router may track here.
const MOST: usize = 12;

fn tracked(number: u8, state: u8) -> Tracked {
    let ends = |from: [u8; 4], from_port, to: [u8; 4], to_port| Ends {
        from: IpAddr::V4(Ipv4Addr::from(from)),
        from_port,
        to: IpAddr::V4(Ipv4Addr::from(to)),
        to_port,
    };
    let port = u16::from(number % 16);
    Tracked {
        protocol: match number % 16 < 8 {
            true => Protocol::Tcp,
            false => Protocol::Udp,
        },
        original: ends([10, 4, 1, 11], port, [198, 51, 100, 1], 80),
        reply: ends([198, 51, 100, 1], 80, [198, 51, 100, 100], port),
        seen_reply: number >= 128,
        assured: number >= 64,
        timeout: number.into(),
        tcp_state: state % 12,
    }
}

struct Replication {
    now: Instant,
    /// What the router tracks.
    there: BTreeMap<Key, Tracked>,
    outbox: Outbox,
    store: Store,
    /// A batch that was told and not yet answered.
    flying: Option<Batch>,
    series: u64,
    /// The standby forgot, or was told something by somebody else, and may not be asked about it: what is told anew
    /// every minute mends it.
    astray: bool,
}

/// A script of one-byte steps with one-byte arguments: connections come, change and go, what the kernel said is
/// lost, batches arrive or do not or are answered to nobody, either side starts anew, somebody else says something.
/// The standby never keeps more than it may, and when all is quiet it has what there is.
pub fn replication(data: &[u8]) {
    let mut world = Replication {
        now: Instant::now(),
        there: BTreeMap::new(),
        outbox: Outbox::new(MOST),
        store: store(),
        flying: None,
        series: 0,
        astray: false,
    };
    let mut script = Script(data);
    while let (Some(step), Some(arg)) = (script.next(), script.next()) {
        world.now += Duration::from_millis(1);
        match step % 12 {
            0..=2 => {
                let mut is = tracked(arg, step);
                let key = Key::of(&is);
                if world.there.len() < MOST || world.there.contains_key(&key) {
                    world.outbox.note(world.now, Event::Is(is.clone()));
                    if is.tcp_state == 0 {
                        is.tcp_state = world.there.get(&key).map_or(0, |before| before.tcp_state);
                    }
                    world.there.insert(key, is);
                }
            }
            3 => {
                let key = Key::of(&tracked(arg, 0));
                world.there.remove(&key);
                world.outbox.note(world.now, Event::Gone(key));
            }
            4 => {
                // The kernel had no room to say it.
                let key = Key::of(&tracked(arg, 0));
                world.there.remove(&key);
                world.outbox.stray(world.now);
            }
            5 => world.outbox.begin_anew(),
            6 => world.look(),
            7 | 8 => world.tell(),
            9 => world.arrives(arg % 4 == 0),
            10 => {
                // Nobody knows whether it came.
                if arg % 2 == 0 {
                    world.arrives(true);
                }
                world.flying = None;
                world.outbox = Outbox::new(MOST);
            }
            _ => match arg % 3 {
                0 => {
                    world.store = store();
                    world.astray = true;
                }
                1 => {
                    let other = world.store.take(host(2), (router(2), 1), Batch::default());
                    assert_eq!(other, Err(Refused::NotWanted));
                }
                _ => {
                    // A host that ran it before, and does not know that it does not.
                    let batch = Batch {
                        begins: arg & 8 == 0,
                        connections: vec![tracked(arg, 1)],
                        ..Batch::default()
                    };
                    let stale = world.store.take(host(2), (router(1), EPOCH - 1), batch);
                    world.astray |= stale.is_ok();
                }
            },
        }
        world.is_bounded();
    }
    if world.astray {
        world.outbox.begin_anew();
    }
    for _ in 0..64 {
        if world.outbox.is_in_step() {
            break;
        }
        world.arrives(false);
        world.look();
        world.tell();
        world.is_bounded();
    }
    world.arrives(false);
    assert!(world.outbox.is_in_step(), "it is never told all");
    let given = world.store.give(router(1));
    let (epoch, given) = given.unwrap_or((EPOCH, Vec::new()));
    assert_eq!(epoch, EPOCH);
    let facts = |t: &Tracked| (Key::of(t), t.reply, t.seen_reply, t.assured);
    let given: BTreeSet<_> = given.iter().map(facts).collect();
    let there: BTreeSet<_> = world.there.values().map(facts).collect();
    assert_eq!(given, there);
}

const EPOCH: u64 = 7;

fn store() -> Store {
    let mut store = Store::new(MOST);
    store.want(&BTreeSet::from([router(1)]));
    store
}

impl Replication {
    /// What is tracked is looked at, if the outbox asks for it.
    fn look(&mut self) {
        if self.outbox.needs_snapshot() {
            self.series += 1;
            let tracked = self.there.values().cloned().collect();
            self.outbox.snapshot(self.now, self.series, tracked);
        }
    }

    fn tell(&mut self) {
        if let Some(batch) = self.outbox.poll_batch() {
            assert!(self.flying.is_none(), "two batches are on their way");
            let claim = Claim {
                router: router(1),
                epoch: EPOCH,
            };
            let (over, batch) = over_the_wire(&claim, &batch);
            assert_eq!(over, claim);
            self.flying = Some(batch);
        }
    }

    /// A batch comes to the standby, and its answer back or, if it is late, to somebody who asks no more.
    fn arrives(&mut self, late: bool) {
        let Some(batch) = self.flying.take() else {
            return;
        };
        let taken = self.store.take(host(1), (router(1), EPOCH), batch);
        match taken {
            _ if late => self.outbox = Outbox::new(MOST),
            Ok(_) => self.outbox.acknowledged(),
            Err(Refused::Unknown) => self.outbox.refused(self.now),
            Err(other) => panic!("{other}"),
        }
    }

    fn is_bounded(&self) {
        for (_, taken) in self.store.kept() {
            assert!(taken.kept <= MOST as u64, "{taken:?}");
        }
    }
}

/// Messages and scripts to begin with, by target.
pub fn samples() -> Vec<(&'static str, Vec<u8>)> {
    let claim = Claim {
        router: router(1),
        epoch: EPOCH,
    };
    let batch = Batch {
        series: 1,
        begins: true,
        ends: true,
        gone: vec![Key::of(&tracked(3, 0))],
        connections: vec![tracked(1, 3), tracked(9, 0)],
    };
    let replicate = v1::ReplicateRequest::from((&claim, &batch)).encode_to_vec();
    let hand_over = v1::HandOverRequest {
        router: Some((&claim).into()),
        connections: batch.connections.iter().map(Into::into).collect(),
    };
    let reply = v1::ConfirmReply {
        confirmed: vec![(&claim).into()],
    };
    let ask = Ask {
        claims: vec![claim],
        ended: vec![claim],
    };
    let ask = v1::ConfirmRequest::from(&ask).encode_to_vec();
    let messages = [
        replicate,
        hand_over.encode_to_vec(),
        reply.encode_to_vec(),
        ask,
    ];
    let messages = messages.iter().zip(0..);
    let mut samples: Vec<_> = messages
        .map(|(message, which)| ("lease_messages", [&[which], &message[..]].concat()))
        .collect();
    // Placed on one host, which hears of it, asks and is confirmed; then on another.
    let place = |host: u8| [2, host, 3, host, 4, host];
    let answered = [5, 0, 5, 0, 5, 0, 5, 0, 5, 0, 5, 0, 0, 50];
    let one = [&place(0)[..], &answered].concat();
    let two = [&one[..], &place(1), &[3, 0, 4, 0], &answered, &answered].concat();
    samples.extend([("lease", one), ("lease", two)]);
    let begin = [0, 1, 3, 2, 0, 130, 6, 0, 7, 0, 9, 1];
    let follow = [3, 1, 2, 77, 7, 0, 9, 1];
    samples.push(("replication", begin.to_vec()));
    samples.push(("replication", [&begin[..], &follow].concat()));
    let anew = [11, 0, 0, 5, 7, 0, 9, 1];
    samples.push(("replication", [&begin[..], &anew].concat()));
    samples
}
