//! Whatever becomes of a volume's replicas, no zone has more of them than it has to, at each step.

use crate::script::World;
use fleet_plan::Intent;
use model::{HostId, Kind, Name, ObjectId, Replica, Volume};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

const HOSTS: usize = 7;
const VOLUME: &str = "default/v";

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn no_zone_has_more_replicas_than_it_has_to(
        zones in prop::collection::vec(0_usize..4, HOSTS),
        small in prop::collection::vec(prop::bool::weighted(0.2), HOSTS),
        count in prop::sample::select(vec![1, 3, 5]),
        lines in prop::collection::vec(line(), 1..40),
    ) {
        let mut world = World::new();
        let mut outside = Outside::default();
        world.line("account default");
        for host in 0..HOSTS {
            let zone = ["", " zone a", " zone b", " zone c"][zones[host]];
            world.line(&format!("host h{host} 192.0.2.{} roles storage{zone}", host + 1));
            let mib = if small[host] { 512 } else { 2048 };
            world.line(&format!("disk h{host} {} {mib}", host + 11));
            if !small[host] {
                outside.roomy.insert(format!("h{host}"));
            }
        }
        let create = format!("volume {VOLUME} 1GiB replicas {count}");
        for line in std::iter::once(create).chain(lines) {
            let line = numbered(&line, volume(&world.intent));
            let before = volume(&world.intent).cloned();
            if before.is_none() && line.starts_with("tend") {
                continue;
            }
            outside.note(&line);
            world.line(&line);
            let Some(after) = volume(&world.intent) else { continue };
            outside.check(&world.intent, before.as_ref(), after, &line);
        }
    }
}

fn volume(intent: &Intent) -> Option<&Volume> {
    match intent.resolve(Kind::Volume, None, VOLUME).ok()? {
        ObjectId::Volume(id) => intent.volume(id),
        _ => None,
    }
}

fn line() -> impl Strategy<Value = String> {
    let host = || 0..HOSTS;
    let count = prop::sample::select(vec![1, 3, 5]);
    prop_oneof![
        3 => host().prop_map(|h| format!("move-replica {VOLUME} h{h}")),
        3 => (host(), host()).prop_map(|(h, to)| format!("move-replica {VOLUME} h{h} to h{to}")),
        3 => count.prop_map(|count| format!("set-replicas {VOLUME} {count}")),
        3 => (0_usize..5).prop_map(|at| format!("tend {VOLUME} leader settled lost @{at}")),
        6 => Just(format!("tend {VOLUME} leader settled")),
        3 => host().prop_map(|h| format!("tend {VOLUME} leader settled erased h{h}")),
        2 => host().prop_map(|h| format!("down h{h}")),
        2 => host().prop_map(|h| format!("up h{h}")),
        1 => (host(), prop::bool::ANY).prop_map(|(h, on)| format!("update-host h{h} draining {on}")),
        1 => host().prop_map(|h| format!("attach-volume {VOLUME} h{h}")),
    ]
}

/// With the number of the replica in that place.
fn numbered(line: &str, volume: Option<&Volume>) -> String {
    let Some((rest, at)) = line.split_once('@') else {
        return line.to_owned();
    };
    let at: usize = at.parse().unwrap();
    let replica = volume.and_then(|volume| volume.replicas.get(at));
    format!("{rest}{}", replica.map_or(0, |replica| replica.number))
}

/// Hosts, as the script told of them.
#[derive(Default)]
struct Outside {
    roomy: BTreeSet<String>,
    down: BTreeSet<String>,
}

impl Outside {
    fn note(&mut self, line: &str) {
        if let Some(host) = line.strip_prefix("down ") {
            self.down.insert(host.to_owned());
        }
        if let Some(host) = line.strip_prefix("up ") {
            self.down.remove(host);
        }
    }

    fn is_up(&self, intent: &Intent, host: HostId) -> bool {
        !self.down.contains(intent.host(host).unwrap().name.as_str())
    }

    fn check(&self, intent: &Intent, before: Option<&Volume>, after: &Volume, line: &str) {
        let hosts = |replicas: &[Replica]| replicas.iter().map(|it| it.host).collect();
        let now: Vec<HostId> = hosts(&after.replicas);
        let was: Vec<HostId> = before.map_or(Vec::new(), |before| hosts(&before.replicas));
        let stayed: Vec<HostId> = now.iter().copied().filter(|it| was.contains(it)).collect();
        let come = now.len() - stayed.len();
        let others = match (come, stayed.len() < was.len()) {
            (0, false) => return,
            // Others may go, and what is left be a majority that is up as far as there is one.
            (0, true) => {
                let sets = subsets(&was, now.len());
                let up = |set: &[HostId]| {
                    let up = set.iter().filter(|host| self.is_up(intent, **host));
                    up.count().min(now.len() / 2 + 1)
                };
                let most = sets.iter().map(|set| up(set)).max().unwrap();
                assert_eq!(up(&now), most, "{line}: a majority of {was:?} was up");
                sets.into_iter().filter(|set| up(set) == most).collect()
            }
            // Others may come.
            _ => {
                let leaving = before.iter().flat_map(|before| &before.leaving);
                let taken: Vec<HostId> = leaving
                    .map(|leaving| leaving.replica.host)
                    .chain(was.iter().copied())
                    .collect();
                let fits = intent.hosts().filter(|host| {
                    let roomy = self.roomy.contains(host.name.as_str());
                    let up = self.is_up(intent, host.id);
                    roomy && up && !host.draining && !taken.contains(&host.id)
                });
                let fits: Vec<HostId> = fits.map(|host| host.id).collect();
                let with = |set: Vec<HostId>| stayed.iter().copied().chain(set).collect();
                let sets: Vec<Vec<HostId>> = subsets(&fits, come).into_iter().map(with).collect();
                sets
            }
        };
        let best = others.iter().map(|set| crowds(intent, set)).min();
        assert_eq!(
            Some(crowds(intent, &now)),
            best,
            "{line}: from {was:?} to {now:?}"
        );
        // Those that decide are the old ones, both, or the new ones: each outlives a zone if it can.
        let outlives = |set: &Vec<HostId>| 2 * crowds(intent, set)[0] < set.len();
        assert!(
            outlives(&now) || !others.iter().any(outlives),
            "{line}: {now:?} has no majority without one zone"
        );
    }
}

/// How many each zone has, the largest first.
fn crowds(intent: &Intent, hosts: &[HostId]) -> Vec<usize> {
    let mut zones: BTreeMap<Option<&Name>, usize> = BTreeMap::new();
    for host in hosts {
        *zones
            .entry(intent.host(*host).unwrap().zone.as_ref())
            .or_default() += 1;
    }
    let mut crowds: Vec<usize> = zones.into_values().collect();
    crowds.sort_unstable_by(|a, b| b.cmp(a));
    crowds
}

fn subsets(of: &[HostId], count: usize) -> Vec<Vec<HostId>> {
    match (of, count) {
        (_, 0) => vec![Vec::new()],
        ([], _) => Vec::new(),
        ([first, rest @ ..], _) => {
            let mut with = subsets(rest, count - 1);
            with.iter_mut().for_each(|set| set.push(*first));
            with.extend(subsets(rest, count));
            with
        }
    }
}
