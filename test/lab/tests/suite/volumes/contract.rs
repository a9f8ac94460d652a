//! What becomes of a volume when processes and hosts die, stop, or are cut off: clients under load all the while, and
//! what they saw is linearizable.

use super::{attach, create, kill_storage, up, wait_healthy};
use lab::Lab;
use lab::disk::{Clients, Summary, socket};
use std::env;
use std::process::Child;
use std::time::{Duration, Instant};

/// Requests that are waited for before and after each event.
const SOME: usize = 300;
/// A pause longer than this is an outage. How long they are is printed, and measured by `leaders_die_over_and_over` in `make soak`: a
/// machine that is busy with other tests says nothing of that.
pub(super) const GOES_ON: Duration = Duration::from_secs(10);

/// The host's storage is gone, and its agent, which would start it again.
pub(super) fn storage_off(lab: &Lab, host: &str) {
    lab.kill(host, "agent");
    kill_storage(lab, host);
}

pub(super) fn storage_on(lab: &Lab, host: &str) {
    lab.start(host, "agent");
    lab.eventually("the storage process runs", || {
        let status = lab.try_sh(host, "vpc storage status");
        let ended = status.status.success();
        ended.then_some(()).ok_or_else(|| lab::text_of(&status))
    });
}

/// Clients of a new volume that is attached to a host, with some requests done.
pub(super) fn clients(lab: &Lab, host: &str) -> Clients {
    create(lab);
    let uri = attach(lab, host);
    let clients = Clients::start(socket(lab, host, &uri));
    clients.wait_done(Instant::now(), SOME);
    clients
}

/// Attaches elsewhere, and has the clients go there.
pub(super) fn move_to(lab: &Lab, clients: &Clients, host: &str) {
    let uri = attach(lab, host);
    clients.go(socket(lab, host, &uri));
}

#[expect(clippy::print_stderr, reason = "figures, for who looks at them")]
pub(super) fn tell(event: &str, gap: Duration, summary: &Summary) {
    eprintln!("{event}: longest without an answer {gap:?}; {summary:?}");
}

/// fio beside the clients, on blocks of its own; it reads again what it wrote.
fn verified(lab: &Lab, host: &str) -> Child {
    let uri = lab.admin("volume show data")["uri"].clone();
    let uri = uri.as_str().expect("it is served");
    let line = format!(
        "cd /run && fio --name=load --ioengine=nbd '--uri={uri}' --rw=randwrite --bs=4k --iodepth=4 --offset=16m \
         --size=4m --loops=3 --verify=crc32c --verify_backlog=64 > /run/fio.log 2>&1"
    );
    lab.spawn(host, &["sh", "-c", &line])
}

fn verified_all(lab: &Lab, host: &str, mut load: Child) {
    let status = load.wait().expect("it was started");
    assert!(status.success(), "{}", lab.sh(host, "cat /run/fio.log"));
}

fn leader(lab: &Lab) -> String {
    lab.eventually("it has a leader", || {
        let shown = lab.admin("volume show data");
        let mut replicas = shown["replicas"].as_array().into_iter().flatten();
        let leader = replicas.find(|replica| replica["role"] == "leader");
        leader
            .and_then(|leader| leader["host_name"].as_str())
            .map(str::to_owned)
            .ok_or_else(|| shown.to_string())
    })
}

#[test]
fn a_follower_dies_and_nobody_notices() {
    let lab = up();
    let clients = clients(&lab, "c1");
    let load = verified(&lab, "c1");
    let died = Instant::now();
    storage_off(&lab, "c2");
    clients.wait_done(Instant::now(), SOME);
    storage_on(&lab, "c2");
    clients.wait_done(Instant::now(), SOME);
    verified_all(&lab, "c1", load);
    let gap = clients.longest_gap(died);
    let summary = clients.finish();
    tell("a follower died", gap, &summary);
    assert!(summary.failures.is_empty(), "{summary:?}");
    assert!(gap < GOES_ON, "{gap:?}");
    wait_healthy(&lab);
}

#[test]
fn the_leader_dies_with_its_endpoint() {
    let lab = up();
    let clients = clients(&lab, "c1");
    let died = Instant::now();
    storage_off(&lab, "c1");
    move_to(&lab, &clients, "c2");
    clients.wait_done(Instant::now(), SOME);
    let gap = clients.longest_gap(died);
    storage_on(&lab, "c1");
    clients.wait_done(Instant::now(), SOME);
    tell("the leader died", gap, &clients.finish());
    assert!(gap < GOES_ON, "{gap:?}");
    wait_healthy(&lab);
}

#[test]
fn the_leader_dies_away_from_its_clients() {
    let lab = Lab::up_with(&["--hosts", "m1,c1,c2,c3"]);
    let made = create(&lab);
    let replicas = made["replicas"].as_array().expect("it has replicas");
    let has = |host: &&str| replicas.iter().any(|replica| replica["host_name"] == *host);
    let hosts = ["m1", "c1", "c2", "c3"];
    let apart = hosts.iter().find(|host| !has(host));
    let apart = apart.expect("three of four hosts have a replica");
    let uri = attach(&lab, apart);
    let clients = Clients::start(socket(&lab, apart, &uri));
    clients.wait_done(Instant::now(), SOME);
    let load = verified(&lab, apart);
    let leader = leader(&lab);
    let died = Instant::now();
    storage_off(&lab, &leader);
    clients.wait_done(Instant::now(), SOME);
    let gap = clients.longest_gap(died);
    storage_on(&lab, &leader);
    clients.wait_done(Instant::now(), SOME);
    verified_all(&lab, apart, load);
    let summary = clients.finish();
    tell("the leader died elsewhere", gap, &summary);
    assert!(summary.failures.is_empty(), "{summary:?}");
    assert!(gap < GOES_ON, "{gap:?}");
    wait_healthy(&lab);
}

#[test]
fn all_processes_die_at_once() {
    let lab = up();
    let clients = clients(&lab, "c1");
    let died = Instant::now();
    for host in ["m1", "c1", "c2"] {
        kill_storage(&lab, host);
    }
    clients.wait_done(Instant::now(), SOME);
    let gap = clients.longest_gap(died);
    tell("all died", gap, &clients.finish());
    wait_healthy(&lab);
}

#[test]
fn two_hosts_are_lost_and_it_waits_for_one_of_them() {
    let lab = up();
    let clients = clients(&lab, "c1");
    storage_off(&lab, "c2");
    storage_off(&lab, "m1");
    lab.eventually("it is said that it is down", || {
        let shown = lab.admin("volume show data");
        (shown["state"] == "down")
            .then_some(())
            .ok_or_else(|| shown.to_string())
    });
    let lost = Instant::now();
    storage_on(&lab, "m1");
    clients.wait_done(lost, SOME);
    storage_on(&lab, "c2");
    tell(
        "two were lost",
        clients.longest_gap(lost),
        &clients.finish(),
    );
    wait_healthy(&lab);
}

/// Drops what the storage processes of two hosts say to each other, as far as `rule` matches.
fn cut(lab: &Lab, host: &str, rules: &[&str]) {
    let mut line = "nft add table inet cut; nft 'add chain inet cut in { type filter hook input priority 0; }'; \
                    nft 'add chain inet cut out { type filter hook output priority 0; }'"
        .to_owned();
    for rule in rules {
        line.push_str(&format!("; nft add rule inet cut {rule} drop"));
    }
    lab.sh(host, &line);
}

fn mend(lab: &Lab, host: &str) {
    lab.sh(host, "nft delete table inet cut");
}

const ALL: [&str; 4] = [
    "in tcp sport 7445",
    "in tcp dport 7445",
    "out tcp sport 7445",
    "out tcp dport 7445",
];
const IN: [&str; 2] = ["in tcp sport 7445", "in tcp dport 7445"];

#[test]
fn an_endpoint_that_is_cut_off_answers_nothing_old() {
    for (way, rules) in [("whole", &ALL[..]), ("one way", &IN[..])] {
        let lab = up();
        let mut clients = clients(&lab, "c1");
        let uri = lab.admin("volume show data")["uri"].clone();
        let before = socket(&lab, "c1", uri.as_str().expect("it is served"));
        clients.watch(before);
        let began = Instant::now();
        cut(&lab, "c1", rules);
        move_to(&lab, &clients, "c2");
        clients.wait_done(Instant::now(), SOME);
        let gap = clients.longest_gap(began);
        mend(&lab, "c1");
        clients.wait_done(Instant::now(), SOME);
        tell(&format!("cut off, {way}"), gap, &clients.finish());
        wait_healthy(&lab);
    }
}

#[test]
fn a_link_that_comes_and_goes_moves_the_leader_little() {
    let lab = up();
    let clients = clients(&lab, "c1");
    let term = |lab: &Lab| {
        let shown = lab.admin("volume show data");
        let replicas = shown["replicas"].as_array().into_iter().flatten();
        replicas
            .filter_map(|replica| replica["term"].as_u64())
            .max()
            .unwrap_or_default()
    };
    let before = term(&lab);
    let began = Instant::now();
    for _ in 0..8 {
        cut(&lab, "c2", &ALL);
        clients.wait_done(Instant::now(), 50);
        mend(&lab, "c2");
        clients.wait_done(Instant::now(), 50);
    }
    let gap = clients.longest_gap(began);
    let summary = clients.finish();
    tell("a link came and went", gap, &summary);
    assert!(summary.failures.is_empty(), "{summary:?}");
    wait_healthy(&lab);
    assert!(term(&lab) <= before + 1, "{} after {before}", term(&lab));
}

#[test]
fn a_process_that_stands_still_for_half_a_minute_says_nothing_old() {
    let lab = up();
    let mut clients = clients(&lab, "c1");
    let uri = lab.admin("volume show data")["uri"].clone();
    let before = socket(&lab, "c1", uri.as_str().expect("it is served"));
    clients.watch(before);
    let pid = lab.json("c1", "vpc storage status -o json")["pid"].clone();
    let stopped = Instant::now();
    lab.sh("c1", &format!("kill -STOP {pid}"));
    move_to(&lab, &clients, "c2");
    clients.wait_done(Instant::now(), SOME);
    let gap = clients.longest_gap(stopped);
    lab.eventually("half a minute is over", || {
        let over = stopped.elapsed() > Duration::from_secs(30);
        over.then_some(()).ok_or_else(String::new)
    });
    lab.sh("c1", &format!("kill -CONT {pid}"));
    clients.wait_done(Instant::now(), SOME);
    tell("stood still", gap, &clients.finish());
    wait_healthy(&lab);
}

#[test]
fn a_host_that_lost_its_disk_has_no_vote_in_its_old_name() {
    let lab = up();
    let clients = clients(&lab, "c1");
    // It would have another replica made in its stead, within a second or two.
    lab.kill("m1", "server");
    storage_off(&lab, "c2");
    lab.sh("c2", "rm -r /var/lib/vpc/storage");
    storage_on(&lab, "c2");
    clients.wait_done(Instant::now(), SOME);
    // Of the three that have a vote two are gone now, whatever the third has.
    storage_off(&lab, "m1");
    let alone = Instant::now();
    lab.eventually("nothing is done any more", || {
        let gap = Instant::now() - clients.last_done();
        (gap > Duration::from_secs(3))
            .then_some(())
            .ok_or_else(|| format!("{gap:?}"))
    });
    storage_on(&lab, "m1");
    clients.wait_done(alone, SOME);
    lab.start("m1", "server");
    tell(
        "a disk was lost",
        clients.longest_gap(alone),
        &clients.finish(),
    );
    wait_healthy(&lab);
}

/// With `VPC_SOAK` so often that there is a 99th percentile.
#[test]
fn leaders_die_over_and_over() {
    let rounds = match env::var_os("VPC_SOAK") {
        Some(_) => 50,
        None => 2,
    };
    let lab = up();
    let clients = clients(&lab, "c1");
    let mut gaps = Vec::new();
    let mut at = "c1";
    for _ in 0..rounds {
        let next = if at == "c1" { "c2" } else { "c1" };
        let died = Instant::now();
        storage_off(&lab, at);
        move_to(&lab, &clients, next);
        clients.wait_done(Instant::now(), 20);
        gaps.push(clients.longest_gap(died));
        storage_on(&lab, at);
        clients.wait_done(Instant::now(), SOME);
        // Two of three have to be there the next time.
        lab.eventually("the other is back", || {
            let shown = lab.admin("volume show data");
            (shown["state"] == "healthy")
                .then_some(())
                .ok_or_else(|| shown.to_string())
        });
        at = next;
    }
    gaps.sort();
    let (half, most) = (gaps[gaps.len() / 2], gaps[gaps.len() - 1]);
    let nearly = gaps[(gaps.len() * 99).div_ceil(100) - 1];
    tell(
        &format!("{rounds} leaders died: half {half:?}, 99 of 100 {nearly:?}"),
        most,
        &clients.finish(),
    );
    assert!(nearly < Duration::from_secs(5), "{gaps:?}");
    wait_healthy(&lab);
}
