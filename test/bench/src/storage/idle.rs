//! Many volumes that nobody uses.

use super::cluster::{Cluster, HOSTS};
use crate::figures::{Table, Target, progress};
use model::{DiskId, HostId, Name, Replica, StorageConfig, VolumeConfig, VolumeId, VolumeSize};
use serde_json::Value;
use std::net::IpAddr;
use std::thread;
use std::time::{Duration, Instant};

/// For how long it is looked at.
const LOOKED: Duration = Duration::from_secs(20);
/// Making that many takes its time: each is on three disks.
const MADE_WITHIN: Duration = Duration::from_secs(600);

/// Has the storage processes keep so many volumes, told directly: management is not what is measured.
pub(crate) fn measure(cluster: &Cluster, count: usize, table: &mut Table) {
    progress(&format!("{count} volumes of three replicas"));
    let lab = &cluster.lab;
    let wanted = wanted(cluster, count);
    for host in HOSTS {
        lab.stop(host, "agent");
    }
    let memory_before = HOSTS.map(|host| memory(cluster, host));
    let begin = Instant::now();
    for (host, wanted) in HOSTS.iter().zip(&wanted) {
        let file = cluster.dir.file(&format!("{host}.json"));
        let text = serde_json::to_string(wanted).expect("it has a JSON form");
        std::fs::write(&file, text).expect("there is room");
        lab.sh(host, &format!("vpc storage want {file}"));
    }
    testkit::eventually("all have leaders", MADE_WITHIN, || {
        let replicas = lab.json("m1", "vpc storage show -o json")["replicas"].clone();
        let led = |replica: &&Value| {
            replica["leader"].is_string() && replica["committed"].as_u64() > Some(0)
        };
        let led = replicas
            .as_object()
            .map_or(0, |replicas| replicas.values().filter(led).count());
        match led >= count {
            true => Ok(()),
            false => Err(format!("{led} have")),
        }
    });
    table.add(
        &format!("{count} volumes made and led, each"),
        (begin.elapsed().as_secs_f64() * 1e3 / count as f64, "ms"),
        None,
        Target::None,
    );
    // What is left of making them: checkpoints, commits that followers hear of.
    testkit::eventually("nothing is under way", MADE_WITHIN, || {
        let before = HOSTS.map(|host| cluster.counts(host).times("disk_syncs"));
        thread::park_timeout(Duration::from_secs(2));
        let after = HOSTS.map(|host| cluster.counts(host).times("disk_syncs"));
        match before == after {
            true => Ok(()),
            false => Err(format!("syncs: {before:?}, then {after:?}")),
        }
    });
    let look = || {
        HOSTS.map(|host| {
            let counts = cluster.counts(host);
            (
                ticks(cluster, host),
                counts.number("messages"),
                counts.number("frames"),
            )
        })
    };
    let before = look();
    let begin = Instant::now();
    thread::sleep(LOOKED);
    let after = look();
    let seconds = begin.elapsed().as_secs_f64();
    let most = |of: &dyn Fn(&(f64, f64, f64)) -> f64| {
        let each = after.iter().zip(&before);
        each.map(|(after, before)| of(after) - of(before))
            .fold(0.0, f64::max)
            / seconds
    };
    let name = |what: &str| format!("{count} idle volumes, a host: {what}, at most");
    // A tick is 10 ms.
    table.add(
        &name("processor"),
        (most(&|at| at.0), "%"),
        None,
        Target::None,
    );
    table.add(
        &name("messages"),
        (most(&|at| at.1), "/s"),
        None,
        Target::None,
    );
    table.add(
        &name("frames"),
        (most(&|at| at.2), "/s"),
        None,
        Target::None,
    );
    let memory = HOSTS
        .iter()
        .zip(memory_before)
        .map(|(host, before)| memory(cluster, host) - before)
        .fold(0.0, f64::max);
    table.add(&name("memory"), (memory, "MiB"), None, Target::None);
}

fn wanted(cluster: &Cluster, count: usize) -> [StorageConfig; 3] {
    let hosts = HOSTS.map(|host| {
        let lab = &cluster.lab;
        let known = lab.json(host, "vpc agent status -o json");
        let id = known["host_id"].as_str().map(str::to_owned);
        let status = lab.json(host, "vpc storage status -o json");
        let disk = status["disk"]["id"].as_str().map(str::to_owned);
        let found = lab.json(host, "ip -j -4 addr show dev eth0");
        let address = found[0]["addr_info"][0]["local"].as_str();
        let address: IpAddr = address
            .and_then(|text| text.parse().ok())
            .expect("an address");
        let id: HostId = id
            .and_then(|text| text.parse().ok())
            .expect("it has joined");
        let disk: DiskId = disk
            .and_then(|text| text.parse().ok())
            .expect("it has a disk");
        (id, disk, address)
    });
    let replicas: Vec<Replica> = (1..)
        .zip(hosts)
        .map(|(number, (host, disk, _))| Replica { number, host, disk })
        .collect();
    let volumes: Vec<VolumeConfig> = (0..count)
        .map(|number| VolumeConfig {
            id: VolumeId::from_random(0x1d1e << 32 | number as u64),
            name: format!("idle{number}").parse::<Name>().expect("a name"),
            size: VolumeSize::new(1 << 20).expect("a size"),
            replicas: replicas.clone(),
            founding: None,
            leaving: Vec::new(),
            numbered: replicas.len() as u64,
            recovery: None,
            attachment: None,
        })
        .collect();
    hosts.map(|(own, _, _)| StorageConfig {
        peers: hosts
            .iter()
            .filter(|(host, _, _)| *host != own)
            .map(|(host, _, address)| (*host, *address))
            .collect(),
        volumes: volumes.clone(),
        deleted: Default::default(),
    })
}

/// Of both kinds, in hundredths of a second.
fn ticks(cluster: &Cluster, host: &str) -> f64 {
    let stat = cluster
        .lab
        .sh(host, &format!("cat /proc/{}/stat", cluster.pid(host)));
    let after = stat.rsplit(") ").next().unwrap_or_default();
    let fields: Vec<f64> = after
        .split(' ')
        .map(|field| field.parse().unwrap_or_default())
        .collect();
    fields[11] + fields[12]
}

/// Resident, in MiB.
fn memory(cluster: &Cluster, host: &str) -> f64 {
    let status = cluster
        .lab
        .sh(host, &format!("cat /proc/{}/status", cluster.pid(host)));
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|rest| rest.split_whitespace().next());
    let kib: f64 = kib
        .and_then(|kib| kib.parse().ok())
        .expect("the kernel tells");
    kib / 1024.0
}
