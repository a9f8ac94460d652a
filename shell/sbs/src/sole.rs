//! That a host has one storage process. Two would answer for the same host: the one that is told what to have is then
//! not the one that the other hosts reach, and neither can do its part.

use crate::wire::SOCKET_NAME;
use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

const LOCK_NAME: &str = "storage.lock";
/// One that ends takes its time to detach what is attached.
const ENDING_WAIT: Duration = Duration::from_secs(20);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Why this process is not the one.
#[derive(Debug, thiserror::Error)]
pub enum SoleError {
    /// There is one, and it answers.
    #[error("another storage process runs (its socket is {socket}): `vpc storage stop` ends it")]
    Runs {
        /// Of the other.
        socket: PathBuf,
    },
    /// There is one that neither answers nor ends.
    #[error(
        "another storage process holds {path} and does not answer: it is starting or ending, or stuck; `fuser {path}` tells which it is"
    )]
    Held {
        /// The lock.
        path: PathBuf,
    },
    /// The lock cannot be had.
    #[error("locking {path}")]
    Io {
        /// The lock.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// Held for as long as the process is the host's.
pub(crate) struct Sole {
    _lock: File,
}

/// Waits for one that ends, and for no other.
pub(crate) fn sole(run_dir: &Path) -> Result<Sole, SoleError> {
    sole_within(run_dir, ENDING_WAIT)
}

fn sole_within(run_dir: &Path, most: Duration) -> Result<Sole, SoleError> {
    let (path, socket) = (run_dir.join(LOCK_NAME), run_dir.join(SOCKET_NAME));
    let failed = |source| SoleError::Io {
        path: path.clone(),
        source,
    };
    let lock = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(failed)?;
    let until = Instant::now() + most;
    loop {
        match lock.try_lock() {
            Ok(()) => return Ok(Sole { _lock: lock }),
            Err(TryLockError::Error(error)) => return Err(failed(error)),
            // Whoever ends takes its socket away first.
            Err(TryLockError::WouldBlock) if UnixStream::connect(&socket).is_ok() => {
                return Err(SoleError::Runs { socket });
            }
            Err(TryLockError::WouldBlock) if Instant::now() >= until => {
                return Err(SoleError::Held { path });
            }
            Err(TryLockError::WouldBlock) => thread::sleep(LOOK_AGAIN),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn who_answers_is_the_one_and_who_ends_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join(SOCKET_NAME)).unwrap();
        let first = sole(dir.path()).ok().unwrap();
        assert!(matches!(sole(dir.path()), Err(SoleError::Runs { .. })));
        drop(listener);
        let held = sole_within(dir.path(), Duration::ZERO);
        assert!(matches!(held, Err(SoleError::Held { .. })));
        let path = dir.path().to_owned();
        let waiting = thread::spawn(move || sole(&path).is_ok());
        drop(first);
        assert!(waiting.join().unwrap());
    }
}
