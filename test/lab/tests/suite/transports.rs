//! Hosts of every form share VPCs: a TAP or a VXLAN device for each subnet, or a trunk of the VPC's bridge.

use lab::{Lab, text_of};
use serde_json::Value;
use std::collections::BTreeSet;

/// What carries, and whether bridges filter VLANs where the kernel can.
const HOSTS: [(&str, &str, bool); 4] = [
    ("c1", "tap", true),
    ("c2", "tap", false),
    ("c3", "kernel", true),
    ("c4", "kernel", false),
];
const SUBNETS: [&str; 2] = ["web", "db"];

/// The addresses of the workload in a subnet on a host.
fn address(subnet: usize, host: usize) -> [String; 2] {
    let (subnet, host) = (subnet + 1, host + 11);
    [
        format!("10.4.{subnet}.{host}"),
        format!("fd00:4:0:{subnet}::{host:x}"),
    ]
}

fn up() -> Lab {
    let carried: Vec<String> = (HOSTS.iter())
        .map(|(host, transport, _)| format!("{host}={transport}"))
        .collect();
    let lab = Lab::up_with(&[
        "--hosts",
        "m1,c1,c2,c3,c4",
        "--transport",
        &carried.join(","),
    ]);
    for (host, _, filters) in HOSTS {
        if !filters {
            lab.stop(host, "agent");
            lab.sh(
                host,
                "echo 'without = [\"vlan-filtering\"]' >> /etc/vpc/agent.toml",
            );
            lab.start(host, "agent");
        }
    }
    lab
}

/// A VPC with NICs of both subnets on every host.
fn furnish(lab: &Lab, encoding: &str) {
    lab.admin(&format!(
        "create {encoding} --cidr 10.4.0.0/16 --cidr fd00:4::/48 --encoding {encoding}"
    ));
    for (number, subnet) in SUBNETS.iter().enumerate() {
        let third = number + 1;
        lab.admin(&format!(
            "subnet create {encoding}/{subnet} --cidr 10.4.{third}.0/24 --cidr fd00:4:0:{third}::/64"
        ));
        for (at, (host, ..)) in HOSTS.iter().enumerate() {
            let [v4, v6] = address(number, at);
            lab.admin(&format!(
                "nic create {encoding}/{subnet}/{host} --host {host} --attach netns:{} \
                 --ip {v4} --ip {v6} --wait",
                netns(encoding, subnet)
            ));
        }
    }
}

fn netns(encoding: &str, subnet: &str) -> String {
    format!("{encoding}-{subnet}")
}

/// The ports that lead from a VPC's bridges to other hosts: what kind each is, and whose its bridge is.
fn form(lab: &Lab, host: &str, vpc: &str) -> BTreeSet<String> {
    let bridge_of = |object: &Value| format!("b-{}", object["id"].as_str().expect("an id"));
    let of_vpc = bridge_of(&lab.admin(&format!("show {vpc}")));
    let subnets = lab.admin(&format!("subnet list {vpc}"));
    let subnets = subnets.as_array().into_iter().flatten();
    let of_subnets: Vec<String> = subnets.map(bridge_of).collect();
    let links = lab.json(host, "ip -d -j link show");
    let tunnel = |link: &Value| {
        let name = link["ifname"].as_str()?;
        let bridge = link["master"].as_str()?.to_owned();
        let whose = match bridge == of_vpc {
            true => "VPC",
            false if of_subnets.contains(&bridge) => "subnet",
            false => return None,
        };
        let kind = link["linkinfo"]["info_kind"].as_str()?;
        let is_tunnel = name.starts_with("t-") || name.starts_with("u-");
        is_tunnel.then(|| format!("{kind} of a {whose}"))
    };
    let links = links.as_array().into_iter().flatten();
    links.filter_map(tunnel).collect()
}

/// Every workload reaches those of its subnet, and none of the other.
fn reach(lab: &Lab, encoding: &str) {
    for (number, subnet) in SUBNETS.iter().enumerate() {
        for (host, ..) in HOSTS {
            let place = format!("{host}/{}", netns(encoding, subnet));
            let mates = (0..HOSTS.len()).flat_map(|at| address(number, at));
            let mates = mates.collect::<Vec<String>>().join(" ");
            let line = format!("for mate in {mates}; do ping -q -c 1 -W 1 $mate || exit 1; done");
            lab.eventually(&format!("{place} reaches {mates}"), || {
                let output = lab.try_sh(&place, &line);
                match output.status.success() {
                    true => Ok(()),
                    false => Err(text_of(&output)),
                }
            });
            // As if the other subnet were on the link.
            let [stranger, _] = address(1 - number, 0);
            let line = format!(
                "ip route replace {stranger}/32 dev eth0 && ! ping -c 2 -i 0.2 -W 1 {stranger}; \
                 got=$?; ip route del {stranger}/32 dev eth0; exit $got"
            );
            let output = lab.try_sh(&place, &line);
            let said = text_of(&output);
            assert!(
                output.status.success(),
                "{place} reaches {stranger}: {said}"
            );
        }
    }
}

#[test]
fn hosts_of_every_form_share_vpcs() {
    let lab = up();
    let filters = lab.filters_vlans();
    for encoding in ["vlan-based", "vlan-aware-bundle"] {
        furnish(&lab, encoding);
        for (host, transport, wanted) in HOSTS {
            let seen = form(&lab, host, encoding);
            let whose = if filters && wanted { "VPC" } else { "subnet" };
            let is = |word: &String| word.ends_with(whose);
            assert!(
                !seen.is_empty() && seen.iter().all(is),
                "{encoding} on {host}, {transport}: {seen:?}"
            );
        }
        reach(&lab, encoding);
    }
}
