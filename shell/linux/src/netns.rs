//! Network namespaces: entering, making, removing; whose they are.

use crate::error::Error;
use model::NetnsName;
use std::os::fd::OwnedFd;
use std::process::{Child, Command};

/// Where named namespaces are, as `ip netns` has it.
pub const NETNS_DIR: &str = "/run/netns";

/// An open network namespace; it lives at least as long as this.
#[derive(Debug)]
pub struct Netns(#[expect(dead_code, reason = "skeleton")] OwnedFd);

impl Netns {
    /// The one of this name.
    pub fn named(name: &NetnsName) -> Result<Netns, Error> {
        let _ = name;
        unimplemented!()
    }

    /// The one of the calling thread.
    pub fn current() -> Result<Netns, Error> {
        unimplemented!()
    }
}

/// Runs `work` on a thread of its own inside a namespace and waits for it.
pub fn in_netns<T: Send>(netns: &Netns, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
    let _ = (netns, work);
    unimplemented!()
}

/// Starts a process inside a namespace.
pub fn spawn_in_netns(netns: &Netns, command: &mut Command) -> Result<Child, Error> {
    let _ = (netns, command);
    unimplemented!()
}
