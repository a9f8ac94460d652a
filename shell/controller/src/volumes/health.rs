//! How a volume and its replicas are, by what their hosts tell.

use api::v1;
use std::collections::BTreeSet;

/// What is known of a replica.
#[derive(Debug, Clone)]
pub(crate) struct Told<'a> {
    pub(crate) number: u64,
    /// Its host stopped checking in.
    pub(crate) down: bool,
    /// What its host tells of the volume.
    pub(crate) report: Option<&'a v1::VolumeReport>,
}

/// A volume, judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Health {
    pub(crate) state: &'static str,
    /// Of the replicas, in their order.
    pub(crate) replicas: Vec<ReplicaHealth>,
    /// Who leads has the replicas that it is to have, and no others.
    pub(crate) settled: bool,
    /// Those that are there, as who leads sees it, whatever management hears of their hosts.
    pub(crate) there: BTreeSet<u64>,
    /// Those that decide, as who leads has it; nothing while nobody does.
    pub(crate) voters: Option<BTreeSet<u64>>,
}

/// A replica, judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ReplicaHealth {
    pub(crate) state: &'static str,
    pub(crate) matched: u64,
    pub(crate) percent: u32,
}

fn replica_of<'a>(told: &Told<'a>) -> Option<&'a v1::ReplicaReport> {
    told.report?.replica.as_ref().filter(|_| !told.down)
}

/// What who leads tells; of several that say so the newest.
fn leader<'a>(told: impl Iterator<Item = &'a Told<'a>>) -> Option<&'a v1::ReplicaReport> {
    let leads = told.filter_map(replica_of).filter(|it| it.role == "leader");
    leads.max_by_key(|report| report.term)
}

/// `replicas` are to stay, `leaving` may still be there.
pub(crate) fn health(replicas: &[Told<'_>], leaving: &[Told<'_>]) -> Health {
    let leader = leader(replicas.iter().chain(leaving));
    let judged: Vec<ReplicaHealth> = replicas.iter().map(|it| judge(it, leader)).collect();
    let voters = leader.map(|leader| {
        let voters = leader.members.iter().filter(|member| member.votes);
        voters.map(|member| member.number).collect()
    });
    let members = leader.iter().flat_map(|leader| &leader.members);
    let there = members.filter(|member| member.there).map(|it| it.number);
    let wanted: BTreeSet<u64> = replicas.iter().map(|it| it.number).collect();
    let settled = leader.is_some_and(|it| !it.changing) && voters.as_ref() == Some(&wanted);
    let any = |states: &[&str]| judged.iter().any(|it| states.contains(&it.state));
    let lacking = [
        "away", "behind", "differs", "down", "opening", "unusable", "unknown",
    ];
    let lost = leader.is_some_and(|leader| leader.lost_blocks > 0);
    let state = match leader {
        None => "down",
        Some(_) if lost => "lost-blocks",
        Some(_) if any(&["rebuilding", "coming"]) => "rebuilding",
        Some(_) if any(&lacking) => "degraded",
        Some(_) if !settled => "rebuilding",
        Some(_) => "healthy",
    };
    Health {
        state,
        replicas: judged,
        settled,
        there: there.collect(),
        voters,
    }
}

fn judge(told: &Told<'_>, leader: Option<&v1::ReplicaReport>) -> ReplicaHealth {
    let report = replica_of(told);
    let member = leader.and_then(|leader| {
        let mut members = leader.members.iter();
        members.find(|member| member.number == told.number)
    });
    let (taken, missing) = report.map_or((0, 0), |it| (it.chunks_taken, it.chunks_missing));
    let role = report.map(|report| report.role.as_str());
    let state = match (role, member) {
        _ if told.down => "down",
        (Some("leader"), _) => "leader",
        (Some("unusable"), _) => "unusable",
        (Some("opening"), _) => "opening",
        (_, Some(member)) if !member.there => "away",
        (Some(_), _) if taken + missing > 0 => "rebuilding",
        (_, Some(member)) if !member.votes => "rebuilding",
        (_, Some(member)) if member.differing_chunks > 0 => "differs",
        (_, Some(member)) if member.behind => "behind",
        (_, None) if leader.is_some() => "coming",
        (Some("candidate"), _) => "candidate",
        (Some("follower"), _) => "follower",
        (Some(_) | None, _) => "unknown",
    };
    ReplicaHealth {
        state,
        matched: member.map_or(0, |member| member.matched),
        percent: match taken + missing {
            0 => 0,
            all => u32::try_from(taken * 100 / all).unwrap_or(100),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn follower() -> v1::VolumeReport {
        v1::VolumeReport {
            replica: Some(v1::ReplicaReport {
                role: "follower".to_owned(),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    fn leader_of(change: impl Fn(&mut v1::MemberReport)) -> v1::VolumeReport {
        let member = |number| {
            let mut member = v1::MemberReport {
                number,
                there: true,
                votes: true,
                wanted: true,
                matched: 9,
                ..Default::default()
            };
            change(&mut member);
            member
        };
        v1::VolumeReport {
            replica: Some(v1::ReplicaReport {
                role: "leader".to_owned(),
                term: 4,
                members: (1..=3).map(member).collect(),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    fn judged(reports: [Option<&v1::VolumeReport>; 3]) -> (&'static str, Vec<&'static str>, bool) {
        let told = (1..).zip(reports).map(|(number, report)| Told {
            number,
            down: false,
            report,
        });
        let told: Vec<Told<'_>> = told.collect();
        let health = health(&told, &[]);
        let states = health.replicas.iter().map(|it| it.state).collect();
        (health.state, states, health.settled)
    }

    #[test]
    fn a_volume_is_healthy_when_all_have_what_was_committed_a_second_ago() {
        let (leader, follower) = (leader_of(|_| {}), follower());
        let all = [Some(&leader), Some(&follower), Some(&follower)];
        let states = vec!["leader", "follower", "follower"];
        assert_eq!(judged(all), ("healthy", states, true));
        let behind = leader_of(|member| member.behind = member.number == 3);
        let all = [Some(&behind), Some(&follower), Some(&follower)];
        let states = vec!["leader", "follower", "behind"];
        assert_eq!(judged(all), ("degraded", states, true));
        let away = leader_of(|member| member.there = member.number != 2);
        let all = [Some(&away), Some(&follower), Some(&follower)];
        assert_eq!(judged(all).0, "degraded");
        assert_eq!(judged([None, Some(&follower), Some(&follower)]).0, "down");
        let mut damaged = leader_of(|_| {});
        damaged.replica.as_mut().unwrap().lost_blocks = 2;
        let all = [Some(&damaged), Some(&follower), Some(&follower)];
        assert_eq!(judged(all).0, "lost-blocks");
    }

    #[test]
    fn who_takes_chunks_or_does_not_vote_yet_is_rebuilding() {
        let leader = leader_of(|member| member.votes = member.number != 3);
        let (follower, mut takes) = (follower(), follower());
        let all = [Some(&leader), Some(&follower), Some(&follower)];
        let states = vec!["leader", "follower", "rebuilding"];
        assert_eq!(judged(all), ("rebuilding", states, false));
        let replica = takes.replica.as_mut().unwrap();
        (replica.chunks_taken, replica.chunks_missing) = (30, 10);
        let told = Told {
            number: 2,
            down: false,
            report: Some(&takes),
        };
        let seen = judge(&told, None);
        assert_eq!((seen.state, seen.percent), ("rebuilding", 75));
    }

    #[test]
    fn a_leader_whose_host_is_down_is_none() {
        let leader = leader_of(|_| {});
        let told = Told {
            number: 1,
            down: true,
            report: Some(&leader),
        };
        let health = health(&[told], &[]);
        assert!(health.there.is_empty());
        assert_eq!((health.state, health.voters), ("down", None));
        assert_eq!(health.replicas[0].state, "down");
    }

    #[test]
    fn who_is_no_member_yet_is_coming() {
        let (mut leader, follower) = (leader_of(|_| {}), follower());
        leader.replica.as_mut().unwrap().members.pop();
        let (state, states, settled) = judged([Some(&leader), Some(&follower), None]);
        assert_eq!((state, states[2], settled), ("rebuilding", "coming", false));
    }
}
