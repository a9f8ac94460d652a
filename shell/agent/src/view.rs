//! What the agent shows of itself: a snapshot that the loop publishes and others read.

use crate::events::ServerLink;
use crate::lease::Leased;
use host_plan::{DhcpUplink, HostState, Readiness};
use model::{
    Condition, Generation, HostConfig, NicId, ObjectId, RouterConfig, Stack, SubnetId, Transport,
    Underlay, UnixMillis, VpcId,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// One moment of the agent.
#[derive(Debug, Clone)]
pub(crate) struct View {
    /// When the agent started.
    pub(crate) started: UnixMillis,
    /// The server's configuration, if there is one.
    pub(crate) managed: Option<Arc<HostConfig>>,
    /// Everything desired, of both origins.
    pub(crate) stacks: Arc<Vec<Arc<Stack>>>,
    /// Routers, of both origins.
    pub(crate) routers: Arc<Vec<Arc<RouterConfig>>>,
    /// Those of them that are to ask for their address outside.
    pub(crate) dhcp_uplinks: Arc<Vec<DhcpUplink>>,
    /// Which of the stacks came from the server.
    pub(crate) managed_vpcs: Arc<BTreeSet<VpcId>>,
    /// What carries traffic.
    pub(crate) ready: Arc<Readiness>,
    /// NICs in use here that another host announces and wins.
    pub(crate) lost: Arc<BTreeSet<NicId>>,
    /// Which routers may run here, and by whose word.
    pub(crate) leased: Leased,
    /// What is wrong.
    pub(crate) conditions: Arc<BTreeMap<ObjectId, Condition>>,
    /// What was last read from the kernel.
    pub(crate) observed: Option<Arc<HostState>>,
    /// Host's place on the underlay.
    pub(crate) underlay: Underlay,
    /// What carries frames to other hosts.
    pub(crate) transport: Transport,
    /// The newest configuration made true.
    pub(crate) applied: Generation,
    /// Grows whenever an input of the plan changes; what was asked before is done once `settled`
    /// has reached what it was then.
    pub(crate) asked: u64,
    /// The last value of `asked` for which nothing was left to do.
    pub(crate) settled: u64,
    /// The connection to the management server.
    pub(crate) server: ServerLink,
    /// Since the start.
    pub(crate) counters: Counters,
}

/// Since the agent started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counters {
    /// Differences that the agent did not make, and put right.
    pub(crate) drift_repairs: u64,
    /// Full readings after lost events.
    pub(crate) resyncs: u64,
    /// Full readings, for whatever reason; all others are of what changed.
    pub(crate) whole_looks: u64,
    /// Steps run.
    pub(crate) actions: u64,
    /// Steps that failed.
    pub(crate) failed_actions: u64,
    /// Configurations taken.
    pub(crate) configs: u64,
    /// Connections to the server.
    pub(crate) connects: u64,
}

impl View {
    /// The newest configuration held.
    pub(crate) fn desired(&self) -> Generation {
        self.managed
            .as_ref()
            .map_or(Generation(0), |config| config.generation)
    }

    /// Conditions of these objects.
    pub(crate) fn conditions_of(
        &self,
        objects: impl IntoIterator<Item = ObjectId>,
    ) -> Vec<&Condition> {
        objects
            .into_iter()
            .filter_map(|object| self.conditions.get(&object))
            .collect()
    }

    /// A stack carries traffic: all of its segments and NICs do.
    pub(crate) fn stack_ready(&self, stack: &Stack) -> bool {
        let segment = |id: &SubnetId| self.ready.segments.contains(id);
        let nic = |id: &NicId| self.ready.nics.contains(id);
        stack.segments.iter().all(|s| segment(&s.subnet)) && stack.ports.iter().all(|p| nic(&p.nic))
    }
}

/// The wall clock.
pub(crate) fn unix_now() -> UnixMillis {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    UnixMillis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
