//! The matrix as a table.

use crate::{Cell, Column, rows};
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;
use std::{env, fs};

const BEGIN: &str = "<!-- matrix: written by `make evpn-matrix` -->";
const END: &str = "<!-- end of matrix -->";

/// What came of a cell, and how long it took.
type Ran = (Result<Cell, String>, Duration);

#[derive(Default)]
pub(crate) struct Table(BTreeMap<(&'static str, Column), Ran>);

impl Table {
    pub(crate) fn put(
        &mut self,
        row: &'static str,
        column: Column,
        outcome: Result<Cell, String>,
        took: Duration,
    ) {
        self.0.insert((row, column), (outcome, took));
    }

    /// Prints it, and writes it where it was asked for. A table with a hole is not written.
    pub(crate) fn show(&self, commit: &str, took: Duration) -> Result<(), String> {
        if self.0.is_empty() {
            return Ok(());
        }
        let text = self.text(commit, took);
        println!("{text}");
        let mut slow: Vec<_> = self.0.iter().collect();
        slow.sort_by_key(|(_, (_, took))| Reverse(*took));
        for ((row, column), (_, took)) in slow.iter().take(10) {
            println!("{:5.1} s: {} {row}", took.as_secs_f64(), column.name());
        }
        let Some(path) = env::var_os("VPC_MATRIX").map(PathBuf::from) else {
            return Ok(());
        };
        if self.0.len() != rows::ALL.len() * Column::ALL.len() {
            return Err("the matrix is not written: not every cell was run".to_owned());
        }
        let shown = path.display();
        let old = fs::read_to_string(&path).map_err(|error| format!("reading {shown}: {error}"))?;
        let (Some(begin), Some(end)) = (old.find(BEGIN), old.find(END)) else {
            return Err(format!(
                "{shown} has no lines {BEGIN:?} and {END:?} to write the matrix between"
            ));
        };
        let new = format!("{}\n{text}{}", &old[..begin + BEGIN.len()], &old[end..]);
        fs::write(&path, new).map_err(|error| format!("writing {shown}: {error}"))
    }

    fn text(&self, commit: &str, took: Duration) -> String {
        let (day, kernel) = (today(), output_of("uname", &["-r"]));
        let minutes = took.as_secs().div_ceil(60);
        let mut text = format!(
            "Run on {day} (UTC), commit {commit}, Linux {kernel}, in {minutes} minutes.\n\n| Id | Case |"
        );
        for column in Column::ALL {
            let _infallible = write!(text, " {} |", column.heading());
        }
        text += "\n|---|---|---|---|---|---|\n";
        let mut reasons: Vec<String> = Vec::new();
        for row in rows::ALL {
            let _infallible = write!(text, "| {} | {} |", row.id, row.case);
            for column in Column::ALL {
                let cell = match self.outcome(row.id, column) {
                    None => "not run".to_owned(),
                    Some(Ok(Cell::Pass)) => "pass".to_owned(),
                    Some(Ok(Cell::Noting(what))) => {
                        format!("pass {}", footnote(&mut reasons, what))
                    }
                    Some(Ok(Cell::NotApplicable(reason))) => {
                        format!("n/a {}", footnote(&mut reasons, reason))
                    }
                    Some(Err(error)) => {
                        let first = error.lines().next().unwrap_or_default();
                        format!("**fail** {}", footnote(&mut reasons, first))
                    }
                };
                let _infallible = write!(text, " {cell} |");
            }
            text.push('\n');
        }
        text += "| | |";
        for column in Column::ALL {
            let of = rows::ALL.iter().map(|row| self.outcome(row.id, column));
            let count = |wanted: fn(&Result<Cell, String>) -> bool| {
                of.clone().flatten().filter(|cell| wanted(cell)).count()
            };
            let passed = count(|cell| matches!(cell, Ok(Cell::Pass | Cell::Noting(_))));
            let without = count(|cell| matches!(cell, Ok(Cell::NotApplicable(_))));
            let failed = count(Result::is_err);
            let _infallible = write!(text, " {passed} pass, {without} n/a, {failed} fail |");
        }
        text += "\n\n";
        for (number, reason) in reasons.iter().enumerate() {
            let _infallible = writeln!(text, "{}. {reason}", number + 1);
        }
        text
    }

    fn outcome(&self, row: &'static str, column: Column) -> Option<&Result<Cell, String>> {
        self.0.get(&(row, column)).map(|(outcome, _)| outcome)
    }
}

/// A reason's number; the same reason has the same.
fn footnote(reasons: &mut Vec<String>, reason: &str) -> String {
    let at = reasons.iter().position(|held| held == reason);
    let at = at.unwrap_or_else(|| {
        reasons.push(reason.to_owned());
        reasons.len() - 1
    });
    format!("({})", at + 1)
}

fn today() -> String {
    output_of("date", &["-u", "+%Y-%m-%d"])
}

/// What is checked out, and whether that is what was run.
pub(crate) fn commit() -> String {
    let dir = env!("CARGO_MANIFEST_DIR");
    let commit = output_of("git", &["-C", dir, "rev-parse", "--short=10", "HEAD"]);
    let changed = output_of("git", &["-C", dir, "status", "--porcelain", "-uno"]);
    match changed.is_empty() {
        true => commit,
        false => format!("{commit} with changes"),
    }
}

fn output_of(program: &str, arguments: &[&str]) -> String {
    let output = std::process::Command::new(program).args(arguments).output();
    output.map_or_else(
        |error| format!("({program}: {error})"),
        |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
    )
}
