//! What is sent when a NIC has come to this host: gratuitous ARP, unsolicited neighbour
//! advertisements, and RARP for a virtual machine, whose own kernel does not know that it moved.
//!
//! Routes are what moves a NIC between hosts. These frames are for those who learn from frames:
//! ARP and ND caches, switches behind an interface that became a NIC, bridges in workloads. The
//! tunnel's port drops such frames when they come from a bridge (`neigh_suppress`), so they go
//! straight out of each interface.

use model::{Attachment, Gateway, MacAddr, Port, VlanId};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const BROADCAST: MacAddr = MacAddr([0xff; 6]);
/// ff02::1 and its MAC (RFC 2464 §7).
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC: MacAddr = MacAddr([0x33, 0x33, 0, 0, 0, 1]);
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_RARP: u16 = 0x8035;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_VLAN: u16 = 0x8100;
const ARP_REQUEST: u16 = 1;
/// RFC 903.
const RARP_REQUEST: u16 = 3;
const NEXT_HEADER_ICMPV6: u8 = 58;
/// Flags of a neighbour advertisement (RFC 4861 §4.4).
const ROUTER: u8 = 0x80;
const OVERRIDE: u8 = 0x20;

/// The frames that tell a subnet of a port's NIC.
pub fn frames(port: &Port) -> Vec<Vec<u8>> {
    let mac = port.mac;
    let rarp = (port.attachment == Attachment::Tap).then(|| rarp(mac));
    let addresses = port.addresses.iter().map(|address| match address {
        IpAddr::V4(ip) => gratuitous_arp(mac, *ip),
        IpAddr::V6(ip) => unsolicited_na(mac, *ip, OVERRIDE),
    });
    addresses.chain(rarp).collect()
}

/// The frames that tell ports of a subnet's gateway. Without the flag of a router they would have
/// hosts forget that it is one (RFC 4861 §7.2.5).
pub(crate) fn gateway_frames(gateway: &Gateway) -> Vec<Vec<u8>> {
    let mac = gateway.mac;
    let addresses = gateway.addresses.iter().map(|address| match address {
        IpAddr::V4(ip) => gratuitous_arp(mac, *ip),
        IpAddr::V6(ip) => unsolicited_na(mac, *ip, ROUTER | OVERRIDE),
    });
    addresses.collect()
}

/// The frame with an 802.1Q tag: `| destination 6 | source 6 | 0x8100 2 | VLAN 2 | the rest |`.
pub fn tagged(frame: &[u8], vlan: VlanId) -> Vec<u8> {
    let (addresses, rest) = frame.split_at(12.min(frame.len()));
    [
        addresses,
        &ETHERTYPE_VLAN.to_be_bytes(),
        &vlan.get().to_be_bytes(),
        rest,
    ]
    .concat()
}

/// `| destination 6 | source 6 | ethertype 2 |`
fn ethernet(destination: MacAddr, source: MacAddr, ethertype: u16) -> Vec<u8> {
    [&destination.0[..], &source.0, &ethertype.to_be_bytes()].concat()
}

/// RFC 826: `| hardware 2 | protocol 2 | lengths 2 | operation 2 | sender MAC 6 | sender 4 | target
/// MAC 6 | target 4 |`
fn arp(frame: &mut Vec<u8>, operation: u16, sender: MacAddr, target: MacAddr, ip: Ipv4Addr) {
    frame.extend([0, 1, 8, 0, 6, 4]);
    frame.extend(operation.to_be_bytes());
    for mac in [sender, target] {
        frame.extend(mac.0);
        frame.extend(ip.octets());
    }
}

/// An announcement as in RFC 5227 §2.3.
fn gratuitous_arp(mac: MacAddr, ip: Ipv4Addr) -> Vec<u8> {
    let mut frame = ethernet(BROADCAST, mac, ETHERTYPE_ARP);
    arp(&mut frame, ARP_REQUEST, mac, MacAddr::ZERO, ip);
    frame
}

/// As QEMU sends it after a migration: it names the MAC and asks for nothing.
fn rarp(mac: MacAddr) -> Vec<u8> {
    let mut frame = ethernet(BROADCAST, mac, ETHERTYPE_RARP);
    arp(&mut frame, RARP_REQUEST, mac, mac, Ipv4Addr::UNSPECIFIED);
    frame
}

/// RFC 4861 §4.4 and §7.2.6, to all nodes: `| version, class, flow 4 |
/// length 2 | next header 1 | hop limit 1 | source 16 | destination 16 |`, then `| type 1 | code 1 |
/// checksum 2 | flags 4 | target 16 | option type 1 | length 1 | MAC 6 |`.
fn unsolicited_na(mac: MacAddr, ip: Ipv6Addr, flags: u8) -> Vec<u8> {
    let mut message = vec![136, 0, 0, 0, flags, 0, 0, 0];
    message.extend(ip.octets());
    message.extend([2, 1]);
    message.extend(mac.0);
    let sum = icmpv6_checksum(ip, ALL_NODES, &message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());

    let length = u16::try_from(message.len()).expect("it is 32 bytes");
    let mut frame = ethernet(ALL_NODES_MAC, mac, ETHERTYPE_IPV6);
    frame.extend([0x60, 0, 0, 0]);
    frame.extend(length.to_be_bytes());
    frame.extend([NEXT_HEADER_ICMPV6, 255]);
    frame.extend(ip.octets());
    frame.extend(ALL_NODES.octets());
    frame.extend(message);
    frame
}

/// RFC 8200 §8.1: over a pseudo-header of both addresses, the length and the next header.
fn icmpv6_checksum(source: Ipv6Addr, destination: Ipv6Addr, message: &[u8]) -> u16 {
    let length = u32::try_from(message.len()).expect("messages here are short");
    let words = [
        &source.octets()[..],
        &destination.octets(),
        &length.to_be_bytes(),
        &[0, 0, 0, NEXT_HEADER_ICMPV6],
        message,
    ]
    .concat();
    let mut sum: u32 = words
        .chunks(2)
        .map(|pair| {
            u32::from(u16::from_be_bytes([
                pair[0],
                pair.get(1).copied().unwrap_or(0),
            ]))
        })
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("it was folded")
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{NicId, PortRole, SubnetId};
    use proptest::prelude::*;

    fn port(mac: MacAddr, addresses: Vec<IpAddr>, attachment: Attachment) -> Port {
        Port {
            nic: NicId::from_random(1),
            name: String::new(),
            subnet: SubnetId::from_random(2),
            mac,
            addresses,
            behind: Vec::new(),
            attachment,
            role: PortRole::Arrived,
            sequence: 1,
        }
    }

    #[test]
    fn frames_are_as_the_rfcs_draw_them() {
        let mac = MacAddr([2, 0, 0, 0, 0, 7]);
        let addresses = ["10.4.1.9", "fd00::9"].map(|a| a.parse().unwrap()).into();
        let told = frames(&port(mac, addresses, Attachment::Tap));
        let hex = |frame: &Vec<u8>| -> String {
            frame.iter().map(|byte| format!("{byte:02x}")).collect()
        };
        let expected = [
            "ffffffffffff020000000007080600010800060400010200000000070a040109000000000000\
             0a040109",
            "3333000000010200000000 0786dd6000000000203afffd000000000000000000000000000009\
             ff0200000000000000000000000000018800____20000000fd000000000000000000000000000009\
             0201020000000007",
            "ffffffffffff0200000000078035000108000604000302000000000700000000020000000007\
             00000000",
        ];
        for (frame, expected) in told.iter().zip(expected) {
            let (frame, expected) = (hex(frame), expected.replace(' ', ""));
            assert_eq!(frame.len(), expected.len(), "{frame}");
            let same = |(a, b): (char, char)| b == '_' || a == b;
            assert!(frame.chars().zip(expected.chars()).all(same), "{frame}");
        }
        let gateway = Gateway {
            mac,
            addresses: vec!["10.4.1.9".parse().unwrap(), "fd00::9".parse().unwrap()],
        };
        let of_gateway = gateway_frames(&gateway);
        assert_eq!(of_gateway[0], told[0]);
        assert_eq!(of_gateway[1][58], 0xa0, "a router's");
        let vlan = VlanId::new(10).unwrap();
        assert!(hex(&tagged(&told[0], vlan)).starts_with("ffffffffffff0200000000078100000a0806"));
    }

    proptest! {
        /// Whoever adds up all of it, checksum included, gets ones: that is how it is checked.
        #[test]
        fn checksums_add_up(mac: [u8; 6], ip: [u8; 16]) {
            let ip = Ipv6Addr::from(ip);
            let frame = unsolicited_na(MacAddr(mac), ip, OVERRIDE);
            prop_assert_eq!(frame.len(), 14 + 40 + 32);
            prop_assert_eq!(icmpv6_checksum(ip, ALL_NODES, &frame[54..]), 0);
        }

        #[test]
        fn each_address_is_told_once(mac: [u8; 6], v4: [u8; 4], v6: [u8; 16], tap: bool) {
            let attachment = if tap { "tap" } else { "netns:a1" }.parse().unwrap();
            let addresses = vec![IpAddr::from(v4), IpAddr::from(v6)];
            let told = frames(&port(MacAddr(mac), addresses, attachment));
            prop_assert_eq!(told.len(), 2 + usize::from(tap));
            for frame in &told {
                prop_assert_eq!(&frame[6..12], &mac);
                prop_assert!(frame[0] & 1 == 1, "to everybody");
            }
            prop_assert_eq!(&told[0][28..32], &v4);
            prop_assert_eq!(&told[0][38..42], &v4);
            prop_assert_eq!(&told[1][22..38], &v6);
            prop_assert_eq!(&told[1][62..78], &v6);
        }
    }
}
