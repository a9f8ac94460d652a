//! MACs that move, and MACs that several say to have.

use crate::fabric::{C1, Fabric, GUEST_ADDRESS, NOBODY, Vpc};
use crate::guest::{Guest, mac_with};
use crate::{Cell, Row};

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

pub(crate) const E05: Row = Row {
    id: "E05",
    case: "A MAC is claimed elsewhere with the next sequence, and comes back: all VTEPs agree",
    run: |fabric| {
        let vpc = fabric.vpc("e05");
        watched(&vpc);
        let mac = vpc.mac(11);
        let guest = Guest::new(fabric);
        guest.has(&vpc, &[]);
        guest.connect();
        heard(fabric, &guest, &mac, Some((C1, 0)));
        is_behind(fabric, &vpc, &["c2", "c3"], &mac, C1);
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
        Cell::Pass
    },
};

pub(crate) const E07: Row = Row {
    id: "E07",
    case: "A sticky MAC is not taken over",
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
        Cell::Pass
    },
};
