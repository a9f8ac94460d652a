//! What a lab is made of, on disk: enough to find and end all of it after any crash.
//!
//! `/run/vpc-lab/<name>/lab.json` is written before the thing it tells of can do anything: a
//! holder process waits for a word from `lab up`, which comes after its pid was written down, and
//! ends by itself if `lab up` dies first. Everything else (namespaces, links, mounts, daemons,
//! workloads) lives inside the holders' namespaces and ends with them.

use super::process::ProcessId;
use crate::failure::{Doing, Failure, Outcome};
use model::{SpeakerKind, Transport};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// Where labs are kept.
const ROOT: &str = "/run/vpc-lab";

/// A lab by its name, whether it is up or not.
#[derive(Debug, Clone)]
pub(crate) struct LabDir {
    name: String,
    path: PathBuf,
}

/// What `lab.json` holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LabState {
    /// The `lab up` that made it, to be ended first if it still runs.
    pub(crate) maker: ProcessId,
    /// False until `lab up` was through.
    pub(crate) complete: bool,
    /// The `vpc` binary that the lab runs.
    pub(crate) binary: PathBuf,
    /// MTU of the underlay.
    pub(crate) mtu: u32,
    /// Hosts, the underlay itself among them.
    pub(crate) hosts: Vec<LabHost>,
}

/// One set of namespaces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LabHost {
    /// Host name.
    pub(crate) name: String,
    /// What it is in the lab.
    pub(crate) kind: HostKind,
    /// Roles for `vpc host join`; empty for hosts without an agent.
    pub(crate) roles: Vec<String>,
    /// Its EVPN client.
    #[serde(default)]
    pub(crate) speaker: SpeakerKind,
    /// What carries its frames to other hosts.
    #[serde(default)]
    pub(crate) transport: Transport,
    /// On the underlay.
    pub(crate) underlay: Option<IpAddr>,
    /// On the outside network. A route host has none: its routers are there, the host is not.
    pub(crate) outside: Vec<IpAddr>,
    /// The process that keeps its namespaces, once there is one.
    pub(crate) holder: Option<ProcessId>,
}

/// What a set of namespaces stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum HostKind {
    /// The switches between hosts.
    Underlay,
    /// A host with an agent.
    Host,
    /// A machine on the outside network; knows nothing of us.
    Outside,
}

impl LabDir {
    /// Checks the name: it becomes a directory and part of a socket's path.
    pub(crate) fn new(name: &str) -> Outcome<Self> {
        match model::Name::new(name) {
            Ok(checked) if checked.as_str().len() <= 32 => Ok(Self {
                path: Path::new(ROOT).join(name),
                name: name.to_owned(),
            }),
            Ok(_) => Err(Failure::new(format!(
                "lab {name:?}: the name is longer than 32 characters"
            ))),
            Err(bad) => Err(Failure::new(bad.to_string())),
        }
    }

    /// All labs there are.
    pub(crate) fn all() -> Outcome<Vec<Self>> {
        let entries = match fs::read_dir(ROOT) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error).doing(|| format!("reading {ROOT}")),
        };
        let mut labs: Vec<Self> = entries
            .filter_map(|entry| Self::new(entry.ok()?.file_name().to_str()?).ok())
            .collect();
        labs.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(labs)
    }

    /// The lab's name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Its directory.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Where a host's holder listens.
    pub(crate) fn socket(&self, host: &str) -> PathBuf {
        self.path.join(format!("{host}.sock"))
    }

    /// Where a daemon's output goes.
    pub(crate) fn log(&self, host: &str, daemon: &str) -> PathBuf {
        self.path.join("log").join(format!("{host}-{daemon}.log"))
    }

    /// Makes the directory; refuses if there is one, because then a lab is up or half up.
    pub(crate) fn claim(&self) -> Outcome {
        let private = |path: &Path, parents| {
            fs::DirBuilder::new()
                .mode(0o700)
                .recursive(parents)
                .create(path)
        };
        private(Path::new(ROOT), true).doing(|| format!("making {ROOT}"))?;
        match private(&self.path, false) {
            Ok(()) => private(&self.path.join("log"), false)
                .doing(|| format!("making {}/log", self.path.display())),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(Failure::new(
                format!("lab {}: it is up already, or was not taken down", self.name),
            )
            .hint(format!(
                "see `vpc lab status{0}`; take it down with `vpc lab down{0}`",
                self.flag()
            ))),
            Err(error) => Err(error).doing(|| format!("making {}", self.path.display())),
        }
    }

    /// Reads what is there; none if the lab is not up, or died before it had anything.
    pub(crate) fn load(&self) -> Outcome<Option<LabState>> {
        let path = self.path.join("lab.json");
        match fs::read_to_string(&path) {
            Ok(text) => serde_json::from_str(&text)
                .map(Some)
                .doing(|| format!("reading {}", path.display())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).doing(|| format!("reading {}", path.display())),
        }
    }

    /// The lab's state, or a failure that says how to get one.
    pub(crate) fn loaded(&self) -> Outcome<LabState> {
        self.load()?.ok_or_else(|| {
            Failure::new(format!("lab {}: it is not up", self.name))
                .hint(format!("bring it up with `vpc lab up{}`", self.flag()))
        })
    }

    /// Replaces what is there in one step.
    pub(crate) fn save(&self, state: &LabState) -> Outcome {
        let (path, new) = (self.path.join("lab.json"), self.path.join("lab.json.new"));
        let text = serde_json::to_string_pretty(state).expect("the state has string keys only");
        fs::write(&new, text)
            .and_then(|()| fs::rename(&new, &path))
            .doing(|| format!("writing {}", path.display()))
    }

    /// Removes the directory and, with the last lab, the one above.
    pub(crate) fn remove(&self) -> Outcome {
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).doing(|| format!("removing {}", self.path.display()));
            }
            _ => {}
        }
        match fs::remove_dir(ROOT) {
            // Another lab is up.
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            done => done.doing(|| format!("removing {ROOT}")),
        }
    }

    /// What to add to a lab command so that it means this lab.
    pub(crate) fn flag(&self) -> String {
        match self.name.as_str() {
            super::DEFAULT_NAME => String::new(),
            name => format!(" --name {name}"),
        }
    }
}

impl LabState {
    /// A host by name.
    pub(crate) fn host(&self, name: &str) -> Outcome<&LabHost> {
        self.hosts
            .iter()
            .find(|host| host.name == name)
            .ok_or_else(|| {
                let names: Vec<&str> = self.hosts.iter().map(|host| host.name.as_str()).collect();
                Failure::new(format!("lab host {name:?}: there is none of this name"))
                    .hint(format!("the lab's hosts are {}", names.join(", ")))
            })
    }

    /// Hosts with an agent.
    pub(crate) fn agents(&self) -> impl Iterator<Item = &LabHost> {
        self.hosts.iter().filter(|host| host.kind == HostKind::Host)
    }

    /// The host with the server.
    pub(crate) fn management(&self) -> Outcome<&LabHost> {
        self.agents()
            .find(|host| host.roles.iter().any(|role| role == "management"))
            .ok_or_else(|| Failure::new("the lab has no management host"))
    }
}

impl LabHost {
    /// It carries routers.
    pub(crate) fn is_route(&self) -> bool {
        self.roles.iter().any(|role| role == "route")
    }

    /// It has a disk for replicas of volumes.
    pub(crate) fn is_storage(&self) -> bool {
        self.roles.iter().any(|role| role == "storage")
    }

    /// The living process that keeps its namespaces.
    pub(crate) fn living_holder(&self) -> Outcome<ProcessId> {
        self.holder
            .filter(|holder| holder.is_alive())
            .ok_or_else(|| {
                Failure::new(format!("lab host {}: it is not running", self.name))
                    .hint("take the lab down with `vpc lab down` and bring it up again")
            })
    }
}
