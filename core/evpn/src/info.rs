//! What a person may ask a speaker.

use crate::{Advice, MessageCounts, PeerId, PeerRole, Rd, RouteTarget};
use model::MacAddr;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

/// One path to one route.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct RouteInfo {
    /// The route, in text: `[2]:[tag]:[48]:[mac]:[bits]:[address]` and the like.
    pub route: String,
    /// Its distinguisher; none for types we do not read.
    pub rd: Option<Rd>,
    /// Its route targets.
    pub targets: Vec<RouteTarget>,
    /// MAC mobility sequence (RFC 7432 §7.7); 0 without the community.
    pub sequence: u32,
    /// The static bit.
    pub sticky: bool,
    /// The first label: the VNI.
    pub label: Option<u32>,
    /// The second label: the VNI that the address of a Type-2 route is routed over.
    pub routed: Option<u32>,
    /// The VTEP.
    pub next_hop: IpAddr,
    /// The router there, of a route that names one.
    pub router_mac: Option<MacAddr>,
    /// Whom it was learned from; none for our own.
    pub from: Option<PeerId>,
    /// Whether it is the one in use.
    pub best: bool,
    /// If it is not, what decided against it.
    pub lost_by: Option<&'static str>,
    /// True if its peer's session is down and it is kept for its return, or its peer is no longer
    /// configured and it is kept until others have taken over.
    pub stale: bool,
    /// True if it is the last resort: stale beyond the restart time here, or at the peer that told
    /// of it (RFC 9494 §4.3, LLGR_STALE).
    pub long_lived_stale: bool,
    /// Time since it was learned or last changed.
    pub age: Duration,
}

/// One peer.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct PeerInfo {
    /// Its address.
    pub peer: PeerId,
    /// What it is to us.
    pub role: PeerRole,
    /// State of its session.
    pub state: SessionState,
    /// Time in that state.
    pub since: Duration,
    /// Its BGP identifier, once it told.
    pub router_id: Option<Ipv4Addr>,
    /// Its AS, once it told.
    pub asn: Option<u32>,
    /// Agreed hold time.
    pub hold_time: Option<Duration>,
    /// Paths held from it, stale ones included.
    pub routes: usize,
    /// How many of them are stale.
    pub stale: usize,
    /// True once its End-of-RIB came on the present session.
    pub synced: bool,
    /// Counters over the peer's life.
    pub counters: PeerCounters,
    /// Why the last session ended, or the last attempt failed.
    pub last_error: Option<String>,
    /// What is wrong and what to do about it; none if all is well.
    pub advice: Option<Advice>,
}

/// State of a peer's session (RFC 4271 §8.2.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum SessionState {
    /// Waiting: for the retry timer, or for the peer to connect.
    Idle,
    /// A TCP connection is being made.
    Connect,
    /// OPEN sent.
    OpenSent,
    /// OPEN received.
    OpenConfirm,
    /// Routes flow.
    Established,
}

impl SessionState {
    /// Every state.
    pub const ALL: [Self; 5] = [
        Self::Idle,
        Self::Connect,
        Self::OpenSent,
        Self::OpenConfirm,
        Self::Established,
    ];

    /// Its name in one word, in lower case.
    pub fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Connect => "connect",
            Self::OpenSent => "opensent",
            Self::OpenConfirm => "openconfirm",
            Self::Established => "established",
        }
    }
}

/// What went to and came from a peer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct PeerCounters {
    /// Sessions that reached Established.
    pub sessions: u64,
    /// Messages received.
    pub messages_in: u64,
    /// Messages sent.
    pub messages_out: u64,
    /// Messages received, by type.
    pub received: MessageCounts,
    /// Messages sent, by type.
    pub sent: MessageCounts,
    /// UPDATEs received.
    pub updates_in: u64,
    /// UPDATEs sent.
    pub updates_out: u64,
    /// UPDATEs with a malformed attribute: their routes were withdrawn (RFC 7606).
    pub treated_as_withdraw: u64,
    /// Malformed attributes dropped (RFC 7606).
    pub attributes_discarded: u64,
    /// Malformed routes dropped.
    pub routes_discarded: u64,
    /// Routes not taken because the peer had as many as it may.
    pub routes_refused: u64,
    /// Routes not taken because they are another host's ([`crate::Announces::Own`]).
    pub routes_foreign: u64,
    /// Routes dropped because they came round in a circle (RFC 4456 §8).
    pub loops: u64,
}
