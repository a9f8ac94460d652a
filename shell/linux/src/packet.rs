//! Packet sockets: frames that the host itself sends, out of interfaces and past bridges, and frames that
//! pass an interface.

use crate::error::Cause;
use host_plan::{Greeting, tagged};
use model::IfName;
use nix::net::if_::{if_indextoname, if_nametoindex};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, LinkAddr, SockFlag, SockType, SockaddrLike, socket};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

/// A socket that frames are sent with.
#[derive(Debug)]
pub(crate) struct Sender(OwnedFd);

impl Sender {
    pub(crate) fn open() -> Result<Self, Cause> {
        Ok(Self(socket(
            AddressFamily::Packet,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            // Bound to no protocol it receives nothing.
            None,
        )?))
    }

    /// Sends a frame out of an interface. False if the interface is gone or down, or its queue is full: nothing depends on a single
    /// frame.
    pub(crate) fn send(&self, link: &IfName, frame: &[u8]) -> Result<bool, Cause> {
        let Ok(index) = if_nametoindex(link.as_str()) else {
            return Ok(false);
        };
        self.send_by(index, frame)
    }

    /// The same by the interface's number.
    pub(crate) fn send_by(&self, index: u32, frame: &[u8]) -> Result<bool, Cause> {
        match send_to(self.0.as_raw_fd(), index, frame) {
            Ok(()) => Ok(true),
            Err(
                nix::Error::ENETDOWN
                | nix::Error::ENXIO
                | nix::Error::ENODEV
                | nix::Error::ENOBUFS
                | nix::Error::EAGAIN,
            ) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// Waits until one of the sockets has something, at most so long.
pub(crate) fn wait_for<'a>(
    sockets: impl Iterator<Item = BorrowedFd<'a>>,
    most: Duration,
) -> Result<(), Cause> {
    let mut ready: Vec<PollFd<'_>> = sockets
        .map(|socket| PollFd::new(socket, PollFlags::POLLIN))
        .collect();
    let timeout = PollTimeout::try_from(most).unwrap_or(PollTimeout::MAX);
    match poll(&mut ready, timeout) {
        Ok(_) | Err(nix::Error::EINTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Sends each frame out of each interface.
pub(crate) fn send(greeting: &Greeting) -> Result<(), Cause> {
    let sender = Sender::open()?;
    for (link, vlan) in &greeting.links {
        for frame in &greeting.frames {
            match vlan {
                None => sender.send(link, frame)?,
                Some(vlan) => sender.send(link, &tagged(frame, *vlan))?,
            };
        }
    }
    Ok(())
}

/// The name of an interface now, if it is still there.
pub(crate) fn name_of(index: u32) -> Option<IfName> {
    let name = if_indextoname(index).ok()?;
    IfName::new(name.to_str().ok()?).ok()
}

fn send_to(socket: i32, index: u32, frame: &[u8]) -> nix::Result<()> {
    let mut address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: 0,
        sll_ifindex: i32::try_from(index).map_err(|_| nix::Error::ENODEV)?,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 6,
        sll_addr: [0; 8],
    };
    let (destination, rest) = frame.split_first_chunk::<6>().ok_or(nix::Error::EINVAL)?;
    address.sll_addr[..6].copy_from_slice(destination);
    let kind = rest.get(6..8).ok_or(nix::Error::EINVAL)?;
    address.sll_protocol = u16::from_ne_bytes([kind[0], kind[1]]);
    let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the frame and the address live during the call, and their lengths are given.
    let sent = unsafe {
        libc::sendto(
            socket,
            frame.as_ptr().cast(),
            frame.len(),
            0,
            (&raw const address).cast(),
            length,
        )
    };
    nix::errno::Errno::result(sent).map(drop)
}

/// What a packet socket is bound to: what an interface receives of a protocol.
pub(crate) fn link_address(index: u32, ethertype: u16) -> Result<LinkAddr, Cause> {
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: ethertype.to_be(),
        sll_ifindex: i32::try_from(index).map_err(|_| Cause::kernel(libc::ENODEV))?,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: it is a whole address of the family that it names.
    let address = unsafe { LinkAddr::from_raw((&raw const address).cast(), Some(length)) };
    address.ok_or(Cause::Garbled("an address of a link"))
}

/// Has the kernel look at what comes to a socket first.
pub(crate) fn attach_filter(
    socket: BorrowedFd<'_>,
    lines: &[libc::sock_filter],
) -> Result<(), Cause> {
    let program = libc::sock_fprog {
        len: lines.len() as u16,
        filter: lines.as_ptr().cast_mut(),
    };
    // SAFETY: the kernel copies the program, whose length is given, during the call.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    Ok(nix::errno::Errno::result(done).map(drop)?)
}

/// Has the kernel say which tag a frame had, as it takes it out of the frame.
pub(crate) fn set_auxdata(socket: BorrowedFd<'_>) -> nix::Result<()> {
    let on = 1_i32;
    // SAFETY: the descriptor is open for the borrow, and the pointer and length are of a live i32.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_AUXDATA,
            (&raw const on).cast(),
            size_of::<i32>() as libc::socklen_t,
        )
    };
    nix::errno::Errno::result(done).map(drop)
}

/// What came and what was dropped since it was last asked.
pub(crate) fn statistics(socket: BorrowedFd<'_>) -> nix::Result<libc::tpacket_stats> {
    let mut counts = libc::tpacket_stats {
        tp_packets: 0,
        tp_drops: 0,
    };
    let mut length = size_of::<libc::tpacket_stats>() as libc::socklen_t;
    // SAFETY: the descriptor is open, and the pointers are of live counts and their length.
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            (&raw mut counts).cast(),
            &raw mut length,
        )
    };
    nix::errno::Errno::result(done).map(|_| counts)
}

/// What is told of a frame beside its bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Received {
    /// Its own, which may be more than there was room for.
    pub(crate) length: usize,
    /// `| ethertype 2 | priority, VLAN 2 |`, if it had one and it was taken out.
    pub(crate) tag: Option<[u8; 4]>,
    /// Since 1970, where the socket was asked to tell (`SO_TIMESTAMPNS`).
    pub(crate) at: Duration,
    /// The interface sent it.
    pub(crate) sent: bool,
}

/// Takes a frame from a packet socket, without waiting.
pub(crate) fn receive(socket: BorrowedFd<'_>, into: &mut [u8]) -> nix::Result<Received> {
    // Room for a time and a tag, each behind its header of 16 bytes, aligned as headers are.
    let mut control = [0_u64; 16];
    let mut part = libc::iovec {
        iov_base: into.as_mut_ptr().cast(),
        iov_len: into.len(),
    };
    // SAFETY: all three are plain numbers and pointers; all zeroes is valid.
    let (mut from, mut message): (libc::sockaddr_ll, libc::msghdr) = unsafe { std::mem::zeroed() };
    message.msg_name = (&raw mut from).cast();
    message.msg_namelen = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control) as _;
    let flags = libc::MSG_DONTWAIT | libc::MSG_TRUNC;
    // SAFETY: what the message points to lives during the call, with the lengths that it has.
    let length = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, flags) };
    let length = nix::errno::Errno::result(length)?;
    let mut received = Received {
        length: length as usize,
        tag: None,
        at: Duration::ZERO,
        sent: from.sll_pkttype == libc::PACKET_OUTGOING,
    };
    // SAFETY: the kernel has written whole control messages, as many bytes as the message now says.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    // SAFETY: it is null, or points to a header in `control`.
    while let Some(header) = unsafe { next.as_ref() } {
        // SAFETY: the data of a control message comes after its header.
        let data = unsafe { libc::CMSG_DATA(next) };
        match (header.cmsg_level, header.cmsg_type) {
            (libc::SOL_SOCKET, libc::SCM_TIMESTAMPNS) => {
                // SAFETY: it is what the kernel sends with this type, wherever it is.
                let at: libc::timespec = unsafe { data.cast::<libc::timespec>().read_unaligned() };
                received.at = Duration::new(at.tv_sec as u64, at.tv_nsec as u32);
            }
            (libc::SOL_PACKET, libc::PACKET_AUXDATA) => {
                // SAFETY: as above.
                let told = unsafe { data.cast::<libc::tpacket_auxdata>().read_unaligned() };
                received.tag = tag(&told);
            }
            _ => {}
        }
        // SAFETY: `next` is a header in `control`, which is as the kernel has written it.
        next = unsafe { libc::CMSG_NXTHDR(&raw const message, next) };
    }
    Ok(received)
}

fn tag(told: &libc::tpacket_auxdata) -> Option<[u8; 4]> {
    if told.tp_status & libc::TP_STATUS_VLAN_VALID == 0 {
        return None;
    }
    let kind = match told.tp_status & libc::TP_STATUS_VLAN_TPID_VALID {
        0 => 0x8100,
        _ => told.tp_vlan_tpid,
    };
    let [[a, b], [c, d]] = [kind.to_be_bytes(), told.tp_vlan_tci.to_be_bytes()];
    Some([a, b, c, d])
}
