//! Every refusal's text and code: what was asked for, what the user reads.

use crate::script::World;
use fleet_plan::Code;
use std::collections::BTreeSet;

const SETUP: &str = "\
account default
vpc default/blue 10.4.0.0/16 fd00:4::/48
vpc default/bundle 10.5.0.0/16 encoding vlan-aware-bundle vni 99
host c1 192.0.2.11
host r1 192.0.2.21 roles route,management
host d1 192.0.2.31
host c2 192.0.2.12
host f1 192.0.2.41 speaker frr
update-host d1 draining true
subnet default/blue/web 10.4.1.0/24 fd00:4:0:1::/64
subnet default/blue/tiny 10.4.2.0/30
subnet default/bundle/web 10.5.1.0/24
nic default/bundle/web/a c2 tap mac 02:00:00:00:00:1a
nic default/blue/web/a c1 netns:app mac 02:00:00:00:00:0a ip 10.4.1.10
nic default/blue/web/b c1 existing:ens3
nic default/blue/tiny/a c1 tap
nic default/blue/web/old c1 tap mac 02:00:00:00:00:0f ip 10.4.1.15
delete nic default/blue/web/old
account rq request r1";

fn world() -> World {
    furnished(SETUP)
}

fn furnished(setup: &str) -> World {
    let mut world = World::new();
    for line in setup.lines() {
        let said = world.line(line);
        assert!(!said.starts_with("refused"), "{line}: {said}");
    }
    world
}

fn check(line: &str, expected: &str) {
    check_on(SETUP, line, expected);
}

/// Runs `line` on the setup; the text is the whole message, with its code before it.
pub(crate) fn check_on(setup: &str, line: &str, expected: &str) {
    let mut world = furnished(setup);
    let before = world.intent.clone();
    match world.run(line) {
        Ok(decision) => panic!("{line}: taken, {decision:?}"),
        Err(refusal) => assert_eq!(format!("{}: {refusal}", refusal.code()), expected, "{line}"),
    }
    assert_eq!(world.intent, before, "{line}: a refusal changes nothing");
}

#[test]
fn what_is_not_there() {
    check(
        "delete vpc default/nope",
        "not-found: there is no vpc default/nope: `vpc list` shows those there are",
    );
    check(
        "delete subnet blue/web",
        "not-found: there is no subnet blue/web: `vpc subnet list` shows those there are",
    );
    for (line, kind) in [
        ("vpc gone/x 10.0.0.0/8", "account"),
        ("subnet gone/x 10.0.0.0/8", "vpc"),
        ("nic gone/x c1 tap", "subnet"),
        ("nic default/blue/web/x gone tap", "host"),
        ("update-host gone draining true", "host"),
    ] {
        let list = if kind == "vpc" {
            "vpc list".to_owned()
        } else {
            format!("vpc {kind} list")
        };
        check(
            line,
            &format!("not-found: there is no {kind} 0000000000: `{list}` shows those there are"),
        );
    }
}

#[test]
fn what_is_taken() {
    let name = |kind: &str, path: &str| {
        format!(
            "already-exists: {kind} {path} already exists: choose another name, or use the one \
             that is there"
        )
    };
    check("account default", &name("account", "default"));
    check("vpc default/blue 10.9.0.0/16", &name("vpc", "default/blue"));
    check(
        "subnet default/blue/web 10.4.9.0/24",
        &name("subnet", "default/blue/web"),
    );
    check(
        "nic default/blue/web/a c1 tap",
        &name("nic", "default/blue/web/a"),
    );
    check("host c1 192.0.2.99", &name("host", "c1"));
    check(
        "nic default/blue/web/x c1 tap ip 10.4.1.10",
        "already-exists: address 10.4.1.10 is taken by nic default/blue/web/a: choose another, \
         or leave it out",
    );
    check(
        "nic default/blue/tiny/x c1 tap mac 02:00:00:00:00:0a",
        "already-exists: MAC 02:00:00:00:00:0a is taken by nic default/blue/web/a: choose \
         another, or leave it out",
    );
    check(
        "vpc default/x 10.9.0.0/16 vni 99",
        "already-exists: VNI 99 is taken by vpc default/bundle: choose another, or leave it out",
    );
    check(
        "subnet default/blue/x 10.4.9.0/24 vni 4097",
        "already-exists: VNI 4097 is taken by subnet default/blue/web: choose another, or leave \
         it out",
    );
    check(
        "subnet default/blue/x 10.4.9.0/24 vlan 2",
        "already-exists: VLAN 2 is taken by subnet default/blue/web: choose another, or leave it \
         out",
    );
    check(
        "host x 192.0.2.11",
        "already-exists: underlay address 192.0.2.11 is taken by host c1: choose another",
    );
    check(
        "nic default/blue/web/x c1 netns:app:eth0",
        "already-exists: device eth0 in namespace app on host c1 belongs to nic \
         default/blue/web/a: choose another device, or leave it out to get the next free one",
    );
    check(
        "nic default/blue/web/x c1 existing:ens3",
        "already-exists: interface ens3 on host c1 belongs to nic default/blue/web/b: an \
         interface carries one NIC, choose another",
    );
}

#[test]
fn what_is_held_or_used_up() {
    check(
        "nic default/blue/web/x c1 tap ip 10.4.1.15",
        "held: address 10.4.1.15 was freed lately and is on hold for 60 s more: wait, or choose \
         another",
    );
    check(
        "nic default/blue/web/x c1 tap mac 02:00:00:00:00:0f",
        "held: MAC 02:00:00:00:00:0f was freed lately and is on hold for 60 s more: wait, or \
         choose another",
    );
    check(
        "nic default/blue/tiny/x c1 tap",
        "exhausted: the addresses of subnet default/blue/tiny (10.4.2.0/30) are used up: delete \
         NICs that nobody uses, or make another subnet",
    );
}

#[test]
fn used_up_vlans_say_when_the_next_is_free() {
    let mut world = world();
    for n in 0..4092 {
        let net = format!("10.4.{}.{}/28", 16 + n / 16 % 240, n % 16 * 16);
        if n < 3840 {
            world
                .run(&format!("subnet default/blue/s{n} {net}"))
                .unwrap();
        } else {
            let line = format!("subnet default/blue/s{n} fd00:4:0:{:x}::/64", n + 16);
            world.run(&line).unwrap();
        }
    }
    world.run("delete subnet default/blue/s7").unwrap();
    world.now.0 += 10_000;
    let refusal = world
        .run("subnet default/blue/last fd00:4:0:ffff::/64")
        .unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "the 4094 VLANs of vpc default/blue are used up, and the next one on hold is free in 50 s: \
         wait, delete a subnet that nobody uses, or make another VPC"
    );
    world.now.0 += 50_000;
    world
        .run("subnet default/blue/last fd00:4:0:ffff::/64")
        .unwrap();
}

#[test]
fn what_stands_in_the_way() {
    check(
        "delete account default",
        "in-use: account default cannot be deleted: it has VPCs default/blue, default/bundle; \
         delete or move them first",
    );
    check(
        "delete vpc default/blue",
        "in-use: vpc default/blue cannot be deleted: it has subnets default/blue/tiny, \
         default/blue/web; delete or move them first",
    );
    check(
        "delete subnet default/blue/tiny",
        "in-use: subnet default/blue/tiny cannot be deleted: it has NICs default/blue/tiny/a; \
         delete or move it first",
    );
    check(
        "update-vpc default/blue 10.4.2.0/24 fd00:4::/48",
        "in-use: vpc default/blue cannot lose these prefixes: it has subnets in them: \
         default/blue/web; delete or move it first",
    );
    let mut world = world();
    for n in 0..4 {
        world
            .run(&format!("nic default/blue/web/n{n} c1 tap"))
            .unwrap();
    }
    for n in ["a", "b"] {
        world
            .run(&format!("delete nic default/blue/web/{n}"))
            .unwrap();
    }
    assert_eq!(
        world
            .run("delete subnet default/blue/web")
            .unwrap_err()
            .to_string(),
        "subnet default/blue/web cannot be deleted: it has 4 NICs: default/blue/web/n0, \
         default/blue/web/n1, default/blue/web/n2 and 1 more; delete or move them first"
    );
}

#[test]
fn versions_and_request_ids() {
    check(
        "delete account rq version 3",
        "version-conflict: account rq is at version 19, not 3: it changed meanwhile; read it \
         again and repeat the change if it still makes sense",
    );
    check(
        "account other request r1",
        "request-reused: request id r1 was used within the last 24 h for another request: use a \
         new id for each new request",
    );
}

#[test]
fn prefixes() {
    check(
        "vpc default/x",
        "invalid: vpc default/x has no prefix: give at least one, as in 10.4.0.0/16",
    );
    check(
        "subnet default/blue/x",
        "invalid: subnet default/blue/x has no prefix: give at least one, as in 10.4.1.0/24",
    );
    check(
        "vpc default/x 10.0.0.1/8",
        "invalid: 10.0.0.1/8 has bits set beyond /8: did you mean 10.0.0.0/8?",
    );
    check(
        "vpc default/x 127.0.0.0/8",
        "invalid: 127.0.0.0/8 cannot be used: it is loopback",
    );
    check(
        "vpc default/x 10.0.0.0/31",
        "invalid: 10.0.0.0/31 is not a prefix for a vpc: the smallest subnet is a /30; use /30 or \
         shorter",
    );
    check(
        "vpc default/x fd00::/127",
        "invalid: fd00::/127 is not a prefix for a vpc: the smallest subnet is a /126; use /126 \
         or shorter",
    );
    check(
        "vpc default/x 10.0.0.0/8 10.4.0.0/16",
        "invalid: 10.4.0.0/16 overlaps 10.0.0.0/8 of vpc default/x: prefixes inside one VPC must \
         not share addresses, choose another",
    );
    let cidrs: Vec<String> = (0..51).map(|n| format!("10.{n}.0.0/16")).collect();
    check(
        &format!("vpc default/x {}", cidrs.join(" ")),
        "invalid: vpc default/x would have 51 prefixes, the limit is 50: use fewer",
    );
    check(
        "subnet default/blue/x 10.4.9.0/31",
        "invalid: 10.4.9.0/31 is not a prefix for a subnet: network, gateway, broadcast and one \
         NIC need four addresses; use /30 or shorter",
    );
    check(
        "subnet default/blue/x fd00:4:0:9::/127",
        "invalid: fd00:4:0:9::/127 is not a prefix for a subnet: router anycast, gateway and one \
         NIC need four addresses; use /64 to /126",
    );
    check(
        "subnet default/blue/x fd00:4:0:8::/63",
        "invalid: fd00:4:0:8::/63 is not a prefix for a subnet: an IPv6 link is at most a /64 \
         (RFC 4291), beyond it hosts cannot form addresses; use /64 to /126",
    );
    check(
        "subnet default/blue/x 10.4.9.0/24 10.4.10.0/24",
        "invalid: 10.4.9.0/24 and 10.4.10.0/24 are of one family: a subnet has one IPv4 and one \
         IPv6 prefix at most; make two subnets",
    );
    check(
        "subnet default/blue/x 10.4.1.128/25",
        "invalid: 10.4.1.128/25 overlaps 10.4.1.0/24 of subnet default/blue/web: prefixes inside \
         one VPC must not share addresses, choose another",
    );
    check(
        "subnet default/blue/x 10.9.0.0/24",
        "invalid: 10.9.0.0/24 is not inside vpc default/blue, which has 10.4.0.0/16, fd00:4::/48: \
         choose a part of one of them, or add a prefix to the VPC",
    );
}

#[test]
fn addresses_and_macs() {
    let reserved = |address: &str, role: &str| {
        check(
            &format!("nic default/blue/web/x c1 tap ip {address}"),
            &format!(
                "invalid: address {address} of subnet default/blue/web is its {role}: choose \
                 another, or leave it out"
            ),
        );
    };
    reserved("10.4.1.0", "network address");
    reserved("10.4.1.1", "gateway");
    reserved("10.4.1.255", "broadcast address");
    reserved("fd00:4:0:1::", "router anycast address");
    reserved("fd00:4:0:1::1", "gateway");
    check(
        "nic default/blue/web/x c1 tap ip 10.4.2.9",
        "invalid: address 10.4.2.9 is not inside subnet default/blue/web, which has 10.4.1.0/24, \
         fd00:4:0:1::/64: choose one that is, or leave it out",
    );
    check(
        "nic default/blue/tiny/x c1 tap ip fd00:4:0:1::9",
        "invalid: address fd00:4:0:1::9 is not inside subnet default/blue/tiny, which has \
         10.4.2.0/30: choose one that is, or leave it out",
    );
    check(
        "nic default/blue/web/x c1 tap ip 10.4.1.8 ip 10.4.1.9",
        "invalid: addresses 10.4.1.8 and 10.4.1.9 are of one family: a NIC has one for each \
         prefix of its subnet; make two NICs",
    );
    check(
        "nic default/blue/web/x c1 tap mac 03:00:00:00:00:01",
        "invalid: MAC 03:00:00:00:00:01 cannot be an interface's: it is a group address; choose a \
         unicast one such as 02:00:00:00:00:01, or leave it out",
    );
    check(
        "nic default/blue/web/x c1 tap mac 00:00:00:00:00:00",
        "invalid: MAC 00:00:00:00:00:00 cannot be an interface's: it is all zeroes; choose a \
         unicast one such as 02:00:00:00:00:01, or leave it out",
    );
}

#[test]
fn mtus() {
    check(
        "subnet default/blue/x 10.4.9.0/24 mtu 1451",
        "invalid: MTU 1451 of subnet default/blue/x is too large: an underlay of 1500 less 50 of \
         encapsulation leaves 1450; ask for at most that, or raise the underlay's MTU",
    );
    check(
        "subnet default/bundle/x 10.5.9.0/24 mtu 1447",
        "invalid: MTU 1447 of subnet default/bundle/x is too large: an underlay of 1500 less 54 \
         of encapsulation leaves 1446; ask for at most that, or raise the underlay's MTU",
    );
    check(
        "subnet default/blue/x fd00:4:0:9::/64 mtu 1279",
        "invalid: MTU 1279 of subnet default/blue/x is too small: IPv6 needs at least 1280 (RFC \
         8200); raise it, or leave the IPv6 prefix out",
    );
    let mut world = World::with_mtu(600);
    world.run("account a").unwrap();
    world.run("vpc a/v 10.0.0.0/8").unwrap();
    assert_eq!(
        world
            .run("subnet a/v/s 10.0.0.0/24")
            .unwrap_err()
            .to_string(),
        "MTU 576 of subnet a/v/s is too large: an underlay of 600 less 50 of encapsulation leaves \
         550; ask for at most that, or raise the underlay's MTU"
    );
}

#[test]
fn bundles_have_one_vni() {
    check(
        "subnet default/bundle/x 10.5.9.0/24 vni 100",
        "invalid: subnet default/bundle/x cannot have a VNI of its own: vpc default/bundle is a \
         vlan-aware-bundle, whose subnets share the VPC's VNI; leave it out, or use a vlan-based \
         VPC",
    );
}

#[test]
fn hosts_and_interfaces() {
    check(
        "nic default/blue/web/x d1 tap",
        "unsuitable-host: host d1 is draining and takes nothing new: choose another host, or end \
         the draining",
    );
    check(
        "nic default/bundle/web/x f1 tap",
        "unsuitable-host: host f1 with FRR as its EVPN client does VLAN-based service only, and \
         VPC default/bundle is a vlan-aware-bundle: use another host, the built-in speaker \
         (vpc host set f1 --speaker builtin), or a vlan-based VPC",
    );
    check(
        "update-host c2 speaker frr",
        "unsuitable-host: host c2 with FRR as its EVPN client does VLAN-based service only, and \
         VPC default/bundle is a vlan-aware-bundle: use another host, the built-in speaker \
         (vpc host set c2 --speaker builtin), or a vlan-based VPC",
    );
    check(
        "nic default/blue/web/x r1 tap",
        "unsuitable-host: host r1 carries no workloads, its roles are route, management: choose a \
         compute host, or give it that role",
    );
    check(
        "host x 192.0.2.99 roles none",
        "invalid: host x has no role: give it one or more of compute, route, management and \
         storage",
    );
    check(
        "update-host c1 roles route",
        "in-use: host c1 cannot give up its compute role: it has NICs default/blue/tiny/a, \
         default/blue/web/a, default/blue/web/b; delete or move them first",
    );
    for name in [
        "b-x", "bx-x", "l-x", "n-x", "r-x", "rx-x", "s-x", "t-1", "u-x", "w-x", "x-x",
    ] {
        check(
            &format!("nic default/blue/web/x c1 existing:{name}"),
            &format!(
                "invalid: interface {name} cannot become a NIC: names that begin with b- t- n- r- \
                 rx- s- u- or w- belong to the agent; choose another"
            ),
        );
    }
    check(
        "nic default/blue/web/x c1 existing:lo",
        "invalid: interface lo cannot become a NIC: it is the host's loopback; choose another",
    );
    check(
        "nic default/blue/web/x c1 netns:app:lo",
        "invalid: interface lo cannot become a NIC: every namespace has its loopback already; \
         choose another",
    );
}

#[test]
fn underlays() {
    let bad = |address: &str, what: &str| {
        check(
            &format!("host x {address}"),
            &format!(
                "invalid: underlay address {address} of host x cannot be used: it is {what}; give \
                 an address at which the other hosts reach this one"
            ),
        );
    };
    bad("0.0.0.0", "unspecified");
    bad("::", "unspecified");
    bad("127.0.0.1", "a loopback address");
    bad("224.0.0.1", "a multicast address");
    bad("255.255.255.255", "the broadcast address");
    bad("0.1.2.3", "reserved");
    bad("241.0.0.1", "reserved");
    bad("169.254.0.1", "link-local");
    bad("fe80::1", "link-local");
    bad(
        "::ffff:192.0.2.1",
        "an IPv4 address in IPv6 clothes; write it as IPv4",
    );
    check(
        "host x fd00::1",
        "invalid: underlay address fd00::1 of host x cannot be used: host c1 has 192.0.2.11, and \
         tunnel endpoints of IPv4 and IPv6 do not reach each other; give an address of the same \
         family",
    );
    let mut world = World::new();
    for line in [
        "account a",
        "vpc a/v 10.0.0.0/8",
        "subnet a/v/s 10.0.0.0/24",
    ] {
        world.run(line).unwrap();
    }
    assert_eq!(
        world.run("host x fd00::1").unwrap_err().to_string(),
        "underlay address fd00::1 of host x cannot be used: subnet a/v/s has MTU 1450, more than \
         is left inside tunnels of this family; join with an IPv4 address, or delete the subnet \
         and make it again afterwards"
    );
}

#[test]
fn labels() {
    check(
        "account x label =v",
        "invalid: label \"\" has a key that is empty or longer than 63 bytes: shorten it",
    );
    check(
        "account x label a:b=v",
        "invalid: label \"a:b\" has a key with other characters than letters, digits and - _ . /: \
         use those",
    );
    check(
        "set-labels vpc default/blue label a=x\\ny",
        "invalid: label \"a\" has a value with control characters: leave them out",
    );
    check(
        &format!("account x label a={}", "x".repeat(1000)),
        "invalid: the object would have 1001 bytes of labels, the limit is 1000: use fewer",
    );
}

#[test]
fn codes_are_stable_and_distinct() {
    let texts: BTreeSet<&str> = Code::ALL.iter().map(|code| code.as_str()).collect();
    assert_eq!(
        texts.into_iter().collect::<Vec<_>>(),
        [
            "already-exists",
            "exhausted",
            "held",
            "in-use",
            "invalid",
            "not-found",
            "request-reused",
            "unsuitable-host",
            "version-conflict",
        ]
    );
}
