//! Tables that are looked up for each frame, and never walked.

use crate::packet::Mixer;
#[expect(
    clippy::disallowed_types,
    reason = "looked up for each frame and never walked, so that their order is nobody's"
)]
use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, Hasher};

#[expect(
    clippy::disallowed_types,
    reason = "looked up for each frame and never walked, so that their order is nobody's"
)]
pub(crate) type Map<K, V> = HashMap<K, V, Seed>;

/// Makes tables of hosts differ, so that nobody can choose keys that meet in them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seed(pub(crate) u64);

impl BuildHasher for Seed {
    type Hasher = Mixing;
    fn build_hasher(&self) -> Mixing {
        Mixing(Mixer::seeded(self.0))
    }
}

/// Short keys, hashed in a few instructions.
#[derive(Debug)]
pub(crate) struct Mixing(Mixer);

impl Hasher for Mixing {
    fn write(&mut self, bytes: &[u8]) {
        self.0.bytes(bytes);
    }

    fn write_u16(&mut self, word: u16) {
        self.0.word(u32::from(word));
    }

    fn write_u32(&mut self, word: u32) {
        self.0.word(word);
    }

    fn write_usize(&mut self, word: usize) {
        self.0.word(word as u32);
    }

    fn write_isize(&mut self, word: isize) {
        self.0.word(word as u32);
    }

    fn finish(&self) -> u64 {
        self.0.wide()
    }
}

/// Values that have a number as long as they are there.
#[derive(Debug)]
pub(crate) struct Slots<K, V> {
    pub(crate) seed: Seed,
    numbers: Map<K, usize>,
    values: Vec<Option<(K, V)>>,
    free: Vec<usize>,
}

impl<K: Copy + Eq + Hash, V> Slots<K, V> {
    pub(crate) fn new(seed: Seed) -> Self {
        Self {
            seed,
            numbers: Map::with_hasher(seed),
            values: Vec::new(),
            free: Vec::new(),
        }
    }

    pub(crate) fn number(&self, key: &K) -> Option<usize> {
        self.numbers.get(key).copied()
    }

    pub(crate) fn get(&self, number: usize) -> (K, &V) {
        let (key, value) = self.values[number].as_ref().expect("it is there");
        (*key, value)
    }

    pub(crate) fn get_mut(&mut self, number: usize) -> (K, &mut V) {
        let (key, value) = self.values[number].as_mut().expect("it is there");
        (*key, value)
    }

    pub(crate) fn get_or_insert(&mut self, key: K, make: impl FnOnce() -> V) -> &mut V {
        let number = match self.numbers.get(&key) {
            Some(number) => *number,
            None => {
                let number = self.free.pop().unwrap_or(self.values.len());
                if number == self.values.len() {
                    self.values.push(None);
                }
                self.values[number] = Some((key, make()));
                self.numbers.insert(key, number);
                number
            }
        };
        self.get_mut(number).1
    }

    /// Forgets the value of a key if it is empty.
    pub(crate) fn tidy(&mut self, key: &K, is_empty: impl FnOnce(&V) -> bool) {
        let number = self.number(key);
        if let Some(number) = number.filter(|number| is_empty(self.get(*number).1)) {
            self.values[number] = None;
            self.free.push(number);
            self.numbers.remove(key);
        }
    }

    pub(crate) fn values_mut(&mut self) -> impl Iterator<Item = &mut V> {
        self.values.iter_mut().flatten().map(|(_, value)| value)
    }
}
