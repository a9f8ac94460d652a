//! The process: opens what it has, and runs until it is told to end.

use crate::attachment::chain;
use crate::control;
use crate::had::Had;
use crate::identity;
use crate::owner::{Event, Owner};
use crate::peers::{Listening, Outgoing, Own, listen};
use crate::place::{self, DiskOptions, PlaceError};
use crate::sole::{SoleError, sole};
use crate::steward::{self, Ask, KeptError, Steward};
use crate::wire::SOCKET_NAME;
use api::pki::Role;
use api::{Credential, CredentialError};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

/// How a storage process is run.
#[derive(Debug, Clone)]
pub struct Options {
    /// Gone after a reboot: sockets: `/run/vpc`.
    pub run_dir: PathBuf,
    /// What it was told, and how often it was started: `/var/lib/vpc/storage`.
    pub state_dir: PathBuf,
    /// The credential that joining made.
    pub credential: PathBuf,
    /// Where other hosts reach this one.
    pub underlay: IpAddr,
    /// The disk; without one the host has no replicas, and volumes of others can be attached to it.
    pub disk: Option<DiskOptions>,
}

/// Why it does not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The credential cannot be used.
    #[error(transparent)]
    Credential(#[from] CredentialError),
    /// The credential is not a host's.
    #[error("{path} is the credential of an administrator; give that of the host")]
    NoHost {
        /// Which.
        path: PathBuf,
    },
    /// The host has a storage process.
    #[error(transparent)]
    Sole(#[from] SoleError),
    /// The disk cannot be used.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// What was told before is not known.
    #[error(transparent)]
    Kept(#[from] KeptError),
    /// A file or socket cannot be had.
    #[error("{what}")]
    Io {
        /// What was being done.
        what: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// Threads beside those of the replicas and the disk: for what is asked of and told to the process.
const WORKERS: usize = 1;
const LISTEN_RETRY: Duration = Duration::from_secs(1);
/// For volumes to be detached when the process ends.
const END_WAIT: Duration = Duration::from_secs(10);
const STARTS_NAME: &str = "starts";

fn io_error(what: impl Into<String>) -> impl FnOnce(io::Error) -> StartError {
    let what = what.into();
    move |source| StartError::Io { what, source }
}

/// Runs a storage process until SIGTERM, SIGINT, or until it is told to end.
pub fn run(options: &Options) -> Result<(), StartError> {
    let identity = Credential::load(&options.credential)?.identity()?;
    let Role::Host(host) = identity.role else {
        let path = options.credential.clone();
        return Err(StartError::NoHost { path });
    };
    for dir in [&options.run_dir, &options.state_dir] {
        fs::create_dir_all(dir).map_err(io_error(format!("making {}", dir.display())))?;
    }
    // Before anything is read that another would write.
    let _sole = sole(&options.run_dir)?;
    let wanted = steward::kept(&options.state_dir)?;
    let own = Own {
        credential: options.credential.clone(),
        cluster: identity.cluster,
        host,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .enable_all()
        .build()
        .map_err(io_error("starting threads"))?;
    let ids = (identity::cluster(&own.cluster), identity::host(host).0);
    let (disk, place) = match &options.disk {
        Some(disk) => {
            let placed = place::open(disk, ids)?;
            (placed.disk, Some((placed.id, placed.path)))
        }
        None => (place::scratch(&options.run_dir, ids)?, None),
    };
    // Two processes never run at once, so starts are numbered one after another.
    let incarnation = next_start(&options.state_dir).map_err(io_error(format!(
        "counting starts in {}",
        options.state_dir.display()
    )))?;
    let outgoing = Outgoing::new(own.clone());
    let noting = format!(
        "noting what replicas there were in {}",
        options.state_dir.display()
    );
    let mut had = Had::load(&options.state_dir, place.as_ref().map(|(id, _)| *id))
        .map_err(io_error(noting.clone()))?;
    let started = Owner::start(
        identity::host(host),
        incarnation,
        disk,
        outgoing.clone(),
        |store| had.note(store.volumes().filter_map(identity::volume_back)),
    );
    let (owner, thread) = started.map_err(io_error(format!("{noting}, and starting a thread")))?;
    info!(
        %host, incarnation, pid = std::process::id(), disk = ?place.as_ref().map(|(id, _)| *id),
        "The storage process starts"
    );
    let sockets = options.run_dir.join("volumes");
    fs::create_dir_all(&sockets).map_err(io_error(format!("making {}", sockets.display())))?;
    let steward = Steward {
        host,
        disk: place,
        owner: owner.clone(),
        outgoing,
        state_dir: options.state_dir.clone(),
        sockets,
        wanted,
        told: false,
        had,
        attachments: BTreeMap::new(),
        troubles: BTreeMap::new(),
        unsettled: false,
        asking: JoinSet::new(),
        asked: BTreeSet::new(),
        refused: BTreeMap::new(),
    };
    let done = runtime.block_on(serve(options, own, owner.clone(), steward));
    // It may have ended by itself.
    drop(owner.tell(Event::Stop));
    if thread.join().is_err() {
        warn!("The thread of the replicas broke down");
    }
    done
}

async fn serve(
    options: &Options,
    own: Own,
    owner: Owner,
    steward: Steward,
) -> Result<(), StartError> {
    let path = options.run_dir.join(SOCKET_NAME);
    let listener =
        control::bind(&path).map_err(io_error(format!("listening on {}", path.display())))?;
    let hearing = owner.spawn(hear(options.underlay, Arc::new(own), owner.clone()));
    let (ask, asked) = mpsc::channel(16);
    let mut stewarding = tokio::spawn(steward.run(asked));
    let (stop, mut stopped) = mpsc::channel(1);
    let answering = tokio::spawn(control::answer(listener, ask.clone(), stop));
    let mut term = signal(SignalKind::terminate()).map_err(io_error("watching for signals"))?;
    let mut interrupt =
        signal(SignalKind::interrupt()).map_err(io_error("watching for signals"))?;
    tokio::select! {
        _ = term.recv() => {}
        _ = interrupt.recv() => {}
        _ = stopped.recv() => {}
        ended = &mut stewarding => warn!(?ended, "The process ends by itself"),
    }
    let (done, ended) = oneshot::channel();
    if ask.send(Ask::End(done)).await.is_ok() && timeout(END_WAIT, ended).await.is_err() {
        warn!("Not all volumes were detached in time");
    }
    hearing.abort();
    answering.abort();
    if let Err(error) = fs::remove_file(&path) {
        warn!(path = %path.display(), %error, "The socket stays");
    }
    info!("The storage process ends");
    Ok(())
}

/// The underlay's address may be there later than this process.
async fn hear(underlay: IpAddr, own: Arc<Own>, owner: Owner) {
    let mut told = String::new();
    loop {
        match Listening::bind(underlay).await {
            Ok(listening) => return listen(listening, own, owner).await,
            Err(error) => {
                let why = chain(&error);
                if why != told {
                    warn!(%underlay, why, "Other hosts cannot reach this one's storage");
                    told = why;
                }
                sleep(LISTEN_RETRY).await;
            }
        }
    }
}

/// A number that is larger at each start. Should the file be lost, the time is larger than what it had.
fn next_start(state_dir: &Path) -> io::Result<u64> {
    let path = state_dir.join(STARTS_NAME);
    let before = match fs::read_to_string(&path) {
        Ok(text) => text.trim().parse().unwrap_or(0),
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(error) => return Err(error),
    };
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let micros = since.map_or(0, |since| since.as_micros() as u64);
    // A process whose disk failed has gone on with the number after its own.
    let next = micros.max(before + 2);
    api::write_private(&path, format!("{next}\n").as_bytes())?;
    Ok(next)
}
