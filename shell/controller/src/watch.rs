//! Watches: a snapshot or history first, then what happens, without a gap.
//!
//! A watcher listens first and reads the store then, so that nothing falls in between; what it
//! gets twice it knows by the revision. If what it hears has a gap (it was slow, or another server
//! committed), it reads the store again.

use crate::cluster::ClusterContext;
use crate::list::{Matcher, Query};
use crate::owner::{Handle, Live, refused};
use crate::tokens::failed;
use api::tonic::Status;
use api::{Field, v1};
use model::{Change, Kind, Revision};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use store::StoreError;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use v1::watch_event::Event;

/// Events on their way to one client; when they are not read, the watcher stops reading too.
const AHEAD: usize = 256;
const HISTORY_PAGE: usize = 1000;
const SNAPSHOT_PAGE: usize = 1000;
const PROGRESS_EVERY: Duration = Duration::from_secs(5);

pub(crate) type Stream = ReceiverStream<Result<v1::WatchEvent, Status>>;

struct Watcher {
    owner: Handle,
    cluster: Arc<ClusterContext>,
    kinds: BTreeSet<Kind>,
    query: Query,
    out: mpsc::Sender<Result<v1::WatchEvent, Status>>,
    /// Everything up to here was sent.
    last: Revision,
}

/// The client is gone, or got an error as the last thing.
struct Over;

pub(crate) async fn start(
    owner: Handle,
    cluster: Arc<ClusterContext>,
    wire: v1::WatchRequest,
) -> Result<Stream, Status> {
    let kinds = api::list(Field::root("kinds"), wire.kinds, 16, |field, raw| {
        field.enumeration::<v1::Kind, Kind>(raw)
    })?;
    let kinds: BTreeSet<Kind> = if kinds.is_empty() {
        Kind::ALL.into()
    } else {
        kinds.into_iter().collect()
    };
    let query = Query::new(wire.filter)?;
    // References are looked up now, so that a wrong one is an error at once.
    let probe = query.clone();
    owner
        .read(move |state| probe.resolve(&state.intent).map(|_| ()).map_err(refused))
        .await??;
    let (out, stream) = mpsc::channel(AHEAD);
    let watcher = Watcher {
        owner,
        cluster,
        kinds,
        query,
        out,
        last: Revision(wire.from_revision),
    };
    tokio::spawn(async move {
        // Over is the only way it ends, and not an error.
        let Err(Over) = watcher.run().await;
    });
    Ok(ReceiverStream::new(stream))
}

impl Watcher {
    async fn run(mut self) -> Result<std::convert::Infallible, Over> {
        let mut live = self.owner.live();
        if self.last == Revision(0) {
            self.snapshot().await?;
        } else {
            self.catch_up().await?;
            self.progress(false).await?;
        }
        self.all_liveness().await?;
        let mut progress = tokio::time::interval(PROGRESS_EVERY);
        progress.reset();
        loop {
            let heard = tokio::select! {
                heard = live.recv() => heard,
                _ = progress.tick() => {
                    self.progress(false).await?;
                    continue;
                }
                () = self.out.closed() => return Err(Over),
            };
            match heard {
                Ok(Live::Changes(changes)) => self.hear(&changes).await?,
                Ok(Live::Liveness(liveness)) => {
                    if self.kinds.contains(&Kind::Host) {
                        self.send(Event::HostLiveness(liveness)).await?;
                    }
                }
                Err(RecvError::Lagged(_)) => {
                    self.catch_up().await?;
                    self.all_liveness().await?;
                }
                Err(RecvError::Closed) => {
                    return self
                        .fail(Status::unavailable(
                            "the server is stopping: watch again from the last progress mark",
                        ))
                        .await;
                }
            }
        }
    }

    async fn hear(&mut self, changes: &Arc<Vec<Change>>) -> Result<(), Over> {
        let Some(first) = changes.first() else {
            return Ok(());
        };
        if first.revision.0 > self.last.0 + 1 {
            return self.catch_up().await;
        }
        let news = changes.iter().filter(|change| change.revision > self.last);
        self.deliver(news.cloned().collect()).await
    }

    /// Every object as it is now.
    async fn snapshot(&mut self) -> Result<(), Over> {
        // One question for all, so that it is one moment's state.
        let (query, kinds) = (self.query.clone(), self.kinds.clone());
        let answer = self
            .owner
            .read(move |state| {
                let intent = &state.intent;
                let matcher = query.resolve(intent).map_err(refused)?;
                let mut views = Vec::new();
                for kind in kinds {
                    let mut after = None;
                    loop {
                        let (objects, next) = matcher.page(intent, kind, after, SNAPSHOT_PAGE);
                        views.extend(objects.iter().map(|object| v1::Change {
                            revision: object.meta().revision.0,
                            at_unix_ms: object.meta().created.0,
                            deleted: false,
                            object: Some(state.view(object)),
                        }));
                        after = next;
                        if after.is_none() {
                            break;
                        }
                    }
                }
                Ok((views, intent.revision()))
            })
            .await;
        let (views, revision) = match answer.and_then(|answer| answer) {
            Ok(answer) => answer,
            Err(status) => return self.fail(status).await,
        };
        for view in views {
            self.send(Event::Change(view)).await?;
        }
        self.last = revision;
        self.progress(true).await
    }

    /// Everything that the store has after what was sent.
    async fn catch_up(&mut self) -> Result<(), Over> {
        loop {
            let store = &self.cluster.store;
            let history = match store.changes_since(self.last, HISTORY_PAGE).await {
                Ok(history) => history,
                Err(error @ (StoreError::TooOld { .. } | StoreError::Ahead { .. })) => {
                    return self.fail(Status::out_of_range(error.to_string())).await;
                }
                Err(error) => return self.fail(failed(&error)).await,
            };
            self.deliver(history.changes).await?;
            if self.last >= history.head {
                return Ok(());
            }
        }
    }

    async fn deliver(&mut self, changes: Vec<Change>) -> Result<(), Over> {
        let Some(last) = changes.last().map(|change| change.revision) else {
            return Ok(());
        };
        let (query, kinds) = (self.query.clone(), self.kinds.clone());
        let answer = self
            .owner
            .read(move |state| {
                let intent = &state.intent;
                let matcher = match query.resolve(intent) {
                    Ok(matcher) => matcher,
                    // The object that the filter names was deleted: nothing matches any more, but
                    // its end was announced before.
                    Err(_) => return Vec::new(),
                };
                let wanted = |change: &&Change| {
                    kinds.contains(&change.object.id().kind()) && passes(&matcher, intent, change)
                };
                changes
                    .iter()
                    .filter(wanted)
                    .map(|change| state.change_view(change))
                    .collect()
            })
            .await;
        let views = match answer {
            Ok(views) => views,
            Err(status) => return self.fail(status).await,
        };
        for view in views {
            self.send(Event::Change(view)).await?;
        }
        self.last = last;
        Ok(())
    }

    async fn all_liveness(&self) -> Result<(), Over> {
        if !self.kinds.contains(&Kind::Host) {
            return Ok(());
        }
        let answer = self
            .owner
            .read(|state| {
                let hosts = state.intent.hosts();
                hosts
                    .map(|host| state.liveness_view(host))
                    .collect::<Vec<_>>()
            })
            .await;
        match answer {
            Ok(views) => {
                for view in views {
                    self.send(Event::HostLiveness(view)).await?;
                }
                Ok(())
            }
            Err(status) => self.fail(status).await,
        }
    }

    async fn progress(&self, snapshot_complete: bool) -> Result<(), Over> {
        self.send(Event::Progress(v1::Progress {
            revision: self.last.0,
            snapshot_complete,
        }))
        .await
    }

    async fn send(&self, event: Event) -> Result<(), Over> {
        let event = v1::WatchEvent { event: Some(event) };
        self.out.send(Ok(event)).await.map_err(|_| Over)
    }

    async fn fail<T>(&self, status: Status) -> Result<T, Over> {
        // Whether or not the client hears it, it is over.
        drop(self.out.send(Err(status)).await);
        Err(Over)
    }
}

fn passes(matcher: &Matcher, intent: &fleet_plan::Intent, change: &Change) -> bool {
    if change.deleted {
        matcher.matches_deleted(intent, &change.object)
    } else {
        matcher.matches(intent, &change.object)
    }
}
