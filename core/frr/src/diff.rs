//! Which commands lead from the running configuration to the wanted one.

use crate::config::{Config, Line};
use std::collections::BTreeSet;

/// Commands, each group in the block it belongs to, that make `running` what `wanted` is; none if
/// it is. What goes comes first. Only what is ours to say is compared: BGP and our route map.
pub fn changes(wanted: &Config, running: &Config, asn: model::Asn) -> Config {
    let cut = (asn.get() & 0xffff).to_string();
    let managed = |line: &&Line| {
        line.text.starts_with("router bgp") || line.text.starts_with("route-map vpc-")
    };
    let running: Vec<&Line> = running.lines.iter().filter(managed).collect();
    let neighbours = |lines: &[&Line]| -> BTreeSet<String> {
        let inner = lines.iter().flat_map(|line| &line.children);
        let named = inner.filter_map(|line| neighbour_of(&line.text));
        named.map(str::to_owned).collect()
    };
    let wanted: Vec<&Line> = wanted.lines.iter().collect();
    let stay = neighbours(&wanted);
    let gone = neighbours(&running).difference(&stay).cloned().collect();
    let diff = Diff { auto: &cut, gone };
    Config {
        lines: diff.level(&wanted, &running, ""),
    }
}

struct Diff<'a> {
    /// The AS as FRR derives route targets from it.
    auto: &'a str,
    /// Neighbours that go, with all that is said of them.
    gone: BTreeSet<String>,
}

impl Diff<'_> {
    fn level(&self, wanted: &[&Line], running: &[&Line], parent: &str) -> Vec<Line> {
        let mut commands: Vec<Line> = Vec::new();
        let gone = running
            .iter()
            .filter(|have| !wanted.iter().any(|want| want.text == have.text));
        for line in gone.filter(|line| !is_default(&line.text)) {
            match neighbour_of(&line.text).filter(|name| self.gone.contains(*name)) {
                None => commands.push(plain(undo(&line.text))),
                Some(name) if line.text.split(' ').nth(2) == Some("remote-as") => {
                    commands.push(plain(format!("no neighbor {name}")));
                }
                // Goes with its neighbour.
                Some(_) => {}
            }
        }
        for want in wanted {
            let have = running.iter().find(|have| have.text == want.text);
            match have {
                None if self.is_silent(&want.text, parent) => {}
                None => commands.push((*want).clone()),
                Some(have) if want.exit.is_some() => {
                    let (inner, outer): (Vec<_>, Vec<_>) = (
                        want.children.iter().collect(),
                        have.children.iter().collect(),
                    );
                    let children = self.level(&inner, &outer, &want.text);
                    if !children.is_empty() {
                        commands.push(Line {
                            text: want.text.clone(),
                            children,
                            exit: want.exit,
                        });
                    }
                }
                Some(_) => {}
            }
        }
        commands
    }

    /// FRR does not show what it takes for granted: its defaults, and route targets that are what
    /// it would have derived.
    fn is_silent(&self, line: &str, parent: &str) -> bool {
        if is_default(line) {
            return true;
        }
        let Some(vni) = parent.strip_prefix("vni ") else {
            return false;
        };
        let target = ["import", "export", "both"]
            .iter()
            .find_map(|way| line.strip_prefix(&format!("route-target {way} ")));
        target.is_some_and(|target| target == format!("{}:{vni}", self.auto))
    }
}

/// Lines that one release writes and another does not, and which mean the same as nothing.
fn is_default(line: &str) -> bool {
    const DEFAULTS: [&str; 7] = [
        "bgp graceful-restart restart-time 120",
        "bgp graceful-restart stalepath-time 360",
        "bgp log-neighbor-changes",
        "bgp bestpath as-path multipath-relax",
        "dup-addr-detection",
        "dup-addr-detection max-moves 5 time 180",
        "no bgp network import-check",
    ];
    DEFAULTS.contains(&line)
}

/// The command that takes a line back.
fn undo(line: &str) -> String {
    match line.strip_prefix("no ") {
        Some(positive) => positive.to_owned(),
        None => format!("no {line}"),
    }
}

/// The neighbour that a line is about.
fn neighbour_of(line: &str) -> Option<&str> {
    line.strip_prefix("neighbor ")?.split(' ').next()
}

fn plain(text: String) -> Line {
    Line {
        text,
        children: Vec::new(),
        exit: None,
    }
}
