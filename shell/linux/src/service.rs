//! Sockets inside of a namespace, for a service that runs outside of it: a socket stays in the namespace
//! that it was made in.

use crate::error::{Doing, Error};
use crate::netns::{Netns, in_netns};
use nix::sys::socket::{setsockopt, sockopt};
use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};

/// Listens by TCP at an address of a namespace. What is answered there goes over as many routers as
/// `hop_limit` says: 1 is none. It does not block.
pub fn listen_tcp(
    netns: &Netns,
    address: SocketAddr,
    hop_limit: Option<u8>,
) -> Result<TcpListener, Error> {
    let listen = || -> io::Result<TcpListener> {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        match (hop_limit, address.is_ipv4()) {
            (None, _) => {}
            (Some(hops), true) => setsockopt(&listener, sockopt::Ipv4Ttl, &hops.into())?,
            (Some(hops), false) => setsockopt(&listener, sockopt::Ipv6Ttl, &hops.into())?,
        }
        Ok(listener)
    };
    in_netns(netns, listen)?.doing(|| format!("listen at {address} by TCP"))
}

/// Takes datagrams at an address of a namespace. It does not block.
pub fn bind_udp(netns: &Netns, address: SocketAddr) -> Result<UdpSocket, Error> {
    let bind = || -> io::Result<UdpSocket> {
        let socket = UdpSocket::bind(address)?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    };
    in_netns(netns, bind)?.doing(|| format!("listen at {address} by UDP"))
}
