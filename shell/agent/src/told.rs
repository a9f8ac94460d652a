//! What the speaker was told from: most passes leave all of it as it was, and are not to go through it again.

use crate::sequences::Kept;
use host_plan::Readiness;
use model::{RouterConfig, Stack};
use std::net::IpAddr;
use std::sync::Arc;

/// All that [`crate::bgp::local_state`] depends on, and what is added to it. Route distinguishers follow from the rest.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) vtep: IpAddr,
    pub(crate) stacks: Vec<Arc<Stack>>,
    pub(crate) routers: Vec<Arc<RouterConfig>>,
    pub(crate) ready: Readiness,
    pub(crate) sequences: Kept,
}

impl Told {
    /// True if the speaker would be told the same.
    pub(crate) fn says_the_same(&self, other: &Self) -> bool {
        // Each by its name, so that none can be forgotten.
        let Self {
            vtep,
            stacks,
            routers,
            ready,
            sequences,
        } = self;
        *vtep == other.vtep
            && *stacks == other.stacks
            && routers.len() == other.routers.len()
            && routers
                .iter()
                .zip(&other.routers)
                .all(|(was, is)| alike(was, is))
            && *ready == other.ready
            && *sequences == other.sequences
    }
}

/// Whether others hear the same of both: rules and names are the router's own affair.
pub(crate) fn alike(was: &Arc<RouterConfig>, is: &Arc<RouterConfig>) -> bool {
    if Arc::ptr_eq(was, is) {
        return true;
    }
    let RouterConfig {
        id,
        vpc,
        name: _,
        legs,
        uplink,
        routes,
        nat: _,
        epoch,
        names: _,
        transit,
        anycast,
        inner: _,
        prepared,
        standby: _,
    } = &**was;
    (*id, *vpc, *epoch, *transit) == (is.id, is.vpc, is.epoch, is.transit)
        && (*anycast, *prepared) == (is.anycast, is.prepared)
        && *legs == is.legs
        && *uplink == is.uplink
        && *routes == is.routes
}
