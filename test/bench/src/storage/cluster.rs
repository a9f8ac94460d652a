//! A lab whose hosts have disks on the machine's own file system, as large as is needed.

use super::fio::fill;
use lab::Lab;
use serde_json::Value;
use std::fs;
use std::path::PathBuf;

pub(crate) const HOSTS: [&str; 3] = ["m1", "c1", "c2"];

/// The lab, and its files. The lab goes first, or the files would be in use.
pub(crate) struct Cluster {
    pub(crate) lab: Lab,
    pub(crate) dir: Folder,
}

/// A folder on the machine's disk, removed at the end.
pub(crate) struct Folder(pub(crate) PathBuf);

impl Folder {
    fn new() -> Self {
        let path = PathBuf::from(format!("/var/tmp/vpc-bench-{}", std::process::id()));
        fs::create_dir(&path).expect("there is room in /var/tmp");
        Self(path)
    }

    pub(crate) fn file(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

/// What a storage process counted and timed: `figures` of `vpc storage status`.
#[derive(Debug, Clone)]
pub(crate) struct Counts(Value);

impl Counts {
    pub(crate) fn number(&self, name: &str) -> f64 {
        self.0[name].as_f64().unwrap_or_default()
    }

    /// How often something was timed.
    pub(crate) fn times(&self, histogram: &str) -> f64 {
        let buckets = self.0[histogram]["buckets"].as_array();
        buckets
            .into_iter()
            .flatten()
            .filter_map(Value::as_f64)
            .sum()
    }
}

impl Cluster {
    /// Three hosts; their disks have so many GiB.
    pub(crate) fn up(gib: u64) -> Self {
        let lab = Lab::up_with(&["--hosts", &HOSTS.join(",")]);
        let dir = Folder::new();
        let cluster = Self { lab, dir };
        for host in HOSTS {
            cluster.replace_disk(host, gib);
        }
        cluster.lab.eventually("all disks are told of", || {
            let probe = cluster
                .lab
                .try_sh("m1", "vpc volume create probe --size 512MiB --wait");
            match probe.status.success() {
                true => Ok(()),
                false => Err(lab::text_of(&probe)),
            }
        });
        cluster.lab.sh("m1", "vpc volume delete probe");
        cluster
    }

    /// The lab's own are small, and in memory.
    fn replace_disk(&self, host: &str, gib: u64) {
        let lab = &self.lab;
        lab.stop(host, "agent");
        lab.sh(host, "vpc storage stop");
        let path = self.dir.file(host);
        let line = format!(
            "sed -i '/^storage_size/d' /etc/vpc/agent.toml && \
             printf 'storage_path = \"{path}\"\\nstorage_size = \"{gib}GiB\"\\n' >> /etc/vpc/agent.toml && rm -rf /var/lib/vpc/storage"
        );
        lab.sh(host, &line);
        lab.start(host, "agent");
        lab.eventually("the disk is made", || {
            let output = lab.try_sh(host, "vpc storage status -o json");
            let status: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
            match status["disk"]["path"] == path.as_str() {
                true => Ok(()),
                false => Err(lab::text_of(&output)),
            }
        });
    }

    /// Makes a volume, attaches it where its first replica is, and fills it: the host, and fio's words for it.
    pub(crate) fn volume(&self, name: &str, gib: u64, replicas: u32) -> (String, String) {
        let line = format!("volume create {name} --size {gib}GiB --replicas {replicas} --wait");
        let made = self.lab.admin(&line);
        let host = made["replicas"][0]["host_name"].as_str();
        let host = host.expect("it has a replica").to_owned();
        let shown = self
            .lab
            .admin(&format!("volume attach {name} --host {host} --wait"));
        let uri = shown["uri"].as_str().expect("it is served");
        let target = format!("--ioengine=nbd '--uri={uri}' --size={gib}g");
        fill(&self.lab, &host, &target);
        (host, target)
    }

    pub(crate) fn counts(&self, host: &str) -> Counts {
        let status = self.lab.json(host, "vpc storage status -o json");
        Counts(status["figures"].clone())
    }

    pub(crate) fn pid(&self, host: &str) -> u64 {
        let status = self.lab.json(host, "vpc storage status -o json");
        status["pid"].as_u64().expect("it has one")
    }
}
