//! The owner of the sockets: observes, runs actions.

use crate::error::{ActionError, Error};
use host_plan::{Action, HostState, Scope};
use model::Capability;
use std::collections::BTreeSet;
use std::path::Path;

/// The kernel as seen from one network namespace. Not `Send`: it stays on the thread that opened it.
#[derive(Debug)]
pub struct Kernel {
    on_this_thread: std::marker::PhantomData<*mut ()>,
}

impl Kernel {
    /// Opens the namespace of the calling thread. `state_dir` (`/run/vpc`) remembers which named
    /// namespaces are ours; it must be gone after a reboot, as they are.
    pub fn open(state_dir: &Path) -> Result<Kernel, Error> {
        let _ = state_dir;
        unimplemented!()
    }

    /// What this kernel can do, found out by trying in a namespace that is thrown away. Cached.
    pub fn capabilities(&mut self) -> Result<&BTreeSet<Capability>, Error> {
        unimplemented!()
    }

    /// Looks at everything a plan is made from.
    pub fn observe(&mut self, scope: &Scope) -> Result<HostState, Error> {
        let _ = scope;
        unimplemented!()
    }

    /// Runs actions in order. Each has its result at its place; a failure does not stop the others.
    pub fn run(&mut self, actions: &[Action]) -> Vec<Result<(), ActionError>> {
        let _ = actions;
        unimplemented!()
    }
}
