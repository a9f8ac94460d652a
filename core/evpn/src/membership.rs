//! Route target constraint (RFC 4684): who wants which routes, told as routes of AFI 1, SAFI 132.
//!
//! A peer that does it is sent no EVPN routes before it said what it wants (or for
//! [`MEMBERSHIP_WAIT`]), and then only those with such a target. One that does not gets all. A
//! reflector wants all of its clients, and of reflectors beside it what its clients want.

use crate::codec::update_of;
use crate::link::ConnId;
use crate::rib::{Path, Source};
use crate::{PeerId, PeerRole, RouteTarget, Speaker};
use bytes::Bytes;
use rustbgpd_wire as wire;
use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use wire::rtc::{RtcNlri, decode_rtc_nlri, encode_rtc_nlri};

/// AFI 1, SAFI 132 (RFC 4684 §7).
pub(crate) const MEMBERSHIP: (wire::Afi, wire::Safi) = (wire::Afi::Ipv4, wire::Safi::RtConstrain);
pub(crate) const MEMBERSHIP_OCTETS: [u8; 3] = [0, 1, 132];
/// How long EVPN routes wait for the peer's End-of-RIB of its wishes (RFC 4684 §6 wants a bound).
const MEMBERSHIP_WAIT: Duration = Duration::from_secs(10);
/// Bits of a wish for one target of one AS.
const ONE_TARGET_BITS: u8 = 96;

/// The wishes of a peer, and ours as far as it knows them. Of one session.
#[derive(Debug)]
pub(crate) struct Membership {
    heard: BTreeSet<RtcNlri>,
    wants: Wants,
    /// End-of-RIB came, or was waited for long enough.
    pub(crate) ended: bool,
    pub(crate) wait_until: Instant,
    told: BTreeSet<RtcNlri>,
    told_end: bool,
}

impl Membership {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            heard: BTreeSet::new(),
            wants: Wants::default(),
            ended: false,
            wait_until: now + MEMBERSHIP_WAIT,
            told: BTreeSet::new(),
            told_end: false,
        }
    }

    pub(crate) fn wants(&self) -> &Wants {
        &self.wants
    }
}

/// Which routes a peer wants, for looking up.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Wants(Arc<Wishes>);

#[derive(Debug, Default, PartialEq, Eq)]
struct Wishes {
    targets: BTreeSet<[u8; 8]>,
    /// Those that are not for one target.
    ranges: Vec<RtcNlri>,
}

impl Wants {
    fn of(heard: &BTreeSet<RtcNlri>) -> Self {
        let (one, ranges): (Vec<_>, Vec<_>) = heard
            .iter()
            .copied()
            .partition(|wish| wish.prefix_len == ONE_TARGET_BITS);
        let targets = one.iter().map(|wish| wish.route_target_bits.to_be_bytes());
        Self(Arc::new(Wishes {
            targets: targets.collect(),
            ranges,
        }))
    }

    /// Whether a route is wanted. One without a target, as of Type 4, is for everybody.
    pub(crate) fn admit(&self, path: &Path) -> bool {
        let targets = &path.attrs.targets;
        targets.is_empty()
            || targets.iter().any(|target| {
                let octets = target.to_bytes();
                let community = wire::ExtendedCommunity::new(u64::from_be_bytes(octets));
                self.0.targets.contains(&octets)
                    || self.0.ranges.iter().any(|wish| wish.matches(community))
            })
    }
}

/// An UPDATE about wishes.
#[derive(Debug, Default)]
pub(crate) struct Update {
    wanted: Vec<RtcNlri>,
    unwanted: Vec<RtcNlri>,
    end_of_rib: bool,
}

/// Reads what an UPDATE says about wishes; none if it is about something else. What cannot be
/// read is left out: routes are then not sent that the peer may want, which it can tell us again.
pub(crate) fn read(reach: Option<&Bytes>, unreach: Option<&Bytes>, only: bool) -> Option<Update> {
    let ours = |value: &Bytes| value.get(..3) == Some(&MEMBERSHIP_OCTETS);
    let reach = reach.filter(|value| ours(value));
    let unreach = unreach.filter(|value| ours(value));
    if reach.is_none() && unreach.is_none() {
        return None;
    }
    let mut update = Update::default();
    if let Some(value) = unreach {
        update.unwanted = decode_rtc_nlri(&value[3..]).unwrap_or_default();
        update.end_of_rib = value.len() == 3 && only;
    }
    if let Some(value) = reach {
        let next_hop = usize::from(value.get(3).copied().unwrap_or_default());
        let routes = value.get(4 + next_hop + 1..).unwrap_or_default();
        update.wanted = decode_rtc_nlri(routes).unwrap_or_default();
    }
    Some(update)
}

impl Speaker {
    /// A peer said what it wants, or no longer.
    pub(crate) fn on_membership(&mut self, id: PeerId, update: &Update) {
        let session = self.peers.get_mut(&id).and_then(|p| p.session.as_mut());
        let Some(membership) = session.and_then(|session| session.membership.as_mut()) else {
            return;
        };
        for wish in &update.unwanted {
            membership.heard.remove(wish);
        }
        membership.heard.extend(&update.wanted);
        let before = membership.wants.clone();
        membership.wants = Wants::of(&membership.heard);
        let after = membership.wants.clone();
        let was_waiting = !membership.ended;
        membership.ended |= update.end_of_rib;
        self.membership_due = true;
        if was_waiting {
            // Nothing was told yet.
            self.ready.insert(id);
        } else if before != after {
            self.wants_changed(id, &before, &after);
        }
    }

    /// Routes that were told and are not wanted any more go, those newly wanted come.
    fn wants_changed(&mut self, id: PeerId, before: &Wants, after: &Wants) {
        // Others in its group want something else.
        self.leave_group(id);
        let Some(role) = self.peers.get(&id).map(|peer| peer.config.role) else {
            return;
        };
        let reflects = self.config.role.is_reflector();
        let told: BTreeSet<PeerId> = self
            .peers
            .keys()
            .filter(|from| {
                self.origin(Source::Peer(**from))
                    .goes_to((id, role), reflects)
            })
            .copied()
            .collect();
        let session = self.peers.get_mut(&id).and_then(|p| p.session.as_mut());
        let Some(session) = session else {
            return;
        };
        for (key, source, path) in self.rib.best_after(None) {
            // What never went there is not withdrawn either.
            let goes = match source {
                Source::Local => true,
                Source::Peer(from) => told.contains(&from),
            };
            if goes && before.admit(path) != after.admit(path) {
                session.out.note(source, key);
            }
        }
        self.ready.insert(id);
    }

    pub(crate) fn on_membership_wait_over(&mut self, now: Instant, id: PeerId) {
        let session = self.peers.get_mut(&id).and_then(|p| p.session.as_mut());
        if let Some(membership) = session.and_then(|session| session.membership.as_mut())
            && !membership.ended
            && membership.wait_until <= now
        {
            membership.ended = true;
            self.ready.insert(id);
        }
    }

    /// A peer says that it told everything. A reflector that told nothing may have said so before it read
    /// what is wanted, and say the rest after it: GoBGP 3.10 has none of the wishes of a client that
    /// restarts, and does not wait for them. Where rows would go for it, it is asked again: that it reads
    /// after the wishes.
    pub(crate) fn on_end_of_rib(&mut self, now: Instant, id: PeerId) {
        let told_nothing = self.rib.count_of(id).0 == 0;
        let rows_would_go = self.deferral_until.is_some();
        let quiet_at = now + self.config.timing.quiet;
        let peer = self.peers.get_mut(&id);
        let peer = peer.filter(|peer| peer.config.role == PeerRole::Reflector);
        match peer.and_then(|peer| peer.session.as_mut()) {
            Some(session)
                if told_nothing
                    && rows_would_go
                    && session.membership.is_some()
                    && !session.asked_again =>
            {
                session.asked_again = true;
                // An answer need not have an end (RFC 2918), and not everybody can be asked.
                session.quiet_at = Some(quiet_at);
                self.ask_again(id);
            }
            _ => self.on_synced(now, id),
        }
    }

    /// Tells peers what we want, as far as they have not heard it.
    pub(crate) fn sync_membership(&mut self) {
        if !std::mem::take(&mut self.membership_due) {
            return;
        }
        let ids: Vec<PeerId> = self.peers.keys().copied().collect();
        for id in ids {
            let wanted = self.wanted_of(id);
            let (asn_next_hop, four_octet_as) = match self.peers.get(&id) {
                Some(peer) => (
                    self.config.router_id,
                    peer.session.as_ref().is_some_and(|s| s.four_octet_as),
                ),
                None => continue,
            };
            let session = self.peers.get_mut(&id).and_then(|p| p.session.as_mut());
            let Some(session) = session else {
                continue;
            };
            let conn = session.conn;
            let Some(membership) = &mut session.membership else {
                continue;
            };
            let more: Vec<_> = wanted.difference(&membership.told).copied().collect();
            let less: Vec<_> = membership.told.difference(&wanted).copied().collect();
            membership.told = wanted;
            let ends = !std::mem::replace(&mut membership.told_end, true);
            let mut messages = announcements(&more, asn_next_hop, four_octet_as);
            messages.extend(withdrawals(&less));
            if ends {
                messages.push(update_of(15, &MEMBERSHIP_OCTETS, &[]));
            }
            self.tell(id, conn, messages);
        }
    }

    /// Wishes go before all routes, whatever room there is: they are few.
    fn tell(&mut self, id: PeerId, conn: ConnId, messages: Vec<Bytes>) {
        if messages.is_empty() {
            return;
        }
        if let Some(link) = self.link_mut(conn) {
            messages
                .into_iter()
                .for_each(|message| link.send_raw(message));
        }
        self.ready.insert(id);
    }

    /// What we want of a peer.
    fn wanted_of(&self, of: PeerId) -> BTreeSet<RtcNlri> {
        let all = BTreeSet::from([RtcNlri::DEFAULT]);
        let to_client = self
            .peers
            .get(&of)
            .is_some_and(|peer| peer.config.role == PeerRole::Client);
        let reflects = self.config.role.is_reflector();
        // Before a host knows its instances it cannot say that it does not want something.
        if reflects && to_client || !self.knows_instances() {
            return all;
        }
        let mut wanted: BTreeSet<RtcNlri> = self
            .vrfs
            .import_targets()
            .map(|target| self.wish_for(target))
            .collect();
        if reflects {
            for (_, peer) in self.configured() {
                if peer.config.role != PeerRole::Client {
                    continue;
                }
                match peer.session.as_ref().map(|session| &session.membership) {
                    Some(Some(membership)) => wanted.extend(&membership.heard),
                    Some(None) => return all,
                    None => wanted.extend(&peer.wanted_last),
                }
            }
        }
        if wanted.contains(&RtcNlri::DEFAULT) {
            return all;
        }
        wanted
    }

    fn wish_for(&self, target: RouteTarget) -> RtcNlri {
        RtcNlri {
            origin_as: self.config.asn.get(),
            route_target_bits: u64::from_be_bytes(target.to_bytes()),
            prefix_len: ONE_TARGET_BITS,
        }
    }
}

/// What is remembered of a peer's wishes when its session is over: others are not to be told that
/// nobody wants what it will want again.
pub(crate) fn remembered(membership: Option<&Membership>) -> BTreeSet<RtcNlri> {
    membership.map_or_else(
        || BTreeSet::from([RtcNlri::DEFAULT]),
        |membership| membership.heard.clone(),
    )
}

fn chunks(wishes: &[RtcNlri]) -> impl Iterator<Item = Vec<u8>> {
    // 13 octets each, in messages of 4096.
    wishes.chunks(300).map(|some| {
        let mut octets = vec![];
        // Fails only for lengths that none of ours has.
        drop(encode_rtc_nlri(some, &mut octets));
        octets
    })
}

fn announcements(wishes: &[RtcNlri], next_hop: Ipv4Addr, four_octet_as: bool) -> Vec<Bytes> {
    let attributes = [
        wire::PathAttribute::Origin(wire::Origin::Igp),
        wire::PathAttribute::AsPath(wire::AsPath { segments: vec![] }),
        wire::PathAttribute::LocalPref(100),
    ];
    let mut attrs = vec![];
    // Fails only for attributes that carry routes.
    drop(wire::attribute::encode_path_attributes(
        &attributes,
        &mut attrs,
        four_octet_as,
        false,
    ));
    let with_head = |octets: Vec<u8>| {
        let head = [&MEMBERSHIP_OCTETS[..], &[4], &next_hop.octets(), &[0]].concat();
        update_of(14, &[head, octets].concat(), &attrs)
    };
    chunks(wishes).map(with_head).collect()
}

fn withdrawals(wishes: &[RtcNlri]) -> Vec<Bytes> {
    let with_head =
        |octets: Vec<u8>| update_of(15, &[&MEMBERSHIP_OCTETS[..], &octets].concat(), &[]);
    chunks(wishes).map(with_head).collect()
}
