//! All groups of a host, and the endpoints on it.

use crate::endpoint::{Endpoint, Reply, RequestId};
use crate::group::{Group, GroupInfo};
use crate::liveness::{Heard, Links};
use crate::message::{Answer, Envelope, Frame, Message, Op};
use crate::outbox::{Context, Outbox};
use crate::{HostId, Members, SessionId, Time};
use blocks::{Body, Done, Entry, Event, Io, Refused, Store, Submission, Ticket, Token, VolumeId};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Messages in a frame at most.
const MOST_MESSAGES: usize = 4096;
/// Blocks of payload in a frame, after which the next one begins: 16 MiB.
const FULL_FRAME_BLOCKS: usize = 4096;

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

/// A replica whose last entries are being read.
#[derive(Debug)]
struct Opening {
    members: Members,
    missing: usize,
    entries: BTreeMap<u64, Entry>,
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
            store,
            links: Links::new(id, incarnation, now),
            groups: BTreeMap::new(),
            opening: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            out: Outbox::default(),
            outgoing: BTreeMap::new(),
            beats: BTreeSet::new(),
            wheel: BTreeSet::new(),
            wakes: BTreeMap::new(),
            stuck: BTreeSet::new(),
            replies: VecDeque::new(),
            unusable: Vec::new(),
            dead: None,
            counters: Counters::default(),
        };
        let volumes: Vec<VolumeId> = host.store.volumes().collect();
        for volume in volumes {
            if let Err(error) = host.open(volume) {
                host.unusable.push(error);
            }
        }
        host.pump();
        host
    }

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

    /// Begins to read what did not take effect yet.
    fn open(&mut self, volume: VolumeId) -> Result<(), NotReady> {
        let unusable = |why: String| NotReady::Unusable { volume, why };
        let info = self.store.volume(volume).expect("the store has it");
        if let Some(why) = info.broken {
            return Err(unusable(why));
        }
        let members =
            Members::decode(&info.config.1).map_err(|error| unusable(error.to_string()))?;
        let wanted = info.applied + 1..=info.last;
        let opening = Opening {
            members,
            missing: (info.last - info.applied) as usize,
            entries: BTreeMap::new(),
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
        self.start(volume, opening.members, entries)
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
        let info = self.store.volume(volume).expect("the store has it");
        let terms = (info.first - 1..=info.last).map(|index| self.store.term(volume, index));
        let terms: Option<Vec<u64>> = terms.collect();
        let terms = terms.ok_or_else(|| unusable("its log has gaps".to_owned()))?;
        members
            .iter()
            .for_each(|member| self.links.meet(member.host));
        let group = Group::new(volume, me, members, &info, &terms, entries).map_err(unusable)?;
        self.groups.insert(volume, group);
        self.with(volume, |_, _| {});
        Ok(())
    }

    /// Opens a session for a volume whose replicas are on these hosts. `session` is never used again.
    ///
    /// # Panics
    /// When there are no hosts.
    pub fn open_session(&mut self, session: SessionId, volume: VolumeId, hosts: Vec<HostId>) {
        assert!(!hosts.is_empty(), "a volume has replicas");
        self.endpoints
            .insert(session, Endpoint::new(volume, session, hosts));
    }

    /// Ends a session: its requests are not answered any more.
    pub fn close_session(&mut self, session: SessionId) {
        self.endpoints.remove(&session);
    }

    /// A request of a session; [`Self::poll_reply`] answers it. `None`: there is no such session.
    pub fn ask(&mut self, session: SessionId, op: Op, now: Time) -> Option<RequestId> {
        self.now = now;
        let asked = self.endpoints.get_mut(&session)?.ask(op, now);
        let request = match asked {
            Ok(request) => request,
            Err(reply) => {
                let request = reply.request;
                self.replies.push_back(reply);
                request
            }
        };
        self.pump();
        Some(request)
    }

    /// Answers to endpoints.
    pub fn poll_reply(&mut self) -> Option<Reply> {
        self.replies.pop_front()
    }

    /// A frame of a peer, who was found to be that host.
    pub fn handle_frame(&mut self, from: HostId, frame: Frame, now: Time) {
        self.now = now;
        let heard = self.links.hear(from, &frame, now);
        if heard == Heard::Stale || self.dead.is_some() {
            return;
        }
        if heard != Heard::Same {
            self.host_changed(from, heard == Heard::Restarted);
        }
        for Envelope { volume, message } in frame.messages {
            self.deliver(from, volume, message);
        }
        self.pump();
    }

    fn deliver(&mut self, from: HostId, volume: VolumeId, message: Message) {
        match message {
            Message::Answer(answer) => self.answered(volume, answer),
            Message::Request(request) => {
                self.with(volume, |group, context| {
                    group.request(context, from, request)
                });
            }
            message => {
                let replica = |group: &Group| match &message {
                    Message::Consensus { from: replica, .. } => group.members.host(*replica),
                    Message::Request(_) | Message::Answer(_) => None,
                };
                // A host speaks for its own replicas only.
                if self.groups.get(&volume).and_then(replica) == Some(from) {
                    self.with(volume, |group, context| group.message(context, message));
                }
            }
        }
    }

    fn answered(&mut self, volume: VolumeId, answer: Answer) {
        let endpoint = self.endpoints.get_mut(&answer.session);
        if let Some(endpoint) = endpoint.filter(|endpoint| endpoint.volume == volume) {
            self.replies.extend(endpoint.answer(answer, self.now));
        }
    }

    /// Time has passed, at least to [`Self::poll_timeout`].
    pub fn handle_time(&mut self, now: Time) {
        self.now = self.now.max(now);
        if self.dead.is_some() {
            return;
        }
        for host in self.links.expire(now) {
            self.host_changed(host, false);
        }
        self.beats.extend(self.links.due(now));
        while let Some((at, volume)) = self.wheel.first().copied().filter(|(at, _)| *at <= now) {
            self.wheel.remove(&(at, volume));
            self.wakes.remove(&volume);
            self.with(volume, Group::tick);
        }
        self.pump();
    }

    /// When [`Self::handle_time`] has to be called, at the latest.
    pub fn poll_timeout(&self) -> Option<Time> {
        let wheel = self.wheel.first().map(|(at, _)| *at);
        let endpoints = self.endpoints.values().filter_map(Endpoint::deadline).min();
        let all = [wheel, endpoints, self.links.deadline()];
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
        if self.dead.is_some() {
            return None;
        }
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
            blocks += envelope.message.payload_blocks();
            frame.messages.push(envelope);
        }
        self.counters.frames += 1;
        self.counters.messages += frame.messages.len() as u64;
        Some((to, frame))
    }

    /// Why this host takes part no more: its disk failed.
    pub fn dead(&self) -> Option<&str> {
        self.dead.as_deref()
    }

    /// Replicas that did not start, and why.
    pub fn unusable(&self) -> &[NotReady] {
        &self.unusable
    }

    /// What is known of a replica. `None`: it is not here, or being opened.
    pub fn group(&self, volume: VolumeId) -> Option<GroupInfo> {
        self.groups.get(&volume).map(Group::info)
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

    fn poll_endpoints(&mut self) -> bool {
        let mut all = Vec::new();
        for endpoint in self.endpoints.values_mut() {
            self.replies.extend(endpoint.expire(self.now));
            let requests = endpoint.poll(self.now).into_iter();
            all.extend(requests.map(|(to, request)| (to, endpoint.volume, request)));
        }
        let any = !all.is_empty();
        for (to, volume, request) in all {
            if to == self.id {
                self.with(volume, |group, context| group.request(context, to, request));
            } else {
                let message = Message::Request(request);
                self.out.messages.push((to, Envelope { volume, message }));
            }
        }
        any
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Durable { ticket, volume } => {
                self.with(volume, |group, context| group.durable(context, ticket));
            }
            Event::Read { ticket, result } => {
                if let Some((volume, asked)) = self.out.reads.remove(&ticket) {
                    self.with(volume, |group, context| {
                        group.outcome_of_read(context, asked, result)
                    });
                }
            }
            Event::Entry { ticket, result } => self.entry_read(ticket, result),
            Event::Checkpointed { .. } => self.checkpointed(),
            Event::Dead { cause } => self.dead = Some(cause),
        }
    }

    fn entry_read(&mut self, ticket: Ticket, result: Result<Entry, blocks::EntryError>) {
        let Some((volume, index)) = self.out.entries.remove(&ticket) else {
            return;
        };
        let Some(opening) = self.opening.get_mut(&volume) else {
            return self.with(volume, |group, context| {
                group.entry_read(context, index, result)
            });
        };
        match result {
            Ok(entry) => {
                opening.entries.insert(index, entry);
                opening.missing -= 1;
                if opening.missing == 0
                    && let Err(error) = self.finish_opening(volume)
                {
                    self.unusable.push(error);
                }
            }
            Err(error) => {
                self.opening.remove(&volume);
                let why = error.to_string();
                self.unusable.push(NotReady::Unusable { volume, why });
            }
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
