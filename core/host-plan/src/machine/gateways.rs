//! Gateways that came to a subnet, or became others, while NICs of it were here.
//!
//! Who asked before was told of another MAC, by the host itself where it stands in for a router that
//! is not there. What the router says of itself when it comes may be sent before its host knows to
//! whom to flood, so each host tells its own ports.

use super::{HostMachine, port_links};
use crate::greeting::gateway_frames;
use crate::{Action, Greeting, HostState, Step, Subject};
use model::{Gateway, Segment, Stack, SubnetId};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Each subnet here, and its gateway.
pub(super) fn gateways(stacks: &[Arc<Stack>]) -> BTreeMap<SubnetId, Option<Gateway>> {
    let segments = stacks.iter().flat_map(|stack| &stack.segments);
    segments
        .map(|segment| (segment.subnet, segment.gateway.clone()))
        .collect()
}

impl HostMachine {
    /// Notes the subnets that were here with another gateway or with none. In one that is new here
    /// nobody has asked yet.
    pub(super) fn note_gateways(&mut self, before: &BTreeMap<SubnetId, Option<Gateway>>) {
        for (subnet, gateway) in gateways(&self.merged) {
            let other = before.get(&subnet).is_some_and(|held| *held != gateway);
            if other && gateway.is_some() {
                self.untold.insert(subnet);
            }
        }
        let there: BTreeMap<_, _> = gateways(&self.merged);
        let has_one = |subnet: &SubnetId| matches!(there.get(subnet), Some(Some(_)));
        self.untold.retain(has_one);
    }

    /// Frames for all ports of a subnet, once for each gateway that it gets.
    pub(super) fn gateway_greetings(&self, observed: &HostState) -> Vec<Step> {
        if self.untold.is_empty() {
            return Vec::new();
        }
        let mut steps = Vec::new();
        for stack in &self.merged {
            for segment in &stack.segments {
                steps.extend(self.gateway_greeting(stack, segment, observed));
            }
        }
        steps
    }

    fn gateway_greeting(
        &self,
        stack: &Stack,
        segment: &Segment,
        observed: &HostState,
    ) -> Option<Step> {
        let gateway = segment.gateway.as_ref()?;
        if !self.untold.contains(&segment.subnet) {
            return None;
        }
        let ports = stack.ports.iter();
        let ports = ports.filter(|port| port.subnet == segment.subnet);
        let links: Vec<_> = port_links(ports, observed).collect();
        if links.is_empty() {
            return None;
        }
        Some(Step {
            subject: Subject::Subnet(segment.subnet),
            action: Action::Send(Greeting {
                mac: gateway.mac,
                links,
                frames: gateway_frames(gateway),
            }),
        })
    }

    /// The ports of a subnet heard of its gateway, if it is the same still.
    pub(super) fn told(&mut self, subnet: SubnetId, greeting: &Greeting) {
        let mut segments = self.merged.iter().flat_map(|stack| &stack.segments);
        let gateway = segments
            .find(|segment| segment.subnet == subnet)
            .and_then(|segment| segment.gateway.as_ref());
        if gateway.is_some_and(|gateway| gateway_frames(gateway) == greeting.frames) {
            self.untold.remove(&subnet);
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::sample::{config_of, segment, stack, underlay};
    use crate::{Action, HostMachine, HostState, Link, LinkKind, LocalStacks, OwnedName, Subject};
    use model::{
        Attachment, Capability, Gateway, Generation, HostConfig, MacAddr, NicId, Port, PortRole,
        SubnetId, UnixMillis,
    };
    use std::time::Instant;

    #[expect(clippy::disallowed_methods, reason = "any moment will do")]
    fn any_instant() -> Instant {
        Instant::now()
    }

    const SUBNET: SubnetId = SubnetId::from_random(2);

    fn gateway(last: u8) -> Option<Gateway> {
        Some(Gateway {
            mac: MacAddr([2, 0, 0, 0, 0, last]),
            addresses: vec!["10.4.1.1".parse().unwrap(), "fd00::1".parse().unwrap()],
        })
    }

    fn port(number: u64, role: PortRole) -> Port {
        Port {
            nic: NicId::from_random(number),
            name: String::new(),
            subnet: SUBNET,
            mac: MacAddr([2, 0, 0, 0, 1, number as u8]),
            addresses: Vec::new(),
            behind: Vec::new(),
            attachment: Attachment::Tap,
            role,
            sequence: 0,
        }
    }

    fn config(generation: u64, gateway: Option<Gateway>) -> HostConfig {
        let mut segment = segment(2);
        segment.gateway = gateway;
        let mut stack = stack(vec![segment]);
        stack.ports = vec![port(1, PortRole::Settled), port(2, PortRole::Standby)];
        HostConfig {
            generation: Generation(generation),
            ..config_of(vec![stack], Vec::new())
        }
    }

    /// A host on which the ports of both NICs are up.
    fn host() -> HostState {
        let mut state = HostState::default();
        state.capabilities.insert(Capability::NftBridge);
        for number in [1, 2] {
            let link = Link {
                index: number,
                kind: LinkKind::Other(String::new()),
                alias: None,
                mac: MacAddr::ZERO,
                mtu: 1450,
                up: true,
                ipv6_disabled: true,
                port: None,
            };
            let name = OwnedName::port(NicId::from_random(number.into()));
            state.links.insert(name, link);
        }
        state
    }

    /// The MACs that ports are told now; what was sent has arrived.
    fn tells(machine: &mut HostMachine) -> Vec<MacAddr> {
        let now = any_instant();
        let (plan, _) = machine.plan(&host(), now, UnixMillis(0));
        let steps: Vec<_> = (plan.steps.into_iter())
            .filter(|step| matches!(step.subject, Subject::Subnet(SUBNET)))
            .filter(|step| matches!(step.action, Action::Send(_)))
            .collect();
        machine.finished(steps.iter().map(|s| (s, Ok(()))), now, UnixMillis(0));
        let told = steps.into_iter().filter_map(|step| match step.action {
            Action::Send(greeting) => {
                // Not the port of a NIC that is yet to come here, nor the tunnel.
                let name = OwnedName::port(NicId::from_random(1));
                assert_eq!(greeting.links, [(name, None)]);
                assert_eq!(greeting.frames.len(), 2);
                Some(greeting.mac)
            }
            _ => None,
        });
        told.collect()
    }

    #[test]
    fn ports_hear_of_each_gateway_once() {
        let mut machine = HostMachine::new(underlay(), None, LocalStacks::default());
        let mac = |last| gateway(last).map(|gateway| gateway.mac).unwrap();
        let mut after = |generation, gateway| {
            machine.offer(config(generation, gateway)).unwrap();
            (tells(&mut machine), tells(&mut machine))
        };
        assert_eq!(after(1, None), (vec![], vec![]));
        assert_eq!(after(2, gateway(9)), (vec![mac(9)], vec![]));
        assert_eq!(after(3, gateway(9)), (vec![], vec![]));
        assert_eq!(after(4, gateway(8)), (vec![mac(8)], vec![]));
        assert_eq!(after(5, None), (vec![], vec![]));
        assert_eq!(after(6, gateway(8)), (vec![mac(8)], vec![]));

        // Where it was from the beginning nobody knows another.
        let mut fresh = HostMachine::new(underlay(), None, LocalStacks::default());
        fresh.offer(config(7, gateway(9))).unwrap();
        assert_eq!(tells(&mut fresh), []);
    }

    #[test]
    fn what_was_not_sent_or_is_out_of_date_is_sent_again() {
        let mut machine = HostMachine::new(underlay(), None, LocalStacks::default());
        machine.offer(config(1, None)).unwrap();
        machine.offer(config(2, gateway(9))).unwrap();
        let now = any_instant();
        let (plan, _) = machine.plan(&host(), now, UnixMillis(0));
        machine.offer(config(3, gateway(8))).unwrap();
        machine.finished(plan.steps.iter().map(|s| (s, Ok(()))), now, UnixMillis(0));
        let expected = gateway(8).unwrap().mac;
        assert_eq!(tells(&mut machine), [expected]);
        assert_eq!(tells(&mut machine), []);
    }
}
