//! What tenants see: nothing of others, answers from nearby, and no trace of what was deleted.

use super::everywhere;
use crate::fabric::{C1, C2, C3, Fabric, GUEST, GUEST_ADDRESS, HOSTS, NOBODY, Vpc};
use crate::guest::Guest;
use crate::raw::{
    Raw, VXLAN, as_path, communities, local_pref, origin, reach, target, update, value_of,
};
use crate::{Cell, Column, Row};
use evpn::{RouteTarget, RouteTargets};
use lab::wire::{self, ARP, BROADCAST, IPV4, IPV6, Mac, Outer, Wire, contains, ethernet};
use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Instant;

fn address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 4, 1, number)
}

/// Frames that came in at the hosts in tunnels of this VNI.
fn tunnelled(underlay: &[Wire], vni: u64) -> Vec<Vec<u8>> {
    let frames = underlay.iter().flat_map(Wire::received);
    let inner = |frame: Vec<u8>| match Outer::of(&frame) {
        Outer::Vxlan(of, inner) if u64::from(of) == vni => Some(inner.to_vec()),
        _ => None,
    };
    frames.filter_map(inner).collect()
}

pub(crate) const E11: Row = Row {
    id: "E11",
    case: "ARP is answered at home, nothing of it on the underlay; unknown targets are asked for everywhere; gratuitous ARP, unsolicited advertisements and probes go through, once, and not too often; in a bundle, too",
    run: |fabric| {
        let vpc = fabric.vpc("e11");
        suppresses(fabric, &vpc);
        drop(vpc);
        // FRR has only the VLAN-based service.
        if fabric.column != Column::FrrClient {
            let bundle = fabric.vpc_with("e11", "--encoding vlan-aware-bundle");
            suppresses(fabric, &bundle);
        }
        Cell::Pass
    },
};

fn suppresses(fabric: &Fabric, vpc: &Vpc<'_>) {
    everywhere(vpc);
    vpc.nic("a14", "c1", 14);
    let known = |number: u8| (Vpc::ipv4(number), vpc.mac(number));
    fabric.lab.eventually("c1 has its neighbours", || {
        let seen = fabric.neighbours("c1", vpc);
        match seen.contains(&known(12)) && seen.contains(&known(13)) {
            true => Ok(()),
            false => Err(format!("{seen:?}")),
        }
    });
    for host in ["c2", "c3"] {
        fabric.has_rows(host, vpc.vni, &[(NOBODY, C1)]);
    }
    let own = wire::mac(&vpc.mac(11));
    let asker = fabric.lab.wire(&vpc.place("c1", "a11"), "eth0");
    let mates = [("c1", "a14"), ("c2", "a12"), ("c3", "a13")]
        .map(|(host, nic)| fabric.lab.wire(&vpc.place(host, nic), "eth0"));
    let underlay = HOSTS.map(|host| fabric.lab.wire(host, "eth0"));
    let asks = |number: u8| {
        let question = wire::arp(1, own, address(11), address(number));
        asker.send(&ethernet(BROADCAST, own, ARP, &question));
    };
    for number in [12, 13] {
        asks(number);
        let mac = wire::mac(&vpc.mac(number));
        let answer = [
            &[0, 2][..],
            &mac,
            &address(number).octets(),
            &own,
            &address(11).octets(),
        ]
        .concat();
        asker.until(&format!("an answer for {number}"), &answer);
    }
    let asked = fabric.lab.json("c1", "vpc -o json evpn summary");
    let [requests, answers] = ["arp_requests", "arp_answers"].map(|name| asked[name].as_u64());
    assert!(requests >= Some(2) && answers >= Some(2), "{asked}");
    // Nobody has it: everybody is asked, once.
    asks(99);
    let asked = address(99).octets();
    for wire in &mates[1..] {
        let heard = wire.until("the unknown is asked for", &asked);
        let arps = heard
            .iter()
            .filter(|frame| frame[12..14] == ARP.to_be_bytes());
        let arps: Vec<_> = arps.collect();
        assert_eq!(
            arps.len(),
            1,
            "questions for the known crossed the underlay: {arps:02x?}"
        );
    }
    for frame in tunnelled(&underlay, vpc.vni) {
        let of_the_known = [12, 13]
            .iter()
            .any(|n| frame.ends_with(&address(*n).octets()));
        assert!(
            !of_the_known || !contains(&frame[12..], &ARP.to_be_bytes()),
            "on the underlay: {frame:02x?}"
        );
    }
    // Unasked: whoever kept an old MAC for the address has to hear it, and who has the address.
    let nobody = Ipv4Addr::UNSPECIFIED;
    let six: Ipv6Addr = Vpc::ipv6(11).parse().expect("an address");
    let all = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let arp = |message: Vec<u8>| ethernet(BROADCAST, own, ARP, &message);
    let nd = |packet: Vec<u8>| ethernet([0x33, 0x33, 0, 0, 0, 1], own, IPV6, &packet);
    let unasked = [
        (
            "gratuitous ARP",
            arp(wire::arp(1, own, address(11), address(11))),
        ),
        (
            "gratuitous reply",
            arp(wire::arp(2, own, address(11), address(11))),
        ),
        ("ARP probe", arp(wire::arp(1, own, nobody, address(12)))),
        (
            "unsolicited advertisement",
            nd(wire::nd(136, six, all, six, own)),
        ),
        (
            "detection of duplicates",
            nd(wire::nd(135, Ipv6Addr::UNSPECIFIED, all, six, own)),
        ),
        ("the last", arp(wire::arp(1, own, nobody, address(98)))),
    ];
    for (_, frame) in &unasked {
        asker.send(frame);
    }
    // A datapath answers whether an address is free that somebody elsewhere has, and keeps the question
    // of who has it itself at home (RFC 9161).
    let mut kept: &[&str] = &[];
    if fabric.lab.is_tap("c1") {
        kept = &["ARP probe", "detection of duplicates"];
        let (mac, taken) = (wire::mac(&vpc.mac(12)), address(12).octets());
        let answer = [&[0, 2][..], &mac, &taken, &own, &nobody.octets()].concat();
        asker.until("an answer to the probe", &answer);
    }
    for (wire, at) in mates.iter().zip(["c1", "c2", "c3"]) {
        let (last, frame) = &unasked[unasked.len() - 1];
        let heard = wire.until(&format!("{last} at {at}"), frame);
        for (what, frame) in &unasked {
            let times = heard.iter().filter(|one| contains(one, frame)).count();
            let is_kept = at != "c1" && kept.contains(what);
            assert_eq!(times, usize::from(!is_kept), "{what} at {at}");
        }
    }
    // A workload that does not stop fills nobody's tunnel. It gets 20 at once and 10 a second.
    let often = arp(wire::arp(1, own, address(11), address(11)));
    let started = Instant::now();
    for _ in 0..500 {
        asker.send(&often);
    }
    let (mut crossed, last) = (0, arp(wire::arp(1, own, nobody, address(97))));
    fabric.lab.eventually("it is heard again", || {
        asker.send(&last);
        let heard = mates[1].received();
        crossed += heard.iter().filter(|one| contains(one, &often)).count();
        match heard.iter().any(|one| contains(one, &last)) {
            true => Ok(()),
            false => Err(format!("{crossed} of those before")),
        }
    });
    let most = 20 + 10 * (started.elapsed().as_secs() as usize + 1);
    assert!(crossed <= most, "{crossed} of 500 crossed, not {most}");
    for nic in ["a11", "a12", "a13", "a14"] {
        vpc.delete_nic(nic);
    }
}

pub(crate) const E12: Row = Row {
    id: "E12",
    case: "The Router flag of an IPv6 address (RFC 9047) is reflected, and in the kernel's neighbour row",
    run: |fabric| {
        let vpc = fabric.vpc("e12");
        vpc.nic("a11", "c1", 11);
        fabric.lab.kill("c3", "agent");
        let (from, to) = (
            Raw::connect(fabric, GUEST, GUEST_ADDRESS),
            Raw::connect(fabric, "c3", C3),
        );
        let (vni, asn, mac) = (vpc.label(), crate::foreign::asn(&fabric.lab), vpc.mac(21));
        let address: Ipv6Addr = Vpc::ipv6(21).parse().expect("an address");
        // R and O
        let flags: [u8; 8] = [0x06, 0x08, 0x03, 0, 0, 0, 0, 0];
        let routes = from.mac_route(wire::mac(&mac), &address.octets(), vni);
        from.says(&update(&[
            reach(&from.address().octets(), &routes),
            origin(),
            as_path(),
            local_pref(),
            communities(&[target(asn, vni), VXLAN, flags]),
        ]));
        if fabric.column == Column::GobgpReflector {
            // Behind it, the same without flags.
            let plain = vpc.mac(22);
            from.says(&from.announces(vni, asn, &[(&plain, &address.octets())]));
            fabric.has_rows("c1", vpc.vni, &[(&plain, GUEST_ADDRESS)]);
            assert!(to.updates_with(&routes).is_empty(), "GoBGP passes it on");
            assert!(!from.ended(), "its session is up");
            drop((from, to));
            fabric.lab.start("c3", "agent");
            fabric.established("c3");
            return Cell::NotApplicable(
                "GoBGP 3.10 drops a route with the ARP/ND community (RFC 9047): it does not know it and takes it as malformed; others go on",
            );
        }
        fabric.has_rows("c1", vpc.vni, &[(&mac, GUEST_ADDRESS)]);
        fabric.lab.eventually("it is reflected with its flags", || {
            let heard = to.updates_with(&routes).pop().ok_or("not at all")?;
            let communities = value_of(&heard, 16).map(|(_, value)| value);
            match communities.is_some_and(|list| contains(&list, &flags)) {
                true => Ok(()),
                false => Err(format!("{heard:02x?}")),
            }
        });
        let answers = fabric.lab.knows_ipv6("c1");
        if answers {
            // The bridge, or the datapath, answers for it, and says that it is a router.
            let own = wire::mac(&vpc.mac(11));
            let asker = fabric.lab.wire(&vpc.place("c1", "a11"), "eth0");
            let six: Ipv6Addr = Vpc::ipv6(11).parse().expect("an address");
            let all = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
            let asks = wire::nd(135, six, all, address, own);
            let target = address.octets();
            let answer = fabric.lab.eventually("c1 answers for it", || {
                asker.send(&ethernet([0x33, 0x33, 0, 0, 0, 1], own, IPV6, &asks));
                let heard = asker.received();
                let mut answers = heard.into_iter().filter(|frame| {
                    frame.len() > 78 && frame[54] == 136 && frame[62..78] == target
                });
                answers.next().ok_or("nobody answers".to_owned())
            });
            assert_eq!(answer[58] & 0x80, 0x80, "no Router flag: {answer:02x?}");
        }
        drop((from, to));
        fabric.lab.start("c3", "agent");
        fabric.established("c3");
        if answers {
            return Cell::Pass;
        }
        Cell::NotApplicable(
            "this kernel does not filter VLANs, so that ND is not suppressed and there are no IPv6 neighbour rows; the flag is reflected as it came",
        )
    },
};

pub(crate) const E13: Row = Row {
    id: "E13",
    case: "Route targets: FRR's form, that of RFC 8365, that of another AS where such routes come; foreign ones are not taken in",
    run: |fabric| {
        let (vpc, marker) = (fabric.vpc("e13"), fabric.vpc("e13m"));
        vpc.nic("a11", "c1", 11);
        marker.nic("a11", "c1", 11);
        vpc.nic("a12", "c2", 12);
        let two = vpc.mac(12);
        let of_2 = [(NOBODY, C2), (two.as_str(), C2)];
        fabric.rows_become("c1", vpc.vni, &of_2);
        let mac = vpc.mac(21);
        let guest = Guest::new(fabric);
        guest.connect();
        let vni = vpc.label();
        let own = crate::foreign::asn(&fabric.lab) as u16;
        let all = [
            &of_2[..],
            &[(NOBODY, GUEST_ADDRESS), (mac.as_str(), GUEST_ADDRESS)],
        ]
        .concat();
        // RFC 8365 §5.1.2.1: type 1 in the top bits says VXLAN.
        let rfc8365 = vni | 1 << 28;
        // A wish (RFC 4684) names an AS. FRR knows no wishes: it sends, and is sent, everything.
        let from_any_as = matches!(fabric.column, Column::FrrReflector | Column::FrrClient);
        for (number, (form, target, taken)) in (41..).zip([
            ("own AS:VNI", RouteTarget::two_octet_as(own, vni), true),
            (
                "own AS, RFC 8365",
                RouteTarget::two_octet_as(own, rfc8365),
                true,
            ),
            (
                "another AS:VNI",
                RouteTarget::two_octet_as(64_999, vni),
                from_any_as,
            ),
            (
                "own AS:another VNI",
                RouteTarget::two_octet_as(own, vni + 1_000_000),
                false,
            ),
        ]) {
            let export = BTreeSet::from([target]);
            let targets = RouteTargets::Manual {
                import: BTreeSet::new(),
                export,
            };
            // Nothing of the form before it is left.
            guest.has_with(&[], RouteTargets::Auto, &[]);
            fabric.rows_become("c1", vpc.vni, &of_2);
            guest.has_each(&[(&vpc, targets.clone(), &mac)]);
            let what = format!("{form} ({target})");
            if taken {
                fabric.rows_as(&what, "c1", vpc.vni, &all);
                continue;
            }
            // What is said behind it and wanted is there: so would it be.
            let behind = marker.mac(number);
            guest.has_each(&[
                (&vpc, targets, &mac),
                (&marker, RouteTargets::Auto, &behind),
            ]);
            fabric.has_rows("c1", marker.vni, &[(&behind, GUEST_ADDRESS)]);
            fabric.rows_as(&what, "c1", vpc.vni, &of_2);
        }
        Cell::Pass
    },
};

pub(crate) const E25: Row = Row {
    id: "E25",
    case: "Subnet, VPC and the VNI of routers changed, deleted and made again while peers are up: no row of the old ones",
    run: |fabric| {
        let sessions = fabric.connections();
        for _ in 0..2 {
            let vpc = fabric.vpc("e25");
            everywhere(&vpc);
            let (one, two, three) = (vpc.mac(11), vpc.mac(12), vpc.mac(13));
            let of_1 = [(NOBODY, C1), (one.as_str(), C1)];
            let of_2 = [(NOBODY, C2), (two.as_str(), C2)];
            let of_3 = [(NOBODY, C3), (three.as_str(), C3)];
            fabric.rows_become("c1", vpc.vni, &[of_2, of_3].concat());
            fabric.rows_become("c2", vpc.vni, &[of_1, of_3].concat());
            // The subnet alone: its hosts forget it, and the next has another VNI or the same.
            for nic in ["a11", "a12", "a13"] {
                vpc.delete_nic(nic);
            }
            fabric.lab.admin("subnet delete e25/web");
            fabric.is_as_it_was();
            let subnet = "subnet create e25/web --cidr 10.4.1.0/24 --cidr fd00:4:0:1::/64";
            let vni = fabric.lab.admin(subnet)["vni"].as_u64().expect("a VNI");
            let (one, two) = (vpc.mac(31), vpc.mac(32));
            vpc.nic("a31", "c3", 31);
            vpc.nic("a32", "c2", 32);
            fabric.rows_become("c2", vni, &[(NOBODY, C3), (one.as_str(), C3)]);
            fabric.rows_become("c3", vni, &[(NOBODY, C2), (two.as_str(), C2)]);
            fabric.lab.reaches(&vpc.place("c3", "a31"), &Vpc::ipv4(32));
            drop(vpc);
            fabric.is_as_it_was();
        }
        super::routed::l3vni_changes(fabric);
        fabric.is_as_it_was();
        assert_eq!(fabric.connections(), sessions, "the sessions are the same");
        Cell::Pass
    },
};

/// A workload that sends and hears.
struct Open<'a> {
    vpc: &'a Vpc<'a>,
    number: u8,
    mac: Mac,
    wire: Wire,
}

impl Open<'_> {
    /// To everybody, or to one.
    fn say(&self, to: Mac, address: Ipv4Addr, text: &str) {
        let packet = wire::udp4(self::address(self.number), address, text.as_bytes());
        self.wire.send(&ethernet(to, self.mac, IPV4, &packet));
    }
}

pub(crate) const E26: Row = Row {
    id: "E26",
    case: "Two tenants with the same prefixes, addresses, MACs and hosts: no frame crosses",
    run: |fabric| {
        let (blue, red) = (fabric.vpc("e26a"), fabric.vpc("e26b"));
        let mut open = Vec::new();
        for vpc in [&blue, &red] {
            for (number, host) in [(11, "c1"), (12, "c1"), (13, "c2"), (14, "c3")] {
                let (name, mac) = (format!("a{number}"), format!("02:00:00:00:26:{number:02x}"));
                vpc.nic_with_mac(&name, host, number, &mac);
                let wire = fabric.lab.wire(&vpc.place(host, &name), "eth0");
                let mac = wire::mac(&mac);
                open.push(Open {
                    vpc,
                    number,
                    mac,
                    wire,
                });
            }
        }
        for vpc in [&blue, &red] {
            let of = |number: u8, vtep| (format!("02:00:00:00:26:{number:02x}"), vtep);
            let all = [
                (NOBODY.to_owned(), C2),
                (NOBODY.to_owned(), C3),
                of(13, C2),
                of(14, C3),
            ];
            let all: Vec<(&str, &str)> = all
                .iter()
                .map(|(mac, vtep)| (mac.as_str(), *vtep))
                .collect();
            fabric.rows_become("c1", vpc.vni, &all);
            let all = [
                (NOBODY.to_owned(), C1),
                (NOBODY.to_owned(), C3),
                of(11, C1),
                of(12, C1),
                of(14, C3),
            ];
            let all: Vec<(&str, &str)> = all
                .iter()
                .map(|(mac, vtep)| (mac.as_str(), *vtep))
                .collect();
            fabric.rows_become("c2", vpc.vni, &all);
        }
        for from in &open {
            let name = &from.vpc.name;
            for to in open
                .iter()
                .filter(|to| to.vpc.vni == from.vpc.vni && to.number != from.number)
            {
                let text = format!("<{name} {} to {}>", from.number, to.number);
                from.say(to.mac, address(to.number), &text);
            }
            from.say(
                BROADCAST,
                Ipv4Addr::BROADCAST,
                &format!("<{name} {} to all>", from.number),
            );
        }
        for to in &open {
            let (name, other) = if to.vpc.vni == blue.vni {
                ("e26a", "<e26b")
            } else {
                ("e26b", "<e26a")
            };
            let mates = [11, 12, 13, 14]
                .into_iter()
                .filter(|number| *number != to.number);
            let mut heard = Vec::new();
            for from in mates {
                let text = format!("<{name} {from} to all>");
                if !heard
                    .iter()
                    .any(|frame: &Vec<u8>| contains(frame, text.as_bytes()))
                {
                    heard.extend(to.wire.until(&text, text.as_bytes()));
                }
                for text in [text, format!("<{name} {from} to {}>", to.number)] {
                    let times = heard
                        .iter()
                        .filter(|frame| contains(frame, text.as_bytes()));
                    assert_eq!(times.count(), 1, "{text} at {name} {}", to.number);
                }
            }
            let crossed = heard.iter().find(|frame| contains(frame, other.as_bytes()));
            assert!(
                crossed.is_none(),
                "{name} {} heard the other tenant: {crossed:02x?}",
                to.number
            );
        }
        // All that was said has arrived where it should: what else is there has crossed.
        for to in &open {
            let other = if to.vpc.vni == blue.vni {
                "<e26b"
            } else {
                "<e26a"
            };
            let late = to.wire.received();
            let crossed = late.iter().find(|frame| contains(frame, other.as_bytes()));
            assert!(
                crossed.is_none(),
                "{} {} heard the other tenant: {crossed:02x?}",
                to.vpc.name,
                to.number
            );
        }
        Cell::Pass
    },
};

pub(crate) const E35: Row = Row {
    id: "E35",
    case: "VLAN-aware bundle: routes with tags are kept apart, the same MAC in two VLANs",
    run: |fabric| {
        if fabric.column == Column::FrrClient {
            return Cell::NotApplicable(
                "FRR has only the VLAN-based service: a bundle is refused while a host runs it",
            );
        }
        bundle(fabric);
        Cell::Pass
    },
};

fn bundle(fabric: &Fabric) {
    let _vpc = fabric.vpc_with("e35", "--encoding vlan-aware-bundle");
    let subnet = "subnet create e35/db --cidr 10.4.2.0/24";
    let vlan = |subnet: &serde_json::Value| {
        subnet["vlan"]
            .as_u64()
            .and_then(|vlan| u32::try_from(vlan).ok())
            .expect("a VLAN")
    };
    let db = vlan(&fabric.lab.admin(subnet));
    let web = vlan(&fabric.lab.admin("subnet show e35/web"));
    assert_ne!(db, web);
    let vni = fabric.lab.admin("show e35")["vni"].as_u64().expect("a VNI");
    let nic = |subnet: &str, name: &str, host: &str, ip: &str, mac: &str| {
        fabric.lab.admin(&format!(
            "nic create e35/{subnet}/{name} --host {host} --attach netns:e35-{name} --ip {ip} \
             --mac {mac} --wait"
        ));
    };
    let [w1, w2, d1, d2] = [1, 2, 3, 4].map(|n| format!("02:00:00:00:35:{n:02x}"));
    nic("web", "w1", "c1", "10.4.1.11", &w1);
    nic("web", "w2", "c2", "10.4.1.12", &w2);
    nic("db", "d1", "c1", "10.4.2.11", &d1);
    nic("db", "d2", "c2", "10.4.2.12", &d2);
    fabric.has_rows("c1", vni, &[(NOBODY, C2), (&w2, C2), (&d2, C2)]);
    fabric.has_rows("c2", vni, &[(NOBODY, C1), (&w1, C1), (&d1, C1)]);
    fabric.lab.reaches("c1/e35-w1", "10.4.1.12");
    fabric.lab.reaches("c1/e35-d1", "10.4.2.12");
    // One VNI carries both: a frame of one subnet must not come out in the other.
    let wires = ["c2/e35-w2", "c2/e35-d2"].map(|place| fabric.lab.wire(place, "eth0"));
    for (place, mac, from, text) in [
        (
            "c1/e35-w1",
            &w1,
            Ipv4Addr::new(10, 4, 1, 11),
            "<to all of web>",
        ),
        (
            "c1/e35-d1",
            &d1,
            Ipv4Addr::new(10, 4, 2, 11),
            "<to all of db>",
        ),
    ] {
        let packet = wire::udp4(from, Ipv4Addr::BROADCAST, text.as_bytes());
        let wire = fabric.lab.wire(place, "eth0");
        wire.send(&ethernet(BROADCAST, wire::mac(mac), IPV4, &packet));
    }
    let at_web = wires[0].until("web hears its own", b"<to all of web>");
    let at_db = wires[1].until("db hears its own", b"<to all of db>");
    assert!(
        !at_web
            .iter()
            .any(|frame| contains(frame, b"<to all of db>"))
    );
    assert!(
        !at_db
            .iter()
            .any(|frame| contains(frame, b"<to all of web>"))
    );
    // Another VTEP has one MAC in both VLANs: two routes, told apart by their tags all the way.
    let both = "02:00:00:00:35:99";
    let guest = Guest::new(fabric);
    guest.has_bundle(u32::try_from(vni).expect("24 bits"), &[web, db], both);
    guest.connect();
    fabric.has_rows("c1", vni, &[(NOBODY, GUEST_ADDRESS), (both, GUEST_ADDRESS)]);
    fabric.lab.eventually("c1 has a route in each VLAN", || {
        let routes = fabric.best_routes("c1", vni);
        let of_both = routes.iter().filter(|route| route["mac"] == both);
        let tags: BTreeSet<u64> = of_both
            .filter_map(|route| route["ethernet_tag"].as_u64())
            .collect();
        match tags == BTreeSet::from([u64::from(web), u64::from(db)]) {
            true => Ok(()),
            false => Err(format!("{tags:?} of {routes:#?}")),
        }
    });
    // It leaves one VLAN and stays in the other.
    guest.has_bundle(u32::try_from(vni).expect("24 bits"), &[db], both);
    fabric
        .lab
        .eventually("c1 has a route in the one that is left", || {
            let routes = fabric.best_routes("c1", vni);
            let of_both = routes.iter().filter(|route| route["mac"] == both);
            let tags: BTreeSet<u64> = of_both
                .filter_map(|route| route["ethernet_tag"].as_u64())
                .collect();
            match tags == BTreeSet::from([u64::from(db)]) {
                true => Ok(()),
                false => Err(format!("{tags:?} of {routes:#?}")),
            }
        });
    fabric.has_rows("c1", vni, &[(both, GUEST_ADDRESS)]);
    drop(guest);
    for nic in ["web/w1", "web/w2", "db/d1", "db/d2"] {
        fabric.lab.admin(&format!("nic delete e35/{nic}"));
    }
    fabric.lab.admin("subnet delete e35/db");
}
