//! A VTEP that a test plays itself: our speaker on a lab host without agent, told by the test what
//! is behind it.

use crate::fabric::{Fabric, GUEST, GUEST_ADDRESS, Vpc};
use crate::foreign::{asn, password};
use evpn::{
    Config, LocalEvi, LocalMac, LocalState, PeerConfig, Role, SessionState, StopKind, Timing,
};
use model::{Asn, Encoding, Secret, Vni};
use speaker::{Peer, SpeakerConfig, SpeakerHandle};
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::net::IpAddr;
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
        let runtime = fabric.lab.in_network_of(GUEST, || {
            tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()
                .expect("a runtime")
        });
        let address: IpAddr = GUEST_ADDRESS.parse().expect("an address");
        let IpAddr::V4(router_id) = address else {
            panic!("the underlay is IPv4");
        };
        let config = SpeakerConfig {
            bgp: Config {
                router_id,
                asn: Asn::new(asn(&fabric.lab)).expect("the fabric's AS"),
                role: Role::Vtep,
                cluster_id: None,
                forwarding_preserved: true,
                timing: Timing::default(),
                policy: evpn::Policy::default(),
                seed: 4,
            },
            local_address: Some(address),
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
        let mut evi = LocalEvi::new(Encoding::VlanBased, 7);
        evi.domains.insert(None);
        for (mac, local) in macs {
            evi.macs
                .insert((None, mac.parse().expect("a MAC")), local.clone());
        }
        let mut state = LocalState::empty(GUEST_ADDRESS.parse().expect("an address"));
        let vni = u32::try_from(vpc.vni)
            .ok()
            .and_then(|vni| Vni::new(vni).ok());
        state.evis.insert(vni.expect("a VNI"), evi);
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
        let mut peer = Peer::new(PeerConfig::REFLECTOR);
        peer.password = Some(Secret(password(&self.fabric.lab)));
        let reflector: IpAddr = self.fabric.reflector().parse().expect("an address");
        let handle = self.handle.clone();
        let peers = BTreeMap::from([(reflector, peer)]);
        self.run(async move { handle.set_peers(peers).await })
            .expect("it runs");
        self.fabric.lab.eventually("the guest's session is up", || {
            let handle = self.handle.clone();
            let peers = self.run(async move { handle.peers().await });
            let peers = peers.expect("it runs");
            match peers[0].state == SessionState::Established {
                true => Ok(()),
                false => Err(format!("{peers:#?}")),
            }
        });
    }

    /// The sequence with which somebody else announces a MAC to it; none if nobody does.
    pub(crate) fn hears(&self, mac: &str) -> Option<(String, u32)> {
        let handle = self.handle.clone();
        let routes = self.run(async move { handle.routes().await });
        let routes = routes.expect("it runs");
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
