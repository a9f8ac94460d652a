//! What a block may hold, given what clients asked for and were told: linearizability, by search.

use std::collections::{BTreeMap, BTreeSet};

/// One way in which all that happened may have happened: what the block holds, which of the open writes
/// took effect, and what open reads may have seen.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Way {
    value: u64,
    done: BTreeSet<u64>,
    seen: BTreeMap<u64, BTreeSet<u64>>,
}

/// A block. 0 are zeroes; each write has a value of its own.
#[derive(Debug, Clone)]
pub(crate) struct Register {
    ways: BTreeSet<Way>,
    /// Writes that were asked for and not answered, and their values.
    open: BTreeMap<u64, u64>,
    history: Vec<String>,
}

/// Ways after which the search gives up.
const MOST_WAYS: usize = 20_000;

impl Default for Register {
    fn default() -> Self {
        let way = Way {
            value: 0,
            done: BTreeSet::new(),
            seen: BTreeMap::new(),
        };
        Self {
            ways: BTreeSet::from([way]),
            open: BTreeMap::new(),
            history: Vec::new(),
        }
    }
}

impl Register {
    pub(crate) fn write(&mut self, op: u64, value: u64) {
        self.history.push(format!("write {op} of {value}"));
        self.open.insert(op, value);
    }

    pub(crate) fn read(&mut self, op: u64) {
        self.history.push(format!("read {op}"));
        let ways = std::mem::take(&mut self.ways).into_iter().map(|mut way| {
            way.seen.insert(op, BTreeSet::from([way.value]));
            way
        });
        self.ways = ways.collect();
    }

    /// A write is answered as done.
    pub(crate) fn written(&mut self, op: u64) -> Result<(), String> {
        self.history.push(format!("write {op} done"));
        self.spread();
        self.ways.retain(|way| way.done.contains(&op));
        self.forget_write(op);
        self.check()
    }

    /// A read brought this.
    pub(crate) fn was_read(&mut self, op: u64, value: u64) -> Result<(), String> {
        self.history.push(format!("read {op} brought {value}"));
        self.spread();
        self.ways
            .retain(|way| way.seen.get(&op).is_some_and(|seen| seen.contains(&value)));
        self.forget_read(op);
        self.check()
    }

    /// A read is not answered.
    pub(crate) fn forget_read(&mut self, op: u64) {
        let ways = std::mem::take(&mut self.ways).into_iter().map(|mut way| {
            way.seen.remove(&op);
            way
        });
        self.ways = ways.collect();
    }

    /// A write took effect by now, or never will.
    pub(crate) fn over(&mut self, op: u64) {
        self.history.push(format!("write {op} over"));
        self.spread();
        self.forget_write(op);
    }

    fn forget_write(&mut self, op: u64) {
        self.open.remove(&op);
        let ways = std::mem::take(&mut self.ways).into_iter().map(|mut way| {
            way.done.remove(&op);
            way
        });
        self.ways = ways.collect();
    }

    /// Lets open writes take effect in all orders, or not.
    fn spread(&mut self) {
        let mut pending: Vec<Way> = self.ways.iter().cloned().collect();
        while let Some(way) = pending.pop() {
            for (op, value) in &self.open {
                if way.done.contains(op) {
                    continue;
                }
                let mut next = way.clone();
                next.value = *value;
                next.done.insert(*op);
                next.seen
                    .values_mut()
                    .for_each(|seen| _ = seen.insert(*value));
                if self.ways.insert(next.clone()) {
                    pending.push(next);
                }
            }
            assert!(self.ways.len() < MOST_WAYS, "too much is open at once");
        }
    }

    fn check(&self) -> Result<(), String> {
        if self.ways.is_empty() {
            let from = self.history.len().saturating_sub(40);
            return Err(format!("not linearizable: {:#?}", &self.history[from..]));
        }
        Ok(())
    }
}

#[test]
fn a_stale_read_is_found() {
    let mut register = Register::default();
    register.write(1, 10);
    register.written(1).unwrap();
    register.read(2);
    register.write(3, 30);
    assert!(register.clone().was_read(2, 10).is_ok());
    assert!(register.clone().was_read(2, 30).is_ok());
    register.written(3).unwrap();
    register.read(4);
    assert!(register.clone().was_read(4, 10).is_err());
    assert!(register.was_read(2, 0).is_err());
}

#[test]
fn a_write_that_comes_after_its_end_is_found() {
    let mut register = Register::default();
    register.write(1, 10);
    register.over(1);
    register.write(2, 20);
    register.written(2).unwrap();
    register.read(3);
    assert!(register.was_read(3, 10).is_err());
}
