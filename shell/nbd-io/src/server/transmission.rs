//! Requests and answers of one client.

use super::Settings;
use super::connection::Over;
use crate::buffer::{Buffer, Pool};
use crate::device::{Device, Zeroes};
use crate::outgoing::Outgoing;
use crate::stream::Stream;
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use nbd::{
    Extent, Failure, Next, Part, ReadTicket, Request, Server, StatusTicket, Ticket, WriteRequest,
};
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::watch;

/// Bytes read at once where requests are expected, with the payloads of small writes: to copy those costs less than to
/// ask the kernel for each.
const RECEIVED_BYTES: usize = 64 << 10;
/// The same while writes are large: so much of a payload at most is copied, and the rest goes to where it is wanted.
const HEADERS_BYTES: usize = 1024;
/// From here on a payload is large.
const LARGE_PAYLOAD: usize = 16 << 10;

/// A client that is served. One task owns all of it.
pub(super) struct Transmission {
    server: Server<Bytes>,
    stream: Stream,
    outgoing: Outgoing,
    received: Box<[u8]>,
    /// What of `received` is not taken yet.
    unread: std::ops::Range<usize>,
    payload: Option<Payload>,
    /// The last write was large: so may be the next.
    large: bool,
    pool: Pool,
    in_flight: FuturesUnordered<BoxFuture<'static, Answered>>,
    /// None once it was heard, or nobody is left to say it.
    stop: Option<BoxFuture<'static, bool>>,
    /// The client is gone: what is in flight is finished, but nobody hears of it.
    gone: Option<Over>,
}

/// A write's payload that is coming.
struct Payload {
    buffer: Buffer,
    filled: usize,
}

/// What a device said.
enum Answered {
    Done(Ticket, Result<(), Failure>),
    Read(ReadTicket, Result<Vec<Part<Bytes>>, Failure>),
    Status(StatusTicket, Result<Vec<Extent>, Failure>),
}

impl Transmission {
    pub(super) fn new(
        server: Server<Bytes>,
        stream: Stream,
        settings: Settings,
        mut stopped: watch::Receiver<bool>,
    ) -> Self {
        Self {
            server,
            stream,
            outgoing: Outgoing::default(),
            received: vec![0; RECEIVED_BYTES].into(),
            unread: 0..0,
            payload: None,
            large: false,
            pool: settings.pool,
            in_flight: FuturesUnordered::new(),
            stop: Some(Box::pin(async move {
                stopped.wait_for(|stopped| *stopped).await.is_ok()
            })),
            gone: None,
        }
    }

    pub(super) async fn run<D: Device>(&mut self, device: Arc<D>) -> Over {
        poll_fn(|cx| self.poll(cx, &device)).await
    }

    pub(super) fn into_stream(self) -> Stream {
        self.stream
    }

    /// Does all that can be done now, over and over, until nothing can.
    fn poll<D: Device>(&mut self, cx: &mut Context<'_>, device: &Arc<D>) -> Poll<Over> {
        if let Some(stop) = &mut self.stop
            && let Poll::Ready(told) = stop.as_mut().poll(cx)
        {
            self.stop = None;
            if told {
                self.server.shut_down();
            }
        }
        loop {
            let answered = self.take_answers(cx);
            if let Some(over) = self.gone.take_if(|_| self.in_flight.is_empty()) {
                return Poll::Ready(over);
            }
            if self.gone.is_some() {
                return Poll::Pending;
            }
            let begun = match self.poll_read(cx, device) {
                Poll::Ready(Err(Over::Ended(ending))) => return Poll::Ready(Over::Ended(ending)),
                Poll::Ready(Err(over)) => {
                    self.gone = Some(over);
                    continue;
                }
                Poll::Ready(Ok(())) => true,
                Poll::Pending => false,
            };
            // After reading: what was refused has an answer without a device.
            let sent = match self.write(cx) {
                Ok(sent) => sent,
                Err(error) => {
                    self.gone = Some(Over::Failed(error));
                    continue;
                }
            };
            if !(answered || begun || sent) {
                return Poll::Pending;
            }
        }
    }

    fn take_answers(&mut self, cx: &mut Context<'_>) -> bool {
        let mut some = false;
        while let Poll::Ready(Some(answered)) = self.in_flight.poll_next_unpin(cx) {
            some = true;
            match answered {
                Answered::Done(ticket, result) => self.server.finish(ticket, result),
                Answered::Read(ticket, result) => self.server.finish_read(ticket, result),
                Answered::Status(ticket, result) => self.server.finish_status(ticket, result),
            }
        }
        some
    }

    /// Sends what can be sent now; whether that made room for more.
    fn write(&mut self, cx: &mut Context<'_>) -> io::Result<bool> {
        let mut room = false;
        loop {
            // What is full now may leave more behind, which nobody would wake this task for.
            let mut more = !self.outgoing.wants_more();
            while self.outgoing.wants_more()
                && let Some(piece) = self.server.poll_transmit()
            {
                self.outgoing.push(piece);
                more = true;
            }
            let server = &mut self.server;
            let written = self.outgoing.poll_write(cx, &mut self.stream, |sent| {
                server.sent(sent);
                room = true;
            });
            match written {
                Poll::Ready(Ok(())) if more => {}
                Poll::Ready(Ok(())) | Poll::Pending => return Ok(room),
                Poll::Ready(Err(error)) => return Err(error),
            }
        }
    }

    /// Ready when something has begun, or it is over.
    fn poll_read<D: Device>(
        &mut self,
        cx: &mut Context<'_>,
        device: &Arc<D>,
    ) -> Poll<Result<(), Over>> {
        let mut begun = false;
        loop {
            let mut given = &self.received[self.unread.clone()];
            let next = self.server.next(&mut given);
            self.unread.start = self.unread.end - given.len();
            let read = match next {
                Next::Read(_) => self.poll_requests(cx),
                Next::Payload(len) => self.poll_payload(cx, len as usize).map_ok(|buffer| {
                    let write = self.server.payload_received();
                    self.in_flight
                        .push(Box::pin(write_to(Arc::clone(device), write, buffer)));
                    begun = true;
                }),
                Next::Request(request) => {
                    self.in_flight
                        .push(Box::pin(carry_out(Arc::clone(device), request)));
                    begun = true;
                    Poll::Ready(Ok(()))
                }
                Next::Wait => Poll::Pending,
                Next::Close(ending) => return Poll::Ready(Err(Over::Ended(ending))),
                Next::Find(_) | Next::List | Next::StartTls | Next::Serve => {
                    unreachable!("an export is served")
                }
            };
            match read {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(over)) => return Poll::Ready(Err(over)),
                Poll::Pending if begun => return Poll::Ready(Ok(())),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    fn poll_requests(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Over>> {
        let most = match self.large {
            true => HEADERS_BYTES,
            false => RECEIVED_BYTES,
        };
        let mut buffer = ReadBuf::new(&mut self.received[..most]);
        ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer))?;
        self.unread = 0..buffer.filled().len();
        if self.unread.is_empty() {
            return Poll::Ready(Err(Over::Gone));
        }
        Poll::Ready(Ok(()))
    }

    fn poll_payload(&mut self, cx: &mut Context<'_>, len: usize) -> Poll<Result<Buffer, Over>> {
        self.large = len >= LARGE_PAYLOAD;
        let payload = self.payload.get_or_insert_with(|| Payload {
            buffer: self.pool.take(len),
            filled: 0,
        });
        let came = self.unread.len().min(len - payload.filled);
        payload.buffer[payload.filled..][..came]
            .copy_from_slice(&self.received[self.unread.start..][..came]);
        self.unread.start += came;
        payload.filled += came;
        while payload.filled < len {
            let mut buffer = ReadBuf::new(&mut payload.buffer[payload.filled..]);
            ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer))?;
            match buffer.filled().len() {
                0 => return Poll::Ready(Err(Over::Gone)),
                count => payload.filled += count,
            }
        }
        let payload = self.payload.take().expect("it was just filled");
        Poll::Ready(Ok(payload.buffer))
    }
}

async fn write_to<D: Device>(device: Arc<D>, write: WriteRequest, data: Buffer) -> Answered {
    let result = device.write(write.range.offset, data, write.fua).await;
    Answered::Done(write.ticket, result)
}

async fn carry_out<D: Device>(device: Arc<D>, request: Request) -> Answered {
    match request {
        Request::Read { ticket, range } => Answered::Read(ticket, device.read(range).await),
        Request::Flush { ticket } => Answered::Done(ticket, device.flush().await),
        Request::Trim { ticket, range, fua } => {
            Answered::Done(ticket, device.trim(range, fua).await)
        }
        Request::WriteZeroes {
            ticket,
            range,
            fua,
            no_hole,
            fast,
        } => {
            let how = Zeroes { fua, no_hole, fast };
            Answered::Done(ticket, device.write_zeroes(range, how).await)
        }
        Request::Cache { ticket, range } => Answered::Done(ticket, device.cache(range).await),
        Request::BlockStatus { ticket, range, one } => {
            Answered::Status(ticket, device.status(range, one).await)
        }
    }
}
