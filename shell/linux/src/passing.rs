//! Descriptors that one process gives another over a unix socket (`SCM_RIGHTS`).

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

/// Descriptors that go with one byte; the kernel takes 253 (`SCM_MAX_FD`).
const AT_ONCE: usize = 200;

/// Gives descriptors away, in order; they stay open here, too.
pub fn send_fds(stream: &UnixStream, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let fds: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    for some in fds.chunks(AT_ONCE) {
        let control = [ControlMessage::ScmRights(some)];
        let data = [IoSlice::new(&[0])];
        sendmsg::<()>(stream.as_raw_fd(), &data, &control, MsgFlags::empty(), None)?;
    }
    Ok(())
}

/// Takes so many descriptors, in order. What was read of the stream before must not have been more than
/// what came before them.
pub fn receive_fds(stream: &UnixStream, count: usize) -> io::Result<Vec<OwnedFd>> {
    let mut fds = Vec::with_capacity(count);
    while fds.len() < count {
        let mut byte = [0];
        let mut data = [IoSliceMut::new(&mut byte)];
        let mut space = nix::cmsg_space!([RawFd; AT_ONCE]);
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<()>(stream.as_raw_fd(), &mut data, Some(&mut space), flags)?;
        let mut some = 0;
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(raw) = control {
                some += raw.len();
                // SAFETY: the kernel made these descriptors for this process, and nobody else has them.
                fds.extend(
                    raw.into_iter()
                        .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }),
                );
            }
        }
        if some == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(fds)
}
