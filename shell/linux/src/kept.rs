//! Sockets of nftables that stay open for a while.
//!
//! To close one the kernel waits until what the namespace's last transactions removed is freed
//! (`nft_rcv_nl_event`): an RCU grace period, some 10 ms, half of what a rule more takes in all, and the namespace's next
//! transaction waits as well. So one that was used is kept for the next use, and closed by a thread of its own when
//! nothing happens in its namespace any more.

use crate::error::Cause;
use crate::socket::Socket;
use nix::sys::stat::fstat;
use std::collections::VecDeque;
use std::fs::File;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How long one is kept that nobody uses. Its namespace is there at least as long.
const KEPT_FOR: Duration = Duration::from_secs(1);
/// A look at all routers of a host opens one in each namespace; those used last are kept.
const KEPT_AT_MOST: usize = 16;

/// Oldest first.
static KEPT: Mutex<VecDeque<Kept>> = Mutex::new(VecDeque::new());

struct Kept {
    /// The namespace's inode number: no other has it as long as this is open.
    namespace: u64,
    since: Instant,
    socket: Socket,
}

/// Does `work` with a socket of the calling thread's namespace.
pub(crate) fn with_netfilter<T>(
    work: impl FnOnce(&mut Socket) -> Result<T, Cause>,
) -> Result<T, Cause> {
    let namespace = fstat(File::open("/proc/thread-self/ns/net")?)?.st_ino;
    let mut socket = match take(namespace) {
        Some(socket) => socket,
        None => Socket::netfilter()?,
    };
    let done = work(&mut socket);
    match done {
        Ok(_) => keep(namespace, socket),
        // What it was asked last may still be answered.
        Err(_) => tell(Closing::Socket(socket)),
    }
    done
}

/// Closes what is kept of a namespace that is to go.
pub(crate) fn forget(namespace: u64) {
    while let Some(socket) = take(namespace) {
        tell(Closing::Socket(socket));
    }
}

fn take(namespace: u64) -> Option<Socket> {
    let mut kept = kept();
    let at = kept.iter().rposition(|kept| kept.namespace == namespace)?;
    kept.remove(at).map(|kept| kept.socket)
}

fn keep(namespace: u64, socket: Socket) {
    let mut kept = kept();
    kept.push_back(Kept {
        namespace,
        since: Instant::now(),
        socket,
    });
    let oldest = (kept.len() > KEPT_AT_MOST)
        .then(|| kept.pop_front())
        .flatten();
    let first = kept.len() == 1;
    drop(kept);
    match oldest {
        Some(oldest) => tell(Closing::Socket(oldest.socket)),
        None if first => tell(Closing::Waits),
        None => {}
    }
}

fn kept() -> MutexGuard<'static, VecDeque<Kept>> {
    KEPT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the thread that closes is told.
enum Closing {
    Socket(Socket),
    /// Something is kept, where nothing was.
    Waits,
}

fn tell(closing: Closing) {
    static CLOSER: OnceLock<Mutex<Sender<Closing>>> = OnceLock::new();
    let closer = CLOSER.get_or_init(|| {
        let (sockets, closed) = channel();
        let thread = thread::Builder::new().name("closer".to_owned());
        drop(thread.spawn(move || close(&closed)));
        Mutex::new(sockets)
    });
    let closer = closer.lock().unwrap_or_else(PoisonError::into_inner);
    // Where no thread can be had it is closed here, which only takes longer.
    drop(closer.send(closing));
}

fn close(closing: &Receiver<Closing>) {
    loop {
        let next = kept().front().map(|kept| kept.since + KEPT_FOR);
        let told = match next {
            Some(at) => closing.recv_timeout(at.saturating_duration_since(Instant::now())),
            None => closing.recv().map_err(RecvTimeoutError::from),
        };
        match told {
            Ok(Closing::Socket(socket)) => drop(socket),
            Ok(Closing::Waits) => {}
            Err(RecvTimeoutError::Timeout) => {
                let old = |kept: &mut Kept| kept.since.elapsed() >= KEPT_FOR;
                let expired = kept().pop_front_if(old);
                // Not while they are locked.
                drop(expired);
            }
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netns::{Netns, in_new_netns};
    use std::fs;
    use std::os::fd::{AsFd, AsRawFd};
    use std::path::PathBuf;

    /// What a socket is called as long as it is open.
    fn name(socket: &Socket) -> PathBuf {
        fs::read_link(format!("/proc/self/fd/{}", socket.as_fd().as_raw_fd())).unwrap()
    }

    fn is_open(name: &PathBuf) -> bool {
        let all = fs::read_dir("/proc/self/fd").unwrap();
        let mut names = all.filter_map(|fd| fs::read_link(fd.ok()?.path()).ok());
        names.any(|other| other == *name)
    }

    fn closes_within(name: &PathBuf, most: Duration) {
        let deadline = Instant::now() + most;
        while is_open(name) {
            assert!(Instant::now() < deadline, "it is still open");
            thread::yield_now();
        }
    }

    fn used() -> PathBuf {
        with_netfilter(|socket| Ok(name(socket))).unwrap()
    }

    #[test]
    fn one_is_used_again_and_closed_when_nobody_does() {
        let (first, again) = in_new_netns(|| (used(), used())).unwrap();
        assert_eq!(first, again);
        let elsewhere = in_new_netns(used).unwrap();
        assert_ne!(first, elsewhere, "another namespace has another");
        closes_within(&first, Duration::from_secs(10));
        closes_within(&elsewhere, Duration::from_secs(10));
    }

    #[test]
    fn what_failed_is_not_used_again() {
        let (failed, next) = in_new_netns(|| {
            let mut failed = None;
            let outcome: Result<(), Cause> = with_netfilter(|socket| {
                failed = Some(name(socket));
                Err(Cause::kernel(libc::EIO))
            });
            assert!(outcome.is_err());
            (failed.unwrap(), used())
        })
        .unwrap();
        assert_ne!(failed, next);
        closes_within(&failed, Duration::from_secs(10));
    }

    #[test]
    fn a_namespace_that_is_to_go_is_let_go() {
        let (socket, is_kept) = in_new_netns(|| {
            let socket = used();
            let netns = Netns::current().unwrap();
            let namespace = fstat(netns.as_fd()).unwrap().st_ino;
            forget(namespace);
            let is_kept = kept().iter().any(|kept| kept.namespace == namespace);
            (socket, is_kept)
        })
        .unwrap();
        assert!(!is_kept);
        closes_within(&socket, Duration::from_secs(10));
    }
}
