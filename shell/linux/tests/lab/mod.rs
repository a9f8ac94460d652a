//! A namespace of the test's own, with a `/run` of its own: nothing is left behind.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test program uses a part of it"
)]

pub mod frames;

use host_plan::{
    Action, BridgePortFlags, Guard, HostState, Inside, Scope, Service, Stamp, VethToNetns,
};
use linux::{ActionError, Kernel, Netns, in_netns};
use model::{Capability, IfName, MacAddr, Mtu, NetnsName, NicId, SubnetId, VlanId, Vni, VpcId};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use serde_json::Value;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::process::Command;

pub const STATE_DIR: &str = "/run/vpc";
/// A packet's way through the machine, and the slowest kernel that this runs on.
pub const SOON: std::time::Duration = std::time::Duration::from_secs(5);

pub struct Lab {
    pub kernel: Kernel,
}

/// Runs a test on a thread in namespaces of its own.
pub fn lab(test: impl FnOnce(&mut Lab) + Send) {
    let result = std::thread::scope(|scope| {
        scope
            .spawn(|| {
                unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)
                    .expect("run the tests of this crate as root");
                let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
                mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
                mount(
                    Some("tmpfs"),
                    "/run",
                    Some("tmpfs"),
                    MsFlags::empty(),
                    None::<&str>,
                )
                .unwrap();
                let kernel = Kernel::open(Path::new(STATE_DIR)).unwrap();
                test(&mut Lab { kernel });
            })
            .join()
    });
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

impl Lab {
    /// True if the kernel can; says so if it cannot.
    pub fn can(&mut self, capability: Capability) -> bool {
        let can = self.kernel.capabilities().unwrap().contains(&capability);
        if !can {
            let test = std::thread::current();
            println!(
                "SKIPPED (part of) a test: no {capability:?} in this kernel {:?}",
                test.name()
            );
        }
        can
    }

    pub fn act(&mut self, actions: impl IntoIterator<Item = Action>) {
        for result in self.kernel.run(&actions.into_iter().collect::<Vec<_>>()) {
            if let Err(error) = result {
                panic!("{error}");
            }
        }
    }

    pub fn fail(&mut self, action: Action) -> ActionError {
        let mut results = self.kernel.run(std::slice::from_ref(&action));
        assert_eq!(results.len(), 1);
        results
            .pop()
            .unwrap()
            .expect_err(&format!("{action:?} should fail"))
    }

    /// Runs actions, and again, and sees that the second time changed nothing.
    pub fn act_twice(&mut self, actions: impl IntoIterator<Item = Action>) {
        let actions: Vec<_> = actions.into_iter().collect();
        self.act(actions.clone());
        let once = self.dump();
        self.act(actions);
        let twice = self.dump();
        let lines = |dump: &[Value]| {
            let text = serde_json::to_string_pretty(dump).unwrap();
            text.lines().map(str::to_owned).collect::<Vec<_>>()
        };
        let (once, twice) = (lines(&once), lines(&twice));
        let only_in = |one: &[String], other: &[String]| {
            let lines = one.iter().filter(|line| !other.contains(line));
            lines.cloned().collect::<Vec<_>>()
        };
        assert!(
            once == twice,
            "the second run changed something: gone {:?}, new {:?}",
            only_in(&once, &twice),
            only_in(&twice, &once)
        );
    }

    /// All that the tools tell.
    pub fn dump(&self) -> Vec<Value> {
        let mut all = vec![
            json("ip -j -d link show"),
            json("ip -j addr show"),
            json("bridge -j -d fdb show"),
            json("bridge -j -d link show"),
            json("ip -j neigh show nud permanent"),
            json("nft -j list ruleset"),
        ];
        for value in &mut all {
            forget_counts(value);
        }
        all
    }

    pub fn observe(&mut self) -> HostState {
        let netns: BTreeSet<NetnsName> = std::fs::read_dir(linux::NETNS_DIR)
            .map(|entries| {
                entries
                    .map(|entry| {
                        NetnsName::new(entry.unwrap().file_name().to_str().unwrap()).unwrap()
                    })
                    .collect()
            })
            .unwrap_or_default();
        let of_router = |name: &&NetnsName| name.as_str().starts_with("r-");
        let scope = Scope {
            routers: netns.iter().filter(of_router).cloned().collect(),
            netns,
        };
        let known = self.kernel.observe(&scope).unwrap();
        // What was known and kept true is what is there: seen in every test that observes.
        self.kernel.forget();
        let whole = self.kernel.observe(&scope).unwrap();
        assert_eq!(known, whole, "what was known, and what is there");
        whole
    }

    /// `ip -j -d link show NAME`.
    pub fn link(&self, name: &str) -> Value {
        json(&format!("ip -j -d link show {name}"))[0].clone()
    }

    /// A bridge that does not filter, and a guarded, open NIC in a namespace for each name.
    pub fn bridge_with_nics(&mut self, nics: &[&str]) {
        self.act([
            Action::InstallFirewall,
            bridge("b-1", false),
            Action::SetUp {
                link: ifname("b-1"),
            },
        ]);
        for (n, nic) in nics.iter().enumerate() {
            let n = n as u8 + 1;
            let port = ifname(&format!("n-{nic}"));
            self.act([
                Action::CreateNetns(netns(nic)),
                veth(port.as_str(), nic, mac(n)),
                Action::SetGuard {
                    link: port.clone(),
                    guard: guard(n),
                },
                Action::Enslave {
                    link: port.clone(),
                    bridge: ifname("b-1"),
                },
                Action::SetPortFlags {
                    link: port.clone(),
                    flags: open_port(),
                },
                Action::SetUp { link: port },
                inside(nic, n),
            ]);
        }
        // The kernel opens a port some time after its carrier has come.
        let deadline = std::time::Instant::now() + SOON;
        while names_with_state(&json("bridge -j link show"), "forwarding") < nics.len() {
            assert!(std::time::Instant::now() < deadline, "ports stay closed");
        }
    }
}

fn names_with_state(ports: &Value, state: &str) -> usize {
    let ports = ports.as_array().unwrap();
    ports.iter().filter(|port| port["state"] == state).count()
}

fn forget_counts(value: &mut Value) {
    match value {
        Value::Object(map) => {
            // The kernel tells of carriers when it gets to it.
            map.retain(|key, _| !key.ends_with("_timer"));
            for key in ["packets", "bytes", "handle", "operstate", "tentative"] {
                map.remove(key);
            }
            if let Some(Value::Array(flags)) = map.get_mut("flags") {
                flags.retain(|flag| flag != "NO-CARRIER" && flag != "LOWER_UP");
            }
            // Who announced something lately.
            if map
                .get("name")
                .is_some_and(|name| name == "announcing" || name == "asking")
            {
                map.remove("elem");
            }
            if let Some(Value::Array(elements)) = map.get_mut("elem") {
                elements.sort_by_key(Value::to_string); // the order of a hash table
            }
            map.values_mut().for_each(forget_counts);
        }
        Value::Array(list) => list.iter_mut().for_each(forget_counts),
        _ => {}
    }
}

/// Output of a tool, which runs in this thread's namespace.
pub fn tool(command: &str) -> String {
    let mut words = command.split_whitespace();
    let output = Command::new(words.next().unwrap())
        .args(words)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{command}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// True if a tool did what it was asked to.
pub fn tries(command: &str) -> bool {
    let mut words = command.split_whitespace();
    let output = Command::new(words.next().unwrap()).args(words).output();
    output.unwrap().status.success()
}

pub fn json(command: &str) -> Value {
    let text = tool(command);
    if text.trim().is_empty() {
        return Value::Array(Vec::new());
    }
    serde_json::from_str(&text).unwrap()
}

pub fn inside_of<T: Send>(name: &str, work: impl FnOnce() -> T + Send) -> T {
    in_netns(&Netns::named(&netns(name)).unwrap(), work).unwrap()
}

pub fn ifname(text: &str) -> IfName {
    IfName::new(text).unwrap()
}

pub fn netns(text: &str) -> NetnsName {
    NetnsName::new(text).unwrap()
}

pub fn mac(n: u8) -> MacAddr {
    MacAddr([2, 0, 0, 0, 0, n])
}

pub fn mtu(bytes: u32) -> Mtu {
    Mtu::new(bytes).unwrap()
}

pub fn vlan(id: u16) -> VlanId {
    VlanId::new(id).unwrap()
}

pub fn vni(id: u32) -> Vni {
    Vni::new(id).unwrap()
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub fn of_vpc() -> Stamp {
    Stamp::Vpc(VpcId::from_random(1))
}

pub fn of_subnet() -> Stamp {
    Stamp::Subnet(SubnetId::from_random(2))
}

pub fn of_nic() -> Stamp {
    Stamp::Nic(NicId::from_random(3))
}

pub fn bridge(name: &str, vlan_filtering: bool) -> Action {
    Action::CreateBridge {
        name: ifname(name),
        mac: mac(0xb0),
        mtu: mtu(1400),
        vlan_filtering,
        stamp: of_vpc(),
    }
}

pub fn vxlan(name: &str, id: u32, local: &str) -> Action {
    Action::CreateVxlan {
        name: ifname(name),
        vni: vni(id),
        local: ip(local),
        port: 4789,
        mac: mac(0xa0),
        mtu: mtu(1400),
        stamp: of_subnet(),
    }
}

pub fn veth(name: &str, netns_name: &str, mac: MacAddr) -> Action {
    Action::CreateVeth(VethToNetns {
        name: ifname(name),
        netns: netns(netns_name),
        device: ifname("eth0"),
        mac,
        mtu: mtu(1400),
        stamp: of_nic(),
    })
}

/// NIC number n has MAC, IPv4, IPv6 and link-local addresses that end in n.
pub fn guard(n: u8) -> Guard {
    Guard {
        macs: [mac(n)].into(),
        addresses: [
            ip(&format!("10.0.0.{n}")),
            ip(&format!("fd00::{n:x}")),
            IpAddr::V6(mac(n).link_local()),
        ]
        .into(),
        behind: Default::default(),
        service: Service::None,
    }
}

pub fn inside(netns_name: &str, n: u8) -> Action {
    Action::ConfigureInside(Inside {
        netns: netns(netns_name),
        device: ifname("eth0"),
        mac: mac(n),
        mtu: mtu(1400),
        addresses: BTreeSet::from([
            format!("10.0.0.{n}/24").parse().unwrap(),
            format!("fd00::{n:x}/64").parse().unwrap(),
        ]),
    })
}

pub fn open_port() -> BridgePortFlags {
    BridgePortFlags {
        isolated: false,
        learning: false,
        unicast_flood: true,
        neigh_suppress: false,
    }
}
