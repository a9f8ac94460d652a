//! The DHCPv6 server (RFC 8415) of one port: stateful for its NIC's planned address, and the answers
//! of a stateless one.

mod message;

use crate::facts::V6;
use crate::ra::{domains, v6_only};
use crate::v4::{LEASE_SECS, REBIND_SECS, RENEW_SECS};
use crate::wire::{self, Udp};
use crate::{Answer, Event, Facts, Reason};
use message::{Request, code, options, put};
use model::SubnetId;
use std::net::Ipv6Addr;

const SERVER_PORT: u16 = 547;
const CLIENT_PORT: u16 = 546;
/// `All_DHCP_Relay_Agents_and_Servers`.
const SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);
/// A client has one identity association for each interface; what asks for more is no client.
const MOST_ASSOCIATIONS: usize = 8;

const SOLICIT: u8 = 1;
const ADVERTISE: u8 = 2;
const REQUEST: u8 = 3;
const CONFIRM: u8 = 4;
const RENEW: u8 = 5;
const REBIND: u8 = 6;
const REPLY: u8 = 7;
const RELEASE: u8 = 8;
const DECLINE: u8 = 9;
const INFORMATION_REQUEST: u8 = 11;

const SUCCESS: u16 = 0;
const NO_ADDRESSES: u16 = 2;
const NOT_ON_LINK: u16 = 4;
const NO_PREFIXES: u16 = 6;

pub(crate) fn answer(facts: &Facts, packet: &[u8]) -> Answer {
    let Some((addresses, udp)) = Udp::of_ipv6(packet) else {
        return Answer::dropped(Reason::Malformed);
    };
    let (source, destination) = addresses;
    // No client of ours was told that it may write to a server by itself (§18.4).
    if udp.destination_port != SERVER_PORT || destination != SERVERS {
        return Answer::dropped(Reason::NotARequest);
    }
    let Some(request) = Request::parse(udp.payload) else {
        return Answer::dropped(Reason::Malformed);
    };
    let Some(v6) = &facts.v6 else {
        return Answer::dropped(Reason::NoAddress);
    };
    let server = Server {
        facts,
        v6,
        request,
        source,
    };
    server.answer()
}

struct Server<'a> {
    facts: &'a Facts,
    v6: &'a V6,
    request: Request<'a>,
    source: Ipv6Addr,
}

impl Server<'_> {
    fn answer(&self) -> Answer {
        let duid = server_duid(self.facts.subnet);
        let (client, server) = (self.request.client(), self.request.server());
        // Which identifiers a message must have, and which it must not (§16).
        let (has_client, has_server) = match self.request.kind {
            SOLICIT | CONFIRM | REBIND => (true, false),
            REQUEST | RENEW | RELEASE | DECLINE => (true, true),
            INFORMATION_REQUEST => (false, server.is_some()),
            _ => return Answer::dropped(Reason::NotARequest),
        };
        if has_client && client.is_none() || has_server != server.is_some() {
            return Answer::dropped(Reason::Malformed);
        }
        if server.is_some_and(|server| server != duid) {
            return Answer::silent(Event::OtherServer);
        }
        let rapid = self.request.option(code::RAPID_COMMIT).is_some();
        match self.request.kind {
            SOLICIT if !rapid => self.give(ADVERTISE, Event::Offered),
            SOLICIT | REQUEST | RENEW | REBIND => match self.v6.address {
                Some(address) => self.give(REPLY, Event::Leased(address.into(), LEASE_SECS)),
                None => self.give(REPLY, Event::Refused),
            },
            CONFIRM => self.confirm(),
            RELEASE => self.take_back(Event::Released),
            DECLINE => self.take_back(Event::Declined),
            // An Information-request asks for no address (§16.12).
            _ if self.request.all(code::IA_NA).next().is_some() => {
                Answer::dropped(Reason::Malformed)
            }
            _ => {
                let mut reply = self.begin(REPLY);
                self.parameters(&mut reply);
                self.reply(Event::Informed, &reply)
            }
        }
    }

    /// Addresses for what the client wants them for: the planned one for the first association, and
    /// none for others.
    fn give(&self, kind: u8, event: Event) -> Answer {
        let mut reply = self.begin(kind);
        if self.request.kind == SOLICIT && kind == REPLY {
            put(&mut reply, code::RAPID_COMMIT, &[]);
        }
        let associations: Vec<_> = (self.request.all(code::IA_NA))
            .take(MOST_ASSOCIATIONS)
            .collect();
        for (at, association) in associations.iter().enumerate() {
            let Some(association) = self.association(association, at == 0) else {
                return Answer::dropped(Reason::Malformed);
            };
            put(&mut reply, code::IA_NA, &association);
        }
        for (code, status) in [(code::IA_TA, NO_ADDRESSES), (code::IA_PD, NO_PREFIXES)] {
            for asked in self.request.all(code).take(MOST_ASSOCIATIONS) {
                // `| IAID 4 |`, and T1 and T2 of prefixes.
                let Some(id) = asked.first_chunk::<4>() else {
                    return Answer::dropped(Reason::Malformed);
                };
                let mut refused = id.to_vec();
                if code == code::IA_PD {
                    refused.extend([0; 8]);
                }
                put_status(&mut refused, status, "one address is planned for this NIC");
                put(&mut reply, code, &refused);
            }
        }
        self.parameters(&mut reply);
        // A client that wanted none was leased none.
        let event = match event {
            Event::Leased(..) if associations.is_empty() => Event::Informed,
            other => other,
        };
        self.reply(event, &reply)
    }

    /// RFC 8415 §21.4: `| IAID 4 | T1 4 | T2 4 | options |`. Other addresses than the planned one are
    /// told with no lifetime left. None if it is malformed.
    fn association(&self, asked: &[u8], first: bool) -> Option<Vec<u8>> {
        let (head, rest) = asked.split_first_chunk::<12>()?;
        let mut association = head[..4].to_vec();
        let planned = self.v6.address.filter(|_| first);
        let (renew, rebind) = planned.map_or((0, 0), |_| (RENEW_SECS, REBIND_SECS));
        association.extend(renew.to_be_bytes());
        association.extend(rebind.to_be_bytes());
        match planned {
            Some(address) => put_address(&mut association, address, LEASE_SECS),
            None => put_status(
                &mut association,
                NO_ADDRESSES,
                "one address is planned for this NIC",
            ),
        }
        if self.request.kind != SOLICIT {
            let asked = options(rest)?.into_iter().take(MOST_ASSOCIATIONS);
            for (code, bytes) in asked.filter(|(code, _)| *code == code::IA_ADDRESS) {
                let (address, _) = bytes.split_first_chunk::<16>()?;
                let address = Ipv6Addr::from(*address);
                if Some(address) != planned {
                    put_address(&mut association, address, 0);
                }
                debug_assert_eq!(code, code::IA_ADDRESS);
            }
        }
        Some(association)
    }

    /// Whether the addresses that a client has are still those of this subnet (§18.3.3).
    fn confirm(&self) -> Answer {
        let Some(addresses) = self.addresses() else {
            return Answer::dropped(Reason::Malformed);
        };
        if addresses.is_empty() {
            return Answer::dropped(Reason::Malformed);
        }
        let good = addresses
            .iter()
            .all(|address| Some(*address) == self.v6.address);
        let mut reply = self.begin(REPLY);
        if good {
            put_status(&mut reply, SUCCESS, "");
            return self.reply(Event::Confirmed, &reply);
        }
        put_status(
            &mut reply,
            NOT_ON_LINK,
            "another address is planned for this NIC",
        );
        self.reply(Event::Refused, &reply)
    }

    /// All addresses of all associations; none if one is malformed.
    fn addresses(&self) -> Option<Vec<Ipv6Addr>> {
        let mut addresses = Vec::new();
        for association in self.request.all(code::IA_NA).take(MOST_ASSOCIATIONS) {
            let rest = association.get(12..)?;
            for (code, bytes) in options(rest)? {
                if code == code::IA_ADDRESS {
                    addresses.push(Ipv6Addr::from(*bytes.first_chunk::<16>()?));
                }
            }
        }
        Some(addresses)
    }

    fn take_back(&self, event: fn(std::net::IpAddr) -> Event) -> Answer {
        let Some(addresses) = self.addresses() else {
            return Answer::dropped(Reason::Malformed);
        };
        let mut reply = self.begin(REPLY);
        put_status(&mut reply, SUCCESS, "");
        match self
            .v6
            .address
            .filter(|planned| addresses.contains(planned))
        {
            Some(address) => self.reply(event(address.into()), &reply),
            None => self.reply(Event::Refused, &reply),
        }
    }

    fn begin(&self, kind: u8) -> Vec<u8> {
        let mut reply = vec![kind];
        reply.extend(self.request.transaction);
        if let Some(client) = self.request.client() {
            put(&mut reply, code::CLIENT, client);
        }
        put(&mut reply, code::SERVER, &server_duid(self.facts.subnet));
        reply
    }

    fn parameters(&self, reply: &mut Vec<u8>) {
        let octets = |addresses: &[std::net::IpAddr]| -> Vec<u8> {
            let v6 = v6_only(addresses).into_iter();
            v6.flat_map(|ip| ip.octets()).collect()
        };
        let told = &self.facts.options;
        // `| 1 2 | 16 2 | address 16 |` for each time server.
        let ntp = v6_only(&told.ntp).into_iter().flat_map(|ip| {
            let mut server = vec![0, 1, 0, 16];
            server.extend(ip.octets());
            server
        });
        let all = [
            (code::RESOLVERS, octets(&told.dns)),
            (
                code::SEARCH,
                domains(self.facts).flat_map(wire::name).collect(),
            ),
            (code::NTP, ntp.collect()),
        ];
        for (code, bytes) in all {
            if !bytes.is_empty() && self.request.wants(code) {
                put(reply, code, &bytes);
            }
        }
        if self.request.kind == INFORMATION_REQUEST && self.request.wants(code::REFRESH) {
            put(reply, code::REFRESH, &RENEW_SECS.to_be_bytes());
        }
    }

    fn reply(&self, event: Event, message: &[u8]) -> Answer {
        // Who fills a message with addresses that it never had gets no answer.
        if message.len() + 48 > usize::from(self.facts.mtu.get()) {
            return Answer::dropped(Reason::Malformed);
        }
        let from = (self.facts.server_mac.link_local(), SERVER_PORT);
        let packet = wire::udp_over_ipv6(from, (self.source, CLIENT_PORT), message);
        let mut frame = wire::ethernet(self.facts.mac, self.facts.server_mac, wire::IPV6);
        frame.extend(packet);
        Answer {
            event,
            reply: Some(frame),
        }
    }
}

/// RFC 8415 §21.6: `| address 16 | preferred 4 | valid 4 |`.
fn put_address(association: &mut Vec<u8>, address: Ipv6Addr, secs: u32) {
    let mut bytes = address.octets().to_vec();
    bytes.extend(secs.to_be_bytes());
    bytes.extend(secs.to_be_bytes());
    put(association, code::IA_ADDRESS, &bytes);
}

/// RFC 8415 §21.13: `| status 2 | text |`.
fn put_status(message: &mut Vec<u8>, status: u16, text: &str) {
    let bytes = [&status.to_be_bytes()[..], text.as_bytes()].concat();
    put(message, code::STATUS, &bytes);
}

/// The same on every host, and for ever: a UUID (RFC 6355) made of the subnet's id, of the version
/// that is for such (RFC 9562 §5.8).
fn server_duid(subnet: SubnetId) -> [u8; 18] {
    let mut duid = [
        0, 4, 0x76, 0x70, 0x63, 0, 0, 0, 0x80, 0, 0x80, 0, 0, 0, 0, 0, 0, 0,
    ];
    duid[11..].copy_from_slice(&subnet.bits().to_be_bytes()[1..]);
    duid
}

#[cfg(test)]
mod tests;
