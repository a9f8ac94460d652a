//! What a datapath is told: which TAP carries which broadcast domain, and what EVPN knows of each.
//!
//! Tables are compared, never patched blindly: whoever decides has [`Tables`] that should be and
//! [`Tables`] that are, and [`Tables::changes_to`] is all that is sent.

pub use model::UnknownNeighbours as Unknown;
use model::{IfName, MacAddr, Mtu, Tag, VlanId, Vni};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

/// A broadcast domain as it is on the wire: a VNI, and in a bundle the 802.1Q tag that its frames
/// have inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Domain {
    /// In the VXLAN header.
    pub vni: Vni,
    /// In the payload; none is untagged.
    pub tag: Tag,
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.tag {
            Some(tag) => f.pad(&format!("{} tag {tag}", self.vni)),
            None => f.pad(&self.vni.to_string()),
        }
    }
}

/// Where a broadcast domain is on the host: a TAP, and the tag that its frames have there.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Place {
    /// The TAP, a port of the bridge.
    pub tap: IfName,
    /// The VLAN of the bridge; none where frames are untagged.
    pub vlan: Option<VlanId>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.vlan {
            Some(vlan) => f.pad(&format!("{} VLAN {vlan}", self.tap)),
            None => f.pad(self.tap.as_str()),
        }
    }
}

/// What is at a [`Place`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Binding {
    /// The domain; of one place only.
    pub domain: Domain,
    /// The largest IP packet of the domain.
    pub mtu: Mtu,
    /// What becomes of a question for an address that nobody announced.
    pub unknown: Unknown,
}

/// Who has an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Neighbour {
    /// Its MAC.
    pub mac: MacAddr,
    /// An IPv6 router (RFC 9047, R).
    pub router: bool,
    /// On this host: it answers itself, and nobody elsewhere is asked.
    pub here: bool,
}

/// How much of what costs everybody is let through, by all workers of a host together. At once it may be twice as
/// much.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Limits {
    /// Questions for addresses from one port that are answered, a second.
    pub questions_per_s: u32,
    /// Broadcast and multicast frames of one domain that are sent to all, a second.
    pub flood_per_s: u32,
}

impl Limits {
    /// The most of either: more than a host can move.
    pub const MOST_PER_S: u32 = 10_000_000;
}

impl Default for Limits {
    /// A host that comes up asks for some hundred neighbours at once at most; who scans a subnet of 65,536
    /// addresses is to take its time. No healthy subnet floods so much, and it does not fill the underlay
    /// with a hundred hosts.
    fn default() -> Self {
        Self {
            questions_per_s: 200,
            flood_per_s: 10_000,
        }
    }
}

/// All that a datapath is told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tables {
    /// The underlay's address, which tunnel packets are sent from and taken at.
    pub local: Option<IpAddr>,
    /// What is let through.
    pub limits: Limits,
    /// Domains of this host.
    pub bindings: BTreeMap<Place, Binding>,
    /// Which VTEP a MAC is behind.
    pub macs: BTreeMap<(Domain, MacAddr), IpAddr>,
    /// VTEPs that get a domain's broadcast, unknown unicast and multicast.
    pub flood: BTreeSet<(Domain, IpAddr)>,
    /// Who has which address.
    pub neighbours: BTreeMap<(Domain, IpAddr), Neighbour>,
}

/// A row more, other or less.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[expect(
    missing_docs,
    reason = "each variant is documented; its fields are named for what they are"
)]
pub enum Change {
    /// The underlay's address is this; none stops the tunnel.
    SetLocal(Option<IpAddr>),
    /// So much is let through.
    SetLimits(Limits),
    /// A domain is at a place, instead of what was there.
    Bind { place: Place, binding: Binding },
    /// Nothing is at a place any more.
    Unbind { place: Place },
    /// A MAC is behind a VTEP, instead of where it was.
    SetMac {
        domain: Domain,
        mac: MacAddr,
        vtep: IpAddr,
    },
    /// A MAC is behind no VTEP.
    DeleteMac { domain: Domain, mac: MacAddr },
    /// A VTEP gets what is for all.
    AddFlood { domain: Domain, vtep: IpAddr },
    /// It does not any more.
    DeleteFlood { domain: Domain, vtep: IpAddr },
    /// An address is somebody's.
    SetNeighbour {
        domain: Domain,
        ip: IpAddr,
        neighbour: Neighbour,
    },
    /// It is nobody's.
    DeleteNeighbour { domain: Domain, ip: IpAddr },
}

impl Tables {
    /// The tables that changes make of nothing; how a dump is read.
    pub fn of(changes: impl IntoIterator<Item = Change>) -> Self {
        let mut tables = Self::default();
        for change in changes {
            tables.apply(&change);
        }
        tables
    }

    /// Takes a change in. What holds already changes nothing.
    pub fn apply(&mut self, change: &Change) {
        match change {
            Change::SetLocal(address) => self.local = *address,
            Change::SetLimits(limits) => self.limits = *limits,
            Change::Bind { place, binding } => {
                self.bindings.insert(place.clone(), *binding);
            }
            Change::Unbind { place } => {
                self.bindings.remove(place);
            }
            Change::SetMac { domain, mac, vtep } => {
                self.macs.insert((*domain, *mac), *vtep);
            }
            Change::DeleteMac { domain, mac } => {
                self.macs.remove(&(*domain, *mac));
            }
            Change::AddFlood { domain, vtep } => {
                self.flood.insert((*domain, *vtep));
            }
            Change::DeleteFlood { domain, vtep } => {
                self.flood.remove(&(*domain, *vtep));
            }
            Change::SetNeighbour {
                domain,
                ip,
                neighbour,
            } => {
                self.neighbours.insert((*domain, *ip), *neighbour);
            }
            Change::DeleteNeighbour { domain, ip } => {
                self.neighbours.remove(&(*domain, *ip));
            }
        }
    }

    /// What makes these tables into `wanted`: what goes first, then what comes, so that a domain is
    /// never at two places.
    pub fn changes_to(&self, wanted: &Tables) -> Vec<Change> {
        let mut changes = Vec::new();
        for place in self.bindings.keys() {
            if !wanted.bindings.contains_key(place) {
                changes.push(Change::Unbind {
                    place: place.clone(),
                });
            }
        }
        for (domain, ip) in self.neighbours.keys() {
            if !wanted.neighbours.contains_key(&(*domain, *ip)) {
                changes.push(Change::DeleteNeighbour {
                    domain: *domain,
                    ip: *ip,
                });
            }
        }
        for (domain, mac) in self.macs.keys() {
            if !wanted.macs.contains_key(&(*domain, *mac)) {
                changes.push(Change::DeleteMac {
                    domain: *domain,
                    mac: *mac,
                });
            }
        }
        for (domain, vtep) in self.flood.difference(&wanted.flood) {
            changes.push(Change::DeleteFlood {
                domain: *domain,
                vtep: *vtep,
            });
        }
        if self.local != wanted.local {
            changes.push(Change::SetLocal(wanted.local));
        }
        if self.limits != wanted.limits {
            changes.push(Change::SetLimits(wanted.limits));
        }
        for (place, binding) in &wanted.bindings {
            if self.bindings.get(place) != Some(binding) {
                changes.push(Change::Bind {
                    place: place.clone(),
                    binding: *binding,
                });
            }
        }
        for (domain, vtep) in wanted.flood.difference(&self.flood) {
            changes.push(Change::AddFlood {
                domain: *domain,
                vtep: *vtep,
            });
        }
        for ((domain, mac), vtep) in &wanted.macs {
            if self.macs.get(&(*domain, *mac)) != Some(vtep) {
                changes.push(Change::SetMac {
                    domain: *domain,
                    mac: *mac,
                    vtep: *vtep,
                });
            }
        }
        for ((domain, ip), neighbour) in &wanted.neighbours {
            if self.neighbours.get(&(*domain, *ip)) != Some(neighbour) {
                changes.push(Change::SetNeighbour {
                    domain: *domain,
                    ip: *ip,
                    neighbour: *neighbour,
                });
            }
        }
        changes
    }

    /// All that is in them, as what makes them of nothing.
    pub fn dump(&self) -> Vec<Change> {
        Self::default().changes_to(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn domain(n: u32) -> Domain {
        Domain {
            vni: Vni::new(n % 3 + 1).unwrap(),
            tag: (n % 2 == 1).then(|| VlanId::new(7).unwrap()),
        }
    }

    fn change() -> impl Strategy<Value = Change> {
        let ip = |n: u8| IpAddr::from([10, 0, 0, n % 4]);
        let mac = |n: u8| MacAddr([2, 0, 0, 0, 0, n % 4]);
        let place = |n: u8| Place {
            tap: IfName::new(format!("t-{}", n % 3)).unwrap(),
            vlan: None,
        };
        (0..10_u8, any::<u8>(), any::<u8>(), any::<u32>()).prop_map(move |(kind, a, b, d)| {
            let domain = domain(d);
            match kind {
                0 => Change::SetLocal((a % 2 == 0).then(|| ip(b))),
                1 => Change::Bind {
                    place: place(a),
                    binding: Binding {
                        domain,
                        mtu: Mtu::new(1400 + u32::from(b % 2)).unwrap(),
                        unknown: Unknown::Flood,
                    },
                },
                2 => Change::Unbind { place: place(a) },
                3 => Change::SetMac {
                    domain,
                    mac: mac(a),
                    vtep: ip(b),
                },
                4 => Change::DeleteMac {
                    domain,
                    mac: mac(a),
                },
                5 => Change::AddFlood {
                    domain,
                    vtep: ip(a),
                },
                6 => Change::DeleteFlood {
                    domain,
                    vtep: ip(a),
                },
                7 => Change::SetNeighbour {
                    domain,
                    ip: ip(a),
                    neighbour: Neighbour {
                        mac: mac(b),
                        router: b % 2 == 0,
                        here: b % 3 == 0,
                    },
                },
                8 => Change::SetLimits(Limits {
                    questions_per_s: u32::from(a % 2),
                    flood_per_s: u32::from(b % 2),
                }),
                _ => Change::DeleteNeighbour { domain, ip: ip(a) },
            }
        })
    }

    proptest! {
        #[test]
        fn the_difference_makes_one_the_other(
            a in prop::collection::vec(change(), 0..40),
            b in prop::collection::vec(change(), 0..40),
        ) {
            let (mut from, to) = (Tables::of(a), Tables::of(b));
            for change in from.changes_to(&to) {
                from.apply(&change);
            }
            prop_assert_eq!(&from, &to);
            prop_assert_eq!(from.changes_to(&to), vec![]);
            prop_assert_eq!(Tables::of(to.dump()), to);
        }
    }
}
