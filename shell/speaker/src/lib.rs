//! Runs the pure EVPN speaker over TCP: sockets, MD5, GTSM, timers.
//!
//! [`SpeakerHandle::start`] spawns one task that owns the [`evpn::Speaker`]; the handle sends it
//! commands and watches what it learned. Connections have a reader and a writer task each, with
//! bounded queues to the owner.

use evpn::{
    Alert, BadConfig, BadLocalState, CannotRefresh, Config, Counts, HistoryEntry, LocalState,
    MacInfo, PeerConfig, PeerInfo, RouteInfo, Sequences, StopKind, Summary,
};
use model::{Forwarding, MacAddr, Secret, Tag, Vni};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot, watch};

mod event_loop;
mod kernel_drops;
mod socket;
mod transport;

/// What a running speaker is made of.
#[derive(Debug, Clone)]
pub struct SpeakerConfig {
    /// Who it is.
    pub bgp: Config,
    /// Source address of the connections that it makes; the kernel's choice if none is given.
    pub local_address: Option<IpAddr>,
    /// Where it takes connections: none for a pure client. Port 179 by convention.
    pub listen: Vec<SocketAddr>,
}

/// A peer and how to reach it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// What it is to us.
    pub config: PeerConfig,
    /// TCP port to connect to, usually 179.
    pub port: u16,
    /// TCP-MD5 key (RFC 2385), if the session is signed. At most 80 octets.
    pub password: Option<Secret>,
    /// Generalized TTL security (RFC 5082): packets leave with TTL 255, and only such are taken.
    /// Off for peers that are routers away or do not do it.
    pub gtsm: bool,
}

impl Peer {
    /// A peer on port 179 without password, with GTSM.
    pub fn new(config: PeerConfig) -> Self {
        Self {
            config,
            port: 179,
            password: None,
            gtsm: true,
        }
    }
}

/// A connection with the options of a session, for programs that speak BGP in their own words: it
/// is signed if there is a password, and with `gtsm` as [`Peer::gtsm`] says.
///
/// # Errors
/// If it is refused, or nobody answers.
pub async fn connect(
    peer: SocketAddr,
    local: Option<IpAddr>,
    password: Option<&Secret>,
    gtsm: bool,
) -> std::io::Result<tokio::net::TcpStream> {
    let patience = evpn::Timing::default().send_hold_time;
    socket::for_peer(peer.ip(), local, password, gtsm, patience)?
        .connect(peer)
        .await
}

/// A speaker that could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Its configuration is wrong.
    #[error(transparent)]
    Config(#[from] BadConfig),
    /// A listening socket could not be had.
    #[error(
        "listening for BGP on {address}: {source}; see who has the port with `ss -tlnp`, or set another"
    )]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
}

/// The speaker's task has ended, by [`SpeakerHandle::stop`] or a panic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the BGP speaker has stopped: start it again")]
pub struct Stopped;

/// Local state that was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SetLocalError {
    /// It is wrong.
    #[error(transparent)]
    Bad(#[from] BadLocalState),
    /// There is nobody to take it.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

/// A peer that was not asked to tell everything again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RefreshError {
    /// It cannot be asked.
    #[error(transparent)]
    Cannot(#[from] CannotRefresh),
    /// There is nobody to ask it.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

/// A running speaker. Clones command the same one; when all are dropped it stops as by
/// [`StopKind::Restart`].
#[derive(Debug, Clone)]
pub struct SpeakerHandle {
    commands: mpsc::Sender<event_loop::Command>,
    forwarding: watch::Receiver<Arc<Forwarding>>,
    listening: Arc<[SocketAddr]>,
}

impl SpeakerHandle {
    /// Starts a speaker in a task of the current runtime.
    #[expect(
        clippy::unused_async,
        reason = "needs a runtime, which an async function says better than a panic"
    )]
    pub async fn start(config: SpeakerConfig) -> Result<Self, StartError> {
        event_loop::start(config)
    }

    /// What is behind this host, all of it; see [`evpn::Speaker::set_local`].
    pub async fn set_local(&self, state: LocalState) -> Result<(), SetLocalError> {
        Ok(self
            .ask(|reply| event_loop::Command::SetLocal(Box::new(state), reply))
            .await??)
    }

    /// The peers, all of them. A peer whose role changes is a new one. If its port or GTSM setting
    /// changes, or it gets its first key or loses it, its session is made anew and its routes are
    /// kept meanwhile. One key can take another's place under a live session: see that both ends
    /// have it within the hold time.
    pub async fn set_peers(&self, peers: BTreeMap<IpAddr, Peer>) -> Result<(), Stopped> {
        self.ask(|reply| event_loop::Command::SetPeers(peers, reply))
            .await
    }

    /// See [`evpn::Speaker::set_members`].
    pub async fn set_members(&self, members: evpn::Members) -> Result<(), Stopped> {
        self.ask(|reply| event_loop::Command::SetMembers(members, reply))
            .await
    }

    /// What was learned, and every change of it. The first value is what is known now.
    pub fn forwarding(&self) -> watch::Receiver<Arc<Forwarding>> {
        self.forwarding.clone()
    }

    /// Every path to every route.
    pub async fn routes(&self) -> Result<Vec<RouteInfo>, Stopped> {
        self.ask(event_loop::Command::Routes).await
    }

    /// Every peer.
    pub async fn peers(&self) -> Result<Vec<PeerInfo>, Stopped> {
        self.ask(event_loop::Command::Peers).await
    }

    /// The last noteworthy messages to and from a peer, oldest first; none if it is no peer.
    pub async fn history(&self, peer: IpAddr) -> Result<Option<Vec<HistoryEntry>>, Stopped> {
        self.ask(|reply| event_loop::Command::History(peer, reply))
            .await
    }

    /// Asks a peer to tell everything again; see [`evpn::Speaker::refresh`].
    pub async fn refresh(&self, peer: IpAddr) -> Result<(), RefreshError> {
        Ok(self
            .ask(|reply| event_loop::Command::Refresh(peer, reply))
            .await??)
    }

    /// Numbers of everything.
    pub async fn summary(&self) -> Result<Summary, Stopped> {
        self.ask(event_loop::Command::Summary).await
    }

    /// Every MAC of every instance, and why it is where it is.
    pub async fn macs(&self) -> Result<Vec<MacInfo>, Stopped> {
        self.ask(event_loop::Command::Macs).await
    }

    /// What is wrong with MACs, addresses and router ids, as far as this speaker can see it.
    pub async fn alerts(&self) -> Result<Vec<Alert>, Stopped> {
        self.ask(event_loop::Command::Alerts).await
    }

    /// Mobility sequences that grew; see [`evpn::Speaker::raised`].
    pub async fn raised(&self) -> Result<Sequences, Stopped> {
        self.ask(event_loop::Command::Raised).await
    }

    /// How much it holds; cheap, however many routes there are.
    pub async fn counts(&self) -> Result<Counts, Stopped> {
        self.ask(event_loop::Command::Counts).await
    }

    /// Gives a frozen MAC another chance; false if it was not frozen.
    pub async fn clear_duplicate(&self, vni: Vni, tag: Tag, mac: MacAddr) -> Result<bool, Stopped> {
        self.ask(|reply| event_loop::Command::ClearMac((vni, tag, mac), reply))
            .await
    }

    /// The same for an address.
    pub async fn clear_duplicate_ip(
        &self,
        vni: Vni,
        tag: Tag,
        ip: IpAddr,
    ) -> Result<bool, Stopped> {
        self.ask(|reply| event_loop::Command::ClearAddress((vni, tag, ip), reply))
            .await
    }

    /// Where it listens, with the ports that the kernel chose for port 0.
    pub fn listening(&self) -> &[SocketAddr] {
        &self.listening
    }

    /// Ends all sessions and the task, and waits until what there was to say is sent (or a
    /// second has passed).
    pub async fn stop(&self, kind: StopKind) -> Result<(), Stopped> {
        self.stop_saying(kind, "").await
    }

    /// The same, with up to 128 octets of text for those at the other end (RFC 9003).
    pub async fn stop_saying(&self, kind: StopKind, text: &str) -> Result<(), Stopped> {
        let text = text.to_owned();
        self.ask(|reply| event_loop::Command::Stop(kind, text, reply))
            .await
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<T>) -> event_loop::Command,
    ) -> Result<T, Stopped> {
        let (reply, answer) = oneshot::channel();
        let sent = self.commands.send(command(reply)).await;
        sent.map_err(|_| Stopped)?;
        answer.await.map_err(|_| Stopped)
    }
}
