//! Calls another host, and sends it frames.

use super::tls::{LinkError, agree, connector, server_name};
use super::{Own, blocks, prepare};
use crate::look::PeerLook;
use crate::owner::Owner;
use ::blocks::Buffer;
use model::HostId;
use nix::sys::socket::{setsockopt, sockopt};
use replication::wire::{Encoded, encode_frame};
use replication::{BEAT_MICROS, Frame};
use std::io::IoSlice;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_rustls::client::TlsStream;
use tracing::{debug, info, warn};

/// What waits for a host that is slow, at most: 64 MiB.
const MOST_WAITING_BLOCKS: usize = 1 << 14;
/// A host that does not take anything for so long is not reached any more: replicas take it for down sooner.
const STUCK_MILLIS: u32 = 2000;
const CONNECT_WAIT: Duration = Duration::from_secs(2);
/// Between attempts to reach a host: a new leader needs its followers soon.
const RETRY: Duration = Duration::from_millis(200);
/// So often at least is a host heard that sends blocks all the time, however long these take on their way.
const SAY_MICROS: u64 = BEAT_MICROS / 2;
/// Slices of one write: what TLS takes at once is about that many blocks.
const SLICES: usize = 32;

/// A link to a host, as long as it is kept: two connections, so that what tells that this host is there, and who
/// leads, never waits behind blocks.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) address: SocketAddr,
    /// Frames without blocks.
    words: Lane,
    /// Frames with blocks.
    blocks: Lane,
    /// When a frame was last sent without blocks, as [`Frame::sent`].
    said: AtomicU64,
}

impl Link {
    pub(super) fn start(host: HostId, address: SocketAddr, own: Arc<Own>, owner: &Owner) -> Self {
        Self {
            address,
            words: Lane::start(host, address, Arc::clone(&own), owner),
            blocks: Lane::start(host, address, own, owner),
            said: AtomicU64::new(0),
        }
    }

    pub(super) fn send(&self, frame: Frame) {
        let now = frame.sent.0;
        if blocks(&frame) == 1 {
            self.said.store(now, Ordering::Relaxed);
            return self.words.send(frame);
        }
        if now.saturating_sub(self.said.load(Ordering::Relaxed)) >= SAY_MICROS {
            self.said.store(now, Ordering::Relaxed);
            // It says the same of this host as the other, and is there sooner.
            self.words.send(Frame {
                messages: Vec::new(),
                ..frame
            });
        }
        self.blocks.send(frame);
    }

    pub(super) fn look(&self) -> PeerLook {
        let lanes = [&self.words, &self.blocks];
        let reached = lanes.map(|lane| lane.state.reached());
        let trouble = reached.iter().find_map(|reached| match reached {
            Reached::No(why) => Some(why.clone()),
            Reached::NotYet | Reached::Yes => None,
        });
        let dropped = lanes.map(|lane| lane.state.dropped.load(Ordering::Relaxed));
        PeerLook {
            address: self.address.ip(),
            connected: reached.iter().all(|reached| *reached == Reached::Yes),
            trouble,
            dropped_frames: dropped.iter().sum(),
        }
    }
}

/// One connection of a link.
#[derive(Debug)]
struct Lane {
    frames: UnboundedSender<Frame>,
    state: Arc<State>,
    task: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct State {
    /// Blocks that wait to be sent; none may while the host is not reached.
    waiting: AtomicUsize,
    dropped: AtomicU64,
    reached: Mutex<Reached>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
enum Reached {
    #[default]
    NotYet,
    Yes,
    No(String),
}

impl State {
    fn reached(&self) -> Reached {
        let held = self.reached.lock().unwrap_or_else(PoisonError::into_inner);
        held.clone()
    }

    /// What it was before.
    fn set(&self, reached: Reached) -> Reached {
        let mut held = self.reached.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut held, reached)
    }
}

impl Lane {
    fn start(host: HostId, address: SocketAddr, own: Arc<Own>, owner: &Owner) -> Self {
        let (frames, queue) = unbounded_channel();
        let state = Arc::new(State::default());
        let task = owner.spawn(run(host, address, own, queue, Arc::clone(&state)));
        Self {
            frames,
            state,
            task,
        }
    }

    fn send(&self, frame: Frame) {
        let blocks = blocks(&frame);
        let waiting = self.state.waiting.fetch_add(blocks, Ordering::Relaxed);
        let up = self.state.reached() == Reached::Yes;
        let sent = up && waiting + blocks <= MOST_WAITING_BLOCKS && self.frames.send(frame).is_ok();
        if !sent {
            self.state.waiting.fetch_sub(blocks, Ordering::Relaxed);
            self.state.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn run(
    host: HostId,
    address: SocketAddr,
    own: Arc<Own>,
    mut queue: UnboundedReceiver<Frame>,
    state: Arc<State>,
) {
    loop {
        let connected = timeout(CONNECT_WAIT, connect(host, address, &own)).await;
        let ended = match connected.unwrap_or(Err(LinkError::Late)) {
            Err(error) => error,
            Ok(mut stream) => {
                state.set(Reached::Yes);
                info!(%host, %address, "A storage host is reached");
                let ended = talk(&mut stream, &mut queue, &state).await;
                if matches!(ended, Ok(())) {
                    return;
                }
                ended.expect_err("the other way was looked at")
            }
        };
        let why = ended.to_string();
        let before = state.set(Reached::No(why.clone()));
        if before == Reached::No(why.clone()) {
            debug!(%host, %address, why, "A storage host is not reached");
        } else {
            warn!(%host, %address, why, "A storage host is not reached");
        }
        // What waited is of no use later.
        while let Ok(frame) = queue.try_recv() {
            state.waiting.fetch_sub(blocks(&frame), Ordering::Relaxed);
            state.dropped.fetch_add(1, Ordering::Relaxed);
        }
        sleep(RETRY).await;
    }
}

async fn connect(
    host: HostId,
    address: SocketAddr,
    own: &Own,
) -> Result<TlsStream<TcpStream>, LinkError> {
    let stream = TcpStream::connect(address).await?;
    prepare(&stream)?;
    setsockopt(&stream, sockopt::TcpUserTimeout, &STUCK_MILLIS).map_err(std::io::Error::from)?;
    let mut stream = connector(own, host)?.connect(server_name(), stream).await?;
    agree(&mut stream, own, host).await?;
    Ok(stream)
}

/// Sends what there is to send. Ends well when there will be nothing more.
async fn talk(
    stream: &mut TlsStream<TcpStream>,
    queue: &mut UnboundedReceiver<Frame>,
    state: &State,
) -> Result<(), LinkError> {
    let mut byte = [0];
    loop {
        let frame = tokio::select! {
            biased;
            frame = queue.recv() => frame,
            read = stream.read(&mut byte) => match read? {
                0 => return Err(LinkError::Closed),
                _ => return Err(LinkError::Odd),
            },
        };
        let Some(frame) = frame else { return Ok(()) };
        let blocks = blocks(&frame);
        let written = timeout(CONNECT_WAIT, write(stream, &encode_frame(&frame))).await;
        state.waiting.fetch_sub(blocks, Ordering::Relaxed);
        written.unwrap_or(Err(LinkError::Late))?;
    }
}

async fn write(stream: &mut TlsStream<TcpStream>, encoded: &Encoded) -> Result<(), LinkError> {
    let pages = encoded.payload.iter().flat_map(Buffer::pages);
    let pages = pages.map(|page| &page.0[..]);
    let all: Vec<&[u8]> = std::iter::once(&encoded.head[..]).chain(pages).collect();
    for some in all.chunks(SLICES) {
        let mut slices: Vec<IoSlice<'_>> = some.iter().map(|bytes| IoSlice::new(bytes)).collect();
        let mut left = &mut slices[..];
        while !left.is_empty() {
            match stream.write_vectored(left).await? {
                0 => return Err(LinkError::Closed),
                count => IoSlice::advance_slices(&mut left, count),
            }
        }
    }
    stream.flush().await?;
    Ok(())
}
