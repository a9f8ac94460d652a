//! One peer tells as much as it can, for longer than the hold time: nobody else's session ends, and what others
//! say is heard meanwhile.

#![allow(clippy::unwrap_used, reason = "a helper that panics fails its test")]
#![allow(clippy::print_stdout, reason = "a figure of the test")]

mod raw;

use evpn::{
    Config, LocalEvi, LocalMac, LocalState, MaxRoutes, PeerConfig, PeerInfo, Role, SessionState,
    Timing,
};
use model::{Asn, Encoding, MacAddr, Vni};
use raw::{EVPN, KEEPALIVE, attribute, connect, handshake_of, mandatory, message, reach, update};
use speaker::{Peer, SpeakerConfig, SpeakerHandle};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Runtime;

const PATIENCE: Duration = Duration::from_secs(120);
const ROUTES: u32 = 200_000;
/// Those who have nothing to do with it, and one who has to take all of it in.
const OTHERS: u8 = 4;
const MATE: u8 = 50;

fn ip(last: u8) -> IpAddr {
    Ipv4Addr::new(127, 0, 40, last).into()
}

fn vni() -> Vni {
    Vni::new(100).unwrap()
}

/// The instance that is flooded.
fn flooded() -> Vni {
    Vni::new(200).unwrap()
}

fn config(address: IpAddr, role: Role) -> SpeakerConfig {
    SpeakerConfig {
        bgp: Config {
            router_id: evpn::router_id_of(address),
            asn: Asn::new(raw::ASN).unwrap(),
            role,
            cluster_id: None,
            forwarding_preserved: true,
            // The hold time of 9 s among them.
            timing: Timing::default(),
            policy: evpn::Policy::default(),
            seed: 7,
        },
        local_address: Some(address),
        listen: match role {
            Role::Reflector => vec![SocketAddr::new(address, 0)],
            Role::Vtep | Role::Both => vec![],
        },
    }
}

/// As in the server: a runtime of its own.
fn runtime() -> Runtime {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(2).enable_all().build().unwrap()
}

fn state(last: u8, vni: Vni, macs: &[u8]) -> LocalState {
    let mut evi = LocalEvi::new(Encoding::VlanBased, 1);
    evi.domains.insert(None);
    for mac in macs {
        let key = (None, MacAddr([2, 0, 0, 0, last, *mac]));
        evi.macs.insert(key, LocalMac::default());
    }
    let mut state = LocalState::empty(Ipv4Addr::new(10, 0, 0, last).into());
    state.evis.insert(vni, evi);
    state
}

async fn vtep(last: u8, vni: Vni, to: SocketAddr) -> SpeakerHandle {
    let handle = SpeakerHandle::start(config(ip(last), Role::Vtep))
        .await
        .unwrap();
    handle.set_local(state(last, vni, &[1])).await.unwrap();
    let mut peer = Peer::new(PeerConfig::REFLECTOR);
    peer.port = to.port();
    handle
        .set_peers(BTreeMap::from([(to.ip(), peer)]))
        .await
        .unwrap();
    handle
}

/// As in [`mandatory`].
const TARGET: [u8; 8] = [0x00, 0x02, 0xea, 0x00, 0, 0, 0, 100];

/// UPDATEs of all routes, a hundred in each: announced with this sequence, or withdrawn.
fn told(last: u8, sequence: Option<u8>) -> Vec<Vec<u8>> {
    let address = [10, 0, 0, last];
    let numbers: Vec<u32> = (0..ROUTES).collect();
    let of = |n: &u32| {
        let [_, a, b, c] = n.to_be_bytes();
        let (head, rd) = ([2, 33, 0, 1], address);
        [
            &head[..],
            &rd,
            &[0, 9],
            &[0; 14],
            &[48, 2, 9, last, a, b, c, 0, 0, 0, 200],
        ]
        .concat()
    };
    let pieces = numbers.chunks(100).map(|some| {
        let routes: Vec<u8> = some.iter().flat_map(of).collect();
        match sequence {
            Some(sequence) => {
                // Of the flooded instance: the last octet of the target.
                let mut attributes = mandatory(sequence);
                let at = attributes.windows(8).position(|w| w == TARGET).unwrap();
                attributes[at + 7] = 200;
                update(&[reach(EVPN, &address, &routes), attributes])
            }
            None => update(&[attribute(0x80, 15, &[&EVPN[..], &routes].concat())]),
        }
    });
    pieces.collect()
}

async fn peers(handle: &SpeakerHandle) -> Vec<PeerInfo> {
    handle.peers().await.unwrap()
}

async fn eventually(what: &str, mut probe: impl AsyncFnMut() -> Result<(), String>) {
    let end = Instant::now() + PATIENCE;
    let mut tick = tokio::time::interval(Duration::from_millis(50));
    while let Err(seen) = probe().await {
        assert!(Instant::now() < end, "{what}: {seen}");
        tick.tick().await;
    }
}

/// Waits until each of these has rows of so many MACs.
async fn news(listeners: &[SpeakerHandle], macs: usize) {
    for listener in listeners {
        let rows = listener.forwarding();
        eventually("news of others is heard", async || {
            let rows = rows.borrow();
            let count = rows.evis.get(&vni()).map_or(0, |evi| evi.macs.len());
            (count == macs).then_some(()).ok_or(count.to_string())
        })
        .await;
    }
}

#[test]
fn a_flood_ends_nobody_elses_session() {
    let (here, there) = (runtime(), runtime());
    let flooder = 99;
    let limited = Peer::new(PeerConfig {
        max_routes: Some(MaxRoutes::new(ROUTES)),
        ..PeerConfig::CLIENT
    });
    let rr = here.block_on(async {
        let rr = SpeakerHandle::start(config(ip(101), Role::Reflector))
            .await
            .unwrap();
        let all = (1..=OTHERS).chain([MATE, flooder]);
        let all = all.map(|last| (ip(last), limited.clone()));
        rr.set_peers(all.collect()).await.unwrap();
        rr
    });
    let at = rr.listening()[0];
    there.block_on(async {
        let mut others = Vec::new();
        for last in 1..=OTHERS {
            others.push(vtep(last, vni(), at).await);
        }
        let mate = vtep(MATE, flooded(), at).await;
        let quiet = usize::from(OTHERS - 1);
        news(&others, quiet).await;
        let mut stream = connect("127.0.40.99", at, 255).await;
        stream
            .write_all(&handshake_of([127, 0, 40, flooder]))
            .await
            .unwrap();
        let (mut from, mut to) = stream.into_split();
        let drain = tokio::spawn(async move {
            let mut nowhere = vec![0; 65_536];
            while matches!(from.read(&mut nowhere).await, Ok(1..)) {}
        });
        let start = Instant::now();
        // Longer than two hold times, and every route at least once.
        let flood = tokio::spawn(async move {
            let mut sent = 0_u64;
            'all: for sequence in (1..=u8::MAX).cycle() {
                for messages in [told(flooder, Some(sequence)), told(flooder, None)] {
                    for message in messages {
                        to.write_all(&message).await.unwrap();
                        sent += 100;
                        let long = start.elapsed() > Duration::from_secs(20);
                        if long && sent >= u64::from(2 * ROUTES) {
                            break 'all;
                        }
                    }
                }
            }
            (sent, to)
        });
        // News of others meanwhile, again and again.
        let mut longest = Duration::ZERO;
        let mut rounds = 0_u32;
        while !flood.is_finished() {
            let at = Instant::now();
            let macs: &[u8] = if rounds.is_multiple_of(2) {
                &[1, 2]
            } else {
                &[1]
            };
            others[0].set_local(state(1, vni(), macs)).await.unwrap();
            let expected = quiet + usize::from(rounds.is_multiple_of(2));
            news(&others[1..], expected).await;
            longest = longest.max(at.elapsed());
            rounds += 1;
        }
        let (sent, mut open) = flood.await.unwrap();
        // It was all taken in: what it says last is heard by who wants it.
        open.write_all(&told(flooder, Some(1)).concat())
            .await
            .unwrap();
        let alive = tokio::spawn(async move {
            let mut tick = tokio::time::interval(Duration::from_secs(1));
            while open.write_all(&message(KEEPALIVE, &[])).await.is_ok() {
                tick.tick().await;
            }
        });
        let rows = mate.forwarding();
        eventually("the flood is taken in", async || {
            let rows = rows.borrow();
            let count = rows.evis.get(&flooded()).map_or(0, |evi| evi.macs.len());
            (count == ROUTES as usize)
                .then_some(())
                .ok_or(count.to_string())
        })
        .await;
        println!(
            "{sent} routes in {:?}; {rounds} rounds of news, the longest took {longest:?}",
            start.elapsed()
        );
        for peer in peers(&rr)
            .await
            .into_iter()
            .filter(|peer| peer.peer != ip(flooder))
        {
            assert_eq!(peer.state, SessionState::Established, "{peer:#?}");
            assert_eq!(peer.counters.sessions, 1, "{peer:#?}");
        }
        alive.abort();
        drain.abort();
    });
}
