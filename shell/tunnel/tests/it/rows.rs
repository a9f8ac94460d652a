//! What the tables say is what happens.

use crate::world::{Plan, SOON, World, mac, vlan_devices};
use datapath::{Binding, Change, Domain, Place, Unknown};
use model::{MacAddr, Mtu, VlanId, Vni};
use std::time::{Duration, Instant};
use testkit::eventually;
use tunnel::{CaptureRequest, Side};

/// What was seen on the underlay while something was done: one line each, of the frames inside.
fn on_the_underlay(world: &World, filter: &str, work: impl FnOnce()) -> Vec<String> {
    let request = CaptureRequest {
        filter: Some(filter.to_owned()),
        outer: true,
        ..CaptureRequest::default()
    };
    let mut capture = world.client(0).capture(request).unwrap();
    work();
    let mut lines = Vec::new();
    while let Some(record) = capture.next(Duration::from_millis(300)).unwrap() {
        if record.side == Side::Outer {
            lines.push(datapath::summary(&record.bytes));
        }
    }
    lines
}

#[test]
fn who_is_known_is_not_asked_for() {
    let world = World::new(Plan::default());
    world.tell(
        0,
        &[
            world.neighbour(1, "10.9.0.2", false),
            world.neighbour(1, "fd00:9::2", false),
        ],
    );
    let asked = on_the_underlay(&world, "arp or icmp6", || {
        world.exec("ta", "arping -q -b -c 3 -w 5 -I eth0 10.9.0.2");
        world.exec("ta", "ip neigh flush dev eth0");
        world.exec("ta", "ndisc6 -q -1 fd00:9::2 eth0");
    });
    // Each workload's own link-local address is nobody's row here, and is asked for when it comes up.
    let asked: Vec<_> = asked
        .iter()
        .filter(|line| line.contains("10.9.0.2") || line.contains("fd00:9::2"))
        .collect();
    assert!(asked.is_empty(), "{asked:?}");
    assert!(world.client(0).figures().unwrap().answered >= 4);

    // Nobody announced this one: all are asked.
    let asked = on_the_underlay(&world, "arp", || {
        let nobody = world.try_exec("ta", "arping -q -c 1 -w 1 -I eth0 10.9.0.77");
        assert!(nobody.is_err());
    });
    assert!(
        asked.len() == 1 && asked[0].contains("10.9.0.77"),
        "{asked:?}"
    );
}

#[test]
fn what_nobody_asked_for_goes_to_all() {
    let world = World::new(Plan::default());
    world.tell(0, &[world.neighbour(0, "10.9.0.1", true)]);
    let told = on_the_underlay(&world, "arp", || {
        world.exec("ta", "arping -q -c 2 -U -I eth0 10.9.0.1");
    });
    assert_eq!(told.len(), 2, "{told:?}");
}

/// The kernel's own detection of duplicates: it hears of who has the address, and all are asked for one
/// that nobody has.
#[test]
fn an_address_that_is_taken_is_found_to_be_and_a_free_one_is_asked_for() {
    let mut world = World::new(Plan::default());
    world.tell(0, &[world.neighbour(1, "fd00:9::2", false)]);
    // Whoever has it does not hear of it.
    world.exec("tb", "ip addr del fd00:9::2/64 dev eth0");
    let file = world.run_dir(1).join("underlay.pcap");
    let dump = format!("tcpdump -i u0 --immediate-mode -U -w {}", file.display());
    let capture = world.spawn("hb", &dump);
    eventually("tcpdump listens", SOON, || match file.exists() {
        true => Ok(()),
        false => Err("no file yet".to_owned()),
    });
    let state = |address: &str| {
        let told = world.exec("ta", &format!("ip -6 -o addr show dev eth0 to {address}"));
        match (told.contains("dadfailed"), told.contains("tentative")) {
            (true, _) => Ok(false),
            (false, false) if told.contains(address) => Ok(true),
            _ => Err(told),
        }
    };
    for (address, may_have_it) in [("fd00:9::2", false), ("fd00:9::77", true)] {
        world.exec("ta", &format!("ip addr add {address}/64 dev eth0"));
        let has_it = eventually("it is decided", SOON, || state(address));
        assert_eq!(has_it, may_have_it, "{address}");
    }
    world.end(capture);
    let read = format!("tcpdump -nr {} 2>/dev/null", file.display());
    let text = world.exec("hb", &format!("sh -c '{read}'"));
    let asked = |address: &str| text.matches(&format!("who has {address},")).count();
    assert_eq!(asked("fd00:9::2"), 0, "{text}");
    assert!(asked("fd00:9::77") >= 1, "{text}");
}

#[test]
fn a_capture_says_what_was_dropped_and_why() {
    let world = World::new(Plan::default());
    let change = Change::DeleteMac {
        domain: world.domain(),
        mac: mac(1),
    };
    world.tell(0, &[change]);
    let request = CaptureRequest {
        mac: Some(mac(1)),
        filter: Some("icmp".to_owned()),
        ..CaptureRequest::default()
    };
    let mut capture = world.client(0).capture(request).unwrap();
    world.exec(
        "ta",
        "ip neigh replace 10.9.0.2 lladdr 02:00:00:00:00:02 dev eth0",
    );
    world.exec("ta", "sh -c 'ping -q -c 1 -W 1 10.9.0.2 || true'");
    let record = capture.next(SOON).unwrap().unwrap();
    assert_eq!(record.dropped.as_deref(), Some("unknown-mac"));
    assert_eq!(record.vni, Some(100));
    let bad = CaptureRequest {
        filter: Some("nonsense".to_owned()),
        ..CaptureRequest::default()
    };
    let refused = world.client(0).capture(bad).unwrap_err();
    assert!(refused.to_string().contains("nonsense"), "{refused}");
}

/// All VLANs of a TAP, each a VNI of its own, and 100,000 MACs in one of them.
#[test]
fn thousands_of_vnis_and_a_hundred_thousand_macs() {
    let tag = vlan_devices().then_some(7);
    let plan = Plan {
        tag,
        ..Plan::default()
    };
    let world = World::new(plan);
    let Change::Bind { place, binding } = world.binding() else {
        unreachable!()
    };
    for host in 0..2 {
        let bind = |vlan: u16| {
            let domain = Domain {
                vni: Vni::new(1000 + u32::from(vlan)).unwrap(),
                tag: None,
            };
            let vlan = VlanId::new(vlan).unwrap();
            let place = Place {
                vlan: Some(vlan),
                ..place.clone()
            };
            let binding = Binding {
                domain,
                mtu: Mtu::new(1400).unwrap(),
                unknown: Unknown::Flood,
            };
            let vtep = world.underlay(1 - host);
            [
                Change::Bind { place, binding },
                Change::AddFlood { domain, vtep },
            ]
        };
        let rows: Vec<Change> = (1..=4094)
            .filter(|vlan| Some(*vlan) != tag)
            .flat_map(bind)
            .collect();
        world.tell(host, &rows);
    }
    let domain = binding.domain;
    let row = |n: u32| {
        let [_, a, b, c] = n.to_be_bytes();
        Change::SetMac {
            domain,
            mac: MacAddr([6, 0, 0, a, b, c]),
            vtep: world.underlay(1),
        }
    };
    let rows: Vec<Change> = (0..100_000).map(row).collect();
    let begin = Instant::now();
    world.tell(0, &rows);
    println!("100,000 rows in {:?}", begin.elapsed());
    let tables = world.client(0).tables().unwrap();
    let untagged = usize::from(tag.is_none());
    assert_eq!(
        (tables.bindings.len(), tables.macs.len()),
        (4094 + untagged, 100_001)
    );
    world.exec("ta", "ping -q -c 3 -i 0.05 10.9.0.2");
    if tag.is_none() {
        return;
    }
    // The last VLAN is a subnet of its own, which the first cannot reach.
    for (end, number) in [("ta", 1), ("tb", 2)] {
        world.exec(
            end,
            "ip link add link low name far mtu 1400 type vlan id 4094",
        );
        world.exec(end, &format!("ip addr add 10.8.0.{number}/24 dev far"));
        world.exec(end, "ip link set far up");
    }
    eventually("the last VNI works", SOON, || {
        // Its MACs are nobody's here: they come as broadcast and unicast to a MAC that is not known.
        let domain = Domain {
            vni: Vni::new(5094).unwrap(),
            tag: None,
        };
        for (host, end) in [(0, "tb"), (1, "ta")] {
            let mac = world
                .exec(end, "cat /sys/class/net/far/address")
                .trim()
                .parse()
                .unwrap();
            let vtep = world.underlay(1 - host);
            world.tell(host, &[Change::SetMac { domain, mac, vtep }]);
        }
        world.try_exec("ta", "ping -q -c 1 -W 1 10.8.0.2")
    });
}
