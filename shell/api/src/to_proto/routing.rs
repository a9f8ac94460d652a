//! Networks outside.

use super::text;
use crate::v1;
use model::ExternalNetwork;

/// An external network.
pub fn external(network: &ExternalNetwork) -> v1::ExternalNetwork {
    v1::ExternalNetwork {
        id: network.id.to_string(),
        name: network.name.to_string(),
        bridge: network.bridge.to_string(),
        ipv4_cidr: text(&network.v4),
        ipv6_cidr: text(&network.v6),
        gateways: network.gateways.iter().map(ToString::to_string).collect(),
        pools: network.pools.iter().map(ToString::to_string).collect(),
        dhcp: network.dhcp,
        mtu: network.mtu.map_or(0, |mtu| mtu.get().into()),
        meta: Some((&network.meta).into()),
    }
}
