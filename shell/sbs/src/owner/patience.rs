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
    pub(super) fn new(now: Instant) -> Self {
        Self {
            until: now,
            crowded_until: now,
        }
    }

    /// Something happened. Where clients wait, more is to come soon; also the next request of one that was answered.
    pub(super) fn renew(&mut self, clients_wait: bool, now: Instant) {
        if clients_wait {
            self.until = now + MOST;
        }
    }

    /// Whether to look once more. Who else wants the processor has it first, and when that is so no more is
    /// looked for a while: to work is better than to look.
    pub(super) fn lasts(&mut self) -> bool {
        let now = Instant::now();
        let lasts = self.is_left(now);
        if lasts {
            thread::yield_now();
            self.was_given_back(now, Instant::now());
        }
        lasts
    }

    fn is_left(&self, now: Instant) -> bool {
        now < self.until && now >= self.crowded_until
    }

    fn was_given_back(&mut self, given: Instant, back: Instant) {
        if back - given > TAKEN {
            self.crowded_until = back + CROWDED;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_looks_on_for_clients_that_wait_and_for_nobody_else() {
        let now = Instant::now();
        let mut patience = Patience::new(now);
        assert!(!patience.is_left(now));
        patience.renew(false, now);
        assert!(!patience.is_left(now));
        patience.renew(true, now);
        let last = now + MOST - Duration::from_nanos(1);
        assert!(patience.is_left(now) && patience.is_left(last));
        assert!(!patience.is_left(now + MOST));
        // Each event begins it anew, and an idle one ends nothing.
        patience.renew(true, last);
        patience.renew(false, last);
        assert!(patience.is_left(last + MOST - Duration::from_nanos(1)));
    }

    #[test]
    fn who_else_wants_the_processor_is_left_alone_for_a_while() {
        let now = Instant::now();
        let mut patience = Patience::new(now);
        patience.renew(true, now);
        patience.was_given_back(now, now + TAKEN);
        assert!(
            patience.is_left(now + TAKEN),
            "that took no longer than the call"
        );
        let back = now + Duration::from_micros(11);
        patience.was_given_back(now, back);
        assert!(!patience.is_left(back));
        let later = back + CROWDED - Duration::from_nanos(1);
        patience.renew(true, later);
        assert!(!patience.is_left(later));
        patience.renew(true, back + CROWDED);
        assert!(patience.is_left(back + CROWDED));
    }
}
