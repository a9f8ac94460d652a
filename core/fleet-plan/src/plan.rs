//! Intent + inventory -> what one host has to make true.

use crate::intent::prefixes_of;
use crate::{Intent, vpc_names};
use ipnet::IpNet;
use model::{
    BgpConfig, Encoding, Founding, Gateway, Generation, HostConfig, HostId, MacAddr, MovePhase,
    NatConfig, Nic, ObjectId, OneToOne, OuterLeg, Placement, Port, PortRole, PublicTarget,
    Reflector, Router, RouterConfig, RouterId, RouterLeg, Segment, SourceNat, SourcePolicy,
    SpeakerKind, Stack, StorageConfig, Subnet, SubnetId, Transit, Underlay, Uplink, UplinkAddress,
    Via, Volume, VolumeConfig, Voting, Vpc, VpcId, VpcNames,
};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

/// A host's configuration that has no generation yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draft(HostConfig);

impl Draft {
    /// The configuration, as the given generation of it.
    pub fn issue(self, generation: Generation) -> HostConfig {
        HostConfig {
            generation,
            ..self.0
        }
    }

    /// True if `issued` says the same.
    pub fn says(&self, issued: &HostConfig) -> bool {
        let HostConfig {
            host,
            generation: _,
            underlay,
            bgp,
            stacks,
            routers,
            voting,
            members,
            standby_for,
            storage,
        } = issued;
        self.0.host == *host
            && self.0.underlay == *underlay
            && self.0.bgp == *bgp
            && self.0.stacks == *stacks
            && self.0.routers == *routers
            && self.0.voting == *voting
            && self.0.members == *members
            && self.0.standby_for == *standby_for
            && self.0.storage == *storage
    }

    pub(crate) fn with_voting(mut self, voting: Option<Voting>) -> Self {
        self.0.voting = voting;
        self
    }

    /// Without a generation (it is 0).
    pub(crate) const fn config(&self) -> &HostConfig {
        &self.0
    }

    /// Has what it says as `last` does in the parts of `last`: whoever compares the two does not look into
    /// those.
    pub(crate) fn share_with(&mut self, last: &HostConfig) {
        share(&mut self.0.stacks, &last.stacks, |stack| stack.vpc);
        share(&mut self.0.routers, &last.routers, |router| router.id);
    }
}

/// What `host` has to make true; none if it is no host of this cluster. Only subnets with a NIC
/// or a router's leg on the host are in it. Same inputs, same draft.
///
/// In a VPC that is routed on every host a gateway has no id of its own, so it is rendered here and is no
/// object of the intent.
pub fn plan(intent: &Intent, host: HostId, reflectors: &[Reflector]) -> Option<Draft> {
    plan_on(intent, host, reflectors, &Kept::default())
}

/// As [`plan()`], but what `last` has of VPCs that are not in `touched` is taken from it: nothing that they
/// are made of has changed since. A host with many VPCs is planned in what a change of one costs.
pub(crate) fn plan_again(
    intent: &Intent,
    host: HostId,
    reflectors: &[Reflector],
    last: &HostConfig,
    touched: &BTreeSet<VpcId>,
) -> Option<Draft> {
    plan_on(intent, host, reflectors, &Kept::of(last, touched))
}

/// What stays of an earlier configuration.
#[derive(Default)]
struct Kept<'a> {
    /// Planned anew; none is all.
    touched: Option<&'a BTreeSet<VpcId>>,
    stacks: Vec<Arc<Stack>>,
    routers: Vec<Arc<RouterConfig>>,
    members: BTreeMap<SubnetId, BTreeSet<IpAddr>>,
}

impl<'a> Kept<'a> {
    fn of(last: &HostConfig, touched: &'a BTreeSet<VpcId>) -> Self {
        let stacks = last.stacks.iter();
        let (gone, stacks): (Vec<_>, Vec<_>) = stacks
            .cloned()
            .partition(|stack| touched.contains(&stack.vpc));
        let mut members = last.members.clone();
        for segment in gone.iter().flat_map(|stack| &stack.segments) {
            members.remove(&segment.subnet);
        }
        let routers = last.routers.iter();
        Self {
            touched: Some(touched),
            stacks,
            routers: routers
                .filter(|router| !touched.contains(&router.vpc))
                .cloned()
                .collect(),
            members,
        }
    }

    fn has(&self, vpc: VpcId) -> bool {
        self.touched.is_some_and(|touched| !touched.contains(&vpc))
    }
}

fn plan_on(
    intent: &Intent,
    host: HostId,
    reflectors: &[Reflector],
    kept: &Kept<'_>,
) -> Option<Draft> {
    let inventory = intent.host(host)?;
    let mut parts: BTreeMap<VpcId, Parts<'_>> = BTreeMap::new();
    let mut routers = kept.routers.clone();
    let prepared = intent.routers_prepared_on(host);
    let here = intent.routers_of_host(host).chain(prepared);
    for router in here.filter(|router| !kept.has(router.vpc)) {
        let mut config = router_config(intent, router, inventory.speaker);
        config.prepared = router.placement.host != host;
        if is_way_out_only(intent, router) {
            routers.push(Arc::new(config));
            continue;
        }
        let part = parts.entry(router.vpc).or_default();
        for leg in &router.legs {
            part.subnets
                .insert(leg.subnet, subnet_of(intent, leg.subnet));
        }
        routers.push(Arc::new(config));
    }
    for nic in intent.nics_of_host(host) {
        let subnet = subnet_of(intent, nic.subnet);
        if kept.has(subnet.vpc) {
            continue;
        }
        let part = parts.entry(subnet.vpc).or_default();
        part.subnets.insert(subnet.id, subnet);
        part.nics.push(nic);
    }
    let subnets = parts.values().flat_map(|part| part.subnets.keys());
    let members = subnets
        .map(|subnet| (*subnet, others(intent, *subnet, inventory.underlay)))
        .filter(|(_, vteps)| !vteps.is_empty())
        .chain(kept.members.clone())
        .collect();
    let mut stacks = kept.stacks.clone();
    for (id, part) in parts {
        let vpc = intent
            .vpc(id)
            .expect("the VPC of a subnet exists: its deletion is refused");
        stacks.push(Arc::new(stack(intent, host, vpc, &part)));
        routers.extend(gateway(intent, host, vpc, &part).map(Arc::new));
    }
    stacks.sort_by_key(|stack| stack.vpc);
    routers.sort_by_key(|router| router.id);
    Some(Draft(HostConfig {
        host,
        generation: Generation(0),
        underlay: Underlay {
            address: inventory.underlay,
            mtu: intent.cluster().underlay_mtu,
        },
        bgp: BgpConfig {
            asn: intent.cluster().asn,
            reflectors: reflectors.to_vec(),
            speaker: inventory.speaker,
        },
        stacks,
        routers,
        voting: None,
        members,
        standby_for: intent
            .standby_for(host)
            .map(|router| (router.id, router_name(intent, router)))
            .collect(),
        storage: storage(intent, host),
    }))
}

fn share<T: Eq, K: Ord>(parts: &mut [Arc<T>], last: &[Arc<T>], key: impl Fn(&T) -> K) {
    let last: BTreeMap<K, &Arc<T>> = last.iter().map(|part| (key(part), part)).collect();
    for part in parts {
        if let Some(held) = last.get(&key(part)).filter(|held| **held == part) {
            *part = Arc::clone(held);
        }
    }
}

/// Volumes with a replica on a host, or attached to it, and where their other replicas are.
fn storage(intent: &Intent, host: HostId) -> StorageConfig {
    let concerns = |volume: &&Volume| volume.hosts_in_use().any(|other| other == host);
    let volumes: Vec<&Volume> = intent.volumes().filter(concerns).collect();
    let others = volumes.iter().flat_map(|volume| volume.hosts_in_use());
    let is_gone = |volume: &&Volume| {
        let mut gone = volume.leaving.iter().filter(|leaving| leaving.gone);
        gone.any(|leaving| leaving.replica.host == host)
            && !volume.members().any(|it| it.host == host)
    };
    let others = others.filter(|other| *other != host);
    StorageConfig {
        peers: others
            .filter_map(|other| Some((other, intent.host(other)?.underlay)))
            .collect(),
        volumes: volumes
            .iter()
            .map(|volume| VolumeConfig {
                id: volume.id,
                name: volume.name.clone(),
                size: volume.size,
                replicas: volume.replicas.clone(),
                founding: {
                    let Founding { size, replicas } = &volume.founding;
                    let same = (size, replicas) == (&volume.size, &volume.replicas);
                    (!same).then(|| volume.founding.clone())
                },
                leaving: volume
                    .members()
                    .skip(volume.replicas.len())
                    .copied()
                    .collect(),
                numbered: volume.numbered,
                recovery: volume.recovered.map(|recovered| recovered.recovery),
                attachment: volume.attached_to(host).map(|attached| attached.attachment),
            })
            .collect(),
        deleted: intent
            .volumes()
            .filter(is_gone)
            .map(|volume| volume.id)
            .collect(),
    }
}

/// VTEPs of a subnet beside a host's own.
fn others(intent: &Intent, subnet: SubnetId, own: IpAddr) -> BTreeSet<IpAddr> {
    let mut vteps = intent.vteps_of_subnet(subnet);
    vteps.remove(&own);
    vteps
}

fn subnet_of(intent: &Intent, id: SubnetId) -> &Subnet {
    intent
        .subnet(id)
        .expect("the subnet of a NIC or leg exists: its deletion is refused")
}

/// The part of a VPC that is on one host, in order of id.
#[derive(Default)]
struct Parts<'a> {
    subnets: BTreeMap<SubnetId, &'a Subnet>,
    nics: Vec<&'a Nic>,
}

fn stack(intent: &Intent, host: HostId, vpc: &Vpc, parts: &Parts<'_>) -> Stack {
    let of_subnets = parts.subnets.keys().map(|id| (*id, behind(intent, *id)));
    let of_subnets: BTreeMap<SubnetId, Behind> = of_subnets.collect();
    Stack {
        vpc: vpc.id,
        name: intent.path(ObjectId::Vpc(vpc.id)),
        vni: vpc.vni,
        encoding: vpc.encoding,
        unknown_neighbours: vpc.unknown_neighbours,
        segments: parts
            .subnets
            .values()
            .map(|subnet| segment(intent, vpc, subnet))
            .collect(),
        ports: parts
            .nics
            .iter()
            .map(|nic| {
                let behind = of_subnets.get(&nic.subnet);
                port(host, vpc, parts.subnets[&nic.subnet], nic, behind)
            })
            .collect(),
    }
}

/// Prefixes of routes by what is in a subnet, by next hop.
type Behind = BTreeMap<IpAddr, Vec<IpNet>>;

/// What is behind NICs of a subnet: its router sends there, and they may send from there.
fn behind(intent: &Intent, subnet: SubnetId) -> Behind {
    let mut behind = Behind::new();
    let router = intent.router_of_subnet(subnet).into_iter();
    for route in router.flat_map(|router| &router.routes) {
        if let Via::Address(via) = route.via {
            behind.entry(via).or_default().push(route.prefix);
        }
    }
    behind
}

fn segment(intent: &Intent, vpc: &Vpc, subnet: &Subnet) -> Segment {
    let router = intent.router_of_subnet(subnet.id);
    let leg = router.and_then(|router| router.legs.iter().find(|leg| leg.subnet == subnet.id));
    Segment {
        subnet: subnet.id,
        name: format!("{}/{}", vpc.name, subnet.name),
        vlan: subnet.vlan,
        vni: match vpc.encoding {
            Encoding::VlanBased => subnet.vni,
            Encoding::VlanAwareBundle => vpc.vni,
        },
        mtu: subnet.mtu,
        v4: subnet.v4,
        v6: subnet.v6,
        options: subnet.options.clone(),
        gateway: vpc
            .gateway_mac()
            .or(leg.map(|leg| leg.mac))
            .map(|mac| Gateway {
                mac,
                addresses: subnet.gateways().map(|net| net.addr()).collect(),
            }),
    }
}

fn port(host: HostId, vpc: &Vpc, subnet: &Subnet, nic: &Nic, behind: Option<&Behind>) -> Port {
    let (placement, role, sequence) = seat(host, nic);
    let nets = nic.addresses.iter().filter_map(|own| behind?.get(own));
    // The same prefix may be in the tables of several subnets.
    let nets: BTreeSet<IpNet> = nets.flatten().copied().collect();
    Port {
        nic: nic.id,
        name: format!("{}/{}/{}", vpc.name, subnet.name, nic.name),
        subnet: subnet.id,
        mac: nic.mac,
        addresses: nic.addresses.clone(),
        behind: nets.into_iter().collect(),
        attachment: placement.attachment.clone(),
        role,
        sequence,
    }
}

/// What a NIC is on one of its hosts.
fn seat(host: HostId, nic: &Nic) -> (&Placement, PortRole, u32) {
    match &nic.moving {
        Some(m) if nic.placement.host != host => match m.phase {
            MovePhase::Provision => (&m.other, PortRole::Standby, nic.moves),
            // In use on the host that it leaves, with the sequence from before the switch: it loses
            // to the new host when it hears of it, and not a moment earlier.
            MovePhase::Switch | MovePhase::Retire => {
                (&m.other, PortRole::Leaving, nic.moves.saturating_sub(1))
            }
        },
        Some(m) if m.phase != MovePhase::Provision => {
            (&nic.placement, PortRole::Arrived, nic.moves)
        }
        _ => (&nic.placement, PortRole::Settled, nic.moves),
    }
}

/// A VPC that is routed on every host: its gateway on one of them, in the subnets of the NICs there.
/// Those of NICs on other hosts are reached over the VPC's own VNI.
fn gateway(intent: &Intent, host: HostId, vpc: &Vpc, part: &Parts<'_>) -> Option<RouterConfig> {
    let mac = vpc.gateway_mac()?;
    let [.., a, b, c, d, e] = host.bits().to_be_bytes();
    Some(RouterConfig {
        // One a host: it needs no id but the VPC's, and has the same name everywhere.
        id: RouterId::from_random(vpc.id.bits()),
        vpc: vpc.id,
        name: format!("{}/gateway", vpc.name),
        legs: part.subnets.values().map(|s| leg(s, mac)).collect(),
        uplink: None,
        routes: Vec::new(),
        nat: NatConfig::default(),
        epoch: 0,
        names: vpc_names::of_gateway(intent, vpc, host),
        transit: Some(Transit {
            vni: vpc.vni,
            // The host's own, in contrast to the gateway's: where frames that were routed go.
            mac: MacAddr([0x1e, a, b, c, d, e]),
        }),
        anycast: true,
        inner: Vec::new(),
        prepared: false,
        standby: None,
    })
}

/// True for the router of a VPC that is routed on every host.
fn is_way_out_only(intent: &Intent, router: &Router) -> bool {
    intent.vpc(router.vpc).and_then(Vpc::gateway_mac).is_some()
}

fn leg(subnet: &Subnet, mac: MacAddr) -> RouterLeg {
    RouterLeg {
        subnet: subnet.id,
        mac,
        addresses: subnet.gateways().collect(),
        mtu: subnet.mtu,
    }
}

fn router_name(intent: &Intent, router: &Router) -> String {
    format!("{}/{}", vpc_of(intent, router).name, router.name)
}

fn vpc_of<'a>(intent: &'a Intent, router: &Router) -> &'a Vpc {
    intent
        .vpc(router.vpc)
        .expect("the VPC of a router exists: its deletion is refused")
}

fn router_config(intent: &Intent, router: &Router, speaker: SpeakerKind) -> RouterConfig {
    let way_out_only = is_way_out_only(intent, router);
    let legs = router.legs.iter().filter(|_| !way_out_only);
    let legs = legs
        .map(|l| leg(subnet_of(intent, l.subnet), l.mac))
        .collect();
    let inner = intent.subnets_of(router.vpc).filter(|_| way_out_only);
    let vpc = vpc_of(intent, router);
    RouterConfig {
        id: router.id,
        vpc: router.vpc,
        name: router_name(intent, router),
        legs,
        uplink: router.uplink.as_ref().map(|leg| uplink(intent, leg)),
        routes: router.routes.clone(),
        nat: nat(intent, router),
        names: match way_out_only {
            true => VpcNames::default(),
            false => vpc_names::of_router(intent, vpc, router),
        },
        transit: transit(vpc, router.id, speaker),
        epoch: router.placement.epoch,
        anycast: false,
        prepared: false,
        inner: inner.flat_map(prefixes_of).collect(),
        standby: router.standby.host(),
    }
}

/// A bundle has its VPC's VNI on its subnets' frames, and none left for routers; and FRR as the host's
/// client would have to see the inside of the router.
fn transit(vpc: &Vpc, router: RouterId, speaker: SpeakerKind) -> Option<Transit> {
    let can = vpc.encoding == Encoding::VlanBased && speaker == SpeakerKind::Builtin;
    let [.., a, b, c, d, e] = router.bits().to_be_bytes();
    can.then_some(Transit {
        vni: vpc.vni,
        // Goes with the router, as the MACs of its legs do.
        mac: MacAddr([0x12, a, b, c, d, e]),
    })
}

fn uplink(intent: &Intent, leg: &OuterLeg) -> Uplink {
    let network = intent
        .external(leg.network)
        .expect("the network of an uplink exists: its deletion is refused");
    let address = match (network.dhcp, leg.addresses.as_slice()) {
        (true, []) => UplinkAddress::Dhcp,
        (_, addresses) => UplinkAddress::Static(
            addresses
                .iter()
                .filter_map(|address| {
                    let prefix = network.prefix_of(*address)?;
                    IpNet::new(*address, prefix.prefix_len()).ok()
                })
                .collect(),
        ),
    };
    Uplink {
        bridge: network.bridge.clone(),
        mac: leg.mac,
        address,
        gateways: network.gateways.clone(),
        mtu: network.mtu,
    }
}

fn nat(intent: &Intent, router: &Router) -> NatConfig {
    let own = intent.public_ips_of(PublicTarget::Router(router.id));
    let own: Vec<IpAddr> = own.map(|public| public.address).collect();
    let mut public: Vec<OneToOne> = router
        .legs
        .iter()
        .flat_map(|leg| intent.nics_of_subnet(leg.subnet))
        .flat_map(|nic| one_to_one(intent, nic))
        .collect();
    public.sort();
    NatConfig {
        source: match router.source {
            SourcePolicy::None => None,
            SourcePolicy::Masquerade => Some(SourceNat::Masquerade),
            SourcePolicy::Addresses => Some(SourceNat::Addresses(own)),
        },
        public,
        forwards: router.forwards.clone(),
        source_v6: router.source_v6,
    }
}

fn one_to_one<'a>(intent: &'a Intent, nic: &'a Nic) -> impl Iterator<Item = OneToOne> + 'a {
    intent
        .public_ips_of(PublicTarget::Nic(nic.id))
        .filter_map(|public| {
            let same_family = |a: &&IpAddr| a.is_ipv4() == public.address.is_ipv4();
            Some(OneToOne {
                public: public.address,
                private: *nic.addresses.iter().find(same_family)?,
            })
        })
}
