//! The matrix as a table.

use crate::{Cell, Column, rows};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::{env, fs};

const BEGIN: &str = "<!-- matrix: written by `make evpn-matrix` -->";
const END: &str = "<!-- end of matrix -->";

#[derive(Default)]
pub(crate) struct Table(BTreeMap<(&'static str, Column), Result<Cell, String>>);

impl Table {
    pub(crate) fn put(&mut self, row: &'static str, column: Column, outcome: Result<Cell, String>) {
        self.0.insert((row, column), outcome);
    }

    /// Prints it, and writes it where it was asked for. A table with a hole is not written.
    pub(crate) fn show(&self) -> Result<(), String> {
        if self.0.is_empty() {
            return Ok(());
        }
        let text = self.text();
        println!("{text}");
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

    fn text(&self) -> String {
        let mut text = format!("Run on {} (UTC), {}.\n\n", today(), kernel());
        text += "| Id | Case |";
        for column in Column::ALL {
            let _infallible = write!(text, " {} |", column.heading());
        }
        text += "\n|---|---|---|---|---|---|\n";
        let mut reasons: Vec<String> = Vec::new();
        for row in rows::ALL {
            let _infallible = write!(text, "| {} | {} |", row.id, row.case);
            for column in Column::ALL {
                let cell = match self.0.get(&(row.id, column)) {
                    None => "not run".to_owned(),
                    Some(Ok(Cell::Pass)) => "pass".to_owned(),
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
        text.push('\n');
        for (number, reason) in reasons.iter().enumerate() {
            let _infallible = writeln!(text, "{}. {reason}", number + 1);
        }
        text
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

fn kernel() -> String {
    format!("Linux {}", output_of("uname", &["-r"]))
}

fn output_of(program: &str, arguments: &[&str]) -> String {
    let output = std::process::Command::new(program).args(arguments).output();
    output.map_or_else(
        |error| format!("({program}: {error})"),
        |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
    )
}
