//! All groups of a host, and the endpoints on it.

mod dismissed;
mod hear;
mod replicas;
mod sessions;

pub use replicas::NotReady;

use crate::endpoint::{Endpoint, Reply};
use crate::group::Group;
use crate::info::GroupInfo;
use crate::liveness::Links;
use crate::message::{Envelope, Frame, Message};
use crate::outbox::{ChunkFor, Context, Outbox, ReadFor};
use crate::scrub::{Scrub, ScrubInfo};
use crate::{HostId, SessionId, Time};
use blocks::{CHUNK_BLOCKS, Done, Event, Io, Store, Token, VolumeId};
use dismissed::Dismissed;
use replicas::Opening;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Messages in a frame at most.
const MOST_MESSAGES: usize = 4096;
/// Blocks of payload in a frame, after which the next one begins: 16 MiB.
const FULL_FRAME_BLOCKS: usize = 4096;

/// What was done since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Frames handed out.
    pub frames: u64,
    /// Messages in them.
    pub messages: u64,
    /// Times that a group had something to do.
    pub steps: u64,
    /// Messages that were not heard: promises, or what cannot be.
    pub refused: u64,
}

/// A host: one disk, the replicas on it, and endpoints.
#[derive(Debug)]
pub struct Host {
    id: HostId,
    now: Time,
    store: Store,
    links: Links,
    groups: BTreeMap<VolumeId, Group>,
    opening: BTreeMap<VolumeId, Opening>,
    dismissed: Dismissed,
    endpoints: BTreeMap<SessionId, Endpoint>,
    out: Outbox,
    outgoing: BTreeMap<HostId, VecDeque<Envelope>>,
    beats: BTreeSet<HostId>,
    wheel: BTreeSet<(Time, VolumeId)>,
    wakes: BTreeMap<VolumeId, Time>,
    /// Groups of which the store did not take all in.
    stuck: BTreeSet<VolumeId>,
    replies: VecDeque<Reply>,
    unusable: Vec<NotReady>,
    scrub: Scrub,
    dead: Option<String>,
    counters: Counters,
}

impl Host {
    /// A host that starts. `incarnation` is larger at each start; `now` is its monotonic clock, read
    /// after the call, completion or frame that is handed over with it.
    pub fn new(id: HostId, incarnation: u64, store: Store, now: Time) -> Self {
        let mut host = Self {
            id,
            now,
            links: Links::new(id, incarnation, store.format(), now),
            store,
            groups: BTreeMap::new(),
            opening: BTreeMap::new(),
            dismissed: Dismissed::default(),
            endpoints: BTreeMap::new(),
            out: Outbox::default(),
            outgoing: BTreeMap::new(),
            beats: BTreeSet::new(),
            wheel: BTreeSet::new(),
            wakes: BTreeMap::new(),
            stuck: BTreeSet::new(),
            replies: VecDeque::new(),
            unusable: Vec::new(),
            scrub: Scrub::default(),
            dead: None,
            counters: Counters::default(),
        };
        let volumes: Vec<VolumeId> = host.store.volumes().collect();
        for volume in volumes {
            if let Err(error) = host.open(volume, None) {
                host.unusable.push(error);
            }
        }
        host.pump();
        host
    }

    /// At most so many MiB a second are taken in by replicas that lack what no log has; 0 for as many as
    /// come.
    pub const fn limit_catch_up(&mut self, mib_per_second: u64) {
        self.out.budget.rate = mib_per_second;
    }

    /// So many MiB a second of what is on this disk are read, over and over, to see whether they are
    /// whole; and compared with the others where this host leads. 0 for none.
    pub fn scrub(&mut self, mib_per_second: u64, now: Time) {
        self.scrub.set(mib_per_second, now);
    }

    /// What scrubbing did so far.
    pub const fn scrubbed(&self) -> ScrubInfo {
        self.scrub.info
    }

    /// Time has passed, at least to [`Self::poll_timeout`].
    pub fn handle_time(&mut self, now: Time) {
        self.now = self.now.max(now);
        for host in self.links.expire(now) {
            self.host_changed(host, false);
        }
        self.beats.extend(self.links.due(now));
        while let Some((at, volume)) = self.wheel.first().copied().filter(|(at, _)| *at <= now) {
            self.wheel.remove(&(at, volume));
            self.wakes.remove(&volume);
            self.with(volume, Group::tick);
        }
        self.tell_dismissed();
        self.go_on_scrubbing();
        self.pump();
    }

    /// Reads the next chunk to see whether it is whole, if it is time.
    fn go_on_scrubbing(&mut self) {
        if !self.scrub.is_due(self.now) {
            return;
        }
        let Some((volume, chunk)) = self.scrub.next(&self.store, self.groups.keys().copied())
        else {
            return;
        };
        let blocks = self.store.volume(volume).map_or(0, |info| info.blocks);
        let first = chunk * u64::from(CHUNK_BLOCKS);
        let count = u64::from(CHUNK_BLOCKS).min(blocks.saturating_sub(first));
        if let Ok(ticket) = self.store.read(volume, first, count) {
            self.out.reads.insert(ticket, (volume, ReadFor::Scrub));
        }
        if self.scrub.compares(chunk) {
            self.with(volume, |group, context| {
                group.compare_with_all(context, chunk)
            });
        }
    }

    /// When [`Self::handle_time`] has to be called, at the latest.
    pub fn poll_timeout(&self) -> Option<Time> {
        let wheel = self.wheel.first().map(|(at, _)| *at);
        let endpoints = self.endpoints.values().filter_map(Endpoint::deadline).min();
        let all = [
            wheel,
            endpoints,
            self.dismissed.deadline(&self.links),
            self.links.deadline(),
            self.scrub.deadline(),
        ];
        all.into_iter().flatten().min()
    }

    fn host_changed(&mut self, host: HostId, restarted: bool) {
        let volumes: Vec<VolumeId> = self.groups.keys().copied().collect();
        for volume in volumes {
            self.with(volume, |group, context| {
                group.host_changed(context, host, restarted)
            });
        }
    }

    /// IO to carry out. To be asked until there is none, after each call and each completion; frames are
    /// to be sent before any of it is waited for.
    pub fn poll_io(&mut self) -> Option<(Token, Io)> {
        self.store.poll_io()
    }

    /// Says what became of an IO.
    ///
    /// # Panics
    /// When no such IO was handed out.
    pub fn handle_done(&mut self, token: Token, done: Done, now: Time) {
        self.now = now;
        self.store.handle_done(token, done);
        self.pump();
    }

    /// The next frame to send, and to whom. A frame may be lost, come twice, or after later ones.
    pub fn poll_frame(&mut self) -> Option<(HostId, Frame)> {
        let waiting = self.outgoing.iter().find(|(_, queue)| !queue.is_empty());
        let to = waiting
            .map(|(host, _)| *host)
            .or_else(|| self.beats.first().copied())?;
        self.beats.remove(&to);
        let mut frame = self.links.frame(to, self.now);
        let queue = self.outgoing.entry(to).or_default();
        let mut blocks = 0;
        while blocks < FULL_FRAME_BLOCKS && frame.messages.len() < MOST_MESSAGES {
            let Some(envelope) = queue.pop_front() else {
                break;
            };
            // The frame's echo would have it said after what was heard since, when it holds no more.
            if is_over(&self.groups, &envelope) {
                continue;
            }
            blocks += envelope.message.payload_blocks();
            frame.messages.push(envelope);
        }
        self.counters.frames += 1;
        self.counters.messages += frame.messages.len() as u64;
        Some((to, frame))
    }

    /// The disk failed. Endpoints here go on with the replicas of other hosts.
    fn lose_disk(&mut self, cause: String) {
        self.dead = Some(cause);
        self.groups.clear();
        self.opening.clear();
        self.dismissed = Dismissed::default();
        self.wheel.clear();
        self.wakes.clear();
        self.stuck.clear();
        self.outgoing.clear();
        self.out = Outbox::default();
        self.scrub = Scrub::default();
        self.links.lose_disk(self.now);
    }

    /// Why the replicas here take part no more: the disk failed.
    pub fn dead(&self) -> Option<&str> {
        self.dead.as_deref()
    }

    /// Replicas that did not start, and why.
    pub fn unusable(&self) -> &[NotReady] {
        &self.unusable
    }

    /// What is known of a replica. `None`: it is not here, or being opened.
    pub fn group(&self, volume: VolumeId) -> Option<GroupInfo> {
        let group = self.groups.get(&volume)?;
        Some(GroupInfo {
            followers: group.followers(&self.links),
            ..group.info()
        })
    }

    /// What was done so far.
    pub fn counters(&self) -> Counters {
        let steps = self.groups.values().map(|group| group.steps).sum();
        let refused = self
            .groups
            .values()
            .map(|group| group.refused_messages)
            .sum();
        Counters {
            steps,
            refused,
            ..self.counters
        }
    }

    /// The disk's store, to be looked at.
    pub const fn store(&self) -> &Store {
        &self.store
    }

    /// Asks the store for a checkpoint.
    pub fn checkpoint(&mut self) {
        self.store.checkpoint();
    }

    fn with(&mut self, volume: VolumeId, act: impl FnOnce(&mut Group, &mut Context<'_>)) {
        let Some(group) = self.groups.get_mut(&volume) else {
            return;
        };
        let mut context = Context {
            now: self.now,
            me: self.id,
            store: &mut self.store,
            links: &self.links,
            out: &mut self.out,
        };
        act(group, &mut context);
        group.watch(&mut context);
        if group.is_refused() {
            self.stuck.insert(volume);
        }
        let wake = group.deadline();
        if wake != self.wakes.get(&volume).copied() {
            if let Some(old) = self.wakes.remove(&volume) {
                self.wheel.remove(&(old, volume));
            }
            if let Some(at) = wake {
                self.wakes.insert(volume, at);
                self.wheel.insert((at, volume));
            }
        }
    }

    /// Lets everything that came of something come to rest.
    fn pump(&mut self) {
        loop {
            let mut events = 0;
            while let Some(event) = self.store.poll_event() {
                events += 1;
                self.event(event);
            }
            if events > 0 {
                for volume in std::mem::take(&mut self.stuck) {
                    self.with(volume, Group::go_on);
                }
            }
            for (volume, answer) in std::mem::take(&mut self.out.local) {
                self.answered(volume, answer);
            }
            for host in std::mem::take(&mut self.out.met) {
                self.links.meet(host);
            }
            for volume in std::mem::take(&mut self.out.reopens) {
                self.reopen(volume);
            }
            for (volume, config, seats) in std::mem::take(&mut self.out.dismissed) {
                self.dismiss(volume, config, seats);
            }
            for volume in std::mem::take(&mut self.out.gone) {
                // It is asked again by the next word that it says as a member.
                if self.store.delete(volume).is_ok() {
                    self.forget(volume);
                }
            }
            let asked = self.poll_endpoints();
            let messages = std::mem::take(&mut self.out.messages);
            let quiet = events == 0 && !asked && messages.is_empty();
            for (to, envelope) in messages {
                self.outgoing.entry(to).or_default().push_back(envelope);
            }
            if quiet {
                return;
            }
        }
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Durable { ticket, volume } => {
                let opening = self.opening.get_mut(&volume);
                if let Some(kept) = opening.and_then(|opening| opening.kept.as_mut()) {
                    kept.durable(ticket);
                }
                self.with(volume, |group, context| group.durable(context, ticket));
            }
            Event::Read { ticket, result } => {
                if let Some((volume, read)) = self.out.reads.remove(&ticket) {
                    if matches!(read, ReadFor::Scrub) {
                        self.scrub.note(&result);
                    }
                    self.with(volume, |group, context| {
                        group.outcome_of_read(context, read, result)
                    });
                }
            }
            Event::Entry { ticket, result } => self.entry_read(ticket, result),
            Event::Chunk { ticket, result } => {
                if let Some(ChunkFor { volume, to }) = self.out.chunks.remove(&ticket) {
                    self.with(volume, |group, context| {
                        group.chunk_read(context, to, result)
                    });
                }
            }
            Event::Checkpointed { .. } => self.checkpointed(),
            Event::Dead { cause } => self.lose_disk(cause),
        }
    }

    /// The log's oldest entries may be gone.
    fn checkpointed(&mut self) {
        let volumes: Vec<VolumeId> = self.groups.keys().copied().collect();
        for volume in volumes {
            let first = self.store.volume(volume).map_or(0, |info| info.first);
            if let Some(group) = self.groups.get_mut(&volume) {
                group.trim(first);
            }
        }
    }
}

/// Whether a message says that a replica follows that is here no more, or in a term that is over for it: it waited for the
/// disk, or for its turn.
fn is_over(groups: &BTreeMap<VolumeId, Group>, envelope: &Envelope) -> bool {
    let Message::Consensus {
        from, term, step, ..
    } = &envelope.message
    else {
        return false;
    };
    let group = groups.get(&envelope.volume);
    let holds = group.is_some_and(|group| group.me == *from && group.term() <= *term);
    step.follows() && !holds
}
