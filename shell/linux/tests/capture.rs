//! Frames as they pass an interface. Run as root.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that cannot go on says where, and what it left out"
)]

mod lab;

use lab::frames::{Wire, arp, broadcast, ethernet, ipv4_udp, ipv6};
use lab::*;
use linux::{Capture, Which};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;

/// Whether it was sent, and the bytes.
fn next(capture: &mut Capture) -> (bool, Vec<u8>) {
    let deadline = Instant::now() + SOON;
    loop {
        if let Some(passed) = capture.receive().unwrap() {
            assert_eq!(passed.length, passed.bytes.len());
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
            assert!(now.abs_diff(passed.at) < Duration::from_secs(60), "{now:?}");
            return (passed.sent, passed.bytes.to_vec());
        }
        assert!(Instant::now() < deadline, "nothing passed");
        Capture::wait([&*capture].into_iter(), SOON).unwrap();
    }
}

fn pair() {
    tool("ip link add u0 type veth peer name u1");
    for end in ["u0", "u1"] {
        // The system itself has nothing to say there.
        tool(&format!("sysctl -qw net.ipv6.conf.{end}.disable_ipv6=1"));
        tool(&format!("ip link set {end} up"));
    }
}

#[test]
fn what_passes_is_told_with_its_direction_and_its_tag() {
    lab(|_| {
        pair();
        let mut capture = Capture::open(&ifname("u0"), Which::All).unwrap();
        let [here, there] = ["u0", "u1"].map(Wire::open);
        let request = broadcast(mac(1), 0x0806, &arp(1, mac(1), "10.4.1.1", "10.4.1.2"));
        here.send(&request);
        assert_eq!(next(&mut capture), (true, request.clone()));
        there.send(&request);
        assert_eq!(next(&mut capture), (false, request.clone()));
        let tagged = [&request[..12], &[0x81, 0, 0x60, 7], &request[12..]].concat();
        for (wire, sent) in [(&here, true), (&there, false)] {
            wire.send(&tagged);
            assert_eq!(next(&mut capture), (sent, tagged.clone()));
        }
        assert_eq!(capture.lost(), 0);
    });
}

#[test]
fn of_the_underlay_only_what_is_sent_to_the_port_is_taken() {
    lab(|_| {
        pair();
        let mut capture = Capture::open(&ifname("u0"), Which::UdpTo(4789)).unwrap();
        let there = Wire::open("u1");
        let v4 = |port| ipv4_udp("192.0.2.1", "192.0.2.2", 4789, port);
        let v6 = |next, port: u16| {
            let udp = [&[0x12, 0xb5][..], &port.to_be_bytes(), &[0, 8, 0, 0]].concat();
            ipv6("2001:db8::1", "2001:db8::2", next, &udp)
        };
        let mut fragment = v4(4789);
        fragment[7] = 1;
        let mut tcp = v4(4789);
        tcp[9] = 6;
        let frames = [
            (ETHERTYPE_IPV4, v4(53), false),
            (ETHERTYPE_IPV4, fragment, false),
            (ETHERTYPE_IPV4, tcp, false),
            (0x0806, arp(1, mac(1), "10.4.1.1", "10.4.1.2"), false),
            (ETHERTYPE_IPV6, v6(17, 53), false),
            (ETHERTYPE_IPV6, v6(6, 4789), false),
            (ETHERTYPE_IPV4, v4(4789), true),
            (ETHERTYPE_IPV6, v6(17, 4789), true),
        ];
        let frames =
            frames.map(|(kind, payload, ours)| (ethernet(mac(2), mac(1), kind, &payload), ours));
        for (frame, _) in &frames {
            there.send(frame);
        }
        for (frame, _) in frames.iter().filter(|(_, ours)| *ours) {
            assert_eq!(next(&mut capture), (false, frame.clone()));
        }
    });
}

#[test]
fn an_interface_that_is_not_there_is_named() {
    lab(|_| {
        let error = Capture::open(&ifname("n-gone"), Which::All).unwrap_err();
        assert!(error.to_string().contains("n-gone"), "{error}");
    });
}
