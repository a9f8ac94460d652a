//! What each command does: ask, wait, show.

pub(crate) mod account;
pub(crate) mod agent;
pub(crate) mod capture;
pub(crate) mod completion;
pub(crate) mod datapath;
pub(crate) mod doctor;
pub(crate) mod evpn;
pub(crate) mod external;
pub(crate) mod host;
pub(crate) mod l2;
pub(crate) mod l3;
mod leases;
mod logging;
mod moving;
pub(crate) mod nic;
pub(crate) mod public_ip;
mod reflector;
mod request;
pub(crate) mod route;
pub(crate) mod router;
pub(crate) mod server;
pub(crate) mod storage;
pub(crate) mod subnet;
pub(crate) mod subnet_options;
pub(crate) mod volume;
pub(crate) mod vpc;
pub(crate) mod watch;
