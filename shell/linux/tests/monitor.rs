//! Drift is noticed, and so is having missed some. Run as root.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that cannot go on says where, and what it measured or left out"
)]

mod lab;

use host_plan::{Action, FdbRow, FdbState, FdbTarget, VlanMembership};
use lab::*;
use linux::{Event, Monitor};
use model::{Capability, MacAddr};
use std::os::fd::AsFd;
use std::time::Duration;

/// Events until there have been none for a moment.
fn all(monitor: &mut Monitor) -> Vec<Event> {
    let mut events = Vec::new();
    let mut wait = SOON;
    while let Some(event) = monitor.next(Some(wait)).unwrap() {
        events.push(event);
        wait = Duration::from_millis(50);
    }
    events
}

#[test]
fn every_kind_of_drift_is_told() {
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
        let mut monitor = Monitor::open().unwrap();
        assert_eq!(monitor.next(Some(Duration::ZERO)).unwrap(), None);
        for (drift, event) in [
            ("ip link set b-1 mtu 1300", Event::Link(ifname("b-1"))),
            ("ip link set b-1 up", Event::Link(ifname("b-1"))),
            ("ip link set t-7 nomaster", Event::Link(ifname("t-7"))),
            ("ip link set t-7 master b-1", Event::Link(ifname("t-7"))),
            (
                "bridge link set dev t-7 learning on",
                Event::Link(ifname("t-7")),
            ),
            (
                "bridge fdb append 00:00:00:00:00:00 dev t-7 dst 192.0.2.9",
                Event::Rows,
            ),
            (
                "bridge fdb add 02:00:00:00:00:09 dev t-7 master static",
                Event::Rows,
            ),
            (
                "bridge fdb del 02:00:00:00:00:09 dev t-7 master",
                Event::Rows,
            ),
            (
                "ip neigh add 10.0.0.9 lladdr 02:00:00:00:00:09 dev b-1 nud permanent",
                Event::Rows,
            ),
            ("ip neigh del 10.0.0.9 dev b-1", Event::Rows),
            (
                "nft delete element bridge vpc macs { \"n-1\" . 02:00:00:00:00:01 }",
                Event::Guards,
            ),
            ("nft flush chain bridge vpc port", Event::Guards),
            ("ip link del b-1", Event::Link(ifname("b-1"))),
        ] {
            tool(drift);
            let events = all(&mut monitor);
            assert!(events.contains(&event), "{drift}: {events:?}");
            assert!(!events.contains(&Event::Overrun), "{drift}: {events:?}");
        }
    });
}

#[test]
fn changes_of_vlans_are_told() {
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
        let mut monitor = Monitor::open().unwrap();
        tool("bridge vlan del dev port vid 10");
        let events = all(&mut monitor);
        let told = |event: &Event| matches!(event, Event::Link(name) if *name == ifname("port"));
        assert!(
            events.iter().any(told) || events.contains(&Event::Rows),
            "{events:?}"
        );
    });
}

#[test]
fn the_descriptor_is_readable_when_there_is_something() {
    lab(|_| {
        let mut monitor = Monitor::open().unwrap();
        let ready = |monitor: &Monitor, wait: u16| {
            let mut poll = [nix::poll::PollFd::new(
                monitor.as_fd(),
                nix::poll::PollFlags::POLLIN,
            )];
            nix::poll::poll(&mut poll, wait).unwrap() > 0
        };
        assert!(!ready(&monitor, 0));
        tool("ip link add b-1 type bridge");
        assert!(ready(&monitor, 5000));
        assert!(all(&mut monitor).contains(&Event::Link(ifname("b-1"))));
        assert!(!ready(&monitor, 0));
    });
}

#[test]
fn lost_events_are_told() {
    lab(|lab| {
        lab.act([vxlan("t-7", 7, "192.0.2.1")]);
        let mut monitor = Monitor::open_with_buffer(4096).unwrap();
        let rows = (0..200).map(|n| {
            Action::AddFdb(FdbRow {
                dev: ifname("t-7"),
                mac: MacAddr([2, 0, 0, 0, 1, n]),
                target: FdbTarget::Vtep(ip("192.0.2.2")),
                state: FdbState::ExternLearned,
            })
        });
        lab.act(rows);
        let events = all(&mut monitor);
        assert!(events.contains(&Event::Overrun), "{events:?}");
        // It goes on afterwards.
        tool("ip link set t-7 mtu 1300");
        let events = all(&mut monitor);
        assert!(events.contains(&Event::Link(ifname("t-7"))), "{events:?}");
    });
}
