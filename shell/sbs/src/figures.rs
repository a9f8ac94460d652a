//! What is counted and timed.

use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Durations by powers of two microseconds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Histogram {
    /// How many took less than 2 to the power of their place, in microseconds, and not less than half of that;
    /// no longer than it has to be.
    pub buckets: Vec<u64>,
    /// All together, in microseconds.
    pub sum_micros: u64,
}

/// Longer ones, from about half a minute on, are in the last bucket.
const MOST_BUCKETS: usize = 26;

impl Histogram {
    /// What was counted elsewhere.
    pub(crate) fn of(timing: &replication::Timing) -> Self {
        let last = timing.buckets.iter().rposition(|count| *count > 0);
        Self {
            buckets: timing.buckets[..last.map_or(0, |last| last + 1)].to_vec(),
            sum_micros: timing.sum_micros,
        }
    }

    /// One more.
    pub fn add(&mut self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let place = (u64::BITS - micros.leading_zeros()) as usize;
        let place = place.min(MOST_BUCKETS - 1);
        if self.buckets.len() <= place {
            self.buckets.resize(place + 1, 0);
        }
        self.buckets[place] += 1;
        self.sum_micros = self.sum_micros.saturating_add(micros);
    }

    /// Several as one.
    pub fn sum<'a>(all: impl Iterator<Item = &'a Self>) -> Self {
        let mut sum = Self::default();
        for one in all {
            let buckets = sum.buckets.len().max(one.buckets.len());
            sum.buckets.resize(buckets, 0);
            for (bucket, more) in sum.buckets.iter_mut().zip(&one.buckets) {
                *bucket += more;
            }
            sum.sum_micros = sum.sum_micros.saturating_add(one.sum_micros);
        }
        sum
    }

    /// The sum, and each bucket's upper end with how many were in it, in seconds; the last has no end.
    pub fn in_seconds(&self) -> (f64, Vec<(f64, u64)>) {
        let end = |place: usize| match place + 1 < MOST_BUCKETS {
            true => (1_u64 << place) as f64 / 1e6,
            false => f64::INFINITY,
        };
        let count = |place: usize| self.buckets.get(place).copied().unwrap_or(0);
        let buckets = (0..MOST_BUCKETS).map(|place| (end(place), count(place)));
        (self.sum_micros as f64 / 1e6, buckets.collect())
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// What so many percent took less than: the end of their bucket. None if there were none.
    pub fn below(&self, percent: u64) -> Option<Duration> {
        let wanted = (self.count() * percent).div_ceil(100);
        let mut seen = 0;
        let place = self.buckets.iter().position(|count| {
            seen += count;
            *count > 0 && seen >= wanted
        })?;
        Some(Duration::from_micros(1 << place))
    }
}

/// Since the process was started.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Figures {
    /// Writes of endpoints here, from when they are asked to when they are answered.
    pub writes: Histogram,
    /// Their reads.
    pub reads: Histogram,
    /// Their zeroes and trims.
    pub zeroes: Histogram,
    /// Writes to the disk, without a sync.
    pub disk_writes: Histogram,
    /// Reads of the disk.
    pub disk_reads: Histogram,
    /// Syncs of the disk, and writes that are synced by themselves.
    pub disk_syncs: Histogram,
    /// Requests of endpoints that were answered with an error.
    pub failed_requests: u64,
    /// Requests of endpoints that are under way.
    pub waiting_requests: u64,
    /// IO that is under way.
    pub waiting_io: u64,
    /// Frames that were sent to other hosts.
    pub frames: u64,
    /// Messages in them.
    pub messages: u64,
    /// Messages that were not heard: promises, or what cannot be.
    pub refused_messages: u64,
    /// Batches of the log.
    pub batches: u64,
    /// Checkpoints.
    pub checkpoints: u64,
    /// Bytes written to the log.
    pub log_bytes: u64,
    /// Bytes written to extents.
    pub extent_bytes: u64,
    /// Bytes written to the map and to superblocks.
    pub map_bytes: u64,
    /// Blocks read that were damaged.
    pub damaged_blocks: u64,
    /// Chunks that were read to see whether they are whole.
    #[serde(default)]
    pub scrubbed_chunks: u64,
    /// Times that all replicas were read through for that.
    #[serde(default)]
    pub scrub_rounds: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_counted_by_powers_of_two() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.below(50), None);
        for micros in [0, 1, 3, 3, 900] {
            histogram.add(Duration::from_micros(micros));
        }
        assert_eq!(histogram.buckets, [1, 1, 2, 0, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!((histogram.count(), histogram.sum_micros), (5, 907));
        assert_eq!(histogram.below(50), Some(Duration::from_micros(4)));
        assert_eq!(histogram.below(99), Some(Duration::from_micros(1024)));
        let (sum, buckets) = histogram.in_seconds();
        assert_eq!((sum, buckets.len()), (0.000_907, MOST_BUCKETS));
        assert_eq!(buckets[2], (0.000_004, 2));
        assert_eq!(buckets[MOST_BUCKETS - 1], (f64::INFINITY, 0));
        let twice = Histogram::sum([&histogram, &Histogram::default(), &histogram].into_iter());
        assert_eq!((twice.count(), twice.sum_micros), (10, 1814));
        histogram.add(Duration::from_secs(1 << 40));
        assert_eq!(histogram.buckets.len(), MOST_BUCKETS);
    }
}
