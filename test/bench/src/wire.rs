//! What the two halves of the benchmark say to each other: one line of JSON each way.

use serde::{Deserialize, Serialize};
use std::net::{Ipv4Addr, SocketAddr};

/// To `bench inside`. Times are of the monotonic clock, which all of a machine share, in ns.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Ask {
    /// Answered when it is there.
    Hello,
    /// Create one NIC by the API; answered when the server answered.
    Create(NewNic),
    /// Create many, by several clients at once; answered when the hosts have applied all.
    Fill(Vec<NewNic>),
    /// Delete all that this process created; answered when the hosts have applied it.
    Clear,
    /// Ping every millisecond until there is a first reply.
    Probe(Ipv4Addr),
    /// Wait for the agent of this host, started anew, to have nothing left to do.
    Converged,
    /// What a daemon of this host uses: `agent` or `server`.
    Usage(String),
    /// Send small datagrams for so many milliseconds.
    Send(SocketAddr, u64),
    /// Count datagrams at a port, for so many milliseconds from the first.
    Count(u16, u64),
}

/// A NIC to create.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct NewNic {
    pub(crate) subnet: String,
    pub(crate) name: String,
    pub(crate) host: String,
    pub(crate) netns: String,
    /// Empty: chosen by the server.
    pub(crate) mac: String,
    /// Empty: chosen by the server.
    pub(crate) addresses: Vec<String>,
}

/// From `bench inside`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    Hello,
    Made(Spent),
    /// When the reply came; none if none came in time.
    Reached(Option<u64>),
    Converged {
        at: u64,
        /// What it did to the kernel since it started.
        actions: u64,
        nics: u32,
    },
    Usage(Usage),
    Datagrams(u64),
}

/// How long the API took.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Spent {
    /// The first request was sent.
    pub(crate) sent: u64,
    /// The last was answered: durable on the server.
    pub(crate) answered: u64,
    /// The hosts reported it as applied.
    pub(crate) applied: u64,
}

/// What a process uses.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Usage {
    pub(crate) resident_kib: u64,
    pub(crate) cpu_ms: u64,
}
