//! Bringing a lab up: holders, cables, then the cluster on top.

use super::holder::{GO, READY};
use super::process::ProcessId;
use super::progress::Progress;
use super::state::{LabDir, LabState};
use super::{cluster, spec, wire};
use crate::failure::{Doing, Failure, Outcome};
use crate::settings::ReflectorKind;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// How long the hosts' namespaces may take, all together.
const HOLDER_DEADLINE: Duration = Duration::from_secs(60);

/// What to make.
pub(crate) struct Wanted<'a> {
    /// See [`spec::hosts`].
    pub(crate) hosts: Option<&'a str>,
    /// What the underlay speaks.
    pub(crate) underlay: spec::UnderlayKind,
    /// MTU of the underlay.
    pub(crate) mtu: u32,
    /// See [`spec::speakers`].
    pub(crate) speakers: &'a [String],
    /// See [`spec::transports`].
    pub(crate) transports: &'a [String],
    /// What reflects routes.
    pub(crate) reflector: ReflectorKind,
    /// Stop before the cluster: hosts and cables only.
    pub(crate) bare: bool,
}

/// Makes the lab and waits until all of it works.
pub(crate) fn bring_up(lab: &LabDir, wanted: &Wanted<'_>) -> Outcome<LabState> {
    if !nix::unistd::geteuid().is_root() {
        return Err(Failure::new("lab up: making namespaces needs root").hint("run it with sudo"));
    }
    wire::check_tools()?;
    let binary = std::env::current_exe().doing(|| "finding the vpc binary".to_owned())?;
    let mut hosts = spec::hosts(wanted.hosts, wanted.underlay)?;
    spec::speakers(&mut hosts, wanted.speakers)?;
    spec::transports(&mut hosts, wanted.transports)?;
    let mut state = LabState {
        maker: ProcessId::myself().doing(|| "reading /proc/self/stat".to_owned())?,
        complete: false,
        binary,
        mtu: wanted.mtu,
        hosts,
    };
    lab.claim()?;
    lab.save(&state)?;
    let made = (|| {
        let mut progress = Progress::new();
        progress.step(&format!("hosts: {}", names(&state)));
        start_holders(lab, &mut state)?;
        progress.step("underlay and outside network");
        wire::connect(&state)?;
        if !wanted.bare {
            cluster::form(lab, &state, wanted.reflector, &mut progress)?;
        }
        progress.done();
        state.complete = true;
        lab.save(&state)
    })();
    made.map_err(|failure: Failure| {
        Failure::new(failure.message()).hint(format!(
            "the lab is left as it is: logs are in {}; take it down with `vpc lab down{}`",
            lab.path().join("log").display(),
            lab.flag()
        ))
    })?;
    Ok(state)
}

fn names(state: &LabState) -> String {
    state
        .hosts
        .iter()
        .filter(|host| host.name != spec::UNDERLAY_NAME)
        .map(|host| host.name.as_str())
        .collect::<Vec<_>>()
        .join(" ")
}

/// A first stage that runs, until its second stage said that it is ready.
struct Starting {
    host: String,
    first: Child,
    lines: Lines,
}

fn start_holders(lab: &LabDir, state: &mut LabState) -> Outcome {
    let deadline = Instant::now() + HOLDER_DEADLINE;
    let mut starting = state
        .hosts
        .iter()
        .map(|host| start(lab, state, &host.name))
        .collect::<Outcome<Vec<_>>>()?;
    for one in &mut starting {
        let line = one
            .lines
            .next(deadline)
            .map_err(|error| one.failed(lab, &error))?;
        let holder = line
            .strip_prefix("pid ")
            .and_then(|pid| pid.parse().ok())
            .ok_or_else(|| io::Error::other(format!("it said {line:?}")))
            .and_then(ProcessId::of)
            .map_err(|error| one.failed(lab, &error))?;
        let host = state.hosts.iter_mut().find(|host| host.name == one.host);
        host.expect("each was started for one").holder = Some(holder);
    }
    // Written down: now they may begin.
    lab.save(state)?;
    for one in &mut starting {
        let told = one.first.stdin.take().map(|mut stdin| stdin.write_all(GO));
        told.unwrap_or(Ok(()))
            .map_err(|error| one.failed(lab, &error))?;
    }
    for one in &mut starting {
        match one.lines.next(deadline) {
            Ok(line) if line == READY => {}
            Ok(line) => return Err(one.failed(lab, &io::Error::other(format!("it said {line:?}")))),
            Err(error) => return Err(one.failed(lab, &error)),
        }
        one.first.wait().map_err(|error| one.failed(lab, &error))?;
    }
    Ok(())
}

fn start(lab: &LabDir, state: &LabState, host: &str) -> Outcome<Starting> {
    let log = lab.log(host, "holder");
    let log = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(&log)
        .doing(|| format!("opening {}", log.display()))?;
    let mut first = Command::new(&state.binary)
        .args(["lab", "holder", "--name", lab.name(), host])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .doing(|| format!("lab host {host}: starting {}", state.binary.display()))?;
    let stdout = first.stdout.take().expect("it was asked for as a pipe");
    Ok(Starting {
        host: host.to_owned(),
        first,
        lines: Lines {
            from: stdout,
            read: Vec::new(),
        },
    })
}

impl Starting {
    fn failed(&self, lab: &LabDir, error: &io::Error) -> Failure {
        let log = fs::read_to_string(lab.log(&self.host, "holder")).unwrap_or_default();
        let reason = match log.trim() {
            "" => error.to_string(),
            said => said.trim_start_matches("error: ").to_owned(),
        };
        Failure::new(format!("lab host {}: starting it: {reason}", self.host))
    }
}

/// Lines of a pipe, with a deadline.
struct Lines {
    from: ChildStdout,
    read: Vec<u8>,
}

impl Lines {
    fn next(&mut self, deadline: Instant) -> io::Result<String> {
        loop {
            if let Some(end) = self.read.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.read.drain(..=end).collect();
                return Ok(String::from_utf8_lossy(&line).trim_end().to_owned());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
            if poll(
                &mut [PollFd::new(&self.from, PollFlags::IN)],
                Some(&timeout),
            )? == 0
            {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "no word from it in time",
                ));
            }
            let mut chunk = [0; 256];
            match self.from.read(&mut chunk)? {
                0 => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it ended")),
                count => self.read.extend_from_slice(&chunk[..count]),
            }
        }
    }
}
