//! Token buckets: how much of something may be, on the whole and at once.

use model::MacAddr;
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

/// One bucket, as the moment it will be full again: all that there is to know of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bucket {
    full_at_ns: u64,
}

impl Bucket {
    /// Takes one out, if there is one. `now` is since any moment, the same for all calls; where it goes
    /// back nothing is gained.
    pub fn take(&mut self, rate: Rate, now: Duration) -> bool {
        let Some(interval) = rate.interval() else {
            return false;
        };
        let now = nanoseconds(now);
        let full_at = self.full_at_ns.max(now).saturating_add(interval);
        if full_at - now > interval.saturating_mul(rate.burst.into()) {
            return false;
        }
        self.full_at_ns = full_at;
        true
    }
}

/// A bucket for each source MAC, in a table that does not grow: where it is full, the bucket that was
/// left alone the longest goes. It comes back full, so who has very many MACs has more than one's due;
/// guards leave a port one.
#[derive(Debug, Clone)]
pub struct Buckets {
    rate: Rate,
    /// Each MAC has its place in one of them.
    sets: Box<[[(MacAddr, Bucket); WAYS]]>,
}

const WAYS: usize = 4;

impl Buckets {
    /// Room for at least `most` MACs, which is made here and never again.
    pub fn new(rate: Rate, most: usize) -> Self {
        let sets = most.div_ceil(WAYS).max(1).next_power_of_two();
        let empty = [(MacAddr::ZERO, Bucket::default()); WAYS];
        Self {
            rate,
            sets: vec![empty; sets].into(),
        }
    }

    /// Another rate from now on.
    pub fn set_rate(&mut self, rate: Rate) {
        self.rate = rate;
    }

    /// Takes one out of a MAC's bucket, if there is one.
    pub fn take(&mut self, mac: MacAddr, now: Duration) -> bool {
        let mask = self.sets.len() - 1;
        let set = &mut self.sets[spread(mac) & mask];
        let found = set.iter().position(|(whose, _)| *whose == mac);
        let place = found.unwrap_or_else(|| {
            let oldest = (0..WAYS).min_by_key(|place| set[*place].1.full_at_ns);
            let oldest = oldest.expect("a set has places");
            set[oldest] = (mac, Bucket::default());
            oldest
        });
        set[place].1.take(self.rate, now)
    }
}

fn nanoseconds(now: Duration) -> u64 {
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

/// MACs that a planner gave out differ in their last bytes, a NIC maker's as well: all of them count.
fn spread(mac: MacAddr) -> usize {
    let [a, b, c, d, e, f] = mac.0;
    let bits = u64::from_be_bytes([0, 0, a, b, c, d, e, f]);
    // 2^64 by the golden ratio.
    (bits.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as usize
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
        let mut bucket = Bucket::default();
        let mut take = |at| bucket.take(RATE, ms(at));
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
        let mut bucket = Bucket::default();
        assert!(bucket.take(RATE, Duration::MAX));
        assert!(!bucket.take(RATE, Duration::ZERO));
        let no_burst = Rate { per_s: 9, burst: 0 };
        assert!(!Bucket::default().take(no_burst, ms(1)));
    }

    #[test]
    fn macs_have_a_bucket_each() {
        let mut buckets = Buckets::new(RATE, 1024);
        let mac = |n: u16| {
            let [high, low] = n.to_be_bytes();
            MacAddr([2, 0, 0, 0, high, low])
        };
        for _ in 0..3 {
            for n in 0..256 {
                assert!(buckets.take(mac(n), ms(5)), "{n}");
            }
        }
        assert!((0..256).all(|n| !buckets.take(mac(n), ms(5))));
    }

    #[test]
    fn a_table_does_not_grow_and_the_oldest_goes() {
        let mut buckets = Buckets::new(RATE, 1);
        let mac = |n| MacAddr([2, 0, 0, 0, 0, n]);
        for n in 0..4 {
            assert!((0..3).all(|_| buckets.take(mac(n), ms(n.into()))));
        }
        assert!(!buckets.take(mac(0), ms(4)), "it is known");
        assert!(
            buckets.take(mac(9), ms(4)),
            "it comes in place of the first"
        );
        assert!(!buckets.take(mac(1), ms(4)), "the second is still known");
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
            let (mut bucket, mut now, mut taken) = (Bucket::default(), 0, 0_u64);
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
