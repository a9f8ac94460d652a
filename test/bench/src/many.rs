//! A cluster that is measured, and a thousand NICs on one of its hosts.

use crate::Effort;
use crate::figures::{Table, Target, median, progress};
use crate::inside::now;
use crate::latency;
use crate::remote::Remote;
use crate::wire::{Answer, Ask, NewNic, Spent, Usage};
use lab::Lab;
use std::fs;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

/// As in the baseline: NICs in 50 subnets, five in each of ten VPCs.
const VPCS: usize = 10;
const SUBNETS: usize = 5;
/// The number of namespaces stays the same for this long once the kernel is through with them.
const STILL: Duration = Duration::from_secs(1);

/// The lab, and who talks to it. The client goes first, or the lab would wait for it.
pub(crate) struct Cluster {
    pub(crate) client: Remote,
    pub(crate) lab: Lab,
}

impl Cluster {
    /// A server and two hosts; in each of 51 subnets a NIC on c1, so that there is a bridge and a
    /// tunnel as in the baseline, and in one a NIC on c2.
    pub(crate) fn up(effort: Effort, table: &mut Table) -> Self {
        progress("a lab: a server, two hosts");
        let lab = Lab::up_with(&["--hosts", "m1,c1,c2"]);
        let client = Remote::start(&lab, "m1", None);
        let cluster = Self { client, lab };
        let (agent, server) = (cluster.usage("c1", "agent"), cluster.usage("m1", "server"));
        memory(table, "agent, idle", agent);
        memory(table, "server, idle", server);

        progress("51 subnets with a NIC each");
        cluster
            .lab
            .admin("create lat --cidr 10.99.0.0/16 --cidr fd00:99::/32");
        cluster
            .lab
            .admin("subnet create lat/one --cidr 10.99.0.0/24 --cidr fd00:99::/64");
        for (host, netns, last) in [("c1", "mate1", 11), ("c2", "mate2", 12)] {
            cluster.lab.admin(&format!(
                "nic create lat/one/{netns} --host {host} --attach netns:{netns} \
                 --ip 10.99.0.{last} --wait"
            ));
        }
        if effort.nics > 0 {
            cluster.subnets();
        }
        cluster.lab.reaches("c1/mate1", "10.99.0.12");
        cluster
    }

    fn subnets(&self) {
        let mut line = String::from("set -e\n");
        for vpc in 0..VPCS {
            line.push_str(&format!(
                "vpc create v{vpc} --cidr 10.{vpc}.0.0/16 --cidr fd00:{vpc}::/32 >/dev/null\n"
            ));
            for subnet in 0..SUBNETS {
                line.push_str(&format!(
                    "vpc subnet create v{vpc}/s{subnet} --cidr 10.{vpc}.{subnet}.0/24 \
                     --cidr fd00:{vpc}:{subnet}::/64 >/dev/null\n\
                     vpc nic create v{vpc}/s{subnet}/first --host c1 \
                     --attach netns:first{vpc}-{subnet} >/dev/null\n"
                ));
            }
        }
        line.push_str("vpc nic create v9/s4/last --host c1 --attach netns:last --wait >/dev/null");
        self.lab.sh("m1", &line);
    }

    /// What a daemon uses.
    pub(crate) fn usage(&self, host: &str, daemon: &str) -> Usage {
        let mut inside = Remote::start(&self.lab, host, None);
        match inside.call(&Ask::Usage(daemon.to_owned())) {
            Answer::Usage(usage) => usage,
            other => panic!("another answer than asked for: {other:?}"),
        }
    }

    fn spent(&mut self, ask: &Ask) -> Spent {
        match self.client.call(ask) {
            Answer::Made(spent) => spent,
            other => panic!("another answer than asked for: {other:?}"),
        }
    }

    /// Deletes all NICs that the client made.
    pub(crate) fn clear(&mut self) -> Spent {
        self.spent(&Ask::Clear)
    }

    /// Milliseconds per NIC that the minimal program takes to make and to delete.
    pub(crate) fn minimal_nics(&self, count: usize) -> (f64, f64) {
        settle();
        let own = std::env::current_exe().expect("a program knows its own path");
        let program = own.with_file_name("examples").join("minimal_nics");
        let output = Command::new(&program).arg(count.to_string()).output();
        let output = output.unwrap_or_else(|error| {
            panic!(
                "{}: {error}: cargo build --release -p linux --examples",
                program.display()
            )
        });
        assert!(output.status.success(), "{}", lab::text_of(&output));
        let text = String::from_utf8_lossy(&output.stdout);
        let of = |what: &str| -> f64 {
            let line = text.lines().find_map(|line| line.strip_prefix(what));
            let number = line.and_then(|rest| rest.split_whitespace().next());
            number
                .and_then(|number| number.parse().ok())
                .unwrap_or_else(|| panic!("minimal_nics said: {text}"))
        };
        let (made, deleted) = (of("made"), of("deleted"));
        progress(&format!(
            "minimal netlink program, {count} NICs: {made:.2} ms each made, {deleted:.2} deleted"
        ));
        (made, deleted)
    }

    /// Ports of NICs on c1 that are up, by the kernel's word.
    fn ports(&self) -> usize {
        let links = self.lab.json("c1", "ip -j link show up");
        let links = links.as_array().expect("a list");
        let port = |link: &&serde_json::Value| {
            link["ifname"]
                .as_str()
                .is_some_and(|name| name.starts_with("n-"))
        };
        links.iter().filter(port).count()
    }
}

/// Waits until the kernel has taken apart the namespaces that were removed: it does so in the
/// background, for seconds if there are a thousand, and whatever comes next waits for its locks.
/// Neither side's figure has that in it.
pub(crate) fn settle() {
    let namespaces = || -> Option<u64> {
        let slabs = fs::read_to_string("/proc/slabinfo").ok()?;
        let line = slabs
            .lines()
            .find_map(|line| line.strip_prefix("net_namespace"))?;
        line.split_whitespace().next()?.parse().ok()
    };
    let started = Instant::now();
    let (mut seen, mut since) = (namespaces(), Instant::now());
    // Others may make and remove theirs meanwhile: not for ever.
    while since.elapsed() < STILL && started.elapsed() < STILL * 8 {
        thread::sleep(STILL / 10);
        let found = namespaces();
        if found != seen {
            (seen, since) = (found, Instant::now());
        }
    }
}

/// Milliseconds between two times.
pub(crate) fn ms(from: u64, to: u64) -> f64 {
    to.saturating_sub(from) as f64 / 1e6
}

fn memory(table: &mut Table, what: &str, usage: Usage) {
    let mib = usage.resident_kib as f64 / 1024.0;
    table.add(
        &format!("resident memory: {what}"),
        (mib, "MiB"),
        None,
        Target::None,
    );
}

/// Made, restarted over and deleted, several times, with the baseline in between.
pub(crate) fn measure(cluster: &mut Cluster, effort: Effort, table: &mut Table) {
    let count = effort.nics;
    let before = cluster.ports();
    let per_nic = |from, to| ms(from, to) / count as f64;
    let (mut made, mut deleted) = (Vec::new(), Vec::new());
    let (mut made_minimal, mut deleted_minimal) = (Vec::new(), Vec::new());
    let (mut restarts, mut dumps) = (Vec::new(), Vec::new());
    let mut restart_actions = 0;
    for round in 0..effort.rounds {
        progress(&format!(
            "round {} of {}: {count} NICs by the API",
            round + 1,
            effort.rounds
        ));
        let minimal = cluster.minimal_nics(count);
        made_minimal.push(minimal.0);
        deleted_minimal.push(minimal.1);

        settle();
        let used = Used::now(cluster);
        let spent = cluster.spent(&Ask::Fill((0..count).map(nic).collect()));
        made.push(per_nic(spent.sent, spent.applied));
        show("made", spent, &used, cluster, count);
        assert_eq!(cluster.ports(), before + count, "ports on c1");

        let (took, dumped, actions) = restart(cluster, count);
        restarts.push(took);
        dumps.push(dumped);
        restart_actions = restart_actions.max(actions);

        if round + 1 == effort.rounds {
            let (agent, server) = (cluster.usage("c1", "agent"), cluster.usage("m1", "server"));
            memory(table, &format!("agent, {count} NICs"), agent);
            memory(table, &format!("server, {count} NICs"), server);
        }
        settle();
        let used = Used::now(cluster);
        let spent = cluster.clear();
        deleted.push(per_nic(spent.sent, spent.applied));
        show("deleted", spent, &used, cluster, count);
        assert_eq!(cluster.ports(), before, "ports on c1");
    }
    let pairs = |ours: &[f64], minimal: &[f64]| -> Vec<f64> {
        ours.iter().zip(minimal).map(|(a, b)| a / b).collect()
    };
    let mut add = |figure: &str, ours: &[f64], minimal: &[f64], target| {
        table.add_ratio(
            figure,
            (median(ours), "ms"),
            Some(median(minimal)),
            Some(median(&pairs(ours, minimal))),
            target,
        );
    };
    let what = format!("{count} NICs");
    add(
        &format!("{what} made, per NIC"),
        &made,
        &made_minimal,
        Target::None,
    );
    add(
        &format!("{what} deleted, per NIC"),
        &deleted,
        &deleted_minimal,
        Target::None,
    );
    let sum = |a: &[f64], b: &[f64]| -> Vec<f64> { a.iter().zip(b).map(|(a, b)| a + b).collect() };
    add(
        &format!("{what} made and deleted, per NIC"),
        &sum(&made, &deleted),
        &sum(&made_minimal, &deleted_minimal),
        Target::RatioMost(1.5),
    );
    table.add(
        &format!("agent restart over {what}"),
        (median(&restarts), "ms"),
        Some(median(&dumps)),
        Target::Most(2000.0),
    );
    table.add(
        "writes to the kernel after the restart",
        (restart_actions as f64, "actions"),
        None,
        Target::Most(0.0),
    );

    progress(&format!("the same with {count} NICs on the host"));
    settle();
    cluster.spent(&Ask::Fill((0..count).map(nic).collect()));
    settle();
    let few = Effort {
        creates: effort.creates.min(50),
        ..effort
    };
    // Deletes the others as well.
    let note = format!(" beside {count}");
    latency::sequence(cluster, few, effort.creates, &note, None, table);
}

/// Kills the agent and starts it: milliseconds until it has nothing left to do, those that `ip`,
/// `bridge` and `nft` take to show the same state, and how often it wrote to the kernel.
fn restart(cluster: &Cluster, count: usize) -> (f64, f64, u64) {
    let dumping = now();
    let before = cluster.lab.dump("c1");
    let dumped = ms(dumping, now());
    let mut inside = Remote::start(&cluster.lab, "c1", None);
    cluster.lab.kill("c1", "agent");
    inside.ask(&Ask::Converged);
    let started = now();
    cluster.lab.start("c1", "agent");
    let Answer::Converged { at, actions, nics } = inside.answer() else {
        panic!("another answer than asked for");
    };
    assert!(nics as usize >= count, "{nics} NICs after the restart");
    let difference = lab::difference(&before, &cluster.lab.dump("c1"));
    assert_eq!(difference, "", "the restart changed the kernel");
    let took = ms(started, at);
    progress(&format!(
        "agent restarted: {took:.0} ms to converged, {actions} actions"
    ));
    (took, dumped, actions)
}

/// Processor time of the daemons up to a moment.
struct Used {
    agent: u64,
    server: u64,
}

impl Used {
    fn now(cluster: &Cluster) -> Self {
        Self {
            agent: cluster.usage("c1", "agent").cpu_ms,
            server: cluster.usage("m1", "server").cpu_ms,
        }
    }
}

fn show(what: &str, spent: Spent, before: &Used, cluster: &Cluster, count: usize) {
    let after = Used::now(cluster);
    let each = |ms: f64| ms / count as f64;
    progress(&format!(
        "{what}: answered after {:.0} ms, applied after {:.0} ms; {:.2} ms per NIC; processor time \
         per NIC: server {:.2} ms, agent {:.2} ms",
        ms(spent.sent, spent.answered),
        ms(spent.sent, spent.applied),
        each(ms(spent.sent, spent.applied)),
        each((after.server - before.server) as f64),
        each((after.agent - before.agent) as f64),
    ));
}

fn nic(number: usize) -> NewNic {
    let (vpc, subnet) = (number % VPCS, number / VPCS % SUBNETS);
    NewNic {
        subnet: format!("v{vpc}/s{subnet}"),
        name: format!("n{number}"),
        host: "c1".to_owned(),
        netns: format!("n{number}"),
        mac: String::new(),
        addresses: Vec::new(),
    }
}
