//! Sockets with the options that BGP wants: MD5, TTL, time-outs.

use model::Secret;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket};

/// RFC 5082 §3: no router has lowered it.
const TTL_OF_NEIGHBOURS: libc::c_int = 255;
/// Longest key that the kernel takes.
const MD5_KEY_MAX_BYTES: usize = 80;
/// IP and TCP headers with all options; IPv6 extension headers that take more are nobody's we know.
const SYN_HEADERS_MAX_BYTES: usize = 256;
/// What the kernel may hold that is not on its way. Its own limit is megabytes: a slow peer would
/// get long-past routes first, and withdrawals after them.
const UNSENT_MAX_BYTES: libc::c_int = 128 << 10;
/// Connections waiting to be accepted: every host of a large fabric may come at once.
const BACKLOG: u32 = 1024;

/// A socket bound and listening, not yet taking keys.
pub(crate) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = new_socket(address.ip())?;
    socket.set_reuseaddr(true)?;
    if address.is_ipv6() {
        set(socket.as_fd(), libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, &1)?;
    }
    set_ttl(socket.as_fd(), address.ip())?;
    set(socket.as_fd(), libc::IPPROTO_TCP, libc::TCP_SAVE_SYN, &1)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Has the kernel drop whatever comes to a socket from beyond the next hop (RFC 5082), or no more.
/// A listener's connections take it over: nothing is queued on one before it is accepted.
pub(crate) fn only_neighbours(
    socket: BorrowedFd<'_>,
    family_of: IpAddr,
    only: bool,
) -> io::Result<()> {
    let (level, option) = match family_of {
        IpAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_MINTTL),
        IpAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_MINHOPCOUNT),
    };
    let least = if only { TTL_OF_NEIGHBOURS } else { 0 };
    set(socket, level, option, &least)
}

/// The TTL or hop limit of the packet that began an accepted connection; none if the kernel did not
/// keep it, as with SYN cookies. It can be asked once.
pub(crate) fn ttl_of_syn(socket: BorrowedFd<'_>) -> Option<u8> {
    let mut headers = [0; SYN_HEADERS_MAX_BYTES];
    let length = get(socket, libc::IPPROTO_TCP, libc::TCP_SAVED_SYN, &mut headers);
    match headers.get(..length.ok()?)? {
        [first, rest @ ..] if first >> 4 == 4 => rest.get(7).copied(),
        [first, rest @ ..] if first >> 4 == 6 => rest.get(6).copied(),
        _ => None,
    }
}

/// True if no router has lowered it.
pub(crate) fn is_of_neighbour(ttl: u8) -> bool {
    libc::c_int::from(ttl) == TTL_OF_NEIGHBOURS
}

/// A socket ready to connect to a peer.
pub(crate) fn for_peer(
    peer: IpAddr,
    local: Option<IpAddr>,
    password: Option<&Secret>,
    gtsm: bool,
    send_timeout: Duration,
) -> io::Result<TcpSocket> {
    let socket = new_socket(peer)?;
    prepare(socket.as_fd(), peer, gtsm, send_timeout)?;
    set_md5(socket.as_fd(), peer, password)?;
    if let Some(local) = local {
        socket.bind(SocketAddr::new(local, 0))?;
    }
    Ok(socket)
}

/// A socket without any of a session's options.
pub(crate) fn plain(peer: IpAddr, local: Option<IpAddr>) -> io::Result<TcpSocket> {
    let socket = new_socket(peer)?;
    if let Some(local) = local {
        socket.bind(SocketAddr::new(local, 0))?;
    }
    Ok(socket)
}

fn new_socket(family_of: IpAddr) -> io::Result<TcpSocket> {
    match family_of {
        IpAddr::V4(_) => TcpSocket::new_v4(),
        IpAddr::V6(_) => TcpSocket::new_v6(),
    }
}

/// Options of a connection, made or taken.
pub(crate) fn prepare(
    socket: BorrowedFd<'_>,
    peer: IpAddr,
    gtsm: bool,
    send_timeout: Duration,
) -> io::Result<()> {
    set_ttl(socket, peer)?;
    only_neighbours(socket, peer, gtsm)?;
    set(socket, libc::IPPROTO_TCP, libc::TCP_NODELAY, &1)?;
    set(
        socket,
        libc::IPPROTO_TCP,
        libc::TCP_NOTSENT_LOWAT,
        &UNSENT_MAX_BYTES,
    )?;
    let millis = libc::c_int::try_from(send_timeout.as_millis()).unwrap_or(libc::c_int::MAX);
    set(socket, libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, &millis)
}

fn set_ttl(socket: BorrowedFd<'_>, family_of: IpAddr) -> io::Result<()> {
    let (level, option) = match family_of {
        IpAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_TTL),
        IpAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS),
    };
    set(socket, level, option, &TTL_OF_NEIGHBOURS)
}

/// `struct tcp_md5sig` of linux/tcp.h.
#[repr(C)]
struct Md5Signature {
    /// `sockaddr_storage`: `| family 2 | port 2 | .. |`.
    address: [u8; 128],
    flags: u8,
    prefix_len: u8,
    key_len: u16,
    interface: libc::c_int,
    key: [u8; MD5_KEY_MAX_BYTES],
}

const _: () = assert!(size_of::<Md5Signature>() == 128 + 8 + MD5_KEY_MAX_BYTES);

/// Signs segments to and from a peer with the key (RFC 2385); takes the key away for `None`.
pub(crate) fn set_md5(
    socket: BorrowedFd<'_>,
    peer: IpAddr,
    password: Option<&Secret>,
) -> io::Result<()> {
    let text = password.map_or(&[][..], |secret| secret.0.as_bytes());
    if text.len() > MD5_KEY_MAX_BYTES {
        let long = "the TCP-MD5 password is longer than 80 octets: choose a shorter one";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, long));
    }
    let mut signature = Md5Signature {
        address: [0; 128],
        flags: 0,
        prefix_len: 0,
        key_len: u16::try_from(text.len()).expect("at most 80"),
        interface: 0,
        key: [0; MD5_KEY_MAX_BYTES],
    };
    signature.key[..text.len()].copy_from_slice(text);
    let family = match peer {
        IpAddr::V4(address) => {
            signature.address[4..8].copy_from_slice(&address.octets());
            libc::AF_INET
        }
        IpAddr::V6(address) => {
            signature.address[8..24].copy_from_slice(&address.octets());
            libc::AF_INET6
        }
    };
    let family = libc::sa_family_t::try_from(family).expect("families fit their type");
    signature.address[..2].copy_from_slice(&family.to_ne_bytes());
    match set(socket, libc::IPPROTO_TCP, libc::TCP_MD5SIG, &signature) {
        // There was no key to take away, or the kernel has no keys at all.
        Err(error)
            if password.is_none()
                && matches!(
                    error.raw_os_error(),
                    Some(libc::ENOENT | libc::ENOPROTOOPT | libc::EPERM)
                ) =>
        {
            Ok(())
        }
        other => other,
    }
}

#[expect(
    unsafe_code,
    reason = "no crate wraps TCP_MD5SIG, TCP_SAVE_SYN, IP_MINTTL and IPV6_MINHOPCOUNT"
)]
fn set<T>(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    option: libc::c_int,
    value: &T,
) -> io::Result<()> {
    let size = libc::socklen_t::try_from(size_of::<T>()).expect("options are small");
    // SAFETY: the kernel reads `size` bytes from a live `T` and keeps no reference to it. Every
    // `T` used here is an integer or a `repr(C)` struct of integers without padding.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            std::ptr::from_ref(value).cast(),
            size,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Reads an option of octets; how many it has.
#[expect(unsafe_code, reason = "no crate wraps TCP_SAVED_SYN")]
fn get(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    option: libc::c_int,
    value: &mut [u8],
) -> io::Result<usize> {
    let mut size = libc::socklen_t::try_from(value.len()).expect("options are small");
    // SAFETY: the kernel writes at most `size` octets into a live buffer of that many, and `size`
    // itself; it keeps no reference to either.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            option,
            value.as_mut_ptr().cast(),
            &raw mut size,
        )
    };
    if result == 0 {
        Ok(usize::try_from(size).unwrap_or_default())
    } else {
        Err(io::Error::last_os_error())
    }
}
