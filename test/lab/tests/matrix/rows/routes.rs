//! Routes become rows, and go with what they tell of.

use super::everywhere;
use crate::fabric::{C1, C2, C3, HOSTS, NOBODY, Vpc};
use crate::{Cell, Row};
use lab::wire::{self, BROADCAST, IPV4, ethernet};
use std::collections::BTreeSet;
use std::net::Ipv4Addr;

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
        for (own, host) in (11..).zip(HOSTS) {
            let mut expected = BTreeSet::new();
            for number in [11, 12, 13].into_iter().filter(|number| *number != own) {
                expected.insert((Vpc::ipv4(number), vpc.mac(number)));
                // A bridge with IPv6 off takes no rows of it.
                if fabric.lab.filters_vlans() {
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
        for to in [12, 13] {
            fabric.lab.reaches(&vpc.place("c1", "a11"), &Vpc::ipv4(to));
            fabric.lab.reaches(&vpc.place("c1", "a11"), &Vpc::ipv6(to));
        }
        Cell::Pass
    },
};

pub(crate) const E04: Row = Row {
    id: "E04",
    case: "Withdrawn: NIC deleted, agent stopped for good; killed is neither",
    run: |fabric| {
        let vpc = fabric.vpc("e04");
        everywhere(&vpc);
        let mac = |number| vpc.mac(number);
        let (two, three, more) = (mac(12), mac(13), mac(14));
        let of_2 = [(NOBODY, C2), (two.as_str(), C2)];
        let of_3 = [(NOBODY, C3), (three.as_str(), C3)];
        fabric.rows_become("c1", vpc.vni, &[&of_2[..], &of_3].concat());
        vpc.delete_nic("a13");
        fabric.rows_become("c1", vpc.vni, &of_2);
        vpc.nic("a14", "c3", 14);
        let of_3 = [(NOBODY, C3), (more.as_str(), C3)];
        fabric.rows_become("c1", vpc.vni, &[&of_2[..], &of_3].concat());
        fabric.lab.sh("c3", "vpc agent stop --withdraw");
        fabric.rows_become("c1", vpc.vni, &of_2);
        fabric.lab.start("c3", "agent");
        fabric.rows_become("c1", vpc.vni, &[&of_2[..], &of_3].concat());
        fabric.established("c3");
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
