//! What a speaker is told: who it is, whom it talks to, how patient it is.

use crate::{DuplicatePolicy, MacLimit};
use model::Asn;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

/// A peer's address on the underlay. One peer has one session, whoever opened the connection.
pub type PeerId = IpAddr;

/// Who this speaker is. Fixed for its life; a change of any of these is a new speaker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// BGP identifier: unique in the fabric, not zero (RFC 6286 §2.1).
    pub router_id: Ipv4Addr,
    /// The fabric's AS. Every session is iBGP.
    pub asn: Asn,
    /// What it does.
    pub role: Role,
    /// Reflection cluster (RFC 4456 §7); the router id if none is given. Reflectors that serve the
    /// same clients have different ones, so that each keeps the other's copy of a route.
    pub cluster_id: Option<Ipv4Addr>,
    /// The F bit (RFC 4724 §3): the kernel rows of an earlier speaker are still in place. False
    /// after a boot, when peers do better to forget what they had from this host.
    pub forwarding_preserved: bool,
    /// How patient it is.
    pub timing: Timing,
    /// What it puts up with.
    pub policy: Policy,
    /// Spreads connection attempts of speakers that start together.
    pub seed: u64,
}

/// What a speaker does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Announces what is behind this host and learns what is behind others. Sends its End-of-RIB
    /// only after the first [`crate::Speaker::set_local`], which therefore must be complete.
    Vtep,
    /// Reflects between its clients and has no routes of its own.
    Reflector,
    /// Both in one process.
    Both,
}

impl Role {
    /// True if it has routes of its own.
    pub fn is_vtep(self) -> bool {
        matches!(self, Self::Vtep | Self::Both)
    }

    /// True if it passes routes on.
    pub fn is_reflector(self) -> bool {
        matches!(self, Self::Reflector | Self::Both)
    }
}

/// How patient a speaker is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// Offered hold time, whole seconds, at least 3 (RFC 4271 §4.2); keepalives go at a third of
    /// what is agreed.
    pub hold_time: Duration,
    /// How long a peer may take nothing off a connection before it is dropped (RFC 9687). That
    /// one suggests eight minutes, with hold times of 90 s in mind.
    pub send_hold_time: Duration,
    /// What peers are told to wait for this speaker after its session drops, at most 4095 s
    /// (RFC 4724 §3).
    pub restart_time: Duration,
    /// The least time for which a dropped reflector's routes are kept, if it announced less or no
    /// graceful restart at all: that a reflector is gone says nothing about the VTEPs behind it.
    /// Also the longest for which a VTEP keeps those of a reflector that is no longer configured
    /// while none that remains has taken over.
    pub reflector_retain: Duration,
    /// What peers are asked to keep this speaker's routes for after that, as a last resort (RFC 9494
    /// §3, long-lived stale time), at most 2^24 - 1 s. Zero: not at all. On a reflector it decides
    /// for how long VTEPs forward without any; on a VTEP for how long a dead host stays on others'
    /// flood lists.
    pub long_lived: Duration,
    /// The most of it that is granted to peers that ask (RFC 9494 §4.2).
    pub long_lived_max: Duration,
    /// The least time for which a client's routes are kept after its connection broke without a
    /// word, if it announced less or no graceful restart (FRR has none for EVPN before 10.6): its
    /// process died, and will be back before this is over. Frames to a host that is gone itself
    /// are lost either way.
    pub client_retain: Duration,
    /// For how long a VTEP keeps, as a last resort, what a reflector without graceful restart for EVPN
    /// took back: it does so at once when a VTEP's process dies, which will be back and say it
    /// again. Zero: not at all.
    pub withdraw_hold: Duration,
    /// For how long it keeps them if all of a VTEP's routes in a broadcast domain went and the VTEP is a
    /// member there ([`crate::Speaker::set_members`]): so long its process may take to be back. As long at
    /// most a speaker that starts waits for members before what it has is complete. No longer than
    /// `withdraw_hold`: members are as anybody.
    pub member_hold: Duration,
    /// How long a VTEP keeps a removed reflector's routes after those that remain told everything:
    /// other VTEPs come to a new reflector at about the same time, and it has their routes only
    /// then.
    pub handover: Duration,
    /// How long after the session is back stale routes may wait for End-of-RIB.
    pub stale_time: Duration,
    /// How long after its start a speaker waits for End-of-RIB of its peers before it calls what
    /// it has complete (RFC 4724 §4.1, selection deferral).
    pub deferral: Duration,
    /// From a peer that negotiated no graceful restart for EVPN no End-of-RIB need come: silence
    /// this long after an UPDATE stands for it.
    pub quiet: Duration,
    /// First wait between connection attempts; doubles with each failure.
    pub retry_min: Duration,
    /// Longest wait between connection attempts.
    pub retry_max: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            // RFC 4271 §10 suggests 90 s. A dead host's rows must not outlive it by that much.
            hold_time: Duration::from_secs(9),
            send_hold_time: Duration::from_secs(60),
            restart_time: Duration::from_secs(120),
            reflector_retain: Duration::from_secs(120),
            long_lived: Duration::ZERO,
            long_lived_max: Duration::from_secs(7 * 24 * 3600),
            client_retain: Duration::from_secs(15),
            // An agent that is started at once is back within half of it, and what has really gone
            // is to be gone within a second.
            withdraw_hold: Duration::from_millis(500),
            // As long as our reflectors keep a client's: a bgpd is back within two seconds, one that
            // lost its zebra again as it started needs ten more.
            member_hold: Duration::from_secs(15),
            // Agents come back to a server, and speakers to a reflector, within 5 s each.
            handover: Duration::from_secs(10),
            stale_time: Duration::from_secs(360),
            deferral: Duration::from_secs(60),
            quiet: Duration::from_secs(5),
            retry_min: Duration::from_millis(250),
            retry_max: Duration::from_secs(5),
        }
    }
}

/// What a speaker puts up with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Policy {
    /// MACs and addresses that move too often.
    pub duplicate: DuplicatePolicy,
    /// The most remote MACs in an instance; none: any number.
    pub mac_limit: Option<MacLimit>,
}

/// One peer, as configured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerConfig {
    /// What the peer is to us.
    pub role: PeerRole,
    /// Who opens the connection.
    pub connect: ConnectMode,
    /// How many routes it may have here; none: as many as it likes.
    pub max_routes: Option<MaxRoutes>,
    /// Which routes it may announce. A change holds for what comes from then on.
    pub announces: Announces,
}

/// Which routes a client may announce.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Announces {
    /// Any: it reflects others' itself, or is trusted with them.
    Any,
    /// Those of the VTEP at its address alone. Next hop, tunnel endpoint and originating router are
    /// that address; the distinguisher is of type 1 and made of this router id (RFC 7432 §7.9). So
    /// nobody replaces another's route by one with the same key and better attributes.
    Own {
        /// The host's, as it was enrolled; not what its OPEN says.
        router_id: Ipv4Addr,
    },
}

/// The BGP identifier of a host: its IPv4 address, or for IPv6 the low 32 bits of it, which a
/// fabric numbers apart.
pub fn router_id_of(address: IpAddr) -> Ipv4Addr {
    match address {
        IpAddr::V4(v4) => v4,
        IpAddr::V6(v6) => {
            let [.., a, b, c, d] = v6.octets();
            Ipv4Addr::new(a, b, c, d)
        }
    }
}

/// How many routes a peer may have here. A limit is for hosts gone wild, not for planning: one that
/// is reached costs tenants their connectivity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MaxRoutes {
    /// So many.
    pub limit: u32,
    /// Someone is told at this share of it, in percent.
    pub warn_percent: u8,
    /// What happens to more.
    pub then: OverLimit,
}

impl MaxRoutes {
    /// A limit that is told of at four fifths, and beyond which routes are not taken.
    pub const fn new(limit: u32) -> Self {
        Self {
            limit,
            warn_percent: 80,
            then: OverLimit::Ignore,
        }
    }

    pub(crate) fn warns_at(&self, held: usize) -> bool {
        held as u64 * 100 >= u64::from(self.limit) * u64::from(self.warn_percent)
    }
}

/// What happens to routes beyond the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OverLimit {
    /// New routes are not taken; those held can change. When the peer has withdrawn enough it is
    /// asked to tell everything again.
    Ignore,
    /// The session ends with Cease, Maximum Number of Prefixes Reached (RFC 4486), and there is none
    /// with the peer for so long.
    Cease {
        /// How long.
        restart: Duration,
    },
}

impl PeerConfig {
    /// A reflector that we connect to.
    pub const REFLECTOR: Self = Self {
        role: PeerRole::Reflector,
        connect: ConnectMode::Active,
        max_routes: None,
        announces: Announces::Any,
    };
    /// A client that connects to us.
    pub const CLIENT: Self = Self {
        role: PeerRole::Client,
        connect: ConnectMode::Passive,
        max_routes: None,
        announces: Announces::Any,
    };
}

/// What a peer is to us in terms of RFC 4456 §5.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PeerRole {
    /// A non-client: it reflects to us, or is another reflector beside us.
    Reflector,
    /// A client of ours: what it announces goes to all others, and all goes to it.
    Client,
}

/// Who opens the connection to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectMode {
    /// We do; the peer may as well (RFC 4271 §6.8 settles it).
    Active,
    /// Only the peer does.
    Passive,
}
