//! What is known of a replica, for operators.

use crate::{Member, Members, ReplicaId, Timing};
use std::fmt;

/// What a replica is at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It takes requests.
    Leader,
    /// It follows, or waits for somebody to follow.
    Follower,
    /// It wants to lead.
    Candidate,
}

/// What is known of a replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupInfo {
    /// What it is.
    pub role: Role,
    /// The newest term that it heard of.
    pub term: u64,
    /// Who leads, as far as it knows.
    pub leader: Option<ReplicaId>,
    /// The first entry that it can send to others.
    pub first: u64,
    /// Its last entry.
    pub last: u64,
    /// Known to be committed.
    pub committed: u64,
    /// In effect here.
    pub applied: u64,
    /// The attachment that may write.
    pub epoch: u64,
    /// The last recovery of the volume that is in effect here; 0 before the first.
    pub recovery: u64,
    /// It waits for time to pass, or for a peer.
    pub awake: bool,
    /// Why it takes part no more, if so.
    pub failed: Option<String>,
    /// Who has replicas.
    pub members: Members,
    /// The others, as far as the leader knows; nothing where this one does not lead.
    pub followers: Vec<FollowerInfo>,
    /// Chunks that came from a peer, and that are known to be missing, while it lacks what no log has.
    pub catching_up: Option<(u64, u64)>,
    /// Entries of its log that are damaged, until a peer brings them.
    pub damaged_entries: u64,
    /// Entries that were damaged, and that no replica had any more: they never took effect.
    pub entries_given_up: u64,
    /// Blocks that were damaged, and came from a peer.
    pub mended: u64,
    /// Blocks that are damaged, and that no peer had when it was asked last.
    pub given_up: u64,
    /// Of writes that were taken in here while it led, from then to when they were committed.
    pub commits: Timing,
}

/// What a leader knows of another replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FollowerInfo {
    /// Which, and where.
    pub member: Member,
    /// Its host is there, with the disk that the replica is on.
    pub there: bool,
    /// It votes.
    pub votes: bool,
    /// It is to stay.
    pub wanted: bool,
    /// It has all entries up to this one.
    pub matched: u64,
    /// The next entry that it is sent.
    pub next: u64,
    /// It was seen to hold the same in this term.
    pub same: bool,
    /// Chunks that it was seen to hold other contents of.
    pub differs: Vec<u64>,
}

/// One line, and one for each of the others that the leader knows of.
impl fmt::Display for GroupInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            role,
            term,
            first,
            last,
            committed,
            applied,
            epoch,
            ..
        } = self;
        let leader = self.leader.map_or(0, |leader| leader.0);
        write!(
            f,
            "{role:?} in term {term} of leader {leader}, log {first}..{last}, committed {committed}, applied {applied}, epoch {epoch}"
        )?;
        if let Some((taken, missing)) = self.catching_up {
            write!(
                f,
                ", catching up: {taken} chunks came, {missing} are missing"
            )?;
        }
        if self.damaged_entries > 0 {
            write!(f, ", {} entries are damaged", self.damaged_entries)?;
        }
        if let Some(why) = &self.failed {
            write!(f, ", failed: {why}")?;
        }
        if self.members.is_changing() {
            write!(f, ", members change")?;
        }
        for follower in &self.followers {
            write!(f, "\n  {follower}")?;
        }
        Ok(())
    }
}

impl fmt::Display for FollowerInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Member { replica, host } = self.member;
        let there = if self.there { "there" } else { "away" };
        let votes = if self.votes { "votes" } else { "learns" };
        let wanted = if self.wanted { "" } else { ", to go" };
        let (matched, next) = (self.matched, self.next);
        write!(
            f,
            "{} on {host}: {there}, {votes}{wanted}, has {matched}, next {next}",
            replica.0
        )?;
        if !self.differs.is_empty() {
            write!(f, ", differs in chunks {:?}", self.differs)?;
        }
        Ok(())
    }
}
