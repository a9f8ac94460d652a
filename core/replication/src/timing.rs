//! How long the writes of a leader took, from when its store took them in to when they were committed.

use crate::Time;
use std::collections::VecDeque;

/// Durations by powers of two microseconds, from about half a minute on in the last.
const BUCKETS: usize = 26;

/// Durations, counted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Timing {
    /// How many took less than 2 to the power of their place, in microseconds, and not less than half of that.
    pub buckets: [u64; BUCKETS],
    /// All together, in microseconds.
    pub sum_micros: u64,
}

impl Timing {
    fn add(&mut self, micros: u64) {
        let place = (u64::BITS - micros.leading_zeros()) as usize;
        self.buckets[place.min(BUCKETS - 1)] += 1;
        self.sum_micros = self.sum_micros.saturating_add(micros);
    }
}

/// Writes that are on their way: when each was taken in.
#[derive(Debug, Default)]
pub(crate) struct UnderWay(VecDeque<(u64, Time)>);

impl UnderWay {
    /// An entry is on its way: after those before it.
    pub(crate) fn put(&mut self, index: u64, now: Time) {
        self.0.push_back((index, now));
    }

    /// All up to this one are committed.
    pub(crate) fn committed(&mut self, index: u64, now: Time, timing: &mut Timing) {
        while let Some((_, since)) = self.0.pop_front_if(|(at, _)| *at <= index) {
            timing.add(now.0.saturating_sub(since.0));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_counted_once_when_it_is_committed() {
        let (mut under_way, mut timing) = (UnderWay::default(), Timing::default());
        for (index, at) in [(4, 100), (6, 101), (7, 150)] {
            under_way.put(index, Time(at));
        }
        under_way.committed(3, Time(160), &mut timing);
        assert_eq!(timing, Timing::default());
        under_way.committed(6, Time(164), &mut timing);
        under_way.committed(6, Time(500), &mut timing);
        assert_eq!(timing.sum_micros, 64 + 63);
        assert_eq!((timing.buckets[6], timing.buckets[7]), (1, 1));
        under_way.committed(9, Time(1 << 50), &mut timing);
        assert_eq!(timing.buckets[BUCKETS - 1], 1);
    }
}
