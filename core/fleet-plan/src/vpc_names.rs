//! What a router has to know of its VPC's names.

use crate::Intent;
use model::{NamedNic, NamedSubnet, Router, Subnet, Vpc, VpcNames};

/// Of all subnets with a NIC. User data is told to one router only, the one that the NIC can ask.
pub(crate) fn of_router(intent: &Intent, vpc: &Vpc, router: &Router) -> VpcNames {
    let subnet = |subnet: &Subnet| {
        let has_leg = router.legs.iter().any(|leg| leg.subnet == subnet.id);
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
                    user_data: nic.user_data.clone().filter(|_| has_leg),
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
