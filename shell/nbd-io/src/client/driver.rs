//! Owns a client's connection: sends what is asked, puts answers where they belong.

use super::RequestError;
use crate::buffer::{Buffer, Pool};
use crate::outgoing::Outgoing;
use crate::stream::Stream;
use bytes::Bytes;
use nbd::{Answer, Client, ClientNext, Command, Cookie, Failure};
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWriteExt, ReadBuf};
use tokio::sync::{mpsc, oneshot};
use tracing::debug;

/// A request on its way to the connection.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) command: Command<Bytes>,
    pub(super) reply: oneshot::Sender<Result<Reply, RequestError>>,
}

/// What comes back.
#[derive(Debug)]
pub(super) enum Reply {
    Read(Buffer),
    Answer(Answer),
}

/// Requests in flight at once.
const IN_FLIGHT_MAX: usize = 128;
/// Bytes read at once where a reply is expected.
const HEADERS_BYTES: usize = 1024;

pub(super) struct Driver {
    machine: Client<Bytes>,
    stream: Stream,
    outgoing: Outgoing,
    asked: Option<mpsc::Receiver<Asked>>,
    waiting: BTreeMap<Cookie, Waiting>,
    headers: Box<[u8; HEADERS_BYTES]>,
    /// What of `headers` is not taken yet.
    unread: std::ops::Range<usize>,
    /// Bytes of the data that is coming that came.
    filled: usize,
    pool: Pool,
}

struct Waiting {
    buffer: Option<Buffer>,
    reply: oneshot::Sender<Result<Reply, RequestError>>,
}

impl Driver {
    pub(super) fn new(
        machine: Client<Bytes>,
        stream: Stream,
        asked: mpsc::Receiver<Asked>,
        pool: Pool,
    ) -> Self {
        Self {
            machine,
            stream,
            outgoing: Outgoing::default(),
            asked: Some(asked),
            waiting: BTreeMap::new(),
            headers: Box::new([0; HEADERS_BYTES]),
            unread: 0..0,
            filled: 0,
            pool,
        }
    }

    /// Until it is closed or lost. Whoever still waits hears of it by its sender's end.
    pub(super) async fn run(mut self) {
        let over = poll_fn(|cx| self.poll(cx)).await;
        if let Err(error) = over {
            debug!(%error, unanswered = self.waiting.len(), "NBD server lost");
        }
        // It may be gone already.
        drop(self.stream.shutdown().await);
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let begun = self.take_requests(cx);
            let sent = self.poll_write(cx)?;
            if sent.is_ready() && self.machine.is_closed() {
                return Poll::Ready(Ok(()));
            }
            let read = self.poll_read(cx)?;
            if read.is_pending() && !begun {
                return Poll::Pending;
            }
        }
    }

    fn take_requests(&mut self, cx: &mut Context<'_>) -> bool {
        let mut begun = false;
        while self.waiting.len() < IN_FLIGHT_MAX
            && let Some(asked) = &mut self.asked
        {
            match asked.poll_recv(cx) {
                Poll::Ready(Some(asked)) => self.begin(asked),
                Poll::Ready(None) => {
                    self.asked = None;
                    self.machine.close();
                }
                Poll::Pending => break,
            }
            begun = true;
        }
        begun
    }

    fn begin(&mut self, Asked { command, reply }: Asked) {
        let len = match command {
            Command::Read { len, .. } => Some(len),
            _ => None,
        };
        match self.machine.send(command) {
            Ok(cookie) => {
                let buffer = len.map(|len| self.pool.take(len as usize));
                self.waiting.insert(cookie, Waiting { buffer, reply });
            }
            Err(error) => answer(reply, Err(error.into())),
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Result<Poll<()>, io::Error> {
        loop {
            let mut more = false;
            while self.outgoing.wants_more()
                && let Some(piece) = self.machine.poll_transmit()
            {
                self.outgoing.push(piece);
                more = true;
            }
            match self.outgoing.poll_write(cx, &mut self.stream, drop) {
                Poll::Ready(Ok(())) if more => {}
                Poll::Ready(Ok(())) => return Ok(Poll::Ready(())),
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => return Ok(Poll::Pending),
            }
        }
    }

    /// Ready when something was answered, so that there is room for more.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Result<Poll<()>, io::Error> {
        let mut answered = false;
        loop {
            let mut given = &self.headers[self.unread.clone()];
            let next = self.machine.next(&mut given);
            self.unread.start = self.unread.end - given.len();
            let read = match next {
                ClientNext::Read(_) => self.poll_headers(cx),
                ClientNext::Data { cookie, at, len } => {
                    self.poll_data(cx, cookie, at as usize, len as usize)
                }
                ClientNext::Hole { cookie, at, len } => {
                    if let Some(buffer) = buffer(&mut self.waiting, cookie) {
                        buffer[at as usize..][..len as usize].fill(0);
                    }
                    Poll::Ready(Ok(()))
                }
                ClientNext::Done { cookie, result } => {
                    self.finish(cookie, result);
                    answered = true;
                    Poll::Ready(Ok(()))
                }
                ClientNext::Fail(error) => return Err(io::Error::other(error)),
                ClientNext::StartTls | ClientNext::Ready(_) => {
                    unreachable!("the handshake is over")
                }
            };
            match read {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending if answered => return Ok(Poll::Ready(())),
                Poll::Pending => return Ok(Poll::Pending),
            }
        }
    }

    fn poll_headers(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut buffer = ReadBuf::new(&mut self.headers[..]);
        ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer))?;
        self.unread = 0..buffer.filled().len();
        match self.unread.is_empty() {
            true => Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
            false => Poll::Ready(Ok(())),
        }
    }

    fn poll_data(
        &mut self,
        cx: &mut Context<'_>,
        cookie: Cookie,
        at: usize,
        len: usize,
    ) -> Poll<io::Result<()>> {
        let buffer = buffer(&mut self.waiting, cookie).expect("data comes for reads in flight");
        let place = &mut buffer[at..at + len];
        let came = self.unread.len().min(len - self.filled);
        place[self.filled..][..came].copy_from_slice(&self.headers[self.unread.start..][..came]);
        self.unread.start += came;
        self.filled += came;
        while self.filled < len {
            let mut buffer = ReadBuf::new(&mut place[self.filled..]);
            ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer))?;
            match buffer.filled().len() {
                0 => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                count => self.filled += count,
            }
        }
        self.filled = 0;
        self.machine.payload_received();
        Poll::Ready(Ok(()))
    }

    fn finish(&mut self, cookie: Cookie, result: Result<Answer, Failure>) {
        let Some(Waiting { buffer, reply }) = self.waiting.remove(&cookie) else {
            return;
        };
        let result = result.map(|said| match buffer {
            Some(buffer) => Reply::Read(buffer),
            None => Reply::Answer(said),
        });
        answer(reply, result.map_err(RequestError::from));
    }
}

fn buffer(waiting: &mut BTreeMap<Cookie, Waiting>, cookie: Cookie) -> Option<&mut Buffer> {
    waiting.get_mut(&cookie)?.buffer.as_mut()
}

/// Who asked may not wait any more.
fn answer(
    reply: oneshot::Sender<Result<Reply, RequestError>>,
    result: Result<Reply, RequestError>,
) {
    drop(reply.send(result));
}
