//! What can be asked of volumes, and what comes next for one of which something is seen.

use crate::{Expect, Intent};
use model::{AccountId, DiskId, HostId, Labels, Name, UnixMillis, Volume, VolumeId, VolumeSize};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// A new volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateVolume {
    /// Owner.
    pub account: AccountId,
    /// Unique among the account's volumes.
    pub name: Name,
    /// Its size.
    pub size: VolumeSize,
    /// How many replicas, on hosts of different zones as far as there are zones.
    pub replicas: usize,
    /// The users' labels.
    pub labels: Labels,
}

/// A volume becomes larger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResizeVolume {
    /// Which.
    pub volume: VolumeId,
    /// The version it must have.
    pub expect: Expect,
    /// What it is to have; no less than it has.
    pub size: VolumeSize,
}

/// A volume has more replicas, or fewer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetReplicas {
    /// Which.
    pub volume: VolumeId,
    /// The version it must have.
    pub expect: Expect,
    /// How many.
    pub count: usize,
}

/// A replica goes to another host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveReplica {
    /// Of which volume.
    pub volume: VolumeId,
    /// The version it must have.
    pub expect: Expect,
    /// From where.
    pub from: HostId,
    /// To where; none: wherever there is room.
    pub to: Option<HostId>,
}

/// A volume is deleted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeleteVolume {
    /// Which.
    pub volume: VolumeId,
    /// The version it must have.
    pub expect: Expect,
    /// How long it can be restored.
    pub keep_millis: u64,
}

/// How long a deleted volume can be restored, where nobody said: three days.
pub const KEEP_DELETED_MILLIS: u64 = 3 * 24 * 3600 * 1000;
/// How long a replica may be away, where nobody said, until another takes its place: ten minutes.
pub const REPLACE_AFTER_MILLIS: u64 = 10 * 60 * 1000;
/// Volumes of a host whose replicas move at once, at most.
const MOVES_OF_A_HOST: usize = 2;

/// What the server does with a volume by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VolumeStep {
    /// Its replicas are as they were to be: those that left are gone.
    Settle,
    /// Nothing is left of a replica that is gone.
    Forget {
        /// Where it was.
        host: HostId,
    },
    /// Another replica takes the place of one.
    Replace {
        /// Of which.
        number: u64,
        /// Why.
        reason: String,
    },
    /// Replicas that there was no room for are placed.
    Place,
    /// It was deleted long enough ago.
    Erase,
}

/// What hosts tell of a volume.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VolumeSeen {
    /// The numbers of the replicas that decide, as who leads has it; nothing while nobody leads.
    pub voters: Option<BTreeSet<u64>>,
    /// Who leads has the replicas that it is to have, and no others.
    pub settled: bool,
    /// Hosts that said that they have nothing of it any more.
    pub erased: BTreeSet<HostId>,
    /// Replicas, by number, that others are to take the place of, and why.
    pub lost: BTreeMap<u64, String>,
}

/// What comes next for each volume, of what there is to do by itself.
pub fn next_volume_steps(
    intent: &Intent,
    seen: &BTreeMap<VolumeId, VolumeSeen>,
    now: UnixMillis,
) -> Vec<(VolumeId, VolumeStep)> {
    let mut moving: BTreeMap<HostId, usize> = BTreeMap::new();
    let mut add = |volume: &Volume| {
        for replica in volume.members() {
            *moving.entry(replica.host).or_default() += 1;
        }
    };
    let is_moving = |volume: &&Volume| volume.leaving.iter().any(|leaving| !leaving.gone);
    intent.volumes().filter(is_moving).for_each(&mut add);
    let none = VolumeSeen::default();
    let mut steps = Vec::new();
    for volume in intent.volumes() {
        let seen = seen.get(&volume.id).unwrap_or(&none);
        let Some(step) = next_step(intent, volume, seen, now) else {
            continue;
        };
        let fills = matches!(step, VolumeStep::Replace { .. } | VolumeStep::Place);
        if fills && !is_moving(&volume) {
            let count = |host: HostId| moving.get(&host).copied().unwrap_or(0);
            let mut hosts = volume.replicas.iter().map(|replica| replica.host);
            if hosts.any(|host| count(host) >= MOVES_OF_A_HOST) {
                continue;
            }
            for replica in &volume.replicas {
                *moving.entry(replica.host).or_default() += 1;
            }
        }
        steps.push((volume.id, step));
    }
    steps
}

fn next_step(
    intent: &Intent,
    volume: &Volume,
    seen: &VolumeSeen,
    now: UnixMillis,
) -> Option<VolumeStep> {
    if let Some(deleted) = volume.deleted
        && !volume.is_erasing()
    {
        return (now >= deleted.until).then_some(VolumeStep::Erase);
    }
    let mut gone = volume.leaving.iter().filter(|leaving| leaving.gone);
    // Where there is another replica the one before was on a disk that is gone.
    let nothing_left = |host| {
        seen.erased.contains(&host) || volume.replicas.iter().any(|replica| replica.host == host)
    };
    if let Some(erased) = gone.find(|leaving| nothing_left(leaving.replica.host)) {
        let host = erased.replica.host;
        return Some(VolumeStep::Forget { host });
    }
    let moves = volume.leaving.iter().any(|leaving| !leaving.gone);
    if moves && seen.settled {
        return Some(VolumeStep::Settle);
    }
    // Without a leader nothing can be changed, and nothing is known.
    let voters = seen.voters.as_ref()?;
    let lost = volume.replicas.iter().find_map(|replica| {
        // While replicas move, only one that never came gives way to another.
        let may = seen.settled || !voters.contains(&replica.number);
        let reason = seen.lost.get(&replica.number).filter(|_| may)?;
        Some((replica.number, reason.clone()))
    });
    let drains = || {
        let draining = |host| intent.host(host).is_some_and(|host| host.draining);
        let mut replicas = volume.replicas.iter().filter(|_| seen.settled && !moves);
        let replica = replicas.find(|replica| draining(replica.host))?;
        Some((replica.number, "its host is draining".to_owned()))
    };
    let Some((number, reason)) = lost.or_else(drains) else {
        let lacks = volume.lacking > 0 && seen.settled && !moves;
        return lacks.then_some(VolumeStep::Place);
    };
    Some(VolumeStep::Replace { number, reason })
}

/// A volume is attached to a host, or to none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachVolume {
    /// Which.
    pub volume: VolumeId,
    /// The version it must have.
    pub expect: Expect,
    /// Where; none detaches it. Where it was attached before it is fenced off, unless nobody may write.
    pub to: Option<AttachTo>,
    /// Detaches it here only.
    pub from: Option<HostId>,
}

/// Where a volume is to be attached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachTo {
    /// The host.
    pub host: HostId,
    /// Nothing may be written.
    pub read_only: bool,
    /// A port on the host's loopback address, beside the socket.
    pub tcp_port: Option<u16>,
}

/// A host's disk, as it reported it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskRoom {
    /// Which one it is now.
    pub id: DiskId,
    /// What it has for the contents of volumes.
    pub bytes: u64,
}
