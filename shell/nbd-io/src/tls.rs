//! TLS: who is believed, and who one is.
//!
//! NBD's standard asks for TLS 1.2 at least ("TLS versions"); 1.3 is taken where the other side has it.

use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::{ResolvesServerCert, WebPkiClientVerifier};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use std::fmt;
use std::sync::Arc;

/// A TLS configuration that cannot be made.
#[derive(Debug, thiserror::Error)]
#[error("TLS for NBD: {what}")]
pub struct TlsError {
    what: &'static str,
    #[source]
    source: Box<dyn std::error::Error + Send + Sync>,
}

fn error<E>(what: &'static str) -> impl FnOnce(E) -> TlsError
where
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    move |source| TlsError {
        what,
        source: source.into(),
    }
}

/// A server's side. There is none that lets in clients without a certificate.
#[derive(Clone)]
pub struct ServerTls(pub(crate) Arc<ServerConfig>);

impl ServerTls {
    /// Shows that certificate, and lets in who has one of `ca`.
    pub fn new(
        ca: &CertificateDer<'static>,
        certificate: Arc<dyn ResolvesServerCert>,
    ) -> Result<Self, TlsError> {
        let mut roots = RootCertStore::empty();
        roots
            .add(ca.clone())
            .map_err(error("the authority's certificate cannot be read"))?;
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
            .build()
            .map_err(error("the authority cannot verify clients"))?;
        let config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(error("the provider offers no version of TLS"))?
            .with_client_cert_verifier(clients)
            .with_cert_resolver(certificate);
        Ok(Self(Arc::new(config)))
    }
}

/// A client's side.
#[derive(Clone)]
pub struct ClientTls {
    /// Who is believed, and what is shown.
    pub config: Arc<ClientConfig>,
    /// Who the server has to be.
    pub server: ServerName<'static>,
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServerTls")
    }
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClientTls({:?})", self.server)
    }
}
