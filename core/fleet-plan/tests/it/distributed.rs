//! VPCs that are routed on every host: what hosts are told, and what is refused.

use crate::refusals::check_on;
use crate::script::World;
use fleet_plan::plan;
use model::{HostConfig, RouterConfig};

const SETUP: &str = "\
account default
vpc default/blue 10.4.0.0/16 fd00:4::/48 routing distributed
vpc default/red 10.5.0.0/16
host c1 192.0.2.11
host c2 192.0.2.12
host c3 192.0.2.13
host f1 192.0.2.14 speaker frr
host r1 192.0.2.21 roles route
host b1 192.0.2.22 roles route,compute
subnet default/blue/web 10.4.1.0/24 fd00:4:0:1::/64
subnet default/blue/db 10.4.2.0/24
subnet default/blue/idle 10.4.3.0/24
nic default/blue/web/a1 c1 tap user-data one
nic default/blue/db/d1 c1 tap
nic default/blue/web/a2 c2 tap user-data two
external ext 198.51.100.0/24 gateway 198.51.100.1 pool 198.51.100.100-198.51.100.104";

fn world() -> World {
    let mut world = World::new();
    for line in SETUP.lines() {
        world.run(line).unwrap();
    }
    world
}

fn config(world: &World, host: &str) -> HostConfig {
    let host = world.host(host).unwrap();
    let draft = plan(&world.intent, host, &[]).unwrap();
    draft.issue(model::Generation(1))
}

/// The only router of a host.
fn router(world: &World, host: &str) -> RouterConfig {
    let [router] = &config(world, host).routers[..] else {
        panic!("{host}: {:#?}", config(world, host).routers);
    };
    router.as_ref().clone()
}

fn legs(router: &RouterConfig) -> Vec<String> {
    let legs = router.legs.iter().flat_map(|leg| &leg.addresses);
    let mut legs: Vec<String> = legs.map(ToString::to_string).collect();
    legs.sort();
    legs
}

/// Each host with NICs has a gateway in their subnets, with the same MAC and addresses as elsewhere and
/// a router's MAC of its own.
#[test]
fn each_host_has_a_gateway() {
    let world = world();
    let (one, two) = (router(&world, "c1"), router(&world, "c2"));
    assert_eq!(
        legs(&one),
        ["10.4.1.1/24", "10.4.2.1/24", "fd00:4:0:1::1/64"]
    );
    assert_eq!(legs(&two), ["10.4.1.1/24", "fd00:4:0:1::1/64"]);
    assert!(one.anycast && two.anycast);
    assert_eq!(one.id, two.id);
    let macs = |router: &RouterConfig| router.legs.iter().map(|leg| leg.mac).collect::<Vec<_>>();
    assert_eq!(macs(&one), [macs(&two)[0]; 2]);
    let (of_one, of_two) = (one.transit.unwrap(), two.transit.unwrap());
    assert_eq!(of_one.vni, of_two.vni);
    assert_ne!(of_one.mac, of_two.mac);
    for (segment, leg) in config(&world, "c2").stacks[0]
        .segments
        .iter()
        .zip(&two.legs)
    {
        assert_eq!(segment.gateway.as_ref().unwrap().mac, leg.mac);
    }
    // Who has no NIC has nothing.
    assert!(config(&world, "c3").routers.is_empty());
    assert!(config(&world, "r1").routers.is_empty());
}

/// User data is told where the NIC is, names everywhere; and hosts hear of NICs elsewhere.
#[test]
fn gateways_know_the_names() {
    let mut world = world();
    let told = |world: &World, host: &str| {
        let names = router(world, host).names;
        let nic = |(_, nic): (&model::NamedSubnet, &model::NamedNic)| {
            let data = nic.user_data.as_ref().map_or(0, |data| data.bytes().len());
            format!("{} {data}", nic.name)
        };
        names.nics().map(nic).collect::<Vec<_>>()
    };
    assert_eq!(told(&world, "c2"), ["d1 0", "a1 0", "a2 3"]);
    world.rollout.poll(&world.intent);
    world.run("nic default/blue/db/d2 c1 tap").unwrap();
    let hosts: Vec<_> = world.rollout.poll(&world.intent);
    let hosts: Vec<_> = hosts.iter().map(|issued| issued.row.host).collect();
    let mut both = ["c1", "c2"].map(|host| world.host(host).unwrap());
    both.sort();
    assert_eq!(hosts, both);
    assert_eq!(told(&world, "c2").len(), 4);
}

/// The router is the way out of all subnets, without a leg in any; a host that has NICs as well has both.
#[test]
fn the_router_is_the_way_out() {
    let mut world = world();
    world
        .run("router default/blue/gw subnet default/blue/web uplink ext source masquerade host r1")
        .unwrap();
    let out = router(&world, "r1");
    assert!(!out.anycast && out.legs.is_empty() && out.uplink.is_some());
    let inner: Vec<String> = out.inner.iter().map(ToString::to_string).collect();
    let all = [
        "10.4.2.0/24",
        "10.4.3.0/24",
        "10.4.1.0/24",
        "fd00:4:0:1::/64",
    ];
    assert_eq!(inner, all);
    assert_eq!(out.names, model::VpcNames::default());
    assert!(config(&world, "r1").stacks.is_empty(), "no subnet is there");
    // A public address leads to a NIC by it.
    world.run("publicip default/p1 ext").unwrap();
    world
        .run("attach default/p1 nic default/blue/web/a1")
        .unwrap();
    assert_eq!(router(&world, "r1").nat.public.len(), 1);

    world.run("place default/blue/gw b1").unwrap();
    world.run("nic default/blue/db/d3 b1 tap").unwrap();
    let both = config(&world, "b1").routers;
    let kinds: Vec<(bool, usize)> = both.iter().map(|r| (r.anycast, r.legs.len())).collect();
    assert_eq!(kinds.len(), 2);
    assert!(kinds.contains(&(true, 1)) && kinds.contains(&(false, 0)));
    assert!(both.is_sorted_by_key(|router| router.id));
}

fn check(line: &str, expected: &str) {
    let setup =
        format!("{SETUP}\nrouter default/blue/gw subnet default/blue/web uplink ext host r1");
    check_on(&setup, line, expected);
}

#[test]
fn what_cannot_be_routed_so_is_refused() {
    check(
        "vpc default/x 10.6.0.0/16 encoding vlan-aware-bundle routing distributed",
        "invalid: vpc default/x cannot be a vlan-aware-bundle and be routed on every host: a \
         bundle's VNI is on its subnets' frames, and none is left for what is routed; use encoding \
         vlan-based, or routing central",
    );
    let frr = "unsuitable-host: host f1 has FRR as its EVPN client, and VPC default/blue is routed on \
         every host (routing distributed), which takes the built-in speaker: use another host, the \
         built-in speaker (vpc host set f1 --speaker builtin), or a VPC with routing central";
    check("nic default/blue/web/x f1 tap", frr);
    check("move default/blue/web/a1 f1", frr);
    check("update-host c1 speaker frr", &frr.replace("f1", "c1"));
    check(
        "router default/blue/two",
        "invalid: router default/blue/two cannot be made: VPC default/blue is routed on every host \
         (routing distributed) and has its one way out already, router default/blue/gw: use that one",
    );
    let legless = "the VPC's subnets are routed on every host (routing distributed), and the router has \
         no leg in them: name a neighbour outside, or use a VPC with routing central";
    let refused = |prefix: &str| {
        format!("invalid: route {prefix} of router default/blue/gw cannot be: {legless}")
    };
    check(
        "route default/blue/gw 10.9.0.0/16 via 10.4.1.9",
        &refused("10.9.0.0/16"),
    );
    check(
        "route default/blue/gw 10.9.0.0/16 blackhole table default/blue/web",
        &refused("10.9.0.0/16"),
    );
    // Nobody has the gateway's MAC.
    let mut world = world();
    let mac = router(&world, "c1").legs[0].mac;
    let line = format!("nic default/blue/db/x c1 tap mac {mac}");
    let refused = world.run(&line).unwrap_err().to_string();
    assert!(
        refused.contains("is taken by vpc default/blue"),
        "{refused}"
    );
}

/// The network outside is none of the subnets, attached or not, whichever comes first.
#[test]
fn the_outside_is_apart_from_all_subnets() {
    let setup = "\
account default
vpc default/blue 198.51.0.0/16 routing distributed
host r1 192.0.2.21 roles route
external ext 198.51.100.0/24 gateway 198.51.100.1 pool 198.51.100.100";
    let expected = "invalid: router default/blue/gw cannot have a leg in both subnet default/blue/web \
         (198.51.100.0/25) and external network ext (198.51.100.0/24): their addresses overlap; \
         use another network outside or another subnet";
    let subnet = "subnet default/blue/web 198.51.100.0/25";
    let router = "router default/blue/gw uplink ext";
    check_on(&format!("{setup}\n{subnet}"), router, expected);
    check_on(&format!("{setup}\n{router}"), subnet, expected);
}

/// Every host knows the way to every subnet: the router has none beside.
#[test]
fn no_route_leads_a_subnet_outside() {
    check(
        "route default/blue/gw 10.4.3.0/24 via 198.51.100.9",
        "invalid: route 10.4.3.0/24 of router default/blue/gw cannot be: it is subnet \
         default/blue/idle, which is routed on every host, so packets would go one way or the other: \
         choose a longer or a shorter one",
    );
    let setup = format!(
        "{SETUP}\nrouter default/blue/gw uplink ext host r1\nroute default/blue/gw 10.4.9.0/24 via 198.51.100.9"
    );
    check_on(
        &setup,
        "subnet default/blue/late 10.4.9.0/24",
        "invalid: 10.4.9.0/24 has a route of router default/blue/gw, so packets would go one way or \
         the other: delete that first (vpc route delete default/blue/gw 10.4.9.0/24), or choose \
         another prefix",
    );
}
