//! Headers of the frames that tenants send, as far as a tunnel has to know them. Read defensively:
//! what is cut off, or says of itself what cannot be, is a frame without a known inside.

use model::{MacAddr, VlanId};

/// `| destination 6 | source 6 | ethertype 2 |`
pub(crate) const ETHERNET_BYTES: usize = 14;
/// `| 0x8100 2 | priority 3 bits, DEI 1 bit, VLAN 12 bits |` (IEEE 802.1Q)
pub(crate) const TAG_BYTES: usize = 4;
pub(crate) const ETHERTYPE_IPV4: u16 = 0x0800;
pub(crate) const ETHERTYPE_ARP: u16 = 0x0806;
pub(crate) const ETHERTYPE_IPV6: u16 = 0x86dd;
pub(crate) const ETHERTYPE_VLAN: u16 = 0x8100;
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
pub(crate) const EXTENSIONS_MAX: usize = 8;

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

impl Ethernet {
    /// None if the frame is too short, or its tag names a VLAN that there cannot be.
    pub(crate) fn parse(frame: &[u8]) -> Option<Self> {
        let header = frame.first_chunk::<ETHERNET_BYTES>()?;
        let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, t0, t1] = *header;
        let mut ethertype = u16::from_be_bytes([t0, t1]);
        let mut payload = ETHERNET_BYTES;
        let mut tag = None;
        if ethertype == ETHERTYPE_VLAN {
            let behind = frame.get(ETHERNET_BYTES..ETHERNET_BYTES + TAG_BYTES)?;
            let vlan = u16::from_be_bytes([behind[0], behind[1]]) & 0x0fff;
            tag = match vlan {
                0 => None,
                vlan => Some(VlanId::new(vlan).ok()?),
            };
            ethertype = u16::from_be_bytes([behind[2], behind[3]]);
            payload += TAG_BYTES;
        }
        Some(Self {
            destination: MacAddr([d0, d1, d2, d3, d4, d5]),
            source: MacAddr([s0, s1, s2, s3, s4, s5]),
            tag,
            ethertype,
            payload,
        })
    }

    /// The length of its frame without the tag.
    pub(crate) fn untagged_bytes(&self, frame: &[u8]) -> u64 {
        (frame.len() - self.payload + ETHERNET_BYTES) as u64
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
}

impl Ip {
    /// None if it is no IP packet, or not whole.
    pub(crate) fn parse(frame: &[u8], ethernet: &Ethernet) -> Option<Self> {
        match ethernet.ethertype {
            ETHERTYPE_IPV4 => Self::v4(frame, ethernet.payload),
            ETHERTYPE_IPV6 => Self::v6(frame, ethernet.payload),
            _ => None,
        }
    }

    fn v4(frame: &[u8], start: usize) -> Option<Self> {
        let header = frame.get(start..)?.first_chunk::<IPV4_BYTES>()?;
        let bytes = usize::from(header[0] & 0x0f) * 4;
        let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
        let fine = header[0] >> 4 == 4 && bytes >= IPV4_BYTES && total >= bytes;
        let end = start + total;
        (fine && end <= frame.len()).then(|| Self {
            v6: false,
            start,
            l4: start + bytes,
            end,
            protocol: header[9],
            // More fragments, or an offset (RFC 791 §3.1).
            fragment: u16::from_be_bytes([header[6], header[7]]) & 0x3fff != 0,
        })
    }

    /// Extension headers are walked (RFC 8200 §4); one that is not known ends the walk.
    fn v6(frame: &[u8], start: usize) -> Option<Self> {
        const HOP_BY_HOP: u8 = 0;
        const ROUTING: u8 = 43;
        const FRAGMENT: u8 = 44;
        const DESTINATION: u8 = 60;
        let header = frame.get(start..)?.first_chunk::<IPV6_BYTES>()?;
        let end = start + IPV6_BYTES + usize::from(u16::from_be_bytes([header[4], header[5]]));
        if header[0] >> 4 != 6 || end > frame.len() {
            return None;
        }
        let (mut protocol, mut l4, mut fragment) = (header[6], start + IPV6_BYTES, false);
        for _ in 0..EXTENSIONS_MAX {
            let bytes = match protocol {
                HOP_BY_HOP | ROUTING | DESTINATION => {
                    8 + 8 * usize::from(*frame.get(l4 + 1).filter(|_| l4 + 8 <= end)?)
                }
                FRAGMENT if l4 + 8 <= end => {
                    fragment = true;
                    8
                }
                _ => break,
            };
            if l4 + bytes > end {
                return None;
            }
            protocol = frame[l4];
            l4 += bytes;
            if fragment {
                break;
            }
        }
        Some(Self {
            v6: true,
            start,
            l4,
            end,
            protocol,
            fragment,
        })
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
