//! The EVPN speaker as the agent uses it: started when there is a configuration, told what is
//! behind this host, asked what it learned.

use api::v1;
use evpn::{
    Config, LocalEvi, LocalMac, LocalState, PeerConfig, PeerInfo, Policy, Role, RouteInfo,
    SessionState, StopKind, Timing,
};
use host_plan::Readiness;
use model::{Asn, BgpConfig, Encoding, Forwarding, Mtu, Reflector, Stack, Vni};
use speaker::{Peer, SpeakerConfig, SpeakerHandle};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;
use tokio::sync::watch;
use tracing::{error, info, warn};

/// The speaker, which may not have been started yet.
#[derive(Debug)]
pub(crate) struct Bgp {
    /// Kernel rows of an earlier speaker are in place (the F bit of RFC 4724).
    preserved: bool,
    running: Option<Running>,
    local: watch::Sender<Option<LocalState>>,
    forwarding: watch::Receiver<Arc<Forwarding>>,
    shared: watch::Sender<Shared>,
    /// Keeps `forwarding` open while nothing runs.
    standalone: watch::Sender<Arc<Forwarding>>,
}

#[derive(Debug)]
struct Running {
    handle: SpeakerHandle,
    asn: Asn,
    address: IpAddr,
    reflectors: Vec<Reflector>,
}

#[derive(Debug, Clone, Default)]
struct Shared {
    handle: Option<SpeakerHandle>,
    reflectors: Vec<Reflector>,
    asn: u32,
}

/// Questions to the speaker, for the local API.
#[derive(Debug, Clone)]
pub(crate) struct Reader {
    shared: watch::Receiver<Shared>,
}

impl Bgp {
    pub(crate) fn new(preserved: bool) -> Self {
        let standalone = watch::Sender::new(Arc::new(Forwarding::default()));
        Self {
            preserved,
            running: None,
            local: watch::Sender::new(None),
            forwarding: standalone.subscribe(),
            shared: watch::Sender::default(),
            standalone,
        }
    }

    pub(crate) fn reader(&self) -> Reader {
        Reader {
            shared: self.shared.subscribe(),
        }
    }

    /// A host without a management server has no reflectors: nothing will ever be learned, and
    /// that is complete.
    pub(crate) fn standalone(&mut self) {
        self.standalone.send_replace(Arc::new(Forwarding {
            complete: true,
            ..Default::default()
        }));
    }

    /// Starts the speaker, or gives a running one its reflectors. Another AS or address is another
    /// speaker.
    pub(crate) async fn configure(&mut self, address: IpAddr, config: &BgpConfig) {
        let same = |running: &Running| running.asn == config.asn && running.address == address;
        if !self.running.as_ref().is_some_and(same) {
            if let Some(old) = self.running.take() {
                info!("BGP speaker starts anew: its AS or address changed");
                // If it has ended already there is nothing left to withdraw.
                let why = "this host's AS or address changes";
                let _ended = old.handle.stop_saying(StopKind::Withdraw, why).await;
            }
            match self.start(address, config.asn).await {
                Ok(running) => self.running = Some(running),
                Err(error) => {
                    error!(
                        error = crate::kernel::chain(&error),
                        "Starting the BGP speaker failed"
                    );
                    return;
                }
            }
        }
        let Some(running) = &mut self.running else {
            return;
        };
        if running.reflectors != config.reflectors {
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
            running.reflectors.clone_from(&config.reflectors);
        }
        self.shared.send_replace(Shared {
            handle: Some(running.handle.clone()),
            reflectors: config.reflectors.clone(),
            asn: config.asn.get(),
        });
    }

    async fn start(&mut self, address: IpAddr, asn: Asn) -> Result<Running, speaker::StartError> {
        let bgp = Config {
            router_id: router_id(address),
            asn,
            role: Role::Vtep,
            cluster_id: None,
            forwarding_preserved: self.preserved,
            timing: Timing::default(),
            policy: Policy::default(),
            seed: rand::random(),
        };
        let config = SpeakerConfig {
            bgp,
            local_address: Some(address),
            listen: Vec::new(),
        };
        let handle = SpeakerHandle::start(config).await?;
        self.forwarding = handle.forwarding();
        self.forwarding.mark_changed();
        tokio::spawn(pass_on(handle.clone(), self.local.subscribe()));
        // The next speaker of this process comes to rows that this one put there.
        self.preserved = true;
        Ok(Running {
            handle,
            asn,
            address,
            reflectors: Vec::new(),
        })
    }

    /// What is behind this host, all of it.
    pub(crate) fn set_local(&self, local: LocalState) {
        self.local.send_if_modified(|held| {
            let differs = held.as_ref() != Some(&local);
            if differs {
                *held = Some(local);
            }
            differs
        });
    }

    /// Waits for the forwarding state to change.
    pub(crate) async fn forwarding_changed(&mut self) -> Arc<Forwarding> {
        if self.forwarding.changed().await.is_err() {
            // The speaker has ended: what it learned last holds.
            std::future::pending::<()>().await;
        }
        Arc::clone(&self.forwarding.borrow_and_update())
    }

    /// Ends the speaker; waits for what it has to say.
    pub(crate) async fn stop(&mut self, withdraw: bool) {
        let Some(running) = self.running.take() else {
            return;
        };
        let kind = if withdraw {
            StopKind::Withdraw
        } else {
            StopKind::Restart
        };
        // If it has ended already, it has said what it had to say.
        let why = "the agent was stopped for good";
        let _ended = running.handle.stop_saying(kind, why).await;
    }
}

async fn pass_on(handle: SpeakerHandle, mut local: watch::Receiver<Option<LocalState>>) {
    loop {
        let state = local.borrow_and_update().clone();
        if let Some(state) = state {
            match handle.set_local(state).await {
                Ok(()) => {}
                Err(speaker::SetLocalError::Stopped(_)) => return,
                Err(error) => warn!(%error, "Local routes were not taken"),
            }
        }
        if local.changed().await.is_err() {
            return;
        }
    }
}

impl Reader {
    pub(crate) async fn peers(&self) -> Vec<v1::Peer> {
        let shared = self.shared.borrow().clone();
        let Some(handle) = shared.handle else {
            return Vec::new();
        };
        let peers = handle.peers().await.unwrap_or_default();
        peers
            .into_iter()
            .map(|peer| wire_peer(peer, &shared.reflectors, shared.asn))
            .collect()
    }

    pub(crate) async fn routes(&self) -> Vec<v1::EvpnRoute> {
        let handle = self.shared.borrow().handle.clone();
        let Some(handle) = handle else {
            return Vec::new();
        };
        handle
            .routes()
            .await
            .unwrap_or_default()
            .into_iter()
            .map(wire_route)
            .collect()
    }
}

fn wire_peer(peer: PeerInfo, reflectors: &[Reflector], asn: u32) -> v1::Peer {
    let configured = reflectors
        .iter()
        .find(|reflector| reflector.address == peer.peer);
    let state = match peer.state {
        SessionState::Idle => "idle",
        SessionState::Connect => "connect",
        SessionState::OpenSent => "opensent",
        SessionState::OpenConfirm => "openconfirm",
        SessionState::Established => "established",
    };
    let since = peer.since.as_millis() as u64;
    let (problem, causes, remedy) = peer.advice.map_or_else(Default::default, |advice| {
        (advice.problem, advice.causes, advice.remedy)
    });
    v1::Peer {
        address: peer.peer.to_string(),
        port: configured.map_or(179, |reflector| reflector.port).into(),
        asn,
        state: state.to_owned(),
        since_unix_ms: crate::view::unix_now().0.saturating_sub(since),
        routes_received: peer.routes as u64,
        routes_sent: peer.counters.updates_out,
        end_of_rib: peer.synced,
        stale: peer.stale > 0,
        last_error: peer.last_error.unwrap_or_default(),
        md5: configured.is_some_and(|reflector| reflector.password.is_some()),
        problem,
        causes,
        remedy,
    }
}

/// The parts of a route's text, `[type]:[tag]:[48]:[mac]:[bits]:[address]` and the like, as fields.
fn wire_route(info: RouteInfo) -> v1::EvpnRoute {
    let parts: Vec<&str> = info
        .route
        .split("]:[")
        .map(|part| part.trim_matches(['[', ']']))
        .collect();
    let part = |at: usize| parts.get(at).copied().unwrap_or_default();
    let route_type = part(0).parse().unwrap_or(0);
    let (mac, ip) = match route_type {
        2 => (part(3).to_owned(), part(5).to_owned()),
        3 => (String::new(), part(3).to_owned()),
        _ => (String::new(), String::new()),
    };
    let mut attributes = vec![info.route.clone()];
    attributes.extend(info.sticky.then(|| "sticky".to_owned()));

    v1::EvpnRoute {
        route_type,
        rd: info.rd.map(|rd| rd.to_string()).unwrap_or_default(),
        ethernet_tag: part(1).parse().unwrap_or(0),
        mac,
        ip,
        vni: info.label.unwrap_or(0),
        next_hop: info.next_hop.to_string(),
        route_targets: info.targets.iter().map(ToString::to_string).collect(),
        peer: info.from.map(|peer| peer.to_string()).unwrap_or_default(),
        best: info.best,
        stale: info.stale,
        mobility_sequence: info.sequence,
        attributes,
    }
}

/// The BGP identifier of a host: its IPv4 address, or for IPv6 the low 32 bits of it, which a
/// fabric numbers apart.
fn router_id(address: IpAddr) -> Ipv4Addr {
    match address {
        IpAddr::V4(v4) => v4,
        IpAddr::V6(v6) => {
            let [.., a, b, c, d] = v6.octets();
            Ipv4Addr::new(a, b, c, d)
        }
    }
}

/// VNIs of EVPN instances that have something to announce.
pub(crate) fn instances(stacks: &[Stack], ready: &Readiness) -> BTreeSet<Vni> {
    let segments = stacks.iter().flat_map(|stack| &stack.segments);
    segments
        .filter(|s| ready.segments.contains(&s.subnet))
        .map(|s| s.vni)
        .collect()
}

/// What is behind this host: subnets that reach the tunnel, NICs whose port is open.
pub(crate) fn local_state(
    vtep: IpAddr,
    stacks: &[Stack],
    ready: &Readiness,
    rds: &BTreeMap<Vni, u16>,
) -> LocalState {
    let mut local = LocalState::empty(vtep);
    for stack in stacks {
        for segment in stack
            .segments
            .iter()
            .filter(|s| ready.segments.contains(&s.subnet))
        {
            let Some(rd) = rds.get(&segment.vni) else {
                continue;
            };
            let evi = local
                .evis
                .entry(segment.vni)
                .or_insert_with(|| LocalEvi::new(stack.encoding, *rd));
            let tag = match stack.encoding {
                Encoding::VlanBased => None,
                Encoding::VlanAwareBundle => Some(segment.vlan),
            };
            evi.domains.insert(tag);
            let ports = stack
                .ports
                .iter()
                .filter(|port| port.subnet == segment.subnet);
            for port in ports.filter(|port| ready.nics.contains(&port.nic)) {
                let mac = LocalMac::with_addresses(port.addresses.iter().copied());
                evi.macs.insert((tag, port.mac), mac);
            }
        }
    }
    local
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
