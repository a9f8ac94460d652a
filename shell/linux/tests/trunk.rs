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
        tool(&format!("ip link set {end}-{id} addrgenmode none up"));
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
