//! Headers of the frames that tenants send, as far as a tunnel has to know them. Read defensively:
//! what is cut off, or says of itself what cannot be, is a frame without a known inside.

use model::{MacAddr, VlanId};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// `| destination 6 | source 6 | ethertype 2 |`
pub(crate) const ETHERNET_BYTES: usize = 14;
/// `| 0x8100 2 | priority 3 bits, DEI 1 bit, VLAN 12 bits |` (IEEE 802.1Q)
pub(crate) const TAG_BYTES: usize = 4;
pub(crate) const ETHERTYPE_IPV4: u16 = 0x0800;
pub(crate) const ETHERTYPE_ARP: u16 = 0x0806;
pub(crate) const ETHERTYPE_IPV6: u16 = 0x86dd;
pub(crate) const ETHERTYPE_VLAN: u16 = 0x8100;
pub(crate) const ARP_BYTES: usize = 28;
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const UDP_BYTES: usize = 8;
/// Without options.
pub(crate) const IPV4_BYTES: usize = 20;
/// Without extension headers.
pub(crate) const IPV6_BYTES: usize = 40;
/// Without options (RFC 9293 §3.1).
pub(crate) const TCP_BYTES: usize = 20;
/// IPv6 extension headers that are walked at most: nobody sends more, and a frame may be made of them.
const EXTENSIONS_MAX: usize = 8;

/// An Ethernet header and its 802.1Q tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ethernet {
    pub(crate) destination: MacAddr,
    pub(crate) source: MacAddr,
    /// None also where the tag is for the priority alone (VLAN 0).
    pub(crate) tag: Option<VlanId>,
    /// Behind the tag.
    pub(crate) ethertype: u16,
    /// Where the payload begins.
    pub(crate) payload: usize,
}

/// Destination, source and the type behind them; none if that is cut off.
pub(crate) fn addresses_and_type(frame: &[u8]) -> Option<(MacAddr, MacAddr, u16)> {
    let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, t0, t1] = *frame.first_chunk()?;
    let (destination, source) = ([d0, d1, d2, d3, d4, d5], [s0, s1, s2, s3, s4, s5]);
    let ethertype = u16::from_be_bytes([t0, t1]);
    Some((MacAddr(destination), MacAddr(source), ethertype))
}

/// The VLAN of a tag whose type ends at `at`, and the type behind it.
pub(crate) fn tag(frame: &[u8], at: usize) -> Option<(u16, u16)> {
    let [v0, v1, t0, t1] = *frame.get(at..)?.first_chunk::<TAG_BYTES>()?;
    let vlan = u16::from_be_bytes([v0, v1]) & 0x0fff;
    Some((vlan, u16::from_be_bytes([t0, t1])))
}

impl Ethernet {
    /// None if the frame is too short, or its tag names a VLAN that there cannot be.
    pub(crate) fn parse(frame: &[u8]) -> Option<Self> {
        let (destination, source, ethertype) = addresses_and_type(frame)?;
        let untagged = Self {
            destination,
            source,
            tag: None,
            ethertype,
            payload: ETHERNET_BYTES,
        };
        if ethertype != ETHERTYPE_VLAN {
            return Some(untagged);
        }
        let (vlan, ethertype) = tag(frame, ETHERNET_BYTES)?;
        let tag = match vlan {
            0 => None,
            vlan => Some(VlanId::new(vlan).ok()?),
        };
        Some(Self {
            tag,
            ethertype,
            payload: ETHERNET_BYTES + TAG_BYTES,
            ..untagged
        })
    }

    /// The length of its frame without the tag.
    pub(crate) fn untagged_bytes(&self, frame: &[u8]) -> u64 {
        (frame.len() - self.payload + ETHERNET_BYTES) as u64
    }
}

/// An ARP message (RFC 826): `| hardware 2 | protocol 2 | lengths 1, 1 | operation 2 | sender MAC 6 |
/// sender 4 | target MAC 6 | target 4 |`, its parts as they are for Ethernet and IPv4.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Arp {
    pub(crate) hardware: u16,
    pub(crate) protocol: u16,
    /// Of a MAC and an address.
    pub(crate) lengths: [u8; 2],
    pub(crate) operation: u16,
    pub(crate) sender_mac: MacAddr,
    pub(crate) sender: Ipv4Addr,
    pub(crate) target: Ipv4Addr,
}

impl Arp {
    /// None if it is cut off.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let message = bytes.first_chunk::<ARP_BYTES>()?;
        let field = |at: usize| u16::from_be_bytes([message[at], message[at + 1]]);
        let address = |at: usize| {
            let [a, b, c, d] = [0, 1, 2, 3].map(|byte| message[at + byte]);
            Ipv4Addr::new(a, b, c, d)
        };
        Some(Self {
            hardware: field(0),
            protocol: field(2),
            lengths: [message[4], message[5]],
            operation: field(6),
            sender_mac: MacAddr([0, 1, 2, 3, 4, 5].map(|byte| message[8 + byte])),
            sender: address(14),
            target: address(24),
        })
    }
}

/// An IP packet: where its parts are in the frame, all within it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ip {
    pub(crate) v6: bool,
    /// Where the IP header begins.
    pub(crate) start: usize,
    /// Where what follows all IP headers begins.
    pub(crate) l4: usize,
    /// Where the packet ends: an Ethernet frame may be longer (padding).
    pub(crate) end: usize,
    /// What follows.
    pub(crate) protocol: u8,
    /// A part of a packet: what follows need not be a header.
    pub(crate) fragment: bool,
    /// Not its first part.
    pub(crate) later: bool,
    /// All headers and all that they tell of are there.
    whole: bool,
}

impl Ip {
    /// None if it is no IP packet, or not whole.
    pub(crate) fn parse(frame: &[u8], ethernet: &Ethernet) -> Option<Self> {
        Self::of(frame, ethernet.ethertype, ethernet.payload).filter(|ip| ip.whole)
    }

    /// The same, as far as it is there: the end may be cut off, as in a capture. None if the first header
    /// is not there.
    pub(crate) fn of(frame: &[u8], ethertype: u16, start: usize) -> Option<Self> {
        match ethertype {
            ETHERTYPE_IPV4 => Self::v4(frame, start),
            ETHERTYPE_IPV6 => Self::v6(frame, start),
            _ => None,
        }
    }

    /// RFC 791 §3.1: `| version, words 1 | 1 | length 2 | 2 | flags, offset 2 | 1 | protocol 1 | 2 | source 4 |
    /// destination 4 | options |`
    fn v4(frame: &[u8], start: usize) -> Option<Self> {
        let header = frame.get(start..)?.first_chunk::<IPV4_BYTES>()?;
        let bytes = usize::from(header[0] & 0x0f) * 4;
        let told = start + usize::from(u16::from_be_bytes([header[2], header[3]]));
        let (l4, end) = (start + bytes, told.min(frame.len()));
        let fine = header[0] >> 4 == 4 && bytes >= IPV4_BYTES && l4 <= end;
        let fragment = u16::from_be_bytes([header[6], header[7]]);
        fine.then(|| Self {
            v6: false,
            start,
            l4,
            end,
            protocol: header[9],
            // More fragments, or an offset.
            fragment: fragment & 0x3fff != 0,
            later: fragment & 0x1fff != 0,
            whole: told == end,
        })
    }

    /// RFC 8200 §3: `| version.. 4 | length 2 | next header 1 | hop limit 1 | source 16 | destination 16 |`.
    /// Extension headers are walked (§4); one that is not known ends the walk.
    fn v6(frame: &[u8], start: usize) -> Option<Self> {
        let header = frame.get(start..)?.first_chunk::<IPV6_BYTES>()?;
        let l4 = start + IPV6_BYTES;
        let told = l4 + usize::from(u16::from_be_bytes([header[4], header[5]]));
        let end = told.min(frame.len());
        let mut ip = Self {
            v6: true,
            start,
            l4,
            end,
            protocol: header[6],
            fragment: false,
            later: false,
            whole: told == end,
        };
        for _ in 0..EXTENSIONS_MAX {
            if !ip.extension(&frame[..end]) {
                break;
            }
        }
        (header[0] >> 4 == 6).then_some(ip)
    }

    /// Steps over an extension header: `| next header 1 | length in 8 bytes past the first 1 | the rest |`, and
    /// where it is of a fragment `| next header 1 | 1 | offset, flags 2 | id 4 |`. False if there is none, or
    /// what follows need not be one.
    fn extension(&mut self, packet: &[u8]) -> bool {
        const HOP_BY_HOP: u8 = 0;
        const ROUTING: u8 = 43;
        const FRAGMENT: u8 = 44;
        const DESTINATION: u8 = 60;
        let header = packet[self.l4..].first_chunk::<8>();
        let bytes = match (self.protocol, header) {
            (HOP_BY_HOP | ROUTING | DESTINATION, Some(header)) => 8 + 8 * usize::from(header[1]),
            (HOP_BY_HOP | ROUTING | DESTINATION, None) => {
                self.whole = false;
                return false;
            }
            (FRAGMENT, Some(header)) => {
                self.fragment = true;
                self.later = u16::from_be_bytes([header[2], header[3]]) & 0xfff8 != 0;
                8
            }
            _ => return false,
        };
        self.protocol = packet[self.l4];
        self.whole &= self.l4 + bytes <= packet.len();
        self.l4 = packet.len().min(self.l4 + bytes);
        self.whole && !self.fragment
    }

    /// What follows all IP headers; nothing where it is of a later fragment.
    pub(crate) fn payload<'a>(&self, frame: &'a [u8]) -> &'a [u8] {
        match self.later {
            true => &[],
            false => &frame[self.l4..self.end],
        }
    }

    /// Source and destination.
    pub(crate) fn addresses(&self, frame: &[u8]) -> (IpAddr, IpAddr) {
        let bytes = self.address_bytes(frame);
        let (source, destination) = bytes.split_at(bytes.len() / 2);
        (address(source), address(destination))
    }

    /// Type of service or traffic class: DSCP and ECN.
    pub(crate) fn traffic_class(&self, frame: &[u8]) -> u8 {
        match self.v6 {
            true => frame[self.start] << 4 | frame[self.start + 1] >> 4,
            false => frame[self.start + 1],
        }
    }

    /// Both addresses as they are in the header, source first.
    pub(crate) fn address_bytes<'a>(&self, frame: &'a [u8]) -> &'a [u8] {
        match self.v6 {
            true => &frame[self.start + 8..self.start + 40],
            false => &frame[self.start + 12..self.start + 20],
        }
    }

    /// Source and destination port of TCP and UDP, as they are in the header.
    pub(crate) fn ports(&self, frame: &[u8]) -> Option<[u8; 4]> {
        let has = matches!(self.protocol, TCP | UDP) && !self.fragment;
        let ports = frame.get(self.l4..self.end)?.first_chunk::<4>()?;
        has.then_some(*ports)
    }
}

/// Of 4 or 16 bytes.
fn address(bytes: &[u8]) -> IpAddr {
    match <[u8; 4]>::try_from(bytes) {
        Ok(bytes) => Ipv4Addr::from(bytes).into(),
        Err(_) => {
            let bytes = <[u8; 16]>::try_from(bytes);
            bytes.map_or(Ipv6Addr::UNSPECIFIED, Ipv6Addr::from).into()
        }
    }
}

/// The same for all frames of a flow, both directions apart: by it they take one way through the
/// underlay, and keep their order (RFC 7348 §4.3, source port).
pub(crate) fn flow_hash(frame: &[u8], ethernet: &Ethernet, ip: Option<&Ip>) -> u32 {
    let mut hash = Mixer::default();
    match ip {
        Some(ip) => {
            hash.bytes(ip.address_bytes(frame));
            // Parts of a packet have no ports; the first of them has no other way than the rest.
            hash.word(u32::from(ip.protocol));
            if let Some(ports) = ip.ports(frame) {
                hash.word(u32::from_ne_bytes(ports));
            }
        }
        None => hash.bytes(frame.get(..12).unwrap_or_default()),
    }
    hash.word(u32::from(ethernet.ethertype));
    hash.end()
}

/// Mixes words; not against somebody who chooses them: all that can be had by choosing is a queue.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mixer(u64);

impl Default for Mixer {
    fn default() -> Self {
        Self(0x9e37_79b9_7f4a_7c15)
    }
}

impl Mixer {
    pub(crate) fn seeded(seed: u64) -> Self {
        Self(seed | 1)
    }

    pub(crate) fn word(&mut self, word: u32) {
        let mixed = (self.0 ^ u64::from(word)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        self.0 = mixed ^ mixed >> 32;
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(4) {
            let mut word = [0; 4];
            word[..chunk.len()].copy_from_slice(chunk);
            self.word(u32::from_ne_bytes(word));
        }
    }

    pub(crate) fn end(self) -> u32 {
        self.wide() as u32
    }

    pub(crate) fn wide(self) -> u64 {
        self.0 ^ self.0 >> 29
    }
}
