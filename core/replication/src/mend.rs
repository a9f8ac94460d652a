//! Blocks that are damaged on this disk come from the others. What a peer brings is proved by its CRC, whatever
//! either of them did since.

use crate::group::Group;
use crate::lead::Reading;
use crate::message::{Answered, Care, Failure};
use crate::outbox::{Context, ReadFor};
use crate::{ReplicaId, Time};
use blocks::{Buffer, RepairRefused};
use std::collections::{BTreeMap, BTreeSet};

/// Who does not answer for so long is not waited for.
const AGAIN_MICROS: u64 = 100_000;
/// Peers are asked so many times each, before a block is given up.
const ROUNDS: usize = 5;
/// How often blocks that nobody had are looked at again: a peer may be back, or something else was written there.
const LOST_MICROS: u64 = 10_000_000;
/// Of these, so many at once.
const LOST_AT_ONCE: usize = 16;
/// So many are remembered.
const MOST_LOST: usize = 4096;

/// A block that is damaged.
#[derive(Debug)]
struct Block {
    /// How many were asked.
    asked: usize,
    again_at: Time,
}

/// What is being mended.
#[derive(Debug, Default)]
pub(crate) struct Mending {
    blocks: BTreeMap<u64, Block>,
    /// Reads that wait for blocks.
    waiting: Vec<Reading>,
    /// Blocks that came from a peer.
    pub(crate) mended: u64,
    /// Blocks that no peer had when it was asked last.
    pub(crate) lost: BTreeSet<u64>,
    lost_at: Option<Time>,
    /// Those up to here were looked at again.
    lost_until: u64,
}

impl Mending {
    pub(crate) fn deadline(&self) -> Option<Time> {
        let blocks = self.blocks.values().map(|block| block.again_at);
        let lost = self.lost_at.filter(|_| !self.lost.is_empty());
        blocks.chain(lost).min()
    }
}

impl Group {
    /// Blocks are damaged. A read waits for them, or nobody does.
    pub(crate) fn mend(
        &mut self,
        context: &mut Context<'_>,
        lbas: &[u64],
        reading: Option<Reading>,
    ) {
        self.mending.waiting.extend(reading);
        for lba in lbas {
            self.mending.blocks.entry(*lba).or_insert(Block {
                asked: 0,
                again_at: Time(0),
            });
        }
        self.see_to_blocks(context);
    }

    /// Reads blocks again that nobody had, some at a time.
    pub(crate) fn see_to_lost(&mut self, context: &mut Context<'_>) {
        let mending = &mut self.mending;
        if mending.lost.is_empty() || mending.lost_at.is_some_and(|at| at > context.now) {
            return;
        }
        mending.lost_at = Some(context.now + LOST_MICROS);
        let (later, until) = (
            mending.lost.range(mending.lost_until..),
            ..mending.lost_until,
        );
        let later = later.chain(mending.lost.range(until));
        let some: Vec<u64> = later.take(LOST_AT_ONCE).copied().collect();
        mending.lost_until = some.last().map_or(0, |last| last + 1);
        for lba in some {
            if let Ok(ticket) = context.store.read(self.volume, lba, 1) {
                let read = ReadFor::Again { lba };
                context.out.reads.insert(ticket, (self.volume, read));
            }
        }
    }

    /// Asks for blocks that are damaged.
    pub(crate) fn see_to_blocks(&mut self, context: &mut Context<'_>) {
        let now = context.now;
        let due = self
            .mending
            .blocks
            .iter()
            .filter(|(_, it)| it.again_at <= now);
        let due: Vec<(u64, usize)> = due.map(|(lba, block)| (*lba, block.asked)).collect();
        let peers = self.members.count() - 1;
        for (lba, asked) in due {
            let peer = self.peer(context, asked).filter(|_| asked < peers * ROUNDS);
            let Some(peer) = peer else {
                self.give_up(context, lba);
                continue;
            };
            let block = self.mending.blocks.get_mut(&lba).expect("it was listed");
            block.asked += 1;
            block.again_at = now + AGAIN_MICROS;
            self.care(context, peer, Care::WantBlock { lba });
        }
    }

    /// One of the others that are there, by turns.
    pub(crate) fn peer(&self, context: &Context<'_>, turn: usize) -> Option<ReplicaId> {
        let seats = self.members.seats().iter();
        let there =
            seats.filter(|seat| seat.member.replica != self.me && context.links.is_there(seat));
        let there: Vec<ReplicaId> = there.map(|seat| seat.member.replica).collect();
        there.get(turn % there.len().max(1)).copied()
    }

    /// A peer wants a block.
    pub(crate) fn read_block(&self, context: &mut Context<'_>, to: ReplicaId, lba: u64) {
        if let Ok(ticket) = context.store.read(self.volume, lba, 1) {
            let read = ReadFor::Peer { to, lba };
            context.out.reads.insert(ticket, (self.volume, read));
        }
    }

    /// A block came, or a peer has it not either.
    pub(crate) fn block_came(
        &mut self,
        context: &mut Context<'_>,
        lba: u64,
        data: Option<&Buffer>,
    ) {
        let Some(block) = self.mending.blocks.get_mut(&lba) else {
            return;
        };
        let repaired = data.map(|data| context.store.repair(self.volume, lba, data));
        match repaired {
            // It was written anew meanwhile, or another peer's copy was first.
            Some(Ok(()) | Err(RepairRefused::NotStored { .. })) => {
                self.mending.blocks.remove(&lba);
                self.mending.lost.remove(&lba);
                self.mending.mended += 1;
                self.read_again(context);
            }
            // It may not have heard yet that what wrote the block is committed.
            None | Some(Err(RepairRefused::Differs { .. } | RepairRefused::Refused(_))) => {
                let round = (self.members.count() - 1).max(1);
                if !block.asked.is_multiple_of(round) {
                    block.again_at = context.now;
                }
                self.see_to_blocks(context);
            }
        }
    }

    /// Serves what waits for nothing any more.
    fn read_again(&mut self, context: &mut Context<'_>) {
        let damaged: BTreeSet<u64> = self.mending.blocks.keys().copied().collect();
        let waits = |reading: &Reading| {
            let end = reading.lba + reading.blocks;
            damaged.range(reading.lba..end).next().is_some()
        };
        let all = std::mem::take(&mut self.mending.waiting);
        let (rest, ready): (Vec<_>, Vec<_>) = all.into_iter().partition(waits);
        self.mending.waiting = rest;
        // Who leads may be another one by now: they are asked anew.
        for reading in ready {
            match self.lead.as_mut() {
                Some(lead) => lead.reads.push(reading.again()),
                None => self.not_leading(context, reading.asked),
            }
        }
        self.process(context);
    }

    /// No peer has it: who wants it is told so, for this range only.
    fn give_up(&mut self, context: &mut Context<'_>, lba: u64) {
        self.mending.blocks.remove(&lba);
        if self.mending.lost.len() < MOST_LOST {
            self.mending.lost.insert(lba);
        }
        let again = context.now + LOST_MICROS;
        self.mending.lost_at.get_or_insert(again);
        let wants = |it: &Reading| (it.lba..it.lba + it.blocks).contains(&lba);
        let all = std::mem::take(&mut self.mending.waiting);
        let (failed, rest): (Vec<_>, Vec<_>) = all.into_iter().partition(wants);
        self.mending.waiting = rest;
        for Reading { asked, .. } in failed {
            self.tell(context, asked, Err(Failure::Damaged { lbas: vec![lba] }));
        }
    }

    /// Blocks were read.
    pub(crate) fn outcome_of_read(
        &mut self,
        context: &mut Context<'_>,
        read: ReadFor,
        result: Result<Vec<Buffer>, blocks::ReadError>,
    ) {
        let damaged = match &result {
            Ok(_) => Vec::new(),
            Err(blocks::ReadError::Damaged { lbas }) => lbas.clone(),
        };
        let mut reading = None;
        match read {
            ReadFor::Endpoint {
                asked,
                stamp,
                lba,
                blocks,
            } => match result {
                Ok(buffers) => self.tell(context, asked, Ok(Answered::Data(buffers))),
                Err(_) => reading = Some(Reading::new(asked, stamp, lba, blocks)),
            },
            ReadFor::Peer { to, lba } => {
                let data = result.ok().and_then(|buffers| buffers.into_iter().next());
                self.care(context, to, Care::Block { lba, data });
            }
            ReadFor::Again { lba } if damaged.is_empty() => {
                self.mending.lost.remove(&lba);
            }
            ReadFor::Again { .. } | ReadFor::Scrub => {}
        }
        if !damaged.is_empty() {
            self.mend(context, &damaged, reading);
        }
    }
}
