//! Tunnel packets as they are on the underlay, with all of their outer headers.

use crate::wire::{IPV4, IPV6, checksum};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const UDP: u8 = 17;
/// RFC 7348 §5.
const VXLAN_PORT: u16 = 4789;
const VLAN: [u8; 2] = [0x81, 0x00];

/// What a UDP header says of its checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checksum {
    /// There is none.
    Absent,
    /// It is that of the datagram.
    Right,
    /// It is another.
    Wrong,
}

/// A VXLAN packet in an Ethernet frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tunnelled {
    /// The sending VTEP.
    pub source: IpAddr,
    /// The receiving VTEP.
    pub destination: IpAddr,
    /// TTL or hop limit.
    pub hop_limit: u8,
    /// Type of service or traffic class.
    pub traffic_class: u8,
    /// IPv4's DF; none with IPv6, which has nothing else.
    pub dont_fragment: Option<bool>,
    /// Of UDP.
    pub source_port: u16,
    /// Of UDP.
    pub checksum: Checksum,
    /// `| flags 1 | reserved 3 | VNI 3 | reserved 1 |` (RFC 7348 §5)
    pub header: [u8; 8],
    /// The frame inside.
    pub inner: Vec<u8>,
}

impl Tunnelled {
    /// None if it is something else, or cut off.
    pub fn of(frame: &[u8]) -> Option<Self> {
        let packet = frame.get(14..)?;
        let be16 = |at: usize| Some(u16::from_be_bytes([*packet.get(at)?, *packet.get(at + 1)?]));
        let ethertype = u16::from_be_bytes([*frame.get(12)?, *frame.get(13)?]);
        let (start, end, protocol) = match ethertype {
            IPV4 => {
                let start = usize::from(packet.first()? & 0x0f) * 4;
                (start, usize::from(be16(2)?), *packet.get(9)?)
            }
            IPV6 => (40, 40 + usize::from(be16(4)?), *packet.get(6)?),
            _ => return None,
        };
        if protocol != UDP || be16(start + 2)? != VXLAN_PORT {
            return None;
        }
        let datagram = packet.get(start..end)?;
        let (source, destination, hop_limit, traffic_class, dont_fragment) = match ethertype {
            IPV4 => (
                IpAddr::from(Ipv4Addr::from(array::<4>(packet, 12)?)),
                IpAddr::from(Ipv4Addr::from(array::<4>(packet, 16)?)),
                packet[8],
                packet[1],
                Some(packet[6] & 0x40 != 0),
            ),
            _ => (
                IpAddr::from(Ipv6Addr::from(array::<16>(packet, 8)?)),
                IpAddr::from(Ipv6Addr::from(array::<16>(packet, 24)?)),
                packet[7],
                packet[0] << 4 | packet[1] >> 4,
                None,
            ),
        };
        Some(Self {
            source,
            destination,
            hop_limit,
            traffic_class,
            dont_fragment,
            source_port: be16(start)?,
            checksum: of_udp(source, destination, datagram),
            header: array(datagram, 8)?,
            inner: datagram.get(16..)?.to_vec(),
        })
    }

    /// The VNI of its header.
    pub fn vni(&self) -> u64 {
        let [.., a, b, c, _] = self.header;
        u64::from(u32::from_be_bytes([0, a, b, c]))
    }

    /// The 802.1Q VLAN of the frame inside.
    pub fn tag(&self) -> Option<u64> {
        let tag: [u8; 2] = array(&self.inner, 14)?;
        let tagged = self.inner.get(12..14) == Some(&VLAN[..]);
        tagged.then(|| u64::from(u16::from_be_bytes(tag) & 0x0fff))
    }

    /// The frame inside without its tag.
    pub fn untagged(&self) -> Vec<u8> {
        match self.tag() {
            Some(_) => [&self.inner[..12], &self.inner[16..]].concat(),
            None => self.inner.clone(),
        }
    }
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

fn of_udp(source: IpAddr, destination: IpAddr, datagram: &[u8]) -> Checksum {
    if datagram.get(6..8) == Some(&[0, 0]) {
        return Checksum::Absent;
    }
    let octets = |address| match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let length = (datagram.len() as u32).to_be_bytes();
    let pseudo = [
        &octets(source)[..],
        &octets(destination),
        &length,
        &[0, 0, 0, UDP],
    ]
    .concat();
    match checksum(&[&pseudo, datagram]) {
        0 => Checksum::Right,
        _ => Checksum::Wrong,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{ethernet, udp4, udp6};

    /// Of what a datagram to the discard port becomes.
    fn vxlan(mut frame: Vec<u8>, udp_at: usize) -> Vec<u8> {
        frame[udp_at..udp_at + 4].copy_from_slice(&[0xc0, 1, 0x12, 0xb5]);
        frame
    }

    #[test]
    fn all_headers_are_read() {
        let inner = ethernet([2; 6], [4; 6], 0x8100, &[0, 7, 8, 0, 1, 2, 3]);
        let data = [&[8, 0, 0, 0, 0, 1, 2, 0][..], &inner].concat();
        let (a, b) = ([192, 0, 2, 1].into(), [192, 0, 2, 2].into());
        let frame = vxlan(ethernet([6; 6], [8; 6], IPV4, &udp4(a, b, &data)), 34);
        let seen = Tunnelled::of(&frame).unwrap();
        assert_eq!((seen.source, seen.destination), (a.into(), b.into()));
        assert_eq!((seen.hop_limit, seen.dont_fragment), (64, Some(false)));
        assert_eq!(
            (seen.source_port, seen.checksum),
            (0xc001, Checksum::Absent)
        );
        assert_eq!((seen.vni(), seen.tag()), (0x102, Some(7)));
        assert_eq!(
            seen.untagged(),
            ethernet([2; 6], [4; 6], 0x0800, &[1, 2, 3])
        );
        let (a, b) = ("fd00::1".parse().unwrap(), "fd00::2".parse().unwrap());
        let mut frame = vxlan(ethernet([6; 6], [8; 6], IPV6, &udp6(a, b, &data)), 54);
        // A checksum that is right, and then not.
        let sum = {
            let datagram = &frame[54..];
            let length = (datagram.len() as u32).to_be_bytes();
            checksum(&[&a.octets(), &b.octets(), &length, &[0, 0, 0, UDP], datagram])
        };
        frame[60..62].copy_from_slice(&sum.to_be_bytes());
        let seen = Tunnelled::of(&frame).unwrap();
        assert_eq!((seen.checksum, seen.dont_fragment), (Checksum::Right, None));
        frame[61] ^= 1;
        assert_eq!(Tunnelled::of(&frame).unwrap().checksum, Checksum::Wrong);
        assert_eq!(Tunnelled::of(&frame[..40]), None);
    }
}
