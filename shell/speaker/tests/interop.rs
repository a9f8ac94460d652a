//! Real daemons of others, each in a network namespace of its own: FRR 8.4 as reflector and as
//! VTEP, GoBGP as reflector.

#![allow(clippy::unwrap_used, reason = "a helper that panics fails its test")]

mod rig;

use evpn::{
    Config, LocalEvi, LocalMac, LocalState, PeerConfig, Role, SessionState, StopKind, Timing,
};
use model::{Asn, Encoding, Forwarding, MacAddr, Vni};
use rig::{PATIENCE, Rig, until};
use serde_json::Value;
use speaker::{Peer, SpeakerConfig, SpeakerHandle};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

const C1: &str = "10.99.0.1";
const C2: &str = "10.99.0.2";
const RR: &str = "10.99.0.101";
const VTEP: &str = "10.99.0.3";
const MAC_1: &str = "02:00:00:00:00:01";
const MAC_2: &str = "02:00:00:00:00:02";
const MAC_3: &str = "02:00:00:00:00:03";
/// What the issue allows a withdrawal.
const WITHDRAWN_WITHIN: Duration = Duration::from_secs(1);

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn mac(text: &str) -> MacAddr {
    text.parse().unwrap()
}

fn vni() -> Vni {
    Vni::new(100).unwrap()
}

fn config(address: &str, role: Role) -> Config {
    Config {
        router_id: evpn::router_id_of(ip(address)),
        asn: Asn::new(65000).unwrap(),
        role,
        cluster_id: None,
        forwarding_preserved: true,
        timing: Timing::default(),
        policy: evpn::Policy::default(),
        seed: 1,
    }
}

/// A host with one MAC of one address.
fn one_mac(vtep: &str, held: &str, address: &str) -> LocalState {
    let mut evi = LocalEvi::new(Encoding::VlanBased, 1);
    evi.domains.insert(None);
    let local = LocalMac::with_addresses([ip(address)]);
    evi.macs.insert((None, mac(held)), local);
    let mut state = LocalState::empty(ip(vtep));
    state.evis.insert(vni(), evi);
    state
}

/// A host that may announce its own routes alone.
fn own_client(address: &str) -> Peer {
    let router_id = evpn::router_id_of(ip(address));
    Peer::new(PeerConfig {
        announces: evpn::Announces::Own { router_id },
        ..PeerConfig::CLIENT
    })
}

async fn client(address: &str, reflector: &str, gtsm: bool) -> SpeakerHandle {
    client_with(address, reflector, gtsm, Timing::default()).await
}

async fn client_with(address: &str, reflector: &str, gtsm: bool, timing: Timing) -> SpeakerHandle {
    let handle = SpeakerHandle::start(SpeakerConfig {
        bgp: Config {
            timing,
            ..config(address, Role::Vtep)
        },
        local_address: Some(ip(address)),
        listen: vec![],
    })
    .await
    .unwrap();
    let mut peer = Peer::new(PeerConfig::REFLECTOR);
    peer.gtsm = gtsm;
    let peers = BTreeMap::from([(ip(reflector), peer)]);
    handle.set_peers(peers).await.unwrap();
    handle
}

async fn established(handle: &SpeakerHandle) {
    until("the session is up", PATIENCE, async || {
        let peers = handle.peers().await.unwrap();
        let up = peers.iter().all(|p| p.state == SessionState::Established);
        up.then_some(()).ok_or(format!("{peers:#?}"))
    })
    .await;
}

/// Asks the reflector to tell everything again, and sees that it does and that no row moves.
async fn refreshed(handle: &SpeakerHandle) {
    let mut seen = handle.forwarding();
    seen.mark_unchanged();
    let before = handle.peers().await.unwrap().remove(0);
    handle.refresh(ip(RR)).await.unwrap();
    until("everything is told again", PATIENCE, async || {
        let peer = handle.peers().await.unwrap().remove(0);
        let again = peer.counters.received.updates > before.counters.received.updates;
        (again && peer.stale == 0)
            .then_some(())
            .ok_or(format!("{peer:#?}\n{:#?}", handle.history(ip(RR)).await))
    })
    .await;
    let peer = handle.peers().await.unwrap().remove(0);
    assert_eq!((peer.counters.sessions, peer.routes), (1, before.routes));
    assert!(
        !seen.has_changed().unwrap(),
        "rows changed over the refresh: {:#?}",
        seen.borrow()
    );
}

/// Waits until the rows are as the check wants them.
async fn rows(
    what: &str,
    limit: Duration,
    handle: &SpeakerHandle,
    check: impl Fn(&Forwarding) -> bool,
) -> Arc<Forwarding> {
    let watch = handle.forwarding();
    until(what, limit, async || {
        let rows = Arc::clone(&watch.borrow());
        if check(&rows) {
            return Ok(rows);
        }
        Err(format!("{rows:#?}\n{:#?}", handle.routes().await))
    })
    .await
}

fn has_all_of(rows: &Forwarding, vtep: &str, held: &str, address: &str) -> bool {
    rows.evis.get(&vni()).is_some_and(|evi| {
        evi.flood.contains(&(None, ip(vtep)))
            && evi.macs.get(&(None, mac(held))) == Some(&ip(vtep))
            && evi.neighbours.get(&(None, ip(address))) == Some(&mac(held))
    })
}

// FRR.

struct Frr {
    netns: &'static str,
    sockets: String,
}

impl Frr {
    /// zebra and bgpd in a namespace, with a configuration for bgpd.
    fn start(rig: &mut Rig, netns: &'static str, config: &str) -> Self {
        let (dir, text) = rig.subdir(netns);
        std::fs::write(dir.join("bgpd.conf"), config).unwrap();
        std::fs::write(dir.join("zebra.conf"), "").unwrap();
        // FRR drops to its own user, which has to make sockets and files there.
        rig.give(&dir, "frr");
        let frr = Self {
            netns,
            sockets: text,
        };
        frr.run(rig, "zebra", &[]);
        frr.run(rig, "bgpd", &[]);
        frr
    }

    fn run(&self, rig: &mut Rig, daemon: &'static str, more: &[&str]) {
        let dir = &self.sockets;
        let program = format!("/usr/lib/frr/{daemon}");
        let (conf, pid, api) = (
            format!("{dir}/{daemon}.conf"),
            format!("{dir}/{daemon}.pid"),
            format!("{dir}/zserv.api"),
        );
        let mut args = vec![
            program.as_str(),
            "-f",
            &conf,
            "-i",
            &pid,
            "-z",
            &api,
            "--vty_socket",
            dir,
            "-P",
            "0",
            "--log",
            "stdout",
        ];
        args.extend(more);
        rig.daemon(daemon, self.netns, &args);
    }

    fn show(&self, rig: &Rig, what: &str) -> Value {
        rig.json(
            self.netns,
            &[
                "vtysh",
                "--vty_socket",
                &self.sockets,
                "-d",
                "bgpd",
                "-c",
                what,
            ],
        )
    }

    /// FRR's EVPN routes: type, MAC and address in its own notation.
    fn routes(&self, rig: &Rig) -> String {
        self.show(rig, "show bgp l2vpn evpn json").to_string()
    }
}

fn frr_reflector() -> String {
    let mut text = format!("router bgp 65000\n bgp router-id {RR}\n no bgp default ipv4-unicast\n");
    for client in [C1, C2] {
        text += &format!(
            " neighbor {client} remote-as 65000\n neighbor {client} timers 3 9\n \
             neighbor {client} ttl-security hops 1\n"
        );
    }
    text += " address-family l2vpn evpn\n";
    for client in [C1, C2] {
        text +=
            &format!("  neighbor {client} activate\n  neighbor {client} route-reflector-client\n");
    }
    text + " exit-address-family\n"
}

#[test]
fn frr_reflects_between_two_of_our_speakers() {
    let mut rig = Rig::new(&[C1, C2]);
    rig.host("rr", RR);
    let frr = Frr::start(&mut rig, "rr", &frr_reflector());
    rig.run(async move |mut rig| {
        let c1 = client(C1, RR, true).await;
        let c2 = client(C2, RR, true).await;
        c1.set_local(one_mac(C1, MAC_1, "10.4.1.1")).await.unwrap();
        c2.set_local(one_mac(C2, MAC_2, "fd00:4::2")).await.unwrap();
        established(&c1).await;
        established(&c2).await;

        let here = rows("c1 has c2's rows", PATIENCE, &c1, |rows| {
            has_all_of(rows, C2, MAC_2, "fd00:4::2")
        });
        here.await;
        let there = rows("c2 has c1's rows", PATIENCE, &c2, |rows| {
            has_all_of(rows, C1, MAC_1, "10.4.1.1")
        });
        there.await;
        let shown = frr.routes(&rig);
        for route in [
            format!("[2]:[0]:[48]:[{MAC_1}]"),
            format!("[2]:[0]:[48]:[{MAC_1}]:[32]:[10.4.1.1]"),
            format!("[2]:[0]:[48]:[{MAC_2}]:[128]:[fd00:4::2]"),
            format!("[3]:[0]:[32]:[{C1}]"),
            "RT:65000:100".to_owned(),
            "ET:8".to_owned(),
        ] {
            assert!(shown.contains(&route), "FRR does not show {route}: {shown}");
        }
        rows("c1 is complete", PATIENCE, &c1, |rows| rows.complete).await;
        refreshed(&c1).await;

        // Withdrawn: gone from FRR and the other speaker.
        let mut nothing = one_mac(C1, MAC_1, "10.4.1.1");
        nothing.evis.get_mut(&vni()).unwrap().macs.clear();
        c1.set_local(nothing).await.unwrap();
        let gone = |rows: &Forwarding| rows.evis[&vni()].macs.is_empty();
        rows("c2 lost c1's MAC", WITHDRAWN_WITHIN, &c2, gone).await;
        assert!(!frr.routes(&rig).contains(MAC_1));
        c1.set_local(one_mac(C1, MAC_1, "10.4.1.1")).await.unwrap();
        rows("c2 has c1's rows again", PATIENCE, &c2, |rows| {
            has_all_of(rows, C1, MAC_1, "10.4.1.1")
        })
        .await;

        // FRR 8.4 knows no graceful restart for EVPN. What it reflected stays all the same.
        let mut seen = c2.forwarding();
        seen.mark_unchanged();
        rig.kill("bgpd");
        until("c2 sees the session drop", PATIENCE, async || {
            let peers = c2.peers().await.unwrap();
            (peers[0].state != SessionState::Established && peers[0].stale == peers[0].routes)
                .then_some(())
                .ok_or(format!("{peers:#?}"))
        })
        .await;
        frr.run(&mut rig, "bgpd", &[]);
        established(&c1).await;
        established(&c2).await;
        until("c2's routes are fresh", PATIENCE, async || {
            let peer = c2.peers().await.unwrap().remove(0);
            (peer.stale == 0 && peer.synced && peer.routes > 0)
                .then_some(())
                .ok_or(format!("{peer:#?}"))
        })
        .await;
        assert!(
            !seen.has_changed().unwrap(),
            "rows changed over the restart: {:#?}",
            seen.borrow()
        );

        // Stopped for good: everything of it goes, and FRR's operator reads why.
        let text = "rack 7 moves";
        c1.stop_saying(StopKind::Withdraw, text).await.unwrap();
        until("FRR shows the reason", PATIENCE, async || {
            let shown = frr.show(&rig, &format!("show bgp neighbors {C1} json"));
            let reason = shown[C1]["lastShutdownDescription"].as_str();
            (reason == Some(text))
                .then_some(())
                .ok_or(format!("{shown:#}"))
        })
        .await;
        let gone = |rows: &Forwarding| {
            let evi = &rows.evis[&vni()];
            evi.macs.is_empty() && evi.flood.is_empty()
        };
        rows("c2 lost all of c1", WITHDRAWN_WITHIN, &c2, gone).await;
        c2.stop(StopKind::Withdraw).await.unwrap();
    });
}

#[test]
fn frr_as_vtep_behind_our_reflector() {
    let mut rig = Rig::new(&[C1, RR]);
    rig.host("vtep", VTEP);
    for args in [
        &["link", "add", "br100", "type", "bridge"][..],
        &[
            "link",
            "add",
            "vx100",
            "type",
            "vxlan",
            "id",
            "100",
            "local",
            VTEP,
            "dstport",
            "4789",
            "nolearning",
        ],
        &["link", "set", "vx100", "master", "br100", "up"],
        &[
            "link", "add", "nic", "type", "veth", "peer", "name", "nic-in",
        ],
        &["link", "set", "nic", "master", "br100", "up"],
        &["link", "set", "nic-in", "up"],
        &["link", "set", "br100", "up"],
        &["addr", "add", "10.4.1.254/24", "dev", "br100"],
    ] {
        rig.ip("vtep", args);
    }
    let frr = Frr::start(
        &mut rig,
        "vtep",
        &format!(
            "router bgp 65000\n bgp router-id {VTEP}\n no bgp default ipv4-unicast\n \
             neighbor {RR} remote-as 65000\n neighbor {RR} timers 3 9\n \
             neighbor {RR} timers connect 1\n neighbor {RR} password fabric\n \
             address-family l2vpn evpn\n  neighbor {RR} activate\n  advertise-all-vni\n \
             exit-address-family\n"
        ),
    );
    rig.run(async move |rig| {
        let listen = SocketAddr::new(ip(RR), 179);
        let rr = SpeakerHandle::start(SpeakerConfig {
            bgp: config(RR, Role::Reflector),
            local_address: Some(ip(RR)),
            listen: vec![listen],
        })
        .await
        .unwrap();
        let mut vtep = own_client(VTEP);
        vtep.password = Some(model::Secret("fabric".to_owned()));
        let peers = BTreeMap::from([(ip(C1), own_client(C1)), (ip(VTEP), vtep)]);
        rr.set_peers(peers).await.unwrap();
        let c1 = client(C1, RR, true).await;
        c1.set_local(one_mac(C1, MAC_1, "10.4.1.1")).await.unwrap();
        established(&rr).await;

        // FRR learns a MAC from its bridge, and an address from its neighbour table.
        rig.exec(
            "vtep",
            &[
                "bridge", "fdb", "replace", MAC_3, "dev", "nic", "master", "dynamic",
            ],
        );
        rig.ip(
            "vtep",
            &[
                "neigh",
                "replace",
                "10.4.1.3",
                "lladdr",
                MAC_3,
                "dev",
                "br100",
                "nud",
                "reachable",
            ],
        );
        rows("c1 has FRR's rows", PATIENCE, &c1, |rows| {
            has_all_of(rows, VTEP, MAC_3, "10.4.1.3")
        })
        .await;

        // And the kernel of FRR's host has ours.
        let fdb = async |wanted: bool, limit: Duration| {
            until(
                "FRR's kernel has c1's MAC as it should",
                limit,
                async || {
                    let fdb = rig.json("vtep", &["bridge", "-j", "fdb", "show", "dev", "vx100"]);
                    let to_c1 = |row: &Value| row["dst"] == C1;
                    let has = |held: &str| {
                        let rows = fdb.as_array().into_iter().flatten();
                        rows.filter(|row| to_c1(row)).any(|row| row["mac"] == held)
                    };
                    let flood = has("00:00:00:00:00:00");
                    (has(MAC_1) == wanted && flood)
                        .then_some(())
                        .ok_or(format!("{fdb:#}"))
                },
            )
            .await;
        };
        fdb(true, PATIENCE).await;
        let shown = frr.routes(&rig);
        for route in [
            format!("[2]:[0]:[48]:[{MAC_1}]:[32]:[10.4.1.1]"),
            format!("[3]:[0]:[32]:[{C1}]"),
        ] {
            assert!(shown.contains(&route), "FRR does not show {route}: {shown}");
        }

        // Withdrawals, both ways.
        let mut nothing = one_mac(C1, MAC_1, "10.4.1.1");
        nothing.evis.get_mut(&vni()).unwrap().macs.clear();
        c1.set_local(nothing).await.unwrap();
        fdb(false, WITHDRAWN_WITHIN).await;
        rig.exec(
            "vtep",
            &["bridge", "fdb", "del", MAC_3, "dev", "nic", "master"],
        );
        rig.ip("vtep", &["neigh", "del", "10.4.1.3", "dev", "br100"]);
        // Others stay: the bridge learned its port's own.
        let gone = |rows: &Forwarding| !rows.evis[&vni()].macs.contains_key(&(None, mac(MAC_3)));
        rows("c1 lost FRR's MAC", WITHDRAWN_WITHIN, &c1, gone).await;
        rig.ip("vtep", &["link", "del", "vx100"]);
        let gone = |rows: &Forwarding| rows.evis[&vni()].flood.is_empty();
        rows("c1 lost FRR's VTEP", WITHDRAWN_WITHIN, &c1, gone).await;
    });
}

// GoBGP.

fn gobgp_reflector(long_lived: bool) -> String {
    let long_lived = match long_lived {
        true => {
            "[neighbors.afi-safis.long-lived-graceful-restart.config]\nenabled = true\n\
             restart-time = 300\n"
        }
        false => "",
    };
    let (restart, enabled) = match long_lived {
        "" => (60, ""),
        _ => (2, "long-lived-enabled = true\n"),
    };
    let mut text = format!(
        "[global.config]\nas = 65000\nrouter-id = \"{RR}\"\nport = 179\n\
         local-address-list = [\"{RR}\"]\n"
    );
    for client in [C1, C2] {
        text += &format!(
            "[[neighbors]]\n[neighbors.config]\nneighbor-address = \"{client}\"\npeer-as = 65000\n\
             [neighbors.transport.config]\npassive-mode = true\n\
             [neighbors.timers.config]\nhold-time = 9\nkeepalive-interval = 3\n\
             [neighbors.route-reflector.config]\nroute-reflector-client = true\n\
             route-reflector-cluster-id = \"{RR}\"\n\
             [neighbors.graceful-restart.config]\nenabled = true\nrestart-time = {restart}\n\
             notification-enabled = true\n{enabled}\
             [[neighbors.afi-safis]]\n[neighbors.afi-safis.config]\n\
             afi-safi-name = \"l2vpn-evpn\"\n\
             [neighbors.afi-safis.mp-graceful-restart.config]\nenabled = true\n{long_lived}"
        );
    }
    text
}

#[test]
fn gobgp_reflects_between_two_of_our_speakers() {
    let mut rig = Rig::new(&[C1, C2]);
    rig.host("rr", RR);
    let (dir, text) = rig.subdir("rr");
    std::fs::write(dir.join("gobgpd.toml"), gobgp_reflector(false)).unwrap();
    let conf = format!("{text}/gobgpd.toml");
    let start = |rig: &mut Rig, conf: &str, more: &[&str]| {
        let mut args = vec![
            "gobgpd",
            "-f",
            conf,
            "-t",
            "toml",
            "--api-hosts",
            "127.0.0.1:50051",
        ];
        args.extend(more);
        rig.daemon("gobgpd", "rr", &args);
    };
    start(&mut rig, &conf, &[]);
    rig.run(async move |mut rig| {
        // GoBGP sends with the system's TTL unless told otherwise.
        let c1 = client(C1, RR, false).await;
        let c2 = client(C2, RR, false).await;
        c1.set_local(one_mac(C1, MAC_1, "10.4.1.1")).await.unwrap();
        c2.set_local(one_mac(C2, MAC_2, "fd00:4::2")).await.unwrap();
        established(&c1).await;
        established(&c2).await;
        rows("c1 has c2's rows", PATIENCE, &c1, |rows| {
            has_all_of(rows, C2, MAC_2, "fd00:4::2")
        })
        .await;
        rows("c2 has c1's rows", PATIENCE, &c2, |rows| {
            has_all_of(rows, C1, MAC_1, "10.4.1.1")
        })
        .await;
        let rib = |rig: &Rig| {
            let shown = rig.json("rr", &["gobgp", "global", "rib", "-a", "evpn", "-j"]);
            shown.to_string()
        };
        let shown = rib(&rig);
        for part in [MAC_1, MAC_2, "10.4.1.1", "fd00:4::2", C1, "65000:100"] {
            assert!(shown.contains(part), "GoBGP does not show {part}: {shown}");
        }
        rows("c1 is complete", PATIENCE, &c1, |rows| rows.complete).await;
        rows("c2 is complete", PATIENCE, &c2, |rows| rows.complete).await;
        refreshed(&c2).await;

        let mut nothing = one_mac(C1, MAC_1, "10.4.1.1");
        nothing.evis.get_mut(&vni()).unwrap().macs.clear();
        c1.set_local(nothing).await.unwrap();
        let gone = |rows: &Forwarding| rows.evis[&vni()].macs.is_empty();
        rows("c2 lost c1's MAC", WITHDRAWN_WITHIN, &c2, gone).await;
        assert!(!rib(&rig).contains(MAC_1));
        c1.set_local(one_mac(C1, MAC_1, "10.4.1.1")).await.unwrap();
        rows("c2 has c1's rows again", PATIENCE, &c2, |rows| {
            has_all_of(rows, C1, MAC_1, "10.4.1.1")
        })
        .await;

        // Killed and started again as a restarting speaker: no row changes.
        let mut seen = c2.forwarding();
        seen.mark_unchanged();
        rig.kill("gobgpd");
        start(&mut rig, &conf, &["-r"]);
        until("c2's routes are fresh", PATIENCE, async || {
            let peer = c2.peers().await.unwrap().remove(0);
            (peer.counters.sessions == 2 && peer.stale == 0 && peer.synced && peer.routes > 0)
                .then_some(())
                .ok_or(format!("{peer:#?}"))
        })
        .await;
        assert!(
            !seen.has_changed().unwrap(),
            "rows changed over the restart: {:#?}",
            seen.borrow()
        );

        // Our own restart: GoBGP keeps what c1 said, and c2 sees nothing of it.
        c1.stop(StopKind::Restart).await.unwrap();
        let c1 = client(C1, RR, false).await;
        c1.set_local(one_mac(C1, MAC_1, "10.4.1.1")).await.unwrap();
        rows("the new c1 has c2's rows", PATIENCE, &c1, |rows| {
            rows.complete && has_all_of(rows, C2, MAC_2, "fd00:4::2")
        })
        .await;
        assert!(
            !seen.has_changed().unwrap(),
            "rows changed over c1's restart: {:#?}",
            seen.borrow()
        );
    });
}

#[test]
fn gobgp_and_long_lived_graceful_restart() {
    let mut rig = Rig::new(&[C1, C2]);
    rig.host("rr", RR);
    let (dir, text) = rig.subdir("rr");
    std::fs::write(dir.join("gobgpd.toml"), gobgp_reflector(true)).unwrap();
    let conf = format!("{text}/gobgpd.toml");
    let args = [
        "gobgpd",
        "-f",
        &conf,
        "-t",
        "toml",
        "--api-hosts",
        "127.0.0.1:50051",
    ];
    rig.daemon("gobgpd", "rr", &args);
    rig.run(async move |mut rig| {
        let timing = Timing {
            restart_time: Duration::from_secs(2),
            reflector_retain: Duration::from_secs(1),
            long_lived: Duration::from_secs(300),
            ..Timing::default()
        };
        let c1 = client_with(C1, RR, false, timing).await;
        let c2 = client_with(C2, RR, false, timing).await;
        c1.set_local(one_mac(C1, MAC_1, "10.4.1.1")).await.unwrap();
        c2.set_local(one_mac(C2, MAC_2, "fd00:4::2")).await.unwrap();
        established(&c1).await;
        established(&c2).await;
        rows("c2 has c1's rows", PATIENCE, &c2, |rows| {
            rows.complete && has_all_of(rows, C1, MAC_1, "10.4.1.1")
        })
        .await;
        let mut seen = c2.forwarding();
        seen.mark_unchanged();

        // c1 goes and does not come back in its restart time: GoBGP says that its routes are a last
        // resort from then on.
        let of_c1 = async |what: &str, last_resort: bool, stale: bool| {
            until(what, PATIENCE, async || {
                let routes = c2.routes().await.unwrap();
                let of_c1: Vec<_> = routes.iter().filter(|r| r.next_hop == ip(C1)).collect();
                let right = of_c1
                    .iter()
                    .all(|r| (r.long_lived_stale, r.stale) == (last_resort, stale));
                (right && of_c1.len() == 3)
                    .then_some(())
                    .ok_or(format!("{routes:#?}"))
            })
            .await;
        };
        c1.stop(StopKind::Restart).await.unwrap();
        of_c1("GoBGP says LLGR_STALE", true, false).await;
        // It is back, and they are as good as ever.
        let c1 = client_with(C1, RR, false, timing).await;
        c1.set_local(one_mac(C1, MAC_1, "10.4.1.1")).await.unwrap();
        of_c1("GoBGP says it no more", false, false).await;

        // GoBGP dies, and its restart time ends: what it told is a last resort here.
        rig.kill("gobgpd");
        of_c1("the long-lived phase has begun", true, true).await;
        let rows = seen.borrow().clone();
        assert!(has_all_of(&rows, C1, MAC_1, "10.4.1.1"), "{rows:#?}");
        drop(c1);
    });
}

/// Route target constraint (RFC 4684) with GoBGP as a client of ours.
#[test]
fn gobgp_gets_the_routes_that_its_vrfs_import() {
    let mut rig = Rig::new(&[C1, RR]);
    rig.host("vtep", VTEP);
    let (dir, text) = rig.subdir("vtep");
    let mut toml = format!(
        "[global.config]\nas = 65000\nrouter-id = \"{VTEP}\"\nport = -1\n\
         [[neighbors]]\n[neighbors.config]\nneighbor-address = \"{RR}\"\npeer-as = 65000\n\
         [neighbors.timers.config]\nhold-time = 9\nkeepalive-interval = 3\nconnect-retry = 5\n"
    );
    for family in ["rtc", "l2vpn-evpn"] {
        toml += &format!(
            "[[neighbors.afi-safis]]\n[neighbors.afi-safis.config]\nafi-safi-name = \"{family}\"\n"
        );
    }
    std::fs::write(dir.join("gobgpd.toml"), toml).unwrap();
    let conf = format!("{text}/gobgpd.toml");
    rig.daemon("gobgpd", "vtep", &["gobgpd", "-f", &conf, "-t", "toml"]);
    rig.run(async move |rig| {
        let rr = SpeakerHandle::start(SpeakerConfig {
            bgp: config(RR, Role::Reflector),
            local_address: Some(ip(RR)),
            listen: vec![SocketAddr::new(ip(RR), 179)],
        })
        .await
        .unwrap();
        let mut gobgp = own_client(VTEP);
        gobgp.gtsm = false;
        let peers = BTreeMap::from([(ip(C1), own_client(C1)), (ip(VTEP), gobgp)]);
        rr.set_peers(peers).await.unwrap();
        let c1 = client(C1, RR, true).await;
        let mut state = one_mac(C1, MAC_1, "10.4.1.1");
        let mut other = state.evis[&vni()].clone();
        other.rd_index = 2;
        other.macs = [((None, mac(MAC_2)), LocalMac::default())].into();
        state.evis.insert(Vni::new(200).unwrap(), other);
        c1.set_local(state).await.unwrap();
        established(&rr).await;

        // A flood route, a MAC and an address of instance 100; a flood route and a MAC of 200.
        let shown = |rig: &Rig| {
            let neighbour = ["gobgp", "neighbor", RR, "adj-in", "-a", "evpn", "-j"];
            rig.json("vtep", &neighbour).to_string()
        };
        let add_vrf = |rig: &Rig, number: u32| {
            let (name, rd) = (format!("v{number}"), format!("65000:{number}"));
            let args = ["gobgp", "vrf", "add", &name, "rd", &rd, "rt", "both", &rd];
            rig.exec("vtep", &args);
        };
        let has = async |what: &str, first: bool, second: bool| {
            until(what, PATIENCE, async || {
                let shown = shown(&rig);
                let seen = (shown.contains(MAC_1), shown.contains(MAC_2));
                if seen == (first, second) {
                    return Ok(());
                }
                let said = rr.history(ip(VTEP)).await.unwrap();
                Err(format!("{shown}\n{said:#?}"))
            })
            .await;
        };
        add_vrf(&rig, 100);
        has("GoBGP has instance 100 alone", true, false).await;
        add_vrf(&rig, 200);
        has("GoBGP has both", true, true).await;
        let sessions = |peers: &[evpn::PeerInfo]| {
            let gobgp = peers.iter().find(|peer| peer.peer == ip(VTEP));
            gobgp.unwrap().counters.sessions
        };
        assert_eq!(
            sessions(&rr.peers().await.unwrap()),
            1,
            "one session for all of it"
        );
        // What GoBGP announces of its own is taken, what it says in another's name is not.
        let mac_route = |mac: &str, rd: &str, next_hop: &str| {
            let args = [
                "gobgp",
                "global",
                "rib",
                "-a",
                "evpn",
                "add",
                "macadv",
                mac,
                "10.4.1.3",
                "etag",
                "0",
                "label",
                "100",
                "rd",
                rd,
                "rt",
                "65000:100",
                "encap",
                "vxlan",
                "nexthop",
                next_hop,
            ];
            rig.exec("vtep", &args);
        };
        mac_route(MAC_1, &format!("{C1}:1"), VTEP);
        mac_route(MAC_3, &format!("{VTEP}:7"), VTEP);
        until("GoBGP's own MAC is taken", PATIENCE, async || {
            let routes = rr.routes().await.unwrap();
            let of = |r: &evpn::RouteInfo| r.from == Some(ip(VTEP)) && r.route.contains(MAC_3);
            let taken = routes.iter().any(of);
            taken.then_some(()).ok_or(format!("{routes:#?}"))
        })
        .await;
        until("the other one is told of", PATIENCE, async || {
            let peers = rr.peers().await.unwrap();
            let gobgp = peers.iter().find(|peer| peer.peer == ip(VTEP)).unwrap();
            let told = gobgp.advice.as_ref().map(|advice| &advice.problem);
            let told = told.is_some_and(|text| text.contains("another host"));
            let counted = gobgp.counters.routes_foreign == 1;
            (told && counted).then_some(()).ok_or(format!("{gobgp:#?}"))
        })
        .await;
        c1.stop(StopKind::Withdraw).await.unwrap();
        rr.stop(StopKind::Withdraw).await.unwrap();
    });
}
