//! The links to the other hosts: two connections for each direction, mutual TLS 1.3 with the hosts' certificates.
//!
//! Who has something to say calls, and says it; the connections of the other direction are the other's. After TLS each
//! side sends a `replication::wire::Hello`, then frames go one way. A frame may be lost, so none is kept for a
//! host that is not reached or is too slow.

mod call;
mod listen;
mod tls;

pub(crate) use listen::{Listening, listen};

use crate::identity;
use crate::look::PeerLook;
use crate::owner::Owner;
use call::Link;
use model::{HostId, STORAGE_PORT};
use nix::sys::socket::{setsockopt, sockopt};
use replication::Frame;
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::net::TcpStream;

/// What was agreed on by TLS's own means: a peer that wants something else is told at once.
const ALPN: &[u8] = b"vpc-sbs/1";
/// A host that is gone without a word is noticed after a few of these, also where nothing is said.
const KEEPALIVE_SECS: u32 = 5;
const KEEPALIVE_COUNT: u32 = 3;

/// Who this host is to others.
#[derive(Debug, Clone)]
pub(crate) struct Own {
    /// The file with its certificate; read at each connection, as it is renewed now and then.
    pub(crate) credential: PathBuf,
    /// Its cluster, as certificates have it.
    pub(crate) cluster: String,
    pub(crate) host: HostId,
}

/// The links to all others.
#[derive(Debug, Clone)]
pub(crate) struct Outgoing {
    own: Arc<Own>,
    links: Arc<Mutex<BTreeMap<HostId, Link>>>,
}

impl Outgoing {
    pub(crate) fn new(own: Own) -> Self {
        Self {
            own: Arc::new(own),
            links: Arc::default(),
        }
    }

    /// From now on to these; the thread of the replicas speaks with them, too: nobody else has to wake up for it.
    pub(crate) fn configure(&self, peers: &BTreeMap<HostId, IpAddr>, owner: &Owner) {
        let mut links = self.links();
        links.retain(|host, link| peers.get(host) == Some(&link.address.ip()));
        for (host, address) in peers {
            if *host == self.own.host {
                continue;
            }
            links.entry(*host).or_insert_with(|| {
                let address = SocketAddr::new(*address, STORAGE_PORT);
                Link::start(*host, address, Arc::clone(&self.own), owner)
            });
        }
    }

    /// Sends a frame, if that host is reached.
    pub(crate) fn send(&self, to: replication::HostId, frame: Frame) {
        let links = self.links();
        let link = identity::host_back(to).and_then(|host| links.get(&host));
        if let Some(link) = link {
            link.send(frame);
        }
    }

    pub(crate) fn look(&self) -> BTreeMap<HostId, PeerLook> {
        let links = self.links();
        links
            .iter()
            .map(|(host, link)| (*host, link.look()))
            .collect()
    }

    fn links(&self) -> MutexGuard<'_, BTreeMap<HostId, Link>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What both sides want of a connection.
fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    setsockopt(stream, sockopt::KeepAlive, &true)?;
    setsockopt(stream, sockopt::TcpKeepIdle, &KEEPALIVE_SECS)?;
    setsockopt(stream, sockopt::TcpKeepInterval, &KEEPALIVE_SECS)?;
    setsockopt(stream, sockopt::TcpKeepCount, &KEEPALIVE_COUNT)?;
    Ok(())
}

/// Blocks of payload of a frame, and one for its head.
fn blocks(frame: &Frame) -> usize {
    1 + {
        let messages = frame.messages.iter();
        messages
            .map(|envelope| envelope.message.payload_blocks())
            .sum::<usize>()
    }
}
