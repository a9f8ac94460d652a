//! The reflector dies and comes back, and nothing is lost by it.

use super::everywhere;
use crate::fabric::{C1, C2, C3, Fabric, GUEST, GUEST_ADDRESS, HOSTS, NOBODY, Vpc};
use crate::foreign::asn;
use crate::guest::{Guest, Second, mac_with};
use crate::raw::{
    EVPN, Raw, VXLAN, as_path, attribute, communities, local_pref, origin, reach, route, target,
    unreach, update, value_of,
};
use crate::{Cell, Column, Row};
use evpn::{RouteTargets, Timing};
use lab::wire;
use lab::{Ping, difference};
use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Duration;

/// Twice, under pings, with all rows as they were at each step.
fn dies_and_returns(fabric: &Fabric, vpc: &Vpc<'_>) {
    for (number, host) in (11..).zip(HOSTS) {
        vpc.nic(&format!("a{number}"), host, number);
    }
    let (one, two, three) = (vpc.mac(11), vpc.mac(12), vpc.mac(13));
    let of_1 = [(NOBODY, C1), (one.as_str(), C1)];
    let of_2 = [(NOBODY, C2), (two.as_str(), C2)];
    let of_3 = [(NOBODY, C3), (three.as_str(), C3)];
    fabric.rows_become("c1", vpc.vni, &[of_2, of_3].concat());
    fabric.rows_become("c2", vpc.vni, &[of_1, of_3].concat());
    fabric.rows_become("c3", vpc.vni, &[of_1, of_2].concat());
    let pings: Vec<Ping> = [("c1", "a11", 12), ("c2", "a12", 13), ("c3", "a13", 11)]
        .into_iter()
        .map(|(host, nic, to)| {
            let place = vpc.place(host, nic);
            fabric.lab.reaches(&place, &Vpc::ipv4(to));
            Ping::start(
                &fabric.lab,
                &place,
                &Vpc::ipv4(to),
                Duration::from_millis(10),
            )
        })
        .collect();
    let before: Vec<String> = HOSTS.iter().map(|host| fabric.lab.dump(host)).collect();
    let unchanged = |when: &str| {
        for (host, before) in HOSTS.iter().zip(&before) {
            let now = fabric.lab.dump(host);
            assert_eq!(*before, now, "{host} {when}: {}", difference(before, &now));
        }
    };
    for _ in 0..2 {
        fabric.kill_reflector();
        unchanged("without reflector");
        fabric.start_reflector();
        unchanged("with it again");
    }
    // What is new is learned on the new session, and what goes is withdrawn.
    vpc.nic("a14", "c2", 14);
    let new = vpc.mac(14);
    fabric.rows_become(
        "c1",
        vpc.vni,
        &[&of_2[..], &[(new.as_str(), C2)], &of_3].concat(),
    );
    vpc.delete_nic("a14");
    fabric.rows_become("c1", vpc.vni, &[of_2, of_3].concat());
    for ping in pings {
        let result = ping.stop();
        assert_eq!((result.lost(), result.duplicates), (0, 0), "{result:?}");
    }
}

pub(crate) const E18: Row = Row {
    id: "E18",
    case: "The reflector is killed and restarts: rows stay, no ping lost, what follows is learned",
    run: |fabric| {
        let vpc = fabric.vpc("e18");
        dies_and_returns(fabric, &vpc);
        Cell::Pass
    },
};

pub(crate) const E20: Row = Row {
    id: "E20",
    case: "Agents are killed: own rows adopted, none touched, no ping lost",
    run: |fabric| {
        let vpc = fabric.vpc("e20");
        vpc.nic("a11", "c1", 11);
        vpc.nic("a12", "c2", 12);
        let (one, two) = (vpc.mac(11), vpc.mac(12));
        fabric.rows_become("c1", vpc.vni, &[(NOBODY, C2), (two.as_str(), C2)]);
        fabric.rows_become("c2", vpc.vni, &[(NOBODY, C1), (one.as_str(), C1)]);
        let place = vpc.place("c1", "a11");
        fabric.lab.reaches(&place, &Vpc::ipv4(12));
        let ping = Ping::start(
            &fabric.lab,
            &place,
            &Vpc::ipv4(12),
            Duration::from_millis(10),
        );
        let before: Vec<String> = HOSTS.iter().map(|host| fabric.lab.dump(host)).collect();
        for round in 0..5 {
            let victims = [&["c1"][..], &["c2"], &["c1", "c2"]][round % 3];
            for host in victims {
                fabric.lab.kill(host, "agent");
            }
            // A reflector without graceful restart takes their routes back; others know that they are
            // members.
            for host in victims {
                fabric.lab.start(host, "agent");
            }
            for host in victims {
                fabric.established(host);
            }
        }
        for (host, before) in HOSTS.iter().zip(&before) {
            let now = fabric.lab.dump(host);
            assert_eq!(*before, now, "{host}: {}", difference(before, &now));
        }
        let result = ping.stop();
        assert_eq!((result.lost(), result.duplicates), (0, 0), "{result:?}");
        Cell::Pass
    },
};

/// ORIGINATOR_ID and CLUSTER_LIST, and the next hop as it came (RFC 4456 §8, §10).
fn reflected(fabric: &Fabric, vpc: &Vpc<'_>) {
    let raw = Raw::connect(fabric, GUEST, GUEST_ADDRESS);
    let octets = |address: &str| address.parse::<Ipv4Addr>().expect("an address").octets();
    let mac = wire::mac(&vpc.mac(11));
    let heard = fabric.lab.eventually("c1's route is reflected", || {
        raw.updates_with(&mac)
            .pop()
            .ok_or_else(|| format!("{:02x?}", raw.heard()))
    });
    let value = |kind: u8| value_of(&heard, kind).map(|(_, value)| value);
    let reached = value(14).expect("it is announced");
    assert_eq!(
        reached[3..8],
        [&[4], &octets(C1)[..]].concat(),
        "the next hop is c1"
    );
    assert_eq!(value(9), Some(octets(C1).to_vec()), "ORIGINATOR_ID is c1");
    let cluster = value(10).expect("a CLUSTER_LIST");
    assert_eq!(cluster.len(), 4, "of one cluster: {cluster:?}");
    // What went through this cluster before is dropped; the same without it is not.
    let (vni, asn) = (vpc.label(), asn(&fabric.lab));
    let says = |mac: &str, more: Vec<u8>| {
        let routes = raw.mac_route(wire::mac(mac), &[], vni);
        let targets = communities(&[target(asn, vni), VXLAN]);
        let next_hop = reach(&raw.address().octets(), &routes);
        raw.says(&update(&[
            next_hop,
            origin(),
            as_path(),
            local_pref(),
            targets,
            more,
        ]));
    };
    let (looped, fresh) = (vpc.mac(31), vpc.mac(32));
    let originator = attribute(0x80, 9, &[10, 9, 9, 9]);
    says(
        &looped,
        [originator.clone(), attribute(0x80, 10, &cluster)].concat(),
    );
    says(
        &fresh,
        [originator, attribute(0x80, 10, &[10, 9, 9, 9])].concat(),
    );
    fabric.has_rows("c2", vpc.vni, &[(&fresh, GUEST_ADDRESS)]);
    let rows = fabric.rows("c2", vpc.vni);
    assert!(
        !rows.iter().any(|(mac, _)| *mac == looped),
        "a loop: {rows:?}"
    );
}

pub(crate) const E15: Row = Row {
    id: "E15",
    case: "Reflection as of RFC 4456; two reflectors: each dies in turn, no row doubles or goes, no ping is lost",
    run: |fabric| {
        let vpc = fabric.vpc("e15");
        everywhere(&vpc);
        let (one, two, three) = (vpc.mac(11), vpc.mac(12), vpc.mac(13));
        let of_1 = [(NOBODY, C1), (one.as_str(), C1)];
        let of_2 = [(NOBODY, C2), (two.as_str(), C2)];
        let of_3 = [(NOBODY, C3), (three.as_str(), C3)];
        fabric.rows_become("c1", vpc.vni, &[of_2, of_3].concat());
        fabric.rows_become("c2", vpc.vni, &[of_1, of_3].concat());
        reflected(fabric, &vpc);
        fabric.rows_become("c2", vpc.vni, &[of_1, of_3].concat());
        // FRR's host may give up rows later than others.
        fabric.rows_become("c1", vpc.vni, &[of_2, of_3].concat());
        fabric.rows_become("c3", vpc.vni, &[of_1, of_2].concat());
        let place = vpc.place("c1", "a11");
        fabric.lab.reaches(&place, &Vpc::ipv4(12));
        let ping = Ping::start(
            &fabric.lab,
            &place,
            &Vpc::ipv4(12),
            Duration::from_millis(10),
        );
        let dumps: Vec<String> = HOSTS.iter().map(|host| fabric.lab.dump(host)).collect();
        let unchanged = |when: &str| {
            for (host, before) in HOSTS.iter().zip(&dumps) {
                fabric
                    .lab
                    .eventually(&format!("{host} is as before {when}"), || {
                        match fabric.lab.dump(host) {
                            now if now == *before => Ok(()),
                            now => Err(difference(before, &now)),
                        }
                    });
            }
        };
        let second = Second::start(fabric);
        let first = fabric.reflector();
        fabric.set_reflectors(&[first, GUEST_ADDRESS]);
        unchanged("with two");
        second.dies();
        for host in HOSTS {
            fabric.sessions_are(host, &[first]);
        }
        unchanged("without the second");
        vpc.nic("a14", "c2", 14);
        fabric.has_rows("c1", vpc.vni, &[(&vpc.mac(14), C2)]);
        vpc.delete_nic("a14");
        unchanged("after a NIC came and went");
        let second = Second::start(fabric);
        for host in HOSTS {
            fabric.sessions_are(host, &[first, GUEST_ADDRESS]);
        }
        fabric.only_kill_reflector();
        for host in HOSTS {
            fabric.sessions_are(host, &[GUEST_ADDRESS]);
        }
        unchanged("without the first");
        // What goes and what comes is heard through the one that is left.
        fabric.lab.sh("c3", "vpc agent stop --withdraw");
        fabric.rows_become("c1", vpc.vni, &of_2);
        fabric.lab.start("c3", "agent");
        fabric.rows_become("c1", vpc.vni, &[of_2, of_3].concat());
        fabric.only_start_reflector();
        for host in HOSTS {
            fabric.sessions_are(host, &[first, GUEST_ADDRESS]);
        }
        unchanged("with both again");
        fabric.set_reflectors(&[first]);
        unchanged("with one again");
        let result = ping.stop();
        assert_eq!((result.lost(), result.duplicates), (0, 0), "{result:?}");
        second.dies();
        Cell::Pass
    },
};

pub(crate) const E16: Row = Row {
    id: "E16",
    case: "Wanted routes alone are sent (RFC 4684); those of a new VPC come on the same session",
    run: |fabric| {
        let (blue, red) = (fabric.vpc("e16a"), fabric.vpc("e16b"));
        for vpc in [&blue, &red] {
            vpc.nic("a11", "c1", 11);
            vpc.nic("a12", "c2", 12);
        }
        fabric.has_rows("c1", red.vni, &[(&red.mac(12), C2)]);
        let guest = Guest::new(fabric);
        guest.has_with(&[&blue], RouteTargets::Auto, &[]);
        guest.connect();
        let heard = || {
            let routes = guest
                .routes()
                .into_iter()
                .filter(|route| route.from.is_some());
            let macs: BTreeSet<String> = [(&blue, 11), (&blue, 12), (&red, 11), (&red, 12)]
                .into_iter()
                .map(|(vpc, number)| vpc.mac(number))
                .collect();
            let route: Vec<String> = routes.map(|route| route.route).collect();
            let held = |mac: &String| route.iter().any(|route| route.contains(mac.as_str()));
            macs.into_iter().filter(held).collect::<BTreeSet<String>>()
        };
        let of = |vpc: &Vpc<'_>| BTreeSet::from([vpc.mac(11), vpc.mac(12)]);
        let (of_blue, of_red) = (of(&blue), of(&red));
        let both: BTreeSet<String> = of_blue.union(&of_red).cloned().collect();
        let hears = |what: &str, wanted: &BTreeSet<String>| {
            fabric.lab.eventually(what, || match heard() {
                seen if seen == *wanted => Ok(()),
                seen => Err(format!("{seen:?}")),
            });
        };
        let does_it = fabric.column != Column::FrrReflector;
        hears(
            "the guest has what it wants",
            if does_it { &of_blue } else { &both },
        );
        let counters = guest.peer().counters;
        guest.has_with(&[&blue, &red], RouteTargets::Auto, &[]);
        hears("and more when it wants more", &both);
        guest.has_with(&[&red], RouteTargets::Auto, &[]);
        hears(
            "and less when it wants less",
            if does_it { &of_red } else { &both },
        );
        assert_eq!(
            guest.peer().counters.sessions,
            counters.sessions,
            "on the same session"
        );
        match does_it {
            true => Cell::Pass,
            false => Cell::NotApplicable(
                "FRR 8.4.4 has no route target constraint and sends everything; the rows are right",
            ),
        }
    },
};

pub(crate) const E17: Row = Row {
    id: "E17",
    case: "Routes and attributes that the reflector does not know are reflected octet for octet",
    run: |fabric| {
        fabric.lab.kill("c3", "agent");
        let from = Raw::connect(fabric, GUEST, GUEST_ADDRESS);
        let to = Raw::connect_with(fabric, "c3", C3, &[EVPN]);
        let rd = from.rd();
        let (segment, tag, label) = (
            [0, 7, 7, 7, 7, 7, 7, 7, 7, 7],
            [0, 0, 0, 5],
            [0, 0x12, 0x34],
        );
        let group = [
            &[32][..],
            &[239, 1, 1, 1],
            &[32],
            &[10, 4, 1, 1],
            &[32],
            &[100, 64, 0, 5],
        ]
        .concat();
        let known: Vec<(u8, Vec<u8>)> = vec![
            (1, [&rd[..], &segment, &tag, &label].concat()),
            (4, [&rd[..], &segment, &[32, 100, 64, 0, 5]].concat()),
            (
                5,
                [&rd[..], &[0; 10], &tag, &[24, 10, 9, 8, 0], &[0; 4], &label].concat(),
            ),
        ];
        let unknown: Vec<(u8, Vec<u8>)> = vec![
            (6, [&rd[..], &tag, &group, &[0x02]].concat()),
            (7, [&rd[..], &segment, &tag, &group, &[0]].concat()),
            (
                8,
                [&rd[..], &segment, &tag, &group, &[0, 0, 0, 1, 2, 3]].concat(),
            ),
            (9, [&rd[..], &tag, &group].concat()),
            (10, [&rd[..], &tag, &group].concat()),
            (11, [&rd[..], &tag, &group].concat()),
            (99, [&rd[..], &[0x5a; 40]].concat()),
        ];
        let asn = asn(&fabric.lab);
        let strange: [u8; 8] = [0x43, 0x77, 1, 2, 3, 4, 5, 6];
        let targets = [target(asn, 1_234), strange];
        let (mut lost, mut changed) = (Vec::new(), false);
        for (kind, value) in known.iter().chain(&unknown) {
            let bytes = route(*kind, value);
            from.says(&update(&[
                reach(&from.address().octets(), &bytes),
                origin(),
                as_path(),
                local_pref(),
                communities(&targets),
                // Optional and transitive, of a type that is nobody's.
                attribute(0xc0, 201, &[9, 8, 7, *kind]),
            ]));
        }
        // A plain one behind them: when it is through, so is what came before.
        let last = from.mac_route([2, 0xee, 0, 0, 17, 1], &[], 1_234);
        from.says(&update(&[
            reach(&from.address().octets(), &last),
            origin(),
            as_path(),
            local_pref(),
            communities(&targets),
        ]));
        fabric
            .lab
            .eventually("the last is reflected", || match to.updates_with(&last) {
                heard if heard.is_empty() => Err(format!("ended: {}", from.ended())),
                _ => Ok(()),
            });
        for (kind, value) in known.iter().chain(&unknown) {
            let bytes = route(*kind, value);
            // Sent before the last, though reflectors may put them in another order.
            let Some(heard) = to.updates_with(&bytes).pop() else {
                lost.push(*kind);
                changed |= !to.updates_with(&value[..value.len() - 3]).is_empty();
                continue;
            };
            let value = |kind: u8| value_of(&heard, kind).map(|(_, value)| value);
            assert_eq!(
                value(16),
                Some(targets.concat()),
                "type {kind}: communities"
            );
            assert_eq!(
                value(201),
                Some(vec![9, 8, 7, *kind]),
                "type {kind}: a strange attribute"
            );
            let next_hop = value(14).expect("it is announced")[4..8].to_vec();
            assert_eq!(next_hop, from.address().octets(), "type {kind}: next hop");
        }
        assert!(!from.ended() && !to.ended(), "the sessions are up");
        // Withdrawn; what is no part of a route's key need not be told again.
        for (kind, value) in known
            .iter()
            .chain(&unknown)
            .filter(|(kind, _)| !lost.contains(kind))
        {
            from.says(&update(&[unreach(&route(*kind, value))]));
            let key = &value[..value.len() - 3];
            fabric
                .lab
                .eventually(&format!("type {kind} is withdrawn"), || {
                    let heard = to.updates_with(key);
                    match heard.last().and_then(|update| value_of(update, 15)) {
                        Some(_) => Ok(()),
                        None => Err(format!("{heard:02x?}")),
                    }
                });
        }
        drop((from, to));
        fabric.lab.start("c3", "agent");
        fabric.established("c3");
        for host in HOSTS {
            fabric.established(host);
        }
        lost_types(fabric, &lost, changed)
    },
};

fn lost_types(fabric: &Fabric, lost: &[u8], changed: bool) -> Cell {
    let Some(first) = lost.first() else {
        return Cell::Pass;
    };
    match fabric.column {
        Column::FrrReflector if *first > 5 => Cell::NotApplicable(
            "FRR 8.4.4 drops routes of types 6 and above; types 1 to 5 come as they went",
        ),
        Column::FrrReflector if *first == 1 && lost[1..].iter().all(|kind| *kind > 5) => {
            match changed {
                true => Cell::NotApplicable(
                    "FRR 8.4.4 drops routes of types 6 and above, and type 1 loses its label; types 4 and 5 come as they went",
                ),
                false => Cell::NotApplicable(
                    "FRR 8.4.4 drops routes of type 1 without a segment of its own, and of types 6 and above; types 4 and 5 come as they went",
                ),
            }
        }
        Column::GobgpReflector if *first > 5 => Cell::NotApplicable(
            "GoBGP 3.10 drops routes of types 6 and above; types 1 to 5 come as they went",
        ),
        _ => panic!("routes of types {lost:?} are not reflected"),
    }
}

pub(crate) const E19: Row = Row {
    id: "E19",
    case: "Long-lived graceful restart: what a host that is gone told stays as a last resort, anything fresh wins",
    run: |fabric| {
        if fabric.column == Column::FrrReflector {
            return Cell::NotApplicable(
                "FRR has graceful restart for EVPN from 10.6 on, and no long-lived one",
            );
        }
        let vpc = fabric.vpc("e19");
        // Who takes the MAC over. FRR never takes another's static MAC over, so there it looks on.
        let (fresh, vtep, other, its, number) = match fabric.column {
            Column::FrrClient => ("c2", C2, "c1", C1, 10),
            _ => ("c1", C1, "c2", C2, 12),
        };
        vpc.nic("a12", other, number);
        vpc.nic("a13", "c3", 13);
        let lookers = [other, "c3"];
        let mac = vpc.mac(11);
        let guest = Guest::with(
            fabric,
            Timing {
                restart_time: Duration::from_secs(2),
                long_lived: Duration::from_secs(300),
                ..Timing::default()
            },
        );
        // Sticky: while it is fresh nobody can take it over, see E07.
        guest.has(&vpc, &[(mac.as_str(), mac_with("10.4.1.11", true))]);
        guest.connect();
        let of_guest = [(NOBODY, GUEST_ADDRESS), (mac.as_str(), GUEST_ADDRESS)];
        for host in lookers {
            fabric.has_rows(host, vpc.vni, &of_guest);
        }
        guest.leaves();
        fabric
            .lab
            .eventually("c3 knows that it is a last resort", || {
                let routes = fabric.best_routes("c3", vpc.vni);
                let of_mac = routes.iter().find(|route| route["mac"] == mac.as_str());
                match of_mac
                    .is_some_and(|route| route["attributes"].to_string().contains("long-lived"))
                {
                    true => Ok(()),
                    false => Err(format!("{of_mac:#?}")),
                }
            });
        for host in lookers {
            fabric.has_rows(host, vpc.vni, &of_guest);
        }
        vpc.nic("a11", fresh, 11);
        for host in lookers {
            fabric.has_rows(host, vpc.vni, &[(&mac, vtep)]);
        }
        let rows = fabric.rows(fresh, vpc.vni);
        assert!(!rows.iter().any(|(held, _)| *held == mac), "{rows:?}");
        // It says again what is behind it, nothing now: the last of it goes.
        let guest = Guest::new(fabric);
        guest.has_with(&[], RouteTargets::Auto, &[]);
        guest.connect();
        let (two, three) = (vpc.mac(number), vpc.mac(13));
        let of_3 = [(NOBODY, C3), (three.as_str(), C3)];
        let of_fresh = [(NOBODY, vtep), (mac.as_str(), vtep)];
        let of_other = [(NOBODY, its), (two.as_str(), its)];
        fabric.rows_become(other, vpc.vni, &[of_fresh, of_3].concat());
        fabric.rows_become(fresh, vpc.vni, &[of_other, of_3].concat());
        Cell::Pass
    },
};
