//! Notices that somebody changed something.

use crate::error::Error;
use model::IfName;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::time::Duration;

/// Something changed; what exactly, the next observation tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// An interface came, went or changed (its VLANs too).
    Link(IfName),
    /// A row of a forwarding database, an ARP or an ND table changed.
    Rows,
    /// Our nftables tables changed.
    Guards,
    /// Events were lost (`ENOBUFS`): observe everything.
    Overrun,
}

/// A subscription to changes of the calling thread's namespace. May be moved to another thread.
/// Its file descriptor is readable when [`Monitor::next`] has something.
#[derive(Debug)]
pub struct Monitor {}

impl Monitor {
    /// Subscribes.
    pub fn open() -> Result<Monitor, Error> {
        unimplemented!()
    }

    /// The next event; none if there is none within `timeout` (none: wait for ever; zero: do not wait).
    pub fn next(&mut self, timeout: Option<Duration>) -> Result<Option<Event>, Error> {
        let _ = timeout;
        unimplemented!()
    }
}

impl AsFd for Monitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        unimplemented!()
    }
}

impl AsRawFd for Monitor {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}
