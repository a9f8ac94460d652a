//! Proxy ARP and ND (RFC 9161): what becomes of a question that a TAP gives.
//!
//! Whom EVPN knows elsewhere is answered for, and the question goes nowhere; who is on this host hears
//! it on the bridge and answers itself. What nobody asked for (gratuitous ARP, unsolicited
//! advertisements) goes to all (RFC 9161 §3.6), and what is for one MAC goes there, so that a neighbour
//! that is dead is missed (RFC 4861 §7.3).

use crate::checksum;
use crate::packet::{
    Arp, ETHERNET_BYTES, ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_VLAN, Ethernet,
    IPV6_BYTES, Ip, addresses_and_type,
};
use crate::tables::{Neighbour, Unknown};
use model::{MacAddr, VlanId};
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

/// What becomes of a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// It asks for no address, or one MAC only: it goes the way of any other frame.
    NotAsked,
    /// This goes back to where the frame came from, and the frame goes nowhere.
    Answer(Reply),
    /// A question that nobody here can answer: it goes to all.
    Keep,
    /// What nobody asked for, of a neighbour itself: it goes to all.
    Announcement,
    /// It goes nowhere.
    Drop(Silence),
}

/// Why a question is neither answered nor asked on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Silence {
    /// Who has the address is on this host, and hears the question without us.
    Here,
    /// Who asks is who has the address, as after a move.
    Own,
    /// Nobody has it, and nobody unknown is to be asked ([`Unknown::Drop`]).
    Nobody,
    /// It is cut off, or its fields are at odds (RFC 826, RFC 4861 §7.1).
    Malformed,
    /// A router forwarded it (RFC 4861 §7.1: the hop limit is not 255).
    HopLimit,
    /// Its checksum is wrong.
    Checksum,
}

/// An answer: an untagged Ethernet frame.
#[derive(Clone, PartialEq, Eq)]
pub struct Reply {
    bytes: [u8; Self::MOST_BYTES],
    length: u8,
}

impl Reply {
    /// The longest is a neighbour advertisement with a tag, of 90 bytes.
    const MOST_BYTES: usize = 96;

    /// The frame.
    pub fn frame(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }

    /// The same with an 802.1Q tag.
    pub(crate) fn tagged(mut self, vlan: VlanId) -> Self {
        let length = usize::from(self.length);
        self.bytes.copy_within(12..length, 16);
        self.bytes[12..14].copy_from_slice(&ETHERTYPE_VLAN.to_be_bytes());
        self.bytes[14..16].copy_from_slice(&vlan.get().to_be_bytes());
        self.length += 4;
        self
    }

    /// `| destination 6 | source 6 | ethertype 2 |`
    fn new(destination: MacAddr, source: MacAddr, ethertype: u16) -> Self {
        let mut reply = Self {
            bytes: [0; Self::MOST_BYTES],
            length: 0,
        };
        reply.put(&destination.0);
        reply.put(&source.0);
        reply.put(&ethertype.to_be_bytes());
        reply
    }

    fn put(&mut self, bytes: &[u8]) {
        let start = usize::from(self.length);
        self.bytes[start..start + bytes.len()].copy_from_slice(bytes);
        self.length += bytes.len() as u8;
    }
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.frame() {
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

const ARP_REQUEST: u16 = 1;
const ARP_REPLY: u16 = 2;
const NEXT_HEADER_ICMPV6: u8 = 58;
const HOP_LIMIT: u8 = 255;
/// Where they are in an IPv6 header (RFC 8200 §3).
const NEXT_HEADER_AT: usize = 6;
const HOP_LIMIT_AT: usize = 7;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
/// Up to the target, which both have.
const ND_BYTES: usize = 24;
const SOURCE_LINK_LAYER: u8 = 1;
const TARGET_LINK_LAYER: u8 = 2;
/// Flags of a neighbour advertisement (RFC 4861 §4.4).
const ROUTER: u8 = 0x80;
const SOLICITED: u8 = 0x40;
const OVERRIDE: u8 = 0x20;
/// ff02::1 and its MAC (RFC 2464 §7).
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC: MacAddr = MacAddr([0x33, 0x33, 0, 0, 0, 1]);

/// Decides about an untagged Ethernet frame whose checksums are complete. `who` says who has an address
/// in the frame's domain.
#[inline]
pub fn answer(frame: &[u8], who: &dyn Fn(IpAddr) -> Option<Neighbour>, unknown: Unknown) -> Asked {
    let Some((destination, asker, ethertype)) = addresses_and_type(frame) else {
        return Asked::NotAsked;
    };
    // What is for one MAC is no business of ours, and it is nearly everything.
    if !destination.is_multicast() {
        return Asked::NotAsked;
    }
    let ask = Ask {
        asker,
        who,
        unknown,
    };
    match ethertype {
        ETHERTYPE_ARP => ask.arp(&frame[ETHERNET_BYTES..]),
        ETHERTYPE_IPV6 => ask.ipv6(frame),
        _ => Asked::NotAsked,
    }
}

/// A question, as far as it is the same in both families.
struct Ask<'a> {
    /// The source of the frame.
    asker: MacAddr,
    who: &'a dyn Fn(IpAddr) -> Option<Neighbour>,
    unknown: Unknown,
}

impl Ask<'_> {
    fn arp(&self, bytes: &[u8]) -> Asked {
        let Some(arp) = Arp::parse(bytes) else {
            return Asked::Drop(Silence::Malformed);
        };
        // Other hardware, protocols and operations are somebody else's.
        if (arp.hardware, arp.protocol) != (1, ETHERTYPE_IPV4)
            || !matches!(arp.operation, ARP_REQUEST | ARP_REPLY)
        {
            return Asked::NotAsked;
        }
        if arp.lengths != [6, 4] {
            return Asked::Drop(Silence::Malformed);
        }
        let Arp {
            operation,
            sender_mac,
            sender,
            target,
            ..
        } = arp;
        if !sender_mac.is_usable()
            || target.is_unspecified()
            || target.is_multicast()
            || target.is_broadcast()
        {
            return Asked::Drop(Silence::Malformed);
        }
        if sender == target {
            return Asked::Announcement;
        }
        if operation == ARP_REPLY {
            return Asked::NotAsked;
        }
        // Whom an answer would be for is not certain, as where links are bonded.
        if sender_mac != self.asker {
            return Asked::Keep;
        }
        let neighbour = match self.neighbour(target.into()) {
            Ok(neighbour) => neighbour,
            Err(otherwise) => return otherwise,
        };
        let mut reply = Reply::new(sender_mac, neighbour.mac, ETHERTYPE_ARP);
        reply.put(&[0, 1, 8, 0, 6, 4]);
        reply.put(&ARP_REPLY.to_be_bytes());
        reply.put(&neighbour.mac.0);
        reply.put(&target.octets());
        reply.put(&sender_mac.0);
        // To a probe that is 0.0.0.0 (RFC 5227 §2.1.1: any ARP from the address is a conflict).
        reply.put(&sender.octets());
        Asked::Answer(reply)
    }

    /// Extension headers before ND are none that anybody sends (RFC 6980).
    fn ipv6(&self, frame: &[u8]) -> Asked {
        let next_header = frame.get(ETHERNET_BYTES + NEXT_HEADER_AT);
        let solicits = match (next_header, frame.get(ETHERNET_BYTES + IPV6_BYTES)) {
            (Some(&NEXT_HEADER_ICMPV6), Some(&NEIGHBOUR_SOLICITATION)) => true,
            (Some(&NEXT_HEADER_ICMPV6), Some(&NEIGHBOUR_ADVERTISEMENT)) => false,
            _ => return Asked::NotAsked,
        };
        match Nd::parse(frame) {
            Err(why) => Asked::Drop(why),
            Ok(nd) if solicits => self.solicited(&nd),
            Ok(nd) => advertised(&nd),
        }
    }

    fn solicited(&self, nd: &Nd) -> Asked {
        let detects = nd.source.is_unspecified();
        let source_mac = nd.option(SOURCE_LINK_LAYER);
        // RFC 4861 §7.1.1
        if detects && (!is_solicited_node(nd.destination) || source_mac.is_some()) {
            return Asked::Drop(Silence::Malformed);
        }
        if !self.asker.is_usable() || nd.source.is_multicast() {
            return Asked::Drop(Silence::Malformed);
        }
        if source_mac.is_some_and(|mac| mac != self.asker) {
            return Asked::Keep;
        }
        let neighbour = match self.neighbour(nd.target.into()) {
            Ok(neighbour) => neighbour,
            Err(otherwise) => return otherwise,
        };
        // RFC 4861 §7.2.4: who has no address yet hears it with all nodes, and as unsolicited.
        Asked::Answer(match detects {
            true => advertisement(nd.target, neighbour, (ALL_NODES_MAC, ALL_NODES), 0),
            false => advertisement(nd.target, neighbour, (self.asker, nd.source), SOLICITED),
        })
    }

    /// Who is to be answered for, or what becomes of the question otherwise.
    fn neighbour(&self, target: IpAddr) -> Result<Neighbour, Asked> {
        match (self.who)(target) {
            Some(neighbour) if neighbour.mac == self.asker => Err(Asked::Drop(Silence::Own)),
            Some(neighbour) if neighbour.here => Err(Asked::Drop(Silence::Here)),
            Some(neighbour) => Ok(neighbour),
            None if self.unknown == Unknown::Flood || is_self_made(target) => Err(Asked::Keep),
            None => Err(Asked::Drop(Silence::Nobody)),
        }
    }
}

/// An advertisement that is for all was not asked for (RFC 4861 §7.1.2, §7.2.6).
fn advertised(nd: &Nd) -> Asked {
    match nd.flags & SOLICITED != 0 && nd.destination.is_multicast() {
        true => Asked::Drop(Silence::Malformed),
        false => Asked::Announcement,
    }
}

/// Link-local IPv6 addresses are made by hosts themselves and announced by nobody, so that one that is
/// not known may well be there, whatever is said of the others.
fn is_self_made(target: IpAddr) -> bool {
    matches!(target, IpAddr::V6(target) if target.is_unicast_link_local())
}

/// ff02::1:ff00:0/104 (RFC 4291 §2.7.1).
fn is_solicited_node(address: Ipv6Addr) -> bool {
    u128::from(address) >> 24 == 0xff02_0000_0000_0000_0000_0001_ff00_0000 >> 24
}

/// A solicitation or an advertisement (RFC 4861 §4.3, §4.4): `| type 1 | code 1 | checksum 2 | flags 4 |
/// target 16 | option.. |`, an option: `| type 1 | length in 8 bytes 1 | the rest |`.
struct Nd<'a> {
    source: Ipv6Addr,
    destination: Ipv6Addr,
    flags: u8,
    target: Ipv6Addr,
    options: &'a [u8],
}

impl<'a> Nd<'a> {
    /// What RFC 4861 §7.1 has of both, in an untagged frame.
    fn parse(frame: &'a [u8]) -> Result<Self, Silence> {
        let ethernet = Ethernet::parse(frame).ok_or(Silence::Malformed)?;
        let ip = Ip::parse(frame, &ethernet).ok_or(Silence::Malformed)?;
        // What comes after is padding.
        let message = &frame[ip.l4..ip.end];
        let (IpAddr::V6(source), IpAddr::V6(destination)) = ip.addresses(frame) else {
            return Err(Silence::Malformed);
        };
        if message.len() < ND_BYTES || message[1] != 0 {
            return Err(Silence::Malformed);
        }
        if frame[ip.start + HOP_LIMIT_AT] != HOP_LIMIT {
            return Err(Silence::HopLimit);
        }
        let nd = Self {
            source,
            destination,
            flags: message[4],
            target: array::<16>(message, 8).into(),
            options: &message[ND_BYTES..],
        };
        let length = message.len() as u32;
        let pseudo = checksum::pseudo_v6(nd.source, nd.destination, NEXT_HEADER_ICMPV6, length);
        if checksum::fold(pseudo + checksum::sum(message)) != 0xffff {
            return Err(Silence::Checksum);
        }
        if nd.target.is_multicast() || nd.target.is_unspecified() || nd.target.is_loopback() {
            return Err(Silence::Malformed);
        }
        if nd.options().any(|option| option.is_none()) {
            return Err(Silence::Malformed);
        }
        Ok(nd)
    }

    /// Type and contents of each; none at the end is one that is cut off or has no length.
    fn options(&self) -> impl Iterator<Item = Option<(u8, &'a [u8])>> + use<'a> {
        let mut rest = self.options;
        std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let length = rest.get(1).map_or(0, |length| usize::from(*length) * 8);
            let option = match length {
                0 => None,
                _ => rest.split_at_checked(length),
            };
            let Some((option, after)) = option else {
                rest = &[];
                return Some(None);
            };
            rest = after;
            Some(Some((option[0], &option[2..])))
        })
    }

    /// The MAC of a link-layer option.
    fn option(&self, kind: u8) -> Option<MacAddr> {
        let mut options = self.options().flatten();
        let (_, contents) = options.find(|(found, _)| *found == kind)?;
        contents.first_chunk().map(|mac| MacAddr(*mac))
    }
}

/// The neighbour says who has `target`.
fn advertisement(
    target: Ipv6Addr,
    neighbour: Neighbour,
    to: (MacAddr, Ipv6Addr),
    solicited: u8,
) -> Reply {
    let router = if neighbour.router { ROUTER } else { 0 };
    let mut message = [0; ND_BYTES + 8];
    message[0] = NEIGHBOUR_ADVERTISEMENT;
    message[4] = router | solicited | OVERRIDE;
    message[8..24].copy_from_slice(&target.octets());
    message[24..26].copy_from_slice(&[TARGET_LINK_LAYER, 1]);
    message[26..].copy_from_slice(&neighbour.mac.0);
    let length = message.len() as u16;
    let pseudo = checksum::pseudo_v6(target, to.1, NEXT_HEADER_ICMPV6, length.into());
    let sum = !checksum::fold(pseudo + checksum::sum(&message));
    message[2..4].copy_from_slice(&sum.to_be_bytes());

    let mut reply = Reply::new(to.0, neighbour.mac, ETHERTYPE_IPV6);
    reply.put(&[0x60, 0, 0, 0]);
    reply.put(&length.to_be_bytes());
    reply.put(&[NEXT_HEADER_ICMPV6, HOP_LIMIT]);
    reply.put(&target.octets());
    reply.put(&to.1.octets());
    reply.put(&message);
    reply
}

/// `N` bytes that are there, as each caller has seen to.
fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[at..at + N]);
    array
}

#[cfg(test)]
mod tests;
