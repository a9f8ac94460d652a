//! Token buckets: how much of something may be, on the whole and at once. All workers of a host take from
//! the same ones, without a lock: what is limited is what a host lets through, however many threads it has.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How often something may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// On the whole; none at 0.
    pub per_s: u32,
    /// At once, after a rest.
    pub burst: u32,
}

impl Rate {
    /// So many a second, and twice as many at once.
    pub const fn of(per_s: u32) -> Self {
        Self {
            per_s,
            burst: per_s.saturating_mul(2),
        }
    }

    /// Between two, in nanoseconds; none if there is never one.
    fn interval(self) -> Option<u64> {
        1_000_000_000_u64.checked_div(self.per_s.into())
    }
}

/// One bucket, as the moment it will be full again: all that there is to know of it, so that one word is
/// enough for any number of workers.
#[derive(Debug, Default)]
pub struct Bucket {
    full_at_ns: AtomicU64,
}

impl Bucket {
    /// Takes one out, if there is one. `now` is since any moment, the same for all calls; where it goes
    /// back, as between workers, nothing is gained. A bucket that is empty is only read.
    pub fn take(&self, rate: Rate, now: Duration) -> bool {
        let Some(interval) = rate.interval() else {
            return false;
        };
        let now = nanoseconds(now);
        let most = interval.saturating_mul(rate.burst.into());
        // Nothing else is read by what is written here, so that no order is needed.
        let taken = self
            .full_at_ns
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |full_at| {
                let full_at = full_at.max(now).saturating_add(interval);
                (full_at - now <= most).then_some(full_at)
            });
        taken.is_ok()
    }
}

/// A bucket for each of many, in a table that does not grow: where it is full, the bucket that was
/// left alone the longest goes. It comes back full, so who has very many MACs has more than one's due;
/// guards leave a port one. So it is with what two workers meet for the first time at once.
#[derive(Debug)]
pub struct Buckets {
    /// Each has its place in one of them.
    sets: Box<[Set]>,
}

const WAYS: usize = 4;

/// Together what a processor takes from memory at once.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Set([Place; WAYS]);

#[derive(Debug, Default)]
struct Place {
    whose: AtomicU64,
    bucket: Bucket,
}

impl Buckets {
    /// Room for at least `most`, which is made here and never again.
    pub fn new(most: usize) -> Self {
        let sets = most.div_ceil(WAYS).max(1).next_power_of_two();
        Self {
            sets: (0..sets).map(|_| Set::default()).collect(),
        }
    }

    /// Takes one out of somebody's bucket, if there is one.
    pub fn take(&self, whose: u64, rate: Rate, now: Duration) -> bool {
        let mask = self.sets.len() - 1;
        let Set(places) = &self.sets[spread(whose) & mask];
        loop {
            let is_it = |place: &&Place| place.whose.load(Ordering::Relaxed) == whose;
            if let Some(place) = places.iter().find(is_it) {
                return place.bucket.take(rate, now);
            }
            let full_at = |place: &&Place| place.bucket.full_at_ns.load(Ordering::Relaxed);
            let oldest = places.iter().min_by_key(full_at);
            let oldest = oldest.expect("a set has places");
            let before = oldest.whose.load(Ordering::Relaxed);
            // Another worker may have been quicker, with the same or with somebody else's.
            let is_ours =
                oldest
                    .whose
                    .compare_exchange(before, whose, Ordering::Relaxed, Ordering::Relaxed);
            if is_ours.is_ok() {
                oldest.bucket.full_at_ns.store(0, Ordering::Relaxed);
            }
        }
    }
}

fn nanoseconds(now: Duration) -> u64 {
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

/// MACs that a planner gave out differ in their last bytes, a NIC maker's as well: all of them count.
fn spread(whose: u64) -> usize {
    // 2^64 by the golden ratio.
    (whose.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const RATE: Rate = Rate {
        per_s: 10,
        burst: 3,
    };

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_burst_then_the_rate() {
        let bucket = Bucket::default();
        let take = |at| bucket.take(RATE, ms(at));
        assert_eq!(
            [take(0), take(0), take(0), take(0)],
            [true, true, true, false]
        );
        assert_eq!([take(99), take(100), take(100)], [false, true, false]);
        assert_eq!([take(350), take(350), take(350)], [true, true, false]);
        // Nobody saves more than a burst.
        let after_a_day = [0; 4].map(|_| take(86_400_000));
        assert_eq!(after_a_day, [true, true, true, false]);
    }

    #[test]
    fn none_is_none_and_no_clock_breaks_it() {
        let none = Rate { per_s: 0, burst: 9 };
        assert!(!Bucket::default().take(none, ms(1)));
        let bucket = Bucket::default();
        assert!(bucket.take(RATE, Duration::MAX));
        assert!(!bucket.take(RATE, Duration::ZERO));
        let no_burst = Rate { per_s: 9, burst: 0 };
        assert!(!Bucket::default().take(no_burst, ms(1)));
    }

    #[test]
    fn each_has_a_bucket_of_its_own() {
        let buckets = Buckets::new(1024);
        let whose = |n: u64| 0x0200_0000_0000 + n;
        for _ in 0..3 {
            for n in 0..256 {
                assert!(buckets.take(whose(n), RATE, ms(5)), "{n}");
            }
        }
        assert!((0..256).all(|n| !buckets.take(whose(n), RATE, ms(5))));
    }

    #[test]
    fn a_table_does_not_grow_and_the_oldest_goes() {
        let buckets = Buckets::new(1);
        let whose = |n: u64| 0x0200_0000_0000 + n;
        for n in 0..4 {
            assert!((0..3).all(|_| buckets.take(whose(n), RATE, ms(n))));
        }
        assert!(!buckets.take(whose(0), RATE, ms(4)), "it is known");
        assert!(
            buckets.take(whose(9), RATE, ms(4)),
            "it comes in place of the first"
        );
        assert!(
            !buckets.take(whose(1), RATE, ms(4)),
            "the second is still known"
        );
        assert_eq!(buckets.sets.len(), 1);
    }

    proptest! {
        #[test]
        fn never_more_than_its_due(
            per_s in 1..5000_u32,
            burst in 1..50_u32,
            steps in prop::collection::vec(0..20_000_000_u64, 1..300),
        ) {
            let rate = Rate { per_s, burst };
            let (bucket, mut now, mut taken) = (Bucket::default(), 0, 0_u64);
            for step in steps {
                now += step;
                taken += u64::from(bucket.take(rate, Duration::from_nanos(now)));
                // A bound that rounding the interval down to nanoseconds does not break.
                let due = u64::from(burst) + now * u64::from(per_s) / 999_000_000 + 1;
                prop_assert!(taken <= due, "{} of {}", taken, due);
            }
            prop_assert!(taken >= 1);
        }
    }
}
