//! All paths to all routes, and which is best.

use crate::PeerId;
use crate::codec::{Attrs, RouteKey};
use crate::rest::Rest;
use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::collections::btree_map::{BTreeMap, Entry};
use std::net::Ipv4Addr;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Instant;

/// Where a path came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Source {
    /// This host.
    Local,
    /// A peer.
    Peer(PeerId),
}

/// One way to a route.
#[derive(Debug, Clone)]
pub(crate) struct Path {
    /// What the route says beside its key.
    pub(crate) rest: Rest,
    pub(crate) attrs: Arc<Attrs>,
    /// Kept for a peer whose session is down (RFC 4724 §4.2), or that is no longer configured.
    pub(crate) stale: bool,
    /// Stale beyond the restart time (RFC 9494 §4.2).
    pub(crate) long_lived: bool,
    /// BGP identifier of the peer, for ORIGINATOR_ID and the tie.
    pub(crate) router_id: Ipv4Addr,
    /// When it came or last changed.
    pub(crate) since: Instant,
}

impl Path {
    /// Whether anything fresh is better (RFC 9494 §4.3): it is long stale here, or was where it
    /// came from.
    pub(crate) fn is_last_resort(&self) -> bool {
        self.long_lived || self.attrs.long_lived_stale
    }
}

/// The best path to a route before and after something happened.
#[derive(Debug)]
pub(crate) struct Change {
    pub(crate) old: Option<(Source, Path)>,
    pub(crate) new: Option<(Source, Path)>,
}

/// A route's paths: almost always one.
#[derive(Debug)]
struct Route {
    best: (Source, Path),
    others: Box<[(Source, Path)]>,
}

impl Route {
    fn get_mut(&mut self, source: Source) -> Option<&mut Path> {
        let mut all = std::iter::once(&mut self.best).chain(&mut self.others);
        all.find(|(held, _)| *held == source).map(|(_, path)| path)
    }

    fn all(&self) -> impl Iterator<Item = &(Source, Path)> {
        std::iter::once(&self.best).chain(&self.others)
    }

    fn get(&self, source: Source) -> Option<&Path> {
        let mut all = self.all();
        all.find(|(held, _)| *held == source).map(|(_, path)| path)
    }

    /// Puts the best path in its place.
    fn choose(&mut self) {
        let better = |a: &(Source, Path), b: &(Source, Path)| compare((a.0, &a.1), (b.0, &b.1)).0;
        if let Some(best) = self.others.iter_mut().max_by(|a, b| better(a, b))
            && better(best, &self.best).is_gt()
        {
            std::mem::swap(best, &mut self.best);
        }
    }

    fn add(&mut self, source: Source, path: Path) {
        let others = std::mem::take(&mut self.others);
        self.others = others.into_iter().chain([(source, path)]).collect();
    }

    /// Takes away a source's path, unless it is the only one.
    fn take(&mut self, source: Source) -> Option<(Source, Path)> {
        let mut others = std::mem::take(&mut self.others).into_vec();
        let taken = if self.best.0 == source {
            let next = others.pop()?;
            Some(std::mem::replace(&mut self.best, next))
        } else {
            let at = others.iter().position(|(held, _)| *held == source);
            at.map(|at| others.swap_remove(at))
        };
        self.others = others.into();
        self.choose();
        taken
    }
}

/// What a peer told, so that nothing else need be looked at when it goes.
#[derive(Debug, Default)]
struct Told {
    keys: BTreeSet<RouteKey>,
    stale: usize,
}

impl Told {
    fn count_stale(&mut self, before: bool, after: bool) {
        self.stale = self.stale + usize::from(after) - usize::from(before);
    }
}

/// The routing information base.
#[derive(Debug, Default)]
pub(crate) struct Rib {
    routes: BTreeMap<RouteKey, Route>,
    told: BTreeMap<PeerId, Told>,
    /// How many routes there are of each type.
    by_type: BTreeMap<u8, usize>,
}

impl Rib {
    /// Puts a path in place of what the source had; none if the best path did not change by it.
    pub(crate) fn insert(&mut self, key: &RouteKey, source: Source, path: Path) -> Option<Change> {
        let stale = path.stale;
        let route = match self.routes.entry(key.clone()) {
            Entry::Vacant(place) => {
                let best = (source, path);
                let new = Some(best.clone());
                let others = Box::default();
                place.insert(Route { best, others });
                *self.by_type.entry(key.kind()).or_default() += 1;
                self.note_told(key, source, stale);
                return Some(Change { old: None, new });
            }
            Entry::Occupied(route) => route.into_mut(),
        };
        let old = route.best.clone();
        let Some(held) = route.get_mut(source) else {
            route.add(source, path);
            route.choose();
            let change = change_of(old, route, source);
            self.note_told(key, source, stale);
            return change;
        };
        let was_stale = held.stale;
        // Said again, as after a restart: nothing changes but that it is fresh.
        let same = held.rest == path.rest
            && held.attrs == path.attrs
            && held.long_lived == path.long_lived;
        if same {
            held.stale = stale;
            held.router_id = path.router_id;
            if was_stale {
                route.choose();
            }
        } else {
            *held = path;
            route.choose();
        }
        let change = if same && old.0 == route.best.0 {
            None
        } else {
            change_of(old, route, source)
        };
        if let Source::Peer(peer) = source
            && let Some(told) = self.told.get_mut(&peer)
        {
            told.count_stale(was_stale, stale);
        }
        change
    }

    fn note_told(&mut self, key: &RouteKey, source: Source, stale: bool) {
        if let Source::Peer(peer) = source {
            let told = self.told.entry(peer).or_default();
            told.keys.insert(key.clone());
            told.count_stale(false, stale);
        }
    }

    /// Takes away a source's path.
    pub(crate) fn remove(&mut self, key: &RouteKey, source: Source) -> Option<Change> {
        let route = self.routes.get_mut(key)?;
        let was_best = route.best.0 == source;
        let (taken, new) = if was_best && route.others.is_empty() {
            if let Some(count) = self.by_type.get_mut(&key.kind()) {
                *count -= 1;
            }
            (self.routes.remove(key)?.best, None)
        } else {
            (route.take(source)?, Some(route.best.clone()))
        };
        if let Source::Peer(peer) = source
            && let Some(told) = self.told.get_mut(&peer)
        {
            told.keys.remove(key);
            told.count_stale(taken.1.stale, false);
            if told.keys.is_empty() {
                self.told.remove(&peer);
            }
        }
        was_best.then_some(Change {
            old: Some(taken),
            new,
        })
    }

    /// Marks all of a peer's paths stale. What is best may move to another peer's fresh copy.
    pub(crate) fn mark_stale(&mut self, peer: PeerId) -> Vec<(RouteKey, Change)> {
        self.mark(peer, |path| path.stale = true)
    }

    /// Takes back [`Self::mark_stale`].
    pub(crate) fn mark_fresh(&mut self, peer: PeerId) -> Vec<(RouteKey, Change)> {
        self.mark(peer, |path| path.stale = false)
    }

    /// Makes a peer's stale paths the last resort.
    pub(crate) fn mark_long_lived(&mut self, peer: PeerId) -> Vec<(RouteKey, Change)> {
        self.mark(peer, |path| path.long_lived |= path.stale)
    }

    /// Changes the age of all of a peer's paths. Told is what is best now and was not, or is and
    /// has become the last resort.
    fn mark(&mut self, peer: PeerId, age: impl Fn(&mut Path)) -> Vec<(RouteKey, Change)> {
        let Some(told) = self.told.get_mut(&peer) else {
            return vec![];
        };
        let (source, mut changes) = (Source::Peer(peer), vec![]);
        told.stale = 0;
        for key in &told.keys {
            let route = self.routes.get_mut(key).expect("what was told is held");
            let old = route.best.clone();
            let path = route.get_mut(source).expect("the peer told it");
            age(path);
            told.stale += usize::from(path.stale);
            if !route.others.is_empty() {
                route.choose();
            }
            let (was, is) = (&old, &route.best);
            if was.0 != is.0 || was.1.long_lived != is.1.long_lived {
                let new = Some(is.clone());
                let old = Some(old);
                changes.push((key.clone(), Change { old, new }));
            }
        }
        changes
    }

    /// Keys of a peer's stale paths that must not outlive its restart time (RFC 9494 §4.2,
    /// NO_LLGR).
    pub(crate) fn stale_without_long_life(&self, peer: PeerId) -> Vec<RouteKey> {
        self.keys_where(peer, |path| path.stale && path.attrs.no_long_life)
    }

    /// Keys of a peer's paths, all or the stale ones.
    pub(crate) fn keys_of(&self, peer: PeerId, only_stale: bool) -> Vec<RouteKey> {
        if only_stale && self.count_of(peer).1 == 0 {
            return vec![];
        }
        self.keys_where(peer, |path| path.stale || !only_stale)
    }

    fn keys_where(&self, peer: PeerId, wanted: impl Fn(&Path) -> bool) -> Vec<RouteKey> {
        let keys = self.told.get(&peer).into_iter().flat_map(|told| &told.keys);
        keys.filter(|key| self.path(key, Source::Peer(peer)).is_some_and(&wanted))
            .cloned()
            .collect()
    }

    /// How many paths a peer told, and how many of them are stale.
    pub(crate) fn count_of(&self, peer: PeerId) -> (usize, usize) {
        let told = self.told.get(&peer);
        told.map_or((0, 0), |told| (told.keys.len(), told.stale))
    }

    /// How many routes there are of each type that there ever was one of.
    pub(crate) fn count_by_type(&self) -> BTreeMap<u8, usize> {
        self.by_type.clone()
    }

    /// Peers whose stale path to a route we hold.
    pub(crate) fn stale_sources(&self, key: &RouteKey) -> Vec<PeerId> {
        let paths = self.routes.get(key).into_iter().flat_map(Route::all);
        paths
            .filter_map(|(source, path)| match source {
                Source::Peer(peer) if path.stale => Some(*peer),
                _ => None,
            })
            .collect()
    }

    pub(crate) fn path(&self, key: &RouteKey, source: Source) -> Option<&Path> {
        self.routes.get(key)?.get(source)
    }

    pub(crate) fn best(&self, key: &RouteKey) -> Option<(Source, &Path)> {
        let (source, path) = &self.routes.get(key)?.best;
        Some((*source, path))
    }

    /// Best paths in order, from after a key on.
    pub(crate) fn best_after<'a>(
        &'a self,
        key: Option<&'a RouteKey>,
    ) -> impl Iterator<Item = (&'a RouteKey, Source, &'a Path)> {
        let from = key.map_or(Bound::Unbounded, Bound::Excluded);
        let routes = self.routes.range((from, Bound::Unbounded));
        routes.map(|(key, route)| (key, route.best.0, &route.best.1))
    }

    /// Every route with its paths, in no order.
    pub(crate) fn every(&self) -> impl Iterator<Item = (&RouteKey, impl Iterator<Item = &Path>)> {
        self.routes
            .iter()
            .map(|(key, route)| (key, route.all().map(|(_, path)| path)))
    }

    /// Every path, and what decided against it; none for the best. By source.
    pub(crate) fn all(
        &self,
    ) -> impl Iterator<Item = (&RouteKey, Source, &Path, Option<&'static str>)> {
        self.routes.iter().flat_map(|(key, route)| {
            let (best, winner) = &route.best;
            let mut paths: Vec<_> = route.all().collect();
            paths.sort_unstable_by_key(|(source, _)| *source);
            paths.into_iter().map(move |(source, path)| {
                let lost = source != best;
                let why = lost.then(|| compare((*best, winner), (*source, path)).1);
                (key, *source, path, why)
            })
        })
    }
}

/// What a path's coming made of the best one; none if that was and is another.
fn change_of(old: (Source, Path), route: &Route, source: Source) -> Option<Change> {
    let untouched = old.0 == route.best.0 && old.0 != source;
    (!untouched).then(|| Change {
        old: Some(old),
        new: Some(route.best.clone()),
    })
}

/// Greater is better; and the rule that decided (RFC 4271 §9.1.2.2, RFC 7432 §15, RFC 4456 §9).
fn compare(a: (Source, &Path), b: (Source, &Path)) -> (Ordering, &'static str) {
    let local = |source| source == Source::Local;
    let (x, y) = (&a.1.attrs, &b.1.attrs);
    let id = |path: &Path| path.attrs.originator.unwrap_or(path.router_id);
    let rules = [
        (local(a.0).cmp(&local(b.0)), "ours"),
        (
            b.1.is_last_resort().cmp(&a.1.is_last_resort()),
            "long-lived stale",
        ),
        (x.sticky.cmp(&y.sticky), "static bit"),
        (x.sequence.cmp(&y.sequence), "mobility sequence"),
        (x.local_pref.cmp(&y.local_pref), "local preference"),
        (y.as_path_len.cmp(&x.as_path_len), "AS path length"),
        (y.origin.cmp(&x.origin), "origin"),
        (y.med.cmp(&x.med), "MED"),
        (b.1.stale.cmp(&a.1.stale), "fresh over stale"),
        (y.next_hop.cmp(&x.next_hop), "lower next hop"),
        (
            y.cluster_list.len().cmp(&x.cluster_list.len()),
            "cluster list length",
        ),
        (id(b.1).cmp(&id(a.1)), "lower originator"),
        (b.0.cmp(&a.0), "lower peer address"),
    ];
    let decided = rules.into_iter().find(|(order, _)| order.is_ne());
    decided.unwrap_or((Ordering::Equal, "same"))
}
