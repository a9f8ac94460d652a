//! Whatever a peer says after a good OPEN, over real TCP: the speaker lives, nobody else's session
//! ends or lacks a route, and nothing of the sender's stays behind.

#![allow(clippy::unwrap_used, reason = "a helper that panics fails its test")]

mod raw;
mod rig;

use evpn::{
    Announces, Config, LocalEvi, LocalMac, LocalState, PeerConfig, Role, SessionState, Timing,
};
use model::{Asn, Encoding, MacAddr, Vni};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use raw::{EVPN, attribute, handshake_of, mac_update, mandatory, message, reach, update};
use rig::until;
use speaker::{Peer, SpeakerConfig, SpeakerHandle};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const PATIENCE: Duration = Duration::from_secs(20);
const RR: &str = "127.0.14.101";
const GOOD: [&str; 2] = ["127.0.14.1", "127.0.14.2"];
const BAD: [u8; 4] = [127, 0, 14, 9];
const BAD_ADDRESS: &str = "127.0.14.9";

/// Something to say.
#[derive(Debug, Clone)]
enum Say {
    Bytes(Vec<u8>),
    Message(u8, Vec<u8>),
    /// Attributes by flags, type and value, among them routes by type and value.
    Update(Vec<(u8, u8, Vec<u8>)>, Vec<(u8, Vec<u8>)>),
    /// Of a family that nobody asked for.
    OtherFamily([u8; 3], Vec<u8>),
    /// A good one with some octets changed.
    Hurt(Vec<(prop::sample::Index, u8)>),
}

impl Say {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Bytes(bytes) => bytes.clone(),
            Self::Message(kind, body) => message(*kind, body),
            Self::Update(attributes, routes) => {
                let routes: Vec<u8> = routes
                    .iter()
                    .flat_map(|(kind, value)| {
                        let length = u8::try_from(value.len()).unwrap();
                        [&[*kind, length], &value[..]].concat()
                    })
                    .collect();
                let mut list = vec![reach(EVPN, &BAD, &routes), mandatory(0)];
                let more = attributes.iter();
                list.extend(more.map(|(flags, kind, value)| attribute(*flags, *kind, value)));
                update(&list)
            }
            Self::OtherFamily(family, routes) => {
                update(&[reach(*family, &BAD, routes), mandatory(0)])
            }
            Self::Hurt(edits) => {
                let mut bytes = mac_update(BAD, BAD, 9, 3);
                for (at, octet) in edits {
                    let at = at.index(bytes.len());
                    bytes[at] ^= octet;
                }
                bytes
            }
        }
    }
}

fn say() -> impl Strategy<Value = Say> {
    let some = |most| prop::collection::vec(any::<u8>(), 0..most);
    let kinds = prop::sample::select(vec![1_u8, 2, 3, 4, 5, 9, 10, 14, 15, 16, 22, 32, 200]);
    prop_oneof![
        some(200).prop_map(Say::Bytes),
        (0_u8..8, some(120)).prop_map(|(kind, body)| Say::Message(kind, body)),
        (
            prop::collection::vec((any::<u8>(), kinds, some(60)), 0..6),
            prop::collection::vec((0_u8..13, some(60)), 0..6),
        )
            .prop_map(|(attributes, routes)| Say::Update(attributes, routes)),
        (any::<[u8; 3]>(), some(80)).prop_map(|(family, routes)| Say::OtherFamily(family, routes)),
        prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..5)
            .prop_map(Say::Hurt),
    ]
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn vni() -> Vni {
    Vni::new(100).unwrap()
}

fn config(router_id: &str, role: Role) -> Config {
    Config {
        router_id: router_id.parse().unwrap(),
        asn: Asn::new(raw::ASN).unwrap(),
        role,
        cluster_id: None,
        forwarding_preserved: true,
        timing: Timing::default(),
        policy: evpn::Policy::default(),
        seed: 7,
    }
}

fn client(announces: Announces) -> Peer {
    Peer::new(PeerConfig {
        announces,
        ..PeerConfig::CLIENT
    })
}

struct Fabric {
    reflector: SpeakerHandle,
    vteps: Vec<SpeakerHandle>,
    at: SocketAddr,
}

impl Fabric {
    async fn up() -> Self {
        let reflector = SpeakerHandle::start(SpeakerConfig {
            bgp: config("10.0.0.101", Role::Reflector),
            local_address: Some(ip(RR)),
            listen: vec![SocketAddr::new(ip(RR), 0)],
        })
        .await
        .unwrap();
        let at = reflector.listening()[0];
        let mut fabric = Self {
            reflector,
            vteps: vec![],
            at,
        };
        fabric.allow(Announces::Any).await;
        for address in GOOD {
            let vtep = SpeakerHandle::start(SpeakerConfig {
                bgp: config(&address.replace("127.0.14", "10.0.0"), Role::Vtep),
                local_address: Some(ip(address)),
                listen: vec![],
            });
            let vtep = vtep.await.unwrap();
            let mut peer = Peer::new(PeerConfig::REFLECTOR);
            peer.port = at.port();
            vtep.set_peers(BTreeMap::from([(at.ip(), peer)]))
                .await
                .unwrap();
            fabric.vteps.push(vtep);
        }
        fabric.hears(0).await;
        fabric
    }

    /// What the one that misbehaves may announce.
    async fn allow(&self, announces: Announces) {
        let mut peers = BTreeMap::from(GOOD.map(|good| (ip(good), client(Announces::Any))));
        peers.insert(ip(BAD_ADDRESS), client(announces));
        self.reflector.set_peers(peers).await.unwrap();
    }

    /// Each of those that behave hears what the other says from now on.
    async fn hears(&self, round: u32) {
        let [_, a, b, c] = round.to_be_bytes();
        let mac = |n: u8| MacAddr([2, n, 9, a, b, c]);
        for (n, vtep) in (1..).zip(&self.vteps) {
            let mut evi = LocalEvi::new(Encoding::VlanBased, 1);
            evi.domains.insert(None);
            evi.macs.insert((None, mac(n)), LocalMac::default());
            let mut state = LocalState::empty(IpAddr::from([10, 0, 0, n]));
            state.evis.insert(vni(), evi);
            vtep.set_local(state).await.unwrap();
        }
        for (n, vtep) in (1_u8..).zip(&self.vteps) {
            let rows = vtep.forwarding();
            until("news of the other one", PATIENCE, async || {
                let rows = rows.borrow().clone();
                let evi = rows.evis.get(&vni());
                let there = evi.is_some_and(|evi| evi.macs.contains_key(&(None, mac(3 - n))));
                there.then_some(()).ok_or(format!("{rows:#?}"))
            })
            .await;
        }
    }

    /// The one that misbehaves says all this after a good OPEN, and nothing more.
    async fn endures(&self, says: &[Say], own: bool) -> Result<(), TestCaseError> {
        let router_id = BAD.into();
        self.allow(match own {
            true => Announces::Own { router_id },
            false => Announces::Any,
        })
        .await;
        let mut stream = raw::connect(BAD_ADDRESS, self.at, 255).await;
        let mut all = handshake_of(BAD);
        says.iter().for_each(|say| all.extend(say.bytes()));
        // It may have been thrown out in the middle of it.
        stream.write_all(&all).await.ok();
        stream.shutdown().await.ok();
        let mut heard = vec![];
        let ended = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut heard)).await;
        prop_assert!(ended.is_ok(), "the connection does not end");
        let peers = self.reflector.peers().await;
        prop_assert!(peers.is_ok(), "the speaker has ended");
        for peer in peers.unwrap() {
            if GOOD.map(ip).contains(&peer.peer) {
                prop_assert_eq!(peer.state, SessionState::Established, "{:#?}", peer);
                prop_assert_eq!(peer.counters.sessions, 1, "{:#?}", peer);
            }
        }
        Ok(())
    }
}

fn sockets() -> usize {
    let all = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    let to = all.filter_map(|entry| std::fs::read_link(entry.path()).ok());
    to.filter(|to| to.to_string_lossy().starts_with("socket:"))
        .count()
}

#[test]
fn no_bytes_after_a_good_open_end_anybody_elses_session() {
    let runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = { runtime }.enable_all().build().unwrap();
    let fabric = runtime.block_on(Fabric::up());
    let before = sockets();
    runtime.block_on(unknown_families_are_passed_over(&fabric));
    let mut runner = TestRunner::new(ProptestConfig {
        cases: 200,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let cases = (prop::collection::vec(say(), 1..6), any::<bool>());
    let rounds = std::cell::Cell::new(0_u32);
    runner
        .run(&cases, |(says, own)| {
            rounds.set(rounds.get() + 1);
            runtime.block_on(async {
                fabric.endures(&says, own).await?;
                if rounds.get().is_multiple_of(20) {
                    fabric.hears(rounds.get()).await;
                }
                Ok(())
            })
        })
        .unwrap();
    runtime.block_on(async {
        fabric.hears(rounds.get() + 1).await;
        until("no connection is left behind", PATIENCE, async || {
            let now = sockets();
            (now == before)
                .then_some(())
                .ok_or(format!("{now}, not {before}"))
        })
        .await;
    });
}

/// Families that nobody negotiated (RFC 4760 §8): passed over, and the session goes on.
async fn unknown_families_are_passed_over(fabric: &Fabric) {
    let mut stream = raw::connect(BAD_ADDRESS, fabric.at, 255).await;
    stream.write_all(&handshake_of(BAD)).await.unwrap();
    for family in [
        [0, 1, 1],
        [0, 1, 128],
        [0, 2, 1],
        [0, 25, 65],
        [0x40, 4, 71],
        [9, 9, 9],
    ] {
        let bytes = update(&[reach(family, &BAD, &[24, 10, 9, 8]), mandatory(0)]);
        stream.write_all(&bytes).await.unwrap();
    }
    // Behind them.
    stream.write_all(&mac_update(BAD, BAD, 9, 0)).await.unwrap();
    until("the route behind them is taken", PATIENCE, async || {
        let peers = fabric.reflector.peers().await.unwrap();
        let bad = peers.into_iter().find(|peer| peer.peer == ip(BAD_ADDRESS));
        let bad = bad.unwrap();
        let right = (bad.routes, bad.state, bad.counters.sessions);
        let right = right == (1, SessionState::Established, 1);
        right.then_some(()).ok_or(format!("{bad:#?}"))
    })
    .await;
}
