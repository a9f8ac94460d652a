//! From a workload through a router that translates to the outside, beside the same devices and one
//! rule made by hand.

use crate::Effort;
use crate::figures::{Table, Target, progress};
use crate::path::{self, Pair, add_pairs, in_turns};
use crate::remote::Remote;
use crate::wire::{Answer, Ask};
use lab::Lab;
use std::net::{IpAddr, SocketAddr};

/// Who answers outside, by the lab's own addresses.
const EXT: [u8; 4] = [198, 51, 100, 1];
/// First of the ports that connections are made to, and how many.
const PORT: u16 = 7000;
const PORTS: u16 = 16;

/// Throughput of one stream, of small datagrams, and new connections.
pub(crate) fn measure(effort: Effort, table: &mut Table) {
    progress("two labs: a router of ours that translates, and a namespace made by hand");
    let ours = ours();
    let by_hand = by_hand(path::mtu(&ours));
    for pair in [&ours, &by_hand] {
        pair.lab.reaches(&pair.from, &pair.address.to_string());
    }
    let seconds = effort.seconds;
    let both = |what: &str, measure: &dyn Fn(&Pair) -> f64| {
        in_turns(effort.pairs, what, &ours, &by_hand, measure)
    };
    let least = Target::RatioLeast(0.97);
    let found = both("NAT, TCP, one stream, Gbit/s", &|pair| {
        path::tcp(pair, seconds)
    });
    let figure = "TCP through NAT, one stream";
    add_pairs(table, figure, "Gbit/s", &found, least);
    let found = both("NAT, UDP, 64 bytes, thousands/s", &|pair| {
        path::udp(pair, seconds)
    });
    let figure = "UDP of 64 bytes through NAT";
    add_pairs(table, figure, "k/s", &found, Target::None);
    let found = both("NAT, new connections/s", &|pair| connections(pair, seconds));
    let figure = "new TCP connections through NAT, one client";
    add_pairs(table, figure, "/s", &found, least);
}

fn ours() -> Pair {
    let lab = Lab::up_with(&["--hosts", "m1,c1,r1"]);
    lab.admin("create nat --cidr 10.98.0.0/16");
    lab.admin("subnet create nat/one --cidr 10.98.0.0/24");
    lab.admin("router create nat/gw --subnet one --uplink --nat --wait");
    lab.admin(
        "nic create nat/one/w --host c1 --attach netns:w --ip 10.98.0.11 --mac 02:98:00:00:00:0b \
         --wait",
    );
    with_default_route(lab)
}

fn with_default_route(lab: Lab) -> Pair {
    lab.sh("c1/w", "ip route replace default via 10.98.0.1");
    Pair {
        lab,
        from: "c1/w".to_owned(),
        to: "ext".to_owned(),
        address: IpAddr::from(EXT),
    }
}

/// As somebody would type it: bridge, VXLAN device and fixed rows on both hosts, and on the second
/// a namespace that masquerades.
fn by_hand(mtu: u64) -> Pair {
    let lab = Lab::up_with(&["--hosts", "c1,r1", "--bare"]);
    let underlay = |host: &str| -> String {
        let found = lab.json(host, "ip -j -4 addr show dev eth0");
        let address = found[0]["addr_info"][0]["local"].as_str();
        address.expect("it has an underlay address").to_owned()
    };
    let (workload, gateway) = ("02:98:00:00:00:0b", "02:98:00:00:00:01");
    for (host, other, netns, own, far, address) in [
        ("c1", "r1", "w", workload, gateway, "10.98.0.11/24"),
        ("r1", "c1", "r", gateway, workload, "10.98.0.1/24"),
    ] {
        let (local, remote) = (underlay(host), underlay(other));
        lab.sh(
            host,
            &format!(
                "set -e
                ip link add br0 mtu {mtu} type bridge
                ip link add vx0 mtu {mtu} type vxlan id 98 local {local} dstport 4789 nolearning
                ip link set vx0 master br0
                ip netns add {netns}
                ip link add p0 mtu {mtu} type veth peer name eth0 mtu {mtu} address {own} netns {netns}
                ip link set p0 master br0
                for dev in br0 vx0 p0; do
                    echo 1 >/proc/sys/net/ipv6/conf/$dev/disable_ipv6
                    ip link set $dev up
                done
                bridge fdb append 00:00:00:00:00:00 dev vx0 dst {remote} self permanent
                bridge fdb add {far} dev vx0 dst {remote} self static
                bridge fdb add {far} dev vx0 master static
                bridge fdb add {own} dev p0 master static
                ip -n {netns} link set lo up
                ip -n {netns} addr add {address} dev eth0
                ip -n {netns} link set eth0 up"
            ),
        );
    }
    lab.sh(
        "r1",
        "set -e
        ip link add o0 type veth peer name out netns r
        ip link set o0 master br-ext up
        ip -n r addr add 198.51.100.100/24 dev out
        ip -n r link set out up
        ip -n r route add default via 198.51.100.1
        ip netns exec r sysctl -qw net.ipv4.ip_forward=1
        ip netns exec r nft -f - <<'END'
        table ip t {
            chain p {
                type nat hook postrouting priority 100
                oifname \"out\" masquerade
            }
        }
END",
    );
    with_default_route(lab)
}

/// Connections a second, one after the other: made, a byte there and back, reset.
fn connections(pair: &Pair, seconds: u64) -> f64 {
    let mut client = Remote::start(&pair.lab, &pair.from, Some(0));
    let mut server = Remote::start(&pair.lab, &pair.to, Some(1));
    client.call(&Ask::Hello);
    let Answer::Hello = server.call(&Ask::Echo(PORT, PORTS)) else {
        panic!("another answer than asked for");
    };
    let to = SocketAddr::new(pair.address, PORT);
    match client.call(&Ask::Connect(to, PORTS, seconds * 1000)) {
        Answer::Connections { made, failed } => {
            assert!(failed * 100 <= made, "{failed} connections failed");
            made as f64 / seconds as f64
        }
        other => panic!("another answer than asked for: {other:?}"),
    }
}
