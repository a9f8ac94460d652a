//! The management server: API handlers, authorisation, planning loop.
//!
//! One task owns the state (`owner.rs`); handlers check what comes in, ask it, and say what it
//! answers. Nothing is answered before it is on disk, and no host gets a configuration whose
//! generation is not.

mod auth;
mod cluster;
mod enrollment;
mod files;
mod host_sync;
mod init;
mod lease;
mod limit;
mod list;
mod listener;
mod management;
mod owner;
mod request;
mod routing;
mod server;
mod state;
mod tokens;
mod volumes;
mod wait;
mod watch;

pub use files::DataDirError;
pub use init::{InitError, InitOptions, Initialised, init};
pub use listener::CertificateError;
pub use server::{RunError, RunOptions, ServeError, Server, StartError, run};
