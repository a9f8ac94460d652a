//! Packets of a tunnel as frames for a TAP: segments of one flow that follow each other become one
//! super-frame again. Payload is not copied.
//!
//! Merged is what splitting gives back byte for byte: headers are the same but for lengths, checksums,
//! sequence and identification; all segments have the same size but the last; every checksum is right.
//! The rules are those of receive offload in the kernel.

use crate::checksum;
use crate::offload::{Offload, Partial, SegmentKind, Segmentation};
use crate::outbox::{Frame, Inbox, Span};
use crate::packet::{
    ETHERTYPE_VLAN, Ethernet, IPV4_BYTES, IPV6_BYTES, Ip, TCP, TCP_BYTES, UDP, UDP_BYTES,
};
use model::{Mtu, VlanId};

/// An IP packet is no longer, super-frame or not.
const IP_MAX: usize = 65_535;
/// Datagrams of one super-frame at most: what the kernel takes of who sends one.
const DATAGRAMS_MAX: usize = 64;
/// Segments of one super-frame at most, so that their parts go into one write.
const SEGMENTS_MAX: usize = 512;
const ACK: u8 = 0x10;
const PSH: u8 = 0x08;
const DONT_FRAGMENT: u8 = 0x40;

/// Where a frame goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct To {
    pub(crate) tap: usize,
    pub(crate) vlan: Option<VlanId>,
    pub(crate) mtu: Mtu,
    /// The TAP takes super-frames of UDP.
    pub(crate) datagrams: bool,
}

/// An inner frame as it came.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Came<'a> {
    /// All bytes that were received.
    pub(crate) received: &'a [u8],
    /// Where the frame is in them.
    pub(crate) at: usize,
    pub(crate) end: usize,
    pub(crate) ethernet: &'a Ethernet,
    pub(crate) ip: Option<&'a Ip>,
    /// Segment size that the kernel told of a datagram that it had not split.
    pub(crate) told: Option<u16>,
}

impl<'a> Came<'a> {
    fn frame(&self) -> &'a [u8] {
        &self.received[self.at..self.end]
    }
}

/// What became of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Merged {
    /// It is part of the one before.
    Grown,
    /// It begins one of its own.
    Apart,
}

/// Puts frames into an [`Inbox`], the last of which may still grow.
#[derive(Debug, Default)]
pub(crate) struct Merger {
    open: Option<Open>,
}

/// The last frame of the inbox, while more may be added.
#[derive(Debug, Clone, Copy)]
struct Open {
    to: To,
    /// Where its first segment is.
    at: usize,
    ip: Ip,
    ethertype_at: usize,
    l4_bytes: usize,
    /// Payload of a segment.
    size: usize,
    /// Of all together.
    payload: usize,
    count: usize,
    /// A segment that ends it is in it.
    last: bool,
    /// Flags of TCP that are in one of its segments.
    flags: u8,
}

impl Merger {
    /// Takes a frame in.
    pub(crate) fn offer(&mut self, came: &Came<'_>, to: To, inbox: &mut Inbox) -> Merged {
        let data = came.ip.and_then(|ip| Data::of(came.frame(), ip));
        if let (Some(open), Some(data)) = (&mut self.open, &data)
            && open.takes(came, data, to)
        {
            let start = came.at + data.payload;
            let part = Span::new(start, came.at + data.end);
            inbox.parts.push(part);
            open.payload += part.len();
            open.count += 1;
            open.flags |= data.flags;
            open.last = part.len() < open.size || data.flags & PSH != 0;
            return Merged::Grown;
        }
        self.close(came.received, inbox);
        let offload = left_to_do(came, to);
        let (head, part) = whole(came, to, inbox);
        let first = inbox.parts.len();
        inbox.parts.push(part);
        inbox.frames.push(Frame {
            tap: to.tap,
            offload,
            head,
            parts: Span::new(first, first + 1),
        });
        let may_grow = offload == Offload::default();
        self.open = data
            .filter(|_| may_grow)
            .and_then(|data| Open::begin(came, &data, to));
        Merged::Apart
    }

    /// The same for a frame on whose way there was congestion: its IP header says so from here on (RFC
    /// 6040 §4.2). It is merged with no other.
    pub(crate) fn offer_congested(&mut self, came: &Came<'_>, to: To, inbox: &mut Inbox) {
        self.close(came.received, inbox);
        let Some(ip) = came.ip else {
            self.offer(came, to, inbox);
            return;
        };
        let frame = came.frame();
        let start = inbox.heads.len();
        begin(&mut inbox.heads, frame, to.vlan);
        let header = inbox.heads.len() + 2;
        inbox
            .heads
            .extend_from_slice(&frame[came.ethernet.payload - 2..ip.l4]);
        let header = &mut inbox.heads[header..];
        if ip.v6 {
            header[1] |= 0x30;
        } else {
            header[1] |= 0x03;
            header[10..12].fill(0);
            let sum = checksum::field(checksum::sum(header));
            header[10..12].copy_from_slice(&sum);
        }
        let head = Span::new(start, inbox.heads.len());
        let first = inbox.parts.len();
        inbox.parts.push(Span::new(came.at + ip.l4, came.end));
        inbox.frames.push(Frame {
            tap: to.tap,
            offload: left_to_do(came, to),
            head,
            parts: Span::new(first, first + 1),
        });
    }

    /// Ends the frame that may still grow. To be called before the inbox is sent.
    pub(crate) fn close(&mut self, received: &[u8], inbox: &mut Inbox) {
        let Some(open) = self.open.take().filter(|open| open.count > 1) else {
            return;
        };
        let start = inbox.heads.len();
        open.write(received, &mut inbox.heads);
        let head = Span::new(start, inbox.heads.len());
        let frame = inbox.frames.last_mut().expect("what is open is the last");
        let first = inbox.parts.len() - open.count;
        let payload = open.at + open.ip.l4 + open.l4_bytes;
        inbox.parts[first] = Span::new(payload, payload + open.size);
        frame.parts = Span::new(first, inbox.parts.len());
        frame.head = head;
        frame.offload = open.offload();
    }
}

/// A segment of TCP or UDP that may be merged, judged by itself.
#[derive(Debug, Clone, Copy)]
struct Data {
    /// Where its payload is in the frame.
    payload: usize,
    end: usize,
    /// Of TCP.
    flags: u8,
}

impl Data {
    fn of(frame: &[u8], ip: &Ip) -> Option<Self> {
        let plain = match ip.v6 {
            // No options, no part of a packet; no extension headers.
            true => ip.l4 == ip.start + IPV6_BYTES,
            false => ip.l4 == ip.start + IPV4_BYTES,
        };
        if !plain || ip.fragment {
            return None;
        }
        let l4 = &frame[ip.l4..ip.end];
        let (bytes, flags) = match ip.protocol {
            TCP if l4.len() > TCP_BYTES => {
                let bytes = usize::from(l4[12] >> 4) * 4;
                let fine = bytes >= TCP_BYTES && l4[13] & !PSH == ACK && l4[12] & 0x0f == 0;
                (fine.then_some(bytes)?, l4[13])
            }
            // A datagram without a checksum has none to be merged under.
            UDP if l4.len() > UDP_BYTES && l4[6..8] != [0, 0] => {
                let length = usize::from(u16::from_be_bytes([l4[4], l4[5]]));
                ((length == l4.len()).then_some(UDP_BYTES)?, 0)
            }
            _ => return None,
        };
        (bytes < l4.len()).then_some(Self {
            payload: ip.l4 + bytes,
            end: ip.end,
            flags,
        })
    }
}

fn checksum_is_right(frame: &[u8], ip: &Ip) -> bool {
    let addresses = ip.address_bytes(frame);
    let pseudo = checksum::pseudo(addresses, ip.protocol, ip.end - ip.l4);
    checksum::fold(pseudo + checksum::sum(&frame[ip.l4..ip.end])) == 0xffff
}

impl Open {
    fn begin(came: &Came<'_>, data: &Data, to: To) -> Option<Self> {
        let ip = came.ip?;
        let fits = ip.protocol != UDP || to.datagrams;
        let ends = data.flags & PSH != 0;
        (fits && !ends && checksum_is_right(came.frame(), ip)).then_some(Self {
            to,
            at: came.at,
            ip: *ip,
            ethertype_at: came.ethernet.payload - 2,
            l4_bytes: data.payload - ip.l4,
            size: data.end - data.payload,
            payload: data.end - data.payload,
            count: 1,
            last: false,
            flags: data.flags,
        })
    }

    /// True if the segment is the next of the flow.
    fn takes(&self, came: &Came<'_>, data: &Data, to: To) -> bool {
        let Some(ip) = came.ip else { return false };
        let payload = data.end - data.payload;
        let l4_bytes = data.payload - ip.l4;
        let most = match ip.protocol {
            UDP => DATAGRAMS_MAX,
            _ => SEGMENTS_MAX,
        };
        if self.last
            || self.to != to
            || self.ip.v6 != ip.v6
            || self.ip.start != ip.start
            || self.ip.protocol != ip.protocol
            || self.l4_bytes != l4_bytes
            || payload > self.size
            || self.count >= most
            || (ip.l4 - ip.start) + l4_bytes + self.payload + payload > IP_MAX
        {
            return false;
        }
        let theirs = came.frame();
        let ours = &came.received[self.at..self.at + self.ip.l4 + self.l4_bytes];
        // MACs, tag and ethertype.
        ours[..ip.start] == theirs[..ip.start]
            && self.same_ip(ours, theirs)
            && self.same_l4(&ours[ip.l4..], &theirs[ip.l4..])
            && checksum_is_right(theirs, ip)
    }

    fn same_ip(&self, ours: &[u8], theirs: &[u8]) -> bool {
        let (ours, theirs) = (&ours[self.ip.start..], &theirs[self.ip.start..]);
        if self.ip.v6 {
            return ours[..4] == theirs[..4] && ours[6..IPV6_BYTES] == theirs[6..IPV6_BYTES];
        }
        let id = |header: &[u8]| u16::from_be_bytes([header[4], header[5]]);
        // Who may not be put together again needs no identification (RFC 6864 §4).
        let in_order =
            ours[6] & DONT_FRAGMENT != 0 || id(theirs) == id(ours).wrapping_add(self.count as u16);
        ours[..2] == theirs[..2]
            && ours[6..10] == theirs[6..10]
            && ours[12..IPV4_BYTES] == theirs[12..IPV4_BYTES]
            && in_order
    }

    fn same_l4(&self, ours: &[u8], theirs: &[u8]) -> bool {
        if ours[..4] != theirs[..4] {
            return false;
        }
        if self.ip.protocol == UDP {
            return true;
        }
        let seq = |header: &[u8]| u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
        seq(theirs) == seq(ours).wrapping_add(self.payload as u32)
            && ours[8..13] == theirs[8..13]
            // The window, not the flags, which were looked at, nor the checksum.
            && ours[14..16] == theirs[14..16]
            && ours[18..self.l4_bytes] == theirs[18..self.l4_bytes]
    }

    fn offload(&self) -> Offload {
        let (kind, offset) = match (self.ip.protocol, self.ip.v6) {
            (UDP, _) => (SegmentKind::Udp, 6),
            (_, false) => (SegmentKind::Tcp4, 16),
            (_, true) => (SegmentKind::Tcp6, 16),
        };
        let start = self.ip.l4 - (self.ethertype_at + 2) + ethernet_bytes(self.to.vlan);
        Offload {
            checksum: Some(Partial {
                start: start as u16,
                offset,
            }),
            segments: Some(Segmentation {
                kind,
                size: self.size as u16,
                header: (start + self.l4_bytes) as u16,
            }),
        }
    }

    /// The headers of the whole.
    fn write(&self, received: &[u8], head: &mut Vec<u8>) {
        let first = &received[self.at..self.at + self.ip.l4 + self.l4_bytes];
        begin(head, first, self.to.vlan);
        let from = head.len();
        head.extend_from_slice(&first[self.ethertype_at..]);
        let headers = &mut head[from..];
        let (outer, l4) = headers.split_at_mut(self.ip.l4 - self.ethertype_at);
        let ip = &mut outer[self.ip.start - self.ethertype_at..];
        let l4_length = self.l4_bytes + self.payload;
        let length = ip.len() + l4_length;
        if self.ip.v6 {
            ip[4..6].copy_from_slice(&((length - IPV6_BYTES) as u16).to_be_bytes());
        } else {
            ip[2..4].copy_from_slice(&(length as u16).to_be_bytes());
            ip[10..12].fill(0);
            let sum = checksum::field(checksum::sum(ip));
            ip[10..12].copy_from_slice(&sum);
        }
        let field = match self.ip.protocol {
            UDP => {
                l4[4..6].copy_from_slice(&(l4_length as u16).to_be_bytes());
                6
            }
            _ => {
                l4[13] = self.flags;
                16
            }
        };
        let addresses = self.ip.address_bytes(first);
        let pseudo = checksum::pseudo(addresses, self.ip.protocol, l4_length);
        l4[field..field + 2].copy_from_slice(&checksum::fold(pseudo).to_be_bytes());
    }
}

fn ethernet_bytes(vlan: Option<VlanId>) -> usize {
    match vlan {
        Some(_) => 18,
        None => 14,
    }
}

/// Both MACs and the tag that the frame has at the TAP.
fn begin(head: &mut Vec<u8>, frame: &[u8], vlan: Option<VlanId>) {
    head.extend_from_slice(&frame[..12]);
    if let Some(vlan) = vlan {
        head.extend_from_slice(&ETHERTYPE_VLAN.to_be_bytes());
        head.extend_from_slice(&vlan.get().to_be_bytes());
    }
}

/// The frame as it is, but for its tag.
fn whole(came: &Came<'_>, to: To, inbox: &mut Inbox) -> (Span, Span) {
    let is_tagged = came.ethernet.payload > 14;
    if came.ethernet.tag == to.vlan && is_tagged == to.vlan.is_some() {
        return (Span::default(), Span::new(came.at, came.end));
    }
    let start = inbox.heads.len();
    begin(&mut inbox.heads, came.frame(), to.vlan);
    let head = Span::new(start, inbox.heads.len());
    (
        head,
        Span::new(came.at + came.ethernet.payload - 2, came.end),
    )
}

/// What the sender left undone. On a wire nothing is; between namespaces of one machine, and behind
/// network cards of virtual machines, frames come as the sender's kernel had them: with the sum of the
/// pseudo-header where the checksum goes, and not split. A right checksum is mistaken for that one time
/// in 65,536, which does no harm: the kernel then computes it again.
fn left_to_do(came: &Came<'_>, to: To) -> Offload {
    let Some(ip) = came.ip.filter(|ip| !ip.fragment) else {
        return Offload::default();
    };
    let frame = came.frame();
    let l4 = &frame[ip.l4..ip.end];
    let (offset, least) = match ip.protocol {
        TCP => (16, TCP_BYTES),
        UDP => (6, UDP_BYTES),
        _ => return Offload::default(),
    };
    if l4.len() < least {
        return Offload::default();
    }
    let pseudo = checksum::pseudo(ip.address_bytes(frame), ip.protocol, l4.len());
    if checksum::fold(pseudo).to_be_bytes() != [l4[offset], l4[offset + 1]] {
        return Offload::default();
    }
    let shift = |at: usize| at - came.ethernet.payload + ethernet_bytes(to.vlan);
    let header = match ip.protocol {
        TCP => (usize::from(l4[12] >> 4) * 4).clamp(TCP_BYTES, l4.len()),
        _ => UDP_BYTES,
    };
    let before = ip.l4 - ip.start + header;
    let room = usize::from(to.mtu.get()).saturating_sub(before);
    let is_large = ip.end - ip.start > usize::from(to.mtu.get());
    let kind = match (ip.protocol, ip.v6, came.told) {
        (TCP, false, _) => Some((SegmentKind::Tcp4, room as u16)),
        (TCP, true, _) => Some((SegmentKind::Tcp6, room as u16)),
        (_, _, told) => told.map(|size| (SegmentKind::Udp, size)),
    };
    let segments = kind
        .filter(|(_, size)| is_large && *size > 0)
        .map(|(kind, size)| Segmentation {
            kind,
            size,
            header: shift(ip.l4 + header) as u16,
        });
    Offload {
        checksum: Some(Partial {
            start: shift(ip.l4) as u16,
            offset: offset as u16,
        }),
        segments,
    }
}
