//! Volumes, as their hosts tell of them: who is away gives way to another, and what is deleted goes.

use crate::cluster::{Agent, Cluster, Place, by_id, eventually, get, path, refused};
use api::tonic::Code;
use api::v1;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::task::JoinHandle;

const SOON: Duration = Duration::from_secs(10);
/// A host is down after some seconds of silence.
const DOWN: Duration = Duration::from_secs(30);
const GIB: u64 = 1 << 30;

/// Hosts whose storage is away, as the others see it.
type Away = Arc<Mutex<BTreeSet<String>>>;

/// What a host's storage tells that does at once what it is told.
fn storage(config: &v1::HostConfig, number: usize, away: &BTreeSet<String>) -> v1::StorageReport {
    let told = config.storage.clone().unwrap_or_default();
    let volumes = told.volumes.iter().map(|volume| {
        let there = |replica: &&v1::Replica| !away.contains(&replica.host_id);
        let mut all = volume.replicas.iter().chain(&volume.leaving);
        let here = all.any(|it| it.host_id == config.host_id);
        let leader = volume.replicas.iter().find(there);
        let leads = leader.is_some_and(|it| it.host_id == config.host_id);
        let members = volume.replicas.iter().map(|replica| v1::MemberReport {
            number: replica.number,
            host_id: replica.host_id.clone(),
            there: there(&replica),
            votes: true,
            wanted: true,
            matched: 1,
            ..Default::default()
        });
        v1::VolumeReport {
            volume_id: volume.id.clone(),
            replica: here.then(|| v1::ReplicaReport {
                role: if leads { "leader" } else { "follower" }.to_owned(),
                term: 1,
                size_bytes: volume.size_bytes,
                members: if leads { members.collect() } else { Vec::new() },
                ..Default::default()
            }),
            ..Default::default()
        }
    });
    let erased = told.deleted_volume_ids.iter().map(|id| v1::VolumeReport {
        volume_id: id.clone(),
        erased: true,
        ..Default::default()
    });
    v1::StorageReport {
        disk_id: format!("{number:032x}"),
        disk_bytes: 20 * GIB,
        disk_free_bytes: 20 * GIB,
        volumes: volumes.chain(erased).collect(),
        ..Default::default()
    }
}

/// Obeys until it is aborted.
async fn obey(agent: &Agent, number: usize, away: Away) -> JoinHandle<()> {
    let mut stream = agent.connect().await;
    tokio::spawn(async move {
        let mut pulse = tokio::time::interval(Duration::from_millis(100));
        let mut config = v1::HostConfig::default();
        loop {
            tokio::select! {
                update = stream.updates.message() => match update {
                    Ok(Some(update)) => config = stream.take(update),
                    _ => return,
                },
                _ = pulse.tick() => {}
            }
            let away = away.lock().unwrap().clone();
            let report = v1::HostReport {
                agent_version: "test".to_owned(),
                received_generation: config.generation,
                applied_generation: config.generation,
                takes_changes: true,
                storage: Some(storage(&config, number, &away)),
                ..Default::default()
            };
            if stream.reports.send(report).await.is_err() {
                return;
            }
        }
    })
}

async fn volume(cluster: &Cluster) -> v1::Volume {
    let got = cluster.admin.clone().get_volume(get("data")).await;
    got.unwrap().into_inner()
}

/// The volume, when it is so.
async fn wait(
    cluster: &Cluster,
    what: &str,
    limit: Duration,
    holds: impl Fn(&v1::Volume) -> bool,
) -> v1::Volume {
    let holds = &holds;
    eventually(what, limit, || async {
        let volume = volume(cluster).await;
        match holds(&volume) {
            true => Ok(volume),
            false => Err(format!("{volume:?}")),
        }
    })
    .await
}

fn states(volume: &v1::Volume) -> Vec<&str> {
    let states = volume.replicas.iter().map(|it| it.state.as_str());
    states.collect()
}

pub(crate) async fn a_replica_that_is_away_gives_way_and_what_is_deleted_goes(place: Place) {
    let options = controller::RunOptions {
        replace_after: Duration::from_secs(1),
        ..place.options()
    };
    let cluster = Cluster::start_with(place, options).await;
    let away = Away::default();
    let mut agents = Vec::new();
    let mut obeying = Vec::new();
    for number in 1..=4 {
        let agent = cluster.join(&format!("s{number}"), number as u8).await;
        obeying.push(obey(&agent, number, Arc::clone(&away)).await);
        agents.push(agent);
    }
    let request = v1::CreateVolumeRequest {
        name: "data".to_owned(),
        size_bytes: GIB,
        ..Default::default()
    };
    eventually("there is room", SOON, || async {
        let made = cluster.admin.clone().create_volume(request.clone()).await;
        made.map(drop).map_err(|status| status.message().to_owned())
    })
    .await;
    let made = wait(&cluster, "it is healthy", SOON, |it| it.state == "healthy").await;
    let mut admin = cluster.admin.clone();
    let smaller = v1::ResizeVolumeRequest {
        object: by_id(&made.id),
        size_bytes: GIB / 2,
        ..Default::default()
    };
    refused(
        admin.resize_volume(smaller).await,
        Code::InvalidArgument,
        "cannot become smaller",
    );
    let larger = v1::ResizeVolumeRequest {
        object: by_id(&made.id),
        size_bytes: 2 * GIB,
        ..Default::default()
    };
    admin.resize_volume(larger).await.unwrap();

    // One host falls silent for management only: its replica works, and stays.
    let last = made.replicas[2].host_id.clone();
    let at = agents.iter().position(|agent| agent.id == last).unwrap();
    obeying[at].abort();
    let down = |it: &v1::Volume| states(it)[2] == "down";
    let seen = wait(&cluster, "its host is down", DOWN, down).await;
    assert_eq!(seen.state, "degraded");
    let mut looks = tokio::time::interval(Duration::from_millis(500));
    for _ in 0..6 {
        looks.tick().await;
        let numbers: Vec<u64> = volume(&cluster)
            .await
            .replicas
            .iter()
            .map(|it| it.number)
            .collect();
        assert_eq!(numbers, [1, 2, 3], "the others have it");
    }
    // Its storage is away, too.
    away.lock().unwrap().insert(last.clone());
    let replaced = wait(&cluster, "another takes its place", SOON, |it| {
        it.state == "healthy" && states(it).last() == Some(&"gone")
    })
    .await;
    let numbers: Vec<u64> = replaced.replicas.iter().map(|it| it.number).collect();
    assert_eq!(numbers, [1, 2, 4, 3]);
    // It comes back, and is told to delete what it has.
    obeying[at] = obey(&agents[at], at + 1, Arc::clone(&away)).await;
    wait(&cluster, "it is forgotten", SOON, |it| {
        it.replicas.len() == 3
    })
    .await;

    let request = v1::DeleteVolumeRequest {
        object: path("data"),
        keep_seconds: Some(0),
        ..Default::default()
    };
    cluster.admin.clone().delete_volume(request).await.unwrap();
    eventually("it is gone for good", SOON, || async {
        match cluster.admin.clone().get_volume(get("data")).await {
            Err(status) if status.code() == Code::NotFound => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    obeying.iter().for_each(JoinHandle::abort);
}
