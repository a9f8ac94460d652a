//! A netlink socket: batches with acknowledgements, dumps, single questions.

use crate::attr::{self, HEADER_BYTES, Message, Received};
use crate::error::Cause;
use crate::sys;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, getsockname,
    recv, send, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Datagrams of a dump are at most 32 KiB (`netlink_dump` in the kernel).
const DATAGRAM_BYTES: usize = 64 * 1024;
/// What one `send` carries. The answers of a whole one wait in the receive buffer.
const SEND_BYTES: usize = 96 * 1024;
const SEND_MESSAGES: usize = 512;
/// An acknowledgement occupies about 1 KiB of it, whatever its length.
const BUFFER_BYTES: usize = 8 * 1024 * 1024;
/// Times that a dump is begun again because something changed under it.
const DUMP_ATTEMPTS: u32 = 20;
/// `NLM_F_DUMP_INTR`: the dump is not consistent.
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_CAPPED: u16 = 0x100;
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSGERR_ATTR_MSG: u16 = 1;

/// A netlink socket of the namespace of the thread that opened it.
#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Socket {
    pub(crate) fn route() -> Result<Self, Cause> {
        Self::open(SockProtocol::NetlinkRoute)
    }

    pub(crate) fn netfilter() -> Result<Self, Cause> {
        Self::open(SockProtocol::NetlinkNetFilter)
    }

    fn open(protocol: SockProtocol) -> Result<Self, Cause> {
        let fd = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            protocol,
        )?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        for option in [
            libc::NETLINK_EXT_ACK,
            libc::NETLINK_CAP_ACK,
            libc::NETLINK_GET_STRICT_CHK,
        ] {
            sys::set_netlink_option(fd.as_fd(), option, 1)?;
        }
        setsockopt(&fd, sockopt::RcvBufForce, &BUFFER_BYTES)?;
        setsockopt(&fd, sockopt::SndBuf, &BUFFER_BYTES)?;
        // The kernel has answered when `send` returns; this only keeps a bug from hanging us.
        setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::new(10, 0))?;
        Ok(Self {
            fd,
            sequence: 0,
            buffer: vec![0; DATAGRAM_BYTES],
        })
    }

    /// Sends requests in order, as few system calls as possible, and gives each its answer. The
    /// kernel works on all of them, whether or not an earlier one failed. It tells of failures
    /// without being asked; that all went well it says once for what is sent together, which halves
    /// the cost of a row.
    pub(crate) fn transact(&mut self, requests: &mut [Message]) -> Vec<Result<(), Cause>> {
        self.send_all(requests, false, |_, _| {})
    }

    /// The same for questions; `answer` gets the position of the question and its answer's payload.
    pub(crate) fn ask(
        &mut self,
        requests: &mut [Message],
        answer: impl FnMut(usize, &[u8]),
    ) -> Vec<Result<(), Cause>> {
        self.send_all(requests, true, answer)
    }

    fn send_all(
        &mut self,
        requests: &mut [Message],
        acknowledge_each: bool,
        mut answer: impl FnMut(usize, &[u8]),
    ) -> Vec<Result<(), Cause>> {
        let mut results = Vec::with_capacity(requests.len());
        let mut rest = requests;
        while !rest.is_empty() {
            let first = self.sequence.wrapping_add(1);
            let done = results.len();
            let mut datagram = Vec::new();
            let mut count = 0;
            let most = rest.len().min(SEND_MESSAGES);
            while count < most && datagram.len() < SEND_BYTES {
                self.sequence = self.sequence.wrapping_add(1);
                let request = &mut rest[count];
                count += 1;
                let last = count == most || datagram.len() + request.len() >= SEND_BYTES;
                if acknowledge_each || last {
                    request.add_flags(libc::NLM_F_ACK);
                }
                datagram.extend_from_slice(request.finish(self.sequence));
            }
            let mut chunk: Vec<Option<Result<(), Cause>>> = Vec::new();
            chunk.resize_with(count, || None);
            let failure = self
                .exchange(&datagram, |message| {
                    let position = message.sequence.wrapping_sub(first) as usize;
                    if position >= count {
                        return false;
                    }
                    if i32::from(message.kind) == libc::NLMSG_ERROR {
                        chunk[position] = Some(acknowledgement(message));
                        // The kernel takes them in order: with the last, all are done.
                        return position + 1 == count;
                    }
                    answer(done + position, message.payload);
                    false
                })
                .err();
            // A failed system call leaves the answers of the rest unknown.
            let silent = |_| match &failure {
                None => Ok(()),
                Some(cause) => Err(Cause::kernel(cause.errno().unwrap_or(libc::EIO))),
            };
            results.extend(
                chunk
                    .into_iter()
                    .map(|result| result.ok_or(()).unwrap_or_else(silent)),
            );
            rest = &mut rest[count..];
        }
        results
    }

    /// One request.
    pub(crate) fn request(&mut self, mut request: Message) -> Result<(), Cause> {
        self.transact(std::slice::from_mut(&mut request))
            .pop()
            .expect("one request has one result")
    }

    /// One question.
    pub(crate) fn get(
        &mut self,
        mut request: Message,
        mut answer: impl FnMut(&[u8]),
    ) -> Result<(), Cause> {
        self.ask(std::slice::from_mut(&mut request), |_, payload| {
            answer(payload);
        })
        .pop()
        .expect("one request has one result")
    }

    /// Asks for a table; `row` gets the type and payload of each message. Begins again if the table
    /// changed meanwhile, so `row` only sees a consistent one.
    pub(crate) fn dump(
        &mut self,
        mut request: Message,
        mut row: impl FnMut(u16, &[u8]),
    ) -> Result<(), Cause> {
        request.add_flags(libc::NLM_F_DUMP);
        let mut rows = Vec::new();
        for _ in 0..DUMP_ATTEMPTS {
            rows.clear();
            if self.dump_once(&mut request, &mut rows)? {
                for message in attr::messages(&rows) {
                    row(message.kind, message.payload);
                }
                return Ok(());
            }
        }
        Err(Cause::Kernel {
            errno: libc::EAGAIN,
            text: Some("the table changes faster than it can be read".into()),
        })
    }

    /// False if it was interrupted.
    fn dump_once(&mut self, request: &mut Message, rows: &mut Vec<u8>) -> Result<bool, Cause> {
        self.sequence = self.sequence.wrapping_add(1);
        let sequence = self.sequence;
        let bytes = request.finish(sequence).to_vec();
        let mut consistent = true;
        let mut outcome = Ok(());
        self.exchange(&bytes, |message| {
            if message.sequence != sequence {
                return false;
            }
            consistent &= message.flags & NLM_F_DUMP_INTR == 0;
            match i32::from(message.kind) {
                libc::NLMSG_DONE => {
                    outcome = match attr::u32(message.payload).unwrap_or(0) as i32 {
                        0 => Ok(()),
                        errno => Err(Cause::Kernel {
                            errno: errno.wrapping_neg(),
                            text: extended(message.payload.get(4..).unwrap_or_default()),
                        }),
                    };
                    true
                }
                libc::NLMSG_ERROR => {
                    outcome = acknowledgement(message);
                    true
                }
                _ => {
                    append(rows, message);
                    false
                }
            }
        })?;
        match outcome {
            Ok(()) => Ok(consistent),
            Err(cause) if cause.errno() == Some(libc::EINTR) => Ok(false),
            Err(cause) => Err(cause),
        }
    }

    /// Sends a datagram and hands over what comes until `done` says so.
    pub(crate) fn exchange(
        &mut self,
        datagram: &[u8],
        mut done: impl FnMut(Received<'_>) -> bool,
    ) -> Result<(), Cause> {
        send(self.fd.as_raw_fd(), datagram, MsgFlags::empty())?;
        loop {
            let length = match recv(self.fd.as_raw_fd(), &mut self.buffer, MsgFlags::MSG_TRUNC) {
                Err(nix::Error::EINTR) => continue,
                other => other?,
            };
            let Some(bytes) = self.buffer.get(..length) else {
                return Err(Cause::Garbled("a datagram of more than 64 KiB"));
            };
            let mut finished = false;
            for message in attr::messages(bytes) {
                finished |= done(message);
            }
            if finished {
                return Ok(());
            }
        }
    }

    /// Waits for a datagram, ten seconds at most (`EAGAIN`), and hands over its messages.
    pub(crate) fn receive(&mut self, mut each: impl FnMut(Received<'_>)) -> Result<(), Cause> {
        let length = match recv(self.fd.as_raw_fd(), &mut self.buffer, MsgFlags::MSG_TRUNC) {
            Err(nix::Error::EINTR) => return Ok(()),
            other => other?,
        };
        let bytes = self.buffer.get(..length).unwrap_or_default();
        attr::messages(bytes).for_each(&mut each);
        Ok(())
    }

    /// The address of this socket: notifications of what it did carry it.
    pub(crate) fn port(&self) -> Result<u32, Cause> {
        Ok(getsockname::<NetlinkAddr>(self.fd.as_raw_fd())?.pid())
    }

    /// The next sequence number, for batches built elsewhere.
    pub(crate) fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn append(rows: &mut Vec<u8>, message: Received<'_>) {
    let length = HEADER_BYTES + message.payload.len();
    rows.extend_from_slice(&(length as u32).to_ne_bytes());
    rows.extend_from_slice(&message.kind.to_ne_bytes());
    rows.extend_from_slice(&[0; 10]);
    rows.extend_from_slice(message.payload);
    rows.resize(rows.len().next_multiple_of(4), 0);
}

/// `struct nlmsgerr`: `| error 4 | the request's header 16 | its payload unless capped | TLVs |`.
pub(crate) fn acknowledgement(message: Received<'_>) -> Result<(), Cause> {
    let errno = attr::u32(message.payload).unwrap_or(0) as i32;
    if errno == 0 {
        return Ok(());
    }
    let mut tlvs = 4 + HEADER_BYTES;
    if message.flags & NLM_F_CAPPED == 0 {
        let echoed = attr::u32(message.payload.get(4..).unwrap_or_default()).unwrap_or(0) as usize;
        tlvs = tlvs.max(4_usize.saturating_add(echoed).next_multiple_of(4));
    }
    let text = (message.flags & NLM_F_ACK_TLVS != 0)
        .then(|| extended(message.payload.get(tlvs..).unwrap_or_default()))
        .flatten();
    Err(Cause::Kernel {
        errno: errno.wrapping_neg(),
        text,
    })
}

fn extended(tlvs: &[u8]) -> Option<String> {
    attr::attribute(tlvs, NLMSGERR_ATTR_MSG)
        .and_then(attr::text)
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn garbled_acknowledgements_never_panic(
            flags: u16, payload in proptest::collection::vec(any::<u8>(), 0..80)
        ) {
            let message = Received { kind: 2, flags, sequence: 1, port: 0, payload: &payload };
            drop(acknowledgement(message));
        }
    }

    #[test]
    fn the_kernels_own_words_are_read() {
        let mut payload = (-95_i32).to_ne_bytes().to_vec();
        payload.extend_from_slice(&[0; 16]);
        payload.extend_from_slice(&[9, 0, 1, 0, b'n', b'o', b'p', b'e', 0, 0, 0, 0]);
        let message = Received {
            kind: 2,
            flags: NLM_F_CAPPED | NLM_F_ACK_TLVS,
            sequence: 1,
            port: 0,
            payload: &payload,
        };
        let cause = acknowledgement(message).unwrap_err();
        assert_eq!(cause.errno(), Some(libc::EOPNOTSUPP));
        assert!(cause.to_string().starts_with("nope: "), "{cause}");
    }
}
