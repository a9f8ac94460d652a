//! A peer: its connections, its session, and what is owed to it.

use crate::advice::Trouble;
use crate::codec::RouteKey;
use crate::foreign::ForeignRoutes;
use crate::group::{GroupId, Owed, Terms};
use crate::history::History;
use crate::link::{ConnId, Link, Queued, Side};
use crate::membership::Membership;
use crate::rib::Source;
use crate::taken_back::TakenBack;
use crate::{PeerConfig, PeerCounters, PeerRole, SessionState, Timing};
use bytes::Bytes;
use rustbgpd_fsm as fsm;
use rustbgpd_wire as wire;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) config: PeerConfig,
    /// At most one established, one of ours under way, one of theirs under way.
    pub(crate) links: BTreeMap<ConnId, Link>,
    pub(crate) session: Option<Session>,
    /// No longer configured: the session stays, unseen, until others took over, or until then.
    pub(crate) retiring: Option<Instant>,
    /// Routes that it took back and that are kept as a last resort.
    pub(crate) taken_back: TakenBack,
    /// When to try to connect next.
    pub(crate) retry_at: Option<Instant>,
    pub(crate) failures: u32,
    /// When to give up on the stale routes.
    pub(crate) stale_until: Option<Instant>,
    /// The stale routes are past the restart time (RFC 9494 §4.2).
    pub(crate) long_lived: bool,
    /// What the peer said on its last session about dropping out.
    pub(crate) graceful: Graceful,
    /// What it wanted on its last session.
    pub(crate) wanted_last: BTreeSet<wire::rtc::RtcNlri>,
    pub(crate) router_id: Option<Ipv4Addr>,
    pub(crate) asn: Option<u32>,
    pub(crate) since: Instant,
    pub(crate) counters: PeerCounters,
    pub(crate) history: History,
    pub(crate) last_error: Option<String>,
    pub(crate) trouble: Option<Trouble>,
    pub(crate) limit: LimitState,
    /// What it announces of others' on the present session.
    pub(crate) foreign: ForeignRoutes,
    /// No session before: the peer announced too much.
    pub(crate) held_off_until: Option<Instant>,
}

/// How many routes a peer has, measured by its limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LimitState {
    Under,
    Warned,
    /// Routes were refused.
    Over,
}

/// An established session.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) conn: ConnId,
    pub(crate) router_id: Ipv4Addr,
    pub(crate) up_since: Instant,
    pub(crate) four_octet_as: bool,
    pub(crate) extended_messages: bool,
    pub(crate) refresh: bool,
    pub(crate) enhanced_refresh: bool,
    /// The peer knows LLGR_STALE (RFC 9494 §4.4).
    pub(crate) long_lived: bool,
    pub(crate) hold_time: Duration,
    /// The peer's R bit.
    pub(crate) peer_restarting: bool,
    /// When End-of-RIB came, or silence stood for it.
    pub(crate) synced_at: Option<Instant>,
    /// Silence until then stands for End-of-RIB.
    pub(crate) quiet_at: Option<Instant>,
    /// It was asked again what it has, as it may have said that this was all before it knew what is
    /// wanted.
    pub(crate) asked_again: bool,
    /// Wishes for routes, if both sides do route target constraint.
    pub(crate) membership: Option<Membership>,
    pub(crate) out: Out,
}

/// What is owed to an established peer.
#[derive(Debug)]
pub(crate) struct Out {
    /// The group that it is in: what the group is owed is all that it is owed.
    pub(crate) group: Option<GroupId>,
    pub(crate) dump: Dump,
    /// News for a peer that is in no group.
    pub(crate) owed: Owed,
    pub(crate) end_of_rib: bool,
    /// The dump answers an enhanced route refresh: EoRR is owed (RFC 7313 §4).
    pub(crate) refresh_end: bool,
}

/// How far the walk over all routes has come.
#[derive(Debug)]
pub(crate) enum Dump {
    /// The last key sent. On the first walk, routes beyond it need no withdrawal.
    After {
        key: Option<RouteKey>,
        first: bool,
    },
    Done,
}

impl Out {
    pub(crate) fn new() -> Self {
        Self {
            group: None,
            dump: Dump::After {
                key: None,
                first: true,
            },
            owed: Owed::default(),
            end_of_rib: false,
            refresh_end: false,
        }
    }

    /// Takes note of a change, unless the walk over all routes will come to it.
    pub(crate) fn note(&mut self, source: Source, key: &RouteKey) {
        let ahead = match &self.dump {
            Dump::After {
                key: at,
                first: true,
            } => at.as_ref().is_none_or(|at| key > at),
            _ => false,
        };
        if !ahead {
            self.owed.note(source, key);
        }
    }
}

/// What a peer said about graceful restart (RFC 4724 §3, RFC 8538 §2).
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Graceful {
    /// It keeps its EVPN forwarding over a restart: the time it asks for.
    pub(crate) restart_time: Option<Duration>,
    /// How long its routes are kept after that (RFC 9494 §4.2); zero if it did not ask.
    pub(crate) long_lived: Duration,
    /// Both sides treat NOTIFICATIONs other than Hard Reset as a restart.
    pub(crate) notifications: bool,
    /// It offers to receive additional paths for EVPN (RFC 7911), which only FRR does. FRR says that it
    /// restarts gracefully for each family that a peer has, and before 10.6 does nothing for others'
    /// restarts where the family is EVPN.
    pub(crate) is_frr: bool,
}

/// Why a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Down {
    /// The connection broke, or a new one took its place.
    Transport,
    /// Nothing was heard for the hold time.
    HoldExpired,
    /// The peer ended it.
    Told { hard_reset: bool },
    /// We ended it over what the peer sent.
    PeerError,
}

impl Peer {
    pub(crate) fn new(now: Instant, config: PeerConfig) -> Self {
        Self {
            config,
            links: BTreeMap::new(),
            session: None,
            retiring: None,
            retry_at: None,
            failures: 0,
            stale_until: None,
            long_lived: false,
            graceful: Graceful::default(),
            wanted_last: BTreeSet::new(),
            router_id: None,
            asn: None,
            since: now,
            counters: PeerCounters::default(),
            history: History::default(),
            last_error: None,
            trouble: None,
            limit: LimitState::Under,
            foreign: ForeignRoutes::default(),
            held_off_until: None,
            taken_back: TakenBack::default(),
        }
    }

    pub(crate) fn state(&self) -> SessionState {
        let state = |link: &Link| match link.fsm.state() {
            fsm::SessionState::Idle if link.connected => SessionState::Idle,
            fsm::SessionState::Idle | fsm::SessionState::Connect | fsm::SessionState::Active => {
                SessionState::Connect
            }
            fsm::SessionState::OpenSent => SessionState::OpenSent,
            fsm::SessionState::OpenConfirm => SessionState::OpenConfirm,
            fsm::SessionState::Established => SessionState::Established,
        };
        let most = self.links.values().map(state).max();
        most.unwrap_or(SessionState::Idle)
    }

    /// A connection of the given side that is not (yet) the session.
    pub(crate) fn pending(&self, side: Side) -> Option<ConnId> {
        let mut links = self.links.iter();
        links
            .find(|(_, link)| link.side == side && !link.is_established())
            .map(|(conn, _)| *conn)
    }

    /// How long the peer's routes outlive its session (RFC 4724 §4.2, RFC 8538 §4); none: they
    /// go with it. A reflector's are kept even if it negotiated nothing, unless it said goodbye,
    /// and a client's for a little while if its connection broke.
    pub(crate) fn retention(&self, down: Down, timing: &Timing) -> Option<Duration> {
        let long_lived = !self.graceful.long_lived.is_zero();
        let asked = self.graceful.restart_time;
        let asked = asked.or(long_lived.then_some(Duration::ZERO));
        let negotiated = match down {
            Down::Transport => asked,
            Down::HoldExpired | Down::PeerError | Down::Told { hard_reset: false } => {
                asked.filter(|_| self.graceful.notifications)
            }
            Down::Told { hard_reset: true } => None,
        };
        let crashed = matches!(down, Down::Transport | Down::HoldExpired | Down::PeerError);
        match self.config.role {
            PeerRole::Reflector if crashed || negotiated.is_some() => {
                Some(negotiated.unwrap_or_default().max(timing.reflector_retain))
            }
            // Its process died; its kernel goes on.
            PeerRole::Client if down == Down::Transport => {
                Some(negotiated.unwrap_or_default().max(timing.client_retain))
            }
            _ => negotiated,
        }
    }

    /// How the peer is to be told routes; none without a session.
    pub(crate) fn terms(&self) -> Option<Terms> {
        let session = self.session.as_ref()?;
        Some(Terms {
            role: self.config.role,
            four_octet_as: session.four_octet_as,
            extended_messages: session.extended_messages,
            long_lived: session.long_lived,
            wants: session.membership.as_ref().map(|m| m.wants().clone()),
        })
    }

    /// True of a reflector that withdraws what a VTEP told it as soon as that one's session drops.
    pub(crate) fn forgets_at_once(&self) -> bool {
        self.config.role == PeerRole::Reflector
            && self.retiring.is_none()
            && (self.graceful.restart_time.is_none() || self.graceful.is_frr)
    }

    /// True if the peer's End-of-RIB came on the present session.
    pub(crate) fn is_synced(&self) -> bool {
        self.synced_at().is_some()
    }

    pub(crate) fn synced_at(&self) -> Option<Instant> {
        self.session.as_ref()?.synced_at
    }

    /// True if the last attempt at a session failed, or the session dropped.
    pub(crate) fn is_unreachable(&self) -> bool {
        self.session.is_none() && self.failures > 0
    }

    /// What goes out next on a connection; it is counted.
    pub(crate) fn take_queued(&mut self, now: Instant, conn: ConnId) -> Option<Bytes> {
        let queued = self.links.get_mut(&conn)?.take_queued()?;
        let (history, counters) = (&mut self.history, &mut self.counters);
        Some(match queued {
            Queued::Message(octets) => {
                history.sent(now, counters, &octets);
                octets
            }
            Queued::Updates(updates) => {
                history.sent_updates(now, counters, &updates);
                updates.octets
            }
        })
    }

    pub(crate) fn next_deadline(&self, send_hold_time: Duration) -> Option<Instant> {
        let links = self.links.values().flat_map(|link| {
            let send_hold_at = link.waiting_since.map(|at| at + send_hold_time);
            [link.hold_at, link.keepalive_at, send_hold_at]
        });
        let quiet = self.session.as_ref().and_then(|session| session.quiet_at);
        let membership = self.session.as_ref().and_then(|s| s.membership.as_ref());
        let wishes = membership.filter(|m| !m.ended).map(|m| m.wait_until);
        links
            .chain(wishes.map(Some))
            .chain([self.retry_at, self.stale_until, quiet])
            .chain([self.taken_back.next_due()])
            .flatten()
            .min()
    }
}
