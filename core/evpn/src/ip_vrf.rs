//! IP-VRFs: what routers of this host announce, and which prefixes are behind routers elsewhere
//! (RFC 9136 §4.4.1, interface-less) and which addresses behind their hosts (RFC 9135 §5.2).

use crate::codec::RouteKey;
use crate::local::{self, OwnRoute};
use crate::prefix::{self, Claim, Unused};
use crate::rib::{Path, Source};
use crate::vrf::{Import, Vrfs};
use crate::{Alert, AlertKind, LocalState, RouteTarget, Speaker};
use ipnet::IpNet;
use model::{Forwarding, MacAddr, Vni};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Prefixes that one VPC's routers take in: some ten thousands of NICs with two addresses, and a bound on
/// what a VTEP gone wild does to hosts.
const PREFIXES_MAX: usize = 65_536;

/// The IP-VRFs of this host.
#[derive(Debug, Default)]
pub(crate) struct IpVrfs {
    vrfs: BTreeMap<Vni, IpVrf>,
}

#[derive(Debug, Default)]
struct IpVrf {
    import: Import,
    claims: BTreeMap<IpNet, BTreeMap<RouteKey, Claim>>,
    /// Where each router is said to be; the newest word holds, as a router takes its MAC along when
    /// another host runs it.
    places: BTreeMap<MacAddr, BTreeSet<Place>>,
    unused: BTreeMap<RouteKey, (Instant, Unused)>,
    /// Prefixes without a row, because there are too many.
    waiting: BTreeSet<IpNet>,
}

type Place = (Instant, Reverse<IpAddr>, RouteKey);

impl IpVrf {
    fn put(&mut self, prefix: IpNet, key: &RouteKey, claim: Claim) {
        let place = (claim.since, Reverse(claim.vtep), key.clone());
        self.places.entry(claim.mac).or_default().insert(place);
        let claims = self.claims.entry(prefix).or_default();
        claims.insert(key.clone(), claim);
    }

    /// Takes out what a route said; the MAC that it named.
    fn take(&mut self, prefix: IpNet, key: &RouteKey) -> Option<MacAddr> {
        self.unused.remove(key);
        let claims = self.claims.get_mut(&prefix)?;
        let claim = claims.remove(key)?;
        if claims.is_empty() {
            self.claims.remove(&prefix);
        }
        if let Some(places) = self.places.get_mut(&claim.mac) {
            places.remove(&(claim.since, Reverse(claim.vtep), key.clone()));
            if places.is_empty() {
                self.places.remove(&claim.mac);
            }
        }
        Some(claim.mac)
    }

    /// By which routers a prefix is reached: the best claims, all of them.
    fn best(&self, prefix: IpNet) -> BTreeSet<MacAddr> {
        let claims = self.claims.get(&prefix);
        let claims = || claims.into_iter().flat_map(BTreeMap::values);
        let best = claims().map(|claim| claim.rank).max();
        claims()
            .filter(|claim| Some(claim.rank) == best)
            .map(|claim| claim.mac)
            .collect()
    }

    fn place_of(&self, mac: MacAddr) -> Option<IpAddr> {
        let (_, Reverse(vtep), _) = self.places.get(&mac)?.last()?;
        Some(*vtep)
    }
}

impl IpVrfs {
    /// Takes over which there are; those that are new or import something else begin empty, and are
    /// returned.
    pub(crate) fn set_local(
        &mut self,
        local: &LocalState,
        asn: model::Asn,
        moved: bool,
        rows: &mut Forwarding,
    ) -> BTreeSet<Vni> {
        let mut imports: BTreeMap<Vni, Import> = BTreeMap::new();
        for vrf in local.ip_vrfs.values() {
            let import = Import::of(asn, vrf.vni, &vrf.targets);
            imports.entry(vrf.vni).or_default().extend(import);
        }
        self.vrfs.retain(|vni, _| imports.contains_key(vni));
        rows.ip_vrfs.retain(|vni, _| imports.contains_key(vni));
        let mut fresh = BTreeSet::new();
        for (vni, import) in imports {
            let held = self.vrfs.get(&vni);
            if moved || held.is_none_or(|held| held.import != import) {
                let vrf = IpVrf {
                    import,
                    ..IpVrf::default()
                };
                self.vrfs.insert(vni, vrf);
                rows.ip_vrfs.insert(vni, model::IpVrfForwarding::default());
                fresh.insert(vni);
            }
        }
        fresh
    }

    pub(crate) fn import_targets(&self) -> impl Iterator<Item = RouteTarget> {
        let vrfs = self.vrfs.values();
        vrfs.flat_map(|vrf| vrf.import.exact.iter().copied())
    }

    fn importers(&self, path: &Path) -> BTreeSet<Vni> {
        let targets = &path.attrs.targets;
        let takes = |vrf: &IpVrf| targets.iter().any(|target| vrf.import.takes(*target));
        let vrfs = self.vrfs.iter().filter(|(_, vrf)| takes(vrf));
        vrfs.map(|(vni, _)| *vni).collect()
    }
}

impl Vrfs {
    /// Takes a change of the best path to a route that has a destination.
    pub(crate) fn apply_prefix(&mut self, key: &RouteKey, old: Option<&Path>, new: Option<&Path>) {
        let mut vnis = BTreeSet::new();
        for path in [old, new].into_iter().flatten() {
            vnis.extend(self.ip.importers(path));
        }
        for vni in vnis {
            self.set_prefix(vni, key, new);
        }
    }

    /// What a route says in one IP-VRF, in the place of what it said before.
    pub(crate) fn set_prefix(&mut self, vni: Vni, key: &RouteKey, path: Option<&Path>) {
        let own = key.rd().and_then(crate::Rd::router_id) == Some(self.router_id());
        let (Some(vrf), Some(prefix)) = (self.ip.vrfs.get_mut(&vni), key.destination()) else {
            return;
        };
        let mut macs = BTreeSet::new();
        macs.extend(vrf.take(prefix, key));
        let wanted = |path: &&Path| {
            let mut targets = path.attrs.targets.iter();
            !own && targets.any(|target| vrf.import.takes(*target))
        };
        if let Some(path) = path.filter(wanted) {
            match prefix::judge(vni, self.vtep, prefix, key, path) {
                // Bridged to alone, whatever its targets.
                Err(Unused::OneLabel) => {}
                Ok(claim) => {
                    macs.insert(claim.mac);
                    vrf.put(prefix, key, claim);
                }
                Err(why) => _ = vrf.unused.insert(key.clone(), (path.since, why)),
            }
        }
        self.settle_prefix(vni, prefix, &macs);
    }

    fn settle_prefix(&mut self, vni: Vni, prefix: IpNet, macs: &BTreeSet<MacAddr>) {
        let Some(vrf) = self.ip.vrfs.get_mut(&vni) else {
            return;
        };
        let rows = self.rows.ip_vrfs.entry(vni).or_default();
        let mut changed = false;
        let best = vrf.best(prefix);
        let has_room = rows.prefixes.len() < PREFIXES_MAX || rows.prefixes.contains_key(&prefix);
        vrf.waiting.remove(&prefix);
        if best.is_empty() {
            changed |= rows.prefixes.remove(&prefix).is_some();
        } else if has_room {
            changed |= rows.prefixes.get(&prefix) != Some(&best);
            rows.prefixes.insert(prefix, best);
        } else {
            vrf.waiting.insert(prefix);
        }
        for mac in macs {
            let place = vrf.place_of(*mac);
            changed |= rows.routers.get(mac).copied() != place;
            match place {
                Some(vtep) => _ = rows.routers.insert(*mac, vtep),
                None => _ = rows.routers.remove(mac),
            }
        }
        let next = vrf.waiting.first().copied();
        let room = rows.prefixes.len() < PREFIXES_MAX;
        self.version += u64::from(changed);
        if let Some(next) = next.filter(|_| room) {
            self.settle_prefix(vni, next, &BTreeSet::new());
        }
    }

    /// Routes that are meant for a VPC here and make no row.
    pub(crate) fn prefix_alerts(&self, now: Instant) -> impl Iterator<Item = Alert> {
        self.ip.vrfs.iter().flat_map(move |(vni, vrf)| {
            let place = || format!("routers of VNI {vni}");
            let since = vrf.unused.values().map(|(since, _)| *since).min();
            let unused = vrf.unused.first_key_value().map(|(key, (_, why))| Alert {
                kind: AlertKind::UnusedPrefixes,
                what: format!(
                    "{} prefix routes are not used, as {key} {why}",
                    vrf.unused.len()
                ),
                place: place(),
                since: since.map_or(Duration::ZERO, |at| now.saturating_duration_since(at)),
                remedy: "have their VTEP announce them interface-less (RFC 9136 section 4.4.1): \
                         no segment, no gateway, a Router's MAC, the VPC's VNI as label"
                    .to_owned(),
            });
            let waiting = (!vrf.waiting.is_empty()).then(|| Alert {
                kind: AlertKind::UnusedPrefixes,
                what: format!(
                    "{} prefixes beyond the limit of {PREFIXES_MAX} have no row",
                    vrf.waiting.len()
                ),
                place: place(),
                since: Duration::ZERO,
                remedy: "find out who announces so many (`vpc evpn routes --type 5`)".to_owned(),
            });
            unused.into_iter().chain(waiting)
        })
    }
}

impl Speaker {
    /// Announces and withdraws the difference between what routers here have and what was announced
    /// of them.
    pub(crate) fn sync_prefixes(&mut self, now: Instant) {
        let wanted: BTreeMap<RouteKey, OwnRoute> = match &self.local {
            None => BTreeMap::new(),
            Some(state) => {
                let all = state.ip_vrfs.iter();
                all.flat_map(|(rd, vrf)| local::prefixes_of(*rd, vrf, state.vtep, &self.config))
                    .collect()
            }
        };
        let held = std::mem::take(&mut self.announced_prefixes);
        for (key, route) in &wanted {
            if held.get(key) != Some(route) {
                self.announce(now, key, route);
            }
        }
        for key in held.keys().filter(|key| !wanted.contains_key(*key)) {
            let change = self.rib.remove(key, Source::Local);
            self.on_change(key, change);
        }
        self.announced_prefixes = wanted;
    }
}
