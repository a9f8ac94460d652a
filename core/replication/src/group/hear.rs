//! What a replica hears of its peers, and what it does not.

use super::Group;
use crate::consensus::to_raft;
use crate::message::{Place, Step, VoteKind};
use crate::outbox::Context;
use crate::validate::{Known, judge};
use crate::{Message, ReplicaId};
use raft::StateRole;

impl Group {
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
        let is_member = |replica| self.seat_of(replica).is_some();
        let fits = judge(&message, known, is_member, term_at).is_ok();
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
        self.note_follower(context, from, term, step);
        if let Message::Consensus {
            step: Step::Append { entries, .. },
            ..
        } = message
        {
            let in_doubt = self.those_in_doubt(&entries);
            self.step(raw);
            self.process_with(context, entries);
            for entry in in_doubt {
                self.entry_came(context, entry);
            }
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
        if !self.is_since_it_came(context, *from) {
            return false;
        }
        match step {
            Step::Append { .. } => !self.is_refused() && !self.is_rebasing(),
            Step::TimeoutNow => self.may_lead(context),
            Step::Vote { kind, last, .. } => {
                let helps = *kind == VoteKind::Transfer || self.may_help(context, *from, *term);
                helps && !self.is_short(context, *last)
            }
            _ => true,
        }
    }

    /// Whether what is being heard of a replica is its own, and not of one that had its number before: its log has nothing
    /// to do with that one's.
    fn is_since_it_came(&self, context: &Context<'_>, from: ReplicaId) -> bool {
        let came = self.lead.as_ref().and_then(|lead| lead.came.get(&from));
        let host = self.members.host(from);
        let heard = host.and_then(|host| context.links.echoed(host));
        came.is_none_or(|came| heard.is_some_and(|heard| heard > *came))
    }

    /// Whether nothing was promised to another one than this, who wants to lead in a term.
    fn may_help(&mut self, context: &Context<'_>, from: ReplicaId, term: u64) -> bool {
        let host = self.host_of(from);
        let followed = self.followed.map(|(host, _)| host);
        if followed.is_some() && followed == host {
            // Who asks for a vote leads no more.
            let over = self.followed.is_some_and(|(_, followed)| term > followed);
            self.leader_gone |= over;
            return true;
        }
        let leased = self.holds_lease(context);
        if let Some(lead) = self.lead.as_mut().filter(|_| leased) {
            // It does not know who leads: it will hear.
            lead.followers.remove(&from);
            lead.ping_at = Some(context.now);
            return false;
        }
        let promised = followed.filter(|_| !self.leader_gone);
        context.links.may_help(promised, context.now)
    }

    /// Whether a log that ends there lacks what is committed, as chunks here show. What this one's own log shows
    /// the consensus knows.
    fn is_short(&self, context: &Context<'_>, last: Place) -> bool {
        let proven = self.proven(context);
        proven > self.node.raft.raft_log.last_index() && last.index < proven
    }

    /// A follower's answer in the own term shows that it follows in it.
    fn note_follower(&mut self, context: &Context<'_>, from: ReplicaId, term: u64, step: &Step) {
        let follows = step.follows();
        let host = self.members.host(from);
        let heard = host.and_then(|host| context.links.echoed(host));
        let lead = self.lead.as_mut();
        let lead = lead.filter(|lead| follows && lead.term == term);
        if let Some((lead, heard)) = lead.zip(heard) {
            let confirmed = lead.followers.entry(from).or_insert(heard);
            *confirmed = (*confirmed).max(heard);
        }
    }

    fn note_leader(&mut self, context: &mut Context<'_>, from: ReplicaId, term: u64) {
        let raft = &self.node.raft;
        if raft.leader_id == from.0 && raft.term == term && raft.state == StateRole::Follower {
            self.followed = self.host_of(from).map(|host| (host, term));
            self.leader_gone = false;
            self.attempts = 0;
            self.unsure = false;
        }
        self.see_to_election(context);
    }
}
