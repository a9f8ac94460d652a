//! Joining, certificates, and who may call what.

use crate::cluster::{Agent, Cluster, Place, admin, delete, eventually, get, path, refused};
use api::pki::{Authority, Lifetimes, host_csr};
use api::tonic::Code;
use api::{Credential, EnrollError, chain_pem, tls, v1};
use controller::RunOptions;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

#[track_caller]
fn not_joined(outcome: Result<api::Enrolled, EnrollError>, code: Code, text: &str) {
    match outcome {
        Err(EnrollError::Refused { status, .. }) => refused::<()>(Err(*status), code, text),
        other => panic!("expected a refusal, got {other:?}"),
    }
}

pub(crate) async fn a_token_works_once(place: Place) {
    let cluster = Cluster::start(place).await;
    let token = cluster.token().await;
    let first = cluster.enrollment(token.clone(), "c1", 11);
    let enrolled = api::enroll(&first).await.unwrap();
    let host = cluster.get_host("c1").await;
    assert_eq!(host.id, enrolled.host.to_string());
    assert_eq!(host.roles().collect::<Vec<_>>(), [v1::Role::Compute]);
    let denied = Code::PermissionDenied;
    let other = cluster.enrollment(token.clone(), "c2", 12);
    not_joined(api::enroll(&other).await, denied, "was used already");
    not_joined(api::enroll(&first).await, denied, "was used already");
    refused(
        cluster.admin.clone().get_host(get("c2")).await,
        Code::NotFound,
        "c2",
    );

    // Right id, wrong secret: as if there were no such token.
    let text = cluster.token().await.reveal();
    let mut parts: Vec<&str> = text.split('.').collect();
    let secret = "0".repeat(64);
    parts[1] = &secret;
    let forged = parts.join(".").parse().unwrap();
    let forged = cluster.enrollment(forged, "c2", 12);
    not_joined(api::enroll(&forged).await, denied, "not valid");

    // A refused join costs no token.
    let token = cluster.token().await;
    let taken = cluster.enrollment(token.clone(), "c1", 13);
    not_joined(api::enroll(&taken).await, Code::AlreadyExists, "c1");
    let taken = cluster.enrollment(token.clone(), "c3", 11);
    not_joined(api::enroll(&taken).await, Code::AlreadyExists, "192.0.2.11");
    api::enroll(&cluster.enrollment(token, "c3", 13))
        .await
        .unwrap();

    // Of many at once with one token one gets in.
    let token = cluster.token().await;
    let many: Vec<_> = (0..8)
        .map(|number| {
            let with = cluster.enrollment(token.clone(), &format!("m{number}"), 100 + number);
            tokio::spawn(async move { api::enroll(&with).await.is_ok() })
        })
        .collect();
    let mut joined = 0;
    for one in many {
        joined += usize::from(one.await.unwrap());
    }
    assert_eq!(joined, 1);

    let (_, preset) = cluster
        .token_with(v1::CreateJoinTokenRequest {
            host_name: "r1".to_owned(),
            roles: vec![v1::Role::Route.into()],
            ..Default::default()
        })
        .await;
    let wrong = cluster.enrollment(preset.clone(), "r2", 21);
    not_joined(api::enroll(&wrong).await, denied, "r1");
    let mut greedy = cluster.enrollment(preset.clone(), "r1", 21);
    greedy.roles = [model::Role::Management].into();
    not_joined(api::enroll(&greedy).await, denied, "roles");
    api::enroll(&cluster.enrollment(preset, "r1", 21))
        .await
        .unwrap();
    assert_eq!(
        cluster.get_host("r1").await.roles().collect::<Vec<_>>(),
        [v1::Role::Route]
    );
}

pub(crate) async fn a_lost_answer_can_be_asked_for_again(place: Place) {
    let cluster = Cluster::start(place).await;
    let with = cluster.enrollment(cluster.token().await, "c1", 11);
    let key = host_csr().unwrap();
    let first = api::enroll_with(&with, &key).await.unwrap();
    let again = api::enroll_with(&with, &key).await.unwrap();
    assert_eq!(first.host, again.host);
    let thief = api::enroll_with(&with, &host_csr().unwrap()).await;
    not_joined(thief, Code::PermissionDenied, "was used already");
}

pub(crate) async fn tokens_expire_and_are_revoked(place: Place) {
    let cluster = Cluster::start(place).await;
    let short = v1::CreateJoinTokenRequest {
        ttl_seconds: 1,
        ..Default::default()
    };
    let (shown, token) = cluster.token_with(short).await;
    let state = || async {
        let list = cluster
            .admin
            .clone()
            .list_join_tokens(v1::ListJoinTokensRequest {})
            .await;
        let list = list.unwrap().into_inner().tokens;
        list.into_iter()
            .find(|one| one.id == shown.id)
            .map(|one| one.state())
    };
    eventually("the token expires", Duration::from_secs(10), || async {
        match state().await {
            Some(v1::join_token::State::Expired) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    let late = api::enroll(&cluster.enrollment(token, "c1", 11)).await;
    not_joined(late, Code::PermissionDenied, "expired");

    let (shown, token) = cluster.token_with(Default::default()).await;
    let revoke = v1::RevokeJoinTokenRequest { id: shown.id };
    let mut admin = cluster.admin.clone();
    admin.revoke_join_token(revoke.clone()).await.unwrap();
    let revoked = api::enroll(&cluster.enrollment(token, "c1", 11)).await;
    not_joined(revoked, Code::PermissionDenied, "not valid");
    refused(
        admin.revoke_join_token(revoke).await,
        Code::NotFound,
        "no join token",
    );
    let long = v1::CreateJoinTokenRequest {
        ttl_seconds: 31 * 86_400,
        ..Default::default()
    };
    refused(
        admin.create_join_token(long).await,
        Code::InvalidArgument,
        "ttl_seconds",
    );
}

pub(crate) async fn a_token_of_another_cluster_never_leaves_the_host(place: Place) {
    let cluster = Cluster::start(place).await;
    let other = Cluster::start(Place::sqlite()).await;
    let mut with = other.enrollment(other.token().await, "c1", 11);
    with.servers = vec![cluster.server.address().to_string()];
    match api::enroll(&with).await {
        Err(EnrollError::Connect(error)) => {
            assert!(error.to_string().contains("UnknownIssuer"), "{error}");
        }
        outcome => panic!("the host spoke to the wrong cluster: {outcome:?}"),
    }
}

pub(crate) async fn foreign_certificates_are_refused(place: Place) {
    let cluster = Cluster::start(place).await;
    let id = cluster.server.cluster();
    let ours = cluster.credential();
    // Same names, another CA; ours is trusted, so that only the server can object.
    let other = Authority::create(id).unwrap();
    let (issued, key) = other.issue_admin("root", Duration::from_secs(60)).unwrap();
    let forged = Credential::new(
        ours.servers.clone(),
        ours.ca.clone(),
        chain_pem(&issued.chain),
        key,
    );
    let outcome = match api::connect(&forged).await {
        Err(error) => Err(error.to_string()),
        Ok(channel) => match api::management(channel).get_account(get("default")).await {
            Err(status) => Err(status.to_string()),
            Ok(_) => Ok(()),
        },
    };
    assert!(outcome.is_err(), "a certificate of another CA was accepted");

    // Our CA, another cluster's name.
    let dir = cluster.place.data();
    let read = |name| std::fs::read_to_string(dir.join(name)).unwrap();
    let ca = Authority::load("other", &read("ca.pem"), &read("ca.key")).unwrap();
    let (issued, key) = ca.issue_admin("root", Duration::from_secs(60)).unwrap();
    let renamed = Credential::new(ours.servers, ours.ca, chain_pem(&issued.chain), key);
    let outcome = admin(&renamed).await.get_account(get("default")).await;
    refused(outcome, Code::Unauthenticated, "cluster other");
}

pub(crate) async fn roles_are_kept_apart(place: Place) {
    let cluster = Cluster::start(place).await;
    let one = cluster.join("c1", 11).await;
    cluster.join("c2", 12).await;
    cluster.furnish().await;
    cluster.nic("a2", "c2").await;

    // A host is no administrator, and reads nobody's configuration but its own.
    let channel = api::connect(&one.credential).await.unwrap();
    let mut as_host = api::management(channel.clone());
    let denied = Code::PermissionDenied;
    refused(
        as_host.get_host_config(get("c2")).await,
        denied,
        "for administrators",
    );
    refused(
        as_host.get_account(get("default")).await,
        denied,
        "for administrators",
    );
    refused(
        as_host.delete_host(delete("c2")).await,
        denied,
        "for administrators",
    );
    refused(
        as_host.watch(v1::WatchRequest::default()).await,
        denied,
        "for administrators",
    );
    refused(
        as_host
            .create_join_token(v1::CreateJoinTokenRequest::default())
            .await,
        denied,
        "",
    );
    let mut stream = one.connect().await;
    stream.report(1, 1).await;
    let own = stream.config().await;
    assert_eq!(
        (own.host_id.as_str(), own.stacks.len()),
        (one.id.as_str(), 0)
    );

    // An administrator is no host.
    let imposter = Agent {
        credential: cluster.credential(),
        ..cluster.join("c3", 13).await
    };
    refused(
        imposter.try_connect().await.map(|_| ()),
        denied,
        "for hosts",
    );

    // Nobody is neither: only joining is open.
    let pinned = tls::pinned_client(cluster.token().await.fingerprint).unwrap();
    let connector = TlsConnector::from(Arc::new(pinned));
    let address = cluster.server.address();
    let channel = api::tonic::transport::Endpoint::from_static("http://server.vpc.internal")
        .connect_with_connector(tower::service_fn(move |_| {
            let connector = connector.clone();
            async move {
                let tcp = TcpStream::connect(address).await?;
                let tls = connector.connect(tls::server_name(), tcp).await?;
                Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(tls))
            }
        }))
        .await
        .unwrap();
    let nobody = api::management(channel).get_account(get("default")).await;
    refused(nobody, Code::Unauthenticated, "client certificate");

    // Configurations are shown to people without secrets.
    let shown = cluster
        .admin
        .clone()
        .get_host_config(get("c2"))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(shown.stacks.len(), 1);
    assert!(
        shown
            .bgp
            .unwrap()
            .reflectors
            .iter()
            .all(|one| one.password.is_empty())
    );
}

pub(crate) async fn a_removed_host_is_shut_out(place: Place) {
    let cluster = Cluster::start(place).await;
    let agent = cluster.join("c1", 11).await;
    let mut peers = cluster.server.peers();
    assert_eq!(peers.borrow_and_update().len(), 1);
    let mut stream = agent.connect().await;
    stream.report(1, 1).await;
    stream.config().await;
    cluster
        .admin
        .clone()
        .delete_host(delete("c1"))
        .await
        .unwrap();
    let end = loop {
        match stream.updates.message().await {
            Ok(Some(_)) => {}
            other => break other,
        }
    };
    let denied = Code::PermissionDenied;
    refused(end, denied, "it was removed");
    refused(
        agent.try_connect().await.map(|_| ()),
        denied,
        "it was removed",
    );
    let mut client = api::connect_host(&agent.credential).await.unwrap();
    let renew = v1::RenewCertificateRequest {
        csr_der: host_csr().unwrap().1,
    };
    refused(
        client.renew_certificate(renew).await,
        denied,
        "it was removed",
    );
    peers.changed().await.unwrap();
    assert!(peers.borrow().is_empty());
}

pub(crate) async fn certificates_renew_themselves(place: Place) {
    let lifetimes = Lifetimes {
        server: Duration::from_secs(3),
        host: Duration::from_secs(4),
        ..Lifetimes::default()
    };
    let options = RunOptions {
        lifetimes,
        ..place.options()
    };
    let cluster = Cluster::start_with(place, options).await;
    let agent = cluster.join("c1", 11).await;
    let served = presented(&cluster).await;

    let mut client = api::connect_host(&agent.credential).await.unwrap();
    let (key, csr) = host_csr().unwrap();
    let certificate = client
        .renew_certificate(v1::RenewCertificateRequest { csr_der: csr })
        .await
        .unwrap()
        .into_inner();
    let renewed = Agent {
        id: agent.id.clone(),
        name: agent.name.clone(),
        credential: api::renewed(agent.credential.servers.clone(), &certificate, key),
    };
    assert_eq!(
        renewed.credential.identity().unwrap(),
        agent.credential.identity().unwrap()
    );
    renewed.connect().await;
    let bad = client
        .renew_certificate(v1::RenewCertificateRequest {
            csr_der: b"garbage".to_vec(),
        })
        .await;
    refused(bad, Code::InvalidArgument, "csr_der");

    eventually(
        "the server shows a new certificate",
        Duration::from_secs(10),
        || async {
            let now = presented(&cluster).await;
            if now == served {
                Err("the old one".to_owned())
            } else {
                Ok(())
            }
        },
    )
    .await;
    // The host never renewed this one again, so it ends.
    eventually(
        "the old certificate is refused",
        Duration::from_secs(15),
        || async {
            match agent.try_connect().await {
                Ok(_) => Err("still taken".to_owned()),
                Err(_) => Ok(()),
            }
        },
    )
    .await;
    // Long after its first certificate ended, the server still serves.
    let fresh = admin(&cluster.credential()).await;
    fresh.clone().get_host(get("c1")).await.unwrap();
    let drained = v1::UpdateHostRequest {
        object: path("c1"),
        draining: Some(true),
        ..Default::default()
    };
    fresh.clone().update_host(drained).await.unwrap();
}

/// The certificate that the server shows now.
async fn presented(cluster: &Cluster) -> Vec<u8> {
    let connector = TlsConnector::from(Arc::new(cluster.credential().tls().unwrap()));
    let tcp = TcpStream::connect(cluster.server.address()).await.unwrap();
    let stream = connector.connect(tls::server_name(), tcp).await.unwrap();
    stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}
