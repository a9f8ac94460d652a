//! The host's own SBS service: how its storage is. On the socket of `local_api`.

use crate::local_api::{Answer, Streamed};
use crate::storage::{Seen, quiet};
use api::tonic::{self, Response, Status};
use api::v1;
use std::collections::BTreeMap;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;

/// Who answers.
#[derive(Clone)]
pub(crate) struct SbsApi {
    seen: watch::Receiver<Option<Seen>>,
    /// There is no storage here, and will be none.
    absent: bool,
}

type Service = v1::sbs_server::SbsServer<SbsApi>;

impl SbsApi {
    /// `seen` is absent on a host that belongs to no cluster.
    pub(crate) fn new(seen: Option<watch::Receiver<Option<Seen>>>) -> Self {
        Self {
            absent: seen.is_none(),
            seen: seen.unwrap_or_else(|| watch::channel(None).1),
        }
    }

    pub(crate) fn service(self) -> Service {
        v1::sbs_server::SbsServer::new(self)
    }

    fn now(&self) -> Result<Seen, Status> {
        self.seen.borrow().clone().ok_or_else(|| match self.absent {
            true => Status::not_found("this host belongs to no cluster, and has no volumes"),
            false => Status::unavailable(
                "no storage process answers: there is nothing for it to do here yet, or storage.log in the run directory says why",
            ),
        })
    }
}

#[tonic::async_trait]
impl v1::sbs_server::Sbs for SbsApi {
    async fn storage_status(
        &self,
        _: tonic::Request<v1::StorageStatusRequest>,
    ) -> Answer<v1::HostStorageStatus> {
        let look = self.now()?.look;
        let disk = look.disk.as_ref();
        let peers = look.peers.iter().map(|(host, peer)| v1::StoragePeerStatus {
            host_id: host.to_string(),
            address: peer.address.to_string(),
            connected: peer.connected,
            trouble: peer.trouble.clone().unwrap_or_default(),
            dropped_frames: peer.dropped_frames,
        });
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        Ok(Response::new(v1::HostStorageStatus {
            pid: look.pid,
            disk_id: disk.map_or(String::new(), |disk| disk.id.to_string()),
            disk_path: disk.map_or(String::new(), |disk| disk.path.display().to_string()),
            disk_bytes: disk.map_or(0, |disk| disk.bytes),
            disk_free_bytes: disk.map_or(0, |disk| disk.free_bytes),
            disk_trouble: disk.and_then(|disk| disk.dead.clone()).unwrap_or_default(),
            replicas: count(look.replicas.len()),
            attachments: count(look.attachments.len()),
            peers: peers.collect(),
        }))
    }

    async fn list_volumes(
        &self,
        _: tonic::Request<v1::ListHostVolumesRequest>,
    ) -> Answer<v1::ListHostVolumesResponse> {
        let volumes = self.now()?.report.volumes;
        Ok(Response::new(v1::ListHostVolumesResponse { volumes }))
    }

    async fn get_volume(
        &self,
        request: tonic::Request<v1::GetHostVolumeRequest>,
    ) -> Answer<v1::VolumeReport> {
        let id = request.into_inner().volume_id;
        let mut volumes = self.now()?.report.volumes.into_iter();
        let found = volumes.find(|volume| volume.volume_id == id);
        found.map(Response::new).ok_or_else(|| {
            Status::not_found(format!(
                "this host has nothing of volume {id}: list what there is with ListVolumes"
            ))
        })
    }

    type WatchVolumesStream = Streamed<v1::HostVolumeEvent>;

    async fn watch_volumes(
        &self,
        _: tonic::Request<v1::WatchHostVolumesRequest>,
    ) -> Answer<Self::WatchVolumesStream> {
        let (send, receive) = mpsc::channel(16);
        tokio::spawn(watch(self.seen.clone(), send));
        Ok(Response::new(Box::pin(ReceiverStream::new(receive))))
    }
}

/// Every volume at first, then each that changes, until the agent or the reader is gone.
async fn watch(
    mut seen: watch::Receiver<Option<Seen>>,
    send: mpsc::Sender<Result<v1::HostVolumeEvent, Status>>,
) {
    let mut told: BTreeMap<String, v1::VolumeReport> = BTreeMap::new();
    let mut first = true;
    loop {
        let now = seen.borrow_and_update().clone();
        let volumes = now.into_iter().flat_map(|seen| seen.report.volumes);
        let volumes: BTreeMap<String, v1::VolumeReport> = volumes
            .map(|volume| (volume.volume_id.clone(), volume))
            .collect();
        let event = |volume: &v1::VolumeReport, deleted| v1::HostVolumeEvent {
            volume: Some(volume.clone()),
            deleted,
            snapshot_complete: false,
        };
        let changed = volumes.iter().filter(|(id, volume)| {
            let before = told.get(*id);
            before.is_none_or(|before| quiet(before) != quiet(volume))
        });
        let mut events: Vec<_> = changed.map(|(_, volume)| event(volume, false)).collect();
        let gone = told.iter().filter(|(id, _)| !volumes.contains_key(*id));
        events.extend(gone.map(|(_, volume)| event(volume, true)));
        if std::mem::take(&mut first) {
            events.push(v1::HostVolumeEvent {
                snapshot_complete: true,
                ..v1::HostVolumeEvent::default()
            });
        }
        for event in events {
            if send.send(Ok(event)).await.is_err() {
                return;
            }
        }
        told = volumes;
        tokio::select! {
            changed = seen.changed() => if changed.is_err() { return },
            () = send.closed() => return,
        }
    }
}
