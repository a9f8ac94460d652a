//! The EVPN scenario matrix: each scenario in each pairing of speakers, on real kernels.
//!
//! A column is a lab: its hosts, who speaks EVPN on them, and who reflects. A row is a scenario. A
//! cell is a test of its own, named `COLUMN::ROW`; it passes, fails, or does not apply, and then
//! says why. Cells of a column run one after the other in its lab, columns beside each other.
//!
//! `make evpn-matrix` runs all of it; plain `cargo test` leaves it out. `VPC_MATRIX=FILE` writes the
//! table between the marks in that file, or into that which is there if only some cells are run and the
//! product is the same. `--test-threads=1` runs one column after the other.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the table is the output"
)]

mod fabric;
mod foreign;
mod guest;
mod lane;
mod outsider;
mod raw;
mod rows;
mod table;

use fabric::Fabric;
use lane::Lane;
use libtest_mimic::{Arguments, Failed, Trial};
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
pub(crate) enum Cell {
    Pass,
    /// It passes, and this is to be known about it.
    Noting(&'static str),
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
    lane::name_panics();
    let mut arguments = Arguments::from_args();
    let table = Arc::new(Mutex::new(Table::default()));
    let mut trials = Vec::new();
    let mut lanes = Vec::new();
    for column in Column::ALL {
        let lane = Arc::new(Lane::new(column));
        lanes.push(Arc::clone(&lane));
        for (number, row) in rows::ALL.iter().enumerate() {
            let (lane, table) = (Arc::clone(&lane), Arc::clone(&table));
            let name = format!("{}::{}", column.name(), row.id.to_lowercase());
            let trial = Trial::test(name.clone(), move || {
                let (outcome, took) = lane.run(&name, number, row);
                let mut table = table.lock().unwrap_or_else(PoisonError::into_inner);
                table.put(row.id, column, outcome.clone(), took);
                outcome.map(|_| ()).map_err(Failed::from)
            });
            // It takes too long for each change, and shows what does not hold yet, too.
            trials.push(trial.with_ignored_flag(true));
        }
    }
    // A thread for each cell: all but one of a column wait.
    arguments.test_threads.get_or_insert(trials.len());
    let commit = table::commit();
    let conclusion = libtest_mimic::run(&arguments, trials);
    for lane in lanes {
        lane.clear();
    }
    let table = table.lock().unwrap_or_else(PoisonError::into_inner);
    if let Err(error) = table.show(&commit) {
        eprintln!("error: {error}");
        return ExitCode::FAILURE;
    }
    conclusion.exit_code()
}
