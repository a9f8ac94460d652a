//! A frame of a TAP as packets of the tunnel: a super-frame is split once, and each segment gets
//! headers of its own. Payload is not copied: a segment is a head that was written here, and a body
//! where it lies in the frame.

use crate::checksum;
use crate::offload::{Offload, Partial, SegmentKind, Segmentation};
use crate::packet::{ETHERNET_BYTES, ETHERTYPE_VLAN, Ethernet, Ip, TCP, TCP_BYTES, UDP, UDP_BYTES};
use crate::reason::Reason;
use crate::vxlan;
use crate::{Domain, Outbox, Span};
use model::Mtu;

/// Segments of one super-frame at most. TCP's smallest segments have 48 bytes, and a super-frame 64 KiB.
const SEGMENTS_MAX: usize = 2048;
/// Flags of TCP that are for the last segment alone: FIN and PSH.
const LAST_ONLY: u8 = 0x01 | 0x08;
/// And for the first alone: CWR (RFC 3168 §6.1.2).
const FIRST_ONLY: u8 = 0x80;

/// A frame that a TAP gave, and what is known of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Given<'a> {
    pub(crate) frame: &'a [u8],
    /// Where the frame begins in what bodies are parts of.
    pub(crate) base: usize,
    pub(crate) offload: Offload,
    pub(crate) ethernet: &'a Ethernet,
    pub(crate) ip: Option<&'a Ip>,
}

/// Completes a checksum that was left to do. What is to be split gets its checksums there.
pub(crate) fn complete(frame: &mut [u8], partial: Partial) -> Result<(), Reason> {
    let start = usize::from(partial.start);
    let field = start + usize::from(partial.offset);
    if start < ETHERNET_BYTES || field + 2 > frame.len() {
        return Err(Reason::Malformed);
    }
    // The field holds the sum of the pseudo-header and is part of the sum.
    let mut sum = checksum::field(checksum::sum(&frame[start..]));
    if sum == [0, 0] {
        // To UDP zero is "none" (RFC 768); to TCP both are the same.
        sum = [0xff, 0xff];
    }
    frame[field..field + 2].copy_from_slice(&sum);
    Ok(())
}

/// Writes the segments of a frame for a domain. What is too big for it is refused.
pub(crate) fn segments(
    given: &Given<'_>,
    domain: Domain,
    mtu: Mtu,
    out: &mut Outbox,
) -> Result<(), Reason> {
    let limit = usize::from(mtu.get());
    match given.offload.segments {
        None => {
            let payload = match given.ip {
                Some(ip) => ip.end - ip.start,
                None => given.frame.len() - given.ethernet.payload,
            };
            if payload > limit {
                return Err(Reason::TooBig);
            }
            let head = out.head(|head| begin(head, given, domain));
            // From the ethertype on: in front of it is the tag, which is the domain's own affair.
            let body = Span::new(
                given.base + given.ethernet.payload - 2,
                given.base + given.frame.len(),
            );
            out.segment(head, body);
            Ok(())
        }
        Some(split) => split_up(given, split, domain, limit, out),
    }
}

/// The VXLAN header, both MACs, and the tag that is inside.
fn begin(head: &mut Vec<u8>, given: &Given<'_>, domain: Domain) {
    head.extend_from_slice(&vxlan::header(domain.vni));
    head.extend_from_slice(&given.frame[..12]);
    if let Some(tag) = domain.tag {
        head.extend_from_slice(&ETHERTYPE_VLAN.to_be_bytes());
        head.extend_from_slice(&tag.get().to_be_bytes());
    }
}

fn split_up(
    given: &Given<'_>,
    split: Segmentation,
    domain: Domain,
    limit: usize,
    out: &mut Outbox,
) -> Result<(), Reason> {
    let frame = given.frame;
    let ip = given.ip.ok_or(Reason::Malformed)?;
    let (protocol, v6) = match split.kind {
        SegmentKind::Tcp4 => (TCP, Some(false)),
        SegmentKind::Tcp6 => (TCP, Some(true)),
        SegmentKind::Udp => (UDP, None),
    };
    if ip.protocol != protocol || v6.is_some_and(|v6| v6 != ip.v6) || ip.fragment {
        return Err(Reason::Malformed);
    }
    let l4_bytes = match protocol {
        TCP => frame
            .get(ip.l4 + 12)
            .map(|offset| usize::from(offset >> 4) * 4)
            .filter(|bytes| *bytes >= TCP_BYTES)
            .ok_or(Reason::Malformed)?,
        _ => UDP_BYTES,
    };
    let payload_start = ip.l4 + l4_bytes;
    let size = usize::from(split.size);
    if payload_start >= ip.end {
        return Err(Reason::Malformed);
    }
    let count = (ip.end - payload_start).div_ceil(size);
    if count > SEGMENTS_MAX {
        return Err(Reason::Malformed);
    }
    if payload_start - ip.start + size.min(ip.end - payload_start) > limit {
        return Err(Reason::TooBig);
    }
    let template = Template {
        ip,
        protocol,
        l4_bytes,
        headers: &frame[given.ethernet.payload - 2..payload_start],
        addresses: checksum::sum(ip.address_bytes(frame)),
        // Where the IP header begins among the headers.
        at: ip.start - (given.ethernet.payload - 2),
    };
    for number in 0..count {
        let start = payload_start + number * size;
        let end = (start + size).min(ip.end);
        let payload = &frame[start..end];
        let head = out.head(|head| {
            begin(head, given, domain);
            template.write(head, number, count, number * size, payload);
        });
        out.segment(head, Span::new(given.base + start, given.base + end));
    }
    Ok(())
}

/// The headers of a super-frame, from the ethertype to the end of the L4 header.
struct Template<'a> {
    ip: &'a Ip,
    protocol: u8,
    l4_bytes: usize,
    headers: &'a [u8],
    /// The sum of both addresses.
    addresses: u64,
    at: usize,
}

impl Template<'_> {
    fn write(
        &self,
        head: &mut Vec<u8>,
        number: usize,
        count: usize,
        before: usize,
        payload: &[u8],
    ) {
        let from = head.len();
        head.extend_from_slice(self.headers);
        let headers = &mut head[from..];
        let l4 = headers.len() - self.l4_bytes;
        let l4_length = self.l4_bytes + payload.len();
        let (outer, inner) = headers.split_at_mut(l4);
        let ip = &mut outer[self.at..];
        // No more than the super-frame had, and that had 16 bits for it.
        let ip_length = (ip.len() + l4_length) as u16;
        if self.ip.v6 {
            let length = ip_length - crate::packet::IPV6_BYTES as u16;
            ip[4..6].copy_from_slice(&length.to_be_bytes());
        } else {
            ip[2..4].copy_from_slice(&ip_length.to_be_bytes());
            let id = u16::from_be_bytes([ip[4], ip[5]]).wrapping_add(number as u16);
            ip[4..6].copy_from_slice(&id.to_be_bytes());
            ip[10..12].fill(0);
            let sum = checksum::field(checksum::sum(ip));
            ip[10..12].copy_from_slice(&sum);
        }
        let field = match self.protocol {
            TCP => {
                let seq = u32::from_be_bytes([inner[4], inner[5], inner[6], inner[7]]);
                let seq = seq.wrapping_add(before as u32);
                inner[4..8].copy_from_slice(&seq.to_be_bytes());
                if number + 1 < count {
                    inner[13] &= !LAST_ONLY;
                }
                if number > 0 {
                    inner[13] &= !FIRST_ONLY;
                }
                16
            }
            _ => {
                inner[4..6].copy_from_slice(&(l4_length as u16).to_be_bytes());
                6
            }
        };
        inner[field..field + 2].fill(0);
        let pseudo = checksum::word(l4_length as u16) + checksum::word(self.protocol.into());
        let pseudo = self.addresses + pseudo;
        let mut sum = checksum::field(pseudo + checksum::sum(inner) + checksum::sum(payload));
        if sum == [0, 0] && self.protocol == UDP {
            sum = [0xff, 0xff];
        }
        inner[field..field + 2].copy_from_slice(&sum);
    }
}
