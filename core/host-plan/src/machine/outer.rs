//! Addresses outside that DHCP servers gave: they stand where the configuration leaves them open.

use super::HostMachine;
use crate::{Problem, Subject};
use ipnet::{IpNet, Ipv4Net};
use model::{IfName, MacAddr, RouterConfig, RouterId, Uplink, UplinkAddress};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

/// What a DHCP server gave a router.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OuterAddress {
    /// The address, and its network.
    pub address: Ipv4Net,
    /// The way on from there.
    pub gateway: Option<Ipv4Addr>,
}

/// A router that is to ask for its address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DhcpUplink {
    /// Which.
    pub router: RouterId,
    /// For people.
    pub name: String,
    /// The bridge that the server is reached by.
    pub bridge: IfName,
    /// MAC of the outer leg.
    pub mac: MacAddr,
}

impl HostMachine {
    /// What servers gave, of all routers. True if anything differs.
    pub fn set_outer(&mut self, outer: BTreeMap<RouterId, OuterAddress>) -> bool {
        let differs = outer != self.outer;
        if differs {
            self.outer = outer;
            self.merge();
        }
        differs
    }

    /// Routers here that are to ask for their address.
    pub fn dhcp_uplinks(&self) -> &[DhcpUplink] {
        &self.dhcp_uplinks
    }

    /// Puts in what was given.
    pub(super) fn merge_outer(&mut self) {
        self.dhcp_uplinks.clear();
        for router in &mut self.routers {
            let leg_of = |outer: &OuterAddress| overlap(router, outer);
            let given = self.outer.get(&router.id);
            let refused = given.and_then(|outer| Some((*outer, leg_of(outer)?)));
            let Some(uplink) = router.uplink.as_ref() else {
                continue;
            };
            // It is asked for by where the router runs.
            if uplink.address != UplinkAddress::Dhcp || router.prepared {
                continue;
            }
            self.dhcp_uplinks.push(DhcpUplink {
                router: router.id,
                name: router.name.clone(),
                bridge: uplink.bridge.clone(),
                mac: uplink.mac,
            });
            match (given, refused) {
                (_, Some((outer, leg))) => self.conflicts.push(Problem {
                    subject: Subject::Router(router.id),
                    blocks: false,
                    message: format!(
                        "router {} has no address outside: the DHCP server on {} gives {}, which \
                         overlaps its own leg {leg}: give the subnet another prefix",
                        router.name, uplink.bridge, outer.address
                    ),
                }),
                (Some(outer), None) => {
                    let uplink = Arc::make_mut(router).uplink.as_mut();
                    put_in(uplink.expect("it was looked up just now"), outer);
                }
                (None, None) => {}
            }
        }
    }
}

fn overlap(router: &RouterConfig, outer: &OuterAddress) -> Option<IpNet> {
    let given = IpNet::V4(outer.address);
    let legs = router.legs.iter().flat_map(|leg| &leg.addresses);
    let overlaps = |leg: &&IpNet| leg.contains(&given.network()) || given.contains(&leg.network());
    legs.copied().find(|leg| overlaps(&leg))
}

/// A way out that is configured goes before the server's.
fn put_in(uplink: &mut Uplink, outer: &OuterAddress) {
    uplink.address = UplinkAddress::Static(vec![IpNet::V4(outer.address)]);
    if !uplink.gateways.iter().any(IpAddr::is_ipv4) {
        uplink.gateways.extend(outer.gateway.map(IpAddr::V4));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::LocalStacks;
    use crate::sample::{router, segment, stack, underlay};
    use model::UnixMillis;

    const ROUTER: RouterId = RouterId::from_random(1);

    fn machine(gateways: &[&str]) -> HostMachine {
        let mut router = router(1, &[(1, "10.4.1.1/24")]);
        router.uplink = Some(Uplink {
            bridge: "br-ext".parse().unwrap(),
            mac: MacAddr([2, 0, 0, 0, 0, 9]),
            address: UplinkAddress::Dhcp,
            gateways: gateways.iter().map(|ip| ip.parse().unwrap()).collect(),
            mtu: None,
        });
        let stack = stack(vec![segment(1)]);
        let mut machine = HostMachine::new(underlay(), None, LocalStacks::default());
        machine.add_stack(stack, UnixMillis(0)).unwrap();
        machine.add_router(router, false).unwrap();
        machine
    }

    fn given(address: &str) -> BTreeMap<RouterId, OuterAddress> {
        let outer = OuterAddress {
            address: address.parse().unwrap(),
            gateway: Some([192, 0, 2, 1].into()),
        };
        [(ROUTER, outer)].into()
    }

    fn uplink(machine: &HostMachine) -> Uplink {
        machine.routers()[0].uplink.clone().unwrap()
    }

    #[test]
    fn what_was_given_stands_in_the_place_of_the_wish() {
        let mut machine = machine(&[]);
        assert_eq!(uplink(&machine).address, UplinkAddress::Dhcp);
        assert!(machine.set_outer(given("192.0.2.7/24")));
        assert!(!machine.set_outer(given("192.0.2.7/24")));
        let expected = UplinkAddress::Static(vec!["192.0.2.7/24".parse().unwrap()]);
        assert_eq!(uplink(&machine).address, expected);
        assert_eq!(uplink(&machine).gateways, [IpAddr::from([192, 0, 2, 1])]);
        // It is asked for as long as it is wished for, and goes with the lease.
        assert_eq!(machine.dhcp_uplinks()[0].router, ROUTER);
        assert!(machine.set_outer(BTreeMap::new()));
        assert_eq!(uplink(&machine).address, UplinkAddress::Dhcp);
        assert_eq!(machine.dhcp_uplinks().len(), 1);
    }

    #[test]
    fn a_gateway_of_the_operators_goes_first() {
        let mut machine = machine(&["2001:db8::1", "192.0.2.254"]);
        machine.set_outer(given("192.0.2.7/24"));
        let gateways = uplink(&machine).gateways;
        assert!(gateways.contains(&IpAddr::from([192, 0, 2, 254])));
        assert_eq!(gateways.len(), 2);
    }

    #[test]
    fn an_address_of_the_inside_is_not_taken() {
        let mut machine = machine(&[]);
        for address in ["10.4.1.9/24", "10.4.0.9/16", "10.4.1.9/28"] {
            machine.set_outer(given(address));
            assert_eq!(uplink(&machine).address, UplinkAddress::Dhcp, "{address}");
            let message = &machine.conflicts[0].message;
            assert!(
                message.contains("overlaps its own leg 10.4.1.1/24"),
                "{message}"
            );
        }
        machine.set_outer(BTreeMap::new());
        assert_eq!(machine.conflicts, []);
    }
}
