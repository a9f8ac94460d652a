//! NICs that move between hosts: under traffic, with daemons killed in every phase, taken back,
//! deleted on the way; and what is left on each host afterwards.

use lab::machine::EchoMachine;
use lab::stream::{Echo, Received, Stream, longest_gap, longest_loss};
use lab::{Lab, text_of, wire};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::env;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

const MAC: &str = "02:00:00:00:0a:01";
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 4, 1, 11);
/// A thousand a second.
const EVERY: Duration = Duration::from_millis(1);
/// What a move may cost on a slow machine that does other things as well; the figure is the bench's.
const GAP_MOST: Duration = Duration::from_secs(2);

/// Three compute hosts: NIC a1 on c1, one beside it, one on c2 and one on c3. Namespace a1 is on c1
/// and c2, so that what runs in it is there before the NIC is.
fn cluster() -> Lab {
    let lab = Lab::up_with(&["--hosts", "3"]);
    lab.admin("create blue --cidr 10.4.0.0/16 --cidr fd00:4:1::/48");
    lab.admin("subnet create blue/web --cidr 10.4.1.0/24 --cidr fd00:4:1::/64");
    for host in ["c1", "c2"] {
        lab.sh(host, "ip netns add a1 && ip -n a1 link set lo up");
    }
    lab.admin(&format!(
        "nic create blue/web/a1 --host c1 --attach netns:a1 --mac {MAC} --ip {ADDRESS} --ip fd00:4:1::a --wait"
    ));
    for (host, number) in [("c1", 21), ("c2", 22), ("c3", 23)] {
        lab.admin(&format!(
            "nic create blue/web/{host} --host {host} --attach netns:mate --ip 10.4.1.{number} --wait"
        ));
    }
    for host in ["c1", "c2", "c3"] {
        lab.reaches(&format!("{host}/mate"), "10.4.1.11");
    }
    lab
}

/// A NIC that moves, and the hosts that may know of it.
struct Moving<'a> {
    lab: &'a Lab,
    path: &'a str,
    mac: &'a str,
    address: Ipv4Addr,
    hosts: &'a [&'a str],
    /// Those of them whose client is FRR, which reads there what addresses a NIC has.
    with_frr: &'a [&'a str],
}

/// NIC a1 of [`cluster`].
fn a1(lab: &Lab) -> Moving<'_> {
    Moving {
        lab,
        path: "blue/web/a1",
        mac: MAC,
        address: ADDRESS,
        hosts: &["c1", "c2", "c3"],
        with_frr: &[],
    }
}

impl Moving<'_> {
    fn shown(&self) -> Value {
        self.lab.admin(&format!("nic show {}", self.path))
    }

    fn port(&self) -> String {
        let nic = self.shown();
        format!("n-{}", nic["id"].as_str().expect("it has an id"))
    }

    fn vtep(&self, host: &str) -> String {
        let hosts = self.lab.admin("host list");
        let mut hosts = hosts.as_array().into_iter().flatten();
        let host = hosts.find(|entry| entry["name"] == host);
        let address = host.and_then(|host| host["underlay_address"].as_str());
        address.expect("the host has an address").to_owned()
    }

    /// Where a host's bridges and tunnels send frames for the MAC: `port`, `tunnel` or the VTEP.
    fn rows(&self, host: &str) -> Vec<String> {
        let all = self.lab.all_vtep_rows(host).into_iter();
        let of_mac = all.filter(|(mac, _)| mac == self.mac);
        let mut rows: Vec<String> = of_mac.map(|(_, vtep)| format!("to {vtep}")).collect();
        let fdb = self.lab.json(host, "bridge -j fdb show");
        let of_bridges = rows_with(&fdb, "mac", self.mac).into_iter();
        let of_bridges = of_bridges.filter(|row| !row["dst"].is_string());
        rows.extend(of_bridges.map(|row| {
            let device = row["ifname"].as_str().unwrap_or_default();
            let port = device.starts_with("n-");
            if port { "port" } else { "tunnel" }.to_owned()
        }));
        rows.sort();
        rows
    }

    /// Who a host says has the address: the NIC here, the NIC elsewhere, or somebody else.
    fn neighbours(&self, host: &str) -> Vec<&'static str> {
        let address = self.address.to_string();
        let all = self.lab.neighbours(host).into_iter();
        let kind = |row: lab::Neighbour| match (row.mac == self.mac, row.here) {
            (false, _) => "another",
            (true, true) => "here",
            (true, false) => "elsewhere",
        };
        all.filter(|row| row.address == address).map(kind).collect()
    }

    /// Nothing anywhere says that the NIC is elsewhere than on `home`.
    fn assert_only_on(&self, home: &str) {
        let (lab, vtep, port) = (self.lab, self.vtep(home), self.port());
        for host in self.hosts {
            // FRR learns from the kernel what is here, and a datapath is told.
            let knows = self.with_frr.contains(host) || lab.is_tap(host);
            let wanted = match (*host == home, knows) {
                (true, true) => (vec!["port".to_owned()], vec!["here"]),
                (true, false) => (vec!["port".to_owned()], vec![]),
                (false, _) => {
                    let rows = vec![format!("to {vtep}"), "tunnel".to_owned()];
                    (rows, vec!["elsewhere"])
                }
            };
            lab.eventually(&format!("rows of {host} point to {home}"), || {
                let found = (self.rows(host), self.neighbours(host));
                match found == wanted {
                    true => Ok(()),
                    false => Err(format!("{found:?}, not {wanted:?}")),
                }
            });
            let there = lab.try_sh(host, &format!("ip link show {port}"));
            assert_eq!(
                there.status.success(),
                *host == home,
                "{host}: {}",
                text_of(&there)
            );
            let guards = lab.rules(host);
            assert_eq!(guards.contains(&port), *host == home, "{host}: {guards}");
            lab.eventually(&format!("{host} has nothing left to do"), || {
                let status = lab.json(host, "vpc -o json agent status");
                match status["converged"] == true && status["conditions"] == json!([]) {
                    true => Ok(()),
                    false => Err(status.to_string()),
                }
            });
        }
    }

    /// Waits for the end of a move; the host where the NIC then is.
    fn settled(&self) -> String {
        self.lab.eventually("the move is over", || {
            let line = format!("vpc -o json nic show {}", self.path);
            let output = self.lab.try_sh("m1", &line);
            let nic: Value =
                serde_json::from_slice(&output.stdout).map_err(|_| text_of(&output))?;
            match nic["moving"].is_null() && nic["state"] == "applied" {
                true => Ok(nic["host_name"].as_str().unwrap_or_default().to_owned()),
                false => Err(nic.to_string()),
            }
        })
    }

    /// Moves it along this way so many times, while these streams go to it, and asserts after each
    /// move that no row is stale; how long nothing came in each, by the ends of the move.
    fn tour(&self, way: &[&str], rounds: u32, streams: &[Arriving<'_>]) -> Gaps {
        let mut gaps = Gaps::new();
        let mut home = self.settled();
        for target in way.iter().cycle().take(way.len() * rounds as usize) {
            let begun = Instant::now();
            self.lab
                .admin(&format!("nic move {} --host {target}", self.path));
            self.assert_only_on(target);
            let ended = Instant::now();
            let longest = streams.iter().map(|arrivals| {
                // Something comes again: the gap has an end.
                self.lab.eventually("traffic goes on", || {
                    match arrivals().last().is_some_and(|last| last.1 > ended) {
                        true => Ok(()),
                        false => Err("nothing".to_owned()),
                    }
                });
                let all = arrivals();
                (
                    longest_gap(&all, begun, ended),
                    longest_loss(&all, begun, ended),
                )
            });
            let both = longest.fold((Duration::ZERO, 0), |a, b| (a.0.max(b.0), a.1.max(b.1)));
            gaps.entry(format!("{home} to {target}"))
                .or_default()
                .push(both);
            home = (*target).to_owned();
        }
        gaps
    }
}

/// What came of a stream so far.
type Arriving<'a> = Box<dyn Fn() -> Vec<(u64, Instant)> + 'a>;
/// For how long nothing came and how many were lost in a row, by the ends of a move.
type Gaps = BTreeMap<String, Vec<(Duration, u64)>>;

fn rows_with(rows: &Value, key: &str, value: &str) -> Vec<Value> {
    let rows = rows.as_array().into_iter().flatten();
    rows.filter(|row| row[key] == value).cloned().collect()
}

/// How often a NIC goes its way: once in `make test`, often in `make soak`.
fn rounds(soak: u32) -> u32 {
    match env::var_os("VPC_SOAK") {
        Some(_) => soak,
        None => 1,
    }
}

/// Shows median, 99 in 100 and the longest, and what was lost.
fn shows(what: &str, gaps: Gaps, received: &[Received]) {
    for (ends, of_ends) in gaps {
        let (mut times, mut losses): (Vec<Duration>, Vec<u64>) = of_ends.into_iter().unzip();
        times.sort();
        losses.sort_unstable();
        let rank = |share: usize| (times.len() * share).div_ceil(100).max(1) - 1;
        let [half, most, all] = [50, 99, 100].map(|share| times[rank(share)]);
        let lost = [50, 99, 100].map(|share| losses[rank(share)]);
        report(&format!(
            "{what}, {ends}: {} moves, gap p50 {half:?}, p99 {most:?}, longest {all:?}; lost in a \
             row {lost:?}",
            times.len()
        ));
        assert!(all < GAP_MOST, "{what}, {ends}: nothing came for {all:?}");
    }
    let count = |of: fn(&Received) -> u64| received.iter().map(of).sum::<u64>();
    let twice = count(Received::duplicates);
    report(&format!(
        "{what}: {} sent, {} lost, {twice} twice",
        count(|received| received.sent),
        count(Received::lost)
    ));
}

/// The shortest interval from [`EVERY`] on at which the machine brings all of these streams while another NIC moves: a guest
/// of one processor, in which each packet wakes processes, does not carry three thousand a second beside that.
fn affordable(lab: &Lab, places: &[&str]) -> Duration {
    lab.admin("nic create blue/web/other --host c1 --attach netns:other --ip 10.4.1.31 --wait");
    let mut every = EVERY;
    for target in ["c2", "c1", "c2", "c1"] {
        let start = |place: &&str| Stream::start(lab, place, ADDRESS, every);
        let streams: Vec<Stream> = places.iter().map(start).collect();
        for stream in &streams {
            lab.eventually("a stream is under way", || {
                let count = stream.arrived().len();
                (count >= 100).then_some(()).ok_or(count.to_string())
            });
        }
        lab.admin(&format!("nic move blue/web/other --host {target}"));
        let lost: u64 = streams.into_iter().map(|stream| stream.stop().lost()).sum();
        if lost == 0 {
            break;
        }
        every *= 2;
    }
    lab.admin("nic delete blue/web/other --wait");
    if every > EVERY {
        // It carries no more than this, and is to do so for minutes.
        every *= 2;
    }
    report(&format!("one packet each {every:?}"));
    every
}

#[test]
fn a_nic_moves_under_traffic() {
    let lab = cluster();
    let nic = a1(&lab);
    let echoes = ["c1/a1", "c2/a1"].map(|place| Echo::start(&lab, place));
    let places = ["c1/mate", "c2/mate", "c3/mate"];
    let every = affordable(&lab, &places);
    let streams = places.map(|place| Stream::start(&lab, place, ADDRESS, every));
    let wire = lab.wire("c3/mate", "eth0");
    let mac = [2, 0, 0, 0, 0x0a, 1];
    let mut frames = Vec::new();
    let begun = Instant::now();
    for target in ["c2", "c1", "c2", "c1", "c2"] {
        lab.admin(&format!("nic move blue/web/a1 --host {target}"));
        nic.assert_only_on(target);
        // Here and now: what the streams send on a slow machine is more than the socket holds.
        let of_nic = |f: &Vec<u8>| f[6..12] == mac && f[0] & 1 == 1;
        frames.extend(wire.received().into_iter().filter(of_nic));
    }
    let ended = Instant::now();
    let heard: Vec<usize> = echoes
        .iter()
        .map(|echo| echo.heard(&streams[2]).len())
        .collect();
    assert!(heard.iter().all(|count| *count > 100), "{heard:?}");
    for (place, stream) in places.iter().zip(streams) {
        let received = stream.stop();
        let gap = longest_gap(&received.arrivals, begun, ended);
        let (lost, twice) = (received.lost(), received.duplicates());
        report(&format!(
            "{place}: {} sent, {lost} lost, {twice} twice, gap {gap:?}",
            received.sent
        ));
        assert!(gap < GAP_MOST, "{place}: nothing came for {gap:?}");
        // As many as come in two seconds, in all five moves.
        let most = Duration::from_secs(2).as_micros() / every.as_micros();
        assert!(
            u128::from(lost) < most,
            "{place}: {lost} of {} lost",
            received.sent
        );
        assert!(twice < 20, "{place}: {twice} came twice");
    }
    // A third host hears of it by gratuitous ARP and by an unsolicited advertisement to all nodes.
    let arp = |frame: &Vec<u8>| {
        frame.len() >= 42 && frame[12..14] == [8, 6] && frame[28..32] == frame[38..42]
    };
    let na =
        |frame: &Vec<u8>| frame.len() >= 86 && frame[12..14] == [0x86, 0xdd] && frame[54] == 136;
    let told = |kind: &dyn Fn(&Vec<u8>) -> bool| frames.iter().filter(|f| kind(f)).count();
    assert!(told(&arp) >= 5, "{} gratuitous ARP frames", told(&arp));
    assert!(told(&na) >= 5, "{} unsolicited advertisements", told(&na));
    assert_eq!(nic.shown()["moves"], 5);
}

#[test]
fn a_move_ends_whole_whoever_is_killed_in_it() {
    let lab = cluster();
    let nic = a1(&lab);
    let mut home = "c1";
    // Killed when the phase is seen, or just after it was begun.
    for (victim, daemon) in [("m1", "server"), ("source", "agent"), ("target", "agent")] {
        for phase in ["provision", "switch", "retire"] {
            let target = if home == "c1" { "c2" } else { "c1" };
            let victim = match victim {
                "source" => home,
                "target" => target,
                other => other,
            };
            lab.admin(&format!("nic move blue/web/a1 --host {target} --no-wait"));
            // A phase may be over before it is seen: any moment from it on will do.
            lab.eventually(&format!("phase {phase} has begun"), || {
                let nic = nic.shown();
                let phases = ["provision", "switch", "retire"];
                let at = |phase: &str| phases.iter().position(|p| *p == phase);
                let now = nic["moving"]["phase"].as_str().and_then(at);
                match nic["moving"].is_null() || now >= at(phase) {
                    true => Ok(()),
                    false => Err(nic.to_string()),
                }
            });
            lab.kill(victim, daemon);
            lab.start(victim, daemon);
            let end = nic.settled();
            report(&format!(
                "{victim} {daemon} killed in {phase}: the NIC is on {end}"
            ));
            home = if end == "c1" { "c1" } else { "c2" };
            nic.assert_only_on(home);
            lab.reaches("c3/mate", "10.4.1.11");
        }
    }
}

#[test]
fn a_move_is_refused_taken_back_or_deleted() {
    let lab = cluster();
    let nic = a1(&lab);
    let same = lab.admin("nic move blue/web/a1 --host c1");
    assert_eq!(
        (&same["host_name"], &same["moves"]),
        (&"c1".into(), &0.into())
    );
    let refused = |arguments: &str, reason: &str| {
        let text = lab.refused(&format!("nic move blue/web/a1 {arguments}"));
        assert!(text.contains(reason), "{text}");
    };
    refused("--host nobody", "there is no host nobody");
    refused("--host r1", "carries no workloads");
    refused("--host c2 --resource-version 1", "it changed meanwhile");
    refused("--host c1 --attach tap", "does not change the attachment");
    lab.sh("m1", "vpc host drain c3");
    refused("--host c3", "draining");
    lab.sh("m1", "vpc host drain c3 --undo");
    // A port that cannot be made: the move waits, and is taken back when it is asked to.
    lab.admin("nic move blue/web/a1 --host c2 --attach existing:nosuch --no-wait");
    refused("--host c3", "is moving from host c1 to host c2");
    assert_eq!(nic.shown()["moving"]["phase"], "provision");
    lab.reaches("c3/mate", "10.4.1.11");
    lab.admin("nic move blue/web/a1 --host c1");
    assert_eq!(nic.settled(), "c1");
    nic.assert_only_on("c1");
    // Its new host dies before it could make the port.
    lab.kill("c2", "agent");
    lab.admin("nic move blue/web/a1 --host c2 --no-wait");
    lab.eventually("the move is taken back", || {
        let nic = nic.shown();
        let why = nic["moving"]["taken_back"].as_str().unwrap_or_default();
        match why.contains("stopped checking in") {
            true => Ok(()),
            false => Err(nic.to_string()),
        }
    });
    refused("--host c2", "it is down");
    lab.reaches("c3/mate", "10.4.1.11");
    lab.start("c2", "agent");
    assert_eq!(nic.settled(), "c1");
    nic.assert_only_on("c1");
    // Deleted on the way: nothing is left anywhere.
    lab.admin("nic move blue/web/a1 --host c2 --no-wait");
    lab.sh("m1", "vpc nic delete blue/web/a1 --wait");
    for host in ["c1", "c2", "c3"] {
        lab.eventually(&format!("{host} knows nothing of it"), || {
            match nic.rows(host) {
                none if none.is_empty() => Ok(()),
                found => Err(format!("{found:?}")),
            }
        });
    }
}

/// Hosts whose client is FRR and hosts with ours: every pair of them is the ends of a move.
#[test]
fn a_nic_moves_between_hosts_whoever_speaks() {
    let hosts = ["c1", "c2", "c3", "c4"];
    let speakers = ["--speaker", "c1=frr", "--speaker", "c2=frr"];
    let lab = Lab::up_with(&[&["--hosts", "m1,c1,c2,c3,c4"], &speakers[..]].concat());
    lab.admin("create blue --cidr 10.4.0.0/16");
    lab.admin("subnet create blue/web --cidr 10.4.1.0/24");
    for (host, number) in hosts.iter().zip(21..) {
        lab.sh(host, "ip netns add a1 && ip -n a1 link set lo up");
        lab.admin(&format!(
            "nic create blue/web/{host} --host {host} --attach netns:mate --ip 10.4.1.{number} --wait"
        ));
    }
    lab.admin(&format!(
        "nic create blue/web/a1 --host c1 --attach netns:a1 --mac {MAC} --ip {ADDRESS} --wait"
    ));
    for host in hosts {
        lab.reaches(&format!("{host}/mate"), "10.4.1.11");
    }
    let nic = Moving {
        hosts: &hosts,
        with_frr: &["c1", "c2"],
        ..a1(&lab)
    };
    let echoes = hosts.map(|host| Echo::start(&lab, &format!("{host}/a1")));
    // Of the two, one at least is neither end of a move.
    let streams = ["c1/mate", "c3/mate"].map(|place| Stream::start(&lab, place, ADDRESS, EVERY));
    let arriving: Vec<Arriving<'_>> = streams
        .iter()
        .map(|stream| {
            let echoes = &echoes;
            let heard = move || {
                let mut all: Vec<_> = echoes.iter().flat_map(|echo| echo.heard(stream)).collect();
                all.sort_by_key(|(_, at)| *at);
                all
            };
            Box::new(heard) as Arriving<'_>
        })
        .collect();
    // FRR and FRR, FRR and ours, ours and ours, ours and FRR.
    let gaps = nic.tour(&["c2", "c3", "c4", "c1"], rounds(13), &arriving);
    drop(arriving);
    shows("FRR on c1 and c2", gaps, &streams.map(Stream::stop));
}

#[test]
fn virtual_machines_and_nics_of_bundles_move() {
    const VM: Ipv4Addr = Ipv4Addr::new(10, 4, 1, 12);
    const VM_MAC: &str = "02:00:00:00:0a:02";
    let lab = Lab::up_with(&["--hosts", "m1,c1,c2,c3"]);
    let hosts = ["c1", "c2", "c3"];
    for (vpc, encoding) in [("blue", "vlan-based"), ("green", "vlan-aware-bundle")] {
        lab.admin(&format!(
            "create {vpc} --cidr 10.4.0.0/16 --encoding {encoding}"
        ));
        lab.admin(&format!("subnet create {vpc}/web --cidr 10.4.1.0/24"));
        for (host, number) in hosts.iter().zip(21..) {
            lab.admin(&format!(
                "nic create {vpc}/web/{host} --host {host} --attach netns:{vpc} --ip 10.4.1.{number} --wait"
            ));
        }
    }
    for host in ["c1", "c2"] {
        lab.sh(host, "ip netns add a1 && ip -n a1 link set lo up");
    }
    lab.admin(&format!(
        "nic create blue/web/vm --host c1 --attach tap --mac {VM_MAC} --ip {VM} --wait"
    ));
    lab.admin(&format!(
        "nic create green/web/a1 --host c1 --attach netns:a1 --mac {MAC} --ip {ADDRESS} --wait"
    ));
    let vm = Moving {
        lab: &lab,
        path: "blue/web/vm",
        mac: VM_MAC,
        address: VM,
        hosts: &hosts,
        with_frr: &[],
    };
    let nic = Moving {
        path: "green/web/a1",
        ..a1(&lab)
    };
    let _machine = EchoMachine::start(&lab, &["c1", "c2"], &vm.port(), wire::mac(VM_MAC), VM);
    let echoes = ["c1/a1", "c2/a1"].map(|place| Echo::start(&lab, place));
    lab.reaches("c3/green", "10.4.1.11");
    let wire = lab.wire("c3/blue", "eth0");
    for (what, moving, place) in [("TAP", &vm, "c3/blue"), ("bundle", &nic, "c3/green")] {
        let stream = Stream::start(&lab, place, moving.address, EVERY);
        let arriving: Arriving<'_> = Box::new(|| stream.arrived());
        let gaps = moving.tour(&["c2", "c1"], rounds(25), &[arriving]);
        let all: Vec<_> = gaps.into_values().flatten().collect();
        shows(
            what,
            Gaps::from([("to and fro".to_owned(), all)]),
            &[stream.stop()],
        );
    }
    drop(echoes);
    // Both kinds of frames that tell of a virtual machine's move, at each of the two at least.
    let frames = wire.received();
    for (kind, ethertype) in [("gratuitous ARP", [8, 6]), ("RARP", [0x80, 0x35])] {
        let told = |f: &&Vec<u8>| f[..6] == wire::BROADCAST && f[12..14] == ethertype;
        let of_vm = |f: &&Vec<u8>| f[6..12] == wire::mac(VM_MAC);
        let count = frames.iter().filter(told).filter(of_vm).count();
        assert!(count >= 2, "{count} frames of {kind}");
    }
}

#[expect(clippy::print_stderr, reason = "figures are shown")]
fn report(text: &str) {
    eprintln!("moves: {text}");
}
