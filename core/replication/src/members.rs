//! Who has replicas of a volume, as the log has it; and how one set of them becomes another.

use crate::{HostId, ReplicaId};

/// A replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// Which.
    pub replica: ReplicaId,
    /// Where.
    pub host: HostId,
}

/// A volume's replicas. While they change, some learn, and for a moment two majorities are needed.
///
/// `| version 3 | count 1 | change 8 | replica 8, host 16, disk 16, flags 1 .. |`; flags: 1 it votes, 2 it voted before
/// the change that is under way, 4 it is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Members {
    seats: Vec<Seat>,
    /// The number of the change that wanted these: 0 of those that the volume was made with.
    change: u64,
}

/// A replica, and what it may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seat {
    pub(crate) member: Member,
    /// The format of the disk that it is on, once it is known: another one's replica is another one.
    pub(crate) disk: u128,
    /// Of the majority that decides.
    pub(crate) votes: bool,
    /// Of the majority that decided before, and has to agree until the change is over.
    pub(crate) voted: bool,
    /// It is to stay, or to come.
    pub(crate) wanted: bool,
}

impl Seat {
    /// It has no part in any decision any more, and is about to be none.
    pub(crate) const fn goes(&self) -> bool {
        !self.votes && !self.voted && !self.wanted
    }

    /// It takes what the others have, and is to vote then.
    pub(crate) const fn comes(&self) -> bool {
        !self.votes && !self.voted && self.wanted
    }
}

/// Most replicas of a volume.
const MOST: usize = 7;
/// Most while they change.
const MOST_SEATS: usize = 2 * MOST;
const VERSION: u8 = 3;
const SEAT_BYTES: usize = 41;

/// Why these are no members.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadMembers {
    /// Too few, too many, or twice the same.
    #[error(
        "{count} replicas: a volume has 1 to {MOST}, each with a number of its own on a host of its own"
    )]
    Number {
        /// How many.
        count: usize,
    },
    /// Bytes that are none.
    #[error("the volume's configuration cannot be read; it is of another release, or damaged")]
    Unreadable,
    /// A number that another replica has, or had.
    #[error(
        "replica {} is on another host; give the new replica a number that was never used",
        replica.0
    )]
    Taken {
        /// Which.
        replica: ReplicaId,
    },
    /// A host that has a replica on the same disk.
    #[error(
        "host {host} has replica {} of the volume, and a disk has one; take another host, or that replica away first",
        replica.0
    )]
    There {
        /// Which.
        replica: ReplicaId,
        /// Where.
        host: HostId,
    },
    /// A change that comes after one that was asked for later, or has the number of another.
    #[error(
        "change {asked} of the replicas, after change {held}, which holds; ask by the newest configuration"
    )]
    Old {
        /// Its number.
        asked: u64,
        /// That of the last.
        held: u64,
    },
}

impl Members {
    /// Checked: numbers and hosts differ, and no number is zero. All of them vote.
    pub fn new(members: Vec<Member>) -> Result<Self, BadMembers> {
        let seat = |member| Seat {
            member,
            disk: 0,
            votes: true,
            voted: false,
            wanted: true,
        };
        Self::of(members.into_iter().map(seat).collect(), 0)
    }

    /// One of them, which votes and stays, and nobody else.
    pub(crate) fn alone(&self, replica: ReplicaId) -> Self {
        let seats = self.seats.iter();
        let seats = seats.filter(|it| it.member.replica == replica);
        let seats = seats.map(|seat| Seat {
            votes: true,
            voted: false,
            wanted: true,
            ..*seat
        });
        Self {
            seats: seats.collect(),
            change: self.change,
        }
    }

    fn of(mut seats: Vec<Seat>, change: u64) -> Result<Self, BadMembers> {
        seats.sort_by_key(|seat| seat.member.replica);
        let wanted: Vec<HostId> = seats
            .iter()
            .filter(|seat| seat.wanted)
            .map(|seat| seat.member.host)
            .collect();
        let count = wanted.len();
        let zero = seats
            .first()
            .is_none_or(|first| first.member.replica.0 == 0);
        let twice = seats
            .windows(2)
            .any(|two| two[0].member.replica == two[1].member.replica);
        let shared = (1..count).any(|at| wanted[..at].contains(&wanted[at]));
        let sound = (1..=MOST).contains(&count)
            && seats.len() <= MOST_SEATS
            && seats.iter().any(|seat| seat.votes);
        if zero || twice || shared || !sound {
            return Err(BadMembers::Number { count });
        }
        Ok(Self { seats, change })
    }

    /// As the log has them.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION, self.seats.len() as u8];
        bytes.extend(self.change.to_le_bytes());
        for seat in &self.seats {
            bytes.extend(seat.member.replica.0.to_le_bytes());
            bytes.extend(seat.member.host.0.to_le_bytes());
            bytes.extend(seat.disk.to_le_bytes());
            bytes.push(
                u8::from(seat.votes) | u8::from(seat.voted) << 1 | u8::from(seat.wanted) << 2,
            );
        }
        bytes
    }

    /// From the log.
    pub fn decode(bytes: &[u8]) -> Result<Self, BadMembers> {
        let [VERSION, count, rest @ ..] = bytes else {
            return Err(BadMembers::Unreadable);
        };
        let (change, rest) = rest
            .split_first_chunk::<8>()
            .ok_or(BadMembers::Unreadable)?;
        if rest.len() != usize::from(*count) * SEAT_BYTES {
            return Err(BadMembers::Unreadable);
        }
        let seat = |bytes: &[u8]| {
            let (replica, rest) = bytes.split_first_chunk::<8>()?;
            let (host, rest) = rest.split_first_chunk::<16>()?;
            let (disk, flags) = rest.split_first_chunk::<16>()?;
            let flags = flags.first().copied().filter(|flags| *flags < 8)?;
            Some(Seat {
                member: Member {
                    replica: ReplicaId(u64::from_le_bytes(*replica)),
                    host: HostId(u128::from_le_bytes(*host)),
                },
                disk: u128::from_le_bytes(*disk),
                votes: flags & 1 != 0,
                voted: flags & 2 != 0,
                wanted: flags & 4 != 0,
            })
        };
        let seats: Option<Vec<Seat>> = rest.chunks_exact(SEAT_BYTES).map(seat).collect();
        let change = u64::from_le_bytes(*change);
        Self::of(seats.ok_or(BadMembers::Unreadable)?, change)
    }

    /// The number of the change that wanted these, or the part of these that is wanted.
    pub const fn change(&self) -> u64 {
        self.change
    }

    /// All of them, by number.
    pub fn iter(&self) -> impl Iterator<Item = Member> {
        self.seats.iter().map(|seat| seat.member)
    }

    /// Where a replica is.
    pub fn host(&self, replica: ReplicaId) -> Option<HostId> {
        self.seat(replica).map(|seat| seat.member.host)
    }

    /// A host's replica: that which is wanted, if it has two.
    pub fn replica(&self, host: HostId) -> Option<ReplicaId> {
        let there = || self.seats.iter().filter(|seat| seat.member.host == host);
        let found = there().find(|seat| seat.wanted).or_else(|| there().next());
        found.map(|seat| seat.member.replica)
    }

    /// How many make a majority of those that vote.
    pub fn majority(&self) -> usize {
        self.seats.iter().filter(|seat| seat.votes).count() / 2 + 1
    }

    /// Whether replicas come or go.
    pub fn is_changing(&self) -> bool {
        !self.seats.iter().all(|seat| seat.votes && seat.wanted) || self.is_joint()
    }

    /// Whether a replica votes.
    pub fn votes(&self, replica: ReplicaId) -> bool {
        self.seat(replica)
            .is_some_and(|seat| seat.votes || seat.voted)
    }

    /// Those that are to be there once nothing changes any more.
    pub fn wanted(&self) -> Vec<Member> {
        let wanted = self.seats.iter().filter(|seat| seat.wanted);
        wanted.map(|seat| seat.member).collect()
    }

    pub(crate) fn seats(&self) -> &[Seat] {
        &self.seats
    }

    pub(crate) fn seat(&self, replica: ReplicaId) -> Option<&Seat> {
        self.seats
            .iter()
            .find(|seat| seat.member.replica == replica)
    }

    pub(crate) fn is_joint(&self) -> bool {
        self.seats.iter().any(|seat| seat.voted)
    }

    /// Whether those for which it holds can decide.
    pub(crate) fn is_quorum(&self, holds: impl Fn(ReplicaId) -> bool) -> bool {
        let most = |of: fn(&Seat) -> bool| {
            let all = self.seats.iter().filter(|seat| of(seat));
            let (count, holding) = all.fold((0, 0), |(count, holding), seat| {
                (count + 1, holding + usize::from(holds(seat.member.replica)))
            });
            2 * holding > count
        };
        most(|seat| seat.votes) && (!self.is_joint() || most(|seat| seat.voted))
    }

    /// A replica's place among the others.
    pub(crate) fn rank(&self, replica: ReplicaId) -> usize {
        self.seats
            .iter()
            .position(|seat| seat.member.replica == replica)
            .unwrap_or(0)
    }

    pub(crate) fn count(&self) -> usize {
        self.seats.len()
    }

    /// The first step to other members: those that come learn, those that go are not wanted any more. Nothing if
    /// this change was the last, and is done or under way. `is_on`: whether the replica's disk is still the host's.
    pub(crate) fn towards(
        &self,
        target: &Self,
        change: u64,
        is_on: impl Fn(&Seat) -> bool,
    ) -> Result<Option<Self>, BadMembers> {
        let same = self.wanted() == target.wanted();
        if change == self.change && same {
            return Ok(None);
        }
        if change <= self.change {
            let (asked, held) = (change, self.change);
            return Err(BadMembers::Old { asked, held });
        }
        let mut seats = Vec::new();
        for seat in &self.seats {
            let wanted = target.seat(seat.member.replica);
            if wanted.is_some_and(|wanted| wanted.member.host != seat.member.host) {
                let replica = seat.member.replica;
                return Err(BadMembers::Taken { replica });
            }
            let wanted = wanted.is_some();
            if wanted || seat.votes || seat.voted {
                seats.push(Seat { wanted, ..*seat });
            }
        }
        for come in &target.seats {
            if self.seat(come.member.replica).is_none() {
                let host = come.member.host;
                let mut there = self.seats.iter();
                let there = there.find(|it| it.member.host == host && is_on(it));
                if let Some(seat) = there {
                    let replica = seat.member.replica;
                    return Err(BadMembers::There { replica, host });
                }
                seats.push(Seat {
                    member: come.member,
                    disk: 0,
                    votes: false,
                    voted: false,
                    wanted: true,
                });
            }
        }
        Self::of(seats, change).map(Some)
    }

    /// The next step, if it can be taken: when all that come have what the others have, both majorities
    /// decide; then the new one alone, while those that go are still there; then they are not.
    ///
    /// The last step is an entry of its own because it is proposed when the one before is in effect: whoever has it in
    /// the log knows that the new majority decides alone, whatever else was lost, and needs none of those that go.
    pub(crate) fn next(&self, has_all: impl Fn(ReplicaId) -> bool) -> Option<Self> {
        if self.is_joint() {
            let seats = self.seats.iter().map(|seat| Seat {
                voted: false,
                ..*seat
            });
            return Some(self.with(seats.collect()));
        }
        if !self.is_changing() {
            return None;
        }
        if self.seats.iter().any(Seat::goes) {
            let stay = self.seats.iter().filter(|seat| !seat.goes());
            return Some(self.with(stay.copied().collect()));
        }
        let ready = |seat: &Seat| !seat.wanted || seat.votes || has_all(seat.member.replica);
        if !self.seats.iter().all(ready) {
            return None;
        }
        let seats = self.seats.iter().map(|seat| Seat {
            votes: seat.wanted,
            voted: seat.votes,
            ..*seat
        });
        Some(self.with(seats.collect()))
    }

    fn with(&self, seats: Vec<Seat>) -> Self {
        let change = self.change;
        Self { seats, change }
    }

    /// With the disks that are known by now, if any is new.
    pub(crate) fn with_disks(&self, known: impl Fn(HostId) -> Option<u128>) -> Option<Self> {
        let mut seats = self.seats.clone();
        let unknown = |seat: &&mut Seat| seat.disk == 0;
        for seat in seats.iter_mut().filter(unknown) {
            seat.disk = known(seat.member.host).unwrap_or(0);
        }
        (seats != self.seats).then(|| self.with(seats))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(numbers: &[(u64, u128)]) -> Members {
        let member = |(replica, host): &(u64, u128)| Member {
            replica: ReplicaId(*replica),
            host: HostId(*host),
        };
        Members::new(numbers.iter().map(member).collect()).expect("they differ")
    }

    fn of(members: &Members) -> String {
        let seat = |seat: &Seat| {
            let flag = |set, name: &'static str| if set { name } else { "" };
            let (votes, voted) = (flag(seat.votes, "v"), flag(seat.voted, "o"));
            format!(
                "{}{votes}{voted}{}",
                seat.member.replica.0,
                flag(seat.wanted, "w")
            )
        };
        members.seats.iter().map(seat).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_replica_is_replaced_step_by_step() {
        let old = members(&[(1, 1), (2, 2), (3, 3)]);
        let target = members(&[(1, 1), (2, 2), (4, 3)]);
        let (replica, host) = (ReplicaId(3), HostId(3));
        let there = Err(BadMembers::There { replica, host });
        assert_eq!(old.towards(&target, 1, |_| true), there);
        let begun = old.towards(&target, 1, |seat| seat.member.replica != replica);
        let begun = begun.expect("a number that is new").expect("others");
        assert_eq!(of(&begun), "1vw 2vw 3v 4w");
        assert_eq!(begun.next(|_| false), None, "4 has nothing yet");
        let joint = begun.next(|_| true).expect("4 has all");
        assert_eq!(of(&joint), "1vow 2vow 3o 4vw");
        let quorum = |of: &'static [u64]| joint.is_quorum(|it| of.contains(&it.0));
        assert!(quorum(&[1, 2]) && quorum(&[1, 3, 4]));
        assert!(
            !quorum(&[1, 4]) && !quorum(&[2, 3]),
            "one majority is not enough"
        );
        let alone = joint.next(|_| false).expect("nothing to wait for");
        assert_eq!(
            (of(&alone).as_str(), alone.is_changing()),
            ("1vw 2vw 3 4vw", true)
        );
        assert!(alone.is_quorum(|it| it.0 != 1 && it.0 != 3) && !alone.votes(replica));
        let over = alone.next(|_| false).expect("nothing to wait for");
        assert_eq!(
            (of(&over).as_str(), over.is_changing()),
            ("1vw 2vw 4vw", false)
        );
        assert_eq!(over.next(|_| true), None);
        assert_eq!(Members::decode(&joint.encode()), Ok(joint));
    }

    #[test]
    fn another_target_takes_those_back_that_only_learn() {
        let begun = members(&[(1, 1), (2, 2)])
            .towards(&members(&[(1, 1), (2, 2), (5, 5)]), 1, |_| true)
            .expect("a number that is new")
            .expect("others");
        let back = begun.towards(&members(&[(1, 1), (2, 2)]), 2, |_| true);
        let back = back.expect("they are there").expect("others");
        assert_eq!(of(&back), "1vw 2vw");
        let taken = begun.towards(&members(&[(1, 1), (2, 7)]), 2, |_| true);
        let replica = ReplicaId(2);
        assert_eq!(taken, Err(BadMembers::Taken { replica }));
    }

    #[test]
    fn the_later_change_holds_whatever_comes_after_it() {
        let (two, three) = (
            members(&[(1, 1), (2, 2)]),
            members(&[(1, 1), (2, 2), (5, 5)]),
        );
        let held = two.towards(&three, 7, |_| true).unwrap().expect("others");
        assert_eq!(held.change(), 7);
        assert_eq!(held.towards(&three, 7, |_| true), Ok(None));
        for asked in [0, 6, 7] {
            let old = Err(BadMembers::Old { asked, held: 7 });
            assert_eq!(held.towards(&two, asked, |_| true), old);
        }
        // The same members by a later change are noted: one between the two comes too late then.
        let noted = held.towards(&three, 9, |_| true).unwrap().expect("another");
        assert_eq!((of(&noted), noted.change()), (of(&held), 9));
        let old = BadMembers::Old { asked: 8, held: 9 };
        assert_eq!(noted.towards(&two, 8, |_| true), Err(old));
        // It is the same number until the change is over.
        let (joint, over) = {
            let joint = noted.next(|_| true).expect("it has all");
            (
                joint.clone(),
                joint.next(|_| true).expect("nobody goes: the last step"),
            )
        };
        assert_eq!((joint.change(), over.change()), (9, 9));
        assert_eq!(Members::decode(&over.encode()), Ok(over));
    }
}
