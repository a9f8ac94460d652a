//! Routes and rules of a router: requests about them, and what the kernel tells of them.
//!
//! `struct rtmsg`: `| family 1 | prefix length 1 | source length 1 | tos 1 | table 1 | protocol 1 |
//! scope 1 | type 1 | flags 4 |`; `struct fib_rule_hdr` has the action in the place of the type.

use super::PROTOCOL;
use crate::attr::{self, Message};
use crate::error::Cause;
use crate::socket::Socket;
use crate::sys;
use host_plan::{Hop, Route, RouteRule, Way};
use ipnet::IpNet;
use model::IfName;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Rules of ours are asked before the main table (32766) and after the local one (0).
const RULE_PRIORITY: u32 = 10_000;
/// Metric of our IPv6 routes, the kernel's default for those that a user adds: which route is to be
/// replaced is told by it.
const METRIC6: u32 = 1024;
const RT_SCOPE_UNIVERSE: u8 = 0;
const RT_SCOPE_LINK: u8 = 253;

fn family(ipv6: bool) -> u8 {
    let family = if ipv6 { libc::AF_INET6 } else { libc::AF_INET };
    family as u8
}

fn is_v6(prefix: &IpNet) -> bool {
    matches!(prefix, IpNet::V6(_))
}

type Index<'a> = dyn FnMut(&IfName) -> Result<u32, Cause> + 'a;

/// A gateway may be of the other family than the route (RFC 8950, `struct rtvia`:
/// `| family 2 | address |`).
fn put_gateway(message: &mut Message, ipv6: bool, gateway: IpAddr) {
    match gateway {
        IpAddr::V6(address) if !ipv6 => {
            let mut via = Vec::with_capacity(18);
            via.extend((libc::AF_INET6 as u16).to_ne_bytes());
            via.extend(address.octets());
            message.put(sys::RTA_VIA, &via);
        }
        _ => _ = message.put_ip(sys::RTA_GATEWAY, gateway),
    }
}

fn parse_via(value: &[u8]) -> Option<IpAddr> {
    attr::ip(value.get(2..)?)
}

/// A route in the place of the one to the same prefix in the same table, if there is one.
pub(super) fn set(route: &Route, index: &mut Index<'_>) -> Result<Message, Cause> {
    let flags = libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
    message(libc::RTM_NEWROUTE, flags, route, index)
}

pub(super) fn delete(route: &Route, index: &mut Index<'_>) -> Result<Message, Cause> {
    message(libc::RTM_DELROUTE, 0, route, index)
}

fn message(kind: u16, flags: i32, route: &Route, index: &mut Index<'_>) -> Result<Message, Cause> {
    let v6 = is_v6(&route.prefix);
    let mut message = Message::new(kind, flags);
    let (scope, kind) = match &route.way {
        Way::Blackhole => (RT_SCOPE_UNIVERSE, libc::RTN_BLACKHOLE),
        Way::Hops { hops, .. } => {
            let direct = !v6 && hops.iter().all(|hop| hop.gateway.is_none());
            let scope = if direct {
                RT_SCOPE_LINK
            } else {
                RT_SCOPE_UNIVERSE
            };
            (scope, libc::RTN_UNICAST)
        }
    };
    // Gateways outside need not be in a prefix of the interface.
    let on_link = |hop: &Hop| hop.gateway.map_or(0, |_| u32::from(sys::RTNH_F_ONLINK));
    // IPv6 takes a list of next hops only if each has a gateway.
    let single = match &route.way {
        Way::Hops { hops, .. } if hops.len() == 1 => hops.first(),
        _ => None,
    };
    message
        .header(&[family(v6), route.prefix.prefix_len(), 0, 0])
        .header(&[libc::RT_TABLE_UNSPEC, PROTOCOL, scope, kind])
        .header(&single.map_or(0, on_link).to_ne_bytes())
        .put_u32(sys::RTA_TABLE, route.table)
        .put_ip(sys::RTA_DST, route.prefix.addr());
    if v6 {
        message.put_u32(sys::RTA_PRIORITY, METRIC6);
    }
    let Way::Hops { hops, source } = &route.way else {
        return Ok(message);
    };
    if let Some(source) = source {
        message.put_ip(sys::RTA_PREFSRC, *source);
    }
    if let Some(hop) = single {
        message.put_u32(sys::RTA_OIF, index(&hop.device)?);
        if let Some(gateway) = hop.gateway {
            put_gateway(&mut message, v6, gateway);
        }
        return Ok(message);
    }
    let mut indices = Vec::new();
    for hop in hops {
        indices.push(index(&hop.device)?);
    }
    message.nest_exactly(sys::RTA_MULTIPATH, |m| {
        for (hop, index) in hops.iter().zip(&indices) {
            // `struct rtnexthop`: `| length 2 | flags 1 | hops 1 | interface 4 | attributes.. |`.
            m.item(|m| {
                m.header(&[on_link(hop) as u8, 0])
                    .header(&index.to_ne_bytes());
                if let Some(gateway) = hop.gateway {
                    put_gateway(m, v6, gateway);
                }
            });
        }
    });
    Ok(message)
}

/// All routes of ours, of all tables.
pub(super) fn all(
    socket: &mut Socket,
    names: &BTreeMap<u32, IfName>,
) -> Result<BTreeSet<Route>, Cause> {
    let mut routes = BTreeSet::new();
    for ipv6 in [false, true] {
        let mut request = Message::new(libc::RTM_GETROUTE, 0);
        request
            .header(&[family(ipv6), 0, 0, 0])
            .header(&[0, PROTOCOL, 0, 0])
            .header(&[0; 4]);
        let result = socket.dump(request, |_, payload| routes.extend(parse(payload, names)));
        tolerate_no_ipv6(ipv6, result)?;
    }
    Ok(routes)
}

pub(super) fn tolerate_no_ipv6(ipv6: bool, result: Result<(), Cause>) -> Result<(), Cause> {
    let none = |cause: &Cause| {
        matches!(
            cause.errno(),
            Some(libc::EOPNOTSUPP | libc::EAFNOSUPPORT | libc::ENOENT)
        )
    };
    match result {
        Err(cause) if ipv6 && none(&cause) => Ok(()),
        other => other,
    }
}

fn prefix_of(payload: &[u8], ip: Option<IpAddr>) -> Option<IpNet> {
    let v6 = i32::from(*payload.first()?) == libc::AF_INET6;
    let unspecified = match v6 {
        true => IpAddr::from([0_u8; 16]),
        false => IpAddr::from([0_u8; 4]),
    };
    IpNet::new(ip.unwrap_or(unspecified), *payload.get(1)?).ok()
}

/// A route, if it has our number. One by an interface without a name that we know has none of its
/// hops, and is wanted by nobody.
fn parse(payload: &[u8], names: &BTreeMap<u32, IfName>) -> Option<Route> {
    if *payload.get(5)? != PROTOCOL {
        return None;
    }
    let kind = *payload.get(7)?;
    let mut table = u32::from(*payload.get(4)?);
    let (mut to, mut source, mut gateway, mut device) = (None, None, None, None);
    let mut hops = BTreeSet::new();
    for (kind, value) in attr::attributes(payload.get(12..)?) {
        match kind {
            sys::RTA_TABLE => table = attr::u32(value)?,
            sys::RTA_DST => to = attr::ip(value),
            sys::RTA_PREFSRC => source = attr::ip(value),
            sys::RTA_GATEWAY => gateway = attr::ip(value),
            sys::RTA_VIA => gateway = parse_via(value),
            sys::RTA_OIF => device = attr::u32(value).and_then(|index| names.get(&index)),
            sys::RTA_MULTIPATH => hops.extend(parse_hops(value, names)),
            _ => {}
        }
    }
    if let Some(device) = device
        && hops.is_empty()
    {
        hops.insert(Hop {
            device: device.clone(),
            gateway,
        });
    }
    let way = match kind {
        libc::RTN_BLACKHOLE => Way::Blackhole,
        _ => Way::Hops { hops, source },
    };
    Some(Route {
        table,
        prefix: prefix_of(payload, to)?,
        way,
    })
}

fn parse_hops<'a>(
    mut bytes: &'a [u8],
    names: &'a BTreeMap<u32, IfName>,
) -> impl Iterator<Item = Hop> + 'a {
    let next = move || {
        let length = usize::from(attr::u16(bytes)?);
        let hop = bytes.get(..length).filter(|hop| hop.len() >= 8)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(hop)
    };
    std::iter::from_fn(next).filter_map(|hop| {
        let device = names.get(&attr::u32(hop.get(4..)?)?)?.clone();
        let get = |kind| attr::attribute(hop.get(8..)?, kind);
        let via = || get(sys::RTA_VIA).and_then(parse_via);
        let gateway = get(sys::RTA_GATEWAY).and_then(attr::ip).or_else(via);
        Some(Hop { device, gateway })
    })
}

pub(super) fn add_rule(rule: &RouteRule) -> Message {
    rule_message(
        libc::RTM_NEWRULE,
        libc::NLM_F_CREATE | libc::NLM_F_EXCL,
        rule,
    )
}

pub(super) fn delete_rule(rule: &RouteRule) -> Message {
    rule_message(libc::RTM_DELRULE, 0, rule)
}

fn rule_message(kind: u16, flags: i32, rule: &RouteRule) -> Message {
    let mut message = Message::new(kind, flags);
    message
        .header(&[family(rule.ipv6), 0, 0, 0])
        .header(&[0, 0, 0, sys::FR_ACT_TO_TBL])
        .header(&[0; 4])
        .put_u32(sys::FRA_PRIORITY, RULE_PRIORITY)
        .put_text(sys::FRA_IIFNAME, rule.device.as_str())
        .put_u32(sys::FRA_TABLE, rule.table)
        .put_u8(sys::FRA_PROTOCOL, PROTOCOL);
    message
}

/// All rules of ours.
pub(super) fn rules(socket: &mut Socket) -> Result<BTreeSet<RouteRule>, Cause> {
    let mut rules = BTreeSet::new();
    for ipv6 in [false, true] {
        let mut request = Message::new(libc::RTM_GETRULE, 0);
        request.header(&[family(ipv6), 0, 0, 0]).header(&[0; 8]);
        let result = socket.dump(request, |_, payload| {
            rules.extend(parse_rule(payload, ipv6));
        });
        tolerate_no_ipv6(ipv6, result)?;
    }
    Ok(rules)
}

fn parse_rule(payload: &[u8], ipv6: bool) -> Option<RouteRule> {
    let attributes = payload.get(12..)?;
    let get = |kind| attr::attribute(attributes, kind);
    if get(sys::FRA_PROTOCOL)? != [PROTOCOL] {
        return None;
    }
    Some(RouteRule {
        device: IfName::new(attr::text(get(sys::FRA_IIFNAME)?)?).ok()?,
        table: attr::u32(get(sys::FRA_TABLE)?)?,
        ipv6,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn garbage_never_panics(
            payload in proptest::collection::vec(any::<u8>(), 0..200), protocol: bool
        ) {
            let names = BTreeMap::from([(1, IfName::new("a").unwrap())]);
            let mut payload = payload;
            if let (true, Some(byte)) = (protocol, payload.get_mut(5)) {
                *byte = PROTOCOL;
            }
            drop(parse(&payload, &names));
            prop_assert!(parse_rule(&payload, true).is_none_or(|rule| rule.ipv6));
            prop_assert!(parse_hops(&payload, &names).count() <= payload.len());
        }
    }
}
