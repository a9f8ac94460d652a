//! A router's leg outside, as far as somebody who asks for its address has to see of it: DHCP and
//! nothing else.

use crate::error::{Cause, Doing, Error};
use crate::netns::{Netns, on_own_thread};
use crate::packet::{attach_filter, link_address, wait_for};
use model::{IfName, NetnsName};
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, bind, recv, send, socket};
use nix::sys::stat::fstat;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

/// What a link outside carries.
const FRAME_BYTES: usize = 2048;
const ETHERTYPE_IPV4: u16 = 0x0800;
const UDP: u32 = 17;
const CLIENT_PORT: u32 = 68;

/// UDP to the port of DHCP's clients, in IPv4 packets that are no fragments: the router forwards all
/// others without waking anybody. `| code | jump if true | jump if not | operand |`
const FILTER: [libc::sock_filter; 9] = {
    const fn line(code: u32, yes: u8, no: u8, operand: u32) -> libc::sock_filter {
        libc::sock_filter {
            code: code as u16,
            jt: yes,
            jf: no,
            k: operand,
        }
    }
    use libc::{
        BPF_ABS, BPF_B, BPF_H, BPF_IND, BPF_JEQ, BPF_JMP, BPF_JSET, BPF_K, BPF_LD, BPF_LDX,
        BPF_MSH, BPF_RET,
    };
    [
        line(BPF_LD | BPF_B | BPF_ABS, 0, 0, 14 + 9),
        line(BPF_JMP | BPF_JEQ | BPF_K, 0, 6, UDP),
        line(BPF_LD | BPF_H | BPF_ABS, 0, 0, 14 + 6),
        line(BPF_JMP | BPF_JSET | BPF_K, 4, 0, 0x1fff),
        line(BPF_LDX | BPF_B | BPF_MSH, 0, 0, 14),
        line(BPF_LD | BPF_H | BPF_IND, 0, 0, 14 + 2),
        line(BPF_JMP | BPF_JEQ | BPF_K, 0, 1, CLIENT_PORT),
        line(BPF_RET | BPF_K, 0, 0, FRAME_BYTES as u32),
        line(BPF_RET | BPF_K, 0, 0, 0),
    ]
};

/// A packet socket on a router's leg outside. Never waits.
#[derive(Debug)]
pub struct OuterSocket {
    socket: OwnedFd,
    place: Place,
}

/// Which interface of which namespace it is: both may be removed and made anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    inode: u64,
    index: u32,
}

impl OuterSocket {
    /// Opens one; none if the interface is not there.
    pub fn open(netns: &NetnsName, link: &IfName) -> Result<Option<Self>, Error> {
        let opened = in_place(netns, link, |place| {
            let socket = open_on(place.index)?;
            Ok(Self { socket, place })
        });
        opened.doing(|| format!("listen for DHCP at {link} in namespace {netns}"))
    }

    /// True if the interface is still the same.
    pub fn is_current(&self, netns: &NetnsName, link: &IfName) -> bool {
        let place = in_place(netns, link, Ok);
        matches!(place, Ok(Some(place)) if place == self.place)
    }

    /// Sends a frame. What is not taken now is lost, as frames may be.
    pub fn send(&self, frame: &[u8]) -> Result<(), Error> {
        match send(self.socket.as_raw_fd(), frame, MsgFlags::empty()) {
            Err(nix::Error::EAGAIN | nix::Error::ENOBUFS | nix::Error::ENETDOWN) => Ok(()),
            other => other.map(drop).map_err(Cause::from).doing(sending),
        }
    }

    /// A frame that came in, if there is one.
    pub fn receive(&self) -> Result<Option<Vec<u8>>, Error> {
        let mut frame = vec![0; FRAME_BYTES];
        match recv(self.socket.as_raw_fd(), &mut frame, MsgFlags::empty()) {
            Ok(length) => {
                frame.truncate(length);
                Ok(Some(frame))
            }
            // The interface went down: what comes later is told of as before.
            Err(nix::Error::EAGAIN | nix::Error::ENETDOWN | nix::Error::EINTR) => Ok(None),
            Err(errno) => {
                Err(Cause::from(errno)).doing(|| "take a DHCP server's answer".to_owned())
            }
        }
    }

    /// Waits until one of them has something, at most so long.
    pub fn wait<'a>(sockets: impl Iterator<Item = &'a Self>, most: Duration) -> Result<(), Error> {
        let sockets = sockets.map(|socket| socket.socket.as_fd());
        wait_for(sockets, most).doing(|| "wait for DHCP servers".to_owned())
    }
}

fn sending() -> String {
    "ask DHCP servers".to_owned()
}

/// Does something in a namespace, with the interface there; none if either is not there.
fn in_place<T: Send>(
    netns: &NetnsName,
    link: &IfName,
    work: impl FnOnce(Place) -> Result<T, Cause> + Send,
) -> Result<Option<T>, Cause> {
    let Some(found) = Netns::find(netns).map_err(|error| error.cause)? else {
        return Ok(None);
    };
    on_own_thread(|| {
        found.enter()?;
        let Ok(index) = if_nametoindex(link.as_str()) else {
            return Ok(None);
        };
        let inode = fstat(found.as_fd())?.st_ino;
        work(Place { inode, index }).map(Some)
    })
}

fn open_on(index: u32) -> Result<OwnedFd, Cause> {
    // With no protocol it hears nothing before it has its filter.
    let socket = socket(
        AddressFamily::Packet,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        None,
    )?;
    attach_filter(socket.as_fd(), &FILTER)?;
    bind(socket.as_raw_fd(), &link_address(index, ETHERTYPE_IPV4)?)?;
    Ok(socket)
}
