//! What a router does with packets: static routes, source translation, port forwards.

use super::{Work, limits};
use crate::Refusal;
use crate::intent::prefixes_of;
use ipnet::IpNet;
use model::{
    Encoding, ObjectId, PortForward, PortRange, Protocol, PublicTarget, Router, RouterId,
    SourcePolicy, StaticRoute, Subnet, SubnetId, Via,
};
use std::net::IpAddr;

impl Work<'_> {
    pub(super) fn add_route(
        &self,
        router: &mut Router,
        path: &str,
        route: StaticRoute,
    ) -> Result<(), Refusal> {
        let same =
            |other: &&StaticRoute| (other.table, other.prefix) == (route.table, route.prefix);
        if let Some(other) = router.routes.iter().find(same) {
            if *other == route {
                return Ok(());
            }
            return Err(Refusal::RouteTaken {
                router: path.to_owned(),
                prefix: route.prefix,
                other: via_text(&other.via),
            });
        }
        if let Some(table) = route.table {
            self.check_leg(router, path, table)?;
        }
        self.check_route(router, &route)
            .map_err(|reason| Refusal::Route {
                router: path.to_owned(),
                prefix: route.prefix,
                reason,
            })?;
        check_count(
            path,
            "routes",
            router.routes.len() + 1,
            limits::ROUTES_PER_ROUTER,
        )?;
        router.routes.push(route);
        router.routes.sort();
        Ok(())
    }

    fn check_route(&self, router: &Router, route: &StaticRoute) -> Result<(), String> {
        let prefix = route.prefix;
        if prefix.trunc() != prefix {
            return Err(format!(
                "it has bits set beyond /{}: did you mean {}?",
                prefix.prefix_len(),
                prefix.trunc()
            ));
        }
        if not_routable(prefix) {
            return Err(
                "it is loopback, link-local or multicast, which is not routed: choose another"
                    .to_owned(),
            );
        }
        if self.is_distributed(router.vpc) {
            self.check_way_outside(router, route)?;
        }
        if let Some(connected) = self.connected(router).find(|(net, _)| *net == prefix) {
            return Err(format!(
                "the router is in that prefix itself, by its leg in {}: choose a longer or a shorter one",
                connected.1
            ));
        }
        if self.is_told(router, route)
            && let Some((subnet, way)) = self.subnet_elsewhere(router, prefix)
        {
            return Err(format!(
                "it is subnet {subnet}, {way}, so packets would go one way or the other: choose a longer or a shorter one"
            ));
        }
        if prefix.prefix_len() == 0
            && route.table.is_none()
            && self.default_by_uplink(router, prefix)
        {
            return Err(
                "its uplink is the default route: take the uplink away, or name the subnet that the route is for with --table"
                    .to_owned(),
            );
        }
        match route.via {
            Via::Blackhole => Ok(()),
            Via::Address(via) => self.check_next_hop(router, prefix, via),
        }
    }

    /// True if the route is told to the other routers of the VPC. A bundle has no VNI for them to meet.
    pub(super) fn is_told(&self, router: &Router, route: &StaticRoute) -> bool {
        let vpc = self.intent.vpc(router.vpc);
        let meets = vpc.is_some_and(|vpc| vpc.encoding == Encoding::VlanBased);
        meets && route.table.is_none() && route.via != Via::Blackhole
    }

    /// The subnet of the VPC that is this prefix, if it is reached by others, and by whom that is.
    fn subnet_elsewhere(&self, router: &Router, prefix: IpNet) -> Option<(String, String)> {
        let mut subnets = self.intent.subnets_of(router.vpc);
        let subnet = subnets.find(|subnet| prefixes_of(subnet).any(|other| other == prefix))?;
        let way = match self.intent.router_of_subnet(subnet.id) {
            _ if self.is_distributed(router.vpc) => "which is routed on every host".to_owned(),
            Some(other) if other.id != router.id => {
                let other = self.intent.path(ObjectId::Router(other.id));
                format!("whose gateway is router {other}")
            }
            _ => return None,
        };
        Some((self.intent.path(ObjectId::Subnet(subnet.id)), way))
    }

    /// A route that one of the VPC's routers but `besides` tells the others, for just what is a prefix of the
    /// subnet's; and the path of that router.
    pub(super) fn route_elsewhere(
        &self,
        subnet: &Subnet,
        besides: Option<RouterId>,
    ) -> Option<(String, IpNet)> {
        let others = self.intent.routers_of_vpc(subnet.vpc);
        let mut others = others.filter(|other| Some(other.id) != besides);
        others.find_map(|other| {
            let route = other.routes.iter().find(|route| {
                self.is_told(other, route) && prefixes_of(subnet).any(|own| own == route.prefix)
            })?;
            Some((self.intent.path(ObjectId::Router(other.id)), route.prefix))
        })
    }

    /// A router that is only the way out has no leg where a subnet's own routes or neighbours could be.
    fn check_way_outside(&self, router: &Router, route: &StaticRoute) -> Result<(), String> {
        let inside = |via: &IpAddr| {
            let mut subnets = self.intent.subnets_of(router.vpc).flat_map(prefixes_of);
            subnets.any(|prefix| prefix.contains(via))
        };
        match (route.table, route.via) {
            (None, Via::Blackhole) => Ok(()),
            (None, Via::Address(via)) if !inside(&via) => Ok(()),
            _ => Err(
                "the VPC's subnets are routed on every host (routing distributed), and the router has no leg in them: name a neighbour outside, or use a VPC with routing central"
                    .to_owned(),
            ),
        }
    }

    fn check_next_hop(&self, router: &Router, prefix: IpNet, via: IpAddr) -> Result<(), String> {
        if via.is_ipv4() != prefix.addr().is_ipv4() {
            return Err(format!(
                "next hop {via} is of the other address family: give one of the same"
            ));
        }
        if self.own_addresses(router).any(|own| own == via) {
            return Err(format!(
                "next hop {via} is the router itself, so packets would go in a circle: name the neighbour that they are to go to"
            ));
        }
        let Some((leg, place)) = self.connected(router).find(|(net, _)| net.contains(&via)) else {
            let mut legs: Vec<IpNet> = self.connected(router).map(|(net, _)| net).collect();
            legs.sort();
            let legs: Vec<String> = legs.iter().map(ToString::to_string).collect();
            let legs = match legs.is_empty() {
                true => "none".to_owned(),
                false => legs.join(", "),
            };
            return Err(format!(
                "next hop {via} is on none of its legs ({legs}): name a neighbour that is"
            ));
        };
        let edge = via == leg.network() || (via.is_ipv4() && via == leg.broadcast());
        if edge && leg.max_prefix_len() - leg.prefix_len() > 1 {
            return Err(format!(
                "next hop {via} is no host's address in {place}: name a neighbour"
            ));
        }
        if prefix.contains(&via) && prefix.prefix_len() > leg.prefix_len() {
            return Err(format!(
                "its next hop {via} would be reached by the route itself, so packets would go in a circle: leave that address out of the prefix"
            ));
        }
        Ok(())
    }

    pub(super) fn delete_route(
        &self,
        router: &mut Router,
        path: &str,
        table: Option<SubnetId>,
        prefix: IpNet,
    ) -> Result<(), Refusal> {
        let is = |route: &StaticRoute| (route.table, route.prefix) == (table, prefix);
        let Some(place) = router.routes.iter().position(is) else {
            let of = match table {
                None => String::new(),
                Some(table) => {
                    let subnet = self.intent.path(ObjectId::Subnet(table));
                    format!(" in the table of subnet {subnet}")
                }
            };
            return Err(Refusal::NotThere {
                router: path.to_owned(),
                what: format!("route for {prefix}{of}"),
                list: format!("`vpc route list {path}`"),
            });
        };
        router.routes.remove(place);
        Ok(())
    }

    pub(super) fn set_source(
        &self,
        router: &mut Router,
        path: &str,
        policy: SourcePolicy,
        v6: bool,
    ) -> Result<(), Refusal> {
        let needs = |reason: String| Refusal::RouterNeeds {
            router: path.to_owned(),
            action: format!("translate sources ({policy})"),
            reason,
        };
        if policy != SourcePolicy::None && router.uplink.is_none() {
            return Err(needs(
                "it has no uplink: give it one with --uplink, or later with vpc router uplink"
                    .to_owned(),
            ));
        }
        let own = PublicTarget::Router(router.id);
        if policy == SourcePolicy::Addresses && self.intent.public_ips_of(own).next().is_none() {
            return Err(needs(format!(
                "it has no public address of its own: attach one first (vpc publicip attach NAME --router {path})"
            )));
        }
        router.source = policy;
        router.source_v6 = v6 && policy != SourcePolicy::None;
        Ok(())
    }

    pub(super) fn add_forward(
        &self,
        router: &mut Router,
        path: &str,
        forward: PortForward,
    ) -> Result<(), Refusal> {
        if router.forwards.contains(&forward) {
            return Ok(());
        }
        self.check_forward(router, path, &forward)
            .map_err(|reason| Refusal::Forward {
                router: path.to_owned(),
                forward: forward_text(&forward),
                reason,
            })?;
        let count = router.forwards.len() + 1;
        check_count(path, "port forwards", count, limits::FORWARDS_PER_ROUTER)?;
        router.forwards.push(forward);
        router.forwards.sort();
        Ok(())
    }

    fn check_forward(
        &self,
        router: &Router,
        path: &str,
        forward: &PortForward,
    ) -> Result<(), String> {
        let v4 = forward.to.is_ipv4();
        let Some(uplink) = &router.uplink else {
            return Err("the router has no uplink: give it one (vpc router uplink)".to_owned());
        };
        match forward.public {
            Some(public) => {
                let own = PublicTarget::Router(router.id);
                if !self
                    .intent
                    .public_ips_of(own)
                    .any(|ip| ip.address == public)
                {
                    return Err(format!(
                        "{public} is no public address of the router's own: attach it first (vpc publicip attach NAME --router {path})"
                    ));
                }
                if public.is_ipv4() != v4 {
                    return Err(format!(
                        "{public} is of the other address family than {}",
                        forward.to
                    ));
                }
            }
            None => {
                let by_dhcp = v4 && self.network_of(router).is_some_and(|n| n.dhcp);
                if !by_dhcp && !uplink.addresses.iter().any(|a| a.is_ipv4() == v4) {
                    return Err(
                        "the uplink has no address of that family: name a public address of the router's own"
                            .to_owned(),
                    );
                }
            }
        }
        let inside = router.legs.iter().any(|leg| {
            let subnet = self.intent.subnet(leg.subnet);
            subnet.is_some_and(|s| prefixes_of(s).any(|net| net.contains(&forward.to)))
        });
        if !inside || self.own_addresses(router).any(|own| own == forward.to) {
            return Err(format!(
                "{} is no neighbour on one of its legs: give an address in an attached subnet",
                forward.to
            ));
        }
        let length = forward.ports.last().get() - forward.ports.first().get();
        if forward.to_port.get().checked_add(length).is_none() {
            return Err("its ports inside would be above 65535: begin lower".to_owned());
        }
        let clash = router.forwards.iter().find(|other| {
            other.protocol == forward.protocol
                && other.public == forward.public
                && other.to.is_ipv4() == v4
                && other.ports.overlaps(&forward.ports)
        });
        match clash {
            None => Ok(()),
            Some(other) => Err(format!(
                "{} has those ports: delete it first (vpc nat forward delete), or choose others",
                forward_text(other)
            )),
        }
    }

    pub(super) fn delete_forward(
        &self,
        router: &mut Router,
        path: &str,
        protocol: Protocol,
        public: Option<IpAddr>,
        ports: PortRange,
    ) -> Result<(), Refusal> {
        let before = router.forwards.len();
        router
            .forwards
            .retain(|f| (f.protocol, f.public, f.ports) != (protocol, public, ports));
        if router.forwards.len() < before {
            return Ok(());
        }
        let of = public.map_or(String::new(), |public| format!(" of {public}"));
        Err(Refusal::NotThere {
            router: path.to_owned(),
            what: format!("port forward of {protocol} {ports}{of}"),
            list: format!("`vpc nat forward list {path}`"),
        })
    }

    fn check_leg(&self, router: &Router, path: &str, subnet: SubnetId) -> Result<(), Refusal> {
        self.subnet(subnet)?;
        if router.legs.iter().any(|leg| leg.subnet == subnet) {
            return Ok(());
        }
        Err(Refusal::NoLeg {
            router: path.to_owned(),
            subnet: self.intent.path(ObjectId::Subnet(subnet)),
        })
    }

    /// The prefixes that the router is in, each with the name of where that is.
    fn connected(&self, router: &Router) -> impl Iterator<Item = (IpNet, String)> {
        let legs = router
            .legs
            .iter()
            .filter_map(|leg| self.intent.subnet(leg.subnet));
        let legs = legs.flat_map(|subnet| {
            let name = format!("subnet {}", self.intent.path(ObjectId::Subnet(subnet.id)));
            prefixes_of(subnet).map(move |net| (net, name.clone()))
        });
        let outside = self.network_of(router).into_iter().flat_map(|network| {
            let name = format!("external network {}", network.name);
            network.prefixes().map(move |net| (net, name.clone()))
        });
        legs.chain(outside)
    }

    fn own_addresses(&self, router: &Router) -> impl Iterator<Item = IpAddr> {
        let legs = router
            .legs
            .iter()
            .filter_map(|leg| self.intent.subnet(leg.subnet));
        let gateways = legs.flat_map(|subnet| subnet.gateways().map(|net| net.addr()));
        let outer = router
            .uplink
            .iter()
            .flat_map(|uplink| uplink.addresses.clone());
        gateways.chain(outer)
    }

    fn default_by_uplink(&self, router: &Router, prefix: IpNet) -> bool {
        let v4 = prefix.addr().is_ipv4();
        self.network_of(router).is_some_and(|network| {
            (v4 && network.dhcp) || network.gateways.iter().any(|g| g.is_ipv4() == v4)
        })
    }
}

/// As people read it: `tcp 203.0.113.9:8080 to 10.4.1.2:80`.
pub(super) fn forward_text(forward: &PortForward) -> String {
    let public = match forward.public {
        None => String::new(),
        Some(public) => format!("{public}, "),
    };
    let (protocol, ports) = (forward.protocol, forward.ports);
    format!(
        "{protocol} {public}{ports} to {}, {}",
        forward.to, forward.to_port
    )
}

fn via_text(via: &Via) -> String {
    match via {
        Via::Address(address) => format!("via {address}"),
        Via::Blackhole => "a blackhole".to_owned(),
    }
}

/// Prefixes that no router forwards (RFC 6890).
fn not_routable(prefix: IpNet) -> bool {
    if prefix.prefix_len() == 0 {
        return false;
    }
    match prefix.addr() {
        IpAddr::V4(a) => {
            a.is_loopback() || a.is_link_local() || a.is_multicast() || a.octets()[0] == 0
        }
        IpAddr::V6(a) => a.is_loopback() || a.is_unicast_link_local() || a.is_multicast(),
    }
}

pub(super) fn check_count(
    path: &str,
    what: &'static str,
    count: usize,
    most: usize,
) -> Result<(), Refusal> {
    if count <= most {
        return Ok(());
    }
    Err(Refusal::TooMany {
        object: format!("router {path}"),
        what,
        count,
        most,
    })
}
