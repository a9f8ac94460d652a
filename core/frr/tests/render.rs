//! What is rendered, and which commands lead to it from what FRR shows.

#![allow(clippy::unwrap_used, reason = "a helper that panics fails its test")]

use evpn::{LocalEvi, LocalState};
use frr::{
    Config, Feature, Freeze, Listener, Neighbour, Role, Sessions, Version, Wanted, changes,
    instances, kernel_instances, unsaid_distinguishers,
};
use model::{Asn, BgpConfig, Encoding, Reflector, Secret, SpeakerKind, Vni};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

fn bgp() -> BgpConfig {
    BgpConfig {
        asn: Asn::new(65000).unwrap(),
        reflectors: vec![Reflector {
            address: "100.64.0.1".parse().unwrap(),
            port: 179,
            password: Some(Secret("s3cret".to_owned())),
        }],
        speaker: SpeakerKind::Frr,
    }
}

fn wanted() -> Wanted {
    let router_id = Ipv4Addr::new(100, 64, 0, 2);
    let mut wanted = Wanted::client(router_id, router_id.into(), &bgp());
    wanted.listener = Some(Listener {
        address: Ipv4Addr::new(127, 0, 0, 2),
        password: Secret("local".to_owned()),
    });
    let mut local = LocalState::empty(router_id.into());
    let vni = |raw| Vni::new(raw).unwrap();
    let based = LocalEvi::new(Encoding::VlanBased, 7);
    local.evis.insert(vni(100_100), based);
    // A bundle cannot be FRR's.
    let bundle = LocalEvi::new(Encoding::VlanAwareBundle, 8);
    local.evis.insert(vni(100_200), bundle);
    wanted.set_instances(&local);
    wanted
}

#[test]
fn the_whole_configuration_of_a_client() {
    let expected = include_str!("golden/client.conf");
    assert_eq!(wanted().config().render(), expected);
    assert_eq!(Config::parse(expected), wanted().config());
}

#[test]
fn a_reflector_has_clients_and_no_instances() {
    let mut wanted = wanted();
    wanted.role = Role::Reflector {
        cluster_id: Ipv4Addr::new(100, 64, 0, 1),
    };
    wanted.listener = None;
    wanted.neighbours = [(
        IpAddr::from([100, 64, 0, 3]),
        Neighbour {
            port: 179,
            password: None,
            gtsm: true,
            client: true,
        },
    )]
    .into();
    assert_eq!(
        wanted.config().render(),
        include_str!("golden/reflector.conf")
    );
}

/// What FRR 8.4.4 answers to `show running-config` after it was given golden/client.conf.
const RUNNING: &str = include_str!("golden/client-8.4.4.txt");

fn commands(wanted: &Wanted, running: &str) -> String {
    let running = Config::parse(running);
    changes(&wanted.config(), &running, wanted.asn).render()
}

#[test]
fn what_frr_writes_otherwise_is_no_difference() {
    assert_eq!(commands(&wanted(), RUNNING), "");
}

#[test]
fn differences_become_commands() {
    let mut more = wanted();
    let vni = Vni::new(100_300).unwrap();
    let mut local = LocalState::empty(more.local);
    local
        .evis
        .insert(vni, LocalEvi::new(Encoding::VlanBased, 9));
    more.set_instances(&local);
    more.duplicates.freeze = Freeze::Permanent;
    more.neighbours.clear();
    assert_eq!(
        commands(&more, RUNNING),
        include_str!("golden/changes.conf")
    );
    // What somebody took away comes back; what somebody added goes.
    let drifted = RUNNING
        .replace("  advertise-all-vni\n", "")
        .replace("   rd 100.64.0.2:7\n", "   rd 100.64.0.2:99\n")
        .replace(" timers 3 9\n", " timers 30 90\n");
    assert_eq!(
        commands(&wanted(), &drifted),
        include_str!("golden/drift.conf")
    );
    // Another protocol's configuration is nobody's business here.
    let ospf = format!("{RUNNING}router ospf\n network 10.0.0.0/8 area 0\nexit\n");
    assert_eq!(commands(&wanted(), &ospf), "");
}

#[test]
fn answers_are_read_whatever_they_are() {
    let text = r#"{"routerId":"1.1.1.1","peers":{"100.64.0.1":{"state":"Established",
        "peerUptimeMsec":12000,"pfxRcd":4,"pfxSnt":3,"connectionsDropped":1},
        "eth0":{"state":"Idle"},"100.64.0.9":{"state":"Active","peerUptimeMsec":99000}}}"#;
    let sessions = Sessions::parse(text).unwrap();
    assert_eq!(sessions.peers.len(), 2);
    let reflectors: BTreeSet<IpAddr> = ["100.64.0.1", "100.64.0.9"]
        .map(|a| a.parse().unwrap())
        .into();
    let settled = |seconds| sessions.settled(&reflectors, Duration::from_secs(seconds));
    assert!(settled(10) && !settled(13));
    assert!(!sessions.settled(&BTreeSet::new(), Duration::ZERO));

    let text = r#"{"numVnis":1,"100100":{"vni":100100,"type":"L2","inKernel":"True",
        "rd":"100.64.0.2:7","importRTs":["65000:100100"],"exportRTs":["65000:100100"]}}"#;
    let read = instances(text).unwrap();
    let instance = &read[&Vni::new(100_100).unwrap()];
    assert!(instance.in_kernel && instance.rd == "100.64.0.2:7" && instance.import.len() == 1);
    let text = r#"{"100100":{"vni":100100,"vxlanIf":"t-100100"},"x":{"vni":-1},"y":7}"#;
    assert_eq!(kernel_instances(text).unwrap().len(), 1);

    for text in [
        "",
        " \n",
        "{}",
        r#"{"peers":7}"#,
        r#"{"peers":{"1.1.1.1":[]}}"#,
    ] {
        assert_eq!(Sessions::parse(text), Ok(Sessions::default()), "{text:?}");
    }
    for text in ["% Unknown command", "[1]", "{", "null"] {
        assert!(Sessions::parse(text).is_err(), "{text:?}");
        assert!(instances(text).is_err() && kernel_instances(text).is_err());
    }
    assert!(Version::find("FRRouting 8.4.4").unwrap().has(Feature::Evpn));
}

#[test]
fn clients_come_and_go_and_the_others_are_not_touched() {
    let id = Ipv4Addr::new(244, 64, 0, 1);
    let listen = Ipv4Addr::new(100, 64, 0, 1);
    let mut wanted = Wanted::reflector(id, listen.into(), Asn::new(65000).unwrap());
    let secret = Secret("s3cret".to_owned());
    // FRR does not show what is not there, so there is no family without clients.
    assert!(!wanted.config().render().contains("address-family"));
    let hosts = |last: [u8; 2]| last.map(|last| IpAddr::from([100, 64, 0, last])).into();
    wanted.set_clients(&hosts([2, 3]), Some(&secret));
    let running = wanted.config().render();
    wanted.set_clients(&hosts([3, 4]), Some(&secret));
    assert_eq!(
        commands(&wanted, &running),
        include_str!("golden/clients-changed.conf")
    );
    assert_eq!(commands(&wanted, &wanted.config().render()), "");
}

/// bgpd 8.4.4, and every later one, takes `rd` without a word and does not show it if it is what bgpd has derived
/// for the instance already.
#[test]
fn a_distinguisher_that_is_derived_is_not_said_again() {
    let wanted = wanted();
    let silent = RUNNING.replace("   rd 100.64.0.2:7\n", "");
    assert_ne!(silent, RUNNING);
    let with = |rd: &str| {
        let text = format!(r#"{{"100100":{{"vni":100100,"inKernel":"True","rd":"{rd}"}}}}"#);
        let have = instances(&text).unwrap();
        let mut running = Config::parse(&silent);
        unsaid_distinguishers(&mut running, &wanted.instances, &have);
        changes(&wanted.config(), &running, wanted.asn).render()
    };
    assert_eq!(with("100.64.0.2:7"), "");
    assert_eq!(with("100.64.0.2:3"), commands(&wanted, &silent));
    assert!(commands(&wanted, &silent).contains("rd 100.64.0.2:7"));
}
