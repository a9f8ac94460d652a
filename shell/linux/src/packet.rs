//! Frames that the host itself sends: out of interfaces, past bridges.

use crate::error::Cause;
use host_plan::{Greeting, tagged};
use model::IfName;
use nix::net::if_::{if_indextoname, if_nametoindex};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use std::os::fd::{AsRawFd, OwnedFd};

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
