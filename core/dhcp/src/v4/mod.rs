//! The DHCPv4 server (RFC 2131) of one port: authoritative for its NIC and nobody else.

mod client;
mod message;

use crate::wire::{self, Udp};
use crate::{Answer, Event, Facts, Reason, V4};
use message::{Message, Reply, code};
use model::{METADATA_V4, MacAddr};
use std::net::{IpAddr, Ipv4Addr};

pub use client::{Client, Identity, OuterLease};

/// Seconds that an address may be used without word from us: what an agent may be away. A client
/// that asks for less gets less.
pub const LEASE_SECS: u32 = 24 * 3600;
/// Seconds until a client asks again: what a change of the subnet's options takes to be known.
pub const RENEW_SECS: u32 = 3600;
/// Seconds until it asks anybody: 7/8, as RFC 2131 §4.4.5 has it.
pub const REBIND_SECS: u32 = LEASE_SECS / 8 * 7;
/// Of what clients ask for.
const LEAST_LEASE_SECS: u32 = 60;

const SERVER_PORT: u16 = 67;
const CLIENT_PORT: u16 = 68;
/// Without word from the client: an IP packet of 576 bytes (RFC 2131 §2).
const USUAL_PACKET_BYTES: u16 = 576;
const IP_UDP_BYTES: u16 = 28;
/// RFC 1542 §4.1.1.
const MOST_HOPS: u8 = 16;

const DISCOVER: u8 = 1;
const OFFER: u8 = 2;
const REQUEST: u8 = 3;
const DECLINE: u8 = 4;
const ACK: u8 = 5;
const NAK: u8 = 6;
const RELEASE: u8 = 7;
const INFORM: u8 = 8;

/// Given to clients that name nothing.
const USUAL: &[u8] = &[
    code::ROUTERS,
    code::RESOLVERS,
    code::DOMAIN,
    code::MTU,
    code::BROADCAST,
    code::NTP,
    code::SEARCH,
    code::ROUTES,
];

pub(crate) fn answer(facts: &Facts, packet: &[u8]) -> Answer {
    let Some(udp) = Udp::of_ipv4(packet) else {
        return Answer::dropped(Reason::Malformed);
    };
    if udp.destination_port != SERVER_PORT {
        return Answer::dropped(Reason::NotARequest);
    }
    let Some(request) = Message::parse(udp.payload) else {
        return Answer::dropped(Reason::Malformed);
    };
    let Some(v4) = facts.v4 else {
        return Answer::dropped(Reason::NoAddress);
    };
    if request.chaddr != facts.mac {
        return Answer::dropped(Reason::NotThisNic);
    }
    // A relay on the NIC's own machine is the only one that can reach us, and answers go nowhere
    // else than to its port.
    let relayed = !request.giaddr.is_unspecified();
    if relayed && (request.giaddr != v4.address.addr() || request.hops > MOST_HOPS) {
        return Answer::dropped(Reason::BadRelay);
    }
    Transaction { facts, v4, request }.answer()
}

/// One message of the port's own client.
struct Transaction<'a> {
    facts: &'a Facts,
    v4: V4,
    request: Message,
}

impl Transaction<'_> {
    fn answer(self) -> Answer {
        let address = self.v4.address.addr();
        let fields = || {
            let server = self.request.four(code::SERVER)?.map(Ipv4Addr::from);
            let requested = self.request.four(code::REQUESTED)?.map(Ipv4Addr::from);
            Ok::<_, ()>((server, requested))
        };
        let (Ok((server, requested)), Some(&[kind])) = (fields(), self.request.option(code::TYPE))
        else {
            return Answer::dropped(Reason::Malformed);
        };
        let to_us = server.is_none_or(|server| server == self.v4.server);
        let ciaddr = Some(self.request.ciaddr).filter(|ip| !ip.is_unspecified());
        match kind {
            DISCOVER => self.reply(OFFER, Event::Offered),
            REQUEST | DECLINE | RELEASE if !to_us => Answer::silent(Event::OtherServer),
            // Selecting or rebooting: the client names an address that it does not have yet.
            // Renewing or rebinding: it names the one that it has.
            REQUEST => match ciaddr.or(requested) {
                Some(wanted) if wanted == address => {
                    self.reply(ACK, Event::Leased(address.into(), self.times().0))
                }
                Some(_) => self.reply(NAK, Event::Refused),
                None => Answer::dropped(Reason::Malformed),
            },
            INFORM if ciaddr == Some(address) => self.reply(ACK, Event::Informed),
            INFORM => Answer::dropped(Reason::NotThisNic),
            DECLINE if requested == Some(address) => {
                Answer::silent(Event::Declined(address.into()))
            }
            RELEASE if ciaddr == Some(address) => Answer::silent(Event::Released(address.into())),
            DECLINE | RELEASE => Answer::dropped(Reason::NotThisNic),
            _ => Answer::dropped(Reason::NotARequest),
        }
    }

    /// Lease, T1 and T2 in seconds.
    fn times(&self) -> (u32, u32, u32) {
        let asked = self.request.four(code::LEASE_TIME).ok().flatten();
        let lease = asked.map_or(LEASE_SECS, |asked| {
            u32::from_be_bytes(asked).clamp(LEAST_LEASE_SECS, LEASE_SECS)
        });
        (lease, RENEW_SECS.min(lease / 2), lease - lease / 8)
    }

    fn reply(&self, kind: u8, event: Event) -> Answer {
        let request = &self.request;
        let address = self.v4.address.addr();
        let leases = matches!(event, Event::Offered | Event::Leased(..));
        let mut options = vec![
            (code::TYPE, vec![kind]),
            (code::SERVER, self.v4.server.octets().to_vec()),
        ];
        // RFC 6842.
        let client = request.option(code::CLIENT);
        options.extend(client.map(|id| (code::CLIENT, id.to_vec())));
        if leases {
            let (lease, renew, rebind) = self.times();
            options.extend([
                (code::LEASE_TIME, lease.to_be_bytes().to_vec()),
                (code::RENEWAL, renew.to_be_bytes().to_vec()),
                (code::REBINDING, rebind.to_be_bytes().to_vec()),
            ]);
        }
        if kind == NAK {
            let text = format!("the address of this NIC is {address}");
            options.push((code::MESSAGE, text.into_bytes()));
        } else {
            let netmask = self.v4.address.netmask().octets().to_vec();
            options.push((code::NETMASK, netmask));
            self.parameters(&mut options);
        }
        let relay = request.option(code::RELAY);
        let relayed = !request.giaddr.is_unspecified();
        let reply = Reply {
            // A relay is to broadcast what the client cannot take otherwise (RFC 2131 §4.3.2).
            flags: request.flags | if kind == NAK && relayed { 0x8000 } else { 0 },
            ciaddr: if kind == ACK {
                request.ciaddr
            } else {
                Ipv4Addr::UNSPECIFIED
            },
            yiaddr: if leases {
                address
            } else {
                Ipv4Addr::UNSPECIFIED
            },
            options,
            last: relay
                .filter(|_| relayed)
                .map(|bytes| (code::RELAY, bytes.to_vec())),
        };
        Answer {
            event,
            reply: Some(self.frame(kind, &reply.encode(request, self.most_bytes()))),
        }
    }

    /// Bytes of a message: what the client takes, and the subnet carries.
    fn most_bytes(&self) -> usize {
        let asked = match self.request.option(code::MOST_BYTES) {
            Some(&[high, low]) => u16::from_be_bytes([high, low]).max(USUAL_PACKET_BYTES),
            _ => USUAL_PACKET_BYTES,
        };
        usize::from(asked.min(self.facts.mtu.get()).saturating_sub(IP_UDP_BYTES))
    }

    /// RFC 2131 §4.1: to the relay, or to the client's address and MAC, or to everybody if the client
    /// asks for that and has no address yet.
    fn frame(&self, kind: u8, message: &[u8]) -> Vec<u8> {
        let (request, address) = (&self.request, self.v4.address.addr());
        let (mac, to) = if !request.giaddr.is_unspecified() {
            (self.facts.mac, (request.giaddr, SERVER_PORT))
        } else if kind == NAK || request.ciaddr != address && request.wants_broadcast() {
            (MacAddr::BROADCAST, (Ipv4Addr::BROADCAST, CLIENT_PORT))
        } else {
            (self.facts.mac, (address, CLIENT_PORT))
        };
        let mut frame = wire::ethernet(mac, self.facts.server_mac, wire::IPV4);
        frame.extend(wire::udp_over_ipv4(
            (self.v4.server, SERVER_PORT),
            to,
            message,
        ));
        frame
    }

    /// What the client asked for, in its order.
    fn parameters(&self, options: &mut Vec<(u8, Vec<u8>)>) {
        let custom = &self.facts.options.custom;
        let asked = self.request.option(code::PARAMETERS);
        let usual = USUAL.iter().chain(custom.keys());
        let wanted: Vec<u8> = match asked {
            Some(asked) => asked.to_vec(),
            None => usual.copied().collect(),
        };
        for code in wanted {
            if options.iter().any(|(there, _)| *there == code) {
                continue;
            }
            let own = || self.parameter(code).filter(|bytes| !bytes.is_empty());
            if let Some(bytes) = custom.get(&code).cloned().or_else(own) {
                options.push((code, bytes));
            }
        }
    }

    fn parameter(&self, code: u8) -> Option<Vec<u8>> {
        let told = &self.facts.options;
        let router = self.v4.router.map(|ip| ip.octets());
        Some(match code {
            code::ROUTERS => router?.to_vec(),
            // The way to the metadata, whatever other default route there is, and the default route; a
            // client that asked for this option ignores the other (RFC 3442).
            // `| prefix length 1 | as many bytes of the prefix as count | router 4 |`, repeated
            code::ROUTES => {
                let router = router?;
                let metadata = METADATA_V4.octets();
                [&[32][..], &metadata, &router, &[0], &router].concat()
            }
            code::RESOLVERS => addresses(&told.dns),
            code::NTP => addresses(&told.ntp),
            code::DOMAIN => told.domain.as_ref()?.as_str().as_bytes().to_vec(),
            code::SEARCH => told.search.iter().flat_map(wire::name).collect(),
            code::MTU => self.facts.mtu.get().to_be_bytes().to_vec(),
            code::BROADCAST => self.v4.address.broadcast().octets().to_vec(),
            _ => return None,
        })
    }
}

fn addresses(of_both: &[IpAddr]) -> Vec<u8> {
    let v4 = of_both.iter().filter_map(|address| match address {
        IpAddr::V4(ip) => Some(ip.octets()),
        IpAddr::V6(_) => None,
    });
    v4.flatten().collect()
}

#[cfg(test)]
mod tests;
