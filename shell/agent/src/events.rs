//! Everything that can happen to the agent.

use crate::lease::Leased;
use api::tonic::Status;
use host_plan::{HostState, OuterAddress, Refused, Step};
use model::{Forwarding, HostConfig, NicId, Port, RouterConfig, RouterId, Segment, Stack, VpcId};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::oneshot;

/// What the loop takes, one at a time.
#[derive(Debug)]
pub(crate) enum Event {
    /// The management server sent a configuration.
    Config(Arc<HostConfig>),
    /// A configuration is on disk; none if that failed.
    Kept(Result<model::Generation, String>),
    /// The connection to the management server came or went.
    Server(ServerLink),
    /// Which routers may run here.
    Leased(Leased),
    /// The speaker's forwarding state changed.
    Forwarding(Arc<Forwarding>),
    /// The kernel's thread looked; how often it looked at everything up to now.
    Observed(Result<Box<HostState>, String>, linux::Looks),
    /// Somebody changed something in the kernel.
    Drift,
    /// What is wrong with a router was noted, or that it is right again.
    Metered,
    /// The addresses that DHCP servers outside gave routers.
    Outer(BTreeMap<RouterId, OuterAddress>),
    /// The kernel's thread acted.
    Ran(Vec<(Step, Result<(), String>)>),
    /// The local API asks for something.
    Request(Request),
    /// End the agent.
    Stop {
        /// Withdraw routes first.
        withdraw: bool,
        /// Answered when it is done.
        done: Option<oneshot::Sender<()>>,
    },
}

/// The connection to the management server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ServerLink {
    /// `host:port`, while connected.
    pub(crate) connected: Option<String>,
    /// Why not, if it is not for want of a server.
    pub(crate) trouble: Option<String>,
    /// When our certificate ends.
    pub(crate) certificate_until_ms: u64,
    /// How far our clock is ahead of the server's, in milliseconds to the second; none if no server
    /// told its own.
    pub(crate) clock_ahead_ms: Option<i64>,
}

/// What the local API asks of the loop.
#[derive(Debug)]
pub(crate) enum Request {
    AddStack(Stack, Reply<()>),
    DeleteStack {
        vpc: VpcId,
        with_nics: bool,
        reply: Reply<()>,
    },
    AddNic {
        vpc: VpcId,
        port: Port,
        segment: Option<Box<Segment>>,
        reply: Reply<()>,
    },
    DeleteNic(NicId, Reply<()>),
    AddRouter {
        router: Box<RouterConfig>,
        replace: bool,
        reply: Reply<()>,
    },
    DeleteRouter(RouterId, Reply<()>),
}

/// Where the answer goes.
pub(crate) type Reply<T> = oneshot::Sender<Result<T, Status>>;

/// A refusal as the API says it.
pub(crate) fn status_of(refused: &Refused) -> Status {
    let text = refused.to_string();
    match refused {
        Refused::Managed(_) | Refused::InUse { .. } => Status::failed_precondition(text),
        Refused::Unknown(_) => Status::not_found(text),
        Refused::Taken { .. } => Status::already_exists(text),
        Refused::Invalid(_) => Status::invalid_argument(text),
    }
}
