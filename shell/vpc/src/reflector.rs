//! The route reflector of a management host: ours, FRR, or one that somebody else runs.
//!
//! Its clients are the hosts of the cluster as they come and go. What it is like is told to whoever
//! opens its socket, as one JSON value.

mod evpn;
mod gobgp;
mod state;

pub(crate) use self::evpn::SOCKET as EVPN_SOCKET;
pub(crate) use gobgp::gobgp;
pub(crate) use state::{Asked, PeerState, SOCKET, ask};

use crate::failure::{Doing, Failure, Outcome};
use crate::settings::{ReflectorKind, ServerSettings};
use ::evpn::{
    Announces, Config, MaxRoutes, PeerConfig, Policy, Role, StopKind, Timing, router_id_of,
};
use controller::Server;
use frr_driver::Reflector as Frr;
use metrics::{Page, Source};
use model::{Asn, Secret};
use speaker::{Peer, SpeakerConfig, SpeakerHandle};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::{info, warn};

/// Where FRR lives when it reflects, in the run directory.
const FRR_DIR: &str = "reflector";
/// The socket that tells of the reflector, in the run directory.
const SOCKET_FILE: &str = "reflector.sock";
/// A host of the cluster. The limit is for one that has gone wild, far beyond what a host can have in
/// NICs: it keeps the reflector and all others from drowning in its routes. And no host speaks for
/// another.
fn client(host: IpAddr) -> PeerConfig {
    PeerConfig {
        max_routes: Some(MaxRoutes::new(200_000)),
        announces: Announces::Own {
            router_id: router_id_of(host),
        },
        ..PeerConfig::CLIENT
    }
}
/// For how long hosts forward without any reflector, beyond the restart time: a day is long enough
/// for people to come and mend them.
const LONG_LIVED: Duration = Duration::from_secs(24 * 3600);

/// A running reflector, and the socket that tells of it.
#[derive(Debug)]
pub(crate) struct Reflector {
    shared: Arc<Shared>,
    tasks: Vec<JoinHandle<()>>,
}

/// What is asked about.
#[derive(Debug)]
struct Shared {
    kind: ReflectorKind,
    listen: Option<SocketAddr>,
    /// As hosts are told.
    reflectors: Vec<SocketAddr>,
    asn: Option<Asn>,
    secret: Option<Secret>,
    hosts: watch::Receiver<BTreeSet<IpAddr>>,
    runs: Runs,
}

#[derive(Debug)]
enum Runs {
    Nothing,
    Ours(SpeakerHandle),
    Frr(Frr),
}

/// Where hosts find reflectors, by these settings, or what is wrong with them.
pub(crate) fn addresses(settings: &ServerSettings) -> Outcome<Vec<SocketAddr>> {
    let bad = |reason: &str, hint: &str| {
        Err(Failure::new(format!("settings of the server: {reason}")).hint(hint))
    };
    match (settings.reflector_kind, settings.reflector) {
        (ReflectorKind::External, _) if settings.reflectors.is_empty() => bad(
            "the reflector is external, and reflectors is empty",
            "give reflectors the addresses of all route reflectors",
        ),
        (ReflectorKind::Frr, None) => bad(
            "FRR is to reflect, and reflector is not set",
            "give reflector the address where it is to listen",
        ),
        (ReflectorKind::Frr, Some(_)) if !frr_driver::installed() => bad(
            "FRR is to reflect, and it is not installed",
            "apt install frr (its own service may stay off), or --reflector builtin",
        ),
        (ReflectorKind::Builtin | ReflectorKind::Frr, Some(_)) if settings.asn.is_none() => bad(
            "reflector is set, but asn is not",
            "give asn the number that `vpc server init` was told; 65000 if it was told none",
        ),
        (ReflectorKind::Builtin | ReflectorKind::Frr, own) if settings.reflectors.is_empty() => {
            Ok(own.into_iter().collect())
        }
        _ => Ok(settings.reflectors.clone()),
    }
}

impl Reflector {
    /// Starts what the settings say, and tells of it.
    pub(crate) async fn start(server: &Server, settings: &ServerSettings) -> Outcome<Self> {
        let hosts = server.peers();
        let secret = server.bgp_secret().cloned();
        let frr_dir = &settings.run_dir.join(FRR_DIR);
        if settings.reflector_kind != ReflectorKind::Frr {
            // A server that was killed leaves FRR running, for the next one.
            Frr::end(frr_dir);
        }
        let runs = match (settings.reflector_kind, settings.reflector, settings.asn) {
            (ReflectorKind::Builtin, Some(listen), Some(asn)) => {
                Runs::Ours(ours(listen, asn).await?)
            }
            (ReflectorKind::Frr, Some(listen), Some(asn)) => {
                let local = listen.ip();
                let mut wanted = frr::Wanted::reflector(reflector_id(local), local, asn);
                wanted.set_clients(&hosts.borrow(), secret.as_ref());
                info!(%listen, "Reflecting with FRR");
                Runs::Frr(Frr::start(frr_dir, listen, wanted))
            }
            _ => Runs::Nothing,
        };
        let shared = Arc::new(Shared {
            kind: settings.reflector_kind,
            listen: settings
                .reflector
                .filter(|_| !matches!(runs, Runs::Nothing)),
            reflectors: addresses(settings)?,
            asn: settings.asn,
            secret,
            hosts: hosts.clone(),
            runs,
        });
        let mut tasks = vec![tokio::spawn(follow(Arc::clone(&shared), hosts))];
        let socket = settings.run_dir.join(SOCKET_FILE);
        match state::listen(&socket) {
            Ok(listener) => tasks.push(tokio::spawn(state::answer(listener, Arc::clone(&shared)))),
            // It is for looking only.
            Err(error) => {
                warn!(%error, "No socket at {}: `vpc server reflector` will not work", socket.display())
            }
        }
        if let Runs::Ours(handle) = &shared.runs {
            let socket = settings.run_dir.join(evpn::SOCKET_FILE);
            match state::listen(&socket) {
                Ok(listener) => {
                    let told = evpn::tell(listener, handle.clone(), Arc::clone(&shared));
                    tasks.push(tokio::spawn(told));
                }
                Err(error) => {
                    warn!(%error, "No socket at {}: `vpc evpn --reflector` will not work", socket.display())
                }
            }
        }
        Ok(Self { shared, tasks })
    }

    /// Gives out metrics at an address from now on.
    pub(crate) fn give_out_metrics(&mut self, address: SocketAddr) {
        let figures = Figures(Arc::downgrade(&self.shared));
        self.tasks
            .push(tokio::spawn(metrics::serve(address, figures)));
    }

    /// Ends it. Hosts keep their routes for the restart time.
    pub(crate) async fn stop(self) {
        for task in self.tasks {
            task.abort();
            // Aborted: it holds its share until then.
            drop(task.await);
        }
        match Arc::try_unwrap(self.shared).map(|shared| shared.runs) {
            Ok(Runs::Ours(handle)) => {
                if handle.stop(StopKind::Restart).await.is_err() {
                    info!("The route reflector was gone already");
                }
            }
            Ok(Runs::Frr(frr)) => frr.stop().await,
            Ok(Runs::Nothing) => {}
            Err(_) => warn!("The route reflector is in use still; it ends with the process"),
        }
    }
}

/// Where the server's pages of metrics come from. It holds no share, which would be in the way of
/// the reflector's end.
struct Figures(Weak<Shared>);

impl Source for Figures {
    async fn page(&self) -> Page {
        let mut page = Page::default();
        page.build_info("server", env!("CARGO_PKG_VERSION"));
        let Some(shared) = self.0.upgrade() else {
            return page;
        };
        match &shared.runs {
            Runs::Nothing => {}
            Runs::Ours(handle) => {
                let handle = handle.clone();
                drop(shared);
                metrics::of_speaker(&mut page, &handle).await;
            }
            Runs::Frr(frr) => {
                let found = frr.sessions().await.unwrap_or_default();
                let session = |(peer, session): (IpAddr, frr::Session)| metrics::Session {
                    peer,
                    state: session.state.to_lowercase(),
                    routes: session.received,
                    stale: None,
                };
                let sessions: Vec<_> = found.peers.into_iter().map(session).collect();
                metrics::sessions(&mut page, &sessions);
            }
        }
        page
    }
}

/// Starts our own.
async fn ours(listen: SocketAddr, asn: Asn) -> Outcome<SpeakerHandle> {
    let id = reflector_id(listen.ip());
    let config = SpeakerConfig {
        bgp: Config {
            router_id: id,
            asn,
            role: Role::Reflector,
            cluster_id: None,
            // It forwards nothing itself, so its restart never stops forwarding.
            forwarding_preserved: true,
            timing: Timing {
                long_lived: LONG_LIVED,
                ..Timing::default()
            },
            policy: Policy::default(),
            seed: rand::random(),
        },
        local_address: Some(listen.ip()),
        listen: vec![listen],
    };
    let handle = SpeakerHandle::start(config)
        .await
        .doing(|| format!("starting the route reflector at {listen}"))?;
    info!(%listen, router_id = %id, "Reflecting");
    Ok(handle)
}

/// Keeps the reflector's clients what the cluster's hosts are.
async fn follow(shared: Arc<Shared>, mut hosts: watch::Receiver<BTreeSet<IpAddr>>) {
    loop {
        let now = hosts.borrow_and_update().clone();
        match &shared.runs {
            Runs::Nothing => return,
            Runs::Frr(frr) => frr.set(|wanted| wanted.set_clients(&now, shared.secret.as_ref())),
            Runs::Ours(handle) => {
                let peer = |host: &IpAddr| {
                    let mut peer = Peer::new(client(*host));
                    peer.password.clone_from(&shared.secret);
                    (*host, peer)
                };
                let peers: BTreeMap<IpAddr, Peer> = now.iter().map(peer).collect();
                if handle.set_peers(peers).await.is_err() {
                    warn!("The route reflector has ended");
                    return;
                }
            }
        }
        if hosts.changed().await.is_err() {
            return;
        }
    }
}

/// The BGP identifier of a reflector: of class E, which no host has for an address, so that it
/// differs from that of a host's own client at the same address (RFC 6286 wants them unique).
pub(crate) fn reflector_id(address: IpAddr) -> Ipv4Addr {
    let low = match address {
        IpAddr::V4(v4) => v4.to_bits(),
        IpAddr::V6(v6) => {
            let [.., a, b, c, d] = v6.octets();
            u32::from_be_bytes([a, b, c, d])
        }
    };
    Ipv4Addr::from_bits(0xf000_0000 | low & 0x0fff_ffff)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reflector_is_not_taken_for_the_host_it_is_on() {
        let id = reflector_id("100.64.0.1".parse().unwrap());
        assert_eq!(id, Ipv4Addr::new(244, 64, 0, 1));
    }
}
