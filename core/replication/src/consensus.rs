//! Our messages and the consensus's own: the only place that knows both.

use crate::log::Log;
use crate::members::Seat;
use crate::message::{Place, Step, VoteKind};
use crate::{Members, Message, ReplicaId};
use blocks::Entry;
use raft::eraftpb::{
    ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, ConfState,
    Entry as RaftEntry, Message as RaftMessage, MessageType,
};
use raft::{CAMPAIGN_TRANSFER, Config, RawNode};

/// Entries in one message at most; payloads are counted apart.
const MOST_ENTRIES: u64 = 64;
/// What the consensus takes an entry without data for.
const ENTRY_BYTES: u64 = 12;
/// Messages with entries that a follower did not answer yet, at most.
const MOST_UNANSWERED: usize = 32;

/// A replica of the consensus. It is never told of time: elections, heartbeats and the loss of a
/// majority are decided by its owner, so what it draws at random has no effect.
pub(crate) fn node(me: ReplicaId, applied: u64, log: Log) -> raft::Result<RawNode<Log>> {
    let config = Config {
        id: me.0,
        applied,
        max_size_per_msg: MOST_ENTRIES * ENTRY_BYTES,
        max_inflight_msgs: MOST_UNANSWERED,
        pre_vote: true,
        // With it a follower refuses votes by a clock that nobody winds; promises do that here.
        check_quorum: false,
        // A commit goes with the next entries, or with the heartbeat that follows them.
        skip_bcast_commit: true,
        batch_append: true,
        ..Config::default()
    };
    let nowhere = slog::Logger::root(slog::Discard, slog::o!());
    RawNode::new(&config, log, &nowhere)
}

/// A message for the consensus. `None`: it is none between replicas.
pub(crate) fn to_raft(message: &Message) -> Option<RaftMessage> {
    let Message::Consensus {
        from,
        to,
        term,
        step,
    } = message
    else {
        return None;
    };
    let mut raw = RaftMessage::default();
    (raw.from, raw.to, raw.term) = (from.0, to.0, *term);
    let kind = match step {
        Step::Append {
            prev,
            commit,
            entries,
        } => {
            (raw.index, raw.log_term, raw.commit) = (prev.index, prev.term, *commit);
            let entries: Vec<RaftEntry> = entries.iter().map(place_of).collect();
            raw.set_entries(entries.into());
            MessageType::MsgAppend
        }
        Step::Appended { last, commit } => {
            (raw.index, raw.commit) = (*last, *commit);
            MessageType::MsgAppendResponse
        }
        Step::Rejected { prev, hint, commit } => {
            (raw.index, raw.commit, raw.reject) = (*prev, *commit, true);
            (raw.reject_hint, raw.log_term) = (hint.index, hint.term);
            MessageType::MsgAppendResponse
        }
        Step::Vote { kind, last, commit } => {
            (raw.index, raw.log_term) = (last.index, last.term);
            (raw.commit, raw.commit_term) = (commit.index, commit.term);
            if *kind == VoteKind::Transfer {
                raw.context = CAMPAIGN_TRANSFER.into();
            }
            match kind {
                VoteKind::Pre => MessageType::MsgRequestPreVote,
                VoteKind::Vote | VoteKind::Transfer => MessageType::MsgRequestVote,
            }
        }
        Step::Voted {
            pre,
            granted,
            commit,
        } => {
            (raw.commit, raw.commit_term) = (commit.index, commit.term);
            raw.reject = !granted;
            match pre {
                true => MessageType::MsgRequestPreVoteResponse,
                false => MessageType::MsgRequestVoteResponse,
            }
        }
        Step::Heartbeat { commit, read } => {
            raw.commit = *commit;
            raw.context = context(*read).into();
            MessageType::MsgHeartbeat
        }
        Step::HeartbeatReply { commit, read } => {
            raw.commit = *commit;
            raw.context = context(*read).into();
            MessageType::MsgHeartbeatResponse
        }
        Step::TimeoutNow => MessageType::MsgTimeoutNow,
    };
    raw.set_msg_type(kind);
    Some(raw)
}

/// What the consensus wants to be sent. Entries come without their bodies, in `places`. `None`: nothing
/// that we use.
pub(crate) fn from_raft(raw: &RaftMessage) -> Option<(ReplicaId, u64, Step, Vec<Place>)> {
    let commit = raw.commit;
    let committed = Place {
        index: raw.commit,
        term: raw.commit_term,
    };
    let mut places = Vec::new();
    let step = match raw.get_msg_type() {
        MessageType::MsgAppend => {
            let place = |entry: &RaftEntry| Place {
                index: entry.index,
                term: entry.term,
            };
            places.extend(raw.get_entries().iter().map(place));
            let prev = Place {
                index: raw.index,
                term: raw.log_term,
            };
            Step::Append {
                prev,
                commit,
                entries: Vec::new(),
            }
        }
        MessageType::MsgAppendResponse if raw.reject => Step::Rejected {
            prev: raw.index,
            hint: Place {
                index: raw.reject_hint,
                term: raw.log_term,
            },
            commit,
        },
        MessageType::MsgAppendResponse => Step::Appended {
            last: raw.index,
            commit,
        },
        kind @ (MessageType::MsgRequestPreVote | MessageType::MsgRequestVote) => Step::Vote {
            kind: match kind {
                MessageType::MsgRequestPreVote => VoteKind::Pre,
                _ if raw.get_context() == CAMPAIGN_TRANSFER => VoteKind::Transfer,
                _ => VoteKind::Vote,
            },
            last: Place {
                index: raw.index,
                term: raw.log_term,
            },
            commit: committed,
        },
        kind @ (MessageType::MsgRequestPreVoteResponse | MessageType::MsgRequestVoteResponse) => {
            Step::Voted {
                pre: kind == MessageType::MsgRequestPreVoteResponse,
                granted: !raw.reject,
                commit: committed,
            }
        }
        MessageType::MsgHeartbeat => Step::Heartbeat {
            commit,
            read: number(raw.get_context()),
        },
        MessageType::MsgHeartbeatResponse => Step::HeartbeatReply {
            commit,
            read: number(raw.get_context()),
        },
        MessageType::MsgTimeoutNow => Step::TimeoutNow,
        _ => return None,
    };
    Some((ReplicaId(raw.to), raw.term, step, places))
}

/// Members in the consensus's form.
pub(crate) fn state_of(members: &Members) -> ConfState {
    let of = |is: fn(&Seat) -> bool| {
        let seats = members.seats().iter().filter(|seat| is(seat));
        seats.map(|seat| seat.member.replica.0).collect::<Vec<_>>()
    };
    let learners = of(|seat| !seat.votes && !seat.voted);
    let mut state = ConfState::from((of(|seat| seat.votes), learners));
    state.set_voters_outgoing(of(|seat| seat.voted));
    // Who goes hears what is decided until it is none.
    state.set_learners_next(of(|seat| seat.voted && !seat.votes));
    state
}

/// What makes one set of members another one, as [`Members`] go from step to step.
pub(crate) fn changes(old: &Members, new: &Members) -> Vec<ConfChangeV2> {
    let one = |replica: ReplicaId, kind| {
        let mut change = ConfChangeSingle {
            node_id: replica.0,
            ..ConfChangeSingle::default()
        };
        change.set_change_type(kind);
        change
    };
    if new.is_joint() {
        let mut change = ConfChangeV2::default();
        change.set_transition(ConfChangeTransition::Explicit);
        let seats = new.seats().iter().filter(|seat| seat.votes != seat.voted);
        let changed = seats.map(|seat| {
            let kind = match seat.votes {
                true => ConfChangeType::AddNode,
                false => ConfChangeType::AddLearnerNode,
            };
            one(seat.member.replica, kind)
        });
        change.set_changes(changed.collect::<Vec<_>>().into());
        return vec![change];
    }
    if old.is_joint() {
        return vec![ConfChangeV2::default()];
    }
    // One by one: several at once would be a joint change.
    let gone = old
        .seats()
        .iter()
        .filter(|seat| new.seat(seat.member.replica).is_none());
    let come = new
        .seats()
        .iter()
        .filter(|seat| old.seat(seat.member.replica).is_none());
    let gone = gone.map(|seat| one(seat.member.replica, ConfChangeType::RemoveNode));
    let come = come.map(|seat| one(seat.member.replica, ConfChangeType::AddLearnerNode));
    let alone = |change| {
        let mut all = ConfChangeV2::default();
        all.set_changes(vec![change].into());
        all
    };
    gone.chain(come).map(alone).collect()
}

/// A read's number in the consensus's form.
pub(crate) fn context(read: u64) -> Vec<u8> {
    if read == 0 {
        return Vec::new();
    }
    read.to_le_bytes().to_vec()
}

/// A read's number from it.
pub(crate) fn number(context: &[u8]) -> u64 {
    context.try_into().map_or(0, u64::from_le_bytes)
}

fn place_of(entry: &Entry) -> RaftEntry {
    let mut raw = RaftEntry::default();
    (raw.index, raw.term) = (entry.index, entry.term);
    raw
}
