//! The thread that owns the kernel's sockets, and the one that waits for the kernel's events.
//!
//! The first lives in the network namespace of the thread that started the agent; a namespace
//! belongs to a thread, so it is no task. It takes events in between other jobs: what the agent
//! itself did is known by then and wakes nobody. It also talks to the datapath, if one runs: its
//! tables are one more part of what is there, and its changes steps among the others.

use crate::datapath::{Datapath, News};
use crate::events::Event;
use ::datapath::Change;
use host_plan::{Scope, Step, Subject};
use linux::{Kernel, RouterLook, RouterLooked, Watch};
use model::{Capability, Transport};
use std::collections::BTreeSet;
use std::mem::discriminant;
use std::path::Path;
use std::sync::mpsc::{self as std_mpsc, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tracing::{debug, warn};

/// Changes are let come together for this long; far less than the 2 s in which drift has to be
/// repaired.
const DRIFT_WINDOW: Duration = Duration::from_millis(100);
/// After waiting for events failed.
const WATCH_RETRY: Duration = Duration::from_secs(1);

/// What the kernel's thread is asked to do.
#[derive(Debug)]
pub(crate) enum Job {
    /// Say what is there.
    Observe {
        /// What to look at beside what is known.
        scope: Scope,
        /// Look at everything in the host's own namespace, known or not.
        whole: bool,
    },
    /// Act.
    Run(Vec<Step>),
    /// Take in what the kernel told, say whether it matters, and that it is done.
    CatchUp(std_mpsc::Sender<()>),
    /// Look after the datapath.
    Datapath(News),
    /// Take in what a look into a router found.
    Looked(Box<RouterLooked>),
}

/// The kernel's thread, as the loop sees it.
#[derive(Debug)]
pub(crate) struct KernelThread {
    jobs: std_mpsc::Sender<Job>,
}

impl KernelThread {
    /// Starts it, and says what the kernel can do that is not to be left unused; answers come as [`Event::Observed`] and
    /// [`Event::Ran`], changes by others as [`Event::Drift`]. Each router is looked into once in `routers_every`.
    pub(crate) fn start(
        state_dir: &Path,
        transport: Transport,
        unused: &BTreeSet<Capability>,
        routers_every: Duration,
        events: mpsc::Sender<Event>,
    ) -> Result<(Self, BTreeSet<Capability>), linux::Error> {
        let (jobs, queue) = std_mpsc::channel();
        let (opened, is_open) = std_mpsc::channel();
        let (state_dir, unused) = (state_dir.to_owned(), unused.clone());
        let (to_itself, to_look) = (jobs.clone(), jobs.clone());
        thread::Builder::new()
            .name("kernel".to_owned())
            .spawn(move || match open(&state_dir, &unused) {
                Ok((kernel, capabilities)) => {
                    drop(opened.send(Ok((capabilities, kernel.watch()))));
                    // Told to nobody only when the process is ending.
                    let tell = move |news| drop(to_itself.send(Job::Datapath(news)));
                    let datapath = Datapath::new(&state_dir, transport, tell);
                    let looks = RouterLooks::start(routers_every, to_look);
                    serve(kernel, datapath, looks, &queue, &events);
                }
                Err(error) => drop(opened.send(Err(error))),
            })
            .expect("a process may start a thread");
        let (capabilities, watch) = is_open.recv().expect("the thread answers once")?;
        let to_kernel = jobs.clone();
        thread::Builder::new()
            .name("watch".to_owned())
            .spawn(move || wake(&watch, &to_kernel))
            .expect("a process may start a thread");
        Ok((Self { jobs }, capabilities))
    }

    /// Asks it to do something; it has ended only if the process is ending.
    pub(crate) fn ask(&self, job: Job) {
        drop(self.jobs.send(job));
    }
}

fn open(
    state_dir: &Path,
    unused: &BTreeSet<Capability>,
) -> Result<(Kernel, BTreeSet<Capability>), linux::Error> {
    let mut kernel = Kernel::open(state_dir)?;
    kernel.go_without(unused)?;
    let capabilities = kernel.capabilities()?.clone();
    Ok((kernel, capabilities))
}

fn serve(
    mut kernel: Kernel,
    mut datapath: Datapath,
    mut looks: RouterLooks,
    queue: &std_mpsc::Receiver<Job>,
    events: &mpsc::Sender<Event>,
) {
    loop {
        let job = match queue.recv_timeout(looks.due_in()) {
            Ok(job) => job,
            Err(RecvTimeoutError::Timeout) => {
                looks.next(&mut kernel);
                continue;
            }
            Err(RecvTimeoutError::Disconnected) => return,
        };
        let event = match job {
            Job::Observe { scope, whole } => {
                if whole {
                    kernel.forget_host();
                }
                let state = kernel.observe(&scope).map(|mut state| {
                    (state.datapath, state.datapath_trouble) = datapath.look(whole);
                    Box::new(state)
                });
                Event::Observed(state.map_err(|e| chain(&e)), kernel.looks())
            }
            Job::Run(steps) => Event::Ran(run(&mut kernel, &mut datapath, steps)),
            Job::Datapath(news) => {
                if let News::Ended(pid) = news {
                    datapath.has_ended(pid);
                }
                Event::Drift
            }
            Job::Looked(looked) => {
                looks.under_way = false;
                match kernel.looked(*looked) {
                    Ok(false) => continue,
                    Ok(true) => Event::Drift,
                    Err(error) => {
                        // The pass will look at it, and say what is wrong.
                        warn!(error = chain(&error), "Looking at a router failed");
                        Event::Drift
                    }
                }
            }
            Job::CatchUp(done) => {
                let changed = kernel.catch_up();
                // It waits, unless the process is ending.
                let _waits = done.send(());
                match changed {
                    Ok(false) => continue,
                    Ok(true) => Event::Drift,
                    Err(error) => {
                        // The pass will look at everything, and say what is wrong.
                        warn!(error = chain(&error), "Taking in kernel events failed");
                        Event::Drift
                    }
                }
            }
        };
        if events.blocking_send(event).is_err() {
            return;
        }
    }
}

/// Looks into routers, one at a time, on a thread that gives way to all others: a change does not wait for any.
struct RouterLooks {
    /// Each router is looked into once in this time.
    every: Duration,
    next_at: Instant,
    under_way: bool,
    looker: std_mpsc::Sender<RouterLook>,
}

impl RouterLooks {
    fn start(every: Duration, jobs: std_mpsc::Sender<Job>) -> Self {
        let (looker, asked) = std_mpsc::channel::<RouterLook>();
        thread::Builder::new()
            .name("look".to_owned())
            .spawn(move || {
                if let Err(error) = linux::run_behind_others() {
                    warn!(
                        error = chain(&error),
                        "Routers are looked at beside all else"
                    );
                }
                for look in asked {
                    if jobs.send(Job::Looked(Box::new(look.make()))).is_err() {
                        return;
                    }
                }
            })
            .expect("a process may start a thread");
        Self {
            every,
            next_at: Instant::now(),
            under_way: false,
            looker,
        }
    }

    fn due_in(&self) -> Duration {
        match self.under_way {
            true => self.every,
            false => self.next_at.saturating_duration_since(Instant::now()),
        }
    }

    /// Has the next look made, unless one is under way.
    fn next(&mut self, kernel: &mut Kernel) {
        let routers = u32::try_from(kernel.routers()).unwrap_or(u32::MAX);
        self.next_at = Instant::now() + self.every / routers.max(1);
        if self.under_way {
            return;
        }
        if let Some(look) = kernel.next_look() {
            self.under_way = self.looker.send(look).is_ok();
        }
    }
}

/// Runs steps in order, like ones together. Once a step of a subject failed, its later ones are
/// left out: what they build on is not there.
fn run(
    kernel: &mut Kernel,
    datapath: &mut Datapath,
    steps: Vec<Step>,
) -> Vec<(Step, Result<(), String>)> {
    let mut outcomes = Vec::with_capacity(steps.len());
    let mut failed = BTreeSet::<Subject>::new();
    let mut steps = steps.into_iter().peekable();
    while let Some(first) = steps.next() {
        let kind = discriminant(&first.action);
        let mut batch = vec![first];
        while let Some(next) = steps.next_if(|step| discriminant(&step.action) == kind) {
            batch.push(next);
        }
        batch.retain(|step| !failed.contains(&step.subject));
        let changes: Vec<&Change> = batch.iter().filter_map(Step::datapath_change).collect();
        let results = if changes.is_empty() {
            let actions: Vec<_> = batch.iter().map(|step| step.action.clone()).collect();
            let results = kernel.run(&actions).into_iter();
            results.map(|r| r.map_err(|error| chain(&error))).collect()
        } else {
            datapath.apply(&changes)
        };
        for (step, result) in batch.into_iter().zip(results) {
            match &result {
                Ok(()) => debug!(%step, "Done"),
                Err(error) => {
                    warn!(%step, error, "Failed");
                    failed.insert(step.subject);
                }
            }
            outcomes.push((step, result));
        }
    }
    outcomes
}

/// Wakes the kernel's thread when there are events, once for all that come within a moment, and not
/// again before it has taken them in.
fn wake(watch: &Watch, jobs: &std_mpsc::Sender<Job>) {
    loop {
        if let Err(error) = watch.wait(None) {
            warn!(error = chain(&error), "Waiting for kernel events failed");
            // What fails for good must not fill the log.
            thread::park_timeout(WATCH_RETRY);
        }
        thread::park_timeout(DRIFT_WINDOW);
        let (done, is_done) = std_mpsc::channel();
        if jobs.send(Job::CatchUp(done)).is_err() || is_done.recv().is_err() {
            return;
        }
    }
}

/// An error with its causes.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
