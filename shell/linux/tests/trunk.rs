//! Bundles where the kernel does not filter VLANs: real frames through the tunnel. Run as root.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that cannot go on says where, and what it measured or left out"
)]

mod lab;

use host_plan::{Action, FdbRow, FdbState, FdbTarget, TrunkPair};
use lab::frames::*;
use lab::*;
use model::{Capability, MacAddr};
use std::net::UdpSocket;
use std::process::Command;

const VNI: u32 = 7;

fn pair(id: u16) -> TrunkPair {
    TrunkPair {
        inner: ifname(&format!("u-{id}")),
        outer: ifname(&format!("w-{id}")),
        vxlan: ifname("t-7"),
        vlan: vlan(id),
        mtu: mtu(1400),
        stamp: of_subnet(),
    }
}

/// A subnet's bridge with its trunk pair, and a port whose other end is `far-ID`.
fn subnet(lab: &mut Lab, id: u16) {
    let bridge_name = ifname(&format!("b-{id}"));
    tool(&format!(
        "ip link add port-{id} type veth peer name far-{id}"
    ));
    for end in ["port", "far"] {
        // Two requests: in one the kernel brings it up first.
        tool(&format!("ip link set {end}-{id} addrgenmode none"));
        tool(&format!("ip link set {end}-{id} up"));
    }
    lab.act_twice([
        bridge(bridge_name.as_str(), false),
        Action::CreateTrunkPair(pair(id)),
    ]);
    for link in [ifname(&format!("port-{id}")), pair(id).inner] {
        lab.act([
            Action::Enslave {
                link: link.clone(),
                bridge: bridge_name.clone(),
            },
            Action::SetPortFlags {
                link,
                flags: open_port(),
            },
        ]);
    }
    let ends = [bridge_name, pair(id).inner, pair(id).outer];
    lab.act(ends.map(|link| Action::SetUp { link }));
}

fn vxlan_packet(frame: &[u8]) -> Vec<u8> {
    let vni = VNI.to_be_bytes();
    [&[8, 0, 0, 0, vni[1], vni[2], vni[3], 0][..], frame].concat()
}

fn tagged(frame: &[u8], id: u16) -> Vec<u8> {
    [&frame[..12], &[0x81, 0], &id.to_be_bytes(), &frame[12..]].concat()
}

/// The tunnel with one other end, which is the returned socket.
fn tunnel(lab: &mut Lab) -> UdpSocket {
    tool("ip link add u0 type veth peer name u1");
    tool("ip netns add peer");
    tool("ip link set u1 netns peer");
    tool("ip addr add 192.0.2.1/24 dev u0");
    tool("ip link set u0 up");
    let other_end = inside_of("peer", || {
        tool("ip addr add 192.0.2.2/24 dev u1");
        tool("ip link set u1 up");
        UdpSocket::bind("192.0.2.2:4789").unwrap()
    });
    other_end.set_read_timeout(Some(SOON)).unwrap();
    lab.act([
        vxlan("t-7", VNI, "192.0.2.1"),
        Action::AddFdb(FdbRow {
            dev: ifname("t-7"),
            mac: MacAddr::ZERO,
            target: FdbTarget::Vtep(ip("192.0.2.2")),
            state: FdbState::ExternLearned,
        }),
        Action::SetUp {
            link: ifname("t-7"),
        },
    ]);
    other_end
}

#[test]
fn a_trunk_pair_tags_and_untags() {
    lab(|lab| {
        if !lab.can(Capability::ClsBpf) || !lab.can(Capability::Vxlan) {
            return;
        }
        let other_end = tunnel(lab);
        subnet(lab, 10);
        subnet(lab, 20);
        let deadline = std::time::Instant::now() + SOON;
        while json("bridge -j link show")
            .to_string()
            .matches("forwarding")
            .count()
            < 4
        {
            assert!(std::time::Instant::now() < deadline, "ports stay closed");
        }
        let (far10, far20) = (Wire::open("far-10"), Wire::open("far-20"));
        let frame = |n: u8| {
            let payload = ipv4_udp("10.0.0.1", "10.0.0.255", u16::from(n), 9);
            broadcast(mac(n), 0x0800, &payload)
        };

        // Out: each subnet's frames with its tag, and none that had one already.
        far10.send(&tagged(&frame(1), 20));
        far10.send(&frame(1));
        far20.send(&frame(2));
        let mut buffer = [0; 2048];
        for (n, id) in [(1, 10), (2, 20)] {
            let length = other_end.recv(&mut buffer).unwrap();
            assert_eq!(
                buffer[..length],
                vxlan_packet(&tagged(&frame(n), id)),
                "VLAN {id}"
            );
        }

        // In: each tag to its subnet, untagged; what has no tag, or another's, to nobody.
        let send = |packet: &[u8]| {
            other_end
                .send_to(&vxlan_packet(packet), "192.0.2.1:4789")
                .unwrap();
        };
        send(&frame(3));
        send(&tagged(&frame(4), 30));
        send(&tagged(&frame(5), 10));
        send(&tagged(&frame(6), 20));
        send(&tagged(&frame(7), 10));
        send(&tagged(&frame(8), 20));
        assert_eq!(far10.until(&frame(7)), [frame(5)]);
        assert_eq!(far20.until(&frame(8)), [frame(6)]);

        // A pair that goes takes its filter with it, and leaves the others.
        let filters = || tool("tc filter show dev t-7 ingress");
        assert!(filters().contains("pref 10 "), "{}", filters());
        lab.act_twice([Action::DeleteLinks(vec![pair(10).inner, pair(10).outer])]);
        assert!(!filters().contains("pref 10 "), "{}", filters());
        assert!(filters().contains("pref 20 "), "{}", filters());
        send(&tagged(&frame(9), 10));
        send(&tagged(&frame(10), 20));
        assert_eq!(far20.until(&frame(10)), Vec::<Vec<u8>>::new());
        let leftover = json("ip -j link show");
        assert!(!leftover.to_string().contains("w-10"), "{leftover}");
    });
}

/// Filters of both devices: how they stand, without what the kernel counts.
fn filters() -> Vec<String> {
    let shown =
        ["t-7", "w-10", "w-20"].map(|dev| tool(&format!("tc filter show dev {dev} ingress")));
    let shown = shown.join("");
    let without_id = |line: &str| line.split(" id ").next().unwrap_or_default().to_owned();
    let tag = |line: &str| line.split(" tag ").nth(1).unwrap_or_default().to_owned();
    shown
        .lines()
        .map(|line| format!("{}{}", without_id(line), tag(line)))
        .collect()
}

/// Nothing but the kernel's events tells of it.
#[test]
fn a_filter_that_is_gone_is_noticed_and_put_back() {
    lab(|lab| {
        if !lab.can(Capability::ClsBpf) || !lab.can(Capability::Vxlan) {
            return;
        }
        lab.act([vxlan("t-7", VNI, "192.0.2.1")]);
        lab.act_twice([10, 20].map(|id| Action::CreateTrunkPair(pair(id))));
        let good = lab.observe();
        let outer: Vec<_> = good.trunks.keys().cloned().collect();
        assert_eq!(outer, [pair(10).outer, pair(20).outer]);
        for trunk in good.trunks.values() {
            assert_eq!(trunk.vxlan, ifname("t-7"));
        }
        let standing = filters();
        assert_eq!(standing.len(), 10, "{standing:#?}");
        for (damage, hurt) in [
            ("tc filter del dev w-10 ingress pref 1", &[10][..]),
            ("tc filter del dev t-7 ingress pref 20", &[20]),
            ("tc filter del dev t-7 ingress pref 5000", &[10, 20]),
            ("tc filter del dev t-7 ingress", &[10, 20]),
            ("tc qdisc del dev w-20 clsact", &[20]),
            ("tc qdisc del dev t-7 clsact", &[10, 20]),
        ] {
            let looks = lab.kernel.looks();
            tool(damage);
            assert!(lab.kernel.catch_up().unwrap(), "{damage}: not noticed");
            assert_eq!(lab.kernel.looks(), looks, "{damage}");
            let left = lab.observe().trunks;
            for id in [10, 20] {
                let there = left.contains_key(&pair(id).outer);
                assert_eq!(there, !hurt.contains(&id), "{damage}: {id}");
            }
            lab.act_twice(hurt.iter().map(|id| Action::CreateTrunkPair(pair(*id))));
            assert_eq!(lab.observe(), good, "{damage}");
            assert_eq!(filters(), standing, "{damage}");
        }
        // Another program in the place of one of ours.
        let mut other = Command::new("tc");
        other.args("filter replace dev w-10 ingress pref 1 handle 1 bpf da bytecode".split(' '));
        assert!(other.arg("1,6 0 0 2").status().unwrap().success());
        assert!(lab.kernel.catch_up().unwrap());
        assert!(!lab.observe().trunks.contains_key(&pair(10).outer));
        lab.act([Action::CreateTrunkPair(pair(10))]);
        assert_eq!(filters(), standing);

        lab.act([Action::DeleteLinks(vec![pair(10).inner, pair(10).outer])]);
        let left = lab.observe().trunks;
        assert_eq!(left.keys().collect::<Vec<_>>(), [&pair(20).outer]);
        tool("ip link del t-7");
        assert!(lab.observe().trunks.is_empty());
    });
}

#[test]
fn large_frames_of_a_workload_go_through_whole() {
    lab(|lab| {
        if !lab.can(Capability::ClsBpf) || !lab.can(Capability::Vxlan) {
            return;
        }
        let other_end = tunnel(lab);
        subnet(lab, 10);
        let deadline = std::time::Instant::now() + SOON;
        while json("bridge -j link show")
            .to_string()
            .matches("forwarding")
            .count()
            < 2
        {
            assert!(std::time::Instant::now() < deadline, "ports stay closed");
        }
        // 1400 bytes of IP, 18 of Ethernet with its tag, 36 of encapsulation: within 1500.
        let frame = broadcast(mac(1), 0x88b5, &[0x45; 1400]);
        Wire::open("far-10").send(&frame);
        let mut buffer = [0; 2048];
        let length = other_end.recv(&mut buffer).unwrap();
        assert_eq!(buffer[..length], vxlan_packet(&tagged(&frame, 10)));
    });
}
