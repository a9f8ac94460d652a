//! What an Ethernet frame says of itself, as far as filters and summaries ask.

use crate::packet::{
    self, Arp, ETHERNET_BYTES, ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_VLAN, TAG_BYTES,
    addresses_and_type, tag,
};
pub(crate) use crate::packet::{TCP, UDP};
use crate::vxlan::VXLAN_PORT;
use model::MacAddr;
use std::net::IpAddr;

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
        let (destination, source, mut ethertype) = addresses_and_type(bytes)?;
        let mut payload = ETHERNET_BYTES;
        let mut vlans = [None; 2];
        for vlan in &mut vlans {
            if !TAGS.contains(&ethertype) {
                break;
            }
            let (number, behind) = tag(bytes, payload)?;
            (*vlan, ethertype) = (Some(number), behind);
            payload += TAG_BYTES;
        }
        let network = match ethertype {
            ETHERTYPE_ARP => Arp::parse(&bytes[payload..])
                .filter(|arp| (arp.hardware, arp.protocol) == (1, ETHERTYPE_IPV4))
                .filter(|arp| arp.lengths == [6, 4])
                .map(Network::Arp),
            _ => {
                packet::Ip::of(bytes, ethertype, payload).map(|ip| Network::Ip(Ip::of(bytes, &ip)))
            }
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
    fn of(frame: &'a [u8], ip: &packet::Ip) -> Self {
        let (source, destination) = ip.addresses(frame);
        Self {
            source,
            destination,
            protocol: ip.protocol,
            payload: ip.payload(frame),
            fragment: ip.fragment,
        }
    }

    /// Source and destination of TCP, UDP and SCTP.
    pub(crate) fn ports(&self) -> Option<(u16, u16)> {
        if ![TCP, UDP, SCTP].contains(&self.protocol) {
            return None;
        }
        let [a, b, c, d] = *self.payload.first_chunk()?;
        Some((u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])))
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
