//! What passes by each rule of address translation.

use super::{Answerer, EXT, connect, made, nic, outer, transfers, vpc};
use lab::Lab;
use serde_json::Value;
use std::net::Ipv4Addr;

const PORT: u16 = 7777;
const BYTES: usize = 100_000;
/// Both ways.
const ALL: u64 = 2 * BYTES as u64;

/// The counter of one rule, as the server has it.
fn counter(lab: &Lab, rule: &str, address: Ipv4Addr) -> Option<Value> {
    let shown = lab.admin("router show blue/gw");
    let nat = shown["figures"]["nat"].as_array().cloned();
    let is = |one: &Value| one["rule"] == rule && one["address"] == address.to_string();
    nat.unwrap_or_default().into_iter().find(is)
}

/// Waits until a rule counted these bytes, and not many more; since when it counts.
fn counted(lab: &Lab, rule: &str, address: Ipv4Addr, bytes: u64) -> String {
    let what = format!("{rule} {address} counted {bytes} bytes");
    let counter = lab.eventually(&what, || {
        let found = counter(lab, rule, address);
        let counted = found.as_ref().and_then(|one| one["bytes"].as_u64());
        match (found, counted) {
            (Some(found), Some(counted)) if counted >= bytes => Ok(found),
            (found, _) => Err(format!("{found:?}")),
        }
    });
    let counted = counter["bytes"].as_u64().unwrap_or_default();
    // Headers, acknowledgements, and what came twice.
    assert!(counted < bytes + bytes / 2 + 10_000, "{counter}");
    assert!(
        counter["packets"].as_u64() > Some(bytes / 65_536),
        "{counter}"
    );
    counter["since"].as_str().expect("a time").to_owned()
}

#[test]
fn each_rule_of_translation_counts_what_passes_by_it() {
    let lab = Lab::up();
    vpc(&lab, "blue");
    let a1 = nic(&lab, "blue/web/a1", "c1", 11);
    let b1 = nic(&lab, "blue/db/b1", "c2", 11);
    lab.admin("publicip create www");
    lab.admin("publicip attach www --nic blue/db/b1");
    lab.admin("nat forward add blue/gw tcp 8080 10.4.1.11:7777 --wait");
    made(&lab);
    let shown = lab.admin("publicip show www");
    let public: Ipv4Addr = shown["address"].as_str().unwrap().parse().unwrap();
    let own = outer(&lab, "blue/gw");
    let _far = Answerer::start(&lab, "ext", EXT, PORT);
    let _near = Answerer::start(&lab, &a1, Ipv4Addr::new(10, 4, 1, 11), PORT);
    lab.reaches(&a1, "198.51.100.1");
    lab.reaches(&b1, "198.51.100.1");

    // Out by the router's own address, out by the public one, and in by a port.
    let passes = |from: &str, to: Ipv4Addr, port: u16| {
        let (mut stream, _) = connect(&lab, from, to, port);
        transfers(&mut stream, BYTES).expect("it passes");
    };
    passes(&a1, EXT, PORT);
    let since = counted(&lab, "source", own, ALL);
    passes(&b1, EXT, PORT);
    let public_since = counted(&lab, "public", public, ALL);
    passes("ext", own, 8080);
    let forward_since = counted(&lab, "forward", own, ALL);

    // Other rules come and go; between legs nothing is translated, so nothing counted.
    lab.admin("publicip create other");
    lab.admin("publicip attach other --nic blue/web/a1 --wait");
    // A range of ports is one rule.
    lab.admin("nat forward add blue/gw tcp 5000-5009 10.4.2.11:5000 --wait");
    let _inner = Answerer::start(&lab, &b1, Ipv4Addr::new(10, 4, 2, 11), 5003);
    passes("ext", own, 5003);
    lab.eventually("the range of ports counted", || {
        let listed = lab.admin("nat forward list blue/gw");
        let all = listed.as_array().into_iter().flatten();
        let mut of_range = all.filter(|one| one["ports"] == "5000-5009");
        match of_range.any(|one| one["counted"]["bytes"].as_u64() >= Some(ALL)) {
            true => Ok(()),
            false => Err(listed.to_string()),
        }
    });
    lab.admin("publicip detach other --wait");
    lab.admin("nat forward delete blue/gw tcp 5000-5009 --wait");
    lab.reaches(&b1, "10.4.1.11");
    passes(&b1, Ipv4Addr::new(10, 4, 1, 11), PORT);
    passes(&a1, EXT, PORT);
    assert_eq!(counted(&lab, "source", own, 2 * ALL), since);
    assert_eq!(counted(&lab, "public", public, ALL), public_since);
    assert_eq!(counted(&lab, "forward", own, ALL), forward_since);

    // Where people and programs look for it.
    let drawn = lab.sh("m1", "vpc router show blue/gw");
    for line in [
        "source masquerade",
        "tcp uplink port 8080",
        &public.to_string(),
    ] {
        assert!(drawn.contains(line), "{drawn}");
    }
    assert!(drawn.contains(&format!(" since {since}")), "{drawn}");
    let listed = lab.admin("nat forward list blue/gw");
    assert_eq!(listed[0]["counted"]["since"], forward_since, "{listed}");
    let listed = lab.admin("publicip list");
    let www = listed.as_array().into_iter().flatten();
    let www = www
        .clone()
        .find(|one| one["name"] == "www")
        .expect("it is there");
    assert_eq!(www["counted"]["since"], public_since, "{www}");
    let id = lab.admin("router show blue/gw")["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let status = lab.json("r1", &format!("vpc -o json agent l3 show {id}"));
    assert!(
        status["figures"]["nat"].to_string().contains(&since),
        "{status}"
    );

    // A rule that is gone is not told of, and begins anew.
    lab.admin("publicip detach www --wait");
    lab.eventually("its counter is gone", || {
        match counter(&lab, "public", public) {
            None => Ok(()),
            Some(counter) => Err(counter.to_string()),
        }
    });
    // The agent's death changes nothing.
    lab.kill("r1", "agent");
    lab.start("r1", "agent");
    made(&lab);
    passes(&a1, EXT, PORT);
    assert_eq!(counted(&lab, "source", own, 3 * ALL), since);
}
