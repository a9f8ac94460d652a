//! The HostSync service: what agents call.

use crate::auth;
use crate::cluster::ClusterContext;
use crate::owner::{Event, GENERATION_MAX, Handle, Push, Session, chain, now, removed};
use api::tonic::{Request, Response, Status, Streaming};
use api::{Field, v1};
use model::{
    Condition, Generation, HostChange, HostConfig, HostId, HostStatus, ObjectId, RouterId,
};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::wrappers::ReceiverStream;
use tracing::{debug, info};
use v1::host_sync_server::HostSync;

pub(crate) struct Service {
    pub(crate) owner: Handle,
    pub(crate) cluster: Arc<ClusterContext>,
}

/// Configurations on their way that the host has not reported as received. What HTTP/2 buffers is
/// out of our hands, so a host that does not keep up is recognised by its reports.
const UNSEEN: u32 = 4;

/// What a host last said of itself, as far as it matters to what it is sent.
#[derive(Debug, Clone, Copy, Default)]
struct Heard {
    received: Generation,
    takes_changes: bool,
}

type Updates = ReceiverStream<Result<v1::HostUpdate, Status>>;

#[api::tonic::async_trait]
impl HostSync for Service {
    type SyncStream = Updates;

    async fn sync(
        &self,
        request: Request<Streaming<v1::HostReport>>,
    ) -> Result<Response<Updates>, Status> {
        let host = auth::host(&request, &self.cluster.id)?;
        let (answer, answered) = oneshot::channel();
        self.owner
            .send(Event::HostConnected { host, answer })
            .await?;
        let session = answered
            .await
            .map_err(|_| Status::unavailable("the server is stopping: connect again"))??;
        // One place: what was not taken yet is replaced by what is newer, in the session.
        let (out, updates) = mpsc::channel(1);
        tokio::spawn(serve(
            self.owner.clone(),
            Arc::clone(&self.cluster),
            host,
            session,
            request.into_inner(),
            out,
        ));
        Ok(Response::new(ReceiverStream::new(updates)))
    }

    async fn renew_certificate(
        &self,
        request: Request<v1::RenewCertificateRequest>,
    ) -> Result<Response<v1::Certificate>, Status> {
        let host = auth::host(&request, &self.cluster.id)?;
        let member = self
            .owner
            .read(move |state| state.intent.host(host).is_some())
            .await?;
        if !member {
            return Err(removed(host));
        }
        let csr = Field::root("csr_der");
        let authority = &self.cluster.authority;
        let issued = authority
            .issue_host(
                host,
                &request.into_inner().csr_der,
                self.cluster.lifetimes.host,
            )
            .map_err(|error| csr.bad(chain(&error)))?;
        info!(target: "audit", actor = %format_args!("host/{host}"), action = "renew certificate", object = %host, "Changed");
        Ok(Response::new(api::certificate(
            &issued,
            authority.certificate(),
        )))
    }
}

/// Carries reports in and configurations out until either side ends it.
async fn serve(
    owner: Handle,
    cluster: Arc<ClusterContext>,
    host: HostId,
    mut session: Session,
    mut reports: Streaming<v1::HostReport>,
    out: mpsc::Sender<Result<v1::HostUpdate, Status>>,
) {
    let (heard_in, heard) = watch::channel(Heard::default());
    let end = tokio::select! {
        end = take_reports(&owner, host, session.id, &mut reports, heard_in) => end,
        end = push_configs(&cluster, host, &mut session, heard, &out) => end,
        () = out.closed() => None,
    };
    if let Some(status) = end {
        debug!(%host, reason = status.message(), "Host stream ended");
        // The host may be gone already.
        drop(out.send(Err(status)).await);
    }
    let session = session.id;
    // Refused only when the server stops.
    drop(owner.send(Event::HostDisconnected { host, session }).await);
}

async fn take_reports(
    owner: &Handle,
    host: HostId,
    session: u64,
    reports: &mut Streaming<v1::HostReport>,
    heard: watch::Sender<Heard>,
) -> Option<Status> {
    loop {
        let report = match reports.message().await {
            Ok(Some(report)) => report,
            Ok(None) => return None,
            Err(status) => return Some(status),
        };
        let mut report = report;
        let underlay_mtu = report.underlay_mtu;
        let takes_changes = report.takes_changes;
        let figures = figures(std::mem::take(&mut report.routers));
        let storage = report.storage.take().and_then(api::sized_report);
        let status = match checked(host, report) {
            Ok(status) => status,
            Err(status) => return Some(status),
        };
        heard.send_replace(Heard {
            received: status.received,
            takes_changes,
        });
        let event = Event::HostReported {
            host,
            session,
            status: Box::new(status),
            underlay_mtu,
            figures,
            storage,
        };
        if let Err(status) = owner.send(event).await {
            return Some(status);
        }
    }
}

/// What a host told of its routers, as far as it is of a size that one may tell.
fn figures(told: Vec<v1::RouterFigures>) -> BTreeMap<RouterId, v1::RouterFigures> {
    const ROUTERS: usize = 256;
    const PARTS: usize = 512;
    const NAT_RULES: usize = 2000;
    const NAME: usize = 32;
    const ADDRESS: usize = 64;
    let sized = |router: &v1::RouterFigures| {
        let names = router.rules.iter().map(|rule| &rule.name);
        let legs = router.legs.iter().map(|leg| &leg.subnet_id);
        let ports = router
            .nat
            .iter()
            .flat_map(|rule| [&rule.protocol, &rule.ports]);
        let mut names = names.chain(legs).chain(ports);
        let lease = router.lease.iter();
        let lease = lease.flat_map(|lease| [&lease.address, &lease.gateway, &lease.server]);
        let mut addresses = router.nat.iter().map(|rule| &rule.address).chain(lease);
        router.rules.len() <= PARTS
            && router.legs.len() <= PARTS
            && router.nat.len() <= NAT_RULES
            && names.all(|name| name.len() <= NAME)
            && addresses.all(|address| address.len() <= ADDRESS)
    };
    let told = told.into_iter().take(ROUTERS).filter(sized);
    told.filter_map(|router| Some((router.router_id.parse().ok()?, router)))
        .collect()
}

fn checked(host: HostId, report: v1::HostReport) -> Result<HostStatus, Status> {
    let mut status = HostStatus::try_from(report)?;
    for (name, generation) in [
        ("received_generation", status.received),
        ("applied_generation", status.applied),
    ] {
        if generation.0 > GENERATION_MAX {
            return Err(Field::root(name).bad("no host gets there").into());
        }
    }
    // A host speaks of itself, not of others.
    status
        .conditions
        .retain(|Condition { object, .. }| match object {
            ObjectId::Host(id) => *id == host,
            _ => true,
        });
    Ok(status)
}

async fn push_configs(
    cluster: &ClusterContext,
    host: HostId,
    session: &mut Session,
    mut heard: watch::Receiver<Heard>,
    out: &mpsc::Sender<Result<v1::HostUpdate, Status>>,
) -> Option<Status> {
    session.pushed.mark_changed();
    let mut last: Option<Arc<HostConfig>> = None;
    let mut room_for = UNSEEN;
    loop {
        if room_for == 0 {
            let over = session
                .pushed
                .wait_for(|push| matches!(push, Push::Replaced | Push::Removed));
            tokio::select! {
                // Ended only together with this.
                report = heard.changed() => report.ok()?,
                over = over => drop(over),
            }
            // Waiting has looked at what is to be sent now.
            session.pushed.mark_changed();
            room_for = 1;
        }
        // One that speaks, but has not seen the last, gets one more at a time.
        let sent = last.as_ref().map_or(Generation(0), |last| last.generation);
        if heard.borrow_and_update().received >= sent {
            room_for = UNSEEN;
        }
        if session.pushed.changed().await.is_err() {
            return Some(Status::unavailable("the server is stopping: connect again"));
        }
        // Room first, so that what is sent is the newest when it is sent.
        let Ok(room) = out.reserve().await else {
            return None;
        };
        let push = session.pushed.borrow_and_update().clone();
        match push {
            Push::Nothing => {}
            Push::Config(config) if config.generation == sent => {}
            Push::Config(config) => {
                room_for -= 1;
                let base = last.replace(Arc::clone(&config));
                let base = base.filter(|_| heard.borrow().takes_changes);
                let mut update = v1::HostUpdate {
                    servers: cluster.settings.servers.clone(),
                    clock_unix_ms: now().0,
                    ..v1::HostUpdate::default()
                };
                match base {
                    Some(base) => {
                        update.change = Some((&HostChange::between(&base, &config)).into());
                    }
                    None => update.config = Some(config.as_ref().into()),
                }
                room.send(Ok(update));
            }
            Push::Replaced => {
                return Some(Status::aborted(
                    "this host connected again: this stream is the older one",
                ));
            }
            Push::Removed => return Some(removed(host)),
        }
    }
}
