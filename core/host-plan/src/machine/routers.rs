//! Routers made through the host's own API: they lie in stacks that were made there, too.

use super::{HostMachine, Refused};
use model::{Gateway, RouterConfig, RouterId, RouterLeg, Stack};
use std::net::IpAddr;
use std::sync::Arc;

impl HostMachine {
    /// Adds a router through the local API; with `replace` it takes the place of what the router was.
    pub fn add_router(&mut self, router: RouterConfig, replace: bool) -> Result<(), Refused> {
        let what = || format!("router {}", router.name);
        self.local_stack(router.vpc)?;
        if self.is_managed_router(router.id) {
            return Err(Refused::Managed(what()));
        }
        if let Some(there) = self.local.routers.get(&router.id) {
            if *there == router {
                return Ok(());
            }
            if !replace {
                return Err(Refused::Taken {
                    what: format!("id {}", router.id),
                    by: format!("router {}", there.name),
                });
            }
            if there.vpc != router.vpc {
                return Err(Refused::Invalid(format!(
                    "{} is in stack {}: delete it there first",
                    what(),
                    there.vpc
                )));
            }
        }
        let stack = &self.local.stacks[&router.vpc].stack;
        for leg in &router.legs {
            check_leg(stack, &router, leg)?;
            let other = self.local.routers.values().find(|other| {
                other.id != router.id && other.legs.iter().any(|o| o.subnet == leg.subnet)
            });
            if let Some(other) = other {
                return Err(Refused::Taken {
                    what: format!("segment {}", leg.subnet),
                    by: format!("router {}", other.name),
                });
            }
        }
        check_apart(&router)?;
        if let Some(uplink) = router.uplink.as_ref().filter(|u| !u.mac.is_usable()) {
            return Err(Refused::Invalid(format!(
                "{}: MAC {} of its uplink is not one that an interface may have: give a unicast address",
                what(),
                uplink.mac
            )));
        }
        self.local.routers.insert(router.id, router);
        self.merge();
        Ok(())
    }

    /// Deletes a router of the local API.
    pub fn delete_router(&mut self, id: RouterId) -> Result<(), Refused> {
        if self.is_managed_router(id) {
            return Err(Refused::Managed(format!("router {id}")));
        }
        if self.local.routers.remove(&id).is_none() {
            return Err(Refused::Unknown(format!("router {id}")));
        }
        self.merge();
        Ok(())
    }

    /// True if the router came from the management server.
    pub fn is_managed_router(&self, id: RouterId) -> bool {
        let mut managed = self.managed.iter().flat_map(|config| &config.routers);
        managed.any(|router| router.id == id)
    }

    /// Local routers of local stacks that are in force, and their gateways in those.
    pub(super) fn merge_routers(&mut self) {
        for router in self.local.routers.values() {
            let known = self.routers.iter().any(|other| other.id == router.id);
            let local = self.local.stacks.contains_key(&router.vpc);
            let stack = self.merged.iter_mut().find(|s| s.vpc == router.vpc);
            let Some(stack) = stack.filter(|_| local && !known) else {
                continue;
            };
            let stack = Arc::make_mut(stack);
            for leg in &router.legs {
                let segments = stack.segments.iter_mut();
                for segment in segments.filter(|segment| segment.subnet == leg.subnet) {
                    segment.gateway.get_or_insert_with(|| Gateway {
                        mac: leg.mac,
                        addresses: leg.addresses.iter().map(|net| net.addr()).collect(),
                    });
                }
            }
            self.routers.push(Arc::new(router.clone()));
        }
    }
}

fn check_leg(stack: &Stack, router: &RouterConfig, leg: &RouterLeg) -> Result<(), Refused> {
    let Some(segment) = stack.segment(leg.subnet) else {
        let (subnet, vpc) = (leg.subnet, stack.vpc);
        return Err(Refused::Unknown(format!("segment {subnet} in stack {vpc}")));
    };
    let invalid = |reason: String| {
        let (router, segment) = (&router.name, &segment.name);
        Err(Refused::Invalid(format!(
            "router {router}, leg in segment {segment}: {reason}"
        )))
    };
    if router
        .legs
        .iter()
        .filter(|o| o.subnet == leg.subnet)
        .count()
        > 1
    {
        return invalid("there is another: give one leg with all its addresses".to_owned());
    }
    if !leg.mac.is_usable() {
        return invalid(format!(
            "MAC {} is not one that an interface may have: give a unicast address",
            leg.mac
        ));
    }
    if leg.mtu > segment.mtu {
        return invalid(format!(
            "MTU {} is more than the segment's {}: give less, or leave it out",
            leg.mtu, segment.mtu
        ));
    }
    if leg.addresses.is_empty() {
        return invalid("it has no address: give the gateway's".to_owned());
    }
    for address in &leg.addresses {
        let inside = match address.addr() {
            IpAddr::V4(ip) => segment.v4.is_none_or(|net| net.contains(&ip)),
            IpAddr::V6(ip) => segment.v6.is_none_or(|net| net.contains(&ip)),
        };
        if !inside {
            return invalid(format!(
                "{address} is not in the segment's prefix: give an address that is"
            ));
        }
        let ip = address.addr();
        let mut ports = stack.ports.iter().filter(|port| port.subnet == leg.subnet);
        if let Some(port) = ports.find(|port| port.addresses.contains(&ip)) {
            return invalid(format!("{ip} is NIC {}'s: choose another", port.name));
        }
    }
    Ok(())
}

/// No two legs are in prefixes that overlap: packets would go to one of them by chance.
fn check_apart(router: &RouterConfig) -> Result<(), Refused> {
    let nets: Vec<_> = router
        .legs
        .iter()
        .flat_map(|leg| leg.addresses.iter().map(|net| (leg.subnet, net.trunc())))
        .collect();
    for (at, (subnet, net)) in nets.iter().enumerate() {
        let overlaps = nets[at + 1..].iter().find(|(other, second)| {
            other != subnet && (second.contains(net) || net.contains(second))
        });
        if let Some((_, second)) = overlaps {
            return Err(Refused::Invalid(format!(
                "router {}: {net} and {second} of its legs overlap: give each subnet its own prefix",
                router.name
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::LocalStacks;
    use crate::sample::{config_of, router, segment, stack, underlay};
    use model::{Mtu, UnixMillis, VpcId};

    fn machine() -> HostMachine {
        let mut machine = HostMachine::new(underlay(), None, LocalStacks::default());
        let stack = stack(vec![segment(1), segment(2)]);
        machine.add_stack(stack, UnixMillis(0)).unwrap();
        machine
    }

    fn held(machine: &HostMachine) -> Vec<RouterConfig> {
        let routers = machine.routers().iter();
        routers.map(|router| router.as_ref().clone()).collect()
    }

    #[test]
    fn a_local_router_is_its_segments_gateway_and_keeps_its_stack() {
        let mut machine = machine();
        let mut one = router(1, &[(1, "10.4.1.1/24"), (2, "10.4.2.1/24")]);
        machine.add_router(one.clone(), false).unwrap();
        machine.add_router(one.clone(), false).unwrap();
        assert_eq!(held(&machine), [one.clone()]);
        let gateway = machine.stacks()[0].segments[0].gateway.clone().unwrap();
        assert_eq!(gateway.addresses, [IpAddr::from([10, 4, 1, 1])]);
        let again = HostMachine::new(machine.underlay(), None, machine.local().clone());
        assert_eq!(held(&again), [one.clone()]);
        // It changes by its whole, and goes before its stack does.
        one.legs.pop();
        let taken = machine.add_router(one.clone(), false).unwrap_err();
        assert!(taken.to_string().contains("router blue/r1"), "{taken}");
        machine.add_router(one.clone(), true).unwrap();
        assert_eq!(machine.stacks()[0].segments[1].gateway, None);
        let held = machine.delete_stack(one.vpc).unwrap_err().to_string();
        assert!(held.contains("router blue/r1"), "{held}");
        assert!(machine.collect_unused(UnixMillis(u64::MAX), 0).is_empty());
        machine.delete_router(one.id).unwrap();
        assert!(machine.routers().is_empty());
        machine.delete_stack(one.vpc).unwrap();
    }

    #[test]
    fn bad_routers_are_refused_and_change_nothing() {
        let mut machine = machine();
        machine
            .add_router(router(1, &[(1, "10.4.1.1/24")]), false)
            .unwrap();
        let before = machine.routers().to_vec();
        let mut no_address = router(2, &[(2, "10.4.2.1/24")]);
        no_address.legs[0].addresses.clear();
        let mut elsewhere = router(2, &[]);
        elsewhere.vpc = VpcId::from_random(9);
        let mut large = router(2, &[(2, "10.4.2.1/24")]);
        large.legs[0].mtu = Mtu::new(1500).unwrap();
        for (bad, says) in [
            (
                router(2, &[(1, "10.4.1.2/24")]),
                "already used by router blue/r1",
            ),
            (router(2, &[(3, "10.4.3.1/24")]), "there is no segment"),
            (
                router(2, &[(2, "10.9.2.1/24")]),
                "not in the segment's prefix",
            ),
            (
                router(1, &[(1, "10.4.1.1/24"), (2, "10.4.2.1/16")]),
                "overlap",
            ),
            (
                router(1, &[(1, "10.4.1.1/24"), (1, "10.4.1.2/24")]),
                "there is another",
            ),
            (no_address, "it has no address"),
            (elsewhere, "there is no stack"),
            (large, "more than the segment's"),
        ] {
            let refused = machine.add_router(bad, true).unwrap_err().to_string();
            assert!(refused.contains(says), "{says:?}: {refused}");
        }
        assert_eq!(machine.routers(), before);
        let unknown = machine.delete_router(RouterId::from_random(7)).unwrap_err();
        assert!(matches!(unknown, Refused::Unknown(_)), "{unknown}");
    }

    #[test]
    fn a_router_is_made_ready_only_where_it_would_be_silent() {
        let mut machine = HostMachine::new(underlay(), None, LocalStacks::default());
        let mut ready = router(1, &[(1, "10.4.1.1/24")]);
        ready.prepared = true;
        let runs = router(2, &[(2, "10.4.2.1/24")]);
        let config = config_of(
            vec![stack(vec![segment(1), segment(2)])],
            vec![ready.clone(), runs.clone()],
        );
        machine.offer(config).unwrap();
        // As it starts it takes nothing away that is there.
        assert_eq!(held(&machine), [ready.clone(), runs.clone()]);
        machine.set_leased(None);
        assert_eq!(held(&machine), std::slice::from_ref(&runs));
        machine.set_leased(Some([runs.id].into()));
        assert_eq!(held(&machine), [ready, runs]);
    }
}
