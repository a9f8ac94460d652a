//! The one task that owns the speaker: events in, effects out.

use crate::transport::{self, Connection, Event, HIGH_WATER, LOW_WATER, Stuck};
use crate::{Peer, SpeakerConfig, SpeakerHandle, StartError, socket};
use evpn::{
    Action, BadLocalState, ConnId, LocalState, PeerInfo, RouteInfo, Speaker, StopKind, Transmit,
};
use model::Forwarding;
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tracing::{debug, info, warn};

/// Events on their way from all connections. When it is full, readers wait, and TCP with them.
const QUEUE_EVENTS: usize = 256;
/// Events taken before rows are published: bursts become one publication.
const BURST_EVENTS: usize = 256;
/// Messages sent before events are looked at again.
const TURN_MESSAGES: usize = 512;
/// How long a stop waits for the last messages to be sent.
const STOP_WAIT: Duration = Duration::from_secs(1);

/// What the handle asks for. Each is answered when it is done.
#[derive(Debug)]
pub(crate) enum Command {
    SetLocal(Box<LocalState>, oneshot::Sender<Result<(), BadLocalState>>),
    SetPeers(BTreeMap<IpAddr, Peer>, oneshot::Sender<()>),
    Routes(oneshot::Sender<Vec<RouteInfo>>),
    Peers(oneshot::Sender<Vec<PeerInfo>>),
    Stop(StopKind, oneshot::Sender<()>),
}

struct Runner {
    speaker: Speaker,
    local_address: Option<IpAddr>,
    peers: BTreeMap<IpAddr, Peer>,
    connections: BTreeMap<ConnId, Connection>,
    listeners: Vec<Arc<TcpListener>>,
    accepting: Vec<JoinHandle<()>>,
    closing: Vec<JoinHandle<()>>,
    events_tx: mpsc::Sender<Event>,
    forwarding: watch::Sender<Arc<Forwarding>>,
    published: u64,
}

pub(crate) fn start(config: SpeakerConfig) -> Result<SpeakerHandle, StartError> {
    let speaker = Speaker::new(Instant::now(), config.bgp)?;
    let (events_tx, events) = mpsc::channel(QUEUE_EVENTS);
    let (commands_tx, commands) = mpsc::channel(16);
    let (forwarding_tx, forwarding) = watch::channel(Arc::new(speaker.forwarding().clone()));
    let mut listeners = vec![];
    let mut listening = vec![];
    for address in config.listen {
        let failed = |source| StartError::Listen { address, source };
        let listener = socket::listen(address).map_err(failed)?;
        listening.push(listener.local_addr().map_err(failed)?);
        listeners.push(Arc::new(listener));
    }
    let accepting = listeners
        .iter()
        .map(|listener| tokio::spawn(transport::accept(Arc::clone(listener), events_tx.clone())))
        .collect();
    let runner = Runner {
        published: speaker.forwarding_version(),
        speaker,
        local_address: config.local_address,
        peers: BTreeMap::new(),
        connections: BTreeMap::new(),
        listeners,
        accepting,
        closing: vec![],
        events_tx,
        forwarding: forwarding_tx,
    };
    tokio::spawn(runner.run(commands, events));
    Ok(SpeakerHandle {
        commands: commands_tx,
        forwarding,
        listening: listening.into(),
    })
}

impl Runner {
    async fn run(
        mut self,
        mut commands: mpsc::Receiver<Command>,
        mut events: mpsc::Receiver<Event>,
    ) {
        loop {
            let more = self.carry_out(TURN_MESSAGES);
            let deadline = self.speaker.poll_timeout();
            tokio::select! {
                command = commands.recv() => match command {
                    Some(Command::Stop(kind, reply)) => {
                        self.stop(kind).await;
                        // Whoever asked may not wait for the answer.
                        reply.send(()).ok();
                        return;
                    }
                    Some(command) => self.on_command(command),
                    None => return self.stop(StopKind::Restart).await,
                },
                event = events.recv() => {
                    self.on_event(event.expect("the loop holds a sender"));
                    self.take_burst(&mut events);
                }
                () = tokio::task::yield_now(), if more => {}
                () = until(deadline) => {
                    // After a stall what peers sent in time must not lose against the clock.
                    tokio::task::yield_now().await;
                    self.take_burst(&mut events);
                }
            }
            let now = Instant::now();
            if self.speaker.poll_timeout().is_some_and(|at| at <= now) {
                self.speaker.handle_timeout(now);
            }
        }
    }

    fn take_burst(&mut self, events: &mut mpsc::Receiver<Event>) {
        for _ in 0..BURST_EVENTS {
            let Ok(event) = events.try_recv() else {
                return;
            };
            self.on_event(event);
        }
    }

    fn on_command(&mut self, command: Command) {
        let now = Instant::now();
        // Answers nobody waits for are dropped.
        match command {
            Command::SetLocal(state, reply) => {
                drop(reply.send(self.speaker.set_local(now, *state)));
            }
            Command::SetPeers(peers, reply) => {
                self.set_peers(now, peers);
                reply.send(()).ok();
            }
            Command::Routes(reply) => drop(reply.send(self.speaker.routes(now))),
            Command::Peers(reply) => drop(reply.send(self.speaker.peers(now))),
            Command::Stop(..) => unreachable!("the loop takes stops itself"),
        }
    }

    fn set_peers(&mut self, now: Instant, peers: BTreeMap<IpAddr, Peer>) {
        let configs = peers.iter().map(|(id, peer)| (*id, peer.config));
        self.speaker.set_peers(now, configs.collect());
        let before = std::mem::replace(&mut self.peers, peers);
        for id in before.keys().filter(|id| !self.peers.contains_key(id)) {
            self.key_listeners(*id, None);
        }
        for (id, peer) in &self.peers {
            let held = before.get(id);
            if held.is_none_or(|held| held.password != peer.password) {
                self.key_listeners(*id, peer.password.as_ref());
            }
            // The same peer, to be reached in another way.
            if held.is_some_and(|held| held.config == peer.config && held != peer) {
                let reason = "its port, TCP-MD5 key or GTSM setting was changed";
                self.speaker.reset_peer(now, *id, reason);
            }
        }
    }

    /// A listener without the peer's key would take its unsigned connections.
    fn key_listeners(&self, peer: IpAddr, password: Option<&model::Secret>) {
        for listener in &self.listeners {
            let same_family = listener
                .local_addr()
                .is_ok_and(|address| address.is_ipv4() == peer.is_ipv4());
            if !same_family {
                continue;
            }
            if let Err(error) = socket::set_md5(listener.as_fd(), peer, password) {
                warn!(%peer, %error, "Setting the TCP-MD5 key of a BGP peer failed; its sessions will not come up");
            }
        }
    }

    fn on_event(&mut self, event: Event) {
        let now = Instant::now();
        match event {
            Event::Accepted(stream, from) => self.on_accepted(now, stream, from),
            Event::Connected(conn, stream) => {
                if self.speaker.handle_connected(now, conn) {
                    let connection = Connection::new(conn, stream, self.events_tx.clone());
                    self.connections.insert(conn, connection);
                }
            }
            Event::Bytes(conn, bytes) => self.speaker.handle_bytes(now, conn, &bytes),
            Event::Written(conn, count) => self.on_written(conn, count),
            Event::Over(conn, reason) => {
                self.connections.remove(&conn);
                self.speaker.handle_disconnected(now, conn, &reason);
            }
        }
    }

    fn on_accepted(&mut self, now: Instant, stream: TcpStream, from: SocketAddr) {
        let peer = from.ip().to_canonical();
        let Some(config) = self.peers.get(&peer) else {
            debug!(%from, "Refused a BGP connection from an address that is no peer's");
            refuse(stream);
            return;
        };
        let timeout = self.speaker.config().timing.hold_time;
        if let Err(error) = socket::prepare(stream.as_fd(), peer, config.gtsm, timeout) {
            warn!(%peer, %error, "Setting up a BGP connection failed");
            return;
        }
        match self.speaker.handle_accepted(now, peer) {
            Ok(conn) => {
                let connection = Connection::new(conn, stream, self.events_tx.clone());
                self.connections.insert(conn, connection);
            }
            Err(_) => refuse(stream),
        }
    }

    fn on_written(&mut self, conn: ConnId, count: usize) {
        let Some(connection) = self.connections.get_mut(&conn) else {
            return;
        };
        connection.in_flight = connection.in_flight.saturating_sub(count);
        if connection.blocked && connection.in_flight <= LOW_WATER {
            connection.blocked = false;
            self.speaker.handle_writable(conn, true);
        }
    }

    /// Does what the speaker wants, up to so many messages; true if there may be more. A
    /// reflector has millions of routes to tell when it starts, and has to listen meanwhile.
    fn carry_out(&mut self, messages_max: usize) -> bool {
        let mut messages = 0;
        loop {
            while messages < messages_max
                && let Some(transmit) = self.speaker.poll_transmit()
            {
                self.transmit(transmit);
                messages += 1;
            }
            // Actions come after all messages: a connection must not be closed before its last.
            if messages == messages_max {
                break;
            }
            let Some(action) = self.speaker.poll_action() else {
                break;
            };
            self.act(action);
        }
        self.closing.retain(|writer| !writer.is_finished());
        let version = self.speaker.forwarding_version();
        if version != self.published {
            self.published = version;
            let rows = Arc::new(self.speaker.forwarding().clone());
            self.forwarding.send_replace(rows);
        }
        messages == messages_max
    }

    fn transmit(&mut self, transmit: Transmit) {
        let Transmit { conn, bytes, .. } = transmit;
        let Some(connection) = self.connections.get_mut(&conn) else {
            return;
        };
        if let Err(Stuck) = connection.send(bytes) {
            self.connections.remove(&conn);
            let reason = "writing: the peer takes nothing off the connection";
            self.speaker
                .handle_disconnected(Instant::now(), conn, reason);
        } else if connection.in_flight >= HIGH_WATER && !connection.blocked {
            connection.blocked = true;
            self.speaker.handle_writable(conn, false);
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Connect { conn, peer } => {
                let config = self.peers.get(&peer);
                let timeout = self.speaker.config().timing.hold_time;
                let socket = match config {
                    Some(config) => socket::for_peer(
                        peer,
                        self.local_address,
                        config.password.as_ref(),
                        config.gtsm,
                        timeout,
                    ),
                    None => Err(io::Error::other("the peer is gone")),
                };
                let port = config.map_or(179, |config| config.port);
                let events = self.events_tx.clone();
                tokio::spawn(transport::connect(conn, socket, peer, port, events));
            }
            Action::Close { conn, .. } => {
                if let Some(connection) = self.connections.remove(&conn) {
                    self.closing.push(connection.close());
                }
            }
            Action::Report(event) => log(&event),
        }
    }

    async fn stop(&mut self, kind: StopKind) {
        self.speaker.stop(Instant::now(), kind);
        self.carry_out(usize::MAX);
        self.accepting.drain(..).for_each(|task| task.abort());
        self.listeners.clear();
        self.connections.clear();
        let all = async {
            for writer in self.closing.drain(..) {
                // A writer that panicked has nothing left to send.
                drop(writer.await);
            }
        };
        if tokio::time::timeout(STOP_WAIT, all).await.is_err() {
            debug!("A BGP peer did not take the last messages in time");
        }
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

/// Closes with a reset: whoever is no peer gets no state of ours, not even TIME-WAIT.
fn refuse(stream: TcpStream) {
    if let Err(error) = stream.set_zero_linger() {
        debug!(%error, "Resetting a refused connection failed");
    }
}

fn log(event: &evpn::Event) {
    match event {
        evpn::Event::SessionUp { peer, router_id } => {
            info!(%peer, %router_id, "BGP session is up");
        }
        evpn::Event::SessionDown {
            peer,
            reason,
            retained,
        } => {
            warn!(%peer, reason, ?retained, "BGP session is down");
        }
        evpn::Event::Retiring { peer, time } => {
            info!(%peer, ?time, "BGP reflector is no longer configured; its session ends when others took over");
        }
        evpn::Event::AttemptFailed {
            peer,
            reason,
            retry_in,
        } => {
            debug!(%peer, reason, ?retry_in, "BGP session did not come up");
        }
        evpn::Event::EndOfRib { peer } => debug!(%peer, "BGP peer has told everything"),
        evpn::Event::LongLived { peer, time } => {
            warn!(%peer, ?time, "BGP peer did not come back; its routes are the last resort from now on");
        }
        evpn::Event::StaleSwept { peer, routes } => {
            info!(%peer, routes, "Gave up stale routes of a BGP peer");
        }
        evpn::Event::Complete { missing } if missing.is_empty() => {
            info!("EVPN routes are complete");
        }
        evpn::Event::Complete { missing } => {
            warn!(
                ?missing,
                "EVPN routes count as complete; some peers did not tell in time"
            );
        }
        evpn::Event::Malformed { peer, what } => warn!(%peer, what, "Malformed BGP UPDATE"),
        evpn::Event::Mobility {
            vni,
            tag,
            mac,
            here,
        } => debug!(%vni, ?tag, %mac, here, "Local MAC changed hands"),
    }
}
