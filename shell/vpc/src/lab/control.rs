//! What can be asked of a lab host's holder over its socket: one line of JSON each way.

use super::state::LabDir;
use crate::failure::{Doing, Failure, Outcome};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// Longer than anything a holder waits for.
const DEADLINE: Duration = Duration::from_secs(20);

/// A request.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Request {
    /// Tell of the daemons.
    Status,
    /// Start a daemon that does not run.
    Start {
        /// What it is called: `agent` or `server`.
        daemon: String,
        /// Program and arguments.
        argv: Vec<String>,
        /// Added to the environment.
        env: BTreeMap<String, String>,
    },
    /// Signal a daemon; for KILL and TERM, wait until it has ended.
    Signal {
        /// Which.
        daemon: String,
        /// The signal's number.
        signal: i32,
    },
}

/// The answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Reply {
    /// Why it was not done.
    pub(crate) error: Option<String>,
    /// All that were ever started.
    pub(crate) daemons: Vec<Daemon>,
}

/// A daemon of a lab host.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Daemon {
    /// What it is called.
    pub(crate) name: String,
    /// As the host numbers it.
    pub(crate) pid: u32,
    /// How it ended, if it has.
    pub(crate) exit: Option<String>,
}

impl Daemon {
    /// It has not ended.
    pub(crate) fn is_running(&self) -> bool {
        self.exit.is_none()
    }
}

impl Reply {
    /// Nothing was done.
    pub(crate) fn refused(reason: String) -> Self {
        Self {
            error: Some(reason),
            daemons: Vec::new(),
        }
    }
}

/// Asks a host's holder.
pub(crate) fn ask(lab: &LabDir, host: &str, request: &Request) -> Outcome<Vec<Daemon>> {
    let socket = lab.socket(host);
    let exchange = || {
        let mut stream = UnixStream::connect(&socket)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        let mut line = serde_json::to_string(request)?;
        line.push('\n');
        stream.write_all(line.as_bytes())?;
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer)?;
        Ok::<Reply, std::io::Error>(serde_json::from_str(&answer)?)
    };
    let reply = exchange().doing(|| format!("lab host {host}: asking at {}", socket.display()))?;
    match reply.error {
        None => Ok(reply.daemons),
        Some(reason) => Err(Failure::new(reason)),
    }
}
