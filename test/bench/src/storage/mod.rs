//! Volumes beside other servers of blocks, beside Ceph, and beside what the machine's disk can do at all.

mod ceph;
mod cluster;
mod fio;
mod foreign;
mod idle;
mod limit;

use crate::Effort;
use crate::figures::{Table, Target, median, progress};
use cluster::{Cluster, Counts, HOSTS};
use fio::{Load, Rate, fill};

const fn load(name: &'static str, kind: &'static str, kib: u32, depth: u32) -> Load {
    Load {
        name,
        kind,
        kib,
        depth,
    }
}

const LOADS: [Load; 6] = [
    load("4 KiB random read, depth 1", "randread", 4, 1),
    load("4 KiB random read, depth 32", "randread", 4, 32),
    load("4 KiB random write, depth 1", "randwrite", 4, 1),
    load("4 KiB random write, depth 32", "randwrite", 4, 32),
    load("128 KiB sequential read, depth 8", "read", 128, 8),
    load("128 KiB sequential write, depth 8", "write", 128, 8),
];

/// What is written, in GiB, on disks of so many.
const VOLUME_GIB: u64 = 1;
const DISK_GIB: u64 = 8;
const SMALL_DISK_GIB: u64 = 4;

/// Somebody who serves blocks.
struct Served<'a> {
    name: &'a str,
    host: &'a str,
    target: &'a str,
    durable: &'a str,
}

/// Measures all of it.
pub(crate) fn measure(effort: Effort, quick: bool, table: &mut Table) {
    let gib = match quick {
        true => SMALL_DISK_GIB,
        false => DISK_GIB,
    };
    progress("a lab of three hosts with disks on this machine's own");
    let cluster = Cluster::up(gib);
    single(&cluster, effort, table);
    let (host, target) = cluster.volume("three", VOLUME_GIB, 3);
    let ours = Served {
        name: "three replicas",
        host: &host,
        target: &target,
        durable: "",
    };
    let rates = alone(&cluster, &ours, effort, table);
    limit::beside(&cluster, &rates, table);
    amplification(&cluster, &ours, effort, table);
    ceph::beside(&cluster, &ours, effort, table);
    cluster.lab.admin("volume detach three --wait");
    let count = if quick { 1_000 } else { 10_000 };
    idle::measure(&cluster, count, table);
}

/// One replica beside servers of a file.
fn single(cluster: &Cluster, effort: Effort, table: &mut Table) {
    let (host, target) = cluster.volume("single", VOLUME_GIB, 1);
    let file = cluster.dir.file("foreign");
    let raw = format!("--ioengine=io_uring --direct=1 --filename={file} --size={VOLUME_GIB}g");
    fill(&cluster.lab, foreign::HOST, &raw);
    let others = foreign::all(cluster, &file, VOLUME_GIB);
    let mut served = vec![Served {
        name: "one replica",
        host: &host,
        target: &target,
        durable: "",
    }];
    served.extend(others.iter().map(|other| Served {
        name: other.name,
        host: foreign::HOST,
        target: &other.target,
        durable: other.durable,
    }));
    for load in LOADS {
        in_turns(cluster, load, &served, effort, table, |name| {
            match (name, load.is_write()) {
                ("qemu-nbd, flushed", true) => Target::RatioLeast(1.5),
                ("qemu-nbd, flushed", false) => Target::RatioLeast(1.0),
                _ => Target::None,
            }
        });
    }
    drop(others);
    cluster.lab.admin("volume detach single --wait");
}

impl Served<'_> {
    fn run(&self, cluster: &Cluster, load: Load, seconds: u64) -> Rate {
        let durable = match load.is_write() {
            true => self.durable,
            false => "",
        };
        let target = format!("{} {durable}", self.target);
        load.run(&cluster.lab, self.host, &target, seconds)
    }
}

/// Rows of the first beside each of the others.
fn in_turns(
    cluster: &Cluster,
    load: Load,
    served: &[Served<'_>],
    effort: Effort,
    table: &mut Table,
    target: impl Fn(&str) -> Target,
) {
    let mut runs: Vec<Vec<f64>> = served.iter().map(|_| Vec::new()).collect();
    for round in 0..effort.rounds {
        for turn in 0..served.len() {
            let number = (round + turn) % served.len();
            let rate = served[number].run(cluster, load, effort.seconds);
            runs[number].push(load.figure(rate));
            progress(&format!(
                "{}, {}: {:.0} {}, mean {:.0} us, p99 {:.0} us",
                load.name,
                served[number].name,
                load.figure(rate),
                load.unit(),
                rate.mean,
                rate.p99
            ));
        }
    }
    for (number, one) in served.iter().enumerate().skip(1) {
        let pairs = runs[0].iter().zip(&runs[number]);
        let ratios: Vec<f64> = pairs.map(|(ours, theirs)| ours / theirs).collect();
        table.add_ratio(
            &format!("{}, {} beside {}", load.name, served[0].name, one.name),
            (median(&runs[0]), load.unit()),
            Some(median(&runs[number])),
            Some(median(&ratios)),
            target(one.name),
        );
    }
}

/// Figures by themselves, which others are compared with.
fn alone(
    cluster: &Cluster,
    ours: &Served<'_>,
    effort: Effort,
    table: &mut Table,
) -> Vec<(Load, f64)> {
    let mut rates = Vec::new();
    for load in LOADS {
        let runs: Vec<Rate> = (0..effort.rounds)
            .map(|_| ours.run(cluster, load, effort.seconds))
            .collect();
        let figures: Vec<f64> = runs.iter().map(|rate| load.figure(*rate)).collect();
        let p99: Vec<f64> = runs.iter().map(|rate| rate.p99 / 1e3).collect();
        let name = format!("{}, three replicas", load.name);
        table.add(&name, (median(&figures), load.unit()), None, Target::None);
        table.add(
            &format!("{name}, p99"),
            (median(&p99), "ms"),
            None,
            Target::None,
        );
        rates.push((load, median(&figures)));
    }
    rates
}

/// Syncs for each write, and bytes for each byte, on each replica.
fn amplification(cluster: &Cluster, ours: &Served<'_>, effort: Effort, table: &mut Table) {
    let lasting = [
        (
            load("4 KiB random write, depth 1", "randwrite", 4, 1),
            1.0,
            None,
        ),
        (
            load("4 KiB random write, depth 64", "randwrite", 4, 64),
            1.0 / 16.0,
            Some(2.1),
        ),
        (
            load("64 KiB write, depth 8", "write", 64, 8),
            1.0,
            Some(1.1),
        ),
    ];
    for (load, syncs, bytes) in lasting {
        let counts = || HOSTS.map(|host| cluster.counts(host));
        let before = counts();
        let rate = ours.run(cluster, load, effort.seconds.max(2) * 3);
        let after = counts();
        // What fio counts is without its ramp.
        let requests = after
            .iter()
            .zip(&before)
            .map(|(after, before)| after.times("writes") - before.times("writes"))
            .fold(rate.requests, f64::max);
        let each = |name: &dyn Fn(&Counts) -> f64| {
            let counts = after.iter().zip(&before);
            let most = counts.map(|(after, before)| name(after) - name(before));
            most.fold(0.0, f64::max) / requests
        };
        table.add(
            &format!("{}: syncs for each on a replica, at most", load.name),
            (each(&|counts| counts.times("disk_syncs")), ""),
            None,
            Target::Most(syncs),
        );
        let written = each(&|counts| {
            ["log_bytes", "extent_bytes", "map_bytes"]
                .map(|name| counts.number(name))
                .iter()
                .sum()
        });
        table.add(
            &format!("{}: bytes for each on a replica, at most", load.name),
            (written / (f64::from(load.kib) * 1024.0), ""),
            None,
            bytes.map_or(Target::None, Target::Most),
        );
    }
}
