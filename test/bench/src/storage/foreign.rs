//! Servers of others, on a file beside our disks.

use super::cluster::Cluster;
use lab::text_of;
use std::process::Child;

/// Where they run.
pub(crate) const HOST: &str = "m1";

/// A server that runs; it ends when this is dropped.
pub(crate) struct Foreign {
    pub(crate) name: &'static str,
    /// fio's words for it.
    pub(crate) target: String,
    /// What makes writes to it durable, in fio's words.
    pub(crate) durable: &'static str,
    process: Child,
}

impl Drop for Foreign {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

/// Servers of one file. qemu-nbd goes past the page cache, as we do; each of its writes is followed by a flush, or
/// it syncs each by itself (`writethrough`). nbdkit uses the page cache.
pub(crate) fn all(cluster: &Cluster, file: &str, gib: u64) -> Vec<Foreign> {
    let qemu = |cache: &str| {
        let line = format!("exec qemu-nbd -f raw -x '' -t -e 8 {cache} -k SOCKET {file}");
        line
    };
    let none = qemu("--cache=none --aio=io_uring");
    let through = qemu("--cache=directsync --aio=io_uring");
    let nbdkit = format!("exec nbdkit -f -t 8 -U SOCKET file {file}");
    [
        ("qemu-nbd, flushed", none, "--fsync=1"),
        ("qemu-nbd, directsync", through, ""),
        ("nbdkit, flushed", nbdkit, "--fsync=1"),
    ]
    .into_iter()
    .enumerate()
    .map(|(number, (name, line, durable))| {
        let socket = format!("/run/foreign{number}.sock");
        let line = line.replace("SOCKET", &socket);
        let process = cluster.lab.spawn(
            HOST,
            &[
                "sh",
                "-c",
                &format!("{line} >/run/foreign{number}.log 2>&1"),
            ],
        );
        let uri = format!("nbd+unix:///?socket={socket}");
        cluster.lab.eventually(&format!("{name} serves"), || {
            let info = cluster.lab.try_sh(HOST, &format!("nbdinfo --size '{uri}'"));
            match info.status.success() {
                true => Ok(()),
                false => Err(text_of(&info)),
            }
        });
        Foreign {
            name,
            target: format!("--ioengine=nbd '--uri={uri}' --size={gib}g"),
            durable,
            process,
        }
    })
    .collect()
}
