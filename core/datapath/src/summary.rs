//! A frame in one line, as a person reads it.

use crate::dissect::{Frame, ICMP, ICMPV6, Ip, Network, SCTP, TCP, UDP};
use std::fmt::{self, Write};

/// Says what an Ethernet frame is: `10.4.1.10 > 10.4.1.11 ICMP echo request, id 7, seq 1, 98 bytes`. Of a
/// VXLAN packet also what is in it.
pub fn summary(frame: &[u8]) -> String {
    let mut line = String::new();
    write_frame(&mut line, frame).expect("a string takes everything");
    line
}

fn write_frame(line: &mut String, bytes: &[u8]) -> fmt::Result {
    let Some(frame) = Frame::of(bytes) else {
        return write!(line, "{} bytes that are no Ethernet frame", bytes.len());
    };
    for vlan in frame.vlans.iter().flatten() {
        write!(line, "VLAN {vlan} ")?;
    }
    match frame.network {
        Network::Ip(ip) => match ip.vxlan() {
            Some((vni, inner)) => {
                write!(line, "{} > {} VXLAN {vni}: ", ip.source, ip.destination)?;
                // What is in it may be a VXLAN packet of a tenant, which is one too many.
                write_plain(line, inner)
            }
            None => write_ip(line, &ip),
        },
        Network::Arp(_) | Network::Other => write_other(line, &frame),
    }?;
    write!(line, ", {} bytes", bytes.len())
}

fn write_plain(line: &mut String, bytes: &[u8]) -> fmt::Result {
    let Some(frame) = Frame::of(bytes) else {
        return line.write_str("no Ethernet frame");
    };
    for vlan in frame.vlans.iter().flatten() {
        write!(line, "VLAN {vlan} ")?;
    }
    match frame.network {
        Network::Ip(ip) => write_ip(line, &ip),
        Network::Arp(_) | Network::Other => write_other(line, &frame),
    }
}

fn write_other(line: &mut String, frame: &Frame) -> fmt::Result {
    let Network::Arp(arp) = frame.network else {
        let (source, destination) = (frame.source, frame.destination);
        return write!(
            line,
            "{source} > {destination} ethertype {:#06x}",
            frame.ethertype
        );
    };
    match arp.operation {
        1 if arp.sender == arp.target => {
            write!(line, "ARP {} is at {}, unasked", arp.sender, arp.sender_mac)
        }
        1 if arp.sender.is_unspecified() => {
            write!(
                line,
                "ARP who has {}? probe of {}",
                arp.target, arp.sender_mac
            )
        }
        1 => write!(line, "ARP who has {}? tell {}", arp.target, arp.sender),
        2 => write!(line, "ARP {} is at {}", arp.sender, arp.sender_mac),
        operation => write!(line, "ARP operation {operation} of {}", arp.sender_mac),
    }
}

fn write_ip(line: &mut String, ip: &Ip) -> fmt::Result {
    let (source, destination) = (ip.source, ip.destination);
    if let Some((from, to)) = ip.ports() {
        let name = match ip.protocol {
            TCP => "TCP",
            UDP => "UDP",
            SCTP => "SCTP",
            _ => unreachable!("no other has ports"),
        };
        write!(
            line,
            "{source} port {from} > {destination} port {to} {name}"
        )?;
    } else {
        write!(line, "{source} > {destination} ")?;
        match ip.protocol {
            ICMP => write_icmp(line, ip.payload, ICMP_TYPES)?,
            ICMPV6 => write_icmp(line, ip.payload, ICMPV6_TYPES)?,
            TCP => line.write_str("TCP")?,
            UDP => line.write_str("UDP")?,
            protocol => write!(line, "protocol {protocol}")?,
        }
    }
    if ip.protocol == TCP {
        write_flags(line, ip.payload)?;
    }
    if ip.fragment {
        line.write_str(", a fragment")?;
    }
    Ok(())
}

/// RFC 9293 §3.1: `| ports 4 | sequence 4 | acknowledgement 4 | offset 1 | flags 1 | ..`.
fn write_flags(line: &mut String, segment: &[u8]) -> fmt::Result {
    let names = ["FIN", "SYN", "RST", "PSH", "ACK", "URG"];
    let flags = segment.get(13).copied().unwrap_or(0);
    let mut set = (0..).zip(names).filter(|(bit, _)| flags >> bit & 1 == 1);
    set.try_for_each(|(_, name)| write!(line, " {name}"))
}

type Types = &'static [(u8, &'static str)];

const ICMP_TYPES: Types = &[
    (0, "echo reply"),
    (3, "unreachable"),
    (5, "redirect"),
    (8, "echo request"),
    (11, "time exceeded"),
];
const ICMPV6_TYPES: Types = &[
    (1, "unreachable"),
    (2, "packet too big"),
    (3, "time exceeded"),
    (128, "echo request"),
    (129, "echo reply"),
    (133, "router solicitation"),
    (134, "router advertisement"),
    (135, "neighbour solicitation"),
    (136, "neighbour advertisement"),
    (143, "listener report"),
];

/// `| type 1 | code 1 | checksum 2 | id 2 | sequence 2 |`, or ND's target past 8.
fn write_icmp(line: &mut String, message: &[u8], types: Types) -> fmt::Result {
    line.write_str("ICMP")?;
    let Some(kind) = message.first() else {
        return Ok(());
    };
    match types.iter().find(|(known, _)| known == kind) {
        Some((_, name)) => write!(line, " {name}")?,
        None => write!(line, " type {kind}")?,
    }
    match (kind, message) {
        (0 | 8 | 128 | 129, [_, _, _, _, a, b, c, d, ..]) => {
            let (id, sequence) = (u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d]));
            write!(line, ", id {id}, seq {sequence}")
        }
        (135 | 136, [_, _, _, _, _, _, _, _, rest @ ..]) => match rest.first_chunk::<16>() {
            Some(target) => write!(line, " {}", std::net::Ipv6Addr::from(*target)),
            None => Ok(()),
        },
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn udp(port: u16, payload: &[u8]) -> Vec<u8> {
        let [high, low] = port.to_be_bytes();
        let length = (28 + payload.len()) as u8;
        let header = [
            2,
            0,
            0,
            0,
            0,
            2,
            2,
            0,
            0,
            0,
            0,
            1,
            8,
            0,
            0x45,
            0,
            0,
            length,
            0,
            0,
            0x40,
            0,
            64,
            17,
            0,
            0,
            192,
            0,
            2,
            1,
            192,
            0,
            2,
            2,
            0x80,
            0,
            high,
            low,
            0,
            length - 20,
            0,
            0,
        ];
        [&header[..], payload].concat()
    }

    #[test]
    fn a_packet_of_a_tunnel_says_what_is_in_it() {
        let echo = [
            0x0b, 2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 1, 8, 0, 0x45, 0, 0, 28, 0, 0, 0, 0, 64, 1, 0, 0,
            10, 4, 1, 10, 10, 4, 1, 11, 8, 0, 0, 0, 0, 7, 0, 1,
        ];
        let outer = udp(4789, &[&[8, 0, 0, 0, 0, 0, 101, 0][..], &echo].concat());
        assert_eq!(
            summary(&outer),
            "192.0.2.1 > 192.0.2.2 VXLAN 101: 10.4.1.10 > 10.4.1.11 ICMP echo request, id 7, seq 1, 92 bytes"
        );
        assert_eq!(crate::dissect::inner(&outer), Some((101, &echo[..])));
        assert_eq!(crate::dissect::inner(&echo), None);
    }

    #[test]
    fn others_are_told_by_what_they_have() {
        let line = "192.0.2.1 port 32768 > 192.0.2.2 port 53 UDP, 42 bytes";
        assert_eq!(summary(&udp(53, &[])), line);
        assert_eq!(summary(&[0; 5]), "5 bytes that are no Ethernet frame");
        let mut syn = udp(80, &[0, 0, 0, 0, 0x50, 0x12, 0, 0, 0, 0, 0, 0]);
        syn[23] = 6;
        let line = "192.0.2.1 port 32768 > 192.0.2.2 port 80 TCP SYN ACK, 54 bytes";
        assert_eq!(summary(&syn), line);
        let unknown = [
            2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x81, 0, 0, 7, 0x88, 0xcc,
        ];
        assert_eq!(
            summary(&unknown),
            "VLAN 7 02:00:00:00:00:01 > 02:00:00:00:00:02 ethertype 0x88cc, 18 bytes"
        );
    }
}
