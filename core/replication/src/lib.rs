//! The replication of volumes: what a majority has on disk is not lost, and all replicas agree on it.
//! No sockets, files, clock, randomness, threads or tasks.
//!
//! One [`Host`] per disk, with one Raft group for each volume that has a replica there. A host takes
//! frames of its peers, completions of its disk's IO, requests of the endpoints on it, and the time; it
//! hands out frames, IO and replies. [`wire`] is the form of frames between hosts.
//!
//! Invariants; docs/storage/replication.md tells them at length:
//! * R1 A request is answered as done only when its entry is durable on a majority, and took effect on
//!   the replica that answers.
//! * R2 A vote, and a term, is durable before anybody hears of it.
//! * R3 A read sees all that was answered before it was asked for: who answers it holds a lease of a
//!   majority, or has asked a majority since.
//! * R4 An entry of an attachment that is over has no effect, on any replica, whenever it commits.
//! * R5 A request that is sent again takes effect once per attachment.
//! * R6 What an idle volume costs does not depend on time: no timer, no message.

mod catchup;
mod consensus;
mod doubt;
mod elect;
mod endpoint;
mod group;
mod host;
mod info;
mod lead;
mod liveness;
mod log;
mod members;
mod mend;
mod message;
mod outbox;
mod recover;
mod scrub;
mod send;
mod stamp;
mod steps;
mod timing;
mod validate;
pub mod wire;

pub use endpoint::{Outcome, Reply, RequestId};

pub use host::{Counters, Host, NotReady};
pub use info::{FollowerInfo, GroupInfo, Role};
pub use members::{BadMembers, Member, Members};
pub use message::{
    Answer, Answered, Care, Echo, Envelope, Failure, Frame, Message, Op, Place, Request, Step,
    VoteKind,
};
pub use recover::{NotRecovered, Recovery};
pub use scrub::ScrubInfo;
pub use stamp::Stamp;
pub use timing::Timing;

use std::fmt;
use std::ops::Add;

/// A host, as the superblock of its disk names it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostId(pub u128);

impl fmt::Display for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "host {:x}", self.0)
    }
}

/// A replica of a volume. Never used again: one whose disk is gone comes back as another. Zero is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReplicaId(pub u64);

/// A session of an endpoint: never used again, on no host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u128);

/// A host's monotonic clock, in microseconds. Clocks of hosts may run at speeds that differ by
/// [`MOST_DRIFT_PERCENT`], and jump by [`MOST_JUMP_MICROS`]; what they show is not compared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(pub u64);

impl Add<u64> for Time {
    type Output = Self;

    fn add(self, micros: u64) -> Self {
        Self(self.0.saturating_add(micros))
    }
}

const MILLIS: u64 = 1000;
/// How often a host is heard of, also when there is nothing to say.
pub const BEAT_MICROS: u64 = 100 * MILLIS;
/// How long a leader reads by itself after it asked, and was heard.
pub const LEASE_MICROS: u64 = 400 * MILLIS;
/// How long a follower helps nobody else become leader after it heard of the leader's host.
pub const PROMISE_MICROS: u64 = 600 * MILLIS;
/// After so long without an answer a host is taken to be down.
pub const DOWN_MICROS: u64 = 700 * MILLIS;
/// Between the first and the last replica of a group that tries to become leader.
pub const STAGGER_MICROS: u64 = 150 * MILLIS;
/// After so long an endpoint asks again, of the next host.
pub const RETRY_MICROS: u64 = 500 * MILLIS;
/// After so long without an answer an endpoint gives its session up.
pub const GIVE_UP_MICROS: u64 = 20_000 * MILLIS;
/// By how much one clock may be faster than another: a lease ends before its promise all the same.
pub const MOST_DRIFT_PERCENT: u64 = 20;
/// How far one of two clocks may jump beside that, to and fro, while a promise lasts.
pub const MOST_JUMP_MICROS: u64 = 80 * MILLIS;

const _: () = assert!(
    (LEASE_MICROS + MOST_JUMP_MICROS) * (100 + MOST_DRIFT_PERCENT) < PROMISE_MICROS * 100
        && LEASE_MICROS * (100 + MOST_DRIFT_PERCENT) < (PROMISE_MICROS - MOST_JUMP_MICROS) * 100
);
const _: () = assert!(PROMISE_MICROS < DOWN_MICROS);
