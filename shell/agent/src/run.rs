//! Starting the parts of an agent, and ending them.

use crate::announce::Announcer;
use crate::bgp::{self, Bgp};
use crate::clock::Clock;
use crate::dhcp::Dhcp;
use crate::disk::{Disk, StateError};
use crate::events::Event;
use crate::figures::{self, Figures};
use crate::kept_config;
use crate::kernel::{KernelThread, chain};
use crate::lease::{Leases, Orders};
use crate::local_api::{self, Identity, Knowing};
use crate::meter::Meter;
use crate::names;
use crate::outside::Outside;
use crate::sbs_api::SbsApi;
use crate::server::ServerStream;
use crate::standby::Standbys;
use crate::storage::{self, Storage};
use crate::turn::{self, Agent, Pace, Start};
use ::datapath::Limits;
use api::{Credential, CredentialError};
use frr_driver::Installed;
use host_plan::HostMachine;
use linux::BridgeNetfilter;
use model::{Capability, Generation, Mtu, Name, Role, Transport, Underlay};
use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{error, info, warn};

/// How an agent is run.
#[derive(Debug, Clone)]
pub struct Options {
    /// The host's name, as it joined or will.
    pub name: Name,
    /// The VTEP's address, on an interface of this host.
    pub underlay: IpAddr,
    /// What carries frames to other hosts: `kernel`.
    pub transport: Transport,
    /// What the datapath lets through, where the transport is `tap`.
    pub limits: Limits,
    /// What the kernel can do, and is not to be used.
    pub without: BTreeSet<Capability>,
    /// What the host is for, as it joined; shown, nothing more.
    pub roles: BTreeSet<Role>,
    /// The credential that joining made; without one the host works by its local API alone.
    pub credential: Option<PathBuf>,
    /// Where the configuration and local stacks are kept: `/var/lib/vpc/agent`.
    pub state_dir: PathBuf,
    /// Gone after a reboot, as the kernel's objects are: `/run/vpc`.
    pub run_dir: PathBuf,
    /// The local API: `/run/vpc/agent.sock`.
    pub socket: PathBuf,
    /// Between full observations of the kernel; each router is looked into once in it.
    pub resync_every: Duration,
    /// A local stack without a NIC is removed after this long.
    pub unused_stack_after: Duration,
    /// Leaves it as it is that bridged frames meet the host's IP hooks, even if nobody but the agent
    /// has anything there.
    pub keep_bridge_netfilter: bool,
    /// The most MACs of other hosts in an EVPN instance; none: any number.
    pub mac_limit: Option<u32>,
    /// The most flows that a router here tracks.
    pub router_flows: u32,
    /// Where metrics are given out over HTTP to whoever asks; see [`metrics::may_listen`].
    pub metrics: Option<SocketAddr>,
    /// The disk for replicas of volumes; without one volumes of other hosts can be attached here.
    pub storage: Option<sbs::DiskOptions>,
    /// Whom routers ask for names outside of their VPC; none is the host's own resolvers.
    pub resolvers: Option<Vec<SocketAddr>>,
}

impl Options {
    /// The usual places and pace.
    pub fn new(name: Name, underlay: IpAddr) -> Self {
        Self {
            name,
            underlay,
            transport: Transport::default(),
            limits: Limits::default(),
            without: BTreeSet::new(),
            roles: BTreeSet::new(),
            credential: None,
            state_dir: PathBuf::from("/var/lib/vpc/agent"),
            run_dir: PathBuf::from("/run/vpc"),
            socket: PathBuf::from("/run/vpc/agent.sock"),
            resync_every: Duration::from_secs(30),
            unused_stack_after: Duration::from_secs(600),
            keep_bridge_netfilter: false,
            mac_limit: None,
            router_flows: host_plan::FLOWS_PER_ROUTER,
            metrics: None,
            storage: None,
            resolvers: None,
        }
    }
}

/// Why an agent does not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The kernel could not be reached.
    #[error("opening the kernel's interfaces (is this root?)")]
    Kernel(#[source] linux::Error),
    /// The underlay's address is not on this host.
    #[error(
        "underlay address {0} is on no interface of this host: add it (ip address add), or give \
         the right one"
    )]
    NoUnderlay(IpAddr),
    /// The underlay's MTU leaves no room.
    #[error("interface {0} of the underlay has MTU {1}, which no tunnel fits in: raise it")]
    UnderlayMtu(model::IfName, u32),
    /// State that cannot be read.
    #[error(transparent)]
    State(#[from] StateError),
    /// The credential cannot be used.
    #[error(transparent)]
    Credential(#[from] CredentialError),
    /// The local API's socket.
    #[error("listening on {path}")]
    Socket {
        /// Where.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Signals could not be watched.
    #[error("watching for signals")]
    Signals(#[source] io::Error),
}

/// Runs an agent until SIGTERM or SIGINT (routes stay at the peers for the restart time) or until
/// the local API stops it. In every case the kernel keeps what it has.
pub async fn run(options: Options) -> Result<(), AgentError> {
    let disk = Disk::open(&options.state_dir)?;
    let (managed, local, rds) = turn::kept(&disk)?;
    let sequences = turn::kept_sequences(&disk)?;
    let credential = options
        .credential
        .as_deref()
        .map(Credential::load)
        .transpose()?;
    let found = managed
        .as_ref()
        .map_or(options.underlay, |config| config.underlay.address);
    let underlay = underlay(found)?;
    let listener = local_api::bind(&options.socket)
        .await
        .map_err(|source| AgentError::Socket {
            path: options.socket.clone(),
            source,
        })?;

    let (events, queue) = mpsc::channel(64);
    // First of all: a lease that runs out while the rest starts is a router that falls silent.
    let orders = managed
        .as_ref()
        .map(|config| Orders::of(config, &local))
        .unwrap_or_default();
    let standbys = Standbys::default();
    let leases = Leases::start(
        orders,
        disk.clone(),
        options.credential.clone().unwrap_or_default(),
        events.clone(),
        options.router_flows,
        standbys.clone(),
    );
    let (kernel, capabilities) = KernelThread::start(
        &options.run_dir,
        options.transport,
        &options.without,
        options.resync_every,
        events.clone(),
    )
    .map_err(AgentError::Kernel)?;
    spare_bridged_frames(options.keep_bridge_netfilter);
    let may_act = managed.is_some() || credential.is_none();
    let mut bgp = Bgp::new(
        bgp::forwarding_is_preserved(&options.run_dir),
        &options.run_dir,
        options.mac_limit,
    );
    if let Some(config) = &managed {
        let kept = Arc::new(config.clone());
        bgp.configure(config.underlay.address, &kept).await;
    } else if credential.is_none() {
        bgp.standalone();
    }
    let generation = managed
        .as_ref()
        .map_or(Generation(0), |config| config.generation);
    info!(
        name = %options.name, underlay = %underlay.address, mtu = %underlay.mtu,
        transport = %options.transport, %generation,
        enrolled = credential.is_some(), ?capabilities, "Agent starts"
    );

    let datapath = (options.transport == Transport::Tap).then(|| options.run_dir.clone());
    let evpn = bgp.api().beside(datapath.clone());
    let announcer = Announcer::start(capabilities.clone(), options.transport);
    let reconcile = figures::reconcile_times();
    let outside = Outside::load(&disk)?;
    let meter = Meter::new(options.router_flows, outside.clone(), standbys.clone());
    let mut machine = HostMachine::new(underlay, managed, local);
    machine.set_transport(options.transport);
    machine.set_limits(options.limits);
    // Before the first look at the kernel, which has them.
    machine.set_outer(outside.addresses());
    let (agent, view) = Agent::new(Start {
        machine,
        may_act,
        disk: disk.clone(),
        keeping: kept_config::start(disk.clone(), events.clone()),
        kernel,
        leases,
        bgp,
        rds,
        sequences,
        reconcile: reconcile.clone(),
        announcer: announcer.clone(),
        meter: meter.clone(),
        outside: outside.clone(),
        pace: Pace {
            resync_every: options.resync_every,
            unused_stack_after: options.unused_stack_after,
        },
    });
    let dhcp = Dhcp::start(view.clone(), &disk)?;
    let resolvers = match &options.resolvers {
        Some(given) => names::Resolvers::new(given),
        None => names::of_host(),
    };
    let names = names::start(view.clone(), resolvers);
    meter.start(view.clone(), events.clone());
    outside.start(view.clone(), &disk, events.clone());
    let storage = options.credential.as_ref().map(|credential| {
        storage::start(Storage {
            run_dir: options.run_dir.clone(),
            credential: credential.clone(),
            underlay: underlay.address,
            disk: options.storage.clone(),
            view: view.clone(),
            process: None,
        })
    });
    if let Some(credential) = credential {
        let stream = ServerStream {
            credential_file: options.credential.clone().unwrap_or_default(),
            credential,
            capabilities: capabilities.clone(),
            frr: Installed::default(),
            state_dir: options.state_dir.clone(),
            view: view.clone(),
            events: events.clone(),
            clock: Clock::default(),
            meter: meter.clone(),
            renewed: None,
            storage: storage.clone().unwrap_or_else(|| watch::channel(None).1),
        };
        tokio::spawn(stream.run());
    }
    let metrics = options.metrics.map(|address| {
        let figures = Figures {
            view: view.clone(),
            speaker: evpn.clone(),
            dhcp: dhcp.clone(),
            names: names.clone(),
            reconcile,
            announcer,
            meter: meter.clone(),
            datapath,
            storage: storage.clone(),
        };
        tokio::spawn(metrics::serve(address, figures))
    });
    let (end_api, api_ends) = oneshot::channel::<()>();
    let identity = Identity {
        name: options.name.to_string(),
        roles: options.roles.clone(),
        capabilities,
    };
    let api = tokio::spawn(local_api::serve(
        listener,
        view,
        events.clone(),
        Knowing {
            evpn,
            dhcp: dhcp.clone(),
            meter: meter.clone(),
            names,
            standbys,
            storage: SbsApi::new(storage),
        },
        identity,
        async { drop(api_ends.await) },
    ));
    stop_on_signal(events)?;

    let done = agent.run(queue).await;
    if let Some(done) = done {
        // Whoever asked may have gone.
        let _asker = done.send(());
    }
    drop(end_api);
    if let Some(metrics) = metrics {
        metrics.abort();
        // Its port is free once it has ended, not when it was told to.
        drop(metrics.await);
    }
    // The answer to `Stop` is still on its way through the server; streams that never end are cut.
    if let Ok(Ok(Err(error))) = tokio::time::timeout(Duration::from_secs(1), api).await {
        error!(error = chain(&error), "The local API ended badly");
    }
    dhcp.keep_now(&disk);
    remove_socket(&options.socket);
    Ok(())
}

fn underlay(address: IpAddr) -> Result<Underlay, AgentError> {
    let interface = linux::underlay_interface(address)
        .map_err(AgentError::Kernel)?
        .ok_or(AgentError::NoUnderlay(address))?;
    let mtu = Mtu::new(interface.mtu.min(65_535))
        .map_err(|_| AgentError::UnderlayMtu(interface.name, interface.mtu))?;
    Ok(Underlay { address, mtu })
}

/// Tenants' frames have no business in the host's IP hooks (docs/decisions/0012).
fn spare_bridged_frames(keep: bool) {
    let done = match linux::bridge_netfilter() {
        Ok(BridgeNetfilter::Idle) if !keep => linux::switch_off_bridge_netfilter().map(|()| {
            info!("Switched bridge-nf-call-* off: nobody but the agent has rules there");
        }),
        Ok(BridgeNetfilter::Used(tables)) => {
            warn!(
                ?tables,
                "Tenants' frames meet rules of others on this host: see `vpc doctor`"
            );
            Ok(())
        }
        Ok(_) => Ok(()),
        Err(error) => Err(error),
    };
    if let Err(error) = done {
        warn!(error = chain(&error), "bridge-nf-call-* stays as it is");
    }
}

fn stop_on_signal(events: mpsc::Sender<Event>) -> Result<(), AgentError> {
    let mut term = signal(SignalKind::terminate()).map_err(AgentError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(AgentError::Signals)?;
    tokio::spawn(async move {
        tokio::select! { _ = term.recv() => {}, _ = interrupt.recv() => {} }
        // If the loop is gone, it has stopped already.
        drop(
            events
                .send(Event::Stop {
                    withdraw: false,
                    done: None,
                })
                .await,
        );
    });
    Ok(())
}

fn remove_socket(socket: &Path) {
    if let Err(error) = std::fs::remove_file(socket)
        && error.kind() != io::ErrorKind::NotFound
    {
        error!(%error, socket = %socket.display(), "Removing the socket failed");
    }
}
