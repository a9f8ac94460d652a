//! Accepts clients.

mod connection;
mod handshake;
mod transmission;

use crate::buffer::Pool;
use crate::device::{Exports, Peer, PeerAddress};
use crate::stream::Socket;
use crate::tls::ServerTls;
use connection::Connection;
use nbd::Limits;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tokio::time;
use tracing::{debug, error, warn};

/// Where clients come to.
#[derive(Debug)]
pub enum Listener {
    /// This machine's, by a path.
    Unix(UnixListener),
    /// The network's.
    Tcp(TcpListener),
}

/// How much clients may take.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What one connection may make the server hold.
    pub limits: Limits,
    /// Connections at once.
    pub connections: usize,
    /// Until when a client has to have chosen an export.
    pub handshake: Duration,
    /// How long a stop waits for what is in flight.
    pub drain: Duration,
    /// Where payloads go.
    pub pool: Pool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            connections: 256,
            handshake: Duration::from_secs(10),
            drain: Duration::from_secs(10),
            pool: Pool::default(),
        }
    }
}

/// Why nothing is served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Anybody could read and write the devices.
    #[error(
        "serving NBD on {address}: beyond this machine clients have to prove who they are; serve with TLS, or on a loopback address"
    )]
    Unprotected {
        /// Where it was to be.
        address: SocketAddr,
    },
    /// The socket cannot say where it is.
    #[error("looking up the address of the listening socket")]
    Address(#[source] io::Error),
}

/// After a failure to accept, such as of too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves these exports until `stop`; then what is in flight is finished, within [`Settings::drain`]. With TLS
/// nothing is told or served without it.
pub async fn serve<E: Exports>(
    listener: Listener,
    exports: Arc<E>,
    tls: Option<ServerTls>,
    settings: Settings,
    stop: impl Future<Output = ()> + Send,
) -> Result<(), ServeError> {
    if let Listener::Tcp(listener) = &listener
        && tls.is_none()
    {
        let address = listener.local_addr().map_err(ServeError::Address)?;
        if !address.ip().is_loopback() {
            return Err(ServeError::Unprotected { address });
        }
    }
    let (stopping, stopped) = watch::channel(false);
    let mut clients = JoinSet::new();
    let mut stop = std::pin::pin!(stop);
    loop {
        let accepted = tokio::select! {
            biased;
            () = &mut stop => break,
            Some(ended) = clients.join_next() => {
                log_panic(ended);
                continue;
            }
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((_, address)) if clients.len() >= settings.connections => {
                warn!(%address, "NBD client turned away: there are too many");
            }
            Ok((socket, address)) => {
                debug!(%address, "NBD client connected");
                let peer = Peer {
                    address,
                    certificate: None,
                };
                let connection = Connection {
                    exports: Arc::clone(&exports),
                    tls: tls.clone(),
                    settings: settings.clone(),
                    peer,
                    stopped: stopped.clone(),
                };
                clients.spawn(connection.run(socket));
            }
            Err(error) => {
                warn!(%error, "NBD client not accepted");
                time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    // Nobody may be left to hear it.
    stopping.send_replace(true);
    let drained = time::timeout(settings.drain, async {
        while let Some(ended) = clients.join_next().await {
            log_panic(ended);
        }
    });
    if drained.await.is_err() {
        warn!(
            clients = clients.len(),
            "NBD clients cut off: the stop took too long"
        );
    }
    clients.shutdown().await;
    Ok(())
}

/// One connection's panic is no other's.
fn log_panic(ended: Result<(), JoinError>) {
    if let Err(error) = ended {
        error!(%error, "NBD client's task broke down");
    }
}

impl Listener {
    async fn accept(&self) -> io::Result<(Socket, PeerAddress)> {
        match self {
            Self::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                let uid = stream.peer_cred().ok().map(|peer| peer.uid());
                Ok((Socket::Unix(stream), PeerAddress::Local { uid }))
            }
            Self::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                Ok((Socket::tcp(stream)?, PeerAddress::Tcp(address)))
            }
        }
    }
}
