//! A VTEP that a test plays itself: our speaker on a lab host without agent, told by the test what
//! is behind it.

use crate::fabric::{C1, C2, C3, Fabric, GUEST, GUEST_ADDRESS, Vpc};
use crate::foreign::{asn, password};
use evpn::{
    Config, HistoryEntry, LocalEvi, LocalMac, LocalState, MaxRoutes, PeerConfig, PeerInfo, Role,
    RouteInfo, RouteTargets, SessionState, StopKind, Timing,
};
use model::{Asn, Encoding, MacAddr, Secret, VlanId, Vni};
use speaker::{Peer, SpeakerConfig, SpeakerHandle};
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use tokio::runtime::Runtime;

pub(crate) struct Guest<'a> {
    fabric: &'a Fabric,
    /// Its threads are in the host's network.
    runtime: Runtime,
    handle: SpeakerHandle,
}

impl<'a> Guest<'a> {
    /// A speaker without peers yet, so that what it is told first is the first that it says.
    pub(crate) fn new(fabric: &'a Fabric) -> Self {
        Self::with(fabric, Timing::default())
    }

    pub(crate) fn with(fabric: &'a Fabric, timing: Timing) -> Self {
        let runtime = runtime_on_guest(fabric);
        let config = SpeakerConfig {
            bgp: bgp(fabric, Role::Vtep, timing),
            local_address: Some(GUEST_ADDRESS.parse().expect("an address")),
            listen: vec![],
        };
        let started = run(&runtime, SpeakerHandle::start(config));
        Self {
            fabric,
            runtime,
            handle: started.expect("it can be started"),
        }
    }

    /// These MACs of a VPC are behind it from now on, and nothing else.
    pub(crate) fn has(&self, vpc: &Vpc<'_>, macs: &[(&str, LocalMac)]) {
        self.has_with(&[vpc], RouteTargets::Auto, macs);
    }

    /// These MACs are behind it in each of these VPCs, announced with these targets.
    pub(crate) fn has_with(
        &self,
        vpcs: &[&Vpc<'_>],
        targets: RouteTargets,
        macs: &[(&str, LocalMac)],
    ) {
        self.says(state(GUEST_ADDRESS, vpcs, &targets, macs));
    }

    /// As `has_with`, with targets and MACs of its own for each VPC.
    pub(crate) fn has_each(&self, each: &[(&Vpc<'_>, RouteTargets, &str)]) {
        let mut all = LocalState::empty(GUEST_ADDRESS.parse().expect("an address"));
        for (index, (vpc, targets, mac)) in (7..).zip(each) {
            let macs = [(*mac, LocalMac::default())];
            let mut one = state(GUEST_ADDRESS, &[vpc], targets, &macs);
            for evi in one.evis.values_mut() {
                evi.rd_index = index;
            }
            all.evis.append(&mut one.evis);
        }
        self.says(all);
    }

    /// These MACs are behind it, it says, but with the address of another host.
    pub(crate) fn has_as(&self, address: &str, vpc: &Vpc<'_>, macs: &[(&str, LocalMac)]) {
        self.says(state(address, &[vpc], &RouteTargets::Auto, macs));
    }

    /// One MAC in these VLANs of a bundle is behind it from now on, and nothing else.
    pub(crate) fn has_bundle(&self, vni: u32, vlans: &[u32], mac: &str) {
        let mut evi = LocalEvi::new(Encoding::VlanAwareBundle, 7);
        let mac: MacAddr = mac.parse().expect("a MAC");
        for vlan in vlans {
            let vlan = u16::try_from(*vlan)
                .ok()
                .and_then(|vlan| VlanId::new(vlan).ok());
            let tag = Some(vlan.expect("a VLAN"));
            evi.domains.insert(tag);
            evi.macs.insert((tag, mac), LocalMac::default());
        }
        let mut state = LocalState::empty(GUEST_ADDRESS.parse().expect("an address"));
        state.evis.insert(Vni::new(vni).expect("a VNI"), evi);
        self.says(state);
    }

    /// What is behind it from now on.
    pub(crate) fn says(&self, local: LocalState) {
        let handle = self.handle.clone();
        let told = self.run(async move { handle.set_local(local).await });
        told.expect("it is well formed");
    }

    /// Connects to the column's reflector, and waits for the session.
    pub(crate) fn connect(&self) {
        self.tries(&password(&self.fabric.lab));
        self.is_up();
    }

    /// Begins to connect, with this key.
    pub(crate) fn tries(&self, key: &str) {
        let mut peer = Peer::new(PeerConfig::REFLECTOR);
        peer.password = Some(Secret(key.to_owned()));
        let reflector: IpAddr = self.fabric.reflector().parse().expect("an address");
        let handle = self.handle.clone();
        let peers = BTreeMap::from([(reflector, peer)]);
        self.run(async move { handle.set_peers(peers).await })
            .expect("it runs");
    }

    /// Waits for the session.
    pub(crate) fn is_up(&self) {
        self.fabric
            .lab
            .eventually("the guest's session is up", || match self.peer() {
                peer if peer.state == SessionState::Established => Ok(()),
                peer => Err(format!("{peer:#?}")),
            });
    }

    /// Its only peer.
    pub(crate) fn peer(&self) -> PeerInfo {
        let handle = self.handle.clone();
        let peers = self.run(async move { handle.peers().await });
        peers.expect("it runs").swap_remove(0)
    }

    /// The noteworthy messages to and from its only peer.
    pub(crate) fn history(&self) -> Vec<HistoryEntry> {
        let reflector: IpAddr = self.fabric.reflector().parse().expect("an address");
        let handle = self.handle.clone();
        let history = self.run(async move { handle.history(reflector).await });
        history.expect("it runs").unwrap_or_default()
    }

    /// Asks the reflector to tell everything again.
    pub(crate) fn refresh(&self) {
        let reflector: IpAddr = self.fabric.reflector().parse().expect("an address");
        let handle = self.handle.clone();
        let asked = self.run(async move { handle.refresh(reflector).await });
        asked.expect("the reflector can do it");
    }

    /// Every path to every route that it knows.
    pub(crate) fn routes(&self) -> Vec<RouteInfo> {
        let handle = self.handle.clone();
        let routes = self.run(async move { handle.routes().await });
        routes.expect("it runs")
    }

    /// It ends as if it were to restart: nothing is withdrawn.
    pub(crate) fn leaves(self) {
        let handle = self.handle.clone();
        self.run(async move { handle.stop(StopKind::Restart).await })
            .expect("it runs");
    }

    /// The sequence with which somebody else announces a MAC to it; none if nobody does.
    pub(crate) fn hears(&self, mac: &str) -> Option<(String, u32)> {
        let routes = self.routes();
        let mut of_mac = routes
            .iter()
            .filter(|route| route.from.is_some() && route.route.contains(mac));
        of_mac
            .next()
            .map(|route| (route.next_hop.to_string(), route.sequence))
    }

    fn run<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> T {
        run(&self.runtime, work)
    }
}

impl Drop for Guest<'_> {
    fn drop(&mut self) {
        let handle = self.handle.clone();
        // It may have ended by itself.
        let _ended = self.run(async move { handle.stop(StopKind::Withdraw).await });
    }
}

fn state(
    address: &str,
    vpcs: &[&Vpc<'_>],
    targets: &RouteTargets,
    macs: &[(&str, LocalMac)],
) -> LocalState {
    let mut state = LocalState::empty(address.parse().expect("an address"));
    for (index, vpc) in (7..).zip(vpcs) {
        let mut evi = LocalEvi::new(Encoding::VlanBased, index);
        evi.targets = targets.clone();
        evi.domains.insert(None);
        for (mac, local) in macs {
            let mac = mac.parse().expect("a MAC");
            evi.macs.insert((None, mac), local.clone());
        }
        let vni = Vni::new(vpc.label()).expect("a VNI");
        state.evis.insert(vni, evi);
    }
    state
}

/// A reflector of ours in place of the guest: each host of the lab is a client.
pub(crate) struct Second {
    runtime: Runtime,
    handle: SpeakerHandle,
}

impl Second {
    pub(crate) fn start(fabric: &Fabric) -> Self {
        Self::with_limit(fabric, None)
    }

    /// So many routes may each host have there.
    pub(crate) fn with_limit(fabric: &Fabric, limit: Option<u32>) -> Self {
        let runtime = runtime_on_guest(fabric);
        let address: IpAddr = GUEST_ADDRESS.parse().expect("an address");
        let config = SpeakerConfig {
            bgp: bgp(fabric, Role::Reflector, Timing::default()),
            local_address: Some(address),
            listen: vec![SocketAddr::new(address, 179)],
        };
        let handle = run(&runtime, SpeakerHandle::start(config)).expect("it can be started");
        let mut peer = Peer::new(PeerConfig {
            max_routes: limit.map(MaxRoutes::new),
            ..PeerConfig::CLIENT
        });
        peer.password = Some(Secret(password(&fabric.lab)));
        let peers = [C1, C2, C3].map(|client| (client.parse().expect("an address"), peer.clone()));
        let second = Self { runtime, handle };
        let handle = second.handle.clone();
        run(&second.runtime, async move {
            handle.set_peers(peers.into()).await
        })
        .expect("it runs");
        second
    }

    /// What it knows of a client.
    pub(crate) fn peer(&self, address: &str) -> PeerInfo {
        let handle = self.handle.clone();
        let peers = run(&self.runtime, async move { handle.peers().await });
        let mut peers = peers.expect("it runs").into_iter();
        let peer = peers.find(|peer| peer.peer.to_string() == address);
        peer.expect("a client")
    }

    /// As by kill -9: its sockets are closed, nothing is said.
    pub(crate) fn dies(self) {
        let Self { runtime, handle } = self;
        // The runtime goes first: the handle's end would be a stop in good order.
        runtime.shutdown_timeout(Duration::from_secs(1));
        drop(handle);
    }
}

fn runtime_on_guest(fabric: &Fabric) -> Runtime {
    fabric.lab.in_network_of(GUEST, || {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime")
    })
}

fn bgp(fabric: &Fabric, role: Role, timing: Timing) -> Config {
    Config {
        router_id: GUEST_ADDRESS.parse().expect("an address"),
        asn: Asn::new(asn(&fabric.lab)).expect("the fabric's AS"),
        role,
        cluster_id: None,
        forwarding_preserved: true,
        timing,
        policy: evpn::Policy::default(),
        seed: 4,
    }
}

/// A MAC with one address.
pub(crate) fn mac_with(address: &str, sticky: bool) -> LocalMac {
    LocalMac {
        addresses: BTreeSet::from([address.parse().expect("an address")]),
        sticky,
        ..LocalMac::default()
    }
}

/// On the runtime's own threads: this one is in another network.
fn run<T: Send + 'static>(runtime: &Runtime, work: impl Future<Output = T> + Send + 'static) -> T {
    runtime
        .block_on(runtime.spawn(work))
        .expect("it does not panic")
}
