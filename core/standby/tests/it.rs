//! An outbox and a store, with what may happen between them: whatever it is, the store never has more than it
//! may, and has what there is once all is quiet.

#![expect(clippy::unwrap_used, reason = "a test ends by panicking")]

use model::{Ends, HostId, Protocol, RouterId, Tracked};
use standby::{BATCH, Event, Key, LEAST_TIMEOUT_SECS, Outbox, Refused, Store, Taken};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

const ROUTER: u64 = 1;
const EPOCH: u64 = 7;

#[expect(
    clippy::disallowed_methods,
    reason = "some moment to count from: there is no other way to have an Instant"
)]
fn start_of_time() -> Instant {
    Instant::now()
}

fn router() -> RouterId {
    RouterId::from_random(ROUTER)
}

fn host(number: u64) -> HostId {
    HostId::from_random(number)
}

fn tracked(number: u16, tcp_state: u8) -> Tracked {
    let inner = IpAddr::V4(Ipv4Addr::new(10, 4, 1, 11));
    let outer = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 100));
    let there = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1));
    Tracked {
        protocol: Protocol::Tcp,
        original: Ends {
            from: inner,
            from_port: number,
            to: there,
            to_port: 80,
        },
        reply: Ends {
            from: there,
            from_port: 80,
            to: outer,
            to_port: number,
        },
        seen_reply: true,
        assured: true,
        timeout: 5,
        tcp_state,
    }
}

fn key(number: u16) -> Key {
    Key::of(&tracked(number, 0))
}

fn store(most: usize) -> Store {
    let mut store = Store::new(most);
    store.want(&BTreeSet::from([router()]));
    store
}

/// Tells until there is nothing to tell; how many batches there were.
fn tell(outbox: &mut Outbox, store: &mut Store) -> usize {
    let mut batches = 0;
    while let Some(batch) = outbox.poll_batch() {
        assert!(batch.connections.len() <= BATCH && batch.gone.len() <= BATCH);
        store.take(host(1), (router(), EPOCH), batch).unwrap();
        outbox.acknowledged();
        batches += 1;
    }
    batches
}

fn kept(store: &Store) -> Taken {
    store.kept().next().unwrap().1
}

#[test]
fn a_snapshot_and_what_follows_it_come_over() {
    let now = start_of_time();
    let (mut outbox, mut store) = (Outbox::new(5000), store(5000));
    assert!(outbox.needs_snapshot() && outbox.poll_batch().is_none());
    // Before the snapshot nothing is kept: it will be in it.
    outbox.note(now, Event::Is(tracked(9999, 3)));
    outbox.snapshot(now, 1, (0..2500).map(|n| tracked(n, 3)).collect());
    outbox.note(now, Event::Gone(key(7)));
    outbox.note(now, Event::Is(tracked(3000, 1)));
    // The snapshot by thousands, then what changed since.
    assert_eq!(tell(&mut outbox, &mut store), 4);
    assert_eq!(kept(&store).kept, 2500);
    assert!(outbox.is_in_step());

    // What follows each other is told once; a state that is not said is the one from before.
    for state in [2, 3, 0] {
        outbox.note(now, Event::Is(tracked(3000, state)));
    }
    outbox.note(now, Event::Is(tracked(5, 0)));
    assert_eq!(tell(&mut outbox, &mut store), 1);
    let (epoch, connections) = store.give(router()).unwrap();
    assert_eq!((epoch, connections.len()), (EPOCH, 2500));
    assert!(connections.iter().all(|one| one.tcp_state == 3));
    assert!(
        connections
            .iter()
            .all(|one| one.timeout == LEAST_TIMEOUT_SECS)
    );
    assert!(store.give(router()).is_none(), "it is given once");
}

#[test]
fn what_a_series_does_not_name_is_gone_when_it_ends_and_not_before() {
    let now = start_of_time();
    let (mut outbox, mut store) = (Outbox::new(5000), store(5000));
    outbox.snapshot(now, 1, (0..10).map(|n| tracked(n, 3)).collect());
    tell(&mut outbox, &mut store);
    // The kernel had no room for some events: those of 0 to 4.
    outbox.stray(now);
    assert!(outbox.needs_snapshot() && !outbox.is_in_step());
    outbox.snapshot(now, 2, (5..2000).map(|n| tracked(n, 3)).collect());
    let first = outbox.poll_batch().unwrap();
    assert!(first.begins && !first.ends);
    store.take(host(1), (router(), EPOCH), first).unwrap();
    outbox.acknowledged();
    // Named again, five that are not, and what is known already is still there.
    assert_eq!(kept(&store).kept, BATCH as u64 + 5);
    tell(&mut outbox, &mut store);
    assert_eq!(kept(&store).kept, 1995);
    assert_eq!(outbox.lost(), 1);
}

#[test]
fn neither_side_grows_beyond_its_bound() {
    let now = start_of_time();
    let (mut outbox, mut store) = (Outbox::new(100), store(40));
    outbox.snapshot(now, 1, (0..500).map(|n| tracked(n, 3)).collect());
    tell(&mut outbox, &mut store);
    let full = Taken {
        kept: 40,
        refused: 60,
    };
    assert_eq!(kept(&store), full);
    // Nobody takes anything; new ones come and come.
    for number in 0..101 {
        outbox.note(now, Event::Is(tracked(1000 + number, 1)));
    }
    assert!(outbox.needs_snapshot(), "it gave up what it had");
    assert_eq!((outbox.poll_batch(), outbox.lost()), (None, 1));
    outbox.note(now, Event::Is(tracked(1, 1)));
    assert_eq!(outbox.poll_batch(), None, "it waits for a snapshot");
    // With one that has room again the standby is full no more.
    outbox.snapshot(now, 2, (0..30).map(|n| tracked(n, 3)).collect());
    tell(&mut outbox, &mut store);
    let taken = Taken {
        kept: 30,
        refused: 0,
    };
    assert_eq!(kept(&store), taken);
}

#[test]
fn a_batch_whose_series_did_not_begin_here_is_refused() {
    let now = start_of_time();
    let mut outbox = Outbox::new(100);
    outbox.snapshot(now, 1, vec![tracked(1, 3)]);
    let mut first = store(100);
    tell(&mut outbox, &mut first);
    // The standby is started anew.
    let mut second = store(100);
    outbox.note(now, Event::Is(tracked(2, 3)));
    let batch = outbox.poll_batch().unwrap();
    let taken = second.take(host(1), (router(), EPOCH), batch.clone());
    assert_eq!(taken, Err(Refused::Unknown));
    outbox.refused(now);
    assert!(outbox.needs_snapshot());

    // Not wanted, or of a placement that is over.
    let other = (RouterId::from_random(2), EPOCH);
    let taken = second.take(host(1), other, batch);
    assert_eq!(taken, Err(Refused::NotWanted));
    outbox.snapshot(now, 2, vec![tracked(1, 3)]);
    let batch = outbox.poll_batch().unwrap();
    second
        .take(host(2), (router(), EPOCH + 1), batch.clone())
        .unwrap();
    let taken = second.take(host(1), (router(), EPOCH), batch);
    assert_eq!(taken, Err(Refused::Superseded(EPOCH + 1)));
    second.want(&BTreeSet::new());
    assert!(
        second.give(router()).is_none(),
        "it does not stand by any more"
    );
}

#[test]
fn lag_is_the_age_of_the_oldest_that_is_not_there() {
    let start = start_of_time();
    let at = |millis| start + Duration::from_millis(millis);
    let mut outbox = Outbox::new(100);
    outbox.snapshot(start, 1, vec![tracked(1, 3)]);
    drop(outbox.poll_batch().unwrap());
    outbox.note(at(30), Event::Is(tracked(2, 3)));
    assert_eq!(outbox.lag(at(50)), Duration::from_millis(50));
    outbox.acknowledged();
    assert_eq!(outbox.lag(at(50)), Duration::from_millis(20));
    drop(outbox.poll_batch().unwrap());
    assert_eq!(outbox.lag(at(60)), Duration::from_millis(30));
    outbox.acknowledged();
    assert_eq!(outbox.lag(at(99)), Duration::ZERO);
}

struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % limit
    }
}

/// Events, losses of events, standbys that start anew, batches and answers that are lost: when all is quiet the
/// standby has exactly what there is.
#[test]
fn whatever_is_lost_the_standby_ends_up_with_what_there_is() {
    for seed in 1..=300 {
        let mut random = Random(seed);
        let now = start_of_time();
        let most = 50;
        let mut truth: BTreeMap<Key, Tracked> = BTreeMap::new();
        let (mut outbox, mut store) = (Outbox::new(most), store(most));
        let mut series = 0;
        let quiet_from = 2000;
        for step in 0..quiet_from + 20 {
            let troubled = step < quiet_from;
            if troubled {
                let number = random.below(80) as u16;
                let event = match random.below(3) {
                    0 => {
                        truth.remove(&key(number));
                        Event::Gone(key(number))
                    }
                    _ if truth.len() < most || truth.contains_key(&key(number)) => {
                        let one = tracked(number, 1 + random.below(5) as u8);
                        truth.insert(key(number), one.clone());
                        Event::Is(one)
                    }
                    _ => continue,
                };
                match random.below(100) {
                    0 => outbox.stray(now),
                    _ => outbox.note(now, event),
                }
                if random.below(200) == 0 {
                    store = self::store(most);
                }
            }
            if outbox.needs_snapshot() {
                series += 1;
                outbox.snapshot(now, series, truth.values().cloned().collect());
            }
            let told = random.below(4) == 0 || !troubled;
            if told && let Some(batch) = outbox.poll_batch() {
                let lost = if troubled { random.below(30) } else { 29 };
                let taken = match lost {
                    0 => Err(Refused::Unknown),
                    _ => store.take(host(1), (router(), EPOCH), batch),
                };
                match taken {
                    Ok(taken) => {
                        assert!(taken.kept <= most as u64);
                        match lost {
                            // The answer is lost, and the connection with it.
                            1 => outbox = Outbox::new(most),
                            _ => outbox.acknowledged(),
                        }
                    }
                    Err(_) => outbox.refused(now),
                }
            }
        }
        assert!(outbox.is_in_step(), "seed {seed}");
        let (_, connections) = store.give(router()).unwrap();
        let known: BTreeMap<Key, u8> = connections
            .iter()
            .map(|one| (Key::of(one), one.tcp_state))
            .collect();
        let truth: BTreeMap<Key, u8> = truth.iter().map(|(k, one)| (*k, one.tcp_state)).collect();
        assert_eq!(known, truth, "seed {seed}");
    }
}
