//! What the thread does with what happens.

use super::patience::Patience;
use super::seen::Marks;
use super::{Event, time};
use crate::figures::Figures;
use crate::peers::Outgoing;
use ::disk::Carrier;
use blocks::{Io, Store, Token, VolumeId};
use replication::{Host, HostId, Op, Outcome, RequestId, SessionId, Time};
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::OwnedFd;
use std::pin::{Pin, pin};
use std::time::{Duration, Instant};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::oneshot;
use tokio::task::yield_now;
use tokio::time::{Sleep, sleep};
use tracing::{error, warn};

/// Events that are taken in before what came of them is handed out: the more, the larger are batches and frames.
const MOST_AT_ONCE: usize = 256;
/// What is on the disk is read through at this pace: a TiB in about three days.
const SCRUB_MIB_PER_SECOND: u64 = 4;
/// While nothing has a deadline.
const IDLE_WAIT: Duration = Duration::from_secs(1);

/// A request that is not answered yet.
pub(super) struct Asked {
    answer: oneshot::Sender<Outcome>,
    since: Instant,
    kind: Kind,
}

#[derive(Clone, Copy)]
enum Kind {
    Attach,
    Read,
    Write,
    Zero,
}

/// An IO that is under way.
pub(super) struct Begun {
    since: Instant,
    kind: IoKind,
}

#[derive(Clone, Copy)]
enum IoKind {
    Read,
    Write,
    Sync,
}

pub(super) struct Running {
    pub(super) host: Host,
    /// Readable when an IO is done.
    done: AsyncFd<OwnedFd>,
    carrier: Carrier,
    begin: Instant,
    outgoing: Outgoing,
    pub(super) asked: HashMap<RequestId, Asked>,
    pub(super) begun: HashMap<Token, Begun>,
    pub(super) figures: Figures,
    told_dead: bool,
    /// Of volumes that are led here.
    pub(super) marks: BTreeMap<VolumeId, Marks>,
}

#[expect(
    deprecated,
    reason = "what takes its place is unsafe for the sake of descriptors that do not stay open; an owned one does"
)]
fn watched(done: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(done, Interest::READABLE)
}

impl Running {
    /// In the runtime that is to run it.
    pub(super) fn new(
        id: HostId,
        incarnation: u64,
        (store, carrier): (Store, Carrier),
        begin: Instant,
        outgoing: Outgoing,
    ) -> io::Result<Self> {
        let done = carrier.done_fd().try_clone_to_owned()?;
        let mut host = Host::new(id, incarnation, store, time(begin));
        host.scrub(SCRUB_MIB_PER_SECOND, time(begin));
        Ok(Self {
            host,
            done: watched(done)?,
            carrier,
            begin,
            outgoing,
            asked: HashMap::new(),
            begun: HashMap::new(),
            figures: Figures::default(),
            told_dead: false,
            marks: BTreeMap::new(),
        })
    }

    pub(super) async fn run(mut self, mut queue: UnboundedReceiver<Event>) {
        // One for all waits: most have the same end, and to tell the runtime of another one is a call of the kernel.
        let mut timer = pin!(sleep(Duration::ZERO));
        let mut patience = Patience::new(Instant::now());
        loop {
            let mut busy = false;
            for _ in 0..MOST_AT_ONCE {
                let Some((token, done)) = self.carrier.take() else {
                    break;
                };
                busy = true;
                self.io_done(token);
                self.host.handle_done(token, done, time(self.begin));
            }
            for _ in 0..MOST_AT_ONCE {
                match queue.try_recv() {
                    Ok(event) => {
                        busy = true;
                        if !self.take(event) {
                            return;
                        }
                    }
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return,
                }
            }
            let now = time(self.begin);
            if self.host.poll_timeout().is_some_and(|at| at <= now) {
                self.host.handle_time(now);
                busy = true;
            }
            let clients_wait = !self.asked.is_empty();
            self.hand_out();
            if busy {
                // Clients hear of it, and what they want next goes with the rest.
                yield_now().await;
                patience.renew(clients_wait, Instant::now());
            } else if patience.lasts() {
                yield_now().await;
            } else if !self.rest(&mut queue, timer.as_mut()).await {
                return;
            }
        }
    }

    /// Until there is something to do. False when it is to end.
    async fn rest(
        &mut self,
        queue: &mut UnboundedReceiver<Event>,
        mut timer: Pin<&mut Sleep>,
    ) -> bool {
        if self.carrier.has_done() {
            return true;
        }
        let until = self.wait_until();
        // Sooner than it has to be is no harm.
        if timer.is_elapsed() || timer.deadline() > until {
            timer.as_mut().reset(until);
        }
        tokio::select! {
            biased;
            event = queue.recv() => event.is_some_and(|event| self.take(event)),
            done = self.done.readable() => {
                match done {
                    Ok(mut done) => done.clear_ready(),
                    // The loop looks anyway.
                    Err(error) => warn!(%error, "Waiting for the disk"),
                }
                self.carrier.heard();
                true
            }
            () = timer => true,
        }
    }

    fn wait_until(&self) -> tokio::time::Instant {
        let at = match self.host.poll_timeout() {
            Some(at) => self.begin + Duration::from_micros(at.0),
            None => Instant::now() + IDLE_WAIT,
        };
        at.into()
    }

    /// False when it is to end.
    fn take(&mut self, event: Event) -> bool {
        let now = time(self.begin);
        match event {
            Event::Frame { from, frame, .. } => self.host.handle_frame(from, frame, now),
            Event::Ask {
                session,
                op,
                answer,
            } => self.ask(session, op, answer, now),
            Event::Open {
                session,
                volume,
                hosts,
            } => self.host.open_session(session, volume, hosts),
            Event::Move { session, hosts } => self.host.move_session(session, hosts),
            Event::Delete { volume, answer } => {
                let deleted = self.host.delete(volume, now);
                if deleted.is_ok() {
                    // What it had is free after that.
                    self.host.checkpoint();
                }
                // Who asked may have gone.
                drop(answer.send(deleted));
            }
            Event::Close { session } => {
                self.host.close_session(session);
                self.asked.retain(|request, _| request.session != session);
            }
            Event::Recover {
                volume,
                recovery,
                answer,
            } => {
                let recovered = self.host.recover(volume, recovery, now);
                // Who asked may have gone.
                drop(answer.send(recovered));
            }
            Event::Create {
                volume,
                blocks,
                members,
                answer,
            } => {
                let made = self.host.create(volume, blocks, &members, now);
                // Who asked may have gone.
                drop(answer.send(made));
            }
            Event::Look { answer } => drop(answer.send(self.seen())),
            Event::Stop => return false,
        }
        true
    }

    fn ask(&mut self, session: SessionId, op: Op, answer: oneshot::Sender<Outcome>, now: Time) {
        let kind = match op {
            Op::Attach { .. } | Op::Grow { .. } | Op::Change { .. } => Kind::Attach,
            Op::Read { .. } | Op::Allocation { .. } => Kind::Read,
            Op::Write { .. } => Kind::Write,
            Op::Zero { .. } => Kind::Zero,
        };
        if let Some(request) = self.host.ask(session, op, now) {
            let asked = Asked {
                answer,
                since: Instant::now(),
                kind,
            };
            self.asked.insert(request, asked);
        }
    }

    /// Frames first: the others' disks work while this one does.
    fn hand_out(&mut self) {
        while let Some((to, frame)) = self.host.poll_frame() {
            self.outgoing.send(to, frame);
        }
        while let Some((token, io)) = self.host.poll_io() {
            let kind = match &io {
                Io::Read { .. } => IoKind::Read,
                Io::Write { .. } => IoKind::Write,
                Io::WriteSync { .. } | Io::Sync => IoKind::Sync,
            };
            let since = Instant::now();
            self.begun.insert(token, Begun { since, kind });
            self.carrier.submit(token, io);
        }
        self.carrier.flush();
        while let Some(reply) = self.host.poll_reply() {
            if let Some(asked) = self.asked.remove(&reply.request) {
                self.answered(asked, reply.outcome);
            }
        }
        if let Some(why) = self.host.dead()
            && !self.told_dead
        {
            error!(
                why,
                "The disk failed: the replicas here take part no more; what is attached here goes on with the others"
            );
            self.told_dead = true;
        }
    }

    fn answered(&mut self, asked: Asked, outcome: Outcome) {
        let took = asked.since.elapsed();
        match asked.kind {
            Kind::Attach => {}
            Kind::Read => self.figures.reads.add(took),
            Kind::Write => self.figures.writes.add(took),
            Kind::Zero => self.figures.zeroes.add(took),
        }
        self.figures.failed_requests += u64::from(outcome.is_err());
        // A client that went away waits no more.
        drop(asked.answer.send(outcome));
    }

    fn io_done(&mut self, token: Token) {
        let Some(begun) = self.begun.remove(&token) else {
            return warn!(?token, "An IO is done that was not begun");
        };
        let histogram = match begun.kind {
            IoKind::Read => &mut self.figures.disk_reads,
            IoKind::Write => &mut self.figures.disk_writes,
            IoKind::Sync => &mut self.figures.disk_syncs,
        };
        histogram.add(begun.since.elapsed());
    }
}
