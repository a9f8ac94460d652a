//! `vpc storage`: the storage process of this host.

use super::logging;
use crate::block_on;
use crate::connect::{AgentAccess, HOST_CREDENTIAL, refused};
use crate::failure::{Doing, Failure, Outcome, with_causes};
use crate::options::Global;
use crate::output::{Format, Row, json, print};
use crate::views::some;
use api::v1;
use clap::{Args, Subcommand};
use model::{StorageConfig, VolumeSize};
use sbs::{AttachmentState, Client, DiskOptions, Histogram, Look, Options, SbsError};
use serde::Serialize;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// The storage process of this host.
#[derive(Debug, Subcommand)]
pub(crate) enum Storage {
    /// Run it until it is told to end; the agent does this on hosts with the role storage
    #[command(after_help = "Examples:
  vpc storage run --underlay 192.0.2.7 --disk /var/lib/vpc/storage/disk --disk-size 100GiB
  vpc storage run --underlay 192.0.2.7 --disk /dev/nvme1n1
  vpc storage run --underlay 192.0.2.7       no replicas here, only volumes of others")]
    Run(Run),
    /// How it is, and what it counted
    #[command(after_help = "Examples:\n  vpc storage status\n  vpc storage status -o json")]
    Status(Where),
    /// Replicas and attached volumes here, and the other hosts
    #[command(after_help = "Examples:\n  vpc storage show\n  vpc storage show -o json")]
    Show(Where),
    /// Volumes here as they change
    #[command(after_help = "Examples:\n  vpc storage watch\n  vpc storage watch -o json")]
    Watch {
        #[command(flatten)]
        agent: AgentAccess,
    },
    /// Have it have what a file says, instead of what the agent told it
    #[command(hide = true)]
    Want {
        #[command(flatten)]
        at: Where,
        /// JSON, as the agent tells it
        file: PathBuf,
    },
    /// End it; volumes that are attached here are gone until the agent starts it again
    #[command(after_help = "Examples:\n  vpc storage stop")]
    Stop(Where),
}

/// Where its socket is.
#[derive(Debug, Args)]
pub(crate) struct Where {
    /// The agent's run directory
    #[arg(
        long,
        value_name = "DIR",
        default_value = "/run/vpc",
        env = "VPC_AGENT_RUN_DIR",
        hide_env = true
    )]
    run_dir: PathBuf,
}

/// See [`Options`].
#[derive(Debug, Args)]
pub(crate) struct Run {
    #[command(flatten)]
    at: Where,
    /// Where it keeps what it was told
    #[arg(long, value_name = "DIR", default_value = "/var/lib/vpc/storage")]
    state_dir: PathBuf,
    /// What `vpc host join` wrote
    #[arg(long, value_name = "FILE", default_value = HOST_CREDENTIAL)]
    host_credential: PathBuf,
    /// Where other hosts reach this one
    #[arg(long, value_name = "ADDRESS")]
    underlay: IpAddr,
    /// A file, which is made if it is not there, or a block device
    #[arg(long, value_name = "PATH")]
    disk: Option<PathBuf>,
    /// The size of a file that is made
    #[arg(long, value_name = "SIZE", requires = "disk")]
    disk_size: Option<VolumeSize>,
    /// What to log, as RUST_LOG has it
    #[arg(long, value_name = "FILTER", default_value = "info")]
    log: String,
}

impl Storage {
    pub(crate) fn run(self, global: &Global) -> Outcome {
        match self {
            Self::Run(run) => run.run(),
            Self::Status(at) => status(&look(&at.run_dir)?, global),
            Self::Show(at) => show(&look(&at.run_dir)?, global),
            Self::Watch { agent } => block_on(watch(&agent, global)),
            Self::Want { at, file } => want(&at.run_dir, &file),
            Self::Stop(at) => block_on(async {
                let client = Client::connect(&at.run_dir).await.map_err(failure)?;
                client.stop().await.map_err(failure)
            }),
        }
    }
}

impl Run {
    fn run(self) -> Outcome {
        logging::start(&self.log)?;
        let bytes = self.disk_size.map_or(0, VolumeSize::bytes);
        let options = Options {
            run_dir: self.at.run_dir,
            state_dir: self.state_dir,
            credential: self.host_credential,
            underlay: self.underlay,
            disk: self.disk.map(|path| DiskOptions { path, bytes }),
        };
        sbs::run(&options).doing(|| "running the storage process".to_owned())
    }
}

/// A volume that changed, as JSON.
#[derive(Debug, Serialize)]
struct EventView {
    volume_id: Option<String>,
    /// Its replica here is gone, and it is not attached here.
    deleted: bool,
    /// All that there were at first were told.
    snapshot_complete: bool,
    /// Of the replica here: "leader", "follower" ...
    role: Option<String>,
    term: u64,
    /// "attached", "attaching", "fenced"
    attached: Option<String>,
    trouble: Option<String>,
}

impl From<v1::HostVolumeEvent> for EventView {
    fn from(event: v1::HostVolumeEvent) -> Self {
        let volume = event.volume;
        let replica = volume.as_ref().and_then(|volume| volume.replica.clone());
        let attached = volume.as_ref().and_then(|volume| volume.attachment.clone());
        Self {
            deleted: event.deleted,
            snapshot_complete: event.snapshot_complete,
            role: replica.as_ref().map(|replica| replica.role.clone()),
            term: replica.map_or(0, |replica| replica.term),
            attached: attached.map(|attached| attached.state),
            trouble: volume
                .as_ref()
                .and_then(|volume| some(volume.trouble.clone())),
            volume_id: volume.map(|volume| volume.volume_id),
        }
    }
}

async fn watch(agent: &AgentAccess, global: &Global) -> Outcome {
    let wrong = |status| refused("watching volumes", &status);
    let request = v1::WatchHostVolumesRequest {};
    let stream = agent.sbs().await?.watch_volumes(request).await;
    let mut stream = stream.map_err(wrong)?.into_inner();
    while let Some(event) = stream.message().await.map_err(wrong)? {
        let view = EventView::from(event);
        if global.output == Format::Table && view.volume_id.is_none() {
            continue;
        }
        global.output.event(&view, || {
            let volume = view.volume_id.as_deref().unwrap_or_default();
            if view.deleted {
                return format!("deleted   {volume}");
            }
            let role = view.role.as_deref().unwrap_or("-");
            let attached = view.attached.as_deref().unwrap_or("-");
            let trouble = view.trouble.as_deref().unwrap_or_default();
            format!("{role:<9} {volume} term {} {attached} {trouble}", view.term)
        })?;
    }
    Err(Failure::new("watching volumes: the agent ended the stream")
        .hint("`vpc agent status` says whether it runs"))
}

fn want(run_dir: &Path, file: &Path) -> Outcome {
    let text = std::fs::read(file).doing(|| format!("reading {}", file.display()))?;
    let wanted: StorageConfig =
        serde_json::from_slice(&text).doing(|| format!("reading {}", file.display()))?;
    block_on(async {
        let mut client = Client::connect(run_dir).await.map_err(failure)?;
        client.want(&wanted).await.map_err(failure)
    })
}

fn look(run_dir: &Path) -> Outcome<Look> {
    block_on(async {
        let mut client = Client::connect(run_dir).await.map_err(failure)?;
        client.look().await.map_err(failure)
    })
}

fn failure(error: SbsError) -> Failure {
    let is_absent = matches!(error, SbsError::Absent { .. });
    let failure = Failure::new(with_causes(&error));
    if is_absent {
        return failure.hint("one runs where the host has the role storage; this needs root");
    }
    failure
}

fn status(look: &Look, global: &Global) -> Outcome {
    if global.output == Format::Json {
        return json(look);
    }
    let figures = &look.figures;
    let times = |histogram: &Histogram| match histogram.count() {
        0 => "none".to_owned(),
        count => {
            let below = |percent| {
                let micros = histogram.below(percent).map_or(0, |time| time.as_micros());
                format!("{micros} us")
            };
            let mean = histogram.sum_micros / count;
            format!(
                "{count}, {mean} us each, half below {}, 99 of 100 below {}",
                below(50),
                below(99)
            )
        }
    };
    let commits = Histogram::sum(look.replicas.values().map(|replica| &replica.commits));
    let disk = look.disk.as_ref();
    let details = [
        ("process", look.pid.to_string()),
        (
            "disk",
            disk.map(|disk| disk.path.display().to_string())
                .unwrap_or_default(),
        ),
        (
            "free",
            disk.map(|disk| format!("{} of {} bytes", disk.free_bytes, disk.bytes))
                .unwrap_or_default(),
        ),
        (
            "failed",
            disk.and_then(|disk| disk.dead.clone()).unwrap_or_default(),
        ),
        ("replicas", look.replicas.len().to_string()),
        ("attached", look.attachments.len().to_string()),
        ("writes", times(&figures.writes)),
        ("reads", times(&figures.reads)),
        ("zeroes and trims", times(&figures.zeroes)),
        ("commits", times(&commits)),
        ("disk writes", times(&figures.disk_writes)),
        ("disk reads", times(&figures.disk_reads)),
        ("disk syncs", times(&figures.disk_syncs)),
        (
            "under way",
            format!(
                "{} requests, {} disk IO",
                figures.waiting_requests, figures.waiting_io
            ),
        ),
        ("failed requests", figures.failed_requests.to_string()),
        (
            "sent",
            format!("{} frames, {} messages", figures.frames, figures.messages),
        ),
    ];
    global.output.one(look, &details)
}

fn show(look: &Look, global: &Global) -> Outcome {
    if global.output == Format::Json {
        return json(look);
    }
    let replicas = look.replicas.iter().map(|(volume, replica)| ReplicaRow {
        volume: volume.to_string(),
        role: replica.role.name(),
        leader: replica
            .leader
            .map(|host| host.to_string())
            .unwrap_or_default(),
        term: replica.term,
        committed: replica.committed,
        applied: replica.applied,
        trouble: replica.failed.clone().unwrap_or_default(),
    });
    let replicas: Vec<_> = replicas.collect();
    global.output.many(&replicas)?;
    let attachments = look
        .attachments
        .iter()
        .map(|(volume, attachment)| AttachmentRow {
            volume: volume.to_string(),
            name: attachment.name.clone(),
            state: attachment.state.name(),
            socket: attachment.socket.display().to_string(),
            trouble: match &attachment.state {
                AttachmentState::Attaching { trouble } => trouble.clone().unwrap_or_default(),
                AttachmentState::Attached | AttachmentState::Fenced => String::new(),
            },
        });
    let attachments: Vec<_> = attachments.collect();
    if !attachments.is_empty() {
        print("")?;
        global.output.many(&attachments)?;
    }
    let peers = look.peers.iter().map(|(host, peer)| PeerRow {
        host: host.to_string(),
        address: peer.address.to_string(),
        connected: if peer.connected { "yes" } else { "no" },
        dropped_frames: peer.dropped_frames,
        trouble: peer.trouble.clone().unwrap_or_default(),
    });
    let peers: Vec<_> = peers.collect();
    if !peers.is_empty() {
        print("")?;
        global.output.many(&peers)?;
    }
    for (volume, trouble) in &look.troubles {
        print(&format!("volume {volume}: {trouble}"))?;
    }
    Ok(())
}

#[derive(Debug, Serialize)]
struct ReplicaRow {
    volume: String,
    role: &'static str,
    leader: String,
    term: u64,
    committed: u64,
    applied: u64,
    trouble: String,
}

impl Row for ReplicaRow {
    const COLUMNS: &'static [&'static str] = &[
        "volume",
        "replica",
        "leader",
        "term",
        "committed",
        "applied",
        "trouble",
    ];
    fn cells(&self) -> Vec<String> {
        vec![
            self.volume.clone(),
            self.role.to_owned(),
            self.leader.clone(),
            self.term.to_string(),
            self.committed.to_string(),
            self.applied.to_string(),
            self.trouble.clone(),
        ]
    }
}

#[derive(Debug, Serialize)]
struct AttachmentRow {
    volume: String,
    name: String,
    state: &'static str,
    socket: String,
    trouble: String,
}

impl Row for AttachmentRow {
    const COLUMNS: &'static [&'static str] = &["volume", "export", "state", "socket", "trouble"];
    fn cells(&self) -> Vec<String> {
        vec![
            self.volume.clone(),
            self.name.clone(),
            self.state.to_owned(),
            self.socket.clone(),
            self.trouble.clone(),
        ]
    }
}

#[derive(Debug, Serialize)]
struct PeerRow {
    host: String,
    address: String,
    connected: &'static str,
    dropped_frames: u64,
    trouble: String,
}

impl Row for PeerRow {
    const COLUMNS: &'static [&'static str] =
        &["host", "address", "reached", "frames dropped", "trouble"];
    fn cells(&self) -> Vec<String> {
        vec![
            self.host.clone(),
            self.address.clone(),
            self.connected.to_owned(),
            self.dropped_frames.to_string(),
            self.trouble.clone(),
        ]
    }
}
