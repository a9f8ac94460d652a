//! Waiting until hosts made a change true.

use crate::cluster::ClusterContext;
use crate::management::concerned;
use crate::owner::{Handle, refused};
use crate::request::Reference;
use crate::state::State;
use crate::tokens::failed;
use api::tonic::Status;
use api::{Field, v1};
use model::{Generation, HostId, Kind, ObjectId, Revision};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use store::StoreError;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);
const LONGEST_TIMEOUT: Duration = Duration::from_secs(3600);

pub(crate) type Stream = ReceiverStream<Result<v1::WaitProgress, Status>>;

/// Which generation each host has to reach.
type Goal = BTreeMap<HostId, Generation>;

pub(crate) async fn start(
    owner: Handle,
    cluster: Arc<ClusterContext>,
    wire: v1::WaitAppliedRequest,
) -> Result<Stream, Status> {
    let timeout = match wire.timeout_ms {
        0 => DEFAULT_TIMEOUT,
        ms => Duration::from_millis(ms.into()).min(LONGEST_TIMEOUT),
    };
    let goal = if wire.object.is_some() {
        let kind = Field::root("kind").enumeration::<v1::Kind, Kind>(wire.kind)?;
        let reference = Reference::new(Field::root("object"), kind, wire.object)?;
        owner
            .read(move |state| {
                let id = reference.resolve(&state.intent).map_err(refused)?;
                let object = state.intent.require(id).map_err(refused)?;
                Ok::<_, Status>(goal(state, [&object].into_iter()))
            })
            .await??
    } else if wire.revision > 0 {
        of_revision(&owner, &cluster, Revision(wire.revision)).await?
    } else {
        return Err(Field::root("object")
            .bad("it is missing, and so is revision: name what to wait for")
            .into());
    };
    let (out, stream) = mpsc::channel(8);
    tokio::spawn(follow(owner, goal, Instant::now() + timeout, out));
    Ok(ReceiverStream::new(stream))
}

async fn of_revision(
    owner: &Handle,
    cluster: &ClusterContext,
    revision: Revision,
) -> Result<Goal, Status> {
    let before = Revision(revision.0 - 1);
    let history = match cluster.store.changes_since(before, 1).await {
        Ok(history) => history,
        Err(error @ (StoreError::TooOld { .. } | StoreError::Ahead { .. })) => {
            return Err(Status::out_of_range(error.to_string()));
        }
        Err(error) => return Err(failed(&error)),
    };
    if history.changes.is_empty() {
        return Err(Status::out_of_range(format!(
            "revision {revision} is in the future, the newest is {}: wait for one that a change returned",
            history.head
        )));
    }
    owner
        .read(move |state| goal(state, history.changes.iter().map(|change| &change.object)))
        .await
}

fn goal<'a>(state: &State, objects: impl Iterator<Item = &'a model::Object>) -> Goal {
    objects
        .flat_map(|object| concerned(&state.intent, object))
        .filter(|host| state.intent.host(*host).is_some())
        .map(|host| (host, state.wanted(host)))
        .collect()
}

async fn follow(
    owner: Handle,
    goal: Goal,
    deadline: Instant,
    out: mpsc::Sender<Result<v1::WaitProgress, Status>>,
) {
    let mut changed = owner.progress();
    let mut last = None;
    loop {
        changed.mark_unchanged();
        let wanted = goal.clone();
        let progress = match owner.read(move |state| progress(state, &wanted)).await {
            Ok(progress) => progress,
            Err(status) => {
                drop(out.send(Err(status)).await);
                return;
            }
        };
        let done = progress.done;
        if last.as_ref() != Some(&progress) {
            last = Some(progress.clone());
            if out.send(Ok(progress.clone())).await.is_err() {
                return;
            }
        }
        if done {
            return;
        }
        tokio::select! {
            woken = changed.changed() => if woken.is_err() { return },
            () = out.closed() => return,
            () = tokio::time::sleep_until(deadline) => {
                drop(out.send(Err(late(&progress))).await);
                return;
            }
        }
    }
}

fn progress(state: &State, goal: &Goal) -> v1::WaitProgress {
    let hosts: Vec<v1::HostProgress> = goal
        .iter()
        // One that was removed meanwhile concerns nobody any more.
        .filter(|(host, _)| state.intent.host(**host).is_some())
        .map(|(host, wanted)| {
            let known = state.hosts.get(host);
            v1::HostProgress {
                host_id: host.to_string(),
                host_name: state.intent.path(ObjectId::Host(*host)),
                liveness: v1::Liveness::from(state.liveness(*host)).into(),
                wanted_generation: wanted.0,
                applied_generation: known.map_or(0, |known| known.status.applied.0),
                conditions: known
                    .iter()
                    .flat_map(|known| &known.status.conditions)
                    .map(Into::into)
                    .collect(),
            }
        })
        .collect();
    v1::WaitProgress {
        done: hosts.iter().all(reached),
        hosts,
    }
}

const fn reached(host: &v1::HostProgress) -> bool {
    host.applied_generation >= host.wanted_generation
}

fn late(progress: &v1::WaitProgress) -> Status {
    let missing: Vec<String> = progress
        .hosts
        .iter()
        .filter(|host| !reached(host))
        .map(|host| {
            let why = match (host.liveness(), host.conditions.first()) {
                (v1::Liveness::Down, _) => "it is down".to_owned(),
                (v1::Liveness::Joining, _) => "it never checked in".to_owned(),
                (_, Some(condition)) => condition.message.clone(),
                (_, None) => "it is still at work".to_owned(),
            };
            format!(
                "host {} has generation {} of {}: {why}",
                host.host_name, host.applied_generation, host.wanted_generation
            )
        })
        .collect();
    Status::deadline_exceeded(format!(
        "the change is saved, but not made true in time: {}; it will be when the host can, `vpc host show` says more",
        missing.join("; ")
    ))
}
