//! Routes in and out: from UPDATEs into the RIB, from there into rows and to peers.

use crate::codec::{
    Age, Attrs, MESSAGE_MAX_BYTES, Packer, Reader, Reflected, RouteKey, Unusable, end_of_rib,
    read_membership, read_update,
};
use crate::group::{Group, GroupId, Terms};
use crate::history::{self, Direction};
use crate::journal::{For, Journal, Note};
use crate::link::{ConnId, Link, Updates};
use crate::local;
use crate::membership::Membership;
use crate::peer::{Dump, Peer};
use crate::rest::withdrawal;
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
        if session.membership.is_some()
            && let Some(wishes) = read_membership(message)
        {
            self.on_membership(id, &wishes);
            return;
        }
        let stale = peer.retiring.is_some();
        let octets = peer.links.get(&conn).map_or(0, |link| link.message_octets);
        let limit = peer.config.max_routes.map(|max| max.limit as usize);
        let sessions = peer.counters.sessions;
        let update = match read_update(message, &reader, &mut self.known_attrs) {
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
            let (next_hop, own) = (update.named_us, self.vrfs.vtep);
            let foreign = next_hop.filter(|_| own.is_some() && next_hop != own);
            self.clashes
                .note_loop(now, id, sessions, &route.key, foreign);
            if let Some(attrs) = &update.attrs
                && !self.may_announce(now, id, &route.key, attrs)
            {
                continue;
            }
            let full = limit.is_some_and(|limit| self.rib.count_of(id).0 >= limit);
            if full && update.attrs.is_some() && self.rib.path(&route.key, source).is_none() {
                refused += 1;
                continue;
            }
            match &update.attrs {
                Some(attrs) => {
                    let path = Path {
                        rest: route.rest(),
                        attrs: Arc::clone(attrs),
                        stale,
                        long_lived: false,
                        router_id: peer_router_id,
                        since: now,
                    };
                    let change = self.rib.insert(&route.key, Source::Peer(id), path);
                    self.on_change(&route.key, change);
                    self.said_again(id, &route.key);
                }
                None => self.withdraw(id, &route.key),
            }
        }
        for route in &update.withdrawn {
            self.clashes.note_loop(now, id, sessions, &route.key, None);
            if let Some(peer) = self.peers.get_mut(&id) {
                peer.foreign.forget(&route.key);
            }
            self.take_back(now, id, &route.key);
        }
        if limit.is_some() {
            self.check_limit(now, id, conn, refused);
        }
        if update.end_of_rib {
            self.on_end_of_rib(now, id);
        }
    }

    /// A peer took a route back. Reflectors all hear the same VTEPs, so one that lives also
    /// speaks for those whose sessions are down: their stale copies must not outlive the route. Not
    /// so one that VTEPs are leaving.
    pub(crate) fn withdraw(&mut self, id: PeerId, key: &RouteKey) {
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

    /// Whether the best path to a route is another client's.
    pub(crate) fn is_of_other_client(&self, key: &RouteKey, id: PeerId) -> bool {
        let best = self.rib.best(key).map(|(source, _)| self.origin(source));
        matches!(best, Some(Origin::Client(other)) if other != id)
    }

    /// The best path to a route changed: rows follow, and peers are owed the news.
    pub(crate) fn on_change(&mut self, key: &RouteKey, change: Option<Change>) {
        let Some(change) = change else {
            return;
        };
        if let Some(me) = self.me() {
            self.clashes.apply(me, key, &change);
        }
        if self.config.role.is_vtep() {
            let learned = |side: &Option<(Source, Path)>| match side {
                Some((Source::Peer(_), path)) => Some(path.clone()),
                _ => None,
            };
            let (old, new) = (learned(&change.old), learned(&change.new));
            if old.is_some() || new.is_some() {
                self.vrfs.apply(key, old.as_ref(), new.as_ref());
            }
        }
        if !needs_saying(&change) {
            return;
        }
        let side = |side: &Option<(Source, Path)>| side.as_ref().map(|(source, _)| *source);
        let (was, is) = (side(&change.old), side(&change.new));
        let Some(source) = is.or(was) else {
            return;
        };
        let reflects = self.config.role.is_reflector();
        let origins = [was, is].map(|source| source.map(|source| self.origin(source)));
        for (id, group) in &mut self.groups {
            let goes = |o: &Origin| o.goes_to_role(group.terms.role, reflects);
            let paths = [&change.old, &change.new].into_iter().flatten();
            let wanted = |path: &Path| group.terms.admit(path);
            if origins.iter().flatten().any(goes) && paths.into_iter().any(|(_, p)| wanted(p)) {
                let moved = was.is_some_and(|was| was != source);
                group.journal.note(source, key, moved);
                self.ready_groups.insert(*id);
            }
        }
        self.alone.retain(|id| {
            let peer = self.peers.get_mut(id);
            let Some((to, session)) = peer.and_then(|peer| {
                let to = (*id, peer.config.role);
                Some((to, peer.session.as_mut()?))
            }) else {
                return false;
            };
            let wants = session.membership.as_ref().map(Membership::wants);
            let mut paths = [&change.old, &change.new].into_iter().flatten();
            let wanted = paths.any(|(_, path)| wants.is_none_or(|wants| wants.admit(path)));
            if wanted && origins.iter().flatten().any(|o| o.goes_to(to, reflects)) {
                session.out.note(source, key);
                self.ready.insert(*id);
            }
            session.out.group.is_none()
        });
    }

    pub(crate) fn origin(&self, source: Source) -> Origin {
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
            let ready = |link: &Link| link.connected && link.has_queued();
            if let Some((conn, _)) = peer.links.iter().find(|(_, link)| ready(link)) {
                let conn = *conn;
                return Some((conn, peer.take_queued(self.clock, conn)?));
            }
            let session = peer.session.as_ref()?;
            let link = peer.links.get(&session.conn)?;
            let wishes = session.membership.as_ref();
            // RFC 4684 §6: no routes before it is known which are wanted.
            if !link.writable || wishes.is_some_and(|wishes| !wishes.ended) {
                return None;
            }
            let more = match session.out.group {
                Some(group) => self.fill_from_group(id, group) || self.end_rib(id),
                None => self.fill(id) || self.end_rib(id) || self.join_group(id),
            };
            if !more {
                return None;
            }
        }
    }

    /// Writes a batch of what a peer on its own is owed; false if it is owed nothing.
    fn fill(&mut self, id: PeerId) -> bool {
        let Some(session) = self.peers.get_mut(&id).and_then(|p| p.session.as_mut()) else {
            return false;
        };
        let out = &mut session.out;
        // Before this its walk over all routes has not begun, and no news can be missed.
        self.alone.insert(id);
        // News first, however long the rest takes.
        let owed = out.owed.take(BATCH_ROUTES);
        if !owed.is_empty() {
            self.write_alone(id, &owed, true);
            return true;
        }
        if let Dump::After { key: at, first } = &out.dump {
            let next = self.rib.best_after(at.as_ref()).take(BATCH_ROUTES);
            let keys: Vec<_> = next.map(|(key, from, _)| (from, key.clone())).collect();
            if let Some((_, last)) = keys.last() {
                out.dump = Dump::After {
                    key: Some(last.clone()),
                    first: *first,
                };
                self.write_alone(id, &keys, false);
                return true;
            }
            out.dump = Dump::Done;
        }
        false
    }

    /// Says to a peer that is owed nothing that this was all; false if it was told.
    fn end_rib(&mut self, id: PeerId) -> bool {
        let may_end = self.may_end_rib();
        let Some(session) = self.peers.get_mut(&id).and_then(|p| p.session.as_mut()) else {
            return false;
        };
        let out = &mut session.out;
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
            link.send_updates(Updates::join(&[end_of_rib()]));
        }
        refreshed || ended
    }

    /// Puts a peer that is owed nothing with those that are told the same. False: there is nothing
    /// more to say to it.
    fn join_group(&mut self, id: PeerId) -> bool {
        let peer = self.peers.get_mut(&id);
        let Some((peer, terms)) = peer.and_then(|peer| peer.terms().map(|terms| (peer, terms)))
        else {
            return false;
        };
        let session = peer
            .session
            .as_mut()
            .expect("without it there are no terms");
        let like = self
            .groups
            .iter_mut()
            .find(|(_, group)| group.terms == terms);
        let (name, group) = match like {
            Some((name, group)) => (*name, group),
            None => {
                let name = GroupId(self.next_group);
                self.next_group += 1;
                let journal = Journal::default();
                let group = Group { terms, journal };
                (name, self.groups.entry(name).or_insert(group))
            }
        };
        group.journal.join(id);
        session.out.group = Some(name);
        self.alone.remove(&id);
        false
    }

    /// Puts a peer on its own: it is owed what it has not been told of what its group is told.
    pub(crate) fn leave_group(&mut self, id: PeerId) {
        let peer = self.peers.get_mut(&id);
        let Some(session) = peer.and_then(|peer| peer.session.as_mut()) else {
            return;
        };
        let Some(name) = session.out.group.take() else {
            return;
        };
        if let Some(group) = self.groups.get_mut(&name) {
            for (source, key) in group.journal.leave(id) {
                session.out.owed.note(source, &key);
            }
            self.alone.insert(id);
            if group.journal.is_deserted() {
                self.groups.remove(&name);
                self.ready_groups.remove(&name);
            }
        }
        self.ready.insert(id);
    }

    /// Queues for a member the next of what its group is told, written now if no other member came
    /// there before; false if it has been told all.
    fn fill_from_group(&mut self, id: PeerId, name: GroupId) -> bool {
        let Some(group) = self.groups.get_mut(&name) else {
            return false;
        };
        let Some(place) = group.journal.next(id) else {
            return false;
        };
        let piece = match group.journal.piece_at(place) {
            Some(piece) => piece,
            None => {
                let (notes, end) = group.journal.notes_at(place, BATCH_ROUTES);
                let terms = group.terms.clone();
                let messages = self.write_for_group(&terms, place.source, &notes);
                let Some(group) = self.groups.get_mut(&name) else {
                    return false;
                };
                group.journal.keep(place, (notes.len(), end), messages)
            }
        };
        if let Some(group) = self.groups.get_mut(&name) {
            group.journal.advance(id, place, &piece);
        }
        let Some(peer) = self.peers.get_mut(&id) else {
            return false;
        };
        if let Some(session) = &peer.session
            && let Some(link) = peer.links.get_mut(&session.conn)
        {
            for told in piece.messages.iter().filter(|told| told.whom.includes(id)) {
                peer.counters.updates_out += told.updates.messages;
                link.send_updates(told.updates.clone());
            }
        }
        true
    }

    /// Members of groups that are newly owed something may be told it.
    pub(crate) fn serve_groups(&mut self) {
        while let Some(name) = self.ready_groups.pop_first() {
            if let Some(group) = self.groups.get(&name) {
                self.ready.extend(group.journal.members());
            }
        }
    }

    /// End-of-RIB tells the peer that what we did not say is gone: so not before local routes are
    /// known, and as a reflector not before its clients had their say (RFC 4724 §4.1).
    fn may_end_rib(&self) -> bool {
        let local_known = self.local.is_some() || !self.config.role.is_vtep();
        let all_heard = self.deferral_until.is_none() || !self.config.role.is_reflector();
        local_known && all_heard
    }

    /// Messages for a group: news of one source.
    fn write_for_group(&self, terms: &Terms, from: Source, notes: &[Note]) -> Vec<(For, Bytes)> {
        let reflects = self.config.role.is_reflector();
        let mut batch = Batch::new(terms, self.cluster());
        for Note { key, moved } in notes {
            let best = self.rib.best(key).filter(|(source, path)| {
                let origin = self.origin(*source);
                *source == from && origin.goes_to_role(terms.role, reflects) && terms.admit(path)
            });
            match best {
                Some((source, path)) => batch.announce(key, path, source),
                None => batch.withdraw(key, For::AllBut(from)),
            }
            if *moved {
                batch.withdraw(key, For::Only(from));
            }
        }
        batch.into_messages()
    }

    fn write_alone(&mut self, id: PeerId, owed: &[(Source, RouteKey)], withdraw: bool) {
        let Some(terms) = self.peers.get(&id).and_then(Peer::terms) else {
            return;
        };
        let reflects = self.config.role.is_reflector();
        let to = (id, terms.role);
        let mut batch = Batch::new(&terms, self.cluster());
        for (noted, key) in owed {
            let best = self.rib.best(key);
            let goes = |source, path: &Path| {
                self.origin(source).goes_to(to, reflects) && terms.admit(path)
            };
            match best.filter(|(source, path)| goes(*source, path)) {
                Some((source, path)) => batch.announce(key, path, source),
                None if withdraw => batch.withdraw(key, For::AllBut(*noted)),
                None => {}
            }
        }
        let messages = batch.into_messages();
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        peer.counters.updates_out += messages.len() as u64;
        if let Some(session) = &peer.session
            && let Some(link) = peer.links.get_mut(&session.conn)
        {
            let messages: Vec<Bytes> = messages.into_iter().map(|(_, message)| message).collect();
            if !messages.is_empty() {
                link.send_updates(Updates::join(&messages));
            }
        }
    }

    /// Writes all that a peer is owed, whatever room there is.
    pub(crate) fn flush_all(&mut self, id: PeerId) {
        self.leave_group(id);
        while self.fill(id) {}
        self.end_rib(id);
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.links.values_mut().for_each(Link::hurry);
        }
    }

    /// Announces and withdraws the difference between what is local in the instances and what
    /// was announced of them.
    pub(crate) fn sync_announcements(&mut self, now: Instant, mut vnis: BTreeSet<Vni>) {
        vnis.extend(self.vrfs.take_contested().iter().map(|(vni, _, _)| *vni));
        for vni in vnis {
            let wanted = self.local.as_ref().and_then(|state| {
                let evi = state.evis.get(&vni)?;
                let sequence = |key, ip| self.vrfs.announced_sequence(key, ip);
                let (vtep, config) = (state.vtep, &self.config);
                let mut wanted = local::routes_of(vni, evi, vtep, config, sequence);
                if let Some(held) = self.announced.get(&vni) {
                    self.vrfs.keep_frozen(vni, &mut wanted, held);
                }
                Some(wanted)
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

    pub(crate) fn announce(&mut self, now: Instant, key: &RouteKey, route: &local::OwnRoute) {
        let path = Path {
            rest: route.nlri.rest(),
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
        self.judge(now);
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
pub(crate) enum Origin {
    Here,
    Client(PeerId),
    NonClient,
}

impl Origin {
    /// Whether it goes to such peers; one that it came from aside.
    fn goes_to_role(self, to: PeerRole, reflects: bool) -> bool {
        match self {
            Self::Here => true,
            Self::Client(_) => reflects,
            Self::NonClient => reflects && to == PeerRole::Client,
        }
    }

    pub(crate) fn goes_to(self, to: (PeerId, PeerRole), reflects: bool) -> bool {
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
                || old.rest != new.rest
                || old.attrs != new.attrs
                || old.long_lived != new.long_lived
        }
        _ => true,
    }
}

/// UPDATEs in the making: routes with equal attributes go together, those of one source apart
/// from those of another.
struct Batch<'a> {
    terms: &'a Terms,
    cluster: Ipv4Addr,
    /// In the order in which the first route of each came.
    announced: Vec<(Source, Packer)>,
    by_attrs: BTreeMap<(Source, Vec<u8>, Bytes), usize>,
    /// Where the route before went: what one UPDATE brought mostly stands together.
    last: Option<(Arc<Attrs>, Source, Ipv4Addr, bool, usize)>,
    withdrawn: BTreeMap<For, Packer>,
}

impl<'a> Batch<'a> {
    fn new(terms: &'a Terms, cluster: Ipv4Addr) -> Self {
        Self {
            terms,
            cluster,
            announced: vec![],
            by_attrs: BTreeMap::new(),
            last: None,
            withdrawn: BTreeMap::new(),
        }
    }

    fn announce(&mut self, key: &RouteKey, path: &Path, source: Source) {
        if let Some((attrs, from, router_id, long_lived, at)) = &self.last
            && Arc::ptr_eq(attrs, &path.attrs)
            && *from == source
            && *router_id == path.router_id
            && *long_lived == path.long_lived
        {
            self.announced[*at].1.push(key, &path.rest);
            return;
        }
        let marks = match source {
            Source::Local => None,
            Source::Peer(_) => Some(Reflected {
                originator: path.router_id,
                cluster: self.cluster,
            }),
        };
        let age = match (path.is_last_resort(), self.terms.long_lived) {
            (false, _) => Age::Fresh,
            (true, true) => Age::LongLived,
            (true, false) => Age::LongLivedUnknown,
        };
        let four_octet_as = self.terms.four_octet_as;
        let attrs = path.attrs.encode(marks.as_ref(), age, four_octet_as);
        let next_hop = path.attrs.next_hop_raw().clone();
        let max = if self.terms.extended_messages {
            usize::from(wire::EXTENDED_MAX_MESSAGE_LEN)
        } else {
            MESSAGE_MAX_BYTES
        };
        let announced = &mut self.announced;
        let at = *self
            .by_attrs
            .entry((source, attrs, next_hop))
            .or_insert_with_key(|(_, attrs, next_hop)| {
                let packer = Packer::announcing(attrs.clone(), next_hop, max);
                announced.push((source, packer));
                announced.len() - 1
            });
        announced[at].1.push(key, &path.rest);
        let attrs = Arc::clone(&path.attrs);
        self.last = Some((attrs, source, path.router_id, path.long_lived, at));
    }

    fn withdraw(&mut self, key: &RouteKey, whom: For) {
        let packer = self.withdrawn.entry(whom);
        let packer = packer.or_insert_with(Packer::withdrawing);
        packer.push(key, &withdrawal(key));
    }

    /// Announcements before withdrawals: a MAC that moved is never nowhere.
    fn into_messages(self) -> Vec<(For, Bytes)> {
        let announced = self.announced.into_iter();
        let announced = announced.map(|(source, packer)| (For::AllBut(source), packer));
        let all = announced.chain(self.withdrawn);
        all.flat_map(|(whom, packer)| {
            let messages = packer.finish().into_iter();
            messages.map(move |message| (whom, message))
        })
        .collect()
    }
}
