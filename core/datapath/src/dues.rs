//! What each port and each subnet has left of what costs everybody. One for all workers of a host: by which
//! queue a frame comes is chosen by its sender, and gains nothing.

use crate::bucket::{Buckets, Rate};
use crate::tables::Domain;
use model::MacAddr;
use std::time::Duration;

/// Announcements of one port that go to all, whichever transport carries them: a NIC has some when it comes up
/// or moves.
pub const ANNOUNCEMENTS: Rate = Rate::of(10);
/// Ports whose questions and announcements are counted at a time.
const PORTS: usize = 16_384;
/// Subnets whose floods are.
const DOMAINS: usize = 16_384;

/// See the module. Threads share it; `now` is of one clock for all of them.
#[derive(Debug)]
pub struct Dues {
    questions: Buckets,
    announcements: Buckets,
    floods: Buckets,
}

impl Default for Dues {
    fn default() -> Self {
        Self {
            questions: Buckets::new(PORTS),
            announcements: Buckets::new(PORTS),
            floods: Buckets::new(DOMAINS),
        }
    }
}

impl Dues {
    /// True if a port may have one more question answered.
    pub(crate) fn may_ask(&self, port: MacAddr, rate: Rate, now: Duration) -> bool {
        self.questions.take(number(port), rate, now)
    }

    /// True if it may announce itself to all once more.
    pub(crate) fn may_announce(&self, port: MacAddr, now: Duration) -> bool {
        self.announcements.take(number(port), ANNOUNCEMENTS, now)
    }

    /// True if one more frame of a subnet may go to all.
    pub(crate) fn may_flood(&self, domain: Domain, rate: Rate, now: Duration) -> bool {
        // Above the 12 bits of a tag; no tag is another than any.
        let tag = domain.tag.map_or(0, |tag| u64::from(tag.get()) + 1);
        let whose = u64::from(domain.vni.get()) << 16 | tag;
        self.floods.take(whose, rate, now)
    }
}

fn number(mac: MacAddr) -> u64 {
    let [a, b, c, d, e, f] = mac.0;
    u64::from_be_bytes([0, 0, a, b, c, d, e, f])
}
