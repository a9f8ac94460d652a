//! Requests: which are carried out, which are refused and why ("Request types", "Error values").

use super::{Ending, Next, Phase, Server};
use crate::PAYLOAD_MAX;
use crate::error::{Errno, Failure};
use crate::export::Export;
use crate::server::replies::STATUS_EXTENTS_MAX;
use crate::wire::{CommandFlags, RequestHeader, command};

/// A refused write's payload up to this is thrown away, so that an error can be said. Who announces more is
/// let go.
const SKIP_BYTES_MAX: u32 = 2 * PAYLOAD_MAX;

/// Serving an export.
#[derive(Debug)]
pub(super) struct Transmission {
    export: Export,
    /// Whether replies are structured.
    structured: bool,
    /// Whether the client asks for block status.
    allocation: bool,
    step: Step,
}

#[derive(Debug)]
enum Step {
    Header,
    /// It is fine, and waits for room.
    Held(RequestHeader),
    /// A write whose payload comes.
    Payload(Flight),
    /// A refused write's payload comes.
    Skip(u32),
}

/// A request that is being carried out.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Flight {
    pub(super) header: RequestHeader,
    /// Bytes that it keeps.
    pub(super) bytes: u64,
}

/// Stands for a request until it is answered with [`Server::finish`].
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a client waits for the answer"]
pub struct Ticket(pub(super) Flight);

/// Stands for a read until it is answered with [`Server::finish_read`].
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a client waits for the answer"]
pub struct ReadTicket(pub(super) Flight);

/// Stands for a question for block status until it is answered with [`Server::finish_status`].
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a client waits for the answer"]
pub struct StatusTicket(pub(super) Flight);

/// Bytes of an export, within it, aligned to its minimum block size, and at least one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ByteRange {
    /// Where the first is.
    pub offset: u64,
    /// How many.
    pub len: u32,
}

/// What a client wants, checked against the export. `fua`: answered when it is on permanent storage.
#[derive(Debug, PartialEq, Eq)]
pub enum Request {
    /// Read.
    Read {
        /// To answer it.
        ticket: ReadTicket,
        /// What; no more than the largest payload.
        range: ByteRange,
    },
    /// All that was answered before it goes to permanent storage.
    Flush {
        /// To answer it.
        ticket: Ticket,
    },
    /// Nobody needs this any more.
    Trim {
        /// To answer it.
        ticket: Ticket,
        /// What.
        range: ByteRange,
        /// See above.
        fua: bool,
    },
    /// This is to read as zeroes.
    WriteZeroes {
        /// To answer it.
        ticket: Ticket,
        /// What.
        range: ByteRange,
        /// See above.
        fua: bool,
        /// It stays allocated.
        no_hole: bool,
        /// At once, or fail with [`Errno::NotSupported`] if it is no faster than a write.
        fast: bool,
    },
    /// It is going to be read.
    Cache {
        /// To answer it.
        ticket: Ticket,
        /// What.
        range: ByteRange,
    },
    /// What is allocated there?
    BlockStatus {
        /// To answer it.
        ticket: StatusTicket,
        /// Where.
        range: ByteRange,
        /// Only the first extent matters.
        one: bool,
    },
}

/// A write whose payload has come.
#[derive(Debug, PartialEq, Eq)]
pub struct WriteRequest {
    /// To answer it.
    pub ticket: Ticket,
    /// Where to, as long as the payload.
    pub range: ByteRange,
    /// Answered when it is on permanent storage.
    pub fua: bool,
}

impl Transmission {
    pub(super) fn new(export: Export, structured: bool, allocation: bool) -> Self {
        Self {
            export,
            structured,
            allocation,
            step: Step::Header,
        }
    }

    /// Whether the client may ask this.
    fn check(&self, header: &RequestHeader) -> Result<(), Failure> {
        self.check_flags(header)?;
        let no = |errno, why: &'static str| Err(Failure::new(errno, why));
        let writes = [command::WRITE, command::TRIM, command::WRITE_ZEROES];
        if writes.contains(&header.command) && self.export.is_read_only() {
            return no(Errno::NotPermitted, "the export is read-only");
        }
        if header.command == command::FLUSH {
            return match (header.offset, header.len) {
                (0, 0) => Ok(()),
                _ => no(Errno::Invalid, "a flush has no offset and no length"),
            };
        }
        let end = header.offset.checked_add(u64::from(header.len));
        if end.is_none_or(|end| end > self.export.size()) {
            let errno = match header.command {
                command::WRITE | command::WRITE_ZEROES => Errno::NoSpace,
                _ => Errno::Invalid,
            };
            return no(errno, "it goes beyond the end of the export");
        }
        let sizes = self.export.block_sizes();
        if !sizes.is_aligned(header.offset) || !sizes.is_aligned(u64::from(header.len)) {
            let why = "offset and length have to be multiples of the minimum block size";
            return no(Errno::Invalid, why);
        }
        self.check_length(header)
    }

    fn check_flags(&self, header: &RequestHeader) -> Result<(), Failure> {
        type Flags = CommandFlags;
        let no = |why: &'static str| Err(Failure::new(Errno::Invalid, why));
        // FUA has to be taken with every command, as there are clients that set it everywhere.
        let allowed = Flags::FUA
            | match header.command {
                command::READ => Flags::DF.only_if(self.structured),
                command::WRITE | command::FLUSH | command::TRIM | command::CACHE => Flags::NONE,
                command::WRITE_ZEROES => Flags::NO_HOLE | Flags::FAST_ZERO,
                command::BLOCK_STATUS if self.allocation => Flags::REQ_ONE,
                command::BLOCK_STATUS => return no("no metadata context was selected"),
                _ => return no("this command is not known"),
            };
        match header.flags.without(allowed).is_empty() {
            true => Ok(()),
            false => no("a flag is not known, or not with this command"),
        }
    }

    fn check_length(&self, header: &RequestHeader) -> Result<(), Failure> {
        let has_payload = matches!(header.command, command::READ | command::WRITE);
        if has_payload && header.len > self.export.block_sizes().payload_max() {
            let errno = match header.command {
                command::READ if self.structured => Errno::Overflow,
                _ => Errno::Invalid,
            };
            return Err(Failure::new(errno, "it is more than the largest payload"));
        }
        if header.command == command::BLOCK_STATUS && header.len == 0 {
            return Err(Failure::new(Errno::Invalid, "status of no bytes"));
        }
        Ok(())
    }
}

impl<P: AsRef<[u8]>> Server<P> {
    pub(super) fn transmission(&mut self, input: &mut &[u8]) -> Option<Next> {
        let Phase::Transmission(transmission) = &mut self.phase else {
            return None;
        };
        match &mut transmission.step {
            Step::Header if self.stopping && self.pending == 0 => self.end(Ending::Shutdown),
            Step::Header if self.pending >= self.limits.requests => Some(Next::Wait),
            Step::Header => match self.gather.array(input) {
                Ok(header) => self.request(&header),
                Err(more) => Some(Next::Read(more)),
            },
            Step::Held(header) => {
                let header = *header;
                self.admit(header)
            }
            Step::Payload(flight) => Some(Next::Payload(flight.header.len)),
            Step::Skip(0) => self.step(Step::Header),
            Step::Skip(left) => {
                let skipped = (*left as usize).min(input.len());
                *input = &input[skipped..];
                *left -= skipped as u32;
                (*left > 0).then_some(Next::Read(*left as usize))
            }
        }
    }

    fn step(&mut self, step: Step) -> Option<Next> {
        if let Phase::Transmission(transmission) = &mut self.phase {
            transmission.step = step;
        }
        None
    }

    fn request(&mut self, header: &[u8; RequestHeader::BYTES]) -> Option<Next> {
        let Some(header) = RequestHeader::decode(header) else {
            return self.end(Ending::Violation(
                "a request does not begin with its magic number",
            ));
        };
        let Phase::Transmission(transmission) = &self.phase else {
            return None;
        };
        if header.command == command::DISC {
            return self.end(Ending::Client);
        }
        let checked = match self.stopping {
            true => Err(Failure::new(
                Errno::Shutdown,
                "this server is shutting down",
            )),
            false => transmission.check(&header),
        };
        match checked {
            Ok(()) if header.len == 0 && header.command != command::FLUSH => self.nothing(header),
            Ok(()) => self.admit(header),
            Err(failure) => self.refuse_request(header, failure),
        }
    }

    /// What the standard leaves open: a request for no bytes succeeds, and does nothing.
    fn nothing(&mut self, header: RequestHeader) -> Option<Next> {
        self.pending += 1;
        let flight = Flight { header, bytes: 0 };
        match header.command {
            command::READ => self.finish_read(ReadTicket(flight), Ok(Vec::new())),
            _ => self.finish(Ticket(flight), Ok(())),
        }
        self.step(Step::Header)
    }

    fn refuse_request(&mut self, header: RequestHeader, failure: Failure) -> Option<Next> {
        self.pending += 1;
        self.finish(Ticket(Flight { header, bytes: 0 }), Err(failure));
        match header.command {
            command::WRITE if header.len > SKIP_BYTES_MAX => {
                self.end(Ending::Violation("a write announces too much data"))
            }
            command::WRITE => self.step(Step::Skip(header.len)),
            _ => self.step(Step::Header),
        }
    }

    /// It begins if there is room for it, and is held if not.
    fn admit(&mut self, header: RequestHeader) -> Option<Next> {
        let bytes = match header.command {
            command::READ | command::WRITE => u64::from(header.len),
            command::BLOCK_STATUS => 8 * STATUS_EXTENTS_MAX as u64,
            _ => 0,
        };
        if self.pending_bytes > 0 && self.pending_bytes + bytes > self.limits.bytes {
            self.step(Step::Held(header));
            return Some(Next::Wait);
        }
        self.pending += 1;
        self.pending_bytes += bytes;
        let flight = Flight { header, bytes };
        if header.command == command::WRITE {
            return self.step(Step::Payload(flight));
        }
        self.step(Step::Header);
        Some(Next::Request(flight.into_request()))
    }

    /// A write's payload has come: the write can be carried out.
    pub fn payload_received(&mut self) -> WriteRequest {
        if let Phase::Transmission(transmission) = &mut self.phase
            && let Step::Payload(flight) = std::mem::replace(&mut transmission.step, Step::Header)
        {
            return WriteRequest {
                range: flight.range(),
                fua: flight.header.flags.contains(CommandFlags::FUA),
                ticket: Ticket(flight),
            };
        }
        panic!("a payload comes when it was asked for");
    }
}

impl Flight {
    pub(super) fn range(&self) -> ByteRange {
        ByteRange {
            offset: self.header.offset,
            len: self.header.len,
        }
    }

    fn into_request(self) -> Request {
        let range = self.range();
        let flags = self.header.flags;
        let fua = flags.contains(CommandFlags::FUA);
        match self.header.command {
            command::READ => Request::Read {
                ticket: ReadTicket(self),
                range,
            },
            command::FLUSH => Request::Flush {
                ticket: Ticket(self),
            },
            command::TRIM => Request::Trim {
                ticket: Ticket(self),
                range,
                fua,
            },
            command::WRITE_ZEROES => Request::WriteZeroes {
                ticket: Ticket(self),
                range,
                fua,
                no_hole: flags.contains(CommandFlags::NO_HOLE),
                fast: flags.contains(CommandFlags::FAST_ZERO),
            },
            command::CACHE => Request::Cache {
                ticket: Ticket(self),
                range,
            },
            command::BLOCK_STATUS => Request::BlockStatus {
                ticket: StatusTicket(self),
                range,
                one: flags.contains(CommandFlags::REQ_ONE),
            },
            other => unreachable!("command {other} was checked"),
        }
    }
}
