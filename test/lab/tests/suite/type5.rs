//! Several routers of one VPC on several route hosts: they tell each other by Type-5 routes what is
//! behind them (RFC 9136), and forward to each other over the VPC's own VNI.

use lab::{Lab, text_of};
use serde_json::Value;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::time::Duration;

const R1: &str = "100.64.0.4";
const R2: &str = "100.64.0.5";
/// Where everything outside is.
const EXT: &str = "198.51.100.1";

/// Two route hosts, and a workload in each of two subnets on two compute hosts.
fn cluster(options: &[&str]) -> Lab {
    let lab = Lab::up_with(&[&["--hosts", "m1,c1,c2,r1,r2"], options].concat());
    vpc(&lab, "blue");
    lab
}

/// Subnets web and db with NICs a on c1 and b on c2; their addresses are the same in every VPC.
fn vpc(lab: &Lab, name: &str) {
    lab.admin(&format!(
        "create {name} --cidr 10.4.0.0/16 --cidr fd00:4::/48"
    ));
    for (subnet, number, nic, host) in [("web", 1, "a", "c1"), ("db", 2, "b", "c2")] {
        lab.admin(&format!(
            "subnet create {name}/{subnet} --cidr 10.4.{number}.0/24 --cidr fd00:4:0:{number}::/64"
        ));
        lab.admin(&format!(
            "nic create {name}/{subnet}/{nic} --host {host} --attach netns:{name}-{nic} \
             --ip 10.4.{number}.11 --ip fd00:4:0:{number}::11 --wait"
        ));
        let place = format!("{host}/{name}-{nic}");
        let line = format!(
            "ip route add default via 10.4.{number}.1 && ip -6 route add default via fd00:4:0:{number}::1"
        );
        lab.sh(&place, &line);
    }
}

/// Makes a router; the name of its namespace and the VNI of its VPC.
fn router(lab: &Lab, path: &str, options: &str) -> String {
    let made = lab.admin(&format!("router create {path} {options} --wait"));
    format!("r-{}", made["id"].as_str().expect("a router has an id"))
}

fn vni(lab: &Lab, vpc: &str) -> u64 {
    let vpc = lab.admin(&format!("show {vpc}"));
    vpc["vni"].as_u64().expect("a VPC has a VNI")
}

/// Routes of a router that lead to other routers: prefix and the MACs of its next hops, as the kernel
/// has them.
fn ways(lab: &Lab, host: &str, netns: &str) -> BTreeSet<(String, Vec<String>)> {
    let read = |line: &str| lab.json(host, &format!("ip -n {netns} -j {line}"));
    let neighbours = read("neigh show nud permanent");
    let mac_of = |address: &str| {
        let rows = neighbours.as_array().into_iter().flatten();
        let mut rows = rows.filter(|row| row["dst"] == address);
        let row = rows.next().map(|row| row["lladdr"].as_str());
        row.flatten().unwrap_or("nobody").to_owned()
    };
    let mut ways = BTreeSet::new();
    for line in ["route show proto 118", "-6 route show proto 118"] {
        for route in read(line).as_array().into_iter().flatten() {
            let hops = route["nexthops"].as_array();
            let hops: Vec<&Value> = hops.map_or(vec![route], |hops| hops.iter().collect());
            let by_others =
                |hop: &&&Value| hop["dev"].as_str().is_some_and(|d| d.starts_with("x-"));
            let mut macs: Vec<String> = hops
                .iter()
                .filter(by_others)
                .filter_map(|hop| hop["gateway"].as_str().or(hop["via"]["host"].as_str()))
                .map(mac_of)
                .collect();
            macs.sort();
            if !macs.is_empty() {
                ways.insert((route["dst"].as_str().expect("a prefix").to_owned(), macs));
            }
        }
    }
    ways
}

/// Waits for exactly these ways.
fn ways_become(lab: &Lab, host: &str, netns: &str, expected: &[(&str, &[&str])]) {
    let expected: BTreeSet<(String, Vec<String>)> = expected
        .iter()
        .map(|(prefix, macs)| {
            let mut macs: Vec<String> = macs.iter().map(|mac| (*mac).to_owned()).collect();
            macs.sort();
            ((*prefix).to_owned(), macs)
        })
        .collect();
    let what = format!("{host}'s router has ways {expected:?}");
    lab.eventually(&what, || match ways(lab, host, netns) {
        seen if seen == expected => Ok(()),
        seen => Err(format!("{seen:?}")),
    });
}

/// Rows of the tunnel between routers: MAC and VTEP.
fn tunnel(lab: &Lab, host: &str, vni: u64) -> BTreeSet<(String, String)> {
    lab.vtep_rows(host, vni)
}

fn tunnel_becomes(lab: &Lab, host: &str, vni: u64, expected: &[(&str, &str)]) {
    let expected: BTreeSet<(String, String)> = expected
        .iter()
        .map(|(mac, vtep)| ((*mac).to_owned(), (*vtep).to_owned()))
        .collect();
    let what = format!("{host}'s t-{vni} has {expected:?}");
    lab.eventually(&what, || match tunnel(lab, host, vni) {
        seen if seen == expected => Ok(()),
        seen => Err(format!("{seen:?}")),
    });
}

/// The MAC that a router has among the others.
fn mac(lab: &Lab, host: &str, netns: &str) -> String {
    let leg = netns.replacen("r-", "x-", 1);
    let link = lab.json(host, &format!("ip -n {netns} -j link show {leg}"));
    link[0]["address"].as_str().expect("a MAC").to_owned()
}

fn does_not_reach(lab: &Lab, place: &str, address: &str) {
    lab.eventually(&format!("{place} does not reach {address}"), || {
        let output = lab.try_sh(place, &format!("ping -c 2 -i 0.3 -W 1 {address}"));
        match output.status.success() {
            false => Ok(()),
            true => Err(text_of(&output)),
        }
    });
}

/// Two routers on two hosts: each subnet has its gateway, and both are one network; who has no way out
/// goes out by the other. What a router that is deleted was behind goes with it.
#[test]
fn routers_of_a_vpc_on_two_hosts_are_one_network() {
    let lab = cluster(&[]);
    let (a, b) = ("c1/blue-a", "c2/blue-b");
    let one = router(&lab, "blue/one", "--subnet web --host r1");
    does_not_reach(&lab, a, "10.4.2.11");
    let two = router(&lab, "blue/two", "--subnet db --host r2 --uplink ext --nat");
    let vni = vni(&lab, "blue");
    let (mac1, mac2) = (mac(&lab, "r1", &one), mac(&lab, "r2", &two));
    let (by1, by2) = ([mac1.as_str()], [mac2.as_str()]);
    let from_two: [(&str, &[&str]); 3] = [
        ("10.4.2.0/24", &by2),
        ("fd00:4:0:2::/64", &by2),
        ("default", &by2),
    ];
    // The network outside has two families, and so has the default: one text for both.
    ways_become(&lab, "r1", &one, &from_two);
    let from_one: [(&str, &[&str]); 2] = [("10.4.1.0/24", &by1), ("fd00:4:0:1::/64", &by1)];
    ways_become(&lab, "r2", &two, &from_one);
    tunnel_becomes(&lab, "r1", vni, &[(&mac2, R2)]);
    tunnel_becomes(&lab, "r2", vni, &[(&mac1, R1)]);
    for (from, to) in [
        (a, "10.4.2.11"),
        (b, "10.4.1.11"),
        (a, "fd00:4:0:2::11"),
        (b, "fd00:4:0:1::11"),
        (a, EXT),
        (b, EXT),
    ] {
        lab.reaches(from, to);
    }
    seen_in_routes(&lab, &mac2);

    // Another tenant with the same addresses: what it hears is its own.
    vpc(&lab, "red");
    let red = router(&lab, "red/one", "--subnet web --subnet db --host r1");
    lab.reaches("c1/red-a", "10.4.2.11");
    ways_become(&lab, "r1", &red, &[]);
    ways_become(&lab, "r1", &one, &from_two);
    does_not_reach(&lab, "c1/red-a", EXT);

    // An agent that is killed and started again finds its rows, and nobody misses them meanwhile.
    lab.kill("r1", "agent");
    lab.reaches(a, "10.4.2.11");
    lab.start("r1", "agent");
    lab.reaches(a, "10.4.2.11");
    ways_become(&lab, "r1", &one, &from_two);

    lab.admin("router delete blue/two --wait");
    ways_become(&lab, "r1", &one, &[]);
    tunnel_becomes(&lab, "r1", vni, &[]);
    does_not_reach(&lab, a, "10.4.2.11");
    lab.admin("router delete blue/one --wait");
    lab.eventually("nothing is left of the segment", || {
        let links = lab.sh("r1", "ip -br link");
        match links.contains(&format!("t-{vni}")) {
            true => Err(links),
            false => Ok(()),
        }
    });
}

fn seen_in_routes(lab: &Lab, mac: &str) {
    let routes = lab.json("r1", "vpc -o json evpn routes --type 5");
    let routes = routes.as_array().expect("a list");
    let of_two = routes.iter().filter(|route| route["next_hop"] == R2);
    assert_eq!(of_two.count(), 4, "{routes:#?} of {mac}");
}

/// Several ways out share the flows; a router that moves takes its MAC along; two of one VPC on one
/// host reach each other there.
#[test]
fn ways_out_are_shared_and_routers_move() {
    let lab = cluster(&[]);
    let (a, b) = ("c1/blue-a", "c2/blue-b");
    lab.admin("subnet create blue/app --cidr 10.4.3.0/24");
    let one = router(&lab, "blue/one", "--subnet web --host r1");
    let two = router(&lab, "blue/two", "--subnet db --host r2 --uplink ext --nat");
    let three = router(
        &lab,
        "blue/three",
        "--subnet app --host r2 --uplink ext --nat",
    );
    let (mac1, mac2, mac3) = (
        mac(&lab, "r1", &one),
        mac(&lab, "r2", &two),
        mac(&lab, "r2", &three),
    );
    let both = [mac2.as_str(), mac3.as_str()];
    ways_become(
        &lab,
        "r1",
        &one,
        &[
            ("10.4.2.0/24", &[&mac2]),
            ("fd00:4:0:2::/64", &[&mac2]),
            ("10.4.3.0/24", &[&mac3]),
            ("default", &both),
        ],
    );
    // They are side by side, and each has its own way out.
    let of_two: [(&str, &[&str]); 3] = [
        ("10.4.1.0/24", &[&mac1]),
        ("fd00:4:0:1::/64", &[&mac1]),
        ("10.4.3.0/24", &[&mac3]),
    ];
    ways_become(&lab, "r2", &two, &of_two);
    lab.reaches(b, "10.4.3.1");
    lab.reaches(a, EXT);
    lab.admin("nat source blue/three none");
    lab.admin("router uplink blue/three --none");
    ways_become(
        &lab,
        "r1",
        &one,
        &[
            ("10.4.2.0/24", &[&mac2]),
            ("fd00:4:0:2::/64", &[&mac2]),
            ("10.4.3.0/24", &[&mac3]),
            ("default", &[&mac2]),
        ],
    );
    lab.reaches(a, EXT);
    // To the host of the other.
    lab.admin("router move blue/two --host r1 --wait");
    lab.reaches(a, "10.4.2.11");
    lab.reaches(b, "fd00:4:0:1::11");
    lab.reaches(a, EXT);
    ways_become(&lab, "r1", &two, &of_two);
    let vni = vni(&lab, "blue");
    tunnel_becomes(&lab, "r1", vni, &[(&mac3, R2)]);
    tunnel_becomes(&lab, "r2", vni, &[(&mac1, R1), (&mac2, R1)]);
}

/// What is sent from one place comes to an address at another. An answer from there would not leave: a NIC
/// has its own addresses only.
fn arrives(lab: &Lab, from: &str, place: &str, address: &str) {
    let address: IpAddr = address.parse().expect("an address");
    let any = match address {
        IpAddr::V4(_) => IpAddr::from(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::from(Ipv6Addr::UNSPECIFIED),
    };
    let receiver = lab.inside(place, || UdpSocket::bind((address, 7000)));
    let receiver = receiver.expect("the port is free");
    let wait = Some(Duration::from_millis(200));
    receiver.set_read_timeout(wait).expect("a socket");
    let sender = lab.inside(from, || UdpSocket::bind((any, 0)));
    let sender = sender.expect("a port is free");
    lab.eventually(
        &format!("what {from} sends to {address} comes to {place}"),
        || {
            let sent = sender.send_to(b"datagram", (address, 7000));
            sent.map_err(|error| error.to_string())?;
            let came = receiver.recv(&mut [0; 8]);
            came.map(drop).map_err(|error| error.to_string())
        },
    );
}

/// A static route of one router is a way for the VPC's other, in both families, as long as it is there and its
/// router runs; one that leads nowhere, or is for one subnet only, is its router's own affair.
#[test]
fn static_routes_are_told_to_the_other_routers() {
    let lab = cluster(&[]);
    let (a, b) = ("c1/blue-a", "c2/blue-b");
    let one = router(&lab, "blue/one", "--subnet web --host r1");
    let two = router(&lab, "blue/two", "--subnet db --host r2");
    let mac1 = mac(&lab, "r1", &one);
    let by1 = [mac1.as_str()];
    // Something behind the workload in web.
    lab.sh(
        a,
        "ip link set lo up && \
         ip address add 10.9.0.1/32 dev lo && ip address add fd00:9::1/128 dev lo",
    );
    let from_one: [(&str, &[&str]); 2] = [("10.4.1.0/24", &by1), ("fd00:4:0:1::/64", &by1)];
    ways_become(&lab, "r2", &two, &from_one);
    for route in [
        "10.9.0.0/16 --via 10.4.1.11",
        "fd00:9::/32 --via fd00:4:0:1::11",
        "10.8.0.0/16 --blackhole",
        "10.7.0.0/16 --via 10.4.1.11 --table web",
    ] {
        lab.admin(&format!("route add blue/one {route} --wait"));
    }
    let with_routes: [(&str, &[&str]); 4] = [
        ("10.4.1.0/24", &by1),
        ("fd00:4:0:1::/64", &by1),
        ("10.9.0.0/16", &by1),
        ("fd00:9::/32", &by1),
    ];
    ways_become(&lab, "r2", &two, &with_routes);
    arrives(&lab, b, a, "10.9.0.1");
    arrives(&lab, b, a, "fd00:9::1");
    lab.reaches(a, "10.4.2.11");

    // A route of the router's own goes first.
    lab.admin("route add blue/two 10.9.0.0/16 --blackhole --wait");
    ways_become(
        &lab,
        "r2",
        &two,
        &[
            ("10.4.1.0/24", &by1),
            ("fd00:4:0:1::/64", &by1),
            ("fd00:9::/32", &by1),
        ],
    );
    lab.admin("route delete blue/two 10.9.0.0/16 --wait");
    ways_become(&lab, "r2", &two, &with_routes);

    // Side by side on one host, and apart again.
    lab.admin("router move blue/one --host r2 --wait");
    ways_become(&lab, "r2", &two, &with_routes);
    arrives(&lab, b, a, "10.9.0.1");
    lab.admin("router move blue/one --host r1 --wait");
    ways_become(&lab, "r2", &two, &with_routes);

    lab.admin("route delete blue/one 10.9.0.0/16 --wait");
    ways_become(
        &lab,
        "r2",
        &two,
        &[
            ("10.4.1.0/24", &by1),
            ("fd00:4:0:1::/64", &by1),
            ("fd00:9::/32", &by1),
        ],
    );
    lab.admin("router delete blue/one --wait");
    ways_become(&lab, "r2", &two, &[]);
}
