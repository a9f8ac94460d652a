//! Processes by pid and start time, so that a pid that was given to another is never signalled.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// One process, even after its pid was given to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ProcessId {
    /// As this machine numbers it.
    pub(crate) pid: u32,
    /// When it started, in clock ticks since boot (field 22 of `/proc/PID/stat`).
    pub(crate) start_ticks: u64,
}

impl ProcessId {
    /// The living process with this pid.
    pub(crate) fn of(pid: u32) -> io::Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let (_, start_ticks) = parse_stat(&stat)
            .ok_or_else(|| io::Error::other(format!("/proc/{pid}/stat: {stat}")))?;
        Ok(Self { pid, start_ticks })
    }

    /// This process.
    pub(crate) fn myself() -> io::Result<Self> {
        Self::of(std::process::id())
    }

    /// It runs; what has ended but was not waited for does not.
    pub(crate) fn is_alive(&self) -> bool {
        fs::read_to_string(format!("/proc/{}/stat", self.pid))
            .ok()
            .and_then(|stat| parse_stat(&stat))
            .is_some_and(|(state, start)| start == self.start_ticks && !matches!(state, 'Z' | 'X'))
    }

    /// Waits for a process that may be ending: its sockets go a moment before itself.
    pub(crate) fn ends_within(&self, time: Duration) -> bool {
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw);
        let handle = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        let Some(handle) = handle.filter(|_| self.is_alive()) else {
            return true;
        };
        ended_by(&handle, Instant::now() + time).unwrap_or(false)
    }

    /// Ends it without asking. The answer is a handle to wait on; none if it was gone already.
    pub(crate) fn kill(&self) -> io::Result<Option<OwnedFd>> {
        let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) else {
            return Ok(None);
        };
        let handle = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(handle) => handle,
            // The second is of kernels from 6.16 on, in the moment in which it goes.
            Err(rustix::io::Errno::SRCH | rustix::io::Errno::NOENT) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        // The handle is of whoever has the pid now; the start time says whether that is ours.
        if !self.is_alive() {
            return Ok(None);
        }
        match pidfd_send_signal(&handle, Signal::KILL) {
            Ok(()) => Ok(Some(handle)),
            Err(rustix::io::Errno::SRCH) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// Waits until the process behind a handle has ended; false if it did not by `deadline`.
pub(crate) fn ended_by(handle: &OwnedFd, deadline: Instant) -> io::Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left.min(Duration::from_secs(3600)))
            .map_err(|_| io::Error::other("an hour does not fit"))?;
        match poll(&mut [PollFd::new(handle, PollFlags::IN)], Some(&timeout)) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// State letter and start time. The command's name comes before them in parentheses and may hold
/// anything, parentheses included.
fn parse_stat(stat: &str) -> Option<(char, u64)> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?.chars().next()?;
    // Field 3 was the state; 22 is the start.
    let start = fields.nth(18)?.parse().ok()?;
    Some((state, start))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pid_that_was_given_to_another_is_left_alone() {
        let me = ProcessId::myself().unwrap();
        let other = ProcessId {
            start_ticks: me.start_ticks + 1,
            ..me
        };
        assert!(me.is_alive() && !other.is_alive());
        assert!(other.kill().unwrap().is_none());
    }

    #[test]
    fn a_name_with_parentheses_does_not_confuse() {
        let stat = "7 (a) S 1) R 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20";
        assert_eq!(parse_stat(stat), Some(('R', 4711)));
    }
}
