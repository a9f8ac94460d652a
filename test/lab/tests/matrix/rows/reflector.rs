//! The reflector dies and comes back, and nothing is lost by it.

use crate::fabric::{C1, C2, C3, Fabric, HOSTS, NOBODY, Vpc};
use crate::{Cell, Row};
use lab::{Ping, difference};
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
            for host in victims {
                fabric.lab.start(host, "agent");
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
