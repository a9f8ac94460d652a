//! The EVPN scenario matrix: each scenario in each pairing of speakers, on real kernels.
//!
//! A column is a lab: its hosts, who speaks EVPN on them, and who reflects. A row is a scenario. A
//! cell is a test of its own, named `COLUMN::ROW`; it passes, fails, or does not apply, and then
//! says why. The labs are made when the first of their cells runs, one at a time.
//!
//! `make evpn-matrix` runs all of it; plain `cargo test` leaves it out. `VPC_MATRIX=FILE` writes the
//! table between the marks in that file.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the table is the output"
)]

mod fabric;
mod foreign;
mod guest;
mod raw;
mod rows;
mod table;

use fabric::Fabric;
use libtest_mimic::{Arguments, Failed, Trial};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use table::Table;

/// Who speaks to whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Column {
    /// Our speaker on every host, our reflector.
    BuiltIn,
    /// FRR on `c1`, our speaker elsewhere, our reflector.
    FrrClient,
    /// Our speaker on every host, FRR reflects.
    FrrReflector,
    /// Our speaker on every host, GoBGP reflects.
    GobgpReflector,
}

impl Column {
    pub(crate) const ALL: [Self; 4] = [
        Self::BuiltIn,
        Self::FrrClient,
        Self::FrrReflector,
        Self::GobgpReflector,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::BuiltIn => "builtin",
            Self::FrrClient => "frr_client",
            Self::FrrReflector => "frr_reflector",
            Self::GobgpReflector => "gobgp_reflector",
        }
    }

    fn heading(self) -> &'static str {
        match self {
            Self::BuiltIn => "built-in and built-in",
            Self::FrrClient => "FRR 8.4.4 client",
            Self::FrrReflector => "FRR 8.4.4 reflector",
            Self::GobgpReflector => "GoBGP 3.10 reflector",
        }
    }
}

/// What came of a scenario that did not fail.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(dead_code, reason = "the rows to come")]
pub(crate) enum Cell {
    Pass,
    /// With the reason.
    NotApplicable(&'static str),
}

/// A scenario.
pub(crate) struct Row {
    pub(crate) id: &'static str,
    /// What it is about, in a few words.
    pub(crate) case: &'static str,
    /// Panics if it fails.
    pub(crate) run: fn(&Fabric) -> Cell,
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Two labs at once would only wait for each other.
    arguments.test_threads = Some(1);
    let fabric: Arc<Mutex<Option<Fabric>>> = Arc::default();
    let table = Arc::new(Mutex::new(Table::default()));
    let mut trials = Vec::new();
    for column in Column::ALL {
        for row in rows::ALL {
            let (fabric, table) = (Arc::clone(&fabric), Arc::clone(&table));
            let name = format!("{}::{}", column.name(), row.id.to_lowercase());
            let trial = Trial::test(name, move || {
                let mut fabric = fabric.lock().unwrap_or_else(PoisonError::into_inner);
                let outcome = run(&mut fabric, column, row);
                let mut table = table.lock().unwrap_or_else(PoisonError::into_inner);
                table.put(row.id, column, outcome.clone());
                outcome.map(|_| ()).map_err(Failed::from)
            });
            // It takes too long for each change, and shows what does not hold yet, too.
            trials.push(trial.with_ignored_flag(true));
        }
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    let mut fabric = fabric.lock().unwrap_or_else(PoisonError::into_inner);
    drop(fabric.take());
    let table = table.lock().unwrap_or_else(PoisonError::into_inner);
    if let Err(error) = table.show() {
        eprintln!("error: {error}");
        return ExitCode::FAILURE;
    }
    conclusion.exit_code()
}

/// One cell, in the lab of its column. A lab in which something failed is not used again.
fn run(fabric: &mut Option<Fabric>, column: Column, row: &'static Row) -> Result<Cell, String> {
    let result = catch_unwind(AssertUnwindSafe(|| {
        if fabric.as_ref().is_none_or(|lab| lab.column != column) {
            drop(fabric.take());
            *fabric = Some(Fabric::up(column));
        }
        let fabric = fabric.as_ref().expect("it was just made");
        let cell = (row.run)(fabric);
        fabric.is_as_it_was();
        cell
    }));
    result.map_err(|panic| {
        // Its logs were of use while it failed; taking it down must not hide why.
        if let Some(lab) = fabric.take() {
            lab.show_logs();
            drop(catch_unwind(AssertUnwindSafe(|| drop(lab))));
        }
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string))
            .unwrap_or_else(|| "a panic without words".to_owned())
    })
}
