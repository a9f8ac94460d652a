//! `vpc datapath flows`: what passes is listed, exactly.

use super::super::evpn::{C2, nic};
use super::{ENCODINGS, vpc};
use lab::Lab;
use serde_json::{Value, json};

/// Ethernet, IPv4 and ICMP headers and 56 bytes.
const PING_BYTES: u64 = 98;

#[test]
fn pings_are_two_flows_with_as_many_packets() {
    let lab = Lab::up_with(&["--hosts", "m1,c1,c2", "--transport", "c1=tap,c2=kernel"]);
    for (name, encoding) in ["blue", "green"].into_iter().zip(ENCODINGS) {
        let (vni, tag) = vpc(&lab, name, &format!("--encoding {encoding}"));
        nic(&lab, name, "a1", "c1", 11);
        nic(&lab, name, "a2", "c2", 12);
        lab.reaches(&format!("c1/{name}-a1"), "10.4.1.12");
        let of_pings = || -> Vec<Value> {
            let line = format!("vpc -o json datapath flows --vni {vni} --address 10.4.1.12");
            let flows = lab.json("c1", &line);
            let flows = flows.as_array().cloned().unwrap_or_default();
            flows
                .into_iter()
                .filter(|flow| flow["protocol"] == "icmp")
                .collect()
        };
        let counted = |direction: &str| {
            let flows = of_pings();
            let found = flows.iter().find(|flow| flow["direction"] == direction);
            let flow = found.unwrap_or_else(|| panic!("no flow {direction}: {flows:#?}"));
            (flow["packets"].as_u64(), flow["bytes"].as_u64())
        };
        let before = ["out", "in"].map(counted);
        lab.sh(
            &format!("c1/{name}-a1"),
            "ping -q -c 20 -i 0.01 -W 5 10.4.1.12",
        );
        for (direction, (packets, bytes)) in ["out", "in"].into_iter().zip(before) {
            let now = counted(direction);
            let more = |now: Option<u64>, before: Option<u64>| now.zip(before).map(|(a, b)| a - b);
            let more = (more(now.0, packets), more(now.1, bytes));
            assert_eq!(
                more,
                (Some(20), Some(20 * PING_BYTES)),
                "{direction}: {:#?}",
                of_pings()
            );
        }
        let out = of_pings();
        let out = out
            .iter()
            .find(|flow| flow["direction"] == "out")
            .expect("it is there");
        assert_eq!(
            (
                &out["tag"],
                &out["source"],
                &out["destination"],
                &out["vtep"]
            ),
            (
                &json!(tag),
                &json!("10.4.1.11"),
                &json!("10.4.1.12"),
                &json!(C2)
            )
        );
    }
    let table = lab.sh("c1", "vpc datapath flows --limit 1");
    assert_eq!(table.lines().count(), 2, "{table}");
    let none = lab.sh("c1", "vpc datapath flows --vni 1");
    assert_eq!(none.lines().count(), 1, "{none}");
}
