//! Volumes in the language of [`crate::script`].

use crate::script::{Line, World, expect, id, parsed};
use fleet_plan::{
    AttachTo, AttachVolume, Command, CreateVolume, DeleteVolume, Intent, MoveReplica,
    RecoverVolume, Refusal, ReplicaTold, ResizeVolume, SetReplicas, Standing, VolumeSeen,
    VolumeStep, next_volume_steps,
};
use model::{
    AccountId, HostId, Kind, ObjectId, Recovery, Replica, StorageConfig, Volume, VolumeId,
};
use std::collections::BTreeMap;
use std::fmt::Write as _;

pub(crate) fn command(world: &World, line: &Line<'_>) -> Result<Command, Refusal> {
    let path = line.arg(1);
    if line.arg(0) == "volume" {
        let (account, name) = world.below::<AccountId>(Kind::Account, path)?;
        return Ok(Command::CreateVolume(CreateVolume {
            account,
            name,
            size: parsed(line.arg(2)),
            replicas: line.get("replicas").unwrap_or(3),
            labels: line.labels(),
        }));
    }
    let volume = id(world.intent.resolve(Kind::Volume, None, path)?);
    let expect = expect(line);
    match line.arg(0) {
        "restore-volume" => return Ok(Command::RestoreVolume { volume, expect }),
        "resize-volume" => {
            return Ok(Command::ResizeVolume(ResizeVolume {
                volume,
                expect,
                size: parsed(line.arg(2)),
            }));
        }
        "set-replicas" => {
            return Ok(Command::SetReplicas(SetReplicas {
                volume,
                expect,
                count: parsed(line.arg(2)),
            }));
        }
        "recover-volume" => {
            let dead = line.all("dead").into_iter();
            return Ok(Command::RecoverVolume(RecoverVolume {
                volume,
                expect,
                accept_loss: line.words.contains(&"accept-loss"),
                dead: dead
                    .map(|host| world.host(host))
                    .collect::<Result<_, _>>()?,
            }));
        }
        "move-replica" => {
            let to = line.get::<String>("to");
            return Ok(Command::MoveReplica(MoveReplica {
                volume,
                expect,
                from: world.host(line.arg(2))?,
                to: to.map(|to| world.host(&to)).transpose()?,
            }));
        }
        "delete-volume" => {
            return Ok(Command::DeleteVolume(DeleteVolume {
                volume,
                expect,
                keep_millis: line.get("keep").unwrap_or(1000),
            }));
        }
        _ => {}
    }
    let to = match line.arg(2) {
        "none" => None,
        host => Some(AttachTo {
            host: world.host(host)?,
            read_only: line.get("read-only").unwrap_or(false),
            tcp_port: line.get("tcp-port"),
        }),
    };
    let from = line.get::<String>("from");
    let from = from.map(|from| world.host(&from)).transpose()?;
    let attach = AttachVolume {
        volume,
        expect,
        to,
        from,
    };
    Ok(Command::AttachVolume(attach))
}

/// What is known of a replica by its number: `works`, `away`, `partial` or `lost`, and `leader`, `last TERM.INDEX`,
/// `damaged ENTRIES`, `voters 1,2`.
pub(crate) fn told(world: &mut World, line: &Line<'_>) {
    let why = |text: &str| format!("it is {text}");
    let standing = match line.arg(2) {
        "works" => Standing::Works,
        "away" => Standing::Away(why("away")),
        "partial" => Standing::Partial(why("being filled")),
        _ => Standing::Lost(why("lost")),
    };
    let (term, index) = line.get::<String>("last").map_or((0, 0), |last| {
        let (term, index) = last.split_once('.').unwrap();
        (parsed(term), parsed(index))
    });
    let voters = line.get::<String>("voters").unwrap_or_default();
    let told = ReplicaTold {
        standing,
        leads: line.words.contains(&"leader"),
        last: (term, index),
        damaged_entries: line.get("damaged").unwrap_or(0),
        voters: voters
            .split(',')
            .filter(|it| !it.is_empty())
            .map(parsed)
            .collect(),
    };
    world.told.insert(parsed(line.arg(1)), told);
}

/// What hosts tell of a volume: `leader` (somebody leads), `settled` (with what is wanted), `voters 1,2`, `erased HOST`,
/// `lost NUMBER`.
fn seen(world: &World, line: &Line<'_>, volume: &Volume) -> VolumeSeen {
    let has = |word: &str| line.words.contains(&word);
    let numbers = volume.replicas.iter().map(|replica| replica.number);
    let voters = line.all("voters");
    let voters = match voters.first() {
        Some(text) => text.split(',').map(parsed).collect(),
        None => numbers.collect(),
    };
    let erased = line.all("erased").into_iter();
    let lost = line.all("lost").into_iter();
    VolumeSeen {
        voters: has("leader").then_some(voters),
        settled: has("settled"),
        erased: erased.map(|host| world.host(host).unwrap()).collect(),
        lost: lost
            .map(|number| (parsed(number), "it is away".to_owned()))
            .collect(),
    }
}

/// Takes what comes next, as a server would that sees this of a volume and nothing of the others.
pub(crate) fn tend(world: &mut World, line: &Line<'_>) -> String {
    let volume: VolumeId = id(world
        .intent
        .resolve(Kind::Volume, None, line.arg(1))
        .unwrap());
    let seen = seen(world, line, world.intent.volume(volume).unwrap());
    let seen = BTreeMap::from([(volume, seen)]);
    let steps = next_volume_steps(&world.intent, &seen, world.now);
    let mut out = String::new();
    for (volume, step) in steps {
        let text = match &step {
            VolumeStep::Settle => "settle".to_owned(),
            VolumeStep::Forget { host } => format!("forget {}", name_of(&world.intent, *host)),
            VolumeStep::Replace { number, reason } => format!("replace {number}, {reason}"),
            VolumeStep::Place => "place".to_owned(),
            VolumeStep::Erase => "erase".to_owned(),
        };
        writeln!(out, "{text}").unwrap();
        let expect = fleet_plan::Expect::Any;
        let command = Command::AdvanceVolume {
            volume,
            expect,
            step,
        };
        out += &world.command_and_show(command);
    }
    match out.is_empty() {
        true => "nothing comes next\n".to_owned(),
        false => out,
    }
}

fn name_of(intent: &Intent, host: HostId) -> String {
    intent.path(ObjectId::Host(host))
}

pub(crate) fn show(intent: &Intent, volume: &Volume) -> String {
    let place = |replica: &Replica| {
        let host = name_of(intent, replica.host);
        format!("{} on {host} disk {}", replica.number, replica.disk.0)
    };
    let replicas: Vec<String> = volume.replicas.iter().map(place).collect();
    let mut text = format!(
        "volume {} {} replicas {}",
        intent.path(ObjectId::Volume(volume.id)),
        volume.size,
        replicas.join(", ")
    );
    for leaving in &volume.leaving {
        let gone = match (leaving.gone, leaving.lost) {
            (true, _) => "gone",
            (false, true) => "lost",
            (false, false) => "leaving",
        };
        write!(text, ", {gone}: {}", place(&leaving.replica)).unwrap();
    }
    for attached in &volume.attached {
        let host = name_of(intent, attached.host);
        write!(text, ", attached to {host} {}", how(attached.attachment)).unwrap();
    }
    if let Some(recovered) = volume.recovered {
        let (kept, known) = (recovered.kept, recovered.known);
        let Recovery {
            number,
            replica,
            attachments,
        } = recovered.recovery;
        write!(
            text,
            ", recovery {number} from {replica} after attachment {attachments}, kept {kept} of {known}, lacks {}",
            volume.lacking
        )
        .unwrap();
    }
    if let Some(deleted) = volume.deleted {
        let (at, until) = (deleted.at.0, deleted.until.0);
        write!(text, ", deleted at {at}, kept until {until}").unwrap();
    }
    text
}

fn how(attachment: model::VolumeAttachment) -> String {
    let mode = if attachment.read_only {
        " read only"
    } else {
        ""
    };
    let port = attachment.tcp_port.map(|port| format!(" port {port}"));
    format!("#{}{mode}{}", attachment.number, port.unwrap_or_default())
}

pub(crate) fn show_config(intent: &Intent, storage: &StorageConfig) -> String {
    let mut out = String::new();
    for volume in &storage.volumes {
        let hosts = volume.replicas.iter();
        let hosts: Vec<String> = hosts.map(|it| name_of(intent, it.host)).collect();
        let leaving = volume.leaving.iter();
        let leaving = leaving.map(|it| format!(", {} leaves", name_of(intent, it.host)));
        let leaving: String = leaving.collect();
        let recovery = volume.recovery.as_ref();
        let recovery = recovery.map(|it| format!(", recovery {} from {}", it.number, it.replica));
        let here = volume
            .attachment
            .map(|it| format!(", attached {}", how(it)));
        writeln!(
            out,
            "  volume {} {} on {}{leaving}{}{}",
            volume.name,
            volume.size,
            hosts.join(" "),
            recovery.unwrap_or_default(),
            here.unwrap_or_default()
        )
        .unwrap();
    }
    for volume in &storage.deleted {
        writeln!(out, "  delete {}", intent.path(ObjectId::Volume(*volume))).unwrap();
    }
    if !storage.peers.is_empty() {
        let peers = storage.peers.iter();
        let mut peers: Vec<String> = peers
            .map(|(host, address)| format!("{} {address}", name_of(intent, *host)))
            .collect();
        peers.sort();
        writeln!(out, "  storage peers {}", peers.join(", ")).unwrap();
    }
    out
}
