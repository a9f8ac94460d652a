//! What an instance of FRR is to do that reflects for the hosts of a cluster.

use crate::config::{Duplicates, Neighbour, Role, Wanted};
use model::{Asn, Secret};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

impl Wanted {
    /// A reflector without clients. Its cluster (RFC 4456 §7) is of its own, so that two reflectors
    /// with the same clients take each other's routes.
    pub fn reflector(router_id: Ipv4Addr, local: IpAddr, asn: Asn) -> Self {
        Self {
            role: Role::Reflector {
                cluster_id: router_id,
            },
            router_id,
            asn,
            local,
            neighbours: BTreeMap::new(),
            listener: None,
            instances: BTreeMap::new(),
            announced: BTreeMap::new(),
            contested: BTreeSet::new(),
            duplicates: Duplicates::default(),
        }
    }

    /// The hosts that it reflects for, all of them.
    pub fn set_clients(&mut self, hosts: &BTreeSet<IpAddr>, password: Option<&Secret>) {
        let client = Neighbour {
            port: 179,
            password: password.cloned(),
            gtsm: true,
            client: true,
        };
        self.neighbours = hosts.iter().map(|host| (*host, client.clone())).collect();
    }
}
