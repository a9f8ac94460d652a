//! Whoever announces what and when, however slow anybody reads: in the end each peer holds exactly
//! what it is to be told, and never more messages wait for it than allowed.

#![allow(clippy::unwrap_used, reason = "a helper that panics fails its test")]

mod common;

use common::config;
use common::fake::{Bench, as_path, communities, mac_route, origin, reach, split, unreach, update};
use evpn::{PeerConfig, PeerRole, Role};
use proptest::prelude::*;
use rustbgpd_wire as wire;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;
use wire::{EvpnRoute, Message, PathAttribute};

const PEERS: u8 = 5;
/// The last is a reflector beside this one, the others are clients.
const BESIDE: u8 = 5;
const MACS: u8 = 6;

#[derive(Debug, Clone)]
enum Step {
    Announce { peer: u8, mac: u8, label: u32 },
    Withdraw { peer: u8, mac: u8 },
    Slow { peer: u8 },
    Quick { peer: u8 },
    Drop { peer: u8 },
    Refresh { peer: u8 },
    Drain { messages: usize },
}

fn step() -> impl Strategy<Value = Step> {
    let (peer, mac) = (1..=PEERS, 0..MACS);
    prop_oneof![
        8 => (peer.clone(), mac.clone(), 1_u32..4)
            .prop_map(|(peer, mac, label)| Step::Announce { peer, mac, label }),
        4 => (peer.clone(), mac).prop_map(|(peer, mac)| Step::Withdraw { peer, mac }),
        2 => peer.clone().prop_map(|peer| Step::Slow { peer }),
        2 => peer.clone().prop_map(|peer| Step::Quick { peer }),
        1 => peer.clone().prop_map(|peer| Step::Drop { peer }),
        1 => peer.prop_map(|peer| Step::Refresh { peer }),
        4 => (0_usize..5).prop_map(|messages| Step::Drain { messages }),
    ]
}

fn address(peer: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 0, 0, peer))
}

fn role(peer: u8) -> PeerConfig {
    if peer == BESIDE {
        PeerConfig::REFLECTOR
    } else {
        PeerConfig::CLIENT
    }
}

fn announcement(peer: u8, mac: u8, label: u32) -> Vec<u8> {
    update(&[
        reach(&[10, 0, 0, peer], &mac_route(99, mac, label)),
        origin(),
        as_path(),
        communities(100),
    ])
}

/// Who has announced what: label by MAC and peer.
type Told = BTreeMap<(u8, u8), u32>;

struct World {
    bench: Bench,
    told: Told,
    held: BTreeMap<u8, BTreeMap<u8, (u8, u32)>>,
}

impl World {
    fn new() -> Self {
        let address: IpAddr = "10.0.0.101".parse().unwrap();
        let mut config = config(address, Role::Reflector);
        config.timing.client_retain = Duration::ZERO;
        let mut world = Self {
            bench: Bench::new(config),
            told: Told::new(),
            held: BTreeMap::new(),
        };
        (1..=PEERS).for_each(|peer| world.connect(peer));
        world
    }

    fn connect(&mut self, peer: u8) {
        let id = address(peer).to_string();
        // Without graceful restart, so that what it told goes with it.
        let has = |c: &wire::Capability| !matches!(c, wire::Capability::GracefulRestart { .. });
        self.held.insert(peer, BTreeMap::new());
        self.bench.peer_with(&id, role(peer), has);
        // What others got meanwhile.
        for (to, messages) in std::mem::take(&mut self.bench.received) {
            for message in messages {
                if let Message::Update(update) = message {
                    self.take(to, &update);
                }
            }
        }
    }

    fn apply(&mut self, step: &Step) {
        match *step {
            Step::Announce { peer, mac, label } => {
                self.told.insert((mac, peer), label);
                self.say(peer, &announcement(peer, mac, label));
            }
            Step::Withdraw { peer, mac } => {
                self.told.remove(&(mac, peer));
                self.say(peer, &update(&[unreach(&mac_route(99, mac, 0))]));
            }
            Step::Slow { peer } => self.writable(peer, false),
            Step::Quick { peer } => self.writable(peer, true),
            Step::Drop { peer } if peer != BESIDE => {
                let conn = self.bench.conn(address(peer));
                let now = self.bench.now;
                self.bench
                    .speaker
                    .handle_disconnected(now, conn, "reset by peer");
                self.told.retain(|(_, from), _| *from != peer);
                self.read(usize::MAX);
                self.connect(peer);
            }
            Step::Drop { .. } => {}
            Step::Refresh { peer } => {
                self.say(peer, &common::fake::message(5, &[0, 25, 0, 70]));
            }
            Step::Drain { messages } => self.read(messages),
        }
    }

    fn say(&mut self, peer: u8, bytes: &[u8]) {
        let conn = self.bench.conn(address(peer));
        let now = self.bench.now;
        self.bench.speaker.handle_bytes(now, conn, bytes);
    }

    fn writable(&mut self, peer: u8, writable: bool) {
        let conn = self.bench.conn(address(peer));
        self.bench.speaker.handle_writable(conn, writable);
    }

    /// Lets so many messages arrive.
    fn read(&mut self, messages: usize) {
        for _ in 0..messages {
            let Some(transmit) = self.bench.speaker.poll_transmit() else {
                break;
            };
            for mut bytes in split(transmit.bytes) {
                if let Message::Update(update) = wire::decode_message(&mut bytes, 65535).unwrap() {
                    self.take(transmit.peer, &update);
                }
            }
        }
        while self.bench.speaker.poll_action().is_some() {}
    }

    fn take(&mut self, to: IpAddr, update: &wire::UpdateMessage) {
        let IpAddr::V4(to) = to else {
            panic!("IPv4 peers");
        };
        let held = self.held.get_mut(&to.octets()[3]).unwrap();
        for attribute in update.parse(true, false, &[]).unwrap().attributes {
            match attribute {
                PathAttribute::MpReachNlri(reach) => {
                    let IpAddr::V4(next_hop) = reach.next_hop else {
                        panic!("IPv4 next hops");
                    };
                    for route in &reach.evpn_announced {
                        let EvpnRoute::MacIp(route) = route else {
                            panic!("only MACs");
                        };
                        let value = (next_hop.octets()[3], route.label1.as_vni());
                        held.insert(route.mac.0[5], value);
                    }
                }
                PathAttribute::MpUnreachNlri(unreach) => {
                    for route in &unreach.evpn_withdrawn {
                        let EvpnRoute::MacIp(route) = route else {
                            panic!("only MACs");
                        };
                        held.remove(&route.mac.0[5]);
                    }
                }
                _ => {}
            }
        }
    }

    /// The lowest next hop wins, and goes to all but where it came from and not between
    /// reflectors.
    fn expected(&self, to: u8) -> BTreeMap<u8, (u8, u32)> {
        let mut best: BTreeMap<u8, (u8, u32)> = BTreeMap::new();
        for ((mac, from), label) in &self.told {
            best.entry(*mac).or_insert((*from, *label));
        }
        let beside = |peer: u8| role(peer).role == PeerRole::Reflector;
        best.retain(|_, (from, _)| *from != to && !(beside(*from) && beside(to)));
        best
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn everybody_holds_what_is_best(steps in prop::collection::vec(step(), 1..60)) {
        let mut world = World::new();
        world.read(usize::MAX);
        for step in &steps {
            world.apply(step);
        }
        (1..=PEERS).for_each(|peer| world.writable(peer, true));
        world.read(usize::MAX);
        for peer in 1..=PEERS {
            prop_assert_eq!(&world.held[&peer], &world.expected(peer), "told to {}", peer);
        }
    }
}

/// One that reads nothing holds up nobody, and what waits for it is bounded.
#[test]
fn a_peer_that_never_reads() {
    let mut world = World::new();
    world.read(usize::MAX);
    world.writable(2, false);
    for round in 0..400_u32 {
        for mac in 0..MACS {
            world.apply(&Step::Announce {
                peer: 1,
                mac,
                label: round % 7 + 1,
            });
        }
        world.read(usize::MAX);
        assert_eq!(world.held[&3], world.expected(3));
    }
    assert!(world.held[&2].is_empty());
    let sent = world.bench.info(address(3)).counters.updates_out;
    let queued = world.bench.info(address(2)).counters.updates_out;
    assert!(sent >= 400 && queued <= 80, "{sent} {queued}");
    world.writable(2, true);
    world.read(usize::MAX);
    assert_eq!(world.held[&2], world.expected(2));
}
