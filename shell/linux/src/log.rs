//! The kernel's packet log (`linux/netfilter/nfnetlink_log.h`): frames that rules of ours hand to the
//! agent, each with the port that it came in by.

use crate::attr::{self, Message, Received};
use crate::error::{Doing, Error};
use crate::socket::Socket;
use crate::sys;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::AsFd;
use std::time::Duration;

/// The group that announcements of workloads go to, the number that we stamp rows with: others use
/// low ones.
pub(crate) const ANNOUNCEMENTS: u16 = sys::PROTOCOL as u16;
/// The group that questions for the host go to.
pub(crate) const QUESTIONS: u16 = ANNOUNCEMENTS + 1;

/// Hears one group in the network namespace of the thread that opened it.
#[derive(Debug)]
pub(crate) struct PacketLog {
    group: u16,
    socket: Socket,
    lost: u64,
}

impl PacketLog {
    /// Begins to listen. One program at a time can. Of a frame no more than `copy_bytes` are told.
    pub(crate) fn open(group: u16, copy_bytes: u16) -> Result<Self, Error> {
        let doing = || format!("listen to group {group} of the kernel's packet log");
        let mut socket = Socket::netfilter().doing(doing)?;
        let mut bind = config(group);
        bind.put_u8(sys::NFULA_CFG_CMD, sys::NFULNL_CFG_CMD_BIND);
        socket.request(bind).doing(doing)?;
        let mut how = config(group);
        // `| bytes to copy 4 | what to copy 1 | padding 1 |`, and each frame by itself, at once.
        let copy_bytes = u32::from(copy_bytes).to_be_bytes();
        let copy = [&copy_bytes[..], &[sys::NFULNL_COPY_PACKET, 0]].concat();
        how.put(sys::NFULA_CFG_MODE, &copy)
            .put_be32(sys::NFULA_CFG_QTHRESH, 1);
        socket.request(how).doing(doing)?;
        Ok(Self {
            group,
            socket,
            lost: 0,
        })
    }

    /// Waits for frames, at most so long, and hands over each with the number of its port.
    pub(crate) fn wait(
        &mut self,
        most: Duration,
        mut each: impl FnMut(u32, Vec<u8>),
    ) -> Result<(), Error> {
        let mut take = || {
            let timeout = PollTimeout::try_from(most).unwrap_or(PollTimeout::MAX);
            let mut ready = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
            match poll(&mut ready, timeout) {
                Ok(0) | Err(nix::Error::EINTR) => return Ok(()),
                other => other?,
            };
            self.socket.receive(|message| {
                if let Some((port, frame)) = parse(&message) {
                    each(port, frame);
                }
            })
        };
        match take() {
            // More came than there was room for.
            Err(cause) if cause.errno() == Some(libc::ENOBUFS) => {
                self.lost += 1;
                Ok(())
            }
            Err(cause) if cause.errno() == Some(libc::EAGAIN) => Ok(()),
            other => {
                other.doing(|| format!("read group {} of the kernel's packet log", self.group))
            }
        }
    }

    /// How often frames were lost because they were not taken fast enough.
    pub(crate) fn lost(&self) -> u64 {
        self.lost
    }
}

fn config(group: u16) -> Message {
    let kind = (libc::NFNL_SUBSYS_ULOG as u16) << 8 | u16::from(sys::NFULNL_MSG_CONFIG);
    let mut message = Message::new(kind, 0);
    // `struct nfgenmsg`: `| family 1 | version 1 | group 2, big endian |`.
    let [high, low] = group.to_be_bytes();
    message.header(&[libc::AF_UNSPEC as u8, 0, high, low]);
    message
}

/// The number of the port, and the frame.
fn parse(message: &Received<'_>) -> Option<(u32, Vec<u8>)> {
    let packet = (libc::NFNL_SUBSYS_ULOG as u16) << 8 | u16::from(sys::NFULNL_MSG_PACKET);
    if message.kind != packet {
        return None;
    }
    let attributes = message.payload.get(4..)?;
    let get = |kind| attr::attribute(attributes, kind);
    // Kernels with br_netfilter tell the bridge as the interface, and the port beside it.
    let port = get(sys::NFULA_IFINDEX_PHYSINDEV).or_else(|| get(sys::NFULA_IFINDEX_INDEV))?;
    let header = get(sys::NFULA_HWHEADER).filter(|header| header.len() == 14)?;
    let frame = [header, get(sys::NFULA_PAYLOAD)?].concat();
    Some((u32::from_be_bytes(*port.first_chunk()?), frame))
}

/// For the fuzzer and tests: the message as one of the packet log's.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn read(payload: &[u8]) {
    let kind = (libc::NFNL_SUBSYS_ULOG as u16) << 8;
    let (flags, sequence, port) = (0, 0, 0);
    let message = Received {
        kind,
        flags,
        sequence,
        port,
        payload,
    };
    drop(parse(&message));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn garbage_never_panics(payload in proptest::collection::vec(any::<u8>(), 0..200)) {
            read(&payload);
        }
    }
}
