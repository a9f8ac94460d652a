//! Notices that somebody changed something.

use crate::attr;
use crate::error::{Cause, Doing, Error};
use crate::link::RawLink;
use crate::nft;
use crate::sys;
use model::IfName;
use nix::poll::PollTimeout;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, setsockopt,
    socket, sockopt,
};
use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

/// Something changed; what exactly, the next observation tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// An interface came, went or changed (its VLANs too).
    Link(IfName),
    /// A row of a forwarding database, an ARP or an ND table changed.
    Rows,
    /// Our nftables tables changed, or somebody's; the kernel does not let us listen to ours alone.
    Guards,
    /// Events were lost (`ENOBUFS`): observe everything.
    Overrun,
}

/// Room for about 8,000 events between two reads.
const BUFFER_BYTES: usize = 8 * 1024 * 1024;
const DATAGRAM_BYTES: usize = 64 * 1024;

/// A subscription to changes of the namespace of the thread that opened it. May be moved to another
/// thread. Its file descriptor is readable when there may be events: then call
/// [`Monitor::next`] with no time to wait until it has none.
#[derive(Debug)]
pub struct Monitor {
    route: OwnedFd,
    netfilter: Option<OwnedFd>,
    /// One descriptor that is readable when either of the two is.
    either: Epoll,
    waiting: VecDeque<Event>,
    buffer: Vec<u8>,
}

impl Monitor {
    /// Subscribes.
    pub fn open() -> Result<Monitor, Error> {
        Self::open_sized(BUFFER_BYTES).doing(|| "listen to changes of the kernel's state".into())
    }

    /// Subscribes with a receive buffer of about this size; a small one is for tests of losing
    /// events.
    #[doc(hidden)]
    pub fn open_with_buffer(bytes: usize) -> Result<Monitor, Error> {
        Self::open_sized(bytes).doing(|| "listen to changes of the kernel's state".into())
    }

    fn open_sized(bytes: usize) -> Result<Monitor, Cause> {
        let route = subscribe(
            SockProtocol::NetlinkRoute,
            &[sys::RTNLGRP_LINK, sys::RTNLGRP_NEIGH],
            bytes,
        )?;
        // A kernel without VLAN filtering may not know the group; there is nothing to miss then.
        match join(route.as_fd(), sys::RTNLGRP_BRVLAN) {
            Ok(()) | Err(Cause::Io(_)) => {}
            Err(other) => return Err(other),
        }
        let netfilter = subscribe(
            SockProtocol::NetlinkNetFilter,
            &[sys::NFNLGRP_NFTABLES],
            bytes,
        )
        .ok();
        let either = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        either.add(&route, EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
        if let Some(netfilter) = &netfilter {
            either.add(netfilter, EpollEvent::new(EpollFlags::EPOLLIN, 1))?;
        }
        Ok(Monitor {
            route,
            netfilter,
            either,
            waiting: VecDeque::new(),
            buffer: vec![0; DATAGRAM_BYTES],
        })
    }

    /// The next event; none if there is none within `timeout` (none: wait for ever; zero: do not
    /// wait). A run of equal events is told once.
    pub fn next(&mut self, timeout: Option<Duration>) -> Result<Option<Event>, Error> {
        self.next_event(timeout)
            .doing(|| "listen to changes of the kernel's state".into())
    }

    fn next_event(&mut self, timeout: Option<Duration>) -> Result<Option<Event>, Cause> {
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        loop {
            self.drain()?;
            if let Some(event) = self.waiting.pop_front() {
                return Ok(Some(event));
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return Ok(None);
            }
            // Rounded up, or the last part of a millisecond would be spent spinning.
            let wait = left.map_or(PollTimeout::NONE, |left| {
                PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
            });
            match self.either.wait(&mut [EpollEvent::empty()], wait) {
                Ok(_) | Err(nix::Error::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Reads all that has come.
    fn drain(&mut self) -> Result<(), Cause> {
        let sockets = [Some(&self.route), self.netfilter.as_ref()];
        for socket in sockets.into_iter().flatten() {
            loop {
                match recv(socket.as_raw_fd(), &mut self.buffer, MsgFlags::MSG_DONTWAIT) {
                    Ok(length) => {
                        for message in attr::messages(&self.buffer[..length]) {
                            if let Some(event) = event_of(message)
                                && self.waiting.back() != Some(&event)
                            {
                                self.waiting.push_back(event);
                            }
                        }
                    }
                    Err(nix::Error::EAGAIN) => break,
                    Err(nix::Error::EINTR) => {}
                    Err(nix::Error::ENOBUFS) => {
                        // Whatever else is waiting is part of what will be observed.
                        self.waiting.clear();
                        self.waiting.push_back(Event::Overrun);
                    }
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }
}

fn event_of(message: attr::Received<'_>) -> Option<Event> {
    match message.kind {
        libc::RTM_NEWLINK | libc::RTM_DELLINK => {
            let link = RawLink::parse(message.payload)?;
            Some(Event::Link(IfName::new(link.name).ok()?))
        }
        libc::RTM_NEWNEIGH | libc::RTM_DELNEIGH => {
            // ARP and ND resolve all day long; what we keep there is permanent, or is in an FDB.
            let family = i32::from(*message.payload.first()?);
            let state = message.payload.get(8..).and_then(attr::u16)?;
            let ours = family == libc::AF_BRIDGE
                || state & (libc::NUD_PERMANENT | libc::NUD_NOARP) != 0
                || message.kind == libc::RTM_DELNEIGH;
            ours.then_some(Event::Rows)
        }
        // RTM_NEWVLAN, RTM_DELVLAN: `struct br_vlan_msg` holds an index, and the port's membership
        // is told by RTM_NEWLINK of the bridge family as well.
        112 | 113 => Some(Event::Rows),
        kind if kind >> 8 == libc::NFNL_SUBSYS_NFTABLES as u16 => {
            // A new generation follows every transaction: one event is enough.
            (kind == nft::message(sys::NFT_MSG_NEWGEN)).then_some(Event::Guards)
        }
        _ => None,
    }
}

fn subscribe(protocol: SockProtocol, groups: &[u32], bytes: usize) -> Result<OwnedFd, Cause> {
    let fd = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        protocol,
    )?;
    setsockopt(&fd, sockopt::RcvBufForce, &bytes)?;
    bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
    for group in groups {
        join(fd.as_fd(), *group)?;
    }
    Ok(fd)
}

fn join(socket: BorrowedFd<'_>, group: u32) -> Result<(), Cause> {
    let group = i32::try_from(group).map_err(|_| Cause::Garbled("a group number"))?;
    Ok(sys::set_netlink_option(
        socket,
        libc::NETLINK_ADD_MEMBERSHIP,
        group,
    )?)
}

impl AsFd for Monitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.either.0.as_fd()
    }
}

impl AsRawFd for Monitor {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}
