//! DNS for a VPC: the names of its NICs, and what is asked of others. No sockets, clock, RNG or tasks.
//!
//! [`answer`] takes the bytes of a question and the facts of one VPC, its [`Zone`]. What it says is
//! either the bytes of the whole answer, or a [`Query`] that somebody else is to be asked: the query
//! encodes itself, checks what came back, and makes of it what the asker gets.
//!
//! The zone is `internal`: `a1.web.blue.internal` is NIC a1 of subnet web of VPC blue. It is never
//! forwarded, and neither is who has an address of the VPC or any that is private.

mod forward;
mod message;
mod zone;

pub use forward::{BadReply, Query};
pub use message::{MOST_UDP_BYTES, Transport};
pub use zone::Zone;

use message::{Malformed, Message, Question, kind, rcode};
use zone::Found;

/// What becomes of a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// These bytes go back.
    Reply(Vec<u8>, Event),
    /// Somebody else is to be asked.
    Forward(Query),
    /// Nothing goes back: it is not even the beginning of a question, or an answer.
    Dropped,
}

/// What a reply says, in short.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Event {
    /// With records.
    Answered,
    /// The name is there, but has no such records.
    NoData,
    /// There is no such name.
    NoName,
    /// Not a question that can be read.
    Malformed,
    /// One that is not answered to anybody.
    Refused,
}

impl Event {
    /// For counters.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::NoData => "no-data",
            Self::NoName => "no-name",
            Self::Malformed => "malformed",
            Self::Refused => "refused",
        }
    }
}

/// Answers a question, or says that somebody else is to be asked.
pub fn answer(zone: &Zone, bytes: &[u8], transport: Transport) -> Answer {
    let question = match Question::parse(bytes) {
        Ok(question) => question,
        Err(Malformed::Silent) => return Answer::Dropped,
        Err(Malformed::Told { id, opcode, rcode }) => {
            let reply = message::bare(id, opcode, rcode);
            return Answer::Reply(reply, Event::Malformed);
        }
    };
    let reply = |message: Message<'_>, event| Answer::Reply(message.encode(transport), event);
    let refused = |code| reply(Message::new(&question, code), Event::Refused);
    if question.edns.is_some_and(|edns| edns.version > 0) {
        return refused(rcode::BADVERS);
    }
    if question.class != kind::IN {
        return refused(rcode::REFUSED);
    }
    // Zone transfers, and what is about transactions.
    if matches!(
        question.kind,
        kind::TKEY | kind::TSIG | kind::IXFR..=kind::MAILA
    ) {
        return refused(rcode::REFUSED);
    }
    match zone.find(&question) {
        Found::Records(records) if records.is_empty() => {
            let mut message = Message::new(&question, rcode::NOERROR);
            message.authority = Some(zone::authority(&question));
            reply(message, Event::NoData)
        }
        Found::Records(records) => {
            let mut message = Message::new(&question, rcode::NOERROR);
            message.answers = records;
            reply(message, Event::Answered)
        }
        Found::NoName => {
            let mut message = Message::new(&question, rcode::NXDOMAIN);
            message.authority = Some(zone::authority(&question));
            reply(message, Event::NoName)
        }
        // All records of a name are more than anybody needs, and good for floods (RFC 8482).
        Found::Elsewhere if question.kind == kind::ANY => refused(rcode::NOTIMP),
        Found::Elsewhere if !question.wants_recursion => refused(rcode::REFUSED),
        Found::Elsewhere => Answer::Forward(Query::new(question, transport)),
    }
}

#[cfg(test)]
mod tests;
