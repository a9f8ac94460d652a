//! Numbers that are handed out once: addresses, MACs, VLANs and VNIs, as `u128`.

use model::{ObjectId, UnixMillis};
use std::collections::BTreeMap;
use std::ops::RangeInclusive;

/// Who has which number, and which are on hold. Every answer is found in O(log n).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Pool {
    owners: BTreeMap<u128, ObjectId>,
    held: BTreeMap<u128, UnixMillis>,
    /// Owned or held, merged into stretches: start to end, both inside. The lowest free number is
    /// one step past the stretch that covers the first.
    busy: BTreeMap<u128, u128>,
}

/// What a number is at a given time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Free,
    Owned(ObjectId),
    Held(UnixMillis),
}

impl Pool {
    pub(crate) fn state(&self, number: u128, now: UnixMillis) -> State {
        if let Some(owner) = self.owners.get(&number) {
            return State::Owned(*owner);
        }
        match self.held.get(&number) {
            Some(until) if *until > now => State::Held(*until),
            _ => State::Free,
        }
    }

    /// The lowest number in `range` that is free at `now`. Holds that ended since the last
    /// [`Pool::release`] are looked at only when nothing else is left.
    pub(crate) fn lowest_free(&self, range: RangeInclusive<u128>, now: UnixMillis) -> Option<u128> {
        let (first, last) = range.clone().into_inner();
        if first > last {
            return None;
        }
        let candidate = match self.stretch_of(first) {
            None => first,
            Some((_, end)) if end < last => end + 1,
            Some(_) => return self.ended(range, now),
        };
        debug_assert!(self.stretch_of(candidate).is_none(), "stretches are merged");
        Some(candidate)
    }

    /// When the next number of `range` that is on hold becomes free.
    pub(crate) fn next_release(&self, range: RangeInclusive<u128>) -> Option<UnixMillis> {
        self.held.range(range).map(|(_, until)| *until).min()
    }

    pub(crate) fn own(&mut self, number: u128, owner: ObjectId) -> Result<(), ObjectId> {
        if let Some(other) = self.owners.insert(number, owner) {
            self.owners.insert(number, other);
            return Err(other);
        }
        if self.held.remove(&number).is_none() {
            self.fill(number);
        }
        Ok(())
    }

    pub(crate) fn disown(&mut self, number: u128) {
        if self.owners.remove(&number).is_some() && !self.held.contains_key(&number) {
            self.clear(number);
        }
    }

    pub(crate) fn hold(&mut self, number: u128, until: UnixMillis) {
        if self.held.insert(number, until).is_none() && !self.owners.contains_key(&number) {
            self.fill(number);
        }
    }

    /// Ends the hold of `number` if it lasts until `until` at most; a later hold stays.
    pub(crate) fn release(&mut self, number: u128, until: UnixMillis) {
        if self.held.get(&number).is_some_and(|held| *held <= until) {
            self.held.remove(&number);
            if !self.owners.contains_key(&number) {
                self.clear(number);
            }
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.busy.is_empty()
    }

    fn ended(&self, range: RangeInclusive<u128>, now: UnixMillis) -> Option<u128> {
        self.held
            .range(range)
            .find(|(number, until)| **until <= now && !self.owners.contains_key(number))
            .map(|(number, _)| *number)
    }

    fn stretch_of(&self, number: u128) -> Option<(u128, u128)> {
        let (start, end) = self.busy.range(..=number).next_back()?;
        (*end >= number).then_some((*start, *end))
    }

    fn fill(&mut self, number: u128) {
        let start = match number
            .checked_sub(1)
            .and_then(|below| self.stretch_of(below))
        {
            Some((start, _)) => start,
            None => number,
        };
        let end = match number.checked_add(1) {
            Some(above) => self.busy.remove(&above).unwrap_or(number),
            None => number,
        };
        self.busy.insert(start, end);
    }

    fn clear(&mut self, number: u128) {
        let (start, end) = self
            .stretch_of(number)
            .expect("a number that is owned or held is in a stretch");
        self.busy.remove(&start);
        if start < number {
            self.busy.insert(start, number - 1);
        }
        if number < end {
            self.busy.insert(number + 1, end);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::NicId;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn owner(bits: u64) -> ObjectId {
        ObjectId::Nic(NicId::from_random(bits))
    }

    #[test]
    fn a_hold_ends_in_time_and_not_before() {
        let mut pool = Pool::default();
        let (t9, t10) = (UnixMillis(9), UnixMillis(10));
        for number in 2..=3 {
            pool.own(number, owner(1)).unwrap();
        }
        pool.disown(2);
        pool.hold(2, t10);
        assert_eq!(pool.state(2, t9), State::Held(t10));
        assert_eq!(pool.state(2, t10), State::Free);
        assert_eq!(pool.lowest_free(2..=3, t9), None);
        assert_eq!(pool.lowest_free(2..=4, t9), Some(4));
        assert_eq!(pool.next_release(2..=3), Some(t10));
        assert_eq!(pool.lowest_free(2..=3, t10), Some(2));
        pool.release(2, t10);
        assert_eq!(pool.lowest_free(2..=4, t9), Some(2));
        assert_eq!(pool.own(3, owner(2)), Err(owner(1)));
    }

    proptest! {
        /// Against a plain set: stretches neither lose nor invent a number.
        #[test]
        fn stretches_agree_with_a_plain_set(steps in prop::collection::vec((0_u8..4, 0_u128..24), 1..200)) {
            let mut pool = Pool::default();
            let mut owned = BTreeSet::new();
            let mut held = BTreeSet::new();
            let until = UnixMillis(10);
            for (step, number) in steps {
                match step {
                    0 => { if pool.own(number, owner(1)).is_ok() { owned.insert(number); held.remove(&number); } }
                    1 => { pool.disown(number); owned.remove(&number); }
                    2 => { pool.hold(number, until); held.insert(number); }
                    _ => { pool.release(number, until); held.remove(&number); }
                }
                let free = (0..24).find(|n| !owned.contains(n) && !held.contains(n));
                prop_assert_eq!(pool.lowest_free(0..=23, UnixMillis(0)), free);
                prop_assert_eq!(pool.is_empty(), owned.is_empty() && held.is_empty());
                let ends: Vec<_> = pool.busy.iter().collect();
                prop_assert!(ends.windows(2).all(|w| *w[0].1 + 1 < *w[1].0), "not merged: {:?}", ends);
            }
        }
    }
}
