//! The file with which an administrator or a host reaches the server.

use crate::pki::{Identity, Role, identify};
use crate::tls::{self, TlsError};
use model::HostId;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Where the servers are, how to know them, and who we are. A TOML file, mode 0600:
///
/// ```toml
/// version = 1
/// servers = ["192.0.2.1:7443"]
/// ca = "-----BEGIN CERTIFICATE-----..."
/// certificate = "-----BEGIN CERTIFICATE-----..."
/// key = "-----BEGIN PRIVATE KEY-----..."
/// ```
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Credential {
    version: u32,
    /// `host:port` of each server, in the order they are tried.
    pub servers: Vec<String>,
    /// The cluster CA's certificate, PEM.
    pub ca: String,
    /// Our certificate (chain), PEM.
    pub certificate: String,
    key: String,
}

const VERSION: u32 = 1;

/// A credential file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// Not there, or not ours to read.
    #[error("reading credential file {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Not written.
    #[error("writing credential file {path}")]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Others could read the key.
    #[error(
        "credential file {path} has mode {mode:04o}: its key can be read by others; make it `chmod 600 {path}`"
    )]
    Mode {
        /// Which.
        path: PathBuf,
        /// Permission bits.
        mode: u32,
    },
    /// Not such a file.
    #[error("credential file {path} is not one: make a new one, or copy it again")]
    Format {
        /// Which.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: toml::de::Error,
    },
    /// Written by a newer program.
    #[error(
        "credential file {path} has version {version}, this program knows {VERSION}: use a newer program"
    )]
    Version {
        /// Which.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
    /// A certificate or key in it is not one.
    #[error("the credential's {what} cannot be read: make a new credential")]
    Content {
        /// Which part.
        what: &'static str,
    },
    /// Parts that do not belong together.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

impl Credential {
    /// From its parts; PEM texts.
    pub const fn new(servers: Vec<String>, ca: String, certificate: String, key: String) -> Self {
        Self {
            version: VERSION,
            servers,
            ca,
            certificate,
            key,
        }
    }

    /// Reads a file that only its owner can read.
    pub fn load(path: &Path) -> Result<Self, CredentialError> {
        let read = |source| CredentialError::Read {
            path: path.to_owned(),
            source,
        };
        let mode = std::fs::metadata(path).map_err(read)?.mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(CredentialError::Mode {
                path: path.to_owned(),
                mode,
            });
        }
        let text = std::fs::read_to_string(path).map_err(read)?;
        let credential: Self = toml::from_str(&text).map_err(|source| CredentialError::Format {
            path: path.to_owned(),
            source,
        })?;
        if credential.version != VERSION {
            return Err(CredentialError::Version {
                path: path.to_owned(),
                version: credential.version,
            });
        }
        Ok(credential)
    }

    /// Writes the file whole or not at all: beside it, synced, then renamed over it.
    pub fn save(&self, path: &Path) -> Result<(), CredentialError> {
        let text = toml::to_string(self).expect("strings and a list of strings have a TOML form");
        write_private(path, text.as_bytes()).map_err(|source| CredentialError::Write {
            path: path.to_owned(),
            source,
        })
    }

    /// Who we are.
    pub fn identity(&self) -> Result<Identity, CredentialError> {
        let content = || CredentialError::Content {
            what: "certificate",
        };
        let chain = self.chain()?;
        identify(chain.first().ok_or_else(content)?).map_err(|_| content())
    }

    /// From when and until when our certificate is good. Renew at two thirds.
    pub fn validity(&self) -> Result<(SystemTime, SystemTime), CredentialError> {
        let content = || CredentialError::Content {
            what: "certificate",
        };
        let chain = self.chain()?;
        let first = chain.first().ok_or_else(content)?;
        let (_, parsed) = x509_parser::parse_x509_certificate(first).map_err(|_| content())?;
        let validity = parsed.validity();
        Ok((
            validity.not_before.to_datetime().into(),
            validity.not_after.to_datetime().into(),
        ))
    }

    /// The TLS side of it.
    pub fn tls(&self) -> Result<rustls::ClientConfig, CredentialError> {
        let (ca, key) = self.ca_and_key()?;
        Ok(tls::client(&ca, self.chain()?, key)?)
    }

    /// The TLS side of it towards another host, which has to be this one.
    pub fn peer_tls(&self, host: HostId) -> Result<rustls::ClientConfig, CredentialError> {
        let (ca, key) = self.ca_and_key()?;
        let expected = Identity {
            role: Role::Host(host),
            ..self.identity()?
        };
        Ok(tls::peer_client(&ca, self.chain()?, key, expected)?)
    }

    /// The TLS side of it where other hosts call this one.
    pub fn listener_tls(&self) -> Result<rustls::ServerConfig, CredentialError> {
        let (ca, key) = self.ca_and_key()?;
        Ok(tls::peer_server(&ca, self.chain()?, key)?)
    }

    fn ca_and_key(
        &self,
    ) -> Result<(CertificateDer<'static>, PrivateKeyDer<'static>), CredentialError> {
        let ca = CertificateDer::from_pem_slice(self.ca.as_bytes())
            .map_err(|_| CredentialError::Content { what: "CA" })?;
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes())
            .map_err(|_| CredentialError::Content { what: "key" })?;
        Ok((ca, key))
    }

    fn chain(&self) -> Result<Vec<CertificateDer<'static>>, CredentialError> {
        CertificateDer::pem_slice_iter(self.certificate.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| CredentialError::Content {
                what: "certificate",
            })
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential")
            .field("servers", &self.servers)
            .finish_non_exhaustive()
    }
}

/// Writes a file that only its owner can read, whole or not at all.
pub fn write_private(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let beside = PathBuf::from(name);
    match std::fs::remove_file(&beside) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&beside)?;
    file.write_all(content)?;
    file.sync_all()?;
    std::fs::rename(&beside, path)?;
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    std::fs::File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
}

/// Certificates as PEM, one after the other.
pub fn chain_pem(chain: &[CertificateDer<'_>]) -> String {
    use base64::Engine as _;
    chain
        .iter()
        .map(|certificate| {
            let text = base64::engine::general_purpose::STANDARD.encode(certificate);
            let lines: Vec<&str> = text
                .as_bytes()
                .chunks(64)
                .map(|line| str::from_utf8(line).expect("base 64 is ASCII"))
                .collect();
            format!(
                "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n",
                lines.join("\n")
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::Authority;
    use std::os::unix::fs::PermissionsExt;
    use std::time::Duration;

    #[test]
    fn a_credential_survives_its_file_and_is_refused_when_others_can_read_it() {
        let authority = Authority::create("c-1").unwrap();
        let life = Duration::from_secs(600);
        let (issued, key) = authority.issue_admin("root", life).unwrap();
        let credential = Credential::new(
            vec!["127.0.0.1:1".to_owned()],
            authority.certificate_pem().to_owned(),
            chain_pem(&issued.chain),
            key,
        );
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.toml");
        credential.save(&path).unwrap();
        credential.save(&path).unwrap();
        let read = Credential::load(&path).unwrap();
        assert!(read == credential);
        assert_eq!(read.identity().unwrap(), Identity::admin("c-1", "root"));
        read.tls().unwrap();
        let (from, until) = read.validity().unwrap();
        assert!(from < SystemTime::now() && until > SystemTime::now());
        assert!(!format!("{credential:?}").contains("PRIVATE"));

        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        let error = Credential::load(&path).unwrap_err().to_string();
        assert!(error.contains("mode 0640"), "{error}");
    }
}
