//! Asks the other voters, and hands over to the other route hosts.

use super::Shared;
use crate::kernel::chain;
use api::tonic::transport::Channel;
use api::v1::router_lease_client::RouterLeaseClient;
use api::{Credential, v1};
use lease::Ask;
use model::Voter as Who;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

/// A voter that has not answered by then is asked again, on another connection.
const ANSWER_LIMIT: Duration = Duration::from_millis(500);
/// Between attempts to reach a voter.
const RETRY: Duration = Duration::from_millis(200);
/// A router is free after this also if not all took what it tracked. Voters that heard of the next placement
/// confirm the old one no more, so to wait for longer would not keep it.
const HAND_OVER_LIMIT: Duration = lease::LEASE;
/// Whoever is late may take it still, as long as what came is kept there.
const HAND_OVER_LATE: Duration = super::keeper::ARRIVAL_LIMIT;

/// To all route hosts that are reached, as the one that takes the router is not known here; then it is free.
pub(super) async fn hand_over(handing: Vec<v1::HandOverRequest>, shared: Shared) {
    let clients = shared.clients().clone();
    let hosts = clients
        .into_iter()
        .filter(|(who, _)| *who != Who::Server)
        .map(|(who, mut client)| {
            let handing = handing.clone();
            tokio::spawn(timeout(HAND_OVER_LATE, async move {
                for request in handing {
                    if let Err(status) = client.hand_over(request).await {
                        debug!(host = %who, reason = status.message(), "Not handed over");
                    }
                }
            }))
        });
    let hosts: Vec<_> = hosts.collect();
    let all = async {
        for host in hosts {
            drop(host.await);
        }
    };
    if timeout(HAND_OVER_LIMIT, all).await.is_err() {
        warn!("Not all route hosts took in time what a router that leaves tracked");
    }
    shared.keeper().release();
    shared.hurry.notify_one();
}

/// A task that asks one voter.
pub(super) struct Asking {
    pub(super) address: Option<SocketAddr>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Asking {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Asking {
    pub(super) fn start(
        who: Who,
        address: Option<SocketAddr>,
        credential: &Path,
        asks: watch::Receiver<Arc<Ask>>,
        shared: Shared,
    ) -> Self {
        let credential = credential.to_owned();
        let task = tokio::spawn(ask_for_ever(who, address, credential, asks, shared));
        Self { address, task }
    }
}

async fn ask_for_ever(
    who: Who,
    address: Option<SocketAddr>,
    credential: PathBuf,
    mut asks: watch::Receiver<Arc<Ask>>,
    shared: Shared,
) {
    let mut reason = String::new();
    loop {
        let connected = timeout(2 * ANSWER_LIMIT, connect(who, address, &credential)).await;
        let ended = match connected {
            Ok(Ok(mut client)) => {
                debug!(voter = %who, "Reached");
                reason.clear();
                shared.clients().insert(who, client.clone());
                // Who answers late is asked on another connection, but may take over by this one.
                ask_on(who, &mut client, &mut asks, &shared).await
            }
            Ok(Err(error)) => {
                shared.clients().remove(&who);
                error
            }
            Err(_) => {
                shared.clients().remove(&who);
                "no answer in 1 s".to_owned()
            }
        };
        if asks.has_changed().is_err() {
            return;
        }
        if ended != reason {
            debug!(voter = %who, reason = ended, "A voter does not answer");
            reason = ended;
        }
        sleep(RETRY).await;
    }
}

pub(crate) async fn connect(
    who: Who,
    address: Option<SocketAddr>,
    credential: &Path,
) -> Result<RouterLeaseClient<Channel>, String> {
    let credential = Credential::load(credential).map_err(|error| chain(&error))?;
    let client = match (who, address) {
        (Who::Host(host), Some(address)) => {
            api::connect_voter_host(&credential, host, address).await
        }
        _ => api::connect_voter_server(&credential).await,
    };
    client.map_err(|error| chain(&error))
}

/// Asks on one connection, until it fails.
async fn ask_on(
    who: Who,
    client: &mut RouterLeaseClient<Channel>,
    asks: &mut watch::Receiver<Arc<Ask>>,
    shared: &Shared,
) -> String {
    loop {
        let request = v1::ConfirmRequest::from(asks.borrow_and_update().as_ref());
        let sent = Instant::now();
        let answer = match timeout(ANSWER_LIMIT, client.confirm(request)).await {
            Err(_) => return "no answer in 0.5 s".to_owned(),
            Ok(Err(status)) => return status.message().to_owned(),
            Ok(Ok(answer)) => answer.into_inner(),
        };
        match api::confirmed(answer) {
            Err(error) => return error.to_string(),
            Ok(claims) => shared.keeper().confirmed(who, sent, &claims),
        }
        shared.news.notify_one();
        if asks.changed().await.is_err() {
            return "the agent is ending".to_owned();
        }
    }
}
