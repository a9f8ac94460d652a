//! Dumps of the kernel's tables, to be compared.

/// Leaves out what the kernel counts.
pub fn without_counters(text: &str) -> String {
    let mut out = String::new();
    let mut after = "";
    for word in text.split_inclusive(char::is_whitespace) {
        let counts = matches!(after, "packets" | "bytes") || after.ends_with("_timer");
        let passing = matches!(word.trim(), "tentative" | "dadfailed");
        out.push_str(if counts || passing { "" } else { word });
        if !word.trim().is_empty() {
            after = word.trim();
        }
    }
    out
}

/// Lines that only one of two texts has.
pub fn difference(was: &str, now: &str) -> String {
    let (was, now): (Vec<_>, Vec<_>) = (was.lines().collect(), now.lines().collect());
    let lost = was
        .iter()
        .filter(|line| !now.contains(line))
        .map(|line| format!("- {line}\n"));
    let new = now
        .iter()
        .filter(|line| !was.contains(line))
        .map(|line| format!("+ {line}\n"));
    lost.chain(new).collect()
}
