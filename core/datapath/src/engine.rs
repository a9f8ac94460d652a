//! What becomes of a frame of a TAP and of a packet of the tunnel. Each worker has an engine of its own
//! and is the only one to touch it: nothing is locked, and nothing is shared but [`Dues`].

use crate::bucket::Rate;
use crate::dues::Dues;
use crate::flows::{Direction, Ends, Flow, FlowKey, Flows, Noted, Seen};
use crate::merge::{Came, Merged, Merger, To};
use crate::message::Message;
use crate::neighbour::{Asked, Reply, Silence, answer};
use crate::offload::Offload;
use crate::outbox::{Inbox, Outbox, Packets, Span};
use crate::packet::{ETHERNET_BYTES, ETHERTYPE_ARP, ETHERTYPE_IPV6, Ethernet, Ip, flow_hash};
use crate::reason::Reason;
use crate::slots::{Map, Seed, Slots};
use crate::split::{Given, complete, segments};
use crate::tables::{Binding, Change, Domain, Limits, Neighbour, Place, Unknown};
use crate::vxlan::{VXLAN_BYTES, vni_of};
use model::{IfName, MacAddr, VlanId, Vni};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// What became of a frame of a TAP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// It goes to other hosts.
    Sent,
    /// It was a question, and this frame goes back to where it came from.
    Answered(Reply),
    /// It goes nowhere.
    Dropped(Reason),
}

/// What a worker knows and counts.
#[derive(Debug)]
pub struct Engine {
    domains: Slots<Domain, State>,
    /// By the TAP's number.
    places: Map<(usize, Option<VlanId>), usize>,
    taps: BTreeMap<IfName, usize>,
    /// How many rows lead to each.
    vteps: Map<IpAddr, u32>,
    merger: Merger,
    /// The kernel takes super-frames of UDP from a TAP.
    datagrams: bool,
    drops: [u64; Reason::ALL.len()],
    answered: Answered,
    traffic: [Traffic; 2],
    dues: Arc<Dues>,
    questions: Rate,
    flood: Rate,
    flows: Flows,
}

/// What passes in one direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// That TAPs gave for the tunnel, or got from it; super-frames count as one here.
    pub frames: u64,
    /// Packets on the wire, one for each VTEP.
    pub packets: u64,
    /// Of packets, without outer headers.
    pub bytes: u64,
}

/// Questions for neighbours that were answered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Answered {
    /// ARP requests.
    pub arp: u64,
    /// Neighbour solicitations.
    pub nd: u64,
}

/// A packet of the tunnel as it was received.
#[derive(Debug, Clone, Copy)]
pub struct Received {
    /// Who sent it.
    pub from: IpAddr,
    /// Of the outer header.
    pub traffic_class: u8,
    /// Where it is in the bytes that were received.
    pub at: usize,
    /// Its length.
    pub length: usize,
    /// It is several packets of this size, the last of which may be shorter.
    pub split: Option<u16>,
}

#[derive(Debug)]
struct State {
    macs: Map<MacAddr, IpAddr>,
    flood: Vec<IpAddr>,
    neighbours: Map<IpAddr, Neighbour>,
    /// Where it is on this host.
    at: Option<(usize, Option<VlanId>, Binding)>,
}

impl Engine {
    /// `seed` has tables of hosts differ, so that nobody can choose MACs that meet in them. `dues` are those
    /// of all workers.
    pub fn new(seed: u64, dues: Arc<Dues>) -> Self {
        let seed = Seed(seed);
        let limits = Limits::default();
        Self {
            domains: Slots::new(seed),
            places: Map::with_hasher(seed),
            taps: BTreeMap::new(),
            vteps: Map::with_hasher(seed),
            merger: Merger::default(),
            datagrams: false,
            drops: [0; Reason::ALL.len()],
            answered: Answered::default(),
            traffic: [Traffic::default(); 2],
            dues,
            questions: Rate::of(limits.questions_per_s),
            flood: Rate::of(limits.flood_per_s),
            flows: Flows::new(0),
        }
    }

    /// Counts so many flows at a time from now on; none at 0, as in the beginning.
    pub fn count_flows(&mut self, most: usize) {
        self.flows = Flows::new(most);
    }

    /// A TAP has a number from now on; `datagrams` says that the kernel takes super-frames of UDP (Linux
    /// 6.2).
    pub fn name_tap(&mut self, tap: IfName, number: usize, datagrams: bool) {
        self.taps.insert(tap, number);
        self.datagrams = datagrams;
    }

    /// It has none any more; nothing is bound to it.
    pub fn forget_tap(&mut self, tap: &IfName) {
        if let Some(number) = self.taps.remove(tap) {
            self.places.retain(|(of, _), _| *of != number);
            let domains = self.domains.values_mut();
            for state in domains {
                state.at = state.at.filter(|(of, ..)| *of != number);
            }
        }
    }

    /// Takes a row in. A binding to a TAP that has no number is left out.
    pub fn apply(&mut self, change: &Change) {
        match change {
            Change::SetLocal(_) => {}
            Change::SetLimits(limits) => {
                self.questions = Rate::of(limits.questions_per_s);
                self.flood = Rate::of(limits.flood_per_s);
            }
            Change::Bind { place, binding } => self.bind(place, *binding),
            Change::Unbind { place } => self.unbind(place),
            Change::SetMac { domain, mac, vtep } => {
                let before = self.state(*domain).macs.insert(*mac, *vtep);
                self.leads_to(*vtep);
                before.into_iter().for_each(|vtep| self.left(vtep));
            }
            Change::DeleteMac { domain, mac } => {
                let before = self.state(*domain).macs.remove(mac);
                before.into_iter().for_each(|vtep| self.left(vtep));
                self.domains.tidy(domain, State::is_empty);
            }
            Change::AddFlood { domain, vtep } => {
                let flood = &mut self.state(*domain).flood;
                if let Err(at) = flood.binary_search(vtep) {
                    flood.insert(at, *vtep);
                    self.leads_to(*vtep);
                }
            }
            Change::DeleteFlood { domain, vtep } => {
                let flood = &mut self.state(*domain).flood;
                if let Ok(at) = flood.binary_search(vtep) {
                    flood.remove(at);
                    self.left(*vtep);
                }
                self.domains.tidy(domain, State::is_empty);
            }
            Change::SetNeighbour {
                domain,
                ip,
                neighbour,
            } => drop(self.state(*domain).neighbours.insert(*ip, *neighbour)),
            Change::DeleteNeighbour { domain, ip } => {
                self.state(*domain).neighbours.remove(ip);
                self.domains.tidy(domain, State::is_empty);
            }
        }
    }

    fn state(&mut self, domain: Domain) -> &mut State {
        let seed = self.domains.seed;
        self.domains.get_or_insert(domain, || State {
            macs: Map::with_hasher(seed),
            flood: Vec::new(),
            neighbours: Map::with_hasher(seed),
            at: None,
        })
    }

    fn bind(&mut self, place: &Place, binding: Binding) {
        let Some(tap) = self.taps.get(&place.tap).copied() else {
            return;
        };
        self.unbind(place);
        let state = self.state(binding.domain);
        if let Some((tap, vlan, _)) = state.at.replace((tap, place.vlan, binding)) {
            self.places.remove(&(tap, vlan));
        }
        let number = self.domains.number(&binding.domain).expect("it is there");
        self.places.insert((tap, place.vlan), number);
    }

    fn unbind(&mut self, place: &Place) {
        let Some(tap) = self.taps.get(&place.tap).copied() else {
            return;
        };
        if let Some(number) = self.places.remove(&(tap, place.vlan)) {
            let (domain, state) = self.domains.get_mut(number);
            state.at = None;
            self.domains.tidy(&domain, State::is_empty);
        }
    }

    fn leads_to(&mut self, vtep: IpAddr) {
        *self.vteps.entry(vtep).or_default() += 1;
    }

    fn left(&mut self, vtep: IpAddr) {
        if let Some(count) = self.vteps.get_mut(&vtep) {
            *count -= 1;
            if *count == 0 {
                self.vteps.remove(&vtep);
            }
        }
    }

    /// A frame of a TAP: `bytes[at..]` is the frame, whose checksum may be completed in place. Packets
    /// for other hosts are put into `out`, with bodies in `bytes`. `now` is of any clock that goes on, and the same
    /// for all workers.
    pub fn from_tap(
        &mut self,
        now: Duration,
        tap: usize,
        bytes: &mut [u8],
        at: usize,
        offload: Offload,
        out: &mut Outbox,
    ) -> Fate {
        let before = (out.segments.len(), out.packets.len());
        match self.encapsulate(now, tap, bytes, at, offload, out) {
            Ok(None) => {
                self.traffic[0].frames += 1;
                Fate::Sent
            }
            Ok(Some(reply)) => {
                let is_arp = Ethernet::parse(reply.frame())
                    .is_some_and(|ethernet| ethernet.ethertype == ETHERTYPE_ARP);
                let answered = &mut self.answered;
                *if is_arp {
                    &mut answered.arp
                } else {
                    &mut answered.nd
                } += 1;
                Fate::Answered(reply)
            }
            Err(reason) => {
                out.segments.truncate(before.0);
                out.packets.truncate(before.1);
                self.count(reason);
                Fate::Dropped(reason)
            }
        }
    }

    fn encapsulate(
        &mut self,
        now: Duration,
        tap: usize,
        bytes: &mut [u8],
        at: usize,
        offload: Offload,
        out: &mut Outbox,
    ) -> Result<Option<Reply>, Reason> {
        let frame = &mut bytes[at..];
        let ethernet = Ethernet::parse(frame).ok_or(Reason::Malformed)?;
        let place = self.places.get(&(tap, ethernet.tag));
        let number = *place.ok_or(Reason::UnknownVlan)?;
        let (domain, state) = self.domains.get_mut(number);
        let (_, vlan, binding) = state.at.expect("a place is of a domain that is there");
        if let (Some(partial), None) = (offload.checksum, offload.segments) {
            complete(frame, partial)?;
        }
        let frame = &bytes[at..];
        let is_for_many = ethernet.destination.is_multicast();
        if is_for_many {
            let asked = ask(frame, &ethernet, &state.neighbours, binding.unknown);
            let patience = Patience {
                dues: &self.dues,
                questions: self.questions,
            };
            if let Some(reply) = patience.fate_of(asked, ethernet.source, now)? {
                return Ok(Some(match vlan {
                    Some(vlan) => reply.tagged(vlan),
                    None => reply,
                }));
            }
        }
        let one = state.macs.get(&ethernet.destination);
        let to = match one {
            Some(vtep) => std::slice::from_ref(vtep),
            None if !is_for_many => return Err(Reason::UnknownMac),
            None if state.flood.is_empty() => return Err(Reason::NobodyElse),
            None if !self.dues.may_flood(domain, self.flood, now) => return Err(Reason::Storm),
            None => &state.flood[..],
        };
        let ip = Ip::parse(frame, &ethernet);
        let given = Given {
            frame,
            base: at,
            offload,
            ethernet: &ethernet,
            ip: ip.as_ref(),
        };
        let first = out.segments.len();
        segments(&given, domain, binding.mtu, out)?;
        let hash = flow_hash(frame, &ethernet, ip.as_ref());
        let traffic_class = ip.as_ref().map_or(0, |ip| ip.traffic_class(frame));
        let segments = Span::new(first, out.segments.len());
        out.packets.extend(to.iter().map(|to| Packets {
            to: *to,
            hash,
            traffic_class,
            segments,
        }));
        let key = FlowKey {
            domain,
            direction: Direction::Out,
            ends: Ends::of(frame, &ethernet, ip.as_ref()),
        };
        let seen = Seen {
            vtep: one.copied(),
            packets: segments.len() as u64,
            bytes: ethernet.untagged_bytes(frame),
        };
        self.flows.note(now, key, hash, seen);
        Ok(None)
    }

    /// A message was taken by its socket.
    pub fn count_sent(&mut self, message: &Message) {
        let sent = &mut self.traffic[0];
        sent.packets += message.packets() as u64;
        sent.bytes += message.inside_bytes() as u64;
    }

    /// A packet of the tunnel, or several in one. Frames for TAPs are put into `inbox`, whose last may
    /// still grow until [`Engine::end_of_batch`]; what is dropped, and why, is told where it is in `bytes`.
    /// Nothing that came from a tunnel ever goes into one. `now` is as in [`Engine::from_tap`].
    pub fn from_tunnel(
        &mut self,
        now: Duration,
        bytes: &[u8],
        received: &Received,
        inbox: &mut Inbox,
        mut dropped: impl FnMut(Reason, Span),
    ) {
        let end = received.at + received.length;
        if !self.vteps.contains_key(&received.from) {
            self.count(Reason::UnknownVtep);
            return dropped(Reason::UnknownVtep, Span::new(received.at, end));
        }
        let mut at = received.at;
        while at < end {
            let size = match received.split {
                Some(size) if size > 0 && !is_one(&bytes[at..end], usize::from(size)) => {
                    usize::from(size).min(end - at)
                }
                _ => end - at,
            };
            if let Err(reason) = self.decapsulate(now, bytes, at..at + size, received, inbox) {
                self.count(reason);
                dropped(reason, Span::new(at, at + size));
            }
            at += size;
        }
    }

    fn decapsulate(
        &mut self,
        now: Duration,
        bytes: &[u8],
        Range { start: at, end }: Range<usize>,
        received: &Received,
        inbox: &mut Inbox,
    ) -> Result<(), Reason> {
        let vni = vni_of(&bytes[at..end]).ok_or(Reason::NoVxlan)?;
        let at = at + VXLAN_BYTES;
        let frame = &bytes[at..end];
        let ethernet = Ethernet::parse(frame).ok_or(Reason::BadInside)?;
        let tag = ethernet.tag;
        let number = self.domains.number(&Domain { vni, tag });
        let (domain, state) = self.domains.get(number.ok_or(Reason::UnknownVni)?);
        let (tap, vlan, binding) = state.at.ok_or(Reason::UnknownVni)?;
        let ip = Ip::parse(frame, &ethernet);
        let to = To {
            tap,
            vlan,
            mtu: binding.mtu,
            datagrams: self.datagrams,
        };
        let came = Came {
            received: bytes,
            at,
            end,
            ethernet: &ethernet,
            ip: ip.as_ref(),
            told: received.split,
        };
        const CONGESTION: u8 = 3;
        let congested = received.traffic_class & CONGESTION == CONGESTION;
        let merged = match ip.as_ref().filter(|_| congested) {
            Some(ip) if ip.traffic_class(frame) & CONGESTION == 0 => {
                return Err(Reason::Congestion);
            }
            Some(ip) if ip.traffic_class(frame) & CONGESTION != CONGESTION => {
                self.merger.offer_congested(&came, to, inbox);
                Merged::Apart
            }
            _ => self.merger.offer(&came, to, inbox),
        };
        match merged {
            // Of the flow of the frame before, without looking for it again.
            Merged::Grown => self.flows.one_more(now, ethernet.untagged_bytes(frame)),
            Merged::Apart => {
                let key = FlowKey {
                    domain,
                    direction: Direction::In,
                    ends: Ends::of(frame, &ethernet, ip.as_ref()),
                };
                let seen = Seen {
                    vtep: Some(received.from),
                    packets: 1,
                    bytes: ethernet.untagged_bytes(frame),
                };
                let hash = flow_hash(frame, &ethernet, ip.as_ref());
                self.flows.note(now, key, hash, seen);
            }
        }
        let got = &mut self.traffic[1];
        got.packets += 1;
        got.bytes += frame.len() as u64;
        Ok(())
    }

    /// Nothing more is to be added to what is in the inbox.
    pub fn end_of_batch(&mut self, bytes: &[u8], inbox: &mut Inbox) {
        self.merger.close(bytes, inbox);
        self.traffic[1].frames += inbox.frames.len() as u64;
    }

    /// The VNI that a frame of a TAP belongs to.
    pub fn vni_at(&self, tap: usize, frame: &[u8]) -> Option<Vni> {
        let ethernet = Ethernet::parse(frame)?;
        let number = self.places.get(&(tap, ethernet.tag))?;
        Some(self.domains.get(*number).0.vni)
    }

    /// Counts something that was dropped outside of the engine.
    pub fn count(&mut self, reason: Reason) {
        self.count_many(reason, 1);
    }

    /// The same for several at once.
    pub fn count_many(&mut self, reason: Reason, many: usize) {
        self.drops[reason as usize] += many as u64;
    }

    /// What was dropped, by reason.
    pub fn drops(&self) -> impl Iterator<Item = (Reason, u64)> + '_ {
        Reason::ALL.into_iter().zip(self.drops)
    }

    /// What went to other hosts, and what came from them.
    pub fn traffic(&self) -> [Traffic; 2] {
        self.traffic
    }

    /// Flows that pass, as far as they are counted.
    pub fn flows(&self, now: Duration) -> impl Iterator<Item = Flow> + '_ {
        self.flows.passing(now)
    }

    /// Flows that were no longer counted while they passed, because there was no room.
    pub fn flows_pushed_out(&self) -> u64 {
        self.flows.pushed_out()
    }

    /// What was noted of flows that pass, for another worker to go on with.
    pub fn noted(&self, now: Duration) -> impl Iterator<Item = &Noted> + '_ {
        self.flows.noted(now)
    }

    /// Goes on with what another worker had noted, as far as there is room.
    pub fn take_over(&mut self, now: Duration, noted: &[Noted]) {
        noted.iter().for_each(|noted| self.flows.add(now, noted));
    }

    /// Questions for neighbours that were answered.
    pub fn answered(&self) -> Answered {
        self.answered
    }
}

/// What a frame for many asks for. Only ARP and IPv6 do, and are looked at without their tag.
fn ask(
    frame: &[u8],
    ethernet: &Ethernet,
    neighbours: &Map<IpAddr, Neighbour>,
    unknown: Unknown,
) -> Asked {
    /// A solicitation has 72 bytes and options; longer ones ask nothing that is answered here.
    const LONGEST: usize = 512;
    if !matches!(ethernet.ethertype, ETHERTYPE_ARP | ETHERTYPE_IPV6) {
        return Asked::NotAsked;
    }
    let who = |ip| neighbours.get(&ip).copied();
    if ethernet.payload == ETHERNET_BYTES {
        return answer(frame, &who, unknown);
    }
    let mut untagged = [0; LONGEST];
    let rest = &frame[ethernet.payload - 2..];
    let Some(into) = untagged.get_mut(..12 + rest.len()) else {
        return Asked::NotAsked;
    };
    into[..12].copy_from_slice(&frame[..12]);
    into[12..].copy_from_slice(rest);
    answer(into, &who, unknown)
}

/// How much of a port's business is everybody's.
struct Patience<'a> {
    dues: &'a Dues,
    questions: Rate,
}

impl Patience<'_> {
    /// An answer, if there is one and the port did not ask too much; nothing if the frame goes on.
    fn fate_of(self, asked: Asked, asker: MacAddr, now: Duration) -> Result<Option<Reply>, Reason> {
        match asked {
            Asked::NotAsked => Ok(None),
            Asked::Answer(_) | Asked::Keep if !self.dues.may_ask(asker, self.questions, now) => {
                Err(Reason::TooManyQuestions)
            }
            Asked::Announcement if !self.dues.may_announce(asker, now) => {
                Err(Reason::TooManyAnnouncements)
            }
            Asked::Keep | Asked::Announcement => Ok(None),
            Asked::Answer(reply) => Ok(Some(reply)),
            Asked::Drop(Silence::Here | Silence::Own) => Err(Reason::NeighbourHere),
            Asked::Drop(Silence::Nobody) => Err(Reason::UnknownNeighbour),
            Asked::Drop(Silence::Malformed | Silence::HopLimit | Silence::Checksum) => {
                Err(Reason::BadQuestion)
            }
        }
    }
}

impl State {
    fn is_empty(&self) -> bool {
        self.macs.is_empty()
            && self.flood.is_empty()
            && self.neighbours.is_empty()
            && self.at.is_none()
    }
}

/// True if what came is one packet that is longer than the size that the kernel told: then that is how
/// a frame *inside*, which nobody split, is to be split (see `merge`).
fn is_one(packet: &[u8], size: usize) -> bool {
    let inside = packet.get(VXLAN_BYTES..).unwrap_or_default();
    let Some(ethernet) = Ethernet::parse(inside) else {
        return false;
    };
    Ip::parse(inside, &ethernet).is_some_and(|ip| VXLAN_BYTES + ip.end > size)
}
