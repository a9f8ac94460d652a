//! TLS between hosts, and what is said first.

use super::{ALPN, Own};
use crate::identity;
use api::pki::{Role, identify};
use api::{Credential, CredentialError};
use model::HostId;
use replication::wire::{BadFrame, Disagreed, HELLO_BYTES, Hello};
use rustls::pki_types::{CertificateDer, ServerName};
use std::io;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// Why a connection is not used.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkError {
    #[error(transparent)]
    Credential(#[from] CredentialError),
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error(
        "its certificate is of no host of this cluster; check the address, or have it join again"
    )]
    Stranger,
    #[error(transparent)]
    Bad(#[from] BadFrame),
    #[error(transparent)]
    Disagreed(#[from] Disagreed),
    #[error("it did not answer in time")]
    Late,
    #[error("it closed the connection")]
    Closed,
    #[error(
        "it says something where only this host has something to say; it may be of another release"
    )]
    Odd,
}

pub(super) fn connector(own: &Own, peer: HostId) -> Result<TlsConnector, LinkError> {
    let mut config = Credential::load(&own.credential)?.peer_tls(peer)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(TlsConnector::from(Arc::new(config)))
}

pub(super) fn acceptor(own: &Own) -> Result<TlsAcceptor, LinkError> {
    let mut config = Credential::load(&own.credential)?.listener_tls()?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// What a caller asks for by name is not looked at: it is the certificate's identity that has to be right.
pub(super) fn server_name() -> ServerName<'static> {
    api::tls::server_name()
}

/// Who is on the other side.
pub(super) fn host_of(
    own: &Own,
    certificates: Option<&[CertificateDer<'_>]>,
) -> Result<HostId, LinkError> {
    let certificate = certificates.and_then(<[_]>::first);
    let identity = certificate.and_then(|certificate| identify(certificate).ok());
    let identity = identity.filter(|identity| identity.cluster == own.cluster);
    match identity.ok_or(LinkError::Stranger)?.role {
        Role::Host(host) => Ok(host),
        Role::Admin(_) => Err(LinkError::Stranger),
    }
}

/// Both sides say who they are and what they speak before either judges, so that both can tell why not.
pub(super) async fn agree<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    own: &Own,
    peer: HostId,
) -> Result<(), LinkError> {
    let cluster = identity::cluster(&own.cluster);
    let ours = Hello::ours(cluster, identity::host(own.host), identity::host(peer));
    stream.write_all(&ours.encode()).await?;
    stream.flush().await?;
    let mut bytes = [0; HELLO_BYTES];
    stream.read_exact(&mut bytes).await?;
    let theirs = Hello::decode(&bytes)?;
    ours.agree(&theirs)?;
    Ok(())
}
