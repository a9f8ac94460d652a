//! Writes what a machine gives out, as many pieces at once as there are.

use crate::stream::Stream;
use bytes::Bytes;
use nbd::{Piece, Sent};
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::AsyncWrite;

/// Pieces in one write at most.
const SLICES_MAX: usize = 64;
const ZEROES: &[u8] = &[0; 1 << 16];

/// Pieces that are on their way out.
#[derive(Debug, Default)]
pub(crate) struct Outgoing {
    pieces: VecDeque<Piece<Bytes>>,
    /// Bytes of the first that are sent.
    sent: usize,
    /// Something was written that may be kept back below.
    unflushed: bool,
}

impl Outgoing {
    /// Whether more pieces are of use now.
    pub(crate) fn wants_more(&self) -> bool {
        self.pieces.len() < SLICES_MAX
    }

    pub(crate) fn push(&mut self, piece: Piece<Bytes>) {
        self.pieces.push_back(piece);
    }

    /// Writes as much as the stream takes now. `Ready` when nothing is left; `done` hears of each end that is
    /// passed.
    pub(crate) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut Stream,
        mut done: impl FnMut(Sent),
    ) -> Poll<io::Result<()>> {
        loop {
            self.pass_ends(&mut done);
            if self.pieces.is_empty() {
                return self.poll_flush(cx, stream);
            }
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let count = self.slices(&mut slices);
            let written = Pin::new(&mut *stream).poll_write_vectored(cx, &slices[..count]);
            match written {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(count)) => self.advance(count, &mut done),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
            self.unflushed = true;
        }
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>, stream: &mut Stream) -> Poll<io::Result<()>> {
        if self.unflushed && stream.is_tls() {
            std::task::ready!(Pin::new(stream).poll_flush(cx))?;
        }
        self.unflushed = false;
        Poll::Ready(Ok(()))
    }

    fn pass_ends(&mut self, done: &mut impl FnMut(Sent)) {
        while let Some(piece) = self.pieces.front() {
            match piece {
                Piece::End(sent) => done(*sent),
                piece if length(piece) == 0 => {}
                _ => return,
            }
            self.pieces.pop_front();
        }
    }

    fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>; SLICES_MAX]) -> usize {
        let mut count = 0;
        let mut skip = self.sent;
        for piece in &self.pieces {
            if count == SLICES_MAX {
                break;
            }
            let bytes = match piece {
                Piece::Head(bytes) => &bytes[skip..],
                Piece::Payload(bytes) => &bytes[skip..],
                Piece::Zeroes(len) => &ZEROES[..(*len as usize - skip).min(ZEROES.len())],
                Piece::End(_) => continue,
            };
            slices[count] = IoSlice::new(bytes);
            count += 1;
            if bytes.len() + skip < length(piece) {
                // The rest of these zeroes comes before what is behind them.
                break;
            }
            skip = 0;
        }
        count
    }

    fn advance(&mut self, mut count: usize, done: &mut impl FnMut(Sent)) {
        while count > 0 {
            self.pass_ends(done);
            let Some(piece) = self.pieces.front() else {
                return;
            };
            let left = length(piece) - self.sent;
            let taken = count.min(left);
            count -= taken;
            self.sent += taken;
            if taken == left {
                self.pieces.pop_front();
                self.sent = 0;
            }
        }
    }
}

fn length(piece: &Piece<Bytes>) -> usize {
    match piece {
        Piece::Head(bytes) => bytes.len(),
        Piece::Payload(bytes) => bytes.len(),
        Piece::Zeroes(len) => *len as usize,
        Piece::End(_) => 0,
    }
}
