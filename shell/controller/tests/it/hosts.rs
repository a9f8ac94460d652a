//! Hosts: configurations out, reports in, who is heard of.

use crate::cluster::{Cluster, Place, delete, eventually, nics, path, refused};
use api::tonic::Code;
use api::v1;
use std::time::Duration;
use tokio::time::Instant;
use v1::nic_status::State;
use v1::watch_event::Event;

const SOON: Duration = Duration::from_secs(10);

pub(crate) async fn a_host_gets_its_configuration_and_reports(place: Place) {
    let options = controller::RunOptions {
        reflectors: vec!["192.0.2.1:179".parse().unwrap()],
        ..place.options()
    };
    let cluster = Cluster::start_with(place, options).await;
    let agent = cluster.join("c1", 11).await;
    cluster.furnish().await;
    let mut stream = agent.connect().await;
    let empty = stream.config().await;
    assert_eq!(empty.host_id, agent.id);
    let reflector = &empty.bgp.as_ref().unwrap().reflectors[0];
    let secret = cluster.server.bgp_secret().unwrap().0.clone();
    assert_eq!(
        (reflector.address.as_str(), &reflector.password),
        ("192.0.2.1", &secret)
    );
    stream.report(empty.generation, empty.generation).await;

    let made = cluster.nic("a1", "c1").await;
    assert_eq!(made.status.unwrap().state(), State::Pending);
    let config = stream.until_nics(1).await;
    assert_eq!(config.stacks[0].ports[0].nic_id, made.id);
    assert!(config.generation > empty.generation);
    stream.report(config.generation, empty.generation).await;
    let state = |expected: State| {
        let cluster = &cluster;
        async move {
            let status = cluster.get_nic("a1").await.status.unwrap();
            if status.state() == expected {
                Ok(status)
            } else {
                Err(format!("{status:?}"))
            }
        }
    };
    eventually("received, not done", SOON, || async {
        let status = cluster.get_host("c1").await.status.unwrap();
        let at = (status.received_generation, status.applied_generation);
        if at == (config.generation, empty.generation) {
            Ok(())
        } else {
            Err(format!("{at:?}"))
        }
    })
    .await;
    state(State::Pending).await.unwrap();

    let failing = v1::HostReport {
        received_generation: config.generation,
        applied_generation: empty.generation,
        conditions: vec![v1::Condition {
            kind: v1::Kind::Nic.into(),
            object_id: made.id.clone(),
            message: "making tap n-x: no such device: load the tun module".to_owned(),
            since_unix_ms: 1,
            attempts: 3,
        }],
        underlay_mtu: 1400,
        ..Default::default()
    };
    stream.reports.send(failing).await.unwrap();
    let status = eventually("the NIC failed", SOON, || state(State::Failed)).await;
    assert!(status.conditions[0].message.contains("tun module"));
    let host = cluster.get_host("c1").await.status.unwrap();
    assert_eq!(host.liveness(), v1::Liveness::Up);
    assert!(
        host.conditions
            .iter()
            .any(|c| c.message.contains("underlay MTU")),
        "{:?}",
        host.conditions
    );
    stream.report(config.generation, config.generation).await;
    eventually("the NIC works", SOON, || state(State::Applied)).await;

    cluster
        .admin
        .clone()
        .delete_nic(delete("blue/web/a1"))
        .await
        .unwrap();
    let config = stream.until_nics(0).await;
    assert!(config.stacks.is_empty());
}

/// A host that can be told of what changed is told nothing else, once it has had all of it.
pub(crate) async fn a_change_is_told_not_everything(place: Place) {
    let cluster = Cluster::start(place).await;
    let agent = cluster.join("c1", 11).await;
    cluster.furnish().await;
    for (name, takes_changes) in [("a1", true), ("a2", false)] {
        let mut stream = agent.connect().await;
        stream.takes_changes = takes_changes;
        let first = stream.updates.message().await.unwrap().unwrap();
        assert!(first.config.is_some() && first.change.is_none());
        let generation = stream.take(first).generation;
        stream.report(generation, generation).await;
        // What is asked of the server next is asked after it heard that.
        eventually("heard", SOON, || async {
            let status = cluster.get_host("c1").await.status.unwrap();
            match status.applied_generation == generation {
                true => Ok(()),
                false => Err(format!("{status:?}")),
            }
        })
        .await;
        let made = cluster.nic(name, "c1").await;
        let second = stream.updates.message().await.unwrap().unwrap();
        assert_eq!(second.change.is_some(), takes_changes, "{second:?}");
        assert_eq!(second.config.is_some(), !takes_changes, "{second:?}");
        if let Some(change) = &second.change {
            assert_eq!(change.base_generation, generation);
        }
        let config = stream.take(second);
        let ports = &config.stacks[0].ports;
        assert!(ports.iter().any(|port| port.nic_id == made.id));
        assert_eq!(config.generation, generation + 1);
    }
}

pub(crate) async fn frr_is_refused_where_taps_carry(place: Place) {
    let cluster = Cluster::start(place).await;
    let agent = cluster.join("c1", 11).await;
    let stream = agent.connect().await;
    let carried_by = |transport: v1::Transport| {
        let (cluster, reports) = (&cluster, &stream.reports);
        async move {
            let report = v1::HostReport {
                transport: transport.into(),
                ..v1::HostReport::default()
            };
            reports.send(report).await.unwrap();
            eventually("the server knows", SOON, || async {
                let status = cluster.get_host("c1").await.status.unwrap();
                match status.transport() == transport {
                    true => Ok(status),
                    false => Err(format!("{status:?}")),
                }
            })
            .await
        }
    };
    let set = |speaker: v1::Speaker| {
        let cluster = &cluster;
        async move {
            let found = cluster.get_host("c1").await;
            let request = v1::UpdateHostRequest {
                object: path("c1"),
                resource_version: found.meta.unwrap().resource_version,
                speaker: speaker.into(),
                ..v1::UpdateHostRequest::default()
            };
            cluster.admin.clone().update_host(request).await
        }
    };
    carried_by(v1::Transport::Tap).await;
    let refusal = set(v1::Speaker::Frr).await;
    let says = "its transport is tap, and FRR knows of no tunnels but the kernel's";
    refused(refusal, Code::FailedPrecondition, says);
    set(v1::Speaker::Builtin).await.unwrap();

    // The host's own settings are its operator's affair: what they come to is told.
    carried_by(v1::Transport::Kernel).await;
    set(v1::Speaker::Frr).await.unwrap();
    let wrong = |status: v1::HostStatus| {
        let conditions = status.conditions.into_iter().map(|c| c.message);
        conditions.collect::<Vec<String>>().join("; ")
    };
    let well = wrong(cluster.get_host("c1").await.status.unwrap());
    assert_eq!(well, "");
    let told = wrong(carried_by(v1::Transport::Tap).await);
    assert!(
        told.contains("announces none of its NICs: its transport is tap")
            && told.contains("vpc host set c1 --speaker builtin"),
        "{told}"
    );
    set(v1::Speaker::Builtin).await.unwrap();
    let well = wrong(cluster.get_host("c1").await.status.unwrap());
    assert_eq!(well, "");
}

pub(crate) async fn a_slow_host_gets_the_newest_only(place: Place) {
    let cluster = Cluster::start(place).await;
    let agent = cluster.join("c1", 11).await;
    cluster.furnish().await;
    let mut stream = agent.connect().await;
    stream.config().await;
    for number in 0..60 {
        cluster.nic(&format!("a{number}"), "c1").await;
    }
    // A few may be on the way; then comes the newest, and nothing in between.
    let mut updates = 0;
    let last = loop {
        let config = stream.config().await;
        stream.report(config.generation, 0).await;
        updates += 1;
        if nics(&config) == 60 {
            break config;
        }
    };
    assert!(
        updates <= 5,
        "{updates} configurations were queued for a host that did not read"
    );
    assert_eq!(
        cluster
            .get_host("c1")
            .await
            .status
            .unwrap()
            .wanted_generation,
        last.generation
    );
}

pub(crate) async fn a_silent_host_is_down_within_ten_seconds(place: Place) {
    let cluster = Cluster::start(place).await;
    let agent = cluster.join("c1", 11).await;
    let request = v1::WatchRequest {
        kinds: vec![v1::Kind::Host.into()],
        ..Default::default()
    };
    let mut events = cluster
        .admin
        .clone()
        .watch(request)
        .await
        .unwrap()
        .into_inner();
    let mut liveness = async || loop {
        if let Some(Event::HostLiveness(liveness)) = events.message().await.unwrap().unwrap().event
        {
            return liveness.liveness();
        }
    };
    assert_eq!(liveness().await, v1::Liveness::Joining);
    let mut stream = agent.connect().await;
    stream.report(1, 1).await;
    assert_eq!(liveness().await, v1::Liveness::Up);
    // From now on it says nothing, though its connection is fine.
    let silent = Instant::now();
    assert_eq!(liveness().await, v1::Liveness::Down);
    let took = silent.elapsed();
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert!(took > Duration::from_secs(6), "too nervous: {took:?}");
    let status = cluster.get_host("c1").await.status.unwrap();
    assert_eq!(status.liveness(), v1::Liveness::Down);
    stream.report(1, 1).await;
    assert_eq!(liveness().await, v1::Liveness::Up);
}

pub(crate) async fn waiting_tells_who_is_late(place: Place) {
    let cluster = Cluster::start(place).await;
    let (one, two) = (cluster.join("c1", 11).await, cluster.join("c2", 12).await);
    cluster.furnish().await;
    let obeying = one.obey().await;
    let mut idle = two.connect().await;
    idle.report(1, 1).await;
    let mut admin = cluster.admin.clone();
    let wait = |kind: v1::Kind, object: &str, timeout_ms| v1::WaitAppliedRequest {
        kind: kind.into(),
        object: path(object),
        timeout_ms,
        ..Default::default()
    };
    cluster.nic("a1", "c1").await;
    let mut progress = admin
        .wait_applied(wait(v1::Kind::Nic, "blue/web/a1", 30_000))
        .await
        .unwrap()
        .into_inner();
    let mut last = None;
    while let Some(message) = progress.message().await.unwrap() {
        last = Some(message);
    }
    assert!(last.unwrap().done);
    let status = cluster.get_nic("a1").await.status.unwrap();
    assert_eq!(status.state(), State::Applied);

    cluster.nic("a2", "c2").await;
    let mut progress = admin
        .wait_applied(wait(v1::Kind::Subnet, "blue/web", 300))
        .await
        .unwrap()
        .into_inner();
    let end = loop {
        match progress.message().await {
            Ok(Some(message)) => {
                assert!(!message.done);
                assert_eq!(message.hosts.len(), 2);
            }
            other => break other,
        }
    };
    refused(end, Code::DeadlineExceeded, "host c2 has generation 1 of ");

    // A delete is waited for by its revision.
    let deleted = admin
        .delete_nic(delete("blue/web/a1"))
        .await
        .unwrap()
        .into_inner();
    let mut progress = admin
        .wait_applied(v1::WaitAppliedRequest {
            revision: deleted.revision,
            timeout_ms: 30_000,
            ..Default::default()
        })
        .await
        .unwrap()
        .into_inner();
    let mut last = None;
    while let Some(message) = progress.message().await.unwrap() {
        last = Some(message);
    }
    let last = last.unwrap();
    assert!(
        last.done && last.hosts.len() == 1 && last.hosts[0].host_name == "c1",
        "{last:?}"
    );
    let nothing = admin.wait_applied(v1::WaitAppliedRequest::default()).await;
    refused(nothing, Code::InvalidArgument, "object");
    let future = v1::WaitAppliedRequest {
        revision: 1_000_000,
        ..Default::default()
    };
    refused(admin.wait_applied(future).await, Code::OutOfRange, "future");
    obeying.abort();
}

pub(crate) async fn a_host_ahead_of_the_store_is_overtaken(place: Place) {
    let cluster = Cluster::start(place).await;
    let agent = cluster.join("c1", 11).await;
    let mut stream = agent.connect().await;
    let first = stream.config().await;
    assert!(first.generation < 100);
    // As after a restore of an old backup: the host refuses everything up to 100.
    stream.report(100, 100).await;
    let next = stream.config().await;
    assert_eq!(next.generation, 101);
    stream.report(u64::MAX, 1).await;
    let end = stream.updates.message().await;
    refused(end, Code::InvalidArgument, "received_generation");
}

pub(crate) async fn a_newer_stream_replaces_the_older(place: Place) {
    let cluster = Cluster::start(place).await;
    let agent = cluster.join("c1", 11).await;
    let mut old = agent.connect().await;
    old.config().await;
    let mut new = agent.connect().await;
    refused(old.updates.message().await, Code::Aborted, "older one");
    new.config().await;
    new.report(1, 1).await;
    eventually("the new stream is heard", SOON, || async {
        match cluster.get_host("c1").await.status.unwrap().liveness() {
            v1::Liveness::Up => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}
