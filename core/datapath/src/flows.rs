//! Which flows pass: counted for each, in a table that does not grow. Where it is full, the flow that was
//! silent for the longest goes, so those that carry much stay.

use crate::packet::{Ethernet, Ip, Mixer};
use crate::tables::Domain;
use model::MacAddr;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

/// A flow that was silent for so long has ended: it is no longer shown, and is counted anew if it comes
/// back.
pub const FLOW_IDLE: Duration = Duration::from_secs(60);
/// Flows that one worker counts at a time, where nobody said how many.
pub const FLOWS_DEFAULT: usize = 4_096;
/// At most, lest a worker takes more than some 20 MB for them.
pub const FLOWS_MAX: usize = 131_072;

/// Whither a frame goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// From another host.
    In,
    /// To another host.
    Out,
}

/// Who talks to whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[expect(
    missing_docs,
    reason = "each variant is documented; its fields are named for what they are"
)]
pub enum Ends {
    /// An IP packet; ports of TCP and UDP, where there are any.
    Ip {
        protocol: u8,
        source: IpAddr,
        destination: IpAddr,
        ports: Option<(u16, u16)>,
    },
    /// Any other frame.
    Ethernet {
        ethertype: u16,
        source: MacAddr,
        destination: MacAddr,
    },
}

/// What makes a flow: both directions of a connection are one each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FlowKey {
    /// The subnet.
    pub domain: Domain,
    /// To other hosts, or from them.
    pub direction: Direction,
    /// Source and destination inside.
    pub ends: Ends,
}

/// A flow that passes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flow {
    /// Which one.
    pub key: FlowKey,
    /// The VTEP at the other side, of its last frame; none where a frame goes to all.
    pub vtep: Option<IpAddr>,
    /// On the wire; what goes to several VTEPs counts once.
    pub packets: u64,
    /// Of frames, without outer headers and tags; on the way out a super-frame counts as it is, on the
    /// way in all that it was made of.
    pub bytes: u64,
    /// Since its first frame.
    pub age: Duration,
    /// Since its last frame.
    pub idle: Duration,
}

/// What was seen of a flow just now.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seen {
    pub(crate) vtep: Option<IpAddr>,
    pub(crate) packets: u64,
    pub(crate) bytes: u64,
}

const WAYS: usize = 4;

/// The flows of one worker.
#[derive(Debug)]
pub(crate) struct Flows {
    /// Each flow has its place in one of them; none where nothing is counted.
    sets: Box<[[Option<Noted>; WAYS]]>,
    /// Where the flow is that was noted last.
    latest: (usize, usize),
    pushed_out: u64,
}

/// What a worker noted of a flow, for itself or another worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Noted {
    hash: u32,
    key: FlowKey,
    vtep: Option<IpAddr>,
    packets: u64,
    bytes: u64,
    first: Duration,
    last: Duration,
}

impl Ends {
    pub(crate) fn of(frame: &[u8], ethernet: &Ethernet, ip: Option<&Ip>) -> Self {
        let Some(ip) = ip else {
            return Self::Ethernet {
                ethertype: ethernet.ethertype,
                source: ethernet.source,
                destination: ethernet.destination,
            };
        };
        let (source, destination) = ip.addresses(frame);
        let ports = ip.ports(frame).map(|[a, b, c, d]| {
            let port = |high, low| u16::from_be_bytes([high, low]);
            (port(a, b), port(c, d))
        });
        Self::Ip {
            protocol: ip.protocol,
            source,
            destination,
            ports,
        }
    }
}

impl Flows {
    /// Room for so many flows, rounded up to a power of two, which is made here and never again; with
    /// none nothing is counted.
    pub(crate) fn new(most: usize) -> Self {
        let sets = match most.min(FLOWS_MAX) {
            0 => 0,
            most => most.div_ceil(WAYS).next_power_of_two(),
        };
        Self {
            sets: vec![[None; WAYS]; sets].into(),
            latest: (0, 0),
            pushed_out: 0,
        }
    }

    /// Counts frames of a flow. `hash` is the same for all of a flow.
    pub(crate) fn note(&mut self, now: Duration, key: FlowKey, hash: u32, seen: Seen) {
        if self.sets.is_empty() {
            return;
        }
        let (number, found) = self.find(&key, hash);
        let place = found.unwrap_or_else(|| {
            let oldest = self.oldest(number);
            let gone = self.sets[number][oldest].take();
            self.pushed_out += u64::from(gone.is_some_and(|entry| entry.passes(now)));
            oldest
        });
        let set = &mut self.sets[number];
        let held = set[place].filter(|entry| entry.passes(now));
        let entry = set[place].insert(held.unwrap_or(Noted {
            hash,
            key,
            vtep: None,
            packets: 0,
            bytes: 0,
            first: now,
            last: now,
        }));
        entry.vtep = seen.vtep;
        entry.count(now, seen.packets, seen.bytes);
        self.latest = (number, place);
    }

    /// The set of a flow, and where in it the flow is.
    fn find(&self, key: &FlowKey, hash: u32) -> (usize, Option<usize>) {
        let number = index(key, hash) & (self.sets.len() - 1);
        let is_it = |entry: &Noted| entry.hash == hash && entry.key == *key;
        let mut places = self.sets[number].iter();
        let found = places.position(|place| place.as_ref().is_some_and(is_it));
        (number, found)
    }

    /// What goes first of a set: an empty place, or the flow that was silent for the longest.
    fn oldest(&self, number: usize) -> usize {
        let last = |place: &usize| self.sets[number][*place].as_ref().map(|entry| entry.last);
        (0..WAYS).min_by_key(last).unwrap_or_default()
    }

    /// Those that pass, for another worker to go on with.
    pub(crate) fn noted(&self, now: Duration) -> impl Iterator<Item = &Noted> + '_ {
        let entries = self.sets.iter().flatten().flatten();
        entries.filter(move |entry| entry.passes(now))
    }

    /// Goes on with what another worker noted of a flow, unless all that it would take the place of was
    /// heard of since.
    pub(crate) fn add(&mut self, now: Duration, noted: &Noted) {
        if self.sets.is_empty() || !noted.passes(now) {
            return;
        }
        let (number, found) = self.find(&noted.key, noted.hash);
        let place = found.unwrap_or_else(|| self.oldest(number));
        let place = &mut self.sets[number][place];
        let held = place.filter(|entry| entry.passes(now));
        *place = match held {
            Some(held) if found.is_some() => Some(held.and(noted)),
            None => Some(*noted),
            Some(held) => {
                self.pushed_out += 1;
                let newer = if held.last < noted.last { *noted } else { held };
                Some(newer)
            }
        };
    }

    /// Counts one more packet of the flow that was noted last.
    pub(crate) fn one_more(&mut self, now: Duration, bytes: u64) {
        let (number, place) = self.latest;
        if let Some(Some(entry)) = self.sets.get_mut(number).map(|set| &mut set[place]) {
            entry.count(now, 1, bytes);
        }
    }

    /// Those that pass.
    pub(crate) fn passing(&self, now: Duration) -> impl Iterator<Item = Flow> + '_ {
        self.noted(now).map(move |entry| Flow {
            key: entry.key,
            vtep: entry.vtep,
            packets: entry.packets,
            bytes: entry.bytes,
            age: now.saturating_sub(entry.first),
            idle: now.saturating_sub(entry.last),
        })
    }

    /// Flows that had to go while they passed, because there was no room.
    pub(crate) fn pushed_out(&self) -> u64 {
        self.pushed_out
    }
}

impl Noted {
    fn passes(&self, now: Duration) -> bool {
        now.saturating_sub(self.last) < FLOW_IDLE
    }

    /// The same flow, as two workers noted it.
    fn and(self, other: &Noted) -> Self {
        let vtep = match self.last < other.last {
            true => other.vtep,
            false => self.vtep,
        };
        Self {
            vtep,
            packets: self.packets + other.packets,
            bytes: self.bytes + other.bytes,
            first: self.first.min(other.first),
            last: self.last.max(other.last),
            ..self
        }
    }

    fn count(&mut self, now: Duration, packets: u64, bytes: u64) {
        self.packets += packets;
        self.bytes += bytes;
        self.last = now;
    }
}

fn index(key: &FlowKey, hash: u32) -> usize {
    let mut mixer = Mixer::default();
    mixer.word(hash);
    mixer.word(key.domain.vni.get());
    mixer.word(key.direction as u32);
    mixer.end() as usize
}

/// The flows of several workers as those of one host, the largest first: frames of one flow may come by
/// several queues.
pub fn together(flows: impl IntoIterator<Item = Flow>) -> Vec<Flow> {
    let mut sum: BTreeMap<FlowKey, Flow> = BTreeMap::new();
    for flow in flows {
        let Some(held) = sum.get_mut(&flow.key) else {
            sum.insert(flow.key, flow);
            continue;
        };
        if flow.idle < held.idle {
            held.vtep = flow.vtep;
        }
        held.packets += flow.packets;
        held.bytes += flow.bytes;
        held.age = held.age.max(flow.age);
        held.idle = held.idle.min(flow.idle);
    }
    let mut flows: Vec<Flow> = sum.into_values().collect();
    flows.sort_by_key(|flow| std::cmp::Reverse(flow.bytes));
    flows
}

#[cfg(test)]
mod tests;
