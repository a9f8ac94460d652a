//! Single messages and their consequences: what is announced, reflected, taken in, survived.

#![allow(clippy::unwrap_used, reason = "a helper that panics fails its test")]

mod common;

use common::fake::split;
use common::fake::{
    Bench, as_path, attribute, communities, mac_route, message, origin, reach, unreach, update,
};
use common::{config, vni};
use evpn::{
    LocalEvi, LocalMac, LocalState, PeerConfig, Role, RouteTarget, RouteTargets, SessionState,
};
use model::{Encoding, MacAddr};
use rustbgpd_wire as wire;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;
use wire::{
    EvpnRoute, ExtendedCommunity, Message, MpReachNlri, PathAttribute, RouteRefreshSubtype,
};

const NEXT_HOP: [u8; 4] = [10, 0, 0, 1];

fn reflector() -> Bench {
    Bench::new(config("10.0.0.101".parse().unwrap(), Role::Reflector))
}

/// A VTEP 10.0.0.3 that uses VNI 100.
fn vtep() -> Bench {
    let address: IpAddr = "10.0.0.3".parse().unwrap();
    let mut bench = Bench::new(config(address, Role::Vtep));
    let mut state = LocalState::empty(address);
    let mut evi = LocalEvi::new(Encoding::VlanBased, 1);
    evi.domains.insert(None);
    state.evis.insert(vni(100), evi);
    bench.speaker.set_local(bench.now, state).unwrap();
    bench
}

fn good(routes: &[u8]) -> Vec<u8> {
    update(&[
        reach(&NEXT_HOP, routes),
        origin(),
        as_path(),
        communities(100),
    ])
}

fn macs(bench: &Bench) -> usize {
    let rows = bench.speaker.forwarding();
    rows.evis.get(&vni(100)).map_or(0, |evi| evi.macs.len())
}

fn reach_of(list: &[PathAttribute]) -> &MpReachNlri {
    list.iter()
        .find_map(|attribute| match attribute {
            PathAttribute::MpReachNlri(reach) => Some(&**reach),
            _ => None,
        })
        .unwrap_or_else(|| panic!("routes in {list:?}"))
}

#[test]
fn what_a_vtep_announces() {
    let address: IpAddr = "10.0.0.3".parse().unwrap();
    let mut bench = Bench::new(config(address, Role::Vtep));
    let rr = bench.peer("10.0.0.101", PeerConfig::REFLECTOR);
    assert!(bench.updates(rr).is_empty());
    let mut state = LocalState::empty(address);
    let mut evi = LocalEvi::new(Encoding::VlanBased, 7);
    evi.domains.insert(None);
    for n in 0..200 {
        let v6 = format!("fd00::{:x}", n + 1).parse().unwrap();
        let local = LocalMac::with_addresses([IpAddr::from([10, 4, 1, n]), v6]);
        evi.macs.insert((None, MacAddr([2, 0, 0, 0, 0, n])), local);
    }
    state.evis.insert(vni(0x01_86a0), evi);
    bench.speaker.set_local(bench.now, state.clone()).unwrap();
    bench.drain();
    let longest = bench.raw[&rr].iter().map(|bytes| bytes.len()).max();
    assert!(longest <= Some(4096), "{longest:?}");
    let updates = bench.updates(rr);

    // The flood route first, then 600 routes of about 40 octets in messages of 4096.
    let EvpnRoute::Imet(imet) = &reach_of(&updates[0]).evpn_announced[0] else {
        panic!("{:?}", updates[0]);
    };
    assert_eq!(imet.rd.octets(), [0, 1, 10, 0, 0, 3, 0, 7]);
    assert_eq!(imet.originator_ip, address);
    let pmsi = updates[0].iter().find_map(|a| a.pmsi_tunnel()).unwrap();
    assert_eq!(pmsi.tunnel_type, wire::PmsiTunnelType::IngressReplication);
    assert_eq!(pmsi.mpls_label, 0x01_86a0);
    let tunnel = wire::PmsiTunnelIdentifier::Ipv4(Ipv4Addr::new(10, 0, 0, 3));
    assert_eq!(pmsi.tunnel_identifier, tunnel);
    let count: usize = updates[1..]
        .iter()
        .map(|u| reach_of(u).evpn_announced.len())
        .sum();
    assert_eq!(count, 600);
    assert!(updates.len() <= 9, "{} UPDATEs", updates.len());
    for list in &updates {
        assert_eq!(reach_of(list).next_hop, address);
        let communities = list.iter().find_map(|a| a.extended_communities()).unwrap();
        let target = ExtendedCommunity::new(0x0002_fde8_0001_86a0);
        let vxlan = ExtendedCommunity::bgp_encapsulation(8);
        assert_eq!(communities, [target, vxlan]);
    }
    for route in updates[1..]
        .iter()
        .flat_map(|u| &reach_of(u).evpn_announced)
    {
        let EvpnRoute::MacIp(route) = route else {
            panic!("{route:?}");
        };
        assert!(route.esi.is_zero() && route.ethernet_tag.0 == 0 && route.label2.is_none());
        assert_eq!(route.label1.as_vni(), 0x01_86a0);
    }

    // The same again says nothing; one MAC less, exactly its three routes.
    bench.speaker.set_local(bench.now, state.clone()).unwrap();
    bench.drain();
    assert!(bench.updates(rr).is_empty());
    let macs = &mut state.evis.get_mut(&vni(0x01_86a0)).unwrap().macs;
    macs.pop_first();
    bench.speaker.set_local(bench.now, state).unwrap();
    bench.drain();
    let [list] = &bench.updates(rr)[..] else {
        panic!("one UPDATE withdraws");
    };
    let [PathAttribute::MpUnreachNlri(unreach)] = &list[..] else {
        panic!("{list:?}");
    };
    assert_eq!(unreach.evpn_withdrawn.len(), 3);
}

#[test]
fn open_says_what_survives_a_restart() {
    let mut bench = vtep();
    let rr = bench.connect("10.0.0.101", PeerConfig::REFLECTOR);
    let Some(Message::Open(open)) = bench.received[&rr].first() else {
        panic!("OPEN comes first");
    };
    let graceful = open.capabilities.iter().find_map(|c| match c {
        wire::Capability::GracefulRestart {
            restart_state,
            notification,
            restart_time,
            families,
        } => Some((
            *restart_state,
            *notification,
            *restart_time,
            families.clone(),
        )),
        _ => None,
    });
    let (restarting, notifications, time, families) = graceful.unwrap();
    assert!(restarting && notifications);
    assert_eq!((time, families.len()), (120, 1));
    assert!(families[0].forwarding_preserved);
    assert_eq!(open.hold_time, 9);
}

#[test]
fn reflection_adds_its_marks_and_changes_nothing_else() {
    let mut bench = reflector();
    let c1 = bench.peer("10.0.0.1", PeerConfig::CLIENT);
    let c2 = bench.peer("10.0.0.2", PeerConfig::CLIENT);
    let other = bench.peer("10.0.0.102", PeerConfig::REFLECTOR);
    let (_, _, _) = (bench.updates(c1), bench.updates(c2), bench.updates(other));
    // An attribute of the future: optional, transitive.
    let future = attribute(0xc0, 200, b"keep me");
    bench.send_raw(
        c1,
        &update(&[
            reach(&NEXT_HOP, &mac_route(1, 1, 100)),
            origin(),
            as_path(),
            communities(100),
            future,
        ]),
    );
    assert!(
        bench.updates(c1).is_empty(),
        "not back to where it came from"
    );
    for to in [c2, other] {
        let [list] = &bench.updates(to)[..] else {
            panic!("one UPDATE to {to}");
        };
        assert_eq!(reach_of(list).next_hop, IpAddr::from(NEXT_HOP));
        let id = Ipv4Addr::new(10, 0, 0, 1);
        let cluster = vec![Ipv4Addr::new(10, 0, 0, 101)];
        assert!(list.contains(&PathAttribute::OriginatorId(id)), "{list:?}");
        assert!(
            list.contains(&PathAttribute::ClusterList(cluster)),
            "{list:?}"
        );
        let kept = list.iter().any(
            |a| matches!(a, PathAttribute::Unknown(raw) if raw.type_code == 200 && &raw.data[..] == b"keep me"),
        );
        assert!(kept, "{list:?}");
    }
    // From a reflector beside us: to clients only, and the marks grow.
    bench.send_raw(
        other,
        &update(&[
            reach(&[10, 0, 0, 9], &mac_route(9, 9, 100)),
            origin(),
            as_path(),
            communities(100),
            attribute(0x80, 9, &[10, 0, 0, 9]),
            attribute(0x80, 10, &[10, 0, 0, 102]),
        ]),
    );
    let [list] = &bench.updates(c2)[..] else {
        panic!("one UPDATE to c2");
    };
    let clusters = [101, 102].map(|n| Ipv4Addr::new(10, 0, 0, n)).to_vec();
    assert!(
        list.contains(&PathAttribute::ClusterList(clusters)),
        "{list:?}"
    );
    assert!(list.contains(&PathAttribute::OriginatorId(Ipv4Addr::new(10, 0, 0, 9))));
    assert!(bench.updates(other).is_empty());
}

#[test]
fn loops_end_here() {
    let mut bench = reflector();
    let c1 = bench.peer("10.0.0.1", PeerConfig::CLIENT);
    let c2 = bench.peer("10.0.0.2", PeerConfig::CLIENT);
    let marks = [
        attribute(0x80, 9, &[10, 0, 0, 101]),
        attribute(0x80, 10, &[10, 0, 0, 7, 10, 0, 0, 101]),
        // AS_PATH with our AS in it.
        attribute(0x40, 2, &[2, 1, 0, 0, 0xfd, 0xe8]),
    ];
    for (n, mark) in (1..).zip(marks) {
        bench.updates(c2);
        let mut list = vec![
            reach(&NEXT_HOP, &mac_route(1, 1, 100)),
            origin(),
            communities(100),
        ];
        if mark[1] != 2 {
            list.push(as_path());
        }
        // It is held already: the looped one takes its place, which is to say none.
        bench.send_raw(c1, &good(&mac_route(1, 1, 100)));
        assert_eq!(bench.updates(c2).len(), 1);
        list.push(mark);
        bench.send_raw(c1, &update(&list));
        assert_eq!(bench.info(c1).counters.loops, n);
        assert_eq!(bench.info(c1).routes, 0);
        assert_eq!(bench.updates(c2).len(), 1, "withdrawn at c2");
    }
}

#[test]
fn routes_of_all_types_are_reflected_octet_for_octet() {
    let mut bench = reflector();
    let c1 = bench.peer("10.0.0.1", PeerConfig::CLIENT);
    let c2 = bench.peer("10.0.0.2", PeerConfig::CLIENT);
    let rd = [0, 1, 10, 0, 0, 1, 0, 1];
    let type1 = [&[1, 25][..], &rd, &[9; 10], &[0, 0, 0, 5], &[0, 0, 100]].concat();
    let type4 = [&[4, 23][..], &rd, &[9; 10], &[32, 10, 0, 0, 1]].concat();
    let type5 = [
        &[5, 34][..],
        &rd,
        &[0; 10],
        &[0; 4],
        &[24, 10, 4, 1, 0, 0, 0, 0, 0, 0, 0, 100],
    ]
    .concat();
    let type6 = [&[6, 20][..], &rd, &[0; 4], &[0, 0, 32, 10, 0, 0, 1, 4]].concat();
    let type11 = [&[11, 12][..], &rd, &[1, 2, 3, 4]].concat();
    let type200 = [&[200, 3][..], &[1, 2, 3]].concat();
    for route in [
        type1,
        type4,
        type5,
        type6,
        type11,
        type200,
        mac_route(1, 1, 100),
    ] {
        bench.updates(c2);
        bench.send_raw(c1, &good(&route));
        let raw = bench.raw.remove(&c2).unwrap_or_default();
        let found = raw
            .iter()
            .any(|m| m.windows(route.len()).any(|w| w == route));
        assert!(found, "{route:?} in {raw:?}");
        assert_eq!(bench.info(c1).routes, 1, "{route:?}");
        // And each is withdrawn by what the peer withdraws.
        bench.send_raw(c1, &update(&[unreach(&route)]));
        assert_eq!(bench.info(c1).routes, 0, "{route:?}");
        let withdrawn = bench.raw.remove(&c2).unwrap_or_default();
        assert_eq!(withdrawn.len(), 1, "{route:?}");
        assert!(
            withdrawn[0].windows(8).any(|w| w
                == &route[2..]
                    .iter()
                    .chain(&[0; 8])
                    .copied()
                    .take(8)
                    .collect::<Vec<_>>()[..])
                || route[0] == 200
        );
        assert_eq!(
            withdrawn[0].len() - 19 - 4 - 4 - 3,
            route.len(),
            "same length"
        );
    }
    assert_eq!(bench.info(c1).counters.routes_discarded, 0);
    assert_eq!(bench.info(c1).state, SessionState::Established);
}

#[test]
fn malformed_attributes_cost_routes_not_the_session() {
    let routes = mac_route(1, 1, 100);
    let cases: [(&str, Vec<Vec<u8>>); 9] = [
        (
            "ORIGIN of two octets",
            vec![attribute(0x40, 1, &[0, 0]), as_path(), communities(100)],
        ),
        (
            "ORIGIN 9",
            vec![attribute(0x40, 1, &[9]), as_path(), communities(100)],
        ),
        ("no ORIGIN", vec![as_path(), communities(100)]),
        ("no AS_PATH", vec![origin(), communities(100)]),
        (
            "AS_PATH cut short",
            vec![
                origin(),
                attribute(0x40, 2, &[2, 3, 0, 0]),
                communities(100),
            ],
        ),
        (
            "communities of 7 octets",
            vec![origin(), as_path(), attribute(0xc0, 16, &[0; 7])],
        ),
        (
            "CLUSTER_LIST of 3 octets",
            vec![
                origin(),
                as_path(),
                communities(100),
                attribute(0x80, 10, &[1, 2, 3]),
            ],
        ),
        (
            "PMSI tunnel of 2 octets",
            vec![
                origin(),
                as_path(),
                communities(100),
                attribute(0xc0, 22, &[0, 6]),
            ],
        ),
        (
            "a length beyond the end",
            vec![origin(), as_path(), vec![0xc0, 16, 200, 0, 2]],
        ),
    ];
    for (what, list) in cases {
        let mut bench = vtep();
        let rr = bench.peer("10.0.0.101", PeerConfig::REFLECTOR);
        bench.send_raw(rr, &good(&routes));
        assert_eq!(macs(&bench), 1, "{what}");
        let mut attributes = vec![reach(&NEXT_HOP, &routes)];
        attributes.extend(list);
        bench.send_raw(rr, &update(&attributes));
        assert_eq!(macs(&bench), 0, "{what}: counts as withdrawn");
        let info = bench.info(rr);
        assert_eq!(info.state, SessionState::Established, "{what}");
        assert_eq!(info.counters.treated_as_withdraw, 1, "{what}");
        bench.send_raw(rr, &good(&routes));
        assert_eq!(macs(&bench), 1, "{what}: the next is taken");
    }
}

#[test]
fn a_malformed_route_does_not_hide_the_next() {
    let mut bench = vtep();
    let rr = bench.peer("10.0.0.101", PeerConfig::REFLECTOR);
    let mut bad_ip = mac_route(1, 7, 100);
    bad_ip[31] = 33;
    let mut bad_mac = mac_route(1, 8, 100);
    bad_mac[24] = 40;
    let short = vec![3, 5, 0, 1, 10, 0, 0];
    let routes = [bad_ip, bad_mac, short, mac_route(1, 9, 100)].concat();
    bench.send_raw(rr, &good(&routes));
    assert_eq!(macs(&bench), 1);
    assert_eq!(bench.info(rr).counters.routes_discarded, 3);
}

#[test]
fn routes_that_cannot_be_told_apart_end_the_session_but_cost_none_held() {
    let routes = mac_route(1, 1, 100);
    let mut overrun = routes.clone();
    overrun[1] = 200;
    let bad = [
        update(&[reach(&NEXT_HOP, &overrun), origin(), as_path()]),
        update(&[
            reach(&NEXT_HOP, &routes),
            reach(&NEXT_HOP, &routes),
            origin(),
            as_path(),
        ]),
        update(&[attribute(0x90, 14, &[0, 25, 70, 200]), origin(), as_path()]),
        message(9, &[1, 2, 3]),
        vec![0; 64],
    ];
    for bytes in bad {
        let mut bench = vtep();
        let rr = bench.peer("10.0.0.101", PeerConfig::REFLECTOR);
        bench.send_raw(rr, &good(&routes));
        bench.send_raw(rr, &bytes);
        assert_eq!(bench.closed, [rr], "{bytes:?}");
        let last = bench.received[&rr].last();
        assert!(matches!(last, Some(Message::Notification(_))), "{last:?}");
        assert_eq!(macs(&bench), 1, "kept for its return: {bytes:?}");
    }
}

#[test]
fn only_routes_of_this_instance_become_rows() {
    let next_hop = |last: u8| [10, 0, 0, last];
    let with = |communities: Vec<u8>, last: u8, route: Vec<u8>| {
        update(&[
            reach(&next_hop(last), &route),
            origin(),
            as_path(),
            communities,
        ])
    };
    let two_targets = {
        let mut value = vec![0x00, 0x02, 0xfd, 0xe8, 0, 0, 0, 77];
        value.extend([0x00, 0x02, 0xfd, 0xe8, 0, 0, 0, 100]);
        attribute(0xc0, 16, &value)
    };
    let mpls_only = {
        let mut value = vec![0x00, 0x02, 0xfd, 0xe8, 0, 0, 0, 100];
        value.extend([0x03, 0x0c, 0, 0, 0, 0, 0, 10]);
        attribute(0xc0, 16, &value)
    };
    let mut tagged = mac_route(1, 1, 100);
    tagged[23] = 5;
    let mut multicast = mac_route(1, 1, 100);
    multicast[25] = 3;
    let cases = [
        (
            "any of several targets",
            1,
            with(two_targets, 1, mac_route(1, 1, 100)),
        ),
        (
            "another instance's target",
            0,
            with(communities(101), 1, mac_route(1, 1, 100)),
        ),
        (
            "another VNI",
            0,
            with(communities(100), 1, mac_route(1, 1, 101)),
        ),
        ("MPLS only", 0, with(mpls_only, 1, mac_route(1, 1, 100))),
        (
            "a tag in an instance without",
            0,
            with(communities(100), 1, tagged),
        ),
        ("a group address", 0, with(communities(100), 1, multicast)),
        (
            "our own route distinguisher",
            0,
            with(communities(100), 1, mac_route(3, 1, 100)),
        ),
        (
            "our own next hop",
            0,
            with(communities(100), 3, mac_route(1, 1, 100)),
        ),
        (
            "a next hop that is none",
            0,
            update(&[
                reach(&[224, 0, 0, 1], &mac_route(1, 1, 100)),
                origin(),
                as_path(),
                communities(100),
            ]),
        ),
    ];
    for (what, rows, bytes) in cases {
        let mut bench = vtep();
        let rr = bench.peer("10.0.0.101", PeerConfig::REFLECTOR);
        bench.send_raw(rr, &bytes);
        assert_eq!(macs(&bench), rows, "{what}");
        assert_eq!(bench.info(rr).routes, 1, "{what}: held all the same");
    }
}

#[test]
fn manual_targets_replace_the_automatic_one() {
    let address: IpAddr = "10.0.0.3".parse().unwrap();
    let mut bench = vtep();
    let rr = bench.peer("10.0.0.101", PeerConfig::REFLECTOR);
    let tell = |bench: &mut Bench, mac: u8, target: u32| {
        let list = [
            reach(&NEXT_HOP, &mac_route(1, mac, 100)),
            origin(),
            as_path(),
            communities(target),
        ];
        bench.send_raw(rr, &update(&list));
    };
    tell(&mut bench, 1, 100);
    tell(&mut bench, 2, 500);
    tell(&mut bench, 3, 600);
    assert_eq!(macs(&bench), 1);
    let mut evi = LocalEvi::new(Encoding::VlanBased, 1);
    evi.domains.insert(None);
    let target = |n| RouteTarget::two_octet_as(65000, n);
    evi.targets = RouteTargets::Manual {
        import: BTreeSet::from([target(500), target(600)]),
        export: BTreeSet::from([target(700)]),
    };
    let mut state = LocalState::empty(address);
    state.evis.insert(vni(100), evi);
    bench.updates(rr);
    bench.speaker.set_local(bench.now, state).unwrap();
    bench.drain();
    let held: Vec<u8> = bench.speaker.forwarding().evis[&vni(100)]
        .macs
        .keys()
        .map(|(_, mac)| mac.0[5])
        .collect();
    assert_eq!(held, [2, 3]);
    let [list] = &bench.updates(rr)[..] else {
        panic!("the flood route is announced with its new target");
    };
    let communities = list.iter().find_map(|a| a.extended_communities()).unwrap();
    assert_eq!(communities[0].route_target(), Some((65000, 700)));
}

#[test]
fn route_refresh_is_answered_between_marks() {
    let mut bench = vtep();
    let rr = bench.peer("10.0.0.101", PeerConfig::REFLECTOR);
    bench.received.clear();
    let (afi, safi) = (wire::Afi::L2Vpn, wire::Safi::Evpn);
    let refresh =
        |kind| Message::RouteRefresh(wire::RouteRefreshMessage::new_with_subtype(afi, safi, kind));
    bench.send(rr, &refresh(RouteRefreshSubtype::Normal));
    let kinds: Vec<_> = bench.received[&rr]
        .iter()
        .map(|message| match message {
            Message::RouteRefresh(refresh) => format!("{:?}", refresh.subtype()),
            Message::Update(_) => "UPDATE".to_owned(),
            other => format!("{other:?}"),
        })
        .collect();
    assert_eq!(kinds, ["BoRR", "UPDATE", "EoRR"]);

    // The other way round: what the peer leaves out between its marks is gone.
    bench.send_raw(rr, &good(&mac_route(1, 1, 100)));
    bench.send_raw(rr, &good(&mac_route(1, 2, 100)));
    bench.send(rr, &refresh(RouteRefreshSubtype::BoRR));
    assert_eq!(macs(&bench), 2);
    bench.send_raw(rr, &good(&mac_route(1, 2, 100)));
    bench.send(rr, &refresh(RouteRefreshSubtype::EoRR));
    assert_eq!(macs(&bench), 1);
}

#[test]
fn a_slow_peer_is_owed_routes_not_messages() {
    let mut bench = reflector();
    let c1 = bench.peer("10.0.0.1", PeerConfig::CLIENT);
    let slow = bench.peer("10.0.0.2", PeerConfig::CLIENT);
    bench.updates(slow);
    let conn = bench.conn(slow);
    bench.speaker.handle_writable(conn, false);
    for _ in 0..100 {
        bench.send_raw(c1, &good(&mac_route(1, 1, 100)));
        bench.send_raw(c1, &update(&[unreach(&mac_route(1, 1, 100))]));
    }
    bench.send_raw(c1, &good(&mac_route(1, 1, 100)));
    assert!(bench.updates(slow).is_empty());
    bench.speaker.handle_writable(conn, true);
    bench.drain();
    let updates = bench.updates(slow);
    assert!(updates.len() <= 2, "{}", updates.len());
    assert_eq!(held_after(&updates).len(), 1);
}

#[test]
fn deadlines_are_kept_while_a_peer_is_slow() {
    let mut bench = reflector();
    let slow = bench.peer("10.0.0.2", PeerConfig::CLIENT);
    bench.received.clear();
    let conn = bench.conn(slow);
    bench.speaker.handle_writable(conn, false);
    bench.now += Duration::from_secs(3);
    bench.speaker.handle_timeout(bench.now);
    bench.drain();
    assert_eq!(bench.received[&slow], [Message::Keepalive]);
}

/// Routes that a peer holds after these UPDATEs.
fn held_after(updates: &[Vec<PathAttribute>]) -> BTreeSet<String> {
    let mut held = BTreeSet::new();
    for attribute in updates.iter().flatten() {
        match attribute {
            PathAttribute::MpReachNlri(reach) => {
                held.extend(
                    reach
                        .evpn_announced
                        .iter()
                        .map(|r| format!("{:?}", r.key())),
                );
            }
            PathAttribute::MpUnreachNlri(unreach) => {
                for route in &unreach.evpn_withdrawn {
                    held.remove(&format!("{:?}", route.key()));
                }
            }
            _ => {}
        }
    }
    held
}

#[test]
fn routes_that_go_while_all_are_told_are_not_left_behind() {
    for again in [false, true] {
        let mut bench = reflector();
        let c1 = bench.peer("10.0.0.1", PeerConfig::CLIENT);
        let route = |n: u16| {
            let [high, low] = n.to_be_bytes();
            let mut route = mac_route(1, low, 100);
            route[29] = high;
            route
        };
        for n in 0..1500 {
            bench.send_raw(c1, &good(&route(n)));
        }
        let slow = bench.connect("10.0.0.2", PeerConfig::CLIENT);
        let conn = bench.conn(slow);
        if !again {
            bench.speaker.handle_writable(conn, false);
        }
        bench.send(
            slow,
            &Message::Open(common::fake::open([10, 0, 0, 2].into())),
        );
        bench.send(slow, &Message::Keepalive);
        if again {
            bench.speaker.handle_writable(conn, false);
            let (afi, safi) = (wire::Afi::L2Vpn, wire::Safi::Evpn);
            let refresh = wire::RouteRefreshMessage::new(afi, safi);
            bench.send(slow, &Message::RouteRefresh(refresh));
        }
        let mut updates = bench.updates(slow);
        // A batch goes out, then the peer is slow again.
        bench.speaker.handle_writable(conn, true);
        for mut first in split(bench.speaker.poll_transmit().unwrap().bytes) {
            let Message::Update(first) = wire::decode_message(&mut first, 4096).unwrap() else {
                panic!("routes come first");
            };
            updates.push(first.parse(true, false, &[]).unwrap().attributes);
        }
        bench.speaker.handle_writable(conn, false);
        for n in [0, 3, 499, 500, 1000, 1499] {
            bench.send_raw(c1, &update(&[unreach(&route(n))]));
        }
        bench.send_raw(c1, &good(&route(2000)));
        bench.speaker.handle_writable(conn, true);
        bench.drain();
        updates.extend(bench.updates(slow));
        let held = held_after(&updates);
        assert_eq!(held.len(), 1495, "again: {again}");
    }
}

#[test]
fn a_vtep_on_an_ipv6_underlay() {
    let (here, there): (IpAddr, IpAddr) = ("fd00::3".parse().unwrap(), "fd00::4".parse().unwrap());
    let state = |vtep: IpAddr, mac: u8| {
        let mut evi = LocalEvi::new(Encoding::VlanBased, 1);
        evi.domains.insert(None);
        let key = (None, MacAddr([2, 0, 0, 0, 0, mac]));
        evi.macs.insert(key, LocalMac::default());
        let mut state = LocalState::empty(vtep);
        state.evis.insert(vni(100), evi);
        state
    };
    let mut one = Bench::new(config("10.0.0.3".parse().unwrap(), Role::Vtep));
    let mut other = Bench::new(config("10.0.0.4".parse().unwrap(), Role::Vtep));
    one.speaker.set_local(one.now, state(here, 3)).unwrap();
    other.speaker.set_local(other.now, state(there, 4)).unwrap();
    let rr = one.peer("10.0.0.101", PeerConfig::REFLECTOR);
    other.peer("10.0.0.101", PeerConfig::REFLECTOR);
    for bytes in one.raw.remove(&rr).unwrap() {
        // Not the handshake.
        if bytes[18] == 2 {
            other.send_raw(rr, &bytes);
        }
    }
    let rows = &other.speaker.forwarding().evis[&vni(100)];
    assert_eq!(rows.flood, BTreeSet::from([(None, here)]));
    let mac = (None, MacAddr([2, 0, 0, 0, 0, 3]));
    assert_eq!(rows.macs.get(&mac), Some(&here));
}

#[test]
fn a_peer_with_a_new_key_makes_its_session_anew_and_keeps_its_routes() {
    let mut bench = vtep();
    let rr = bench.peer("10.0.0.101", PeerConfig::REFLECTOR);
    bench.send_raw(rr, &good(&mac_route(1, 1, 100)));
    bench.received.clear();
    bench.speaker.reset_peer(bench.now, rr, "its key changed");
    bench.drain();
    assert_eq!(bench.closed, [rr]);
    assert!(
        bench.received.is_empty(),
        "no NOTIFICATION: {:?}",
        bench.received
    );
    let info = bench.info(rr);
    assert_eq!((info.state, info.stale), (SessionState::Idle, 1));
    assert_eq!(macs(&bench), 1);
}

#[test]
fn a_mac_that_moves_is_announced_before_it_is_withdrawn() {
    let mut bench = reflector();
    let c1 = bench.peer("10.0.0.1", PeerConfig::CLIENT);
    let c2 = bench.peer("10.0.0.2", PeerConfig::CLIENT);
    let c3 = bench.peer("10.0.0.3", PeerConfig::CLIENT);
    bench.send_raw(c1, &good(&mac_route(1, 1, 100)));
    bench.updates(c3);
    let conns = [c1, c2, c3].map(|peer| bench.conn(peer));
    let all = |bench: &mut Bench, writable| {
        for conn in conns {
            bench.speaker.handle_writable(conn, writable);
        }
    };
    all(&mut bench, false);
    bench.send_raw(c1, &update(&[unreach(&mac_route(1, 1, 100))]));
    bench.send_raw(c2, &good(&mac_route(2, 1, 100)));
    all(&mut bench, true);
    bench.drain();
    let kinds: Vec<u8> = bench
        .updates(c3)
        .iter()
        .map(|list| list[0].type_code())
        .collect();
    assert_eq!(kinds, [14, 15], "MP_REACH_NLRI, then MP_UNREACH_NLRI");
}

/// FRR 8.4 withdraws what a VTEP told it when that one's session drops.
#[test]
fn what_such_a_reflector_takes_back_may_come_again() {
    let no_graceful = |c: &wire::Capability| !matches!(c, wire::Capability::GracefulRestart { .. });
    let mut bench = vtep();
    let rr = bench.peer_with("10.0.0.101", PeerConfig::REFLECTOR, no_graceful);
    let passes = |bench: &mut Bench, time: Duration| {
        bench.now += time;
        bench.speaker.handle_timeout(bench.now);
        bench.drain();
    };
    let route = mac_route(1, 1, 100);
    bench.send_raw(rr, &good(&route));
    assert_eq!(macs(&bench), 1);
    bench.send_raw(rr, &update(&[unreach(&route)]));
    assert_eq!(macs(&bench), 1);
    // It says it again: nothing happened.
    bench.send_raw(rr, &good(&route));
    passes(&mut bench, Duration::from_secs(1));
    assert_eq!((macs(&bench), bench.info(rr).stale), (1, 0));
    // It does not.
    bench.send_raw(rr, &update(&[unreach(&route)]));
    passes(&mut bench, Duration::from_millis(499));
    assert_eq!(macs(&bench), 1);
    passes(&mut bench, Duration::from_millis(1));
    assert_eq!((macs(&bench), bench.info(rr).routes), (0, 0));
    // One that keeps routes over a restart means what it says.
    let mut bench = vtep();
    let rr = bench.peer("10.0.0.101", PeerConfig::REFLECTOR);
    bench.send_raw(rr, &good(&route));
    bench.send_raw(rr, &update(&[unreach(&route)]));
    assert_eq!(macs(&bench), 0);
}

/// A peer that negotiated no graceful restart: FRR 8.4 is such a one.
#[test]
fn without_graceful_restart_only_reflectors_are_waited_for() {
    let no_graceful = |c: &wire::Capability| !matches!(c, wire::Capability::GracefulRestart { .. });
    let lost = |config: PeerConfig, role: Role| {
        let mut bench = Bench::new(evpn::Config {
            role,
            ..vtep().speaker.config().clone()
        });
        let state = LocalState::empty("10.0.0.3".parse().unwrap());
        if role.is_vtep() {
            bench.speaker.set_local(bench.now, state).unwrap();
        }
        let peer = bench.peer_with("10.0.0.1", config, no_graceful);
        bench.send_raw(peer, &good(&mac_route(1, 1, 100)));
        let conn = bench.conn(peer);
        bench.speaker.handle_disconnected(bench.now, conn, "reset");
        (bench, peer)
    };
    // Its process died: for a moment. It comes back and tells less than before.
    let (mut bench, client) = lost(PeerConfig::CLIENT, Role::Reflector);
    assert_eq!(bench.info(client).stale, 1);
    let id = bench.peer_with("10.0.0.1", PeerConfig::CLIENT, no_graceful);
    bench.send_raw(id, &good(&mac_route(1, 2, 100)));
    let info = bench.info(client);
    assert_eq!((info.routes, info.stale), (2, 1));
    bench.now += Duration::from_secs(5);
    bench.speaker.handle_timeout(bench.now);
    let info = bench.info(client);
    assert_eq!((info.routes, info.stale), (1, 0));
    // It does not come back.
    let (mut bench, client) = lost(PeerConfig::CLIENT, Role::Reflector);
    bench.now += Duration::from_secs(15);
    bench.speaker.handle_timeout(bench.now);
    assert_eq!(bench.info(client).routes, 0);
    let (mut bench, rr) = lost(PeerConfig::REFLECTOR, Role::Vtep);
    assert_eq!(bench.info(rr).stale, 1);

    // It is back, and never says End-of-RIB. Silence for five seconds stands for it.
    let id = bench.peer_with("10.0.0.1", PeerConfig::REFLECTOR, no_graceful);
    bench.now += Duration::from_secs(4);
    bench.send_raw(id, &good(&mac_route(1, 2, 100)));
    bench.now += Duration::from_secs(4);
    bench.speaker.handle_timeout(bench.now);
    bench.drain();
    let info = bench.info(id);
    assert_eq!((info.routes, info.stale, info.synced), (2, 1, false));
    bench.send(id, &Message::Keepalive);
    bench.now += Duration::from_secs(1);
    bench.speaker.handle_timeout(bench.now);
    bench.drain();
    let info = bench.info(id);
    assert_eq!((info.routes, info.stale, info.synced), (2, 1, true));
    // Other VTEPs may take a little to come back to it.
    bench.send(id, &Message::Keepalive);
    bench.now += Duration::from_secs(5);
    bench.speaker.handle_timeout(bench.now);
    bench.send(id, &Message::Keepalive);
    bench.now += Duration::from_secs(5);
    bench.speaker.handle_timeout(bench.now);
    let info = bench.info(id);
    assert_eq!((info.routes, info.stale, info.synced), (1, 0, true));
    assert!(bench.speaker.forwarding().complete);
}

/// A Cease without the N bit is a goodbye, whoever says it.
#[test]
fn a_cease_that_is_no_restart_withdraws_at_once() {
    for (notifications, subcode, kept) in [(true, 2, 1), (true, 9, 0), (false, 2, 0)] {
        let mut bench = vtep();
        let rr = bench.peer_with("10.0.0.101", PeerConfig::REFLECTOR, |c| {
            notifications || !matches!(c, wire::Capability::GracefulRestart { .. })
        });
        bench.send_raw(rr, &good(&mac_route(1, 1, 100)));
        bench.send_raw(rr, &message(3, &[6, subcode]));
        assert_eq!(macs(&bench), kept, "N {notifications}, Cease/{subcode}");
    }
}

#[test]
fn instances_may_exchange_their_route_distinguishers() {
    let address: IpAddr = "10.0.0.3".parse().unwrap();
    let mut bench = vtep();
    let rr = bench.peer("10.0.0.101", PeerConfig::REFLECTOR);
    let state = |indices: [(u32, u16); 2]| {
        let mut state = LocalState::empty(address);
        for (raw, index) in indices {
            let mut evi = LocalEvi::new(Encoding::VlanBased, index);
            evi.domains.insert(None);
            state.evis.insert(vni(raw), evi);
        }
        state
    };
    let mut updates = bench.updates(rr);
    for indices in [
        [(100, 1), (200, 2)],
        [(100, 2), (200, 1)],
        // And an instance that comes takes that of one that goes.
        [(50, 2), (200, 1)],
        [(200, 1), (300, 2)],
    ] {
        bench.speaker.set_local(bench.now, state(indices)).unwrap();
        bench.drain();
        updates.extend(bench.updates(rr));
        assert_eq!(held_after(&updates).len(), 2, "{indices:?}");
        let labels: BTreeSet<(u32, u16)> = bench
            .speaker
            .routes(bench.now)
            .iter()
            .map(|route| {
                let [.., high, low] = route.rd.unwrap().to_bytes();
                (route.label.unwrap(), u16::from_be_bytes([high, low]))
            })
            .collect();
        assert_eq!(labels, BTreeSet::from(indices));
    }
}

/// After a restart the peers may tell everything before the first look at the kernel is over.
#[test]
fn nothing_is_complete_before_the_instances_are_known() {
    let mut bench = Bench::new(vtep().speaker.config().clone());
    let rr = bench.peer("10.0.0.101", PeerConfig::REFLECTOR);
    bench.send_raw(rr, &good(&mac_route(1, 1, 100)));
    bench.send_raw(rr, &update(&[unreach(&[])]));
    assert!(bench.info(rr).synced);
    assert!(!bench.speaker.forwarding().complete);

    let mut state = LocalState::empty("10.0.0.3".parse().unwrap());
    let mut evi = LocalEvi::new(Encoding::VlanBased, 1);
    evi.domains.insert(None);
    state.evis.insert(vni(100), evi);
    bench.speaker.set_local(bench.now, state).unwrap();
    let learned = bench.speaker.forwarding();
    assert!(learned.complete && learned.evis[&vni(100)] != model::EviForwarding::default());
}

/// Standard communities (RFC 1997).
fn standard(values: &[u32]) -> Vec<u8> {
    let octets: Vec<u8> = values.iter().flat_map(|v| v.to_be_bytes()).collect();
    attribute(0xc0, 8, &octets)
}

const LLGR_STALE: u32 = 0xffff_0006;
const NO_LLGR: u32 = 0xffff_0007;
const NO_EXPORT: u32 = 0xffff_ff01;

/// The capability that asks for five minutes.
fn long_lived() -> wire::Capability {
    wire::Capability::LongLivedGracefulRestart(vec![wire::LlgrFamily {
        afi: wire::Afi::L2Vpn,
        safi: wire::Safi::Evpn,
        forwarding_preserved: true,
        stale_time: 300,
    }])
}

#[test]
fn what_is_long_stale_is_said_to_be_and_what_must_not_become_so_goes() {
    let mut bench = reflector();
    let gone = bench.peer_adding("10.0.0.1", PeerConfig::CLIENT, long_lived());
    let knows = bench.peer_adding("10.0.0.2", PeerConfig::CLIENT, long_lived());
    let plain = bench.peer("10.0.0.3", PeerConfig::CLIENT);
    bench.send_raw(gone, &good(&mac_route(1, 1, 100)));
    let refusing = update(&[
        reach(&NEXT_HOP, &mac_route(1, 2, 100)),
        origin(),
        as_path(),
        communities(100),
        standard(&[NO_LLGR]),
    ]);
    bench.send_raw(gone, &refusing);
    for peer in [knows, plain] {
        assert_eq!(held_after(&bench.updates(peer)).len(), 2);
    }
    let conn = bench.conn(gone);
    bench.speaker.handle_disconnected(bench.now, conn, "broken");
    bench.drain();
    for peer in [knows, plain] {
        assert!(bench.updates(peer).is_empty(), "stale is nobody's business");
    }
    // Its restart time of 60 s ends; others' hold timers are none of this test's.
    for _ in 0..31 {
        bench.now += Duration::from_secs(2);
        for peer in [knows, plain] {
            bench.send(peer, &Message::Keepalive);
        }
        bench.speaker.handle_timeout(bench.now);
        bench.drain();
    }
    let tags = |list: &[PathAttribute]| {
        list.iter().find_map(|attribute| match attribute {
            PathAttribute::Communities(list) => Some(list.clone()),
            _ => None,
        })
    };
    for (peer, wanted, preference) in [
        (knows, vec![LLGR_STALE], None),
        (plain, vec![LLGR_STALE, NO_EXPORT], Some(0)),
    ] {
        let updates = bench.updates(peer);
        let announced = updates.iter().find(|list| tags(list).is_some()).unwrap();
        assert_eq!(reach_of(announced).evpn_announced.len(), 1);
        assert_eq!(tags(announced), Some(wanted), "to {peer}");
        let told = announced.iter().find_map(|attribute| match attribute {
            PathAttribute::LocalPref(value) => Some(*value),
            _ => None,
        });
        assert_eq!(told, preference, "to {peer}");
        let withdrawn: usize = updates
            .iter()
            .flatten()
            .filter_map(|attribute| match attribute {
                PathAttribute::MpUnreachNlri(unreach) => Some(unreach.evpn_withdrawn.len()),
                _ => None,
            })
            .sum();
        assert_eq!(withdrawn, 1, "NO_LLGR goes at {peer}");
    }
    let info = bench.info(gone);
    assert_eq!((info.routes, info.stale), (1, 1));
    bench.now += Duration::from_secs(300);
    bench.speaker.handle_timeout(bench.now);
    assert_eq!(bench.info(gone).routes, 0);
}

#[test]
fn a_last_resort_loses_whatever_it_claims() {
    let mut bench = vtep();
    let a = bench.peer("10.0.0.101", PeerConfig::REFLECTOR);
    let b = bench.peer("10.0.0.102", PeerConfig::REFLECTOR);
    let sticky = attribute(
        0xc0,
        16,
        &[
            &[0x00, 0x02, 0xfd, 0xe8, 0, 0, 0, 100][..],
            &[0x06, 0x00, 1, 0, 0, 0, 0, 9],
        ]
        .concat(),
    );
    bench.send_raw(
        a,
        &update(&[
            reach(&[10, 0, 0, 1], &mac_route(1, 1, 100)),
            origin(),
            as_path(),
            sticky,
            standard(&[LLGR_STALE]),
        ]),
    );
    let at = |bench: &Bench| bench.speaker.forwarding().evis[&vni(100)].macs.clone();
    let here = (None, MacAddr([2, 0, 0, 0, 0, 1]));
    assert_eq!(at(&bench)[&here], IpAddr::from([10, 0, 0, 1]));
    // The same route without the community, and another VTEP's that has no sequence at all.
    bench.send_raw(b, &good(&mac_route(1, 1, 100)));
    let routes = bench.speaker.routes(bench.now);
    let lost: Vec<_> = routes.iter().filter_map(|r| r.lost_by).collect();
    assert_eq!(lost, ["long-lived stale"], "{routes:#?}");
    bench.send_raw(b, &update(&[unreach(&mac_route(1, 1, 0))]));
    bench.send_raw(
        b,
        &update(&[
            reach(&[10, 0, 0, 9], &mac_route(9, 1, 100)),
            origin(),
            as_path(),
            communities(100),
        ]),
    );
    assert_eq!(at(&bench)[&here], IpAddr::from([10, 0, 0, 9]));
}
