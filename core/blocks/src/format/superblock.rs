//! The superblock: whose disk it is, and the newest checkpoint.

use super::codec::{Put, Take};
use super::layout::Layout;
use super::wal::{Link, MOST_NUMBER};
use super::{PageRef, VERSION};
use crate::{BLOCK_BYTES, Page};
use std::fmt;

/// `vpc` block store, and a byte that text mode would change.
pub(crate) const MAGIC: [u8; 8] = *b"vpcBLK\r\n";
const CRC_AT: usize = 8;
const CRC_END: usize = 12;

/// Whose disk it is. All are random numbers given by whoever sets the cluster up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// The cluster.
    pub cluster: u128,
    /// The host.
    pub host: u128,
    /// The disk.
    pub disk: u128,
}

/// What a superblock says.
///
/// `| magic 8 | crc32c 4 | version 2 | copy 2 | incompatible features 8 | store 16 | cluster 16 |
///   host 16 | disk 16 | wal blocks 4 | extents 4 | map pages 4 | sequence 8 | tail 36 | as of 8 |
///   tail is empty 2 | directory 8 | zeroes |`
///
/// The CRC is of all that follows it. `store` is drawn at each format: nothing that an earlier store
/// left in the same file counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Superblock {
    /// Whose disk.
    pub identity: Identity,
    /// Which format of it.
    pub store: u128,
    /// What is where.
    pub layout: Layout,
    /// The checkpoint's number.
    pub sequence: u64,
    /// The batch from which the log is replayed.
    pub tail: Link,
    /// The last batch before the checkpoint's moment: it has all that batches up to this one say, but for
    /// entries that were live.
    pub as_of: u64,
    /// Whether the tail has nothing that this checkpoint has not.
    pub tail_is_empty: bool,
    /// The first page of the directory of volumes.
    pub directory: Option<PageRef>,
}

/// What is wrong with a superblock copy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadSuperblock {
    /// There is none, nor was.
    #[error("no superblock")]
    Absent,
    /// There was one.
    #[error("damaged")]
    Damaged,
    /// Of a format that this program does not know.
    #[error("format {found}; this program reads {VERSION}")]
    Version {
        /// The format's version.
        found: u16,
    },
    /// It has what this program does not know.
    #[error("features {features:#x} that this program does not know")]
    Features {
        /// Those that are unknown, as bits.
        features: u64,
    },
}

impl Superblock {
    pub(crate) fn encode(&self, copy: u16) -> Page {
        let mut put = Put::default();
        put.bytes(&MAGIC).u32(0).u16(VERSION).u16(copy).u64(0);
        put.u128(self.store)
            .u128(self.identity.cluster)
            .u128(self.identity.host)
            .u128(self.identity.disk);
        self.layout.put(&mut put);
        put.u64(self.sequence);
        self.tail.put(&mut put);
        put.u64(self.as_of).u16(u16::from(self.tail_is_empty));
        PageRef::put(self.directory, &mut put);
        let mut page = Page::ZERO;
        page.0[..put.0.len()].copy_from_slice(&put.0);
        let crc = crc32c::crc32c(&page.0[CRC_END..]);
        page.0[CRC_AT..CRC_END].copy_from_slice(&crc.to_le_bytes());
        page
    }

    /// Reads a copy. The version is told before the CRC is looked at: another format may have another.
    pub fn decode(page: &Page, copy: u16) -> Result<Self, BadSuperblock> {
        let mut take = Take(&page.0);
        let magic = take.bytes(MAGIC.len());
        if magic != Some(&MAGIC) {
            return Err(BadSuperblock::Absent);
        }
        let crc = take.u32();
        let whole = crc == Some(crc32c::crc32c(&page.0[CRC_END..]));
        let found = take.u16().ok_or(BadSuperblock::Damaged)?;
        if found != VERSION && (whole || found < 64) {
            return Err(BadSuperblock::Version { found });
        }
        if !whole || take.u16() != Some(copy) {
            return Err(BadSuperblock::Damaged);
        }
        match take.u64() {
            Some(0) => Self::fields(take).ok_or(BadSuperblock::Damaged),
            Some(features) => Err(BadSuperblock::Features { features }),
            None => Err(BadSuperblock::Damaged),
        }
    }

    fn fields(mut take: Take<'_>) -> Option<Self> {
        let store = take.u128()?;
        let identity = Identity {
            cluster: take.u128()?,
            host: take.u128()?,
            disk: take.u128()?,
        };
        let layout = Layout::take(&mut take)?;
        let sequence = take.u64()?;
        let tail = Link::take(&mut take)?;
        let as_of = take.u64()?;
        let tail_is_empty = take.u16()? != 0;
        let directory = PageRef::take(&mut take)?;
        let sound = tail.fits(layout.wal_blocks)
            && (1..=MOST_NUMBER).contains(&sequence)
            && (tail.seq..=MOST_NUMBER).contains(&as_of);
        sound.then_some(Self {
            identity,
            store,
            layout,
            sequence,
            tail,
            as_of,
            tail_is_empty,
            directory,
        })
    }

    /// The copies that a checkpoint of this number writes. The two of the one before stay as they are.
    pub(crate) const fn copies(sequence: u64) -> [u16; 2] {
        if sequence.is_multiple_of(2) {
            [0, 2]
        } else {
            [1, 3]
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            cluster,
            host,
            disk,
        } = self;
        write!(
            f,
            "disk {disk:032x} of host {host:032x}, cluster {cluster:032x}"
        )
    }
}

const _: () = assert!(BLOCK_BYTES == 4096);
