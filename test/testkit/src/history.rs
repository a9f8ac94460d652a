//! Whether what clients saw of registers, such as a disk's blocks, is linearizable.
//!
//! Each write has a value of its own, so each read names the write that it saw. All operations of one value make a
//! cluster; between the first end and the last begin in it the register held that value and no other, which is
//! all there is to look at (Gibbons and Korach, "Testing shared memories", 1997).

use std::collections::{BTreeMap, btree_map::Entry};
use std::time::{Duration, Instant};

/// What a register holds before anything is written.
pub const NOTHING: u64 = 0;

/// A write, or a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It was asked to become this.
    Write,
    /// It was this.
    Read,
}

/// What a client asked for.
#[derive(Debug, Clone, Copy)]
pub struct Operation {
    /// Of which register.
    pub register: u64,
    /// Which of both.
    pub kind: Kind,
    /// What was written or read; each write's own, and not [`NOTHING`].
    pub value: u64,
    /// When it was asked.
    pub begin: Instant,
    /// When it was answered as done, or, for a write that was not, when at the latest it took effect if it ever did. None: that may still come.
    pub end: Option<Instant>,
    /// It was answered as done.
    pub done: bool,
}

/// All operations of a value.
#[derive(Debug)]
struct Cluster {
    write: Option<Operation>,
    /// Reads of it, and the write if it is known to have taken effect.
    first_end: Option<Instant>,
    last_begin: Instant,
    certain: bool,
}

/// Looks at all that happened. Reads that were not answered are left out beforehand.
///
/// # Errors
/// What cannot have been.
pub fn linearizable(operations: &[Operation]) -> Result<(), String> {
    let mut registers: BTreeMap<u64, Vec<&Operation>> = BTreeMap::new();
    for operation in operations {
        let of = registers.entry(operation.register).or_default();
        of.push(operation);
    }
    for (register, operations) in registers {
        check(&operations).map_err(|why| format!("register {register}: {why}"))?;
    }
    Ok(())
}

fn check(operations: &[&Operation]) -> Result<(), String> {
    let Some(first) = operations.iter().map(|operation| operation.begin).min() else {
        return Ok(());
    };
    let start = first - Duration::from_nanos(1);
    let zones = zones(&clusters(operations)?, start)?;
    // Between both ends the register was nothing but this.
    let mut held: Vec<&Zone> = zones.iter().filter(|zone| zone.is_held()).collect();
    held.sort_by_key(|zone| zone.first_end);
    for two in held.windows(2) {
        if two[1].first_end < two[0].last_begin {
            return Err(format!(
                "it was {} and {} by turns: {:?}, {:?}",
                two[0].value, two[1].value, two[0], two[1]
            ));
        }
    }
    for zone in zones.iter().filter(|zone| !zone.is_held()) {
        // The last that begins before it does.
        let after = held.partition_point(|held| held.first_end < zone.last_begin);
        if let Some(around) = after.checked_sub(1).map(|at| held[at])
            && zone.first_end < around.last_begin
        {
            return Err(format!(
                "it became {} while it was {}: {zone:?}, {around:?}",
                zone.value, around.value
            ));
        }
    }
    Ok(())
}

#[derive(Debug)]
struct Zone {
    value: u64,
    first_end: Instant,
    last_begin: Instant,
}

impl Zone {
    fn is_held(&self) -> bool {
        self.first_end < self.last_begin
    }
}

fn clusters(operations: &[&Operation]) -> Result<BTreeMap<u64, Cluster>, String> {
    let mut clusters: BTreeMap<u64, Cluster> = BTreeMap::new();
    for operation in operations {
        let certain = operation.done || operation.kind == Kind::Read;
        let cluster = match clusters.entry(operation.value) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(Cluster {
                write: None,
                first_end: None,
                last_begin: operation.begin,
                certain: false,
            }),
        };
        cluster.certain |= certain;
        cluster.last_begin = cluster.last_begin.max(operation.begin);
        cluster.first_end = match (cluster.first_end, operation.end) {
            (Some(known), Some(end)) => Some(known.min(end)),
            (known, end) => known.or(end),
        };
        if operation.kind == Kind::Write {
            if operation.value == NOTHING || cluster.write.is_some() {
                return Err(format!("{} was written twice", operation.value));
            }
            cluster.write = Some(**operation);
        }
    }
    Ok(clusters)
}

fn zones(clusters: &BTreeMap<u64, Cluster>, start: Instant) -> Result<Vec<Zone>, String> {
    let mut zones = Vec::new();
    for (value, cluster) in clusters {
        // A write that nobody saw and that was not answered may have been none.
        if !cluster.certain {
            continue;
        }
        let Some(end) = cluster.first_end else {
            return Err(format!("{value}: answered, but without a time"));
        };
        let first_end = match cluster.write {
            None if *value == NOTHING => start,
            None => return Err(format!("{value} was read, and never written")),
            Some(write) if end < write.begin => {
                return Err(format!("{value} was read before it was written"));
            }
            Some(_) => end,
        };
        zones.push(Zone {
            value: *value,
            first_end,
            last_begin: cluster.last_begin,
        });
    }
    Ok(zones)
}

#[cfg(test)]
mod tests {
    use super::{Kind, Operation, linearizable};
    use std::time::{Duration, Instant};

    /// Rows of kind, value, begin, end; without an end it was not answered, and with a negative one it was not,
    /// and is over by then.
    fn verdict(rows: &[(char, u64, u64, i64)]) -> Result<(), String> {
        let start = Instant::now();
        let at = |millis: u64| start + Duration::from_millis(millis);
        let operations: Vec<Operation> = rows
            .iter()
            .map(|(kind, value, begin, end)| Operation {
                register: 1,
                kind: match kind {
                    'w' => Kind::Write,
                    _ => Kind::Read,
                },
                value: *value,
                begin: at(*begin),
                end: (*end != 0).then(|| at(end.unsigned_abs())),
                done: *end > 0,
            })
            .collect();
        linearizable(&operations)
    }

    #[test]
    fn what_can_have_been_is_taken() {
        for rows in [
            &[('r', 0, 1, 2), ('w', 5, 3, 4), ('r', 5, 5, 6)][..],
            // Side by side, either may be last.
            &[
                ('w', 5, 1, 9),
                ('w', 6, 2, 8),
                ('r', 5, 10, 11),
                ('r', 5, 12, 13),
            ],
            &[('w', 5, 1, 9), ('w', 6, 2, 8), ('r', 6, 10, 11)],
            // Seen before it is answered.
            &[('w', 5, 1, 9), ('r', 5, 2, 3), ('r', 5, 4, 5)],
            &[('w', 5, 1, 9), ('r', 0, 2, 3), ('r', 5, 4, 5)],
            // Not answered: never, or late.
            &[
                ('w', 5, 1, 0),
                ('r', 0, 2, 3),
                ('w', 6, 4, 5),
                ('r', 6, 6, 7),
            ],
            &[
                ('w', 5, 1, 0),
                ('r', 0, 2, 3),
                ('w', 6, 4, 5),
                ('r', 5, 6, 7),
            ],
            &[
                ('w', 5, 1, -4),
                ('r', 0, 2, 3),
                ('w', 6, 5, 6),
                ('r', 6, 7, 8),
            ],
            &[
                ('w', 5, 1, -4),
                ('r', 0, 2, 3),
                ('r', 5, 5, 6),
                ('w', 6, 7, 8),
                ('r', 6, 9, 10),
            ],
        ] {
            assert_eq!(verdict(rows), Ok(()), "{rows:?}");
        }
    }

    #[test]
    fn what_cannot_have_been_is_found() {
        for (rows, why) in [
            (&[('w', 5, 1, 2), ('r', 0, 3, 4)][..], "it became 5"),
            (
                &[('w', 5, 1, 2), ('w', 6, 3, 4), ('r', 5, 5, 6)],
                "it became 6",
            ),
            (
                &[('w', 5, 1, 9), ('r', 5, 2, 3), ('r', 0, 4, 5)],
                "it became 5",
            ),
            (
                &[
                    ('w', 5, 1, 9),
                    ('w', 6, 2, 8),
                    ('r', 5, 10, 11),
                    ('r', 6, 12, 13),
                    ('r', 5, 14, 15),
                ],
                "by turns",
            ),
            (&[('r', 5, 1, 2), ('w', 5, 3, 4)], "before"),
            (&[('r', 5, 1, 2)], "never written"),
            // It was over when the other began, so it cannot come after it.
            (
                &[
                    ('w', 5, 1, -4),
                    ('r', 0, 2, 3),
                    ('w', 6, 5, 6),
                    ('r', 5, 7, 8),
                ],
                "it became 6",
            ),
            // What was answered is lost.
            (
                &[('w', 5, 1, 2), ('r', 5, 3, 4), ('r', 0, 5, 6)],
                "by turns",
            ),
        ] {
            let found = verdict(rows).expect_err("it cannot have been");
            assert!(found.contains(why), "{rows:?}: {found}");
        }
    }
}
