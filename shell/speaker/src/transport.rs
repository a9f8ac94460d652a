//! Tasks of one connection: connecting, reading, writing. They decide nothing.

use crate::kernel_drops::KernelDrops;
use crate::socket;
use bytes::{Buf, Bytes, BytesMut};
use evpn::{ConnId, Lost, LostBy};
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// A peer on the same underlay answers in milliseconds, or is not there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a closed connection may take to hear the peer's end of it. Closing at once with
/// unread bytes would reset it, and the NOTIFICATION on its way could be lost.
const LINGER: Duration = Duration::from_secs(1);
/// How long a closed connection may take to send what was given before.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// One piece: what is taken in before others have their turn. A thousand routes take some milliseconds, and
/// many times that on a machine that is short of CPU.
const READ_BYTES: usize = 16 << 10;
/// Slices given to one `writev`.
const SLICES_MAX: usize = 64;
/// Messages handed to a writer at most; more than a batch of the speaker can make.
const QUEUE_MESSAGES: usize = 2048;
/// With so many octets on their way the speaker is told to wait, and with so few to go on. News
/// waits behind them, in as many connections as there are.
pub(crate) const HIGH_WATER_OCTETS: usize = 64 << 10;
pub(crate) const LOW_WATER_OCTETS: usize = 16 << 10;

/// What connections tell the owner of the speaker.
#[derive(Debug)]
pub(crate) enum Event {
    Accepted(TcpStream, SocketAddr),
    Connected(ConnId, TcpStream),
    /// With leave to read on, once it was looked at.
    Bytes(ConnId, Bytes, OwnedSemaphorePermit),
    /// So many octets have left.
    Written(ConnId, usize),
    Over(ConnId, Lost),
}

/// The owner's end of a connection. Dropping it sends what was given and closes.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) peer: IpAddr,
    /// For options, and to look at what waits. Both halves of the stream belong to tasks.
    socket: Option<std::net::TcpStream>,
    to_send: mpsc::Sender<Bytes>,
    /// Octets that have not left.
    pub(crate) in_flight: usize,
    pub(crate) blocked: bool,
    _open: oneshot::Sender<()>,
    writer: JoinHandle<()>,
}

/// The writer has more than it can ever be owed: the peer reads nothing.
#[derive(Debug)]
pub(crate) struct Stuck;

impl Connection {
    pub(crate) fn new(
        conn: ConnId,
        peer: IpAddr,
        stream: TcpStream,
        events: mpsc::Sender<Event>,
    ) -> Self {
        let socket = stream.as_fd().try_clone_to_owned().ok();
        let socket = socket.map(std::net::TcpStream::from);
        let (reader, writer) = stream.into_split();
        let (to_send, queue) = mpsc::channel(QUEUE_MESSAGES);
        let (open, closed) = oneshot::channel();
        tokio::spawn(read(conn, reader, events.clone(), closed));
        Self {
            peer,
            socket,
            to_send,
            in_flight: 0,
            blocked: false,
            _open: open,
            writer: tokio::spawn(write(conn, writer, queue, events)),
        }
    }

    pub(crate) fn send(&mut self, bytes: Bytes) -> Result<(), Stuck> {
        let octets = bytes.len();
        self.to_send.try_send(bytes).map_err(|_| Stuck)?;
        self.in_flight += octets;
        Ok(())
    }

    /// The socket, unless this host was out of descriptors.
    pub(crate) fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.socket.as_ref().map(AsFd::as_fd)
    }

    /// True if the peer said something, or ended it, that was not read off the socket yet.
    pub(crate) fn has_unread(&self) -> bool {
        // The option not to wait is the connection's, not the descriptor's.
        let peek = |socket: &std::net::TcpStream| socket.peek(&mut [0]).is_ok();
        self.socket.as_ref().is_some_and(peek)
    }

    /// Lets the writer finish what it has, and then close. A peer that does not read does not keep
    /// it for long.
    pub(crate) fn close(self) -> JoinHandle<()> {
        let mut writer = self.writer;
        tokio::spawn(async move {
            if timeout(LAST_WORDS, &mut writer).await.is_err() {
                writer.abort();
            }
        })
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
    address: SocketAddr,
    from: Option<IpAddr>,
    signed: bool,
    events: mpsc::Sender<Event>,
) {
    let dropped = KernelDrops::read();
    let attempt = async {
        let socket = socket.map_err(|error| (LostBy::Here, error))?;
        let connected = timeout(CONNECT_TIMEOUT, socket.connect(address)).await;
        let connected = connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        connected.map_err(|error| (lost_by(&error), error))
    };
    let event = match attempt.await {
        Ok(stream) => Event::Connected(conn, stream),
        Err((by, error)) => {
            let dropped = KernelDrops::read().since(dropped);
            let refused = by == LostBy::NoAnswer
                && (signed || dropped != KernelDrops::default())
                && refuses(address, from).await;
            let (by, why) = match by {
                LostBy::NoAnswer if refused => (LostBy::Refused, "connection refused".to_owned()),
                LostBy::NoAnswer if dropped.too_far > 0 => (
                    LostBy::TooFar,
                    "the answer came with a TTL below 255 and was dropped (GTSM)".to_owned(),
                ),
                LostBy::NoAnswer => (
                    by,
                    "no answer; the address or a firewall, or the two ends differ in TCP-MD5 key or GTSM"
                        .to_owned(),
                ),
                by => (by, error.to_string()),
            };
            let text = format!("connecting to {address}: {why}");
            Event::Over(conn, Lost { by, text })
        }
    };
    // The owner is gone: so is the need.
    drop(events.send(event).await);
}

/// Whether a host takes no connections. Its kernel's refusal has an ordinary TTL, so that GTSM keeps
/// it from a session's own sockets; and a signed attempt at a closed port gets none at all.
async fn refuses(address: SocketAddr, from: Option<IpAddr>) -> bool {
    let attempt = async {
        let socket = socket::plain(address.ip(), from)?;
        socket.connect(address).await
    };
    match timeout(CONNECT_TIMEOUT, attempt).await {
        Ok(Err(error)) => lost_by(&error) == LostBy::Refused,
        Ok(Ok(_)) | Err(_) => false,
    }
}

fn lost_by(error: &io::Error) -> LostBy {
    match error.kind() {
        io::ErrorKind::TimedOut => LostBy::NoAnswer,
        io::ErrorKind::ConnectionRefused => LostBy::Refused,
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => LostBy::Unreachable,
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => LostBy::ClosedByPeer,
        io::ErrorKind::AddrNotAvailable => LostBy::Here,
        _ => LostBy::Other,
    }
}

async fn read(
    conn: ConnId,
    mut stream: OwnedReadHalf,
    events: mpsc::Sender<Event>,
    mut closed: oneshot::Receiver<()>,
) {
    let mut buffer = BytesMut::with_capacity(READ_BYTES);
    // One piece at a time: who sends most is not heard most, and what one has to say does not
    // wait behind the whole table of another.
    let turn = Arc::new(Semaphore::new(1));
    let lost = loop {
        buffer.reserve(READ_BYTES);
        let leave = Arc::clone(&turn).acquire_owned().await;
        let leave = leave.expect("nobody closes it");
        let got = tokio::select! {
            got = stream.read_buf(&mut buffer) => got,
            _ = &mut closed => return linger(stream).await,
        };
        let event = match got {
            Ok(0) => {
                break Lost {
                    by: LostBy::ClosedByPeer,
                    text: "the peer closed the connection".to_owned(),
                };
            }
            Ok(_) => Event::Bytes(conn, buffer.split().freeze(), leave),
            Err(error) => {
                break Lost {
                    by: lost_by(&error),
                    text: format!("reading: {error}"),
                };
            }
        };
        tokio::select! {
            sent = events.send(event) => if sent.is_err() { return },
            _ = &mut closed => return linger(stream).await,
        }
    };
    drop(events.send(Event::Over(conn, lost)).await);
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
    let mut fetched = Vec::new();
    while queue.recv_many(&mut fetched, SLICES_MAX).await > 0 {
        let mut batch = VecDeque::from(std::mem::take(&mut fetched));
        while !batch.is_empty() {
            let event = match write_some(&mut stream, &mut batch).await {
                Ok(octets) => Event::Written(conn, octets),
                Err(error) => {
                    let (by, text) = (lost_by(&error), format!("writing: {error}"));
                    Event::Over(conn, Lost { by, text })
                }
            };
            let failed = matches!(event, Event::Over(..));
            // After a close nobody asks any more.
            drop(events.send(event).await);
            if failed {
                return;
            }
        }
    }
    // The peer may have closed first.
    drop(stream.shutdown().await);
}

/// Writes many messages with one call and without copying them: other peers may have the same.
/// How many octets have left; what is left of the messages stays.
async fn write_some(stream: &mut OwnedWriteHalf, batch: &mut VecDeque<Bytes>) -> io::Result<usize> {
    let mut slices = [IoSlice::new(&[]); SLICES_MAX];
    let count = batch.len().min(SLICES_MAX);
    for (slice, message) in slices.iter_mut().zip(&*batch) {
        *slice = IoSlice::new(message);
    }
    let written = stream.write_vectored(&slices[..count]).await?;
    if written == 0 {
        return Err(io::ErrorKind::WriteZero.into());
    }
    let mut left = written;
    while let Some(first) = batch.front_mut()
        && left >= first.len()
    {
        left -= first.len();
        batch.pop_front();
    }
    if let Some(first) = batch.front_mut() {
        first.advance(left);
    }
    Ok(written)
}
