//! What a host's storage has to do to have what it is told to have. No disk, sockets, clock or tasks.
//!
//! [`plan`] compares a [`StorageConfig`] with what a host [has](Have): the same inputs give the same steps, and
//! steps that were done are not planned again.
//!
//! Invariants:
//! * A replica is made only on the very disk that it was placed on. One that was there and is gone is never made
//!   anew: it would vote for less than it had acknowledged.
//! * A replica goes only when its volume is named as deleted; what nobody speaks of stays.
//! * A volume goes on from one replica only on the host of that replica, and once by each recovery.
//! * Members are changed only by who knows of all replicas that were ever placed, so that an old configuration
//!   does not undo what came after it.

use model::{
    DiskId, HostId, Name, Recovery, Replica, StorageConfig, VolumeAttachment, VolumeConfig,
    VolumeId, VolumeSize,
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// What a host has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Have {
    /// Which host it is.
    pub host: HostId,
    /// Its disk, once there is one.
    pub disk: Option<DiskId>,
    /// Replicas on the disk, also those that cannot be used.
    pub replicas: BTreeMap<VolumeId, HaveReplica>,
    /// Volumes of which this disk had a replica at some time.
    pub had: BTreeSet<VolumeId>,
    /// Volumes that are attached, or being attached.
    pub attached: BTreeMap<VolumeId, Attached>,
}

/// A replica on the disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HaveReplica {
    /// The size of the volume.
    pub bytes: u64,
    /// Its number.
    pub number: u64,
    /// Of which recovery it is; 0 before the first.
    pub recovery: u64,
    /// It leads.
    pub leads: bool,
    /// Those that are to be there once nothing changes any more, as its log has them.
    pub wanted: BTreeMap<u64, HostId>,
    /// The largest number that its log has, also of replicas that are to go.
    pub numbered: u64,
}

/// How a volume is attached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    /// The name of its export.
    pub name: Name,
    /// Its size as it is told to clients.
    pub size: VolumeSize,
    /// Who is asked for its blocks; those that are to stay first.
    pub hosts: Vec<HostId>,
    /// Which attachment it is.
    pub attachment: VolumeAttachment,
}

impl Attached {
    /// As it should be; none if the volume is not to be attached here.
    pub fn wanted(volume: &VolumeConfig) -> Option<Self> {
        Some(Self {
            name: volume.name.clone(),
            size: volume.size,
            hosts: volume.hosts().collect(),
            attachment: volume.attachment?,
        })
    }

    /// Whether clients can stay when this becomes `other`: only the size, and who is asked, are others.
    fn can_become(&self, other: &Self) -> bool {
        let Self {
            name, attachment, ..
        } = self;
        (name, attachment) == (&other.name, &other.attachment) && self.size <= other.size
    }
}

/// Something to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Stop serving a volume.
    Detach {
        /// Which.
        volume: VolumeId,
    },
    /// Remove a replica, for good.
    Delete {
        /// Of which volume.
        volume: VolumeId,
    },
    /// Make an empty replica.
    Create {
        /// Of which volume.
        volume: VolumeId,
        /// Its size.
        size: VolumeSize,
        /// All replicas that it was made with, this one too.
        replicas: Vec<Replica>,
    },
    /// Have a volume go on from the replica here, and from no other.
    Recover {
        /// Which.
        volume: VolumeId,
        /// How.
        recovery: Recovery,
    },
    /// Make a volume larger.
    Grow {
        /// Which.
        volume: VolumeId,
        /// What it is to have.
        size: VolumeSize,
    },
    /// Have other replicas.
    Change {
        /// Of which volume.
        volume: VolumeId,
        /// All that are to be there.
        replicas: Vec<Replica>,
    },
    /// Serve a volume with another size, or from other hosts, while clients are connected.
    Adjust {
        /// Which.
        volume: VolumeId,
        /// How.
        attached: Attached,
    },
    /// Serve a volume.
    Attach {
        /// Which.
        volume: VolumeId,
        /// How.
        attached: Attached,
    },
}

/// Why something that is wanted is not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Lack {
    /// There is no disk yet.
    NoDisk,
    /// The disk is not the one that the replica was placed on.
    OtherDisk {
        /// Where it was placed.
        placed: DiskId,
        /// What there is.
        found: DiskId,
    },
    /// It was here, and was removed since.
    Removed,
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoDisk => {
                f.write_str("this host has no disk for volumes; configure storage_size")
            }
            Self::OtherDisk { placed, found } => write!(
                f,
                "the replica was on disk {placed}, and this host has {found} now: it is lost; make another one"
            ),
            Self::Removed => f.write_str(
                "the others removed the replica that was here, and it is not made anew: this host may have been told of old; see vpc volume show",
            ),
        }
    }
}

/// What there is to do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// One after another.
    pub steps: Vec<Step>,
    /// What cannot be done.
    pub lacks: BTreeMap<VolumeId, Lack>,
    /// Replicas here are not as they should be, and it is for who leads to see to that.
    pub unsettled: bool,
}

/// From what a host has to what it is to have.
pub fn plan(wanted: &StorageConfig, have: &Have) -> Plan {
    let mut plan = Plan::default();
    let volumes: BTreeMap<VolumeId, &VolumeConfig> = wanted
        .volumes
        .iter()
        .map(|volume| (volume.id, volume))
        .collect();
    for (volume, attached) in &have.attached {
        let as_wanted = volumes.get(volume).and_then(|it| Attached::wanted(it));
        if !as_wanted.is_some_and(|it| attached.can_become(&it)) {
            plan.steps.push(Step::Detach { volume: *volume });
        }
    }
    let is_kept = |volume: &VolumeId| {
        let config = volumes.get(volume);
        config.is_some_and(|config| config.hosts().any(|host| host == have.host))
    };
    let gone = wanted
        .deleted
        .iter()
        .filter(|volume| !is_kept(volume) && have.replicas.contains_key(volume));
    plan.steps
        .extend(gone.map(|volume| Step::Delete { volume: *volume }));
    for volume in volumes.values() {
        create(&mut plan, volume, have);
        if let Some(replica) = have.replicas.get(&volume.id) {
            recover(&mut plan, volume, replica);
            lead(&mut plan, volume, replica);
        }
        let Some(attached) = Attached::wanted(volume) else {
            continue;
        };
        let volume = volume.id;
        match have.attached.get(&volume) {
            Some(now) if *now == attached => {}
            Some(now) if now.can_become(&attached) => {
                plan.steps.push(Step::Adjust { volume, attached });
            }
            _ => plan.steps.push(Step::Attach { volume, attached }),
        }
    }
    plan
}

/// What the one replica that is left has to do, if it is here.
fn recover(plan: &mut Plan, volume: &VolumeConfig, replica: &HaveReplica) {
    let here = |it: &Recovery| it.replica == replica.number && it.number > replica.recovery;
    if let Some(recovery) = volume.recovery.filter(here) {
        plan.unsettled = true;
        plan.steps.push(Step::Recover {
            volume: volume.id,
            recovery,
        });
    }
}

/// What who leads a volume has to do for it.
fn lead(plan: &mut Plan, volume: &VolumeConfig, replica: &HaveReplica) {
    let (id, size) = (volume.id, volume.size);
    let others = volume.replicas.iter();
    let others: BTreeMap<u64, HostId> = others.map(|it| (it.number, it.host)).collect();
    let changes = others != replica.wanted && !others.is_empty();
    let grows = replica.bytes < size.bytes();
    plan.unsettled |= changes || grows;
    if !replica.leads {
        return;
    }
    if grows {
        plan.steps.push(Step::Grow { volume: id, size });
    }
    if changes && replica.numbered <= volume.numbered {
        let replicas = volume.replicas.clone();
        plan.steps.push(Step::Change {
            volume: id,
            replicas,
        });
    }
}

fn create(plan: &mut Plan, volume: &VolumeConfig, have: &Have) {
    let here = |replica: &&Replica| replica.host == have.host;
    let Some(replica) = volume.replicas.iter().find(here) else {
        return;
    };
    if have.replicas.contains_key(&volume.id) {
        return;
    }
    let founding = volume.founding();
    let founds = founding.replicas.contains(replica);
    let lack = match have.disk {
        None => Lack::NoDisk,
        Some(found) if found != replica.disk => Lack::OtherDisk {
            placed: replica.disk,
            found,
        },
        // Who leads has it made when it can be told of it.
        Some(_) if !founds => return,
        Some(_) if have.had.contains(&volume.id) => Lack::Removed,
        Some(_) => {
            return plan.steps.push(Step::Create {
                volume: volume.id,
                size: founding.size,
                replicas: founding.replicas,
            });
        }
    };
    plan.lacks.insert(volume.id, lack);
}

#[cfg(test)]
mod tests;
