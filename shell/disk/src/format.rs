//! Makes a disk: all of it is written once, so that later writes need nothing of the file system.

use crate::file::{FileError, Target};
use crate::threads::{read_at, write_at};
use blocks::{BadLayout, BadSuperblock, Buffer, Formatted, Identity};
use std::fs::File;
use std::io;
use std::path::Path;

/// Blocks written at once.
const STEP_BLOCKS: u64 = 1024;

/// Why there is no new disk.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// The file cannot be had.
    #[error(transparent)]
    File(#[from] FileError),
    /// Nothing can be made of that size.
    #[error(transparent)]
    Layout(#[from] BadLayout),
    /// There is a disk already.
    #[error("{path} is a block store already; remove it first if nothing on it is needed")]
    Formatted {
        /// Which file.
        path: String,
    },
    /// It cannot be written.
    #[error("writing {path} at {at} of {bytes} bytes")]
    Write {
        /// Which file.
        path: String,
        /// Where.
        at: u64,
        /// Of how many bytes.
        bytes: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Makes a disk of a file that is made too, or of a device, of so many bytes. `store` is a random number.
/// `progress` is told how many bytes are written. A file that could not be finished is no disk, and can be
/// formatted again.
pub fn format(
    path: &Path,
    (bytes, wal_bytes): (u64, u64),
    identity: Identity,
    store: u128,
    progress: &mut dyn FnMut(u64),
) -> Result<(), FormatError> {
    let formatted = Formatted::new(identity, store, bytes, wal_bytes)?;
    let target = Target::create(path)?;
    let bytes = formatted.layout.bytes();
    let failed = |at, source| FormatError::Write {
        path: path.display().to_string(),
        at,
        bytes,
        source,
    };
    if has_superblock(&target).map_err(|source| failed(0, source))? {
        let path = path.display().to_string();
        return Err(FormatError::Formatted { path });
    }
    let zeroes = Buffer::zeroed(STEP_BLOCKS as usize);
    let mut at = 0;
    while at < bytes {
        let blocks = STEP_BLOCKS.min((bytes - at) / blocks::BLOCK_BYTES as u64);
        let part = [zeroes.part(0, blocks as usize)];
        write_at(&target.file, at, &part).map_err(|source| failed(at, source))?;
        at += blocks * blocks::BLOCK_BYTES as u64;
        progress(at);
    }
    let sync = || {
        target
            .file
            .sync_all()
            .map_err(|source| failed(bytes, source))
    };
    sync()?;
    // The superblocks come last: until then it is no disk.
    for part in [&formatted.log, &formatted.superblocks] {
        for (at, buffer) in part {
            let buffer = std::slice::from_ref(buffer);
            write_at(&target.file, *at, buffer).map_err(|source| failed(*at, source))?;
        }
        sync()?;
    }
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    let folder = File::open(folder.unwrap_or(Path::new("."))).and_then(|folder| folder.sync_all());
    folder.map_err(|source| failed(bytes, source))
}

fn has_superblock(target: &Target) -> io::Result<bool> {
    for copy in 0..4 {
        let at = blocks::Layout::superblock_at(u64::from(copy));
        if at + blocks::BLOCK_BYTES as u64 > target.bytes() {
            return Ok(false);
        }
        let page = read_at(&target.file, at, 1)?;
        let found = blocks::format::superblock::Superblock::decode(&page.pages()[0], copy);
        if found != Err(BadSuperblock::Absent) {
            return Ok(true);
        }
    }
    Ok(false)
}
