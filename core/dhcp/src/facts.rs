//! What is known of a port, all that answers are made of.

use ipnet::{Ipv4Net, Ipv6Net};
use model::{MacAddr, Mtu, NicId, Port, Segment, SubnetId, SubnetOptions};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What is known of a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Its NIC.
    pub nic: NicId,
    /// The NIC's MAC.
    pub mac: MacAddr,
    /// Its subnet.
    pub subnet: SubnetId,
    /// The largest packet that the subnet carries everywhere.
    pub mtu: Mtu,
    /// The source of the server's frames: the router's MAC if there is one, so that neither is ever
    /// taken for the other's impostor.
    pub server_mac: MacAddr,
    /// The NIC's IPv4 address and its subnet's.
    pub v4: Option<V4>,
    /// The same of IPv6; none in a subnet without.
    pub v6: Option<V6>,
    /// What NICs of the subnet are told.
    pub options: SubnetOptions,
}

/// IPv4 of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct V4 {
    /// The NIC's address and the subnet's prefix length.
    pub address: Ipv4Net,
    /// The server's address: the one that the subnet's router has or will have, which no NIC gets.
    pub server: Ipv4Addr,
    /// The way out of the subnet, if there is one.
    pub router: Option<Ipv4Addr>,
}

/// IPv6 of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct V6 {
    /// The NIC's address, if it has one.
    pub address: Option<Ipv6Addr>,
    /// The subnet's prefix.
    pub net: Ipv6Net,
    /// True if a router has an address in it.
    pub router: bool,
}

impl Facts {
    /// Those of a port; none if its subnet's DHCP is off.
    pub fn of(segment: &Segment, port: &Port) -> Option<Self> {
        if !segment.options.dhcp {
            return None;
        }
        let gateway = segment.gateway.as_ref();
        let router = router(segment);
        let v4 = segment.v4.and_then(|net| {
            let address = port.addresses.iter().find_map(|address| match address {
                IpAddr::V4(ip) if net.contains(ip) => Some(*ip),
                _ => None,
            })?;
            Some(V4 {
                address: Ipv4Net::new(address, net.prefix_len()).ok()?,
                server: router.unwrap_or_else(|| first(net)),
                router,
            })
        });
        let v6 = segment.v6.map(|net| V6 {
            address: port.addresses.iter().find_map(|address| match address {
                IpAddr::V6(ip) if net.contains(ip) => Some(*ip),
                _ => None,
            }),
            net,
            router: gateway.is_some_and(|g| g.addresses.iter().any(IpAddr::is_ipv6)),
        });
        Some(Self {
            nic: port.nic,
            mac: port.mac,
            subnet: segment.subnet,
            mtu: segment.mtu,
            server_mac: gateway.map_or_else(|| server_mac(segment.subnet), |gateway| gateway.mac),
            v4,
            v6,
            options: told(segment),
        })
    }

    /// The address that clients look for with ARP although no router answers: theirs to renew at.
    pub fn resolves(&self) -> Option<Ipv4Addr> {
        self.v4.filter(|v4| v4.router.is_none()).map(|v4| v4.server)
    }
}

/// Where nothing is said of resolvers, the router is one.
fn told(segment: &Segment) -> SubnetOptions {
    let mut options = segment.options.clone();
    if let Some(gateway) = segment.gateway.as_ref().filter(|_| options.dns.is_empty()) {
        options.dns.clone_from(&gateway.addresses);
    }
    options
}

/// The address of a server that no router has, so that the host answers for it: clients renew there.
/// None if there is a router, or no IPv4.
pub fn lone_server(segment: &Segment) -> Option<Ipv4Addr> {
    match router(segment) {
        Some(_) => None,
        None => segment.v4.map(first),
    }
}

fn router(segment: &Segment) -> Option<Ipv4Addr> {
    let addresses = segment
        .gateway
        .iter()
        .flat_map(|gateway| &gateway.addresses);
    addresses.copied().find_map(|address| match address {
        IpAddr::V4(ip) => Some(ip),
        IpAddr::V6(_) => None,
    })
}

/// The gateway's address, which the planner keeps for it.
fn first(net: Ipv4Net) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(net.network()).saturating_add(1))
}

/// Of a subnet without a router: locally administered, and the same on every host.
fn server_mac(subnet: SubnetId) -> MacAddr {
    let b = subnet.bits().to_be_bytes();
    MacAddr([0x12, b[3], b[4], b[5], b[6], b[7]])
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{Attachment, Gateway, PortRole, VlanId, Vni};

    #[test]
    fn the_router_is_the_resolver_where_nothing_is_said() {
        let subnet = SubnetId::from_random(1);
        let mut segment = Segment {
            subnet,
            name: "blue/web".to_owned(),
            vlan: VlanId::new(2).unwrap(),
            vni: Vni::new(3).unwrap(),
            mtu: Mtu::new(1450).unwrap(),
            v4: Some("10.4.1.0/24".parse().unwrap()),
            v6: None,
            options: SubnetOptions::default(),
            gateway: None,
        };
        let port = Port {
            nic: NicId::from_random(4),
            name: "blue/web/a1".to_owned(),
            subnet,
            mac: "02:00:00:00:00:01".parse().unwrap(),
            addresses: vec!["10.4.1.5".parse().unwrap()],
            behind: Vec::new(),
            attachment: Attachment::Tap,
            role: PortRole::Settled,
            sequence: 0,
        };
        let dns = |segment: &Segment| Facts::of(segment, &port).unwrap().options.dns;
        assert_eq!(dns(&segment), [] as [IpAddr; 0]);
        let gateway: IpAddr = "10.4.1.1".parse().unwrap();
        segment.gateway = Some(Gateway {
            mac: "02:00:00:00:00:09".parse().unwrap(),
            addresses: vec![gateway],
        });
        assert_eq!(dns(&segment), [gateway]);
        let own: IpAddr = "10.4.1.53".parse().unwrap();
        segment.options.dns = vec![own];
        assert_eq!(dns(&segment), [own]);
    }
}
