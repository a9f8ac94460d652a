//! MACs that move, and MACs that several say to have.

use crate::fabric::{C1, C2, Fabric, GUEST_ADDRESS, HOSTS, M1_ADDRESS, NOBODY, Vpc};
use crate::guest::{Guest, mac_with};
use crate::{Cell, Column, Row};
use lab::Ping;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// One MAC on `c1`, and a NIC on `c2` and `c3`, which watch.
fn watched(vpc: &Vpc<'_>) {
    vpc.nic("a11", "c1", 11);
    vpc.nic("a12", "c2", 12);
    vpc.nic("a13", "c3", 13);
}

/// Waits until each of these hosts has a row to the VTEP for the MAC.
fn is_behind(fabric: &Fabric, vpc: &Vpc<'_>, hosts: &[&str], mac: &str, vtep: &str) {
    for host in hosts {
        let wanted = (mac.to_owned(), vtep.to_owned());
        fabric
            .lab
            .eventually(&format!("{host} has {mac} behind {vtep}"), || match fabric
                .rows(host, vpc.vni)
            {
                rows if rows.contains(&wanted) => Ok(()),
                rows => Err(format!("{rows:?}")),
            });
    }
}

/// Waits until the guest hears the MAC from a VTEP with this sequence.
fn heard(fabric: &Fabric, guest: &Guest<'_>, mac: &str, expected: Option<(&str, u32)>) {
    let expected = expected.map(|(vtep, sequence)| (vtep.to_owned(), sequence));
    fabric.lab.eventually(
        &format!("the guest hears {mac} as {expected:?}"),
        || match guest.hears(mac) {
            heard if heard == expected => Ok(()),
            heard => Err(format!("{heard:?}")),
        },
    );
}

/// A guest with nothing behind it that has heard of the MAC on `c1`.
fn listening<'a>(fabric: &'a Fabric, vpc: &Vpc<'_>, mac: &str) -> Guest<'a> {
    let guest = Guest::new(fabric);
    guest.has(vpc, &[]);
    guest.connect();
    heard(fabric, &guest, mac, Some((C1, 0)));
    guest
}

pub(crate) const E05: Row = Row {
    id: "E05",
    case: "A MAC moves to and fro with the next sequence each time, and is claimed elsewhere: all VTEPs agree",
    run: |fabric| {
        let vpc = fabric.vpc("e05");
        watched(&vpc);
        let mac = vpc.mac(11);
        let guest = listening(fabric, &vpc, &mac);
        is_behind(fabric, &vpc, &["c2", "c3"], &mac, C1);
        // Without a NIC in it, c1 has no tunnel for the subnet.
        for (host, vtep, sequence, others) in
            [("c2", C2, 1, &["c3"][..]), ("c1", C1, 2, &["c2", "c3"])]
        {
            fabric
                .lab
                .admin(&format!("nic move e05/web/a11 --host {host}"));
            heard(fabric, &guest, &mac, Some((vtep, sequence)));
            is_behind(fabric, &vpc, others, &mac, vtep);
        }
        guest.has(&vpc, &[(mac.as_str(), mac_with("10.4.1.11", false))]);
        is_behind(fabric, &vpc, &["c1", "c2", "c3"], &mac, GUEST_ADDRESS);
        // Who lost it no longer says to have it.
        heard(fabric, &guest, &mac, None);
        // And back, when the other leaves.
        guest.has(&vpc, &[]);
        is_behind(fabric, &vpc, &["c2", "c3"], &mac, C1);
        Cell::Pass
    },
};

pub(crate) const E06: Row = Row {
    id: "E06",
    case: "Two VTEPs with the same sequence: the lower address wins, the other falls silent",
    run: |fabric| {
        let vpc = fabric.vpc("e06");
        watched(&vpc);
        let mac = vpc.mac(11);
        let guest = Guest::new(fabric);
        // Told before it is connected, and so without knowing of the other.
        guest.has(&vpc, &[(mac.as_str(), mac_with("10.4.1.11", false))]);
        guest.connect();
        heard(fabric, &guest, &mac, Some((C1, 0)));
        is_behind(fabric, &vpc, &["c2", "c3"], &mac, C1);
        let rows = fabric.rows("c1", vpc.vni);
        assert!(!rows.iter().any(|(held, _)| *held == mac), "{rows:?}");
        // It says no longer what it said first.
        fabric.lab.eventually("the guest falls silent", || {
            let mut routes = guest.routes().into_iter();
            match routes.find(|route| route.from.is_none() && route.route.contains(&mac)) {
                Some(route) => Err(format!("{route:#?}")),
                None => Ok(()),
            }
        });
        drop(guest);
        if !matches!(fabric.column, Column::FrrReflector | Column::GobgpReflector) {
            // Our reflector lets nobody speak for another VTEP.
            return Cell::Pass;
        }
        // The other way round: its VTEP address is lower than c1's, and c1 falls silent.
        let guest = Guest::new(fabric);
        let claim = [(mac.as_str(), mac_with("10.4.1.11", false))];
        guest.has_as(M1_ADDRESS, &vpc, &claim);
        guest.connect();
        is_behind(fabric, &vpc, &["c1", "c2", "c3"], &mac, M1_ADDRESS);
        heard(fabric, &guest, &mac, None);
        drop(guest);
        is_behind(fabric, &vpc, &["c2", "c3"], &mac, C1);
        Cell::Pass
    },
};

pub(crate) const E07: Row = Row {
    id: "E07",
    case: "A sticky MAC is not taken over, and who tries is told of",
    run: |fabric| {
        let vpc = fabric.vpc("e07");
        vpc.nic("a12", "c2", 12);
        vpc.nic("a13", "c3", 13);
        let mac = vpc.mac(11);
        let guest = Guest::new(fabric);
        guest.has(&vpc, &[(mac.as_str(), mac_with("10.4.1.11", true))]);
        guest.connect();
        is_behind(fabric, &vpc, &["c2", "c3"], &mac, GUEST_ADDRESS);
        vpc.nic("a11", "c1", 11);
        is_behind(fabric, &vpc, &["c1", "c2", "c3"], &mac, GUEST_ADDRESS);
        heard(fabric, &guest, &mac, None);
        let rows = fabric.rows("c1", vpc.vni);
        assert!(
            rows.contains(&(NOBODY.to_owned(), GUEST_ADDRESS.to_owned())),
            "{rows:?}"
        );
        let told = "A static MAC is claimed by another VTEP";
        if fabric.column != Column::FrrClient {
            is_logged(fabric, "c1", told, &mac);
        }
        Cell::Pass
    },
};

/// Waits until a host's log has a line with both.
fn is_logged(fabric: &Fabric, host: &str, what: &str, whom: &str) {
    let log = fabric.lab.logs().join(format!("{host}-agent.log"));
    fabric.lab.eventually(&format!("{host} tells: {what}"), || {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        let mut lines = text.lines();
        match lines.any(|line| line.contains(what) && line.contains(whom)) {
            true => Ok(()),
            false => Err(text.lines().last().unwrap_or_default().to_owned()),
        }
    });
}

/// Waits until none of these hosts has a row with this MAC and VTEP; without VTEP, with this MAC.
fn is_gone(fabric: &Fabric, vpc: &Vpc<'_>, hosts: &[&str], mac: &str, vtep: Option<&str>) {
    for host in hosts {
        fabric.lab.eventually(&format!("{host} has no row"), || {
            let rows = fabric.rows(host, vpc.vni);
            let of_mac =
                |(held, to): &(String, String)| held == mac && vtep.is_none_or(|vtep| to == vtep);
            match rows.iter().any(of_mac) {
                true => Err(format!("{rows:?}")),
                false => Ok(()),
            }
        });
    }
}

/// When a frozen MAC is given another chance.
const RECOVERY: Duration = Duration::from_secs(180);

pub(crate) const E08: Row = Row {
    id: "E08",
    case: "A MAC that goes to and fro is frozen where it is a NIC's, and told of; others follow; it thaws when told to, and after 180 s",
    run: |fabric| {
        let vpc = fabric.vpc("e08");
        watched(&vpc);
        let mac = vpc.mac(11);
        let guest = listening(fabric, &vpc, &mac);
        let row = (mac.clone(), GUEST_ADDRESS.to_owned());
        let claims = || guest.has(&vpc, &[(mac.as_str(), mac_with("10.4.1.11", false))]);
        let leaves = || guest.has(&vpc, &[]);
        let frozen_row = || {
            let rows = fabric.rows("c1", vpc.vni);
            assert!(
                rows.contains(&row),
                "c1 has it where it was frozen: {rows:?}"
            );
        };
        // Five moves, as c1 sees them: there, back, there, back, there.
        for round in 0..3 {
            claims();
            is_behind(fabric, &vpc, &["c1", "c2", "c3"], &mac, GUEST_ADDRESS);
            if round < 2 {
                leaves();
                is_behind(fabric, &vpc, &["c2", "c3"], &mac, C1);
            }
        }
        is_logged(fabric, "c1", "A MAC moves to and fro", &mac);
        // From here on c1 takes no part. Its row stays as it is, whatever the other says, and it
        // says nothing new: that another NIC came is behind whatever it would have said.
        for _ in 0..2 {
            leaves();
            is_gone(fabric, &vpc, &["c2", "c3"], &mac, Some(GUEST_ADDRESS));
            frozen_row();
            claims();
            is_behind(fabric, &vpc, &["c2", "c3"], &mac, GUEST_ADDRESS);
            frozen_row();
        }
        vpc.nic("a14", "c1", 14);
        heard(fabric, &guest, &vpc.mac(14), Some((C1, 0)));
        // What ours told last stands, FRR takes it back; neither raises its sequence.
        let last = match fabric.column {
            Column::FrrClient => None,
            _ => Some((C1, 0)),
        };
        heard(fabric, &guest, &mac, last);
        // Cleared: c1 takes part again, and has it when the other leaves.
        let line = format!("vpc evpn clear {mac} --vni {}", vpc.vni);
        fabric.lab.sh("c1", &line);
        leaves();
        is_gone(fabric, &vpc, &["c1"], &mac, None);
        is_behind(fabric, &vpc, &["c2", "c3"], &mac, C1);
        // Too often again, as the host counts it; it may be frozen there or as its own.
        let own = (mac.clone(), C1.to_owned());
        let is_frozen = || is_frozen(fabric, &mac);
        for _ in 0..6 {
            claims();
            is_behind(fabric, &vpc, &["c2", "c3"], &mac, GUEST_ADDRESS);
            fabric.lab.eventually("c1 follows, or no longer", || {
                match fabric.rows("c1", vpc.vni) {
                    rows if rows.contains(&row) || is_frozen() => Ok(()),
                    rows => Err(format!("{rows:?}")),
                }
            });
            leaves();
            is_gone(fabric, &vpc, &["c2", "c3"], &mac, Some(GUEST_ADDRESS));
            fabric.lab.eventually("c1 has it back, or no longer", || {
                match fabric.rows("c2", vpc.vni) {
                    rows if rows.contains(&own) || is_frozen() => Ok(()),
                    rows => Err(format!("{rows:?}")),
                }
            });
            if is_frozen() {
                break;
            }
        }
        assert!(is_frozen(), "it is frozen again");
        let frozen = Instant::now();
        // Nobody is told that it is c1's until it thaws.
        let rows = fabric.rows("c2", vpc.vni);
        assert!(!rows.contains(&own), "{rows:?}");
        testkit::eventually(
            "c1 takes part again",
            RECOVERY + lab::LIMIT,
            || match fabric.rows("c2", vpc.vni) {
                rows if rows.contains(&own) => Ok(()),
                rows => Err(format!("{rows:?}")),
            },
        );
        assert!(frozen.elapsed() > RECOVERY / 2, "{:?}", frozen.elapsed());
        is_behind(fabric, &vpc, &["c3"], &mac, C1);
        Cell::Pass
    },
};

/// True if c1, which was thawed once, has frozen the MAC again. Beside FRR the agent freezes, too.
fn is_frozen(fabric: &Fabric, mac: &str) -> bool {
    let log = fabric.lab.logs().join("c1-agent.log");
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let told = |line: &&str| line.contains("A MAC moves to and fro") && line.contains(mac);
    text.lines().filter(told).count() > 1
}

pub(crate) const E10: Row = Row {
    id: "E10",
    case: "A MAC's address changes, an address's MAC changes, on one VTEP and between two",
    run: |fabric| {
        let vpc = fabric.vpc("e10");
        watched(&vpc);
        let (first, second, third) = (vpc.mac(21), vpc.mac(22), vpc.mac(23));
        let pair = |address: &str, mac: &str| (address.to_owned(), mac.to_owned());
        let (one, two) = (
            pair("10.4.1.11", &vpc.mac(11)),
            pair("10.4.1.12", &vpc.mac(12)),
        );
        let neighbours_are = |what: &str, host: &str, expected: &[&(String, String)]| {
            let expected: BTreeSet<(String, String)> =
                expected.iter().map(|p| (*p).clone()).collect();
            fabric.lab.eventually(what, || {
                let seen = fabric.neighbours(host, &vpc).into_iter();
                let seen: BTreeSet<_> = seen.filter(|(ip, _)| ip.starts_with("10.")).collect();
                match seen == expected {
                    true => Ok(()),
                    false => Err(format!("{seen:?}, not {expected:?}")),
                }
            });
        };
        let guest = Guest::new(fabric);
        guest.has(&vpc, &[(&first, mac_with("10.4.1.31", false))]);
        guest.connect();
        neighbours_are(
            "an address",
            "c3",
            &[&one, &two, &pair("10.4.1.31", &first)],
        );
        guest.has(&vpc, &[(&first, mac_with("10.4.1.32", false))]);
        neighbours_are(
            "its MAC has another",
            "c3",
            &[&one, &two, &pair("10.4.1.32", &first)],
        );
        guest.has(&vpc, &[(&second, mac_with("10.4.1.32", false))]);
        neighbours_are(
            "it has another MAC",
            "c3",
            &[&one, &two, &pair("10.4.1.32", &second)],
        );
        fabric.lab.eventually("the first MAC is gone", || {
            match fabric.rows("c3", vpc.vni) {
                rows if rows.iter().any(|(mac, _)| *mac == first) => Err(format!("{rows:?}")),
                _ => Ok(()),
            }
        });
        fabric.has_rows("c1", vpc.vni, &[(&second, GUEST_ADDRESS)]);
        // Elsewhere, with a third MAC (RFC 9721): the old binding is withdrawn, the old MAC is not.
        vpc.nic_with_mac("a32", "c1", 32, &third);
        neighbours_are(
            "it has a third MAC",
            "c3",
            &[&one, &two, &pair("10.4.1.32", &third)],
        );
        fabric.has_rows(
            "c3",
            vpc.vni,
            &[(&second, GUEST_ADDRESS), (&third, C1), (NOBODY, C1)],
        );
        fabric
            .lab
            .eventually("the guest withdraws the address", || {
                let routes = guest.routes().into_iter();
                let own: Vec<_> = routes
                    .filter(|r| r.from.is_none() && r.route.contains(&second))
                    .collect();
                match own.iter().any(|route| route.route.contains("10.4.1.32")) || own.is_empty() {
                    true => Err(format!("{own:#?}")),
                    false => Ok(()),
                }
            });
        fabric.lab.reaches(&vpc.place("c3", "a13"), "10.4.1.32");
        vpc.delete_nic("a32");
        neighbours_are(
            "the guest has it again",
            "c3",
            &[&one, &two, &pair("10.4.1.32", &second)],
        );
        Cell::Pass
    },
};

pub(crate) const E33: Row = Row {
    id: "E33",
    case: "A host with another's VTEP address: told, nobody else loses a packet",
    run: |fabric| {
        let vpc = fabric.vpc("e33");
        watched(&vpc);
        let (two, three, mac) = (vpc.mac(12), vpc.mac(13), vpc.mac(21));
        fabric.has_rows("c1", vpc.vni, &[(&two, C2)]);
        let place = vpc.place("c2", "a12");
        fabric.lab.reaches(&place, &Vpc::ipv4(13));
        fabric.lab.reaches(&place, &Vpc::ipv4(11));
        let pings = [11, 13].map(|number| {
            Ping::start(
                &fabric.lab,
                &place,
                &Vpc::ipv4(number),
                Duration::from_millis(10),
            )
        });
        let sessions = fabric.connections();
        let guest = Guest::new(fabric);
        guest.has_as(C1, &vpc, &[(&mac, mac_with("10.4.1.21", false))]);
        guest.connect();
        match fabric.column {
            Column::BuiltIn | Column::FrrClient => {
                // Our reflector knows whose address it is.
                let host = fabric.reflector_host();
                fabric.lab.eventually("the reflector's host tells", || {
                    let told = lab::text_of(&fabric.lab.try_sh(host, "vpc doctor"));
                    let whom = format!("{GUEST_ADDRESS} announces routes of another host");
                    match told.contains(&whom) && told.contains(&format!("with next hop {C1}")) {
                        true => Ok(()),
                        false => Err(told),
                    }
                });
                for host in ["c2", "c3"] {
                    let rows = fabric.rows(host, vpc.vni);
                    assert!(!rows.iter().any(|(held, _)| *held == mac), "{rows:?}");
                }
            }
            Column::FrrReflector | Column::GobgpReflector => {
                // Nobody can tell from afar that the address is two hosts'.
                is_behind(fabric, &vpc, &["c2", "c3"], &mac, C1);
                is_logged(
                    fabric,
                    "c1",
                    "Another host announces this VTEP address",
                    GUEST_ADDRESS,
                );
            }
        }
        let rows = fabric.rows("c1", vpc.vni);
        assert!(
            !rows.iter().any(|(_, vtep)| vtep == C1),
            "a tunnel to itself: {rows:?}"
        );
        fabric.has_rows("c1", vpc.vni, &[(&two, C2), (&three, crate::fabric::C3)]);
        drop(guest);
        for host in &HOSTS[1..] {
            fabric
                .lab
                .eventually("it is gone", || match fabric.rows(host, vpc.vni) {
                    rows if rows.iter().any(|(held, _)| *held == mac) => Err(format!("{rows:?}")),
                    _ => Ok(()),
                });
        }
        assert_eq!(fabric.connections(), sessions, "the sessions are the same");
        for ping in pings {
            let result = ping.stop();
            assert_eq!((result.lost(), result.duplicates), (0, 0), "{result:?}");
        }
        Cell::Pass
    },
};
