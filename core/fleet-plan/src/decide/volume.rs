//! Volumes: where their replicas are, where they are attached, and that they can come back.

use super::{Work, after};
use crate::intent::{Scope, missing};
use crate::{
    AttachVolume, CreateVolume, DeleteVolume, DiskRoom, Expect, MoveReplica, Refusal, ResizeVolume,
    SetReplicas, VolumeStep,
};
use model::{
    AttachedTo, Deleted, Founding, Host, HostId, Kind, Leaving, Name, Object, ObjectId, Replica,
    Volume, VolumeAttachment, VolumeId, VolumeSize,
};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;

/// Replicas that a majority can be lost of only together.
const COUNTS: [usize; 3] = [1, 3, 5];

/// What replicas are to be placed for.
struct Wish<'a> {
    /// The volume's name.
    name: &'a str,
    id: VolumeId,
    size: VolumeSize,
    /// How many.
    count: usize,
    /// Hosts that have replicas which stay.
    with: Vec<HostId>,
    /// Hosts that can have none.
    without: Vec<HostId>,
}

impl Work<'_> {
    pub(super) fn create_volume(&mut self, create: CreateVolume) -> Result<Object, Refusal> {
        self.intent.require(ObjectId::Account(create.account))?;
        let scope = Scope::Volumes(create.account);
        self.check_name(Kind::Volume, scope, &create.name)?;
        let id = self.draw(VolumeId::from_random, ObjectId::Volume);
        check_count(create.name.as_str(), create.replicas)?;
        let hosts = self.place_replicas(&Wish {
            name: create.name.as_str(),
            id,
            size: create.size,
            count: create.replicas,
            with: Vec::new(),
            without: Vec::new(),
        })?;
        let replicas: Vec<Replica> = numbered(0, &hosts).collect();
        let volume = Volume {
            id,
            account: create.account,
            name: create.name,
            size: create.size,
            founding: Founding {
                size: create.size,
                replicas: replicas.clone(),
            },
            numbered: replicas.len() as u64,
            replicas,
            leaving: Vec::new(),
            attached: Vec::new(),
            attachments: 0,
            lacking: 0,
            recovered: None,
            deleted: None,
            meta: self.new_meta(create.labels)?,
        };
        Ok(self.put(Object::Volume(volume)))
    }

    pub(super) fn resize_volume(&mut self, asked: ResizeVolume) -> Result<Object, Refusal> {
        let mut volume = self.expected_volume(asked.volume, asked.expect)?;
        self.check_not_deleted(&volume)?;
        let (old, new) = (volume.size, asked.size);
        if new < old {
            return Err(Refusal::VolumeShrinks {
                volume: self.path(&volume),
                size: old,
                asked: new,
            });
        }
        for replica in volume.members() {
            let host = self.intent.host(replica.host);
            let disk = self.context.disks.get(&replica.host);
            let Some((host, disk)) = host.zip(disk) else {
                continue;
            };
            let left = disk.bytes.saturating_sub(self.promised(host));
            if left < new.bytes() - old.bytes() {
                return Err(Refusal::VolumeRoom {
                    volume: self.path(&volume),
                    host: host.name.to_string(),
                    left,
                    more: new.bytes() - old.bytes(),
                });
            }
        }
        volume.size = new;
        Ok(self.put_if_changed(Object::Volume(volume)))
    }

    /// More of them where there is room; of fewer, those go first that are of least use.
    pub(super) fn set_replicas(&mut self, asked: SetReplicas) -> Result<Object, Refusal> {
        let mut volume = self.expected_volume(asked.volume, asked.expect)?;
        self.check_not_deleted(&volume)?;
        check_count(&self.path(&volume), asked.count)?;
        let has = volume.replicas.len();
        if asked.count > has {
            let more = asked.count - has;
            let hosts = self.place_more(&volume, more, None)?;
            volume.replicas.extend(numbered(volume.numbered, &hosts));
            volume.numbered += more as u64;
        }
        while volume.replicas.len() > asked.count {
            let at = self.least_useful(&volume, asked.count);
            let replica = volume.replicas.remove(at);
            leave(&mut volume, replica);
        }
        volume.lacking = 0;
        Ok(self.put_if_changed(Object::Volume(volume)))
    }

    pub(super) fn move_replica(&mut self, asked: MoveReplica) -> Result<Object, Refusal> {
        let mut volume = self.expected_volume(asked.volume, asked.expect)?;
        self.check_not_deleted(&volume)?;
        let from = |replica: &&Replica| replica.host == asked.from;
        let Some(number) = volume.replicas.iter().find(from).map(|it| it.number) else {
            return Err(Refusal::NoReplica {
                volume: self.path(&volume),
                host: self.intent.path(ObjectId::Host(asked.from)),
            });
        };
        if let Some(to) = asked.to
            && self.intent.host(to).is_none()
        {
            return Err(missing(ObjectId::Host(to)));
        }
        self.replace(&mut volume, number, asked.to)?;
        Ok(self.put(Object::Volume(volume)))
    }

    /// A step that the server takes by itself.
    pub(super) fn advance_volume(
        &mut self,
        id: VolumeId,
        expect: Expect,
        step: VolumeStep,
    ) -> Result<Object, Refusal> {
        let mut volume = self.expected_volume(id, expect)?;
        match step {
            VolumeStep::Settle => {
                for leaving in &mut volume.leaving {
                    leaving.gone = true;
                }
            }
            VolumeStep::Forget { host } => {
                let stays = |leaving: &Leaving| !leaving.gone || leaving.replica.host != host;
                volume.leaving.retain(stays);
                if volume.is_erasing() && volume.leaving.is_empty() {
                    return Ok(self.remove(Object::Volume(volume)));
                }
            }
            VolumeStep::Place => self.place_lacking(&mut volume)?,
            VolumeStep::Replace { number, .. } => self.replace(&mut volume, number, None)?,
            VolumeStep::Erase => {
                let replicas = std::mem::take(&mut volume.replicas);
                for leaving in &mut volume.leaving {
                    leaving.gone = true;
                }
                let gone = replicas.into_iter().map(|replica| Leaving {
                    replica,
                    gone: true,
                    lost: false,
                });
                volume.leaving.extend(gone);
            }
        }
        Ok(self.put_if_changed(Object::Volume(volume)))
    }

    /// As many as there is room for of those that there was none for.
    fn place_lacking(&self, volume: &mut Volume) -> Result<(), Refusal> {
        let fits = |count| self.place_more(volume, count, None).ok();
        let hosts = match (2..=volume.lacking).rev().find_map(fits) {
            Some(hosts) => hosts,
            None => self.place_more(volume, volume.lacking.min(1), None)?,
        };
        volume.replicas.extend(numbered(volume.numbered, &hosts));
        volume.numbered += hosts.len() as u64;
        volume.lacking -= hosts.len();
        Ok(())
    }

    fn replace(&self, volume: &mut Volume, number: u64, to: Option<HostId>) -> Result<(), Refusal> {
        let at = volume.replicas.iter().position(|it| it.number == number);
        let Some(at) = at else {
            return Ok(());
        };
        let old = volume.replicas.remove(at);
        leave(volume, old);
        let hosts = self.place_more(volume, 1, to)?;
        if let Some(to) = to {
            self.check_zone(volume, to)?;
        }
        volume.replicas.extend(numbered(volume.numbered, &hosts));
        volume.numbered += 1;
        Ok(())
    }

    /// Hosts for more replicas of a volume. One on a disk that its host has no more does not keep the host from having
    /// another.
    fn place_more(
        &self,
        volume: &Volume,
        count: usize,
        only: Option<HostId>,
    ) -> Result<Vec<(HostId, DiskRoom)>, Refusal> {
        let with: Vec<HostId> = volume.replicas.iter().map(|replica| replica.host).collect();
        let on_disk = |leaving: &&Leaving| {
            let disk = self.context.disks.get(&leaving.replica.host);
            disk.is_none_or(|disk| disk.id == leaving.replica.disk)
        };
        let leaving = volume.leaving.iter().filter(on_disk);
        let leaving = leaving.map(|leaving| leaving.replica.host);
        let mut without: Vec<HostId> = leaving.chain(with.iter().copied()).collect();
        if let Some(only) = only {
            let others = self.intent.hosts().map(|host| host.id);
            without.extend(others.filter(|host| *host != only));
        }
        let name = self.path(volume);
        self.place_replicas(&Wish {
            name: &name,
            id: volume.id,
            size: volume.size,
            count,
            with,
            without,
        })
    }

    /// The place of the replica that can go best, on the way to so many: one of the zone that has most, then one that is
    /// away, or is to go in any case; not the one where the volume is attached. A majority that is up stays up.
    fn least_useful(&self, volume: &Volume, wanted: usize) -> usize {
        let zones = self.crowds(volume.replicas.iter().map(|replica| replica.host));
        let is_down = |replica: &Replica| self.context.down.contains(&replica.host);
        let up = volume.replicas.iter().filter(|it| !is_down(it)).count();
        let use_of = |at: &usize| {
            let replica = &volume.replicas[*at];
            let host = self.intent.host(replica.host);
            let down = is_down(replica);
            (
                (up - usize::from(!down)).min(wanted / 2 + 1),
                zones.get(&self.zone(replica.host)).copied(),
                down,
                host.is_none_or(|host| host.draining),
                volume.attached_to(replica.host).is_none(),
                replica.number,
            )
        };
        let places = 0..volume.replicas.len();
        places.max_by_key(use_of).unwrap_or(0)
    }

    /// Hosts of no zone are as if they were of one.
    fn zone(&self, host: HostId) -> Option<&Name> {
        self.intent.host(host)?.zone.as_ref()
    }

    /// How many of these hosts each zone has.
    fn crowds(&self, hosts: impl Iterator<Item = HostId>) -> BTreeMap<Option<&Name>, usize> {
        let mut crowds = BTreeMap::new();
        for host in hosts {
            *crowds.entry(self.zone(host)).or_default() += 1;
        }
        crowds
    }

    /// A replica that comes to a host does not share a zone with more others than it has to.
    fn check_zone(&self, volume: &Volume, to: HostId) -> Result<(), Refusal> {
        let zones = self.crowds(volume.replicas.iter().map(|replica| replica.host));
        let others = |host| zones.get(&self.zone(host)).copied().unwrap_or(0);
        let best = self.place_more(volume, 1, None)?;
        match best.iter().find(|(host, _)| others(*host) < others(to)) {
            None => Ok(()),
            Some((best, _)) => Err(Refusal::ZoneCrowded {
                volume: self.path(volume),
                host: self.intent.path(ObjectId::Host(to)),
                others: others(to),
                better: self.intent.path(ObjectId::Host(*best)),
            }),
        }
    }

    pub(super) fn attach_volume(&mut self, asked: AttachVolume) -> Result<Object, Refusal> {
        let mut volume = self.expected_volume(asked.volume, asked.expect)?;
        let Some(to) = asked.to else {
            let stays = |attached: &AttachedTo| asked.from.is_some_and(|it| it != attached.host);
            volume.attached.retain(stays);
            return Ok(self.put_if_changed(Object::Volume(volume)));
        };
        self.check_not_deleted(&volume)?;
        let host = ObjectId::Host(to.host);
        self.intent.host(to.host).ok_or_else(|| missing(host))?;
        let wanted = |number| AttachedTo {
            host: to.host,
            attachment: VolumeAttachment {
                number,
                read_only: to.read_only,
                tcp_port: to.tcp_port,
            },
        };
        if volume.attached_to(to.host) == Some(&wanted(volume.attachments)) {
            return Ok(Object::Volume(volume));
        }
        // Who only reads joins the others who do.
        let readers = to.read_only
            && !volume.attached.is_empty()
            && volume.attached.iter().all(|it| it.attachment.read_only);
        if readers {
            volume.attached.retain(|it| it.host != to.host);
        } else {
            volume.attachments += 1;
            volume.attached.clear();
        }
        volume.attached.push(wanted(volume.attachments));
        volume.attached.sort_by_key(|attached| attached.host);
        Ok(self.put(Object::Volume(volume)))
    }

    pub(super) fn restore_volume(
        &mut self,
        id: VolumeId,
        expect: Expect,
    ) -> Result<Object, Refusal> {
        let mut volume = self.expected_volume(id, expect)?;
        if volume.is_erasing() {
            return Err(Refusal::VolumeErased {
                volume: self.path(&volume),
            });
        }
        volume.deleted = None;
        Ok(self.put_if_changed(Object::Volume(volume)))
    }

    /// Its replicas stay for a while, so that it can be restored.
    pub(super) fn delete_volume(&mut self, asked: DeleteVolume) -> Result<Object, Refusal> {
        let mut volume = self.expected_volume(asked.volume, asked.expect)?;
        if let Some(attached) = volume.attached.first() {
            return Err(Refusal::VolumeAttached {
                volume: self.path(&volume),
                host: self.intent.path(ObjectId::Host(attached.host)),
            });
        }
        if volume.is_erasing() {
            return Err(Refusal::VolumeErased {
                volume: self.path(&volume),
            });
        }
        // Who deletes it again may have changed their mind about how long it is kept.
        let at = volume
            .deleted
            .map_or(self.context.now, |deleted| deleted.at);
        let until = after(self.context.now, asked.keep_millis);
        volume.deleted = Some(Deleted { at, until });
        Ok(self.put_if_changed(Object::Volume(volume)))
    }

    /// A host is removed for good: what it may still have of volumes is not waited for.
    pub(super) fn forget_replicas_on(&mut self, host: HostId) {
        let gone =
            |leaving: &Leaving| (leaving.gone || leaving.lost) && leaving.replica.host == host;
        let there = |volume: &&Volume| volume.leaving.iter().any(gone);
        let volumes: Vec<Volume> = self.intent.volumes().filter(there).cloned().collect();
        for mut volume in volumes {
            volume.leaving.retain(|leaving| !gone(leaving));
            match volume.is_erasing() && volume.leaving.is_empty() {
                true => self.remove(Object::Volume(volume)),
                false => self.put(Object::Volume(volume)),
            };
        }
    }

    pub(super) fn expected_volume(&self, id: VolumeId, expect: Expect) -> Result<Volume, Refusal> {
        let id = ObjectId::Volume(id);
        match self.expected(id, expect)? {
            Object::Volume(volume) => Ok(volume),
            _ => Err(missing(id)),
        }
    }

    pub(super) fn path(&self, volume: &Volume) -> String {
        self.intent.path(ObjectId::Volume(volume.id))
    }

    pub(super) fn check_not_deleted(&self, volume: &Volume) -> Result<(), Refusal> {
        let path = self.path(volume);
        match volume.deleted {
            None => Ok(()),
            Some(_) if volume.is_erasing() => Err(Refusal::VolumeErased { volume: path }),
            Some(_) => Err(Refusal::VolumeDeleted { volume: path }),
        }
    }

    /// Hosts in an order that depends on the volume and on nothing else (rendezvous hashing), those first whose
    /// zone has the fewest replicas. Sizes count in full: a disk is never promised twice.
    fn place_replicas(&self, wish: &Wish<'_>) -> Result<Vec<(HostId, DiskRoom)>, Refusal> {
        let none = |reason: String| Refusal::NoStorage {
            volume: wish.name.to_owned(),
            reason,
        };
        let with_disk = self.intent.hosts().filter_map(|host| {
            let disk = self.context.disks.get(&host.id)?;
            (!wish.without.contains(&host.id)).then_some((host, *disk))
        });
        let with_disk: Vec<(&Host, DiskRoom)> = with_disk.collect();
        let fit = |(host, disk): &&(&Host, DiskRoom)| {
            let down = self.context.down.contains(&host.id);
            !host.draining && !down && self.promised(host) + wish.size.bytes() <= disk.bytes
        };
        let mut fit: Vec<(&Host, DiskRoom)> = with_disk.iter().filter(fit).copied().collect();
        fit.sort_by_key(|(host, _)| score(wish.id, host));
        if fit.len() < wish.count {
            let other = if wish.with.is_empty() { "" } else { "other " };
            return Err(none(format!(
                "{} of {} {other}hosts with a disk are up, not draining and have {} left, and {} are needed: see vpc host list, let more hosts join with the role storage, or ask for fewer --replicas",
                fit.len(),
                with_disk.len(),
                wish.size,
                wish.count
            )));
        }
        let mut zones = self.crowds(wish.with.iter().copied());
        let mut chosen = Vec::new();
        while chosen.len() < wish.count {
            let crowd = |at: &usize| {
                let zone = fit[*at].0.zone.as_ref();
                (zones.get(&zone).copied().unwrap_or(0), zone.is_none())
            };
            let at = (0..fit.len()).min_by_key(crowd);
            let (host, disk) = fit.remove(at.expect("there are enough"));
            *zones.entry(host.zone.as_ref()).or_default() += 1;
            chosen.push((host.id, disk));
        }
        Ok(chosen)
    }

    /// Bytes of all volumes that have a replica on a host, also one that goes and is still there.
    fn promised(&self, host: &Host) -> u64 {
        let here = self.intent.volumes().filter(|volume| {
            let leaving = volume.leaving.iter().map(|leaving| &leaving.replica);
            let mut replicas = volume.replicas.iter().chain(leaving);
            replicas.any(|replica| replica.host == host.id)
        });
        here.map(|volume| VolumeSize::bytes(volume.size)).sum()
    }
}

fn check_count(volume: &str, count: usize) -> Result<(), Refusal> {
    if COUNTS.contains(&count) {
        return Ok(());
    }
    let volume = volume.to_owned();
    Err(Refusal::Replicas { volume, count })
}

fn leave(volume: &mut Volume, replica: Replica) {
    let (gone, lost) = (false, false);
    volume.leaving.push(Leaving {
        replica,
        gone,
        lost,
    });
}

/// Replicas with the numbers after one.
fn numbered(last: u64, hosts: &[(HostId, DiskRoom)]) -> impl Iterator<Item = Replica> + '_ {
    let replica = |(number, (host, disk)): (u64, &(HostId, DiskRoom))| Replica {
        number,
        host: *host,
        disk: disk.id,
    };
    (last + 1..).zip(hosts).map(replica)
}

fn score(volume: VolumeId, host: &Host) -> [u8; 32] {
    Sha256::digest(format!("{volume} {}", host.id)).into()
}
