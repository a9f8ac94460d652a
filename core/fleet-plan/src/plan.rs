//! Intent + inventory -> what one host has to make true.

use crate::Intent;
use model::{
    BgpConfig, Encoding, Generation, HostConfig, HostId, MovePhase, Nic, ObjectId, Placement, Port,
    PortRole, Reflector, Segment, Stack, Subnet, SubnetId, Underlay, Vpc, VpcId,
};
use std::collections::BTreeMap;

/// A host's configuration that has no generation yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draft(HostConfig);

impl Draft {
    /// The configuration, as the given generation of it.
    pub fn issue(self, generation: Generation) -> HostConfig {
        HostConfig {
            generation,
            ..self.0
        }
    }

    /// True if `issued` says the same.
    pub fn says(&self, issued: &HostConfig) -> bool {
        let HostConfig {
            host,
            generation: _,
            underlay,
            bgp,
            stacks,
            routers,
        } = issued;
        self.0.host == *host
            && self.0.underlay == *underlay
            && self.0.bgp == *bgp
            && self.0.stacks == *stacks
            && self.0.routers == *routers
    }

    /// Without a generation (it is 0).
    pub(crate) fn config(&self) -> &HostConfig {
        &self.0
    }
}

/// What `host` has to make true; none if it is no host of this cluster. Only subnets with a NIC
/// on the host are in it. Same inputs, same draft.
pub fn plan(intent: &Intent, host: HostId, reflectors: &[Reflector]) -> Option<Draft> {
    let inventory = intent.host(host)?;
    let mut parts: BTreeMap<VpcId, Parts<'_>> = BTreeMap::new();
    for nic in intent.nics_of_host(host) {
        let subnet = intent
            .subnet(nic.subnet)
            .expect("the subnet of a NIC exists: its deletion is refused");
        let part = parts.entry(subnet.vpc).or_default();
        part.subnets.insert(subnet.id, subnet);
        part.nics.push(nic);
    }
    let stacks = parts
        .into_iter()
        .map(|(id, part)| {
            let vpc = intent
                .vpc(id)
                .expect("the VPC of a subnet exists: its deletion is refused");
            stack(intent, host, vpc, &part)
        })
        .collect();
    Some(Draft(HostConfig {
        host,
        generation: Generation(0),
        underlay: Underlay {
            address: inventory.underlay,
            mtu: intent.cluster().underlay_mtu,
        },
        bgp: BgpConfig {
            asn: intent.cluster().asn,
            reflectors: reflectors.to_vec(),
            speaker: inventory.speaker,
        },
        stacks,
        routers: Vec::new(),
    }))
}

/// The part of a VPC that is on one host, in order of id.
#[derive(Default)]
struct Parts<'a> {
    subnets: BTreeMap<SubnetId, &'a Subnet>,
    nics: Vec<&'a Nic>,
}

fn stack(intent: &Intent, host: HostId, vpc: &Vpc, parts: &Parts<'_>) -> Stack {
    Stack {
        vpc: vpc.id,
        name: intent.path(ObjectId::Vpc(vpc.id)),
        vni: vpc.vni,
        encoding: vpc.encoding,
        segments: parts
            .subnets
            .values()
            .map(|subnet| segment(vpc, subnet))
            .collect(),
        ports: parts
            .nics
            .iter()
            .map(|nic| port(host, vpc, parts.subnets[&nic.subnet], nic))
            .collect(),
    }
}

fn segment(vpc: &Vpc, subnet: &Subnet) -> Segment {
    Segment {
        subnet: subnet.id,
        name: format!("{}/{}", vpc.name, subnet.name),
        vlan: subnet.vlan,
        vni: match vpc.encoding {
            Encoding::VlanBased => subnet.vni,
            Encoding::VlanAwareBundle => vpc.vni,
        },
        mtu: subnet.mtu,
        v4: subnet.v4,
        v6: subnet.v6,
        options: subnet.options.clone(),
        gateway: None,
    }
}

fn port(host: HostId, vpc: &Vpc, subnet: &Subnet, nic: &Nic) -> Port {
    let (placement, role, sequence) = seat(host, nic);
    Port {
        nic: nic.id,
        name: format!("{}/{}/{}", vpc.name, subnet.name, nic.name),
        subnet: subnet.id,
        mac: nic.mac,
        addresses: nic.addresses.clone(),
        attachment: placement.attachment.clone(),
        role,
        sequence,
    }
}

/// What a NIC is on one of its hosts.
fn seat(host: HostId, nic: &Nic) -> (&Placement, PortRole, u32) {
    match &nic.moving {
        Some(m) if nic.placement.host != host => match m.phase {
            MovePhase::Provision => (&m.other, PortRole::Standby, nic.moves),
            // In use on the host that it leaves, with the sequence from before the switch: it loses
            // to the new host when it hears of it, and not a moment earlier.
            MovePhase::Switch | MovePhase::Retire => {
                (&m.other, PortRole::Leaving, nic.moves.saturating_sub(1))
            }
        },
        Some(m) if m.phase != MovePhase::Provision => {
            (&nic.placement, PortRole::Arrived, nic.moves)
        }
        _ => (&nic.placement, PortRole::Settled, nic.moves),
    }
}
