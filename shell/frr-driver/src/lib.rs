//! Runs FRR beside the agent: starts zebra and bgpd, configures them, watches them, starts them
//! again.
//!
//! [`Driver`] is for a host's client, [`Reflector`] for a route reflector.
//!
//! The daemons are the driver's own, with sockets and files in one directory, so that a
//! distribution's FRR on the same host goes on with what it does. They outlive the driver, and the
//! next one takes them over. zebra is started without powers over the network
//! ([`linux::spawn_powerless`]): it tells bgpd what is in the kernel and changes nothing there.

/// Where bgpd waits for its listener, on the underlay's address.
pub const LISTEN_PORT: u16 = 1179;

mod announcements;
mod daemon;
mod driver;
mod reflector;
mod service;
mod vty;

pub use driver::{Driver, Options, Status};
pub use reflector::{Reflector, installed};
pub use service::{Installed, rival};
pub use vty::VtyError;
