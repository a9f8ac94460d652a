//! The server's data directory.
//!
//! ```text
//! cluster.toml   what the cluster is; its presence says that the directory is complete
//! ca.pem ca.key  the cluster CA
//! bgp.key        what BGP sessions are signed with (TCP-MD5)
//! admin.toml     the first administrator's credential
//! vpc.db         the store, unless it is PostgreSQL
//! ```
//!
//! All of it is mode 0600 in a directory of mode 0700. A second server on the same PostgreSQL gets
//! a copy of everything but `admin.toml`.

use api::pki::Authority;
use api::write_private;
use model::Secret;
use serde::{Deserialize, Serialize};
use std::fs::{DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

const VERSION: u32 = 1;

/// Where things are.
#[derive(Debug, Clone)]
pub(crate) struct DataDir(PathBuf);

/// What `cluster.toml` says.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ClusterFile {
    version: u32,
    pub(crate) cluster: String,
    /// `postgres://...`; none for `vpc.db` beside this file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) database: Option<String>,
}

/// A data directory that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// It is in use.
    #[error(
        "data directory {path} is not empty (it has {found}): choose another, or remove it if nothing in it is needed any more"
    )]
    NotEmpty {
        /// Which.
        path: PathBuf,
        /// What is in it.
        found: String,
    },
    /// No cluster in it.
    #[error(
        "data directory {path} has no cluster.toml: run `vpc server init` first, or restore its backup"
    )]
    NotInitialised {
        /// Which.
        path: PathBuf,
    },
    /// Others could read its keys.
    #[error(
        "{path} has mode {mode:04o}: others could get at the cluster's keys; make it `chmod {wanted} {path}`"
    )]
    Mode {
        /// Which file or directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
        /// What they should be.
        wanted: &'static str,
    },
    /// A file operation failed.
    #[error("{action} {path}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// `cluster.toml` is not one.
    #[error("{path} is damaged: restore it from a backup")]
    Format {
        /// Which.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: toml::de::Error,
    },
    /// Written by a newer program.
    #[error("{path} has version {version}, this program knows {VERSION}: use a newer program")]
    Version {
        /// Which.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
    /// The CA's files.
    #[error(transparent)]
    Authority(#[from] api::pki::IssueError),
}

impl DataDir {
    /// A new one; refuses one that has anything in it.
    pub(crate) fn create(path: &Path) -> Result<Self, DataDirError> {
        let dir = Self(path.to_owned());
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(dir.io("making data directory", path))?;
        let mut entries =
            std::fs::read_dir(path).map_err(dir.io("reading data directory", path))?;
        if let Some(entry) = entries.next() {
            let entry = entry.map_err(dir.io("reading data directory", path))?;
            return Err(DataDirError::NotEmpty {
                path: path.to_owned(),
                found: entry.file_name().to_string_lossy().into_owned(),
            });
        }
        std::fs::set_permissions(path, Permissions::from_mode(0o700))
            .map_err(dir.io("restricting data directory", path))?;
        Ok(dir)
    }

    /// One that was initialised.
    pub(crate) fn open(path: &Path) -> Result<Self, DataDirError> {
        let dir = Self(path.to_owned());
        if !dir.cluster_path().exists() {
            return Err(DataDirError::NotInitialised {
                path: path.to_owned(),
            });
        }
        dir.check_mode(path, "0700")?;
        for file in [dir.ca_key_path(), dir.bgp_path(), dir.cluster_path()] {
            dir.check_mode(&file, "0600")?;
        }
        Ok(dir)
    }

    pub(crate) fn database_path(&self) -> PathBuf {
        self.0.join("vpc.db")
    }

    pub(crate) fn admin_path(&self) -> PathBuf {
        self.0.join("admin.toml")
    }

    pub(crate) fn write_keys(
        &self,
        authority: &Authority,
        bgp: &Secret,
    ) -> Result<(), DataDirError> {
        self.write(self.ca_path(), authority.certificate_pem())?;
        self.write(self.ca_key_path(), &authority.key_pem())?;
        self.write(self.bgp_path(), &bgp.0)
    }

    /// The last file of an initialisation.
    pub(crate) fn write_cluster(
        &self,
        cluster: &str,
        database: Option<String>,
    ) -> Result<(), DataDirError> {
        let file = ClusterFile {
            version: VERSION,
            cluster: cluster.to_owned(),
            database,
        };
        let text = toml::to_string(&file).expect("strings and a number have a TOML form");
        self.write(self.cluster_path(), &text)
    }

    pub(crate) fn cluster(&self) -> Result<ClusterFile, DataDirError> {
        let path = self.cluster_path();
        let file: ClusterFile =
            toml::from_str(&self.read(&path)?).map_err(|source| DataDirError::Format {
                path: path.clone(),
                source,
            })?;
        if file.version != VERSION {
            return Err(DataDirError::Version {
                path,
                version: file.version,
            });
        }
        Ok(file)
    }

    pub(crate) fn authority(&self, cluster: &str) -> Result<Authority, DataDirError> {
        let certificate = self.read(&self.ca_path())?;
        let key = self.read(&self.ca_key_path())?;
        Ok(Authority::load(cluster, &certificate, &key)?)
    }

    pub(crate) fn bgp_secret(&self) -> Result<Secret, DataDirError> {
        Ok(Secret(self.read(&self.bgp_path())?.trim().to_owned()))
    }

    fn cluster_path(&self) -> PathBuf {
        self.0.join("cluster.toml")
    }

    fn ca_path(&self) -> PathBuf {
        self.0.join("ca.pem")
    }

    fn ca_key_path(&self) -> PathBuf {
        self.0.join("ca.key")
    }

    fn bgp_path(&self) -> PathBuf {
        self.0.join("bgp.key")
    }

    fn check_mode(&self, path: &Path, wanted: &'static str) -> Result<(), DataDirError> {
        let mode = std::fs::metadata(path)
            .map_err(self.io("reading", path))?
            .mode()
            & 0o7777;
        if mode & 0o077 == 0 {
            return Ok(());
        }
        Err(DataDirError::Mode {
            path: path.to_owned(),
            mode,
            wanted,
        })
    }

    fn read(&self, path: &Path) -> Result<String, DataDirError> {
        std::fs::read_to_string(path).map_err(self.io("reading", path))
    }

    fn write(&self, path: PathBuf, text: &str) -> Result<(), DataDirError> {
        write_private(&path, text.as_bytes()).map_err(self.io("writing", &path))
    }

    fn io(&self, action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DataDirError {
        let path = path.to_owned();
        move |source| DataDirError::Io {
            action,
            path,
            source,
        }
    }
}
