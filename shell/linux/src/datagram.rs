//! UDP in bulk: many datagrams with one system call, and many of one size and destination as one, which
//! the kernel splits (`UDP_SEGMENT`) and puts together again (`UDP_GRO`) at the very end.

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, SockaddrStorage, bind, getsockname, setsockopt,
    socket, sockopt,
};
use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Datagrams that one message may stand for: the least that kernels take (Linux before 6.9; 128 since).
pub const TUNNEL_PACKETS_MAX: usize = 64;
/// Of a socket, each way: a burst of super-frames must fit.
const SOCKET_BUFFER_BYTES: usize = 7 << 20;
/// The largest message: an IP packet's worth and a frame of 64 KiB inside with its own headers.
const MESSAGE_BYTES: usize = 66_048;
const CONTROL_WORDS: usize = 12;
/// `IPV6_MTU_DISCOVER` and `IP_MTU_DISCOVER`: DF is set and what routers say of the path is not believed.
const PROBE: libc::c_int = 3;
/// `SO_MEMINFO` of `asm-generic/socket.h`; what it tells, and where its drops are, of `linux/sock_diag.h`.
const SO_MEMINFO: libc::c_int = 55;
const MEMINFO_WORDS: usize = 9;
const MEMINFO_DROPS: usize = 8;
/// `UDP_NO_CHECK6_RX` of `linux/udp.h`.
const NO_CHECK6_RX: libc::c_int = 102;

/// A socket of the tunnel.
#[derive(Debug)]
pub struct TunnelSocket(OwnedFd);

impl TunnelSocket {
    /// One that packets come in by: bound to the VTEP's address, beside others of the same port, among
    /// which the kernel shares the flows.
    pub fn receiving(at: SocketAddr) -> io::Result<Self> {
        let socket = Self::bound(at)?;
        socket.set(libc::SOL_UDP, libc::UDP_GRO, 1)?;
        match at {
            SocketAddr::V4(_) => socket.set(libc::IPPROTO_IP, libc::IP_RECVTOS, 1)?,
            SocketAddr::V6(_) => {
                socket.set(libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS, 1)?;
                // RFC 6935: who sends tunnels may leave the checksum out.
                socket.set(libc::SOL_UDP, NO_CHECK6_RX, 1)?;
            }
        }
        Ok(socket)
    }

    /// One that packets go out by; nothing ever comes in by it.
    pub fn sending(from: SocketAddr) -> io::Result<Self> {
        let socket = Self::bound(from)?;
        // BPF_RET | BPF_K, 0: keep no byte of any packet.
        let mut nothing = [libc::sock_filter {
            code: 0x06,
            jt: 0,
            jf: 0,
            k: 0,
        }];
        let program = libc::sock_fprog {
            len: 1,
            filter: nothing.as_mut_ptr(),
        };
        // SAFETY: the descriptor is open, the program is live for the call and its length is right.
        let result = unsafe {
            libc::setsockopt(
                socket.0.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_ATTACH_FILTER,
                (&raw const program).cast(),
                size_of::<libc::sock_fprog>() as libc::socklen_t,
            )
        };
        nix::errno::Errno::result(result)?;
        Ok(socket)
    }

    /// One that another process made.
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// The port that it is bound to.
    pub fn port(&self) -> io::Result<u16> {
        let name = getsockname::<SockaddrStorage>(self.0.as_raw_fd())?;
        let v4 = name.as_sockaddr_in().map(|name| name.port());
        let v6 = name.as_sockaddr_in6().map(|name| name.port());
        v4.or(v6).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// Packets that came in and found no room, since it was made; it begins again after 2^32.
    pub fn dropped(&self) -> io::Result<u32> {
        let mut figures = [0_u32; MEMINFO_WORDS];
        let mut length = size_of_val(&figures) as libc::socklen_t;
        // SAFETY: the descriptor is open; the pointers are to live memory, of the length that is given.
        let result = unsafe {
            libc::getsockopt(
                self.0.as_raw_fd(),
                libc::SOL_SOCKET,
                SO_MEMINFO,
                figures.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        nix::errno::Errno::result(result)?;
        Ok(figures[MEMINFO_DROPS])
    }

    /// Another descriptor of the same socket.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self(self.0.try_clone()?))
    }

    fn bound(at: SocketAddr) -> io::Result<Self> {
        let family = match at {
            SocketAddr::V4(_) => AddressFamily::Inet,
            SocketAddr::V6(_) => AddressFamily::Inet6,
        };
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = Self(socket(family, SockType::Datagram, flags, None)?);
        setsockopt(&socket.0, sockopt::ReusePort, &true)?;
        setsockopt(&socket.0, sockopt::SndBufForce, &SOCKET_BUFFER_BYTES)?;
        setsockopt(&socket.0, sockopt::RcvBufForce, &SOCKET_BUFFER_BYTES)?;
        match at {
            SocketAddr::V4(_) => socket.set(libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, PROBE)?,
            SocketAddr::V6(_) => {
                setsockopt(&socket.0, sockopt::Ipv6V6Only, &true)?;
                socket.set(libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, PROBE)?;
            }
        }
        bind(socket.0.as_raw_fd(), &SockaddrStorage::from(at))?;
        Ok(socket)
    }

    fn set(&self, level: libc::c_int, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
        // SAFETY: the descriptor is open, and the pointer is to a live integer of the length given.
        let result = unsafe {
            libc::setsockopt(
                self.0.as_raw_fd(),
                level,
                option,
                (&raw const value).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            )
        };
        nix::errno::Errno::result(result)?;
        Ok(())
    }
}

impl AsFd for TunnelSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Datagrams of one size to one destination, as one message.
#[derive(Debug, Clone, Copy)]
pub struct ToSend<'a> {
    /// Where to.
    pub to: SocketAddr,
    /// Type of service or traffic class.
    pub traffic_class: u8,
    /// Size of each but the last; none: it is one datagram.
    pub split: Option<u16>,
    /// One after the other; at most 1,024.
    pub parts: &'a [IoSlice<'a>],
}

/// What a system call needs beside the bytes; kept, so that none costs an allocation.
#[derive(Default)]
pub struct Sender {
    headers: Vec<libc::mmsghdr>,
    names: Vec<SockaddrStorage>,
    controls: Vec<[u64; CONTROL_WORDS]>,
}

// SAFETY: as for `Receiver`: the pointers in headers are written anew before each call, and not followed
// after it.
unsafe impl Send for Sender {}

impl std::fmt::Debug for Sender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sender").finish_non_exhaustive()
    }
}

impl Sender {
    /// Sends messages in order, until one cannot be: how many were, and what is wrong with the next.
    pub fn send(
        &mut self,
        socket: &TunnelSocket,
        messages: &[ToSend<'_>],
    ) -> (usize, Option<io::Error>) {
        self.names.clear();
        self.controls.clear();
        self.headers.clear();
        let names = messages.iter().map(|m| SockaddrStorage::from(m.to));
        self.names.extend(names);
        self.controls.resize(messages.len(), [0; CONTROL_WORDS]);
        for (position, message) in messages.iter().enumerate() {
            // SAFETY: `mmsghdr` is numbers and pointers; all zeroes is valid.
            let mut header: libc::mmsghdr = unsafe { std::mem::zeroed() };
            let name = &self.names[position];
            header.msg_hdr.msg_name = std::ptr::from_ref(name).cast_mut().cast();
            header.msg_hdr.msg_namelen = nix::sys::socket::SockaddrLike::len(name);
            // `IoSlice` has the layout of `iovec`, as its documentation promises; the kernel reads it.
            header.msg_hdr.msg_iov = message.parts.as_ptr().cast_mut().cast();
            header.msg_hdr.msg_iovlen = message.parts.len() as _;
            header.msg_hdr.msg_control = self.controls[position].as_mut_ptr().cast();
            let used = write_control(&mut header.msg_hdr, message);
            header.msg_hdr.msg_controllen = used as _;
            if used == 0 {
                header.msg_hdr.msg_control = std::ptr::null_mut();
            }
            self.headers.push(header);
        }
        let mut sent = 0;
        while sent < messages.len() {
            let rest = &mut self.headers[sent..];
            // SAFETY: names, controls and parts outlive the call; none of their vectors is touched
            // between filling in the pointers and here; the length is that of the slice.
            let result = unsafe {
                libc::sendmmsg(
                    socket.0.as_raw_fd(),
                    rest.as_mut_ptr(),
                    rest.len() as libc::c_uint,
                    MsgFlags::MSG_DONTWAIT.bits() as _,
                )
            };
            match result {
                -1 => {
                    let error = io::Error::last_os_error();
                    if error.kind() != io::ErrorKind::Interrupted {
                        return (sent, Some(error));
                    }
                }
                count => sent += count as usize,
            }
        }
        (sent, None)
    }
}

/// Writes what goes beside a message; how many bytes of the control buffer it takes.
fn write_control(header: &mut libc::msghdr, message: &ToSend<'_>) -> usize {
    header.msg_controllen = (CONTROL_WORDS * 8) as _;
    let mut used = 0;
    // SAFETY: the control buffer has CONTROL_WORDS words, aligned for a `cmsghdr`, zeroed; what is
    // written are two control messages of together at most 48 bytes, at the places that the macros
    // give for a buffer of that length.
    unsafe {
        let mut at = libc::CMSG_FIRSTHDR(header);
        if let Some(split) = message.split {
            (*at).cmsg_level = libc::SOL_UDP;
            (*at).cmsg_type = libc::UDP_SEGMENT;
            (*at).cmsg_len = libc::CMSG_LEN(2) as _;
            libc::CMSG_DATA(at).cast::<u16>().write_unaligned(split);
            used += libc::CMSG_SPACE(2) as usize;
            at = libc::CMSG_NXTHDR(header, at);
        }
        if message.traffic_class != 0 {
            let value = libc::c_int::from(message.traffic_class);
            let (level, kind) = match message.to {
                SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_TOS),
                SocketAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_TCLASS),
            };
            (*at).cmsg_level = level;
            (*at).cmsg_type = kind;
            (*at).cmsg_len = libc::CMSG_LEN(4) as _;
            libc::CMSG_DATA(at)
                .cast::<libc::c_int>()
                .write_unaligned(value);
            used += libc::CMSG_SPACE(4) as usize;
        }
    }
    used
}

/// A message that was received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Got {
    /// Who sent it.
    pub from: IpAddr,
    /// By which port.
    pub port: u16,
    /// Type of service or traffic class.
    pub traffic_class: u8,
    /// Where it is in [`Receiver::bytes`].
    pub at: usize,
    /// Its length.
    pub length: usize,
    /// It is several datagrams of this size, of which the last may be shorter.
    pub split: Option<u16>,
    /// There was more of it than fits.
    pub truncated: bool,
}

/// Memory for messages that are received with one system call.
pub struct Receiver {
    bytes: Vec<u8>,
    headers: Vec<libc::mmsghdr>,
    names: Vec<libc::sockaddr_storage>,
    controls: Vec<[u64; CONTROL_WORDS]>,
    vectors: Vec<libc::iovec>,
    count: usize,
}

// SAFETY: the pointers in headers and vectors are to the other vectors' memory, which belongs to the
// same value and is not moved with it; they are written anew before each call.
unsafe impl Send for Receiver {}

impl std::fmt::Debug for Receiver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Receiver")
            .field("count", &self.count)
            .finish_non_exhaustive()
    }
}

impl Receiver {
    /// For so many messages at once.
    pub fn new(messages: usize) -> Self {
        // SAFETY: these are numbers and pointers; all zeroes is valid.
        let (header, name, vector) = unsafe {
            (
                std::mem::zeroed::<libc::mmsghdr>(),
                std::mem::zeroed::<libc::sockaddr_storage>(),
                std::mem::zeroed::<libc::iovec>(),
            )
        };
        Self {
            bytes: vec![0; messages * MESSAGE_BYTES],
            headers: vec![header; messages],
            names: vec![name; messages],
            controls: vec![[0; CONTROL_WORDS]; messages],
            vectors: vec![vector; messages],
            count: 0,
        }
    }

    /// What was received last.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Receives what is there, without waiting; how many messages that was.
    pub fn receive(&mut self, socket: &TunnelSocket) -> io::Result<usize> {
        self.count = 0;
        for (slot, bytes) in self.bytes.chunks_exact_mut(MESSAGE_BYTES).enumerate() {
            self.vectors[slot] = libc::iovec {
                iov_base: bytes.as_mut_ptr().cast(),
                iov_len: bytes.len(),
            };
            let header = &mut self.headers[slot].msg_hdr;
            header.msg_name = (&raw mut self.names[slot]).cast();
            header.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
            header.msg_iov = &raw mut self.vectors[slot];
            header.msg_iovlen = 1;
            header.msg_control = self.controls[slot].as_mut_ptr().cast();
            header.msg_controllen = (CONTROL_WORDS * 8) as _;
            header.msg_flags = 0;
        }
        // SAFETY: each header points to a name, a control buffer and a vector of its own, and that to
        // MESSAGE_BYTES bytes of its own, all live; the lengths are theirs.
        let result = unsafe {
            libc::recvmmsg(
                socket.0.as_raw_fd(),
                self.headers.as_mut_ptr(),
                self.headers.len() as libc::c_uint,
                libc::MSG_DONTWAIT as _,
                std::ptr::null_mut(),
            )
        };
        match result {
            -1 => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
                error => Err(error),
            },
            count => {
                self.count = count as usize;
                Ok(self.count)
            }
        }
    }

    /// The messages that were received last; one from no address that there can be is left out.
    pub fn messages(&self) -> impl Iterator<Item = Got> + '_ {
        (0..self.count).filter_map(|slot| self.message(slot))
    }

    fn message(&self, slot: usize) -> Option<Got> {
        let header = &self.headers[slot];
        let name = &self.names[slot];
        let (from, port) = match libc::c_int::from(name.ss_family) {
            libc::AF_INET => {
                // SAFETY: the kernel says that it wrote a `sockaddr_in`, which fits the storage.
                let name = unsafe { &*std::ptr::from_ref(name).cast::<libc::sockaddr_in>() };
                let address = IpAddr::from(name.sin_addr.s_addr.to_ne_bytes());
                (address, u16::from_be(name.sin_port))
            }
            libc::AF_INET6 => {
                // SAFETY: the kernel says that it wrote a `sockaddr_in6`, which fits the storage.
                let name = unsafe { &*std::ptr::from_ref(name).cast::<libc::sockaddr_in6>() };
                (
                    IpAddr::from(name.sin6_addr.s6_addr),
                    u16::from_be(name.sin6_port),
                )
            }
            _ => return None,
        };
        let mut got = Got {
            from,
            port,
            traffic_class: 0,
            at: slot * MESSAGE_BYTES,
            length: (header.msg_len as usize).min(MESSAGE_BYTES),
            split: None,
            truncated: header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0,
        };
        // SAFETY: the kernel wrote control messages into the buffer and their length into the header;
        // the macros walk them within that length, and what is read is as long as each of the three
        // kinds says at least.
        unsafe {
            let mut at = libc::CMSG_FIRSTHDR(&raw const header.msg_hdr);
            while !at.is_null() {
                let data = libc::CMSG_DATA(at);
                match ((*at).cmsg_level, (*at).cmsg_type) {
                    (libc::SOL_UDP, libc::UDP_GRO) => {
                        let size = data.cast::<libc::c_int>().read_unaligned();
                        got.split = u16::try_from(size).ok();
                    }
                    (libc::IPPROTO_IP, libc::IP_TOS) => got.traffic_class = data.read(),
                    (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => {
                        got.traffic_class = data.cast::<libc::c_int>().read_unaligned() as u8;
                    }
                    _ => {}
                }
                at = libc::CMSG_NXTHDR(&raw const header.msg_hdr, at);
            }
        }
        Some(got)
    }
}
