//! The DHCPv4 client (RFC 2131 §4.4) of one interface. Frames in and out, and when it wants to be woken.
//!
//! Whether somebody else has the address is not asked (RFC 2131 §4.4.1 has it as a "should"): the server
//! asks before it offers it, and a router that comes to another host is not to lose time.

use super::message::{self, Message, code};
use super::{ACK, CLIENT_PORT, DISCOVER, NAK, OFFER, REQUEST, SERVER_PORT};
use crate::wire::{self, Ethernet, Reader, Udp};
use ipnet::Ipv4Net;
use model::MacAddr;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

/// A question is asked again after so long, then twice as long, and so on ...
const AGAIN_FIRST: Duration = Duration::from_secs(1);
/// ... up to this.
const AGAIN_MOST: Duration = Duration::from_secs(32);
/// Questions at once for one offer; then all servers are asked anew.
const REQUESTS: u32 = 4;
/// After a server took an address back.
const AFTER_NAK: Duration = Duration::from_secs(1);
/// A lease that is about to end is asked for again after half of what is left, but not sooner than this.
const PROLONG_LEAST: Duration = Duration::from_secs(2);
/// Nobody gives an address for longer, as far as we are concerned.
const MOST_LEASE_SECS: u32 = 365 * 24 * 3600;
/// A lease that is no longer than this is none: it would end before it could be prolonged.
const LEAST_LEASE_SECS: u32 = 10;
/// The largest message that is taken, with its headers: what every link outside carries.
const MOST_BYTES: u16 = 1500;

/// What the client asks for.
const WANTED: &[u8] = &[
    code::NETMASK,
    code::ROUTES,
    code::ROUTERS,
    code::LEASE_TIME,
    code::SERVER,
    code::RENEWAL,
    code::REBINDING,
];

/// Who asks. The same, wherever it runs, gets the same address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Of the interface.
    pub mac: MacAddr,
    /// The client identifier (RFC 2132 §9.14), its type first.
    pub id: Vec<u8>,
}

/// What a server gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OuterLease {
    /// The address, and its network.
    pub address: Ipv4Net,
    /// The way on from there.
    pub gateway: Option<Ipv4Addr>,
    /// Who gave it.
    pub server: Ipv4Addr,
    /// Where its answers came from: itself, or the last router before us.
    pub server_mac: MacAddr,
    /// When it is asked to prolong it.
    pub renew_at: Instant,
    /// When anybody is.
    pub rebind_at: Instant,
    /// When the address is not ours any more.
    pub ends_at: Instant,
}

/// A client.
#[derive(Debug, Clone)]
pub struct Client {
    identity: Identity,
    state: State,
    xid: [u8; 4],
    /// Since when there is no answer to what was asked.
    asking_since: Option<Instant>,
    to_send: Option<Vec<u8>>,
    random: u32,
}

#[derive(Debug, Clone)]
enum State {
    /// Looks for servers.
    Selecting { asked: u32, again_at: Instant },
    /// Takes an offer.
    Requesting {
        address: Ipv4Addr,
        server: Ipv4Addr,
        asked: u32,
        again_at: Instant,
    },
    /// Has an address.
    Bound(OuterLease),
    /// Has an address, and asks for it to stay: its server, later anybody.
    Prolonging {
        lease: OuterLease,
        again_at: Instant,
    },
}

impl Client {
    /// One without an address. `random` is another for each.
    pub fn new(identity: Identity, now: Instant, random: u32) -> Self {
        let state = State::Selecting {
            asked: 0,
            again_at: now,
        };
        Self {
            identity,
            state,
            xid: [0; 4],
            asking_since: None,
            to_send: None,
            // A generator of this kind stays at zero for ever.
            random: random.max(1),
        }
    }

    /// One that was given an address before.
    pub fn resume(identity: Identity, lease: OuterLease, now: Instant, random: u32) -> Self {
        Self {
            state: State::Bound(lease),
            ..Self::new(identity, now, random)
        }
    }

    /// The address that it has.
    pub fn lease(&self) -> Option<&OuterLease> {
        match &self.state {
            State::Bound(lease) | State::Prolonging { lease, .. } => Some(lease),
            State::Selecting { .. } | State::Requesting { .. } => None,
        }
    }

    /// Since when nobody has answered; none if nobody needs to.
    pub fn asking_since(&self) -> Option<Instant> {
        self.asking_since
    }

    /// An offer was made, and is not confirmed yet.
    pub fn is_offered(&self) -> bool {
        matches!(self.state, State::Requesting { .. })
    }

    /// A frame to send.
    pub fn poll_transmit(&mut self) -> Option<Vec<u8>> {
        self.to_send.take()
    }

    /// When it wants to be woken.
    pub fn poll_timeout(&self) -> Instant {
        match &self.state {
            State::Selecting { again_at, .. } | State::Requesting { again_at, .. } => *again_at,
            State::Bound(lease) => lease.renew_at,
            State::Prolonging { lease, again_at } => (*again_at).min(lease.ends_at),
        }
    }

    /// Time passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        match &self.state {
            State::Selecting { asked, again_at } if *again_at <= now => self.discover(now, *asked),
            State::Requesting {
                address,
                server,
                asked,
                again_at,
            } if *again_at <= now => match *asked {
                REQUESTS.. => self.discover(now, 0),
                asked => self.request(now, *address, *server, asked),
            },
            State::Bound(lease) if lease.renew_at <= now => {
                let lease = *lease;
                self.begin(now);
                self.prolong(now, lease);
            }
            State::Prolonging { lease, again_at } if (*again_at).min(lease.ends_at) <= now => {
                self.prolong(now, *lease);
            }
            _ => {}
        }
    }

    /// A frame came in by the interface.
    pub fn handle_frame(&mut self, now: Instant, frame: &[u8]) {
        let Some((from, told)) = self.for_us(frame) else {
            return;
        };
        let Some(&[kind]) = told.option(code::TYPE) else {
            return;
        };
        match (&self.state, kind) {
            (State::Selecting { .. }, OFFER) => {
                let server = told.four(code::SERVER).ok().flatten().map(Ipv4Addr::from);
                if let Some(server) = server.filter(|ip| is_usable(*ip))
                    && is_usable(told.yiaddr)
                {
                    self.request(now, told.yiaddr, server, 0);
                }
            }
            (State::Requesting { .. } | State::Prolonging { .. }, ACK) => {
                if let Some(lease) = lease(now, from, &told) {
                    self.asking_since = None;
                    self.state = State::Bound(lease);
                }
            }
            (State::Requesting { .. } | State::Prolonging { .. }, NAK) => {
                self.state = State::Selecting {
                    asked: 0,
                    again_at: now + AFTER_NAK,
                };
            }
            _ => {}
        }
    }

    /// Whom it came from, and what it says, if it answers what was asked last.
    fn for_us(&self, frame: &[u8]) -> Option<(MacAddr, Message)> {
        let ethernet = Ethernet::parse(frame).filter(|e| e.ethertype == wire::IPV4)?;
        let udp = Udp::of_ipv4(ethernet.payload)?;
        let message = Message::parse_reply(udp.payload)?;
        let ours = udp.destination_port == CLIENT_PORT
            && message.xid == self.xid
            && message.chaddr == self.identity.mac;
        ours.then_some((ethernet.source, message))
    }

    /// A new transaction.
    fn begin(&mut self, now: Instant) {
        self.asking_since.get_or_insert(now);
        self.xid = self.next_random().to_be_bytes();
    }

    fn discover(&mut self, now: Instant, asked: u32) {
        self.begin(now);
        let again_at = self.again(now, asked);
        self.state = State::Selecting {
            asked: asked.saturating_add(1),
            again_at,
        };
        self.send_to_all(now, DISCOVER, None, &[]);
    }

    fn request(&mut self, now: Instant, address: Ipv4Addr, server: Ipv4Addr, asked: u32) {
        let again_at = self.again(now, asked);
        self.state = State::Requesting {
            address,
            server,
            asked: asked + 1,
            again_at,
        };
        let chosen = [
            (code::REQUESTED, address.octets().to_vec()),
            (code::SERVER, server.octets().to_vec()),
        ];
        self.send_to_all(now, REQUEST, None, &chosen);
    }

    /// Asks for the address to stay, or gives it up.
    fn prolong(&mut self, now: Instant, lease: OuterLease) {
        if lease.ends_at <= now {
            return self.discover(now, 0);
        }
        let address = lease.address.addr();
        let next = match now < lease.rebind_at {
            true => {
                let to = (lease.server_mac, lease.server);
                self.send(now, REQUEST, Some(address), to, &[]);
                lease.rebind_at
            }
            false => {
                self.send_to_all(now, REQUEST, Some(address), &[]);
                lease.ends_at
            }
        };
        let left = next.saturating_duration_since(now);
        let again_at = (now + (left / 2).max(PROLONG_LEAST)).min(next);
        self.state = State::Prolonging { lease, again_at };
    }

    fn again(&mut self, now: Instant, asked: u32) -> Instant {
        let wait = (AGAIN_FIRST * 2_u32.saturating_pow(asked.min(16))).min(AGAIN_MOST);
        // Not all of a network at the same moment (RFC 2131 §4.1).
        now + wait + Duration::from_millis((self.next_random() % 500).into())
    }

    fn send_to_all(
        &mut self,
        now: Instant,
        kind: u8,
        own: Option<Ipv4Addr>,
        more: &[(u8, Vec<u8>)],
    ) {
        self.send(
            now,
            kind,
            own,
            (MacAddr([0xff; 6]), Ipv4Addr::BROADCAST),
            more,
        );
    }

    fn send(
        &mut self,
        now: Instant,
        kind: u8,
        own: Option<Ipv4Addr>,
        (to_mac, to): (MacAddr, Ipv4Addr),
        more: &[(u8, Vec<u8>)],
    ) {
        let own = own.unwrap_or(Ipv4Addr::UNSPECIFIED);
        let mut options = vec![
            (code::TYPE, vec![kind]),
            (code::CLIENT, self.identity.id.clone()),
        ];
        options.extend_from_slice(more);
        options.push((code::MOST_BYTES, MOST_BYTES.to_be_bytes().to_vec()));
        options.push((code::PARAMETERS, WANTED.to_vec()));
        let since = self.asking_since.unwrap_or(now);
        let secs = now.saturating_duration_since(since).as_secs();
        let secs = u16::try_from(secs).unwrap_or(u16::MAX);
        let message = message::request(self.xid, secs, own, self.identity.mac, &options);
        let mut frame = wire::ethernet(to_mac, self.identity.mac, wire::IPV4);
        let (from, to) = ((own, CLIENT_PORT), (to, SERVER_PORT));
        frame.extend(wire::udp_over_ipv4(from, to, &message));
        self.to_send = Some(frame);
    }

    /// Marsaglia's xorshift: to differ from others, not to be guessed by nobody.
    fn next_random(&mut self) -> u32 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 17;
        self.random ^= self.random << 5;
        self.random
    }
}

/// What a confirmation gives; none if it is not sound.
fn lease(now: Instant, from: MacAddr, told: &Message) -> Option<OuterLease> {
    let four = |code| told.four(code).ok().flatten();
    let secs = |code| four(code).map(u32::from_be_bytes);
    let address = told.yiaddr;
    let mask = four(code::NETMASK).map(Ipv4Addr::from)?;
    let address = Ipv4Net::with_netmask(address, mask).ok()?;
    let server = four(code::SERVER).map(Ipv4Addr::from)?;
    let length = secs(code::LEASE_TIME)?.min(MOST_LEASE_SECS);
    if length < LEAST_LEASE_SECS || !is_usable(address.addr()) || !is_usable(server) {
        return None;
    }
    let usual = (length / 2, length - length / 8);
    let (renew, rebind) = match (secs(code::RENEWAL), secs(code::REBINDING)) {
        (Some(renew), Some(rebind)) if renew < rebind && rebind < length => (renew, rebind),
        (Some(renew), _) if renew < usual.1 => (renew, usual.1),
        _ => usual,
    };
    let after = |secs: u32| now + Duration::from_secs(secs.max(1).into());
    Some(OuterLease {
        address,
        gateway: gateway(told).filter(|ip| is_usable(*ip) && *ip != address.addr()),
        server,
        server_mac: from,
        renew_at: after(renew),
        rebind_at: after(rebind),
        ends_at: after(length),
    })
}

/// Where routes are told one by one, they are all that there are (RFC 3442).
fn gateway(told: &Message) -> Option<Ipv4Addr> {
    match told.option(code::ROUTES) {
        Some(routes) => default_of(routes),
        None => {
            let routers = told.option(code::ROUTERS)?;
            Some(Ipv4Addr::from(*routers.first_chunk::<4>()?))
        }
    }
}

/// `| prefix length 1 | as many bytes of the prefix as it has | router 4 |`, again and again.
fn default_of(routes: &[u8]) -> Option<Ipv4Addr> {
    let mut reader = Reader(routes);
    loop {
        let length = reader.u8().filter(|length| *length <= 32)?;
        reader.bytes(usize::from(length.div_ceil(8)))?;
        let router = reader.ipv4()?;
        if length == 0 {
            return Some(router);
        }
    }
}

fn is_usable(ip: Ipv4Addr) -> bool {
    !(ip.is_unspecified() || ip.is_multicast() || ip.is_broadcast() || ip.is_loopback())
}

#[cfg(test)]
mod tests;
