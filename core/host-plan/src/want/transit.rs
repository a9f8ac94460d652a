//! The segment over which the routers of a VPC reach each other, on whichever hosts they are: a
//! bridge with the tunnel of the VPC's own VNI, and a leg of each router that is here. Nobody
//! speaks in it but routers, and nothing is asked in it: EVPN says who is where.

use super::router::WantRouter;
use super::{
    Facts, Membership, NIC_FLAGS, Want, WantInside, WantLink, What, device_mac, is_here, tap,
};
use crate::router::{Hop, NextHop, Way};
use crate::{Desired, FdbRow, FdbState, FdbTarget, Guard, OwnedName, Service, Stamp, Subject};
use datapath::Domain;
use ipnet::IpNet;
use model::{
    Encapsulation, Encoding, IpVrfForwarding, MacAddr, RouterConfig, SubnetId, Transit, Transport,
    UplinkAddress, Via, VpcId,
};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// A prefix that a router tells the others of its VPC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Told {
    /// What is behind the router.
    pub prefix: IpNet,
    /// It is behind the router's uplink, so it leads nowhere while that is not there.
    pub outside: bool,
}

/// What a router tells the others of its VPC: the prefixes of its legs and of its static routes, and
/// everything, where it has a way out. One that is for the NICs of its host alone has no prefix: those are
/// announced one by one.
///
/// Routes that are for one subnet only are not told, and neither are those that lead nowhere: what is to be
/// dropped here need not come here for it, and another router may know a way.
pub fn prefixes_of(router: &RouterConfig) -> impl Iterator<Item = Told> + '_ {
    let inside = |prefix| Told {
        prefix,
        outside: false,
    };
    let gateways = router.uplink.iter().filter(|uplink| {
        // It leads nowhere before there is an address.
        uplink.address != UplinkAddress::Dhcp
    });
    let gateways = gateways.flat_map(|uplink| &uplink.gateways);
    let defaults = gateways.map(|gateway| Told {
        prefix: everything(gateway.is_ipv6()),
        outside: true,
    });
    let legs = leg_prefixes(router).map(inside);
    legs.chain(defaults).chain(static_prefixes(router))
}

fn leg_prefixes(router: &RouterConfig) -> impl Iterator<Item = IpNet> + '_ {
    let legs = router.legs.iter().filter(|_| !router.anycast);
    legs.flat_map(|leg| &leg.addresses).map(IpNet::trunc)
}

/// Those that are made: by a neighbour in a subnet or outside.
fn static_prefixes(router: &RouterConfig) -> impl Iterator<Item = Told> + '_ {
    let by_leg = |gateway: &IpAddr| {
        let mut addresses = router.legs.iter().flat_map(|leg| &leg.addresses);
        addresses.any(|net| net.contains(gateway))
    };
    let by_uplink = |gateway: &IpAddr| {
        router.uplink.iter().any(|uplink| match &uplink.address {
            UplinkAddress::Static(addresses) => {
                let mut addresses = addresses.iter();
                addresses.any(|net| net.contains(gateway)) || uplink.gateways.contains(gateway)
            }
            UplinkAddress::Dhcp => false,
        })
    };
    let for_all = router.routes.iter().filter(|route| route.table.is_none());
    for_all.filter_map(move |route| {
        let Via::Address(gateway) = route.via else {
            return None;
        };
        let outside = !by_leg(&gateway);
        let is_made = !outside || by_uplink(&gateway);
        let of_leg = leg_prefixes(router).any(|prefix| prefix == route.prefix);
        (is_made && !of_leg).then_some(Told {
            prefix: route.prefix,
            outside,
        })
    })
}

fn everything(ipv6: bool) -> IpNet {
    let text = if ipv6 { "::/0" } else { "0.0.0.0/0" };
    text.parse().expect("it is a prefix")
}

/// How a router's neighbours in the segment name it: by the address that its MAC makes, so that one
/// next hop is one router, whatever the family of the underlay and of the packets.
fn next_hop_of(mac: MacAddr) -> IpAddr {
    IpAddr::V6(mac.link_local())
}

impl Want {
    /// The router's leg among the routers of its VPC; none if it has none or cannot have it.
    pub(super) fn transit_leg(
        &mut self,
        desired: &Desired<'_>,
        facts: &Facts,
        router: &mut WantRouter,
        config: &RouterConfig,
    ) -> Option<Transit> {
        let transit = config.transit?;
        let Some(mtu) = Encapsulation::inner_mtu(desired.underlay, Encoding::VlanBased) else {
            return None; // There is a problem with the stack already.
        };
        if desired.transport == Transport::Tap && !tap::makes_taps(facts) {
            return None; // Likewise.
        }
        let subject = Subject::Transit(config.vpc);
        let stamp = Stamp::Vpc(config.vpc);
        let bridge = OwnedName::transit_bridge(config.vpc);
        let tunnel = OwnedName::tunnel(transit.vni);
        let taken = match (self.links.contains_key(&bridge), self.links.get(&tunnel)) {
            (false, there) => there.is_some(),
            (true, there) => there
                .and_then(|there| there.membership.as_ref())
                .is_none_or(|member| member.bridge != bridge),
        };
        if taken {
            let message = format!(
                "router {} does not reach the VPC's other routers: VNI {} is in use on this host \
                 for something else",
                config.name, transit.vni
            );
            self.trouble(subject, true, message);
            return None;
        }
        if !self.links.contains_key(&bridge) {
            let mac = device_mac(0x16, config.vpc.bits());
            self.bridge(bridge, subject, stamp, mac, mtu, false);
            let membership = membership(config.vpc);
            let domain = match desired.transport {
                Transport::Kernel => {
                    let membership = Some(membership);
                    self.tunnel(desired, transit.vni, subject, stamp, mtu, membership);
                    None
                }
                Transport::Tap => {
                    self.tap(tunnel, subject, stamp, mtu, membership);
                    Some(self.transit_tables(facts, config, transit.vni, mtu))
                }
            };
            self.transit_rows(desired, config.vpc, transit, domain);
        }
        let name = OwnedName::router_transit(config.id);
        let link = WantLink {
            subject,
            stamp: Stamp::Router(config.id),
            what: What::RouterPort {
                netns: router.netns.clone(),
                mac: transit.mac,
            },
            mtu,
            membership: Some(membership(config.vpc)),
            guard: Some(Guard {
                macs: BTreeSet::from([transit.mac]),
                addresses: BTreeSet::from([next_hop_of(transit.mac)]),
                behind: BTreeSet::new(),
                service: Service::None,
            }),
        };
        let row = FdbRow {
            dev: name.clone(),
            mac: transit.mac,
            target: FdbTarget::Bridge(None),
            state: FdbState::Static,
        };
        if !config.prepared {
            self.fdb.insert(row, subject);
        }
        self.links.insert(name.clone(), link);
        let inside = WantInside {
            mac: transit.mac,
            mtu,
            addresses: BTreeSet::new(),
            next_hops: true,
        };
        router.links.insert(name.clone(), inside);
        router.transit = Some(name);
        Some(transit)
    }

    /// Where frames to routers on other hosts go. Beyond the bridge it is the datapath's business, if
    /// the segment is a domain of it.
    fn transit_rows(
        &mut self,
        desired: &Desired<'_>,
        vpc: VpcId,
        transit: Transit,
        domain: Option<Domain>,
    ) {
        let Some(learned) = desired.forwarding.ip_vrfs.get(&transit.vni) else {
            return;
        };
        let here = &self.places.macs;
        let tunnel = OwnedName::tunnel(transit.vni);
        let elsewhere = learned
            .routers
            .iter()
            .filter(|(mac, _)| !here.contains(*mac));
        for (mac, vtep) in elsewhere {
            let to_vtep = match domain {
                None => Some(FdbTarget::Vtep(*vtep)),
                Some(domain) => {
                    self.tables.macs.insert((domain, *mac), *vtep);
                    None
                }
            };
            for target in to_vtep.into_iter().chain([FdbTarget::Bridge(None)]) {
                let row = FdbRow {
                    dev: tunnel.clone(),
                    mac: *mac,
                    target,
                    state: FdbState::ExternLearned,
                };
                self.fdb.insert(row, Subject::Transit(vpc));
            }
        }
    }
}

/// The ways to what is behind the VPC's other routers, of which those on this host are `beside`.
pub(super) fn ways<'a>(
    desired: &Desired<'_>,
    router: &mut WantRouter,
    config: &RouterConfig,
    transit: Transit,
    beside: impl Iterator<Item = &'a RouterConfig>,
) -> BTreeMap<IpNet, Way> {
    let Some(device) = router.transit.clone() else {
        return BTreeMap::new();
    };
    let none = IpVrfForwarding::default();
    let learned = desired.forwarding.ip_vrfs.get(&transit.vni);
    let learned = learned.unwrap_or(&none);
    let mut by_router = learned.prefixes.clone();
    // Those on this host are not heard of, and are nearer.
    let others = beside;
    let mut beside: BTreeMap<IpNet, BTreeSet<MacAddr>> = BTreeMap::new();
    for other in others.filter(|other| other.id != config.id && !other.prepared) {
        let Some(there) = other.transit.filter(|other| other.vni == transit.vni) else {
            continue;
        };
        let hosts = nics_here(desired, other).map(|(_, address, _)| IpNet::from(address));
        for prefix in prefixes_of(other).map(|told| told.prefix).chain(hosts) {
            beside.entry(prefix).or_default().insert(there.mac);
        }
    }
    by_router.extend(beside);
    let mut own: BTreeSet<IpNet> = own_prefixes(config).collect();
    // While a NIC comes here its old host still announces it.
    own.extend(nics_here(desired, config).map(|(_, address, _)| IpNet::from(address)));
    let mut ways = BTreeMap::new();
    for (prefix, macs) in by_router {
        // Who has a way out of its own does not go out by another's.
        let out = prefix.prefix_len() == 0 && config.uplink.is_some();
        if out || own.contains(&prefix) {
            continue;
        }
        let macs: Vec<MacAddr> = macs.into_iter().filter(|mac| *mac != transit.mac).collect();
        if macs.is_empty() {
            continue;
        }
        let hops = macs.iter().map(|mac| Hop {
            device: device.clone(),
            gateway: Some(next_hop_of(*mac)),
        });
        let hops = hops.collect();
        ways.insert(prefix, Way::Hops { hops, source: None });
        router.next_hops.extend(macs.into_iter().map(|mac| NextHop {
            device: device.clone(),
            address: next_hop_of(mac),
            mac,
        }));
    }
    ways
}

/// Neighbours of a router that is for the NICs of its host alone: all that there are, by its legs. It
/// asks for none of them.
pub(super) fn nics_here<'a>(
    desired: &'a Desired<'_>,
    router: &'a RouterConfig,
) -> impl Iterator<Item = (SubnetId, IpAddr, MacAddr)> + 'a {
    let stacks = if router.anycast { desired.stacks } else { &[] };
    let stacks = stacks.iter().filter(|stack| stack.vpc == router.vpc);
    let ports = stacks.flat_map(|stack| stack.ports.iter().map(move |port| (stack, port)));
    let ports = ports.filter(|(stack, port)| {
        let has_leg = router.legs.iter().any(|leg| leg.subnet == port.subnet);
        let segment = stack.segment(port.subnet).filter(|_| has_leg);
        segment.is_some_and(|segment| is_here(stack, segment, port, desired.forwarding))
    });
    ports.flat_map(|(_, port)| {
        let addresses = port.addresses.iter();
        addresses.map(move |address| (port.subnet, *address, port.mac))
    })
}

/// Prefixes that the kernel has routes to by itself.
fn own_prefixes(config: &RouterConfig) -> impl Iterator<Item = IpNet> + '_ {
    let legs = config.legs.iter().flat_map(|leg| &leg.addresses);
    let outer = config
        .uplink
        .iter()
        .flat_map(|uplink| match &uplink.address {
            UplinkAddress::Static(addresses) => addresses.as_slice(),
            UplinkAddress::Dhcp => &[],
        });
    legs.chain(outer).map(IpNet::trunc)
}

/// What is not known to be a router's goes nowhere.
fn membership(vpc: VpcId) -> Membership {
    Membership {
        bridge: OwnedName::transit_bridge(vpc),
        flags: NIC_FLAGS,
        vlans: Some(BTreeMap::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::{router, subnet};
    use model::{StaticRoute, Uplink};

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn route(table: Option<SubnetId>, prefix: &str, via: &str) -> StaticRoute {
        StaticRoute {
            table,
            prefix: net(prefix),
            via: match via {
                "" => Via::Blackhole,
                gateway => Via::Address(gateway.parse().unwrap()),
            },
        }
    }

    #[test]
    fn others_are_told_of_what_is_behind_a_router_for_all() {
        let subnet = subnet(1);
        let mut router = router(1, &[(1, "10.4.1.1/24")]);
        router.legs[0].addresses.push(net("fd00:4:1::1/64"));
        router.uplink = Some(Uplink {
            bridge: "br-ext".parse().unwrap(),
            mac: MacAddr([2, 0, 0, 0, 0, 2]),
            address: UplinkAddress::Static(vec![net("192.0.2.10/24")]),
            gateways: vec!["192.0.2.1".parse().unwrap()],
            mtu: None,
        });
        router.routes = vec![
            route(None, "10.9.0.0/16", "10.4.1.9"),
            route(None, "fd00:9::/32", "fd00:4:1::9"),
            route(None, "10.8.0.0/16", "192.0.2.9"),
            // Nowhere, for one subnet only, not made: by nobody, or to a leg.
            route(None, "10.7.0.0/16", ""),
            route(Some(subnet), "10.6.0.0/16", "10.4.1.9"),
            route(None, "10.5.0.0/16", "172.16.0.1"),
            route(None, "10.4.1.0/24", "192.0.2.9"),
        ];
        let told = |router: &RouterConfig| -> Vec<(String, bool)> {
            let told = prefixes_of(router);
            told.map(|told| (told.prefix.to_string(), told.outside))
                .collect()
        };
        let expected = [
            ("10.4.1.0/24", false),
            ("fd00:4:1::/64", false),
            ("0.0.0.0/0", true),
            ("10.9.0.0/16", false),
            ("fd00:9::/32", false),
            ("10.8.0.0/16", true),
        ];
        let expected = expected.map(|(prefix, outside)| (prefix.to_owned(), outside));
        assert_eq!(told(&router), expected);

        // Without a way out it may have a default route by a neighbour, which needs none.
        router.uplink = None;
        router.routes = vec![
            route(None, "0.0.0.0/0", "10.4.1.9"),
            route(None, "10.8.0.0/16", "192.0.2.9"),
        ];
        let last = told(&router).pop();
        assert_eq!(last, Some(("0.0.0.0/0".to_owned(), false)));
    }
}
