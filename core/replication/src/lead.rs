//! What a replica does for endpoints while it leads.

use crate::group::{Asked, Group};
use crate::message::{Answer, Answered, Failure, Op, Request};
use crate::outbox::{Context, ReadFor};
use crate::steps::Compared;
use crate::timing::UnderWay;
use crate::{HostId, ReplicaId, SessionId, Stamp, Time};
use blocks::{Body, Entry, Refused, Submission};
use std::collections::BTreeMap;

/// Entries that are not committed yet, at most: what comes then is asked again.
const MOST_UNCOMMITTED: u64 = 256;
/// Blocks of one read, 32 MiB: the answer has to fit into a frame.
const MOST_READ_BLOCKS: u64 = 8192;
/// Blocks of which one question asks whether they have something, 4 GiB: whoever wants to know more asks again.
const MOST_ALLOCATION_BLOCKS: u64 = 1 << 20;
/// Runs of them in one answer.
const MOST_RUNS: usize = 4096;
/// A transfer that takes longer is given up.
pub(crate) const TRANSFER_MICROS: u64 = 500_000;

/// What there is only while leading, in one term.
#[derive(Debug)]
pub(crate) struct Lead {
    pub(crate) term: u64,
    /// Followers that answered in this term, since their last start: which of this host's frames they had heard then.
    pub(crate) followers: BTreeMap<ReplicaId, Time>,
    /// When those came that are members since this term: what they say without having heard from here since is of one
    /// that was a replica before, under the same number.
    pub(crate) came: BTreeMap<ReplicaId, Time>,
    /// Somebody was asked to take over: in this term it may do so at any time.
    pub(crate) no_lease: bool,
    pub(crate) transfer_until: Option<Time>,
    /// Requests that wait for their entries.
    pub(crate) waiting: BTreeMap<u64, Vec<Asked>>,
    /// Reads that wait for a lease, or a majority.
    pub(crate) reads: Vec<Reading>,
    pub(crate) read_number: u64,
    /// Requests that were taken in.
    pub(crate) taken: BTreeMap<Stamp, u64>,
    pub(crate) floor: Stamp,
    /// By session: its request, the entry, and the attachment.
    pub(crate) attached: BTreeMap<SessionId, (u64, u64, u64)>,
    pub(crate) ping_at: Option<Time>,
    pub(crate) under_way: UnderWay,
    pub(crate) compared: Compared,
}

/// A read that waits.
#[derive(Debug)]
pub(crate) struct Reading {
    pub(crate) asked: Asked,
    pub(crate) stamp: Stamp,
    pub(crate) lba: u64,
    pub(crate) blocks: u64,
    /// Not the blocks are wanted, but which of them have something.
    allocation: bool,
    /// The question to a majority that came after it.
    number: Option<u64>,
}

impl Reading {
    pub(crate) const fn new(asked: Asked, stamp: Stamp, lba: u64, blocks: u64) -> Self {
        Self {
            asked,
            stamp,
            lba,
            blocks,
            allocation: false,
            number: None,
        }
    }

    /// The same, as if it came now.
    pub(crate) const fn again(self) -> Self {
        Self::new(self.asked, self.stamp, self.lba, self.blocks)
    }
}

impl Lead {
    pub(crate) fn new(term: u64) -> Self {
        Self {
            term,
            followers: BTreeMap::new(),
            came: BTreeMap::new(),
            no_lease: false,
            transfer_until: None,
            waiting: BTreeMap::new(),
            reads: Vec::new(),
            read_number: 0,
            taken: BTreeMap::new(),
            floor: Stamp::NONE,
            attached: BTreeMap::new(),
            ping_at: None,
            under_way: UnderWay::default(),
            compared: Compared {
                same: BTreeMap::new(),
                differ: BTreeMap::new(),
            },
        }
    }
}

impl Lead {
    /// A replica is a member from now on; what is known of its number is of another one.
    pub(crate) fn comes(&mut self, replica: ReplicaId, now: Time) {
        self.came.insert(replica, now);
        self.followers.remove(&replica);
        self.compared.same.remove(&replica);
        self.compared.differ.remove(&replica);
    }
}

impl Group {
    /// An endpoint's request.
    pub(crate) fn request(&mut self, context: &mut Context<'_>, from: HostId, request: Request) {
        let asked = Asked {
            host: from,
            session: request.session,
            id: request.id,
            term: request.term,
        };
        let term = self.term();
        let here = request.term == term;
        let reads = matches!(request.op, Op::Read { .. } | Op::Allocation { .. });
        let leads = self.lead.is_some();
        if !leads || !(here || reads) {
            return self.not_leading(context, asked);
        }
        match request.op {
            Op::Read { blocks, .. } if blocks > MOST_READ_BLOCKS => {
                let why = format!("a read of {blocks} blocks: at most {MOST_READ_BLOCKS} at once");
                self.tell(context, asked, Err(Failure::Invalid { why }));
            }
            Op::Read { lba, blocks } => {
                self.read(Reading::new(asked, request.stamp, lba, blocks));
            }
            Op::Allocation { lba, blocks } => {
                let blocks = blocks.min(MOST_ALLOCATION_BLOCKS);
                self.read(Reading {
                    allocation: true,
                    ..Reading::new(asked, request.stamp, lba, blocks)
                });
            }
            Op::Attach { claim } => self.attach(context, asked, claim),
            Op::Write { lba, data } => {
                let body = Body::Write { lba, data };
                self.write(context, asked, request.stamp, request.floor, body);
            }
            Op::Zero { lba, blocks } => {
                let body = Body::Zero { lba, blocks };
                self.write(context, asked, request.stamp, request.floor, body);
            }
            Op::Grow { blocks } => {
                let has = context
                    .store
                    .volume(self.volume)
                    .map_or(0, |info| info.blocks);
                if has >= blocks {
                    self.tell(context, asked, Ok(Answered::Done));
                } else {
                    self.append_for(context, asked, Body::Grow { blocks });
                }
            }
            Op::Change { number, members } => self.change(context, asked, number, &members),
        }
        self.process(context);
    }

    /// Says where the leader is thought to be, or in which term this one leads.
    pub(crate) fn not_leading(&self, context: &mut Context<'_>, asked: Asked) {
        let (leader, term) = match self.lead {
            Some(_) => (Some(context.me), self.term()),
            None => (self.leader_host(), self.term()),
        };
        self.tell(context, asked, Err(Failure::NotLeader { leader, term }));
    }

    pub(crate) fn tell(
        &self,
        context: &mut Context<'_>,
        asked: Asked,
        result: Result<Answered, Failure>,
    ) {
        let answer = Answer {
            session: asked.session,
            id: asked.id,
            term: asked.term,
            result,
        };
        context.answer(self.volume, asked.host, answer);
    }

    fn attach(&mut self, context: &mut Context<'_>, asked: Asked, claim: u64) {
        let lead = self.lead.as_mut().expect("only who leads takes requests");
        if let Some((id, index, epoch)) = lead.attached.get(&asked.session).copied()
            && id >= asked.id
        {
            // The same one again: its answer is lost, or yet to come.
            return match index <= self.applied {
                true => self.tell(context, asked, Ok(Answered::Attached { epoch })),
                false => self.wait(context, index, asked),
            };
        }
        let Some(epoch) = Stamp::next_epoch(self.epoch_in_log(), claim) else {
            return self.tell(context, asked, Err(Failure::Fenced));
        };
        let stamp = Stamp::new(epoch, 0);
        let of_claim = claim == 0 || Stamp::next_epoch(epoch, claim).is_some();
        let Some(stamp) = stamp.filter(|_| of_claim) else {
            let why = format!(
                "claim {claim} began too often, or is too large ({}): attach the volume anew",
                Stamp::MOST_EPOCH >> 8
            );
            return self.tell(context, asked, Err(Failure::Invalid { why }));
        };
        if let Some(index) = self.append(context, asked, stamp, Body::Attach) {
            let lead = self.lead.as_mut().expect("it was there");
            lead.attached
                .insert(asked.session, (asked.id, index, epoch));
        }
    }

    fn write(
        &mut self,
        context: &mut Context<'_>,
        asked: Asked,
        stamp: Stamp,
        floor: u64,
        body: Body,
    ) {
        let epoch = stamp.epoch();
        if epoch < self.epoch {
            return self.tell(context, asked, Err(Failure::Fenced));
        }
        if epoch == 0 || epoch > self.epoch_in_log() || stamp.seq() == 0 {
            let why = "a write of no attachment; attach the volume first".to_owned();
            return self.tell(context, asked, Err(Failure::Invalid { why }));
        }
        let lead = self.lead.as_mut().expect("only who leads takes requests");
        if let Some(settled) = Stamp::new(epoch, floor) {
            lead.floor = lead.floor.max(settled);
            lead.taken = lead.taken.split_off(&lead.floor);
        }
        if stamp < lead.floor {
            return; // A copy of one that was answered.
        }
        let taken = lead.taken.get(&stamp).copied();
        if let Some(index) = taken.or_else(|| self.header_of(stamp)) {
            // Known until it is answered, also when the log has it no more: a second copy may be on its way, and come
            // after what follows it.
            if let Some(lead) = &mut self.lead {
                lead.taken.insert(stamp, index);
            }
            return self.wait(context, index, asked);
        }
        if let Some(index) = self.append(context, asked, stamp, body) {
            let lead = self.lead.as_mut().expect("it was there");
            lead.taken.insert(stamp, index);
        }
    }

    /// Answers when the entry there is committed; at once, if it is.
    fn wait(&mut self, context: &mut Context<'_>, index: u64, asked: Asked) {
        if index <= self.applied {
            let result = self.outcome(index);
            return self.tell(context, asked, result);
        }
        let lead = self.lead.as_mut().expect("only who leads takes requests");
        let waiting = lead.waiting.entry(index).or_default();
        waiting.retain(|other| (other.session, other.id) != (asked.session, asked.id));
        waiting.push(asked);
    }

    /// What became of a committed entry.
    pub(crate) fn outcome(&self, index: u64) -> Result<Answered, Failure> {
        if self.fenced.contains(&index) {
            return Err(Failure::Fenced);
        }
        match self.header(index) {
            Some(header) if header.attaches => Ok(Answered::Attached {
                epoch: header.stamp.map_or(0, Stamp::epoch),
            }),
            _ => Ok(Answered::Done),
        }
    }

    /// An entry for a request of an attachment, which is answered when it took effect.
    fn append(
        &mut self,
        context: &mut Context<'_>,
        asked: Asked,
        stamp: Stamp,
        body: Body,
    ) -> Option<u64> {
        match self.put(context, stamp.to_entry(), body) {
            Ok(index) => {
                let lead = self.lead.as_mut().expect("only who leads takes requests");
                lead.waiting.entry(index).or_default().push(asked);
                Some(index)
            }
            Err(failure) => {
                self.tell(context, asked, Err(failure));
                None
            }
        }
    }

    /// The same, of no attachment.
    pub(crate) fn append_for(&mut self, context: &mut Context<'_>, asked: Asked, body: Body) {
        self.append(context, asked, Stamp::NONE, body);
    }

    /// Puts an entry into the store's log first, which may refuse it, and then into the consensus's,
    /// which does not. So it is written here while it is on its way to the others.
    pub(crate) fn put(
        &mut self,
        context: &mut Context<'_>,
        epoch: u64,
        body: Body,
    ) -> Result<u64, Failure> {
        let (last, term) = (self.node.raft.raft_log.last_index(), self.term());
        let behind = self.is_refused() || last - self.applied >= MOST_UNCOMMITTED;
        if behind || self.node.raft.lead_transferee.is_some() {
            return Err(Failure::Busy);
        }
        let entry = Entry {
            index: last + 1,
            term,
            epoch,
            body,
        };
        let submission = Submission {
            hard: None,
            entries: vec![entry.clone()],
        };
        let ticket = context.store.submit(self.volume, submission);
        // Until all is in effect that was ever committed, an entry of the same request may be on its way to that.
        let failure = |refused| match self.is_complete() {
            true => failure_of(refused),
            false => Failure::Busy,
        };
        self.last_ticket = Some(ticket.map_err(failure)?);
        self.submitted = (entry.index, term);
        let writes = matches!(entry.body, Body::Write { .. } | Body::Zero { .. });
        if let Some(lead) = self.lead.as_mut().filter(|_| writes) {
            lead.under_way.put(entry.index, context.now);
        }
        self.bodies.insert(entry.index, entry);
        self.node
            .propose(Vec::new(), Vec::new())
            .expect("a leader that hands nothing over takes what it is given");
        Ok(last + 1)
    }

    fn read(&mut self, reading: Reading) {
        let lead = self.lead.as_mut().expect("only who leads takes requests");
        let asked = reading.asked;
        let same =
            |read: &Reading| (read.asked.session, read.asked.id) == (asked.session, asked.id);
        if lead.reads.iter().any(same) {
            return;
        }
        lead.reads.push(reading);
    }

    /// Serves the reads that may be served, and sees to the others.
    pub(crate) fn serve_reads(&mut self, context: &mut Context<'_>) {
        let complete = self.is_complete();
        let leased = complete && self.holds_lease(context);
        let Some(lead) = self.lead.as_mut().filter(|lead| !lead.reads.is_empty()) else {
            return;
        };
        if leased {
            for reading in std::mem::take(&mut lead.reads) {
                self.serve(context, reading);
            }
            return;
        }
        let asks = lead.reads.iter().any(|reading| reading.number.is_none());
        if complete && asks {
            lead.read_number += 1;
            let number = lead.read_number;
            for reading in &mut lead.reads {
                reading.number.get_or_insert(number);
            }
            self.node.read_index(crate::consensus::context(number));
        }
    }

    /// A majority was there after this question.
    pub(crate) fn majority_was_there(&mut self, context: &mut Context<'_>, number: u64) {
        let Some(lead) = self.lead.as_mut() else {
            return;
        };
        let all = std::mem::take(&mut lead.reads);
        let asked = |reading: &Reading| reading.number.is_some_and(|it| it <= number);
        let (ready, rest): (Vec<_>, Vec<_>) = all.into_iter().partition(asked);
        lead.reads = rest;
        for reading in ready {
            self.serve(context, reading);
        }
    }

    fn serve(&self, context: &mut Context<'_>, reading: Reading) {
        let epoch = reading.stamp.epoch();
        if epoch != 0 && epoch < self.epoch {
            return self.tell(context, reading.asked, Err(Failure::Fenced));
        }
        if reading.allocation {
            let (lba, blocks) = (reading.lba, reading.blocks);
            let runs = context
                .store
                .allocation(self.volume, lba, blocks, MOST_RUNS);
            let answered = runs.map(Answered::Allocation).map_err(failure_of);
            return self.tell(context, reading.asked, answered);
        }
        match context.store.read(self.volume, reading.lba, reading.blocks) {
            Ok(ticket) => {
                let Reading {
                    asked,
                    stamp,
                    lba,
                    blocks,
                    ..
                } = reading;
                let read = ReadFor::Endpoint {
                    asked,
                    stamp,
                    lba,
                    blocks,
                };
                context.out.reads.insert(ticket, (self.volume, read));
            }
            Err(refused) => self.tell(context, reading.asked, Err(failure_of(refused))),
        }
    }

    /// Whether nobody else can lead as of now: a majority follows in this term, and helps nobody else.
    pub(crate) fn holds_lease(&self, context: &Context<'_>) -> bool {
        let Some(lead) = self.lead.as_ref().filter(|lead| !lead.no_lease) else {
            return false;
        };
        let holds = |replica: ReplicaId| {
            let host = self.members.host(replica);
            let confirmed = lead.followers.get(&replica).copied();
            host.zip(confirmed)
                .is_some_and(|(host, at)| context.links.holds_lease(host, at, context.now))
        };
        self.members
            .is_quorum(|replica| replica == self.me || holds(replica))
    }

    /// Hands the group to the replica on a host, if it has all there is.
    pub(crate) fn hand_over(&mut self, context: &Context<'_>, to: HostId) {
        let replica = self.members.replica(to).filter(|it| *it != self.me);
        let Some(replica) = replica.filter(|it| self.members.votes(*it)) else {
            return;
        };
        let last = self.node.raft.raft_log.last_index();
        let progress = self.node.raft.prs().get(replica.0);
        let ready = progress.is_some_and(|progress| progress.matched + 32 > last);
        let Some(lead) = self.lead.as_mut().filter(|_| ready) else {
            return;
        };
        if lead.transfer_until.is_some() || !context.links.is_up(to) {
            return;
        }
        lead.no_lease = true;
        lead.transfer_until = Some(context.now + TRANSFER_MICROS);
        self.node.transfer_leader(replica.0);
    }
}

fn failure_of(refused: Refused) -> Failure {
    match refused {
        Refused::Busy { .. } | Refused::NotYet { .. } | Refused::Dead { .. } => Failure::Busy,
        Refused::NoSpace { .. } | Refused::MapFull => Failure::NoSpace,
        other => Failure::Invalid {
            why: other.to_string(),
        },
    }
}
