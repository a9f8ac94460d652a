//! One column's cells, one after the other in one lab.

use crate::fabric::Fabric;
use crate::{Cell, Column, Row};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A column's lab, made when the first of its cells is to run.
pub(crate) struct Lane {
    column: Column,
    turns: Mutex<Turns>,
    changed: Condvar,
    fabric: Mutex<Option<Fabric>>,
}

/// Who waits, by row, and whether somebody runs.
#[derive(Default)]
struct Turns {
    waiting: BTreeSet<usize>,
    busy: bool,
}

thread_local! {
    static CELL: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Panics say from now on in which cell they are.
pub(crate) fn name_panics() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        eprintln!("in {}:", CELL.with_borrow(Clone::clone));
        usual(panic);
    }));
}

impl Lane {
    pub(crate) fn new(column: Column) -> Self {
        Self {
            column,
            turns: Mutex::default(),
            changed: Condvar::new(),
            fabric: Mutex::default(),
        }
    }

    /// Runs a cell when it is its turn, rows above it first; how long it took.
    pub(crate) fn run(
        &self,
        name: &str,
        number: usize,
        row: &Row,
    ) -> (Result<Cell, String>, Duration) {
        CELL.set(name.to_owned());
        self.turns().waiting.insert(number);
        loop {
            let mut turns = self.turns();
            while turns.busy || turns.waiting.first() != Some(&number) {
                let woken = self.changed.wait(turns);
                turns = woken.unwrap_or_else(PoisonError::into_inner);
            }
            turns.busy = true;
            drop(turns);
            let mut fabric = self.fabric.lock().unwrap_or_else(PoisonError::into_inner);
            let start = Instant::now();
            let outcome = match fabric.take() {
                // While it comes up, cells of higher rows may have come.
                None => caught(|| *fabric = Some(Fabric::up(self.column)))
                    .err()
                    .map(Err),
                Some(lab) => Some(self.in_lab(&mut fabric, lab, row)),
            };
            drop(fabric);
            let mut turns = self.turns();
            turns.busy = false;
            if outcome.is_some() {
                turns.waiting.remove(&number);
            }
            drop(turns);
            self.changed.notify_all();
            if let Some(outcome) = outcome {
                return (outcome, start.elapsed());
            }
        }
    }

    /// A lab in which something failed is not used again.
    fn in_lab(&self, kept: &mut Option<Fabric>, lab: Fabric, row: &Row) -> Result<Cell, String> {
        let outcome = caught(|| {
            let cell = (row.run)(&lab);
            lab.is_as_it_was();
            cell
        });
        match outcome {
            Ok(_) => *kept = Some(lab),
            // Its logs were of use while it failed; taking it down must not hide why.
            Err(_) => {
                lab.show_logs();
                drop(caught(|| drop(lab)));
            }
        }
        outcome
    }

    /// Takes its lab down.
    pub(crate) fn clear(&self) {
        drop(
            self.fabric
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take(),
        );
    }

    fn turns(&self) -> MutexGuard<'_, Turns> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a panic said.
fn caught<T>(run: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(run)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string))
            .unwrap_or_else(|| "a panic without words".to_owned())
    })
}
