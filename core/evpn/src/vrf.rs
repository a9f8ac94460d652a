//! MAC-VRFs: which routes each instance on this host takes in, and the rows they make.

use crate::codec::{NeighbourFlags, RouteKey};
use crate::config::Policy;
use crate::duplicate::Watch;
use crate::ip_vrf::IpVrfs;
use crate::limit::{MacLevel, MacLimit};
use crate::mobility::{Claim, Contest, Holder, LocalClaim};
use crate::rib::Path;
use crate::{LocalEvi, LocalMac, LocalState, Rd, RouteTarget, RouteTargets};
use model::{Asn, Encoding, EviForwarding, Forwarding, MacAddr, Tag, VlanId, Vni};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

/// A MAC of one instance.
pub(crate) type MacKey = (Vni, Tag, MacAddr);
/// An address of one instance.
pub(crate) type IpKey = (Vni, Tag, IpAddr);
/// A VTEP in a broadcast domain of one instance.
pub(crate) type Seat = (Vni, Tag, IpAddr);

/// All instances of this host, and the rows they made.
#[derive(Debug)]
pub(crate) struct Vrfs {
    asn: Asn,
    router_id: Ipv4Addr,
    pub(crate) policy: Policy,
    pub(crate) vtep: Option<IpAddr>,
    pub(crate) vrfs: BTreeMap<Vni, Vrf>,
    by_target: BTreeMap<RouteTarget, BTreeSet<Vni>>,
    /// Instances that take in routes whose target has this number, of whatever AS.
    by_number: BTreeMap<u32, BTreeSet<Vni>>,
    pub(crate) ip: IpVrfs,
    pub(crate) rows: Forwarding,
    pub(crate) version: u64,
    /// Local MACs that won or lost against a remote VTEP since last asked.
    pub(crate) contested: BTreeSet<MacKey>,
    /// What happened that takes the time of day to judge.
    pub(crate) notes: Vec<Note>,
    /// When what is frozen gets another chance.
    pub(crate) thaw_at: BTreeSet<(Instant, Frozen)>,
}

/// Something that [`crate::watch`] has to look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Note {
    /// A route moved a MAC.
    MacMoved(MacKey, Holder, Holder),
    /// A route gave an address to another MAC.
    IpMoved(IpKey, MacAddr, MacAddr),
    /// A MAC that this host has came or went.
    Settled(MacKey),
    /// Somebody claims a MAC that is static elsewhere.
    Challenged(MacKey),
    /// An instance got fuller or emptier.
    Level(Vni),
}

/// What can be frozen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Frozen {
    Mac(MacKey),
    Ip(IpKey),
}

/// Why something is settled anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    /// A route came or went.
    Route,
    /// This host was told to.
    Command,
}

/// One instance.
#[derive(Debug)]
pub(crate) struct Vrf {
    pub(crate) encoding: Encoding,
    rd_index: u16,
    targets: RouteTargets,
    import: Import,
    flood: BTreeMap<(Tag, IpAddr), BTreeSet<RouteKey>>,
    pub(crate) macs: BTreeMap<(Tag, MacAddr), Contest>,
    /// MACs that some route binds to an address.
    owners: BTreeMap<(Tag, IpAddr), BTreeSet<MacAddr>>,
    /// Local MACs: the keys of `macs` with a local claim.
    pub(crate) locals: BTreeSet<(Tag, MacAddr)>,
    /// Local MACs that have an address.
    pub(crate) local_owners: BTreeMap<(Tag, IpAddr), BTreeSet<MacAddr>>,
    /// Addresses that a local MAC has, against whoever else claims them.
    pub(crate) local_bound: BTreeMap<(Tag, IpAddr), MacAddr>,
    /// MACs without a row, because there are too many.
    pub(crate) waiting: BTreeSet<(Tag, MacAddr)>,
    pub(crate) level: MacLevel,
    /// What was last told of it, and when.
    pub(crate) told_level: MacLevel,
    pub(crate) level_since: Option<Instant>,
    /// MACs that moved.
    pub(crate) mac_watches: BTreeMap<(Tag, MacAddr), Watch<IpAddr>>,
    /// Addresses that went from one MAC to another.
    pub(crate) ip_watches: BTreeMap<(Tag, IpAddr), Watch<MacAddr>>,
    /// Static MACs that others claim: since when, and of whom it was told.
    pub(crate) challenged: BTreeMap<(Tag, MacAddr), (Instant, BTreeSet<IpAddr>)>,
    /// Flood routes of VTEPs that have this VNI in the other encoding, and since when: no frame gets from one to the other.
    pub(crate) other_encoding: BTreeMap<RouteKey, (IpAddr, Instant)>,
}

/// Which route targets an instance takes in.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Import {
    pub(crate) exact: BTreeSet<RouteTarget>,
    /// The number behind any AS.
    numbers: BTreeSet<u32>,
}

impl Import {
    pub(crate) fn of(asn: Asn, vni: Vni, targets: &RouteTargets) -> Self {
        match targets {
            RouteTargets::Auto | RouteTargets::AutoRfc8365 => {
                let own = [RouteTarget::auto, RouteTarget::auto_rfc8365];
                let own = own.map(|form| form(asn, vni));
                Self {
                    numbers: own.iter().filter_map(|target| target.number()).collect(),
                    exact: BTreeSet::from(own),
                }
            }
            RouteTargets::Manual { import, .. } => Self {
                exact: import.clone(),
                numbers: BTreeSet::new(),
            },
        }
    }

    pub(crate) fn extend(&mut self, other: Self) {
        self.exact.extend(other.exact);
        self.numbers.extend(other.numbers);
    }

    pub(crate) fn takes(&self, target: RouteTarget) -> bool {
        let any_as = target.number();
        self.exact.contains(&target) || any_as.is_some_and(|number| self.numbers.contains(&number))
    }
}

/// Where a route goes in an instance.
enum Place {
    Flood(Tag, IpAddr),
    Mac(Tag, MacAddr, Claim),
}

impl Vrfs {
    pub(crate) fn new(asn: Asn, router_id: Ipv4Addr, policy: Policy) -> Self {
        Self {
            asn,
            router_id,
            policy,
            vtep: None,
            vrfs: BTreeMap::new(),
            by_target: BTreeMap::new(),
            by_number: BTreeMap::new(),
            ip: IpVrfs::default(),
            rows: Forwarding::default(),
            version: 0,
            contested: BTreeSet::new(),
            notes: vec![],
            thaw_at: BTreeSet::new(),
        }
    }

    pub(crate) fn rows(&self) -> &Forwarding {
        &self.rows
    }

    pub(crate) fn router_id(&self) -> Ipv4Addr {
        self.router_id
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

    /// The sequence with which this host announces the MAC, or the MAC with an address; none
    /// while another VTEP has the MAC, or another MAC the address.
    pub(crate) fn announced_sequence(&self, key: MacKey, ip: Option<IpAddr>) -> Option<u32> {
        let (vni, tag, mac) = key;
        let vrf = self.vrfs.get(&vni)?;
        let contest = vrf.macs.get(&(tag, mac))?;
        let local = contest.local.as_ref()?;
        let here = contest.holder() == Some(Holder::Here);
        let bound = ip.is_none_or(|ip| vrf.local_bound.get(&(tag, ip)) == Some(&mac));
        (here && bound).then_some(local.claim.sequence)
    }

    /// The sequence of this host's claim to a MAC behind it, whoever has it.
    pub(crate) fn local_sequence(&self, (vni, tag, mac): MacKey) -> Option<u32> {
        let contest = self.vrfs.get(&vni)?.macs.get(&(tag, mac))?;
        Some(contest.local.as_ref()?.claim.sequence)
    }

    /// True if nothing is to be sent about the MAC, or the MAC with an address.
    pub(crate) fn is_frozen(&self, key: MacKey, ip: Option<IpAddr>) -> bool {
        let (vni, tag, mac) = key;
        let Some(vrf) = self.vrfs.get(&vni) else {
            return false;
        };
        let pinned = |contest: &Contest| contest.pinned.is_some();
        vrf.macs.get(&(tag, mac)).is_some_and(pinned) || ip.is_some_and(|ip| vrf.is_pinned(tag, ip))
    }

    /// Takes over what is local; `changed` names the instances that differ from before. `best` walks the best remote paths; it is walked once, and only
    /// if an instance is new or imports something else than before.
    pub(crate) fn set_local<'a>(
        &mut self,
        now: Instant,
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
            let import = Import::of(self.asn, *vni, &evi.targets);
            let held = self.vrfs.get(vni);
            let same = held.is_some_and(|vrf| vrf.import == import && vrf.encoding == evi.encoding);
            if !same || moved {
                self.rebuild(*vni, evi, import);
                rebuilt.insert(*vni);
            } else if held.is_some_and(|vrf| !vrf.announces_like(evi)) {
                // What is frozen would stay announced in terms that are no longer the instance's.
                self.thaw_all(now, *vni);
            }
        }
        self.index_targets();
        let before = self.rows.ip_vrfs.len();
        let fresh = self.ip.set_local(local, self.asn, moved, &mut self.rows);
        let differs = !fresh.is_empty() || self.rows.ip_vrfs.len() != before;
        self.version += u64::from(differs);
        if !rebuilt.is_empty() || !fresh.is_empty() {
            for (key, path) in best {
                if key.destination().is_some() {
                    let all = fresh.iter();
                    all.for_each(|vni| self.set_prefix(*vni, key, Some(path)));
                }
                for vni in self.importers(path) {
                    if rebuilt.contains(&vni) {
                        self.add(vni, key, path, Cause::Command);
                    }
                }
            }
        }
        for (vni, evi) in local.evis.iter().filter(|(vni, _)| changed.contains(vni)) {
            self.set_local_macs(now, *vni, evi, local.vtep);
        }
    }

    /// Starts an instance afresh, but keeps the sequences of its MACs.
    fn rebuild(&mut self, vni: Vni, evi: &LocalEvi, import: Import) {
        let mut macs = BTreeMap::new();
        if let Some(old) = self.vrfs.remove(&vni) {
            for (key, contest) in old.macs {
                let local = contest.local;
                if local.is_some() {
                    let settled = Some(Holder::Here);
                    let fresh = Contest {
                        local,
                        settled,
                        ..Contest::default()
                    };
                    macs.insert(key, fresh);
                }
            }
        }
        let vrf = Vrf {
            encoding: evi.encoding,
            rd_index: evi.rd_index,
            targets: evi.targets.clone(),
            import,
            flood: BTreeMap::new(),
            owners: BTreeMap::new(),
            locals: macs.keys().copied().collect(),
            macs,
            local_owners: BTreeMap::new(),
            local_bound: BTreeMap::new(),
            waiting: BTreeSet::new(),
            level: MacLevel::default(),
            told_level: MacLevel::default(),
            level_since: None,
            mac_watches: BTreeMap::new(),
            ip_watches: BTreeMap::new(),
            challenged: BTreeMap::new(),
            other_encoding: BTreeMap::new(),
        };
        self.vrfs.insert(vni, vrf);
        self.rows.evis.insert(vni, EviForwarding::default());
        self.version += 1;
    }

    /// Targets of the routes that some instance takes in.
    pub(crate) fn import_targets(&self) -> impl Iterator<Item = RouteTarget> {
        let prefixes = self.ip.import_targets();
        self.by_target.keys().copied().chain(prefixes)
    }

    fn index_targets(&mut self) {
        self.by_target.clear();
        self.by_number.clear();
        for (vni, vrf) in &self.vrfs {
            for target in &vrf.import.exact {
                self.by_target.entry(*target).or_default().insert(*vni);
            }
            for number in &vrf.import.numbers {
                self.by_number.entry(*number).or_default().insert(*vni);
            }
        }
    }

    fn set_local_macs(&mut self, now: Instant, vni: Vni, evi: &LocalEvi, vtep: IpAddr) {
        let vrf = self.vrfs.get_mut(&vni).expect("every local EVI has a VRF");
        vrf.rd_index = evi.rd_index;
        vrf.targets.clone_from(&evi.targets);
        // All sequences before any claim: one MAC may take over another's address.
        let sequences: Vec<u32> = evi
            .macs
            .iter()
            .map(|(k, mac)| vrf.sequence_of(*k, mac))
            .collect();
        let (mut changed, mut thawed) = (BTreeSet::new(), vec![]);
        let locals = evi.macs.keys().copied().collect();
        let before = std::mem::replace(&mut vrf.locals, locals);
        for key in before.difference(&vrf.locals) {
            if let Some(contest) = vrf.macs.get_mut(key) {
                contest.local = None;
                // Whoever took it away here meant it to be elsewhere.
                thawed.extend(contest.pinned.take().map(|_| *key));
                changed.insert(*key);
            }
            if let Some(watch) = vrf.mac_watches.get_mut(key) {
                watch.forgive(now);
            }
        }
        for ((key, mac), sequence) in evi.macs.iter().zip(sequences) {
            let contest = vrf.macs.entry(*key).or_default();
            let held = contest.local.as_ref();
            let claim = Claim {
                vtep,
                sequence: sequence.max(mac.sequence),
                sticky: mac.sticky,
                ip: None,
                last_resort: false,
                router: mac.router,
                immutable: mac.immutable,
                since: held.map_or(now, |held| held.claim.since),
            };
            let same =
                held.is_some_and(|held| held.claim == claim && held.addresses == mac.addresses);
            if !same {
                contest.local = Some(LocalClaim {
                    claim,
                    addresses: mac.addresses.clone(),
                    settled_at: held.map_or(now, |held| held.settled_at),
                });
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
        let touched: Vec<_> = before
            .keys()
            .chain(vrf.local_owners.keys())
            .filter(|key| before.get(key) != vrf.local_owners.get(key))
            .copied()
            .collect();
        for key in &touched {
            if let Some(watch) = vrf.ip_watches.get_mut(key) {
                watch.forgive(now);
            }
        }
        for (tag, mac) in changed {
            self.settle_mac(vni, tag, mac, Cause::Command);
        }
        for (tag, ip) in touched {
            self.settle_ip(vni, tag, ip, Cause::Command);
        }
        for (tag, mac) in thawed {
            self.settle_bound(vni, tag, mac);
        }
    }

    /// Takes a change of the best path to a route.
    pub(crate) fn apply(&mut self, key: &RouteKey, old: Option<&Path>, new: Option<&Path>) {
        if key.destination().is_some() {
            self.apply_prefix(key, old, new);
        }
        // In before out: the row of a MAC that stays must not vanish in between.
        let stays = |path: &Path| self.importers(path);
        let (before, after) = (old.map(stays), new.map(stays));
        for vni in after.iter().flatten() {
            let path = new.expect("importers came of it");
            if let Some(old) = old {
                self.drop_moved(*vni, key, old, path);
            }
            self.add(*vni, key, path, Cause::Route);
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
        let targets = path.attrs.targets.iter();
        let mut vnis = BTreeSet::new();
        for target in targets {
            vnis.extend(self.by_target.get(target).into_iter().flatten());
            let number = target.number();
            let any_as = number.and_then(|number| self.by_number.get(&number));
            vnis.extend(any_as.into_iter().flatten());
        }
        vnis
    }

    /// Where a route goes, or nowhere: it is our own, of another encapsulation, of another VNI
    /// (frames would reach another instance), of a tag the instance does not have, or names an
    /// address that no frame may go to.
    fn place(&self, vni: Vni, key: &RouteKey, path: &Path) -> Option<Place> {
        let vrf = self.vrfs.get(&vni)?;
        if !self.is_of_others(key, path) {
            return None;
        }
        let attrs = &path.attrs;
        match key {
            RouteKey::Imet { tag, .. } => {
                let vtep = self.floods(vni, path)?;
                Some(Place::Flood(vrf.tag(*tag)?, vtep))
            }
            RouteKey::MacIp { tag, mac, ip, .. } => {
                let vtep = self.usable_vtep(attrs.next_hop)?;
                let claim = Claim {
                    vtep,
                    sequence: attrs.sequence,
                    sticky: attrs.sticky,
                    ip: *ip,
                    last_resort: path.is_last_resort(),
                    router: attrs.neighbour_flags.has(NeighbourFlags::ROUTER),
                    immutable: attrs.neighbour_flags.has(NeighbourFlags::IMMUTABLE),
                    since: path.since,
                };
                let fits = path.rest.label(key) == Some(vni.get()) && mac.is_usable();
                fits.then_some(Place::Mac(vrf.tag(*tag)?, *mac, claim))
            }
            RouteKey::Other { .. } => None,
        }
    }

    /// Whether a route is of another VTEP, whose tunnels are VXLAN.
    fn is_of_others(&self, key: &RouteKey, path: &Path) -> bool {
        let own = |rd: Rd| rd.router_id() == Some(self.router_id);
        path.attrs.vxlan && key.rd().is_some_and(|rd| !own(rd))
    }

    /// The VTEP that a flood route of this VNI is of.
    fn floods(&self, vni: Vni, path: &Path) -> Option<IpAddr> {
        let (label, endpoint) = path.attrs.replication?;
        self.usable_vtep(endpoint).filter(|_| label == vni.get())
    }

    /// The VTEP that a flood route is of, if it has the other encoding: no tag, where the instance is a bundle here, or one,
    /// where it is not. A VLAN that a bundle does not have here is another host's affair.
    fn in_other_encoding(&self, vni: Vni, key: &RouteKey, path: &Path) -> Option<IpAddr> {
        let RouteKey::Imet { tag, .. } = key else {
            return None;
        };
        let bundle = self.vrfs.get(&vni)?.encoding == Encoding::VlanAwareBundle;
        let other = bundle == (*tag == 0) && self.is_of_others(key, path);
        self.floods(vni, path).filter(|_| other)
    }

    /// Keeps note of who has the other encoding.
    fn note_encoding(&mut self, vni: Vni, key: &RouteKey, path: Option<&Path>) {
        let other = |path| self.in_other_encoding(vni, key, path);
        let other = path.and_then(|path| Some((other(path)?, path.since)));
        let Some(vrf) = self.vrfs.get_mut(&vni) else {
            return;
        };
        match other {
            Some(of) => _ = vrf.other_encoding.insert(key.clone(), of),
            None => _ = vrf.other_encoding.remove(key),
        }
    }

    /// The broadcast domain of this host that a route is for, and the VTEP that it leads to; none if it
    /// makes no row of an instance.
    pub(crate) fn seat(&self, key: &RouteKey, path: &Path) -> Option<Seat> {
        let seat = |vni| match self.place(vni, key, path)? {
            Place::Flood(tag, vtep) => Some((vni, tag, vtep)),
            Place::Mac(tag, _, claim) => Some((vni, tag, claim.vtep)),
        };
        self.importers(path).into_iter().find_map(seat)
    }

    /// Routes by which a VTEP is flooded to; none if this host has no such instance.
    pub(crate) fn floods_to(
        &self,
        (vni, tag, vtep): Seat,
    ) -> Option<impl Iterator<Item = &RouteKey>> {
        let vrf = self.vrfs.get(&vni)?;
        Some(vrf.flood.get(&(tag, vtep)).into_iter().flatten())
    }

    fn usable_vtep(&self, address: IpAddr) -> Option<IpAddr> {
        (is_usable_vtep(address) && self.vtep != Some(address)).then_some(address)
    }

    fn add(&mut self, vni: Vni, key: &RouteKey, path: &Path, cause: Cause) {
        self.note_encoding(vni, key, Some(path));
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
                self.settle_mac(vni, tag, mac, cause);
            }
        }
    }

    fn remove(&mut self, vni: Vni, key: &RouteKey, path: &Path) {
        self.note_encoding(vni, key, None);
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
                self.settle_mac(vni, tag, mac, Cause::Route);
                if let Some(ip) = claim.ip {
                    self.settle_ip(vni, tag, ip, Cause::Route);
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

    pub(crate) fn settle_mac(&mut self, vni: Vni, tag: Tag, mac: MacAddr, cause: Cause) {
        let vrf = self.vrfs.get_mut(&vni).expect("settled VRFs live");
        let Some(contest) = vrf.macs.get_mut(&(tag, mac)) else {
            return;
        };
        let key = (vni, tag, mac);
        let mut addresses: BTreeSet<IpAddr> = contest
            .remote
            .values()
            .filter_map(|claim| claim.ip)
            .collect();
        let holder = contest.holder();
        let before = std::mem::replace(&mut contest.settled, holder);
        if let (Some(from), Some(to), Cause::Route) = (before, holder, cause)
            && from != to
        {
            self.notes.push(Note::MacMoved(key, from, to));
        }
        let is_local = contest.local.is_some();
        if let Some(local) = &contest.local {
            addresses.extend(&local.addresses);
            self.contested.insert(key);
            if before != holder {
                self.notes.push(Note::Settled(key));
            }
        }
        if !contest.challengers().0.is_empty() {
            self.notes.push(Note::Challenged(key));
        }
        if contest.is_empty() {
            vrf.macs.remove(&(tag, mac));
            vrf.mac_watches.remove(&(tag, mac));
            vrf.challenged.remove(&(tag, mac));
        }
        self.write_mac(vni, (tag, mac), holder.and_then(Holder::remote));
        let rows = self.rows.evis.entry(vni).or_default();
        let lost = is_local && rows.macs.contains_key(&(tag, mac));
        let changed = match lost {
            true => rows.lost.insert((tag, mac)),
            false => rows.lost.remove(&(tag, mac)),
        };
        self.version += u64::from(changed);
        for ip in addresses {
            self.settle_ip(vni, tag, ip, cause);
        }
    }

    fn write_mac(&mut self, vni: Vni, key: (Tag, MacAddr), vtep: Option<IpAddr>) {
        let limit = self.policy.mac_limit;
        let vrf = self.vrfs.get_mut(&vni).expect("settled VRFs live");
        let rows = self.rows.evis.entry(vni).or_default();
        let before = rows.macs.get(&key).copied();
        match vtep {
            Some(vtep) if before.is_some() || MacLimit::has_room(limit, rows.macs.len()) => {
                vrf.waiting.remove(&key);
                rows.macs.insert(key, vtep);
            }
            Some(_) => _ = vrf.waiting.insert(key),
            None => {
                vrf.waiting.remove(&key);
                rows.macs.remove(&key);
            }
        }
        self.version += u64::from(before != rows.macs.get(&key).copied());
        let Some(limit) = limit else {
            return;
        };
        if let Some((tag, mac)) = vrf.waiting.first().copied()
            && MacLimit::has_room(Some(limit), rows.macs.len())
        {
            return self.settle_mac(vni, tag, mac, Cause::Command);
        }
        let level = limit.level(vrf.level, rows.macs.len(), vrf.waiting.len());
        if level != vrf.level {
            vrf.level = level;
            self.notes.push(Note::Level(vni));
        }
    }

    /// Settles the addresses that a MAC has: while it was frozen, they were as well.
    pub(crate) fn settle_bound(&mut self, vni: Vni, tag: Tag, mac: MacAddr) {
        let rows = self.rows.evis.get(&vni);
        let vrf = self.vrfs.get(&vni);
        let there = rows.into_iter().flat_map(|rows| &rows.neighbours);
        let here = vrf.into_iter().flat_map(|vrf| &vrf.local_bound);
        let bound = there
            .chain(here)
            .filter(|(key, of)| key.0 == tag && **of == mac);
        let addresses: Vec<IpAddr> = bound.map(|(key, _)| key.1).collect();
        for ip in addresses {
            self.settle_ip(vni, tag, ip, Cause::Command);
        }
    }

    /// An address is bound to the best claim among those of VTEPs, this host included, that have
    /// the MAC they claim.
    pub(crate) fn settle_ip(&mut self, vni: Vni, tag: Tag, ip: IpAddr, cause: Cause) {
        let vrf = self.vrfs.get_mut(&vni).expect("settled VRFs live");
        vrf.prune_owners(tag, ip);
        let key = (tag, ip);
        let rows = self.rows.evis.entry(vni).or_default();
        let bound = vrf.local_bound.get(&key).or(rows.neighbours.get(&key));
        let frozen = |mac: &MacAddr| {
            let contest = vrf.macs.get(&(tag, *mac));
            contest.is_some_and(|contest| contest.pinned.is_some())
        };
        if vrf.is_pinned(tag, ip) || bound.is_some_and(frozen) {
            return;
        }
        let best = vrf.best_binding(tag, ip);
        let here = best
            .filter(|binding| binding.here)
            .map(|binding| binding.mac);
        let there = best.filter(|binding| !binding.here);
        let rows = self.rows.evis.entry(vni).or_default();
        let was_here = vrf.local_bound.get(&key).copied();
        match here {
            Some(mac) => _ = vrf.local_bound.insert(key, mac),
            None => _ = vrf.local_bound.remove(&key),
        }
        let was_there = match there {
            Some(binding) => rows.neighbours.insert(key, binding.mac),
            None => rows.neighbours.remove(&key),
        };
        let router = there.is_some_and(|binding| binding.router);
        let flagged = match router {
            true => rows.routers.insert(key),
            false => rows.routers.remove(&key),
        };
        let moved = was_there != there.map(|binding| binding.mac);
        self.version += u64::from(moved || flagged);
        if was_here != here {
            // Who lost it withdraws it, who got it announces it.
            let macs = was_here.into_iter().chain(here);
            self.contested.extend(macs.map(|mac| (vni, tag, mac)));
        }
        let before = was_here.or(was_there);
        let now = best.map(|binding| binding.mac);
        if let (Some(from), Some(to), Cause::Route) = (before, now, cause)
            && from != to
        {
            self.notes.push(Note::IpMoved((vni, tag, ip), from, to));
        }
    }
}

/// The MAC that has an address.
#[derive(Debug, Clone, Copy)]
struct Binding {
    mac: MacAddr,
    here: bool,
    router: bool,
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

    fn announces_like(&self, evi: &LocalEvi) -> bool {
        self.rd_index == evi.rd_index && self.targets == evi.targets
    }

    pub(crate) fn is_pinned(&self, tag: Tag, ip: IpAddr) -> bool {
        let watch = self.ip_watches.get(&(tag, ip));
        watch.is_some_and(|watch| watch.frozen)
    }

    /// The sequence that a local MAC gets. One that comes here was elsewhere until now: one more
    /// than there (RFC 7432 §15). One that gets an address that another MAC had: one more than
    /// that MAC, or the address would stay there (RFC 9721 §7).
    fn sequence_of(&self, key: (Tag, MacAddr), mac: &LocalMac) -> u32 {
        let contest = self.macs.get(&key);
        let held = contest.and_then(|contest| contest.local.as_ref());
        let best = contest.and_then(Contest::best_remote);
        let own = match (held, best) {
            (Some(held), _) => held.claim.sequence,
            (None, _) if mac.leaving => 0,
            // Static MACs do not move: no sequence makes one this host's.
            (None, Some(best)) if best.sticky && mac.sticky => best.sequence,
            (None, Some(best)) => best.next_sequence(),
            (None, None) => 0,
        };
        let is_new = |ip: &&IpAddr| held.is_none_or(|held| !held.addresses.contains(*ip));
        let others = mac.addresses.iter().filter(is_new).flat_map(|ip| {
            let there = self.owners.get(&(key.0, *ip)).into_iter().flatten();
            let here = self.local_owners.get(&(key.0, *ip)).into_iter().flatten();
            let others = there.chain(here).filter(|other| **other != key.1);
            others.filter_map(|other| self.claim_to(key.0, *other, *ip))
        });
        others
            .map(|claim| claim.next_sequence())
            .fold(own, u32::max)
    }

    /// The best claim of a MAC to an address.
    fn claim_to(&self, tag: Tag, mac: MacAddr, ip: IpAddr) -> Option<&Claim> {
        let contest = self.macs.get(&(tag, mac))?;
        let there = contest.remote.values().filter(|claim| claim.ip == Some(ip));
        let local = contest.local.as_ref();
        let here = local.filter(|local| local.addresses.contains(&ip));
        there
            .chain(here.map(|local| &local.claim))
            .max_by_key(|claim| claim.address_rank())
    }

    /// Forgets MACs that no route binds to the address any more, and that it was ever in dispute
    /// once nobody has it.
    fn prune_owners(&mut self, tag: Tag, ip: IpAddr) {
        let key = (tag, ip);
        if let Some(owners) = self.owners.get_mut(&key) {
            owners.retain(|mac| {
                let contest = self.macs.get(&(tag, *mac));
                contest.is_some_and(|c| c.remote.values().any(|claim| claim.ip == Some(ip)))
            });
            if owners.is_empty() {
                self.owners.remove(&key);
            }
        }
        if !self.owners.contains_key(&key) && !self.local_owners.contains_key(&key) {
            self.ip_watches.remove(&key);
        }
    }

    fn best_binding(&self, tag: Tag, ip: IpAddr) -> Option<Binding> {
        let there = self.owners.get(&(tag, ip)).into_iter().flatten();
        let here = self.local_owners.get(&(tag, ip)).into_iter().flatten();
        let macs: BTreeSet<MacAddr> = there.chain(here).copied().collect();
        let mut best: Option<(&Claim, Binding)> = None;
        for mac in macs {
            let Some((claim, here)) = self.valid_claim(tag, mac, ip) else {
                continue;
            };
            if best.is_none_or(|(held, _)| claim.address_rank() > held.address_rank()) {
                let router = claim.router;
                best = Some((claim, Binding { mac, here, router }));
            }
        }
        best.map(|(_, binding)| binding)
    }

    /// The claim to an address of whoever has the MAC, and whether that is this host. A MAC
    /// without a row has no address either.
    fn valid_claim(&self, tag: Tag, mac: MacAddr, ip: IpAddr) -> Option<(&Claim, bool)> {
        let contest = self.macs.get(&(tag, mac))?;
        match contest.holder()? {
            Holder::Here => {
                let local = contest.local.as_ref()?;
                let has = local.addresses.contains(&ip);
                has.then_some((&local.claim, true))
            }
            Holder::Vtep(_) if self.waiting.contains(&(tag, mac)) => None,
            Holder::Vtep(vtep) => {
                let claims = contest.remote.values();
                let of_holder = claims.filter(|c| c.vtep == vtep && c.ip == Some(ip));
                let best = of_holder.max_by_key(|claim| claim.address_rank())?;
                Some((best, false))
            }
        }
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
