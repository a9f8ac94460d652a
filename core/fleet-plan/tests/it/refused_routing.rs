//! What routers, external networks and public addresses are refused, in the words that users read.

use crate::refusals::check_on;
use crate::script::World;

const SETUP: &str = "\
account default
account other
vpc default/blue 10.4.0.0/16 fd00:4::/48
vpc default/red 10.4.0.0/16
vpc default/out 198.51.0.0/16
vpc default/bundle 10.5.0.0/16 encoding vlan-aware-bundle
host c1 192.0.2.11
host r1 192.0.2.21 roles route
subnet default/blue/web 10.4.1.0/24 fd00:4:0:1::/64
subnet default/blue/db 10.4.2.0/24
subnet default/blue/new 10.4.3.0/24
subnet default/red/web 10.4.1.0/24
subnet default/out/web 198.51.100.0/25
nic default/blue/web/a c1 tap
nic default/blue/web/b c1 tap
nic default/blue/new/c c1 tap
external ext 198.51.100.0/24 gateway 198.51.100.1 pool 198.51.100.100-198.51.100.104
external two 203.0.113.0/24 pool 203.0.113.9
router default/blue/gw subnet default/blue/web subnet default/blue/db uplink ext source masquerade
router default/red/gw subnet default/red/web
router default/out/gw subnet default/out/web
route default/blue/gw 10.9.0.0/16 via 10.4.1.9
forward default/blue/gw tcp 80-90 10.4.1.2 80
publicip default/p1 ext
publicip default/p2 ext
publicip other/p1 ext
publicip default/second two
attach default/p1 nic default/blue/web/a";

fn check(line: &str, expected: &str) {
    check_on(SETUP, line, expected);
}

#[test]
fn legs() {
    check(
        "router default/blue/x subnet default/blue/web",
        "already-exists: subnet default/blue/web has a gateway already, router default/blue/gw: \
         detach it there first (vpc router detach default/blue/gw default/blue/web), or attach it \
         to nothing else",
    );
    check(
        "attach-leg default/red/gw default/blue/new",
        "invalid: subnet default/blue/new is not in the VPC of router default/red/gw: a router \
         joins subnets of its own VPC, choose one of those",
    );
    check(
        "uplink default/out/gw ext",
        "invalid: router default/out/gw cannot have a leg in both subnet default/out/web \
         (198.51.100.0/25) and external network ext (198.51.100.0/24): their addresses overlap; \
         use another network outside or another subnet",
    );
    check(
        "detach-leg default/blue/gw default/blue/web",
        "in-use: router default/blue/gw cannot leave subnet default/blue/web: its route for \
         10.9.0.0/16 is by that subnet: delete it first (vpc route delete default/blue/gw \
         10.9.0.0/16)",
    );
    check(
        "delete subnet default/blue/db",
        "in-use: subnet default/blue/db cannot be deleted: it has legs of routers \
         default/blue/gw; delete or move it first",
    );
    check(
        "router default/blue/gw",
        "already-exists: router default/blue/gw already exists: choose another name, or use the \
         one that is there",
    );
}

#[test]
fn placement() {
    check(
        "router default/blue/x host c1",
        "unsuitable-host: host c1 carries no routers, its roles are compute: choose a route host, \
         or give it that role (vpc host set c1 --role route)",
    );
    check(
        "place default/blue/gw",
        "unsuitable-host: router default/blue/gw has no host to run on: there is no other host \
         with the role route: let one join (vpc host join --role route), or give a host that role",
    );
    check_on(
        &format!("{SETUP}\ndown r1"),
        "router default/blue/x",
        "unsuitable-host: router default/blue/x has no host to run on: every route host is down: see vpc host list, or name one with --host",
    );
    check_on(
        &format!("{SETUP}\nupdate-host r1 speaker frr"),
        "router default/bundle/x",
        "unsuitable-host: router default/bundle/x has no host to run on: every route host has FRR as its EVPN client, which does no vlan-aware bundles: see vpc host \
         list, or name one with --host",
    );
    check(
        "update-host r1 roles compute",
        "in-use: host r1 cannot give up its route role: it has routers default/blue/gw, \
         default/out/gw, default/red/gw; delete or move them first",
    );
}

#[test]
fn routes() {
    let route = |rest: &str, reason: &str| {
        let prefix = rest.split(' ').next().unwrap();
        check(
            &format!("route default/blue/gw {rest}"),
            &format!("invalid: route {prefix} of router default/blue/gw cannot be: {reason}"),
        );
    };
    route(
        "10.8.0.0/16 via 10.4.3.9",
        "next hop 10.4.3.9 is on none of its legs (10.4.1.0/24, 10.4.2.0/24, \
         198.51.100.0/24, fd00:4:0:1::/64): name a neighbour that is",
    );
    for own in ["10.4.1.1", "198.51.100.100"] {
        route(
            &format!("10.8.0.0/16 via {own}"),
            &format!(
                "next hop {own} is the router itself, so packets would go in a circle: name the \
                 neighbour that they are to go to"
            ),
        );
    }
    route(
        "10.4.1.8/29 via 10.4.1.9",
        "its next hop 10.4.1.9 would be reached by the route itself, so packets would go in a \
         circle: leave that address out of the prefix",
    );
    route(
        "10.4.1.0/24 via 10.4.2.9",
        "the router is in that prefix itself, by its leg in subnet default/blue/web: choose a \
         longer or a shorter one",
    );
    route(
        "10.8.0.1/16 via 10.4.1.9",
        "it has bits set beyond /16: did you mean 10.8.0.0/16?",
    );
    route(
        "10.8.0.0/16 via fd00:4:0:1::9",
        "next hop fd00:4:0:1::9 is of the other address family: give one of the same",
    );
    route(
        "10.8.0.0/16 via 10.4.1.255",
        "next hop 10.4.1.255 is no host's address in subnet default/blue/web: name a neighbour",
    );
    route(
        "0.0.0.0/0 via 10.4.1.9",
        "its uplink is the default route: take the uplink away, or name the subnet that the route \
         is for with --table",
    );
    route(
        "169.254.0.0/16",
        "it is loopback, link-local or multicast, which is not routed: choose another",
    );
    check(
        "route default/blue/gw 10.8.0.0/16 table default/blue/new",
        "invalid: router default/blue/gw has no leg in subnet default/blue/new: attach it first \
         (vpc router attach default/blue/gw default/blue/new)",
    );
    check(
        "route default/blue/gw 10.9.0.0/16",
        "already-exists: router default/blue/gw has a route for 10.9.0.0/16 already, via \
         10.4.1.9: delete it first (vpc route delete default/blue/gw 10.9.0.0/16)",
    );
    check(
        "delete-route default/blue/gw 10.7.0.0/16",
        "not-found: router default/blue/gw has no route for 10.7.0.0/16: `vpc route list \
         default/blue/gw` shows those there are",
    );
}

/// Routers tell each other their subnets and their routes: the same prefix twice would be shared.
#[test]
fn routes_for_what_another_router_is_in() {
    let two = format!(
        "{SETUP}\nrouter default/blue/two subnet default/blue/new\nroute default/blue/two 10.4.9.0/24 via 10.4.3.9"
    );
    let shared = |prefix: &str, subnet: &str| {
        format!(
            "invalid: route {prefix} of router default/blue/two cannot be: it is subnet \
             default/blue/{subnet}, whose gateway is router default/blue/gw, so packets would go one \
             way or the other: choose a longer or a shorter one"
        )
    };
    check_on(
        &two,
        "route default/blue/two 10.4.2.0/24 via 10.4.3.9",
        &shared("10.4.2.0/24", "db"),
    );
    let v6 = format!(
        "{SETUP}\nsubnet default/blue/six fd00:4:0:6::/64\nrouter default/blue/two subnet default/blue/six"
    );
    check_on(
        &v6,
        "route default/blue/two fd00:4:0:1::/64 via fd00:4:0:6::9",
        &shared("fd00:4:0:1::/64", "web"),
    );
    let late = format!("{two}\nsubnet default/blue/late 10.4.9.0/24");
    let refused = |action: &str| {
        format!(
            "in-use: router default/blue/{action} cannot get a leg in subnet default/blue/late: router \
             default/blue/two has a route for 10.4.9.0/24, so packets would go one way or the other: \
             delete that first (vpc route delete default/blue/two 10.4.9.0/24)"
        )
    };
    check_on(
        &late,
        "attach-leg default/blue/gw default/blue/late",
        &refused("gw"),
    );
    check_on(
        &late,
        "router default/blue/three subnet default/blue/late",
        &refused("three"),
    );

    // What is not told to the others, or is not the same, is nobody's business; nor is it in another VPC, or in a
    // bundle, whose routers do not meet.
    let mut world = World::new();
    for line in late.lines() {
        world.run(line).unwrap();
    }
    for line in [
        "route default/blue/two 10.4.2.0/24",
        "route default/blue/two 10.4.1.0/24 via 10.4.3.9 table default/blue/new",
        "route default/blue/two 10.4.2.0/25 via 10.4.3.9",
        "route default/blue/two 10.4.0.0/16 via 10.4.3.9",
        "route default/red/gw 10.4.2.0/24 via 10.4.1.9",
        "delete-route default/blue/two 10.4.9.0/24",
        "attach-leg default/blue/gw default/blue/late",
        "subnet default/bundle/one 10.5.1.0/24",
        "subnet default/bundle/two 10.5.2.0/24",
        "router default/bundle/one subnet default/bundle/one",
        "router default/bundle/two subnet default/bundle/two",
        "route default/bundle/one 10.5.2.0/24 via 10.5.1.9",
    ] {
        world
            .run(line)
            .unwrap_or_else(|refusal| panic!("{line}: {refusal}"));
    }
}

#[test]
fn translation() {
    check(
        "source default/red/gw masquerade",
        "in-use: router default/red/gw cannot translate sources (masquerade): it has no uplink: \
         give it one with --uplink, or later with vpc router uplink",
    );
    check(
        "source default/blue/gw addresses",
        "in-use: router default/blue/gw cannot translate sources (addresses): it has no public \
         address of its own: attach one first (vpc publicip attach NAME --router \
         default/blue/gw)",
    );
    let forward = |rest: &str, shown: &str, reason: &str| {
        check(
            &format!("forward default/blue/gw {rest}"),
            &format!("invalid: port forward {shown} of router default/blue/gw cannot be: {reason}"),
        );
    };
    forward(
        "tcp 85 10.4.2.2 80",
        "tcp 85 to 10.4.2.2, 80",
        "tcp 80-90 to 10.4.1.2, 80 has those ports: delete it first (vpc nat forward delete), or \
         choose others",
    );
    for to in ["10.4.3.2", "10.4.1.1"] {
        forward(
            &format!("udp 85 {to} 80"),
            &format!("udp 85 to {to}, 80"),
            &format!(
                "{to} is no neighbour on one of its legs: give an address in an attached subnet"
            ),
        );
    }
    forward(
        "udp 85 10.4.2.2 80 public 198.51.100.101",
        "udp 198.51.100.101, 85 to 10.4.2.2, 80",
        "198.51.100.101 is no public address of the router's own: attach it first (vpc publicip \
         attach NAME --router default/blue/gw)",
    );
    forward(
        "udp 1-10 10.4.2.2 65530",
        "udp 1-10 to 10.4.2.2, 65530",
        "its ports inside would be above 65535: begin lower",
    );
    forward(
        "udp 85 fd00:4:0:1::2 80",
        "udp 85 to fd00:4:0:1::2, 80",
        "the uplink has no address of that family: name a public address of the router's own",
    );
    check(
        "forward default/red/gw udp 85 10.4.1.2 80",
        "invalid: port forward udp 85 to 10.4.1.2, 80 of router default/red/gw cannot be: the \
         router has no uplink: give it one (vpc router uplink)",
    );
    check(
        "delete-forward default/blue/gw tcp 80",
        "not-found: router default/blue/gw has no port forward of tcp 80: `vpc nat forward list \
         default/blue/gw` shows those there are",
    );
    check(
        "uplink default/blue/gw none",
        "in-use: router default/blue/gw cannot lose its uplink: its source translation needs it: \
         end that first (vpc nat source default/blue/gw none)",
    );
}

#[test]
fn external_networks() {
    let external = |rest: &str, reason: &str| {
        check(
            &format!("external x {rest}"),
            &format!("invalid: external network x cannot be: {reason}"),
        );
    };
    external(
        "",
        "it has no prefix: give one as in --cidr 198.51.100.0/24, or --dhcp",
    );
    external(
        "192.0.2.0/24 gateway 203.0.113.1",
        "gateway 203.0.113.1 is no host's address inside 192.0.2.0/24: give one that is",
    );
    external(
        "192.0.2.0/24 gateway 192.0.2.0",
        "gateway 192.0.2.0 is no host's address inside 192.0.2.0/24: give one that is",
    );
    external(
        "192.0.2.0/24 gateway 192.0.2.1 pool 192.0.2.1-192.0.2.9",
        "gateway 192.0.2.1 is in pool 192.0.2.1-192.0.2.9, and would be handed out: leave it out \
         of the pool",
    );
    external(
        "192.0.2.0/24 pool 192.0.2.9-192.0.2.255",
        "pool 192.0.2.9-192.0.2.255 is not all hosts' addresses inside 192.0.2.0/24: give one \
         that is",
    );
    external(
        "192.0.2.0/24 pool 192.0.2.9-192.0.2.19 pool 192.0.2.19",
        "pools 192.0.2.9-192.0.2.19 and 192.0.2.19 overlap: give each address once",
    );
    external(
        "192.0.2.0/24 bridge b-ext",
        "bridge b-ext has a name that belongs to the agent (b- t- n- r- rx- s- u- w-): rename it",
    );
    external(
        "192.0.2.0/24 dhcp true",
        "with --dhcp its IPv4 prefix is the DHCP server's to tell: leave the prefix out",
    );
    external(
        "2001:db8:64::/64 dhcp true",
        "with --dhcp routers have an IPv4 address there and no IPv6: leave 2001:db8:64::/64 out, or \
         give both prefixes with pools in place of --dhcp",
    );
    check(
        "router default/blue/x uplink only",
        "invalid: which external network is meant? there are ext, two: name one",
    );
}

#[test]
fn public_addresses() {
    check(
        "attach default/p1 nic default/blue/web/b",
        "in-use: public address default/p1 is in use by nic default/blue/web/a: detach it first \
         (vpc publicip detach default/p1), or use another",
    );
    let attach = |what: &str, shown: &str, reason: &str| {
        check(
            &format!("attach {what}"),
            &format!(
                "invalid: public address {} cannot be attached to {shown}: {reason}",
                what.split(' ').next().unwrap()
            ),
        );
    };
    attach(
        "default/p2 nic default/blue/web/a",
        "nic default/blue/web/a",
        "it has public address default/p1 of that family already: detach that first (vpc \
         publicip detach default/p1)",
    );
    attach(
        "default/p2 nic default/blue/new/c",
        "nic default/blue/new/c",
        "subnet default/blue/new has no router: make one with an uplink (vpc router create), or \
         attach the subnet to one",
    );
    attach(
        "default/second nic default/blue/web/b",
        "nic default/blue/web/b",
        "router default/blue/gw has no uplink in external network two: give it one (vpc router \
         uplink default/blue/gw two)",
    );
    attach(
        "other/p1 nic default/blue/web/b",
        "nic default/blue/web/b",
        "it is another account's: make a public address in that account",
    );
    check(
        "publicip default/x ext address 198.51.100.99",
        "invalid: address 198.51.100.99 is in no pool of external network ext, which has \
         198.51.100.100-198.51.100.104: choose one that is, or leave it out",
    );
    check(
        "publicip default/x ext address 198.51.100.101",
        "already-exists: public address 198.51.100.101 is taken by publicip default/p1: choose \
         another, or leave it out",
    );
    check(
        "publicip default/x two",
        "exhausted: the IPv4 pools of external network two are used up: delete public addresses \
         or uplinks that nobody uses, or make another external network",
    );
    check(
        "publicip default/x two v6 true",
        "invalid: external network two cannot be: it is used for an IPv6 address, and has no IPv6 \
         pool: use another network, or one made with a pool",
    );
    check(
        "delete nic default/blue/web/a",
        "in-use: nic default/blue/web/a cannot be deleted: it has public addresses default/p1; \
         delete or move it first",
    );
    check_on(
        &format!(
            "{SETUP}\nattach default/p2 router default/blue/gw\nsource default/blue/gw addresses"
        ),
        "attach default/p2 none",
        "in-use: router default/blue/gw cannot lose public address 198.51.100.102: its source \
         translation has no other: change that first (vpc nat source)",
    );
}
