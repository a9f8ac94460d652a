//! File systems of the kernel's on a volume: by the kernel's own NBD client where it has one, else by a loop device on a
//! file that QEMU's storage daemon makes of the volume. What was synced is there after the leader died, and fsck
//! finds nothing.

use super::contract::{storage_off, storage_on};
use super::{attach, create, kill_storage, wait_healthy};
use lab::{Lab, text_of};
use std::process::Child;

/// A volume as a block device of a host.
struct Device<'a> {
    lab: &'a Lab,
    host: &'a str,
    path: String,
    daemon: Option<Child>,
}

const FILE: &str = "/run/volume";

impl<'a> Device<'a> {
    fn new(lab: &'a Lab, host: &'a str, uri: &str) -> Self {
        let socket = uri.split_once("socket=").expect("a socket").1;
        if std::path::Path::new("/sys/block/nbd0").exists() {
            let path = attach_kernel(lab, host, socket);
            return Self {
                lab,
                host,
                path,
                daemon: None,
            };
        }
        lab.sh(host, &format!("touch {FILE}"));
        let node = format!(
            "driver=nbd,node-name=volume,server.type=unix,server.path={socket},export=data,reconnect-delay=60"
        );
        let export = format!("type=fuse,id=file,node-name=volume,mountpoint={FILE},writable=on");
        let line = format!(
            "exec qemu-storage-daemon --blockdev '{node}' --export '{export}' >/run/daemon.log 2>&1"
        );
        let daemon = lab.spawn(host, &["sh", "-c", &line]);
        lab.eventually("the volume is a file", || {
            let size = lab.try_sh(host, &format!("test $(stat -c %s {FILE}) -gt 0"));
            let there = size.status.success();
            there
                .then_some(())
                .ok_or_else(|| lab.sh(host, "cat /run/daemon.log 2>&1 || true"))
        });
        let path = lab.sh(host, &format!("losetup -f --show -b 4096 {FILE}"));
        Self {
            lab,
            host,
            path: path.trim().to_owned(),
            daemon: Some(daemon),
        }
    }
}

/// The kernel's NBD devices are the machine's, not the lab's: the first that is free takes it.
fn attach_kernel(lab: &Lab, host: &str, socket: &str) -> String {
    let mut tried = String::new();
    for number in 0..16 {
        let path = format!("/dev/nbd{number}");
        let line = format!("nbd-client -unix {socket} {path} -N data -b 4096 -timeout 60");
        let outcome = lab.try_sh(host, &line);
        if outcome.status.success() {
            return path;
        }
        tried.push_str(&text_of(&outcome));
    }
    panic!("no NBD device takes the volume: {tried}")
}

impl Drop for Device<'_> {
    fn drop(&mut self) {
        let Self {
            lab, host, path, ..
        } = self;
        lab.try_sh(host, "umount /run/mnt");
        match &mut self.daemon {
            None => drop(lab.try_sh(host, &format!("nbd-client -d {path}"))),
            Some(daemon) => {
                // Loop devices are the machine's, not the lab's.
                lab.try_sh(host, &format!("losetup -d {path}; umount {FILE}"));
                drop(daemon.kill());
                drop(daemon.wait());
            }
        }
    }
}

/// Files of all sizes, each synced before its sum is noted.
const WRITE: &str = "cd /run/mnt && for n in $(seq FROM TO); do \
    head -c $((n % 100 * 777 + 1)) /dev/urandom > f$n && sync f$n && sha256sum f$n >> /run/sums; done";

fn write(lab: &Lab, host: &str, from: u32, to: u32) {
    let line = WRITE
        .replace("FROM", &from.to_string())
        .replace("TO", &to.to_string());
    lab.sh(host, &line);
}

fn outlives_the_leader(make: &str, check: &str) {
    let lab = Lab::up_with(&["--hosts", "m1,c1,c2,c3"]);
    let made = create(&lab);
    let replicas = made["replicas"].as_array().expect("it has replicas");
    let hosts: Vec<&str> = replicas
        .iter()
        .filter_map(|replica| replica["host_name"].as_str())
        .collect();
    let apart = ["c3", "c2", "c1", "m1"]
        .into_iter()
        .find(|host| !hosts.contains(host));
    let host = apart.expect("three of four hosts have a replica");
    let uri = attach(&lab, host);
    let device = Device::new(&lab, host, &uri);
    let path = &device.path;
    lab.sh(
        host,
        &format!("{make} {path} && mkdir /run/mnt && mount {path} /run/mnt"),
    );
    write(&lab, host, 1, 40);
    // Each replica's host in turn, so the leader is among them.
    for (number, replica) in (1..).zip(&hosts) {
        let load = WRITE
            .replace("FROM", &(number * 100).to_string())
            .replace("TO", &(number * 100 + 40).to_string());
        let load = lab.spawn(host, &["sh", "-c", &load]);
        storage_off(&lab, replica);
        let done = load.wait_with_output().expect("it was started");
        assert!(done.status.success(), "{}", text_of(&done));
        storage_on(&lab, replica);
        wait_healthy(&lab);
    }
    if device.daemon.is_some() {
        // The endpoint itself: QEMU's client connects again.
        kill_storage(&lab, host);
        write(&lab, host, 500, 520);
    }
    lab.sh(host, "umount /run/mnt");
    let checked = lab.try_sh(host, &format!("{check} {path}"));
    assert!(checked.status.success(), "{}", text_of(&checked));
    lab.sh(
        host,
        &format!("mount {path} /run/mnt && cd /run/mnt && sha256sum --quiet -c /run/sums"),
    );
}

#[test]
fn ext4_outlives_the_leader() {
    outlives_the_leader("mkfs.ext4 -q -b 4096", "e2fsck -fn");
}

#[test]
fn xfs_outlives_the_leader() {
    // It wants 300 MB and more of others.
    outlives_the_leader("mkfs.xfs -q --unsupported -s size=4096", "xfs_repair -n");
}
