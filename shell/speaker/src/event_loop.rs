//! The one task that owns the speaker: events in, effects out.

use crate::kernel_drops::KernelDrops;
use crate::transport::{self, Connection, Event, HIGH_WATER_OCTETS, LOW_WATER_OCTETS, Stuck};
use crate::{Peer, SpeakerConfig, SpeakerHandle, StartError, socket};
use evpn::{
    Action, Alert, BadLocalState, CannotRefresh, ConnId, Counts, HistoryEntry, LocalState, Lost,
    LostBy, MacInfo, PeerInfo, RouteInfo, Sequences, SessionState, Speaker, StopKind, Summary,
    Transmit,
};
use model::{Forwarding, MacAddr, Tag, Vni};
use std::collections::{BTreeMap, BTreeSet};
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
/// What is taken in before rows are published and peers are told: bursts become one publication,
/// and nobody waits long for news.
const BURST_EVENTS: usize = 256;
const BURST_BYTES: usize = 256 << 10;
/// Messages sent before events are looked at again.
const TURN_MESSAGES: usize = 512;
/// How long either may take: by bytes and messages alone a turn would be as long as the machine is slow, and
/// KEEPALIVEs are sent between turns.
const TURN: Duration = Duration::from_millis(50);
/// A deadline missed by so much means that this process, or the machine, stood still.
const STALLED: Duration = Duration::from_millis(250);
/// For how long at most those who have said something are heard after that, before anybody is blamed for
/// silence.
const CATCH_UP: Duration = Duration::from_secs(1);
/// Publishing rows takes this part of the time at most: all of them are copied, and with many rows and a
/// flood of news there would be time for nothing else.
const PUBLISH_SHARE: u32 = 4;
/// How long a stop waits for the last messages to be sent.
const STOP_WAIT: Duration = Duration::from_secs(1);

/// What the handle asks for. Each is answered when it is done.
#[derive(Debug)]
pub(crate) enum Command {
    SetLocal(Box<LocalState>, oneshot::Sender<Result<(), BadLocalState>>),
    SetPeers(BTreeMap<IpAddr, Peer>, oneshot::Sender<()>),
    SetMembers(evpn::Members, oneshot::Sender<()>),
    Routes(oneshot::Sender<Vec<RouteInfo>>),
    Peers(oneshot::Sender<Vec<PeerInfo>>),
    Summary(oneshot::Sender<Summary>),
    Macs(oneshot::Sender<Vec<MacInfo>>),
    Alerts(oneshot::Sender<Vec<Alert>>),
    Raised(oneshot::Sender<Sequences>),
    Counts(oneshot::Sender<Counts>),
    ClearMac((Vni, Tag, MacAddr), oneshot::Sender<bool>),
    ClearAddress((Vni, Tag, IpAddr), oneshot::Sender<bool>),
    History(IpAddr, oneshot::Sender<Option<Vec<HistoryEntry>>>),
    Refresh(IpAddr, oneshot::Sender<Result<(), CannotRefresh>>),
    Stop(StopKind, String, oneshot::Sender<()>),
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
    /// Not before then again.
    publish_after: Instant,
    /// What the kernel had dropped when this started.
    dropped: KernelDrops,
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
        publish_after: Instant::now(),
        speaker,
        local_address: config.local_address,
        peers: BTreeMap::new(),
        connections: BTreeMap::new(),
        listeners,
        accepting,
        closing: vec![],
        events_tx,
        forwarding: forwarding_tx,
        dropped: KernelDrops::read(),
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
            let more = self.carry_out(TURN_MESSAGES, Some(Instant::now() + TURN));
            let due = [self.speaker.poll_timeout(), self.publish_due()];
            let deadline = due.into_iter().flatten().min();
            tokio::select! {
                command = commands.recv() => match command {
                    Some(Command::Stop(kind, text, reply)) => {
                        self.stop(kind, &text).await;
                        // Whoever asked may not wait for the answer.
                        reply.send(()).ok();
                        return;
                    }
                    Some(command) => self.on_command(command),
                    None => return self.stop(StopKind::Restart, "").await,
                },
                event = events.recv() => {
                    self.on_event(event.expect("the loop holds a sender"));
                    self.take_burst(&mut events);
                }
                () = tokio::task::yield_now(), if more => {}
                () = until(deadline) => {}
            }
            self.keep_time(&mut events).await;
        }
    }

    /// Does what is due. After a stall what peers sent in time must not lose against the clock: it
    /// waits in sockets, and is read first.
    async fn keep_time(&mut self, events: &mut mpsc::Receiver<Event>) {
        let now = Instant::now();
        let Some(due) = self.speaker.poll_timeout().filter(|at| *at <= now) else {
            return;
        };
        if now - due > STALLED {
            // The others do not wait for this speaker to have heard everybody.
            self.speaker.handle_keepalives(now);
            self.carry_out(TURN_MESSAGES, Some(now + TURN));
            self.hear_everybody(events).await;
        }
        tokio::task::yield_now().await;
        self.take_burst(events);
        self.speaker.handle_timeout(Instant::now());
    }

    /// Takes in what has come so far, of everybody a piece at least; who goes on and on is not heard out.
    async fn hear_everybody(&mut self, events: &mut mpsc::Receiver<Event>) {
        let until = tokio::time::Instant::now() + CATCH_UP;
        let unread = self.connections.iter().filter(|(_, c)| c.has_unread());
        let mut unheard: BTreeSet<ConnId> = unread.map(|(conn, _)| *conn).collect();
        // What was read before is in the queue.
        let mut queued = events.len();
        while queued > 0 || !unheard.is_empty() {
            let Ok(Some(event)) = tokio::time::timeout_at(until, events.recv()).await else {
                return;
            };
            match &event {
                // The first of a connection may have been read before.
                Event::Bytes(conn, ..) if queued == 0 => drop(unheard.remove(conn)),
                Event::Over(conn, _) => drop(unheard.remove(conn)),
                _ => {}
            }
            queued = queued.saturating_sub(1);
            self.on_event(event);
        }
    }

    fn take_burst(&mut self, events: &mut mpsc::Receiver<Event>) {
        let (mut bytes, end) = (0, Instant::now() + TURN);
        for _ in 0..BURST_EVENTS {
            let Ok(event) = events.try_recv() else {
                return;
            };
            if let Event::Bytes(_, got, _) = &event {
                bytes += got.len();
            }
            self.on_event(event);
            if bytes >= BURST_BYTES || Instant::now() >= end {
                return;
            }
        }
    }

    /// When rows that are not published yet are to be.
    fn publish_due(&self) -> Option<Instant> {
        let waiting = self.speaker.forwarding_version() != self.published;
        waiting.then_some(self.publish_after)
    }

    fn publish(&mut self) {
        let begin = Instant::now();
        self.published = self.speaker.forwarding_version();
        let rows = Arc::new(self.speaker.forwarding().clone());
        self.forwarding.send_replace(rows);
        let end = Instant::now();
        self.publish_after = end + (end - begin) * PUBLISH_SHARE;
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
            Command::SetMembers(members, reply) => {
                self.speaker.set_members(now, members);
                reply.send(()).ok();
            }
            Command::Routes(reply) => drop(reply.send(self.speaker.routes(now))),
            Command::Peers(reply) => drop(reply.send(self.peers(now))),
            Command::History(peer, reply) => drop(reply.send(self.speaker.history(now, peer))),
            Command::Refresh(peer, reply) => drop(reply.send(self.speaker.refresh(now, peer))),
            Command::Summary(reply) => drop(reply.send(self.speaker.summary())),
            Command::Macs(reply) => drop(reply.send(self.speaker.macs(now))),
            Command::Alerts(reply) => drop(reply.send(self.speaker.alerts(now))),
            Command::Raised(reply) => drop(reply.send(self.speaker.raised())),
            Command::Counts(reply) => drop(reply.send(self.speaker.counts())),
            Command::ClearMac((vni, tag, mac), reply) => {
                let was_frozen = self.speaker.clear_duplicate(now, vni, tag, mac);
                reply.send(was_frozen).ok();
            }
            Command::ClearAddress((vni, tag, ip), reply) => {
                let was_frozen = self.speaker.clear_duplicate_ip(now, vni, tag, ip);
                reply.send(was_frozen).ok();
            }
            Command::Stop(..) => unreachable!("the loop takes stops itself"),
        }
    }

    /// The speaker's peers, and what the kernel knows about those without a session.
    fn peers(&self, now: Instant) -> Vec<PeerInfo> {
        let mut peers = self.speaker.peers(now);
        let dropped = KernelDrops::read().since(self.dropped);
        for peer in &mut peers {
            let down = peer.state != SessionState::Established;
            let Some(advice) = peer.advice.as_mut().filter(|_| down) else {
                continue;
            };
            if dropped.too_far > 0 {
                let count = dropped.too_far;
                let cause = format!(
                    "this host's kernel dropped {count} TCP packets with a TTL too low for GTSM since this speaker started"
                );
                advice.causes.insert(0, cause);
            }
            if dropped.unsigned > 0 {
                let count = dropped.unsigned;
                let cause = format!(
                    "this host's kernel dropped {count} TCP packets with a missing, wrong or unexpected MD5 signature since this speaker started"
                );
                advice.causes.insert(0, cause);
            }
        }
        peers
    }

    fn set_peers(&mut self, now: Instant, peers: BTreeMap<IpAddr, Peer>) {
        let configs = peers.iter().map(|(id, peer)| (*id, peer.config));
        self.speaker.set_peers(now, configs.collect());
        let before = std::mem::replace(&mut self.peers, peers);
        for id in before.keys().filter(|id| !self.peers.contains_key(id)) {
            self.key_listeners(*id, None);
        }
        self.guard_listeners();
        for (id, peer) in &self.peers {
            let held = before.get(id);
            if held.is_none_or(|held| held.password != peer.password) {
                self.key_listeners(*id, peer.password.as_ref());
            }
            // The same peer, to be reached in another way.
            let Some(held) = held.filter(|held| held.config.role == peer.config.role) else {
                continue;
            };
            let moved = (held.port, held.gtsm) != (peer.port, peer.gtsm);
            if moved || held.password != peer.password && !self.new_key(*id, held, peer) {
                let reason = "its port, TCP-MD5 key or GTSM setting was changed";
                self.speaker.reset_peer(now, *id, reason);
            }
        }
    }

    /// Gives live connections a new key; false if they need to be made anew. What the other end
    /// signs with the old key is lost, and sent again: if it changes its key within the hold time
    /// the session goes on, and if it takes longer routes are kept as for a restart.
    fn new_key(&self, peer: IpAddr, held: &Peer, wanted: &Peer) -> bool {
        if held.password.is_none() || wanted.password.is_none() {
            return false;
        }
        let mut connections = self.connections.values().filter(|c| c.peer == peer);
        connections.all(|connection| {
            let set = |socket| socket::set_md5(socket, peer, wanted.password.as_ref());
            connection
                .socket()
                .is_some_and(|socket| set(socket).is_ok())
        })
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

    /// Whether all peers of a family do GTSM.
    fn all_are_near(&self, family_of: IpAddr) -> bool {
        let same_family = |(id, _): &(&IpAddr, &Peer)| id.is_ipv4() == family_of.is_ipv4();
        let mut peers = self.peers.iter().filter(same_family);
        peers.all(|(_, peer)| peer.gtsm)
    }

    /// A listener whose peers all do GTSM has the kernel answer nobody else. Where one does not, the
    /// TTL of each connection is looked at when it is taken.
    fn guard_listeners(&self) {
        for listener in &self.listeners {
            let Ok(address) = listener.local_addr() else {
                continue;
            };
            let only = self.all_are_near(address.ip());
            if let Err(error) = socket::only_neighbours(listener.as_fd(), address.ip(), only) {
                warn!(%address, %error, "Setting GTSM on a BGP listener failed; the TTL is checked by connection");
            }
        }
    }

    fn on_event(&mut self, event: Event) {
        let now = Instant::now();
        match event {
            Event::Accepted(stream, from) => self.on_accepted(now, stream, from),
            Event::Connected(conn, stream) => {
                let peer = stream
                    .peer_addr()
                    .map(|address| address.ip().to_canonical());
                let Ok(peer) = peer else {
                    let reason = "the connection was gone before it was used";
                    self.speaker.handle_disconnected(now, conn, reason);
                    return;
                };
                if self.speaker.handle_connected(now, conn) {
                    let connection = Connection::new(conn, peer, stream, self.events_tx.clone());
                    self.connections.insert(conn, connection);
                }
            }
            Event::Bytes(conn, bytes, _leave) => self.speaker.handle_bytes(now, conn, &bytes),
            Event::Written(conn, octets) => self.on_written(conn, octets),
            Event::Over(conn, lost) => {
                self.connections.remove(&conn);
                self.speaker.handle_disconnected(now, conn, lost);
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
        // The option comes too late for what was queued before: whoever is far away has sent its
        // OPEN by now. It cannot have sent its first packet from nearby, though. Without that one
        // (SYN cookies), the kernel has looked at what came instead if it guards the listener.
        let near = match socket::ttl_of_syn(stream.as_fd()) {
            Some(ttl) => socket::is_of_neighbour(ttl),
            None => self.all_are_near(peer),
        };
        if config.gtsm && !near {
            debug!(%from, "Refused a BGP connection that was not begun with TTL 255");
            let text = "a connection did not come with TTL 255 and was refused (GTSM)".to_owned();
            let by = LostBy::TooFar;
            self.speaker.handle_refused(now, peer, Lost { by, text });
            refuse(stream);
            return;
        }
        let timeout = self.tcp_timeout();
        if let Err(error) = socket::prepare(stream.as_fd(), peer, config.gtsm, timeout) {
            warn!(%peer, %error, "Setting up a BGP connection failed");
            return;
        }
        match self.speaker.handle_accepted(now, peer) {
            Ok(conn) => {
                let connection = Connection::new(conn, peer, stream, self.events_tx.clone());
                self.connections.insert(conn, connection);
            }
            Err(_) => refuse(stream),
        }
    }

    /// When the kernel gives up on what was sent. Hold timer and send hold timer are there before,
    /// and can say why; this ends connections that nobody asks about any more.
    fn tcp_timeout(&self) -> Duration {
        let timing = self.speaker.config().timing;
        timing.send_hold_time + timing.hold_time
    }

    fn on_written(&mut self, conn: ConnId, octets: usize) {
        let Some(connection) = self.connections.get_mut(&conn) else {
            return;
        };
        connection.in_flight = connection.in_flight.saturating_sub(octets);
        if connection.blocked && connection.in_flight <= LOW_WATER_OCTETS {
            connection.blocked = false;
            self.speaker.handle_writable(conn, true);
        }
        let waiting = connection.in_flight > 0;
        self.speaker.handle_progress(Instant::now(), conn, waiting);
    }

    /// Does what the speaker wants, up to so many messages or that time; true if there may be more. A
    /// reflector has millions of routes to tell when it starts, and has to listen meanwhile.
    fn carry_out(&mut self, messages_max: usize, until: Option<Instant>) -> bool {
        let (mut messages, mut cut) = (0, false);
        loop {
            while !cut && let Some(transmit) = self.speaker.poll_transmit() {
                self.transmit(transmit);
                messages += 1;
                let late = || until.is_some_and(|until| Instant::now() >= until);
                cut = messages >= messages_max || late();
            }
            // Actions come after all messages: a connection must not be closed before its last.
            if cut {
                break;
            }
            let Some(action) = self.speaker.poll_action() else {
                break;
            };
            self.act(action);
        }
        self.closing.retain(|writer| !writer.is_finished());
        if self.publish_due().is_some_and(|at| at <= Instant::now()) {
            self.publish();
        }
        cut
    }

    fn transmit(&mut self, transmit: Transmit) {
        let Transmit { conn, bytes, .. } = transmit;
        let Some(connection) = self.connections.get_mut(&conn) else {
            return;
        };
        if connection.in_flight == 0 {
            self.speaker.handle_progress(Instant::now(), conn, true);
        }
        if let Err(Stuck) = connection.send(bytes) {
            if let Some(connection) = self.connections.remove(&conn) {
                self.closing.push(connection.close());
            }
            let text = "writing: the peer takes nothing off the connection".to_owned();
            let by = LostBy::Other;
            self.speaker
                .handle_disconnected(Instant::now(), conn, Lost { by, text });
        } else if connection.in_flight >= HIGH_WATER_OCTETS && !connection.blocked {
            connection.blocked = true;
            self.speaker.handle_writable(conn, false);
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Connect { conn, peer } => {
                let config = self.peers.get(&peer);
                let timeout = self.tcp_timeout();
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
                let (to, from) = (SocketAddr::new(peer, port), self.local_address);
                let signed = config.is_some_and(|config| config.password.is_some());
                tokio::spawn(transport::connect(conn, socket, to, from, signed, events));
            }
            Action::Close { conn, .. } => {
                if let Some(connection) = self.connections.remove(&conn) {
                    self.closing.push(connection.close());
                }
            }
            Action::Report(event) => log(&event),
        }
    }

    async fn stop(&mut self, kind: StopKind, text: &str) {
        self.speaker.stop_saying(Instant::now(), kind, text);
        self.carry_out(usize::MAX, None);
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
        evpn::Event::ManyRoutes {
            peer,
            held,
            limit,
            over: false,
        } => warn!(%peer, held, limit, "BGP peer has most of the routes that it may have"),
        evpn::Event::ManyRoutes {
            peer, held, limit, ..
        } => warn!(%peer, held, limit, "BGP peer announces more routes than it may have"),
        evpn::Event::ForeignRoutes { peer, what } => {
            warn!(%peer, what, "BGP client announces routes of another host; they are not taken");
        }
        evpn::Event::SameRouterId {
            peer,
            other,
            router_id,
        } => {
            warn!(%peer, %other, %router_id, "Two BGP peers have one router id; give each its own");
        }
        evpn::Event::Mobility {
            vni,
            tag,
            mac,
            here,
        } => debug!(%vni, ?tag, %mac, here, "Local MAC changed hands"),
        event @ (evpn::Event::DuplicateMac { .. }
        | evpn::Event::DuplicateIp { .. }
        | evpn::Event::DuplicateCleared { .. }
        | evpn::Event::StickyMac { .. }
        | evpn::Event::MacLimit { .. }
        | evpn::Event::DuplicateVtep { .. }
        | evpn::Event::DuplicateRouterId { .. }) => log_watched(event),
    }
}

/// What the speaker saw of MACs, addresses, and hosts that pass for this one. Tenants' addresses
/// are told here although they are tenants': somebody has to look for them.
fn log_watched(event: &evpn::Event) {
    match event {
        evpn::Event::DuplicateMac {
            vni,
            tag,
            mac,
            vteps,
            moves,
            frozen,
        } => warn!(
            %vni, ?tag, %mac, ?vteps, moves, frozen,
            "A MAC moves to and fro: two NICs have it"
        ),
        evpn::Event::DuplicateIp {
            vni,
            tag,
            ip,
            macs,
            moves,
            frozen,
        } => warn!(
            %vni, ?tag, %ip, ?macs, moves, frozen,
            "An address goes to and fro between MACs: two NICs have it"
        ),
        evpn::Event::DuplicateCleared { vni, tag, what } => {
            info!(%vni, ?tag, what, "A duplicate is given another chance");
        }
        evpn::Event::StickyMac {
            vni,
            tag,
            mac,
            holder,
            challengers,
            both,
        } => warn!(
            %vni, ?tag, %mac, %holder, ?challengers, both_static = both,
            "A static MAC is claimed by another VTEP"
        ),
        evpn::Event::MacLimit {
            vni,
            level: evpn::MacLevel::Below,
            max,
            ..
        } => info!(%vni, max, "An EVPN instance is well below its limit of MACs again"),
        evpn::Event::MacLimit {
            vni,
            level,
            waiting,
            max,
        } => {
            warn!(%vni, ?level, waiting, max, "An EVPN instance is near or over its limit of MACs")
        }
        evpn::Event::DuplicateVtep {
            address,
            router_id,
            peer,
        } => warn!(%address, %router_id, %peer, "Another host announces this VTEP address"),
        evpn::Event::DuplicateRouterId {
            router_id,
            vtep,
            peer,
        } => warn!(%router_id, %vtep, %peer, "Another host uses this BGP router id"),
        // The rest is told by the caller.
        _ => {}
    }
}
