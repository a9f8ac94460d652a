//! Routers: their ports on the host, and what is inside of their namespaces.

use super::{
    Facts, Membership, NIC_FLAGS, Problem, Want, WantLink, What, access, neighbour_holder,
    segment_bridge,
};
use super::{tap, transit};
use crate::router::{Fingerprint, Hop, MAIN_TABLE, NextHop, Route, RouteRule, RouterFirewall, Way};
use crate::{
    BridgePortFlags, Desired, FdbRow, FdbState, FdbTarget, Guard, LinkKind, Neighbour, OwnedName,
    Service, Stamp, Subject,
};
use ipnet::IpNet;
use model::{
    Capability, Encoding, IfName, METADATA_V4, METADATA_V6, MacAddr, Mtu, NetnsName, PortForward,
    PortRange, Protocol, RouterConfig, RouterId, RouterLeg, Segment, SourceNat, Stack, SubnetId,
    Transport, Uplink, UplinkAddress, Via, VpcId,
};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

/// The outer leg's port on the operator's bridge: as any other port of it.
const OUTER_FLAGS: BridgePortFlags = BridgePortFlags {
    isolated: false,
    learning: true,
    unicast_flood: true,
    neigh_suppress: false,
};

/// The inside of a router's namespace, spelt out.
#[derive(Debug, Clone)]
pub(crate) struct WantRouter {
    pub(crate) id: RouterId,
    pub(crate) vpc: VpcId,
    pub(crate) netns: NetnsName,
    pub(crate) firewall: RouterFirewall,
    /// Of the rules.
    pub(crate) fingerprint: Fingerprint,
    pub(crate) links: BTreeMap<IfName, WantInside>,
    pub(crate) routes: BTreeSet<Route>,
    pub(crate) rules: BTreeSet<RouteRule>,
    /// The leg among the VPC's routers.
    pub(crate) transit: Option<IfName>,
    /// Those of the routes by it.
    pub(crate) next_hops: BTreeSet<NextHop>,
}

/// An interface inside.
#[derive(Debug, Clone)]
pub(crate) struct WantInside {
    pub(crate) mac: MacAddr,
    pub(crate) mtu: Mtu,
    pub(crate) addresses: BTreeSet<IpNet>,
    /// Its next hops have IPv6 addresses.
    pub(crate) next_hops: bool,
}

impl WantInside {
    pub(crate) fn has_ipv6(&self) -> bool {
        self.next_hops || self.addresses.iter().any(|a| matches!(a, IpNet::V6(_)))
    }
}

impl Want {
    pub(super) fn router(&mut self, desired: &Desired<'_>, facts: &Facts, config: &RouterConfig) {
        let subject = Subject::Router(config.id);
        let netns = OwnedName::router_netns(config.id);
        if self.netns.contains(&netns) {
            self.trouble(
                subject,
                true,
                format!(
                    "router {}: a NIC is attached to namespace {netns}, which is the router's: \
                     attach it to another",
                    config.name
                ),
            );
            return;
        }
        self.netns.insert(netns.clone());
        let mut router = WantRouter {
            id: config.id,
            vpc: config.vpc,
            netns,
            firewall: RouterFirewall::default(),
            fingerprint: RouterFirewall::default().fingerprint(),
            links: BTreeMap::new(),
            routes: BTreeSet::new(),
            rules: BTreeSet::new(),
            transit: None,
            next_hops: BTreeSet::new(),
        };
        let at = self.places.stacks.get(&config.vpc);
        let stack = at.map(|at| &desired.stacks[*at]);
        for leg in &config.legs {
            match stack.and_then(|stack| Some((stack, stack.segment(leg.subnet)?))) {
                Some((stack, segment)) => {
                    self.leg(desired, facts, &mut router, config, stack, segment, leg);
                }
                None => self.trouble(
                    subject,
                    true,
                    format!(
                        "router {} has a leg in subnet {}, of which this host has no segment",
                        config.name, leg.subnet
                    ),
                ),
            }
        }
        let outside = config
            .uplink
            .as_ref()
            .and_then(|uplink| self.outer(facts, &mut router, config, uplink));
        let transit = self.transit_leg(desired, facts, &mut router, config);
        for (subnet, address, mac) in transit::nics_here(desired, config) {
            let device = OwnedName::router_leg(subnet);
            if router.links.contains_key(&device) {
                router.next_hops.insert(NextHop {
                    device,
                    address,
                    mac,
                });
            }
        }
        self.firewall(&mut router, config, outside.as_ref());
        if let (Some(uplink), Some(outside)) = (&config.uplink, &outside) {
            let guard = guard(
                uplink.mac,
                outside.answers(&router.firewall).map(|ip| ip.addr()),
            );
            let name = OwnedName::router_outer(config.id);
            if let Some(link) = self.links.get_mut(&name) {
                link.guard = Some(guard);
            }
            let addresses = outside.answers(&router.firewall).collect();
            if let Some(inside) = router.links.get_mut(&name) {
                inside.addresses = addresses;
            }
        }
        let others = match transit {
            Some(transit) => {
                let beside = self.places.routers.get(&transit.vni);
                let beside = beside
                    .into_iter()
                    .flatten()
                    .map(|at| desired.routers[*at].as_ref());
                transit::ways(desired, &mut router, config, transit, beside)
            }
            None => BTreeMap::new(),
        };
        self.routes(&mut router, config, outside.as_ref(), others);
        router.fingerprint = router.firewall.fingerprint();
        self.routers.push(Arc::new(router));
    }

    pub(super) fn trouble(&mut self, subject: Subject, blocks: bool, message: String) {
        self.problems.push(Problem {
            subject,
            message,
            blocks,
        });
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "a leg is where all of these meet"
    )]
    fn leg(
        &mut self,
        desired: &Desired<'_>,
        facts: &Facts,
        router: &mut WantRouter,
        config: &RouterConfig,
        stack: &Stack,
        segment: &Segment,
        leg: &RouterLeg,
    ) {
        let filtering = facts.capabilities.contains(&Capability::VlanFiltering);
        let subject = Subject::Router(config.id);
        let name = OwnedName::router_leg(leg.subnet);
        if self.links.contains_key(&name) {
            let message = format!(
                "router {} has a leg in subnet {}, which another leg on this host is in already: \
                 attach a subnet to one router",
                config.name, segment.name
            );
            self.trouble(subject, true, message);
            return;
        }
        let row = FdbRow {
            dev: name.clone(),
            mac: leg.mac,
            target: FdbTarget::Bridge(filtering.then_some(segment.vlan)),
            state: FdbState::Static,
        };
        if !config.prepared {
            self.fdb.insert(row, subject);
        }
        let addresses = leg.addresses.iter().map(IpNet::addr);
        let metadata = metadata_addresses(leg);
        let firewall = &mut router.firewall;
        let at_leg = |ip| (name.clone(), ip);
        firewall.resolvers.extend(addresses.clone().map(at_leg));
        firewall
            .metadata
            .extend(metadata.iter().copied().map(at_leg));
        // An anycast gateway is nobody's business elsewhere: with its row there no question for it gets
        // into the tunnel.
        let link_local = [IpAddr::V6(leg.mac.link_local())];
        let unheard = metadata.iter().copied().chain(link_local);
        let unheard = unheard.filter(|_| config.anycast);
        let all: Vec<IpAddr> = addresses.clone().chain(unheard).collect();
        let kernel = desired.transport == Transport::Kernel;
        if !kernel && !config.prepared {
            let domain = tap::domain_of(stack, segment);
            for ip in &all {
                self.address_here(subject, domain, *ip, leg.mac, ip.is_ipv6());
            }
        }
        let seen = config.anycast || (desired.local_neighbours && !config.prepared);
        if kernel && seen && stack.encoding == Encoding::VlanBased {
            let vlan_device = filtering && facts.capabilities.contains(&Capability::VlanDevices);
            if let Some(holder) = neighbour_holder(segment, filtering, vlan_device) {
                for ip in all.into_iter().filter(|ip| vlan_device || ip.is_ipv4()) {
                    let row = Neighbour {
                        dev: holder.clone(),
                        ip,
                        mac: leg.mac,
                        ours: true,
                        remote: false,
                        router: ip.is_ipv6(),
                    };
                    self.neighbours.insert((holder.clone(), ip), (row, subject));
                }
            }
        }
        let link = WantLink {
            subject,
            stamp: Stamp::Router(config.id),
            what: What::RouterPort {
                netns: router.netns.clone(),
                mac: leg.mac,
            },
            mtu: leg.mtu,
            membership: Some(Membership {
                bridge: segment_bridge(stack, segment, filtering),
                flags: BridgePortFlags {
                    isolated: config.anycast,
                    ..NIC_FLAGS
                },
                vlans: Some(access(segment, filtering)),
            }),
            guard: Some(guard(leg.mac, addresses.chain(metadata.iter().copied()))),
        };
        self.links.insert(name.clone(), link);
        let inside = WantInside {
            mac: leg.mac,
            mtu: leg.mtu,
            addresses: (leg.addresses.iter().copied())
                .chain(metadata.into_iter().map(IpNet::from))
                .collect(),
            next_hops: false,
        };
        router.links.insert(name, inside);
    }

    /// The outer leg, if the host has its bridge.
    fn outer(
        &mut self,
        facts: &Facts,
        router: &mut WantRouter,
        config: &RouterConfig,
        uplink: &Uplink,
    ) -> Option<Outside> {
        let subject = Subject::Router(config.id);
        let (router_name, bridge) = (&config.name, &uplink.bridge);
        let there = facts.links.get(bridge);
        let is_bridge = there.is_some_and(|link| matches!(link.kind, LinkKind::Bridge { .. }));
        let ours = there.is_some_and(|link| crate::plan::stamp_of(link).is_some());
        let refusal = match (there, is_bridge, ours) {
            (None, ..) => Some("does not exist on this host: create it"),
            (_, false, _) => Some("is not a bridge: name one that leads to the outside"),
            (_, _, true) => Some("is a VPC's own: name one that leads to the outside"),
            _ => None,
        };
        if let Some(refusal) = refusal {
            let message = format!("router {router_name} has no way out: {bridge} {refusal}");
            self.trouble(subject, false, message);
            return None;
        }
        if there.is_some_and(|link| !link.up) {
            let message =
                format!("router {router_name} has no way out: {bridge} is down: bring it up");
            self.trouble(subject, false, message);
        }
        let (addresses, gateways) = match &uplink.address {
            UplinkAddress::Static(addresses) => (addresses.clone(), uplink.gateways.clone()),
            // It is asked for by this leg; nothing else leaves by it before there is one.
            UplinkAddress::Dhcp => (Vec::new(), Vec::new()),
        };
        let of_bridge = there.and_then(|link| Mtu::new(link.mtu.min(65_535)).ok())?;
        let mtu = uplink.mtu.unwrap_or(of_bridge);
        let name = OwnedName::router_outer(config.id);
        let link = WantLink {
            subject,
            stamp: Stamp::Router(config.id),
            what: What::RouterPort {
                netns: router.netns.clone(),
                mac: uplink.mac,
            },
            mtu,
            membership: Some(Membership {
                bridge: bridge.clone(),
                flags: OUTER_FLAGS,
                vlans: None,
            }),
            guard: Some(guard(uplink.mac, addresses.iter().map(IpNet::addr))),
        };
        self.links.insert(name.clone(), link);
        let inside = WantInside {
            mac: uplink.mac,
            mtu,
            addresses: addresses.iter().copied().collect(),
            next_hops: false,
        };
        router.links.insert(name.clone(), inside);
        Some(Outside {
            device: name,
            addresses,
            gateways,
        })
    }

    fn firewall(
        &mut self,
        router: &mut WantRouter,
        config: &RouterConfig,
        outside: Option<&Outside>,
    ) {
        let outer = OwnedName::router_outer(config.id);
        let legs = router
            .links
            .keys()
            .filter(|name| **name != outer && router.transit.as_ref() != Some(*name));
        router.firewall.legs = legs.cloned().collect();
        if config.anycast {
            router.firewall.untracked = router.links.keys().cloned().collect();
        }
        let legs = config.legs.iter().flat_map(|leg| &leg.addresses);
        let inside = legs.clone().map(IpNet::trunc);
        router.firewall.inside = inside.chain(config.inner.iter().copied()).collect();
        let by_leg = |via: Via| match via {
            Via::Address(gateway) => legs.clone().any(|net| net.contains(&gateway)),
            Via::Blackhole => false,
        };
        let routed = config.routes.iter().filter(|route| by_leg(route.via));
        router
            .firewall
            .inside
            .extend(routed.map(|route| route.prefix));
        let Some(outside) = outside else {
            return;
        };
        router.firewall.outer = Some(outside.device.clone());
        // All that is inside is behind other routers.
        if !config.inner.is_empty() {
            router.firewall.turns_at.clone_from(&router.transit);
            let own = [outside.own(false), outside.own(true)];
            router.firewall.turns_as = own.into_iter().flatten().collect();
        }
        let nat = &config.nat;
        let translated = |ip: &IpAddr| ip.is_ipv4() || nat.source_v6;
        let sources: Vec<IpAddr> = match &nat.source {
            None => Vec::new(),
            Some(SourceNat::Masquerade) => [outside.own(false), outside.own(true)]
                .into_iter()
                .flatten()
                .collect(),
            Some(SourceNat::Addresses(addresses)) => addresses.clone(),
        };
        router.firewall.sources = sources.into_iter().filter(translated).collect();
        for one in &nat.public {
            if one.public == one.private {
                router.firewall.open.insert(one.private);
                continue;
            }
            let held = *router
                .firewall
                .public
                .entry(one.public)
                .or_insert(one.private);
            if held != one.private {
                let message = format!(
                    "router {}: public address {} stands for two inner addresses: give each its own",
                    config.name, one.public
                );
                self.trouble(Subject::Router(config.id), false, message);
            }
        }
        for forward in &nat.forwards {
            self.forward(router, config, outside, forward);
        }
    }

    fn forward(
        &mut self,
        router: &mut WantRouter,
        config: &RouterConfig,
        outside: &Outside,
        forward: &PortForward,
    ) {
        let subject = Subject::Router(config.id);
        let Some(public) = forward.public.or_else(|| outside.own(forward.to.is_ipv6())) else {
            let message = format!(
                "router {}: ports {} {} lead to {}, but the router has no address of that family \
                 outside",
                config.name, forward.protocol, forward.ports, forward.to
            );
            self.trouble(subject, false, message);
            return;
        };
        let key = (public, forward.protocol, forward.ports);
        let overlaps = |(ip, protocol, ports): &(IpAddr, Protocol, PortRange)| {
            (*ip, *protocol) == (public, forward.protocol) && ports.overlaps(&forward.ports)
        };
        // Those that are there do not overlap each other: only the nearest can.
        let there = &router.firewall.forwards;
        let below = there.range(..=key).next_back();
        let nearest = below.into_iter().chain(there.range(key..).next());
        if nearest.map(|(key, _)| key).any(overlaps) {
            let message = format!(
                "router {}: ports {} {} of {public} lead to {}, but some of them lead elsewhere \
                 already: give it others",
                config.name, forward.protocol, forward.ports, forward.to
            );
            self.trouble(subject, false, message);
            return;
        }
        let to = (forward.to, forward.to_port);
        router.firewall.forwards.insert(key, to);
    }

    fn routes(
        &mut self,
        router: &mut WantRouter,
        config: &RouterConfig,
        outside: Option<&Outside>,
        others: BTreeMap<IpNet, Way>,
    ) {
        let mut for_all: BTreeMap<IpNet, Way> = BTreeMap::new();
        for route in config.routes.iter().filter(|route| route.table.is_none()) {
            if let Some(way) = self.way(config, outside, route.prefix, route.via) {
                for_all.insert(route.prefix, way);
            }
        }
        if let Some(outside) = outside {
            for (default, way) in outside.defaults() {
                for_all.entry(default).or_insert(way);
            }
        }
        for (prefix, way) in others {
            for_all.entry(prefix).or_insert(way);
        }
        for prefix in &config.inner {
            for_all.entry(*prefix).or_insert(Way::Blackhole);
        }
        let mut tables: BTreeMap<SubnetId, BTreeMap<IpNet, Way>> = BTreeMap::new();
        for route in &config.routes {
            let Some(subnet) = route.table else { continue };
            if let Some(way) = self.way(config, outside, route.prefix, route.via) {
                tables.entry(subnet).or_default().insert(route.prefix, way);
            }
        }
        let mut numbers = BTreeSet::new();
        for (subnet, own) in tables {
            let device = OwnedName::router_leg(subnet);
            if !router.links.contains_key(&device) {
                continue; // There is a problem with the leg already.
            }
            // The same whatever other tables there are.
            let mut table = 0x4000_0000 | (subnet.bits() & 0x3fff_ffff) as u32;
            while !numbers.insert(table) {
                table += 1;
            }
            // The whole view of that subnet, so that the longest prefix wins over all of it.
            let mut whole = for_all.clone();
            whole.extend(connected(router, config));
            whole.extend(own);
            for ipv6 in [false, true] {
                let device = device.clone();
                router.rules.insert(RouteRule {
                    device,
                    table,
                    ipv6,
                });
            }
            let whole = whole
                .into_iter()
                .map(|(prefix, way)| Route { table, prefix, way });
            router.routes.extend(whole);
        }
        let main = for_all.into_iter().map(|(prefix, way)| Route {
            table: MAIN_TABLE,
            prefix,
            way,
        });
        router.routes.extend(main);
    }

    fn way(
        &mut self,
        config: &RouterConfig,
        outside: Option<&Outside>,
        prefix: IpNet,
        via: Via,
    ) -> Option<Way> {
        let subject = Subject::Router(config.id);
        let legs = config.legs.iter().flat_map(|leg| &leg.addresses);
        if legs.clone().any(|address| address.trunc() == prefix) {
            let message = format!(
                "router {}: the route to {prefix} is not made: that is the prefix of a leg",
                config.name
            );
            self.trouble(subject, false, message);
            return None;
        }
        let gateway = match via {
            Via::Blackhole => return Some(Way::Blackhole),
            Via::Address(gateway) => gateway,
        };
        let of_leg = |leg: &RouterLeg| leg.addresses.iter().any(|net| net.contains(&gateway));
        let leg = config.legs.iter().find(|leg| of_leg(leg));
        let outer = outside.filter(|outside| outside.reaches(gateway));
        let device = leg
            .map(|leg| OwnedName::router_leg(leg.subnet))
            .or_else(|| outer.map(|outside| outside.device.clone()));
        if device.is_none() {
            let message = format!(
                "router {}: the route to {prefix} is not made: {gateway} is neither in one of its \
                 subnets nor outside of it",
                config.name
            );
            self.trouble(subject, false, message);
        }
        let hop = Hop {
            device: device?,
            gateway: Some(gateway),
        };
        Some(Way::Hops {
            hops: BTreeSet::from([hop]),
            source: None,
        })
    }
}

/// The metadata's addresses at a leg, of the families that it has. On the leg and not on the loopback, so
/// that a client without a route there, which looks for it on its link, finds it.
pub fn metadata_addresses(leg: &RouterLeg) -> Vec<IpAddr> {
    let of_family = |address: &IpAddr| {
        let mut legs = leg.addresses.iter();
        legs.any(|net| net.addr().is_ipv4() == address.is_ipv4())
    };
    let in_subnet = |address: &IpAddr| leg.addresses.iter().any(|net| net.contains(address));
    [IpAddr::V4(METADATA_V4), IpAddr::V6(METADATA_V6)]
        .into_iter()
        .filter(|address| of_family(address) && !in_subnet(address))
        .collect()
}

/// An outer leg that can be made.
struct Outside {
    device: IfName,
    addresses: Vec<IpNet>,
    gateways: Vec<IpAddr>,
}

impl Outside {
    /// The router's own address of a family.
    fn own(&self, ipv6: bool) -> Option<IpAddr> {
        let addresses = self.addresses.iter().map(IpNet::addr);
        let mut of_family = addresses.filter(|ip| ip.is_ipv6() == ipv6);
        of_family.next()
    }

    fn reaches(&self, ip: IpAddr) -> bool {
        self.gateways.contains(&ip) || self.addresses.iter().any(|net| net.contains(&ip))
    }

    /// All addresses that the outer leg has: its own, and each other that stands for somebody inside.
    fn answers<'a>(&'a self, firewall: &'a RouterFirewall) -> impl Iterator<Item = IpNet> + 'a {
        let of_forwards = firewall.forwards.keys().map(|(public, ..)| public);
        let others = firewall.public.keys().chain(&firewall.sources);
        let others: BTreeSet<IpAddr> = others.chain(of_forwards).copied().collect();
        let own = |ip: &IpAddr| self.addresses.iter().any(|net| net.addr() == *ip);
        let others = others.into_iter().filter(move |ip| !own(ip));
        self.addresses
            .iter()
            .copied()
            .chain(others.map(IpNet::from))
    }

    fn defaults(&self) -> Vec<(IpNet, Way)> {
        let mut defaults = Vec::new();
        for (default, ipv6) in [("0.0.0.0/0", false), ("::/0", true)] {
            let gateways = self.gateways.iter().filter(|ip| ip.is_ipv6() == ipv6);
            let hops: BTreeSet<Hop> = gateways
                .map(|gateway| Hop {
                    device: self.device.clone(),
                    gateway: Some(*gateway),
                })
                .collect();
            // Nothing of the family goes out that the router could not answer for.
            if !hops.is_empty() {
                let source = self.own(ipv6);
                let default = default.parse().expect("it is a prefix");
                defaults.push((default, Way::Hops { hops, source }));
            }
        }
        defaults
    }
}

/// The prefixes of a router's own interfaces.
fn connected(router: &WantRouter, config: &RouterConfig) -> BTreeMap<IpNet, Way> {
    let legs = config
        .legs
        .iter()
        .map(|leg| (OwnedName::router_leg(leg.subnet), leg.addresses.as_slice()));
    let outer = config.uplink.iter().filter_map(|uplink| {
        let UplinkAddress::Static(addresses) = &uplink.address else {
            return None;
        };
        Some((OwnedName::router_outer(config.id), addresses.as_slice()))
    });
    legs.chain(outer)
        .filter(|(device, _)| router.links.contains_key(device))
        .flat_map(|(device, addresses)| {
            addresses.iter().map(move |address| {
                let hop = Hop {
                    device: device.clone(),
                    gateway: None,
                };
                let way = Way::Hops {
                    hops: BTreeSet::from([hop]),
                    source: Some(address.addr()),
                };
                (address.trunc(), way)
            })
        })
        .collect()
}

/// What a router's port may send: any packet with its MAC, but ARP and ND as its own addresses only.
fn guard(mac: MacAddr, addresses: impl Iterator<Item = IpAddr>) -> Guard {
    let mut addresses: BTreeSet<IpAddr> = addresses.collect();
    if addresses.iter().any(IpAddr::is_ipv6) {
        addresses.insert(IpAddr::V6(mac.link_local()));
    }
    Guard {
        macs: BTreeSet::from([mac]),
        addresses,
        behind: BTreeSet::new(),
        service: Service::None,
    }
}
