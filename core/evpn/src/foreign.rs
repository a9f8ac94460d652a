//! Routes of another host's that a client announces.

use crate::codec::{Attrs, RouteKey};
use crate::{Alert, AlertKind, Announces, PeerId, Rd, Speaker};
use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::time::Instant;

/// More such routes of a client than this are counted and not remembered.
const HELD_MAX: usize = 1024;

/// Why a route is not a client's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Foreign {
    /// Its distinguisher is made of another router id, or of none.
    Distinguisher(Rd),
    /// Its frames would go elsewhere.
    NextHop(IpAddr),
    /// What is flooded would go elsewhere.
    Endpoint(IpAddr),
    /// It would be another VTEP's place on flood lists.
    Originator(IpAddr),
    /// Of a type whose distinguisher we cannot find, and another client announces the same.
    Taken,
}

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Distinguisher(rd) => write!(f, "with distinguisher {rd}"),
            Self::NextHop(address) => write!(f, "with next hop {address}"),
            Self::Endpoint(address) => write!(f, "with tunnel endpoint {address}"),
            Self::Originator(address) => write!(f, "with originating router {address}"),
            Self::Taken => f.write_str("which another host announces"),
        }
    }
}

/// What makes a route another's, judged by the route alone.
pub(crate) fn judge(
    peer: PeerId,
    announces: Announces,
    key: &RouteKey,
    attrs: &Attrs,
) -> Option<Foreign> {
    let Announces::Own { router_id } = announces else {
        return None;
    };
    let rd = key.rd().filter(|rd| rd.router_id() != Some(router_id));
    let next_hop = Some(attrs.next_hop).filter(|address| *address != peer);
    let (endpoint, originator) = match key {
        RouteKey::Imet { originator, .. } => {
            let endpoint = attrs.replication.map(|(_, endpoint)| endpoint);
            (endpoint, Some(*originator))
        }
        _ => (None, None),
    };
    rd.map(Foreign::Distinguisher)
        .or(next_hop.map(Foreign::NextHop))
        .or(endpoint.filter(|at| *at != peer).map(Foreign::Endpoint))
        .or(originator.filter(|at| *at != peer).map(Foreign::Originator))
}

/// What a client announces of others' on its present session.
#[derive(Debug, Default)]
pub(crate) struct ForeignRoutes {
    keys: BTreeSet<RouteKey>,
    /// The first of them, in words, and since when.
    first: Option<(String, Instant)>,
}

impl ForeignRoutes {
    /// Takes note of one; in words if it is the first.
    fn note(&mut self, now: Instant, key: &RouteKey, why: Foreign) -> Option<String> {
        if self.keys.len() < HELD_MAX {
            self.keys.insert(key.clone());
        }
        if self.first.is_some() {
            return None;
        }
        let what = format!("{key} {why}");
        self.first = Some((what.clone(), now));
        Some(what)
    }

    /// The client took it back, or announces it as its own.
    pub(crate) fn forget(&mut self, key: &RouteKey) {
        if self.keys.remove(key) && self.keys.is_empty() {
            self.first = None;
        }
    }

    /// One of them in words, while there are any.
    pub(crate) fn example(&self) -> Option<&str> {
        self.first.as_ref().map(|(what, _)| what.as_str())
    }
}

impl Speaker {
    /// Whether a client may announce a route; if not, that is told and counted, and what it had of
    /// the route goes.
    pub(crate) fn may_announce(
        &mut self,
        now: Instant,
        id: PeerId,
        key: &RouteKey,
        attrs: &Attrs,
    ) -> bool {
        let Some(announces) = self.peers.get(&id).map(|peer| peer.config.announces) else {
            return false;
        };
        let limited = announces != Announces::Any;
        let taken = || {
            let other = limited && key.rd().is_none() && self.is_of_other_client(key, id);
            other.then_some(Foreign::Taken)
        };
        let why = judge(id, announces, key, attrs).or_else(taken);
        let Some(peer) = self.peers.get_mut(&id) else {
            return false;
        };
        let Some(why) = why else {
            peer.foreign.forget(key);
            return true;
        };
        peer.counters.routes_foreign += 1;
        if let Some(what) = peer.foreign.note(now, key, why) {
            self.report(crate::Event::ForeignRoutes { peer: id, what });
        }
        self.withdraw(id, key);
        false
    }

    pub(crate) fn foreign_alerts(&self, now: Instant) -> Vec<Alert> {
        let alert = |(id, peer): (&PeerId, &crate::peer::Peer)| {
            peer.session.as_ref()?;
            let (example, since) = peer.foreign.first.as_ref()?;
            let count = match peer.foreign.keys.len() {
                HELD_MAX => format!("{HELD_MAX} or more"),
                count => count.to_string(),
            };
            Some(Alert {
                kind: AlertKind::ForeignRoutes,
                what: format!(
                    "{id} announces routes of another host, which are not taken: {count}, as {example}"
                ),
                place: format!("routes from {id}"),
                since: now.saturating_duration_since(*since),
                remedy: REMEDY.replace("{id}", &id.to_string()),
            })
        };
        self.configured().filter_map(alert).collect()
    }
}

/// What to do about it.
pub(crate) const REMEDY: &str = "see `vpc host list` for who has {id} and whether the host's own underlay address is the \
    same (`vpc evpn summary` there: vtep, router id); if they are, somebody else has that host";
