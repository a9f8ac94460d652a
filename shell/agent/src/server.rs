//! The stream to the management server: reports up, configurations down, a certificate that renews
//! itself. The data plane never waits for any of it.

use crate::clock::{Clock, far_clock};
use crate::events::{Event, ServerLink};
use crate::kernel::chain;
use crate::lease::Leased;
use crate::meter::Meter;
use crate::storage::Seen;
use crate::view::{View, unix_now};
use api::Credential;
use api::tonic::transport::Channel;
use api::tonic::{Code, Status};
use api::v1;
use api::v1::host_sync_client::HostSyncClient;
use frr_driver::Installed;
use model::{
    Capability, Condition, HostChange, HostConfig, HostStatus, NicId, NotTheBase, ObjectId,
};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tracing::{debug, error, info, warn};

/// Reports while nothing changes. The server calls a host down after 8 s without one.
const REPORT_EVERY: Duration = Duration::from_secs(2);
const RETRY_FIRST: Duration = Duration::from_millis(200);
const RETRY_MOST: Duration = Duration::from_secs(5);
/// A server that does not answer the opening of the stream is as good as gone.
const OPEN_LIMIT: Duration = Duration::from_secs(10);
/// A certificate that is to be renewed as soon as it is there is one by a wrong clock.
const RENEWED_FOR: Duration = Duration::from_secs(600);
/// After a failed renewal.
const RENEW_RETRY: Duration = Duration::from_secs(10);

/// What the stream needs of the agent.
pub(crate) struct ServerStream {
    pub(crate) credential_file: PathBuf,
    pub(crate) credential: Credential,
    pub(crate) capabilities: BTreeSet<Capability>,
    pub(crate) frr: Installed,
    pub(crate) state_dir: PathBuf,
    pub(crate) view: watch::Receiver<Arc<View>>,
    pub(crate) events: mpsc::Sender<Event>,
    pub(crate) clock: Clock,
    pub(crate) meter: Meter,
    pub(crate) renewed: Option<Instant>,
    /// How storage is.
    pub(crate) storage: watch::Receiver<Option<Seen>>,
}

/// Why a connection ended.
enum Ended {
    /// To be made anew with the certificate that was just renewed.
    Renewed,
    /// The agent is ending.
    Closing,
    Lost(String),
    /// The server does not want us; asking again soon is of no use.
    Refused(String),
}

impl ServerStream {
    /// Keeps a stream up for as long as the agent lives.
    pub(crate) async fn run(mut self) {
        let mut pause = RETRY_FIRST;
        loop {
            let started = Instant::now();
            let ended = self.connection().await;
            let trouble = match &ended {
                Ended::Lost(reason) | Ended::Refused(reason) => Some(reason.clone()),
                Ended::Renewed | Ended::Closing => None,
            };
            self.link(None, trouble).await;
            match ended {
                Ended::Closing => return,
                Ended::Renewed => continue,
                Ended::Lost(reason) => {
                    warn!(
                        reason,
                        "No connection to the management server; working on without it"
                    );
                }
                Ended::Refused(reason) => {
                    error!(reason, "The management server refuses this host");
                    pause = RETRY_MOST;
                }
            }
            if started.elapsed() > RETRY_MOST {
                pause = RETRY_FIRST;
            }
            // Spread, so that the hosts of a fleet do not come back in one instant.
            let jitter = 0.5 + rand::random::<f64>();
            tokio::time::sleep(pause.mul_f64(jitter)).await;
            pause = (pause * 2).min(RETRY_MOST);
        }
    }

    async fn connection(&mut self) -> Ended {
        let mut client = match api::connect_host(&self.credential).await {
            Ok(client) => client,
            Err(error) => return Ended::Lost(chain(&error)),
        };
        let (reports, outgoing) = mpsc::channel(4);
        let report = self.report();
        if reports.send(report).await.is_err() {
            return Ended::Closing;
        }
        let opened = timeout(OPEN_LIMIT, client.sync(ReceiverStream::new(outgoing))).await;
        let mut updates = match opened {
            Err(_) => return Ended::Lost("the server did not answer in 10 s".to_owned()),
            Ok(Err(status)) => return ended(&status),
            Ok(Ok(response)) => response.into_inner(),
        };
        let server = self.credential.servers.first().cloned().unwrap_or_default();
        info!(server, "Connected to the management server");
        self.link(Some(server.clone()), None).await;

        let mut tick = interval(REPORT_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut renew_at = self.renew_at();
        let mut last = None;
        let mut ahead = self.ahead();
        let mut held = None;
        loop {
            tokio::select! {
                update = updates.message() => match update {
                    Ok(Some(update)) => {
                        if let Err(error) = self.update(update, &mut held).await {
                            return Ended::Lost(format!("{error}: asking for all of it"));
                        }
                    }
                    Ok(None) => return Ended::Lost("the server closed the stream".to_owned()),
                    Err(status) => return ended(&status),
                },
                _ = tick.tick() => {
                    if ahead != self.ahead() {
                        ahead = self.ahead();
                        self.link(Some(server.clone()), None).await;
                    }
                    let mut report = self.report();
                    report.routers = self.meter.report();
                    if reports.send(report).await.is_err() {
                        return Ended::Lost("the stream broke".to_owned());
                    }
                }
                changed = self.view.changed() => {
                    if changed.is_err() {
                        return Ended::Closing;
                    }
                    let now = self.reported();
                    if last.as_ref() != Some(&now) {
                        last = Some(now);
                        if reports.send(self.report()).await.is_err() {
                            return Ended::Lost("the stream broke".to_owned());
                        }
                    }
                }
                // Where no storage runs there is nobody who would say so.
                Ok(()) = self.storage.changed() => {
                    if reports.send(self.report()).await.is_err() {
                        return Ended::Lost("the stream broke".to_owned());
                    }
                }
                () = sleep_until(renew_at) => {
                    match self.renew(&mut client).await {
                        Ok(()) => return Ended::Renewed,
                        Err(reason) => {
                            warn!(reason, "Renewing the certificate failed; trying again");
                            renew_at = Instant::now() + RENEW_RETRY;
                        }
                    }
                }
            }
        }
    }

    /// The part of a report that is worth sending before its time.
    fn reported(&mut self) -> (u64, u64, BTreeSet<NicId>, Leased, Vec<String>) {
        let view = self.view.borrow_and_update();
        let conditions = view
            .conditions
            .values()
            .map(|c| format!("{}{}", c.object, c.message));
        let lost = view.lost.as_ref().clone();
        let leased = Leased {
            held: None,
            ..view.leased.clone()
        };
        let conditions = conditions.collect();
        (view.desired().0, view.applied.0, lost, leased, conditions)
    }

    /// Without figures of routers, which come by the clock: whoever waits for a change has no use for them.
    fn report(&mut self) -> v1::HostReport {
        let frr = self.frr.version();
        let view = self.view.borrow();
        let mut status = HostStatus {
            last_checkin: model::UnixMillis(0),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            kernel_version: linux::kernel_version(),
            capabilities: self.capabilities.clone(),
            resources: linux::resources(&self.state_dir).unwrap_or_default(),
            received: view.desired(),
            applied: view.applied,
            conditions: view
                .conditions
                .values()
                .take(api::MAX_CONDITIONS)
                .cloned()
                .collect(),
            elsewhere: view.lost.as_ref().clone(),
            voters: view.leased.voters.clone(),
            heard: view.leased.heard.clone(),
            transport: view.transport,
            frr_version: frr.map(|version| version.to_string()).unwrap_or_default(),
        };
        let told = self.ahead().and_then(far_clock);
        if let (Some((what, remedy)), Some(config)) = (told, &view.managed) {
            let condition = Condition {
                object: ObjectId::Host(config.host),
                message: format!("{what}: {remedy}"),
                since: unix_now(),
                attempts: 1,
            };
            status.conditions.truncate(api::MAX_CONDITIONS - 1);
            status.conditions.push(condition);
        }
        let mut report = v1::HostReport::from(&status);
        report.underlay_mtu = view.underlay.mtu.get().into();
        report.takes_changes = true;
        let storage = self.storage.borrow_and_update();
        report.storage = storage.as_ref().map(|seen| seen.report.clone());
        report
    }

    /// Takes what the server sent. `held` is the configuration that it sent last on this stream, if that could
    /// be read: what a change is a change of.
    async fn update(
        &mut self,
        update: v1::HostUpdate,
        held: &mut Option<Arc<HostConfig>>,
    ) -> Result<(), NotTheBase> {
        if !update.servers.is_empty() && update.servers != self.credential.servers {
            self.credential.servers = update.servers;
            if let Err(error) = self.credential.save(&self.credential_file) {
                warn!(error = chain(&error), "Keeping the list of servers failed");
            }
        }
        if update.clock_unix_ms != 0 {
            let now = std::time::Instant::now();
            self.clock
                .hear(now, SystemTime::now(), update.clock_unix_ms);
        }
        let read = match (update.config, update.change) {
            (Some(config), _) => HostConfig::try_from(config),
            (None, Some(change)) => match HostChange::try_from(change) {
                Ok(change) => Ok(change.apply(held.take().as_deref())?),
                Err(error) => Err(error),
            },
            (None, None) => return Ok(()),
        };
        match read {
            Ok(config) => {
                let config = held.insert(Arc::new(config));
                drop(self.events.send(Event::Config(Arc::clone(config))).await);
            }
            Err(error) => {
                // A server that is newer than this agent, perhaps: what holds, holds on.
                error!(%error, "The server sent a configuration that cannot be read");
                *held = None;
            }
        }
        Ok(())
    }

    async fn renew(&mut self, client: &mut HostSyncClient<Channel>) -> Result<(), String> {
        let (key, csr_der) = api::pki::host_csr().map_err(|error| chain(&error))?;
        let answer = client
            .renew_certificate(v1::RenewCertificateRequest { csr_der })
            .await
            .map_err(|status| status.message().to_owned())?
            .into_inner();
        let renewed = api::renewed(self.credential.servers.clone(), &answer, key);
        renewed
            .save(&self.credential_file)
            .map_err(|error| chain(&error))?;
        self.credential = renewed;
        self.renewed = Some(Instant::now());
        info!("Certificate renewed");
        Ok(())
    }

    /// Two thirds into the certificate's life.
    fn renew_at(&self) -> Instant {
        let Ok((from, until)) = self.credential.validity() else {
            return Instant::now();
        };
        let life = until.duration_since(from).unwrap_or_default();
        let due = from + life * 2 / 3;
        let due = Instant::now() + due.duration_since(SystemTime::now()).unwrap_or_default();
        let soonest = self.renewed.map(|renewed| renewed + RENEWED_FOR);
        soonest.map_or(due, |soonest| due.max(soonest))
    }

    fn ahead(&self) -> Option<i64> {
        self.clock
            .ahead(std::time::Instant::now(), SystemTime::now())
    }

    async fn link(&self, connected: Option<String>, trouble: Option<String>) {
        let until = self
            .credential
            .validity()
            .map(|(_, until)| until)
            .unwrap_or(UNIX_EPOCH);
        let until = until.duration_since(UNIX_EPOCH).unwrap_or_default();
        let certificate_until_ms = u64::try_from(until.as_millis()).unwrap_or(u64::MAX);
        let link = ServerLink {
            connected,
            trouble,
            certificate_until_ms,
            clock_ahead_ms: self.ahead(),
        };
        if self.events.send(Event::Server(link)).await.is_err() {
            debug!("The agent is ending");
        }
    }
}

fn ended(status: &Status) -> Ended {
    let reason = status.message().to_owned();
    match status.code() {
        Code::Unauthenticated | Code::PermissionDenied => Ended::Refused(reason),
        _ => Ended::Lost(reason),
    }
}
