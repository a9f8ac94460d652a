//! The host agent: one loop over one event enum, driving core/ with shell/linux.
//!
//! [`run`] starts the parts and waits: the kernel's thread and its monitor, the EVPN speaker, the
//! stream from the management server, the host-local API on a unix socket. All of them talk to the
//! loop in `turn`, which owns the state.

mod announce;
mod bgp;
mod clock;
mod datapath;
mod dhcp;
mod disk;
mod events;
mod evpn_api;
mod figures;
mod kept_config;
mod kernel;
mod l3_api;
mod lease;
mod local_api;
mod meter;
mod names;
mod outside;
mod rd;
mod run;
mod sbs_api;
mod sequences;
mod server;
mod standby;
mod storage;
mod told;
mod turn;
mod view;

pub use clock::far_clock;
pub use disk::StateError;
pub use evpn_api::{EvpnApi, EvpnSource};
pub use run::{AgentError, Options, run};
