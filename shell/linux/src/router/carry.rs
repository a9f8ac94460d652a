//! Tracked connections of a router that goes to another host: read where it was, made where it goes.

use super::flows::{Tuple, message};
use crate::attr::{self, Message};
use crate::error::{Cause, Doing, Error};
use crate::netns::{Netns, on_own_thread};
use crate::nft;
use crate::socket::Socket;
use crate::sys;
use model::{Ends, NetnsName, Protocol, Tracked};
use std::net::IpAddr;

/// Bits of `enum ip_conntrack_status`.
const SEEN_REPLY: u32 = 1 << 1;
const ASSURED: u32 = 1 << 2;
const CONFIRMED: u32 = 1 << 3;
/// `struct nf_ct_tcp_flags`: flags, and which of them are meant. A window that was not seen here is no
/// reason to drop.
const LIBERAL: [u8; 2] = [0x08, 0x08];
/// Requests sent to the kernel together.
const TOGETHER: usize = 256;

/// What a router tracks, at most so many.
pub fn tracked_connections(netns: &NetnsName, most: usize) -> Result<Vec<Tracked>, Error> {
    let Some(found) = Netns::find(netns)? else {
        return Ok(Vec::new());
    };
    let read = || {
        found.enter()?;
        let mut list = Message::new(message(sys::IPCTNL_MSG_CT_GET), 0);
        list.header(&[libc::AF_UNSPEC as u8, 0, 0, 0]);
        let mut tracked = Vec::new();
        Socket::netfilter()?.dump(list, |_, payload| {
            if tracked.len() < most {
                tracked.extend(parse(payload));
            }
        })?;
        Ok::<_, Cause>(tracked)
    };
    on_own_thread(read).doing(|| format!("read the tracked connections of namespace {netns}"))
}

/// Makes a router track these; how many it took, none if its rules are not there yet. What it tracks
/// already stays as it is.
pub fn track_connections(netns: &NetnsName, tracked: &[Tracked]) -> Result<Option<usize>, Error> {
    let Some(found) = Netns::find(netns)? else {
        return Ok(None);
    };
    let make = || {
        found.enter()?;
        let mut socket = Socket::netfilter()?;
        // What translates is set up by the rules.
        let rules = nft::find(&mut socket, sys::NFPROTO_INET)?;
        if !rules.chains.contains("nat-out") {
            return Ok::<_, Cause>(None);
        }
        let mut taken = 0;
        for tracked in tracked.chunks(TOGETHER) {
            let mut requests: Vec<Message> = tracked.iter().map(request).collect();
            let results = socket.transact(&mut requests);
            taken += results.iter().filter(|result| result.is_ok()).count();
        }
        Ok(Some(taken))
    };
    on_own_thread(make).doing(|| format!("take over connections in namespace {netns}"))
}

pub(super) fn parse(payload: &[u8]) -> Option<Tracked> {
    let attributes = payload.get(4..)?;
    let get = |kind| attr::attribute(attributes, kind);
    let number = |kind| Some(u32::from_be_bytes(*get(kind)?.first_chunk()?));
    let original = Tuple::parse(get(sys::CTA_TUPLE_ORIG)?)?;
    let reply = Tuple::parse(get(sys::CTA_TUPLE_REPLY)?)?;
    let protocol = original.protocol?;
    let status = number(sys::CTA_STATUS)?;
    let tcp =
        get(sys::CTA_PROTOINFO).and_then(|info| attr::attribute(info, sys::CTA_PROTOINFO_TCP));
    let state = tcp.and_then(|tcp| attr::attribute(tcp, sys::CTA_PROTOINFO_TCP_STATE)?.first());
    Some(Tracked {
        protocol,
        original: ends(&original),
        reply: ends(&reply),
        seen_reply: status & SEEN_REPLY != 0,
        assured: status & ASSURED != 0,
        timeout: number(sys::CTA_TIMEOUT)?,
        tcp_state: state.copied().unwrap_or_default(),
    })
}

pub(super) fn ends(tuple: &Tuple) -> Ends {
    Ends {
        from: tuple.source,
        from_port: tuple.source_port,
        to: tuple.destination,
        to_port: tuple.destination_port,
    }
}

fn request(tracked: &Tracked) -> Message {
    let Tracked {
        original, reply, ..
    } = tracked;
    let family = match original.from {
        IpAddr::V4(_) => libc::AF_INET,
        IpAddr::V6(_) => libc::AF_INET6,
    };
    // The kernel translates by itself when it is told how: the answer's ends without translation.
    let plain = Ends {
        from: original.to,
        from_port: original.to_port,
        to: original.from,
        to_port: original.from_port,
    };
    let mut status = CONFIRMED;
    for (is, bit) in [(tracked.seen_reply, SEEN_REPLY), (tracked.assured, ASSURED)] {
        status |= if is { bit } else { 0 };
    }
    let flags = (libc::NLM_F_CREATE | libc::NLM_F_EXCL) as _;
    let mut request = Message::new(message(sys::IPCTNL_MSG_CT_NEW), flags);
    request.header(&[family as u8, 0, 0, 0]);
    tuple(
        &mut request,
        sys::CTA_TUPLE_ORIG,
        tracked.protocol,
        original,
    );
    tuple(&mut request, sys::CTA_TUPLE_REPLY, tracked.protocol, &plain);
    request
        .put(sys::CTA_STATUS, &status.to_be_bytes())
        .put(sys::CTA_TIMEOUT, &tracked.timeout.to_be_bytes());
    if (reply.to, reply.to_port) != (plain.to, plain.to_port) {
        translation(&mut request, sys::CTA_NAT_SRC, reply.to, reply.to_port);
    }
    if (reply.from, reply.from_port) != (plain.from, plain.from_port) {
        translation(&mut request, sys::CTA_NAT_DST, reply.from, reply.from_port);
    }
    if tracked.protocol == Protocol::Tcp {
        request.nest(sys::CTA_PROTOINFO, |m| {
            m.nest(sys::CTA_PROTOINFO_TCP, |m| {
                m.put(sys::CTA_PROTOINFO_TCP_STATE, &[tracked.tcp_state])
                    .put(sys::CTA_PROTOINFO_TCP_FLAGS_ORIGINAL, &LIBERAL)
                    .put(sys::CTA_PROTOINFO_TCP_FLAGS_REPLY, &LIBERAL);
            });
        });
    }
    request
}

fn tuple(request: &mut Message, kind: u16, protocol: Protocol, ends: &Ends) {
    let (from, to) = match ends.from {
        IpAddr::V4(_) => (sys::CTA_IP_V4_SRC, sys::CTA_IP_V4_DST),
        IpAddr::V6(_) => (sys::CTA_IP_V6_SRC, sys::CTA_IP_V6_DST),
    };
    let number = match protocol {
        Protocol::Tcp => libc::IPPROTO_TCP,
        Protocol::Udp => libc::IPPROTO_UDP,
    };
    request.nest(kind, |m| {
        m.nest(sys::CTA_TUPLE_IP, |m| {
            m.put(from, &bytes(ends.from)).put(to, &bytes(ends.to));
        })
        .nest(sys::CTA_TUPLE_PROTO, |m| {
            m.put(sys::CTA_PROTO_NUM, &[number as u8])
                .put(sys::CTA_PROTO_SRC_PORT, &ends.from_port.to_be_bytes())
                .put(sys::CTA_PROTO_DST_PORT, &ends.to_port.to_be_bytes());
        });
    });
}

/// To exactly this address and port.
fn translation(request: &mut Message, kind: u16, address: IpAddr, port: u16) {
    let (first, last) = match address {
        IpAddr::V4(_) => (sys::CTA_NAT_V4_MINIP, sys::CTA_NAT_V4_MAXIP),
        IpAddr::V6(_) => (sys::CTA_NAT_V6_MINIP, sys::CTA_NAT_V6_MAXIP),
    };
    request.nest(kind, |m| {
        m.put(first, &bytes(address))
            .put(last, &bytes(address))
            .nest(sys::CTA_NAT_PROTO, |m| {
                m.put(sys::CTA_PROTONAT_PORT_MIN, &port.to_be_bytes())
                    .put(sys::CTA_PROTONAT_PORT_MAX, &port.to_be_bytes());
            });
    });
}

fn bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn garbage_never_panics(payload in proptest::collection::vec(any::<u8>(), 0..200)) {
            let tracked = parse(&payload);
            prop_assert!(tracked.is_none() || payload.len() > 4);
        }

        #[test]
        fn what_is_not_translated_is_read_as_it_was_made(
            from in any::<std::net::Ipv4Addr>(), to in any::<std::net::Ipv4Addr>(),
            (from_port, to_port) in any::<(u16, u16)>(), tcp_state in 0_u8..10,
        ) {
            let original = Ends { from: from.into(), from_port, to: to.into(), to_port };
            let reply = Ends { from: to.into(), from_port: to_port, to: from.into(), to_port: from_port };
            let tracked = Tracked {
                protocol: Protocol::Tcp,
                original,
                reply,
                seen_reply: true,
                assured: false,
                timeout: 60,
                tcp_state,
            };
            let bytes = request(&tracked).finish(1)[attr::HEADER_BYTES..].to_vec();
            prop_assert_eq!(parse(&bytes), Some(tracked));
        }
    }
}
