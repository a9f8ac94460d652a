//! What a router's standby knows of the connections that the router tracks. No clock, no sockets.
//!
//! The host that runs the router has an [`Outbox`]: what the kernel says of connections goes in, one batch
//! after the other comes out, each when the one before was acknowledged. The standby has a [`Store`]. Neither
//! grows beyond what a router may track: where the outbox would, it drops what it has and asks for a whole
//! snapshot instead, so that a standby that is slow or away costs a bounded memory and nothing else.
//!
//! Each snapshot begins a series. What the series did not name when the snapshot is through is not there any
//! more, so that nothing that got lost on the way stays behind. Whoever lost the thread (a standby that was
//! started anew, say) refuses a batch of a series that it did not see begin, and a new one begins.

mod outbox;
mod store;

pub use outbox::Outbox;
pub use store::{Refused, Store, Taken};

use model::{Ends, Protocol, Tracked};

/// Connections in one batch, and as many that are gone, at most.
pub const BATCH: usize = 1000;
/// A connection that is taken over lives for so many seconds at least: the kernel told how long it lives when
/// it changed last, and not when a packet came since.
pub const LEAST_TIMEOUT_SECS: u32 = 30;

/// Which connection: no two that a router tracks have the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// As its first packet came in.
    pub original: Ends,
}

impl Key {
    /// Of a connection.
    pub fn of(tracked: &Tracked) -> Self {
        Self {
            protocol: tracked.protocol,
            original: tracked.original,
        }
    }
}

/// What the kernel says of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// It is there, and this is how.
    Is(Tracked),
    /// It is there no more.
    Gone(Key),
}

/// What a standby is told at once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    /// Which series it belongs to.
    pub series: u64,
    /// It is the first of its series.
    pub begins: bool,
    /// With it the snapshot is through.
    pub ends: bool,
    /// Connections that are there no more. They go first, so that there is room.
    pub gone: Vec<Key>,
    /// Connections that are there.
    pub connections: Vec<Tracked>,
}

/// Not all that the kernel tells of a connection of TCP names its state.
fn newer(mut tracked: Tracked, before: Option<&Tracked>) -> Tracked {
    if tracked.tcp_state == 0
        && let Some(before) = before
    {
        tracked.tcp_state = before.tcp_state;
    }
    tracked
}
