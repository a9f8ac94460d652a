//! What is announced against what is to be.

#![allow(clippy::unwrap_used, reason = "a helper that panics fails its test")]

use evpn::{LocalEvi, LocalState};
use frr::{Announced, Macs, RunningInstance, Wanted, announced, announces_all_vnis};
use model::{Asn, BgpConfig, Encoding, MacAddr, SpeakerKind, Vni};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

/// What FRR 8.4.4 answered to `show bgp l2vpn evpn route rd 100.64.0.2:1 json`.
const ANSWER: &str = include_str!("golden/announced.json");
const NIC: &str = "02:00:00:00:0a:01";

fn vni(raw: u32) -> Vni {
    Vni::new(raw).unwrap()
}

fn mac(text: &str) -> MacAddr {
    text.parse().unwrap()
}

/// A host with VNI 4097, announcing what the answer has.
fn host() -> (Wanted, Announced) {
    let id = Ipv4Addr::new(100, 64, 0, 2);
    let bgp = BgpConfig {
        asn: Asn::new(65000).unwrap(),
        reflectors: Vec::new(),
        speaker: SpeakerKind::Frr,
    };
    let mut wanted = Wanted::client(id, id.into(), &bgp);
    let mut local = LocalState::empty(id.into());
    let evi = LocalEvi::new(Encoding::VlanBased, 1);
    local.evis.insert(vni(4097), evi);
    wanted.set_instances(&local);
    let macs: Macs = announced(ANSWER).unwrap();
    wanted.announced = BTreeMap::from([(vni(4097), macs.clone())]);
    let found = Announced {
        zebra: [(vni(4097), "t-4097".to_owned())].into(),
        bgpd: [(vni(4097), in_kernel())].into(),
        macs: [(vni(4097), macs)].into(),
    };
    (wanted, found)
}

fn in_kernel() -> RunningInstance {
    RunningInstance {
        in_kernel: true,
        ..RunningInstance::default()
    }
}

fn told(wanted: &Wanted, found: &Announced) -> String {
    wanted.differences(found).to_string()
}

#[test]
fn routes_of_this_host_are_read() {
    let macs = announced(ANSWER).unwrap();
    assert_eq!(macs.len(), 2, "{macs:?}");
    assert_eq!(macs[&mac(NIC)], ["10.4.1.11".parse().unwrap()].into());
    // Another's route with our distinguisher is not ours.
    let theirs = ANSWER.replace("\"local\": true", "\"local\": false");
    let theirs = theirs.replace("\"sourced\": true", "\"sourced\": false");
    assert!(announced(&theirs).unwrap().is_empty());
    for text in [
        "",
        "{}",
        r#"{"rd":7}"#,
        r#"{"x":{"y":{"mac":7,"paths":3}}}"#,
    ] {
        assert!(announced(text).unwrap().is_empty(), "{text}");
    }
    assert!(announced("% Unknown command").is_err());
}

#[test]
fn what_is_announced_and_not_here_is_found_and_the_other_way_round() {
    let (wanted, found) = host();
    assert!(wanted.differences(&found).is_empty());

    let mut gone = wanted.clone();
    gone.announced
        .get_mut(&vni(4097))
        .unwrap()
        .remove(&mac(NIC));
    assert_eq!(
        told(&gone, &found),
        "announces 02:00:00:00:0a:01 of VNI 4097, 02:00:00:00:0a:01 with 10.4.1.11 of VNI 4097"
    );
    // Somebody else has it, or is taking it: FRR decides for itself when it lets go.
    gone.contested.insert((vni(4097), mac(NIC)));
    assert!(gone.differences(&found).is_empty());

    let mut unheard = found;
    let macs = unheard.macs.get_mut(&vni(4097)).unwrap();
    macs.get_mut(&mac(NIC)).unwrap().clear();
    assert_eq!(
        told(&wanted, &unheard),
        "does not announce 02:00:00:00:0a:01 with 10.4.1.11 of VNI 4097"
    );
}

#[test]
fn instances_that_one_of_the_daemons_lacks_are_found() {
    let (mut wanted, mut found) = host();
    found.bgpd.insert(vni(5000), in_kernel());
    assert_eq!(told(&wanted, &found), "announces VNI 5000");
    // Its device is still there: it is just about to go.
    found.zebra.insert(vni(5000), "t-5000".to_owned());
    assert!(wanted.differences(&found).is_empty());

    found.zebra.remove(&vni(4097));
    assert_eq!(told(&wanted, &found), "does not announce VNI 4097");
    // Its device is not made yet.
    wanted.announced.clear();
    assert!(wanted.differences(&found).is_empty());
}

#[test]
fn another_frr_that_announces_everything_is_known_by_its_configuration() {
    let running = "router bgp 65001\n address-family l2vpn evpn\n  advertise-all-vni\n";
    assert!(announces_all_vnis(running));
    assert!(!announces_all_vnis(
        "router bgp 65001\n ! advertise-all-vni, perhaps\n"
    ));
}
