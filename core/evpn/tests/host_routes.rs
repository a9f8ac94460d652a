//! Type-2 routes with two labels: what a host with a gateway announces of its NICs, and what others'
//! gateways make of it (RFC 9135 §5).

#![allow(clippy::unwrap_used, reason = "a helper that panics fails its test")]

mod common;

use common::fake::{Bench, as_path, attribute, origin, reach, unreach, update};
use common::{Net, config, vni};
use evpn::{
    BadLocalState, LocalEvi, LocalIpVrf, LocalMac, LocalState, PeerConfig, Role, RouteTargets,
    Routed,
};
use model::{Encoding, IpVrfForwarding, MacAddr};
use rustbgpd_wire as wire;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;
use wire::PathAttribute;

const REFLECTOR: &str = "10.0.0.101";
/// The VNI of a subnet, and that of the VPC's routers.
const SUBNET: u32 = 100;
const ROUTED: u32 = 500;

/// The Router's MAC of a host.
fn router_of(host: u8) -> MacAddr {
    MacAddr([0x1e, 0, 0, 0, 0, host])
}

/// A Type-2 route and its attributes, as they stand in an UPDATE.
#[derive(Debug, Clone)]
struct Route {
    host: u8,
    nic: u8,
    address: Vec<u8>,
    second: Option<u32>,
    router: Option<MacAddr>,
    sequence: u32,
    sticky: bool,
    routed_target: bool,
}

fn route(host: u8, nic: u8) -> Route {
    Route {
        host,
        nic,
        address: vec![10, 4, 1, nic],
        second: Some(ROUTED),
        router: Some(router_of(host)),
        sequence: 0,
        sticky: false,
        routed_target: true,
    }
}

impl Route {
    fn nlri(&self) -> Vec<u8> {
        let mut value = vec![0, 1, 10, 0, 0, self.host, 0, 1];
        value.extend([0; 10 + 4]);
        value.extend([48, 2, 0, 0, 0, 0, self.nic, self.address.len() as u8 * 8]);
        value.extend(&self.address);
        value.extend(&SUBNET.to_be_bytes()[1..]);
        if let Some(second) = self.second {
            value.extend(&second.to_be_bytes()[1..]);
        }
        [vec![2, value.len() as u8], value].concat()
    }

    fn announcement(&self) -> Vec<u8> {
        let target = |number: u32| [&[0x00, 0x02, 0xfd, 0xe8][..], &number.to_be_bytes()].concat();
        let mut communities = target(SUBNET);
        if self.routed_target {
            communities.extend(target(ROUTED));
        }
        communities.extend([0x03, 0x0c, 0, 0, 0, 0, 0, 8]);
        communities.extend([0x06, 0x00, u8::from(self.sticky), 0]);
        communities.extend(self.sequence.to_be_bytes());
        if let Some(mac) = self.router {
            communities.extend([0x06, 0x03]);
            communities.extend(mac.0);
        }
        update(&[
            reach(&[10, 0, 0, self.host], &self.nlri()),
            origin(),
            as_path(),
            attribute(0x40, 5, &100_u32.to_be_bytes()),
            attribute(0xc0, 16, &communities),
        ])
    }
}

/// A host with a gateway and no NIC of its own; its VPC may have a subnet here, too.
fn gateway_here(bridged: bool) -> LocalState {
    let mut state = LocalState::empty(IpAddr::from([10, 0, 0, 9]));
    let vrf = LocalIpVrf {
        vni: vni(ROUTED),
        targets: RouteTargets::Auto,
        mac: router_of(9),
        prefixes: BTreeSet::new(),
    };
    state.ip_vrfs.insert(1, vrf);
    if bridged {
        let mut evi = LocalEvi::new(Encoding::VlanBased, 2);
        evi.domains.insert(None);
        evi.routed = Some(routed(9));
        state.evis.insert(vni(SUBNET), evi);
    }
    state
}

fn routed(host: u8) -> Routed {
    Routed {
        vni: vni(ROUTED),
        targets: RouteTargets::Auto,
        mac: router_of(host),
    }
}

fn bench(bridged: bool) -> (Bench, IpAddr) {
    let mut bench = Bench::new(config("10.0.0.9".parse().unwrap(), Role::Vtep));
    let peer = bench.peer(REFLECTOR, PeerConfig::REFLECTOR);
    let state = gateway_here(bridged);
    bench.speaker.set_local(bench.now, state).unwrap();
    bench.drain();
    (bench, peer)
}

fn rows(bench: &Bench) -> IpVrfForwarding {
    bench.speaker.forwarding().ip_vrfs[&vni(ROUTED)].clone()
}

/// Each prefix with the last octet of the routers that it is reached by.
fn ways(bench: &Bench) -> Vec<String> {
    let text = |(prefix, macs): (&ipnet::IpNet, &BTreeSet<MacAddr>)| {
        let macs: Vec<String> = macs.iter().map(|mac| mac.0[5].to_string()).collect();
        format!("{prefix} {}", macs.join(","))
    };
    rows(bench).prefixes.iter().map(text).collect()
}

/// An address is a row in the IP-VRF, beside the MAC's in the MAC-VRF where that is in use, and both go
/// with the route.
#[test]
fn an_address_is_a_host_route() {
    for bridged in [false, true] {
        let (mut bench, peer) = bench(bridged);
        let v4 = route(1, 11);
        let v6 = Route {
            address: [&[0xfd; 15][..], &[11]].concat(),
            ..route(1, 11)
        };
        for route in [&v4, &v6] {
            bench.send_raw(peer, &route.announcement());
        }
        let v6_text = "fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fd0b/128 1";
        assert_eq!(ways(&bench), ["10.4.1.11/32 1", v6_text]);
        assert_eq!(
            rows(&bench).routers[&router_of(1)],
            IpAddr::from([10, 0, 0, 1])
        );
        let evis = &bench.speaker.forwarding().evis;
        let neighbours = evis.get(&vni(SUBNET)).map(|evi| evi.neighbours.len());
        assert_eq!(neighbours, bridged.then_some(2));
        let info = bench.speaker.routes(bench.now);
        let info = info.iter().find(|info| info.route.contains("10.4.1.11"));
        assert_eq!(info.unwrap().routed, Some(ROUTED));
        bench.send_raw(peer, &update(&[unreach(&v4.nlri())]));
        assert_eq!(ways(&bench), [v6_text]);
        bench.send_raw(peer, &update(&[unreach(&v6.nlri())]));
        assert_eq!(rows(&bench), IpVrfForwarding::default());
        assert!(bench.speaker.alerts(bench.now).is_empty());
    }
}

/// A route with one label is bridged to and nothing else; one that should be routed to and cannot be is
/// told of, and is bridged to as before.
#[test]
fn what_cannot_be_routed_to_is_bridged_to() {
    type Change = fn(&mut Route);
    let cases: [(Change, Option<&str>); 5] = [
        (|r| r.second = None, None),
        (|r| r.routed_target = false, None),
        (|r| r.second = Some(501), Some("label 501")),
        (|r| r.router = None, Some("without Router's MAC")),
        (
            |r| r.router = Some(MacAddr([1, 0, 0, 0, 0, 1])),
            Some("router's MAC 01:00:00:00:00:01"),
        ),
    ];
    for (change, told) in cases {
        let (mut bench, peer) = bench(true);
        let mut route = route(1, 11);
        change(&mut route);
        bench.send_raw(peer, &route.announcement());
        assert_eq!(rows(&bench), IpVrfForwarding::default(), "{route:?}");
        let evi = &bench.speaker.forwarding().evis[&vni(SUBNET)];
        assert_eq!(evi.macs.len(), 1, "{route:?}");
        let alerts = bench.speaker.alerts(bench.now);
        let said: Vec<bool> = alerts
            .iter()
            .map(|alert| alert.what.contains(told.unwrap_or("nothing at all")))
            .collect();
        assert_eq!(said, vec![true; told.iter().count()], "{alerts:?}");
        bench.send_raw(peer, &update(&[unreach(&route.nlri())]));
        assert!(bench.speaker.alerts(bench.now).is_empty(), "{route:?}");
    }
}

/// While a NIC moves both hosts announce it: it is where a MAC-VRF says it is, and never in two places.
#[test]
fn an_address_follows_its_mac() {
    let (mut bench, peer) = bench(false);
    let with = |host, sequence, sticky| Route {
        sequence,
        sticky,
        ..route(host, 11)
    };
    for (route, held) in [
        (with(2, 0, false), "10.4.1.11/32 2"),
        // The same sequence: the lower address has it.
        (with(3, 0, false), "10.4.1.11/32 2"),
        (with(1, 0, false), "10.4.1.11/32 1"),
        (with(3, 1, false), "10.4.1.11/32 3"),
        (with(1, 2, false), "10.4.1.11/32 1"),
        (with(2, 0, true), "10.4.1.11/32 2"),
    ] {
        bench.send_raw(peer, &route.announcement());
        assert_eq!(ways(&bench), [held], "{route:?}");
    }
    bench.send_raw(peer, &update(&[unreach(&with(2, 0, true).nlri())]));
    assert_eq!(ways(&bench), ["10.4.1.11/32 1"]);
}

/// The address of a NIC that has moved is better where it is now by what routers compare, which is not
/// the sequence: for as long as both hosts announce it nobody shares its packets between them. The MAC
/// alone is only bridged to, where the sequence counts.
#[test]
fn an_address_that_moved_is_preferred_by_routers() {
    for (sequence, gateway, expected) in [
        (0, true, 100),
        (1, true, 101),
        (7, true, 107),
        (u32::MAX, true, u32::MAX),
        (7, false, 100),
    ] {
        let (mut bench, peer) = bench(true);
        let mut state = gateway_here(true);
        let evi = state.evis.get_mut(&vni(SUBNET)).unwrap();
        evi.routed = gateway.then(|| routed(9));
        let nic = LocalMac {
            sequence,
            ..LocalMac::with_addresses([IpAddr::from([10, 4, 1, 11])])
        };
        evi.macs.insert((None, MacAddr([2, 0, 0, 0, 0, 11])), nic);
        bench.speaker.set_local(bench.now, state).unwrap();
        bench.drain();
        let updates = bench.updates(peer);
        let told: BTreeSet<_> = updates.iter().flat_map(|list| preferences(list)).collect();
        let expected = [(false, 100), (true, expected)];
        assert_eq!(told, expected.into(), "{sequence} {gateway}");
    }
}

/// Whether it has an address, and LOCAL_PREF, of each Type-2 route of an UPDATE.
fn preferences(list: &[PathAttribute]) -> Vec<(bool, u32)> {
    let mut preference = None;
    let mut with_address = vec![];
    for attribute in list {
        match attribute {
            PathAttribute::LocalPref(value) => preference = Some(*value),
            PathAttribute::MpReachNlri(reach) => {
                with_address.extend(reach.evpn_announced.iter().filter_map(|route| match route {
                    wire::EvpnRoute::MacIp(route) => Some(route.ip.is_some()),
                    _ => None,
                }));
            }
            _ => {}
        }
    }
    let with_preference = |has| (has, preference.expect("iBGP routes have one"));
    with_address.into_iter().map(with_preference).collect()
}

/// A gateway that comes when routes are there has them, and has nothing to say of them: what was heard
/// is announced by nobody but who has the NIC.
#[test]
fn what_was_heard_is_not_said_again() {
    let mut bench = Bench::new(config("10.0.0.9".parse().unwrap(), Role::Vtep));
    let peer = bench.peer(REFLECTOR, PeerConfig::REFLECTOR);
    let nothing = LocalState::empty([10, 0, 0, 9].into());
    bench.speaker.set_local(bench.now, nothing).unwrap();
    bench.send_raw(peer, &route(1, 11).announcement());
    let state = gateway_here(true);
    bench.speaker.set_local(bench.now, state).unwrap();
    assert_eq!(ways(&bench), ["10.4.1.11/32 1"]);
    let own = bench.speaker.routes(bench.now);
    let own = own.iter().filter(|info| info.from.is_none());
    let kinds: Vec<&str> = own.map(|info| &info.route[..3]).collect();
    assert_eq!(kinds, ["[3]"], "the flood route of its own subnet");
}

/// Two hosts of ours hear each other's NICs so.
#[test]
fn hosts_tell_each_other() {
    let mut net = Net::new();
    net.add("rr", "10.0.0.101", Role::Reflector);
    net.start("rr");
    for (name, host) in [("one", 1_u8), ("two", 2)] {
        net.add(name, &format!("10.0.0.{host}"), Role::Vtep);
        net.peer(name, "rr");
        net.start(name);
        net.evi(name, SUBNET, 1, Encoding::VlanBased);
        let mac = format!("02:00:00:00:00:0{host}");
        net.mac(name, SUBNET, None, &mac, &[&format!("10.4.1.{host}")]);
        route_by(&mut net, name, Some(host));
    }
    net.run(Duration::from_secs(30));
    let forwarding = |net: &mut Net, name: &str| net.speaker(name).forwarding().clone();
    for (name, other) in [("one", 2), ("two", 1)] {
        let rows = forwarding(&mut net, name).ip_vrfs[&vni(ROUTED)].clone();
        let prefix = format!("10.4.1.{other}/32").parse().unwrap();
        let by = BTreeSet::from([router_of(other)]);
        assert_eq!(rows.prefixes, [(prefix, by)].into(), "{name}");
    }
    // The gateway goes, the NICs stay: they are bridged to.
    route_by(&mut net, "two", None);
    net.run(Duration::from_secs(1));
    let rows = forwarding(&mut net, "one");
    assert!(rows.ip_vrfs[&vni(ROUTED)].prefixes.is_empty());
    assert_eq!(rows.evis[&vni(SUBNET)].neighbours.len(), 1);
}

/// Gives a host a gateway, or takes it away.
fn route_by(net: &mut Net, name: &str, host: Option<u8>) {
    let local = net.node(name).local.as_mut().unwrap();
    let evi = local.evis.get_mut(&vni(SUBNET)).unwrap();
    evi.routed = host.map(routed);
    local.ip_vrfs.clear();
    if let Some(host) = host {
        let mut vrfs = gateway_here(false).ip_vrfs;
        vrfs.get_mut(&1).unwrap().mac = router_of(host);
        local.ip_vrfs.insert(2, vrfs.remove(&1).unwrap());
    }
    net.push_local(name);
}

#[test]
fn what_cannot_be_announced_is_refused() {
    let (mut bench, _) = bench(true);
    let mut state = gateway_here(true);
    let evi = state.evis.get_mut(&vni(SUBNET)).unwrap();
    evi.routed = Some(Routed {
        vni: vni(SUBNET),
        ..routed(9)
    });
    let refused = bench.speaker.set_local(bench.now, state);
    assert_eq!(refused, Err(BadLocalState::SharedVni(vni(SUBNET))));
    let mut state = gateway_here(true);
    let evi = state.evis.get_mut(&vni(SUBNET)).unwrap();
    evi.routed = Some(Routed {
        mac: MacAddr::ZERO,
        ..routed(9)
    });
    assert!(bench.speaker.set_local(bench.now, state).is_err());
}
