//! Whether to look for the next event once more, or to sleep until it comes.

use std::thread;
use std::time::{Duration, Instant};

/// So long is looked for the next event while a client waits: a processor that sleeps takes as long to wake up as a
/// disk does for a block.
const MOST: Duration = Duration::from_micros(150);
/// Somebody else had the processor if it is given back only after so long.
const TAKEN: Duration = Duration::from_micros(10);
/// Where others want the processor, it is left to them for so long.
const CROWDED: Duration = Duration::from_millis(10);

/// Patience of a thread that has clients.
#[derive(Debug)]
pub(super) struct Patience {
    until: Instant,
    crowded_until: Instant,
}

impl Patience {
    pub(super) fn new() -> Self {
        let now = Instant::now();
        Self {
            until: now,
            crowded_until: now,
        }
    }

    /// Something happened. Where clients wait, more is to come soon; also the next request of one that was answered.
    pub(super) fn renew(&mut self, clients_wait: bool) {
        if clients_wait {
            self.until = Instant::now() + MOST;
        }
    }

    /// Whether to look once more. Who else wants the processor has it first, and when that is so no more is
    /// looked for a while: to work is better than to look.
    pub(super) fn lasts(&mut self) -> bool {
        let now = Instant::now();
        if now >= self.until || now < self.crowded_until {
            return false;
        }
        thread::yield_now();
        if now.elapsed() > TAKEN {
            self.crowded_until = Instant::now() + CROWDED;
        }
        true
    }
}
