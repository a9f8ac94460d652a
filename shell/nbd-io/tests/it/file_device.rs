//! A plain sparse file as a device, on the runtime's blocking threads.

use bytes::Bytes;
use nbd::wire::StateFlags;
use nbd::{BlockSizes, ByteRange, Errno, Extent, Failure, Part};
use nbd_io::{Buffer, Device, Pool, Zeroes};
use nix::errno::Errno as Os;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::unistd::{Whence, lseek};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

pub(crate) struct FileDevice {
    file: Arc<File>,
    size: u64,
    block_sizes: BlockSizes,
    read_only: bool,
    pool: Pool,
}

/// Holes are looked for in reads from this on: below it two calls more cost more than zeroes do.
const SPARSE_BYTES: u32 = 32 << 10;

impl FileDevice {
    pub(crate) fn open(path: &Path, pool: Pool) -> io::Result<Self> {
        let file = File::options().read(true).write(true).open(path)?;
        Ok(Self {
            size: file.metadata()?.len(),
            file: Arc::new(file),
            block_sizes: BlockSizes::DEFAULT,
            read_only: false,
            pool,
        })
    }

    pub(crate) fn with_block_sizes(self, block_sizes: BlockSizes) -> Self {
        Self {
            block_sizes,
            ..self
        }
    }

    pub(crate) fn read_only(self) -> Self {
        Self {
            read_only: true,
            ..self
        }
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&File) -> io::Result<T> + Send + 'static,
    ) -> Result<T, Failure> {
        let file = Arc::clone(&self.file);
        let done = tokio::task::spawn_blocking(move || work(&file)).await;
        let done = done.map_err(|error| Failure::new(Errno::Io, error.to_string()))?;
        done.map_err(failure)
    }
}

fn failure(error: io::Error) -> Failure {
    let errno = match error.raw_os_error().map(Os::from_raw) {
        Some(Os::ENOSPC | Os::EDQUOT | Os::EFBIG) => Errno::NoSpace,
        Some(Os::EPERM | Os::EACCES | Os::EROFS) => Errno::NotPermitted,
        Some(Os::ENOMEM) => Errno::NoMemory,
        _ => Errno::Io,
    };
    Failure::new(errno, error.to_string())
}

impl Device for FileDevice {
    fn size(&self) -> u64 {
        self.size
    }

    fn block_sizes(&self) -> BlockSizes {
        self.block_sizes
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }

    async fn read(&self, range: ByteRange) -> Result<Vec<Part<Bytes>>, Failure> {
        let pool = self.pool.clone();
        self.blocking(move |file| {
            let pieces = match range.len < SPARSE_BYTES {
                true => vec![(u64::from(range.len), false)],
                false => pieces(file, range)?,
            };
            let mut at = range.offset;
            let part = |(len, hole): (u64, bool)| {
                let offset = at;
                at += len;
                if hole {
                    return Ok(Part::Hole(len as u32));
                }
                let mut buffer = pool.take(len as usize);
                file.read_exact_at(&mut buffer, offset)?;
                Ok(Part::Data(buffer.freeze()))
            };
            pieces.into_iter().map(part).collect()
        })
        .await
    }

    async fn write(&self, offset: u64, data: Buffer, fua: bool) -> Result<(), Failure> {
        self.blocking(move |file| {
            file.write_all_at(&data, offset)?;
            synced(file, fua)
        })
        .await
    }

    async fn flush(&self) -> Result<(), Failure> {
        self.blocking(File::sync_data).await
    }

    async fn trim(&self, range: ByteRange, fua: bool) -> Result<(), Failure> {
        self.blocking(move |file| {
            punch(file, range)?;
            synced(file, fua)
        })
        .await
    }

    async fn write_zeroes(&self, range: ByteRange, how: Zeroes) -> Result<(), Failure> {
        let zeroed = self.blocking(move |file| {
            match how.no_hole {
                false => punch(file, range)?,
                true => allocate(file, FallocateFlags::FALLOC_FL_ZERO_RANGE, range)?,
            }
            synced(file, how.fua)
        });
        zeroed.await
    }

    async fn cache(&self, range: ByteRange) -> Result<(), Failure> {
        self.blocking(move |file| {
            let (from, len) = (range.offset as i64, i64::from(range.len));
            let advice = nix::fcntl::PosixFadviseAdvice::POSIX_FADV_WILLNEED;
            Ok(nix::fcntl::posix_fadvise(file, from, len, advice)?)
        })
        .await
    }

    async fn status(&self, range: ByteRange, _one: bool) -> Result<Vec<Extent>, Failure> {
        self.blocking(move |file| {
            let extent = |(len, hole)| Extent {
                len,
                state: (StateFlags::HOLE | StateFlags::ZERO).only_if(hole),
            };
            Ok(pieces(file, range)?.into_iter().map(extent).collect())
        })
        .await
    }
}

fn synced(file: &File, fua: bool) -> io::Result<()> {
    if fua { file.sync_data() } else { Ok(()) }
}

fn punch(file: &File, range: ByteRange) -> io::Result<()> {
    let how = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    allocate(file, how, range)
}

fn allocate(file: &File, how: FallocateFlags, range: ByteRange) -> io::Result<()> {
    let (offset, len) = (range.offset as i64, i64::from(range.len));
    Ok(fallocate(file, how, offset, len)?)
}

/// Lengths, and whether they are holes.
fn pieces(file: &File, range: ByteRange) -> io::Result<Vec<(u64, bool)>> {
    let (mut at, end) = (range.offset, range.offset + u64::from(range.len));
    let mut pieces = Vec::new();
    let seek = |from: u64, whence| match lseek(file, from as i64, whence) {
        Ok(at) => Ok((at as u64).min(end)),
        Err(Os::ENXIO) => Ok(end),
        Err(error) => Err(io::Error::from(error)),
    };
    while at < end {
        let data = seek(at, Whence::SeekData)?;
        if data > at {
            pieces.push((data - at, true));
        }
        let hole = if data < end {
            seek(data, Whence::SeekHole)?
        } else {
            end
        };
        if hole > data {
            pieces.push((hole - data, false));
        }
        at = hole;
    }
    Ok(pieces)
}
