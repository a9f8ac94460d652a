//! Questions that somebody else is asked.

use crate::message::{self, HEADER_BYTES, MOST_UDP_BYTES, Message, Question, TC, Transport, rcode};

/// A question that is asked of somebody else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    question: Question,
    transport: Transport,
}

/// Why bytes are no answer to a [`Query`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadReply {
    /// Not the answer to one question.
    #[error("it is no answer")]
    NoAnswer,
    /// To a question with another id.
    #[error("it has another id")]
    Id,
    /// To another question.
    #[error("it answers another question")]
    Question,
}

impl Query {
    pub(crate) const fn new(question: Question, transport: Transport) -> Self {
        Self {
            question,
            transport,
        }
    }

    /// How it came, and so how it is asked.
    pub const fn transport(&self) -> Transport {
        self.transport
    }

    /// The bytes to ask with. Only the question, and whether the asker takes signatures, goes on: no
    /// option of its own.
    pub fn encode(&self, id: u16) -> Vec<u8> {
        self.question.encode(id, self.transport)
    }

    /// What the asker gets, of the answer to what was asked with `id`.
    pub fn accept(&self, id: u16, reply: &[u8]) -> Result<Vec<u8>, BadReply> {
        let (answered, _, question) = message::asked(reply).ok_or(BadReply::NoAnswer)?;
        if answered != id {
            return Err(BadReply::Id);
        }
        if !question.eq_ignore_ascii_case(&self.question.bytes) {
            return Err(BadReply::Question);
        }
        let mut out = reply.to_vec();
        // The asker's own spelling of the name, and id.
        out[HEADER_BYTES..HEADER_BYTES + question.len()].copy_from_slice(&self.question.bytes);
        out[..2].copy_from_slice(&self.question.id.to_be_bytes());
        if out.len() > self.question.most_bytes(self.transport) {
            return Ok(self.cut());
        }
        Ok(out)
    }

    /// Nobody answered.
    pub fn failed(&self) -> Vec<u8> {
        Message::new(&self.question, rcode::SERVFAIL).encode(self.transport)
    }

    /// There is nobody to ask, or too much was asked.
    pub fn refused(&self) -> Vec<u8> {
        Message::new(&self.question, rcode::REFUSED).encode(self.transport)
    }

    /// Come again by TCP.
    fn cut(&self) -> Vec<u8> {
        let mut out = Message::new(&self.question, rcode::NOERROR).encode(self.transport);
        let flags = u16::from_be_bytes([out[2], out[3]]) | TC;
        out[2..4].copy_from_slice(&flags.to_be_bytes());
        out
    }

    /// The longest answer that there can be.
    pub const fn most_reply_bytes(&self) -> usize {
        match self.transport {
            Transport::Udp => MOST_UDP_BYTES as usize * 4,
            Transport::Tcp => u16::MAX as usize,
        }
    }
}
