//! What was said to and by a peer, for people: counts, and the last noteworthy messages.

use crate::PeerCounters;
use crate::link::EVPN;
use crate::link::Updates;
use crate::membership::MEMBERSHIP;
use rustbgpd_wire as wire;
use std::collections::VecDeque;
use std::fmt::Write as _;
use std::time::{Duration, Instant};
use wire::{Capability, Message, NotificationCode, NotificationMessage, OpenMessage};

/// Noteworthy messages kept of a peer.
const NOTABLE_MAX: usize = 64;
/// Sums of plain UPDATEs kept beside them, so that a busy peer does not push out its OPEN.
const UPDATES_MAX: usize = 32;
/// UPDATEs in one direction within so much time are one entry.
const UPDATES_TOGETHER: Duration = Duration::from_secs(1);
/// Malformed parts of one UPDATE that are named.
const FAULTS_NAMED_MAX: usize = 6;

/// One entry of a peer's history: a message, or UPDATEs that came close together.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct HistoryEntry {
    /// Time since.
    pub age: Duration,
    /// Who said it.
    pub direction: Direction,
    /// What kind of message it was.
    pub kind: MessageKind,
    /// How many messages.
    pub messages: u64,
    /// Their octets, headers included.
    pub octets: u64,
    /// What they said.
    pub summary: String,
}

/// Who said something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// The peer.
    Received,
    /// We.
    Sent,
}

/// Message types (RFC 4271 §4.1, RFC 2918 §3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum MessageKind {
    /// Who one is and what one can do.
    Open,
    /// Routes.
    Update,
    /// The end of a session, and why.
    Notification,
    /// Still there. Counted, but not kept.
    Keepalive,
    /// Tell everything again.
    RouteRefresh,
}

/// Messages by type.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct MessageCounts {
    /// OPEN.
    pub opens: u64,
    /// UPDATE.
    pub updates: u64,
    /// NOTIFICATION.
    pub notifications: u64,
    /// KEEPALIVE.
    pub keepalives: u64,
    /// ROUTE-REFRESH.
    pub refreshes: u64,
}

impl MessageCounts {
    fn count(&mut self, kind: MessageKind) {
        *match kind {
            MessageKind::Open => &mut self.opens,
            MessageKind::Update => &mut self.updates,
            MessageKind::Notification => &mut self.notifications,
            MessageKind::Keepalive => &mut self.keepalives,
            MessageKind::RouteRefresh => &mut self.refreshes,
        } += 1;
    }
}

/// What an UPDATE brought.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Routes {
    pub(crate) announced: u64,
    pub(crate) withdrawn: u64,
}

#[derive(Debug, Default)]
pub(crate) struct History {
    notable: VecDeque<Note>,
    updates: VecDeque<Note>,
}

#[derive(Debug)]
struct Note {
    at: Instant,
    direction: Direction,
    kind: MessageKind,
    messages: u64,
    octets: u64,
    routes: Routes,
    text: Option<Box<str>>,
}

impl History {
    /// Counts a message that came, and keeps it if it is noteworthy. UPDATEs on a session are told
    /// of by [`Self::note_update`].
    pub(crate) fn received(
        &mut self,
        now: Instant,
        counters: &mut PeerCounters,
        message: &Message,
        octets: usize,
    ) {
        counters.messages_in += 1;
        let Some(kind) = kind_of(message) else {
            return;
        };
        counters.received.count(kind);
        if let Some(text) = summary_of(message) {
            self.keep(now, Direction::Received, kind, octets, Some(text));
        }
    }

    /// The same for one that goes out, as it stands on the wire.
    pub(crate) fn sent(&mut self, now: Instant, counters: &mut PeerCounters, bytes: &[u8]) {
        counters.messages_out += 1;
        let kind = match bytes.get(18) {
            Some(1) => MessageKind::Open,
            Some(2) => MessageKind::Update,
            Some(3) => MessageKind::Notification,
            Some(4) => MessageKind::Keepalive,
            _ => MessageKind::RouteRefresh,
        };
        counters.sent.count(kind);
        match kind {
            MessageKind::Keepalive => {}
            MessageKind::Update => {
                let routes = count_routes(bytes);
                self.note_updates(now, Direction::Sent, 1, bytes.len(), routes);
            }
            _ => {
                let mut copy = bytes::Bytes::copy_from_slice(bytes);
                let message = wire::decode_message(&mut copy, wire::MAX_MESSAGE_LEN).ok();
                let text = message.as_ref().and_then(summary_of);
                self.keep(now, Direction::Sent, kind, bytes.len(), text);
            }
        }
    }

    /// The same for many plain UPDATEs.
    pub(crate) fn sent_updates(
        &mut self,
        now: Instant,
        counters: &mut PeerCounters,
        updates: &Updates,
    ) {
        let Updates {
            octets,
            messages,
            routes,
        } = updates;
        counters.messages_out += messages;
        counters.sent.updates += messages;
        self.note_updates(now, Direction::Sent, *messages, octets.len(), *routes);
    }

    pub(crate) fn note_update(
        &mut self,
        now: Instant,
        direction: Direction,
        octets: usize,
        routes: Routes,
        faults: &[String],
    ) {
        let kind = MessageKind::Update;
        if !faults.is_empty() {
            let named = faults.len().min(FAULTS_NAMED_MAX);
            let mut text = faults[..named].join("; ");
            if faults.len() > named {
                // Writing into a string does not fail.
                write!(text, "; and {} more", faults.len() - named).ok();
            }
            self.keep(now, direction, kind, octets, Some(text.into()));
            let last = self.notable.back_mut().expect("it was just kept");
            last.routes = routes;
            return;
        }
        self.note_updates(now, direction, 1, octets, routes);
    }

    fn note_updates(
        &mut self,
        now: Instant,
        direction: Direction,
        messages: u64,
        octets: usize,
        routes: Routes,
    ) {
        let kind = MessageKind::Update;
        let near = |note: &Note| now.saturating_duration_since(note.at) < UPDATES_TOGETHER;
        let mut last_two = self.updates.iter_mut().rev().take(2);
        let note = match last_two.find(|note| note.direction == direction && near(note)) {
            Some(note) => note,
            None => {
                if self.updates.len() == UPDATES_MAX {
                    self.updates.pop_front();
                }
                self.updates.push_back(Note {
                    at: now,
                    direction,
                    kind,
                    messages: 0,
                    octets: 0,
                    routes: Routes::default(),
                    text: None,
                });
                self.updates.back_mut().expect("it was just put there")
            }
        };
        note.messages += messages;
        note.octets += octets as u64;
        note.routes.announced += routes.announced;
        note.routes.withdrawn += routes.withdrawn;
    }

    fn keep(
        &mut self,
        at: Instant,
        direction: Direction,
        kind: MessageKind,
        octets: usize,
        text: Option<Box<str>>,
    ) {
        if self.notable.len() == NOTABLE_MAX {
            self.notable.pop_front();
        }
        self.notable.push_back(Note {
            at,
            direction,
            kind,
            messages: 1,
            octets: octets as u64,
            routes: Routes::default(),
            text,
        });
    }

    /// What is kept, oldest first.
    pub(crate) fn entries(&self, now: Instant) -> Vec<HistoryEntry> {
        let mut notes: Vec<&Note> = self.notable.iter().chain(&self.updates).collect();
        notes.sort_by_key(|note| note.at);
        let entry = |note: &&Note| HistoryEntry {
            age: now.saturating_duration_since(note.at),
            direction: note.direction,
            kind: note.kind,
            messages: note.messages,
            octets: note.octets,
            summary: note.summary(),
        };
        notes.iter().map(entry).collect()
    }
}

impl Note {
    fn summary(&self) -> String {
        let Routes {
            announced,
            withdrawn,
        } = self.routes;
        let text = self.text.as_deref().unwrap_or_default();
        if self.kind != MessageKind::Update {
            return text.to_owned();
        }
        let mut parts = vec![];
        if announced > 0 {
            parts.push(format!("{announced} announced"));
        }
        if withdrawn > 0 {
            parts.push(format!("{withdrawn} withdrawn"));
        }
        if !text.is_empty() {
            parts.push(text.to_owned());
        } else if parts.is_empty() {
            parts.push("End-of-RIB".to_owned());
        }
        parts.join(", ")
    }
}

fn kind_of(message: &Message) -> Option<MessageKind> {
    match message {
        Message::Open(_) => Some(MessageKind::Open),
        Message::Update(_) => Some(MessageKind::Update),
        Message::Notification(_) => Some(MessageKind::Notification),
        Message::Keepalive => Some(MessageKind::Keepalive),
        Message::RouteRefresh(_) => Some(MessageKind::RouteRefresh),
        _ => None,
    }
}

fn summary_of(message: &Message) -> Option<Box<str>> {
    let text = match message {
        Message::Open(open) => describe_open(open),
        Message::Notification(notification) => describe(notification),
        Message::RouteRefresh(refresh) if (refresh.afi(), refresh.safi()) != pair(EVPN) => {
            "for a family that is not EVPN".to_owned()
        }
        Message::RouteRefresh(refresh) => match refresh.subtype() {
            wire::RouteRefreshSubtype::Normal => "everything again, please".to_owned(),
            wire::RouteRefreshSubtype::BoRR => "BoRR: everything again from here".to_owned(),
            wire::RouteRefreshSubtype::EoRR => "EoRR: that was everything".to_owned(),
            other => format!("subtype {other:?}"),
        },
        _ => return None,
    };
    Some(text.into())
}

fn pair<A, B>((a, b): (A, B)) -> (Option<A>, Option<B>) {
    (Some(a), Some(b))
}

/// The AS of an OPEN: the four octets of the capability, if it has it (RFC 6793 §4.1).
pub(crate) fn asn_of(open: &OpenMessage) -> u32 {
    let wide = open
        .capabilities
        .iter()
        .find_map(|capability| match capability {
            Capability::FourOctetAs { asn } => Some(*asn),
            _ => None,
        });
    wide.unwrap_or(u32::from(open.my_as))
}

fn describe_open(open: &OpenMessage) -> String {
    let mut text = format!(
        "AS {}, router id {}, hold time {} s",
        asn_of(open),
        open.bgp_identifier,
        open.hold_time
    );
    for capability in &open.capabilities {
        let name = match capability {
            Capability::MultiProtocol { afi, safi } if (*afi, *safi) == EVPN => "EVPN".to_owned(),
            Capability::MultiProtocol { afi, safi } if (*afi, *safi) == MEMBERSHIP => {
                "route target constraint".to_owned()
            }
            Capability::MultiProtocol { afi, safi } => format!("{afi:?} {safi:?}"),
            Capability::GracefulRestart {
                restart_state,
                restart_time,
                families,
                ..
            } => {
                let evpn = families.iter().find(|f| (f.afi, f.safi) == EVPN);
                let kept = match evpn {
                    Some(family) if family.forwarding_preserved => ", EVPN kept",
                    Some(_) => ", EVPN not kept",
                    None => ", without EVPN",
                };
                let state = if *restart_state { ", restarting" } else { "" };
                format!("graceful restart {restart_time} s{kept}{state}")
            }
            Capability::LongLivedGracefulRestart(families) => {
                let evpn = families.iter().find(|f| (f.afi, f.safi) == EVPN);
                format!(
                    "long-lived {} s",
                    evpn.map_or(0, |family| family.stale_time)
                )
            }
            Capability::RouteRefresh => "route refresh".to_owned(),
            Capability::EnhancedRouteRefresh => "enhanced route refresh".to_owned(),
            Capability::ExtendedMessage => "extended messages".to_owned(),
            _ => continue,
        };
        // Writing into a string does not fail.
        write!(text, "; {name}").ok();
    }
    text
}

/// A NOTIFICATION in words: what a Hard Reset is about (RFC 8538 §3.1), and what the other side's
/// operator wrote (RFC 9003).
pub(crate) fn describe(notification: &NotificationMessage) -> String {
    let (code, subcode) = (notification.code, notification.subcode);
    let mut text = match wire::notification::description(code, subcode) {
        unknown if unknown.starts_with("Unknown") => {
            format!("code {} subcode {subcode}", code.as_u8())
        }
        known => known.to_owned(),
    };
    if let Some((code, subcode)) = inside(notification) {
        let inner = wire::notification::description(code, subcode);
        // Writing into a string does not fail.
        write!(text, " ({inner})").ok();
    }
    let said = wire::notification::extract_shutdown_communication(notification);
    if let Ok(Some(said)) = said
        && !said.is_empty()
    {
        write!(text, " ({said:?})").ok();
    }
    text
}

/// What a Hard Reset is about.
pub(crate) fn inside(notification: &NotificationMessage) -> Option<(NotificationCode, u8)> {
    let hard = notification.code == NotificationCode::Cease
        && notification.subcode == wire::notification::cease_subcode::HARD_RESET;
    match *notification.data {
        [code, subcode, ..] if hard => Some((NotificationCode::from_u8(code), subcode)),
        _ => None,
    }
}

/// Counts the routes of an UPDATE of ours: its first attribute has them.
pub(crate) fn count_routes(message: &[u8]) -> Routes {
    let mut routes = Routes::default();
    // Header 19, withdrawn length 2, attributes length 2, flags 1, type 1, length 2.
    let (Some(&kind), Some(value)) = (message.get(24), message.get(27..)) else {
        return routes;
    };
    let length = usize::from(u16::from_be_bytes([message[25], message[26]]));
    let value = value.get(..length).unwrap_or_default();
    // Of EVPN: wishes have another form.
    if value.get(..3) != Some(&[0, 25, 70]) {
        return routes;
    }
    let skip = match (kind, value.get(3)) {
        (14, Some(next_hop)) => 5 + usize::from(*next_hop),
        (15, _) => 3,
        _ => return routes,
    };
    let mut left = value.get(skip..).unwrap_or_default();
    let mut count = 0;
    while let Some(length) = left.get(1) {
        count += 1;
        left = left.get(2 + usize::from(*length)..).unwrap_or_default();
    }
    match kind {
        14 => routes.announced = count,
        _ => routes.withdrawn = count,
    }
    routes
}
