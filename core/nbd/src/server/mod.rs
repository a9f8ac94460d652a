//! A server's side of one connection.

mod handshake;
mod replies;
mod transmission;

pub use replies::{Extent, Part};
pub use transmission::{ByteRange, ReadTicket, Request, StatusTicket, Ticket, WriteRequest};

use crate::gather::Gather;
use crate::transmit::{Outbox, Piece, Sent};
use crate::wire::{HandshakeFlags, greeting};
use handshake::{Handshake, Session};
use std::fmt;
use transmission::Transmission;

/// One connection. `P` is a buffer with what was read from a device.
///
/// The caller's loop: [`Server::next`] with what came from the client, and do what it says; take all of
/// [`Server::poll_transmit`] and send it, and say so with [`Server::sent`]. Answers to requests may come in any
/// order.
#[derive(Debug)]
pub struct Server<P> {
    tls: Tls,
    limits: Limits,
    phase: Phase,
    session: Session,
    stopping: bool,
    /// Of what the client is to hear that is not sent yet.
    pending: u32,
    pending_bytes: u64,
    gather: Gather,
    outbox: Outbox<P>,
}

/// Whether a connection is encrypted ("Server-side requirements").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tls {
    /// NOTLS: there is none.
    Absent,
    /// FORCEDTLS: nothing is told and nothing served without.
    Required,
}

/// What one client can make a server hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Options in a handshake. A client that has not decided by then never will.
    pub options: u32,
    /// Requests that are not answered yet; no more are read until one is.
    pub requests: u32,
    /// Bytes of them, read or to be written. A single request may exceed it.
    pub bytes: u64,
}

impl Default for Limits {
    /// As many requests as Linux's client sends at once by default, and each of libnbd's largest.
    fn default() -> Self {
        Self {
            options: 128,
            requests: 128,
            bytes: 1 << 26,
        }
    }
}

/// What a server has to do next.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// So many bytes are needed. Once there was [`Next::Serve`] more of them may be given, before it not: what
    /// follows may be TLS.
    Read(usize),
    /// So many bytes go into a buffer; then [`Server::payload_received`]. Whatever is left of what was given
    /// belongs to it.
    Payload(u32),
    /// Which export is this? Answered with [`Server::found`].
    Find(String),
    /// Which exports are there? Answered with [`Server::listed`].
    List,
    /// All is sent: a TLS handshake begins, then [`Server::tls_started`].
    StartTls,
    /// The export found last is served from now on. The handshake's deadline is kept.
    Serve,
    /// A request to carry out.
    Request(Request),
    /// Nothing to be read until there is room, or an answer.
    Wait,
    /// All is sent: the end.
    Close(Ending),
}

/// Why a connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// `NBD_OPT_ABORT` or `NBD_CMD_DISC`: as the client wanted.
    Client,
    /// Nothing is pending, and the server is to stop.
    Shutdown,
    /// What cannot be answered otherwise: `NBD_OPT_EXPORT_NAME` for what cannot be had.
    Refused(&'static str),
    /// The client does not keep to the protocol.
    Violation(&'static str),
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Client => f.write_str("the client is done"),
            Self::Shutdown => f.write_str("the server stops"),
            Self::Refused(why) | Self::Violation(why) => f.write_str(why),
        }
    }
}

/// One of the exports that [`Next::List`] asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// For people; may be empty.
    pub description: String,
}

#[derive(Debug)]
enum Phase {
    Handshake(Handshake),
    Transmission(Transmission),
    Ended(Ending),
}

impl<P: AsRef<[u8]>> Server<P> {
    /// A connection that was just accepted.
    pub fn new(tls: Tls, limits: Limits) -> Self {
        let mut outbox = Outbox::new();
        let flags = HandshakeFlags::FIXED_NEWSTYLE | HandshakeFlags::NO_ZEROES;
        outbox.head(greeting(flags).to_vec());
        outbox.end(0);
        Self {
            tls,
            limits,
            phase: Phase::Handshake(Handshake::ClientFlags),
            session: Session::default(),
            stopping: false,
            pending: 1,
            pending_bytes: 0,
            gather: Gather::default(),
            outbox,
        }
    }

    /// Takes what it can of `input`, from the front, up to where something else than bytes is needed.
    pub fn next(&mut self, input: &mut &[u8]) -> Next {
        loop {
            let next = match &self.phase {
                Phase::Handshake(_) => self.shake_hands(input),
                Phase::Transmission(_) => self.transmission(input),
                Phase::Ended(ending) => Some(match self.pending {
                    0 => Next::Close(*ending),
                    _ => Next::Wait,
                }),
            };
            if let Some(next) = next {
                return next;
            }
        }
    }

    /// What is to be sent, in order.
    pub fn poll_transmit(&mut self) -> Option<Piece<P>> {
        self.outbox.pop()
    }

    /// All before a [`Piece::End`] is on its way.
    pub fn sent(&mut self, sent: Sent) {
        assert!(self.pending > 0, "more was sent than there was");
        self.pending -= 1;
        self.pending_bytes -= sent.bytes;
    }

    /// No more is begun: options and requests get an error, and the connection ends when nothing is pending.
    pub fn shut_down(&mut self) {
        self.stopping = true;
    }

    /// Whether the client chose an export.
    pub fn is_serving(&self) -> bool {
        matches!(self.phase, Phase::Transmission(_))
    }

    /// Requests and options whose answers are not sent yet.
    pub fn pending(&self) -> u32 {
        self.pending
    }

    /// Bytes of them.
    pub fn pending_bytes(&self) -> u64 {
        self.pending_bytes
    }

    fn end(&mut self, ending: Ending) -> Option<Next> {
        self.phase = Phase::Ended(ending);
        None
    }
}
