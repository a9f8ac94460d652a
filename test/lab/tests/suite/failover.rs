//! Route hosts that die, are cut off or drain: their routers go on elsewhere, and never on two at once.

use lab::stream::{Echo, Received, Stream, longest_gap, longest_loss};
use lab::wire::{Mac, Wire, arp, ethernet, mac};
use lab::{Lab, text_of};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const OUTSIDE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
const EVERY: Duration = Duration::from_millis(10);
/// So many datagrams in a row are ten seconds.
const TOO_MANY: u64 = 1000;
const ARP: u16 = 0x0806;

/// Two route hosts, and a router on the first that leads out.
fn two_route_hosts() -> Lab {
    let lab = Lab::up_with(&["--hosts", "m1,c1,r1,r2"]);
    lab.admin("create blue --cidr 10.4.0.0/16");
    lab.admin("subnet create blue/web --cidr 10.4.1.0/24");
    lab.admin("nic create blue/web/a1 --host c1 --attach netns:a1 --ip 10.4.1.11 --wait");
    lab.admin("router create blue/gw --subnet web --uplink --nat --host r1 --wait");
    lab.sh("c1/a1", "ip route replace default via 10.4.1.1");
    lab.reaches("c1/a1", "198.51.100.1");
    for host in ["r1", "r2"] {
        fenced(&lab, host);
    }
    lab
}

/// The host runs routers by a lease, and the server knows it.
fn fenced(lab: &Lab, host: &str) {
    lab.eventually(&format!("{host} has a fence"), || {
        let rules = lab.try_sh(host, "nft list table bridge vpc-lease");
        let voting = lab.json(host, "vpc -o json agent status");
        match rules.status.success() && voting["converged"] == true {
            true => Ok(()),
            false => Err(format!("{} {voting}", text_of(&rules))),
        }
    });
}

fn router(lab: &Lab) -> Value {
    lab.admin("router show blue/gw")
}

fn runs_on(lab: &Lab, host: &str) {
    lab.eventually(&format!("the router is on {host}"), || {
        let router = router(lab);
        match router["host_name"] == host {
            true => Ok(()),
            false => Err(router.to_string()),
        }
    });
}

/// What others see of the router, wherever it runs.
fn face(lab: &Lab) -> Value {
    let router = router(lab);
    serde_json::json!([router["legs"], router["uplink"]])
}

fn outer_address(lab: &Lab) -> Ipv4Addr {
    let router = router(lab);
    let address = router["uplink"]["addresses"][0].as_str();
    let address = address.and_then(|text| text.split('/').next()?.parse().ok());
    address.unwrap_or_else(|| panic!("no address outside: {router}"))
}

/// Namespaces of routers on a host.
fn has_router(lab: &Lab, host: &str) -> bool {
    lab.sh(host, "ip netns list").contains("r-")
}

/// Pulls or plugs cables.
fn cables(lab: &Lab, host: &str, devices: &[&str], state: &str) {
    for device in devices {
        lab.sh(host, &format!("ip link set {device} {state}"));
    }
}

#[expect(clippy::print_stdout, reason = "a figure of the test")]
fn figure(what: &str, received: &Received, from: Instant) {
    let lost = longest_loss(&received.arrivals, from, Instant::now());
    println!(
        "figure: {what}: {} ms",
        u128::from(lost) * EVERY.as_millis()
    );
    assert!(
        lost < TOO_MANY,
        "{what}: {lost} datagrams in a row were lost"
    );
}

/// Traffic to the outside while something happens; it flows again at the end.
fn through(lab: &Lab, what: &str, happens: impl FnOnce()) {
    let _echo = Echo::start(lab, "ext");
    let stream = Stream::start(lab, "c1/a1", OUTSIDE, EVERY);
    lab.eventually("an answer", || match stream.arrived().is_empty() {
        true => Err("none".to_owned()),
        false => Ok(()),
    });
    let from = Instant::now();
    happens();
    let so_far = stream.arrived().len();
    lab.eventually(&format!("{what}: answers again"), || {
        match stream.arrived().len() > so_far + 50 {
            true => Ok(()),
            false => Err("none".to_owned()),
        }
    });
    figure(what, &stream.stop(), from);
}

#[test]
fn a_router_outlives_its_agent_its_server_and_its_host() {
    let lab = two_route_hosts();
    let before = face(&lab);

    through(&lab, "agent killed five times", || {
        for _ in 0..5 {
            lab.kill("r1", "agent");
            lab.start("r1", "agent");
            lab.eventually("the agent is there again", || {
                let status = lab.try_sh("r1", "vpc -o json agent status");
                let text = text_of(&status);
                match text.contains("\"converged\": true") || text.contains("\"converged\":true") {
                    true => Ok(()),
                    false => Err(text),
                }
            });
        }
    });

    through(&lab, "server killed", || {
        lab.kill("m1", "server");
        let up = lab.sh("r1", "nft list set bridge vpc-lease held");
        // Longer than a lease.
        let gone = Instant::now() + Duration::from_secs(4);
        lab.eventually("some leases", || match Instant::now() > gone {
            true => Ok(()),
            false => Err(up.clone()),
        });
    });
    lab.start("m1", "server");

    let home = lab.eventually("the server answers", || {
        let shown = lab.try_sh("m1", "vpc -o json router show blue/gw");
        let json: Value = serde_json::from_slice(&shown.stdout).map_err(|_| text_of(&shown))?;
        json["host_name"]
            .as_str()
            .map(str::to_owned)
            .ok_or_else(|| json.to_string())
    });
    let other = if home == "r1" { "r2" } else { "r1" };
    let home = home.as_str();
    for host in [home, other] {
        lab.eventually(&format!("{host} checks in"), || {
            let shown = lab.admin("host list");
            let hosts = shown.as_array().or(shown["hosts"].as_array());
            let hosts = hosts.into_iter().flatten();
            let up = hosts
                .clone()
                .any(|h| h["name"] == host && h.to_string().contains("\"up\""));
            match up {
                true => Ok(()),
                false => Err(shown.to_string()),
            }
        });
    }
    through(&lab, "route host killed", || {
        cables(&lab, home, &["eth0", "eth1"], "down");
        lab.kill(home, "agent");
        runs_on(&lab, other);
    });
    assert_eq!(face(&lab), before, "the router looks otherwise");

    // It comes back and finds that its router is another's.
    through(&lab, "route host is back", || {
        cables(&lab, home, &["eth0", "eth1"], "up");
        lab.start(home, "agent");
        lab.eventually("it gives up the router", || match has_router(&lab, home) {
            true => Err("it has it".to_owned()),
            false => Ok(()),
        });
    });
    runs_on(&lab, other);
    fenced(&lab, home);

    through(&lab, "route host drains", || {
        lab.admin(&format!("host drain {other}"));
        runs_on(&lab, home);
        lab.eventually("it gives up the router", || match has_router(&lab, other) {
            true => Err("it has it".to_owned()),
            false => Ok(()),
        });
    });
    assert_eq!(face(&lab), before, "the router looks otherwise");
}

/// Asks for the router's address fifty times a second; who answered what, by the question's number.
fn probe(lab: &Lab, address: Ipv4Addr, ends: &AtomicBool) -> BTreeMap<&'static str, Vec<u16>> {
    let asker: Mac = mac("02:00:00:00:00:77");
    let ext = lab.wire("ext", "eth0");
    let hosts: Vec<(&str, Wire)> = [("r1", "x-r1"), ("r2", "x-r2")]
        .map(|(host, port)| (host, lab.wire("underlay", port)))
        .into();
    let mut answers = BTreeMap::from([("r1", Vec::new()), ("r2", Vec::new())]);
    let mut number: u16 = 0;
    while !ends.load(Ordering::Relaxed) {
        number += 1;
        let [high, low] = number.to_be_bytes();
        // Each question has an asker of its own, so that each answer says what it answers.
        let question = arp(1, asker, Ipv4Addr::new(203, 0, high, low), address);
        ext.send(&ethernet([0xff; 6], asker, ARP, &question));
        std::thread::park_timeout(Duration::from_millis(20));
        for (host, wire) in &hosts {
            for frame in wire.received() {
                let is_answer = frame.len() >= 42
                    && frame[..6] == asker
                    && frame[12..14] == ARP.to_be_bytes()
                    && frame[20..22] == [0, 2]
                    && frame[28..32] == address.octets();
                if is_answer {
                    let of = answers.entry(host).or_default();
                    of.push(u16::from_be_bytes([frame[40], frame[41]]));
                }
            }
        }
    }
    answers
}

#[test]
#[expect(clippy::print_stdout, reason = "figures of the test")]
fn two_route_hosts_that_both_live_never_answer_both() {
    let lab = two_route_hosts();
    let address = outer_address(&lab);
    let ends = AtomicBool::new(false);
    let answers = std::thread::scope(|scope| {
        let _ends_in_any_case = AtEnd(&ends);
        let probing = scope.spawn(|| probe(&lab, address, &ends));
        through(&lab, "route host cut off from the others", || {
            // Not from the outside; its agent lives, and so does its router.
            cables(&lab, "r1", &["eth0"], "down");
            runs_on(&lab, "r2");
        });
        assert!(has_router(&lab, "r1"), "r1 cannot know yet");
        through(&lab, "route host no longer cut off", || {
            cables(&lab, "r1", &["eth0"], "up");
            lab.eventually("r1 gives up the router", || match has_router(&lab, "r1") {
                true => Err("it has it".to_owned()),
                false => Ok(()),
            });
        });
        ends.store(true, Ordering::Relaxed);
        probing.join().expect("the probe does not panic")
    });
    let (one, two) = (&answers["r1"], &answers["r2"]);
    println!(
        "figure: questions answered by r1: {}, by r2: {}",
        one.len(),
        two.len()
    );
    assert!(!one.is_empty() && !two.is_empty(), "{answers:?}");
    let (last, first) = (one.iter().max(), two.iter().min());
    assert!(
        last < first,
        "r1 answered {last:?} and r2 {first:?}: {answers:?}"
    );
}

/// A router of r1's own, made there with no server, and a workload behind it there; its namespace.
fn own_router(lab: &Lab) -> &'static str {
    let stack = lab.json(
        "r1",
        "vpc -o json agent l2 stack create lab/own --vni 9000 \
         --segment one,vlan=10,vni=9001,cidr=10.9.1.0/24,mtu=1400 --wait",
    );
    let id = |value: &Value| value.as_str().map(str::to_owned);
    let vpc = id(&stack["vpc_id"]).unwrap_or_else(|| panic!("{stack}"));
    let subnet = id(&stack["segments"][0]["subnet_id"]).unwrap_or_else(|| panic!("{stack}"));
    lab.sh(
        "r1",
        &format!(
            "vpc agent l2 port create own --vpc-id {vpc} --subnet-id {subnet} --attach netns:own \
             --ip 10.9.1.11 --wait &&
             vpc agent l3 create lab/gw --vpc-id {vpc} --leg {subnet}=10.9.1.1/24 --bridge br-ext \
             --address 198.51.100.7/24 --gateway 198.51.100.1 --nat --wait"
        ),
    );
    lab.sh("r1/own", "ip route replace default via 10.9.1.1");
    "r1/own"
}

#[test]
fn a_lease_does_not_silence_a_router_of_the_hosts_own() {
    let lab = two_route_hosts();
    let own = own_router(&lab);
    let both = || {
        for place in ["c1/a1", own] {
            lab.reaches(place, "198.51.100.1");
        }
    };
    both();

    // The fence is put up with both routers there, as after a restart of the host.
    lab.kill("r1", "agent");
    lab.sh("r1", "nft delete table bridge vpc-lease");
    lab.start("r1", "agent");
    fenced(&lab, "r1");
    both();
    if router(&lab)["host_name"] != "r1" {
        // Its agent was away for longer than a second.
        lab.admin("router move blue/gw --host r1 --wait");
    }
    runs_on(&lab, "r1");
    lab.sh("r1", "nft delete table bridge vpc-lease");
    fenced(&lab, "r1");
    both();

    // Whom the others no longer hear loses the lease, not its own router.
    cables(&lab, "r1", &["eth0"], "down");
    runs_on(&lab, "r2");
    both();
    let held = lab.sh("r1", "nft list set bridge vpc-lease held");
    assert!(held.contains("rx-"), "its own router is let out: {held}");
    cables(&lab, "r1", &["eth0"], "up");
    both();
}

/// A connection of TCP that pushes a number each 10 ms from the outside in: when they came, at whom they
/// were sent from within.
fn pushed(lab: &Lab, ends: &AtomicBool, so_far: &AtomicUsize) -> Vec<(u64, Instant)> {
    let listener = lab.inside("ext", || TcpListener::bind((OUTSIDE, 7100)));
    let listener = listener.expect("the port is free");
    let inner = lab.inside("c1/a1", || TcpStream::connect((OUTSIDE, 7100)));
    let mut inner = inner.expect("there is a way out");
    let (mut outer, _) = listener.accept().expect("it was connected");
    outer.set_nodelay(true).expect("a socket");
    inner
        .set_read_timeout(Some(Duration::from_secs(20)))
        .expect("a socket");
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut number: u64 = 0;
            while !ends.load(Ordering::Relaxed) {
                // Who reads says what is missing.
                if outer.write_all(&number.to_be_bytes()).is_err() {
                    return;
                }
                number += 1;
                std::thread::park_timeout(EVERY);
            }
        });
        let mut came = Vec::new();
        let mut buffer = [0; 8];
        while inner.read_exact(&mut buffer).is_ok() {
            came.push((u64::from_be_bytes(buffer), Instant::now()));
            so_far.store(came.len(), Ordering::Relaxed);
        }
        came
    })
}

#[test]
#[expect(clippy::print_stdout, reason = "figures of the test")]
fn an_established_connection_survives_a_planned_move() {
    let lab = two_route_hosts();
    let (ends, so_far) = (AtomicBool::new(false), AtomicUsize::new(0));
    let answers = Answers::asked_for(&lab);
    let rounds = match std::env::var_os("VPC_SOAK") {
        Some(_) => 50,
        None => 3,
    };
    let (moves, came) = std::thread::scope(|scope| {
        let _ends_in_any_case = AtEnd(&ends);
        let pushing = scope.spawn(|| pushed(&lab, &ends, &so_far));
        more_come(&lab, &so_far);
        let mut moves = Vec::new();
        for host in ["r2", "r1"].into_iter().cycle().take(rounds) {
            moves.push(Instant::now());
            lab.admin(&format!("router move blue/gw --host {host} --wait"));
            lab.reaches("c1/a1", "198.51.100.1");
            answers.still_come(&lab);
        }
        ends.store(true, Ordering::Relaxed);
        moves.push(Instant::now());
        (moves, pushing.join().expect("the pusher does not panic"))
    });
    all_in_order(&came);
    // How long it stood still is a figure: that is the machine's, and the benchmark's.
    let gaps = moves.windows(2).map(|m| longest_gap(&came, m[0], m[1]));
    let mut gaps: Vec<u128> = gaps.map(|gap| gap.as_millis()).collect();
    gaps.sort_unstable();
    println!(
        "figure: TCP through {rounds} planned moves: median {} ms, p99 {} ms, longest {} ms",
        gaps[rounds / 2],
        gaps[rounds * 99 / 100],
        gaps[rounds - 1]
    );
}

#[test]
fn a_router_stays_where_it_is_if_the_other_host_cannot_have_it() {
    let lab = two_route_hosts();
    lab.sh("r2", "ip link set br-ext down");
    through(&lab, "move to a host without a way out", || {
        let refused = lab.refused("router move blue/gw --host r2 --wait");
        for says in ["br-ext is down: bring it up", "the router is where it was"] {
            assert!(refused.contains(says), "{refused}");
        }
    });
    let router = router(&lab);
    assert_eq!(
        (&router["host_name"], &router["epoch"]),
        (&"r1".into(), &1.into())
    );
    assert_eq!(router["moving"]["host_name"], "r2", "{router}");
    lab.eventually("r2 has no trace of it", || match has_router(&lab, "r2") {
        false => Ok(()),
        true => Err(lab.sh("r2", "ip netns list")),
    });
    lab.sh("r2", "ip link set br-ext up");
    lab.admin("router move blue/gw --host r2 --wait");
    runs_on(&lab, "r2");
    lab.reaches("c1/a1", "198.51.100.1");
}

/// Some more of what is pushed came.
fn more_come(lab: &Lab, so_far: &AtomicUsize) {
    let before = so_far.load(Ordering::Relaxed);
    lab.eventually("numbers come", || match so_far.load(Ordering::Relaxed) {
        now if now > before + 10 => Ok(()),
        now => Err(format!("{now} by now, {before} before")),
    });
}

fn all_in_order(came: &[(u64, Instant)]) {
    let numbers: Vec<u64> = came.iter().map(|(number, _)| *number).collect();
    let all: Vec<u64> = (0..numbers.len() as u64).collect();
    assert_eq!(numbers, all);
}

/// The standby is this one, and knows all connections, which are so many at least.
fn in_step(lab: &Lab, standby: &str, least: u64) {
    lab.eventually(&format!("{standby} knows the connections"), || {
        let router = router(lab);
        let told = &router["standby"];
        let is = told["host_name"] == standby && told["knows"]["in_step"] == true;
        match is && told["knows"]["kept"].as_u64() >= Some(least) {
            true => Ok(()),
            false => Err(told.to_string()),
        }
    });
    // What the router's host told may be of before the standby was started anew.
    lab.eventually(&format!("{standby} says so, too"), || {
        let status = lab.json(standby, "vpc -o json agent status");
        let kept = &status["standby_for"][0];
        let is = kept["router_name"] == "blue/gw" && kept["kept"].as_u64() >= Some(least);
        match is {
            true => Ok(()),
            false => Err(status["standby_for"].to_string()),
        }
    });
}

#[test]
#[expect(clippy::print_stdout, reason = "figures of the test")]
fn established_connections_survive_the_loss_of_their_route_host() {
    let lab = two_route_hosts();
    // What is there already is told, too.
    let answers = Answers::asked_for(&lab);
    lab.admin("router standby blue/gw --wait");
    let (ends, so_far) = (AtomicBool::new(false), AtomicUsize::new(0));
    let (from, came) = std::thread::scope(|scope| {
        let _ends_in_any_case = AtEnd(&ends);
        let pushing = scope.spawn(|| pushed(&lab, &ends, &so_far));
        more_come(&lab, &so_far);
        in_step(&lab, "r2", 2);
        let from = Instant::now();
        cables(&lab, "r1", &["eth0", "eth1"], "down");
        lab.kill("r1", "agent");
        runs_on(&lab, "r2");
        // Nobody inside says anything by itself, so only what came over lets this in.
        more_come(&lab, &so_far);
        answers.still_come(&lab);
        let router = router(&lab);
        assert_eq!(router["standby"]["host_name"], Value::Null, "{router}");

        // The other way round, once the first is back.
        cables(&lab, "r1", &["eth0", "eth1"], "up");
        lab.start("r1", "agent");
        fenced(&lab, "r1");
        in_step(&lab, "r1", 2);
        cables(&lab, "r2", &["eth0", "eth1"], "down");
        runs_on(&lab, "r1");
        more_come(&lab, &so_far);
        answers.still_come(&lab);
        ends.store(true, Ordering::Relaxed);
        (from, pushing.join().expect("the pusher does not panic"))
    });
    all_in_order(&came);
    println!(
        "figure: TCP through the loss of two route hosts, longest gap: {} ms",
        longest_gap(&came, from, Instant::now()).as_millis()
    );
}

/// The router's host says that the standby is told nothing, or does not: to the server, and to `vpc doctor`.
fn tells_of_its_standby(lab: &Lab, troubled: bool) {
    lab.eventually(&format!("r1 tells of its standby: {troubled}"), || {
        // Something to tell it: where there is nothing, it has all there is.
        lab.sh("c1/a1", "bash -c 'echo > /dev/udp/198.51.100.1/7105'");
        let conditions = router(lab)["conditions"].to_string();
        let doctor = text_of(&lab.try_sh("r1", "vpc doctor -o json"));
        let tells = |text: &str| text.contains("that is told nothing");
        match (tells(&conditions), tells(&doctor)) == (troubled, troubled) {
            true => Ok(()),
            false => Err(format!("{conditions} {doctor}")),
        }
    });
}

#[test]
fn a_standby_comes_and_goes_and_the_router_goes_on() {
    let lab = two_route_hosts();
    let refused = lab.try_sh("m1", "vpc router standby blue/gw r1");
    let text = text_of(&refused);
    assert!(
        !refused.status.success() && text.contains("what stands by has to be another"),
        "{text}"
    );
    lab.admin("router standby blue/gw r2 --wait");
    in_step(&lab, "r2", 0);

    // Only the router's host knows that it does not reach the standby.
    let shut = "nft add table inet shut; nft add chain inet shut input '{ type filter hook input priority 0; }'; \
        nft add rule inet shut input tcp dport 7444 drop; nft add rule inet shut input tcp sport 7444 drop";
    lab.sh("r2", shut);
    tells_of_its_standby(&lab, true);
    lab.sh("r2", "nft delete table inet shut");
    in_step(&lab, "r2", 0);
    tells_of_its_standby(&lab, false);

    through(&lab, "standby is restarted", || {
        lab.kill("r2", "agent");
        lab.start("r2", "agent");
        in_step(&lab, "r2", 1);
    });
    through(&lab, "standby is gone", || {
        lab.kill("r2", "agent");
        lab.eventually("the router has no standby", || {
            let router = router(&lab);
            let standby = &router["standby"];
            match standby.is_object() && standby["host_name"].is_null() {
                true => Ok(()),
                false => Err(standby.to_string()),
            }
        });
    });
    let shown = lab.sh("m1", "vpc router show blue/gw");
    assert!(
        shown.contains("standby  none: no other route host"),
        "{shown}"
    );
    let refused = text_of(&lab.try_sh("m1", "vpc router standby blue/gw"));
    assert!(
        refused.contains("every other route host is down"),
        "{refused}"
    );
    lab.start("r2", "agent");
    in_step(&lab, "r2", 0);

    lab.admin("router standby blue/gw --none --wait");
    assert_eq!(router(&lab)["standby"], Value::Null);
    lab.eventually("nothing is kept any more", || {
        let status = lab.json("r2", "vpc -o json agent status");
        match status["standby_for"].as_array().is_some_and(Vec::is_empty) {
            true => Ok(()),
            false => Err(status["standby_for"].to_string()),
        }
    });
}

/// Ends a thread that is waited for also when something fails meanwhile.
struct AtEnd<'a>(&'a AtomicBool);

impl Drop for AtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Somebody outside who was asked once, by UDP, and answers ever since: what comes in is let in and
/// translated only by what the router tracks.
struct Answers {
    inner: UdpSocket,
    outer: UdpSocket,
    to: SocketAddr,
}

impl Answers {
    fn asked_for(lab: &Lab) -> Self {
        let outer = lab.inside("ext", || UdpSocket::bind((OUTSIDE, 7101)));
        let outer = outer.expect("the port is free");
        let inner = lab.inside("c1/a1", || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 7102)));
        let inner = inner.expect("the port is free");
        for socket in [&inner, &outer] {
            let wait = Some(Duration::from_millis(200));
            socket.set_read_timeout(wait).expect("a socket");
        }
        let to = lab.eventually("a question comes out", || {
            inner
                .send_to(b"question", (OUTSIDE, 7101))
                .map_err(|error| error.to_string())?;
            let came = outer.recv_from(&mut [0; 8]);
            came.map(|(_, from)| from)
                .map_err(|error| error.to_string())
        });
        let answers = Self { inner, outer, to };
        answers.still_come(lab);
        answers
    }

    fn still_come(&self, lab: &Lab) {
        lab.eventually("an answer comes in, with no question before it", || {
            self.outer
                .send_to(b"answer", self.to)
                .map_err(|error| error.to_string())?;
            let came = self.inner.recv_from(&mut [0; 8]);
            came.map(drop).map_err(|error| error.to_string())
        });
    }
}
