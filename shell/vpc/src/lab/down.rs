//! Taking a lab down, whatever state it is in.

use super::process::{ProcessId, ended_by};
use super::state::LabDir;
use crate::failure::{Doing, Failure, Outcome};
use std::time::{Duration, Instant};

/// How long all processes may take to be gone; a host of a thousand NICs needs some.
const DEADLINE: Duration = Duration::from_secs(60);

/// Ends the lab's processes, with which everything inside goes, and removes its directory. Does
/// all it can and then reports what it could not. True if there was something.
pub(crate) fn take_down(lab: &LabDir) -> Outcome<bool> {
    let mut failed = Vec::new();
    let was_there = lab.path().exists();
    match lab.load() {
        Ok(Some(mut state)) => {
            // The maker first, so that it makes nothing more; then what it made until then.
            if state.maker != ProcessId::myself().doing(|| "reading /proc/self".to_owned())? {
                failed.extend(end(&[state.maker]));
                if let Ok(Some(newer)) = lab.load() {
                    state = newer;
                }
            }
            let holders: Vec<ProcessId> =
                state.hosts.iter().filter_map(|host| host.holder).collect();
            failed.extend(end(&holders));
        }
        Ok(None) => {}
        Err(unreadable) => failed.push(unreadable.message().to_owned()),
    }
    // Also what is in the hosts' namespaces but not below their process 1: `lab exec`s that are
    // about to notice. They hold the namespaces until then.
    if failed.is_empty() {
        lab.remove()?;
        return Ok(was_there);
    }
    Err(Failure::new(format!(
        "lab {}: it is not all down: {}",
        lab.name(),
        failed.join("; ")
    ))
    .hint(format!("see {}, then run it again", lab.path().display())))
}

/// Kills all, then waits for all.
fn end(processes: &[ProcessId]) -> Vec<String> {
    let mut failed = Vec::new();
    let mut ending = Vec::new();
    for process in processes {
        match process.kill() {
            Ok(Some(handle)) => ending.push((process, handle)),
            Ok(None) => {}
            Err(error) => failed.push(format!("killing process {}: {error}", process.pid)),
        }
    }
    let deadline = Instant::now() + DEADLINE;
    for (process, handle) in ending {
        match ended_by(&handle, deadline) {
            Ok(true) => {}
            Ok(false) => failed.push(format!(
                "process {} is still there {} s after SIGKILL",
                process.pid,
                DEADLINE.as_secs()
            )),
            Err(error) => failed.push(format!("waiting for process {}: {error}", process.pid)),
        }
    }
    failed
}
