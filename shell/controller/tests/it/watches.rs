//! Watches.

use crate::cluster::{Cluster, Place, account, delete, path, refused, subnet, vpc};
use api::tonic::{Code, Streaming};
use api::v1;
use std::collections::BTreeSet;
use v1::watch_event::Event;

async fn watch(cluster: &Cluster, request: v1::WatchRequest) -> Streaming<v1::WatchEvent> {
    cluster
        .admin
        .clone()
        .watch(request)
        .await
        .unwrap()
        .into_inner()
}

async fn next(stream: &mut Streaming<v1::WatchEvent>) -> Event {
    stream.message().await.unwrap().unwrap().event.unwrap()
}

fn from(revision: u64) -> v1::WatchRequest {
    v1::WatchRequest {
        from_revision: revision,
        ..Default::default()
    }
}

async fn revision(cluster: &Cluster) -> u64 {
    let info = cluster
        .admin
        .clone()
        .get_server_info(v1::GetServerInfoRequest {})
        .await;
    info.unwrap().into_inner().revision
}

/// Writers make and delete objects while a watcher breaks off and resumes again and again: it
/// must see every single revision, once, in order.
pub(crate) async fn a_watch_has_no_gap_under_writes(place: Place) {
    const WRITERS: usize = 8;
    const EACH: usize = 30;
    let cluster = Cluster::start(place).await;
    let start = revision(&cluster).await;
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let mut admin = cluster.admin.clone();
            tokio::spawn(async move {
                for number in 0..EACH {
                    let name = format!("w{writer}-{number}");
                    admin.create_account(account(&name)).await.unwrap();
                    admin.delete_account(delete(&name)).await.unwrap();
                }
            })
        })
        .collect();
    let end = start + (WRITERS * EACH * 2) as u64;
    let mut last = start;
    let mut patience = 1;
    while last < end {
        let mut stream = watch(&cluster, from(last)).await;
        let mut taken = 0;
        while taken < patience && last < end {
            match next(&mut stream).await {
                Event::Change(change) => {
                    assert_eq!(change.revision, last + 1, "a gap or a repetition");
                    last = change.revision;
                    taken += 1;
                }
                Event::Progress(progress) => assert!(progress.revision <= last),
                Event::HostLiveness(_) => {}
            }
        }
        // More and less each time, so that it breaks off everywhere.
        patience = patience % 40 + 7;
    }
    for writer in writers {
        writer.await.unwrap();
    }
    assert_eq!(revision(&cluster).await, end);
}

pub(crate) async fn a_watch_is_filtered(place: Place) {
    let cluster = Cluster::start(place).await;
    cluster.furnish().await;
    let mut admin = cluster.admin.clone();
    admin.create_vpc(vpc("red", "10.4.0.0/16")).await.unwrap();
    let start = revision(&cluster).await;
    let request = v1::WatchRequest {
        kinds: vec![v1::Kind::Subnet.into()],
        filter: Some(v1::Filter {
            parent_kind: v1::Kind::Vpc.into(),
            parent: path("red"),
            ..Default::default()
        }),
        ..from(start)
    };
    let mut live = watch(&cluster, request.clone()).await;
    admin
        .create_subnet(subnet("blue", "s1", "10.4.16.0/24"))
        .await
        .unwrap();
    admin
        .create_subnet(subnet("red", "s2", "10.4.16.0/24"))
        .await
        .unwrap();
    admin.create_account(account("other")).await.unwrap();
    admin.delete_subnet(delete("blue/s1")).await.unwrap();
    admin.delete_subnet(delete("red/s2")).await.unwrap();
    let mut resumed = watch(&cluster, request).await;
    for stream in [&mut live, &mut resumed] {
        let mut seen = Vec::new();
        while seen.len() < 2 {
            match next(stream).await {
                Event::Change(change) => {
                    let Some(v1::change::Object::Subnet(subnet)) = change.object else {
                        panic!("not a subnet: {change:?}");
                    };
                    seen.push((subnet.path, change.deleted));
                }
                Event::Progress(_) => {}
                Event::HostLiveness(liveness) => panic!("no hosts were asked for: {liveness:?}"),
            }
        }
        let path = "default/red/s2".to_owned();
        assert_eq!(seen, [(path.clone(), false), (path, true)]);
    }
    let nothing = v1::WatchRequest {
        filter: Some(v1::Filter {
            parent_kind: v1::Kind::Vpc.into(),
            parent: path("nowhere"),
            ..Default::default()
        }),
        ..from(start)
    };
    refused(admin.watch(nothing).await, Code::NotFound, "nowhere");
}

pub(crate) async fn a_watch_of_the_future_is_refused(place: Place) {
    let cluster = Cluster::start(place).await;
    let mut stream = watch(&cluster, from(1_000_000)).await;
    refused(
        stream.message().await,
        Code::OutOfRange,
        "list the objects again",
    );
}

pub(crate) async fn a_snapshot_comes_first(place: Place) {
    let cluster = Cluster::start(place).await;
    cluster.furnish().await;
    cluster.join("c1", 11).await;
    cluster.route_host("r1", 21).await;
    cluster.furnish_routing().await;
    let mut stream = watch(&cluster, from(0)).await;
    let mut seen = BTreeSet::new();
    let complete = loop {
        match next(&mut stream).await {
            Event::Change(change) => {
                assert!(!change.deleted);
                seen.insert(match change.object.unwrap() {
                    v1::change::Object::Account(account) => account.name,
                    v1::change::Object::Vpc(vpc) => vpc.path,
                    v1::change::Object::Subnet(subnet) => subnet.path,
                    v1::change::Object::Nic(nic) => nic.path,
                    v1::change::Object::Host(host) => host.name,
                    v1::change::Object::Router(router) => router.path,
                    v1::change::Object::External(network) => network.name,
                    v1::change::Object::PublicIp(public) => public.path,
                    v1::change::Object::Volume(volume) => volume.path,
                });
            }
            Event::Progress(progress) => break progress,
            Event::HostLiveness(liveness) => panic!("before the snapshot was over: {liveness:?}"),
        }
    };
    let expected = [
        "default",
        "default/blue",
        "default/blue/web",
        "default/blue/gw",
        "default/www",
        "ext",
        "c1",
        "r1",
    ];
    assert_eq!(seen, expected.map(str::to_owned).into());
    assert!(complete.snapshot_complete);
    assert_eq!(complete.revision, revision(&cluster).await);
    let Event::HostLiveness(liveness) = next(&mut stream).await else {
        panic!("liveness follows the snapshot");
    };
    assert_eq!(liveness.liveness(), v1::Liveness::Joining);
    cluster
        .admin
        .clone()
        .create_account(account("late"))
        .await
        .unwrap();
    loop {
        if let Event::Change(change) = next(&mut stream).await {
            assert_eq!(change.revision, complete.revision + 1);
            break;
        }
    }
}
