//! What the thread knows, and what it does with it: the fence, the votes, what routers track.

use super::{Leased, Orders, Placed};
use crate::disk::Disk;
use crate::kernel::chain;
use crate::standby::Standbys;
use api::tonic::Status;
use api::v1;
use lease::{Ask, HOLD, Owner, Promise, Voter};
use linux::Fence;
use model::{HostId, IfName, RouterId, Tracked, Voter as Who, VoterSet};
use standby::{Batch, Refused, Store, Taken};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tracing::{info, warn};

/// What came for a router that does not come is kept for so long.
pub(super) const ARRIVAL_LIMIT: Duration = Duration::from_secs(5);
/// What this host knows of a router that it stood by for waits for so long until that is made, which a host
/// that takes over many has much to do with.
const TAKE_OVER_LIMIT: Duration = Duration::from_secs(30);
/// Routers whose connections are kept at once.
const ARRIVALS: usize = 64;
/// Connections that a router is given before the thread looks at its leases again.
const AT_ONCE: usize = 8192;
/// How long a router may speak that needs no lease: a year, and again with each configuration.
const ALWAYS: Duration = Duration::from_secs(365 * 24 * 3600);
/// Name of the file in the state directory.
const PROMISES: &str = "router-promises";

pub(super) struct Keeper {
    pub(super) disk: Disk,
    pub(super) orders: Orders,
    pub(super) owner: Owner,
    pub(super) voter: Voter,
    /// Since then the voter's promises are all on the disk.
    pub(super) remembers_from: Instant,
    pub(super) promised: BTreeMap<RouterId, Promise>,
    pub(super) fence: Option<Fence>,
    pub(super) fenced: bool,
    /// Until when each router may speak, as the kernel was told.
    pub(super) open: BTreeMap<RouterId, Instant>,
    pub(super) trouble: Option<String>,
    pub(super) told: Option<Leased>,
    /// What routers tracked that are silent and leave, for whoever takes them.
    pub(super) handing: Vec<v1::HandOverRequest>,
    /// The same of routers that come here.
    pub(super) arrivals: BTreeMap<RouterId, Arrival>,
    /// The same of routers that this host stands by for.
    pub(super) store: Store,
    pub(super) standbys: Standbys,
}

pub(super) struct Arrival {
    /// Of the placement that ended.
    pub(super) epoch: u64,
    pub(super) connections: Vec<Tracked>,
    /// Longer it does not wait for the router to be made.
    pub(super) until: Instant,
    /// How many of them the router tracks already, and how many were tried; the first of them are gone.
    pub(super) taken: usize,
    pub(super) tried: usize,
}

impl Arrival {
    fn new(epoch: u64, connections: Vec<Tracked>, until: Instant) -> Self {
        Self {
            epoch,
            connections,
            until,
            taken: 0,
            tried: 0,
        }
    }
}

impl Keeper {
    pub(super) fn new(disk: Disk, orders: Orders, most: usize, standbys: Standbys) -> Self {
        let now = Instant::now();
        let kept = disk.load::<BTreeMap<RouterId, Promise>>(PROMISES);
        let (voter, remembers_from, promised) = match kept {
            Ok(Some(promises)) => (Voter::remembering(now, promises.clone()), now, promises),
            other => {
                if let Err(error) = other {
                    warn!(%error, "Promises about routers are lost: confirming none for a while");
                }
                (Voter::forgetful(now), now + HOLD, BTreeMap::new())
            }
        };
        let mut fence = Fence::open();
        let fenced = match &mut fence {
            Ok(fence) => fence.is_up().unwrap_or(false),
            Err(error) => {
                warn!(error = chain(error), "No fence for routers");
                false
            }
        };
        let mut keeper = Self {
            disk,
            orders: Orders::default(),
            owner: Owner::default(),
            voter,
            remembers_from,
            promised,
            fence: fence.ok(),
            fenced,
            open: BTreeMap::new(),
            trouble: None,
            told: None,
            handing: Vec::new(),
            arrivals: BTreeMap::new(),
            store: Store::new(most),
            standbys,
        };
        keeper.take(orders);
        // Nothing that was here before this process may speak again without a lease, after a reboot say.
        if keeper.orders.shared().is_some() && !keeper.fenced {
            keeper.raise(BTreeMap::new(), now);
        }
        keeper
    }

    /// New orders. What is not to run here any more is silent before a voter hears of it.
    pub(super) fn take(&mut self, orders: Orders) {
        let now = Instant::now();
        let stays = |(router, placed): &(&RouterId, &Placed)| {
            orders.routers.get(router).map(|new| new.epoch) == Some(placed.epoch)
        };
        let left: BTreeSet<IfName> = self
            .orders
            .routers
            .iter()
            .filter(|entry| !stays(entry))
            .flat_map(|(_, placed)| placed.ports.iter().cloned())
            .chain(ports_of_own(&self.orders).filter(|port| {
                let mut now_own = ports_of_own(&orders);
                !now_own.any(|own| own == *port)
            }))
            .collect();
        let gone: Vec<RouterId> = self
            .orders
            .routers
            .iter()
            .filter(|entry| !stays(entry))
            .map(|(router, _)| *router)
            .collect();
        let silent = !self.fenced
            || left.is_empty()
            || self.act("silencing routers", |fence| fence.forbid(&left));
        if silent && self.fenced && orders.shared().is_some() {
            for router in gone.iter().filter(|id| !orders.routers.contains_key(id)) {
                let epoch = self.orders.routers[router].epoch;
                self.handing.extend(leaving(*router, epoch));
            }
        }
        // New ports of a router that holds its lease may speak, too.
        self.open.clear();
        let mut claims = claims_of(&orders);
        for handing in self.handing.iter().filter_map(|h| h.router.as_ref()) {
            // Until another has what it tracked.
            claims.extend(handing.router_id.parse().map(|id| (id, handing.epoch)));
        }
        if !silent {
            // The kernel silences them when their time is over; until then no voter is told.
            self.owner = Owner::default();
        }
        let sets = orders.voting.as_ref().map(|voting| voting.sets.clone());
        self.owner.set_voters(sets.unwrap_or_default());
        self.owner.want(now, &claims);
        if !gone.is_empty() {
            info!(routers = ?gone, "Routers leave this host");
        }
        self.take_over(&orders, now);
        self.orders = orders;
        if self.fenced {
            let own = self.own();
            self.act("letting routers of this host's own speak", |fence| {
                fence.allow(&own)
            });
        }
    }

    /// What this host knows of routers that it stood by for comes with them.
    fn take_over(&mut self, orders: &Orders, now: Instant) {
        for (router, placed) in &orders.routers {
            let Some((epoch, connections)) = self.store.give(*router) else {
                continue;
            };
            let handed = self.arrivals.get(router).map(|arrival| arrival.epoch);
            // What the host itself handed over is newer.
            if epoch < placed.epoch && handed.is_none_or(|handed| handed < epoch) {
                let known = connections.len();
                info!(%router, known, "Takes over a router that this host stood by for");
                let arrival = Arrival::new(epoch, connections, now + TAKE_OVER_LIMIT);
                self.arrivals.insert(*router, arrival);
            }
        }
        let routers = orders.standby_for.keys().copied().collect();
        self.store.want(&routers);
        self.standbys.stand_by_for(&orders.standby_for);
    }

    /// What a router tracks that this host stands by for.
    pub(super) fn replicated(
        &mut self,
        from: HostId,
        claim: lease::Claim,
        batch: Batch,
    ) -> Result<Taken, Refused> {
        let taken = self.store.take(from, (claim.router, claim.epoch), batch)?;
        self.standbys.keeps(claim.router, taken);
        Ok(taken)
    }

    /// How long to wait before the next turn.
    pub(super) fn pace(&self, now: Instant) -> Duration {
        let mut arrivals = self.arrivals.values();
        match arrivals.clone().next() {
            None => self.owner.pace(now),
            Some(_) if arrivals.any(|arrival| arrival.tried > 0) => Duration::ZERO,
            Some(_) => lease::ACQUIRE,
        }
    }

    /// Ports that nobody else could have.
    fn own(&self) -> BTreeMap<IfName, Duration> {
        ports_of_own(&self.orders)
            .map(|port| (port, ALWAYS))
            .collect()
    }

    /// Voters hear that what was handed over is free.
    pub(super) fn release(&mut self) {
        let claims = claims_of(&self.orders);
        self.owner.want(Instant::now(), &claims);
    }

    pub(super) fn check_peer(&self, host: HostId) -> Result<(), Status> {
        let known = self.orders.voting.as_ref();
        match known.is_some_and(|voting| voting.peers.contains_key(&host)) {
            true => Ok(()),
            false => Err(Status::permission_denied(format!(
                "host {host} is no route host as far as this one knows"
            ))),
        }
    }

    /// What a router tracked elsewhere that may come here.
    pub(super) fn arrived(&mut self, claim: lease::Claim, connections: Vec<Tracked>) {
        let now = Instant::now();
        self.arrivals.retain(|_, arrival| now < arrival.until);
        if self.arrivals.len() < ARRIVALS {
            let arrival = Arrival::new(claim.epoch, connections, now + ARRIVAL_LIMIT);
            self.arrivals.insert(claim.router, arrival);
        }
    }

    /// Gives routers what they tracked elsewhere, as soon as they are made.
    pub(super) fn settle_arrivals(&mut self) {
        let now = Instant::now();
        let orders = &self.orders;
        self.arrivals.retain(|router, arrival| {
            if now >= arrival.until {
                return false;
            }
            let comes = orders.routers.get(router);
            if comes.is_none_or(|placed| placed.epoch <= arrival.epoch) {
                return true;
            }
            let netns = host_plan::OwnedName::router_netns(*router);
            // Some at a time: leases are kept meanwhile.
            let some = arrival.connections.len().min(AT_ONCE);
            match linux::track_connections(&netns, &arrival.connections[..some]) {
                Ok(None) => true,
                Ok(Some(taken)) => {
                    arrival.connections.drain(..some);
                    arrival.taken += taken;
                    arrival.tried += some;
                    let (taken, of) = (arrival.taken, arrival.tried);
                    let done = arrival.connections.is_empty();
                    if done {
                        info!(%router, taken, of, "Tracked connections came with a router");
                    }
                    !done
                }
                Err(error) => {
                    warn!(%router, error = chain(&error), "Tracked connections are lost");
                    false
                }
            }
        });
    }

    /// Held, and nothing is on its way that has to be there before the first packet.
    pub(super) fn may_open(&self, now: Instant) -> BTreeMap<RouterId, Instant> {
        let mut held = self.owner.held(now);
        held.retain(|router, _| {
            self.orders.routers.contains_key(router) && !self.arrivals.contains_key(router)
        });
        held
    }

    /// Votes for itself, and says what to ask the others.
    pub(super) fn turn(&mut self) -> Ask {
        let now = Instant::now();
        let ask = self.owner.ask(now);
        if let Some(host) = self.orders.host
            && self.orders.voting.is_some()
        {
            let confirmed = self.answer(host, &ask);
            self.owner.confirmed(Who::Host(host), now, &confirmed);
        }
        self.settle_arrivals();
        self.open_what_is_held();
        ask
    }

    /// As a voter. What it promises is on the disk before anybody hears of it.
    pub(super) fn answer(&mut self, from: HostId, ask: &Ask) -> Vec<lease::Claim> {
        let now = Instant::now();
        let confirmed = self.voter.answer(now, from, ask);
        if now < self.remembers_from {
            return confirmed;
        }
        let promises = self.voter.promises();
        if promises != self.promised {
            if let Err(error) = self.disk.save(PROMISES, &promises) {
                warn!(%error, "Keeping promises about routers failed: confirming none");
                return Vec::new();
            }
            self.promised = promises;
        }
        confirmed
    }

    pub(super) fn confirmed(&mut self, voter: Who, sent: Instant, claims: &[lease::Claim]) {
        self.owner.confirmed(voter, sent, claims);
        self.open_what_is_held();
    }

    /// Tells the kernel how long routers may speak.
    pub(super) fn open_what_is_held(&mut self) {
        let now = Instant::now();
        if self.orders.shared().is_none() {
            // Also of a host that asked before, and has nobody beside it any more.
            if self.fenced && self.act("taking away the fence", Fence::lower) {
                self.fenced = false;
                info!("Routers here need no lease: no other host could run them");
            }
            self.open.clear();
            return;
        }
        let held = self.may_open(now);
        if self.fenced && !self.is_up() {
            // `nft flush ruleset` takes it away, say.
            warn!("The fence of routers is gone: putting it up again");
            self.raise(held, now);
            return;
        }
        if !self.fenced {
            // What runs already is not cut off because of who is asked from now on.
            if held.len() == self.orders.routers.len() {
                self.raise(held, now);
            }
            return;
        }
        let longer: BTreeMap<RouterId, Instant> = held
            .into_iter()
            .filter(|(router, until)| self.open.get(router).is_none_or(|open| open < until))
            .collect();
        if longer.is_empty() {
            return;
        }
        let ports = self.ports(&longer, now);
        if !self.act("letting routers speak", |fence| fence.allow(&ports)) {
            return;
        }
        // Whoever was stopped between looking at the clock and telling the kernel told it too much.
        let now = Instant::now();
        let (late, in_time): (BTreeMap<_, _>, BTreeMap<_, _>) =
            longer.into_iter().partition(|(_, until)| *until <= now);
        if !late.is_empty() {
            let ports: Vec<IfName> = self.ports_of(late.keys()).cloned().collect();
            self.act("silencing routers", |fence| fence.forbid(&ports));
        }
        self.open.extend(in_time);
    }

    pub(super) fn raise(&mut self, held: BTreeMap<RouterId, Instant>, now: Instant) {
        let mut ports = self.ports(&held, now);
        ports.extend(self.own());
        if self.act("putting up the fence", |fence| fence.raise(&ports)) {
            self.fenced = true;
            self.open = held;
            info!("Routers here run by a lease from now on");
        }
    }

    /// True as well if that cannot be read.
    pub(super) fn is_up(&mut self) -> bool {
        let up = self.fence.as_mut().map(Fence::is_up);
        !matches!(up, Some(Ok(false)))
    }

    /// For another host. One that could not silence a router itself lets nobody else have it.
    pub(super) fn answer_other(&mut self, from: HostId, ask: &Ask) -> Vec<lease::Claim> {
        let unsafe_here = !self.fenced && !self.orders.routers.is_empty();
        match unsafe_here {
            true => Vec::new(),
            false => self.answer(from, ask),
        }
    }

    pub(super) fn ports_of<'a>(
        &'a self,
        routers: impl Iterator<Item = &'a RouterId>,
    ) -> impl Iterator<Item = &'a IfName> {
        routers
            .filter_map(|router| self.orders.routers.get(router))
            .flat_map(|placed| &placed.ports)
    }

    pub(super) fn ports(
        &self,
        routers: &BTreeMap<RouterId, Instant>,
        now: Instant,
    ) -> BTreeMap<IfName, Duration> {
        let timed = |(router, until): (&RouterId, &Instant)| {
            let placed = self.orders.routers.get(router)?;
            Some((placed, until.saturating_duration_since(now)))
        };
        let timed = routers.iter().filter_map(timed);
        timed
            .flat_map(|(placed, time)| placed.ports.iter().map(move |port| (port.clone(), time)))
            .collect()
    }

    /// True if it was done. What fails once may fail each time: it is told once.
    pub(super) fn act(
        &mut self,
        what: &str,
        act: impl FnOnce(&mut Fence) -> Result<(), linux::Error>,
    ) -> bool {
        let Some(fence) = &mut self.fence else {
            return false;
        };
        match act(fence) {
            Ok(()) => {
                self.trouble = None;
                true
            }
            Err(error) => {
                let error = chain(&error);
                if self.trouble.as_ref() != Some(&error) {
                    warn!(error, "Failed: {what}");
                    self.trouble = Some(error);
                }
                false
            }
        }
    }

    /// Whom to ask, and where.
    pub(super) fn others(&self) -> BTreeMap<Who, Option<SocketAddr>> {
        let (Some(host), Some(voting)) = (self.orders.host, &self.orders.voting) else {
            return BTreeMap::new();
        };
        let mut others = BTreeMap::new();
        // The server hears who lives, whether it counts or not.
        others.insert(Who::Server, None);
        for voter in voting.sets.iter().flatten() {
            if let Who::Host(id) = voter
                && *id != host
                && let Some(address) = voting.peers.get(id)
            {
                others.insert(*voter, Some(*address));
            }
        }
        others
    }

    /// What the loop does not know yet.
    pub(super) fn news(&mut self) -> Option<Leased> {
        let now = Instant::now();
        let shared = self.orders.shared().is_some();
        let own = self.orders.host;
        let mut heard = self.voter.heard(now);
        heard.retain(|host| Some(*host) != own);
        let leased = Leased {
            held: self.fenced.then(|| {
                let own = self.orders.own.keys().copied();
                self.may_open(now).into_keys().chain(own).collect()
            }),
            // Only what is enforced is told.
            voters: match &self.orders.voting {
                Some(voting) if self.fenced || !shared => {
                    voting.sets.first().cloned().unwrap_or_default()
                }
                _ => VoterSet::new(),
            },
            heard,
        };
        if self.told.as_ref() == Some(&leased) {
            return None;
        }
        self.told = Some(leased.clone());
        Some(leased)
    }
}

fn ports_of_own(orders: &Orders) -> impl Iterator<Item = IfName> {
    orders.own.values().flatten().cloned()
}

fn claims_of(orders: &Orders) -> BTreeMap<RouterId, u64> {
    let routers = orders.routers.iter();
    routers.map(|(id, placed)| (*id, placed.epoch)).collect()
}

/// What a router that leaves tracks; none if that is nothing.
fn leaving(router: RouterId, epoch: u64) -> Option<v1::HandOverRequest> {
    let netns = host_plan::OwnedName::router_netns(router);
    let tracked = match linux::tracked_connections(&netns, api::MAX_TRACKED) {
        Ok(tracked) => tracked,
        Err(error) => {
            warn!(%router, error = chain(&error), "Tracked connections stay behind");
            return None;
        }
    };
    (!tracked.is_empty()).then(|| v1::HandOverRequest {
        router: Some((&lease::Claim { router, epoch }).into()),
        connections: tracked.iter().map(Into::into).collect(),
    })
}
