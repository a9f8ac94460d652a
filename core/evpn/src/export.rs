//! Routes in and out: from UPDATEs into the RIB, from there into rows and to peers.

use crate::codec::{
    Age, Attrs, MESSAGE_MAX_BYTES, Nlri, Reader, Reflected, RouteKey, Unusable, end_of_rib,
    read_update, write_announcements, write_withdrawals,
};
use crate::history::{self, Direction};
use crate::link::ConnId;
use crate::local;
use crate::peer::{Dump, Session};
use crate::rib::{Change, Path, Source};
use crate::session::refresh_mark;
use crate::speaker::Event;
use crate::vrf::MacKey;
use crate::{PeerId, PeerRole, Speaker};
use bytes::Bytes;
use model::Vni;
use rustbgpd_fsm as fsm;
use rustbgpd_wire as wire;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Instant;
use wire::RouteRefreshSubtype;

/// Routes looked at for one batch of UPDATEs: enough to fill messages, few enough that what a
/// slow peer has queued is not out of date by much.
const BATCH_ROUTES: usize = 500;

impl Speaker {
    pub(crate) fn on_update(
        &mut self,
        now: Instant,
        id: PeerId,
        conn: ConnId,
        message: &wire::UpdateMessage,
    ) {
        let (router_id, cluster) = (self.config.router_id, self.cluster());
        let asn = self.config.asn.get();
        let quiet = self.config.timing.quiet;
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        peer.counters.updates_in += 1;
        let Some(session) = &mut peer.session else {
            return;
        };
        session.quiet_at = session.quiet_at.map(|_| now + quiet);
        let reader = Reader {
            asn,
            router_id,
            cluster,
            four_octet_as: session.four_octet_as,
        };
        let peer_router_id = session.router_id;
        let stale = peer.retiring.is_some();
        let octets = peer.links.get(&conn).map_or(0, |link| link.message_octets);
        let limit = peer.config.max_routes.map(|max| max.limit as usize);
        let update = match read_update(message, &reader) {
            Ok(update) => update,
            Err(notification) => {
                let event = fsm::Event::UpdateValidationError(notification);
                self.drive(now, conn, event);
                return;
            }
        };
        peer.counters.attributes_discarded += update.attributes_discarded;
        peer.counters.routes_discarded += update.routes_discarded;
        let unusable = update.unusable;
        match unusable {
            Some(Unusable::Malformed) => peer.counters.treated_as_withdraw += 1,
            Some(Unusable::Loop) => peer.counters.loops += update.announced.len() as u64,
            None => {}
        }
        let brought = history::Routes {
            announced: update.announced.len() as u64,
            withdrawn: update.withdrawn.len() as u64,
        };
        peer.history
            .note_update(now, Direction::Received, octets, brought, &update.faults);
        if !update.faults.is_empty() {
            let what = update.faults.join("; ");
            self.report(Event::Malformed { peer: id, what });
        }
        let source = Source::Peer(id);
        let mut refused = 0;
        for route in &update.announced {
            let full = limit.is_some_and(|limit| self.rib.count(source) >= limit);
            if full && update.attrs.is_some() && self.rib.path(&route.key, source).is_none() {
                refused += 1;
                continue;
            }
            match &update.attrs {
                Some(attrs) => {
                    let path = Path {
                        nlri: route.raw.clone(),
                        label: route.label,
                        attrs: Arc::clone(attrs),
                        stale,
                        long_lived: false,
                        router_id: peer_router_id,
                        since: now,
                    };
                    let change = self.rib.insert(&route.key, Source::Peer(id), path);
                    self.on_change(&route.key, change);
                }
                None => self.withdraw(id, &route.key),
            }
        }
        for route in &update.withdrawn {
            self.withdraw(id, &route.key);
        }
        if limit.is_some() {
            self.check_limit(now, id, conn, refused);
        }
        if update.end_of_rib {
            self.on_synced(now, id);
        }
    }

    /// A peer took a route back. Reflectors all hear the same VTEPs, so one that lives also
    /// speaks for those whose sessions are down: their stale copies must not outlive the route. Not
    /// so one that VTEPs are leaving.
    fn withdraw(&mut self, id: PeerId, key: &RouteKey) {
        let held = self.rib.path(key, Source::Peer(id)).is_some();
        let change = self.rib.remove(key, Source::Peer(id));
        self.on_change(key, change);
        let leaving = self.peers.get(&id).is_none_or(|p| p.retiring.is_some());
        if !held || leaving || !self.is_reflector_peer(id) {
            return;
        }
        for other in self.rib.stale_sources(key) {
            if self.is_reflector_peer(other) {
                let change = self.rib.remove(key, Source::Peer(other));
                self.on_change(key, change);
            }
        }
    }

    fn is_reflector_peer(&self, id: PeerId) -> bool {
        let peer = self.peers.get(&id);
        peer.is_some_and(|peer| peer.config.role == PeerRole::Reflector)
    }

    /// The best path to a route changed: rows follow, and peers are owed the news.
    pub(crate) fn on_change(&mut self, key: &RouteKey, change: Option<Change>) {
        let Some(change) = change else {
            return;
        };
        let learned = |side: &Option<(Source, Path)>| match side {
            Some((Source::Peer(_), path)) => Some(path.clone()),
            _ => None,
        };
        let (old, new) = (learned(&change.old), learned(&change.new));
        if old.is_some() || new.is_some() {
            self.vrfs.apply(key, old.as_ref(), new.as_ref());
        }
        if !needs_saying(&change) {
            return;
        }
        let reflects = self.config.role.is_reflector();
        let from = |side: &Option<(Source, Path)>| side.as_ref().map(|(s, _)| self.origin(*s));
        let (old, new) = (from(&change.old), from(&change.new));
        for (id, peer) in &mut self.peers {
            let to = (*id, peer.config.role);
            let concerned = |from: Option<Origin>| from.is_some_and(|o| o.goes_to(to, reflects));
            if let Some(session) = &mut peer.session
                && (concerned(old) || concerned(new))
            {
                session.out.note(key);
                self.ready.insert(*id);
            }
        }
    }

    fn origin(&self, source: Source) -> Origin {
        match source {
            Source::Local => Origin::Here,
            Source::Peer(id) => match self.peers.get(&id).map(|peer| peer.config.role) {
                Some(PeerRole::Client) => Origin::Client(id),
                _ => Origin::NonClient,
            },
        }
    }

    /// The next message for a peer.
    pub(crate) fn next_for(&mut self, id: PeerId) -> Option<(ConnId, Bytes)> {
        loop {
            let peer = self.peers.get_mut(&id)?;
            let mut links = peer.links.iter_mut().filter(|(_, link)| link.connected);
            if let Some((conn, link)) = links.find(|(_, link)| link.has_queued()) {
                let (conn, bytes) = (*conn, link.take_queued()?);
                peer.note_sent(self.clock, &bytes);
                return Some((conn, bytes));
            }
            let session = peer.session.as_ref()?;
            let link = peer.links.get(&session.conn)?;
            if !link.writable || !self.fill(id) {
                return None;
            }
        }
    }

    /// Writes a batch of what a peer is owed; false if it is owed nothing.
    fn fill(&mut self, id: PeerId) -> bool {
        let may_end = self.may_end_rib();
        let Some(session) = self.peers.get_mut(&id).and_then(|p| p.session.as_mut()) else {
            return false;
        };
        let out = &mut session.out;
        let mut keys: Vec<RouteKey> = vec![];
        while keys.len() < BATCH_ROUTES
            && let Some(key) = out.dirty.pop_first()
        {
            keys.push(key);
        }
        let mut withdraw = true;
        if keys.is_empty()
            && let Dump::After { key: at, first } = &out.dump
        {
            let next = self.rib.best_after(at.as_ref()).take(BATCH_ROUTES);
            keys.extend(next.map(|(key, _, _)| key.clone()));
            withdraw = false;
            out.dump = match keys.last() {
                Some(last) => Dump::After {
                    key: Some(last.clone()),
                    first: *first,
                },
                None => Dump::Done,
            };
        }
        if !keys.is_empty() {
            self.write_batch(id, &keys, withdraw);
            return true;
        }
        let conn = session.conn;
        let refreshed = std::mem::take(&mut out.refresh_end);
        let ended = may_end && !out.end_of_rib;
        out.end_of_rib |= may_end;
        let Some(link) = self.link_mut(conn) else {
            return false;
        };
        if refreshed {
            link.send(&refresh_mark(RouteRefreshSubtype::EoRR));
        }
        if ended {
            link.send_raw(end_of_rib());
        }
        refreshed || ended
    }

    /// End-of-RIB tells the peer that what we did not say is gone: so not before local routes are
    /// known, and as a reflector not before its clients had their say (RFC 4724 §4.1).
    fn may_end_rib(&self) -> bool {
        let local_known = self.local.is_some() || !self.config.role.is_vtep();
        let all_heard = self.deferral_until.is_none() || !self.config.role.is_reflector();
        local_known && all_heard
    }

    fn write_batch(&mut self, id: PeerId, keys: &[RouteKey], withdraw: bool) {
        let cluster = self.cluster();
        let reflects = self.config.role.is_reflector();
        let Some(peer) = self.peers.get(&id) else {
            return;
        };
        let Some(session) = &peer.session else {
            return;
        };
        let to = (id, peer.config.role);
        let mut batch = Batch::default();
        for key in keys {
            let best = self.rib.best(key);
            match best.filter(|(source, _)| self.origin(*source).goes_to(to, reflects)) {
                Some((source, path)) => batch.announce(path, source, cluster, session),
                None if withdraw => batch.withdrawn.push(Nlri::of_key(key)),
                None => {}
            }
        }
        let messages = batch.into_messages(session);
        let conn = session.conn;
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        peer.counters.updates_out += messages.len() as u64;
        if let Some(link) = peer.links.get_mut(&conn) {
            messages
                .into_iter()
                .for_each(|message| link.send_raw(message));
        }
    }

    /// Writes all that a peer is owed, whatever room there is.
    pub(crate) fn flush_all(&mut self, id: PeerId) {
        while self.fill(id) {}
    }

    /// Announces and withdraws the difference between what is local in the instances and what
    /// was announced of them.
    pub(crate) fn sync_announcements(&mut self, now: Instant, mut vnis: BTreeSet<Vni>) {
        vnis.extend(self.vrfs.take_contested().iter().map(|(vni, _, _)| *vni));
        for vni in vnis {
            let wanted = self.local.as_ref().and_then(|state| {
                let evi = state.evis.get(&vni)?;
                let sequence = |key| self.vrfs.announced_sequence(key);
                let (vtep, config) = (state.vtep, &self.config);
                Some(local::routes_of(vni, evi, vtep, config, sequence))
            });
            let wanted = wanted.unwrap_or_default();
            let held = self.announced.remove(&vni).unwrap_or_default();
            for (key, route) in &wanted {
                if held.get(key) != Some(route) {
                    self.announce(now, key, route);
                }
            }
            for key in held.keys().filter(|key| !wanted.contains_key(*key)) {
                // Another instance may have taken over the route distinguisher.
                if !self
                    .announced
                    .values()
                    .any(|routes| routes.contains_key(key))
                {
                    let change = self.rib.remove(key, Source::Local);
                    self.on_change(key, change);
                }
            }
            if !wanted.is_empty() {
                self.announced.insert(vni, wanted);
            }
        }
    }

    fn announce(&mut self, now: Instant, key: &RouteKey, route: &local::OwnRoute) {
        let path = Path {
            nlri: route.nlri.raw.clone(),
            label: route.nlri.label,
            attrs: Arc::clone(&route.attrs),
            stale: false,
            long_lived: false,
            router_id: self.config.router_id,
            since: now,
        };
        let change = self.rib.insert(key, Source::Local, path);
        self.on_change(key, change);
    }

    /// After remote routes changed: if a local MAC lost to another VTEP, or won, announcements
    /// follow.
    pub(crate) fn sync_contested(&mut self, now: Instant) {
        let contested = self.vrfs.take_contested();
        if contested.is_empty() || self.stopped {
            return;
        }
        let before = self.announced_macs(&contested);
        let vnis = contested.iter().map(|(vni, _, _)| *vni).collect();
        self.sync_announcements(now, vnis);
        let after = self.announced_macs(&contested);
        for key in before.symmetric_difference(&after) {
            let (vni, tag, mac) = *key;
            let here = after.contains(key);
            self.report(Event::Mobility {
                vni,
                tag,
                mac,
                here,
            });
        }
    }

    fn announced_macs(&self, among: &BTreeSet<MacKey>) -> BTreeSet<MacKey> {
        let Some(state) = &self.local else {
            return BTreeSet::new();
        };
        let is_announced = |(vni, tag, mac): &MacKey| {
            state.evis.get(vni).is_some_and(|evi| {
                let rd = crate::Rd::of_instance(self.config.router_id, evi.rd_index);
                let tag = tag.map_or(0, |vlan| u32::from(vlan.get()));
                let (mac, ip) = (*mac, None);
                let key = RouteKey::MacIp { rd, tag, mac, ip };
                let routes = self.announced.get(vni);
                routes.is_some_and(|routes| routes.contains_key(&key))
            })
        };
        among
            .iter()
            .filter(|key| is_announced(key))
            .copied()
            .collect()
    }
}

/// Where a route came from, as far as reflection asks (RFC 4456 §6).
#[derive(Clone, Copy)]
enum Origin {
    Here,
    Client(PeerId),
    NonClient,
}

impl Origin {
    fn goes_to(self, to: (PeerId, PeerRole), reflects: bool) -> bool {
        match self {
            Self::Here => true,
            Self::Client(from) => reflects && from != to.0,
            // Clients are no non-clients: it cannot go back where it came from.
            Self::NonClient => reflects && to.1 == PeerRole::Client,
        }
    }
}

/// A path that only changed hands between fresh and stale, but not for long, is the same to everybody else.
fn needs_saying(change: &Change) -> bool {
    match (&change.old, &change.new) {
        (Some((was, old)), Some((is, new))) => {
            was != is
                || old.nlri != new.nlri
                || old.attrs != new.attrs
                || old.long_lived != new.long_lived
        }
        _ => true,
    }
}

/// UPDATEs in the making: routes with equal attributes go together.
#[derive(Default)]
struct Batch {
    /// In the order in which the first route of each came.
    groups: Vec<Group>,
    by_attrs: BTreeMap<(Vec<u8>, Bytes), usize>,
    /// The attributes of the route before, the router it came from, and their group: what one
    /// UPDATE brought mostly stands together.
    last: Option<(Arc<Attrs>, Ipv4Addr, bool, usize)>,
    withdrawn: Vec<Bytes>,
}

struct Group {
    attrs: Vec<u8>,
    next_hop: Bytes,
    routes: Vec<Bytes>,
}

impl Batch {
    fn announce(&mut self, path: &Path, source: Source, cluster: Ipv4Addr, session: &Session) {
        if let Some((attrs, router_id, long_lived, at)) = &self.last
            && Arc::ptr_eq(attrs, &path.attrs)
            && *router_id == path.router_id
            && *long_lived == path.long_lived
        {
            self.groups[*at].routes.push(path.nlri.clone());
            return;
        }
        let marks = match source {
            Source::Local => None,
            Source::Peer(_) => Some(Reflected {
                originator: path.router_id,
                cluster,
            }),
        };
        let age = match (path.is_last_resort(), session.long_lived) {
            (false, _) => Age::Fresh,
            (true, true) => Age::LongLived,
            (true, false) => Age::LongLivedUnknown,
        };
        let attrs = path
            .attrs
            .encode(marks.as_ref(), age, session.four_octet_as);
        let next_hop = path.attrs.next_hop_raw().clone();
        let at = *self
            .by_attrs
            .entry((attrs, next_hop))
            .or_insert_with_key(|(attrs, next_hop)| {
                self.groups.push(Group {
                    attrs: attrs.clone(),
                    next_hop: next_hop.clone(),
                    routes: vec![],
                });
                self.groups.len() - 1
            });
        self.groups[at].routes.push(path.nlri.clone());
        self.last = Some((Arc::clone(&path.attrs), path.router_id, path.long_lived, at));
    }

    /// Announcements before withdrawals: a MAC that moved is never nowhere.
    fn into_messages(self, session: &Session) -> Vec<Bytes> {
        let max = if session.extended_messages {
            usize::from(wire::EXTENDED_MAX_MESSAGE_LEN)
        } else {
            MESSAGE_MAX_BYTES
        };
        let mut messages = vec![];
        for group in &self.groups {
            let (written, _) =
                write_announcements(&group.attrs, &group.next_hop, &group.routes, max);
            messages.extend(written);
        }
        messages.extend(write_withdrawals(&self.withdrawn));
        messages
    }
}
