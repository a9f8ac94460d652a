//! Routers: what is inside of their namespaces. Sysctls and rules are there before the first
//! interface is; an interface comes up when it has all its addresses; what is stale goes last.

use super::{Calm, Phase, Planner};
use crate::router::{
    NextHop, Route, RouterChange, RouterChanges, RouterLink, RouterState, Way, base_sysctls,
    device_sysctls,
};
use crate::want::{WantInside, WantRouter};
use crate::{Action, Subject};
use ipnet::IpNet;
use model::IfName;
use std::collections::BTreeSet;
use std::sync::Arc;

impl Planner<'_> {
    /// As [`Self::routers`], when the host around them is as it was, with all their interfaces.
    pub(super) fn routers_within(&mut self, calm: &mut Calm) {
        calm.begin(self.want.routers.len());
        for router in &self.want.routers {
            let state = self.observed.routers.get(&router.netns);
            if !calm.has(router, state) {
                self.look_into(router, calm);
            }
        }
    }

    /// Those that had nothing left to do, and are as they were then, are not looked into again.
    pub(super) fn routers(&mut self, calm: &mut Calm) {
        calm.begin(self.want.routers.len());
        for router in &self.want.routers {
            self.look_into(router, calm);
        }
    }

    fn look_into(&mut self, router: &Arc<WantRouter>, calm: &mut Calm) {
        let there = self.observed.owned_netns.contains(&router.netns)
            && router.links.keys().all(|name| self.stays(name));
        let state = self.observed.routers.get(&router.netns);
        let state = state.filter(|_| there);
        if !calm.has(router, state) && !self.router(router) {
            calm.keep(router, state);
        }
    }

    /// True if there is something left to do.
    fn router(&mut self, router: &WantRouter) -> bool {
        let subject = Subject::Router(router.id);
        let mut left = false;
        if !self.observed.owned_netns.contains(&router.netns) {
            let create = Action::CreateNetns(router.netns.clone());
            self.step(Phase::Netns, subject, create);
            left = true;
        }
        let state = self.observed.routers.get(&router.netns).map(Arc::as_ref);
        let base = base(router, state);
        let nothing = RouterState::default();
        let inside = self.inside(router, state.unwrap_or(&nothing));
        left |= !base.is_empty() || !inside.is_empty();
        self.change(Phase::RouterBase, router, base);
        // Whatever there is with the other routers: the legs do not wait for it.
        let (others, own): (Vec<_>, Vec<_>) =
            inside.into_iter().partition(|c| router.is_of_transit(c));
        // The NICs that a gateway has as neighbours come and go while it is what it is.
        let (near, own): (Vec<_>, Vec<_>) = own.into_iter().partition(RouterChange::is_neighbour);
        self.change(Phase::Inside, router, own);
        self.change(Phase::Inside, router, near);
        // Steps of their own, so that what others announce says nothing of our own leg.
        let (ways, leg): (Vec<_>, Vec<_>) = others.into_iter().partition(RouterChange::is_way);
        for changes in [leg, ways] {
            self.change_for(Subject::Transit(router.vpc), Phase::Ways, router, changes);
        }
        left
    }

    fn change(&mut self, phase: Phase, router: &WantRouter, changes: Vec<RouterChange>) {
        self.change_for(Subject::Router(router.id), phase, router, changes);
    }

    fn change_for(
        &mut self,
        subject: Subject,
        phase: Phase,
        router: &WantRouter,
        changes: Vec<RouterChange>,
    ) {
        if changes.is_empty() {
            return;
        }
        let netns = router.netns.clone();
        let changes = RouterChanges { netns, changes };
        let action = Action::ChangeRouter(changes);
        self.step(phase, subject, action);
    }

    /// True if the interface is there and this plan does not make it anew.
    fn stays(&self, name: &IfName) -> bool {
        self.observed.links.contains_key(name) && !self.gone.contains(name)
    }

    fn inside(&self, router: &WantRouter, state: &RouterState) -> Vec<RouterChange> {
        let mut changes = Vec::new();
        let mut stale = Vec::new();
        for (name, want) in &router.links {
            let there = state.links.get(name).filter(|_| self.stays(name));
            link(name, want, there, &mut changes, &mut stale);
            // Hundreds of paths to spell out, for nothing if all is right.
            if there.is_some() && !state.wrong_sysctls.is_empty() {
                let wrong = device_sysctls(name.as_str());
                let wrong = wrong.filter(|(path, _)| state.wrong_sysctls.contains(path));
                changes.extend(wrong.map(|(path, value)| RouterChange::SetSysctl { path, value }));
            }
        }
        // The kernel took the routes and rules of an interface with it.
        let goes = |name: &IfName| !router.links.contains_key(name) || !self.stays(name);
        let left = |route: &&Route| match &route.way {
            Way::Blackhole => true,
            Way::Hops { hops, .. } => !hops.iter().any(|hop| goes(&hop.device)),
        };
        let routes: BTreeSet<&Route> = state.routes.iter().filter(left).collect();
        let hops = state.next_hops.iter().filter(|hop| !goes(&hop.device));
        let hops: BTreeSet<&NextHop> = hops.collect();
        let missing = router.next_hops.iter().filter(|hop| !hops.contains(hop));
        changes.extend(missing.cloned().map(RouterChange::SetNextHop));
        let wanted = router.routes.iter();
        // A next hop is found by routes that are there: those without one go first.
        let (direct, by_gateway): (Vec<_>, Vec<_>) = wanted
            .filter(|route| !routes.contains(route))
            .partition(|route| is_direct(route));
        let missing = direct.into_iter().chain(by_gateway);
        changes.extend(missing.cloned().map(RouterChange::SetRoute));
        let added = router.rules.difference(&state.rules);
        changes.extend(added.cloned().map(RouterChange::AddRule));
        let removed = state.rules.difference(&router.rules);
        changes.extend(removed.cloned().map(RouterChange::DeleteRule));
        let key = |route: &Route| (route.table, route.prefix);
        let kept: BTreeSet<_> = router.routes.iter().map(key).collect();
        // What is behind routers elsewhere may only not have been heard yet.
        let known = |route: &&Route| self.complete || !router.leads_to_others(route);
        let removed = routes.into_iter().filter(|old| !kept.contains(&key(old)));
        let removed = removed.filter(known);
        changes.extend(removed.cloned().map(RouterChange::DeleteRoute));
        let address = |hop: &NextHop| (hop.device.clone(), hop.address);
        let kept: BTreeSet<_> = router.next_hops.iter().map(address).collect();
        let removed = hops.into_iter().filter(|old| !kept.contains(&address(old)));
        let removed = removed.filter(|_| self.complete);
        changes.extend(removed.cloned().map(RouterChange::DeleteNextHop));
        changes.extend(stale);
        changes
    }
}

impl WantRouter {
    fn leads_to_others(&self, route: &Route) -> bool {
        match &route.way {
            Way::Blackhole => false,
            Way::Hops { hops, .. } => hops
                .iter()
                .any(|hop| Some(&hop.device) == self.transit.as_ref()),
        }
    }

    /// True for what is about the VPC's other routers.
    fn is_of_transit(&self, change: &RouterChange) -> bool {
        let is = |link: &IfName| self.transit.as_ref() == Some(link);
        match change {
            RouterChange::SetMac { link, .. }
            | RouterChange::SetMtu { link, .. }
            | RouterChange::SetIpv6 { link, .. }
            | RouterChange::AddAddress { link, .. }
            | RouterChange::DeleteAddress { link, .. }
            | RouterChange::SetUp { link } => is(link),
            RouterChange::SetRoute(route) | RouterChange::DeleteRoute(route) => {
                self.leads_to_others(route)
            }
            RouterChange::SetNextHop(hop) | RouterChange::DeleteNextHop(hop) => is(&hop.device),
            RouterChange::SetSysctl { path, .. } => {
                let device = self.transit.as_ref();
                device.is_some_and(|device| path.split('/').any(|part| part == device.as_str()))
            }
            RouterChange::SetFirewall(_)
            | RouterChange::AddRule(_)
            | RouterChange::DeleteRule(_) => false,
        }
    }
}

fn base(router: &WantRouter, state: Option<&RouterState>) -> Vec<RouterChange> {
    let mut changes = Vec::new();
    // The rules first: with them comes the tracking of connections, which has sysctls of its own.
    let held = state.and_then(|state| state.firewall);
    if held != Some(router.fingerprint) {
        changes.push(RouterChange::SetFirewall(Box::new(router.firewall.clone())));
    }
    if state.is_none_or(|state| !state.wrong_sysctls.is_empty()) {
        let is_wrong = |path: &String| state.is_none_or(|state| state.wrong_sysctls.contains(path));
        let wrong = base_sysctls().filter(|(path, _)| is_wrong(path));
        changes.extend(wrong.map(|(path, value)| RouterChange::SetSysctl { path, value }));
    }
    let lo = IfName::new("lo").expect("lo is a name");
    let is_up = |state: &RouterState| state.links.get(&lo).is_some_and(|lo| lo.up);
    if !state.is_some_and(is_up) {
        changes.push(RouterChange::SetUp { link: lo });
    }
    changes
}

fn link(
    name: &IfName,
    want: &WantInside,
    there: Option<&RouterLink>,
    changes: &mut Vec<RouterChange>,
    stale: &mut Vec<RouterChange>,
) {
    let link = || name.clone();
    if there.is_some_and(|there| there.mac != want.mac) {
        let mac = want.mac;
        changes.push(RouterChange::SetMac { link: link(), mac });
    }
    if there.is_some_and(|there| there.mtu != u32::from(want.mtu.get())) {
        let mtu = want.mtu;
        changes.push(RouterChange::SetMtu { link: link(), mtu });
    }
    let on = want.has_ipv6();
    if there.map_or(on, |there| there.ipv6_disabled == on) {
        changes.push(RouterChange::SetIpv6 { link: link(), on });
    }
    // The one that others on the link know it by is made by the kernel when the interface is up.
    let own = |net: &&IpNet| net.addr() != std::net::IpAddr::V6(want.mac.link_local());
    let held: BTreeSet<IpNet> = there
        .iter()
        .flat_map(|there| there.addresses.iter().filter(own))
        .copied()
        .collect();
    for address in held.difference(&want.addresses).copied() {
        let change = RouterChange::DeleteAddress {
            link: link(),
            address,
        };
        // An IPv6 address does not change its prefix length in place.
        match want.addresses.iter().any(|a| a.addr() == address.addr()) {
            true => changes.push(change),
            false => stale.push(change),
        }
    }
    // The first is the source of what the router itself says where no route names one: not an address
    // without a network.
    let missing = want.addresses.difference(&held).copied();
    let (hosts, nets): (Vec<_>, Vec<_>) =
        missing.partition(|net| net.prefix_len() == net.max_prefix_len());
    for address in nets.into_iter().chain(hosts) {
        changes.push(RouterChange::AddAddress {
            link: link(),
            address,
        });
    }
    if !there.is_some_and(|there| there.up) {
        changes.push(RouterChange::SetUp { link: link() });
    }
}

fn is_direct(route: &Route) -> bool {
    match &route.way {
        Way::Blackhole => true,
        Way::Hops { hops, .. } => hops.iter().all(|hop| hop.gateway.is_none()),
    }
}
