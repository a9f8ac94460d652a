//! Disks that fail: a host's storage process whose calls meet `faults.c` first.

use crate::Lab;
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command};
use tempfile::TempDir;

const CONTROL: &str = "/run/faults";

/// A storage process that was started in place of the agent's, and can be told how its disk fails.
#[derive(Debug)]
pub struct FaultyStorage<'a> {
    lab: &'a Lab,
    host: &'a str,
    process: Child,
    _library: TempDir,
}

impl<'a> FaultyStorage<'a> {
    /// Takes the place of the one that runs. The agent starts anew, and finds this one.
    ///
    /// # Panics
    /// If there is no C compiler, or it does not start.
    pub fn start(lab: &'a Lab, host: &'a str) -> Self {
        let (folder, library) = library();
        let disk = lab.json(host, "vpc storage status -o json")["disk"]["path"].clone();
        let disk = disk.as_str().expect("the host has a disk").to_owned();
        let found = lab.json(host, "ip -j -4 addr show dev eth0");
        let address = found[0]["addr_info"][0]["local"].as_str();
        let address = address.expect("it has an address on the underlay");
        lab.kill(host, "agent");
        lab.sh(host, "vpc storage stop");
        let line = format!(
            "exec env LD_PRELOAD={} VPC_FAULTS={CONTROL} vpc storage run --underlay {address} --disk {disk} \
             > /run/faulty.log 2>&1",
            library.display()
        );
        let process = lab.spawn(host, &["sh", "-c", &line]);
        lab.eventually("the storage process runs", || {
            let status = lab.try_sh(host, "vpc storage status");
            let there = status.status.success();
            there
                .then_some(())
                .ok_or_else(|| lab.sh(host, "cat /run/faulty.log"))
        });
        lab.start(host, "agent");
        Self {
            lab,
            host,
            process,
            _library: folder,
        }
    }

    /// How the disk fails from now on, as `faults.c` has it; not at all, if empty.
    pub fn fail(&self, words: &str) {
        let line = format!("echo '{words}' > {CONTROL}.new && mv {CONTROL}.new {CONTROL}");
        self.lab.sh(self.host, &line);
    }

    /// What it logged.
    pub fn log(&self) -> String {
        self.lab.sh(self.host, "cat /run/faulty.log")
    }
}

impl Drop for FaultyStorage<'_> {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

fn library() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("there is room");
    let (source, library) = (
        folder.path().join("faults.c"),
        folder.path().join("faults.so"),
    );
    fs::write(&source, include_str!("faults.c")).expect("there is room");
    let built = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-o"])
        .args([&library, &source])
        .arg("-ldl")
        .output()
        .expect("a C compiler is there: scripts/setup.sh");
    assert!(built.status.success(), "{}", crate::text_of(&built));
    (folder, library)
}
