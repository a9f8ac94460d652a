//! Any sequence of commands, against what must always hold. The rows are looked at from outside,
//! without the indexes that the intent decides by.

use crate::script::World;
use fleet_plan::{Decision, Intent, Rows};
use ipnet::IpNet;
use model::{
    Attachment, Generation, HostId, Object, ObjectId, PublicTarget, Router, SubnetId, Via,
};
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
            routers_lead_somewhere(&rows);
            epochs_only_grow(&before.to_rows(), &rows);
            for what in handed_before.keys().filter(|what| !handed.contains_key(*what)) {
                freed.insert(what.clone(), world.now.0);
            }
            for what in handed.keys().filter(|what| !handed_before.contains_key(*what)) {
                let since = freed.get(what).map(|at| world.now.0 - at);
                // A subnet's gateway is its own: whose router has it may change at once.
                let held = !what.starts_with("gateway ");
                prop_assert!(!held || since.is_none_or(|since| since >= 60_000), "{}: {} was reused after {:?} ms", line, what, since);
            }
            rows_survive_json(&rows, &world.intent);
            generations_grow_on_change_only(&mut world, &mut generations);
            members_are_who_is_there(&world, &rows);
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
        2 => (host(), octet(), prop::sample::select(vec!["", " roles route", " roles compute,route"]))
            .prop_map(|(h, n, roles)| format!("host {h} 192.0.2.{}{roles}", n + 1)),
        12 => routing_line(),
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

/// As [`line`], about routers and the outside.
fn routing_line() -> impl Strategy<Value = String> {
    let name = || prop::sample::select(vec!["a", "b"]);
    let vpc = || (name(), name()).prop_map(|(a, v)| format!("{a}/{v}"));
    let router = || (vpc(), name()).prop_map(|(v, r)| format!("{v}/{r}"));
    let subnet = || (vpc(), name()).prop_map(|(v, s)| format!("{v}/{s}"));
    let host = || prop::sample::select(vec!["h1", "h2"]);
    let prefix = || {
        prop::sample::select(vec![
            "0.0.0.0/0",
            "10.0.1.0/24",
            "10.0.1.0/28",
            "10.9.0.0/16",
            "fd00:9::/32",
        ])
    };
    let via = || {
        prop::sample::select(vec![
            "",
            " via 10.0.1.2",
            " via 10.0.1.1",
            " via fd00:0:0:1::2",
        ])
    };
    prop_oneof![
        2 => (name(), prop::sample::select(vec![
            " 10.0.3.0/24 gateway 10.0.3.1 pool 10.0.3.9-10.0.3.11",
            " 198.51.100.0/24 2001:db8::/64 gateway 198.51.100.1 pool 198.51.100.5-198.51.100.7 pool 2001:db8::5-2001:db8::6",
            " dhcp true",
        ])).prop_map(|(e, what)| format!("external {e}{what}")),
        6 => (router(), subnet(), prop::sample::select(vec![
            "", " uplink only", " uplink a source masquerade", " uplink b source masquerade v6 true",
        ])).prop_map(|(r, s, out)| format!("router {r} subnet {s}{out}")),
        3 => (router(), subnet()).prop_map(|(r, s)| format!("attach-leg {r} {s}")),
        2 => (router(), subnet()).prop_map(|(r, s)| format!("detach-leg {r} {s}")),
        2 => (router(), prop::sample::select(vec!["none", "only", "a", "b"]))
            .prop_map(|(r, e)| format!("uplink {r} {e}")),
        3 => (router(), prefix(), via(), subnet(), prop::bool::ANY).prop_map(|(r, p, via, s, table)| {
            let table = if table { format!(" table {s}") } else { String::new() };
            format!("route {r} {p}{via}{table}")
        }),
        1 => (router(), prefix()).prop_map(|(r, p)| format!("delete-route {r} {p}")),
        2 => (router(), prop::sample::select(vec!["none", "masquerade", "addresses"]))
            .prop_map(|(r, p)| format!("source {r} {p}")),
        2 => (router(), prop::sample::select(vec!["80", "70-90", "443"]), 0..4_u8)
            .prop_map(|(r, ports, n)| format!("forward {r} tcp {ports} 10.0.{n}.2 80")),
        2 => (router(), host()).prop_map(|(r, h)| format!("place {r} {h}")),
        4 => (name(), name(), prop::sample::select(vec!["only", "a", "b"]), prop::sample::select(vec!["", " v6 true"]))
            .prop_map(|(a, p, e, v6)| format!("publicip {a}/{p} {e}{v6}")),
        4 => (name(), name(), subnet(), 0..12).prop_map(|(a, p, s, n)| format!("attach {a}/{p} nic {s}/n{n}")),
        3 => (name(), name(), router()).prop_map(|(a, p, r)| format!("attach {a}/{p} router {r}")),
        2 => (name(), name()).prop_map(|(a, p)| format!("attach {a}/{p} none")),
        2 => (name(), name()).prop_map(|(a, p)| format!("delete publicip {a}/{p}")),
        2 => router().prop_map(|r| format!("delete router {r}")),
        1 => name().prop_map(|e| format!("delete external {e}")),
        1 => host().prop_map(|h| format!("update-host {h} roles compute,route")),
    ]
}

fn routers(rows: &Rows) -> impl Iterator<Item = &Router> {
    rows.objects.iter().filter_map(|object| match object {
        Object::Router(router) => Some(router),
        _ => None,
    })
}

/// Next hops are neighbours on a leg, public addresses are reached by a router that is there.
fn routers_lead_somewhere(rows: &Rows) {
    let find = |id: ObjectId| rows.objects.iter().find(move |object| object.id() == id);
    for router in routers(rows) {
        let mut nets: Vec<IpNet> = Vec::new();
        for leg in &router.legs {
            let Some(Object::Subnet(subnet)) = find(ObjectId::Subnet(leg.subnet)) else {
                panic!("{leg:?} is in no subnet");
            };
            assert_eq!(subnet.vpc, router.vpc);
            nets.extend(subnet.v4.map(IpNet::V4));
            nets.extend(subnet.v6.map(IpNet::V6));
        }
        if let Some(uplink) = &router.uplink {
            let Some(Object::External(network)) = find(ObjectId::External(uplink.network)) else {
                panic!("{uplink:?} is in no network");
            };
            let outer: Vec<IpNet> = network.prefixes().collect();
            for (a, b) in outer.iter().flat_map(|a| nets.iter().map(move |b| (a, b))) {
                assert!(
                    !a.contains(b) && !b.contains(a),
                    "{a} and {b} are legs of one router"
                );
            }
            for address in &uplink.addresses {
                assert!(network.pools.iter().any(|pool| pool.contains(*address)));
            }
            nets.extend(outer);
        }
        for route in &router.routes {
            if let Via::Address(via) = route.via {
                assert!(nets.iter().any(|net| net.contains(&via)), "{route:?}");
            }
            assert!(!nets.contains(&route.prefix), "{route:?} is a leg");
        }
        for forward in &router.forwards {
            assert!(router.uplink.is_some());
            assert!(
                nets.iter().any(|net| net.contains(&forward.to)),
                "{forward:?}"
            );
        }
    }
    for object in &rows.objects {
        let Object::PublicIp(public) = object else {
            continue;
        };
        let by = match public.target {
            None => continue,
            Some(PublicTarget::Router(id)) => routers(rows).find(|router| router.id == id),
            Some(PublicTarget::Nic(id)) => {
                let Some(Object::Nic(nic)) = find(ObjectId::Nic(id)) else {
                    panic!("{public:?} is for nothing");
                };
                routers(rows).find(|r| r.legs.iter().any(|leg| leg.subnet == nic.subnet))
            }
        };
        let uplink = by.and_then(|router| router.uplink.as_ref());
        assert_eq!(uplink.map(|uplink| uplink.network), Some(public.network));
    }
}

/// A router that is somewhere else than before has a higher epoch than before.
fn epochs_only_grow(before: &Rows, after: &Rows) {
    for router in routers(after) {
        let Some(old) = routers(before).find(|old| old.id == router.id) else {
            assert_eq!(router.placement.epoch, 1);
            continue;
        };
        let moved = u64::from(old.placement.host != router.placement.host);
        assert_eq!(router.placement.epoch, old.placement.epoch + moved);
        for leg in &router.legs {
            let same = old.legs.iter().find(|other| other.subnet == leg.subnet);
            assert!(
                same.is_none_or(|same| same.mac == leg.mac),
                "{leg:?} has another MAC"
            );
        }
    }
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
            Object::Router(router) => {
                for leg in &router.legs {
                    give(format!("mac {} of {}", leg.mac, router.vpc), object);
                    give(format!("gateway of {}", leg.subnet), object);
                }
                if let Some(uplink) = &router.uplink {
                    give(format!("mac {} of {}", uplink.mac, uplink.network), object);
                    for address in &uplink.addresses {
                        give(format!("address {address} of {}", uplink.network), object);
                    }
                }
            }
            Object::PublicIp(public) => give(
                format!("address {} of {}", public.address, public.network),
                object,
            ),
            Object::Account(_) | Object::Host(_) | Object::External(_) | Object::Volume(_) => {}
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
            Object::Account(_) | Object::Host(_) | Object::External(_) => vec![],
            Object::Router(router) => {
                let legs = router.legs.iter().map(|leg| ObjectId::Subnet(leg.subnet));
                let outside = router.uplink.iter();
                legs.chain(outside.map(|uplink| ObjectId::External(uplink.network)))
                    .chain([
                        ObjectId::Vpc(router.vpc),
                        ObjectId::Host(router.placement.host),
                    ])
                    .collect()
            }
            Object::PublicIp(public) => {
                let target = public.target.map(|target| match target {
                    PublicTarget::Nic(nic) => ObjectId::Nic(nic),
                    PublicTarget::Router(router) => ObjectId::Router(router),
                });
                [
                    ObjectId::Account(public.account),
                    ObjectId::External(public.network),
                ]
                .into_iter()
                .chain(target)
                .collect()
            }
            Object::Volume(volume) => {
                let hosts = volume.hosts().map(ObjectId::Host);
                hosts.chain([ObjectId::Account(volume.account)]).collect()
            }
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
/// Each host is told of the others in its subnets, and of nobody else.
fn members_are_who_is_there(world: &World, rows: &Rows) {
    let mut there: BTreeMap<SubnetId, BTreeSet<HostId>> = BTreeMap::new();
    for object in &rows.objects {
        match object {
            Object::Nic(nic) => {
                let hosts = nic.seats().map(|seat| seat.host);
                there.entry(nic.subnet).or_default().extend(hosts);
            }
            Object::Router(router) => {
                for leg in &router.legs {
                    let hosts = there.entry(leg.subnet).or_default();
                    hosts.insert(router.placement.host);
                }
            }
            _ => {}
        }
    }
    for host in world.intent.hosts() {
        let config = world.rollout.config(host.id).unwrap();
        let mine = there.iter().filter(|(_, hosts)| hosts.contains(&host.id));
        let wanted: BTreeMap<SubnetId, BTreeSet<IpAddr>> = mine
            .map(|(subnet, hosts)| {
                let others = hosts.iter().filter(|other| **other != host.id);
                let address = |id: &HostId| world.intent.host(*id).unwrap().underlay;
                (*subnet, others.map(address).collect())
            })
            .filter(|(_, vteps): &(_, BTreeSet<_>)| !vteps.is_empty())
            .collect();
        assert_eq!(config.members, wanted, "of {}", host.name);
    }
}

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
