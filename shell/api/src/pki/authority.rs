//! The cluster's certificate authority.

use super::{Fingerprint, Identity, SERVER_NAME};
use model::HostId;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PKCS_ED25519, PublicKeyData, SanType,
};
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer, PrivateKeyDer};
use sha2::{Digest, Sha256};
use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};
use time::OffsetDateTime;

const CA_LIFE: Duration = Duration::from_secs(10 * 365 * 86_400);
/// Clocks of hosts differ; a certificate is good this long before it was made.
const BACKDATED: Duration = Duration::from_secs(300);

/// How long issued certificates live. Their holders renew them at two thirds.
#[derive(Debug, Clone, Copy)]
pub struct Lifetimes {
    /// Of the server's own, made anew whenever it starts.
    pub server: Duration,
    /// Of administrators'; not renewed by itself.
    pub admin: Duration,
    /// Of hosts'.
    pub host: Duration,
}

impl Default for Lifetimes {
    fn default() -> Self {
        let days = |days: u64| Duration::from_secs(days * 86_400);
        Self {
            server: days(30),
            admin: days(365),
            host: days(7),
        }
    }
}

/// The cluster CA with its key.
pub struct Authority {
    cluster: String,
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    certificate_pem: String,
}

/// A certificate with what its holder needs to know about it.
#[derive(Debug, Clone)]
pub struct Issued {
    /// Its own first, then the CA's.
    pub chain: Vec<CertificateDer<'static>>,
    /// From when it is good.
    pub not_before: SystemTime,
    /// Until when it is good.
    pub not_after: SystemTime,
}

/// A certificate that could not be made.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// By the library.
    #[error("making {what}")]
    Make {
        /// Whose.
        what: &'static str,
        /// Why not.
        #[source]
        source: rcgen::Error,
    },
    /// The CA's files do not belong together.
    #[error("the cluster CA's key is not that of its certificate: restore both from one backup")]
    Mismatch,
}

/// A signing request that is refused.
#[derive(Debug, thiserror::Error)]
pub enum BadCsr {
    /// Not one, or its signature does not match its key.
    #[error("the signing request is not a PKCS#10 request signed by its own key")]
    Unreadable(#[source] rcgen::Error),
    /// Another kind of key.
    #[error("the signing request has a key that is neither P-256 nor Ed25519")]
    Key,
    /// It was good, the certificate could not be made.
    #[error(transparent)]
    Issue(#[from] IssueError),
}

impl Authority {
    /// A new CA for the cluster.
    pub fn create(cluster: &str) -> Result<Self, IssueError> {
        let what = "the cluster CA";
        let error = |source| IssueError::Make { what, source };
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(error)?;
        let mut params = params(&format!("vpc cluster {cluster} CA"), CA_LIFE);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).map_err(error)?;
        Ok(Self {
            cluster: cluster.to_owned(),
            certificate: certificate.der().clone(),
            certificate_pem: certificate.pem(),
            issuer: Issuer::new(params, key),
        })
    }

    /// The CA of `cluster` from its PEM texts.
    pub fn load(cluster: &str, certificate: &str, key: &str) -> Result<Self, IssueError> {
        let what = "the cluster CA from its files";
        let error = |source| IssueError::Make { what, source };
        let key = KeyPair::from_pem(key).map_err(error)?;
        let issuer = Issuer::from_ca_cert_pem(certificate, key).map_err(error)?;
        let der = <CertificateDer<'static> as rustls::pki_types::pem::PemObject>::from_pem_slice(
            certificate.as_bytes(),
        )
        .map_err(|_| error(rcgen::Error::CouldNotParseCertificate))?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&der)
            .map_err(|_| error(rcgen::Error::CouldNotParseCertificate))?;
        if parsed.public_key().raw != issuer.key().subject_public_key_info() {
            return Err(IssueError::Mismatch);
        }
        Ok(Self {
            cluster: cluster.to_owned(),
            issuer,
            certificate_pem: certificate.to_owned(),
            certificate: der,
        })
    }

    /// The cluster it is the CA of.
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// Its certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// Its certificate as PEM.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// Its key as PEM: for the one file that keeps it.
    pub fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// What join tokens pin.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.certificate)
    }

    /// A certificate for a server of this cluster, for our own clients and for those that verify
    /// by `names` (DNS names and addresses).
    pub fn issue_server(
        &self,
        names: &[String],
        life: Duration,
    ) -> Result<(Issued, PrivateKeyDer<'static>), IssueError> {
        let what = "a server certificate";
        let error = |source| IssueError::Make { what, source };
        let mut params = params("vpc management server", life);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        for name in std::iter::once(SERVER_NAME).chain(names.iter().map(String::as_str)) {
            params.subject_alt_names.push(match name.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(name.try_into().map_err(error)?),
            });
        }
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(error)?;
        let issued = self.sign(&params, &key, what)?;
        let key = PrivateKeyDer::try_from(key.serialize_der())
            .expect("rcgen writes PKCS#8, which rustls reads");
        Ok((issued, key))
    }

    /// A certificate and key (PEM) for an administrator.
    pub fn issue_admin(&self, name: &str, life: Duration) -> Result<(Issued, String), IssueError> {
        let what = "an administrator's certificate";
        let error = |source| IssueError::Make { what, source };
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(error)?;
        let params = self.client_params(&Identity::admin(&self.cluster, name), life, what)?;
        Ok((self.sign(&params, &key, what)?, key.serialize_pem()))
    }

    /// A certificate for a host that made its own key. Only the key of the request counts.
    pub fn issue_host(&self, host: HostId, csr: &[u8], life: Duration) -> Result<Issued, BadCsr> {
        let what = "a host's certificate";
        let csr =
            CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(csr))
                .map_err(BadCsr::Unreadable)?;
        if ![&PKCS_ECDSA_P256_SHA256, &PKCS_ED25519].contains(&csr.public_key.algorithm()) {
            return Err(BadCsr::Key);
        }
        let params = self.client_params(&Identity::host(&self.cluster, host), life, what)?;
        Ok(self.sign(&params, &csr.public_key, what)?)
    }

    fn client_params(
        &self,
        identity: &Identity,
        life: Duration,
        what: &'static str,
    ) -> Result<CertificateParams, IssueError> {
        let error = |source| IssueError::Make { what, source };
        let uri = identity.to_string();
        let mut params = params(&uri, life);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let uri = uri.as_str().try_into().map_err(error)?;
        params.subject_alt_names = vec![SanType::URI(uri)];
        Ok(params)
    }

    fn sign(
        &self,
        params: &CertificateParams,
        key: &impl PublicKeyData,
        what: &'static str,
    ) -> Result<Issued, IssueError> {
        let certificate = params
            .signed_by(key, &self.issuer)
            .map_err(|source| IssueError::Make { what, source })?;
        Ok(Issued {
            chain: vec![certificate.der().clone(), self.certificate.clone()],
            not_before: params.not_before.into(),
            not_after: params.not_after.into(),
        })
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Authority({}, {})", self.cluster, self.fingerprint())
    }
}

/// SHA-256, in hex, of the public key of a signing request that is signed by it.
pub fn csr_key(csr: &[u8]) -> Result<String, BadCsr> {
    let csr = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(csr))
        .map_err(BadCsr::Unreadable)?;
    let hash = Sha256::digest(csr.public_key.der_bytes());
    Ok(hash.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// A new key for a host (PEM) and the request (DER) to have it certified.
pub fn host_csr() -> Result<(String, Vec<u8>), IssueError> {
    let what = "a key and signing request";
    let error = |source| IssueError::Make { what, source };
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(error)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let csr = params.serialize_request(&key).map_err(error)?;
    Ok((key.serialize_pem(), csr.der().to_vec()))
}

fn params(common_name: &str, life: Duration) -> CertificateParams {
    let now = OffsetDateTime::now_utc();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, common_name);
    params.not_before = now - BACKDATED;
    params.not_after = now + life;
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params
}

#[cfg(test)]
mod tests {
    use super::super::identify;
    use super::*;

    #[test]
    fn a_host_is_who_the_authority_says_whatever_its_request_says() {
        let authority = Authority::create("c-1").unwrap();
        let (_, csr) = host_csr().unwrap();
        let host = HostId::from_random(42);
        let issued = authority
            .issue_host(host, &csr, Duration::from_secs(60))
            .unwrap();
        assert_eq!(
            identify(&issued.chain[0]).unwrap(),
            Identity::host("c-1", host)
        );
        let mut forged = csr;
        let last = forged.len() - 1;
        forged[last] ^= 1;
        assert!(matches!(
            authority.issue_host(host, &forged, Duration::from_secs(60)),
            Err(BadCsr::Unreadable(_))
        ));
        assert!(
            authority
                .issue_host(host, b"garbage", Duration::from_secs(60))
                .is_err()
        );
    }

    #[test]
    fn an_authority_survives_its_files_and_notices_a_foreign_key() {
        let one = Authority::create("c-1").unwrap();
        let two = Authority::create("c-1").unwrap();
        let read = Authority::load("c-1", one.certificate_pem(), &one.key_pem()).unwrap();
        assert_eq!(read.fingerprint(), one.fingerprint());
        assert_eq!(one.fingerprint().to_string().parse(), Ok(one.fingerprint()));
        assert!(Authority::load("c-1", one.certificate_pem(), &two.key_pem()).is_err());
    }
}
