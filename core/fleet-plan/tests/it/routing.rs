//! Routers, external networks and public addresses in the language of [`crate::script`].

use crate::script::{Line, World, expect, id, parsed};
use fleet_plan::{
    AttachPublicIp, Command, CreateExternal, CreatePublicIp, CreateRouter, Intent, Outside,
    Refusal, RouterChange, RouterStep, StandbyHost, UpdateRouter,
};
use model::{
    AccountId, ExternalNetwork, Kind, Name, ObjectId, PortForward, PublicIp, PublicTarget, Router,
    RouterConfig, SourceNat, SourcePolicy, Standby, StaticRoute, SubnetId, UplinkAddress, Via,
    VpcId,
};
use std::fmt::Write as _;

pub(crate) fn command(world: &World, line: &Line<'_>) -> Result<Command, Refusal> {
    let path = line.arg(1);
    let intent = &world.intent;
    let subnet = |text| Ok(id::<SubnetId>(intent.resolve(Kind::Subnet, None, text)?));
    let table = || {
        line.all("table")
            .first()
            .map(|text| subnet(text))
            .transpose()
    };
    let change = |change| {
        Ok(Command::UpdateRouter(UpdateRouter {
            router: id(intent.resolve(Kind::Router, None, path)?),
            expect: expect(line),
            change,
        }))
    };
    match line.arg(0) {
        "external" => Ok(Command::CreateExternal(CreateExternal {
            name: parsed(path),
            bridge: line.get("bridge").unwrap_or_else(|| parsed("br-ext")),
            cidrs: line.cidrs(),
            gateways: line
                .all("gateway")
                .iter()
                .map(|text| parsed(text))
                .collect(),
            pools: line.all("pool").iter().map(|text| parsed(text)).collect(),
            dhcp: line.get("dhcp").unwrap_or(false),
            mtu: None,
            labels: line.labels(),
        })),
        "router" => {
            let (vpc, name) = world.below::<VpcId>(Kind::Vpc, path)?;
            let subnets = line.all("subnet").into_iter().map(subnet);
            let uplink = line.all("uplink").first().map(|text| outside(intent, text));
            let host = line.all("host").first().map(|name| world.host(name));
            Ok(Command::CreateRouter(CreateRouter {
                vpc,
                name,
                subnets: subnets.collect::<Result<_, Refusal>>()?,
                uplink: uplink.transpose()?,
                source: line.get("source").unwrap_or_default(),
                source_v6: line.get("v6").unwrap_or(false),
                host: host.transpose()?,
                standby: line
                    .all("standby")
                    .first()
                    .map_or(Ok(None), |text| standby(world, text))?,
                labels: line.labels(),
            }))
        }
        "attach-leg" => change(RouterChange::Attach(subnet(line.arg(2))?)),
        "detach-leg" => change(RouterChange::Detach(subnet(line.arg(2))?)),
        "uplink" => change(RouterChange::Uplink(match line.arg(2) {
            "none" => None,
            name => Some(outside(intent, name)?),
        })),
        "route" => change(RouterChange::AddRoute(StaticRoute {
            table: table()?,
            prefix: parsed(line.arg(2)),
            via: line.get("via").map_or(Via::Blackhole, Via::Address),
        })),
        "delete-route" => change(RouterChange::DeleteRoute {
            table: table()?,
            prefix: parsed(line.arg(2)),
        }),
        "source" => change(RouterChange::Source {
            policy: parsed(line.arg(2)),
            v6: line.get("v6").unwrap_or(false),
        }),
        "forward" => change(RouterChange::AddForward(PortForward {
            protocol: parsed(line.arg(2)),
            public: line.get("public"),
            ports: parsed(line.arg(3)),
            to: parsed(line.arg(4)),
            to_port: parsed(line.arg(5)),
        })),
        "delete-forward" => change(RouterChange::DeleteForward {
            protocol: parsed(line.arg(2)),
            public: line.get("public"),
            ports: parsed(line.arg(3)),
        }),
        "place" => change(RouterChange::Place(
            line.maybe(2).map(|name| world.host(name)).transpose()?,
        )),
        "advance-router" => change(RouterChange::Advance(match line.arg(2) {
            "switch" => RouterStep::Switch,
            reason => RouterStep::Stay {
                reason: reason.to_owned(),
            },
        })),
        "standby" => change(RouterChange::Standby(standby(world, line.arg(2))?)),
        "renew-standby" => change(RouterChange::RenewStandby),
        "publicip" => {
            let (account, name) = world.below::<AccountId>(Kind::Account, path)?;
            Ok(Command::CreatePublicIp(CreatePublicIp {
                account,
                name,
                network: outside(intent, line.maybe(2).unwrap_or("only"))?,
                address: line.get("address"),
                v6: line.get("v6").unwrap_or(false),
                labels: line.labels(),
            }))
        }
        "attach" => Ok(Command::AttachPublicIp(AttachPublicIp {
            public: id(intent.resolve(Kind::PublicIp, None, path)?),
            expect: expect(line),
            target: match line.arg(2) {
                "none" => None,
                "nic" => Some(PublicTarget::Nic(id(intent.resolve(
                    Kind::Nic,
                    None,
                    line.arg(3),
                )?))),
                _ => Some(PublicTarget::Router(id(intent.resolve(
                    Kind::Router,
                    None,
                    line.arg(3),
                )?))),
            },
        })),
        other => panic!("no command {other}"),
    }
}

fn standby(world: &World, text: &str) -> Result<Option<StandbyHost>, Refusal> {
    Ok(match text {
        "none" => None,
        "any" => Some(StandbyHost::Any),
        host => Some(StandbyHost::Host(world.host(host)?)),
    })
}

fn outside(intent: &Intent, text: &str) -> Result<Outside, Refusal> {
    match text {
        "only" => Ok(Outside::Only),
        name => Ok(Outside::Network(id(intent.resolve(
            Kind::External,
            None,
            name,
        )?))),
    }
}

fn name_of(intent: &Intent, subnet: SubnetId) -> &Name {
    &intent.subnet(subnet).expect("legs are in subnets").name
}

fn route_text(intent: &Intent, route: &StaticRoute) -> String {
    let table = route.table.map_or(String::new(), |table| {
        format!(" of {}", name_of(intent, table))
    });
    match route.via {
        Via::Address(via) => format!("route {} via {via}{table}", route.prefix),
        Via::Blackhole => format!("route {} blackhole{table}", route.prefix),
    }
}

fn forward_text(forward: &PortForward) -> String {
    let public = forward
        .public
        .map_or("uplink".to_owned(), |a| a.to_string());
    format!(
        "forward {} {public} {} to {} {}",
        forward.protocol, forward.ports, forward.to, forward.to_port
    )
}

pub(crate) fn show_router(intent: &Intent, router: &Router) -> String {
    let mut parts = vec![format!(
        "router {}/{} on {} epoch {}",
        intent.path(ObjectId::Vpc(router.vpc)),
        router.name,
        intent.path(ObjectId::Host(router.placement.host)),
        router.placement.epoch
    )];
    if let Some(moving) = &router.moving {
        let to = intent.path(ObjectId::Host(moving.to));
        parts.push(match moving.taken_back.as_str() {
            "" => format!("goes to {to}"),
            why => format!("not to {to}: {why}"),
        });
        for host in moving.tried.keys() {
            parts.push(format!("nor to {}", intent.path(ObjectId::Host(*host))));
        }
    }
    match router.standby {
        Standby::Off => {}
        Standby::Missing => parts.push("no standby".to_owned()),
        Standby::On(host) => {
            parts.push(format!("standby {}", intent.path(ObjectId::Host(host))));
        }
    }
    for leg in &router.legs {
        parts.push(format!("leg {} {}", name_of(intent, leg.subnet), leg.mac));
    }
    if let Some(uplink) = &router.uplink {
        let network = intent.path(ObjectId::External(uplink.network));
        parts.push(format!(
            "uplink {network} {} {:?}",
            uplink.mac, uplink.addresses
        ));
    }
    parts.extend(router.routes.iter().map(|route| route_text(intent, route)));
    if router.source != SourcePolicy::None {
        let v6 = if router.source_v6 { " with IPv6" } else { "" };
        parts.push(format!("source {}{v6}", router.source));
    }
    parts.extend(router.forwards.iter().map(forward_text));
    parts.join(", ")
}

pub(crate) fn show_external(network: &ExternalNetwork) -> String {
    let prefixes: Vec<String> = network.prefixes().map(|p| p.to_string()).collect();
    format!(
        "external {} {} {} gateways {:?} pools {:?}{}",
        network.name,
        network.bridge,
        prefixes.join(" "),
        network.gateways,
        network.pools,
        if network.dhcp { " dhcp" } else { "" }
    )
}

pub(crate) fn show_public_ip(intent: &Intent, public: &PublicIp) -> String {
    let target = match public.target {
        None => String::new(),
        Some(PublicTarget::Nic(nic)) => format!(" for {}", intent.describe(ObjectId::Nic(nic))),
        Some(PublicTarget::Router(router)) => {
            format!(" for {}", intent.describe(ObjectId::Router(router)))
        }
    };
    let owner = intent.path(ObjectId::Account(public.account));
    let network = intent.path(ObjectId::External(public.network));
    format!(
        "publicip {owner}/{} {} of {network}{target}",
        public.name, public.address
    )
}

pub(crate) fn show_config(intent: &Intent, router: &RouterConfig) -> String {
    let prepared = if router.prepared { " prepared" } else { "" };
    let mut out = format!("  router {}{prepared}\n", router.name);
    if let Some(standby) = router.standby {
        let standby = intent.path(ObjectId::Host(standby));
        writeln!(out, "    standby {standby}").unwrap();
    }
    for leg in &router.legs {
        writeln!(
            out,
            "    leg {} {} {:?} mtu {}",
            name_of(intent, leg.subnet),
            leg.mac,
            leg.addresses,
            leg.mtu
        )
        .unwrap();
    }
    if let Some(uplink) = &router.uplink {
        let address = match &uplink.address {
            UplinkAddress::Static(nets) => format!("{nets:?}"),
            UplinkAddress::Dhcp => "dhcp".to_owned(),
        };
        writeln!(
            out,
            "    uplink {} {} {address} gateways {:?}",
            uplink.bridge, uplink.mac, uplink.gateways
        )
        .unwrap();
    }
    for route in &router.routes {
        writeln!(out, "    {}", route_text(intent, route)).unwrap();
    }
    match &router.nat.source {
        None => {}
        Some(SourceNat::Masquerade) => out.push_str("    source masquerade\n"),
        Some(SourceNat::Addresses(own)) => writeln!(out, "    source {own:?}").unwrap(),
    }
    for one in &router.nat.public {
        writeln!(out, "    public {} is {}", one.public, one.private).unwrap();
    }
    for forward in &router.nat.forwards {
        writeln!(out, "    {}", forward_text(forward)).unwrap();
    }
    out
}
