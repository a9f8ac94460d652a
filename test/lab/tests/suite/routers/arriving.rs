//! Routers that come to a subnet whose NICs asked for its gateway before.

use super::made;
use lab::Lab;
use serde_json::Value;

/// What a place takes for its gateway in subnet web.
fn neighbour(lab: &Lab, address: &str) -> Option<String> {
    let table = lab.json(A1, &format!("ip -j neigh show to {address} dev eth0"));
    table[0]["lladdr"].as_str().map(str::to_owned)
}

const A1: &str = "c1/a1";
/// A neighbour that answered once is not asked again while a test runs: only who is told of another
/// knows it.
const FAITHFUL: &str = "for family in ipv4 ipv6; do
    echo 3600000 > /proc/sys/net/$family/neigh/eth0/base_reachable_time_ms
done";

fn router(lab: &Lab, name: &str) -> String {
    lab.admin(&format!(
        "router create blue/{name} --subnet web --subnet db --wait"
    ));
    made(lab);
    let shown = lab.admin(&format!("router show blue/{name}"));
    let legs = shown["legs"].as_array().into_iter().flatten();
    let web = |leg: &&Value| leg["addresses"].to_string().contains("10.4.1.1");
    let mac = legs.clone().find(web).and_then(|leg| leg["mac"].as_str());
    mac.unwrap_or_else(|| panic!("{shown}")).to_owned()
}

#[test]
fn who_asked_before_the_router_came_is_told_of_it() {
    let lab = Lab::up_with(&["--hosts", "m1,c1,r1"]);
    lab.admin("create blue --cidr 10.4.0.0/16 --cidr fd00:4::/48");
    for (subnet, nic, number) in [("web", "a1", 1), ("db", "b1", 2)] {
        lab.admin(&format!(
            "subnet create blue/{subnet} --cidr 10.4.{number}.0/24 --cidr fd00:4:0:{number}::/64"
        ));
        lab.admin(&format!(
            "nic create blue/{subnet}/{nic} --host c1 --attach netns:{nic} --ip 10.4.{number}.11 \
             --ip fd00:4:0:{number}::11 --wait"
        ));
        lab.sh(
            &format!("c1/{nic}"),
            &format!(
                "{FAITHFUL}
                 ip route replace 10.4.0.0/16 via 10.4.{number}.1
                 ip route replace fd00:4::/48 via fd00:4:0:{number}::1"
            ),
        );
    }
    // The host stands in for a router that is not there.
    let stand_in = lab.eventually("the gateway's MAC is answered", || {
        lab.try_sh(A1, "ping -c 1 -W 1 10.4.1.1");
        neighbour(&lab, "10.4.1.1").ok_or_else(|| "none".to_owned())
    });
    assert!(stand_in.starts_with("12:"), "{stand_in}");

    let first = router(&lab, "gw");
    lab.reaches(A1, "10.4.2.11");
    assert_eq!(neighbour(&lab, "10.4.1.1").as_ref(), Some(&first));
    lab.reaches(A1, "fd00:4:0:2::11");

    // Another router is the gateway, with another MAC.
    lab.admin("router delete blue/gw --wait");
    let second = router(&lab, "other");
    assert_ne!(first, second);
    for (gateway, to) in [
        ("10.4.1.1", "10.4.2.11"),
        ("fd00:4:0:1::1", "fd00:4:0:2::11"),
    ] {
        lab.reaches(A1, to);
        assert_eq!(
            neighbour(&lab, gateway).as_ref(),
            Some(&second),
            "{gateway}"
        );
    }
}
