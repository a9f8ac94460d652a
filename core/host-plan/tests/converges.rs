//! Whatever is wanted, whatever is there and wherever a plan was cut off: planning again gets
//! there, and then there is nothing left to do.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]
#![expect(
    clippy::disallowed_methods,
    reason = "tests are not core: any instant will do"
)]

mod kernel;

use datapath::{Change, Limits, Tables};
use host_plan::{
    Desired, FdbRow, FdbState, FdbTarget, HostMachine, HostState, Link, LinkKind, LocalStacks, plan,
};
use model::{
    Attachment, BgpConfig, Capability, Encoding, EviForwarding, Forwarding, Generation, HostConfig,
    HostId, IfName, MacAddr, Mtu, NetnsName, NicId, Port, PortRole, Segment, Stack, SubnetId,
    SubnetOptions, Transport, Underlay, UnixMillis, VlanId, Vni, VpcId,
};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// One whole wish: what is configured and what EVPN learned.
#[derive(Debug, Clone)]
struct Wish {
    stacks: Vec<Arc<Stack>>,
    forwarding: Forwarding,
    /// Its speaker reads the kernel.
    frr: bool,
    transport: Transport,
}

fn underlay() -> Underlay {
    Underlay {
        address: "100.64.0.2".parse().unwrap(),
        mtu: Mtu::new(1500).unwrap(),
    }
}

fn desired(wish: &Wish) -> Desired<'_> {
    Desired {
        underlay: underlay(),
        transport: wish.transport,
        limits: Limits::default(),
        stacks: &wish.stacks,
        routers: &[],
        forwarding: &wish.forwarding,
        local_neighbours: wish.frr,
    }
}

/// VPCs 0..3, each with up to three subnets of up to three NICs; small numbers, so that wishes
/// overlap and differ in details.
fn wish() -> impl Strategy<Value = Wish> {
    let stack = (
        0_u64..3,
        any::<bool>(),
        prop::collection::vec((0_u64..3, 0_u8..16), 0..3),
    );
    let learned = prop::collection::vec((0_u64..3, 0_u64..3, 0_u8..4, 0_u8..3), 0..12);
    let client = prop::sample::select(vec![
        (Transport::Kernel, false),
        (Transport::Kernel, true),
        (Transport::Tap, false),
    ]);
    (prop::collection::vec(stack, 0..3), learned, client).prop_map(
        |(stacks, learned, (transport, frr))| {
            let mut wish = Wish {
                stacks: Vec::new(),
                forwarding: Forwarding {
                    complete: true,
                    ..Default::default()
                },
                frr,
                transport,
            };
            for (vpc, bundle, subnets) in stacks {
                if wish
                    .stacks
                    .iter()
                    .all(|stack| stack.vpc != VpcId::from_random(vpc))
                {
                    wish.stacks.push(stack_of(vpc, bundle, &subnets).into());
                }
            }
            for (vpc, subnet, mac, vtep) in learned {
                learn(&mut wish, vpc, subnet, mac, vtep);
            }
            wish
        },
    )
}

fn stack_of(vpc: u64, bundle: bool, subnets: &[(u64, u8)]) -> Stack {
    let vni = Vni::new(100 * (vpc as u32 + 1)).unwrap();
    let mut stack = Stack {
        vpc: VpcId::from_random(vpc),
        name: format!("vpc{vpc}"),
        vni,
        encoding: if bundle {
            Encoding::VlanAwareBundle
        } else {
            Encoding::VlanBased
        },
        unknown_neighbours: Default::default(),
        segments: Vec::new(),
        ports: Vec::new(),
    };
    for (subnet, nics) in subnets {
        let id = SubnetId::from_random(vpc * 10 + subnet);
        if stack.segment(id).is_some() {
            continue;
        }
        stack.segments.push(Segment {
            subnet: id,
            name: format!("vpc{vpc}/s{subnet}"),
            vlan: VlanId::new(*subnet as u16 + 10).unwrap(),
            vni: if bundle {
                vni
            } else {
                Vni::new(vni.get() + *subnet as u32 + 1).unwrap()
            },
            mtu: Mtu::new(1400).unwrap(),
            v4: Some("10.0.0.0/24".parse().unwrap()),
            v6: Some("fd00::/64".parse().unwrap()),
            options: SubnetOptions::default(),
            gateway: None,
        });
        for nic in (0..4_u64).filter(|nic| nics >> nic & 1 == 1) {
            let number = vpc * 100 + subnet * 10 + nic;
            stack.ports.push(Port {
                nic: NicId::from_random(number),
                name: format!("nic{number}"),
                subnet: id,
                mac: MacAddr([2, 0, 0, 0, 1, nic as u8]),
                addresses: vec![format!("10.0.0.{}", nic + 2).parse().unwrap()],
                behind: Vec::new(),
                attachment: match nic {
                    0 => Attachment::Tap,
                    1 => Attachment::Existing {
                        ifname: existing(vpc, *subnet),
                    },
                    _ => Attachment::Netns {
                        netns: NetnsName::new(format!("w{number}")).unwrap(),
                        device: IfName::new("eth0").unwrap(),
                    },
                },
                role: match nics >> 2 & 3 {
                    0 => PortRole::Standby,
                    1 => PortRole::Arrived,
                    _ => PortRole::Settled,
                },
                sequence: 0,
            });
        }
    }
    stack
}

fn existing(vpc: u64, subnet: u64) -> IfName {
    IfName::new(format!("ens{vpc}{subnet}")).unwrap()
}

fn learn(wish: &mut Wish, vpc: u64, subnet: u64, mac: u8, vtep: u8) {
    let Some(stack) = wish
        .stacks
        .iter()
        .find(|s| s.vpc == VpcId::from_random(vpc))
    else {
        return;
    };
    let Some(segment) = stack.segment(SubnetId::from_random(vpc * 10 + subnet)) else {
        return;
    };
    let tag = (stack.encoding == Encoding::VlanAwareBundle).then_some(segment.vlan);
    let vtep = format!("100.64.0.{}", vtep + 10).parse().unwrap();
    let evi: &mut EviForwarding = wish.forwarding.evis.entry(segment.vni).or_default();
    // Some are MACs of NICs that are here, which come, go, or were lost.
    let mac_addr = match mac {
        0 | 1 => MacAddr([2, 0, 0, 0, 1, mac + 2]),
        _ => MacAddr([2, 0, 0, 0, 9, mac]),
    };
    let mut ports = stack.ports.iter();
    let is_local = ports.any(|p| p.subnet == segment.subnet && p.mac == mac_addr);
    if mac == 1 && is_local {
        evi.lost.insert((tag, mac_addr));
    }
    evi.flood.insert((tag, vtep));
    evi.macs.insert((tag, mac_addr), vtep);
    evi.neighbours.insert(
        (tag, format!("10.0.0.{}", mac + 100).parse().unwrap()),
        mac_addr,
    );
    evi.neighbours
        .insert((tag, format!("fd00::{mac}").parse().unwrap()), mac_addr);
}

/// Rows, whatever they were before: a bridge keeps the flag of one that becomes static.
fn fdb(state: &HostState) -> BTreeSet<FdbRow> {
    let rows = state.fdb.iter().cloned();
    rows.map(|row| match row.target {
        FdbTarget::Bridge(_) if row.state == FdbState::ExternLearned => FdbRow {
            state: FdbState::Static,
            ..row
        },
        _ => row,
    })
    .collect()
}

fn host(filtering: bool) -> HostState {
    let mut state = HostState {
        datapath: Some(Tables::default()),
        ..HostState::default()
    };
    let all = [
        Capability::Vxlan,
        Capability::NftBridge,
        Capability::Tap,
        Capability::ClsBpf,
    ];
    state.capabilities.extend(all);
    if filtering {
        state
            .capabilities
            .extend([Capability::VlanFiltering, Capability::VlanDevices]);
    }
    for (index, (vpc, subnet)) in (0..3).flat_map(|v| (0..3).map(move |s| (v, s))).enumerate() {
        let link = Link {
            index: index as u32 + 1000,
            kind: LinkKind::Other(String::new()),
            alias: None,
            mac: MacAddr([2, 0, 0, 1, 0, index as u8]),
            mtu: 1500,
            up: true,
            ipv6_disabled: false,
            port: None,
        };
        state.links.insert(existing(vpc, subnet), link);
    }
    state
}

/// Plans and runs until nothing is left, in at most three rounds: one that gives lent interfaces
/// back, one that takes them anew, one that finds nothing.
fn converge(wish: &Wish, state: &mut HostState) {
    for _ in 0..3 {
        let steps = plan(&desired(wish), state).steps;
        if steps.is_empty() {
            return;
        }
        steps
            .iter()
            .for_each(|step| kernel::apply(state, &step.action));
    }
    let left = plan(&desired(wish), state);
    assert!(left.steps.is_empty(), "no end:\n{left}");
}

/// Somebody's hand: removes or changes one thing of ours, chosen by `dice`.
fn tamper(state: &mut HostState, dice: u32) {
    let names: Vec<IfName> = state.links.keys().cloned().collect();
    let name = names[dice as usize / 9 % names.len()].clone();
    match dice % 9 {
        0 if !name.as_str().starts_with("ens") => kernel::remove(state, &name),
        0 => {}
        1 => state.links.get_mut(&name).unwrap().up ^= true,
        2 => state.links.get_mut(&name).unwrap().mtu = 999,
        3 => state.fdb.retain(|row| row.dev != name),
        4 => drop(state.guards.remove(&name)),
        5 => state.neighbours.retain(|row| row.dev != name),
        6 => {
            if let Some(port) = &mut state.links.get_mut(&name).unwrap().port {
                port.vlans.clear();
                port.learning = true;
            }
        }
        7 if dice & 1 == 0 => state.trunks.clear(),
        // Another datapath took the place of the one that ran.
        7 => state.datapath = Some(Tables::default()),
        _ => state.vteps.clear(),
    }
}

/// Interfaces that are not ours, as they must be at the end.
fn foreign(state: &HostState) -> BTreeSet<&IfName> {
    state
        .links
        .iter()
        .filter(|(name, _)| name.as_str().starts_with("ens"))
        .map(|(n, _)| n)
        .collect()
}

proptest! {
    #[test]
    fn from_anywhere_to_anything(
        first in wish(), second in wish(), filtering: bool,
        cut in 0_usize..60, dice in prop::collection::vec(any::<u32>(), 0..6),
    ) {
        let mut state = host(filtering);
        converge(&first, &mut state);
        for dice in dice {
            tamper(&mut state, dice);
        }
        // An agent that is killed in the middle of a plan.
        for step in plan(&desired(&second), &state).steps.iter().take(cut) {
            kernel::apply(&mut state, &step.action);
        }
        converge(&second, &mut state);

        // The way there must not show: the same as from nothing, but for the kernel's numbers.
        let mut fresh = host(filtering);
        converge(&second, &mut fresh);
        prop_assert_eq!(&state.guards, &fresh.guards);
        prop_assert_eq!(&state.owned_netns, &fresh.owned_netns);
        prop_assert_eq!(&state.trunks, &fresh.trunks);
        prop_assert_eq!(&state.datapath, &fresh.datapath);
        let ours = |state: &HostState| -> Vec<IfName> {
            state.links.iter().filter(|(_, l)| l.alias.is_some()).map(|(n, _)| n.clone()).collect()
        };
        prop_assert_eq!(ours(&state), ours(&fresh));
    }

    #[test]
    fn new_rows_first_then_the_rest(first in wish(), second in wish(), filtering: bool) {
        let bundle = |stack: &Arc<Stack>| stack.encoding == Encoding::VlanAwareBundle;
        let bundles = first.stacks.iter().any(bundle);
        // As in the configuration below.
        let first = Wish { frr: false, ..first };
        let transport = first.transport;
        let second = Wish { stacks: first.stacks.clone(), frr: false, transport, ..second };
        let mut state = host(filtering);
        converge(&first, &mut state);
        let before = state.clone();

        let config = HostConfig { stacks: first.stacks.clone(), ..config(1) };
        let mut machine = HostMachine::new(underlay(), Some(config), LocalStacks::default());
        machine.set_transport(transport);
        machine.set_forwarding(Arc::new(second.forwarding.clone()));
        let news = machine.new_rows(&first.forwarding, &state);
        for step in &news {
            prop_assert!(step.is_row(), "{step}");
            kernel::apply(&mut state, &step.action);
        }
        // Nothing went that is still wanted, and nothing new is left to do.
        prop_assert!(before.vteps.is_subset(&state.vteps), "{:?}", state.vteps);
        let left = plan(&desired(&second), &state);
        let new_row = |step: &host_plan::Step| match &step.action {
            // That of a NIC which is here again is no remote one.
            host_plan::Action::AddFdb(row) => row.state == FdbState::ExternLearned,
            host_plan::Action::SetNeighbour(_) => true,
            host_plan::Action::ChangeDatapath(Change::SetNeighbour { neighbour, .. }) => {
                !neighbour.here
            }
            host_plan::Action::ChangeDatapath(
                Change::SetMac { .. } | Change::AddFlood { .. },
            ) => true,
            host_plan::Action::SetVteps(vteps) => !vteps.is_subset(&state.vteps),
            _ => false,
        };
        prop_assert!(bundles || !left.steps.iter().any(new_row), "{left}");
        converge(&second, &mut state);
        let mut fresh = host(filtering);
        converge(&second, &mut fresh);
        prop_assert_eq!(fdb(&state), fdb(&fresh));
        prop_assert_eq!(&state.neighbours, &fresh.neighbours);
        prop_assert_eq!(&state.vteps, &fresh.vteps);
        prop_assert_eq!(&state.datapath, &fresh.datapath);
    }

    #[test]
    fn nothing_is_left_of_nothing(wish in wish(), filtering: bool) {
        let mut state = host(filtering);
        let before = foreign(&state).len();
        converge(&wish, &mut state);
        let nothing = Wish {
            stacks: Vec::new(),
            forwarding: Forwarding { complete: true, ..Default::default() },
            frr: false,
            transport: wish.transport,
        };
        converge(&nothing, &mut state);
        prop_assert!(state.links.values().all(|link| link.alias.is_none()), "{:#?}", state.links);
        prop_assert!(state.fdb.is_empty() && state.neighbours.is_empty());
        prop_assert!(state.guards.is_empty() && state.owned_netns.is_empty());
        prop_assert!(state.trunks.is_empty());
        prop_assert_eq!(&state.datapath, &Some(Tables::default()));
        prop_assert_eq!(foreign(&state).len(), before);
    }

    #[test]
    fn readiness_is_what_the_plan_leaves_alone(wish in wish(), filtering: bool) {
        let mut state = host(filtering);
        prop_assert!(plan(&desired(&wish), &state).readiness(&wish.stacks, &[]).nics.is_empty());
        converge(&wish, &mut state);
        let ready = plan(&desired(&wish), &state).readiness(&wish.stacks, &[]);
        let all: BTreeSet<_> =
            wish.stacks.iter().flat_map(|s| &s.ports)
                .filter(|port| port.role != PortRole::Standby).map(|port| port.nic).collect();
        prop_assert_eq!(ready.nics, all);
    }
}

fn config(generation: u64) -> HostConfig {
    HostConfig {
        host: HostId::from_random(1),
        generation: Generation(generation),
        underlay: underlay(),
        bgp: BgpConfig {
            asn: model::Asn::new(65000).unwrap(),
            speaker: model::SpeakerKind::Builtin,
            reflectors: Vec::new(),
        },
        stacks: Vec::new(),
        routers: Vec::new(),
        voting: None,
        members: BTreeMap::new(),
        standby_for: Default::default(),
        storage: Default::default(),
    }
}

#[test]
fn an_older_generation_is_refused_and_the_same_one_is_nothing_new() {
    let mut machine = HostMachine::new(underlay(), Some(config(5)), LocalStacks::default());
    assert_eq!(machine.offer(config(5)), Ok(false));
    assert_eq!(machine.offer(config(6)), Ok(true));
    assert!(machine.offer(config(5)).is_err());
}

#[test]
fn a_failed_step_waits_longer_each_time_and_a_good_one_forgives() {
    let mut machine = HostMachine::new(underlay(), None, LocalStacks::default());
    let stack = stack_of(0, false, &[(0, 0)]);
    machine.add_stack(stack, UnixMillis(0)).unwrap();
    let start = Instant::now();
    let state = host(true);
    let (plan, _) = machine.plan(&state, start, UnixMillis(0));
    let step = plan.steps.last().expect("there is something to do").clone();

    let mut waits = Vec::new();
    let mut now = start;
    for _ in 0..10 {
        machine.finished([(&step, Err("no".to_owned()))], now, UnixMillis(0));
        let retry = machine.poll_timeout().unwrap();
        waits.push(retry - now);
        let (withheld, _) = machine.plan(&state, now, UnixMillis(0));
        assert!(
            withheld
                .steps
                .iter()
                .all(|other| other.subject != step.subject)
        );
        now = retry;
    }
    assert_eq!(waits[0], Duration::from_millis(200));
    assert!(
        waits.is_sorted() && waits[9] == Duration::from_secs(30),
        "{waits:?}"
    );
    machine.finished([(&step, Ok(()))], now, UnixMillis(0));
    assert_eq!(machine.poll_timeout(), None);
    assert!(machine.troubles().is_empty());
}
