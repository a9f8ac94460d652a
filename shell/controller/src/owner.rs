//! The one owner of the server's state: one loop over one enum of events.
//!
//! Changes that wait together are decided one on the other, committed in one transaction and only
//! then answered, broadcast and planned. Nobody reads the intent between decision and commit.

mod placing;
mod tending;

use crate::lease::Votes;
use crate::state::State;
use api::tonic::{Code as Grpc, Status};
use api::v1;
use fleet_plan::{
    Code, Command, Context, CreateHost, Decision, Delta, Expect, Issued, IssuedRow, JoinToken,
    MoveStep, Refusal, RequestId, Rollout, RouterChange, RouterStep, TokenSecret, UpdateRouter,
};
use model::{
    Change, Generation, Host, HostConfig, HostId, HostStatus, Liveness, Object, ObjectId, Revision,
    RouterId, UnixMillis,
};
use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use store::{Store, StoreError};
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tracing::{debug, error, info, warn};

use self::tending::Tried;
use crate::request::Unresolved;

/// Changes committed together at most.
const BATCH: usize = 256;
/// How often time-driven work is looked at: liveness, and what other servers committed.
const TICK: Duration = Duration::from_millis(200);
/// How often host reports are saved, and (with several servers) read.
const STATUS_EVERY: Duration = Duration::from_secs(1);
/// A report that says nothing new is saved this often, so that a restarted server knows roughly.
const STALE_SAVE_MILLIS: u64 = 10_000;
/// With another server committing at the same time, changes go one by one for a while.
const CONTENDED: Duration = Duration::from_secs(2);
/// A server that is back within this time does not take its hosts for down.
const RESTART_MILLIS: u64 = 60_000;
const CONFLICTS: u32 = 100;
/// No host gets here by itself; one that claims to is not believed.
pub(crate) const GENERATION_MAX: u64 = 1 << 62;

/// Everything that happens to the server.
pub(crate) enum Event {
    Change(PendingChange),
    Read(Box<dyn FnOnce(&State) + Send>),
    Join(Box<PendingJoin>),
    HostConnected {
        host: HostId,
        answer: oneshot::Sender<Result<Session, Status>>,
    },
    HostReported {
        host: HostId,
        session: u64,
        status: Box<HostStatus>,
        underlay_mtu: u32,
        /// Of some of its routers.
        figures: BTreeMap<RouterId, v1::RouterFigures>,
        /// How its storage is; none if no storage process runs.
        storage: Option<v1::StorageReport>,
    },
    HostDisconnected {
        host: HostId,
        session: u64,
    },
    Tick,
    Stop,
}

/// A change somebody waits for.
pub(crate) struct PendingChange {
    unresolved: Unresolved,
    context: Context,
    answer: oneshot::Sender<Result<Done, Status>>,
}

/// A host that wants to join; its token's secret was found right.
pub(crate) struct PendingJoin {
    pub(crate) create: CreateHost,
    pub(crate) request: RequestId,
    pub(crate) secret: TokenSecret,
    pub(crate) token: JoinToken,
    pub(crate) address: IpAddr,
    pub(crate) answer: oneshot::Sender<Result<Host, Status>>,
}

/// A change that was made.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) revision: Revision,
    pub(crate) view: v1::change::Object,
}

/// A host's stream.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) id: u64,
    pub(crate) pushed: watch::Receiver<Push>,
}

/// The newest thing to tell a host; what was not sent before is forgotten.
#[derive(Debug, Clone)]
pub(crate) enum Push {
    Nothing,
    Config(Arc<HostConfig>),
    /// The host connected again.
    Replaced,
    /// The host was removed.
    Removed,
}

/// What watchers are told.
#[derive(Debug, Clone)]
pub(crate) enum Live {
    Changes(Arc<Vec<Change>>),
    Liveness(v1::HostLiveness),
}

/// How everybody else talks to the owner.
#[derive(Clone)]
pub(crate) struct Handle {
    events: mpsc::Sender<Event>,
    live: broadcast::Sender<Live>,
    progress: watch::Receiver<u64>,
}

/// The loop and what belongs to it.
pub(crate) struct Owner {
    state: State,
    store: Arc<Store>,
    shared_store: bool,
    events: mpsc::Receiver<Event>,
    live: broadcast::Sender<Live>,
    progress: watch::Sender<u64>,
    peers: watch::Sender<BTreeSet<IpAddr>>,
    sessions: BTreeMap<HostId, (u64, watch::Sender<Push>)>,
    next_session: u64,
    /// Issued, but not on disk yet: no host has it.
    unsaved: BTreeMap<HostId, Issued>,
    staleness: Staleness,
    /// The last change that watchers were told of.
    announced: Revision,
    contended_until: Instant,
    statuses_at: Instant,
    /// When volumes were looked at.
    tended_at: UnixMillis,
    /// Steps of volumes that could not be taken.
    tried: Tried,
    /// How long a replica may be away.
    replace_after: Duration,
    votes: Votes,
}

/// Whether the intent in memory is that of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Staleness {
    Current,
    /// The store may have gone on.
    Behind,
    /// Decisions were applied that the store does not have.
    Ahead,
}

/// What a change comes to, with the name of what it does.
type Outcome = Result<(Decision, &'static str), Refusal>;

impl Handle {
    /// Makes a change, durably, or says why not.
    pub(crate) async fn change(
        &self,
        actor: String,
        request: Option<RequestId>,
        unresolved: Unresolved,
    ) -> Result<Done, Status> {
        let (answer, answered) = oneshot::channel();
        let context = Context {
            now: now(),
            seed: rand::random(),
            request,
            down: BTreeSet::new(),
            disks: BTreeMap::new(),
            replicas: BTreeMap::new(),
            actor,
        };
        self.send(Event::Change(PendingChange {
            unresolved,
            context,
            answer,
        }))
        .await?;
        answered.await.map_err(|_| stopping())?
    }

    /// Asks the state something.
    pub(crate) async fn read<T: Send + 'static>(
        &self,
        question: impl FnOnce(&State) -> T + Send + 'static,
    ) -> Result<T, Status> {
        let (answer, answered) = oneshot::channel();
        let ask = move |state: &State| {
            // Nobody waits any more: the client went away.
            drop(answer.send(question(state)));
        };
        self.send(Event::Read(Box::new(ask))).await?;
        answered.await.map_err(|_| stopping())
    }

    pub(crate) async fn send(&self, event: Event) -> Result<(), Status> {
        self.events.send(event).await.map_err(|_| stopping())
    }

    /// Changes from now on. A gap in the revisions means: read the store.
    pub(crate) fn live(&self) -> broadcast::Receiver<Live> {
        self.live.subscribe()
    }

    /// Wakes when a host made progress.
    pub(crate) fn progress(&self) -> watch::Receiver<u64> {
        self.progress.clone()
    }
}

impl Owner {
    /// The owner of `state`, and the way to reach it. `shared_store`: other servers may write.
    pub(crate) fn new(
        state: State,
        store: Arc<Store>,
        shared_store: bool,
        votes: Votes,
        replace_after: Duration,
    ) -> (Self, Handle, watch::Receiver<BTreeSet<IpAddr>>) {
        let (events_in, events) = mpsc::channel(4096);
        let (live, _) = broadcast::channel(4096);
        let (progress, progress_out) = watch::channel(0);
        let (peers, peers_out) = watch::channel(underlays(&state));
        let handle = Handle {
            events: events_in,
            live: live.clone(),
            progress: progress_out,
        };
        let owner = Self {
            announced: state.intent.revision(),
            state,
            store,
            shared_store,
            events,
            live,
            progress,
            peers,
            sessions: BTreeMap::new(),
            next_session: 1,
            unsaved: BTreeMap::new(),
            staleness: Staleness::Current,
            contended_until: Instant::now(),
            statuses_at: Instant::now(),
            tended_at: UnixMillis(0),
            tried: Tried::new(),
            replace_after,
            votes,
        };
        owner.route_hosts_changed();
        (owner, handle, peers_out)
    }

    /// Runs until it is told to stop.
    pub(crate) async fn run(mut self) {
        self.issue().await;
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let first = tokio::select! {
                event = self.events.recv() => event.unwrap_or(Event::Stop),
                _ = tick.tick() => Event::Tick,
            };
            let mut events = vec![first];
            while events.len() < BATCH
                && let Ok(event) = self.events.try_recv()
            {
                events.push(event);
            }
            self.state.now = now();
            if self.turn(events).await {
                self.save_statuses(true).await;
                return;
            }
        }
    }

    /// Takes a batch of events; true if one of them was to stop.
    async fn turn(&mut self, events: Vec<Event>) -> bool {
        let mut changes = Vec::new();
        let mut joins = Vec::new();
        let mut reads = Vec::new();
        let mut stop = false;
        for event in events {
            match event {
                Event::Change(change) => changes.push(change),
                Event::Join(join) => joins.push(join),
                Event::Read(read) => reads.push(read),
                Event::HostConnected { host, answer } => {
                    // Refused only if the host went away again; its disconnect is on the way.
                    drop(answer.send(self.connect(host).await));
                }
                Event::HostReported {
                    host,
                    session,
                    status,
                    underlay_mtu,
                    figures,
                    storage,
                } => {
                    self.reported(host, session, *status, underlay_mtu);
                    self.counted(host, figures);
                    if let Some(known) = self.state.hosts.get_mut(&host) {
                        known.storage = storage;
                    }
                }
                Event::HostDisconnected { host, session } => {
                    if self
                        .sessions
                        .get(&host)
                        .is_some_and(|(id, _)| *id == session)
                    {
                        self.sessions.remove(&host);
                        debug!(%host, "Host disconnected");
                    }
                }
                Event::Tick => self.tick().await,
                Event::Stop => stop = true,
            }
        }
        self.commit(changes).await;
        for join in joins {
            self.join(*join).await;
        }
        self.issue().await;
        self.advance_moves().await;
        if !reads.is_empty() && self.make_current().await.is_ok() {
            for read in reads {
                read(&self.state);
            }
        }
        stop
    }

    // Changes.

    async fn commit(&mut self, mut changes: Vec<PendingChange>) {
        while !changes.is_empty() {
            let limit = if Instant::now() < self.contended_until {
                1
            } else {
                BATCH
            };
            let rest = changes.split_off(changes.len().min(limit));
            self.commit_together(changes).await;
            changes = rest;
        }
    }

    /// Decides each on the one before it, commits all, answers all.
    async fn commit_together(&mut self, changes: Vec<PendingChange>) {
        for _ in 0..CONFLICTS {
            if let Err(status) = self.make_current().await {
                return answer_all(changes, &status);
            }
            let (outcomes, applied) = self.decide(&changes);
            let decisions: Vec<Decision> = outcomes
                .iter()
                .filter_map(|outcome| outcome.as_ref().ok())
                .map(|(decision, _)| decision.clone())
                .collect();
            if !self.shared_store {
                if let Some(last) = decisions.get(applied) {
                    self.state.intent.apply(last);
                }
                return self.commit_alone(changes, outcomes, &decisions).await;
            }
            match self.store.commit_all(&decisions).await {
                Ok(()) => {
                    if let Some(last) = decisions.get(applied) {
                        self.state.intent.apply(last);
                    }
                    self.committed(&decisions);
                    self.answer(changes, outcomes);
                    return;
                }
                Err(StoreError::Conflict { base }) => {
                    debug!(%base, "Another server was faster, deciding again");
                    self.contended_until = Instant::now() + CONTENDED;
                    self.undo(applied);
                }
                Err(error) => {
                    self.undo(applied);
                    return answer_all(changes, &self.store_failed(&error));
                }
            }
        }
        answer_all(
            changes,
            &Status::aborted("other servers changed the store again and again: try again"),
        );
    }

    /// Commits decisions that are applied. Nobody else writes the store, so what hosts get is planned first and
    /// saved in the same transaction: a change costs one sync to the disk.
    async fn commit_alone(
        &mut self,
        changes: Vec<PendingChange>,
        outcomes: Vec<Outcome>,
        decisions: &[Decision],
    ) {
        for decision in decisions {
            self.state.rollout.note(&self.state.intent, &decision.delta);
        }
        self.plan();
        match self
            .store
            .commit_issued(decisions, &self.unsaved_rows())
            .await
        {
            Ok(winners) => {
                self.saved(winners);
                self.announce_all(decisions);
                self.answer(changes, outcomes);
            }
            Err(error) => {
                self.staleness = Staleness::Ahead;
                answer_all(changes, &self.store_failed(&error));
            }
        }
    }

    /// What each change comes to. All decisions but the last are applied already; how many that
    /// is comes with it.
    fn decide(&mut self, changes: &[PendingChange]) -> (Vec<Outcome>, usize) {
        let mut outcomes: Vec<Outcome> = Vec::new();
        let mut applied = 0;
        let mut waiting: Option<Decision> = None;
        let down = self.state.down_hosts();
        for change in changes {
            if let Some(decision) = waiting.take() {
                self.state.intent.apply(&decision);
                applied += 1;
            }
            let intent = &self.state.intent;
            let outcome = (change.unresolved)(intent).and_then(|command| {
                let action = command.action();
                let is_move = matches!(command, Command::MoveNic(_));
                let is_speaker =
                    matches!(&command, Command::UpdateHost(update) if update.speaker.is_some());
                let context = Context {
                    down: &down | &change.context.down,
                    disks: self.state.disks(),
                    replicas: self.state.replicas_told(&command),
                    ..change.context.clone()
                };
                let decision = intent.decide(command, &context)?;
                match &decision.object {
                    _ if decision.is_noop() => {}
                    Object::Nic(nic) if is_move => self.state.check_target(nic)?,
                    Object::Host(host) if is_speaker => self.state.check_client(host)?,
                    _ => {}
                }
                Ok((decision, action))
            });
            waiting = outcome.as_ref().ok().map(|(decision, _)| decision.clone());
            // A refusal changes nothing, and leaves nothing to apply.
            outcomes.push(outcome);
        }
        (outcomes, applied)
    }

    fn undo(&mut self, applied: usize) {
        if applied > 0 {
            self.staleness = Staleness::Ahead;
        } else {
            self.fall_behind();
        }
    }

    fn answer(&self, changes: Vec<PendingChange>, outcomes: Vec<Outcome>) {
        for (change, outcome) in changes.into_iter().zip(outcomes) {
            let answer = match outcome {
                Ok((decision, action)) => {
                    if !decision.is_noop() {
                        audit(&change.context.actor, action, &decision, None);
                    }
                    if let ("recover volume", Object::Volume(volume)) = (action, &decision.object) {
                        self.state.audit_recovery(&change.context.actor, volume);
                    }
                    Ok(Done {
                        revision: decision.object.meta().revision,
                        view: self.state.view_with_status(&decision.object),
                    })
                }
                Err(refusal) => Err(refused(refusal)),
            };
            // The client may have gone; what it asked for is done all the same.
            drop(change.answer.send(answer));
        }
    }

    /// Takes moves on as far as what the hosts reported lets them.
    async fn advance_moves(&mut self) {
        // A phase may be over as soon as it begins: a host that is down, say.
        for _ in 0..3 {
            let of_nics = self.state.move_steps();
            let of_routers = self.state.router_steps();
            if of_nics.is_empty() && of_routers.is_empty() {
                return;
            }
            let mut changes = Vec::new();
            for (nic, step) in of_nics {
                self.log_step(&nic, &step);
                changes.push(self.own_change(Command::AdvanceMove {
                    nic: nic.id,
                    expect: Expect::Exactly(nic.meta.revision),
                    step,
                }));
            }
            for (router, step) in of_routers {
                self.log_router_step(&router, &step);
                changes.push(self.own_change(Command::UpdateRouter(UpdateRouter {
                    router: router.id,
                    expect: Expect::Exactly(router.meta.revision),
                    change: RouterChange::Advance(step),
                })));
            }
            self.commit(changes).await;
            self.issue().await;
        }
    }

    /// A change that nobody asked for.
    fn own_change(&self, command: Command) -> PendingChange {
        PendingChange {
            unresolved: Box::new(move |_| Ok(command.clone())),
            context: Context {
                now: self.state.now,
                seed: rand::random(),
                request: None,
                down: BTreeSet::new(),
                disks: BTreeMap::new(),
                replicas: BTreeMap::new(),
                actor: "server".to_owned(),
            },
            // Whoever hears of it hears of it from the store.
            answer: oneshot::channel().0,
        }
    }

    fn log_step(&self, nic: &model::Nic, step: &MoveStep) {
        let name = |id| self.state.intent.path(id);
        let path = name(ObjectId::Nic(nic.id));
        let host = name(ObjectId::Host(nic.placement.host));
        let other = nic
            .moving
            .as_ref()
            .map(|m| name(ObjectId::Host(m.other.host)));
        let other = other.unwrap_or_default();
        match step {
            MoveStep::Switch => info!(nic = path, from = host, to = other, "NIC switches hosts"),
            MoveStep::Retire => info!(
                nic = path,
                host,
                old = other,
                "NIC is announced by its new host"
            ),
            MoveStep::Back { reason } => {
                warn!(nic = path, reason, "NIC is taken back from its move")
            }
            MoveStep::Finish => info!(nic = path, host, "NIC has moved"),
        }
    }

    fn log_router_step(&self, router: &model::Router, step: &RouterStep) {
        let name = |id| self.state.intent.path(id);
        let path = name(ObjectId::Router(router.id));
        let from = name(ObjectId::Host(router.placement.host));
        let to = router.goes_to().map(|host| name(ObjectId::Host(host)));
        let to = to.unwrap_or_default();
        match step {
            RouterStep::Switch => info!(router = path, from, to, "Router switches hosts"),
            RouterStep::Stay { reason } => {
                warn!(router = path, from, to, reason, "Router stays where it is");
            }
        }
    }

    async fn join(&mut self, join: PendingJoin) {
        let answer = self.try_join(&join).await;
        drop(join.answer.send(answer));
    }

    async fn try_join(&mut self, join: &PendingJoin) -> Result<Host, Status> {
        let context = Context {
            now: self.state.now,
            seed: rand::random(),
            request: Some(join.request.clone()),
            down: BTreeSet::new(),
            disks: BTreeMap::new(),
            replicas: BTreeMap::new(),
            actor: format!("token/{}", join.token.id),
        };
        for _ in 0..CONFLICTS {
            self.make_current().await?;
            let command = Command::CreateHost(join.create.clone());
            let decided = self.state.intent.decide(command, &context);
            // A repeated request finds its token used, by itself.
            let repeated = decided.as_ref().is_ok_and(Decision::is_noop);
            if !repeated {
                join.token
                    .check(&join.secret, context.now)
                    .map_err(|refusal| Status::permission_denied(refusal.to_string()))?;
            }
            let decision = decided.map_err(refused)?;
            match self
                .store
                .commit_join(&decision, &join.secret, context.now)
                .await
            {
                Ok(()) => {}
                Err(StoreError::Conflict { .. }) => {
                    self.fall_behind();
                    continue;
                }
                Err(StoreError::Token(refusal)) => {
                    return Err(Status::permission_denied(refusal.to_string()));
                }
                Err(error) => {
                    self.fall_behind();
                    return Err(self.store_failed(&error));
                }
            }
            self.state.intent.apply(&decision);
            self.committed(std::slice::from_ref(&decision));
            if !decision.is_noop() {
                audit(&context.actor, "join host", &decision, Some(join.address));
            }
            return match decision.object {
                Object::Host(host) => match self.state.intent.host(host.id) {
                    Some(host) => Ok(host.clone()),
                    None => Err(Status::permission_denied(format!(
                        "host {} was removed: join again with a new token",
                        host.name
                    ))),
                },
                _ => Err(Status::internal("a join made no host: this is a bug")),
            };
        }
        Err(Status::aborted(
            "other servers changed the store again and again: try again",
        ))
    }

    /// Tells everybody what was committed and applied.
    fn committed(&mut self, decisions: &[Decision]) {
        for decision in decisions {
            self.state.rollout.note(&self.state.intent, &decision.delta);
        }
        self.announce_all(decisions);
    }

    fn announce_all(&mut self, decisions: &[Decision]) {
        let changes = decisions
            .iter()
            .flat_map(|decision| &decision.delta.changes);
        self.announce(changes.cloned().collect());
    }

    fn announce(&mut self, changes: Vec<Change>) {
        let Some(last) = changes.last() else {
            return;
        };
        self.announced = last.revision;
        if changes
            .iter()
            .any(|change| matches!(change.object, Object::Host(_)))
        {
            self.hosts_changed();
        }
        // Nobody watches: nobody to tell.
        drop(self.live.send(Live::Changes(Arc::new(changes))));
        self.progress.send_modify(|count| *count += 1);
    }

    fn route_hosts_changed(&self) {
        let hosts = self.state.route_hosts().map(|host| host.id);
        self.votes.set_hosts(hosts.collect());
    }

    fn hosts_changed(&mut self) {
        self.route_hosts_changed();
        self.state.forget_removed();
        let intent = &self.state.intent;
        self.sessions.retain(|host, (_, push)| {
            let there = intent.host(*host).is_some();
            if !there {
                push.send_replace(Push::Removed);
            }
            there
        });
        self.unsaved.retain(|host, _| intent.host(*host).is_some());
        let underlays = underlays(&self.state);
        self.peers.send_if_modified(|peers| {
            let changed = *peers != underlays;
            *peers = underlays;
            changed
        });
    }

    /// Makes the intent in memory that of the store, after something went wrong.
    async fn make_current(&mut self) -> Result<(), Status> {
        let outcome = match self.staleness {
            Staleness::Current => return Ok(()),
            Staleness::Behind => self.store.catch_up(&mut self.state.intent).await,
            Staleness::Ahead => match self.store.load().await {
                Ok(intent) => {
                    self.state.intent = intent;
                    // Hosts may have been planned from what was undone.
                    self.state.rollout.note_all(&self.state.intent);
                    Ok(())
                }
                Err(error) => Err(error),
            },
        };
        if let Err(error) = outcome {
            return Err(self.store_failed(&error));
        }
        self.staleness = Staleness::Current;
        if self.state.intent.revision() > self.announced {
            self.announce_foreign().await;
        }
        Ok(())
    }

    /// Tells everybody what was committed elsewhere, or by us without our knowing.
    async fn announce_foreign(&mut self) {
        match self.store.changes_since(self.announced, usize::MAX).await {
            Ok(history) => {
                // The store may have gone on since; that comes with the next catching up.
                let known = self.state.intent.revision();
                let changes = history.changes.into_iter();
                let changes: Vec<Change> = changes.take_while(|c| c.revision <= known).collect();
                let delta = Delta {
                    changes,
                    ..Delta::default()
                };
                self.state.rollout.note(&self.state.intent, &delta);
                self.announce(delta.changes);
            }
            Err(error) => {
                // Watchers find the gap at the next change.
                warn!(
                    error = chain(&error),
                    "Reading what other servers changed failed"
                );
                self.state.rollout.note_all(&self.state.intent);
                self.hosts_changed();
            }
        }
    }

    fn store_failed(&self, failure: &StoreError) -> Status {
        error!(error = chain(failure), "The store failed");
        Status::unavailable(format!(
            "{}; nothing of this request was done as far as the server knows: try again, creates with the same request_id",
            chain(failure)
        ))
    }

    // Configurations.

    /// Plans what changed, saves the generations, and only then gives them to the hosts.
    async fn issue(&mut self) {
        // What was planned may be of decisions that the store does not have: no host may get it.
        if self.staleness == Staleness::Ahead && self.make_current().await.is_err() {
            return;
        }
        // Another server's generations can win a few times over, not for ever.
        for _ in 0..5 {
            self.plan();
            if self.unsaved.is_empty() {
                break;
            }
            match self.store.save_issued(&self.unsaved_rows()).await {
                Ok(winners) => self.saved(winners),
                Err(error) => {
                    warn!(
                        error = chain(&error),
                        "Keeping issued generations failed, trying again"
                    );
                    break;
                }
            }
        }
        self.push();
    }

    fn plan(&mut self) {
        let electorate = self.state.electorate(!self.shared_store);
        for issued in self.state.replan(electorate) {
            self.unsaved.insert(issued.row.host, issued);
        }
    }

    fn unsaved_rows(&self) -> Vec<IssuedRow> {
        let unsaved = self.unsaved.values();
        unsaved.map(|issued| issued.row.clone()).collect()
    }

    /// All that was unsaved is saved, but for what others issued meanwhile.
    fn saved(&mut self, winners: Vec<IssuedRow>) {
        self.unsaved.clear();
        for winner in winners {
            self.state.rollout.adopt(winner);
        }
        self.progress.send_modify(|count| *count += 1);
    }

    /// Gives each connected host its newest configuration, if it has another.
    fn push(&self) {
        for (host, (_, push)) in &self.sessions {
            let Some(config) = self.state.config(*host) else {
                continue;
            };
            if self.unsaved.contains_key(host) {
                continue;
            }
            push.send_if_modified(|pushed| {
                if matches!(pushed, Push::Config(old) if Arc::ptr_eq(old, config)) {
                    return false;
                }
                debug!(%host, generation = %config.generation, "Configuration issued");
                *pushed = Push::Config(Arc::clone(config));
                true
            });
        }
    }

    // Hosts.

    async fn connect(&mut self, host: HostId) -> Result<Session, Status> {
        if self.state.intent.host(host).is_none() && self.shared_store {
            // It may have joined at another server a moment ago.
            self.fall_behind();
            self.make_current().await?;
        }
        if self.state.intent.host(host).is_none() {
            return Err(removed(host));
        }
        if let Some((_, old)) = self.sessions.remove(&host) {
            old.send_replace(Push::Replaced);
        }
        let id = self.next_session;
        self.next_session += 1;
        // Its configuration follows at the end of the turn.
        let (push, pushed) = watch::channel(Push::Nothing);
        self.sessions.insert(host, (id, push));
        debug!(%host, "Host connected");
        Ok(Session { id, pushed })
    }

    fn fall_behind(&mut self) {
        if self.staleness == Staleness::Current {
            self.staleness = Staleness::Behind;
        }
    }

    fn reported(&mut self, host: HostId, session: u64, status: HostStatus, underlay_mtu: u32) {
        let current = self
            .sessions
            .get(&host)
            .is_some_and(|(id, _)| *id == session);
        if !current || self.state.intent.host(host).is_none() {
            return;
        }
        let now = self.state.now;
        let known = self.state.hosts.entry(host).or_default();
        let status = HostStatus {
            last_checkin: now,
            ..status
        };
        let same = HostStatus {
            last_checkin: now,
            resources: status.resources,
            ..known.status.clone()
        };
        let news = same != status || known.underlay_mtu != underlay_mtu;
        known.unsaved |=
            news || self.shared_store || now.0.saturating_sub(known.saved_at.0) > STALE_SAVE_MILLIS;
        let received = status.received;
        known.status = status;
        known.underlay_mtu = underlay_mtu;
        self.refresh_liveness(host);
        if news {
            self.progress.send_modify(|count| *count += 1);
        }
        let wanted = self.state.wanted(host);
        if received > wanted && wanted > Generation(0) && received.0 < GENERATION_MAX {
            // The store was restored from a backup: the host refuses what is older than it has.
            warn!(%host, %received, %wanted, "Host holds a newer configuration than ever issued, issuing past it");
            self.state.rollout.adopt(IssuedRow {
                host,
                generation: received,
                digest: fleet_plan::Digest("unknown".to_owned()),
            });
        }
    }

    /// Those of routers that are not there any more are forgotten.
    fn counted(&mut self, host: HostId, figures: BTreeMap<RouterId, v1::RouterFigures>) {
        let intent = &self.state.intent;
        let Some(known) = self.state.hosts.get_mut(&host) else {
            return;
        };
        known.figures.extend(figures);
        let runs = |id: &RouterId| {
            let router = intent.router(*id);
            router.is_some_and(|router| router.placement.host == host)
        };
        known.figures.retain(|id, _| runs(id));
    }

    fn refresh_liveness(&mut self, host: HostId) {
        let liveness = self.state.liveness(host);
        let Some(known) = self.state.hosts.get_mut(&host) else {
            return;
        };
        if known.shown == liveness {
            return;
        }
        known.shown = liveness;
        let Some(row) = self.state.intent.host(host) else {
            return;
        };
        match liveness {
            Liveness::Down => {
                warn!(%host, name = %row.name, "Host is down: it stopped checking in")
            }
            Liveness::Up | Liveness::Joining => info!(%host, name = %row.name, "Host is up"),
        }
        drop(
            self.live
                .send(Live::Liveness(self.state.liveness_view(row))),
        );
        self.progress.send_modify(|count| *count += 1);
    }

    // Time.

    async fn tick(&mut self) {
        let hosts: Vec<HostId> = self.state.hosts.keys().copied().collect();
        for host in hosts {
            self.refresh_liveness(host);
        }
        if self.shared_store {
            self.fall_behind();
            // Its failure was logged, and the next tick tries again.
            drop(self.make_current().await);
        }
        self.place_routers().await;
        self.renew_standbys().await;
        self.tend_volumes().await;
        if self.statuses_at.elapsed() >= STATUS_EVERY {
            self.statuses_at = Instant::now();
            self.save_statuses(false).await;
            if self.shared_store {
                self.read_statuses().await;
            }
        }
    }

    async fn save_statuses(&mut self, all: bool) {
        let due: Vec<(HostId, HostStatus)> = self
            .state
            .hosts
            .iter()
            .filter(|(_, known)| known.unsaved || all)
            .map(|(host, known)| (*host, known.status.clone()))
            .collect();
        if let Err(error) = self.store.save_statuses(&due).await {
            warn!(
                error = chain(&error),
                "Keeping host reports failed, trying again"
            );
            return;
        }
        for (host, _) in due {
            if let Some(known) = self.state.hosts.get_mut(&host) {
                known.unsaved = false;
                known.saved_at = self.state.now;
            }
        }
    }

    /// Reports of hosts that are connected to another server.
    async fn read_statuses(&mut self) {
        let statuses = match self.store.statuses().await {
            Ok(statuses) => statuses,
            Err(error) => {
                warn!(
                    error = chain(&error),
                    "Reading host reports failed, trying again"
                );
                return;
            }
        };
        for (host, status) in statuses {
            if self.sessions.contains_key(&host) || self.state.intent.host(host).is_none() {
                continue;
            }
            let known = self.state.hosts.entry(host).or_default();
            if known.status.last_checkin < status.last_checkin {
                known.status = status;
                self.progress.send_modify(|count| *count += 1);
            }
            self.refresh_liveness(host);
        }
    }
}

/// Loads what the store holds into a state, every host planned at the first turn.
pub(crate) async fn load(
    store: &Store,
    reflectors: Vec<model::Reflector>,
) -> Result<State, StoreError> {
    let intent = store.load().await?;
    let rollout = Rollout::new(store.issued().await?, &intent, reflectors);
    let statuses = store.statuses().await?;
    let now = now();
    let mut state = State::new(intent, rollout, now);
    for (host, mut status) in statuses {
        let saved_at = status.last_checkin;
        // Hosts could not check in while this server was down: those that were there lately get
        // the usual time to come back.
        if now.0.saturating_sub(saved_at.0) < RESTART_MILLIS {
            status.last_checkin = now;
        }
        let known = crate::state::Known {
            shown: fleet_plan::liveness(Some(&status), now),
            saved_at,
            status,
            underlay_mtu: 0,
            figures: BTreeMap::new(),
            storage: None,
            unsaved: false,
        };
        state.hosts.insert(host, known);
    }
    Ok(state)
}

/// A refusal as clients get it.
pub(crate) fn refused(refusal: Refusal) -> Status {
    let code = match refusal.code() {
        Code::NotFound => Grpc::NotFound,
        Code::AlreadyExists => Grpc::AlreadyExists,
        Code::InUse | Code::Held | Code::UnsuitableHost => Grpc::FailedPrecondition,
        Code::Invalid | Code::RequestReused => Grpc::InvalidArgument,
        Code::Exhausted => Grpc::ResourceExhausted,
        Code::VersionConflict => Grpc::Aborted,
    };
    let mut status = Status::new(code, refusal.to_string());
    if let Ok(reason) = refusal.code().as_str().parse() {
        status.metadata_mut().insert("vpc-reason", reason);
    }
    status
}

pub(crate) fn removed(host: HostId) -> Status {
    Status::permission_denied(format!(
        "host {host} is not a member of this cluster any more: it was removed; join again with a new token"
    ))
}

/// An error with its causes.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}

pub(crate) fn now() -> UnixMillis {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    UnixMillis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

fn answer_all(changes: Vec<PendingChange>, status: &Status) {
    for change in changes {
        drop(change.answer.send(Err(status.clone())));
    }
}

fn stopping() -> Status {
    Status::unavailable("the server is stopping: try again")
}

fn underlays(state: &State) -> BTreeSet<IpAddr> {
    state.intent.hosts().map(|host| host.underlay).collect()
}

fn audit(actor: &str, action: &'static str, decision: &Decision, from: Option<IpAddr>) {
    let from = from.map(tracing::field::display);
    info!(
        target: "audit",
        actor,
        action,
        object = %decision.object.id(),
        revision = %decision.revision(),
        from,
        "Changed"
    );
}
