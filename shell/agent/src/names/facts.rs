//! Who may ask a router, and what it knows.

use super::Endpoint;
use dns::Zone;
use ipnet::IpNet;
use model::{NamedNic, NamedSubnet, NicId, RouterConfig, RouterLeg, SubnetId};
use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

/// What one router knows of its VPC.
pub(super) struct Facts {
    router: Arc<RouterConfig>,
    pub(super) zone: Zone,
    /// By each address that a NIC's port lets out: places of a subnet and of a NIC in it.
    who: HashMap<IpAddr, (usize, usize)>,
}

/// Who asks.
#[derive(Clone, Copy)]
pub(super) struct Asker<'a> {
    pub(super) subnet: &'a NamedSubnet,
    pub(super) nic: &'a NamedNic,
}

impl Facts {
    pub(super) fn of(router: &Arc<RouterConfig>) -> Self {
        let names = &router.names;
        let mut who = HashMap::new();
        for (s, subnet) in names.subnets.iter().enumerate() {
            for (n, nic) in subnet.nics.iter().enumerate() {
                let link_local = IpAddr::V6(nic.mac.link_local());
                for address in nic.addresses.iter().copied().chain([link_local]) {
                    who.insert(address, (s, n));
                }
            }
        }
        Self {
            router: Arc::clone(router),
            zone: Zone::of(names),
            who,
        }
    }

    pub(super) const fn router(&self) -> &Arc<RouterConfig> {
        &self.router
    }

    /// Whose address it is. A port lets no other out, and the router's rules nothing in by a leg that is
    /// not the way back.
    pub(super) fn asker(&self, address: IpAddr) -> Option<Asker<'_>> {
        let (s, n) = *self.who.get(&address)?;
        let subnet = self.router().names.subnets.get(s)?;
        let nic = subnet.nics.get(n)?;
        Some(Asker { subnet, nic })
    }

    /// The NIC that asks in a subnet.
    pub(super) fn nic_in(&self, subnet: SubnetId, address: IpAddr) -> Option<NicId> {
        let asker = self.asker(address)?;
        (asker.subnet.subnet == subnet).then_some(asker.nic.nic)
    }

    /// The router's leg in a subnet.
    pub(super) fn leg(&self, subnet: SubnetId) -> Option<&RouterLeg> {
        self.router().legs.iter().find(|leg| leg.subnet == subnet)
    }

    /// Where the router listens.
    pub(super) fn endpoints(&self) -> BTreeSet<Endpoint> {
        let mut endpoints = BTreeSet::new();
        for leg in &self.router().legs {
            let addresses = leg.addresses.iter().map(IpNet::addr);
            endpoints.extend(addresses.map(|ip| Endpoint::Names(leg.subnet, ip)));
            let metadata = host_plan::metadata_addresses(leg);
            endpoints.extend(metadata.into_iter().map(Endpoint::Metadata));
        }
        endpoints
    }
}
