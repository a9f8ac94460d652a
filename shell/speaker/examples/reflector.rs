//! A route reflector and nothing else: the speaker as `vpc server run` starts it, without the
//! server around it. For measuring (`bench reflect`) and for trying things out.
//!
//! `reflector LISTEN:PORT FIRST-CLIENT COUNT`: clients have consecutive addresses, and connect by
//! themselves. AS 65000, no TCP-MD5, no GTSM. Ends with its standard input.

use evpn::{Config, PeerConfig, Role, StopKind, Timing};
use model::Asn;
use speaker::{Peer, SpeakerConfig, SpeakerHandle};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

fn main() {
    let mut arguments = std::env::args().skip(1);
    let mut next = || arguments.next().expect("LISTEN:PORT FIRST-CLIENT COUNT");
    let listen: SocketAddr = next().parse().expect("an address and a port");
    let first: Ipv4Addr = next().parse().expect("an IPv4 address");
    let count: u32 = next().parse().expect("a number");
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(reflect(listen, first, count));
}

async fn reflect(listen: SocketAddr, first: Ipv4Addr, count: u32) {
    let IpAddr::V4(router_id) = listen.ip() else {
        panic!("an IPv4 address to listen at");
    };
    let config = SpeakerConfig {
        bgp: Config {
            router_id,
            asn: Asn::new(65000).expect("a valid AS"),
            role: Role::Reflector,
            cluster_id: None,
            forwarding_preserved: true,
            timing: Timing::default(),
            policy: evpn::Policy::default(),
            seed: 1,
        },
        local_address: Some(listen.ip()),
        listen: vec![listen],
    };
    let handle = SpeakerHandle::start(config).await.expect("it can listen");
    let client = |n| {
        let mut peer = Peer::new(PeerConfig::CLIENT);
        peer.gtsm = false;
        (IpAddr::V4(Ipv4Addr::from_bits(first.to_bits() + n)), peer)
    };
    let peers: BTreeMap<IpAddr, Peer> = (0..count).map(client).collect();
    handle.set_peers(peers).await.expect("it runs");
    let mut nothing = String::new();
    let end = tokio::task::spawn_blocking(move || std::io::stdin().read_line(&mut nothing));
    drop(end.await);
    handle.stop(StopKind::Restart).await.expect("it runs");
}
