//! `vpc evpn`.

use crate::block_on;
use crate::connect::{AgentAccess, refused};
use crate::failure::Outcome;
use crate::options::Global;
use crate::output::{Format, Row, ago, print, time};
use crate::views::some;
use api::v1;
use clap::Subcommand;
use serde::Serialize;

/// EVPN of this host's agent.
#[derive(Debug, Subcommand)]
pub(crate) enum Evpn {
    /// BGP sessions
    #[command(after_help = "Examples:\n  vpc evpn peers\n  vpc evpn peers -o json")]
    Peers {
        #[command(flatten)]
        agent: AgentAccess,
    },
    /// Routes: what this host announces and what it learned
    #[command(
        after_help = "Examples:\n  vpc evpn routes\n  vpc evpn routes --vni 4097 --type 2 -o json"
    )]
    Routes {
        #[command(flatten)]
        agent: AgentAccess,
        /// Only of this VNI
        #[arg(long)]
        vni: Option<super::vpc::model_vni::Arg>,
        /// Only of this type: 2 (MAC/IP) or 3 (inclusive multicast)
        #[arg(long = "type", value_name = "TYPE", value_parser = clap::value_parser!(u32).range(2..=3))]
        route_type: Option<u32>,
    },
}

/// A BGP session.
#[derive(Debug, Serialize)]
pub(crate) struct PeerView {
    address: String,
    port: u32,
    asn: u32,
    /// As in the RFC: "established".
    state: String,
    since: Option<String>,
    routes_received: u64,
    routes_sent: u64,
    end_of_rib: bool,
    stale: bool,
    md5: bool,
    last_error: Option<String>,
    /// What is wrong, in plain words.
    problem: Option<String>,
    causes: Vec<String>,
    remedy: Option<String>,
    #[serde(skip)]
    since_unix_ms: u64,
}

#[derive(Debug, Serialize)]
struct RouteView {
    route_type: u32,
    rd: String,
    ethernet_tag: u32,
    mac: Option<String>,
    ip: Option<String>,
    vni: u32,
    next_hop: String,
    route_targets: Vec<String>,
    /// Absent for this host's own.
    peer: Option<String>,
    best: bool,
    stale: bool,
    mobility_sequence: u32,
    attributes: Vec<String>,
}

impl Evpn {
    /// Does it.
    pub(crate) fn run(self, global: &Global) -> Outcome {
        match self {
            Self::Peers { agent } => block_on(async {
                let peers = agent
                    .agent()
                    .await?
                    .peers(v1::PeersRequest {})
                    .await
                    .map_err(|status| refused("listing EVPN peers", &status))?
                    .into_inner()
                    .peers;
                let views: Vec<PeerView> = peers.into_iter().map(Into::into).collect();
                global.output.many(&views)?;
                if global.output == Format::Table {
                    views.iter().try_for_each(PeerView::explain)?;
                }
                Ok(())
            }),
            Self::Routes {
                agent,
                vni,
                route_type,
            } => block_on(async {
                let doing = "listing EVPN routes";
                let request = v1::RoutesRequest {
                    vni: vni.map_or(0, |vni| vni.0),
                    route_type: route_type.unwrap_or(0),
                };
                let mut stream = agent
                    .agent()
                    .await?
                    .routes(request)
                    .await
                    .map_err(|status| refused(doing, &status))?
                    .into_inner();
                let mut views: Vec<RouteView> = Vec::new();
                while let Some(route) = stream
                    .message()
                    .await
                    .map_err(|status| refused(doing, &status))?
                {
                    views.push(route.into());
                }
                global.output.many(&views)
            }),
        }
    }
}

impl From<v1::Peer> for PeerView {
    fn from(peer: v1::Peer) -> Self {
        Self {
            address: peer.address,
            port: peer.port,
            asn: peer.asn,
            state: peer.state,
            since: some(time(peer.since_unix_ms)),
            since_unix_ms: peer.since_unix_ms,
            routes_received: peer.routes_received,
            routes_sent: peer.routes_sent,
            end_of_rib: peer.end_of_rib,
            stale: peer.stale,
            md5: peer.md5,
            last_error: some(peer.last_error),
            problem: some(peer.problem),
            causes: peer.causes,
            remedy: some(peer.remedy),
        }
    }
}

impl PeerView {
    /// What is wrong with it, below the table.
    fn explain(&self) -> Outcome {
        let (Some(problem), Some(remedy)) = (&self.problem, &self.remedy) else {
            return Ok(());
        };
        print(&format!("\n{problem}"))?;
        for cause in &self.causes {
            print(&format!("  perhaps: {cause}"))?;
        }
        print(&format!("  do: {remedy}"))
    }
}

impl From<v1::EvpnRoute> for RouteView {
    fn from(route: v1::EvpnRoute) -> Self {
        Self {
            route_type: route.route_type,
            rd: route.rd,
            ethernet_tag: route.ethernet_tag,
            mac: some(route.mac),
            ip: some(route.ip),
            vni: route.vni,
            next_hop: route.next_hop,
            route_targets: route.route_targets,
            peer: some(route.peer),
            best: route.best,
            stale: route.stale,
            mobility_sequence: route.mobility_sequence,
            attributes: route.attributes,
        }
    }
}

impl Row for PeerView {
    const COLUMNS: &'static [&'static str] = &[
        "peer", "asn", "state", "since", "received", "sent", "problem",
    ];
    fn cells(&self) -> Vec<String> {
        vec![
            format!("{}:{}", self.address, self.port),
            self.asn.to_string(),
            self.state.clone(),
            ago(self.since_unix_ms),
            self.routes_received.to_string(),
            self.routes_sent.to_string(),
            self.problem.clone().unwrap_or_else(|| "-".to_owned()),
        ]
    }
}

impl Row for RouteView {
    const COLUMNS: &'static [&'static str] = &[
        "type", "vni", "tag", "mac", "ip", "next hop", "from", "flags",
    ];
    fn cells(&self) -> Vec<String> {
        let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
        let mut flags = Vec::new();
        if self.best {
            flags.push("best");
        }
        if self.stale {
            flags.push("stale");
        }
        vec![
            self.route_type.to_string(),
            self.vni.to_string(),
            self.ethernet_tag.to_string(),
            or_dash(&self.mac),
            or_dash(&self.ip),
            self.next_hop.clone(),
            self.peer.clone().unwrap_or_else(|| "this host".to_owned()),
            flags.join(","),
        ]
    }
}
