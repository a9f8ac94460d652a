//! Route target constraint (RFC 4684): a peer is told what it wants, when it wants it.

#![allow(clippy::unwrap_used, reason = "a helper that panics fails its test")]

mod common;

use bytes::Bytes;
use common::fake::{
    Bench, as_path, attribute, communities, mac_route, message, open, origin, reach, unreach,
    update,
};
use common::{config, vni};
use evpn::{LocalEvi, LocalState, PeerConfig, Role, Timing};
use model::Encoding;
use rustbgpd_wire as wire;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;
use wire::rtc::RtcNlri;
use wire::{Afi, Capability, Message, PathAttribute, RouteRefreshSubtype, Safi};

const RTC: [u8; 3] = [0, 1, 132];

fn reflector() -> Bench {
    let address: IpAddr = "10.0.0.101".parse().unwrap();
    Bench::new(config(address, Role::Reflector))
}

/// A peer that does route target constraint, and has not said what it wants.
fn constrained(bench: &mut Bench, address: &str, config: PeerConfig) -> IpAddr {
    let id = bench.connect(address, config);
    let mut open = open(address.parse::<Ipv4Addr>().unwrap());
    let (afi, safi) = (Afi::Ipv4, Safi::RtConstrain);
    let capability = Capability::MultiProtocol { afi, safi };
    open.capabilities.push(capability);
    bench.send(id, &Message::Open(open));
    bench.send(id, &Message::Keepalive);
    id
}

/// A wish for the routes of one instance, as its hosts mark them.
fn wish(vni: u32) -> Vec<u8> {
    let mut octets = vec![96, 0, 0, 0xfd, 0xe8, 0x00, 0x02, 0xfd, 0xe8];
    octets.extend(vni.to_be_bytes());
    octets
}

fn want(wishes: &[u8]) -> Vec<u8> {
    let value = [&RTC[..], &[4, 10, 0, 0, 9, 0], wishes].concat();
    let reach = attribute(0x90, 14, &value);
    update(&[reach, origin(), as_path()])
}

fn unwant(wishes: &[u8]) -> Vec<u8> {
    update(&[attribute(0x90, 15, &[&RTC[..], wishes].concat())])
}

fn announce(bench: &mut Bench, from: IpAddr, mac: u8, vni: u32) {
    let list = [
        reach(&[10, 0, 0, 1], &mac_route(1, mac, vni)),
        origin(),
        as_path(),
        communities(vni),
    ];
    bench.send_raw(from, &update(&list));
}

/// What came to a peer since last asked: MACs with `+` or `-`, and its Ends-of-RIB.
fn heard(bench: &mut Bench, peer: IpAddr) -> Vec<String> {
    bench.raw.remove(&peer);
    let mut heard = vec![];
    for message in bench.received.remove(&peer).unwrap_or_default() {
        let Message::Update(update) = message else {
            continue;
        };
        let list = update.parse(true, false, &[]).unwrap().attributes;
        for attribute in &list {
            match attribute {
                PathAttribute::MpReachNlri(reach) => {
                    heard.extend(reach.evpn_announced.iter().map(|r| text('+', r)));
                    heard.extend(
                        reach
                            .rtc_announced
                            .iter()
                            .map(|wish| format!("wants {wish}")),
                    );
                }
                PathAttribute::MpUnreachNlri(routes) => {
                    heard.extend(routes.evpn_withdrawn.iter().map(|r| text('-', r)));
                    let no = routes.rtc_withdrawn.iter();
                    heard.extend(no.map(|wish| format!("wants no {wish}")));
                    if routes.evpn_withdrawn.is_empty() && routes.rtc_withdrawn.is_empty() {
                        heard.push(format!("end {:?}", routes.safi));
                    }
                }
                _ => {}
            }
        }
    }
    heard
}

fn text(sign: char, route: &wire::EvpnRoute) -> String {
    match route {
        wire::EvpnRoute::MacIp(route) => format!("{sign}{}", route.mac.0[5]),
        wire::EvpnRoute::Imet(_) => format!("{sign}flood"),
        other => format!("{sign}{other:?}"),
    }
}

#[test]
fn a_client_is_told_what_it_wants_when_it_wants_it() {
    let mut bench = reflector();
    let from = bench.peer("10.0.0.1", PeerConfig::CLIENT);
    let all = bench.peer("10.0.0.2", PeerConfig::CLIENT);
    announce(&mut bench, from, 1, 100);
    announce(&mut bench, from, 2, 200);
    bench.send_raw(from, &update(&[unreach(&[])]));
    bench.send_raw(all, &update(&[unreach(&[])]));
    assert_eq!(heard(&mut bench, all), ["+1", "+2", "end Evpn"]);

    let some = constrained(&mut bench, "10.0.0.3", PeerConfig::CLIENT);
    // A reflector wants all of a client. Nothing else before the client said what it wants.
    assert_eq!(
        heard(&mut bench, some),
        ["wants default", "end RtConstrain"]
    );
    bench.send_raw(some, &want(&wish(100)));
    assert!(heard(&mut bench, some).is_empty());
    bench.send_raw(some, &unwant(&[]));
    assert_eq!(heard(&mut bench, some), ["+1", "end Evpn"]);

    // A new VPC: at once, and only its routes.
    bench.send_raw(some, &want(&wish(200)));
    assert_eq!(heard(&mut bench, some), ["+2"]);
    announce(&mut bench, from, 3, 100);
    announce(&mut bench, from, 4, 300);
    assert_eq!(heard(&mut bench, some), ["+3"]);
    // One that is deleted.
    bench.send_raw(some, &unwant(&wish(100)));
    assert_eq!(heard(&mut bench, some), ["-1", "-3"]);
    // A route that changes hands between targets.
    announce(&mut bench, from, 2, 300);
    assert_eq!(heard(&mut bench, some), ["-2"]);
    announce(&mut bench, from, 4, 200);
    assert_eq!(heard(&mut bench, some), ["+4"]);
    // All, by the default route.
    bench.send_raw(some, &want(&[0]));
    assert_eq!(heard(&mut bench, some), ["+1", "+3", "+2"]);
    assert_eq!(heard(&mut bench, all), ["+3", "+4", "+2", "+4"]);
    assert_eq!(bench.info(some).counters.sessions, 1);
}

#[test]
fn a_client_that_does_not_say_what_it_wants_is_waited_for_in_vain_but_not_for_long() {
    let mut bench = reflector();
    let from = bench.peer("10.0.0.1", PeerConfig::CLIENT);
    announce(&mut bench, from, 1, 100);
    announce(&mut bench, from, 2, 200);
    let slow = constrained(&mut bench, "10.0.0.3", PeerConfig::CLIENT);
    bench.send_raw(slow, &want(&wish(200)));
    heard(&mut bench, slow);
    for _ in 0..5 {
        bench.now += Duration::from_secs(2);
        for peer in [from, slow] {
            bench.send_raw(peer, &message(4, &[]));
        }
        assert!(heard(&mut bench, slow).is_empty());
    }
    let due = bench.speaker.poll_timeout().unwrap();
    assert!(due <= bench.now, "a timer ends the wait");
    bench.speaker.handle_timeout(bench.now);
    bench.drain();
    assert_eq!(heard(&mut bench, slow)[0], "+2");
}

#[test]
fn reflectors_tell_each_other_what_their_clients_want() {
    let mut bench = reflector();
    let beside = constrained(&mut bench, "10.0.0.102", PeerConfig::REFLECTOR);
    assert_eq!(heard(&mut bench, beside), ["end RtConstrain"]);
    let client = constrained(&mut bench, "10.0.0.1", PeerConfig::CLIENT);
    bench.send_raw(client, &want(&[wish(100), wish(200)].concat()));
    bench.send_raw(client, &unwant(&[]));
    assert_eq!(
        heard(&mut bench, beside),
        [wish_text(100), wish_text(200)].map(|wish| format!("wants {wish}"))
    );
    bench.send_raw(client, &unwant(&wish(200)));
    let gone = format!("wants no {}", wish_text(200));
    assert_eq!(heard(&mut bench, beside), [gone]);
    // One that does not say gets all, so all is wanted.
    bench.peer("10.0.0.2", PeerConfig::CLIENT);
    let told: BTreeSet<String> = heard(&mut bench, beside).into_iter().collect();
    let expected = [
        "wants default".to_owned(),
        format!("wants no {}", wish_text(100)),
    ];
    assert_eq!(told, BTreeSet::from(expected));
}

fn wish_text(vni: u32) -> String {
    let octets = Bytes::from(wish(vni));
    let wishes: Vec<RtcNlri> = wire::rtc::decode_rtc_nlri(&octets).unwrap();
    wishes[0].to_string()
}

#[test]
fn a_vtep_wants_what_its_instances_import() {
    let address: IpAddr = "10.0.0.3".parse().unwrap();
    let mut bench = Bench::new(config(address, Role::Vtep));
    let mut state = LocalState::empty(address);
    let mut add = |raw: u32, index: u16| {
        let evi = LocalEvi::new(Encoding::VlanBased, index);
        state.evis.insert(vni(raw), evi);
        state.clone()
    };
    let (one, both) = (add(100, 1), add(200, 2));
    // Before it knows its instances it cannot do without anything.
    let rr = constrained(&mut bench, "10.0.0.101", PeerConfig::REFLECTOR);
    assert_eq!(heard(&mut bench, rr), ["wants default", "end RtConstrain"]);
    bench.speaker.set_local(bench.now, one).unwrap();
    bench.drain();
    // Both automatic forms of its target (RFC 8365 §5.1.2.1 has the top bits set).
    let rfc8365 = |vni: u32| 0x1000_0000 | vni;
    let wants = |vni| format!("wants {}", wish_text(vni));
    let no = |wish: &str| format!("wants no {wish}");
    let told = [wants(100), wants(rfc8365(100)), no("default")];
    assert_eq!(heard(&mut bench, rr), told);
    bench.speaker.set_local(bench.now, both).unwrap();
    bench.drain();
    assert_eq!(heard(&mut bench, rr), [wants(200), wants(rfc8365(200))]);
    let none = LocalState::empty(address);
    bench.speaker.set_local(bench.now, none).unwrap();
    bench.drain();
    let gone = [100, 200, rfc8365(100), rfc8365(200)];
    let told = gone.map(|vni| no(&wish_text(vni)));
    assert_eq!(heard(&mut bench, rr), told);
}

#[test]
fn what_a_reflector_told_is_not_withdrawn_from_it_when_its_wishes_change() {
    let address: IpAddr = "10.0.0.3".parse().unwrap();
    let mut bench = Bench::new(config(address, Role::Vtep));
    let mut state = LocalState::empty(address);
    let mut evi = LocalEvi::new(Encoding::VlanBased, 1);
    evi.domains.insert(None);
    state.evis.insert(vni(100), evi);
    bench.speaker.set_local(bench.now, state).unwrap();
    let rr = constrained(&mut bench, "10.0.0.101", PeerConfig::REFLECTOR);
    bench.send_raw(rr, &want(&wish(100)));
    bench.send_raw(rr, &unwant(&[]));
    announce(&mut bench, rr, 7, 100);
    heard(&mut bench, rr);
    bench.send_raw(rr, &unwant(&wish(100)));
    assert_eq!(heard(&mut bench, rr), ["-flood"], "its own route alone");
    bench.send_raw(rr, &want(&wish(100)));
    assert_eq!(heard(&mut bench, rr), ["+flood"]);
}

/// A VTEP that has just started, with one instance.
fn starting() -> Bench {
    let address: IpAddr = "10.0.0.3".parse().unwrap();
    let mut bench = Bench::new(config(address, Role::Vtep));
    let mut state = LocalState::empty(address);
    let mut evi = LocalEvi::new(Encoding::VlanBased, 1);
    evi.domains.insert(None);
    state.evis.insert(vni(100), evi);
    bench.speaker.set_local(bench.now, state).unwrap();
    bench
}

fn evpn_ends(bench: &mut Bench, peer: IpAddr) {
    bench.send_raw(peer, &update(&[unreach(&[])]));
}

fn refresh(kind: RouteRefreshSubtype) -> Message {
    let (afi, safi) = (Afi::L2Vpn, Safi::Evpn);
    Message::RouteRefresh(wire::RouteRefreshMessage::new_with_subtype(afi, safi, kind))
}

/// Whether rows that were not told may go, and how often the peer was asked again since last asked.
fn complete_and_asked(bench: &mut Bench, peer: IpAddr) -> (bool, usize) {
    bench.drain();
    let messages = bench.received.remove(&peer).unwrap_or_default();
    let asked = messages
        .iter()
        .filter(|message| **message == refresh(RouteRefreshSubtype::Normal));
    (bench.speaker.forwarding().complete, asked.count())
}

/// As GoBGP 3.10 does to a client that restarts: what it wants has not been read yet, so nothing is
/// sent, and then its end. The routes come when the wishes have been read.
#[test]
fn an_end_before_the_wishes_were_read_does_not_say_that_there_is_nothing() {
    let mut bench = starting();
    let rr = constrained(&mut bench, "10.0.0.101", PeerConfig::REFLECTOR);
    evpn_ends(&mut bench, rr);
    assert_eq!(complete_and_asked(&mut bench, rr), (false, 1));
    announce(&mut bench, rr, 7, 100);
    assert_eq!(complete_and_asked(&mut bench, rr), (false, 0));
    // The answer to the question, which stands behind the wishes.
    announce(&mut bench, rr, 7, 100);
    evpn_ends(&mut bench, rr);
    assert_eq!(complete_and_asked(&mut bench, rr), (true, 0));
    assert_eq!(bench.speaker.forwarding().evis[&vni(100)].macs.len(), 1);
}

#[test]
fn a_peer_that_answers_between_marks_has_told_all_at_the_second() {
    let mut bench = starting();
    let rr = constrained(&mut bench, "10.0.0.101", PeerConfig::REFLECTOR);
    evpn_ends(&mut bench, rr);
    assert_eq!(complete_and_asked(&mut bench, rr), (false, 1));
    bench.send(rr, &refresh(RouteRefreshSubtype::BoRR));
    assert_eq!(complete_and_asked(&mut bench, rr), (false, 0));
    bench.send(rr, &refresh(RouteRefreshSubtype::EoRR));
    assert_eq!(complete_and_asked(&mut bench, rr), (true, 0));
}

#[test]
fn a_peer_that_answers_without_an_end_has_told_all_when_it_is_quiet() {
    let mut bench = starting();
    let rr = constrained(&mut bench, "10.0.0.101", PeerConfig::REFLECTOR);
    evpn_ends(&mut bench, rr);
    assert_eq!(complete_and_asked(&mut bench, rr), (false, 1));
    announce(&mut bench, rr, 7, 100);
    bench.now += Timing::default().quiet;
    bench.speaker.handle_timeout(bench.now);
    assert_eq!(complete_and_asked(&mut bench, rr), (true, 0));
}

/// What it told was wanted, so it knew the wishes; and where nothing is filtered an end is one.
#[test]
fn an_end_that_says_something_is_not_asked_about() {
    let mut bench = starting();
    let rr = constrained(&mut bench, "10.0.0.101", PeerConfig::REFLECTOR);
    announce(&mut bench, rr, 7, 100);
    evpn_ends(&mut bench, rr);
    assert_eq!(complete_and_asked(&mut bench, rr), (true, 0));
    // What is there already does not go with an empty end, so nobody need be asked.
    let other = constrained(&mut bench, "10.0.0.102", PeerConfig::REFLECTOR);
    evpn_ends(&mut bench, other);
    assert_eq!(complete_and_asked(&mut bench, other), (true, 0));

    let mut bench = starting();
    let rr = bench.peer("10.0.0.101", PeerConfig::REFLECTOR);
    evpn_ends(&mut bench, rr);
    assert_eq!(complete_and_asked(&mut bench, rr), (true, 0));
}
