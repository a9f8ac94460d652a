//! Options, up to when an export is chosen.

use super::connection::{Connection, Over};
use crate::device::{Device, Exports, Opened};
use crate::outgoing::Outgoing;
use crate::stream::{Socket, Stream};
use bytes::Bytes;
use nbd::{Export, Next, Server, Tls};
use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use tokio::io::AsyncReadExt;
use tokio_rustls::TlsAcceptor;
use tracing::error;

/// A client that has chosen.
pub(super) struct Shaken<D> {
    pub(super) server: Server<Bytes>,
    pub(super) stream: Stream,
    pub(super) device: Arc<D>,
}

/// If it comes to nothing the stream is given back; there is none after a TLS handshake that failed.
pub(super) async fn shake_hands<E: Exports>(
    connection: &mut Connection<E>,
    socket: Socket,
) -> Result<Shaken<E::Device>, (Option<Stream>, Over)> {
    let tls = match connection.tls {
        Some(_) => Tls::Required,
        None => Tls::Absent,
    };
    let mut handshake = Handshake {
        server: Server::new(tls, connection.settings.limits),
        stream: Some(Stream::Plain(socket)),
        device: None,
        connection,
    };
    let result = handshake.run().await;
    match (result, handshake.stream, handshake.device) {
        (Ok(()), Some(stream), Some(device)) => Ok(Shaken {
            server: handshake.server,
            stream,
            device,
        }),
        (Ok(()), stream, _) => Err((stream, Over::Gone)),
        (Err(over), stream, _) => Err((stream, over)),
    }
}

struct Handshake<'a, E: Exports> {
    server: Server<Bytes>,
    stream: Option<Stream>,
    /// What was found last.
    device: Option<Arc<E::Device>>,
    connection: &'a mut Connection<E>,
}

impl<E: Exports> Handshake<'_, E> {
    async fn run(&mut self) -> Result<(), Over> {
        let mut buffer = [0; 4096];
        let mut given: &[u8] = &[];
        loop {
            self.send().await?;
            match self.server.next(&mut given) {
                // No more is read than is needed: what follows may be TLS.
                Next::Read(needed) => {
                    let most = needed.min(buffer.len());
                    let count = self.read(&mut buffer[..most]).await?;
                    given = &buffer[..count];
                }
                Next::Find(name) => {
                    let export = self.find(&name).await;
                    self.server.found(export.as_ref());
                }
                Next::List => {
                    let peer = &self.connection.peer;
                    let exports = self.connection.exports.list(peer).await;
                    self.server.listed(&exports);
                }
                Next::StartTls => {
                    self.start_tls().await?;
                    self.server.tls_started();
                }
                Next::Wait => {}
                Next::Serve => return self.send().await,
                Next::Close(ending) => return Err(Over::Ended(ending)),
                Next::Payload(_) | Next::Request(_) => {
                    unreachable!("nothing is requested before an export is served")
                }
            }
        }
    }

    async fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Over> {
        loop {
            let stream = self.stream.as_mut().ok_or(Over::Gone)?;
            let stopped = *self.connection.stopped.borrow();
            tokio::select! {
                // Whoever could say that it is to stop may be gone: then nobody stops it.
                Ok(_) = self.connection.stopped.wait_for(|stopped| *stopped), if !stopped => {
                    self.server.shut_down();
                }
                count = stream.read(buffer) => return match count? {
                    0 => Err(Over::Gone),
                    count => Ok(count),
                },
            }
        }
    }

    async fn send(&mut self) -> Result<(), Over> {
        let stream = self.stream.as_mut().ok_or(Over::Gone)?;
        let mut outgoing = Outgoing::default();
        while let Some(piece) = self.server.poll_transmit() {
            outgoing.push(piece);
        }
        let server = &mut self.server;
        poll_fn(|cx| outgoing.poll_write(cx, stream, |sent| server.sent(sent))).await?;
        Ok(())
    }

    async fn find(&mut self, name: &str) -> Option<Export> {
        let exports = &self.connection.exports;
        let opened = exports.open(name, &self.connection.peer).await?;
        match describe(&opened) {
            Ok(export) => {
                self.device = Some(opened.device);
                Some(export)
            }
            Err(error) => {
                error!(name = opened.name, %error, "Export that cannot be told of");
                None
            }
        }
    }

    async fn start_tls(&mut self) -> Result<(), Over> {
        let (Some(Stream::Plain(socket)), Some(tls)) =
            (self.stream.take(), self.connection.tls.as_ref())
        else {
            return Err(Over::Gone);
        };
        let acceptor = TlsAcceptor::from(Arc::clone(&tls.0));
        let stream = acceptor.accept(socket).await?;
        let (_, session) = stream.get_ref();
        let certificate = session.peer_certificates().and_then(<[_]>::first);
        let Some(certificate) = certificate else {
            return Err(Over::Failed(io::ErrorKind::PermissionDenied.into()));
        };
        self.connection.peer.certificate = Some(certificate.clone().into_owned());
        self.stream = Some(Stream::Tls(Box::new(stream.into())));
        Ok(())
    }
}

fn describe<D: Device>(opened: &Opened<D>) -> Result<Export, nbd::BadExport> {
    let device = &opened.device;
    let export = Export::new(&opened.name, device.size(), device.block_sizes())?
        .described(&opened.description)?;
    Ok(match device.is_read_only() {
        true => export.read_only(),
        false => export,
    })
}
