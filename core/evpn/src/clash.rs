//! Hosts that pass for this one: its VTEP address, or its router id, is in use elsewhere.

use crate::PeerId;
use crate::codec::RouteKey;
use crate::rib::{Change, Path, Source};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

/// More routes in a circle than this from others are not told apart.
const LOOPED_MAX: usize = 1024;

/// Who passes for this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Clash {
    /// A router announces our VTEP address as its own.
    Vtep { router_id: Ipv4Addr, peer: PeerId },
    /// A VTEP uses our router id.
    RouterId { vtep: IpAddr, peer: PeerId },
}

/// Signs of hosts that pass for this one.
#[derive(Debug, Default)]
pub(crate) struct Clashes {
    /// How many routes say so, and since when.
    held: BTreeMap<Clash, (usize, Option<Instant>)>,
    /// Routes that name us as their originator and are not ours: dropped by loop detection, so
    /// held here alone. With the number of the session they came by.
    looped: BTreeMap<(PeerId, RouteKey), (u64, IpAddr, Instant)>,
    /// Not told yet.
    fresh: Vec<Clash>,
}

/// Who this host is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Me {
    pub(crate) vtep: IpAddr,
    pub(crate) router_id: Ipv4Addr,
}

impl Clashes {
    /// Takes a change of the best path to a route.
    pub(crate) fn apply(&mut self, me: Me, key: &RouteKey, change: &Change) {
        let old = change
            .old
            .as_ref()
            .and_then(|(s, path)| of(me, key, *s, path));
        let new = change
            .new
            .as_ref()
            .and_then(|(s, path)| of(me, key, *s, path));
        if old == new {
            return;
        }
        if let Some(clash) = new {
            self.add(clash);
        }
        if let Some(clash) = old
            && let Some((count, _)) = self.held.get_mut(&clash)
        {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.held.remove(&clash);
            }
        }
    }

    /// Counts afresh, because this host's address is another.
    pub(crate) fn rebuild<'a>(
        &mut self,
        me: Me,
        best: impl Iterator<Item = (&'a RouteKey, Source, &'a Path)>,
    ) {
        self.held.clear();
        for (key, source, path) in best {
            if let Some(clash) = of(me, key, source, path) {
                self.add(clash);
            }
        }
    }

    fn add(&mut self, clash: Clash) {
        let entry = self.held.entry(clash);
        let (count, _) = entry.or_insert_with(|| {
            self.fresh.push(clash);
            (0, None)
        });
        *count += 1;
    }

    /// A peer sent a route again: one with our originator and that next hop, or another one.
    pub(crate) fn note_loop(
        &mut self,
        now: Instant,
        peer: PeerId,
        session: u64,
        key: &RouteKey,
        next_hop: Option<IpAddr>,
    ) {
        match next_hop {
            Some(vtep) if self.looped.len() < LOOPED_MAX => {
                let clash = Clash::RouterId { vtep, peer };
                let known = |(at, _): (&(PeerId, RouteKey), &(u64, IpAddr, Instant))| at.0 == peer;
                if !self.looped.iter().any(known) {
                    self.fresh.push(clash);
                }
                let entry = self.looped.entry((peer, key.clone()));
                *entry.or_insert((session, vtep, now)) = (session, vtep, now);
            }
            Some(_) => {}
            None if self.looped.is_empty() => {}
            None => _ = self.looped.remove(&(peer, key.clone())),
        }
    }

    /// Clashes not told yet.
    pub(crate) fn take_fresh(&mut self, now: Instant) -> Vec<Clash> {
        let fresh = std::mem::take(&mut self.fresh);
        for clash in &fresh {
            if let Some((_, since)) = self.held.get_mut(clash) {
                since.get_or_insert(now);
            }
        }
        fresh
    }

    /// All there are, with the time since which they are; `session` numbers a peer's present
    /// session.
    pub(crate) fn all(&self, session: impl Fn(PeerId) -> Option<u64>) -> BTreeMap<Clash, Instant> {
        let held = self.held.iter();
        let mut all: BTreeMap<Clash, Instant> = held
            .filter_map(|(clash, (_, since))| Some((*clash, (*since)?)))
            .collect();
        for ((peer, _), (number, vtep, since)) in &self.looped {
            if session(*peer) == Some(*number) {
                let (vtep, peer) = (*vtep, *peer);
                let at = all.entry(Clash::RouterId { vtep, peer }).or_insert(*since);
                *at = (*at).min(*since);
            }
        }
        all
    }
}

fn of(me: Me, key: &RouteKey, source: Source, path: &Path) -> Option<Clash> {
    let Source::Peer(peer) = source else {
        return None;
    };
    let vtep = path.attrs.next_hop;
    let named = key.rd().and_then(|rd| rd.router_id());
    match (vtep == me.vtep, named == Some(me.router_id)) {
        (true, false) => {
            let originator = path.attrs.originator.unwrap_or(path.router_id);
            let router_id = named.unwrap_or(originator);
            // The client of this very host, if we are the listener beside it: its own routes.
            let own_client = peer == me.vtep && originator == path.router_id;
            let ours = originator == me.router_id || own_client;
            (!ours).then_some(Clash::Vtep { router_id, peer })
        }
        (false, true) => Some(Clash::RouterId { vtep, peer }),
        _ => None,
    }
}
