//! Tracked connections of a router: those that its rules do not allow any more are ended.
//!
//! `struct nfgenmsg`: `| family 1 | version 1 | resource 2 |`, then attributes of
//! `linux/netfilter/nfnetlink_conntrack.h`.

use crate::attr::{self, Message};
use crate::error::Cause;
use crate::socket::Socket;
use crate::sys;
use host_plan::{Flow, RouterFirewall};
use model::Protocol;
use std::net::IpAddr;

/// Type of a message about tracked connections.
pub(super) const fn message(kind: u8) -> u16 {
    (libc::NFNL_SUBSYS_CTNETLINK as u16) << 8 | kind as u16
}

/// Ends the flows that the rules do not allow; how many there were.
pub(super) fn end_revoked(socket: &mut Socket, firewall: &RouterFirewall) -> Result<usize, Cause> {
    let mut list = Message::new(message(sys::IPCTNL_MSG_CT_GET), 0);
    list.header(&[libc::AF_UNSPEC as u8, 0, 0, 0]);
    let mut revoked = Vec::new();
    socket.dump(list, |_, payload| {
        if let Some((flow, request)) = parse(payload)
            && !firewall.allows(&flow)
        {
            revoked.push(request);
        }
    })?;
    for result in socket.transact(&mut revoked) {
        match result {
            // It ended by itself.
            Err(cause) if cause.errno() == Some(libc::ENOENT) => {}
            other => other?,
        }
    }
    Ok(revoked.len())
}

/// A tracked connection, and the request that ends it: exactly it, by its number, and not one that
/// took its place.
fn parse(payload: &[u8]) -> Option<(Flow, Message)> {
    let family = *payload.first()?;
    let attributes = payload.get(4..)?;
    let get = |kind| attr::attribute(attributes, kind);
    let original = get(sys::CTA_TUPLE_ORIG)?;
    let (there, back) = (
        Tuple::parse(original)?,
        Tuple::parse(get(sys::CTA_TUPLE_REPLY)?)?,
    );
    let flow = Flow {
        protocol: there.protocol,
        from: there.source,
        to: there.destination,
        to_port: there.destination_port,
        got_by: back.source,
        got_at: back.source_port,
        seen_as: back.destination,
    };
    let mut request = Message::new(message(sys::IPCTNL_MSG_CT_DELETE), 0);
    request
        .header(&[family, 0, 0, 0])
        .nest(sys::CTA_TUPLE_ORIG, |m| {
            m.append(original);
        });
    for kind in [sys::CTA_ID, sys::CTA_ZONE] {
        if let Some(value) = get(kind) {
            request.put(kind, value);
        }
    }
    Some((flow, request))
}

pub(super) struct Tuple {
    pub(super) protocol: Option<Protocol>,
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) source_port: u16,
    pub(super) destination_port: u16,
}

impl Tuple {
    pub(super) fn parse(attributes: &[u8]) -> Option<Self> {
        let ip = attr::attribute(attributes, sys::CTA_TUPLE_IP)?;
        let proto = attr::attribute(attributes, sys::CTA_TUPLE_PROTO)?;
        let address = |v4, v6| {
            let found = attr::attribute(ip, v4).or_else(|| attr::attribute(ip, v6));
            found.and_then(attr::ip)
        };
        let number = attr::attribute(proto, sys::CTA_PROTO_NUM)?.first()?;
        let protocol = match i32::from(*number) {
            libc::IPPROTO_TCP => Some(Protocol::Tcp),
            libc::IPPROTO_UDP => Some(Protocol::Udp),
            _ => None,
        };
        let port = |kind| {
            let value = attr::attribute(proto, kind)?;
            Some(u16::from_be_bytes(*value.first_chunk()?))
        };
        // Others have something else in its place, or nothing; no rule is about it.
        let port = |kind| protocol.and_then(|_| port(kind)).unwrap_or(0);
        Some(Self {
            protocol,
            source: address(sys::CTA_IP_V4_SRC, sys::CTA_IP_V6_SRC)?,
            destination: address(sys::CTA_IP_V4_DST, sys::CTA_IP_V6_DST)?,
            source_port: port(sys::CTA_PROTO_SRC_PORT),
            destination_port: port(sys::CTA_PROTO_DST_PORT),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn garbage_never_panics(
            tuples in proptest::collection::vec(
                (1_u16..4, proptest::collection::vec(
                    (1_u16..3, proptest::collection::vec(
                        (1_u16..6, proptest::collection::vec(any::<u8>(), 0..18)), 0..5)), 0..3)), 0..4),
            payload in proptest::collection::vec(any::<u8>(), 0..100),
        ) {
            let mut message = Message::new(0, 0);
            message.header(&[2, 0, 0, 0]);
            for (kind, parts) in &tuples {
                message.nest(*kind, |m| for (kind, values) in parts {
                    m.nest(*kind, |m| for (kind, value) in values { m.put(*kind, value); });
                });
            }
            let built = message.finish(1)[attr::HEADER_BYTES..].to_vec();
            for payload in [built, payload] {
                prop_assert!(parse(&payload).is_none_or(|(flow, _)| flow.from.is_ipv4() || flow.from.is_ipv6()));
            }
        }
    }
}
