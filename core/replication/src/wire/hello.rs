//! What two hosts say first.

use super::{BadFrame, VERSION};
use crate::HostId;

/// Bytes of a hello.
pub const HELLO_BYTES: usize = 80;
/// What this program can do beyond the version: nothing yet.
pub const FEATURES: u64 = 0;
const MAGIC: [u8; 4] = *b"vpRH";
const COVERED: usize = HELLO_BYTES - 4;

/// `| magic 4 "vpRH" | oldest version 2 | newest version 2 | cluster 16 | from 16 | to 16 | features 8 |
///    needed features 8 | zeroes 4 | crc 4 |`
///
/// Fixed for ever: a later version speaks through its versions and features.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hello {
    /// Versions that the sender reads, from the oldest to the newest.
    pub versions: (u16, u16),
    /// The cluster.
    pub cluster: u128,
    /// Who says this.
    pub from: HostId,
    /// Whom it takes the other for.
    pub to: HostId,
    /// What it can do, as bits.
    pub features: u64,
    /// What the other has to be able to do.
    pub needed: u64,
}

/// Why two hosts do not talk.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Disagreed {
    /// Another cluster's.
    #[error(
        "the peer is of cluster {theirs:032x}, this host of {ours:032x}; check the address it was reached at"
    )]
    Cluster {
        /// This host's.
        ours: u128,
        /// The peer's.
        theirs: u128,
    },
    /// Another host.
    #[error(
        "the peer is host {found}, and not {expected}; check its address, or whether its disk was replaced"
    )]
    Host {
        /// Who answered.
        found: HostId,
        /// Who was meant.
        expected: HostId,
    },
    /// No version that both read.
    #[error(
        "the peer reads versions {oldest} to {newest}, this program {VERSION}; upgrade the older of the two"
    )]
    Version {
        /// The peer's oldest.
        oldest: u16,
        /// The peer's newest.
        newest: u16,
    },
    /// One of them is too old.
    #[error("the peers lack features {missing:#x} of each other; upgrade the older of the two")]
    Features {
        /// As bits.
        missing: u64,
    },
}

impl Hello {
    /// This program's.
    pub const fn ours(cluster: u128, from: HostId, to: HostId) -> Self {
        Self {
            versions: (VERSION, VERSION),
            cluster,
            from,
            to,
            features: FEATURES,
            needed: 0,
        }
    }

    /// As it is sent.
    pub fn encode(&self) -> [u8; HELLO_BYTES] {
        let mut bytes = [0; HELLO_BYTES];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4..6].copy_from_slice(&self.versions.0.to_le_bytes());
        bytes[6..8].copy_from_slice(&self.versions.1.to_le_bytes());
        bytes[8..24].copy_from_slice(&self.cluster.to_le_bytes());
        bytes[24..40].copy_from_slice(&self.from.0.to_le_bytes());
        bytes[40..56].copy_from_slice(&self.to.0.to_le_bytes());
        bytes[56..64].copy_from_slice(&self.features.to_le_bytes());
        bytes[64..72].copy_from_slice(&self.needed.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..COVERED]);
        bytes[COVERED..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// As it comes.
    pub fn decode(bytes: &[u8; HELLO_BYTES]) -> Result<Self, BadFrame> {
        if bytes[..4] != MAGIC {
            return Err(BadFrame::Magic);
        }
        if crc32c::crc32c(&bytes[..COVERED]).to_le_bytes() != bytes[COVERED..] {
            return Err(BadFrame::Checksum { part: "hello" });
        }
        let mut take = super::codec::Take(&bytes[4..]);
        let versions = take.u32()?;
        Ok(Self {
            versions: (versions as u16, (versions >> 16) as u16),
            cluster: take.u128()?,
            from: HostId(take.u128()?),
            to: HostId(take.u128()?),
            features: take.u64()?,
            needed: take.u64()?,
        })
    }

    /// The version to speak, given both; or why not to.
    pub fn agree(&self, theirs: &Self) -> Result<u16, Disagreed> {
        if theirs.cluster != self.cluster {
            let (ours, theirs) = (self.cluster, theirs.cluster);
            return Err(Disagreed::Cluster { ours, theirs });
        }
        if theirs.from != self.to || theirs.to != self.from {
            let (found, expected) = (theirs.from, self.to);
            return Err(Disagreed::Host { found, expected });
        }
        let newest = self.versions.1.min(theirs.versions.1);
        if newest < self.versions.0.max(theirs.versions.0) {
            let (oldest, newest) = theirs.versions;
            return Err(Disagreed::Version { oldest, newest });
        }
        let missing = self.needed & !theirs.features | theirs.needed & !self.features;
        if missing != 0 {
            return Err(Disagreed::Features { missing });
        }
        Ok(newest)
    }
}
