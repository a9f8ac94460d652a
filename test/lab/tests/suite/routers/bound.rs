//! A bound on what one router tracks: a tenant that opens flows without end fills its own router, and
//! nothing else; what is counted is shown.

use super::{Answerer, EXT, connect, made, nic, transfers, vpc};
use lab::Lab;
use serde_json::Value;
use std::net::{Ipv4Addr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const PORT: u16 = 7777;
const LIMIT: u64 = 300;

/// The agent of the route host with another bound on flows.
fn bounded(lab: &Lab, flows: u64) {
    lab.kill("r1", "agent");
    let set = format!(
        "sed -i '/^router_flows/d' /etc/vpc/agent.toml && \
         sed -i '1i router_flows = {flows}' /etc/vpc/agent.toml"
    );
    lab.sh("r1", &set);
    lab.start("r1", "agent");
}

fn inside(lab: &Lab, router: &str, line: &str) -> String {
    let id = lab.admin(&format!("router show {router}"))["id"].clone();
    let id = id.as_str().expect("an id");
    lab.sh("r1", &format!("ip netns exec r-{id} {line}"))
}

fn tracked(lab: &Lab, router: &str) -> u64 {
    let file = "/proc/sys/net/netfilter/nf_conntrack_count";
    let count = inside(lab, router, &format!("cat {file}"));
    count.trim().parse().expect("a number")
}

/// Packets that a router refused because there were too many flows, by the kernel's word.
fn refused_there(lab: &Lab, router: &str) -> u64 {
    let text = inside(lab, router, "nft -j list counter inet vpc too-many-flows");
    let found: Value = serde_json::from_str(&text).expect("JSON");
    let counters = found["nftables"].as_array().into_iter().flatten();
    let packets = counters.filter_map(|one| one["counter"]["packets"].as_u64());
    packets.sum()
}

/// Waits until the server shows of a router what is wanted.
fn shows(lab: &Lab, router: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    lab.eventually(&format!("{router}: {what}"), || {
        match lab.admin(&format!("router show {router}")) {
            shown if wanted(&shown) => Ok(shown),
            shown => Err(format!("{shown:#}")),
        }
    })
}

#[test]
fn a_tenant_with_too_many_flows_fills_its_own_router_only() {
    let lab = Lab::up();
    for name in ["blue", "red"] {
        vpc(&lab, name);
    }
    let (blue, red) = (
        nic(&lab, "blue/web/a", "c1", 11),
        nic(&lab, "red/web/a", "c1", 11),
    );
    bounded(&lab, LIMIT);
    made(&lab);
    for place in [&blue, &red] {
        lab.reaches(place, &EXT.to_string());
    }
    let _answerer = Answerer::start(&lab, "ext", EXT, PORT);
    let (mut before, _) = connect(&lab, &blue, EXT, PORT);

    let refused = |shown: &Value| {
        let rule = &shown["figures"]["rules"]["too-many-flows"];
        rule["packets"].as_u64().unwrap_or_default()
    };
    let full = |shown: &Value| {
        shown["figures"]["full_since"].is_string()
            && shown["conditions"].to_string().contains("router_flows")
    };
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let flood = lab.inside(&blue, || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)));
        let flood = flood.expect("a port");
        let stop = &stop;
        scope.spawn(move || {
            // A new flow each: to another port.
            for port in (1024..60_000_u16).cycle() {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                drop(flood.send_to(b"?", (Ipv4Addr::new(198, 51, 100, 77), port)));
                if port % 10 == 0 {
                    std::thread::park_timeout(Duration::from_millis(5));
                }
            }
        });
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            shows(&lab, "blue/gw", "that it is full", full);
            let at_first = tracked(&lab, "blue/gw");
            shows(&lab, "blue/gw", "what it refused", |shown| {
                refused(shown) > 3000
            });
            let then = tracked(&lab, "blue/gw");
            assert!(
                at_first >= LIMIT && then <= at_first + 50,
                "{at_first}, {then}"
            );
            // What it tracks goes on; the other tenant does not notice.
            transfers(&mut before, 100_000).expect("what was there goes on");
            let (mut other, _) = connect(&lab, &red, EXT, PORT);
            transfers(&mut other, 100_000).expect("the other tenant is not disturbed");
            let red = lab.admin("router show red/gw");
            assert_eq!(red["conditions"], serde_json::json!([]), "{red}");
        }));
        stop.store(true, Ordering::Relaxed);
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    // On the host, too.
    let doctor = lab::text_of(&lab.try_sh("r1", "vpc doctor"));
    assert!(doctor.contains("router_flows"), "{doctor}");
    let text = lab.sh("m1", "vpc router show blue/gw");
    assert!(text.contains("300 at most  full since"), "{text}");
    // It opens when there is room.
    bounded(&lab, 65_536);
    let shown = shows(&lab, "blue/gw", "that it is not full", |shown| {
        shown["figures"]["flow_limit"] == 65_536 && shown["figures"]["full_since"].is_null()
    });
    assert_eq!(shown["conditions"], serde_json::json!([]), "{shown}");
    lab.eventually("new flows are taken", || {
        match lab
            .try_sh(&blue, "ping -c1 -W1 198.51.100.1")
            .status
            .success()
        {
            true => Ok(()),
            false => Err("no answer".to_owned()),
        }
    });
    // One flow that nobody answers is one flow, however many packets it has.
    let before = refused_there(&lab, "blue/gw");
    let one_way = lab.inside(&blue, || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)));
    let one_way = one_way.expect("a port");
    for _ in 0..60_000 {
        // What a full queue loses is not what is counted.
        drop(one_way.send_to(b"!", (Ipv4Addr::new(198, 51, 100, 78), 9)));
    }
    assert_eq!(
        refused_there(&lab, "blue/gw"),
        before,
        "a flow that only goes one way"
    );
    // What passed is counted at each leg.
    let shown = shows(&lab, "blue/gw", "its legs' counters", |shown| {
        let legs = shown["figures"]["legs"].as_array().map(Vec::as_slice);
        let outer = legs
            .unwrap_or_default()
            .iter()
            .find(|leg| leg["subnet_id"].is_null());
        outer.is_some_and(|leg| leg["in_bytes"].as_u64() >= Some(100_000))
    });
    let rules = &shown["figures"]["rules"];
    assert!(
        rules["to-outside"]["packets"].as_u64() >= Some(300),
        "{rules}"
    );
}
