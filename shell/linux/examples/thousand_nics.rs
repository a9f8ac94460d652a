//! N NICs in 50 subnets by this library's actions: what making, observing and deleting costs.
//! `thousand_nics [N]`, as root. Compare with `minimal_nics`.

#![allow(clippy::print_stdout, reason = "it prints its result")]

use host_plan::{
    Action, BridgePortFlags, FdbRow, FdbState, FdbTarget, Guard, Inside, Scope, Service, Stamp,
    VethToNetns,
};
use linux::Kernel;
use model::{IfName, MacAddr, Mtu, NetnsName, NicId, SubnetId, Vni};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

const SUBNETS: usize = 50;

fn main() {
    let count: usize = std::env::args()
        .nth(1)
        .map_or(1000, |text| text.parse().expect("the number of NICs"));
    std::thread::spawn(move || measure(count))
        .join()
        .expect("the measurement ran");
}

fn measure(count: usize) {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("run it as root");
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).expect("a private mount tree");
    let (tmpfs, none) = (Some("tmpfs"), MsFlags::empty());
    mount(tmpfs, "/run", tmpfs, none, None::<&str>).expect("a /run of its own");
    let mut kernel = Kernel::open(Path::new("/run/vpc")).expect("netlink");
    kernel.capabilities().expect("a probe");
    run(&mut kernel, count, "firewall", &[Action::InstallFirewall]);
    let bridges: Vec<Action> = (0..SUBNETS).flat_map(subnet).collect();
    run(&mut kernel, count, "subnets", &bridges);

    let started = (Instant::now(), busy());
    for (what, step) in STEPS {
        let actions: Vec<Action> = (0..count).map(step).collect();
        run(&mut kernel, count, what, &actions);
    }
    told("= made", count, started);

    let scope = Scope {
        netns: (0..count).map(netns).collect(),
        ..Scope::default()
    };
    for _ in 0..3 {
        let (started, busy) = (Instant::now(), busy());
        let state = kernel.observe(&scope).expect("an observation");
        println!(
            "{:<12} {:>9.3} ms, {:>9.3} ms of processor: {} links, {} rows, {} namespaces, {} guards",
            "observed",
            started.elapsed().as_secs_f64() * 1000.0,
            (self::busy() - busy).as_secs_f64() * 1000.0,
            state.links.len(),
            state.fdb.len(),
            state.netns.len(),
            state.guards.len(),
        );
        assert_eq!(state.netns.len(), count);
    }
    let started = (Instant::now(), busy());
    kernel.observe(&Scope::default()).expect("an observation");
    told("no netns", count, started);

    let started = (Instant::now(), busy());
    let links = vec![Action::DeleteLinks((0..count).map(port).collect())];
    run(&mut kernel, count, "links", &links);
    let clear: Vec<_> = (0..count)
        .map(|n| Action::ClearGuard { link: port(n) })
        .collect();
    run(&mut kernel, count, "guards", &clear);
    let spaces: Vec<_> = (0..count).map(|n| Action::DeleteNetns(netns(n))).collect();
    run(&mut kernel, count, "namespaces", &spaces);
    told("= deleted", count, started);
}

/// Processor time of this process: what counts on a machine that others use too.
fn busy() -> Duration {
    let clock = nix::time::ClockId::CLOCK_PROCESS_CPUTIME_ID;
    nix::time::clock_gettime(clock)
        .expect("every process has this clock")
        .into()
}

fn told(what: &str, count: usize, (started, busy_before): (Instant, Duration)) {
    let per_nic = |took: Duration| took.as_secs_f64() * 1000.0 / count as f64;
    println!(
        "{what:<12} {:>7.4} ms per NIC, {:>7.4} ms of processor",
        per_nic(started.elapsed()),
        per_nic(busy() - busy_before),
    );
}

fn run(kernel: &mut Kernel, count: usize, what: &str, actions: &[Action]) {
    let started = (Instant::now(), busy());
    for result in kernel.run(actions) {
        result.unwrap_or_else(|error| panic!("{error}"));
    }
    told(what, count, started);
}

type Steps = [(&'static str, fn(usize) -> Action); 10];
const STEPS: Steps = [
    ("netns", |n| Action::CreateNetns(netns(n))),
    ("veth", |n| {
        Action::CreateVeth(VethToNetns {
            name: port(n),
            netns: netns(n),
            device: IfName::new("eth0").expect("a name"),
            mac: mac(n),
            mtu: mtu(),
            stamp: Stamp::Nic(NicId::from_random(n as u64)),
        })
    }),
    ("guard", |n| Action::SetGuard {
        link: port(n),
        guard: Guard {
            macs: [mac(n)].into(),
            addresses: [
                address(n, 24),
                address_v6(n),
                IpAddr::V6(mac(n).link_local()),
            ]
            .into(),
            behind: Default::default(),
            service: Service::Dhcp,
        },
    }),
    ("enslave", |n| Action::Enslave {
        link: port(n),
        bridge: bridge(n % SUBNETS),
    }),
    ("fdb", |n| {
        Action::AddFdb(FdbRow {
            dev: port(n),
            mac: mac(n),
            target: FdbTarget::Bridge(None),
            state: FdbState::Static,
        })
    }),
    ("flags", |n| Action::SetPortFlags {
        link: port(n),
        flags: BridgePortFlags {
            isolated: false,
            learning: false,
            unicast_flood: false,
            neigh_suppress: false,
        },
    }),
    ("up", |n| Action::SetUp { link: port(n) }),
    ("inside", |n| {
        Action::ConfigureInside(Inside {
            netns: netns(n),
            device: IfName::new("eth0").expect("a name"),
            mac: mac(n),
            mtu: mtu(),
            addresses: [
                ipnet::IpNet::new(address(n, 24), 24).expect("a prefix"),
                ipnet::IpNet::new(address_v6(n), 64).expect("a prefix"),
            ]
            .into(),
        })
    }),
    ("remote fdb", |n| {
        Action::AddFdb(FdbRow {
            dev: tunnel(n % SUBNETS),
            mac: MacAddr([2, 1, 0, 0, (n >> 8) as u8, n as u8]),
            target: FdbTarget::Vtep("192.0.2.2".parse().expect("an address")),
            state: FdbState::ExternLearned,
        })
    }),
    ("bridge fdb", |n| {
        Action::AddFdb(FdbRow {
            dev: tunnel(n % SUBNETS),
            mac: MacAddr([2, 1, 0, 0, (n >> 8) as u8, n as u8]),
            target: FdbTarget::Bridge(None),
            state: FdbState::ExternLearned,
        })
    }),
];

fn subnet(n: usize) -> [Action; 5] {
    let stamp = Stamp::Subnet(SubnetId::from_random(n as u64));
    let mac = MacAddr([2, 2, 0, 0, 0, n as u8]);
    [
        Action::CreateBridge {
            name: bridge(n),
            mac,
            mtu: mtu(),
            vlan_filtering: false,
            stamp,
        },
        Action::CreateVxlan {
            name: tunnel(n),
            vni: Vni::new(n as u32 + 1).expect("a VNI"),
            local: "192.0.2.1".parse().expect("an address"),
            port: 4789,
            mac,
            mtu: mtu(),
            stamp,
        },
        Action::Enslave {
            link: tunnel(n),
            bridge: bridge(n),
        },
        Action::SetUp { link: bridge(n) },
        Action::SetUp { link: tunnel(n) },
    ]
}

fn bridge(n: usize) -> IfName {
    IfName::new(format!("b-{n}")).expect("a short name")
}

fn tunnel(n: usize) -> IfName {
    IfName::new(format!("t-{n}")).expect("a short name")
}

fn port(n: usize) -> IfName {
    IfName::new(format!("n-{n}")).expect("a short name")
}

fn netns(n: usize) -> NetnsName {
    NetnsName::new(format!("m{n}")).expect("a short name")
}

fn mtu() -> Mtu {
    Mtu::new(1400).expect("an MTU")
}

fn mac(n: usize) -> MacAddr {
    MacAddr([2, 0, 0, 0, (n >> 8) as u8, n as u8])
}

fn address(n: usize, first: u8) -> IpAddr {
    IpAddr::from([10, first, (n >> 8) as u8, n as u8])
}

fn address_v6(n: usize) -> IpAddr {
    IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, n as u16 + 1])
}
