//! Ceph with three OSDs on the same file system, by fio's rbd engine.

use super::cluster::Cluster;
use super::fio::fill;
use super::{LOADS, Served, VOLUME_GIB, in_turns};
use crate::Effort;
use crate::figures::{Table, Target, progress};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

const HOST: &str = "m1";
const SCRIPT: &str = include_str!("ceph.sh");
const UP_WITHIN: Duration = Duration::from_secs(240);
/// Of each OSD's file.
const GIB: u64 = 6;

struct Ceph(Child);

impl Drop for Ceph {
    fn drop(&mut self) {
        // It ends with its input.
        drop(self.0.stdin.take());
        drop(self.0.wait());
    }
}

/// Ours beside Ceph: whatever it answers is durable on all three, ours on two of three.
pub(crate) fn beside(cluster: &Cluster, ours: &Served<'_>, effort: Effort, table: &mut Table) {
    if !["/usr/bin/ceph-osd", "/usr/bin/rbd"]
        .iter()
        .all(|program| Path::new(program).exists())
    {
        return table.note("beside Ceph", "not there: scripts/setup.sh --ceph");
    }
    progress("Ceph: a monitor, a manager, three OSDs");
    let dir = cluster.dir.file("ceph");
    let mut command = cluster.lab.command(
        HOST,
        &["bash", "-c", SCRIPT, "ceph.sh", &dir, &GIB.to_string()],
    );
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut ceph = Ceph(command.spawn().expect("the vpc binary can be started"));
    testkit::eventually("Ceph serves", UP_WITHIN, || {
        if Path::new(&dir).join("ready").exists() {
            return Ok(());
        }
        match ceph.0.try_wait() {
            Ok(Some(status)) => panic!("Ceph ended, {status}; its logs are in {dir}"),
            Ok(None) | Err(_) => Err("it does not yet".to_owned()),
        }
    });
    let target =
        format!("--ioengine=rbd --clientname=admin --pool=rbd --rbdname=img --size={VOLUME_GIB}g");
    fill(&cluster.lab, HOST, &target);
    let theirs = Served {
        name: "Ceph",
        host: HOST,
        target: &target,
        durable: "",
    };
    for load in LOADS {
        let least = match (load.kind, load.kib) {
            ("randwrite", _) => Target::RatioLeast(5.0),
            ("read" | "write", _) => Target::RatioLeast(2.0),
            _ => Target::None,
        };
        let served = [Served { ..*ours }, Served { ..theirs }];
        in_turns(cluster, load, &served, effort, table, |_| least);
    }
}
