//! The file or device that is a disk: opened for direct IO, and locked.

use nix::errno::Errno;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// A file that is this process's alone until it is dropped.
#[derive(Debug)]
pub struct Target {
    pub(crate) file: File,
    path: PathBuf,
    bytes: u64,
    /// IO is under way that nobody waits for any more.
    io_left: bool,
}

/// Why a file cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be opened.
    #[error("opening {path}")]
    Open {
        /// Which.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another process has it, or one that was killed did a moment ago: the kernel takes its time to end
    /// what that one's ring had under way.
    #[error(
        "{path} is in use by another process; stop that one first, or try again if it was just killed"
    )]
    InUse {
        /// Which.
        path: String,
    },
}

impl Target {
    /// Opens and locks a file or device that is there.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        Self::open_with(path, OpenOptions::new().read(true).write(true))
    }

    /// The same, and makes the file if it is not there.
    pub(crate) fn create(path: &Path) -> Result<Self, FileError> {
        let mut options = OpenOptions::new();
        Self::open_with(
            path,
            // What tenants keep is nobody else's to read.
            options
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600),
        )
    }

    fn open_with(path: &Path, options: &mut OpenOptions) -> Result<Self, FileError> {
        let name = || path.display().to_string();
        let failed = |source| FileError::Open {
            path: name(),
            source,
        };
        let direct = options.custom_flags(libc::O_DIRECT).open(path);
        let file = match direct {
            // Some file systems know no direct IO. Syncs are as good there, only slower.
            Err(error) if error.raw_os_error() == Some(Errno::EINVAL as i32) => {
                options.custom_flags(0).open(path).map_err(failed)?
            }
            direct => direct.map_err(failed)?,
        };
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(FileError::InUse { path: name() }),
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
        // A device has no size in its metadata: its end tells.
        let bytes = (&file).seek(SeekFrom::End(0)).map_err(failed)?;
        Ok(Self {
            file,
            path: path.to_owned(),
            bytes,
            io_left: false,
        })
    }

    /// IO is under way that nobody waits for any more: the lock stays until the kernel has done it.
    pub(crate) const fn leave_io(&mut self) {
        self.io_left = true;
    }

    /// How large it is.
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Target {
    /// Closing the file gives its lock back only when nobody else has it open: a process that is being started has all of
    /// ours until it runs its program.
    fn drop(&mut self) {
        if !self.io_left {
            // Then it goes with the file.
            drop(self.file.unlock());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lock_is_given_back_while_a_new_process_still_has_the_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("disk");
        let target = Target::create(&path).expect("a file");
        // As a process has it between its fork and its program.
        let child = target.file.try_clone().expect("a descriptor");
        assert!(matches!(Target::open(&path), Err(FileError::InUse { .. })));
        drop(target);
        Target::open(&path).expect("nobody has it locked");
        drop(child);
    }
}
