//! Scenarios that are not of this issue, and the one that is a lab of its own.

use crate::{Cell, Column, Row};
use lab::Lab;

pub(crate) const E23: Row = Row {
    id: "E23",
    case: "Type-5 prefixes between VRFs",
    run: |_| {
        Cell::NotApplicable(
            "routers are not built yet: no host has a VRF; Type-5 routes are reflected as they came, see E17",
        )
    },
};

pub(crate) const E24: Row = Row {
    id: "E24",
    case: "Symmetric IRB with an anycast gateway",
    run: |_| Cell::NotApplicable("routers are not built yet: a subnet has no gateway"),
};

pub(crate) const E29: Row = Row {
    id: "E29",
    case: "BFD",
    run: |_| {
        Cell::NotApplicable(
            "BFD is not built: a hold time of 9 s ends a session, and no row goes with a session",
        )
    },
};

pub(crate) const E30: Row = Row {
    id: "E30",
    case: "An underlay of IPv6: sessions, endpoints, tunnels",
    run: |fabric| match fabric.column {
        Column::BuiltIn => {
            ipv6();
            Cell::Pass
        }
        Column::FrrClient => Cell::NotApplicable("FRR has VTEPs with IPv6 addresses from 10.6 on"),
        Column::FrrReflector => {
            Cell::NotApplicable("FRR reads routes of VTEPs with IPv6 addresses from 10.6 on")
        }
        Column::GobgpReflector => Cell::NotApplicable("the lab has GoBGP on IPv4 alone"),
    },
};

fn ipv6() {
    let lab = Lab::up_with(&["--hosts", "m1,c1,c2", "--underlay", "ipv6"]);
    let (c1, c2) = ("fd64:40::6440:2", "fd64:40::6440:3");
    lab.admin("create e30 --cidr 10.4.0.0/16");
    let subnet = lab.admin("subnet create e30/web --cidr 10.4.1.0/24");
    let vni = subnet["vni"].as_u64().expect("a VNI");
    for (name, host, number) in [("a", "c1", 11), ("b", "c2", 12)] {
        lab.admin(&format!(
            "nic create e30/web/{name} --host {host} --attach netns:{name} --ip 10.4.1.{number} \
             --mac 02:00:00:00:30:{number} --wait"
        ));
    }
    for (host, number, vtep) in [("c1", 12, c2), ("c2", 11, c1)] {
        lab.eventually(&format!("{host} has its rows"), || {
            let fdb = lab.sh(host, &format!("bridge fdb show dev t-{vni}"));
            let flood = format!("00:00:00:00:00:00 dst {vtep}");
            let mac = format!("02:00:00:00:30:{number} dst {vtep}");
            match fdb.contains(&flood) && fdb.contains(&mac) {
                true => Ok(()),
                false => Err(fdb),
            }
        });
    }
    lab.reaches("c1/a", "10.4.1.12");
    lab.admin("nic delete e30/web/b --wait");
    lab.eventually("the rows go with the NIC", || {
        let fdb = lab.sh("c1", &format!("bridge fdb show dev t-{vni}"));
        match fdb.contains("dst fd") {
            true => Err(fdb),
            false => Ok(()),
        }
    });
}

pub(crate) const E31: Row = Row {
    id: "E31",
    case: "eBGP over the fabric",
    run: |_| Cell::NotApplicable("all sessions are of one AS: eBGP is not built"),
};

pub(crate) const E34: Row = Row {
    id: "E34",
    case: "24 hours of changes",
    run: |_| Cell::NotApplicable("takes a day: not run for this table"),
};
