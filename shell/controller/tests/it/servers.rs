//! Starting, stopping, several at once.

use crate::cluster::{Cluster, Place, account, admin, eventually, get, nic};
use api::v1;
use controller::{InitOptions, RunOptions, Server, init};
use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1 as reflection;

pub(crate) async fn a_restart_keeps_everything(place: Place) {
    let cluster = Cluster::start(place).await;
    let agent = cluster.join("c1", 11).await;
    cluster.furnish().await;
    let obeying = agent.obey().await;
    let made = cluster.nic("a1", "c1").await;
    eventually("the NIC works", Duration::from_secs(10), || async {
        let status = cluster.get_nic("a1").await.status.unwrap();
        match status.state() {
            v1::nic_status::State::Applied => Ok(()),
            _ => Err(format!("{status:?}")),
        }
    })
    .await;
    let before = cluster.get_host("c1").await;
    obeying.abort();
    let cluster = cluster.restart().await;
    // The host is not taken for down, and its NIC not for broken, because the server was away.
    let after = cluster.get_host("c1").await;
    assert_eq!(before.meta, after.meta);
    let (before, after) = (before.status.unwrap(), after.status.unwrap());
    assert_eq!(before.wanted_generation, after.wanted_generation);
    assert_eq!(after.liveness(), v1::Liveness::Up);
    let nic = cluster.get_nic("a1").await;
    assert_eq!(
        nic.status.as_ref().unwrap().state(),
        v1::nic_status::State::Applied
    );
    assert_eq!(
        (nic.id, nic.addresses, nic.meta),
        (made.id, made.addresses, made.meta)
    );
    let mut stream = agent.connect().await;
    let config = stream.config().await;
    assert_eq!(config.generation, after.wanted_generation);
}

pub(crate) async fn reflection_and_health_answer(place: Place) {
    let cluster = Cluster::start(place).await;
    let channel = api::connect(&cluster.credential()).await.unwrap();
    let check = tonic_health::pb::HealthCheckRequest {
        service: "vpc.v1.Management".to_owned(),
    };
    let health = HealthClient::new(channel.clone())
        .check(check)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        health.status(),
        tonic_health::pb::health_check_response::ServingStatus::Serving
    );

    use reflection::server_reflection_request::MessageRequest;
    use reflection::server_reflection_response::MessageResponse;
    let request = reflection::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut answers = reflection::server_reflection_client::ServerReflectionClient::new(channel)
        .server_reflection_info(tokio_stream::once(request))
        .await
        .unwrap()
        .into_inner();
    let answer = answers.message().await.unwrap().unwrap().message_response;
    let Some(MessageResponse::ListServicesResponse(list)) = answer else {
        panic!("no list: {answer:?}");
    };
    let names: BTreeSet<_> = list
        .service
        .into_iter()
        .map(|service| service.name)
        .collect();
    for service in ["vpc.v1.Management", "vpc.v1.Enrollment", "vpc.v1.HostSync"] {
        assert!(names.contains(service), "{names:?}");
    }
}

pub(crate) async fn a_second_cluster_is_not_made_over_the_first(place: Place) {
    let made = place.init().await;
    let mode =
        |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&place.data()), 0o700);
    for entry in std::fs::read_dir(place.data()).unwrap() {
        let path = entry.unwrap().path();
        assert_eq!(mode(&path), 0o600, "{}", path.display());
    }
    let again = init(InitOptions::new(place.data(), vec![]))
        .await
        .unwrap_err();
    assert!(again.to_string().contains("is not empty"), "{again}");
    if let Some(database) = &place.database {
        let elsewhere = InitOptions {
            database: Some(database.clone()),
            ..InitOptions::new(place.dir.path().join("other"), vec![])
        };
        let taken = init(elsewhere).await.unwrap_err().to_string();
        assert!(
            taken.contains(&made.cluster) && !taken.contains("geheim"),
            "{taken}"
        );
    }
    let empty = RunOptions::new(place.dir.path(), "127.0.0.1:0".parse().unwrap());
    let error = Server::start(empty).await.unwrap_err().to_string();
    assert!(error.contains("vpc server init"), "{error}");
    let server = Server::start(place.options()).await.unwrap();
    let taken = RunOptions {
        listen: server.address(),
        ..place.options()
    };
    let error = Server::start(taken).await.unwrap_err().to_string();
    assert!(error.contains("another server running"), "{error}");
    server.stop().await.unwrap();
    let key = place.data().join("ca.key");
    std::fs::set_permissions(&key, PermissionsExt::from_mode(0o644)).unwrap();
    let error = Server::start(place.options())
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("chmod 0600"), "{error}");
}

/// Two servers on one database: what one does the other knows, nothing is handed out twice, and
/// a host may be connected to either.
pub(crate) async fn two_servers_work_as_one(place: Place) {
    let cluster = Cluster::start(place).await;
    let second = Server::start(cluster.options.clone()).await.unwrap();
    let mut other = admin(&cluster.place.credential(second.address())).await;
    cluster.furnish().await;
    let agent = cluster.join("c1", 11).await;

    // It joined at the first and connects to the second.
    let mut elsewhere = agent.credential.clone();
    elsewhere.servers = vec![second.address().to_string()];
    let at_second = crate::cluster::Agent {
        id: agent.id.clone(),
        name: agent.name.clone(),
        credential: elsewhere,
    };
    let mut stream = at_second.connect().await;
    stream.report(0, 0).await;
    cluster.nic("a0", "c1").await;
    let config = stream.until_nics(1).await;
    stream.report(config.generation, config.generation).await;
    eventually(
        "the first knows what the second heard",
        Duration::from_secs(10),
        || async {
            let status = cluster.get_nic("a0").await.status.unwrap();
            match status.state() {
                v1::nic_status::State::Applied => Ok(()),
                _ => Err(format!("{status:?}")),
            }
        },
    )
    .await;

    let info = other
        .get_server_info(v1::GetServerInfoRequest {})
        .await
        .unwrap();
    let from_revision = info.into_inner().revision;
    let watch = v1::WatchRequest {
        from_revision,
        ..Default::default()
    };
    let mut events = other.watch(watch).await.unwrap().into_inner();
    let writers: Vec<_> = [cluster.admin.clone(), other.clone()]
        .into_iter()
        .enumerate()
        .flat_map(|(server, admin)| (0..4).map(move |writer| (server, writer, admin.clone())))
        .map(|(server, writer, mut admin)| {
            tokio::spawn(async move {
                let mut addresses = Vec::new();
                for number in 0..10 {
                    let name = format!("s{server}-{writer}-{number}");
                    let made = admin
                        .create_nic(nic("blue/web", &name, "c1"))
                        .await
                        .unwrap();
                    addresses.push(made.into_inner().addresses[0].clone());
                }
                addresses
            })
        })
        .collect();
    let mut addresses = BTreeSet::new();
    for writer in writers {
        addresses.extend(writer.await.unwrap());
    }
    assert_eq!(addresses.len(), 80, "an address was handed out twice");
    let mut last = from_revision;
    while last < from_revision + 80 {
        let event = events.message().await.unwrap().unwrap().event.unwrap();
        if let v1::watch_event::Event::Change(change) = event {
            assert_eq!(change.revision, last + 1);
            last = change.revision;
        }
    }
    stream.until_nics(81).await;
    cluster
        .admin
        .clone()
        .create_account(account("acme"))
        .await
        .unwrap();
    eventually("the second knows it", Duration::from_secs(5), || {
        let mut other = other.clone();
        async move {
            other
                .get_account(get("acme"))
                .await
                .map_err(|e| e.to_string())
        }
    })
    .await;
    second.stop().await.unwrap();
}
