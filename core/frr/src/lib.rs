//! FRR as an EVPN speaker: its configuration rendered and compared, its output read. No processes,
//! sockets, files, clock or RNG.
//!
//! * [`Wanted`] is all that an instance of FRR is to do; [`Wanted::config`] renders it whole;
//! * [`Config::parse`] reads `show running-config`, [`changes`] says which commands lead from one
//!   to the other, past what FRR writes otherwise than it was told;
//! * [`Version`] and [`Feature`] say what which FRR can do;
//! * [`Sessions`], [`instances`] read what it answers, whatever it answers.

mod config;
mod diff;
mod reflector;
mod show;
mod version;

pub use config::{Config, Duplicates, Freeze, Instance, Line, Listener, Neighbour, Role, Wanted};
pub use diff::changes;
pub use show::{BadOutput, RunningInstance, Session, Sessions, instances, kernel_instances};
pub use version::{Feature, Version};
