//! What is known of the kernel's state stays true without looking at everything again: changes by
//! others are taken in, changes of ours surprise nobody. Run as root.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that cannot go on says where, and what it measured or left out"
)]

mod lab;

use host_plan::{Action, FdbRow, FdbState, FdbTarget, HostState, Scope, VlanMembership};
use lab::*;
use linux::Kernel;
use model::{Capability, MacAddr};
use std::path::Path;
use std::time::{Duration, Instant};

/// Takes in changes until something is different from what was known.
fn notices(kernel: &mut Kernel, drift: &str) {
    let watch = kernel.watch();
    let deadline = Instant::now() + SOON;
    while !kernel.catch_up().unwrap() {
        assert!(Instant::now() < deadline, "{drift}: nothing was noticed");
        watch.wait(Some(Duration::from_millis(100))).unwrap();
    }
}

fn known(kernel: &mut Kernel) -> HostState {
    kernel.observe(&Scope::default()).unwrap()
}

/// Runs commands of others, one after the other: each is noticed, what is known then is what a look
/// at everything shows, and no such look was needed.
fn each_is_noticed(lab: &mut Lab, drifts: &[&str]) {
    known(&mut lab.kernel);
    for drift in drifts {
        let before = lab.kernel.looks().whole;
        tool(drift);
        notices(&mut lab.kernel, drift);
        let seen = known(&mut lab.kernel);
        assert_eq!(lab.kernel.looks().whole, before, "{drift}");
        lab.kernel.forget();
        assert_eq!(seen, known(&mut lab.kernel), "{drift}");
    }
}

#[test]
fn every_kind_of_drift_is_noticed() {
    lab(|lab| {
        lab.act([
            Action::InstallFirewall,
            bridge("b-1", false),
            vxlan("t-7", 7, "192.0.2.1"),
            Action::Enslave {
                link: ifname("t-7"),
                bridge: ifname("b-1"),
            },
            Action::SetGuard {
                link: ifname("n-1"),
                guard: guard(1),
            },
        ]);
        each_is_noticed(
            lab,
            &[
                "ip link set b-1 mtu 1300",
                "ip link set b-1 address 02:00:00:00:00:77",
                "ip link set b-1 up",
                "ip link set t-7 up",
                "ip link set b-1 alias somebody's",
                "bridge link set dev t-7 learning off",
                "bridge link set dev t-7 isolated off",
                "ip link set t-7 nomaster",
                "ip link set t-7 master b-1",
                "bridge fdb append 00:00:00:00:00:00 dev t-7 dst 192.0.2.9",
                "bridge fdb append 00:00:00:00:00:00 dev t-7 dst 192.0.2.8",
                "bridge fdb del 00:00:00:00:00:00 dev t-7 dst 192.0.2.9",
                "bridge fdb add 02:00:00:00:00:08 dev t-7 dst 192.0.2.9",
                "bridge fdb replace 02:00:00:00:00:08 dev t-7 dst 192.0.2.8",
                "bridge fdb del 02:00:00:00:00:08 dev t-7",
                "bridge fdb add 02:00:00:00:00:09 dev t-7 master static",
                "bridge fdb del 02:00:00:00:00:09 dev t-7 master",
                "bridge fdb add 02:00:00:00:00:09 dev t-7 master extern_learn",
                "bridge fdb del 02:00:00:00:00:09 dev t-7 master",
                "ip neigh add 10.0.0.9 lladdr 02:00:00:00:00:09 dev b-1 nud permanent",
                "ip neigh replace 10.0.0.9 lladdr 02:00:00:00:00:0a dev b-1 nud permanent",
                "ip neigh replace 10.0.0.9 lladdr 02:00:00:00:00:0a dev b-1 nud reachable",
                "ip neigh replace 10.0.0.9 lladdr 02:00:00:00:00:0a dev b-1 nud permanent",
                "ip neigh del 10.0.0.9 dev b-1",
                "nft delete element bridge vpc macs { \"n-1\" . 02:00:00:00:00:01 }",
                "nft add element bridge vpc macs { \"n-1\" . 02:00:00:00:00:01 }",
                "nft add element bridge vpc ipv4 { \"n-1\" . 192.0.2.99 }",
                "nft add element inet vpc vteps4 { 192.0.2.77 }",
                "nft flush chain bridge vpc port",
                "nft delete table bridge vpc",
                "nft flush ruleset",
                "sysctl -q -w net.ipv6.conf.b-1.disable_ipv6=0",
                "ip link del t-7",
                "ip link add t-7 type bridge",
                "ip link del b-1",
            ],
        );
    });
}

#[test]
fn an_interface_that_is_renamed_takes_its_rows_along() {
    lab(|lab| {
        lab.act([vxlan("t-7", 7, "192.0.2.1")]);
        tool("bridge fdb append 00:00:00:00:00:00 dev t-7 dst 192.0.2.9");
        known(&mut lab.kernel);
        tool("ip link set t-7 name t-8");
        notices(&mut lab.kernel, "renaming");
        let seen = known(&mut lab.kernel);
        assert!(seen.fdb.iter().all(|row| row.dev == ifname("t-8")));
        // Names that are swapped.
        tool("ip link add other type bridge");
        tool("ip link set t-8 name tmp");
        tool("ip link set other name t-8");
        tool("ip link set tmp name other");
        let seen = known(&mut lab.kernel);
        lab.kernel.forget();
        assert_eq!(seen, known(&mut lab.kernel));
    });
}

#[test]
fn what_was_made_anew_between_two_looks_is_not_mistaken() {
    lab(|lab| {
        lab.act([bridge("b-1", false)]);
        let row = "bridge fdb append 00:00:00:00:00:00 dev t-7 dst";
        let make = |vni: u32| {
            tool(&format!(
                "ip link add t-7 master b-1 type vxlan id {vni} dstport 4789 local 192.0.2.1"
            ));
        };
        make(7);
        tool(&format!("{row} 192.0.2.9"));
        tool("ip neigh add 10.0.0.9 lladdr 02:00:00:00:00:09 dev b-1 nud permanent");
        known(&mut lab.kernel);
        tool("ip link del t-7");
        tool("ip link del b-1");
        tool("ip link add b-1 type bridge");
        make(8);
        tool(&format!("{row} 192.0.2.8"));
        let seen = known(&mut lab.kernel);
        assert_eq!(lab.kernel.looks().whole, 1);
        lab.kernel.forget();
        assert_eq!(seen, known(&mut lab.kernel));
        // Came and went.
        make_and_delete();
        let seen = known(&mut lab.kernel);
        lab.kernel.forget();
        assert_eq!(seen, known(&mut lab.kernel));
    });
}

fn make_and_delete() {
    tool("ip link add t-9 type vxlan id 9 dstport 4789 local 192.0.2.1");
    tool("bridge fdb append 00:00:00:00:00:00 dev t-9 dst 192.0.2.9");
    tool("ip link del t-9");
}

#[test]
fn changes_of_vlans_are_noticed() {
    lab(|lab| {
        if !lab.can(Capability::VlanFiltering) {
            return;
        }
        tool("ip link add port type veth peer name other");
        lab.act([
            bridge("b-1", true),
            Action::Enslave {
                link: ifname("port"),
                bridge: ifname("b-1"),
            },
            Action::AddVlan {
                link: ifname("port"),
                vlan: vlan(10),
                membership: VlanMembership::Access,
            },
        ]);
        each_is_noticed(
            lab,
            &[
                "bridge vlan add dev port vid 11-13",
                "bridge vlan add dev port vid 11 pvid untagged",
                "bridge vlan del dev port vid 10",
                "bridge fdb add 02:00:00:00:00:09 dev port master static vlan 12",
                "bridge vlan del dev port vid 11-13",
            ],
        );
    });
}

#[test]
fn a_port_that_moves_between_bridges_takes_no_row_along() {
    lab(|lab| {
        tool("ip link add port type veth peer name other");
        lab.act([bridge("b-1", false), bridge("b-2", false)]);
        tool("ip link set port master b-1");
        each_is_noticed(
            lab,
            &[
                "bridge fdb add 02:00:00:00:00:09 dev port master static",
                "ip link set port master b-2",
                "bridge fdb add 02:00:00:00:00:09 dev port master static",
                "ip link set other master b-2",
                "bridge fdb replace 02:00:00:00:00:09 dev other master static",
                "ip link set port nomaster",
                "ip link del port",
            ],
        );
    });
}

/// One NIC among many: what is read is what concerns it.
#[test]
fn what_we_do_ourselves_needs_no_whole_look_and_is_no_drift() {
    lab(|lab| {
        let names: Vec<String> = (0..40).map(|n| format!("w{n}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        lab.bridge_with_nics(&names);
        known(&mut lab.kernel);
        let before = lab.kernel.looks();
        lab.act([
            Action::CreateNetns(netns("one")),
            veth("n-one", "one", mac(99)),
            Action::SetGuard {
                link: ifname("n-one"),
                guard: guard(99),
            },
            Action::Enslave {
                link: ifname("n-one"),
                bridge: ifname("b-1"),
            },
            Action::SetPortFlags {
                link: ifname("n-one"),
                flags: open_port(),
            },
            Action::SetUp {
                link: ifname("n-one"),
            },
            inside("one", 99),
        ]);
        let scope = Scope {
            netns: [netns("one")].into(),
            ..Scope::default()
        };
        let seen = lab.kernel.observe(&scope).unwrap();
        assert_eq!(lab.kernel.looks(), before);
        assert!(seen.links[&ifname("n-one")].up && seen.guards.contains_key(&ifname("n-one")));
        assert!(seen.netns[&netns("one")].links[&ifname("eth0")].up);
        // What the kernel tells of it later, of carriers and port states, is no drift.
        let watch = lab.kernel.watch();
        let deadline = Instant::now() + Duration::from_millis(1500);
        while watch
            .wait(Some(deadline.saturating_duration_since(Instant::now())))
            .unwrap()
        {
            assert!(!lab.kernel.catch_up().unwrap());
        }
        lab.act([
            Action::DeleteLinks(vec![ifname("n-one"), ifname("n-w1")]),
            Action::ClearGuard {
                link: ifname("n-one"),
            },
            Action::DeleteNetns(netns("one")),
        ]);
        let seen = known(&mut lab.kernel);
        assert_eq!(lab.kernel.looks(), before);
        lab.kernel.forget();
        assert_eq!(seen, known(&mut lab.kernel));
    });
}

#[test]
fn a_failure_makes_everything_doubtful() {
    lab(|lab| {
        known(&mut lab.kernel);
        lab.fail(Action::SetUp {
            link: ifname("none"),
        });
        known(&mut lab.kernel);
        assert_eq!(lab.kernel.looks().whole, 2);
    });
}

#[test]
fn lost_events_lead_to_a_whole_look() {
    lab(|lab| {
        let mut kernel = Kernel::open_with_buffer(Path::new(STATE_DIR), Some(4096)).unwrap();
        lab.act([vxlan("t-7", 7, "192.0.2.1")]);
        known(&mut kernel);
        let rows = (0..200).map(|n| {
            Action::AddFdb(FdbRow {
                dev: ifname("t-7"),
                mac: MacAddr([2, 0, 0, 0, 1, n]),
                target: FdbTarget::Vtep(ip("192.0.2.2")),
                state: FdbState::ExternLearned,
            })
        });
        lab.act(rows);
        assert!(kernel.catch_up().unwrap());
        assert_eq!(kernel.looks().lost, 1);
        assert_eq!(
            known(&mut kernel).fdb.len(),
            known(&mut lab.kernel).fdb.len()
        );
        // It goes on afterwards.
        tool("ip link set t-7 mtu 1300");
        notices(&mut kernel, "the MTU");
        assert_eq!(known(&mut kernel).links[&ifname("t-7")].mtu, 1300);
    });
}
