//! A replica that lacks what its leader's log has no more: chunks first, then the log.
//!
//! It asks for what it wants, a few chunks at a time, so that it decides how fast they come; who has them
//! keeps nothing for it. What was taken in is in the store's map: after a start, or with another leader,
//! the same question gets a shorter answer.

use crate::group::Group;
use crate::message::{Care, Step};
use crate::outbox::{ChunkFor, Context};
use crate::{ReplicaId, Time};
use blocks::{Base, Chunk, InstallRefused, Refused, Ticket};
use std::collections::BTreeMap;

/// Chunks that are asked for at once.
const MOST_UNDER_WAY: usize = 4;
/// Chunks that one message names.
const MOST_NAMED: usize = 1024;
/// Chunks that a host reads for others at once; who is not served asks again.
const MOST_READ: usize = 16;
/// What is not answered for so long is asked again.
const AGAIN_MICROS: u64 = 400_000;
/// What the store refused is tried again after so long.
const PAUSE_MICROS: u64 = 20_000;

/// What there is only while catching up.
#[derive(Debug)]
pub(crate) struct CatchUp {
    /// Who has it.
    from: ReplicaId,
    /// All up to this entry is here.
    since: u64,
    /// What was in effect there when it was asked first.
    base: Option<Base>,
    /// Chunks from this one on are yet to be named; nothing when all were.
    next: Option<u64>,
    asked_at: Option<Time>,
    /// Chunks that are wanted.
    wanted: BTreeMap<u64, u64>,
    /// Those of them that were asked for, and when.
    under_way: BTreeMap<u64, Time>,
    /// A chunk that the store did not take in yet.
    held: Vec<Chunk>,
    /// The log goes on elsewhere, once this is durable.
    rebased: Option<Ticket>,
    /// So many chunks came.
    pub(crate) taken: u64,
}

impl CatchUp {
    pub(crate) const fn is_rebasing(&self) -> bool {
        self.rebased.is_some()
    }

    /// Chunks that are known to be missing.
    pub(crate) fn missing(&self) -> u64 {
        self.wanted.len() as u64
    }
}

impl Group {
    /// The leader's log has no more what this replica lacks, or the entry that is damaged here is in effect there.
    pub(crate) fn fell_behind(&mut self, context: &mut Context<'_>, from: ReplicaId, first: u64) {
        let raft = &self.node.raft;
        // Entries that are not committed may be in the place of others; those that are damaged are in no place.
        let whole = self.doubt.first().map_or(u64::MAX, |first| first.index - 1);
        let lacks = raft.raft_log.committed.min(whole) + 1 < first;
        // Where nobody leads it may be this replica that is wanted for it.
        let leads = raft.leader_id == from.0;
        if !lacks && leads {
            // It was not heard. All that is committed here is the leader's, too.
            let (term, commit) = (raft.term, raft.raft_log.committed);
            let step = Step::Appended {
                last: commit,
                commit,
            };
            return self.send(context, from, term, step);
        }
        if !lacks || !leads && !self.doubt.is_there() {
            return;
        }
        if self.lead.is_some() || self.is_rebasing() {
            return;
        }
        let begun = self.catch_up.as_ref();
        if begun.is_some_and(|it| it.from == from || !leads)
            || !context.out.may_catch_up(self.volume)
        {
            return;
        }
        context.out.catching.insert(self.volume);
        self.catch_up = Some(CatchUp {
            from,
            since: self.applied,
            base: None,
            next: Some(0),
            asked_at: None,
            wanted: BTreeMap::new(),
            under_way: BTreeMap::new(),
            held: Vec::new(),
            rebased: None,
            taken: 0,
        });
        self.go_on_catching_up(context);
    }

    /// Asks for what is to be asked for now.
    pub(crate) fn go_on_catching_up(&mut self, context: &mut Context<'_>) {
        // From there on it has to come to its end: the store's log is another one by then.
        let Some(mut it) = self.catch_up.take_if(|it| !it.is_rebasing()) else {
            return;
        };
        let there = self
            .seat_of(it.from)
            .is_some_and(|seat| context.links.is_there(seat));
        // Entries came instead; or who has it is gone, and another leader will tell.
        let over = it
            .base
            .as_ref()
            .is_some_and(|base| base.index <= self.applied);
        if !there || over || self.lead.is_some() {
            context.out.catching.remove(&self.volume);
            return;
        }
        for chunk in std::mem::take(&mut it.held) {
            self.take_chunk(context, &mut it, chunk);
        }
        self.ask_for_chunks(context, &mut it);
        let all = it.next.is_none() && it.wanted.is_empty() && it.held.is_empty();
        // What the store refused stays out: it is refused for as long as what it would follow is in the log.
        if let Some(base) = it.base.as_ref().filter(|_| all) {
            match context.store.rebase(self.volume, base) {
                Ok(ticket) => it.rebased = Some(ticket),
                Err(Refused::Unsettled { .. } | Refused::Busy { .. }) => {}
                Err(error) => self.failed = Some(error.to_string()),
            }
        }
        self.care_at = Some(context.now + PAUSE_MICROS);
        self.catch_up = Some(it);
    }

    fn ask_for_chunks(&mut self, context: &mut Context<'_>, it: &mut CatchUp) {
        let now = context.now;
        let due = |at: &Time| *at + AGAIN_MICROS <= now;
        if let Some(from) = it.next
            && it.wanted.is_empty()
            && it.asked_at.as_ref().is_none_or(due)
        {
            it.asked_at = Some(context.now);
            let since = it.since;
            self.care(context, it.from, Care::Changes { since, from });
        }
        it.under_way.retain(|_, at| !due(at));
        let next: Vec<u64> = it
            .wanted
            .keys()
            .filter(|number| !it.under_way.contains_key(number))
            .take(MOST_UNDER_WAY.saturating_sub(it.under_way.len() + it.held.len()))
            .copied()
            .collect();
        for number in next {
            if !context.out.may_move(context.now) {
                break;
            }
            it.under_way.insert(number, context.now);
            self.care(context, it.from, Care::WantChunk { number });
        }
    }

    /// Chunks that changed were named.
    pub(crate) fn chunks_changed(
        &mut self,
        context: &mut Context<'_>,
        from: ReplicaId,
        (since, first, more): (u64, u64, bool),
        base: Base,
        chunks: &[(u64, u64)],
    ) {
        let Some(it) = self.catch_up.as_mut() else {
            return;
        };
        let asked = it.from == from && it.since == since && it.next == Some(first);
        if !asked || it.rebased.is_some() {
            return;
        }
        let blocks = context
            .store
            .volume(self.volume)
            .map_or(0, |info| info.blocks);
        if base.blocks > blocks && context.store.grow(self.volume, base.blocks).is_err() {
            return; // It is asked again.
        }
        it.base.get_or_insert(base);
        it.asked_at = None;
        it.next = chunks.last().filter(|_| more).map(|(number, _)| number + 1);
        for (number, changed) in chunks {
            let has = context.store.chunk_changed(self.volume, *number);
            if has.is_none_or(|has| has < *changed) {
                it.wanted.insert(*number, *changed);
            }
        }
        self.go_on_catching_up(context);
    }

    /// A chunk came.
    pub(crate) fn chunk_came(&mut self, context: &mut Context<'_>, from: ReplicaId, chunk: Chunk) {
        let Some(mut it) = self.catch_up.take() else {
            return;
        };
        if it.from == from && it.rebased.is_none() {
            self.take_chunk(context, &mut it, chunk);
        }
        self.catch_up = Some(it);
        self.go_on_catching_up(context);
    }

    fn take_chunk(&mut self, context: &mut Context<'_>, it: &mut CatchUp, chunk: Chunk) {
        let number = chunk.number;
        if it
            .wanted
            .get(&number)
            .is_none_or(|least| chunk.changed < *least)
        {
            return;
        }
        it.under_way.remove(&number);
        match context.store.install(self.volume, &chunk) {
            Ok(_) => {
                it.wanted.remove(&number);
                it.taken += 1;
            }
            // Asked for again.
            Err(InstallRefused::Differs { .. }) => {}
            Err(InstallRefused::Refused(Refused::Invalid { .. })) => {}
            Err(InstallRefused::Refused(
                Refused::Busy { .. }
                | Refused::NotYet { .. }
                | Refused::NoSpace { .. }
                | Refused::MapFull,
            )) => it.held.push(chunk),
            Err(error) => self.failed = Some(error.to_string()),
        }
    }

    /// Something is durable: the log may go on.
    pub(crate) fn perhaps_rebased(&mut self, context: &mut Context<'_>, ticket: Ticket) {
        let rebased = self.catch_up.as_ref().and_then(|it| it.rebased);
        if rebased.is_some_and(|rebased| rebased <= ticket) {
            self.catch_up = None;
            context.out.catching.remove(&self.volume);
            self.reopen(context);
        }
    }

    /// A follower asks which chunks changed.
    pub(crate) fn tell_changes(
        &self,
        context: &mut Context<'_>,
        to: ReplicaId,
        since: u64,
        from: u64,
    ) {
        let Some(base) = context.store.base(self.volume) else {
            return;
        };
        let Some(changes) = context.store.chunks_changed_since(self.volume, since, from) else {
            return;
        };
        let mut chunks: Vec<(u64, u64)> = changes.take(MOST_NAMED + 1).collect();
        let more = chunks.len() > MOST_NAMED;
        chunks.truncate(MOST_NAMED);
        let changed = Care::Changed {
            since,
            from,
            base,
            chunks,
            more,
        };
        self.care(context, to, changed);
    }

    /// A follower wants a chunk.
    pub(crate) fn read_chunk(&self, context: &mut Context<'_>, to: ReplicaId, number: u64) {
        let whole = context.store.base(self.volume).is_some();
        if !whole || context.out.chunks.len() >= MOST_READ {
            return;
        }
        if let Ok(ticket) = context.store.read_chunk(self.volume, number) {
            let volume = self.volume;
            context.out.chunks.insert(ticket, ChunkFor { volume, to });
        }
    }

    /// A chunk was read for a peer.
    pub(crate) fn chunk_read(
        &mut self,
        context: &mut Context<'_>,
        to: ReplicaId,
        result: Result<Chunk, blocks::ReadError>,
    ) {
        match result {
            Ok(chunk) => self.care(context, to, Care::Chunk(chunk)),
            // It asks again, and then it may be whole.
            Err(blocks::ReadError::Damaged { lbas }) => self.mend(context, &lbas, None),
        }
    }
}
