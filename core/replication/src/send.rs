//! Messages with entries: their bodies come from memory, or back from the disk.

use crate::consensus::from_raft;
use crate::group::Group;
use crate::message::{Place, Step, entry_blocks};
use crate::outbox::Context;
use crate::{Message, ReplicaId};
use blocks::{Entry, EntryError};
use std::collections::BTreeMap;

/// Bytes of payload in one message at most, in blocks: 2 MiB.
const MOST_APPEND_BLOCKS: usize = 512;

/// A message whose entries are being read back from the disk.
#[derive(Debug)]
pub(crate) struct Parked {
    to: ReplicaId,
    term: u64,
    prev: Place,
    commit: u64,
    places: Vec<Place>,
    found: BTreeMap<u64, Entry>,
}

impl Group {
    /// Sends a message, with the bodies of its entries.
    pub(crate) fn dispatch(&mut self, context: &mut Context<'_>, raw: &raft::eraftpb::Message) {
        let Some((to, term, step, places)) = from_raft(raw) else {
            return;
        };
        match step {
            Step::Append { prev, commit, .. } => {
                let parked = Parked {
                    to,
                    term,
                    prev,
                    commit,
                    places,
                    found: BTreeMap::new(),
                };
                self.send_entries(context, parked);
            }
            step => self.send(context, to, term, step),
        }
    }

    pub(crate) fn send(&self, context: &mut Context<'_>, to: ReplicaId, term: u64, step: Step) {
        let from = self.me;
        let step = self.vouched(step);
        let message = Message::Consensus {
            from,
            to,
            term,
            step,
        };
        if let Some(host) = self.host_of(to) {
            context.send(self.volume, host, message);
        }
    }

    /// Sends entries, or asks the disk for those that are not in memory.
    fn send_entries(&mut self, context: &mut Context<'_>, mut parked: Parked) {
        let mut missing = false;
        for place in &parked.places {
            let held = self
                .bodies
                .get(&place.index)
                .filter(|held| held.term == place.term);
            if let Some(held) = held {
                parked.found.insert(place.index, held.clone());
                continue;
            }
            missing = true;
            if let Ok(ticket) = context.store.read_entry(self.volume, place.index) {
                context
                    .out
                    .entries
                    .insert(ticket, (self.volume, place.index));
            }
        }
        if missing {
            return self.parked.push(parked);
        }
        let Parked {
            to,
            term,
            mut prev,
            commit,
            found,
            ..
        } = parked;
        let mut entries = Vec::new();
        let mut blocks = 0;
        for entry in found.into_values() {
            let more = entry_blocks(&entry);
            if blocks + more > MOST_APPEND_BLOCKS && !entries.is_empty() {
                let part = std::mem::take(&mut entries);
                prev = self.send_part(context, to, term, prev, commit, part);
                blocks = 0;
            }
            blocks += more;
            entries.push(entry);
        }
        self.send_part(context, to, term, prev, commit, entries);
    }

    fn send_part(
        &self,
        context: &mut Context<'_>,
        to: ReplicaId,
        term: u64,
        prev: Place,
        commit: u64,
        entries: Vec<Entry>,
    ) -> Place {
        let last = entries.last().map_or(prev, |entry| Place {
            index: entry.index,
            term: entry.term,
        });
        let step = Step::Append {
            prev,
            commit,
            entries,
        };
        self.send(context, to, term, step);
        last
    }

    /// An entry was read back.
    pub(crate) fn entry_read(
        &mut self,
        context: &mut Context<'_>,
        index: u64,
        result: Result<Entry, EntryError>,
    ) {
        // Who lacks what cannot be sent is told so, and takes chunks.
        match result {
            Err(EntryError::Compacted { .. }) => {
                let info = context.store.volume(self.volume);
                self.trim(info.map_or(0, |info| info.first));
            }
            Err(EntryError::Damaged { .. }) if index <= self.applied => self.trim(index + 1),
            _ => {}
        }
        let wants = |parked: &Parked| parked.places.iter().any(|place| place.index == index);
        let (wanting, rest): (Vec<_>, Vec<_>) = std::mem::take(&mut self.parked)
            .into_iter()
            .partition(wants);
        self.parked = rest;
        let term = self.term();
        for mut parked in wanting {
            let right = |entry: &Entry| {
                let place = Place {
                    index,
                    term: entry.term,
                };
                parked.places.contains(&place) && parked.term == term
            };
            // Who does not get them asks again; the consensus then knows what is left.
            let Some(entry) = result.as_ref().ok().filter(|entry| right(entry)) else {
                continue;
            };
            parked.found.insert(index, entry.clone());
            if parked.found.len() < parked.places.len() {
                self.parked.push(parked);
                continue;
            }
            let Parked {
                to,
                prev,
                commit,
                found,
                ..
            } = parked;
            for entry in found.into_values() {
                let before = prev_of(prev, entry.index, |at| {
                    self.node.raft.raft_log.term(at).ok()
                });
                let Some(before) = before else { break };
                self.send_part(context, to, term, before, commit, vec![entry]);
            }
        }
    }
}

/// The place before an entry, where the first of a message has its own.
fn prev_of(prev: Place, index: u64, term_at: impl Fn(u64) -> Option<u64>) -> Option<Place> {
    if index == prev.index + 1 {
        return Some(prev);
    }
    let term = term_at(index - 1)?;
    Some(Place {
        index: index - 1,
        term,
    })
}
