//! The TLS listener: limits on connections, handshakes off the accept loop, a certificate that is
//! renewed while it runs.

use api::pki::{Authority, Identity, identify};
use api::tls;
use api::tonic::transport::server::Connected;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::{debug, info, warn};

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// A host has one connection, a command line one; a machine with many of either stays below.
const CONNECTIONS_PER_ADDRESS: usize = 256;
const CONNECTIONS: usize = 8192;
/// Connections whose handshake is done and that wait to be served.
pub(crate) const BACKLOG: usize = 64;

/// Who is at the other end of a connection.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    pub(crate) address: IpAddr,
    /// None without a certificate. With one, it was issued by the cluster's CA.
    pub(crate) identity: Option<Identity>,
}

/// A served connection. Gives its slot back when it is dropped.
pub(crate) struct Connection {
    stream: TlsStream<TcpStream>,
    peer: Peer,
    _slot: Slot,
}

/// The server's certificate, replaced at two thirds of its life.
pub(crate) struct ServerCertificate {
    current: RwLock<Arc<CertifiedKey>>,
}

/// Accepts until the receiver is dropped.
pub(crate) async fn accept(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    served: mpsc::Sender<io::Result<Connection>>,
) {
    let slots = Slots::default();
    loop {
        let (stream, address) = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of file descriptors, most likely; the connection stays in the kernel's
                    // queue and would be offered again at once.
                    warn!(%error, "Accepting a connection failed");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
            () = served.closed() => return,
        };
        let Some(slot) = slots.take(address.ip()) else {
            warn!(%address, "Connection refused: too many from this address or in all");
            continue;
        };
        let (acceptor, served) = (acceptor.clone(), served.clone());
        tokio::spawn(async move {
            let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake(stream, &acceptor));
            match handshake.await {
                Ok(Ok((stream, identity))) => {
                    let peer = Peer {
                        address: address.ip(),
                        identity,
                    };
                    let connection = Connection {
                        stream,
                        peer,
                        _slot: slot,
                    };
                    // Refused only when the server stops.
                    drop(served.send(Ok(connection)).await);
                }
                Ok(Err(error)) => debug!(%address, %error, "Handshake failed"),
                Err(_) => debug!(%address, "Handshake took too long"),
            }
        });
    }
}

async fn handshake(
    stream: TcpStream,
    acceptor: &TlsAcceptor,
) -> io::Result<(TlsStream<TcpStream>, Option<Identity>)> {
    stream.set_nodelay(true)?;
    let stream = acceptor.accept(stream).await?;
    let certificate = stream
        .get_ref()
        .1
        .peer_certificates()
        .and_then(<[_]>::first);
    let identity = certificate
        .map(identify)
        .transpose()
        .map_err(|error| io::Error::new(io::ErrorKind::PermissionDenied, error))?;
    Ok((stream, identity))
}

/// Binds, or says what to do about it.
pub(crate) async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address).await
}

impl ServerCertificate {
    /// Issues the first one.
    pub(crate) fn issue(
        authority: &Authority,
        names: &[String],
        life: Duration,
    ) -> Result<Self, CertificateError> {
        Ok(Self {
            current: RwLock::new(Arc::new(fresh(authority, names, life)?)),
        })
    }

    /// Replaces it before it ends, for ever. Connections that there are keep the old one.
    pub(crate) async fn keep_fresh(
        self: Arc<Self>,
        authority: Arc<Authority>,
        names: Vec<String>,
        life: Duration,
    ) {
        let mut wait = life * 2 / 3;
        loop {
            tokio::time::sleep(wait).await;
            match fresh(&authority, &names, life) {
                Ok(certified) => {
                    *self.current.write().unwrap_or_else(PoisonError::into_inner) =
                        Arc::new(certified);
                    info!("Server certificate renewed");
                    wait = life * 2 / 3;
                }
                Err(error) => {
                    warn!(%error, "Renewing the server certificate failed, trying again");
                    wait = (life / 20).max(Duration::from_secs(1));
                }
            }
        }
    }
}

/// A server certificate that could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// Not issued.
    #[error(transparent)]
    Issue(#[from] api::pki::IssueError),
    /// Not usable.
    #[error(transparent)]
    Tls(#[from] tls::TlsError),
}

fn fresh(
    authority: &Authority,
    names: &[String],
    life: Duration,
) -> Result<CertifiedKey, CertificateError> {
    let (issued, key) = authority.issue_server(names, life)?;
    Ok(tls::certified(issued.chain, key)?)
}

impl fmt::Debug for ServerCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServerCertificate")
    }
}

impl ResolvesServerCert for ServerCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        Some(Arc::clone(&current))
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;
    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// How many connections there are, from where. Locked for a look-up only.
#[derive(Clone, Default)]
struct Slots(Arc<Mutex<Taken>>);

#[derive(Default)]
struct Taken {
    all: usize,
    by_address: BTreeMap<IpAddr, usize>,
}

struct Slot {
    slots: Slots,
    address: IpAddr,
}

impl Slots {
    fn take(&self, address: IpAddr) -> Option<Slot> {
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let here = taken.by_address.get(&address).copied().unwrap_or(0);
        if taken.all >= CONNECTIONS || here >= CONNECTIONS_PER_ADDRESS {
            return None;
        }
        taken.all += 1;
        taken.by_address.insert(address, here + 1);
        Some(Slot {
            slots: self.clone(),
            address,
        })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut taken = self.slots.0.lock().unwrap_or_else(PoisonError::into_inner);
        taken.all -= 1;
        match taken.by_address.get_mut(&self.address) {
            Some(here) if *here > 1 => *here -= 1,
            _ => {
                taken.by_address.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_gets_its_slots_and_gives_them_back() {
        let slots = Slots::default();
        let (one, two) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        let held: Vec<_> = (0..CONNECTIONS_PER_ADDRESS)
            .map(|_| slots.take(one).expect("there are slots"))
            .collect();
        assert!(slots.take(one).is_none());
        assert!(slots.take(two).is_some());
        drop(held);
        assert!(slots.take(one).is_some());
        assert_eq!(slots.0.lock().unwrap().all, 0);
    }
}
