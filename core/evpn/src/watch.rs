//! What takes the time of day to judge: duplicates and when they are forgiven, static MACs that
//! others claim, instances that are full.

use crate::codec::RouteKey;
use crate::duplicate::{DuplicateAction, Watch};
use crate::local::OwnRoute;
use crate::mobility::Holder;
use crate::speaker::Event;
use crate::vrf::{Cause, Frozen, IpKey, MacKey, Note, Vrfs};
use model::{MacAddr, Tag, VlanId, Vni};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Instant;

impl Vrfs {
    /// Looks at what happened since last asked; what of it a person should know.
    pub(crate) fn judge(&mut self, now: Instant) -> Vec<Event> {
        let mut events = vec![];
        while let Some((at, frozen)) = self.thaw_at.first().copied()
            && at <= now
        {
            events.extend(self.thaw(now, frozen));
        }
        for note in std::mem::take(&mut self.notes) {
            let event = match note {
                Note::MacMoved(key, from, to) => self.mac_moved(now, key, from, to),
                Note::IpMoved(key, from, to) => self.ip_moved(now, key, from, to),
                Note::Challenged(key) => self.challenged(now, key),
                Note::Level(vni) => self.level(now, vni),
                Note::Settled(key) => {
                    self.settled(now, key);
                    None
                }
            };
            events.extend(event);
        }
        events
    }

    /// When to judge again although nothing happens.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.thaw_at.first().map(|(at, _)| *at)
    }

    fn mac_moved(&mut self, now: Instant, key: MacKey, from: Holder, to: Holder) -> Option<Event> {
        let own = self.vtep?;
        let policy = self.policy.duplicate;
        let (vni, tag, mac) = key;
        let vrf = self.vrfs.get_mut(&vni)?;
        let contest = vrf.macs.get_mut(&(tag, mac))?;
        let address = |holder: Holder| holder.remote().unwrap_or(own);
        let watch = vrf
            .mac_watches
            .entry((tag, mac))
            .or_insert_with(|| Watch::new(now));
        if !watch.moved(now, &policy, address(from), address(to)) {
            return None;
        }
        let frozen = policy.action == DuplicateAction::Freeze && contest.local.is_some();
        if frozen {
            contest.pinned = contest.settled;
            watch.frozen = true;
        }
        let vteps = watch.between.iter().copied().collect();
        let until = policy.recover_after.filter(|_| frozen);
        self.thaw_at
            .extend(until.map(|time| (now + time, Frozen::Mac(key))));
        Some(Event::DuplicateMac {
            vni,
            tag,
            mac,
            vteps,
            moves: policy.moves,
            frozen,
        })
    }

    fn ip_moved(&mut self, now: Instant, key: IpKey, from: MacAddr, to: MacAddr) -> Option<Event> {
        let policy = self.policy.duplicate;
        let (vni, tag, ip) = key;
        let vrf = self.vrfs.get_mut(&vni)?;
        let watch = vrf
            .ip_watches
            .entry((tag, ip))
            .or_insert_with(|| Watch::new(now));
        if !watch.moved(now, &policy, from, to) {
            return None;
        }
        let here = vrf.local_owners.contains_key(&(tag, ip));
        let frozen = policy.action == DuplicateAction::Freeze && here;
        watch.frozen = frozen;
        let macs = watch.between.iter().copied().collect();
        let until = policy.recover_after.filter(|_| frozen);
        self.thaw_at
            .extend(until.map(|time| (now + time, Frozen::Ip(key))));
        Some(Event::DuplicateIp {
            vni,
            tag,
            ip,
            macs,
            moves: policy.moves,
            frozen,
        })
    }

    fn challenged(&mut self, now: Instant, (vni, tag, mac): MacKey) -> Option<Event> {
        let own = self.vtep?;
        let vrf = self.vrfs.get_mut(&vni)?;
        let contest = vrf.macs.get(&(tag, mac))?;
        let (challengers, both) = contest.challengers();
        let holder = contest.holder()?.remote().unwrap_or(own);
        let (_, told) = vrf
            .challenged
            .entry((tag, mac))
            .or_insert_with(|| (now, BTreeSet::new()));
        let fresh: Vec<IpAddr> = challengers.difference(told).copied().collect();
        told.extend(&fresh);
        (!fresh.is_empty()).then_some(Event::StickyMac {
            vni,
            tag,
            mac,
            holder,
            challengers: fresh,
            both,
        })
    }

    fn level(&mut self, now: Instant, vni: Vni) -> Option<Event> {
        let limit = self.policy.mac_limit?;
        let vrf = self.vrfs.get_mut(&vni)?;
        let level = vrf.level;
        let told = std::mem::replace(&mut vrf.told_level, level);
        if told == level {
            return None;
        }
        vrf.level_since = Some(now);
        Some(Event::MacLimit {
            vni,
            level,
            waiting: vrf.waiting.len(),
            max: limit.max,
        })
    }

    fn settled(&mut self, now: Instant, (vni, tag, mac): MacKey) {
        let vrf = self.vrfs.get_mut(&vni);
        let contest = vrf.and_then(|vrf| vrf.macs.get_mut(&(tag, mac)));
        if let Some(local) = contest.and_then(|contest| contest.local.as_mut()) {
            local.settled_at = now;
        }
    }

    /// Gives something frozen another chance; what to tell, if it was frozen.
    pub(crate) fn thaw(&mut self, now: Instant, frozen: Frozen) -> Option<Event> {
        self.thaw_at.retain(|(_, other)| *other != frozen);
        match frozen {
            Frozen::Mac((vni, tag, mac)) => {
                let vrf = self.vrfs.get_mut(&vni)?;
                let watch = vrf.mac_watches.get_mut(&(tag, mac))?;
                let was_frozen = watch.frozen;
                watch.forgive(now);
                vrf.macs.get_mut(&(tag, mac))?.pinned = None;
                self.settle_mac(vni, tag, mac, Cause::Command);
                self.settle_bound(vni, tag, mac);
                was_frozen.then_some(Event::DuplicateCleared {
                    vni,
                    tag,
                    what: mac.to_string(),
                })
            }
            Frozen::Ip((vni, tag, ip)) => {
                let vrf = self.vrfs.get_mut(&vni)?;
                let watch = vrf.ip_watches.get_mut(&(tag, ip))?;
                let was_frozen = watch.frozen;
                watch.forgive(now);
                let macs = vrf.local_owners.get(&(tag, ip)).cloned();
                self.settle_ip(vni, tag, ip, Cause::Command);
                // What was not sent meanwhile is sent now.
                let macs = macs.into_iter().flatten();
                self.contested.extend(macs.map(|mac| (vni, tag, mac)));
                was_frozen.then_some(Event::DuplicateCleared {
                    vni,
                    tag,
                    what: ip.to_string(),
                })
            }
        }
    }

    /// Gives everything of an instance another chance.
    pub(crate) fn thaw_all(&mut self, now: Instant, vni: Vni) {
        for frozen in self.frozen(vni) {
            self.thaw(now, frozen);
        }
    }

    fn frozen(&self, vni: Vni) -> Vec<Frozen> {
        let Some(vrf) = self.vrfs.get(&vni) else {
            return vec![];
        };
        let macs = vrf.mac_watches.iter().filter(|(_, watch)| watch.frozen);
        let ips = vrf.ip_watches.iter().filter(|(_, watch)| watch.frozen);
        let macs = macs.map(|((tag, mac), _)| Frozen::Mac((vni, *tag, *mac)));
        macs.chain(ips.map(|((tag, ip), _)| Frozen::Ip((vni, *tag, *ip))))
            .collect()
    }

    /// Leaves what is frozen as it was announced.
    pub(crate) fn keep_frozen(
        &self,
        vni: Vni,
        wanted: &mut BTreeMap<RouteKey, OwnRoute>,
        held: &BTreeMap<RouteKey, OwnRoute>,
    ) {
        if self.frozen(vni).is_empty() {
            return;
        }
        let is_frozen = |key: &RouteKey| match key {
            RouteKey::MacIp { tag, mac, ip, .. } => self.is_frozen((vni, tag_of(*tag), *mac), *ip),
            _ => false,
        };
        wanted.retain(|key, _| !is_frozen(key));
        let kept = held.iter().filter(|(key, _)| is_frozen(key));
        wanted.extend(kept.map(|(key, route)| (key.clone(), route.clone())));
    }
}

/// The tag of a route of our own.
fn tag_of(raw: u32) -> Tag {
    let raw = u16::try_from(raw).ok()?;
    VlanId::new(raw).ok()
}
