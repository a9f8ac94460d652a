//! Router advertisements (RFC 4861, RFC 8106) of one port: sent by its host, for the subnet's router if
//! it has one. A NIC is to have its planned address and no other, so that addresses are formed from the
//! prefix only where that gives the planned one.

use crate::facts::V6;
use crate::wire::{self, Icmpv6};
use crate::{Answer, Event, Facts, Reason};
use model::{DomainName, MacAddr};
use std::net::{IpAddr, Ipv6Addr};

/// ff02::1 and its MAC (RFC 2464 §7).
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC: MacAddr = MacAddr([0x33, 0x33, 0, 0, 0, 1]);
const SOLICITATION: u8 = 133;
const ADVERTISEMENT: u8 = 134;
const HOP_LIMIT: u8 = 64;
/// Nobody advertises later than that after the last time (`MaxRtrAdvInterval`, RFC 4861 §6.2.1).
pub const ADVERTISE_SECS: u32 = 600;
/// What is said of routers and resolvers is good for so long.
const LIFETIME_SECS: u16 = 1800;
/// Of prefixes (RFC 4861 §6.2.1).
const VALID_SECS: u32 = 2_592_000;
const PREFERRED_SECS: u32 = 604_800;

const MANAGED: u8 = 0x80;
const OTHER: u8 = 0x40;
const ON_LINK: u8 = 0x80;
const AUTONOMOUS: u8 = 0x40;

pub(crate) fn answer(facts: &Facts, packet: &[u8]) -> Answer {
    let Some(message) = Icmpv6::of_ipv6(packet) else {
        return Answer::dropped(Reason::Malformed);
    };
    if message.kind != SOLICITATION {
        return Answer::dropped(Reason::NotARequest);
    }
    // From further away it cannot come (RFC 4861 §6.1.1).
    if message.hop_limit != 255 || message.code != 0 || message.payload.len() < 8 {
        return Answer::dropped(Reason::Malformed);
    }
    match advertisement(facts) {
        Some(frame) => Answer {
            event: Event::Advertised,
            reply: Some(frame),
        },
        None => Answer::dropped(Reason::NoAddress),
    }
}

/// What a port is told now and then; none in a subnet without IPv6.
pub fn advertisement(facts: &Facts) -> Option<Vec<u8>> {
    let v6 = facts.v6.as_ref()?;
    let source = facts.server_mac.link_local();
    // `| type 1 | code 1 | checksum 2 | hop limit 1 | flags 1 | lifetime 2 | reachable 4 | retransmit 4 |`
    let mut message = vec![ADVERTISEMENT, 0, 0, 0, HOP_LIMIT, MANAGED | OTHER];
    let lifetime = if v6.router { LIFETIME_SECS } else { 0 };
    message.extend(lifetime.to_be_bytes());
    message.extend([0; 8]);
    // `| 1 1 | length 1 | MAC 6 |`
    message.extend([1, 1]);
    message.extend(facts.server_mac.0);
    // `| 5 1 | length 1 | reserved 2 | MTU 4 |`
    message.extend([5, 1, 0, 0]);
    message.extend(u32::from(facts.mtu.get()).to_be_bytes());
    prefix(&mut message, facts, v6);
    resolvers(&mut message, facts);
    search(&mut message, facts);
    let sum = wire::icmpv6_checksum(source, ALL_NODES, &message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());

    let mut frame = wire::ethernet(ALL_NODES_MAC, facts.server_mac, wire::IPV6);
    frame.extend(wire::ipv6((source, ALL_NODES), wire::ICMPV6, 255, &message));
    Some(frame)
}

/// RFC 4861 §4.6.2: `| 3 1 | 4 1 | prefix length 1 | flags 1 | valid 4 | preferred 4 | reserved 4 |
/// prefix 16 |`.
fn prefix(message: &mut Vec<u8>, facts: &Facts, v6: &V6) {
    let formed =
        v6.net.prefix_len() == 64 && v6.address == Some(formed(v6.net.network(), facts.mac));
    let flags = if formed {
        ON_LINK | AUTONOMOUS
    } else {
        ON_LINK
    };
    message.extend([3, 4, v6.net.prefix_len(), flags]);
    message.extend(VALID_SECS.to_be_bytes());
    message.extend(PREFERRED_SECS.to_be_bytes());
    message.extend([0; 4]);
    message.extend(v6.net.network().octets());
}

/// The address that a NIC forms from a prefix and its MAC (RFC 4291 appendix A).
fn formed(prefix: Ipv6Addr, mac: MacAddr) -> Ipv6Addr {
    let interface = u128::from(mac.link_local()) & u128::from(u64::MAX);
    Ipv6Addr::from(u128::from(prefix) | interface)
}

/// RFC 8106 §5.1: `| 25 1 | length 1 | reserved 2 | lifetime 4 | resolvers 16 each |`.
fn resolvers(message: &mut Vec<u8>, facts: &Facts) {
    let resolvers = v6_only(&facts.options.dns);
    if resolvers.is_empty() {
        return;
    }
    message.extend([25, 1 + 2 * resolvers.len() as u8, 0, 0]);
    message.extend(u32::from(LIFETIME_SECS).to_be_bytes());
    resolvers.iter().for_each(|ip| message.extend(ip.octets()));
}

/// RFC 8106 §5.2: `| 31 1 | length 1 | reserved 2 | lifetime 4 | names, filled up with zeroes |`.
fn search(message: &mut Vec<u8>, facts: &Facts) {
    let mut names: Vec<u8> = domains(facts).flat_map(wire::name).collect();
    if names.is_empty() {
        return;
    }
    names.resize(names.len().next_multiple_of(8), 0);
    // Six names of 255 bytes are 192 times eight.
    message.extend([31, 1 + (names.len() / 8) as u8, 0, 0]);
    message.extend(u32::from(LIFETIME_SECS).to_be_bytes());
    message.extend(names);
}

/// Domains that names are looked up in: the NIC's own if nothing else is said.
pub(crate) fn domains(facts: &Facts) -> impl Iterator<Item = &DomainName> {
    let told = &facts.options;
    let own = told.domain.iter().filter(|_| told.search.is_empty());
    told.search.iter().chain(own)
}

pub(crate) fn v6_only(addresses: &[IpAddr]) -> Vec<Ipv6Addr> {
    let v6 = addresses.iter().filter_map(|address| match address {
        IpAddr::V6(ip) => Some(*ip),
        IpAddr::V4(_) => None,
    });
    v6.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests_common::{MAC, SERVER_MAC, facts};

    fn solicitation(source: &str, hop_limit: u8, message: &[u8]) -> Vec<u8> {
        let to: Ipv6Addr = "ff02::2".parse().unwrap();
        let mut frame = wire::ethernet(MacAddr([0x33, 0x33, 0, 0, 0, 2]), MAC, wire::IPV6);
        let addresses = (source.parse().unwrap(), to);
        frame.extend(wire::ipv6(addresses, wire::ICMPV6, hop_limit, message));
        frame
    }

    #[test]
    fn a_solicitation_is_answered_with_all_that_is_known() {
        let facts = facts();
        let frame = solicitation("::", 255, &[133, 0, 0, 0, 0, 0, 0, 0]);
        let answer = crate::answer(&facts, &frame);
        assert_eq!(answer.event, Event::Advertised);
        let frame = answer.reply.unwrap();
        assert_eq!(Some(&frame), advertisement(&facts).as_ref());
        let source = SERVER_MAC.link_local();
        assert_eq!(frame[..6], ALL_NODES_MAC.0);
        assert_eq!(frame[6..12], SERVER_MAC.0);
        assert_eq!(frame[22..38], source.octets());
        assert_eq!(wire::icmpv6_checksum(source, ALL_NODES, &frame[54..]), 0);
        let expected = [
            &[64, 0xc0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0][..],
            &[1, 1, 2, 0, 0, 0, 0, 1],
            &[5, 1, 0, 0, 0, 0, 0x05, 0xaa],
            &[
                3, 4, 64, 0x80, 0, 0x27, 0x8d, 0, 0, 0x09, 0x3a, 0x80, 0, 0, 0, 0,
            ],
            &"fd00::".parse::<Ipv6Addr>().unwrap().octets(),
            &[25, 3, 0, 0, 0, 0, 0x07, 0x08],
            &"fd00::53".parse::<Ipv6Addr>().unwrap().octets(),
            &[31, 3, 0, 0, 0, 0, 0x07, 0x08],
            b"\x03web\x04blue\0\x01b\0\0\0\0",
        ]
        .concat();
        assert_eq!(frame[58..], expected);
    }

    #[test]
    fn without_a_router_nobody_is_one_and_formed_addresses_may_be() {
        let mut facts = facts();
        let v6 = facts.v6.as_mut().unwrap();
        v6.router = false;
        v6.address = Some("fd00::ff:fe00:7".parse().unwrap());
        let frame = advertisement(&facts).unwrap();
        assert_eq!(frame[60..62], [0, 0], "the lifetime");
        assert_eq!(frame[54 + 16 + 8 + 8 + 3], 0xc0, "flags of the prefix");
        facts.options.search.clear();
        let frame = advertisement(&facts).unwrap();
        assert!(frame.ends_with(b"\x04blue\x08internal\0\0"), "{frame:?}");
        facts.v6 = None;
        assert_eq!(advertisement(&facts), None);
    }

    #[test]
    fn what_is_no_solicitation_is_not_answered() {
        let facts = facts();
        let ask = |hops, message: &[u8]| {
            let answer = crate::answer(&facts, &solicitation("::", hops, message));
            (answer.event, answer.reply)
        };
        let silent = |reason| (Event::Dropped(reason), None);
        assert_eq!(
            ask(64, &[133, 0, 0, 0, 0, 0, 0, 0]),
            silent(Reason::Malformed)
        );
        assert_eq!(
            ask(255, &[133, 1, 0, 0, 0, 0, 0, 0]),
            silent(Reason::Malformed)
        );
        assert_eq!(ask(255, &[133, 0, 0, 0]), silent(Reason::Malformed));
        assert_eq!(
            ask(255, &[134, 0, 0, 0, 0, 0, 0, 0]),
            silent(Reason::NotARequest)
        );
        assert_eq!(ask(255, &[]), silent(Reason::Malformed));
    }
}
