//! The cluster on a lab's hosts, made with the commands that an administrator would type.

use super::cli::DaemonKind;
use super::control::{self, Request};
use super::progress::Progress;
use super::spec::{EXT_NAME, OUTSIDE_NETWORK};
use super::state::{LabDir, LabHost, LabState};
use super::status::log_tail;
use crate::connect::SERVER_PORT;
use crate::failure::{Doing, Failure, Outcome};
use crate::settings::{AGENT_CONFIG, ReflectorKind};
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// How long each stage may take until it works.
const DEADLINE: Duration = Duration::from_secs(30);
/// What an external reflector reads.
const GOBGP_CONFIG: &str = "/etc/vpc/gobgpd.toml";
/// Of a storage host's disk, which is in memory as all of a lab is.
const STORAGE_SIZE: &str = "128MiB";
/// Between two looks. Nothing announces what is waited for here to a process on the machine.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Makes the cluster: server, tokens, joins, agents; waits until all hosts are up and speak BGP.
pub(crate) fn form(
    lab: &LabDir,
    state: &LabState,
    reflector: ReflectorKind,
    progress: &mut Progress,
) -> Outcome {
    let inside = Inside { lab, state };
    let management = state.management()?;
    let address = management
        .underlay
        .map(|address| address.to_string())
        .unwrap_or_default();
    let server = match management.underlay {
        Some(IpAddr::V6(_)) => format!("[{address}]:{SERVER_PORT}"),
        _ => format!("{address}:{SERVER_PORT}"),
    };

    progress.step(&format!("server on {}", management.name));
    let mtu = state.mtu.to_string();
    inside.vpc(
        &management.name,
        &[
            "server",
            "init",
            "--advertise",
            &server,
            "--reflector",
            reflector.name(),
            "--reflector",
            &address,
            "--underlay-mtu",
            &mtu,
        ],
    )?;
    start(lab, management, DaemonKind::Server, &[])?;
    inside.eventually(
        &management.name,
        DaemonKind::Server,
        "the server to answer",
        || {
            inside
                .json(&management.name, &["host", "list"])
                .map(|_| true)
        },
    )?;

    progress.step("agents: join and start");
    for host in state.agents() {
        progress.detail(&host.name);
        join(&inside, management, host, &server)?;
        start(lab, host, DaemonKind::Agent, &[])?;
    }

    if reflector == ReflectorKind::External {
        progress.step(&format!("GoBGP on {}", management.name));
        let line = format!("vpc server reflector-config gobgp > {GOBGP_CONFIG}");
        inside.sh(&management.name, &line)?;
        start(lab, management, DaemonKind::Reflector, &[])?;
    }

    if state.agents().any(LabHost::is_route) {
        progress.step("the network outside");
        let mut create = vec!["external", "create", EXT_NAME];
        create.extend(OUTSIDE_NETWORK);
        inside.vpc(&management.name, &create)?;
    }

    if state.agents().any(LabHost::is_storage) {
        progress.step("disks of storage hosts");
        for host in state.agents().filter(|host| host.is_storage()) {
            progress.detail(&host.name);
            inside.eventually(&host.name, DaemonKind::Agent, "its disk", || {
                let status = inside.json(&host.name, &["storage", "status"])?;
                Ok(!status["disk"].is_null())
            })?;
        }
    }

    progress.step("hosts up, EVPN sessions established");
    let expected = state.agents().count();
    inside.eventually(
        &management.name,
        DaemonKind::Server,
        "all hosts to be up",
        || {
            let hosts = inside.json(&management.name, &["host", "list"])?;
            let up = |host: &&Value| host["state"] == "up";
            Ok(hosts
                .as_array()
                .is_some_and(|hosts| hosts.iter().filter(up).count() == expected))
        },
    )?;
    for host in state.agents() {
        progress.detail(&host.name);
        inside.eventually(&host.name, DaemonKind::Agent, "its EVPN session", || {
            let peers = inside.json(&host.name, &["evpn", "peers"])?;
            let established = |peer: &Value| peer["state"] == "established";
            Ok(peers
                .as_array()
                .is_some_and(|peers| !peers.is_empty() && peers.iter().all(established)))
        })?;
    }
    Ok(())
}

fn join(inside: &Inside<'_>, management: &LabHost, host: &LabHost, server: &str) -> Outcome {
    let mut create = vec!["host", "token", "create", "--host", &host.name];
    for role in &host.roles {
        create.extend(["--role", role]);
    }
    let token = inside.json(&management.name, &create)?;
    let text = token["text"].as_str().unwrap_or_default();
    let underlay = host
        .underlay
        .map(|address| address.to_string())
        .unwrap_or_default();
    let mut join = vec![
        "host",
        "join",
        "--server",
        server,
        "--token",
        text,
        "--name",
        &host.name,
        "--underlay",
        &underlay,
    ];
    for role in &host.roles {
        join.extend(["--role", role]);
    }
    let speaker = host.speaker.to_string();
    join.extend(["--speaker", &speaker]);
    let transport = host.transport.to_string();
    join.extend(["--transport", &transport]);
    inside.vpc(&host.name, &join)?;
    if host.is_storage() {
        let line = format!("echo 'storage_size = \"{STORAGE_SIZE}\"' >> {AGENT_CONFIG}");
        inside.sh(&host.name, &line)?;
    }
    Ok(())
}

/// Starts a daemon on a host.
pub(crate) fn start(lab: &LabDir, host: &LabHost, daemon: DaemonKind, more: &[String]) -> Outcome {
    let argv: &[&str] = match daemon {
        DaemonKind::Agent | DaemonKind::Server => &["vpc", daemon.name(), "run"],
        DaemonKind::Reflector => &["gobgpd", "-r", "-f", GOBGP_CONFIG],
    };
    let mut argv: Vec<String> = argv.iter().map(ToString::to_string).collect();
    argv.extend(more.iter().cloned());
    let env: BTreeMap<String, String> = ["RUST_LOG", "RUST_BACKTRACE"]
        .into_iter()
        .filter_map(|name| Some((name.to_owned(), std::env::var(name).ok()?)))
        .collect();
    let request = Request::Start {
        daemon: daemon.name().to_owned(),
        argv,
        env,
    };
    control::ask(lab, &host.name, &request).map(drop)
}

/// Commands on the lab's hosts.
#[derive(Clone, Copy)]
pub(crate) struct Inside<'a> {
    /// Which lab.
    pub(crate) lab: &'a LabDir,
    /// What is in it.
    pub(crate) state: &'a LabState,
}

impl Inside<'_> {
    /// A command at a place, HOST or HOST/NAMESPACE.
    pub(crate) fn command(&self, place: &str, argv: &[&str]) -> Command {
        let mut command = Command::new(&self.state.binary);
        command
            .args(["lab", "exec", "--name", self.lab.name(), place, "--"])
            .args(argv)
            .stdin(Stdio::null());
        command
    }

    /// Runs `vpc` on a host, as its administrator, and returns what it printed.
    pub(crate) fn vpc(&self, host: &str, arguments: &[&str]) -> Outcome<String> {
        let mut argv = vec!["vpc"];
        argv.extend(arguments);
        let shown = || format!("on {host}: vpc {}", without_secrets(arguments));
        self.run(host, &argv, shown)
    }

    /// Runs a shell line without secrets on a host.
    pub(super) fn sh(&self, host: &str, line: &str) -> Outcome<String> {
        self.run(host, &["sh", "-c", line], || format!("on {host}: {line}"))
    }

    fn run(&self, host: &str, argv: &[&str], shown: impl Fn() -> String) -> Outcome<String> {
        let output = self.command(host, argv).output().doing(&shown)?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let said = said.trim().trim_start_matches("error: ");
        Err(Failure::new(format!("{}: {said}", shown())))
    }

    /// Runs `vpc ... -o json` on a host.
    pub(crate) fn json(&self, host: &str, arguments: &[&str]) -> Outcome<Value> {
        let mut all = arguments.to_vec();
        all.extend(["-o", "json"]);
        let text = self.vpc(host, &all)?;
        serde_json::from_str(&text).doing(|| {
            format!(
                "on {host}: reading what vpc {} printed",
                without_secrets(arguments)
            )
        })
    }

    /// Looks until it holds. On timeout the failure has the last reason and the end of the log of
    /// the daemon that it hangs on.
    pub(crate) fn eventually(
        &self,
        host: &str,
        daemon: DaemonKind,
        what: &str,
        mut holds: impl FnMut() -> Outcome<bool>,
    ) -> Outcome {
        let deadline = Instant::now() + DEADLINE;
        let mut last;
        loop {
            last = match holds() {
                Ok(true) => return Ok(()),
                Ok(false) => String::new(),
                Err(failure) => format!(": {}", failure.message()),
            };
            if Instant::now() >= deadline || self.ended(host, daemon) {
                break;
            }
            thread::sleep(LOOK_EVERY);
        }
        let tail = log_tail(self.lab, host, daemon.name(), 15).unwrap_or_default();
        let dead = match self.ended(host, daemon) {
            true => format!("; the {} ended", daemon.name()),
            false => String::new(),
        };
        Err(Failure::new(format!(
            "lab host {host}: waited for {what}{last}{dead}\nthe end of {}:\n{tail}",
            self.lab.log(host, daemon.name()).display()
        )))
    }

    fn ended(&self, host: &str, daemon: DaemonKind) -> bool {
        control::ask(self.lab, host, &Request::Status).is_ok_and(|daemons| {
            daemons
                .iter()
                .any(|other| other.name == daemon.name() && !other.is_running())
        })
    }
}

/// What follows `--token` is nobody's business.
fn without_secrets(arguments: &[&str]) -> String {
    let mut shown = Vec::new();
    let mut hide = false;
    for argument in arguments {
        shown.push(if hide { "***" } else { argument });
        hide = *argument == "--token";
    }
    shown.join(" ")
}

#[cfg(test)]
mod tests {
    use super::without_secrets;

    #[test]
    fn tokens_do_not_show_in_failures() {
        assert_eq!(
            without_secrets(&["host", "join", "--token", "a.b.c", "--name", "c1"]),
            "host join --token *** --name c1"
        );
    }
}
