//! Hosts, NICs, reflectors and cables come and go at random. When all is well again, every
//! kernel has exactly the rows that the hosts' NICs call for; and before, no row ever went whose
//! NIC and host were there.

#![allow(clippy::unwrap_used, reason = "a helper that panics fails its test")]

mod common;

use common::{Net, vni};
use evpn::{LocalEvi, LocalMac, Role};
use model::{Encoding, MacAddr};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

const HOSTS: [&str; 4] = ["c1", "c2", "c3", "c4"];
const REFLECTORS: [&str; 2] = ["ra", "rb"];
const INSTANCES: [u32; 2] = [100, 200];

#[derive(Debug, Clone)]
enum Step {
    Kill(usize),
    Start(usize),
    Cut(usize, usize),
    Mend(usize, usize),
    AddMac { host: usize, vni: usize, mac: u8 },
    DropMac { host: usize, vni: usize, mac: u8 },
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let node = 0..HOSTS.len() + REFLECTORS.len();
    let host = 0..HOSTS.len();
    let reflector = 0..REFLECTORS.len();
    let instance = 0..INSTANCES.len();
    prop_oneof![
        2 => node.clone().prop_map(Step::Kill),
        3 => node.prop_map(Step::Start),
        1 => (host.clone(), reflector.clone()).prop_map(|(a, b)| Step::Cut(a, b)),
        1 => (host.clone(), reflector).prop_map(|(a, b)| Step::Mend(a, b)),
        4 => (host.clone(), instance.clone(), 0_u8..6)
            .prop_map(|(host, vni, mac)| Step::AddMac { host, vni, mac }),
        2 => (host, instance, 0_u8..6)
            .prop_map(|(host, vni, mac)| Step::DropMac { host, vni, mac }),
        3 => prop::sample::select(&[0_u64, 5, 1_000, 8_000, 30_000][..]).prop_map(Step::Wait),
    ]
}

fn name(node: usize) -> &'static str {
    HOSTS.iter().chain(&REFLECTORS).copied().nth(node).unwrap()
}

/// Who has a MAC, as the model sees it: MACs are placed, one host has each at a time.
type Placed = BTreeMap<(u32, u8), usize>;

fn network() -> Net {
    let mut net = Net::new();
    for (n, reflector) in (101..).zip(REFLECTORS) {
        net.add(reflector, &format!("10.0.0.{n}"), Role::Reflector);
    }
    for (n, host) in (1..).zip(HOSTS) {
        net.add(host, &format!("10.0.0.{n}"), Role::Vtep);
        for reflector in REFLECTORS {
            net.peer(host, reflector);
        }
        let local = net.node(host).local.as_mut().unwrap();
        for (index, raw) in (1..).zip(INSTANCES) {
            let mut evi = LocalEvi::new(Encoding::VlanBased, index);
            evi.domains.insert(None);
            local.evis.insert(vni(raw), evi);
        }
    }
    for node in 0..HOSTS.len() + REFLECTORS.len() {
        net.start(name(node));
    }
    net.run(Duration::from_secs(5));
    net
}

fn apply(net: &mut Net, placed: &mut Placed, step: &Step) {
    match *step {
        Step::Kill(node) => net.kill(name(node)),
        Step::Start(node) => {
            if net.node(name(node)).speaker.is_none() {
                net.start(name(node));
            }
        }
        Step::Cut(host, reflector) => net.cut(HOSTS[host], REFLECTORS[reflector]),
        Step::Mend(host, reflector) => net.mend(HOSTS[host], REFLECTORS[reflector]),
        Step::AddMac { host, vni, mac } => {
            let key = (INSTANCES[vni], mac);
            if let Some(old) = placed.insert(key, host) {
                set_mac(net, old, key, false);
            }
            set_mac(net, host, key, true);
        }
        Step::DropMac { host, vni, mac } => {
            let key = (INSTANCES[vni], mac);
            if placed.get(&key) == Some(&host) {
                placed.remove(&key);
                set_mac(net, host, key, false);
            }
        }
        Step::Wait(millis) => net.run(Duration::from_millis(millis)),
    }
}

fn set_mac(net: &mut Net, host: usize, (raw, n): (u32, u8), there: bool) {
    let local = net.node(HOSTS[host]).local.as_mut().unwrap();
    let macs = &mut local.evis.get_mut(&vni(raw)).unwrap().macs;
    let key = (None, MacAddr([2, 0, 0, 0, 0, n]));
    if there {
        let addresses = BTreeSet::from([IpAddr::from([10, 4, 1, n])]);
        macs.insert(key, LocalMac::with_addresses(addresses));
    } else {
        macs.remove(&key);
    }
    net.push_local(HOSTS[host]);
}

/// What a host's kernel should have.
fn wanted(placed: &Placed, host: usize) -> BTreeSet<String> {
    let mut rows = BTreeSet::new();
    for (other, n) in (1..=HOSTS.len()).enumerate() {
        if other != host {
            rows.extend(INSTANCES.map(|raw| format!("{raw} flood to 10.0.0.{n}")));
        }
    }
    for ((raw, mac), at) in placed {
        if *at != host {
            let at = at + 1;
            rows.insert(format!("{raw} 02:00:00:00:00:{mac:02x} behind 10.0.0.{at}"));
            rows.insert(format!("{raw} 10.4.1.{mac} is 02:00:00:00:00:{mac:02x}"));
        }
    }
    rows
}

fn simulate(steps: &[Step]) -> (Net, Placed) {
    let mut net = network();
    let mut placed = Placed::new();
    for step in steps {
        apply(&mut net, &mut placed, step);
    }
    for host in HOSTS {
        for reflector in REFLECTORS {
            net.mend(host, reflector);
        }
    }
    for node in 0..HOSTS.len() + REFLECTORS.len() {
        apply(&mut net, &mut placed, &Step::Start(node));
    }
    // Longer than every timer there is.
    net.run(Duration::from_secs(600));
    (net, placed)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn kernels_agree_with_the_model_in_the_end(steps in prop::collection::vec(step(), 0..40)) {
        let (mut net, placed) = simulate(&steps);
        for (host, name) in HOSTS.iter().enumerate() {
            let log = net.log.clone();
            let kernel = &net.node(name).kernel;
            prop_assert_eq!(kernel, &wanted(&placed, host), "{} after\n{}", name, log);
        }
    }

    #[test]
    fn the_same_steps_give_the_same_trace(steps in prop::collection::vec(step(), 0..25)) {
        let (one, other) = (simulate(&steps).0, simulate(&steps).0);
        prop_assert_eq!(one.log, other.log);
    }

    /// Speakers and reflectors are killed and started, none for longer than the restart time; no
    /// NIC is touched. Not one row goes.
    #[test]
    fn restarts_cost_no_row(
        kills in prop::collection::vec((0..HOSTS.len() + REFLECTORS.len(), 0_u64..40_000, 0_u64..20_000), 1..12)
    ) {
        let mut net = network();
        let mut placed = Placed::new();
        for host in 0..HOSTS.len() {
            for (vni, mac) in [(0, 0), (1, 0), (0, 1)] {
                let mac = mac + 2 * u8::try_from(host).unwrap();
                apply(&mut net, &mut placed, &Step::AddMac { host, vni, mac });
            }
        }
        net.run(Duration::from_secs(5));
        for (node, away, after) in kills {
            net.kill(name(node));
            net.run(Duration::from_millis(away));
            net.start(name(node));
            net.run(Duration::from_millis(after));
        }
        net.run(Duration::from_secs(600));
        for (host, name) in HOSTS.iter().enumerate() {
            let log = net.log.clone();
            let node = net.node(name);
            prop_assert!(node.removed.is_empty(), "{} lost {:?}\n{}", name, node.removed, log);
            prop_assert_eq!(&node.kernel, &wanted(&placed, host));
        }
    }
}
