//! Routers, external networks and public addresses: requests to commands, objects to what clients see.

use crate::request::{
    DEFAULT_ACCOUNT, Reference, Unresolved, chosen, cidrs, expect, labels, set_labels,
};
use crate::state::State;
use api::{BadRequest, Field, list, parse, port_forward, v1};
use fleet_plan::{
    AttachPublicIp, Command, CreateExternal, CreatePublicIp, CreateRouter, Intent, Outside,
    Refusal, RouterChange, StandbyHost, UpdateRouter,
};
use ipnet::IpNet;
use model::{
    Condition, ExternalNetworkId, HostId, Kind, Mtu, Name, Nic, Object, ObjectId, PortForward,
    PortRange, Protocol, PublicIp, PublicTarget, Router, SourcePolicy, Standby, StaticRoute,
    SubnetId, Via,
};
use std::net::IpAddr;
use v1::update_router_request::Change;

/// A reference that may be left out, looked up.
fn looked_up<T>(
    reference: &Option<Reference>,
    look_up: impl Fn(&Reference) -> Result<T, Refusal>,
) -> Result<Option<T>, Refusal> {
    reference.as_ref().map(look_up).transpose()
}

fn optional_reference(
    field: Field<'_>,
    kind: Kind,
    wire: Option<v1::Ref>,
) -> Result<Option<Reference>, BadRequest> {
    match wire {
        None => Ok(None),
        given => Reference::new(field, kind, given).map(Some),
    }
}

fn outside(network: &Option<Reference>, intent: &Intent) -> Result<Outside, Refusal> {
    let id: Option<ExternalNetworkId> = looked_up(network, |network| network.external(intent))?;
    Ok(id.map_or(Outside::Only, Outside::Network))
}

fn network(field: Field<'_>, wire: v1::Outside) -> Result<Option<Reference>, BadRequest> {
    optional_reference(field.of("network"), Kind::External, wire.network)
}

fn standby(field: Field<'_>, wire: v1::StandbyHost) -> Result<Option<Reference>, BadRequest> {
    optional_reference(field.of("host"), Kind::Host, wire.host)
}

fn looked_up_standby(
    wanted: &Option<Option<Reference>>,
    intent: &Intent,
) -> Result<Option<StandbyHost>, Refusal> {
    let look_up = |host: &Option<Reference>| {
        let host = looked_up(host, |host: &Reference| host.host(intent))?;
        Ok(host.map_or(StandbyHost::Any, StandbyHost::Host))
    };
    wanted.as_ref().map(look_up).transpose()
}

fn source(field: Field<'_>, raw: i32) -> Result<SourcePolicy, BadRequest> {
    match raw {
        0 => Ok(SourcePolicy::None),
        raw => field.enumeration::<v1::SourcePolicy, SourcePolicy>(raw),
    }
}

pub(crate) fn create_router(wire: v1::CreateRouterRequest) -> Result<Unresolved, BadRequest> {
    let vpc = Reference::new(Field::root("vpc"), Kind::Vpc, wire.vpc)?;
    let name: Name = parse(Field::root("name"), &wire.name)?;
    let subnets = list(Field::root("subnets"), wire.subnets, 256, |field, wire| {
        Reference::new(field, Kind::Subnet, Some(wire))
    })?;
    let uplink = wire
        .uplink
        .map(|wire| network(Field::root("uplink"), wire))
        .transpose()?;
    let source = source(Field::root("source"), wire.source)?;
    let host = optional_reference(Field::root("host"), Kind::Host, wire.host)?;
    let standby = wire
        .standby
        .map(|wire| standby(Field::root("standby"), wire))
        .transpose()?;
    let labels = labels(Field::root("labels"), wire.labels)?;
    Ok(Box::new(move |intent| {
        let subnets = subnets.iter().map(|subnet| subnet.subnet(intent));
        let uplink = uplink.as_ref().map(|network| outside(network, intent));
        Ok(Command::CreateRouter(CreateRouter {
            vpc: vpc.vpc(intent)?,
            name: name.clone(),
            subnets: subnets.collect::<Result<Vec<SubnetId>, Refusal>>()?,
            uplink: uplink.transpose()?,
            source,
            source_v6: wire.source_v6,
            host: looked_up(&host, |host| host.host(intent))?,
            standby: looked_up_standby(&standby, intent)?,
            labels: labels.clone(),
        }))
    }))
}

/// A [`RouterChange`] whose references are still to be looked up.
enum Asked {
    Attach(Reference),
    Detach(Reference),
    Uplink(Option<Option<Reference>>),
    AddRoute(Option<Reference>, IpNet, Via),
    DeleteRoute(Option<Reference>, IpNet),
    Source(SourcePolicy, bool),
    AddForward(PortForward),
    DeleteForward(Protocol, Option<IpAddr>, PortRange),
    Place(Option<Reference>),
    Standby(Option<Option<Reference>>),
}

pub(crate) fn update_router(wire: v1::UpdateRouterRequest) -> Result<Unresolved, BadRequest> {
    let (object, version) = (wire.object, wire.resource_version);
    let change = wire
        .change
        .ok_or_else(|| Field::root("change").bad("it is missing: say what is to be different"))?;
    if let Change::Labels(set) = change {
        return set_labels(Kind::Router, object, version, Some(set));
    }
    let router = Reference::new(Field::root("object"), Kind::Router, object)?;
    let asked = asked(change)?;
    Ok(Box::new(move |intent| {
        Ok(Command::UpdateRouter(UpdateRouter {
            router: router.router(intent)?,
            expect: expect(version),
            change: asked.resolve(intent)?,
        }))
    }))
}

fn asked(change: Change) -> Result<Asked, BadRequest> {
    let subnet = |name, wire| Reference::new(Field::root(name), Kind::Subnet, Some(wire));
    Ok(match change {
        Change::Attach(wire) => Asked::Attach(subnet("attach", wire)?),
        Change::Detach(wire) => Asked::Detach(subnet("detach", wire)?),
        Change::Uplink(wire) => Asked::Uplink(
            wire.outside
                .map(|wire| network(Field::root("uplink").of("outside"), wire))
                .transpose()?,
        ),
        Change::AddRoute(wire) => {
            let field = Field::root("add_route");
            let (table, prefix) = route_key(field.of("key"), wire.key.unwrap_or_default())?;
            let via = match wire.via.as_str() {
                "" => Via::Blackhole,
                text => Via::Address(parse(field.of("via"), text)?),
            };
            Asked::AddRoute(table, prefix, via)
        }
        Change::DeleteRoute(wire) => {
            let (table, prefix) = route_key(Field::root("delete_route"), wire)?;
            Asked::DeleteRoute(table, prefix)
        }
        Change::Source(wire) => Asked::Source(
            source(Field::root("source").of("policy"), wire.policy)?,
            wire.v6,
        ),
        Change::AddForward(wire) => {
            Asked::AddForward(port_forward(Field::root("add_forward"), wire)?)
        }
        Change::DeleteForward(wire) => {
            let field = Field::root("delete_forward");
            let public = match wire.public.as_str() {
                "" => None,
                text => Some(parse(field.of("public"), text)?),
            };
            let protocol = field
                .of("protocol")
                .enumeration::<v1::TransportProtocol, Protocol>(wire.protocol)?;
            Asked::DeleteForward(protocol, public, parse(field.of("ports"), &wire.ports)?)
        }
        Change::Place(wire) => Asked::Place(optional_reference(
            Field::root("place").of("host"),
            Kind::Host,
            wire.host,
        )?),
        Change::Standby(wire) => Asked::Standby(
            wire.standby
                .map(|wire| standby(Field::root("standby").of("standby"), wire))
                .transpose()?,
        ),
        Change::Labels(_) => {
            return Err(Field::root("change").bad("labels are replaced alone"));
        }
    })
}

fn route_key(
    field: Field<'_>,
    wire: v1::update_router_request::RouteKey,
) -> Result<(Option<Reference>, IpNet), BadRequest> {
    let table = optional_reference(field.of("table"), Kind::Subnet, wire.table)?;
    Ok((table, parse(field.of("prefix"), &wire.prefix)?))
}

impl Asked {
    fn resolve(&self, intent: &Intent) -> Result<RouterChange, Refusal> {
        let table = |table| looked_up(table, |subnet| subnet.subnet(intent));
        Ok(match self {
            Self::Attach(subnet) => RouterChange::Attach(subnet.subnet(intent)?),
            Self::Detach(subnet) => RouterChange::Detach(subnet.subnet(intent)?),
            Self::Uplink(network) => {
                let network = network.as_ref().map(|network| outside(network, intent));
                RouterChange::Uplink(network.transpose()?)
            }
            Self::AddRoute(subnet, prefix, via) => RouterChange::AddRoute(StaticRoute {
                table: table(subnet)?,
                prefix: *prefix,
                via: *via,
            }),
            Self::DeleteRoute(subnet, prefix) => RouterChange::DeleteRoute {
                table: table(subnet)?,
                prefix: *prefix,
            },
            Self::Source(policy, v6) => RouterChange::Source {
                policy: *policy,
                v6: *v6,
            },
            Self::AddForward(forward) => RouterChange::AddForward(*forward),
            Self::DeleteForward(protocol, public, ports) => RouterChange::DeleteForward {
                protocol: *protocol,
                public: *public,
                ports: *ports,
            },
            Self::Place(host) => {
                RouterChange::Place(looked_up(host, |host: &Reference| host.host(intent))?)
            }
            Self::Standby(wanted) => RouterChange::Standby(looked_up_standby(wanted, intent)?),
        })
    }
}

pub(crate) fn create_external(
    wire: v1::CreateExternalNetworkRequest,
) -> Result<Unresolved, BadRequest> {
    let create = CreateExternal {
        name: parse(Field::root("name"), &wire.name)?,
        bridge: parse(Field::root("bridge"), &wire.bridge)?,
        cidrs: cidrs(Field::root("cidrs"), wire.cidrs)?,
        gateways: list(Field::root("gateways"), wire.gateways, 64, |field, text| {
            parse(field, &text)
        })?,
        pools: list(Field::root("pools"), wire.pools, 64, |field, text| {
            parse(field, &text)
        })?,
        dhcp: wire.dhcp,
        mtu: chosen::<Mtu, u32>(Field::root("mtu"), wire.mtu)?,
        labels: labels(Field::root("labels"), wire.labels)?,
    };
    Ok(Box::new(move |_| {
        Ok(Command::CreateExternal(create.clone()))
    }))
}

pub(crate) fn create_public_ip(wire: v1::CreatePublicIpRequest) -> Result<Unresolved, BadRequest> {
    let account = match wire.account {
        None => Reference::Path(Kind::Account, DEFAULT_ACCOUNT.to_owned()),
        given => Reference::new(Field::root("account"), Kind::Account, given)?,
    };
    let name: Name = parse(Field::root("name"), &wire.name)?;
    let network = network(Field::root("network"), wire.network.unwrap_or_default())?;
    let address: Option<IpAddr> = match wire.address.as_str() {
        "" => None,
        text => Some(parse(Field::root("address"), text)?),
    };
    let labels = labels(Field::root("labels"), wire.labels)?;
    Ok(Box::new(move |intent| {
        Ok(Command::CreatePublicIp(CreatePublicIp {
            account: account.account(intent)?,
            name: name.clone(),
            network: outside(&network, intent)?,
            address,
            v6: wire.v6,
            labels: labels.clone(),
        }))
    }))
}

pub(crate) fn attach_public_ip(wire: v1::AttachPublicIpRequest) -> Result<Unresolved, BadRequest> {
    use v1::attach_public_ip_request::Target;
    let public = Reference::new(Field::root("object"), Kind::PublicIp, wire.object)?;
    let target = match wire.target {
        None => None,
        Some(Target::Nic(wire)) => Some(Reference::new(Field::root("nic"), Kind::Nic, Some(wire))?),
        Some(Target::Router(wire)) => Some(Reference::new(
            Field::root("router"),
            Kind::Router,
            Some(wire),
        )?),
    };
    Ok(Box::new(move |intent| {
        let target = looked_up(&target, |target| match target.resolve(intent)? {
            ObjectId::Nic(nic) => Ok(PublicTarget::Nic(nic)),
            ObjectId::Router(router) => Ok(PublicTarget::Router(router)),
            other => Err(target.not_a(Kind::Nic, other)),
        })?;
        Ok(Command::AttachPublicIp(AttachPublicIp {
            public: public.public_ip(intent)?,
            expect: expect(wire.resource_version),
            target,
        }))
    }))
}

impl State {
    pub(crate) fn router_view(&self, router: &Router, status: Option<v1::NicStatus>) -> v1::Router {
        let host = router.placement.host;
        v1::Router {
            id: router.id.to_string(),
            name: router.name.to_string(),
            path: self.path(&Object::Router(router.clone())),
            vpc_id: router.vpc.to_string(),
            legs: router
                .legs
                .iter()
                .map(|leg| self.leg_view(router, leg))
                .collect(),
            uplink: router.uplink.as_ref().map(|leg| self.outer_view(leg)),
            routes: router.routes.iter().map(Into::into).collect(),
            source: v1::SourcePolicy::from(router.source).into(),
            source_v6: router.source_v6,
            forwards: router.forwards.iter().map(Into::into).collect(),
            public_ips: self.routed_public_ips(router),
            host_id: host.to_string(),
            host_name: self.intent.path(ObjectId::Host(host)),
            epoch: router.placement.epoch,
            meta: Some((&router.meta).into()),
            status,
            figures: self
                .hosts
                .get(&host)
                .and_then(|known| known.figures.get(&router.id).cloned()),
            moving: router.moving.as_ref().map(|moving| v1::router::Move {
                host_id: moving.to.to_string(),
                host_name: self.intent.path(ObjectId::Host(moving.to)),
                since_unix_ms: moving.since.0,
                taken_back: moving.taken_back.clone(),
            }),
            standby: (!router.standby.is_off()).then(|| self.standby_view(router.standby)),
        }
    }

    fn standby_view(&self, standby: Standby) -> v1::router::Standby {
        let host = standby.host();
        let name = |host| self.intent.path(ObjectId::Host(host));
        v1::router::Standby {
            host_id: host.map_or(String::new(), |host| host.to_string()),
            host_name: host.map_or(String::new(), name),
        }
    }

    fn leg_view(&self, router: &Router, leg: &model::Leg) -> v1::router::Leg {
        let subnet = self.intent.subnet(leg.subnet);
        // What NICs see of it: a VPC that is routed on every host has one gateway.
        let vpc = self.intent.vpc(router.vpc);
        let gateway = vpc.and_then(model::Vpc::gateway_mac);
        v1::router::Leg {
            subnet_id: leg.subnet.to_string(),
            subnet_path: self.intent.path(ObjectId::Subnet(leg.subnet)),
            mac: gateway.unwrap_or(leg.mac).to_string(),
            addresses: subnet
                .into_iter()
                .flat_map(|subnet| subnet.gateways().map(|net| net.to_string()))
                .collect(),
            mtu: subnet.map_or(0, |subnet| subnet.mtu.get().into()),
        }
    }

    fn outer_view(&self, leg: &model::OuterLeg) -> v1::router::OuterLeg {
        let network = self.intent.external(leg.network);
        let with_length = |address: &IpAddr| match network.and_then(|n| n.prefix_of(*address)) {
            Some(prefix) => format!("{address}/{}", prefix.prefix_len()),
            None => address.to_string(),
        };
        v1::router::OuterLeg {
            network_id: leg.network.to_string(),
            network_name: self.intent.path(ObjectId::External(leg.network)),
            mac: leg.mac.to_string(),
            addresses: leg.addresses.iter().map(with_length).collect(),
            dhcp: network.is_some_and(|network| network.dhcp),
            gateways: network
                .into_iter()
                .flat_map(|network| network.gateways.iter().map(ToString::to_string))
                .collect(),
            bridge: network.map_or(String::new(), |network| network.bridge.to_string()),
        }
    }

    fn routed_public_ips(&self, router: &Router) -> Vec<v1::router::RoutedPublicIp> {
        let intent = &self.intent;
        let own = intent
            .public_ips_of(PublicTarget::Router(router.id))
            .map(|public| self.routed(public, None));
        let nics = router
            .legs
            .iter()
            .flat_map(|leg| intent.nics_of_subnet(leg.subnet));
        let of_nics = nics.flat_map(|nic| {
            intent
                .public_ips_of(PublicTarget::Nic(nic.id))
                .map(move |public| self.routed(public, Some(nic)))
        });
        own.chain(of_nics).collect()
    }

    fn routed(&self, public: &PublicIp, nic: Option<&Nic>) -> v1::router::RoutedPublicIp {
        let same_family = |a: &&IpAddr| a.is_ipv4() == public.address.is_ipv4();
        let private = nic.and_then(|nic| nic.addresses.iter().find(same_family));
        let path = |nic: &Nic| self.intent.path(ObjectId::Nic(nic.id));
        v1::router::RoutedPublicIp {
            id: public.id.to_string(),
            path: self.intent.path(ObjectId::PublicIp(public.id)),
            address: public.address.to_string(),
            nic_id: nic.map_or(String::new(), |nic| nic.id.to_string()),
            nic_path: nic.map_or(String::new(), path),
            private: private.map_or(String::new(), ToString::to_string),
        }
    }

    pub(crate) fn router_status(&self, router: &Router) -> v1::NicStatus {
        let host = router.placement.host;
        let generation = self.router_generations.get(&(host, router.id)).copied();
        let conditions: Vec<&Condition> = self.router_conditions(router, host).collect();
        self.made_status(host, generation, &conditions)
    }

    pub(crate) fn router_conditions<'a>(
        &'a self,
        router: &'a Router,
        host: HostId,
    ) -> impl Iterator<Item = &'a Condition> {
        let known = self.hosts.get(&host);
        let conditions = known.into_iter().flat_map(|k| &k.status.conditions);
        conditions.filter(|condition| match condition.object {
            ObjectId::Router(id) => id == router.id,
            ObjectId::Subnet(id) => router.legs.iter().any(|leg| leg.subnet == id),
            ObjectId::Vpc(id) => id == router.vpc,
            _ => false,
        })
    }

    pub(crate) fn public_ip_view(&self, public: &PublicIp) -> v1::PublicIp {
        let (nic_id, router_id, target) = match public.target {
            None => (String::new(), String::new(), None),
            Some(PublicTarget::Nic(id)) => (id.to_string(), String::new(), Some(ObjectId::Nic(id))),
            Some(PublicTarget::Router(id)) => {
                (String::new(), id.to_string(), Some(ObjectId::Router(id)))
            }
        };
        v1::PublicIp {
            id: public.id.to_string(),
            name: public.name.to_string(),
            path: self.path(&Object::PublicIp(public.clone())),
            account_id: public.account.to_string(),
            network_id: public.network.to_string(),
            network_name: self.intent.path(ObjectId::External(public.network)),
            address: public.address.to_string(),
            nic_id,
            router_id,
            target_path: target.map_or(String::new(), |target| self.intent.path(target)),
            meta: Some((&public.meta).into()),
            counted: self.counted(public),
        }
    }

    /// What passed by a public address, at the router that has it.
    fn counted(&self, public: &PublicIp) -> Option<v1::NatFigures> {
        use v1::nat_figures::Rule;
        let router = match public.target? {
            PublicTarget::Router(id) => self.intent.router(id)?,
            PublicTarget::Nic(id) => self.intent.router_of_subnet(self.intent.nic(id)?.subnet)?,
        };
        let known = self.hosts.get(&router.placement.host)?;
        let address = public.address.to_string();
        let of_whole = |rule: &&v1::NatFigures| {
            matches!(rule.rule(), Rule::Source | Rule::Public) && rule.address == address
        };
        let mut rules = known.figures.get(&router.id)?.nat.iter();
        rules.find(of_whole).cloned()
    }
}
