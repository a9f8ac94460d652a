//! Volumes, as hosts are told of them, and what hosts tell.

use super::{BadRequest, Field, MAX_MESSAGE, MAX_TEXT, list, parse};
use crate::v1;
use model::{
    DiskId, Founding, MOST_REPLICAS, Recovery, Replica, StorageConfig, VolumeAttachment,
    VolumeConfig, VolumeSize,
};

/// Volumes of a host at most.
const MAX_VOLUMES: usize = 10_000;
const MAX_PEERS: usize = 4096;
/// Replicas of a volume that are to go, and are not gone: more than can be while hosts that come give way to others.
const MOST_LEAVING: usize = 256;
/// Replicas of a volume, and those that come and go.
const MOST_MEMBERS: usize = 2 * MOST_REPLICAS;

pub(super) fn config(wire: v1::StorageConfig) -> Result<StorageConfig, BadRequest> {
    let root = Field::root("storage");
    let peers = list(root.of("peers"), wire.peers, MAX_PEERS, |field, peer| {
        let host = parse(field.of("host_id"), &peer.host_id)?;
        Ok((host, parse(field.of("address"), &peer.address)?))
    })?;
    let deleted = root.of("deleted_volume_ids");
    let deleted = list(
        deleted,
        wire.deleted_volume_ids,
        MAX_VOLUMES,
        |field, id| parse(field, &id),
    )?;
    Ok(StorageConfig {
        peers: peers.into_iter().collect(),
        volumes: list(root.of("volumes"), wire.volumes, MAX_VOLUMES, volume)?,
        deleted: deleted.into_iter().collect(),
    })
}

fn volume(field: Field<'_>, wire: v1::VolumeConfig) -> Result<VolumeConfig, BadRequest> {
    let size = field.of("size_bytes");
    let attachment = field.of("attachment");
    Ok(VolumeConfig {
        id: parse(field.of("id"), &wire.id)?,
        name: parse(field.of("name"), &wire.name)?,
        size: VolumeSize::new(wire.size_bytes).map_err(|bad| size.bad(bad))?,
        replicas: list(field.of("replicas"), wire.replicas, MOST_REPLICAS, replica)?,
        founding: wire
            .founding
            .map(|wire| founding(field.of("founding"), wire))
            .transpose()?,
        leaving: list(field.of("leaving"), wire.leaving, MOST_LEAVING, replica)?,
        numbered: wire.numbered,
        recovery: wire.recovery.map(|wire| Recovery {
            number: wire.number,
            replica: wire.replica,
            attachments: wire.attachments,
        }),
        attachment: wire
            .attachment
            .map(|wire| attached(attachment, wire))
            .transpose()?,
    })
}

fn founding(field: Field<'_>, wire: v1::volume_config::Founding) -> Result<Founding, BadRequest> {
    let size = field.of("size_bytes");
    Ok(Founding {
        size: VolumeSize::new(wire.size_bytes).map_err(|bad| size.bad(bad))?,
        replicas: list(field.of("replicas"), wire.replicas, MOST_REPLICAS, replica)?,
    })
}

fn replica(field: Field<'_>, wire: v1::Replica) -> Result<Replica, BadRequest> {
    Ok(Replica {
        number: wire.number,
        host: parse(field.of("host_id"), &wire.host_id)?,
        disk: parse(field.of("disk_id"), &wire.disk_id)?,
    })
}

fn attached(field: Field<'_>, wire: v1::VolumeAttachment) -> Result<VolumeAttachment, BadRequest> {
    let port = field.of("tcp_port");
    let number = u16::try_from(wire.tcp_port);
    let number = number.map_err(|_| port.bad("not a TCP port: 1 to 65535, or 0 for none"))?;
    Ok(VolumeAttachment {
        number: wire.number,
        read_only: wire.read_only,
        tcp_port: (number != 0).then_some(number),
    })
}

/// What a host told of its storage, as far as it is of a size that one may tell.
pub fn sized_report(told: v1::StorageReport) -> Option<v1::StorageReport> {
    let short = |text: &String| text.len() <= MAX_TEXT;
    let message = |text: &String| text.len() <= MAX_MESSAGE;
    let volume = |volume: &v1::VolumeReport| {
        let replica = volume.replica.iter().all(|replica| {
            let texts = [&replica.role, &replica.leader_host_id, &replica.digest];
            let mut members = replica.members.iter();
            replica.members.len() <= MOST_MEMBERS
                && replica.voters.len() <= MOST_MEMBERS
                && members.all(|member| short(&member.host_id))
                && texts.into_iter().all(short)
                && message(&replica.trouble)
        });
        let attachment = volume.attachment.iter().all(|attachment| {
            let texts = [&attachment.state, &attachment.socket, &attachment.tcp];
            texts.into_iter().all(short) && message(&attachment.trouble)
        });
        replica && attachment && short(&volume.volume_id) && message(&volume.trouble)
    };
    let fits = told.volumes.len() <= MAX_VOLUMES
        && told.volumes.iter().all(volume)
        && short(&told.disk_id)
        && message(&told.disk_trouble);
    fits.then_some(told)
}

/// A host's disk, if it has one that works: which, and how many bytes it has for volumes.
pub fn disk_room(told: &v1::StorageReport) -> Option<(DiskId, u64)> {
    if !told.disk_trouble.is_empty() {
        return None;
    }
    Some((told.disk_id.parse().ok()?, told.disk_bytes))
}
