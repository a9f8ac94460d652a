//! Replies to options ("Option reply types").

use super::{Fields, OPTION_REPLY_MAGIC, TransmissionFlags, info};

/// `| OPTION_REPLY_MAGIC 8 | option 4 | reply type 4 | length 4 |`, before a reply's data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionReplyHeader {
    /// To which option.
    pub option: u32,
    /// Which kind of reply.
    pub kind: u32,
    /// Bytes of data that follow.
    pub len: u32,
}

impl OptionReplyHeader {
    /// Its size on the wire.
    pub const BYTES: usize = 20;

    /// None if it does not begin with the magic number.
    pub fn decode(bytes: &[u8; Self::BYTES]) -> Option<Self> {
        let mut fields = Fields(bytes);
        if fields.u64()? != OPTION_REPLY_MAGIC {
            return None;
        }
        Some(Self {
            option: fields.u32()?,
            kind: fields.u32()?,
            len: fields.u32()?,
        })
    }
}

/// Why a server does not do what an option asks (`NBD_REP_ERR_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusedOption {
    /// `NBD_REP_ERR_UNSUP`: it does not know the option.
    Unsupported,
    /// `NBD_REP_ERR_POLICY`: it is not to.
    Policy,
    /// `NBD_REP_ERR_INVALID`: the option is malformed, or makes no sense now.
    Invalid,
    /// `NBD_REP_ERR_PLATFORM`: it cannot, where it runs.
    Platform,
    /// `NBD_REP_ERR_TLS_REQD`: TLS has to come first.
    TlsRequired,
    /// `NBD_REP_ERR_UNKNOWN`: there is no such export.
    UnknownExport,
    /// `NBD_REP_ERR_SHUTDOWN`: it is shutting down.
    Shutdown,
    /// `NBD_REP_ERR_BLOCK_SIZE_REQD`: block sizes have to be asked for.
    BlockSizeRequired,
    /// `NBD_REP_ERR_TOO_BIG`: that is too much.
    TooBig,
    /// One that the protocol did not have when this was written.
    Other(u32),
}

const ERROR_BIT: u32 = 1 << 31;
const REFUSALS: [(u32, RefusedOption); 9] = [
    (1, RefusedOption::Unsupported),
    (2, RefusedOption::Policy),
    (3, RefusedOption::Invalid),
    (4, RefusedOption::Platform),
    (5, RefusedOption::TlsRequired),
    (6, RefusedOption::UnknownExport),
    (7, RefusedOption::Shutdown),
    (8, RefusedOption::BlockSizeRequired),
    (9, RefusedOption::TooBig),
];

impl RefusedOption {
    fn code(self) -> u32 {
        if let Self::Other(code) = self {
            return code | ERROR_BIT;
        }
        let known = REFUSALS.iter().find(|(_, refusal)| *refusal == self);
        known.map_or(ERROR_BIT, |(code, _)| code | ERROR_BIT)
    }

    fn from_code(code: u32) -> Self {
        let known = REFUSALS.iter().find(|(known, _)| known | ERROR_BIT == code);
        known.map_or(Self::Other(code & !ERROR_BIT), |(_, refusal)| *refusal)
    }
}

/// Something about an export (`NBD_REP_INFO`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Info {
    /// Its size in bytes, and what may be asked of it.
    Export {
        /// Bytes.
        size: u64,
        /// What may be asked.
        flags: TransmissionFlags,
    },
    /// Its canonical name.
    Name(String),
    /// What people read.
    Description(String),
    /// Sizes in bytes, as announced: not yet checked.
    BlockSize {
        /// The smallest that can be addressed.
        minimum: u32,
        /// The smallest that is efficient.
        preferred: u32,
        /// The largest payload.
        payload_max: u32,
    },
    /// Another kind, which is to be ignored.
    Other(u16),
}

/// A reply to an option, without its header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OptionReply {
    /// Done (`NBD_REP_ACK`).
    Ack,
    /// An export that there is (`NBD_REP_SERVER`).
    Server {
        /// Its name.
        name: String,
        /// What people read; may be empty.
        description: String,
    },
    /// Something about an export (`NBD_REP_INFO`).
    Info(Info),
    /// A metadata context (`NBD_REP_META_CONTEXT`).
    MetaContext {
        /// By which number its extents go.
        id: u32,
        /// Its name.
        name: String,
    },
    /// Not done.
    Refused {
        /// Why.
        refusal: RefusedOption,
        /// The same for people; may be empty.
        message: String,
    },
}

impl OptionReply {
    /// A reply's data. None if it is not as its kind has it, or the kind is unknown.
    pub fn decode(kind: u32, data: &[u8]) -> Option<Self> {
        let mut fields = Fields(data);
        let reply = match kind {
            1 => Self::Ack,
            2 => Self::Server {
                name: fields.counted_string()?,
                description: fields.rest_as_string()?,
            },
            3 => Self::Info(decode_info(&mut fields)?),
            4 => Self::MetaContext {
                id: fields.u32()?,
                name: fields.rest_as_string()?,
            },
            error if error & ERROR_BIT != 0 => {
                // The text is for people: one that cannot be read is no reason to give up.
                let text = String::from_utf8_lossy(fields.bytes(data.len())?);
                let message = text.chars().filter(|c| !c.is_control()).collect();
                let refusal = RefusedOption::from_code(error);
                Self::Refused { refusal, message }
            }
            _ => return None,
        };
        fields.is_empty().then_some(reply)
    }

    /// With its header, as a server sends it.
    pub fn encode(&self, option: u32) -> Vec<u8> {
        let mut data = Vec::new();
        let kind = match self {
            Self::Ack => 1,
            Self::Server { name, description } => {
                data.extend((name.len() as u32).to_be_bytes());
                data.extend(name.as_bytes());
                data.extend(description.as_bytes());
                2
            }
            Self::Info(info) => {
                encode_info(info, &mut data);
                3
            }
            Self::MetaContext { id, name } => {
                data.extend(id.to_be_bytes());
                data.extend(name.as_bytes());
                4
            }
            Self::Refused { refusal, message } => {
                data.extend(message.as_bytes());
                refusal.code()
            }
        };
        let mut bytes = Vec::with_capacity(OptionReplyHeader::BYTES + data.len());
        bytes.extend(OPTION_REPLY_MAGIC.to_be_bytes());
        bytes.extend(option.to_be_bytes());
        bytes.extend(kind.to_be_bytes());
        bytes.extend((data.len() as u32).to_be_bytes());
        bytes.extend(data);
        bytes
    }
}

/// `| information type 2 | payload |`
fn decode_info(fields: &mut Fields<'_>) -> Option<Info> {
    let info = match fields.u16()? {
        info::EXPORT => Info::Export {
            size: fields.u64()?,
            flags: TransmissionFlags(fields.u16()?),
        },
        info::NAME => Info::Name(fields.rest_as_string()?),
        info::DESCRIPTION => Info::Description(fields.rest_as_string()?),
        info::BLOCK_SIZE => Info::BlockSize {
            minimum: fields.u32()?,
            preferred: fields.u32()?,
            payload_max: fields.u32()?,
        },
        other => {
            fields.0 = &[];
            Info::Other(other)
        }
    };
    Some(info)
}

fn encode_info(info: &Info, data: &mut Vec<u8>) {
    match info {
        Info::Export { size, flags } => {
            data.extend(info::EXPORT.to_be_bytes());
            data.extend(size.to_be_bytes());
            data.extend(flags.0.to_be_bytes());
        }
        Info::Name(name) => {
            data.extend(info::NAME.to_be_bytes());
            data.extend(name.as_bytes());
        }
        Info::Description(text) => {
            data.extend(info::DESCRIPTION.to_be_bytes());
            data.extend(text.as_bytes());
        }
        Info::BlockSize {
            minimum,
            preferred,
            payload_max,
        } => {
            data.extend(info::BLOCK_SIZE.to_be_bytes());
            for size in [minimum, preferred, payload_max] {
                data.extend(size.to_be_bytes());
            }
        }
        Info::Other(kind) => data.extend(kind.to_be_bytes()),
    }
}
