//! What a router has to know of its VPC's names.

use crate::Intent;
use model::{HostId, NamedNic, NamedSubnet, Nic, Router, Subnet, Vpc, VpcNames};

/// What a router is told.
pub(crate) fn of_router(intent: &Intent, vpc: &Vpc, router: &Router) -> VpcNames {
    let has_leg = |nic: &Nic| router.legs.iter().any(|leg| leg.subnet == nic.subnet);
    of(intent, vpc, has_leg)
}

/// What a VPC's gateway on a host is told.
pub(crate) fn of_gateway(intent: &Intent, vpc: &Vpc, host: HostId) -> VpcNames {
    of(intent, vpc, |nic| nic.seats().any(|seat| seat.host == host))
}

/// Of all subnets with a NIC. User data is told only where the NIC can ask.
fn of(intent: &Intent, vpc: &Vpc, can_ask: impl Fn(&Nic) -> bool) -> VpcNames {
    let subnet = |subnet: &Subnet| {
        let nics = intent.nics_of_subnet(subnet.id);
        NamedSubnet {
            subnet: subnet.id,
            name: subnet.name.clone(),
            dhcp: subnet.options.dhcp,
            nics: nics
                .map(|nic| NamedNic {
                    nic: nic.id,
                    name: nic.name.clone(),
                    mac: nic.mac,
                    addresses: nic.addresses.clone(),
                    user_data: nic.user_data.clone().filter(|_| can_ask(nic)),
                })
                .collect(),
        }
    };
    let subnets = intent.subnets_of(vpc.id).map(subnet);
    VpcNames {
        vpc: Some(vpc.name.clone()),
        prefixes: vpc.cidrs.clone(),
        subnets: subnets.filter(|subnet| !subnet.nics.is_empty()).collect(),
    }
}
