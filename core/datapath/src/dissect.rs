//! What an Ethernet frame says of itself, as far as filters and summaries ask.

use crate::packet::{
    ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_VLAN, EXTENSIONS_MAX,
};
pub(crate) use crate::packet::{TCP, UDP};
use model::MacAddr;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// RFC 7348 §5.
const VXLAN_PORT: u16 = 4789;
pub(crate) const SCTP: u8 = 132;
pub(crate) const ICMP: u8 = 1;
pub(crate) const ICMPV6: u8 = 58;

/// 802.1Q and 802.1ad.
const TAGS: [u16; 2] = [ETHERTYPE_VLAN, 0x88a8];

/// An Ethernet frame: `| destination 6 | source 6 | tags 4.. | ethertype 2 | the rest |`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Frame<'a> {
    pub(crate) destination: MacAddr,
    pub(crate) source: MacAddr,
    /// VLANs of the outer and the inner tag.
    pub(crate) vlans: [Option<u16>; 2],
    pub(crate) ethertype: u16,
    pub(crate) network: Network<'a>,
}

/// What is in a frame.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Network<'a> {
    /// For Ethernet and IPv4.
    Arp(Arp),
    Ip(Ip<'a>),
    /// Another protocol, or one that is cut off.
    Other,
}

/// RFC 826.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Arp {
    pub(crate) operation: u16,
    pub(crate) sender_mac: MacAddr,
    pub(crate) sender: Ipv4Addr,
    pub(crate) target: Ipv4Addr,
}

/// A packet of either version.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ip<'a> {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    /// Past extension headers.
    pub(crate) protocol: u8,
    /// Of the protocol; empty where it is of a later fragment.
    pub(crate) payload: &'a [u8],
    pub(crate) fragment: bool,
}

impl<'a> Frame<'a> {
    /// None if it is too short for Ethernet.
    pub(crate) fn of(bytes: &'a [u8]) -> Option<Self> {
        let mut rest = Reader(bytes);
        let destination = MacAddr(rest.array()?);
        let source = MacAddr(rest.array()?);
        let mut ethertype = rest.u16()?;
        let mut vlans = [None; 2];
        for vlan in &mut vlans {
            if !TAGS.contains(&ethertype) {
                break;
            }
            *vlan = Some(rest.u16()? & 0xfff);
            ethertype = rest.u16()?;
        }
        let network = match ethertype {
            ETHERTYPE_ARP => arp(rest).map(Network::Arp),
            ETHERTYPE_IPV4 => ipv4(rest).map(Network::Ip),
            ETHERTYPE_IPV6 => ipv6(rest).map(Network::Ip),
            _ => None,
        };
        Some(Self {
            destination,
            source,
            vlans,
            ethertype,
            network: network.unwrap_or(Network::Other),
        })
    }
}

impl<'a> Ip<'a> {
    /// Source and destination of TCP, UDP and SCTP.
    pub(crate) fn ports(&self) -> Option<(u16, u16)> {
        if ![TCP, UDP, SCTP].contains(&self.protocol) {
            return None;
        }
        let mut payload = Reader(self.payload);
        Some((payload.u16()?, payload.u16()?))
    }

    /// The VNI of a VXLAN packet, and the frame in it (RFC 7348 §5): `| flags 1 | 0 3 | VNI 3 | 0 1 |`
    /// past UDP's 8.
    pub(crate) fn vxlan(&self) -> Option<(u32, &'a [u8])> {
        let (_, port) = self.ports()?;
        let (header, inner) = self.payload.split_at_checked(16)?;
        let [flags, .., a, b, c, _] = header[8..] else {
            return None;
        };
        let ours = self.protocol == UDP && port == VXLAN_PORT && flags & 0x08 != 0;
        ours.then(|| (u32::from_be_bytes([0, a, b, c]), inner))
    }
}

/// The frame in an Ethernet frame with a VXLAN packet, and its VNI.
pub fn inner(frame: &[u8]) -> Option<(u32, &[u8])> {
    match Frame::of(frame)?.network {
        Network::Ip(ip) => ip.vxlan(),
        Network::Arp(_) | Network::Other => None,
    }
}

/// `| hardware 2 | protocol 2 | lengths 1, 1 | operation 2 | sender MAC 6 | sender 4 | target MAC 6 |
/// target 4 |`
fn arp(mut rest: Reader) -> Option<Arp> {
    if rest.array()? != [0, 1, 8, 0, 6, 4] {
        return None;
    }
    let (operation, sender_mac, sender) = (rest.u16()?, rest.array()?, rest.array::<4>()?);
    rest.take(6)?;
    Some(Arp {
        operation,
        sender_mac: MacAddr(sender_mac),
        sender: sender.into(),
        target: rest.array::<4>()?.into(),
    })
}

/// RFC 791 §3.1: `| version, words 1 | 1 | length 2 | 2 | flags, offset 2 | 1 | protocol 1 | 2 | source 4 |
/// destination 4 | options |`
fn ipv4<'a>(rest: Reader<'a>) -> Option<Ip<'a>> {
    let packet = rest.0;
    let header = packet.first_chunk::<20>()?;
    let words = usize::from(header[0] & 0xf);
    let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
    if header[0] >> 4 != 4 || words < 5 {
        return None;
    }
    let fragment = u16::from_be_bytes([header[6], header[7]]);
    let payload = packet.get(words * 4..length.min(packet.len()))?;
    let [.., a, b, c, d, e, f, g, h] = *header;
    Some(Ip {
        source: Ipv4Addr::new(a, b, c, d).into(),
        destination: Ipv4Addr::new(e, f, g, h).into(),
        protocol: header[9],
        payload: if fragment & 0x1fff == 0 { payload } else { &[] },
        fragment: fragment & 0x3fff != 0,
    })
}

/// RFC 8200 §3: `| version.. 4 | length 2 | next header 1 | hop limit 1 | source 16 | destination 16 |`
fn ipv6<'a>(mut rest: Reader<'a>) -> Option<Ip<'a>> {
    let version = rest.array::<4>()?[0] >> 4;
    let length = usize::from(rest.u16()?);
    let [mut protocol, _hop_limit] = rest.array()?;
    let source = Ipv6Addr::from(rest.array::<16>()?);
    let destination = Ipv6Addr::from(rest.array::<16>()?);
    if version != 6 {
        return None;
    }
    let mut payload = Reader(&rest.0[..length.min(rest.0.len())]);
    let (mut fragment, mut later) = (false, false);
    for _ in 0..EXTENSIONS_MAX {
        match protocol {
            // Hop-by-hop, routing, destination: `| next 1 | length in 8 bytes past the first 1 | .. |`
            0 | 43 | 60 => {
                let Some([next, more]) = payload.array() else {
                    break;
                };
                if payload.take(usize::from(more) * 8 + 6).is_none() {
                    payload = Reader(&[]);
                }
                protocol = next;
            }
            // `| next 1 | 1 | offset, flags 2 | id 4 |`
            44 => {
                let Some([next, _, high, low, ..]) = payload.array::<8>() else {
                    break;
                };
                fragment = true;
                later |= u16::from_be_bytes([high, low]) & 0xfff8 != 0;
                protocol = next;
                if later {
                    break;
                }
            }
            _ => break,
        }
    }
    Some(Ip {
        source: source.into(),
        destination: destination.into(),
        protocol,
        payload: if later { &[] } else { payload.0 },
        fragment,
    })
}

/// Bytes that are read from the front.
#[derive(Clone, Copy)]
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (array, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*array)
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }
}
