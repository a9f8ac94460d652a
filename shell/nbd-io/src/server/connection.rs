//! One client, from its first byte to its last.

use super::Settings;
use super::handshake::{Shaken, shake_hands};
use super::transmission::Transmission;
use crate::device::{Exports, Peer};
use crate::stream::{Socket, Stream};
use crate::tls::ServerTls;
use nbd::Ending;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tokio::time;
use tracing::debug;

pub(super) struct Connection<E> {
    pub(super) exports: Arc<E>,
    pub(super) tls: Option<ServerTls>,
    pub(super) settings: Settings,
    pub(super) peer: Peer,
    pub(super) stopped: watch::Receiver<bool>,
}

/// Why it is over.
#[derive(Debug, thiserror::Error)]
pub(super) enum Over {
    #[error("{0}")]
    Ended(Ending),
    #[error("it closed the connection")]
    Gone,
    #[error("it has not chosen an export in time")]
    Late,
    #[error("the connection failed")]
    Failed(#[from] io::Error),
}

/// For how long a client may go on sending that was told that it is over. What it was sent before would be
/// lost if the connection were closed upon its unread bytes.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES_MAX: u64 = 1 << 20;

impl<E: Exports> Connection<E> {
    pub(super) async fn run(self, socket: Socket) {
        let address = self.peer.address;
        match self.talk(socket).await {
            Over::Failed(error) => debug!(%address, %error, "NBD client lost"),
            over => debug!(%address, why = %over, "NBD client gone"),
        }
    }

    async fn talk(mut self, socket: Socket) -> Over {
        let deadline = self.settings.handshake;
        let shaken = time::timeout(deadline, shake_hands(&mut self, socket)).await;
        let (stream, over) = match shaken {
            Err(_) => return Over::Late,
            Ok(Err(ended)) => ended,
            Ok(Ok(shaken)) => {
                let Shaken {
                    server,
                    stream,
                    device,
                } = shaken;
                let mut transmission =
                    Transmission::new(server, stream, self.settings, self.stopped);
                let over = transmission.run(device).await;
                (Some(transmission.into_stream()), over)
            }
        };
        if let (Some(stream), Over::Ended(_)) = (stream, &over) {
            // It is over either way.
            drop(time::timeout(LINGER, linger(stream)).await);
        }
        over
    }
}

async fn linger(mut stream: Stream) -> io::Result<()> {
    stream.shutdown().await?;
    let mut unread = (&mut stream).take(LINGER_BYTES_MAX);
    tokio::io::copy(&mut unread, &mut tokio::io::sink()).await?;
    Ok(())
}
