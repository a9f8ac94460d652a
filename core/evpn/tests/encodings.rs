//! A VNI that two VTEPs have in two encodings: nothing passes between them, and both say so.

#![allow(clippy::unwrap_used, reason = "a helper that panics fails its test")]

mod common;

use common::{Net, vni};
use evpn::Role;
use model::{Encoding, VlanId};
use std::time::Duration;

const MAC: &str = "02:00:00:00:00:0a";

/// What each of `names` says of the other encoding.
fn told(net: &mut Net, names: &[&str]) -> Vec<Vec<String>> {
    let now = net.now;
    let of = |name: &&str| {
        let alerts = net.speaker(name).alerts(now).into_iter();
        let alerts = alerts.inspect(|it| assert_eq!(it.kind.name(), "other-encoding"));
        alerts.map(|it| it.what).collect()
    };
    names.iter().map(of).collect()
}

#[test]
fn who_has_it_in_the_other_encoding_is_named_at_both() {
    let vlan = |number| Some(VlanId::new(number).unwrap());
    let mut net = Net::new();
    net.add("rr", "10.0.0.101", Role::Reflector);
    let encodings = [
        ("c1", Encoding::VlanBased),
        ("c2", Encoding::VlanAwareBundle),
        ("c3", Encoding::VlanAwareBundle),
    ];
    for (number, (name, encoding)) in (1..).zip(encodings) {
        net.add(name, &format!("10.0.0.{number}"), Role::Vtep);
        net.peer(name, "rr");
        net.evi(name, 100, 1, encoding);
    }
    net.mac("c1", 100, None, MAC, &[]);
    net.mac("c2", 100, vlan(10), MAC, &[]);
    // Another VLAN of the same bundle is nothing to be told of.
    net.mac("c3", 100, vlan(20), MAC, &[]);
    for name in ["rr", "c1", "c2", "c3"] {
        net.start(name);
    }
    net.run(Duration::from_secs(2));
    let all = ["c1", "c2", "c3"];
    let [one, two, three] = &told(&mut net, &all)[..] else {
        unreachable!("three were asked");
    };
    let [one] = &one[..] else { panic!("{one:?}") };
    assert!(
        one.contains("with VLANs") && one.contains("10.0.0.2 and 10.0.0.3"),
        "{one}"
    );
    let [two] = &two[..] else { panic!("{two:?}") };
    assert!(two.contains("without VLANs by 10.0.0.1,"), "{two}");
    assert_eq!(std::slice::from_ref(two), &three[..]);
    // Nobody has a row that leads there.
    let rows = |net: &mut Net, name: &str| net.speaker(name).forwarding().evis[&vni(100)].clone();
    let of_1 = rows(&mut net, "c1");
    assert!(of_1.macs.is_empty() && of_1.flood.is_empty(), "{of_1:?}");
    let of_2 = rows(&mut net, "c2");
    assert!(!of_2.flood.contains(&(None, net.id("c1"))), "{of_2:?}");

    // It is made anew as it is elsewhere; or goes.
    net.evi("c2", 100, 1, Encoding::VlanBased);
    net.run(Duration::from_secs(1));
    let now = told(&mut net, &all);
    assert!(now[0][0].contains("by 10.0.0.3,"), "{now:?}");
    assert!(now[1][0].contains("by 10.0.0.3,"), "{now:?}");
    assert!(now[2][0].contains("by 10.0.0.1 and 10.0.0.2,"), "{now:?}");
    net.node("c3").local.as_mut().unwrap().evis.clear();
    net.push_local("c3");
    net.run(Duration::from_secs(1));
    assert_eq!(told(&mut net, &all), [vec![], vec![], Vec::<String>::new()]);
}
