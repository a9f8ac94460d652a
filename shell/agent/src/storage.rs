//! The storage process of this host: started if there is something for it to do, told what to have, looked at.
//!
//! It goes on when the agent ends. Which version of it runs is the operator's to say (`vpc storage stop`): volumes
//! that are attached lose their connections when it ends.

use crate::kernel::chain;
use crate::view::View;
use api::v1;
use model::StorageConfig;
use sbs::{AttachmentState, Client, DiskOptions, Look, MemberLook, SbsError};
use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{info, warn};

/// Between looks, while nothing happens.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// While something is being attached or made: somebody may wait for it.
const LOOK_SOON: Duration = Duration::from_millis(100);
/// After a process was started, and before another one is.
const START_FIRST: Duration = Duration::from_millis(500);
const START_MOST: Duration = Duration::from_secs(30);
/// What the process writes, in the run directory.
const LOG_NAME: &str = "storage.log";

/// What it takes to have one.
pub(crate) struct Storage {
    pub(crate) run_dir: PathBuf,
    pub(crate) credential: PathBuf,
    pub(crate) underlay: IpAddr,
    pub(crate) disk: Option<DiskOptions>,
    pub(crate) view: watch::Receiver<Arc<View>>,
    /// The last process that was started here, until it ends.
    pub(crate) process: Option<JoinHandle<()>>,
}

/// How storage is.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Seen {
    pub(crate) report: v1::StorageReport,
    pub(crate) look: Arc<Look>,
}

/// Sees to it for as long as the agent lives.
pub(crate) fn start(storage: Storage) -> watch::Receiver<Option<Seen>> {
    let (seen, looked) = watch::channel(None);
    tokio::spawn(storage.run(seen));
    looked
}

impl Storage {
    async fn run(mut self, seen: watch::Sender<Option<Seen>>) {
        let mut told = None;
        let mut pause = START_FIRST;
        loop {
            let wanted = self.wanted();
            let wait = match self.turn(&wanted, &mut told).await {
                Ok(None) => LOOK_EVERY,
                Ok(Some(look)) => {
                    pause = START_FIRST;
                    let wait = match is_settled(&look, &wanted) {
                        true => LOOK_EVERY,
                        false => LOOK_SOON,
                    };
                    publish(&seen, &look);
                    wait
                }
                Err(error) => {
                    told = None;
                    if seen.send_replace(None).is_some() {
                        warn!(error = chain(&error), "The storage process does not answer");
                    }
                    if matches!(error, SbsError::Absent { .. }) {
                        self.see_to_process(pause).await;
                    }
                    let waited = pause;
                    pause = (pause * 2).min(START_MOST);
                    match self.is_there().await {
                        true => Duration::ZERO,
                        false => waited,
                    }
                }
            };
            tokio::select! {
                () = sleep(wait) => {}
                // Which volumes there are may have changed.
                changed = self.view.changed() => if changed.is_err() { return },
            }
        }
    }

    fn wanted(&mut self) -> StorageConfig {
        let view = self.view.borrow_and_update();
        let managed = view.managed.as_ref();
        managed.map_or_else(StorageConfig::default, |config| config.storage.clone())
    }

    /// None where there is nothing to do, and so no process.
    async fn turn(
        &self,
        wanted: &StorageConfig,
        told: &mut Option<(u32, StorageConfig)>,
    ) -> Result<Option<Look>, SbsError> {
        let mut client = match Client::connect(&self.run_dir).await {
            Err(SbsError::Absent { .. }) if self.disk.is_none() && wanted.is_empty() => {
                return Ok(None);
            }
            other => other?,
        };
        // Before the first configuration is here there is nothing that could be told.
        let known = self.view.borrow().managed.is_some();
        let now = (client.pid(), wanted.clone());
        if known && told.as_ref() != Some(&now) {
            client.want(wanted).await?;
            *told = Some(now);
        }
        client.look().await.map(Some)
    }

    async fn is_there(&self) -> bool {
        Client::connect(&self.run_dir).await.is_ok()
    }

    async fn wait_for_socket(&self, most: Duration) {
        let there = async {
            while !self.is_there().await {
                sleep(LOOK_SOON).await;
            }
        };
        // Who is not there by then is looked for again.
        drop(tokio::time::timeout(most, there).await);
    }

    /// One that does not answer yet, or no more, is waited for: another could not begin before it is gone.
    async fn see_to_process(&mut self, most: Duration) {
        let goes_on = self
            .process
            .as_ref()
            .is_some_and(|process| !process.is_finished());
        if !goes_on {
            match self.spawn() {
                Ok((pid, process)) => {
                    info!(pid, "A storage process is started");
                    self.process = Some(process);
                }
                Err(error) => warn!(%error, "No storage process is started"),
            }
        }
        self.wait_for_socket(most).await;
    }

    /// Starts the process, apart from ours: no signal to our group reaches it.
    fn spawn(&self) -> io::Result<(u32, JoinHandle<()>)> {
        let output = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(self.run_dir.join(LOG_NAME))?;
        let mut command = Command::new("/proc/self/exe");
        command
            .args(["storage", "run", "--run-dir"])
            .arg(&self.run_dir);
        command.arg("--host-credential").arg(&self.credential);
        command.arg("--underlay").arg(self.underlay.to_string());
        if let Some(disk) = &self.disk {
            command.arg("--disk").arg(&disk.path);
            if disk.bytes > 0 {
                command.arg("--disk-size").arg(disk.bytes.to_string());
            }
        }
        let child = command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .process_group(0)
            .spawn()?;
        let pid = child.id();
        Ok((pid, reap(child)?))
    }
}

/// Somebody has to be told when it ends, or it stays in the process table.
fn reap(mut child: Child) -> io::Result<JoinHandle<()>> {
    let wait = move || {
        let (pid, outcome) = (child.id(), child.wait());
        info!(pid, ?outcome, "A storage process ended");
    };
    let spawned = thread::Builder::new().name("storage".to_owned());
    spawned.spawn(wait)
}

/// All that is wanted is there, or cannot be.
fn is_settled(look: &Look, wanted: &StorageConfig) -> bool {
    let attached = |volume: &model::VolumeConfig| {
        volume.attachment.is_none()
            || look.attachments.get(&volume.id).is_some_and(|attachment| {
                Some(attachment.attachment) == volume.attachment
                    && attachment.state == AttachmentState::Attached
            })
    };
    wanted.volumes.iter().all(attached)
}

/// Tells whoever waits if something differs that is worth a report before its time.
fn publish(seen: &watch::Sender<Option<Seen>>, look: &Look) {
    let now = Seen {
        report: report(look),
        look: Arc::new(look.clone()),
    };
    seen.send_if_modified(|held| {
        let differs = held.as_ref().is_none_or(|held| words(held) != words(&now));
        *held = Some(now);
        differs
    });
}

/// Without what changes all the time.
fn words(seen: &Seen) -> v1::StorageReport {
    let mut report = seen.report.clone();
    report.disk_free_bytes = 0;
    for volume in &mut report.volumes {
        *volume = quiet(volume);
    }
    report
}

/// Without what changes all the time.
pub(crate) fn quiet(volume: &v1::VolumeReport) -> v1::VolumeReport {
    let mut volume = volume.clone();
    if let Some(replica) = &mut volume.replica {
        (replica.committed, replica.applied, replica.last) = (0, 0, 0);
        (replica.chunks_taken, replica.chunks_missing) = (0, 0);
        for member in &mut replica.members {
            member.matched = 0;
        }
        replica.digest.clear();
    }
    volume
}

fn member(member: &MemberLook) -> v1::MemberReport {
    v1::MemberReport {
        number: member.number,
        host_id: member.host.map_or(String::new(), |host| host.to_string()),
        there: member.there,
        votes: member.votes,
        wanted: member.wanted,
        matched: member.matched,
        behind: member.behind,
        differing_chunks: member.differs,
    }
}

fn report(look: &Look) -> v1::StorageReport {
    let disk = look.disk.as_ref();
    let volumes: BTreeSet<_> = (look.replicas.keys())
        .chain(look.attachments.keys())
        .chain(look.troubles.keys())
        .chain(&look.erased)
        .collect();
    let volume = |id: &model::VolumeId| v1::VolumeReport {
        volume_id: id.to_string(),
        replica: look.replicas.get(id).map(|replica| v1::ReplicaReport {
            role: replica.role.name().to_owned(),
            leader_host_id: replica
                .leader
                .map_or(String::new(), |host| host.to_string()),
            term: replica.term,
            committed: replica.committed,
            applied: replica.applied,
            digest: replica.digest.clone(),
            trouble: replica.failed.clone().unwrap_or_default(),
            last: replica.last,
            last_term: replica.last_term,
            partial: replica.partial,
            voters: replica.voters.clone(),
            epoch: replica.epoch,
            size_bytes: replica.bytes,
            chunks_taken: replica.catching_up.map_or(0, |(taken, _)| taken),
            chunks_missing: replica.catching_up.map_or(0, |(_, missing)| missing),
            damaged_entries: replica.damaged_entries,
            mended_blocks: replica.mended_blocks,
            lost_blocks: replica.lost_blocks,
            changing: replica.changing,
            members: replica.members.iter().map(member).collect(),
        }),
        attachment: look.attachments.get(id).map(|attachment| {
            let trouble = match &attachment.state {
                AttachmentState::Attaching { trouble } => trouble.clone(),
                AttachmentState::Attached | AttachmentState::Fenced => None,
            };
            v1::AttachmentReport {
                number: attachment.attachment.number,
                state: attachment.state.name().to_owned(),
                socket: attachment.socket.display().to_string(),
                tcp: attachment.tcp.clone().unwrap_or_default(),
                trouble: trouble.unwrap_or_default(),
                size_bytes: attachment.bytes,
            }
        }),
        trouble: look.troubles.get(id).cloned().unwrap_or_default(),
        erased: look.erased.contains(id),
    };
    v1::StorageReport {
        disk_id: disk.map_or(String::new(), |disk| disk.id.to_string()),
        disk_bytes: disk.map_or(0, |disk| disk.bytes),
        disk_free_bytes: disk.map_or(0, |disk| disk.free_bytes),
        disk_trouble: disk.and_then(|disk| disk.dead.clone()).unwrap_or_default(),
        volumes: volumes.into_iter().map(volume).collect(),
    }
}
