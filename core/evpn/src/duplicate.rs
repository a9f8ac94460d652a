//! MACs and addresses that move too often to be one host's (RFC 7432 §15.1, RFC 9161 §3.7).

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// When a MAC, or an address, counts as used twice, and what is done then.
///
/// Moves that routes bring are counted; those that [`crate::Speaker::set_local`] makes are
/// somebody's will. FRR calls it `dup-addr-detection max-moves MOVES time WINDOW` and
/// `dup-addr-detection freeze RECOVER_AFTER`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DuplicatePolicy {
    /// So many moves within `window` make a duplicate; 0: never.
    pub moves: u32,
    /// The time that begins with the first move.
    pub window: Duration,
    /// What is done about it.
    pub action: DuplicateAction,
    /// When a frozen one is given another chance; none: when it is told to
    /// ([`crate::Speaker::clear_duplicate`]).
    pub recover_after: Option<Duration>,
}

impl Default for DuplicatePolicy {
    /// N = 5 and M = 180 s of RFC 7432 §15.1.
    fn default() -> Self {
        let window = Duration::from_secs(180);
        Self {
            moves: 5,
            window,
            action: DuplicateAction::Freeze,
            recover_after: Some(window),
        }
    }
}

/// What is done about a duplicate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DuplicateAction {
    /// It is told, no more.
    Warn,
    /// A host that has the MAC or address itself neither sends nor takes in anything about it any
    /// more. Hosts that look on are not party to it: they follow, and tell.
    Freeze,
}

/// Counts the moves of one MAC or address.
#[derive(Debug)]
pub(crate) struct Watch<T> {
    window_start: Instant,
    in_window: u32,
    last: Instant,
    /// All moves there ever were.
    pub(crate) total: u64,
    /// Between whom, within the window.
    pub(crate) between: BTreeSet<T>,
    /// When it was found to be a duplicate, within the window.
    pub(crate) detected: Option<Instant>,
    /// True if nothing about it is sent or taken in.
    pub(crate) frozen: bool,
}

impl<T: Ord + Copy> Watch<T> {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            window_start: now,
            in_window: 0,
            last: now,
            total: 0,
            between: BTreeSet::new(),
            detected: None,
            frozen: false,
        }
    }

    /// Takes note of a move; true if it is the one that makes a duplicate.
    pub(crate) fn moved(&mut self, now: Instant, policy: &DuplicatePolicy, from: T, to: T) -> bool {
        if now.saturating_duration_since(self.window_start) > policy.window {
            self.forgive(now);
        }
        self.last = now;
        self.in_window += 1;
        self.total += 1;
        self.between.extend([from, to]);
        let found = policy.moves > 0 && self.in_window >= policy.moves && self.detected.is_none();
        if found {
            self.detected = Some(now);
        }
        found
    }

    /// Starts to count afresh.
    pub(crate) fn forgive(&mut self, now: Instant) {
        self.window_start = now;
        self.in_window = 0;
        self.between.clear();
        self.detected = None;
        self.frozen = false;
    }

    /// Since when it has been a duplicate, if it still is: frozen, or moved within the window.
    pub(crate) fn duplicate_since(
        &self,
        now: Instant,
        policy: &DuplicatePolicy,
    ) -> Option<Instant> {
        let fresh = now.saturating_duration_since(self.last) <= policy.window;
        self.detected.filter(|_| self.frozen || fresh)
    }
}
