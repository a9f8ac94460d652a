//! `vpc route` and `vpc nat`: what a router does with packets.

use super::router::{change, shown, subnet_of};
use crate::block_on;
use crate::failure::Outcome;
use crate::options::{Global, Wait};
use api::v1;
use api::v1::update_router_request::{Change, ForwardKey, Route as NewRoute, RouteKey, Source};
use clap::Subcommand;
use ipnet::IpNet;
use model::{PortRange, Protocol, SourcePolicy};
use std::net::{IpAddr, SocketAddr};

/// Static routes of routers.
#[derive(Debug, Subcommand)]
pub(crate) enum Route {
    /// Add a route; the longest prefix wins
    #[command(after_help = "Examples:
  vpc route add blue/gw 10.9.0.0/16 --via 10.4.1.9
  vpc route add blue/gw 10.9.7.0/24 --blackhole
  vpc route add blue/gw 0.0.0.0/0 --via 10.4.2.7 --table db    for what comes from subnet db")]
    Add {
        /// VPC/NAME, ACCOUNT/VPC/NAME or id:ID
        router: String,
        /// Where to, as in 10.9.0.0/16
        prefix: IpNet,
        /// The next hop, a neighbour on one of the router's legs
        #[arg(long, value_name = "ADDRESS", required_unless_present = "blackhole")]
        via: Option<IpAddr>,
        /// Drop what goes there
        #[arg(long, conflicts_with = "via")]
        blackhole: bool,
        /// Only for what comes from this subnet
        #[arg(long, value_name = "SUBNET")]
        table: Option<String>,
        #[command(flatten)]
        wait: Wait,
    },
    /// List a router's routes
    #[command(after_help = "Examples:\n  vpc route list blue/gw -o json")]
    List {
        /// VPC/NAME, ACCOUNT/VPC/NAME or id:ID
        router: String,
    },
    /// Delete a route
    #[command(after_help = "Examples:
  vpc route delete blue/gw 10.9.0.0/16
  vpc route delete blue/gw 0.0.0.0/0 --table db")]
    Delete {
        /// VPC/NAME, ACCOUNT/VPC/NAME or id:ID
        router: String,
        /// Its prefix
        prefix: IpNet,
        /// The subnet that it is for
        #[arg(long, value_name = "SUBNET")]
        table: Option<String>,
        #[command(flatten)]
        wait: Wait,
    },
}

/// Address translation of routers.
#[derive(Debug, Subcommand)]
pub(crate) enum Nat {
    /// What becomes of the source address of what goes out
    #[command(after_help = "Examples:
  vpc nat source blue/gw masquerade      the router's own address on its uplink
  vpc nat source blue/gw addresses       public addresses attached to the router
  vpc nat source blue/gw none")]
    Source {
        /// VPC/NAME, ACCOUNT/VPC/NAME or id:ID
        router: String,
        /// none, masquerade or addresses
        policy: SourcePolicy,
        /// For IPv6 as well
        #[arg(long)]
        ipv6: bool,
        #[command(flatten)]
        wait: Wait,
    },
    /// Ports of public addresses that lead inside
    #[command(subcommand)]
    Forward(Forward),
}

/// Port forwards.
#[derive(Debug, Subcommand)]
pub(crate) enum Forward {
    /// Let ports outside lead to an address inside
    #[command(after_help = "Examples:
  vpc nat forward add blue/gw tcp 8080 10.4.1.2:80
  vpc nat forward add blue/gw udp 5000-5010 10.4.1.2:5000 --public 198.51.100.7")]
    Add {
        /// VPC/NAME, ACCOUNT/VPC/NAME or id:ID
        router: String,
        /// tcp or udp
        protocol: Protocol,
        /// PORT or FIRST-LAST outside
        ports: PortRange,
        /// Where they lead: ADDRESS:PORT, or [ADDRESS]:PORT for IPv6
        to: SocketAddr,
        /// A public address attached to the router; its address on the uplink, if not given
        #[arg(long, value_name = "ADDRESS")]
        public: Option<IpAddr>,
        #[command(flatten)]
        wait: Wait,
    },
    /// List a router's port forwards
    #[command(after_help = "Examples:\n  vpc nat forward list blue/gw")]
    List {
        /// VPC/NAME, ACCOUNT/VPC/NAME or id:ID
        router: String,
    },
    /// Close ports again
    #[command(after_help = "Examples:\n  vpc nat forward delete blue/gw tcp 8080")]
    Delete {
        /// VPC/NAME, ACCOUNT/VPC/NAME or id:ID
        router: String,
        /// tcp or udp
        protocol: Protocol,
        /// PORT or FIRST-LAST outside
        ports: PortRange,
        /// The public address
        #[arg(long, value_name = "ADDRESS")]
        public: Option<IpAddr>,
        #[command(flatten)]
        wait: Wait,
    },
}

fn key(router: &str, prefix: IpNet, table: Option<&str>) -> RouteKey {
    RouteKey {
        table: table.map(|subnet| subnet_of(router, subnet)),
        prefix: prefix.to_string(),
    }
}

fn text(address: Option<IpAddr>) -> String {
    address.map_or(String::new(), |address| address.to_string())
}

impl Route {
    /// Does it.
    pub(crate) fn run(self, global: &Global) -> Outcome {
        match self {
            Self::Add {
                router,
                prefix,
                via,
                blackhole: _,
                table,
                wait,
            } => {
                let doing = format!("adding route {prefix} to router {router}");
                let route = NewRoute {
                    key: Some(key(&router, prefix, table.as_deref())),
                    via: text(via),
                };
                change(global, &doing, &router, Change::AddRoute(route), wait)
            }
            Self::List { router } => block_on(async {
                let mut client = global.server.management().await?;
                global
                    .output
                    .many(&shown(&mut client, &router).await?.routes)
            }),
            Self::Delete {
                router,
                prefix,
                table,
                wait,
            } => {
                let doing = format!("deleting route {prefix} of router {router}");
                let route = Change::DeleteRoute(key(&router, prefix, table.as_deref()));
                change(global, &doing, &router, route, wait)
            }
        }
    }
}

impl Nat {
    /// Does it.
    pub(crate) fn run(self, global: &Global) -> Outcome {
        match self {
            Self::Source {
                router,
                policy,
                ipv6,
                wait,
            } => {
                let doing = format!("changing the source translation of router {router}");
                let source = Change::Source(Source {
                    policy: v1::SourcePolicy::from(policy).into(),
                    v6: ipv6,
                });
                change(global, &doing, &router, source, wait)
            }
            Self::Forward(forward) => forward.run(global),
        }
    }
}

impl Forward {
    fn run(self, global: &Global) -> Outcome {
        match self {
            Self::Add {
                router,
                protocol,
                ports,
                to,
                public,
                wait,
            } => {
                let doing = format!("forwarding {protocol} {ports} of router {router}");
                let forward = v1::PortForward {
                    protocol: v1::TransportProtocol::from(protocol).into(),
                    public: text(public),
                    ports: ports.to_string(),
                    to: to.ip().to_string(),
                    to_port: to.port().into(),
                };
                change(global, &doing, &router, Change::AddForward(forward), wait)
            }
            Self::List { router } => block_on(async {
                let mut client = global.server.management().await?;
                global
                    .output
                    .many(&shown(&mut client, &router).await?.forwards)
            }),
            Self::Delete {
                router,
                protocol,
                ports,
                public,
                wait,
            } => {
                let doing = format!("deleting port forward {protocol} {ports} of router {router}");
                let key = Change::DeleteForward(ForwardKey {
                    protocol: v1::TransportProtocol::from(protocol).into(),
                    public: text(public),
                    ports: ports.to_string(),
                });
                change(global, &doing, &router, key, wait)
            }
        }
    }
}
