//! Volumes whose replicas come and go, and that are erased.

use super::Owner;
use fleet_plan::{Command, Context, Expect, VolumeStep, next_volume_steps};
use model::{ObjectId, UnixMillis, VolumeId};
use std::collections::{BTreeMap, BTreeSet};
use tracing::{info, warn};

/// Between looks at all volumes.
const EVERY_MILLIS: u64 = 500;
/// After a step that could not be taken.
const AGAIN_MILLIS: u64 = 10_000;

/// What was tried and could not be done, and when.
pub(super) type Tried = BTreeMap<VolumeId, UnixMillis>;

impl Owner {
    /// Takes what comes next for each volume, as far as hosts reported and time has passed.
    pub(super) async fn tend_volumes(&mut self) {
        let now = self.state.now;
        if now.0 < self.tended_at.0 + EVERY_MILLIS {
            return;
        }
        self.tended_at = now;
        let seen = self.state.volumes_seen(self.replace_after);
        let intent = &self.state.intent;
        self.tried
            .retain(|_, at| now.0.saturating_sub(at.0) < AGAIN_MILLIS);
        let steps = next_volume_steps(intent, &seen, now);
        let due: BTreeSet<VolumeId> = steps.iter().map(|(volume, _)| *volume).collect();
        self.state
            .volume_troubles
            .retain(|volume, _| due.contains(volume));
        let mut changes = Vec::new();
        for (id, step) in steps {
            let Some(volume) = self.state.intent.volume(id) else {
                continue;
            };
            let expect = Expect::Exactly(volume.meta.revision);
            let command = Command::AdvanceVolume {
                volume: id,
                expect,
                step: step.clone(),
            };
            let why = match &step {
                VolumeStep::Replace { reason, .. } => {
                    Some(format!("a replica is to be replaced ({reason})"))
                }
                VolumeStep::Place => Some("it is to have more replicas".to_owned()),
                VolumeStep::Settle | VolumeStep::Forget { .. } | VolumeStep::Erase => None,
            };
            if let Some(why) = why {
                if self.tried.contains_key(&id) {
                    continue;
                }
                // Whether there is a place is known before it is asked for: nobody hears the answer.
                let context = Context {
                    down: self.state.down_hosts(),
                    disks: self.state.disks(),
                    replicas: BTreeMap::new(),
                    now,
                    seed: 0,
                    request: None,
                    actor: String::new(),
                };
                if let Err(refusal) = self.state.intent.decide(command.clone(), &context) {
                    let trouble = format!("{why}: {refusal}");
                    let path = self.state.intent.path(ObjectId::Volume(id));
                    if self.state.volume_troubles.get(&id) != Some(&trouble) {
                        warn!(volume = path, trouble, "A volume is not as it should be");
                    }
                    self.state.volume_troubles.insert(id, trouble);
                    self.tried.insert(id, now);
                    continue;
                }
                self.state.volume_troubles.remove(&id);
            }
            self.log_volume_step(id, &step);
            changes.push(self.own_change(command));
        }
        if !changes.is_empty() {
            self.commit(changes).await;
            self.issue().await;
        }
    }

    fn log_volume_step(&self, id: VolumeId, step: &VolumeStep) {
        let volume = self.state.intent.path(ObjectId::Volume(id));
        match step {
            VolumeStep::Settle => info!(volume, "A volume has the replicas that it is to have"),
            VolumeStep::Forget { host } => {
                let host = self.state.intent.path(ObjectId::Host(*host));
                info!(volume, host, "A replica is erased");
            }
            VolumeStep::Replace { number, reason } => {
                info!(volume, replica = number, reason, "A replica is replaced");
            }
            VolumeStep::Place => info!(volume, "A volume gets replicas that it lacked"),
            VolumeStep::Erase => info!(volume, "A deleted volume is erased"),
        }
    }
}
