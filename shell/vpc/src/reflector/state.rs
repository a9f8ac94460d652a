//! What the running server tells of its reflector, on a socket for root alone.

use super::{Runs, Shared};
use crate::failure::{Failure, Outcome};
use crate::settings::ReflectorKind;
use model::Secret;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixListener;
use tokio::time::timeout;
use tracing::warn;

/// Where the server tells of its reflector, unless it has another run directory.
pub(crate) const SOCKET: &str = "/run/vpc/reflector.sock";
/// How long one that asks may take to read, and the server to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// All that is told: what people may see, and what a configuration needs.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Asked {
    /// What people may see.
    pub(crate) state: State,
    /// Underlay addresses of the hosts.
    pub(crate) hosts: BTreeSet<IpAddr>,
    /// AS of the fabric.
    pub(crate) asn: Option<u32>,
    /// What sessions are signed with.
    pub(crate) key: Option<Secret>,
}

/// How a reflector is.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct State {
    /// What reflects.
    pub(crate) kind: ReflectorKind,
    /// Where; none if this server runs none.
    pub(crate) listen: Option<SocketAddr>,
    /// What hosts are told.
    pub(crate) reflectors: Vec<SocketAddr>,
    /// Of FRR.
    pub(crate) version: Option<String>,
    /// What is wrong, why, and what to do.
    pub(crate) problem: Option<String>,
    /// How often it was started again since the server was.
    pub(crate) restarts: u64,
    /// Foreign changes of its configuration, taken back.
    pub(crate) drift: u64,
    /// Its clients.
    pub(crate) peers: Vec<PeerState>,
}

/// A client of the reflector.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct PeerState {
    /// Its address.
    pub(crate) address: IpAddr,
    /// As in the RFC: "established".
    pub(crate) state: String,
    /// Since when, in milliseconds of Unix time.
    pub(crate) since_unix_ms: u64,
    /// Routes held from it.
    pub(crate) routes_received: u64,
    /// Routes (FRR) or UPDATEs (ours) sent to it.
    pub(crate) sent: u64,
    /// What is wrong.
    pub(crate) problem: Option<String>,
}

/// Asks the server on this host.
pub(crate) fn ask(socket: &Path) -> Outcome<Asked> {
    let doing = || format!("asking the server at {}", socket.display());
    let read = || -> io::Result<Asked> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(2 * PATIENCE))?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(serde_json::from_str(&text)?)
    };
    read().map_err(|error| {
        Failure::new(format!("{}: {error}", doing()))
            .hint("run it as root on a host where `vpc server run` runs")
    })
}

/// A socket for root alone, in place of one that an earlier server left.
pub(super) fn listen(path: &Path) -> io::Result<UnixListener> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Tells everyone who connects.
pub(super) async fn answer(listener: UnixListener, shared: Arc<Shared>) {
    loop {
        let mut stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!(%error, "Taking a connection that asks for the reflector failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let told = async {
            let text = serde_json::to_string(&shared.asked().await).unwrap_or_default();
            stream.write_all(text.as_bytes()).await
        };
        // One that went away needs no answer.
        drop(timeout(PATIENCE, told).await);
    }
}

impl Shared {
    async fn asked(&self) -> Asked {
        let mut state = State {
            kind: self.kind,
            listen: self.listen,
            reflectors: self.reflectors.clone(),
            version: None,
            problem: None,
            restarts: 0,
            drift: 0,
            peers: Vec::new(),
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.unwrap_or_default();
        let millis =
            |ago: Duration| u64::try_from(now.saturating_sub(ago).as_millis()).unwrap_or(u64::MAX);
        match &self.runs {
            Runs::Nothing => {}
            Runs::Ours(handle) => {
                let peers = handle.peers().await;
                if peers.is_err() {
                    state.problem = Some("it has ended: start the server again".to_owned());
                }
                let peers = peers.into_iter().flatten().map(|peer| PeerState {
                    address: peer.peer,
                    state: format!("{:?}", peer.state).to_lowercase(),
                    since_unix_ms: millis(peer.since),
                    routes_received: peer.routes as u64,
                    sent: peer.counters.updates_out,
                    problem: peer.advice.map(|advice| advice.problem),
                });
                state.peers = peers.collect();
            }
            Runs::Frr(frr) => {
                let status = frr.status().borrow().clone();
                state.version = status.version.map(|version| version.to_string());
                state.problem = status.problem;
                state.restarts = status.restarts;
                state.drift = status.drift;
                let sessions = match frr.sessions().await {
                    Ok(sessions) => sessions,
                    Err(error) => {
                        state.problem.get_or_insert(error.to_string());
                        frr::Sessions::default()
                    }
                };
                let peers = sessions.peers.into_iter().map(|(address, peer)| PeerState {
                    address,
                    state: peer.state.to_lowercase(),
                    since_unix_ms: millis(peer.since),
                    routes_received: peer.received,
                    sent: peer.sent,
                    problem: (!peer.is_up()).then(|| "no session".to_owned()),
                });
                state.peers = peers.collect();
            }
        }
        Asked {
            state,
            hosts: self.hosts.borrow().clone(),
            asn: self.asn.map(|asn| asn.get()),
            key: self.secret.clone(),
        }
    }
}
