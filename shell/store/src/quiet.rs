//! When nobody writes.

use std::time::Duration;
use tokio::sync::watch;
use tokio::time::timeout;

/// Waits until something was written and then nothing more for `quiet`: who changes something a few times a second
/// will not do so again at once. At most `longest`.
pub(crate) async fn moment(mut writes: watch::Receiver<u64>, quiet: Duration, longest: Duration) {
    let found = async {
        // There are no more once the store is gone.
        let mut more = writes.changed().await;
        while more.is_ok() {
            match timeout(quiet, writes.changed()).await {
                Ok(next) => more = next,
                Err(_nothing) => return,
            }
        }
    };
    // After `longest` it is as good as any.
    drop(timeout(longest, found).await);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    const SHORT: Duration = Duration::from_millis(10);
    const LONG: Duration = Duration::from_secs(3600);

    fn written() -> (watch::Sender<u64>, watch::Receiver<u64>) {
        let (writes, written) = watch::channel(0);
        writes.send_modify(|writes| *writes += 1);
        (writes, written)
    }

    #[tokio::test]
    async fn it_is_soon_after_a_write() {
        let (_writes, written) = written();
        let start = Instant::now();
        moment(written, SHORT, LONG).await;
        assert!(start.elapsed() >= SHORT);
    }

    #[tokio::test]
    async fn it_is_not_too_late_without_a_pause_and_without_a_write() {
        let (writes, all_read) = written();
        let start = Instant::now();
        moment(all_read, LONG, SHORT).await;
        moment(writes.subscribe(), Duration::ZERO, SHORT).await;
        assert!(start.elapsed() >= 2 * SHORT);
    }

    #[tokio::test]
    async fn nobody_waits_for_a_store_that_is_gone() {
        let (writes, written) = written();
        drop(writes);
        moment(written, LONG, LONG).await;
    }
}
