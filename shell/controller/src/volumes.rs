//! Volumes: what is asked of them, and how they are shown.

use crate::request::{DEFAULT_ACCOUNT, Reference, Unresolved, expect, labels};
use crate::state::State;
use api::{BadRequest, Field, parse, v1};
use fleet_plan::{
    AttachTo, AttachVolume, Command, CreateVolume, DeleteVolume, KEEP_DELETED_MILLIS, MoveReplica,
    ResizeVolume, SetReplicas, VolumeSeen,
};
use model::{
    AttachedTo, DiskId, HostId, Kind, Leaving, Liveness, Name, Object, ObjectId, Replica,
    UnixMillis, Volume, VolumeId, VolumeSize,
};
use std::collections::BTreeMap;
use std::time::Duration;

mod health;
mod recovery;

use health::{Health, Told, health};
pub(crate) use recovery::recover;

/// Why a replica may have to give way to another.
enum Trouble {
    /// It does not come back.
    Lost(String),
    /// It may come back.
    Since(String, UnixMillis),
    /// The same; since when is not known to who tells.
    Seen(String),
}

/// Replicas where nobody said how many: one can be lost.
const REPLICAS: usize = 3;

pub(crate) fn create(wire: v1::CreateVolumeRequest) -> Result<Unresolved, BadRequest> {
    let account = match wire.account {
        None => Reference::Path(Kind::Account, DEFAULT_ACCOUNT.to_owned()),
        given => Reference::new(Field::root("account"), Kind::Account, given)?,
    };
    let name: Name = parse(Field::root("name"), &wire.name)?;
    let size = VolumeSize::new(wire.size_bytes);
    let size = size.map_err(|bad| Field::root("size_bytes").bad(bad))?;
    let labels = labels(Field::root("labels"), wire.labels)?;
    let replicas = match wire.replicas {
        0 => REPLICAS,
        some => some as usize,
    };
    Ok(Box::new(move |intent| {
        Ok(Command::CreateVolume(CreateVolume {
            account: account.account(intent)?,
            name: name.clone(),
            size,
            replicas,
            labels: labels.clone(),
        }))
    }))
}

pub(crate) fn attach(wire: v1::AttachVolumeRequest) -> Result<Unresolved, BadRequest> {
    let volume = Reference::new(Field::root("object"), Kind::Volume, wire.object)?;
    let to = match wire.to {
        None => None,
        Some(to) => {
            let field = Field::root("to");
            let port = field.of("tcp_port");
            let number = u16::try_from(to.tcp_port);
            let number =
                number.map_err(|_| port.bad("not a TCP port: 1 to 65535, or 0 for none"))?;
            let host = Reference::new(field.of("host"), Kind::Host, to.host)?;
            Some((host, to.read_only, (number != 0).then_some(number)))
        }
    };
    let from = match wire.from {
        None => None,
        given => Some(Reference::new(Field::root("from"), Kind::Host, given)?),
    };
    let expect = expect(wire.resource_version);
    Ok(Box::new(move |intent| {
        let to = match &to {
            None => None,
            Some((host, read_only, tcp_port)) => Some(AttachTo {
                host: host.host(intent)?,
                read_only: *read_only,
                tcp_port: *tcp_port,
            }),
        };
        Ok(Command::AttachVolume(AttachVolume {
            volume: volume.volume(intent)?,
            expect,
            to,
            from: from.as_ref().map(|from| from.host(intent)).transpose()?,
        }))
    }))
}

pub(crate) fn restore(wire: v1::RestoreVolumeRequest) -> Result<Unresolved, BadRequest> {
    let volume = Reference::new(Field::root("object"), Kind::Volume, wire.object)?;
    let expect = expect(wire.resource_version);
    Ok(Box::new(move |intent| {
        Ok(Command::RestoreVolume {
            volume: volume.volume(intent)?,
            expect,
        })
    }))
}

pub(crate) fn resize(wire: v1::ResizeVolumeRequest) -> Result<Unresolved, BadRequest> {
    let volume = Reference::new(Field::root("object"), Kind::Volume, wire.object)?;
    let size = VolumeSize::new(wire.size_bytes);
    let size = size.map_err(|bad| Field::root("size_bytes").bad(bad))?;
    let expect = expect(wire.resource_version);
    Ok(Box::new(move |intent| {
        Ok(Command::ResizeVolume(ResizeVolume {
            volume: volume.volume(intent)?,
            expect,
            size,
        }))
    }))
}

pub(crate) fn set_replicas(wire: v1::SetReplicasRequest) -> Result<Unresolved, BadRequest> {
    let volume = Reference::new(Field::root("object"), Kind::Volume, wire.object)?;
    let expect = expect(wire.resource_version);
    Ok(Box::new(move |intent| {
        Ok(Command::SetReplicas(SetReplicas {
            volume: volume.volume(intent)?,
            expect,
            count: wire.replicas as usize,
        }))
    }))
}

pub(crate) fn move_replica(wire: v1::MoveReplicaRequest) -> Result<Unresolved, BadRequest> {
    let volume = Reference::new(Field::root("object"), Kind::Volume, wire.object)?;
    let from = Reference::new(Field::root("from"), Kind::Host, wire.from)?;
    let to = match wire.to {
        None => None,
        given => Some(Reference::new(Field::root("to"), Kind::Host, given)?),
    };
    let expect = expect(wire.resource_version);
    Ok(Box::new(move |intent| {
        Ok(Command::MoveReplica(MoveReplica {
            volume: volume.volume(intent)?,
            expect,
            from: from.host(intent)?,
            to: to.as_ref().map(|to| to.host(intent)).transpose()?,
        }))
    }))
}

pub(crate) fn delete(wire: v1::DeleteVolumeRequest) -> Result<Unresolved, BadRequest> {
    let volume = Reference::new(Field::root("object"), Kind::Volume, wire.object)?;
    let expect = expect(wire.resource_version);
    let keep_millis = wire
        .keep_seconds
        .map(|seconds| seconds.saturating_mul(1000));
    let keep_millis = keep_millis.unwrap_or(KEEP_DELETED_MILLIS);
    Ok(Box::new(move |intent| {
        Ok(Command::DeleteVolume(DeleteVolume {
            volume: volume.volume(intent)?,
            expect,
            keep_millis,
        }))
    }))
}

impl State {
    /// A volume, and with `reports` how it is.
    pub(crate) fn volume_view(&self, volume: &Volume, reports: bool) -> v1::Volume {
        let health = self.volume_health(volume);
        let replicas = volume.replicas.iter().zip(&health.replicas);
        let replicas = replicas.map(|(replica, health)| {
            let view = self.replica_view(volume, *replica, reports);
            match reports {
                true => v1::volume::VolumeReplica {
                    state: health.state.to_owned(),
                    matched: health.matched,
                    percent: health.percent,
                    ..view
                },
                false => view,
            }
        });
        let leaving = volume.leaving.iter().map(|leaving| {
            let state = match leaving {
                Leaving { gone: true, .. } => "gone",
                Leaving { lost: true, .. } => "lost",
                Leaving { .. } => "leaving",
            };
            v1::volume::VolumeReplica {
                state: state.to_owned(),
                ..self.replica_view(volume, leaving.replica, reports)
            }
        });
        let state = match volume.deleted {
            _ if !reports => "",
            Some(_) if volume.is_erasing() => "erasing",
            Some(_) => "deleted",
            None if volume.lacking > 0 && health.state == "healthy" => "degraded",
            None => health.state,
        };
        let trouble = self.volume_troubles.get(&volume.id).filter(|_| reports);
        v1::Volume {
            id: volume.id.to_string(),
            name: volume.name.to_string(),
            path: self.path(&Object::Volume(volume.clone())),
            account_id: volume.account.to_string(),
            size_bytes: volume.size.bytes(),
            replicas: replicas.chain(leaving).collect(),
            attached: volume
                .attached
                .iter()
                .map(|attached| self.attached_view(volume, *attached, reports))
                .collect(),
            deleted_unix_ms: volume.deleted.map_or(0, |deleted| deleted.at.0),
            erased_unix_ms: volume.deleted.map_or(0, |deleted| deleted.until.0),
            state: state.to_owned(),
            trouble: trouble.cloned().unwrap_or_default(),
            lacking: u32::try_from(volume.lacking).unwrap_or(u32::MAX),
            recovered: volume.recovered.map(|it| v1::volume::Recovered {
                recovery: Some((&it.recovery).into()),
                at_unix_ms: it.at.0,
                kept: it.kept,
                known: it.known,
            }),
            meta: Some((&volume.meta).into()),
        }
    }

    fn volume_health(&self, volume: &Volume) -> Health {
        let told = |replica: &Replica| Told {
            number: replica.number,
            down: self.liveness(replica.host) == Liveness::Down,
            report: self.report(volume, replica.host),
        };
        let replicas: Vec<Told<'_>> = volume.replicas.iter().map(told).collect();
        let goes = |leaving: &&Leaving| !leaving.gone && !leaving.lost;
        let leaving = volume.leaving.iter().filter(goes);
        let leaving: Vec<Told<'_>> = leaving.map(|leaving| told(&leaving.replica)).collect();
        health(&replicas, &leaving)
    }

    /// What hosts tell of volumes, as the server acts on it. Replicas that are away for less than `after` may come
    /// back.
    pub(crate) fn volumes_seen(&mut self, after: Duration) -> BTreeMap<VolumeId, VolumeSeen> {
        let mut troubled = BTreeMap::new();
        let mut all = BTreeMap::new();
        for volume in self.intent.volumes() {
            let health = self.volume_health(volume);
            let mut seen = VolumeSeen {
                voters: health.voters,
                settled: health.settled,
                ..VolumeSeen::default()
            };
            for leaving in volume.leaving.iter().filter(|leaving| leaving.gone) {
                let host = leaving.replica.host;
                if self
                    .report(volume, host)
                    .is_some_and(|report| report.erased)
                {
                    seen.erased.insert(host);
                }
            }
            for replica in &volume.replicas {
                let Some(trouble) = self.replica_trouble(volume, *replica) else {
                    continue;
                };
                // It works on, only management does not hear of its host.
                if matches!(trouble, Trouble::Since(..)) && health.there.contains(&replica.number) {
                    continue;
                }
                let (reason, since) = match trouble {
                    Trouble::Lost(reason) => (reason, UnixMillis(0)),
                    Trouble::Since(reason, since) => (reason, since),
                    Trouble::Seen(reason) => {
                        let key = (volume.id, replica.number);
                        let since = self.troubled.get(&key).copied().unwrap_or(self.now);
                        troubled.insert(key, since);
                        (reason, since)
                    }
                };
                let away = self.now.0.saturating_sub(since.0);
                if since.0 == 0 || u128::from(away) >= after.as_millis() {
                    seen.lost.insert(replica.number, reason);
                }
            }
            all.insert(volume.id, seen);
        }
        self.troubled = troubled;
        all
    }

    fn replica_trouble(&self, volume: &Volume, replica: Replica) -> Option<Trouble> {
        let known = self.hosts.get(&replica.host)?;
        if self.liveness(replica.host) == Liveness::Down {
            // Nobody could check in while there was no server.
            let since = known.status.last_checkin.max(self.started);
            return Some(Trouble::Since("its host is down".to_owned(), since));
        }
        let storage = known.storage.as_ref()?;
        if let Ok(disk) = storage.disk_id.parse::<DiskId>()
            && disk != replica.disk
        {
            return Some(Trouble::Lost("its host has another disk".to_owned()));
        }
        if !storage.disk_trouble.is_empty() {
            let reason = format!("the disk of its host failed: {}", storage.disk_trouble);
            return Some(Trouble::Seen(reason));
        }
        let report = self.report(volume, replica.host)?;
        match &report.replica {
            Some(told) if told.role == "unusable" => Some(Trouble::Seen(told.trouble.clone())),
            None if !report.trouble.is_empty() => Some(Trouble::Seen(report.trouble.clone())),
            Some(_) | None => None,
        }
    }

    fn replica_view(
        &self,
        volume: &Volume,
        replica: Replica,
        reports: bool,
    ) -> v1::volume::VolumeReplica {
        let report = self.report(volume, replica.host).filter(|_| reports);
        v1::volume::VolumeReplica {
            number: replica.number,
            host_id: replica.host.to_string(),
            host_name: self.intent.path(ObjectId::Host(replica.host)),
            disk_id: replica.disk.to_string(),
            host: match reports {
                true => v1::Liveness::from(self.liveness(replica.host)).into(),
                false => v1::Liveness::Unspecified.into(),
            },
            report: report.and_then(|report| report.replica.clone()),
            trouble: report.map_or(String::new(), |report| report.trouble.clone()),
            state: String::new(),
            matched: 0,
            percent: 0,
        }
    }

    fn attached_view(
        &self,
        volume: &Volume,
        attached: AttachedTo,
        reports: bool,
    ) -> v1::volume::Attached {
        let report = self.report(volume, attached.host).filter(|_| reports);
        // What the host told of an earlier attachment says nothing of this one.
        let report = report
            .and_then(|report| report.attachment.clone())
            .filter(|report| report.number == attached.attachment.number);
        let serves = report.as_ref().filter(|report| report.state == "attached");
        let uri = |report: &v1::AttachmentReport| {
            format!("nbd+unix:///{}?socket={}", volume.name, report.socket)
        };
        v1::volume::Attached {
            host_id: attached.host.to_string(),
            host_name: self.intent.path(ObjectId::Host(attached.host)),
            attachment: Some((&attached.attachment).into()),
            uri: serves.map_or(String::new(), uri),
            report,
        }
    }

    fn report(&self, volume: &Volume, host: HostId) -> Option<&v1::VolumeReport> {
        let told = self.hosts.get(&host)?.storage.as_ref()?;
        let id = volume.id.to_string();
        told.volumes.iter().find(|report| report.volume_id == id)
    }
}
