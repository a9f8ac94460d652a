//! A running management server.

use crate::cluster::ClusterContext;
use crate::files::{DataDir, DataDirError};
use crate::lease::{self, Votes};
use crate::limit::RateLimit;
use crate::listener::{self, CertificateError, ServerCertificate};
use crate::owner::{Event, Handle, Owner};
use crate::{enrollment, host_sync, management, owner};
use api::pki::Lifetimes;
use api::tls;
use api::tonic::transport::Server as Grpc;
use api::v1;
use api::v1::enrollment_server::EnrollmentServer;
use api::v1::host_sync_server::HostSyncServer;
use api::v1::management_server::ManagementServer;
use api::v1::router_lease_server::RouterLeaseServer;
use fleet_plan::REPLACE_AFTER_MILLIS;
use model::{Reflector, Secret};
use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use store::{BadLocation, Location, Store, StoreError};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tracing::{debug, info, warn};

/// The largest request: a report of a thousand conditions is below.
const LARGEST_REQUEST_BYTES: usize = 4 << 20;
const REQUESTS_PER_CONNECTION: usize = 256;
const STREAMS_PER_CONNECTION: u32 = 1024;
/// A request that is not answered (streams: begun) by then is given up.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// With a timeout of as much again, a dead agent's stream is gone before the host counts as down.
const KEEPALIVE_EVERY: Duration = Duration::from_secs(4);
/// How often the store's log is folded.
const FOLD_EVERY: Duration = Duration::from_secs(1);
/// It is folded this long after a change, as its disk is then wanted by nobody; a commit beside it takes 20 ms more.
const QUIET: Duration = Duration::from_millis(25);
/// With changes all the time there is no such moment, and it is folded after this.
const QUIET_WITHIN: Duration = Duration::from_secs(3);
/// How long open streams keep a stopping server.
const GRACE: Duration = Duration::from_secs(3);

/// How a management server runs.
#[derive(Debug, Clone)]
pub struct RunOptions {
    /// What `init` made.
    pub data_dir: PathBuf,
    /// Instead of the database that `init` was told.
    pub database: Option<String>,
    /// Where to listen.
    pub listen: SocketAddr,
    /// `host:port` of every server of the cluster, as hosts reach them; empty: hosts keep to the
    /// servers that they joined at.
    pub advertise: Vec<String>,
    /// DNS names and addresses for the certificate, for clients that are not ours.
    pub names: Vec<String>,
    /// Address and port of each route reflector.
    pub reflectors: Vec<SocketAddr>,
    /// Sign BGP sessions with the cluster's secret (TCP-MD5).
    pub sign_bgp: bool,
    /// How long certificates live.
    pub lifetimes: Lifetimes,
    /// How long a replica of a volume may be away until another takes its place.
    pub replace_after: Duration,
}

/// A management server that did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The directory.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// Where the database is.
    #[error(transparent)]
    Location(#[from] BadLocation),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The store and the keys are of two clusters.
    #[error(
        "the store holds cluster {store} and the data directory the keys of cluster {keys}: give the right --database, or restore both from one backup"
    )]
    TwoClusters {
        /// In the store.
        store: String,
        /// In the directory.
        keys: String,
    },
    /// The certificate.
    #[error("making the server's certificate")]
    Certificate(#[from] CertificateError),
    /// TLS.
    #[error(transparent)]
    Tls(#[from] tls::TlsError),
    /// The address.
    #[error(
        "listening on {address}: is another server running, or is the address not of this machine?"
    )]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Reflection.
    #[error("preparing reflection")]
    Reflection(#[source] tonic_reflection::server::Error),
}

/// A server that ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The listener.
    #[error("serving the API")]
    Serve(#[source] api::tonic::transport::Error),
    /// A bug: the log says where.
    #[error("the {0} ended: this is a bug, the log says where")]
    Ended(&'static str),
}

/// A running server.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    cluster: String,
    bgp_secret: Option<Secret>,
    peers: watch::Receiver<BTreeSet<IpAddr>>,
    stop: watch::Sender<bool>,
    running: JoinHandle<Result<(), RunError>>,
}

impl RunOptions {
    /// A server on this address with everything else as usual.
    pub fn new(data_dir: impl Into<PathBuf>, listen: SocketAddr) -> Self {
        Self {
            data_dir: data_dir.into(),
            database: None,
            listen,
            advertise: Vec::new(),
            names: Vec::new(),
            reflectors: Vec::new(),
            sign_bgp: true,
            lifetimes: Lifetimes::default(),
            replace_after: Duration::from_millis(REPLACE_AFTER_MILLIS),
        }
    }
}

/// Runs a server until `stop`.
pub async fn run(options: RunOptions, stop: impl Future<Output = ()>) -> Result<(), ServeError> {
    let mut server = Server::start(options).await?;
    tokio::select! {
        () = stop => server.stop().await?,
        ended = server.ended() => ended?,
    }
    Ok(())
}

/// A server that did not start, or ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// It did not start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// It ended.
    #[error(transparent)]
    Run(#[from] RunError),
}

impl Server {
    /// Starts a server; it serves when this returns.
    pub async fn start(options: RunOptions) -> Result<Self, StartError> {
        let dir = DataDir::open(&options.data_dir)?;
        let file = dir.cluster()?;
        let authority = Arc::new(dir.authority(&file.cluster)?);
        let secret = dir.bgp_secret()?;
        let bgp_secret = options.sign_bgp.then_some(secret);

        let location: Location = match options.database.as_ref().or(file.database.as_ref()) {
            None => Location::Sqlite(dir.database_path()),
            Some(database) => database.parse()?,
        };
        let shared = matches!(location, Location::Postgres(_));
        let store = Arc::new(Store::open(&location).await?);
        let reflectors = options
            .reflectors
            .iter()
            .map(|reflector| Reflector {
                address: reflector.ip(),
                port: reflector.port(),
                password: bgp_secret.clone(),
            })
            .collect();
        let state = owner::load(&store, reflectors).await?;
        let cluster = state.intent.cluster().clone();
        if cluster.id != file.cluster {
            return Err(StartError::TwoClusters {
                store: cluster.id,
                keys: file.cluster,
            });
        }

        let tcp = listener::bind(options.listen)
            .await
            .map_err(|source| StartError::Listen {
                address: options.listen,
                source,
            })?;
        let address = tcp.local_addr().map_err(|source| StartError::Listen {
            address: options.listen,
            source,
        })?;
        let certificate = Arc::new(ServerCertificate::issue(
            &authority,
            &options.names,
            options.lifetimes.server,
        )?);
        let tls = tls::server(authority.certificate(), certificate.clone())?;
        let acceptor = TlsAcceptor::from(Arc::new(tls));

        let context = Arc::new(ClusterContext {
            id: cluster.id.clone(),
            authority: Arc::clone(&authority),
            store: Arc::clone(&store),
            store_kind: if shared { "postgres" } else { "sqlite" },
            lifetimes: options.lifetimes,
            settings: v1::ClusterSettings {
                cluster_id: cluster.id.clone(),
                asn: cluster.asn.get(),
                underlay_mtu: cluster.underlay_mtu.get().into(),
                servers: options.advertise.clone(),
            },
        });
        let votes = Votes::new();
        let (owner, handle, peers) = Owner::new(
            state,
            Arc::clone(&store),
            shared,
            votes.clone(),
            options.replace_after,
        );
        let services = Services {
            handle,
            votes,
            context,
            acceptor,
            tcp,
        };
        let (stop, stopped) = watch::channel(false);
        let serve = services.serve(stopped)?;
        let renewal = tokio::spawn(certificate.keep_fresh(
            authority,
            options.names,
            options.lifetimes.server,
        ));
        let folding = tokio::spawn(fold_log(Arc::clone(&store)));
        info!(%address, cluster = %cluster.id, store = %location, "Serving");
        let running = tokio::spawn(async move {
            let ended = supervise(owner, serve).await;
            renewal.abort();
            folding.abort();
            store.close().await;
            ended
        });
        Ok(Self {
            address,
            cluster: cluster.id,
            bgp_secret,
            peers,
            stop,
            running,
        })
    }

    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// The cluster's id.
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// What BGP sessions are signed with, if they are: for a route reflector in this process.
    pub const fn bgp_secret(&self) -> Option<&Secret> {
        self.bgp_secret.as_ref()
    }

    /// Underlay addresses of all hosts, as they join and go: the peers that a route reflector in
    /// this process accepts.
    pub fn peers(&self) -> watch::Receiver<BTreeSet<IpAddr>> {
        self.peers.clone()
    }

    /// Resolves when it ended by itself, which it should not.
    pub async fn ended(&mut self) -> Result<(), RunError> {
        (&mut self.running)
            .await
            .map_err(|_| RunError::Ended("server"))?
    }

    /// Answers what was asked, then ends. Streams end after a moment's grace.
    pub async fn stop(mut self) -> Result<(), RunError> {
        self.stop.send_replace(true);
        self.ended().await
    }
}

/// What listens and answers.
struct Services {
    handle: Handle,
    votes: Votes,
    context: Arc<ClusterContext>,
    acceptor: TlsAcceptor,
    tcp: tokio::net::TcpListener,
}

/// The API being served, and how to end the owner after it.
struct Serving {
    api: JoinHandle<Result<(), api::tonic::transport::Error>>,
    stopped: watch::Receiver<bool>,
    handle: Handle,
}

impl Services {
    fn serve(self, stopped: watch::Receiver<bool>) -> Result<Serving, StartError> {
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(api::FILE_DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .build_v1()
            .map_err(StartError::Reflection)?;
        let (reporter, health) = tonic_health::server::health_reporter();
        let handle = self.handle.clone();
        let management = ManagementServer::new(management::Service {
            owner: self.handle.clone(),
            cluster: Arc::clone(&self.context),
        })
        .max_decoding_message_size(LARGEST_REQUEST_BYTES);
        let enrollment = EnrollmentServer::new(enrollment::Service {
            owner: self.handle.clone(),
            cluster: Arc::clone(&self.context),
            limit: RateLimit::default(),
        })
        .max_decoding_message_size(64 << 10);
        let router_lease = RouterLeaseServer::new(lease::Service {
            votes: self.votes,
            cluster: Arc::clone(&self.context),
        })
        .max_decoding_message_size(1 << 20);
        let host_sync = HostSyncServer::new(host_sync::Service {
            owner: self.handle,
            cluster: self.context,
        })
        .max_decoding_message_size(LARGEST_REQUEST_BYTES);

        let (served, connections) = mpsc::channel(listener::BACKLOG);
        let (acceptor, tcp) = (self.acceptor, self.tcp);
        let mut until = stopped.clone();
        let api = tokio::spawn(async move {
            let accepting = tokio::spawn(listener::accept(tcp, acceptor, served));
            // All is loaded before anybody can ask.
            reporter
                .set_serving::<ManagementServer<management::Service>>()
                .await;
            let router = Grpc::builder()
                .timeout(REQUEST_TIMEOUT)
                .concurrency_limit_per_connection(REQUESTS_PER_CONNECTION)
                .max_concurrent_streams(STREAMS_PER_CONNECTION)
                .http2_keepalive_interval(Some(KEEPALIVE_EVERY))
                .http2_keepalive_timeout(Some(KEEPALIVE_EVERY))
                .http2_max_header_list_size(16 << 10)
                .add_service(management)
                .add_service(enrollment)
                .add_service(host_sync)
                .add_service(router_lease)
                .add_service(health)
                .add_service(reflection);
            let stop = async move {
                // The sender is gone only when the server is.
                drop(until.wait_for(|stop| *stop).await);
            };
            let outcome = router
                .serve_with_incoming_shutdown(ReceiverStream::new(connections), stop)
                .await;
            accepting.abort();
            outcome
        });
        Ok(Serving {
            api,
            stopped,
            handle,
        })
    }
}

/// Has the store fold its log, so that no change waits for that.
async fn fold_log(store: Arc<Store>) {
    let mut tick = interval(FOLD_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        store.quiet_moment(QUIET, QUIET_WITHIN).await;
        if let Err(error) = store.fold_log().await {
            debug!(
                error = owner::chain(&error),
                "The store's log stays as long as it is, trying again"
            );
        }
    }
}

/// Runs owner and API; if one ends, so does the other.
async fn supervise(owner: Owner, mut serving: Serving) -> Result<(), RunError> {
    let mut owner = tokio::spawn(owner.run());
    let mut stopped = serving.stopped;
    let asked = async move {
        // Dropped at once: it holds a lock.
        drop(stopped.wait_for(|stop| *stop).await);
    };
    let outcome = tokio::select! {
        ended = &mut owner => {
            serving.api.abort();
            return match ended {
                Ok(()) => Err(RunError::Ended("state's owner")),
                Err(error) => {
                    warn!(%error, "The state's owner panicked");
                    Err(RunError::Ended("state's owner"))
                }
            };
        }
        outcome = &mut serving.api => outcome,
        () = asked => {
            // Watches and host streams would go on for ever.
            match tokio::time::timeout(GRACE, &mut serving.api).await {
                Ok(outcome) => outcome,
                Err(_) => {
                    serving.api.abort();
                    Ok(Ok(()))
                }
            }
        }
    };
    drop(serving.handle.send(Event::Stop).await);
    if owner.await.is_err() {
        return Err(RunError::Ended("state's owner"));
    }
    match outcome {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(RunError::Serve(error)),
        Err(_) => Err(RunError::Ended("API")),
    }
}
