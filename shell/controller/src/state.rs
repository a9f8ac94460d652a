//! What the server knows: the intent, the hosts' configurations, and how the hosts are.

use api::v1;
use fleet_plan::{
    DiskRoom, Electorate, Intent, Issued, MoveStep, Refusal, Rollout, RouterStep, Seat, liveness,
    next_router_step, next_step,
};
use model::{
    Attachment, Capability, Change, Condition, Encoding, Generation, Host, HostConfig, HostId,
    HostStatus, Liveness, MovePhase, Nic, NicId, Object, ObjectId, Port, Router, RouterConfig,
    RouterId, Segment, SpeakerKind, Stack, Transport, UnixMillis, VolumeId, VpcId,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Owned by the loop in `owner.rs`; everybody else asks it.
pub(crate) struct State {
    pub(crate) intent: Intent,
    pub(crate) rollout: Rollout,
    pub(crate) hosts: BTreeMap<HostId, Known>,
    /// The generation of its host's configuration that last changed a NIC. None yet for one that
    /// was not planned.
    nic_generations: BTreeMap<(HostId, NicId), Generation>,
    /// As `nic_generations`, of routers.
    pub(crate) router_generations: BTreeMap<(HostId, RouterId), Generation>,
    /// The generation of a host's configuration that a moving NIC is not in any more.
    left: BTreeMap<(HostId, NicId), Generation>,
    /// What `nic_generations` was computed from.
    planned: BTreeMap<HostId, Arc<HostConfig>>,
    /// Replicas that something is wrong with, since when.
    pub(crate) troubled: BTreeMap<(VolumeId, u64), UnixMillis>,
    /// Why volumes are not as they should be, and what was tried last, when.
    pub(crate) volume_troubles: BTreeMap<VolumeId, String>,
    /// By the server's clock, when it was started.
    pub(crate) started: UnixMillis,
    /// By the server's clock, when the event at hand was taken.
    pub(crate) now: UnixMillis,
}

/// How a host is.
#[derive(Debug, Clone)]
pub(crate) struct Known {
    pub(crate) status: HostStatus,
    pub(crate) underlay_mtu: u32,
    /// The newest that it told of its routers. Lost with the server, and told again within seconds.
    pub(crate) figures: BTreeMap<RouterId, v1::RouterFigures>,
    /// How its storage is. Lost with the server, and told again within seconds.
    pub(crate) storage: Option<v1::StorageReport>,
    /// As the watchers were told.
    pub(crate) shown: Liveness,
    /// Changed since it was saved.
    pub(crate) unsaved: bool,
    pub(crate) saved_at: UnixMillis,
}

impl Default for Known {
    fn default() -> Self {
        Self {
            status: HostStatus::default(),
            underlay_mtu: 0,
            figures: BTreeMap::new(),
            storage: None,
            shown: Liveness::Joining,
            unsaved: false,
            saved_at: UnixMillis(0),
        }
    }
}

impl State {
    pub(crate) const fn new(intent: Intent, rollout: Rollout, now: UnixMillis) -> Self {
        Self {
            intent,
            rollout,
            hosts: BTreeMap::new(),
            nic_generations: BTreeMap::new(),
            router_generations: BTreeMap::new(),
            left: BTreeMap::new(),
            planned: BTreeMap::new(),
            troubled: BTreeMap::new(),
            volume_troubles: BTreeMap::new(),
            started: now,
            now,
        }
    }

    /// Plans the hosts that changed. The answer has to be saved before the hosts get it.
    pub(crate) fn replan(&mut self, electorate: Electorate) -> Vec<Issued> {
        self.rollout.set_electorate(&self.intent, electorate);
        let issued = self.rollout.poll(&self.intent);
        let hosts: Vec<HostId> = self.intent.hosts().map(|host| host.id).collect();
        for host in hosts {
            let Some(config) = self.rollout.config(host) else {
                continue;
            };
            let old = self.planned.get(&host);
            if !old.is_some_and(|old| Arc::ptr_eq(old, config)) {
                note_ports(&mut self.nic_generations, old.map(Arc::as_ref), config);
                note_routers(&mut self.router_generations, old.map(Arc::as_ref), config);
                let newer = old.is_none_or(|old| old.generation < config.generation);
                if newer && !self.left.is_empty() {
                    // A NIC that comes back and leaves again leaves anew.
                    for port in config.stacks.iter().flat_map(|stack| &stack.ports) {
                        self.left.remove(&(host, port.nic));
                    }
                }
                self.planned.insert(host, Arc::clone(config));
            }
        }
        issued
    }

    /// Forgets what is known of hosts that were removed.
    pub(crate) fn forget_removed(&mut self) {
        let intent = &self.intent;
        self.hosts.retain(|host, _| intent.host(*host).is_some());
        self.planned.retain(|host, config| {
            let there = intent.host(*host).is_some();
            if !there {
                for port in config.stacks.iter().flat_map(|stack| &stack.ports) {
                    self.nic_generations.remove(&(*host, port.nic));
                }
                for router in &config.routers {
                    self.router_generations.remove(&(*host, router.id));
                }
            }
            there
        });
    }

    /// The newest configuration of a host.
    pub(crate) fn config(&self, host: HostId) -> Option<&Arc<HostConfig>> {
        self.rollout.config(host)
    }

    pub(crate) fn wanted(&self, host: HostId) -> Generation {
        self.config(host)
            .map_or(Generation(0), |config| config.generation)
    }

    pub(crate) fn liveness(&self, host: HostId) -> Liveness {
        liveness(self.hosts.get(&host).map(|known| &known.status), self.now)
    }

    /// Hosts that stopped checking in.
    pub(crate) fn down_hosts(&self) -> BTreeSet<HostId> {
        let down = |host: &HostId| self.liveness(*host) == Liveness::Down;
        self.intent
            .hosts()
            .map(|host| host.id)
            .filter(down)
            .collect()
    }

    /// Disks that hosts told of.
    pub(crate) fn disks(&self) -> BTreeMap<HostId, DiskRoom> {
        let disks = self.hosts.iter().filter_map(|(host, known)| {
            let (id, bytes) = api::disk_room(known.storage.as_ref()?)?;
            Some((*host, DiskRoom { id, bytes }))
        });
        disks.collect()
    }

    /// An object as clients see it.
    pub(crate) fn view(&self, object: &Object) -> v1::change::Object {
        use v1::change::Object as View;
        match object {
            Object::Account(account) => View::Account(account.into()),
            Object::Vpc(vpc) => View::Vpc((vpc, self.path(object)).into()),
            Object::Subnet(subnet) => View::Subnet((subnet, self.path(object)).into()),
            Object::Nic(nic) => View::Nic(self.nic_view(nic, None)),
            Object::Host(host) => View::Host(api::host(host, None)),
            Object::Router(router) => View::Router(self.router_view(router, None)),
            Object::External(network) => View::External(api::external(network)),
            Object::PublicIp(public) => View::PublicIp(self.public_ip_view(public)),
            Object::Volume(volume) => View::Volume(self.volume_view(volume, false)),
        }
    }

    /// As [`State::view`], and how it is.
    pub(crate) fn view_with_status(&self, object: &Object) -> v1::change::Object {
        use v1::change::Object as View;
        match object {
            Object::Nic(nic) => View::Nic(self.nic_view(nic, Some(self.nic_status(nic)))),
            Object::Host(host) => View::Host(api::host(host, Some(self.host_status(host)))),
            Object::Router(router) => {
                View::Router(self.router_view(router, Some(self.router_status(router))))
            }
            Object::Volume(volume) => View::Volume(self.volume_view(volume, true)),
            Object::Account(_)
            | Object::Vpc(_)
            | Object::Subnet(_)
            | Object::External(_)
            | Object::PublicIp(_) => self.view(object),
        }
    }

    pub(crate) fn change_view(&self, change: &Change) -> v1::Change {
        v1::Change {
            revision: change.revision.0,
            at_unix_ms: change.at.0,
            deleted: change.deleted,
            object: Some(self.view(&change.object)),
        }
    }

    /// A path, also of an object that is gone as long as its parents are there.
    pub(crate) fn path(&self, object: &Object) -> String {
        let below = |parent, name| format!("{}/{name}", self.intent.path(parent));
        match object {
            Object::Account(account) => account.name.to_string(),
            Object::Host(host) => host.name.to_string(),
            Object::Vpc(vpc) => below(ObjectId::Account(vpc.account), &vpc.name),
            Object::Subnet(subnet) => below(ObjectId::Vpc(subnet.vpc), &subnet.name),
            Object::Nic(nic) => below(ObjectId::Subnet(nic.subnet), &nic.name),
            Object::Router(router) => below(ObjectId::Vpc(router.vpc), &router.name),
            Object::External(network) => network.name.to_string(),
            Object::PublicIp(public) => below(ObjectId::Account(public.account), &public.name),
            Object::Volume(volume) => below(ObjectId::Account(volume.account), &volume.name),
        }
    }

    fn nic_view(&self, nic: &Nic, status: Option<v1::NicStatus>) -> v1::Nic {
        let name_of = |host| self.intent.path(ObjectId::Host(host));
        let path = format!(
            "{}/{}",
            self.intent.path(ObjectId::Subnet(nic.subnet)),
            nic.name
        );
        api::nic(nic, path, name_of, status)
    }

    fn nic_status(&self, nic: &Nic) -> v1::NicStatus {
        let host = nic.placement.host;
        let generation = self.nic_generations.get(&(host, nic.id)).copied();
        let conditions: Vec<&Condition> = self.conditions_of(nic, host).collect();
        self.made_status(host, generation, &conditions)
    }

    /// Whether a host made true what its configuration `generation` was the first to say.
    pub(crate) fn made_status(
        &self,
        host: HostId,
        generation: Option<Generation>,
        conditions: &[&Condition],
    ) -> v1::NicStatus {
        use v1::nic_status::State as Wire;
        let known = self.hosts.get(&host);
        let applied = known.map_or(Generation(0), |known| known.status.applied);
        let state = match generation {
            None => Wire::Pending,
            Some(_) if self.liveness(host) == Liveness::Down => Wire::HostDown,
            Some(_) if !conditions.is_empty() => Wire::Failed,
            Some(generation) if applied >= generation => Wire::Applied,
            Some(_) => Wire::Pending,
        };
        v1::NicStatus {
            state: state.into(),
            generation: generation.unwrap_or_default().0,
            applied_generation: applied.0,
            conditions: conditions.iter().map(|c| (*c).into()).collect(),
        }
    }

    /// What a host says is wrong with a NIC, or with what it stands on.
    fn conditions_of<'a>(
        &'a self,
        nic: &'a Nic,
        host: HostId,
    ) -> impl Iterator<Item = &'a Condition> {
        let known = self.hosts.get(&host);
        let conditions = known.into_iter().flat_map(|k| &k.status.conditions);
        conditions.filter(|condition| match condition.object {
            ObjectId::Nic(id) => id == nic.id,
            ObjectId::Subnet(id) => id == nic.subnet,
            ObjectId::Vpc(id) => {
                self.intent.subnet(nic.subnet).map(|subnet| subnet.vpc) == Some(id)
            }
            _ => false,
        })
    }

    /// What moves come to next. Every host has been planned.
    pub(crate) fn move_steps(&mut self) -> Vec<(Nic, MoveStep)> {
        let moving: Vec<Nic> = self.intent.moving_nics().cloned().collect();
        let retiring = |(host, nic): &(HostId, NicId)| {
            moving
                .iter()
                .any(|m| m.id == *nic && m.moving.as_ref().is_some_and(|m| m.other.host == *host))
        };
        self.left.retain(|key, _| retiring(key));
        let mut steps = Vec::new();
        for nic in moving {
            let Some(other) = nic.moving.as_ref().map(|moving| moving.other.host) else {
                continue;
            };
            let here = self.seat(&nic, nic.placement.host);
            let other = self.intent.host(other).map(|host| host.id);
            let other = other.map(|host| self.seat(&nic, host));
            if let Some(step) = next_step(&nic, &here, other.as_ref(), self.now) {
                steps.push((nic, step));
            }
        }
        steps
    }

    /// How moves of routers end. Every host has been planned.
    pub(crate) fn router_steps(&self) -> Vec<(Router, RouterStep)> {
        let moving = self.intent.moving_routers();
        let step = |router: &Router| {
            let to = self.intent.host(router.goes_to()?);
            let seat = to.map(|host| self.router_seat(router, host.id));
            let step = next_router_step(
                router,
                self.liveness(router.placement.host),
                seat.as_ref(),
                self.now,
            )?;
            Some((router.clone(), step))
        };
        moving.filter_map(step).collect()
    }

    fn router_seat(&self, router: &Router, host: HostId) -> Seat {
        let goal = self.router_generations.get(&(host, router.id));
        let status = self.hosts.get(&host).map(|known| &known.status);
        let mut conditions = self.router_conditions(router, host);
        Seat {
            liveness: self.liveness(host),
            made: goal
                .zip(status)
                .is_some_and(|(goal, status)| status.applied >= *goal),
            trouble: conditions.next().map(|c| c.message.clone()),
            lost: false,
        }
    }

    fn seat(&mut self, nic: &Nic, host: HostId) -> Seat {
        let wanted = self.wanted(host);
        let goal = if nic.seats().any(|seat| seat.host == host) {
            self.nic_generations.get(&(host, nic.id)).copied()
        } else {
            // Configurations that come later do not have it either.
            let left = self.left.entry((host, nic.id)).or_insert(wanted);
            (*left > Generation(0)).then_some(*left)
        };
        let status = self.hosts.get(&host).map(|known| &known.status);
        Seat {
            liveness: self.liveness(host),
            made: goal
                .zip(status)
                .is_some_and(|(goal, status)| status.applied >= goal),
            trouble: self
                .conditions_of(nic, host)
                .next()
                .map(|c| c.message.clone()),
            lost: status.is_some_and(|status| status.elsewhere.contains(&nic.id)),
        }
    }

    /// That a host can take this NIC now, as far as its reports say.
    pub(crate) fn check_target(&self, nic: &Nic) -> Result<(), Refusal> {
        let Some(to) = nic
            .moving
            .as_ref()
            .filter(|m| m.phase == MovePhase::Provision)
        else {
            return Ok(());
        };
        let host = to.other.host;
        let unable = |reason: &str| {
            Err(Refusal::HostUnable {
                nic: self.intent.path(ObjectId::Nic(nic.id)),
                host: self.intent.path(ObjectId::Host(host)),
                reason: reason.to_owned(),
            })
        };
        match self.liveness(host) {
            Liveness::Up => {}
            Liveness::Down => return unable("it is down: start its agent, or choose another"),
            Liveness::Joining => {
                return unable("it never checked in: start its agent, or choose another");
            }
        }
        let can = |capability| {
            let known = self.hosts.get(&host);
            known.is_some_and(|known| known.status.capabilities.contains(&capability))
        };
        let subnet = self.intent.subnet(nic.subnet);
        let vpc = subnet.and_then(|subnet| self.intent.vpc(subnet.vpc));
        let bundle = vpc.is_some_and(|vpc| vpc.encoding == Encoding::VlanAwareBundle);
        let known = self.hosts.get(&host);
        let taps = known.is_some_and(|known| known.status.transport == Transport::Tap);
        let tunnels = can(if taps {
            Capability::Tap
        } else {
            Capability::Vxlan
        });
        if !tunnels || !can(Capability::NftBridge) {
            return unable(
                "its kernel lacks what its tunnels are made of (VXLAN, or TAP devices where its \
                 transport is tap), or nftables' bridge family: choose another",
            );
        }
        if to.other.attachment == Attachment::Tap && !can(Capability::Tap) {
            return unable("its kernel has no TAP devices: choose another, or another attachment");
        }
        let can_tag = taps || can(Capability::VlanFiltering) || can(Capability::ClsBpf);
        if bundle && !can_tag {
            return unable(
                "the VPC is a vlan-aware bundle, and its kernel has neither bridge VLAN filtering \
                 nor BPF on interfaces, nor is its transport tap: choose another",
            );
        }
        Ok(())
    }

    /// That a host can have this EVPN client, as far as its reports say.
    pub(crate) fn check_client(&self, host: &Host) -> Result<(), Refusal> {
        match self.has_frr_beside_taps(host) {
            false => Ok(()),
            true => Err(Refusal::FrrTap {
                host: host.name.to_string(),
            }),
        }
    }

    fn has_frr_beside_taps(&self, host: &Host) -> bool {
        let transport = self.hosts.get(&host.id).map(|known| known.status.transport);
        (host.speaker, transport) == (SpeakerKind::Frr, Some(Transport::Tap))
    }

    pub(crate) fn host_status(&self, host: &Host) -> v1::HostStatus {
        let known = self.hosts.get(&host.id).cloned().unwrap_or_default();
        let mut status = v1::HostStatus::from(&known.status);
        status.liveness = v1::Liveness::from(self.liveness(host.id)).into();
        status.wanted_generation = self.wanted(host.id).0;
        status.underlay_mtu = known.underlay_mtu;
        let needed = u32::from(self.intent.cluster().underlay_mtu.get());
        let mut is_wrong = |message: String| {
            status.conditions.push(v1::Condition {
                kind: v1::Kind::Host.into(),
                object_id: host.id.to_string(),
                message,
                since_unix_ms: 0,
                attempts: 0,
            });
        };
        let name = &host.name;
        if known.underlay_mtu != 0 && known.underlay_mtu < needed {
            is_wrong(format!(
                "the underlay interface of host {name} carries {} bytes and the cluster's underlay MTU is {needed}: large packets will be lost; raise it on the interface and on the switches",
                known.underlay_mtu
            ));
        }
        if self.has_frr_beside_taps(host) {
            is_wrong(format!(
                "host {name} announces none of its NICs: its transport is tap, and FRR, its EVPN client, knows of no tunnels but the kernel's; set transport = \"kernel\" in its agent's settings, or have the built-in speaker there (vpc host set {name} --speaker builtin)"
            ));
        }
        status
    }

    pub(crate) fn liveness_view(&self, host: &Host) -> v1::HostLiveness {
        let known = self.hosts.get(&host.id);
        v1::HostLiveness {
            host_id: host.id.to_string(),
            host_name: host.name.to_string(),
            liveness: v1::Liveness::from(self.liveness(host.id)).into(),
            last_checkin_unix_ms: known.map_or(0, |known| known.status.last_checkin.0),
        }
    }
}

/// Stacks of a configuration by their VPC.
fn stacks(config: &HostConfig) -> BTreeMap<VpcId, &Arc<Stack>> {
    let stacks = config.stacks.iter();
    stacks.map(|stack| (stack.vpc, stack)).collect()
}

/// Gives the new generation to every NIC whose port or segment differs, and forgets those gone. Stacks that
/// both configurations share are not looked into.
fn note_ports(
    generations: &mut BTreeMap<(HostId, NicId), Generation>,
    old: Option<&HostConfig>,
    new: &HostConfig,
) {
    fn ports<'a>(
        stacks: impl Iterator<Item = &'a Arc<Stack>>,
    ) -> BTreeMap<NicId, (&'a Port, Option<&'a Segment>)> {
        let ports = |stack: &'a Arc<Stack>| {
            let segments: BTreeMap<_, _> = stack.segments.iter().map(|s| (s.subnet, s)).collect();
            let ports = stack.ports.iter();
            ports.map(move |port| (port.nic, (port, segments.get(&port.subnet).copied())))
        };
        stacks.flat_map(ports).collect()
    }
    let (mut before, mut after) = (old.map(stacks).unwrap_or_default(), stacks(new));
    before.retain(|vpc, stack| match after.get(vpc) {
        Some(other) if Arc::ptr_eq(stack, other) => after.remove(vpc).is_none(),
        _ => true,
    });
    let (before, after) = (ports(before.into_values()), ports(after.into_values()));
    for nic in before.keys().filter(|nic| !after.contains_key(nic)) {
        generations.remove(&(new.host, *nic));
    }
    for (nic, port) in after {
        if before.get(&nic) != Some(&port) {
            generations.insert((new.host, nic), new.generation);
        }
    }
}

/// As [`note_ports`], for routers and the segments that they have legs in.
fn note_routers(
    generations: &mut BTreeMap<(HostId, RouterId), Generation>,
    old: Option<&HostConfig>,
    new: &HostConfig,
) {
    let (before, after) = (old.map(stacks).unwrap_or_default(), stacks(new));
    let old = old.iter().flat_map(|config| &config.routers);
    let mut gone: BTreeMap<RouterId, &Arc<RouterConfig>> =
        old.map(|router| (router.id, router)).collect();
    for router in &new.routers {
        let held = gone.remove(&router.id);
        let (then, now) = (before.get(&router.vpc), after.get(&router.vpc));
        let segments = |stack: Option<&&Arc<Stack>>| -> Vec<Option<Segment>> {
            let of = |leg: &model::RouterLeg| stack?.segment(leg.subnet).cloned();
            router.legs.iter().map(of).collect()
        };
        let same = held == Some(router) && (then == now || segments(then) == segments(now));
        if !same {
            generations.insert((new.host, router.id), new.generation);
        }
    }
    for router in gone.into_keys() {
        generations.remove(&(new.host, router));
    }
}
