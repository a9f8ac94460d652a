//! A replica of one volume: plain data, no task and no timer of its own.

mod effect;
mod hear;
mod kept;
mod persist;

pub(crate) use kept::Kept;

use crate::catchup::CatchUp;
use crate::consensus::{node, state_of};
use crate::doubt::Doubt;
use crate::info::{FollowerInfo, GroupInfo, Role};
use crate::lead::Lead;
use crate::liveness::Links;
use crate::log::{Header, Log};
use crate::members::Seat;
use crate::mend::Mending;
use crate::message::Failure;
use crate::outbox::Context;
use crate::send::Parked;
use crate::steps::Comparison;
use crate::timing::Timing;
use crate::{HostId, Members, ReplicaId, SessionId, Stamp, Time};
use blocks::{Body, Entry, EntryHead, Ticket, VolumeId, VolumeInfo};
use persist::Unpersisted;
use raft::{RawNode, StateRole};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// A request, and whom to answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) host: HostId,
    pub(crate) session: SessionId,
    pub(crate) id: u64,
    pub(crate) term: u64,
}

pub(crate) struct Group {
    pub(crate) volume: VolumeId,
    pub(crate) me: ReplicaId,
    pub(crate) members: Members,
    /// Later ones, and the index of their entry, as a member told: whom to hear while that entry is on its way.
    pub(crate) later: Option<(u64, Members)>,
    /// Members that are not where they were, as their hosts say.
    departed: BTreeSet<ReplicaId>,
    pub(crate) node: RawNode<Log>,
    pub(crate) lead: Option<Lead>,
    /// Entries that are not in effect yet, or that somebody may want.
    pub(crate) bodies: BTreeMap<u64, Entry>,
    /// The last entry that the store took in.
    pub(crate) submitted: (u64, u64),
    pub(crate) last_ticket: Option<Ticket>,
    durable: Option<Ticket>,
    unpersisted: VecDeque<Unpersisted>,
    pub(crate) parked: Vec<Parked>,
    pub(crate) applied: u64,
    pub(crate) epoch: u64,
    pub(crate) fenced: BTreeSet<u64>,
    hard: (u64, u64),
    /// Whose leadership this replica acknowledged last, and of which term.
    pub(crate) followed: Option<(HostId, u64)>,
    /// That leader is known to lead no more.
    pub(crate) leader_gone: bool,
    /// When to try to lead.
    pub(crate) election_at: Option<Time>,
    pub(crate) attempts: u64,
    pub(crate) failed: Option<String>,
    /// Index of the members' entry.
    pub(crate) configured: u64,
    pub(crate) catch_up: Option<CatchUp>,
    pub(crate) mending: Mending,
    pub(crate) doubt: Doubt,
    pub(crate) comparing: Option<Comparison>,
    /// It is about to be made anew of what the store has.
    pub(crate) reopens: bool,
    /// A member's host, or the leader's, was away: whether this is still a replica is to be asked.
    pub(crate) unsure: bool,
    pub(crate) ask_at: Option<Time>,
    /// When to go on with what is not the consensus's affair.
    pub(crate) care_at: Option<Time>,
    pub(crate) refused_messages: u64,
    pub(crate) steps: u64,
    /// Of writes that were taken in here while it led.
    pub(crate) commits: Timing,
}

impl std::fmt::Debug for Group {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let raft = &self.node.raft;
        write!(
            f,
            "replica {} of {}: {:?} in term {}, leader {}, log to {}, committed {}, applied {}, epoch {}",
            self.me.0,
            self.volume,
            raft.state,
            raft.term,
            raft.leader_id,
            raft.raft_log.last_index(),
            raft.raft_log.committed,
            self.applied,
            self.epoch
        )
    }
}

/// The last entry with members that another one follows: members are proposed when those before them are in effect, so
/// they are committed, also where nobody noted that before the power went.
fn committed_by_the_next(first: u64, heads: &[EntryHead]) -> u64 {
    let configures = |head: &&(u64, &EntryHead)| Header::of_head(head.1).configures;
    let heads: Vec<_> = (first..).zip(heads).collect();
    let mut newest_first = heads.iter().rev().filter(configures);
    newest_first.nth(1).map_or(0, |(index, _)| *index)
}

impl Group {
    /// A replica as the store has it. `before`: term of the entry before the log's first; `heads`: all that
    /// are in the log; `entries`: those that did not take effect yet, but for damaged ones.
    pub(crate) fn new(
        volume: VolumeId,
        me: ReplicaId,
        members: Members,
        info: &VolumeInfo,
        before: u64,
        heads: &[EntryHead],
        entries: Vec<Entry>,
    ) -> Result<Self, String> {
        let before = (info.first - 1, before);
        let hard = (info.hard.term, info.hard.vote);
        let proven = committed_by_the_next(info.first, heads);
        let commit = info.hard.commit.max(proven);
        let commit = commit.clamp(info.applied, info.last);
        let mut log = Log::new(before, state_of(&members), hard, commit);
        let mut doubt = Doubt::default();
        for (index, head) in (info.first..).zip(heads) {
            log.put(index, Header::of_head(head));
            if head.lost {
                doubt.entries.insert(index, head.term);
            }
        }
        let node = node(me, info.applied, log).map_err(|error| error.to_string())?;
        let last_term = heads.last().map_or(before.1, |head| head.term);
        Ok(Self {
            volume,
            me,
            members,
            later: None,
            departed: BTreeSet::new(),
            node,
            lead: None,
            bodies: entries
                .into_iter()
                .map(|entry| (entry.index, entry))
                .collect(),
            submitted: (info.last, last_term),
            last_ticket: None,
            durable: None,
            unpersisted: VecDeque::new(),
            parked: Vec::new(),
            applied: info.applied,
            epoch: Stamp::from_entry(info.epoch).epoch(),
            fenced: BTreeSet::new(),
            hard,
            followed: None,
            leader_gone: true,
            election_at: None,
            attempts: 0,
            failed: None,
            configured: info.config.0,
            catch_up: None,
            mending: Mending::default(),
            doubt,
            comparing: None,
            reopens: false,
            unsure: false,
            ask_at: None,
            care_at: None,
            refused_messages: 0,
            steps: 0,
            commits: Timing::default(),
        })
    }

    pub(crate) fn info(&self) -> GroupInfo {
        let raft = &self.node.raft;
        GroupInfo {
            role: match raft.state {
                StateRole::Leader => Role::Leader,
                StateRole::Follower => Role::Follower,
                StateRole::Candidate | StateRole::PreCandidate => Role::Candidate,
            },
            term: raft.term,
            leader: (raft.leader_id != 0).then_some(ReplicaId(raft.leader_id)),
            first: raft.raft_log.first_index(),
            last: raft.raft_log.last_index(),
            committed: raft.raft_log.committed,
            applied: self.applied,
            epoch: self.epoch,
            recovery: self.recovered(),
            awake: self.deadline().is_some(),
            failed: self.failed.clone(),
            members: self.members.clone(),
            followers: Vec::new(),
            catching_up: self.catch_up.as_ref().map(|it| (it.taken, it.missing())),
            damaged_entries: self.doubt.entries.len() as u64,
            entries_given_up: self.doubt.given_up,
            mended: self.mending.mended,
            given_up: self.mending.lost.len() as u64,
            commits: self.commits.clone(),
        }
    }

    /// What the leader knows of the others.
    pub(crate) fn followers(&self, links: &Links) -> Vec<FollowerInfo> {
        let Some(lead) = &self.lead else {
            return Vec::new();
        };
        let seats = self.members.seats().iter();
        let others = seats.filter(|seat| seat.member.replica != self.me);
        let info = |seat: &Seat| {
            let replica = seat.member.replica;
            let progress = self.node.raft.prs().get(replica.0);
            FollowerInfo {
                member: seat.member,
                there: links.is_there(seat),
                votes: seat.votes,
                wanted: seat.wanted,
                matched: progress.map_or(0, |it| it.matched),
                next: progress.map_or(0, |it| it.next_idx),
                same: lead.compared.same.contains_key(&replica),
                differs: lead
                    .compared
                    .differ
                    .get(&replica)
                    .cloned()
                    .unwrap_or_default(),
            }
        };
        others.map(info).collect()
    }

    pub(crate) fn term(&self) -> u64 {
        self.node.raft.term
    }

    pub(crate) fn leader_host(&self) -> Option<HostId> {
        let leader = ReplicaId(self.node.raft.leader_id);
        self.host_of(leader).filter(|_| !self.leader_gone)
    }

    /// A replica's seat among the members, or among those that come to be.
    pub(crate) fn seat_of(&self, replica: ReplicaId) -> Option<&Seat> {
        let later = self.later.as_ref();
        let later = || later.and_then(|(_, members)| members.seat(replica));
        self.members.seat(replica).or_else(later)
    }

    /// Whether a host is believed that this replica is none any more, and who the members are: one that has or had a member,
    /// or anybody once none of those is left that are known here.
    pub(crate) fn believes(&self, host: HostId) -> bool {
        let later = self.later.iter().flat_map(|(_, members)| members.iter());
        let mut known = self.members.iter().chain(later);
        let others = self.members.iter().filter(|it| it.replica != self.me);
        let mut others = others.peekable();
        let nobody_left =
            others.peek().is_some() && others.all(|it| self.departed.contains(&it.replica));
        nobody_left || known.any(|it| it.host == host)
    }

    /// A host says that a member is not there.
    pub(crate) fn departs(&mut self, host: HostId, replica: ReplicaId) {
        if self.host_of(replica) == Some(host) {
            self.departed.insert(replica);
        }
    }

    /// Where that is.
    pub(crate) fn host_of(&self, replica: ReplicaId) -> Option<HostId> {
        self.seat_of(replica).map(|seat| seat.member.host)
    }

    pub(crate) fn header(&self, index: u64) -> Option<&Header> {
        self.node.store().get(index)
    }

    /// The entry of a request, if the log has it.
    pub(crate) fn header_of(&self, stamp: Stamp) -> Option<u64> {
        self.node.store().find(stamp)
    }

    /// The last attachment, committed or not.
    pub(crate) fn epoch_in_log(&self) -> u64 {
        let attached = |entry: &Entry| (entry.body == Body::Attach).then_some(entry.epoch);
        let later = self.bodies.range(self.applied + 1..);
        let epochs = later.filter_map(|(_, entry)| attached(entry));
        let newest = epochs.map(|epoch| Stamp::from_entry(epoch).epoch()).max();
        newest.unwrap_or(0).max(self.epoch)
    }

    /// Whether members that are committed are not in effect.
    pub(crate) fn is_configuring_committed(&self) -> bool {
        let committed = self.node.raft.raft_log.committed;
        let mut later = self.node.store().after(self.applied);
        later.any(|(index, header)| header.configures && index <= committed)
    }

    /// Whether the store did not take in all that the consensus has.
    pub(crate) fn is_refused(&self) -> bool {
        self.unpersisted.iter().any(|it| it.submission.is_some())
    }

    /// Whether all that was ever committed is in effect here: so it is once an entry of the own term is.
    pub(crate) fn is_complete(&self) -> bool {
        let term = self.term();
        self.node
            .store()
            .get(self.applied)
            .is_some_and(|header| header.term == term)
    }

    fn see_to_lead(&mut self, context: &mut Context<'_>) {
        let (leads, term) = (self.node.raft.state == StateRole::Leader, self.term());
        if self
            .lead
            .as_ref()
            .is_some_and(|lead| !leads || lead.term != term)
        {
            let lead = self.lead.take().expect("it was there");
            let leader = self.leader_host();
            let waiting = lead.waiting.into_values().flatten();
            for asked in waiting.chain(lead.reads.into_iter().map(|reading| reading.asked)) {
                self.tell(context, asked, Err(Failure::NotLeader { leader, term }));
            }
            self.parked.clear();
        }
        if leads && self.lead.is_none() {
            self.lead = Some(Lead::new(term));
            (self.followed, self.leader_gone, self.attempts) = (None, false, 0);
            self.election_at = None;
        }
    }

    /// The store's log begins there now.
    pub(crate) fn trim(&mut self, first: u64) {
        let first = first.min(self.node.raft.raft_log.applied);
        self.node.mut_store().trim(first);
        self.fenced = self.fenced.split_off(&first);
    }

    /// The log is about to go on elsewhere.
    pub(crate) fn is_rebasing(&self) -> bool {
        self.reopens || self.catch_up.as_ref().is_some_and(CatchUp::is_rebasing)
    }

    /// The store's log is another one: this replica is to be made anew of it.
    pub(crate) fn reopen(&mut self, context: &mut Context<'_>) {
        self.reopens = true;
        context.out.reopens.push(self.volume);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blocks::EntryKind;

    #[test]
    fn members_prove_that_those_before_them_are_committed() {
        use EntryKind::{Config, Empty};
        let proven = |kinds: &[EntryKind]| {
            let head = |kind: &EntryKind| EntryHead {
                term: 3,
                epoch: 0,
                kind: *kind,
                lost: false,
            };
            let heads: Vec<EntryHead> = kinds.iter().map(head).collect();
            committed_by_the_next(10, &heads)
        };
        assert_eq!(
            proven(&[Empty, Config, Empty]),
            0,
            "the last ones prove nothing"
        );
        assert_eq!(proven(&[Empty, Config, Empty, Config, Empty]), 11);
        assert_eq!(proven(&[Config, Config, Config]), 11);
        assert_eq!(proven(&[]), 0);
    }
}
