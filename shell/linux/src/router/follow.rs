//! What the kernel says of a router's tracked connections as they come, change and go.

use super::carry;
use super::flows::{Tuple, message};
use crate::attr::{self, Received};
use crate::error::{Cause, Doing, Error};
use crate::monitor::subscribe;
use crate::netns::{Netns, on_own_thread};
use crate::sys;
use model::NetnsName;
use nix::sys::socket::{MsgFlags, SockProtocol, recv};
use standby::{Event, Key};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

/// Some 20,000 events; more than come between two looks.
const BUFFER_BYTES: usize = 8 * 1024 * 1024;
const DATAGRAM_BYTES: usize = 64 * 1024;
/// Datagrams that are handed over at once; each is an event.
const AT_ONCE: usize = 512;

/// A subscription to what a router tracks. Of connections that were there before the first subscription on
/// the host the kernel may say nothing.
#[derive(Debug)]
pub struct ConnectionEvents {
    socket: OwnedFd,
    buffer: Vec<u8>,
}

/// What a look at a subscription came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Drained {
    /// The kernel had no room for some (`ENOBUFS`).
    pub lost: bool,
    /// There may be more.
    pub more: bool,
}

impl ConnectionEvents {
    /// Subscribes; none if the namespace is not there.
    pub fn open(netns: &NetnsName) -> Result<Option<Self>, Error> {
        let Some(found) = Netns::find(netns)? else {
            return Ok(None);
        };
        let socket = on_own_thread(|| {
            found.enter()?;
            let groups = [
                sys::NFNLGRP_CONNTRACK_NEW,
                sys::NFNLGRP_CONNTRACK_UPDATE,
                sys::NFNLGRP_CONNTRACK_DESTROY,
            ];
            subscribe(SockProtocol::NetlinkNetFilter, &groups, BUFFER_BYTES)
        });
        let socket = socket.doing(|| format!("follow the connections of namespace {netns}"))?;
        let buffer = vec![0; DATAGRAM_BYTES];
        Ok(Some(Self { socket, buffer }))
    }

    /// Hands over what came, in the kernel's order.
    pub fn drain(&mut self, mut each: impl FnMut(Event)) -> Result<Drained, Error> {
        let mut drained = Drained::default();
        for _ in 0..AT_ONCE {
            let fd = self.socket.as_raw_fd();
            match recv(fd, &mut self.buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(length) => attr::messages(&self.buffer[..length])
                    .filter_map(event_of)
                    .for_each(&mut each),
                Err(nix::Error::EAGAIN) => return Ok(drained),
                Err(nix::Error::EINTR) => {}
                Err(nix::Error::ENOBUFS) => drained.lost = true,
                Err(error) => {
                    return Err(Cause::from(error))
                        .doing(|| "read what happened to connections".to_owned());
                }
            }
        }
        drained.more = true;
        Ok(drained)
    }
}

impl AsRawFd for ConnectionEvents {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// None for connections of other protocols than TCP and UDP.
fn event_of(received: Received<'_>) -> Option<Event> {
    const NEW: u16 = message(sys::IPCTNL_MSG_CT_NEW);
    const GONE: u16 = message(sys::IPCTNL_MSG_CT_DELETE);
    match received.kind {
        NEW => carry::parse(received.payload).map(Event::Is),
        GONE => {
            let attributes = received.payload.get(4..)?;
            let original = Tuple::parse(attr::attribute(attributes, sys::CTA_TUPLE_ORIG)?)?;
            Some(Event::Gone(Key {
                protocol: original.protocol?,
                original: carry::ends(&original),
            }))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn garbage_never_panics(
            kind: u8, payload in proptest::collection::vec(any::<u8>(), 0..200)
        ) {
            let kind = message(kind % 4);
            let event = event_of(Received { kind, flags: 0, sequence: 0, port: 0, payload: &payload });
            prop_assert!(event.is_none() || payload.len() > 4);
        }
    }
}
