//! The owner of the sockets: observes, runs actions.

use crate::attr::Message;
use crate::error::{ActionError, Cause, Doing, Error};
use crate::link::{self, RawLink};
use crate::monitor::{Monitor, Watch};
use crate::netns::{Marks, Netns, on_own_thread};
use crate::nft::{Change, Nft};
use crate::seen::{Changes, Doubt, Seen, Sources, Updated};
use crate::socket::Socket;
use crate::{bpf, fdb, nft, observe, packet, probe, router, sys, tap};
use host_plan::{
    Action, FdbTarget, HostState, Inside, LinkKind, RouterChange, RouterState, Scope, Stamp,
    TrunkPair, VethToNetns,
};
use ipnet::IpNet;
use model::{Capability, IfName, NetnsName};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io;
use std::mem::discriminant;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

/// Interfaces that are about to go are put together under the first free number from here: "vpc",
/// which nobody would choose by hand.
const FIRST_GROUP: u32 = 0x0076_7063;

/// The kernel as seen from one network namespace. Not `Send`: it stays on the thread that opened it.
#[derive(Debug)]
pub struct Kernel {
    route: Socket,
    /// None where the kernel has no nftables.
    nft: Option<Nft>,
    /// For questions by ioctl.
    any: OwnedFd,
    marks: Marks,
    capabilities: Option<BTreeSet<Capability>>,
    monitor: Monitor,
    /// None before the first look, and whenever what was known may be wrong.
    seen: Option<Seen>,
    changes: Changes,
    looks: Looks,
    /// Insides of routers as they were when last looked at.
    routers: BTreeMap<NetnsName, Arc<RouterState>>,
    /// When each of them was, by the number of looks before.
    looked_at: BTreeMap<NetnsName, u64>,
    router_looks: u64,
    /// Those of which we changed the rules since, and nothing else.
    other_rules: BTreeSet<NetnsName>,
    /// What is known of their rules.
    rules: BTreeMap<NetnsName, router::Held>,
    /// Sysctls are those of the calling thread's namespace.
    on_this_thread: std::marker::PhantomData<*mut ()>,
}

/// A look into a router that is still to be made, see [`Kernel::next_look`].
#[derive(Debug)]
pub struct RouterLook {
    name: NetnsName,
    /// What was known when it was asked for.
    known: Arc<RouterState>,
    /// What was known of its rules; the kernel has it back with the answer.
    held: Option<router::Held>,
}

/// What a look into a router found, for [`Kernel::looked`].
#[derive(Debug)]
pub struct RouterLooked {
    look: RouterLook,
    found: Result<Option<RouterState>, Error>,
}

impl RouterLook {
    /// Makes it.
    pub fn make(mut self) -> RouterLooked {
        let found = router::look(&self.name, &mut self.held);
        RouterLooked { look: self, found }
    }
}

/// How often the kernel was looked at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Looks {
    /// At everything.
    pub whole: u64,
    /// At everything because the kernel dropped events.
    pub lost: u64,
}

/// Actions that are run together at most: each may hold a namespace open, and 1024 descriptors is
/// what a process has by default.
const BATCH: usize = 512;

type Outcome = Result<(), Cause>;

impl Kernel {
    /// Opens the namespace of the calling thread, and listens to its changes from then on.
    /// `state_dir` (`/run/vpc`) remembers which named namespaces are ours; it must be gone after a
    /// reboot, as they are.
    pub fn open(state_dir: &Path) -> Result<Kernel, Error> {
        Self::open_with_buffer(state_dir, None)
    }

    /// The same with a small buffer for the kernel's events, for tests of losing some.
    #[doc(hidden)]
    pub fn open_with_buffer(state_dir: &Path, bytes: Option<usize>) -> Result<Kernel, Error> {
        let doing = || "open a netlink socket".to_owned();
        Ok(Kernel {
            monitor: Monitor::open(bytes)
                .doing(|| "listen to changes of the kernel's state".to_owned())?,
            route: Socket::route().doing(doing)?,
            nft: Nft::open().ok(),
            any: nix::sys::socket::socket(
                nix::sys::socket::AddressFamily::Unix,
                nix::sys::socket::SockType::Datagram,
                nix::sys::socket::SockFlag::SOCK_CLOEXEC,
                None,
            )
            .doing(|| "open a socket".to_owned())?,
            marks: Marks::open(state_dir)?,
            capabilities: None,
            seen: None,
            changes: Changes::default(),
            looks: Looks::default(),
            routers: BTreeMap::new(),
            looked_at: BTreeMap::new(),
            router_looks: 0,
            other_rules: BTreeSet::new(),
            rules: BTreeMap::new(),
            on_this_thread: std::marker::PhantomData,
        })
    }

    /// What this kernel can do, found out by trying in a namespace that is thrown away. Cached.
    pub fn capabilities(&mut self) -> Result<&BTreeSet<Capability>, Error> {
        let found = match self.capabilities.take() {
            Some(known) => known,
            None => probe::capabilities()?,
        };
        Ok(self.capabilities.insert(found))
    }

    /// Goes without some of what this kernel can do, as on one that cannot.
    pub fn go_without(&mut self, unused: &BTreeSet<Capability>) -> Result<(), Error> {
        let found = self.capabilities()?;
        self.capabilities = Some(found.difference(unused).copied().collect());
        Ok(())
    }

    /// What a plan is made from: everything as it was at the last whole look, with all changes since
    /// then taken in, and the insides of the scope's namespaces, which are looked at now.
    pub fn observe(&mut self, scope: &Scope) -> Result<HostState, Error> {
        self.catch_up()?;
        let seen = self.seen.as_ref().expect("it has caught up just now");
        let inside = observe::namespaces(&mut self.route, scope, seen.raw.values())?;
        let mut state = seen.state.clone();
        state.netns = inside.states;
        let ours = &seen.state.owned_netns;
        let as_known = self.routers.keys().eq(&scope.routers) && scope.routers.is_subset(ours);
        if !as_known {
            let there = |name: &NetnsName| scope.routers.contains(name) && ours.contains(name);
            self.routers.retain(|name, _| there(name));
            self.rules.retain(|name, _| there(name));
            self.looked_at.retain(|name, _| there(name));
        }
        let other_rules = std::mem::take(&mut self.other_rules);
        let other: Vec<&NetnsName> = match as_known {
            true => scope.routers.intersection(&other_rules).collect(),
            false => scope.routers.intersection(ours).collect(),
        };
        for name in other {
            let mut held = self.rules.remove(name);
            match self.routers.get_mut(name) {
                None => {
                    self.router_looks += 1;
                    self.looked_at.insert(name.clone(), self.router_looks);
                    let looked = router::look(name, &mut held)?;
                    self.routers
                        .extend(looked.map(|state| (name.clone(), Arc::new(state))));
                }
                Some(known) if other_rules.contains(name) => {
                    let firewall = router::look_at_rules(name, &mut held)?;
                    Arc::make_mut(known).firewall = firewall;
                }
                Some(_) => {}
            }
            self.rules.extend(held.map(|held| (name.clone(), held)));
        }
        state.routers = self.routers.clone();
        for raw in seen.raw.values() {
            let name = raw.link_netns.and_then(|id| inside.names.get(&id));
            if let Some(name) = name
                && let Ok(link) = IfName::new(raw.name.as_str())
                && let Some(link) = state.links.get_mut(&link)
                && let LinkKind::Veth { peer_netns, .. } = &mut link.kind
            {
                *peer_netns = Some(name.clone());
            }
        }
        Ok(state)
    }

    /// Forgets what is known, so that the next look is a whole one: for changes that the kernel does
    /// not tell of.
    pub fn forget(&mut self) {
        self.forget_host();
        self.routers.clear();
    }

    /// The same for the host's own namespace.
    pub fn forget_host(&mut self) {
        self.changes.doubt();
    }

    /// Routers of which it is known how they are.
    pub fn routers(&self) -> usize {
        self.routers.len()
    }

    /// The look that is due next: into that router of those known that was looked into longest ago, as the kernel does
    /// not tell of changes there. For any thread, so that nothing waits for it; what it finds is for [`Self::looked`].
    pub fn next_look(&mut self) -> Option<RouterLook> {
        let age = |name: &(&NetnsName, &Arc<RouterState>)| self.looked_at.get(name.0).copied();
        let (name, known) = self.routers.iter().min_by_key(age)?;
        let (name, known) = (name.clone(), Arc::clone(known));
        let held = self.rules.remove(&name);
        self.router_looks += 1;
        self.looked_at.insert(name.clone(), self.router_looks);
        Some(RouterLook { name, known, held })
    }

    /// Takes in what a look found. True if the router is other than it was known to be, or gone; a look beside which
    /// we changed the router ourselves says nothing.
    ///
    /// After an error nothing is known of it.
    pub fn looked(&mut self, looked: RouterLooked) -> Result<bool, Error> {
        let RouterLooked {
            look: RouterLook { name, known, held },
            found,
        } = looked;
        let is_as_it_was = self
            .routers
            .get(&name)
            .is_some_and(|now| Arc::ptr_eq(now, &known));
        if !is_as_it_was || self.other_rules.contains(&name) {
            return Ok(false);
        }
        self.routers.remove(&name);
        let Some(now) = found? else {
            return Ok(true);
        };
        self.rules.extend(held.map(|held| (name.clone(), held)));
        let differs = now != *known;
        let now = if differs { Arc::new(now) } else { known };
        self.routers.insert(name, now);
        Ok(differs)
    }

    /// Takes in what the kernel told since the last time. True if anything is other than it was
    /// known to be; what we did ourselves is known once it was observed.
    pub fn catch_up(&mut self) -> Result<bool, Error> {
        self.listen()?;
        let changes = std::mem::take(&mut self.changes);
        let known = self.seen.take().filter(|_| changes.doubt.is_none());
        let lost = changes.doubt == Some(Doubt::Lost);
        let capabilities = self.capabilities()?.clone();
        let mut sources = Sources {
            route: &mut self.route,
            nft: self.nft.as_mut(),
            marks: &self.marks,
            capabilities: &capabilities,
        };
        if let Some(mut seen) = known {
            if changes.is_empty() {
                self.seen = Some(seen);
                return Ok(false);
            }
            let updated = seen.update(changes, &mut sources)?;
            if updated != Updated::Unclear {
                self.seen = Some(seen);
                return Ok(updated == Updated::Differs);
            }
        }
        self.seen = Some(Seen::whole(&mut sources)?);
        self.looks.whole += 1;
        self.looks.lost += u64::from(lost);
        Ok(true)
    }

    /// How often it was looked at.
    pub fn looks(&self) -> Looks {
        self.looks
    }

    /// For another thread to wait for changes with.
    pub fn watch(&self) -> Watch {
        self.monitor.watch()
    }

    fn listen(&mut self) -> Result<(), Error> {
        let doing = || "listen to changes of the kernel's state".to_owned();
        let own = self.nft.as_ref().map(Nft::port).transpose().doing(doing)?;
        let changes = &mut self.changes;
        let told = self.monitor.drain(own, |event| changes.told(event));
        told.doing(doing)
    }

    /// Runs actions in order. Each has its result at its place; a failure does not stop the others.
    /// A run of actions of one sort becomes few system calls, so order them by sort where you can.
    pub fn run(&mut self, actions: &[Action]) -> Vec<Result<(), ActionError>> {
        let mut results = Vec::with_capacity(actions.len());
        let batches = actions
            .chunk_by(|a, b| sort_of(a) == sort_of(b))
            .flat_map(|batch| batch.chunks(BATCH));
        for batch in batches {
            for action in batch {
                self.touch(action);
            }
            let outcomes = self.run_batch(batch);
            assert_eq!(outcomes.len(), batch.len(), "each action has its outcome");
            // A failure may be for the reason that what is known is wrong.
            if outcomes.iter().any(Result::is_err) || self.listen().is_err() {
                self.changes.doubt();
            }
            results.extend(outcomes.into_iter().zip(batch).map(|(outcome, action)| {
                outcome.map_err(|cause| ActionError::new(describe(action), cause))
            }));
        }
        results
    }

    /// Notes what an action changes that the kernel may not tell of.
    fn touch(&mut self, action: &Action) {
        let changes = &mut self.changes;
        match action {
            Action::SetVteps(_) => changes.touch_elements(None),
            Action::SetGuard { link, .. } | Action::ClearGuard { link } => {
                changes.touch_elements(Some(link));
            }
            Action::Adopt { name, .. } | Action::Release { name } => {
                changes.touch(name);
                changes.touch_elements(Some(name));
            }
            Action::CreateBridge { name, .. }
            | Action::CreateVxlan { name, .. }
            | Action::CreateVlanDevice { name, .. }
            | Action::CreateTap { name, .. } => changes.touch(name),
            Action::CreateVeth(VethToNetns { name, netns, .. }) => {
                changes.touch(name);
                self.routers.remove(netns);
            }
            Action::CreateTrunkPair(pair) => {
                changes.touch(&pair.inner);
                changes.touch(&pair.outer);
                changes.touch_filters();
            }
            Action::DeleteLinks(names) => {
                names.iter().for_each(|name| changes.touch(name));
                let has =
                    |router: &Arc<RouterState>| names.iter().any(|n| router.links.contains_key(n));
                self.routers.retain(|_, router| !has(router));
            }
            Action::CreateNetns(name) | Action::DeleteNetns(name) => {
                changes.touch_netns(name);
                self.routers.remove(name);
                self.rules.remove(name);
            }
            Action::ChangeRouter(router) => {
                let rules = |change: &RouterChange| matches!(change, RouterChange::SetFirewall(_));
                let known = self.routers.get(&router.netns);
                // With the first rules comes more than rules.
                if known.is_some_and(|known| known.firewall.is_some())
                    && router.changes.iter().all(rules)
                {
                    self.other_rules.insert(router.netns.clone());
                } else {
                    self.routers.remove(&router.netns);
                }
            }
            Action::Enslave { link, .. }
            | Action::LeaveBridge { link }
            | Action::AddVlan { link, .. }
            | Action::DeleteVlan { link, .. } => {
                changes.touch(link);
                changes.touch_vlans();
            }
            Action::SetPortFlags { link, .. }
            | Action::SetMtu { link, .. }
            | Action::SetMac { link, .. }
            | Action::DisableIpv6 { link }
            | Action::SetUp { link }
            | Action::SetDown { link } => changes.touch(link),
            // Of rows the kernel tells, of rules too: `nft` is another process.
            Action::InstallFirewall
            | Action::ConfigureInside(_)
            | Action::AddFdb(_)
            | Action::DeleteFdb(_)
            | Action::SetNeighbour(_)
            | Action::DeleteNeighbour(_)
            | Action::Send(_)
            | Action::ChangeDatapath(_) => {}
        }
    }

    fn run_batch(&mut self, batch: &[Action]) -> Vec<Outcome> {
        match sort_of(&batch[0]) {
            Sort::Create(_) => self.create(batch),
            Sort::Requests => self.requests(batch),
            Sort::Enslave => self.enslave(batch),
            Sort::Elements => self.elements(batch),
            Sort::Netns => {
                let names: Vec<&NetnsName> = batch
                    .iter()
                    .filter_map(|action| match action {
                        Action::CreateNetns(name) => Some(name),
                        _ => None,
                    })
                    .collect();
                self.marks.create(&names)
            }
            Sort::Inside => configure_inside(batch),
            Sort::Router => self.change_routers(batch),
            Sort::One => batch.iter().map(|action| self.one(action)).collect(),
        }
    }

    fn index_of(&self, name: &IfName) -> Result<u32, Cause> {
        sys::index_of(self.any.as_fd(), name).map_err(|errno| match errno {
            nix::Error::ENODEV => Cause::Kernel {
                errno: libc::ENODEV,
                text: Some(format!("there is no interface {name}")),
            },
            other => other.into(),
        })
    }

    /// What is there of these interfaces.
    fn look_up<'a>(
        &mut self,
        names: impl Iterator<Item = &'a IfName>,
    ) -> Vec<Result<Option<RawLink>, Cause>> {
        let mut questions: Vec<Message> = names.map(link::get).collect();
        let mut found: Vec<Option<RawLink>> = Vec::new();
        found.resize_with(questions.len(), || None);
        let results = self.route.ask(&mut questions, |position, payload| {
            found[position] = RawLink::parse(payload);
        });
        results
            .into_iter()
            .zip(found)
            .map(|(result, link)| match result {
                Ok(()) => Ok(link),
                Err(cause) if cause.errno() == Some(libc::ENODEV) => Ok(None),
                Err(cause) => Err(cause),
            })
            .collect()
    }

    /// Makes interfaces, then stamps those that were made, then switches their IPv6 off. A stamp is
    /// not put in the request that makes the interface because the kernel ignores it there.
    fn create(&mut self, batch: &[Action]) -> Vec<Outcome> {
        let mut outcomes: Vec<Outcome> = Vec::with_capacity(batch.len());
        let mut requests = Requests::default();
        let mut spaces: BTreeMap<&NetnsName, Netns> = BTreeMap::new();
        for (position, action) in batch.iter().enumerate() {
            let prepared = match action {
                Action::CreateVeth(veth) => match open_netns(&mut spaces, &veth.netns) {
                    Ok(netns) => {
                        requests.push(position, link::create_veth(veth, netns), &[]);
                        Ok(())
                    }
                    Err(cause) => Err(cause),
                },
                other => self
                    .creation(other)
                    .map(|request| requests.push(position, request, &[])),
            };
            outcomes.push(prepared);
        }
        requests.run(&mut self.route, &mut outcomes);
        self.accept_what_is_there(batch, &mut outcomes);

        let mut requests = Requests::default();
        for (position, action) in batch.iter().enumerate() {
            if outcomes[position].is_err() {
                continue;
            }
            let Some(made) = Made::of(action) else {
                continue;
            };
            let stamp = made.stamp.to_string();
            for name in made.names() {
                let request = match action {
                    Action::CreateBridge { mtu, .. } => link::finish_bridge(name, *mtu, &stamp),
                    Action::CreateVlanDevice { .. } => {
                        let mut request = link::set_alias(name, &stamp);
                        link::set_addr_gen_mode(&mut request, sys::IN6_ADDR_GEN_MODE_NONE);
                        request
                    }
                    _ => link::set_alias(name, &stamp),
                };
                requests.push(position, request, &[]);
            }
        }
        requests.run(&mut self.route, &mut outcomes);

        for (position, action) in batch.iter().enumerate() {
            if outcomes[position].is_err() {
                continue;
            }
            outcomes[position] = self.finish(action);
        }
        outcomes
    }

    fn creation(&self, action: &Action) -> Result<Message, Cause> {
        Ok(match action {
            Action::CreateBridge {
                name,
                mac,
                mtu,
                vlan_filtering,
                ..
            } => link::create_bridge(name, *mac, *mtu, *vlan_filtering),
            Action::CreateVxlan {
                name,
                vni,
                local,
                port,
                mac,
                mtu,
                ..
            } => link::create_vxlan(name, *vni, *local, *port, *mac, *mtu),
            Action::CreateVlanDevice {
                name, bridge, vlan, ..
            } => link::create_vlan_device(name, self.index_of(bridge)?, *vlan),
            Action::CreateTrunkPair(pair) => link::create_trunk_pair(pair),
            other => unreachable!("{other:?} makes no interface by itself"),
        })
    }

    /// An interface that is there already is taken for the one to be made if it is of its kind, has
    /// its parameters, and carries its stamp or none: without one, its maker was killed between
    /// making and stamping it.
    fn accept_what_is_there(&mut self, batch: &[Action], outcomes: &mut [Outcome]) {
        let exists = |outcome: &Outcome| {
            outcome
                .as_ref()
                .is_err_and(|cause| cause.errno() == Some(libc::EEXIST))
        };
        let doubtful: Vec<(usize, Made<'_>)> = batch
            .iter()
            .enumerate()
            .filter(|(position, _)| exists(&outcomes[*position]))
            .filter_map(|(position, action)| Some((position, Made::of(action)?)))
            .collect();
        if doubtful.is_empty() {
            return;
        }
        let found = self.look_up(doubtful.iter().map(|(_, made)| made.name));
        for ((position, made), found) in doubtful.into_iter().zip(found) {
            // Not found: it is something else that is there, and the kernel said what.
            if let Ok(Some(link)) = found {
                let parent = match &batch[position] {
                    Action::CreateVlanDevice { bridge, .. } => self.index_of(bridge).ok(),
                    _ => None,
                };
                outcomes[position] = made.is(&batch[position], &link, parent);
            }
        }
    }

    /// What an interface needs besides requests, before it may come up.
    fn finish(&mut self, action: &Action) -> Outcome {
        match action {
            Action::CreateVlanDevice { .. } => Ok(()),
            Action::CreateTrunkPair(pair) => {
                disable_ipv6(&pair.inner, true)?;
                disable_ipv6(&pair.outer, true)?;
                let outer = self.index_of(&pair.outer)?;
                let vxlan = self.index_of(&pair.vxlan)?;
                bpf::connect(&mut self.route, outer, vxlan, pair.vlan)
            }
            other => match Made::of(other) {
                Some(made) => disable_ipv6(made.name, true),
                None => Ok(()),
            },
        }
    }

    /// Actions that are requests and nothing else, all sent together.
    fn requests(&mut self, batch: &[Action]) -> Vec<Outcome> {
        let mut outcomes: Vec<Outcome> = Vec::with_capacity(batch.len());
        let mut requests = Requests::default();
        let mut indices: HashMap<&IfName, u32> = HashMap::new();
        for (position, action) in batch.iter().enumerate() {
            let outcome = self.request(action, &mut indices).map(|request| {
                if let Some((request, tolerated)) = request {
                    requests.push(position, request, tolerated);
                }
            });
            outcomes.push(outcome);
        }
        requests.run(&mut self.route, &mut outcomes);
        outcomes
    }

    /// The request of an action and the errors that mean it holds already; none if there is nothing
    /// to do.
    fn request<'a>(
        &self,
        action: &'a Action,
        indices: &mut HashMap<&'a IfName, u32>,
    ) -> Result<Option<(Message, &'static [i32])>, Cause> {
        const NONE: &[i32] = &[];
        /// What was to be removed is not there, or its interface is not.
        const GONE: &[i32] = &[libc::ENOENT, libc::ENODEV, libc::ESRCH];
        let mut index = |name: &'a IfName| match indices.get(name) {
            Some(index) => Ok::<u32, Cause>(*index),
            None => {
                let index = self.index_of(name)?;
                indices.insert(name, index);
                Ok(index)
            }
        };
        let request = match action {
            Action::LeaveBridge { link } => (link::set_master(link, 0), GONE),
            Action::SetPortFlags { link, flags } => (link::set_port_flags(link, *flags), NONE),
            Action::AddVlan {
                link,
                vlan,
                membership,
            } => (link::add_vlan(index(link)?, *vlan, *membership), NONE),
            Action::SetMtu { link, mtu } => (link::set_mtu(link, *mtu), NONE),
            Action::SetMac { link, mac } => (link::set_mac(link, *mac), NONE),
            Action::SetUp { link } => (link::set_up(link, true), NONE),
            Action::SetDown { link } => (link::set_up(link, false), GONE),
            Action::AddFdb(row) => (fdb::add(row, index(&row.dev)?), NONE_BUT_THE_SAME),
            Action::SetNeighbour(row) => (fdb::set_neighbour(row, index(&row.dev)?), NONE),
            Action::DeleteVlan { .. } | Action::DeleteFdb(_) | Action::DeleteNeighbour(_) => {
                let dev = match action {
                    Action::DeleteVlan { link, .. } => link,
                    Action::DeleteFdb(row) => &row.dev,
                    Action::DeleteNeighbour(row) => &row.dev,
                    _ => unreachable!("one of the three"),
                };
                let index = match index(dev) {
                    Ok(index) => index,
                    Err(cause) if cause.errno() == Some(libc::ENODEV) => return Ok(None),
                    Err(cause) => return Err(cause),
                };
                let request = match action {
                    Action::DeleteVlan { vlan, .. } => link::delete_vlan(index, *vlan),
                    Action::DeleteFdb(row) => fdb::delete(row, index),
                    Action::DeleteNeighbour(row) => fdb::delete_neighbour(row, index),
                    _ => unreachable!("one of the three"),
                };
                (request, GONE)
            }
            other => unreachable!("{other:?} is more than a request"),
        };
        /// A flood-list entry that is there already.
        const NONE_BUT_THE_SAME: &[i32] = &[libc::EEXIST];
        Ok(Some(request))
    }

    /// Makes ports. The flag that isolates one cannot be in the request that makes it a port: the
    /// kernel looks for the bridge before it has joined. It is the next request of the same send.
    fn enslave(&mut self, batch: &[Action]) -> Vec<Outcome> {
        let pairs: Vec<(&IfName, &IfName)> = batch
            .iter()
            .filter_map(|action| match action {
                Action::Enslave { link, bridge } => Some((link, bridge)),
                _ => None,
            })
            .collect();
        let found = self.look_up(pairs.iter().map(|(link, _)| *link));
        let mut bridges: HashMap<&IfName, u32> = HashMap::new();
        let mut requests = Requests::default();
        let mut outcomes = Vec::with_capacity(pairs.len());
        for (position, ((link, bridge), found)) in pairs.into_iter().zip(found).enumerate() {
            let index = match bridges.get(bridge) {
                Some(index) => Ok(*index),
                None => self.index_of(bridge),
            };
            outcomes.push(match (found, index) {
                (Ok(found), Ok(index)) => {
                    bridges.insert(bridge, index);
                    // A port of it already keeps its flags.
                    if found.is_none_or(|found| found.master != Some(index)) {
                        requests.push(position, link::set_master(link, index), &[]);
                        requests.push(position, link::isolate(link), &[]);
                    }
                    Ok(())
                }
                (Err(cause), _) | (_, Err(cause)) => Err(cause),
            });
        }
        requests.run(&mut self.route, &mut outcomes);
        outcomes
    }

    /// Actions on elements of our nftables sets, in one transaction.
    fn elements(&mut self, batch: &[Action]) -> Vec<Outcome> {
        let Some(nft) = &mut self.nft else {
            return batch
                .iter()
                .map(|_| Err(Cause::kernel(libc::EOPNOTSUPP)))
                .collect();
        };
        let changes: Vec<Change<'_>> = batch
            .iter()
            .filter_map(|action| match action {
                Action::SetGuard { link, guard } => Some(Change::Set(link, guard)),
                // An interface that is gone is no port any more.
                Action::ClearGuard { link } => Some(match sys::index_of(self.any.as_fd(), link) {
                    Err(nix::Error::ENODEV) => Change::Forget(link),
                    _ => Change::Clear(link),
                }),
                Action::SetVteps(vteps) => Some(Change::Vteps(vteps)),
                _ => None,
            })
            .collect();
        nft.change(&changes)
    }

    fn one(&mut self, action: &Action) -> Outcome {
        match action {
            Action::InstallFirewall => self.nft()?.install(),
            Action::Send(greeting) => packet::send(greeting),
            Action::ChangeDatapath(_) => Err(Cause::InTheWay(
                "it is the datapath's to do, not the kernel's".to_owned(),
            )),
            Action::CreateTap { name, mtu, stamp } => {
                let found = self
                    .look_up(std::iter::once(name))
                    .pop()
                    .expect("one question has one answer")?;
                match found {
                    None => tap::create(name)?,
                    Some(link) => Made {
                        name,
                        second: None,
                        stamp: *stamp,
                        kind: "tun",
                    }
                    .is(action, &link, None)?,
                }
                let mut request = link::set_mtu(name, *mtu);
                request.put(sys::IFLA_IFALIAS, stamp.to_string().as_bytes());
                self.route.request(request)?;
                disable_ipv6(name, true)
            }
            // Closed before it carries our stamp: from then on it may be put into a bridge.
            Action::Adopt { name, stamp } => {
                if nft::is_unguarded(name) {
                    return Err(Cause::InTheWay(format!(
                        "{name} is named as tunnels are, which no guard looks at: rename it"
                    )));
                }
                if let Some(nft) = &mut self.nft {
                    let closed = nft.change(&[Change::Close(name)]).pop();
                    match closed.expect("one change has one outcome") {
                        // The tables are not there; then no port of this host is guarded.
                        Err(cause) if cause.errno() == Some(libc::ENOENT) => {}
                        other => other?,
                    }
                }
                disable_ipv6(name, true)?;
                self.route
                    .request(link::set_alias(name, &stamp.to_string()))
            }
            Action::Release { name } => {
                match self.route.request(link::set_alias(name, "")) {
                    Err(cause) if cause.errno() == Some(libc::ENODEV) => {}
                    other => {
                        other?;
                        disable_ipv6(name, false)?;
                    }
                }
                match &mut self.nft {
                    Some(nft) => nft
                        .change(&[Change::Forget(name)])
                        .pop()
                        .expect("one change has one outcome"),
                    None => Ok(()),
                }
            }
            Action::DeleteLinks(names) => self.delete_links(names),
            Action::DeleteNetns(name) => self.marks.delete(name),
            Action::DisableIpv6 { link } => {
                self.index_of(link)?;
                disable_ipv6(link, true)
            }
            other => unreachable!("{other:?} is run with others of its sort"),
        }
    }

    fn change_routers(&mut self, batch: &[Action]) -> Vec<Outcome> {
        let mut change = |action: &Action| match action {
            Action::ChangeRouter(changes) if !self.marks.is_ours(&changes.netns) => {
                Err(Cause::InTheWay(format!(
                    "there is a namespace {} that was not made by this agent",
                    changes.netns
                )))
            }
            Action::ChangeRouter(changes) => {
                let mut held = self.rules.remove(&changes.netns);
                let outcome = router::change(changes, &mut held);
                match outcome {
                    Ok(()) => {
                        let held = held.map(|held| (changes.netns.clone(), held));
                        self.rules.extend(held);
                    }
                    Err(_) => drop(self.routers.remove(&changes.netns)),
                }
                outcome
            }
            other => unreachable!("{other:?} is no change of a router"),
        };
        batch.iter().map(&mut change).collect()
    }

    fn nft(&mut self) -> Result<&mut Nft, Cause> {
        self.nft.as_mut().ok_or(Cause::kernel(libc::EOPNOTSUPP))
    }

    /// Removes interfaces. The kernel waits for a grace period once per request, 20 ms or more: many
    /// go as a group. Only what carries a stamp of ours goes, whatever the name.
    fn delete_links(&mut self, names: &[IfName]) -> Outcome {
        let mut raw = Vec::with_capacity(names.len());
        for found in self.look_up(names.iter()) {
            raw.extend(found?);
        }
        let there: HashMap<&str, &RawLink> = raw.iter().map(|l| (l.name.as_str(), l)).collect();
        let mut delete = Vec::new();
        let mut refused = Ok(());
        for name in names {
            let Some(link) = there.get(name.as_str()) else {
                continue;
            };
            let stamp = link.alias.as_deref().map(str::parse::<Stamp>);
            if !matches!(stamp, Some(Ok(stamp)) if !matches!(stamp, Stamp::Adopted(_))) {
                refused = Err(Cause::InTheWay(format!(
                    "{name} does not carry our stamp, so it is not ours to remove"
                )));
                continue;
            }
            if link.kind == "veth" && link.link_netns.is_none() {
                bpf::disconnect(&mut self.route, link.index)?;
            }
            delete.push(name);
        }
        if let [name] = delete[..] {
            tolerate(self.route.request(link::delete(name)), &[libc::ENODEV])?;
            return refused;
        }
        if delete.is_empty() {
            return refused;
        }
        // Whatever is in the group goes: none may be in it that was not asked about.
        self.catch_up().map_err(|error| error.cause)?;
        let seen = self.seen.as_ref().expect("it has caught up just now");
        let taken: BTreeSet<u32> = seen.raw.values().map(|link| link.group).collect();
        let group = (FIRST_GROUP..)
            .find(|group| !taken.contains(group))
            .expect("a host has fewer interfaces than there are numbers");
        let mut requests: Vec<Message> = delete
            .iter()
            .map(|name| link::set_group(name, group))
            .collect();
        for result in self.route.transact(&mut requests) {
            tolerate(result, &[libc::ENODEV])?;
        }
        tolerate(
            self.route.request(link::delete_group(group)),
            &[libc::ENODEV],
        )?;
        refused
    }
}

fn tolerate(outcome: Outcome, errnos: &[i32]) -> Outcome {
    match outcome {
        Err(cause) if cause.errno().is_some_and(|errno| errnos.contains(&errno)) => Ok(()),
        other => other,
    }
}

/// How actions are run: those of one sort together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sort {
    Create(std::mem::Discriminant<Action>),
    Requests,
    Enslave,
    Elements,
    Netns,
    Inside,
    Router,
    One,
}

fn sort_of(action: &Action) -> Sort {
    match action {
        Action::CreateBridge { .. }
        | Action::CreateVxlan { .. }
        | Action::CreateVlanDevice { .. }
        | Action::CreateTrunkPair(_)
        | Action::CreateVeth(_) => Sort::Create(discriminant(action)),
        Action::LeaveBridge { .. }
        | Action::SetPortFlags { .. }
        | Action::AddVlan { .. }
        | Action::DeleteVlan { .. }
        | Action::SetMtu { .. }
        | Action::SetMac { .. }
        | Action::SetUp { .. }
        | Action::SetDown { .. }
        | Action::AddFdb(_)
        | Action::DeleteFdb(_)
        | Action::SetNeighbour(_)
        | Action::DeleteNeighbour(_) => Sort::Requests,
        Action::Enslave { .. } => Sort::Enslave,
        Action::SetGuard { .. } | Action::ClearGuard { .. } | Action::SetVteps(_) => Sort::Elements,
        Action::CreateNetns(_) => Sort::Netns,
        Action::ConfigureInside(_) => Sort::Inside,
        Action::ChangeRouter(_) => Sort::Router,
        Action::InstallFirewall
        | Action::CreateTap { .. }
        | Action::Adopt { .. }
        | Action::Release { .. }
        | Action::DeleteLinks(_)
        | Action::DeleteNetns(_)
        | Action::DisableIpv6 { .. }
        | Action::Send(_)
        | Action::ChangeDatapath(_) => Sort::One,
    }
}

/// Requests of several actions, sent together.
#[derive(Default)]
struct Requests {
    messages: Vec<Message>,
    /// Whose each is, and what errors mean that it holds already.
    owners: Vec<(usize, &'static [i32])>,
}

impl Requests {
    fn push(&mut self, action: usize, message: Message, tolerated: &'static [i32]) {
        self.messages.push(message);
        self.owners.push((action, tolerated));
    }

    /// An action has the outcome of its first request that failed.
    fn run(mut self, socket: &mut Socket, outcomes: &mut [Outcome]) {
        let results = socket.transact(&mut self.messages);
        for (result, (action, tolerated)) in results.into_iter().zip(self.owners) {
            if outcomes[action].is_ok() {
                outcomes[action] = tolerate(result, tolerated);
            }
        }
    }
}

/// What an action makes.
struct Made<'a> {
    name: &'a IfName,
    /// The other end, where it is ours as well and in this namespace.
    second: Option<&'a IfName>,
    stamp: Stamp,
    kind: &'static str,
}

impl<'a> Made<'a> {
    fn of(action: &'a Action) -> Option<Self> {
        let (name, second, stamp, kind) = match action {
            Action::CreateBridge { name, stamp, .. } => (name, None, *stamp, "bridge"),
            Action::CreateVxlan { name, stamp, .. } => (name, None, *stamp, "vxlan"),
            Action::CreateVlanDevice { name, stamp, .. } => (name, None, *stamp, "vlan"),
            Action::CreateTrunkPair(TrunkPair {
                inner,
                outer,
                stamp,
                ..
            }) => (inner, Some(outer), *stamp, "veth"),
            Action::CreateVeth(VethToNetns { name, stamp, .. }) => (name, None, *stamp, "veth"),
            Action::CreateTap { name, stamp, .. } => (name, None, *stamp, "tun"),
            _ => return None,
        };
        Some(Self {
            name,
            second,
            stamp,
            kind,
        })
    }

    fn names(&self) -> impl Iterator<Item = &'a IfName> {
        std::iter::once(self.name).chain(self.second)
    }

    /// Whether the interface that is there is the one that the action makes.
    fn is(&self, action: &Action, link: &RawLink, parent: Option<u32>) -> Outcome {
        let in_the_way = |what: String| {
            let name = self.name;
            Err(Cause::InTheWay(format!(
                "there is an interface {name} already, {what}"
            )))
        };
        if link.kind != self.kind {
            let kind = if link.kind.is_empty() {
                "hardware"
            } else {
                &link.kind
            };
            return in_the_way(format!("of kind {kind}"));
        }
        match link.alias.as_deref() {
            None => {}
            Some(alias) if alias == self.stamp.to_string() => {}
            Some(alias) => return in_the_way(format!("stamped {alias:?}")),
        }
        let same = match action {
            Action::CreateBridge { vlan_filtering, .. } => {
                link.data_u8(sys::IFLA_BR_VLAN_FILTERING).unwrap_or(0) == u8::from(*vlan_filtering)
            }
            Action::CreateVxlan {
                vni, local, port, ..
            } => {
                let has = link
                    .data_ip(sys::IFLA_VXLAN_LOCAL)
                    .or_else(|| link.data_ip(sys::IFLA_VXLAN_LOCAL6));
                link.data_u32(sys::IFLA_VXLAN_ID) == Some(vni.get())
                    && has == Some(*local)
                    && link.data_u16(sys::IFLA_VXLAN_PORT) == Some(port.to_be())
            }
            Action::CreateVlanDevice { vlan, .. } => {
                link.data_u16(sys::IFLA_VLAN_ID) == Some(vlan.get()) && link.link == parent
            }
            Action::CreateVeth(_) => link.link_netns.is_some(),
            Action::CreateTrunkPair(_) => link.link_netns.is_none(),
            Action::CreateTap { .. } => {
                let is = |kind| link.data_u8(kind) == Some(1);
                is(sys::IFLA_TUN_MULTI_QUEUE) && is(sys::IFLA_TUN_VNET_HDR)
            }
            _ => false,
        };
        if same {
            Ok(())
        } else {
            in_the_way("with other parameters".into())
        }
    }
}

fn open_netns<'a>(
    spaces: &mut BTreeMap<&'a NetnsName, Netns>,
    name: &'a NetnsName,
) -> Result<i32, Cause> {
    if !spaces.contains_key(name) {
        let found = Netns::find(name).map_err(|error| error.cause)?;
        let netns = found.ok_or_else(|| Cause::Kernel {
            errno: libc::ENOENT,
            text: Some(format!("there is no namespace {name}")),
        })?;
        spaces.insert(name, netns);
    }
    Ok(spaces[name].raw())
}

/// Switches an interface's IPv6 off or on. One that has none is off already.
fn disable_ipv6(name: &IfName, disabled: bool) -> Outcome {
    let path = format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6");
    write_sysctl(&path, if disabled { "1" } else { "0" })
}

fn write_sysctl(path: &str, value: &str) -> Outcome {
    match fs::write(path, value) {
        // No IPv6 in this kernel, or none on this interface, whose MTU is below IPv6's least.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => Ok(other?),
    }
}

/// Sets up the far ends of NICs, each in its namespace, on one thread that visits them all.
fn configure_inside(batch: &[Action]) -> Vec<Outcome> {
    on_own_thread(|| {
        batch
            .iter()
            .map(|action| match action {
                Action::ConfigureInside(inside) => configure_one(inside),
                other => unreachable!("{other:?} is not inside"),
            })
            .collect()
    })
}

fn configure_one(inside: &Inside) -> Outcome {
    let netns = Netns::named(&inside.netns).map_err(|error| error.cause)?;
    netns.enter()?;
    let mut socket = Socket::route()?;
    let device = &inside.device;
    let mut found = None;
    match socket.get(link::get(device), |payload| {
        found = RawLink::parse(payload);
    }) {
        Err(cause) if cause.errno() == Some(libc::ENODEV) => {
            return Err(Cause::Kernel {
                errno: libc::ENODEV,
                text: Some(format!("there is no interface {device} in it")),
            });
        }
        other => other?,
    }
    let found = found.ok_or(Cause::Garbled("an answer without an interface"))?;
    let index = found.index;
    let has_ipv6 = inside.addresses.iter().any(|a| matches!(a, IpNet::V6(_)));
    // Only if needed: files of that name exist once a namespace, and the kernel looks through all of
    // them, so that a write costs more with every NIC.
    if has_ipv6 && found.ipv6_disabled {
        disable_ipv6(device, false)?;
    }
    let mut addresses = inside.addresses.clone();
    if has_ipv6 {
        // The kernel would make it too, but some moment later and with duplicate detection pending.
        let link_local = IpNet::new(inside.mac.link_local().into(), 64);
        addresses.extend(link_local);
    }
    let lo = IfName::new("lo").expect("lo is a name");
    let mut attributes = link::set_mtu(device, inside.mtu);
    attributes.put(sys::IFLA_ADDRESS, &inside.mac.0);
    if has_ipv6 {
        // The link-local address that the guard lets through is the one of the MAC.
        link::set_addr_gen_mode(&mut attributes, sys::IN6_ADDR_GEN_MODE_EUI64);
    }
    let mut requests = vec![link::set_up(&lo, true), attributes];
    requests.extend(addresses.iter().map(|a| link::add_address(index, *a)));
    requests.push(link::set_up(device, true));
    let results = socket.transact(&mut requests);
    let first_address = 2;
    for (position, result) in results.into_iter().enumerate() {
        let address = position
            .checked_sub(first_address)
            .and_then(|at| addresses.iter().nth(at));
        match (result, address) {
            (Err(cause), Some(address)) if cause.errno() == Some(libc::EEXIST) => {
                replace_prefix(&mut socket, index, *address)?;
            }
            (result, _) => result?,
        }
    }
    Ok(())
}

/// The kernel has the address already. For IPv6 that may be with another prefix length, which it
/// does not change in place.
fn replace_prefix(socket: &mut Socket, index: u32, address: IpNet) -> Outcome {
    let there = observe::addresses_of(socket, index)?;
    if there.contains(&address) {
        return Ok(());
    }
    for other in there.iter().filter(|other| other.addr() == address.addr()) {
        socket.request(link::delete_address(index, *other))?;
    }
    socket.request(link::add_address(index, address))
}

/// What an action does, to what, for errors.
fn describe(action: &Action) -> String {
    match action {
        Action::InstallFirewall => "install our nftables tables".into(),
        Action::SetVteps(_) => "set whom tunnel packets are taken from".into(),
        Action::CreateBridge { name, .. } => format!("make bridge {name}"),
        Action::CreateVxlan { name, vni, .. } => format!("make VXLAN device {name} of VNI {vni}"),
        Action::CreateVlanDevice {
            name, bridge, vlan, ..
        } => format!("make VLAN device {name} of VLAN {vlan} on {bridge}"),
        Action::CreateTrunkPair(pair) => format!(
            "make trunk pair {} and {} of VLAN {} to {}",
            pair.inner, pair.outer, pair.vlan, pair.vxlan
        ),
        Action::CreateVeth(veth) => format!(
            "make veth {} with {} in namespace {}",
            veth.name, veth.device, veth.netns
        ),
        Action::CreateTap { name, .. } => format!("make TAP device {name}"),
        Action::Adopt { name, .. } => format!("take over interface {name}"),
        Action::Release { name } => format!("give interface {name} back"),
        Action::DeleteLinks(names) => match &names[..] {
            [name] => format!("remove interface {name}"),
            names => format!("remove {} interfaces", names.len()),
        },
        Action::CreateNetns(name) => format!("make namespace {name}"),
        Action::DeleteNetns(name) => format!("remove namespace {name}"),
        Action::Enslave { link, bridge } => format!("make {link} a port of {bridge}"),
        Action::LeaveBridge { link } => format!("take {link} out of its bridge"),
        Action::SetPortFlags { link, .. } => format!("set the port flags of {link}"),
        Action::AddVlan { link, vlan, .. } => format!("make {link} a member of VLAN {vlan}"),
        Action::DeleteVlan { link, vlan } => format!("take {link} out of VLAN {vlan}"),
        Action::SetGuard { link, .. } => format!("guard port {link}"),
        Action::ClearGuard { link } => format!("forget the guard of port {link}"),
        Action::SetMtu { link, mtu } => format!("set the MTU of {link} to {mtu}"),
        Action::SetMac { link, mac } => format!("set the MAC of {link} to {mac}"),
        Action::DisableIpv6 { link } => format!("switch off IPv6 on {link}"),
        Action::SetUp { link } => format!("bring {link} up"),
        Action::SetDown { link } => format!("take {link} down"),
        Action::ConfigureInside(inside) => {
            format!("set up {} in namespace {}", inside.device, inside.netns)
        }
        Action::ChangeRouter(router) => format!("change what is in namespace {}", router.netns),
        Action::AddFdb(row) | Action::DeleteFdb(row) => {
            let what = if matches!(action, Action::AddFdb(_)) {
                "add"
            } else {
                "remove"
            };
            let (mac, dev) = (row.mac, &row.dev);
            match row.target {
                FdbTarget::Vtep(vtep) => format!("{what} FDB row {mac} to {vtep} on {dev}"),
                FdbTarget::Bridge(Some(vlan)) => {
                    format!("{what} FDB row {mac} VLAN {vlan} at port {dev}")
                }
                FdbTarget::Bridge(None) => format!("{what} FDB row {mac} at port {dev}"),
            }
        }
        Action::SetNeighbour(row) => format!("set neighbour {} of {}", row.ip, row.dev),
        Action::DeleteNeighbour(row) => format!("remove neighbour {} of {}", row.ip, row.dev),
        Action::Send(greeting) => format!("tell the subnet of {}", greeting.mac),
        Action::ChangeDatapath(_) => action.to_string(),
    }
}
