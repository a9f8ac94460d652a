//! What the kernel tells of changes, whoever made them, us included.

use crate::attr;
use crate::bpf;
use crate::error::Cause;
use crate::fdb::{RawFdb, RawNeighbour};
use crate::nft;
use crate::sys;
use nix::poll::PollTimeout;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, setsockopt,
    socket, sockopt,
};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

/// One change. Rows are told with their content, as a row has no other name than that; interfaces
/// by their number, because some of what is told of them is told in part only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// An interface came, went or changed; its name if the kernel gave it.
    Link(u32, Option<String>),
    /// A row of a forwarding database is there, or is gone.
    Fdb { there: bool, row: RawFdb },
    /// A row of an ARP or ND table is there, or is gone or no longer permanent.
    Neighbour { there: bool, row: RawNeighbour },
    /// The VLANs of a port changed.
    Vlans,
    /// Filters of an interface's ingress changed.
    Filters,
    /// Somebody else changed our nftables tables.
    Guards,
    /// Events were lost (`ENOBUFS`): nothing is known any more.
    Lost,
}

/// Room for what 1,000 interfaces cause between two reads.
const BUFFER_BYTES: usize = 32 * 1024 * 1024;
const DATAGRAM_BYTES: usize = 64 * 1024;

/// A subscription to changes of the namespace of the thread that opened it.
#[derive(Debug)]
pub(crate) struct Monitor {
    route: OwnedFd,
    netfilter: Option<OwnedFd>,
    either: Arc<Epoll>,
    buffer: Vec<u8>,
}

/// Waits for changes; on another thread than the [`Kernel`](crate::Kernel)'s, which takes them in.
#[derive(Debug)]
pub struct Watch(Arc<Epoll>);

impl Watch {
    /// Returns when there is something to take in, or after `timeout` (none: waits for ever): true
    /// if there is something.
    pub fn wait(&self, timeout: Option<Duration>) -> std::io::Result<bool> {
        let timeout = timeout.map_or(PollTimeout::NONE, |timeout| {
            PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX)
        });
        loop {
            match self.0.wait(&mut [EpollEvent::empty()], timeout) {
                Ok(ready) => return Ok(ready > 0),
                Err(nix::Error::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl Monitor {
    /// Subscribes. A smaller buffer than the usual is for tests of losing events.
    pub(crate) fn open(buffer_bytes: Option<usize>) -> Result<Monitor, Cause> {
        let bytes = buffer_bytes.unwrap_or(BUFFER_BYTES);
        let route = subscribe(
            SockProtocol::NetlinkRoute,
            &[sys::RTNLGRP_LINK, sys::RTNLGRP_NEIGH, sys::RTNLGRP_TC],
            bytes,
        )?;
        // What a kernel without IPv6 or without VLAN filtering does not know cannot change.
        for group in [sys::RTNLGRP_IPV6_IFADDR, sys::RTNLGRP_BRVLAN] {
            match join(route.as_fd(), group) {
                Ok(()) | Err(Cause::Io(_)) => {}
                Err(other) => return Err(other),
            }
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
            either: Arc::new(either),
            buffer: vec![0; DATAGRAM_BYTES],
        })
    }

    pub(crate) fn watch(&self) -> Watch {
        Watch(Arc::clone(&self.either))
    }

    /// Hands over all that has come, in the kernel's order. What a request of ours caused has come
    /// when the request is acknowledged. `own_nft` is the port of the socket that changes our
    /// nftables tables: what it did is known.
    pub(crate) fn drain(
        &mut self,
        own_nft: Option<u32>,
        mut event: impl FnMut(Event),
    ) -> Result<(), Cause> {
        let sockets = [Some(&self.route), self.netfilter.as_ref()];
        for socket in sockets.into_iter().flatten() {
            loop {
                match recv(socket.as_raw_fd(), &mut self.buffer, MsgFlags::MSG_DONTWAIT) {
                    Ok(length) => attr::messages(&self.buffer[..length])
                        .filter_map(|message| event_of(message, own_nft))
                        .for_each(&mut event),
                    Err(nix::Error::EAGAIN) => break,
                    Err(nix::Error::EINTR) => {}
                    Err(nix::Error::ENOBUFS) => event(Event::Lost),
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }
}

pub(crate) fn event_of(message: attr::Received<'_>, own_nft: Option<u32>) -> Option<Event> {
    let payload = message.payload;
    match message.kind {
        libc::RTM_NEWLINK | libc::RTM_DELLINK => {
            let name = payload
                .get(16..)
                .and_then(|attributes| attr::attribute(attributes, sys::IFLA_IFNAME))
                .and_then(attr::text);
            let index = attr::u32(payload.get(4..)?)?;
            Some(Event::Link(index, name.map(str::to_owned)))
        }
        // An address of IPv6 on an interface of ours is the sign that its IPv6 was switched on: of
        // the switch itself the kernel says nothing.
        libc::RTM_NEWADDR => Some(Event::Link(attr::u32(payload.get(4..)?)?, None)),
        libc::RTM_NEWNEIGH | libc::RTM_DELNEIGH => {
            let there = message.kind == libc::RTM_NEWNEIGH;
            if i32::from(*payload.first()?) == libc::AF_BRIDGE {
                let row = RawFdb::parse(payload)?;
                return Some(Event::Fdb { there, row });
            }
            let (row, permanent) = RawNeighbour::parse_any(payload)?;
            let there = there && permanent;
            Some(Event::Neighbour { there, row })
        }
        libc::RTM_NEWTFILTER | libc::RTM_DELTFILTER | libc::RTM_NEWQDISC | libc::RTM_DELQDISC => {
            bpf::is_of_ingress(payload).then_some(Event::Filters)
        }
        // RTM_NEWVLAN, RTM_DELVLAN.
        112 | 113 => Some(Event::Vlans),
        kind if kind >> 8 == libc::NFNL_SUBSYS_NFTABLES as u16 => {
            let family = *payload.first()?;
            // In all messages but NEWGEN, which is a number, the first attribute is the table's name.
            let table = attr::attribute(payload.get(4..)?, sys::NFTA_TABLE_NAME)?;
            let ours = matches!(family, sys::NFPROTO_BRIDGE | sys::NFPROTO_INET)
                && kind != nft::message(sys::NFT_MSG_NEWGEN)
                && attr::text(table) == Some("vpc")
                && own_nft != Some(message.port);
            ours.then_some(Event::Guards)
        }
        _ => None,
    }
}

pub(crate) fn subscribe(
    protocol: SockProtocol,
    groups: &[u32],
    bytes: usize,
) -> Result<OwnedFd, Cause> {
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
