//! `vpc agent l3`: routers by the agent's own API, usable with no server.

use crate::block_on;
use crate::connect::{AgentAccess, refused};
use crate::failure::{Failure, Outcome};
use crate::options::Global;
use crate::output::{Format, Row, json, print};
use crate::views::{ConditionView, FiguresView, condition_lines, some, word};
use api::v1;
use clap::{Args, Subcommand};
use serde::Serialize;
use std::net::IpAddr;

/// How long `--wait` waits here: a host that works takes milliseconds.
const WAIT_MS: u32 = 30_000;

/// Routers on this host.
#[derive(Debug, Subcommand)]
pub(crate) enum HostRouter {
    /// List routers, those from the server included
    #[command(after_help = "Examples:\n  vpc agent l3 list -o json")]
    List {
        #[command(flatten)]
        agent: AgentAccess,
    },
    /// Show a router as the kernel has it, and what passed it
    #[command(after_help = "Examples:\n  vpc agent l3 show 9k3v0c7m2a")]
    Show {
        /// Its id
        router_id: String,
        #[command(flatten)]
        agent: AgentAccess,
    },
    /// Make a router in a stack that was made here, or change one
    #[command(after_help = "Examples:
  vpc agent l3 create lab/gw --vpc-id 9k3v0c7m2a --leg 5t0qj2v8xk=10.4.1.1/24 --wait
  vpc agent l3 create lab/gw --vpc-id 9k3v0c7m2a --leg 5t0qj2v8xk=10.4.1.1/24 --router-id 2rkpwp7kvv --replace \\
      --bridge br-ext --address 198.51.100.7/24 --gateway 198.51.100.1 --nat --forward tcp,8080,10.4.1.7,80

The ids of VPC and subnets are those of `vpc agent l2 stack list`.")]
    Create(Box<CreateRouter>),
    /// Delete a router that was made here
    #[command(after_help = "Examples:\n  vpc agent l3 delete 9k3v0c7m2a --wait")]
    Delete {
        /// Its id
        router_id: String,
        /// Return when the kernel has it
        #[arg(long)]
        wait: bool,
        #[command(flatten)]
        agent: AgentAccess,
    },
    /// Routers as they change
    #[command(after_help = "Examples:\n  vpc agent l3 watch -o json")]
    Watch {
        #[command(flatten)]
        agent: AgentAccess,
    },
}

/// `vpc agent l3 create`.
#[derive(Debug, Args)]
pub(crate) struct CreateRouter {
    /// What people call it
    name: String,
    /// Id of its VPC
    #[arg(long, value_name = "ID")]
    vpc_id: model::VpcId,
    /// Its id; drawn by the agent if not given
    #[arg(long, value_name = "ID")]
    router_id: Option<model::RouterId>,
    /// All of it from now on, if there is one with this id
    #[arg(long, requires = "router_id")]
    replace: bool,
    /// SUBNET-ID=ADDRESS/LENGTH[,ADDRESS/LENGTH]; may be given several times
    #[arg(long, value_name = "LEG", value_parser = leg)]
    leg: Vec<v1::RouterLeg>,
    /// The bridge of this host that leads outside
    #[arg(long, requires = "outer")]
    bridge: Option<model::IfName>,
    /// An address outside, ADDRESS/LENGTH; may be given several times
    #[arg(long, requires = "bridge", group = "outer")]
    address: Vec<ipnet::IpNet>,
    /// The address outside is a DHCP server's to give
    #[arg(long, requires = "bridge", group = "outer")]
    dhcp: bool,
    /// The way on from there; may be given several times
    #[arg(long, requires = "bridge")]
    gateway: Vec<IpAddr>,
    /// What goes out has the router's address as its source (IPv4)
    #[arg(long, requires = "bridge")]
    nat: bool,
    /// As --nat, for IPv6 as well
    #[arg(long, requires = "bridge")]
    nat6: bool,
    /// PREFIX=NEIGHBOUR or PREFIX=blackhole; may be given several times
    #[arg(long, value_name = "ROUTE", value_parser = route)]
    route: Vec<v1::StaticRoute>,
    /// PUBLIC=PRIVATE, both ways; may be given several times
    #[arg(long, value_name = "ADDRESSES", value_parser = public, requires = "bridge")]
    public: Vec<v1::OneToOneNat>,
    /// PROTOCOL,PORTS,ADDRESS,PORT[,PUBLIC]; may be given several times
    #[arg(long, value_name = "FORWARD", value_parser = forward, requires = "bridge")]
    forward: Vec<v1::PortForward>,
    /// Return when the kernel has it
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    agent: AgentAccess,
}

fn leg(text: &str) -> Result<v1::RouterLeg, String> {
    let (subnet, addresses) = halves(text)?;
    Ok(v1::RouterLeg {
        subnet_id: subnet.to_owned(),
        addresses: addresses.split(',').map(str::to_owned).collect(),
        ..v1::RouterLeg::default()
    })
}

fn route(text: &str) -> Result<v1::StaticRoute, String> {
    let (prefix, via) = halves(text)?;
    let blackhole = via == "blackhole";
    Ok(v1::StaticRoute {
        prefix: prefix.to_owned(),
        gateway: if blackhole {
            String::new()
        } else {
            via.to_owned()
        },
        blackhole,
        table_subnet_id: String::new(),
    })
}

fn public(text: &str) -> Result<v1::OneToOneNat, String> {
    let (public, private) = halves(text)?;
    let (public, private) = (public.to_owned(), private.to_owned());
    Ok(v1::OneToOneNat { public, private })
}

fn halves(text: &str) -> Result<(&str, &str), String> {
    text.split_once('=')
        .ok_or_else(|| format!("{text:?} has no ="))
}

fn forward(text: &str) -> Result<v1::PortForward, String> {
    let parts: Vec<&str> = text.split(',').collect();
    let ([protocol, ports, to, to_port], rest) = parts
        .split_first_chunk()
        .ok_or_else(|| format!("{text:?} is not PROTOCOL,PORTS,ADDRESS,PORT"))?;
    let protocol = match *protocol {
        "tcp" => v1::TransportProtocol::Tcp,
        "udp" => v1::TransportProtocol::Udp,
        other => return Err(format!("{other:?} is neither tcp nor udp")),
    };
    let to_port = to_port
        .parse()
        .map_err(|_| format!("{to_port:?} is no port"))?;
    let public = match rest {
        [] => String::new(),
        [public] => (*public).to_owned(),
        _ => return Err(format!("{text:?}: nothing comes after the public address")),
    };
    Ok(v1::PortForward {
        protocol: protocol.into(),
        public,
        ports: (*ports).to_owned(),
        to: (*to).to_owned(),
        to_port,
    })
}

/// A router on this host.
#[derive(Debug, Serialize)]
struct HostRouterView {
    router_id: String,
    name: String,
    vpc_id: String,
    /// "local" or "managed".
    origin: String,
    ready: bool,
    conditions: Vec<ConditionView>,
    legs: Vec<LegView>,
    uplink: Option<UplinkView>,
    routes: Vec<RouteView>,
    source: Option<SourceView>,
    public: Vec<PublicView>,
    forwards: Vec<ForwardView>,
}

#[derive(Debug, Serialize)]
struct LegView {
    subnet_id: String,
    mac: String,
    addresses: Vec<String>,
    mtu: u32,
}

#[derive(Debug, Serialize)]
struct UplinkView {
    bridge: String,
    mac: String,
    addresses: Vec<String>,
    gateways: Vec<String>,
}

#[derive(Debug, Serialize)]
struct RouteView {
    prefix: String,
    via: Option<String>,
    table_subnet_id: Option<String>,
}

#[derive(Debug, Serialize)]
struct SourceView {
    /// Empty is the outer leg's own.
    addresses: Vec<String>,
    ipv6: bool,
}

#[derive(Debug, Serialize)]
struct PublicView {
    public: String,
    private: String,
}

#[derive(Debug, Serialize)]
struct ForwardView {
    protocol: String,
    public: Option<String>,
    ports: String,
    to: String,
    to_port: u32,
}

#[derive(Debug, Serialize)]
struct StatusView {
    #[serde(flatten)]
    router: HostRouterView,
    netns: String,
    links: Vec<LinkView>,
    kernel_routes: Vec<KernelRouteView>,
    figures: Option<FiguresView>,
}

#[derive(Debug, Serialize)]
struct LinkView {
    name: String,
    mac: String,
    mtu: u32,
    up: bool,
    addresses: Vec<String>,
}

#[derive(Debug, Serialize)]
struct KernelRouteView {
    table: u32,
    prefix: String,
    hops: Vec<HopView>,
}

#[derive(Debug, Serialize)]
struct HopView {
    link: String,
    gateway: Option<String>,
}

#[derive(Debug, Serialize)]
struct EventView {
    deleted: bool,
    snapshot_complete: bool,
    router: Option<HostRouterView>,
}

impl From<v1::HostRouterState> for HostRouterView {
    fn from(state: v1::HostRouterState) -> Self {
        let origin = word(state.origin().as_str_name(), "ORIGIN_");
        let router = state.router.unwrap_or_default();
        let nat = router.nat.unwrap_or_default();
        let ipv6 = nat.source_v6;
        let forward = |forward: v1::PortForward| ForwardView {
            protocol: word(forward.protocol().as_str_name(), "TRANSPORT_PROTOCOL_"),
            public: some(forward.public),
            ports: forward.ports,
            to: forward.to,
            to_port: forward.to_port,
        };
        let leg = |leg: v1::RouterLeg| LegView {
            subnet_id: leg.subnet_id,
            mac: leg.mac,
            addresses: leg.addresses,
            mtu: leg.mtu,
        };
        Self {
            router_id: router.router_id,
            name: router.name,
            vpc_id: router.vpc_id,
            origin,
            ready: state.ready,
            conditions: state.conditions.into_iter().map(Into::into).collect(),
            legs: router.legs.into_iter().map(leg).collect(),
            uplink: router.uplink.map(|uplink| UplinkView {
                bridge: uplink.bridge,
                mac: uplink.mac,
                addresses: uplink.addresses,
                gateways: uplink.gateways,
            }),
            routes: (router.routes.into_iter())
                .map(|route| RouteView {
                    prefix: route.prefix,
                    via: some(route.gateway),
                    table_subnet_id: some(route.table_subnet_id),
                })
                .collect(),
            source: nat.source.map(|source| SourceView {
                addresses: source.addresses,
                ipv6,
            }),
            public: (nat.public.into_iter())
                .map(|one| PublicView {
                    public: one.public,
                    private: one.private,
                })
                .collect(),
            forwards: nat.forwards.into_iter().map(forward).collect(),
        }
    }
}

impl From<v1::HostRouterStatus> for StatusView {
    fn from(status: v1::HostRouterStatus) -> Self {
        let hop = |hop: v1::RouterHop| HopView {
            link: hop.link,
            gateway: some(hop.gateway),
        };
        Self {
            router: status.state.unwrap_or_default().into(),
            netns: status.netns,
            links: (status.links.into_iter())
                .map(|link| LinkView {
                    name: link.name,
                    mac: link.mac,
                    mtu: link.mtu,
                    up: link.up,
                    addresses: link.addresses,
                })
                .collect(),
            kernel_routes: (status.routes.into_iter())
                .map(|route| KernelRouteView {
                    table: route.table,
                    prefix: route.prefix,
                    hops: route.hops.into_iter().map(hop).collect(),
                })
                .collect(),
            figures: status.figures.map(Into::into),
        }
    }
}

impl HostRouterView {
    fn state(&self) -> &'static str {
        match (self.ready, self.conditions.is_empty()) {
            (true, true) => "ready",
            (_, true) => "working",
            (_, false) => "wrong",
        }
    }
}

impl Row for HostRouterView {
    const COLUMNS: &'static [&'static str] =
        &["ID", "NAME", "VPC", "LEGS", "UPLINK", "ORIGIN", "STATE"];

    fn cells(&self) -> Vec<String> {
        let addresses = self.legs.iter().flat_map(|leg| leg.addresses.iter());
        let addresses: Vec<&str> = addresses.map(String::as_str).collect();
        let uplink = self
            .uplink
            .as_ref()
            .map(|uplink| uplink.addresses.join(" "));
        vec![
            self.router_id.clone(),
            self.name.clone(),
            self.vpc_id.clone(),
            addresses.join(" "),
            uplink.unwrap_or_default(),
            self.origin.clone(),
            self.state().to_owned(),
        ]
    }
}

impl StatusView {
    fn lines(&self) -> String {
        let router = &self.router;
        let (name, origin, state) = (&router.name, &router.origin, router.state());
        let mut lines = vec![format!("router {name}  {}  {origin}, {state}", self.netns)];
        for link in &self.links {
            let up = if link.up { "up" } else { "down" };
            let addresses = link.addresses.join(" ");
            lines.push(format!(
                "link   {}  {}  mtu {}  {up}  {addresses}",
                link.name, link.mac, link.mtu
            ));
        }
        for route in &self.kernel_routes {
            let hops: Vec<String> = (route.hops.iter())
                .map(|hop| match &hop.gateway {
                    Some(gateway) => format!("via {gateway} by {}", hop.link),
                    None => format!("by {}", hop.link),
                })
                .collect();
            let hops = if hops.is_empty() {
                "blackhole".to_owned()
            } else {
                hops.join(", ")
            };
            lines.push(format!(
                "route  {}  {hops}  table {}",
                route.prefix, route.table
            ));
        }
        if let Some(figures) = &self.figures {
            lines.push(figures.title());
            lines.extend(
                figures
                    .lines()
                    .into_iter()
                    .map(|line| format!("       {line}")),
            );
            let lease = figures.lease();
            lines.extend(lease.map(|lease| format!("lease  {}", lease.line())));
            let nat = figures.nat().iter();
            lines.extend(nat.map(|rule| format!("nat    {}", rule.line())));
        }
        for (key, text) in condition_lines(&router.conditions) {
            lines.push(format!("{key}: {text}"));
        }
        lines.join("\n")
    }
}

impl HostRouter {
    /// Does it.
    pub(crate) fn run(self, global: &Global) -> Outcome {
        match self {
            Self::List { agent } => block_on(async {
                let mut client = agent.l3().await?;
                let listed = client
                    .list_routers(v1::ListHostRoutersRequest::default())
                    .await;
                let listed = listed.map_err(|status| refused("listing routers", &status))?;
                let routers = listed.into_inner().routers.into_iter();
                let views: Vec<HostRouterView> = routers.map(Into::into).collect();
                global.output.many(&views)
            }),
            Self::Show { router_id, agent } => block_on(show(global, &agent, &router_id)),
            Self::Create(create) => create.run(global),
            Self::Delete {
                router_id,
                wait,
                agent,
            } => block_on(async {
                let doing = format!("deleting router {router_id}");
                let request = v1::DeleteHostRouterRequest {
                    router_id,
                    wait_ms: if wait { WAIT_MS } else { 0 },
                };
                let deleted = agent.l3().await?.delete_router(request).await;
                deleted.map(drop).map_err(|status| refused(&doing, &status))
            }),
            Self::Watch { agent } => block_on(watch(global, &agent)),
        }
    }
}

async fn show(global: &Global, agent: &AgentAccess, router_id: &str) -> Outcome {
    let request = v1::GetHostRouterRequest {
        router_id: router_id.to_owned(),
    };
    let status = agent.l3().await?.router_status(request).await;
    let status =
        status.map_err(|status| refused(&format!("showing router {router_id}"), &status))?;
    let view = StatusView::from(status.into_inner());
    match global.output {
        Format::Json => json(&view),
        Format::Table => print(&view.lines()),
    }
}

async fn watch(global: &Global, agent: &AgentAccess) -> Outcome {
    let wrong = |status| refused("watching routers", &status);
    let request = v1::WatchHostRoutersRequest {};
    let stream = agent.l3().await?.watch_routers(request).await;
    let mut stream = stream.map_err(wrong)?.into_inner();
    while let Some(event) = stream.message().await.map_err(wrong)? {
        let view = EventView {
            deleted: event.deleted,
            snapshot_complete: event.snapshot_complete,
            router: event.router.map(Into::into),
        };
        if global.output == Format::Table && view.router.is_none() {
            continue;
        }
        global
            .output
            .event(&view, || match (&view.router, view.deleted) {
                (Some(router), true) => format!("deleted  {}", router.name),
                (Some(router), false) => format!("{:<8} {}", router.state(), router.name),
                (None, _) => String::new(),
            })?;
    }
    Err(Failure::new("watching routers: the agent ended the stream")
        .hint("`vpc agent status` says whether it runs"))
}

impl CreateRouter {
    fn run(self, global: &Global) -> Outcome {
        let doing = format!("creating router {}", self.name);
        let uplink = self.bridge.map(|bridge| v1::RouterUplink {
            bridge: bridge.to_string(),
            mac: String::new(),
            addresses: self.address.iter().map(ToString::to_string).collect(),
            dhcp: self.dhcp,
            gateways: self.gateway.iter().map(ToString::to_string).collect(),
            mtu: 0,
        });
        let source = (self.nat || self.nat6).then(v1::SourceNat::default);
        let request = v1::AddHostRouterRequest {
            router: Some(v1::RouterConfig {
                router_id: self.router_id.map(|id| id.to_string()).unwrap_or_default(),
                vpc_id: self.vpc_id.to_string(),
                name: self.name,
                legs: self.leg,
                uplink,
                routes: self.route,
                nat: Some(v1::NatConfig {
                    source,
                    public: self.public,
                    forwards: self.forward,
                    source_v6: self.nat6,
                }),
                ..v1::RouterConfig::default()
            }),
            replace: self.replace,
            wait_ms: if self.wait { WAIT_MS } else { 0 },
        };
        block_on(async {
            let made = self.agent.l3().await?.add_router(request).await;
            let made = made
                .map_err(|status| refused(&doing, &status))?
                .into_inner();
            let id = made
                .router
                .map(|router| router.router_id)
                .unwrap_or_default();
            show(global, &self.agent, &id).await
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_router_are_read_from_words() {
        let leg = leg("5t0qj2v8xk=10.4.1.1/24,fd00::1/64").unwrap();
        assert_eq!(leg.addresses, ["10.4.1.1/24", "fd00::1/64"]);
        assert!(route("10.0.0.0/8=blackhole").unwrap().blackhole);
        assert_eq!(route("10.0.0.0/8=10.4.1.9").unwrap().gateway, "10.4.1.9");
        let one = forward("tcp,8080,10.4.1.7,80,198.51.100.9").unwrap();
        assert_eq!((one.to_port, one.public.as_str()), (80, "198.51.100.9"));
        for bad in [
            "",
            "tcp",
            "tcp,1,2",
            "sctp,1,10.0.0.1,2",
            "tcp,1,10.0.0.1,x",
            "tcp,1,10.0.0.1,2,3,4",
        ] {
            assert!(forward(bad).is_err(), "{bad:?} was taken");
        }
        assert!(public("198.51.100.9").is_err());
    }
}
