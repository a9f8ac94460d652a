//! The sockets of one worker.

use datapath::VXLAN_PORT;
use linux::TunnelSocket;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

/// Flows are shared among so many source ports: as many ways as any underlay has, and queues as any
/// network card.
pub(crate) const SOURCE_PORTS: usize = 64;
/// Where source ports begin (RFC 7348 §4.3), and how far apart they are: in between there is room for
/// those that somebody else has.
const FIRST_PORT: u16 = 49_152;
const APART: u16 = 256;

/// What a worker sends and receives by.
#[derive(Debug)]
pub(crate) struct Sockets {
    pub(crate) local: IpAddr,
    pub(crate) receiving: TunnelSocket,
    /// Chosen by a flow's hash; the same ports for all workers.
    pub(crate) sending: Vec<TunnelSocket>,
}

impl Sockets {
    pub(crate) fn open(local: IpAddr) -> io::Result<Self> {
        let receiving = TunnelSocket::receiving(SocketAddr::new(local, VXLAN_PORT))?;
        let mut sending = Vec::with_capacity(SOURCE_PORTS);
        for number in 0..SOURCE_PORTS as u16 {
            let first = FIRST_PORT + number * APART;
            let mut ports = first..first + (APART - 1);
            let socket = loop {
                let port = ports.next().ok_or(io::ErrorKind::AddrInUse)?;
                match TunnelSocket::sending(SocketAddr::new(local, port)) {
                    Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                    other => break other?,
                }
            };
            sending.push(socket);
        }
        Ok(Self {
            local,
            receiving,
            sending,
        })
    }

    /// The source port of a sending socket; zero if that cannot be said.
    pub(crate) fn port(&self, number: usize) -> u16 {
        let socket = self.sending.get(number);
        socket.and_then(|socket| socket.port().ok()).unwrap_or(0)
    }

    /// From what another process had open: the receiving one first.
    pub(crate) fn from_fds(local: IpAddr, mut fds: impl Iterator<Item = OwnedFd>) -> Option<Self> {
        let receiving = TunnelSocket::from_fd(fds.next()?);
        let sending: Vec<_> = fds.map(TunnelSocket::from_fd).collect();
        (!sending.is_empty()).then_some(Self {
            local,
            receiving,
            sending,
        })
    }
}
