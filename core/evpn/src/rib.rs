//! All paths to all routes, and which is best.

use crate::PeerId;
use crate::codec::{Attrs, RouteKey};
use bytes::Bytes;
use std::cmp::Ordering;
use std::collections::BTreeMap;
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
    /// The route as it came, labels included.
    pub(crate) nlri: Bytes,
    pub(crate) label: Option<u32>,
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

/// A route's paths.
#[derive(Debug, Default)]
struct Route {
    paths: BTreeMap<Source, Path>,
    best: Option<Source>,
}

impl Route {
    fn best(&self) -> Option<(Source, &Path)> {
        let source = self.best?;
        Some((source, self.paths.get(&source)?))
    }

    fn choose(&self) -> Option<Source> {
        let mut paths = self.paths.iter();
        let first = paths.next()?;
        let best = paths.fold(first, |best, other| {
            match compare((*best.0, best.1), (*other.0, other.1)).0 {
                Ordering::Less => other,
                _ => best,
            }
        });
        Some(*best.0)
    }
}

/// The routing information base.
#[derive(Debug, Default)]
pub(crate) struct Rib {
    routes: BTreeMap<RouteKey, Route>,
    /// Paths of each source.
    counts: BTreeMap<Source, usize>,
}

impl Rib {
    /// Puts a path in place of what the source had; none if the best path did not change by it.
    pub(crate) fn insert(&mut self, key: &RouteKey, source: Source, path: Path) -> Option<Change> {
        let route = match self.routes.get_mut(key) {
            Some(route) => route,
            None => self.routes.entry(key.clone()).or_default(),
        };
        if let Some(held) = route.paths.get_mut(&source)
            && held.nlri == path.nlri
            && held.attrs == path.attrs
            && held.long_lived == path.long_lived
        {
            // Said again, as after a restart: nothing changes but that it is fresh.
            let was_stale = std::mem::replace(&mut held.stale, path.stale);
            held.router_id = path.router_id;
            return was_stale.then(|| self.choose_again(key)).flatten();
        }
        let old = route.best().map(|(source, path)| (source, path.clone()));
        if route.paths.insert(source, path).is_none() {
            *self.counts.entry(source).or_default() += 1;
        }
        route.best = route.choose();
        let new = route.best().map(|(source, path)| (source, path.clone()));
        let untouched = match (&old, &new) {
            (Some((was, _)), Some((is, _))) => was == is && *is != source,
            _ => false,
        };
        (!untouched).then_some(Change { old, new })
    }

    /// Takes away a source's path.
    pub(crate) fn remove(&mut self, key: &RouteKey, source: Source) -> Option<Change> {
        let route = self.routes.get_mut(key)?;
        let was_best = route.best == Some(source);
        let removed = route.paths.remove(&source)?;
        if let Some(count) = self.counts.get_mut(&source) {
            *count -= 1;
        }
        if !was_best {
            return None;
        }
        route.best = route.choose();
        let new = route.best().map(|(source, path)| (source, path.clone()));
        if new.is_none() {
            self.routes.remove(key);
        }
        Some(Change {
            old: Some((source, removed)),
            new,
        })
    }

    /// Marks all of a peer's paths stale. What is best may move to another peer's fresh copy.
    pub(crate) fn mark_stale(&mut self, peer: PeerId) -> Vec<(RouteKey, Change)> {
        let mut touched = vec![];
        for (key, route) in &mut self.routes {
            if let Some(path) = route.paths.get_mut(&Source::Peer(peer))
                && !path.stale
            {
                path.stale = true;
                if route.paths.len() > 1 {
                    touched.push(key.clone());
                }
            }
        }
        let again = |key: RouteKey| Some((key.clone(), self.choose_again(&key)?));
        touched.into_iter().filter_map(again).collect()
    }

    /// Keys of a peer's stale paths that must not outlive its restart time (RFC 9494 §4.2,
    /// NO_LLGR).
    pub(crate) fn stale_without_long_life(&self, peer: PeerId) -> Vec<RouteKey> {
        let source = Source::Peer(peer);
        let refuses = |route: &Route| {
            let path = route.paths.get(&source);
            path.is_some_and(|path| path.stale && path.attrs.no_long_life)
        };
        let routes = self.routes.iter().filter(|(_, route)| refuses(route));
        routes.map(|(key, _)| key.clone()).collect()
    }

    /// Makes a peer's stale paths the last resort.
    pub(crate) fn mark_long_lived(&mut self, peer: PeerId) -> Vec<(RouteKey, Change)> {
        let source = Source::Peer(peer);
        let mut changes = vec![];
        for (key, route) in &mut self.routes {
            let old = route.best().map(|(source, path)| (source, path.clone()));
            let Some(path) = route.paths.get_mut(&source).filter(|path| path.stale) else {
                continue;
            };
            path.long_lived = true;
            if route.best == Some(source) {
                route.best = route.choose();
                let new = route.best().map(|(source, path)| (source, path.clone()));
                changes.push((key.clone(), Change { old, new }));
            }
        }
        changes
    }

    /// Takes back [`Self::mark_stale`].
    pub(crate) fn mark_fresh(&mut self, peer: PeerId) -> Vec<(RouteKey, Change)> {
        let mut touched = vec![];
        for (key, route) in &mut self.routes {
            if let Some(path) = route.paths.get_mut(&Source::Peer(peer)) {
                path.stale = false;
                touched.push(key.clone());
            }
        }
        let again = |key: RouteKey| Some((key.clone(), self.choose_again(&key)?));
        touched.into_iter().filter_map(again).collect()
    }

    fn choose_again(&mut self, key: &RouteKey) -> Option<Change> {
        let route = self.routes.get_mut(key)?;
        let chosen = route.choose();
        if chosen == route.best {
            return None;
        }
        let old = route.best().map(|(source, path)| (source, path.clone()));
        route.best = chosen;
        let new = route.best().map(|(source, path)| (source, path.clone()));
        Some(Change { old, new })
    }

    /// Keys of a peer's paths, all or the stale ones.
    pub(crate) fn keys_of(&self, peer: PeerId, only_stale: bool) -> Vec<RouteKey> {
        let source = Source::Peer(peer);
        let wanted = |route: &Route| {
            route
                .paths
                .get(&source)
                .is_some_and(|path| path.stale || !only_stale)
        };
        self.routes
            .iter()
            .filter(|(_, route)| wanted(route))
            .map(|(key, _)| key.clone())
            .collect()
    }

    /// How many paths a source has.
    pub(crate) fn count(&self, source: Source) -> usize {
        self.counts.get(&source).copied().unwrap_or_default()
    }

    /// Peers whose stale path to a route we hold.
    pub(crate) fn stale_sources(&self, key: &RouteKey) -> Vec<PeerId> {
        let Some(route) = self.routes.get(key) else {
            return vec![];
        };
        route
            .paths
            .iter()
            .filter_map(|(source, path)| match source {
                Source::Peer(peer) if path.stale => Some(*peer),
                _ => None,
            })
            .collect()
    }

    pub(crate) fn path(&self, key: &RouteKey, source: Source) -> Option<&Path> {
        self.routes.get(key)?.paths.get(&source)
    }

    pub(crate) fn best(&self, key: &RouteKey) -> Option<(Source, &Path)> {
        self.routes.get(key)?.best()
    }

    /// Best paths in order, from after a key on.
    pub(crate) fn best_after<'a>(
        &'a self,
        key: Option<&'a RouteKey>,
    ) -> impl Iterator<Item = (&'a RouteKey, Source, &'a Path)> {
        let from = key.map_or(Bound::Unbounded, Bound::Excluded);
        self.routes
            .range((from, Bound::Unbounded))
            .filter_map(|(key, route)| {
                let (source, path) = route.best()?;
                Some((key, source, path))
            })
    }

    /// Every path, and what decided against it; none for the best.
    pub(crate) fn all(
        &self,
    ) -> impl Iterator<Item = (&RouteKey, Source, &Path, Option<&'static str>)> {
        self.routes.iter().flat_map(|(key, route)| {
            route.paths.iter().map(move |(source, path)| {
                let why = match route.best() {
                    Some((best, winner)) if best != *source => {
                        Some(compare((best, winner), (*source, path)).1)
                    }
                    _ => None,
                };
                (key, *source, path, why)
            })
        })
    }
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
