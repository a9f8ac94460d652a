//! The difference between what should be and what is, as ordered steps.
//!
//! Order of a plan, so that no frame goes astray in between: stale rows leave first, then stale
//! interfaces (all at once), then bridges and tunnels are made and come up, then ports: guarded
//! before they join, isolated until they are members of their VLAN, and up last. New rows follow.
//! What the datapath is told, where one carries, has its place among these.

mod calm;
mod datapath;
mod router;

pub(crate) use calm::Calm;

use crate::router::RouterChange;
use crate::want::{Facts, Membership, Want, WantLink, What};
use crate::{
    Action, BridgePortFlags, Desired, FdbRow, FdbState, FdbTarget, Guard, HostState, Inside, Link,
    LinkKind, OwnedName, Problem, Stamp, Step, Subject, Trunk, TrunkPair, VethToNetns,
};
use ::datapath::Change;
use ::datapath::VXLAN_PORT;
use model::{
    IfName, MacAddr, NetnsName, NicId, PortRole, RouterConfig, RouterId, Stack, SubnetId, VlanId,
};
use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What to do, in order, and what cannot be done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// In order.
    pub steps: Vec<Step>,
    /// Parts of the configuration that this host cannot make true.
    pub problems: Vec<Problem>,
    /// Routers that get their way out, or have it.
    outside: Arc<BTreeSet<RouterId>>,
}

/// What carries traffic: nothing is left to do for it but remote rows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Readiness {
    /// Subnets whose broadcast domain reaches the tunnel.
    pub segments: BTreeSet<SubnetId>,
    /// NICs whose port is open.
    pub nics: BTreeSet<NicId>,
    /// Routers whose legs are open.
    pub routers: BTreeSet<RouterId>,
    /// Those of them that other routers of their VPC can reach.
    pub transits: BTreeSet<RouterId>,
    /// Those of them that have their way out.
    pub uplinks: BTreeSet<RouterId>,
}

/// Makes `desired` true from `observed`. Pure; the same inputs give the same plan.
pub fn plan(desired: &Desired<'_>, observed: &HostState) -> Plan {
    let want = Want::of(desired, &Facts::of(desired, observed));
    difference(desired, &want, observed, &mut Calm::default())
}

/// The same, of what is spelt out already. `calm` is what the last difference left of itself.
pub(crate) fn difference(
    desired: &Desired<'_>,
    want: &Want,
    observed: &HostState,
    calm: &mut Calm,
) -> Plan {
    let problems = want.problems.clone();
    if problems
        .iter()
        .any(|problem| problem.subject == Subject::Host)
    {
        // Nothing can be said of the host: leave all that is there as it is.
        return Plan {
            problems,
            ..Plan::default()
        };
    }
    let mut planner = Planner {
        want,
        observed,
        complete: desired.forwarding.complete,
        gone: BTreeSet::new(),
        locals: OnceCell::new(),
        phases: BTreeMap::new(),
    };
    if calm.covers(want, observed) {
        planner.routers_within(calm);
    } else {
        planner.host(desired);
        planner.stale_links();
        planner.stale_rows(desired);
        planner.stale_guards();
        planner.links();
        let before = planner.steps();
        planner.routers(calm);
        let of_routers = planner.steps() - before;
        planner.rows();
        planner.datapath();
        planner.stale_netns();
        calm.note_host(observed, planner.steps() == of_routers);
    }
    Plan {
        steps: planner.phases.into_values().flatten().collect(),
        problems,
        outside: Arc::clone(&want.outside),
    }
}

impl Plan {
    /// Which segments, NICs and routers carry traffic, judged by what this plan of `stacks` and
    /// `routers` still has to do for them. A segment that has no open port yet is ready too: its
    /// tunnel may be flooded to.
    pub fn readiness(&self, stacks: &[Arc<Stack>], routers: &[Arc<RouterConfig>]) -> Readiness {
        let unfinished: BTreeSet<Subject> = self
            .steps
            .iter()
            .filter(|step| !step.is_row())
            .map(|step| step.subject)
            .chain(
                self.problems
                    .iter()
                    .filter(|p| p.blocks)
                    .map(|problem| problem.subject),
            )
            .collect();
        let mut ready = Readiness::default();
        if self
            .problems
            .iter()
            .any(|problem| problem.subject == Subject::Host)
            || self.steps.iter().any(Step::opens_tunnels)
        {
            return ready;
        }
        for stack in stacks {
            if unfinished.contains(&Subject::Vpc(stack.vpc)) {
                continue;
            }
            let segments = stack.segments.iter().map(|segment| segment.subnet);
            let joined = segments.filter(|id| !unfinished.contains(&Subject::Subnet(*id)));
            ready.segments.extend(joined);
            let ports = stack
                .ports
                .iter()
                .filter(|port| ready.segments.contains(&port.subnet));
            // One that stands by is for later: nobody is to send here yet.
            let ports = ports.filter(|port| port.role != PortRole::Standby);
            let open = ports.filter(|port| !unfinished.contains(&Subject::Nic(port.nic)));
            ready.nics.extend(open.map(|port| port.nic));
        }
        let ids = routers.iter().map(|router| router.id);
        let open = ids.filter(|id| !unfinished.contains(&Subject::Router(*id)));
        ready.routers.extend(open);
        let reached = routers.iter().filter(|router| {
            ready.routers.contains(&router.id)
                && router.transit.is_some()
                && !unfinished.contains(&Subject::Transit(router.vpc))
        });
        ready.transits.extend(reached.map(|router| router.id));
        let outside = routers.iter().filter(|router| {
            ready.routers.contains(&router.id) && self.outside.contains(&router.id)
        });
        ready.uplinks.extend(outside.map(|router| router.id));
        ready
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Host,
    StaleRows,
    StalePorts,
    StaleLinks,
    StaleGuards,
    Down,
    Netns,
    RouterBase,
    MakeBridges,
    MakeTunnels,
    MakeTrunks,
    MakePorts,
    Attributes,
    /// The datapath takes the tunnel's address: no VXLAN device has its port any more.
    Local,
    /// The datapath takes a TAP, before frames come to it.
    Bind,
    Guards,
    Join,
    StaleVlans,
    Vlans,
    LocalRows,
    Flags,
    Up,
    Inside,
    /// Before the bridge's rows, which send frames there.
    TunnelRows,
    RemoteRows,
    /// By what these rows lead to.
    Ways,
    StaleNetns,
}

struct Planner<'a> {
    want: &'a Want,
    observed: &'a HostState,
    /// What EVPN did not tell is not there.
    complete: bool,
    /// Interfaces that this plan removes, or gives back; some of them it makes anew.
    gone: BTreeSet<IfName>,
    /// Rows of NICs that are here, by MAC; made when first asked for.
    locals: OnceCell<BTreeMap<(MacAddr, FdbTarget), Vec<IfName>>>,
    phases: BTreeMap<Phase, Vec<Step>>,
}

impl Planner<'_> {
    fn step(&mut self, phase: Phase, subject: Subject, action: Action) {
        self.phases
            .entry(phase)
            .or_default()
            .push(Step { subject, action });
    }

    fn steps(&self) -> usize {
        self.phases.values().map(Vec::len).sum()
    }

    fn host(&mut self, desired: &Desired<'_>) {
        let nothing = desired.stacks.is_empty() && desired.routers.is_empty();
        if nothing && !self.observed.firewall {
            return;
        }
        if !self.observed.firewall {
            self.step(Phase::Host, Subject::Host, Action::InstallFirewall);
        }
        let mut vteps = self.want.vteps.clone();
        if !desired.forwarding.complete {
            vteps.extend(self.observed.vteps.iter().copied());
        }
        if vteps != *self.observed.vteps {
            self.step(Phase::Host, Subject::Host, Action::SetVteps(vteps));
        }
    }

    /// Interfaces of ours that should not be there, or are not what they should be: they go, and
    /// what goes is made anew below.
    fn stale_links(&mut self) {
        let mut delete = Vec::new();
        for (name, link) in &self.observed.links {
            let Some(stamp) = stamp_of(link) else {
                continue;
            };
            let wanted = self.want.links.get(name);
            if let Stamp::Adopted(nic) = stamp {
                if wanted.is_none_or(|wanted| wanted.stamp != stamp) {
                    self.gone.insert(name.clone());
                    let subject = Subject::Nic(nic);
                    if let Some(port) = &link.port
                        && self.is_our_bridge(&port.bridge)
                    {
                        let link = name.clone();
                        self.step(Phase::StalePorts, subject, Action::LeaveBridge { link });
                    }
                    self.step(
                        Phase::StalePorts,
                        subject,
                        Action::Release { name: name.clone() },
                    );
                }
                continue;
            }
            let keep = wanted
                .is_some_and(|wanted| wanted.stamp == stamp && self.same_kind(name, wanted, link));
            if !keep {
                self.gone.insert(name.clone());
                delete.push(name.clone());
            }
        }
        // The kernel takes a VLAN device down with its bridge.
        for (name, want) in &self.want.links {
            if let What::VlanDevice { bridge, .. } = &want.what
                && self.gone.contains(bridge)
                && self.observed.links.contains_key(name)
                && self.gone.insert(name.clone())
            {
                delete.push(name.clone());
            }
        }
        if !delete.is_empty() {
            self.step(
                Phase::StaleLinks,
                Subject::Host,
                Action::DeleteLinks(delete),
            );
        }
    }

    /// True if what is observed of the interface's bridge membership will not outlast this plan.
    fn leaves_bridge(&self, name: &IfName) -> bool {
        let Some(link) = self.observed.links.get(name) else {
            return true;
        };
        let member = link.port.as_ref().map(|port| &port.bridge);
        let wanted = self
            .want
            .links
            .get(name)
            .and_then(|w| w.membership.as_ref());
        self.gone.contains(name)
            || member.is_none_or(|bridge| self.gone.contains(bridge))
            || wanted.is_some_and(|wanted| Some(&wanted.bridge) != member)
    }

    /// True if the row is there and will still be after interfaces went.
    fn row_stays(&self, row: &FdbRow) -> bool {
        let there = self.observed.fdb.contains(row)
            || twin(row).is_some_and(|twin| self.observed.fdb.contains(&twin));
        there
            && !match row.target {
                FdbTarget::Bridge(_) => self.leaves_bridge(&row.dev),
                FdbTarget::Vtep(_) => self.gone.contains(&row.dev),
            }
    }

    fn is_our_bridge(&self, name: &IfName) -> bool {
        self.observed
            .links
            .get(name)
            .is_some_and(|bridge| stamp_of(bridge).is_some())
    }

    /// True if the interface can become what is wanted without being made anew.
    fn same_kind(&self, name: &IfName, wanted: &WantLink, link: &Link) -> bool {
        match (&wanted.what, &link.kind) {
            (
                What::Bridge { vlan_filtering, .. },
                LinkKind::Bridge {
                    vlan_filtering: is,
                    default_pvid,
                    mcast_snooping,
                },
            ) => vlan_filtering == is && (!is || *default_pvid == 0) && !mcast_snooping,
            (
                What::Vxlan { vni, local, .. },
                LinkKind::Vxlan {
                    vni: has,
                    local: from,
                    port,
                    learning,
                },
            ) => Some(*vni) == *has && Some(*local) == *from && *port == VXLAN_PORT && !learning,
            (What::VlanDevice { bridge, vlan }, LinkKind::Vlan { parent, vlan: has }) => {
                vlan == has
                    && self
                        .observed
                        .links
                        .get(bridge)
                        .is_some_and(|b| b.index == *parent)
            }
            (What::TrunkInner { outer, .. }, LinkKind::Veth { .. }) => {
                // A trunk pair lives and dies with its VXLAN device, which holds its filter.
                self.observed.links.contains_key(outer) && self.trunk_has_tunnel(wanted)
            }
            (What::TrunkOuter, LinkKind::Veth { .. }) => {
                let inner = self.want.links.values().find(|other| {
                    other.subject == wanted.subject && matches!(other.what, What::TrunkInner { .. })
                });
                inner.is_some_and(|inner| self.trunk_has_tunnel(inner))
            }
            (What::Veth { netns, device, .. }, LinkKind::Veth { .. }) => {
                // Looked into, and the far end is not there: somebody took it away.
                self.observed
                    .netns
                    .get(netns)
                    .is_none_or(|inside| inside.links.contains_key(device))
            }
            (What::RouterPort { netns, .. }, LinkKind::Veth { .. }) => {
                let inside = self.observed.routers.get(netns);
                self.observed.owned_netns.contains(netns)
                    && inside.is_none_or(|inside| inside.links.contains_key(name))
            }
            (
                What::Tap | What::TunnelTap,
                LinkKind::Tap {
                    multi_queue,
                    vnet_hdr,
                },
            ) => *multi_queue && *vnet_hdr,
            _ => false,
        }
    }

    fn trunk_has_tunnel(&self, inner: &WantLink) -> bool {
        let What::TrunkInner { vxlan, .. } = &inner.what else {
            return false;
        };
        let (Some(wanted), Some(link)) =
            (self.want.links.get(vxlan), self.observed.links.get(vxlan))
        else {
            return false;
        };
        stamp_of(link) == Some(wanted.stamp) && self.same_kind(vxlan, wanted, link)
    }

    fn stale_rows(&mut self, desired: &Desired<'_>) {
        // What is elsewhere may only not have been heard yet; what is here is known.
        let complete = desired.forwarding.complete;
        let ours = |dev: &IfName| {
            !self.gone.contains(dev)
                && self
                    .observed
                    .links
                    .get(dev)
                    .is_some_and(|link| stamp_of(link).is_some())
        };
        let mut steps = Vec::new();
        // Cheapest first: nearly every row stays, and there may be a hundred thousand.
        let rows = complete.then_some(&self.observed.fdb).into_iter().flatten();
        for row in rows {
            let wanted = || {
                self.want.fdb.contains_key(row)
                    || twin(row).is_some_and(|twin| self.want.fdb.contains_key(&twin))
            };
            let left = row.state == FdbState::ExternLearned || self.is_left(row);
            if left && !wanted() && ours(&row.dev) && !self.replaced(row) {
                steps.push((self.subject_of(&row.dev), Action::DeleteFdb(row.clone())));
            }
        }
        for row in &self.observed.neighbours {
            let key = (row.dev.clone(), row.ip);
            let known = complete || !row.remote;
            if row.ours
                && known
                && !self.gone.contains(&row.dev)
                && !self.want.neighbours.contains_key(&key)
            {
                steps.push((
                    self.subject_of(&row.dev),
                    Action::DeleteNeighbour(row.clone()),
                ));
            }
        }
        for (subject, action) in steps {
            self.step(Phase::StaleRows, subject, action);
        }
    }

    /// A row whose MAC moved, to another VTEP or to another port of its bridge: adding the new row
    /// replaces it with no gap.
    fn replaced(&self, row: &FdbRow) -> bool {
        match row.target {
            FdbTarget::Vtep(_) if row.mac == MacAddr::ZERO => false,
            FdbTarget::Vtep(_) => self
                .want
                .fdb
                .range(first_row_of(row)..)
                .take_while(|(other, _)| other.dev == row.dev && other.mac == row.mac)
                .any(|(other, _)| matches!(other.target, FdbTarget::Vtep(_))),
            FdbTarget::Bridge(_) => {
                let Some(bridge) = self.bridge_of(&row.dev) else {
                    return false;
                };
                let ports = |port: &&IfName| {
                    let link = self.want.links.get(*port);
                    let membership = link.and_then(|link| link.membership.as_ref());
                    membership.is_some_and(|membership| membership.bridge == *bridge)
                };
                self.rows_for(row).any(|port| ports(&port))
            }
        }
    }

    /// Ports that are to have the MAC of a bridge's row instead: a NIC's for a remote row, and the
    /// reverse.
    fn rows_for<'b>(&'b self, row: &'b FdbRow) -> Box<dyn Iterator<Item = &'b IfName> + 'b> {
        let of_nic = self.want.links.get(&row.dev);
        if of_nic.is_none_or(|link| link.guard.is_none()) {
            let locals = self.locals.get_or_init(|| {
                let rows = self.want.fdb.keys();
                let mut locals: BTreeMap<_, Vec<IfName>> = BTreeMap::new();
                for row in rows.filter(|row| row.state == FdbState::Static) {
                    let ports = locals.entry((row.mac, row.target)).or_default();
                    ports.push(row.dev.clone());
                }
                locals
            });
            return Box::new(locals.get(&(row.mac, row.target)).into_iter().flatten());
        }
        let wanted = |dev: &&IfName| {
            let row = FdbRow {
                dev: (*dev).clone(),
                state: FdbState::ExternLearned,
                ..row.clone()
            };
            self.want.fdb.contains_key(&row)
        };
        Box::new(self.want.links.keys().filter(wanted))
    }

    /// The row of a NIC's port, left there when the NIC went elsewhere.
    fn is_left(&self, row: &FdbRow) -> bool {
        row.state == FdbState::Static
            && matches!(row.target, FdbTarget::Bridge(_))
            && self.want.links.get(&row.dev).is_some_and(|link| {
                link.guard == Some(Guard::default())
                    && matches!(link.what, What::Veth { .. } | What::Tap)
            })
    }

    fn bridge_of(&self, dev: &IfName) -> Option<&IfName> {
        let link = self.observed.links.get(dev)?;
        Some(&link.port.as_ref()?.bridge)
    }

    fn subject_of(&self, dev: &IfName) -> Subject {
        self.observed
            .links
            .get(dev)
            .and_then(stamp_of)
            .map_or(Subject::Host, |s| s.subject())
    }

    fn stale_guards(&mut self) {
        let stale: Vec<_> = self
            .observed
            .guards
            .keys()
            .filter(|name| {
                self.want
                    .links
                    .get(*name)
                    .is_none_or(|link| link.guard.is_none())
            })
            .cloned()
            .collect();
        for link in stale {
            self.step(
                Phase::StaleGuards,
                Subject::Host,
                Action::ClearGuard { link },
            );
        }
    }

    fn links(&mut self) {
        for (name, want) in &self.want.links {
            match self
                .observed
                .links
                .get(name)
                .filter(|_| !self.gone.contains(name))
            {
                Some(link) => self.repair(name, want, link),
                None => self.make(name, want),
            }
        }
    }

    fn make(&mut self, name: &IfName, want: &WantLink) {
        let subject = want.subject;
        let (name, mtu, stamp) = (name.clone(), want.mtu, want.stamp);
        match &want.what {
            What::Bridge {
                mac,
                vlan_filtering,
            } => {
                let (mac, vlan_filtering) = (*mac, *vlan_filtering);
                let action = Action::CreateBridge {
                    name: name.clone(),
                    mac,
                    mtu,
                    vlan_filtering,
                    stamp,
                };
                self.step(Phase::MakeBridges, subject, action);
            }
            What::Vxlan { vni, local, mac } => {
                let (vni, local, mac, port) = (*vni, *local, *mac, VXLAN_PORT);
                let action = Action::CreateVxlan {
                    name: name.clone(),
                    vni,
                    local,
                    port,
                    mac,
                    mtu,
                    stamp,
                };
                self.step(Phase::MakeTunnels, subject, action);
            }
            What::VlanDevice { bridge, vlan } => {
                let (bridge, vlan) = (bridge.clone(), *vlan);
                let action = Action::CreateVlanDevice {
                    name,
                    bridge,
                    vlan,
                    stamp,
                };
                self.step(Phase::MakeTunnels, subject, action);
                return;
            }
            What::TrunkInner { outer, vxlan, vlan } => {
                self.trunk_pair(&name, want, outer, vxlan, *vlan);
            }
            What::TrunkOuter => {}
            What::Veth {
                netns, device, mac, ..
            } => {
                self.step(Phase::Netns, subject, Action::CreateNetns(netns.clone()));
                let veth = VethToNetns {
                    name: name.clone(),
                    netns: netns.clone(),
                    device: device.clone(),
                    mac: *mac,
                    mtu,
                    stamp,
                };
                self.step(Phase::MakePorts, subject, Action::CreateVeth(veth));
            }
            What::RouterPort { netns, mac } => {
                let veth = VethToNetns {
                    name: name.clone(),
                    netns: netns.clone(),
                    device: name.clone(),
                    mac: *mac,
                    mtu,
                    stamp,
                };
                self.step(Phase::MakePorts, subject, Action::CreateVeth(veth));
            }
            What::Tap => {
                let action = Action::CreateTap {
                    name: name.clone(),
                    mtu,
                    stamp,
                };
                self.step(Phase::MakePorts, subject, action);
            }
            What::TunnelTap => {
                let action = Action::CreateTap {
                    name: name.clone(),
                    mtu,
                    stamp,
                };
                self.step(Phase::MakeTunnels, subject, action);
            }
            What::Existing => return, // `Want` lists only those that are there.
        }
        self.open(&name, want, None);
    }

    fn trunk_pair(
        &mut self,
        inner: &IfName,
        want: &WantLink,
        outer: &IfName,
        vxlan: &IfName,
        vlan: VlanId,
    ) {
        let pair = TrunkPair {
            inner: inner.clone(),
            outer: outer.clone(),
            vxlan: vxlan.clone(),
            vlan,
            mtu: want.mtu,
            stamp: want.stamp,
        };
        let action = Action::CreateTrunkPair(pair);
        self.step(Phase::MakeTrunks, want.subject, action);
    }

    /// Guard, join, VLANs, local rows, flags, up, inside: everything after the interface exists.
    /// `link` is what is there; none means just made.
    fn open(&mut self, name: &IfName, want: &WantLink, link: Option<&Link>) {
        let subject = want.subject;
        if let Some(guard) = &want.guard
            && (link.is_none() || !self.is_guarded(name, guard))
        {
            let action = Action::SetGuard {
                link: name.clone(),
                guard: guard.clone(),
            };
            self.step(Phase::Guards, subject, action);
        }
        if let Some(membership) = &want.membership {
            self.join(name, subject, membership, link);
        }
        if link.is_none_or(|link| !link.up) {
            self.step(Phase::Up, subject, Action::SetUp { link: name.clone() });
        }
        if let What::Veth {
            netns,
            device,
            mac,
            addresses,
        } = &want.what
        {
            let inside = Inside {
                netns: netns.clone(),
                device: device.clone(),
                mac: *mac,
                mtu: want.mtu,
                addresses: addresses.clone(),
            };
            if link.is_none() || self.inside_differs(&inside) {
                self.step(Phase::Inside, subject, Action::ConfigureInside(inside));
            }
        }
    }

    /// A port of our own that has no guard may send nothing, and that is what an empty one says.
    fn is_guarded(&self, name: &IfName, guard: &Guard) -> bool {
        match self.observed.guards.get(name) {
            Some(held) => held == guard,
            None => *guard == Guard::default() && OwnedName::is_port(name),
        }
    }

    fn join(&mut self, name: &IfName, subject: Subject, want: &Membership, link: Option<&Link>) {
        let stays = link.is_some() && !self.leaves_bridge(name);
        let port = link.and_then(|link| link.port.as_ref()).filter(|_| stays);
        if port.is_none() {
            let (link, bridge) = (name.clone(), want.bridge.clone());
            self.step(Phase::Join, subject, Action::Enslave { link, bridge });
        }
        let none = BTreeMap::new();
        let vlans = port.map_or(&none, |port| &port.vlans);
        let wanted = want.vlans.as_ref();
        let stale = |vlan: &&VlanId| wanted.is_some_and(|wanted| !wanted.contains_key(vlan));
        for vlan in vlans.keys().filter(stale) {
            let action = Action::DeleteVlan {
                link: name.clone(),
                vlan: *vlan,
            };
            self.step(Phase::StaleVlans, subject, action);
        }
        for (vlan, membership) in wanted.into_iter().flatten() {
            if vlans.get(vlan) != Some(membership) {
                let (link, vlan, membership) = (name.clone(), *vlan, *membership);
                self.step(
                    Phase::Vlans,
                    subject,
                    Action::AddVlan {
                        link,
                        vlan,
                        membership,
                    },
                );
            }
        }
        let has = port.map(|port| BridgePortFlags {
            isolated: port.isolated,
            learning: port.learning,
            unicast_flood: port.unicast_flood,
            neigh_suppress: port.neigh_suppress,
        });
        if has != Some(want.flags) {
            let action = Action::SetPortFlags {
                link: name.clone(),
                flags: want.flags,
            };
            self.step(Phase::Flags, subject, action);
        }
    }

    fn inside_differs(&self, want: &Inside) -> bool {
        let Some(netns) = self.observed.netns.get(&want.netns) else {
            return false;
        };
        let Some(link) = netns.links.get(&want.device) else {
            return true;
        };
        !link.up
            || link.mac != want.mac
            || link.mtu != u32::from(want.mtu.get())
            || !want.addresses.is_subset(&link.addresses)
    }

    fn repair(&mut self, name: &IfName, want: &WantLink, link: &Link) {
        let subject = want.subject;
        match &want.what {
            What::VlanDevice { .. } => {
                // It must stay down: frames of the tenant would reach the host's own stack.
                if link.up {
                    self.step(Phase::Down, subject, Action::SetDown { link: name.clone() });
                }
                return;
            }
            What::Bridge { mac, .. } | What::Vxlan { mac, .. } if link.mac != *mac => {
                let action = Action::SetMac {
                    link: name.clone(),
                    mac: *mac,
                };
                self.step(Phase::Attributes, subject, action);
            }
            What::TrunkInner { outer, vxlan, vlan } => {
                let connected = Trunk {
                    vlan: *vlan,
                    vxlan: vxlan.clone(),
                };
                if self.observed.trunks.get(outer) != Some(&connected) {
                    self.trunk_pair(name, want, outer, vxlan, *vlan);
                }
            }
            What::Existing if link.alias.is_none() => {
                let action = Action::Adopt {
                    name: name.clone(),
                    stamp: want.stamp,
                };
                self.step(Phase::MakePorts, subject, action);
            }
            _ => {}
        }
        let adopts = matches!(want.what, What::Existing) && link.alias.is_none();
        if !link.ipv6_disabled && !adopts {
            let action = Action::DisableIpv6 { link: name.clone() };
            self.step(Phase::Attributes, subject, action);
        }
        if link.mtu != u32::from(want.mtu.get()) {
            let action = Action::SetMtu {
                link: name.clone(),
                mtu: want.mtu,
            };
            self.step(Phase::Attributes, subject, action);
        }
        self.open(name, want, Some(link));
    }

    fn rows(&mut self) {
        let missing: Vec<_> = self
            .want
            .fdb
            .iter()
            .filter(|(row, _)| !self.row_stays(row))
            .map(|(row, subject)| (row.clone(), *subject))
            .collect();
        for (row, subject) in missing {
            let phase = match row.state {
                FdbState::Static => Phase::LocalRows,
                FdbState::Local | FdbState::ExternLearned | FdbState::Dynamic => match row.target {
                    FdbTarget::Vtep(_) => Phase::TunnelRows,
                    FdbTarget::Bridge(_) => Phase::RemoteRows,
                },
            };
            self.step(phase, subject, Action::AddFdb(row));
        }
        let missing: Vec<_> = self
            .want
            .neighbours
            .values()
            .filter(|(row, _)| {
                self.gone.contains(&row.dev) || !self.observed.neighbours.contains(row)
            })
            .cloned()
            .collect();
        for (row, subject) in missing {
            self.step(Phase::RemoteRows, subject, Action::SetNeighbour(row));
        }
    }

    fn stale_netns(&mut self) {
        let stale: Vec<NetnsName> = self
            .observed
            .owned_netns
            .difference(&self.want.netns)
            .cloned()
            .collect();
        for netns in stale {
            self.step(Phase::StaleNetns, Subject::Host, Action::DeleteNetns(netns));
        }
    }
}

impl Step {
    /// True for remote rows and what else comes and goes with routes, and says nothing of what is
    /// behind this host.
    pub fn is_row(&self) -> bool {
        match (&self.subject, &self.action) {
            (Subject::Transit(_), Action::ChangeRouter(changes)) => {
                changes.changes.iter().all(RouterChange::is_way)
            }
            (Subject::Router(_), Action::ChangeRouter(changes)) => {
                changes.changes.iter().all(RouterChange::is_neighbour)
            }
            (_, action) => action.is_row(),
        }
    }

    /// What the datapath is told, if the step is one of its.
    pub fn datapath_change(&self) -> Option<&Change> {
        match &self.action {
            Action::ChangeDatapath(change) => Some(change),
            _ => None,
        }
    }

    /// True if rows to VTEPs are of no use before it is done.
    fn opens_tunnels(&self) -> bool {
        matches!(self.action, Action::ChangeDatapath(Change::SetLocal(_)))
    }
}

impl Action {
    const fn is_row(&self) -> bool {
        match self {
            Self::AddFdb(row) | Self::DeleteFdb(row) => {
                matches!(row.state, FdbState::ExternLearned)
            }
            Self::SetNeighbour(_)
            | Self::DeleteNeighbour(_)
            | Self::SetVteps(_)
            | Self::Send(_) => true,
            Self::ChangeDatapath(change) => match change {
                Change::SetLocal(_)
                | Change::SetLimits(_)
                | Change::Bind { .. }
                | Change::Unbind { .. } => false,
                Change::SetMac { .. }
                | Change::DeleteMac { .. }
                | Change::AddFlood { .. }
                | Change::DeleteFlood { .. }
                | Change::SetNeighbour { .. }
                | Change::DeleteNeighbour { .. } => true,
            },
            Self::InstallFirewall
            | Self::CreateBridge { .. }
            | Self::CreateVxlan { .. }
            | Self::CreateVlanDevice { .. }
            | Self::CreateTrunkPair(_)
            | Self::CreateVeth(_)
            | Self::CreateTap { .. }
            | Self::Adopt { .. }
            | Self::Release { .. }
            | Self::DeleteLinks(_)
            | Self::CreateNetns(_)
            | Self::DeleteNetns(_)
            | Self::Enslave { .. }
            | Self::LeaveBridge { .. }
            | Self::SetPortFlags { .. }
            | Self::AddVlan { .. }
            | Self::DeleteVlan { .. }
            | Self::SetGuard { .. }
            | Self::ClearGuard { .. }
            | Self::SetMtu { .. }
            | Self::SetMac { .. }
            | Self::DisableIpv6 { .. }
            | Self::SetUp { .. }
            | Self::SetDown { .. }
            | Self::ConfigureInside(_)
            | Self::ChangeRouter(_) => false,
        }
    }
}

/// The row as the kernel tells it if it took the place of one of the other sort: a bridge keeps the
/// externally-learned flag of a row that becomes static, and both kinds stay until they are removed.
fn twin(row: &FdbRow) -> Option<FdbRow> {
    let state = match (row.target, row.state) {
        (FdbTarget::Bridge(_), FdbState::Static) => FdbState::ExternLearned,
        (FdbTarget::Bridge(_), FdbState::ExternLearned) => FdbState::Static,
        _ => return None,
    };
    Some(FdbRow {
        state,
        ..row.clone()
    })
}

fn first_row_of(row: &FdbRow) -> FdbRow {
    FdbRow {
        dev: row.dev.clone(),
        mac: row.mac,
        target: FdbTarget::Bridge(None),
        state: FdbState::Local,
    }
}

pub(crate) fn stamp_of(link: &Link) -> Option<Stamp> {
    link.alias.as_deref()?.parse().ok()
}
