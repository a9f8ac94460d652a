//! Whatever a peer sends: no panic, and nobody else's session suffers.

#![allow(clippy::unwrap_used, reason = "a helper that panics fails its test")]

mod common;

use common::config;
use common::fake::{
    Bench, as_path, communities, mac_route, message, origin, reach, unreach, update,
};
use evpn::{PeerConfig, Role, SessionState};
use proptest::prelude::*;
use std::net::IpAddr;

/// A speaker that is everything at once, with one good client.
fn bench() -> (Bench, IpAddr) {
    let address: IpAddr = "10.0.0.101".parse().unwrap();
    let mut bench = Bench::new(config(address, Role::Both));
    let mut state = evpn::LocalState::empty(address);
    for (n, encoding) in [
        (100, model::Encoding::VlanBased),
        (200, model::Encoding::VlanAwareBundle),
    ] {
        let evi = evpn::LocalEvi::new(encoding, n);
        state.evis.insert(common::vni(u32::from(n)), evi);
    }
    bench.speaker.set_local(bench.now, state).unwrap();
    let good = bench.peer("10.0.0.1", PeerConfig::CLIENT);
    bench.send_raw(good, &valid(1));
    (bench, good)
}

fn valid(router: u8) -> Vec<u8> {
    let pmsi = common::fake::attribute(0xc0, 22, &[0, 6, 0, 0, 100, 10, 0, 0, router]);
    let mut imet = vec![3, 17, 0, 1, 10, 0, 0, router, 0, 1, 0, 0, 0, 0, 32];
    imet.extend([10, 0, 0, router]);
    let next_hop = [10, 0, 0, router];
    let mobility = [
        &[0xc0, 16, 16][..],
        &[0x00, 0x02, 0xfd, 0xe8, 0, 0, 0, 100],
        &[0x06, 0x00, 1, 0, 0, 0, 0, 9],
    ]
    .concat();
    [
        update(&[
            reach(&next_hop, &imet),
            origin(),
            as_path(),
            communities(100),
            pmsi,
        ]),
        update(&[
            reach(
                &next_hop,
                &[mac_route(router, 1, 100), mac_route(router, 2, 100)].concat(),
            ),
            origin(),
            as_path(),
            mobility,
            common::fake::attribute(0x80, 9, &[10, 0, 0, 9]),
            common::fake::attribute(0x80, 10, &[10, 0, 0, 102]),
        ]),
        update(&[unreach(&mac_route(router, 2, 100))]),
        update(&[unreach(&[])]),
        message(5, &[0, 25, 0, 70]),
        message(4, &[]),
    ]
    .concat()
}

fn check(mut bench: Bench, good: IpAddr) {
    let info = bench.info(good);
    assert_eq!(info.state, SessionState::Established);
    assert_eq!((info.counters.sessions, info.routes), (1, 2));
    bench.drain();
    let rows = &bench.speaker.forwarding().evis[&common::vni(100)];
    assert!(rows.flood.contains(&(None, good)), "{rows:?}");
    bench.speaker.routes(bench.now);
    // And it goes on to hear.
    bench.send_raw(good, &valid(1));
    assert_eq!(bench.info(good).state, SessionState::Established);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn random_bytes(chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..6)) {
        let (mut bench, good) = bench();
        let bad = bench.connect("10.0.0.2", PeerConfig::CLIENT);
        for chunk in chunks {
            bench.send_raw(bad, &chunk);
        }
        check(bench, good);
    }

    #[test]
    fn framed_random_messages(
        messages in prop::collection::vec((0_u8..8, prop::collection::vec(any::<u8>(), 0..120)), 0..8),
        established in any::<bool>(),
    ) {
        let (mut bench, good) = bench();
        let bad = if established {
            bench.peer("10.0.0.2", PeerConfig::REFLECTOR)
        } else {
            bench.connect("10.0.0.2", PeerConfig::CLIENT)
        };
        for (kind, body) in messages {
            bench.send_raw(bad, &message(kind, &body));
        }
        check(bench, good);
    }

    #[test]
    fn random_attributes_and_routes(
        attributes in prop::collection::vec(
            (any::<u8>(), prop::sample::select(&[1_u8, 2, 3, 4, 5, 9, 10, 14, 15, 16, 22, 32, 200][..]), prop::collection::vec(any::<u8>(), 0..60)),
            0..8),
        routes in prop::collection::vec((0_u8..13, prop::collection::vec(any::<u8>(), 0..60)), 0..6),
    ) {
        let (mut bench, good) = bench();
        let bad = bench.peer("10.0.0.2", PeerConfig::CLIENT);
        let routes: Vec<u8> = routes
            .iter()
            .flat_map(|(kind, value)| {
                let mut route = vec![*kind, u8::try_from(value.len()).unwrap()];
                route.extend(value);
                route
            })
            .collect();
        let mut list = vec![reach(&[10, 0, 0, 2], &routes), origin(), as_path(), communities(100)];
        list.extend(attributes.iter().map(|(flags, kind, value)| {
            common::fake::attribute(*flags, *kind, value)
        }));
        bench.send_raw(bad, &update(&list));
        bench.send_raw(bad, &update(&[unreach(&routes)]));
        check(bench, good);
    }

    #[test]
    fn mutated_messages(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0_u8..4), 1..6),
        cut in any::<prop::sample::Index>(),
    ) {
        let (mut bench, good) = bench();
        let bad = bench.peer("10.0.0.2", PeerConfig::CLIENT);
        let mut bytes = valid(2);
        for (at, value, kind) in edits {
            let at = at.index(bytes.len());
            match kind {
                0 => bytes[at] = value,
                1 => bytes[at] ^= 1 << (value % 8),
                2 => bytes.insert(at, value),
                _ => _ = bytes.remove(at),
            }
        }
        let (first, second) = bytes.split_at(cut.index(bytes.len()));
        bench.send_raw(bad, first);
        bench.send_raw(bad, second);
        check(bench, good);
    }

    /// Valid UPDATEs with one thing wrong at a time, where it hurts: lengths, flags, types, octets
    /// put in and taken out inside of attributes and routes, with lengths around them made to fit or
    /// not; cut into pieces at any place.
    #[test]
    fn structured_mutations(
        faults in prop::collection::vec(fault(), 1..5),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..4),
        role in prop::sample::select(&[PeerConfig::CLIENT, PeerConfig::REFLECTOR][..]),
    ) {
        let (mut bench, good) = bench();
        let bad = bench.peer("10.0.0.2", role);
        bench.send_raw(bad, &valid(2));
        let mut bytes = vec![];
        for fault in &faults {
            bytes.extend(fault.message());
            bytes.extend(valid(2));
        }
        let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len())).collect();
        at.sort_unstable();
        let mut from = 0;
        for until in at.into_iter().chain([bytes.len()]) {
            bench.send_raw(bad, &bytes[from..until]);
            from = until;
        }
        check(bench, good);
    }
}

/// One thing that is wrong with an UPDATE.
#[derive(Debug, Clone)]
struct Fault {
    attribute: prop::sample::Index,
    at: prop::sample::Index,
    octet: u8,
    kind: FaultKind,
    /// Whether the lengths around it are made to fit.
    fitting: bool,
}

#[derive(Debug, Clone, Copy)]
enum FaultKind {
    Flags,
    Type,
    Length,
    Replace,
    Insert,
    Remove,
    Twice,
    Missing,
    Truncate,
}

fn fault() -> impl Strategy<Value = Fault> {
    use FaultKind::{Flags, Insert, Length, Missing, Remove, Replace, Truncate, Twice, Type};
    let kinds = [
        Flags, Type, Length, Replace, Insert, Remove, Twice, Missing, Truncate,
    ];
    let kind = prop::sample::select(kinds.to_vec());
    let places = any::<(prop::sample::Index, prop::sample::Index)>();
    (places, any::<u8>(), kind, any::<bool>()).prop_map(
        |((attribute, at), octet, kind, fitting)| Fault {
            attribute,
            at,
            octet,
            kind,
            fitting,
        },
    )
}

impl Fault {
    fn message(&self) -> Vec<u8> {
        let pmsi = common::fake::attribute(0xc0, 22, &[0, 6, 0, 0, 100, 10, 0, 0, 2]);
        let mut list = vec![
            reach(
                &[10, 0, 0, 2],
                &[mac_route(2, 1, 100), mac_route(2, 3, 100)].concat(),
            ),
            unreach(&mac_route(2, 4, 0)),
            origin(),
            as_path(),
            communities(100),
            pmsi,
            common::fake::attribute(0x80, 9, &[10, 0, 0, 9]),
            common::fake::attribute(0x80, 10, &[10, 0, 0, 102]),
            common::fake::attribute(0xc0, 8, &[0xff, 0xff, 0, 6]),
        ];
        let which = self.attribute.index(list.len());
        let mut hurt = list.remove(which);
        let extended = hurt[0] & 0x10 != 0;
        let head = if extended { 4 } else { 3 };
        let inside = |hurt: &[u8]| head + self.at.index(hurt.len() - head + 1);
        match self.kind {
            FaultKind::Flags => hurt[0] = self.octet,
            FaultKind::Type => hurt[1] = self.octet,
            FaultKind::Length => hurt[head - 1] = self.octet,
            FaultKind::Replace => {
                let at = inside(&hurt).min(hurt.len() - 1);
                hurt[at] = self.octet;
            }
            FaultKind::Insert => hurt.insert(inside(&hurt), self.octet),
            FaultKind::Remove if hurt.len() > head => {
                let at = inside(&hurt).min(hurt.len() - 1);
                hurt.remove(at);
            }
            FaultKind::Remove => {}
            FaultKind::Truncate => hurt.truncate(inside(&hurt)),
            FaultKind::Twice => list.push(hurt.clone()),
            FaultKind::Missing => hurt.clear(),
        }
        if self.fitting
            && hurt.len() >= head
            && !matches!(self.kind, FaultKind::Length | FaultKind::Flags)
        {
            let length = hurt.len() - head;
            hurt[head - 1] = (length & 0xff) as u8;
            if extended {
                hurt[2] = (length >> 8) as u8;
            }
        }
        list.insert(which, hurt);
        update(&list)
    }
}
