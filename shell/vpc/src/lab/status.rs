//! What is up.

use super::control::{self, Request};
use super::process::ProcessId;
use super::state::{HostKind, LabDir};
use crate::failure::{Doing, Outcome};
use crate::output::{Format, Row};
use serde::Serialize;
use std::fs;
use std::time::Duration;

/// One lab host.
#[derive(Debug, Serialize)]
pub(crate) struct HostView {
    name: String,
    kind: HostKind,
    roles: Vec<String>,
    underlay_address: Option<String>,
    outside_addresses: Vec<String>,
    running: bool,
    /// The holder, as the machine numbers it.
    pid: Option<u32>,
    daemons: Vec<DaemonView>,
}

/// One daemon of a lab host.
#[derive(Debug, Serialize)]
pub(crate) struct DaemonView {
    name: String,
    running: bool,
    /// As the machine numbers it, while it runs.
    pid: Option<u32>,
    /// How it ended.
    exit: Option<String>,
    log: String,
}

/// A lab.
#[derive(Debug, Serialize)]
pub(crate) struct LabView {
    name: String,
    /// "down", "incomplete" or "up".
    state: &'static str,
    mtu: Option<u32>,
    directory: Option<String>,
    hosts: Vec<HostView>,
}

/// Reads what is written down and asks the holders.
pub(crate) fn read(lab: &LabDir) -> Outcome<LabView> {
    let Some(state) = lab.load()? else {
        let half = lab.path().exists();
        return Ok(LabView {
            name: lab.name().to_owned(),
            state: if half { "incomplete" } else { "down" },
            mtu: None,
            directory: half.then(|| lab.path().display().to_string()),
            hosts: Vec::new(),
        });
    };
    let mut hosts = Vec::new();
    for host in &state.hosts {
        let mut holder = host.holder.filter(ProcessId::is_alive);
        let daemons = match holder.map(|holder| daemons(lab, &host.name, holder.pid)) {
            Some(Ok(daemons)) => daemons,
            // It ended while it was asked, or has not got so far as to listen.
            Some(Err(_)) if holder.is_some_and(|holder| holder.ends_within(ENDING)) => {
                holder = None;
                Vec::new()
            }
            Some(Err(_)) if !state.complete => Vec::new(),
            Some(Err(failure)) => return Err(failure),
            None => Vec::new(),
        };
        hosts.push(HostView {
            name: host.name.clone(),
            kind: host.kind,
            roles: host.roles.clone(),
            underlay_address: host.underlay.map(|address| address.to_string()),
            outside_addresses: host.outside.iter().map(ToString::to_string).collect(),
            running: holder.is_some(),
            pid: holder.map(|holder| holder.pid),
            daemons,
        });
    }
    let whole = state.complete && hosts.iter().all(|host| host.running);
    Ok(LabView {
        name: lab.name().to_owned(),
        state: if whole { "up" } else { "incomplete" },
        mtu: Some(state.mtu),
        directory: Some(lab.path().display().to_string()),
        hosts,
    })
}

/// For how long a host that hangs up may still be there.
const ENDING: Duration = Duration::from_secs(1);

fn daemons(lab: &LabDir, host: &str, holder: u32) -> Outcome<Vec<DaemonView>> {
    let daemons = control::ask(lab, host, &Request::Status)?;
    Ok(daemons
        .into_iter()
        .map(|daemon| DaemonView {
            running: daemon.is_running(),
            pid: daemon
                .is_running()
                .then(|| on_machine(holder, daemon.pid))
                .flatten(),
            log: lab.log(host, &daemon.name).display().to_string(),
            exit: daemon.exit,
            name: daemon.name,
        })
        .collect())
}

/// The machine's number of a process that a host numbers `inner`: the child of the holder whose
/// innermost number that is.
fn on_machine(holder: u32, inner: u32) -> Option<u32> {
    let children = fs::read_to_string(format!("/proc/{holder}/task/{holder}/children")).ok()?;
    children.split_whitespace().find_map(|child| {
        let status = fs::read_to_string(format!("/proc/{child}/status")).ok()?;
        let numbers = status
            .lines()
            .find_map(|line| line.strip_prefix("NSpid:"))?;
        let innermost: u32 = numbers.split_whitespace().last()?.parse().ok()?;
        (innermost == inner).then(|| child.parse().ok()).flatten()
    })
}

/// Shows it.
pub(crate) fn show(lab: &LabDir, format: Format) -> Outcome {
    let view = read(lab)?;
    if format == Format::Json {
        return crate::output::json(&view);
    }
    if view.state == "down" {
        let others: Vec<String> = LabDir::all()?
            .iter()
            .map(|other| other.name().to_owned())
            .collect();
        let others = match others.is_empty() {
            true => String::new(),
            false => format!("; up: {}", others.join(", ")),
        };
        return crate::output::print(&format!("Lab {} is down{others}.", view.name));
    }
    format.many(&view.hosts)?;
    let directory = view.directory.unwrap_or_default();
    crate::output::print(&format!(
        "\nLab {}: {}. Logs: {directory}/log",
        view.name, view.state
    ))
}

impl Row for HostView {
    const COLUMNS: &'static [&'static str] = &["host", "roles", "addresses", "state", "daemons"];
    fn cells(&self) -> Vec<String> {
        let addresses: Vec<&str> = self
            .underlay_address
            .iter()
            .chain(&self.outside_addresses)
            .map(String::as_str)
            .collect();
        let roles = match self.kind {
            HostKind::Underlay => "(switches)".to_owned(),
            HostKind::Outside => "(outside)".to_owned(),
            HostKind::Host => self.roles.join(","),
        };
        let daemons: Vec<String> = self
            .daemons
            .iter()
            .map(|daemon| match (&daemon.exit, daemon.pid) {
                (Some(exit), _) => format!("{}: ended, {exit}", daemon.name),
                (None, Some(pid)) => format!("{}: pid {pid}", daemon.name),
                (None, None) => format!("{}: running", daemon.name),
            })
            .collect();
        vec![
            self.name.clone(),
            roles,
            addresses.join(" "),
            if self.running { "running" } else { "gone" }.to_owned(),
            daemons.join("; "),
        ]
    }
}

/// The last lines of a daemon's log, to go with a failure.
pub(crate) fn log_tail(lab: &LabDir, host: &str, daemon: &str, lines: usize) -> Outcome<String> {
    let path = lab.log(host, daemon);
    let text = fs::read_to_string(&path).doing(|| format!("reading {}", path.display()))?;
    let all: Vec<&str> = text.lines().collect();
    let tail = &all[all.len().saturating_sub(lines)..];
    Ok(tail.join("\n"))
}
