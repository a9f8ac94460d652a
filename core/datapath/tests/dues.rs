//! Threads that take from one bucket together take no more than one would.

use datapath::bucket::{Bucket, Buckets, Rate};
use std::thread;
use std::time::Duration;

const THREADS: usize = 4;
const RATE: Rate = Rate::of(50);

/// How much all threads took, each of which tried so often.
fn taken(take: impl Fn() -> bool + Sync) -> usize {
    let tries = || (0..10_000).filter(|_| take()).count();
    thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(tries)).collect();
        let counts = threads.into_iter().map(|thread| thread.join());
        counts.map(|count| count.expect("it took")).sum()
    })
}

#[test]
fn a_bucket_gives_no_more_to_many_threads() {
    let bucket = Bucket::default();
    for second in 0..10 {
        let now = Duration::from_secs(second);
        let due = if second == 0 { 100 } else { 50 };
        assert_eq!(taken(|| bucket.take(RATE, now)), due, "at {second} s");
    }
}

#[test]
fn one_of_many_buckets_gives_no_more_either_once_it_is_known() {
    let buckets = Buckets::new(64);
    let now = Duration::from_secs(1);
    for whose in 1..=64 {
        assert!(buckets.take(whose, RATE, now));
        assert_eq!(taken(|| buckets.take(whose, RATE, now)), 99, "{whose}");
    }
}
