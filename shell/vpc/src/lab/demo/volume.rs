//! A volume: written by a foreign client, its leader killed, read back on another host.

use super::super::cluster::Inside;
use super::super::state::LabHost;
use crate::failure::{Failure, Outcome};
use serde::Serialize;
use serde_json::Value;

/// Of the demo.
const VOLUME: &str = "data";
/// A majority has to be left when a host is gone.
const REPLICAS: usize = 3;
const WRITTEN_MIB: u32 = 16;

/// What became of a volume.
#[derive(Debug, Serialize)]
pub(super) struct Disk {
    volume: &'static str,
    written_mib: u32,
    /// Where the client wrote.
    written_on: String,
    /// Whose storage process was killed: the leader's.
    killed_on: String,
    /// Where it was read back.
    read_on: String,
    /// What was read is what was written.
    equal: bool,
}

impl Disk {
    pub(super) fn wrong(&self) -> Option<String> {
        (!self.equal).then(|| {
            format!(
                "volume {VOLUME}: what was read on {} is not what was written on {}",
                self.read_on, self.written_on
            )
        })
    }

    pub(super) fn line(&self) -> String {
        format!(
            "Volume {VOLUME}, {REPLICAS} replicas: {WRITTEN_MIB} MiB written by nbdcopy on {}; the leader's storage process on {} killed; read back on {}: {}",
            self.written_on,
            self.killed_on,
            self.read_on,
            if self.equal {
                "the same"
            } else {
                "NOT the same"
            }
        )
    }
}

/// Hosts with a disk.
fn hosts<'a>(inside: &Inside<'a>) -> Vec<&'a str> {
    let hosts = inside
        .state
        .agents()
        .filter(|host| LabHost::is_storage(host));
    hosts.map(|host| host.name.as_str()).collect()
}

/// True if there are hosts enough, and the client is installed (package libnbd-bin).
pub(super) fn can(inside: &Inside<'_>) -> bool {
    let hosts = hosts(inside);
    let client = || inside.sh(hosts[0], "command -v nbdcopy");
    hosts.len() >= REPLICAS && client().is_ok()
}

pub(super) fn look(inside: &Inside<'_>) -> Outcome<Disk> {
    let management = &inside.state.management()?.name;
    let hosts = hosts(inside);
    // The last ones carry workloads.
    let (written_on, read_on) = (hosts[hosts.len() - 2], hosts[hosts.len() - 1]);
    let known = inside.json(management, &["volume", "list"])?;
    let known = known.as_array().map(Vec::as_slice).unwrap_or_default();
    if !known.iter().any(|volume| volume["name"] == VOLUME) {
        let create = ["volume", "create", VOLUME, "--size", "32MiB", "--wait"];
        inside.vpc(management, &create)?;
    }
    let uri = attach(inside, written_on)?;
    let write = format!(
        "head -c {WRITTEN_MIB}M /dev/urandom > /run/demo.img && nbdcopy /run/demo.img '{uri}' && sha256sum < /run/demo.img; rm -f /run/demo.img"
    );
    let written = inside.sh(written_on, &write)?;
    let shown = inside.json(management, &["volume", "show", VOLUME])?;
    let leader = leader(&shown).unwrap_or(written_on).to_owned();
    let status = inside.json(&leader, &["storage", "status"])?;
    let pid = status["pid"].as_u64().unwrap_or_default();
    inside.sh(&leader, &format!("kill -9 {pid}"))?;
    let uri = attach(inside, read_on)?;
    let read = format!("nbdcopy '{uri}' - | head -c {WRITTEN_MIB}M | sha256sum");
    let read = inside.sh(read_on, &read)?;
    inside.vpc(management, &["volume", "detach", VOLUME, "--wait"])?;
    Ok(Disk {
        volume: VOLUME,
        written_mib: WRITTEN_MIB,
        written_on: written_on.to_owned(),
        killed_on: leader,
        read_on: read_on.to_owned(),
        equal: written == read && !written.trim().is_empty(),
    })
}

fn attach(inside: &Inside<'_>, host: &str) -> Outcome<String> {
    let management = &inside.state.management()?.name;
    let attach = ["volume", "attach", VOLUME, "--host", host, "--wait"];
    let shown = inside.json(management, &attach)?;
    match shown["uri"].as_str() {
        Some(uri) => Ok(uri.to_owned()),
        None => Err(Failure::new(format!(
            "volume {VOLUME} is attached to {host}, and there is no uri: {shown}"
        ))),
    }
}

fn leader(shown: &Value) -> Option<&str> {
    let mut replicas = shown["replicas"].as_array()?.iter();
    replicas.find(|replica| replica["role"] == "leader")?["host_name"].as_str()
}
