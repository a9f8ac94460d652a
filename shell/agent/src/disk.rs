//! What the agent keeps on disk: the last configuration, the local stacks, its RD indexes.
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
        let path = self.dir.join(name);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => {
                return Err(StateError::Io {
                    doing: "reading",
                    path,
                    source,
                });
            }
        };
        parse(&text)
            .map(Some)
            .map_err(|reason| StateError::Damaged { path, reason })
    }

    /// Replaces a file; on return it is on the disk.
    pub(crate) fn save<T: Serialize>(&self, name: &str, value: &T) -> Result<(), StateError> {
        let path = self.dir.join(name);
        let json = serde_json::to_vec(value).expect("our own types become JSON");
        let text = [digest(&json).as_bytes(), b"\n", &json].concat();
        self.replace(&path, &text).map_err(|source| StateError::Io {
            doing: "writing",
            path,
            source,
        })
    }

    /// Moves a damaged file aside, where a person can look at it; says where.
    pub(crate) fn set_aside(&self, name: &str) -> Result<PathBuf, StateError> {
        let path = self.dir.join(name);
        let aside = (0..u32::MAX)
            .map(|n| self.dir.join(format!("{name}.damaged-{n}")))
            .find(|aside| !aside.exists())
            .expect("a directory holds fewer files than that");
        fs::rename(&path, &aside).map_err(|source| StateError::Io {
            doing: "moving aside",
            path,
            source,
        })?;
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
        File::open(&self.dir)?.sync_all()
    }
}

fn parse<T: DeserializeOwned>(text: &[u8]) -> Result<T, String> {
    let end = text
        .iter()
        .position(|b| *b == b'\n')
        .ok_or("it has no first line")?;
    let (sum, json) = (&text[..end], &text[end + 1..]);
    if sum != digest(json).as_bytes() {
        return Err("its checksum is wrong".to_owned());
    }
    serde_json::from_slice(json).map_err(|error| error.to_string())
}

fn digest(json: &[u8]) -> String {
    Sha256::digest(json)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
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
