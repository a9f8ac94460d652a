//! `vpc datapath`: the process of the userspace transport on this host.

mod flows;

use super::logging;
use crate::failure::{Doing, Failure, Outcome};
use crate::options::Global;
use crate::output::{Format, Row, json, print};
use clap::{Args, Subcommand};
use datapath::{Domain, FLOWS_DEFAULT, FLOWS_MAX, Tables, Unknown};
use flows::ListFlows;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;
use tunnel::{Client, Options, TunnelError};

/// The datapath of this host.
#[derive(Debug, Subcommand)]
pub(crate) enum Datapath {
    /// Run it until it is told to end; the agent does this where its transport is tap
    #[command(after_help = "Examples:
  vpc datapath run
  vpc datapath run --workers 4 --busy-poll 50    four threads, awake for 50 us after each frame")]
    Run(Run),
    /// How it is, and what it counted
    #[command(after_help = "Examples:\n  vpc datapath status\n  vpc datapath status -o json")]
    Status(Where),
    /// Which flows pass now, and how much of each
    #[command(
        after_help = "A flow that was silent for a minute is shown no more; counters go on when another datapath takes over.
What is answered here or dropped is no flow: see vpc datapath status.

Examples:
  vpc datapath flows --limit 20
  vpc datapath flows --vni 4098 --address 10.4.1.10
  vpc datapath flows -o json"
    )]
    Flows(ListFlows),
    /// What it was told: TAPs, VTEPs, MACs, addresses
    #[command(after_help = "Examples:\n  vpc datapath show\n  vpc datapath show -o json")]
    Show(Where),
    /// Start a new process that takes over from the one that runs; no connection notices
    #[command(after_help = "Examples:\n  vpc datapath restart      after vpc itself was replaced")]
    Restart(Where),
    /// End it; NICs of this host reach no others until the agent starts it again
    #[command(after_help = "Examples:\n  vpc datapath stop")]
    Stop(Where),
}

/// Where its socket is.
#[derive(Debug, Args)]
pub(crate) struct Where {
    /// The agent's run directory
    #[arg(
        long,
        value_name = "DIR",
        default_value = "/run/vpc",
        env = "VPC_AGENT_RUN_DIR",
        hide_env = true
    )]
    run_dir: PathBuf,
}

/// See [`Options`].
#[derive(Debug, Args)]
pub(crate) struct Run {
    #[command(flatten)]
    at: Where,
    /// Threads, each with a queue of each TAP; one for each processor, eight at most, if not given
    #[arg(long, value_name = "N", env = "VPC_DATAPATH_WORKERS")]
    workers: Option<usize>,
    /// How long, in microseconds, a thread looks for more frames before it sleeps: saves the time of
    /// waking, and keeps a processor busy
    #[arg(
        long,
        value_name = "US",
        default_value_t = 0,
        env = "VPC_DATAPATH_BUSY_POLL"
    )]
    busy_poll: u64,
    /// Flows that each thread counts at a time, for `vpc datapath flows`; none at 0
    #[arg(
        long,
        value_name = "N",
        default_value_t = FLOWS_DEFAULT as u32,
        value_parser = clap::value_parser!(u32).range(..=FLOWS_MAX as i64),
        env = "VPC_DATAPATH_FLOWS"
    )]
    flows: u32,
    /// What to log, as RUST_LOG has it
    #[arg(long, value_name = "FILTER", default_value = "info")]
    log: String,
}

#[derive(Debug, Serialize)]
struct Status {
    pid: u32,
    address: Option<String>,
    domains: usize,
    macs: usize,
    neighbours: usize,
    sent: tunnel::Counted,
    received: tunnel::Counted,
    answered: u64,
    dropped: BTreeMap<String, u64>,
}

impl Datapath {
    pub(crate) fn run(self, global: &Global) -> Outcome {
        match self {
            Self::Run(run) => run.run(),
            Self::Status(at) => status(&at, global),
            Self::Flows(list) => list.run(global),
            Self::Show(at) => {
                let mut client = Client::connect(&at.run_dir).map_err(failure)?;
                let tables = client.tables().map_err(failure)?;
                shown(global, &TablesView::of(client.pid(), &tables))
            }
            Self::Restart(at) => {
                let client = Client::start(&at.run_dir).map_err(failure)?;
                let pid = client.pid();
                global.output.event(&serde_json::json!({ "pid": pid }), || {
                    format!("the datapath is process {pid} now")
                })
            }
            Self::Stop(at) => {
                let client = Client::connect(&at.run_dir).map_err(failure)?;
                client.stop().map_err(failure)
            }
        }
    }
}

impl Run {
    fn run(self) -> Outcome {
        if self.workers == Some(0) {
            return Err(Failure::new("--workers 0: somebody has to work")
                .hint("leave it out for one thread a processor"));
        }
        logging::start(&self.log)?;
        let options = Options {
            run_dir: self.at.run_dir,
            workers: self.workers,
            busy_poll: Duration::from_micros(self.busy_poll),
            flows: self.flows as usize,
        };
        tunnel::run(&options).doing(|| "running the datapath".to_owned())
    }
}

fn status(at: &Where, global: &Global) -> Outcome {
    let mut client = Client::connect(&at.run_dir).map_err(failure)?;
    let tables = client.tables().map_err(failure)?;
    let figures = client.figures().map_err(failure)?;
    let status = Status {
        pid: client.pid(),
        address: tables.local.map(|address| address.to_string()),
        domains: tables.bindings.len(),
        macs: tables.macs.len(),
        neighbours: tables.neighbours.len(),
        sent: figures.out,
        received: figures.inward,
        answered: figures.answered,
        dropped: figures.dropped,
    };
    let counted = |counted: tunnel::Counted| {
        let tunnel::Counted {
            packets,
            frames,
            bytes,
        } = counted;
        format!("{packets} packets, {frames} frames, {bytes} bytes")
    };
    let dropped: Vec<String> = status
        .dropped
        .iter()
        .map(|(reason, count)| format!("{reason} {count}"))
        .collect();
    let details = [
        ("process", status.pid.to_string()),
        ("address", status.address.clone().unwrap_or_default()),
        ("subnets", status.domains.to_string()),
        ("MACs elsewhere", status.macs.to_string()),
        ("neighbours", status.neighbours.to_string()),
        ("sent", counted(status.sent)),
        ("received", counted(status.received)),
        (
            "answered",
            format!("{} questions for neighbours", status.answered),
        ),
        ("dropped", dropped.join(", ")),
    ];
    global.output.one(&status, &details)
}

fn failure(error: TunnelError) -> Failure {
    let is_absent = matches!(error, TunnelError::Absent { .. });
    let failure = Failure::new(crate::failure::with_causes(&error));
    if is_absent {
        return failure.hint("one runs where the agent's transport is tap; this needs root");
    }
    failure
}

/// All that a datapath was told.
#[derive(Debug, Serialize)]
struct TablesView {
    pid: u32,
    local: Option<String>,
    /// Of a port, that are answered in a second.
    questions_per_s: u32,
    /// Of a subnet, that are sent to all in a second.
    flood_per_s: u32,
    bindings: Vec<BindingView>,
    macs: Vec<MacView>,
    flood: Vec<FloodView>,
    neighbours: Vec<NeighbourView>,
}

/// A domain on this host.
#[derive(Debug, Serialize)]
struct BindingView {
    tap: String,
    vlan: Option<u16>,
    vni: u32,
    tag: Option<u16>,
    mtu: u16,
    /// "flood" or "drop".
    unknown: &'static str,
    macs: usize,
    vteps: usize,
    neighbours: usize,
}

#[derive(Debug, Serialize)]
struct MacView {
    vni: u32,
    tag: Option<u16>,
    mac: String,
    vtep: String,
}

#[derive(Debug, Serialize)]
struct FloodView {
    vni: u32,
    tag: Option<u16>,
    vtep: String,
}

#[derive(Debug, Serialize)]
struct NeighbourView {
    vni: u32,
    tag: Option<u16>,
    address: String,
    mac: String,
    router: bool,
    here: bool,
}

impl TablesView {
    fn of(pid: u32, tables: &Tables) -> Self {
        let numbers = |domain: &Domain| (domain.vni.get(), domain.tag.map(|tag| tag.get()));
        let of = |domain: Domain| move |other: &Domain| *other == domain;
        let bindings = tables.bindings.iter().map(|(place, binding)| {
            let (vni, tag) = numbers(&binding.domain);
            let is = of(binding.domain);
            let count =
                |domains: &mut dyn Iterator<Item = &Domain>| domains.filter(|d| is(d)).count();
            BindingView {
                tap: place.tap.to_string(),
                vlan: place.vlan.map(|vlan| vlan.get()),
                vni,
                tag,
                mtu: binding.mtu.get(),
                unknown: match binding.unknown {
                    Unknown::Flood => "flood",
                    Unknown::Drop => "drop",
                },
                macs: count(&mut tables.macs.keys().map(|(domain, _)| domain)),
                vteps: count(&mut tables.flood.iter().map(|(domain, _)| domain)),
                neighbours: count(&mut tables.neighbours.keys().map(|(domain, _)| domain)),
            }
        });
        let macs = tables.macs.iter().map(|((domain, mac), vtep)| {
            let (vni, tag) = numbers(domain);
            let (mac, vtep) = (mac.to_string(), vtep.to_string());
            MacView {
                vni,
                tag,
                mac,
                vtep,
            }
        });
        let flood = tables.flood.iter().map(|(domain, vtep)| {
            let (vni, tag) = numbers(domain);
            let vtep = vtep.to_string();
            FloodView { vni, tag, vtep }
        });
        let neighbours = tables.neighbours.iter().map(|((domain, ip), neighbour)| {
            let (vni, tag) = numbers(domain);
            NeighbourView {
                vni,
                tag,
                address: ip.to_string(),
                mac: neighbour.mac.to_string(),
                router: neighbour.router,
                here: neighbour.here,
            }
        });
        Self {
            pid,
            local: tables.local.map(|local| local.to_string()),
            questions_per_s: tables.limits.questions_per_s,
            flood_per_s: tables.limits.flood_per_s,
            bindings: bindings.collect(),
            macs: macs.collect(),
            flood: flood.collect(),
            neighbours: neighbours.collect(),
        }
    }
}

fn shown(global: &Global, view: &TablesView) -> Outcome {
    if global.output == Format::Json {
        return json(view);
    }
    let local = view.local.as_deref();
    let details = [
        ("process", view.pid.to_string()),
        ("tunnels at", local.unwrap_or("none").to_owned()),
        (
            "lets through",
            format!(
                "{} questions a second of a port, {} frames a second to all of a subnet",
                view.questions_per_s, view.flood_per_s
            ),
        ),
    ];
    global.output.one(view, &details)?;
    if view.bindings.is_empty() {
        return Ok(());
    }
    print("")?;
    global.output.many(&view.bindings)
}

impl Row for BindingView {
    const COLUMNS: &'static [&'static str] = &[
        "tap",
        "vlan",
        "vni",
        "tag",
        "mtu",
        "unknown",
        "vteps",
        "macs",
        "neighbours",
    ];
    fn cells(&self) -> Vec<String> {
        let number = |number: Option<u16>| number.map(|n| n.to_string()).unwrap_or_default();
        vec![
            self.tap.clone(),
            number(self.vlan),
            self.vni.to_string(),
            number(self.tag),
            self.mtu.to_string(),
            self.unknown.to_owned(),
            self.vteps.to_string(),
            self.macs.to_string(),
            self.neighbours.to_string(),
        ]
    }
}
