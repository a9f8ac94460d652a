//! What is told of the machine. Run as root.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that cannot go on says where, and what it measured or left out"
)]

mod lab;

use lab::*;
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
