//! What a reflector takes back that does not keep routes of VTEPs whose process died: it stays for a
//! moment, and longer if the VTEP is a member.

use crate::codec::RouteKey;
use crate::peer::Peer;
use crate::rib::Source;
use crate::vrf::Seat;
use crate::{PeerId, PeerRole, Role, Speaker};
use model::{Tag, Vni};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// VTEPs that are meant to have something in a broadcast domain.
pub type Members = BTreeMap<(Vni, Tag), BTreeSet<IpAddr>>;

/// Routes that one peer took back and that are kept as a last resort.
#[derive(Debug, Default)]
pub(crate) struct TakenBack {
    kept: BTreeMap<RouteKey, Kept>,
    /// The same in order of time.
    due: BTreeSet<(Instant, RouteKey)>,
    /// When a VTEP's Type-3 route was last taken back.
    floods: BTreeMap<Seat, Instant>,
}

#[derive(Debug)]
struct Kept {
    since: Instant,
    due: Instant,
    /// What it leads to; none if it makes no row of an instance.
    seat: Option<Seat>,
    /// It is kept for a member's return: at `due` it goes. Before that, `due` is when it is judged.
    for_member: bool,
}

impl TakenBack {
    fn keep(&mut self, key: &RouteKey, kept: Kept) {
        self.forget(key);
        self.due.insert((kept.due, key.clone()));
        self.kept.insert(key.clone(), kept);
    }

    fn forget(&mut self, key: &RouteKey) -> Option<Kept> {
        let kept = self.kept.remove(key)?;
        self.due.remove(&(kept.due, key.clone()));
        if self.kept.is_empty() {
            self.floods.clear();
        }
        Some(kept)
    }

    fn is_due(&self, now: Instant) -> Option<RouteKey> {
        let (at, key) = self.due.first()?;
        (*at <= now).then(|| key.clone())
    }

    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    /// Whether the VTEP's Type-3 route went with this one. A NIC that is deleted leaves it behind. What
    /// counts is what went, not what is back by now: of a VTEP that is coming back it is the first.
    fn is_of_vtep_that_went(&self, kept: &Kept, together: Duration) -> bool {
        let flood = kept.seat.and_then(|seat| self.floods.get(&seat));
        flood.is_some_and(|at| {
            let (first, last) = (kept.since.min(*at), kept.since.max(*at));
            last.duration_since(first) <= together
        })
    }
}

impl Speaker {
    /// A peer took a route back: if it does not keep routes of VTEPs whose process died, they may say
    /// it again in a moment.
    pub(crate) fn take_back(&mut self, now: Instant, id: PeerId, key: &RouteKey) {
        let hold = self.config.timing.withdraw_hold;
        let waits = self.config.role == Role::Vtep
            && !hold.is_zero()
            && self.peers.get(&id).is_some_and(Peer::forgets_at_once);
        let source = Source::Peer(id);
        let Some(mut path) = self.rib.path(key, source).filter(|_| waits).cloned() else {
            self.withdraw(id, key);
            return;
        };
        // It is waiting already.
        if path.long_lived {
            return;
        }
        let seat = self.vrfs.seat(key, &path);
        (path.stale, path.long_lived) = (true, true);
        let change = self.rib.insert(key, source, path);
        self.on_change(key, change);
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        let kept = Kept {
            since: now,
            due: now + hold,
            seat,
            for_member: false,
        };
        peer.taken_back.keep(key, kept);
        if let (Some(seat), RouteKey::Imet { .. }) = (seat, key) {
            peer.taken_back.floods.insert(seat, now);
        }
    }

    /// A peer told a route that it may have taken back before.
    pub(crate) fn said_again(&mut self, id: PeerId, key: &RouteKey) {
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.taken_back.forget(key);
        }
    }

    /// What was taken back a moment ago is judged, and what was kept for a member goes.
    pub(crate) fn on_taken_back_due(&mut self, now: Instant, id: PeerId) {
        let timing = self.config.timing;
        let keeps = timing.member_hold > timing.withdraw_hold && !self.hears_a_keeper();
        while let Some(peer) = self.peers.get_mut(&id)
            && let Some(key) = peer.taken_back.is_due(now)
        {
            let went = peer.taken_back.kept.get(&key).is_some_and(|kept| {
                let together = timing.withdraw_hold;
                !kept.for_member
                    && keeps
                    && kept.seat.is_some_and(|seat| is_member(&self.members, seat))
                    && peer.taken_back.is_of_vtep_that_went(kept, together)
            });
            match peer.taken_back.forget(&key) {
                Some(kept) if went => {
                    let kept = Kept {
                        due: kept.since + timing.member_hold,
                        for_member: true,
                        ..kept
                    };
                    peer.taken_back.keep(&key, kept);
                }
                _ => self.give_up(id, &key),
            }
        }
    }

    /// Members from now on. What is kept of one that was a member and is none any more goes: its last
    /// NIC was deleted, or it was thrown out.
    pub(crate) fn take_members(&mut self, members: Members) {
        let before = std::mem::replace(&mut self.members, members);
        let left = |seat: Seat| is_member(&before, seat) && !is_member(&self.members, seat);
        let mut gone = vec![];
        for (id, peer) in &self.peers {
            let kept = peer.taken_back.kept.iter();
            let of_gone = kept.filter(|(_, kept)| kept.seat.is_some_and(left));
            gone.extend(of_gone.map(|(key, _)| (*id, key.clone())));
        }
        for (id, key) in gone {
            self.said_again(id, &key);
            self.give_up(id, &key);
        }
    }

    /// Until when a speaker that starts waits for members before it calls what it has complete, once all
    /// peers told everything: if their processes died with this one, such a reflector has nothing of
    /// them. A member's other routes come right after its Type-3 route. None: it waits for nobody.
    pub(crate) fn waits_for_members_until(&self) -> Option<Instant> {
        let timing = self.config.timing;
        let until = self.deferral_until.filter(|_| self.knows_instances())?;
        if self.config.role != Role::Vtep || !self.has_heard_all() || self.hears_a_keeper() {
            return None;
        }
        let latest = until - timing.deferral + timing.member_hold;
        let seats = self.members.iter().flat_map(|((vni, tag), vteps)| {
            let vteps = vteps.iter();
            vteps.map(move |vtep| (*vni, *tag, *vtep))
        });
        let settled = seats.filter_map(|seat| {
            let keys = self.vrfs.floods_to(seat)?;
            let since = keys.filter_map(|key| Some(self.rib.best(key)?.1.since));
            Some(since.min().map_or(latest, |at| at + timing.withdraw_hold))
        });
        settled.max().map(|at| at.min(latest))
    }

    /// Whether a reflector is heard that keeps routes of VTEPs whose process died: what it has not got
    /// is gone.
    fn hears_a_keeper(&self) -> bool {
        let mut reflectors = self.configured().map(|(_, peer)| peer);
        reflectors.any(|peer| {
            peer.config.role == PeerRole::Reflector && peer.is_synced() && !peer.forgets_at_once()
        })
    }

    fn give_up(&mut self, id: PeerId, key: &RouteKey) {
        let path = self.rib.path(key, Source::Peer(id));
        if path.is_some_and(|path| path.long_lived) {
            self.withdraw(id, key);
        }
    }
}

fn is_member(members: &Members, (vni, tag, vtep): Seat) -> bool {
    let there = members.get(&(vni, tag));
    there.is_some_and(|vteps| vteps.contains(&vtep))
}
