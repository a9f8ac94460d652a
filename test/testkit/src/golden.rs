//! Golden scripts: blocks of input, `----`, expected output, a blank line; `#` lines are prose.

use std::fs;
use std::path::{Path, PathBuf};

/// Runs every `*.txt` under `dir`. For each script `start` makes a fresh interpreter, which is
/// called with each block's input lines and answers with its output. With `UPDATE=1` in the
/// environment the scripts are rewritten to what came out.
///
/// # Panics
/// If a script's output differs from what it says, with both; if a block has no `----`; or if there is no
/// script at all.
pub fn run_golden_scripts<F>(dir: impl AsRef<Path>, mut start: impl FnMut() -> F)
where
    F: FnMut(&[&str]) -> String,
{
    let mut scripts: Vec<PathBuf> = fs::read_dir(dir.as_ref())
        .unwrap_or_else(|error| panic!("reading {}: {error}", dir.as_ref().display()))
        .map(|entry| entry.expect("a directory entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "txt"))
        .collect();
    scripts.sort();
    assert!(
        !scripts.is_empty(),
        "no golden script in {}",
        dir.as_ref().display()
    );
    let update = std::env::var_os("UPDATE").is_some();
    let mut wrong = Vec::new();
    for path in scripts {
        let text = fs::read_to_string(&path).expect("a script that was just listed");
        let now = replay(&text, &mut start());
        if now == text {
            continue;
        }
        if update {
            fs::write(&path, now).expect("a script can be rewritten");
        } else {
            wrong.push(format!("{}:\n{}", path.display(), difference(&text, &now)));
        }
    }
    assert!(
        wrong.is_empty(),
        "golden scripts differ (UPDATE=1 rewrites them)\n{}",
        wrong.join("\n")
    );
}

fn replay(text: &str, interpret: &mut impl FnMut(&[&str]) -> String) -> String {
    let mut out = String::new();
    let mut input = Vec::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        if line == "----" {
            while lines.peek().is_some_and(|next| !next.is_empty()) {
                lines.next();
            }
            out.push_str("----\n");
            let answer = interpret(&input);
            out.push_str(if answer.trim().is_empty() {
                "(nothing)\n"
            } else {
                &answer
            });
            if !out.ends_with('\n') {
                out.push('\n');
            }
            input.clear();
            continue;
        }
        // It would be run with the next block's input, or not at all.
        let unasked = line.is_empty() && !input.is_empty();
        assert!(!unasked, "no ---- below {input:?}");
        out.push_str(line);
        out.push('\n');
        if !line.is_empty() && !line.starts_with('#') {
            input.push(line);
        }
    }
    assert!(input.is_empty(), "no ---- below {input:?}");
    out
}

fn difference(was: &str, now: &str) -> String {
    let (was, now): (Vec<_>, Vec<_>) = (was.lines().collect(), now.lines().collect());
    let same = was.iter().zip(&now).take_while(|(a, b)| a == b).count();
    let show = |lines: &[&str], mark: char| -> String {
        lines
            .iter()
            .skip(same)
            .take(25)
            .map(|line| format!("{mark} {line}\n"))
            .collect()
    };
    format!(
        "from line {}:\n{}{}",
        same + 1,
        show(&was, '-'),
        show(&now, '+')
    )
}
