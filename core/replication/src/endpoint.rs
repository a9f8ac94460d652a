//! An endpoint's session: finds the leader, asks again, and answers each request once.

use crate::message::{Answer, Answered, Failure, Op, Request};
use crate::{GIVE_UP_MICROS, HostId, RETRY_MICROS, SessionId, Stamp, Time};
use blocks::VolumeId;
use std::collections::BTreeMap;

/// Requests of a session that are under way at once; others wait for them.
const MOST_UNDER_WAY: usize = 256;
/// How long a request waits that was refused for now.
const PAUSE_MICROS: u64 = 20_000;
/// When nobody was heard for so long of a term, and somebody leads in an earlier one, it is that one's.
const FORGET_MICROS: u64 = 2_000_000;

/// A request of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId {
    /// Whose.
    pub session: SessionId,
    /// Its number in the session.
    pub id: u64,
}

/// What became of a request.
pub type Outcome = Result<Answered, Failure>;

/// An answer to an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// To which request.
    pub request: RequestId,
    /// What became of it.
    pub outcome: Outcome,
}

#[derive(Debug)]
pub(crate) struct Endpoint {
    pub(crate) volume: VolumeId,
    session: SessionId,
    hosts: Vec<HostId>,
    /// Who is asked next, and the newest term that was heard of.
    target: usize,
    /// When it was found, so that two replicas that each take the other for the leader are not asked
    /// without end.
    moved_at: Time,
    term: u64,
    /// When somebody was heard last who is in that term, or a newer one.
    term_at: Time,
    epoch: Option<u64>,
    next_seq: u64,
    next_id: u64,
    requests: BTreeMap<u64, Waiting>,
    closed: Option<Failure>,
}

#[derive(Debug)]
struct Waiting {
    op: Op,
    since: Time,
    stamp: Stamp,
    /// Nothing while it waits for another one.
    sent: Option<Sent>,
}

#[derive(Debug, Clone, Copy)]
struct Sent {
    term: u64,
    target: usize,
    again_at: Time,
    /// Nobody answered, so somebody else is asked.
    turn: bool,
}

impl Endpoint {
    pub(crate) fn new(volume: VolumeId, session: SessionId, hosts: Vec<HostId>) -> Self {
        Self {
            volume,
            session,
            hosts,
            target: 0,
            moved_at: Time(0),
            term: 0,
            term_at: Time(0),
            epoch: None,
            next_seq: 1,
            next_id: 0,
            requests: BTreeMap::new(),
            closed: None,
        }
    }

    /// Others have the replicas now. What is under way is answered by whom it was asked of, or asked again.
    pub(crate) fn ask_of(&mut self, hosts: Vec<HostId>) {
        let asked = self.hosts[self.target];
        self.target = hosts.iter().position(|it| *it == asked).unwrap_or(0);
        self.hosts = hosts;
    }

    /// Takes a request in. `Err`: its answer is known.
    pub(crate) fn ask(&mut self, op: Op, now: Time) -> Result<RequestId, Reply> {
        self.next_id += 1;
        let (session, id) = (self.session, self.next_id);
        let request = RequestId { session, id };
        let attached = self.epoch.is_some() || !needs_attachment(&op);
        let refused = match &self.closed {
            Some(failure) => Some(failure.clone()),
            None if !attached => Some(Failure::Invalid {
                why: "the volume is not attached here; attach it first".to_owned(),
            }),
            None => None,
        };
        if let Some(failure) = refused {
            let outcome = Err(failure);
            return Err(Reply { request, outcome });
        }
        let waiting = Waiting {
            op,
            since: now,
            stamp: Stamp::NONE,
            sent: None,
        };
        self.requests.insert(id, waiting);
        Ok(request)
    }

    /// What has to be sent now, and to whom.
    pub(crate) fn poll(&mut self, now: Time) -> Vec<(HostId, Request)> {
        let mut out = Vec::new();
        let mut busy: Vec<(u64, u64)> = Vec::new();
        let mut turned = false;
        let ids: Vec<u64> = self.requests.keys().take(MOST_UNDER_WAY).copied().collect();
        for id in ids {
            let waiting = self.requests.get_mut(&id).expect("it was listed");
            if let Some(range) = written(&waiting.op) {
                // Two writes of a block that are under way at once could come twice, in turns.
                let overlaps = busy
                    .iter()
                    .any(|other| range.0 < other.1 && other.0 < range.1);
                busy.push(range);
                if overlaps {
                    continue;
                }
            }
            let due = waiting.sent.is_none_or(|sent| sent.again_at <= now);
            if !due {
                continue;
            }
            // Another request may have turned meanwhile to one that this one was not sent to.
            let turns = |sent: Sent| sent.turn && sent.target == self.target;
            if waiting.sent.is_some_and(turns) && !turned {
                turned = true;
                self.target = (self.target + 1) % self.hosts.len();
            }
            let reads = matches!(waiting.op, Op::Read { .. } | Op::Allocation { .. });
            let stamped = needs_attachment(&waiting.op) || reads;
            if waiting.stamp == Stamp::NONE && stamped {
                let seq = if reads { 0 } else { self.next_seq };
                let Some(stamp) = Stamp::new(self.epoch.unwrap_or(0), seq) else {
                    self.closed = Some(Failure::Fenced);
                    continue;
                };
                waiting.stamp = stamp;
                self.next_seq += u64::from(!reads);
            }
            waiting.sent = Some(Sent {
                term: self.term,
                target: self.target,
                again_at: now + RETRY_MICROS,
                turn: true,
            });
            out.push(id);
        }
        let floor = self.floor();
        let request = |id: u64| {
            let waiting = &self.requests[&id];
            let request = Request {
                session: self.session,
                id,
                term: self.term,
                stamp: waiting.stamp,
                floor,
                op: waiting.op.clone(),
            };
            (self.hosts[self.target], request)
        };
        out.into_iter().map(request).collect()
    }

    /// All requests of this attachment with smaller numbers are answered.
    fn floor(&self) -> u64 {
        let seqs = self.requests.values().map(|waiting| waiting.stamp.seq());
        seqs.filter(|seq| *seq != 0).min().unwrap_or(self.next_seq)
    }

    /// The leader, or who is no leader, answers. Gives what is to be told.
    pub(crate) fn answer(&mut self, answer: Answer, now: Time) -> Vec<Reply> {
        let Some(waiting) = self.requests.get_mut(&answer.id) else {
            return Vec::new();
        };
        // An answer to what was sent to an earlier leader: what was sent since is still to be answered.
        let Some(sent) = waiting
            .sent
            .as_mut()
            .filter(|sent| sent.term == answer.term)
        else {
            return Vec::new();
        };
        match answer.result {
            Err(Failure::NotLeader { leader, term }) => {
                let known =
                    leader.and_then(|leader| self.hosts.iter().position(|it| *it == leader));
                // A replica that had a newer one may be gone, with its term.
                let over = term < self.term && self.term_at + FORGET_MICROS <= now;
                let over = over && leader.is_some();
                let newer = term > self.term || over;
                if term >= self.term {
                    self.term_at = now;
                }
                let elsewhere = term == self.term && self.moved_at + PAUSE_MICROS <= now;
                if let Some(target) = known.filter(|it| newer || elsewhere && *it != self.target) {
                    (self.target, self.moved_at) = (target, now);
                }
                if newer {
                    (self.term, self.term_at) = (term, now);
                }
                // What is known by now may be better than what was known when it was sent.
                let better = (sent.term, sent.target) != (self.term, self.target);
                (sent.again_at, sent.turn) = match better {
                    true => (now, false),
                    false => (now + PAUSE_MICROS, true),
                };
                Vec::new()
            }
            Err(Failure::Busy) => {
                (sent.again_at, sent.turn) = (now + PAUSE_MICROS, false);
                Vec::new()
            }
            Err(Failure::Fenced) => self.close(Failure::Fenced),
            outcome => {
                if let Ok(Answered::Attached { epoch }) = outcome {
                    (self.epoch, self.next_seq) = (Some(epoch), 1);
                }
                self.requests.remove(&answer.id);
                vec![self.reply(answer.id, outcome)]
            }
        }
    }

    /// Gives up what waits for too long.
    pub(crate) fn expire(&mut self, now: Time) -> Vec<Reply> {
        let oldest = self.requests.values().map(|waiting| waiting.since).min();
        match oldest {
            Some(since) if since + GIVE_UP_MICROS <= now => self.close(Failure::GaveUp),
            _ => Vec::new(),
        }
    }

    fn close(&mut self, failure: Failure) -> Vec<Reply> {
        self.closed = Some(failure.clone());
        let requests = std::mem::take(&mut self.requests);
        let reply = |id| self.reply(id, Err(failure.clone()));
        requests.into_keys().map(reply).collect()
    }

    fn reply(&self, id: u64, outcome: Outcome) -> Reply {
        let session = self.session;
        let request = RequestId { session, id };
        Reply { request, outcome }
    }

    /// When there is something to do.
    pub(crate) fn deadline(&self) -> Option<Time> {
        let at = |waiting: &Waiting| waiting.sent.map(|sent| sent.again_at);
        let again = self.requests.values().filter_map(at).min();
        let oldest = self
            .requests
            .values()
            .map(|waiting| waiting.since + GIVE_UP_MICROS);
        again.into_iter().chain(oldest.min()).min()
    }
}

/// Whether a request is of an attachment.
const fn needs_attachment(op: &Op) -> bool {
    match op {
        Op::Write { .. } | Op::Zero { .. } => true,
        Op::Attach { .. }
        | Op::Read { .. }
        | Op::Allocation { .. }
        | Op::Grow { .. }
        | Op::Change { .. } => false,
    }
}

/// The blocks that a request changes.
const fn written(op: &Op) -> Option<(u64, u64)> {
    match op {
        Op::Write { lba, data } => Some((*lba, lba.saturating_add(data.blocks() as u64))),
        Op::Zero { lba, blocks } => Some((*lba, lba.saturating_add(*blocks))),
        Op::Attach { .. }
        | Op::Read { .. }
        | Op::Allocation { .. }
        | Op::Grow { .. }
        | Op::Change { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_term_that_nobody_is_in_any_more_is_forgotten() {
        let hosts = vec![HostId(1), HostId(2)];
        let mut endpoint = Endpoint::new(VolumeId::new(7), SessionId(1), hosts);
        let begin = Time(1_000_000);
        endpoint.ask(Op::Read { lba: 0, blocks: 1 }, begin).unwrap();
        let mut says = |leader: Option<u128>, term, at: Time| {
            let (_, request) = endpoint.poll(at).pop()?;
            let leader = leader.map(HostId);
            let answer = Answer {
                session: request.session,
                id: request.id,
                term: request.term,
                result: Err(Failure::NotLeader { leader, term }),
            };
            assert!(endpoint.answer(answer, at).is_empty());
            endpoint.poll(at).pop().map(|(to, again)| (to, again.term))
        };
        // The one in term 9 is gone; who leads in term 8 is not taken for one that is over, at first.
        says(None, 9, begin);
        let soon = begin + FORGET_MICROS / 2;
        assert_ne!(says(Some(2), 8, soon), Some((HostId(2), 8)));
        let later = begin + FORGET_MICROS * 2;
        assert_eq!(says(Some(2), 8, later), Some((HostId(2), 8)));
    }
}
