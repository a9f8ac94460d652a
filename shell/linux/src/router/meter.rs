//! What passes a router, counted, and a bound on the flows that it tracks.
//!
//! The kernel's own bound, `nf_conntrack_max`, is compared with each namespace's own count, but it is
//! one for the whole machine and no namespace can lower it (docs/decisions/0017).

use super::rules::{FULL_SET, counted_rule};
use crate::attr::{self, Message};
use crate::error::{Cause, Doing, Error};
use crate::netns::{Netns, on_own_thread};
use crate::nft;
use crate::socket::Socket;
use crate::sys;
use host_plan::NatRule;
use model::{IfName, NetnsName};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

/// What a router counted since its parts were made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RouterCounts {
    /// By interface.
    pub links: BTreeMap<IfName, LinkCounts>,
    /// By the name of a counter of its rules: flows that passed (of which only the first packet is
    /// counted), packets that did not.
    pub rules: BTreeMap<String, RuleCount>,
    /// All packets of the flows that began with a rule of address translation, both ways.
    pub nat: BTreeMap<NatRule, NatCount>,
}

/// What was counted of a rule of address translation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NatCount {
    /// Packets and bytes.
    pub count: RuleCount,
    /// Since when, in Unix time.
    pub since_secs: u64,
}

/// What an interface counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LinkCounts {
    /// Packets that came in.
    pub in_packets: u64,
    /// Bytes that came in.
    pub in_bytes: u64,
    /// Packets that went out.
    pub out_packets: u64,
    /// Bytes that went out.
    pub out_bytes: u64,
}

/// What a counter of rules counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RuleCount {
    /// Packets.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Counts the flows that namespaces track.
///
/// The kernel's counter of each is opened once: to find it by its path the kernel goes through those of all namespaces.
#[derive(Debug, Default)]
pub struct FlowCounts(BTreeMap<NetnsName, FlowCount>);

#[derive(Debug)]
struct FlowCount {
    /// Inode of the namespace that has the name: one that is gone may live on for those who are in it.
    inode: u64,
    file: File,
}

impl FlowCounts {
    /// How many flows each of these namespaces tracks now; those that are not there are left out.
    pub fn tracked(&mut self, routers: &[NetnsName]) -> Result<BTreeMap<NetnsName, u64>, Error> {
        let mut flows = BTreeMap::new();
        let mut before = std::mem::take(&mut self.0);
        let mut unknown = Vec::new();
        for name in routers {
            let held = before.remove(name);
            let held = held.filter(|held| Netns::inode_of(name) == Some(held.inode));
            match held.and_then(|held| Some((held.read().ok()?, held))) {
                Some((count, held)) => {
                    flows.insert(name.clone(), count);
                    self.0.insert(name.clone(), held);
                }
                None => unknown.push(name),
            }
        }
        if unknown.is_empty() {
            return Ok(flows);
        }
        on_own_thread(|| {
            for name in unknown {
                let Some(netns) = Netns::find(name)? else {
                    continue;
                };
                let count = netns.enter().and_then(|()| self.open_here(name, &netns));
                let count = count.doing(|| format!("count the flows of namespace {name}"))?;
                flows.insert(name.clone(), count);
            }
            Ok(flows)
        })
    }

    fn open_here(&mut self, name: &NetnsName, netns: &Netns) -> Result<u64, Cause> {
        match File::open("/proc/sys/net/netfilter/nf_conntrack_count") {
            Ok(file) => {
                // Its own: by now the name may be another one's.
                let inode = netns.inode()?;
                let held = FlowCount { inode, file };
                let count = held.read()?;
                self.0.insert(name.clone(), held);
                Ok(count)
            }
            // Nothing is tracked before there are rules.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(0),
            Err(error) => Err(error.into()),
        }
    }
}

impl FlowCount {
    /// Fails when its namespace is gone.
    fn read(&self) -> Result<u64, Cause> {
        let mut text = [0; 24];
        let length = self.file.read_at(&mut text, 0)?;
        let text = std::str::from_utf8(&text[..length]).unwrap_or_default();
        let count = text.trim().parse();
        count.map_err(|_| Cause::Garbled("a count that is no number"))
    }
}

/// Reads a router's counters; none if it is not there.
pub fn router_counts(name: &NetnsName) -> Result<Option<RouterCounts>, Error> {
    let Some(netns) = Netns::find(name)? else {
        return Ok(None);
    };
    let counts = on_own_thread(|| {
        netns.enter()?;
        counts_here()
    });
    counts
        .map(Some)
        .doing(|| format!("read the counters of namespace {name}"))
}

fn counts_here() -> Result<RouterCounts, Cause> {
    let mut counts = RouterCounts::default();
    let mut links = Message::new(libc::RTM_GETLINK, 0);
    links.ifinfo(libc::AF_UNSPEC, 0, 0, 0);
    Socket::route()?.dump(links, |_, payload| counts.links.extend(link(payload)))?;
    for (name, count) in rule_counts(&mut Socket::netfilter()?)? {
        match counted_rule(&name) {
            Some((rule, since_secs)) => {
                let counted = NatCount { count, since_secs };
                counts.nat.insert(rule, counted);
            }
            None => {
                counts.rules.insert(name, count);
            }
        }
    }
    Ok(counts)
}

/// What the counters of a router's rules have, by their names.
pub(super) fn rule_counts(socket: &mut Socket) -> Result<BTreeMap<String, RuleCount>, Cause> {
    let mut counts = BTreeMap::new();
    let mut rules = Message::new(nft::message(sys::NFT_MSG_GETOBJ), 0);
    rules
        .header(&[sys::NFPROTO_INET, 0, 0, 0])
        .put_text(sys::NFTA_OBJ_TABLE, "vpc");
    let result = socket.dump(rules, |_, payload| counts.extend(rule(payload)));
    match result {
        // No such table.
        Err(cause) if cause.errno() == Some(libc::ENOENT) => Ok(counts),
        other => other.map(|()| counts),
    }
}

/// An interface's name and the first of `struct rtnl_link_stats64`.
fn link(payload: &[u8]) -> Option<(IfName, LinkCounts)> {
    let attributes = payload.get(16..)?;
    let name = attr::attribute(attributes, sys::IFLA_IFNAME).and_then(attr::text)?;
    let stats = attr::attribute(attributes, sys::IFLA_STATS64)?;
    let number = |place: usize| -> Option<u64> {
        Some(u64::from_ne_bytes(*stats.get(place * 8..)?.first_chunk()?))
    };
    let counts = LinkCounts {
        in_packets: number(0)?,
        out_packets: number(1)?,
        in_bytes: number(2)?,
        out_bytes: number(3)?,
    };
    Some((IfName::new(name).ok()?, counts))
}

fn rule(payload: &[u8]) -> Option<(String, RuleCount)> {
    let attributes = payload.get(4..)?;
    let name = attr::attribute(attributes, sys::NFTA_OBJ_NAME).and_then(attr::text)?;
    let data = attr::attribute(attributes, sys::NFTA_OBJ_DATA)?;
    let number = |kind| -> Option<u64> {
        let value = attr::attribute(data, kind)?;
        Some(u64::from_be_bytes(*value.first_chunk()?))
    };
    let count = RuleCount {
        packets: number(sys::NFTA_COUNTER_PACKETS)?,
        bytes: number(sys::NFTA_COUNTER_BYTES)?,
    };
    Some((name.to_owned(), count))
}

/// Has a router take no new flows for as long as this, from now on. It ends by itself, so that a
/// router whose agent is gone is not shut.
pub fn refuse_flows(name: &NetnsName, for_now: Duration) -> Result<(), Error> {
    let netns = Netns::named(name)?;
    let refused = on_own_thread(|| {
        netns.enter()?;
        let mut requests = full(for_now);
        nft::transaction(&mut Socket::netfilter()?, &mut requests)
    });
    refused.doing(|| format!("refuse new flows in namespace {name}"))
}

/// Empties the set and fills it again: kernels differ in what they do with an element that is there.
fn full(for_now: Duration) -> [Message; 2] {
    let millis = u64::try_from(for_now.as_millis()).unwrap_or(u64::MAX);
    let set = |kind, flags| {
        let mut message = Message::new(nft::message(kind), flags);
        message
            .header(&[sys::NFPROTO_INET, 0, 0, 0])
            .put_text(sys::NFTA_SET_ELEM_LIST_TABLE, "vpc")
            .put_text(sys::NFTA_SET_ELEM_LIST_SET, FULL_SET);
        message
    };
    let mut fill = set(sys::NFT_MSG_NEWSETELEM, libc::NLM_F_CREATE);
    fill.nest(sys::NFTA_SET_ELEM_LIST_ELEMENTS, |m| {
        for family in [sys::NFPROTO_IPV4, sys::NFPROTO_IPV6] {
            m.nest(sys::NFTA_LIST_ELEM, |m| {
                m.nest(sys::NFTA_SET_ELEM_KEY, |m| {
                    m.put(sys::NFTA_DATA_VALUE, &[family]);
                });
                m.put(sys::NFTA_SET_ELEM_TIMEOUT, &millis.to_be_bytes());
            });
        }
    });
    [set(sys::NFT_MSG_DELSETELEM, 0), fill]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn garbage_never_panics(
            parts in proptest::collection::vec(
                (0_u16..30, proptest::collection::vec(any::<u8>(), 0..40)), 0..6),
            payload in proptest::collection::vec(any::<u8>(), 0..100),
        ) {
            let mut message = Message::new(0, 0);
            message.header(&[0; 16]);
            for (kind, value) in &parts {
                message.put(*kind, value);
            }
            let built = message.finish(1)[attr::HEADER_BYTES..].to_vec();
            for payload in [built, payload] {
                let name = link(&payload).map(|(name, _)| name.as_str().len());
                prop_assert!(name.is_none_or(|length| length <= 15));
                prop_assert!(rule(&payload).is_none_or(|(name, _)| name.len() <= payload.len()));
            }
        }
    }
}
