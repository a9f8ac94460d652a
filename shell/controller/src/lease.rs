//! The server as a voter on where routers run, and as the one that places them elsewhere when a route host
//! falls silent.

use crate::auth;
use crate::cluster::ClusterContext;
use crate::state::State;
use api::tonic::{Request, Response, Status};
use api::v1;
use api::v1::router_lease_server::RouterLease;
use fleet_plan::Electorate;
use lease::{Ask, HOLD, Voter};
use model::{Host, HostId, Liveness, Role, Router};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// What the server promised. Not on disk: after a start it confirms nothing for a moment.
#[derive(Clone)]
pub(crate) struct Votes(Arc<Mutex<Inner>>);

struct Inner {
    voter: Voter,
    /// Route hosts of the cluster.
    hosts: BTreeSet<HostId>,
}

impl Votes {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Mutex::new(Inner {
            voter: Voter::forgetful(Instant::now()),
            hosts: BTreeSet::new(),
        })))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nobody else may ask.
    pub(crate) fn set_hosts(&self, hosts: BTreeSet<HostId>) {
        let mut inner = self.inner();
        inner.voter.keep_hosts(&hosts);
        inner.hosts = hosts;
    }

    /// Route hosts that asked before, and do not any more.
    fn fallen_silent(&self) -> BTreeSet<HostId> {
        let inner = self.inner();
        let now = Instant::now();
        let silent = |host: &&HostId| {
            let last = inner.voter.last_heard(**host);
            last.is_some_and(|last| now.saturating_duration_since(last) >= HOLD)
        };
        inner.hosts.iter().filter(silent).copied().collect()
    }
}

pub(crate) struct Service {
    pub(crate) votes: Votes,
    pub(crate) cluster: Arc<ClusterContext>,
}

#[api::tonic::async_trait]
impl RouterLease for Service {
    async fn confirm(
        &self,
        request: Request<v1::ConfirmRequest>,
    ) -> Result<Response<v1::ConfirmReply>, Status> {
        let host = auth::host(&request, &self.cluster.id)?;
        let ask = Ask::try_from(request.into_inner())?;
        let mut inner = self.votes.inner();
        if !inner.hosts.contains(&host) {
            return Err(Status::permission_denied(format!(
                "host {host} is no route host of this cluster: give it the role (vpc host join --role route)"
            )));
        }
        let confirmed = inner.voter.answer(Instant::now(), host, &ask);
        Ok(Response::new(v1::ConfirmReply {
            confirmed: confirmed.iter().map(Into::into).collect(),
        }))
    }

    async fn replicate(
        &self,
        _request: Request<v1::ReplicateRequest>,
    ) -> Result<Response<v1::ReplicateReply>, Status> {
        Err(Status::unimplemented(
            "the server runs no routers: it stands by for none",
        ))
    }

    async fn hand_over(
        &self,
        _request: Request<v1::HandOverRequest>,
    ) -> Result<Response<v1::HandOverReply>, Status> {
        Err(Status::unimplemented(
            "the server runs no routers: hand over to the route hosts",
        ))
    }
}

impl State {
    pub(crate) fn route_hosts(&self) -> impl Iterator<Item = &Host> {
        let hosts = self.intent.hosts();
        hosts.filter(|host| host.roles.contains(&Role::Route))
    }

    /// Who votes, as far as hosts said.
    pub(crate) fn electorate(&self, one_server: bool) -> Electorate {
        let reported = self.route_hosts().filter_map(|host| {
            let joined = self.liveness(host.id) != Liveness::Joining;
            let known = self.hosts.get(&host.id).filter(|_| joined)?;
            Some((host.id, known.status.voters.clone()))
        });
        Electorate {
            one_server,
            reported: reported.collect(),
        }
    }

    /// Route hosts that nobody hears any more. With several servers each hears some hosts only, and all
    /// that counts is who checks in.
    pub(crate) fn silent_hosts(&self, votes: &Votes, one_server: bool) -> BTreeSet<HostId> {
        let mut silent = self.down_hosts();
        if one_server {
            silent.extend(votes.fallen_silent());
        }
        // What lives and is cut off from the server only goes on as it is.
        let heard: BTreeSet<HostId> = self
            .route_hosts()
            .filter(|host| !silent.contains(&host.id))
            .filter_map(|host| self.hosts.get(&host.id))
            .flat_map(|known| known.status.heard.iter().copied())
            .collect();
        silent.retain(|host| !heard.contains(host));
        silent
    }

    /// Hosts that are no standby. One that restarts is given the time to come back: until then it is told
    /// nothing, which is no worse than another that knows nothing yet.
    pub(crate) fn unfit_to_stand_by(&self) -> BTreeSet<HostId> {
        let mut unfit = self.down_hosts();
        let joining = self.route_hosts().map(|host| host.id);
        unfit.extend(joining.filter(|host| self.liveness(*host) == Liveness::Joining));
        unfit
    }

    /// Routers that are to run elsewhere: their host fell silent, or is draining.
    pub(crate) fn routers_to_place(&self, silent: &BTreeSet<HostId>) -> Vec<Router> {
        let fit = |host: &&Host| {
            let up = self.liveness(host.id) == Liveness::Up;
            up && !host.draining && !silent.contains(&host.id)
        };
        if self.route_hosts().find(fit).is_none() {
            return Vec::new();
        }
        let leaves = |host: &&Host| {
            // One that asks nobody would go on, and two would answer.
            let asks = self.hosts.get(&host.id);
            let asks = asks.is_some_and(|known| !known.status.voters.is_empty());
            match silent.contains(&host.id) {
                true => asks,
                false => host.draining,
            }
        };
        let hosts = self.route_hosts().filter(leaves);
        hosts
            .flat_map(|host| self.intent.routers_of_host(host.id))
            .cloned()
            .collect()
    }
}
