//! Tables for people, JSON for programs. The only place that writes to standard output.

use crate::failure::{Failure, Outcome};
use clap::ValueEnum;
use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;
use std::io::{self, IsTerminal, Write};

/// How results are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum Format {
    /// Aligned columns for people; they may change.
    #[default]
    Table,
    /// One JSON value; field names are stable.
    Json,
}

/// Something with a row in a table.
pub(crate) trait Row {
    /// Column titles.
    const COLUMNS: &'static [&'static str];
    /// Cells, one for each column.
    fn cells(&self) -> Vec<String>;
}

impl Format {
    /// Shows one object: its fields as lines, or a JSON object.
    pub(crate) fn one<T: Serialize>(self, value: &T, details: &[(&str, String)]) -> Outcome {
        match self {
            Self::Json => json(value),
            Self::Table => {
                let told = || details.iter().filter(|(_, value)| !value.is_empty());
                let width = told().map(|(key, _)| key.len()).max().unwrap_or(0);
                let lines: Vec<String> = told()
                    .map(|(key, value)| format!("{key:<width$}  {value}"))
                    .collect();
                print(&lines.join("\n"))
            }
        }
    }

    /// Shows several objects: a table, or a JSON array.
    pub(crate) fn many<T: Serialize + Row>(self, values: &[T]) -> Outcome {
        match self {
            Self::Json => json(&values),
            Self::Table => print(&table(T::COLUMNS, values.iter().map(Row::cells))),
        }
    }

    /// Shows one of several events as it happens: a line, or one JSON object per line.
    pub(crate) fn event<T: Serialize>(self, value: &T, line: impl FnOnce() -> String) -> Outcome {
        match self {
            Self::Json => {
                let text = serde_json::to_string(value).expect("views have string keys only");
                print(&text)
            }
            Self::Table => print(&line()),
        }
    }
}

/// Columns without lines between them.
pub(crate) fn table(columns: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(columns.iter().map(|title| title.to_uppercase()));
    for row in rows {
        table.add_row(row);
    }
    table
        .lines()
        .map(|line| {
            line.trim_end()
                .strip_prefix(' ')
                .unwrap_or_default()
                .to_owned()
        })
        .collect::<Vec<_>>()
        .join("\n")
}

/// A value as indented JSON.
pub(crate) fn json<T: Serialize + ?Sized>(value: &T) -> Outcome {
    print(&serde_json::to_string_pretty(value).expect("views have string keys only"))
}

/// Writes `text` and a newline to standard output.
pub(crate) fn print(text: &str) -> Outcome {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{text}")
        .and_then(|()| stdout.flush())
        .map_err(|error| Failure::output(&error))
}

/// Writes `text` and a newline to standard error, where remarks and errors go.
pub(crate) fn remark(text: &str) {
    // Nobody is left to tell if standard error is closed.
    drop(writeln!(io::stderr().lock(), "{text}"));
}

/// Marks for people: green, red and dim where the terminal shows colour and NO_COLOR is not set.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Paint {
    colour: bool,
}

impl Paint {
    /// Decides for standard output.
    pub(crate) fn stdout() -> Self {
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Self {
            colour: !refused && !dumb && io::stdout().is_terminal(),
        }
    }

    /// As it should be.
    pub(crate) fn good(self, text: &str) -> String {
        self.wrap("32", text)
    }

    /// Not as it should be.
    pub(crate) fn bad(self, text: &str) -> String {
        self.wrap("1;31", text)
    }

    /// A title.
    pub(crate) fn title(self, text: &str) -> String {
        self.wrap("1", text)
    }

    fn wrap(self, code: &str, text: &str) -> String {
        match self.colour {
            true => format!("\u{1b}[{code}m{text}\u{1b}[0m"),
            false => text.to_owned(),
        }
    }
}

/// Milliseconds since 1970 as RFC 3339 in UTC; empty for 0, which stands for never.
pub(crate) fn time(unix_ms: u64) -> String {
    if unix_ms == 0 {
        return String::new();
    }
    i64::try_from(unix_ms)
        .ok()
        .and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok())
        .map(|at| at.to_string())
        .unwrap_or_default()
}

/// How long ago a moment was, in the largest unit that says something.
pub(crate) fn ago(unix_ms: u64) -> String {
    if unix_ms == 0 {
        return "never".to_owned();
    }
    let now = u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or(0);
    let secs = now.saturating_sub(unix_ms) / 1000;
    match secs {
        0..=119 => format!("{secs}s"),
        120..=7199 => format!("{}m", secs / 60),
        7200..=172_799 => format!("{}h", secs / 3600),
        _ => format!("{}d", secs / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_have_no_lines_and_no_trailing_blanks() {
        let rows = [
            vec!["blue".to_owned(), "10.4.0.0/16".to_owned()],
            vec!["r".to_owned(), String::new()],
        ];
        assert_eq!(
            table(&["name", "cidrs"], rows.into_iter()),
            "NAME  CIDRS\nblue  10.4.0.0/16\nr"
        );
    }

    #[test]
    fn times_are_rfc_3339() {
        assert_eq!(time(0), "");
        assert_eq!(time(1_700_000_000_123), "2023-11-14T22:13:20.123Z");
    }
}
