//! Has what the process was told to have: replicas and attachments, over restarts too.

use crate::attachment::{Attachment, chain};
use crate::had::Had;
use crate::identity;
use crate::look::{DiskLook, Look};
use crate::owner::{Ended, Owner};
use crate::peers::Outgoing;
use blocks::{BLOCK_BYTES, EXTENT_BLOCKS};
use model::{DiskId, HostId, Recovery, Replica, StorageConfig, VolumeId, VolumeSize};
use replication::{BadMembers, Failure, Member, Members, Op, ReplicaId};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use storage_plan::{Have, Step, plan};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinError, JoinSet};
use tokio::time::interval;
use tracing::{info, warn};

/// What was told last, in the state directory.
const KEPT_NAME: &str = "storage.json";
/// When something could not be done.
const RETRY: Duration = Duration::from_secs(1);

/// What the steward is asked.
pub(crate) enum Ask {
    /// Have this from now on; answered when it is kept, and begun.
    Want(StorageConfig, oneshot::Sender<Result<(), String>>),
    Look(oneshot::Sender<Result<Look, Ended>>),
    /// End all attachments.
    End(oneshot::Sender<()>),
}

/// Why what was told before is not known.
#[derive(Debug, thiserror::Error)]
pub enum KeptError {
    /// The file is not readable.
    #[error("reading {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Not such a file.
    #[error("{path} cannot be understood: remove it, the agent will tell all again")]
    Format {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

/// What was told last, before this start.
pub(crate) fn kept(state_dir: &Path) -> Result<StorageConfig, KeptError> {
    let path = state_dir.join(KEPT_NAME);
    match std::fs::read(&path) {
        Ok(text) => {
            serde_json::from_slice(&text).map_err(|source| KeptError::Format { path, source })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(StorageConfig::default()),
        Err(source) => Err(KeptError::Read { path, source }),
    }
}

/// Who has it.
pub(crate) struct Steward {
    pub(crate) host: HostId,
    pub(crate) disk: Option<(DiskId, PathBuf)>,
    pub(crate) owner: Owner,
    pub(crate) outgoing: Outgoing,
    pub(crate) state_dir: PathBuf,
    /// Where volumes are served.
    pub(crate) sockets: PathBuf,
    pub(crate) wanted: StorageConfig,
    /// Somebody said so since this start. Until then nothing is attached or recovered: meanwhile it may be attached
    /// elsewhere and would be taken from there, or have gone on from another replica.
    pub(crate) told: bool,
    /// Of which volumes the disk had replicas.
    pub(crate) had: Had,
    pub(crate) attachments: BTreeMap<VolumeId, Attachment>,
    pub(crate) troubles: BTreeMap<VolumeId, String>,
    /// Replicas here are not as they should be.
    pub(crate) unsettled: bool,
    /// Volumes whose replicas were asked for something, until they answer.
    pub(crate) asking: JoinSet<(VolumeId, Result<(), String>)>,
    pub(crate) asked: BTreeSet<VolumeId>,
    /// What they answered, if they do not do it.
    pub(crate) refused: BTreeMap<VolumeId, String>,
}

impl Steward {
    /// Until it is told to end, or nobody asks any more.
    pub(crate) async fn run(mut self, mut asked: mpsc::Receiver<Ask>) -> Result<(), Ended> {
        self.apply().await?;
        // Not counted from the last look: who looks often would keep it from trying again.
        let mut again = interval(RETRY);
        loop {
            let ask = tokio::select! {
                ask = asked.recv() => ask,
                _ = again.tick(), if !self.troubles.is_empty() || self.unsettled => {
                    self.apply().await?;
                    continue;
                }
                Some(answered) = self.asking.join_next() => {
                    self.answered(answered);
                    continue;
                }
            };
            match ask {
                Some(Ask::Want(wanted, done)) => {
                    let kept = self.want(wanted).await?;
                    // Who asked may have gone.
                    drop(done.send(kept));
                }
                Some(Ask::Look(seen)) => drop(seen.send(self.look().await)),
                Some(Ask::End(done)) => {
                    self.end_all().await;
                    let _asker = done.send(());
                    return Ok(());
                }
                None => return Ok(()),
            }
        }
    }

    async fn want(&mut self, wanted: StorageConfig) -> Result<Result<(), String>, Ended> {
        if wanted != self.wanted {
            let path = self.state_dir.join(KEPT_NAME);
            let text = serde_json::to_vec(&wanted).expect("a configuration has a JSON form");
            if let Err(error) = api::write_private(&path, &text) {
                return Ok(Err(format!("keeping it in {}: {error}", path.display())));
            }
            info!(volumes = wanted.volumes.len(), "Told what to have");
            self.wanted = wanted;
        }
        self.told = true;
        self.apply().await?;
        Ok(Ok(()))
    }

    fn answered(&mut self, answered: Result<(VolumeId, Result<(), String>), JoinError>) {
        match answered {
            Ok((volume, outcome)) => {
                self.asked.remove(&volume);
                match outcome {
                    Ok(()) => self.refused.remove(&volume),
                    Err(why) => self.refused.insert(volume, why),
                };
            }
            Err(error) => {
                warn!(%error, "Asking a volume's replicas broke down");
                self.asked.clear();
            }
        }
    }

    /// Has the leader of a volume, which is here, do something; what it answers comes later.
    fn ask(&mut self, volume: VolumeId, doing: &'static str, op: Op) {
        if !self.asked.insert(volume) {
            return;
        }
        let (owner, hosts) = (self.owner.clone(), vec![identity::host(self.host)]);
        self.asking.spawn(async move {
            let outcome = owner.ask_once(identity::volume(volume), hosts, op).await;
            let outcome = match outcome {
                Ok(Ok(_)) => {
                    info!(%volume, "{doing}: done");
                    Ok(())
                }
                // Another one leads by now, and sees to it.
                Ok(Err(Failure::GaveUp | Failure::Busy)) | Err(Ended) => Ok(()),
                Ok(Err(failure)) => Err(format!("{doing}: {failure}")),
            };
            (volume, outcome)
        });
    }

    async fn apply(&mut self) -> Result<(), Ended> {
        self.outgoing.configure(&self.wanted.peers, &self.owner);
        let have = self.have().await?;
        let mut wanted = self.wanted.clone();
        if !self.told {
            for volume in &mut wanted.volumes {
                (volume.attachment, volume.recovery) = (None, None);
            }
        }
        let plan = plan(&wanted, &have);
        self.unsettled = plan.unsettled;
        let lacks = plan.lacks.into_iter();
        let mut troubles: BTreeMap<VolumeId, String> = lacks
            .map(|(volume, lack)| (volume, lack.to_string()))
            .collect();
        let mut made = Vec::new();
        for step in plan.steps {
            let (volume, done) = match step {
                Step::Detach { volume } => (volume, self.detach(volume).await),
                Step::Delete { volume } => (volume, self.delete(volume).await?),
                Step::Create {
                    volume,
                    size,
                    replicas,
                } => {
                    let created = self.create(volume, size, &replicas).await?;
                    made.extend(created.is_ok().then_some(volume));
                    (volume, created)
                }
                Step::Recover { volume, recovery } => {
                    (volume, self.recover(volume, recovery).await?)
                }
                Step::Grow { volume, size } => {
                    let blocks = size.bytes() / BLOCK_BYTES as u64;
                    self.ask(volume, "growing the volume", Op::Grow { blocks });
                    (volume, Ok(()))
                }
                Step::Change { volume, replicas } => match members(&replicas) {
                    Ok(members) => {
                        let config = wanted.volumes.iter().find(|it| it.id == volume);
                        let numbered = config.map_or(0, |it| it.numbered);
                        let number = change_number(numbered, replicas.len());
                        let change = Op::Change { number, members };
                        self.ask(volume, "changing the replicas", change);
                        (volume, Ok(()))
                    }
                    Err(error) => (volume, Err(error.to_string())),
                },
                Step::Adjust { volume, attached } => {
                    if let Some(attachment) = self.attachments.get_mut(&volume) {
                        attachment.adjust(attached);
                    }
                    (volume, Ok(()))
                }
                Step::Attach { volume, attached } => {
                    let owner = self.owner.clone();
                    let attachment = Attachment::start(volume, attached, &self.sockets, owner);
                    self.attachments.insert(volume, attachment);
                    (volume, Ok(()))
                }
            };
            if let Err(trouble) = done {
                troubles.insert(volume, trouble);
            }
        }
        // Once for all of them. Should the process end before, it notes at its next start what the disk has.
        self.note(made);
        self.refused.retain(|_, _| plan.unsettled);
        for (volume, why) in &self.refused {
            troubles.entry(*volume).or_insert_with(|| why.clone());
        }
        for (volume, trouble) in &troubles {
            if self.troubles.get(volume) != Some(trouble) {
                warn!(%volume, trouble, "A volume is not as it should be");
            }
        }
        self.troubles = troubles;
        Ok(())
    }

    async fn have(&mut self) -> Result<Have, Ended> {
        let seen = self.owner.look().await?;
        self.note(seen.have.keys().copied());
        let attached = self.attachments.iter();
        Ok(Have {
            host: self.host,
            disk: self.disk.as_ref().map(|(id, _)| *id),
            replicas: seen.have,
            had: self.had.volumes().clone(),
            attached: attached
                .map(|(volume, attachment)| (*volume, attachment.attached.clone()))
                .collect(),
        })
    }

    fn note(&mut self, there: impl IntoIterator<Item = VolumeId>) {
        if let Err(error) = self.had.note(there) {
            warn!(%error, dir = %self.state_dir.display(), "What replicas there are is not noted");
        }
    }

    async fn delete(&self, volume: VolumeId) -> Result<Result<(), String>, Ended> {
        let deleted = self.owner.delete(identity::volume(volume)).await?;
        if deleted.is_ok() {
            info!(%volume, "A replica is deleted");
        }
        Ok(deleted.map_err(|error| format!("deleting the replica: {}", chain(&error))))
    }

    async fn recover(
        &self,
        volume: VolumeId,
        wanted: Recovery,
    ) -> Result<Result<(), String>, Ended> {
        let recovery = replication::Recovery {
            number: wanted.number,
            claim: wanted.attachments,
        };
        let recovered = self
            .owner
            .recover(identity::volume(volume), recovery)
            .await?;
        if recovered.is_ok() {
            warn!(%volume, number = wanted.number, "A volume goes on from its replica here alone: what only the others had is lost");
        }
        Ok(recovered.map_err(|error| format!("going on from the replica here: {}", chain(&error))))
    }

    async fn detach(&mut self, volume: VolumeId) -> Result<(), String> {
        if let Some(attachment) = self.attachments.remove(&volume) {
            attachment.end().await;
            info!(%volume, "A volume is detached");
        }
        Ok(())
    }

    async fn create(
        &self,
        volume: VolumeId,
        size: VolumeSize,
        replicas: &[Replica],
    ) -> Result<Result<(), String>, Ended> {
        let members = match members(replicas) {
            Ok(members) => members,
            Err(error) => return Ok(Err(error.to_string())),
        };
        let blocks = size.bytes() / BLOCK_BYTES as u64;
        let made = self
            .owner
            .create(identity::volume(volume), blocks, members)
            .await?;
        if made.is_ok() {
            info!(%volume, bytes = size.bytes(), "A replica is made");
        }
        Ok(made.map_err(|error| chain(&error)))
    }

    async fn look(&self) -> Result<Look, Ended> {
        let seen = self.owner.look().await?;
        let extent = u64::from(EXTENT_BLOCKS) * BLOCK_BYTES as u64;
        let (space, dead) = (seen.space, seen.dead);
        let disk = self.disk.as_ref().map(|(id, path)| DiskLook {
            id: *id,
            path: path.clone(),
            bytes: u64::from(space.extents) * extent,
            free_bytes: u64::from(space.free.saturating_sub(space.promised)) * extent,
            dead: dead.clone(),
        });
        let attachments = self.attachments.iter();
        let gone = |volume: &&VolumeId| {
            let config = self.wanted.volumes.iter().find(|it| it.id == **volume);
            let kept = config.is_some_and(|it| it.hosts().any(|host| host == self.host));
            !kept && !seen.replicas.contains_key(volume)
        };
        let erased = match &dead {
            None => self.wanted.deleted.iter().filter(gone).copied().collect(),
            // What the disk still has is not known.
            Some(_) => BTreeSet::new(),
        };
        Ok(Look {
            pid: std::process::id(),
            disk,
            erased,
            replicas: seen.replicas,
            attachments: attachments
                .map(|(volume, attachment)| (*volume, attachment.look()))
                .collect(),
            peers: self.outgoing.look(),
            troubles: self.troubles.clone(),
            figures: seen.figures,
        })
    }

    async fn end_all(&mut self) {
        let all = std::mem::take(&mut self.attachments);
        let ending = all.into_values().map(Attachment::end);
        futures::future::join_all(ending).await;
    }
}

/// Which of a volume's changes of replicas this is. A replica is placed under a number that is larger than all before it, and
/// while none is placed replicas only go: so the last number and how few there are tell the order.
const fn change_number(numbered: u64, replicas: usize) -> u64 {
    const MOST_REPLICAS: u64 = 15;
    numbered * (MOST_REPLICAS + 1) + MOST_REPLICAS.saturating_sub(replicas as u64)
}

fn members(replicas: &[Replica]) -> Result<Members, BadMembers> {
    let member = |replica: &Replica| Member {
        replica: ReplicaId(replica.number),
        host: identity::host(replica.host),
    };
    Members::new(replicas.iter().map(member).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_configurations_have_larger_changes() {
        // Three, one moves, two more come, two go one after another, one moves, to one, to seven.
        let course = [
            (3, 3),
            (4, 3),
            (6, 5),
            (6, 4),
            (6, 3),
            (7, 3),
            (7, 1),
            (13, 7),
        ];
        let numbers = course.map(|(numbered, replicas)| change_number(numbered, replicas));
        assert!(numbers.is_sorted_by(|one, next| one < next), "{numbers:?}");
    }
}
