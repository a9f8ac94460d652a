//! An agent with no management server, in a network namespace of its own: the local API makes
//! stacks and NICs, the kernel's tables show them, a restart touches nothing, drift is repaired.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

#[path = "local/clients.rs"]
mod clients;
#[path = "local/routers.rs"]
mod routers;

use agent::Options;
use api::tonic::Code;
use api::tonic::transport::Channel;
use api::v1;
use model::Name;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use serde_json::Value;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use testkit::{difference, without_counters};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

const LIMIT: Duration = Duration::from_secs(30);

/// Runs a test on a thread with its own network and mounts; all of it is gone with the thread.
fn isolated(test: impl AsyncFnOnce(Host) + Send + 'static) {
    let run = move || {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("tests run as root");
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
        mount(
            Some("run"),
            "/run",
            Some("tmpfs"),
            MsFlags::empty(),
            None::<&str>,
        )
        .unwrap();
        mount(
            Some("sys"),
            "/sys",
            Some("sysfs"),
            MsFlags::empty(),
            None::<&str>,
        )
        .unwrap();
        sh("ip link set dev lo up");
        sh("ip link add name under type veth peer name far");
        sh("ip address add 100.64.0.2/24 dev under");
        sh("ip link set dev under up");
        sh("ip link set dev far up");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let dir = tempfile::tempdir().unwrap();
        runtime.block_on(test(Host {
            dir: dir.path().to_owned(),
        }));
    };
    std::thread::Builder::new()
        .spawn(run)
        .unwrap()
        .join()
        .unwrap();
}

struct Host {
    dir: PathBuf,
}

struct Running {
    task: tokio::task::JoinHandle<Result<(), agent::AgentError>>,
    socket: PathBuf,
}

impl Host {
    fn options(&self) -> Options {
        let mut options = Options::new(Name::new("h1").unwrap(), "100.64.0.2".parse().unwrap());
        options.state_dir = self.dir.join("state");
        options
    }

    async fn agent(&self) -> Running {
        self.agent_with(self.options()).await
    }

    async fn agent_with(&self, options: Options) -> Running {
        let socket = options.socket.clone();
        let task = tokio::spawn(agent::run(options));
        wait_for("the agent's socket", || {
            if socket.exists() {
                Ok(())
            } else {
                Err("it is not there".to_owned())
            }
        })
        .await;
        Running { task, socket }
    }
}

impl Running {
    async fn l2(&self) -> v1::l2_client::L2Client<Channel> {
        api::connect_l2(&self.socket).await.unwrap()
    }

    async fn status(&self) -> v1::AgentStatus {
        let mut control = api::connect_agent(&self.socket).await.unwrap();
        control
            .status(v1::AgentStatusRequest {})
            .await
            .unwrap()
            .into_inner()
    }

    async fn stop(self) {
        let mut control = api::connect_agent(&self.socket).await.unwrap();
        control
            .stop(v1::StopRequest { withdraw: false })
            .await
            .unwrap();
        self.task.await.unwrap().unwrap();
    }
}

/// Waits for a state without holding up the agent, which shares this thread.
async fn wait_for<T>(what: &str, mut probe: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + LIMIT;
    loop {
        match probe() {
            Ok(value) => return value,
            Err(seen) => assert!(Instant::now() < deadline, "{what}: last seen:\n{seen}"),
        }
        let pause = timeout(Duration::from_millis(10), std::future::pending::<()>());
        pause.await.unwrap_err();
    }
}

fn sh(command: &str) -> String {
    let output = Command::new("sh").args(["-c", command]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {text}{error}");
    text
}

/// Runs a program that needs the agent to answer meanwhile.
async fn sh_beside(command: &str) {
    let output = tokio::process::Command::new("sh")
        .args(["-c", command])
        .output()
        .await
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{command}: {text}");
}

fn json(command: &str) -> Value {
    let text = sh(command);
    serde_json::from_str(if text.trim().is_empty() { "[]" } else { &text }).unwrap()
}

/// What the kernel has, without what changes by itself.
fn dump() -> String {
    let text = sh(
        "ip -d link; ip -d address; ip neigh show nud permanent | sort; bridge -d fdb | sort; \
                   bridge -d link; bridge vlan 2>/dev/null; \
                   nft list ruleset | sed '/^\tset announcing {$/,/^\t}$/d; /^\tset asking {$/,/^\t}$/d'",
    );
    without_counters(&text)
}

const VPC: &str = "00000000v1";
const SUBNET: &str = "00000000s1";

fn stack(encoding: v1::Encoding) -> v1::Stack {
    let bundle = encoding == v1::Encoding::VlanAwareBundle;
    v1::Stack {
        vpc_id: VPC.to_owned(),
        name: "blue".to_owned(),
        vni: 100,
        encoding: encoding.into(),
        unknown_neighbours: v1::UnknownNeighbours::Unspecified.into(),
        segments: vec![v1::Segment {
            subnet_id: SUBNET.to_owned(),
            name: "blue/web".to_owned(),
            vlan: 10,
            vni: if bundle { 100 } else { 101 },
            mtu: 1400,
            ipv4_cidr: "10.4.1.0/24".to_owned(),
            ipv6_cidr: "fd00:4:1::/64".to_owned(),
            ..v1::Segment::default()
        }],
        ports: Vec::new(),
    }
}

fn port(number: u8, kind: v1::attachment::Kind) -> v1::Port {
    v1::Port {
        nic_id: format!("00000000n{number}"),
        name: format!("blue/web/a{number}"),
        subnet_id: SUBNET.to_owned(),
        mac: format!("02:00:00:00:01:{number:02x}"),
        addresses: vec![format!("10.4.1.1{number}"), format!("fd00:4:1::1{number}")],
        attachment: Some(v1::Attachment { kind: Some(kind) }),
        ..v1::Port::default()
    }
}

fn netns(name: &str) -> v1::attachment::Kind {
    let (netns, device) = (name.to_owned(), "eth0".to_owned());
    v1::attachment::Kind::Netns(v1::attachment::Netns { netns, device })
}

async fn add_all(l2: &mut v1::l2_client::L2Client<Channel>, encoding: v1::Encoding) {
    let request = v1::AddStackRequest {
        stack: Some(stack(encoding)),
        wait_ms: 0,
    };
    l2.add_stack(request).await.unwrap();
    sh("ip link add name lent type veth peer name lent-far");
    let kinds = [
        netns("a1"),
        netns("a2"),
        v1::attachment::Kind::Tap(v1::attachment::Tap {}),
        v1::attachment::Kind::Existing(v1::attachment::Existing {
            ifname: "lent".to_owned(),
        }),
    ];
    for (number, kind) in (1..).zip(kinds) {
        let request = v1::AddNicRequest {
            vpc_id: VPC.to_owned(),
            port: Some(port(number, kind)),
            segment: None,
            wait_ms: 20_000,
        };
        let state = l2.add_nic(request).await.unwrap().into_inner();
        assert!(state.ready, "{state:?}");
    }
}

fn every_attachment_works(encoding: v1::Encoding) {
    isolated(async move |host| {
        let agent = host.agent().await;
        let mut l2 = agent.l2().await;
        add_all(&mut l2, encoding).await;

        for (from, to) in [
            ("a1", "10.4.1.12"),
            ("a2", "10.4.1.11"),
            ("a1", "fd00:4:1::12"),
        ] {
            sh_beside(&format!("ip netns exec {from} ping -c 1 -W 5 {to}")).await;
        }
        let inside = json("ip -n a1 -j -d link show dev eth0");
        assert_eq!(inside[0]["mtu"], 1400);
        assert_eq!(inside[0]["address"], "02:00:00:00:01:01");
        let tap = json("ip -j -d link show dev n-00000000n3");
        assert_eq!(tap[0]["linkinfo"]["info_data"]["multi_queue"], true);
        assert_eq!(tap[0]["linkinfo"]["info_data"]["vnet_hdr"], true);
        let tunnel = json("ip -j -d link show type vxlan");
        assert_eq!(tunnel.as_array().unwrap().len(), 1);
        assert_eq!(tunnel[0]["linkinfo"]["info_data"]["learning"], false);
        for link in json("ip -j -d link").as_array().unwrap() {
            let name = link["ifname"].as_str().unwrap();
            let ours = link["ifalias"]
                .as_str()
                .is_some_and(|alias| alias.starts_with("vpc:"));
            if ours && !name.starts_with("s-") {
                let off = sh(&format!("cat /proc/sys/net/ipv6/conf/{name}/disable_ipv6"));
                assert_eq!(off.trim(), "1", "IPv6 is on on {name}");
            }
        }

        // A restart touches nothing.
        let before = dump();
        agent.stop().await;
        let agent = host.agent().await;
        let deadline = Instant::now() + LIMIT;
        loop {
            let status = agent.status().await;
            if status.converged && status.nics == 4 {
                assert_eq!(
                    status.counters.unwrap().actions,
                    0,
                    "a restart must change nothing"
                );
                break;
            }
            assert!(Instant::now() < deadline, "{status:?}");
        }
        let after = dump();
        assert_eq!(after, before, "{}", difference(&before, &after));

        // What is lent is given back; everything else is gone.
        let request = v1::DeleteStackRequest {
            vpc_id: VPC.to_owned(),
            with_nics: true,
            wait_ms: 20_000,
        };
        agent.l2().await.delete_stack(request).await.unwrap();
        let left = json("ip -j link");
        let left = left
            .as_array()
            .unwrap()
            .iter()
            .map(|link| link["ifname"].as_str().unwrap());
        let mut left: Vec<&str> = left.collect();
        left.sort_unstable();
        assert_eq!(left, ["far", "lent", "lent-far", "lo", "under"]);
        assert_eq!(std::fs::read_dir("/run/netns").unwrap().count(), 0);
        agent.stop().await;
    });
}

#[test]
fn every_attachment_works_vlan_based() {
    every_attachment_works(v1::Encoding::VlanBased);
}

#[test]
fn every_attachment_works_in_a_bundle() {
    every_attachment_works(v1::Encoding::VlanAwareBundle);
}

#[test]
fn drift_is_repaired() {
    isolated(async |host| {
        let agent = host.agent().await;
        let mut l2 = agent.l2().await;
        add_all(&mut l2, v1::Encoding::VlanBased).await;
        let filtering = Path::new("/sys/class/net/b-00000000v1").exists();
        let vlan = if filtering { " vlan 10" } else { "" };
        let good = dump();
        for damage in [
            "ip link set dev n-00000000n1 down",
            "ip link set dev t-101 down",
            "ip link set dev t-101 nomaster",
            "ip link set dev n-00000000n1 mtu 1300",
            &format!("bridge fdb del 02:00:00:00:01:01 dev n-00000000n1 master{vlan}"),
            "bridge link set dev n-00000000n2 learning on",
            "nft flush set bridge vpc macs",
            "nft delete table bridge vpc",
        ] {
            sh(damage);
            wait_for(damage, || {
                let now = dump();
                if now == good {
                    Ok(())
                } else {
                    Err(difference(&good, &now))
                }
            })
            .await;
        }
        let counters = agent.status().await.counters.unwrap();
        assert!(counters.drift_repairs >= 8, "{counters:?}");
        agent.stop().await;
    });
}

#[test]
fn programs_of_a_bundle_are_put_back() {
    isolated(async |host| {
        let mut options = host.options();
        options.resync_every = Duration::from_secs(3600);
        let agent = host.agent_with(options).await;
        let mut l2 = agent.l2().await;
        add_all(&mut l2, v1::Encoding::VlanAwareBundle).await;
        if Path::new("/sys/class/net/b-00000000v1").exists() {
            return agent.stop().await; // This kernel filters VLANs, so there are none.
        }
        let filters = || {
            sh("for dev in t-100 w-00000000s1; do \
                tc filter show dev $dev ingress | grep -o 'pref .* vpc-[^ ]*' || true; done")
        };
        let (good, rest) = (filters(), dump());
        assert_eq!(good.lines().count(), 3, "{good}");
        for damage in [
            "tc filter del dev t-100 ingress pref 10",
            "tc filter del dev t-100 ingress pref 5000",
            "tc qdisc del dev t-100 clsact",
            "tc qdisc del dev w-00000000s1 clsact",
        ] {
            sh(damage);
            wait_for(damage, || match (filters(), dump()) {
                (now, _) if now != good => Err(now),
                (_, now) if now != rest => Err(difference(&rest, &now)),
                _ => Ok(()),
            })
            .await;
        }
        agent.stop().await;
    });
}

/// Nothing but the kernel's events tells of what was changed: the next look at everything is far
/// away, and no other one is taken.
#[test]
fn drift_is_repaired_without_looking_at_everything() {
    isolated(async |host| {
        let mut options = host.options();
        options.resync_every = Duration::from_secs(3600);
        let agent = host.agent_with(options).await;
        let mut l2 = agent.l2().await;
        add_all(&mut l2, v1::Encoding::VlanBased).await;
        let filtering = Path::new("/sys/class/net/b-00000000v1").exists();
        let (bridge, rows, vlan) = match filtering {
            true => ("b-00000000v1", "s-00000000s1", " vlan 10"),
            false => ("b-00000000s1", "b-00000000s1", ""),
        };
        let good = dump();
        let mut damages = vec![
            "ip link set dev n-00000000n1 nomaster".to_owned(),
            format!("ip link set dev {bridge} address 02:00:00:00:00:77"),
            format!("ip link set dev {bridge} down"),
            format!("bridge fdb del 02:00:00:00:01:02 dev n-00000000n2 master{vlan}"),
            format!("bridge fdb add 02:00:00:00:09:09 dev t-101 master extern_learn{vlan}"),
            "bridge fdb add 02:00:00:00:09:09 dev t-101 dst 100.64.0.77 extern_learn".to_owned(),
            format!(
                "ip neigh add 10.4.1.99 lladdr 02:00:00:00:09:09 dev {rows} nud permanent \
                 protocol 118"
            ),
            "nft delete element bridge vpc macs { n-00000000n1 . 02:00:00:00:01:01 }".to_owned(),
            "nft add element bridge vpc ipv4 { n-00000000n1 . 10.4.1.99 }".to_owned(),
            "nft add element inet vpc vteps4 { 100.64.0.77 }".to_owned(),
            "nft flush chain bridge vpc port".to_owned(),
        ];
        if filtering {
            damages.push("bridge vlan del dev n-00000000n1 vid 10".to_owned());
            damages.push("bridge vlan add dev n-00000000n1 vid 11".to_owned());
        }
        let whole = agent.status().await.counters.unwrap().whole_readings;
        let mut slowest = (Duration::ZERO, "");
        for damage in &damages {
            sh(damage);
            let damaged = Instant::now();
            wait_for(damage, || match dump() {
                now if now == good => Ok(()),
                now => Err(difference(&good, &now)),
            })
            .await;
            slowest = slowest.max((damaged.elapsed(), damage));
        }
        // What is made anew has other numbers.
        let ipv6_on = format!("sysctl -q -w net.ipv6.conf.{bridge}.disable_ipv6=0");
        let ipv6_off = format!("sysctl -n net.ipv6.conf.{bridge}.disable_ipv6 | grep -q 1");
        for (damage, mended) in [
            (ipv6_on.as_str(), ipv6_off.as_str()),
            (
                "ip link del dev n-00000000n1",
                "ip -n a1 addr show dev eth0 up | grep -q 10.4.1.11 &&
                 bridge fdb show dev n-00000000n1 | grep -q 02:00:00:00:01:01",
            ),
            (
                "ip netns del a2",
                "ip -n a2 addr show dev eth0 up | grep -q 10.4.1.12",
            ),
            (
                "ip link del dev t-101",
                "bridge link show dev t-101 | grep -q forwarding",
            ),
            (
                "ip link del dev n-00000000n3; ip link del dev t-101",
                "ip link show dev n-00000000n3 && bridge link show dev t-101 | grep -q forwarding",
            ),
        ] {
            sh(damage);
            wait_for(damage, || {
                match Command::new("sh").args(["-c", mended]).output().unwrap() {
                    output if output.status.success() => Ok(()),
                    output => Err(format!("{mended}: {output:?}")),
                }
            })
            .await;
        }
        let counters = agent.status().await.counters.unwrap();
        assert_eq!(counters.whole_readings, whole, "{counters:?} {slowest:?}");
        agent.stop().await;
    });
}

/// One NIC beside others costs no look at everything, neither when it comes nor when it goes.
#[test]
fn a_nic_costs_no_look_at_everything() {
    isolated(async |host| {
        let mut options = host.options();
        options.resync_every = Duration::from_secs(3600);
        let agent = host.agent_with(options).await;
        let mut l2 = agent.l2().await;
        add_all(&mut l2, v1::Encoding::VlanBased).await;
        let before = agent.status().await.counters.unwrap();
        assert_eq!(before.whole_readings, 1, "{before:?}");
        for _ in 0..3 {
            let request = v1::AddNicRequest {
                vpc_id: VPC.to_owned(),
                port: Some(port(5, netns("a5"))),
                segment: None,
                wait_ms: 20_000,
            };
            assert!(l2.add_nic(request).await.unwrap().into_inner().ready);
            sh_beside("ip netns exec a5 ping -c 1 -W 5 10.4.1.11").await;
            let request = v1::DeleteNicRequest {
                nic_id: "00000000n5".to_owned(),
                wait_ms: 20_000,
            };
            l2.delete_nic(request).await.unwrap();
        }
        let after = agent.status().await.counters.unwrap();
        assert_eq!(after.whole_readings, before.whole_readings, "{after:?}");
        assert_eq!(after.drift_repairs, before.drift_repairs, "{after:?}");
        agent.stop().await;
    });
}

#[test]
fn an_unused_stack_is_collected_and_watchers_hear_of_it() {
    isolated(async |host| {
        let mut options = host.options();
        options.unused_stack_after = Duration::from_secs(1);
        options.resync_every = Duration::from_millis(300);
        let agent = host.agent_with(options).await;
        let mut l2 = agent.l2().await;
        let events = l2.watch_stacks(v1::WatchStacksRequest {}).await.unwrap();
        let mut events = events.into_inner();
        let mut next = async || {
            timeout(LIMIT, events.message())
                .await
                .unwrap()
                .unwrap()
                .unwrap()
        };
        assert!(next().await.snapshot_complete);

        let stack = Some(stack(v1::Encoding::VlanBased));
        l2.add_stack(v1::AddStackRequest {
            stack,
            wait_ms: 20_000,
        })
        .await
        .unwrap();
        assert!(
            !json("ip -j link show type vxlan")
                .as_array()
                .unwrap()
                .is_empty()
        );
        let mut ready = false;
        loop {
            let event = next().await;
            ready |= event.stack.unwrap().ready;
            if event.deleted {
                break;
            }
        }
        assert!(ready, "it was never ready");
        wait_for("its interfaces are gone", || {
            let left = sh("ip -br link | grep -E '^[bts]-' || true");
            if left.is_empty() { Ok(()) } else { Err(left) }
        })
        .await;
        agent.stop().await;
    });
}

#[test]
fn the_local_api_refuses_what_cannot_be() {
    isolated(async |host| {
        let agent = host.agent().await;
        let mut l2 = agent.l2().await;
        let good = stack(v1::Encoding::VlanBased);
        let with = |change: fn(&mut v1::Stack)| {
            let mut stack = good.clone();
            change(&mut stack);
            v1::AddStackRequest {
                stack: Some(stack),
                wait_ms: 0,
            }
        };
        let bad: [(v1::AddStackRequest, &str); 8] = [
            (with(|s| s.vni = 0), "VNI 0 is out of range"),
            (with(|s| s.vni = 1 << 24), "VNI 16777216 is out of range"),
            (with(|s| s.segments[0].vlan = 0), "VLAN 0 is out of range"),
            (
                with(|s| s.segments[0].vlan = 4095),
                "VLAN 4095 is out of range",
            ),
            (
                with(|s| s.segments[0].mtu = 1451),
                "carries 1450 inside the tunnel",
            ),
            (with(|s| s.segments[0].mtu = 100), "MTU 100 is out of range"),
            (
                with(|s| s.segments[0].ipv4_cidr = "10.4.1.7/24".to_owned()),
                "10.4.1.7/24",
            ),
            (with(|s| s.segments[0].vni = 100), "VNI 100 is used twice"),
        ];
        for (request, reason) in bad {
            let status = l2.add_stack(request).await.expect_err(reason);
            assert!(status.message().contains(reason), "{reason}: {status}");
        }
        l2.add_stack(with(|_| {})).await.unwrap();
        let again = l2.add_stack(with(|_| {})).await.unwrap().into_inner();
        assert_eq!(again.stack.unwrap().vpc_id, VPC);
        let other = l2
            .add_stack(with(|s| s.name = "other".to_owned()))
            .await
            .unwrap_err();
        assert_eq!(other.code(), Code::AlreadyExists);

        let nic = |change: fn(&mut v1::Port)| {
            let mut port = port(1, netns("a1"));
            change(&mut port);
            let vpc_id = VPC.to_owned();
            v1::AddNicRequest {
                vpc_id,
                port: Some(port),
                segment: None,
                wait_ms: 0,
            }
        };
        l2.add_nic(nic(|_| {})).await.unwrap();
        let bad: [(v1::AddNicRequest, &str); 6] = [
            (
                nic(|p| p.mac = "01:00:5e:00:00:01".to_owned()),
                "01:00:5e:00:00:01",
            ),
            (
                nic(|p| p.addresses = vec!["10.5.0.1".to_owned()]),
                "is not in segment",
            ),
            (nic(|p| p.attachment = None), "attachment"),
            (
                nic(|p| p.nic_id = "00000000n2".to_owned()),
                "attachment netns:a1 is already used",
            ),
            (
                nic(|p| {
                    p.nic_id = "00000000n2".to_owned();
                    p.attachment = Some(v1::Attachment {
                        kind: Some(netns("a2")),
                    });
                }),
                "MAC 02:00:00:00:01:01 is already used",
            ),
            (
                nic(|p| {
                    p.nic_id = "00000000n2".to_owned();
                    p.mac = "02:00:00:00:01:02".to_owned();
                    p.attachment = Some(v1::Attachment {
                        kind: Some(netns("a2")),
                    });
                }),
                "address 10.4.1.11 is already used",
            ),
        ];
        for (request, reason) in bad {
            let status = l2.add_nic(request).await.unwrap_err();
            assert!(status.message().contains(reason), "{reason}: {status}");
        }
        let vpc_id = VPC.to_owned();
        let request = v1::DeleteStackRequest {
            vpc_id,
            with_nics: false,
            wait_ms: 0,
        };
        let status = l2.delete_stack(request).await.unwrap_err();
        assert!(status.message().contains("still has 1 NIC"), "{status}");
        let listed = l2
            .list_nics(v1::ListHostNicsRequest::default())
            .await
            .unwrap()
            .into_inner();
        assert_eq!(listed.nics.len(), 1);
        agent.stop().await;
    });
}

#[test]
fn a_second_agent_and_one_without_an_underlay_do_not_start() {
    isolated(async |host| {
        let agent = host.agent().await;
        let mut options = host.options();
        options.state_dir = host.dir.join("other");
        let error = agent::run(options.clone()).await.unwrap_err();
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert!(cause.contains("another agent"), "{cause}");

        options.socket = host.dir.join("other.sock");
        options.underlay = "100.64.0.99".parse().unwrap();
        let error = agent::run(options).await.unwrap_err().to_string();
        assert!(error.contains("100.64.0.99 is on no interface"), "{error}");
        agent.stop().await;
    });
}

/// A page of metrics, as a plain TCP client gets it.
async fn scrape(address: SocketAddr) -> Option<String> {
    let mut stream = TcpStream::connect(address).await.ok()?;
    let request = b"GET /metrics HTTP/1.1\r\nHost: test\r\n\r\n";
    stream.write_all(request).await.ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await.ok()?;
    assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
    assert!(text.ends_with("# EOF\n"), "{text}");
    Some(text)
}

/// The value of a sample, by its name with labels.
fn sample(page: &str, name: &str) -> Option<f64> {
    let mut lines = page.lines();
    let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.map(|value| value.parse().unwrap())
}

#[test]
fn metrics_are_what_the_kernel_and_the_status_say() {
    isolated(async |host| {
        let address: SocketAddr = "127.0.0.1:9476".parse().unwrap();
        let mut options = host.options();
        options.metrics = Some(address);
        let agent = host.agent_with(options).await;
        add_all(&mut agent.l2().await, v1::Encoding::VlanBased).await;

        let deadline = Instant::now() + LIMIT;
        loop {
            let status = agent.status().await;
            let page = scrape(address).await.unwrap_or_default();
            let counters = status.counters.unwrap_or_default();
            let fdb = sh("bridge fdb show").lines().count();
            let wanted = [
                ("vpc_agent_converged", 1),
                ("vpc_agent_conditions", 0),
                ("vpc_agent_stacks", 1),
                ("vpc_agent_nics", 4),
                ("vpc_agent_nics_ready", 4),
                ("vpc_agent_actions_total", counters.actions),
                ("vpc_agent_actions_failed_total", counters.failed_actions),
                ("vpc_agent_drift_repairs_total", counters.drift_repairs),
                (
                    "vpc_agent_generation{kind=\"applied\"}",
                    status.applied_generation,
                ),
                (
                    "vpc_agent_start_timestamp_seconds",
                    status.started_unix_ms / 1000,
                ),
            ];
            let differs = |(name, value): &&(&str, u64)| sample(&page, name) != Some(*value as f64);
            let wrong: Vec<_> = wanted.iter().filter(differs).collect();
            let rows = sample(&page, "vpc_fdb_rows").unwrap_or_default() as usize;
            let took = sample(&page, "vpc_agent_reconcile_seconds_count").unwrap_or_default();
            if wrong.is_empty() && (1..=fdb).contains(&rows) && took >= 2.0 {
                break;
            }
            let now = Instant::now();
            assert!(
                now < deadline,
                "{wrong:?}, {rows} of {fdb} rows, {took}:\n{page}"
            );
            let pause = timeout(Duration::from_millis(100), std::future::pending::<()>());
            pause.await.unwrap_err();
        }
        agent.stop().await;
        // The listener goes with its task, which may end a moment after the agent.
        let refused = async {
            while TcpStream::connect(address).await.is_ok() {
                let pause = timeout(Duration::from_millis(10), std::future::pending::<()>());
                pause.await.unwrap_err();
            }
        };
        let refused = timeout(Duration::from_secs(10), refused).await;
        refused.expect("nobody listens for metrics once the agent has stopped");
    });
}
