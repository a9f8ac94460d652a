//! What ports ask of the host comes to the host and goes nowhere else, and nobody else answers. With
//! real frames: a NIC sends, another on the same bridge listens, and so does the host. Run as root.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that cannot go on says where, and what it left out"
)]

mod lab;

use host_plan::{Action, Guard, Service};
use lab::frames::*;
use lab::*;
use linux::{Asked, Question};
use model::MacAddr;
use std::time::{Duration, Instant};

const ALL_NODES: &str = "ff02::1";
const GATEWAY: &str = "10.0.0.254";

fn serve(lab: &mut Lab, nic: &str, n: u8, service: Service) {
    lab.act([Action::SetGuard {
        link: ifname(&format!("n-{nic}")),
        guard: Guard {
            service,
            ..guard(n)
        },
    }]);
}

fn served() -> Service {
    Service::DhcpAt(GATEWAY.parse().unwrap())
}

fn udp4(from: MacAddr, addresses: (&str, &str), ports: (u16, u16)) -> Vec<u8> {
    broadcast(
        from,
        0x0800,
        &ipv4_udp(addresses.0, addresses.1, ports.0, ports.1),
    )
}

fn udp6(from: MacAddr, source: &str, ports: (u16, u16)) -> Vec<u8> {
    let [a, b] = [ports.0.to_be_bytes(), ports.1.to_be_bytes()];
    let udp = [&a[..], &b, &8_u16.to_be_bytes(), &[0; 2]].concat();
    broadcast(from, 0x86dd, &ipv6(source, ALL_NODES, 17, &udp))
}

fn icmp6(from: MacAddr, source: &str, kind: u8) -> Vec<u8> {
    let message = [&[kind][..], &[0; 39]].concat();
    broadcast(from, 0x86dd, &ipv6(source, ALL_NODES, 58, &message))
}

/// What a client asks.
fn questions() -> Vec<Vec<u8>> {
    let own = mac(1);
    let local = own.link_local().to_string();
    vec![
        udp4(own, ("0.0.0.0", "255.255.255.255"), (68, 67)),
        udp4(own, ("10.0.0.1", GATEWAY), (68, 67)),
        udp4(own, ("10.0.0.1", "255.255.255.255"), (68, 67)),
        broadcast(own, 0x0806, &arp(1, own, "10.0.0.1", GATEWAY)),
        broadcast(own, 0x0806, &arp(1, own, "0.0.0.0", GATEWAY)),
        udp6(own, &local, (546, 547)),
        udp6(own, "fd00::1", (546, 547)),
        icmp6(own, "::", 133),
        icmp6(own, &local, 133),
    ]
}

/// What only servers and routers say.
fn answers() -> Vec<Vec<u8>> {
    let own = mac(1);
    let local = own.link_local().to_string();
    vec![
        udp4(own, ("10.0.0.1", "255.255.255.255"), (67, 68)),
        udp4(own, ("10.0.0.1", "10.0.0.2"), (67, 68)),
        udp6(own, &local, (547, 546)),
        icmp6(own, &local, 134),
        icmp6(own, &local, 137),
    ]
}

/// NIC 1 sends these; returns which of them NIC 2 got.
fn arrived(frames: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let listener = inside_of("b", || Wire::open("eth0"));
    let sender = inside_of("a", || Wire::open("eth0"));
    for frame in frames {
        sender.send(frame);
    }
    sender.send(&last(1));
    let got = listener.until(&last(1));
    frames.iter().filter(|f| got.contains(f)).cloned().collect()
}

/// All that is asked: `count` frames, or more.
fn asked(asked: &mut Asked, count: usize) -> Vec<Question> {
    let deadline = Instant::now() + SOON;
    let mut all = Vec::new();
    while all.len() < count {
        assert!(Instant::now() < deadline, "{} of {count} came", all.len());
        all.extend(asked.wait(Duration::from_millis(100)).unwrap());
    }
    all.extend(asked.wait(Duration::ZERO).unwrap());
    all
}

fn frames(questions: Vec<Question>) -> Vec<Vec<u8>> {
    questions
        .into_iter()
        .map(|question| question.frame)
        .collect()
}

fn counter(name: &str) -> u64 {
    let listed = json(&format!("nft -j list counter bridge vpc {name}"));
    listed["nftables"][1]["counter"]["packets"]
        .as_u64()
        .unwrap()
}

#[test]
fn questions_come_to_the_host_and_go_nowhere_else() {
    lab(|lab| {
        lab.bridge_with_nics(&["a", "b"]);
        let mut listener = Asked::open().unwrap();
        // Where nobody serves, all of it passes.
        let all = [questions(), answers()].concat();
        assert_eq!(arrived(&all), all);
        assert_eq!(frames(asked(&mut listener, 0)), Vec::<Vec<u8>>::new());

        serve(lab, "a", 1, served());
        assert_eq!(arrived(&all), Vec::<Vec<u8>>::new());
        let came = asked(&mut listener, questions().len());
        let port = came[0].port;
        assert_eq!(listener.name(port), Some(ifname("n-a")));
        assert!(came.iter().all(|question| question.port == port));
        assert_eq!(frames(came), questions());
        assert_eq!(counter("rogue-dhcp"), 3);
        assert_eq!(counter("rogue-router"), 2);

        // An answer goes out of the port, whatever the bridge thinks.
        let told = udp4(mac(0xb0), (GATEWAY, "255.255.255.255"), (67, 68));
        let inside = inside_of("a", || Wire::open("eth0"));
        let end = broadcast(mac(0xb0), 0x0800, &ipv4_udp(GATEWAY, "10.0.0.1", 9, 9));
        for frame in [&told, &end] {
            listener.answer(port, frame).unwrap();
        }
        assert!(inside.until(&end).contains(&told));
    });
}

#[test]
fn nobody_asks_for_another() {
    lab(|lab| {
        lab.bridge_with_nics(&["a", "b"]);
        serve(lab, "a", 1, served());
        let mut listener = Asked::open().unwrap();
        let (own, other) = (mac(1), mac(2));
        let spoofed = [
            udp4(other, ("0.0.0.0", "255.255.255.255"), (68, 67)),
            udp4(own, ("10.0.0.2", "255.255.255.255"), (68, 67)),
            udp6(own, "fd00::2", (546, 547)),
            udp6(own, &other.link_local().to_string(), (546, 547)),
            icmp6(own, &other.link_local().to_string(), 133),
            broadcast(own, 0x0806, &arp(1, own, "10.0.0.2", GATEWAY)),
            broadcast(other, 0x0806, &arp(1, other, "10.0.0.1", GATEWAY)),
            broadcast(
                own,
                0x8100,
                &[
                    &[0, 5, 8, 0][..],
                    &ipv4_udp("0.0.0.0", "255.255.255.255", 68, 67),
                ]
                .concat(),
            ),
        ];
        assert_eq!(arrived(&spoofed), Vec::<Vec<u8>>::new());
        let own_question = udp4(own, ("0.0.0.0", "255.255.255.255"), (68, 67));
        arrived(std::slice::from_ref(&own_question));
        assert_eq!(frames(asked(&mut listener, 1)), [own_question]);
        // Closed, nothing comes at all.
        lab.act([Action::ClearGuard {
            link: ifname("n-a"),
        }]);
        let sender = inside_of("a", || Wire::open("eth0"));
        questions().iter().for_each(|frame| sender.send(frame));
        assert_eq!(frames(asked(&mut listener, 0)), Vec::<Vec<u8>>::new());
    });
}

#[test]
fn a_flood_of_one_port_leaves_the_others_their_share() {
    lab(|lab| {
        lab.bridge_with_nics(&["a", "b"]);
        serve(lab, "a", 1, served());
        serve(lab, "b", 2, served());
        let mut listener = Asked::open().unwrap();
        let [a, b] = ["a", "b"].map(|nic| inside_of(nic, || Wire::open("eth0")));
        let discover = |n| udp4(mac(n), ("0.0.0.0", "255.255.255.255"), (68, 67));
        for _ in 0..5000 {
            a.send(&discover(1));
        }
        b.send(&discover(2));
        // What comes keeps the order in which it was sent.
        let deadline = Instant::now() + SOON;
        let mut came = Vec::new();
        while came.last() != Some(&discover(2)) {
            assert!(Instant::now() < deadline, "the other port was starved");
            came.extend(frames(listener.wait(Duration::from_millis(100)).unwrap()));
        }
        let of_flood = came.iter().filter(|frame| **frame == discover(1)).count();
        let over = counter("asked-too-often") as usize;
        assert_eq!(of_flood + over, 5000);
        assert!((20..1000).contains(&of_flood), "{of_flood} came through");
    });
}

#[test]
fn one_agent_listens_at_a_time() {
    lab(|lab| {
        lab.act([Action::InstallFirewall]);
        let first = Asked::open().unwrap();
        assert!(Asked::open().is_err());
        drop(first);
        Asked::open().unwrap();
    });
}
