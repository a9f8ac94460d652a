//! Messages as they are on the wire, all in network byte order (NBD protocol, "Protocol phases" and "Values").

mod fields;
mod flags;
mod option_reply;
mod option_request;
mod reply;
mod request;

pub use flags::{ClientFlags, CommandFlags, HandshakeFlags, StateFlags, TransmissionFlags};
pub use option_reply::{Info, OptionReply, OptionReplyHeader, RefusedOption};
pub use option_request::{BadOption, OptionHeader, OptionRequest, info, option};
pub use reply::{BadReply, Chunk, ErrorChunk, ReplyHeader, StatusChunk, chunk};
pub use request::{RequestHeader, command};

pub(crate) use fields::Fields;

/// The first eight bytes of every connection, `NBDMAGIC`.
pub const INIT_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// What follows them in newstyle negotiation, and begins each option: `IHAVEOPT`.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Begins each reply to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Begins each request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Begins each simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Begins each chunk of a structured reply.
pub const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;

/// Zeroes that follow an export's size and flags in the answer to `NBD_OPT_EXPORT_NAME`, unless both sides
/// agreed to leave them out.
pub const EXPORT_NAME_ZEROES: usize = 124;
/// The longest string, in bytes ("Conventions").
pub const STRING_BYTES_MAX: usize = 4096;
/// `| INIT_MAGIC 8 | OPTION_MAGIC 8 | handshake flags 2 |`
pub const GREETING_BYTES: usize = 18;

/// What a server says first.
pub fn greeting(flags: HandshakeFlags) -> [u8; GREETING_BYTES] {
    let mut bytes = [0; GREETING_BYTES];
    bytes[..8].copy_from_slice(&INIT_MAGIC.to_be_bytes());
    bytes[8..16].copy_from_slice(&OPTION_MAGIC.to_be_bytes());
    bytes[16..].copy_from_slice(&flags.0.to_be_bytes());
    bytes
}

/// A string as the protocol has it: UTF-8 without NUL, at most [`STRING_BYTES_MAX`].
pub fn is_string(text: &str) -> bool {
    text.len() <= STRING_BYTES_MAX && !text.contains('\0')
}
