//! Replies of the transmission phase ("Simple reply message", "Structured reply chunk message").

use super::{Fields, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, StateFlags};

/// Codes and flags of chunks.
pub mod chunk {
    /// `NBD_REPLY_FLAG_DONE`: the last chunk of a reply.
    pub const DONE: u16 = 1;
    /// `NBD_REPLY_TYPE_NONE`.
    pub const NONE: u16 = 0;
    /// `NBD_REPLY_TYPE_OFFSET_DATA`.
    pub const OFFSET_DATA: u16 = 1;
    /// `NBD_REPLY_TYPE_OFFSET_HOLE`.
    pub const OFFSET_HOLE: u16 = 2;
    /// `NBD_REPLY_TYPE_BLOCK_STATUS`.
    pub const BLOCK_STATUS: u16 = 5;
    /// `NBD_REPLY_TYPE_ERROR`.
    pub const ERROR: u16 = ERROR_BIT + 1;
    /// `NBD_REPLY_TYPE_ERROR_OFFSET`.
    pub const ERROR_OFFSET: u16 = ERROR_BIT + 2;
    /// Set in the code of every chunk that is an error.
    pub const ERROR_BIT: u16 = 1 << 15;
}

/// What a reply begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplyHeader {
    /// `| SIMPLE_REPLY_MAGIC 4 | error 4 | cookie 8 |`, before what was read.
    Simple {
        /// 0 if there is none.
        error: u32,
        /// The request's.
        cookie: u64,
    },
    /// `| STRUCTURED_REPLY_MAGIC 4 | flags 2 | type 2 | cookie 8 | length 4 |`, before a chunk's payload.
    Chunk {
        /// [`chunk::DONE`] or none; others are to be ignored.
        flags: u16,
        /// Which kind of chunk.
        kind: u16,
        /// The request's.
        cookie: u64,
        /// Bytes of payload that follow.
        len: u32,
    },
}

/// Bytes that cannot be a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadReply;

impl ReplyHeader {
    /// A simple reply's size on the wire.
    pub const SIMPLE_BYTES: usize = 16;
    /// A chunk's, without its payload.
    pub const CHUNK_BYTES: usize = 20;

    /// How many bytes a reply's header has that begins with these four.
    pub fn size(magic: [u8; 4]) -> Result<usize, BadReply> {
        match u32::from_be_bytes(magic) {
            SIMPLE_REPLY_MAGIC => Ok(Self::SIMPLE_BYTES),
            STRUCTURED_REPLY_MAGIC => Ok(Self::CHUNK_BYTES),
            _ => Err(BadReply),
        }
    }

    /// Exactly as many bytes as [`ReplyHeader::size`] says.
    pub fn decode(bytes: &[u8]) -> Result<Self, BadReply> {
        let mut fields = Fields(bytes);
        let header = match fields.u32().ok_or(BadReply)? {
            SIMPLE_REPLY_MAGIC => Self::Simple {
                error: fields.u32().ok_or(BadReply)?,
                cookie: fields.u64().ok_or(BadReply)?,
            },
            STRUCTURED_REPLY_MAGIC => Self::Chunk {
                flags: fields.u16().ok_or(BadReply)?,
                kind: fields.u16().ok_or(BadReply)?,
                cookie: fields.u64().ok_or(BadReply)?,
                len: fields.u32().ok_or(BadReply)?,
            },
            _ => return Err(BadReply),
        };
        fields.is_empty().then_some(header).ok_or(BadReply)
    }

    /// As a server sends it.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(Self::CHUNK_BYTES);
        match *self {
            Self::Simple { error, cookie } => {
                bytes.extend(SIMPLE_REPLY_MAGIC.to_be_bytes());
                bytes.extend(error.to_be_bytes());
                bytes.extend(cookie.to_be_bytes());
            }
            Self::Chunk {
                flags,
                kind,
                cookie,
                len,
            } => {
                bytes.extend(STRUCTURED_REPLY_MAGIC.to_be_bytes());
                bytes.extend(flags.to_be_bytes());
                bytes.extend(kind.to_be_bytes());
                bytes.extend(cookie.to_be_bytes());
                bytes.extend(len.to_be_bytes());
            }
        }
        bytes
    }
}

/// A chunk, apart from data that was read: of that only where it begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Chunk {
    /// Nothing more to say.
    None,
    /// `| offset 8 | data |`
    Data {
        /// Where the data begins in the export.
        offset: u64,
    },
    /// `| offset 8 | hole size 4 |`
    Hole {
        /// Where it begins in the export.
        offset: u64,
        /// Bytes.
        len: u32,
    },
    /// What a metadata context says.
    Status(StatusChunk),
    /// Something went wrong.
    Error(ErrorChunk),
}

impl Chunk {
    /// Which kind it is.
    pub fn kind(&self) -> u16 {
        match self {
            Self::None => chunk::NONE,
            Self::Data { .. } => chunk::OFFSET_DATA,
            Self::Hole { .. } => chunk::OFFSET_HOLE,
            Self::Status(_) => chunk::BLOCK_STATUS,
            Self::Error(error) if error.offset.is_some() => chunk::ERROR_OFFSET,
            Self::Error(_) => chunk::ERROR,
        }
    }

    /// A chunk's payload; of data no more than its first eight bytes. An unknown kind is an error chunk
    /// if it says so, and no chunk otherwise.
    pub fn decode(kind: u16, payload: &[u8]) -> Result<Self, BadReply> {
        let mut fields = Fields(payload);
        let chunk = Self::fields(kind, &mut fields).ok_or(BadReply)?;
        fields.is_empty().then_some(chunk).ok_or(BadReply)
    }

    fn fields(kind: u16, fields: &mut Fields<'_>) -> Option<Self> {
        let chunk = match kind {
            chunk::NONE => Self::None,
            chunk::OFFSET_DATA => Self::Data {
                offset: fields.u64()?,
            },
            chunk::OFFSET_HOLE => Self::Hole {
                offset: fields.u64()?,
                len: fields.u32().filter(|len| *len > 0)?,
            },
            chunk::BLOCK_STATUS => Self::Status(StatusChunk::fields(fields)?),
            error if error & chunk::ERROR_BIT != 0 => {
                let mut chunk = ErrorChunk::fields(fields)?;
                match error {
                    chunk::ERROR => {}
                    chunk::ERROR_OFFSET => chunk.offset = Some(fields.u64()?),
                    _ => fields.0 = &[],
                }
                Self::Error(chunk)
            }
            _ => return None,
        };
        Some(chunk)
    }

    /// With its header, as a server sends it. Data follows by itself: `data_len` bytes of it.
    pub fn encode(&self, cookie: u64, flags: u16, data_len: u32) -> Vec<u8> {
        let mut payload = Vec::new();
        match self {
            Self::None => {}
            Self::Data { offset } => payload.extend(offset.to_be_bytes()),
            Self::Hole { offset, len } => {
                payload.extend(offset.to_be_bytes());
                payload.extend(len.to_be_bytes());
            }
            Self::Status(status) => status.encode(&mut payload),
            Self::Error(error) => error.encode(&mut payload),
        }
        let header = ReplyHeader::Chunk {
            flags,
            kind: self.kind(),
            cookie,
            len: payload.len() as u32 + data_len,
        };
        let mut bytes = header.encode();
        bytes.extend(payload);
        bytes
    }
}

/// `| metadata context 4 | length 4 | status 4 | ... |`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatusChunk {
    /// Which context speaks.
    pub context: u32,
    /// Lengths in bytes, none of them 0, and what is said of so many; the first begins where the request does.
    pub extents: Vec<(u32, StateFlags)>,
}

impl StatusChunk {
    fn fields(fields: &mut Fields<'_>) -> Option<Self> {
        let context = fields.u32()?;
        if fields.is_empty() || !fields.0.len().is_multiple_of(8) {
            return None;
        }
        let mut extents = Vec::with_capacity(fields.0.len() / 8);
        while !fields.is_empty() {
            let len = fields.u32().filter(|len| *len > 0)?;
            extents.push((len, StateFlags(fields.u32()?)));
        }
        Some(Self { context, extents })
    }

    fn encode(&self, payload: &mut Vec<u8>) {
        payload.reserve(4 + 8 * self.extents.len());
        payload.extend(self.context.to_be_bytes());
        for (len, flags) in &self.extents {
            payload.extend(len.to_be_bytes());
            payload.extend(flags.0.to_be_bytes());
        }
    }
}

/// `| error 4 | message length 2 | message | offset 8, if the kind has it |`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ErrorChunk {
    /// Not 0.
    pub error: u32,
    /// For people; may be empty.
    pub message: String,
    /// Where in the export, if that is known.
    pub offset: Option<u64>,
}

impl ErrorChunk {
    fn fields(fields: &mut Fields<'_>) -> Option<Self> {
        let error = fields.u32().filter(|error| *error != 0)?;
        let len = fields.u16()?;
        let text = String::from_utf8_lossy(fields.bytes(usize::from(len))?);
        let message = text.chars().filter(|c| !c.is_control()).collect();
        Some(Self {
            error,
            message,
            offset: None,
        })
    }

    fn encode(&self, payload: &mut Vec<u8>) {
        payload.extend(self.error.to_be_bytes());
        payload.extend((self.message.len() as u16).to_be_bytes());
        payload.extend(self.message.as_bytes());
        if let Some(offset) = self.offset {
            payload.extend(offset.to_be_bytes());
        }
    }
}
