//! A VTEP that a test plays itself: a speaker of ours on a host without agent.

use super::evpn::{asn, password};
use evpn::{Config, LocalEvi, LocalMac, LocalState, PeerConfig, Role, Timing};
use lab::Lab;
use model::{Asn, Encoding, MacAddr, Secret, Vni};
use speaker::{Peer, SpeakerConfig, SpeakerHandle};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use tokio::runtime::Runtime;

/// Of a lab's server.
pub(super) const REFLECTOR: &str = "100.64.0.1";

/// How it is set up.
#[derive(Clone)]
pub(super) struct Setup {
    pub(super) asn: u32,
    pub(super) key: String,
    pub(super) router_id: Ipv4Addr,
    /// The host's own, whatever it says in its routes.
    pub(super) address: Ipv4Addr,
    pub(super) vtep: Ipv4Addr,
    pub(super) evis: BTreeMap<Vni, LocalEvi>,
}

impl Setup {
    /// As the host's agent would be, with one MAC in an instance that nobody else has.
    pub(super) fn of(lab: &Lab, address: Ipv4Addr) -> Self {
        let mac = MacAddr([2, 0xee, 0, 0, 0, 1]);
        let mut setup = Self {
            asn: asn(lab).parse().expect("a number"),
            key: password(lab),
            router_id: address,
            address,
            vtep: address,
            evis: BTreeMap::new(),
        };
        setup.claim(9_999_999, mac, LocalMac::default());
        setup
    }

    /// A MAC is behind it, too.
    pub(super) fn claim(&mut self, vni: u32, mac: MacAddr, how: LocalMac) {
        let index = 7 + u16::try_from(self.evis.len()).expect("a few instances");
        let evi = self.evis.entry(Vni::new(vni).expect("a VNI"));
        let evi = evi.or_insert_with(|| LocalEvi::new(Encoding::VlanBased, index));
        evi.domains.insert(None);
        evi.macs.insert((None, mac), how);
    }
}

/// It runs.
pub(super) struct Guest {
    runtime: Runtime,
    handle: SpeakerHandle,
}

impl Guest {
    pub(super) fn start(lab: &Lab, host: &str, setup: &Setup) -> Self {
        let runtime = lab.in_network_of(host, || {
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            builder.worker_threads(1).enable_all().build()
        });
        let runtime = runtime.expect("a runtime");
        let config = SpeakerConfig {
            bgp: Config {
                router_id: setup.router_id,
                asn: Asn::new(setup.asn).expect("an AS"),
                role: Role::Vtep,
                cluster_id: None,
                forwarding_preserved: true,
                timing: Timing::default(),
                policy: evpn::Policy::default(),
                seed: 5,
            },
            local_address: Some(setup.address.into()),
            listen: Vec::new(),
        };
        let mut state = LocalState::empty(setup.vtep.into());
        state.evis.clone_from(&setup.evis);
        let mut peer = Peer::new(PeerConfig::REFLECTOR);
        peer.password = Some(Secret(setup.key.clone()));
        let reflector: IpAddr = REFLECTOR.parse().expect("an address");
        let peers = BTreeMap::from([(reflector, peer)]);
        let started = runtime.spawn(async move {
            let handle = SpeakerHandle::start(config).await.expect("it starts");
            handle.set_local(state).await.expect("it is well formed");
            handle.set_peers(peers).await.expect("it runs");
            handle
        });
        let handle = runtime.block_on(started).expect("it does not panic");
        Self { runtime, handle }
    }

    /// What its own status says is wrong, and why.
    pub(super) fn knows(&self) -> String {
        let handle = self.handle.clone();
        let peers = self.runtime.spawn(async move { handle.peers().await });
        let peers = self.runtime.block_on(peers).expect("it does not panic");
        let advice = peers.expect("it runs").swap_remove(0).advice;
        advice.map_or_else(String::new, |advice| {
            format!("{}; {}", advice.problem, advice.causes.join("; "))
        })
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let handle = self.handle.clone();
        let stopped = self
            .runtime
            .spawn(async move { handle.stop(evpn::StopKind::Withdraw).await });
        // It may have ended by itself.
        drop(self.runtime.block_on(stopped));
    }
}
