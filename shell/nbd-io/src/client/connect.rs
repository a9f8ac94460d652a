//! From nothing to an export that is served.

use crate::outgoing::Outgoing;
use crate::stream::{Socket, Stream};
use crate::tls::ClientTls;
use bytes::Bytes;
use nbd::{Client, ClientConfig, ClientError, ClientNext, RemoteExport};
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

/// Where a server is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A Unix socket.
    Unix(PathBuf),
    /// A host or address with a port.
    Tcp(String),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "{}", path.display()),
            Self::Tcp(address) => f.write_str(address),
        }
    }
}

/// Why an export cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No connection, or it was lost.
    #[error("connecting to the NBD server at {target}")]
    Connect {
        /// Where.
        target: Target,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No agreement was found.
    #[error("shaking hands with the NBD server at {target}: {source}")]
    Handshake {
        /// Where.
        target: Target,
        /// Why.
        source: ClientError,
    },
}

pub(super) async fn connect(
    target: &Target,
    config: ClientConfig,
    tls: Option<ClientTls>,
) -> Result<(Client<Bytes>, Stream, RemoteExport), ConnectError> {
    let lost = |source| ConnectError::Connect {
        target: target.clone(),
        source,
    };
    let socket = dial(target).await.map_err(lost)?;
    let config = ClientConfig {
        tls: tls.is_some(),
        ..config
    };
    let mut stream = Stream::Plain(socket);
    let mut client = Client::new(config);
    let mut buffer = [0; 4096];
    let mut given: &[u8] = &[];
    loop {
        let next = client.next(&mut given);
        send(&mut client, &mut stream).await.map_err(lost)?;
        match next {
            ClientNext::Read(needed) => {
                let most = needed.min(buffer.len());
                let count = stream.read(&mut buffer[..most]).await.map_err(lost)?;
                if count == 0 {
                    return Err(lost(io::ErrorKind::UnexpectedEof.into()));
                }
                given = &buffer[..count];
            }
            ClientNext::StartTls => {
                stream = start_tls(stream, tls.as_ref()).await.map_err(lost)?;
                client.tls_started();
            }
            ClientNext::Ready(export) => return Ok((client, stream, export)),
            ClientNext::Fail(source) => {
                let target = target.clone();
                return Err(ConnectError::Handshake { target, source });
            }
            ClientNext::Data { .. } | ClientNext::Hole { .. } | ClientNext::Done { .. } => {
                unreachable!("nothing was requested")
            }
        }
    }
}

async fn dial(target: &Target) -> io::Result<Socket> {
    match target {
        Target::Unix(path) => UnixStream::connect(path).await.map(Socket::Unix),
        Target::Tcp(address) => Socket::tcp(TcpStream::connect(address).await?),
    }
}

async fn send(client: &mut Client<Bytes>, stream: &mut Stream) -> io::Result<()> {
    let mut outgoing = Outgoing::default();
    while let Some(piece) = client.poll_transmit() {
        outgoing.push(piece);
    }
    poll_fn(|cx| outgoing.poll_write(cx, stream, drop)).await
}

async fn start_tls(stream: Stream, tls: Option<&ClientTls>) -> io::Result<Stream> {
    let (Stream::Plain(socket), Some(tls)) = (stream, tls) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let connector = TlsConnector::from(Arc::clone(&tls.config));
    let stream = connector.connect(tls.server.clone(), socket).await?;
    Ok(Stream::Tls(Box::new(stream.into())))
}
