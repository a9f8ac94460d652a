//! FRR as an EVPN speaker: its configuration rendered and compared, its output read. No processes,
//! sockets, files, clock or RNG.
//!
//! * [`Wanted`] is all that an instance of FRR is to do; [`Wanted::config`] renders it whole;
//! * [`Config::parse`] reads `show running-config`, [`changes`] says which commands lead from one
//!   to the other, past what FRR writes otherwise than it was told;
//! * [`Version`] and [`Feature`] say what which FRR can do;
//! * [`Sessions`], [`instances`] read what it answers, whatever it answers;
//! * [`Wanted::differences`] compares what it announces with what it is to announce.

mod announced;
mod config;
mod diff;
mod reflector;
mod show;
mod version;

pub use announced::{Announced, Differences, Route};
pub use config::{
    Config, Duplicates, Freeze, Instance, Line, Listener, Macs, Neighbour, Role, Wanted,
    announces_all_vnis, unsaid_distinguishers,
};
pub use diff::changes;
pub use show::{
    BadOutput, RunningInstance, Session, Sessions, announced, announced_command, instances,
    kernel_instances,
};
pub use version::{Feature, Version};
