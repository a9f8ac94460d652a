//! The leases of the routers here: asks the voters, votes for others, and lets routers speak as long as a
//! majority says so.
//!
//! A thread of its own: neither the kernel's work nor a busy agent may make it late. The fence is the
//! kernel's (`linux::Fence`), so that a router falls silent in time whatever becomes of this process.

mod listen;

use crate::disk::Disk;
use crate::events::Event;
use crate::kernel::chain;
use api::tonic::Status;
use api::tonic::transport::Channel;
use api::v1::router_lease_client::RouterLeaseClient;
use api::{Credential, v1};
use lease::{Ask, HOLD, Owner, Promise, Voter};
use linux::Fence;
use model::{HostConfig, HostId, IfName, RouterId, Tracked, Voter as Who, VoterSet, Voting};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

/// A voter that has not answered by then is asked again, on another connection.
const ANSWER_LIMIT: Duration = Duration::from_millis(500);
/// Between attempts to reach a voter.
const RETRY: Duration = Duration::from_millis(200);
/// For new orders to be taken.
const TAKE_LIMIT: Duration = Duration::from_secs(1);
/// Whoever does not take over what a router tracked by then does without.
const HAND_OVER_LIMIT: Duration = Duration::from_millis(250);
/// What came for a router that does not come is kept for so long.
const ARRIVAL_LIMIT: Duration = Duration::from_secs(5);
/// Routers whose connections are kept at once.
const ARRIVALS: usize = 64;
/// Name of the file in the state directory.
const PROMISES: &str = "router-promises";

/// What the loop tells the thread.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Orders {
    host: Option<HostId>,
    address: Option<IpAddr>,
    voting: Option<Voting>,
    routers: BTreeMap<RouterId, Placed>,
}

/// A router that is to run here.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Placed {
    epoch: u64,
    ports: BTreeSet<IfName>,
}

/// What the thread tells the loop.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Leased {
    /// Routers that may run here; none is all that are placed here.
    pub(crate) held: Option<BTreeSet<RouterId>>,
    /// By whose word they do.
    pub(crate) voters: VoterSet,
    /// Route hosts that asked this one lately.
    pub(crate) heard: BTreeSet<HostId>,
}

impl Leased {
    /// True if this router may be announced.
    pub(crate) fn may_run(&self, router: RouterId) -> bool {
        self.held.as_ref().is_none_or(|held| held.contains(&router))
    }
}

impl Orders {
    /// What a configuration comes to.
    pub(crate) fn of(config: &HostConfig) -> Self {
        let ports = |router: &model::RouterConfig| {
            let legs = router.legs.iter();
            let legs = legs.map(|leg| host_plan::OwnedName::router_leg(leg.subnet));
            let outer = router.uplink.iter();
            let transit = router.transit.iter();
            legs.chain(outer.map(|_| host_plan::OwnedName::router_outer(router.id)))
                .chain(transit.map(|_| host_plan::OwnedName::router_transit(router.id)))
                .collect()
        };
        let placed = config.routers.iter().map(|router| {
            let placed = Placed {
                epoch: router.epoch,
                ports: ports(router),
            };
            (router.id, placed)
        });
        Self {
            host: Some(config.host),
            address: Some(config.underlay.address),
            voting: config.voting.clone(),
            routers: placed.collect(),
        }
    }

    /// Somebody else could run them.
    fn shared(&self) -> Option<(HostId, &Voting)> {
        let (host, voting) = (self.host?, self.voting.as_ref()?);
        (!voting.is_alone(host)).then_some((host, voting))
    }
}

/// The way to the thread.
#[derive(Debug, Clone)]
pub(crate) struct Leases {
    orders: watch::Sender<Numbered>,
    taken: watch::Receiver<u64>,
}

/// Orders, and how many there were before them.
type Numbered = (u64, Orders);

impl Leases {
    /// Starts it, in the calling thread's network namespace.
    pub(crate) fn start(
        orders: Orders,
        disk: Disk,
        credential: PathBuf,
        events: mpsc::Sender<Event>,
    ) -> Self {
        let mut keeper = Keeper::new(disk, orders.clone());
        // What is renewed before anything else starts has not run out.
        keeper.turn();
        let orders = watch::Sender::new((0, orders));
        let given = orders.subscribe();
        let (took, taken) = watch::channel(0);
        thread::Builder::new()
            .name("lease".to_owned())
            .spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build();
                match runtime {
                    Ok(runtime) => runtime.block_on(run(given, took, keeper, credential, events)),
                    Err(error) => warn!(%error, "Routers here cannot get a lease"),
                }
            })
            .expect("a process may start a thread");
        Self { orders, taken }
    }

    /// From now on for these; returns when they are taken, or after a while if the thread is stuck.
    pub(crate) async fn order(&mut self, orders: Orders) {
        let mut number = 0;
        self.orders.send_modify(|held| {
            number = held.0 + 1;
            *held = (number, orders);
        });
        let taken = self.taken.wait_for(|taken| *taken >= number);
        // The fence does not depend on it.
        drop(timeout(TAKE_LIMIT, taken).await);
    }
}

/// What the tasks of the thread share.
#[derive(Clone)]
struct Shared {
    keeper: Arc<Mutex<Keeper>>,
    /// An answer came, or an order.
    news: Arc<Notify>,
    /// Voters are to be asked at once.
    hurry: Arc<Notify>,
    /// Route hosts that are reached.
    clients: Arc<Mutex<BTreeMap<Who, RouterLeaseClient<Channel>>>>,
}

impl Shared {
    fn keeper(&self) -> MutexGuard<'_, Keeper> {
        self.keeper.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn clients(&self) -> MutexGuard<'_, BTreeMap<Who, RouterLeaseClient<Channel>>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Keeper {
    disk: Disk,
    orders: Orders,
    owner: Owner,
    voter: Voter,
    /// Since then the voter's promises are all on the disk.
    remembers_from: Instant,
    promised: BTreeMap<RouterId, Promise>,
    fence: Option<Fence>,
    fenced: bool,
    /// Until when each router may speak, as the kernel was told.
    open: BTreeMap<RouterId, Instant>,
    trouble: Option<String>,
    told: Option<Leased>,
    /// What routers tracked that are silent and leave, for whoever takes them.
    handing: Vec<v1::HandOverRequest>,
    /// The same of routers that come here.
    arrivals: BTreeMap<RouterId, Arrival>,
}

struct Arrival {
    /// Of the placement that ended.
    epoch: u64,
    connections: Vec<Tracked>,
    at: Instant,
}

async fn run(
    mut orders: watch::Receiver<Numbered>,
    took: watch::Sender<u64>,
    keeper: Keeper,
    credential: PathBuf,
    events: mpsc::Sender<Event>,
) {
    let shared = Shared {
        keeper: Arc::new(Mutex::new(keeper)),
        news: Arc::default(),
        hurry: Arc::default(),
        clients: Arc::default(),
    };
    let asks = watch::Sender::new(Arc::new(Ask::default()));
    let mut voters: BTreeMap<Who, Asking> = BTreeMap::new();
    let listening = listen::Listening::new(shared.clone(), credential.clone());
    loop {
        let due = {
            let mut keeper = shared.keeper();
            let (number, ordered) = orders.borrow_and_update().clone();
            if ordered != keeper.orders {
                keeper.take(ordered);
            }
            took.send_replace(number);
            let handing = std::mem::take(&mut keeper.handing);
            if !handing.is_empty() {
                tokio::spawn(hand_over(handing, shared.clone()));
            }
            asks.send_replace(Arc::new(keeper.turn()));
            listening.at(keeper.orders.shared().and(keeper.orders.address));
            let wanted = keeper.others();
            voters.retain(|who, asking| wanted.get(who) == Some(&asking.address));
            for (who, address) in wanted {
                voters.entry(who).or_insert_with(|| {
                    Asking::start(who, address, &credential, asks.subscribe(), shared.clone())
                });
            }
            let now = Instant::now();
            let pace = match keeper.arrivals.is_empty() {
                true => keeper.owner.pace(now),
                false => lease::ACQUIRE,
            };
            now + pace
        };
        loop {
            let news = shared.keeper().news();
            if let Some(news) = news
                && events.send(Event::Leased(news)).await.is_err()
            {
                return;
            }
            tokio::select! {
                () = sleep(due.saturating_duration_since(Instant::now())) => break,
                changed = orders.changed() => match changed {
                    Ok(()) => break,
                    Err(_) => return,
                },
                () = shared.hurry.notified() => break,
                // What was answered is in the kernel already; the loop is to hear of it.
                () = shared.news.notified() => {}
            }
        }
    }
}

impl Keeper {
    fn new(disk: Disk, orders: Orders) -> Self {
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
        };
        keeper.take(orders);
        // Nothing that was here before this process may speak again without a lease, after a reboot say.
        if keeper.orders.shared().is_some() && !keeper.fenced {
            keeper.raise(BTreeMap::new(), now);
        }
        keeper
    }

    /// New orders. What is not to run here any more is silent before a voter hears of it.
    fn take(&mut self, orders: Orders) {
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
        self.orders = orders;
    }

    /// Voters hear that what was handed over is free.
    fn release(&mut self) {
        let claims = claims_of(&self.orders);
        self.owner.want(Instant::now(), &claims);
    }

    fn check_peer(&self, host: HostId) -> Result<(), Status> {
        let known = self.orders.voting.as_ref();
        match known.is_some_and(|voting| voting.peers.contains_key(&host)) {
            true => Ok(()),
            false => Err(Status::permission_denied(format!(
                "host {host} is no route host as far as this one knows"
            ))),
        }
    }

    /// What a router tracked elsewhere that may come here.
    fn arrived(&mut self, claim: lease::Claim, connections: Vec<Tracked>) {
        let now = Instant::now();
        self.arrivals
            .retain(|_, arrival| now < arrival.at + ARRIVAL_LIMIT);
        if self.arrivals.len() < ARRIVALS {
            let arrival = Arrival {
                epoch: claim.epoch,
                connections,
                at: now,
            };
            self.arrivals.insert(claim.router, arrival);
        }
    }

    /// Gives routers what they tracked elsewhere, as soon as they are made.
    fn settle_arrivals(&mut self) {
        let now = Instant::now();
        let orders = &self.orders;
        self.arrivals.retain(|router, arrival| {
            if now >= arrival.at + ARRIVAL_LIMIT {
                return false;
            }
            let comes = orders.routers.get(router);
            if comes.is_none_or(|placed| placed.epoch <= arrival.epoch) {
                return true;
            }
            let netns = host_plan::OwnedName::router_netns(*router);
            match linux::track_connections(&netns, &arrival.connections) {
                Ok(None) => true,
                Ok(Some(taken)) => {
                    let of = arrival.connections.len();
                    info!(%router, taken, of, "Tracked connections came with a router");
                    false
                }
                Err(error) => {
                    warn!(%router, error = chain(&error), "Tracked connections are lost");
                    false
                }
            }
        });
    }

    /// Held, and nothing is on its way that has to be there before the first packet.
    fn may_open(&self, now: Instant) -> BTreeMap<RouterId, Instant> {
        let mut held = self.owner.held(now);
        held.retain(|router, _| {
            self.orders.routers.contains_key(router) && !self.arrivals.contains_key(router)
        });
        held
    }

    /// Votes for itself, and says what to ask the others.
    fn turn(&mut self) -> Ask {
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
    fn answer(&mut self, from: HostId, ask: &Ask) -> Vec<lease::Claim> {
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

    fn confirmed(&mut self, voter: Who, sent: Instant, claims: &[lease::Claim]) {
        self.owner.confirmed(voter, sent, claims);
        self.open_what_is_held();
    }

    /// Tells the kernel how long routers may speak.
    fn open_what_is_held(&mut self) {
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

    fn raise(&mut self, held: BTreeMap<RouterId, Instant>, now: Instant) {
        let ports = self.ports(&held, now);
        if self.act("putting up the fence", |fence| fence.raise(&ports)) {
            self.fenced = true;
            self.open = held;
            info!("Routers here run by a lease from now on");
        }
    }

    /// True as well if that cannot be read.
    fn is_up(&mut self) -> bool {
        let up = self.fence.as_mut().map(Fence::is_up);
        !matches!(up, Some(Ok(false)))
    }

    /// For another host. One that could not silence a router itself lets nobody else have it.
    fn answer_other(&mut self, from: HostId, ask: &Ask) -> Vec<lease::Claim> {
        let unsafe_here = !self.fenced && !self.orders.routers.is_empty();
        match unsafe_here {
            true => Vec::new(),
            false => self.answer(from, ask),
        }
    }

    fn ports_of<'a>(
        &'a self,
        routers: impl Iterator<Item = &'a RouterId>,
    ) -> impl Iterator<Item = &'a IfName> {
        routers
            .filter_map(|router| self.orders.routers.get(router))
            .flat_map(|placed| &placed.ports)
    }

    fn ports(
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
    fn act(
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
    fn others(&self) -> BTreeMap<Who, Option<SocketAddr>> {
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
    fn news(&mut self) -> Option<Leased> {
        let now = Instant::now();
        let shared = self.orders.shared().is_some();
        let own = self.orders.host;
        let mut heard = self.voter.heard(now);
        heard.retain(|host| Some(*host) != own);
        let leased = Leased {
            held: self
                .fenced
                .then(|| self.may_open(now).into_keys().collect()),
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

/// To all route hosts that are reached, as the one that takes the router is not known here; then it is free.
async fn hand_over(handing: Vec<v1::HandOverRequest>, shared: Shared) {
    let clients = shared.clients().clone();
    let hosts = clients
        .into_iter()
        .filter(|(who, _)| *who != Who::Server)
        .map(|(who, mut client)| {
            let handing = handing.clone();
            tokio::spawn(timeout(HAND_OVER_LIMIT, async move {
                for request in handing {
                    if let Err(status) = client.hand_over(request).await {
                        debug!(host = %who, reason = status.message(), "Not handed over");
                    }
                }
            }))
        });
    let hosts: Vec<_> = hosts.collect();
    for host in hosts {
        drop(host.await);
    }
    shared.keeper().release();
    shared.hurry.notify_one();
}

/// A task that asks one voter.
struct Asking {
    address: Option<SocketAddr>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Asking {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Asking {
    fn start(
        who: Who,
        address: Option<SocketAddr>,
        credential: &Path,
        asks: watch::Receiver<Arc<Ask>>,
        shared: Shared,
    ) -> Self {
        let credential = credential.to_owned();
        let task = tokio::spawn(ask_for_ever(who, address, credential, asks, shared));
        Self { address, task }
    }
}

async fn ask_for_ever(
    who: Who,
    address: Option<SocketAddr>,
    credential: PathBuf,
    mut asks: watch::Receiver<Arc<Ask>>,
    shared: Shared,
) {
    let mut reason = String::new();
    loop {
        let connected = timeout(2 * ANSWER_LIMIT, connect(who, address, &credential)).await;
        let ended = match connected {
            Ok(Ok(mut client)) => {
                debug!(voter = %who, "Reached");
                reason.clear();
                shared.clients().insert(who, client.clone());
                let ended = ask_on(who, &mut client, &mut asks, &shared).await;
                shared.clients().remove(&who);
                ended
            }
            Ok(Err(error)) => error,
            Err(_) => "no answer in 1 s".to_owned(),
        };
        if asks.has_changed().is_err() {
            return;
        }
        if ended != reason {
            debug!(voter = %who, reason = ended, "A voter does not answer");
            reason = ended;
        }
        sleep(RETRY).await;
    }
}

async fn connect(
    who: Who,
    address: Option<SocketAddr>,
    credential: &Path,
) -> Result<RouterLeaseClient<Channel>, String> {
    let credential = Credential::load(credential).map_err(|error| chain(&error))?;
    let client = match (who, address) {
        (Who::Host(host), Some(address)) => {
            api::connect_voter_host(&credential, host, address).await
        }
        _ => api::connect_voter_server(&credential).await,
    };
    client.map_err(|error| chain(&error))
}

/// Asks on one connection, until it fails.
async fn ask_on(
    who: Who,
    client: &mut RouterLeaseClient<Channel>,
    asks: &mut watch::Receiver<Arc<Ask>>,
    shared: &Shared,
) -> String {
    loop {
        let request = v1::ConfirmRequest::from(asks.borrow_and_update().as_ref());
        let sent = Instant::now();
        let answer = match timeout(ANSWER_LIMIT, client.confirm(request)).await {
            Err(_) => return "no answer in 0.5 s".to_owned(),
            Ok(Err(status)) => return status.message().to_owned(),
            Ok(Ok(answer)) => answer.into_inner(),
        };
        match api::confirmed(answer) {
            Err(error) => return error.to_string(),
            Ok(claims) => shared.keeper().confirmed(who, sent, &claims),
        }
        shared.news.notify_one();
        if asks.changed().await.is_err() {
            return "the agent is ending".to_owned();
        }
    }
}
