//! Speakers over real TCP on loopback addresses: keys, TTLs, garbage, strangers, broken
//! connections.

#![allow(clippy::unwrap_used, reason = "a helper that panics fails its test")]

mod raw;
mod rig;

use evpn::{
    Config, LocalEvi, LocalMac, LocalState, PeerConfig, PeerInfo, Role, SessionState, StopKind,
    Timing,
};
use model::{Asn, Encoding, Secret, Vni};
use raw::{
    KEEPALIVE, NOTIFICATION, OPEN, connect as raw, flood_update, handshake_of, mac_update, message,
    socket,
};
use rig::{Rig, until};
use speaker::{Peer, SpeakerConfig, SpeakerHandle};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

const PATIENCE: Duration = Duration::from_secs(20);
/// Whoever has not answered by then on this host will not.
const SILENCE: Duration = Duration::from_millis(500);

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn vni() -> Vni {
    Vni::new(100).unwrap()
}

fn config(router_id: &str, role: Role) -> Config {
    Config {
        router_id: router_id.parse().unwrap(),
        asn: Asn::new(4_200_000_000).unwrap(),
        role,
        cluster_id: None,
        forwarding_preserved: true,
        timing: Timing::default(),
        policy: evpn::Policy::default(),
        seed: 7,
    }
}

async fn reflector(address: &str, peers: BTreeMap<IpAddr, Peer>) -> SpeakerHandle {
    reflector_with(address, peers, Timing::default()).await
}

/// With a patience of its own.
async fn reflector_with(
    address: &str,
    peers: BTreeMap<IpAddr, Peer>,
    timing: Timing,
) -> SpeakerHandle {
    let handle = SpeakerHandle::start(SpeakerConfig {
        bgp: Config {
            timing,
            ..config("10.0.0.101", Role::Reflector)
        },
        local_address: Some(ip(address)),
        listen: vec![SocketAddr::new(ip(address), 0)],
    })
    .await
    .unwrap();
    handle.set_peers(peers).await.unwrap();
    handle
}

fn clients(addresses: &[&str]) -> BTreeMap<IpAddr, Peer> {
    let peer = |a: &&str| (ip(a), Peer::new(PeerConfig::CLIENT));
    addresses.iter().map(peer).collect()
}

/// A VTEP `10.0.0.n` with MAC and address numbered likewise, which connects from `address`.
async fn vtep(n: u8, address: &str, to: SocketAddr, password: Option<&str>) -> SpeakerHandle {
    vtep_with(n, Ipv4Addr::new(10, 0, 0, n), address, to, password).await
}

/// The same, as hosts are: its VTEP address and router id are the address that it connects from.
async fn vtep_at(address: &str, n: u8, to: SocketAddr) -> SpeakerHandle {
    vtep_with(n, address.parse().unwrap(), address, to, None).await
}

async fn vtep_with(
    n: u8,
    id: Ipv4Addr,
    address: &str,
    to: SocketAddr,
    password: Option<&str>,
) -> SpeakerHandle {
    let handle = SpeakerHandle::start(SpeakerConfig {
        bgp: config(&id.to_string(), Role::Vtep),
        local_address: Some(ip(address)),
        listen: vec![],
    })
    .await
    .unwrap();
    let mut evi = LocalEvi::new(Encoding::VlanBased, 1);
    evi.domains.insert(None);
    let mac = model::MacAddr([2, 0, 0, 0, 0, n]);
    let addresses = BTreeSet::from([IpAddr::from(Ipv4Addr::new(10, 4, 1, n))]);
    evi.macs
        .insert((None, mac), LocalMac::with_addresses(addresses));
    let mut state = LocalState::empty(id.into());
    state.evis.insert(vni(), evi);
    handle.set_local(state).await.unwrap();
    handle.set_peers(to_reflector(to, password)).await.unwrap();
    handle
}

fn to_reflector(to: SocketAddr, password: Option<&str>) -> BTreeMap<IpAddr, Peer> {
    let mut peer = Peer::new(PeerConfig::REFLECTOR);
    peer.port = to.port();
    peer.password = password.map(|text| Secret(text.to_owned()));
    BTreeMap::from([(to.ip(), peer)])
}

/// Waits until the speaker has the MAC of VTEP `n` there, or has nothing of it.
async fn sees(handle: &SpeakerHandle, n: u8, wanted: bool) {
    let vtep = IpAddr::from(Ipv4Addr::new(10, 0, 0, n));
    let mac = (None, model::MacAddr([2, 0, 0, 0, 0, n]));
    let watch = handle.forwarding();
    until("the row is as it should be", PATIENCE, async || {
        let rows = watch.borrow().clone();
        let is = rows.evis.get(&vni()).is_some_and(|evi| {
            evi.macs.get(&mac) == Some(&vtep) && evi.flood.contains(&(None, vtep))
        });
        (is == wanted).then_some(()).ok_or(format!("{rows:#?}"))
    })
    .await;
}

async fn peer_of(handle: &SpeakerHandle, peer: &str) -> PeerInfo {
    let peers = handle.peers().await.unwrap();
    peers.into_iter().find(|p| p.peer == ip(peer)).unwrap()
}

fn on_one_thread(body: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(body);
}

#[test]
fn two_vteps_learn_each_other_and_forget() {
    on_one_thread(async {
        let rr = reflector("127.0.1.101", clients(&["127.0.1.1", "127.0.1.2"])).await;
        let at = rr.listening()[0];
        let c1 = vtep(1, "127.0.1.1", at, None).await;
        let c2 = vtep(2, "127.0.1.2", at, None).await;
        sees(&c1, 2, true).await;
        sees(&c2, 1, true).await;
        let routes = c1.routes().await.unwrap();
        assert_eq!(routes.len(), 6, "{routes:#?}");
        let macs = c1.macs().await.unwrap();
        let held: Vec<_> = macs.iter().map(|m| (m.local, m.vtep, m.moves)).collect();
        assert_eq!(
            held,
            [(true, ip("10.0.0.1"), 0), (false, ip("10.0.0.2"), 0)]
        );
        assert_eq!(c1.alerts().await.unwrap(), []);
        assert!(!c1.clear_duplicate(vni(), None, macs[1].mac).await.unwrap());
        // A host taken off the list goes, and its routes with it.
        rr.set_peers(clients(&["127.0.1.2"])).await.unwrap();
        sees(&c2, 1, false).await;
        // One that is put back returns by itself.
        rr.set_peers(clients(&["127.0.1.1", "127.0.1.2"]))
            .await
            .unwrap();
        sees(&c2, 1, true).await;
        c1.stop(StopKind::Withdraw).await.unwrap();
        sees(&c2, 1, false).await;
    });
}

#[test]
fn ipv6_underlay_with_keys() {
    let rig = Rig::new(&[]);
    for address in ["fd00:99::1", "fd00:99::2", "fd00:99::101"] {
        rig.ip("ours", &["addr", "add", address, "dev", "lo", "nodad"]);
    }
    rig.run(async |_rig| {
        let mut peers = clients(&["fd00:99::1", "fd00:99::2"]);
        for peer in peers.values_mut() {
            peer.password = Some(Secret("fabric".to_owned()));
        }
        let rr = reflector("fd00:99::101", peers).await;
        let at = rr.listening()[0];
        let c1 = vtep(1, "fd00:99::1", at, Some("fabric")).await;
        let c2 = vtep(2, "fd00:99::2", at, Some("fabric")).await;
        sees(&c1, 2, true).await;
        sees(&c2, 1, true).await;
    });
}

#[test]
fn a_wrong_or_missing_key_is_refused() {
    // What the kernel counts is counted per namespace.
    let rig = Rig::new(&[]);
    rig.run(async |_rig| {
        let mut peers = clients(&["127.0.2.1", "127.0.2.2", "127.0.2.3"]);
        for peer in peers.values_mut() {
            peer.password = Some(Secret("right".to_owned()));
        }
        let rr = reflector("127.0.2.101", peers).await;
        let at = rr.listening()[0];
        let c1 = vtep(1, "127.0.2.1", at, Some("right")).await;
        let wrong = vtep(2, "127.0.2.2", at, Some("wrong")).await;
        let none = vtep(3, "127.0.2.3", at, None).await;
        for handle in [&wrong, &none] {
            until("the attempt has failed", PATIENCE, async || {
                let peer = peer_of(handle, "127.0.2.101").await;
                let failed = peer.last_error.as_ref();
                let failed = failed.is_some_and(|text| text.starts_with("connecting to"));
                failed.then_some(()).ok_or(format!("{peer:#?}"))
            })
            .await;
        }
        for (address, up) in [
            ("127.0.2.1", true),
            ("127.0.2.2", false),
            ("127.0.2.3", false),
        ] {
            let peer = peer_of(&rr, address).await;
            assert_eq!(peer.state == SessionState::Established, up, "{peer:#?}");
            assert_eq!(peer.counters.messages_in > 0, up, "{peer:#?}");
        }
        // Each end says what it can know.
        let told = peer_of(&wrong, "127.0.2.101").await.advice.unwrap();
        assert_eq!(told.problem, "no answer from 127.0.2.101");
        assert!(
            told.causes.iter().any(|cause| cause.contains("TCP-MD5")),
            "{told:#?}"
        );
        let told = peer_of(&rr, "127.0.2.2").await.advice.unwrap();
        assert!(
            told.causes[0].contains("MD5 signature"),
            "the kernel counted: {told:#?}"
        );
        // The key is put right: the session comes up without a restart of anything.
        wrong
            .set_peers(to_reflector(at, Some("right")))
            .await
            .unwrap();
        sees(&c1, 2, true).await;
    });
}

/// All that comes until the end, as types of BGP messages.
async fn message_types(mut stream: TcpStream) -> Vec<u8> {
    let mut bytes = vec![];
    let all = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut bytes)).await;
    // A reset ends it as well.
    all.expect("the connection ends").ok();
    let (mut types, mut at) = (vec![], 0);
    while at + 19 <= bytes.len() {
        types.push(bytes[at + 18]);
        at += usize::from(u16::from_be_bytes([bytes[at + 16], bytes[at + 17]]));
    }
    types
}

#[test]
fn garbage_and_strangers_disturb_nobody() {
    on_one_thread(async {
        let names = ["127.0.3.1", "127.0.3.2", "127.0.3.9"];
        let rr = reflector("127.0.3.101", clients(&names)).await;
        let at = rr.listening()[0];
        let c1 = vtep(1, "127.0.3.1", at, None).await;
        let c2 = vtep(2, "127.0.3.2", at, None).await;
        sees(&c1, 2, true).await;
        sees(&c2, 1, true).await;

        // A stranger gets not a byte.
        let mut stranger = raw("127.0.3.77", at, 255).await;
        stranger.write_all(b"hello").await.ok();
        assert_eq!(message_types(stranger).await, Vec::<u8>::new());

        // A peer that sends garbage is told so and closed.
        let mut garbage = raw("127.0.3.9", at, 255).await;
        garbage.write_all(&[0x42; 4096]).await.unwrap();
        assert_eq!(message_types(garbage).await, [OPEN, NOTIFICATION]);

        for address in ["127.0.3.1", "127.0.3.2"] {
            let peer = peer_of(&rr, address).await;
            assert_eq!(peer.state, SessionState::Established);
            assert_eq!(peer.counters.sessions, 1);
        }
    });
}

/// Whoever is farther away than the next host is not a peer (RFC 5082), however fast it speaks.
async fn nobody_far_is_heard(rr: &SpeakerHandle, from: &str, connects: bool) {
    let socket = socket(from, 254);
    let (at, opening) = (rr.listening()[0], handshake(9));
    let speaks = std::thread::spawn(move || {
        let patience = if connects { PATIENCE } else { SILENCE };
        let far = connect_now(socket, at, patience)?;
        std::io::Write::write_all(&mut &far, &opening)?;
        Ok::<_, std::io::Error>(far)
    });
    // The reflector has no turn before all is said: this is its only thread.
    let far = speaks.join().unwrap();
    assert_eq!(far.is_ok(), connects, "{far:?}");
    if let Ok(far) = far {
        far.set_nonblocking(true).unwrap();
        let heard = message_types(TcpStream::from_std(far).unwrap()).await;
        assert_eq!(heard, Vec::<u8>::new());
    }
    let peer = peer_of(rr, from).await;
    assert_eq!(peer.counters.messages_in, 0, "{peer:#?}");
    assert_ne!(peer.state, SessionState::Established, "{peer:#?}");
    let told = peer.advice.unwrap();
    let told = [vec![told.problem], told.causes].concat().join("; ");
    assert!(told.contains("TTL"), "{told}");
}

/// Connects on the calling thread.
fn connect_now(
    socket: TcpSocket,
    to: SocketAddr,
    patience: Duration,
) -> std::io::Result<std::net::TcpStream> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(async {
            let attempt = socket.connect(to);
            match tokio::time::timeout(patience, attempt).await {
                Ok(stream) => stream?.into_std(),
                Err(_) => Err(std::io::ErrorKind::TimedOut.into()),
            }
        })
        .and_then(|stream| {
            stream.set_nonblocking(false)?;
            Ok(stream)
        })
}

#[test]
fn nothing_from_afar_is_read() {
    let rig = Rig::new(&[]);
    for address in ["fd00:99::1", "fd00:99::2", "fd00:99::101"] {
        rig.ip("ours", &["addr", "add", address, "dev", "lo", "nodad"]);
    }
    rig.run(async |_rig| {
        for (address, near, far) in [
            ("127.0.12.101", "127.0.12.2", "127.0.12.9"),
            ("fd00:99::101", "fd00:99::2", "fd00:99::1"),
        ] {
            // All peers do GTSM: the kernel answers nobody from afar.
            let rr = reflector(address, clients(&[near, far])).await;
            nobody_far_is_heard(&rr, far, false).await;
            // One does not, and may be anywhere; the other one still may not.
            let mut peers = clients(&[near, far]);
            peers.get_mut(&ip(near)).unwrap().gtsm = false;
            rr.set_peers(peers).await.unwrap();
            nobody_far_is_heard(&rr, far, true).await;
            let mut stream = raw(near, rr.listening()[0], 64).await;
            stream.write_all(&handshake(2)).await.unwrap();
            until("the one that may is heard", PATIENCE, async || {
                let peer = peer_of(&rr, near).await;
                let up = peer.state == SessionState::Established;
                up.then_some(()).ok_or(format!("{peer:#?}"))
            })
            .await;
            // And as soon as all have to be near, it may not either.
            rr.set_peers(clients(&[near, far])).await.unwrap();
            nobody_far_is_heard(&rr, far, false).await;
        }
    });
}

/// Whoever has a host has its key and address, and may say what it likes. Nobody believes it about
/// another's MAC or place on flood lists; that a MAC is with itself is its to say.
#[test]
fn a_host_does_not_speak_for_another() {
    let rig = Rig::new(&["10.98.0.1", "10.98.0.2", "10.98.0.9", "10.98.0.101"]);
    rig.run(async |_rig| {
        let own = |address: &str| {
            let router_id = evpn::router_id_of(ip(address));
            let announces = evpn::Announces::Own { router_id };
            let config = PeerConfig {
                announces,
                ..PeerConfig::CLIENT
            };
            (ip(address), Peer::new(config))
        };
        let hosts = ["10.98.0.1", "10.98.0.2", "10.98.0.9"];
        let rr = reflector("10.98.0.101", hosts.map(own).into()).await;
        let at = rr.listening()[0];
        let victim = vtep_at("10.98.0.1", 1, at).await;
        let other = vtep_at("10.98.0.2", 2, at).await;
        let mac_of = |n: u8| model::MacAddr([2, 0, 0, 0, 0, n]);
        let behind = async |what: &str, mac: model::MacAddr, vtep: &str| {
            let watch = other.forwarding();
            until(what, PATIENCE, async || {
                let rows = watch.borrow().clone();
                let evi = rows.evis.get(&vni());
                let there = evi.and_then(|evi| evi.macs.get(&(None, mac))) == Some(&ip(vtep));
                let floods = evi.is_some_and(|evi| evi.flood.contains(&(None, ip("10.98.0.1"))));
                (there && floods).then_some(()).ok_or(format!("{rows:#?}"))
            })
            .await;
        };
        behind("all is well", mac_of(1), "10.98.0.1").await;
        let mut hostile = raw("10.98.0.9", at, 255).await;
        hostile
            .write_all(&handshake_of([10, 98, 0, 9]))
            .await
            .unwrap();
        let (victims, its) = ([10, 98, 0, 1], [10, 98, 0, 9]);
        for (rd, next_hop, n) in [
            // The victim's route with its own next hop; its own with the victim's.
            (victims, its, 1),
            (its, victims, 1),
        ] {
            hostile
                .write_all(&mac_update(rd, next_hop, n, 77))
                .await
                .unwrap();
        }
        hostile
            .write_all(&flood_update(victims, victims, its))
            .await
            .unwrap();
        hostile
            .write_all(&flood_update(its, victims, its))
            .await
            .unwrap();
        // Behind all of that.
        hostile
            .write_all(&mac_update(its, its, 50, 0))
            .await
            .unwrap();
        behind("what is its own is taken", mac_of(50), "10.98.0.9").await;
        behind(
            "nothing of the victim's has changed",
            mac_of(1),
            "10.98.0.1",
        )
        .await;
        let peer = peer_of(&rr, "10.98.0.9").await;
        assert_eq!(
            (peer.routes, peer.counters.routes_foreign),
            (1, 4),
            "{peer:#?}"
        );
        let told = peer.advice.unwrap().problem;
        assert!(told.contains("routes of another host"), "{told}");
        let alerts = rr.alerts().await.unwrap();
        assert_eq!(alerts.len(), 1, "{alerts:#?}");
        // A MAC that moves is claimed by whom it moved to, in its own name.
        hostile
            .write_all(&mac_update(its, its, 1, 1))
            .await
            .unwrap();
        behind("the MAC has moved", mac_of(1), "10.98.0.9").await;
        until("the host that had it knows", PATIENCE, async || {
            let macs = victim.macs().await.unwrap();
            let lost = macs
                .iter()
                .any(|m| m.mac == mac_of(1) && m.vtep == ip("10.98.0.9"));
            lost.then_some(()).ok_or(format!("{macs:#?}"))
        })
        .await;
        for address in ["10.98.0.1", "10.98.0.2"] {
            let peer = peer_of(&rr, address).await;
            assert_eq!(
                (peer.counters.sessions, peer.counters.routes_foreign),
                (1, 0)
            );
        }
    });
}

#[test]
fn a_broken_connection_costs_no_row() {
    on_one_thread(async {
        let rr = reflector("127.0.4.101", clients(&["127.0.4.1", "127.0.4.2"])).await;
        let at = rr.listening()[0];
        // c1's connections go through a wire that can be cut.
        let wire = TcpListener::bind("127.0.4.101:0").await.unwrap();
        wire.set_ttl(255).unwrap();
        let through = wire.local_addr().unwrap();
        let (cut, mut cuts) = tokio::sync::mpsc::channel::<()>(1);
        tokio::spawn(async move {
            loop {
                let (mut near, _) = wire.accept().await.unwrap();
                let mut far = raw("127.0.4.1", at, 255).await;
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                    _ = cuts.recv() => {
                        near.set_zero_linger().unwrap();
                        far.set_zero_linger().unwrap();
                    }
                }
            }
        });
        let c1 = vtep(1, "127.0.4.1", through, None).await;
        let c2 = vtep(2, "127.0.4.2", at, None).await;
        sees(&c1, 2, true).await;
        sees(&c2, 1, true).await;
        let mut seen = [c1.forwarding(), c2.forwarding()];
        until("all is quiet", PATIENCE, async || {
            let quiet = seen.iter().all(|watch| watch.borrow().complete);
            quiet.then_some(()).ok_or("not complete".to_owned())
        })
        .await;
        seen.iter_mut().for_each(|watch| watch.mark_unchanged());
        for sessions in 2..5 {
            cut.send(()).await.unwrap();
            until("the session is back", PATIENCE, async || {
                let peer = peer_of(&rr, "127.0.4.1").await;
                let back = peer.counters.sessions == sessions && peer.synced;
                back.then_some(()).ok_or(format!("{peer:#?}"))
            })
            .await;
        }
        for watch in &seen {
            assert!(!watch.has_changed().unwrap(), "{:#?}", watch.borrow());
        }
    });
}

#[test]
fn a_taken_port_is_explained() {
    on_one_thread(async {
        let rr = reflector("127.0.5.101", BTreeMap::new()).await;
        let error = SpeakerHandle::start(SpeakerConfig {
            bgp: config("10.0.0.102", Role::Reflector),
            local_address: None,
            listen: rr.listening().to_vec(),
        })
        .await
        .unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("127.0.5.101") && text.contains("ss -tlnp"),
            "{text}"
        );
    });
}

#[test]
fn a_new_key_costs_no_row() {
    on_one_thread(async {
        let keyed = |key: &str| {
            let mut peers = clients(&["127.0.6.1", "127.0.6.2"]);
            for peer in peers.values_mut() {
                peer.password = Some(Secret(key.to_owned()));
            }
            peers
        };
        let rr = reflector("127.0.6.101", keyed("old")).await;
        let at = rr.listening()[0];
        let c1 = vtep(1, "127.0.6.1", at, Some("old")).await;
        let c2 = vtep(2, "127.0.6.2", at, Some("old")).await;
        sees(&c1, 2, true).await;
        sees(&c2, 1, true).await;
        let mut seen = [c1.forwarding(), c2.forwarding()];
        until("all is quiet", PATIENCE, async || {
            let quiet = seen.iter().all(|watch| watch.borrow().complete);
            quiet.then_some(()).ok_or("not complete".to_owned())
        })
        .await;
        seen.iter_mut().for_each(|watch| watch.mark_unchanged());
        let heard = async |what: &str, sessions: u64| {
            // Signed with the key of the day, or the kernel would not have let it through.
            let before = rr.peers().await.unwrap();
            until(what, PATIENCE, async || {
                let peers = rr.peers().await.unwrap();
                let heard = peers.iter().zip(&before).all(|(now, then)| {
                    now.counters.sessions == sessions
                        && now.synced
                        && now.counters.messages_in > then.counters.messages_in
                });
                heard.then_some(()).ok_or(format!("{peers:#?}"))
            })
            .await;
        };
        // Both ends within the hold time: the same sessions go on.
        rr.set_peers(keyed("new")).await.unwrap();
        for handle in [&c1, &c2] {
            handle
                .set_peers(to_reflector(at, Some("new")))
                .await
                .unwrap();
        }
        heard("keepalives come under the new key", 1).await;
        // One end much later: the sessions drop, and the rows stay.
        rr.set_peers(keyed("newer")).await.unwrap();
        until("the sessions are given up", PATIENCE, async || {
            let peers = rr.peers().await.unwrap();
            let down = peers.iter().all(|p| p.state != SessionState::Established);
            down.then_some(()).ok_or(format!("{peers:#?}"))
        })
        .await;
        for handle in [&c1, &c2] {
            handle
                .set_peers(to_reflector(at, Some("newer")))
                .await
                .unwrap();
        }
        heard("the sessions are back", 2).await;
        for watch in &seen {
            assert!(!watch.has_changed().unwrap(), "{:#?}", watch.borrow());
        }
    });
}

/// OPEN of router 10.0.0.n in AS 4200000000 with EVPN and nothing else, and KEEPALIVE.
fn handshake(n: u8) -> Vec<u8> {
    handshake_of([10, 0, 0, n])
}

/// Reads a peer's messages until they have announced so many routes.
async fn read_routes(stream: &mut TcpStream, wanted: usize) {
    let mut count = 0;
    while count < wanted {
        let mut header = [0; 19];
        stream.read_exact(&mut header).await.unwrap();
        let length = usize::from(u16::from_be_bytes([header[16], header[17]]));
        let mut body = vec![0; length - 19];
        stream.read_exact(&mut body).await.unwrap();
        // UPDATE, and in it MP_REACH_NLRI, which is the first attribute.
        if header[18] != 2 || body[5] != 14 {
            continue;
        }
        let length = usize::from(u16::from_be_bytes([body[6], body[7]]));
        let value = &body[8..8 + length];
        let mut at = 4 + usize::from(value[3]) + 1;
        while at < value.len() {
            at += 2 + usize::from(value[at + 1]);
            count += 1;
        }
    }
}

#[test]
fn a_peer_that_does_not_read_holds_up_nobody() {
    const MACS: u32 = 12_000;
    on_one_thread(async {
        let names = ["127.0.7.1", "127.0.7.2", "127.0.7.9"];
        // It says nothing either, and that is another test's.
        let timing = Timing {
            hold_time: 2 * PATIENCE,
            send_hold_time: 2 * PATIENCE,
            ..Timing::default()
        };
        let rr = reflector_with("127.0.7.101", clients(&names), timing).await;
        let at = rr.listening()[0];
        let socket = socket("127.0.7.9", 255);
        socket.set_recv_buffer_size(4096).unwrap();
        let mut slow = socket.connect(at).await.unwrap();
        slow.write_all(&handshake(9)).await.unwrap();
        let c1 = vtep(1, "127.0.7.1", at, None).await;
        let c2 = vtep(2, "127.0.7.2", at, None).await;
        sees(&c1, 2, true).await;
        let mut evi = LocalEvi::new(Encoding::VlanBased, 1);
        evi.domains.insert(None);
        for n in 0..MACS {
            let [_, a, b, c] = n.to_be_bytes();
            let key = (None, model::MacAddr([2, 1, 0, a, b, c]));
            let addresses = [
                IpAddr::from([10, a, b, c]),
                IpAddr::from([
                    0xfd00,
                    0,
                    0,
                    0,
                    0,
                    0,
                    u16::from(a),
                    u16::from(b) << 8 | u16::from(c),
                ]),
            ];
            let addresses = BTreeSet::from(addresses);
            evi.macs.insert(key, LocalMac::with_addresses(addresses));
        }
        let mut state = LocalState::empty("10.0.0.1".parse().unwrap());
        state.evis.insert(vni(), evi);
        c1.set_local(state).await.unwrap();
        let watch = c2.forwarding();
        until("c2 has all rows", PATIENCE, async || {
            let rows = watch.borrow().evis[&vni()].macs.len();
            (rows == MACS as usize)
                .then_some(())
                .ok_or(rows.to_string())
        })
        .await;
        let sent = |peer: PeerInfo| peer.counters.updates_out;
        let (to_slow, to_c2) = (
            sent(peer_of(&rr, "127.0.7.9").await),
            sent(peer_of(&rr, "127.0.7.2").await),
        );
        assert!(to_slow < to_c2, "{to_slow} to the slow peer, {to_c2} to c2");
        // When it reads at last, it gets everything: a flood route of each VTEP, c2's MAC without
        // and with its address, c1's without and with two.
        let all = read_routes(&mut slow, 2 + 2 + 3 * MACS as usize);
        tokio::time::timeout(PATIENCE, all).await.unwrap();
    });
}

#[test]
fn an_answer_from_too_far_is_told_from_no_answer() {
    let rig = Rig::new(&[]);
    rig.run(async |_rig| {
        // Whoever answers on this one does not do GTSM.
        let listener = TcpListener::bind("127.0.8.101:0").await.unwrap();
        listener.set_ttl(64).unwrap();
        let at = listener.local_addr().unwrap();
        let c1 = vtep(1, "127.0.8.1", at, None).await;
        until("the attempt has failed", PATIENCE, async || {
            let peer = peer_of(&c1, "127.0.8.101").await;
            match &peer.advice {
                Some(advice) => Ok(advice.problem.clone()),
                None => Err(format!("{peer:#?}")),
            }
        })
        .await;
        let told = peer_of(&c1, "127.0.8.101").await.advice.unwrap();
        assert_eq!(
            told.problem,
            "what 127.0.8.101 sends comes with a TTL below 255, and GTSM is on here"
        );
        drop(listener);
        // Nobody there any more.
        until("the refusal is told", PATIENCE, async || {
            let told = peer_of(&c1, "127.0.8.101").await.advice.unwrap();
            let refused = told.problem == "127.0.8.101 refuses connections";
            refused.then_some(()).ok_or(format!("{told:#?}"))
        })
        .await;
    });
}

#[test]
fn a_peer_that_never_reads_is_dropped() {
    on_one_thread(async {
        let names = ["127.0.9.1", "127.0.9.2", "127.0.9.9"];
        let timing = Timing {
            send_hold_time: Duration::from_secs(3),
            ..Timing::default()
        };
        let rr = reflector_with("127.0.9.101", clients(&names), timing).await;
        let at = rr.listening()[0];
        let socket = socket("127.0.9.9", 255);
        socket.set_recv_buffer_size(4096).unwrap();
        let mut deaf = socket.connect(at).await.unwrap();
        deaf.write_all(&handshake(9)).await.unwrap();
        // It is alive and well, but for its ears.
        let chatter = tokio::spawn(async move {
            let mut tick = tokio::time::interval(Duration::from_secs(1));
            loop {
                tick.tick().await;
                if deaf.write_all(&keepalive()).await.is_err() {
                    return;
                }
            }
        });
        let c1 = vtep(1, "127.0.9.1", at, None).await;
        let c2 = vtep(2, "127.0.9.2", at, None).await;
        sees(&c2, 1, true).await;
        let mut evi = LocalEvi::new(Encoding::VlanBased, 1);
        evi.domains.insert(None);
        for n in 0..20_000_u32 {
            let [_, a, b, c] = n.to_be_bytes();
            let key = (None, model::MacAddr([2, 1, 0, a, b, c]));
            let addresses = BTreeSet::from([IpAddr::from([10, a, b, c])]);
            evi.macs.insert(key, LocalMac::with_addresses(addresses));
        }
        let mut state = LocalState::empty("10.0.0.1".parse().unwrap());
        state.evis.insert(vni(), evi);
        c1.set_local(state).await.unwrap();
        until("the deaf one is dropped", PATIENCE, async || {
            let peer = peer_of(&rr, "127.0.9.9").await;
            let error = peer.last_error.as_deref().unwrap_or_default();
            error
                .contains("Send Hold Timer Expired")
                .then_some(())
                .ok_or(format!("{peer:#?}"))
        })
        .await;
        let told = peer_of(&rr, "127.0.9.9").await.advice.unwrap();
        assert_eq!(told.problem, "127.0.9.9 stopped reading");
        for address in ["127.0.9.1", "127.0.9.2"] {
            let peer = peer_of(&rr, address).await;
            assert_eq!(peer.counters.sessions, 1, "{peer:#?}");
            assert_eq!(peer.state, SessionState::Established, "{peer:#?}");
        }
        let watch = c2.forwarding();
        until("c2 has all rows", PATIENCE, async || {
            let rows = watch.borrow().evis[&vni()].macs.len();
            (rows == 20_000).then_some(()).ok_or(rows.to_string())
        })
        .await;
        chatter.abort();
    });
}

fn keepalive() -> Vec<u8> {
    message(KEEPALIVE, &[])
}

#[test]
fn a_stalled_speaker_blames_nobody() {
    on_one_thread(async {
        let timing = Timing {
            hold_time: Duration::from_secs(3),
            ..Timing::default()
        };
        let rr = reflector_with("127.0.10.101", clients(&["127.0.10.9"]), timing).await;
        let mut stream = raw("127.0.10.9", rr.listening()[0], 255).await;
        stream.write_all(&handshake(9)).await.unwrap();
        until("the session is up", PATIENCE, async || {
            let peer = peer_of(&rr, "127.0.10.9").await;
            let up = peer.state == SessionState::Established;
            up.then_some(()).ok_or(format!("{peer:#?}"))
        })
        .await;
        // All of the speaker's tasks stand still for longer than the hold time: this is the only
        // thread. The peer's keepalives pile up in the kernel meanwhile.
        let mut stream = stream.into_std().unwrap();
        stream.set_nonblocking(false).unwrap();
        let begin = std::time::Instant::now();
        while begin.elapsed() < Duration::from_millis(4500) {
            std::io::Write::write_all(&mut stream, &keepalive()).unwrap();
            std::thread::park_timeout(Duration::from_millis(500));
        }
        let heard = peer_of(&rr, "127.0.10.9").await.counters.messages_in;
        stream.set_nonblocking(true).unwrap();
        let mut stream = TcpStream::from_std(stream).unwrap();
        stream.write_all(&keepalive()).await.unwrap();
        until("it goes on to hear", PATIENCE, async || {
            let peer = peer_of(&rr, "127.0.10.9").await;
            (peer.counters.messages_in > heard)
                .then_some(())
                .ok_or(format!("{peer:#?}"))
        })
        .await;
        let peer = peer_of(&rr, "127.0.10.9").await;
        assert_eq!(peer.state, SessionState::Established, "{peer:#?}");
        assert_eq!(peer.counters.sessions, 1);
        // And one that has fallen silent goes in time.
        until("the silent one is dropped", PATIENCE, async || {
            let peer = peer_of(&rr, "127.0.10.9").await;
            let error = peer.last_error.as_deref().unwrap_or_default();
            error
                .contains("Hold Timer Expired")
                .then_some(())
                .ok_or(format!("{peer:#?}"))
        })
        .await;
    });
}

#[test]
fn what_operators_ask_and_say() {
    on_one_thread(async {
        let rr = reflector("127.0.11.101", clients(&["127.0.11.1", "127.0.11.2"])).await;
        let at = rr.listening()[0];
        let c1 = vtep(1, "127.0.11.1", at, None).await;
        let c2 = vtep(2, "127.0.11.2", at, None).await;
        sees(&c1, 2, true).await;
        sees(&c2, 1, true).await;
        let mut seen = c1.forwarding();
        until("c1 is complete", PATIENCE, async || {
            let done = seen.borrow().complete;
            done.then_some(()).ok_or("not complete".to_owned())
        })
        .await;
        seen.mark_unchanged();
        c1.refresh(ip("127.0.11.101")).await.unwrap();
        until("everything was told again", PATIENCE, async || {
            let history = c1.history(ip("127.0.11.101")).await.unwrap().unwrap();
            let ended = history.iter().any(|e| e.summary.starts_with("EoRR"));
            ended.then_some(()).ok_or(format!("{history:#?}"))
        })
        .await;
        assert!(!seen.has_changed().unwrap(), "{:#?}", seen.borrow());
        let error = c1.refresh(ip("127.0.11.77")).await.unwrap_err();
        assert!(error.to_string().contains("not a configured BGP peer"));

        let text = "the rack loses power at ten";
        c2.stop_saying(StopKind::Withdraw, text).await.unwrap();
        until("the reflector was told why", PATIENCE, async || {
            let peer = peer_of(&rr, "127.0.11.2").await;
            let error = peer.last_error.clone().unwrap_or_default();
            error
                .contains(text)
                .then_some(())
                .ok_or(format!("{peer:#?}"))
        })
        .await;
    });
}
