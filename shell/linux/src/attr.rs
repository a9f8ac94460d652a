//! Netlink messages: built and taken apart.
//!
//! `| length 4 | type 2 | flags 2 | sequence 4 | port 4 | family's own header | attributes.. |`,
//! attribute: `| length 2 | type 2 | value | padding to 4 |`, host byte order unless
//! `NLA_F_NET_BYTEORDER` (`linux/netlink.h`).

use model::MacAddr;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Bytes of `struct nlmsghdr`.
pub(crate) const HEADER_BYTES: usize = 16;
const NLA_F_NESTED: u16 = 1 << 15;
/// The upper two bits of an attribute's type are flags.
const NLA_TYPE_MASK: u16 = 0x3fff;

/// One request.
#[derive(Debug, Clone)]
pub(crate) struct Message {
    bytes: Vec<u8>,
}

impl Message {
    pub(crate) fn new(kind: u16, flags: i32) -> Self {
        let mut bytes = Vec::with_capacity(192);
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&((flags | libc::NLM_F_REQUEST) as u16).to_ne_bytes());
        bytes.extend_from_slice(&[0; 8]);
        Self { bytes }
    }

    /// The family's own header.
    pub(crate) fn header(&mut self, header: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(header);
        self.pad();
        self
    }

    /// `struct ifinfomsg`.
    pub(crate) fn ifinfo(&mut self, family: i32, index: u32, flags: i32, change: i32) -> &mut Self {
        self.header(&[family as u8, 0, 0, 0])
            .header(&index.to_ne_bytes())
            .header(&flags.to_ne_bytes())
            .header(&change.to_ne_bytes())
    }

    pub(crate) fn put(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let length = u16::try_from(4 + value.len()).expect("no value of ours is near 64 KiB");
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.pad();
        self
    }

    pub(crate) fn put_u8(&mut self, kind: u16, value: u8) -> &mut Self {
        self.put(kind, &[value])
    }

    pub(crate) fn put_u16(&mut self, kind: u16, value: u16) -> &mut Self {
        self.put(kind, &value.to_ne_bytes())
    }

    pub(crate) fn put_u32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.put(kind, &value.to_ne_bytes())
    }

    pub(crate) fn put_be32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.put(kind, &value.to_be_bytes())
    }

    /// With the NUL that `NLA_NUL_STRING` wants.
    pub(crate) fn put_text(&mut self, kind: u16, text: &str) -> &mut Self {
        let mut value = Vec::with_capacity(text.len() + 1);
        value.extend_from_slice(text.as_bytes());
        value.push(0);
        self.put(kind, &value)
    }

    pub(crate) fn put_ip(&mut self, kind: u16, ip: IpAddr) -> &mut Self {
        match ip {
            IpAddr::V4(ip) => self.put(kind, &ip.octets()),
            IpAddr::V6(ip) => self.put(kind, &ip.octets()),
        }
    }

    /// Attributes as they came from the kernel.
    pub(crate) fn append(&mut self, attributes: &[u8]) -> &mut Self {
        self.header(attributes)
    }

    /// An attribute that holds what `fill` puts.
    pub(crate) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) -> &mut Self {
        self.nest_exactly(kind | NLA_F_NESTED, fill)
    }

    /// The same without the flag, for the attributes whose kernel side predates it.
    pub(crate) fn nest_exactly(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) -> &mut Self {
        let start = self.bytes.len();
        self.put(kind, &[]);
        fill(self);
        let length = u16::try_from(self.bytes.len() - start).expect("batches stay below 64 KiB");
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self
    }

    /// An item that has its length in front and no type: `struct rtnexthop`.
    pub(crate) fn item(&mut self, fill: impl FnOnce(&mut Self)) -> &mut Self {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        fill(self);
        let length = u16::try_from(self.bytes.len() - start).expect("an item is short");
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self
    }

    pub(crate) fn add_flags(&mut self, flags: i32) {
        let old = u16::from_ne_bytes([self.bytes[6], self.bytes[7]]);
        self.bytes[6..8].copy_from_slice(&(old | flags as u16).to_ne_bytes());
    }

    /// Bytes so far.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// The finished bytes.
    pub(crate) fn finish(&mut self, sequence: u32) -> &[u8] {
        let length = self.bytes.len() as u32;
        self.bytes[0..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        &self.bytes
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// A received message.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Received<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) sequence: u32,
    /// The socket that asked; of a notification, the one whose request it tells of.
    pub(crate) port: u32,
    pub(crate) payload: &'a [u8],
}

/// The messages of a datagram; stops at the first that does not fit.
pub(crate) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Received<'_>> {
    std::iter::from_fn(move || {
        let length = u32(bytes)? as usize;
        if length < HEADER_BYTES || length > bytes.len() {
            return None;
        }
        let message = Received {
            kind: u16(&bytes[4..])?,
            flags: u16(&bytes[6..])?,
            sequence: u32(&bytes[8..])?,
            port: u32(&bytes[12..])?,
            payload: &bytes[HEADER_BYTES..length],
        };
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// The attributes in `bytes`, types without flag bits; stops at the first that does not fit.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16(bytes)?);
        if length < 4 || length > bytes.len() {
            return None;
        }
        let attribute = (u16(&bytes[2..])? & NLA_TYPE_MASK, &bytes[4..length]);
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(attribute)
    })
}

/// The first attribute of this type.
pub(crate) fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find_map(|(k, value)| (k == kind).then_some(value))
}

pub(crate) fn u16(bytes: &[u8]) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.first_chunk()?))
}

pub(crate) fn u32(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.first_chunk()?))
}

/// Text up to its NUL, if it has one.
pub(crate) fn text(bytes: &[u8]) -> Option<&str> {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    std::str::from_utf8(&bytes[..end]).ok()
}

/// An address of 4 or 16 bytes.
pub(crate) fn ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(Ipv4Addr::from(*bytes.first_chunk::<4>()?).into()),
        16 => Some(Ipv6Addr::from(*bytes.first_chunk::<16>()?).into()),
        _ => None,
    }
}

/// A MAC of exactly 6 bytes.
pub(crate) fn mac(bytes: &[u8]) -> Option<MacAddr> {
    Some(MacAddr(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            for message in messages(&bytes) {
                for (_, value) in attributes(message.payload) {
                    let _ = (u16(value), u32(value), text(value), ip(value), mac(value));
                    prop_assert!(attributes(value).count() <= value.len());
                }
            }
            prop_assert!(attributes(&bytes).count() <= bytes.len());
        }

        #[test]
        fn what_is_put_is_found(
            values in proptest::collection::vec((1_u16..0x3fff, proptest::collection::vec(any::<u8>(), 0..40)), 0..10)
        ) {
            let mut message = Message::new(16, 0);
            message.nest(5, |m| for (kind, value) in &values { m.put(*kind, value); });
            let bytes = message.finish(7).to_vec();
            let received: Vec<_> = messages(&bytes).collect();
            prop_assert_eq!(received.len(), 1);
            prop_assert_eq!((received[0].kind, received[0].sequence), (16, 7));
            let nested = attribute(received[0].payload, 5).unwrap();
            let found: Vec<_> = attributes(nested).map(|(k, v)| (k, v.to_vec())).collect();
            prop_assert_eq!(found, values);
        }
    }
}
