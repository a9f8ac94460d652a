//! What unit tests begin with: a host, a VPC, its subnets, a router.

use model::{
    Asn, BgpConfig, Encoding, Generation, HostConfig, HostId, MacAddr, Mtu, RouterConfig, RouterId,
    RouterLeg, Segment, Stack, SubnetId, Underlay, VlanId, Vni, VpcId,
};
use std::sync::Arc;

pub(crate) fn underlay() -> Underlay {
    Underlay {
        address: [100, 64, 0, 1].into(),
        mtu: Mtu::new(1500).unwrap(),
    }
}

pub(crate) fn subnet(number: u8) -> SubnetId {
    SubnetId::from_random(number.into())
}

/// `blue/sN` with the prefix 10.4.N.0/24.
pub(crate) fn segment(number: u8) -> Segment {
    Segment {
        subnet: subnet(number),
        name: format!("blue/s{number}"),
        vlan: VlanId::new(number.into()).unwrap(),
        vni: Vni::new(100 + u32::from(number)).unwrap(),
        mtu: Mtu::new(1450).unwrap(),
        v4: format!("10.4.{number}.0/24").parse().ok(),
        v6: None,
        options: Default::default(),
        gateway: None,
    }
}

/// VPC `blue`.
pub(crate) fn stack(segments: Vec<Segment>) -> Stack {
    Stack {
        vpc: VpcId::from_random(1),
        name: "blue".to_owned(),
        vni: Vni::new(100).unwrap(),
        encoding: Encoding::VlanBased,
        unknown_neighbours: Default::default(),
        segments,
        ports: Vec::new(),
    }
}

/// `blue/rN` of that VPC, with these legs and nothing else.
pub(crate) fn router(number: u64, legs: &[(u8, &str)]) -> RouterConfig {
    let leg = |(number, address): &(u8, &str)| RouterLeg {
        subnet: subnet(*number),
        mac: MacAddr([2, 0, 0, 0, 0, *number]),
        addresses: vec![address.parse().unwrap()],
        mtu: Mtu::new(1450).unwrap(),
    };
    RouterConfig {
        id: RouterId::from_random(number),
        vpc: VpcId::from_random(1),
        name: format!("blue/r{number}"),
        legs: legs.iter().map(leg).collect(),
        uplink: None,
        routes: Vec::new(),
        nat: Default::default(),
        names: Default::default(),
        transit: None,
        anycast: false,
        inner: Vec::new(),
        prepared: false,
        standby: None,
        epoch: 0,
    }
}

/// The first generation of what a server wants of the host.
pub(crate) fn config_of(stacks: Vec<Stack>, routers: Vec<RouterConfig>) -> HostConfig {
    HostConfig {
        host: HostId::from_random(1),
        generation: Generation(1),
        underlay: underlay(),
        bgp: BgpConfig {
            asn: Asn::new(65_000).unwrap(),
            reflectors: Vec::new(),
            speaker: Default::default(),
        },
        stacks: stacks.into_iter().map(Arc::new).collect(),
        routers: routers.into_iter().map(Arc::new).collect(),
        voting: None,
        members: Default::default(),
        standby_for: Default::default(),
        storage: Default::default(),
    }
}
