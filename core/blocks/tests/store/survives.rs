//! What a store has to have after a crash, of all that was asked of it.

use crate::model::Volume;
use crate::world::World;
use blocks::{Recovered, Store, VolumeId};
use std::collections::BTreeSet;

impl World {
    /// A loss of power damages what was never told to be durable, and nothing else.
    pub(crate) fn check_damaged(&mut self, recovered: &Recovered) {
        let known = std::mem::take(&mut self.model.damaged);
        for entry in &recovered.damaged {
            let name = (entry.volume, entry.index, entry.term);
            if !self.may_be_damaged {
                let held = self.model.volumes.get(&entry.volume);
                let deleted = self.model.deleted.get(&entry.volume).map(|(_, held)| held);
                let made = held
                    .or(deleted)
                    .and_then(|it| it.made.get(&(name.1, name.2)));
                let open = made.is_some_and(|made| *made > self.model.durable);
                assert!(open || known.contains(&name), "false-damage: {entry:?}");
                assert!(!entry.applied, "false-damage: {entry:?}");
            }
            if !entry.applied {
                self.model.damaged.insert(name);
            }
        }
        if !self.may_be_damaged {
            assert_eq!(recovered.damaged_headers, Vec::<u64>::new());
        }
    }

    pub(crate) fn check_volumes(&mut self) {
        let durable = self.model.durable;
        let there: BTreeSet<VolumeId> = self.store.volumes().collect();
        for (volume, (operation, held)) in std::mem::take(&mut self.model.deleted) {
            if operation <= durable {
                assert!(
                    !there.contains(&volume) || self.model.volumes.contains_key(&volume),
                    "deleted-is-back: {volume}"
                );
            } else if there.contains(&volume) {
                self.model.volumes.insert(volume, held);
            }
        }
        let known: Vec<VolumeId> = self.model.volumes.keys().copied().collect();
        for volume in known {
            if !there.contains(&volume) {
                let created = self.model.volumes[&volume].created;
                assert!(
                    created > durable,
                    "volume-lost: {volume}, made by {created}, durable {durable}"
                );
                self.model.volumes.remove(&volume);
                continue;
            }
            self.check_volume(volume);
        }
        for volume in there {
            let known = self.model.volumes.contains_key(&volume) || self.may_be_damaged;
            assert!(known, "volume-from-nowhere: {volume}");
        }
        self.model.durable = self.model.operation;
    }

    fn check_volume(&mut self, volume: VolumeId) {
        let durable = self.model.durable;
        let operation = self.model.operation;
        let info = self.store.volume(volume).expect("just listed");
        if info.broken.is_some() {
            assert!(self.may_be_damaged, "broken: {:?}", info.broken);
            self.model.volumes.remove(&volume);
            return;
        }
        let held = self.model.volumes.get_mut(&volume).expect("known");
        let (terms, since) = surviving_log(&self.machine.store, volume, held, durable);
        assert!(
            since.is_some(),
            "log-lost: {volume} has {terms:?}; durable operation {durable}, history {:?}",
            held.history
        );
        let hard = (info.hard.term, info.hard.vote);
        let newest = held
            .hard
            .iter()
            .rposition(|(operation, _)| *operation <= durable)
            .unwrap_or(0);
        assert!(
            held.hard[newest..].iter().any(|(_, known)| *known == hard),
            "vote-lost: {volume} has {hard:?}, told {:?}, durable {durable}",
            held.hard
        );
        let most = held.most_commit(durable);
        assert!(
            info.applied <= most,
            "commit-from-nowhere: {volume} is at {} and was told {most}",
            info.applied
        );
        let newest = held
            .sizes
            .iter()
            .rposition(|(operation, _)| *operation <= durable)
            .unwrap_or(0);
        assert!(
            held.sizes[newest..]
                .iter()
                .any(|(_, blocks)| *blocks == info.blocks),
            "size-lost: {volume}"
        );
        held.sizes = vec![(operation, info.blocks)];
        held.hard = vec![(operation, hard)];
        let damaged = &self.model.damaged;
        let is_damaged = |index: u64| {
            let term = terms[index as usize - 1];
            damaged.contains(&(volume, index, term))
        };
        held.restart(operation, durable, &terms, info.applied, is_damaged);
        self.same_digest(volume);
    }
}

/// The terms of a store's log, and the operation of which it is a part, if it is one that may survive:
/// a beginning of what the log was at some time after the last durable operation, with all that was
/// durable by then and never replaced.
fn surviving_log(
    store: &Store,
    volume: VolumeId,
    held: &Volume,
    durable: u64,
) -> (Vec<u64>, Option<u64>) {
    let info = store.volume(volume).expect("known");
    let before = held
        .history
        .iter()
        .rposition(|(operation, _)| *operation <= durable)
        .unwrap_or(0);
    let at_durable = &held.history[before].1;
    // What was durable and never cut since.
    let sure = held.history[before..]
        .iter()
        .map(|(_, terms)| common(terms, at_durable))
        .min()
        .unwrap_or(0);
    let known: Vec<Option<u64>> = (1..=info.last)
        .map(|index| store.term(volume, index))
        .collect();
    let found = held.history[before..].iter().find(|(_, terms)| {
        let fits = known
            .iter()
            .zip(terms)
            .all(|(found, term)| found.is_none_or(|found| found == *term));
        info.last as usize <= terms.len() && fits && info.last as usize >= sure
    });
    let terms = found.map(|(_, terms)| terms[..info.last as usize].to_vec());
    (
        terms.unwrap_or_default(),
        found.map(|(operation, _)| *operation),
    )
}

fn common(one: &[u64], other: &[u64]) -> usize {
    one.iter()
        .zip(other)
        .take_while(|(one, other)| one == other)
        .count()
}
