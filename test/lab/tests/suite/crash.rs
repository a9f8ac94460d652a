//! Killed agents, servers and `lab up`s: no packet is lost, nothing in the kernel changes, nothing
//! is half made and nothing stays behind.

use lab::client::{Client, all_nics, path};
use lab::stream::{Echo, Received, Stream};
use lab::{LIMIT, Lab, Ping, difference, text_of, vpc};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::Ipv4Addr;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Hosts with an agent.
const HOSTS: [&str; 4] = ["m1", "c1", "c2", "r1"];
/// As often as ping gets to it.
const EVERY: Duration = Duration::from_millis(10);
/// Two hundred a second.
const STREAM_EVERY: Duration = Duration::from_millis(5);
const A1: Ipv4Addr = Ipv4Addr::new(10, 4, 1, 11);
const A2: Ipv4Addr = Ipv4Addr::new(10, 4, 1, 12);

/// How often each thing is done: a few times in `make test`, often in `make soak`.
fn rounds() -> u32 {
    match env::var_os("VPC_SOAK") {
        Some(_) => 20,
        None => 3,
    }
}

/// Random points in time, the same ones for the same `VPC_SEED`.
struct Random(u64);

impl Random {
    #[expect(clippy::print_stderr, reason = "a failure is repeated with its seed")]
    fn new(test: &str) -> Self {
        let given = env::var("VPC_SEED").ok().and_then(|text| text.parse().ok());
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let seed: u64 = given.unwrap_or_else(|| now.expect("after 1970").subsec_nanos().into());
        eprintln!("{test}: VPC_SEED={seed}");
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }

    /// Lets a random time pass. No state is waited for: any moment is as good as another.
    fn moment(&mut self, most: Duration) {
        let micros = self.below(u64::try_from(most.as_micros()).unwrap_or(u64::MAX).max(1));
        std::thread::park_timeout(Duration::from_micros(micros));
    }
}

/// A VPC with a NIC on each of two hosts that reach each other.
fn two_hosts() -> Lab {
    two_hosts_with(&[])
}

fn two_hosts_with(options: &[&str]) -> Lab {
    let lab = Lab::up_with(options);
    lab.admin("create blue --cidr 10.4.0.0/16");
    lab.admin("subnet create blue/web --cidr 10.4.0.0/16");
    lab.admin("nic create blue/web/a1 --host c1 --attach netns:a1 --ip 10.4.1.11 --wait");
    lab.admin("nic create blue/web/a2 --host c2 --attach netns:a2 --ip 10.4.1.12 --wait");
    lab.reaches("c1/a1", "10.4.1.12");
    settled(&lab);
    lab
}

/// Waits until every agent did all it was told, is connected and has its EVPN sessions.
fn settled(lab: &Lab) {
    for host in HOSTS {
        lab.eventually(&format!("{host} is settled"), || {
            let status = lab.try_sh(host, "vpc -o json agent status");
            let text = String::from_utf8_lossy(&status.stdout);
            let Ok(json) = serde_json::from_str::<serde_json::Value>(&text) else {
                return Err(text_of(&status));
            };
            let peers = json["peers"].as_array().cloned().unwrap_or_default();
            let speaks = !peers.is_empty()
                && peers.iter().all(|peer| {
                    // FRR does not tell of End-of-RIB; its routes are compared.
                    peer["state"] == "established"
                        && (peer["end_of_rib"] == true || peer["counters"].is_null())
                        && peer["stale"] == false
                });
            match json["converged"] == true && json["server_connected"] == true && speaks {
                true => Ok(()),
                false => Err(json.to_string()),
            }
        });
    }
}

fn dumps(lab: &Lab) -> Vec<String> {
    HOSTS.iter().map(|host| lab.dump(host)).collect()
}

fn assert_same(lab: &Lab, before: &[String]) {
    for (host, was) in HOSTS.iter().zip(before) {
        let now = lab.dump(host);
        assert_eq!(*was, now, "{host}:\n{}", difference(was, &now));
    }
}

/// What to kill: daemons by host. `zebra` and `bgpd` are those of FRR as the host's client,
/// `reflecting` is the bgpd that the server runs; whoever keeps them starts them again.
type Victims = &'static [(&'static str, &'static str)];

/// The file with the pid of a daemon that is not the lab's to start.
fn pid_file(daemon: &str) -> Option<String> {
    match daemon {
        "zebra" | "bgpd" => Some(format!("/run/vpc/frr/{daemon}.pid")),
        "reflecting" => Some("/run/vpc/reflector/bgpd.pid".to_owned()),
        _ => None,
    }
}

fn kill_daemon(lab: &Lab, host: &str, daemon: &str) {
    let Some(file) = pid_file(daemon) else {
        return lab.kill(host, daemon);
    };
    let old = lab.sh(host, &format!("cat {file}"));
    let old = old.trim();
    lab.sh(host, &format!("kill -9 {old}"));
    lab.eventually(&format!("{daemon} on {host} is started again"), || {
        let line = format!("now=$(cat {file}) && test \"$now\" != {old} && kill -0 \"$now\"");
        match lab.try_sh(host, &line).status.success() {
            true => Ok(()),
            false => Err(format!("{old} is dead")),
        }
    });
}

fn start_daemon(lab: &Lab, host: &str, daemon: &str) {
    if pid_file(daemon).is_none() {
        lab.start(host, daemon);
    }
}

/// Traffic between the two workloads, both ways.
struct Traffic {
    streams: [Stream; 2],
    _echoes: [Echo; 2],
}

impl Traffic {
    fn start(lab: &Lab) -> Self {
        let echoes = ["c1/a1", "c2/a2"].map(|place| Echo::start(lab, place));
        let streams = [("c1/a1", A2), ("c2/a2", A1)]
            .map(|(place, to)| Stream::start(lab, place, to, STREAM_EVERY));
        Self {
            streams,
            _echoes: echoes,
        }
    }

    /// Both ways something came just now; else what the hosts have at this moment is shown.
    fn goes_on(&self, lab: &Lab, when: &str) {
        let long = |stream: &Stream| stream.arrived().last().map(|last| last.1.elapsed());
        let since = self.streams.each_ref().map(long);
        if since
            .iter()
            .all(|since| *since < Some(Duration::from_secs(5)) && since.is_some())
        {
            return;
        }
        let seen = ["c1", "c2"].map(|host| {
            let line = "vpc evpn peers; vpc evpn routes; bridge fdb | grep t-; \
                        ip neigh show nud permanent; tail -n 40 /run/vpc/frr/bgpd.log";
            text_of(&lab.try_sh(host, line))
        });
        panic!(
            "{when}: nothing came for {since:?}\n{}\n{}",
            seen[0], seen[1]
        );
    }

    /// Nothing was lost and nothing came twice.
    fn stop(self, test: &str, rounds: u32) {
        let received = self.streams.map(Stream::stop);
        let sum = |of: fn(&Received) -> u64| received.iter().map(of).sum::<u64>();
        let (lost, twice) = (sum(Received::lost), sum(Received::duplicates));
        let sent = sum(|received| received.sent);
        report(
            test,
            &format!("{rounds} rounds, {sent} sent, {lost} lost, {twice} twice"),
        );
        assert_eq!((lost, twice), (0, 0), "{test}: of {sent}");
    }
}

/// All routes that a host has, and whether they are fresh.
fn routes(lab: &Lab, host: &str) -> Result<BTreeSet<String>, String> {
    let output = lab.try_sh(host, "vpc -o json evpn routes");
    let routes: serde_json::Value =
        serde_json::from_slice(&output.stdout).map_err(|_| text_of(&output))?;
    let routes = routes.as_array().into_iter().flatten();
    let told = routes.map(|route| {
        let of = |key: &str| route[key].to_string();
        [of("route"), of("next_hop"), of("stale")].join(" ")
    });
    Ok(told.collect())
}

fn killed_under_traffic(test: &str, choices: &[Victims]) {
    killed_with(test, &two_hosts(), choices, rounds());
}

/// Kills each choice so often in turn, under traffic.
fn killed_with(test: &str, lab: &Lab, choices: &[Victims], rounds: u32) {
    let mut random = Random::new(test);
    settled(lab);
    let before = dumps(lab);
    let known = ["c1", "c2"].map(|host| (host, routes(lab, host).expect("the agent answers")));
    let traffic = Traffic::start(lab);
    let times = rounds * u32::try_from(choices.len()).expect("a few");
    for (round, victims) in (0..times).zip(choices.iter().cycle()) {
        random.moment(Duration::from_millis(500));
        for (host, daemon) in *victims {
            kill_daemon(lab, host, daemon);
        }
        random.moment(Duration::from_secs(1));
        for (host, daemon) in *victims {
            start_daemon(lab, host, daemon);
        }
        // Every other time once more, while they are still starting.
        if round % 2 == 1 {
            random.moment(Duration::from_millis(400));
            for (host, daemon) in *victims {
                kill_daemon(lab, host, daemon);
                start_daemon(lab, host, daemon);
            }
        }
        settled(lab);
        for (host, known) in &known {
            lab.eventually(&format!("{host} has its routes again"), || {
                match routes(lab, host)? {
                    now if now == *known => Ok(()),
                    now => Err(format!("{now:?}")),
                }
            });
        }
        traffic.goes_on(lab, &format!("{test}, round {round}, {victims:?}"));
    }
    traffic.stop(test, times);
    assert_same(lab, &before);
}

#[expect(clippy::print_stderr, reason = "figures are shown")]
fn report(test: &str, text: &str) {
    eprintln!("{test}: {text}");
}

#[test]
fn killed_agents_lose_no_ping_and_change_nothing() {
    let choices: &[Victims] = &[
        &[("c1", "agent")],
        &[("c2", "agent")],
        &[("c1", "agent"), ("c2", "agent")],
    ];
    killed_under_traffic("killed agents", choices);
}

#[test]
fn a_killed_server_loses_no_ping_and_changes_nothing() {
    killed_under_traffic("killed server", &[&[("m1", "server")]]);
}

#[test]
fn agents_and_server_killed_together_lose_no_ping_and_change_nothing() {
    let choices: &[Victims] = &[
        &[("c1", "agent"), ("m1", "server")],
        &[("m1", "server"), ("c2", "agent")],
        &[("c1", "agent"), ("m1", "server"), ("c2", "agent")],
    ];
    killed_under_traffic("killed agents and server", choices);
}

/// How often each daemon of FRR is killed: it takes some seconds to have all routes again.
fn frr_rounds() -> u32 {
    match env::var_os("VPC_SOAK") {
        Some(_) => 20,
        None => 1,
    }
}

#[test]
fn killed_frr_and_its_agent_lose_nothing_and_change_nothing() {
    let lab = two_hosts_with(&["--speaker", "c1=frr"]);
    let choices: &[Victims] = &[
        &[("c1", "zebra")],
        &[("c1", "bgpd")],
        &[("c1", "zebra"), ("c1", "bgpd")],
        &[("c1", "agent")],
    ];
    killed_with("killed FRR client", &lab, choices, frr_rounds());
}

#[test]
fn a_killed_frr_reflector_loses_nothing_and_changes_nothing() {
    let lab = two_hosts_with(&["--speaker", "c1=frr", "--reflector", "frr"]);
    let choices: &[Victims] = &[
        &[("m1", "server")],
        &[("m1", "reflecting")],
        &[("c1", "agent")],
        // Before 10.6 FRR withdraws a client's routes from the others as soon as its session goes:
        // these keep them, because the server says that the host is a member.
        &[("c1", "bgpd")],
        &[("c1", "zebra")],
        &[("c1", "zebra"), ("c1", "bgpd")],
        &[("c2", "agent")],
    ];
    killed_with("killed FRR reflector", &lab, choices, frr_rounds());
    let state = lab.admin("server reflector");
    assert!(state["restarts"].as_u64() >= Some(1), "{state}");
    // What was waited for is not a host that left: its last NIC takes its rows along, and bgpd says the
    // same of it as of one that died.
    lab.admin("nic delete blue/web/a1 --wait");
    let since = Instant::now();
    lab.eventually("c2 has no row to c1", || {
        let rows = lab.all_vtep_rows("c2");
        match rows.is_empty() {
            true => Ok(()),
            false => Err(format!("{rows:?}")),
        }
    });
    let took = since.elapsed();
    report("last NIC of an FRR host deleted", &format!("{took:?}"));
    assert!(took < Duration::from_secs(6), "{took:?}");
}

#[test]
fn an_agent_that_is_stopped_and_started_loses_no_ping_and_changes_nothing() {
    let lab = two_hosts();
    let before = dumps(&lab);
    let ping = Ping::start(&lab, "c1/a1", "10.4.1.12", EVERY);
    for _ in 0..rounds() {
        for host in ["c1", "c2"] {
            lab.sh(host, "vpc agent stop");
            lab.eventually("the agent has ended", || {
                let output = lab.try_sh(host, "vpc agent status");
                match output.status.success() {
                    true => Err(text_of(&output)),
                    false => Ok(()),
                }
            });
            start_ended(&lab, host);
            settled(&lab);
            let status = lab.json(host, "vpc -o json agent status");
            assert_eq!(status["actions"], 0, "{status}");
        }
    }
    let result = ping.stop();
    report(
        "stopped agents",
        &format!("{} rounds, {result:?}", rounds()),
    );
    assert_eq!((result.lost(), result.duplicates), (0, 0), "{result:?}");
    assert_same(&lab, &before);
}

/// Starts an agent that was told to end: its socket goes a little before its process.
fn start_ended(lab: &Lab, host: &str) {
    lab.eventually("the agent's process has ended", || {
        let output = vpc()
            .args(["lab", "start", "--name", lab.name(), host, "agent"])
            .output();
        let output = output.expect("the vpc binary can be started");
        match output.status.success() {
            true => Ok(()),
            false => Err(text_of(&output)),
        }
    });
}

#[test]
fn hosts_work_on_without_the_server_and_start_from_disk() {
    let lab = two_hosts();
    lab.admin("nic create blue/web/b1 --host c1 --attach netns:b1 --ip 10.4.1.21 --wait");
    lab.reaches("c2/a2", "10.4.1.21");
    settled(&lab);
    let other = lab.dump("c2");
    let ping = Ping::start(&lab, "c1/a1", "10.4.1.12", EVERY);
    let port = port_of(&lab, "c1", "b1");
    lab.kill("m1", "server");
    // Drift is repaired, with the agent of before and with one that has only its disk.
    lab.sh("c1", &format!("ip link set {port} down"));
    lab.eventually("the port is up again", || up(&lab, "c1", &port));
    lab.kill("c1", "agent");
    lab.sh("c1", &format!("ip link del {port}"));
    lab.start("c1", "agent");
    lab.eventually("the port is made again", || up(&lab, "c1", &port));
    lab.reaches("c2/a2", "10.4.1.21");
    let status = lab.json("c1", "vpc -o json agent status");
    assert_eq!(status["server_connected"], false, "{status}");
    lab.start("m1", "server");
    settled(&lab);
    let result = ping.stop();
    report("server gone", &format!("{result:?}"));
    assert_eq!((result.lost(), result.duplicates), (0, 0), "{result:?}");
    let now = lab.dump("c2");
    assert_eq!(other, now, "{}", difference(&other, &now));
    lab.admin("nic create blue/web/b2 --host c2 --attach netns:b2 --ip 10.4.1.22 --wait");
    lab.reaches("c1/b1", "10.4.1.22");
}

/// The name of the port of the NIC in a namespace.
fn port_of(lab: &Lab, host: &str, name: &str) -> String {
    let nics = lab.admin(&format!("nic list --host {host}"));
    let nic = nics
        .as_array()
        .into_iter()
        .flatten()
        .find(|nic| nic["name"] == name)
        .unwrap_or_else(|| panic!("no NIC {name} in {nics}"));
    format!("n-{}", nic["id"].as_str().expect("ids are text"))
}

fn up(lab: &Lab, host: &str, port: &str) -> Result<(), String> {
    let output = lab.try_sh(host, &format!("ip -br link show {port}"));
    let text = text_of(&output);
    match output.status.success() && text.contains("LOWER_UP") {
        true => Ok(()),
        false => Err(text),
    }
}

#[test]
fn kills_while_nics_come_and_go_leave_nothing_half_made() {
    let lab = two_hosts();
    let mut random = Random::new("kills under changes");
    let stop = AtomicBool::new(false);
    let made = std::thread::scope(|scope| {
        let changes = scope.spawn(|| lab.with_admin(|client| churn(client, &stop)));
        for _ in 0..rounds() {
            for victims in [
                &[("c1", "agent")][..],
                &[("m1", "server")],
                &[("c2", "agent"), ("m1", "server")],
            ] {
                random.moment(Duration::from_millis(700));
                for (host, daemon) in victims {
                    lab.kill(host, daemon);
                }
                random.moment(Duration::from_millis(300));
                for (host, daemon) in victims {
                    lab.start(host, daemon);
                }
            }
        }
        settled(&lab);
        stop.store(true, Ordering::Release);
        changes.join().expect("the changes go through")
    });
    settled(&lab);
    let listed = lab.with_admin(|mut client| async move {
        all_nics(&mut client, api::v1::Filter::default(), 7).await
    });
    let names = listed.iter().map(name_of).collect::<BTreeSet<_>>();
    let mut wanted = made.there;
    wanted.extend(["a1", "a2"].map(str::to_owned));
    assert_eq!(names, wanted, "what was accepted is what there is");
    report(
        "kills under changes",
        &format!(
            "{} kills, {} creates, {} deletes, {} NICs stay",
            4 * rounds(),
            made.creates,
            made.deletes,
            names.len()
        ),
    );
    for host in ["c1", "c2"] {
        lab.eventually(&format!("{host} has exactly the NICs of the API"), || {
            kernel_has(&lab, host, &listed)
        });
    }
    for nic in listed.iter().filter(|nic| nic.host_name == "c2") {
        lab.reaches("c1/a1", &nic.addresses[0]);
    }
}

/// What the changes came to.
#[derive(Default)]
struct Made {
    creates: u32,
    deletes: u32,
    there: BTreeSet<String>,
}

fn name_of(nic: &api::v1::Nic) -> String {
    nic.name.clone()
}

/// Makes and deletes NICs on two hosts until told to stop. A call that failed is made again, as a
/// program would: creates by their request id, deletes until there is nothing.
async fn churn(mut client: Client, stop: &AtomicBool) -> Made {
    let mut made = Made::default();
    let mut number = 0;
    while !stop.load(Ordering::Acquire) {
        number += 1;
        let name = format!("x{number}");
        let request = api::v1::CreateNicRequest {
            request_id: format!("churn-{name}"),
            subnet: Some(path("blue/web")),
            name: name.clone(),
            host: Some(path(["c1", "c2"][number % 2])),
            attachment: Some(netns(&name)),
            ..Default::default()
        };
        while let Err(status) = client.create_nic(request.clone()).await {
            retry(&status).await;
        }
        made.creates += 1;
        made.there.insert(name);
        if made.there.len() < 6 {
            continue;
        }
        let name = made.there.pop_first().expect("there are six");
        let request = api::v1::DeleteRequest {
            object: Some(path(&format!("blue/web/{name}"))),
            resource_version: 0,
        };
        while let Err(status) = client.delete_nic(request.clone()).await {
            if status.code() == api::tonic::Code::NotFound {
                break;
            }
            retry(&status).await;
        }
        made.deletes += 1;
    }
    made
}

fn netns(name: &str) -> api::v1::Attachment {
    let netns = api::v1::attachment::Netns {
        netns: name.to_owned(),
        device: String::new(),
    };
    api::v1::Attachment {
        kind: Some(api::v1::attachment::Kind::Netns(netns)),
    }
}

/// Only a server that is away is a reason to try again.
async fn retry(status: &api::tonic::Status) {
    use api::tonic::Code;
    let away = matches!(
        status.code(),
        Code::Unavailable | Code::Unknown | Code::Cancelled
    );
    assert!(away, "{status:?}");
    tokio::task::spawn_blocking(|| std::thread::park_timeout(Duration::from_millis(20)))
        .await
        .expect("it does not panic");
}

/// Ports, guards and namespaces of a host are those of the NICs that the API lists for it.
fn kernel_has(lab: &Lab, host: &str, listed: &[api::v1::Nic]) -> Result<(), String> {
    let wanted: BTreeMap<String, String> = listed
        .iter()
        .filter(|nic| nic.host_name == host)
        .map(|nic| (format!("n-{}", nic.id), name_of(nic)))
        .collect();
    let links = lab.json(host, "ip -j link");
    let ports: BTreeSet<String> = links
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|link| link["ifname"].as_str())
        .filter(|name| name.starts_with("n-"))
        .map(str::to_owned)
        .collect();
    let rules = lab.rules(host);
    let guarded: BTreeSet<String> = rules
        .split(|c: char| !c.is_ascii_alphanumeric() && c != '-')
        .filter(|word| word.starts_with("n-") && word.len() == 12)
        .map(str::to_owned)
        .collect();
    let spaces = lab.sh(host, "ls /run/netns");
    let spaces: BTreeSet<&str> = spaces.split_whitespace().collect();
    let names: BTreeSet<&str> = wanted.values().map(String::as_str).collect();
    let keys: BTreeSet<String> = wanted.keys().cloned().collect();
    match ports == keys && guarded == keys && spaces == names {
        true => Ok(()),
        false => Err(format!(
            "wanted {wanted:?}\nports {ports:?}\nguards {guarded:?}\nnamespaces {spaces:?}"
        )),
    }
}

#[test]
fn a_lab_up_that_is_killed_in_the_middle_goes_down_without_a_trace() {
    let mut random = Random::new("killed lab up");
    let before = Machine::now();
    // Points are told by what `lab up` says on its way; then a random time goes by.
    let points = ["", "hosts:", "underlay", "server on", "agents:", "hosts up"];
    for round in 0..rounds().div_ceil(3) {
        for (number, point) in points.iter().enumerate() {
            let name = format!("k{}-{round}-{number}", std::process::id());
            let mut up = vpc()
                .args(["lab", "up", "--name", &name])
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .expect("the vpc binary can be started");
            if !point.is_empty() {
                let mut said = BufReader::new(up.stderr.take().expect("it is piped"));
                let mut line = String::new();
                while !line.contains(point) {
                    line.clear();
                    let read = said.read_line(&mut line).expect("it says text");
                    assert!(read > 0, "lab up ended before {point:?}");
                }
            }
            random.moment(Duration::from_millis(150));
            let pid = i32::try_from(up.id()).expect("pids are small");
            kill(Pid::from_raw(pid), Signal::SIGKILL).expect("it is our child");
            up.wait().expect("it is our child");
            let inside = namespaces_of(&name);
            let down = vpc().args(["lab", "down", "--name", &name]).output();
            let down = down.expect("the vpc binary can be started");
            assert!(down.status.success(), "after {point:?}: {}", text_of(&down));
            assert!(!fs::exists(format!("/run/vpc-lab/{name}")).expect("root may look"));
            let what = format!("nothing of {name}, killed after {point:?}");
            testkit::eventually(&what, LIMIT, || {
                gone(&name, &inside).and_then(|()| before.adds_nothing())
            });
        }
    }
}

/// Namespaces of the hosts that a lab has so far, as `/proc/PID/ns` names them.
fn namespaces_of(name: &str) -> BTreeSet<String> {
    let text = fs::read_to_string(format!("/run/vpc-lab/{name}/lab.json")).unwrap_or_default();
    let state: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    let own: BTreeSet<String> = namespaces("self").collect();
    let hosts = state["hosts"].as_array().cloned().unwrap_or_default();
    hosts
        .iter()
        .filter_map(|host| host["holder"]["pid"].as_u64())
        .flat_map(|pid| namespaces(&pid.to_string()).collect::<Vec<_>>())
        .filter(|namespace| !own.contains(namespace))
        .collect()
}

fn namespaces(pid: &str) -> impl Iterator<Item = String> {
    ["net", "mnt", "pid"].into_iter().filter_map(move |kind| {
        let link = fs::read_link(format!("/proc/{pid}/ns/{kind}")).ok()?;
        Some(link.to_string_lossy().into_owned())
    })
}

/// No process names the lab or is in one of its namespaces.
fn gone(name: &str, inside: &BTreeSet<String>) -> Result<(), String> {
    let mut left = String::new();
    for entry in fs::read_dir("/proc").expect("/proc is there").flatten() {
        let pid = entry.file_name().to_string_lossy().into_owned();
        if !pid.starts_with(|c: char| c.is_ascii_digit()) {
            continue;
        }
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let words: Vec<_> = command
            .split(|b| *b == 0)
            .map(String::from_utf8_lossy)
            .collect();
        if words.iter().any(|word| word == name) || namespaces(&pid).any(|ns| inside.contains(&ns))
        {
            left.push_str(&format!("process {pid}: {}\n", words.join(" ")));
        }
    }
    match left.is_empty() {
        true => Ok(()),
        false => Err(left),
    }
}

/// What a lab could leave on the machine itself.
struct Machine {
    mounts: BTreeSet<String>,
    links: BTreeSet<String>,
    namespaces: BTreeSet<String>,
}

impl Machine {
    fn now() -> Self {
        let lines = |text: String| text.lines().map(str::to_owned).collect();
        let run = |arguments: &[&str]| {
            let output = std::process::Command::new("ip").args(arguments).output();
            let output = output.expect("ip is there");
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        let links = run(&["-br", "link"]);
        Self {
            mounts: lines(fs::read_to_string("/proc/mounts").expect("it is readable")),
            links: links
                .lines()
                .filter_map(|line| line.split(' ').next())
                .map(str::to_owned)
                .collect(),
            namespaces: lines(run(&["netns", "list"])),
        }
    }

    /// Nothing is there now that was not there before.
    fn adds_nothing(&self) -> Result<(), String> {
        let now = Self::now();
        let new: Vec<&String> = (now.mounts.difference(&self.mounts))
            .chain(now.links.difference(&self.links))
            .chain(now.namespaces.difference(&self.namespaces))
            .collect();
        match new.is_empty() {
            true => Ok(()),
            false => Err(format!("{new:?}")),
        }
    }
}
