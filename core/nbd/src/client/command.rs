//! Requests that a client sends.

use super::Export;
use crate::wire::{CommandFlags, RequestHeader, TransmissionFlags, command};

/// A request. Offsets and lengths are in bytes; `fua`: answered when it is on permanent storage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command<P> {
    /// Read.
    Read {
        /// From where.
        offset: u64,
        /// How much.
        len: u32,
    },
    /// Write.
    Write {
        /// To where.
        offset: u64,
        /// What.
        data: P,
        /// See above.
        fua: bool,
    },
    /// All that was answered before goes to permanent storage.
    Flush,
    /// Nobody needs this any more.
    Trim {
        /// From where.
        offset: u64,
        /// How much.
        len: u32,
        /// See above.
        fua: bool,
    },
    /// This is to read as zeroes.
    WriteZeroes {
        /// From where.
        offset: u64,
        /// How much.
        len: u32,
        /// See above.
        fua: bool,
        /// It stays allocated.
        no_hole: bool,
        /// At once, or fail with [`Errno::NotSupported`](crate::Errno::NotSupported).
        fast: bool,
    },
    /// It is going to be read.
    Cache {
        /// From where.
        offset: u64,
        /// How much.
        len: u32,
    },
    /// What is allocated?
    BlockStatus {
        /// From where.
        offset: u64,
        /// Up to how much.
        len: u32,
        /// The first extent is enough.
        one: bool,
    },
}

/// A request that this export does not take. It was not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unsendable {
    /// The handshake is not over, or the connection failed.
    #[error("the connection does not serve an export")]
    NotReady,
    /// The client or the server is about to end the connection.
    #[error("the connection is being closed")]
    Closing,
    /// It cannot be written.
    #[error("the export is read-only")]
    ReadOnly,
    /// The server does not offer it.
    #[error("the server does not offer this command, or not with this flag")]
    NotOffered,
    /// No bytes, or some beyond the end.
    #[error("bytes {offset} to {} are not within the export's {size}", u128::from(*offset) + u128::from(*len))]
    OutOfRange {
        /// From where.
        offset: u64,
        /// How much.
        len: u64,
        /// The export's size.
        size: u64,
    },
    /// Not a multiple of the minimum block size.
    #[error("offset {offset} and length {len} have to be multiples of {minimum} bytes")]
    Unaligned {
        /// From where.
        offset: u64,
        /// How much.
        len: u64,
        /// Of what.
        minimum: u32,
    },
    /// More than the largest payload.
    #[error("{len} bytes are more than the {most} that one request may carry")]
    TooLarge {
        /// How much.
        len: u64,
        /// The most.
        most: u32,
    },
}

impl<P: AsRef<[u8]>> Command<P> {
    pub(super) fn check(&self, export: &Export) -> Result<(), Unsendable> {
        let offers = |needed| export.flags.contains(needed);
        if self.writes() && offers(TransmissionFlags::READ_ONLY) {
            return Err(Unsendable::ReadOnly);
        }
        let known = self.needs_allocation() <= export.allocation.is_some();
        if !known || !offers(self.needs()) {
            return Err(Unsendable::NotOffered);
        }
        if matches!(self, Self::Flush) {
            return Ok(());
        }
        let (offset, len, size) = (self.offset(), self.len(), export.size);
        if len == 0 || offset.checked_add(len).is_none_or(|end| end > size) {
            return Err(Unsendable::OutOfRange { offset, len, size });
        }
        let sizes = export.block_sizes;
        if !sizes.is_aligned(offset) || !sizes.is_aligned(len) {
            let minimum = sizes.minimum();
            return Err(Unsendable::Unaligned {
                offset,
                len,
                minimum,
            });
        }
        // Whatever a server takes: so much it is told that it need not.
        let most = sizes.payload_max().min(crate::PAYLOAD_MAX);
        if matches!(self, Self::Read { .. } | Self::Write { .. }) && len > u64::from(most) {
            return Err(Unsendable::TooLarge { len, most });
        }
        Ok(())
    }

    fn writes(&self) -> bool {
        let writes = [command::WRITE, command::TRIM, command::WRITE_ZEROES];
        writes.contains(&self.code())
    }

    fn needs_allocation(&self) -> bool {
        matches!(self, Self::BlockStatus { .. })
    }

    /// What the server has to offer for it.
    fn needs(&self) -> TransmissionFlags {
        type Flags = TransmissionFlags;
        let fua = Flags::SEND_FUA.only_if(self.flags().contains(CommandFlags::FUA));
        let needs = match self {
            Self::Read { .. } | Self::Write { .. } | Self::BlockStatus { .. } => Flags::NONE,
            Self::Flush => Flags::SEND_FLUSH,
            Self::Trim { .. } => Flags::SEND_TRIM,
            Self::WriteZeroes { fast, .. } => {
                Flags::SEND_WRITE_ZEROES | Flags::SEND_FAST_ZERO.only_if(*fast)
            }
            Self::Cache { .. } => Flags::SEND_CACHE,
        };
        needs | fua
    }

    fn code(&self) -> u16 {
        match self {
            Self::Read { .. } => command::READ,
            Self::Write { .. } => command::WRITE,
            Self::Flush => command::FLUSH,
            Self::Trim { .. } => command::TRIM,
            Self::WriteZeroes { .. } => command::WRITE_ZEROES,
            Self::Cache { .. } => command::CACHE,
            Self::BlockStatus { .. } => command::BLOCK_STATUS,
        }
    }

    fn flags(&self) -> CommandFlags {
        type Flags = CommandFlags;
        match self {
            Self::Write { fua, .. } | Self::Trim { fua, .. } => Flags::FUA.only_if(*fua),
            Self::WriteZeroes {
                fua, no_hole, fast, ..
            } => {
                Flags::FUA.only_if(*fua)
                    | Flags::NO_HOLE.only_if(*no_hole)
                    | Flags::FAST_ZERO.only_if(*fast)
            }
            Self::BlockStatus { one, .. } => Flags::REQ_ONE.only_if(*one),
            Self::Read { .. } | Self::Flush | Self::Cache { .. } => Flags::NONE,
        }
    }

    /// Where it begins; 0 for a flush.
    pub(super) fn offset(&self) -> u64 {
        match self {
            Self::Read { offset, .. }
            | Self::Write { offset, .. }
            | Self::Trim { offset, .. }
            | Self::WriteZeroes { offset, .. }
            | Self::Cache { offset, .. }
            | Self::BlockStatus { offset, .. } => *offset,
            Self::Flush => 0,
        }
    }

    /// How many bytes it is about; 0 for a flush.
    pub(super) fn len(&self) -> u64 {
        match self {
            Self::Read { len, .. }
            | Self::Trim { len, .. }
            | Self::WriteZeroes { len, .. }
            | Self::Cache { len, .. }
            | Self::BlockStatus { len, .. } => u64::from(*len),
            Self::Write { data, .. } => data.as_ref().len() as u64,
            Self::Flush => 0,
        }
    }

    pub(super) fn header(&self, cookie: u64) -> RequestHeader {
        RequestHeader {
            flags: self.flags(),
            command: self.code(),
            cookie,
            offset: self.offset(),
            len: u32::try_from(self.len()).expect("a payload was checked against its limit"),
        }
    }
}
