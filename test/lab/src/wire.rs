//! Sockets inside a lab's namespaces, held by the test: a socket stays in the namespace that it was
//! opened in, whoever uses it. Frames go out and come in as they are.

use crate::{LIMIT, Lab, vpc};
use nix::ifaddrs::getifaddrs;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, bind, recvfrom, send,
    setsockopt, socket, sockopt,
};
use serde_json::Value;
use std::fs::File;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, OwnedFd};
use testkit::eventually;

/// `sll_pkttype` of what this system itself sends.
const OUTGOING: u8 = 4;
/// The most that a frame has here.
const FRAME_MAX: usize = 65_536;

/// Two bytes of an Ethernet header.
pub const IPV4: u16 = 0x0800;
/// Two bytes of an Ethernet header.
pub const ARP: u16 = 0x0806;
/// Two bytes of an Ethernet header.
pub const IPV6: u16 = 0x86dd;
/// Everyone on a segment.
pub const BROADCAST: Mac = [0xff; 6];

/// A MAC address.
pub type Mac = [u8; 6];

impl Lab {
    /// Runs `work` on a thread in the network of a host (`c1`), of a workload (`c1/a1`) or of the
    /// lab's switches (`underlay`).
    ///
    /// # Panics
    /// If there is no such place, or `work` panics.
    pub fn inside<T: Send>(&self, place: &str, work: impl FnOnce() -> T + Send) -> T {
        let (host, netns) = match place.split_once('/') {
            Some((host, netns)) => (host, Some(netns)),
            None => (place, None),
        };
        let pid = self.pid(host);
        let path = match netns {
            Some(netns) => format!("/proc/{pid}/root/run/netns/{netns}"),
            None => format!("/proc/{pid}/ns/net"),
        };
        let file = File::open(&path).unwrap_or_else(|error| panic!("{place}: {path}: {error}"));
        let result = std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(&file, CloneFlags::CLONE_NEWNET).expect("root may enter its namespaces");
                work()
            });
            thread.join()
        });
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// The process that is a host.
    fn pid(&self, host: &str) -> u64 {
        let status = vpc()
            .args(["lab", "status", "--name", self.name(), "-o", "json"])
            .output()
            .expect("the vpc binary can be started");
        let status: Value = serde_json::from_slice(&status.stdout).expect("the state of the lab");
        let hosts = status["hosts"].as_array().into_iter().flatten();
        hosts
            .filter(|entry| entry["name"] == host)
            .find_map(|entry| entry["pid"].as_u64())
            .unwrap_or_else(|| panic!("no host {host} in {status}"))
    }

    /// An interface of a place: what comes in there, and frames of one's own.
    pub fn wire(&self, place: &str, device: &str) -> Wire {
        self.inside(place, || Wire::open(device))
    }
}

/// A packet socket. Never waits.
#[derive(Debug)]
pub struct Wire(OwnedFd);

impl Wire {
    fn open(device: &str) -> Self {
        let socket = socket(
            AddressFamily::Packet,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            SockProtocol::EthAll,
        )
        .expect("root may open packet sockets");
        // As much as the kernel gives: a test that misses frames proves nothing.
        let buffer = sockopt::RcvBufForce;
        setsockopt(&socket, buffer, &(16 << 20)).expect("root may have large buffers");
        let address = link_address(device);
        bind(socket.as_raw_fd(), &address).unwrap_or_else(|error| panic!("{device}: {error}"));
        let wire = Self(socket);
        // Before it was bound it heard all interfaces.
        wire.received();
        wire
    }

    /// Sends a frame.
    ///
    /// # Panics
    /// If the interface does not take it.
    pub fn send(&self, frame: &[u8]) {
        send(self.0.as_raw_fd(), frame, MsgFlags::empty()).expect("the interface takes a frame");
    }

    /// The frames that came in since the last call.
    ///
    /// # Panics
    /// If the interface is gone.
    pub fn received(&self) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        let mut buffer = vec![0; FRAME_MAX];
        loop {
            match recvfrom::<LinkAddr>(self.0.as_raw_fd(), &mut buffer) {
                Ok((length, from)) => {
                    if from.is_some_and(|from| from.pkttype() != OUTGOING) {
                        frames.push(buffer[..length].to_vec());
                    }
                }
                Err(nix::Error::EAGAIN) => return frames,
                Err(nix::Error::ENETDOWN) => {}
                Err(error) => panic!("receiving frames: {error}"),
            }
        }
    }

    /// Waits for a frame that holds these bytes; all that came in up to then.
    pub fn until(&self, what: &str, holds: &[u8]) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        eventually(what, LIMIT, || {
            frames.extend(self.received());
            match frames.iter().any(|frame| contains(frame, holds)) {
                true => Ok(()),
                false => Err(format!("{} other frames", frames.len())),
            }
        });
        frames
    }
}

/// The interface of this thread's namespace, as an address to bind to.
fn link_address(device: &str) -> LinkAddr {
    let all = getifaddrs().expect("the interfaces of this namespace");
    all.filter(|entry| entry.interface_name == device)
        .find_map(|entry| entry.address?.as_link_addr().copied())
        .unwrap_or_else(|| panic!("no interface {device} here"))
}

/// True if these bytes are in there somewhere.
pub fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window == wanted)
}

/// `02:00:00:00:00:01`
///
/// # Panics
/// If it is none.
pub fn mac(text: &str) -> Mac {
    let bytes = text.split(':').map(|part| u8::from_str_radix(part, 16));
    let bytes: Result<Vec<u8>, _> = bytes.collect();
    let bytes = bytes.ok().and_then(|bytes| bytes.try_into().ok());
    bytes.unwrap_or_else(|| panic!("{text} is no MAC"))
}

/// A whole frame.
pub fn ethernet(to: Mac, from: Mac, ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&to[..], &from, &ethertype.to_be_bytes(), payload].concat()
}

/// An ARP message: operation 1 asks, 2 answers.
pub fn arp(operation: u16, sender: Mac, sender_ip: Ipv4Addr, target_ip: Ipv4Addr) -> Vec<u8> {
    let head = [0, 1, 8, 0, 6, 4];
    let (from, to) = (sender_ip.octets(), target_ip.octets());
    [
        &head[..],
        &operation.to_be_bytes(),
        &sender,
        &from,
        &[0; 6],
        &to,
    ]
    .concat()
}

/// An IPv4 packet with a UDP datagram to port 9 (discard).
pub fn udp4(from: Ipv4Addr, to: Ipv4Addr, data: &[u8]) -> Vec<u8> {
    let udp = udp(data);
    let length = u16::try_from(20 + udp.len()).expect("a short packet");
    let mut header = vec![0x45, 0];
    header.extend(length.to_be_bytes());
    header.extend([0, 0, 0, 0, 64, 17, 0, 0]);
    header.extend(from.octets());
    header.extend(to.octets());
    let sum = checksum(&[&header]);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    [header, udp].concat()
}

/// An IPv6 packet with a UDP datagram to port 9 (discard).
pub fn udp6(from: Ipv6Addr, to: Ipv6Addr, data: &[u8]) -> Vec<u8> {
    ipv6(from, to, 17, &udp(data))
}

// No checksum: nobody looks at it.
fn udp(data: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + data.len()).expect("a short packet");
    let mut udp = vec![0, 9, 0, 9];
    udp.extend(length.to_be_bytes());
    udp.extend([0, 0]);
    udp.extend(data);
    udp
}

/// A neighbour solicitation (135) or advertisement (136) with the sender's MAC in its option.
pub fn nd(kind: u8, from: Ipv6Addr, to: Ipv6Addr, target: Ipv6Addr, sender: Mac) -> Vec<u8> {
    let flags = if kind == 136 { 0x20 } else { 0 };
    nd_message(kind, flags, (from, to), target, Some(sender))
}

/// The same with flags (RFC 4861 §4.4) and ends of its own, and perhaps without the option.
pub fn nd_message(
    kind: u8,
    flags: u8,
    (from, to): (Ipv6Addr, Ipv6Addr),
    target: Ipv6Addr,
    mac: Option<Mac>,
) -> Vec<u8> {
    let option = if kind == 136 { 2 } else { 1 };
    let mut body = vec![kind, 0, 0, 0, flags, 0, 0, 0];
    body.extend(target.octets());
    if let Some(mac) = mac {
        body.extend([option, 1]);
        body.extend(mac);
    }
    let length = u32::try_from(body.len()).expect("a short packet");
    let sum = checksum(&[
        &from.octets(),
        &to.octets(),
        &length.to_be_bytes(),
        &[0, 0, 0, 58],
        &body,
    ]);
    body[2..4].copy_from_slice(&sum.to_be_bytes());
    ipv6(from, to, 58, &body)
}

fn ipv6(from: Ipv6Addr, to: Ipv6Addr, next: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).expect("a short packet");
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend(length.to_be_bytes());
    packet.extend([next, 255]);
    packet.extend(from.octets());
    packet.extend(to.octets());
    packet.extend(payload);
    packet
}

/// RFC 1071. All parts but the last have an even length.
pub fn checksum(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let sum = words.fold(0_u32, |sum, word| {
        let low = word.get(1).copied().unwrap_or(0);
        sum + u32::from(u16::from_be_bytes([word[0], low]))
    });
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    !u16::try_from(sum).expect("it was folded")
}

/// What a frame on the underlay is.
#[derive(Debug, PartialEq, Eq)]
pub enum Outer<'a> {
    /// In a tunnel: its VNI and the frame.
    Vxlan(u32, &'a [u8]),
    /// TCP, between these ports.
    Tcp(u16, u16),
    /// Among the hosts themselves.
    Arp,
    /// Anything else.
    Other(&'a [u8]),
}

impl<'a> Outer<'a> {
    /// Reads it (RFC 7348 §5).
    pub fn of(frame: &'a [u8]) -> Self {
        let be16 = |at: usize| {
            let bytes = frame.get(at..at + 2)?;
            Some(u16::from_be_bytes([bytes[0], bytes[1]]))
        };
        match be16(12) {
            Some(ARP) => return Self::Arp,
            Some(IPV4) => {}
            _ => return Self::Other(frame),
        }
        let (Some(first), Some(protocol)) = (frame.get(14), frame.get(23)) else {
            return Self::Other(frame);
        };
        let at = 14 + usize::from(first & 0x0f) * 4;
        let (Some(from), Some(to)) = (be16(at), be16(at + 2)) else {
            return Self::Other(frame);
        };
        match (protocol, to, frame.get(at + 8..at + 16)) {
            (6, _, _) => Self::Tcp(from, to),
            // Flags say that there is a VNI, and nothing else.
            (17, 4789, Some(&[0x08, 0, 0, 0, a, b, c, 0])) => {
                Self::Vxlan(u32::from_be_bytes([0, a, b, c]), &frame[at + 16..])
            }
            _ => Self::Other(frame),
        }
    }
}
