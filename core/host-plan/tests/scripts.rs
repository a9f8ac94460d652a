//! Golden scripts of plans: `tests/golden/*.txt`. A script builds a configuration line by line;
//! `plan` shows the steps, `run` takes them and says if a second plan is empty.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod kernel;

use datapath::{Limits, Tables};
use host_plan::{Action, Desired, FdbRow, FdbState, FdbTarget, HostState, Link, LinkKind, plan};
use model::{
    Capability, Encoding, Forwarding, IfName, MacAddr, Mtu, NatConfig, NicId, OneToOne, Port,
    PortRole, RouterConfig, RouterId, RouterLeg, Segment, SourceNat, Stack, StaticRoute, SubnetId,
    SubnetOptions, Transit, Transport, Underlay, Uplink, UplinkAddress, Via, VlanId, Vni, VpcId,
    VpcNames,
};
use std::net::IpAddr;
use std::sync::Arc;

#[test]
fn plans_are_as_written() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden");
    testkit::run_golden_scripts(dir, || {
        let mut world = World::new();
        move |lines: &[&str]| lines.iter().map(|line| world.line(line)).collect()
    });
}

struct World {
    underlay: Underlay,
    stacks: Vec<Arc<Stack>>,
    routers: Vec<Arc<RouterConfig>>,
    forwarding: Forwarding,
    state: HostState,
    names: Vec<(String, String)>,
    limits: Limits,
    frr: bool,
    transport: Transport,
}

impl World {
    fn new() -> Self {
        Self {
            underlay: Underlay {
                address: "100.64.0.2".parse().unwrap(),
                mtu: Mtu::new(1500).unwrap(),
            },
            stacks: Vec::new(),
            routers: Vec::new(),
            forwarding: Forwarding {
                complete: true,
                ..Default::default()
            },
            state: HostState::default(),
            names: Vec::new(),
            limits: Limits::default(),
            frr: false,
            transport: Transport::Kernel,
        }
    }

    fn line(&mut self, line: &str) -> String {
        let words: Vec<&str> = line.split_whitespace().collect();
        let after = |key: &str| {
            words
                .iter()
                .position(|word| *word == key)
                .and_then(|at| words.get(at + 1))
                .copied()
        };
        match words.as_slice() {
            ["kernel", kind] => {
                let all = [Capability::Vxlan, Capability::NftBridge, Capability::Tap];
                self.state.capabilities.extend(all);
                match *kind {
                    "filtering" => self
                        .state
                        .capabilities
                        .extend([Capability::VlanFiltering, Capability::VlanDevices]),
                    "plain" => self.state.capabilities.extend([Capability::ClsBpf]),
                    "poor" => self.state.capabilities.clear(),
                    other => panic!("kernel {other}?"),
                }
            }
            ["interface", name] => self.interface(name),
            ["vpc", name, ..] => self.vpc(name, &after),
            ["subnet", path, ..] => self.subnet(path, &after),
            ["nic", path, ..] => self.nic(path, &after),
            ["router", path, ..] => self.router(path, &after),
            ["bridge", name] => self.bridge(name),
            ["remove", path] => self.remove(path),
            ["role", path, to] => self.role(path, to),
            ["learn", ..] => self.learn(&after),
            ["hear", number, vtep, router, prefixes @ ..] => {
                let vrf = self
                    .forwarding
                    .ip_vrfs
                    .entry(vni(Some(number)))
                    .or_default();
                let router = router.parse().unwrap();
                vrf.routers.insert(router, vtep.parse().unwrap());
                for prefix in prefixes {
                    let by = vrf.prefixes.entry(prefix.parse().unwrap());
                    by.or_default().insert(router);
                }
            }
            ["forget"] => {
                self.forwarding.evis.clear();
                self.forwarding.ip_vrfs.clear();
            }
            ["incomplete"] => self.forwarding.complete = false,
            ["complete"] => self.forwarding.complete = true,
            ["drift", rest @ ..] => self.drift(rest),
            ["no", "taps"] => drop(self.state.capabilities.remove(&Capability::Tap)),
            ["transport", kind] => self.transport = kind.parse().unwrap(),
            ["limits", questions, flood] => {
                self.limits = Limits {
                    questions_per_s: questions.parse().unwrap(),
                    flood_per_s: flood.parse().unwrap(),
                }
            }
            ["datapath"] => self.state.datapath = Some(Tables::default()),
            ["datapath", "without", "address"] => {
                let tables = self.state.datapath.as_mut();
                tables.expect("a datapath runs").local = None;
            }
            ["datapath", "gone", why @ ..] => {
                self.state.datapath = None;
                self.state.datapath_trouble = (!why.is_empty()).then(|| why.join(" "));
            }
            ["speaker", kind] => self.frr = *kind == "frr",
            ["plan"] => return self.named(self.plan().to_string()),
            ["run"] => return self.run(),
            ["ready"] => return self.ready(),
            other => panic!("{other:?}?"),
        }
        String::new()
    }

    fn plan(&self) -> host_plan::Plan {
        plan(&self.desired(), &self.state)
    }

    fn desired(&self) -> Desired<'_> {
        Desired {
            underlay: self.underlay,
            transport: self.transport,
            limits: self.limits,
            stacks: &self.stacks,
            routers: &self.routers,
            forwarding: &self.forwarding,
            local_neighbours: self.frr,
        }
    }

    fn run(&mut self) -> String {
        for step in self.plan().steps {
            kernel::apply(&mut self.state, &step.action);
        }
        let left = self.plan();
        if left.steps.is_empty() {
            return "converged\n".to_owned();
        }
        self.named(format!("still to do:\n{left}"))
    }

    fn ready(&self) -> String {
        let ready = self.plan().readiness(&self.stacks, &self.routers);
        let all = ready.segments.iter().map(|id| format!("subnet {id}\n"));
        self.named(
            all.chain(ready.nics.iter().map(|id| format!("nic {id}\n")))
                .chain(ready.routers.iter().map(|id| format!("router {id}\n")))
                .chain(
                    ready
                        .transits
                        .iter()
                        .map(|id| format!("router {id} among others\n")),
                )
                .chain(
                    ready
                        .uplinks
                        .iter()
                        .map(|id| format!("router {id} to the outside\n")),
                )
                .collect(),
        )
    }

    fn named(&self, text: String) -> String {
        self.names
            .iter()
            .fold(text, |text, (id, name)| text.replace(id, name))
    }

    fn id(&mut self, name: &str) -> u64 {
        let bits = 0xabcd_0000 + self.names.len() as u64;
        self.names
            .push((NicId::from_random(bits).to_string(), name.replace('/', "-")));
        bits
    }

    fn interface(&mut self, name: &str) {
        let index = self.state.links.len() as u32 + 100;
        let link = Link {
            index,
            kind: LinkKind::Other(String::new()),
            alias: None,
            mac: MacAddr([2, 0, 0, 0, 9, 9]),
            mtu: 1500,
            up: true,
            ipv6_disabled: false,
            port: None,
        };
        self.state.links.insert(IfName::new(name).unwrap(), link);
    }

    /// A bridge of the operator's.
    fn bridge(&mut self, name: &str) {
        self.interface(name);
        let link = self.state.links.get_mut(&IfName::new(name).unwrap());
        link.unwrap().kind = LinkKind::Bridge {
            vlan_filtering: false,
            default_pvid: 1,
            mcast_snooping: true,
        };
    }

    /// `router blue/r1 legs web:10.1.1.1/24,.. outside BRIDGE address A gateway G route P:A,.. public P:A
    /// transit VNI=MAC anycast yes prepared yes inner P,..`
    fn router<'a>(&mut self, path: &str, after: &impl Fn(&str) -> Option<&'a str>) {
        self.routers.retain(|router| router.name != path);
        let known = self
            .names
            .iter()
            .position(|(_, name)| *name == path.replace('/', "-"));
        let bits = match known {
            Some(position) => 0xabcd_0000 + position as u64,
            None => self.id(path),
        };
        let stack = stack_of(&mut self.stacks, path);
        let pairs = |key: &str| -> Vec<(&'a str, &'a str)> {
            let list = after(key).into_iter().flat_map(|list| list.split(','));
            list.map(|pair| pair.split_once('=').unwrap()).collect()
        };
        let leg = |(n, (subnet, address)): (usize, (&str, &str))| {
            let segment = stack.segments.iter().find(|s| s.name.ends_with(subnet));
            RouterLeg {
                subnet: segment.unwrap().subnet,
                mac: MacAddr([2, 0, 0, 0, 0x11, n as u8]),
                addresses: vec![address.parse().unwrap()],
                mtu: Mtu::new(1446).unwrap(),
            }
        };
        let uplink = after("outside").map(|bridge| Uplink {
            bridge: bridge.parse().unwrap(),
            mac: MacAddr([2, 0, 0, 0, 0x11, 0xff]),
            address: UplinkAddress::Static(vec![after("address").unwrap().parse().unwrap()]),
            gateways: after("gateway")
                .map(|ip| ip.parse().unwrap())
                .into_iter()
                .collect(),
            mtu: None,
        });
        let route = |(prefix, via): (&str, &str)| StaticRoute {
            table: None,
            prefix: prefix.parse().unwrap(),
            via: Via::Address(via.parse().unwrap()),
        };
        let public = |(public, private): (&str, &str)| OneToOne {
            public: public.parse().unwrap(),
            private: private.parse().unwrap(),
        };
        self.routers.push(Arc::new(RouterConfig {
            id: RouterId::from_random(bits),
            vpc: stack.vpc,
            name: path.to_owned(),
            legs: pairs("legs").into_iter().enumerate().map(leg).collect(),
            uplink,
            routes: pairs("route").into_iter().map(route).collect(),
            nat: NatConfig {
                source: Some(SourceNat::Masquerade),
                public: pairs("public").into_iter().map(public).collect(),
                ..NatConfig::default()
            },
            names: VpcNames::default(),
            transit: pairs("transit").first().map(|(number, mac)| Transit {
                vni: vni(Some(number)),
                mac: mac.parse().unwrap(),
            }),
            epoch: 1,
            standby: None,
            anycast: after("anycast").is_some(),
            prepared: after("prepared").is_some(),
            inner: after("inner")
                .into_iter()
                .flat_map(|list| list.split(','))
                .map(|net| net.parse().unwrap())
                .collect(),
        }));
    }

    fn vpc<'a>(&mut self, name: &str, after: &impl Fn(&str) -> Option<&'a str>) {
        let vpc = VpcId::from_random(self.id(name));
        self.stacks.push(Arc::new(Stack {
            vpc,
            name: name.to_owned(),
            vni: vni(after("vni")),
            encoding: after("encoding").map_or(Encoding::VlanBased, |e| e.parse().unwrap()),
            unknown_neighbours: Default::default(),
            segments: Vec::new(),
            ports: Vec::new(),
        }));
    }

    fn subnet<'a>(&mut self, path: &str, after: &impl Fn(&str) -> Option<&'a str>) {
        let subnet = SubnetId::from_random(self.id(path));
        let stack = stack_of(&mut self.stacks, path);
        stack.segments.push(Segment {
            subnet,
            name: path.to_owned(),
            vlan: VlanId::new(after("vlan").unwrap().parse().unwrap()).unwrap(),
            vni: after("vni").map_or(stack.vni, |number| vni(Some(number))),
            mtu: Mtu::new(after("mtu").map_or(1446, |m| m.parse().unwrap())).unwrap(),
            v4: after("v4").map(|net| net.parse().unwrap()),
            v6: after("v6").map(|net| net.parse().unwrap()),
            options: SubnetOptions::default(),
            gateway: None,
        });
    }

    fn nic<'a>(&mut self, path: &str, after: &impl Fn(&str) -> Option<&'a str>) {
        let nic = NicId::from_random(self.id(path));
        let stack = stack_of(&mut self.stacks, path);
        let parent = path.rsplit_once('/').unwrap().0;
        let subnet = stack
            .segments
            .iter()
            .find(|s| s.name == parent)
            .unwrap()
            .subnet;
        stack.ports.push(Port {
            nic,
            name: path.to_owned(),
            subnet,
            mac: after("mac").unwrap().parse().unwrap(),
            addresses: after("ip")
                .unwrap()
                .split(',')
                .map(|ip| ip.parse().unwrap())
                .collect(),
            behind: after("behind")
                .into_iter()
                .flat_map(|nets| nets.split(','))
                .map(|net| net.parse().unwrap())
                .collect(),
            attachment: after("attach").unwrap().parse().unwrap(),
            role: after("role").map_or(PortRole::Settled, role),
            sequence: 0,
        });
    }

    /// What a NIC's port is from now on.
    fn role(&mut self, path: &str, to: &str) {
        let ports = self.stacks.iter_mut().map(Arc::make_mut);
        let ports = ports.flat_map(|stack| &mut stack.ports);
        for port in ports.filter(|port| port.name == path) {
            port.role = role(to);
        }
    }

    fn remove(&mut self, path: &str) {
        for stack in self.stacks.iter_mut().map(Arc::make_mut) {
            stack.ports.retain(|port| port.name != path);
            stack.segments.retain(|segment| segment.name != path);
        }
        self.routers.retain(|router| router.name != path);
        self.stacks.retain(|stack| stack.name != path);
    }

    fn learn<'a>(&mut self, after: &impl Fn(&str) -> Option<&'a str>) {
        let evi = self.forwarding.evis.entry(vni(after("vni"))).or_default();
        let tag = after("tag").map(|tag| VlanId::new(tag.parse().unwrap()).unwrap());
        let vtep: IpAddr = after("vtep").unwrap().parse().unwrap();
        match after("mac") {
            None => drop(evi.flood.insert((tag, vtep))),
            Some(mac) => {
                let mac: MacAddr = mac.parse().unwrap();
                evi.macs.insert((tag, mac), vtep);
                if after("lost").is_some() {
                    evi.lost.insert((tag, mac));
                }
                if let Some(ip) = after("ip") {
                    let key = (tag, ip.parse().unwrap());
                    evi.neighbours.insert(key, mac);
                    match after("router") {
                        Some(_) => evi.routers.insert(key),
                        None => evi.routers.remove(&key),
                    };
                }
            }
        }
    }

    /// Somebody else's hand on the host. Names may be given as `n-<nic path>`.
    fn drift(&mut self, words: &[&str]) {
        let name = |text: &str| {
            let (prefix, path) = text.split_once('@').unwrap_or(("", text));
            let id = self
                .names
                .iter()
                .find(|(_, name)| name == path)
                .map(|(id, _)| id.as_str());
            IfName::new(format!("{prefix}{}", id.unwrap_or(path))).unwrap()
        };
        match words {
            ["down", link] => self.state.links.get_mut(&name(link)).unwrap().up = false,
            ["up", link] => self.state.links.get_mut(&name(link)).unwrap().up = true,
            ["delete", link] => {
                let link = name(link);
                kernel::remove(&mut self.state, &link);
            }
            ["mtu", link, mtu] => {
                self.state.links.get_mut(&name(link)).unwrap().mtu = mtu.parse().unwrap();
            }
            ["vlan", link, vlan] => {
                let port = self
                    .state
                    .links
                    .get_mut(&name(link))
                    .unwrap()
                    .port
                    .as_mut()
                    .unwrap();
                let vlan = VlanId::new(vlan.parse().unwrap()).unwrap();
                port.vlans = [(vlan, host_plan::VlanMembership::Access)].into();
            }
            ["flush", link] => {
                let link = name(link);
                self.state.fdb.retain(|row| row.dev != link);
            }
            ["programs", link] => drop(self.state.trunks.remove(&name(link))),
            ["guard", link] => drop(self.state.guards.remove(&name(link))),
            ["row", link, mac, state] => {
                let row = FdbRow {
                    dev: name(link),
                    mac: mac.parse().unwrap(),
                    target: FdbTarget::Bridge(None),
                    state: match *state {
                        "static" => FdbState::Static,
                        "dynamic" => FdbState::Dynamic,
                        "local" => FdbState::Local,
                        other => panic!("{other}?"),
                    },
                };
                kernel::apply(&mut self.state, &Action::AddFdb(row));
            }
            other => panic!("drift {other:?}?"),
        }
    }
}

fn role(text: &str) -> PortRole {
    match text {
        "settled" => PortRole::Settled,
        "standby" => PortRole::Standby,
        "leaving" => PortRole::Leaving,
        "arrived" => PortRole::Arrived,
        other => panic!("role {other}?"),
    }
}

fn vni(text: Option<&str>) -> Vni {
    Vni::new(text.unwrap().parse().unwrap()).unwrap()
}

fn stack_of<'a>(stacks: &'a mut [Arc<Stack>], path: &str) -> &'a mut Stack {
    let name = path.split('/').next().unwrap();
    let stack = stacks.iter_mut().find(|stack| stack.name == name);
    Arc::make_mut(stack.unwrap())
}
