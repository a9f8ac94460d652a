//! One TCP connection to a peer: framing, the state machine of RFC 4271 §8, its timers.

use crate::history::{Routes, count_routes};
use crate::membership::MEMBERSHIP;
use bytes::{Bytes, BytesMut};
use rustbgpd_fsm as fsm;
use rustbgpd_wire as wire;
use std::collections::VecDeque;
use std::time::{Duration, Instant};
use wire::{Afi, Capability, GracefulRestartFamily, LlgrFamily, Message, OpenMessage, Safi};

/// The family we speak; that of [`crate::membership`] goes with it.
pub(crate) const EVPN: (Afi, Safi) = (Afi::L2Vpn, Safi::Evpn);
/// How long a fresh connection may go without OPEN. RFC 4271 §8.2.2 suggests four minutes, but
/// whoever connects to a listener and says nothing should not keep the place that long.
const OPEN_WAIT: Duration = Duration::from_secs(20);

/// A TCP connection, or an attempt at one. Numbers are never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId(pub(crate) u64);

/// Which end opened the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Ours,
    Theirs,
}

#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) side: Side,
    pub(crate) fsm: fsm::Session,
    /// False while the TCP connection is being made.
    pub(crate) connected: bool,
    /// False while the transport has more to send than it wants.
    pub(crate) writable: bool,
    pub(crate) hold_at: Option<Instant>,
    pub(crate) keepalive_at: Option<Instant>,
    pub(crate) peer_router_id: Option<std::net::Ipv4Addr>,
    /// Since when the transport has had messages and the peer took nothing off it.
    pub(crate) waiting_since: Option<Instant>,
    /// True once a whole message came.
    pub(crate) heard: bool,
    /// Octets of the message that came last.
    pub(crate) message_octets: usize,
    received: BytesMut,
    to_send: VecDeque<Queued>,
    /// Sent when the transport has room; all else before it.
    updates: VecDeque<Updates>,
}

/// UPDATEs in a row, shared by all that are told them.
#[derive(Debug, Clone)]
pub(crate) struct Updates {
    pub(crate) octets: Bytes,
    pub(crate) messages: u64,
    /// What is in them.
    pub(crate) routes: Routes,
}

impl Updates {
    pub(crate) fn join(messages: &[Bytes]) -> Self {
        let mut routes = Routes::default();
        for message in messages {
            let more = count_routes(message);
            routes.announced += more.announced;
            routes.withdrawn += more.withdrawn;
        }
        Self {
            octets: messages.concat().into(),
            messages: messages.len() as u64,
            routes,
        }
    }
}

/// What goes out next on a link.
#[derive(Debug)]
pub(crate) enum Queued {
    Message(Bytes),
    Updates(Updates),
}

/// The part of our OPEN that the state machine's crate does not know about.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Restart {
    /// R bit: this speaker started and has not yet heard from everybody (RFC 4724 §3).
    pub(crate) restarting: bool,
    /// F bit.
    pub(crate) forwarding_preserved: bool,
    /// What the peer is asked to do after the restart time (RFC 9494 §3).
    pub(crate) long_lived: Duration,
}

/// The long-lived stale time has 24 bits (RFC 9494 §3).
const LONG_LIVED_MAX_SECS: u64 = (1 << 24) - 1;

impl Link {
    pub(crate) fn new(side: Side, config: fsm::PeerConfig) -> Self {
        Self {
            side,
            fsm: fsm::Session::new(config),
            connected: side == Side::Theirs,
            writable: true,
            hold_at: None,
            keepalive_at: None,
            peer_router_id: None,
            waiting_since: None,
            heard: false,
            message_octets: 0,
            received: BytesMut::new(),
            to_send: VecDeque::new(),
            updates: VecDeque::new(),
        }
    }

    pub(crate) fn is_established(&self) -> bool {
        self.fsm.state() == fsm::SessionState::Established
    }

    pub(crate) fn receive(&mut self, bytes: &[u8]) {
        self.received.extend_from_slice(bytes);
    }

    /// The next whole message.
    pub(crate) fn next_message(&mut self) -> Result<Option<Message>, wire::DecodeError> {
        let extended = self
            .fsm
            .negotiated()
            .is_some_and(|negotiated| negotiated.peer_extended_message);
        let limit = if extended {
            wire::EXTENDED_MAX_MESSAGE_LEN
        } else {
            wire::MAX_MESSAGE_LEN
        };
        let Some(length) = wire::peek_message_length(&self.received, limit)? else {
            return Ok(None);
        };
        if self.received.len() < usize::from(length) {
            return Ok(None);
        }
        self.heard = true;
        self.message_octets = usize::from(length);
        let mut message = self.received.split_to(usize::from(length)).freeze();
        wire::decode_message(&mut message, limit).map(Some)
    }

    pub(crate) fn send(&mut self, message: &Message) {
        // Fails only for messages that are too long, which the fixed ones are not.
        if let Ok(bytes) = wire::encode_message(message) {
            self.to_send.push_back(Queued::Message(bytes.freeze()));
        }
    }

    pub(crate) fn send_open(&mut self, mut open: OpenMessage, restart: Restart) {
        for capability in &mut open.capabilities {
            if let Capability::GracefulRestart {
                restart_state,
                families,
                ..
            } = capability
            {
                *restart_state = restart.restarting;
                *families = vec![GracefulRestartFamily {
                    afi: EVPN.0,
                    safi: EVPN.1,
                    forwarding_preserved: restart.forwarding_preserved,
                }];
            }
        }
        // Told also with a time of zero: it says that we know what LLGR_STALE means.
        let secs = restart.long_lived.as_secs().min(LONG_LIVED_MAX_SECS);
        open.capabilities
            .push(Capability::LongLivedGracefulRestart(vec![LlgrFamily {
                afi: EVPN.0,
                safi: EVPN.1,
                forwarding_preserved: restart.forwarding_preserved,
                stale_time: u32::try_from(secs).expect("it has 24 bits"),
            }]));
        self.send(&Message::Open(open));
    }

    pub(crate) fn send_raw(&mut self, message: Bytes) {
        self.to_send.push_back(Queued::Message(message));
    }

    pub(crate) fn send_updates(&mut self, updates: Updates) {
        self.updates.push_back(updates);
    }

    /// What can go out now and is next.
    pub(crate) fn take_queued(&mut self) -> Option<Queued> {
        let room = self.connected && self.writable;
        let first = self.to_send.pop_front();
        first.or_else(|| {
            let updates = room.then(|| self.updates.pop_front())?;
            updates.map(Queued::Updates)
        })
    }

    /// Has UPDATEs sent whether there is room or not, before whatever comes next.
    pub(crate) fn hurry(&mut self) {
        let updates = self.updates.drain(..);
        self.to_send.extend(updates.map(Queued::Updates));
    }

    pub(crate) fn has_queued(&self) -> bool {
        let room = self.connected && self.writable;
        !self.to_send.is_empty() || room && !self.updates.is_empty()
    }

    pub(crate) fn start_timer(&mut self, now: Instant, timer: fsm::TimerType, secs: u32) {
        let after = Duration::from_secs(u64::from(secs));
        match timer {
            fsm::TimerType::Hold => {
                let waiting = self.fsm.state() == fsm::SessionState::OpenSent;
                let after = if waiting { after.min(OPEN_WAIT) } else { after };
                self.hold_at = Some(now + after);
            }
            fsm::TimerType::Keepalive => self.keepalive_at = Some(now + after),
            _ => {}
        }
    }

    pub(crate) fn stop_timer(&mut self, timer: fsm::TimerType) {
        match timer {
            fsm::TimerType::Hold => self.hold_at = None,
            fsm::TimerType::Keepalive => self.keepalive_at = None,
            _ => {}
        }
    }
}

/// What the state machine is told about a session.
pub(crate) fn session_config(config: &crate::Config) -> fsm::PeerConfig {
    let asn = config.asn.get();
    let mut session = fsm::PeerConfig::new(asn, asn, config.router_id);
    let secs = |time: Duration| u16::try_from(time.as_secs()).unwrap_or(u16::MAX);
    session.hold_time = secs(config.timing.hold_time).max(3);
    session.families = vec![EVPN, MEMBERSHIP];
    session.required_families = vec![EVPN];
    session.disable_ipv4_unicast = true;
    session.graceful_restart = true;
    session.gr_restart_time = secs(config.timing.restart_time).min(4095);
    session
}
