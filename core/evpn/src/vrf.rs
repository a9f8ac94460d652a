//! MAC-VRFs: which routes each instance on this host takes in, and the rows they make.

use crate::codec::RouteKey;
use crate::rib::Path;
use crate::{LocalEvi, LocalState, RouteTarget, RouteTargets};
use model::{Asn, Encoding, EviForwarding, Forwarding, MacAddr, Tag, VlanId, Vni};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

/// A MAC of one instance.
pub(crate) type MacKey = (Vni, Tag, MacAddr);

/// All instances of this host, and the rows they made.
#[derive(Debug)]
pub(crate) struct Vrfs {
    asn: Asn,
    router_id: Ipv4Addr,
    vtep: Option<IpAddr>,
    vrfs: BTreeMap<Vni, Vrf>,
    by_target: BTreeMap<RouteTarget, BTreeSet<Vni>>,
    rows: Forwarding,
    version: u64,
    /// Local MACs that won or lost against a remote VTEP since last asked.
    contested: BTreeSet<MacKey>,
}

/// One instance.
#[derive(Debug)]
struct Vrf {
    encoding: Encoding,
    import: BTreeSet<RouteTarget>,
    flood: BTreeMap<(Tag, IpAddr), BTreeSet<RouteKey>>,
    macs: BTreeMap<(Tag, MacAddr), Contest>,
    /// MACs that some route binds to an address.
    owners: BTreeMap<(Tag, IpAddr), BTreeSet<MacAddr>>,
    /// Local MACs: the keys of `macs` with a local claim.
    locals: BTreeSet<(Tag, MacAddr)>,
    /// Local MACs that have an address.
    local_owners: BTreeMap<(Tag, IpAddr), BTreeSet<MacAddr>>,
}

/// Who says to have a MAC.
#[derive(Debug, Default)]
struct Contest {
    local: Option<LocalClaim>,
    remote: BTreeMap<RouteKey, Claim>,
}

#[derive(Debug)]
struct LocalClaim {
    claim: Claim,
    addresses: BTreeSet<IpAddr>,
}

/// One VTEP's claim to a MAC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Claim {
    vtep: IpAddr,
    sequence: u32,
    sticky: bool,
    ip: Option<IpAddr>,
    /// Kept as a last resort (RFC 9494 §4.3).
    last_resort: bool,
}

impl Claim {
    /// What is not long stale; then RFC 7432 §15: the static bit, then the higher sequence, then the lower VTEP address.
    fn rank(&self) -> (bool, bool, u32, Reverse<IpAddr>) {
        (
            !self.last_resort,
            self.sticky,
            self.sequence,
            Reverse(self.vtep),
        )
    }
}

impl Contest {
    fn best_remote(&self) -> Option<Claim> {
        self.remote.values().copied().max_by_key(Claim::rank)
    }

    /// The VTEP that has the MAC; none if it is this host, or nobody.
    fn remote_winner(&self) -> Option<Claim> {
        let remote = self.best_remote()?;
        match &self.local {
            Some(local) if local.claim.rank() > remote.rank() => None,
            _ => Some(remote),
        }
    }
}

/// Where a route goes in an instance.
enum Place {
    Flood(Tag, IpAddr),
    Mac(Tag, MacAddr, Claim),
}

impl Vrfs {
    pub(crate) fn new(asn: Asn, router_id: Ipv4Addr) -> Self {
        Self {
            asn,
            router_id,
            vtep: None,
            vrfs: BTreeMap::new(),
            by_target: BTreeMap::new(),
            rows: Forwarding::default(),
            version: 0,
            contested: BTreeSet::new(),
        }
    }

    pub(crate) fn rows(&self) -> &Forwarding {
        &self.rows
    }

    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    pub(crate) fn set_complete(&mut self) {
        self.rows.complete = true;
        self.version += 1;
    }

    /// Local MACs whose contest changed.
    pub(crate) fn take_contested(&mut self) -> BTreeSet<MacKey> {
        std::mem::take(&mut self.contested)
    }

    /// The sequence with which this host announces the MAC; none while another VTEP has it.
    pub(crate) fn announced_sequence(&self, key: MacKey) -> Option<u32> {
        let contest = self.vrfs.get(&key.0)?.macs.get(&(key.1, key.2))?;
        let local = contest.local.as_ref()?;
        contest
            .remote_winner()
            .is_none()
            .then_some(local.claim.sequence)
    }

    /// Takes over what is local; `changed` names the instances that differ from before. `best` walks the best remote paths; it is walked once, and only
    /// if an instance is new or imports something else than before.
    pub(crate) fn set_local<'a>(
        &mut self,
        local: &LocalState,
        changed: &BTreeSet<Vni>,
        best: impl Iterator<Item = (&'a RouteKey, &'a Path)>,
    ) {
        let moved = self.vtep != Some(local.vtep);
        self.vtep = Some(local.vtep);
        let gone: Vec<Vni> = self
            .vrfs
            .keys()
            .filter(|vni| !local.evis.contains_key(vni))
            .copied()
            .collect();
        for vni in gone {
            self.vrfs.remove(&vni);
            self.rows.evis.remove(&vni);
            self.version += 1;
        }
        let mut rebuilt = BTreeSet::new();
        for (vni, evi) in &local.evis {
            let import = self.import_of(*vni, evi);
            let same = self
                .vrfs
                .get(vni)
                .is_some_and(|vrf| vrf.import == import && vrf.encoding == evi.encoding);
            if !same || moved {
                self.rebuild(*vni, evi.encoding, import);
                rebuilt.insert(*vni);
            }
        }
        self.index_targets();
        if !rebuilt.is_empty() {
            for (key, path) in best {
                for vni in self.importers(path) {
                    if rebuilt.contains(&vni) {
                        self.add(vni, key, path);
                    }
                }
            }
        }
        for (vni, evi) in local.evis.iter().filter(|(vni, _)| changed.contains(vni)) {
            self.set_local_macs(*vni, evi, local.vtep);
        }
    }

    fn import_of(&self, vni: Vni, evi: &LocalEvi) -> BTreeSet<RouteTarget> {
        match &evi.targets {
            RouteTargets::Auto => BTreeSet::from([RouteTarget::auto(self.asn, vni)]),
            RouteTargets::Manual { import, .. } => import.clone(),
        }
    }

    /// Starts an instance afresh, but keeps the sequences of its MACs.
    fn rebuild(&mut self, vni: Vni, encoding: Encoding, import: BTreeSet<RouteTarget>) {
        let mut macs = BTreeMap::new();
        if let Some(old) = self.vrfs.remove(&vni) {
            for (key, contest) in old.macs {
                if contest.local.is_some() {
                    let remote = BTreeMap::new();
                    let local = contest.local;
                    macs.insert(key, Contest { local, remote });
                }
            }
        }
        let vrf = Vrf {
            encoding,
            import,
            flood: BTreeMap::new(),
            owners: BTreeMap::new(),
            locals: macs.keys().copied().collect(),
            macs,
            local_owners: BTreeMap::new(),
        };
        self.vrfs.insert(vni, vrf);
        self.rows.evis.insert(vni, EviForwarding::default());
        self.version += 1;
    }

    /// Targets of the routes that some instance takes in.
    pub(crate) fn import_targets(&self) -> impl Iterator<Item = RouteTarget> {
        self.by_target.keys().copied()
    }

    fn index_targets(&mut self) {
        self.by_target.clear();
        for (vni, vrf) in &self.vrfs {
            for target in &vrf.import {
                self.by_target.entry(*target).or_default().insert(*vni);
            }
        }
    }

    fn set_local_macs(&mut self, vni: Vni, evi: &LocalEvi, vtep: IpAddr) {
        let vrf = self.vrfs.get_mut(&vni).expect("every local EVI has a VRF");
        let mut changed = BTreeSet::new();
        let locals = evi.macs.keys().copied().collect();
        let before = std::mem::replace(&mut vrf.locals, locals);
        for key in before.difference(&vrf.locals) {
            if let Some(contest) = vrf.macs.get_mut(key) {
                contest.local = None;
                changed.insert(*key);
            }
        }
        for (key, mac) in &evi.macs {
            let contest = vrf.macs.entry(*key).or_default();
            // A MAC that comes here was elsewhere until now: one more than there (RFC 7432 §15).
            let sequence = match &contest.local {
                Some(held) => held.claim.sequence,
                None => contest
                    .best_remote()
                    .map_or(0, |claim| claim.sequence.saturating_add(1)),
            };
            let claim = Claim {
                vtep,
                sequence,
                sticky: mac.sticky,
                ip: None,
                last_resort: false,
            };
            let same = contest
                .local
                .as_ref()
                .is_some_and(|held| held.claim == claim && held.addresses == mac.addresses);
            if !same {
                let addresses = mac.addresses.clone();
                contest.local = Some(LocalClaim { claim, addresses });
                changed.insert(*key);
            }
        }
        let mut owners: BTreeMap<(Tag, IpAddr), BTreeSet<MacAddr>> = BTreeMap::new();
        for ((tag, mac), held) in &evi.macs {
            for ip in &held.addresses {
                owners.entry((*tag, *ip)).or_default().insert(*mac);
            }
        }
        let before = std::mem::replace(&mut vrf.local_owners, owners);
        let released: Vec<_> = before
            .into_keys()
            .filter(|key| !vrf.local_owners.contains_key(key))
            .collect();
        for (tag, mac) in changed {
            self.settle_mac(vni, tag, mac);
        }
        for (tag, ip) in released {
            self.settle_ip(vni, tag, ip);
        }
    }

    /// Takes a change of the best path to a route.
    pub(crate) fn apply(&mut self, key: &RouteKey, old: Option<&Path>, new: Option<&Path>) {
        // In before out: the row of a MAC that stays must not vanish in between.
        let stays = |path: &Path| self.importers(path);
        let (before, after) = (old.map(stays), new.map(stays));
        for vni in after.iter().flatten() {
            let path = new.expect("importers came of it");
            if let Some(old) = old {
                self.drop_moved(*vni, key, old, path);
            }
            self.add(*vni, key, path);
        }
        for vni in before.iter().flatten() {
            if !after.as_ref().is_some_and(|after| after.contains(vni)) {
                self.remove(*vni, key, old.expect("importers came of it"));
            }
        }
    }

    /// A route that stays in an instance may leave its row: another flood endpoint, or none.
    fn drop_moved(&mut self, vni: Vni, key: &RouteKey, old: &Path, new: &Path) {
        let spot = |place: Option<Place>| match place {
            Some(Place::Flood(tag, vtep)) => Some((tag, Some(vtep))),
            Some(Place::Mac(tag, _, _)) => Some((tag, None)),
            None => None,
        };
        if spot(self.place(vni, key, old)) != spot(self.place(vni, key, new)) {
            self.remove(vni, key, old);
        }
    }

    fn importers(&self, path: &Path) -> BTreeSet<Vni> {
        path.attrs
            .targets
            .iter()
            .filter_map(|target| self.by_target.get(target))
            .flatten()
            .copied()
            .collect()
    }

    /// Where a route goes, or nowhere: it is our own, of another encapsulation, of another VNI
    /// (frames would reach another instance), of a tag the instance does not have, or names an
    /// address that no frame may go to.
    fn place(&self, vni: Vni, key: &RouteKey, path: &Path) -> Option<Place> {
        let vrf = self.vrfs.get(&vni)?;
        let attrs = &path.attrs;
        let own = key.rd()?.router_id() == Some(self.router_id);
        if own || !attrs.vxlan {
            return None;
        }
        match key {
            RouteKey::Imet { tag, .. } => {
                let (label, endpoint) = attrs.replication?;
                let vtep = self.usable_vtep(endpoint)?;
                (label == vni.get()).then_some(Place::Flood(vrf.tag(*tag)?, vtep))
            }
            RouteKey::MacIp { tag, mac, ip, .. } => {
                let vtep = self.usable_vtep(attrs.next_hop)?;
                let claim = Claim {
                    vtep,
                    sequence: attrs.sequence,
                    sticky: attrs.sticky,
                    ip: *ip,
                    last_resort: path.is_last_resort(),
                };
                let fits = path.rest.label(key) == Some(vni.get()) && mac.is_usable();
                fits.then_some(Place::Mac(vrf.tag(*tag)?, *mac, claim))
            }
            RouteKey::Other { .. } => None,
        }
    }

    fn usable_vtep(&self, address: IpAddr) -> Option<IpAddr> {
        (is_usable_vtep(address) && self.vtep != Some(address)).then_some(address)
    }

    fn add(&mut self, vni: Vni, key: &RouteKey, path: &Path) {
        let Some(place) = self.place(vni, key, path) else {
            return;
        };
        let vrf = self.vrfs.get_mut(&vni).expect("places are in live VRFs");
        match place {
            Place::Flood(tag, vtep) => {
                vrf.flood
                    .entry((tag, vtep))
                    .or_default()
                    .insert(key.clone());
                self.settle_flood(vni, tag, vtep);
            }
            Place::Mac(tag, mac, claim) => {
                if let Some(ip) = claim.ip {
                    vrf.owners.entry((tag, ip)).or_default().insert(mac);
                }
                let contest = vrf.macs.entry((tag, mac)).or_default();
                contest.remote.insert(key.clone(), claim);
                self.settle_mac(vni, tag, mac);
            }
        }
    }

    fn remove(&mut self, vni: Vni, key: &RouteKey, path: &Path) {
        let Some(place) = self.place(vni, key, path) else {
            return;
        };
        let vrf = self.vrfs.get_mut(&vni).expect("places are in live VRFs");
        match place {
            Place::Flood(tag, vtep) => {
                if let Some(routes) = vrf.flood.get_mut(&(tag, vtep)) {
                    routes.remove(key);
                }
                self.settle_flood(vni, tag, vtep);
            }
            Place::Mac(tag, mac, claim) => {
                if let Some(contest) = vrf.macs.get_mut(&(tag, mac)) {
                    contest.remote.remove(key);
                }
                self.settle_mac(vni, tag, mac);
                if let Some(ip) = claim.ip {
                    self.settle_ip(vni, tag, ip);
                }
            }
        }
    }

    fn settle_flood(&mut self, vni: Vni, tag: Tag, vtep: IpAddr) {
        let vrf = self.vrfs.get_mut(&vni).expect("settled VRFs live");
        let wanted = vrf.flood.get(&(tag, vtep)).is_some_and(|r| !r.is_empty());
        if !wanted {
            vrf.flood.remove(&(tag, vtep));
        }
        let rows = self.rows.evis.entry(vni).or_default();
        let changed = if wanted {
            rows.flood.insert((tag, vtep))
        } else {
            rows.flood.remove(&(tag, vtep))
        };
        self.version += u64::from(changed);
    }

    fn settle_mac(&mut self, vni: Vni, tag: Tag, mac: MacAddr) {
        let vrf = self.vrfs.get_mut(&vni).expect("settled VRFs live");
        let Some(contest) = vrf.macs.get(&(tag, mac)) else {
            return;
        };
        let mut addresses: BTreeSet<IpAddr> = contest
            .remote
            .values()
            .filter_map(|claim| claim.ip)
            .collect();
        let winner = contest.remote_winner();
        if let Some(local) = &contest.local {
            addresses.extend(&local.addresses);
            self.contested.insert((vni, tag, mac));
        }
        if contest.local.is_none() && contest.remote.is_empty() {
            vrf.macs.remove(&(tag, mac));
        }
        let rows = self.rows.evis.entry(vni).or_default();
        let old = match winner {
            Some(claim) => rows.macs.insert((tag, mac), claim.vtep),
            None => rows.macs.remove(&(tag, mac)),
        };
        self.version += u64::from(old != winner.map(|claim| claim.vtep));
        for ip in addresses {
            self.settle_ip(vni, tag, ip);
        }
    }

    /// An address is bound to the best claim among those of VTEPs that have the MAC they claim.
    fn settle_ip(&mut self, vni: Vni, tag: Tag, ip: IpAddr) {
        let vrf = self.vrfs.get_mut(&vni).expect("settled VRFs live");
        let macs = vrf.owners.get(&(tag, ip)).cloned().unwrap_or_default();
        let mut best: Option<(Claim, MacAddr)> = None;
        let mut still = BTreeSet::new();
        for mac in macs {
            let Some(contest) = vrf.macs.get(&(tag, mac)) else {
                continue;
            };
            let claims = contest.remote.values().filter(|claim| claim.ip == Some(ip));
            let winner = contest.remote_winner().map(|claim| claim.vtep);
            for claim in claims {
                still.insert(mac);
                let better = best.is_none_or(|(held, _)| claim.rank() > held.rank());
                if winner == Some(claim.vtep) && better {
                    best = Some((*claim, mac));
                }
            }
        }
        if still.is_empty() {
            vrf.owners.remove(&(tag, ip));
        } else {
            vrf.owners.insert((tag, ip), still);
        }
        if vrf.has_locally(tag, ip) {
            best = None;
        }
        let rows = self.rows.evis.entry(vni).or_default();
        let old = match best {
            Some((_, mac)) => rows.neighbours.insert((tag, ip), mac),
            None => rows.neighbours.remove(&(tag, ip)),
        };
        self.version += u64::from(old != best.map(|(_, mac)| mac));
    }
}

impl Vrf {
    /// The tag of a route in terms of this instance; none if the route is not for it.
    fn tag(&self, raw: u32) -> Option<Tag> {
        match self.encoding {
            Encoding::VlanBased => (raw == 0).then_some(None),
            Encoding::VlanAwareBundle => {
                let vlan = u16::try_from(raw).ok().and_then(|v| VlanId::new(v).ok())?;
                Some(Some(vlan))
            }
        }
    }

    /// True if a MAC that is here has the address.
    fn has_locally(&self, tag: Tag, ip: IpAddr) -> bool {
        let macs = self.local_owners.get(&(tag, ip));
        macs.into_iter().flatten().any(|mac| {
            let contest = self.macs.get(&(tag, *mac));
            contest.is_some_and(|contest| contest.remote_winner().is_none())
        })
    }
}

/// An address that VXLAN frames can be sent to.
pub(crate) fn is_usable_vtep(address: IpAddr) -> bool {
    let v4 = |a: Ipv4Addr| !a.is_broadcast() && !a.is_link_local();
    !address.is_unspecified()
        && !address.is_multicast()
        && !address.is_loopback()
        && match address {
            IpAddr::V4(address) => v4(address),
            IpAddr::V6(_) => true,
        }
}
