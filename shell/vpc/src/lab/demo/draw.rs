//! The demo's picture and tables. Pure.

use super::reach::{Matrix, Nic};
use crate::lab::sniff::Counts;
use crate::lab::spec::V4_LENGTH;
use crate::lab::state::{HostKind, LabHost, LabState};
use crate::output::Paint;

/// Hosts on the underlay, and on each the NICs by VPC.
pub(crate) fn map(state: &LabState, nics: &[Nic]) -> String {
    let mut lines = vec![format!("underlay (/{V4_LENGTH}, mtu {})", state.mtu)];
    let hosts: Vec<&LabHost> = state.agents().collect();
    for (index, host) in hosts.iter().enumerate() {
        let last = index + 1 == hosts.len();
        let (branch, trunk) = if last {
            ("└─", "   ")
        } else {
            ("├─", "│  ")
        };
        let address = host
            .underlay
            .map(|address| address.to_string())
            .unwrap_or_default();
        let reflects = match host.roles.iter().any(|role| role == "management") {
            true => "  server, route reflector",
            false => "",
        };
        lines.push(format!(
            "{branch} {}  {address}  {}{reflects}",
            host.name,
            host.roles.join(",")
        ));
        let here: Vec<&Nic> = nics.iter().filter(|nic| nic.host == host.name).collect();
        for (index, nic) in here.iter().enumerate() {
            let branch = if index + 1 == here.len() {
                "└─"
            } else {
                "├─"
            };
            lines.push(format!(
                "{trunk}{branch} {:<12}  {:<10}  {:<12}  {}  in {}",
                nic.path, nic.ipv4, nic.ipv6, nic.mac, nic.netns
            ));
        }
    }
    let outside: Vec<String> = state
        .hosts
        .iter()
        .filter(|host| host.kind == HostKind::Outside)
        .flat_map(|host| &host.outside)
        .map(ToString::to_string)
        .collect();
    lines.push(format!("outside: ext  {}", outside.join("  ")));
    lines.join("\n")
}

/// A row for who asks, a column for who is meant.
pub(crate) fn table(matrix: &Matrix, paint: Paint) -> String {
    let nics = matrix.nics();
    let mut lines = vec![
        "46 both families, 4 or 6 one, . nothing; ! marks what was expected otherwise".to_owned(),
    ];
    let mut head = format!("{:>2} {:<12} {:<8}", "", "from", "on");
    for number in 1..=nics.len() {
        head.push_str(&format!(" {number:>3}"));
    }
    lines.push(head);
    for (number, (nic, row)) in nics.iter().zip(matrix.rows()).enumerate() {
        let mut line = format!("{:>2} {:<12} {:<8}", number + 1, nic.path, nic.host);
        for cell in row {
            let Some(cell) = cell else {
                line.push_str("   -");
                continue;
            };
            let seen = match (cell.ipv4, cell.ipv6) {
                (true, true) => "46",
                (true, false) => "4",
                (false, true) => "6",
                (false, false) => ".",
            };
            // Padded before it is painted: colours have no width.
            line.push_str(&match (cell.is_right(), cell.expected) {
                (true, true) => paint.good(&format!(" {seen:>3}")),
                (true, false) => format!(" {seen:>3}"),
                (false, _) => paint.bad(&format!(" {:>3}", format!("!{seen}"))),
            });
        }
        lines.push(line);
    }
    let cells = matrix.cells();
    let expected = cells.iter().filter(|cell| cell.expected);
    let reached = expected.clone().filter(|cell| cell.is_right()).count();
    let apart = cells.iter().filter(|cell| !cell.expected);
    let kept = apart.clone().filter(|cell| cell.is_right()).count();
    lines.push(format!(
        "expected to reach each other: {}, seen {reached}; expected apart: {}, seen {kept}",
        expected.count(),
        apart.count()
    ));
    lines.push(match matrix.wrong_others() {
        0 => "every ping, one broadcast and one multicast of each: subnet mates, each once"
            .to_owned(),
        count => paint.bad(&format!(
            "{count} pings, broadcasts or multicasts are not as expected"
        )),
    });
    lines.join("\n")
}

/// What was counted between the hosts.
pub(crate) fn underlay(counts: &Counts) -> String {
    let kinds: Vec<String> = counts
        .kinds
        .iter()
        .map(|(kind, count)| format!("{kind} {count}"))
        .collect();
    let vnis: Vec<String> = counts
        .vnis
        .iter()
        .map(|(vni, count)| format!("{vni} ({count})"))
        .collect();
    format!("frames: {}\nVNIs: {}", kinds.join(", "), vnis.join(", "))
}
