//! What should be on the host, spelt out once for as long as it is made of the same: most passes only see
//! that all of it is there.

use crate::plan::Calm;
use crate::want::{Facts, Want};
use crate::{Desired, HostState, Plan, plan};
use datapath::Limits;
use model::{Forwarding, RouterConfig, RouterId, Stack, Transport, Underlay, VpcId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Changes of more VPCs at once are spelt out with all the rest.
const FEW: usize = 16;

/// The last, with what it was made of.
#[derive(Debug)]
struct Spelt {
    underlay: Underlay,
    transport: Transport,
    limits: Limits,
    stacks: Vec<Arc<Stack>>,
    routers: Vec<Arc<RouterConfig>>,
    forwarding: Arc<Forwarding>,
    local_neighbours: bool,
    facts: Facts,
    want: Want,
    /// What the routers and stacks come to whose insides were the last to change: most often they are the next, too.
    last: Option<(BTreeSet<VpcId>, Want)>,
}

/// Keeps the last, and what was found to be as it should.
#[derive(Debug, Default)]
pub(super) struct Speller {
    last: Option<Spelt>,
    calm: Calm,
}

impl Speller {
    /// As [`crate::plan()`]. `forwarding` is what `desired` has.
    pub(super) fn plan(
        &mut self,
        desired: &Desired<'_>,
        forwarding: &Arc<Forwarding>,
        observed: &HostState,
    ) -> Plan {
        let facts = Facts::of(desired, observed);
        let mut last = self.last.take();
        let fits = last
            .as_mut()
            .is_some_and(|last| last.become_of(desired, forwarding, &facts));
        let last = last.filter(|_| fits);
        if last.is_none() {
            self.calm.host_is_other();
        }
        let spelt = last.unwrap_or_else(|| Spelt {
            underlay: desired.underlay,
            transport: desired.transport,
            limits: desired.limits,
            stacks: desired.stacks.to_vec(),
            routers: desired.routers.to_vec(),
            forwarding: Arc::clone(forwarding),
            local_neighbours: desired.local_neighbours,
            want: Want::of(desired, &facts),
            facts,
            last: None,
        });
        let plan = plan::difference(desired, &spelt.want, observed, &mut self.calm);
        self.last = Some(spelt);
        plan
    }
}

impl Spelt {
    /// True if this is what `desired` comes to, or could be made so in the insides of a few routers.
    fn become_of(
        &mut self,
        desired: &Desired<'_>,
        forwarding: &Arc<Forwarding>,
        facts: &Facts,
    ) -> bool {
        // Each by its name, so that none can be forgotten.
        let Desired {
            underlay,
            transport,
            limits,
            stacks,
            routers,
            // Of rows there may be a hundred thousand: the same value is the same.
            forwarding: _,
            local_neighbours,
        } = desired;
        Arc::ptr_eq(&self.forwarding, forwarding)
            && self.underlay == *underlay
            && self.transport == *transport
            && self.limits == *limits
            && self.local_neighbours == *local_neighbours
            && self.facts == *facts
            && self.stacks == *stacks
            && (self.routers == *routers || self.take_insides(desired))
    }

    /// Takes in routers that are others only inside: in their rules and routes, as most changes of a router
    /// are. False, and nothing done, if something else follows from the change.
    fn take_insides(&mut self, desired: &Desired<'_>) -> bool {
        let ids = |routers: &[Arc<RouterConfig>]| -> Vec<RouterId> {
            routers.iter().map(|router| router.id).collect()
        };
        if ids(&self.routers) != ids(desired.routers) {
            return false;
        }
        let pairs = self.routers.iter().zip(desired.routers);
        let others = pairs.filter(|(was, is)| was != is);
        let vpcs: BTreeSet<VpcId> = others.flat_map(|(was, is)| [was.vpc, is.vpc]).collect();
        if vpcs.len() > FEW {
            return false;
        }
        let of_vpcs = |routers: &[Arc<RouterConfig>]| -> Vec<Arc<RouterConfig>> {
            let routers = routers.iter();
            let routers = routers.filter(|router| vpcs.contains(&router.vpc));
            routers.cloned().collect()
        };
        let stacks = self.stacks.iter();
        let stacks = stacks.filter(|stack| vpcs.contains(&stack.vpc));
        let stacks: Vec<Arc<Stack>> = stacks.cloned().collect();
        let spell = |routers: &[Arc<RouterConfig>]| {
            let routers = of_vpcs(routers);
            let some = Desired {
                stacks: &stacks,
                routers: &routers,
                ..desired.clone()
            };
            Want::of_some(&some, &self.facts)
        };
        let last = self.last.take().filter(|(of, _)| *of == vpcs);
        let before = last.map_or_else(|| spell(&self.routers), |(_, want)| want);
        let after = spell(desired.routers);
        if !before.is_but_for_insides(&after) {
            return false;
        }
        let held = self.want.routers.iter().enumerate();
        let places: BTreeMap<RouterId, usize> =
            held.map(|(place, router)| (router.id, place)).collect();
        // One that is not there was refused for what is elsewhere.
        let spelt = after.routers.iter();
        if !spelt.clone().all(|router| places.contains_key(&router.id)) {
            return false;
        }
        for router in spelt {
            self.want.routers[places[&router.id]] = Arc::clone(router);
        }
        self.routers = desired.routers.to_vec();
        self.last = Some((vpcs, after));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::{router, segment, stack, subnet, underlay};
    use crate::{Link, LinkKind};
    use model::{
        Attachment, Capability, IfName, MacAddr, Mtu, NicId, OneToOne, Port, PortRole, StaticRoute,
        Uplink, UplinkAddress, Via,
    };

    /// All that a plan is made from.
    #[derive(Clone)]
    struct Inputs {
        underlay: Underlay,
        transport: Transport,
        limits: Limits,
        stacks: Vec<Arc<Stack>>,
        routers: Vec<Arc<RouterConfig>>,
        forwarding: Arc<Forwarding>,
        local_neighbours: bool,
        observed: HostState,
    }

    impl Inputs {
        fn desired(&self) -> Desired<'_> {
            Desired {
                underlay: self.underlay,
                transport: self.transport,
                limits: self.limits,
                stacks: &self.stacks,
                routers: &self.routers,
                forwarding: &self.forwarding,
                local_neighbours: self.local_neighbours,
            }
        }
    }

    fn name(text: &str) -> IfName {
        IfName::new(text).unwrap()
    }

    /// An interface of the operator's.
    fn link(index: u32, kind: LinkKind) -> Link {
        Link {
            index,
            kind,
            alias: None,
            mac: MacAddr([2, 1, 1, 1, 1, 1]),
            mtu: 1500,
            up: true,
            ipv6_disabled: true,
            port: None,
        }
    }

    /// A router with a way out, and a NIC on an interface that is there.
    fn inputs() -> Inputs {
        let mut stack = stack(vec![segment(1)]);
        stack.ports.push(Port {
            nic: NicId::from_random(1),
            name: "blue/s1/a".to_owned(),
            subnet: subnet(1),
            mac: MacAddr([2, 0, 0, 0, 0, 9]),
            addresses: vec!["10.4.1.9".parse().unwrap()],
            behind: Vec::new(),
            attachment: Attachment::Existing {
                ifname: name("eth7"),
            },
            role: PortRole::default(),
            sequence: 0,
        });
        let mut router = router(1, &[(1, "10.4.1.1/24")]);
        router.uplink = Some(Uplink {
            bridge: name("br-ext"),
            mac: MacAddr([2, 0, 0, 0, 9, 1]),
            address: UplinkAddress::Static(vec!["198.51.100.2/24".parse().unwrap()]),
            gateways: Vec::new(),
            mtu: None,
        });
        let mut observed = HostState::default();
        observed
            .capabilities
            .extend([Capability::NftBridge, Capability::Tap]);
        let bridge = LinkKind::Bridge {
            vlan_filtering: false,
            default_pvid: 1,
            mcast_snooping: false,
        };
        observed.links.insert(name("br-ext"), link(2, bridge));
        let other = LinkKind::Other("dummy".to_owned());
        observed.links.insert(name("eth7"), link(3, other));
        Inputs {
            underlay: underlay(),
            transport: Transport::Kernel,
            limits: Limits::default(),
            stacks: vec![stack.into()],
            routers: vec![router.into()],
            forwarding: Arc::default(),
            local_neighbours: false,
            observed,
        }
    }

    #[test]
    fn what_is_kept_is_what_would_be_spelt_out() {
        type Change = (&'static str, fn(&mut Inputs));
        let changes: &[Change] = &[
            ("nothing", |_| {}),
            ("the underlay", |i| i.underlay.mtu = Mtu::new(1400).unwrap()),
            ("the transport", |i| i.transport = Transport::Tap),
            ("a stack", |i| {
                Arc::make_mut(&mut i.stacks[0]).segments.push(segment(2))
            }),
            ("a router", |i| {
                Arc::make_mut(&mut i.routers[0]).legs[0].mac = MacAddr([2, 0, 0, 0, 0, 7])
            }),
            ("a router's routes", |i| {
                Arc::make_mut(&mut i.routers[0]).routes = vec![StaticRoute {
                    table: None,
                    prefix: "10.9.0.0/16".parse().unwrap(),
                    via: Via::Blackhole,
                }]
            }),
            ("a router's rules", |i| {
                let router = Arc::make_mut(&mut i.routers[0]);
                let number = router.nat.public.len() + 7;
                router.nat.public.push(OneToOne {
                    public: format!("198.51.100.{number}").parse().unwrap(),
                    private: format!("10.4.1.{number}").parse().unwrap(),
                })
            }),
            ("a router more", |i| i.routers.push(router(2, &[]).into())),
            ("the neighbours", |i| i.local_neighbours = true),
            ("what is heard", |i| {
                let mut heard = Forwarding::default();
                let evi = heard.evis.entry(segment(1).vni).or_default();
                evi.flood.insert((None, "100.64.0.9".parse().unwrap()));
                i.forwarding = Arc::new(heard);
            }),
            ("what the kernel can do", |i| {
                i.observed.capabilities.insert(Capability::VlanFiltering);
            }),
            ("the way out", |i| {
                i.observed.links.get_mut(&name("br-ext")).unwrap().up = false;
            }),
            ("a NIC's interface", |i| {
                i.observed.links.remove(&name("eth7"));
            }),
            ("why there is no datapath", |i| {
                i.transport = Transport::Tap;
                i.observed.datapath_trouble = Some("no memory".to_owned());
            }),
            ("the limits", |i| {
                i.transport = Transport::Tap;
                i.observed.datapath = Some(Default::default());
                i.limits.flood_per_s = 7;
            }),
            ("the datapath", |i| {
                i.transport = Transport::Tap;
                i.observed.datapath = Some(Default::default());
            }),
        ];
        // Rules are what changes most, and are spelt out beside what is kept.
        let rules = changes.iter().find(|(what, _)| *what == "a router's rules");
        let rules = rules.expect("it is one of them");
        let mut orders = Vec::new();
        for first in changes {
            orders.extend(changes.iter().map(|then| [first, rules, then, rules]));
        }
        for order in orders {
            // What is there beside differs from pass to pass, and is compared anew each time.
            let mut inputs = inputs();
            let mut speller = Speller::default();
            for (_, change) in order {
                change(&mut inputs);
                let kept = speller.plan(&inputs.desired(), &inputs.forwarding, &inputs.observed);
                let fresh = plan(&inputs.desired(), &inputs.observed);
                let names = order.map(|(what, _)| what);
                assert_eq!(kept, fresh, "{names:?}");
            }
        }
    }
}
