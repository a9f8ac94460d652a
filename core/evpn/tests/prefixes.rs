//! Type-5 routes: which of them a route host uses, what it says of those that it does not, and that
//! rows follow from what is said in the end (RFC 9136).

#![allow(clippy::unwrap_used, reason = "a helper that panics fails its test")]

mod common;

use common::fake::{Bench, as_path, attribute, origin, reach, unreach, update};
use common::{config, vni};
use evpn::{BadLocalState, LocalEvi, LocalIpVrf, LocalState, PeerConfig, Role, RouteTargets};
use model::{Encoding, IpVrfForwarding, MacAddr};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::net::IpAddr;

const REFLECTOR: &str = "10.0.0.101";

/// A Type-5 route and its attributes, as they stand in an UPDATE.
#[derive(Debug, Clone)]
struct Route {
    router: u8,
    prefix: Vec<u8>,
    bits: u8,
    segment: u8,
    gateway: u8,
    label: u32,
    mac: Option<[u8; 6]>,
    next_hop: u8,
    encapsulation: u8,
    local_pref: u32,
}

fn plain(router: u8, prefix: &[u8], bits: u8) -> Route {
    Route {
        router,
        prefix: prefix.to_vec(),
        bits,
        segment: 0,
        gateway: 0,
        label: 500,
        mac: Some([0x12, 0, 0, 0, 0, router]),
        next_hop: router,
        encapsulation: 8,
        local_pref: 100,
    }
}

impl Route {
    fn nlri(&self) -> Vec<u8> {
        let mut value = vec![0, 1, 10, 0, 0, self.router, 0, 1];
        value.extend([self.segment; 10]);
        value.extend([0, 0, 0, 0, self.bits]);
        value.extend(&self.prefix);
        value.extend(vec![self.gateway; self.prefix.len()]);
        value.extend(&self.label.to_be_bytes()[1..]);
        [vec![5, value.len() as u8], value].concat()
    }

    fn announcement(&self) -> Vec<u8> {
        let mut communities = vec![0x00, 0x02, 0xfd, 0xe8, 0, 0, 0x01, 0xf4];
        communities.extend([0x03, 0x0c, 0, 0, 0, 0, 0, self.encapsulation]);
        if let Some(mac) = self.mac {
            communities.extend([0x06, 0x03]);
            communities.extend(mac);
        }
        update(&[
            reach(&[10, 0, 0, self.next_hop], &self.nlri()),
            origin(),
            as_path(),
            attribute(0x40, 5, &self.local_pref.to_be_bytes()),
            attribute(0xc0, 16, &communities),
        ])
    }
}

fn router_here() -> LocalState {
    let mut state = LocalState::empty(IpAddr::from([10, 0, 0, 9]));
    let vrf = LocalIpVrf {
        vni: vni(500),
        targets: RouteTargets::Auto,
        mac: MacAddr([0x12, 0, 0, 0, 0, 9]),
        prefixes: ["10.4.9.0/24".parse().unwrap()].into(),
    };
    state.ip_vrfs.insert(1, vrf);
    state
}

/// A route host that has heard of nothing yet.
fn bench() -> (Bench, IpAddr) {
    let mut bench = Bench::new(config("10.0.0.9".parse().unwrap(), Role::Vtep));
    let peer = bench.peer(REFLECTOR, PeerConfig::REFLECTOR);
    bench.speaker.set_local(bench.now, router_here()).unwrap();
    bench.drain();
    (bench, peer)
}

fn rows(bench: &Bench) -> IpVrfForwarding {
    bench.speaker.forwarding().ip_vrfs[&vni(500)].clone()
}

fn prefixes(bench: &Bench) -> Vec<String> {
    let text = |(prefix, macs): (&ipnet::IpNet, &std::collections::BTreeSet<MacAddr>)| {
        let macs: Vec<String> = macs.iter().map(|mac| mac.0[5].to_string()).collect();
        format!("{prefix} {}", macs.join(","))
    };
    rows(bench).prefixes.iter().map(text).collect()
}

/// Routes that are in order for others and not for this host make no row, are told of, and are gone
/// from both when they are withdrawn. The session stays.
#[test]
fn what_cannot_be_used_is_told_of() {
    let good = || plain(1, &[10, 4, 1, 0], 24);
    type Change = fn(&mut Route);
    let cases: [(Change, &str); 10] = [
        (|r| r.segment = 7, "an Ethernet segment"),
        (|r| r.gateway = 5, "gateway 5.5.5.5"),
        (|r| r.mac = None, "without Router's MAC"),
        (|r| r.mac = Some([0; 6]), "router's MAC 00:00:00:00:00:00"),
        (
            |r| r.mac = Some([1, 0, 0, 0, 0, 1]),
            "router's MAC 01:00:00:00:00:01",
        ),
        (|r| r.label = 501, "label 501"),
        (|r| r.next_hop = 9, "next hop 10.0.0.9"),
        (|r| r.encapsulation = 9, "other encapsulations"),
        (|r| r.prefix = vec![224, 0, 0, 0], "not routed"),
        (|r| r.prefix = vec![127, 1, 0, 0], "not routed"),
    ];
    let (mut bench, peer) = bench();
    for (change, told) in cases {
        let mut route = good();
        change(&mut route);
        bench.send_raw(peer, &route.announcement());
        assert_eq!(rows(&bench), IpVrfForwarding::default(), "{told}");
        // An own address as next hop is told of in other words, too.
        let mut alerts = bench.speaker.alerts(bench.now);
        alerts.retain(|alert| alert.kind.name() == "unused-prefixes");
        let [alert] = &alerts[..] else {
            panic!("{told}: {alerts:?}");
        };
        assert!(alert.what.contains(told), "{told}: {}", alert.what);
        bench.send_raw(peer, &update(&[unreach(&route.nlri())]));
        assert!(bench.speaker.alerts(bench.now).is_empty(), "{told}");
    }
    bench.send_raw(peer, &good().announcement());
    assert_eq!(prefixes(&bench), ["10.4.1.0/24 1"]);
    assert_eq!(bench.info(peer).counters.routes_discarded, 0);
}

/// RFC 9136 §3.1: 34 or 58 octets, at most 32 or 128 bits. Anything else is dropped alone (RFC 7606),
/// and the route beside it in the same UPDATE is taken.
#[test]
fn a_malformed_prefix_route_is_dropped_alone() {
    let (mut bench, peer) = bench();
    let good = plain(1, &[10, 4, 1, 0], 24).nlri();
    let with_length = |octets: usize| {
        let mut route = good.clone();
        route.resize(2 + octets, 0);
        route[1] = octets as u8;
        route
    };
    let too_long_4 = plain(1, &[10, 4, 2, 0], 33).nlri();
    let too_long_6 = plain(1, &[0xfd; 16], 129).nlri();
    let bad = [0, 1, 33, 35, 57, 59].map(with_length);
    let bad: Vec<Vec<u8>> = bad.into_iter().chain([too_long_4, too_long_6]).collect();
    let mut communities = vec![0x00, 0x02, 0xfd, 0xe8, 0, 0, 0x01, 0xf4];
    communities.extend([0x06, 0x03, 0x12, 0, 0, 0, 0, 1]);
    for (count, bad) in bad.iter().enumerate() {
        let both = [bad.clone(), good.clone()].concat();
        let list = [
            reach(&[10, 0, 0, 1], &both),
            origin(),
            as_path(),
            attribute(0xc0, 16, &communities),
        ];
        bench.send_raw(peer, &update(&list));
        assert_eq!(prefixes(&bench), ["10.4.1.0/24 1"], "{bad:02x?}");
        let dropped = bench.info(peer).counters.routes_discarded;
        assert_eq!(dropped, count as u64 + 1, "{bad:02x?}");
        bench.send_raw(peer, &update(&[unreach(&good)]));
        assert!(prefixes(&bench).is_empty());
    }
}

#[test]
fn host_bits_are_no_part_of_a_prefix() {
    let (mut bench, peer) = bench();
    bench.send_raw(peer, &plain(1, &[10, 4, 1, 77], 24).announcement());
    bench.send_raw(peer, &plain(2, &[10, 4, 1, 0], 24).announcement());
    assert_eq!(prefixes(&bench), ["10.4.1.0/24 1,2"]);
    bench.send_raw(peer, &plain(3, &[0; 16], 0).announcement());
    assert_eq!(prefixes(&bench), ["10.4.1.0/24 1,2", "::/0 3"]);
}

/// The best way decides, equal ones share; a router that is named in two places is where the newest
/// word says.
#[test]
fn the_best_way_is_taken_and_equal_ones_share() {
    let (mut bench, peer) = bench();
    let prefix = [10, 4, 1, 0];
    let with = |router, local_pref| Route {
        local_pref,
        ..plain(router, &prefix, 24)
    };
    for (route, held) in [
        (with(1, 100), "10.4.1.0/24 1"),
        (with(2, 100), "10.4.1.0/24 1,2"),
        (with(3, 200), "10.4.1.0/24 3"),
        (with(1, 200), "10.4.1.0/24 1,3"),
        (with(3, 50), "10.4.1.0/24 1"),
    ] {
        bench.send_raw(peer, &route.announcement());
        assert_eq!(prefixes(&bench), [held]);
    }
    bench.now += std::time::Duration::from_secs(1);
    let moved = Route {
        mac: with(1, 100).mac,
        ..plain(4, &[10, 4, 4, 0], 24)
    };
    bench.send_raw(peer, &moved.announcement());
    let at = |bench: &Bench, mac: u8| rows(bench).routers[&MacAddr([0x12, 0, 0, 0, 0, mac])];
    assert_eq!(at(&bench, 1), IpAddr::from([10, 0, 0, 4]));
    bench.send_raw(peer, &update(&[unreach(&moved.nlri())]));
    assert_eq!(at(&bench, 1), IpAddr::from([10, 0, 0, 1]));
}

#[test]
fn what_cannot_be_announced_is_refused_whole() {
    let (mut bench, _) = bench();
    let mut state = router_here();
    state
        .evis
        .insert(vni(100), LocalEvi::new(Encoding::VlanBased, 1));
    let refused = bench.speaker.set_local(bench.now, state);
    assert_eq!(
        refused,
        Err(BadLocalState::SharedRouterRd(vni(100), vni(500), 1))
    );
    let mut state = router_here();
    state
        .evis
        .insert(vni(500), LocalEvi::new(Encoding::VlanBased, 2));
    let refused = bench.speaker.set_local(bench.now, state);
    assert_eq!(refused, Err(BadLocalState::SharedVni(vni(500))));
    let mut state = router_here();
    state.ip_vrfs.get_mut(&1).unwrap().mac = MacAddr::ZERO;
    assert!(bench.speaker.set_local(bench.now, state).is_err());
}

fn route() -> impl Strategy<Value = Route> {
    let mac = prop::option::weighted(0.9, 1_u8..5);
    let label = prop::sample::select(&[500_u32, 500, 500, 501][..]);
    (1_u8..4, 0_u8..4, label, mac, 1_u8..5, 1_u32..3).prop_map(
        |(router, net, label, mac, next_hop, local_pref)| Route {
            label,
            mac: mac.map(|mac| [0x12, 0, 0, 0, 0, mac]),
            next_hop,
            local_pref,
            ..plain(router, &[10, 4, net, 0], 24)
        },
    )
}

proptest! {
    /// Whatever was said before, rows are those of a speaker that heard the last words alone. (Where a
    /// router is that two VTEPs name is a matter of who spoke last.)
    #[test]
    fn rows_follow_from_the_last_words(
        steps in prop::collection::vec((route(), any::<bool>()), 0..40),
        late in any::<bool>(),
    ) {
        let (mut lived, peer) = bench();
        let mut last: BTreeMap<Vec<u8>, Route> = BTreeMap::new();
        for (route, announced) in &steps {
            let key = [&route.prefix[..], &[route.router]].concat();
            if *announced {
                lived.send_raw(peer, &route.announcement());
                last.insert(key, route.clone());
            } else {
                lived.send_raw(peer, &update(&[unreach(&route.nlri())]));
                last.remove(&key);
            }
        }
        let mut fresh = Bench::new(config("10.0.0.9".parse().unwrap(), Role::Vtep));
        let peer = fresh.peer(REFLECTOR, PeerConfig::REFLECTOR);
        if !late {
            fresh.speaker.set_local(fresh.now, router_here()).unwrap();
        }
        for route in last.values() {
            fresh.send_raw(peer, &route.announcement());
        }
        if late {
            fresh.speaker.set_local(fresh.now, router_here()).unwrap();
        }
        prop_assert_eq!(&rows(&lived).prefixes, &rows(&fresh).prefixes);
        let known = |rows: &IpVrfForwarding| rows.routers.keys().copied().collect::<Vec<_>>();
        prop_assert_eq!(known(&rows(&lived)), known(&rows(&fresh)));
        for macs in rows(&lived).prefixes.values() {
            prop_assert!(!macs.is_empty());
            prop_assert!(macs.iter().all(|mac| rows(&lived).routers.contains_key(mac)));
        }
        // And nothing is left of a router that is gone.
        lived.speaker.set_local(lived.now, LocalState::empty([10, 0, 0, 9].into())).unwrap();
        prop_assert!(lived.speaker.forwarding().ip_vrfs.is_empty());
    }
}
