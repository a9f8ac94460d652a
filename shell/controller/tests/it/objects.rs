//! Accounts, VPCs, subnets and NICs by the API.

use crate::cluster::{
    Cluster, Place, account, by_id, delete, get, nic, path, refused, subnet, tap, vpc,
};
use api::tonic::Code;
use api::v1;
use std::collections::{BTreeSet, HashMap};

pub(crate) async fn objects_live_their_lives(place: Place) {
    let cluster = Cluster::start(place).await;
    cluster.join("c1", 11).await;
    let mut admin = cluster.admin.clone();

    let made = admin
        .create_account(account("acme"))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        admin.get_account(get("acme")).await.unwrap().into_inner(),
        made
    );

    let made = admin
        .create_vpc(v1::CreateVpcRequest {
            account: path("acme"),
            cidrs: vec!["10.4.0.0/16".to_owned(), "fd00:4::/48".to_owned()],
            encoding: v1::Encoding::VlanAwareBundle.into(),
            ..vpc("blue", "")
        })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (made.path.as_str(), made.asn),
        ("acme/blue", 4_200_000_000 + made.vni)
    );
    assert_eq!(made.encoding(), v1::Encoding::VlanAwareBundle);
    let by_its_id = v1::GetRequest {
        object: by_id(&made.id),
    };
    assert_eq!(admin.get_vpc(by_its_id).await.unwrap().into_inner(), made);
    let wider = v1::UpdateVpcRequest {
        object: path("acme/blue"),
        resource_version: made.meta.unwrap().resource_version,
        labels: Some(labels(&[("tier", "gold")])),
        cidrs: Some(v1::update_vpc_request::Cidrs {
            cidrs: vec![
                "10.4.0.0/16".to_owned(),
                "10.5.0.0/16".to_owned(),
                "fd00:4::/48".to_owned(),
            ],
        }),
    };
    let updated = admin.update_vpc(wider).await.unwrap().into_inner();
    assert_eq!(updated.cidrs.len(), 3);
    assert_eq!(updated.meta.unwrap().labels["tier"], "gold");

    let made = admin
        .create_subnet(v1::CreateSubnetRequest {
            cidrs: vec!["10.5.1.0/24".to_owned(), "fd00:4:0:1::/64".to_owned()],
            ..subnet("acme/blue", "web", "")
        })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(made.path, "acme/blue/web");
    assert_eq!((made.mtu, made.vni), (1446, updated.vni));

    let made = admin
        .create_nic(v1::CreateNicRequest {
            mac: "02:00:00:00:00:07".to_owned(),
            addresses: vec!["10.5.1.77".to_owned()],
            attachment: Some((&"netns:a1:eth3".parse::<model::Attachment>().unwrap()).into()),
            ..nic("acme/blue/web", "a1", "c1")
        })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (made.path.as_str(), made.host_name.as_str()),
        ("acme/blue/web/a1", "c1")
    );
    assert_eq!(made.mac, "02:00:00:00:00:07");
    assert_eq!(made.addresses.len(), 2, "{:?}", made.addresses);
    assert_eq!(made.addresses[0], "10.5.1.77");
    let relabelled = v1::UpdateNicRequest {
        object: path("acme/blue/web/a1"),
        resource_version: 0,
        labels: Some(labels(&[("app", "shop")])),
    };
    let updated = admin.update_nic(relabelled).await.unwrap().into_inner();
    assert!(updated.meta.unwrap().resource_version > made.meta.unwrap().resource_version);

    for (outcome, what) in [
        (admin.delete_nic(delete("acme/blue/web/a1")).await, "nic"),
        (admin.delete_subnet(delete("acme/blue/web")).await, "subnet"),
        (admin.delete_vpc(delete("acme/blue")).await, "vpc"),
        (admin.delete_account(delete("acme")).await, "account"),
        (admin.delete_host(delete("c1")).await, "host"),
    ] {
        assert!(outcome.unwrap().into_inner().revision > 0, "{what}");
    }
    refused(
        admin.get_nic(get("acme/blue/web/a1")).await,
        Code::NotFound,
        "a1",
    );
    refused(
        admin.get_host(get("c1")).await,
        Code::NotFound,
        "there is no host c1",
    );
}

pub(crate) async fn what_is_stood_on_stays(place: Place) {
    let cluster = Cluster::start(place).await;
    cluster.join("c1", 11).await;
    cluster.furnish().await;
    cluster.nic("a1", "c1").await;
    let mut admin = cluster.admin.clone();
    let in_the_way = Code::FailedPrecondition;
    refused(
        admin.delete_account(delete("default")).await,
        in_the_way,
        "blue",
    );
    refused(admin.delete_vpc(delete("blue")).await, in_the_way, "web");
    refused(
        admin.delete_subnet(delete("blue/web")).await,
        in_the_way,
        "a1",
    );
    refused(admin.delete_host(delete("c1")).await, in_the_way, "a1");
    let drain = v1::UpdateHostRequest {
        object: path("c1"),
        draining: Some(true),
        zone: Some("rack-1".to_owned()),
        ..Default::default()
    };
    let drained = admin.update_host(drain).await.unwrap().into_inner();
    assert_eq!((drained.draining, drained.zone.as_str()), (true, "rack-1"));
    let more = admin.create_nic(nic("blue/web", "a2", "c1")).await;
    refused(more, in_the_way, "draining");
}

pub(crate) async fn creates_are_idempotent(place: Place) {
    let cluster = Cluster::start(place).await;
    let mut admin = cluster.admin.clone();
    let request = v1::CreateVpcRequest {
        request_id: "6f1c".to_owned(),
        ..vpc("blue", "10.4.0.0/16")
    };
    let first = admin
        .create_vpc(request.clone())
        .await
        .unwrap()
        .into_inner();
    let again = admin
        .create_vpc(request.clone())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(first, again);
    let other = v1::CreateVpcRequest {
        name: "red".to_owned(),
        ..request.clone()
    };
    refused(admin.create_vpc(other).await, Code::InvalidArgument, "6f1c");
    let nameless = v1::CreateVpcRequest {
        request_id: String::new(),
        ..request.clone()
    };
    refused(
        admin.create_vpc(nameless).await,
        Code::AlreadyExists,
        "default/blue",
    );

    // Many at once: one is made, all get it.
    let request = v1::CreateVpcRequest {
        request_id: "at-once".to_owned(),
        ..vpc("green", "10.4.0.0/16")
    };
    let many = (0..20).map(|_| {
        let (mut admin, request) = (admin.clone(), request.clone());
        tokio::spawn(async move { admin.create_vpc(request).await.unwrap().into_inner().id })
    });
    let mut ids = BTreeSet::new();
    for one in many.collect::<Vec<_>>() {
        ids.insert(one.await.unwrap());
    }
    assert_eq!(ids.len(), 1);

    let cluster = cluster.restart().await;
    let request = v1::CreateVpcRequest {
        request_id: "6f1c".to_owned(),
        ..vpc("blue", "10.4.0.0/16")
    };
    let after = cluster.admin.clone().create_vpc(request).await.unwrap();
    assert_eq!(after.into_inner(), first);
}

pub(crate) async fn stale_versions_are_refused(place: Place) {
    let cluster = Cluster::start(place).await;
    let mut admin = cluster.admin.clone();
    let made = admin
        .create_account(account("acme"))
        .await
        .unwrap()
        .into_inner();
    let version = made.meta.unwrap().resource_version;
    let update = |version, value: &str| v1::UpdateAccountRequest {
        object: path("acme"),
        resource_version: version,
        labels: Some(labels(&[("x", value)])),
    };
    let newer = admin
        .update_account(update(version, "1"))
        .await
        .unwrap()
        .into_inner();
    let newer = newer.meta.unwrap().resource_version;
    refused(
        admin.update_account(update(version, "2")).await,
        Code::Aborted,
        "acme",
    );
    let mut gone = v1::DeleteRequest {
        object: path("acme"),
        resource_version: version,
    };
    refused(
        admin.delete_account(gone.clone()).await,
        Code::Aborted,
        "read it again",
    );
    gone.resource_version = newer;
    admin.delete_account(gone).await.unwrap();
}

pub(crate) async fn lists_come_in_pages(place: Place) {
    let cluster = Cluster::start(place).await;
    let mut admin = cluster.admin.clone();
    let mut expected = BTreeSet::new();
    for number in 0..25 {
        let made = admin
            .create_account(account(&format!("keep-{number}")))
            .await;
        expected.insert(made.unwrap().into_inner().name);
    }
    for number in 0..10 {
        admin
            .create_account(account(&format!("go-{number}")))
            .await
            .unwrap();
    }
    let mut seen = Vec::new();
    let mut token = String::new();
    let mut round = 0;
    loop {
        let page = admin
            .list_accounts(v1::ListRequest {
                page_size: 4,
                page_token: token,
                filter: None,
            })
            .await
            .unwrap()
            .into_inner();
        assert!(page.accounts.len() <= 4);
        seen.extend(page.accounts.into_iter().map(|account| account.name));
        // Between pages some go and others come.
        if round < 10 {
            admin
                .delete_account(delete(&format!("go-{round}")))
                .await
                .unwrap();
            admin
                .create_account(account(&format!("new-{round}")))
                .await
                .unwrap();
        }
        round += 1;
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    let kept: Vec<_> = seen
        .iter()
        .filter(|name| name.starts_with("keep-"))
        .cloned()
        .collect();
    assert_eq!(
        kept.len(),
        25,
        "one is listed twice or not at all: {seen:?}"
    );
    assert_eq!(BTreeSet::from_iter(kept), expected);

    let first = |filter| v1::ListRequest {
        page_size: 1,
        page_token: String::new(),
        filter,
    };
    let page = admin.list_accounts(first(None)).await.unwrap().into_inner();
    let elsewhere = v1::ListRequest {
        page_token: page.next_page_token.clone(),
        ..first(Some(v1::Filter {
            name_prefix: "keep".to_owned(),
            ..Default::default()
        }))
    };
    let other_filter = admin.list_accounts(elsewhere).await;
    refused(other_filter, Code::InvalidArgument, "another filter");
    let garbage = v1::ListRequest {
        page_token: "garbage".to_owned(),
        ..first(None)
    };
    refused(
        admin.list_accounts(garbage).await,
        Code::InvalidArgument,
        "page_token",
    );
}

pub(crate) async fn lists_are_filtered(place: Place) {
    let cluster = Cluster::start(place).await;
    cluster.join("c1", 11).await;
    cluster.join("c2", 12).await;
    cluster.furnish().await;
    let mut admin = cluster.admin.clone();
    admin.create_vpc(vpc("red", "10.4.0.0/16")).await.unwrap();
    admin
        .create_subnet(subnet("red", "web", "10.4.0.0/20"))
        .await
        .unwrap();
    for (subnet, name, host, app) in [
        ("blue/web", "a1", "c1", "shop"),
        ("blue/web", "a2", "c2", "shop"),
        ("blue/web", "b1", "c1", "mail"),
        ("red/web", "a1", "c1", "shop"),
    ] {
        let made = v1::CreateNicRequest {
            labels: HashMap::from([("app".to_owned(), app.to_owned())]),
            attachment: Some(tap()),
            ..nic(subnet, name, host)
        };
        admin.create_nic(made).await.unwrap();
    }
    let list = |filter: v1::Filter| {
        let mut admin = admin.clone();
        async move {
            let request = v1::ListRequest {
                filter: Some(filter),
                ..Default::default()
            };
            let page = admin.list_nics(request).await.unwrap().into_inner();
            let paths = page
                .nics
                .into_iter()
                .map(|nic| nic.path.replace("default/", ""));
            paths
                .collect::<BTreeSet<_>>()
                .into_iter()
                .collect::<Vec<_>>()
                .join(" ")
        }
    };
    let none = v1::Filter::default;
    let within = |kind: v1::Kind, parent| v1::Filter {
        parent_kind: kind.into(),
        parent: path(parent),
        ..none()
    };
    let label = |app: &str| HashMap::from([("app".to_owned(), app.to_owned())]);
    assert_eq!(
        list(none()).await,
        "blue/web/a1 blue/web/a2 blue/web/b1 red/web/a1"
    );
    assert_eq!(list(within(v1::Kind::Vpc, "red")).await, "red/web/a1");
    assert_eq!(
        list(within(v1::Kind::Subnet, "blue/web")).await,
        "blue/web/a1 blue/web/a2 blue/web/b1"
    );
    let on_c1 = v1::Filter {
        host: path("c1"),
        labels: label("shop"),
        ..none()
    };
    assert_eq!(list(on_c1).await, "blue/web/a1 red/web/a1");
    let named = v1::Filter {
        name_prefix: "a".to_owned(),
        ..within(v1::Kind::Account, "default")
    };
    assert_eq!(list(named).await, "blue/web/a1 blue/web/a2 red/web/a1");
    let nowhere = v1::ListRequest {
        filter: Some(within(v1::Kind::Vpc, "green")),
        ..Default::default()
    };
    refused(admin.list_nics(nowhere).await, Code::NotFound, "green");
}

pub(crate) fn labels(pairs: &[(&str, &str)]) -> v1::LabelSet {
    v1::LabelSet {
        labels: pairs
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect(),
    }
}
