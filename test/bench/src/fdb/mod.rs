//! Remote MACs into the kernel: 100,000 that EVPN tells, beside the same rows as raw netlink.
//!
//! Each measurement has a network namespace of its own on a thread of its own, which is all that
//! there is to clean up.

mod netlink;
mod reflector;

use crate::Effort;
use crate::figures::{Table, Target, median, percentile, progress};
use host_plan::{Desired, HostMachine, HostState, LocalStacks, Plan, Scope};
use model::{
    Asn, Attachment, BgpConfig, EviForwarding, Forwarding, Generation, HostConfig, HostId, IfName,
    MacAddr, Mtu, NetnsName, NicId, Segment, Stack, SubnetId, SubnetOptions, Underlay, VlanId, Vni,
    VpcId,
};
use netlink::{Netlink, Row};
use nix::mount::{MsFlags, mount};
use nix::net::if_::if_nametoindex;
use nix::sched::{CloneFlags, unshare};
use reflector::{Reflector, Remote, end_of_rib, updates};
use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

const MACS: usize = 100_000;
/// Behind so many VTEPs.
const VTEPS: usize = 100;
const VNI: u32 = 4097;
const VTEP: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 2);
/// One has the table, the other tells of single MACs meanwhile.
const REFLECTORS: [Ipv4Addr; 2] = [Ipv4Addr::new(100, 64, 0, 1), Ipv4Addr::new(100, 64, 0, 3)];
/// MACs that are told one by one while the others are on their way, and how far apart.
const SINGLES: usize = 10;
const SINGLE_EVERY: Duration = Duration::from_millis(50);
/// After this something is wrong.
const LIMIT: Duration = Duration::from_secs(120);
/// Between two looks: a look takes a few microseconds.
const LOOK_EVERY: Duration = Duration::from_millis(1);

pub(crate) fn measure(effort: Effort, table: &mut Table) {
    let rounds = effort.rounds.max(1);
    let (mut raw, mut applied, mut whole) = (Vec::new(), Vec::new(), Vec::new());
    let (mut singles, mut memory) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        progress(&format!(
            "{MACS} remote MACs, round {} of {rounds}",
            round + 1
        ));
        raw.push(in_namespaces(raw_netlink));
        progress(&format!("raw netlink: {:.0} ms", raw[round]));
        applied.push(in_namespaces(plan_and_apply));
        progress(&format!("planned and applied: {:.0} ms", applied[round]));
        let found = in_namespaces(from_bgp);
        whole.push(found.took);
        singles.extend(found.singles);
        memory.push(found.resident_mib);
        progress(&format!(
            "from the first UPDATE: {:.0} ms; resident {:.0} MiB",
            whole[round], memory[round]
        ));
    }
    let rate = |ms: &[f64]| MACS as f64 * 1000.0 / median(ms);
    let ratios = |ours: &[f64]| -> f64 {
        let pairs: Vec<f64> = raw.iter().zip(ours).map(|(raw, ours)| raw / ours).collect();
        median(&pairs)
    };
    for (what, ours) in [
        ("remote MACs a second, planned and applied", &applied),
        ("remote MACs a second, from the first UPDATE", &whole),
    ] {
        table.add_ratio(
            what,
            (rate(ours), "/s"),
            Some(rate(&raw)),
            Some(ratios(ours)),
            Target::RatioLeast(0.5),
        );
    }
    for (what, share) in [("median", 0.5), ("worst", 1.0)] {
        table.add(
            &format!("a single new MAC meanwhile, {what}"),
            (percentile(&singles, share), "ms"),
            None,
            Target::None,
        );
    }
    table.add(
        &format!("resident memory: agent, {MACS} remote MACs"),
        (median(&memory), "MiB"),
        None,
        Target::None,
    );
}

fn remote(number: usize) -> Remote {
    let [_, _, high, middle, low] = *(number as u64).to_be_bytes().last_chunk().expect("eight");
    Remote {
        mac: [2, 1, 0, high, middle, low],
        ip: Ipv4Addr::new(10, 1 + high, middle, low),
        vtep: Ipv4Addr::from(u32::from(Ipv4Addr::new(100, 64, 1, 0)) + vtep_of(number)),
    }
}

fn vtep_of(number: usize) -> u32 {
    (number * VTEPS / MACS) as u32
}

fn remotes() -> Vec<Remote> {
    (0..MACS).map(remote).collect()
}

/// Runs it on a thread with its own network, `/run` and `/sys`.
fn in_namespaces<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> T {
    let inside = move || {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("run it as root");
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).expect("own mounts");
        for (kind, at) in [("tmpfs", "/run"), ("sysfs", "/sys")] {
            let flags = MsFlags::empty();
            mount(Some(kind), at, Some(kind), flags, None::<&str>).expect("an own file system");
        }
        ip("link set dev lo up");
        for address in REFLECTORS {
            ip(&format!("address add {address}/32 dev lo"));
        }
        ip("link add name under type veth peer name far");
        ip("link set dev far up");
        ip(&format!("address add {VTEP}/16 dev under"));
        ip("link set dev under up");
        run()
    };
    thread::Builder::new()
        .spawn(inside)
        .expect("a thread")
        .join()
        .expect("the measurement ran")
}

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status();
    assert!(
        status.is_ok_and(|status| status.success()),
        "ip {arguments}"
    );
}

fn ms(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}

/// Milliseconds for the rows as raw netlink.
fn raw_netlink() -> f64 {
    ip("link add name raw-b type bridge");
    ip(&format!(
        "link add name raw-t type vxlan id {VNI} local {VTEP} dstport 4789 nolearning"
    ));
    ip("link set dev raw-t master raw-b");
    ip("link set dev raw-b up");
    ip("link set dev raw-t up");
    let (tunnel, bridge) = (index("raw-t"), index("raw-b"));
    let mut rows = Vec::with_capacity(3 * MACS);
    let all = remotes();
    rows.extend(all.iter().map(|r| Row::Tunnel(r.mac, r.vtep)));
    rows.extend(all.iter().map(|r| Row::Bridge(r.mac)));
    rows.extend(all.iter().map(|r| Row::Neighbour(r.ip, r.mac)));
    let mut netlink = Netlink::open();
    let started = Instant::now();
    netlink.add(&rows, tunnel, bridge);
    let took = ms(started);
    assert_eq!(netlink.count(tunnel, bridge), (2 * MACS, MACS));
    took
}

fn index(name: &str) -> u32 {
    if_nametoindex(name).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Milliseconds for a plan and its steps, with no agent and no BGP.
fn plan_and_apply() -> f64 {
    let config = config();
    let mut kernel = linux::Kernel::open("/run/vpc".as_ref()).expect("the kernel's interfaces");
    let step = |kernel: &mut linux::Kernel, forwarding: &Forwarding, seen: &HostState| {
        let desired = Desired {
            transport: model::Transport::Kernel,
            limits: Default::default(),
            underlay: config.underlay,
            stacks: &config.stacks,
            routers: &[],
            forwarding,
            local_neighbours: false,
        };
        let plan: Plan = host_plan::plan(&desired, seen);
        let actions: Vec<_> = plan.steps.into_iter().map(|step| step.action).collect();
        for result in kernel.run(&actions) {
            result.expect("every step succeeds");
        }
        actions.len()
    };
    let machine = HostMachine::new(
        config.underlay,
        Some(config.clone()),
        LocalStacks::default(),
    );
    let observe = |kernel: &mut linux::Kernel| {
        let scope: Scope = machine.scope(None);
        kernel.observe(&scope).expect("the kernel is seen")
    };
    let mut forwarding = Forwarding {
        complete: true,
        ..Forwarding::default()
    };
    let seen = observe(&mut kernel);
    step(&mut kernel, &forwarding, &seen);
    let seen = observe(&mut kernel);

    let mut evi = EviForwarding::default();
    for remote in remotes() {
        let mac = MacAddr(remote.mac);
        evi.macs.insert((None, mac), remote.vtep.into());
        evi.neighbours.insert((None, remote.ip.into()), mac);
    }
    forwarding.evis.insert(vni(), evi);
    let started = Instant::now();
    step(&mut kernel, &forwarding, &seen);
    let took = ms(started);
    check(&config);
    took
}

/// All rows are there, and no others.
fn check(config: &HostConfig) {
    let (tunnel, bridge) = devices(config);
    let mut netlink = Netlink::open();
    assert_eq!(netlink.count(tunnel, bridge), (2 * MACS, MACS));
}

/// The tunnel and what holds neighbours.
fn devices(config: &HostConfig) -> (u32, u32) {
    let bridge = host_plan::OwnedName::subnet_bridge(config.stacks[0].segments[0].subnet);
    let tunnel = host_plan::OwnedName::tunnel(vni());
    (index(tunnel.as_str()), index(bridge.as_str()))
}

fn vni() -> Vni {
    Vni::new(VNI).expect("it is a VNI")
}

struct FromBgp {
    /// From the first byte of the first UPDATE until all rows are there, milliseconds.
    took: f64,
    /// Milliseconds from the UPDATE of a single MAC to its rows, while the others come.
    singles: Vec<f64>,
    resident_mib: f64,
}

/// An agent as it is run, with sessions to two reflectors.
fn from_bgp() -> FromBgp {
    let config = config();
    let listeners = REFLECTORS.map(|address| {
        let listener = TcpListener::bind((address, 179)).expect("a port of its own");
        // The agent takes nothing from further away (GTSM).
        listener.set_ttl(255).expect("a socket option");
        listener
    });
    let agent = Agent::start(&config);
    let [mut full, mut news] =
        [0, 1].map(|n: usize| Reflector::accept(&listeners[n], REFLECTORS[n]));
    full.say(&end_of_rib());
    news.say(&end_of_rib());
    news.keep_alive();
    let all = remotes();
    let table = updates(VNI, &all);
    let (tunnel, bridge) = wait_for_devices(&config);
    let mut netlink = Netlink::open();

    let first = Remote {
        mac: [2, 2, 0, 0, 0, 0],
        ..remote(0)
    };
    news.say(&updates(VNI, &[first]));
    // The agent has come to rest when it takes a MAC.
    wait(|| netlink.has(first.mac, tunnel));

    let started = Instant::now();
    let writer = thread::spawn(move || {
        full.say(&table);
        full.keep_alive();
    });
    let singles = thread::scope(|scope| {
        // A socket belongs to its thread's namespace, and this one is in it by birth.
        let singles = scope.spawn(|| {
            let mut netlink = Netlink::open();
            (0..SINGLES)
                .map(|number| {
                    thread::sleep(SINGLE_EVERY);
                    let single = Remote {
                        mac: [2, 3, 0, 0, 0, number as u8],
                        ip: Ipv4Addr::new(10, 200, 0, number as u8),
                        vtep: remote(0).vtep,
                    };
                    let told = Instant::now();
                    news.say(&updates(VNI, &[single]));
                    wait(|| netlink.has(single.mac, tunnel));
                    (
                        told.duration_since(started).as_secs_f64() * 1000.0,
                        ms(told),
                    )
                })
                .collect::<Vec<_>>()
        });
        // A look at some tells when a look at all is worth it.
        let sample: Vec<[u8; 6]> = all.iter().step_by(MACS / 64).map(|r| r.mac).collect();
        let mut missing = sample.iter().peekable();
        wait(|| {
            while missing.next_if(|mac| netlink.has(**mac, tunnel)).is_some() {}
            missing.peek().is_none()
        });
        let mut took = ms(started);
        loop {
            let (rows, neighbours) = netlink.count(tunnel, bridge);
            if rows >= 2 * MACS && neighbours >= MACS {
                break;
            }
            assert!(started.elapsed() < LIMIT, "{rows} rows after {LIMIT:?}");
            took = ms(started);
        }
        let singles = singles.join().expect("single MACs arrive");
        (took, singles)
    });
    writer.join().expect("the agent takes all");
    let (took, singles) = singles;
    // Those that were told after the last row say nothing of the load.
    let during = singles.iter().filter(|(at, _)| *at < took);
    FromBgp {
        took,
        singles: during.map(|(_, took)| *took).collect(),
        resident_mib: agent.resident_mib(),
    }
}

fn wait(mut done: impl FnMut() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < LIMIT, "nothing for {LIMIT:?}");
        thread::sleep(LOOK_EVERY);
    }
}

fn wait_for_devices(config: &HostConfig) -> (u32, u32) {
    let names = [
        host_plan::OwnedName::tunnel(vni()),
        host_plan::OwnedName::subnet_bridge(config.stacks[0].segments[0].subnet),
    ];
    wait(|| {
        names
            .iter()
            .all(|name| if_nametoindex(name.as_str()).is_ok())
    });
    devices(config)
}

/// A host with one NIC in one subnet, and two reflectors.
fn config() -> HostConfig {
    let subnet = SubnetId::from_random(2);
    let reflector = |address: Ipv4Addr| model::Reflector {
        address: address.into(),
        port: 179,
        password: None,
    };
    HostConfig {
        voting: None,
        host: HostId::from_random(1),
        generation: Generation(1),
        underlay: Underlay {
            address: VTEP.into(),
            mtu: Mtu::new(1500).expect("it is an MTU"),
        },
        bgp: BgpConfig {
            asn: Asn::new(reflector::ASN.into()).expect("it is not zero"),
            reflectors: REFLECTORS.map(reflector).to_vec(),
            speaker: model::SpeakerKind::Builtin,
        },
        stacks: vec![std::sync::Arc::new(Stack {
            vpc: VpcId::from_random(1),
            name: "main/net".to_owned(),
            vni: Vni::new(VNI - 1).expect("it is a VNI"),
            encoding: model::Encoding::VlanBased,
            unknown_neighbours: Default::default(),
            segments: vec![Segment {
                subnet,
                name: "net/one".to_owned(),
                vlan: VlanId::new(2).expect("it is a VLAN"),
                vni: vni(),
                mtu: Mtu::new(1450).expect("it is an MTU"),
                v4: "10.0.0.0/8".parse().ok(),
                v6: None,
                options: SubnetOptions::default(),
                gateway: None,
            }],
            ports: vec![model::Port {
                nic: NicId::from_random(1),
                name: "net/one/a".to_owned(),
                subnet,
                mac: MacAddr([2, 0, 0, 0, 0, 1]),
                addresses: vec![[10, 0, 0, 1].into()],
                behind: Vec::new(),
                attachment: Attachment::Netns {
                    netns: NetnsName::new("first").expect("it is a name"),
                    device: IfName::new("eth0").expect("it is a name"),
                },
                role: model::PortRole::Settled,
                sequence: 0,
            }],
        })],
        routers: Vec::new(),
        members: std::collections::BTreeMap::new(),
        standby_for: std::collections::BTreeMap::new(),
        storage: Default::default(),
    }
}

/// `vpc agent run`, ended when this is dropped.
struct Agent {
    child: Child,
}

impl Agent {
    fn start(config: &HostConfig) -> Self {
        // As the agent keeps it: it starts with what it had.
        let json = serde_json::to_vec(config).expect("it has a JSON form");
        let mut digest = String::new();
        for byte in Sha256::digest(&json) {
            write!(digest, "{byte:02x}").expect("a String takes all");
        }
        fs::create_dir_all("/run/state").expect("/run is ours");
        let kept = [digest.as_bytes(), b"\n", &json].concat();
        fs::write("/run/state/host-config", kept).expect("/run is ours");
        let program = std::env::var_os("VPC_BIN").expect("main has set it");
        let child = Command::new(program)
            .args(["agent", "run", "--name", "h1", "--log", "warn"])
            .args(["--underlay-address", &VTEP.to_string()])
            .args(["--state-dir", "/run/state"])
            .spawn()
            .expect("the vpc binary can be started");
        Self { child }
    }

    fn resident_mib(&self) -> f64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()));
        let status = status.expect("the agent lives");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
        kib.expect("the kernel tells it") / 1024.0
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
