//! The whole desired state in memory, with the indexes that make questions about it cheap.

use crate::pool::Pool;
use crate::{Command, Context, Decision, Delta, Hold, Refusal, RequestId, RequestRecord, Resource};
use ipnet::IpNet;
use model::{
    Account, AccountId, Attachment, Cluster, ExternalNetwork, ExternalNetworkId, Host, HostId,
    IfName, Kind, MacAddr, Name, NetnsName, Nic, NicId, Object, ObjectId, PublicIp, PublicIpId,
    PublicTarget, Revision, Router, RouterId, Standby, Subnet, SubnetId, UnixMillis, Volume,
    VolumeId, Vpc, VpcId,
};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Everything users asked for, and the memory that keeps it consistent: what is handed out, what
/// is on hold, which requests were answered.
///
/// Invariants: every parent exists; names are unique among siblings; no address, MAC or VLAN is
/// owned twice in a VPC and no VNI or underlay address twice in the cluster, no address or outer MAC
/// twice in an external network; a subnet has one router at most; nothing on hold is owned;
/// `revision` is that of the last change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Intent {
    cluster: Cluster,
    revision: Revision,
    accounts: BTreeMap<AccountId, Account>,
    vpcs: BTreeMap<VpcId, Vpc>,
    subnets: BTreeMap<SubnetId, Subnet>,
    nics: BTreeMap<NicId, Nic>,
    hosts: BTreeMap<HostId, Host>,
    routers: BTreeMap<RouterId, Router>,
    externals: BTreeMap<ExternalNetworkId, ExternalNetwork>,
    public_ips: BTreeMap<PublicIpId, PublicIp>,
    volumes: BTreeMap<VolumeId, Volume>,
    names: BTreeMap<(Scope, Name), ObjectId>,
    nics_by_host: BTreeSet<(HostId, NicId)>,
    routers_by_host: BTreeSet<(HostId, RouterId)>,
    /// How many ports and legs of a subnet a host has, if it has any.
    seats: BTreeMap<(SubnetId, HostId), usize>,
    router_of: BTreeMap<SubnetId, RouterId>,
    /// Routers with an uplink in a network, and public addresses from it.
    users_of_external: BTreeSet<(ExternalNetworkId, ObjectId)>,
    public_by_target: BTreeSet<(PublicTarget, PublicIpId)>,
    moving: BTreeSet<NicId>,
    devices: BTreeMap<(HostId, Device), NicId>,
    underlays: BTreeMap<IpAddr, HostId>,
    /// Prefixes of subnets by their first address. They do not overlap, so the last one that
    /// begins before an address is the only one that can hold it.
    prefixes: BTreeMap<(VpcId, IpAddr), (IpNet, SubnetId)>,
    pools: BTreeMap<PoolKey, Pool>,
    hold_ends: BTreeMap<(UnixMillis, Resource), Revision>,
    requests: BTreeMap<RequestId, RequestRecord>,
    request_ends: BTreeSet<(UnixMillis, RequestId)>,
}

/// What the store holds of an intent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rows {
    /// The cluster's settings.
    pub cluster: Cluster,
    /// Of the last change.
    pub revision: Revision,
    /// All objects, in any order.
    pub objects: Vec<Object>,
    /// All holds.
    pub holds: Vec<Hold>,
    /// All requests remembered.
    pub requests: Vec<RequestRecord>,
}

/// The store's rows contradict each other: it was damaged or edited by hand.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BrokenIntent {
    /// A parent is missing.
    #[error("{object} belongs to {parent}, which does not exist")]
    Orphan {
        /// The child.
        object: ObjectId,
        /// The parent.
        parent: ObjectId,
    },
    /// Two objects have one thing.
    #[error("{object} and {other} both have {what}")]
    Shared {
        /// One.
        object: ObjectId,
        /// The other.
        other: ObjectId,
        /// What both have.
        what: String,
    },
    /// History has a hole.
    #[error("after revision {held} came revision {offered}")]
    Gap {
        /// The last one known.
        held: Revision,
        /// The next one offered.
        offered: Revision,
    },
}

/// Where names are unique.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Scope {
    Accounts,
    Hosts,
    Account(AccountId),
    Vpc(VpcId),
    Subnet(SubnetId),
    Externals,
    Routers(VpcId),
    PublicIps(AccountId),
    Volumes(AccountId),
}

/// What a host can give to one NIC only.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Device {
    Netns(NetnsName, IfName),
    Existing(IfName),
}

/// Where numbers are unique.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum PoolKey {
    V4(VpcId),
    V6(VpcId),
    Mac(VpcId),
    Vlan(VpcId),
    Vni,
    Public(ExternalNetworkId),
    OuterMac(ExternalNetworkId),
}

impl Intent {
    /// A cluster with nothing in it.
    pub fn new(cluster: Cluster) -> Self {
        Self {
            cluster,
            revision: Revision(0),
            accounts: BTreeMap::new(),
            vpcs: BTreeMap::new(),
            subnets: BTreeMap::new(),
            nics: BTreeMap::new(),
            hosts: BTreeMap::new(),
            routers: BTreeMap::new(),
            externals: BTreeMap::new(),
            public_ips: BTreeMap::new(),
            volumes: BTreeMap::new(),
            names: BTreeMap::new(),
            nics_by_host: BTreeSet::new(),
            routers_by_host: BTreeSet::new(),
            seats: BTreeMap::new(),
            router_of: BTreeMap::new(),
            users_of_external: BTreeSet::new(),
            public_by_target: BTreeSet::new(),
            moving: BTreeSet::new(),
            devices: BTreeMap::new(),
            underlays: BTreeMap::new(),
            prefixes: BTreeMap::new(),
            pools: BTreeMap::new(),
            hold_ends: BTreeMap::new(),
            requests: BTreeMap::new(),
            request_ends: BTreeSet::new(),
        }
    }

    /// From what the store holds.
    pub fn from_rows(rows: Rows) -> Result<Self, BrokenIntent> {
        let mut intent = Self::new(rows.cluster);
        let mut objects = rows.objects;
        // Parents before children.
        objects.sort_by_key(|object| {
            Kind::ALL
                .iter()
                .position(|kind| *kind == object.id().kind())
        });
        for object in objects {
            intent.put(object)?;
        }
        for hold in &rows.holds {
            intent.hold(hold);
        }
        for request in rows.requests {
            intent.remember(request);
        }
        intent.revision = rows.revision;
        Ok(intent)
    }

    /// The rows that it would be loaded from.
    pub fn to_rows(&self) -> Rows {
        Rows {
            cluster: self.cluster.clone(),
            revision: self.revision,
            objects: Kind::ALL
                .iter()
                .flat_map(|kind| self.objects_after(*kind, None))
                .collect(),
            holds: self.holds(),
            requests: self.requests.values().cloned().collect(),
        }
    }

    /// What `command` comes to; changes nothing. Commit the decision, then [`Intent::apply`] it.
    pub fn decide(&self, command: Command, context: &Context) -> Result<Decision, Refusal> {
        crate::decide::decide(self, command, context)
    }

    /// Makes a committed decision part of the intent.
    ///
    /// # Panics
    /// If it was decided on another revision: the store commits on the expected one only.
    pub fn apply(&mut self, decision: &Decision) {
        if decision.is_noop() {
            return;
        }
        assert_eq!(
            decision.base, self.revision,
            "a decision is applied to what it was decided on"
        );
        self.apply_delta(&decision.delta)
            .expect("decide found the command consistent with this intent");
    }

    /// Catches up with what other servers committed.
    ///
    /// After an error the intent is half changed: load it again.
    pub fn apply_delta(&mut self, delta: &Delta) -> Result<(), BrokenIntent> {
        // What ended is forgotten first: a change may hand it out again.
        self.forget(delta.at);
        for change in &delta.changes {
            let (held, offered) = (self.revision, change.revision);
            if offered.0 != held.0 + 1 {
                return Err(BrokenIntent::Gap { held, offered });
            }
            if change.deleted {
                self.remove(&change.object);
            } else {
                self.put(change.object.clone())?;
            }
            self.revision = offered;
        }
        for hold in &delta.holds {
            self.hold(hold);
        }
        for request in &delta.requests {
            self.remember(request.clone());
        }
        Ok(())
    }

    /// The cluster's settings.
    pub const fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// The revision of the last change.
    pub const fn revision(&self) -> Revision {
        self.revision
    }

    /// An account.
    pub fn account(&self, id: AccountId) -> Option<&Account> {
        self.accounts.get(&id)
    }

    /// A VPC.
    pub fn vpc(&self, id: VpcId) -> Option<&Vpc> {
        self.vpcs.get(&id)
    }

    /// A subnet.
    pub fn subnet(&self, id: SubnetId) -> Option<&Subnet> {
        self.subnets.get(&id)
    }

    /// A NIC.
    pub fn nic(&self, id: NicId) -> Option<&Nic> {
        self.nics.get(&id)
    }

    /// A host.
    pub fn host(&self, id: HostId) -> Option<&Host> {
        self.hosts.get(&id)
    }

    /// A router.
    pub fn router(&self, id: RouterId) -> Option<&Router> {
        self.routers.get(&id)
    }

    /// An external network.
    pub fn external(&self, id: ExternalNetworkId) -> Option<&ExternalNetwork> {
        self.externals.get(&id)
    }

    /// A public address.
    pub fn public_ip(&self, id: PublicIpId) -> Option<&PublicIp> {
        self.public_ips.get(&id)
    }

    /// A volume.
    pub fn volume(&self, id: VolumeId) -> Option<&Volume> {
        self.volumes.get(&id)
    }

    /// All volumes, in order of id.
    pub fn volumes(&self) -> impl Iterator<Item = &Volume> {
        self.volumes.values()
    }

    /// Any object.
    pub fn get(&self, id: ObjectId) -> Option<Object> {
        match id {
            ObjectId::Account(id) => self.account(id).cloned().map(Object::Account),
            ObjectId::Vpc(id) => self.vpc(id).cloned().map(Object::Vpc),
            ObjectId::Subnet(id) => self.subnet(id).cloned().map(Object::Subnet),
            ObjectId::Nic(id) => self.nic(id).cloned().map(Object::Nic),
            ObjectId::Host(id) => self.host(id).cloned().map(Object::Host),
            ObjectId::Router(id) => self.router(id).cloned().map(Object::Router),
            ObjectId::External(id) => self.external(id).cloned().map(Object::External),
            ObjectId::PublicIp(id) => self.public_ip(id).cloned().map(Object::PublicIp),
            ObjectId::Volume(id) => self.volume(id).cloned().map(Object::Volume),
        }
    }

    /// Any object, or the refusal that names it.
    pub fn require(&self, id: ObjectId) -> Result<Object, Refusal> {
        self.get(id).ok_or_else(|| missing(id))
    }

    /// All hosts, in order of id.
    pub fn hosts(&self) -> impl Iterator<Item = &Host> {
        self.hosts.values()
    }

    /// NICs on their way from one host to another, in order of id.
    pub fn moving_nics(&self) -> impl Iterator<Item = &Nic> {
        self.moving.iter().filter_map(|nic| self.nics.get(nic))
    }

    /// All NICs with a port on a host, in order of id: those that come or go included.
    pub fn nics_of_host(&self, host: HostId) -> impl Iterator<Item = &Nic> {
        let (first, last) = (NicId::from_random(0), NicId::from_random(u64::MAX));
        self.nics_by_host
            .range((host, first)..=(host, last))
            .filter_map(|(_, nic)| self.nics.get(nic))
    }

    /// Hosts with a port or a router's leg in the subnet.
    pub fn hosts_of_subnet(&self, subnet: SubnetId) -> impl Iterator<Item = HostId> + use<'_> {
        let (first, last) = (HostId::from_random(0), HostId::from_random(u64::MAX));
        self.seats
            .range((subnet, first)..=(subnet, last))
            .map(|((_, host), _)| *host)
    }

    /// The same by the addresses of their VTEPs.
    pub fn vteps_of_subnet(&self, subnet: SubnetId) -> BTreeSet<IpAddr> {
        self.hosts_of_subnet(subnet)
            .filter_map(|host| Some(self.hosts.get(&host)?.underlay))
            .collect()
    }

    /// Hosts with a NIC or a router of the VPC.
    pub fn hosts_of_vpc(&self, vpc: VpcId) -> BTreeSet<HostId> {
        self.subnets_of(vpc)
            .flat_map(|subnet| self.hosts_of_subnet(subnet.id))
            .chain(self.routers_of_vpc(vpc).flat_map(Router::hosts))
            .collect()
    }

    /// A subnet's NICs, in order of name.
    pub fn nics_of_subnet(&self, subnet: SubnetId) -> impl Iterator<Item = &Nic> {
        self.children(Scope::Subnet(subnet))
            .filter_map(|id| match id {
                ObjectId::Nic(nic) => self.nics.get(&nic),
                _ => None,
            })
    }

    /// All routers on a host, in order of id.
    pub fn routers_of_host(&self, host: HostId) -> impl Iterator<Item = &Router> {
        let (first, last) = (RouterId::from_random(0), RouterId::from_random(u64::MAX));
        self.routers_by_host
            .range((host, first)..=(host, last))
            .filter_map(|(_, router)| self.routers.get(router))
    }

    /// Routers that run elsewhere and that a host makes ready, in order of id.
    pub fn routers_prepared_on(&self, host: HostId) -> impl Iterator<Item = &Router> {
        let all = self.routers.values();
        all.filter(move |router| router.goes_to() == Some(host))
    }

    /// Routers on their way to another host, in order of id.
    pub fn moving_routers(&self) -> impl Iterator<Item = &Router> {
        let all = self.routers.values();
        all.filter(|router| router.goes_to().is_some())
    }

    /// All routers, in order of id.
    pub fn all_routers(&self) -> impl Iterator<Item = &Router> {
        self.routers.values()
    }

    /// Routers of other hosts that this one stands by for, in order of id.
    pub fn standby_for(&self, host: HostId) -> impl Iterator<Item = &Router> {
        let all = self.routers.values();
        all.filter(move |router| router.standby == Standby::On(host))
    }

    /// A VPC's routers, in order of name.
    pub fn routers_of_vpc(&self, vpc: VpcId) -> impl Iterator<Item = &Router> {
        self.children(Scope::Routers(vpc))
            .filter_map(|id| match id {
                ObjectId::Router(id) => self.routers.get(&id),
                _ => None,
            })
    }

    /// The router with a leg in the subnet.
    pub fn router_of_subnet(&self, subnet: SubnetId) -> Option<&Router> {
        self.routers.get(self.router_of.get(&subnet)?)
    }

    /// Routers with an uplink in the network, and public addresses from it.
    pub fn users_of_external(
        &self,
        network: ExternalNetworkId,
    ) -> impl Iterator<Item = ObjectId> + use<'_> {
        let first = ObjectId::Account(AccountId::from_random(0));
        self.users_of_external
            .range((network, first)..)
            .take_while(move |(other, _)| *other == network)
            .map(|(_, user)| *user)
    }

    /// Routers with an uplink in the network.
    pub fn routers_of_external(
        &self,
        network: ExternalNetworkId,
    ) -> impl Iterator<Item = &Router> + use<'_> {
        self.users_of_external(network).filter_map(|id| match id {
            ObjectId::Router(id) => self.routers.get(&id),
            _ => None,
        })
    }

    /// The public addresses that stand for something, in order of id.
    pub fn public_ips_of(&self, target: PublicTarget) -> impl Iterator<Item = &PublicIp> {
        let first = PublicIpId::from_random(0);
        let last = PublicIpId::from_random(u64::MAX);
        self.public_by_target
            .range((target, first)..=(target, last))
            .filter_map(|(_, public)| self.public_ips.get(public))
    }

    /// The external networks, in order of id.
    pub fn externals(&self) -> impl Iterator<Item = &ExternalNetwork> {
        self.externals.values()
    }

    pub(crate) fn objects_after(
        &self,
        kind: Kind,
        after: Option<ObjectId>,
    ) -> Box<dyn Iterator<Item = Object> + '_> {
        macro_rules! rows {
            ($map:expr, $kind:ident) => {{
                let after = match after {
                    Some(ObjectId::$kind(id)) => std::ops::Bound::Excluded(id),
                    _ => std::ops::Bound::Unbounded,
                };
                Box::new(
                    $map.range((after, std::ops::Bound::Unbounded))
                        .map(|(_, object)| Object::$kind(object.clone())),
                )
            }};
        }
        match kind {
            Kind::Account => rows!(self.accounts, Account),
            Kind::Vpc => rows!(self.vpcs, Vpc),
            Kind::Subnet => rows!(self.subnets, Subnet),
            Kind::Nic => rows!(self.nics, Nic),
            Kind::Host => rows!(self.hosts, Host),
            Kind::Router => rows!(self.routers, Router),
            Kind::External => rows!(self.externals, External),
            Kind::PublicIp => rows!(self.public_ips, PublicIp),
            Kind::Volume => rows!(self.volumes, Volume),
        }
    }

    pub(crate) fn named(&self, scope: Scope, name: &Name) -> Option<ObjectId> {
        self.names.get(&(scope, name.clone())).copied()
    }

    /// In order of name.
    pub(crate) fn children(&self, scope: Scope) -> impl Iterator<Item = ObjectId> {
        // Names start with 0-9 or a-z, so none sorts before this one.
        let lowest = Name::new("0").expect("0 is a name");
        self.names
            .range((scope, lowest)..)
            .take_while(move |((other, _), _)| *other == scope)
            .map(|(_, id)| *id)
    }

    pub(crate) fn subnets_of(&self, vpc: VpcId) -> impl Iterator<Item = &Subnet> {
        self.children(Scope::Vpc(vpc)).filter_map(|id| match id {
            ObjectId::Subnet(id) => self.subnets.get(&id),
            _ => None,
        })
    }

    pub(crate) fn device_owner(&self, host: HostId, device: Device) -> Option<NicId> {
        self.devices.get(&(host, device)).copied()
    }

    pub(crate) fn underlay_owner(&self, address: IpAddr) -> Option<HostId> {
        self.underlays.get(&address).copied()
    }

    /// A subnet of `vpc` that shares addresses with `cidr`.
    pub(crate) fn overlapping(&self, vpc: VpcId, cidr: IpNet) -> Option<(IpNet, SubnetId)> {
        let ((owner, _), (other, subnet)) = self
            .prefixes
            .range(..=(vpc, cidr.broadcast()))
            .next_back()?;
        // Begins at or before the last address of `cidr`: they overlap unless it ends too early.
        let same_family = other.addr().is_ipv4() == cidr.addr().is_ipv4();
        (*owner == vpc && same_family && other.broadcast() >= cidr.network())
            .then_some((*other, *subnet))
    }

    pub(crate) fn all_subnets(&self) -> impl Iterator<Item = &Subnet> {
        self.subnets.values()
    }

    pub(crate) fn pool(&self, key: PoolKey) -> Option<&Pool> {
        self.pools.get(&key)
    }

    pub(crate) fn request(&self, id: &RequestId) -> Option<&RequestRecord> {
        self.requests.get(id)
    }

    /// All holds, in order of their end.
    pub(crate) fn holds(&self) -> Vec<Hold> {
        self.hold_ends
            .iter()
            .map(|((until, resource), revision)| Hold {
                resource: *resource,
                until: *until,
                revision: *revision,
            })
            .collect()
    }

    fn put(&mut self, object: Object) -> Result<(), BrokenIntent> {
        if let Some(old) = self.get(object.id()) {
            self.remove(&old);
        }
        let id = object.id();
        let parents = parents_of(&object);
        if let Some(parent) = parents
            .into_iter()
            .find(|parent| self.get(*parent).is_none())
        {
            return Err(BrokenIntent::Orphan { object: id, parent });
        }
        let shared = |other: ObjectId, what: String| BrokenIntent::Shared {
            object: id,
            other,
            what,
        };
        let name = object.name().clone();
        if let Some(other) = self.names.insert((scope_of(&object), name.clone()), id) {
            return Err(shared(other, format!("the name {name}")));
        }
        for resource in self.resources_of(&object) {
            let (key, number) = PoolKey::of(resource);
            self.pools
                .entry(key)
                .or_default()
                .own(number, id)
                .map_err(|other| shared(other, resource.to_string()))?;
        }
        match object {
            Object::Account(o) => {
                self.accounts.insert(o.id, o);
            }
            Object::Vpc(o) => {
                self.vpcs.insert(o.id, o);
            }
            Object::Subnet(o) => {
                for prefix in prefixes_of(&o) {
                    if let Some((_, other)) = self.overlapping(o.vpc, prefix) {
                        return Err(shared(
                            ObjectId::Subnet(other),
                            format!("addresses of {prefix}"),
                        ));
                    }
                    self.prefixes
                        .insert((o.vpc, prefix.network()), (prefix, o.id));
                }
                self.subnets.insert(o.id, o);
            }
            Object::Nic(o) => {
                for seat in o.seats() {
                    self.sit(o.subnet, seat.host);
                    self.nics_by_host.insert((seat.host, o.id));
                    if let Some(device) = Device::of(&seat.attachment)
                        && let Some(other) = self.devices.insert((seat.host, device), o.id)
                    {
                        let what = seat.attachment.to_string();
                        return Err(shared(ObjectId::Nic(other), what));
                    }
                }
                if o.moving.is_some() {
                    self.moving.insert(o.id);
                }
                self.nics.insert(o.id, o);
            }
            Object::Host(o) => {
                if let Some(other) = self.underlays.insert(o.underlay, o.id) {
                    return Err(shared(
                        ObjectId::Host(other),
                        format!("underlay address {}", o.underlay),
                    ));
                }
                self.hosts.insert(o.id, o);
            }
            Object::Router(o) => {
                for leg in &o.legs {
                    if let Some(other) = self.router_of.insert(leg.subnet, o.id) {
                        let what = format!("the gateway of subnet {}", leg.subnet);
                        return Err(shared(ObjectId::Router(other), what));
                    }
                }
                if let Some(uplink) = &o.uplink {
                    self.users_of_external.insert((uplink.network, id));
                }
                for leg in &o.legs {
                    for host in o.hosts() {
                        self.sit(leg.subnet, host);
                    }
                }
                self.routers_by_host.insert((o.placement.host, o.id));
                self.routers.insert(o.id, o);
            }
            Object::External(o) => {
                self.externals.insert(o.id, o);
            }
            Object::PublicIp(o) => {
                self.users_of_external.insert((o.network, id));
                if let Some(target) = o.target {
                    self.public_by_target.insert((target, o.id));
                }
                self.public_ips.insert(o.id, o);
            }
            Object::Volume(o) => {
                self.volumes.insert(o.id, o);
            }
        }
        Ok(())
    }

    fn remove(&mut self, object: &Object) {
        self.names
            .remove(&(scope_of(object), object.name().clone()));
        for resource in self.resources_of(object) {
            let (key, number) = PoolKey::of(resource);
            if let Some(pool) = self.pools.get_mut(&key) {
                pool.disown(number);
                if pool.is_empty() {
                    self.pools.remove(&key);
                }
            }
        }
        match object {
            Object::Account(o) => {
                self.accounts.remove(&o.id);
            }
            Object::Vpc(o) => {
                self.vpcs.remove(&o.id);
            }
            Object::Subnet(o) => {
                for prefix in prefixes_of(o) {
                    self.prefixes.remove(&(o.vpc, prefix.network()));
                }
                self.subnets.remove(&o.id);
            }
            Object::Nic(o) => {
                for seat in o.seats() {
                    self.rise(o.subnet, seat.host);
                    self.nics_by_host.remove(&(seat.host, o.id));
                    if let Some(device) = Device::of(&seat.attachment) {
                        self.devices.remove(&(seat.host, device));
                    }
                }
                self.moving.remove(&o.id);
                self.nics.remove(&o.id);
            }
            Object::Host(o) => {
                self.underlays.remove(&o.underlay);
                self.hosts.remove(&o.id);
            }
            Object::Router(o) => {
                for leg in &o.legs {
                    for host in o.hosts() {
                        self.rise(leg.subnet, host);
                    }
                    self.router_of.remove(&leg.subnet);
                }
                if let Some(uplink) = &o.uplink {
                    self.users_of_external
                        .remove(&(uplink.network, object.id()));
                }
                self.routers_by_host.remove(&(o.placement.host, o.id));
                self.routers.remove(&o.id);
            }
            Object::External(o) => {
                self.externals.remove(&o.id);
            }
            Object::PublicIp(o) => {
                self.users_of_external.remove(&(o.network, object.id()));
                if let Some(target) = o.target {
                    self.public_by_target.remove(&(target, o.id));
                }
                self.public_ips.remove(&o.id);
            }
            Object::Volume(o) => {
                self.volumes.remove(&o.id);
            }
        }
    }

    /// A port or leg of a subnet came to a host.
    fn sit(&mut self, subnet: SubnetId, host: HostId) {
        *self.seats.entry((subnet, host)).or_default() += 1;
    }

    /// One went.
    fn rise(&mut self, subnet: SubnetId, host: HostId) {
        if let Entry::Occupied(mut seats) = self.seats.entry((subnet, host)) {
            *seats.get_mut() -= 1;
            if *seats.get() == 0 {
                seats.remove();
            }
        }
    }

    /// What an object has that nobody else may have. Its parents must be there.
    pub(crate) fn resources_of(&self, object: &Object) -> Vec<Resource> {
        match object {
            Object::Account(_) | Object::Host(_) | Object::External(_) | Object::Volume(_) => {
                Vec::new()
            }
            Object::Router(router) => {
                let macs = router
                    .legs
                    .iter()
                    .map(|leg| Resource::Mac(router.vpc, leg.mac));
                let outer = router.uplink.iter().flat_map(|uplink| {
                    let addresses = uplink.addresses.iter();
                    addresses
                        .map(|address| Resource::Public(uplink.network, *address))
                        .chain([Resource::OuterMac(uplink.network, uplink.mac)])
                });
                macs.chain(outer).collect()
            }
            Object::PublicIp(public) => vec![Resource::Public(public.network, public.address)],
            Object::Vpc(vpc) => {
                let gateway = vpc.gateway_mac().map(|mac| Resource::Mac(vpc.id, mac));
                [Resource::Vni(vpc.vni)]
                    .into_iter()
                    .chain(gateway)
                    .collect()
            }
            Object::Subnet(subnet) => {
                let shared = self.vpc(subnet.vpc).map(|vpc| vpc.vni) == Some(subnet.vni);
                std::iter::once(Resource::Vlan(subnet.vpc, subnet.vlan))
                    .chain((!shared).then_some(Resource::Vni(subnet.vni)))
                    .collect()
            }
            Object::Nic(nic) => match self.subnet(nic.subnet) {
                None => Vec::new(),
                Some(subnet) => std::iter::once(Resource::Mac(subnet.vpc, nic.mac))
                    .chain(
                        nic.addresses
                            .iter()
                            .map(|a| Resource::Address(subnet.vpc, *a)),
                    )
                    .collect(),
            },
        }
    }

    fn hold(&mut self, hold: &Hold) {
        let (key, number) = PoolKey::of(hold.resource);
        self.pools.entry(key).or_default().hold(number, hold.until);
        self.hold_ends
            .insert((hold.until, hold.resource), hold.revision);
    }

    fn remember(&mut self, request: RequestRecord) {
        self.request_ends
            .insert((request.until, request.id.clone()));
        self.requests.insert(request.id.clone(), request);
    }

    fn forget(&mut self, now: UnixMillis) {
        while let Some(end) = self.hold_ends.first_entry()
            && end.key().0 <= now
        {
            let (until, resource) = end.remove_entry().0;
            let (key, number) = PoolKey::of(resource);
            if let Some(pool) = self.pools.get_mut(&key) {
                pool.release(number, until);
                if pool.is_empty() {
                    self.pools.remove(&key);
                }
            }
        }
        while let Some((until, _)) = self.request_ends.first()
            && *until <= now
        {
            let (until, id) = self.request_ends.pop_first().expect("it was just seen");
            if self
                .requests
                .get(&id)
                .is_some_and(|request| request.until <= until)
            {
                self.requests.remove(&id);
            }
        }
    }
}

impl PoolKey {
    pub(crate) fn of(resource: Resource) -> (Self, u128) {
        let mac_number = |mac: MacAddr| {
            let [a, b, c, d, e, f] = mac.0;
            u64::from_be_bytes([0, 0, a, b, c, d, e, f]).into()
        };
        match resource {
            Resource::Address(vpc, IpAddr::V4(a)) => (Self::V4(vpc), u32::from(a).into()),
            Resource::Address(vpc, IpAddr::V6(a)) => (Self::V6(vpc), a.into()),
            Resource::Mac(vpc, mac) => (Self::Mac(vpc), mac_number(mac)),
            Resource::OuterMac(network, mac) => (Self::OuterMac(network), mac_number(mac)),
            Resource::Public(network, address) => (Self::Public(network), public_number(address)),
            Resource::Vlan(vpc, vlan) => (Self::Vlan(vpc), vlan.get().into()),
            Resource::Vni(vni) => (Self::Vni, vni.get().into()),
        }
    }
}

impl Device {
    pub(crate) fn of(attachment: &Attachment) -> Option<Self> {
        match attachment {
            Attachment::Tap => None,
            Attachment::Netns { netns, device } => Some(Self::Netns(netns.clone(), device.clone())),
            Attachment::Existing { ifname } => Some(Self::Existing(ifname.clone())),
        }
    }
}

pub(crate) fn missing(id: ObjectId) -> Refusal {
    Refusal::NotFound {
        kind: id.kind(),
        what: id.id_text(),
    }
}

pub(crate) fn prefixes_of(subnet: &Subnet) -> impl Iterator<Item = IpNet> + use<> {
    let prefixes = [subnet.v4.map(IpNet::V4), subnet.v6.map(IpNet::V6)];
    prefixes.into_iter().flatten()
}

/// An address of either family in one pool: IPv4 as IPv4-mapped (RFC 4291 §2.5.5.2), which no
/// external network has as its IPv6 prefix.
pub(crate) fn public_number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(a) => a.to_ipv6_mapped().into(),
        IpAddr::V6(a) => a.into(),
    }
}

/// Where the names of an object's children of a kind are unique.
pub(crate) const fn scope_below(id: ObjectId, kind: Kind) -> Option<Scope> {
    match (id, kind) {
        (ObjectId::Account(id), Kind::Vpc) => Some(Scope::Account(id)),
        (ObjectId::Account(id), Kind::PublicIp) => Some(Scope::PublicIps(id)),
        (ObjectId::Account(id), Kind::Volume) => Some(Scope::Volumes(id)),
        (ObjectId::Vpc(id), Kind::Subnet) => Some(Scope::Vpc(id)),
        (ObjectId::Vpc(id), Kind::Router) => Some(Scope::Routers(id)),
        (ObjectId::Subnet(id), Kind::Nic) => Some(Scope::Subnet(id)),
        _ => None,
    }
}

fn scope_of(object: &Object) -> Scope {
    match object {
        Object::Account(_) => Scope::Accounts,
        Object::Host(_) => Scope::Hosts,
        Object::Vpc(vpc) => Scope::Account(vpc.account),
        Object::Subnet(subnet) => Scope::Vpc(subnet.vpc),
        Object::Nic(nic) => Scope::Subnet(nic.subnet),
        Object::Router(router) => Scope::Routers(router.vpc),
        Object::External(_) => Scope::Externals,
        Object::PublicIp(public) => Scope::PublicIps(public.account),
        Object::Volume(volume) => Scope::Volumes(volume.account),
    }
}

fn parents_of(object: &Object) -> Vec<ObjectId> {
    match object {
        Object::Account(_) | Object::Host(_) | Object::External(_) => Vec::new(),
        Object::Router(router) => {
            let legs = router.legs.iter().map(|leg| ObjectId::Subnet(leg.subnet));
            let outside = router
                .uplink
                .iter()
                .map(|uplink| ObjectId::External(uplink.network));
            legs.chain(outside)
                .chain([ObjectId::Vpc(router.vpc)])
                .chain(router.hosts().map(ObjectId::Host))
                .collect()
        }
        Object::PublicIp(public) => {
            let target = public.target.map(|target| match target {
                PublicTarget::Nic(nic) => ObjectId::Nic(nic),
                PublicTarget::Router(router) => ObjectId::Router(router),
            });
            let owners = [
                ObjectId::Account(public.account),
                ObjectId::External(public.network),
            ];
            owners.into_iter().chain(target).collect()
        }
        Object::Vpc(vpc) => vec![ObjectId::Account(vpc.account)],
        Object::Volume(volume) => {
            let hosts = volume.hosts().map(ObjectId::Host);
            hosts.chain([ObjectId::Account(volume.account)]).collect()
        }
        Object::Subnet(subnet) => vec![ObjectId::Vpc(subnet.vpc)],
        Object::Nic(nic) => std::iter::once(ObjectId::Subnet(nic.subnet))
            .chain(nic.seats().map(|seat| ObjectId::Host(seat.host)))
            .collect(),
    }
}
