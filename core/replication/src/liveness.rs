//! Which hosts are there, and what was promised to them: once per pair of hosts, for all groups.
//!
//! A frame that is heard makes a promise: for [`PROMISE_MICROS`] from then on nobody is helped to take a
//! group over from a leader on the sender's host. The promise is told by an echo of the frame's time, by
//! the sender's own clock; so the sender knows that it holds for [`LEASE_MICROS`] from when it sent. The
//! two clocks are never compared, only their speeds have to be alike.
//!
//! A promise is about what a replica follows when it is made. So a follower counts as one from an answer in the leader's
//! term on, and for as long as one lease comes before the last is over. After a gap, as of a leader that was stopped,
//! it may follow another one, and the next lease says nothing before it answers in that term again.

use crate::members::Seat;
use crate::message::{Echo, Frame};
use crate::{BEAT_MICROS, DOWN_MICROS, HostId, LEASE_MICROS, PROMISE_MICROS, Time};
use std::collections::BTreeMap;

/// The disk of a host that goes on without one.
const NO_DISK: u128 = u128::MAX;

#[derive(Debug)]
pub(crate) struct Links {
    me: HostId,
    incarnation: u64,
    disk: u128,
    started: Time,
    peers: BTreeMap<HostId, Link>,
}

#[derive(Debug, Default)]
struct Link {
    incarnation: u64,
    /// The format of its disk, 0 until it is known.
    disk: u128,
    /// The newest frame that was heard, by the peer's clock.
    heard: Option<Time>,
    promised_until: Time,
    leased_until: Time,
    /// The lease goes on without a gap since this frame was sent.
    leased_since: Time,
    /// What the frame says that is being heard: the newest of this host's frames that its sender had heard.
    echoed: Option<Time>,
    up_until: Time,
    up: bool,
    beat_at: Time,
}

/// What a frame says of its sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Heard {
    /// It is of an earlier start, and counts no more.
    Stale,
    /// As before.
    Same,
    /// It was down.
    CameUp,
    /// It was started again, and knows nothing of what it promised.
    Restarted,
}

impl Links {
    pub(crate) fn new(me: HostId, incarnation: u64, disk: u128, started: Time) -> Self {
        Self {
            me,
            incarnation,
            disk,
            started,
            peers: BTreeMap::new(),
        }
    }

    /// The host goes on without its disk: to the others it is one that was started again with another.
    pub(crate) fn lose_disk(&mut self, now: Time) {
        self.incarnation += 1;
        self.disk = NO_DISK;
        self.started = now;
        for link in self.peers.values_mut() {
            link.leased_until = Time(0);
        }
    }

    /// Which of its host's starts this is.
    pub(crate) const fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// Takes notice of hosts that have replicas in common with this one.
    pub(crate) fn meet(&mut self, host: HostId) {
        if host != self.me {
            self.peers.entry(host).or_default();
        }
    }

    pub(crate) fn hear(&mut self, from: HostId, frame: &Frame, now: Time) -> Heard {
        let mine = self.incarnation;
        let link = self.peers.entry(from).or_default();
        if frame.incarnation < link.incarnation {
            return Heard::Stale;
        }
        let restarted = frame.incarnation > link.incarnation && link.incarnation != 0;
        if frame.incarnation > link.incarnation {
            link.incarnation = frame.incarnation;
            link.heard = None;
            link.leased_until = Time(0);
        }
        link.disk = frame.disk;
        link.heard = link.heard.max(Some(frame.sent));
        link.promised_until = link.promised_until.max(now + PROMISE_MICROS);
        let echo = frame.echo.filter(|echo| echo.incarnation == mine);
        // Of a time that is not over yet nobody can have heard.
        let echo = echo.filter(|echo| echo.sent <= now);
        link.echoed = echo.map(|echo| echo.sent);
        if let Some(echo) = echo {
            let until = echo.sent + LEASE_MICROS;
            if until > link.leased_until {
                if link.leased_until < now {
                    link.leased_since = echo.sent;
                }
                link.leased_until = until;
            }
            link.up_until = link.up_until.max(echo.sent + DOWN_MICROS);
        }
        let came_up = !link.up && link.up_until > now;
        link.up |= came_up;
        match (restarted, came_up) {
            (true, _) => Heard::Restarted,
            (_, true) => Heard::CameUp,
            _ => Heard::Same,
        }
    }

    /// What goes before the messages of a frame. Counts as a beat.
    pub(crate) fn frame(&mut self, to: HostId, now: Time) -> Frame {
        let link = self.peers.entry(to).or_default();
        link.beat_at = now + BEAT_MICROS;
        let incarnation = link.incarnation;
        Frame {
            incarnation: self.incarnation,
            disk: self.disk,
            sent: now,
            echo: link.heard.map(|sent| Echo { incarnation, sent }),
            messages: Vec::new(),
        }
    }

    /// Peers that have to hear of this host now.
    pub(crate) fn due(&self, now: Time) -> Vec<HostId> {
        let due = self.peers.iter().filter(|(_, link)| link.beat_at <= now);
        due.map(|(host, _)| *host).collect()
    }

    /// Peers that are down as of now.
    pub(crate) fn expire(&mut self, now: Time) -> Vec<HostId> {
        let mut down = Vec::new();
        for (host, link) in &mut self.peers {
            if link.up && link.up_until <= now {
                link.up = false;
                down.push(*host);
            }
        }
        down
    }

    /// When there is something to do, at the latest.
    pub(crate) fn deadline(&self) -> Option<Time> {
        let up_until = |link: &Link| link.up.then_some(link.up_until);
        let of = |link: &Link| Some(link.beat_at).min(up_until(link).or(Some(link.beat_at)));
        self.peers.values().filter_map(of).min()
    }

    /// The format of a host's disk, if it is known.
    pub(crate) fn disk(&self, host: HostId) -> Option<u128> {
        if host == self.me {
            return Some(self.disk);
        }
        let link = self.peers.get(&host)?;
        (link.disk != 0).then_some(link.disk)
    }

    /// The same, of a host that has one: what it has no more will be there again once its process starts anew.
    pub(crate) fn disk_to_note(&self, host: HostId) -> Option<u128> {
        self.disk(host).filter(|disk| *disk != NO_DISK)
    }

    /// Whether that is the disk which a replica is on.
    pub(crate) fn is_on(&self, seat: &Seat) -> bool {
        seat.disk == 0
            || self
                .disk(seat.member.host)
                .is_none_or(|disk| disk == seat.disk)
    }

    /// Whether a replica is there: its host is, with the disk that it is on.
    pub(crate) fn is_there(&self, seat: &Seat) -> bool {
        self.is_up(seat.member.host) && self.is_on(seat)
    }

    pub(crate) fn is_up(&self, host: HostId) -> bool {
        host == self.me || self.peers.get(&host).is_some_and(|link| link.up)
    }

    /// Whether this host may help somebody else than the leader on `followed` to lead. After a start all
    /// hosts may have a promise that is forgotten.
    pub(crate) fn may_help(&self, followed: Option<HostId>, now: Time) -> bool {
        let promised = followed.and_then(|host| self.peers.get(&host));
        let started = self.started + PROMISE_MICROS <= now;
        started && promised.is_none_or(|link| link.promised_until <= now)
    }

    /// Of the frame of a host that is being heard: which of this host's frames its sender had heard, by the time
    /// when that was sent.
    pub(crate) fn echoed(&self, host: HostId) -> Option<Time> {
        self.peers.get(&host)?.echoed
    }

    /// Whether a replica on that host follows whom it followed when it had heard the frame sent at `confirmed`.
    pub(crate) fn still_follows(&self, host: HostId, confirmed: Time) -> bool {
        let link = self.peers.get(&host);
        link.is_some_and(|link| confirmed >= link.leased_since)
    }

    /// Whether it follows, and helps nobody else as of now.
    pub(crate) fn holds_lease(&self, host: HostId, confirmed: Time, now: Time) -> bool {
        let link = self.peers.get(&host);
        link.is_some_and(|link| link.leased_until > now && confirmed >= link.leased_since)
    }
}
