//! One process's BGP: its peers, its routes, its MAC-VRFs.

use crate::advice::{Lost, Trouble, advise};
use crate::clash::{Clash, Clashes, Me};
use crate::codec::{KnownAttrs, RouteKey};
use crate::group::{Group, GroupId};
use crate::link::{ConnId, Link, Restart, Side, session_config};
use crate::local::{self, OwnRoute};
use crate::peer::{Down, Peer};
use crate::rib::{Path, Rib, Source};
use crate::taken_back::Members;
use crate::vrf::{Frozen, Vrfs};
use crate::{
    BadLocalState, Config, ConnectMode, HistoryEntry, LocalState, PeerConfig, PeerId, PeerInfo,
    RouteInfo,
};
use bytes::Bytes;
use model::{Forwarding, MacAddr, Tag, Vni};
use rustbgpd_fsm as fsm;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr};
use std::ops::Bound::{Excluded, Unbounded};
use std::time::{Duration, Instant};

/// A BGP speaker for EVPN. See the crate's page for how it is driven.
#[derive(Debug)]
pub struct Speaker {
    pub(crate) config: Config,
    pub(crate) peers: BTreeMap<PeerId, Peer>,
    pub(crate) conns: BTreeMap<ConnId, PeerId>,
    pub(crate) rib: Rib,
    pub(crate) vrfs: Vrfs,
    pub(crate) clashes: Clashes,
    pub(crate) local: Option<LocalState>,
    pub(crate) members: Members,
    pub(crate) announced: BTreeMap<Vni, BTreeMap<RouteKey, OwnRoute>>,
    /// What is announced of routers.
    pub(crate) announced_prefixes: BTreeMap<RouteKey, OwnRoute>,
    pub(crate) actions: VecDeque<Action>,
    /// What closed connections still have to say.
    pub(crate) last_words: VecDeque<Transmit>,
    /// Peers that may have something to send.
    pub(crate) ready: BTreeSet<PeerId>,
    last_served: Option<PeerId>,
    pub(crate) known_attrs: KnownAttrs,
    pub(crate) groups: BTreeMap<GroupId, Group>,
    /// Peers with a session that are in no group.
    pub(crate) alone: BTreeSet<PeerId>,
    /// Groups that may have something to send.
    pub(crate) ready_groups: BTreeSet<GroupId>,
    pub(crate) next_group: u64,
    /// What we want may differ from what peers were told.
    pub(crate) membership_due: bool,
    /// Until when completeness waits for peers; none once complete.
    pub(crate) deferral_until: Option<Instant>,
    pub(crate) stopped: bool,
    /// The latest time that was given.
    pub(crate) clock: Instant,
    next_conn: u64,
    random: u64,
}

/// Bytes for a connection, in order: one or more whole messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transmit {
    /// Where to.
    pub conn: ConnId,
    /// The peer at its other end.
    pub peer: PeerId,
    /// What.
    pub bytes: Bytes,
}

/// Something to do beside sending bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Connect to the peer, then tell [`Speaker::handle_connected`] or
    /// [`Speaker::handle_disconnected`].
    Connect {
        /// The name of the connection from now on.
        conn: ConnId,
        /// Whom to connect to.
        peer: PeerId,
    },
    /// Send what was already given for the connection, then close it. Nothing more will be said
    /// about it, and nothing need be reported.
    Close {
        /// The connection.
        conn: ConnId,
        /// The peer at its other end.
        peer: PeerId,
    },
    /// Something worth telling a person.
    Report(Event),
}

/// Something worth telling a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A session came up.
    SessionUp {
        /// With whom.
        peer: PeerId,
        /// Its BGP identifier.
        router_id: Ipv4Addr,
    },
    /// A reflector is no longer configured. Its session stays until others took over.
    Retiring {
        /// The reflector.
        peer: PeerId,
        /// The longest for which it stays.
        time: Duration,
    },
    /// A session ended.
    SessionDown {
        /// With whom.
        peer: PeerId,
        /// Why.
        reason: String,
        /// How long its routes are kept for its return; none: they are gone.
        retained: Option<Duration>,
    },
    /// An attempt at a session failed.
    AttemptFailed {
        /// With whom.
        peer: PeerId,
        /// Why.
        reason: String,
        /// When the next attempt is made; none if it is for the peer to connect.
        retry_in: Option<Duration>,
    },
    /// A peer said that it told everything (RFC 4724 §2).
    EndOfRib {
        /// The peer.
        peer: PeerId,
    },
    /// A peer did not come back in its restart time. Its routes stay for longer, as a last resort
    /// (RFC 9494).
    LongLived {
        /// The peer.
        peer: PeerId,
        /// How much longer.
        time: Duration,
    },
    /// Stale routes of a peer were given up.
    StaleSwept {
        /// The peer.
        peer: PeerId,
        /// How many.
        routes: usize,
    },
    /// What is learned is complete; rows that it lacks may go.
    Complete {
        /// Peers that did not say so in time.
        missing: Vec<PeerId>,
    },
    /// A peer sent something malformed, and the session survived it (RFC 7606).
    Malformed {
        /// The peer.
        peer: PeerId,
        /// What it was, and what was done about it.
        what: String,
    },
    /// A peer has many of the routes that it may have, or more.
    ManyRoutes {
        /// The peer.
        peer: PeerId,
        /// How many it has here.
        held: usize,
        /// How many it may have.
        limit: u32,
        /// True if it announced more.
        over: bool,
    },
    /// A client announces routes of another host's; they are not taken. Told once for each time that
    /// there is one after there was none.
    ForeignRoutes {
        /// The client.
        peer: PeerId,
        /// The route, and what makes it another's.
        what: String,
    },
    /// Two peers have one router id: routes of one may be taken for the other's.
    SameRouterId {
        /// The one that came now.
        peer: PeerId,
        /// The one that was there.
        other: PeerId,
        /// What both have.
        router_id: Ipv4Addr,
    },
    /// A local MAC was taken over by another VTEP, or came back.
    Mobility {
        /// The instance.
        vni: Vni,
        /// The broadcast domain.
        tag: Tag,
        /// The MAC.
        mac: MacAddr,
        /// True if this host announces it (again).
        here: bool,
    },
    /// A MAC moved so often that it must be two (RFC 7432 §15.1). Told once in each
    /// [`crate::DuplicatePolicy::window`].
    DuplicateMac {
        /// The instance.
        vni: Vni,
        /// The broadcast domain.
        tag: Tag,
        /// The MAC.
        mac: MacAddr,
        /// VTEPs between which it moves.
        vteps: Vec<IpAddr>,
        /// How often.
        moves: u32,
        /// True if nothing about it is sent or taken in any more.
        frozen: bool,
    },
    /// An address went from one MAC to another so often that it must be two (RFC 9161 §3.7).
    DuplicateIp {
        /// The instance.
        vni: Vni,
        /// The broadcast domain.
        tag: Tag,
        /// The address.
        ip: IpAddr,
        /// MACs between which it goes.
        macs: Vec<MacAddr>,
        /// How often.
        moves: u32,
        /// True if nothing about it is sent or taken in any more.
        frozen: bool,
    },
    /// A frozen MAC or address is as any other again.
    DuplicateCleared {
        /// The instance.
        vni: Vni,
        /// The broadcast domain.
        tag: Tag,
        /// The MAC or address.
        what: String,
    },
    /// A static MAC is claimed by another VTEP, in vain (RFC 7432 §15.2). Told once of each VTEP.
    StickyMac {
        /// The instance.
        vni: Vni,
        /// The broadcast domain.
        tag: Tag,
        /// The MAC.
        mac: MacAddr,
        /// The VTEP that keeps it.
        holder: IpAddr,
        /// Those that claim it.
        challengers: Vec<IpAddr>,
        /// True if a challenger's claim is static too.
        both: bool,
    },
    /// An instance comes near its [`crate::MacLimit`], is over it, or is well below again.
    MacLimit {
        /// The instance.
        vni: Vni,
        /// How full it is.
        level: crate::MacLevel,
        /// MACs that have no row.
        waiting: usize,
        /// The bound.
        max: u32,
    },
    /// Another host announces this host's VTEP address as its own.
    DuplicateVtep {
        /// The address.
        address: IpAddr,
        /// The other host.
        router_id: Ipv4Addr,
        /// Whom it was heard from.
        peer: PeerId,
    },
    /// Another host uses this host's router id.
    DuplicateRouterId {
        /// The router id.
        router_id: Ipv4Addr,
        /// VTEP address of the other host.
        vtep: IpAddr,
        /// Whom it was heard from.
        peer: PeerId,
    },
}

/// A connection that was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The address is none of the peers'.
    #[error("{0} is not a configured BGP peer: add the host, or see who connects from there")]
    NotAPeer(PeerId),
    /// It announced more routes than it may.
    #[error("{0} announced more routes than it may and has to wait")]
    HeldOff(PeerId),
    /// The speaker was stopped.
    #[error("the BGP speaker is stopping")]
    Stopped,
}

/// A peer that cannot be asked to tell everything again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CannotRefresh {
    /// The address is none of the peers'.
    #[error("{0} is not a configured BGP peer: see `vpc evpn peers`")]
    NotAPeer(PeerId),
    /// There is no session.
    #[error("there is no BGP session with {0}: it tells everything when there is one")]
    NotUp(PeerId),
    /// The peer does not do it (RFC 2918).
    #[error("{0} has not the route refresh capability: reset the session instead")]
    NotAble(PeerId),
}

/// A configuration that no speaker can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadConfig {
    /// RFC 6286 §2.1.
    #[error(
        "BGP router id 0.0.0.0 is reserved: give the host's IPv4 underlay address or any other number unique in the fabric"
    )]
    ZeroRouterId,
    /// RFC 4271 §4.2.
    #[error("BGP hold time {0:?} is out of range: 3 to 65535 s")]
    HoldTime(Duration),
}

/// How to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopKind {
    /// To be back soon: connections close without NOTIFICATION, and peers keep our routes for
    /// the restart time.
    Restart,
    /// For good: all routes are withdrawn, and sessions end with Hard Reset (RFC 8538 §3), or
    /// Administrative Shutdown where the peer does not know it.
    Withdraw,
}

impl Speaker {
    /// A speaker without peers and routes.
    pub fn new(now: Instant, config: Config) -> Result<Self, BadConfig> {
        if config.router_id.is_unspecified() {
            return Err(BadConfig::ZeroRouterId);
        }
        let hold = config.timing.hold_time;
        if !(3..=65535).contains(&hold.as_secs()) {
            return Err(BadConfig::HoldTime(hold));
        }
        Ok(Self {
            peers: BTreeMap::new(),
            conns: BTreeMap::new(),
            rib: Rib::default(),
            vrfs: Vrfs::new(config.asn, config.router_id, config.policy),
            clashes: Clashes::default(),
            local: None,
            members: Members::new(),
            announced: BTreeMap::new(),
            announced_prefixes: BTreeMap::new(),
            actions: VecDeque::new(),
            last_words: VecDeque::new(),
            ready: BTreeSet::new(),
            last_served: None,
            known_attrs: KnownAttrs::default(),
            groups: BTreeMap::new(),
            alone: BTreeSet::new(),
            ready_groups: BTreeSet::new(),
            next_group: 1,
            membership_due: false,
            deferral_until: Some(now + config.timing.deferral),
            stopped: false,
            clock: now,
            next_conn: 1,
            random: config.seed,
            config,
        })
    }

    // The network happened.

    /// A TCP connection came in. Nothing is to be said on a refused one.
    pub fn handle_accepted(&mut self, now: Instant, from: PeerId) -> Result<ConnId, Refused> {
        if self.stopped {
            return Err(Refused::Stopped);
        }
        let peer = self.peers.get_mut(&from);
        let Some(peer) = peer.filter(|peer| peer.retiring.is_none()) else {
            return Err(Refused::NotAPeer(from));
        };
        self.clock = now;
        if peer.held_off_until.is_some_and(|until| until > now) {
            return Err(Refused::HeldOff(from));
        }
        // One half-open connection is enough: the peer started over.
        if let Some(old) = peer.pending(Side::Theirs) {
            self.close_link(from, old);
        }
        let conn = self.new_link(from, Side::Theirs);
        self.drive(now, conn, fsm::Event::ManualStart);
        self.drive(now, conn, fsm::Event::TcpConnectionAcknowledged);
        Ok(conn)
    }

    /// A connection of a peer was refused before anything was said on it. It is told as the peer's
    /// last trouble, unless there is a session.
    pub fn handle_refused(&mut self, now: Instant, from: PeerId, lost: Lost) {
        self.clock = now;
        if self.peers.get(&from).is_some_and(|p| p.session.is_none()) {
            let (by, heard) = (lost.by, false);
            self.note_trouble(from, Trouble::Lost { by, heard }, lost.text);
        }
    }

    /// A connection that [`Action::Connect`] asked for is there. False: it is not wanted any
    /// more and should be dropped.
    #[must_use]
    pub fn handle_connected(&mut self, now: Instant, conn: ConnId) -> bool {
        let Some(link) = self.link_mut(conn) else {
            return false;
        };
        link.connected = true;
        self.clock = now;
        self.drive(now, conn, fsm::Event::ManualStart);
        self.drive(now, conn, fsm::Event::TcpConnectionConfirmed);
        true
    }

    /// Bytes came in. Whatever they are, no other peer's session suffers.
    pub fn handle_bytes(&mut self, now: Instant, conn: ConnId, bytes: &[u8]) {
        let Some(link) = self.link_mut(conn) else {
            return;
        };
        link.receive(bytes);
        self.clock = now;
        while let Some(link) = self.link_mut(conn) {
            match link.next_message() {
                Ok(None) => break,
                Ok(Some(message)) => self.on_message(now, conn, message),
                Err(error) => self.drive(now, conn, fsm::Event::DecodeError(error)),
            }
        }
        self.settle(now);
    }

    /// A connection broke, was closed by the peer, or could not be made.
    pub fn handle_disconnected(&mut self, now: Instant, conn: ConnId, lost: impl Into<Lost>) {
        self.clock = now;
        self.on_disconnected(now, conn, lost.into());
        self.settle(now);
    }

    /// The transport has room for more of a connection, or for now has enough. A connection
    /// starts with room.
    pub fn handle_writable(&mut self, conn: ConnId, writable: bool) {
        let Some(peer) = self.conns.get(&conn).copied() else {
            return;
        };
        if let Some(link) = self.link_mut(conn) {
            link.writable = writable;
        }
        if writable {
            self.ready.insert(peer);
        }
    }

    /// The transport gave something to the peer's TCP, or got something to give; `waiting` if it
    /// still has some. From a transport that never tells, nothing is expected.
    pub fn handle_progress(&mut self, now: Instant, conn: ConnId, waiting: bool) {
        if let Some(link) = self.link_mut(conn) {
            link.waiting_since = waiting.then_some(now);
        }
    }

    /// Of what [`Self::handle_timeout`] does only what says that this speaker lives: for a caller that is
    /// behind, and has yet to hear what peers said in time before it holds their silence against them.
    pub fn handle_keepalives(&mut self, now: Instant) {
        let peers: Vec<PeerId> = self.peers.keys().copied().collect();
        for peer in peers {
            self.on_keepalive_timers(now, peer);
        }
    }

    /// The instant of [`Self::poll_timeout`] has come. Harmless at any other time.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.clock = now;
        let peers: Vec<PeerId> = self.peers.keys().copied().collect();
        for peer in peers {
            self.on_link_timers(now, peer);
            self.on_peer_timers(now, peer);
        }
        self.settle(now);
    }

    // Commands.

    /// What is behind this host, all of it. The difference to before is announced and withdrawn.
    /// The first call lets End-of-RIB go out: make it when everything local is known.
    pub fn set_local(&mut self, now: Instant, state: LocalState) -> Result<(), BadLocalState> {
        local::check(&state)?;
        self.clock = now;
        let changed = local::changed(self.local.as_ref(), &state);
        let remote = self
            .rib
            .best_after(None)
            .filter(|(_, source, _)| *source != Source::Local)
            .map(|(key, _, path)| (key, path));
        let moved = self.vrfs.vtep != Some(state.vtep);
        self.vrfs.set_local(now, &state, &changed, remote);
        if let Some(me) = self.me().filter(|_| moved) {
            self.clashes.rebuild(me, self.rib.best_after(None));
        }
        let first = self.local.replace(state).is_none();
        if first {
            self.ready.extend(self.peers.keys());
        }
        self.membership_due = true;
        self.sync_announcements(now, changed);
        self.sync_prefixes(now);
        self.settle(now);
        Ok(())
    }

    /// The peers, all of them. Sessions of those that go end at once and their routes with them;
    /// those that stay as they are notice nothing. On a VTEP the session to a reflector that goes
    /// stays, unseen, and what it tells is of use, until those that remain took over: all that can
    /// be reached sent End-of-RIB, and [`crate::Timing::handover`] passed since. If that does not
    /// come about, or none remains, it stays for [`crate::Timing::reflector_retain`].
    pub fn set_peers(&mut self, now: Instant, peers: BTreeMap<PeerId, PeerConfig>) {
        self.clock = now;
        let role = |id: &PeerId| peers.get(id).map(|config| config.role);
        let (mut ended, mut leaving) = (vec![], vec![]);
        for (id, peer) in self.configured() {
            match role(id) {
                Some(role) if role == peer.config.role => {}
                None if self.can_retire(peer) => leaving.push(*id),
                _ => ended.push(*id),
            }
        }
        // One that comes back as something else.
        let other = |(id, peer): &(&PeerId, &Peer)| {
            peer.retiring.is_some() && role(id).is_some_and(|role| role != peer.config.role)
        };
        ended.extend(self.peers.iter().filter(other).map(|(id, _)| *id));
        for id in ended {
            self.end_peer(now, id);
        }
        for id in &leaving {
            let peer = self.peers.get_mut(id).expect("it is leaving");
            peer.retiring = Some(now + self.config.timing.reflector_retain);
        }
        for (id, config) in peers {
            self.configure(now, id, config);
        }
        for id in leaving {
            self.retire(now, id);
        }
        self.settle(now);
    }

    /// Who else has something in this host's broadcast domains, by the latest word of who plans it. It
    /// makes no row and no claim; it decides for how long is kept what is taken back by a reflector
    /// that does so as soon as a VTEP's process dies ([`crate::Timing::member_hold`]). Of one that is no
    /// member any more nothing that was taken back is kept. Nobody is a member before the first call.
    pub fn set_members(&mut self, now: Instant, members: Members) {
        self.clock = now;
        self.take_members(members);
        self.settle(now);
    }

    /// Ends a peer's connections without a word, because how to reach it has changed (another
    /// key or port, say). Its routes are kept as for a restart, and the session is made anew.
    pub fn reset_peer(&mut self, now: Instant, id: PeerId, reason: &str) {
        self.clock = now;
        let Some(peer) = self.peers.get(&id) else {
            return;
        };
        let conns: Vec<ConnId> = peer.links.keys().copied().collect();
        for conn in conns {
            self.lose_link(now, id, conn, Down::Transport, reason);
        }
        if let Some(peer) = self.peers.get_mut(&id)
            && peer.config.connect == ConnectMode::Active
        {
            peer.retry_at = Some(now);
        }
        self.settle(now);
    }

    /// Asks a peer to tell everything again (RFC 2918). If both know how (RFC 7313), what it leaves
    /// out goes when it is done. Nothing goes before.
    pub fn refresh(&mut self, now: Instant, id: PeerId) -> Result<(), CannotRefresh> {
        self.clock = now;
        let peer = self.peers.get(&id).filter(|peer| peer.retiring.is_none());
        let peer = peer.ok_or(CannotRefresh::NotAPeer(id))?;
        let session = peer.session.as_ref().ok_or(CannotRefresh::NotUp(id))?;
        if !session.refresh {
            return Err(CannotRefresh::NotAble(id));
        }
        self.ask_again(id);
        Ok(())
    }

    /// Gives a MAC that was found to be a duplicate another chance; false if it was not frozen.
    pub fn clear_duplicate(&mut self, now: Instant, vni: Vni, tag: Tag, mac: MacAddr) -> bool {
        self.thaw(now, Frozen::Mac((vni, tag, mac)))
    }

    /// The same for an address.
    pub fn clear_duplicate_ip(&mut self, now: Instant, vni: Vni, tag: Tag, ip: IpAddr) -> bool {
        self.thaw(now, Frozen::Ip((vni, tag, ip)))
    }

    /// Ends all sessions. The speaker is done after it; what it learned can still be read.
    pub fn stop(&mut self, now: Instant, kind: StopKind) {
        self.stop_saying(now, kind, "");
    }

    /// The same, and lets those at the other end know why, in up to 128 octets of text (RFC 9003).
    /// Nothing is said with [`StopKind::Restart`].
    pub fn stop_saying(&mut self, now: Instant, kind: StopKind, text: &str) {
        self.clock = now;
        self.stopped = true;
        if kind == StopKind::Withdraw {
            let own = std::mem::take(&mut self.announced);
            let prefixes = std::mem::take(&mut self.announced_prefixes);
            for key in own.values().chain([&prefixes]).flat_map(BTreeMap::keys) {
                let change = self.rib.remove(key, Source::Local);
                self.on_change(key, change);
            }
        }
        let peers: Vec<PeerId> = self.peers.keys().copied().collect();
        for peer in peers {
            self.stop_peer(now, peer, kind, text);
        }
    }

    // What to carry out.

    /// The next bytes to send. Ask until there are none before asking [`Self::poll_action`].
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        if let Some(last) = self.last_words.pop_front() {
            return Some(last);
        }
        self.serve_groups();
        // In turn, so that one peer's long table does not hold up another's keepalive.
        let after = |last: Option<PeerId>| (last.map_or(Unbounded, Excluded), Unbounded);
        while let Some(id) = self
            .ready
            .range(after(self.last_served))
            .chain(&self.ready)
            .next()
            .copied()
        {
            self.last_served = Some(id);
            if let Some((conn, bytes)) = self.next_for(id) {
                return Some(Transmit {
                    conn,
                    peer: id,
                    bytes,
                });
            }
            self.ready.remove(&id);
        }
        None
    }

    /// The next thing to do beside sending.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When to call [`Self::handle_timeout`].
    pub fn poll_timeout(&self) -> Option<Instant> {
        let send_hold_time = self.config.timing.send_hold_time;
        let peers = self.peers.values();
        let peers = peers.filter_map(|peer| peer.next_deadline(send_hold_time));
        let deferral = self.deferral_until.filter(|_| self.knows_instances());
        let members = self.waits_for_members_until();
        let members = members.filter(|at| *at > self.clock);
        let retired = self.retired_deadline();
        let thaw = self.vrfs.next_deadline();
        let own = [deferral, members, retired, thaw].into_iter().flatten();
        peers.chain(own).min()
    }

    // Getters.

    /// What was learned, as rows.
    pub fn forwarding(&self) -> &Forwarding {
        self.vrfs.rows()
    }

    /// Grows whenever [`Self::forwarding`] changes.
    pub fn forwarding_version(&self) -> u64 {
        self.vrfs.version()
    }

    /// Who this speaker is.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Every path to every route.
    pub fn routes(&self, now: Instant) -> Vec<RouteInfo> {
        let info = |(key, source, path, lost): (&RouteKey, Source, &Path, Option<&'static str>)| {
            RouteInfo {
                route: key.to_string(),
                rd: key.rd(),
                targets: path.attrs.targets.clone(),
                sequence: path.attrs.sequence,
                sticky: path.attrs.sticky,
                label: path
                    .rest
                    .label(key)
                    .or(path.attrs.replication.map(|(label, _)| label)),
                routed: path.rest.routed_label(key),
                next_hop: path.attrs.next_hop,
                router_mac: path.attrs.router_mac,
                from: match source {
                    Source::Local => None,
                    Source::Peer(peer) => Some(peer),
                },
                best: lost.is_none(),
                lost_by: lost,
                stale: path.stale,
                long_lived_stale: path.is_last_resort(),
                age: now.saturating_duration_since(path.since),
            }
        };
        self.rib.all().map(info).collect()
    }

    /// Every peer.
    pub fn peers(&self, now: Instant) -> Vec<PeerInfo> {
        let mut by_router_id: BTreeMap<Ipv4Addr, Vec<PeerId>> = BTreeMap::new();
        for (id, peer) in self.configured() {
            if let Some(session) = &peer.session {
                by_router_id.entry(session.router_id).or_default().push(*id);
            }
        }
        let namesake = |peer: &Peer, id: PeerId| {
            let same = by_router_id.get(&peer.session.as_ref()?.router_id)?;
            same.iter().find(|other| **other != id).copied()
        };
        let info = |(id, peer): (&PeerId, &Peer)| {
            let (routes, stale) = self.rib.count_of(*id);
            PeerInfo {
                peer: *id,
                role: peer.config.role,
                state: peer.state(),
                since: now.saturating_duration_since(peer.since),
                router_id: peer.router_id,
                asn: peer.asn,
                hold_time: peer.session.as_ref().map(|session| session.hold_time),
                routes,
                stale,
                synced: peer.is_synced(),
                counters: peer.counters,
                last_error: peer.last_error.clone(),
                advice: advise(now, &self.config, *id, peer, namesake(peer, *id)),
            }
        };
        self.configured().map(info).collect()
    }

    /// The last noteworthy messages to and from a peer, oldest first; none if it is no peer.
    pub fn history(&self, now: Instant, id: PeerId) -> Option<Vec<HistoryEntry>> {
        let peer = self.peers.get(&id)?;
        Some(peer.history.entries(now))
    }

    // Details.

    /// Another peer with the same router id, if there is one.
    pub(crate) fn namesake(&self, id: PeerId) -> Option<PeerId> {
        let ours = self.peers.get(&id)?.session.as_ref()?.router_id;
        let same = |(other, peer): &(&PeerId, &Peer)| {
            **other != id && peer.session.as_ref().is_some_and(|s| s.router_id == ours)
        };
        self.configured().find(same).map(|(other, _)| *other)
    }

    /// Peers that are on the list, in contrast to those that are retiring.
    pub(crate) fn configured(&self) -> impl Iterator<Item = (&PeerId, &Peer)> {
        let peers = self.peers.iter();
        peers.filter(|(_, peer)| peer.retiring.is_none())
    }

    pub(crate) fn cluster(&self) -> Ipv4Addr {
        self.config.cluster_id.unwrap_or(self.config.router_id)
    }

    pub(crate) fn restart_flags(&self) -> Restart {
        Restart {
            restarting: self.deferral_until.is_some(),
            forwarding_preserved: self.config.forwarding_preserved,
            long_lived: self.config.timing.long_lived,
        }
    }

    /// Who this host is as a VTEP, once it is known.
    pub(crate) fn me(&self) -> Option<Me> {
        let router_id = self.config.router_id;
        self.vrfs.vtep.map(|vtep| Me { vtep, router_id })
    }

    fn thaw(&mut self, now: Instant, frozen: Frozen) -> bool {
        self.clock = now;
        let event = self.vrfs.thaw(now, frozen);
        let was_frozen = event.is_some();
        event.into_iter().for_each(|event| self.report(event));
        self.settle(now);
        was_frozen
    }

    /// Looks at what happened to MACs and addresses, and at who passes for this host.
    pub(crate) fn judge(&mut self, now: Instant) {
        for event in self.vrfs.judge(now) {
            self.report(event);
        }
        let own = self.config.router_id;
        for clash in self.clashes.take_fresh(now) {
            self.report(match clash {
                Clash::Vtep { router_id, peer } => Event::DuplicateVtep {
                    address: self.vrfs.vtep.unwrap_or(own.into()),
                    router_id,
                    peer,
                },
                Clash::RouterId { vtep, peer } => Event::DuplicateRouterId {
                    router_id: own,
                    vtep,
                    peer,
                },
            });
        }
    }

    pub(crate) fn report(&mut self, event: Event) {
        self.actions.push_back(Action::Report(event));
    }

    pub(crate) fn link_mut(&mut self, conn: ConnId) -> Option<&mut Link> {
        let peer = self.conns.get(&conn)?;
        self.peers.get_mut(peer)?.links.get_mut(&conn)
    }

    pub(crate) fn new_link(&mut self, id: PeerId, side: Side) -> ConnId {
        let conn = ConnId(self.next_conn);
        self.next_conn += 1;
        let link = Link::new(side, session_config(&self.config));
        self.conns.insert(conn, id);
        let peer = self.peers.get_mut(&id).expect("links are made for peers");
        peer.links.insert(conn, link);
        conn
    }

    /// Forgets a connection and has it closed.
    pub(crate) fn close_link(&mut self, id: PeerId, conn: ConnId) {
        // What is queued must still go out, a NOTIFICATION above all.
        self.conns.remove(&conn);
        if let Some(peer) = self.peers.get_mut(&id)
            && let Some(link) = peer.links.get_mut(&conn)
        {
            // But no routes after it.
            link.writable = false;
            while let Some(bytes) = peer.take_queued(self.clock, conn) {
                self.last_words.push_back(Transmit {
                    conn,
                    peer: id,
                    bytes,
                });
            }
            peer.links.remove(&conn);
            self.actions.push_back(Action::Close { conn, peer: id });
        }
    }

    /// A number that differs per call and seed (splitmix64).
    pub(crate) fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}
