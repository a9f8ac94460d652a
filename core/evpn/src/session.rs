//! Sessions: connections come and go, messages are dealt with, graceful restart is kept.

use crate::advice::{Lost, Trouble};
use crate::foreign::ForeignRoutes;
use crate::history::{asn_of, describe};
use crate::link::{ConnId, EVPN, Link, Side};
use crate::membership::{MEMBERSHIP, Membership, remembered};
use crate::peer::{Down, Dump, Graceful, LimitState, Out, Peer, Session};
use crate::rib::Source;
use crate::speaker::{Action, Event, StopKind};
use crate::{ConnectMode, OverLimit, PeerConfig, PeerId, PeerRole, Speaker};
use bytes::Bytes;
use rustbgpd_fsm as fsm;
use rustbgpd_wire as wire;
use std::time::{Duration, Instant};
use wire::notification::cease_subcode;
use wire::{
    Message, NotificationCode, NotificationMessage, OpenMessage, RouteRefreshMessage,
    RouteRefreshSubtype,
};

/// A connection that comes this soon after its peer's session came up is the loser of a
/// collision still under way, not a peer that started over.
const COLLISION_WINDOW: Duration = Duration::from_secs(3);

const REMOVED: &str = "the peer is no longer configured";

impl Speaker {
    /// Feeds a connection's state machine and carries out what it says.
    pub(crate) fn drive(&mut self, now: Instant, conn: ConnId, event: fsm::Event) {
        let Some(id) = self.conns.get(&conn).copied() else {
            return;
        };
        let cause = cause_of(&event);
        let restart = self.restart_flags();
        let Some(link) = self.link_mut(conn) else {
            return;
        };
        let actions = link.fsm.handle_event(event);
        for action in actions {
            match action {
                fsm::Action::SendOpen(open) => self.with_link(conn, |link| {
                    link.send_open(open, restart);
                }),
                fsm::Action::SendKeepalive => {
                    self.with_link(conn, |link| link.send(&Message::Keepalive));
                }
                fsm::Action::SendNotification(notification) => {
                    self.note_sent_notification(id, conn, &notification);
                    self.with_link(conn, |link| link.send(&Message::Notification(notification)));
                }
                fsm::Action::StartTimer(timer, secs) => {
                    self.with_link(conn, |link| link.start_timer(now, timer, secs));
                }
                fsm::Action::StopTimer(timer) => {
                    self.with_link(conn, |link| link.stop_timer(timer));
                }
                fsm::Action::SessionEstablished(agreed) => self.on_up(now, id, conn, &agreed),
                fsm::Action::CloseTcpConnection => self.on_closed_by_us(now, id, conn, cause),
                // Which connection to make when is decided per peer, not per connection; and the
                // end of a session is taken from the close that always goes with it.
                _ => {}
            }
        }
        self.ready.insert(id);
    }

    fn with_link(&mut self, conn: ConnId, f: impl FnOnce(&mut Link)) {
        if let Some(link) = self.link_mut(conn) {
            f(link);
        }
    }

    pub(crate) fn note_trouble(&mut self, id: PeerId, trouble: Trouble, text: String) {
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.last_error = Some(text);
            peer.trouble = Some(trouble);
        }
    }

    fn note_sent_notification(
        &mut self,
        id: PeerId,
        conn: ConnId,
        notification: &NotificationMessage,
    ) {
        let heard = self.link_mut(conn).is_some_and(|link| link.heard);
        let text = format!("sent NOTIFICATION: {}", describe(notification));
        let notification = notification.clone();
        let trouble = Trouble::Sent {
            notification,
            heard,
        };
        self.note_trouble(id, trouble, text);
    }

    pub(crate) fn on_message(&mut self, now: Instant, conn: ConnId, message: Message) {
        let Some(id) = self.conns.get(&conn).copied() else {
            return;
        };
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        let octets = peer.links.get(&conn).map_or(0, |link| link.message_octets);
        peer.history
            .received(now, &mut peer.counters, &message, octets);
        let established = peer.session.as_ref().is_some_and(|s| s.conn == conn);
        match message {
            Message::Open(open) => self.on_open(now, id, conn, open),
            Message::Keepalive => self.drive(now, conn, fsm::Event::KeepaliveReceived),
            Message::Notification(notification) => {
                let text = format!("received NOTIFICATION: {}", describe(&notification));
                self.note_trouble(id, Trouble::Received(notification.clone()), text);
                let event = fsm::Event::NotificationReceived(notification);
                self.drive(now, conn, event);
            }
            Message::Update(update) if established => {
                self.drive(now, conn, fsm::Event::UpdateReceived);
                self.on_update(now, id, conn, &update);
            }
            Message::Update(_) => self.drive(now, conn, fsm::Event::UpdateReceived),
            Message::RouteRefresh(refresh) => {
                let (afi, safi) = EVPN;
                self.drive(now, conn, fsm::Event::RouteRefreshReceived { afi, safi });
                if established {
                    self.on_refresh(now, id, &refresh);
                }
            }
            // The codec reads no other type: an unknown one is an error before it comes here.
            _ => {}
        }
    }

    /// An OPEN may be one of two connections' between the same peers (RFC 4271 §6.8).
    fn on_open(&mut self, now: Instant, id: PeerId, conn: ConnId, open: OpenMessage) {
        let theirs = open.bgp_identifier;
        let ours = self.config.router_id;
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        let Some(link) = peer.links.get_mut(&conn) else {
            return;
        };
        link.peer_router_id = Some(theirs);
        peer.asn = Some(asn_of(&open));
        let side = link.side;
        let other = peer
            .links
            .iter()
            .find(|(c, link)| **c != conn && link.peer_router_id.is_some())
            .map(|(c, link)| (*c, link.is_established()));
        let loser = match (other, &peer.session) {
            (None, _) => None,
            (Some((other, true)), Some(session)) => {
                // RFC 4724 §5: a peer that keeps its state may come back before we notice that
                // it was gone.
                let fresh = now.saturating_duration_since(session.up_since) < COLLISION_WINDOW;
                let keeps = peer
                    .retention(Down::Transport, &self.config.timing)
                    .is_some();
                Some(if keeps && !fresh { other } else { conn })
            }
            (Some((other, _)), _) => {
                let keep_theirs = u32::from(ours) < u32::from(theirs);
                Some(if keep_theirs == (side == Side::Theirs) {
                    other
                } else {
                    conn
                })
            }
        };
        if let Some(loser) = loser {
            self.with_link(loser, |link| {
                link.send(&Message::Notification(NotificationMessage::new(
                    NotificationCode::Cease,
                    cease_subcode::CONNECTION_COLLISION_RESOLUTION,
                    Bytes::new(),
                )));
            });
            self.lose_link(
                now,
                id,
                loser,
                Down::Transport,
                "a newer connection took its place",
            );
        }
        if loser != Some(conn) {
            self.drive(now, conn, fsm::Event::OpenReceived(open));
        }
    }

    fn on_up(&mut self, now: Instant, id: PeerId, conn: ConnId, agreed: &fsm::NegotiatedSession) {
        let quiet = self.config.timing.quiet;
        let stale_time = self.config.timing.stale_time;
        let long_lived_max = self.config.timing.long_lived_max;
        let peer = self.peers.get_mut(&id).expect("links belong to peers");
        let family = agreed
            .peer_gr_families
            .iter()
            .find(|family| (family.afi, family.safi) == EVPN);
        // Who says nothing about its kernel did not say that it forgot.
        let preserved = family.is_none_or(|family| family.forwarding_preserved);
        let long_lived = agreed
            .peer_llgr_families
            .iter()
            .find(|family| (family.afi, family.safi) == EVPN);
        // RFC 9494 §4.2: past the restart time the bit in its own capability counts.
        let preserved = if peer.long_lived {
            long_lived.is_some_and(|family| family.forwarding_preserved)
        } else {
            preserved
        };
        peer.graceful = Graceful {
            long_lived: long_lived.map_or(Duration::ZERO, |family| {
                Duration::from_secs(u64::from(family.stale_time)).min(long_lived_max)
            }),
            restart_time: family.map(|_| Duration::from_secs(u64::from(agreed.peer_restart_time))),
            notifications: agreed.peer_notification_gr,
            is_frr: agreed.peer_capabilities.iter().any(adds_paths),
        };
        peer.session = Some(Session {
            conn,
            router_id: agreed.peer_router_id,
            up_since: now,
            four_octet_as: agreed.four_octet_as,
            extended_messages: agreed.peer_extended_message,
            refresh: agreed.peer_route_refresh,
            enhanced_refresh: agreed.peer_enhanced_route_refresh,
            long_lived: long_lived.is_some(),
            hold_time: Duration::from_secs(u64::from(agreed.hold_time)),
            peer_restarting: agreed.peer_restart_state,
            synced_at: None,
            quiet_at: family.is_none().then_some(now + quiet),
            asked_again: false,
            membership: agreed
                .negotiated_families
                .contains(&MEMBERSHIP)
                .then(|| Membership::new(now)),
            out: Out::new(),
        });
        self.membership_due = true;
        let peer = self.peers.get_mut(&id).expect("links belong to peers");
        peer.router_id = Some(agreed.peer_router_id);
        peer.since = now;
        peer.failures = 0;
        peer.retry_at = None;
        peer.limit = LimitState::Under;
        peer.foreign = ForeignRoutes::default();
        peer.counters.sessions += 1;
        peer.stale_until = peer.stale_until.map(|_| now + stale_time);
        // RFC 4724 §4.2: what the peer did not preserve is gone at once. Not so a reflector's
        // routes, which are about others' forwarding.
        let forget = !preserved && peer.config.role == PeerRole::Client;
        let others: Vec<ConnId> = peer.links.keys().filter(|c| **c != conn).copied().collect();
        for other in others {
            self.close_link(id, other);
        }
        let router_id = agreed.peer_router_id;
        self.report(Event::SessionUp {
            peer: id,
            router_id,
        });
        if let Some(other) = self.namesake(id) {
            self.report(Event::SameRouterId {
                peer: id,
                other,
                router_id,
            });
        }
        if forget {
            self.sweep_stale(id);
        }
        self.ready.insert(id);
    }

    /// The state machine closed a connection.
    fn on_closed_by_us(&mut self, now: Instant, id: PeerId, conn: ConnId, cause: Down) {
        let peer = self.peers.get(&id);
        let reason = peer.and_then(|peer| peer.last_error.clone());
        let reason = reason.unwrap_or_else(|| "the session's state machine gave up".to_owned());
        self.lose_link(now, id, conn, cause, &reason);
    }

    pub(crate) fn on_disconnected(&mut self, now: Instant, conn: ConnId, lost: Lost) {
        if let Some(id) = self.conns.get(&conn).copied() {
            let heard = self.link_mut(conn).is_some_and(|link| link.heard);
            let trouble = Trouble::Lost { by: lost.by, heard };
            self.note_trouble(id, trouble, lost.text.clone());
            self.conns.remove(&conn);
            self.lose_link(now, id, conn, Down::Transport, &lost.text);
            self.actions
                .retain(|action| !matches!(action, Action::Close { conn: c, .. } if *c == conn));
        }
    }

    /// A connection is over, for whatever reason: so is the session on it, if there is one.
    pub(crate) fn lose_link(
        &mut self,
        now: Instant,
        id: PeerId,
        conn: ConnId,
        down: Down,
        reason: &str,
    ) {
        self.close_link(id, conn);
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        if peer.session.as_ref().is_some_and(|s| s.conn == conn) {
            self.leave_group(id);
            let Some(peer) = self.peers.get_mut(&id) else {
                return;
            };
            if let Some(session) = peer.session.take() {
                peer.wanted_last = remembered(session.membership.as_ref());
            }
            peer.since = now;
            self.on_down(now, id, down, reason);
            self.schedule_retry(now, id);
        } else if peer.session.is_none() && peer.links.is_empty() && peer.retiring.is_none() {
            let retry_in = self.schedule_retry(now, id);
            self.report(Event::AttemptFailed {
                peer: id,
                reason: reason.to_owned(),
                retry_in,
            });
        }
    }

    /// Doubles the wait with each failure, and takes a random half off it, so that hosts that
    /// lost the same reflector do not come back in step.
    fn schedule_retry(&mut self, now: Instant, id: PeerId) -> Option<Duration> {
        let random = self.random();
        let timing = self.config.timing;
        let peer = self.peers.get_mut(&id)?;
        if self.stopped || peer.retiring.is_some() || peer.config.connect == ConnectMode::Passive {
            return None;
        }
        let doubled = timing.retry_min.saturating_mul(1 << peer.failures.min(10));
        let longest = doubled.min(timing.retry_max);
        let part = u32::try_from(random % 500).expect("less than 500");
        let wait = longest.saturating_mul(500 + part) / 1000;
        let held_off = peer.held_off_until.take_if(|until| *until <= now);
        let held_off = held_off.or(peer.held_off_until);
        let wait = held_off.map_or(wait, |until| wait.max(until.saturating_duration_since(now)));
        peer.failures = peer.failures.saturating_add(1);
        peer.retry_at = Some(now + wait);
        Some(wait)
    }

    fn on_down(&mut self, now: Instant, id: PeerId, down: Down, reason: &str) {
        let timing = self.config.timing;
        let peer = self.peers.get_mut(&id).expect("sessions belong to peers");
        let long_lived = peer.graceful.long_lived;
        // Whatever a retiring reflector says, how long its routes stay is settled.
        let retiring = peer
            .retiring
            .map(|until| until.saturating_duration_since(now));
        let retained = retiring.or_else(|| peer.retention(down, &timing));
        let retained = retained.filter(|time| !(*time + long_lived).is_zero());
        peer.long_lived = false;
        peer.stale_until = retained
            .filter(|_| retiring.is_none())
            .map(|time| now + time);
        self.report(Event::SessionDown {
            peer: id,
            reason: reason.to_owned(),
            retained,
        });
        if retained.is_some() {
            // RFC 4724 §4.2 would have routes deleted that were stale already. They stay: a
            // reflector that restarts twice in a row has still not said that they are gone.
            for (key, change) in self.rib.mark_stale(id) {
                self.on_change(&key, Some(change));
            }
        } else {
            self.forget(id, false);
        }
        if retained == Some(Duration::ZERO) && retiring.is_none() {
            self.begin_long_lived(now, id);
        }
    }

    /// The restart time is over: what the peer allows stays as a last resort (RFC 9494 §4.2).
    fn begin_long_lived(&mut self, now: Instant, id: PeerId) {
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        let time = peer.graceful.long_lived;
        peer.long_lived = true;
        peer.stale_until = Some(now + time);
        for key in self.rib.stale_without_long_life(id) {
            let change = self.rib.remove(&key, Source::Peer(id));
            self.on_change(&key, change);
        }
        for (key, change) in self.rib.mark_long_lived(id) {
            self.on_change(&key, Some(change));
        }
        self.report(Event::LongLived { peer: id, time });
    }

    /// Removes a peer's paths: all, or the stale ones.
    fn forget(&mut self, id: PeerId, only_stale: bool) -> usize {
        let keys = self.rib.keys_of(id, only_stale);
        for key in &keys {
            let change = self.rib.remove(key, Source::Peer(id));
            self.on_change(key, change);
        }
        keys.len()
    }

    pub(crate) fn sweep_stale(&mut self, id: PeerId) {
        if let Some(peer) = self.peers.get_mut(&id)
            && peer.stale_until.take().is_some()
        {
            let routes = self.forget(id, true);
            if routes > 0 {
                self.report(Event::StaleSwept { peer: id, routes });
            }
        }
    }

    /// The peer told everything: what it did not tell again is gone. A reflector that restarted may say
    /// so before VTEPs came back to it (FRR 8.4 does, with the R bit, too): what it is silent about
    /// stays for as long as they may take.
    pub(crate) fn on_synced(&mut self, now: Instant, id: PeerId) {
        let handover = self.config.timing.handover;
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        let Some(session) = &mut peer.session else {
            return;
        };
        session.quiet_at = None;
        let first = session.synced_at.is_none();
        let synced_at = *session.synced_at.get_or_insert(now);
        let early = peer.config.role == PeerRole::Reflector;
        if early {
            peer.stale_until = peer.stale_until.map(|at| at.min(synced_at + handover));
        }
        if first {
            self.report(Event::EndOfRib { peer: id });
        }
        if !early {
            self.sweep_stale(id);
        }
    }

    fn on_refresh(&mut self, now: Instant, id: PeerId, refresh: &RouteRefreshMessage) {
        if (refresh.afi(), refresh.safi()) != (Some(EVPN.0), Some(EVPN.1)) {
            return;
        }
        let stale_time = self.config.timing.stale_time;
        match refresh.subtype() {
            RouteRefreshSubtype::Normal => self.send_all_again(id),
            // RFC 7313 §4.2: between the two marks the peer tells everything again; what it
            // leaves out is gone.
            RouteRefreshSubtype::BoRR => {
                if let Some(peer) = self.peers.get_mut(&id)
                    && peer.retiring.is_none()
                {
                    peer.stale_until = Some(now + stale_time);
                }
                for (key, change) in self.rib.mark_stale(id) {
                    self.on_change(&key, Some(change));
                }
            }
            RouteRefreshSubtype::EoRR => {
                self.sweep_stale(id);
                let session = self.peers.get(&id).and_then(|peer| peer.session.as_ref());
                if session.is_some_and(|session| session.asked_again) {
                    self.on_synced(now, id);
                }
            }
            _ => {}
        }
    }

    fn send_all_again(&mut self, id: PeerId) {
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        let Some(session) = &mut peer.session else {
            return;
        };
        if matches!(session.out.dump, Dump::After { first: true, .. }) {
            return; // everything is on its way already
        }
        let conn = session.conn;
        self.leave_group(id);
        let peer = self.peers.get_mut(&id);
        let Some(session) = peer.and_then(|peer| peer.session.as_mut()) else {
            return;
        };
        session.out.dump = Dump::After {
            key: None,
            first: false,
        };
        if session.enhanced_refresh {
            session.out.refresh_end = true;
            self.with_link(conn, |link| {
                link.send(&refresh_mark(RouteRefreshSubtype::BoRR));
            });
        }
        self.ready.insert(id);
    }

    /// Says that this speaker lives, where that is due.
    pub(crate) fn on_keepalive_timers(&mut self, now: Instant, id: PeerId) {
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        let mut due = vec![];
        for (conn, link) in &mut peer.links {
            if link.keepalive_at.is_some_and(|at| at <= now) {
                link.keepalive_at = None;
                due.push(*conn);
            }
        }
        for conn in due {
            self.drive(now, conn, fsm::Event::KeepaliveTimerExpires);
        }
    }

    pub(crate) fn on_link_timers(&mut self, now: Instant, id: PeerId) {
        let due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        let mut events = vec![];
        for (conn, link) in &mut peer.links {
            if due(link.hold_at) {
                link.hold_at = None;
                events.push((*conn, fsm::Event::HoldTimerExpires));
            } else if due(link.keepalive_at) {
                link.keepalive_at = None;
                events.push((*conn, fsm::Event::KeepaliveTimerExpires));
            }
        }
        let send_hold_time = self.config.timing.send_hold_time;
        let stuck = |link: &Link| due(link.waiting_since.map(|at| at + send_hold_time));
        let mut links = peer.links.iter();
        let stuck = links.find(|(_, link)| stuck(link)).map(|(conn, _)| *conn);
        for (conn, event) in events {
            self.drive(now, conn, event);
        }
        if let Some(conn) = stuck {
            let code = NotificationCode::SendHoldTimerExpired;
            let notification = NotificationMessage::new(code, 0, Bytes::new());
            self.end_with(now, id, conn, Down::HoldExpired, notification);
        }
    }

    /// Ends a connection with a NOTIFICATION.
    pub(crate) fn end_with(
        &mut self,
        now: Instant,
        id: PeerId,
        conn: ConnId,
        down: Down,
        notification: NotificationMessage,
    ) {
        self.note_sent_notification(id, conn, &notification);
        let reason = format!("sent NOTIFICATION: {}", describe(&notification));
        self.with_link(conn, |link| link.send(&Message::Notification(notification)));
        self.lose_link(now, id, conn, down, &reason);
    }

    /// Asks a peer to tell everything again.
    pub(crate) fn ask_again(&mut self, id: PeerId) {
        let session = self.peers.get(&id).and_then(|peer| peer.session.as_ref());
        let Some(session) = session.filter(|session| session.refresh) else {
            return;
        };
        let conn = session.conn;
        self.with_link(conn, |link| {
            link.send(&refresh_mark(RouteRefreshSubtype::Normal));
        });
        self.ready.insert(id);
    }

    /// Looks at how many routes a peer has after an UPDATE, of whose routes so many were refused.
    pub(crate) fn check_limit(&mut self, now: Instant, id: PeerId, conn: ConnId, refused: u64) {
        let held = self.rib.count_of(id).0;
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        let Some(max) = peer.config.max_routes else {
            return;
        };
        peer.counters.routes_refused += refused;
        let before = peer.limit;
        peer.limit = match (before, refused > 0, max.warns_at(held)) {
            (_, true, _) => LimitState::Over,
            (LimitState::Over, false, true) => LimitState::Over,
            (_, false, true) => LimitState::Warned,
            (_, false, false) => LimitState::Under,
        };
        let over = peer.limit == LimitState::Over;
        if before == LimitState::Over && !over {
            // What it announced in vain fits now.
            self.ask_again(id);
            return;
        }
        if peer.limit == before || peer.limit == LimitState::Under {
            return;
        }
        if let (true, OverLimit::Cease { restart }) = (over, max.then) {
            peer.held_off_until = Some(now + restart);
        }
        let limit = max.limit;
        self.report(Event::ManyRoutes {
            peer: id,
            held,
            limit,
            over,
        });
        if over && max.then != OverLimit::Ignore {
            // RFC 4486 §4: the family, and the limit.
            let mut data = vec![0, 25, 70];
            data.extend(limit.to_be_bytes());
            let subcode = cease_subcode::MAX_PREFIXES;
            let notification =
                NotificationMessage::new(NotificationCode::Cease, subcode, data.into());
            self.end_with(now, id, conn, Down::PeerError, notification);
        }
    }

    pub(crate) fn on_peer_timers(&mut self, now: Instant, id: PeerId) {
        let due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        let (retry, stale) = (due(peer.retry_at), due(peer.stale_until));
        let quiet = due(peer.session.as_ref().and_then(|s| s.quiet_at));
        let asked = !peer.graceful.long_lived.is_zero();
        let outlives = asked && peer.session.is_none() && !peer.long_lived;
        if retry {
            peer.retry_at = None;
            if peer.session.is_none() && peer.pending(Side::Ours).is_none() {
                let conn = self.new_link(id, Side::Ours);
                self.actions.push_back(Action::Connect { conn, peer: id });
            }
        }
        if quiet {
            self.on_synced(now, id);
        }
        self.on_membership_wait_over(now, id);
        self.on_taken_back_due(now, id);
        if stale && outlives {
            self.begin_long_lived(now, id);
        } else if stale {
            self.sweep_stale(id);
        }
    }

    /// What follows from whatever just happened: removed reflectors that others took over from,
    /// local MACs that lost or won, and completeness.
    pub(crate) fn settle(&mut self, now: Instant) {
        self.sweep_retired(now);
        self.sync_contested(now);
        self.sync_membership();
        let Some(until) = self.deferral_until.filter(|_| self.knows_instances()) else {
            return;
        };
        let members = || self.waits_for_members_until().is_some_and(|at| at > now);
        if now >= until || (self.has_heard_all() && !members()) {
            let missing = self.unheard();
            self.deferral_until = None;
            self.vrfs.set_complete();
            self.ready.extend(self.peers.keys());
            self.report(Event::Complete { missing });
        }
    }

    /// Peers that completeness waits for.
    fn unheard(&self) -> Vec<PeerId> {
        let peers = self.configured();
        let unheard = peers.filter(|(_, peer)| !self.is_accounted_for(peer));
        unheard.map(|(id, _)| *id).collect()
    }

    /// Whether peers, one at least, told everything, and none is waited for.
    pub(crate) fn has_heard_all(&self) -> bool {
        self.configured().any(|(_, peer)| peer.is_synced()) && self.unheard().is_empty()
    }

    /// False for a VTEP before the first `set_local`: nothing can be imported yet, so that nothing
    /// was learned does not mean that there is nothing.
    pub(crate) fn knows_instances(&self) -> bool {
        self.local.is_some() || !self.config.role.is_vtep()
    }

    /// Whether completeness need not wait for the peer: it told everything; it is a reflector
    /// that cannot be reached while another can; or it waits for us (RFC 4724 §4.1, a peer with
    /// the R bit), which between two reflectors would go on until both timers end. A client's R
    /// bit is no excuse: it says when it told what is behind it.
    fn is_accounted_for(&self, peer: &Peer) -> bool {
        let reflector = peer.config.role == PeerRole::Reflector;
        let waits = self.config.role.is_reflector()
            && peer.session.as_ref().is_some_and(|s| s.peer_restarting);
        peer.is_synced() || reflector && (peer.is_unreachable() || waits)
    }

    /// Puts a peer on the list, or changes what may change of one without a new session.
    pub(crate) fn configure(&mut self, now: Instant, id: PeerId, config: PeerConfig) {
        let peer = self.peers.entry(id).or_insert_with(|| {
            let mut peer = Peer::new(now, config);
            peer.retry_at = (config.connect == ConnectMode::Active).then_some(now);
            peer
        });
        let connects = config.connect == ConnectMode::Active;
        if !connects {
            peer.retry_at = None;
        } else if peer.config.connect == ConnectMode::Passive && peer.session.is_none() {
            peer.retry_at = Some(now);
        }
        peer.config = config;
        if peer.retiring.take().is_some() {
            self.unretire(now, id);
        }
    }

    /// Ends a peer's session for good; its paths go with it.
    pub(crate) fn end_peer(&mut self, now: Instant, id: PeerId) {
        self.say_goodbye(id, cease_subcode::PEER_DECONFIGURED, "");
        self.drop_links(id);
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        let retired = peer.retiring.is_some();
        self.leave_group(id);
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        if peer.session.take().is_some() {
            peer.since = now;
            self.report(Event::SessionDown {
                peer: id,
                reason: REMOVED.to_owned(),
                retained: None,
            });
        }
        let routes = self.forget(id, false);
        if retired && routes > 0 {
            self.report(Event::StaleSwept { peer: id, routes });
        }
        self.peers.remove(&id);
        self.ready.remove(&id);
    }

    /// Whether others depend on a peer's session in a way that asks for time when it goes.
    pub(crate) fn can_retire(&self, peer: &Peer) -> bool {
        self.config.role.is_vtep()
            && peer.config.role == PeerRole::Reflector
            && !self.config.timing.reflector_retain.is_zero()
    }

    /// Make before break: the session to a reflector that is no longer configured stays, and what
    /// was learned from it, stale, until others took over ([`Self::taken_over_at`]) or the time for
    /// it is over. It stays for others as well: VTEPs that have not left the reflector yet know of
    /// this one's routes through it. With no reflector left it stays for that time, too: to have
    /// none is more likely a mistake than a wish, and a mistake may be mended.
    pub(crate) fn retire(&mut self, now: Instant, id: PeerId) {
        if self.taken_over_at().is_some_and(|at| at <= now) {
            self.end_peer(now, id);
            return;
        }
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        (peer.retry_at, peer.stale_until) = (None, None);
        if peer.session.is_none() {
            self.drop_links(id);
        }
        let time = self.config.timing.reflector_retain;
        self.report(Event::Retiring { peer: id, time });
        for (key, change) in self.rib.mark_stale(id) {
            self.on_change(&key, Some(change));
        }
    }

    /// A removed peer is configured again before it was given up.
    fn unretire(&mut self, now: Instant, id: PeerId) {
        let timing = self.config.timing;
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        if peer.is_synced() {
            for (key, change) in self.rib.mark_fresh(id) {
                self.on_change(&key, Some(change));
            }
        } else if peer.session.is_some() {
            peer.stale_until = Some(now + timing.stale_time);
        } else {
            peer.stale_until = Some(now + timing.reflector_retain);
            peer.retry_at = (peer.config.connect == ConnectMode::Active).then_some(now);
        }
    }

    fn sweep_retired(&mut self, now: Instant) {
        if self.peers.values().all(|peer| peer.retiring.is_none()) {
            return;
        }
        let taken_over = self.taken_over_at().is_some_and(|at| at <= now);
        let over = |until: Instant| taken_over || until <= now;
        let over: Vec<PeerId> = self
            .peers
            .iter()
            .filter(|(_, peer)| peer.retiring.is_some_and(over))
            .map(|(id, _)| *id)
            .collect();
        for peer in over {
            self.end_peer(now, peer);
        }
    }

    /// When the configured reflectors have what removed ones had: all that can be reached have
    /// told everything, at least one has, and other VTEPs had time to come to them as well. None
    /// while that is not in sight.
    fn taken_over_at(&self) -> Option<Instant> {
        let mut last = None;
        for (_, peer) in self.configured() {
            if peer.config.role != PeerRole::Reflector {
                continue;
            }
            match peer.synced_at() {
                Some(at) => last = last.max(Some(at)),
                None if peer.is_unreachable() => {}
                None => return None,
            }
        }
        Some(last? + self.config.timing.handover)
    }

    /// When the next removed reflector's paths are given up.
    pub(crate) fn retired_deadline(&self) -> Option<Instant> {
        let retiring = self.peers.values().filter_map(|peer| peer.retiring);
        let first = retiring.min()?;
        Some(self.taken_over_at().map_or(first, |at| at.min(first)))
    }

    pub(crate) fn stop_peer(&mut self, now: Instant, id: PeerId, kind: StopKind, text: &str) {
        if kind == StopKind::Withdraw {
            self.flush_all(id);
            self.say_goodbye(id, cease_subcode::ADMINISTRATIVE_SHUTDOWN, text);
        }
        self.drop_links(id);
        self.leave_group(id);
        let peer = self.peers.get_mut(&id).expect("the peer is configured");
        (peer.retry_at, peer.session, peer.since) = (None, None, now);
    }

    /// Cease, in the form that also ends graceful restart where the peer knows it: Hard Reset
    /// with the real reason inside (RFC 8538 §3.1).
    fn say_goodbye(&mut self, id: PeerId, subcode: u8, text: &str) {
        let Some(peer) = self.peers.get(&id) else {
            return;
        };
        let Some(session) = &peer.session else {
            return;
        };
        let cease = NotificationCode::Cease;
        let said = match text {
            "" => Bytes::new(),
            text => wire::notification::encode_shutdown_communication(text),
        };
        let (subcode, data) = if peer.graceful.notifications {
            let inside = [&[cease.as_u8(), subcode][..], &said].concat();
            (cease_subcode::HARD_RESET, inside.into())
        } else {
            (subcode, said)
        };
        let conn = session.conn;
        self.with_link(conn, |link| {
            let notification = NotificationMessage::new(cease, subcode, data);
            link.send(&Message::Notification(notification));
        });
    }

    fn drop_links(&mut self, id: PeerId) {
        let Some(peer) = self.peers.get(&id) else {
            return;
        };
        let conns: Vec<ConnId> = peer.links.keys().copied().collect();
        for conn in conns {
            self.close_link(id, conn);
        }
    }
}

pub(crate) fn refresh_mark(subtype: RouteRefreshSubtype) -> Message {
    Message::RouteRefresh(RouteRefreshMessage::new_with_subtype(
        EVPN.0, EVPN.1, subtype,
    ))
}

/// True of ADD-PATH for EVPN.
fn adds_paths(capability: &wire::Capability) -> bool {
    match capability {
        wire::Capability::AddPath(families) => families
            .iter()
            .any(|family| (family.afi, family.safi) == EVPN),
        _ => false,
    }
}

/// What the end of a session counts as, if this event leads to it.
fn cause_of(event: &fsm::Event) -> Down {
    match event {
        fsm::Event::HoldTimerExpires => Down::HoldExpired,
        fsm::Event::NotificationReceived(notification) => Down::Told {
            hard_reset: notification.code == NotificationCode::Cease
                && notification.subcode == cease_subcode::HARD_RESET,
        },
        fsm::Event::TcpConnectionFails => Down::Transport,
        _ => Down::PeerError,
    }
}
