//! Tells the standbys of the routers here what those track, and knows how far behind they are.
//!
//! A thread of its own, and a connection of its own to each standby: whoever has much to tell or is slow to
//! take it delays neither leases nor anything else here.

use crate::kernel::chain;
use crate::lease::{Orders, connect};
use crate::view::unix_now;
use api::tonic::Code;
use api::v1;
use host_plan::OwnedName;
use lease::Claim;
use linux::ConnectionEvents;
use model::{HostId, NetnsName, RouterId, Tracked, UnixMillis, Voter};
use standby::{Outbox, Taken};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

/// A standby that has not answered by then is asked on another connection, and told everything anew.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
/// Between attempts to reach a standby.
const RETRY: Duration = Duration::from_millis(500);
/// What changes meanwhile is told together. It is lost if the host dies before.
const TOGETHER: Duration = Duration::from_millis(20);
/// All is told anew as often, because the kernel tells nothing of connections that are older than the first
/// subscription, and no events come out of a namespace that was taken away.
const ANEW: Duration = Duration::from_secs(60);
/// One that is told nothing for as long is told of: a host that restarts is back sooner.
const PATIENCE: Duration = Duration::from_secs(5);
/// What is shown is as old at most.
const SHOWN_EVERY: Duration = Duration::from_millis(500);

/// What is known of standbys: of those of routers here, and of routers that this host stands by for.
#[derive(Debug, Clone, Default)]
pub(crate) struct Standbys(Arc<Mutex<Book>>);

#[derive(Debug, Default)]
struct Book {
    told: BTreeMap<RouterId, Told>,
    kept: BTreeMap<RouterId, Kept>,
}

#[derive(Debug)]
struct Told {
    standby: HostId,
    address: SocketAddr,
    taken: Taken,
    in_step: bool,
    lag: Duration,
    lost: u64,
    trouble: Option<(String, UnixMillis)>,
}

#[derive(Debug)]
struct Kept {
    name: String,
    taken: Taken,
}

const NOTHING: Taken = Taken {
    kept: 0,
    refused: 0,
};

impl Standbys {
    fn lock(&self) -> MutexGuard<'_, Book> {
        // Each change of the book is a single one, so it is whole also after a panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Of a router here, if it has a standby.
    pub(crate) fn of(&self, router: RouterId) -> Option<v1::StandbyFigures> {
        let book = self.lock();
        let told = book.told.get(&router)?;
        let (trouble, since) = match &told.trouble {
            None => (String::new(), 0),
            Some((trouble, since)) => (trouble.clone(), since.0),
        };
        Some(v1::StandbyFigures {
            host_id: told.standby.to_string(),
            kept: told.taken.kept,
            refused: told.taken.refused,
            in_step: told.in_step,
            lag_ms: u64::try_from(told.lag.as_millis()).unwrap_or(u64::MAX),
            lost: told.lost,
            trouble,
            trouble_since_unix_ms: since,
        })
    }

    /// What is wrong with the standby of a router here, if it lasts, and since when.
    pub(crate) fn trouble(&self, router: RouterId, name: &str) -> Option<(String, UnixMillis)> {
        let book = self.lock();
        let told = book.told.get(&router)?;
        let (reason, since) = told.trouble.as_ref()?;
        let patience = u64::try_from(PATIENCE.as_millis()).unwrap_or(u64::MAX);
        let lasts = unix_now().0.saturating_sub(since.0) >= patience;
        let message = format!(
            "router {name} has a standby at {} that is told nothing ({reason}), so connections end if this \
             host fails: see that the agent there runs and is reached from here, or choose another (vpc \
             router standby)",
            told.address
        );
        lasts.then_some((message, *since))
    }

    /// Of routers elsewhere that this host stands by for.
    pub(crate) fn kept(&self) -> Vec<v1::KeptConnections> {
        let book = self.lock();
        let kept = book.kept.iter().map(|(router, kept)| v1::KeptConnections {
            router_id: router.to_string(),
            router_name: kept.name.clone(),
            kept: kept.taken.kept,
            refused: kept.taken.refused,
        });
        kept.collect()
    }

    /// From now on this host stands by for these.
    pub(crate) fn stand_by_for(&self, routers: &BTreeMap<RouterId, String>) {
        let mut book = self.lock();
        book.kept.retain(|router, _| routers.contains_key(router));
        for (router, name) in routers {
            let kept = book.kept.entry(*router).or_insert(Kept {
                name: String::new(),
                taken: NOTHING,
            });
            kept.name.clone_from(name);
        }
    }

    /// So much is kept of such a router.
    pub(crate) fn keeps(&self, router: RouterId, taken: Taken) {
        if let Some(kept) = self.lock().kept.get_mut(&router) {
            kept.taken = taken;
        }
    }

    fn note(&self, job: &Job, note: impl FnOnce(&mut Told)) {
        let mut book = self.lock();
        let told = book.told.entry(job.claim.router).or_insert(Told {
            standby: job.standby,
            address: job.address,
            taken: NOTHING,
            in_step: false,
            lag: Duration::ZERO,
            lost: 0,
            trouble: None,
        });
        note(told);
    }

    fn note_trouble(&self, job: &Job, trouble: &str) {
        self.note(job, |told| {
            told.in_step = false;
            match &mut told.trouble {
                Some((held, _)) => trouble.clone_into(held),
                none => *none = Some((trouble.to_owned(), unix_now())),
            }
        });
    }
}

/// What is to be told to whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Job {
    pub(crate) claim: Claim,
    pub(crate) standby: HostId,
    pub(crate) address: SocketAddr,
}

/// Begins to tell the standbys of the routers in `orders`, of which each may track `most` connections, until
/// those have no publisher any more.
pub(crate) fn start(
    orders: watch::Receiver<(u64, Orders)>,
    credential: PathBuf,
    most: usize,
    book: Standbys,
) {
    thread::Builder::new()
        .name("standby".to_owned())
        .spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            match runtime {
                Ok(runtime) => runtime.block_on(run(orders, &credential, most, &book)),
                Err(error) => warn!(%error, "Standbys of routers here are told nothing"),
            }
        })
        .expect("a process may start a thread");
}

async fn run(
    mut orders: watch::Receiver<(u64, Orders)>,
    credential: &Path,
    most: usize,
    book: &Standbys,
) {
    let mut telling: BTreeMap<RouterId, Telling> = BTreeMap::new();
    loop {
        let jobs: BTreeMap<RouterId, Job> = {
            let ordered = orders.borrow_and_update();
            let jobs = ordered.1.to_replicate();
            jobs.map(|job| (job.claim.router, job)).collect()
        };
        telling.retain(|router, telling| jobs.get(router) == Some(&telling.job));
        book.lock().told.retain(|router, told| {
            let job = jobs.get(router);
            job.is_some_and(|job| job.standby == told.standby)
        });
        for (router, job) in jobs {
            telling.entry(router).or_insert_with(|| {
                let telling = tell_for_ever(job, credential.to_owned(), most, book.clone());
                let task = tokio::spawn(telling);
                Telling { job, task }
            });
        }
        if orders.changed().await.is_err() {
            return;
        }
    }
}

/// A task that tells one standby of one router.
struct Telling {
    job: Job,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Telling {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn tell_for_ever(job: Job, credential: PathBuf, most: usize, book: Standbys) {
    book.note(&job, |_| {});
    loop {
        let ended = tell(&job, &credential, most, &book).await;
        debug!(router = %job.claim.router, standby = %job.standby, reason = ended, "A standby is told nothing");
        book.note_trouble(&job, &ended);
        sleep(RETRY).await;
    }
}

type Sending = Pin<Box<dyn Future<Output = Result<v1::ReplicateReply, Failed>> + Send>>;

enum Failed {
    /// It has to be told everything anew.
    Astray,
    /// The connection is of no use.
    Ended(String),
}

/// Tells on one connection, until it fails; why it did.
async fn tell(job: &Job, credential: &Path, most: usize, book: &Standbys) -> String {
    let connecting = connect(Voter::Host(job.standby), Some(job.address), credential);
    let client = match timeout(ANSWER_LIMIT, connecting).await {
        Ok(Ok(client)) => client,
        Ok(Err(error)) => return error,
        Err(_) => return "no answer in 2 s".to_owned(),
    };
    let send = |batch: standby::Batch| -> Sending {
        let request = v1::ReplicateRequest::from((&job.claim, &batch));
        let mut client = client.clone();
        Box::pin(async move {
            match timeout(ANSWER_LIMIT, client.replicate(request)).await {
                Err(_) => Err(Failed::Ended("no answer in 2 s".to_owned())),
                Ok(Ok(reply)) => Ok(reply.into_inner()),
                Ok(Err(status)) if status.code() == Code::FailedPrecondition => Err(Failed::Astray),
                Ok(Err(status)) => Err(Failed::Ended(status.message().to_owned())),
            }
        })
    };
    let netns = OwnedName::router_netns(job.claim.router);
    let mut outbox = Outbox::new(most);
    let mut events: Option<AsyncFd<ConnectionEvents>> = None;
    let mut sending: Option<Sending> = None;
    let mut anew = Instant::now();
    let mut pause = Instant::now();
    loop {
        if outbox.needs_snapshot() {
            // The subscription is older than the snapshot: nothing falls between them.
            let (subscribed, tracked) = match look(netns.clone(), most).await {
                Ok(looked) => looked,
                Err(error) => return error,
            };
            events = match watched(subscribed) {
                Ok(events) => Some(events),
                Err(error) => return error.to_string(),
            };
            outbox.snapshot(Instant::now(), rand::random(), tracked);
            anew = Instant::now() + ANEW;
        }
        let now = Instant::now();
        if sending.is_none() && now >= pause {
            sending = outbox.poll_batch().map(&send);
            pause = match outbox.follows() {
                true => now + TOGETHER,
                false => now,
            };
        }
        book.note(job, |told| {
            told.in_step = outbox.is_in_step();
            told.lag = outbox.lag(now);
            told.lost = outbox.lost();
        });
        let next = match sending.is_none() && outbox.waits() {
            true => pause,
            false => (now + SHOWN_EVERY).min(anew),
        };
        let reply = async {
            match sending.as_mut() {
                Some(sending) => sending.await,
                None => std::future::pending().await,
            }
        };
        let something = async {
            match events.as_mut() {
                Some(events) => events.readable_mut().await.map(Some),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            reply = reply => {
                sending = None;
                match reply {
                    Ok(reply) => {
                        outbox.acknowledged();
                        book.note(job, |told| {
                            told.taken = Taken { kept: reply.kept, refused: reply.refused };
                            told.trouble = None;
                        });
                    }
                    Err(Failed::Astray) => outbox.refused(Instant::now()),
                    Err(Failed::Ended(reason)) => return reason,
                }
            }
            ready = something => {
                let mut ready = match ready {
                    Ok(Some(ready)) => ready,
                    Ok(None) => continue,
                    Err(error) => return error.to_string(),
                };
                let now = Instant::now();
                match ready.get_inner_mut().drain(|event| outbox.note(now, event)) {
                    Ok(drained) => {
                        if drained.lost {
                            outbox.stray(now);
                        }
                        if !drained.more {
                            ready.clear_ready();
                        }
                    }
                    Err(error) => return chain(&error),
                }
            }
            () = sleep(next.saturating_duration_since(now)) => {}
        }
        if Instant::now() >= anew {
            outbox.begin_anew();
        }
    }
}

#[expect(
    deprecated,
    reason = "what takes its place is unsafe for the sake of descriptors that do not stay open; a \
              subscription's does as long as it lives"
)]
fn watched(events: ConnectionEvents) -> std::io::Result<AsyncFd<ConnectionEvents>> {
    AsyncFd::new(events)
}

/// A subscription to what the router tracks from now on, and what it tracks now.
async fn look(netns: NetnsName, most: usize) -> Result<(ConnectionEvents, Vec<Tracked>), String> {
    let look = move || {
        let events = ConnectionEvents::open(&netns).map_err(|error| chain(&error))?;
        let events = events.ok_or_else(|| "the router is not made yet".to_owned())?;
        let tracked = linux::tracked_connections(&netns, most).map_err(|error| chain(&error))?;
        Ok((events, tracked))
    };
    match tokio::task::spawn_blocking(look).await {
        Ok(looked) => looked,
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_standby_that_is_not_reached_for_a_while_is_told_of() {
        let book = Standbys::default();
        let router = RouterId::from_random(1);
        let job = Job {
            claim: Claim { router, epoch: 1 },
            standby: HostId::from_random(2),
            address: "192.0.2.22:7444".parse().unwrap(),
        };
        book.note(&job, |_| {});
        assert_eq!(book.trouble(router, "blue/gw"), None);
        book.note_trouble(&job, "no answer in 2 s");
        assert_eq!(
            book.trouble(router, "blue/gw"),
            None,
            "it may be back at once"
        );
        let long_ago = UnixMillis(unix_now().0 - 5_000);
        book.note(&job, |told| {
            told.trouble.as_mut().unwrap().1 = long_ago;
        });
        // Trying again changes nothing about since when.
        book.note_trouble(&job, "connection refused");
        let (message, since) = book.trouble(router, "blue/gw").unwrap();
        assert_eq!(since, long_ago);
        assert!(
            message.starts_with(
                "router blue/gw has a standby at 192.0.2.22:7444 that is told nothing (connection refused)"
            ),
            "{message}"
        );
        book.note(&job, |told| told.trouble = None);
        assert_eq!(book.trouble(router, "blue/gw"), None);
    }
}
