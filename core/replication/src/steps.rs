//! How a leader takes a volume from one set of replicas to another, one entry after the other. Where it is on
//! the way is in the members themselves, so any leader goes on from there.

use crate::consensus::changes;
use crate::group::{Asked, Group};
use crate::members::Seat;
use crate::message::{Answered, Care, Failure};
use crate::outbox::Context;
use crate::{Members, Message, ReplicaId};
use blocks::{Body, Digest, VolumeInfo};
use std::collections::BTreeMap;

/// Digests of chunks in one comparison.
pub(crate) const MOST_COMPARED: u64 = 64;

/// What is to be compared when a follower is exactly there.
#[derive(Debug)]
pub(crate) struct Comparison {
    pub(crate) with: ReplicaId,
    pub(crate) index: u64,
    pub(crate) digest: Digest,
    pub(crate) from: u64,
    pub(crate) chunks: Vec<Digest>,
}

/// What comparisons with a follower showed in this term.
#[derive(Debug, Default)]
pub(crate) struct Compared {
    /// It held the same at this entry.
    pub(crate) same: BTreeMap<ReplicaId, u64>,
    /// It did not.
    pub(crate) differ: BTreeMap<ReplicaId, Vec<u64>>,
}

impl Group {
    /// Takes the next step to other members, if there is one and it can be taken.
    pub(crate) fn see_to_members(&mut self, context: &mut Context<'_>) {
        if self.lead.is_none()
            || self.failed.is_some()
            || !self.is_complete()
            || self.is_configuring()
        {
            return;
        }
        let disk = |host| context.links.disk_to_note(host);
        if let Some(members) = self.members.with_disks(disk) {
            self.configure(context, &members);
            return;
        }
        let Some(members) = self.members.next(|replica| self.has_all(replica)) else {
            return;
        };
        if !members.votes(self.me) {
            // Who goes does not lead: another one takes the last step.
            let stays = members.seats().iter().filter(|seat| seat.votes);
            let there = stays.filter(|seat| context.links.is_there(seat));
            let hosts: Vec<_> = there.map(|seat| seat.member.host).collect();
            hosts
                .into_iter()
                .for_each(|host| self.hand_over(context, host));
            return;
        }
        self.configure(context, &members);
    }

    /// Whether a change of members is in the log and not in effect.
    pub(crate) fn is_configuring(&self) -> bool {
        let log = self.node.store();
        let there = log.after(self.applied).any(|(_, header)| header.configures);
        let mut later = self.bodies.range(self.applied + 1..);
        there || later.any(|(_, entry)| matches!(entry.body, Body::Config(_)))
    }

    fn configure(&mut self, context: &mut Context<'_>, members: &Members) {
        // What the store refuses now is tried again.
        drop(self.put(context, 0, Body::Config(members.encode().into())));
    }

    /// A learner that may vote: it has what is committed, and holds the same.
    fn has_all(&self, replica: ReplicaId) -> bool {
        let raft = &self.node.raft;
        let progress = raft.prs().get(replica.0);
        let level = progress.is_some_and(|it| it.matched + 64 > raft.raft_log.last_index());
        let lead = self.lead.as_ref();
        level && lead.is_some_and(|lead| lead.compared.same.contains_key(&replica))
    }

    /// An endpoint wants other members.
    pub(crate) fn change(
        &mut self,
        context: &mut Context<'_>,
        asked: Asked,
        number: u64,
        target: &Members,
    ) {
        if self.is_configuring() || !self.is_complete() {
            return self.tell(context, asked, Err(Failure::Busy));
        }
        let on = |seat: &Seat| context.links.is_on(seat);
        match self.members.towards(target, number, on) {
            Ok(None) => self.tell(context, asked, Ok(Answered::Done)),
            Ok(Some(_)) if self.members.is_joint() => {
                self.tell(context, asked, Err(Failure::Busy));
            }
            Ok(Some(members)) => {
                self.append_for(context, asked, Body::Config(members.encode().into()));
            }
            Err(error) => {
                let why = error.to_string();
                self.tell(context, asked, Err(Failure::Invalid { why }));
            }
        }
    }

    /// Members are in effect.
    pub(crate) fn reconfigure(&mut self, context: &mut Context<'_>, index: u64, bytes: &[u8]) {
        if index <= self.configured {
            return;
        }
        let members = match Members::decode(bytes) {
            Ok(members) => members,
            Err(error) => return self.failed = Some(error.to_string()),
        };
        for change in changes(&self.members, &members) {
            if let Err(error) = self.node.apply_conf_change(&change) {
                return self.failed = Some(format!(
                    "entry {index} has members that cannot follow: {error}"
                ));
            }
        }
        let old = std::mem::replace(&mut self.members, members);
        self.configured = index;
        self.later.take_if(|(later, _)| *later <= index);
        let stays = |seat: &&Seat| self.members.seat(seat.member.replica).is_some();
        let gone = old.seats().iter().filter(|seat| !stays(seat));
        let elsewhere = gone.filter(|seat| seat.member.host != context.me);
        let elsewhere: Vec<Seat> = elsewhere.copied().collect();
        if !elsewhere.is_empty() {
            context.out.dismissed.push((self.volume, index, elsewhere));
        }
        let hosts = self.members.iter().map(|member| member.host);
        context.out.met.extend(hosts);
        let came = self.members.iter().map(|member| member.replica);
        let came = came.filter(|replica| old.seat(*replica).is_none());
        if let Some(lead) = &mut self.lead {
            came.for_each(|replica| lead.comes(replica, context.now));
        }
        if self.members.seat(self.me).is_none() {
            context.out.gone.push(self.volume);
        }
    }

    /// Tells followers that lack what the log has no more, and hosts that are to have a replica; compares
    /// with those that are to vote.
    pub(crate) fn see_to_followers(&mut self, context: &mut Context<'_>) {
        let first = self.node.store().before() + 1;
        let raft = &self.node.raft;
        let last = raft.raft_log.last_index();
        let mut words: Vec<(ReplicaId, Option<Care>)> = Vec::new();
        for seat in self.members.seats() {
            let replica = seat.member.replica;
            let there = replica != self.me && context.links.is_there(seat);
            let Some(progress) = raft.prs().get(replica.0).filter(|_| there) else {
                continue;
            };
            if progress.matched == 0 && seat.comes() {
                words.push((replica, None));
            }
            if progress.next_idx < first {
                words.push((replica, Some(Care::Behind { first })));
            }
            let unproven = self
                .lead
                .as_ref()
                .is_some_and(|lead| !lead.compared.same.contains_key(&replica));
            if seat.comes() && unproven && progress.matched + 64 > last {
                let compare = self.comparison(context, 0);
                words.extend(compare.map(|compare| (replica, Some(compare))));
            }
        }
        for (replica, word) in words {
            match word {
                Some(care) => self.care(context, replica, care),
                None => self.invite(context, replica),
            }
        }
    }

    /// What the volume holds now, to be compared elsewhere.
    pub(crate) fn comparison(&self, context: &Context<'_>, from: u64) -> Option<Care> {
        let info: VolumeInfo = context
            .store
            .volume(self.volume)
            .filter(|info| !info.mixed)?;
        let last = info.blocks.div_ceil(u64::from(blocks::CHUNK_BLOCKS));
        let chunks = (from..last.min(from + MOST_COMPARED))
            .filter_map(|chunk| context.store.chunk_digest(self.volume, chunk));
        Some(Care::Compare {
            index: info.applied,
            digest: info.digest,
            from,
            chunks: chunks.collect(),
        })
    }

    /// Asks all others to compare.
    pub(crate) fn compare_with_all(&self, context: &mut Context<'_>, from: u64) {
        let Some(compare) = self
            .comparison(context, from)
            .filter(|_| self.lead.is_some())
        else {
            return;
        };
        for member in self.members.iter().filter(|it| it.replica != self.me) {
            self.care(context, member.replica, compare.clone());
        }
    }

    /// Says who the members are.
    pub(crate) fn tell_members(&self, context: &mut Context<'_>, to: ReplicaId) {
        let config = self.configured;
        let members = self.members.encode().into();
        self.care(context, to, Care::These { config, members });
    }

    /// A member says who the members are, and this is one of them.
    fn members_are(&mut self, context: &mut Context<'_>, config: u64, members: &[u8]) {
        self.unsure = false;
        let known = self.later.as_ref().map_or(0, |(config, _)| *config);
        let newer = config > known.max(self.configured);
        let Some(members) = Members::decode(members).ok().filter(|_| newer) else {
            return;
        };
        context.out.met.extend(members.iter().map(|it| it.host));
        self.later = Some((config, members));
    }

    /// Somebody speaks who is no member as far as is known here: others may know more.
    pub(crate) fn wonder(&mut self) {
        self.unsure = true;
    }

    /// Asks the others whether this is still a replica, and who the members are.
    pub(crate) fn ask_all(&self, context: &mut Context<'_>) {
        let seats = self.members.seats().iter();
        let there = seats.filter(|seat| context.links.is_there(seat));
        let there: Vec<ReplicaId> = there.map(|seat| seat.member.replica).collect();
        for replica in there.into_iter().filter(|it| *it != self.me) {
            self.care(context, replica, Care::Who);
        }
    }

    fn invite(&self, context: &mut Context<'_>, replica: ReplicaId) {
        let Some(info) = context.store.volume(self.volume) else {
            return;
        };
        let Some(host) = self.members.host(replica) else {
            return;
        };
        let join = Message::Join {
            from: self.me,
            to: replica,
            blocks: info.blocks,
            config: info.config.0,
            members: info.config.1,
        };
        context.send(self.volume, host, join);
    }

    /// Compares what is here with what a peer has, if exactly that is in effect.
    pub(crate) fn perhaps_compare(&mut self, context: &mut Context<'_>) {
        let Some(it) = self.comparing.take() else {
            return;
        };
        if it.index > self.applied {
            self.comparing = Some(it);
            return;
        }
        let info = context.store.volume(self.volume);
        let here = info.filter(|info| info.applied == it.index && !info.mixed);
        let mut differ = Vec::new();
        let same = here.map(|info| info.digest == it.digest);
        if same == Some(false) {
            let chunks = (it.from..).zip(&it.chunks);
            let other = |(number, digest): &(u64, &Digest)| {
                context.store.chunk_digest(self.volume, *number) != Some(**digest)
            };
            differ.extend(chunks.filter(other).map(|(number, _)| number));
        }
        let index = it.index;
        let compared = Care::Compared {
            index,
            same,
            differ,
        };
        self.care(context, it.with, compared);
    }

    /// A follower compared.
    pub(crate) fn was_compared(
        &mut self,
        from: ReplicaId,
        index: u64,
        same: Option<bool>,
        differ: Vec<u64>,
    ) {
        // As of the members that there are: one of the same number may have been a replica before.
        let Some(lead) = self.lead.as_mut().filter(|_| index >= self.configured) else {
            return;
        };
        match same {
            Some(true) => {
                lead.compared.differ.remove(&from);
                lead.compared.same.insert(from, index);
            }
            Some(false) => {
                lead.compared.same.remove(&from);
                lead.compared.differ.insert(from, differ);
            }
            None => {}
        }
    }

    /// A peer's word that is none of the consensus's.
    pub(crate) fn hear_care(&mut self, context: &mut Context<'_>, from: ReplicaId, care: Care) {
        if self.failed.is_some() {
            return;
        }
        match care {
            Care::Behind { first } => self.fell_behind(context, from, first),
            Care::Changes { since, from: first } => self.tell_changes(context, from, since, first),
            Care::Changed {
                since,
                from: first,
                base,
                chunks,
                more,
            } => self.chunks_changed(context, from, (since, first, more), base, &chunks),
            Care::WantChunk { number } => self.read_chunk(context, from, number),
            Care::Chunk(chunk) => self.chunk_came(context, from, chunk),
            Care::WantEntry { place, question } => self.read_for(context, from, place, question),
            Care::NoEntry { place, question } => {
                self.entry_is_not_there(context, from, place, question);
            }
            Care::Entry(entry) => self.entry_came(context, entry),
            Care::WantBlock { lba } => self.read_block(context, from, lba),
            Care::Block { lba, data } => self.block_came(context, lba, data.as_ref()),
            Care::Compare {
                index,
                digest,
                from: first,
                chunks,
            } => {
                self.comparing = Some(Comparison {
                    with: from,
                    index,
                    digest,
                    from: first,
                    chunks,
                });
                self.perhaps_compare(context);
            }
            Care::Who => self.tell_members(context, from),
            Care::These { config, members } => self.members_are(context, config, &members),
            Care::Compared {
                index,
                same,
                differ,
            } => {
                self.was_compared(from, index, same, differ);
                self.process(context);
            }
        }
    }

    pub(crate) fn care(&self, context: &mut Context<'_>, to: ReplicaId, care: Care) {
        if let Some(host) = self.host_of(to) {
            let from = self.me;
            context.send(self.volume, host, Message::Care { from, to, care });
        }
    }
}
