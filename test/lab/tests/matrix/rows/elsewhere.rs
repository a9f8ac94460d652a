//! Scenarios that are not built yet, and the one that is a lab of its own.

use crate::fabric::{Fabric, GUEST, GUEST_ADDRESS, HOSTS};
use crate::foreign::asn;
use crate::raw::{
    NOTIFICATION, Raw, VXLAN, as_path, attribute, communities, local_pref, origin, reach, route,
    target, update,
};
use crate::{Cell, Column, Row};
use lab::{Lab, text_of};

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
            ipv6(&[]);
            Cell::Pass
        }
        Column::FrrClient => {
            // FRR is refused beside TAPs.
            let lab = ipv6(&["--transport", "kernel"]);
            lab.admin("host set c1 --speaker frr");
            lab.eventually("c1 says that FRR cannot be its client", || {
                match text_of(&lab.try_sh("c1", "vpc agent status")) {
                    text if text.contains("cannot be this host's EVPN client") => Ok(()),
                    text => Err(text),
                }
            });
            Cell::NotApplicable(
                "FRR has VTEPs with IPv6 addresses from 10.6 on; the agent says so in place of running it",
            )
        }
        Column::FrrReflector => {
            ends_at_ipv6_floods(fabric);
            Cell::NotApplicable(
                "FRR 8.4.4 ends the session at a flood route of a VTEP with an IPv6 address; 10.6 takes them",
            )
        }
        Column::GobgpReflector => {
            ipv6(&["--reflector", "external"]);
            Cell::Pass
        }
    },
};

/// A flood route of an IPv6 VTEP ends the session, that of an IPv4 VTEP does not.
fn ends_at_ipv6_floods(fabric: &Fabric) {
    let raw = Raw::connect(fabric, GUEST, GUEST_ADDRESS);
    let flood = |address: &[u8]| {
        let bits = u8::try_from(address.len() * 8).expect("an address");
        let bytes = route(3, &[&raw.rd()[..], &[0; 4], &[bits], address].concat());
        let tunnel = [&[0, 6, 0, 0x12, 0x34][..], address].concat();
        raw.says(&update(&[
            reach(&raw.address().octets(), &bytes),
            origin(),
            as_path(),
            local_pref(),
            communities(&[target(asn(&fabric.lab), 0x1234), VXLAN]),
            attribute(0xc0, 22, &tunnel),
        ]));
        raw.asks(fabric);
    };
    flood(&raw.address().octets());
    assert!(!raw.ended(), "it takes that of an IPv4 VTEP");
    flood(&[0xfd; 16]);
    assert!(raw.ended(), "FRR takes it: this cell can be a real one");
}

fn ipv6(options: &[&str]) -> Lab {
    let hosts = ["--hosts", "m1,c1,c2", "--underlay", "ipv6"];
    let lab = Lab::up_with(&[&hosts, options].concat());
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
            let seen = lab.vtep_rows(host, vni);
            let mac = format!("02:00:00:00:30:{number}");
            let mut macs = ["00:00:00:00:00:00".to_owned(), mac].into_iter();
            match macs.all(|mac| seen.contains(&(mac, vtep.to_owned()))) {
                true => Ok(()),
                false => Err(format!("{seen:?}")),
            }
        });
    }
    lab.reaches("c1/a", "10.4.1.12");
    lab.admin("nic delete e30/web/b --wait");
    lab.eventually("the rows go with the NIC", || {
        let seen = lab.vtep_rows("c1", vni);
        match seen.is_empty() {
            false => Err(format!("{seen:?}")),
            true => Ok(()),
        }
    });
    lab
}

pub(crate) const E31: Row = Row {
    id: "E31",
    case: "eBGP over the fabric",
    run: |fabric| {
        // What can be seen of it: a peer of another AS is refused, and nobody else notices.
        let sessions = fabric.connections();
        let other = asn(&fabric.lab) - 1;
        fabric.lab.eventually("OPEN error, bad peer AS", || {
            // Whoever closes with something unread resets the connection, and what it said may be lost.
            let raw = Raw::of_another_as(fabric, GUEST, GUEST_ADDRESS, other);
            let heard = raw.heard();
            let refused = |m: &Vec<u8>| m[18..].starts_with(&[NOTIFICATION, 2, 2]);
            match heard.iter().any(refused) {
                true => Ok(()),
                false => Err(format!("{heard:02x?}")),
            }
        });
        for host in HOSTS {
            fabric.established(host);
        }
        assert_eq!(fabric.connections(), sessions, "the sessions are the same");
        Cell::NotApplicable(
            "all sessions are of one AS: eBGP is not built; a peer of another AS is refused",
        )
    },
};
