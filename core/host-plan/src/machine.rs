//! The host's side of a configuration: which generation holds, what the local API added, what
//! failed and when it is tried again. The agent's loop drives it.

mod gateways;
mod outer;
mod routers;
mod spelt;

pub use outer::{DhcpUplink, OuterAddress};

use crate::greeting::frames;
use crate::uplink::{Uplink, port_link};
use crate::want::{is_away, tag_of};
use crate::{
    Action, Desired, FdbState, Greeting, HostState, OwnedName, Plan, Problem, Readiness,
    RouterChange, RouterChanges, Scope, Step, Subject,
};
use datapath::{Change, Limits, Neighbour};
use model::{
    Attachment, Capability, Encoding, Forwarding, Generation, HostConfig, IfName, NetnsName, NicId,
    Port, PortRole, RouterConfig, RouterId, Segment, SpeakerKind, Stack, SubnetId, Transport,
    Underlay, UnixMillis, VlanId, VpcId,
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A failed step is tried again after this long, then twice as long, and so on ...
const RETRY_FIRST: Duration = Duration::from_millis(200);
/// ... up to this.
const RETRY_MOST: Duration = Duration::from_secs(30);

/// Desired state of this host and the troubles on the way to it. One owner: the agent's loop.
#[derive(Debug)]
pub struct HostMachine {
    own_underlay: Underlay,
    underlay: Underlay,
    transport: Transport,
    limits: Limits,
    managed: Option<Arc<HostConfig>>,
    local: LocalStacks,
    forwarding: Arc<Forwarding>,
    merged: Vec<Arc<Stack>>,
    routers: Vec<Arc<RouterConfig>>,
    conflicts: Vec<Problem>,
    troubles: BTreeMap<Subject, Trouble>,
    /// NICs that came here, with their sequence: their subnets were told.
    greeted: BTreeMap<NicId, u32>,
    /// Routers that may run here; none is all.
    leased: Option<BTreeSet<RouterId>>,
    /// Routers that are not to run here would be silent here.
    silences: bool,
    /// Routers whose neighbours were told that they run here.
    greeted_routers: BTreeSet<RouterId>,
    /// Subnets whose ports know another gateway than there is, or none.
    untold: BTreeSet<SubnetId>,
    /// What DHCP servers outside gave.
    outer: BTreeMap<RouterId, OuterAddress>,
    dhcp_uplinks: Vec<DhcpUplink>,
    spelt: spelt::Speller,
}

/// Stacks made through the host's own API, with no management server involved.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalStacks {
    stacks: BTreeMap<VpcId, LocalStack>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    routers: BTreeMap<RouterId, RouterConfig>,
}

impl LocalStacks {
    /// Routers made so.
    pub fn routers(&self) -> impl Iterator<Item = &RouterConfig> {
        self.routers.values()
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct LocalStack {
    stack: Stack,
    /// Since when it has had no NIC.
    unused_since: Option<UnixMillis>,
}

/// Something that failed on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// What was being done, to what, why it failed, what to do.
    pub message: String,
    /// Since when it fails.
    pub since: UnixMillis,
    /// How often it was tried.
    pub attempts: u32,
    /// When it is tried again.
    pub retry_at: Instant,
}

/// A configuration older than the one that holds.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("generation {offered} is older than generation {held}, which this host already has")]
pub struct Stale {
    /// What came.
    pub offered: Generation,
    /// What holds.
    pub held: Generation,
}

/// Why the local API refuses something.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The management server's; not ours to touch.
    #[error("{0} came from the management server: change it there (vpc nic, vpc subnet)")]
    Managed(String),
    /// There is none.
    #[error("there is no {0} on this host: list what there is with ListStacks and ListNics")]
    Unknown(String),
    /// It clashes with another.
    #[error("{what} is already used by {by}: choose another")]
    Taken {
        /// What clashes.
        what: String,
        /// With whom.
        by: String,
    },
    /// Something hangs on it.
    #[error("{what} still has {count} NIC(s), such as {first}: delete them first")]
    InUse {
        /// The object.
        what: String,
        /// How many.
        count: usize,
        /// One of them.
        first: NicId,
    },
    /// It cannot be.
    #[error("{0}")]
    Invalid(String),
}

impl HostMachine {
    /// A machine that knows what was kept on disk: the last configuration and the local stacks.
    /// `underlay` is what the host itself found: its address holds until a configuration gives
    /// another, its MTU bounds the configuration's.
    pub fn new(underlay: Underlay, managed: Option<HostConfig>, local: LocalStacks) -> Self {
        let mut machine = Self {
            own_underlay: underlay,
            underlay,
            transport: Transport::default(),
            limits: Limits::default(),
            managed: managed.map(Arc::new),
            local,
            forwarding: Arc::default(),
            merged: Vec::new(),
            routers: Vec::new(),
            conflicts: Vec::new(),
            troubles: BTreeMap::new(),
            greeted: BTreeMap::new(),
            leased: None,
            silences: true,
            greeted_routers: BTreeSet::new(),
            untold: BTreeSet::new(),
            outer: BTreeMap::new(),
            dhcp_uplinks: Vec::new(),
            spelt: spelt::Speller::default(),
        };
        machine.merge();
        machine
    }

    /// A configuration from the management server. The same generation again is a no-op.
    pub fn offer(&mut self, config: impl Into<Arc<HostConfig>>) -> Result<bool, Stale> {
        let config = config.into();
        if let Some(held) = self.managed.as_ref().map(|held| held.generation) {
            if config.generation < held {
                return Err(Stale {
                    offered: config.generation,
                    held,
                });
            }
            if config.generation == held {
                return Ok(false);
            }
        }
        self.managed = Some(config);
        self.merge();
        Ok(true)
    }

    /// What carries frames to other hosts; the kernel, unless told otherwise.
    pub fn set_transport(&mut self, transport: Transport) {
        self.transport = transport;
    }

    /// What a datapath lets through; the usual, unless told otherwise.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// What carries frames to other hosts.
    pub fn transport(&self) -> Transport {
        self.transport
    }

    /// What the interface on the underlay carries, as found on the host.
    pub fn set_own_mtu(&mut self, mtu: model::Mtu) {
        self.own_underlay.mtu = mtu;
        self.merge();
    }

    /// Routers that may run here; none is all that are placed here. The others are made, and silent.
    pub fn set_leased(&mut self, leased: Option<BTreeSet<RouterId>>) {
        let held = leased.clone().unwrap_or_default();
        self.greeted_routers.retain(|router| held.contains(router));
        let silences = leased.is_some();
        self.leased = leased;
        if silences != self.silences {
            self.silences = silences;
            self.merge();
        }
    }

    /// What the speaker learned. True if anything differs.
    pub fn set_forwarding(&mut self, forwarding: Arc<Forwarding>) -> bool {
        let differs = forwarding != self.forwarding;
        self.forwarding = forwarding;
        differs
    }

    /// Steps for the rows that are new or other in the forwarding state than they were in `before`,
    /// and nothing else: to be taken ahead of a plan that is long, or that has yet to be made. Rows
    /// that went, and rows of interfaces that were not there when `observed` was, are left to the
    /// next plan.
    pub fn new_rows(&self, before: &Forwarding, observed: &HostState) -> Vec<Step> {
        let forwarding = self.forwarding.news_since(before);
        if forwarding.evis.is_empty() {
            return Vec::new();
        }
        let desired = Desired {
            underlay: self.underlay,
            transport: self.transport,
            limits: self.limits,
            stacks: &self.merged,
            routers: &self.routers,
            forwarding: &forwarding,
            local_neighbours: self.speaker_reads_the_kernel(),
        };
        let mut steps = crate::plan(&desired, observed).steps;
        steps.retain_mut(|step| match &mut step.action {
            Action::SetVteps(vteps) => {
                // The whole list, and what is in it may still be in use.
                vteps.extend(self.forwarding.vteps());
                true
            }
            Action::AddFdb(row) => {
                row.state == FdbState::ExternLearned && observed.links.contains_key(&row.dev)
            }
            Action::SetNeighbour(row) => observed.links.contains_key(&row.dev),
            Action::ChangeDatapath(
                Change::SetMac { domain, .. }
                | Change::AddFlood { domain, .. }
                | Change::SetNeighbour {
                    domain,
                    neighbour: Neighbour { here: false, .. },
                    ..
                },
            ) => {
                let held = observed.datapath.iter();
                let mut bound = held.flat_map(|held| held.bindings.values());
                bound.any(|binding| binding.domain == *domain)
            }
            _ => false,
        });
        steps
    }

    /// Adds a stack through the local API.
    pub fn add_stack(&mut self, stack: Stack, now: UnixMillis) -> Result<(), Refused> {
        let what = || format!("stack {}", stack.name);
        if let Some(other) = self.merged.iter().find(|other| other.vpc == stack.vpc) {
            if self.is_managed(other.vpc) {
                return Err(Refused::Managed(format!("stack {}", other.name)));
            }
            return Err(Refused::Taken {
                what: format!("id {}", stack.vpc),
                by: what(),
            });
        }
        if !stack.ports.is_empty() {
            return Err(Refused::Invalid(format!(
                "{} comes with NICs: add the stack first, then each NIC",
                what()
            )));
        }
        check_segments(&stack, self.underlay)?;
        if let Some((vni, by)) = clash(&self.merged, &stack) {
            return Err(Refused::Taken {
                what: format!("VNI {vni}"),
                by,
            });
        }
        let local = LocalStack {
            stack,
            unused_since: Some(now),
        };
        self.local.stacks.insert(local.stack.vpc, local);
        self.merge();
        Ok(())
    }

    /// Deletes a stack of the local API; it must be empty.
    pub fn delete_stack(&mut self, vpc: VpcId) -> Result<Stack, Refused> {
        self.local_stack(vpc)?;
        let stack = &self.local.stacks[&vpc].stack;
        if let Some(first) = stack.ports.first() {
            let (what, count) = (format!("stack {}", stack.name), stack.ports.len());
            return Err(Refused::InUse {
                what,
                count,
                first: first.nic,
            });
        }
        if let Some(router) = self.local.routers.values().find(|router| router.vpc == vpc) {
            return Err(Refused::Invalid(format!(
                "stack {} still has router {}: delete it first",
                stack.name, router.name
            )));
        }
        let removed = self
            .local
            .stacks
            .remove(&vpc)
            .expect("it was looked up just now");
        self.merge();
        Ok(removed.stack)
    }

    /// Adds a segment to a stack of the local API; one that is there already must be the same.
    pub fn add_segment(&mut self, vpc: VpcId, segment: Segment) -> Result<(), Refused> {
        self.local_stack(vpc)?;
        let mut stack = self.local.stacks[&vpc].stack.clone();
        if let Some(there) = stack.segment(segment.subnet) {
            if *there == segment {
                return Ok(());
            }
            return Err(Refused::Taken {
                what: format!("id {}", segment.subnet),
                by: format!("segment {}", there.name),
            });
        }
        stack.segments.push(segment);
        stack.segments.sort_by_key(|segment| segment.subnet);
        check_segments(&stack, self.underlay)?;
        let others: Vec<Arc<Stack>> = self
            .merged
            .iter()
            .filter(|other| other.vpc != vpc)
            .cloned()
            .collect();
        if let Some((vni, by)) = clash(&others, &stack) {
            return Err(Refused::Taken {
                what: format!("VNI {vni}"),
                by,
            });
        }
        self.local
            .stacks
            .get_mut(&vpc)
            .expect("it was looked up just now")
            .stack = stack;
        self.merge();
        Ok(())
    }

    /// Takes back what was done to the local stacks since they were `before`.
    pub fn restore_local(&mut self, before: LocalStacks) {
        self.local = before;
        self.merge();
    }

    /// Adds a NIC to a stack of the local API.
    pub fn add_nic(&mut self, vpc: VpcId, port: Port) -> Result<(), Refused> {
        self.local_stack(vpc)?;
        self.check_port(vpc, &port)?;
        let local = self
            .local
            .stacks
            .get_mut(&vpc)
            .expect("it was looked up just now");
        local.stack.ports.push(port);
        local.stack.ports.sort_by_key(|port| port.nic);
        local.unused_since = None;
        self.merge();
        Ok(())
    }

    /// Deletes a NIC of the local API.
    pub fn delete_nic(&mut self, nic: NicId, now: UnixMillis) -> Result<(), Refused> {
        let managed = self.managed.iter().flat_map(|config| &config.stacks);
        if managed
            .flat_map(|stack| &stack.ports)
            .any(|port| port.nic == nic)
        {
            return Err(Refused::Managed(format!("nic {nic}")));
        }
        let holds = |local: &&mut LocalStack| local.stack.ports.iter().any(|p| p.nic == nic);
        let Some(local) = self.local.stacks.values_mut().find(holds) else {
            return Err(Refused::Unknown(format!("nic {nic}")));
        };
        local.stack.ports.retain(|port| port.nic != nic);
        if local.stack.ports.is_empty() {
            local.unused_since = Some(now);
        }
        self.merge();
        Ok(())
    }

    /// Removes local stacks that nobody has used for `grace_millis`; returns them.
    pub fn collect_unused(&mut self, now: UnixMillis, grace_millis: u64) -> Vec<Stack> {
        let idle = |local: &LocalStack| {
            local
                .unused_since
                .is_some_and(|since| now.0.saturating_sub(since.0) >= grace_millis)
        };
        let routers = &self.local.routers;
        let routed = |vpc: &VpcId| routers.values().any(|router| router.vpc == *vpc);
        let gone: Vec<VpcId> = self
            .local
            .stacks
            .iter()
            .filter(|(vpc, l)| idle(l) && !routed(vpc))
            .map(|(id, _)| *id)
            .collect();
        let gone: Vec<Stack> = gone
            .iter()
            .filter_map(|id| self.local.stacks.remove(id))
            .map(|l| l.stack)
            .collect();
        if !gone.is_empty() {
            self.merge();
        }
        gone
    }

    /// Steps to take now: the plan less what waits for its next try; and what carries traffic
    /// already. Problems become conditions.
    pub fn plan(
        &mut self,
        observed: &HostState,
        now: Instant,
        unix: UnixMillis,
    ) -> (Plan, Readiness) {
        let desired = Desired {
            underlay: self.underlay,
            transport: self.transport,
            limits: self.limits,
            stacks: &self.merged,
            routers: &self.routers,
            forwarding: &self.forwarding,
            local_neighbours: self.speaker_reads_the_kernel(),
        };
        let mut plan = self.spelt.plan(&desired, &self.forwarding, observed);
        plan.problems.extend(self.conflicts.iter().cloned());
        let ready = plan.readiness(&self.merged, &self.routers);
        let greetings = self.greetings(&ready, observed);
        plan.steps.extend(greetings);
        let greetings = self.router_greetings(&ready, observed);
        plan.steps.extend(greetings);
        plan.steps.extend(self.gateway_greetings(observed));
        let waits =
            |subject: &Subject| self.troubles.get(subject).is_some_and(|t| t.retry_at > now);
        plan.steps.retain(|step| !waits(&step.subject));
        let planned: BTreeSet<Subject> = plan.steps.iter().map(|step| step.subject).collect();
        // A subject that has neither a step nor a problem left is well, whoever mended it.
        let problems: BTreeMap<Subject, &Problem> = plan
            .problems
            .iter()
            .map(|problem| (problem.subject, problem))
            .collect();
        self.troubles.retain(|subject, trouble| {
            planned.contains(subject) || problems.contains_key(subject) || trouble.retry_at > now
        });
        for (subject, problem) in problems {
            let trouble = self.troubles.entry(subject).or_insert_with(|| Trouble {
                message: String::new(),
                since: unix,
                attempts: 0,
                retry_at: now,
            });
            trouble.message.clone_from(&problem.message);
        }
        (plan, ready)
    }

    /// What came of the steps.
    pub fn finished<'a>(
        &mut self,
        outcomes: impl IntoIterator<Item = (&'a Step, Result<(), String>)>,
        now: Instant,
        unix: UnixMillis,
    ) {
        let mut failed: BTreeMap<Subject, String> = BTreeMap::new();
        let mut done: BTreeSet<Subject> = BTreeSet::new();
        for (step, outcome) in outcomes {
            if let (Action::Send(_), Subject::Nic(nic), Ok(())) =
                (&step.action, step.subject, &outcome)
                && let Some(port) = self.port(nic)
            {
                self.greeted.insert(nic, port.sequence);
            }
            if let (Action::Send(greeting), Subject::Subnet(subnet), Ok(())) =
                (&step.action, step.subject, &outcome)
            {
                self.told(subnet, greeting);
            }
            if let (Subject::Router(id), Ok(())) = (step.subject, &outcome)
                && is_greeting(&step.action)
                && self.leased.as_ref().is_some_and(|held| held.contains(&id))
            {
                self.greeted_routers.insert(id);
            }
            match outcome {
                Ok(()) => drop(done.insert(step.subject)),
                Err(message) => drop(failed.entry(step.subject).or_insert(message)),
            }
        }
        for subject in done {
            if !failed.contains_key(&subject) {
                self.troubles.remove(&subject);
            }
        }
        for (subject, message) in failed {
            let trouble = self.troubles.entry(subject).or_insert_with(|| Trouble {
                message: String::new(),
                since: unix,
                attempts: 0,
                retry_at: now,
            });
            trouble.attempts = trouble.attempts.saturating_add(1);
            trouble.message = message;
            let doublings = trouble.attempts.saturating_sub(1).min(16);
            trouble.retry_at = now + (RETRY_FIRST * 2_u32.pow(doublings)).min(RETRY_MOST);
        }
    }

    /// Frames to send for NICs that came here and carry traffic now, once for each coming.
    fn greetings(&self, ready: &Readiness, observed: &HostState) -> Vec<Step> {
        let mut steps = Vec::new();
        for stack in &self.merged {
            for port in stack.ports.iter().filter(|p| p.role == PortRole::Arrived) {
                let greeted = self.greeted.get(&port.nic) == Some(&port.sequence);
                if greeted || !ready.nics.contains(&port.nic) {
                    continue;
                }
                let Some(segment) = stack.segment(port.subnet) else {
                    continue;
                };
                steps.push(Step {
                    subject: Subject::Nic(port.nic),
                    action: Action::Send(Greeting {
                        mac: port.mac,
                        links: self.greeting_links(stack, segment, port, observed),
                        frames: frames(port),
                    }),
                });
            }
        }
        steps
    }

    /// The other ways out of a NIC's subnet: its tunnel, and each port of a NIC that is there.
    fn greeting_links(
        &self,
        stack: &Stack,
        segment: &Segment,
        port: &Port,
        observed: &HostState,
    ) -> Vec<(IfName, Option<VlanId>)> {
        let filtering = observed.capabilities.contains(&Capability::VlanFiltering);
        let uplink = Uplink::of(stack, segment, filtering, self.transport);
        let others = stack.ports.iter();
        let others = others.filter(|other| other.subnet == port.subnet && other.nic != port.nic);
        std::iter::once((uplink.link, uplink.vlan))
            .filter(|(link, _)| is_up(link, observed))
            .chain(port_links(others, observed))
            .collect()
    }

    /// Routers that may run here since a moment ago speak up, inside and outside: others had them before.
    fn router_greetings(&self, ready: &Readiness, observed: &HostState) -> Vec<Step> {
        let new = |router: &&Arc<RouterConfig>| {
            let leased = self.leased.as_ref();
            // Nobody elsewhere had one that is on every host.
            leased.is_some_and(|leased| leased.contains(&router.id) && !router.anycast)
                && ready.routers.contains(&router.id)
                && !self.greeted_routers.contains(&router.id)
        };
        let step = |router: &RouterConfig| Step {
            subject: Subject::Router(router.id),
            action: router_greeting(router, observed),
        };
        let new = self.routers.iter().filter(new);
        new.map(|router| step(router)).collect()
    }

    fn port(&self, nic: NicId) -> Option<&Port> {
        let mut ports = self.merged.iter().flat_map(|stack| &stack.ports);
        ports.find(|port| port.nic == nic)
    }

    /// NICs that are in use here and that another host announces and wins.
    pub fn lost_nics(&self) -> BTreeSet<NicId> {
        let mut lost = BTreeSet::new();
        let evis = &self.forwarding.evis;
        let mut ports = self.merged.iter().flat_map(|stack| &stack.ports);
        let leaving = ports.any(|port| port.role == PortRole::Leaving);
        if !leaving && evis.values().all(|evi| evi.lost.is_empty()) {
            return lost;
        }
        for stack in &self.merged {
            let ports = stack.ports.iter();
            for port in ports.filter(|port| port.role != PortRole::Standby) {
                let away = stack.segment(port.subnet).is_some_and(|segment| {
                    let tag = tag_of(stack, segment);
                    let evi = evis.get(&segment.vni);
                    evi.is_some_and(|evi| is_away(port, evi, (tag, port.mac)))
                });
                if away {
                    lost.insert(port.nic);
                }
            }
        }
        lost
    }

    /// When the next failed step is due; none if nothing waits.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.troubles
            .values()
            .filter(|t| t.attempts > 0)
            .map(|t| t.retry_at)
            .min()
    }

    /// Namespaces to look into: those of NICs whose port is not in `known`, or all.
    pub fn scope(&self, known: Option<&HostState>) -> Scope {
        let wanted = self
            .merged
            .iter()
            .flat_map(|stack| &stack.ports)
            .filter_map(|port| {
                let Attachment::Netns { netns, .. } = &port.attachment else {
                    return None;
                };
                let there =
                    known.is_some_and(|state| state.links.contains_key(&OwnedName::port(port.nic)));
                (!there).then(|| netns.clone())
            });
        self.scope_with(wanted.collect())
    }

    /// These namespaces, and what is known of all routers.
    pub fn scope_with(&self, netns: BTreeSet<NetnsName>) -> Scope {
        let routers = self.routers.iter();
        Scope {
            netns,
            routers: routers
                .map(|router| OwnedName::router_netns(router.id))
                .collect(),
        }
    }

    /// Everything desired, the server's and the local API's.
    pub fn stacks(&self) -> &[Arc<Stack>] {
        &self.merged
    }

    /// Routers desired here.
    pub fn routers(&self) -> &[Arc<RouterConfig>] {
        &self.routers
    }

    /// What EVPN learned.
    pub fn forwarding(&self) -> &Arc<Forwarding> {
        &self.forwarding
    }

    /// What the local API made, to be kept on disk.
    pub fn local(&self) -> &LocalStacks {
        &self.local
    }

    /// FRR learns from the neighbour tables what is here.
    fn speaker_reads_the_kernel(&self) -> bool {
        let managed = self.managed.as_ref();
        managed.is_some_and(|config| config.bgp.speaker == SpeakerKind::Frr)
    }

    /// What the server gave, to be kept on disk.
    pub fn managed(&self) -> Option<&Arc<HostConfig>> {
        self.managed.as_ref()
    }

    /// The host's place on the underlay.
    pub fn underlay(&self) -> Underlay {
        self.underlay
    }

    /// True if the stack came from the management server.
    pub fn is_managed(&self, vpc: VpcId) -> bool {
        self.managed
            .iter()
            .flat_map(|config| &config.stacks)
            .any(|stack| stack.vpc == vpc)
    }

    /// What is not as it should be.
    pub fn troubles(&self) -> &BTreeMap<Subject, Trouble> {
        &self.troubles
    }

    fn local_stack(&self, vpc: VpcId) -> Result<(), Refused> {
        if self.is_managed(vpc) {
            return Err(Refused::Managed(format!("stack {vpc}")));
        }
        if !self.local.stacks.contains_key(&vpc) {
            return Err(Refused::Unknown(format!("stack {vpc}")));
        }
        Ok(())
    }

    fn check_port(&self, vpc: VpcId, port: &Port) -> Result<(), Refused> {
        let stack = &self.local.stacks[&vpc].stack;
        let Some(segment) = stack.segment(port.subnet) else {
            return Err(Refused::Unknown(format!(
                "segment {} in stack {}",
                port.subnet, vpc
            )));
        };
        if !port.mac.is_usable() {
            return Err(Refused::Invalid(format!(
                "MAC {} is not one that an interface may have: give a unicast address",
                port.mac
            )));
        }
        for address in &port.addresses {
            let inside = match address {
                std::net::IpAddr::V4(v4) => segment.v4.is_some_and(|net| net.contains(v4)),
                std::net::IpAddr::V6(v6) => segment.v6.is_some_and(|net| net.contains(v6)),
            };
            if !inside {
                return Err(Refused::Invalid(format!(
                    "address {address} is not in segment {}: choose one of its prefix",
                    segment.name
                )));
            }
        }
        let taken = |what: String, other: &Port| Refused::Taken {
            what,
            by: format!("nic {}", other.nic),
        };
        for (other_vpc, other) in self
            .merged
            .iter()
            .flat_map(|s| s.ports.iter().map(|p| (s.vpc, p)))
        {
            if other.nic == port.nic {
                return Err(taken(format!("id {}", port.nic), other));
            }
            if endpoint(&other.attachment).is_some()
                && endpoint(&other.attachment) == endpoint(&port.attachment)
            {
                return Err(taken(format!("attachment {}", port.attachment), other));
            }
            if other_vpc != vpc {
                continue;
            }
            if other.mac == port.mac {
                return Err(taken(format!("MAC {}", port.mac), other));
            }
            if other.subnet == port.subnet
                && let Some(address) = port.addresses.iter().find(|a| other.addresses.contains(a))
            {
                return Err(taken(format!("address {address}"), other));
            }
        }
        Ok(())
    }

    /// Joins both origins. The server's configuration wins over a local stack that it clashes with.
    fn merge(&mut self) {
        let gateways = gateways::gateways(&self.merged);
        self.underlay = self
            .managed
            .as_ref()
            .map_or(self.own_underlay, |config| Underlay {
                address: config.underlay.address,
                mtu: config.underlay.mtu.min(self.own_underlay.mtu),
            });
        self.conflicts.clear();
        let mut merged: Vec<Arc<Stack>> = self
            .managed
            .iter()
            .flat_map(|config| config.stacks.iter().cloned())
            .collect();
        for local in self.local.stacks.values() {
            let stack = &local.stack;
            let same_id = merged.iter().find(|other| other.vpc == stack.vpc);
            let by = same_id
                .map(|other| (format!("id {}", other.vpc), other.name.clone()))
                .or_else(|| clash(&merged, stack).map(|(vni, by)| (format!("VNI {vni}"), by)));
            if let Some((what, by)) = by {
                self.conflicts.push(Problem {
                    subject: Subject::Vpc(stack.vpc),
                    blocks: true,
                    message: format!(
                        "local stack {} is not applied: its {what} now belongs to {by}, which the \
                         management server put here; delete the local stack or give it another",
                        stack.name
                    ),
                });
                continue;
            }
            merged.push(Arc::new(stack.clone()));
        }
        self.merged = merged;
        let managed = self.managed.iter().flat_map(|config| &config.routers);
        let here = managed.filter(|router| self.silences || !router.prepared);
        self.routers = here.cloned().collect();
        self.merge_routers();
        self.merge_outer();
        self.note_gateways(&gateways);
        let ports = self.merged.iter().flat_map(|stack| &stack.ports);
        let arrived: BTreeSet<NicId> = ports
            .filter(|port| port.role == PortRole::Arrived)
            .map(|port| port.nic)
            .collect();
        self.greeted.retain(|nic, _| arrived.contains(nic));
        for trouble in self.troubles.values_mut() {
            trouble.attempts = 0; // What failed before may be right now: it is tried at once.
        }
        self.troubles.retain(|_, trouble| trouble.attempts > 0);
    }
}

impl Step {
    /// The namespace that the step makes or works in, if any.
    pub fn netns(&self) -> Option<&NetnsName> {
        match &self.action {
            Action::ConfigureInside(inside) => Some(&inside.netns),
            Action::CreateVeth(veth) => Some(&veth.netns),
            _ => None,
        }
    }
}

/// Ports of NICs that are here, and up.
fn port_links<'a>(
    ports: impl Iterator<Item = &'a Port>,
    observed: &HostState,
) -> impl Iterator<Item = (IfName, Option<VlanId>)> {
    let here = ports.filter(|port| port.role != PortRole::Standby);
    here.map(|port| (port_link(port), None))
        .filter(|(link, _)| is_up(link, observed))
}

fn is_up(link: &IfName, observed: &HostState) -> bool {
    observed.links.get(link).is_some_and(|link| link.up)
}

fn endpoint(attachment: &Attachment) -> Option<(Option<&NetnsName>, &IfName)> {
    match attachment {
        Attachment::Tap => None,
        Attachment::Netns { netns, device } => Some((Some(netns), device)),
        Attachment::Existing { ifname } => Some((None, ifname)),
    }
}

/// The first VNI of `stack` that one of `others` uses, and who.
fn clash(others: &[Arc<Stack>], stack: &Stack) -> Option<(model::Vni, String)> {
    let vnis = |stack: &Stack| -> BTreeSet<model::Vni> {
        stack
            .segments
            .iter()
            .map(|s| s.vni)
            .chain([stack.vni])
            .collect()
    };
    let ours = vnis(stack);
    others.iter().find_map(|other| {
        vnis(other)
            .intersection(&ours)
            .next()
            .map(|vni| (*vni, format!("stack {}", other.name)))
    })
}

fn check_segments(stack: &Stack, underlay: Underlay) -> Result<(), Refused> {
    let limit = model::Encapsulation::inner_mtu(underlay, stack.encoding);
    let mut vlans = BTreeSet::new();
    let mut vnis = BTreeSet::new();
    for segment in &stack.segments {
        let invalid = |text: String| {
            Err(Refused::Invalid(format!(
                "segment {}: {text}",
                segment.name
            )))
        };
        if !vlans.insert(segment.vlan) {
            return invalid(format!("VLAN {} is used twice", segment.vlan));
        }
        if limit.is_none_or(|limit| segment.mtu > limit) {
            let most = limit.map_or(0, model::Mtu::get);
            return invalid(format!(
                "MTU {} does not fit: an underlay of MTU {} carries {most} inside the tunnel",
                segment.mtu, underlay.mtu
            ));
        }
        if segment.v6.is_some() && segment.mtu < model::Mtu::MIN_IPV6 {
            return invalid(format!(
                "MTU {} is less than the 1280 that IPv6 needs",
                segment.mtu
            ));
        }
        match stack.encoding {
            Encoding::VlanBased if !vnis.insert(segment.vni) || segment.vni == stack.vni => {
                return invalid(format!("VNI {} is used twice in its stack", segment.vni));
            }
            Encoding::VlanAwareBundle if segment.vni != stack.vni => {
                return invalid(format!(
                    "its VNI is {}, but in a bundle all segments have the stack's, {}",
                    segment.vni, stack.vni
                ));
            }
            _ => {}
        }
    }
    Ok(())
}
fn is_greeting(action: &Action) -> bool {
    let Action::ChangeRouter(router) = action else {
        return false;
    };
    let mut changes = router.changes.iter();
    changes.all(|change| matches!(change, RouterChange::SetMac { .. }))
}

/// Each interface is given the MAC that it has: thereupon the kernel announces its addresses to the
/// neighbours (`arp_notify`, `ndisc_notify`).
fn router_greeting(router: &RouterConfig, observed: &HostState) -> Action {
    let legs = router.legs.iter();
    let legs = legs.map(|leg| (OwnedName::router_leg(leg.subnet), leg.mac));
    let outer = router.uplink.iter();
    let outer = outer.map(|uplink| (OwnedName::router_outer(router.id), uplink.mac));
    let changes = legs.chain(outer);
    let changes = changes.filter(|(link, _)| observed.links.contains_key(link));
    Action::ChangeRouter(RouterChanges {
        netns: OwnedName::router_netns(router.id),
        changes: changes
            .map(|(link, mac)| RouterChange::SetMac { link, mac })
            .collect(),
    })
}
