//! Where other route hosts ask this one. Nobody gets here without a host's certificate of the cluster.

use super::Shared;
use crate::kernel::chain;
use api::pki::{Role, identify};
use api::tonic::transport::Server;
use api::tonic::transport::server::Connected;
use api::tonic::{Request, Response, Status};
use api::v1::router_lease_server::{RouterLease, RouterLeaseServer};
use api::{Credential, v1};
use lease::Ask;
use model::{HostId, LEASE_PORT};
use standby::Refused;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tracing::{debug, warn};

/// A host has one connection, and for a moment two.
const CONNECTIONS: usize = 256;
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);
const RETRY: Duration = Duration::from_secs(1);
/// A claim of 4096 routers is below, and so are 20000 tracked connections.
const LARGEST_REQUEST_BYTES: usize = 8 << 20;

/// The listener, which is where it is told to be.
pub(super) struct Listening {
    address: watch::Sender<Option<IpAddr>>,
}

impl Listening {
    pub(super) fn new(shared: Shared, credential: PathBuf) -> Self {
        let (address, wanted) = watch::channel(None);
        tokio::spawn(listen(wanted, shared, credential));
        Self { address }
    }

    pub(super) fn at(&self, address: Option<IpAddr>) {
        self.address.send_if_modified(|held| {
            let differs = *held != address;
            *held = address;
            differs
        });
    }
}

async fn listen(mut wanted: watch::Receiver<Option<IpAddr>>, shared: Shared, credential: PathBuf) {
    let mut told = String::new();
    loop {
        let address = *wanted.borrow_and_update();
        let serving = async {
            let Some(address) = address else {
                return std::future::pending().await;
            };
            match TcpListener::bind(SocketAddr::new(address, LEASE_PORT)).await {
                Ok(tcp) => serve(tcp, &shared, &credential).await,
                Err(error) => format!("listening on {address} port {LEASE_PORT}: {error}"),
            }
        };
        tokio::select! {
            trouble = serving => {
                if trouble != told {
                    warn!(trouble, "Other route hosts cannot ask this one about routers");
                    told = trouble;
                }
                sleep(RETRY).await;
            }
            changed = wanted.changed() => {
                if changed.is_err() {
                    return;
                }
            }
        }
    }
}

/// Serves until it cannot.
async fn serve(tcp: TcpListener, shared: &Shared, credential: &Path) -> String {
    let (served, connections) = mpsc::channel(16);
    let api = RouterLeaseServer::new(Service(shared.clone()))
        .max_decoding_message_size(LARGEST_REQUEST_BYTES);
    let serving = Server::builder()
        .timeout(Duration::from_secs(2))
        .concurrency_limit_per_connection(4)
        .max_concurrent_streams(8)
        .http2_keepalive_interval(Some(Duration::from_secs(5)))
        .http2_keepalive_timeout(Some(Duration::from_secs(5)))
        .http2_max_header_list_size(16 << 10)
        .add_service(api)
        .serve_with_incoming(ReceiverStream::new(connections));
    tokio::select! {
        ended = serving => match ended {
            Ok(()) => "the service ended".to_owned(),
            Err(error) => chain(&error),
        },
        () = accept(tcp, credential, served) => "accepting ended".to_owned(),
    }
}

async fn accept(
    tcp: TcpListener,
    credential: &Path,
    served: mpsc::Sender<Result<Connection, io::Error>>,
) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else {
            return;
        };
        let stream = match tcp.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                debug!(%error, "Accepting a connection failed");
                sleep(RETRY).await;
                continue;
            }
        };
        // Read each time: it is renewed now and then, and hosts connect seldom.
        let tls = Credential::load(credential).and_then(|credential| {
            let own = credential.identity()?;
            Ok((credential.listener_tls()?, own.cluster))
        });
        let (acceptor, cluster) = match tls {
            Ok((tls, cluster)) => (TlsAcceptor::from(Arc::new(tls)), cluster),
            Err(error) => {
                warn!(error = chain(&error), "The credential is of no use");
                sleep(RETRY).await;
                continue;
            }
        };
        let served = served.clone();
        tokio::spawn(async move {
            let handshake = handshake(stream, &acceptor, &cluster);
            match timeout(HANDSHAKE_LIMIT, handshake).await {
                Ok(Ok((stream, host))) => {
                    let connection = Connection {
                        stream,
                        host,
                        _slot: slot,
                    };
                    // Refused only when the service ends.
                    drop(served.send(Ok(connection)).await);
                }
                Ok(Err(error)) => debug!(%error, "Handshake failed"),
                Err(_) => debug!("Handshake took too long"),
            }
        });
    }
}

async fn handshake(
    stream: TcpStream,
    acceptor: &TlsAcceptor,
    cluster: &str,
) -> io::Result<(TlsStream<TcpStream>, HostId)> {
    let refused = || io::Error::new(io::ErrorKind::PermissionDenied, "not a host of the cluster");
    stream.set_nodelay(true)?;
    let stream = acceptor.accept(stream).await?;
    let certificates = stream.get_ref().1.peer_certificates();
    let certificate = certificates.and_then(<[_]>::first).ok_or_else(refused)?;
    match identify(certificate) {
        Ok(identity) if identity.cluster == cluster => match identity.role {
            Role::Host(host) => Ok((stream, host)),
            Role::Admin(_) => Err(refused()),
        },
        _ => Err(refused()),
    }
}

struct Service(Shared);

#[api::tonic::async_trait]
impl RouterLease for Service {
    async fn confirm(
        &self,
        request: Request<v1::ConfirmRequest>,
    ) -> Result<Response<v1::ConfirmReply>, Status> {
        let caller = request.extensions().get::<Caller>();
        let Some(Caller(host)) = caller.copied() else {
            return Err(Status::unauthenticated("this call is for hosts"));
        };
        let ask = Ask::try_from(request.into_inner())?;
        let mut keeper = self.0.keeper();
        keeper.check_peer(host)?;
        let confirmed = keeper.answer_other(host, &ask);
        drop(keeper);
        self.0.news.notify_one();
        Ok(Response::new(v1::ConfirmReply {
            confirmed: confirmed.iter().map(Into::into).collect(),
        }))
    }

    async fn hand_over(
        &self,
        request: Request<v1::HandOverRequest>,
    ) -> Result<Response<v1::HandOverReply>, Status> {
        let caller = request.extensions().get::<Caller>();
        let Some(Caller(host)) = caller.copied() else {
            return Err(Status::unauthenticated("this call is for hosts"));
        };
        let (claim, connections) = api::handed_over(request.into_inner())?;
        let mut keeper = self.0.keeper();
        keeper.check_peer(host)?;
        keeper.arrived(claim, connections);
        Ok(Response::new(v1::HandOverReply {}))
    }

    async fn replicate(
        &self,
        request: Request<v1::ReplicateRequest>,
    ) -> Result<Response<v1::ReplicateReply>, Status> {
        let caller = request.extensions().get::<Caller>();
        let Some(Caller(host)) = caller.copied() else {
            return Err(Status::unauthenticated("this call is for hosts"));
        };
        let (claim, batch) = api::replicated(request.into_inner())?;
        let mut keeper = self.0.keeper();
        keeper.check_peer(host)?;
        match keeper.replicated(host, claim, batch) {
            Ok(taken) => Ok(Response::new(v1::ReplicateReply {
                kept: taken.kept,
                refused: taken.refused,
            })),
            Err(refused @ Refused::Unknown) => {
                Err(Status::failed_precondition(refused.to_string()))
            }
            Err(refused) => Err(Status::aborted(refused.to_string())),
        }
    }
}

/// Which host a connection is of.
#[derive(Debug, Clone, Copy)]
struct Caller(HostId);

struct Connection {
    stream: TlsStream<TcpStream>,
    host: HostId,
    _slot: OwnedSemaphorePermit,
}

impl Connected for Connection {
    type ConnectInfo = Caller;
    fn connect_info(&self) -> Caller {
        Caller(self.host)
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
