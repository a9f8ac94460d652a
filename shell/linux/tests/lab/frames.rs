//! Frames, made by hand, sent and received as they are.

use super::{SOON, mac};
use model::MacAddr;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// An AF_PACKET socket on an interface of the thread's namespace.
pub struct Wire(OwnedFd);

static ON: i32 = 1;

impl Wire {
    pub fn open(device: &str) -> Wire {
        let protocol = (libc::ETH_P_ALL as u16).to_be();
        let flags = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
        // Without a protocol it hears nothing until it is bound, when it is told what to leave out.
        // SAFETY: a system call without pointers.
        let fd = unsafe { libc::socket(libc::AF_PACKET, flags, 0) };
        assert!(fd >= 0, "AF_PACKET: {}", std::io::Error::last_os_error());
        // SAFETY: the descriptor is new and nothing else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        /// `PACKET_IGNORE_OUTGOING`: what the listener's own system says is not what it heard.
        const IGNORE_OUTGOING: i32 = 23;
        // SAFETY: the pointer and length are of a live i32.
        let set = unsafe {
            libc::setsockopt(
                fd.as_raw_fd(),
                libc::SOL_PACKET,
                IGNORE_OUTGOING,
                (&raw const ON).cast(),
                size_of::<i32>() as u32,
            )
        };
        assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
        // SAFETY: `sockaddr_ll` is plain numbers; all zeroes is valid.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = protocol;
        address.sll_ifindex = nix::net::if_::if_nametoindex(device).unwrap() as i32;
        // SAFETY: the pointer and length are of a live `sockaddr_ll`.
        let bound = unsafe {
            libc::bind(
                fd.as_raw_fd(),
                (&raw const address).cast(),
                size_of::<libc::sockaddr_ll>() as u32,
            )
        };
        assert_eq!(bound, 0, "bind: {}", std::io::Error::last_os_error());
        let timeout = nix::sys::time::TimeVal::new(SOON.as_secs() as i64, 0);
        nix::sys::socket::setsockopt(&fd, nix::sys::socket::sockopt::ReceiveTimeout, &timeout)
            .unwrap();
        Wire(fd)
    }

    pub fn send(&self, frame: &[u8]) {
        let flags = nix::sys::socket::MsgFlags::empty();
        nix::sys::socket::send(self.0.as_raw_fd(), frame, flags).unwrap();
    }

    /// Frames that arrive before `last` does, which must.
    pub fn until(&self, last: &[u8]) -> Vec<Vec<u8>> {
        let mut frames = self.until_one(|frame| frame == last);
        frames.pop();
        frames
    }

    /// Frames that arrive up to the first like this one, which must come and is the last.
    pub fn until_one(&self, wanted: impl Fn(&[u8]) -> bool) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        loop {
            let mut buffer = [0; 2048];
            let flags = nix::sys::socket::MsgFlags::empty();
            let length = nix::sys::socket::recv(self.0.as_raw_fd(), &mut buffer, flags)
                .unwrap_or_else(|error| {
                    panic!("the last frame did not come ({error}); before: {frames:x?}")
                });
            frames.push(buffer[..length].to_vec());
            if wanted(&buffer[..length]) {
                return frames;
            }
        }
    }
}

pub fn ethernet(to: MacAddr, from: MacAddr, ethertype: u16, payload: &[u8]) -> Vec<u8> {
    // Not filled up to 60 bytes: where bridge-nf-call-iptables is on, the kernel cuts that off.
    [&to.0[..], &from.0, &ethertype.to_be_bytes(), payload].concat()
}

/// A broadcast with this source.
pub fn broadcast(from: MacAddr, ethertype: u16, payload: &[u8]) -> Vec<u8> {
    ethernet(MacAddr::BROADCAST, from, ethertype, payload)
}

pub fn arp(operation: u16, sender: MacAddr, sender_ip: &str, target_ip: &str) -> Vec<u8> {
    let sender_ip: Ipv4Addr = sender_ip.parse().unwrap();
    let target_ip: Ipv4Addr = target_ip.parse().unwrap();
    [
        &[0, 1, 8, 0, 6, 4][..],
        &operation.to_be_bytes(),
        &sender.0,
        &sender_ip.octets(),
        &[0; 6],
        &target_ip.octets(),
    ]
    .concat()
}

pub fn ipv4_udp(from: &str, to: &str, from_port: u16, to_port: u16) -> Vec<u8> {
    let from: Ipv4Addr = from.parse().unwrap();
    let to: Ipv4Addr = to.parse().unwrap();
    let mut header = [
        &[0x45, 0, 0, 32, 0, 0, 0, 0, 64, 17, 0, 0][..],
        &from.octets(),
        &to.octets(),
    ]
    .concat();
    let sum = checksum(&header);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    let udp = [
        &from_port.to_be_bytes()[..],
        &to_port.to_be_bytes(),
        &12_u16.to_be_bytes(),
        &[0; 6],
    ]
    .concat();
    [header, udp].concat()
}

fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| {
            u32::from(u16::from_be_bytes([
                pair[0],
                pair.get(1).copied().unwrap_or(0),
            ]))
        })
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

pub fn ipv6(from: &str, to: &str, next: u8, payload: &[u8]) -> Vec<u8> {
    let from: Ipv6Addr = from.parse().unwrap();
    let to: Ipv6Addr = to.parse().unwrap();
    let length = (payload.len() as u16).to_be_bytes();
    [
        &[0x60, 0, 0, 0][..],
        &length,
        &[next, 255],
        &from.octets(),
        &to.octets(),
        payload,
    ]
    .concat()
}

/// A neighbour solicitation (135) or advertisement (136) of `target`, with these options.
pub fn nd(kind: u8, from: &str, to: &str, target: &str, options: &[u8]) -> Vec<u8> {
    let target: Ipv6Addr = target.parse().unwrap();
    let body = [&[kind, 0, 0, 0, 0, 0, 0, 0][..], &target.octets(), options].concat();
    ipv6(from, to, 58, &body)
}

/// A link-layer address option: 1 of the source, 2 of the target.
pub fn link_layer(kind: u8, address: MacAddr) -> Vec<u8> {
    [&[kind, 1][..], &address.0].concat()
}

/// What NIC n may always send: the end of a row of frames.
pub fn last(n: u8) -> Vec<u8> {
    broadcast(
        mac(n),
        0x0806,
        &arp(1, mac(n), &format!("10.0.0.{n}"), "10.0.0.250"),
    )
}
