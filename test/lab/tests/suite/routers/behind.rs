//! A NIC that is a router of its tenant's own: static routes lead to what is behind it, and that answers.

use super::{made, nic, vpc};
use lab::{Lab, text_of};

/// Frames that its host's guard dropped for an IPv4 source.
fn dropped(lab: &Lab, host: &str) -> u64 {
    let line = "nft -j list counter bridge vpc spoofed-ipv4";
    let told = lab.json(host, line);
    let objects = told["nftables"].as_array().cloned().unwrap_or_default();
    let mut packets = objects.iter().map(|object| &object["counter"]["packets"]);
    packets
        .find_map(serde_json::Value::as_u64)
        .unwrap_or_else(|| panic!("{told}"))
}

#[test]
fn what_is_behind_a_nic_answers_while_a_route_leads_there() {
    let lab = Lab::up_with(&["--hosts", "m1,c1,c2,r1"]);
    vpc(&lab, "blue");
    let client = nic(&lab, "blue/web/a1", "c1", 11);
    let appliance = nic(&lab, "blue/db/d2", "c2", 12);
    made(&lab);
    lab.sh(
        &appliance,
        "ip link set lo up; for ip in 10.9.0.1/32 10.8.0.1/32 fd00:9::1/128; do ip address add $ip dev lo; done",
    );
    lab.reaches(&client, "10.4.2.12");
    lab.admin("route add blue/gw 10.9.0.0/16 --via 10.4.2.12 --wait");
    lab.admin("route add blue/gw fd00:9::/48 --via fd00:4:0:2::12 --wait");
    for address in ["10.9.0.1", "fd00:9::1"] {
        lab.reaches(&client, address);
    }
    // It begins as well; what no route leads to does not get out.
    lab.sh(&appliance, "ping -c 1 -W 5 -I 10.9.0.1 10.4.1.11");
    let before = dropped(&lab, "c2");
    let other = lab.try_sh(&appliance, "ping -c 1 -W 1 -I 10.8.0.1 10.4.1.11");
    assert!(!other.status.success(), "{}", text_of(&other));
    assert!(dropped(&lab, "c2") > before);

    lab.admin("route delete blue/gw 10.9.0.0/16");
    lab.eventually("the port is shut again", || {
        let before = dropped(&lab, "c2");
        let line = "ping -c 1 -W 1 -I 10.9.0.1 10.4.1.11";
        let output = lab.try_sh(&appliance, line);
        match dropped(&lab, "c2") > before {
            true => Ok(()),
            false => Err(text_of(&output)),
        }
    });
    lab.reaches(&client, "fd00:9::1");
}
