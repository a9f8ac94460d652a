//! Replicas that were removed, and may not know it.

use super::Host;
use crate::liveness::Links;
use crate::members::Seat;
use crate::message::{Envelope, Message};
use crate::{HostId, ReplicaId, Time};
use blocks::VolumeId;
use std::collections::BTreeMap;

/// How often a host is told of a replica that it is to delete, until it says that it did.
const TELL_MICROS: u64 = 1_000_000;

/// Replicas that went while this host looked on. A replica that misses its removal hears nobody any more: leaders speak
/// to members. So who saw it go says so, whenever the replica's host is there, until that answers. What a host forgets as
/// it starts anew the replica asks for: it sees that start.
#[derive(Debug, Default)]
pub(super) struct Dismissed(BTreeMap<(VolumeId, ReplicaId), Dismissal>);

#[derive(Debug)]
struct Dismissal {
    seat: Seat,
    /// Index of the entry since which it is none.
    config: u64,
    /// When to say so next.
    at: Time,
}

impl Dismissed {
    /// When somebody is to be told: somebody who is there.
    pub(super) fn deadline(&self, links: &Links) -> Option<Time> {
        let up = self
            .0
            .values()
            .filter(|it| links.is_up(it.seat.member.host));
        up.map(|it| it.at).min()
    }

    /// Nothing of this volume is this host's affair.
    pub(super) fn forget(&mut self, volume: VolumeId) {
        self.0.retain(|(whose, _), _| *whose != volume);
    }
}

impl Host {
    /// Replicas are none as of an entry.
    pub(super) fn dismiss(&mut self, volume: VolumeId, config: u64, seats: Vec<Seat>) {
        for seat in seats {
            let at = self.now;
            let dismissal = Dismissal { seat, config, at };
            let key = (volume, seat.member.replica);
            self.dismissed.0.insert(key, dismissal);
        }
        self.tell_dismissed();
    }

    /// Tells those that are there. Who is on another disk has none of it.
    pub(super) fn tell_dismissed(&mut self) {
        let (now, links) = (self.now, &self.links);
        let dismissed = &mut self.dismissed.0;
        dismissed.retain(|_, it| links.is_on(&it.seat));
        for ((volume, replica), it) in dismissed {
            let host = it.seat.member.host;
            if it.at > now || !links.is_up(host) {
                continue;
            }
            it.at = now + TELL_MICROS;
            let (volume, replica, config) = (*volume, *replica, it.config);
            let message = Message::Removed { replica, config };
            self.out.messages.push((host, Envelope { volume, message }));
        }
    }

    /// A host says that a replica here is none. What is not here is said to be gone. What is here goes by the word of a
    /// member that it knows, or of anybody when none of these is left: any host of the cluster could say so.
    pub(super) fn removed(
        &mut self,
        from: HostId,
        volume: VolumeId,
        replica: ReplicaId,
        config: u64,
    ) {
        if self.opening.contains_key(&volume) || self.dead.is_some() {
            return;
        }
        match self.groups.get(&volume) {
            Some(group) if group.me == replica => {
                if group.configured >= config {
                    // Who says so missed that it came.
                    if let Some(asks) = group.members.replica(from) {
                        self.tell_members(from, volume, asks);
                    }
                    return;
                }
                if group.believes(from) {
                    self.out.gone.push(volume);
                } else {
                    self.with(volume, |group, _| group.wonder());
                }
            }
            _ => self.is_not_here(from, volume, replica),
        }
    }

    /// Says that a replica is not here, if that is certain.
    pub(super) fn is_not_here(&mut self, asks: HostId, volume: VolumeId, replica: ReplicaId) {
        let group = self.groups.get(&volume);
        let other = group.is_some_and(|group| group.me != replica);
        let none = self.store.volume(volume).is_none() && !self.opening.contains_key(&volume);
        if self.dead.is_none() && (other || none) {
            let message = Message::Gone { replica };
            self.out.messages.push((asks, Envelope { volume, message }));
        }
    }

    /// A host has a replica no more.
    pub(super) fn is_gone(&mut self, from: HostId, volume: VolumeId, replica: ReplicaId) {
        let key = (volume, replica);
        let dismissed = self.dismissed.0.get(&key);
        if dismissed.is_some_and(|it| it.seat.member.host == from) {
            self.dismissed.0.remove(&key);
        }
        if let Some(group) = self.groups.get_mut(&volume) {
            group.departs(from, replica);
        }
    }
}
