//! Entries of this disk's log that cannot be read, and are yet to take effect: they may have been acknowledged.
//!
//! Their places count as ever: this replica votes for nobody whose log ends before them, does not try to lead, and
//! acknowledges nothing from the first of them on. They come back from a peer that has them, or with the chunks of
//! one where they are in effect; a leader's entries take their place; or all others say, twice, that they have the
//! first of them no more than this one. Then it is given up: what no replica has nobody can be told of.

use crate::group::Group;
use crate::message::{Care, Place, Step};
use crate::outbox::{Context, WantedFor};
use crate::{Members, ReplicaId, Time};
use blocks::{Body, Entry, EntryError, Submission, Ticket};
use std::collections::{BTreeMap, BTreeSet};

/// Who does not answer for so long is not waited for.
const AGAIN_MICROS: u64 = 100_000;
/// Entries that are asked for at once.
const MOST_ASKED: usize = 16;

/// What is in doubt.
#[derive(Debug, Default)]
pub(crate) struct Doubt {
    /// Entries that are damaged, and their terms.
    pub(crate) entries: BTreeMap<u64, u64>,
    /// The first of those that came back and may not be durable yet, and when they are.
    back: Option<(u64, Ticket)>,
    asked_at: Option<Time>,
    turn: usize,
    /// The number of the question, which no other start of this host uses.
    question: u64,
    /// Who answered it: the first of the entries is not there either.
    without: BTreeSet<ReplicaId>,
    /// All did so before this question was asked, so that nobody can have got it meanwhile.
    twice: bool,
    /// Entries that were given up.
    pub(crate) given_up: u64,
}

impl Doubt {
    pub(crate) fn deadline(&self) -> Option<Time> {
        let asks = !self.entries.is_empty();
        asks.then(|| self.asked_at.unwrap_or(Time(0)))
    }

    /// Whether the log has entries that cannot be vouched for.
    pub(crate) fn is_there(&self) -> bool {
        !self.entries.is_empty() || self.back.is_some()
    }

    /// The first entry that cannot be read.
    pub(crate) fn first(&self) -> Option<Place> {
        let first = self.entries.first_key_value();
        first.map(|(index, term)| Place {
            index: *index,
            term: *term,
        })
    }

    /// Entries from this one on are replaced.
    pub(crate) fn forget_from(&mut self, index: u64) {
        self.entries.split_off(&index);
    }

    /// All that was written up to this ticket is durable.
    pub(crate) fn durable(&mut self, ticket: Ticket) {
        self.back = self.back.filter(|(_, until)| *until > ticket);
    }

    fn wants(&self, entry: &Entry) -> bool {
        self.entries.get(&entry.index) == Some(&entry.term)
    }
}

impl Group {
    /// What can be vouched for: an answer says no more than that.
    pub(crate) fn vouched(&self, step: Step) -> Step {
        let damaged = self.doubt.first().map(|first| first.index);
        let back = self.doubt.back.map(|(first, _)| first);
        let first = damaged.into_iter().chain(back).min();
        match (step, first) {
            (Step::Appended { last, commit }, Some(first)) => Step::Appended {
                last: last.min(first - 1),
                commit,
            },
            (step, _) => step,
        }
    }

    /// All up to this entry is known to be committed: by the leader's word, or as chunks have it that came from
    /// where it was in effect. The log may end before it.
    pub(crate) fn proven(&self, context: &Context<'_>) -> u64 {
        let committed = self.node.raft.raft_log.committed;
        if context.store.base(self.volume).is_some() {
            return committed;
        }
        let newer = context
            .store
            .chunks_changed_since(self.volume, committed, 0);
        let newest = newer.and_then(|chunks| chunks.map(|(_, changed)| changed).max());
        newest.unwrap_or(0).max(committed)
    }

    /// Asks for entries that are damaged, one peer after another.
    pub(crate) fn see_to_entries(&mut self, context: &mut Context<'_>) {
        let due = self.doubt.asked_at.is_none_or(|at| at <= context.now);
        if self.doubt.entries.is_empty() || self.reopens || !due {
            return;
        }
        self.doubt.asked_at = Some(context.now + AGAIN_MICROS);
        if self.doubt.question == 0 {
            self.next_question(context);
        }
        self.perhaps_give_up(context);
        let Some(peer) = self.peer(context, self.doubt.turn) else {
            return;
        };
        self.doubt.turn += 1;
        let question = self.doubt.question;
        let places = self.doubt.entries.iter().take(MOST_ASKED);
        let places = places.map(|(index, term)| Place {
            index: *index,
            term: *term,
        });
        for place in places.collect::<Vec<_>>() {
            self.care(context, peer, Care::WantEntry { place, question });
        }
    }

    fn next_question(&mut self, context: &mut Context<'_>) {
        context.out.questions += 1;
        self.doubt.question = context.links.incarnation().rotate_left(24) ^ context.out.questions;
        self.doubt.without.clear();
    }

    /// A peer wants an entry.
    pub(crate) fn read_for(
        &self,
        context: &mut Context<'_>,
        to: ReplicaId,
        place: Place,
        question: u64,
    ) {
        let volume = self.volume;
        let wanted = WantedFor {
            volume,
            to,
            place,
            question,
        };
        let there = context.store.term(volume, place.index) == Some(place.term);
        let whole = there && !self.doubt.entries.contains_key(&place.index);
        let read = whole.then(|| context.store.read_entry(volume, place.index));
        match read {
            Some(Ok(ticket)) => _ = context.out.wanted.insert(ticket, wanted),
            // It may be read when it is asked for again.
            Some(Err(_)) => {}
            None => self.cannot_give(context, wanted),
        }
    }

    /// An entry was read for a peer.
    pub(crate) fn read_for_peer(
        &self,
        context: &mut Context<'_>,
        wanted: WantedFor,
        result: Result<Entry, EntryError>,
    ) {
        match result {
            Ok(entry) if entry.term == wanted.place.term => {
                self.care(context, wanted.to, Care::Entry(entry));
            }
            Ok(_) => {}
            Err(_) => self.cannot_give(context, wanted),
        }
    }

    /// Where the place is in effect the peer takes chunks; where it may be, it is waited for.
    fn cannot_give(&self, context: &mut Context<'_>, wanted: WantedFor) {
        let WantedFor {
            to,
            place,
            question,
            ..
        } = wanted;
        let whole = context.store.base(self.volume).is_some();
        if place.index <= self.applied && whole {
            let first = self.applied + 1;
            self.care(context, to, Care::Behind { first });
        } else if place.index > self.proven(context) {
            self.care(context, to, Care::NoEntry { place, question });
        }
    }

    /// A peer does not have an entry that is damaged here.
    pub(crate) fn entry_is_not_there(
        &mut self,
        context: &mut Context<'_>,
        from: ReplicaId,
        place: Place,
        question: u64,
    ) {
        if question == self.doubt.question && self.doubt.first() == Some(place) {
            self.doubt.without.insert(from);
            self.perhaps_give_up(context);
        }
    }

    /// Gives the first of the entries up, when all others that vote were asked for it twice.
    fn perhaps_give_up(&mut self, context: &mut Context<'_>) {
        let Some(first) = self.doubt.first() else {
            return;
        };
        let answered = |replica| replica == self.me || self.doubt.without.contains(&replica);
        let all = self.voters_in_log().into_iter().all(answered);
        // What is known to be committed is the others' to bring, and be it as chunks.
        let committed = first.index <= self.proven(context);
        if !all || committed || self.reopens || self.is_refused() || self.catch_up.is_some() {
            return;
        }
        if !self.doubt.twice {
            self.doubt.twice = true;
            self.next_question(context);
            self.doubt.asked_at = Some(context.now);
            return;
        }
        if context.store.truncate(self.volume, first.index - 1).is_ok() {
            self.doubt.given_up += self.doubt.entries.len() as u64;
            self.reopen(context);
        }
    }

    /// All that vote, by the members that are in effect or by those in the log, which may be.
    fn voters_in_log(&self) -> BTreeSet<ReplicaId> {
        let later = self.bodies.range(self.applied + 1..);
        let later = later.filter_map(|(_, entry)| match &entry.body {
            Body::Config(bytes) => Members::decode(bytes).ok(),
            _ => None,
        });
        let all = std::iter::once(self.members.clone()).chain(later);
        let voters = |members: Members| {
            let all = members.iter().map(|member| member.replica);
            let voters = all.filter(|replica| members.votes(*replica));
            voters.collect::<Vec<_>>()
        };
        all.flat_map(voters).collect()
    }

    /// An entry came that was damaged.
    pub(crate) fn entry_came(&mut self, context: &mut Context<'_>, entry: Entry) {
        if self.reopens || !self.doubt.wants(&entry) {
            return;
        }
        let submission = Submission {
            hard: None,
            entries: vec![entry.clone()],
        };
        // What the store refuses is asked for again.
        if let Ok(ticket) = context.store.submit(self.volume, submission) {
            self.last_ticket = Some(ticket);
            let doubt = &mut self.doubt;
            doubt.entries.remove(&entry.index);
            let first = doubt
                .back
                .map_or(entry.index, |(first, _)| first.min(entry.index));
            doubt.back = Some((first, ticket));
            // Another one is the first of them: what was said of this one does not count for it.
            (doubt.asked_at, doubt.question, doubt.twice) = (None, 0, false);
            self.bodies.insert(entry.index, entry);
            self.see_to_entries(context);
            self.process(context);
        }
    }

    /// A leader's entries came: what is damaged here may be among them.
    pub(crate) fn those_in_doubt(&self, entries: &[Entry]) -> Vec<Entry> {
        let wanted = entries.iter().filter(|entry| self.doubt.wants(entry));
        wanted.cloned().collect()
    }
}
