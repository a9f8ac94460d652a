//! Tasks of one connection: connecting, reading, writing. They decide nothing.

use bytes::{Bytes, BytesMut};
use evpn::ConnId;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// A peer on the same underlay answers in milliseconds, or is not there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a closed connection may take to hear the peer's end of it. Closing at once with
/// unread bytes would reset it, and the NOTIFICATION on its way could be lost.
const LINGER: Duration = Duration::from_secs(1);
const READ_BYTES: usize = 16 << 10;
/// Messages handed to a writer at most; more than a batch of the speaker can make.
const QUEUE_MESSAGES: usize = 2048;
/// With so many on their way the speaker is told to wait, and with so few to go on.
pub(crate) const HIGH_WATER: usize = 128;
pub(crate) const LOW_WATER: usize = 32;

/// What connections tell the owner of the speaker.
#[derive(Debug)]
pub(crate) enum Event {
    Accepted(TcpStream, SocketAddr),
    Connected(ConnId, TcpStream),
    Bytes(ConnId, Bytes),
    Written(ConnId, usize),
    Over(ConnId, String),
}

/// The owner's end of a connection. Dropping it sends what was given and closes.
#[derive(Debug)]
pub(crate) struct Connection {
    to_send: mpsc::Sender<Bytes>,
    pub(crate) in_flight: usize,
    pub(crate) blocked: bool,
    _open: oneshot::Sender<()>,
    writer: JoinHandle<()>,
}

/// The writer has more than it can ever be owed: the peer reads nothing.
#[derive(Debug)]
pub(crate) struct Stuck;

impl Connection {
    pub(crate) fn new(conn: ConnId, stream: TcpStream, events: mpsc::Sender<Event>) -> Self {
        let (reader, writer) = stream.into_split();
        let (to_send, queue) = mpsc::channel(QUEUE_MESSAGES);
        let (open, closed) = oneshot::channel();
        tokio::spawn(read(conn, reader, events.clone(), closed));
        Self {
            to_send,
            in_flight: 0,
            blocked: false,
            _open: open,
            writer: tokio::spawn(write(conn, writer, queue, events)),
        }
    }

    pub(crate) fn send(&mut self, bytes: Bytes) -> Result<(), Stuck> {
        self.to_send.try_send(bytes).map_err(|_| Stuck)?;
        self.in_flight += 1;
        Ok(())
    }

    /// Lets the writer finish what it has, and then close.
    pub(crate) fn close(self) -> JoinHandle<()> {
        self.writer
    }
}

/// Takes connections until the listener's owner is gone.
pub(crate) async fn accept(listener: Arc<TcpListener>, events: mpsc::Sender<Event>) {
    loop {
        let event = match listener.accept().await {
            Ok((stream, from)) => Event::Accepted(stream, from),
            // Out of descriptors, or a connection that was gone before it was taken.
            Err(error) => {
                tracing::warn!(%error, "Taking a BGP connection failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        if events.send(event).await.is_err() {
            return;
        }
    }
}

/// Connects, and says how it went.
pub(crate) async fn connect(
    conn: ConnId,
    socket: io::Result<TcpSocket>,
    peer: IpAddr,
    port: u16,
    events: mpsc::Sender<Event>,
) {
    let address = SocketAddr::new(peer, port);
    let attempt = async { timeout(CONNECT_TIMEOUT, socket?.connect(address)).await? };
    let event = match attempt.await {
        Ok(stream) => Event::Connected(conn, stream),
        Err(error) if error.kind() == io::ErrorKind::TimedOut => {
            let why = "no answer; the host is down, or the two ends differ in TCP-MD5 key or GTSM";
            Event::Over(conn, format!("connecting to {address}: {why}"))
        }
        Err(error) => Event::Over(conn, format!("connecting to {address}: {error}")),
    };
    // The owner is gone: so is the need.
    drop(events.send(event).await);
}

async fn read(
    conn: ConnId,
    mut stream: OwnedReadHalf,
    events: mpsc::Sender<Event>,
    mut closed: oneshot::Receiver<()>,
) {
    let mut buffer = BytesMut::with_capacity(READ_BYTES);
    let reason = loop {
        buffer.reserve(READ_BYTES);
        let got = tokio::select! {
            got = stream.read_buf(&mut buffer) => got,
            _ = &mut closed => return linger(stream).await,
        };
        let event = match got {
            Ok(0) => break "the peer closed the connection".to_owned(),
            Ok(_) => Event::Bytes(conn, buffer.split().freeze()),
            Err(error) => break format!("reading: {error}"),
        };
        tokio::select! {
            sent = events.send(event) => if sent.is_err() { return },
            _ = &mut closed => return linger(stream).await,
        }
    };
    drop(events.send(Event::Over(conn, reason)).await);
}

/// Reads on to the peer's end of the connection, for nobody.
async fn linger(mut stream: OwnedReadHalf) {
    let mut nowhere = [0; 4096];
    let to_end = async { while matches!(stream.read(&mut nowhere).await, Ok(1..)) {} };
    // Whether it ended or time ran out makes no difference.
    drop(timeout(LINGER, to_end).await);
}

async fn write(
    conn: ConnId,
    mut stream: OwnedWriteHalf,
    mut queue: mpsc::Receiver<Bytes>,
    events: mpsc::Sender<Event>,
) {
    let mut batch = Vec::new();
    loop {
        let count = queue.recv_many(&mut batch, HIGH_WATER).await;
        if count == 0 {
            break;
        }
        let mut bytes = BytesMut::with_capacity(batch.iter().map(Bytes::len).sum());
        for message in batch.drain(..) {
            bytes.extend_from_slice(&message);
        }
        let event = match stream.write_all(&bytes).await {
            Ok(()) => Event::Written(conn, count),
            Err(error) => Event::Over(conn, format!("writing: {error}")),
        };
        let failed = matches!(event, Event::Over(..));
        // After a close nobody asks any more.
        drop(events.send(event).await);
        if failed {
            return;
        }
    }
    // The peer may have closed first.
    drop(stream.shutdown().await);
}
