//! Frames that pass an interface, copied as they pass.

use crate::error::{Cause, Doing, Error};
use crate::packet::{attach_filter, link_address, receive, set_auxdata, statistics, wait_for};
use model::IfName;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, bind, setsockopt, socket, sockopt};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

/// What is kept of a frame: all of any but of those that hold many segments, beyond 64 KiB.
const FRAME_BYTES: usize = 65_536 + 256;
/// For bursts, while who captures writes.
const BUFFER_BYTES: usize = 16 * 1024 * 1024;
const ETHERTYPE_IPV6: u32 = 0x86dd;
const ETHERTYPE_IPV4: u32 = 0x0800;
const UDP: u32 = 17;

/// What of an interface is captured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// Everything.
    All,
    /// What is sent to a UDP port, over IPv4 in packets that are no fragments, over IPv6 without extension
    /// headers. The kernel wakes nobody for the rest.
    UdpTo(u16),
}

/// A packet socket on an interface. Never waits. Where it is gone, nothing passes any more.
#[derive(Debug)]
pub struct Capture {
    socket: OwnedFd,
    frame: Vec<u8>,
    lost: u64,
}

/// A frame that passed.
#[derive(Debug)]
pub struct Passed<'a> {
    /// Since 1970.
    pub at: Duration,
    /// The interface sent it; it received it otherwise.
    pub sent: bool,
    /// With its tag, if it has one.
    pub bytes: &'a [u8],
    /// How long it was.
    pub length: usize,
}

impl Capture {
    /// Begins to copy what passes an interface of this thread's namespace.
    pub fn open(link: &IfName, which: Which) -> Result<Self, Error> {
        open(link, which).doing(|| format!("capture frames at {link}"))
    }

    /// A frame that passed, if there is one.
    pub fn receive(&mut self) -> Result<Option<Passed<'_>>, Error> {
        self.next()
            .doing(|| "take a frame that was captured".to_owned())
    }

    /// Frames that nobody took in time, since it began.
    pub fn lost(&mut self) -> u64 {
        // The kernel begins again with each question.
        if let Ok(counts) = statistics(self.socket.as_fd()) {
            self.lost += u64::from(counts.tp_drops);
        }
        self.lost
    }

    /// Waits until one of them has something, at most so long.
    pub fn wait<'a>(captures: impl Iterator<Item = &'a Self>, most: Duration) -> Result<(), Error> {
        let sockets = captures.map(|capture| capture.socket.as_fd());
        wait_for(sockets, most).doing(|| "wait for frames".to_owned())
    }

    fn next(&mut self) -> Result<Option<Passed<'_>>, Cause> {
        // A tag is put before what it was taken out of, so there is room for it in front.
        const TAG_BYTES: usize = 4;
        let received = receive(self.socket.as_fd(), &mut self.frame[TAG_BYTES..]);
        let packet = match received {
            Ok(packet) => packet,
            // The interface went down: what comes later is told of as before.
            Err(nix::Error::EAGAIN | nix::Error::ENETDOWN | nix::Error::EINTR) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
        let kept = packet.length.min(FRAME_BYTES);
        let tag = packet.tag.filter(|_| kept >= 14);
        let (start, tag_bytes) = match tag {
            None => (TAG_BYTES, 0),
            Some(tag) => {
                self.frame.copy_within(TAG_BYTES..TAG_BYTES + 12, 0);
                self.frame[12..16].copy_from_slice(&tag);
                (0, TAG_BYTES)
            }
        };
        Ok(Some(Passed {
            at: packet.at,
            sent: packet.sent,
            bytes: &self.frame[start..TAG_BYTES + kept],
            length: packet.length + tag_bytes,
        }))
    }
}

fn open(link: &IfName, which: Which) -> Result<Capture, Cause> {
    let index = if_nametoindex(link.as_str())?;
    // With no protocol it hears nothing before it has its filter.
    let socket = socket(
        AddressFamily::Packet,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        None,
    )?;
    setsockopt(&socket, sockopt::RcvBufForce, &BUFFER_BYTES)?;
    setsockopt(&socket, sockopt::ReceiveTimestampns, &true)?;
    set_auxdata(socket.as_fd())?;
    if let Which::UdpTo(port) = which {
        attach_filter(socket.as_fd(), &udp_to(port))?;
    }
    bind(
        socket.as_raw_fd(),
        &link_address(index, libc::ETH_P_ALL as u16)?,
    )?;
    Ok(Capture {
        socket,
        frame: vec![0; FRAME_BYTES + 4],
        lost: 0,
    })
}

/// `| code | jump if true | jump if not | operand |`. A tag is not in the bytes here.
fn udp_to(port: u16) -> [libc::sock_filter; 16] {
    use libc::{
        BPF_ABS, BPF_B, BPF_H, BPF_IND, BPF_JEQ, BPF_JMP, BPF_JSET, BPF_K, BPF_LD, BPF_LDX,
        BPF_MSH, BPF_RET,
    };
    let line = |code: u32, yes: u8, no: u8, operand: u32| libc::sock_filter {
        code: code as u16,
        jt: yes,
        jf: no,
        k: operand,
    };
    let equals = |operand, yes, no| line(BPF_JMP | BPF_JEQ | BPF_K, yes, no, operand);
    [
        line(BPF_LD | BPF_H | BPF_ABS, 0, 0, 12),
        equals(ETHERTYPE_IPV6, 8, 0),
        equals(ETHERTYPE_IPV4, 0, 12),
        line(BPF_LD | BPF_B | BPF_ABS, 0, 0, 14 + 9),
        equals(UDP, 0, 10),
        line(BPF_LD | BPF_H | BPF_ABS, 0, 0, 14 + 6),
        line(BPF_JMP | BPF_JSET | BPF_K, 8, 0, 0x1fff),
        line(BPF_LDX | BPF_B | BPF_MSH, 0, 0, 14),
        line(BPF_LD | BPF_H | BPF_IND, 0, 0, 14 + 2),
        equals(port.into(), 4, 5),
        line(BPF_LD | BPF_B | BPF_ABS, 0, 0, 14 + 6),
        equals(UDP, 0, 3),
        line(BPF_LD | BPF_H | BPF_ABS, 0, 0, 14 + 40 + 2),
        equals(port.into(), 0, 1),
        line(BPF_RET | BPF_K, 0, 0, u32::MAX),
        line(BPF_RET | BPF_K, 0, 0, 0),
    ]
}
