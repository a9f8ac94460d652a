//! The loop: takes one event, decides with the pure machine, asks the kernel's thread.
//!
//! A pass is: observe, plan, run, observe again. What the second look shows is what counts: what
//! is reported, announced by BGP and called done. A look costs what changed since the last one; the
//! kernel's thread knows the rest, and every so often it looks at everything.

use crate::announce::Announcer;
use crate::bgp::{self, Bgp, News};
use crate::disk::{Disk, StateError};
use crate::events::{Event, Request, ServerLink, status_of};
use crate::kept_config;
use crate::kernel::{Job, KernelThread};
use crate::lease::{Leased, Leases, Orders};
use crate::meter::Meter;
use crate::outside::Outside;
use crate::rd::{Of, RdIndexes};
use crate::sequences::Kept;
use crate::told::Told;
use crate::view::{Counters, View, unix_now};
use ::datapath::{Change, Domain};
use api::tonic::Status;
use host_plan::{
    Action, FdbState, FdbTarget, HostMachine, HostState, Plan, Readiness, Step, Subject,
};
use metrics::Histogram;
use model::{
    Condition, Forwarding, Generation, HostConfig, IfName, MacAddr, ObjectId, Stack, UnixMillis,
};
use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::mpsc as std_mpsc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::sleep_until;
use tracing::{debug, error, info, warn};

/// Steps that the kernel's thread is given at once: some 20 ms of rows.
const SLICE_STEPS: usize = 8192;
/// A plan under way takes in new rows for this long: then it comes to its end and the kernel is
/// looked at again, even under a stream of changes that never ends.
const NEWS_FOR: Duration = Duration::from_secs(5);
/// After a failed observation.
const OBSERVE_RETRY: Duration = Duration::from_millis(500);
/// While no datapath runs that should.
const DATAPATH_RETRY: Duration = Duration::from_secs(1);

/// A full look begins this long after a change: the change is in the kernel by then, and who makes some every second
/// makes none just now. With hundreds of routers a look takes 40 ms, which a change would wait for.
const QUIET: Duration = Duration::from_millis(25);
/// While changes never end, a full look that is due waits no longer.
const QUIET_WITHIN: Duration = Duration::from_secs(15);

/// The agent's state, with one owner.
pub(crate) struct Agent {
    machine: HostMachine,
    /// False on an enrolled host that has no configuration yet: what is in the kernel may be the
    /// server's, so nothing is touched until it says what it wants.
    may_act: bool,
    disk: Disk,
    kernel: KernelThread,
    leases: Leases,
    /// As the leases' thread last said.
    leased: Leased,
    bgp: Bgp,
    rds: RdIndexes,
    sequences: Kept,
    /// What the leases' thread has its orders by.
    ordered: Option<Arc<HostConfig>>,
    /// What the speaker was told from last.
    told: Option<Told>,
    pace: Pace,
    stage: Stage,
    /// When the next pass is due; none if nothing asks for one.
    due: Option<Instant>,
    full_due: Instant,
    /// When an input changed last.
    changed_at: Option<Instant>,
    observed: Option<Arc<HostState>>,
    ready: Arc<Readiness>,
    /// An input changed since the last time nothing was left to do: steps are no drift.
    expecting: bool,
    just_done: HashSet<Step>,
    /// Steps of the plan under way that the kernel's thread has not been given yet.
    to_run: VecDeque<Step>,
    /// What came of those it has run.
    outcomes: Vec<(Step, Result<(), String>)>,
    /// Something other than rows is wanted: the plan under way ends before its remote rows.
    cut: bool,
    run_since: Instant,
    /// The forwarding state that the plan under way, with what was put before it, makes true.
    planned_forwarding: Arc<Forwarding>,
    asked: u64,
    /// When an input changed first of those changes that no plan has taken in.
    asked_at: Option<Instant>,
    /// How long it took until nothing was left to do.
    reconcile: Histogram,
    planned: u64,
    settled: u64,
    /// The newest configuration made true.
    made_true: Generation,
    /// What the steps under way were planned for.
    ran_for: Option<Input>,
    kept: Generation,
    /// Why the newest configuration is not on disk.
    unkept: Option<Condition>,
    /// Writes configurations to the disk, beside the passes.
    keeping: std_mpsc::Sender<Arc<HostConfig>>,
    counters: Counters,
    server: ServerLink,
    started: UnixMillis,
    view: watch::Sender<Arc<View>>,
    announcer: Announcer,
    meter: Meter,
    outside: Outside,
}

/// How often things are done.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    /// Between full observations, with the insides of NICs' namespaces.
    pub(crate) resync_every: Duration,
    /// A local stack without a NIC is removed after this long.
    pub(crate) unused_stack_after: Duration,
}

/// What the loop starts with.
pub(crate) struct Start {
    pub(crate) machine: HostMachine,
    pub(crate) may_act: bool,
    pub(crate) disk: Disk,
    pub(crate) keeping: std_mpsc::Sender<Arc<HostConfig>>,
    pub(crate) kernel: KernelThread,
    pub(crate) leases: Leases,
    pub(crate) bgp: Bgp,
    pub(crate) rds: RdIndexes,
    pub(crate) sequences: Kept,
    pub(crate) reconcile: Histogram,
    pub(crate) announcer: Announcer,
    pub(crate) meter: Meter,
    pub(crate) outside: Outside,
    pub(crate) pace: Pace,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Idle,
    /// The kernel's thread looks; `readback` if it has just acted.
    Observing {
        readback: bool,
    },
    Running,
}

/// How new the inputs of a plan were.
#[derive(Debug, Clone, Copy)]
struct Input {
    asked: u64,
    generation: Generation,
    /// When the first of the changes came that this answers.
    since: Option<Instant>,
}

/// Whether the loop goes on.
enum Next {
    Turn,
    End(Option<oneshot::Sender<()>>),
}

impl Agent {
    pub(crate) fn new(start: Start) -> (Self, watch::Receiver<Arc<View>>) {
        let now = Instant::now();
        let kept = start
            .machine
            .managed()
            .map_or(Generation(0), |config| config.generation);
        let started = unix_now();
        let view = watch::Sender::new(Arc::new(View {
            started,
            managed: start.machine.managed().cloned(),
            stacks: Arc::default(),
            routers: Arc::default(),
            dhcp_uplinks: Arc::new(start.machine.dhcp_uplinks().to_vec()),
            managed_vpcs: Arc::default(),
            ready: Arc::default(),
            lost: Arc::default(),
            leased: Leased::default(),
            conditions: Arc::default(),
            observed: None,
            underlay: start.machine.underlay(),
            transport: start.machine.transport(),
            applied: Generation(0),
            asked: 1,
            settled: 0,
            server: ServerLink::default(),
            counters: Counters::default(),
        }));
        let receiver = view.subscribe();
        let agent = Self {
            machine: start.machine,
            may_act: start.may_act,
            disk: start.disk,
            kernel: start.kernel,
            leases: start.leases,
            leased: Leased::default(),
            bgp: start.bgp,
            rds: start.rds,
            sequences: start.sequences,
            ordered: None,
            told: None,
            pace: start.pace,
            stage: Stage::Idle,
            due: Some(now),
            full_due: now,
            changed_at: None,
            observed: None,
            ready: Arc::default(),
            expecting: true,
            just_done: HashSet::new(),
            to_run: VecDeque::new(),
            outcomes: Vec::new(),
            cut: false,
            run_since: now,
            planned_forwarding: Arc::default(),
            asked: 1,
            asked_at: start.may_act.then_some(now),
            reconcile: start.reconcile,
            planned: 0,
            settled: 0,
            made_true: Generation(0),
            ran_for: None,
            kept,
            unkept: None,
            keeping: start.keeping,
            counters: Counters::default(),
            server: ServerLink::default(),
            started,
            view,
            announcer: start.announcer,
            meter: start.meter,
            outside: start.outside,
        };
        (agent, receiver)
    }

    /// Runs until it is told to stop.
    pub(crate) async fn run(
        mut self,
        mut queue: mpsc::Receiver<Event>,
    ) -> Option<oneshot::Sender<()>> {
        self.announcer.carry(self.machine.stacks());
        self.expect_instances();
        self.bgp.expected().await;
        loop {
            self.advance();
            let wake = self.deadline();
            let woken = async {
                match wake {
                    Some(at) => sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            let event = tokio::select! {
                event = queue.recv() => event.expect("the kernel's thread holds a sender"),
                news = self.bgp.news() => match news {
                    News::Forwarding(learned) => Event::Forwarding(learned),
                    News::Frr => {
                        self.publish();
                        continue;
                    }
                    News::Raised => {
                        self.keep_sequences();
                        continue;
                    }
                },
                () = woken => continue,
            };
            match self.handle(event).await {
                Next::Turn => {}
                Next::End(done) => return done,
            }
        }
    }

    /// When there is something to do without an event; while a pass is under way, its end is one.
    fn deadline(&self) -> Option<Instant> {
        let idle = self.stage == Stage::Idle;
        let full_at = full_look_at(self.full_due, self.changed_at);
        let due = [self.machine.poll_timeout(), self.due, Some(full_at)];
        due.into_iter().flatten().min().filter(|_| idle)
    }

    /// Starts a pass if one is due and none is under way.
    fn advance(&mut self) {
        if self.stage != Stage::Idle {
            return;
        }
        let now = Instant::now();
        let full = full_look_at(self.full_due, self.changed_at) <= now;
        let retry = self.machine.poll_timeout().is_some_and(|at| at <= now);
        if !full && !retry && self.due.is_none_or(|at| at > now) {
            return;
        }
        self.due = None;
        if !full && !retry && self.may_act && self.take_news() {
            // They are in the kernel before it is looked at: the look is of everything, and with
            // many rows it takes its time.
            self.begin();
            return;
        }
        if full {
            self.collect_unused();
            if let Some(mtu) = bgp::own_mtu(self.machine.underlay().address) {
                self.machine.set_own_mtu(mtu);
            }
            self.full_due = now + self.pace.resync_every;
        }
        let scope = self
            .machine
            .scope(self.observed.as_deref().filter(|_| !full));
        self.stage = Stage::Observing { readback: false };
        self.kernel.ask(Job::Observe { scope, whole: full });
    }

    /// Notes that an input of the plan changed.
    fn changed(&mut self) {
        let now = Instant::now();
        self.asked += 1;
        self.asked_at.get_or_insert(now);
        self.changed_at = Some(now);
    }

    /// Asks for a pass now, because an input changed.
    fn ask_pass(&mut self) {
        self.changed();
        self.announcer.carry(self.machine.stacks());
        self.expecting = true;
        self.cut = true;
        self.due = Some(Instant::now());
    }

    async fn handle(&mut self, event: Event) -> Next {
        match event {
            Event::Config(config) => self.configured(config).await,
            Event::Kept(kept) => {
                match kept {
                    Ok(generation) => {
                        self.kept = self.kept.max(generation);
                        self.unkept = None;
                    }
                    Err(error) => self.not_kept(error),
                }
                self.publish();
            }
            Event::Server(link) => {
                if link.connected.is_some() && link.connected != self.server.connected {
                    self.counters.connects += 1;
                }
                self.server = link;
                self.publish();
            }
            Event::Leased(leased) => self.leased(leased),
            Event::Forwarding(forwarding) => self.learned(&forwarding),
            Event::Observed(Ok(state), looks) => {
                if looks.lost > self.counters.resyncs {
                    warn!("Kernel events were lost; everything was read again");
                }
                self.counters.resyncs = looks.lost;
                self.counters.whole_looks = looks.whole;
                self.observed(*state);
            }
            Event::Metered => self.publish(),
            Event::Outer(addresses) => {
                if self.machine.set_outer(addresses) {
                    self.ask_pass();
                }
                self.publish();
            }
            Event::Drift => {
                self.bgp.look();
                self.due = Some(Instant::now());
            }
            Event::Observed(Err(error), _) => {
                error!(error, "Observing the kernel failed");
                self.stage = Stage::Idle;
                self.due = Some(Instant::now() + OBSERVE_RETRY);
            }
            Event::Ran(outcomes) => self.ran(outcomes),
            Event::Request(request) => self.request(request),
            Event::Stop { withdraw, done } => {
                info!(withdraw, "Stopping; the data plane stays");
                self.bgp.stop(withdraw).await;
                return Next::End(done);
            }
        }
        Next::Turn
    }

    async fn configured(&mut self, config: Arc<HostConfig>) {
        let generation = config.generation;
        match self.machine.offer(Arc::clone(&config)) {
            Ok(false) => return self.keep_again(config),
            Err(stale) => {
                warn!(%stale, "Configuration refused");
                return;
            }
            Ok(true) => {}
        }
        info!(%generation, stacks = config.stacks.len(), "Configuration received");
        self.counters.configs += 1;
        self.may_act = true;
        // What leaves is silent, and what it tracked is read, before its namespace goes.
        let last = self.ordered.replace(Arc::clone(&config));
        if !last.is_some_and(|last| Orders::are_the_same(&last, &config)) {
            let orders = Orders::of(&config, self.machine.local());
            self.leases.order(orders).await;
        }
        self.bgp
            .configure(self.machine.underlay().address, &config)
            .await;
        self.expect_instances();
        self.bgp.expected().await;
        self.keep(config);
        self.ask_pass();
        // Ports are answered from what is published: before they open.
        self.publish();
    }

    /// The same generation again: after a failed write it is written now.
    fn keep_again(&mut self, config: Arc<HostConfig>) {
        if self.kept < config.generation {
            self.keep(config);
        }
    }

    /// Writes a configuration to the disk beside the pass, not before it: the report says
    /// "applied" only when both are done.
    fn keep(&self, config: Arc<HostConfig>) {
        // Its thread has ended only if the agent is ending.
        drop(self.keeping.send(config));
    }

    /// A configuration that is not on disk would be lost with a reboot: that is worth a word, and it is tried
    /// again.
    fn not_kept(&mut self, message: String) {
        let Some(config) = self.machine.managed().cloned() else {
            return;
        };
        let host = ObjectId::Host(config.host);
        self.keep(config);
        let before = self.unkept.take();
        self.unkept = Some(Condition {
            object: host,
            message,
            since: before.as_ref().map_or_else(unix_now, |before| before.since),
            attempts: before.map_or(1, |before| before.attempts.saturating_add(1)),
        });
    }

    fn leased(&mut self, leased: Leased) {
        if leased.held != self.leased.held {
            info!(routers = ?leased.held, "Routers that may run here");
            self.machine.set_leased(leased.held.clone());
            self.expecting = true;
            self.due = Some(Instant::now());
        }
        self.leased = leased;
        if self.may_act && self.observed.is_some() {
            self.announce();
        }
        self.publish();
    }

    fn learned(&mut self, forwarding: &Arc<Forwarding>) {
        if self.machine.set_forwarding(Arc::clone(forwarding)) {
            self.changed();
            self.expecting = true;
            self.due = Some(Instant::now());
            self.publish_lost();
        }
    }

    fn observed(&mut self, state: HostState) {
        let Stage::Observing { readback } = self.stage else {
            unreachable!("the kernel's thread looks only when it is asked to")
        };
        self.stage = Stage::Idle;
        self.planned = self.asked;
        self.planned_forwarding = Arc::clone(self.machine.forwarding());
        let (now, unix) = (Instant::now(), unix_now());
        let (mut plan, ready) = self.machine.plan(&state, now, unix);
        if state.datapath_trouble.is_some() {
            // Nothing tells when it can be started.
            self.due.get_or_insert(now + DATAPATH_RETRY);
        }
        self.observed = Some(Arc::new(state));
        if !self.may_act {
            self.publish();
            return;
        }
        self.withhold_what_does_not_hold(&mut plan);
        self.take_readiness(ready, readback || plan.steps.is_empty());
        let ran = self.ran_for.take();
        // Steps that ran for the same input have not been enough.
        let (ran, again) = match ran {
            Some(ran) if ran.asked < self.asked => (Some(ran), None),
            other => (None, other.and_then(|ran| ran.since)),
        };
        let mut input = Input {
            asked: self.planned,
            generation: self.held(),
            since: again.or(self.asked_at.take()),
        };
        if plan.steps.is_empty() {
            self.expecting = self.asked > self.planned;
            if let Some(ran) = ran {
                input.since = ran.since.or(input.since);
            }
            self.settle(input);
            self.announce();
            self.publish();
            return;
        }
        if let Some(ran) = ran {
            // What is left to do came with a newer input: under a stream of changes there is no
            // moment with nothing left, and those who wait for the earlier ones need not either.
            self.settle(ran);
            self.publish();
        }
        self.announce();
        if !self.expecting {
            self.counters.drift_repairs += plan.steps.len() as u64;
            for step in &plan.steps {
                warn!(%step, "Drift: repairing");
            }
        }
        self.ran_for = Some(input);
        self.to_run = plan.steps.into();
        self.begin();
    }

    fn begin(&mut self) {
        self.stage = Stage::Running;
        self.run_since = Instant::now();
        self.cut = false;
        self.run_slice();
    }

    /// Gives the kernel's thread the next steps of the plan under way: a host may be told of a
    /// hundred thousand MACs at once, and whatever else happens does not wait for them all.
    fn run_slice(&mut self) {
        let count = self.to_run.len().min(SLICE_STEPS);
        self.kernel
            .ask(Job::Run(self.to_run.drain(..count).collect()));
    }

    /// Leaves the remote rows of the plan under way to the next plan.
    fn cut_rows(&mut self) {
        if let Some(rows) = self.to_run.iter().position(is_remote_row) {
            self.to_run.truncate(rows);
        }
    }

    /// Puts the rows that were learned since the plan under way was made before the rows that it
    /// has left. True if there are any.
    fn take_news(&mut self) -> bool {
        let forwarding = Arc::clone(self.machine.forwarding());
        let Some(observed) = &self.observed else {
            return false;
        };
        if Arc::ptr_eq(&forwarding, &self.planned_forwarding) {
            return false;
        }
        let news = self.machine.new_rows(&self.planned_forwarding, observed);
        self.planned_forwarding = forwarding;
        if news.is_empty() {
            return false;
        }
        // What is planned for the same rows is out of date.
        let keys: HashSet<RowKey> = news.iter().filter_map(row_key).collect();
        self.to_run
            .retain(|step| row_key(step).is_none_or(|key| !keys.contains(&key)));
        let rows = self.to_run.iter().position(is_remote_row);
        let rest = self.to_run.split_off(rows.unwrap_or(self.to_run.len()));
        self.to_run.extend(news);
        self.to_run.extend(rest);
        true
    }

    fn settle(&mut self, input: Input) {
        self.settled = self.settled.max(input.asked);
        self.made_true = self.made_true.max(input.generation);
        if let Some(since) = input.since {
            self.reconcile.observe(since.elapsed().as_secs_f64());
        }
    }

    /// The generation of the server's configuration that holds.
    fn held(&self) -> Generation {
        self.machine
            .managed()
            .map_or(Generation(0), |config| config.generation)
    }

    /// A step that was just done and is in the plan again did not hold. Trying it in a circle
    /// would help nobody: it counts as failed and waits.
    fn withhold_what_does_not_hold(&mut self, plan: &mut Plan) {
        let done = std::mem::take(&mut self.just_done);
        if done.is_empty() {
            return;
        }
        let again = |step: &Step| done.contains(step);
        let (failed, steps) = std::mem::take(&mut plan.steps).into_iter().partition(again);
        plan.steps = steps;
        let failed: Vec<Step> = failed;
        let outcomes = failed.iter().map(|step| {
            warn!(%step, "Done, but it did not hold");
            let message = format!(
                "{}: the kernel took it but does not show it; something on this host undoes it",
                step.action
            );
            (step, Err(message))
        });
        self.machine.finished(outcomes, Instant::now(), unix_now());
    }

    /// NICs that became ready are taken at once; ones that are no longer, only when that was read
    /// back: a port that is about to be changed keeps its routes meanwhile.
    fn take_readiness(&mut self, ready: Readiness, certain: bool) {
        if certain {
            self.ready = Arc::new(ready);
            return;
        }
        let held = Arc::make_mut(&mut self.ready);
        held.segments.extend(ready.segments);
        held.nics.extend(ready.nics);
        held.routers.extend(ready.routers);
        held.transits.extend(ready.transits);
        held.uplinks.extend(ready.uplinks);
    }

    fn ran(&mut self, outcomes: Vec<(Step, Result<(), String>)>) {
        self.counters.actions += outcomes.len() as u64;
        self.counters.failed_actions += outcomes
            .iter()
            .filter(|(_, outcome)| outcome.is_err())
            .count() as u64;
        let failed: BTreeSet<Subject> = outcomes
            .iter()
            .filter(|(step, outcome)| outcome.is_err() && !step.is_row())
            .map(|(step, _)| step.subject)
            .collect();
        self.outcomes.extend(outcomes);
        if !failed.is_empty() {
            // What later steps of a subject build on is not there.
            self.to_run.retain(|step| !failed.contains(&step.subject));
        }
        if self.cut {
            // Something else is wanted now, or has been waiting for long: rows can wait for the
            // next plan.
            self.cut_rows();
        }
        if !self.to_run.is_empty() {
            if self.run_since.elapsed() < NEWS_FOR {
                self.take_news();
            }
            return self.run_slice();
        }
        let outcomes = std::mem::take(&mut self.outcomes);
        let pairs = outcomes
            .iter()
            .map(|(step, outcome)| (step, outcome.clone()));
        self.machine.finished(pairs, Instant::now(), unix_now());
        let touched = outcomes
            .iter()
            .filter_map(|(step, _)| step.netns().cloned())
            .collect();
        let done = outcomes.into_iter().filter(|(_, outcome)| outcome.is_ok());
        self.just_done = done.map(|(step, _)| step).collect();
        let scope = self.machine.scope_with(touched);
        self.stage = Stage::Observing { readback: true };
        self.kernel.ask(Job::Observe {
            scope,
            whole: false,
        });
    }

    fn assign_rds(&mut self, in_use: &BTreeSet<Of>) -> BTreeMap<Of, u16> {
        let before = self.rds.clone();
        let rds = self.rds.assign(in_use);
        if self.rds != before
            && let Err(error) = self.disk.save(RDS, &self.rds)
        {
            error!(%error, "Keeping route distinguishers failed");
        }
        rds
    }

    /// Keeps what grew, and forgets it with its NIC. What could not be written is tried again with the
    /// next pass.
    fn keep_sequences(&mut self) {
        let raised = self.bgp.raised();
        if raised.is_empty() && self.sequences.is_empty() {
            return;
        }
        let mut now = self.sequences.clone();
        now.raise(&raised);
        // Before the first convergence there may be no configuration yet.
        if self.settled > 0 {
            let (stacks, routers) = (self.machine.stacks(), self.machine.routers());
            now.retain(&bgp::configured_macs(stacks, routers));
        }
        if now == self.sequences {
            return;
        }
        match self.disk.save(SEQUENCES, &now) {
            Ok(()) => self.sequences = now,
            Err(error) => error!(%error, "Keeping mobility sequences failed"),
        }
    }

    /// Tells FRR, if it is the client, which instances there will be.
    fn expect_instances(&mut self) {
        if !self.bgp.is_frr() {
            return;
        }
        let segments = self.machine.stacks().iter().flat_map(|s| &s.segments);
        let vnis = segments.map(|s| Of::Instance(s.vni)).collect();
        let rds = self.assign_rds(&vnis);
        let vtep = self.machine.underlay().address;
        self.bgp.expect(vtep, self.machine.stacks(), &rds);
    }

    /// What is wrong with FRR is worth a word.
    fn frr_condition(&self) -> Option<Condition> {
        let host = self.machine.managed()?.host;
        let (message, since) = self.bgp.problem()?;
        Some(Condition {
            object: ObjectId::Host(host),
            message,
            since,
            attempts: 1,
        })
    }

    /// Tells the speaker what is behind this host.
    fn announce(&mut self) {
        self.expect_instances();
        self.keep_sequences();
        let mut ready = Readiness::clone(&self.ready);
        for set in [&mut ready.routers, &mut ready.transits] {
            set.retain(|router| self.leased.may_run(*router));
        }
        let told = Told {
            vtep: self.machine.underlay().address,
            stacks: self.machine.stacks().to_vec(),
            routers: self.machine.routers().to_vec(),
            ready,
            sequences: self.sequences.clone(),
        };
        let last = self.told.take();
        let same = last.is_some_and(|last| last.says_the_same(&told));
        // FRR is compared with what the kernel has by now.
        if same && !self.bgp.is_frr() {
            self.told = Some(told);
            return;
        }
        let vnis = bgp::instances(&told.stacks, &self.ready);
        let rds = self.assign_rds(&vnis);
        let mut local = bgp::local_state(told.vtep, &told.stacks, &told.routers, &told.ready, &rds);
        self.sequences.apply(&mut local);
        // Before the first convergence, what is missing may just not have been looked at.
        if self.settled > 0 || !local.evis.is_empty() || !local.ip_vrfs.is_empty() {
            let capabilities = self.observed.as_ref().map(|state| &state.capabilities);
            let none = BTreeSet::new();
            let learned = self.machine.forwarding();
            self.bgp
                .set_local(local, learned, capabilities.unwrap_or(&none));
            self.told = Some(told);
        }
    }

    fn request(&mut self, request: Request) {
        match request {
            Request::AddStack(stack, reply) => {
                let before = self.machine.local().clone();
                let result = self.machine.add_stack(stack, unix_now());
                self.local_changed(before, result, reply);
            }
            Request::DeleteStack {
                vpc,
                with_nics,
                reply,
            } => {
                let before = self.machine.local().clone();
                if with_nics {
                    let nics: Vec<_> = stack_of(self.machine.stacks(), vpc)
                        .map(|stack| stack.ports.iter().map(|port| port.nic).collect())
                        .unwrap_or_default();
                    for nic in nics {
                        // A refusal here comes back from `delete_stack` below.
                        drop(self.machine.delete_nic(nic, unix_now()));
                    }
                }
                let result = self.machine.delete_stack(vpc).map(drop);
                self.local_changed(before, result, reply);
            }
            Request::AddNic {
                vpc,
                port,
                segment,
                reply,
            } => {
                let before = self.machine.local().clone();
                let result = match segment {
                    Some(segment) => self.machine.add_segment(vpc, *segment),
                    None => Ok(()),
                }
                .and_then(|()| self.machine.add_nic(vpc, port));
                self.local_changed(before, result, reply);
            }
            Request::DeleteNic(nic, reply) => {
                let before = self.machine.local().clone();
                let result = self.machine.delete_nic(nic, unix_now());
                self.local_changed(before, result, reply);
            }
            Request::AddRouter {
                router,
                replace,
                reply,
            } => {
                let before = self.machine.local().clone();
                let result = self.machine.add_router(*router, replace);
                self.local_changed(before, result, reply);
            }
            Request::DeleteRouter(router, reply) => {
                let before = self.machine.local().clone();
                let result = self.machine.delete_router(router);
                self.local_changed(before, result, reply);
            }
        }
    }

    /// Answers a request of the local API: what is accepted is on disk before the answer, and what
    /// cannot be kept is not accepted.
    fn local_changed(
        &mut self,
        before: host_plan::LocalStacks,
        result: Result<(), host_plan::Refused>,
        reply: crate::events::Reply<()>,
    ) {
        let answer = match result {
            Err(refused) => {
                self.machine.restore_local(before);
                Err(status_of(&refused))
            }
            Ok(()) => match self.disk.save(LOCAL, self.machine.local()) {
                Err(error) => {
                    self.machine.restore_local(before);
                    Err(Status::unavailable(error.to_string()))
                }
                Ok(()) => {
                    self.tell_leases();
                    self.ask_pass();
                    self.publish();
                    Ok(())
                }
            },
        };
        if reply.send(answer).is_err() {
            debug!("Nobody waits for the answer of the local API");
        }
    }

    /// What the local API made needs no lease, and the thread has to know of it.
    fn tell_leases(&self) {
        if let Some(config) = self.machine.managed() {
            self.leases.tell(Orders::of(config, self.machine.local()));
        }
    }

    fn collect_unused(&mut self) {
        let grace = self.pace.unused_stack_after.as_millis() as u64;
        let gone = self.machine.collect_unused(unix_now(), grace);
        if gone.is_empty() {
            return;
        }
        for stack in gone {
            info!(stack = stack.name, vpc = %stack.vpc, "Unused local stack collected");
        }
        if let Err(error) = self.disk.save(LOCAL, self.machine.local()) {
            error!(%error, "Keeping the local stacks failed");
        }
        self.ask_pass();
    }

    /// The server waits for this word while a NIC moves; it does not wait for the pass.
    fn publish_lost(&mut self) {
        if self.machine.lost_nics() != *self.view.borrow().lost {
            self.publish();
        }
    }

    fn publish(&mut self) {
        let before = Arc::clone(&self.view.borrow());
        let applied = self.made_true.min(self.kept);
        let same_input = before.asked == self.asked;
        let mut conditions = conditions(&self.machine);
        conditions.extend(self.frr_condition().map(|c| (c.object, c)));
        conditions.extend(self.unkept.iter().map(|c| (c.object, c.clone())));
        let of_routers = [self.meter.conditions(), self.outside.conditions()];
        for more in of_routers.into_iter().flatten() {
            conditions
                .entry(more.object)
                .and_modify(|other| other.message = format!("{}; {}", other.message, more.message))
                .or_insert(more);
        }
        let view = View {
            started: self.started,
            managed: self.machine.managed().cloned(),
            stacks: match same_input && !before.stacks.is_empty() {
                true => Arc::clone(&before.stacks),
                false => Arc::new(self.machine.stacks().to_vec()),
            },
            routers: match same_input {
                true if !before.routers.is_empty() => Arc::clone(&before.routers),
                _ => Arc::new(self.machine.routers().to_vec()),
            },
            dhcp_uplinks: match before.dhcp_uplinks.as_slice() == self.machine.dhcp_uplinks() {
                true => Arc::clone(&before.dhcp_uplinks),
                false => Arc::new(self.machine.dhcp_uplinks().to_vec()),
            },
            managed_vpcs: match same_input && !before.managed_vpcs.is_empty() {
                true => Arc::clone(&before.managed_vpcs),
                false => Arc::new(managed_vpcs(&self.machine)),
            },
            ready: Arc::clone(&self.ready),
            lost: Arc::new(self.machine.lost_nics()),
            leased: self.leased.clone(),
            conditions: Arc::new(conditions),
            observed: self.observed.clone(),
            underlay: self.machine.underlay(),
            transport: self.machine.transport(),
            applied,
            asked: self.asked,
            settled: self.settled,
            server: self.server.clone(),
            counters: self.counters,
        };
        self.view.send_replace(Arc::new(view));
    }
}

/// Names of files in the state directory.
pub(crate) const LOCAL: &str = "local-stacks";
/// See [`LOCAL`].
pub(crate) const RDS: &str = "route-distinguishers";
/// See [`LOCAL`].
pub(crate) const SEQUENCES: &str = "mobility-sequences";

/// Reads what an earlier agent kept. Damaged local stacks are nowhere else, so the agent does not start.
pub(crate) fn kept(
    disk: &Disk,
) -> Result<(Option<HostConfig>, host_plan::LocalStacks, RdIndexes), StateError> {
    Ok((
        kept_config::load(disk)?,
        disk.load(LOCAL)?.unwrap_or_default(),
        or_anew(disk, RDS)?,
    ))
}

/// Mobility sequences that an earlier agent kept.
pub(crate) fn kept_sequences(disk: &Disk) -> Result<Kept, StateError> {
    or_anew(disk, SEQUENCES)
}

/// What can be done without if it is damaged.
fn or_anew<T: DeserializeOwned + Default>(disk: &Disk, name: &str) -> Result<T, StateError> {
    match disk.load(name) {
        Err(damage @ StateError::Damaged { .. }) => {
            let aside = disk.set_aside(name)?;
            warn!(%damage, aside = %aside.display(), "Set aside; it starts anew");
            Ok(T::default())
        }
        other => Ok(other?.unwrap_or_default()),
    }
}

fn managed_vpcs(machine: &HostMachine) -> BTreeSet<model::VpcId> {
    let stacks = machine
        .managed()
        .into_iter()
        .flat_map(|config| &config.stacks);
    stacks.map(|stack| stack.vpc).collect()
}

fn conditions(machine: &HostMachine) -> BTreeMap<ObjectId, Condition> {
    let host = machine.managed().map(|config| ObjectId::Host(config.host));
    machine
        .troubles()
        .iter()
        .filter_map(|(subject, trouble)| {
            let object = Option::<ObjectId>::from(*subject).or(host)?;
            let condition = Condition {
                object,
                message: trouble.message.clone(),
                since: trouble.since,
                attempts: trouble.attempts,
            };
            Some((object, condition))
        })
        .collect()
}

/// Which row a step is about: a later step for the same takes its place.
#[derive(Debug, PartialEq, Eq, Hash)]
enum RowKey {
    /// Of the kernel.
    Kernel(IfName, MacAddr, Option<IpAddr>, bool),
    /// Of the datapath: who is behind which VTEP.
    Mac(Domain, MacAddr),
    /// Of the datapath: who gets what is for all.
    Flood(Domain, IpAddr),
    /// Of the datapath: who has an address.
    Address(Domain, IpAddr),
}

fn row_key(step: &Step) -> Option<RowKey> {
    match &step.action {
        Action::AddFdb(row) | Action::DeleteFdb(row) => Some(match row.target {
            // Of a flood list there are many with the same MAC.
            FdbTarget::Vtep(vtep) => {
                let vtep = (row.mac == MacAddr::ZERO).then_some(vtep);
                RowKey::Kernel(row.dev.clone(), row.mac, vtep, false)
            }
            FdbTarget::Bridge(_) => RowKey::Kernel(row.dev.clone(), row.mac, None, true),
        }),
        Action::SetNeighbour(row) | Action::DeleteNeighbour(row) => Some(RowKey::Kernel(
            row.dev.clone(),
            MacAddr::ZERO,
            Some(row.ip),
            true,
        )),
        Action::ChangeDatapath(change) => match change {
            Change::SetMac { domain, mac, .. } | Change::DeleteMac { domain, mac } => {
                Some(RowKey::Mac(*domain, *mac))
            }
            Change::AddFlood { domain, vtep } | Change::DeleteFlood { domain, vtep } => {
                Some(RowKey::Flood(*domain, *vtep))
            }
            Change::SetNeighbour { domain, ip, .. } | Change::DeleteNeighbour { domain, ip } => {
                Some(RowKey::Address(*domain, *ip))
            }
            Change::SetLocal(_)
            | Change::SetLimits(_)
            | Change::Bind { .. }
            | Change::Unbind { .. } => None,
        },
        _ => None,
    }
}

/// True for what a plan does last: rows for what is behind other hosts.
fn is_remote_row(step: &Step) -> bool {
    match &step.action {
        Action::AddFdb(row) => row.state == FdbState::ExternLearned,
        Action::SetNeighbour(_) => true,
        Action::ChangeDatapath(change) => match change {
            Change::SetMac { .. } | Change::AddFlood { .. } => true,
            Change::SetNeighbour { neighbour, .. } => !neighbour.here,
            _ => false,
        },
        _ => false,
    }
}

/// When a full look that is due at some time begins, as an input changed last then.
fn full_look_at(due: Instant, changed_at: Option<Instant>) -> Instant {
    let quiet = changed_at.map_or(due, |at| at + QUIET);
    quiet.clamp(due, due + QUIET_WITHIN)
}

fn stack_of(stacks: &[Arc<Stack>], vpc: model::VpcId) -> Option<&Stack> {
    let mut stacks = stacks.iter().map(Arc::as_ref);
    stacks.find(|stack| stack.vpc == vpc)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_look_waits_for_a_quiet_moment_and_not_for_ever() {
        let due = Instant::now();
        let after = |millis| due + Duration::from_millis(millis);
        assert_eq!(full_look_at(due, None), due);
        assert_eq!(full_look_at(after(500), Some(due)), after(500));
        assert_eq!(full_look_at(due, Some(after(90))), after(90) + QUIET);
        let never_quiet = Some(due + QUIET_WITHIN);
        assert_eq!(full_look_at(due, never_quiet), due + QUIET_WITHIN);
    }
}
