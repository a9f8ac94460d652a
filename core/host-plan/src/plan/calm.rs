//! What had nothing left to do at the last difference, so that the next looks only into what is other.

use crate::want::{Want, WantRouter};
use crate::{FdbRow, Guard, HostState, Link, Neighbour, RouterState, Shared, Trunk};
use model::{IfName, NetnsName, RouterId};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

/// Routers, and the host around them. What EVPN told, and whether that was all, is part of what should be:
/// it is spelt out anew when that changes.
#[derive(Debug, Default)]
pub(crate) struct Calm {
    /// Each with what it should have been and what it was.
    routers: BTreeMap<RouterId, (Arc<WantRouter>, Arc<RouterState>)>,
    /// As what should be is now; see [`Calm::host_is_other`].
    host: Option<Host>,
}

/// The host as it was, but for the insides of routers.
#[derive(Debug)]
struct Host {
    links: Shared<BTreeMap<IfName, Link>>,
    fdb: Shared<BTreeSet<FdbRow>>,
    neighbours: Shared<BTreeSet<Neighbour>>,
    trunks: BTreeMap<IfName, Trunk>,
    owned_netns: Shared<BTreeSet<NetnsName>>,
    firewall: bool,
    guards: Shared<BTreeMap<IfName, Guard>>,
    vteps: Shared<BTreeSet<IpAddr>>,
}

impl Host {
    fn is(&self, observed: &HostState) -> bool {
        // Each by its name, so that none can be forgotten.
        let HostState {
            // What it can do is spelt out with what should be.
            capabilities: _,
            links,
            fdb,
            neighbours,
            trunks,
            netns,
            // See `covers`.
            routers: _,
            owned_netns,
            firewall,
            guards,
            vteps,
            datapath,
            datapath_trouble,
        } = observed;
        netns.is_empty()
            && datapath.is_none()
            && datapath_trouble.is_none()
            && self.links == *links
            && self.fdb == *fdb
            && self.neighbours == *neighbours
            && self.trunks == *trunks
            && self.owned_netns == *owned_netns
            && self.firewall == *firewall
            && self.guards == *guards
            && self.vteps == *vteps
    }
}

impl Calm {
    /// Something else should be on the host than before, beside insides of routers.
    pub(crate) fn host_is_other(&mut self) {
        self.host = None;
    }

    /// True if nothing is to be done but for insides of routers, and they have all their interfaces.
    pub(super) fn covers(&self, want: &Want, observed: &HostState) -> bool {
        let whole = |router: &Arc<WantRouter>| {
            let state = observed.routers.get(&router.netns);
            self.has(router, state)
                || state.is_none_or(|state| {
                    let mut links = router.links.keys();
                    links.all(|name| state.links.contains_key(name))
                })
        };
        self.host.as_ref().is_some_and(|host| host.is(observed)) && want.routers.iter().all(whole)
    }

    /// Whether there was nothing to do, with all that there is in view. One whose datapath has its tables is
    /// looked at each time.
    pub(super) fn note_host(&mut self, observed: &HostState, is_calm: bool) {
        let is_calm = is_calm
            && observed.netns.is_empty()
            && observed.datapath.is_none()
            && observed.datapath_trouble.is_none();
        self.host = is_calm.then(|| Host {
            links: observed.links.clone(),
            fdb: observed.fdb.clone(),
            neighbours: observed.neighbours.clone(),
            trunks: observed.trunks.clone(),
            owned_netns: observed.owned_netns.clone(),
            firewall: observed.firewall,
            guards: observed.guards.clone(),
            vteps: observed.vteps.clone(),
        });
    }

    /// There are so many routers: of more, some are gone.
    pub(super) fn begin(&mut self, routers: usize) {
        if self.routers.len() > routers {
            self.routers.clear();
        }
    }

    /// True if that is what it was; the same values, so none is looked into.
    pub(super) fn has(&self, want: &Arc<WantRouter>, state: Option<&Arc<RouterState>>) -> bool {
        match (self.routers.get(&want.id), state) {
            (Some((wanted, was)), Some(state)) => {
                Arc::ptr_eq(wanted, want) && Arc::ptr_eq(was, state)
            }
            _ => false,
        }
    }

    pub(super) fn keep(&mut self, want: &Arc<WantRouter>, state: Option<&Arc<RouterState>>) {
        let kept = state.map(|state| (Arc::clone(want), Arc::clone(state)));
        self.routers.extend(kept.map(|kept| (want.id, kept)));
    }
}
