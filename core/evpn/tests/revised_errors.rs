//! RFC 7606, case by case: each attribute that we read and each route type, malformed in each way,
//! and what comes of it. Sessions end only where the RFC demands it.

#![allow(clippy::unwrap_used, reason = "a helper that panics fails its test")]

mod common;

use common::config;
use common::fake::{
    Bench, as_path, attribute, communities, mac_route, origin, reach, unreach, update,
};
use evpn::{PeerConfig, Role, SessionState};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// What an UPDATE comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// As if nothing were wrong.
    Taken,
    /// The attribute is dropped, the routes are taken (RFC 7606 §2, attribute discard).
    Dropped,
    /// The routes it announces count as withdrawn (treat-as-withdraw).
    Withdrawn,
    /// The session ends with this UPDATE error (RFC 4271 §6.3).
    Reset,
}
use Outcome::{Dropped, Reset, Taken, Withdrawn};

/// One attribute: type, flags, a valid value, and what comes of it when it is one octet short, one
/// octet long, has the wrong flags, is there twice, is missing.
struct Row {
    name: &'static str,
    kind: u8,
    flags: u8,
    value: Vec<u8>,
    short: Option<Outcome>,
    long: Outcome,
    flagged: Outcome,
    twice: Outcome,
    missing: Outcome,
}

#[rustfmt::skip]
fn table() -> Vec<Row> {
    let row = |name, kind, flags, value: &[u8], outcomes: (Option<Outcome>, Outcome, Outcome, Outcome, Outcome)| {
        let (short, long, flagged, twice, missing) = outcomes;
        Row { name, kind, flags, value: value.to_vec(), short, long, flagged, twice, missing }
    };
    let w = Some(Withdrawn);
    vec![
        // RFC 7606                                                        short          long       flags      twice    missing
        row("ORIGIN", 1, 0x40, &[0],                                      (w,             Withdrawn, Withdrawn, Dropped, Withdrawn)), // §7.1
        row("AS_PATH", 2, 0x40, &[2, 1, 0, 0, 0xfd, 0xe9],                (w,             Withdrawn, Withdrawn, Dropped, Withdrawn)), // §7.2
        row("NEXT_HOP", 3, 0x40, &[10, 0, 0, 1],                          (w,             Withdrawn, Withdrawn, Dropped, Taken)),     // §7.3
        row("MULTI_EXIT_DISC", 4, 0x80, &[0, 0, 0, 5],                    (w,             Withdrawn, Withdrawn, Dropped, Taken)),     // §7.4
        row("LOCAL_PREF", 5, 0x40, &[0, 0, 0, 100],                       (w,             Withdrawn, Withdrawn, Dropped, Taken)),     // §7.5
        row("ATOMIC_AGGREGATE", 6, 0x40, &[],                             (None,          Dropped,   Withdrawn, Dropped, Taken)),     // §7.6
        row("AGGREGATOR", 7, 0xc0, &[0, 0, 0xfd, 0xe8, 10, 0, 0, 1],      (Some(Dropped), Dropped,   Withdrawn, Dropped, Taken)),     // §7.7
        row("COMMUNITIES", 8, 0xc0, &[0xfd, 0xe8, 0, 1],                  (w,             Withdrawn, Withdrawn, Dropped, Taken)),     // §7.8
        row("ORIGINATOR_ID", 9, 0x80, &[10, 0, 0, 1],                     (w,             Withdrawn, Withdrawn, Dropped, Taken)),     // §7.9
        row("CLUSTER_LIST", 10, 0x80, &[10, 0, 0, 7],                     (w,             Withdrawn, Withdrawn, Dropped, Taken)),     // §7.10
        row("EXTENDED_COMMUNITIES", 16, 0xc0, &[0, 2, 0xfd, 0xe8, 0, 0, 0, 100], (w,      Withdrawn, Withdrawn, Dropped, Taken)),     // §7.14
        // RFC 6514 §5, RFC 8092 §6; they say the same.
        row("PMSI_TUNNEL", 22, 0xc0, &[0, 6, 0, 0, 100, 10, 0, 0, 1],     (w,             Withdrawn, Withdrawn, Dropped, Taken)),
        row("LARGE_COMMUNITIES", 32, 0xc0, &[0, 0, 0xfd, 0xe8, 0, 0, 0, 1, 0, 0, 0, 2], (w, Withdrawn, Withdrawn, Dropped, Taken)),
    ]
}

/// A reflector with a peer that will err, one that does not, and one that looks on.
struct Stage {
    bench: Bench,
    bad: IpAddr,
    good: IpAddr,
}

fn stage() -> Stage {
    let mut bench = Bench::new(config("10.0.0.101".parse().unwrap(), Role::Reflector));
    let bad = bench.peer("10.0.0.1", PeerConfig::CLIENT);
    let good = bench.peer("10.0.0.2", PeerConfig::CLIENT);
    bench.send_raw(bad, &plain(&[1, 2]));
    bench.send_raw(good, &valid_of(2, &[1]));
    Stage { bench, bad, good }
}

fn valid_of(router: u8, macs: &[u8]) -> Vec<u8> {
    update(&[
        reach(&[10, 0, 0, router], &routes(router, macs)),
        origin(),
        as_path(),
        communities(100),
    ])
}

fn plain(macs: &[u8]) -> Vec<u8> {
    valid_of(1, macs)
}

fn routes(router: u8, macs: &[u8]) -> Vec<u8> {
    let route = |mac: &u8| mac_route(router, *mac, 100);
    macs.iter().flat_map(route).collect()
}

impl Stage {
    /// Last octets of the MACs held from the peer.
    fn held(&self) -> BTreeSet<u8> {
        let routes = self.bench.speaker.routes(self.bench.now);
        let of_bad = routes.iter().filter(|r| r.from == Some(self.bad));
        of_bad
            .filter_map(|r| {
                let mac = r.route.split(['[', ']']).nth(7)?;
                u8::from_str_radix(mac.rsplit(':').next()?, 16).ok()
            })
            .collect()
    }

    /// Sends an UPDATE that announces MACs 2 (held before) and 3, and looks at everything.
    fn expect(mut self, case: &str, bytes: &[u8], outcome: Outcome, named: &str) {
        let before = self.bench.info(self.bad).counters;
        self.bench.send_raw(self.bad, bytes);
        let info = self.bench.info(self.bad);
        let counters = info.counters;
        let held = self.held();
        let wanted: &[u8] = match outcome {
            Taken | Dropped => &[1, 2, 3],
            // RFC 8538: an error on a session with the N bit is a restart; what was told stays.
            Withdrawn => &[1],
            Reset => &[1, 2],
        };
        assert_eq!(
            held,
            BTreeSet::from_iter(wanted.iter().copied()),
            "{case}: routes held\n{info:#?}"
        );
        let up = info.state == SessionState::Established;
        assert_eq!(up, outcome != Reset, "{case}: session\n{info:#?}");
        let withdrawn = counters.treated_as_withdraw - before.treated_as_withdraw;
        assert_eq!(withdrawn, u64::from(outcome == Withdrawn), "{case}");
        let dropped = counters.attributes_discarded - before.attributes_discarded;
        assert_eq!(dropped, u64::from(outcome == Dropped), "{case}");
        let history = self
            .bench
            .speaker
            .history(self.bench.now, self.bad)
            .unwrap();
        if matches!(outcome, Dropped | Withdrawn) {
            let told = history.iter().any(|entry| entry.summary.contains(named));
            assert!(
                told,
                "{case}: {named:?} is not in its history\n{history:#?}"
            );
        }
        let good = self.bench.info(self.good);
        assert_eq!(good.state, SessionState::Established, "{case}");
        assert_eq!((good.routes, good.counters.sessions), (1, 1), "{case}");
        if outcome != Reset {
            self.bench.send_raw(self.bad, &plain(&[9]));
            assert!(
                self.held().contains(&9),
                "{case}: the next UPDATE is as good as any"
            );
        }
    }
}

/// An UPDATE of MACs 2 and 3 with all attributes, one of them replaced.
fn with(table: &[Row], kind: u8, instead: &[Vec<u8>]) -> Vec<u8> {
    let mut list = vec![reach(&[10, 0, 0, 1], &routes(1, &[2, 3]))];
    for row in table {
        if row.kind == kind {
            list.extend_from_slice(instead);
        } else {
            list.push(attribute(row.flags, row.kind, &row.value));
        }
    }
    update(&list)
}

#[test]
fn each_attribute_malformed_in_each_way() {
    let table = table();
    let whole = with(&table, 0, &[]);
    stage().expect("nothing wrong", &whole, Taken, "");
    for row in &table {
        let Row {
            name,
            kind,
            flags,
            value,
            ..
        } = row;
        let check = |how: &str, instead: &[Vec<u8>], outcome: Outcome| {
            let bytes = with(&table, *kind, instead);
            stage().expect(&format!("{name} {how}"), &bytes, outcome, name);
        };
        if let Some(outcome) = row.short {
            let short = &value[..value.len() - 1];
            check("short", &[attribute(*flags, *kind, short)], outcome);
        }
        let long = [&value[..], &[0]].concat();
        check("long", &[attribute(*flags, *kind, &long)], row.long);
        let flagged = attribute(flags ^ 0xc0, *kind, value);
        check("with wrong flags", &[flagged], row.flagged);
        let once = attribute(*flags, *kind, value);
        check("twice", &[once.clone(), once], row.twice);
        // What is missing has its own words.
        let bytes = with(&table, *kind, &[]);
        stage().expect(
            &format!("{name} missing"),
            &bytes,
            row.missing,
            "ORIGIN or AS_PATH is missing",
        );
    }
}

#[test]
fn the_attributes_that_carry_routes() {
    let good = reach(&[10, 0, 0, 1], &routes(1, &[2, 3]));
    let rest = [origin(), as_path(), communities(100)];
    let all = |first: &[Vec<u8>]| update(&[first, &rest[..]].concat());
    let cut = |octets: usize| {
        let mut value = good[4..].to_vec();
        value.truncate(value.len() - octets);
        attribute(0x90, 14, &value)
    };
    let value = good[4..].to_vec();
    let long = attribute(0x90, 14, &[&value[..], &[2]].concat());
    let gone = unreach(&routes(1, &[2]));
    for (case, list, outcome) in [
        ("MP_REACH_NLRI", all(std::slice::from_ref(&good)), Taken),
        // §5.3, §7.11: the routes cannot be told apart.
        ("MP_REACH_NLRI short", all(&[cut(1)]), Reset),
        ("MP_REACH_NLRI cut in the next hop", all(&[cut(72)]), Reset),
        ("MP_REACH_NLRI long", all(&[long]), Reset),
        // §7.11: the next hop comes before the routes.
        (
            "next hop of 5 octets",
            all(&[reach(&[10, 0, 0, 1, 0], &routes(1, &[2, 3]))]),
            Reset,
        ),
        (
            "no next hop",
            all(&[reach(&[], &routes(1, &[2, 3]))]),
            Reset,
        ),
        // §3 (c)
        (
            "MP_REACH_NLRI with wrong flags",
            all(&[attribute(0x50, 14, &value)]),
            Withdrawn,
        ),
        // §3 (g)
        (
            "MP_REACH_NLRI twice",
            all(&[good.clone(), good.clone()]),
            Reset,
        ),
        (
            "MP_UNREACH_NLRI twice",
            all(&[gone.clone(), gone.clone(), good.clone()]),
            Reset,
        ),
        (
            "MP_UNREACH_NLRI short",
            all(&[attribute(0x80, 15, &[0, 25, 70, 2, 33, 0])]),
            Reset,
        ),
    ] {
        stage().expect(case, &list, outcome, "MP_REACH_NLRI");
    }

    // Nothing announced and one route withdrawn: nothing is wrong with that, whatever the flags.
    for flags in [0x90, 0x50] {
        let mut stage = stage();
        let gone = attribute(flags, 15, &gone[4..]);
        stage
            .bench
            .send_raw(stage.bad, &all(&[cut(70), gone.clone()]));
        assert_eq!(stage.held(), BTreeSet::from([1]));
        stage.bench.send_raw(stage.bad, &update(&[gone]));
        let info = stage.bench.info(stage.bad);
        assert_eq!(info.state, SessionState::Established);
    }

    // §4: an attribute that is longer than the list, behind routes that were found.
    let mut list = [good, origin(), as_path(), communities(100)].concat();
    list.extend([0xc0, 8, 200, 1, 2]);
    let mut body = vec![0, 0];
    body.extend(u16::try_from(list.len()).unwrap().to_be_bytes());
    body.extend(&list);
    let bytes = common::fake::message(2, &body);
    stage().expect(
        "an attribute overruns",
        &bytes,
        Withdrawn,
        "longer than the message",
    );
}

/// A route as `| type | length | value |`.
fn route(kind: u8, value: &[u8]) -> Vec<u8> {
    let mut out = vec![kind, u8::try_from(value.len()).unwrap()];
    out.extend(value);
    out
}

#[test]
fn a_malformed_route_goes_alone() {
    const RD: [u8; 8] = [0, 1, 10, 0, 0, 1, 0, 1];
    const ESI: [u8; 10] = [0; 10];
    const TAG: [u8; 4] = [0; 4];
    const LABEL: [u8; 3] = [0, 0, 100];
    let mac = [48, 2, 0, 0, 0, 0, 7];
    let two = |parts: &[&[u8]]| route(2, &parts.concat());
    let prefix = |bits: u8, octets: usize| {
        let address = vec![0; octets];
        let parts: [&[u8]; 7] = [&RD, &ESI, &TAG, &[bits], &address, &address, &LABEL];
        route(5, &parts.concat())
    };
    let cases = [
        (
            "MAC of 47 bits",
            two(&[&RD, &ESI, &TAG, &[47, 2, 0, 0, 0, 0, 7], &[0], &LABEL]),
        ),
        ("MAC of 0 bits", two(&[&RD, &ESI, &TAG, &[0], &[0], &LABEL])),
        (
            "MAC of 56 bits",
            two(&[&RD, &ESI, &TAG, &[56, 2, 0, 0, 0, 0, 7, 7], &[0], &LABEL]),
        ),
        (
            "address of 24 bits",
            two(&[&RD, &ESI, &TAG, &mac, &[24, 10, 4, 1], &LABEL]),
        ),
        (
            "address of 33 bits",
            two(&[&RD, &ESI, &TAG, &mac, &[33, 10, 4, 1, 1, 1], &LABEL]),
        ),
        (
            "address of 32 bits, of which 16 are there",
            two(&[&RD, &ESI, &TAG, &mac, &[32, 10, 4], &LABEL]),
        ),
        (
            "address of 128 bits, of which 32 are there",
            two(&[&RD, &ESI, &TAG, &mac, &[128, 10, 4, 1, 1], &LABEL]),
        ),
        ("no label", two(&[&RD, &ESI, &TAG, &mac, &[0]])),
        ("half a label", two(&[&RD, &ESI, &TAG, &mac, &[0], &[0, 0]])),
        (
            "a label and a half",
            two(&[&RD, &ESI, &TAG, &mac, &[0], &LABEL, &[0]]),
        ),
        (
            "three labels",
            two(&[&RD, &ESI, &TAG, &mac, &[0], &LABEL, &LABEL, &LABEL]),
        ),
        (
            "a segment of 12 octets",
            two(&[&RD, &ESI, &[0; 2], &TAG, &mac, &[0], &LABEL]),
        ),
        ("nothing in it", two(&[])),
        ("a distinguisher alone", two(&[&RD])),
        (
            "flood route without address",
            route(3, &[&RD[..], &TAG].concat()),
        ),
        (
            "flood route with an address of 33 bits",
            route(3, &[&RD[..], &TAG, &[33, 10, 0, 0, 1, 0]].concat()),
        ),
        (
            "flood route with an address of 0 bits",
            route(3, &[&RD[..], &TAG, &[0]].concat()),
        ),
        (
            "flood route with an octet too many",
            route(3, &[&RD[..], &TAG, &[32, 10, 0, 0, 1, 9]].concat()),
        ),
        (
            "auto-discovery route that is short",
            route(1, &[&RD[..], &ESI, &TAG, &[0, 0]].concat()),
        ),
        (
            "auto-discovery route that is long",
            route(1, &[&RD[..], &ESI, &TAG, &LABEL, &[0]].concat()),
        ),
        (
            "segment route that is short",
            route(4, &[&RD[..], &ESI, &[32, 10, 0]].concat()),
        ),
        (
            "segment route with an address of 16 bits",
            route(4, &[&RD[..], &ESI, &[16, 10, 0]].concat()),
        ),
        ("prefix of 33 bits", prefix(33, 4)),
        ("prefix of 255 bits", prefix(255, 4)),
        ("IPv6 prefix of 129 bits", prefix(129, 16)),
        ("prefix of neither family", prefix(24, 5)),
        ("prefix that is short", route(5, &RD)),
        (
            "multicast route that is short",
            route(6, &[&RD[..], &TAG, &[32, 10]].concat()),
        ),
    ];
    for (case, bad) in cases {
        // Before, between and behind good ones.
        let before = routes(1, &[2]);
        let behind = routes(1, &[3]);
        let bytes = update(&[
            reach(&[10, 0, 0, 1], &[&before[..], &bad, &behind].concat()),
            origin(),
            as_path(),
            communities(100),
        ]);
        let mut stage = stage();
        stage.bench.send_raw(stage.bad, &bytes);
        let info = stage.bench.info(stage.bad);
        assert_eq!(info.state, SessionState::Established, "{case}");
        assert_eq!(info.counters.routes_discarded, 1, "{case}: {info:#?}");
        assert_eq!(info.routes, 3, "{case}: the others are there");
        assert_eq!(stage.held(), BTreeSet::from([1, 2, 3]), "{case}");
        let history = stage.bench.speaker.history(stage.bench.now, stage.bad);
        let named = format!("type-{} route of {} octets: dropped", bad[0], bad[1]);
        let history = history.unwrap();
        let told = history.iter().any(|entry| entry.summary.contains(&named));
        assert!(told, "{case}: {named:?} is not in {history:#?}");
        // Taken back in the same form: as little.
        stage.bench.send_raw(stage.bad, &update(&[unreach(&bad)]));
        assert_eq!(stage.bench.info(stage.bad).routes, 3, "{case}");
        assert_eq!(stage.bench.info(stage.bad).counters.sessions, 1, "{case}");
    }
}

#[test]
fn routes_of_unknown_types_are_kept_whatever_is_in_them_but_not_what_overruns() {
    for kind in [0, 7, 12, 99, 255] {
        for octets in [0, 1, 8, 40, 200] {
            let mut stage = stage();
            let strange = route(kind, &vec![0x5a; octets]);
            let bytes = update(&[
                reach(&[10, 0, 0, 1], &[strange, routes(1, &[3])].concat()),
                origin(),
                as_path(),
                communities(100),
            ]);
            stage.bench.send_raw(stage.bad, &bytes);
            let info = stage.bench.info(stage.bad);
            assert_eq!(info.routes, 4, "type {kind} of {octets} octets: {info:#?}");
            assert_eq!(info.counters.routes_discarded, 0);
        }
        // A length beyond the attribute.
        let list = [routes(1, &[2, 3]), vec![kind, 50, 1, 2, 3]].concat();
        let bytes = update(&[
            reach(&[10, 0, 0, 1], &list),
            origin(),
            as_path(),
            communities(100),
        ]);
        stage().expect(&format!("type {kind} overruns"), &bytes, Reset, "");
    }
}
