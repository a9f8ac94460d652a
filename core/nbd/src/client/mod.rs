//! A client's side of one connection.

mod answers;
mod command;
mod coverage;
mod handshake;

pub use answers::Answer;
pub use command::{Command, Unsendable};
pub use handshake::{ClientConfig, Export};

use crate::error::Failure;
use crate::gather::Gather;
use crate::transmit::{Outbox, Piece};
use crate::wire::{RefusedOption, RequestHeader, command as code};
use answers::{InFlight, Step};
use handshake::Handshake;
use std::collections::BTreeMap;

/// One connection. `P` is a buffer that is to be written.
///
/// The caller's loop is that of a [`Server`](crate::Server), but that it sends requests, with [`Client::send`],
/// and puts what is read where [`Next::Data`] says.
#[derive(Debug)]
pub struct Client<P> {
    phase: Phase,
    next_cookie: u64,
    in_flight: BTreeMap<Cookie, InFlight<P>>,
    closing: Closing,
    gather: Gather,
    outbox: Outbox<P>,
}

/// Names a request on one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cookie(u64);

/// What a client has to do next.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// So many bytes are needed. Once there was [`Next::Ready`] more of them may be given, before it not.
    Read(usize),
    /// A TLS handshake begins; then [`Client::tls_started`].
    StartTls,
    /// Requests may be sent.
    Ready(Export),
    /// So many bytes belong into the buffer of this read, from there on; then [`Client::payload_received`].
    /// Whatever is left of what was given belongs to it.
    Data {
        /// Which read.
        cookie: Cookie,
        /// Where in its buffer, in bytes.
        at: u32,
        /// How many.
        len: u32,
    },
    /// The same, and they are zeroes that are not sent.
    Hole {
        /// Which read.
        cookie: Cookie,
        /// Where in its buffer, in bytes.
        at: u32,
        /// How many.
        len: u32,
    },
    /// A request is answered. Of a read that failed nothing in its buffer counts.
    Done {
        /// Which.
        cookie: Cookie,
        /// How.
        result: Result<Answer, Failure>,
    },
    /// The connection cannot be used: it is to be closed.
    Fail(ClientError),
}

/// Why a connection cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    /// Something else answers there.
    #[error("this is no NBD server with fixed newstyle negotiation")]
    NotNbd,
    /// The export is not to be had without TLS, and this client was not told to use it.
    #[error("the server needs TLS, which was not asked for")]
    TlsRequired,
    /// TLS was to be used.
    #[error("the server does not start TLS: {refusal:?} {message}")]
    NoTls {
        /// Why.
        refusal: RefusedOption,
        /// What it said.
        message: String,
    },
    /// The export cannot be had.
    #[error("the server does not serve export \"{export}\": {refusal:?} {message}")]
    NotServed {
        /// Which export.
        export: String,
        /// Why.
        refusal: RefusedOption,
        /// What it said.
        message: String,
    },
    /// What the server said is not as the protocol has it.
    #[error("the server does not keep to the protocol: {0}")]
    Violation(&'static str),
}

#[derive(Debug)]
enum Phase {
    Handshake(Handshake),
    Transmission(Export, Step),
    Failed(ClientError),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Closing {
    No,
    /// When nothing is in flight any more.
    Soon,
    /// It is said.
    Said,
}

impl<P: AsRef<[u8]> + Clone> Client<P> {
    /// A connection that was just made.
    pub fn new(config: ClientConfig) -> Self {
        Self {
            phase: Phase::Handshake(Handshake::new(config)),
            next_cookie: 1,
            in_flight: BTreeMap::new(),
            closing: Closing::No,
            gather: Gather::default(),
            outbox: Outbox::new(),
        }
    }

    /// Takes what it can of `input`, from the front, up to where something else than bytes is needed.
    pub fn next(&mut self, input: &mut &[u8]) -> Next {
        loop {
            let next = match &self.phase {
                Phase::Handshake(_) => self.shake_hands(input),
                Phase::Transmission(..) => self.answers(input),
                Phase::Failed(error) => Some(Next::Fail(error.clone())),
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

    /// Sends a request. Answers come in any order, with [`Next::Done`].
    pub fn send(&mut self, command: Command<P>) -> Result<Cookie, Unsendable> {
        let Phase::Transmission(export, _) = &self.phase else {
            return Err(Unsendable::NotReady);
        };
        if self.closing != Closing::No {
            return Err(Unsendable::Closing);
        }
        command.check(export)?;
        let cookie = Cookie(self.next_cookie);
        self.next_cookie += 1;
        self.outbox.head(command.header(cookie.0).encode().to_vec());
        if let Command::Write { data, .. } = &command {
            self.outbox.push(Piece::Payload(data.clone()));
        }
        self.in_flight.insert(cookie, InFlight::new(command));
        Ok(cookie)
    }

    /// Says goodbye (`NBD_CMD_DISC`) when all is answered. No more is sent before.
    pub fn close(&mut self) {
        if self.closing == Closing::No {
            self.closing = Closing::Soon;
            self.say_goodbye();
        }
    }

    /// Whether goodbye was said: when all is sent the connection can be closed.
    pub fn is_closed(&self) -> bool {
        self.closing == Closing::Said
    }

    /// Requests that are not answered.
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// What was not answered when the connection was lost, in the order in which it was sent. It may or may not
    /// have been carried out, and a server that is cut off may still do it later: it can be sent again elsewhere
    /// once that server is kept from it.
    pub fn into_unanswered(self) -> Vec<(Cookie, Command<P>)> {
        let in_flight = self.in_flight.into_iter();
        in_flight
            .map(|(cookie, in_flight)| (cookie, in_flight.command))
            .collect()
    }

    fn say_goodbye(&mut self) {
        let serving = matches!(self.phase, Phase::Transmission(..));
        if self.closing == Closing::Soon && self.in_flight.is_empty() && serving {
            let goodbye = RequestHeader {
                flags: Default::default(),
                command: code::DISC,
                cookie: 0,
                offset: 0,
                len: 0,
            };
            self.outbox.head(goodbye.encode().to_vec());
            self.closing = Closing::Said;
        }
    }

    fn fail(&mut self, error: ClientError) -> Option<Next> {
        self.phase = Phase::Failed(error);
        None
    }

    fn violation(&mut self, what: &'static str) -> Option<Next> {
        self.fail(ClientError::Violation(what))
    }
}
