//! What happens to sessions: limits, refresh, peers that do not read, goodbyes, and what people are
//! told of it.

#![allow(clippy::unwrap_used, reason = "a helper that panics fails its test")]

mod common;

use common::config;
use common::fake::{
    Bench, as_path, attribute, communities, mac_route, message, open, origin, reach, unreach,
    update,
};
use evpn::{
    CannotRefresh, Direction, HistoryEntry, Lost, LostBy, MaxRoutes, MessageKind, OverLimit,
    PeerConfig, Refused, Role, SessionState, StopKind,
};
use rustbgpd_wire as wire;
use std::net::IpAddr;
use std::time::Duration;
use wire::{Capability, Message, RouteRefreshSubtype};

fn reflector() -> Bench {
    Bench::new(config("10.0.0.101".parse().unwrap(), Role::Reflector))
}

fn macs(numbers: impl IntoIterator<Item = u8>) -> Vec<u8> {
    let routes = numbers.into_iter().flat_map(|n| mac_route(1, n, 100));
    update(&[
        reach(&[10, 0, 0, 1], &routes.collect::<Vec<u8>>()),
        origin(),
        as_path(),
        communities(100),
    ])
}

fn gone(numbers: impl IntoIterator<Item = u8>) -> Vec<u8> {
    let routes = numbers.into_iter().flat_map(|n| mac_route(1, n, 0));
    update(&[unreach(&routes.collect::<Vec<u8>>())])
}

/// Lets the time pass in steps in which these peers are heard.
fn pass(bench: &mut Bench, secs: u64, alive: &[IpAddr]) {
    for _ in 0..secs {
        bench.now += Duration::from_secs(1);
        for peer in alive {
            bench.send(*peer, &Message::Keepalive);
        }
        bench.speaker.handle_timeout(bench.now);
        bench.drain();
    }
}

fn refreshes(bench: &mut Bench, peer: IpAddr) -> usize {
    let messages = bench.received.remove(&peer).unwrap_or_default();
    let asked = |m: &&Message| matches!(m, Message::RouteRefresh(r) if r.subtype() == RouteRefreshSubtype::Normal);
    messages.iter().filter(asked).count()
}

#[test]
fn beyond_its_limit_a_peer_gets_no_new_routes_in_and_keeps_its_session() {
    let mut bench = reflector();
    let limited = PeerConfig {
        max_routes: Some(MaxRoutes::new(10)),
        ..PeerConfig::CLIENT
    };
    let wild = bench.peer("10.0.0.1", limited);
    let other = bench.peer("10.0.0.2", PeerConfig::CLIENT);
    bench.send_raw(wild, &macs(0..7));
    assert_eq!(bench.reports(), Vec::<String>::new());
    bench.send_raw(wild, &macs(7..8));
    assert_eq!(
        bench.reports(),
        ["ManyRoutes { peer: 10.0.0.1, held: 8, limit: 10, over: false }"]
    );
    bench.send_raw(wild, &macs(8..30));
    bench.send_raw(wild, &macs(30..40));
    assert_eq!(
        bench.reports(),
        ["ManyRoutes { peer: 10.0.0.1, held: 10, limit: 10, over: true }"],
        "once, not each time"
    );
    let info = bench.info(wild);
    assert_eq!(info.state, SessionState::Established);
    assert_eq!((info.routes, info.counters.routes_refused), (10, 30));
    let advice = info.advice.unwrap();
    assert_eq!(
        advice.problem,
        "10.0.0.1 announces more than the 10 routes that it may; 30 were not taken"
    );
    // What is held can change, and be withdrawn; nobody else is limited.
    bench.send_raw(wild, &macs(0..10));
    assert_eq!(bench.info(wild).counters.routes_refused, 30);
    bench.send_raw(other, &macs(100..150));
    assert_eq!(bench.info(other).routes, 50);
    assert_eq!(refreshes(&mut bench, wild), 0);
    bench.send_raw(wild, &gone(0..3));
    assert_eq!(bench.info(wild).routes, 7);
    assert_eq!(
        refreshes(&mut bench, wild),
        1,
        "asked for what was not taken"
    );
    assert_eq!(bench.info(wild).advice, None);
}

#[test]
fn beyond_its_limit_a_session_ends_if_so_set_and_comes_back_later() {
    let mut bench = reflector();
    let restart = Duration::from_secs(300);
    let limited = PeerConfig {
        max_routes: Some(MaxRoutes {
            then: OverLimit::Cease { restart },
            ..MaxRoutes::new(10)
        }),
        ..PeerConfig::CLIENT
    };
    let wild = bench.peer("10.0.0.1", limited);
    let other = bench.peer("10.0.0.2", PeerConfig::CLIENT);
    bench.send_raw(other, &macs(100..120));
    bench.send_raw(wild, &macs(0..11));
    let messages = bench.received.remove(&wild).unwrap();
    let Some(Message::Notification(cease)) = messages.last() else {
        panic!("{messages:?}");
    };
    // RFC 4486 §4: the family and the limit.
    assert_eq!((cease.code.as_u8(), cease.subcode), (6, 1));
    assert_eq!(cease.data[..], [0, 25, 70, 0, 0, 0, 10]);
    assert_eq!(bench.closed, [wild]);
    let refused = bench.speaker.handle_accepted(bench.now, wild).unwrap_err();
    assert_eq!(refused, Refused::HeldOff(wild));
    assert_eq!(
        bench.info(wild).advice.unwrap().problem,
        "10.0.0.1 announced more routes than it may; no session for another 300 s"
    );
    pass(&mut bench, 301, &[other]);
    let info = bench.info(other);
    assert_eq!((info.routes, info.counters.sessions), (20, 1));
    let wild = bench.peer("10.0.0.1", limited);
    bench.send_raw(wild, &macs(0..5));
    assert_eq!(bench.info(wild).routes, 5);
}

#[test]
fn a_limit_that_is_changed_needs_no_new_session() {
    let mut bench = reflector();
    let client = bench.peer("10.0.0.1", PeerConfig::CLIENT);
    bench.send_raw(client, &macs(0..20));
    let limited = PeerConfig {
        max_routes: Some(MaxRoutes::new(10)),
        connect: evpn::ConnectMode::Passive,
        ..PeerConfig::CLIENT
    };
    let peers = [(client, limited)].into_iter().collect();
    bench.speaker.set_peers(bench.now, peers);
    bench.send_raw(client, &macs(20..21));
    let info = bench.info(client);
    assert_eq!((info.routes, info.counters.sessions), (20, 1));
    assert_eq!(info.state, SessionState::Established);
}

#[test]
fn a_peer_that_is_asked_tells_everything_again_and_nothing_flaps() {
    let address: IpAddr = "10.0.0.3".parse().unwrap();
    let mut bench = Bench::new(config(address, Role::Vtep));
    let mut state = evpn::LocalState::empty(address);
    let mut evi = evpn::LocalEvi::new(model::Encoding::VlanBased, 1);
    evi.domains.insert(None);
    state.evis.insert(common::vni(100), evi);
    bench.speaker.set_local(bench.now, state).unwrap();
    let rr = bench.peer("10.0.0.101", PeerConfig::REFLECTOR);
    let mut imet = vec![3, 17, 0, 1, 10, 0, 0, 1, 0, 1, 0, 0, 0, 0, 32];
    imet.extend([10, 0, 0, 1]);
    let pmsi = attribute(0xc0, 22, &[0, 6, 0, 0, 100, 10, 0, 0, 1]);
    let flood = update(&[
        reach(&[10, 0, 0, 1], &imet),
        origin(),
        as_path(),
        communities(100),
        pmsi,
    ]);
    bench.send_raw(rr, &flood);
    bench.send_raw(rr, &macs([1, 2]));
    let before = bench.speaker.forwarding_version();
    bench.received.clear();
    bench.speaker.refresh(bench.now, rr).unwrap();
    bench.drain();
    assert_eq!(refreshes(&mut bench, rr), 1);
    // RFC 7313 §4.2: between the marks all is told again, but for one MAC.
    let mark = |subtype: u8| message(5, &[0, 25, subtype, 70]);
    bench.send_raw(rr, &mark(1));
    assert_eq!(bench.info(rr).stale, 3);
    bench.send_raw(rr, &flood);
    bench.send_raw(rr, &macs([1]));
    assert_eq!(bench.info(rr).stale, 1);
    assert_eq!(bench.speaker.forwarding_version(), before, "no row moved");
    bench.send_raw(rr, &mark(2));
    let rows = &bench.speaker.forwarding().evis[&common::vni(100)];
    assert_eq!((rows.flood.len(), rows.macs.len()), (1, 1), "{rows:?}");
    assert_eq!(bench.info(rr).counters.sessions, 1);

    let plain = bench.peer_with("10.0.0.102", PeerConfig::REFLECTOR, |capability| {
        !matches!(capability, Capability::RouteRefresh)
    });
    let error = bench.speaker.refresh(bench.now, plain).unwrap_err();
    assert_eq!(error, CannotRefresh::NotAble(plain));
    let stranger = "10.0.0.77".parse().unwrap();
    let error = bench.speaker.refresh(bench.now, stranger).unwrap_err();
    assert_eq!(error, CannotRefresh::NotAPeer(stranger));
}

#[test]
fn a_peer_that_never_reads_is_dropped_in_time_and_nobody_else() {
    let mut bench = reflector();
    let deaf = bench.peer("10.0.0.1", PeerConfig::CLIENT);
    let slow = bench.peer("10.0.0.2", PeerConfig::CLIENT);
    let good = bench.peer("10.0.0.3", PeerConfig::CLIENT);
    let all = [deaf, slow, good];
    for peer in [deaf, slow] {
        let conn = bench.conn(peer);
        bench.speaker.handle_progress(bench.now, conn, true);
    }
    pass(&mut bench, 10, &all);
    assert_eq!(
        bench.info(deaf).advice.unwrap().problem,
        "10.0.0.1 has read nothing for 10 s"
    );
    pass(&mut bench, 30, &all);
    // The slow one takes a little.
    let conn = bench.conn(slow);
    bench.speaker.handle_progress(bench.now, conn, true);
    pass(&mut bench, 19, &all);
    assert_eq!(bench.info(deaf).state, SessionState::Established);
    pass(&mut bench, 1, &all);
    assert_eq!(bench.closed, [deaf]);
    let info = bench.info(deaf);
    assert_eq!(
        info.last_error.as_deref(),
        Some("sent NOTIFICATION: Send Hold Timer Expired")
    );
    assert_eq!(info.advice.unwrap().problem, "10.0.0.1 stopped reading");
    let conn = bench.conn(slow);
    bench.speaker.handle_progress(bench.now, conn, false);
    pass(&mut bench, 200, &[slow, good]);
    for peer in [slow, good] {
        assert_eq!(bench.info(peer).counters.sessions, 1);
        assert_eq!(bench.info(peer).state, SessionState::Established);
    }
}

#[test]
fn what_operators_write_when_they_stop_a_speaker_is_heard() {
    // Hard Reset with the reason inside, or the reason itself where the peer knows no other.
    for (graceful, codes) in [(true, (6, 9)), (false, (6, 2))] {
        let mut bench = reflector();
        let has = |capability: &Capability| {
            graceful || !matches!(capability, Capability::GracefulRestart { .. })
        };
        let peer = bench.peer_with("10.0.0.1", PeerConfig::CLIENT, has);
        let text = "rack 7 moves to the other hall";
        bench
            .speaker
            .stop_saying(bench.now, StopKind::Withdraw, text);
        bench.drain();
        let messages = bench.received.remove(&peer).unwrap();
        let Some(Message::Notification(said)) = messages.last() else {
            panic!("{messages:?}");
        };
        assert_eq!((said.code.as_u8(), said.subcode), codes);
        // And the other way round.
        let mut other = reflector();
        let from = other.peer_with("10.0.0.1", PeerConfig::CLIENT, has);
        other.send(from, messages.last().unwrap());
        let info = other.info(from);
        let error = info.last_error.unwrap();
        assert!(
            error.contains("Administrative Shutdown") && error.contains(text),
            "{error}"
        );
        assert_eq!(
            info.advice.unwrap().problem,
            format!("10.0.0.1 was shut down by its operator: {text:?}")
        );
    }
}

#[test]
fn history_tells_what_was_said() {
    let mut bench = reflector();
    let peer = bench.peer("10.0.0.1", PeerConfig::CLIENT);
    bench.send_raw(peer, &macs(0..9));
    bench.send_raw(peer, &gone(0..2));
    bench.send_raw(peer, &update(&[unreach(&[])]));
    let mut short = mac_route(1, 77, 100);
    (short[1], _) = (20, short.truncate(22));
    let faulty = update(&[
        reach(&[10, 0, 0, 1], &[short, mac_route(1, 78, 100)].concat()),
        origin(),
        as_path(),
        communities(100),
        attribute(0xc0, 7, &[1]),
    ]);
    bench.send_raw(peer, &faulty);
    bench.send_raw(peer, &message(9, &[]));
    bench.now += Duration::from_secs(5);
    let line = |entry: &HistoryEntry| {
        let who = match entry.direction {
            Direction::Received => "<",
            Direction::Sent => ">",
        };
        format!(
            "{who} {:?} x{} {}",
            entry.kind, entry.messages, entry.summary
        )
    };
    let entries = bench.speaker.history(bench.now, peer).unwrap();
    let mut lines: Vec<String> = entries.iter().map(line).collect();
    lines.sort();
    assert_eq!(
        lines,
        [
            "< Open x1 AS 65000, router id 10.0.0.1, hold time 9 s; EVPN; graceful restart 60 s, \
             EVPN kept; route refresh; enhanced route refresh",
            "< Update x1 1 announced, type-2 route of 20 octets: dropped; AGGREGATOR is malformed: \
             dropped",
            "< Update x3 9 announced, 2 withdrawn",
            "> Notification x1 Bad Message Type",
            "> Open x1 AS 65000, router id 10.0.0.101, hold time 9 s; EVPN; route target constraint; graceful restart 120 s, \
             EVPN kept, restarting; route refresh; enhanced route refresh; extended messages; \
             long-lived 0 s",
            "> Update x1 End-of-RIB",
        ]
    );
    assert!(entries.iter().all(|e| e.age == Duration::from_secs(5)));
    let counters = bench.info(peer).counters;
    let (received, sent) = (counters.received, counters.sent);
    assert_eq!((received.opens, received.updates), (1, 4));
    assert_eq!((received.keepalives, received.notifications), (1, 0));
    assert_eq!((sent.opens, sent.keepalives, sent.notifications), (1, 1, 1));
    assert_eq!(counters.attributes_discarded, 1);
    assert_eq!(counters.routes_discarded, 1);
}

#[test]
fn history_is_bounded_and_chatter_does_not_push_out_what_matters() {
    let mut bench = reflector();
    let peer = bench.peer("10.0.0.1", PeerConfig::CLIENT);
    for n in 0..500_u32 {
        bench.now += Duration::from_millis(1500);
        bench.send_raw(peer, &macs([(n % 200) as u8]));
        bench.send(peer, &Message::Keepalive);
    }
    let entries = bench.speaker.history(bench.now, peer).unwrap();
    assert!(entries.len() < 100, "{}", entries.len());
    assert!(entries.iter().any(|e| e.kind == MessageKind::Open));
    for _ in 0..500 {
        bench.send_raw(peer, &message(5, &[0, 25, 0, 70]));
    }
    let entries = bench.speaker.history(bench.now, peer).unwrap();
    assert!(entries.len() <= 96, "{}", entries.len());
}

/// A peer whose OPEN was changed, and what people are told at our end.
fn opened(change: impl Fn(&mut wire::OpenMessage)) -> (Bench, IpAddr) {
    let mut bench = reflector();
    let peer = bench.connect("10.0.0.1", PeerConfig::CLIENT);
    let mut said = open("10.0.0.1".parse().unwrap());
    change(&mut said);
    bench.send(peer, &Message::Open(said));
    (bench, peer)
}

fn problem(bench: &Bench, peer: IpAddr) -> String {
    let info = bench.info(peer);
    let advice = info.advice.clone();
    let advice = advice.unwrap_or_else(|| panic!("nothing to say of {info:#?}"));
    assert!(!advice.remedy.is_empty());
    advice.problem
}

#[test]
fn each_misconfiguration_is_told_in_plain_words() {
    let (bench, peer) = opened(|open| {
        open.my_as = 65001;
        open.capabilities
            .retain(|c| !matches!(c, Capability::FourOctetAs { .. }));
    });
    assert_eq!(
        problem(&bench, peer),
        "10.0.0.1 is in AS 65001; this fabric's is 65000"
    );
    let (bench, peer) = opened(|open| open.bgp_identifier = "10.0.0.101".parse().unwrap());
    assert_eq!(
        problem(&bench, peer),
        "10.0.0.1 has a BGP router id that it cannot have: 0.0.0.0, or 10.0.0.101, which is this \
         speaker's"
    );
    let (bench, peer) = opened(|open| open.bgp_identifier = "0.0.0.0".parse().unwrap());
    assert!(problem(&bench, peer).contains("router id that it cannot have"));
    let (bench, peer) = opened(|open| {
        open.capabilities
            .retain(|c| !matches!(c, Capability::MultiProtocol { .. }));
    });
    assert_eq!(problem(&bench, peer), "10.0.0.1 does not do EVPN");

    // From the other side.
    for (code, subcode, said) in [
        (2, 2, "10.0.0.1 expects this host in another AS than 65000"),
        (
            2,
            3,
            "10.0.0.1 does not take this speaker's BGP router id 10.0.0.101",
        ),
        (2, 7, "10.0.0.1 does not take this session's capabilities"),
        (
            4,
            0,
            "10.0.0.1 heard nothing of this host for its hold time",
        ),
        (
            6,
            1,
            "10.0.0.1 takes no more routes from this host: its limit is reached",
        ),
        (6, 3, "10.0.0.1 has taken this host off its list"),
        (6, 5, "10.0.0.1 does not take sessions with this host"),
        (6, 8, "10.0.0.1 is out of memory or other resources"),
        (
            8,
            0,
            "10.0.0.1 could not get rid of its messages: this speaker stopped reading",
        ),
    ] {
        let mut bench = reflector();
        let peer = bench.connect("10.0.0.1", PeerConfig::CLIENT);
        bench.send_raw(peer, &message(3, &[code, subcode]));
        assert_eq!(problem(&bench, peer), said);
    }

    // Connections that are not made, or break.
    for (by, said) in [
        (LostBy::NoAnswer, "no answer from 10.0.0.1"),
        (
            LostBy::TooFar,
            "what 10.0.0.1 sends comes with a TTL below 255, and GTSM is on here",
        ),
        (LostBy::Refused, "10.0.0.1 refuses connections"),
        (LostBy::Unreachable, "there is no way to 10.0.0.1: it broke"),
        (
            LostBy::ClosedByPeer,
            "10.0.0.1 closes the connection without a word",
        ),
        (
            LostBy::Here,
            "this host cannot connect to 10.0.0.1: it broke",
        ),
        (LostBy::Other, "the connection to 10.0.0.1 broke: it broke"),
    ] {
        let mut bench = reflector();
        let peer = bench.connect("10.0.0.1", PeerConfig::CLIENT);
        let text = "it broke".to_owned();
        let conn = bench.conn(peer);
        bench
            .speaker
            .handle_disconnected(bench.now, conn, Lost { by, text });
        assert_eq!(problem(&bench, peer), said);
    }

    // Heard of once, and no more; never heard at all.
    let mut bench = reflector();
    let peer = bench.peer("10.0.0.1", PeerConfig::CLIENT);
    assert_eq!(bench.info(peer).advice, None);
    pass(&mut bench, 9, &[]);
    assert_eq!(
        problem(&bench, peer),
        "nothing was heard of 10.0.0.1 for the hold time (9 s here)"
    );
    let mut bench = reflector();
    let peer = bench.connect("10.0.0.1", PeerConfig::CLIENT);
    pass(&mut bench, 21, &[]);
    assert_eq!(
        problem(&bench, peer),
        "10.0.0.1 connected and was never heard"
    );
}

#[test]
fn two_hosts_with_one_router_id_are_told_of() {
    let mut bench = reflector();
    let first = bench.peer("10.0.0.1", PeerConfig::CLIENT);
    let second = bench.connect("10.0.0.2", PeerConfig::CLIENT);
    bench.send(second, &Message::Open(open("10.0.0.1".parse().unwrap())));
    bench.send(second, &Message::Keepalive);
    assert_eq!(
        bench.reports(),
        ["SameRouterId { peer: 10.0.0.2, other: 10.0.0.1, router_id: 10.0.0.1 }"]
    );
    for (peer, other) in [(first, second), (second, first)] {
        assert_eq!(
            problem(&bench, peer),
            format!("{peer} and {other} have the same BGP router id 10.0.0.1")
        );
    }
}
