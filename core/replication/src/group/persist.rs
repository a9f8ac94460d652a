//! What the consensus wants: first it is durable, then it is said.

use super::Group;
use crate::consensus::number;
use crate::log::Header;
use crate::outbox::Context;
use blocks::{Body, Entry, Refused, Submission, Ticket};
use raft::StateRole;
use std::collections::BTreeMap;

/// What is not durable yet, and what is said when it is.
#[derive(Debug)]
pub(super) struct Unpersisted {
    number: u64,
    /// The store did not take it in yet.
    pub(super) submission: Option<Submission>,
    ticket: Option<Ticket>,
    messages: Vec<raft::eraftpb::Message>,
}

impl Group {
    pub(crate) fn process(&mut self, context: &mut Context<'_>) {
        self.process_with(context, Vec::new());
    }

    /// Carries out all that the consensus wants; `staged` has the bodies of entries that just came.
    pub(super) fn process_with(&mut self, context: &mut Context<'_>, staged: Vec<Entry>) {
        let mut staged: BTreeMap<(u64, u64), Entry> = staged
            .into_iter()
            .map(|entry| ((entry.index, entry.term), entry))
            .collect();
        loop {
            self.see_to_lead(context);
            self.take_effect(context);
            self.see_to_members(context);
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
        self.doubt.forget_from(index);
        self.bodies.insert(index, entry.clone());
        Some(entry)
    }

    /// Gives the store what it did not take in yet, in order.
    fn submit(&mut self, context: &mut Context<'_>) {
        // The log goes on elsewhere, and with it goes what was not said yet.
        if self.is_rebasing() {
            return;
        }
        let mut unpersisted = std::mem::take(&mut self.unpersisted);
        for it in &mut unpersisted {
            while let Some(submission) = it.submission.take() {
                match self.submit_some(context, submission) {
                    Ok((ticket, rest)) => (it.ticket, it.submission) = (Some(ticket), rest),
                    Err(submission) => {
                        it.submission = Some(submission);
                        self.unpersisted = unpersisted;
                        return;
                    }
                }
            }
        }
        self.unpersisted = unpersisted;
    }

    /// Gives the store as much of a submission as it takes: what is too much for a small log as a whole is
    /// not in parts. Gives what is left; `Err`: nothing was taken.
    fn submit_some(
        &mut self,
        context: &mut Context<'_>,
        mut submission: Submission,
    ) -> Result<(Ticket, Option<Submission>), Submission> {
        let mut count = submission.entries.len();
        loop {
            let part = Submission {
                hard: submission.hard,
                entries: submission.entries[..count].to_vec(),
            };
            match context.store.submit(self.volume, part) {
                Ok(ticket) => {
                    let rest = submission.entries.split_off(count);
                    if let Some(last) = submission.entries.last() {
                        self.submitted = (last.index, last.term);
                    }
                    self.last_ticket = Some(ticket);
                    let rest = (!rest.is_empty()).then_some(Submission {
                        hard: None,
                        entries: rest,
                    });
                    return Ok((ticket, rest));
                }
                Err(
                    Refused::Busy { .. }
                    | Refused::NotYet { .. }
                    | Refused::NoSpace { .. }
                    | Refused::MapFull,
                ) => {
                    count /= 2;
                    if count == 0 {
                        return Err(submission);
                    }
                }
                Err(error) => {
                    self.failed = Some(error.to_string());
                    return Err(submission);
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
        self.doubt.durable(ticket);
        self.perhaps_rebased(context, ticket);
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
}
