//! Clients: how the command line and the agents reach a server, and how a host enrols.

use crate::credential::{Credential, CredentialError, chain_pem};
use crate::pki::{IssueError, host_csr};
use crate::tls::{self, TlsError};
use crate::token::JoinToken;
use crate::v1;
use crate::v1::agent_control_client::AgentControlClient;
use crate::v1::enrollment_client::EnrollmentClient;
use crate::v1::evpn_client::EvpnClient;
use crate::v1::host_sync_client::HostSyncClient;
use crate::v1::l2_client::L2Client;
use crate::v1::l3_client::L3Client;
use crate::v1::management_client::ManagementClient;
use crate::v1::router_lease_client::RouterLeaseClient;
use crate::v1::sbs_client::SbsClient;
use hyper_util::rt::TokioIo;
use model::{HostId, Name, Role, SpeakerKind};
use rustls::pki_types::CertificateDer;
use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A dead connection is noticed in this and another [`KEEPALIVE_TIMEOUT`].
const KEEPALIVE_EVERY: Duration = Duration::from_secs(5);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(3);
/// A configuration of ten thousand NICs is about 2 MiB.
const LARGEST_MESSAGE_BYTES: usize = 32 << 20;

/// No connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No server answered.
    #[error("connecting to {target}: {reason}")]
    Unreachable {
        /// The servers that were tried, or the socket.
        target: String,
        /// Why not, of the last one.
        reason: String,
    },
    /// The credential is of no use.
    #[error(transparent)]
    Credential(#[from] CredentialError),
    /// TLS could not be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// A client of the management API with the credential in this file.
pub async fn connect_admin(
    credential_file: &Path,
) -> Result<ManagementClient<Channel>, ConnectError> {
    Ok(management(
        connect(&Credential::load(credential_file)?).await?,
    ))
}

/// A client of the management API on a channel of [`connect`].
pub fn management(channel: Channel) -> ManagementClient<Channel> {
    ManagementClient::new(channel).max_decoding_message_size(LARGEST_MESSAGE_BYTES)
}

/// A client of what agents call, as the host whose credential this is. Connects again by itself,
/// but always with this certificate: make a new one after a renewal.
pub async fn connect_host(
    credential: &Credential,
) -> Result<HostSyncClient<Channel>, ConnectError> {
    let channel = connect(credential).await?;
    Ok(HostSyncClient::new(channel).max_decoding_message_size(LARGEST_MESSAGE_BYTES))
}

/// A client of the server that confirms which routers the host of this credential runs.
pub async fn connect_voter_server(
    credential: &Credential,
) -> Result<RouterLeaseClient<Channel>, ConnectError> {
    Ok(RouterLeaseClient::new(connect(credential).await?))
}

/// The same of a route host that votes, which listens there.
pub async fn connect_voter_host(
    credential: &Credential,
    host: HostId,
    address: SocketAddr,
) -> Result<RouterLeaseClient<Channel>, ConnectError> {
    let tls = credential.peer_tls(host)?;
    let channel = tls_channel(&[address.to_string()], tls).await?;
    Ok(RouterLeaseClient::new(channel))
}

/// A channel to the first server that answers.
pub async fn connect(credential: &Credential) -> Result<Channel, ConnectError> {
    tls_channel(&credential.servers, credential.tls()?).await
}

/// A client of the L2 service on the socket of the agent of this host.
pub async fn connect_l2(socket: &Path) -> Result<L2Client<Channel>, ConnectError> {
    let channel = connect_unix(socket).await?;
    Ok(L2Client::new(channel).max_decoding_message_size(LARGEST_MESSAGE_BYTES))
}

/// A client of the L3 service on the socket of the agent of this host.
pub async fn connect_l3(socket: &Path) -> Result<L3Client<Channel>, ConnectError> {
    let channel = connect_unix(socket).await?;
    Ok(L3Client::new(channel).max_decoding_message_size(LARGEST_MESSAGE_BYTES))
}

/// A client of the SBS service on the socket of the agent of this host.
pub async fn connect_sbs(socket: &Path) -> Result<SbsClient<Channel>, ConnectError> {
    let channel = connect_unix(socket).await?;
    Ok(SbsClient::new(channel).max_decoding_message_size(LARGEST_MESSAGE_BYTES))
}

/// A client of the agent of this host itself.
pub async fn connect_agent(socket: &Path) -> Result<AgentControlClient<Channel>, ConnectError> {
    let channel = connect_unix(socket).await?;
    Ok(AgentControlClient::new(channel).max_decoding_message_size(LARGEST_MESSAGE_BYTES))
}

/// A client of what knows of an EVPN speaker: the agent of this host, or the server of its reflector.
pub async fn connect_evpn(socket: &Path) -> Result<EvpnClient<Channel>, ConnectError> {
    let channel = connect_unix(socket).await?;
    Ok(EvpnClient::new(channel).max_decoding_message_size(LARGEST_MESSAGE_BYTES))
}

/// A channel over a unix socket, without TLS: the socket's permissions guard it.
pub async fn connect_unix(socket: &Path) -> Result<Channel, ConnectError> {
    let path: PathBuf = socket.to_owned();
    endpoint()
        .connect_with_connector(service_fn(move |_| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        }))
        .await
        .map_err(|error| ConnectError::Unreachable {
            target: socket.display().to_string(),
            reason: format!("{}; is the agent running?", root_cause(&error)),
        })
}

/// What a host brings to join.
#[derive(Debug, Clone)]
pub struct Enrollment {
    /// `host:port` of each server, in the order they are tried.
    pub servers: Vec<String>,
    /// What the administrator made.
    pub token: JoinToken,
    /// The host's name.
    pub host_name: Name,
    /// The VTEP's address.
    pub underlay: IpAddr,
    /// Wanted roles; empty for those of the token.
    pub roles: BTreeSet<Role>,
    /// Failure domain.
    pub zone: Option<Name>,
    /// Its EVPN client.
    pub speaker: SpeakerKind,
    /// Version of the agent.
    pub agent_version: String,
    /// Version of the kernel.
    pub kernel_version: String,
}

/// A host that joined.
#[derive(Debug, Clone)]
pub struct Enrolled {
    /// Its id.
    pub host: HostId,
    /// With which it reaches the server from now on: save it.
    pub credential: Credential,
    /// What is the same for the whole cluster.
    pub cluster: v1::ClusterSettings,
}

/// A host that did not join.
#[derive(Debug, thiserror::Error)]
pub enum EnrollError {
    /// No key.
    #[error(transparent)]
    Key(#[from] IssueError),
    /// No server, or one that is not of the token's cluster.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The server refused.
    #[error("joining as {host}: {}", .status.message())]
    Refused {
        /// The host's name.
        host: Name,
        /// What it said.
        status: Box<tonic::Status>,
    },
    /// The server's answer makes no sense.
    #[error("joining as {host}: the server's answer has no usable {what}")]
    Answer {
        /// The host's name.
        host: Name,
        /// What is wrong with it.
        what: &'static str,
    },
}

/// Makes a key, proves the server by the token's fingerprint, and only then joins. The key is in
/// the credential it returns and nowhere else.
pub async fn enroll(with: &Enrollment) -> Result<Enrolled, EnrollError> {
    enroll_with(with, &host_csr()?).await
}

/// As [`enroll`], with a key (PEM) and request (DER) made before: a retry after a lost answer must
/// come with the same key.
pub async fn enroll_with(
    with: &Enrollment,
    (key, csr): &(String, Vec<u8>),
) -> Result<Enrolled, EnrollError> {
    let tls = tls::pinned_client(with.token.fingerprint).map_err(ConnectError::from)?;
    let channel = tls_channel(&with.servers, tls).await?;
    let answer = EnrollmentClient::new(channel)
        .join(v1::JoinRequest {
            token: with.token.reveal_secret().to_owned(),
            csr_der: csr.clone(),
            host_name: with.host_name.to_string(),
            underlay_address: with.underlay.to_string(),
            roles: with
                .roles
                .iter()
                .map(|role| v1::Role::from(*role).into())
                .collect(),
            zone: with.zone.as_ref().map(Name::to_string).unwrap_or_default(),
            speaker: v1::Speaker::from(with.speaker).into(),
            agent_version: with.agent_version.clone(),
            kernel_version: with.kernel_version.clone(),
        })
        .await
        .map_err(|status| EnrollError::Refused {
            host: with.host_name.clone(),
            status: Box::new(status),
        })?
        .into_inner();
    let lacks = |what| EnrollError::Answer {
        host: with.host_name.clone(),
        what,
    };
    let host = answer.host_id.parse().map_err(|_| lacks("host id"))?;
    let certificate = answer.certificate.ok_or_else(|| lacks("certificate"))?;
    let cluster = answer.cluster.ok_or_else(|| lacks("cluster settings"))?;
    let servers = match cluster.servers.as_slice() {
        [] => with.servers.clone(),
        servers => servers.to_vec(),
    };
    Ok(Enrolled {
        host,
        credential: renewed(servers, &certificate, key.clone()),
        cluster,
    })
}

/// The credential of a host that got this certificate for this key (PEM).
pub fn renewed(servers: Vec<String>, certificate: &v1::Certificate, key: String) -> Credential {
    let pem = |chain: &[Vec<u8>]| {
        let chain: Vec<CertificateDer<'_>> = chain
            .iter()
            .map(|der| CertificateDer::from(der.as_slice()))
            .collect();
        chain_pem(&chain)
    };
    let ca = pem(std::slice::from_ref(&certificate.ca_der));
    Credential::new(servers, ca, pem(&certificate.chain_der), key)
}

async fn tls_channel(
    servers: &[String],
    config: rustls::ClientConfig,
) -> Result<Channel, ConnectError> {
    let connector = TlsConnector::from(Arc::new(config));
    let targets: Arc<[String]> = servers.into();
    endpoint()
        .connect_with_connector(service_fn(move |_| {
            let (connector, targets) = (connector.clone(), Arc::clone(&targets));
            async move {
                first_that_answers(&connector, &targets)
                    .await
                    .map(TokioIo::new)
            }
        }))
        .await
        .map_err(|error| ConnectError::Unreachable {
            target: match servers {
                [] => "no server".to_owned(),
                servers => servers.join(", "),
            },
            reason: root_cause(&error),
        })
}

async fn first_that_answers(
    connector: &TlsConnector,
    servers: &[String],
) -> io::Result<TlsStream<TcpStream>> {
    let mut last = io::Error::new(
        io::ErrorKind::InvalidInput,
        "the credential names no server: add one, as in 192.0.2.1:7443",
    );
    for server in servers {
        let attempt = async {
            let tcp = TcpStream::connect(server).await?;
            tcp.set_nodelay(true)?;
            connector.connect(tls::server_name(), tcp).await
        };
        match tokio::time::timeout(CONNECT_TIMEOUT, attempt).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => last = error,
            Err(_) => last = io::Error::new(io::ErrorKind::TimedOut, "no answer in 5 s"),
        }
    }
    Err(last)
}

fn endpoint() -> Endpoint {
    // The connector decides where to; the URI only becomes the `:authority` of requests.
    Endpoint::from_static("http://server.vpc.internal")
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEPALIVE_EVERY)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
}

fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

impl fmt::Display for v1::Ref {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.by {
            Some(v1::r#ref::By::Id(id)) => f.pad(id),
            Some(v1::r#ref::By::Path(path)) => f.pad(path),
            None => f.pad("nothing"),
        }
    }
}
