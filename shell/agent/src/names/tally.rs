//! What was asked, and what became of it.

use model::NicId;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Counters, shared by those who answer and those who show them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tally(Arc<Mutex<Counts>>);

/// Since the agent started.
#[derive(Debug, Clone, Default)]
pub(crate) struct Counts {
    /// By service (`dns`, `metadata`) and what became of the question.
    pub(crate) events: BTreeMap<(&'static str, &'static str), u64>,
    /// Questions of a NIC that were not answered because it asked too much.
    pub(crate) limited: BTreeMap<NicId, u64>,
}

impl Tally {
    /// The counters now.
    pub(crate) fn counts(&self) -> Counts {
        self.lock().clone()
    }

    pub(super) fn count(&self, service: &'static str, event: &'static str) {
        *self.lock().events.entry((service, event)).or_default() += 1;
    }

    pub(super) fn limited(&self, service: &'static str, nic: NicId) {
        let mut counts = self.lock();
        *counts.events.entry((service, "limited")).or_default() += 1;
        *counts.limited.entry(nic).or_default() += 1;
    }

    /// Forgets all other NICs.
    pub(super) fn keep(&self, nics: &BTreeSet<NicId>) {
        self.lock().limited.retain(|nic, _| nics.contains(nic));
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        // Each change is a single one, so it is whole also after a panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
