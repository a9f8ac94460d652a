//! What FRR announces of this host, against what it is to announce.

use crate::config::{Macs, Wanted};
use crate::show::RunningInstance;
use model::{MacAddr, Vni};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

/// What zebra and bgpd have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Announced {
    /// VNIs that zebra has, with their devices.
    pub zebra: BTreeMap<Vni, String>,
    /// Instances that bgpd has.
    pub bgpd: BTreeMap<Vni, RunningInstance>,
    /// What bgpd announces of each wanted instance.
    pub macs: BTreeMap<Vni, Macs>,
}

/// Something that is announced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Route {
    /// That the instance is here (type 3), and all of its MACs.
    Instance(Vni),
    /// A MAC (type 2).
    Mac(Vni, MacAddr),
    /// A MAC with an address of its (type 2).
    Address(Vni, MacAddr, IpAddr),
}

/// What of it is not as it should be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Differences {
    /// Not announced.
    pub missing: BTreeSet<Route>,
    /// Announced, and not here.
    pub stale: BTreeSet<Route>,
}

impl Differences {
    /// True if all is as it should be.
    pub fn is_empty(&self) -> bool {
        self.missing.is_empty() && self.stale.is_empty()
    }
}

impl Wanted {
    /// Compares. A change takes FRR a moment, so a difference means something only if it stays.
    ///
    /// zebra hears of the kernel by notifications, and does not ask again when it lost some; bgpd
    /// hears of MACs by zebra's messages, and forgets none when zebra is started again.
    pub fn differences(&self, found: &Announced) -> Differences {
        let mut differences = Differences::default();
        for vni in found.bgpd.iter().filter(|(_, instance)| instance.in_kernel) {
            let vni = *vni.0;
            // One whose device is about to go is zebra's to tell of.
            if !self.instances.contains_key(&vni) && !found.zebra.contains_key(&vni) {
                differences.stale.insert(Route::Instance(vni));
            }
        }
        let here = |vni: &Vni| {
            found.zebra.contains_key(vni) && found.bgpd.get(vni).is_some_and(|i| i.in_kernel)
        };
        let none = Macs::new();
        for vni in self.instances.keys() {
            let Some(wanted) = self.announced.get(vni) else {
                continue;
            };
            if !here(vni) {
                differences.missing.insert(Route::Instance(*vni));
                continue;
            }
            let has = found.macs.get(vni).unwrap_or(&none);
            let mut all: BTreeSet<&MacAddr> = wanted.keys().chain(has.keys()).collect();
            all.retain(|mac| !self.contested.contains(&(*vni, **mac)));
            for mac in all {
                let (want, has) = (routes(*vni, *mac, wanted), routes(*vni, *mac, has));
                differences.missing.extend(want.difference(&has));
                differences.stale.extend(has.difference(&want));
            }
        }
        differences
    }
}

/// The routes of one MAC.
fn routes(vni: Vni, mac: MacAddr, macs: &Macs) -> BTreeSet<Route> {
    let addresses = macs.get(&mac);
    let of_mac = addresses.map(|_| Route::Mac(vni, mac));
    let with = addresses.into_iter().flatten();
    let with = with.map(|ip| Route::Address(vni, mac, *ip));
    of_mac.into_iter().chain(with).collect()
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Instance(vni) => write!(f, "VNI {vni}"),
            Self::Mac(vni, mac) => write!(f, "{mac} of VNI {vni}"),
            Self::Address(vni, mac, ip) => write!(f, "{mac} with {ip} of VNI {vni}"),
        }
    }
}

impl fmt::Display for Differences {
    /// The first few, for a log or a condition.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lists = [
            ("does not announce", &self.missing),
            ("announces", &self.stale),
        ];
        let lists = lists.iter().filter(|(_, routes)| !routes.is_empty());
        for (number, (what, routes)) in lists.enumerate() {
            if number > 0 {
                f.write_str("; ")?;
            }
            let first: Vec<String> = routes.iter().take(3).map(ToString::to_string).collect();
            write!(f, "{what} {}", first.join(", "))?;
            if routes.len() > first.len() {
                write!(f, " and {} more", routes.len() - first.len())?;
            }
        }
        Ok(())
    }
}
