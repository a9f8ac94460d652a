//! What the agent keeps on disk: the local stacks, its RD indexes, and more; of the server's configuration see
//! [`crate::kept_config`].
//!
//! A file is `sha256-of-the-rest\n` and JSON. It is replaced as a whole: written beside, synced,
//! renamed, and the directory synced, so that a crash leaves the old one or the new one.

use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The agent's state directory.
#[derive(Debug, Clone)]
pub(crate) struct Disk {
    dir: PathBuf,
}

/// State on disk that cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The file system said no.
    #[error("{doing} {path}: {source}{}", hint(source))]
    Io {
        /// "reading", "writing" and the like.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What is in it is not what was written.
    #[error(
        "{path} is damaged ({reason}): move it away to start without it, or restore it from a copy"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// How it shows.
        reason: String,
    },
}

fn hint(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::StorageFull => " (free some space there; nothing that was kept is lost)",
        io::ErrorKind::PermissionDenied => " (the agent runs as root)",
        _ => "",
    }
}

impl Disk {
    /// Opens the directory, making it if need be, for root alone.
    pub(crate) fn open(dir: &Path) -> Result<Self, StateError> {
        use std::os::unix::fs::DirBuilderExt;
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(|source| StateError::Io {
                doing: "making the state directory",
                path: dir.to_owned(),
                source,
            })?;
        Ok(Self {
            dir: dir.to_owned(),
        })
    }

    /// Reads a file; none if there is none.
    pub(crate) fn load<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, StateError> {
        let loaded = self.load_with_digest(name)?;
        Ok(loaded.map(|(value, _)| value))
    }

    /// The same, with the digest that names what is in it.
    pub(crate) fn load_with_digest<T: DeserializeOwned>(
        &self,
        name: &str,
    ) -> Result<Option<(T, FileDigest)>, StateError> {
        let Some(text) = self.read(name)? else {
            return Ok(None);
        };
        let parsed = parse(&text);
        parsed
            .map(Some)
            .map_err(|reason| self.damaged(name, reason))
    }

    /// What is in a file, whatever it is; none if there is none.
    pub(crate) fn read(&self, name: &str) -> Result<Option<Vec<u8>>, StateError> {
        match fs::read(self.path(name)) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(self.failed("reading", name, source)),
        }
    }

    /// Replaces a file; on return it is on the disk.
    pub(crate) fn save<T: Serialize>(&self, name: &str, value: &T) -> Result<(), StateError> {
        self.save_with_digest(name, value).map(drop)
    }

    /// The same; says the digest that names what is in it now.
    pub(crate) fn save_with_digest<T: Serialize>(
        &self,
        name: &str,
        value: &T,
    ) -> Result<FileDigest, StateError> {
        let json = serde_json::to_vec(value).expect("our own types become JSON");
        let digest = FileDigest::of(&json);
        let text = [&digest.0[..], b"\n", &json].concat();
        let replaced = self.replace(&self.path(name), &text);
        replaced
            .map(|()| digest)
            .map_err(|source| self.failed("writing", name, source))
    }

    /// Where a file is.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Has files that were made or renamed be there after a crash.
    pub(crate) fn sync(&self) -> io::Result<()> {
        File::open(&self.dir)?.sync_all()
    }

    pub(crate) fn failed(&self, doing: &'static str, name: &str, source: io::Error) -> StateError {
        StateError::Io {
            doing,
            path: self.path(name),
            source,
        }
    }

    pub(crate) fn damaged(&self, name: &str, reason: impl ToString) -> StateError {
        StateError::Damaged {
            path: self.path(name),
            reason: reason.to_string(),
        }
    }

    /// Moves a damaged file aside, where a person can look at it; says where.
    pub(crate) fn set_aside(&self, name: &str) -> Result<PathBuf, StateError> {
        let aside = (0..u32::MAX)
            .map(|n| self.dir.join(format!("{name}.damaged-{n}")))
            .find(|aside| !aside.exists())
            .expect("a directory holds fewer files than that");
        fs::rename(self.path(name), &aside)
            .map_err(|source| self.failed("moving aside", name, source))?;
        Ok(aside)
    }

    fn replace(&self, path: &Path, text: &[u8]) -> io::Result<()> {
        let beside = path.with_extension("new");
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&beside)?;
        file.write_all(text)?;
        file.sync_all()?;
        fs::rename(&beside, path)?;
        self.sync()
    }
}

/// SHA-256 of a file's JSON, in hex: its first line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileDigest(pub(crate) [u8; FileDigest::BYTES]);

impl FileDigest {
    pub(crate) const BYTES: usize = 64;

    fn of(json: &[u8]) -> Self {
        let mut hex = [0; Self::BYTES];
        for (digits, byte) in hex.chunks_exact_mut(2).zip(Sha256::digest(json)) {
            digits[0] = HEX[usize::from(byte >> 4)];
            digits[1] = HEX[usize::from(byte & 15)];
        }
        Self(hex)
    }
}

const HEX: &[u8; 16] = b"0123456789abcdef";

fn parse<T: DeserializeOwned>(text: &[u8]) -> Result<(T, FileDigest), String> {
    let end = text
        .iter()
        .position(|b| *b == b'\n')
        .ok_or("it has no first line")?;
    let (sum, json) = (&text[..end], &text[end + 1..]);
    let digest = FileDigest::of(json);
    if sum != digest.0 {
        return Err("its checksum is wrong".to_owned());
    }
    let value = serde_json::from_slice(json).map_err(|error| error.to_string())?;
    Ok((value, digest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_what_was_written_or_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::open(dir.path()).unwrap();
        assert_eq!(disk.load::<Vec<u32>>("x").unwrap(), None);
        disk.save("x", &vec![1, 2, 3]).unwrap();
        assert_eq!(disk.load("x").unwrap(), Some(vec![1, 2, 3]));

        let path = dir.path().join("x");
        let good = fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            fs::write(&path, &bad).unwrap();
            assert!(
                matches!(disk.load::<Vec<u32>>("x"), Err(StateError::Damaged { .. })),
                "{at}"
            );
            fs::write(&path, &good[..at]).unwrap();
            assert!(disk.load::<Vec<u32>>("x").is_err(), "cut at {at}");
        }
        let aside = disk.set_aside("x").unwrap();
        assert!(aside.exists() && disk.load::<Vec<u32>>("x").unwrap().is_none());
    }
}
