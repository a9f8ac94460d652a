//! DHCPv4, DHCPv6 and router advertisements for NICs whose addresses are planned: a frame and what
//! is known of its port in, a frame out. No sockets, clock, RNG or tasks, and no leases: the planner
//! gave the address, so each answer follows from the question and the port alone, on any host and
//! after any restart.
//!
//! And a DHCPv4 [`Client`], for routers whose address outside is somebody else's to give.

mod arp;
mod facts;
mod ra;
#[cfg(test)]
mod tests_common;
mod v4;
mod v6;
mod wire;

pub use facts::{Facts, V4, V6, lone_server};
pub use ra::{ADVERTISE_SECS, advertisement};
pub use v4::{Client, Identity, LEASE_SECS, OuterLease, REBIND_SECS, RENEW_SECS};

use std::net::IpAddr;

/// What became of a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// What it was.
    pub event: Event,
    /// The frame to send out of the port.
    pub reply: Option<Vec<u8>>,
}

/// What a frame was to the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Event {
    /// A client looks for servers, and was offered its address.
    Offered,
    /// A client takes or prolongs its address for so many seconds.
    Leased(IpAddr, u32),
    /// A client wants another address, and was told so.
    Refused,
    /// DHCPv6: a client asked whether it may go on with the address that it has.
    Confirmed,
    /// A client looks for routers.
    Advertised,
    /// A client has its address from elsewhere and was told the rest.
    Informed,
    /// A client found its address in use by somebody else.
    Declined(IpAddr),
    /// A client gave its address back. It remains planned for it.
    Released(IpAddr),
    /// A client chose another server.
    OtherServer,
    /// The server's own address was asked for, to send a renewal to.
    Resolved,
    /// Nothing to answer.
    Dropped(Reason),
}

/// Why a frame has no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// It is shorter than it says, or says what cannot be.
    Malformed,
    /// A message that only servers send, or that is not known.
    NotARequest,
    /// It asks for a machine other than the port's NIC.
    NotThisNic,
    /// A relay's, whose address is not the NIC's.
    BadRelay,
    /// The NIC has no address of this family.
    NoAddress,
}

impl Event {
    /// A stable word for it.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Offered => "offered",
            Self::Leased(..) => "leased",
            Self::Refused => "refused",
            Self::Confirmed => "confirmed",
            Self::Advertised => "advertised",
            Self::Informed => "informed",
            Self::Declined(_) => "declined",
            Self::Released(_) => "released",
            Self::OtherServer => "other-server",
            Self::Resolved => "resolved",
            Self::Dropped(Reason::Malformed) => "malformed",
            Self::Dropped(Reason::NotARequest) => "not-a-request",
            Self::Dropped(Reason::NotThisNic) => "not-this-nic",
            Self::Dropped(Reason::BadRelay) => "bad-relay",
            Self::Dropped(Reason::NoAddress) => "no-address",
        }
    }
}

impl Answer {
    const fn silent(event: Event) -> Self {
        Self { event, reply: None }
    }

    const fn dropped(reason: Reason) -> Self {
        Self::silent(Event::Dropped(reason))
    }
}

/// Answers a frame, from its Ethernet header on, that came in by a port.
pub fn answer(facts: &Facts, frame: &[u8]) -> Answer {
    let Some(ethernet) = wire::Ethernet::parse(frame) else {
        return Answer::dropped(Reason::Malformed);
    };
    if ethernet.source != facts.mac {
        return Answer::dropped(Reason::NotThisNic);
    }
    match ethernet.ethertype {
        wire::ARP => arp::answer(facts, ethernet.payload),
        wire::IPV4 => v4::answer(facts, ethernet.payload),
        wire::IPV6 if wire::next_header(ethernet.payload) == Some(wire::ICMPV6) => {
            ra::answer(facts, ethernet.payload)
        }
        wire::IPV6 => v6::answer(facts, ethernet.payload),
        _ => Answer::dropped(Reason::NotARequest),
    }
}
