//! Counts what passes routers, and has those that track too many flows take no new ones.
//!
//! A thread of its own: a pass over everything else does not keep it from counting.

use crate::events::Event;
use crate::kernel::chain;
use crate::outside::Outside;
use crate::standby::Standbys;
use crate::view::{View, unix_now};
use api::v1;
use host_plan::{NatRule, OwnedName, is_full};
use linux::{FlowCounts, NatCount, RouterCounts, RuleCount};
use model::{Condition, NetnsName, ObjectId, RouterId, SubnetId, UnixMillis};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

/// Between counts of flows. A router's rules bound what may come meanwhile.
const EVERY: Duration = Duration::from_secs(1);
/// A full router stays so for as long without another word: an agent that is gone shuts none.
const REFUSE_FOR: Duration = Duration::from_secs(10);
/// Counters of routers that are read each time; those of others next time.
const READ_AT_ONCE: usize = 64;
/// In one report.
const TOLD_AT_ONCE: usize = 256;
/// The same for legs and rules of address translation; a router has fewer, as far as they are told.
const PARTS_AT_ONCE: usize = 4000;
/// Rules of address translation of one router that are told. It may have a thousand port forwards.
const NAT_RULES: usize = 2000;

/// What is known of a router.
#[derive(Debug, Clone, Default)]
struct Metered {
    name: String,
    flows: u64,
    full_since: Option<UnixMillis>,
    counts: RouterCounts,
    legs: Vec<SubnetId>,
    counted: UnixMillis,
}

#[derive(Debug, Default)]
struct Book {
    routers: BTreeMap<RouterId, Metered>,
    /// The last that was told of in a report.
    told: Option<RouterId>,
}

/// Shared by the thread that counts and those who show it.
#[derive(Debug, Clone)]
pub(crate) struct Meter {
    book: Arc<Mutex<Book>>,
    most: u32,
    outside: Outside,
    standbys: Standbys,
}

/// A router that is to be counted.
struct Router {
    id: RouterId,
    netns: NetnsName,
    name: String,
    legs: Vec<SubnetId>,
}

impl Meter {
    /// Nothing is counted yet; a router may track this many flows.
    pub(crate) fn new(most: u32, outside: Outside, standbys: Standbys) -> Self {
        let book = Arc::default();
        Self {
            book,
            most,
            outside,
            standbys,
        }
    }

    /// Begins to count, until `view` has no publisher any more.
    pub(crate) fn start(&self, view: watch::Receiver<Arc<View>>, events: mpsc::Sender<Event>) {
        let counting = Counting {
            meter: self.clone(),
            view,
            events,
            conditions: Vec::new(),
            next: None,
            told: false,
            flows: FlowCounts::default(),
        };
        thread::Builder::new()
            .name("meter".to_owned())
            .spawn(move || counting.run())
            .expect("a process may start a thread");
    }

    /// Of routers that take no new flows, or whose standby is told nothing.
    pub(crate) fn conditions(&self) -> Vec<Condition> {
        let book = self.lock();
        let troubles = book.routers.iter().flat_map(|(id, metered)| {
            let full = metered.full_since.map(|since| {
                let message = format!(
                    "router {} tracks as many flows as it may on this host, {}, and takes no new \
                     ones: see who opens so many, or raise router_flows in the agent's configuration",
                    metered.name, self.most
                );
                (message, since)
            });
            let standby = self.standbys.trouble(*id, &metered.name);
            full.into_iter().chain(standby).map(|trouble| (*id, trouble))
        });
        let condition = |(id, (message, since))| Condition {
            object: ObjectId::Router(id),
            message,
            since,
            attempts: 0,
        };
        troubles.map(condition).collect()
    }

    /// Of some routers, in turn, for a report.
    pub(crate) fn report(&self) -> Vec<v1::RouterFigures> {
        let mut book = self.lock();
        let after = book.told;
        let is_later = |(id, _): &(&RouterId, &Metered)| after.is_none_or(|after| **id > after);
        let mut parts = 0;
        let few = |(_, metered): &(&RouterId, &Metered)| {
            parts += metered.legs.len() + metered.counts.nat.len().min(NAT_RULES) + 1;
            parts <= PARTS_AT_ONCE
        };
        let some = book
            .routers
            .iter()
            .filter(is_later)
            .take_while(few)
            .take(TOLD_AT_ONCE);
        let some: Vec<_> = some
            .map(|(id, metered)| (*id, self.shown(*id, metered)))
            .collect();
        // After the last comes the first.
        let last = book.routers.last_key_value().map(|(id, _)| *id);
        book.told = some
            .last()
            .map(|(id, _)| *id)
            .filter(|id| Some(*id) != last);
        some.into_iter().map(|(_, figures)| figures).collect()
    }

    /// All of them.
    pub(crate) fn all(&self) -> Vec<v1::RouterFigures> {
        let book = self.lock();
        let all = book.routers.iter();
        all.map(|(id, metered)| self.shown(*id, metered)).collect()
    }

    /// What was counted by each rule of address translation.
    pub(crate) fn nat(&self) -> Vec<(RouterId, NatRule, RuleCount)> {
        let book = self.lock();
        let rules = book.routers.iter().flat_map(|(id, metered)| {
            let nat = metered.counts.nat.iter();
            nat.map(|(rule, counted)| (*id, *rule, counted.count))
        });
        rules.collect()
    }

    /// Of one; none before it was counted.
    pub(crate) fn of(&self, id: RouterId) -> Option<v1::RouterFigures> {
        let book = self.lock();
        let metered = book.routers.get(&id)?;
        Some(self.shown(id, metered))
    }

    fn shown(&self, id: RouterId, metered: &Metered) -> v1::RouterFigures {
        let outer = (OwnedName::router_outer(id), String::new());
        let legs = metered.legs.iter();
        let legs = legs.map(|subnet| (OwnedName::router_leg(*subnet), subnet.to_string()));
        let legs = legs.chain([outer]).filter_map(|(name, subnet_id)| {
            let counts = metered.counts.links.get(&name)?;
            Some(v1::LegFigures {
                subnet_id,
                in_packets: counts.in_packets,
                in_bytes: counts.in_bytes,
                out_packets: counts.out_packets,
                out_bytes: counts.out_bytes,
            })
        });
        let rules = metered
            .counts
            .rules
            .iter()
            .map(|(name, count)| v1::RuleFigures {
                name: name.clone(),
                packets: count.packets,
                bytes: count.bytes,
            });
        v1::RouterFigures {
            router_id: id.to_string(),
            flows: metered.flows,
            flow_limit: self.most,
            full_since_unix_ms: metered.full_since.map_or(0, |since| since.0),
            rules: rules.collect(),
            legs: legs.collect(),
            counted_unix_ms: metered.counted.0,
            nat: metered.counts.nat.iter().take(NAT_RULES).map(nat).collect(),
            lease: self.outside.of(id),
            standby: self.standbys.of(id),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Book> {
        // Each change of the book is a single one, so it is whole also after a panic.
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn nat((rule, counted): (&NatRule, &NatCount)) -> v1::NatFigures {
    use v1::nat_figures::Rule;
    let (kind, address) = match rule {
        NatRule::Source(address) => (Rule::Source, address),
        NatRule::Public(address) => (Rule::Public, address),
        NatRule::Forward(address, ..) => (Rule::Forward, address),
    };
    let (protocol, ports) = match rule {
        NatRule::Forward(_, protocol, ports) => (protocol.to_string(), ports.to_string()),
        NatRule::Source(_) | NatRule::Public(_) => (String::new(), String::new()),
    };
    v1::NatFigures {
        rule: kind.into(),
        address: address.to_string(),
        protocol,
        ports,
        packets: counted.count.packets,
        bytes: counted.count.bytes,
        since_unix_ms: counted.since_secs.saturating_mul(1000),
    }
}

struct Counting {
    meter: Meter,
    view: watch::Receiver<Arc<View>>,
    events: mpsc::Sender<Event>,
    /// What the loop knows.
    conditions: Vec<Condition>,
    /// Whose counters are read next.
    next: Option<RouterId>,
    /// That counting fails.
    told: bool,
    flows: FlowCounts,
}

impl Counting {
    fn run(mut self) {
        // With hundreds of routers it has work for tens of milliseconds at a time, which a change is not to wait for.
        if let Err(error) = linux::run_behind_others() {
            warn!(
                error = chain(&error),
                "Routers are counted as if in a hurry"
            );
        }
        while self.view.has_changed().is_ok() {
            // Not `park_timeout`: threads that were waited for meanwhile may have left a token, and it would not wait.
            thread::sleep(EVERY);
            let routers = self.routers();
            let names: Vec<NetnsName> = routers.iter().map(|r| r.netns.clone()).collect();
            match self.flows.tracked(&names) {
                Ok(flows) => {
                    self.told = false;
                    self.note(&routers, &flows);
                }
                // What fails for good must not fill the log.
                Err(error) if !self.told => {
                    self.told = true;
                    warn!(
                        error = chain(&error),
                        "Counting the flows of routers failed"
                    );
                }
                Err(_) => {}
            }
            self.read(&routers);
        }
    }

    fn routers(&self) -> Vec<Router> {
        let view = Arc::clone(&self.view.borrow());
        let router = view.routers.iter().map(|router| Router {
            id: router.id,
            netns: OwnedName::router_netns(router.id),
            name: router.name.clone(),
            legs: router.legs.iter().map(|leg| leg.subnet).collect(),
        });
        router.collect()
    }

    fn note(&mut self, routers: &[Router], flows: &BTreeMap<NetnsName, u64>) {
        let mut full = Vec::new();
        let mut book = self.meter.lock();
        let there: BTreeSet<RouterId> = routers.iter().map(|router| router.id).collect();
        book.routers.retain(|id, _| there.contains(id));
        for router in routers {
            let Some(flows) = flows.get(&router.netns).copied() else {
                book.routers.remove(&router.id);
                continue;
            };
            let metered = book.routers.entry(router.id).or_default();
            metered.name.clone_from(&router.name);
            metered.legs.clone_from(&router.legs);
            metered.flows = flows;
            let was = metered.full_since.is_some();
            let is = is_full(flows, self.meter.most, was);
            if is != was {
                metered.full_since = is.then(unix_now);
                let (router, most) = (&router.name, self.meter.most);
                match is {
                    true => warn!(router, flows, most, "A router takes no new flows"),
                    false => info!(router, flows, most, "A router takes new flows again"),
                }
            }
            if is {
                full.push(&router.netns);
            }
        }
        drop(book);
        for netns in full {
            if let Err(error) = linux::refuse_flows(netns, REFUSE_FOR) {
                warn!(%netns, error = chain(&error), "A router that is full could not be told so");
            }
        }
        let conditions = self.meter.conditions();
        if conditions != self.conditions {
            self.conditions = conditions;
            // Refused only when the agent is ending.
            drop(self.events.blocking_send(Event::Metered));
        }
    }

    /// Counters of some routers, in turn.
    fn read(&mut self, routers: &[Router]) {
        let start = routers
            .iter()
            .position(|router| Some(router.id) >= self.next);
        let (before, after) = routers.split_at(start.unwrap_or_default());
        let mut in_turn = after.iter().chain(before);
        for router in in_turn.by_ref().take(READ_AT_ONCE) {
            // One that is made or removed just now is read later, or not at all.
            if let Ok(Some(counts)) = linux::router_counts(&router.netns)
                && let Some(metered) = self.meter.lock().routers.get_mut(&router.id)
            {
                (metered.counts, metered.counted) = (counts, unix_now());
            }
        }
        self.next = in_turn.next().map(|router| router.id);
    }
}
