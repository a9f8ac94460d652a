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

const PASS: &str = "pass";
const NOT_APPLICABLE: &str = "n/a";
const FAIL: &str = "**fail**";

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

    /// Prints it, and writes it where it was asked for. Cells that were not run are those that are
    /// there, if they are of the same product; a table with a hole is not written.
    pub(crate) fn show(&self, commit: &str) -> Result<(), String> {
        if self.0.is_empty() {
            return Ok(());
        }
        let mut slow: Vec<_> = self.0.iter().collect();
        slow.sort_by_key(|(_, (_, took))| Reverse(*took));
        for ((row, column), (_, took)) in slow.iter().take(10) {
            println!("{:5.1} s: {} {row}", took.as_secs_f64(), column.name());
        }
        let mut cells: Cells = self
            .0
            .iter()
            .map(|(at, (ran, _))| (*at, shown(ran)))
            .collect();
        let Some(path) = env::var_os("VPC_MATRIX").map(PathBuf::from) else {
            println!("{}", text(&cells, commit));
            return Ok(());
        };
        let at = path.display();
        let old = fs::read_to_string(&path).map_err(|error| format!("reading {at}: {error}"))?;
        let (Some(begin), Some(end)) = (old.find(BEGIN), old.find(END)) else {
            return Err(format!(
                "{at} has no lines {BEGIN:?} and {END:?} to write the matrix between"
            ));
        };
        for (at, cell) in kept(&old[begin..end], commit) {
            cells.entry(at).or_insert(cell);
        }
        let text = text(&cells, commit);
        println!("{text}");
        if cells.len() != rows::ALL.len() * Column::ALL.len() {
            return Err("the matrix is not written: not every cell was run".to_owned());
        }
        let new = format!("{}\n{text}{}", &old[..begin + BEGIN.len()], &old[end..]);
        fs::write(&path, new).map_err(|error| format!("writing {at}: {error}"))
    }
}

/// What a table has of a cell: a word, and a note.
type Cells = BTreeMap<(&'static str, Column), (String, Option<String>)>;

fn shown(ran: &Result<Cell, String>) -> (String, Option<String>) {
    let (word, note) = match ran {
        Ok(Cell::Pass) => (PASS, None),
        Ok(Cell::Noting(what)) => (PASS, Some(*what)),
        Ok(Cell::NotApplicable(reason)) => (NOT_APPLICABLE, Some(*reason)),
        Err(error) => (FAIL, error.lines().next()),
    };
    (word.to_owned(), note.map(ToOwned::to_owned))
}

/// The cells of a table that was written, if they are of this commit.
fn kept(table: &str, commit: &str) -> Cells {
    let mut cells = Cells::new();
    if !table.contains(&heading(commit)) {
        return cells;
    }
    let notes: Vec<&str> = table
        .lines()
        .filter_map(|line| line.split_once(". "))
        .filter(|(number, _)| number.parse::<usize>().is_ok())
        .map(|(_, note)| note)
        .collect();
    for row in rows::ALL {
        let Some(line) = table
            .lines()
            .find(|line| line.starts_with(&format!("| {} |", row.id)))
        else {
            continue;
        };
        let words: Vec<&str> = line.trim_end_matches(" |").rsplit(" | ").collect();
        for (column, cell) in Column::ALL.iter().rev().zip(words) {
            let (word, number) = match cell.rsplit_once(" (") {
                Some((word, number)) => (word, number.trim_end_matches(')').parse().ok()),
                None => (cell, None),
            };
            let note = number.and_then(|number: usize| notes.get(number - 1));
            let note = note.map(|note| (*note).to_owned());
            cells.insert((row.id, *column), (word.to_owned(), note));
        }
    }
    cells
}

fn heading(commit: &str) -> String {
    let (day, kernel) = (today(), output_of("uname", &["-r"]));
    format!("Run on {day} (UTC), product of commit {commit}, Linux {kernel}.")
}

fn text(cells: &Cells, commit: &str) -> String {
    let mut text = format!("{}\n\n| Id | Case |", heading(commit));
    for column in Column::ALL {
        let _infallible = write!(text, " {} |", column.heading());
    }
    text += "\n|---|---|---|---|---|---|\n";
    let mut notes: Vec<String> = Vec::new();
    for row in rows::ALL {
        let _infallible = write!(text, "| {} | {} |", row.id, row.case);
        for column in Column::ALL {
            let _infallible = match cells.get(&(row.id, column)) {
                None => write!(text, " not run |"),
                Some((word, None)) => write!(text, " {word} |"),
                Some((word, Some(note))) => {
                    write!(text, " {word} {} |", footnote(&mut notes, note))
                }
            };
        }
        text.push('\n');
    }
    text += "| | |";
    for column in Column::ALL {
        let count = |wanted: &str| {
            let of = cells.iter().filter(|((_, of), _)| *of == column);
            of.filter(|(_, (word, _))| word == wanted).count()
        };
        let (passed, without, failed) = (count(PASS), count(NOT_APPLICABLE), count(FAIL));
        let _infallible = write!(text, " {passed} pass, {without} n/a, {failed} fail |");
    }
    text += "\n\n";
    for (number, note) in notes.iter().enumerate() {
        let _infallible = writeln!(text, "{}. {note}", number + 1);
    }
    text
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

/// The last commit that changed what is tested, and whether that is what is there.
pub(crate) fn commit() -> String {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
    let git = |arguments: &[&str]| {
        let product = ["--", "core", "shell", "proto", "Cargo.lock"];
        output_of("git", &[&["-C", root], arguments, &product].concat())
    };
    let commit = git(&["log", "-1", "--format=%h", "--abbrev=10"]);
    match git(&["status", "--porcelain", "-uno"]).is_empty() {
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
