//! Makes a disk: all of it is written once, so that later writes need nothing of the file system.

use crate::file::{FileError, Target};
use crate::threads::{read_at, write_at};
use blocks::format::superblock::Superblock;
use blocks::{BadLayout, BadSuperblock, Buffer, Formatted, Identity};
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// Blocks written at once.
const STEP_BLOCKS: u64 = 1024;
/// Where file systems and partition tables have what they are known by.
const LOOKED_AT_BYTES: usize = 4 << 20;

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
    let found = superblocks(target)?;
    Ok(found.iter().any(|one| *one != Err(BadSuperblock::Absent)))
}

/// All copies that the file is long enough for.
fn superblocks(target: &Target) -> io::Result<Vec<Result<Superblock, BadSuperblock>>> {
    let mut found = Vec::new();
    for copy in 0..4 {
        let at = blocks::Layout::superblock_at(u64::from(copy));
        if at + blocks::BLOCK_BYTES as u64 > target.bytes() {
            break;
        }
        let page = read_at(&target.file, at, 1)?;
        found.push(Superblock::decode(&page.pages()[0], copy));
    }
    Ok(found)
}

/// Whose disk a file or device is, as the newest superblock that can be read has it; none if it never was one, or
/// is not there. Tells nothing of whether it can be opened.
pub fn identify(path: &Path) -> Result<Option<Identity>, FileError> {
    if !path.try_exists().unwrap_or(true) {
        return Ok(None);
    }
    let target = Target::open(path)?;
    let failed = |source| FileError::Open {
        path: path.display().to_string(),
        source,
    };
    let found = superblocks(&target).map_err(failed)?;
    let readable = found.into_iter().filter_map(Result::ok);
    let newest = readable.max_by_key(|superblock| superblock.sequence);
    Ok(newest.map(|superblock| superblock.identity))
}

/// Whether there is nothing in a file or device but zeroes, as far as its beginning tells: somebody's file system
/// is not made a disk of by mistake.
pub fn is_blank(path: &Path) -> Result<bool, FileError> {
    let failed = |source| FileError::Open {
        path: path.display().to_string(),
        source,
    };
    let mut first = vec![0; LOOKED_AT_BYTES];
    let mut file = File::open(path).map_err(failed)?;
    let mut filled = 0;
    loop {
        match file.read(&mut first[filled..]).map_err(failed)? {
            0 => return Ok(first[..filled].iter().all(|byte| *byte == 0)),
            count => filled += count,
        }
    }
}
