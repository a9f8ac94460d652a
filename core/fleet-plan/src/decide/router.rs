//! Routers: legs, uplink, placement. Their rules are in `router_rules`.

use super::router_rules::check_count;
use super::{Work, limits};
use crate::intent::{Scope, missing, prefixes_of};
use crate::{
    CreateRouter, Outside, Refusal, Resource, RouterChange, RouterStep, StandbyHost,
    TRY_AGAIN_MILLIS, UpdateRouter,
};
use ipnet::IpNet;
use model::{
    ExternalNetwork, HostId, Kind, Leg, Object, ObjectId, OuterLeg, PublicTarget, Router, RouterId,
    RouterMove, RouterPlacement, Routing, SourcePolicy, Standby, Subnet, SubnetId, UnixMillis, Via,
    VpcId,
};
use std::collections::BTreeMap;

impl<'a> Work<'a> {
    pub(super) fn create_router(&mut self, create: CreateRouter) -> Result<Object, Refusal> {
        let owner = ObjectId::Vpc(create.vpc);
        self.intent.require(owner)?;
        self.check_name(Kind::Router, Scope::Routers(create.vpc), &create.name)?;
        let path = format!("{}/{}", self.intent.path(owner), create.name);
        if self.is_distributed(create.vpc)
            && let Some(other) = self.intent.routers_of_vpc(create.vpc).next()
        {
            return Err(Refusal::SecondWayOut {
                router: path,
                vpc: self.intent.path(owner),
                other: self.intent.path(ObjectId::Router(other.id)),
            });
        }
        let host = self
            .pick_route_host(&path, create.vpc, create.host, None, &BTreeMap::new())?
            .id;
        let placement = RouterPlacement { host, epoch: 1 };
        let standby = self.standby(&path, create.vpc, placement, create.standby)?;
        let mut router = Router {
            id: self.draw(RouterId::from_random, ObjectId::Router),
            vpc: create.vpc,
            name: create.name,
            legs: Vec::new(),
            uplink: None,
            routes: Vec::new(),
            source: SourcePolicy::None,
            source_v6: false,
            forwards: Vec::new(),
            placement,
            moving: None,
            standby,
            meta: self.new_meta(create.labels)?,
        };
        for subnet in create.subnets {
            self.attach(&mut router, &path, subnet)?;
        }
        if let Some(outside) = create.uplink {
            self.set_uplink(&mut router, &path, Some(outside))?;
        }
        self.set_source(&mut router, &path, create.source, create.source_v6)?;
        Ok(self.put(Object::Router(router)))
    }

    pub(super) fn update_router(&mut self, update: UpdateRouter) -> Result<Object, Refusal> {
        let id = ObjectId::Router(update.router);
        let Object::Router(mut router) = self.expected(id, update.expect)? else {
            return Err(missing(id));
        };
        let path = self.intent.path(id);
        let at = &mut router;
        match update.change {
            RouterChange::Attach(subnet) => self.attach(at, &path, subnet)?,
            RouterChange::Detach(subnet) => self.detach(at, &path, subnet)?,
            RouterChange::Uplink(outside) => self.set_uplink(at, &path, outside)?,
            RouterChange::AddRoute(route) => self.add_route(at, &path, route)?,
            RouterChange::DeleteRoute { table, prefix } => {
                self.delete_route(at, &path, table, prefix)?;
            }
            RouterChange::Source { policy, v6 } => self.set_source(at, &path, policy, v6)?,
            RouterChange::AddForward(forward) => self.add_forward(at, &path, forward)?,
            RouterChange::DeleteForward {
                protocol,
                public,
                ports,
            } => self.delete_forward(at, &path, protocol, public, ports)?,
            RouterChange::Place(host) => self.place(at, &path, host)?,
            RouterChange::Advance(step) => self.advance(at, step),
            RouterChange::Standby(wanted) => {
                let keeps = wanted == Some(StandbyHost::Any) && self.stands_by(at);
                if !keeps {
                    at.standby = self.standby(&path, at.vpc, at.placement, wanted)?;
                }
            }
            RouterChange::RenewStandby => self.renew_standby(at),
        }
        Ok(self.put_if_changed(Object::Router(router)))
    }

    fn attach(&mut self, router: &mut Router, path: &str, id: SubnetId) -> Result<(), Refusal> {
        let subnet = self.subnet(id)?;
        let name = self.intent.path(ObjectId::Subnet(id));
        if router.legs.iter().any(|leg| leg.subnet == id) {
            return Ok(());
        }
        if subnet.vpc != router.vpc {
            return Err(Refusal::LegElsewhere {
                subnet: name,
                router: path.to_owned(),
            });
        }
        if let Some(other) = self.intent.router_of_subnet(id) {
            return Err(Refusal::LegTaken {
                subnet: name,
                router: self.intent.path(ObjectId::Router(other.id)),
            });
        }
        if let Some(network) = self.network_of(router) {
            self.check_overlap(path, subnet, network)?;
        }
        if let Some(route) = router
            .routes
            .iter()
            .find(|route| prefixes_of(subnet).any(|prefix| prefix == route.prefix))
        {
            return Err(Refusal::RouterNeeds {
                router: path.to_owned(),
                action: format!("get a leg in subnet {name}"),
                reason: format!(
                    "it has a route for {}: delete that first (vpc route delete {path} {})",
                    route.prefix, route.prefix
                ),
            });
        }
        if let Some((other, prefix)) = self.route_elsewhere(subnet, Some(router.id)) {
            return Err(Refusal::RouterNeeds {
                router: path.to_owned(),
                action: format!("get a leg in subnet {name}"),
                reason: format!(
                    "router {other} has a route for {prefix}, so packets would go one way or the other: delete that first (vpc route delete {other} {prefix})"
                ),
            });
        }
        let count = router.legs.len() + 1;
        check_count(path, "legs", count, limits::LEGS_PER_ROUTER)?;
        let taken: Vec<_> = router.legs.iter().map(|leg| leg.mac).collect();
        let vpc = router.vpc;
        let mac = self.free_mac(&taken, |mac| Resource::Mac(vpc, mac));
        router.legs.push(Leg { subnet: id, mac });
        router.legs.sort();
        Ok(())
    }

    fn detach(&self, router: &mut Router, path: &str, id: SubnetId) -> Result<(), Refusal> {
        let subnet = self.subnet(id)?;
        let name = self.intent.path(ObjectId::Subnet(id));
        let Some(place) = router.legs.iter().position(|leg| leg.subnet == id) else {
            return Ok(());
        };
        let needs = |reason: String| Refusal::RouterNeeds {
            router: path.to_owned(),
            action: format!("leave subnet {name}"),
            reason,
        };
        let inside = |address| prefixes_of(subnet).any(|prefix| prefix.contains(&address));
        let by_it = |route: &&model::StaticRoute| {
            let via = matches!(route.via, Via::Address(address) if inside(address));
            via || route.table == Some(id)
        };
        if let Some(route) = router.routes.iter().find(by_it) {
            return Err(needs(format!(
                "its route for {} is by that subnet: delete it first (vpc route delete {path} {})",
                route.prefix, route.prefix
            )));
        }
        if let Some(forward) = router.forwards.iter().find(|forward| inside(forward.to)) {
            return Err(needs(format!(
                "port forward {} leads there: delete it first (vpc nat forward delete)",
                super::router_rules::forward_text(forward)
            )));
        }
        if let Some(public) = self.public_in(id) {
            return Err(needs(format!(
                "public address {public} stands for a NIC there: detach it first (vpc publicip detach {public})"
            )));
        }
        router.legs.remove(place);
        Ok(())
    }

    fn set_uplink(
        &mut self,
        router: &mut Router,
        path: &str,
        outside: Option<Outside>,
    ) -> Result<(), Refusal> {
        let network = outside.map(|outside| self.outside(outside)).transpose()?;
        let held = router.uplink.as_ref().map(|uplink| uplink.network);
        if held == network.map(|network| network.id) {
            return Ok(());
        }
        if held.is_some() {
            self.check_uplink_free(router, path)?;
        }
        router.uplink = None;
        let Some(network) = network else {
            return Ok(());
        };
        for leg in &router.legs {
            self.check_overlap(path, self.subnet(leg.subnet)?, network)?;
        }
        if self.is_distributed(router.vpc) {
            // It is the way out of all of them.
            let mut subnets = self.intent.subnets_of(router.vpc);
            subnets.try_for_each(|subnet| self.check_overlap(path, subnet, network))?;
        }
        if let Some(route) = router.routes.iter().find(|route| {
            route.table.is_none()
                && (route.prefix.prefix_len() == 0
                    || network.prefixes().any(|prefix| prefix == route.prefix))
        }) {
            return Err(Refusal::RouterNeeds {
                router: path.to_owned(),
                action: format!("get an uplink in external network {}", network.name),
                reason: format!(
                    "it has a route for {}: delete that first (vpc route delete {path} {})",
                    route.prefix, route.prefix
                ),
            });
        }
        let mut addresses = Vec::new();
        for v6 in [false, true] {
            if network
                .pools
                .iter()
                .any(|pool| pool.first().is_ipv6() == v6)
            {
                addresses.push(self.free_public(network, v6)?);
            }
        }
        if addresses.is_empty() && !network.dhcp {
            // Says that there is no pool.
            self.free_public(network, network.v4.is_none())?;
        }
        let id = network.id;
        router.uplink = Some(OuterLeg {
            network: id,
            mac: self.free_mac(&[], |mac| Resource::OuterMac(id, mac)),
            addresses,
        });
        Ok(())
    }

    /// That nothing needs the router's way out.
    fn check_uplink_free(&self, router: &Router, path: &str) -> Result<(), Refusal> {
        let needs = |reason: String| Refusal::RouterNeeds {
            router: path.to_owned(),
            action: "lose its uplink".to_owned(),
            reason,
        };
        if router.source != SourcePolicy::None {
            return Err(needs(format!(
                "its source translation needs it: end that first (vpc nat source {path} none)"
            )));
        }
        if let Some(forward) = router.forwards.first() {
            return Err(needs(format!(
                "port forward {} needs it: delete that first (vpc nat forward delete)",
                super::router_rules::forward_text(forward)
            )));
        }
        let network = self.network_of(router);
        if let Some(route) = router.routes.iter().find(|route| match route.via {
            Via::Address(address) => network.is_some_and(|n| n.prefix_of(address).is_some()),
            Via::Blackhole => false,
        }) {
            return Err(needs(format!(
                "its route for {} leads there: delete it first (vpc route delete {path} {})",
                route.prefix, route.prefix
            )));
        }
        let own = self
            .intent
            .public_ips_of(PublicTarget::Router(router.id))
            .next();
        let own = own.map(|public| self.intent.path(ObjectId::PublicIp(public.id)));
        let public = own.or_else(|| {
            router
                .legs
                .iter()
                .find_map(|leg| self.public_in(leg.subnet))
        });
        match public {
            None => Ok(()),
            Some(public) => Err(needs(format!(
                "public address {public} is reached by it: detach it first (vpc publicip detach {public})"
            ))),
        }
    }

    fn place(&self, router: &mut Router, path: &str, asked: Option<HostId>) -> Result<(), Refusal> {
        let here = router.placement.host;
        if asked == Some(here) {
            router.moving = None;
            return Ok(());
        }
        // What is made already is there sooner, and the standby knows the connections.
        let on_its_way = router.goes_to().filter(|host| self.takes_routers(*host));
        let stands_by = router.standby.host().filter(|_| self.stands_by(router));
        let mut tried = router.failed_on();
        let age = |since: UnixMillis| self.context.now.0.saturating_sub(since.0);
        tried.retain(|_, since| age(*since) <= TRY_AGAIN_MILLIS);
        let stands_by = stands_by.filter(|host| !tried.contains_key(host));
        let asked = asked.or(on_its_way).or(stands_by);
        let host = self.pick_route_host(path, router.vpc, asked, Some(here), &tried)?;
        if self.context.down.contains(&here) {
            self.run_on(router, host.id);
        } else if router.goes_to() != Some(host.id) {
            tried.remove(&host.id);
            router.moving = Some(RouterMove {
                to: host.id,
                since: self.context.now,
                taken_back: String::new(),
                tried,
            });
        }
        Ok(())
    }

    /// A move may have ended before what was worked out for it came.
    fn advance(&self, router: &mut Router, step: RouterStep) {
        match (router.goes_to(), step, &mut router.moving) {
            (Some(to), RouterStep::Switch, _) => self.run_on(router, to),
            (Some(_), RouterStep::Stay { reason }, Some(moving)) => moving.taken_back = reason,
            _ => {}
        }
    }

    fn run_on(&self, router: &mut Router, host: HostId) {
        let here = router.placement.host;
        router.placement = RouterPlacement {
            host,
            epoch: router.placement.epoch + 1,
        };
        router.moving = None;
        if router.standby == Standby::On(host) {
            // The two change places, if the other is fit.
            router.standby = Standby::On(here);
        }
        self.renew_standby(router);
    }

    fn takes_routers(&self, host: HostId) -> bool {
        let down = self.context.down.contains(&host);
        !down && self.intent.host(host).is_some_and(|host| !host.draining)
    }

    /// A public address of a NIC in the subnet, by its path.
    fn public_in(&self, subnet: SubnetId) -> Option<String> {
        let nics = self.intent.nics_of_subnet(subnet);
        let mut public =
            nics.filter_map(|nic| self.intent.public_ips_of(PublicTarget::Nic(nic.id)).next());
        let public = public.next()?;
        Some(self.intent.path(ObjectId::PublicIp(public.id)))
    }

    /// True if the VPC's subnets are routed on every host, and its router is nothing but the way out.
    pub(super) fn is_distributed(&self, vpc: VpcId) -> bool {
        let vpc = self.intent.vpc(vpc);
        vpc.is_some_and(|vpc| vpc.routing == Routing::Distributed)
    }

    /// The subnets of a VPC are apart by themselves; the network outside may be one of them.
    pub(super) fn check_overlap(
        &self,
        path: &str,
        subnet: &Subnet,
        network: &ExternalNetwork,
    ) -> Result<(), Refusal> {
        let overlap = |a: &IpNet, b: &IpNet| a.contains(b) || b.contains(a);
        for inner in prefixes_of(subnet) {
            if let Some(outer) = network.prefixes().find(|outer| overlap(&inner, outer)) {
                let vpc = self.intent.path(ObjectId::Vpc(subnet.vpc));
                let name = format!("{vpc}/{}", subnet.name);
                return Err(Refusal::LegOverlap {
                    router: path.to_owned(),
                    one: format!("subnet {name} ({inner})"),
                    other: format!("external network {} ({outer})", network.name),
                });
            }
        }
        Ok(())
    }

    pub(super) fn subnet(&self, id: SubnetId) -> Result<&'a Subnet, Refusal> {
        self.intent
            .subnet(id)
            .ok_or_else(|| missing(ObjectId::Subnet(id)))
    }

    pub(super) fn network_of(&self, router: &Router) -> Option<&'a ExternalNetwork> {
        self.intent.external(router.uplink.as_ref()?.network)
    }
}
