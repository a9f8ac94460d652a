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
    /// Send datagrams of so many bytes for so many milliseconds.
    Send(SocketAddr, u64, usize),
    /// Count datagrams at a port, for so many milliseconds from the first.
    Count(u16, u64),
    /// Echo the first byte of each connection to so many ports from this one on, until the end.
    Echo(u16, u16),
    /// Connect to so many ports from this one on in turn, for so many milliseconds; a byte there and
    /// back each.
    Connect(SocketAddr, u16, u64),
    /// Create one router by the API; answered when the server answered.
    CreateRouter(NewRouter),
    /// Create many at once; answered when the hosts have applied all.
    FillRouters(Vec<NewRouter>),
    /// Delete all routers that this process created; answered when the hosts have applied it.
    ClearRouters,
    /// So many more port forwards for a router, from a port's number on; answered when the hosts have
    /// applied them.
    Forwards(String, usize, usize),
    /// Take addresses by DHCP in so many workloads of this host, over and over for so many milliseconds.
    Lease(Vec<String>, u64),
}

/// A router to create.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct NewRouter {
    pub(crate) vpc: String,
    pub(crate) name: String,
    pub(crate) subnets: Vec<String>,
    /// The network outside; empty: no way out. With one it translates.
    pub(crate) uplink: String,
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
    Connections {
        made: u64,
        failed: u64,
    },
    Leases {
        /// Exchanges of four messages that came to their end.
        done: u64,
        /// Questions that were asked again because no answer came.
        again: u64,
    },
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
