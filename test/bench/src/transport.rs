//! The userspace transport between two hosts, beside the kernel's VXLAN device and userspace overlays of
//! Debian's: Open vSwitch's own datapath, and WireGuard in user space, which encrypts as well.

use crate::Effort;
use crate::figures::{Table, Target, median, progress};
use crate::path::{Pair, by_hand, mtu, ours};
use crate::remote::Remote;
use crate::wire::{Answer, Ask};
use lab::Lab;
use serde_json::Value;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::process::{Child, Stdio};
use testkit::eventually;

const PORT: u16 = 5301;
/// Pings of a run.
const PINGS: u32 = 2_000;

/// What joins two workloads, and what it is called.
struct Candidate {
    name: &'static str,
    pair: Pair,
    /// Daemons of ours to end.
    daemons: Vec<Child>,
}

impl Drop for Candidate {
    fn drop(&mut self) {
        for daemon in &mut self.daemons {
            drop(daemon.kill());
            drop(daemon.wait());
        }
    }
}

/// Measures all in turns, each beside ours.
pub(crate) fn measure(effort: Effort, table: &mut Table) {
    progress("four labs: the userspace transport, VXLAN devices, Open vSwitch, wireguard-go");
    let ours = ours("tap");
    let inner = mtu(&ours);
    let spared = "for f in /proc/sys/net/bridge/bridge-nf-call-*; do if [ -e $f ]; then echo 0 >$f; fi; done";
    let candidate = |name, pair| Candidate {
        name,
        pair,
        daemons: Vec::new(),
    };
    let all = [
        candidate("ours", ours),
        candidate("kernel VXLAN", by_hand(inner, spared)),
        open_vswitch(inner),
        wireguard(),
    ];
    for one in &all {
        one.pair
            .lab
            .reaches(&one.pair.from, &one.pair.address.to_string());
    }
    let seconds = effort.seconds;
    let mut rows = |figure: &str, unit: &str, target: Target, run: &dyn Fn(&Pair) -> f64| {
        let runs = in_turns(&all, effort.pairs, figure, run);
        for (number, one) in all.iter().enumerate().skip(1) {
            let ratios: Vec<f64> = runs[0]
                .iter()
                .zip(&runs[number])
                .map(|(a, b)| a / b)
                .collect();
            // Targets are about the kernel.
            let target = if number == 1 { target } else { Target::None };
            table.add_ratio(
                &format!("{figure}, beside {}", one.name),
                (median(&runs[0]), unit),
                Some(median(&runs[number])),
                Some(median(&ratios)),
                target,
            );
        }
    };
    let tcp = |streams| move |pair: &Pair| tcp(pair, streams, seconds).rate;
    rows(
        "TCP, one stream",
        "Gbit/s",
        Target::RatioLeast(0.6),
        &tcp(1),
    );
    rows("TCP, four streams", "Gbit/s", Target::None, &tcp(4));
    rows(
        "processor time for a Gbit of TCP",
        "ms",
        Target::None,
        &|pair| tcp_cost(pair, seconds),
    );
    for bytes in [64, 512, 1_400] {
        let least = match bytes {
            64 => Target::RatioLeast(1.0),
            _ => Target::None,
        };
        let name = format!("UDP of {bytes} bytes");
        rows(&name, "k/s", least, &|pair| {
            udp(pair, bytes, seconds).received
        });
        let arrived = format!("{name}, of what was sent arrived");
        rows(&arrived, "%", Target::None, &|pair| {
            let counts = udp(pair, bytes, seconds);
            100.0 * counts.received / counts.sent
        });
    }
    rows("ping, median", "us", Target::RatioMost(2.0), &ping);
}

fn in_turns(
    all: &[Candidate],
    rounds: usize,
    what: &str,
    run: &dyn Fn(&Pair) -> f64,
) -> Vec<Vec<f64>> {
    let mut runs: Vec<Vec<f64>> = all.iter().map(|_| Vec::new()).collect();
    for round in 0..rounds {
        for turn in 0..all.len() {
            let number = (round + turn) % all.len();
            runs[number].push(run(&all[number].pair));
        }
        let told = all
            .iter()
            .zip(&runs)
            .map(|(one, runs)| format!("{} {:.2}", one.name, runs[round]));
        progress(&format!("{what}: {}", told.collect::<Vec<_>>().join(", ")));
    }
    runs
}

struct Transfer {
    /// Gbit/s received.
    rate: f64,
    /// Gbit of it.
    amount: f64,
}

/// By iperf3, wherever the machine puts the processes: workers have no processor of their own either.
fn tcp(pair: &Pair, streams: u32, seconds: u64) -> Transfer {
    let port = PORT.to_string();
    let mut server = pair
        .lab
        .command(&pair.to, &["iperf3", "-s", "-1", "-p", &port]);
    server.stdout(Stdio::null()).stderr(Stdio::null());
    let mut server = server.spawn().expect("the vpc binary can be started");
    let line = format!(
        "iperf3 -c {} -p {port} -t {seconds} -P {streams} -C cubic -J",
        pair.address
    );
    let transfer = eventually("a run of iperf3", lab::LIMIT, || {
        let output = pair.lab.try_sh(&pair.from, &line);
        let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let sum = &report["end"]["sum_received"];
        let found = sum["bits_per_second"].as_f64().zip(sum["bytes"].as_f64());
        let found = found.map(|(rate, bytes)| Transfer {
            rate: rate / 1e9,
            amount: bytes * 8.0 / 1e9,
        });
        found.ok_or_else(|| lab::text_of(&output))
    });
    drop(server.wait());
    transfer
}

/// Milliseconds of all processors for each Gbit, whoever spent them.
fn tcp_cost(pair: &Pair, seconds: u64) -> f64 {
    let before = busy_ms();
    let transfer = tcp(pair, 1, seconds);
    (busy_ms() - before) / transfer.amount
}

/// What processors have done since the machine started.
fn busy_ms() -> f64 {
    let text = fs::read_to_string("/proc/stat").expect("the kernel says what it does");
    let line = text.lines().next().unwrap_or_default();
    let ticks: Vec<f64> = line
        .split_whitespace()
        .skip(1)
        .filter_map(|word| word.parse().ok())
        .collect();
    // | user | nice | system | idle | iowait | irq | softirq | ..; a tick is 10 ms.
    ticks
        .iter()
        .enumerate()
        .filter(|(at, _)| !matches!(at, 3 | 4 | 7..))
        .map(|(_, ticks)| ticks * 10.0)
        .sum()
}

/// Thousands of datagrams a second.
struct Counts {
    sent: f64,
    received: f64,
}

fn udp(pair: &Pair, bytes: usize, seconds: u64) -> Counts {
    let mut sender = Remote::start(&pair.lab, &pair.from, None);
    let mut receiver = Remote::start(&pair.lab, &pair.to, None);
    for remote in [&mut sender, &mut receiver] {
        remote.call(&Ask::Hello);
    }
    receiver.ask(&Ask::Count(PORT, seconds * 1000));
    // Longer, so that it sends to the end of the receiver's time.
    let longer = seconds * 1000 + 500;
    sender.ask(&Ask::Send(
        SocketAddr::new(pair.address, PORT),
        longer,
        bytes,
    ));
    let Answer::Datagrams(received) = receiver.answer() else {
        panic!("another answer than asked for");
    };
    let Answer::Datagrams(sent) = sender.answer() else {
        panic!("another answer than asked for");
    };
    Counts {
        sent: sent as f64 / longer as f64,
        received: received as f64 / (seconds * 1000) as f64,
    }
}

/// Microseconds there and back.
fn ping(pair: &Pair) -> f64 {
    let line = format!("ping -n -i 0.001 -c {PINGS} {}", pair.address);
    let text = pair.lab.sh(&pair.from, &line);
    let times = text.lines().filter_map(|line| {
        let time = line.split("time=").nth(1)?.split(' ').next()?;
        time.parse::<f64>().ok()
    });
    median(&times.collect::<Vec<_>>()) * 1000.0
}

fn underlay(lab: &Lab, host: &str) -> String {
    let found = lab.json(host, "ip -j -4 addr show dev eth0");
    let address = found[0]["addr_info"][0]["local"].as_str();
    address
        .expect("it has an address on the underlay")
        .to_owned()
}

/// Open vSwitch with its own datapath (`netdev`) on each host. What it does not know of a veth pair, it is
/// spared: frames that were left unsplit and without a checksum.
fn open_vswitch(mtu: u64) -> Candidate {
    let lab = Lab::up_with(&["--hosts", "c1,c2", "--bare"]);
    let mut daemons = Vec::new();
    // They move to the bridge.
    let [first, second] = ["c1", "c2"].map(|host| underlay(&lab, host));
    for (host, remote, last) in [("c1", second, 11), ("c2", first, 12)] {
        lab.sh(host, "mkdir -p /run/ovs && ovsdb-tool create /run/ovs/conf.db /usr/share/openvswitch/vswitch.ovsschema");
        let run = |command: &str| {
            let line = format!("exec env OVS_RUNDIR=/run/ovs {command} >/run/ovs/log 2>&1");
            lab.spawn(host, &["sh", "-c", &line])
        };
        daemons.push(run(
            "ovsdb-server /run/ovs/conf.db --remote=punix:/run/ovs/db.sock",
        ));
        lab.eventually("ovsdb-server listens", || {
            match lab
                .try_sh(host, "test -S /run/ovs/db.sock")
                .status
                .success()
            {
                true => Ok(()),
                false => Err("no socket yet".to_owned()),
            }
        });
        let vsctl = "ovs-vsctl -t 20 --db=unix:/run/ovs/db.sock";
        lab.sh(host, &format!("{vsctl} --no-wait init"));
        daemons.push(run("ovs-vswitchd unix:/run/ovs/db.sock"));
        lab.sh(host, &format!(
            "set -e
            ip netns add w
            ip link add p0 mtu {mtu} type veth peer name eth0 mtu {mtu} netns w
            ip link set p0 up
            ip -n w link set lo up
            ip -n w addr add 10.98.0.{last}/24 dev eth0
            ip -n w link set eth0 up
            ip netns exec w ethtool -K eth0 tx off tso off gso off >/dev/null
            ethtool -K eth0 tx off tso off gso off >/dev/null
            address=$(ip -j -4 addr show dev eth0 | jq -r '.[0].addr_info[0] | \"\\(.local)/\\(.prefixlen)\"')
            {vsctl} add-br phy -- set bridge phy datapath_type=netdev -- add-port phy eth0
            {vsctl} add-br int -- set bridge int datapath_type=netdev -- add-port int p0 \\
                -- add-port int vx0 -- set interface vx0 type=vxlan options:remote_ip={remote} options:key=98
            ip addr flush dev eth0
            ip addr add $address dev phy
            ip link set phy up"
        ));
    }
    Candidate {
        name: "Open vSwitch netdev",
        pair: Pair::between_hosts(lab),
        daemons,
    }
}

/// wireguard-go between the hosts: no bridge, no VXLAN, and encrypted.
fn wireguard() -> Candidate {
    let lab = Lab::up_with(&["--hosts", "c1,c2", "--bare"]);
    let mut daemons = Vec::new();
    for host in ["c1", "c2"] {
        lab.sh(
            host,
            "mkdir -p /run/wg && (umask 077; wg genkey >/run/wg/key)",
        );
        let line = "exec env WG_PROCESS_FOREGROUND=1 wireguard-go wg0 >/run/wg/log 2>&1";
        daemons.push(lab.spawn(host, &["sh", "-c", line]));
        lab.eventually("wireguard-go is there", || {
            match lab.try_sh(host, "wg show wg0").status.success() {
                true => Ok(()),
                false => Err(lab.sh(host, "cat /run/wg/log 2>&1 || true")),
            }
        });
    }
    for (host, other, last, other_last) in [("c1", "c2", 11, 12), ("c2", "c1", 12, 11)] {
        let key = lab.sh(other, "wg pubkey </run/wg/key");
        let (key, remote) = (key.trim(), underlay(&lab, other));
        lab.sh(
            host,
            &format!(
                "set -e
            wg set wg0 private-key /run/wg/key listen-port 51820 peer {key} \\
                allowed-ips 10.98.0.{other_last}/32 endpoint {remote}:51820
            ip addr add 10.98.0.{last}/24 dev wg0
            ip link set wg0 mtu 1440 up"
            ),
        );
    }
    let pair = Pair {
        lab,
        from: "c1".to_owned(),
        to: "c2".to_owned(),
        address: IpAddr::from([10, 98, 0, 12]),
    };
    Candidate {
        name: "wireguard-go",
        pair,
        daemons,
    }
}
