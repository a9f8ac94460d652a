//! Certificates: the cluster's authority, what it issues, and who a peer is.
//!
//! Every certificate is P-256 (hosts may bring Ed25519) and signed by the one cluster CA:
//!
//! ```text
//! CA      cluster CA, ten years
//! server  DNS server.vpc.internal (what our own clients verify), the addresses for others
//! admin   URI vpc://CLUSTER/admin/NAME
//! host    URI vpc://CLUSTER/host/ID, days, renewed by the host at two thirds of its life
//! ```

mod authority;
mod identity;

pub use authority::{Authority, BadCsr, IssueError, Issued, Lifetimes, csr_key, host_csr};
pub use identity::{BadIdentity, Identity, Role, identify};

use rustls::pki_types::CertificateDer;
use sha2::{Digest, Sha256};
use std::fmt;
use std::str::FromStr;

/// The name by which our clients verify a management server, whatever address they reach it at.
/// Only the server's certificate has it.
pub const SERVER_NAME: &str = "server.vpc.internal";

/// SHA-256 of a certificate's DER.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint([u8; 32]);

/// Text that is not a fingerprint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a fingerprint: 64 hex digits")]
pub struct BadFingerprint(pub String);

impl Fingerprint {
    /// Of a certificate.
    pub fn of(certificate: &CertificateDer<'_>) -> Self {
        Self(Sha256::digest(certificate).into())
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for Fingerprint {
    type Err = BadFingerprint;
    fn from_str(text: &str) -> Result<Self, BadFingerprint> {
        let bad = || BadFingerprint(text.chars().take(80).collect());
        if text.len() != 64 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(bad());
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
            let pair = str::from_utf8(pair).map_err(|_| bad())?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| bad())?;
        }
        Ok(Self(bytes))
    }
}
