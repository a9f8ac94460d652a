//! A volume goes on from one replica: what is known of all of them, and what is noted of it.

use crate::request::{Reference, Unresolved, expect};
use crate::state::State;
use api::{BadRequest, Field, v1};
use fleet_plan::{Command, RecoverVolume, ReplicaTold, Standing};
use model::{DiskId, Kind, Liveness, ObjectId, Replica, Volume};
use std::collections::{BTreeMap, BTreeSet};
use tracing::info;

/// Hosts that are given up by one request, at most.
const MOST_DEAD: usize = 16;

pub(crate) fn recover(wire: v1::RecoverVolumeRequest) -> Result<Unresolved, BadRequest> {
    let volume = Reference::new(Field::root("object"), Kind::Volume, wire.object)?;
    let field = Field::root("dead");
    if wire.dead.len() > MOST_DEAD {
        return Err(field.bad(format!("{MOST_DEAD} hosts at most")));
    }
    let dead = wire.dead.into_iter();
    let dead = dead.map(|host| Reference::new(field, Kind::Host, Some(host)));
    let dead = dead.collect::<Result<Vec<Reference>, BadRequest>>()?;
    let (expect, accept_loss) = (expect(wire.resource_version), wire.accept_loss);
    Ok(Box::new(move |intent| {
        let dead = dead.iter().map(|host| host.host(intent));
        Ok(Command::RecoverVolume(RecoverVolume {
            volume: volume.volume(intent)?,
            expect,
            accept_loss,
            dead: dead.collect::<Result<BTreeSet<_>, _>>()?,
        }))
    }))
}

impl State {
    /// What is known of the replicas of the volume that a command is to recover; of other commands nothing.
    pub(crate) fn replicas_told(&self, command: &Command) -> BTreeMap<u64, ReplicaTold> {
        let Command::RecoverVolume(asked) = command else {
            return BTreeMap::new();
        };
        let Some(volume) = self.intent.volume(asked.volume) else {
            return BTreeMap::new();
        };
        let leaving = volume.leaving.iter().filter(|leaving| !leaving.gone);
        let leaving = leaving.map(|leaving| &leaving.replica);
        let all = volume.replicas.iter().chain(leaving);
        let told = |replica: &Replica| (replica.number, self.replica_told(volume, *replica));
        all.map(told).collect()
    }

    fn replica_told(&self, volume: &Volume, replica: Replica) -> ReplicaTold {
        let report = self.report(volume, replica.host);
        let told = report.and_then(|report| report.replica.as_ref());
        let standing = self.standing(volume, replica);
        let Some(told) = told else {
            return ReplicaTold {
                standing,
                ..ReplicaTold::nothing("")
            };
        };
        ReplicaTold {
            standing,
            leads: told.role == "leader",
            last: (told.last_term, told.last),
            damaged_entries: told.damaged_entries,
            voters: told.voters.iter().copied().collect(),
        }
    }

    fn standing(&self, volume: &Volume, replica: Replica) -> Standing {
        let away = |why: &str| Standing::Away(why.to_owned());
        if self.liveness(replica.host) == Liveness::Down {
            return away("its host is down");
        }
        let known = self.hosts.get(&replica.host);
        let Some(storage) = known.and_then(|known| known.storage.as_ref()) else {
            return away("its host tells nothing of its storage");
        };
        if !storage.disk_trouble.is_empty() {
            return Standing::Lost(format!(
                "the disk of its host failed: {}",
                storage.disk_trouble
            ));
        }
        if let Ok(disk) = storage.disk_id.parse::<DiskId>()
            && disk != replica.disk
        {
            return Standing::Lost("its host has another disk".to_owned());
        }
        let Some(report) = self.report(volume, replica.host) else {
            return away("its host tells nothing of it");
        };
        match &report.replica {
            None if report.trouble.is_empty() => away("its host tells nothing of it"),
            None => away(&report.trouble),
            Some(told) if matches!(told.role.as_str(), "unusable" | "opening") => {
                away(match told.trouble.as_str() {
                    "" => "it is being opened",
                    trouble => trouble,
                })
            }
            Some(told) if told.partial || told.chunks_taken + told.chunks_missing > 0 => {
                Standing::Partial("it was being filled".to_owned())
            }
            Some(_) => Standing::Works,
        }
    }

    /// Notes for good what a volume went on from, and without whom.
    pub(crate) fn audit_recovery(&self, actor: &str, volume: &Volume) {
        let Some(recovered) = volume.recovered else {
            return;
        };
        let host = |replica: &Replica| {
            let name = self.intent.path(ObjectId::Host(replica.host));
            format!("{} on {name}", replica.number)
        };
        let lost = volume.leaving.iter().filter(|leaving| leaving.lost);
        let lost: Vec<String> = lost.map(|leaving| host(&leaving.replica)).collect();
        let from: Vec<String> = volume.replicas.iter().map(host).collect();
        info!(
            target: "audit",
            actor,
            action = "recover volume",
            object = %volume.id,
            recovery = recovered.recovery.number,
            from = from.join(", "),
            lost = lost.join(", "),
            kept_entry = recovered.kept,
            known_entry = recovered.known,
            "Loss accepted"
        );
    }
}
