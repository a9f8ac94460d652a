//! What a group works with, and what comes of it.

use crate::group::Asked;
use crate::liveness::Links;
use crate::members::Seat;
use crate::message::{Answer, Envelope, Place};
use crate::{HostId, Message, ReplicaId, Stamp, Time};
use blocks::{Store, Ticket, VolumeId};
use std::collections::{BTreeMap, BTreeSet};

/// Volumes of a host that take in chunks at once.
const MOST_CATCHING: usize = 4;

/// The world of a group while it does one thing.
pub(crate) struct Context<'a> {
    pub(crate) now: Time,
    pub(crate) me: HostId,
    pub(crate) store: &'a mut Store,
    pub(crate) links: &'a Links,
    pub(crate) out: &'a mut Outbox,
}

/// What groups want done.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    pub(crate) messages: Vec<(HostId, Envelope)>,
    /// Answers to endpoints that are on this host.
    pub(crate) local: Vec<(VolumeId, Answer)>,
    /// Blocks that are being read.
    pub(crate) reads: BTreeMap<Ticket, (VolumeId, ReadFor)>,
    /// Entries that are being read back.
    pub(crate) entries: BTreeMap<Ticket, (VolumeId, u64)>,
    /// Entries that are being read for peers whose own are damaged.
    pub(crate) wanted: BTreeMap<Ticket, WantedFor>,
    /// Questions that peers were asked about such entries.
    pub(crate) questions: u64,
    /// Chunks that are being read for peers.
    pub(crate) chunks: BTreeMap<Ticket, ChunkFor>,
    /// Volumes that take in chunks.
    pub(crate) catching: BTreeSet<VolumeId>,
    /// Volumes whose log in the store is another one.
    pub(crate) reopens: Vec<VolumeId>,
    /// Volumes that have no replica here any more.
    pub(crate) gone: Vec<VolumeId>,
    /// Replicas elsewhere that are none since these entries, which are in effect.
    pub(crate) dismissed: Vec<(VolumeId, u64, Vec<Seat>)>,
    /// Hosts of members that came.
    pub(crate) met: Vec<HostId>,
    pub(crate) budget: Budget,
}

/// For whom blocks are read.
#[derive(Debug, Clone, Copy)]
pub(crate) enum ReadFor {
    Endpoint {
        asked: Asked,
        stamp: Stamp,
        lba: u64,
        blocks: u64,
    },
    /// A replica whose own are damaged.
    Peer { to: ReplicaId, lba: u64 },
    /// Nobody had it when it was read last.
    Again { lba: u64 },
    /// To see whether they are whole.
    Scrub,
}

/// For whom an entry is read whose own is damaged, and what it asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WantedFor {
    pub(crate) volume: VolumeId,
    pub(crate) to: ReplicaId,
    pub(crate) place: Place,
    pub(crate) question: u64,
}

/// For whom a chunk is read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ChunkFor {
    pub(crate) volume: VolumeId,
    pub(crate) to: ReplicaId,
}

/// How many chunks may be taken in, or read to see whether they are whole.
#[derive(Debug)]
pub(crate) struct Budget {
    /// MiB in a second; 0 for as many as there are.
    pub(crate) rate: u64,
    /// Micro-chunks that are left of what time gave.
    left: u64,
    at: Time,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            rate: 0,
            left: 0,
            at: Time(0),
        }
    }
}

impl Budget {
    const CHUNK: u64 = 1_000_000;
    /// Chunks that may be taken at once after a pause.
    const BURST: u64 = 4;

    fn take(&mut self, now: Time) -> bool {
        if self.rate == 0 {
            return true;
        }
        let gained = now.0.saturating_sub(self.at.0).saturating_mul(self.rate);
        self.left = self
            .left
            .saturating_add(gained)
            .min(Self::BURST * Self::CHUNK);
        self.at = now;
        if self.left < Self::CHUNK {
            return false;
        }
        self.left -= Self::CHUNK;
        true
    }
}

impl Outbox {
    /// Whether a volume may take in chunks: few do at once.
    pub(crate) fn may_catch_up(&self, volume: VolumeId) -> bool {
        self.catching.contains(&volume) || self.catching.len() < MOST_CATCHING
    }

    /// Whether one more chunk may be moved now.
    pub(crate) fn may_move(&mut self, now: Time) -> bool {
        self.budget.take(now)
    }
}

impl Context<'_> {
    pub(crate) fn send(&mut self, volume: VolumeId, to: HostId, message: Message) {
        self.out.messages.push((to, Envelope { volume, message }));
    }

    pub(crate) fn answer(&mut self, volume: VolumeId, to: HostId, answer: Answer) {
        if to == self.me {
            self.out.local.push((volume, answer));
        } else {
            self.send(volume, to, Message::Answer(answer));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_gives_so_much_in_a_second() {
        let mut budget = Budget {
            rate: 10,
            ..Budget::default()
        };
        let mut taken = 0;
        for millis in 10_000..20_000 {
            taken += u32::from(budget.take(Time(millis * 1000)));
        }
        assert_eq!(taken, 103, "ten seconds of ten, and the first four at once");
    }
}
