//! What a machine keeps of one plan for the next changes nothing but the time it takes: its plans are those
//! that would be made from nothing.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]
#![expect(
    clippy::disallowed_methods,
    reason = "tests are not core: any instant will do"
)]

mod kernel;

use datapath::Limits;
use host_plan::{
    Desired, Fingerprint, HostMachine, HostState, Link, LinkKind, LocalStacks, RouterState, Step,
    plan,
};
use model::{
    Asn, BgpConfig, Capability, Encoding, Forwarding, Generation, HostConfig, HostId, IfName,
    MacAddr, Mtu, OneToOne, RouterConfig, RouterId, RouterLeg, Segment, Stack, StaticRoute,
    SubnetId, SubnetOptions, Transport, Underlay, UnixMillis, Uplink, UplinkAddress, Via, VlanId,
    Vni, VpcId,
};
use std::sync::Arc;
use std::time::Instant;

fn underlay() -> Underlay {
    Underlay {
        address: "100.64.0.2".parse().unwrap(),
        mtu: Mtu::new(1500).unwrap(),
    }
}

/// A VPC with one subnet and its router.
fn vpc(n: u8) -> (Stack, RouterConfig) {
    let subnet = SubnetId::from_random(n.into());
    let stack = Stack {
        vpc: VpcId::from_random(n.into()),
        name: format!("v{n}"),
        vni: Vni::new(8000 + u32::from(n)).unwrap(),
        encoding: Encoding::VlanBased,
        unknown_neighbours: Default::default(),
        segments: vec![Segment {
            subnet,
            name: format!("v{n}/s"),
            vlan: VlanId::new(2).unwrap(),
            vni: Vni::new(9000 + u32::from(n)).unwrap(),
            mtu: Mtu::new(1446).unwrap(),
            v4: "10.1.1.0/24".parse().ok(),
            v6: None,
            options: SubnetOptions::default(),
            gateway: None,
        }],
        ports: Vec::new(),
    };
    let router = RouterConfig {
        id: RouterId::from_random(n.into()),
        vpc: stack.vpc,
        name: format!("v{n}/r"),
        legs: vec![RouterLeg {
            subnet,
            mac: MacAddr([2, 0, 0, 0, 1, n]),
            addresses: vec!["10.1.1.1/24".parse().unwrap()],
            mtu: Mtu::new(1446).unwrap(),
        }],
        uplink: Some(Uplink {
            bridge: name("br-ext"),
            mac: MacAddr([2, 0, 0, 0, 9, n]),
            address: UplinkAddress::Static(vec!["198.51.100.2/24".parse().unwrap()]),
            gateways: Vec::new(),
            mtu: None,
        }),
        routes: Vec::new(),
        nat: Default::default(),
        names: Default::default(),
        transit: None,
        epoch: 1,
        anycast: false,
        prepared: false,
        inner: Vec::new(),
        standby: None,
    };
    (stack, router)
}

fn config() -> HostConfig {
    let (stacks, routers) = (1..=3).map(vpc).unzip::<_, _, Vec<_>, Vec<_>>();
    HostConfig {
        host: HostId::from_random(1),
        generation: Generation(1),
        underlay: underlay(),
        bgp: BgpConfig {
            asn: Asn::new(65_000).unwrap(),
            reflectors: Vec::new(),
            speaker: Default::default(),
        },
        stacks: stacks.into_iter().map(Arc::new).collect(),
        routers: routers.into_iter().map(Arc::new).collect(),
        voting: None,
        members: Default::default(),
        standby_for: Default::default(),
        storage: Default::default(),
    }
}

struct World {
    machine: HostMachine,
    state: HostState,
    config: HostConfig,
}

impl World {
    fn new() -> Self {
        let mut state = HostState::default();
        state.capabilities.extend([
            Capability::VlanFiltering,
            Capability::VlanDevices,
            Capability::NftBridge,
        ]);
        let outside = Link {
            index: 99,
            kind: LinkKind::Bridge {
                vlan_filtering: false,
                default_pvid: 1,
                mcast_snooping: false,
            },
            alias: None,
            mac: MacAddr([2, 1, 1, 1, 1, 1]),
            mtu: 1500,
            up: true,
            ipv6_disabled: true,
            port: None,
        };
        state.links.insert(name("br-ext"), outside);
        let mut world = Self {
            machine: HostMachine::new(underlay(), Some(config()), LocalStacks::default()),
            state,
            config: config(),
        };
        let heard = Forwarding {
            complete: true,
            ..Forwarding::default()
        };
        world.machine.set_forwarding(Arc::new(heard));
        assert!(!world.converge("the start").is_empty());
        world
    }

    /// The machine's plan, which is that of one who knows nothing.
    fn plan(&mut self, what: &str) -> Vec<Step> {
        let fresh = plan(
            &Desired {
                underlay: underlay(),
                transport: Transport::Kernel,
                limits: Limits::default(),
                stacks: self.machine.stacks(),
                routers: self.machine.routers(),
                forwarding: self.machine.forwarding(),
                local_neighbours: false,
            },
            &self.state,
        );
        let (kept, _) = self
            .machine
            .plan(&self.state, Instant::now(), UnixMillis(0));
        assert_eq!(kept.steps, fresh.steps, "after {what}");
        kept.steps
    }

    /// All that was done.
    fn converge(&mut self, what: &str) -> Vec<Step> {
        let mut done = Vec::new();
        for _ in 0..10 {
            let steps = self.plan(what);
            if steps.is_empty() {
                return done;
            }
            for step in &steps {
                kernel::apply(&mut self.state, &step.action);
            }
            done.extend(steps);
        }
        panic!("no end after {what}");
    }

    fn offer(&mut self, change: impl FnOnce(&mut HostConfig)) {
        self.config.generation.0 += 1;
        change(&mut self.config);
        self.machine.offer(self.config.clone()).unwrap();
    }
}

#[test]
fn what_changes_in_a_router_that_was_well_is_seen() {
    type Drift = (&'static str, fn(&mut RouterState));
    let drifts: &[Drift] = &[
        ("the rules", |inside| inside.firewall = Some(Fingerprint(1))),
        ("no rules", |inside| inside.firewall = None),
        ("a sysctl", |inside| {
            let (path, _) = host_plan::base_sysctls().next().unwrap();
            inside.wrong_sysctls.insert(path);
        }),
        ("lo down", |inside| {
            inside.links.get_mut(&name("lo")).unwrap().up = false;
        }),
        ("a leg down", |inside| {
            let mut legs = inside.links.iter_mut();
            let leg = legs.find(|(name, _)| name.as_str() != "lo");
            leg.unwrap().1.up = false;
        }),
        ("an address", |inside| {
            for link in inside.links.values_mut() {
                link.addresses.clear();
            }
        }),
        ("a rule", |inside| inside.rules.clear()),
    ];
    let mut world = World::new();
    for (what, drift) in drifts {
        let before = world.state.routers.clone();
        let inside = world.state.routers.values_mut().nth(1).unwrap();
        drift(Arc::make_mut(inside));
        let changed = world.state.routers != before;
        let steps = world.converge(what);
        assert_eq!(changed, !steps.is_empty(), "{what}: {steps:?}");
        assert!(world.plan(what).is_empty());
    }
    // Its port on the host, before its inside is looked at again.
    let is_leg = |(_, link): &(&IfName, &Link)| {
        let alias = link.alias.as_deref().unwrap_or_default();
        alias.contains("router")
    };
    let leg = world.state.links.iter().find(is_leg).unwrap().0.clone();
    world.state.links.remove(&leg);
    assert!(!world.plan("half a port").is_empty());
    assert!(!world.converge("half a port").is_empty());
    // What is around the routers, one thing at a time.
    type Around = (&'static str, fn(&mut HostState));
    let around: &[Around] = &[
        ("a bridge down", |state| {
            let bridge = state
                .links
                .values_mut()
                .find(|link| link.alias.is_some() && matches!(link.kind, LinkKind::Bridge { .. }));
            bridge.unwrap().up = false;
        }),
        ("a row", |state| {
            let row = state.fdb.iter().next().unwrap().clone();
            state.fdb.remove(&row);
        }),
        ("a guard", |state| {
            let port = state.guards.keys().next().unwrap().clone();
            state.guards.remove(&port);
        }),
        ("no firewall", |state| state.firewall = false),
        ("a strange VTEP", |state| {
            state.vteps.insert("192.0.2.9".parse().unwrap());
        }),
        ("a namespace of ours", |state| {
            state.owned_netns.insert("left".parse().unwrap());
        }),
    ];
    for (what, change) in around {
        change(&mut world.state);
        assert!(!world.converge(what).is_empty(), "{what}");
    }
    // A leg that is gone inside of a router, whose port is there.
    let inside = world.state.routers.values_mut().next().unwrap();
    Arc::make_mut(inside)
        .links
        .retain(|name, _| name.as_str() == "lo");
    assert!(!world.plan("no leg").is_empty());
    assert!(!world.converge("no leg").is_empty());
    // Its namespace.
    let netns = world.state.routers.keys().next().unwrap().clone();
    world.state.routers.remove(&netns);
    world.state.owned_netns.remove(&netns);
    let ports = world.state.links.iter().filter(|(_, link)| {
        let alias = link.alias.as_deref().unwrap_or_default();
        alias.contains("router")
    });
    let ports: Vec<IfName> = ports.map(|(name, _)| name.clone()).collect();
    assert!(!ports.is_empty());
    assert!(!world.converge("no namespace").is_empty());
    for port in ports {
        kernel::remove(&mut world.state, &port);
        assert!(!world.converge("no port").is_empty());
    }
}

#[test]
fn a_change_of_the_configuration_is_taken_in_wherever_it_is() {
    type Change = (&'static str, fn(&mut HostConfig));
    let changes: &[Change] = &[
        ("a rule", |config| {
            let rule = OneToOne {
                public: "198.51.100.7".parse().unwrap(),
                private: "10.1.1.7".parse().unwrap(),
            };
            Arc::make_mut(&mut config.routers[1]).nat.public.push(rule);
        }),
        ("a route", |config| {
            let route = StaticRoute {
                table: None,
                prefix: "10.9.0.0/16".parse().unwrap(),
                via: Via::Blackhole,
            };
            Arc::make_mut(&mut config.routers[1]).routes.push(route);
        }),
        ("an address", |config| {
            let router = Arc::make_mut(&mut config.routers[2]);
            router.legs[0].addresses = vec!["10.1.1.254/24".parse().unwrap()];
        }),
        ("two at once", |config| {
            for n in [0, 2] {
                Arc::make_mut(&mut config.routers[n])
                    .routes
                    .push(StaticRoute {
                        table: None,
                        prefix: "10.8.0.0/16".parse().unwrap(),
                        via: Via::Blackhole,
                    });
            }
        }),
        ("a stack and its router", |config| {
            Arc::make_mut(&mut config.stacks[0]).vni = Vni::new(7000).unwrap();
            Arc::make_mut(&mut config.routers[0]).routes.clear();
        }),
        ("a router less", |config| drop(config.routers.remove(1))),
        ("its leg", |config| {
            Arc::make_mut(&mut config.routers[0]).legs.clear();
        }),
    ];
    let mut world = World::new();
    for (what, change) in changes {
        world.offer(change);
        let steps = world.converge(what);
        if *what != "a stack and its router" {
            assert!(!steps.is_empty(), "{what}");
        }
    }
}

fn name(text: &str) -> IfName {
    text.parse().unwrap()
}
