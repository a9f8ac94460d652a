//! Replies: to which request they belong, whether they are as they have to be, and what they say.

use super::coverage::Coverage;
use super::{Client, Closing, Command, Cookie, Next, Phase};
use crate::error::{Errno, Failure};
use crate::wire::{Chunk, ReplyHeader, StateFlags, StatusChunk, chunk};

/// Payloads of chunks that are not data: the most extents that the standard allows, and an error's text.
const STATUS_BYTES_MAX: u32 = 4 + (8 << 20);
const ERROR_BYTES_MAX: u32 = 1 << 13;

/// What was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It is done; what was read is in its buffer.
    Done,
    /// So many bytes each are in this state, from the request's offset on; the last may go beyond its end.
    Status(Vec<(u32, StateFlags)>),
}

/// Where in the stream of replies it is.
#[derive(Debug)]
pub(super) enum Step {
    Header,
    /// A chunk's payload comes.
    Chunk {
        cookie: Cookie,
        done: bool,
        kind: u16,
        len: u32,
    },
    /// Where a chunk's data begins comes.
    Offset {
        cookie: Cookie,
        done: bool,
        len: u32,
    },
    /// Data comes.
    Data {
        cookie: Cookie,
        done: bool,
        at: u32,
        len: u32,
    },
    /// A chunk was dealt with.
    After {
        cookie: Cookie,
        done: bool,
    },
}

/// A request that is not answered.
#[derive(Debug)]
pub(super) struct InFlight<P> {
    pub(super) command: Command<P>,
    coverage: Coverage,
    status: Option<Vec<(u32, StateFlags)>>,
    failure: Option<Failure>,
}

impl<P: AsRef<[u8]>> InFlight<P> {
    pub(super) fn new(command: Command<P>) -> Self {
        Self {
            command,
            coverage: Coverage::default(),
            status: None,
            failure: None,
        }
    }

    /// Where in its buffer that is, if it is a read of that and has not come yet.
    fn place(&mut self, offset: u64, len: u32) -> Option<u32> {
        let Command::Read {
            offset: from,
            len: asked,
        } = self.command
        else {
            return None;
        };
        let at = u32::try_from(offset.checked_sub(from)?).ok()?;
        let end = at.checked_add(len)?;
        (end <= asked && self.coverage.add(at, len)).then_some(at)
    }

    /// Whether that can be said of it, and was not yet.
    fn take_status(&mut self, status: StatusChunk, context: Option<u32>) -> bool {
        let Command::BlockStatus { len, one, .. } = self.command else {
            return false;
        };
        let (last, others) = match status.extents.split_last() {
            Some((last, others)) => (last.0, others),
            None => return false,
        };
        let before: u64 = others.iter().map(|(len, _)| u64::from(*len)).sum();
        let fits = match one {
            true => others.is_empty() && last <= len,
            false => before < u64::from(len),
        };
        fits && context == Some(status.context) && self.status.replace(status.extents).is_none()
    }

    /// How it is answered, or what is missing.
    fn result(self) -> Result<Result<Answer, Failure>, &'static str> {
        if let Some(failure) = self.failure {
            return Ok(Err(failure));
        }
        match (&self.command, self.status) {
            (Command::Read { len, .. }, _) if !self.coverage.is_whole(*len) => {
                Err("a read that succeeded without all of its data")
            }
            (Command::BlockStatus { .. }, None) => Err("block status without any"),
            (_, Some(extents)) => Ok(Ok(Answer::Status(extents))),
            (_, None) => Ok(Ok(Answer::Done)),
        }
    }
}

impl<P: AsRef<[u8]> + Clone> Client<P> {
    pub(super) fn answers(&mut self, input: &mut &[u8]) -> Option<Next> {
        let Phase::Transmission(_, step) = &self.phase else {
            return None;
        };
        match *step {
            Step::Header => match self.header(input) {
                Ok(next) => next,
                Err(more) => Some(Next::Read(more)),
            },
            Step::Chunk {
                cookie,
                done,
                kind,
                len,
            } => match self.gather.bytes(len as usize, input) {
                Ok(payload) => self.chunk(cookie, done, kind, &payload),
                Err(more) => Some(Next::Read(more)),
            },
            Step::Offset { cookie, done, len } => match self.gather.array(input) {
                Ok(offset) => self.data(cookie, done, u64::from_be_bytes(offset), len),
                Err(more) => Some(Next::Read(more)),
            },
            Step::Data {
                cookie, at, len, ..
            } => Some(Next::Data { cookie, at, len }),
            Step::After { cookie, done: true } => self.finished(cookie),
            Step::After { done: false, .. } => self.step(Step::Header),
        }
    }

    fn step(&mut self, step: Step) -> Option<Next> {
        if let Phase::Transmission(_, now) = &mut self.phase {
            *now = step;
        }
        None
    }

    fn header(&mut self, input: &mut &[u8]) -> Result<Option<Next>, usize> {
        let Ok(size) = ReplyHeader::size(self.gather.peek(input)?) else {
            return Ok(self.violation("a reply does not begin with a magic number"));
        };
        let bytes = self.gather.bytes(size, input)?;
        Ok(match ReplyHeader::decode(&bytes) {
            Ok(header) => self.reply(header),
            Err(_) => self.violation("a reply that is none"),
        })
    }

    fn reply(&mut self, header: ReplyHeader) -> Option<Next> {
        let Phase::Transmission(export, _) = &self.phase else {
            return None;
        };
        let structured = export.structured;
        let (ReplyHeader::Simple { cookie, .. } | ReplyHeader::Chunk { cookie, .. }) = header;
        let cookie = Cookie(cookie);
        let Some(in_flight) = self.in_flight.get_mut(&cookie) else {
            return self.violation("a reply to what was not asked");
        };
        match header {
            ReplyHeader::Simple { error, .. } => {
                let read = match in_flight.command {
                    Command::Read { offset, len } => Some((offset, len)),
                    _ => None,
                };
                if read.is_some() && structured {
                    return self.violation("a simple reply to a read, with structured replies");
                }
                in_flight.failure = Errno::from_code(error).map(Failure::from);
                match read.filter(|_| in_flight.failure.is_none()) {
                    Some((offset, len)) => self.data(cookie, true, offset, len),
                    None => self.step(Step::After { cookie, done: true }),
                }
            }
            ReplyHeader::Chunk { .. } if !structured => {
                self.violation("a structured reply that was not agreed on")
            }
            ReplyHeader::Chunk {
                flags, kind, len, ..
            } => self.chunk_header(cookie, flags & chunk::DONE != 0, kind, len),
        }
    }

    fn chunk_header(&mut self, cookie: Cookie, done: bool, kind: u16, len: u32) -> Option<Next> {
        let most = match kind {
            chunk::NONE if !done => return self.violation("an empty chunk that is not the last"),
            chunk::NONE => 0,
            chunk::OFFSET_DATA if len <= 8 => return self.violation("a chunk without data"),
            chunk::OFFSET_DATA => {
                let len = len - 8;
                return self.step(Step::Offset { cookie, done, len });
            }
            chunk::OFFSET_HOLE => 12,
            chunk::BLOCK_STATUS => STATUS_BYTES_MAX,
            error if error & chunk::ERROR_BIT != 0 => ERROR_BYTES_MAX,
            _ => return self.violation("a chunk of an unknown kind"),
        };
        if len > most {
            return self.violation("a chunk that is too long");
        }
        self.step(Step::Chunk {
            cookie,
            done,
            kind,
            len,
        })
    }

    fn data(&mut self, cookie: Cookie, done: bool, offset: u64, len: u32) -> Option<Next> {
        let in_flight = self.in_flight.get_mut(&cookie);
        match in_flight.and_then(|in_flight| in_flight.place(offset, len)) {
            Some(at) => self.step(Step::Data {
                cookie,
                done,
                at,
                len,
            }),
            None => self.violation("data that was not asked for, or came before"),
        }
    }

    /// The data that [`Next::Data`] told of is where it belongs.
    pub fn payload_received(&mut self) {
        match self.phase {
            Phase::Transmission(_, Step::Data { cookie, done, .. }) => {
                self.step(Step::After { cookie, done });
            }
            _ => panic!("a payload comes when it was told of"),
        }
    }

    fn chunk(&mut self, cookie: Cookie, done: bool, kind: u16, payload: &[u8]) -> Option<Next> {
        let Phase::Transmission(export, _) = &self.phase else {
            return None;
        };
        let context = export.allocation;
        let Some(in_flight) = self.in_flight.get_mut(&cookie) else {
            return self.violation("a reply to what was not asked");
        };
        let after = Step::After { cookie, done };
        match Chunk::decode(kind, payload) {
            Ok(Chunk::None) => self.step(after),
            Ok(Chunk::Hole { offset, len }) => match in_flight.place(offset, len) {
                Some(at) => {
                    self.step(after);
                    Some(Next::Hole { cookie, at, len })
                }
                None => self.violation("a hole that was not asked for, or came before"),
            },
            Ok(Chunk::Status(status)) => match in_flight.take_status(status, context) {
                true => self.step(after),
                false => self.violation("block status that was not asked for"),
            },
            Ok(Chunk::Error(error)) => {
                let errno = Errno::from_code(error.error).unwrap_or(Errno::Invalid);
                // What is known of the first error stays.
                in_flight.failure.get_or_insert(Failure {
                    errno,
                    message: error.message.into(),
                    offset: error.offset,
                });
                self.step(after)
            }
            Ok(Chunk::Data { .. }) | Err(_) => self.violation("a malformed chunk"),
        }
    }

    fn finished(&mut self, cookie: Cookie) -> Option<Next> {
        self.step(Step::Header);
        let Some(in_flight) = self.in_flight.remove(&cookie) else {
            return self.violation("a reply to what was not asked");
        };
        match in_flight.result() {
            Ok(result) => {
                let shutdown = result.as_ref().is_err_and(|f| f.errno == Errno::Shutdown);
                if shutdown && self.closing == Closing::No {
                    self.closing = Closing::Soon;
                }
                self.say_goodbye();
                Some(Next::Done { cookie, result })
            }
            Err(what) => self.violation(what),
        }
    }
}
