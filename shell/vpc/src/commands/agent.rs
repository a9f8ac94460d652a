//! `vpc agent`.

use super::evpn::PeerView;
use super::host::own_name;
use super::{l2, l3, leases, logging};
use crate::block_on;
use crate::connect::{AgentAccess, refused};
use crate::failure::{Doing, Failure, Outcome};
use crate::options::Global;
use crate::output::{Format, json, print, time};
use crate::settings::{AGENT, AGENT_CONFIG, AGENT_EXAMPLE, AgentSettings, Sources};
use crate::views::{ConditionView, capability, condition_lines, role, some, transport};
use api::v1;
use clap::{Args, Subcommand};
use model::{Transport, VolumeSize};
use serde::Serialize;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

/// Where replicas of volumes are kept, unless another place is named.
const STORAGE_PATH: &str = "/var/lib/vpc/storage/disk";

/// The agent of this host.
#[derive(Debug, Subcommand)]
pub(crate) enum Agent {
    /// Run the agent until it is told to stop; the data plane stays when it ends
    #[command(after_help = run_help())]
    Run(Run),
    /// End the agent of this host; the data plane stays
    #[command(after_help = "Examples:
  vpc agent stop
  vpc agent stop --withdraw      other hosts stop sending here at once")]
    Stop {
        #[command(flatten)]
        agent: AgentAccess,
        /// Withdraw this host's routes first
        #[arg(long)]
        withdraw: bool,
    },
    /// How the agent of this host is
    #[command(after_help = "Examples:\n  vpc agent status\n  vpc agent status -o json")]
    Status {
        #[command(flatten)]
        agent: AgentAccess,
    },
    /// Which addresses NICs of this host took by DHCP, and when
    #[command(after_help = "Examples:\n  vpc agent leases\n  vpc agent leases -o json")]
    Leases {
        #[command(flatten)]
        agent: AgentAccess,
    },
    /// Bridges, tunnel endpoints and NICs by the agent's own API, with or without a server
    #[command(subcommand)]
    L2(L2),
    /// Routers by the agent's own API, with or without a server
    #[command(subcommand)]
    L3(l3::HostRouter),
}

/// The agent's own API.
#[derive(Debug, Subcommand)]
pub(crate) enum L2 {
    /// VPCs on this host
    #[command(subcommand)]
    Stack(l2::Stack),
    /// NICs on this host
    #[command(subcommand)]
    Port(l2::Port),
}

/// `vpc agent run`. A flag wins over the environment, that over the file.
#[derive(Debug, Args)]
pub(crate) struct Run {
    /// The file with its settings
    #[arg(long, value_name = "FILE", env = "VPC_AGENT_CONFIG")]
    config: Option<PathBuf>,
    /// The name of this host
    #[arg(long)]
    name: Option<String>,
    /// The VTEP's address
    #[arg(long, value_name = "ADDRESS")]
    underlay_address: Option<IpAddr>,
    /// What carries frames to other hosts: kernel or tap
    #[arg(long)]
    transport: Option<Transport>,
    /// What the host is for, with commas between
    #[arg(long)]
    roles: Option<String>,
    /// What `vpc host join` wrote
    #[arg(long, value_name = "FILE")]
    host_credential: Option<String>,
    /// Where it keeps its configuration
    #[arg(long, value_name = "DIR")]
    state_dir: Option<String>,
    /// Where it keeps what a reboot ends
    #[arg(long, value_name = "DIR")]
    run_dir: Option<String>,
    /// Where its own API listens
    #[arg(long, value_name = "PATH")]
    socket: Option<String>,
    /// Where to give out metrics, over HTTP
    #[arg(long, value_name = "ADDRESS:PORT")]
    metrics: Option<String>,
    /// What to log, as RUST_LOG has it
    #[arg(long)]
    log: Option<String>,
}

fn run_help() -> String {
    format!(
        "Examples:
  vpc agent run
  vpc agent run --underlay-address 192.0.2.7     without a server, by its own API
  VPC_AGENT_LOG=debug vpc agent run --config /etc/vpc/agent.toml

Settings come from {AGENT_CONFIG}, then VPC_AGENT_* (as in VPC_AGENT_STATE_DIR), then flags;
the later wins. A file with every key:

{AGENT_EXAMPLE}"
    )
}

impl Agent {
    /// Does it.
    pub(crate) fn run(self, global: &Global) -> Outcome {
        match self {
            Self::Run(run) => run.run(),
            Self::Stop { agent, withdraw } => block_on(async {
                agent
                    .agent()
                    .await?
                    .stop(v1::StopRequest { withdraw })
                    .await
                    .map(drop)
                    .map_err(|status| refused("stopping the agent", &status))
            }),
            Self::Status { agent } => block_on(async {
                let status = agent
                    .agent()
                    .await?
                    .status(v1::AgentStatusRequest {})
                    .await
                    .map_err(|status| refused("asking the agent how it is", &status))?;
                show(global, status.into_inner())
            }),
            Self::Leases { agent } => leases::run(global, &agent),
            Self::L2(L2::Stack(stack)) => stack.run(global),
            Self::L2(L2::Port(port)) => port.run(global),
            Self::L3(router) => router.run(global),
        }
    }
}

impl Run {
    fn run(&self) -> Outcome {
        let settings = self.settings()?;
        logging::start(&settings.log)?;
        let options = options(settings)?;
        tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .doing(|| "starting the event loop".to_owned())?
            .block_on(agent::run(options))
            .doing(|| "running the agent".to_owned())
    }

    fn settings(&self) -> Outcome<AgentSettings> {
        let mut sources = Sources::new(&AGENT);
        match &self.config {
            Some(path) => sources.read_file(path, true)?,
            None => sources.read_file(AGENT_CONFIG.as_ref(), false)?,
        }
        sources.add_env();
        let underlay = self.underlay_address.map(|address| address.to_string());
        let transport = self.transport.map(|transport| transport.to_string());
        for (key, flag) in [
            ("name", &self.name),
            ("underlay_address", &underlay),
            ("transport", &transport),
            ("roles", &self.roles),
            ("credential", &self.host_credential),
            ("state_dir", &self.state_dir),
            ("run_dir", &self.run_dir),
            ("socket", &self.socket),
            ("metrics", &self.metrics),
            ("log", &self.log),
        ] {
            if let Some(value) = flag {
                sources.add_flag(key, value);
            }
        }
        sources.agent()
    }
}

fn options(settings: AgentSettings) -> Outcome<agent::Options> {
    let name = match settings.name {
        Some(name) => name,
        None => own_name()?,
    };
    let underlay = settings.underlay_address.ok_or_else(|| {
        Failure::new("settings of the agent: underlay_address is not set").hint(format!(
            "join a cluster with `vpc host join`, which writes {AGENT_CONFIG}; or give the address \
             of this host that tunnels end at with --underlay-address"
        ))
    })?;
    let mut options = agent::Options::new(name, underlay);
    options.transport = settings.transport;
    if let Some(most) = settings.port_questions {
        options.limits.questions_per_s = most;
    }
    if let Some(most) = settings.subnet_flood {
        options.limits.flood_per_s = most;
    }
    options.without = settings.without;
    options.roles = settings.roles;
    options.credential = settings.credential;
    options.socket = settings.socket;
    if let Some(dir) = settings.state_dir {
        options.state_dir = dir;
    }
    if let Some(dir) = settings.run_dir {
        options.run_dir = dir;
    }
    if let Some(pace) = settings.resync {
        options.resync_every = pace;
    }
    if let Some(pace) = settings.unused_stack {
        options.unused_stack_after = pace;
    }
    options.keep_bridge_netfilter = settings.keep_bridge_netfilter;
    options.mac_limit = settings.mac_limit;
    if let Some(most) = settings.router_flows {
        options.router_flows = most;
    }
    options.metrics = settings.metrics;
    options.resolvers = settings.resolvers;
    options.storage = match (settings.storage_path, settings.storage_size) {
        (None, None) => None,
        (path, size) => Some(sbs::DiskOptions {
            path: path.unwrap_or_else(|| PathBuf::from(STORAGE_PATH)),
            bytes: size.map_or(0, VolumeSize::bytes),
        }),
    };
    Ok(options)
}

/// How an agent is.
#[derive(Debug, Serialize)]
struct StatusView {
    host_id: Option<String>,
    host_name: String,
    agent_version: String,
    kernel_version: String,
    roles: Vec<String>,
    capabilities: Vec<String>,
    underlay_address: String,
    underlay_mtu: u32,
    /// "kernel" or "tap".
    transport: String,
    desired_generation: u64,
    applied_generation: u64,
    converged: bool,
    server_connected: bool,
    server: Option<String>,
    server_trouble: Option<String>,
    clock_ahead_ms: Option<i64>,
    certificate_not_after: Option<String>,
    started: String,
    stacks: u32,
    nics: u32,
    drift_repairs: u64,
    resyncs: u64,
    whole_readings: u64,
    actions: u64,
    failed_actions: u64,
    configs_received: u64,
    reconnects: u64,
    questions: Vec<QuestionsView>,
    standby_for: Vec<KeptView>,
    peers: Vec<PeerView>,
    conditions: Vec<ConditionView>,
}

/// What is kept here of a router elsewhere.
#[derive(Debug, Serialize)]
struct KeptView {
    router_id: String,
    router_name: String,
    kept: u64,
    refused: u64,
}

impl From<v1::KeptConnections> for KeptView {
    fn from(kept: v1::KeptConnections) -> Self {
        Self {
            router_id: kept.router_id,
            router_name: kept.router_name,
            kept: kept.kept,
            refused: kept.refused,
        }
    }
}

impl KeptView {
    fn line(&self) -> String {
        let full = match self.refused {
            0 => String::new(),
            refused => format!(", no room for {refused} more"),
        };
        format!(
            "{}: {} connections known{full}",
            self.router_name, self.kept
        )
    }
}

/// What NICs asked the routers here for.
#[derive(Debug, Serialize)]
struct QuestionsView {
    /// "dns" or "metadata".
    service: String,
    queries: u64,
    answered: u64,
    forwarded: u64,
    unanswered: u64,
    refused: u64,
    events: BTreeMap<String, u64>,
}

impl From<v1::RouterQuestions> for QuestionsView {
    fn from(told: v1::RouterQuestions) -> Self {
        Self {
            service: told.service,
            queries: told.queries,
            answered: told.answered,
            forwarded: told.forwarded,
            unanswered: told.unanswered,
            refused: told.refused,
            events: told.events.into_iter().collect(),
        }
    }
}

impl QuestionsView {
    fn line(&self) -> String {
        format!(
            "{} {} queries: {} answered, {} forwarded, {} unanswered, {} refused",
            self.queries,
            self.service,
            self.answered,
            self.forwarded,
            self.unanswered,
            self.refused
        )
    }
}

fn show(global: &Global, status: v1::AgentStatus) -> Outcome {
    let counters = status.counters.unwrap_or_default();
    let view = StatusView {
        roles: status.roles().map(role).collect(),
        transport: transport(status.transport()),
        capabilities: status.capabilities().map(capability).collect(),
        host_id: some(status.host_id),
        host_name: status.host_name,
        agent_version: status.agent_version,
        kernel_version: status.kernel_version,
        underlay_address: status.underlay_address,
        underlay_mtu: status.underlay_mtu,
        desired_generation: status.desired_generation,
        applied_generation: status.applied_generation,
        converged: status.converged,
        server_connected: status.server_connected,
        server: some(status.server),
        server_trouble: some(status.server_trouble),
        clock_ahead_ms: status.clock_ahead_ms,
        certificate_not_after: some(time(status.certificate_not_after_unix_ms)),
        started: time(status.started_unix_ms),
        stacks: status.stacks,
        nics: status.nics,
        drift_repairs: counters.drift_repairs,
        resyncs: counters.resyncs,
        whole_readings: counters.whole_readings,
        actions: counters.actions,
        failed_actions: counters.failed_actions,
        configs_received: counters.configs_received,
        reconnects: counters.reconnects,
        questions: status.questions.into_iter().map(Into::into).collect(),
        standby_for: status.standby_for.into_iter().map(Into::into).collect(),
        peers: status.peers.into_iter().map(Into::into).collect(),
        conditions: status.conditions.into_iter().map(Into::into).collect(),
    };
    if global.output == Format::Json {
        return json(&view);
    }
    global.output.one(&view, &details(&view))?;
    if view.peers.is_empty() {
        return Ok(());
    }
    print("")?;
    global.output.many(&view.peers)
}

fn details(view: &StatusView) -> Vec<(&'static str, String)> {
    let server = match (&view.server, view.server_connected) {
        (Some(server), true) => format!("connected to {server}"),
        _ if view.host_id.is_none() => "none: this host did not join a cluster".to_owned(),
        _ => {
            let why = view
                .server_trouble
                .as_deref()
                .map(|why| format!(" ({why})"));
            format!(
                "not connected{}; works on from the configuration it has",
                why.unwrap_or_default()
            )
        }
    };
    let clock = match view.clock_ahead_ms {
        None => "not compared with a server's".to_owned(),
        Some(ahead) => {
            agent::far_clock(ahead).map_or_else(|| "as the server's".to_owned(), |(what, _)| what)
        }
    };
    let mut details = vec![
        ("host", view.host_name.clone()),
        ("id", view.host_id.clone().unwrap_or_default()),
        ("roles", view.roles.join(" ")),
        (
            "agent",
            format!("{} since {}", view.agent_version, view.started),
        ),
        ("kernel", view.kernel_version.clone()),
        ("capabilities", view.capabilities.join(" ")),
        (
            "underlay",
            format!("{} mtu {}", view.underlay_address, view.underlay_mtu),
        ),
        ("transport", view.transport.clone()),
        ("server", server),
        ("clock", clock),
        (
            "certificate until",
            view.certificate_not_after.clone().unwrap_or_default(),
        ),
        (
            "generation",
            format!(
                "{} held, {} applied",
                view.desired_generation, view.applied_generation
            ),
        ),
        (
            "carries",
            format!("{} stacks, {} nics", view.stacks, view.nics),
        ),
        (
            "counters",
            format!(
                "{} actions, {} failed, {} drift repairs, {} resyncs, {} configurations, {} reconnects",
                view.actions,
                view.failed_actions,
                view.drift_repairs,
                view.resyncs,
                view.configs_received,
                view.reconnects
            ),
        ),
        (
            "state",
            match view.converged {
                true => "converged: nothing is left to do",
                false => "working",
            }
            .to_owned(),
        ),
    ];
    let asked = view.questions.iter().filter(|told| told.queries > 0);
    details.extend(asked.map(|told| ("routers were asked", told.line())));
    let kept = view.standby_for.iter();
    details.extend(kept.map(|kept| ("stands by for", kept.line())));
    details.extend(condition_lines(&view.conditions));
    details
}
