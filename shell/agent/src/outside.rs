//! Asks DHCP servers outside for the addresses of routers that are to have theirs from there, and keeps
//! what they give on disk, so that a restart of the agent changes nothing.
//!
//! A thread of its own: no pass keeps a lease from being prolonged. Who runs a router somewhere else
//! asks with the same identity, so the server gives it the same address.

use crate::disk::{Disk, StateError};
use crate::events::Event;
use crate::kernel::chain;
use crate::view::{View, unix_now};
use api::v1;
use dhcp::{Client, Identity, OuterLease};
use host_plan::{DhcpUplink, OuterAddress, OwnedName};
use ipnet::Ipv4Net;
use linux::OuterSocket;
use model::{Condition, MacAddr, ObjectId, RouterId, UnixMillis};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

/// The file in the state directory.
const LEASES: &str = "outer-leases";
/// The thread looks at least this often whether the configuration changed or the agent ends.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Between looks whether a router's leg is still the same.
const CHECK_EVERY: Duration = Duration::from_secs(2);
/// After a failed write of the file.
const KEEP_RETRY: Duration = Duration::from_secs(5);
/// A server that has not answered for so long is worth a word.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a server gave, on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    mac: MacAddr,
    address: Ipv4Net,
    gateway: Option<Ipv4Addr>,
    server: Ipv4Addr,
    server_mac: MacAddr,
    /// When the router had this address first.
    since: UnixMillis,
    renewed: UnixMillis,
    renew_at: UnixMillis,
    rebind_at: UnixMillis,
    until: UnixMillis,
}

/// What is known of a router's address.
#[derive(Debug, Clone, Default)]
struct Known {
    name: String,
    bridge: String,
    kept: Option<Kept>,
    /// Since when no server has answered.
    asking_since: Option<UnixMillis>,
}

/// Shared by the thread that asks and those who show what it knows.
#[derive(Debug, Clone, Default)]
pub(crate) struct Outside(Arc<Mutex<BTreeMap<RouterId, Known>>>);

impl Outside {
    /// What was given to an agent before.
    pub(crate) fn load(disk: &Disk) -> Result<Self, StateError> {
        let kept: BTreeMap<RouterId, Kept> = match disk.load(LEASES) {
            Err(damage @ StateError::Damaged { .. }) => {
                let aside = disk.set_aside(LEASES)?;
                warn!(%damage, aside = %aside.display(), "Set aside; routers ask for their addresses anew");
                BTreeMap::new()
            }
            other => other?.unwrap_or_default(),
        };
        let now = unix_now();
        let held = kept.into_iter().filter(|(_, kept)| kept.until > now);
        let known = held.map(|(id, kept)| {
            let kept = Some(kept);
            (
                id,
                Known {
                    kept,
                    ..Known::default()
                },
            )
        });
        Ok(Self(Arc::new(Mutex::new(known.collect()))))
    }

    /// The addresses that routers have.
    pub(crate) fn addresses(&self) -> BTreeMap<RouterId, OuterAddress> {
        let known = self.lock();
        let held = known.iter().filter_map(|(id, known)| {
            let kept = known.kept.as_ref()?;
            let (address, gateway) = (kept.address, kept.gateway);
            Some((*id, OuterAddress { address, gateway }))
        });
        held.collect()
    }

    /// Begins to ask, until `view` has no publisher any more.
    pub(crate) fn start(
        &self,
        view: watch::Receiver<Arc<View>>,
        disk: &Disk,
        events: mpsc::Sender<Event>,
    ) {
        let asking = Asking {
            shared: self.clone(),
            view,
            disk: disk.clone(),
            events,
            routers: BTreeMap::new(),
            told: self.addresses(),
            conditions: Vec::new(),
            on_disk: false,
            keep_after: Instant::now(),
        };
        thread::Builder::new()
            .name("outside".to_owned())
            .spawn(move || asking.run())
            .expect("a process may start a thread");
    }

    /// Routers whose server does not answer.
    pub(crate) fn conditions(&self) -> Vec<Condition> {
        let now = unix_now();
        let known = self.lock();
        let silent = known.iter().filter_map(|(id, known)| {
            let since = known.asking_since?;
            let patience = u64::try_from(PATIENCE.as_millis()).unwrap_or(u64::MAX);
            if now.0.saturating_sub(since.0) < patience {
                return None;
            }
            let (name, bridge) = (&known.name, &known.bridge);
            let message = match &known.kept {
                // Its own server may be away for a while: any other may prolong it later.
                Some(kept) if now < kept.rebind_at => return None,
                Some(kept) => format!(
                    "router {name} loses its address outside, {}, at the end of its lease, as no DHCP \
                     server on {bridge} prolongs it: see that the server runs and is reached from there",
                    kept.address
                ),
                None => format!(
                    "router {name} has no address outside, as no DHCP server answers on {bridge}: see \
                     that one runs there, has an address left and gets frames from the bridge"
                ),
            };
            Some(Condition {
                object: ObjectId::Router(*id),
                message,
                since,
                attempts: 0,
            })
        });
        silent.collect()
    }

    /// What is known of a router's address; none if it does not ask for one.
    pub(crate) fn of(&self, router: RouterId) -> Option<v1::UplinkLease> {
        let known = self.lock();
        let known = known.get(&router)?;
        let asking_since_unix_ms = known.asking_since.map_or(0, |since| since.0);
        let Some(kept) = &known.kept else {
            return Some(v1::UplinkLease {
                asking_since_unix_ms,
                ..v1::UplinkLease::default()
            });
        };
        Some(v1::UplinkLease {
            address: kept.address.to_string(),
            gateway: kept.gateway.map_or(String::new(), |ip| ip.to_string()),
            server: kept.server.to_string(),
            since_unix_ms: kept.since.0,
            renewed_unix_ms: kept.renewed.0,
            until_unix_ms: kept.until.0,
            asking_since_unix_ms,
        })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<RouterId, Known>> {
        // Each change is a single one, so it is whole also after a panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One that asks.
struct Router {
    uplink: DhcpUplink,
    client: Client,
    /// What the client had when that was noted last.
    noted: Option<OuterLease>,
    socket: Option<OuterSocket>,
    checked: Instant,
    /// It may run here: another host may have it otherwise, and it is silent.
    runs: bool,
}

struct Asking {
    shared: Outside,
    view: watch::Receiver<Arc<View>>,
    disk: Disk,
    events: mpsc::Sender<Event>,
    routers: BTreeMap<RouterId, Router>,
    /// What the loop knows.
    told: BTreeMap<RouterId, OuterAddress>,
    conditions: Vec<Condition>,
    /// What is held is on disk.
    on_disk: bool,
    /// It is not written before.
    keep_after: Instant,
}

impl Asking {
    fn run(mut self) {
        loop {
            if self.view.has_changed().is_err() {
                return;
            }
            self.look();
            let now = Instant::now();
            for router in self.routers.values_mut() {
                router.turn(now);
            }
            self.note(now);
            if self.tell().is_err() {
                return;
            }
            let asking = self.routers.values().filter(|router| router.asks());
            let next = asking.map(|router| router.client.poll_timeout()).min();
            let wait = next.map_or(LOOK_EVERY, |at| {
                at.saturating_duration_since(Instant::now()).min(LOOK_EVERY)
            });
            let sockets = self.routers.values().filter_map(|r| r.socket.as_ref());
            if let Err(error) = OuterSocket::wait(sockets, wait) {
                warn!(error = chain(&error), "Waiting for DHCP servers failed");
                thread::park_timeout(LOOK_EVERY);
            }
        }
    }

    /// Takes in what the loop published.
    fn look(&mut self) {
        let view = Arc::clone(&self.view.borrow_and_update());
        let wanted: BTreeMap<RouterId, &DhcpUplink> = (view.dhcp_uplinks.iter())
            .map(|uplink| (uplink.router, uplink))
            .collect();
        self.routers
            .retain(|id, router| wanted.get(id) == Some(&&router.uplink));
        // Before anything is settled routers may be missing that are the server's to tell of.
        if view.settled > 0 {
            let mut known = self.shared.lock();
            let before = known.len();
            known.retain(|id, _| wanted.contains_key(id));
            self.on_disk &= known.len() == before;
        }
        let now = Instant::now();
        for (id, uplink) in wanted {
            let shared = &self.shared;
            let router = self.routers.entry(id).or_insert_with(|| {
                let noted = shared.lease(uplink, now);
                let identity = identity(uplink);
                let client = match noted {
                    Some(lease) => Client::resume(identity, lease, now, rand::random()),
                    None => Client::new(identity, now, rand::random()),
                };
                Router {
                    uplink: uplink.clone(),
                    client,
                    noted,
                    socket: None,
                    checked: now,
                    runs: false,
                }
            });
            router.runs = view.leased.may_run(id);
        }
    }

    /// What became of leases.
    fn note(&mut self, now: Instant) {
        let unix = unix_now();
        let mut all = self.shared.lock();
        for (id, router) in &mut self.routers {
            let known = all.entry(*id).or_default();
            known.name.clone_from(&router.uplink.name);
            known.bridge = router.uplink.bridge.to_string();
            let since = router.client.asking_since().filter(|_| router.runs);
            known.asking_since = since.map(|since| {
                // Told once, so that it does not waver with the clocks.
                let passed = now.saturating_duration_since(since).as_millis();
                let begun = UnixMillis(unix.0.saturating_sub(u64::try_from(passed).unwrap_or(0)));
                known.asking_since.unwrap_or(begun)
            });
            let lease = router.client.lease().copied();
            if lease != router.noted {
                router.noted = lease;
                known.take(lease, router.uplink.mac, now, unix);
                self.on_disk = false;
            }
        }
    }

    /// Tells the loop what it does not know; an error if it has ended. What is not on disk is told all
    /// the same: routers are to go on.
    fn tell(&mut self) -> Result<(), ()> {
        let now = Instant::now();
        if !self.on_disk && now >= self.keep_after {
            let kept: BTreeMap<RouterId, Kept> = (self.shared.lock().iter())
                .filter_map(|(id, known)| Some((*id, known.kept.clone()?)))
                .collect();
            match self.disk.save(LEASES, &kept) {
                Ok(()) => self.on_disk = true,
                Err(error) => {
                    warn!(
                        error = chain(&error),
                        "Addresses of routers outside are not on disk"
                    );
                    self.keep_after = now + KEEP_RETRY;
                }
            }
        }
        let addresses = self.shared.addresses();
        if addresses != self.told {
            self.told.clone_from(&addresses);
            let told = self.events.blocking_send(Event::Outer(addresses));
            told.map_err(drop)?;
        }
        let conditions = self.shared.conditions();
        if conditions != self.conditions {
            self.conditions = conditions;
            self.events.blocking_send(Event::Metered).map_err(drop)?;
        }
        Ok(())
    }
}

impl Router {
    fn asks(&self) -> bool {
        self.runs && self.socket.is_some()
    }

    /// Takes what came, and asks what is due.
    fn turn(&mut self, now: Instant) {
        let netns = OwnedName::router_netns(self.uplink.router);
        let link = OwnedName::router_outer(self.uplink.router);
        if now.saturating_duration_since(self.checked) >= CHECK_EVERY {
            self.checked = now;
            self.socket
                .take_if(|socket| !socket.is_current(&netns, &link));
        }
        if self.socket.is_none() {
            // Not there yet, or there is no bridge: who makes it says so.
            self.socket = OuterSocket::open(&netns, &link).ok().flatten();
        }
        if !self.asks() {
            let ended = self
                .client
                .lease()
                .is_some_and(|lease| lease.ends_at <= now);
            if ended {
                self.client = Client::new(identity(&self.uplink), now, rand::random());
            }
            return;
        }
        let Some(socket) = &self.socket else { return };
        let heard = || -> Result<Vec<Vec<u8>>, linux::Error> {
            let mut frames = Vec::new();
            while let Some(frame) = socket.receive()? {
                frames.push(frame);
            }
            Ok(frames)
        };
        let mut failed = None;
        match heard() {
            Ok(frames) => {
                for frame in frames {
                    self.client.handle_frame(now, &frame);
                }
            }
            Err(error) => failed = Some(error),
        }
        self.client.handle_timeout(now);
        if let Some(frame) = self.client.poll_transmit()
            && let Err(error) = socket.send(&frame)
        {
            failed = Some(error);
        }
        if let Some(error) = failed {
            let router = &self.uplink.name;
            warn!(%router, error = chain(&error), "DHCP on a router's leg outside fails");
            self.socket = None;
        }
    }
}

impl Outside {
    /// What a router was given before, if that was for its present MAC.
    fn lease(&self, uplink: &DhcpUplink, now: Instant) -> Option<OuterLease> {
        let mut all = self.lock();
        let known = all.get_mut(&uplink.router)?;
        known.kept.take_if(|kept| kept.mac != uplink.mac);
        Some(known.kept.as_ref()?.lease(now, unix_now()))
    }
}

/// The same wherever the router runs.
fn identity(uplink: &DhcpUplink) -> Identity {
    // Type 0: not a hardware address.
    let id = format!("\0vpc-{}", uplink.router).into_bytes();
    Identity {
        mac: uplink.mac,
        id,
    }
}

impl Known {
    /// Takes in what the client has now.
    fn take(&mut self, lease: Option<OuterLease>, mac: MacAddr, now: Instant, unix: UnixMillis) {
        let router = &self.name;
        let before = self.kept.take();
        let Some(lease) = lease else {
            if let Some(Kept { address, .. }) = before {
                warn!(router, %address, "A router has no right to its address outside any more");
            }
            return;
        };
        let same = before.filter(|kept| kept.address == lease.address);
        if same.is_none() {
            let OuterLease {
                address, server, ..
            } = lease;
            info!(router, %address, %server, "A router has an address outside");
        }
        let since = same.map_or(unix, |kept| kept.since);
        self.kept = Some(Kept::of(&lease, mac, since, now, unix));
    }
}

impl Kept {
    fn of(
        lease: &OuterLease,
        mac: MacAddr,
        since: UnixMillis,
        now: Instant,
        unix: UnixMillis,
    ) -> Self {
        let at = |instant: Instant| {
            let left = instant.saturating_duration_since(now).as_millis();
            UnixMillis(
                unix.0
                    .saturating_add(u64::try_from(left).unwrap_or(u64::MAX)),
            )
        };
        Self {
            mac,
            address: lease.address,
            gateway: lease.gateway,
            server: lease.server,
            server_mac: lease.server_mac,
            since,
            renewed: unix,
            renew_at: at(lease.renew_at),
            rebind_at: at(lease.rebind_at),
            until: at(lease.ends_at),
        }
    }

    fn lease(&self, now: Instant, unix: UnixMillis) -> OuterLease {
        let at = |when: UnixMillis| now + Duration::from_millis(when.0.saturating_sub(unix.0));
        OuterLease {
            address: self.address,
            gateway: self.gateway,
            server: self.server,
            server_mac: self.server_mac,
            renew_at: at(self.renew_at),
            rebind_at: at(self.rebind_at),
            ends_at: at(self.until),
        }
    }
}
