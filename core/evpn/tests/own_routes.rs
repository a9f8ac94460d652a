//! A client that may announce its own routes alone: another host's are not taken, however good they
//! look, and that is told; its own are, a MAC that another host has too among them.

#![allow(clippy::unwrap_used, reason = "a helper that panics fails its test")]

mod common;

use common::config;
use common::fake::{
    Bench, as_path, attribute, communities, mac_route, origin, reach, unreach, update,
};
use evpn::{AlertKind, Announces, PeerConfig, Role};
use proptest::prelude::*;
use std::net::{IpAddr, Ipv4Addr};

const VICTIM: u8 = 1;
const HOSTILE: u8 = 2;
const OTHER: u8 = 3;

fn address(host: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 0, 0, host))
}

fn host(number: u8) -> PeerConfig {
    let router_id = evpn::router_id_of(address(number));
    PeerConfig {
        announces: Announces::Own { router_id },
        ..PeerConfig::CLIENT
    }
}

/// A reflector with three hosts, of which the victim has announced a MAC and its flood route.
fn fabric() -> Bench {
    let address: IpAddr = "10.0.0.101".parse().unwrap();
    let mut bench = Bench::new(config(address, Role::Reflector));
    for number in [VICTIM, HOSTILE, OTHER] {
        bench.peer(&self::address(number).to_string(), host(number));
    }
    say(&mut bench, VICTIM, VICTIM, &mac_route(VICTIM, 7, 100), &[]);
    say(
        &mut bench,
        VICTIM,
        VICTIM,
        &flood(VICTIM, VICTIM),
        &pmsi(VICTIM),
    );
    assert_eq!(best(&bench).len(), 2);
    bench
}

fn say(bench: &mut Bench, from: u8, next_hop: u8, route: &[u8], more: &[u8]) {
    let list = [
        reach(&[10, 0, 0, next_hop], route),
        origin(),
        as_path(),
        more.to_vec(),
    ];
    let list = match more.windows(2).any(|octets| octets == [0xc0, 16]) {
        true => list.to_vec(),
        false => [&list[..], &[communities(100)]].concat(),
    };
    bench.send_raw(address(from), &update(&list));
}

/// Type 3, with this distinguisher and originating router.
fn flood(rd: u8, originator: u8) -> Vec<u8> {
    let rd = [0, 1, 10, 0, 0, rd, 0, 1];
    [&[3, 17][..], &rd, &[0; 4], &[32, 10, 0, 0, originator]].concat()
}

fn pmsi(endpoint: u8) -> Vec<u8> {
    attribute(0xc0, 22, &[0, 6, 0, 0, 100, 10, 0, 0, endpoint])
}

/// Route target and a mobility sequence that beats all.
fn highest() -> Vec<u8> {
    let value = [
        &[0x00, 0x02, 0xfd, 0xe8, 0, 0, 0, 100][..],
        &[0x06, 0x00, 1, 0, 0xff, 0xff, 0xff, 0xff],
        &[0x03, 0x0c, 0, 0, 0, 0, 0, 8],
    ];
    attribute(0xc0, 16, &value.concat())
}

/// What is in use: route, distinguisher, next hop and who told.
fn best(bench: &Bench) -> Vec<String> {
    let routes = bench.speaker.routes(bench.now);
    let best = routes.into_iter().filter(|route| route.best);
    best.map(|route| {
        let rd = route.rd.map(|rd| rd.to_string()).unwrap_or_default();
        format!("{} {rd} {} {:?}", route.route, route.next_hop, route.from)
    })
    .collect()
}

/// What it says, next hop, route, further attributes, and what is told of it.
type Case = (&'static str, u8, Vec<u8>, Vec<u8>, &'static str);

#[test]
fn another_hosts_routes_are_not_taken() {
    let unknown = [&[12, 9][..], &[9; 9]].concat();
    let plain_rd = {
        let mut route = mac_route(HOSTILE, 7, 100);
        route[3] = 0;
        route
    };
    let cases: [Case; 8] = [
        (
            "the same route, better",
            HOSTILE,
            mac_route(VICTIM, 7, 100),
            highest(),
            "with distinguisher 10.0.0.1:1",
        ),
        (
            "the same route, better, and a hand on its next hop",
            VICTIM,
            mac_route(VICTIM, 7, 100),
            highest(),
            "with distinguisher 10.0.0.1:1",
        ),
        (
            "a MAC at somebody else's VTEP",
            OTHER,
            mac_route(HOSTILE, 7, 100),
            highest(),
            "with next hop 10.0.0.3",
        ),
        (
            "a distinguisher that is nobody's",
            HOSTILE,
            plain_rd,
            highest(),
            "with distinguisher 2560:",
        ),
        (
            "the victim's place on flood lists",
            HOSTILE,
            flood(VICTIM, VICTIM),
            pmsi(HOSTILE),
            "with distinguisher 10.0.0.1:1",
        ),
        (
            "the same under its own name",
            HOSTILE,
            flood(HOSTILE, VICTIM),
            pmsi(HOSTILE),
            "with originating router 10.0.0.1",
        ),
        (
            "what is flooded, to somebody who did not ask for it",
            HOSTILE,
            flood(HOSTILE, HOSTILE),
            pmsi(OTHER),
            "with tunnel endpoint 10.0.0.3",
        ),
        (
            "a route of an unknown type that the victim announces",
            HOSTILE,
            unknown.clone(),
            vec![],
            "which another host announces",
        ),
    ];
    for (what, next_hop, route, more, why) in cases {
        let mut bench = fabric();
        say(&mut bench, VICTIM, VICTIM, &unknown, &[]);
        bench.reports();
        let before = best(&bench);
        assert_eq!(before.len(), 3, "{what}");
        bench.received.clear();
        say(&mut bench, HOSTILE, next_hop, &route, &more);
        assert_eq!(best(&bench), before, "{what}");
        assert!(bench.received.values().all(Vec::is_empty), "{what}");
        let hostile = bench.info(address(HOSTILE));
        assert_eq!(hostile.counters.routes_foreign, 1, "{what}");
        let told = hostile.advice.unwrap_or_else(|| panic!("{what}: not told"));
        assert!(told.problem.contains(why), "{what}: {told:#?}");
        let alerts = bench.speaker.alerts(bench.now);
        let kinds: Vec<_> = alerts.iter().map(|alert| alert.kind).collect();
        assert_eq!(kinds, [AlertKind::ForeignRoutes], "{what}");
        assert!(alerts[0].what.contains(why), "{what}: {alerts:#?}");
        let reports = bench.reports();
        assert_eq!(reports.len(), 1, "{what}: {reports:?}");
        // Taken back, nobody need be told any more.
        bench.send_raw(address(HOSTILE), &update(&[unreach(&route)]));
        assert_eq!(bench.speaker.alerts(bench.now), [], "{what}");
        assert_eq!(bench.info(address(HOSTILE)).advice, None, "{what}");
        assert_eq!(best(&bench), before, "{what}");
    }
}

#[test]
fn its_own_routes_are_taken_a_mac_that_moves_too() {
    let mut bench = fabric();
    let own = mac_route(HOSTILE, 7, 100);
    say(&mut bench, HOSTILE, HOSTILE, &own, &highest());
    say(
        &mut bench,
        HOSTILE,
        HOSTILE,
        &flood(HOSTILE, HOSTILE),
        &pmsi(HOSTILE),
    );
    // Of a type that nobody here knows, as it came.
    let unknown = [&[9, 12, 0, 1, 10, 0, 0, HOSTILE, 0, 1][..], &[1, 2, 3, 4]].concat();
    say(&mut bench, HOSTILE, HOSTILE, &unknown, &[]);
    assert_eq!(best(&bench).len(), 5);
    assert_eq!(bench.speaker.alerts(bench.now), []);
    let raw = &bench.raw[&address(OTHER)];
    let heard = |route: &[u8]| {
        raw.iter()
            .any(|m| m.windows(route.len()).any(|w| w == route))
    };
    assert!(heard(&own) && heard(&unknown));
    // The next hop changes to another's: what was there goes, and nothing comes.
    say(&mut bench, HOSTILE, OTHER, &own, &highest());
    assert_eq!(best(&bench).len(), 4);
    // And back.
    say(&mut bench, HOSTILE, HOSTILE, &own, &highest());
    assert_eq!(best(&bench).len(), 5);
    assert_eq!(bench.speaker.alerts(bench.now), []);
}

#[test]
fn memory_for_it_is_bounded_and_goes_with_the_session() {
    let mut bench = fabric();
    for number in 0..3_000_u32 {
        let [_, _, a, b] = number.to_be_bytes();
        let mut route = mac_route(VICTIM, 0, 100);
        (route[2 + 8 + 14 + 1 + 4], route[2 + 8 + 14 + 1 + 5]) = (a, b);
        say(&mut bench, HOSTILE, HOSTILE, &route, &[]);
    }
    let hostile = bench.info(address(HOSTILE));
    assert_eq!(hostile.counters.routes_foreign, 3_000);
    let alerts = bench.speaker.alerts(bench.now);
    assert!(
        alerts[0].what.contains("not taken: 1024 or more"),
        "{alerts:#?}"
    );
    let now = bench.now;
    bench
        .speaker
        .reset_peer(now, address(HOSTILE), "a test wants it");
    assert_eq!(bench.speaker.alerts(now), []);
    bench.peer(&address(HOSTILE).to_string(), host(HOSTILE));
    assert_eq!(bench.speaker.alerts(now), []);
    assert_eq!(bench.info(address(HOSTILE)).advice, None);
}

proptest! {
    /// Whatever a client says, what others announced stays theirs.
    #[test]
    fn nobody_speaks_for_another(
        says in prop::collection::vec(
            (1_u8..4, 1_u8..4, 1_u8..4, 0_u8..4, any::<bool>(), any::<bool>()), 1..20,
        ),
    ) {
        let mut bench = fabric();
        let before = best(&bench);
        for (rd, next_hop, third, mac, high, floods) in says {
            let (route, more) = match floods {
                true => (flood(rd, third), pmsi(mac.max(1))),
                false => (mac_route(rd, 5 + mac, 100), if high { highest() } else { vec![] }),
            };
            say(&mut bench, HOSTILE, next_hop, &route, &more);
        }
        for route in bench.speaker.routes(bench.now) {
            let from = route.from.expect("a reflector has none of its own");
            prop_assert_eq!(route.next_hop, from);
            prop_assert_eq!(route.rd.and_then(|rd| rd.router_id()).map(IpAddr::V4), Some(from));
        }
        let after = best(&bench);
        prop_assert!(before.iter().all(|route| after.contains(route)), "{:?}", after);
    }
}
