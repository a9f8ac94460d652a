//! Volumes, as hosts are told of them.

use crate::v1;
use model::{Recovery, Replica, StorageConfig, VolumeAttachment, VolumeConfig};

impl From<&StorageConfig> for v1::StorageConfig {
    fn from(storage: &StorageConfig) -> Self {
        let peers = storage.peers.iter();
        Self {
            peers: peers
                .map(|(host, address)| v1::StoragePeer {
                    host_id: host.to_string(),
                    address: address.to_string(),
                })
                .collect(),
            volumes: storage.volumes.iter().map(Into::into).collect(),
            deleted_volume_ids: storage.deleted.iter().map(ToString::to_string).collect(),
        }
    }
}

impl From<&VolumeConfig> for v1::VolumeConfig {
    fn from(volume: &VolumeConfig) -> Self {
        Self {
            id: volume.id.to_string(),
            name: volume.name.to_string(),
            size_bytes: volume.size.bytes(),
            replicas: volume.replicas.iter().map(Into::into).collect(),
            attachment: volume.attachment.as_ref().map(Into::into),
            founding: volume
                .founding
                .as_ref()
                .map(|founding| v1::volume_config::Founding {
                    size_bytes: founding.size.bytes(),
                    replicas: founding.replicas.iter().map(Into::into).collect(),
                }),
            leaving: volume.leaving.iter().map(Into::into).collect(),
            numbered: volume.numbered,
            recovery: volume.recovery.as_ref().map(Into::into),
        }
    }
}

impl From<&Recovery> for v1::Recovery {
    fn from(recovery: &Recovery) -> Self {
        Self {
            number: recovery.number,
            replica: recovery.replica,
            attachments: recovery.attachments,
        }
    }
}

impl From<&Replica> for v1::Replica {
    fn from(replica: &Replica) -> Self {
        Self {
            number: replica.number,
            host_id: replica.host.to_string(),
            disk_id: replica.disk.to_string(),
        }
    }
}

impl From<&VolumeAttachment> for v1::VolumeAttachment {
    fn from(attachment: &VolumeAttachment) -> Self {
        Self {
            number: attachment.number,
            read_only: attachment.read_only,
            tcp_port: attachment.tcp_port.map_or(0, Into::into),
        }
    }
}
