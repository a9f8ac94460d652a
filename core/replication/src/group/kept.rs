//! A replica whose log goes on elsewhere: what of it stays.

use super::Group;
use crate::message::Step;
use crate::outbox::Context;
use crate::{HostId, ReplicaId};
use blocks::Ticket;
use std::collections::BTreeSet;

/// What stays of a replica whose log goes on elsewhere.
#[derive(Debug)]
pub(crate) struct Kept {
    followed: Option<(HostId, u64)>,
    leader_gone: bool,
    leader: (ReplicaId, u64),
    last_ticket: Option<Ticket>,
    durable: Option<Ticket>,
    refused_messages: u64,
    steps: u64,
    mended: (u64, BTreeSet<u64>),
    given_up: u64,
}

impl Kept {
    /// What was being written is durable.
    pub(crate) fn durable(&mut self, ticket: Ticket) {
        self.durable = self.durable.max(Some(ticket));
    }
}

impl Group {
    pub(crate) fn into_kept(self) -> Kept {
        Kept {
            followed: self.followed,
            leader_gone: self.leader_gone,
            leader: (ReplicaId(self.node.raft.leader_id), self.term()),
            last_ticket: self.last_ticket,
            durable: self.durable,
            refused_messages: self.refused_messages,
            steps: self.steps,
            mended: (self.mending.mended, self.mending.lost),
            given_up: self.doubt.given_up,
        }
    }

    /// The log goes on elsewhere: promises stay, and the leader hears from where on.
    pub(crate) fn resume(&mut self, context: &mut Context<'_>, kept: Kept) {
        (self.followed, self.leader_gone) = (kept.followed, kept.leader_gone);
        (self.last_ticket, self.durable) = (kept.last_ticket, kept.durable);
        (self.refused_messages, self.steps) = (kept.refused_messages, kept.steps);
        (self.mending.mended, self.mending.lost) = kept.mended;
        self.doubt.given_up = kept.given_up;
        let (leader, term) = kept.leader;
        if term == self.term() && leader.0 != 0 {
            // All up to there is committed, so the logs agree.
            let step = Step::Appended {
                last: self.applied,
                commit: self.applied,
            };
            self.send(context, leader, term, step);
        }
    }
}
