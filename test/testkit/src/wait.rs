//! Waiting for a state with a deadline; never for a time.

use std::time::{Duration, Instant};

/// What a probe saw: the value that was waited for, or a description of what is there instead.
pub type Eventually<T> = Result<T, String>;

/// Calls `probe` until it answers, or panics after `limit` with what it saw last.
///
/// # Panics
/// If the state does not come in time.
pub fn eventually<T>(what: &str, limit: Duration, mut probe: impl FnMut() -> Eventually<T>) -> T {
    let start = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        let seen = match probe() {
            Ok(value) => return value,
            Err(seen) => seen,
        };
        assert!(
            start.elapsed() < limit,
            "{what}: not within {limit:?}; last seen:\n{seen}"
        );
        std::thread::park_timeout(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}
