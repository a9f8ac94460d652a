//! A MAC whose sequence grew because another VTEP claims it stays where it is when its host's speaker starts anew.

#![allow(clippy::unwrap_used, reason = "a helper that panics fails its test")]

mod common;

use common::{Net, vni};
use evpn::{LocalMac, Role, Sequences};
use model::{Encoding, MacAddr};
use std::net::IpAddr;
use std::time::Duration;

const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 10]);

/// `c2` claims the MAC with the lower of two sequences, `c1` has it, `c3` looks on.
fn contested() -> Net {
    let mut net = Net::new();
    net.add("rr", "10.0.0.101", Role::Reflector);
    for (number, name) in (1..).zip(["c1", "c2", "c3"]) {
        net.add(name, &format!("10.0.0.{number}"), Role::Vtep);
        net.peer(name, "rr");
        net.evi(name, 100, 1, Encoding::VlanBased);
    }
    claims(&mut net, "c2", 4);
    for name in ["rr", "c1", "c2", "c3"] {
        net.start(name);
    }
    net.run(Duration::from_secs(2));
    claims(&mut net, "c1", 0);
    net.run(Duration::from_secs(1));
    assert_eq!(behind(&net, "c3"), Some("10.0.0.1".parse().unwrap()));
    net
}

fn claims(net: &mut Net, name: &str, sequence: u32) {
    let local = net.node(name).local.as_mut().unwrap();
    let evi = local.evis.get_mut(&vni(100)).unwrap();
    let mac = LocalMac {
        sequence,
        ..LocalMac::default()
    };
    evi.macs.insert((None, MAC), mac);
    net.push_local(name);
}

fn behind(net: &Net, name: &str) -> Option<IpAddr> {
    let node = net.nodes.values().find(|node| node.name == name).unwrap();
    let rows = node.speaker.as_ref().unwrap().forwarding();
    rows.evis.get(&vni(100))?.macs.get(&(None, MAC)).copied()
}

fn restart(net: &mut Net, name: &str) {
    net.kill(name);
    net.run(Duration::from_secs(1));
    net.start(name);
    net.run(Duration::from_secs(15));
}

#[test]
fn a_restart_that_begins_where_the_sequence_was_keeps_the_mac() {
    let mut net = contested();
    let grown = net.speaker("c1").raised();
    assert_eq!(grown, Sequences::from([((vni(100), None, MAC), 5)]));
    // Nobody else's grew.
    assert!(net.speaker("c2").raised().is_empty());
    claims(&mut net, "c1", 5);
    assert!(net.speaker("c1").raised().is_empty(), "it is asked for now");
    restart(&mut net, "c1");
    assert_eq!(behind(&net, "c1"), None);
    assert_eq!(behind(&net, "c3"), Some("10.0.0.1".parse().unwrap()));
    let gone: Vec<&String> = net.node("c3").removed.iter().collect();
    assert_eq!(
        gone,
        ["100 02:00:00:00:00:0a behind 10.0.0.2"],
        "once, at first"
    );
}

#[test]
fn a_restart_that_begins_at_nought_loses_it() {
    let mut net = contested();
    restart(&mut net, "c1");
    assert_eq!(behind(&net, "c1"), Some("10.0.0.2".parse().unwrap()));
    assert_eq!(behind(&net, "c3"), Some("10.0.0.2".parse().unwrap()));
}
