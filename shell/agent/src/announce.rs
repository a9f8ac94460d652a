//! Carries what workloads say unasked (gratuitous ARP, unsolicited advertisements, probes) to the
//! tunnel, from which the bridge's suppression keeps it: see [`host_plan::Uplink`].
//!
//! A thread of its own in the agent's network namespace, as the log is heard there; nothing else that
//! the agent does makes it wait. While no agent runs these frames stay on their host: routes, not
//! they, are what moves a NIC.

use crate::kernel::chain;
use host_plan::{Uplink, uplinks};
use linux::Announcements;
use model::{Capability, IfName, Stack, Transport, Vni};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;
use tracing::{debug, warn};

/// After the log could not be listened to; somebody else may do so.
const RETRY: Duration = Duration::from_secs(5);

/// Tells the thread what there is, and what it did.
#[derive(Debug, Clone)]
pub(crate) struct Announcer {
    capabilities: Arc<BTreeSet<Capability>>,
    transport: Transport,
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug, Default)]
struct Shared {
    /// What they are of.
    stacks: Vec<Arc<Stack>>,
    uplinks: BTreeMap<IfName, Uplink>,
    /// Frames that were sent on, by the tunnel that they went into.
    carried: BTreeMap<Vni, u64>,
}

impl Announcer {
    /// Starts the thread, in the calling thread's network namespace.
    pub(crate) fn start(capabilities: BTreeSet<Capability>, transport: Transport) -> Self {
        let announcer = Self {
            capabilities: Arc::new(capabilities),
            transport,
            shared: Arc::default(),
        };
        let own = announcer.clone();
        thread::Builder::new()
            .name("announce".to_owned())
            .spawn(move || own.run())
            .expect("a process may start a thread");
        announcer
    }

    /// From now on for the NICs of these.
    pub(crate) fn carry(&self, stacks: &[Arc<Stack>]) {
        let mut shared = self.shared();
        if shared.stacks == stacks {
            return;
        }
        shared.stacks = stacks.to_vec();
        let uplinks = uplinks(stacks, &self.capabilities, self.transport);
        let vnis: BTreeSet<Vni> = uplinks.values().map(|uplink| uplink.vni).collect();
        shared.carried.retain(|vni, _| vnis.contains(vni));
        shared.uplinks = uplinks;
    }

    /// Frames that were sent on since the agent started, by the tunnel that they went into.
    pub(crate) fn carried(&self) -> BTreeMap<Vni, u64> {
        self.shared().carried.clone()
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let mut told = String::new();
        loop {
            let result = Announcements::open().and_then(|heard| self.serve(heard));
            if let Err(error) = result {
                let error = chain(&error);
                if error != told {
                    warn!(
                        error,
                        "Gratuitous ARP and unsolicited advertisements of workloads stay on this host"
                    );
                    told = error;
                }
            }
            thread::park_timeout(RETRY);
        }
    }

    fn serve(&self, mut heard: Announcements) -> Result<(), linux::Error> {
        loop {
            for announcement in heard.wait()? {
                let uplink = self.shared().uplinks.get(&announcement.port).cloned();
                let Some(uplink) = uplink else {
                    continue;
                };
                debug!(port = %announcement.port, uplink = %uplink.link, "Announcement carried");
                if heard.send(&uplink, &announcement.frame)? {
                    *self.shared().carried.entry(uplink.vni).or_default() += 1;
                }
            }
        }
    }
}
