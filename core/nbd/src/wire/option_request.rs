//! Options, which a client sends in the handshake ("Option types").

use super::{Fields, OPTION_MAGIC};

/// Codes of options.
pub mod option {
    /// `NBD_OPT_EXPORT_NAME`.
    pub const EXPORT_NAME: u32 = 1;
    /// `NBD_OPT_ABORT`.
    pub const ABORT: u32 = 2;
    /// `NBD_OPT_LIST`.
    pub const LIST: u32 = 3;
    /// `NBD_OPT_STARTTLS`.
    pub const STARTTLS: u32 = 5;
    /// `NBD_OPT_INFO`.
    pub const INFO: u32 = 6;
    /// `NBD_OPT_GO`.
    pub const GO: u32 = 7;
    /// `NBD_OPT_STRUCTURED_REPLY`.
    pub const STRUCTURED_REPLY: u32 = 8;
    /// `NBD_OPT_LIST_META_CONTEXT`.
    pub const LIST_META_CONTEXT: u32 = 9;
    /// `NBD_OPT_SET_META_CONTEXT`.
    pub const SET_META_CONTEXT: u32 = 10;
}

/// Codes of what `NBD_OPT_INFO` and `NBD_OPT_GO` tell of an export.
pub mod info {
    /// `NBD_INFO_EXPORT`.
    pub const EXPORT: u16 = 0;
    /// `NBD_INFO_NAME`.
    pub const NAME: u16 = 1;
    /// `NBD_INFO_DESCRIPTION`.
    pub const DESCRIPTION: u16 = 2;
    /// `NBD_INFO_BLOCK_SIZE`.
    pub const BLOCK_SIZE: u16 = 3;
}

/// `| OPTION_MAGIC 8 | option 4 | length 4 |`, before an option's data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionHeader {
    /// Which option, known or not.
    pub option: u32,
    /// Bytes of data that follow.
    pub len: u32,
}

impl OptionHeader {
    /// Its size on the wire.
    pub const BYTES: usize = 16;

    /// None if it does not begin with the magic number.
    pub fn decode(bytes: &[u8; Self::BYTES]) -> Option<Self> {
        let mut fields = Fields(bytes);
        if fields.u64()? != OPTION_MAGIC {
            return None;
        }
        Some(Self {
            option: fields.u32()?,
            len: fields.u32()?,
        })
    }
}

/// An option with its data. Names are those of exports; an empty one is the default export's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OptionRequest {
    /// Serve this export. It cannot be answered with an error.
    ExportName(String),
    /// The client is going.
    Abort,
    /// Which exports are there?
    List,
    /// TLS from here on.
    StartTls,
    /// What is this export like?
    Info {
        /// Of which.
        name: String,
        /// What beside its size and flags is asked, of [`info`].
        wants: Vec<u16>,
    },
    /// The same, and serve it.
    Go {
        /// Which.
        name: String,
        /// What beside its size and flags is asked, of [`info`].
        wants: Vec<u16>,
    },
    /// Structured replies from here on.
    StructuredReply,
    /// Which metadata contexts match one of these queries? All, if there is no query.
    ListMetaContext {
        /// Of which export.
        name: String,
        /// `NAMESPACE:LEAF` or `NAMESPACE:`.
        queries: Vec<String>,
    },
    /// These are wanted, instead of those that were before.
    SetMetaContext {
        /// Of which export.
        name: String,
        /// `NAMESPACE:LEAF`.
        queries: Vec<String>,
    },
}

/// Why an option's data cannot be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadOption {
    /// The option is not known.
    Unknown,
    /// Its data is not as the option has it.
    Malformed(&'static str),
    /// It has more queries than anybody needs.
    TooManyQueries,
}

/// Queries in one option at most.
const QUERIES_MAX: u32 = 64;

impl OptionRequest {
    /// An option's data. It is decoded whole: what is left over is an error.
    pub fn decode(code: u32, data: &[u8]) -> Result<Self, BadOption> {
        let bare = |request| match data {
            [] => Ok(request),
            _ => Err(BadOption::Malformed("this option has no data")),
        };
        match code {
            option::EXPORT_NAME => {
                let name = Fields(data).rest_as_string();
                name.map(Self::ExportName).ok_or(BAD_NAME)
            }
            option::ABORT => Ok(Self::Abort),
            option::LIST => bare(Self::List),
            option::STARTTLS => bare(Self::StartTls),
            option::INFO => about(data).map(|(name, wants)| Self::Info { name, wants }),
            option::GO => about(data).map(|(name, wants)| Self::Go { name, wants }),
            option::STRUCTURED_REPLY => bare(Self::StructuredReply),
            option::LIST_META_CONTEXT => {
                contexts(data).map(|(name, queries)| Self::ListMetaContext { name, queries })
            }
            option::SET_META_CONTEXT => {
                contexts(data).map(|(name, queries)| Self::SetMetaContext { name, queries })
            }
            _ => Err(BadOption::Unknown),
        }
    }

    /// Which option it is.
    pub fn code(&self) -> u32 {
        match self {
            Self::ExportName(_) => option::EXPORT_NAME,
            Self::Abort => option::ABORT,
            Self::List => option::LIST,
            Self::StartTls => option::STARTTLS,
            Self::Info { .. } => option::INFO,
            Self::Go { .. } => option::GO,
            Self::StructuredReply => option::STRUCTURED_REPLY,
            Self::ListMetaContext { .. } => option::LIST_META_CONTEXT,
            Self::SetMetaContext { .. } => option::SET_META_CONTEXT,
        }
    }

    /// With its header, as a client sends it.
    pub fn encode(&self) -> Vec<u8> {
        let mut data = Vec::new();
        match self {
            Self::ExportName(name) => data.extend(name.as_bytes()),
            Self::Abort | Self::List | Self::StartTls | Self::StructuredReply => {}
            Self::Info { name, wants } | Self::Go { name, wants } => {
                put_string(&mut data, name);
                data.extend((wants.len() as u16).to_be_bytes());
                data.extend(wants.iter().flat_map(|want| want.to_be_bytes()));
            }
            Self::ListMetaContext { name, queries } | Self::SetMetaContext { name, queries } => {
                put_string(&mut data, name);
                data.extend((queries.len() as u32).to_be_bytes());
                for query in queries {
                    put_string(&mut data, query);
                }
            }
        }
        raw(self.code(), &data)
    }
}

const BAD_NAME: BadOption =
    BadOption::Malformed("the export's name is not UTF-8 of at most 4096 bytes without NUL");

/// `| length 4 | name | requests 2 | request 2 ... |`
fn about(data: &[u8]) -> Result<(String, Vec<u16>), BadOption> {
    let mut fields = Fields(data);
    let name = fields.counted_string().ok_or(BAD_NAME)?;
    let wrong = BadOption::Malformed("the information requests are not as many as announced");
    let count = fields.u16().ok_or(wrong)?;
    if fields.0.len() != 2 * usize::from(count) {
        return Err(wrong);
    }
    let wants = std::iter::from_fn(|| fields.u16()).collect();
    Ok((name, wants))
}

/// `| length 4 | name | queries 4 | length 4 | query | ... |`
fn contexts(data: &[u8]) -> Result<(String, Vec<String>), BadOption> {
    let mut fields = Fields(data);
    let name = fields.counted_string().ok_or(BAD_NAME)?;
    let wrong = BadOption::Malformed("the queries are not as many as announced");
    let count = fields.u32().ok_or(wrong)?;
    if count > QUERIES_MAX {
        return Err(BadOption::TooManyQueries);
    }
    let mut queries = Vec::new();
    for _ in 0..count {
        let query = fields.counted_string().ok_or(BadOption::Malformed(
            "a query is cut off, or not UTF-8 of at most 4096 bytes without NUL",
        ))?;
        queries.push(query);
    }
    if !fields.is_empty() {
        return Err(wrong);
    }
    Ok((name, queries))
}

fn put_string(data: &mut Vec<u8>, text: &str) {
    data.extend((text.len() as u32).to_be_bytes());
    data.extend(text.as_bytes());
}

fn raw(code: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(OptionHeader::BYTES + data.len());
    bytes.extend(OPTION_MAGIC.to_be_bytes());
    bytes.extend(code.to_be_bytes());
    bytes.extend((data.len() as u32).to_be_bytes());
    bytes.extend(data);
    bytes
}
