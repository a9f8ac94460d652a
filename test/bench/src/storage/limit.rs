//! What the machine's disk can do at all: writes past the page cache, each synced, by as many as there are replicas.

use super::cluster::Cluster;
use super::fio::{Load, Rate, fill};
use super::{Served, foreign::HOST};
use crate::figures::{Table, Target, progress};

const SECONDS: u64 = 3;
const REPLICAS: u32 = 3;

/// A write is one sync deep and a message there and back: the replicas sync side by side. As many as are under way
/// go with one sync.
pub(crate) fn beside(cluster: &Cluster, rates: &[(Load, f64)], table: &mut Table) {
    let rtt = rtt(cluster);
    table.add(
        "message there and back between hosts",
        (rtt, "us"),
        None,
        Target::None,
    );
    for (load, rate) in rates.iter().filter(|(load, _)| load.is_write()) {
        let raw = raw(cluster, load.kib * load.depth);
        progress(&format!(
            "{} KiB with a sync, {REPLICAS} at once: {:.0} us, p99 {:.0} us",
            load.kib * load.depth,
            raw.mean,
            raw.p99
        ));
        let batches = 1e6 / (raw.mean + rtt);
        let most = load.figure(Rate {
            iops: batches * f64::from(load.depth),
            ..raw
        });
        table.add(
            &format!("{}, three replicas beside what the disk can do", load.name),
            (*rate, load.unit()),
            Some(most),
            Target::RatioLeast(0.7),
        );
    }
}

/// Files that are there already, one for each writer.
fn raw(cluster: &Cluster, kib: u32) -> Rate {
    let files: Vec<String> = (0..REPLICAS)
        .map(|number| cluster.dir.file(&format!("limit{number}")))
        .collect();
    for file in &files {
        if !std::path::Path::new(file).exists() {
            let target = format!("--ioengine=io_uring --direct=1 --filename={file} --size=256m");
            fill(&cluster.lab, HOST, &target);
        }
    }
    let load = Load {
        name: "",
        kind: "write",
        kib,
        depth: 1,
    };
    let target = format!(
        "--ioengine=io_uring --direct=1 --sync=dsync --numjobs={REPLICAS} --size=256m \
         --filename_format='{}/limit$jobnum'",
        cluster.dir.0.display()
    );
    let served = Served {
        name: "",
        host: HOST,
        target: &target,
        durable: "",
    };
    served.run(cluster, load, SECONDS)
}

fn rtt(cluster: &Cluster) -> f64 {
    let found = cluster.lab.json("c1", "ip -j -4 addr show dev eth0");
    let address = found[0]["addr_info"][0]["local"].as_str();
    let address = address.expect("it has an address on the underlay");
    let text = cluster
        .lab
        .sh("m1", &format!("ping -n -q -i 0.002 -c 500 {address}"));
    // | rtt min/avg/max/mdev = 0.016/0.021/0.150/0.008 ms |
    let mean = text
        .rsplit(" = ")
        .next()
        .and_then(|times| times.split('/').nth(1));
    let mean: f64 = mean.and_then(|mean| mean.parse().ok()).expect("ping tells");
    mean * 1000.0
}
