//! The leases of the routers here: asks the voters, votes for others, and lets routers speak as long as a
//! majority says so.
//!
//! A thread of its own: neither the kernel's work nor a busy agent may make it late. The fence is the
//! kernel's (`linux::Fence`), so that a router falls silent in time whatever becomes of this process.

mod ask;
mod keeper;
mod listen;

use crate::disk::Disk;
use crate::events::Event;
use crate::standby::{self, Job, Standbys};
use crate::told::alike;
use api::tonic::transport::Channel;
use api::v1::router_lease_client::RouterLeaseClient;
pub(crate) use ask::connect;
use ask::{Asking, hand_over};
use host_plan::{LocalStacks, OwnedName};
use keeper::Keeper;
use lease::{Ask, Claim};
use model::{HostConfig, HostId, IfName, RouterConfig, RouterId, Voter as Who, VoterSet, Voting};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{sleep, timeout};
use tracing::warn;

/// For new orders to be taken, and what routers tracked that leave to be read: after that their namespaces
/// go. A machine that does other work may take its time.
const TAKE_LIMIT: Duration = Duration::from_secs(5);

/// What the loop tells the thread.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Orders {
    host: Option<HostId>,
    address: Option<IpAddr>,
    voting: Option<Voting>,
    routers: BTreeMap<RouterId, Placed>,
    /// Ports of routers that need no lease, as nobody else could run them: those that the host's own API
    /// made, and gateways that every host has.
    own: BTreeMap<RouterId, BTreeSet<IfName>>,
    /// Routers of other hosts, with their names, of which this one keeps what they track.
    standby_for: BTreeMap<RouterId, String>,
}

/// A router that is to run here.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Placed {
    epoch: u64,
    ports: BTreeSet<IfName>,
    standby: Option<HostId>,
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
    /// What a configuration comes to, beside routers that the host's own API made.
    pub(crate) fn of(config: &HostConfig, local: &LocalStacks) -> Self {
        let here_only = config.routers.iter().filter(|router| router.anycast);
        let placed = config.routers.iter();
        let placed = placed.filter(|router| !router.anycast && !router.prepared);
        let placed = placed.map(|router| {
            let placed = Placed {
                epoch: router.epoch,
                ports: ports(router),
                standby: router.standby,
            };
            (router.id, placed)
        });
        Self {
            host: Some(config.host),
            address: Some(config.underlay.address),
            voting: config.voting.clone(),
            routers: placed.collect(),
            own: local
                .routers()
                .chain(here_only.map(Arc::as_ref))
                .map(|router| (router.id, ports(router)))
                .collect(),
            standby_for: config.standby_for.clone(),
        }
    }

    /// Whether two configurations come to the same, beside the same routers of the host's own API.
    pub(crate) fn are_the_same(was: &HostConfig, is: &HostConfig) -> bool {
        let of_host = |config: &HostConfig| (config.host, config.underlay.address);
        let routers = was.routers.iter().zip(&is.routers);
        let mut routers = routers.map(|(was, is)| alike(was, is) && was.standby == is.standby);
        of_host(was) == of_host(is)
            && was.voting == is.voting
            && was.standby_for == is.standby_for
            && was.routers.len() == is.routers.len()
            && routers.all(|same| same)
    }

    /// Whose connections are to be told to whom.
    pub(crate) fn to_replicate(&self) -> impl Iterator<Item = Job> {
        let job = |(router, placed): (&RouterId, &Placed)| {
            let standby = placed.standby?;
            let address = *self.voting.as_ref()?.peers.get(&standby)?;
            let claim = Claim {
                router: *router,
                epoch: placed.epoch,
            };
            Some(Job {
                claim,
                standby,
                address,
            })
        };
        self.routers.iter().filter_map(job)
    }

    /// Somebody else could run them.
    fn shared(&self) -> Option<(HostId, &Voting)> {
        let (host, voting) = (self.host?, self.voting.as_ref()?);
        (!voting.is_alone(host)).then_some((host, voting))
    }
}

fn ports(router: &RouterConfig) -> BTreeSet<IfName> {
    let legs = router.legs.iter();
    let legs = legs.map(|leg| OwnedName::router_leg(leg.subnet));
    let outer = router.uplink.iter();
    let transit = router.transit.iter();
    legs.chain(outer.map(|_| OwnedName::router_outer(router.id)))
        .chain(transit.map(|_| OwnedName::router_transit(router.id)))
        .collect()
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
    /// Starts it, in the calling thread's network namespace, and what tells standbys of the routers here. A
    /// router may track `router_flows` connections.
    pub(crate) fn start(
        orders: Orders,
        disk: Disk,
        credential: PathBuf,
        events: mpsc::Sender<Event>,
        router_flows: u32,
        standbys: Standbys,
    ) -> Self {
        let most = router_flows as usize;
        let mut keeper = Keeper::new(disk, orders.clone(), most, standbys.clone());
        // What is renewed before anything else starts has not run out.
        keeper.turn();
        let orders = watch::Sender::new((0, orders));
        let given = orders.subscribe();
        standby::start(orders.subscribe(), credential.clone(), most, standbys);
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

    /// From now on for these; nobody waits for it. The same again is none of the thread's affair.
    pub(crate) fn tell(&self, orders: Orders) {
        self.orders.send_if_modified(|held| {
            let differs = held.1 != orders;
            if differs {
                *held = (held.0 + 1, orders);
            }
            differs
        });
    }

    /// From now on for these; returns when they are taken, or after a while if the thread is stuck.
    pub(crate) async fn order(&mut self, orders: Orders) {
        self.tell(orders);
        let number = self.orders.borrow().0;
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
            shared.clients().retain(|who, _| voters.contains_key(who));
            for (who, address) in wanted {
                voters.entry(who).or_insert_with(|| {
                    Asking::start(who, address, &credential, asks.subscribe(), shared.clone())
                });
            }
            let now = Instant::now();
            let pace = keeper.pace(now);
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
