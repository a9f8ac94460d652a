//! The thread that owns the kernel's sockets, and the one that listens for changes.
//!
//! Both live in the network namespace of the thread that started the agent; a namespace belongs to
//! a thread, so neither is a task.

use crate::events::{Drift, Event};
use host_plan::{Scope, Step, Subject};
use linux::{Kernel, Monitor};
use model::Capability;
use std::collections::BTreeSet;
use std::mem::discriminant;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc as std_mpsc;
use std::thread;
use std::time::Duration;
use tokio::sync::mpsc;
use tracing::{debug, warn};

/// After the monitor's socket failed.
const MONITOR_RETRY: Duration = Duration::from_secs(1);

/// What the kernel's thread is asked to do.
#[derive(Debug)]
pub(crate) enum Job {
    /// Look.
    Observe(Scope),
    /// Act.
    Run(Vec<Step>),
}

/// The kernel's thread, as the loop sees it.
#[derive(Debug)]
pub(crate) struct KernelThread {
    jobs: std_mpsc::Sender<Job>,
}

impl KernelThread {
    /// Starts it, and says what the kernel can do; answers come as [`Event::Observed`] and
    /// [`Event::Ran`].
    pub(crate) fn start(
        state_dir: &Path,
        events: mpsc::Sender<Event>,
    ) -> Result<(Self, BTreeSet<Capability>), linux::Error> {
        let (jobs, queue) = std_mpsc::channel();
        let (opened, is_open) = std_mpsc::channel();
        let state_dir = state_dir.to_owned();
        thread::Builder::new()
            .name("kernel".to_owned())
            .spawn(move || match open(&state_dir) {
                Ok((kernel, capabilities)) => {
                    drop(opened.send(Ok(capabilities)));
                    serve(kernel, &queue, &events);
                }
                Err(error) => drop(opened.send(Err(error))),
            })
            .expect("a process may start a thread");
        let capabilities = is_open.recv().expect("the thread answers once")?;
        Ok((Self { jobs }, capabilities))
    }

    /// Asks it to do something; it has ended only if the process is ending.
    pub(crate) fn ask(&self, job: Job) {
        drop(self.jobs.send(job));
    }
}

fn open(state_dir: &Path) -> Result<(Kernel, BTreeSet<Capability>), linux::Error> {
    let mut kernel = Kernel::open(state_dir)?;
    let capabilities = kernel.capabilities()?.clone();
    Ok((kernel, capabilities))
}

fn serve(mut kernel: Kernel, queue: &std_mpsc::Receiver<Job>, events: &mpsc::Sender<Event>) {
    while let Ok(job) = queue.recv() {
        let event = match job {
            Job::Observe(scope) => {
                Event::Observed(kernel.observe(&scope).map(Box::new).map_err(|e| chain(&e)))
            }
            Job::Run(steps) => Event::Ran(run(&mut kernel, steps)),
        };
        if events.blocking_send(event).is_err() {
            return;
        }
    }
}

/// Runs steps in order, like ones together. Once a step of a subject failed, its later ones are
/// left out: what they build on is not there.
fn run(kernel: &mut Kernel, steps: Vec<Step>) -> Vec<(Step, Result<(), String>)> {
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
        let actions: Vec<_> = batch.iter().map(|step| step.action.clone()).collect();
        let results = kernel.run(&actions);
        for (step, result) in batch.into_iter().zip(results) {
            let result = result.map_err(|error| chain(&error));
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

/// Signals that the kernel's state changed. One signal that waits to be taken stands for all
/// changes up to then, so none is ever lost and none is ever queued twice.
#[derive(Debug)]
pub(crate) struct DriftSignal {
    changed: mpsc::Receiver<()>,
    lost: Arc<AtomicBool>,
}

impl DriftSignal {
    /// Waits for the next.
    pub(crate) async fn next(&mut self) -> Drift {
        if self.changed.recv().await.is_none() {
            // The monitor's thread ends with the process only.
            std::future::pending::<()>().await;
        }
        match self.lost.swap(false, Ordering::AcqRel) {
            true => Drift::Lost,
            false => Drift::Changed,
        }
    }
}

/// Starts the thread that listens to the kernel's notifications.
pub(crate) fn start_monitor() -> Result<DriftSignal, linux::Error> {
    let mut monitor = Monitor::open()?;
    let (signal, changed) = mpsc::channel(1);
    let lost = Arc::new(AtomicBool::new(false));
    let set_lost = Arc::clone(&lost);
    thread::Builder::new()
        .name("monitor".to_owned())
        .spawn(move || {
            loop {
                match monitor.next(None) {
                    Ok(Some(linux::Event::Overrun)) => set_lost.store(true, Ordering::Release),
                    Ok(Some(_)) => {}
                    Ok(None) => continue,
                    Err(error) => {
                        // Not knowing is handled like having missed something.
                        warn!(error = chain(&error), "Reading kernel events failed");
                        set_lost.store(true, Ordering::Release);
                        // What fails for good must not fill the log.
                        thread::park_timeout(MONITOR_RETRY);
                    }
                }
                if let Err(mpsc::error::TrySendError::Closed(())) = signal.try_send(()) {
                    return;
                }
            }
        })
        .expect("a process may start a thread");
    Ok(DriftSignal { changed, lost })
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
