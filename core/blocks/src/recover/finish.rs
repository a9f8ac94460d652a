//! From a log that was played again to a store: what is committed takes effect.

use super::replay::Replay;
use super::{DamagedEntry, Recovered};
use crate::log::Kind;
use crate::space::Space;
use crate::volume::Volume;
use crate::{Counters, Store, VolumeId};
use std::collections::{BTreeMap, VecDeque};

impl Replay {
    /// Lets committed entries take effect, and makes the store.
    pub(super) fn into_store(mut self, recovered: &mut Recovered) -> Store {
        let doubt = self.chain.in_doubt();
        let ids: Vec<VolumeId> = self.volumes.keys().copied().collect();
        self.space.pages_needed = 1 + ids.len() as u32;
        self.space.pages_needed += self
            .volumes
            .values()
            .map(|held| held.map.pages())
            .sum::<u32>();
        for id in &ids {
            let held = self.volumes.get_mut(id).expect("just listed");
            if held.broken.is_none()
                && let Err(why) = apply(held, doubt, &mut self.space, &mut recovered.damaged)
            {
                self.break_volume(*id, why);
            }
        }
        for held in self
            .volumes
            .values_mut()
            .filter(|held| held.broken.is_none())
        {
            held.reckon(&mut self.space);
        }
        let broken = self.volumes.values();
        let broken = broken.filter_map(|held| Some((held.id, held.broken.clone()?)));
        recovered.broken = broken.collect();
        let ring = self.ring.expect("the log was played");
        let carries = self
            .chain
            .links
            .iter()
            .map(|link| link.link)
            .rfind(|link| link.carries);
        let live = self.volumes.values().map(|held| held.live).sum();
        let hard_changed = self.volumes.values().filter(|held| held.hard_changed);
        let hard_changed = hard_changed.map(|held| held.id).collect();
        let mut store = Store {
            superblock: self.chain.superblock,
            volumes: self.volumes,
            space: self.space,
            ring,
            queue: VecDeque::new(),
            queued_bytes: 0,
            not_taken: self.untold,
            live,
            hard_changed,
            batch: None,
            checkpoint: None,
            checkpoint_wanted: false,
            directory_changed: self.directory_changed,
            directory: self.directory,
            reads: BTreeMap::new(),
            entry_reads: BTreeMap::new(),
            inflight: BTreeMap::new(),
            out: VecDeque::new(),
            events: VecDeque::new(),
            dead: None,
            next: self.born,
            counters: Counters::default(),
        };
        if let Some(carries) = carries
            && !store.ring.fits(0, store.reserve())
        {
            store.begin_checkpoint_again(carries);
        }
        store
    }
}

/// Lets the entries up to the commit take effect. Those without payload leave their blocks damaged, but
/// for those of a batch that may never have been durable: the others have them, and the commit is told
/// again.
fn apply(
    held: &mut Volume,
    doubt: Option<u64>,
    space: &mut Space,
    damaged: &mut Vec<DamagedEntry>,
) -> Result<(), String> {
    let mut entries = held.log.after(held.folded.0);
    let lost = entries.find(|(_, entry)| entry.is_lost() && Some(entry.batch) == doubt);
    let lost = lost.map(|(index, _)| index);
    drop(entries);
    if let Some(first) = lost
        && first <= held.hard.commit
    {
        held.hard.commit = first - 1;
        (held.hard_changed, held.changed) = (true, true);
    }
    let commit = held.hard.commit;
    held.sealed = held.log.last();
    for (index, entry) in held.log.after(held.folded.0) {
        if entry.is_lost()
            && let Kind::Write { lba, .. } | Kind::Redirected { lba, .. } = &entry.kind
        {
            let lbas = entry.lost().iter().map(|offset| lba + u64::from(*offset));
            damaged.push(DamagedEntry {
                volume: held.id,
                index,
                term: entry.term,
                applied: index <= commit,
                lbas: lbas.collect(),
            });
        }
    }
    while held.folded.0 < commit {
        let index = held.folded.0 + 1;
        if held.log.get(index).is_none() {
            return Err(format!("entry {index} is committed and not in the log"));
        }
        if !held.has_room(space) {
            return Err(format!("there is no room for entry {index}"));
        }
        // A committed entry needs no second copy: what it lacks is lacking in the blocks.
        held.log.get_mut(index).expect("just seen").durable = true;
        held.fold_next(space);
    }
    held.log.advance_durable();
    held.settle();
    Ok(())
}
