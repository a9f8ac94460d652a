//! What a port may send, with real frames: a NIC that is not to be trusted sends, another on the
//! same bridge listens. Run as root.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that cannot go on says where, and what it measured or left out"
)]

mod lab;

use host_plan::{Action, BridgePortFlags, FdbRow, FdbState, FdbTarget, Guard, Neighbour, Uplink};
use lab::frames::*;
use lab::*;
use linux::Announcements;
use model::{Capability, MacAddr};
use std::collections::BTreeSet;
use std::process::Command;

/// NIC 1 sends these, and then what it may; returns which of them NIC 2 got.
fn arrived(frames: &[(&str, Vec<u8>)]) -> Vec<String> {
    let listener = inside_of("b", || Wire::open("eth0"));
    let sender = inside_of("a", || Wire::open("eth0"));
    for (_, frame) in frames {
        sender.send(frame);
    }
    sender.send(&last(1));
    let got = listener.until(&last(1));
    frames
        .iter()
        .filter(|(_, frame)| got.contains(frame))
        .map(|(name, _)| (*name).to_owned())
        .collect()
}

fn names(frames: &[(&str, Vec<u8>)]) -> Vec<String> {
    frames.iter().map(|(name, _)| (*name).to_owned()).collect()
}

const OWN_V6: &str = "fd00::1";
const OTHER_V6: &str = "fd00::2";
const ALL_NODES: &str = "ff02::1";

fn own_link_local() -> String {
    mac(1).link_local().to_string()
}

fn honest() -> Vec<(&'static str, Vec<u8>)> {
    let own = mac(1);
    let local = own_link_local();
    vec![
        (
            "ARP request",
            broadcast(own, 0x0806, &arp(1, own, "10.0.0.1", "10.0.0.9")),
        ),
        (
            "ARP probe",
            broadcast(own, 0x0806, &arp(1, own, "0.0.0.0", "10.0.0.1")),
        ),
        (
            "gratuitous ARP",
            broadcast(own, 0x0806, &arp(2, own, "10.0.0.1", "10.0.0.1")),
        ),
        (
            "IPv4",
            broadcast(own, 0x0800, &ipv4_udp("10.0.0.1", "10.0.0.255", 9, 9)),
        ),
        (
            "DHCP",
            broadcast(own, 0x0800, &ipv4_udp("0.0.0.0", "255.255.255.255", 68, 67)),
        ),
        (
            "IPv6",
            broadcast(own, 0x86dd, &ipv6(OWN_V6, ALL_NODES, 59, &[])),
        ),
        (
            "IPv6 link-local",
            broadcast(own, 0x86dd, &ipv6(&local, ALL_NODES, 59, &[])),
        ),
        (
            "NS",
            broadcast(
                own,
                0x86dd,
                &nd(135, OWN_V6, ALL_NODES, OTHER_V6, &link_layer(1, own)),
            ),
        ),
        (
            "NS without option",
            broadcast(own, 0x86dd, &nd(135, OWN_V6, ALL_NODES, OTHER_V6, &[])),
        ),
        (
            "DAD",
            broadcast(own, 0x86dd, &nd(135, "::", ALL_NODES, OWN_V6, &[])),
        ),
        (
            "DAD with a nonce",
            broadcast(
                own,
                0x86dd,
                &nd(135, "::", ALL_NODES, OWN_V6, &[14, 1, 1, 2, 3, 4, 5, 6]),
            ),
        ),
        (
            "NA",
            broadcast(
                own,
                0x86dd,
                &nd(136, OWN_V6, ALL_NODES, OWN_V6, &link_layer(2, own)),
            ),
        ),
        (
            "NA of link-local",
            broadcast(
                own,
                0x86dd,
                &nd(136, &local, ALL_NODES, &local, &link_layer(2, own)),
            ),
        ),
        (
            "RS",
            broadcast(
                own,
                0x86dd,
                &ipv6("::", "ff02::2", 58, &[133, 0, 0, 0, 0, 0, 0, 0]),
            ),
        ),
    ]
}

fn spoofed() -> Vec<(&'static str, Vec<u8>)> {
    let (own, other) = (mac(1), mac(2));
    let tagged = [&[0, 5, 8, 0][..], &ipv4_udp("10.0.0.1", "10.0.0.255", 9, 9)].concat();
    let mut short_arp = arp(2, other, "10.0.0.2", "10.0.0.1");
    short_arp[4] = 8; // a longer hardware address moves what follows
    let fragment = [
        &[58, 0, 0, 1, 0, 0, 0, 7][..],
        &nd(136, OWN_V6, ALL_NODES, OTHER_V6, &[])[40..],
    ]
    .concat();
    vec![
        (
            "MAC",
            broadcast(other, 0x0800, &ipv4_udp("10.0.0.1", "10.0.0.255", 9, 9)),
        ),
        (
            "group MAC",
            broadcast(
                MacAddr([3, 0, 0, 0, 0, 1]),
                0x0800,
                &ipv4_udp("10.0.0.1", "10.0.0.255", 9, 9),
            ),
        ),
        (
            "ARP MAC",
            broadcast(own, 0x0806, &arp(2, other, "10.0.0.1", "10.0.0.9")),
        ),
        (
            "ARP address",
            broadcast(own, 0x0806, &arp(2, own, "10.0.0.2", "10.0.0.9")),
        ),
        (
            "ARP request address",
            broadcast(own, 0x0806, &arp(1, own, "10.0.0.254", "10.0.0.9")),
        ),
        (
            "ARP reply of nobody",
            broadcast(own, 0x0806, &arp(2, own, "0.0.0.0", "10.0.0.9")),
        ),
        ("ARP of another length", broadcast(own, 0x0806, &short_arp)),
        (
            "IPv4",
            broadcast(own, 0x0800, &ipv4_udp("10.0.0.2", "10.0.0.255", 9, 9)),
        ),
        (
            "IPv4 of nobody",
            broadcast(own, 0x0800, &ipv4_udp("0.0.0.0", "10.0.0.255", 9, 9)),
        ),
        (
            "IPv6",
            broadcast(own, 0x86dd, &ipv6(OTHER_V6, ALL_NODES, 59, &[])),
        ),
        (
            "IPv6 link-local",
            broadcast(
                own,
                0x86dd,
                &ipv6(&other.link_local().to_string(), ALL_NODES, 59, &[]),
            ),
        ),
        (
            "IPv6 of nobody",
            broadcast(own, 0x86dd, &ipv6("::", ALL_NODES, 59, &[])),
        ),
        (
            "NA of another",
            broadcast(
                own,
                0x86dd,
                &nd(136, OWN_V6, ALL_NODES, OTHER_V6, &link_layer(2, own)),
            ),
        ),
        (
            "NA of another, no option",
            broadcast(own, 0x86dd, &nd(136, OWN_V6, ALL_NODES, OTHER_V6, &[])),
        ),
        (
            "NA with another's MAC",
            broadcast(
                own,
                0x86dd,
                &nd(136, OWN_V6, ALL_NODES, OWN_V6, &link_layer(2, other)),
            ),
        ),
        (
            "NA from another",
            broadcast(
                own,
                0x86dd,
                &nd(136, OTHER_V6, ALL_NODES, OWN_V6, &link_layer(2, own)),
            ),
        ),
        (
            "NA with two options",
            broadcast(
                own,
                0x86dd,
                &nd(
                    136,
                    OWN_V6,
                    ALL_NODES,
                    OWN_V6,
                    &[link_layer(2, own), link_layer(2, other)].concat(),
                ),
            ),
        ),
        (
            "NS with another's MAC",
            broadcast(
                own,
                0x86dd,
                &nd(135, OWN_V6, ALL_NODES, OTHER_V6, &link_layer(1, other)),
            ),
        ),
        (
            "DAD of another's address",
            broadcast(own, 0x86dd, &nd(135, "::", ALL_NODES, OTHER_V6, &[])),
        ),
        (
            "fragmented NA",
            broadcast(own, 0x86dd, &ipv6(OWN_V6, ALL_NODES, 44, &fragment)),
        ),
        ("802.1Q", broadcast(own, 0x8100, &tagged)),
        ("802.1ad", broadcast(own, 0x88a8, &tagged)),
        ("LLDP", broadcast(own, 0x88cc, &[2, 7, 4, 2, 0, 0, 0, 0, 1])),
        ("LLC", broadcast(own, 40, &[0xaa, 0xaa, 3])),
        ("MPLS", broadcast(own, 0x8847, &[0; 20])),
    ]
}

#[test]
fn a_port_sends_what_is_its_own() {
    lab(|lab| {
        if !lab.can(Capability::NftBridge) {
            return;
        }
        lab.bridge_with_nics(&["a", "b"]);
        let frames = honest();
        assert_eq!(arrived(&frames), names(&frames));
    });
}

#[test]
fn a_port_sends_nothing_else() {
    lab(|lab| {
        if !lab.can(Capability::NftBridge) {
            return;
        }
        lab.bridge_with_nics(&["a", "b"]);
        let frames = spoofed();
        assert_eq!(arrived(&frames), Vec::<String>::new());
        // Each has been counted under its name. (Frames with a group source never enter a bridge.)
        let counted = counted();
        assert!(
            counted >= frames.len() as u64 - 1,
            "{counted} of {}",
            frames.len()
        );
        // The control: without the guard all of them would arrive, so it is the guard that stops them.
        tool("nft flush ruleset");
        let free = arrived(&frames);
        assert!(free.len() >= frames.len() - 3, "{free:?}");
    });
}

/// Frames of NIC 1 from these addresses, of either family.
fn from(addresses: &[&'static str]) -> Vec<(&'static str, Vec<u8>)> {
    let frame = |source: &str| match source.contains(':') {
        true => broadcast(mac(1), 0x86dd, &ipv6(source, ALL_NODES, 59, &[])),
        false => broadcast(mac(1), 0x0800, &ipv4_udp(source, "10.0.0.255", 9, 9)),
    };
    let frames = addresses.iter().map(|source| (*source, frame(source)));
    frames.collect()
}

/// What is behind a NIC comes out of it, with the NIC's MAC and nothing said in its name: routes lead there.
#[test]
fn a_port_sends_what_is_behind_its_nic() {
    lab(|lab| {
        if !lab.can(Capability::NftBridge) {
            return;
        }
        lab.bridge_with_nics(&["a", "b"]);
        let behind = |nets: &[&str]| Action::SetGuard {
            link: ifname("n-a"),
            guard: Guard {
                behind: nets.iter().map(|net| net.parse().unwrap()).collect(),
                ..guard(1)
            },
        };
        let within = from(&["10.9.0.0", "10.9.7.1", "10.9.255.255", "2001:db8:9::1"]);
        let beyond = from(&["10.8.255.255", "10.10.0.0", "10.0.0.2", "2001:db8:8::1"]);
        let frames = [&within[..], &beyond].concat();
        assert_eq!(arrived(&frames), Vec::<String>::new());
        lab.act_twice([behind(&["10.9.0.0/16", "2001:db8:9::/48"])]);
        assert_eq!(arrived(&frames), names(&within));
        let spoofed = spoofed();
        assert_eq!(arrived(&spoofed), Vec::<String>::new());

        // One that has others in it takes their place. Everything is not what belongs to one link, nor a
        // word about an address.
        lab.act_twice([behind(&["10.8.0.0/15", "2001:db8:9::/48"])]);
        assert_eq!(
            arrived(&frames),
            [&names(&within)[..], &["10.8.255.255".to_owned()]].concat()
        );
        lab.act_twice([behind(&["0.0.0.0/0", "::/0"])]);
        let never = from(&[
            "0.0.0.1",
            "127.0.0.1",
            "169.254.169.254",
            "255.255.255.255",
            "::",
            "fe80::9",
        ]);
        let all = [&frames[..], &never].concat();
        assert_eq!(arrived(&all), names(&frames));
        let arp = |frame: &(&str, Vec<u8>)| frame.0.contains("ARP") || frame.0.contains("NA");
        let claims: Vec<_> = spoofed.into_iter().filter(arp).collect();
        assert_eq!(arrived(&claims), Vec::<String>::new());
        lab.act_twice([behind(&[])]);
        assert_eq!(arrived(&frames), Vec::<String>::new());
    });
}

/// The program of a filter that claims every second packet.
const EVERY_SECOND: &str = "3,32 0 0 4294963256,84 0 0 1,22 0 0 0";

/// Frames that were dropped for what they say; what the host refused for itself is not among them.
fn counted() -> u64 {
    let dropped = |name: &str| name.starts_with("spoofed-") || name == "tagged";
    counters(|name| dropped(name) || name == "other-ethertype")
}

/// The sum of some counters.
fn counters(wanted: impl Fn(&str) -> bool) -> u64 {
    json("nft -j list counters table bridge vpc")["nftables"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|object| object["counter"]["name"].as_str().is_some_and(&wanted))
        .filter_map(|object| object["counter"]["packets"].as_u64())
        .sum()
}

/// A frame that an `ifb` device gave back carries a flag that makes the next interface it comes in by
/// skip tc, and nothing takes the flag off on the way through a veth pair. A workload may be root in
/// its namespace, so it can have that for every frame: the guard must not stand there.
#[test]
fn a_workload_cannot_mark_frames_to_be_let_past() {
    lab(|lab| {
        if !lab.can(Capability::NftBridge) {
            return;
        }
        lab.bridge_with_nics(&["a", "b"]);
        let redirected = inside_of("a", || {
            tries("ip link add ifb0 type ifb")
                && tries("ip link set ifb0 up")
                && tries("tc qdisc add dev eth0 clsact")
                && Command::new("tc")
                    .args("filter add dev eth0 egress bpf bytecode".split(' '))
                    .arg(EVERY_SECOND)
                    .args("action mirred egress redirect dev ifb0".split(' '))
                    .status()
                    .is_ok_and(|status| status.success())
        });
        if !redirected {
            println!("SKIPPED a test: this kernel has no ifb, or no mirred");
            return;
        }
        // Marked is what the filter claims the first time and not the second: one in four.
        let (own, other) = (mac(1), mac(2));
        let from = |mac, ip| broadcast(mac, 0x0800, &ipv4_udp(ip, "10.0.0.255", 9, 9));
        let frames: Vec<_> = std::iter::repeat_n(
            [
                ("MAC", from(other, "10.0.0.1")),
                ("IPv4", from(own, "10.0.0.2")),
                (
                    "ARP",
                    broadcast(own, 0x0806, &arp(2, own, "10.0.0.2", "10.0.0.9")),
                ),
            ],
            30,
        )
        .flatten()
        .collect();
        let before = counted();
        assert_eq!(arrived(&frames), Vec::<String>::new());
        assert_eq!(counted() - before, frames.len() as u64);
        let ifb = inside_of("a", || json("ip -s -j link show ifb0"));
        assert!(ifb[0]["stats64"]["rx"]["packets"].as_u64().unwrap() > 0);

        // What a guard would do there, for the record; a kernel may mend this one day.
        tool("nft flush ruleset");
        tool("tc qdisc add dev n-a clsact");
        let drop_all = Command::new("tc")
            .args("filter add dev n-a ingress bpf da bytecode".split(' '))
            .arg("1,6 0 0 2")
            .status();
        assert!(drop_all.unwrap().success());
        let listener = inside_of("b", || Wire::open("eth0"));
        let sender = inside_of("a", || Wire::open("eth0"));
        for (_, frame) in &frames {
            sender.send(frame);
        }
        tool("tc qdisc del dev n-a clsact");
        sender.send(&last(1));
        let got = listener.until(&last(1)).len();
        println!(
            "{got} of {} frames get past tc that drops all",
            frames.len()
        );
    });
}

#[test]
fn what_is_announced_is_heard_and_goes_on() {
    lab(|lab| {
        if !lab.can(Capability::NftBridge) {
            return;
        }
        lab.bridge_with_nics(&["a", "b"]);
        // Whoever hears it has the tunnel as a way out; here the far end of a pair.
        tool("ip link add up0 type veth peer name far0");
        tool("ip link set up0 up");
        tool("ip link set far0 up");
        let tags = lab.can(Capability::VlanDevices);
        if tags {
            tool("ip link add link far0 name far7 type vlan id 7");
            tool("ip link set far7 up");
        }
        let far = Wire::open(if tags { "far7" } else { "far0" });
        let mut heard = Announcements::open().unwrap();
        let announced = [
            "ARP probe",
            "gratuitous ARP",
            "DAD",
            "DAD with a nonce",
            "NA",
            "NA of link-local",
        ];
        let sender = inside_of("a", || Wire::open("eth0"));
        for (_, frame) in spoofed().iter().chain(&honest()) {
            sender.send(frame);
        }
        let own = mac(1);
        let last = broadcast(own, 0x0806, &arp(1, own, "0.0.0.0", "10.0.0.77"));
        sender.send(&last);
        let mut got = Vec::new();
        let deadline = std::time::Instant::now() + SOON;
        while got.last() != Some(&last) {
            assert!(std::time::Instant::now() < deadline, "{got:02x?}");
            let some = heard.wait().unwrap();
            // The NICs' own kernels announce their addresses as well, NIC 2's among them.
            let of_1 = some.into_iter().filter(|one| one.port == ifname("n-a"));
            got.extend(of_1.map(|one| one.frame));
        }
        for (name, frame) in honest() {
            let times = got.iter().filter(|one| **one == frame).count();
            assert_eq!(times == 1, announced.contains(&name), "{name}: {times}");
        }
        for (name, frame) in spoofed() {
            assert!(!got.contains(&frame), "spoofed {name}");
        }
        for (link, tag) in [("up0", None), ("up0", Some(vlan(7))), ("gone", None)] {
            let uplink = Uplink {
                link: ifname(link),
                vlan: tag,
                vni: vni(7),
            };
            assert_eq!(heard.send(&uplink, &last).unwrap(), link == "up0");
        }
        far.until(&last);

        // Too often: the rest stays here, and another port is not held up by it.
        let (before, limited) = (counters(|name| name == "announced"), |name: &str| {
            name == "announced-too-often"
        });
        assert_eq!(counters(limited), 0);
        for _ in 0..200 {
            sender.send(&last);
        }
        let other = inside_of("b", || Wire::open("eth0"));
        let of_b = broadcast(mac(2), 0x0806, &arp(1, mac(2), "10.0.0.2", "10.0.0.2"));
        other.send(&of_b);
        let mut got = 0;
        loop {
            let some = heard.wait().unwrap();
            got += some.iter().filter(|one| one.frame == last).count();
            if some.iter().any(|one| one.frame == of_b) {
                break;
            }
        }
        assert!((1..150).contains(&got), "{got} of 200");
        let passed = counters(|name| name == "announced") - before;
        assert!(passed > got as u64 && counters(limited) > 50);
    });
}

/// RFC 9047: what the bridge answers for a router behind the tunnel says that it is one.
#[test]
fn a_router_behind_the_tunnel_is_answered_for_as_one() {
    lab(|lab| {
        if !lab.can(Capability::NftBridge) || !lab.can(Capability::Vxlan) {
            return;
        }
        lab.bridge_with_nics(&["a"]);
        let tunnel = ifname("t-7");
        lab.act([
            vxlan("t-7", 7, "192.0.2.1"),
            Action::Enslave {
                link: tunnel.clone(),
                bridge: ifname("b-1"),
            },
            Action::SetPortFlags {
                link: tunnel.clone(),
                flags: BridgePortFlags {
                    neigh_suppress: true,
                    ..open_port()
                },
            },
            Action::SetUp {
                link: tunnel.clone(),
            },
        ]);
        // ND rows hang on VLAN devices where the kernel filters; without, the bridge may have some.
        std::fs::write("/proc/sys/net/ipv6/conf/b-1/disable_ipv6", "0").unwrap();
        let row = |n: u8, router| Neighbour {
            dev: ifname("b-1"),
            ip: ip(&format!("fd00::{n:x}")),
            mac: mac(n),
            ours: true,
            remote: true,
            router,
        };
        lab.act([8, 9].map(|n| {
            Action::AddFdb(FdbRow {
                dev: tunnel.clone(),
                mac: mac(n),
                target: FdbTarget::Bridge(None),
                state: FdbState::ExternLearned,
            })
        }));
        let own = mac(1);
        let wire = inside_of("a", || Wire::open("eth0"));
        let flags_of = |n: u8| {
            let target = format!("fd00::{n:x}");
            let asks = nd(135, OWN_V6, "ff02::1", &target, &link_layer(1, own));
            wire.send(&broadcast(own, 0x86dd, &asks));
            let target: std::net::Ipv6Addr = target.parse().unwrap();
            let answers = |frame: &[u8]| {
                frame.len() > 78 && frame[54] == 136 && frame[62..78] == target.octets()
            };
            wire.until_one(answers).pop().unwrap()[58]
        };
        const ROUTER: u8 = 0x80;
        lab.act_twice([row(8, false), row(9, true)].map(Action::SetNeighbour));
        assert_eq!([flags_of(8), flags_of(9)].map(|f| f & ROUTER), [0, ROUTER]);
        let known: BTreeSet<_> = lab.observe().neighbours.iter().cloned().collect();
        assert_eq!(known, [row(8, false), row(9, true)].into());
        // It goes, and comes, with the route's flag.
        lab.act_twice([row(8, true), row(9, false)].map(Action::SetNeighbour));
        assert_eq!([flags_of(8), flags_of(9)].map(|f| f & ROUTER), [ROUTER, 0]);
        assert_eq!(
            *lab.observe().neighbours,
            [row(8, true), row(9, false)].into()
        );
    });
}

#[test]
fn a_port_starts_closed_and_closes_again() {
    lab(|lab| {
        if !lab.can(Capability::NftBridge) {
            return;
        }
        lab.bridge_with_nics(&["a", "b"]);
        lab.act_twice([Action::ClearGuard {
            link: ifname("n-a"),
        }]);
        let listener = inside_of("b", || Wire::open("eth0"));
        let sender = inside_of("a", || Wire::open("eth0"));
        for (_, frame) in honest() {
            sender.send(&frame);
        }
        lab.act([Action::SetGuard {
            link: ifname("n-a"),
            guard: guard(1),
        }]);
        sender.send(&last(1));
        assert_eq!(listener.until(&last(1)), Vec::<Vec<u8>>::new());
    });
}

#[test]
fn an_adopted_interface_starts_closed_too() {
    lab(|lab| {
        if !lab.can(Capability::NftBridge) {
            return;
        }
        lab.bridge_with_nics(&["b"]);
        tool("ip link add eth7 type veth peer name far");
        tool("ip link set far up");
        let link = ifname("eth7");
        let stamp = host_plan::Stamp::Adopted(model::NicId::from_random(3));
        lab.act([
            Action::Adopt {
                name: link.clone(),
                stamp,
            },
            Action::Enslave {
                link: link.clone(),
                bridge: ifname("b-1"),
            },
            Action::SetPortFlags {
                link: link.clone(),
                flags: open_port(),
            },
            Action::SetUp { link: link.clone() },
        ]);
        let listener = inside_of("b", || Wire::open("eth0"));
        let far = Wire::open("far");
        far.send(&last(7));
        lab.act([Action::SetGuard {
            link,
            guard: guard(7),
        }]);
        let allowed = broadcast(mac(7), 0x0800, &ipv4_udp("10.0.0.7", "10.0.0.255", 9, 9));
        far.send(&allowed);
        assert_eq!(listener.until(&allowed), Vec::<Vec<u8>>::new());
    });
}

#[test]
fn a_guard_is_replaced_whole() {
    lab(|lab| {
        lab.act([Action::InstallFirewall]);
        let link = ifname("n-1");
        let set = |guard: Guard| Action::SetGuard {
            link: ifname("n-1"),
            guard,
        };
        lab.act_twice([set(guard(1)), set(guard(2))]);
        assert_eq!(lab.observe().guards[&link], guard(2));
        // Somebody took an element away; what we believe of the sets is wrong, and it still works.
        tool(
            "nft delete element bridge vpc ipv4 { n-1 . 10.0.0.2 }"
                .replace("{ n-1", "{ \"n-1\"")
                .as_str(),
        );
        lab.act_twice([set(guard(3))]);
        assert_eq!(lab.observe().guards[&link], guard(3));
        tool("nft delete element bridge vpc macs { \"n-1\" . 02:00:00:00:00:03 }");
        assert_ne!(lab.observe().guards[&link], guard(3));
        lab.act([set(guard(3))]);
        assert_eq!(lab.observe().guards[&link], guard(3));
        // As many routes as a router may have, by one NIC.
        let nets = (0..1000).map(|n| format!("2001:db8:{:x}::/48", n * 2));
        let many = Guard {
            behind: nets.map(|net| net.parse().unwrap()).collect(),
            ..guard(3)
        };
        lab.act_twice([set(many.clone())]);
        assert_eq!(lab.observe().guards[&link], many);
        lab.act_twice([Action::ClearGuard { link }]);
        assert!(lab.observe().guards.is_empty());
    });
}

#[test]
fn another_wording_is_replaced_and_elements_stay() {
    lab(|lab| {
        assert!(!lab.observe().firewall);
        let vteps = [ip("192.0.2.2"), ip("2001:db8::2")].into();
        lab.act_twice([
            Action::InstallFirewall,
            Action::SetVteps(vteps),
            Action::SetGuard {
                link: ifname("n-1"),
                guard: guard(1),
            },
            Action::SetGuard {
                link: ifname("eth7"),
                guard: Guard {
                    behind: ["10.9.0.0/16", "10.8.0.1/32", "::/0"]
                        .map(|net| net.parse().unwrap())
                        .into(),
                    ..guard(7)
                },
            },
        ]);
        tool("nft add table inet theirs");
        let before = lab.observe();
        assert!(before.firewall && before.guards.len() == 2 && before.vteps.len() == 2);
        // A rule too many, a rule too few, another in its place, a hook that accepts or sleeps, a table
        // that is gone: each shows.
        for damage in [
            "nft add rule bridge vpc port accept",
            "nft flush chain inet vpc input",
            "nft flush chain bridge vpc prerouting",
            "nft flush chain inet vpc input; add rule inet vpc input accept; add rule inet vpc input accept; \
             add rule inet vpc input accept",
            "nft add table bridge vpc { flags dormant; }",
            "nft add chain bridge vpc input { policy drop; }",
        ] {
            tool(damage);
            assert!(!lab.observe().firewall, "{damage}");
            lab.act([Action::InstallFirewall]);
            assert_eq!(lab.observe(), before, "{damage}");
        }
        tool("nft delete table inet vpc");
        assert!(!lab.observe().firewall);
        lab.act([Action::InstallFirewall]);
        let after = lab.observe();
        assert!(after.firewall && after.vteps.is_empty() && after.guards == before.guards);
        assert!(tool("nft list tables").contains("theirs"));
    });
}

#[test]
fn tunnel_packets_come_from_known_ends_only() {
    lab(|lab| {
        tool("ip link add u0 type veth peer name u1");
        tool("ip netns add peer");
        tool("ip link set u1 netns peer");
        tool("ip addr add 192.0.2.1/24 dev u0");
        tool("ip link set u0 up");
        inside_of("peer", || {
            tool("ip addr add 192.0.2.2/24 dev u1");
            tool("ip addr add 192.0.2.3/24 dev u1");
            tool("ip link set u1 up");
        });
        lab.act([
            Action::InstallFirewall,
            Action::SetVteps([ip("192.0.2.2")].into()),
        ]);
        let receiver = std::net::UdpSocket::bind("192.0.2.1:4789").unwrap();
        receiver.set_read_timeout(Some(SOON)).unwrap();
        inside_of("peer", || {
            for from in ["192.0.2.3", "192.0.2.2"] {
                let socket = std::net::UdpSocket::bind((from, 0)).unwrap();
                socket.send_to(from.as_bytes(), "192.0.2.1:4789").unwrap();
            }
        });
        let mut buffer = [0; 64];
        let length = receiver.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"192.0.2.2");
        let counter = json("nft -j list counter inet vpc foreign-tunnel");
        assert_eq!(counter["nftables"][1]["counter"]["packets"], 1);
        lab.act_twice([Action::SetVteps([].into())]);
        assert!(lab.observe().vteps.is_empty());
    });
}

#[test]
fn what_is_tracked_for_others_is_not_ours() {
    lab(|lab| {
        const COUNT: &str = "/proc/sys/net/netfilter/nf_conntrack_count";
        if !std::path::Path::new(COUNT).exists() {
            println!("skipped: this kernel tracks no connections");
            return;
        }
        tool("ip link set lo up");
        lab.act([
            Action::InstallFirewall,
            Action::SetVteps([ip("127.0.0.1")].into()),
        ]);
        assert!(!tool("nft list table inet vpc").contains("notrack"));
        tool(
            "nft add table inet theirs; add chain inet theirs in { type filter hook input priority 0; }; \
             add counter inet theirs tracked; add counter inet theirs untracked; \
             add rule inet theirs in udp dport 4789 ct state new counter name tracked; \
             add rule inet theirs in udp dport 4789 ct state untracked counter name untracked",
        );
        assert!(lab.observe().firewall, "nothing was tracked yet");
        let receiver = std::net::UdpSocket::bind("127.0.0.1:4789").unwrap();
        receiver.set_read_timeout(Some(SOON)).unwrap();
        let one_more = || {
            let sender = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
            sender.send_to(&[1], "127.0.0.1:4789").unwrap();
            receiver.recv(&mut [0; 8]).unwrap();
            ["tracked", "untracked"].map(|name| {
                json(&format!("nft -j list counter inet theirs {name}"))["nftables"][1]["counter"]
                    ["packets"]
                    .as_u64()
                    .unwrap()
            })
        };
        assert_eq!(one_more(), [1, 0]);
        // Nobody is told of that: the next whole look shows it.
        lab.kernel.forget();
        assert!(!lab.observe().firewall, "now something is");
        lab.act_twice([Action::InstallFirewall]);
        assert!(lab.observe().firewall);
        assert_eq!(one_more(), [1, 1]);
        assert_eq!(*lab.observe().vteps, [ip("127.0.0.1")].into());
    });
}

#[test]
fn an_interface_named_like_a_tunnel_is_not_taken_over() {
    lab(|lab| {
        tool("ip link add t-1 type veth peer name far");
        lab.act([Action::InstallFirewall]);
        let error = lab.fail(Action::Adopt {
            name: ifname("t-1"),
            stamp: host_plan::Stamp::Adopted(model::NicId::from_random(3)),
        });
        assert!(format!("{error:?}").contains("rename it"), "{error:?}");
    });
}
