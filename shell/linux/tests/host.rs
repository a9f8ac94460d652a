//! What is told of the machine. Run as root.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that cannot go on says where, and what it measured or left out"
)]

mod lab;

use lab::*;
use linux::BridgeNetfilter;
use std::path::Path;

#[test]
fn resources_are_the_machines() {
    let found = linux::resources(Path::new("/")).unwrap();
    assert!(found.cpus >= 1);
    assert!(found.memory_free_bytes > 0 && found.memory_free_bytes <= found.memory_total_bytes);
    let free = tool("df --output=avail -B1 /");
    let free: u64 = free.lines().nth(1).unwrap().trim().parse().unwrap();
    assert!(
        found.disk_free_bytes.abs_diff(free) < 1 << 30,
        "{} {free}",
        found.disk_free_bytes
    );
    assert_eq!(linux::kernel_version(), tool("uname -r").trim());
    let error = linux::resources(Path::new("/nowhere")).unwrap_err();
    assert!(error.to_string().contains("/nowhere"), "{error}");
}

#[test]
fn the_underlay_is_where_the_address_is() {
    lab(|_| {
        tool("ip link add u0 mtu 9000 type veth peer name u1");
        tool("ip addr add 192.0.2.1/24 dev u0");
        tool("ip addr add 2001:db8::1/64 dev u0");
        for address in ["192.0.2.1", "2001:db8::1"] {
            let found = linux::underlay_interface(ip(address)).unwrap().unwrap();
            assert_eq!((found.name, found.mtu), (ifname("u0"), 9000));
        }
        assert_eq!(linux::underlay_interface(ip("192.0.2.2")).unwrap(), None);
    });
}

#[test]
fn bridged_frames_meet_the_hosts_hooks_only_where_somebody_has_rules() {
    lab(|_| {
        let switch = "/proc/sys/net/bridge/bridge-nf-call-iptables";
        if !Path::new(switch).exists() {
            println!("left out: no br_netfilter in this kernel");
            assert_eq!(linux::bridge_netfilter().unwrap(), BridgeNetfilter::Off);
            return;
        }
        let chain = |table: &str, name: &str, kind: &str, hook: &str| {
            tool(&format!("nft add table {table}"));
            let hook = format!("type {kind} hook {hook} priority 0 ;");
            tool(&format!("nft add chain {table} {name} {{ {hook} }}"));
        };
        chain("inet vpc", "input", "filter", "input");
        chain("inet vpc", "forward", "filter", "forward");
        chain("inet other", "in", "filter", "input");
        assert_eq!(linux::bridge_netfilter().unwrap(), BridgeNetfilter::Idle);
        chain("ip nat", "pre", "nat", "prerouting");
        chain("inet other", "forward", "filter", "forward");
        let BridgeNetfilter::Used(tables) = linux::bridge_netfilter().unwrap() else {
            panic!("two tables of others are there");
        };
        assert_eq!(Vec::from_iter(tables), ["inet other", "ip nat"]);
        tool("nft delete table ip nat");
        tool("nft delete chain inet other forward");
        linux::switch_off_bridge_netfilter().unwrap();
        assert_eq!(std::fs::read_to_string(switch).unwrap().trim(), "0");
        assert_eq!(linux::bridge_netfilter().unwrap(), BridgeNetfilter::Off);
    });
}

#[test]
fn a_process_starts_inside() {
    lab(|_| {
        tool("ip netns add web");
        tool("ip netns exec web ip link add only-here type bridge");
        let web = linux::Netns::named(&netns("web")).unwrap();
        let mut command = std::process::Command::new("ip");
        command
            .args(["-br", "link"])
            .stdout(std::process::Stdio::piped());
        let child = linux::spawn_in_netns(&web, &mut command).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(
            String::from_utf8(output.stdout)
                .unwrap()
                .contains("only-here")
        );
        // The caller stayed where it was.
        assert!(!tool("ip -br link").contains("only-here"));
        let error = linux::Netns::named(&netns("nowhere")).unwrap_err();
        assert!(error.to_string().contains("nowhere"), "{error}");
    });
}
