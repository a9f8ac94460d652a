//! Which host runs a router: a lease that a majority of voters keeps. No clock, no sockets.
//!
//! An owner asks all voters again and again, and holds a router for [`LEASE`] from when it *sent* the
//! last question that a majority confirmed. A voter that confirmed one owner confirms no other for
//! [`HOLD`] from when it *answered*. As any two majorities have a voter in common, and `HOLD` is longer
//! by more than clocks differ, two owners never hold a router at once. The placement's epoch only says
//! who is to win when the first has let go: a voter that heard of a higher epoch does not confirm a lower
//! one any more.

mod owner;
mod voter;

pub use owner::Owner;
pub use voter::{Promise, Voter};

use model::RouterId;
use std::time::Duration;

/// How long an owner holds a router without another word.
pub const LEASE: Duration = Duration::from_millis(1000);
/// How long a voter keeps to whom it confirmed. A tenth more than [`LEASE`]: clocks of machines differ
/// by parts in ten thousand, and the kernel's timers by some milliseconds.
pub const HOLD: Duration = Duration::from_millis(1100);
/// Between an owner's questions: four can be lost before the lease is.
pub const RENEW: Duration = Duration::from_millis(200);
/// The same while a router is not held yet.
pub const ACQUIRE: Duration = Duration::from_millis(50);
/// Routers in one question at most.
pub const MAX_CLAIMS: usize = 4096;
/// Routers that a voter remembers at most; those that nobody asked about for longest are forgotten.
pub const MAX_REMEMBERED: usize = 4 * MAX_CLAIMS;

/// A placement of a router. Each has a higher epoch than the one before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Claim {
    /// Which router.
    pub router: RouterId,
    /// Of which placement.
    pub epoch: u64,
}

/// What an owner asks all voters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ask {
    /// What it holds or wants to.
    pub claims: Vec<Claim>,
    /// What it holds no more: another may have it at once.
    pub ended: Vec<Claim>,
}
