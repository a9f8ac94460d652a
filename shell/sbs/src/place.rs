//! The disk: made on the first start, opened on all others.

use blocks::{Identity, Recovered};
use disk::{Disk, DiskError, FileError, FormatError};
use model::DiskId;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tracing::{info, warn};

/// Where a host's disk is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskOptions {
    /// A file, which is made if it is not there, or a block device.
    pub path: PathBuf,
    /// Bytes of a file that is made. One that is there, and a device, has the size that it has.
    pub bytes: u64,
}

/// Why there is no disk.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// The file or device cannot be had.
    #[error(transparent)]
    File(#[from] FileError),
    /// It cannot be made.
    #[error("making the disk {path}")]
    Format {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: FormatError,
    },
    /// It cannot be opened.
    #[error(transparent)]
    Open(#[from] DiskError),
    /// There is something else.
    #[error(
        "{path} is no disk of ours, and not empty: if nothing in it is needed, empty it (`blkdiscard` or `rm`), or give another storage_path"
    )]
    NotBlank {
        /// Which.
        path: PathBuf,
    },
    /// It is of somebody else.
    #[error(
        "{path} is a disk of host {host:x} in cluster {cluster:x}, and this is host {own_host:x} in cluster {own_cluster:x}: give another storage_path, or remove it if nothing on it is needed"
    )]
    Foreign {
        /// Which.
        path: PathBuf,
        /// Whose.
        host: u128,
        /// Whose.
        cluster: u128,
        /// Who looks.
        own_host: u128,
        /// Who looks.
        own_cluster: u128,
    },
    /// Its folder, or what is known of it, cannot be had.
    #[error("{path}")]
    Path {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is too small to be of use.
    #[error(
        "a disk of {bytes} bytes: at least {LEAST_BYTES} are needed for the log and some volumes"
    )]
    Small {
        /// How large it was to be.
        bytes: u64,
    },
}

/// Of the log: an eighth of the disk, but so that the largest append (2 MiB) is less than what may be unsettled, an
/// eighth of the log, and not more than is of use.
const LOG_PART: u64 = 8;
const LEAST_LOG_BYTES: u64 = 32 << 20;
const MOST_LOG_BYTES: u64 = 1 << 30;
/// A disk at least: its log, and something to write to.
pub(crate) const LEAST_BYTES: u64 = 48 << 20;
/// What a host has that has no disk: replicas are never placed there.
const SCRATCH_BYTES: u64 = LEAST_BYTES;
const SCRATCH_NAME: &str = "storage.scratch";
/// The kernel frees what a killed process had only when the IO is done that it had under way.
const IN_USE_WAIT: Duration = Duration::from_secs(20);
const LOOK_AGAIN: Duration = Duration::from_millis(20);
const TOLD_EVERY: u64 = 1 << 30;

/// A disk, and which one it is.
pub(crate) struct Placed {
    pub(crate) disk: Disk,
    pub(crate) id: DiskId,
    pub(crate) path: PathBuf,
}

/// Opens the disk, and makes it if it is not there.
pub(crate) fn open(
    options: &DiskOptions,
    (cluster, host): (u128, u128),
) -> Result<Placed, PlaceError> {
    let path = &options.path;
    let found = when_free(|| disk::identify(path).map_err(PlaceError::from))?;
    let identity = match found {
        Some(found) if (found.cluster, found.host) != (cluster, host) => {
            return Err(PlaceError::Foreign {
                path: path.clone(),
                host: found.host,
                cluster: found.cluster,
                own_host: host,
                own_cluster: cluster,
            });
        }
        Some(found) => found,
        None => {
            let disk = rand::random();
            let identity = Identity {
                cluster,
                host,
                disk,
            };
            make(options, identity)?;
            identity
        }
    };
    let (disk, recovered) =
        when_free(|| Ok(Disk::open(path, identity, disk::Options::default())?))?;
    tell(path, &recovered);
    Ok(Placed {
        disk,
        id: DiskId(identity.disk),
        path: path.clone(),
    })
}

/// What a host without a disk has instead, so that volumes of others can be attached to it.
pub(crate) fn scratch(run_dir: &Path, (cluster, host): (u128, u128)) -> Result<Disk, PlaceError> {
    let path = run_dir.join(SCRATCH_NAME);
    if let Err(source) = fs::remove_file(&path)
        && source.kind() != io::ErrorKind::NotFound
    {
        return Err(PlaceError::Path { path, source });
    }
    let disk = rand::random();
    let identity = Identity {
        cluster,
        host,
        disk,
    };
    let options = DiskOptions {
        path: path.clone(),
        bytes: SCRATCH_BYTES,
    };
    make(&options, identity)?;
    Ok(Disk::open(&path, identity, disk::Options::default())?.0)
}

fn make(options: &DiskOptions, identity: Identity) -> Result<(), PlaceError> {
    let path = options.path.clone();
    let failed = |source| PlaceError::Path {
        path: path.clone(),
        source,
    };
    let bytes = match fs::metadata(&path) {
        Ok(_) if !disk::is_blank(&path)? => return Err(PlaceError::NotBlank { path }),
        Ok(found) if !found.is_file() => disk::Target::open(&path)?.bytes(),
        Ok(_) => options.bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let folder = path.parent().unwrap_or(Path::new("/"));
            fs::create_dir_all(folder).map_err(failed)?;
            options.bytes
        }
        Err(error) => return Err(failed(error)),
    };
    if bytes < LEAST_BYTES {
        return Err(PlaceError::Small { bytes });
    }
    let log_bytes = (bytes / LOG_PART).clamp(LEAST_LOG_BYTES, MOST_LOG_BYTES);
    info!(path = %path.display(), bytes, log_bytes, "Making the disk");
    let mut told = 0;
    let mut progress = |written: u64| {
        if written >= told + TOLD_EVERY {
            told = written;
            info!(written, bytes, "Making the disk");
        }
    };
    let made = disk::format(
        &path,
        (bytes, log_bytes),
        identity,
        rand::random(),
        &mut progress,
    );
    made.map_err(|source| PlaceError::Format {
        path: path.clone(),
        source,
    })
}

/// Waits for a process that was killed to be gone from a disk.
fn when_free<T>(mut open: impl FnMut() -> Result<T, PlaceError>) -> Result<T, PlaceError> {
    let until = Instant::now() + IN_USE_WAIT;
    loop {
        match open() {
            Err(PlaceError::File(FileError::InUse { .. }))
            | Err(PlaceError::Open(DiskError::File(FileError::InUse { .. })))
                if Instant::now() < until =>
            {
                std::thread::park_timeout(LOOK_AGAIN);
            }
            other => return other,
        }
    }
}

fn tell(path: &Path, recovered: &Recovered) {
    let path = path.display();
    info!(
        %path, checkpoint = recovered.checkpoint, batches = recovered.batches,
        "The disk is open"
    );
    if recovered.superblocks < 4 || !recovered.damaged_headers.is_empty() {
        warn!(
            %path, superblocks = recovered.superblocks, headers = recovered.damaged_headers.len(),
            "The disk was damaged, and nothing was lost by it"
        );
    }
    for entry in &recovered.damaged {
        warn!(%path, volume = %entry.volume, index = entry.index, "An entry of the log is damaged");
    }
    for (volume, why) in &recovered.broken {
        warn!(%path, %volume, why, "A replica cannot be used");
    }
}
