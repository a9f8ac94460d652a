//! The side that runs the router.

use crate::{BATCH, Batch, Event, Key, newer};
use model::Tracked;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

/// What the standby of one router was not told yet.
#[derive(Debug)]
pub struct Outbox {
    most: usize,
    series: u64,
    state: State,
    /// Of the snapshot; all of it is told before what changed since.
    snapshot: VecDeque<Tracked>,
    /// Since then: what is there no more, and what is. Never both of one connection. What is gone is told
    /// first, so that the standby has room for what came in its place.
    gone: BTreeSet<Key>,
    changed: BTreeMap<Key, Tracked>,
    /// Of what waits, and of what is on its way: when the first of it came.
    waits_since: Option<Instant>,
    flies_since: Option<Instant>,
    in_flight: bool,
    lost: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// What the standby knows is unknown: nothing is told before there is a snapshot.
    Astray,
    /// There is one, of which nothing was told.
    Begins,
    /// It is being told.
    Named,
    /// It is told; what changes is.
    Follows,
}

impl Outbox {
    /// Of a router that may track `most` connections. The standby knows nothing.
    pub fn new(most: usize) -> Self {
        Self {
            most,
            series: 0,
            state: State::Astray,
            snapshot: VecDeque::new(),
            gone: BTreeSet::new(),
            changed: BTreeMap::new(),
            waits_since: None,
            flies_since: None,
            in_flight: false,
            lost: 0,
        }
    }

    /// All that the router tracks is to be handed in ([`Outbox::snapshot`]).
    pub fn needs_snapshot(&self) -> bool {
        self.state == State::Astray && !self.in_flight
    }

    /// All that the router tracks now; whatever is told from now on is of this series.
    pub fn snapshot(&mut self, now: Instant, series: u64, tracked: Vec<Tracked>) {
        self.series = series;
        self.state = State::Begins;
        self.gone.clear();
        self.changed.clear();
        self.snapshot = tracked.into();
        self.snapshot.truncate(self.most);
        self.waits_since.get_or_insert(now);
    }

    /// The kernel said so.
    pub fn note(&mut self, now: Instant, event: Event) {
        if self.state == State::Astray {
            // The snapshot will have it.
            return;
        }
        match event {
            Event::Is(tracked) => {
                let key = Key::of(&tracked);
                let tracked = newer(tracked, self.changed.get(&key));
                self.gone.remove(&key);
                self.changed.insert(key, tracked);
            }
            Event::Gone(key) => {
                self.changed.remove(&key);
                self.gone.insert(key);
            }
        }
        if self.gone.len() + self.changed.len() > self.most {
            self.stray(now);
            return;
        }
        self.waits_since.get_or_insert(now);
    }

    /// Something was lost: of what the kernel said, or on the way to the standby.
    pub fn stray(&mut self, now: Instant) {
        self.begin_anew();
        self.waits_since.get_or_insert(now);
        self.lost += 1;
    }

    /// Another series is to begin.
    pub fn begin_anew(&mut self) {
        self.state = State::Astray;
        self.snapshot.clear();
        self.gone.clear();
        self.changed.clear();
    }

    /// What to tell next; none before the last was acknowledged, or if there is nothing to tell.
    pub fn poll_batch(&mut self) -> Option<Batch> {
        if !self.waits() || self.in_flight {
            return None;
        }
        let mut batch = Batch {
            series: self.series,
            begins: self.state == State::Begins,
            ..Batch::default()
        };
        if self.state == State::Follows {
            while batch.gone.len() < BATCH
                && let Some(key) = self.gone.pop_first()
            {
                batch.gone.push(key);
            }
            while self.gone.is_empty()
                && batch.connections.len() < BATCH
                && let Some((_, tracked)) = self.changed.pop_first()
            {
                batch.connections.push(tracked);
            }
        } else {
            // What changed since comes after it.
            let named = self.snapshot.len().min(BATCH);
            batch.connections.extend(self.snapshot.drain(..named));
            batch.ends = self.snapshot.is_empty();
            self.state = match batch.ends {
                true => State::Follows,
                false => State::Named,
            };
        }
        self.in_flight = true;
        self.flies_since = self.waits_since;
        if !self.waits() {
            self.waits_since = None;
        }
        Some(batch)
    }

    /// The standby has the last batch.
    pub fn acknowledged(&mut self) {
        self.in_flight = false;
        self.flies_since = None;
    }

    /// The standby does not have the last batch, and maybe nothing of what it was told before.
    pub fn refused(&mut self, now: Instant) {
        self.acknowledged();
        self.stray(now);
    }

    /// There is something to tell.
    pub fn waits(&self) -> bool {
        match self.state {
            State::Astray => false,
            State::Begins | State::Named => true,
            State::Follows => !self.gone.is_empty() || !self.changed.is_empty(),
        }
    }

    /// The snapshot is told or on its way; changes follow.
    pub fn follows(&self) -> bool {
        self.state == State::Follows
    }

    /// The standby has all that was said.
    pub fn is_in_step(&self) -> bool {
        self.follows() && !self.in_flight && !self.waits()
    }

    /// For how long what the standby does not have has been waiting.
    pub fn lag(&self, now: Instant) -> Duration {
        let since = self.flies_since.or(self.waits_since);
        since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }

    /// How often something was lost.
    pub fn lost(&self) -> u64 {
        self.lost
    }
}
