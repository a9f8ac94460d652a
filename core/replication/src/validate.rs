//! What a peer may say. The consensus trusts its messages and stops the program over those that cannot
//! be: these come from a peer that lost its disk, or from no replica at all.

use crate::ReplicaId;
use crate::message::{Message, Place, Step};
use blocks::Entry;

/// A term that is reached by no number of elections.
const MOST_TERM: u64 = 1 << 62;

/// What a replica knows of its own log.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Known {
    pub(crate) me: ReplicaId,
    pub(crate) term: u64,
    pub(crate) last: u64,
    pub(crate) committed: u64,
}

/// Why a message is not heard, if it is not.
pub(crate) fn judge(
    message: &Message,
    known: Known,
    is_member: impl Fn(ReplicaId) -> bool,
    term_at: impl Fn(u64) -> Option<u64>,
) -> Result<(), &'static str> {
    let Message::Consensus {
        from,
        to,
        term,
        step,
    } = message
    else {
        return Err("no message between replicas");
    };
    if *to != known.me || *from == known.me || !is_member(*from) {
        return Err("a replica that is no member");
    }
    if *term == 0 || *term > MOST_TERM {
        return Err("a term that nobody can have");
    }
    // Only what is said of the own term is looked at more closely by the consensus.
    if *term < known.term {
        return Ok(());
    }
    match step {
        Step::Append {
            prev,
            commit: _,
            entries,
        } => judge_entries(*prev, *term, entries, known, term_at),
        Step::Heartbeat { commit, .. } if *commit > known.last => {
            Err("a leader that knows of entries that this disk had, and has no more")
        }
        Step::Appended { last, .. } if *last > known.last => {
            Err("a follower that has more than its leader")
        }
        Step::Rejected { prev, hint, .. } if *prev.max(&hint.index) > known.last => {
            Err("an answer to what was not sent")
        }
        Step::Appended { .. }
        | Step::Rejected { .. }
        | Step::Vote { .. }
        | Step::Voted { .. }
        | Step::Heartbeat { .. }
        | Step::HeartbeatReply { .. }
        | Step::TimeoutNow => Ok(()),
    }
}

fn judge_entries(
    prev: Place,
    term: u64,
    entries: &[Entry],
    known: Known,
    term_at: impl Fn(u64) -> Option<u64>,
) -> Result<(), &'static str> {
    if (prev.index == 0) != (prev.term == 0) {
        return Err("a place that no log has");
    }
    let mut before = prev;
    for entry in entries {
        if before.index.checked_add(1) != Some(entry.index) || entry.term < before.term {
            return Err("entries out of their order");
        }
        if entry.term > term {
            return Err("an entry of a later term than its leader's");
        }
        let committed = entry.index <= known.committed;
        if committed && term_at(entry.index).is_some_and(|held| held != entry.term) {
            return Err("an entry in the place of a committed one");
        }
        before = Place {
            index: entry.index,
            term: entry.term,
        };
    }
    let committed = prev.index > 0 && prev.index <= known.committed;
    if committed && term_at(prev.index).is_some_and(|held| held != prev.term) {
        return Err("a log that differs where it is committed");
    }
    Ok(())
}
