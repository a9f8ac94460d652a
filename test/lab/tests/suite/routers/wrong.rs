//! Bad input about routers, and hosts that cannot do what is asked: told, and nothing is half done.

use super::made;
use lab::{Lab, text_of};

/// A command and what its refusal must say.
const CASES: &[(&str, &[&str])] = &[
    (
        "subnet create blue/x --cidr 10.4.1.128/25",
        &["overlaps", "blue/web"],
    ),
    (
        "router create blue/g2 --subnet web",
        &["blue/web", "blue/gw"],
    ),
    (
        "router create blue/g2 --subnet red/web",
        &["red/web", "of its own VPC"],
    ),
    ("router attach blue/gw nothing", &["there is no subnet"]),
    (
        "route add blue/gw 10.9.0.0/16 --via 10.4.1.1",
        &["is the router itself", "in a circle"],
    ),
    (
        "route add blue/gw 10.9.0.0/16 --via 10.8.0.1",
        &["is on none of its legs"],
    ),
    (
        "route add blue/gw 10.4.1.0/28 --via 10.4.1.9",
        &["reached by the route itself"],
    ),
    (
        "route add blue/gw 10.4.1.0/24 --via 10.4.2.9",
        &["the router is in that prefix itself"],
    ),
    (
        "route add blue/gw 127.0.0.0/8 --via 10.4.2.9",
        &["is not routed"],
    ),
    ("route add blue/gw 0.0.0.0/0 --via 10.4.2.9", &["--table"]),
    ("publicip attach www --nic blue/db/b1", &["www", "detach"]),
    ("publicip create p2", &["ext are used up", "delete"]),
    (
        "nat forward add blue/gw tcp 80 10.4.9.9:80",
        &["no neighbour on one of its legs"],
    ),
    (
        "nat forward add blue/gw tcp 80 10.4.1.1:80",
        &["no neighbour on one of its legs"],
    ),
    (
        "nat forward add blue/gw tcp 8080 10.4.1.12:80",
        &["has those ports", "delete"],
    ),
    (
        "nat forward add blue/gw tcp 65000-65535 10.4.1.12:65100",
        &["beyond 65535"],
    ),
];

#[test]
fn bad_input_about_routers_is_refused_and_a_host_that_cannot_says_why() {
    let lab = Lab::up_with(&["--hosts", "m1,c1,r1"]);
    // Two addresses outside: one is the router's, one is public.
    lab.admin("external delete ext");
    lab.admin(
        "external create ext --bridge br-ext --cidr 198.51.100.0/24 --gateway 198.51.100.1 \
         --pool 198.51.100.100-198.51.100.101",
    );
    lab.admin("create red --cidr 10.4.0.0/16");
    lab.admin("subnet create red/web --cidr 10.4.1.0/24");
    vpc_v4(&lab);
    lab.admin("publicip create www");
    lab.admin("publicip attach www --nic blue/web/a1");
    lab.admin("nat forward add blue/gw tcp 8080 10.4.1.11:80 --wait");
    made(&lab);
    lab.reaches("c1/blue-web-a1", "198.51.100.1");
    let before = lab.dump("r1");
    let revision = lab.revision();
    let mut wrong = Vec::new();
    for (command, says) in CASES {
        let output = lab.try_sh("m1", &format!("vpc {command}"));
        let said = text_of(&output);
        if output.status.success() || !says.iter().all(|word| said.contains(word)) {
            wrong.push(format!("vpc {command}: {says:?}: {said}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(
        lab.revision(),
        revision,
        "what was refused changed something"
    );
    assert_eq!(lab.dump("r1"), before);
    a_bridge_that_is_away_is_told(&lab);
}

/// With IPv4 alone.
fn vpc_v4(lab: &Lab) {
    lab.admin("create blue --cidr 10.4.0.0/16");
    for number in [1, 2] {
        let name = ["web", "db"][number - 1];
        lab.admin(&format!(
            "subnet create blue/{name} --cidr 10.4.{number}.0/24"
        ));
    }
    lab.admin("router create blue/gw --subnet web --subnet db --uplink --nat");
    for (path, ip) in [("web/a1", "10.4.1.11"), ("db/b1", "10.4.2.11")] {
        let netns = format!("blue-{}", path.replace('/', "-"));
        lab.admin(&format!(
            "nic create blue/{path} --host c1 --attach netns:{netns} --ip {ip} --wait"
        ));
        let gateway = format!("{}1", &ip[..7]);
        lab.sh(
            &format!("c1/{netns}"),
            &format!("ip route add default via {gateway}"),
        );
    }
}

/// The way out is away or down: said so, the inside goes on, and all is well when it is back.
fn a_bridge_that_is_away_is_told(lab: &Lab) {
    let told = |what: &str, words: &[&str]| {
        lab.eventually(what, || {
            let shown = lab.admin("router show blue/gw");
            let conditions = shown["conditions"].to_string();
            let host = lab.admin("host show r1").to_string();
            let all = |text: &str| words.iter().all(|word| text.contains(word));
            match all(&conditions) && all(&host) {
                true => Ok(()),
                false => Err(format!("{conditions} {host}")),
            }
        });
    };
    let well = || {
        made(lab);
        lab.eventually("nothing is wrong", || {
            let shown = lab.admin("router show blue/gw");
            match shown["conditions"].as_array().is_some_and(Vec::is_empty) {
                true => Ok(()),
                false => Err(shown.to_string()),
            }
        });
        lab.reaches("c1/blue-web-a1", "198.51.100.1");
    };
    lab.sh("r1", "ip link set br-ext name br-else");
    told("a missing bridge is told of", &["br-ext", "does not exist"]);
    lab.reaches("c1/blue-web-a1", "10.4.2.11");
    lab.sh("r1", "ip link set br-else name br-ext");
    well();
    lab.sh("r1", "ip link set br-ext down");
    told("a bridge that is down is told of", &["br-ext", "down"]);
    lab.reaches("c1/blue-web-a1", "10.4.2.11");
    lab.sh("r1", "ip link set br-ext up");
    well();
}
