//! A peer that says wrong things, or too much: nobody else is harmed.

use super::sessions::many_routes;
use super::{are_as_before, dumps, everywhere};
use crate::fabric::{C2, C3, Fabric, GUEST, GUEST_ADDRESS, NOBODY, Vpc};
use crate::foreign::{GUEST_LIMIT, asn};
use crate::guest::Second;
use crate::raw::{
    Raw, VXLAN, as_path, attribute, communities, local_pref, message, origin, reach, route, target,
    unreach, update,
};
use crate::{Cell, Column, Row};
use lab::{Ping, wire};
use std::time::Duration;

/// Malformed UPDATEs, and whether a session may go on after it (RFC 7606).
fn malformed(raw: &Raw, vni: u32, asn: u32, mac: &str) -> Vec<(&'static str, Vec<u8>, bool)> {
    let (rd, mac) = (raw.rd(), wire::mac(mac));
    let next_hop = raw.address().octets();
    let good = reach(&next_hop, &raw.mac_route(mac, &[], vni));
    let targets = communities(&[target(asn, vni), VXLAN]);
    let whole = || {
        vec![
            good.clone(),
            origin(),
            as_path(),
            local_pref(),
            targets.clone(),
        ]
    };
    let with = |at: usize, instead: Vec<u8>| {
        let mut list = whole();
        list[at] = instead;
        update(&list)
    };
    let and = |more: Vec<u8>| update(&[whole(), vec![more]].concat());
    let without = |at: usize| {
        let mut list = whole();
        list.remove(at);
        update(&list)
    };
    let nlri = |bad: Vec<u8>| with(0, reach(&next_hop, &bad));
    let two = |parts: &[&[u8]]| nlri(route(2, &[&rd[..], &[0; 14], &parts.concat()].concat()));
    let label = &vni.to_be_bytes()[1..];
    let prefix = |bits: u8, octets: usize| {
        let zero = vec![0; octets];
        let value = [&rd[..], &[0; 14], &[bits], &zero, &zero, label].concat();
        nlri(route(5, &value))
    };
    vec![
        ("ORIGIN is long", with(1, attribute(0x40, 1, &[0, 0])), true),
        ("ORIGIN is empty", with(1, attribute(0x40, 1, &[])), true),
        ("ORIGIN is unknown", with(1, attribute(0x40, 1, &[9])), true),
        (
            "ORIGIN has wrong flags",
            with(1, attribute(0xc0, 1, &[0])),
            true,
        ),
        ("ORIGIN is missing", without(1), true),
        ("ORIGIN is there twice", and(origin()), true),
        (
            "AS_PATH overruns",
            with(2, attribute(0x40, 2, &[2, 9, 0, 0])),
            true,
        ),
        ("AS_PATH is missing", without(2), true),
        (
            "LOCAL_PREF is short",
            with(3, attribute(0x40, 5, &[0, 0, 1])),
            true,
        ),
        ("MED is short", and(attribute(0x80, 4, &[1])), true),
        (
            "AGGREGATOR is short",
            and(attribute(0xc0, 7, &[1, 2, 3])),
            true,
        ),
        (
            "COMMUNITIES are cut",
            and(attribute(0xc0, 8, &[0, 1, 2])),
            true,
        ),
        (
            "ORIGINATOR_ID is long",
            and(attribute(0x80, 9, &[1, 2, 3, 4, 5])),
            true,
        ),
        (
            "CLUSTER_LIST is cut",
            and(attribute(0x80, 10, &[1, 2, 3])),
            true,
        ),
        (
            "extended communities are cut",
            with(4, attribute(0xc0, 16, &[0, 2, 3])),
            true,
        ),
        (
            "PMSI_TUNNEL is short",
            and(attribute(0xc0, 22, &[0, 6])),
            true,
        ),
        (
            "large communities are cut",
            and(attribute(0xc0, 32, &[0; 11])),
            true,
        ),
        (
            "an address of 33 bits",
            two(&[&[48], &mac, &[33], &[10, 4, 1, 1, 1], label]),
            true,
        ),
        (
            "an address of 24 bits",
            two(&[&[48], &mac, &[24], &[10, 4, 1], label]),
            true,
        ),
        ("a MAC of 47 bits", two(&[&[47], &mac, &[0], label]), true),
        ("no label", two(&[&[48], &mac, &[0]]), true),
        ("a route of nothing", nlri(route(2, &[])), true),
        (
            "a flood route without address",
            nlri(route(3, &[&rd[..], &[0; 4]].concat())),
            true,
        ),
        ("a prefix of 33 bits", prefix(33, 4), true),
        ("an IPv6 prefix of 129 bits", prefix(129, 16), true),
        ("a prefix of neither family", prefix(24, 5), true),
        (
            "a withdrawal of nothing",
            update(&[unreach(&route(2, &[]))]),
            true,
        ),
        (
            "the last route overruns",
            nlri([raw.mac_route(mac, &[], vni), vec![2, 200, 1]].concat()),
            false,
        ),
        (
            "a next hop of 5 octets",
            with(0, reach(&[1, 2, 3, 4, 5], &raw.mac_route(mac, &[], vni))),
            false,
        ),
        (
            "attributes longer than the message",
            message(2, &[0, 0, 255, 255, 0x40, 1, 1, 0]),
            false,
        ),
        ("a message of no type", message(77, &[1, 2, 3]), false),
    ]
}

/// What c1 has of the NICs of the two others.
fn behind_others<'a>(two: &'a str, three: &'a str) -> [(&'a str, &'a str); 4] {
    [(NOBODY, C2), (two, C2), (NOBODY, C3), (three, C3)]
}

pub(crate) const E22: Row = Row {
    id: "E22",
    case: "Malformed UPDATEs of each kind: nobody else's session ends, no row of others moves",
    run: |fabric| {
        let vpc = fabric.vpc("e22");
        everywhere(&vpc);
        let (two, three) = (vpc.mac(12), vpc.mac(13));
        let others = behind_others(&two, &three);
        fabric.rows_become("c1", vpc.vni, &others);
        let place = vpc.place("c1", "a11");
        fabric.lab.reaches(&place, &Vpc::ipv4(12));
        let ping = Ping::start(
            &fabric.lab,
            &place,
            &Vpc::ipv4(12),
            Duration::from_millis(10),
        );
        let sessions = fabric.connections();
        let before = dumps(fabric);
        let (vni, asn, mac) = (vpc.label(), asn(&fabric.lab), vpc.mac(21));
        let cases = malformed(&Raw::connect(fabric, GUEST, GUEST_ADDRESS), vni, asn, &mac);
        let (mut ended, mut crashed) = (Vec::new(), Vec::new());
        let ours = matches!(fabric.column, Column::BuiltIn | Column::FrrClient);
        let mut raw = Raw::connect(fabric, GUEST, GUEST_ADDRESS);
        for (case, bytes, goes_on) in &cases {
            raw.says(bytes);
            // It answers what comes behind, or has ended the session.
            raw.asks(fabric);
            if !raw.ended() {
                assert!(*goes_on || !ours, "{case} does not end its session");
                continue;
            }
            if *goes_on {
                ended.push(*case);
            }
            if fabric.reflector_is_dead() {
                crashed.push(*case);
                fabric.start_reflector();
            }
            raw = Raw::connect(fabric, GUEST, GUEST_ADDRESS);
        }
        drop(raw);
        // It can still be a peer like any other.
        let raw = Raw::connect(fabric, GUEST, GUEST_ADDRESS);
        raw.says(&raw.flood(vni, asn));
        raw.says(&raw.announces(vni, asn, &[(&mac, &[])]));
        let all = [
            &others[..],
            &[(NOBODY, GUEST_ADDRESS), (mac.as_str(), GUEST_ADDRESS)],
        ]
        .concat();
        fabric.rows_become("c1", vpc.vni, &all);
        drop(raw);
        fabric.rows_become("c1", vpc.vni, &others);
        are_as_before(fabric, &before);
        let result = ping.stop();
        assert_eq!((result.lost(), result.duplicates), (0, 0), "{result:?}");
        if fabric.column == Column::GobgpReflector && !crashed.is_empty() {
            let log = fabric.reflector_log();
            let panics = log.matches("panic: runtime error").count();
            assert_eq!(panics, crashed.len(), "{crashed:?}: {log}");
            return Cell::NotApplicable(
                "gobgpd 3.10 itself panics, seen in its log: at a Type-3 route without address (index out of range) and at \
                 an empty withdrawal (slice bounds). Rows stay, no ping is lost, sessions come back",
            );
        }
        assert!(
            crashed.is_empty(),
            "the reflector crashes at: {crashed:?}; rows stayed and no ping was lost"
        );
        assert_eq!(
            fabric.connections(),
            sessions,
            "the others' sessions are the same"
        );
        assert!(
            ended.is_empty() || !ours,
            "RFC 7606 keeps the session after: {ended:?}"
        );
        Cell::Pass
    },
};

/// Sets what the reflector takes from the guest; our own has a limit always.
fn limit(fabric: &Fabric, on: bool) {
    let asn = asn(&fabric.lab);
    let no = if on { "" } else { "no " };
    let words = format!(
        "configure terminal\nrouter bgp {asn}\naddress-family l2vpn evpn\n\
         {no}neighbor {GUEST_ADDRESS} maximum-prefix 1000"
    );
    fabric.tell_reflector(&words);
    let running = fabric.tell_reflector("show running-config");
    assert_eq!(running.contains("maximum-prefix"), on, "{running}");
}

/// Our reflector with a low limit, beside the column's.
fn over_our_limit(fabric: &Fabric, vpc: &Vpc<'_>) {
    let second = Second::with_limit(fabric, Some(500));
    fabric.set_reflectors(&[fabric.reflector(), GUEST_ADDRESS]);
    vpc.delete_nic("a13");
    let two = vpc.mac(12);
    fabric.rows_become("c1", vpc.vni, &[(NOBODY, C2), (two.as_str(), C2)]);
    fabric.lab.kill("c3", "agent");
    let raw = Raw::connect_to(fabric, "c3", C3, GUEST_ADDRESS);
    let sessions = fabric.connections();
    let (vni, asn) = (vpc.label(), asn(&fabric.lab));
    // Its first route is among those that it may have.
    let (mine, late, more) = (vpc.mac(21), vpc.mac(22), vpc.mac(14));
    raw.says(&raw.announces(vni, asn, &[(&mine, &[])]));
    fabric.has_rows("c1", vpc.vni, &[(&mine, C3)]);
    many_routes(fabric, &raw, 1_000);
    raw.says(&raw.announces(vni, asn, &[(&late, &[])]));
    let full = fabric.lab.eventually("all that it said was judged", || {
        let peer = second.peer(C3);
        match peer.counters.routes_refused {
            502 => Ok(peer),
            _ => Err(format!("{peer:#?}")),
        }
    });
    assert_eq!(full.routes, 500, "{full:#?}");
    // What it had stays, what came behind the limit does not come, others' routes do.
    vpc.nic("a14", "c2", 14);
    fabric.has_rows("c1", vpc.vni, &[(&mine, C3), (&more, C2)]);
    let rows = fabric.rows("c1", vpc.vni);
    assert!(!rows.iter().any(|(mac, _)| *mac == late), "{rows:?}");
    assert!(!raw.ended(), "its session stays");
    assert_eq!(
        fabric.connections(),
        sessions,
        "the others' sessions are the same"
    );
    drop(raw);
    fabric.lab.start("c3", "agent");
    fabric.set_reflectors(&[fabric.reflector()]);
    second.dies();
}

pub(crate) const E27: Row = Row {
    id: "E27",
    case: "A peer with more routes than it may have: others learn and forward as ever",
    run: |fabric| {
        let vpc = fabric.vpc("e27");
        everywhere(&vpc);
        let (two, three) = (vpc.mac(12), vpc.mac(13));
        let others = behind_others(&two, &three);
        fabric.rows_become("c1", vpc.vni, &others);
        let sessions = fabric.connections();
        match fabric.column {
            Column::BuiltIn | Column::FrrClient => over_our_limit(fabric, &vpc),
            Column::FrrReflector => {
                limit(fabric, true);
                let raw = Raw::connect(fabric, GUEST, GUEST_ADDRESS);
                many_routes(fabric, &raw, 1_100);
                fabric.lab.eventually("FRR has more than it may take", || {
                    let summary = fabric.ask_reflector("show bgp l2vpn evpn summary json");
                    match summary["peers"][GUEST_ADDRESS]["pfxRcd"].as_u64() {
                        Some(taken) if taken > 1_000 => Ok(()),
                        _ if raw.ended() => Ok(()),
                        _ => Err(summary.to_string()),
                    }
                });
                vpc.nic("a14", "c2", 14);
                let more = vpc.mac(14);
                let all = [&others[..], &[(more.as_str(), C2)]].concat();
                fabric.rows_become("c1", vpc.vni, &all);
                limit(fabric, false);
                if !raw.ended() {
                    assert_eq!(fabric.connections(), sessions, "the others' sessions");
                    return Cell::NotApplicable(
                        "FRR 8.4.4 takes maximum-prefix for EVPN and does not act on it; others learn on",
                    );
                }
                assert_eq!(fabric.connections(), sessions, "the others' sessions");
                fabric.tell_reflector(&format!("clear bgp {GUEST_ADDRESS}"));
            }
            Column::GobgpReflector => {
                let raw = Raw::connect(fabric, GUEST, GUEST_ADDRESS);
                many_routes(fabric, &raw, GUEST_LIMIT + 100);
                fabric
                    .lab
                    .eventually("GoBGP ends the session", || match raw.ended() {
                        true => Ok(()),
                        false => Err(fabric.tell_reflector(&format!("neighbor {GUEST_ADDRESS}"))),
                    });
                vpc.nic("a14", "c2", 14);
                let more = vpc.mac(14);
                let all = [&others[..], &[(more.as_str(), C2)]].concat();
                fabric.rows_become("c1", vpc.vni, &all);
                assert_eq!(fabric.connections(), sessions, "the others' sessions");
                fabric.tell_reflector(&format!("neighbor {GUEST_ADDRESS} enable"));
            }
        }
        Cell::Pass
    },
};
