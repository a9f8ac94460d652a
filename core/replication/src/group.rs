//! A replica of one volume: plain data, no task and no timer of its own.

use crate::consensus::{node, number, to_raft};
use crate::lead::Lead;
use crate::log::{Header, Log};
use crate::message::{Answered, Failure, Step, VoteKind};
use crate::outbox::Context;
use crate::send::Parked;
use crate::validate::{Known, judge};
use crate::{HostId, Members, Message, ReplicaId, SessionId, Stamp, Time};
use blocks::{Body, Entry, Refused, Submission, Ticket, VolumeId, VolumeInfo};
use raft::{RawNode, StateRole};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

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
    /// It waits for time to pass, or for a peer.
    pub awake: bool,
    /// Why it takes part no more, if so.
    pub failed: Option<String>,
}

/// A request, and whom to answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) host: HostId,
    pub(crate) session: SessionId,
    pub(crate) id: u64,
    pub(crate) term: u64,
}

/// What is not durable yet, and what is said when it is.
#[derive(Debug)]
struct Unpersisted {
    number: u64,
    /// The store did not take it in yet.
    submission: Option<Submission>,
    ticket: Option<Ticket>,
    messages: Vec<raft::eraftpb::Message>,
}

pub(crate) struct Group {
    pub(crate) volume: VolumeId,
    pub(crate) me: ReplicaId,
    pub(crate) members: Members,
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
    pub(crate) refused_messages: u64,
    pub(crate) steps: u64,
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

impl Group {
    /// A replica as the store has it. `terms`: of all entries from before the first one on; `entries`:
    /// those that did not take effect yet.
    pub(crate) fn new(
        volume: VolumeId,
        me: ReplicaId,
        members: Members,
        info: &VolumeInfo,
        terms: &[u64],
        entries: Vec<Entry>,
    ) -> Result<Self, String> {
        let before = (info.first - 1, terms[0]);
        let voters = members.iter().map(|member| member.replica.0).collect();
        let hard = (info.hard.term, info.hard.vote);
        let commit = info.hard.commit.clamp(info.applied, info.last);
        let mut log = Log::new(before, voters, hard, commit);
        for (index, term) in (info.first..).zip(&terms[1..]) {
            let header = Header {
                term: *term,
                stamp: None,
                attaches: false,
            };
            log.put(index, header);
        }
        for entry in &entries {
            log.put(entry.index, Header::of(entry));
        }
        let node = node(me, info.applied, log).map_err(|error| error.to_string())?;
        let last_term = terms.last().copied().unwrap_or(0);
        Ok(Self {
            volume,
            me,
            members,
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
            refused_messages: 0,
            steps: 0,
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
            awake: self.deadline().is_some(),
            failed: self.failed.clone(),
        }
    }

    pub(crate) fn term(&self) -> u64 {
        self.node.raft.term
    }

    pub(crate) fn leader_host(&self) -> Option<HostId> {
        let leader = ReplicaId(self.node.raft.leader_id);
        self.members.host(leader).filter(|_| !self.leader_gone)
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

    /// A message of a peer.
    pub(crate) fn message(&mut self, context: &mut Context<'_>, message: Message) {
        if self.failed.is_some() {
            return;
        }
        let raft = &self.node.raft;
        let known = Known {
            me: self.me,
            term: raft.term,
            last: raft.raft_log.last_index(),
            committed: raft.raft_log.committed,
        };
        let term_at = |index| raft.raft_log.term(index).ok().filter(|term| *term != 0);
        let fits = judge(&message, known, &self.members, term_at).is_ok();
        if !fits || !self.may_hear(context, &message) {
            self.refused_messages += 1;
            return;
        }
        let Message::Consensus {
            from, term, step, ..
        } = &message
        else {
            return;
        };
        let (from, term) = (*from, *term);
        let raw = to_raft(&message).expect("it is between replicas");
        self.note_follower(from, term, step);
        if let Message::Consensus {
            step: Step::Append { entries, .. },
            ..
        } = message
        {
            self.step(raw);
            self.process_with(context, entries);
        } else {
            self.step(raw);
            self.process(context);
        }
        self.note_leader(context, from, term);
    }

    fn step(&mut self, raw: raft::eraftpb::Message) {
        self.steps += 1;
        // It says no to what comes from nobody that it knows; nothing is to be done about it.
        drop(self.node.step(raw));
    }

    /// Promises come before votes, and what the store has not taken in before what follows it.
    fn may_hear(&mut self, context: &Context<'_>, message: &Message) -> bool {
        let Message::Consensus {
            from, term, step, ..
        } = message
        else {
            return false;
        };
        match step {
            Step::Append { .. } => !self.is_refused(),
            Step::Vote { kind, .. } if *kind != VoteKind::Transfer => {
                let host = self.members.host(*from);
                let followed = self.followed.map(|(host, _)| host);
                if followed.is_some() && followed == host {
                    // Who asks for a vote leads no more.
                    let over = self.followed.is_some_and(|(_, followed)| *term > followed);
                    self.leader_gone |= over;
                    return true;
                }
                let leased = self.holds_lease(context);
                if let Some(lead) = self.lead.as_mut().filter(|_| leased) {
                    // It does not know who leads: it will hear.
                    lead.followers.remove(from);
                    lead.ping_at = Some(context.now);
                    return false;
                }
                let promised = followed.filter(|_| !self.leader_gone);
                context.links.may_help(promised, context.now)
            }
            _ => true,
        }
    }

    /// A follower's answer in the own term shows that it follows in it.
    fn note_follower(&mut self, from: ReplicaId, term: u64, step: &Step) {
        let follows = matches!(
            step,
            // One that has nothing is an answer to another term's.
            Step::Appended { last: 1.., .. } | Step::Rejected { .. } | Step::HeartbeatReply { .. }
        );
        if let Some(lead) = self
            .lead
            .as_mut()
            .filter(|lead| follows && lead.term == term)
        {
            lead.followers.insert(from);
        }
    }

    fn note_leader(&mut self, context: &mut Context<'_>, from: ReplicaId, term: u64) {
        let raft = &self.node.raft;
        if raft.leader_id == from.0 && raft.term == term && raft.state == StateRole::Follower {
            self.followed = self.members.host(from).map(|host| (host, term));
            self.leader_gone = false;
            self.attempts = 0;
        }
        self.see_to_election(context);
    }

    pub(crate) fn process(&mut self, context: &mut Context<'_>) {
        self.process_with(context, Vec::new());
    }

    /// Carries out all that the consensus wants; `staged` has the bodies of entries that just came.
    fn process_with(&mut self, context: &mut Context<'_>, staged: Vec<Entry>) {
        let mut staged: BTreeMap<(u64, u64), Entry> = staged
            .into_iter()
            .map(|entry| ((entry.index, entry.term), entry))
            .collect();
        loop {
            self.see_to_lead(context);
            self.take_effect(context);
            self.serve_reads(context);
            if self.failed.is_some() || !self.node.has_ready() {
                return;
            }
            let mut ready = self.node.ready();
            let now = ready.take_messages();
            let messages = ready.take_persisted_messages();
            let hard = ready.hs().map(|hs| (hs.term, hs.vote));
            let hard = hard.filter(|hard| *hard != self.hard);
            self.hard = hard.unwrap_or(self.hard);
            let entries = ready.take_entries();
            let entries = entries
                .iter()
                .filter_map(|raw| self.take_in(raw, &mut staged));
            let entries: Vec<Entry> = entries.collect();
            let reads: Vec<u64> = ready
                .take_read_states()
                .iter()
                .map(|it| number(&it.request_ctx))
                .collect();
            let number = ready.number();
            self.node.advance_append_async(ready);
            self.node.advance_apply();
            let wanted = hard.is_some() || !entries.is_empty();
            self.unpersisted.push_back(Unpersisted {
                number,
                submission: wanted.then_some(Submission { hard, entries }),
                ticket: self.last_ticket,
                messages,
            });
            now.iter().for_each(|raw| self.dispatch(context, raw));
            self.submit(context);
            self.release(context);
            self.take_effect(context);
            reads
                .into_iter()
                .for_each(|it| self.majority_was_there(context, it));
        }
    }

    /// Takes an entry into the log; gives it, if the store does not have it yet.
    fn take_in(
        &mut self,
        raw: &raft::eraftpb::Entry,
        staged: &mut BTreeMap<(u64, u64), Entry>,
    ) -> Option<Entry> {
        let (index, term) = (raw.index, raw.term);
        if let Some(held) = self.bodies.get(&index).filter(|held| held.term == term) {
            // It was proposed here: the store has it.
            self.node.mut_store().put(index, Header::of(held));
            return None;
        }
        let first = Entry {
            index,
            term,
            epoch: 0,
            body: Body::Empty,
        };
        let leads = self.node.raft.state == StateRole::Leader && term == self.term();
        let entry = staged
            .remove(&(index, term))
            .or_else(|| leads.then_some(first));
        let entry = entry.expect("entries come with their bodies, but for a leader's first");
        self.node.mut_store().put(index, Header::of(&entry));
        self.bodies.split_off(&index);
        self.bodies.insert(index, entry.clone());
        Some(entry)
    }

    /// Gives the store what it did not take in yet, in order.
    fn submit(&mut self, context: &mut Context<'_>) {
        for unpersisted in &mut self.unpersisted {
            let Some(submission) = &unpersisted.submission else {
                continue;
            };
            match context.store.submit(self.volume, submission.clone()) {
                Ok(ticket) => {
                    if let Some(last) = submission.entries.last() {
                        self.submitted = (last.index, last.term);
                    }
                    self.last_ticket = Some(ticket);
                    unpersisted.ticket = Some(ticket);
                    unpersisted.submission = None;
                }
                Err(Refused::Busy { .. } | Refused::NoSpace { .. } | Refused::MapFull) => return,
                Err(error) => {
                    self.failed = Some(error.to_string());
                    return;
                }
            }
        }
    }

    /// Says what was held back until it is durable.
    fn release(&mut self, context: &mut Context<'_>) {
        while let Some(front) = self.unpersisted.front() {
            if front.submission.is_some() || front.ticket > self.durable {
                return;
            }
            let front = self.unpersisted.pop_front().expect("there is one");
            self.node.on_persist_ready(front.number);
            front
                .messages
                .iter()
                .for_each(|raw| self.dispatch(context, raw));
        }
    }

    /// The store says that something is durable.
    pub(crate) fn durable(&mut self, context: &mut Context<'_>, ticket: Ticket) {
        self.durable = self.durable.max(Some(ticket));
        self.go_on(context);
    }

    /// The store may take in what it refused.
    pub(crate) fn go_on(&mut self, context: &mut Context<'_>) {
        if self.failed.is_none() {
            self.submit(context);
            self.release(context);
            self.process(context);
        }
    }

    /// Lets committed entries take effect, and answers for them.
    fn take_effect(&mut self, context: &mut Context<'_>) {
        let log = &self.node.raft.raft_log;
        // What the store has in the place of entries that just came is of a leader that lost.
        let taken_in = log.unstable.offset - 1;
        let commit = log.committed.min(self.submitted.0).min(taken_in);
        let refused = self
            .unpersisted
            .iter()
            .filter_map(|it| it.submission.as_ref());
        let first = refused
            .filter_map(|it| it.entries.first())
            .map(|entry| entry.index)
            .min();
        let commit = first.map_or(commit, |first| commit.min(first - 1));
        let commit = commit.min(self.node.store().last());
        if commit <= self.applied || self.failed.is_some() {
            return;
        }
        match context.store.committed(self.volume, commit) {
            Ok(fenced) => self.fenced.extend(fenced),
            Err(error) => return self.failed = Some(error.to_string()),
        }
        let mut attached = None;
        for index in self.applied + 1..=commit {
            self.applied = index;
            if let Some(Header {
                attaches: true,
                stamp: Some(stamp),
                ..
            }) = self.header(index).copied()
            {
                self.epoch = self.epoch.max(stamp.epoch());
                attached = Some(index);
            }
            let waiting = self
                .lead
                .as_mut()
                .and_then(|lead| lead.waiting.remove(&index));
            for asked in waiting.into_iter().flatten() {
                let result = self.outcome(index);
                self.tell(context, asked, result);
                if attached == Some(index) {
                    self.hand_over(context, asked.host);
                }
            }
        }
        self.forget_bodies();
    }

    /// Bodies that took effect are wanted only by followers that are about to get them.
    fn forget_bodies(&mut self) {
        let slowest = match &self.lead {
            None => u64::MAX,
            Some(_) => self
                .node
                .raft
                .prs()
                .iter()
                .map(|(_, it)| it.matched)
                .min()
                .unwrap_or(0),
        };
        let keep = slowest
            .min(self.applied)
            .max(self.applied.saturating_sub(64))
            + 1;
        self.bodies = self.bodies.split_off(&keep);
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

    /// Blocks were read for an endpoint.
    pub(crate) fn outcome_of_read(
        &self,
        context: &mut Context<'_>,
        asked: Asked,
        result: Result<Vec<blocks::Buffer>, blocks::ReadError>,
    ) {
        let result = match result {
            Ok(buffers) => Ok(Answered::Data(buffers)),
            Err(blocks::ReadError::Damaged { lbas }) => Err(Failure::Damaged { lbas }),
        };
        self.tell(context, asked, result);
    }
}
