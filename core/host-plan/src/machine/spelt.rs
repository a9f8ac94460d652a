//! What should be on the host, spelt out once for as long as it is made of the same: most passes only see
//! that all of it is there.

use crate::want::{Facts, Want};
use crate::{Desired, HostState, Plan, plan};
use datapath::Limits;
use model::{Forwarding, RouterConfig, Stack, Transport, Underlay};
use std::sync::Arc;

/// The last, with what it was made of.
#[derive(Debug)]
struct Spelt {
    underlay: Underlay,
    transport: Transport,
    limits: Limits,
    stacks: Vec<Stack>,
    routers: Vec<RouterConfig>,
    forwarding: Arc<Forwarding>,
    local_neighbours: bool,
    facts: Facts,
    want: Want,
}

/// Keeps the last.
#[derive(Debug, Default)]
pub(super) struct Speller(Option<Spelt>);

impl Speller {
    /// As [`crate::plan()`]. `forwarding` is what `desired` has.
    pub(super) fn plan(
        &mut self,
        desired: &Desired<'_>,
        forwarding: &Arc<Forwarding>,
        observed: &HostState,
    ) -> Plan {
        let facts = Facts::of(desired, observed);
        let last = self.0.take();
        let last = last.filter(|last| last.is_of(desired, forwarding, &facts));
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
        });
        let plan = plan::difference(desired, &spelt.want, observed);
        self.0 = Some(spelt);
        plan
    }
}

impl Spelt {
    fn is_of(&self, desired: &Desired<'_>, forwarding: &Arc<Forwarding>, facts: &Facts) -> bool {
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
            && self.routers == *routers
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::{router, segment, stack, subnet, underlay};
    use crate::{Link, LinkKind};
    use model::{
        Attachment, Capability, IfName, MacAddr, Mtu, NicId, Port, PortRole, Uplink, UplinkAddress,
    };

    /// All that a plan is made from.
    #[derive(Clone)]
    struct Inputs {
        underlay: Underlay,
        transport: Transport,
        limits: Limits,
        stacks: Vec<Stack>,
        routers: Vec<RouterConfig>,
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
            stacks: vec![stack],
            routers: vec![router],
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
            ("a stack", |i| i.stacks[0].segments.push(segment(2))),
            ("a router", |i| {
                i.routers[0].legs[0].mac = MacAddr([2, 0, 0, 0, 0, 7])
            }),
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
        for (what, change) in changes {
            // What is there beside differs from pass to pass, and is compared anew each time.
            for first in changes {
                let mut inputs = inputs();
                first.1(&mut inputs);
                let mut speller = Speller::default();
                let before = speller.plan(&inputs.desired(), &inputs.forwarding, &inputs.observed);
                assert_eq!(before, plan(&inputs.desired(), &inputs.observed));
                change(&mut inputs);
                let kept = speller.plan(&inputs.desired(), &inputs.forwarding, &inputs.observed);
                let fresh = plan(&inputs.desired(), &inputs.observed);
                assert_eq!(kept, fresh, "{} changed after {}", what, first.0);
            }
        }
    }
}
