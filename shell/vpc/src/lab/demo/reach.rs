//! What is expected between two NICs, and what was seen. Pure.

use crate::lab::probe::{Answers, Heard};
use serde::Serialize;
use std::collections::BTreeMap;

/// A NIC of the demo.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Nic {
    /// vpc/subnet/nic; also what it answers with.
    pub(crate) path: String,
    /// vpc/subnet
    pub(crate) subnet: String,
    /// Whom it reaches: its subnet, or with a router its VPC.
    #[serde(skip)]
    pub(crate) reach: String,
    /// Where it is.
    pub(crate) host: String,
    /// Its namespace there.
    pub(crate) netns: String,
    /// Its IPv4 address.
    pub(crate) ipv4: String,
    /// Its IPv6 address.
    pub(crate) ipv6: String,
    /// Its MAC.
    pub(crate) mac: String,
}

impl Nic {
    /// For `vpc lab exec`.
    pub(crate) fn place(&self) -> String {
        format!("{}/{}", self.host, self.netns)
    }

    /// Of its IPv4 subnet, a /24.
    pub(crate) fn broadcast(&self) -> String {
        match self.ipv4.rsplit_once('.') {
            Some((net, _)) => format!("{net}.255"),
            None => self.ipv4.clone(),
        }
    }

    /// Subnet mates reach each other, and whoever a router joins them with; nobody else does.
    fn reaches(&self, other: &Self) -> bool {
        self.reach == other.reach
    }
}

/// From one NIC to another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Cell {
    /// Who asked.
    pub(crate) from: String,
    /// Who was meant.
    pub(crate) to: String,
    /// It is to answer.
    pub(crate) expected: bool,
    /// It answered at its IPv4 address, by name.
    pub(crate) ipv4: bool,
    /// It answered at its IPv6 address, by name.
    pub(crate) ipv6: bool,
}

impl Cell {
    /// Seen as expected, in both families.
    pub(crate) fn is_right(&self) -> bool {
        self.ipv4 == self.expected && self.ipv6 == self.expected
    }
}

/// All pairs.
#[derive(Debug)]
pub(crate) struct Matrix {
    nics: Vec<Nic>,
    cells: Vec<Vec<Option<Cell>>>,
    /// Pings, broadcasts and multicasts that are not as expected, in words.
    others: Vec<String>,
}

impl Matrix {
    /// From what each NIC heard, in the order of the NICs.
    pub(crate) fn seen(nics: &[Nic], answers: &[Answers]) -> Self {
        let mut cells = Vec::new();
        let mut others = Vec::new();
        for (from, answers) in nics.iter().zip(answers) {
            let heard = &answers.heard;
            let row = nics
                .iter()
                .map(|to| (from.path != to.path).then(|| cell(from, to, heard)))
                .collect();
            cells.push(row);
            others.extend(
                heard
                    .iter()
                    .filter_map(|heard| wrong_ping(from, nics, heard)),
            );
            others.extend(wrong_counts(
                from,
                nics,
                "IPv4 broadcast",
                &answers.broadcast,
            ));
            others.extend(wrong_counts(
                from,
                nics,
                "IPv6 multicast",
                &answers.multicast,
            ));
        }
        Self {
            nics: nics.to_vec(),
            cells,
            others,
        }
    }

    /// NICs, in the order of rows and columns.
    pub(crate) fn nics(&self) -> &[Nic] {
        &self.nics
    }

    /// Rows; a NIC has no cell with itself.
    pub(crate) fn rows(&self) -> &[Vec<Option<Cell>>] {
        &self.cells
    }

    /// All cells.
    pub(crate) fn cells(&self) -> Vec<Cell> {
        self.cells.iter().flatten().flatten().cloned().collect()
    }

    /// How many pings, broadcasts and multicasts are not as expected.
    pub(crate) fn wrong_others(&self) -> usize {
        self.others.len()
    }

    /// What is not as expected, in words.
    pub(crate) fn wrong(&self) -> Vec<String> {
        let word = |cell: &Cell| match (cell.ipv4, cell.ipv6) {
            (true, true) => "IPv4 and IPv6",
            (true, false) => "IPv4 only",
            (false, true) => "IPv6 only",
            (false, false) => "nothing",
        };
        let expected = |cell: &Cell| match cell.expected {
            true => "IPv4 and IPv6",
            false => "nothing",
        };
        self.cells
            .iter()
            .flatten()
            .flatten()
            .filter(|cell| !cell.is_right())
            .map(|cell| {
                format!(
                    "{} to {}: expected {}, seen {}",
                    cell.from,
                    cell.to,
                    expected(cell),
                    word(cell)
                )
            })
            .chain(self.others.iter().cloned())
            .collect()
    }
}

fn cell(from: &Nic, to: &Nic, heard: &[Heard]) -> Cell {
    let answered = |address: &str| {
        heard.iter().any(|heard| {
            heard.address.to_string() == address && heard.identity.as_deref() == Some(&to.path)
        })
    };
    Cell {
        from: from.path.clone(),
        to: to.path.clone(),
        expected: from.reaches(to),
        ipv4: answered(&to.ipv4),
        ipv6: answered(&to.ipv6),
    }
}

/// A ping has to be answered exactly where a subnet mate has the address.
fn wrong_ping(from: &Nic, nics: &[Nic], heard: &Heard) -> Option<String> {
    let address = heard.address.to_string();
    let expected = nics
        .iter()
        .any(|to| from.reaches(to) && (to.ipv4 == address || to.ipv6 == address));
    match (expected, heard.ping) {
        (true, false) => Some(format!("{}: {address} does not answer to ping", from.path)),
        (false, true) => Some(format!(
            "{}: {address} answers to ping and should not",
            from.path
        )),
        _ => None,
    }
}

/// One frame to many reaches each subnet mate once, and nobody else.
fn wrong_counts(
    from: &Nic,
    nics: &[Nic],
    what: &str,
    counts: &BTreeMap<String, u32>,
) -> Vec<String> {
    nics.iter()
        // It may hear itself; that never left its namespace.
        .filter(|to| to.path != from.path)
        .filter_map(|to| {
            let seen = counts.get(&to.path).copied().unwrap_or(0);
            let expected = u32::from(from.subnet == to.subnet);
            (seen != expected).then(|| {
                format!(
                    "{what} of {}: reached {} {seen} times, expected {expected}",
                    from.path, to.path
                )
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nic(path: &str, last: u8) -> Nic {
        let (subnet, _) = path.rsplit_once('/').unwrap();
        Nic {
            path: path.to_owned(),
            subnet: subnet.to_owned(),
            reach: subnet.to_owned(),
            host: "c1".to_owned(),
            netns: subnet.replace('/', "-"),
            ipv4: format!("10.4.1.{last}"),
            ipv6: format!("fd00:4:1::{last:x}"),
            mac: String::new(),
        }
    }

    fn heard(last: u8, who: Option<&str>, mates: &[&str]) -> Answers {
        let one = |address: String| Heard {
            address: address.parse().unwrap(),
            ping: who.is_some(),
            identity: who.map(str::to_owned),
        };
        let counts: BTreeMap<String, u32> =
            mates.iter().map(|mate| ((*mate).to_owned(), 1)).collect();
        Answers {
            heard: vec![
                one(format!("10.4.1.{last}")),
                one(format!("fd00:4:1::{last:x}")),
            ],
            broadcast: counts.clone(),
            multicast: counts,
        }
    }

    #[test]
    fn an_answer_from_another_tenant_at_the_same_address_is_caught() {
        let nics = [
            nic("blue/web/a1", 1),
            nic("blue/web/a2", 2),
            nic("red/web/a2", 2),
        ];
        let good = vec![
            heard(2, Some("blue/web/a2"), &["blue/web/a1", "blue/web/a2"]),
            heard(1, Some("blue/web/a1"), &["blue/web/a1"]),
            heard(1, None, &[]),
        ];
        assert_eq!(Matrix::seen(&nics, &good).wrong(), Vec::<String>::new());

        let mut leak = good.clone();
        leak[0].heard = heard(2, Some("red/web/a2"), &[]).heard;
        assert_eq!(
            Matrix::seen(&nics, &leak).wrong(),
            [
                "blue/web/a1 to blue/web/a2: expected IPv4 and IPv6, seen nothing",
                "blue/web/a1 to red/web/a2: expected nothing, seen IPv4 and IPv6",
            ]
        );

        let mut quiet = good.clone();
        quiet[1].heard[1].ping = false;
        assert_eq!(
            Matrix::seen(&nics, &quiet).wrong(),
            ["blue/web/a2: fd00:4:1::1 does not answer to ping"]
        );

        let mut twice = good;
        twice[2].broadcast.insert("blue/web/a1".to_owned(), 1);
        twice[1].multicast.insert("blue/web/a1".to_owned(), 2);
        assert_eq!(
            Matrix::seen(&nics, &twice).wrong(),
            [
                "IPv6 multicast of blue/web/a2: reached blue/web/a1 2 times, expected 1",
                "IPv4 broadcast of red/web/a2: reached blue/web/a1 1 times, expected 0",
            ]
        );
    }
}
