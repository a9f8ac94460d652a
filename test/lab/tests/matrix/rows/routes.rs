//! Routes become rows, and go with what they tell of.

use super::everywhere;
use crate::fabric::{C1, C2, C3, GUEST, GUEST_ADDRESS, HOSTS, NOBODY, Vpc};
use crate::raw::Raw;
use crate::{Cell, Column, Row};
use lab::wire::{self, BROADCAST, IPV4, ethernet};
use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};

pub(crate) const E02: Row = Row {
    id: "E02",
    case: "Inclusive multicast: a flood row for each VTEP, frames for all come once",
    run: |fabric| {
        let vpc = fabric.vpc("e02");
        everywhere(&vpc);
        let of = |host: &str, number: u8| {
            vec![
                (NOBODY.to_owned(), host.to_owned()),
                (vpc.mac(number), host.to_owned()),
            ]
        };
        let all = [of(C1, 11), of(C2, 12), of(C3, 13)];
        for (at, host) in HOSTS.iter().enumerate() {
            let mut others = all.to_vec();
            others.remove(at);
            let others = others.concat();
            let others: Vec<(&str, &str)> = others
                .iter()
                .map(|(a, b)| (a.as_str(), b.as_str()))
                .collect();
            fabric.rows_become(host, vpc.vni, &others);
        }
        let wires: Vec<_> = (11..)
            .zip(HOSTS)
            .map(|(number, host)| {
                fabric
                    .lab
                    .wire(&vpc.place(host, &format!("a{number}")), "eth0")
            })
            .collect();
        for (from, number) in wires.iter().zip(11..) {
            let text = format!("<to all from {number}>");
            let source = wire::mac(&vpc.mac(number));
            let address = Ipv4Addr::new(10, 4, 1, number);
            let packet = wire::udp4(address, Ipv4Addr::BROADCAST, text.as_bytes());
            from.send(&ethernet(BROADCAST, source, IPV4, &packet));
            let last = format!("<and again from {number}>");
            let packet = wire::udp4(address, Ipv4Addr::BROADCAST, last.as_bytes());
            from.send(&ethernet(BROADCAST, source, IPV4, &packet));
            for to in wires.iter().filter(|to| !std::ptr::eq(*to, from)) {
                let heard = to.until("the second broadcast arrives", last.as_bytes());
                let times = heard
                    .iter()
                    .filter(|frame| wire::contains(frame, text.as_bytes()));
                assert_eq!(times.count(), 1, "{text}");
            }
        }
        Cell::Pass
    },
};

pub(crate) const E03: Row = Row {
    id: "E03",
    case: "MAC and MAC+IP, both families: FDB and neighbour rows at the others",
    run: |fabric| {
        let vpc = fabric.vpc("e03");
        everywhere(&vpc);
        let vteps = [C1, C2, C3];
        // FRR learns addresses from its kernel's neighbour rows.
        let without_v6 = fabric.column == Column::FrrClient && !fabric.lab.knows_ipv6("c1");
        for (own, host) in (11..).zip(HOSTS) {
            let mut expected = BTreeSet::new();
            // A bridge with IPv6 off takes no rows of it.
            let ipv6_rows = fabric.lab.knows_ipv6(host);
            for (number, vtep) in (11..).zip(vteps).filter(|(number, _)| *number != own) {
                fabric.has_rows(host, vpc.vni, &[(&vpc.mac(number), vtep)]);
                expected.insert((Vpc::ipv4(number), vpc.mac(number)));
                if ipv6_rows && !(vtep == C1 && without_v6) {
                    expected.insert((Vpc::ipv6(number), vpc.mac(number)));
                }
            }
            fabric
                .lab
                .eventually(&format!("{host} has its neighbours"), || {
                    match fabric.neighbours(host, &vpc) {
                        seen if seen.is_superset(&expected) => Ok(()),
                        seen => Err(format!("{seen:?}, not {expected:?}")),
                    }
                });
        }
        // On the wire: the MAC alone, with its IPv4 address, and with its IPv6 address.
        let raw = Raw::connect(fabric, GUEST, GUEST_ADDRESS);
        for (number, host) in (11..).zip(HOSTS) {
            let mac = wire::mac(&vpc.mac(number));
            let v4: Ipv4Addr = Vpc::ipv4(number).parse().expect("an address");
            let v6: Ipv6Addr = Vpc::ipv6(number).parse().expect("an address");
            for (bits, address) in [
                (0, vec![]),
                (32, v4.octets().to_vec()),
                (128, v6.octets().to_vec()),
            ] {
                if bits == 128 && host == "c1" && without_v6 {
                    continue;
                }
                let part = [&[48][..], &mac, &[bits], &address, &label(&vpc)].concat();
                fabric.lab.eventually(
                    &format!("{host}'s route with {bits} bits of address"),
                    || match raw.updates_with(&part) {
                        none if none.is_empty() => Err(format!("{:02x?}", raw.heard())),
                        _ => Ok(()),
                    },
                );
            }
        }
        drop(raw);
        for to in [12, 13] {
            fabric.lab.reaches(&vpc.place("c1", "a11"), &Vpc::ipv4(to));
            fabric.lab.reaches(&vpc.place("c1", "a11"), &Vpc::ipv6(to));
        }
        Cell::Pass
    },
};

/// The VNI as a label (RFC 8365 §5.1.3).
fn label(vpc: &Vpc<'_>) -> [u8; 3] {
    let [_, a, b, c] = vpc.label().to_be_bytes();
    [a, b, c]
}

pub(crate) const E04: Row = Row {
    id: "E04",
    case: "Withdrawn: a NIC deleted, an agent stopped for good; rows come with what comes again",
    run: |fabric| {
        let vpc = fabric.vpc("e04");
        everywhere(&vpc);
        let (one, two, three) = (vpc.mac(11), vpc.mac(12), vpc.mac(13));
        let of_1 = [(NOBODY, C1), (one.as_str(), C1)];
        let of_3 = [(NOBODY, C3), (three.as_str(), C3)];
        let of_2 = [(NOBODY, C2), (two.as_str(), C2)];
        fabric.rows_become("c1", vpc.vni, &[of_2, of_3].concat());
        fabric.rows_become("c2", vpc.vni, &[of_1, of_3].concat());
        // On c3, then on c1, which has what the column is about.
        let place = vpc.place("c2", "a12");
        for (host, vtep, nic, number, others) in
            [("c3", C3, "a13", 15, &of_1[..]), ("c1", C1, "a11", 14, &[])]
        {
            vpc.delete_nic(nic);
            fabric.rows_become("c2", vpc.vni, others);
            let (name, mac) = (format!("a{number}"), vpc.mac(number));
            vpc.nic(&name, host, number);
            let again = [&[(NOBODY, vtep), (mac.as_str(), vtep)], others].concat();
            fabric.rows_become("c2", vpc.vni, &again);
            fabric.lab.reaches(&place, &Vpc::ipv4(number));
            fabric.lab.sh(host, "vpc agent stop --withdraw");
            fabric.rows_become("c2", vpc.vni, others);
            fabric.lab.start(host, "agent");
            fabric.rows_become("c2", vpc.vni, &again);
            fabric.established(host);
            vpc.delete_nic(&name);
            fabric.rows_become("c2", vpc.vni, others);
        }
        Cell::Pass
    },
};

pub(crate) const E09: Row = Row {
    id: "E09",
    case: "The same MAC in two MAC-VRFs: neither moves",
    run: |fabric| {
        let (blue, red) = (fabric.vpc("e09a"), fabric.vpc("e09b"));
        let shared = "02:00:00:00:09:01";
        let nic = |vpc: &Vpc<'_>, name: &str, host: &str| {
            fabric.lab.admin(&format!(
                "nic create {0}/web/{name} --host {host} --attach netns:{0}-{name} --mac {shared} --wait",
                vpc.name
            ));
        };
        nic(&blue, "a", "c1");
        nic(&red, "a", "c2");
        // A host has the tunnel of a subnet only with a NIC in it.
        blue.nic("b", "c3", 21);
        red.nic("b", "c3", 22);
        let (b, r) = (blue.mac(21), red.mac(22));
        fabric.rows_become("c3", blue.vni, &[(NOBODY, C1), (shared, C1)]);
        fabric.rows_become("c3", red.vni, &[(NOBODY, C2), (shared, C2)]);
        fabric.rows_become("c1", blue.vni, &[(NOBODY, C3), (b.as_str(), C3)]);
        fabric.rows_become("c2", red.vni, &[(NOBODY, C3), (r.as_str(), C3)]);
        for route in fabric.best_routes("c3", blue.vni) {
            assert_eq!(route["mobility_sequence"], 0, "{route}");
        }
        Cell::Pass
    },
};
