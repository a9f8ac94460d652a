//! What holds of rows and MACs whatever happened before: rows are those of a speaker that saw the
//! end alone, and all speakers agree who has a MAC, and fall silent.

#![allow(clippy::unwrap_used, reason = "a helper that panics fails its test")]

mod common;

use common::fake::{Bench, as_path, attribute, origin, reach, unreach, update};
use common::{Net, config, vni};
use evpn::{LocalEvi, LocalMac, LocalState, PeerConfig, Rd, Role, RouteTarget, RouteTargets};
use model::{Encoding, EviForwarding, MacAddr, Tag, VlanId, Vni};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

const PEERS: [&str; 2] = ["10.0.0.101", "10.0.0.102"];

/// What tells a route apart: the VTEP that made it, its tag, its MAC (none: the flood route), and
/// its address.
type Key = (u8, u8, Option<u8>, Option<u8>);

/// What it says.
#[derive(Debug, Clone, Copy)]
struct Says {
    next_hop: u8,
    label: u32,
    target: u32,
    sequence: u32,
    sticky: bool,
    flags: u8,
}

#[derive(Debug, Clone)]
enum Step {
    Announce(usize, Key, Says),
    Withdraw(usize, Key),
    Down(usize),
    Up(usize),
    Local(Local),
}

/// What is local: for each of two instances how it is set, and its MACs.
#[derive(Debug, Clone)]
struct Local {
    vtep: u8,
    evis: Vec<(u32, Instance, BTreeSet<u8>)>,
}

#[derive(Debug, Clone, Copy)]
enum Instance {
    Plain,
    OtherRd,
    Manual,
    Bundle,
}

fn key() -> impl Strategy<Value = Key> {
    let mac = prop::option::weighted(0.85, 0_u8..6);
    let ip = prop::option::of(0_u8..6);
    (prop::sample::select(&[1_u8, 2, 4][..]), 0_u8..2, mac, ip)
        .prop_map(|(rd, tag, mac, ip)| (rd, 10 * tag, mac, ip.filter(|_| mac.is_some())))
}

fn says() -> impl Strategy<Value = Says> {
    let next_hop = prop::sample::select(&[1_u8, 2, 3, 4, 9][..]);
    let instance = prop::sample::select(&[100_u32, 200][..]);
    let target = prop::sample::select(&[100_u32, 200, 500, 0x1000_0064][..]);
    let flags = prop::sample::select(&[0_u8, 1, 8][..]);
    let sequence = prop::sample::select(&[0, 1, 2, u32::MAX][..]);
    (next_hop, instance, target, sequence, any::<bool>(), flags).prop_map(
        |(next_hop, label, target, sequence, sticky, flags)| Says {
            next_hop,
            label,
            target,
            sequence,
            sticky,
            flags,
        },
    )
}

fn local(macs: std::ops::Range<u8>) -> impl Strategy<Value = Local> {
    let instance = prop::sample::select(
        &[
            Instance::Plain,
            Instance::OtherRd,
            Instance::Manual,
            Instance::Bundle,
        ][..],
    );
    let macs = prop::collection::btree_set(macs, 0..3);
    let evi = (prop::sample::select(&[100_u32, 200][..]), instance, macs);
    (
        prop::sample::select(&[3_u8, 9][..]),
        prop::collection::vec(evi, 0..3),
    )
        .prop_map(|(vtep, evis)| Local { vtep, evis })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..PEERS.len(), key(), says()).prop_map(|(p, k, s)| Step::Announce(p, k, s)),
        4 => (0..PEERS.len(), key()).prop_map(|(p, k)| Step::Withdraw(p, k)),
        1 => (0..PEERS.len()).prop_map(Step::Down),
        1 => (0..PEERS.len()).prop_map(Step::Up),
        3 => local(0..8).prop_map(Step::Local),
    ]
}

fn route((rd, tag, mac, ip): Key, label: u32) -> Vec<u8> {
    let mut value = vec![0, 1, 10, 0, 0, rd, 0, 1];
    let Some(mac) = mac else {
        value.extend([0, 0, 0, tag, 32, 10, 0, 0, rd]);
        return [vec![3, value.len() as u8], value].concat();
    };
    value.extend([0; 10]);
    value.extend([0, 0, 0, tag, 48, 2, 0, 0, 0, 0, mac]);
    match ip {
        Some(ip) => value.extend([32, 10, 4, 1, ip]),
        None => value.push(0),
    }
    value.extend(&label.to_be_bytes()[1..]);
    [vec![2, value.len() as u8], value].concat()
}

fn announcement(key: Key, says: Says) -> Vec<u8> {
    let mut communities = vec![0x00, 0x02, 0xfd, 0xe8];
    communities.extend(says.target.to_be_bytes());
    communities.extend([0x03, 0x0c, 0, 0, 0, 0, 0, 8]);
    communities.extend([0x06, 0x00, u8::from(says.sticky), 0]);
    communities.extend(says.sequence.to_be_bytes());
    communities.extend([0x06, 0x08, says.flags, 0, 0, 0, 0, 0]);
    let mut list = vec![
        reach(&[10, 0, 0, says.next_hop], &route(key, says.label)),
        origin(),
        as_path(),
        attribute(0xc0, 16, &communities),
    ];
    if key.2.is_none() {
        let mut tunnel = vec![0, 6];
        tunnel.extend(&says.label.to_be_bytes()[1..]);
        tunnel.extend([10, 0, 0, says.next_hop]);
        list.push(attribute(0xc0, 22, &tunnel));
    }
    update(&list)
}

fn state(local: &Local) -> LocalState {
    let mut state = LocalState::empty(IpAddr::from([10, 0, 0, local.vtep]));
    for (number, instance, macs) in &local.evis {
        let encoding = match instance {
            Instance::Bundle => Encoding::VlanAwareBundle,
            _ => Encoding::VlanBased,
        };
        let other = matches!(instance, Instance::OtherRd);
        let index = (number / 100 + 10 * u32::from(other)) as u16;
        let mut evi = LocalEvi::new(encoding, index);
        let tag: Tag = match encoding {
            Encoding::VlanAwareBundle => Some(VlanId::new(10).unwrap()),
            Encoding::VlanBased => None,
        };
        if matches!(instance, Instance::Manual) {
            let target = BTreeSet::from([RouteTarget::two_octet_as(65000, 500)]);
            evi.targets = RouteTargets::Manual {
                import: target.clone(),
                export: target,
            };
        }
        evi.domains.insert(tag);
        for mac in macs {
            let held = LocalMac::with_addresses([IpAddr::from([10, 4, 1, *mac])]);
            evi.macs.insert((tag, MacAddr([2, 0, 0, 0, 0, *mac])), held);
        }
        state.evis.insert(vni(*number), evi);
    }
    state
}

/// A host, what it was told last, and what its peers would tell it now.
struct World {
    bench: Bench,
    up: [bool; 2],
    told: [BTreeMap<Key, Says>; 2],
}

impl World {
    fn new(moves: u32) -> Self {
        let mut config = config("10.0.0.3".parse().unwrap(), Role::Vtep);
        config.policy.duplicate.moves = moves;
        // What a peer is silent about goes at its End-of-RIB.
        config.timing.handover = Duration::ZERO;
        Self {
            bench: Bench::new(config),
            up: [false; 2],
            told: Default::default(),
        }
    }

    fn apply(&mut self, step: &Step) {
        match step {
            Step::Announce(peer, key, says) => {
                self.told[*peer].insert(*key, *says);
                self.say(*peer, &announcement(*key, *says));
            }
            Step::Withdraw(peer, key) => {
                if self.told[*peer].remove(key).is_some() {
                    self.say(*peer, &update(&[unreach(&route(*key, 0))]));
                }
            }
            Step::Down(peer) if self.up[*peer] => {
                self.up[*peer] = false;
                let conn = self.bench.conn(PEERS[*peer].parse().unwrap());
                let speaker = &mut self.bench.speaker;
                speaker.handle_disconnected(self.bench.now, conn, "reset by peer");
                self.bench.drain();
            }
            Step::Up(peer) if !self.up[*peer] => {
                self.up[*peer] = true;
                self.bench.peer(PEERS[*peer], PeerConfig::REFLECTOR);
                for (key, says) in self.told[*peer].clone() {
                    self.say(*peer, &announcement(key, says));
                }
                self.say(*peer, &update(&[unreach(&[])]));
                self.bench.speaker.handle_timeout(self.bench.now);
                self.bench.drain();
            }
            Step::Down(_) | Step::Up(_) => {}
            Step::Local(local) => {
                let now = self.bench.now;
                self.bench.speaker.set_local(now, state(local)).unwrap();
                self.bench.drain();
            }
        }
    }

    fn say(&mut self, peer: usize, bytes: &[u8]) {
        if self.up[peer] {
            self.bench.send_raw(PEERS[peer].parse().unwrap(), bytes);
        }
    }

    /// What is counted without a walk is what a walk finds.
    fn counts_are_true(&self) {
        let Bench { now, speaker, .. } = &self.bench;
        let counts = speaker.counts();
        let mut routes: BTreeMap<u8, BTreeSet<(Option<Rd>, String)>> = BTreeMap::new();
        for info in speaker.routes(*now) {
            let kind = info.route[1..].split(']').next().unwrap().parse();
            let of_kind = routes.entry(kind.unwrap()).or_default();
            of_kind.insert((info.rd, info.route));
        }
        let walked: BTreeMap<u8, usize> = routes.iter().map(|(k, all)| (*k, all.len())).collect();
        let counted = counts.routes.iter().filter(|(_, count)| **count > 0);
        assert_eq!(
            counted.map(|(k, c)| (*k, *c)).collect::<BTreeMap<_, _>>(),
            walked
        );
        let macs = speaker.macs(*now);
        let local = macs.iter().filter(|mac| mac.local).count();
        let frozen = macs.iter().filter(|mac| mac.frozen).count();
        assert_eq!((counts.local_macs, counts.frozen_macs), (local, frozen));
        let rows = self
            .rows()
            .values()
            .map(|rows| rows.macs.len())
            .sum::<usize>();
        assert_eq!(counts.remote_macs, rows);
    }

    /// What is frozen depends on what was, as it should.
    fn clear_duplicates(&mut self) {
        let Bench { now, speaker, .. } = &mut self.bench;
        for mac in speaker.macs(*now) {
            speaker.clear_duplicate(*now, mac.vni, mac.tag, mac.mac);
            for n in 0..8 {
                let ip = IpAddr::from([10, 4, 1, n]);
                speaker.clear_duplicate_ip(*now, mac.vni, mac.tag, ip);
            }
        }
    }

    fn rows(&self) -> BTreeMap<Vni, EviForwarding> {
        self.bench.speaker.forwarding().evis.clone()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Instances come, go and change in place, routes and sessions too; in the end rows are those
    /// of a speaker that saw nothing but the end. (MACs that are here in the end are claimed by
    /// nobody else then: whose they were is a matter of history, RFC 7432 section 15.)
    #[test]
    fn rows_follow_from_the_end_alone(
        steps in prop::collection::vec(step(), 0..60),
        end in local(6..8),
        routes_first in any::<bool>(),
        moves in 0_u32..3,
    ) {
        let mut lived = World::new(moves);
        for step in &steps {
            lived.apply(step);
        }
        lived.apply(&Step::Local(end.clone()));
        for peer in 0..PEERS.len() {
            lived.apply(&Step::Up(peer));
        }
        lived.counts_are_true();
        lived.clear_duplicates();
        let mut fresh = World::new(0);
        fresh.told = lived.told.clone();
        let mut last = vec![Step::Up(0), Step::Up(1)];
        last.insert(if routes_first { 2 } else { 0 }, Step::Local(end));
        for step in &last {
            fresh.apply(step);
        }
        prop_assert_eq!(lived.rows(), fresh.rows());
    }
}

const HOSTS: [&str; 4] = ["c1", "c2", "c3", "c4"];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Any number of hosts say at any time to have a MAC or an address, and messages take any time.
    /// In the end one of those that still say so has it, all others have a row to that one, and
    /// nobody has anything more to say.
    #[test]
    fn all_agree_who_has_a_mac_and_fall_silent(
        steps in prop::collection::vec(
            (0..HOSTS.len(), 0_u8..3, 0_u8..4, any::<bool>(), 0_u64..60), 1..40),
        seed in 1_u64..,
    ) {
        let mut net = Net::new();
        net.jitter = Some((Duration::from_millis(50), seed));
        for (n, rr) in [(101, "ra"), (102, "rb")] {
            net.add(rr, &format!("10.0.0.{n}"), Role::Reflector);
        }
        for (n, host) in (1..).zip(HOSTS) {
            net.add(host, &format!("10.0.0.{n}"), Role::Vtep);
            net.node(host).config.policy.duplicate.moves = 0;
            net.peer(host, "ra");
            net.peer(host, "rb");
            net.evi(host, 100, 1, Encoding::VlanBased);
        }
        for name in HOSTS.iter().chain(&["ra", "rb"]) {
            net.start(name);
        }
        net.run(Duration::from_secs(5));
        for (host, mac, ip, there, wait) in steps {
            let (name, mac) = (HOSTS[host], format!("02:00:00:00:00:{mac:02x}"));
            if there {
                net.mac(name, 100, None, &mac, &[&format!("10.4.1.{ip}")]);
            } else {
                net.unmac(name, 100, None, &mac);
            }
            net.run(Duration::from_millis(wait));
        }
        net.run(Duration::from_secs(5));
        let said = said(&mut net);
        net.run(Duration::from_secs(60));
        prop_assert_eq!(self::said(&mut net), said, "not silent\n{}", net.log);
        agreed(&mut net)?;
    }
}

fn said(net: &mut Net) -> u64 {
    let now = net.now;
    let speakers = net.nodes.values().filter_map(|node| node.speaker.as_ref());
    let peers = speakers.flat_map(|speaker| speaker.peers(now));
    peers.map(|peer| peer.counters.updates_out).sum()
}

fn agreed(net: &mut Net) -> Result<(), TestCaseError> {
    for mac in 0..3 {
        let mac = MacAddr([2, 0, 0, 0, 0, mac]);
        let here: Vec<IpAddr> = net
            .nodes
            .iter()
            .filter(|(_, node)| {
                let evi = node.local.as_ref().and_then(|l| l.evis.get(&vni(100)));
                evi.is_some_and(|evi| evi.macs.contains_key(&(None, mac)))
            })
            .map(|(id, _)| *id)
            .collect();
        let rows = net.nodes.iter().filter_map(|(id, node)| {
            let evis = &node.speaker.as_ref()?.forwarding().evis;
            Some((*id, evis.get(&vni(100))?.macs.get(&(None, mac)).copied()))
        });
        let rows: BTreeMap<IpAddr, Option<IpAddr>> = rows.collect();
        let winners: BTreeSet<IpAddr> = rows.values().flatten().copied().collect();
        match here.is_empty() {
            true => prop_assert!(winners.is_empty(), "{mac}: {rows:?}"),
            false => {
                prop_assert_eq!(winners.len(), 1, "{}: {:?}\n{}", mac, rows, net.log);
                let winner = *winners.first().unwrap();
                prop_assert!(here.contains(&winner), "{mac}: {winner} of {here:?}");
                let without = rows.iter().filter(|(_, row)| row.is_none());
                let without: Vec<IpAddr> = without.map(|(id, _)| *id).collect();
                prop_assert_eq!(without, vec![winner], "{}", mac);
            }
        }
    }
    Ok(())
}
