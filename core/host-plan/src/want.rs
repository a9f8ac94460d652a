//! What should be on the host, spelt out: every interface, membership, guard and row that follows
//! from the configuration and from what the kernel can do. The plan is its difference to what is.

mod router;
mod tap;
mod transit;

pub use router::metadata_addresses;
pub(crate) use router::{WantInside, WantRouter};
pub use transit::{Told, prefixes_of};

use crate::uplink::{Uplink, suppresses};
use crate::{
    BridgePortFlags, FdbRow, FdbState, FdbTarget, Guard, HostState, Link, Neighbour, OwnedName,
    Service, Stamp, Subject, VlanMembership,
};
use datapath::{Domain, Limits, Tables};
use ipnet::IpNet;
use model::{
    Attachment, Capability, Encapsulation, Encoding, EviForwarding, Forwarding, IfName, MacAddr,
    Mtu, NetnsName, Port, PortRole, RouterConfig, RouterId, Segment, Stack, SubnetId, Tag,
    Transport, Underlay, VlanId, Vni, VpcId,
};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

/// All that a host has to make true.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desired<'a> {
    /// The host's place on the underlay.
    pub underlay: Underlay,
    /// What carries frames to other hosts.
    pub transport: Transport,
    /// What a datapath lets through.
    pub limits: Limits,
    /// VPCs with something on this host; ids and VNIs do not repeat.
    pub stacks: &'a [Arc<Stack>],
    /// Routers that run on this host; ids do not repeat.
    pub routers: &'a [Arc<RouterConfig>],
    /// What EVPN learned.
    pub forwarding: &'a Forwarding,
    /// Addresses of NICs here are in the neighbour tables as well. FRR's zebra learns from there
    /// which address goes with which MAC, and would otherwise wait for the workload to speak.
    pub local_neighbours: bool,
}

/// Something that cannot be made true on this host, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The object.
    pub subject: Subject,
    /// The object, the reason and the remedy.
    pub message: String,
    /// The object carries no traffic; else it does, but not as well as it should.
    pub blocks: bool,
}

/// What of the host decides what should be on it; everything else is only compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Facts {
    capabilities: BTreeSet<Capability>,
    /// Those interfaces of the operator's that NICs and routers are attached to.
    links: BTreeMap<IfName, Link>,
    has_datapath: bool,
    datapath_trouble: Option<String>,
}

impl Facts {
    pub(crate) fn of(desired: &Desired<'_>, observed: &HostState) -> Self {
        let ports = desired.stacks.iter().flat_map(|stack| &stack.ports);
        let existing = ports.filter_map(|port| match &port.attachment {
            Attachment::Existing { ifname } => Some(ifname),
            Attachment::Tap | Attachment::Netns { .. } => None,
        });
        let uplinks = desired.routers.iter().flat_map(|router| &router.uplink);
        let names: BTreeSet<&IfName> = existing.chain(uplinks.map(|up| &up.bridge)).collect();
        let links = names.into_iter().filter_map(|name| {
            let link = observed.links.get(name)?;
            Some((name.clone(), link.clone()))
        });
        Self {
            capabilities: observed.capabilities.clone(),
            links: links.collect(),
            has_datapath: observed.datapath.is_some(),
            datapath_trouble: observed.datapath_trouble.clone(),
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Want {
    pub(crate) links: BTreeMap<IfName, WantLink>,
    pub(crate) fdb: BTreeMap<FdbRow, Subject>,
    pub(crate) neighbours: BTreeMap<(IfName, IpAddr), (Neighbour, Subject)>,
    pub(crate) netns: BTreeSet<NetnsName>,
    pub(crate) routers: Vec<Arc<WantRouter>>,
    pub(crate) vteps: BTreeSet<IpAddr>,
    pub(crate) problems: Vec<Problem>,
    /// What the datapath is to be told; empty where the kernel carries.
    pub(crate) tables: Tables,
    /// For whom a domain of them is.
    pub(crate) domains: BTreeMap<Domain, Subject>,
    /// Whose their addresses of this host are.
    pub(crate) addresses_here: BTreeMap<(Domain, IpAddr), Subject>,
    /// Whose interfaces stay as they are, because what they should become cannot be said.
    pub(crate) frozen: BTreeSet<Subject>,
    /// Where each tunnel sends a MAC: its table has no VLAN in the key.
    behind: BTreeMap<(IfName, MacAddr), IpAddr>,
    /// Routers that get their way out.
    pub(crate) outside: Arc<BTreeSet<RouterId>>,
    places: Places,
}

/// Where things are in what is desired: to look through all of it for each router would cost the square.
#[derive(Debug, Default)]
struct Places {
    stacks: BTreeMap<VpcId, usize>,
    /// Routers by the VNI over which those of a VPC meet.
    routers: BTreeMap<Vni, Vec<usize>>,
    /// MACs that routers have there, of those that are not just made ready.
    macs: BTreeSet<MacAddr>,
    /// Subnets whose gateway is one of many. It and the tunnel are isolated ports: no frame goes from one
    /// to the other, so that each answers its own host's NICs and no others.
    anycast: BTreeSet<SubnetId>,
}

impl Places {
    fn of(desired: &Desired<'_>) -> Self {
        let mut places = Self::default();
        for (at, stack) in desired.stacks.iter().enumerate() {
            places.stacks.entry(stack.vpc).or_insert(at);
        }
        for (at, router) in desired.routers.iter().enumerate() {
            if let Some(transit) = router.transit {
                places.routers.entry(transit.vni).or_default().push(at);
                places
                    .macs
                    .extend((!router.prepared).then_some(transit.mac));
            }
            if router.anycast {
                let subnets = router.legs.iter().map(|leg| leg.subnet);
                places.anycast.extend(subnets);
            }
        }
        places
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WantLink {
    pub(crate) subject: Subject,
    pub(crate) stamp: Stamp,
    pub(crate) what: What,
    pub(crate) mtu: Mtu,
    pub(crate) membership: Option<Membership>,
    pub(crate) guard: Option<Guard>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum What {
    Bridge {
        mac: MacAddr,
        vlan_filtering: bool,
    },
    Vxlan {
        vni: Vni,
        local: IpAddr,
        mac: MacAddr,
    },
    /// Holds neighbour rows; stays down.
    VlanDevice {
        bridge: IfName,
        vlan: VlanId,
    },
    /// The end on the bridge; the outer end is a link of its own without a creator.
    TrunkInner {
        outer: IfName,
        vxlan: IfName,
        vlan: VlanId,
    },
    TrunkOuter,
    Veth {
        netns: NetnsName,
        device: IfName,
        mac: MacAddr,
        addresses: BTreeSet<IpNet>,
    },
    /// The host's end of a router's leg; the other has the same name in the router's namespace.
    RouterPort {
        netns: NetnsName,
        mac: MacAddr,
    },
    Tap,
    /// Its other side is the datapath.
    TunnelTap,
    Existing,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Membership {
    pub(crate) bridge: IfName,
    pub(crate) flags: BridgePortFlags,
    /// None leaves them as the bridge's owner has them.
    pub(crate) vlans: Option<BTreeMap<VlanId, VlanMembership>>,
}

/// Ports of workloads: nothing is learned from them, and only what is known to be theirs (or is
/// broadcast) is sent to them.
const NIC_FLAGS: BridgePortFlags = BridgePortFlags {
    isolated: false,
    learning: false,
    unicast_flood: false,
    neigh_suppress: false,
};

impl Want {
    pub(crate) fn of(desired: &Desired<'_>, facts: &Facts) -> Self {
        let mut want = Self {
            places: Places::of(desired),
            ..Self::default()
        };
        let can = |capability| facts.capabilities.contains(&capability);
        let nothing = desired.stacks.is_empty() && desired.routers.is_empty();
        if !can(Capability::NftBridge) && !nothing {
            want.problems.push(Problem {
                subject: Subject::Host,
                blocks: true,
                message:
                    "the kernel has no nftables bridge family, so ports cannot be guarded and \
                          none is opened: load nf_tables with bridge support (nf_tables_bridge)"
                        .to_owned(),
            });
            return want;
        }
        want.parts(desired, facts);
        let outer = |router: &&Arc<RouterConfig>| {
            let name = OwnedName::router_outer(router.id);
            want.links.contains_key(&name)
        };
        let outside = desired.routers.iter().filter(outer).map(|r| r.id);
        want.outside = Arc::new(outside.collect());
        want.vteps.extend(desired.forwarding.vteps());
        if !want.tables.bindings.is_empty() {
            want.tables.local = Some(desired.underlay.address);
            want.tables.limits = desired.limits;
        }
        want
    }

    fn parts(&mut self, desired: &Desired<'_>, facts: &Facts) {
        for stack in desired.stacks {
            self.stack(desired, facts, stack);
        }
        for router in desired.routers {
            self.router(desired, facts, router);
        }
    }

    /// What follows from some VPCs alone. They are all there is of what they share with no other: a tunnel,
    /// a bridge, a way between routers.
    pub(crate) fn of_some(desired: &Desired<'_>, facts: &Facts) -> Self {
        let mut want = Self {
            places: Places::of(desired),
            ..Self::default()
        };
        want.parts(desired, facts);
        want
    }

    /// True if `other` is the same but for what is inside of the same routers.
    pub(crate) fn is_but_for_insides(&self, other: &Self) -> bool {
        // Each by its name, so that none can be forgotten.
        let Self {
            links,
            fdb,
            neighbours,
            netns,
            routers,
            vteps,
            problems,
            tables,
            domains,
            addresses_here,
            frozen,
            behind,
            // Of all of what should be, and by its links.
            outside: _,
            // Where the rest comes from.
            places: _,
        } = self;
        let ids = |routers: &[Arc<WantRouter>]| -> Vec<RouterId> {
            routers.iter().map(|router| router.id).collect()
        };
        ids(routers) == ids(&other.routers)
            && *links == other.links
            && *fdb == other.fdb
            && *neighbours == other.neighbours
            && *netns == other.netns
            && *vteps == other.vteps
            && *problems == other.problems
            && *tables == other.tables
            && *domains == other.domains
            && *addresses_here == other.addresses_here
            && *frozen == other.frozen
            && *behind == other.behind
    }

    fn stack(&mut self, desired: &Desired<'_>, facts: &Facts, stack: &Stack) {
        let filtering = facts.capabilities.contains(&Capability::VlanFiltering);
        let bundle = stack.encoding == Encoding::VlanAwareBundle;
        let kernel = desired.transport == Transport::Kernel;
        let can_bpf = facts.capabilities.contains(&Capability::ClsBpf);
        if bundle && kernel && !filtering && !can_bpf {
            self.problems.push(Problem {
                subject: Subject::Vpc(stack.vpc),
                blocks: true,
                message: format!(
                    "VPC {} is a vlan-aware bundle, which needs bridge VLAN filtering or BPF on \
                     interfaces, and this kernel has neither: use a distribution kernel here, \
                     transport = \"tap\" in the agent's settings or encoding vlan-based",
                    stack.name
                ),
            });
            self.freeze(stack);
            return;
        }
        if !kernel && !self.can_tap(desired, facts, stack) {
            self.freeze(stack);
            return;
        }
        let Some(limit) = Encapsulation::inner_mtu(desired.underlay, stack.encoding) else {
            self.problems.push(Problem {
                subject: Subject::Vpc(stack.vpc),
                blocks: true,
                message: format!(
                    "an underlay of MTU {} leaves no room for a tenant's packets: raise it",
                    desired.underlay.mtu
                ),
            });
            self.freeze(stack);
            return;
        };
        let widest = stack
            .segments
            .iter()
            .map(|segment| segment.mtu)
            .max()
            .unwrap_or(limit);

        if filtering {
            let bridge = OwnedName::vpc_bridge(stack.vpc);
            let mac = device_mac(0x06, stack.vpc.bits());
            self.bridge(
                bridge,
                Subject::Vpc(stack.vpc),
                Stamp::Vpc(stack.vpc),
                mac,
                widest,
                true,
            );
        }
        let taps = !kernel;
        if taps && filtering {
            self.stack_tap(stack, widest);
        }
        if bundle && kernel {
            // One tunnel endpoint for the VPC; where the kernel filters VLANs it is a tagged trunk
            // of the VPC's bridge, else trunk pairs feed it.
            let membership = filtering.then(|| Membership {
                bridge: OwnedName::vpc_bridge(stack.vpc),
                flags: tunnel_flags(suppresses(&facts.capabilities, desired.transport), false),
                vlans: Some(
                    stack
                        .segments
                        .iter()
                        .map(|s| (s.vlan, VlanMembership::Tagged))
                        .collect(),
                ),
            });
            let subject = Subject::Vpc(stack.vpc);
            self.tunnel(
                desired,
                stack.vni,
                subject,
                Stamp::Vpc(stack.vpc),
                widest,
                membership,
            );
        }
        for segment in &stack.segments {
            self.segment(desired, facts, stack, segment, filtering, limit);
            if taps {
                self.segment_tables(desired, facts, stack, segment, filtering);
            }
        }
        for port in &stack.ports {
            self.port(desired, facts, stack, port, filtering);
        }
    }

    fn freeze(&mut self, stack: &Stack) {
        self.frozen.insert(Subject::Vpc(stack.vpc));
        self.frozen
            .extend(stack.segments.iter().map(|s| Subject::Subnet(s.subnet)));
        self.frozen
            .extend(stack.ports.iter().map(|p| Subject::Nic(p.nic)));
    }

    fn segment(
        &mut self,
        desired: &Desired<'_>,
        facts: &Facts,
        stack: &Stack,
        segment: &Segment,
        filtering: bool,
        limit: Mtu,
    ) {
        let subject = Subject::Subnet(segment.subnet);
        let stamp = Stamp::Subnet(segment.subnet);
        let bundle = stack.encoding == Encoding::VlanAwareBundle;
        if segment.mtu > limit {
            self.problems.push(Problem {
                subject,
                blocks: false,
                message: format!(
                    "subnet {} has MTU {}, but the underlay of this host (MTU {}) carries {} \
                     inside the tunnel: raise the underlay's MTU or make the subnet's smaller",
                    segment.name, segment.mtu, desired.underlay.mtu, limit
                ),
            });
        }
        let bridge = segment_bridge(stack, segment, filtering);
        if !filtering {
            let mac = device_mac(0x0a, segment.subnet.bits());
            self.bridge(bridge.clone(), subject, stamp, mac, segment.mtu, false);
        }
        let kernel = desired.transport == Transport::Kernel;
        let membership = Membership {
            bridge: bridge.clone(),
            flags: tunnel_flags(
                suppresses(&facts.capabilities, desired.transport),
                self.places.anycast.contains(&segment.subnet),
            ),
            vlans: Some(access(segment, filtering)),
        };
        match (desired.transport, bundle, filtering) {
            (Transport::Kernel, false, _) => self.tunnel(
                desired,
                segment.vni,
                subject,
                stamp,
                segment.mtu,
                Some(membership),
            ),
            (Transport::Kernel, true, false) => self.trunk_pair(stack, segment, &bridge),
            (Transport::Tap, _, false) => {
                let tap = tap::place_of(stack, segment, filtering).tap;
                self.tap(tap, subject, stamp, segment.mtu, membership);
            }
            // They have one in common.
            (Transport::Kernel, true, true) | (Transport::Tap, _, true) => {}
        }
        let can_hold = facts.capabilities.contains(&Capability::VlanDevices);
        let vlan_device = kernel && filtering && can_hold;
        if vlan_device {
            let what = What::VlanDevice {
                bridge,
                vlan: segment.vlan,
            };
            let link = WantLink {
                subject,
                stamp,
                what,
                mtu: segment.mtu,
                membership: None,
                guard: None,
            };
            self.links
                .insert(OwnedName::vlan_device(segment.subnet), link);
        }
        if let Some(evi) = desired.forwarding.evis.get(&segment.vni) {
            self.rows(desired, stack, segment, evi, filtering, vlan_device);
        }
    }

    fn bridge(
        &mut self,
        name: IfName,
        subject: Subject,
        stamp: Stamp,
        mac: MacAddr,
        mtu: Mtu,
        vlan_filtering: bool,
    ) {
        let what = What::Bridge {
            mac,
            vlan_filtering,
        };
        self.links.insert(
            name,
            WantLink {
                subject,
                stamp,
                what,
                mtu,
                membership: None,
                guard: None,
            },
        );
    }

    fn tunnel(
        &mut self,
        desired: &Desired<'_>,
        vni: Vni,
        subject: Subject,
        stamp: Stamp,
        mtu: Mtu,
        membership: Option<Membership>,
    ) {
        let what = What::Vxlan {
            vni,
            local: desired.underlay.address,
            mac: tunnel_mac(desired.underlay.address, vni),
        };
        let link = WantLink {
            subject,
            stamp,
            what,
            mtu,
            membership,
            guard: None,
        };
        self.links.insert(OwnedName::tunnel(vni), link);
    }

    fn trunk_pair(&mut self, stack: &Stack, segment: &Segment, bridge: &IfName) {
        let subject = Subject::Subnet(segment.subnet);
        let stamp = Stamp::Subnet(segment.subnet);
        let outer = OwnedName::trunk_outer(segment.subnet);
        let inner = WantLink {
            subject,
            stamp,
            what: What::TrunkInner {
                outer: outer.clone(),
                vxlan: OwnedName::tunnel(stack.vni),
                vlan: segment.vlan,
            },
            mtu: segment.mtu,
            membership: Some(Membership {
                bridge: bridge.clone(),
                flags: BridgePortFlags {
                    unicast_flood: true,
                    neigh_suppress: true,
                    ..NIC_FLAGS
                },
                vlans: Some(BTreeMap::new()),
            }),
            guard: None,
        };
        let other = WantLink {
            what: What::TrunkOuter,
            membership: None,
            ..inner.clone()
        };
        self.links
            .insert(OwnedName::trunk_inner(segment.subnet), inner);
        self.links.insert(outer, other);
    }

    fn port(
        &mut self,
        desired: &Desired<'_>,
        facts: &Facts,
        stack: &Stack,
        port: &Port,
        filtering: bool,
    ) {
        let subject = Subject::Nic(port.nic);
        let Some(segment) = stack.segment(port.subnet) else {
            self.problems.push(Problem {
                subject,
                blocks: true,
                message: format!(
                    "NIC {} is of a subnet that its stack does not have",
                    port.name
                ),
            });
            return;
        };
        let bridge = segment_bridge(stack, segment, filtering);
        let (name, what, stamp) = match &port.attachment {
            Attachment::Tap => (OwnedName::port(port.nic), What::Tap, Stamp::Nic(port.nic)),
            Attachment::Netns { netns, device } => {
                self.netns.insert(netns.clone());
                let what = What::Veth {
                    netns: netns.clone(),
                    device: device.clone(),
                    mac: port.mac,
                    addresses: with_prefixes(port, segment),
                };
                (OwnedName::port(port.nic), what, Stamp::Nic(port.nic))
            }
            Attachment::Existing { ifname } => {
                let stamp = Stamp::Adopted(port.nic);
                if let Some(message) = cannot_adopt(facts, &bridge, port, ifname, stamp) {
                    self.problems.push(Problem {
                        subject,
                        message,
                        blocks: true,
                    });
                    return;
                }
                (ifname.clone(), What::Existing, stamp)
            }
        };
        if is_here(stack, segment, port, desired.forwarding) {
            // A neighbour row has FRR announce the NIC: not before it is here.
            if desired.transport == Transport::Tap {
                let domain = tap::domain_of(stack, segment);
                for ip in &port.addresses {
                    self.address_here(subject, domain, *ip, port.mac, false);
                }
            } else if desired.local_neighbours && stack.encoding == Encoding::VlanBased {
                self.local_neighbours(facts, port, segment, filtering);
            }
            let row = FdbRow {
                dev: name.clone(),
                mac: port.mac,
                target: FdbTarget::Bridge(filtering.then_some(segment.vlan)),
                state: FdbState::Static,
            };
            self.fdb.insert(row, subject);
        }
        let link = WantLink {
            subject,
            stamp,
            what,
            mtu: segment.mtu,
            membership: Some(Membership {
                bridge,
                flags: NIC_FLAGS,
                vlans: Some(access(segment, filtering)),
            }),
            guard: Some(guard(segment, port)),
        };
        self.links.insert(name, link);
    }

    /// The addresses of a NIC here, where zebra looks for them.
    fn local_neighbours(&mut self, facts: &Facts, port: &Port, segment: &Segment, filtering: bool) {
        let vlan_device = filtering && facts.capabilities.contains(&Capability::VlanDevices);
        let Some(holder) = neighbour_holder(segment, filtering, vlan_device) else {
            return;
        };
        for ip in port
            .addresses
            .iter()
            .filter(|ip| vlan_device || ip.is_ipv4())
        {
            let row = Neighbour {
                dev: holder.clone(),
                ip: *ip,
                mac: port.mac,
                ours: true,
                remote: false,
                router: false,
            };
            let subject = Subject::Nic(port.nic);
            self.neighbours
                .insert((holder.clone(), *ip), (row, subject));
        }
    }

    /// Remote rows of one segment. Two for each remote MAC: the bridge's says "into the tunnel",
    /// the tunnel's says to which VTEP. In a bundle the same MAC may come from two VTEPs in two
    /// VLANs, which the kernel cannot tell apart; our allocator never does that, and of a foreign
    /// pair the first segment's holds, so that the two do not take turns.
    fn rows(
        &mut self,
        desired: &Desired<'_>,
        stack: &Stack,
        segment: &Segment,
        evi: &EviForwarding,
        filtering: bool,
        vlan_device: bool,
    ) {
        let subject = Subject::Subnet(segment.subnet);
        let tunnel = OwnedName::tunnel(segment.vni);
        let tag = tag_of(stack, segment);
        // A bridge has one row for a MAC. That of a NIC that is here is its port's, also for the
        // moment until EVPN has taken it over from the host that it came from.
        let here = tap::macs_here(desired, stack, segment, evi);
        let uplink = Uplink::of(stack, segment, filtering, desired.transport).link;
        let kernel = desired.transport == Transport::Kernel;
        let flood = evi.flood.iter().filter(|(of, _)| kernel && *of == tag);
        for (_, vtep) in flood {
            let target = FdbTarget::Vtep(*vtep);
            let state = FdbState::ExternLearned;
            let row = FdbRow {
                dev: tunnel.clone(),
                mac: MacAddr::ZERO,
                target,
                state,
            };
            self.fdb.insert(row, subject);
        }
        let (own_macs, own_addresses) = anycast_in(desired.routers, segment.subnet);
        let macs = evi.macs.iter().filter(|((of, _), _)| *of == tag);
        for ((_, mac), vtep) in macs.filter(|((_, mac), _)| !own_macs.contains(mac)) {
            let vtep = match self.behind.entry((tunnel.clone(), *mac)) {
                Entry::Vacant(entry) => entry.insert(*vtep),
                Entry::Occupied(entry) => &*entry.into_mut(),
            };
            let to_tunnel = (
                uplink.clone(),
                FdbTarget::Bridge(filtering.then_some(segment.vlan)),
            );
            let to_tunnel = (!here.contains(mac)).then_some(to_tunnel);
            let to_vtep = kernel.then(|| (tunnel.clone(), FdbTarget::Vtep(*vtep)));
            for (dev, target) in to_vtep.into_iter().chain(to_tunnel) {
                let row = FdbRow {
                    dev,
                    mac: *mac,
                    target,
                    state: FdbState::ExternLearned,
                };
                self.fdb.insert(row, subject);
            }
        }
        let holder = neighbour_holder(segment, filtering, vlan_device).filter(|_| kernel);
        let Some(holder) = holder else {
            return;
        };
        let of_tag = evi.neighbours.iter().filter(|((of, _), _)| *of == tag);
        let of_tag =
            of_tag.filter(|((_, ip), mac)| !own_addresses.contains(ip) && !own_macs.contains(*mac));
        for ((_, ip), mac) in of_tag.filter(|((_, ip), _)| vlan_device || ip.is_ipv4()) {
            let row = Neighbour {
                dev: holder.clone(),
                ip: *ip,
                mac: *mac,
                ours: true,
                remote: true,
                router: ip.is_ipv6() && evi.routers.contains(&(tag, *ip)),
            };
            self.neighbours
                .insert((holder.clone(), *ip), (row, subject));
        }
    }
}

/// Where neighbour rows of a segment are. Where the kernel filters VLANs it looks for a neighbour
/// on the VLAN's own device; where it does not, on the bridge, whose IPv6 is off and which
/// therefore takes no ND rows.
fn neighbour_holder(segment: &Segment, filtering: bool, vlan_device: bool) -> Option<IfName> {
    match (filtering, vlan_device) {
        (true, true) => Some(OwnedName::vlan_device(segment.subnet)),
        (true, false) => None,
        (false, _) => Some(OwnedName::subnet_bridge(segment.subnet)),
    }
}

/// The Ethernet Tag of a segment's routes.
pub(crate) fn tag_of(stack: &Stack, segment: &Segment) -> Tag {
    (stack.encoding == Encoding::VlanAwareBundle).then_some(segment.vlan)
}

/// MACs of the legs in a subnet of routers that run here.
fn legs_in(routers: &[Arc<RouterConfig>], subnet: SubnetId) -> impl Iterator<Item = MacAddr> {
    let legs = routers.iter().filter(|router| !router.prepared);
    let legs = legs.flat_map(|router| &router.legs);
    legs.filter(move |leg| leg.subnet == subnet)
        .map(|leg| leg.mac)
}

/// What an anycast gateway has in a subnet, and nobody elsewhere may claim.
fn anycast_in(
    routers: &[Arc<RouterConfig>],
    subnet: SubnetId,
) -> (BTreeSet<MacAddr>, BTreeSet<IpAddr>) {
    let routers = routers.iter().filter(|router| router.anycast);
    let legs = routers.flat_map(|router| &router.legs);
    let legs = legs.filter(|leg| leg.subnet == subnet);
    let of = |leg: &model::RouterLeg| {
        let addresses = leg.addresses.iter().map(IpNet::addr);
        let link_local = IpAddr::V6(leg.mac.link_local());
        (leg.mac, addresses.chain([link_local]).collect::<Vec<_>>())
    };
    let (macs, addresses): (BTreeSet<_>, Vec<_>) = legs.map(of).unzip();
    (macs, addresses.into_iter().flatten().collect())
}

/// True if frames to the NIC go out of its port: it is in use here, and no other host has won it.
fn is_here(stack: &Stack, segment: &Segment, port: &Port, forwarding: &Forwarding) -> bool {
    let evi = forwarding.evis.get(&segment.vni);
    let key = (tag_of(stack, segment), port.mac);
    port.role != PortRole::Standby && !evi.is_some_and(|evi| is_away(port, evi, key))
}

/// True if another host has won a NIC that is in use here. Of one that leaves, any row says so.
pub(crate) fn is_away(port: &Port, evi: &EviForwarding, key: (Tag, MacAddr)) -> bool {
    evi.lost.contains(&key) || (port.role == PortRole::Leaving && evi.macs.contains_key(&key))
}

/// The bridge that a segment's ports hang on.
pub(crate) fn segment_bridge(stack: &Stack, segment: &Segment, filtering: bool) -> IfName {
    if filtering {
        OwnedName::vpc_bridge(stack.vpc)
    } else {
        OwnedName::subnet_bridge(segment.subnet)
    }
}

const fn tunnel_flags(neigh_suppress: bool, isolated: bool) -> BridgePortFlags {
    BridgePortFlags {
        isolated,
        learning: false,
        unicast_flood: true,
        neigh_suppress,
    }
}

fn access(segment: &Segment, filtering: bool) -> BTreeMap<VlanId, VlanMembership> {
    filtering
        .then_some((segment.vlan, VlanMembership::Access))
        .into_iter()
        .collect()
}

/// What the NIC may send; nothing while it is not in use here.
fn guard(segment: &Segment, port: &Port) -> Guard {
    if port.role == PortRole::Standby {
        return Guard::default();
    }
    let link_local = IpAddr::V6(port.mac.link_local());
    let has_v6 = port.addresses.iter().any(IpAddr::is_ipv6);
    Guard {
        macs: BTreeSet::from([port.mac]),
        addresses: port
            .addresses
            .iter()
            .copied()
            .chain(has_v6.then_some(link_local))
            .collect(),
        behind: IpNet::aggregate(&port.behind).into_iter().collect(),
        service: if segment.options.dhcp {
            dhcp::lone_server(segment).map_or(Service::Dhcp, Service::DhcpAt)
        } else {
            Service::None
        },
    }
}

fn with_prefixes(port: &Port, segment: &Segment) -> BTreeSet<IpNet> {
    port.addresses
        .iter()
        .filter_map(|address| {
            let length = match address {
                IpAddr::V4(_) => segment.v4?.prefix_len(),
                IpAddr::V6(_) => segment.v6?.prefix_len(),
            };
            IpNet::new(*address, length).ok()
        })
        .collect()
}

fn cannot_adopt(
    facts: &Facts,
    bridge: &IfName,
    port: &Port,
    ifname: &IfName,
    stamp: Stamp,
) -> Option<String> {
    let Some(link) = facts.links.get(ifname) else {
        return Some(format!(
            "NIC {}: interface {ifname} does not exist on this host: create it, or attach the NIC \
             to another",
            port.name
        ));
    };
    let ours = link.alias.as_deref() == Some(stamp.to_string().as_str());
    if let (false, Some(alias)) = (ours, &link.alias) {
        return Some(format!(
            "NIC {}: interface {ifname} carries the alias {alias:?}, so it may be somebody \
             else's: clear it (ip link set {ifname} alias '') to hand the interface over",
            port.name
        ));
    }
    match &link.port {
        Some(member) if member.bridge != *bridge && !ours => Some(format!(
            "NIC {}: interface {ifname} is a port of bridge {}: take it out (ip link set {ifname} \
             nomaster) to hand it over",
            port.name, member.bridge
        )),
        _ => None,
    }
}

/// A locally administered MAC for a device of ours, the same after every restart: a bridge that
/// changes its MAC makes its peers forget it.
fn device_mac(kind: u8, bits: u64) -> MacAddr {
    let b = bits.to_be_bytes();
    MacAddr([kind, b[3], b[4], b[5], b[6], b[7]])
}

fn tunnel_mac(local: IpAddr, vni: Vni) -> MacAddr {
    let [.., a, b] = match local {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    };
    let [_, c, d, e] = vni.get().to_be_bytes();
    MacAddr([0x0e, a, b, c, d, e])
}
