//! What was asked, and what became of it.

use api::v1;
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

/// Each in a row of its own, in this order.
const SERVICES: [&str; 2] = ["dns", "metadata"];

impl Counts {
    /// What was asked of each service, and what became of it.
    pub(crate) fn questions(&self) -> Vec<v1::RouterQuestions> {
        let of_service = |service: &str| {
            let mut told = v1::RouterQuestions {
                service: service.to_owned(),
                ..v1::RouterQuestions::default()
            };
            let events = self.events.iter();
            for ((_, event), count) in events.filter(|((of, _), _)| *of == service) {
                told.queries += count;
                *match (service, *event) {
                    (_, "answered" | "no-data" | "no-name" | "nothing") => &mut told.answered,
                    // To the metadata it says that somebody else asked a NIC to ask.
                    ("dns", "forwarded") => &mut told.forwarded,
                    (_, "unanswered") => &mut told.unanswered,
                    _ => &mut told.refused,
                } += count;
                told.events.insert((*event).to_owned(), *count);
            }
            told
        };
        SERVICES.map(of_service).into()
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_question_is_one_of_a_kind() {
        let tally = Tally::default();
        for (service, event, times) in [
            ("dns", "answered", 3),
            ("dns", "no-name", 1),
            ("dns", "forwarded", 2),
            ("dns", "unanswered", 1),
            ("dns", "no-resolver", 1),
            ("metadata", "answered", 1),
            ("metadata", "forwarded", 1),
        ] {
            (0..times).for_each(|_| tally.count(service, event));
        }
        tally.limited("dns", NicId::from_random(1));
        let [dns, metadata] = <[_; 2]>::try_from(tally.counts().questions()).unwrap();
        let of = |told: &v1::RouterQuestions| {
            assert_eq!(told.events.values().sum::<u64>(), told.queries);
            [
                told.queries,
                told.answered,
                told.forwarded,
                told.unanswered,
                told.refused,
            ]
        };
        assert_eq!(of(&dns), [9, 4, 2, 1, 2]);
        assert_eq!(of(&metadata), [2, 1, 0, 0, 1]);
    }
}
