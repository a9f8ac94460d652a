//! How often an address may try to join.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Attempts in a row.
const BURST: u32 = 60;
/// Then one of these each.
const REFILL: Duration = Duration::from_secs(1);
/// Addresses remembered; beyond, those that did not try lately are forgotten.
const REMEMBERED: usize = 10_000;

/// A bucket of attempts for each address (IPv6: for each /64). Locked for a look-up only.
#[derive(Default)]
pub(crate) struct RateLimit(Mutex<BTreeMap<IpAddr, Bucket>>);

struct Bucket {
    left: u32,
    filled: Instant,
}

impl RateLimit {
    /// True if `address` may try once more.
    pub(crate) fn take(&self, address: IpAddr) -> bool {
        self.take_at(address, Instant::now())
    }

    fn take_at(&self, address: IpAddr, now: Instant) -> bool {
        let mut buckets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= REMEMBERED {
            buckets.retain(|_, bucket| now.duration_since(bucket.filled) < REFILL * BURST);
            if buckets.len() >= REMEMBERED {
                return false;
            }
        }
        let bucket = buckets.entry(network(address)).or_insert(Bucket {
            left: BURST,
            filled: now,
        });
        let fresh = now.duration_since(bucket.filled).as_secs() / REFILL.as_secs();
        if fresh > 0 {
            let fresh = u32::try_from(fresh).unwrap_or(BURST);
            bucket.left = bucket.left.saturating_add(fresh).min(BURST);
            bucket.filled = now;
        }
        let allowed = bucket.left > 0;
        bucket.left = bucket.left.saturating_sub(1);
        allowed
    }
}

fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_tries_too_often_waits_and_others_do_not() {
        let limit = RateLimit::default();
        let (one, two) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        let now = Instant::now();
        assert!((0..BURST).all(|_| limit.take_at(one, now)));
        assert!(!limit.take_at(one, now));
        assert!(limit.take_at(two, now));
        assert!(limit.take_at(one, now + REFILL));
        assert!(!limit.take_at(one, now + REFILL));
    }

    #[test]
    fn an_ipv6_network_is_one_address() {
        let limit = RateLimit::default();
        let now = Instant::now();
        for host in 0..BURST {
            let address = format!("2001:db8::{host:x}").parse().unwrap();
            assert!(limit.take_at(address, now));
        }
        assert!(!limit.take_at("2001:db8::ffff:1".parse().unwrap(), now));
    }
}
