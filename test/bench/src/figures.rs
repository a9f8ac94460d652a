//! Figures, and the table at the end.

use std::fmt::Write as _;
use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

/// What was measured, a row each.
#[derive(Debug, Default)]
pub(crate) struct Table(Vec<Row>);

#[derive(Debug)]
struct Row {
    figure: String,
    ours: String,
    baseline: String,
    ratio: String,
    target: String,
}

/// What a figure should be.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Target {
    /// No more than this.
    Most(f64),
    /// The ratio to the baseline no more than this.
    RatioMost(f64),
    /// The ratio to the baseline no less than this.
    RatioLeast(f64),
    /// Shown only.
    None,
}

impl Table {
    /// Adds a row, and shows it at once.
    pub(crate) fn add(
        &mut self,
        figure: &str,
        (ours, unit): (f64, &str),
        baseline: Option<f64>,
        target: Target,
    ) {
        let ratio = baseline.map(|baseline| ours / baseline);
        self.add_ratio(figure, (ours, unit), baseline, ratio, target);
    }

    /// With a ratio that is not that of the two, but the median of pairs.
    pub(crate) fn add_ratio(
        &mut self,
        figure: &str,
        (ours, unit): (f64, &str),
        baseline: Option<f64>,
        ratio: Option<f64>,
        target: Target,
    ) {
        let verdict = |met: bool| if met { "met" } else { "MISSED" };
        let ratio_is = ratio.unwrap_or(f64::NAN);
        let target = match target {
            Target::Most(most) => format!("<= {} {unit}: {}", short(most), verdict(ours <= most)),
            Target::RatioMost(most) => format!("<= {most}x: {}", verdict(ratio_is <= most)),
            Target::RatioLeast(least) => format!(">= {least}x: {}", verdict(ratio_is >= least)),
            Target::None => String::new(),
        };
        let row = Row {
            figure: figure.to_owned(),
            ours: format!("{} {unit}", short(ours)),
            baseline: baseline.map_or("-".to_owned(), |value| format!("{} {unit}", short(value))),
            ratio: ratio.map_or("-".to_owned(), |value| format!("{value:.2}")),
            target,
        };
        println!("   {}: {}", row.figure, row.ours);
        self.0.push(row);
    }

    /// Something that has no figure.
    pub(crate) fn note(&mut self, figure: &str, text: &str) {
        println!("   {figure}: {text}");
        self.0.push(Row {
            figure: figure.to_owned(),
            ours: text.to_owned(),
            baseline: "-".to_owned(),
            ratio: "-".to_owned(),
            target: String::new(),
        });
    }

    /// The whole of it.
    pub(crate) fn print(&self) {
        let head = Row {
            figure: "figure".to_owned(),
            ours: "ours".to_owned(),
            baseline: "baseline".to_owned(),
            ratio: "ratio".to_owned(),
            target: "target".to_owned(),
        };
        let rows: Vec<[&str; 5]> = std::iter::once(&head).chain(&self.0).map(cells).collect();
        let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
        let widths: [usize; 5] = std::array::from_fn(width);
        println!();
        for (number, row) in rows.iter().enumerate() {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(widths) {
                write!(line, "| {cell:width$} ").expect("a String takes all");
            }
            println!("{line}|");
            if number == 0 {
                let rule: Vec<String> = widths.iter().map(|width| "-".repeat(width + 2)).collect();
                println!("|{}|", rule.join("|"));
            }
        }
    }
}

fn cells(row: &Row) -> [&str; 5] {
    [
        &row.figure,
        &row.ours,
        &row.baseline,
        &row.ratio,
        &row.target,
    ]
}

fn short(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// What is going on, with the time since the start of the machine.
pub(crate) fn progress(text: &str) {
    println!("-- {text}");
}

/// The machine and how busy it is: believe ratios of one run, not figures of two.
pub(crate) fn machine() {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let kernel = read("/proc/sys/kernel/osrelease");
    let load = read("/proc/loadavg");
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    progress(&format!(
        "{} s since 1970, {cpus} processors, Linux {}, load {}",
        now.as_secs(),
        kernel.trim(),
        load.split(' ').take(3).collect::<Vec<_>>().join(" "),
    ));
}

/// The value below which this share of them is.
pub(crate) fn percentile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted
        .get(rank.saturating_sub(1))
        .copied()
        .unwrap_or(f64::NAN)
}

/// The one in the middle.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}

#[cfg(test)]
mod tests {
    use super::{median, percentile};

    #[test]
    fn the_middle_and_the_tail() {
        let values: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!(percentile(&values, 0.5), 50.0);
        assert_eq!(percentile(&values, 0.99), 99.0);
        assert_eq!(median(&values), 50.5);
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
    }
}
