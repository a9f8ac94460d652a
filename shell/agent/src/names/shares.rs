//! How much of what there is each NIC may have.

use model::NicId;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Questions a second, by whatever means, and how many may come at once.
const PER_SECOND: f64 = 300.0;
const AT_ONCE: f64 = 600.0;
/// NICs that are remembered; those that rest are forgotten.
const REMEMBERED: usize = 4096;

/// A number of things at a time, so many of them for one NIC.
#[derive(Clone)]
pub(super) struct Shares(Arc<Inner>);

struct Inner {
    per_nic: usize,
    most: usize,
    taken: Mutex<(usize, HashMap<NicId, usize>)>,
}

/// One of them; it is given back when this is dropped.
pub(super) struct Share {
    of: Arc<Inner>,
    nic: NicId,
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, (usize, HashMap<NicId, usize>)> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shares {
    pub(super) fn new(per_nic: usize, most: usize) -> Self {
        Self(Arc::new(Inner {
            per_nic,
            most,
            taken: Mutex::default(),
        }))
    }

    /// One more for a NIC; none if it or all have enough.
    pub(super) fn take(&self, nic: NicId) -> Option<Share> {
        let mut taken = self.0.lock();
        let (all, by_nic) = &mut *taken;
        let own = by_nic.entry(nic).or_default();
        if *own >= self.0.per_nic || *all >= self.0.most {
            if *own == 0 {
                by_nic.remove(&nic);
            }
            return None;
        }
        *own += 1;
        *all += 1;
        Some(Share {
            of: Arc::clone(&self.0),
            nic,
        })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut taken = self.of.lock();
        let (all, by_nic) = &mut *taken;
        *all = all.saturating_sub(1);
        if let Some(own) = by_nic.get_mut(&self.nic) {
            *own = own.saturating_sub(1);
            if *own == 0 {
                by_nic.remove(&self.nic);
            }
        }
    }
}

/// How often NICs ask.
#[derive(Default)]
pub(super) struct Pace(Mutex<HashMap<NicId, (f64, Instant)>>);

impl Pace {
    /// Whether a NIC may ask once more, now.
    pub(super) fn allows(&self, nic: NicId, now: Instant) -> bool {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let refilled = |(left, since): (f64, Instant)| {
            let secs = now.saturating_duration_since(since).as_secs_f64();
            (left + secs * PER_SECOND).min(AT_ONCE)
        };
        if held.len() >= REMEMBERED && !held.contains_key(&nic) {
            held.retain(|_, bucket| refilled(*bucket) < AT_ONCE);
        }
        let bucket = held.entry(nic).or_insert((AT_ONCE, now));
        let left = refilled(*bucket);
        let allowed = left >= 1.0;
        *bucket = (if allowed { left - 1.0 } else { left }, now);
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn one_nic_takes_nothing_from_another() {
        let (one, other) = (NicId::from_random(1), NicId::from_random(2));
        let shares = Shares::new(2, 3);
        let mut held = vec![shares.take(one).unwrap(), shares.take(one).unwrap()];
        assert!(shares.take(one).is_none(), "its own part");
        held.push(shares.take(other).unwrap());
        assert!(shares.take(other).is_none(), "all");
        held.remove(0);
        assert!(shares.take(other).is_some());
        held.clear();
        assert_eq!(*shares.0.lock(), (0, HashMap::new()));

        let (pace, now) = (Pace::default(), Instant::now());
        let allowed = (0..10_000).filter(|_| pace.allows(one, now)).count();
        assert_eq!(allowed, 600);
        assert!(pace.allows(other, now));
        let later = now + Duration::from_secs(1);
        let allowed = (0..10_000).filter(|_| pace.allows(one, later)).count();
        assert_eq!(allowed, 300);
    }
}
