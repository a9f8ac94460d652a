//! What frames get from NIC to NIC over VXLAN, beside the same devices made by hand.

use crate::Effort;
use crate::figures::{Table, Target, median, progress};
use crate::remote::Remote;
use crate::wire::{Answer, Ask};
use lab::Lab;
use serde_json::Value;
use std::net::{IpAddr, SocketAddr};
use std::process::Stdio;
use testkit::eventually;

const PORT: u16 = 5201;
/// Of a small datagram.
const SMALL: usize = 64;

/// Somebody who sends and somebody who receives.
pub(crate) struct Pair {
    pub(crate) lab: Lab,
    /// As `vpc lab exec` has places.
    pub(crate) from: String,
    pub(crate) to: String,
    /// Of who receives.
    pub(crate) address: IpAddr,
}

/// Interleaved runs through both, so that what others do on this machine hits both.
pub(crate) fn measure(effort: Effort, table: &mut Table) {
    progress("three labs: NICs of ours, the same devices made by hand, and without br_netfilter");
    let ours = ours("kernel");
    let plain = by_hand(mtu(&ours), "true");
    // What the agent does where nobody has rules there (docs/decisions/0012).
    let spared = by_hand(
        mtu(&ours),
        "for f in /proc/sys/net/bridge/bridge-nf-call-*; do if [ -e $f ]; then echo 0 >$f; fi; done",
    );
    for pair in [&ours, &plain, &spared] {
        pair.lab.reaches(&pair.from, &pair.address.to_string());
    }
    let both = |measure: &dyn Fn(&Pair) -> f64, by_hand: &Pair, what: &str| {
        in_turns(effort.pairs, what, &ours, by_hand, measure)
    };
    let mut add = |figure: &str, unit: &str, both: Both, target| {
        add_pairs(table, figure, unit, &both, target);
    };
    let seconds = effort.seconds;
    let least = Target::RatioLeast(0.97);
    let streams = both(
        &|pair| tcp(pair, seconds),
        &plain,
        "TCP, one stream, Gbit/s",
    );
    add(
        "TCP through NIC-VXLAN-NIC, one stream",
        "Gbit/s",
        streams,
        least,
    );
    let small = |pair: &Pair| udp(pair, seconds);
    let packets = both(&small, &plain, "UDP, 64 bytes, thousands/s");
    add(
        "UDP of 64 bytes through NIC-VXLAN-NIC",
        "k/s",
        packets,
        least,
    );
    let packets = both(
        &small,
        &spared,
        "UDP, 64 bytes, no br_netfilter by hand either, thousands/s",
    );
    let figure = "the same, br_netfilter off by hand, too";
    add(figure, "k/s", packets, Target::None);
}

impl Pair {
    /// The workloads of c1 and c2.
    pub(crate) fn between_hosts(lab: Lab) -> Self {
        Self {
            lab,
            from: "c1/w".to_owned(),
            to: "c2/w".to_owned(),
            address: IpAddr::from([10, 98, 0, 12]),
        }
    }
}

/// Figures of ours, and those of what was made by hand.
pub(crate) type Both = (Vec<f64>, Vec<f64>);

/// Measures both so many times, so that what others do on this machine hits both. The one that is
/// first takes turns.
pub(crate) fn in_turns(
    pairs: usize,
    what: &str,
    ours: &Pair,
    by_hand: &Pair,
    measure: &dyn Fn(&Pair) -> f64,
) -> Both {
    let (mut a, mut b) = (Vec::new(), Vec::new());
    for turn in 0..pairs {
        if turn % 2 == 0 {
            a.push(measure(ours));
            b.push(measure(by_hand));
        } else {
            b.push(measure(by_hand));
            a.push(measure(ours));
        }
        progress(&format!(
            "{what}: ours {:.2}, by hand {:.2}",
            a[turn], b[turn]
        ));
    }
    (a, b)
}

/// A row with the medians, and the median of the pairs' ratios.
pub(crate) fn add_pairs(
    table: &mut Table,
    figure: &str,
    unit: &str,
    (ours, by_hand): &Both,
    target: Target,
) {
    let ratios: Vec<f64> = ours.iter().zip(by_hand).map(|(a, b)| a / b).collect();
    table.add_ratio(
        figure,
        (median(ours), unit),
        Some(median(by_hand)),
        Some(median(&ratios)),
        target,
    );
}

pub(crate) fn ours(transport: &str) -> Pair {
    let lab = Lab::up_with(&["--hosts", "m1,c1,c2", "--transport", transport]);
    lab.admin("create path --cidr 10.98.0.0/16");
    lab.admin("subnet create path/one --cidr 10.98.0.0/24");
    for (host, last) in [("c1", 11), ("c2", 12)] {
        lab.admin(&format!(
            "nic create path/one/{host} --host {host} --attach netns:w --ip 10.98.0.{last} --wait"
        ));
    }
    Pair::between_hosts(lab)
}

/// What the sender's interface carries.
pub(crate) fn mtu(pair: &Pair) -> u64 {
    let links = pair.lab.json(&pair.from, "ip -j link show dev eth0");
    links[0]["mtu"].as_u64().expect("an interface has an MTU")
}

/// As somebody would type it: a bridge, a VXLAN device with fixed rows, a veth pair into a
/// namespace. No guard, no flags of ports, no neighbour suppression. `first` is done on each host
/// before.
pub(crate) fn by_hand(mtu: u64, first: &str) -> Pair {
    let lab = Lab::up_with(&["--hosts", "c1,c2", "--bare"]);
    for host in ["c1", "c2"] {
        lab.sh(host, first);
    }
    let underlay = |host: &str| -> String {
        let found = lab.json(host, "ip -j -4 addr show dev eth0");
        found[0]["addr_info"][0]["local"]
            .as_str()
            .expect("it has an address on the underlay")
            .to_owned()
    };
    for (host, other, last, other_last) in [("c1", "c2", 11, 12), ("c2", "c1", 12, 11)] {
        let (local, remote) = (underlay(host), underlay(other));
        let mac = |last: u8| format!("02:98:00:00:00:{last:02x}");
        lab.sh(
            host,
            &format!(
                "set -e
                ip link add br0 mtu {mtu} type bridge
                ip link add vx0 mtu {mtu} type vxlan id 98 local {local} dstport 4789 nolearning
                ip link set vx0 master br0
                ip netns add w
                ip link add p0 mtu {mtu} type veth peer name eth0 mtu {mtu} address {own} netns w
                ip link set p0 master br0
                for dev in br0 vx0 p0; do
                    echo 1 >/proc/sys/net/ipv6/conf/$dev/disable_ipv6
                    ip link set $dev up
                done
                bridge fdb append 00:00:00:00:00:00 dev vx0 dst {remote} self permanent
                bridge fdb add {far} dev vx0 dst {remote} self static
                bridge fdb add {far} dev vx0 master static
                bridge fdb add {own} dev p0 master static
                ip -n w link set lo up
                ip -n w addr add 10.98.0.{last}/24 dev eth0
                ip -n w link set eth0 up",
                own = mac(last),
                far = mac(other_last),
            ),
        );
    }
    Pair::between_hosts(lab)
}

/// Gbit/s received. Client and server each on a processor of its own: unpinned runs differ twofold
/// by where they happen to be.
pub(crate) fn tcp(pair: &Pair, seconds: u64) -> f64 {
    let port = PORT.to_string();
    let mut server = pair.lab.command(
        &pair.to,
        &["taskset", "-c", "1", "iperf3", "-s", "-1", "-p", &port],
    );
    server.stdout(Stdio::null()).stderr(Stdio::null());
    let mut server = server.spawn().expect("the vpc binary can be started");
    let line = format!(
        "taskset -c 0 iperf3 -c {} -p {port} -t {seconds} -O 1 -C cubic -J",
        pair.address
    );
    // Refused until the server listens.
    let rate = eventually("a run of iperf3", lab::LIMIT, || {
        let output = pair.lab.try_sh(&pair.from, &line);
        let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let rate = report["end"]["sum_received"]["bits_per_second"].as_f64();
        rate.ok_or_else(|| lab::text_of(&output))
    });
    drop(server.wait());
    rate / 1e9
}

/// Thousands of datagrams received in a second.
pub(crate) fn udp(pair: &Pair, seconds: u64) -> f64 {
    let mut sender = Remote::start(&pair.lab, &pair.from, Some(0));
    let mut receiver = Remote::start(&pair.lab, &pair.to, Some(1));
    for remote in [&mut sender, &mut receiver] {
        remote.call(&Ask::Hello);
    }
    receiver.ask(&Ask::Count(PORT, seconds * 1000));
    // Longer, so that it sends to the end of the receiver's time.
    sender.ask(&Ask::Send(
        SocketAddr::new(pair.address, PORT),
        seconds * 1000 + 500,
        SMALL,
    ));
    let Answer::Datagrams(received) = receiver.answer() else {
        panic!("another answer than asked for");
    };
    sender.answer();
    received as f64 / seconds as f64 / 1000.0
}
