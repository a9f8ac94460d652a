//! Many NICs on one host: made, listed, restarted over and deleted, in time and without a trace.

use api::v1;
use lab::client::{Client, all_nics, path};
use lab::{Lab, difference};
use std::collections::BTreeSet;
use std::env;
use std::time::{Duration, Instant};

const VPCS: usize = 10;
const SUBNETS: usize = 50;
/// Requests under way at a time.
const WORKERS: usize = 16;

/// A thousand in `make soak`, fewer in `make test`.
fn count() -> usize {
    match env::var_os("VPC_SOAK") {
        Some(_) => 1000,
        None => 200,
    }
}

#[expect(clippy::print_stderr, reason = "figures are shown")]
fn report(text: &str) {
    eprintln!("scale: {text}");
}

#[test]
fn many_nics_on_a_host_come_stay_and_go() {
    let lab = Lab::up();
    let count = count();
    // The guards' frame stays once there was a NIC.
    lab.admin("create once --cidr 10.0.0.0/8");
    lab.admin("subnet create once/s --cidr 10.0.0.0/16");
    lab.admin("nic create once/s/n --host c1 --attach netns:n --wait");
    lab.admin("nic delete once/s/n --wait");
    lab.sh("m1", "vpc subnet delete once/s && vpc delete once");
    let empty = lab.dump("c1");
    let nothing = lab.sh("c1", "ls -A /run/netns /run/vpc/netns");

    let started = Instant::now();
    lab.with_admin(make_subnets);
    report(&format!(
        "{VPCS} VPCs, {SUBNETS} subnets: {:?}",
        started.elapsed()
    ));

    let started = Instant::now();
    let each = lab.with_admin(|client| make_nics(client, count));
    report(&format!(
        "{count} NICs accepted: {:?}; each p50 {:?} p99 {:?}",
        started.elapsed(),
        each[each.len() / 2],
        each[each.len() * 99 / 100]
    ));
    lab.with_admin(|mut client| async move { applied(&mut client).await });
    report(&format!(
        "{count} NICs applied: {:?}, {:?} each",
        started.elapsed(),
        started.elapsed() / u32::try_from(count).expect("it is small")
    ));

    let started = Instant::now();
    let listed = lab.with_admin(|mut client| async move {
        let filter = v1::Filter {
            host: Some(path("c1")),
            ..Default::default()
        };
        all_nics(&mut client, filter, 64).await
    });
    report(&format!(
        "{count} NICs listed by 64: {:?}",
        started.elapsed()
    ));
    let ids: BTreeSet<&str> = listed.iter().map(|nic| nic.id.as_str()).collect();
    assert_eq!((listed.len(), ids.len()), (count, count));
    assert!(listed.iter().all(|nic| nic.host_name == "c1"));
    let unwell: Vec<_> = listed
        .iter()
        .filter(|nic| {
            nic.status.as_ref().map(|s| s.state()) != Some(v1::nic_status::State::Applied)
        })
        .map(|nic| (&nic.path, &nic.status))
        .collect();
    assert!(unwell.is_empty(), "{unwell:?}");
    assert_eq!(ports(&lab), count);

    forwarding(&lab, &listed);
    one_more(&lab);

    let full = lab.dump("c1");
    let started = Instant::now();
    lab.kill("c1", "agent");
    lab.start("c1", "agent");
    let status = lab.eventually("the agent converges", || {
        let output = lab.try_sh("c1", "vpc -o json agent status");
        let status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        match status["converged"] == true && status["peers"][0]["end_of_rib"] == true {
            true => Ok(status),
            false => Err(lab::text_of(&output)),
        }
    });
    report(&format!(
        "agent killed and converged again: {:?}",
        started.elapsed()
    ));
    assert_eq!(status["actions"], 0, "{status}");
    assert_eq!(status["nics"], count, "{status}");
    let now = lab.dump("c1");
    assert_eq!(full, now, "{}", difference(&full, &now));

    let started = Instant::now();
    lab.with_admin(|client| delete_nics(client, &listed));
    report(&format!(
        "{count} NICs deletes accepted: {:?}",
        started.elapsed()
    ));
    lab.with_admin(|mut client| async move { applied(&mut client).await });
    report(&format!(
        "{count} NICs gone: {:?}, {:?} each",
        started.elapsed(),
        started.elapsed() / u32::try_from(count).expect("it is small")
    ));
    lab.eventually("nothing is left on the host", || {
        let now = lab.dump("c1");
        match now == empty {
            true => Ok(()),
            false => Err(difference(&empty, &now)),
        }
    });
    assert_eq!(nothing, lab.sh("c1", "ls -A /run/netns /run/vpc/netns"));
    lab.with_admin(delete_subnets);
    assert_eq!(lab.admin("list").as_array().map(Vec::len), Some(0));
}

/// `s7` is in `v7`, and so is `s17`.
fn subnet(number: usize) -> String {
    format!("v{}/s{number}", number % VPCS)
}

async fn make_subnets(mut client: Client) {
    for number in 0..VPCS {
        let request = v1::CreateVpcRequest {
            name: format!("v{number}"),
            cidrs: vec!["10.0.0.0/8".to_owned()],
            ..Default::default()
        };
        client.create_vpc(request).await.expect("a VPC");
    }
    for number in 0..SUBNETS {
        let request = v1::CreateSubnetRequest {
            vpc: Some(path(&format!("v{}", number % VPCS))),
            name: format!("s{number}"),
            cidrs: vec![format!("10.{number}.0.0/16")],
            ..Default::default()
        };
        client.create_subnet(request).await.expect("a subnet");
    }
}

fn netns(name: String) -> v1::Attachment {
    let device = String::new();
    let netns = v1::attachment::Netns {
        netns: name,
        device,
    };
    v1::Attachment {
        kind: Some(v1::attachment::Kind::Netns(netns)),
    }
}

/// How long each took until it was accepted, sorted.
async fn make_nics(client: Client, count: usize) -> Vec<Duration> {
    let workers = (0..WORKERS).map(|worker| {
        let mut client = client.clone();
        async move {
            let mut each = Vec::new();
            for number in (worker..count).step_by(WORKERS) {
                let request = v1::CreateNicRequest {
                    subnet: Some(path(&subnet(number % SUBNETS))),
                    name: format!("n{number}"),
                    host: Some(path("c1")),
                    attachment: Some(netns(format!("n{number}"))),
                    ..Default::default()
                };
                let started = Instant::now();
                client.create_nic(request).await.expect("a NIC");
                each.push(started.elapsed());
            }
            each
        }
    });
    let mut each = futures::future::join_all(workers).await.concat();
    each.sort();
    each
}

async fn delete_nics(client: Client, nics: &[v1::Nic]) {
    let workers = (0..WORKERS).map(|worker| {
        let mut client = client.clone();
        async move {
            for nic in nics.iter().skip(worker).step_by(WORKERS) {
                let by = v1::r#ref::By::Id(nic.id.clone());
                let request = v1::DeleteRequest {
                    object: Some(v1::Ref { by: Some(by) }),
                    resource_version: 0,
                };
                client.delete_nic(request).await.expect("it is there");
            }
        }
    });
    futures::future::join_all(workers).await;
}

async fn delete_subnets(mut client: Client) {
    let request = |path_text: &str| v1::DeleteRequest {
        object: Some(path(path_text)),
        resource_version: 0,
    };
    for number in 0..SUBNETS {
        let gone = client.delete_subnet(request(&subnet(number))).await;
        gone.expect("it is empty");
    }
    for number in 0..VPCS {
        let gone = client.delete_vpc(request(&format!("v{number}"))).await;
        gone.expect("it is empty");
    }
}

/// Waits until hosts did what the newest change asked of them, and with it all before.
async fn applied(client: &mut Client) {
    let info = client.get_server_info(v1::GetServerInfoRequest {}).await;
    let request = v1::WaitAppliedRequest {
        revision: info.expect("it answers").into_inner().revision,
        timeout_ms: 120_000,
        ..Default::default()
    };
    let mut progress = client
        .wait_applied(request)
        .await
        .expect("the wait begins")
        .into_inner();
    while let Some(_seen) = progress.message().await.expect("hosts go on with it") {}
}

fn ports(lab: &Lab) -> usize {
    let links = lab.json("c1", "ip -j link");
    let links = links.as_array().into_iter().flatten();
    let names = links.filter_map(|link| link["ifname"].as_str());
    names.filter(|name| name.starts_with("n-")).count()
}

/// In a sample of namespaces, everyone else in the subnet answers.
fn forwarding(lab: &Lab, nics: &[v1::Nic]) {
    for nic in nics.iter().step_by(nics.len() / 10) {
        let mates = nics
            .iter()
            .filter(|other| other.subnet_id == nic.subnet_id && other.id != nic.id);
        let mates: Vec<&str> = mates.map(|mate| mate.addresses[0].as_str()).collect();
        assert!(!mates.is_empty());
        let all = mates.join(" ");
        lab.sh(
            &format!("c1/{}", nic.name),
            &format!("for a in {all}; do ping -c 1 -W 2 $a > /dev/null || exit 1; done"),
        );
    }
}

/// What one NIC more takes on a host that has many, from the API's call to the first reply.
fn one_more(lab: &Lab) {
    let mut times = lab.with_admin(|mut client| async move {
        let mut times = Vec::new();
        for number in 0..20 {
            let request = v1::CreateNicRequest {
                subnet: Some(path("v0/s0")),
                name: format!("more{number}"),
                host: Some(path("c1")),
                attachment: Some(netns(format!("more{number}"))),
                ..Default::default()
            };
            let started = Instant::now();
            let made = client
                .create_nic(request)
                .await
                .expect("a NIC")
                .into_inner();
            let wait = |revision| v1::WaitAppliedRequest {
                revision,
                timeout_ms: 60_000,
                ..Default::default()
            };
            let revision = made
                .meta
                .map(|meta| meta.resource_version)
                .unwrap_or_default();
            let waited = client.wait_applied(wait(revision)).await;
            let mut progress = waited.expect("the wait begins").into_inner();
            while let Some(_seen) = progress.message().await.expect("the host does it") {}
            times.push(started.elapsed());
            let by = v1::r#ref::By::Id(made.id);
            let request = v1::DeleteRequest {
                object: Some(v1::Ref { by: Some(by) }),
                resource_version: 0,
            };
            let gone = client.delete_nic(request).await.expect("it is there");
            let waited = client.wait_applied(wait(gone.into_inner().revision)).await;
            let mut progress = waited.expect("the wait begins").into_inner();
            while let Some(_seen) = progress.message().await.expect("the host does it") {}
        }
        times
    });
    times.sort();
    report(&format!(
        "one more NIC, from the call to applied: p50 {:?}, worst of 20 {:?}",
        times[10], times[19]
    ));
}
