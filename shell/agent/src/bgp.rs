//! The EVPN speaker as the agent uses it: started when there is a configuration, told what is
//! behind this host, asked what it learned.

use crate::evpn_api::{EvpnApi, EvpnSource};
use crate::rd::Of;
use evpn::{
    Config, LocalEvi, LocalIpVrf, LocalMac, LocalState, MacLimit, Members, PeerConfig, Policy,
    Role, RouteTargets, Routed, Sequences, StopKind, Timing, router_id_of as router_id,
};
use frr::{Macs, Sessions, Wanted};
use frr_driver::{Driver, Options as FrrOptions, Status as FrrStatus};
use host_plan::Readiness;
use model::{
    Asn, BgpConfig, Capability, Encoding, Forwarding, HostConfig, MacAddr, Mtu, PortRole,
    Reflector, RouterConfig, RouterLeg, Secret, Segment, SpeakerKind, Stack, SubnetId, Tag,
    UnixMillis, Vni,
};
use speaker::{Peer, SpeakerConfig, SpeakerHandle};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tracing::{error, info, warn};

/// Where the listener connects from: on no interface, because bgpd takes no address of its own host
/// for a neighbour's.
const LISTENER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
/// How long a session of bgpd's must have been up before what it withdraws is believed, as
/// [`evpn::Timing::handover`]: others come to a reflector that started over at about the same time.
pub(crate) const SETTLED: Duration = Duration::from_secs(10);
/// How long the listener waits between attempts at most: it connects to its own host, and until bgpd
/// takes it in this host hears nothing.
const LISTENER_RETRY: Duration = Duration::from_millis(250);
/// For how long rows stay while no reflector is up: as long as our own reflectors ask for
/// (RFC 9494), so that it does not matter who speaks.
const ABANDONED: Duration = Duration::from_secs(24 * 3600);
/// How long a pass waits for bgpd to know of an instance. Without it the instance's device would
/// come first, and bgpd would make up a distinguisher that may be another instance's.
const PREPARE: Duration = Duration::from_secs(3);

/// The speaker, which may not have been started yet.
#[derive(Debug)]
pub(crate) struct Bgp {
    /// Kernel rows of an earlier speaker are in place (the F bit of RFC 4724).
    preserved: bool,
    /// What the speaker puts up with.
    policy: Policy,
    /// Where FRR lives, if it is the client.
    frr_dir: PathBuf,
    frr: watch::Receiver<FrrStatus>,
    /// What FRR has been told of instances.
    expected: u64,
    running: Option<Running>,
    local: watch::Sender<Option<LocalState>>,
    forwarding: watch::Receiver<Arc<Forwarding>>,
    source: watch::Sender<EvpnSource>,
    /// Mobility sequences that grew here.
    raised: watch::Sender<Sequences>,
    grown: watch::Receiver<Sequences>,
    /// Keeps `forwarding` open while nothing runs.
    standalone: watch::Sender<Arc<Forwarding>>,
}

#[derive(Debug)]
struct Running {
    /// The client, or beside FRR the one that listens to it.
    handle: SpeakerHandle,
    frr: Option<Frr>,
    asn: Asn,
    address: IpAddr,
    reflectors: Vec<Reflector>,
    members: Members,
    /// What `members` are by.
    host: Option<Arc<HostConfig>>,
}

#[derive(Debug)]
struct Frr {
    driver: Driver,
    reflectors: watch::Sender<BTreeSet<IpAddr>>,
}

/// What there is to hear of.
#[derive(Debug)]
pub(crate) enum News {
    /// The forwarding state changed.
    Forwarding(Arc<Forwarding>),
    /// FRR is otherwise than before.
    Frr,
    /// [`Bgp::raised`] is.
    Raised,
}

impl Running {
    fn kind(&self) -> SpeakerKind {
        match self.frr {
            None => SpeakerKind::Builtin,
            Some(_) => SpeakerKind::Frr,
        }
    }

    /// Ends it; its peers keep its routes as for a restart, or forget them.
    async fn stop(self, kind: StopKind, why: &str) {
        if let Some(frr) = self.frr {
            frr.driver.stop(kind == StopKind::Withdraw).await;
        }
        // If it has ended already there is nothing left to say.
        let _ended = self.handle.stop_saying(kind, why).await;
    }
}

impl Bgp {
    pub(crate) fn new(preserved: bool, run_dir: &Path, mac_limit: Option<u32>) -> Self {
        let standalone = watch::Sender::new(Arc::new(Forwarding::default()));
        let raised = watch::Sender::default();
        Self {
            preserved,
            policy: Policy {
                mac_limit: mac_limit.map(MacLimit::new),
                ..Policy::default()
            },
            frr_dir: run_dir.join("frr"),
            frr: watch::Sender::default().subscribe(),
            expected: 0,
            running: None,
            local: watch::Sender::new(None),
            forwarding: standalone.subscribe(),
            source: watch::Sender::default(),
            grown: raised.subscribe(),
            raised,
            standalone,
        }
    }

    /// Questions to the speaker, for the local API.
    pub(crate) fn api(&self) -> EvpnApi {
        EvpnApi::new(self.source.subscribe())
    }

    /// A host without a management server has no reflectors: nothing will ever be learned, and
    /// that is complete.
    pub(crate) fn standalone(&mut self) {
        self.standalone.send_replace(Arc::new(Forwarding {
            complete: true,
            ..Default::default()
        }));
    }

    /// Starts the speaker, or gives a running one its reflectors and who else is in this host's
    /// subnets. Another AS or address is another speaker.
    pub(crate) async fn configure(&mut self, address: IpAddr, host: &Arc<HostConfig>) {
        let config = &host.bgp;
        let same = |running: &Running| {
            (running.kind(), running.asn, running.address) == (config.speaker, config.asn, address)
        };
        if !self.running.as_ref().is_some_and(same) {
            if let Some(old) = self.running.take() {
                info!("BGP speaker starts anew: its kind, AS or address changed");
                // Another program with the same name takes over what the peers have.
                let takes_over = (old.asn, old.address) == (config.asn, address);
                let kind = match takes_over {
                    true => StopKind::Restart,
                    false => StopKind::Withdraw,
                };
                old.stop(kind, "this host's AS or address changes").await;
            }
            let started = match config.speaker {
                SpeakerKind::Builtin => self.start(address, config.asn).await,
                SpeakerKind::Frr => self.start_frr(address, config).await,
            };
            match started {
                Ok(running) => self.running = Some(running),
                Err(error) => {
                    error!(
                        error = crate::kernel::chain(&*error),
                        "Starting the BGP speaker failed"
                    );
                    return;
                }
            }
        }
        let Some(running) = &mut self.running else {
            return;
        };
        let last = running.host.replace(Arc::clone(host));
        let same =
            last.is_some_and(|last| last.members == host.members && last.stacks == host.stacks);
        if !same {
            let members = members_of(host);
            if running.members != members {
                if running.handle.set_members(members.clone()).await.is_err() {
                    error!("The BGP speaker has ended");
                    return;
                }
                running.members = members;
            }
        }
        if running.reflectors != config.reflectors {
            match &running.frr {
                Some(frr) => {
                    let neighbours = Wanted::client(router_id(address), address, config).neighbours;
                    frr.driver
                        .set(|wanted| wanted.neighbours.clone_from(&neighbours));
                    frr.reflectors.send_replace(addresses(&config.reflectors));
                }
                None => {
                    let peers = config.reflectors.iter().map(|reflector| {
                        let mut peer = Peer::new(PeerConfig::REFLECTOR);
                        peer.port = reflector.port;
                        peer.password.clone_from(&reflector.password);
                        (reflector.address, peer)
                    });
                    if running.handle.set_peers(peers.collect()).await.is_err() {
                        error!("The BGP speaker has ended");
                        return;
                    }
                }
            }
            running.reflectors.clone_from(&config.reflectors);
        }
        self.source.send_replace(EvpnSource {
            frr: running.frr.as_ref().map(|frr| frr.driver.clone()),
            handle: Some(running.handle.clone()),
            peers: config.reflectors.clone(),
            asn: config.asn.get(),
            router_id: Some(router_id(address)),
        });
    }

    async fn start(&mut self, address: IpAddr, asn: Asn) -> Result<Running, Failed> {
        let config = SpeakerConfig {
            bgp: self.speaker(router_id(address), asn),
            local_address: Some(address),
            listen: Vec::new(),
        };
        let handle = SpeakerHandle::start(config).await?;
        self.forwarding = handle.forwarding();
        self.forwarding.mark_changed();
        self.frr = watch::Sender::default().subscribe();
        let (local, raised) = (self.local.subscribe(), self.raised.clone());
        tokio::spawn(pass_on(handle.clone(), local, raised));
        // The next speaker of this process comes to rows that this one put there.
        self.preserved = true;
        Ok(Running {
            handle,
            frr: None,
            asn,
            address,
            reflectors: Vec::new(),
            members: Members::new(),
            host: None,
        })
    }

    /// FRR as the client, and a speaker of ours that hears from it what it learned: rows are made by
    /// the same code from either, and stay while FRR is restarted.
    async fn start_frr(&mut self, address: IpAddr, config: &BgpConfig) -> Result<Running, Failed> {
        let password = listener_key(&self.frr_dir.with_extension("key"))?;
        let mut bgp = self.speaker(LISTENER, config.asn);
        bgp.timing.retry_max = LISTENER_RETRY;
        let listener = SpeakerConfig {
            bgp,
            local_address: Some(LISTENER.into()),
            listen: Vec::new(),
        };
        let handle = SpeakerHandle::start(listener).await?;
        let mut bgpd = Peer::new(PeerConfig::REFLECTOR);
        bgpd.port = frr_driver::LISTEN_PORT;
        bgpd.password = Some(password.clone());
        bgpd.gtsm = false;
        let peers = BTreeMap::from([(address, bgpd)]);
        handle.set_peers(peers).await?;

        let mut wanted = Wanted::client(router_id(address), address, config);
        wanted.listener = Some(frr::Listener {
            address: LISTENER,
            password,
        });
        let options = FrrOptions {
            dir: self.frr_dir.clone(),
        };
        let driver = Driver::start(options, wanted);
        let (gated, forwarding) = watch::channel(Arc::default());
        let reflectors = watch::Sender::new(addresses(&config.reflectors));
        let gate = gate(
            handle.forwarding(),
            driver.clone(),
            reflectors.subscribe(),
            gated,
        );
        tokio::spawn(gate);
        self.forwarding = forwarding;
        self.forwarding.mark_changed();
        self.frr = driver.status();
        let (local, raised) = (self.local.subscribe(), self.raised.clone());
        tokio::spawn(pass_on(handle.clone(), local, raised));
        self.preserved = true;
        Ok(Running {
            handle,
            frr: Some(Frr { driver, reflectors }),
            asn: config.asn,
            address,
            reflectors: config.reflectors.clone(),
            members: Members::new(),
            host: None,
        })
    }

    fn speaker(&self, router_id: Ipv4Addr, asn: Asn) -> Config {
        Config {
            router_id,
            asn,
            role: Role::Vtep,
            cluster_id: None,
            forwarding_preserved: self.preserved,
            timing: Timing::default(),
            policy: self.policy,
            seed: rand::random(),
        }
    }

    pub(crate) fn is_frr(&self) -> bool {
        self.driver().is_some()
    }

    fn driver(&self) -> Option<&Driver> {
        Some(&self.running.as_ref()?.frr.as_ref()?.driver)
    }

    /// Tells FRR, if it is the client, which instances there are or will be.
    pub(crate) fn expect(&mut self, vtep: IpAddr, stacks: &[Arc<Stack>], rds: &BTreeMap<Of, u16>) {
        let Some(driver) = self.driver() else {
            return;
        };
        let mut coming = LocalState::empty(vtep);
        for stack in stacks {
            for segment in &stack.segments {
                if let Some(rd) = rds.get(&Of::Instance(segment.vni)) {
                    let evi = LocalEvi::new(stack.encoding, *rd);
                    coming.evis.insert(segment.vni, evi);
                }
            }
        }
        self.expected = driver.set(|wanted| wanted.set_instances(&coming));
    }

    /// Waits until FRR knows of them, for a while.
    pub(crate) async fn expected(&self) {
        let Some(driver) = self.driver() else {
            return;
        };
        // If FRR does not run there is nothing that could make up a distinguisher.
        let runs = self.frr.borrow().problem.is_none();
        if runs && !driver.applied(self.expected, PREPARE).await {
            warn!("FRR does not know of all instances yet");
        }
    }

    /// What is wrong with FRR, if it is the client, and since when.
    pub(crate) fn problem(&self) -> Option<(String, UnixMillis)> {
        let status = self.frr.borrow();
        let since = status.problem_since?;
        let since = since.duration_since(std::time::UNIX_EPOCH).ok()?;
        let message = status.problem.clone()?;
        Some((message, UnixMillis(since.as_millis() as u64)))
    }

    /// Something changed on this host: FRR, if it is the client, is looked at.
    pub(crate) fn look(&self) {
        if let Some(driver) = self.driver() {
            driver.look();
        }
    }

    /// What is behind this host, all of it. FRR learns it from the kernel, and is compared with it.
    pub(crate) fn set_local(
        &self,
        local: LocalState,
        learned: &Forwarding,
        capabilities: &BTreeSet<Capability>,
    ) {
        if let Some(driver) = self.driver() {
            let (announced, contested) = announced(&local, learned, capabilities);
            driver.set(|wanted| {
                wanted.announced.clone_from(&announced);
                wanted.contested.clone_from(&contested);
            });
        }
        self.local.send_if_modified(|held| {
            let differs = held.as_ref() != Some(&local);
            if differs {
                *held = Some(local);
            }
            differs
        });
    }

    /// Mobility sequences that grew while this host held a MAC against another claim.
    pub(crate) fn raised(&self) -> Sequences {
        self.raised.borrow().clone()
    }

    /// Waits for the forwarding state to change, or FRR, or a mobility sequence.
    pub(crate) async fn news(&mut self) -> News {
        let Self {
            forwarding,
            frr,
            grown,
            ..
        } = self;
        tokio::select! {
            Ok(()) = forwarding.changed() => {
                News::Forwarding(Arc::clone(&forwarding.borrow_and_update()))
            }
            Ok(()) = frr.changed() => News::Frr,
            Ok(()) = grown.changed() => News::Raised,
            // Both have ended: what was learned last holds.
            else => std::future::pending().await,
        }
    }

    /// Ends the speaker; waits for what it has to say. FRR goes on by itself, and the next agent
    /// takes it over, unless all is to be withdrawn.
    pub(crate) async fn stop(&mut self, withdraw: bool) {
        let Some(running) = self.running.take() else {
            return;
        };
        match (withdraw, &running.frr) {
            (false, Some(_)) => {
                // If it has ended already, it has said what it had to say.
                let _ended = running.handle.stop(StopKind::Restart).await;
            }
            (false, None) => running.stop(StopKind::Restart, "").await,
            (true, _) => {
                let why = "the agent was stopped for good";
                running.stop(StopKind::Withdraw, why).await;
            }
        }
    }
}

type Failed = Box<dyn std::error::Error + Send + Sync>;

fn addresses(reflectors: &[Reflector]) -> BTreeSet<IpAddr> {
    reflectors
        .iter()
        .map(|reflector| reflector.address)
        .collect()
}

/// Passes on what was learned from bgpd. It counts as complete only while a reflector of bgpd's has
/// been there for a while: bgpd withdraws all that it heard from one with the session, and a
/// session that went says nothing about the VTEPs behind it. bgpd is asked after the change came, so
/// a loss that caused it is seen.
async fn gate(
    mut learned: watch::Receiver<Arc<Forwarding>>,
    driver: Driver,
    mut reflectors: watch::Receiver<BTreeSet<IpAddr>>,
    out: watch::Sender<Arc<Forwarding>>,
) {
    let mut trust = Trust::new(Instant::now());
    loop {
        let mut now = Forwarding::clone(&learned.borrow_and_update());
        if now.complete {
            // One that cannot be asked is about to be started again.
            let sessions = driver.sessions().await.unwrap_or_default();
            let reflectors = reflectors.borrow_and_update();
            now.complete = trust.may_remove(&sessions, &reflectors, Instant::now());
        }
        let complete = now.complete;
        out.send_if_modified(|held| {
            let differs = **held != now;
            *held = Arc::new(now);
            differs
        });
        tokio::select! {
            changed = learned.changed() => if changed.is_err() { return },
            () = out.closed() => return,
            () = tokio::time::sleep(Duration::from_secs(1)), if !complete => {}
        }
    }
}

/// Whether what bgpd does not tell of is gone.
struct Trust {
    /// When a reflector was up last.
    heard: Instant,
}

impl Trust {
    const fn new(now: Instant) -> Self {
        Self { heard: now }
    }

    fn may_remove(&mut self, all: &Sessions, reflectors: &BTreeSet<IpAddr>, now: Instant) -> bool {
        if all.settled(reflectors, Duration::ZERO) {
            self.heard = now;
        }
        all.settled(reflectors, SETTLED) || now.duration_since(self.heard) >= ABANDONED
    }
}

/// What FRR is to announce of what is behind this host, and MACs of it that others claim, too. An
/// address is announced if the kernel can hold its row where FRR looks for it: on kernels that
/// filter VLANs on the VLAN's own device, else on the bridge, whose IPv6 is off.
fn announced(
    local: &LocalState,
    learned: &Forwarding,
    capabilities: &BTreeSet<Capability>,
) -> (BTreeMap<Vni, Macs>, BTreeSet<(Vni, MacAddr)>) {
    let filtering = capabilities.contains(&Capability::VlanFiltering);
    let devices = capabilities.contains(&Capability::VlanDevices);
    let has_row = |ip: &&IpAddr| match filtering {
        true => devices,
        false => ip.is_ipv4(),
    };
    let (mut announced, mut contested) = (BTreeMap::new(), BTreeSet::new());
    for (vni, evi) in &local.evis {
        let macs: &mut Macs = announced.entry(*vni).or_default();
        let learned = learned.evis.get(vni);
        for ((tag, mac), state) in &evi.macs {
            let with_rows = state.addresses.iter().filter(has_row);
            macs.insert(*mac, with_rows.copied().collect());
            let key = (*tag, *mac);
            if learned.is_some_and(|l| l.lost.contains(&key) || l.macs.contains_key(&key)) {
                contested.insert((*vni, *mac));
            }
        }
    }
    (announced, contested)
}

/// The key of the session between bgpd and the listener, made once a boot.
fn listener_key(path: &Path) -> io::Result<Secret> {
    match fs::read_to_string(path) {
        Ok(text) if text.len() == 32 => return Ok(Secret(text)),
        Ok(_) => fs::remove_file(path)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let key = format!("{:032x}", rand::random::<u128>());
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(key.as_bytes())?;
    Ok(Secret(key))
}

async fn pass_on(
    handle: SpeakerHandle,
    mut local: watch::Receiver<Option<LocalState>>,
    raised: watch::Sender<Sequences>,
) {
    loop {
        let state = local.borrow_and_update().clone();
        if let Some(state) = state {
            match handle.set_local(state).await {
                Ok(()) => {
                    let Ok(now) = handle.raised().await else {
                        return;
                    };
                    raised.send_if_modified(|held| std::mem::replace(held, now) != *held);
                }
                Err(speaker::SetLocalError::Stopped(_)) => return,
                Err(error) => warn!(%error, "Local routes were not taken"),
            }
        }
        if local.changed().await.is_err() {
            return;
        }
    }
}

/// EVPN instances and routers that have something to announce.
pub(crate) fn instances(stacks: &[Arc<Stack>], ready: &Readiness) -> BTreeSet<Of> {
    let segments = stacks.iter().flat_map(|stack| &stack.segments);
    let segments = segments.filter(|s| ready.segments.contains(&s.subnet));
    let routers = ready.transits.iter().map(|router| Of::Router(*router));
    segments
        .map(|s| Of::Instance(s.vni))
        .chain(routers)
        .collect()
}

fn tag_of(stack: &Stack, segment: &Segment) -> Tag {
    match stack.encoding {
        Encoding::VlanBased => None,
        Encoding::VlanAwareBundle => Some(segment.vlan),
    }
}

/// Who else is in the subnets of this host, in the terms of routes.
fn members_of(host: &HostConfig) -> Members {
    let segments = host.stacks.iter().flat_map(|stack| {
        let segments = stack.segments.iter();
        segments.map(move |segment| (segment.subnet, (segment.vni, tag_of(stack, segment))))
    });
    let with_members = segments.filter_map(|(subnet, domain)| {
        let vteps = host.members.get(&subnet)?;
        Some((domain, vteps.clone()))
    });
    with_members.collect()
}

/// MACs that are configured on this host, whether they are ready or not.
pub(crate) fn configured_macs(
    stacks: &[Arc<Stack>],
    routers: &[Arc<RouterConfig>],
) -> BTreeSet<(Vni, Tag, MacAddr)> {
    let mut macs = BTreeSet::new();
    for stack in stacks {
        for segment in &stack.segments {
            let tag = tag_of(stack, segment);
            let ports = stack.ports.iter().map(|port| (port.subnet, port.mac));
            let legs = routers.iter();
            let legs = legs.filter(|router| !router.anycast && !router.prepared);
            let legs = legs.flat_map(|router| &router.legs);
            let legs = legs.map(|leg| (leg.subnet, leg.mac));
            let here = ports.chain(legs).filter(|(at, _)| *at == segment.subnet);
            macs.extend(here.map(|(_, mac)| (segment.vni, tag, mac)));
        }
    }
    macs
}

/// What is behind this host: subnets that reach the tunnel, NICs whose port is open, legs of routers.
pub(crate) fn local_state(
    vtep: IpAddr,
    stacks: &[Arc<Stack>],
    routers: &[Arc<RouterConfig>],
    ready: &Readiness,
    rds: &BTreeMap<Of, u16>,
) -> LocalState {
    let mut local = LocalState::empty(vtep);
    // One that is on every host is on no other's way.
    let (anycast, of_one_host): (Vec<_>, Vec<_>) = routers.iter().partition(|r| r.anycast);
    let mut legs: HashMap<SubnetId, Vec<(&RouterConfig, &RouterLeg)>> = HashMap::new();
    for router in of_one_host {
        if ready.routers.contains(&router.id) {
            for leg in &router.legs {
                legs.entry(leg.subnet).or_default().push((router, leg));
            }
        }
    }
    for stack in stacks {
        for segment in stack
            .segments
            .iter()
            .filter(|s| ready.segments.contains(&s.subnet))
        {
            let Some(rd) = rds.get(&Of::Instance(segment.vni)) else {
                continue;
            };
            let evi = local
                .evis
                .entry(segment.vni)
                .or_insert_with(|| LocalEvi::new(stack.encoding, *rd));
            let tag = tag_of(stack, segment);
            evi.domains.insert(tag);
            let ports = stack
                .ports
                .iter()
                .filter(|port| port.subnet == segment.subnet);
            let ports = ports.filter(|port| port.role != PortRole::Standby);
            for port in ports.filter(|port| ready.nics.contains(&port.nic)) {
                let mac = LocalMac {
                    sequence: port.sequence,
                    leaving: port.role == PortRole::Leaving,
                    ..LocalMac::with_addresses(port.addresses.iter().copied())
                };
                evi.macs.insert((tag, port.mac), mac);
            }
            evi.routed = routed_by(&anycast, ready, segment);
            for (router, leg) in legs.get(&segment.subnet).into_iter().flatten() {
                let mac = LocalMac {
                    router: true,
                    // It wins over the place that the router had before.
                    sequence: sequence_of(router.epoch),
                    ..LocalMac::with_addresses(leg.addresses.iter().map(|net| net.addr()))
                };
                evi.macs.insert((tag, leg.mac), mac);
            }
        }
    }
    for router in routers {
        let rd = rds.get(&Of::Router(router.id));
        if let (Some(transit), Some(rd)) = (router.transit, rd)
            && ready.transits.contains(&router.id)
        {
            let out = ready.uplinks.contains(&router.id);
            let prefixes = host_plan::prefixes_of(router);
            let vrf = LocalIpVrf {
                vni: transit.vni,
                targets: RouteTargets::Auto,
                mac: transit.mac,
                prefixes: prefixes
                    .filter(|told| out || !told.outside)
                    .map(|told| told.prefix)
                    .collect(),
            };
            local.ip_vrfs.insert(*rd, vrf);
        }
    }
    local
}

/// The gateway on this host by which others reach the addresses of a segment's NICs here.
fn routed_by(
    anycast: &[&Arc<RouterConfig>],
    ready: &Readiness,
    segment: &Segment,
) -> Option<Routed> {
    let router = anycast.iter().find(|router| {
        let has_leg = router.legs.iter().any(|leg| leg.subnet == segment.subnet);
        has_leg && ready.transits.contains(&router.id)
    })?;
    let transit = router.transit?;
    Some(Routed {
        vni: transit.vni,
        targets: RouteTargets::Auto,
        mac: transit.mac,
    })
}

/// Placements count from 1.
fn sequence_of(epoch: u64) -> u32 {
    u32::try_from(epoch.saturating_sub(1)).unwrap_or(u32::MAX)
}

/// What the interface on the underlay carries now; none if it cannot be found.
pub(crate) fn own_mtu(address: IpAddr) -> Option<Mtu> {
    let interface = linux::underlay_interface(address).ok()??;
    Mtu::new(interface.mtu.min(65_535)).ok()
}

/// True if an agent ran since the machine started, so that its rows are in the kernel; from now on
/// it is.
pub(crate) fn forwarding_is_preserved(run_dir: &Path) -> bool {
    let marker = run_dir.join("agent-ran");
    let before = marker.exists();
    if let Err(error) = fs::create_dir_all(run_dir).and_then(|()| fs::write(&marker, b"")) {
        warn!(%error, path = %marker.display(), "Marking that an agent ran failed");
    }
    before
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_removed_while_reflectors_are_away_unless_they_stay_away() {
        let address: IpAddr = "100.64.0.1".parse().unwrap();
        let reflectors = BTreeSet::from([address]);
        let up = |seconds| Sessions {
            peers: BTreeMap::from([(
                address,
                frr::Session {
                    state: "Established".to_owned(),
                    since: Duration::from_secs(seconds),
                    ..frr::Session::default()
                },
            )]),
        };
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let day = ABANDONED.as_secs();
        let mut trust = Trust::new(start);
        assert!(!trust.may_remove(&up(1), &reflectors, at(1)));
        assert!(trust.may_remove(&up(11), &reflectors, at(11)));
        let none = Sessions::default();
        assert!(!trust.may_remove(&none, &reflectors, at(12)));
        assert!(!trust.may_remove(&none, &reflectors, at(day)));
        assert!(!trust.may_remove(&up(1), &reflectors, at(day + 5)));
        assert!(!trust.may_remove(&none, &reflectors, at(day + 20)));
        assert!(trust.may_remove(&none, &reflectors, at(2 * day + 5)));
    }
}
