//! Replicas come, start and go.

use super::Host;
use crate::group::{Group, Kept};
use crate::outbox::Context;
use crate::recover::{NotRecovered, Recovery};
use crate::{HostId, Members, ReplicaId, Time};
use blocks::{Base, Body, Entry, EntryHead, Refused, Submission, Ticket, VolumeId};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Why a replica does not start.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotReady {
    /// The store says no.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// This host has no part in it.
    #[error("volume {volume} has no replica on this host; make it on a host that is a member")]
    NoMember {
        /// Which.
        volume: VolumeId,
    },
    /// What the disk has of it cannot be used.
    #[error(
        "the replica of volume {volume} cannot start: {why}; delete it and make a new one from its peers"
    )]
    Unusable {
        /// Which.
        volume: VolumeId,
        /// Why.
        why: String,
    },
}

impl NotReady {
    const fn volume(&self) -> Option<VolumeId> {
        match self {
            Self::NoMember { volume } | Self::Unusable { volume, .. } => Some(*volume),
            Self::Refused(_) => None,
        }
    }
}

/// A replica whose last entries are being read.
#[derive(Debug)]
pub(super) struct Opening {
    members: Members,
    missing: usize,
    entries: BTreeMap<u64, Entry>,
    /// What it was, when its log goes on elsewhere.
    pub(super) kept: Option<Kept>,
}

impl Host {
    /// Makes this host's replica of a new volume. To be called with the same members on all of them.
    pub fn create(
        &mut self,
        volume: VolumeId,
        blocks: u64,
        members: &Members,
        now: Time,
    ) -> Result<(), NotReady> {
        self.now = now;
        members
            .replica(self.id)
            .ok_or(NotReady::NoMember { volume })?;
        self.store.create(volume, blocks)?;
        // The first entry is the same everywhere, so that it is committed from the beginning.
        let first = Entry {
            index: 1,
            term: 1,
            epoch: 0,
            body: Body::Config(members.encode().into()),
        };
        let submission = Submission {
            hard: Some((1, 0)),
            entries: vec![first],
        };
        let ticket = self.store.submit(volume, submission)?;
        self.store.committed(volume, 1)?;
        self.start(volume, members.clone(), Vec::new())?;
        if let Some(group) = self.groups.get_mut(&volume) {
            group.last_ticket = Some(ticket);
        }
        self.with(volume, |_, _| {});
        self.pump();
        Ok(())
    }

    /// A volume goes on from its replica here, and from nothing else: those that could outvote it are lost for good,
    /// with all that only they had. A second time it does nothing.
    pub fn recover(
        &mut self,
        volume: VolumeId,
        recovery: Recovery,
        now: Time,
    ) -> Result<(), NotRecovered> {
        self.now = now;
        let none = NotRecovered::NoReplica { volume };
        let group = self.groups.get(&volume).ok_or(none.clone())?;
        let context = Context {
            now,
            me: self.id,
            store: &mut self.store,
            links: &self.links,
            out: &mut self.out,
        };
        let Some(submission) = group.recovery(&context, recovery)? else {
            return Ok(());
        };
        let last = submission.entries.last().map_or(0, |entry| entry.index);
        self.store.submit(volume, submission)?;
        // Nobody is to be asked, and what follows comes after it in the disk's log.
        self.store.committed(volume, last)?;
        self.forget(volume);
        let opened = self.open(volume, None);
        self.pump();
        opened.map_err(|error| {
            self.unusable.push(error);
            none
        })
    }

    /// Begins to read what did not take effect yet.
    pub(super) fn open(&mut self, volume: VolumeId, kept: Option<Kept>) -> Result<(), NotReady> {
        let unusable = |why: String| NotReady::Unusable { volume, why };
        let info = self.store.volume(volume).expect("the store has it");
        if let Some(why) = info.broken {
            return Err(unusable(why));
        }
        let members =
            Members::decode(&info.config.1).map_err(|error| unusable(error.to_string()))?;
        // What is damaged comes from the others.
        let whole = |index: &u64| {
            let head = self.store.entry_head(volume, *index);
            head.is_some_and(|head| !head.lost)
        };
        let wanted: Vec<u64> = (info.applied + 1..=info.last).filter(whole).collect();
        let opening = Opening {
            members,
            missing: wanted.len(),
            entries: BTreeMap::new(),
            kept,
        };
        let ready = opening.missing == 0;
        self.opening.insert(volume, opening);
        for index in wanted {
            let ticket = self.store.read_entry(volume, index)?;
            self.out.entries.insert(ticket, (volume, index));
        }
        if ready {
            self.finish_opening(volume)?;
        }
        Ok(())
    }

    fn finish_opening(&mut self, volume: VolumeId) -> Result<(), NotReady> {
        let opening = self.opening.remove(&volume).expect("it is being opened");
        let entries = opening.entries.into_values().collect();
        self.start(volume, opening.members, entries)?;
        if let Some(kept) = opening.kept {
            self.with(volume, |group, context| group.resume(context, kept));
        }
        Ok(())
    }

    fn start(
        &mut self,
        volume: VolumeId,
        members: Members,
        entries: Vec<Entry>,
    ) -> Result<(), NotReady> {
        let unusable = |why: String| NotReady::Unusable { volume, why };
        let me = members
            .replica(self.id)
            .ok_or(NotReady::NoMember { volume })?;
        let seat = members.seat(me).expect("it was just found");
        if !self.links.is_on(seat) {
            return Err(unusable("it was on another disk".to_owned()));
        }
        let info = self.store.volume(volume).expect("the store has it");
        let before = self.store.term(volume, info.first - 1);
        let heads = (info.first..=info.last).map(|index| self.store.entry_head(volume, index));
        let heads: Option<Vec<EntryHead>> = heads.collect();
        let (Some(before), Some(heads)) = (before, heads) else {
            return Err(unusable("its log has gaps".to_owned()));
        };
        members
            .iter()
            .for_each(|member| self.links.meet(member.host));
        let group =
            Group::new(volume, me, members, &info, before, &heads, entries).map_err(unusable)?;
        self.groups.insert(volume, group);
        self.with(volume, |_, _| {});
        Ok(())
    }

    /// Deletes this host's replica with all it has, also one that did not start. There is no way back. The
    /// others do not hear of it: they are told by [`Op::Change`].
    pub fn delete(&mut self, volume: VolumeId, now: Time) -> Result<(), Refused> {
        self.now = now;
        self.store.delete(volume)?;
        self.forget(volume);
        self.pump();
        Ok(())
    }

    pub(super) fn forget(&mut self, volume: VolumeId) {
        self.groups.remove(&volume);
        self.opening.remove(&volume);
        self.dismissed.forget(volume);
        self.stuck.remove(&volume);
        self.out.catching.remove(&volume);
        self.out.entries.retain(|_, (whose, _)| *whose != volume);
        if let Some(at) = self.wakes.remove(&volume) {
            self.wheel.remove(&(at, volume));
        }
        let other = |error: &NotReady| error.volume() != Some(volume);
        self.unusable.retain(other);
    }

    /// Makes a replica that is to learn all from the others. One that voted before is none of these: it is
    /// known by the disk that it was on.
    pub(super) fn join(
        &mut self,
        volume: VolumeId,
        from: HostId,
        me: ReplicaId,
        blocks: u64,
        config: (u64, Arc<[u8]>),
    ) -> Result<(), NotReady> {
        let no_member = NotReady::NoMember { volume };
        if self.dead.is_some() {
            return Err(no_member);
        }
        let members = Members::decode(&config.1).map_err(|_| no_member.clone())?;
        let seat = members.seat(me).filter(|seat| seat.member.host == self.id);
        let learns = seat.is_some_and(|seat| {
            !seat.votes && !seat.voted && seat.wanted && self.links.is_on(seat)
        });
        let told = members.iter().any(|member| member.host == from);
        let there = self.store.volume(volume).is_some() || self.opening.contains_key(&volume);
        if !learns || !told || there || members.replica(self.id) != Some(me) {
            return Err(no_member);
        }
        self.store.create(volume, blocks)?;
        let base = Base {
            index: 0,
            term: 0,
            epoch: 0,
            blocks,
            config,
        };
        self.store.rebase(volume, &base)?;
        self.start(volume, members, Vec::new())
    }

    pub(super) fn entry_read(&mut self, ticket: Ticket, result: Result<Entry, blocks::EntryError>) {
        if let Some(wanted) = self.out.wanted.remove(&ticket) {
            return self.with(wanted.volume, |group, context| {
                group.read_for_peer(context, wanted, result);
            });
        }
        let Some((volume, index)) = self.out.entries.remove(&ticket) else {
            return;
        };
        let Some(opening) = self.opening.get_mut(&volume) else {
            return self.with(volume, |group, context| {
                group.entry_read(context, index, result)
            });
        };
        match result {
            Ok(entry) => _ = opening.entries.insert(index, entry),
            Err(error) => {
                if self.store.lose(volume, index).is_err() {
                    self.opening.remove(&volume);
                    let why = error.to_string();
                    self.unusable.push(NotReady::Unusable { volume, why });
                    return;
                }
            }
        }
        opening.missing -= 1;
        if opening.missing == 0
            && let Err(error) = self.finish_opening(volume)
        {
            self.unusable.push(error);
        }
    }

    /// A replica's log is another one: it is as after a start, but for what it promised.
    pub(super) fn reopen(&mut self, volume: VolumeId) {
        let Some(group) = self.groups.remove(&volume) else {
            return;
        };
        // What was being read for others is none of what it reads to start.
        self.out.entries.retain(|_, (whose, _)| *whose != volume);
        let kept = group.into_kept();
        if let Err(error) = self.open(volume, Some(kept)) {
            self.unusable.push(error);
        }
    }
}
