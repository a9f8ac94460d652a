//! Hears other hosts.

use super::tls::{LinkError, acceptor, agree, host_of};
use super::{Own, prepare};
use crate::identity;
use crate::owner::{Event, Owner};
use ::blocks::Buffer;
use model::{HostId, STORAGE_PORT};
use replication::Frame;
use replication::wire::{PREFIX_BYTES, decode_frame, decode_prefix};
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};
use tokio_rustls::server::TlsStream;
use tracing::{debug, info, warn};

/// Hosts have two connections each, and for a moment more.
const CONNECTIONS: usize = 1024;
const HANDSHAKE_WAIT: Duration = Duration::from_secs(5);
const RETRY: Duration = Duration::from_secs(1);
/// A frame that has begun is there after so long, or its sender is gone.
const FRAME_WAIT: Duration = Duration::from_secs(5);
/// Connections of a host: one for words, one for blocks.
const LANES: usize = 2;
/// What one host may have waiting here, in blocks: two of the largest frames.
const ROOM: usize = 2 * ROOM_OF_ONE;
/// The largest payload, and the largest head.
const ROOM_OF_ONE: usize = (1 << 14) + (1 << 10);

/// A socket that is listened at.
pub(crate) struct Listening(TcpListener);

impl Listening {
    pub(crate) async fn bind(address: IpAddr) -> io::Result<Self> {
        let address = SocketAddr::new(address, STORAGE_PORT);
        Ok(Self(TcpListener::bind(address).await?))
    }
}

/// The connections of each host that is heard: a new one ends the oldest.
type Heard = Arc<Mutex<BTreeMap<HostId, VecDeque<AbortHandle>>>>;

/// Hears hosts until it is dropped.
pub(crate) async fn listen(listening: Listening, own: Arc<Own>, owner: Owner) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    let heard = Heard::default();
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let slot = Arc::clone(&slots).acquire_owned().await;
        let slot = slot.expect("nobody closes the semaphore");
        let (stream, address) = match listening.0.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                debug!(%error, "A connection is not accepted");
                sleep(RETRY).await;
                continue;
            }
        };
        let (own, owner, heard) = (Arc::clone(&own), owner.clone(), Arc::clone(&heard));
        connections.spawn(async move {
            let _slot = slot;
            let shaken = timeout(HANDSHAKE_WAIT, shake_hands(stream, &own)).await;
            match shaken.unwrap_or(Err(LinkError::Late)) {
                Ok((stream, host)) => {
                    info!(%host, %address, "A storage host is heard");
                    hear(stream, host, &owner, &heard).await;
                }
                Err(error) => warn!(%address, %error, "A connection for storage is refused"),
            }
        });
    }
}

async fn shake_hands(
    stream: TcpStream,
    own: &Own,
) -> Result<(TlsStream<TcpStream>, HostId), LinkError> {
    prepare(&stream)?;
    let mut stream = acceptor(own)?.accept(stream).await?;
    let host = host_of(own, stream.get_ref().1.peer_certificates())?;
    agree(&mut stream, own, host).await?;
    Ok((stream, host))
}

async fn hear(stream: TlsStream<TcpStream>, host: HostId, owner: &Owner, heard: &Heard) {
    let owner = owner.clone();
    let reading = tokio::spawn(async move { read_all(stream, host, &owner).await });
    let oldest = {
        let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
        let lanes = heard.entry(host).or_default();
        lanes.retain(|lane| !lane.is_finished());
        lanes.push_back(reading.abort_handle());
        (lanes.len() > LANES).then(|| lanes.pop_front()).flatten()
    };
    if let Some(oldest) = oldest {
        oldest.abort();
    }
    match reading.await {
        Ok(Err(error)) => warn!(%host, %error, "A storage host is heard no more"),
        // Another connection took its place.
        Ok(Ok(())) | Err(_) => debug!(%host, "A connection of a storage host ended"),
    }
}

async fn read_all(
    mut stream: TlsStream<TcpStream>,
    host: HostId,
    owner: &Owner,
) -> Result<(), LinkError> {
    let room = Arc::new(Semaphore::new(ROOM));
    loop {
        // A machine that is gone without a word is noticed by the connection itself.
        let first = match stream.read_u8().await {
            Ok(first) => first,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(LinkError::Closed);
            }
            Err(error) => return Err(error.into()),
        };
        let read = timeout(FRAME_WAIT, read_frame(&mut stream, first, &room)).await;
        let (frame, room) = read.unwrap_or(Err(LinkError::Late))?;
        let from = identity::host(host);
        let event = Event::Frame {
            from,
            frame,
            _room: room,
        };
        if owner.tell(event).is_err() {
            return Ok(());
        }
    }
}

/// Payload goes to where the disk takes it from. A host that has too much here waits.
async fn read_frame(
    stream: &mut (impl AsyncRead + Unpin),
    first: u8,
    room: &Arc<Semaphore>,
) -> Result<(Frame, OwnedSemaphorePermit), LinkError> {
    let mut prefix = [0; PREFIX_BYTES];
    prefix[0] = first;
    stream.read_exact(&mut prefix[1..]).await?;
    let prefix = decode_prefix(&prefix)?;
    let head_blocks = prefix.head_bytes.div_ceil(::blocks::BLOCK_BYTES as u32);
    let wanted = Arc::clone(room).acquire_many_owned(prefix.payload_blocks + head_blocks);
    let room = wanted.await.expect("nobody closes the semaphore");
    let mut head = vec![0; prefix.head_bytes as usize];
    stream.read_exact(&mut head).await?;
    let mut payload = Buffer::zeroed(prefix.payload_blocks as usize);
    let pages = payload.pages_mut().expect("it is not shared yet");
    for page in pages {
        stream.read_exact(&mut page.0).await?;
    }
    Ok((decode_frame(&prefix, &head, &payload)?, room))
}
