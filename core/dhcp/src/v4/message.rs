//! DHCPv4 messages: the layout of RFC 2131 §2, options of RFC 2132, split and overloaded ones.

use crate::wire::Reader;
use model::MacAddr;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

/// Fields before the options: `| op 1 | htype 1 | hlen 1 | hops 1 | xid 4 | secs 2 | flags 2 | ciaddr
/// 4 | yiaddr 4 | siaddr 4 | giaddr 4 | chaddr 16 | sname 64 | file 128 | cookie 4 |`.
const FIXED_BYTES: usize = 240;
const SNAME_BYTES: usize = 64;
const FILE_BYTES: usize = 128;
const COOKIE: [u8; 4] = [99, 130, 83, 99];
const BOOTREQUEST: u8 = 1;
const BOOTREPLY: u8 = 2;
const ETHERNET: [u8; 2] = [1, 6];
/// BOOTP clients take nothing shorter (RFC 951).
const LEAST_BYTES: usize = 300;
const BROADCAST: u16 = 0x8000;

/// Codes of options.
pub(crate) mod code {
    pub(crate) const PAD: u8 = 0;
    pub(crate) const NETMASK: u8 = 1;
    pub(crate) const ROUTERS: u8 = 3;
    pub(crate) const RESOLVERS: u8 = 6;
    pub(crate) const DOMAIN: u8 = 15;
    pub(crate) const MTU: u8 = 26;
    pub(crate) const BROADCAST: u8 = 28;
    pub(crate) const NTP: u8 = 42;
    pub(crate) const REQUESTED: u8 = 50;
    pub(crate) const LEASE_TIME: u8 = 51;
    pub(crate) const OVERLOAD: u8 = 52;
    pub(crate) const TYPE: u8 = 53;
    pub(crate) const SERVER: u8 = 54;
    pub(crate) const PARAMETERS: u8 = 55;
    pub(crate) const MESSAGE: u8 = 56;
    pub(crate) const MOST_BYTES: u8 = 57;
    pub(crate) const RENEWAL: u8 = 58;
    pub(crate) const REBINDING: u8 = 59;
    pub(crate) const CLIENT: u8 = 61;
    /// RFC 3046.
    pub(crate) const RELAY: u8 = 82;
    /// RFC 3397.
    pub(crate) const SEARCH: u8 = 119;
    /// RFC 3442.
    pub(crate) const ROUTES: u8 = 121;
    pub(crate) const END: u8 = 255;
}

/// A message as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) hops: u8,
    pub(crate) xid: [u8; 4],
    pub(crate) flags: u16,
    /// The address that the client has, if it may use it.
    pub(crate) ciaddr: Ipv4Addr,
    /// The address that the client is to have.
    pub(crate) yiaddr: Ipv4Addr,
    /// The relay's address.
    pub(crate) giaddr: Ipv4Addr,
    pub(crate) chaddr: MacAddr,
    options: BTreeMap<u8, Vec<u8>>,
}

impl Message {
    /// Reads a message of a client on Ethernet.
    pub(crate) fn parse(message: &[u8]) -> Option<Self> {
        Self::parse_as(BOOTREQUEST, message)
    }

    /// Reads a message to a client on Ethernet.
    pub(crate) fn parse_reply(message: &[u8]) -> Option<Self> {
        Self::parse_as(BOOTREPLY, message)
    }

    fn parse_as(expected: u8, message: &[u8]) -> Option<Self> {
        let mut reader = Reader(message);
        let [op, htype, hlen, hops] = reader.array()?;
        if op != expected || [htype, hlen] != ETHERNET {
            return None;
        }
        let xid = reader.array()?;
        reader.u16()?;
        let flags = reader.u16()?;
        let ciaddr = reader.ipv4()?;
        let yiaddr = reader.ipv4()?;
        reader.bytes(4)?;
        let giaddr = reader.ipv4()?;
        let chaddr = MacAddr(reader.array()?);
        reader.bytes(10)?;
        let sname = reader.bytes(SNAME_BYTES)?;
        let file = reader.bytes(FILE_BYTES)?;
        if reader.array()? != COOKIE {
            return None;
        }
        let mut options = BTreeMap::new();
        take_options(&mut options, reader.0)?;
        let overload = match options.get(&code::OVERLOAD).map(Vec::as_slice) {
            None => 0,
            Some([which @ 1..=3]) => *which,
            Some(_) => return None,
        };
        if overload & 1 != 0 {
            take_options(&mut options, file)?;
        }
        if overload & 2 != 0 {
            take_options(&mut options, sname)?;
        }
        Some(Self {
            hops,
            xid,
            flags,
            ciaddr,
            yiaddr,
            giaddr,
            chaddr,
            options,
        })
    }

    pub(crate) fn option(&self, code: u8) -> Option<&[u8]> {
        self.options.get(&code).map(Vec::as_slice)
    }

    /// An option that is an address, or four bytes anyhow. `Err` if it is of another length.
    pub(crate) fn four(&self, code: u8) -> Result<Option<[u8; 4]>, ()> {
        let option = self.option(code);
        option
            .map(|bytes| bytes.try_into())
            .transpose()
            .map_err(drop)
    }

    pub(crate) fn wants_broadcast(&self) -> bool {
        self.flags & BROADCAST != 0
    }
}

/// `| code 1 | length 1 | bytes |`, pads and the end without length. What comes again is the rest of
/// what came before (RFC 3396).
fn take_options(options: &mut BTreeMap<u8, Vec<u8>>, area: &[u8]) -> Option<()> {
    let mut reader = Reader(area);
    while let Some(code) = reader.u8() {
        match code {
            code::PAD => {}
            code::END => break,
            code => {
                let length = usize::from(reader.u8()?);
                let bytes = reader.bytes(length)?;
                options.entry(code).or_default().extend_from_slice(bytes);
            }
        }
    }
    Some(())
}

/// A server's message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reply {
    /// What the client is told of the transaction.
    pub(crate) flags: u16,
    pub(crate) ciaddr: Ipv4Addr,
    pub(crate) yiaddr: Ipv4Addr,
    /// In order of importance: what does not fit is left out from the end.
    pub(crate) options: Vec<(u8, Vec<u8>)>,
    /// Put behind all others (RFC 3046 §2.1).
    pub(crate) last: Option<(u8, Vec<u8>)>,
}

impl Reply {
    /// The message in at most `most` bytes, which are more than [`FIXED_BYTES`]. Options go into the
    /// fields for names once their own place is full (RFC 2132 §9.3).
    pub(crate) fn encode(&self, request: &Message, most: usize) -> Vec<u8> {
        let last = self.last.as_ref().map_or(0, |(_, bytes)| encoded(bytes));
        let room = most.saturating_sub(FIXED_BYTES + 1 + last);
        let all: usize = self.options.iter().map(|(_, bytes)| encoded(bytes)).sum();
        let [mut main, mut file, mut sname] = [Vec::new(), Vec::new(), Vec::new()];
        if all <= room {
            for (code, bytes) in &self.options {
                put_option(&mut main, *code, bytes);
            }
        } else {
            // The option that says so, and the end in each field.
            let room = room.saturating_sub(3);
            for (code, bytes) in &self.options {
                let areas = [
                    (&mut main, room),
                    (&mut file, FILE_BYTES - 1),
                    (&mut sname, SNAME_BYTES - 1),
                ];
                let mut areas = areas.into_iter();
                if let Some((area, _)) =
                    areas.find(|(area, room)| area.len() + encoded(bytes) <= *room)
                {
                    put_option(area, *code, bytes);
                }
            }
            let overload = u8::from(!file.is_empty()) | u8::from(!sname.is_empty()) << 1;
            if overload != 0 {
                put_option(&mut main, code::OVERLOAD, &[overload]);
            }
        }
        if let Some((code, bytes)) = &self.last {
            put_option(&mut main, *code, bytes);
        }
        for area in [&mut file, &mut sname] {
            if !area.is_empty() {
                area.push(code::END);
            }
        }
        file.resize(FILE_BYTES, 0);
        sname.resize(SNAME_BYTES, 0);

        let mut message = vec![BOOTREPLY, ETHERNET[0], ETHERNET[1], 0];
        message.extend(request.xid);
        message.extend([0, 0]);
        message.extend(self.flags.to_be_bytes());
        message.extend(self.ciaddr.octets());
        message.extend(self.yiaddr.octets());
        message.extend([0; 4]);
        message.extend(request.giaddr.octets());
        message.extend(request.chaddr.0);
        message.extend([0; 10]);
        message.extend(sname);
        message.extend(file);
        message.extend(COOKIE);
        message.extend(main);
        message.push(code::END);
        message.resize(message.len().max(LEAST_BYTES), code::PAD);
        message
    }
}

/// A client's message, to no relay: options in this order.
pub(crate) fn request(
    xid: [u8; 4],
    secs: u16,
    ciaddr: Ipv4Addr,
    chaddr: MacAddr,
    options: &[(u8, Vec<u8>)],
) -> Vec<u8> {
    let mut message = vec![BOOTREQUEST, ETHERNET[0], ETHERNET[1], 0];
    message.extend(xid);
    message.extend(secs.to_be_bytes());
    message.extend([0; 2]);
    message.extend(ciaddr.octets());
    message.extend([0; 12]);
    message.extend(chaddr.0);
    message.resize(FIXED_BYTES - COOKIE.len(), 0);
    message.extend(COOKIE);
    for (code, bytes) in options {
        put_option(&mut message, *code, bytes);
    }
    message.push(code::END);
    message.resize(message.len().max(LEAST_BYTES), code::PAD);
    message
}

/// Bytes that an option takes with its headers.
fn encoded(bytes: &[u8]) -> usize {
    bytes.len() + 2 * bytes.len().div_ceil(255).max(1)
}

fn put_option(area: &mut Vec<u8>, code: u8, bytes: &[u8]) {
    if bytes.is_empty() {
        area.extend([code, 0]);
    }
    for part in bytes.chunks(255) {
        area.extend([code, part.len() as u8]);
        area.extend_from_slice(part);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn request() -> Vec<u8> {
        let mut message = vec![BOOTREQUEST, 1, 6, 0, 1, 2, 3, 4];
        message.resize(28, 0);
        message.extend([2, 0, 0, 0, 0, 7]);
        message.resize(236, 0);
        message.extend(COOKIE);
        message
    }

    fn parsed(options: &[u8]) -> Option<Message> {
        Message::parse(&[request(), options.to_vec()].concat())
    }

    #[test]
    fn options_are_split_repeated_and_overloaded() {
        let read = parsed(&[0, 12, 1, b'a', 53, 1, 1, 12, 2, b'b', b'c', 255, 9, 9]).unwrap();
        assert_eq!(read.option(12), Some(&b"abc"[..]));
        assert_eq!(read.option(53), Some(&[1][..]));
        assert_eq!(read.option(9), None);
        // Without an end all is read.
        assert!(parsed(&[53, 1, 1]).is_some());
        for torn in [
            &[53][..],
            &[53, 2, 1],
            &[53, 1],
            &[52, 1, 4],
            &[52, 2, 1, 1],
        ] {
            assert_eq!(parsed(torn), None, "{torn:?}");
        }
        let mut message = request();
        message[108..111].copy_from_slice(&[12, 1, b'f']);
        message[44..47].copy_from_slice(&[60, 1, b's']);
        message.extend([52, 1, 3, 255]);
        let read = Message::parse(&message).unwrap();
        assert_eq!(read.option(12), Some(&b"f"[..]));
        assert_eq!(read.option(60), Some(&b"s"[..]));
    }

    #[test]
    fn what_is_no_request_on_ethernet_is_not_read() {
        for (at, byte) in [(0, 2), (1, 6), (2, 8), (236, 0)] {
            let mut message = request();
            message[at] = byte;
            assert_eq!(Message::parse(&message), None, "byte {at}");
        }
        for short in 0..240 {
            assert_eq!(Message::parse(&request()[..short]), None);
        }
    }

    proptest! {
        /// Replies are never larger than allowed, say of each option all or nothing, and leave none
        /// out that there was room for.
        #[test]
        fn replies_fit(
            lengths in proptest::collection::vec(0_usize..300, 0..12),
            most in 300_usize..1500,
            relay in proptest::option::of(0_usize..40),
        ) {
            let options: Vec<_> = lengths.iter().zip(100..).map(|(n, code)| (code, vec![code; *n])).collect();
            let last = relay.map(|n| (code::RELAY, vec![7; n]));
            let reply = Reply {
                flags: 0,
                ciaddr: Ipv4Addr::UNSPECIFIED,
                yiaddr: Ipv4Addr::UNSPECIFIED,
                options: options.clone(),
                last: last.clone(),
            };
            let mut message = reply.encode(&Message::parse(&request()).unwrap(), most);
            prop_assert!(message.len() <= most, "{} of {}", message.len(), most);
            prop_assert!(message.len() >= LEAST_BYTES);
            message[0] = BOOTREQUEST;
            let read = Message::parse(&message).unwrap();
            let mut left_out = 0;
            for (code, bytes) in options.iter().chain(&last) {
                match read.option(*code) {
                    Some(read) => prop_assert_eq!(read, &bytes[..]),
                    None => left_out += 1,
                }
            }
            let all: usize = options.iter().chain(&last).map(|(_, b)| encoded(b)).sum();
            prop_assert!(left_out == 0 || all + FIXED_BYTES + 1 > most);
        }
    }
}
