//! Messages to a socket: in order, without waiting where it has no room.

use datapath::Reason;
use linux::{Sender, ToSend, TunnelSocket};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io;
use std::os::fd::AsFd;
use tracing::debug;

/// How long room is waited for in a socket that had some until now: a burst may be more than fits.
const ROOM_WAIT_MS: u16 = 10;

/// A message that was not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Left {
    /// Which one.
    pub(crate) at: usize,
    pub(crate) reason: Reason,
}

/// What was not sent.
#[derive(Debug, Default)]
pub(crate) struct LeftOut {
    /// In their order.
    pub(crate) messages: Vec<Left>,
    /// The kernel would not split one.
    pub(crate) refused: bool,
}

/// Sends messages, and leaves out what cannot be sent. `full` says that the socket had no room the last
/// time: then none is waited for, because what others are to get waits as long.
pub(crate) fn deliver(
    sender: &mut Sender,
    socket: &TunnelSocket,
    messages: &[ToSend<'_>],
    full: &mut bool,
) -> LeftOut {
    let mut left_out = LeftOut::default();
    let had_room = !std::mem::take(full);
    let mut at = 0;
    while at < messages.len() {
        let (sent, error) = sender.send(socket, &messages[at..]);
        at += sent;
        let Some(error) = error else { break };
        let is_full = error.kind() == io::ErrorKind::WouldBlock
            || error.raw_os_error() == Some(Errno::ENOBUFS as i32);
        if is_full && had_room && !*full {
            *full = true;
            let mut room = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
            if poll(&mut room, PollTimeout::from(ROOM_WAIT_MS)).is_ok() {
                continue;
            }
        }
        *full |= is_full;
        let reason = match is_full {
            true => Reason::SocketFull,
            false => Reason::Unreachable,
        };
        let message = &messages[at];
        let is_split = message.split.is_some();
        left_out.refused |= is_split && error.raw_os_error() == Some(Errno::EIO as i32);
        debug!(to = %message.to, %error, %reason, "Dropped");
        left_out.messages.push(Left { at, reason });
        at += 1;
    }
    left_out
}
