//! The form of what hosts send each other.
//!
//! A connection begins with a [`Hello`] in each direction; then come frames, each
//!
//! `| prefix 32 | head | payload |`, the prefix
//! `| magic 4 "vpRF" | version 2 | kind 2 | head bytes 4 | payload blocks 4 | head crc 4 | payload crc 4 |
//!    zero 4 | prefix crc 4 |`
//!
//! with numbers in little endian, and CRC32C. The head has the messages, the payload the blocks that they
//! speak of, one after another: it goes from the socket to where direct IO wants it, and from there to
//! the disk, without a copy. A frame that is not right ends the connection: nothing of it is used.
//!
//! Versions: 1, the first.

mod codec;
mod decode;
mod encode;
mod hello;

pub use decode::{decode_frame, decode_prefix};
pub use encode::{Encoded, encode_frame};
pub use hello::{Disagreed, FEATURES, HELLO_BYTES, Hello};

/// Bytes before each frame.
pub const PREFIX_BYTES: usize = 32;
/// Bytes of a head at most.
pub const MOST_HEAD_BYTES: u32 = 4 << 20;
/// Blocks of a payload at most: 64 MiB.
pub const MOST_PAYLOAD_BLOCKS: u32 = 1 << 14;
/// The version that is written.
pub const VERSION: u16 = 1;

const MAGIC: [u8; 4] = *b"vpRF";
const KIND_FRAME: u16 = 2;
/// Bytes of the prefix that its CRC is of.
const PREFIX_COVERED: usize = 28;

/// What comes after a prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefix {
    /// Bytes of the head.
    pub head_bytes: u32,
    /// Blocks of the payload.
    pub payload_blocks: u32,
    head_crc: u32,
    payload_crc: u32,
}

/// What is wrong with a frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadFrame {
    /// Another protocol, or bytes were lost.
    #[error("no frame begins here; the peer is no host of ours, or bytes were lost")]
    Magic,
    /// Another release.
    #[error("a frame of version {found}; this program reads {VERSION}")]
    Version {
        /// Which.
        found: u16,
    },
    /// Bytes changed on their way.
    #[error("the {part} of a frame does not match its checksum")]
    Checksum {
        /// Of the frame.
        part: &'static str,
    },
    /// It is larger than any of ours.
    #[error("a frame of {head_bytes} bytes and {payload_blocks} blocks is too large")]
    Size {
        /// Of the head.
        head_bytes: u32,
        /// Of the payload.
        payload_blocks: u32,
    },
    /// Its parts contradict each other.
    #[error("a frame that is not made as it should be: {what}")]
    Malformed {
        /// What is wrong.
        what: &'static str,
    },
}

const fn malformed(what: &'static str) -> BadFrame {
    BadFrame::Malformed { what }
}
