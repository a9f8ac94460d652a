//! Answers to requests. A header is made only of a result that is whole, so that no read can fail behind it.

use super::Server;
use super::handshake::ALLOCATION_ID;
use super::transmission::{Flight, ReadTicket, StatusTicket, Ticket};
use crate::error::{Errno, Failure};
use crate::transmit::Piece;
use crate::wire::{
    Chunk, CommandFlags, ErrorChunk, ReplyHeader, StateFlags, StatusChunk, chunk, command,
};

/// Extents in one answer. The standard allows 2^20; who wants to know more asks again.
pub(super) const STATUS_EXTENTS_MAX: usize = 8192;

/// A piece of what was read; all of them are as long as what was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part<P> {
    /// These bytes.
    Data(P),
    /// So many zeroes.
    Hole(u32),
}

/// What is said of so many bytes. The first extent begins where the request does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// How many. What goes beyond the request is left out.
    pub len: u64,
    /// Whether they are allocated, and are zeroes.
    pub state: StateFlags,
}

impl<P: AsRef<[u8]>> Part<P> {
    fn len(&self) -> usize {
        match self {
            Self::Data(data) => data.as_ref().len(),
            Self::Hole(len) => *len as usize,
        }
    }
}

impl<P: AsRef<[u8]>> Server<P> {
    /// Answers a request that reads nothing.
    pub fn finish(&mut self, ticket: Ticket, result: Result<(), Failure>) {
        let flight = ticket.0;
        match result {
            Ok(()) => self.outbox.head(simple(0, &flight)),
            Err(failure) => self.error(&flight, failure),
        }
        self.outbox.end(flight.bytes);
    }

    /// Answers a read. Parts that are not as long as what was asked for are an error of the device's.
    pub fn finish_read(&mut self, ticket: ReadTicket, result: Result<Vec<Part<P>>, Failure>) {
        let flight = ticket.0;
        let asked = flight.header.len as usize;
        let whole =
            result.and_then(
                |parts| match parts.iter().map(Part::len).sum::<usize>() == asked {
                    true => Ok(parts),
                    false => Err(Failure::new(
                        Errno::Io,
                        "the device did not give what was asked for",
                    )),
                },
            );
        match whole {
            Err(failure) => self.error(&flight, failure),
            Ok(parts) if self.session.structured => self.chunks(&flight, parts),
            Ok(parts) => {
                self.outbox.head(simple(0, &flight));
                self.contents(parts);
            }
        }
        self.outbox.end(flight.bytes);
    }

    /// Answers a question for block status.
    pub fn finish_status(&mut self, ticket: StatusTicket, result: Result<Vec<Extent>, Failure>) {
        let flight = ticket.0;
        let extents = result.map(|extents| descriptors(&flight, &extents));
        match extents {
            Ok(extents) if extents.is_empty() => {
                let why = "the device says nothing of what is there";
                self.error(&flight, Failure::new(Errno::Io, why));
            }
            Ok(extents) => {
                let context = ALLOCATION_ID;
                let chunk = Chunk::Status(StatusChunk { context, extents });
                let cookie = flight.header.cookie;
                self.outbox.head(chunk.encode(cookie, chunk::DONE, 0));
            }
            Err(failure) => self.error(&flight, failure),
        }
        self.outbox.end(flight.bytes);
    }

    /// Data that is adjacent goes into one chunk, and so do holes; with "don't fragment" all does.
    fn chunks(&mut self, flight: &Flight, mut parts: Vec<Part<P>>) {
        parts.retain(|part| part.len() > 0);
        let cookie = flight.header.cookie;
        let whole = flight.header.flags.contains(CommandFlags::DF)
            && parts.iter().any(|part| matches!(part, Part::Data(_)));
        let mut offset = flight.header.offset;
        let mut left = flight.header.len;
        if left == 0 {
            self.outbox.head(Chunk::None.encode(cookie, chunk::DONE, 0));
        }
        let mut parts = parts.into_iter();
        while let Some(first) = parts.as_slice().first() {
            let is_hole = matches!(first, Part::Hole(_)) && !whole;
            let alike = |part: &&Part<P>| whole || matches!(part, Part::Hole(_)) == is_hole;
            let run = parts.as_slice().iter().take_while(alike);
            let (count, len) = run.fold((0, 0), |(count, len), part| (count + 1, len + part.len()));
            let len = len as u32;
            left -= len;
            let flags = if left == 0 { chunk::DONE } else { 0 };
            if is_hole {
                let hole = Chunk::Hole { offset, len };
                self.outbox.head(hole.encode(cookie, flags, 0));
                parts.by_ref().take(count).for_each(drop);
            } else {
                let data = Chunk::Data { offset };
                self.outbox.head(data.encode(cookie, flags, len));
                self.contents(parts.by_ref().take(count));
            }
            offset += u64::from(len);
        }
    }

    fn contents(&mut self, parts: impl IntoIterator<Item = Part<P>>) {
        for part in parts {
            self.outbox.push(match part {
                Part::Data(data) => Piece::Payload(data),
                Part::Hole(len) => Piece::Zeroes(len),
            });
        }
    }

    fn error(&mut self, flight: &Flight, failure: Failure) {
        let structured = self.session.structured;
        let errno = allowed(flight, structured, failure.errno);
        if !structured {
            self.outbox.head(simple(errno.code(), flight));
            return;
        }
        let range = flight.range();
        let inside = |offset: &u64| {
            offset
                .checked_sub(range.offset)
                .is_some_and(|at| at < u64::from(range.len))
        };
        let chunk = Chunk::Error(ErrorChunk {
            error: errno.code(),
            message: failure.text(),
            offset: failure.offset.filter(inside),
        });
        let cookie = flight.header.cookie;
        self.outbox.head(chunk.encode(cookie, chunk::DONE, 0));
    }
}

/// Two errors may be said of some requests only.
fn allowed(flight: &Flight, structured: bool, errno: Errno) -> Errno {
    let header = &flight.header;
    let fine = match errno {
        Errno::NotSupported => {
            header.command == command::WRITE_ZEROES
                && header.flags.contains(CommandFlags::FAST_ZERO)
        }
        Errno::Overflow => match header.command {
            command::READ => structured,
            command::WRITE => false,
            _ => true,
        },
        _ => true,
    };
    if fine { errno } else { Errno::Invalid }
}

fn simple(error: u32, flight: &Flight) -> Vec<u8> {
    let cookie = flight.header.cookie;
    ReplyHeader::Simple { error, cookie }.encode()
}

/// Extents within the request, neighbours of the same state as one.
fn descriptors(flight: &Flight, extents: &[Extent]) -> Vec<(u32, StateFlags)> {
    let one = flight.header.flags.contains(CommandFlags::REQ_ONE);
    let most = if one { 1 } else { STATUS_EXTENTS_MAX };
    let mut left = flight.header.len;
    let mut descriptors: Vec<(u32, StateFlags)> = Vec::new();
    for extent in extents {
        let len = u32::try_from(extent.len).unwrap_or(u32::MAX).min(left);
        if len == 0 {
            continue;
        }
        let full = descriptors.len() == most;
        match descriptors.last_mut() {
            Some((before, state)) if *state == extent.state => *before += len,
            _ if full => break,
            _ => descriptors.push((len, extent.state)),
        }
        left -= len;
    }
    descriptors
}
