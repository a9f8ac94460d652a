//! What a server tells of an export.

use crate::PAYLOAD_MAX;
use crate::wire::{Info, TransmissionFlags, is_string};

/// "Size constraints", in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockSizes {
    minimum: u32,
    preferred: u32,
    payload_max: u32,
}

/// An export that the protocol cannot tell of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadExport {
    /// The name or the description.
    #[error("an export's name and description are at most 4096 bytes each, without NUL")]
    Text,
    /// `minimum` of [`BlockSizes::new`].
    #[error("the minimum block size is {0}: it has to be a power of two up to 65536")]
    Minimum(u32),
    /// `preferred`.
    #[error(
        "the preferred block size is {0}: it has to be a power of two, at least 512 and the minimum"
    )]
    Preferred(u32),
    /// `payload_max`.
    #[error("the largest payload is {0}: it has to be at least the preferred block size")]
    PayloadMax(u32),
    /// What is larger cannot be addressed by clients with signed offsets.
    #[error("the size is {0}: it has to be below 2^63 and a multiple of the minimum block size")]
    Size(u64),
}

impl BlockSizes {
    /// What clients expect that have not asked.
    pub const DEFAULT: Self = Self {
        minimum: 1,
        preferred: 4096,
        payload_max: PAYLOAD_MAX,
    };

    /// Sizes that the protocol allows.
    pub fn new(minimum: u32, preferred: u32, payload_max: u32) -> Result<Self, BadExport> {
        if !minimum.is_power_of_two() || minimum > 1 << 16 {
            return Err(BadExport::Minimum(minimum));
        }
        if !preferred.is_power_of_two() || preferred < minimum.max(512) {
            return Err(BadExport::Preferred(preferred));
        }
        if payload_max < preferred {
            return Err(BadExport::PayloadMax(payload_max));
        }
        Ok(Self {
            minimum,
            preferred,
            payload_max,
        })
    }

    /// What can be addressed: offsets and lengths are multiples of it.
    pub const fn minimum(self) -> u32 {
        self.minimum
    }

    /// What is efficient.
    pub const fn preferred(self) -> u32 {
        self.preferred
    }

    /// What can be read or written at once.
    pub const fn payload_max(self) -> u32 {
        self.payload_max
    }

    /// Whether an offset or length is a multiple of the minimum.
    pub(crate) const fn is_aligned(self, bytes: u64) -> bool {
        bytes & (self.minimum as u64 - 1) == 0
    }
}

/// An export, as a client sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Export {
    name: String,
    description: String,
    size: u64,
    read_only: bool,
    block_sizes: BlockSizes,
}

impl Export {
    /// One of this size in bytes. A payload is at most 32 MiB, whatever `block_sizes` has.
    pub fn new(
        name: impl Into<String>,
        size: u64,
        block_sizes: BlockSizes,
    ) -> Result<Self, BadExport> {
        let name = name.into();
        if !is_string(&name) {
            return Err(BadExport::Text);
        }
        if size > i64::MAX as u64 || !block_sizes.is_aligned(size) {
            return Err(BadExport::Size(size));
        }
        let block_sizes = BlockSizes {
            payload_max: block_sizes.payload_max.min(PAYLOAD_MAX),
            ..block_sizes
        };
        Ok(Self {
            name,
            description: String::new(),
            size,
            read_only: false,
            block_sizes,
        })
    }

    /// The same with a text for people.
    pub fn described(self, description: impl Into<String>) -> Result<Self, BadExport> {
        let description = description.into();
        if !is_string(&description) {
            return Err(BadExport::Text);
        }
        Ok(Self {
            description,
            ..self
        })
    }

    /// The same, not to be written.
    pub fn read_only(self) -> Self {
        Self {
            read_only: true,
            ..self
        }
    }

    /// Its canonical name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The text for people; may be empty.
    pub fn description(&self) -> &str {
        &self.description
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Whether it is not to be written.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Size constraints.
    pub fn block_sizes(&self) -> BlockSizes {
        self.block_sizes
    }

    /// What may be asked of it. Everything is served whose absence would be a choice of the device's: only
    /// [`ROTATIONAL`](TransmissionFlags::ROTATIONAL) is never set.
    pub(crate) fn flags(&self, structured: bool) -> TransmissionFlags {
        type Flags = TransmissionFlags;
        let writes = Flags::SEND_TRIM | Flags::SEND_WRITE_ZEROES | Flags::SEND_FAST_ZERO;
        Flags::HAS_FLAGS
            | Flags::SEND_FLUSH
            | Flags::SEND_FUA
            | Flags::SEND_CACHE
            | Flags::CAN_MULTI_CONN
            | Flags::READ_ONLY.only_if(self.read_only)
            | writes.only_if(!self.read_only)
            | Flags::SEND_DF.only_if(structured)
    }

    pub(crate) fn info(&self, structured: bool) -> Info {
        Info::Export {
            size: self.size,
            flags: self.flags(structured),
        }
    }

    pub(crate) fn block_size_info(&self) -> Info {
        Info::BlockSize {
            minimum: self.block_sizes.minimum,
            preferred: self.block_sizes.preferred,
            payload_max: self.block_sizes.payload_max,
        }
    }
}
