//! Any sequence of commands, against what must always hold. The rows are looked at from outside,
//! without the indexes that the intent decides by.

use crate::script::World;
use fleet_plan::{Decision, Intent, Rows};
use ipnet::IpNet;
use model::{Attachment, Generation, HostId, Object, ObjectId};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Something that is handed out, and the object that has it.
type Handed = BTreeMap<String, ObjectId>;

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_asked(lines in prop::collection::vec(line(), 1..120)) {
        let mut world = World::new();
        let mut freed: BTreeMap<String, u64> = BTreeMap::new();
        let mut generations: BTreeMap<HostId, Generation> = BTreeMap::new();
        for line in lines {
            if let Some(millis) = line.strip_prefix("clock ") {
                world.now.0 += millis.parse::<u64>().unwrap();
                continue;
            }
            let before = world.intent.clone();
            let handed_before = handed_out(&before.to_rows());
            let outcome = world.run(&line);
            let rows = world.intent.to_rows();
            let handed = handed_out(&rows);
            match outcome {
                Err(_) => prop_assert_eq!(&world.intent, &before, "{} was refused", line),
                Ok(decision) => revisions_are_consecutive(&before, &decision),
            }
            nothing_is_orphaned(&rows);
            subnets_do_not_overlap(&rows);
            for what in handed_before.keys().filter(|what| !handed.contains_key(*what)) {
                freed.insert(what.clone(), world.now.0);
            }
            for what in handed.keys().filter(|what| !handed_before.contains_key(*what)) {
                let since = freed.get(what).map(|at| world.now.0 - at);
                prop_assert!(since.is_none_or(|since| since >= 60_000), "{}: {} was reused after {:?} ms", line, what, since);
            }
            rows_survive_json(&rows, &world.intent);
            generations_grow_on_change_only(&mut world, &mut generations);
        }
    }
}

/// Lines from a universe so small that they get in each other's way.
fn line() -> impl Strategy<Value = String> {
    let name = || prop::sample::select(vec!["a", "b", "c"]);
    let host = || prop::sample::select(vec!["h1", "h2"]);
    let octet = || 0_u8..4;
    prop_oneof![
        1 => name().prop_map(|a| format!("account {a}")),
        2 => (name(), name(), prop::sample::select(vec!["", " encoding vlan-aware-bundle", " vni 5"]))
            .prop_map(|(a, v, extra)| format!("vpc {a}/{v} 10.0.0.0/16 fd00::/48{extra}")),
        4 => (name(), name(), name(), octet(), prop::sample::select(vec!["/24", "/29", "/30"]), prop::bool::ANY)
            .prop_map(|(a, v, s, n, length, six)| {
                let six = if six { format!(" fd00:0:0:{n}::/126") } else { String::new() };
                format!("subnet {a}/{v}/{s} 10.0.{n}.0{length}{six}")
            }),
        1 => (host(), octet()).prop_map(|(h, n)| format!("host {h} 192.0.2.{}", n + 1)),
        12 => (name(), name(), name(), 0..12, host(), prop::sample::select(vec![
            "tap", "netns:x", "netns:x:eth1", "existing:ens3", "tap ip 10.0.1.4",
            "tap mac 02:00:00:00:00:01", "tap ip 10.0.1.4 ip fd00:0:0:1::2",
        ])).prop_map(|(a, v, s, n, h, plug)| format!("nic {a}/{v}/{s}/n{n} {h} {plug}")),
        8 => (name(), name(), name(), 0..12).prop_map(|(a, v, s, n)| format!("delete nic {a}/{v}/{s}/n{n}")),
        6 => (name(), name(), name(), 0..12, host(), prop::sample::select(vec!["", " attach tap", " attach netns:y"]))
            .prop_map(|(a, v, s, n, h, plug)| format!("move {a}/{v}/{s}/n{n} {h}{plug}")),
        8 => (name(), name(), name(), 0..12, prop::sample::select(vec!["switch", "retire", "finish", "back fire"]))
            .prop_map(|(a, v, s, n, step)| format!("advance {a}/{v}/{s}/n{n} {step}")),
        3 => (name(), name(), name()).prop_map(|(a, v, s)| format!("delete subnet {a}/{v}/{s}")),
        2 => (name(), name()).prop_map(|(a, v)| format!("delete vpc {a}/{v}")),
        1 => name().prop_map(|a| format!("delete account {a}")),
        1 => host().prop_map(|h| format!("delete host {h}")),
        1 => (host(), prop::bool::ANY).prop_map(|(h, d)| format!("update-host {h} draining {d}")),
        1 => (name(), name()).prop_map(|(a, v)| format!("set-labels vpc {a}/{v} label x=y")),
        3 => prop::sample::select(vec![1_u64, 20_000, 59_999, 60_000]).prop_map(|ms| format!("clock {ms}")),
    ]
}

/// Everything that must not be handed out twice.
///
/// # Panics
/// If something is.
fn handed_out(rows: &Rows) -> Handed {
    let vpc_of: BTreeMap<_, _> = rows
        .objects
        .iter()
        .filter_map(|object| match object {
            Object::Subnet(subnet) => Some((subnet.id, subnet)),
            _ => None,
        })
        .collect();
    let mut handed = Handed::new();
    let mut give = |what: String, object: &Object| {
        let twice = handed.insert(what.clone(), object.id());
        assert_eq!(twice, None, "{what} was handed out twice");
    };
    for object in &rows.objects {
        match object {
            Object::Vpc(vpc) => give(format!("vni {}", vpc.vni), object),
            Object::Subnet(subnet) => {
                give(format!("vlan {} of {}", subnet.vlan, subnet.vpc), object);
                let bundle = rows.objects.iter().any(
                    |other| matches!(other, Object::Vpc(vpc) if vpc.id == subnet.vpc && vpc.vni == subnet.vni),
                );
                if !bundle {
                    give(format!("vni {}", subnet.vni), object);
                }
            }
            Object::Nic(nic) => {
                let subnet = vpc_of[&nic.subnet];
                give(format!("mac {} of {}", nic.mac, subnet.vpc), object);
                for address in &nic.addresses {
                    give(format!("address {address} of {}", subnet.vpc), object);
                    assert!(usable(
                        subnet.v4.map(IpNet::V4),
                        subnet.v6.map(IpNet::V6),
                        *address
                    ));
                }
                let prefixes = usize::from(subnet.v4.is_some()) + usize::from(subnet.v6.is_some());
                assert_eq!(nic.addresses.len(), prefixes, "one address for each prefix");
            }
            Object::Account(_) | Object::Host(_) => {}
        }
    }
    devices_are_not_shared(rows);
    handed
}

fn usable(v4: Option<IpNet>, v6: Option<IpNet>, address: IpAddr) -> bool {
    [v4, v6].into_iter().flatten().any(|net| {
        let hosts = net.hosts().take(2).collect::<Vec<_>>();
        let gateway = match net {
            IpNet::V4(_) => hosts[0],
            IpNet::V6(_) => hosts[1],
        };
        let edge = address == net.network() || (net.addr().is_ipv4() && address == net.broadcast());
        net.contains(&address) && !edge && address != gateway
    })
}

fn devices_are_not_shared(rows: &Rows) {
    let mut seen = BTreeSet::new();
    let mut underlays = BTreeSet::new();
    for object in &rows.objects {
        if let Object::Nic(nic) = object {
            for seat in nic.seats().filter(|s| s.attachment != Attachment::Tap) {
                let device = (seat.host, seat.attachment.to_string());
                assert!(seen.insert(device.clone()), "{device:?} is shared");
            }
            let hosts: BTreeSet<_> = nic.seats().map(|seat| seat.host).collect();
            assert_eq!(
                hosts.len(),
                nic.seats().count(),
                "{nic:?} is twice on a host"
            );
        }
        if let Object::Host(host) = object {
            assert!(
                underlays.insert(host.underlay),
                "{} is shared",
                host.underlay
            );
        }
    }
}

fn nothing_is_orphaned(rows: &Rows) {
    let ids: BTreeSet<ObjectId> = rows.objects.iter().map(Object::id).collect();
    for object in &rows.objects {
        let parents = match object {
            Object::Account(_) | Object::Host(_) => vec![],
            Object::Vpc(vpc) => vec![ObjectId::Account(vpc.account)],
            Object::Subnet(subnet) => vec![ObjectId::Vpc(subnet.vpc)],
            Object::Nic(nic) => std::iter::once(ObjectId::Subnet(nic.subnet))
                .chain(nic.seats().map(|seat| ObjectId::Host(seat.host)))
                .collect(),
        };
        assert!(
            parents.iter().all(|parent| ids.contains(parent)),
            "{object:?}"
        );
    }
}

fn subnets_do_not_overlap(rows: &Rows) {
    let prefixes: Vec<_> = rows
        .objects
        .iter()
        .filter_map(|object| match object {
            Object::Subnet(s) => {
                Some([s.v4.map(IpNet::V4), s.v6.map(IpNet::V6)].map(|p| (s.vpc, p)))
            }
            _ => None,
        })
        .flatten()
        .filter_map(|(vpc, prefix)| Some((vpc, prefix?)))
        .collect();
    for (n, (vpc, a)) in prefixes.iter().enumerate() {
        for (other, b) in &prefixes[..n] {
            assert!(
                vpc != other || !(a.contains(b) || b.contains(a)),
                "{a} and {b}"
            );
        }
    }
}

fn revisions_are_consecutive(before: &Intent, decision: &Decision) {
    let mut expected = before.revision().0;
    for change in &decision.delta.changes {
        expected += 1;
        assert_eq!(change.revision.0, expected);
        assert_eq!(change.object.meta().revision, change.revision);
    }
}

fn rows_survive_json(rows: &Rows, intent: &Intent) {
    let json = |rows: &Rows| {
        (
            serde_json::to_string(&rows.objects).unwrap(),
            serde_json::to_string(&rows.holds).unwrap(),
            serde_json::to_string(&rows.requests).unwrap(),
        )
    };
    let (objects, holds, requests) = json(rows);
    let again = Rows {
        cluster: rows.cluster.clone(),
        revision: rows.revision,
        objects: serde_json::from_str(&objects).unwrap(),
        holds: serde_json::from_str(&holds).unwrap(),
        requests: serde_json::from_str(&requests).unwrap(),
    };
    assert_eq!(Intent::from_rows(again).unwrap(), *intent);
}

/// Polls; a host's generation grows by one if and only if what it is told differs.
fn generations_grow_on_change_only(
    world: &mut World,
    generations: &mut BTreeMap<HostId, Generation>,
) {
    let told: BTreeMap<_, _> = generations
        .keys()
        .filter_map(|host| Some((*host, world.rollout.config(*host)?.clone())))
        .collect();
    let issued: BTreeMap<_, _> = world
        .rollout
        .poll(&world.intent)
        .into_iter()
        .map(|issued| (issued.row.host, issued))
        .collect();
    for host in world.intent.hosts() {
        // Planned afresh, without the rollout's idea of whom a change concerns.
        let draft = fleet_plan::plan(&world.intent, host.id, &world.reflectors()).unwrap();
        match (told.get(&host.id), issued.get(&host.id)) {
            (None, Some(new)) => assert_eq!(new.row.generation, Generation(1)),
            (Some(old), Some(new)) => {
                assert_eq!(new.row.generation.0, old.generation.0 + 1);
                assert!(!draft.says(old), "issued without a change");
            }
            (Some(old), None) => assert!(draft.says(old), "a change was not issued"),
            (None, None) => panic!("{} was issued nothing", host.name),
        }
        let generation = world.rollout.config(host.id).unwrap().generation;
        generations.insert(host.id, generation);
    }
    generations.retain(|host, _| world.intent.host(*host).is_some());
}
