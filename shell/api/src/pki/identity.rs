//! Who the holder of a certificate is.

use model::HostId;
use rustls::pki_types::CertificateDer;
use std::fmt;
use x509_parser::extensions::GeneralName;

/// Who the holder of a client certificate is: its one URI name, `vpc://CLUSTER/ROLE/NAME`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The cluster's id.
    pub cluster: String,
    /// What the holder may be, and which one it is.
    pub role: Role,
}

/// What the holder of a certificate may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// An administrator, by name.
    Admin(String),
    /// A host.
    Host(HostId),
}

/// A certificate that names nobody.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadIdentity {
    /// Not a certificate.
    #[error("the certificate cannot be read")]
    Unreadable,
    /// Not exactly one URI name of our form.
    #[error("the certificate does not name exactly one admin or host of a cluster")]
    NotOurs,
}

impl Identity {
    /// An administrator.
    pub fn admin(cluster: &str, name: &str) -> Self {
        Self {
            cluster: cluster.to_owned(),
            role: Role::Admin(name.to_owned()),
        }
    }

    /// A host.
    pub fn host(cluster: &str, host: HostId) -> Self {
        Self {
            cluster: cluster.to_owned(),
            role: Role::Host(host),
        }
    }

    fn parse(uri: &str) -> Option<Self> {
        let mut parts = uri.strip_prefix("vpc://")?.split('/');
        let (cluster, role, name) = (parts.next()?, parts.next()?, parts.next()?);
        if parts.next().is_some() || cluster.is_empty() || name.is_empty() {
            return None;
        }
        let role = match role {
            "admin" => Role::Admin(name.to_owned()),
            "host" => Role::Host(name.parse().ok()?),
            _ => return None,
        };
        Some(Self {
            cluster: cluster.to_owned(),
            role,
        })
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.role {
            Role::Admin(name) => write!(f, "vpc://{}/admin/{name}", self.cluster),
            Role::Host(id) => write!(f, "vpc://{}/host/{id}", self.cluster),
        }
    }
}

/// Whom a certificate names. That its chain leads to the cluster's CA was checked in the handshake.
pub fn identify(certificate: &CertificateDer<'_>) -> Result<Identity, BadIdentity> {
    let (_, parsed) =
        x509_parser::parse_x509_certificate(certificate).map_err(|_| BadIdentity::Unreadable)?;
    let names = parsed
        .subject_alternative_name()
        .map_err(|_| BadIdentity::Unreadable)?
        .ok_or(BadIdentity::NotOurs)?;
    match names.value.general_names.as_slice() {
        [GeneralName::URI(uri)] => Identity::parse(uri).ok_or(BadIdentity::NotOurs),
        _ => Err(BadIdentity::NotOurs),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_form_is_an_identity() {
        for text in ["vpc://c/admin/root", "vpc://c/host/0123456789"] {
            assert_eq!(Identity::parse(text).unwrap().to_string(), text);
        }
        for bad in [
            "",
            "http://c/admin/root",
            "vpc:///admin/root",
            "vpc://c/admin/",
            "vpc://c/admin/a/b",
            "vpc://c/host/nobody",
            "vpc://c/server/x",
        ] {
            assert_eq!(Identity::parse(bad), None, "{bad:?}");
        }
    }
}
