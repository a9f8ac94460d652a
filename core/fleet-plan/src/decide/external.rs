//! External networks: their prefixes, gateways and pools, and what of them is handed out.

use super::{Work, limits};
use crate::intent::{PoolKey, Scope, missing, public_number};
use crate::{CreateExternal, Outside, Refusal, Resource};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use model::{
    AddressRange, ExternalNetwork, ExternalNetworkId, Kind, Object, ObjectId, canonical_cidr,
};
use std::net::{IpAddr, Ipv6Addr};

impl<'a> Work<'a> {
    pub(super) fn create_external(&mut self, create: CreateExternal) -> Result<Object, Refusal> {
        self.check_name(Kind::External, Scope::Externals, &create.name)?;
        let name = create.name.to_string();
        let bad = |reason: String| Refusal::External {
            name: name.clone(),
            reason,
        };
        let (v4, v6) = families(&create.cidrs).map_err(bad)?;
        for cidr in &create.cidrs {
            canonical_cidr(&cidr.to_string())?;
        }
        check_own_name(create.bridge.as_str()).map_err(bad)?;
        if create.dhcp {
            no_prefix_for_dhcp(v4, v6).map_err(bad)?;
        }
        let network = ExternalNetwork {
            id: self.draw(ExternalNetworkId::from_random, ObjectId::External),
            name: create.name,
            bridge: create.bridge,
            v4,
            v6,
            gateways: create.gateways,
            pools: create.pools,
            dhcp: create.dhcp,
            mtu: create.mtu,
            meta: self.new_meta(create.labels)?,
        };
        if v4.is_none() && v6.is_none() && !create.dhcp {
            return Err(bad(
                "it has no prefix: give one as in --cidr 198.51.100.0/24, or --dhcp".to_owned(),
            ));
        }
        check_parts(&network).map_err(bad)?;
        Ok(self.put(Object::External(network)))
    }

    pub(super) fn outside(&self, asked: Outside) -> Result<&'a ExternalNetwork, Refusal> {
        match asked {
            Outside::Network(id) => self
                .intent
                .external(id)
                .ok_or_else(|| missing(ObjectId::External(id))),
            Outside::Only => {
                let mut all: Vec<&ExternalNetwork> = self.intent.externals().collect();
                all.sort_by_key(|network| &network.name);
                let which = |reason| Err(Refusal::WhichExternal { reason });
                match all.as_slice() {
                    [] => which(
                        "there is none: an administrator makes one with vpc external create"
                            .to_owned(),
                    ),
                    [only] => Ok(only),
                    several => {
                        let names: Vec<&str> = several.iter().map(|n| n.name.as_str()).collect();
                        which(format!("there are {}: name one", names.join(", ")))
                    }
                }
            }
        }
    }

    /// The lowest free address of a family in a network's pools, in the order of the pools.
    pub(super) fn free_public(
        &self,
        network: &ExternalNetwork,
        v6: bool,
    ) -> Result<IpAddr, Refusal> {
        let key = PoolKey::Public(network.id);
        let mut pools = network
            .pools
            .iter()
            .filter(|pool| pool.first().is_ipv6() == v6);
        let found = pools.clone().find_map(|pool| {
            let (first, last) = (public_number(pool.first()), public_number(pool.last()));
            self.lowest_free(key, first, last)
        });
        if let Some(number) = found {
            return Ok(Ipv6Addr::from(number).to_canonical());
        }
        let family = if v6 { "IPv6" } else { "IPv4" };
        let Some(first) = pools.next() else {
            return Err(Refusal::External {
                name: network.name.to_string(),
                reason: format!(
                    "it is used for an {family} address, and has no {family} pool: use another network, or one made with a pool"
                ),
            });
        };
        Err(self.exhausted(
            key,
            (public_number(first.first()), public_number(first.last())),
            format!("the {family} pools of external network {}", network.name),
            "delete public addresses or uplinks that nobody uses, or make another external network",
        ))
    }

    pub(super) fn check_public(
        &self,
        network: &ExternalNetwork,
        address: IpAddr,
    ) -> Result<(), Refusal> {
        if !network.pools.iter().any(|pool| pool.contains(address)) {
            return Err(Refusal::NotInPool {
                address,
                network: network.name.to_string(),
                pools: network.pools.clone(),
            });
        }
        self.check_free(Resource::Public(network.id, address))
    }
}

fn families(cidrs: &[IpNet]) -> Result<(Option<Ipv4Net>, Option<Ipv6Net>), String> {
    let (mut v4, mut v6) = (None, None);
    for cidr in cidrs {
        let second = match cidr {
            IpNet::V4(net) => v4.replace(*net).map(IpNet::V4),
            IpNet::V6(net) => v6.replace(*net).map(IpNet::V6),
        };
        if let Some(first) = second {
            return Err(format!(
                "{first} and {cidr} are of one family: it has one IPv4 and one IPv6 prefix at most"
            ));
        }
    }
    Ok((v4, v6))
}

/// The bridge is the operator's; names of our own would be taken for ours and removed.
fn check_own_name(bridge: &str) -> Result<(), String> {
    if bridge == "lo" {
        return Err("lo is no bridge: name the bridge that leads outside".to_owned());
    }
    if super::nic::is_own_name(bridge) {
        return Err(format!(
            "bridge {bridge} has a name that belongs to the agent (b- t- n- r- rx- s- u- w-): rename it"
        ));
    }
    Ok(())
}

fn check_parts(network: &ExternalNetwork) -> Result<(), String> {
    let prefixes: Vec<String> = network.prefixes().map(|p| p.to_string()).collect();
    let prefixes = prefixes.join(", ");
    for (count, what) in [
        (network.gateways.len(), "gateways"),
        (network.pools.len(), "pools"),
    ] {
        if count > limits::EXTERNAL_PARTS {
            let most = limits::EXTERNAL_PARTS;
            return Err(format!(
                "it would have {count} {what}, the limit is {most}: use fewer"
            ));
        }
    }
    for gateway in &network.gateways {
        // A router in the same link is often known by its link-local address (RFC 4861 §8).
        let link_local = matches!(gateway, IpAddr::V6(a) if a.is_unicast_link_local());
        if link_local && network.v6.is_some() {
            continue;
        }
        if !network
            .prefix_of(*gateway)
            .is_some_and(|p| is_host(p, *gateway))
        {
            return Err(format!(
                "gateway {gateway} is no host's address inside {prefixes}: give one that is"
            ));
        }
        if let Some(pool) = network.pools.iter().find(|pool| pool.contains(*gateway)) {
            return Err(format!(
                "gateway {gateway} is in pool {pool}, and would be handed out: leave it out of the pool"
            ));
        }
    }
    for (index, pool) in network.pools.iter().enumerate() {
        let inside = |address| {
            network
                .prefix_of(address)
                .is_some_and(|p| is_host(p, address))
        };
        if !inside(pool.first()) || !inside(pool.last()) {
            return Err(format!(
                "pool {pool} is not all hosts' addresses inside {prefixes}: give one that is"
            ));
        }
        if let Some(other) = network.pools[..index].iter().find(|o| o.overlaps(pool)) {
            return Err(format!(
                "pools {other} and {pool} overlap: give each address once"
            ));
        }
    }
    no_pool_for_dhcp(network)
}

/// An uplink has either addresses of the planner's or one of the server's (`UplinkAddress`).
fn no_prefix_for_dhcp(v4: Option<Ipv4Net>, v6: Option<Ipv6Net>) -> Result<(), String> {
    if v4.is_some() {
        return Err(
            "with --dhcp its IPv4 prefix is the DHCP server's to tell: leave the prefix out"
                .to_owned(),
        );
    }
    match v6 {
        Some(prefix) => Err(format!(
            "with --dhcp routers have an IPv4 address there and no IPv6: leave {prefix} out, or give \
             both prefixes with pools in place of --dhcp"
        )),
        None => Ok(()),
    }
}

fn no_pool_for_dhcp(network: &ExternalNetwork) -> Result<(), String> {
    let v4: Option<&AddressRange> = network.pools.iter().find(|pool| pool.first().is_ipv4());
    match v4 {
        Some(pool) if network.dhcp => Err(format!(
            "pool {pool} would be handed out beside the DHCP server: leave it or --dhcp out"
        )),
        _ => Ok(()),
    }
}

/// Not the network's own address, nor its broadcast address.
fn is_host(prefix: IpNet, address: IpAddr) -> bool {
    match prefix {
        IpNet::V4(net) if net.prefix_len() < 31 => {
            address != prefix.network() && address != prefix.broadcast()
        }
        IpNet::V4(_) => true,
        IpNet::V6(net) => net.prefix_len() > 126 || address != prefix.network(),
    }
}
