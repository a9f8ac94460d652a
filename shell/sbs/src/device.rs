//! A volume as an NBD device: requests become those of an endpoint's session.

use crate::owner::Owner;
use blocks::{BLOCK_BYTES, Buffer, MOST_ENTRY_BLOCKS, Run};
use bytes::Bytes;
use futures::future::join_all;
use nbd::wire::StateFlags;
use nbd::{BlockSizes, ByteRange, Errno, Extent, Failure, PAYLOAD_MAX, Part};
use nbd_io::{Device, Zeroes};
use replication::{Answered, Failure as Refusal, GIVE_UP_MICROS, Op, SessionId};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::timeout;
use tracing::warn;

/// How a session is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Session {
    /// There will be one.
    Coming,
    /// It serves.
    Here(SessionId),
    /// There will be none: the volume was attached elsewhere since.
    Fenced,
}

/// A session came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lost {
    pub(crate) session: SessionId,
    pub(crate) fenced: bool,
}

/// A volume that is served.
pub(crate) struct VolumeDevice {
    /// Its size: who connects gets what it is by then.
    pub(crate) bytes: Arc<AtomicU64>,
    pub(crate) read_only: bool,
    pub(crate) owner: Owner,
    pub(crate) session: watch::Receiver<Session>,
    pub(crate) lost: mpsc::UnboundedSender<Lost>,
    /// Blocks that may be under way: [`room`].
    pub(crate) room: Semaphore,
}

/// What may be under way of one volume, in blocks: 8 MiB. More would not be done any sooner, and what is sent to other
/// hosts would wait behind it.
const ROOM: usize = 2048;

/// For [`VolumeDevice::room`].
pub(crate) fn room() -> Semaphore {
    Semaphore::new(ROOM)
}

fn blocks_of(op: &Op) -> usize {
    match op {
        Op::Write { data, .. } => data.blocks(),
        Op::Read { blocks, .. } => usize::try_from(*blocks).map_or(ROOM, |blocks| blocks.min(ROOM)),
        Op::Zero { .. }
        | Op::Allocation { .. }
        | Op::Attach { .. }
        | Op::Grow { .. }
        | Op::Change { .. } => 1,
    }
}

/// How long a request waits for a session: as long as one that has a session waits for a leader.
const SESSION_WAIT: Duration = Duration::from_micros(GIVE_UP_MICROS);
/// What clients read and write best: an extent.
const PREFERRED: u32 = 1 << 16;
/// Blocks of zeroes that are written side by side: 16 MiB.
const ZEROES_AT_ONCE: u64 = 4096;
const ZERO: &[u8; BLOCK_BYTES] = &[0; BLOCK_BYTES];

impl VolumeDevice {
    async fn session(&self) -> Result<SessionId, Failure> {
        let mut session = self.session.clone();
        let settled = session.wait_for(|session| *session != Session::Coming);
        match timeout(SESSION_WAIT, settled).await {
            Ok(Ok(session)) => match *session {
                Session::Here(session) => Ok(session),
                Session::Fenced | Session::Coming => Err(fenced()),
            },
            Ok(Err(_)) => Err(ending()),
            Err(_) => Err(Failure::new(Errno::Io, Refusal::GaveUp.to_string())),
        }
    }

    async fn ask(&self, op: Op) -> Result<Answered, Failure> {
        let room = self.room.acquire_many(blocks_of(&op) as u32).await;
        let _room = room.expect("nobody closes the semaphore");
        let session = self.session().await?;
        let lost = |fenced| {
            // The attachment may be ending, and not care.
            let _ending = self.lost.send(Lost { session, fenced });
        };
        let outcome = self.owner.ask(session, op).await;
        match outcome.ok_or_else(|| self.closed(session))? {
            Ok(answered) => Ok(answered),
            Err(refusal) => Err(match refusal {
                Refusal::Fenced => {
                    lost(true);
                    fenced()
                }
                Refusal::GaveUp => {
                    lost(false);
                    Failure::new(Errno::Io, Refusal::GaveUp.to_string())
                }
                Refusal::NoSpace => Failure::new(Errno::NoSpace, refusal.to_string()),
                other => {
                    warn!(error = %other, "A request failed");
                    Failure::new(Errno::Io, other.to_string())
                }
            }),
        }
    }

    /// Why `session` is no more, though a request of it was not answered.
    fn closed(&self, session: SessionId) -> Failure {
        match *self.session.borrow() {
            Session::Fenced => fenced(),
            Session::Here(now) if now == session => ending(),
            Session::Here(_) | Session::Coming => {
                Failure::new(Errno::Io, Refusal::GaveUp.to_string())
            }
        }
    }

    /// Several requests side by side; the first error counts, after all are done.
    async fn ask_all(&self, ops: impl Iterator<Item = Op>) -> Result<(), Failure> {
        let mut outcome = Ok(());
        for answered in join_all(ops.map(|op| self.ask(op))).await {
            outcome = outcome.and(answered.map(drop));
        }
        outcome
    }

    async fn zero(&self, range: ByteRange) -> Result<(), Failure> {
        let (lba, blocks) = in_blocks(range.offset, u64::from(range.len));
        self.ask(Op::Zero { lba, blocks }).await.map(drop)
    }

    async fn write_blocks(&self, lba: u64, data: Buffer) -> Result<(), Failure> {
        let most = MOST_ENTRY_BLOCKS as usize;
        let parts = (0..data.blocks()).step_by(most).map(|from| {
            let blocks = most.min(data.blocks() - from);
            Op::Write {
                lba: lba + from as u64,
                data: data.part(from, blocks),
            }
        });
        self.ask_all(parts).await
    }
}

fn fenced() -> Failure {
    Failure::new(Errno::Shutdown, Refusal::Fenced.to_string())
}

fn odd() -> Failure {
    Failure::new(Errno::Io, "a read was answered with something else")
}

fn ending() -> Failure {
    Failure::new(
        Errno::Shutdown,
        "the volume is detached, or the storage process ends",
    )
}

fn in_blocks(offset: u64, len: u64) -> (u64, u64) {
    let block = BLOCK_BYTES as u64;
    // The minimum block size is a block: that ranges are multiples of it was looked at.
    (offset / block, len / block)
}

/// A block of a buffer, shared with it.
struct BlockOf {
    buffer: Buffer,
    block: usize,
}

impl AsRef<[u8]> for BlockOf {
    fn as_ref(&self) -> &[u8] {
        &self.buffer.pages()[self.block].0
    }
}

/// What was read, without a copy; blocks of zeroes as holes.
fn parts(buffers: Vec<Buffer>) -> Vec<Part<Bytes>> {
    let mut parts = Vec::new();
    for buffer in buffers {
        for (block, page) in buffer.pages().iter().enumerate() {
            parts.push(match page.0 == *ZERO {
                true => Part::Hole(BLOCK_BYTES as u32),
                false => {
                    let buffer = buffer.clone();
                    Part::Data(Bytes::from_owner(BlockOf { buffer, block }))
                }
            });
        }
    }
    parts
}

impl Device for VolumeDevice {
    fn size(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    fn block_sizes(&self) -> BlockSizes {
        BlockSizes::new(BLOCK_BYTES as u32, PREFERRED, PAYLOAD_MAX).expect("these are allowed")
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }

    async fn read(&self, range: ByteRange) -> Result<Vec<Part<Bytes>>, Failure> {
        let (lba, blocks) = in_blocks(range.offset, u64::from(range.len));
        match self.ask(Op::Read { lba, blocks }).await? {
            Answered::Data(buffers) => Ok(parts(buffers)),
            Answered::Done | Answered::Attached { .. } | Answered::Allocation(_) => Err(odd()),
        }
    }

    async fn write(&self, offset: u64, data: nbd_io::Buffer, _fua: bool) -> Result<(), Failure> {
        // Whatever is answered is on a majority's disks.
        let (lba, _) = in_blocks(offset, 0);
        let copy = Buffer::copied(&data);
        drop(data);
        self.write_blocks(lba, copy).await
    }

    async fn flush(&self) -> Result<(), Failure> {
        self.session().await.map(drop)
    }

    async fn trim(&self, range: ByteRange, _fua: bool) -> Result<(), Failure> {
        self.zero(range).await
    }

    async fn write_zeroes(&self, range: ByteRange, how: Zeroes) -> Result<(), Failure> {
        if !how.no_hole {
            return self.zero(range).await;
        }
        if how.fast {
            let why = "zeroes that stay allocated are written like any other data";
            return Err(Failure::new(Errno::NotSupported, why));
        }
        let (lba, blocks) = in_blocks(range.offset, u64::from(range.len));
        let zeroes = Buffer::zeroed(MOST_ENTRY_BLOCKS as usize);
        let mut done = 0;
        while done < blocks {
            let some = (blocks - done).min(ZEROES_AT_ONCE);
            let ops = (0..some).step_by(MOST_ENTRY_BLOCKS as usize).map(|from| {
                let count = (some - from).min(u64::from(MOST_ENTRY_BLOCKS));
                Op::Write {
                    lba: lba + done + from,
                    data: zeroes.part(0, count as usize),
                }
            });
            self.ask_all(ops).await?;
            done += some;
        }
        Ok(())
    }

    async fn cache(&self, _range: ByteRange) -> Result<(), Failure> {
        self.session().await.map(drop)
    }

    async fn status(&self, range: ByteRange, _one: bool) -> Result<Vec<Extent>, Failure> {
        let (lba, blocks) = in_blocks(range.offset, u64::from(range.len));
        match self.ask(Op::Allocation { lba, blocks }).await? {
            Answered::Allocation(runs) => Ok(runs.into_iter().map(extent).collect()),
            Answered::Done | Answered::Attached { .. } | Answered::Data(_) => Err(odd()),
        }
    }
}

/// What was never written, or was zeroed since, takes no room and reads as zeroes.
fn extent(run: Run) -> Extent {
    Extent {
        len: run.blocks.saturating_mul(BLOCK_BYTES as u64),
        state: match run.written {
            true => StateFlags::NONE,
            false => StateFlags::HOLE | StateFlags::ZERO,
        },
    }
}
