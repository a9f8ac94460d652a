//! What a person may ask about MACs, and what is wrong in plain words.

use crate::clash::Clash;
use crate::limit::MacLevel;
use crate::mobility::{Claim, Contest, Holder};
use crate::vrf::{Vrf, Vrfs};
use crate::{Counts, PeerId, Role, Speaker};
use model::{Asn, Encoding, MacAddr, Tag, Vni};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

/// A MAC lost to another VTEP is news only after this: a NIC that moves is on two hosts for a
/// moment.
const MOVE_TIME: Duration = Duration::from_secs(10);

/// One MAC of one instance, and why it is where it is.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct MacInfo {
    /// The instance.
    pub vni: Vni,
    /// The broadcast domain.
    pub tag: Tag,
    /// The MAC.
    pub mac: MacAddr,
    /// True if a NIC of this host has it, whoever won.
    pub local: bool,
    /// The VTEP that has it; this host's own address if it is here.
    pub vtep: IpAddr,
    /// Mobility sequence of the winning claim.
    pub sequence: u32,
    /// Static bit of the winning claim.
    pub sticky: bool,
    /// Addresses bound to it.
    pub addresses: BTreeSet<IpAddr>,
    /// Every VTEP's claim, the winning one first.
    pub claims: Vec<ClaimInfo>,
    /// True if it is a duplicate about which nothing is sent or taken in.
    pub frozen: bool,
    /// How long it has been frozen.
    pub frozen_since: Option<Duration>,
    /// When that ends by itself.
    pub frozen_for: Option<Duration>,
    /// True if it has no row, because the instance has too many MACs.
    pub waiting: bool,
    /// Moves that routes brought, for as long as somebody has claimed it without a break.
    pub moves: u64,
    /// Age of the winning claim.
    pub age: Duration,
}

/// One VTEP's claim to a MAC.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct ClaimInfo {
    /// Who claims it.
    pub vtep: IpAddr,
    /// True if that is this host.
    pub local: bool,
    /// Mobility sequence.
    pub sequence: u32,
    /// The static bit.
    pub sticky: bool,
    /// Addresses it names.
    pub addresses: BTreeSet<IpAddr>,
    /// What decided against it; none if it won.
    pub lost_by: Option<&'static str>,
    /// Time since it was made or last changed.
    pub age: Duration,
}

/// A speaker in numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// What it does.
    pub role: Role,
    /// Its BGP identifier.
    pub router_id: Ipv4Addr,
    /// Its AS.
    pub asn: Asn,
    /// Its VTEP address, once there is local state.
    pub vtep: Option<IpAddr>,
    /// How much it holds.
    pub counts: Counts,
    /// Paths by route type, of the types that there are routes of.
    pub paths: BTreeMap<u8, PathCount>,
}

/// Paths to the routes of one type.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PathCount {
    /// All.
    pub all: usize,
    /// Those kept for a peer whose session is down.
    pub stale: usize,
}

/// Something that a person has to set right.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Alert {
    /// Which kind it is.
    pub kind: AlertKind,
    /// What is wrong.
    pub what: String,
    /// Where: an instance, a peer, a host.
    pub place: String,
    /// How long it has been so.
    pub since: Duration,
    /// What to do about it.
    pub remedy: String,
}

/// Kinds of [`Alert`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum AlertKind {
    /// Another host announces this host's VTEP address.
    DuplicateVtep,
    /// Another host uses this host's router id, or two peers share one.
    DuplicateRouterId,
    /// A MAC moves to and fro.
    DuplicateMac,
    /// An address goes to and fro between MACs.
    DuplicateIp,
    /// A static MAC is claimed by somebody else.
    StickyMac,
    /// A MAC of this host is in use elsewhere.
    LostMac,
    /// A MAC's mobility sequence is at its end.
    SequenceExhausted,
    /// An instance has as many MACs as it may, or nearly.
    MacLimit,
    /// A client announces routes of another host.
    ForeignRoutes,
    /// Prefixes behind routers elsewhere that cannot be used.
    UnusedPrefixes,
    /// A VTEP has an instance in the other encoding.
    OtherEncoding,
}

impl AlertKind {
    /// Every kind.
    pub const ALL: [Self; 11] = [
        Self::DuplicateVtep,
        Self::DuplicateRouterId,
        Self::DuplicateMac,
        Self::DuplicateIp,
        Self::StickyMac,
        Self::LostMac,
        Self::SequenceExhausted,
        Self::MacLimit,
        Self::ForeignRoutes,
        Self::UnusedPrefixes,
        Self::OtherEncoding,
    ];

    /// Its name, as in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::DuplicateVtep => "duplicate-vtep",
            Self::DuplicateRouterId => "duplicate-router-id",
            Self::DuplicateMac => "duplicate-mac",
            Self::DuplicateIp => "duplicate-ip",
            Self::StickyMac => "sticky-mac",
            Self::LostMac => "lost-mac",
            Self::SequenceExhausted => "sequence-exhausted",
            Self::MacLimit => "mac-limit",
            Self::ForeignRoutes => "foreign-routes",
            Self::UnusedPrefixes => "unused-prefixes",
            Self::OtherEncoding => "other-encoding",
        }
    }
}

impl Speaker {
    /// Numbers of everything. Walks all paths.
    pub fn summary(&self) -> Summary {
        let mut paths: BTreeMap<u8, PathCount> = BTreeMap::new();
        for (key, of_route) in self.rib.every() {
            let count = paths.entry(key.kind()).or_default();
            for path in of_route {
                count.all += 1;
                count.stale += usize::from(path.stale);
            }
        }
        Summary {
            role: self.config.role,
            router_id: self.config.router_id,
            asn: self.config.asn,
            vtep: self.vrfs.vtep,
            counts: self.counts(),
            paths,
        }
    }

    /// Every MAC of every instance here, in order of instance, tag and MAC.
    pub fn macs(&self, now: Instant) -> Vec<MacInfo> {
        let vrfs = self.vrfs.vrfs.iter();
        let of_vrf = |(vni, vrf): (&Vni, &Vrf)| {
            let macs = vrf.macs.iter();
            let info = |((tag, mac), contest): (&(Tag, MacAddr), &Contest)| {
                self.vrfs.mac_info(now, (*vni, *tag, *mac), vrf, contest)
            };
            macs.filter_map(info).collect::<Vec<_>>()
        };
        vrfs.flat_map(of_vrf).collect()
    }

    /// What is wrong, as far as this speaker can see it.
    pub fn alerts(&self, now: Instant) -> Vec<Alert> {
        let mut alerts = self.clash_alerts(now);
        alerts.extend(self.shared_router_ids(now));
        alerts.extend(self.foreign_alerts(now));
        alerts.extend(self.vrfs.prefix_alerts(now));
        for (vni, vrf) in &self.vrfs.vrfs {
            alerts.extend(self.vrfs.duplicate_alerts(now, *vni, vrf));
            alerts.extend(self.vrfs.contest_alerts(now, *vni, vrf));
            alerts.extend(self.vrfs.limit_alert(now, *vni, vrf));
            alerts.extend(encoding_alert(now, *vni, vrf));
        }
        alerts
    }

    fn clash_alerts(&self, now: Instant) -> Vec<Alert> {
        let session = |peer: PeerId| {
            let peer = self
                .peers
                .get(&peer)
                .filter(|peer| peer.session.is_some())?;
            Some(peer.counters.sessions)
        };
        let all = self.clashes.all(session);
        let alert = |(clash, since): (Clash, Instant)| {
            let since = now.saturating_duration_since(since);
            let own = self.config.router_id;
            match clash {
                Clash::Vtep { router_id, peer } => Alert {
                    kind: AlertKind::DuplicateVtep,
                    what: format!(
                        "router {router_id} announces this host's VTEP address {} as its own",
                        self.vrfs.vtep.unwrap_or(own.into())
                    ),
                    place: format!("routes from {peer}"),
                    since,
                    remedy: format!(
                        "give the host of router {router_id} an underlay address of its own; until \
                         then each of the two gets frames meant for the other"
                    ),
                },
                Clash::RouterId { vtep, peer } => Alert {
                    kind: AlertKind::DuplicateRouterId,
                    what: format!("VTEP {vtep} uses this host's BGP router id {own}"),
                    place: format!("routes from {peer}"),
                    since,
                    remedy: format!(
                        "give the host at {vtep} a router id of its own; until then neither of \
                         the two sees the other's routes"
                    ),
                },
            }
        };
        all.into_iter().map(alert).collect()
    }

    /// Peers with one router id: seen by a reflector, or by a client of two.
    fn shared_router_ids(&self, now: Instant) -> Vec<Alert> {
        let mut by_id: BTreeMap<Ipv4Addr, Vec<(PeerId, Instant)>> = BTreeMap::new();
        for (id, peer) in &self.peers {
            if let Some(session) = &peer.session {
                let peers = by_id.entry(session.router_id).or_default();
                peers.push((*id, peer.since));
            }
        }
        let shared = by_id.into_iter().filter(|(_, peers)| peers.len() > 1);
        let alert = |(router_id, peers): (Ipv4Addr, Vec<(PeerId, Instant)>)| {
            let since = peers.iter().map(|(_, since)| *since).max().unwrap_or(now);
            let names: Vec<String> = peers.iter().map(|(id, _)| id.to_string()).collect();
            Alert {
                kind: AlertKind::DuplicateRouterId,
                what: format!(
                    "peers {} have one BGP router id, {router_id}",
                    names.join(" and ")
                ),
                place: "BGP sessions".to_owned(),
                since: now.saturating_duration_since(since),
                remedy:
                    "give each of them a router id of its own; until then they do not see each \
                         other's routes"
                        .to_owned(),
            }
        };
        shared.map(alert).collect()
    }
}

impl Vrfs {
    fn mac_info(
        &self,
        now: Instant,
        (vni, tag, mac): (Vni, Tag, MacAddr),
        vrf: &Vrf,
        contest: &Contest,
    ) -> Option<MacInfo> {
        let own = self.vtep?;
        let holder = contest.holder()?;
        let vtep = holder.remote().unwrap_or(own);
        let winner = contest.winner()?;
        let mut claims = claims_of(now, contest, vtep, winner);
        claims.sort_by_key(|claim| (claim.lost_by.is_some(), claim.vtep));
        let held = claims.iter().find(|claim| claim.vtep == vtep);
        let bound = |ip: &IpAddr| match holder {
            Holder::Here => vrf.local_bound.get(&(tag, *ip)) == Some(&mac),
            Holder::Vtep(_) => {
                let rows = self.rows().evis.get(&vni);
                rows.is_some_and(|rows| rows.neighbours.get(&(tag, *ip)) == Some(&mac))
            }
        };
        let addresses = claims.iter().flat_map(|claim| &claim.addresses).copied();
        let addresses = addresses.filter(bound).collect();
        let watch = vrf.mac_watches.get(&(tag, mac));
        let frozen = contest.pinned.is_some();
        Some(MacInfo {
            vni,
            tag,
            mac,
            local: contest.local.is_some(),
            vtep,
            sequence: held.map_or(0, |claim| claim.sequence),
            sticky: held.is_some_and(|claim| claim.sticky),
            addresses,
            frozen,
            frozen_since: watch
                .and_then(|watch| watch.detected)
                .filter(|_| frozen)
                .map(|at| now.saturating_duration_since(at)),
            frozen_for: self.thaws_in(now, (vni, tag, mac)).filter(|_| frozen),
            waiting: vrf.waiting.contains(&(tag, mac)),
            moves: watch.map_or(0, |watch| watch.total),
            age: held.map_or(Duration::ZERO, |claim| claim.age),
            claims,
        })
    }

    fn thaws_in(&self, now: Instant, key: (Vni, Tag, MacAddr)) -> Option<Duration> {
        let frozen = crate::vrf::Frozen::Mac(key);
        let (at, _) = self.thaw_at.iter().find(|(_, other)| *other == frozen)?;
        Some(at.saturating_duration_since(now))
    }

    fn duplicate_alerts(&self, now: Instant, vni: Vni, vrf: &Vrf) -> Vec<Alert> {
        let policy = &self.policy.duplicate;
        let alert = |kind, (tag, key): (Tag, &dyn Display), what, frozen, since, how: &str| Alert {
            kind,
            what: format!("{what}{}", if frozen { "; it is frozen" } else { "" }),
            place: place(vni, tag),
            since: now.saturating_duration_since(since),
            remedy: match frozen {
                true => format!("{how}, then `vpc evpn clear {key} --vni {vni}`"),
                false => how.to_owned(),
            },
        };
        let mut alerts = vec![];
        for ((tag, mac), watch) in &vrf.mac_watches {
            if let Some(since) = watch.duplicate_since(now, policy) {
                let vteps = list(&watch.between);
                let what = format!("MAC {mac} moves to and fro between {vteps}");
                let how = "find the two NICs with this MAC and change one of them";
                let kind = AlertKind::DuplicateMac;
                alerts.push(alert(kind, (*tag, mac), what, watch.frozen, since, how));
            }
        }
        for ((tag, ip), watch) in &vrf.ip_watches {
            if let Some(since) = watch.duplicate_since(now, policy) {
                let macs = list(&watch.between);
                let what = format!("address {ip} goes to and fro between {macs}");
                let how = "find the two NICs with this address and change one of them";
                let kind = AlertKind::DuplicateIp;
                alerts.push(alert(kind, (*tag, ip), what, watch.frozen, since, how));
            }
        }
        alerts
    }

    /// Static MACs that others claim, and MACs of this host that are elsewhere.
    fn contest_alerts(&self, now: Instant, vni: Vni, vrf: &Vrf) -> Vec<Alert> {
        let mut alerts = vec![];
        for ((tag, mac), (since, _)) in &vrf.challenged {
            let Some(contest) = vrf.macs.get(&(*tag, *mac)) else {
                continue;
            };
            let (challengers, both) = contest.challengers();
            let (Some(winner), false) = (contest.winner(), challengers.is_empty()) else {
                continue;
            };
            let also = if both { ", as static too" } else { "" };
            let vteps = list(&challengers);
            alerts.push(Alert {
                kind: AlertKind::StickyMac,
                what: format!(
                    "static MAC {mac} of VTEP {} is claimed by {vteps}{also}",
                    winner.vtep
                ),
                place: place(vni, *tag),
                since: now.saturating_duration_since(*since),
                remedy: format!("find out who uses this MAC at {vteps}; it stays where it is"),
            });
        }
        for (tag, mac) in &vrf.locals {
            let Some(contest) = vrf.macs.get(&(*tag, *mac)) else {
                continue;
            };
            let (Some(local), Some(Holder::Vtep(vtep))) = (&contest.local, contest.holder()) else {
                continue;
            };
            let since = now.saturating_duration_since(local.settled_at);
            if since >= MOVE_TIME && contest.pinned.is_none() {
                alerts.push(Alert {
                    kind: AlertKind::LostMac,
                    what: format!("MAC {mac} of a NIC here is in use at VTEP {vtep}"),
                    place: place(vni, *tag),
                    since,
                    remedy: format!("detach the NIC here, or whatever has this MAC at {vtep}"),
                });
            }
            let remote = contest.best_remote().map(|claim| claim.sequence);
            if local.claim.sequence == u32::MAX && remote == Some(u32::MAX) {
                alerts.push(Alert {
                    kind: AlertKind::SequenceExhausted,
                    what: format!("the mobility sequence of MAC {mac} is at its end"),
                    place: place(vni, *tag),
                    since,
                    remedy: "detach its NIC everywhere, then attach it where it belongs: the \
                             sequence begins anew"
                        .to_owned(),
                });
            }
        }
        alerts
    }

    fn limit_alert(&self, now: Instant, vni: Vni, vrf: &Vrf) -> Option<Alert> {
        let limit = self.policy.mac_limit?;
        let waiting = vrf.waiting.len();
        let held = self.rows().evis.get(&vni).map_or(0, |rows| rows.macs.len());
        let what = match vrf.level {
            MacLevel::Below => return None,
            MacLevel::Near => format!("{held} of at most {} remote MACs", limit.max),
            MacLevel::Over => {
                let max = limit.max;
                format!("{waiting} remote MACs beyond the limit of {max} have no row")
            }
        };
        let since = vrf.level_since;
        Some(Alert {
            kind: AlertKind::MacLimit,
            what,
            place: place(vni, None),
            since: since.map_or(Duration::ZERO, |at| now.saturating_duration_since(at)),
            remedy: "find out who announces so many, or raise the limit".to_owned(),
        })
    }
}

/// VTEPs whose frames are made otherwise than those of this host.
fn encoding_alert(now: Instant, vni: Vni, vrf: &Vrf) -> Option<Alert> {
    let since = vrf.other_encoding.values().map(|(_, since)| *since).min()?;
    let of: BTreeSet<IpAddr> = vrf.other_encoding.values().map(|(vtep, _)| *vtep).collect();
    let vteps = list(&of);
    let (theirs, ours) = match vrf.encoding {
        Encoding::VlanAwareBundle => (
            "without VLANs",
            "a VLAN-aware bundle (RFC 7432 section 6.3)",
        ),
        Encoding::VlanBased => (
            "with VLANs, as a bundle",
            "one broadcast domain (RFC 7432 section 6.1)",
        ),
    };
    Some(Alert {
        kind: AlertKind::OtherEncoding,
        what: format!(
            "announced {theirs} by {vteps}, and here it is {ours}: no frame gets through"
        ),
        place: place(vni, None),
        since: now.saturating_duration_since(since),
        remedy: format!(
            "give the VNI one encoding at {vteps} and here; FRR, and whatever else has no bundles, takes part in VPCs \
             that are vlan-based"
        ),
    })
}

/// One entry for each VTEP: its best claim, and the addresses of all.
fn claims_of(now: Instant, contest: &Contest, holder: IpAddr, winner: &Claim) -> Vec<ClaimInfo> {
    let info = |claim: &Claim, local| ClaimInfo {
        vtep: claim.vtep,
        local,
        sequence: claim.sequence,
        sticky: claim.sticky,
        addresses: BTreeSet::new(),
        lost_by: (claim.vtep != holder).then(|| match contest.pinned {
            Some(_) => "frozen",
            None => claim.lost_by(winner),
        }),
        age: now.saturating_duration_since(claim.since),
    };
    let mut best: BTreeMap<IpAddr, &Claim> = BTreeMap::new();
    for claim in contest.remote.values() {
        let held = best.entry(claim.vtep).or_insert(claim);
        if claim.rank() > held.rank() {
            *held = claim;
        }
    }
    let mut claims: Vec<ClaimInfo> = best.values().map(|claim| info(claim, false)).collect();
    for claim in &mut claims {
        let of_vtep = contest.remote.values().filter(|c| c.vtep == claim.vtep);
        claim.addresses = of_vtep.filter_map(|c| c.ip).collect();
    }
    if let Some(local) = &contest.local {
        let mut claim = info(&local.claim, true);
        claim.addresses.clone_from(&local.addresses);
        claims.push(claim);
    }
    claims
}

fn place(vni: Vni, tag: Tag) -> String {
    match tag {
        Some(vlan) => format!("EVPN instance {vni}, VLAN {vlan}"),
        None => format!("EVPN instance {vni}"),
    }
}

fn list<T: Display>(items: &BTreeSet<T>) -> String {
    let items: Vec<String> = items.iter().map(ToString::to_string).collect();
    items.join(" and ")
}
