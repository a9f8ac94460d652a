//! Routers of the host's own API: made, seen from outside, kept over a restart, changed, gone.

use super::*;
use api::v1::l3_client::L3Client;

const ROUTER: &str = "000000000r";

async fn l3(agent: &Running) -> L3Client<Channel> {
    api::connect_l3(&agent.socket).await.unwrap()
}

/// An external bridge with a machine behind it: namespace `out`, 192.0.2.1.
fn outside() {
    sh("ip link add br-ext type bridge && ip link set br-ext up && ip netns add out &&
        ip link add to-out type veth peer name eth0 netns out && ip link set to-out master br-ext up &&
        ip -n out link set eth0 up && ip -n out address add 192.0.2.1/24 dev eth0");
}

fn router(forwards: Vec<v1::PortForward>) -> v1::AddHostRouterRequest {
    v1::AddHostRouterRequest {
        router: Some(v1::RouterConfig {
            router_id: ROUTER.to_owned(),
            vpc_id: VPC.to_owned(),
            name: "blue/gw".to_owned(),
            legs: vec![v1::RouterLeg {
                subnet_id: stack(v1::Encoding::VlanBased).segments[0].subnet_id.clone(),
                addresses: vec!["10.4.1.1/24".to_owned()],
                ..v1::RouterLeg::default()
            }],
            uplink: Some(v1::RouterUplink {
                bridge: "br-ext".to_owned(),
                addresses: vec!["192.0.2.10/24".to_owned()],
                gateways: vec!["192.0.2.1".to_owned()],
                ..v1::RouterUplink::default()
            }),
            routes: Vec::new(),
            nat: Some(v1::NatConfig {
                source: Some(v1::SourceNat::default()),
                forwards,
                ..v1::NatConfig::default()
            }),
            ..v1::RouterConfig::default()
        }),
        replace: false,
        wait_ms: 20_000,
    }
}

#[test]
fn a_local_router_leads_out_outlives_its_agent_and_goes() {
    isolated(async |host| {
        outside();
        sh("ip netns add k1");
        let agent = host.agent().await;
        let mut l2 = agent.l2().await;
        let request = v1::AddStackRequest {
            stack: Some(stack(v1::Encoding::VlanBased)),
            wait_ms: 0,
        };
        l2.add_stack(request.clone()).await.unwrap();
        let request_nic = v1::AddNicRequest {
            vpc_id: VPC.to_owned(),
            port: Some(port(
                1,
                v1::attachment::Kind::Netns(v1::attachment::Netns {
                    netns: "k1".to_owned(),
                    ..v1::attachment::Netns::default()
                }),
            )),
            segment: None,
            wait_ms: 20_000,
        };
        l2.add_nic(request_nic).await.unwrap();
        let mut routers = l3(&agent).await;
        let mut watching = routers
            .watch_routers(v1::WatchHostRoutersRequest {})
            .await
            .unwrap()
            .into_inner();
        let first = watching.message().await.unwrap().unwrap();
        assert!(first.snapshot_complete && first.router.is_none());

        let made = routers
            .add_router(router(Vec::new()))
            .await
            .unwrap()
            .into_inner();
        assert!(made.ready && made.conditions.is_empty(), "{made:?}");
        assert_eq!(made.origin(), v1::Origin::Local);
        let leg = made.router.unwrap().legs.remove(0);
        assert!(leg.mac.len() == 17 && leg.mtu > 0, "drawn: {leg:?}");
        let told = watching.message().await.unwrap().unwrap();
        assert_eq!(told.router.unwrap().router.unwrap().name, "blue/gw");
        sh("ip -n k1 route add default via 10.4.1.1");
        sh_beside("ip netns exec k1 ping -c 1 -W 5 192.0.2.1").await;
        // The stack is the same as it was asked for, though its segment has a gateway now.
        l2.add_stack(request).await.unwrap();

        // Another agent takes it as it is.
        let netns = format!("ip netns exec r-{ROUTER}");
        let seen = || {
            sh(&format!(
                "{netns} ip -o address; {netns} nft list table inet vpc | grep -v packets"
            ))
        };
        let before = seen();
        agent.stop().await;
        let agent = host.agent().await;
        let mut routers = l3(&agent).await;
        wait_for("the router is ready again", || {
            let state = sh(&format!("{netns} ip -o route"));
            if state.contains("default") {
                Ok(())
            } else {
                Err(state)
            }
        })
        .await;
        assert_eq!(seen(), before, "{}", difference(&before, &seen()));

        // Other content is refused, unless it is to take the place of what is there: MACs stay.
        let forward = v1::PortForward {
            protocol: v1::TransportProtocol::Tcp.into(),
            public: String::new(),
            ports: "8080".to_owned(),
            to: "10.4.1.11".to_owned(),
            to_port: 80,
        };
        let mut request = router(vec![forward]);
        let refused = routers.add_router(request.clone()).await.unwrap_err();
        assert_eq!(refused.code(), Code::AlreadyExists, "{refused}");
        request.replace = true;
        let changed = routers.add_router(request).await.unwrap().into_inner();
        assert_eq!(changed.router.unwrap().legs[0].mac, leg.mac);
        assert!(sh(&format!("{netns} nft list map inet vpc port4")).contains("8080"));
        let get = v1::GetHostRouterRequest {
            router_id: ROUTER.to_owned(),
        };
        let deadline = Instant::now() + LIMIT;
        loop {
            let status = routers
                .router_status(get.clone())
                .await
                .unwrap()
                .into_inner();
            let names: Vec<_> = status.links.iter().map(|link| link.name.clone()).collect();
            assert!(names.contains(&format!("rx-{ROUTER}")), "{names:?}");
            assert!(
                status
                    .routes
                    .iter()
                    .any(|route| route.prefix == "0.0.0.0/0")
            );
            if status
                .figures
                .is_some_and(|figures| figures.legs.len() == 2)
            {
                break;
            }
            assert!(Instant::now() < deadline, "nobody counts");
        }

        // Bad ones change nothing; what is in use stays; then all of it goes.
        let mut bad = router(Vec::new());
        bad.router.as_mut().unwrap().legs[0].addresses = vec!["10.9.9.1/24".to_owned()];
        bad.replace = true;
        let refused = routers.add_router(bad).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        let mut l2 = agent.l2().await;
        let delete = v1::DeleteStackRequest {
            vpc_id: VPC.to_owned(),
            with_nics: true,
            wait_ms: 20_000,
        };
        let refused = l2.delete_stack(delete.clone()).await.unwrap_err();
        assert!(refused.message().contains("router blue/gw"), "{refused}");
        let gone = v1::DeleteHostRouterRequest {
            router_id: ROUTER.to_owned(),
            wait_ms: 20_000,
        };
        routers.delete_router(gone.clone()).await.unwrap();
        assert_eq!(
            routers.get_router(get).await.unwrap_err().code(),
            Code::NotFound
        );
        assert_eq!(
            routers.delete_router(gone).await.unwrap_err().code(),
            Code::NotFound
        );
        l2.delete_stack(delete).await.unwrap();
        assert!(!sh("ip netns list; ip link").contains(ROUTER));
        agent.stop().await;
    });
}
