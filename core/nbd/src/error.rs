//! What is said of a request that could not be carried out ("Error values").

use crate::wire::STRING_BYTES_MAX;
use std::borrow::Cow;
use std::fmt;

/// The errors that the protocol has. The numbers are those of Linux's errno.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum Errno {
    /// `NBD_EPERM`: it may not be written.
    NotPermitted = 1,
    /// `NBD_EIO`: the device failed.
    Io = 5,
    /// `NBD_ENOMEM`: there is not enough memory.
    NoMemory = 12,
    /// `NBD_EINVAL`: the request makes no sense.
    Invalid = 22,
    /// `NBD_ENOSPC`: there is no space left, or it is beyond the end.
    NoSpace = 28,
    /// `NBD_EOVERFLOW`: too much for one request.
    Overflow = 75,
    /// `NBD_ENOTSUP`: zeroes are no faster than a write.
    NotSupported = 95,
    /// `NBD_ESHUTDOWN`: the server is shutting down.
    Shutdown = 108,
}

impl Errno {
    const ALL: [Self; 8] = [
        Self::NotPermitted,
        Self::Io,
        Self::NoMemory,
        Self::Invalid,
        Self::NoSpace,
        Self::Overflow,
        Self::NotSupported,
        Self::Shutdown,
    ];

    /// As on the wire.
    pub const fn code(self) -> u32 {
        self as u32
    }

    /// What a server means; 0 is no error. Clients are to take an unknown one for `NBD_EINVAL`.
    pub fn from_code(code: u32) -> Option<Self> {
        let known = Self::ALL.into_iter().find(|errno| errno.code() == code);
        (code != 0).then(|| known.unwrap_or(Self::Invalid))
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotPermitted => "not permitted",
            Self::Io => "input/output error",
            Self::NoMemory => "out of memory",
            Self::Invalid => "invalid request",
            Self::NoSpace => "no space left",
            Self::Overflow => "too large for one request",
            Self::NotSupported => "not supported",
            Self::Shutdown => "the server is shutting down",
        })
    }
}

/// A request that was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{errno}{}{message}", if message.is_empty() { "" } else { ": " })]
pub struct Failure {
    /// Which error.
    pub errno: Errno,
    /// For people; told to clients that have structured replies. May be empty.
    pub message: Cow<'static, str>,
    /// Where in the export it failed, in bytes, if that is known.
    pub offset: Option<u64>,
}

impl Failure {
    /// One without a place.
    pub fn new(errno: Errno, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            errno,
            message: message.into(),
            offset: None,
        }
    }

    /// The message as a string of the protocol.
    pub(crate) fn text(&self) -> String {
        let mut text: String = self.message.chars().filter(|c| *c != '\0').collect();
        let mut end = text.len().min(STRING_BYTES_MAX);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text
    }
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Self {
        Self::new(errno, "")
    }
}
