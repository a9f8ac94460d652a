//! A network of speakers in memory: virtual clock, links that can be cut, and for each host a
//! kernel that takes rows as an agent would: none is removed before they are complete.

#![allow(dead_code, reason = "each test binary uses its own part")]

pub(crate) mod fake;

use bytes::Bytes;
use evpn::{
    Action, Config, ConnId, Event, LocalEvi, LocalState, PeerConfig, Role, Speaker, StopKind,
    Timing,
};
use model::{Asn, Encoding, EviForwarding, IpVrfForwarding, MacAddr, Tag, Vni};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

/// One way across the underlay.
const LATENCY: Duration = Duration::from_millis(1);
/// What the transport gives a connection attempt.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

pub(crate) struct Net {
    pub(crate) start: Instant,
    pub(crate) now: Instant,
    pub(crate) nodes: BTreeMap<IpAddr, Node>,
    names: BTreeMap<String, IpAddr>,
    /// In order of time, then of making.
    flying: BTreeMap<(Instant, u64), Packet>,
    sent: u64,
    /// The other end of a connection.
    pipes: BTreeMap<(IpAddr, ConnId), (IpAddr, ConnId)>,
    cut: BTreeSet<(IpAddr, IpAddr)>,
    /// If set, what is sent on a connection takes up to so much longer, each time anew; and the
    /// state of the generator.
    pub(crate) jitter: Option<(Duration, u64)>,
    /// When the last packet from one to the other lands: TCP keeps the order.
    latest: BTreeMap<(IpAddr, IpAddr), Instant>,
    /// What TCP will send again once a cable is mended.
    waiting: Vec<(IpAddr, Packet)>,
    pub(crate) log: String,
}

pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) config: Config,
    pub(crate) peers: BTreeMap<IpAddr, PeerConfig>,
    pub(crate) local: Option<LocalState>,
    pub(crate) speaker: Option<Speaker>,
    /// Rows in the host's kernel. They outlive the speaker.
    pub(crate) kernel: BTreeSet<String>,
    /// Every row that ever went.
    pub(crate) removed: Vec<String>,
    version: u64,
    pub(crate) bytes_out: Vec<Bytes>,
}

enum Packet {
    Syn {
        from: (IpAddr, ConnId),
        to: IpAddr,
    },
    SynAck {
        to: (IpAddr, ConnId),
    },
    Data {
        to: (IpAddr, ConnId),
        bytes: Bytes,
    },
    Fin {
        to: (IpAddr, ConnId),
        reason: &'static str,
    },
}

impl Packet {
    fn to(&self) -> Option<(IpAddr, ConnId)> {
        match self {
            Self::Syn { .. } => None,
            Self::SynAck { to } | Self::Data { to, .. } | Self::Fin { to, .. } => Some(*to),
        }
    }
}

pub(crate) fn vni(raw: u32) -> Vni {
    Vni::new(raw).unwrap()
}

pub(crate) fn config(address: IpAddr, role: Role) -> Config {
    let router_id = evpn::router_id_of(address);
    Config {
        router_id,
        asn: Asn::new(65000).unwrap(),
        role,
        cluster_id: None,
        forwarding_preserved: true,
        timing: Timing::default(),
        policy: evpn::Policy::default(),
        seed: u64::from(u32::from(router_id)),
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "an Instant has no other beginning; all later ones are computed"
)]
pub(crate) fn any_instant() -> Instant {
    Instant::now()
}

impl Net {
    pub(crate) fn new() -> Self {
        let start = any_instant();
        Self {
            start,
            now: start,
            nodes: BTreeMap::new(),
            names: BTreeMap::new(),
            flying: BTreeMap::new(),
            sent: 0,
            pipes: BTreeMap::new(),
            cut: BTreeSet::new(),
            jitter: None,
            latest: BTreeMap::new(),
            waiting: vec![],
            log: String::new(),
        }
    }

    pub(crate) fn add(&mut self, name: &str, address: &str, role: Role) -> IpAddr {
        let address: IpAddr = address.parse().unwrap();
        let node = Node {
            name: name.to_owned(),
            config: config(address, role),
            peers: BTreeMap::new(),
            local: role.is_vtep().then(|| LocalState::empty(address)),
            speaker: None,
            kernel: BTreeSet::new(),
            removed: vec![],
            version: 0,
            bytes_out: vec![],
        };
        self.nodes.insert(address, node);
        self.names.insert(name.to_owned(), address);
        address
    }

    pub(crate) fn id(&self, name: &str) -> IpAddr {
        *self
            .names
            .get(name)
            .unwrap_or_else(|| panic!("no host {name}"))
    }

    pub(crate) fn node(&mut self, name: &str) -> &mut Node {
        let id = self.id(name);
        self.nodes.get_mut(&id).unwrap()
    }

    pub(crate) fn speaker(&mut self, name: &str) -> &mut Speaker {
        self.node(name).speaker.as_mut().expect("it runs")
    }

    /// Makes `client` connect to `reflector`.
    pub(crate) fn peer(&mut self, client: &str, reflector: &str) {
        let (c, r) = (self.id(client), self.id(reflector));
        self.node(client).peers.insert(r, PeerConfig::REFLECTOR);
        self.node(reflector).peers.insert(c, PeerConfig::CLIENT);
        self.push_peers(client);
        self.push_peers(reflector);
    }

    pub(crate) fn push_peers(&mut self, name: &str) {
        let now = self.now;
        let node = self.node(name);
        let peers = node.peers.clone();
        if let Some(speaker) = &mut node.speaker {
            speaker.set_peers(now, peers);
        }
    }

    pub(crate) fn start(&mut self, name: &str) {
        let now = self.now;
        let node = self.node(name);
        let mut speaker = Speaker::new(now, node.config.clone()).unwrap();
        if let Some(local) = &node.local {
            speaker.set_local(now, local.clone()).unwrap();
        }
        speaker.set_peers(now, node.peers.clone());
        node.speaker = Some(speaker);
        node.version = 0;
    }

    /// The process dies; its kernel closes the connections.
    pub(crate) fn kill(&mut self, name: &str) {
        let id = self.id(name);
        self.node(name).speaker = None;
        self.close_all(id, "reset by peer");
    }

    /// The host dies: nothing more is heard of it, and what is sent there is lost.
    pub(crate) fn crash(&mut self, name: &str) {
        let id = self.id(name);
        self.node(name).speaker = None;
        self.pipes.retain(|from, to| from.0 != id && to.0 != id);
    }

    pub(crate) fn stop(&mut self, name: &str, kind: StopKind) {
        let now = self.now;
        self.speaker(name).stop(now, kind);
        self.carry_out();
        self.node(name).speaker = None;
    }

    fn close_all(&mut self, id: IpAddr, reason: &'static str) {
        let pipes: Vec<_> = self.pipes.keys().filter(|p| p.0 == id).copied().collect();
        for pipe in pipes {
            if let Some(to) = self.pipes.remove(&pipe) {
                self.fly_from(id, Packet::Fin { to, reason });
            }
        }
    }

    /// Nothing gets from one to the other from now on.
    pub(crate) fn cut(&mut self, a: &str, b: &str) {
        let (a, b) = (self.id(a), self.id(b));
        self.cut.extend([(a, b), (b, a)]);
    }

    pub(crate) fn mend(&mut self, a: &str, b: &str) {
        let (a, b) = (self.id(a), self.id(b));
        self.cut.remove(&(a, b));
        self.cut.remove(&(b, a));
        let cut = &self.cut;
        let between = |from: IpAddr, packet: &Packet| match packet.to() {
            Some(to) => cut.contains(&(from, to.0)),
            None => false,
        };
        let waiting = std::mem::take(&mut self.waiting);
        let (still, free): (Vec<_>, Vec<_>) = waiting
            .into_iter()
            .partition(|(from, packet)| between(*from, packet));
        self.waiting = still;
        for (_, packet) in free {
            self.fly(packet);
        }
    }

    pub(crate) fn evi(&mut self, name: &str, raw: u32, rd_index: u16, encoding: Encoding) {
        let local = self.node(name).local.as_mut().expect("a VTEP");
        let mut evi = LocalEvi::new(encoding, rd_index);
        if encoding == Encoding::VlanBased {
            evi.domains.insert(None);
        }
        local.evis.insert(vni(raw), evi);
        self.push_local(name);
    }

    pub(crate) fn mac(&mut self, name: &str, raw: u32, tag: Tag, mac: &str, addresses: &[&str]) {
        let local = self.node(name).local.as_mut().expect("a VTEP");
        let evi = local.evis.get_mut(&vni(raw)).expect("the EVI is there");
        evi.domains.insert(tag);
        let held = evi.macs.entry((tag, mac.parse().unwrap())).or_default();
        held.addresses = addresses.iter().map(|a| a.parse().unwrap()).collect();
        self.push_local(name);
    }

    pub(crate) fn unmac(&mut self, name: &str, raw: u32, tag: Tag, mac: &str) {
        let local = self.node(name).local.as_mut().expect("a VTEP");
        let evi = local.evis.get_mut(&vni(raw)).expect("the EVI is there");
        evi.macs.remove(&(tag, mac.parse().unwrap()));
        self.push_local(name);
    }

    pub(crate) fn push_local(&mut self, name: &str) {
        let now = self.now;
        let node = self.node(name);
        if let (Some(speaker), Some(local)) = (&mut node.speaker, &node.local) {
            speaker.set_local(now, local.clone()).unwrap();
        }
    }

    /// Lets the time pass.
    pub(crate) fn run(&mut self, time: Duration) {
        let until = self.now + time;
        loop {
            self.carry_out();
            let packet = self.flying.keys().next().map(|(at, _)| *at);
            let timers = self
                .nodes
                .values()
                .filter_map(|node| node.speaker.as_ref()?.poll_timeout());
            let Some(next) = timers.chain(packet).min().filter(|at| *at <= until) else {
                break;
            };
            self.now = self.now.max(next);
            let now = self.now;
            while let Some(((at, _), _)) = self.flying.first_key_value()
                && *at <= now
            {
                let (_, packet) = self.flying.pop_first().unwrap();
                self.land(packet);
                self.carry_out();
            }
            for node in self.nodes.values_mut() {
                if let Some(speaker) = &mut node.speaker
                    && speaker.poll_timeout().is_some_and(|at| at <= now)
                {
                    speaker.handle_timeout(now);
                }
            }
        }
        self.now = until;
    }

    /// Sends on a connection: what a cut cable stops is sent again later.
    fn fly_from(&mut self, from: IpAddr, packet: Packet) {
        let to = packet.to().map(|to| to.0);
        if to.is_some_and(|to| self.cut.contains(&(from, to))) {
            self.waiting.push((from, packet));
        } else if let (Some(to), Some((most, state))) = (to, &mut self.jitter) {
            // xorshift
            *state ^= *state << 13;
            *state ^= *state >> 7;
            *state ^= *state << 17;
            let late = Duration::from_micros(*state % (most.as_micros() as u64 + 1));
            let last = self.latest.entry((from, to)).or_insert(self.now);
            *last = (*last).max(self.now + LATENCY + late);
            let time = *last - self.now;
            self.fly_after(time, packet);
        } else {
            self.fly(packet);
        }
    }

    fn fly(&mut self, packet: Packet) {
        self.fly_after(LATENCY, packet);
    }

    fn fly_after(&mut self, time: Duration, packet: Packet) {
        self.sent += 1;
        self.flying.insert((self.now + time, self.sent), packet);
    }

    fn land(&mut self, packet: Packet) {
        let now = self.now;
        match packet {
            Packet::Syn { from, to } => {
                if self.cut.contains(&(from.0, to)) {
                    let (to, reason) = (from, "timed out");
                    self.fly_after(CONNECT_TIMEOUT, Packet::Fin { to, reason });
                    return;
                }
                let node = self.nodes.get_mut(&to);
                let speaker = node.and_then(|node| node.speaker.as_mut());
                match speaker.map(|speaker| speaker.handle_accepted(now, from.0)) {
                    Some(Ok(conn)) => {
                        self.pipes.insert(from, (to, conn));
                        self.pipes.insert((to, conn), from);
                        self.fly(Packet::SynAck { to: from });
                    }
                    _ => self.fly(Packet::Fin {
                        to: from,
                        reason: "connection refused",
                    }),
                }
            }
            Packet::SynAck { to } => {
                if let Some(speaker) = self.alive(to)
                    && !speaker.handle_connected(now, to.1)
                {
                    self.drop_pipe(to);
                }
            }
            Packet::Data { to, bytes } => {
                if let Some(speaker) = self.alive(to) {
                    speaker.handle_bytes(now, to.1, &bytes);
                }
            }
            Packet::Fin { to, reason } => {
                self.pipes.remove(&to);
                if let Some(speaker) = self.nodes.get_mut(&to.0).unwrap().speaker.as_mut() {
                    speaker.handle_disconnected(now, to.1, reason);
                }
            }
        }
    }

    fn alive(&mut self, to: (IpAddr, ConnId)) -> Option<&mut Speaker> {
        self.pipes.get(&to)?;
        self.nodes.get_mut(&to.0)?.speaker.as_mut()
    }

    fn drop_pipe(&mut self, from: (IpAddr, ConnId)) {
        if let Some(to) = self.pipes.remove(&from) {
            let reason = "closed by peer";
            self.fly_from(from.0, Packet::Fin { to, reason });
        }
    }

    fn carry_out(&mut self) {
        let ids: Vec<IpAddr> = self.nodes.keys().copied().collect();
        for id in ids {
            self.carry_out_of(id);
            self.update_kernel(id);
        }
    }

    fn carry_out_of(&mut self, id: IpAddr) {
        loop {
            let Some(speaker) = &mut self.nodes.get_mut(&id).unwrap().speaker else {
                return;
            };
            if let Some(transmit) = speaker.poll_transmit() {
                let node = self.nodes.get_mut(&id).unwrap();
                node.bytes_out.push(transmit.bytes.clone());
                let from = (id, transmit.conn);
                if let Some(to) = self.pipes.get(&from).copied() {
                    let bytes = transmit.bytes;
                    self.fly_from(id, Packet::Data { to, bytes });
                }
                continue;
            }
            match speaker.poll_action() {
                None => return,
                Some(Action::Connect { conn, peer }) => self.fly(Packet::Syn {
                    from: (id, conn),
                    to: peer,
                }),
                Some(Action::Close { conn, .. }) => self.drop_pipe((id, conn)),
                Some(Action::Report(event)) => self.note(id, &event),
            }
        }
    }

    /// What an agent does: adds what is new, and once rows are complete removes what is not
    /// among them.
    fn update_kernel(&mut self, id: IpAddr) {
        let node = self.nodes.get_mut(&id).unwrap();
        let Some(speaker) = &node.speaker else {
            return;
        };
        if speaker.forwarding_version() == node.version {
            return;
        }
        node.version = speaker.forwarding_version();
        let rows = speaker.forwarding();
        let wanted: BTreeSet<String> = rows
            .evis
            .iter()
            .flat_map(|(vni, evi)| rows_of(*vni, evi))
            .chain(
                rows.ip_vrfs
                    .iter()
                    .flat_map(|(vni, vrf)| prefix_rows_of(*vni, vrf)),
            )
            .collect();
        let mut changes: Vec<String> = vec![];
        for row in wanted.difference(&node.kernel) {
            changes.push(format!("+ {row}"));
        }
        if rows.complete {
            for row in node.kernel.difference(&wanted) {
                changes.push(format!("- {row}"));
                node.removed.push(row.clone());
            }
            node.kernel = wanted;
        } else {
            node.kernel.extend(wanted);
        }
        for change in changes {
            self.line(id, &change);
        }
    }

    fn line(&mut self, id: IpAddr, text: &str) {
        let at = (self.now - self.start).as_millis();
        let name = &self.nodes[&id].name;
        writeln!(self.log, "{:>4}.{:03} {name} {text}", at / 1000, at % 1000).unwrap();
    }

    fn note(&mut self, id: IpAddr, event: &Event) {
        let name = |peer: &IpAddr| {
            let node = self.nodes.get(peer);
            node.map_or_else(|| peer.to_string(), |node| node.name.clone())
        };
        let text = match event {
            Event::SessionUp { peer, .. } => format!("up with {}", name(peer)),
            Event::SessionDown {
                peer,
                reason,
                retained,
            } => {
                let kept = match retained {
                    Some(time) => format!("routes kept {} s", time.as_secs()),
                    None => "routes gone".to_owned(),
                };
                format!("down with {}: {reason}; {kept}", name(peer))
            }
            Event::Retiring { peer, time } => {
                format!("leaves {} within {} s", name(peer), time.as_secs())
            }
            // Too many to be read, and no decision.
            Event::AttemptFailed { .. } => return,
            Event::EndOfRib { peer } => format!("heard all from {}", name(peer)),
            Event::LongLived { peer, time } => {
                format!("keeps {} as a last resort {} s", name(peer), time.as_secs())
            }
            Event::StaleSwept { peer, routes } => {
                format!("swept {routes} stale of {}", name(peer))
            }
            Event::Complete { missing } if missing.is_empty() => "complete".to_owned(),
            Event::Complete { missing } => {
                let names: Vec<_> = missing.iter().map(name).collect();
                format!("complete without {}", names.join(", "))
            }
            Event::Malformed { peer, what } => format!("from {}: {what}", name(peer)),
            Event::ManyRoutes {
                peer,
                held,
                limit,
                over,
            } => {
                let what = if *over {
                    "wants more than"
                } else {
                    "has many of"
                };
                format!("{} {what} {limit} routes, has {held}", name(peer))
            }
            Event::SameRouterId { peer, other, .. } => {
                format!("{} and {} have one router id", name(peer), name(other))
            }
            Event::Mobility { vni, mac, here, .. } if *here => {
                format!("announces {mac} of {vni} again")
            }
            Event::Mobility { vni, mac, .. } => format!("lost {mac} of {vni}"),
            other => watched(other),
        };
        self.line(id, &text);
    }
}

/// What is told of MACs, addresses, and hosts that pass for this one.
fn watched(event: &Event) -> String {
    let ice = |frozen: &bool| if *frozen { ", frozen" } else { "" };
    match event {
        Event::DuplicateMac {
            mac, vteps, frozen, ..
        } => format!("duplicate {mac} between {}{}", list(vteps), ice(frozen)),
        Event::DuplicateIp {
            ip, macs, frozen, ..
        } => format!("duplicate {ip} between {}{}", list(macs), ice(frozen)),
        Event::DuplicateCleared { what, .. } => format!("cleared {what}"),
        Event::StickyMac {
            mac,
            holder,
            challengers,
            both,
            ..
        } => {
            let also = if *both { ", static too" } else { "" };
            format!(
                "static {mac} of {holder} claimed by {}{also}",
                list(challengers)
            )
        }
        Event::MacLimit {
            vni,
            level,
            waiting,
            max,
        } => format!("MACs of {vni}: {level:?} the limit of {max}, {waiting} waiting"),
        Event::DuplicateVtep {
            address, router_id, ..
        } => format!("address {address} is also router {router_id}'s"),
        Event::DuplicateRouterId {
            router_id, vtep, ..
        } => format!("router id {router_id} is also that of {vtep}"),
        Event::ForeignRoutes { peer, what } => format!("foreign routes from {peer}: {what}"),
        other => panic!("not told of: {other:?}"),
    }
}

fn list<T: std::fmt::Display>(items: &[T]) -> String {
    let items: Vec<String> = items.iter().map(ToString::to_string).collect();
    items.join(" and ")
}

pub(crate) fn prefix_rows_of(vni: Vni, vrf: &IpVrfForwarding) -> Vec<String> {
    let routers = vrf.routers.iter();
    let routers = routers.map(|(mac, vtep)| format!("{vni} router {mac} behind {vtep}"));
    let prefixes = vrf.prefixes.iter().map(|(prefix, macs)| {
        let macs: Vec<MacAddr> = macs.iter().copied().collect();
        format!("{vni} {prefix} by {}", list(&macs))
    });
    routers.chain(prefixes).collect()
}

pub(crate) fn rows_of(vni: Vni, evi: &EviForwarding) -> Vec<String> {
    let at = |tag: &Tag| match tag {
        Some(vlan) => format!("{vni}/{vlan}"),
        None => vni.to_string(),
    };
    let flood = evi
        .flood
        .iter()
        .map(|(tag, vtep)| format!("{} flood to {vtep}", at(tag)));
    let macs = evi
        .macs
        .iter()
        .map(|((tag, mac), vtep)| format!("{} {mac} behind {vtep}", at(tag)));
    let neighbours = evi
        .neighbours
        .iter()
        .map(|((tag, ip), mac)| format!("{} {ip} is {mac}", at(tag)));
    let routers = evi
        .routers
        .iter()
        .map(|(tag, ip)| format!("{} {ip} is a router", at(tag)));
    flood.chain(macs).chain(neighbours).chain(routers).collect()
}

pub(crate) fn ipv4(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}
