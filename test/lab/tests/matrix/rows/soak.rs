//! Changes without end.

use super::everywhere;
use crate::fabric::{C1, C2, C3, Fabric, GUEST_ADDRESS, HOSTS, NOBODY, Vpc};
use crate::guest::{Guest, mac_with};
use crate::{Cell, Row};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// How long; with `VPC_SOAK` set.
const SHORT: Duration = Duration::from_secs(60);
const LONG: Duration = Duration::from_secs(600);
/// MACs change so often, so many at once: a hundred a second.
const EVERY: Duration = Duration::from_millis(100);
const AT_ONCE: u32 = 10;
/// MACs that come and go.
const POOL: u32 = 200;
/// Between two looks at everything.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// What a process may grow by between a third of the time and its end: for 4,000 changes, and for
/// 40,000, of which 50 bytes each would be more.
const GROWTH_KIB: u64 = 2_048;

/// Resident memory of our daemons, KiB, by host and name.
fn memory(fabric: &Fabric) -> BTreeMap<String, u64> {
    let mut found = BTreeMap::new();
    for host in ["m1", "c1", "c2", "c3"] {
        let text = fabric.lab.sh(host, "ps -eo rss=,args=");
        for line in text.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            if let [rss, "vpc", daemon, "run", ..] = words.as_slice() {
                let name = format!("{host} {daemon}");
                found.insert(name, rss.parse().expect("a number"));
            }
        }
    }
    assert!(found.len() > HOSTS.len(), "{found:?}");
    found
}

/// A number that follows from another (xorshift).
fn next(state: &mut u32) -> u32 {
    *state ^= *state << 13;
    *state ^= *state >> 17;
    *state ^= *state << 5;
    *state
}

pub(crate) const E34: Row = Row {
    id: "E34",
    case: "100 changes a second, for a minute here, ten in `make soak`: rows are what was told, no process of ours grows",
    run: |fabric| {
        let vpc = fabric.vpc("e34");
        everywhere(&vpc);
        let guest = Guest::new(fabric);
        guest.has(&vpc, &[]);
        guest.connect();
        let long = std::env::var_os("VPC_SOAK").is_some();
        let (start, time) = (Instant::now(), if long { LONG } else { SHORT });
        let mut random = 34;
        // The address of each MAC that is there.
        let mut held: BTreeMap<String, String> = BTreeMap::new();
        let mut looks: Vec<(Duration, BTreeMap<String, u64>)> = Vec::new();
        while start.elapsed() < time {
            let until = Instant::now() + LOOK_EVERY;
            while Instant::now() < until {
                for _ in 0..AT_ONCE {
                    let number = next(&mut random) % POOL;
                    let mac = format!("{}:77:{number:02x}", &vpc.mac(1)[..11]);
                    // It goes, comes, or has another address.
                    let address = format!("10.4.1.{}", 40 + next(&mut random) % 200);
                    let taken = held.values().any(|other| *other == address);
                    match held.remove(&mac) {
                        Some(_) if taken => {}
                        None if taken => {}
                        Some(_) if number.is_multiple_of(3) => {}
                        _ => drop(held.insert(mac, address)),
                    }
                }
                let macs: Vec<_> = held
                    .iter()
                    .map(|(mac, address)| (mac.as_str(), mac_with(address, false)))
                    .collect();
                guest.has(&vpc, &macs);
                std::thread::park_timeout(EVERY);
            }
            // One of c1's own comes and goes, too. What is freed is on hold for a minute.
            let number = 14 + u8::try_from(looks.len() % 20).expect("few");
            let name = format!("a{number}");
            vpc.nic(&name, "c1", number);
            fabric.has_rows("c2", vpc.vni, &[(&vpc.mac(number), C1)]);
            vpc.delete_nic(&name);
            settled(fabric, &vpc, &held);
            looks.push((start.elapsed(), memory(fabric)));
        }
        let warm = looks.iter().find(|(at, _)| *at > time / 3);
        let (Some((_, warm)), Some((_, last))) = (warm, looks.last()) else {
            panic!("no looks: {looks:?}");
        };
        for (daemon, before) in warm {
            let now = last.get(daemon).copied().unwrap_or_default();
            assert!(
                now < before + GROWTH_KIB && now > 0,
                "{daemon} grew from {before} to {now} KiB: {looks:?}"
            );
        }
        eprintln!("E34 in {:?}: {warm:?} KiB, then {last:?}", fabric.column);
        Cell::Pass
    },
};

/// Every host has exactly the rows that it was told of.
fn settled(fabric: &Fabric, vpc: &Vpc<'_>, held: &BTreeMap<String, String>) {
    let own = [(C1, 11), (C2, 12), (C3, 13)].map(|(vtep, number)| (vtep, vpc.mac(number)));
    for (host, (own_vtep, _)) in HOSTS.iter().zip(&own) {
        let mut expected: Vec<(&str, &str)> = vec![(NOBODY, GUEST_ADDRESS)];
        expected.extend(held.keys().map(|mac| (mac.as_str(), GUEST_ADDRESS)));
        for (vtep, mac) in own.iter().filter(|(vtep, _)| vtep != own_vtep) {
            expected.extend([(NOBODY, *vtep), (mac.as_str(), *vtep)]);
        }
        fabric.rows_become(host, vpc.vni, &expected);
        fabric.lab.eventually("its neighbour rows", || {
            let rows = fabric.neighbours(host, vpc);
            let seen: BTreeMap<String, String> = rows
                .into_iter()
                .map(|(address, mac)| (mac, address))
                .filter(|(mac, _)| mac.contains(":77:"))
                .collect();
            match seen == *held {
                true => Ok(()),
                false => Err(format!("{seen:?}, not {held:?}")),
            }
        });
    }
}
