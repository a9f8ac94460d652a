//! Of which volumes the disk had replicas: one that was removed is never made anew as if it were the first.

use model::{DiskId, VolumeId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

const NAME: &str = "storage.replicas.json";

/// What was noted, in the state directory.
#[derive(Debug)]
pub(crate) struct Had {
    path: PathBuf,
    noted: Noted,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Noted {
    /// Of another disk it says nothing of this one.
    disk: Option<DiskId>,
    volumes: BTreeSet<VolumeId>,
}

impl Had {
    /// As it was noted of this disk.
    pub(crate) fn load(state_dir: &Path, disk: Option<DiskId>) -> io::Result<Self> {
        let path = state_dir.join(NAME);
        let none = Noted {
            disk,
            volumes: BTreeSet::new(),
        };
        let noted = match fs::read(&path) {
            Ok(text) => serde_json::from_slice::<Noted>(&text)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => none.clone(),
            Err(error) => return Err(error),
        };
        let same = noted.disk == disk;
        Ok(Self {
            path,
            noted: if same { noted } else { none },
        })
    }

    /// These are there.
    pub(crate) fn note(&mut self, there: impl IntoIterator<Item = VolumeId>) -> io::Result<()> {
        let mut noted = self.noted.clone();
        noted.volumes.extend(there);
        if noted != self.noted {
            let text = serde_json::to_vec(&noted)?;
            api::write_private(&self.path, &text)?;
            self.noted = noted;
        }
        Ok(())
    }

    pub(crate) const fn volumes(&self) -> &BTreeSet<VolumeId> {
        &self.noted.volumes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_disk_had_is_known_after_a_restart_and_not_of_another_disk() {
        let dir = tempfile::tempdir().unwrap();
        let (disk, other) = (Some(DiskId(1)), Some(DiskId(2)));
        let volume = VolumeId::from_random(7);
        let mut had = Had::load(dir.path(), disk).unwrap();
        had.note([volume]).unwrap();
        had.note([]).unwrap();
        let volumes = |disk| Had::load(dir.path(), disk).unwrap().volumes().clone();
        assert_eq!(volumes(disk), BTreeSet::from([volume]));
        assert_eq!(volumes(other), BTreeSet::new());
        fs::write(dir.path().join(NAME), "{").unwrap();
        assert!(Had::load(dir.path(), disk).is_err());
    }
}
