//! Room for what is yet to take effect, and what is said where there is none.

use crate::ahead::{Ahead, Effect, Ground};
use crate::log::Kind;
use crate::map::levels;
use crate::space::{Need, Space};
use crate::store::GROW_PAGES;
use crate::volume::Volume;
use crate::{Refused, Store};

impl Store {
    /// Why that much is not there; asks for a checkpoint if that would help.
    pub(crate) fn no_room(&mut self, need: Need, free: u32) -> Refused {
        let needed = need.extents;
        if free >= needed {
            return Refused::MapFull;
        }
        if free as usize + self.space.freed_soon() >= needed as usize {
            self.checkpoint_wanted = true;
            return Refused::NotYet { needed };
        }
        if self.free_in_the_end(needed) >= needed {
            return Refused::NotYet { needed };
        }
        Refused::NoSpace { free, needed }
    }

    /// Extents that are free once all that was accepted took effect and is in a checkpoint, as far as it
    /// is known to be more than `enough`. Nobody asks unless there is no room.
    fn free_in_the_end(&self, enough: u32) -> u32 {
        let held = || self.volumes.values().filter(|held| held.broken.is_none());
        let mut free = self.space.extents.free() + self.space.freed_soon() as u32;
        let mut come = 0;
        for held in held() {
            let ahead = held.log.after(held.folded.0);
            if held.is_mixed() {
                come += ahead.map(|(_, entry)| entry.need.extents).sum::<u32>();
                continue;
            }
            for (_, entry) in ahead {
                if let Kind::Redirected { extents, .. } = &entry.kind {
                    free += extents.len() as u32;
                }
            }
            come += held.ahead.come(&held.map);
        }
        let wanted = enough + come;
        for held in held().filter(|held| !held.is_mixed()) {
            free += held.ahead.go(&held.map, wanted.saturating_sub(free));
        }
        free.saturating_sub(come)
    }
}

impl Volume {
    /// What the next entry finds when it takes effect, if it makes the volume so large.
    pub(crate) fn ground<'a>(&'a self, ahead: Option<&'a Ahead>, blocks: u64) -> Ground<'a> {
        Ground {
            map: &self.map,
            epoch: self.epoch,
            levels: self.map.levels().max(levels(blocks)),
            ahead,
        }
    }

    /// The next entry is this; gives what it may take when it takes effect.
    pub(crate) fn foresee(&mut self, index: u64, epoch: u64, effect: &Effect) -> Need {
        if self.is_mixed() {
            return self.most_need(effect);
        }
        let mut ahead = std::mem::take(&mut self.ahead);
        let need = ahead.add(
            index,
            epoch,
            effect,
            self.ground(None, self.blocks_in_log()),
        );
        self.ahead = ahead;
        need
    }

    /// What an entry may take whatever becomes of those before it: in a mixed volume they may have no
    /// effect, and extents that are there may go.
    pub(crate) fn most_need(&self, effect: &Effect) -> Need {
        match effect {
            Effect::Write(blocks) => {
                let number = blocks.end - blocks.start;
                self.map.need(blocks.start, number, true)
            }
            Effect::Grow => Need {
                extents: 0,
                pages: GROW_PAGES,
            },
            Effect::Zero(_) | Effect::Attach | Effect::Nothing => Need::default(),
        }
    }

    /// What the map will be once the entries up to this one took effect.
    pub(crate) fn ahead_at(&self, last: u64) -> Ahead {
        let mut ahead = Ahead::default();
        if self.is_mixed() {
            return ahead;
        }
        let entries = self.log.after(self.folded.0);
        for (index, entry) in entries.take_while(|(index, _)| *index <= last) {
            let effect = Effect::of_kind(&entry.kind);
            ahead.add(
                index,
                entry.epoch,
                &effect,
                self.ground(None, self.blocks_at(index)),
            );
        }
        ahead
    }

    /// Reckons anew what entries that are yet to take effect may take.
    pub(crate) fn reckon(&mut self, space: &mut Space) {
        self.ahead = Ahead::default();
        let entries = self.log.after(self.folded.0);
        let entries = entries.map(|(index, entry)| {
            let redirected = matches!(entry.kind, Kind::Redirected { .. });
            (index, entry.epoch, Effect::of_kind(&entry.kind), redirected)
        });
        let entries: Vec<_> = entries.collect();
        for (index, epoch, effect, redirected) in entries {
            let mut need = self.foresee(index, epoch, &effect);
            if redirected {
                need.extents = 0;
            }
            let entry = self.log.get_mut(index).expect("it was just there");
            space.take_back(std::mem::replace(&mut entry.need, need));
            space.promise(need);
        }
    }
}

/// Before a volume is mixed: its entries may find extents gone that were there when they were accepted,
/// or be without effect. False: there is no room for that.
pub(crate) fn promise_all(held: &mut Volume, space: &mut Space) -> bool {
    let mut more = Vec::new();
    let mut sum = Need::default();
    for (index, entry) in held.log.after(held.folded.0) {
        if let Kind::Write { .. } | Kind::Redirected { .. } = &entry.kind {
            let mut need = held.most_need(&Effect::of_kind(&entry.kind));
            if let Kind::Redirected { .. } = &entry.kind {
                need.extents = 0;
            }
            sum.extents += need.extents.saturating_sub(entry.need.extents);
            sum.pages += need.pages.saturating_sub(entry.need.pages);
            more.push((index, need));
        }
    }
    if !space.has(sum) {
        return false;
    }
    for (index, need) in more {
        let entry = held.log.get_mut(index).expect("it was just there");
        let old = std::mem::replace(&mut entry.need, need);
        space.take_back(old);
        space.promise(need);
    }
    true
}
