//! What a volume's map will be once all of its log took effect: each extent and page that entries are
//! yet to take is promised once, whoever of them comes first.

use crate::EXTENT_BLOCKS;
use crate::log::{Body, Kind};
use crate::map::{Map, mask, path_of};
use crate::space::Need;
use crate::store::GROW_PAGES;
use std::collections::{BTreeMap, VecDeque};
use std::ops::{Range, RangeInclusive};

/// What an entry does to a map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Effect {
    /// These blocks are written.
    Write(Range<u64>),
    /// These read as zeroes.
    Zero(Range<u64>),
    /// Writes of earlier epochs have no effect from then on.
    Attach,
    /// The map may be higher.
    Grow,
    Nothing,
}

/// What it will be, where that is not what it is.
#[derive(Debug, Default)]
pub(crate) struct Ahead {
    extents: BTreeMap<u64, Expected>,
    /// Pages by level and number, each with the last entry that needs it.
    pages: BTreeMap<(u32, u64), u64>,
    /// Entries that empty blocks, for extents that no entry writes.
    zeros: VecDeque<(u64, Range<u64>)>,
    epoch: u64,
}

/// An extent that entries write.
#[derive(Debug, Clone, Copy)]
struct Expected {
    /// The last entry that changes it.
    last: u64,
    /// Its blocks that are there then.
    valid: u16,
}

/// What entries find: the map, and what comes before them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ground<'a> {
    pub(crate) map: &'a Map,
    pub(crate) epoch: u64,
    /// Of the map, once it is as large as the log makes it.
    pub(crate) levels: u32,
    pub(crate) ahead: Option<&'a Ahead>,
}

impl Effect {
    pub(crate) fn of_body(body: &Body) -> Self {
        match body {
            Body::Write { lba, data } => Self::Write(*lba..lba + data.blocks() as u64),
            Body::Zero { lba, blocks } => Self::Zero(*lba..lba + blocks),
            Body::Attach => Self::Attach,
            Body::Grow { .. } => Self::Grow,
            Body::Config(_) | Body::Empty => Self::Nothing,
        }
    }

    pub(crate) fn of_kind(kind: &Kind) -> Self {
        match kind {
            Kind::Write { lba, crcs, .. } | Kind::Redirected { lba, crcs, .. } => {
                Self::Write(*lba..lba + crcs.len() as u64)
            }
            Kind::Zero { lba, blocks } => Self::Zero(*lba..lba + blocks),
            Kind::Attach => Self::Attach,
            Kind::Grow { .. } => Self::Grow,
            Kind::Config(_) | Kind::Empty => Self::Nothing,
        }
    }
}

impl Ground<'_> {
    fn valid(&self, extent: u64) -> u16 {
        let is = self.map.valid(extent);
        self.ahead.map_or(is, |ahead| ahead.valid(extent, is))
    }

    fn has_page(&self, page: (u32, u64)) -> bool {
        let expected = self.ahead.is_some_and(|it| it.pages.contains_key(&page));
        expected || self.map.has_page(page)
    }

    fn fences(&self, epoch: u64) -> bool {
        epoch < self.ahead.map_or(0, |it| it.epoch).max(self.epoch)
    }
}

impl Ahead {
    /// Takes an entry in, which follows those that are in; gives what it may take when it takes effect.
    pub(crate) fn add(
        &mut self,
        index: u64,
        epoch: u64,
        effect: &Effect,
        ground: Ground<'_>,
    ) -> Need {
        let fenced = epoch < self.epoch || ground.fences(epoch);
        match effect {
            Effect::Write(_) | Effect::Zero(_) if fenced => Need::default(),
            Effect::Write(blocks) => self.write(index, blocks, ground),
            Effect::Zero(blocks) => {
                for (number, expected) in self.extents.range_mut(extents_of(blocks)) {
                    expected.valid &= !within(blocks, *number);
                    expected.last = index;
                }
                self.zeros.push_back((index, blocks.clone()));
                Need::default()
            }
            Effect::Attach => {
                self.epoch = self.epoch.max(epoch);
                Need::default()
            }
            Effect::Grow => Need {
                extents: 0,
                pages: GROW_PAGES,
            },
            Effect::Nothing => Need::default(),
        }
    }

    fn write(&mut self, index: u64, blocks: &Range<u64>, ground: Ground<'_>) -> Need {
        let mut need = Need::default();
        for number in extents_of(blocks) {
            let before = self.valid(number, ground.valid(number));
            need.extents += u32::from(before == 0);
            let valid = before | within(blocks, number);
            let last = index;
            self.extents.insert(number, Expected { last, valid });
        }
        for page in path_of(blocks, ground.levels) {
            if !ground.has_page(page) {
                need.pages += u32::from(self.pages.insert(page, index).is_none());
            }
        }
        need
    }

    /// Blocks of an extent that will be there, where these are.
    fn valid(&self, extent: u64, is: u16) -> u16 {
        if let Some(expected) = self.extents.get(&extent) {
            return expected.valid;
        }
        let zeros = self.zeros.iter();
        zeros.fold(is, |valid, (_, blocks)| valid & !within(blocks, extent))
    }

    /// An entry took effect, so the map is what was expected of it.
    pub(crate) fn took_effect(&mut self, index: u64, effect: &Effect, levels: u32) {
        let (Effect::Write(blocks) | Effect::Zero(blocks)) = effect else {
            return;
        };
        self.zeros.pop_front_if(|(first, _)| *first <= index);
        let there = self.extents.range(extents_of(blocks));
        let there = there.filter(|(_, expected)| expected.last <= index);
        let there: Vec<u64> = there.map(|(number, _)| *number).collect();
        for number in there {
            self.extents.remove(&number);
        }
        if matches!(effect, Effect::Zero(_)) {
            return;
        }
        for page in path_of(blocks, levels) {
            if self.pages.get(&page).is_some_and(|last| *last <= index) {
                self.pages.remove(&page);
            }
        }
    }

    /// Extents that the map will have more than it has.
    pub(crate) fn come(&self, map: &Map) -> u32 {
        let come = |(number, it): &(&u64, &Expected)| it.valid != 0 && map.valid(**number) == 0;
        self.extents.iter().filter(come).count() as u32
    }

    /// Extents that the map has and will have no more, at most so many.
    pub(crate) fn go(&self, map: &Map, most: u32) -> u32 {
        let written = |(number, it): &(&u64, &Expected)| it.valid == 0 && map.valid(**number) != 0;
        let written = self.extents.iter().filter(written).count() as u32;
        let emptied = self.zeros.iter().enumerate().flat_map(|(at, (_, blocks))| {
            let extents = map.extents_in(extents_of(blocks));
            // Each counts with the first that touches it.
            extents.filter(move |number| {
                let before = self.zeros.range(..at);
                !before.into_iter().any(|(_, it)| within(it, *number) != 0)
            })
        });
        let emptied = emptied.filter(|number| {
            !self.extents.contains_key(number) && self.valid(*number, map.valid(*number)) == 0
        });
        // A disk may be large, and who asks is in a hurry.
        let emptied = emptied.take(most.saturating_sub(written) as usize);
        written + emptied.count() as u32
    }
}

/// Extents that have some of these blocks.
fn extents_of(blocks: &Range<u64>) -> RangeInclusive<u64> {
    let extent = u64::from(EXTENT_BLOCKS);
    blocks.start / extent..=(blocks.end - 1) / extent
}

/// Which blocks of an extent are among these.
fn within(blocks: &Range<u64>, extent: u64) -> u16 {
    let first = extent * u64::from(EXTENT_BLOCKS);
    mask(
        blocks.start.saturating_sub(first),
        blocks.end.saturating_sub(first),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Digest;
    use crate::space::Space;

    fn ground(map: &Map) -> Ground<'_> {
        Ground {
            map,
            epoch: 0,
            levels: map.levels(),
            ahead: None,
        }
    }

    #[test]
    fn an_extent_is_needed_once_and_again_after_it_was_emptied() {
        let (map, mut ahead) = (Map::new(1 << 10), Ahead::default());
        let mut add = |index, effect| ahead.add(index, 0, &effect, ground(&map));
        let need = |extents, pages| Need { extents, pages };
        assert_eq!(add(1, Effect::Write(3..5)), need(1, 2));
        assert_eq!(add(2, Effect::Write(0..16)), need(0, 0));
        assert_eq!(add(3, Effect::Write(10..20)), need(1, 0));
        assert_eq!(add(4, Effect::Zero(0..15)), need(0, 0));
        assert_eq!(add(5, Effect::Write(1..2)), need(0, 0), "block 15 is there");
        assert_eq!(add(6, Effect::Zero(0..1024)), need(0, 0));
        assert_eq!(add(7, Effect::Write(1..20)), need(2, 0));
        assert_eq!(ahead.come(&map), 2);
    }

    #[test]
    fn what_is_fenced_is_not_expected() {
        let (map, mut ahead) = (Map::new(1 << 10), Ahead::default());
        let mut add = |index, epoch, effect| ahead.add(index, epoch, &effect, ground(&map)).extents;
        assert_eq!(add(1, 1, Effect::Write(0..1)), 1);
        assert_eq!(add(2, 2, Effect::Attach), 0);
        assert_eq!(add(3, 1, Effect::Zero(0..16)), 0);
        assert_eq!(add(4, 1, Effect::Write(16..17)), 0);
        assert_eq!(
            add(5, 2, Effect::Write(0..17)),
            1,
            "extent 0 is still there"
        );
    }

    #[test]
    fn what_took_effect_is_in_the_map() {
        let (mut map, mut ahead) = (Map::new(1 << 10), Ahead::default());
        let mut space = Space::new(8, 64);
        let effects = [
            Effect::Write(0..1),
            Effect::Zero(0..16),
            Effect::Write(0..1),
        ];
        for (index, effect) in (1..).zip(&effects) {
            ahead.add(index, 0, effect, ground(&map));
        }
        map.write(0, 7, 1, &mut space, &mut Digest::default());
        ahead.took_effect(1, &effects[0], map.levels());
        assert_eq!((ahead.come(&map), ahead.go(&map, 9)), (0, 0));
        assert_eq!(ahead.valid(0, map.valid(0)), 1);
        map.clear(0, 16, 2, &mut space, &mut Digest::default());
        ahead.took_effect(2, &effects[1], map.levels());
        assert_eq!((ahead.come(&map), ahead.zeros.len()), (1, 0));
        map.write(0, 8, 3, &mut space, &mut Digest::default());
        ahead.took_effect(3, &effects[2], map.levels());
        assert!(ahead.extents.is_empty() && ahead.pages.is_empty());
        ahead.add(4, 0, &Effect::Zero(0..1024), ground(&map));
        assert_eq!((ahead.go(&map, 9), ahead.go(&map, 0)), (1, 0));
    }
}
