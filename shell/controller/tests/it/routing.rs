//! Routers, external networks and public addresses by the API.

use crate::cluster::{Agent, Cluster, Place, Stream, delete, eventually, get, path, refused};
use api::tonic::Code;
use api::v1;
use std::time::Duration;
use v1::update_router_request::{Change, Place as Placed, Route, RouteKey};

const LIMIT: Duration = Duration::from_secs(20);

fn change(change: Change) -> v1::UpdateRouterRequest {
    v1::UpdateRouterRequest {
        object: path("blue/gw"),
        change: Some(change),
        ..Default::default()
    }
}

fn route(prefix: &str, via: &str) -> Change {
    Change::AddRoute(Route {
        key: Some(RouteKey {
            table: None,
            prefix: prefix.to_owned(),
        }),
        via: via.to_owned(),
    })
}

fn attach(target: Option<v1::attach_public_ip_request::Target>) -> v1::AttachPublicIpRequest {
    v1::AttachPublicIpRequest {
        object: path("www"),
        target,
        ..Default::default()
    }
}

/// Configurations until one has a router, or has none.
async fn until_routers(stream: &mut Stream, count: usize) -> v1::HostConfig {
    loop {
        let config = stream.config().await;
        stream.report(config.generation, config.generation).await;
        if config.routers.len() == count {
            return config;
        }
    }
}

pub(crate) async fn routers_live_their_lives(place: Place) {
    use v1::attach_public_ip_request::Target;
    let cluster = Cluster::start(place).await;
    cluster.join("c1", 11).await;
    cluster.route_host("r1", 21).await;
    cluster.furnish().await;
    cluster.nic("a1", "c1").await;
    let made = cluster.furnish_routing().await;
    let mut admin = cluster.admin.clone();
    assert_eq!(
        (made.path.as_str(), made.host_name.as_str(), made.epoch),
        ("default/blue/gw", "r1", 1)
    );
    assert_eq!(made.legs[0].subnet_path, "default/blue/web");
    assert_eq!(made.legs[0].addresses, ["10.4.0.1/20"]);
    let uplink = made.uplink.clone().unwrap();
    assert_eq!(uplink.addresses, ["198.51.100.10/24"]);
    assert_eq!(
        (uplink.network_name.as_str(), uplink.bridge.as_str()),
        ("ext", "br-ext")
    );
    assert_eq!(made.source(), v1::SourcePolicy::Masquerade);

    let with_route = admin
        .update_router(change(route("10.9.0.0/16", "10.4.0.9")))
        .await;
    assert_eq!(with_route.unwrap().into_inner().routes.len(), 1);
    let forward = Change::AddForward(v1::PortForward {
        protocol: v1::TransportProtocol::Tcp.into(),
        ports: "8080".to_owned(),
        to: "10.4.0.2".to_owned(),
        to_port: 80,
        ..Default::default()
    });
    let forwards = admin
        .update_router(change(forward))
        .await
        .unwrap()
        .into_inner()
        .forwards;
    assert_eq!(forwards[0].to, "10.4.0.2");
    let labels = v1::LabelSet {
        labels: [("tier".to_owned(), "edge".to_owned())].into(),
    };
    admin
        .update_router(change(Change::Labels(labels)))
        .await
        .unwrap();
    let nic = Target::Nic(path("blue/web/a1").unwrap());
    let public = admin
        .attach_public_ip(attach(Some(nic)))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (public.path.as_str(), public.target_path.as_str()),
        ("default/www", "default/blue/web/a1")
    );

    let shown = admin.get_router(get("blue/gw")).await.unwrap().into_inner();
    assert_eq!(shown.public_ips[0].address, "198.51.100.11");
    assert_eq!(shown.public_ips[0].private, "10.4.0.2");
    assert_eq!(shown.meta.as_ref().unwrap().labels["tier"], "edge");
    let inside = v1::ListRequest {
        filter: Some(v1::Filter {
            parent_kind: v1::Kind::Vpc.into(),
            parent: path("blue"),
            host: path("r1"),
            ..Default::default()
        }),
        ..Default::default()
    };
    let listed = admin.list_routers(inside).await.unwrap().into_inner();
    assert_eq!(listed.routers, [shown]);

    let in_the_way = Code::FailedPrecondition;
    refused(
        admin.delete_subnet(delete("blue/web")).await,
        in_the_way,
        "a1",
    );
    refused(
        admin.delete_nic(delete("blue/web/a1")).await,
        in_the_way,
        "www",
    );
    refused(
        admin.delete_external_network(delete("ext")).await,
        in_the_way,
        "gw",
    );
    refused(admin.delete_host(delete("r1")).await, in_the_way, "gw");
    admin.attach_public_ip(attach(None)).await.unwrap();
    admin.delete_public_ip(delete("www")).await.unwrap();
    admin.delete_router(delete("blue/gw")).await.unwrap();
    admin.delete_external_network(delete("ext")).await.unwrap();
    refused(
        admin.get_router(get("blue/gw")).await,
        Code::NotFound,
        "there is no router blue/gw",
    );
}

pub(crate) async fn a_router_is_followed_to_its_host(place: Place) {
    let cluster = Cluster::start(place).await;
    let (r1, r2) = (
        cluster.route_host("r1", 21).await,
        cluster.route_host("r2", 22).await,
    );
    cluster.furnish().await;
    let (mut at_r1, mut at_r2) = (r1.connect().await, r2.connect().await);
    at_r1.report(0, 0).await;
    at_r2.report(0, 0).await;
    let made = cluster.furnish_routing().await;
    assert_eq!(made.host_name, "r1");
    let config = until_routers(&mut at_r1, 1).await;
    assert_eq!(config.routers[0].legs[0].mac, made.legs[0].mac);
    assert_eq!(
        config.stacks[0].segments[0].subnet_id,
        made.legs[0].subnet_id
    );
    let applied = async || {
        let router = cluster.admin.clone().get_router(get("blue/gw")).await;
        let status = router.unwrap().into_inner().status.unwrap();
        match status.state() {
            v1::nic_status::State::Applied => Ok(()),
            other => Err(format!("it is {other:?}")),
        }
    };
    eventually("the router to be applied", LIMIT, applied).await;

    let mut admin = cluster.admin.clone();
    let away = change(Change::Place(Placed { host: None }));
    let moved = admin.update_router(away).await.unwrap().into_inner();
    assert_eq!((moved.host_name.as_str(), moved.epoch), ("r1", 1));
    assert_eq!(moved.moving.unwrap().host_name, "r2");
    let ready = until_routers(&mut at_r2, 1).await;
    assert!(ready.routers[0].prepared, "{ready:?}");
    let mut here = until_routers(&mut at_r2, 1).await;
    let epochs = [&config, &here].map(|config| config.routers[0].epoch);
    assert_eq!(epochs, [1, 2]);
    here.routers[0].epoch = 1;
    assert_eq!(here.routers, config.routers, "the same MACs and addresses");
    let gone = until_routers(&mut at_r1, 0).await;
    assert!(gone.stacks.is_empty());
    eventually("the router to be applied at r2", LIMIT, applied).await;

    // A wait ends when its host has it.
    let asked = v1::WaitAppliedRequest {
        kind: v1::Kind::Router.into(),
        object: path("blue/gw"),
        ..Default::default()
    };
    let mut progress = admin.wait_applied(asked).await.unwrap().into_inner();
    let last = progress.message().await.unwrap().unwrap();
    assert!(last.done);
    assert_eq!(last.hosts[0].host_name, "r2");
    drop((at_r1, at_r2));
}

pub(crate) async fn a_router_goes_where_a_host_is_heard_of(place: Place) {
    let cluster = Cluster::start(place).await;
    let r1: Agent = cluster.route_host("r1", 21).await;
    cluster.route_host("r2", 22).await;
    cluster.furnish().await;
    let mut stream = r1.connect().await;
    stream.report(0, 0).await;
    // It says nothing more.
    let down = async || {
        let host = cluster.get_host("r1").await;
        match host.status.unwrap().liveness() {
            v1::Liveness::Down => Ok(()),
            other => Err(format!("it is {other:?}")),
        }
    };
    eventually("r1 to be down", LIMIT, down).await;
    let made = cluster.furnish_routing().await;
    assert_eq!(made.host_name, "r2");
    let mut admin = cluster.admin.clone();
    refused(
        admin
            .update_router(change(Change::Place(Placed { host: None })))
            .await,
        Code::FailedPrecondition,
        "every other route host is down",
    );
    // The one who asks may know better, and nothing is lost as r2 never ran it.
    let back = change(Change::Place(Placed { host: path("r1") }));
    admin.update_router(back).await.unwrap();
    let there = async || {
        let router = cluster.admin.clone().get_router(get("blue/gw")).await;
        let router = router.unwrap().into_inner();
        match (router.host_name.as_str(), &router.moving) {
            ("r1", None) => Ok(()),
            _ => Err(format!("it is {router:?}")),
        }
    };
    eventually("the router to be on r1", LIMIT, there).await;
}

pub(crate) async fn bad_requests_about_routers_are_named(place: Place) {
    let cluster = Cluster::start(place).await;
    cluster.furnish().await;
    let mut admin = cluster.admin.clone();
    let bad = Code::InvalidArgument;
    let router = v1::CreateRouterRequest {
        vpc: path("blue"),
        name: "gw".to_owned(),
        ..Default::default()
    };
    refused(
        admin.create_router(router.clone()).await,
        Code::FailedPrecondition,
        "there is no host with the role route",
    );
    cluster.route_host("r1", 21).await;
    let outside = v1::CreateRouterRequest {
        uplink: Some(v1::Outside::default()),
        ..router.clone()
    };
    refused(
        admin.create_router(outside).await,
        bad,
        "which external network",
    );
    admin.create_router(router).await.unwrap();
    let nothing = v1::UpdateRouterRequest {
        object: path("blue/gw"),
        ..Default::default()
    };
    refused(
        admin.update_router(nothing).await,
        bad,
        "change: it is missing",
    );
    for (prefix, via, expected) in [
        ("10.9.0.0", "10.4.0.9", "add_route.key.prefix"),
        ("10.9.0.0/16", "neighbour", "add_route.via"),
        ("10.9.0.0/16", "10.4.0.9", "is on none of its legs (none)"),
    ] {
        refused(
            admin.update_router(change(route(prefix, via))).await,
            bad,
            expected,
        );
    }
    let network = v1::CreateExternalNetworkRequest {
        name: "ext".to_owned(),
        bridge: "br-ext".to_owned(),
        pools: vec!["10.0.0.9-10.0.0.1".to_owned()],
        ..Default::default()
    };
    refused(
        admin.create_external_network(network).await,
        bad,
        "pools[0]",
    );
    let address = v1::CreatePublicIpRequest {
        name: "www".to_owned(),
        address: "nine".to_owned(),
        ..Default::default()
    };
    refused(admin.create_public_ip(address).await, bad, "address");
    let of_none = v1::AttachPublicIpRequest {
        object: path("www"),
        ..Default::default()
    };
    refused(
        admin.attach_public_ip(of_none).await,
        Code::NotFound,
        "publicip www",
    );
}
