//! The thread that owns the host's replicas and endpoints: events in, IO, frames and answers out.
//!
//! The clients of volumes that are attached here are served by the same thread: on the way of a request from a
//! client's socket to the disk and back no other thread has to wake up, which costs more than the request itself.

mod patience;
mod running;
mod seen;

use crate::figures::Figures;
use crate::look::ReplicaLook;
use crate::peers::Outgoing;
use blocks::{Refused, SpaceUse, Store, VolumeId};
use replication::{
    Frame, HostId, Members, NotReady, NotRecovered, Op, Outcome, Recovery, SessionId, Time,
};
use running::Running;
use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::thread::{self, JoinHandle};
use std::time::Instant;
use storage_plan::HaveReplica;
use tokio::runtime::{Builder, Handle};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

/// What happens.
pub(crate) enum Event {
    /// A peer sent something; it may send more when that was taken in.
    Frame {
        from: HostId,
        frame: Frame,
        _room: OwnedSemaphorePermit,
    },
    Ask {
        session: SessionId,
        op: Op,
        answer: oneshot::Sender<Outcome>,
    },
    Open {
        session: SessionId,
        volume: VolumeId,
        hosts: Vec<HostId>,
    },
    /// A session's volume has its replicas elsewhere.
    Move {
        session: SessionId,
        hosts: Vec<HostId>,
    },
    Close {
        session: SessionId,
    },
    Delete {
        volume: VolumeId,
        answer: oneshot::Sender<Result<(), Refused>>,
    },
    Recover {
        volume: VolumeId,
        recovery: Recovery,
        answer: oneshot::Sender<Result<(), NotRecovered>>,
    },
    Create {
        volume: VolumeId,
        blocks: u64,
        members: Members,
        answer: oneshot::Sender<Result<(), NotReady>>,
    },
    Look {
        answer: oneshot::Sender<Seen>,
    },
    Stop,
}

/// What the thread knows.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) replicas: BTreeMap<model::VolumeId, ReplicaLook>,
    /// The same replicas, as it is planned with them.
    pub(crate) have: BTreeMap<model::VolumeId, HaveReplica>,
    pub(crate) space: SpaceUse,
    pub(crate) dead: Option<String>,
    pub(crate) figures: Figures,
}

/// The way to the thread.
#[derive(Debug, Clone)]
pub(crate) struct Owner {
    events: mpsc::UnboundedSender<Event>,
    runtime: Handle,
}

/// The thread has ended.
#[derive(Debug, thiserror::Error)]
#[error("the storage process is ending")]
pub(crate) struct Ended;

impl Owner {
    /// Starts the thread; what is on the disk is told to `first` before any of it is used.
    pub(crate) fn start(
        id: HostId,
        incarnation: u64,
        disk: disk::Disk,
        outgoing: Outgoing,
        first: impl FnOnce(&Store) -> io::Result<()>,
    ) -> io::Result<(Self, JoinHandle<()>)> {
        let (events, queue) = mpsc::unbounded_channel();
        let (store, carrier) = disk.into_parts();
        first(&store)?;
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let begin = Instant::now();
        let start = move || {
            let ran = runtime.block_on(async {
                let running = Running::new(id, incarnation, (store, carrier), begin, outgoing)?;
                // As a task among those of the clients: to wake it is no matter of the kernel then.
                tokio::spawn(running.run(queue)).await?;
                io::Result::Ok(())
            });
            ran.expect("the replicas' own task does not panic, and its disk can be waited for");
        };
        let thread = thread::Builder::new().name("replicas".to_owned());
        let owner = Self {
            events,
            runtime: handle,
        };
        Ok((owner, thread.spawn(start)?))
    }

    pub(crate) fn tell(&self, event: Event) -> Result<(), Ended> {
        self.events.send(event).map_err(|_| Ended)
    }

    /// Has the thread do this, too, for as long as it lives.
    pub(crate) fn spawn(
        &self,
        task: impl Future<Output = ()> + Send + 'static,
    ) -> tokio::task::JoinHandle<()> {
        self.runtime.spawn(task)
    }

    /// Tells the thread something that it answers.
    async fn put<T>(&self, event: impl FnOnce(oneshot::Sender<T>) -> Event) -> Result<T, Ended> {
        let (answer, answered) = oneshot::channel();
        self.tell(event(answer))?;
        answered.await.map_err(|_| Ended)
    }

    /// A request of a session. `None`: there is no such session any more.
    pub(crate) async fn ask(&self, session: SessionId, op: Op) -> Option<Outcome> {
        let asked = self.put(|answer| Event::Ask {
            session,
            op,
            answer,
        });
        asked.await.ok()
    }

    pub(crate) async fn create(
        &self,
        volume: VolumeId,
        blocks: u64,
        members: Members,
    ) -> Result<Result<(), NotReady>, Ended> {
        self.put(|answer| Event::Create {
            volume,
            blocks,
            members,
            answer,
        })
        .await
    }

    pub(crate) async fn recover(
        &self,
        volume: VolumeId,
        recovery: Recovery,
    ) -> Result<Result<(), NotRecovered>, Ended> {
        self.put(|answer| Event::Recover {
            volume,
            recovery,
            answer,
        })
        .await
    }

    pub(crate) async fn delete(&self, volume: VolumeId) -> Result<Result<(), Refused>, Ended> {
        self.put(|answer| Event::Delete { volume, answer }).await
    }

    /// One request by a session of its own, which needs no attachment.
    pub(crate) async fn ask_once(
        &self,
        volume: VolumeId,
        hosts: Vec<HostId>,
        op: Op,
    ) -> Result<Outcome, Ended> {
        let session = SessionId(rand::random());
        self.tell(Event::Open {
            session,
            volume,
            hosts,
        })?;
        let outcome = self.ask(session, op).await;
        self.tell(Event::Close { session })?;
        outcome.ok_or(Ended)
    }

    pub(crate) async fn look(&self) -> Result<Seen, Ended> {
        self.put(|answer| Event::Look { answer }).await
    }
}

/// The clock of `Host`.
fn time(begin: Instant) -> Time {
    let micros = u64::try_from(begin.elapsed().as_micros());
    Time(micros.expect("a process does not run for 500,000 years"))
}
