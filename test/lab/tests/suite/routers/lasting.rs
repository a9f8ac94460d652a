//! What lasts: transfers through translation while agents die and rules change, and paths whose MTU
//! is lower further on.

use super::{Answerer, EXT, connect, made, nic, transfers, vpc};
use lab::wire::{IPV4, Wire};
use lab::{Lab, Ping};
use std::collections::BTreeSet;
use std::env;
use std::net::{IpAddr, Ipv4Addr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

const PORT: u16 = 7777;
/// Behind a link of 1400 bytes.
const FAR: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);
const MEGABYTE: usize = 1 << 20;

/// How often the route host's agent dies.
fn rounds() -> u32 {
    match env::var_os("VPC_SOAK") {
        Some(_) => 20,
        None => 5,
    }
}

/// A network further away than the outside, `ext/far`, by a link of 1400 bytes.
fn far(lab: &Lab) {
    lab.sh(
        "ext",
        "ip netns add far && ip link add near type veth peer eth0 netns far &&
         ip link set near mtu 1400 up && ip -n far link set eth0 mtu 1400 up &&
         ip address add 203.0.113.1/24 dev near && ip -n far address add 203.0.113.9/24 dev eth0 &&
         ip address add 2001:db8:71::1/64 dev near nodad &&
         ip -n far address add 2001:db8:71::9/64 dev eth0 nodad &&
         ip -n far link set lo up &&
         ip -n far route add default via 203.0.113.1 && ip -n far route add default via 2001:db8:71::1 &&
         sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1",
    );
}

fn lab_with_a_way_out() -> (Lab, String, String) {
    let lab = Lab::up();
    vpc(&lab, "blue");
    let a1 = nic(&lab, "blue/web/a1", "c1", 11);
    let b1 = nic(&lab, "blue/db/b1", "c2", 11);
    made(&lab);
    for to in ["198.51.100.1", "2001:db8:64::1", "10.4.2.11"] {
        lab.reaches(&a1, to);
    }
    (lab, a1, b1)
}

/// What ping says of packets of this size, all headers included, that must not be broken up.
fn unbroken(lab: &Lab, place: &str, to: &str, size: u32) -> String {
    let headers = if to.contains(':') { 48 } else { 28 };
    let line = format!(
        "ping -n -c 3 -i 0.3 -W 3 -M do -s {} {to} 2>&1 || true",
        size - headers
    );
    lab.sh(place, &line)
}

#[test]
fn packets_fit_or_are_answered_and_transfers_never_hang() {
    let (lab, a1, b1) = lab_with_a_way_out();
    far(&lab);
    lab.admin("publicip create www");
    lab.admin("publicip attach www --nic blue/web/a1");
    // Without translation, as IPv6 is meant to be: the inside is open as it is.
    lab.admin("nat source blue/gw masquerade --wait");
    lab.sh("ext", "ip route add fd00:4::/48 via 2001:db8:64::1000");
    made(&lab);
    let public = lab.admin("publicip show www");
    let public: Ipv4Addr = public["address"]
        .as_str()
        .and_then(|ip| ip.parse().ok())
        .expect("an address");
    for to in ["203.0.113.9", "2001:db8:71::9"] {
        lab.reaches(&b1, to);
    }
    lab.reaches("ext", &public.to_string());

    // Full-sized packets pass on every path.
    for (from, to, size) in [
        (&*a1, "10.4.2.11", 1450),
        (&a1, "fd00:4:0:2::11", 1450),
        (&a1, "198.51.100.1", 1450),
        (&b1, "2001:db8:64::1", 1450),
        (&b1, "203.0.113.9", 1400),
        (&b1, "2001:db8:71::9", 1400),
    ] {
        let said = unbroken(&lab, from, to, size);
        assert!(said.contains("bytes from"), "{from} to {to}: {said}");
    }
    // What is too big for the link itself fails there; what is further on, is told by whom it is too
    // big for.
    for (from, to, size, who, mtu) in [
        (&*a1, "10.4.2.11", 1500, "", "1450"),
        (&a1, "198.51.100.1", 1500, "", "1450"),
        (&b1, "203.0.113.9", 1450, "From 198.51.100.1", "1400"),
        (&b1, "2001:db8:71::9", 1450, "From 2001:db8:64::1", "1400"),
    ] {
        let said = unbroken(&lab, from, to, size);
        let told = said.contains(&format!("mtu = {mtu}")) || said.contains(&format!("mtu={mtu}"));
        let told = told || said.contains(&format!("mtu: {mtu}"));
        assert!(told && said.contains(who), "{from} to {to}: {said}");
    }
    // From outside, at the public address: the router says what fits inside.
    let said = unbroken(&lab, "ext", &public.to_string(), 1500);
    let gateway = super::outer(&lab, "blue/gw");
    let by_whom = [gateway, public].map(|ip| said.contains(&format!("From {ip}")));
    assert!(
        said.contains("mtu = 1450") && by_whom.contains(&true),
        "{said}"
    );

    // Transfers, both ways at once, whoever opens them.
    let _near = Answerer::start(&lab, "ext", EXT, PORT);
    let _far = Answerer::start(&lab, "ext/far", FAR, PORT);
    let _inside = Answerer::start(&lab, &a1, Ipv4Addr::new(10, 4, 1, 11), PORT);
    let outside = lab.wire("ext", "eth0");
    for (from, to) in [
        (&*a1, EXT),
        (&b1, EXT),
        (&b1, FAR),
        ("ext", public),
        ("ext/far", public),
    ] {
        let (mut stream, _) = connect(&lab, from, to, PORT);
        let done = transfers(&mut stream, MEGABYTE);
        done.unwrap_or_else(|error| panic!("{from} to {to}: {error}"));
    }
    // Nobody inside offers more than fits; who knows of the narrow link further on offers less.
    let offered = offered(&outside);
    assert!(
        offered.contains(&1410),
        "what came from inside: {offered:?}"
    );
    assert!(offered.iter().all(|size| *size <= 1410), "{offered:?}");
}

/// The segment sizes that SYNs offer which come in here.
fn offered(wire: &Wire) -> BTreeSet<u16> {
    let frames = wire.received();
    let ipv4 = frames
        .iter()
        .filter(|frame| frame[12..14] == IPV4.to_be_bytes());
    ipv4.filter_map(|frame| {
        let packet = &frame[14..];
        let tcp = packet.get(usize::from(packet[0] & 15) * 4..)?;
        // TCP with SYN: its options from byte 20 on, the first of which is the one.
        let syn = packet[9] == 6 && tcp.get(13)? & 2 != 0 && tcp.get(20..22)? == [2, 4];
        let value = tcp.get(22..24)?;
        syn.then(|| u16::from_be_bytes([value[0], value[1]]))
    })
    .collect()
}

/// A connection with transfers without a pause.
struct Busy {
    name: &'static str,
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    thread: JoinHandle<std::io::Result<TcpStream>>,
}

impl Busy {
    fn start((name, mut stream): (&'static str, TcpStream)) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let done = Arc::new(AtomicU64::new(0));
        let (ends, count) = (Arc::clone(&stop), Arc::clone(&done));
        let thread = std::thread::spawn(move || {
            while !ends.load(Ordering::Relaxed) {
                transfers(&mut stream, 100_000)?;
                count.fetch_add(1, Ordering::Relaxed);
            }
            Ok(stream)
        });
        Self {
            name,
            stop,
            done,
            thread,
        }
    }

    /// Waits for a transfer that begins now or later.
    fn goes_on(&self, lab: &Lab, when: &str) {
        let before = self.done.load(Ordering::Relaxed);
        let what = format!("{} goes on after {when}", self.name);
        lab.eventually(&what, || {
            let ended = self.thread.is_finished();
            match self.done.load(Ordering::Relaxed) {
                done if done > before + 1 => Ok(()),
                done if ended => panic!("{what}: broken after {done} transfers"),
                done => Err(format!("{done} transfers")),
            }
        });
    }

    fn stop(self) -> (&'static str, TcpStream) {
        self.stop.store(true, Ordering::Relaxed);
        let done = self.thread.join().expect("it does not panic");
        (
            self.name,
            done.unwrap_or_else(|error| panic!("{}: {error}", self.name)),
        )
    }
}

#[test]
fn transfers_outlive_killed_agents_and_changes_of_everything_else() {
    let (lab, a1, b1) = lab_with_a_way_out();
    let _outside = Answerer::start(&lab, "ext", EXT, PORT);
    let _inside = Answerer::start(&lab, &a1, Ipv4Addr::new(10, 4, 1, 11), PORT);
    for name in ["www", "mail", "own"] {
        lab.admin(&format!("publicip create {name}"));
    }
    lab.admin("publicip attach www --nic blue/web/a1");
    lab.admin("publicip attach mail --nic blue/db/b1 --wait");
    made(&lab);
    let address = |name: &str| -> Ipv4Addr {
        let shown = lab.admin(&format!("publicip show {name}"));
        let address = shown["address"].as_str().and_then(|ip| ip.parse().ok());
        address.expect("an address")
    };
    lab.reaches("ext", &address("www").to_string());
    let mut flows: Vec<(&'static str, TcpStream)> = [
        ("out", connect(&lab, &a1, EXT, PORT).0),
        ("in", connect(&lab, "ext", address("www"), PORT).0),
        (
            "across",
            connect(&lab, &b1, Ipv4Addr::new(10, 4, 1, 11), PORT).0,
        ),
    ]
    .into();
    let go_on = |flows: &mut [(&str, TcpStream)], when: &str| {
        for (name, stream) in flows {
            let done = transfers(stream, 100_000);
            done.unwrap_or_else(|error| panic!("{name}, after {when}: {error}"));
        }
    };
    go_on(&mut flows, "nothing");

    // The route host's agent dies, again and again, while everything is under way.
    let busy: Vec<Busy> = flows.drain(..).map(Busy::start).collect();
    let pings = [
        Ping::start(&lab, &a1, "198.51.100.1", Duration::from_millis(20)),
        Ping::start(&lab, &b1, "2001:db8:64::1", Duration::from_millis(20)),
        Ping::start(&lab, &a1, "10.4.2.11", Duration::from_millis(20)),
    ];
    for round in 0..rounds() {
        lab.kill("r1", "agent");
        for flow in &busy {
            flow.goes_on(&lab, &format!("kill {round}"));
        }
        lab.start("r1", "agent");
        lab.eventually("the agent has nothing left to do", || {
            let status = lab.try_sh("r1", "vpc -o json agent status");
            match lab::text_of(&status) {
                text if text.contains("\"converged\": true") => Ok(()),
                text => Err(text),
            }
        });
        for flow in &busy {
            flow.goes_on(&lab, &format!("restart {round}"));
        }
    }
    made(&lab);
    flows.extend(busy.into_iter().map(Busy::stop));
    let results = pings.map(Ping::stop);
    for result in results {
        assert_eq!(result.lost(), 0, "{result:?}");
    }

    // Whatever else changes.
    for change in [
        "nat forward add blue/gw tcp 8080 10.4.1.11:80 --wait",
        "publicip attach own --router blue/gw --wait",
        "nat forward add blue/gw udp 1000-1100 10.4.2.11:1000 --wait",
        "route add blue/gw 10.9.0.0/16 --via 10.4.1.9 --wait",
        "route add blue/gw 0.0.0.0/0 --blackhole --table web --wait",
        "route delete blue/gw 0.0.0.0/0 --table web --wait",
        "subnet create blue/app --cidr 10.4.3.0/24",
        "router attach blue/gw app --wait",
        "router detach blue/gw app --wait",
        "route delete blue/gw 10.9.0.0/16 --wait",
        "nat forward delete blue/gw udp 1000-1100 --wait",
        "nat forward delete blue/gw tcp 8080 --wait",
    ] {
        lab.sh("m1", &format!("vpc {change}"));
        if !change.contains("--blackhole") {
            go_on(&mut flows, change);
        }
    }
    // What is taken back ends, and at once; what is another's goes on.
    let (mut revoked, seen) = connect(&lab, &b1, EXT, PORT);
    assert_eq!(seen, IpAddr::V4(address("mail")));
    lab.sh("m1", "vpc publicip detach mail --wait");
    revoked
        .set_read_timeout(Some(Duration::from_secs(3)))
        .expect("sockets can");
    let cut = transfers(&mut revoked, 1000);
    assert!(cut.is_err(), "what was taken back goes on");
    go_on(&mut flows, "another's end");
    // A new one has another address.
    let (_, seen) = connect(&lab, &b1, EXT, PORT);
    assert_ne!(seen, IpAddr::V4(address("mail")));
}
