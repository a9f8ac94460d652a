//! Answers what NICs ask their router: names, and what they are told of themselves. On sockets inside of
//! the routers' namespaces, from the configuration alone: it needs no server, and no VPC hears of another.
//!
//! A thread of its own with a runtime of its own, so that no flood of questions keeps the agent from its
//! passes, and no pass a question from its answer. It reads what the loop publishes.

mod facts;
mod forward;
mod resolver;
mod shares;
mod tally;
mod web;

use crate::kernel::chain;
use crate::view::View;
use facts::Facts;
use forward::Forwarder;
use host_plan::OwnedName;
use linux::Netns;
use model::{HostConfig, NetnsName, RouterId, SubnetId};
use shares::{Pace, Shares};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::thread;
use std::time::{Duration, Instant};
pub(crate) use tally::Tally;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::{debug, info, warn};
use web::Session;

pub(crate) use forward::{Resolvers, of_host};

/// Between looks whether a namespace is still the one that is served.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The same while an address is not there yet.
const SOON: Duration = Duration::from_millis(200);

/// An address that is missing for longer is worth a word.
const TOLD_AFTER: Duration = Duration::from_secs(30);

/// Begins to answer, until `view` has no publisher any more.
pub(crate) fn start(view: watch::Receiver<Arc<View>>, resolvers: Resolvers) -> Tally {
    let tally = Tally::default();
    let server = Server {
        view,
        forwarder: Arc::new(Forwarder::new(resolvers)),
        session: Arc::new(Session::new()),
        tally: tally.clone(),
        config: None,
        routers: BTreeMap::new(),
        failed: BTreeMap::new(),
    };
    thread::Builder::new()
        .name("names".to_owned())
        .spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            match runtime {
                Ok(runtime) => runtime.block_on(server.run()),
                Err(error) => warn!(%error, "Nobody answers for names and metadata"),
            }
        })
        .expect("a process may start a thread");
    tally
}

struct Server {
    view: watch::Receiver<Arc<View>>,
    forwarder: Arc<Forwarder>,
    session: Arc<Session>,
    tally: Tally,
    /// What `routers` was made of.
    config: Option<Arc<HostConfig>>,
    routers: BTreeMap<RouterId, Served>,
    /// What cannot be listened at: since when, and whether that was told.
    failed: BTreeMap<(RouterId, Endpoint), (Instant, bool)>,
}

/// What is listened at in a router's namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Endpoint {
    /// The resolver of a subnet.
    Names(SubnetId, IpAddr),
    /// The metadata of all.
    Metadata(IpAddr),
}

/// One router's namespace.
struct Served {
    netns: NetnsName,
    /// Of the namespace that the sockets are in. They keep it alive, so no other gets its number.
    inode: u64,
    router: Arc<Router>,
    tasks: BTreeMap<Endpoint, Vec<Task>>,
}

/// What those who answer at one router share.
struct Router {
    facts: RwLock<Arc<Facts>>,
    forwarder: Arc<Forwarder>,
    tally: Tally,
    /// How often each NIC may ask.
    pace: Pace,
    /// Questions that others were asked, by NIC.
    forwarded: Shares,
    /// Connections that names are asked by.
    connections: Shares,
    /// Those that metadata are asked by.
    web: Shares,
    session: Arc<Session>,
}

impl Router {
    fn facts(&self) -> Arc<Facts> {
        // It is replaced at once, so it is whole also after a panic.
        Arc::clone(&self.facts.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Ends with this.
struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Server {
    async fn run(mut self) {
        // Each look is at all routers, and much is published that says nothing of where they listen.
        let mut look_at = tokio::time::Instant::now();
        let mut whole = false;
        loop {
            let view = Arc::clone(&self.view.borrow_and_update());
            let moved = view
                .managed
                .as_ref()
                .is_some_and(|config| self.take(config));
            let now = tokio::time::Instant::now();
            if moved || !whole || look_at <= now {
                whole = self.listen();
                look_at = now + if whole { LOOK_EVERY } else { SOON };
            }
            tokio::select! {
                changed = self.view.changed() => if changed.is_err() { return },
                () = tokio::time::sleep_until(look_at) => {}
            }
        }
    }

    /// Takes in a configuration: who has which name. True if there may be somewhere else to listen.
    fn take(&mut self, config: &Arc<HostConfig>) -> bool {
        let held = self.config.as_ref();
        if held.is_some_and(|held| Arc::ptr_eq(held, config)) {
            return false;
        }
        let mut moved = false;
        let here: BTreeSet<RouterId> = config.routers.iter().map(|router| router.id).collect();
        self.routers.retain(|id, _| here.contains(id));
        self.failed.retain(|(id, _), _| here.contains(id));
        for router in &config.routers {
            if let Some(served) = self.routers.get(&router.id) {
                let held = served.router.facts();
                if held.router() != router {
                    let facts = Arc::new(Facts::of(router));
                    moved |= facts.endpoints() != held.endpoints();
                    let mut place =
                        (served.router.facts.write()).unwrap_or_else(PoisonError::into_inner);
                    *place = facts;
                }
                continue;
            }
            let served = Served {
                netns: OwnedName::router_netns(router.id),
                inode: 0,
                router: Arc::new(Router {
                    facts: RwLock::new(Arc::new(Facts::of(router))),
                    forwarder: Arc::clone(&self.forwarder),
                    tally: self.tally.clone(),
                    pace: Pace::default(),
                    forwarded: Shares::new(FORWARDED_PER_NIC, FORWARDED_PER_ROUTER),
                    connections: Shares::new(CONNECTIONS_PER_NIC, CONNECTIONS_PER_ROUTER),
                    web: Shares::new(CONNECTIONS_PER_NIC, CONNECTIONS_PER_ROUTER),
                    session: Arc::clone(&self.session),
                }),
                tasks: BTreeMap::new(),
            };
            self.routers.insert(router.id, served);
            moved = true;
        }
        let nics = config.routers.iter().flat_map(|router| router.names.nics());
        self.tally.keep(&nics.map(|(_, nic)| nic.nic).collect());
        self.config = Some(Arc::clone(config));
        moved
    }

    /// Listens where nobody does yet; false if something is still to come.
    fn listen(&mut self) -> bool {
        let mut whole = true;
        for (id, served) in &mut self.routers {
            if !served.is_there() {
                whole = false;
                continue;
            }
            let wanted = served.router.facts().endpoints();
            served.tasks.retain(|endpoint, tasks| {
                wanted.contains(endpoint) && !tasks.iter().any(|task| task.0.is_finished())
            });
            for endpoint in wanted {
                if served.tasks.contains_key(&endpoint) {
                    continue;
                }
                let tasks = Netns::named(&served.netns)
                    .and_then(|netns| endpoint.serve(&netns, &served.router));
                match tasks {
                    Ok(tasks) => {
                        debug!(router = %id, ?endpoint, "Listening");
                        if let Some((_, true)) = self.failed.remove(&(*id, endpoint)) {
                            info!(router = %id, ?endpoint, "Listening after all");
                        }
                        served.tasks.insert(endpoint, tasks);
                    }
                    Err(error) => {
                        whole = false;
                        // The address is there when the router is, which takes a moment.
                        let now = Instant::now();
                        let failed = self.failed.entry((*id, endpoint));
                        let (since, told) = failed.or_insert((now, false));
                        if !*told && now.duration_since(*since) > TOLD_AFTER {
                            *told = true;
                            let error = chain(&error);
                            warn!(router = %id, ?endpoint, error, "Nobody answers there; trying again");
                        }
                    }
                }
            }
        }
        whole
    }
}

impl Served {
    /// True if the router has a namespace now. What was served in another that had its name ends.
    fn is_there(&mut self) -> bool {
        let path = Path::new(linux::NETNS_DIR).join(self.netns.as_str());
        let Ok(found) = std::fs::metadata(path) else {
            return false;
        };
        if found.ino() != self.inode {
            self.tasks.clear();
            self.inode = found.ino();
        }
        true
    }
}

impl Endpoint {
    fn serve(self, netns: &Netns, router: &Arc<Router>) -> Result<Vec<Task>, linux::Error> {
        match self {
            Self::Names(subnet, ip) => {
                let address = SocketAddr::new(ip, DNS_PORT);
                let udp = linux::bind_udp(netns, address)?;
                let tcp = linux::listen_tcp(netns, address, None)?;
                let (one, other) = (Arc::clone(router), Arc::clone(router));
                Ok(vec![
                    Task(tokio::spawn(resolver::udp(one, subnet, udp))),
                    Task(tokio::spawn(resolver::tcp(other, subnet, tcp))),
                ])
            }
            Self::Metadata(ip) => {
                let address = SocketAddr::new(ip, HTTP_PORT);
                // No router behind the NIC passes it on: only what has the NIC's own network reads it.
                let listener = linux::listen_tcp(netns, address, Some(1))?;
                let router = Arc::clone(router);
                Ok(vec![Task(tokio::spawn(web::serve(router, listener)))])
            }
        }
    }
}

const DNS_PORT: u16 = 53;
const HTTP_PORT: u16 = 80;
/// Questions under way that others were asked. At two seconds each until somebody else is asked, a NIC
/// still has a dozen a second while all resolvers are down.
const FORWARDED_PER_NIC: usize = 32;
const FORWARDED_PER_ROUTER: usize = 256;
/// A browser opens six. Of names and of metadata, each.
const CONNECTIONS_PER_NIC: usize = 8;
const CONNECTIONS_PER_ROUTER: usize = 256;
