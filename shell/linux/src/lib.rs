//! The kernel: netlink, namespaces, nftables, TAP, BPF. Observes and runs actions; decides nothing.
//!
//! Everything here blocks. [`Kernel`] belongs to one thread, the one that opened it: its sockets and
//! the sysctls that it writes are those of that thread's network namespace.
//!
//! **Invariant:** the only crate of the workspace with netlink messages, nft syntax, ioctls and BPF, and
//! with `disk` the only one with unsafe code.

mod announce;
mod asked;
mod attr;
mod bpf;
mod bridge_netfilter;
mod capture;
mod datagram;
mod error;
mod fdb;
mod fence;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod host;
mod kept;
mod kernel;
mod link;
mod log;
mod monitor;
mod netns;
mod nft;
mod observe;
mod packet;
mod passing;
mod powerless;
mod probe;
mod router;
mod rules;
mod seen;
mod service;
mod socket;
mod sys;
mod sysctl;
mod tap;

pub use announce::{Announcement, Announcements};
pub use asked::{Asked, Question};
pub use bridge_netfilter::{BridgeNetfilter, bridge_netfilter, switch_off_bridge_netfilter};
pub use capture::{Capture, Passed, Which};
pub use datagram::{Got, Receiver, Sender, TUNNEL_PACKETS_MAX, ToSend, TunnelSocket};
pub use error::{ActionError, Cause, Error};
pub use fence::Fence;
pub use host::{
    UnderlayInterface, kernel_version, resources, run_behind_others, underlay_interface,
};
pub use kernel::{Kernel, Looks, RouterLook, RouterLooked};
pub use monitor::Watch;
pub use netns::{NETNS_DIR, Netns, in_netns, spawn_in_netns};
pub use nft::firewall_counters;
pub use passing::{receive_fds, send_fds};
pub use powerless::spawn_powerless;
pub use router::{ConnectionEvents, Drained, track_connections, tracked_connections};
pub use router::{
    FlowCounts, LinkCounts, NatCount, OuterSocket, RouterCounts, RuleCount, refuse_flows,
    router_counts,
};
pub use service::{bind_udp, listen_tcp};
pub use sys::PROTOCOL;
pub use tap::{TapQueue, frames_not_taken};
