//! Ethernet, IP, UDP and ICMPv6: read as far as a server needs, and written.

use model::{DomainName, MacAddr};
use std::net::{Ipv4Addr, Ipv6Addr};

pub(crate) const ARP: u16 = 0x0806;
pub(crate) const IPV4: u16 = 0x0800;
pub(crate) const IPV6: u16 = 0x86dd;
const UDP: u8 = 17;
pub(crate) const ICMPV6: u8 = 58;
const IPV6_BYTES: usize = 40;

/// Takes bytes off the front of a slice; none once it is too short.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }

    pub(crate) fn u8(&mut self) -> Option<u8> {
        self.array().map(|[byte]| byte)
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub(crate) fn ipv4(&mut self) -> Option<Ipv4Addr> {
        self.array::<4>().map(Ipv4Addr::from)
    }
}

/// `| destination 6 | source 6 | Ethertype 2 | payload |`
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ethernet<'a> {
    pub(crate) source: MacAddr,
    pub(crate) ethertype: u16,
    pub(crate) payload: &'a [u8],
}

impl<'a> Ethernet<'a> {
    pub(crate) fn parse(frame: &'a [u8]) -> Option<Self> {
        let mut reader = Reader(frame);
        reader.bytes(6)?;
        Some(Self {
            source: MacAddr(reader.array()?),
            ethertype: reader.u16()?,
            payload: reader.0,
        })
    }
}

/// The header before a payload.
pub(crate) fn ethernet(destination: MacAddr, source: MacAddr, ethertype: u16) -> Vec<u8> {
    [&destination.0[..], &source.0, &ethertype.to_be_bytes()].concat()
}

/// A UDP datagram.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Udp<'a> {
    pub(crate) destination_port: u16,
    pub(crate) payload: &'a [u8],
}

impl<'a> Udp<'a> {
    /// RFC 768: `| source port 2 | destination port 2 | length 2 | checksum 2 | payload |`.
    ///
    /// The checksum is not looked at. Between a workload's kernel and us no wire was crossed, and
    /// that kernel leaves it to hardware that is not there.
    fn parse(datagram: &'a [u8]) -> Option<Self> {
        let mut reader = Reader(datagram);
        reader.u16()?;
        let destination_port = reader.u16()?;
        let length = usize::from(reader.u16()?).checked_sub(8)?;
        reader.u16()?;
        Some(Self {
            destination_port,
            payload: reader.bytes(length)?,
        })
    }

    /// The datagram of an IPv4 packet (RFC 791 §3.1) that is no fragment.
    pub(crate) fn of_ipv4(packet: &'a [u8]) -> Option<Self> {
        let header_bytes = usize::from(packet.first()? & 0x0f) * 4;
        let header = packet.get(..header_bytes.max(20))?;
        let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
        // More fragments, or not the first.
        let fragment = u16::from_be_bytes([header[6], header[7]]) & 0x3fff;
        let sound = header[0] >> 4 == 4
            && header_bytes >= 20
            && header[9] == UDP
            && fragment == 0
            && checksum(&[header]) == 0;
        // Short frames are padded.
        let datagram = packet.get(header_bytes..total)?;
        sound.then(|| Self::parse(datagram)).flatten()
    }
}

impl<'a> Udp<'a> {
    /// The datagram of an IPv6 packet without extension headers (RFC 8200 §3), and between whom.
    pub(crate) fn of_ipv6(packet: &'a [u8]) -> Option<((Ipv6Addr, Ipv6Addr), Self)> {
        let (header, payload) = split_ipv6(packet)?;
        if header[6] != UDP {
            return None;
        }
        let address = |at: usize| {
            let octets: [u8; 16] = header[at..at + 16].try_into().expect("the header is whole");
            Ipv6Addr::from(octets)
        };
        Some(((address(8), address(24)), Self::parse(payload)?))
    }
}

/// An ICMPv6 message. Its checksum is not looked at, as little as that of UDP.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Icmpv6<'a> {
    pub(crate) hop_limit: u8,
    pub(crate) kind: u8,
    pub(crate) code: u8,
    /// All of it.
    pub(crate) payload: &'a [u8],
}

impl<'a> Icmpv6<'a> {
    pub(crate) fn of_ipv6(packet: &'a [u8]) -> Option<Self> {
        let (header, payload) = split_ipv6(packet)?;
        let &[kind, code, ..] = payload else {
            return None;
        };
        (header[6] == ICMPV6).then_some(Self {
            hop_limit: header[7],
            kind,
            code,
            payload,
        })
    }
}

/// `| version, class, flow 4 | length 2 | next header 1 | hop limit 1 | source 16 | destination 16 |`
/// and the payload without what a frame is filled up with.
fn split_ipv6(packet: &[u8]) -> Option<(&[u8; IPV6_BYTES], &[u8])> {
    let (header, rest) = packet.split_first_chunk::<IPV6_BYTES>()?;
    let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
    (header[0] >> 4 == 6).then_some((header, rest.get(..length)?))
}

/// What is behind an IPv6 header.
pub(crate) fn next_header(packet: &[u8]) -> Option<u8> {
    split_ipv6(packet).map(|(header, _)| header[6])
}

/// An IPv6 packet.
pub(crate) fn ipv6(
    (source, destination): (Ipv6Addr, Ipv6Addr),
    next: u8,
    hop_limit: u8,
    payload: &[u8],
) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend(length(payload.len()).to_be_bytes());
    packet.extend([next, hop_limit]);
    packet.extend(source.octets());
    packet.extend(destination.octets());
    packet.extend(payload);
    packet
}

/// An IPv6 packet with a UDP datagram.
pub(crate) fn udp_over_ipv6(
    (source, source_port): (Ipv6Addr, u16),
    (destination, destination_port): (Ipv6Addr, u16),
    payload: &[u8],
) -> Vec<u8> {
    let mut datagram = Vec::with_capacity(8 + payload.len());
    datagram.extend(source_port.to_be_bytes());
    datagram.extend(destination_port.to_be_bytes());
    datagram.extend(length(payload.len() + 8).to_be_bytes());
    datagram.extend([0, 0]);
    datagram.extend(payload);
    let sum = checksum_ipv6(source, destination, UDP, &datagram);
    // Zero says that there is none.
    let sum = if sum == 0 { 0xffff } else { sum };
    datagram[6..8].copy_from_slice(&sum.to_be_bytes());
    ipv6((source, destination), UDP, 255, &datagram)
}

pub(crate) fn icmpv6_checksum(source: Ipv6Addr, destination: Ipv6Addr, message: &[u8]) -> u16 {
    checksum_ipv6(source, destination, ICMPV6, message)
}

/// RFC 8200 §8.1: over a pseudo-header of both addresses, the length and the next header.
fn checksum_ipv6(source: Ipv6Addr, destination: Ipv6Addr, next: u8, payload: &[u8]) -> u16 {
    checksum(&[
        &source.octets(),
        &destination.octets(),
        &[0, 0],
        &length(payload.len()).to_be_bytes(),
        &[0, 0, 0, next],
        payload,
    ])
}

/// RFC 1035 §3.1, without compression: each label after its length, and an empty one.
pub(crate) fn name(name: &DomainName) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(name.as_str().len() + 2);
    for label in name.as_str().split('.') {
        bytes.push(label.len() as u8);
        bytes.extend(label.bytes());
    }
    bytes.push(0);
    bytes
}

/// An IPv4 packet with a UDP datagram.
pub(crate) fn udp_over_ipv4(
    (source, source_port): (Ipv4Addr, u16),
    (destination, destination_port): (Ipv4Addr, u16),
    payload: &[u8],
) -> Vec<u8> {
    let udp_bytes = length(payload.len() + 8);
    let mut packet = Vec::with_capacity(28 + payload.len());
    // Version and header length, precedence of network control as servers use, total length.
    packet.extend([0x45, 0x10]);
    packet.extend(length(payload.len() + 28).to_be_bytes());
    // Identification, flags; TTL, protocol, checksum.
    packet.extend([0, 0, 0, 0, 64, UDP, 0, 0]);
    packet.extend(source.octets());
    packet.extend(destination.octets());
    let sum = checksum(&[&packet]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());

    let mut datagram = Vec::with_capacity(8 + payload.len());
    datagram.extend(source_port.to_be_bytes());
    datagram.extend(destination_port.to_be_bytes());
    datagram.extend(udp_bytes.to_be_bytes());
    datagram.extend([0, 0]);
    datagram.extend(payload);
    let sum = checksum(&[
        &packet[12..20],
        &[0, UDP],
        &udp_bytes.to_be_bytes(),
        &datagram,
    ]);
    // Zero says that there is none.
    let sum = if sum == 0 { 0xffff } else { sum };
    datagram[6..8].copy_from_slice(&sum.to_be_bytes());
    packet.extend(datagram);
    packet
}

fn length(bytes: usize) -> u16 {
    u16::try_from(bytes).expect("answers are far below 64 KiB")
}

/// RFC 1071 over parts of which only the last may be of odd length. Zero over what holds its own.
pub(crate) fn checksum(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let mut sum: u32 = words
        .map(|pair| {
            let low = pair.get(1).copied().unwrap_or(0);
            u32::from(u16::from_be_bytes([pair[0], low]))
        })
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// What is written is read again, with padding behind it as well, and adds up.
        #[test]
        fn packets_survive(
            from: [u8; 4], to: [u8; 4], ports: [u16; 2],
            payload in proptest::collection::vec(any::<u8>(), 0..600), padding in 0_usize..20,
        ) {
            let (from, to) = (Ipv4Addr::from(from), Ipv4Addr::from(to));
            let mut packet = udp_over_ipv4((from, ports[0]), (to, ports[1]), &payload);
            let bytes = (packet.len() as u16 - 20).to_be_bytes();
            prop_assert_eq!(checksum(&[&packet[12..20], &[0, UDP], &bytes, &packet[20..]]), 0);
            packet.resize(packet.len() + padding, 0);
            let read = Udp::of_ipv4(&packet).unwrap();
            prop_assert_eq!(read.destination_port, ports[1]);
            prop_assert_eq!(read.payload, &payload[..]);
            // No fragment, no other version, no bad header.
            for (at, bit) in [(6, 0x20), (7, 1), (0, 0x20), (9, 1), (12, 1)] {
                let mut torn = packet.clone();
                torn[at] ^= bit;
                prop_assert!(Udp::of_ipv4(&torn).is_none(), "byte {}", at);
            }
        }

        #[test]
        fn packets_of_ipv6_survive(
            from: [u8; 16], to: [u8; 16], ports: [u16; 2],
            payload in proptest::collection::vec(any::<u8>(), 0..600), padding in 0_usize..20,
        ) {
            let (from, to) = (Ipv6Addr::from(from), Ipv6Addr::from(to));
            let mut packet = udp_over_ipv6((from, ports[0]), (to, ports[1]), &payload);
            prop_assert_eq!(checksum_ipv6(from, to, UDP, &packet[40..]), 0);
            packet.resize(packet.len() + padding, 0);
            let (addresses, read) = Udp::of_ipv6(&packet).unwrap();
            prop_assert_eq!(addresses, (from, to));
            prop_assert_eq!((read.destination_port, read.payload), (ports[1], &payload[..]));
            prop_assert_eq!(next_header(&packet), Some(UDP));
            packet[6] = 0;
            prop_assert!(Udp::of_ipv6(&packet).is_none());
        }

        #[test]
        fn garbage_never_panics(frame in proptest::collection::vec(any::<u8>(), 0..80)) {
            let udp = Udp::of_ipv4(&frame).map_or(0, |udp| udp.payload.len());
            let udp = Udp::of_ipv6(&frame).map_or(udp, |(_, udp)| udp.payload.len());
            let udp = Icmpv6::of_ipv6(&frame).map_or(udp, |icmp| icmp.payload.len());
            let ethernet = Ethernet::parse(&frame).map_or(0, |frame| frame.payload.len());
            prop_assert!(udp.max(ethernet) <= frame.len());
        }
    }
}
