//! A volume goes on from one replica when those that could outvote it are lost: what only they had is lost with them.
//!
//! By its own log alone the replica becomes the only member, so somebody has to have decided that there is no other
//! way, and which one it is. Should the others come back, three things tell what was before from what came after:
//! * terms say which recovery they are of, so that those of a later one are larger, whatever the others did;
//! * the lost replicas are no members, and their numbers are never used again: they are not heard, and told so;
//! * an entry ends all attachments that there were: their clients remember what may be lost.

use crate::group::Group;
use crate::outbox::Context;
use crate::{Members, ReplicaId, Stamp};
use blocks::{Body, Entry, Refused, Submission, VolumeId};

/// Bits of a term that count within a recovery: an election a millisecond for 34 years.
const TERM_BITS: u32 = 40;
/// Recoveries of a volume, at most.
const MOST: u64 = (1 << 22) - 1;

/// Which recovery of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recovery {
    /// From 1, and larger each time.
    pub number: u64,
    /// Claims of attachments up to this one are over.
    pub claim: u64,
}

impl Recovery {
    /// Of which recovery a term is: 0 before the first.
    pub const fn of_term(term: u64) -> u64 {
        term >> TERM_BITS
    }
}

/// Why a volume does not go on from a replica.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotRecovered {
    /// It is not here, is being opened, or failed.
    #[error("the replica of volume {volume} on this host cannot be used; recover from another one")]
    NoReplica {
        /// Which.
        volume: VolumeId,
    },
    /// There is a majority after all.
    #[error("somebody leads volume {volume}: a majority is there, and nothing is to be recovered")]
    Led {
        /// Which.
        volume: VolumeId,
    },
    /// Part of its contents was never here.
    #[error(
        "the replica of volume {volume} on this host was being filled and does not have all of it; recover from another one"
    )]
    Partial {
        /// Which.
        volume: VolumeId,
    },
    /// No number that a recovery can have.
    #[error("a volume is recovered {MOST} times at most, and {number} is no number of a recovery")]
    Number {
        /// What was given.
        number: u64,
    },
    /// The store says no.
    #[error(transparent)]
    Refused(#[from] Refused),
}

/// What a replica is before it becomes the only one.
#[derive(Debug, Clone, Copy)]
struct Survivor<'a> {
    me: ReplicaId,
    members: &'a Members,
    /// The last entry that is whole.
    last: u64,
    /// The last attachment.
    epoch: u64,
}

/// The entries that make a replica the only one, and its hard state: nothing was voted for in that term.
fn submission(recovery: Recovery, from: Survivor<'_>) -> Submission {
    let term = recovery.number << TERM_BITS;
    // Claims are given out in order, so that of the last attachment is none of a later one.
    let epoch = Stamp::next_epoch(from.epoch, recovery.claim).unwrap_or(from.epoch + 1);
    let stamp = Stamp::new(epoch, 0).map_or(0, Stamp::to_entry);
    let bodies = [
        (stamp, Body::Attach),
        (0, Body::Config(from.members.alone(from.me).encode().into())),
    ];
    let entry = |(index, (epoch, body))| Entry {
        index,
        term,
        epoch,
        body,
    };
    Submission {
        hard: Some((term, 0)),
        entries: (from.last + 1..).zip(bodies).map(entry).collect(),
    }
}

impl Group {
    /// The last recovery that is in effect here; 0 before the first.
    pub(crate) fn recovered(&self) -> u64 {
        let number = Recovery::of_term(self.term());
        number - u64::from(self.begun(number).is_some())
    }

    /// Where the entries of a recovery are that are not in effect: so it is after a crash.
    fn begun(&self, number: u64) -> Option<u64> {
        let first_term = number << TERM_BITS;
        let mut later = self.node.store().after(self.applied);
        let begun = later.find(|(_, header)| header.term == first_term);
        begun.map(|(index, _)| index)
    }

    /// What is to be submitted so that the volume goes on from here; nothing if it does already.
    pub(crate) fn recovery(
        &self,
        context: &Context<'_>,
        recovery: Recovery,
    ) -> Result<Option<Submission>, NotRecovered> {
        let volume = self.volume;
        let number = recovery.number;
        if number == 0 || number > MOST {
            return Err(NotRecovered::Number { number });
        }
        if self.recovered() >= number {
            return Ok(None);
        }
        if self.lead.is_some() || !self.needs_leader(context) {
            return Err(NotRecovered::Led { volume });
        }
        let info = context.store.volume(volume);
        let info = info.filter(|info| info.broken.is_none() && self.failed.is_none());
        let is_member = self.members.seat(self.me).is_some();
        let info = info.filter(|_| is_member);
        let info = info.ok_or(NotRecovered::NoReplica { volume })?;
        if info.mixed || info.applied == 0 || self.is_rebasing() {
            return Err(NotRecovered::Partial { volume });
        }
        // What is damaged before it took effect is lost, and what comes after it cannot stand without it.
        let damaged = self.doubt.entries.keys().next().copied();
        let end = self.begun(number).into_iter().chain(damaged).min();
        let last = end.map_or(info.last, |first| first - 1);
        Ok(Some(submission(
            recovery,
            Survivor {
                me: self.me,
                members: &self.members,
                last,
                epoch: self.epoch_in_log(),
            },
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{HostId, Member, ReplicaId};

    fn members() -> Members {
        let member = |number: u64| Member {
            replica: ReplicaId(number),
            host: HostId(number.into()),
        };
        Members::new((1..=3).map(member).collect()).expect("they differ")
    }

    fn recovered(number: u64, claim: u64, epoch: u64) -> Submission {
        let from = Survivor {
            me: ReplicaId(2),
            members: &members(),
            last: 9,
            epoch,
        };
        submission(Recovery { number, claim }, from)
    }

    #[test]
    fn terms_and_epochs_are_larger_than_any_before() {
        let (first, second) = (recovered(1, 4, 0x300), recovered(2, 9, 0x401));
        let term = |it: &Submission| it.hard.expect("there is one").0;
        assert!(term(&first) > 1 << 39 && term(&second) - term(&first) > 1 << 39);
        assert_eq!(Recovery::of_term(term(&second)), 2);
        assert_eq!(Recovery::of_term(term(&second) - 1), 1);
        assert_eq!(Recovery::of_term(1), 0);
        let epoch = |it: &Submission| Stamp::from_entry(it.entries[0].epoch).epoch();
        assert_eq!((epoch(&first), epoch(&second)), (0x400, 0x900));
        // Nobody claimed as late as that; it is over all the same.
        assert_eq!(epoch(&recovered(1, 2, 0x300)), 0x301);
    }

    #[test]
    fn the_only_member_votes_and_stays() {
        let made = recovered(1, 1, 0);
        let places: Vec<(u64, u64)> = made.entries.iter().map(|it| (it.index, it.term)).collect();
        assert_eq!(places, [(10, 1 << TERM_BITS), (11, 1 << TERM_BITS)]);
        let Body::Config(bytes) = &made.entries[1].body else {
            panic!("the members come last: {made:?}");
        };
        let left = Members::decode(bytes).expect("they are sound");
        let seats = left.seats();
        assert_eq!((seats.len(), seats[0].member.replica), (1, ReplicaId(2)));
        assert!(left.votes(ReplicaId(2)) && !left.is_changing());
    }
}
