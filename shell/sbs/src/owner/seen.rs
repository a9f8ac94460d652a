//! What the thread knows, for those who look.

use super::Seen;
use super::running::Running;
use crate::figures::{Figures, Histogram};
use crate::identity;
use crate::look::{MemberLook, ReplicaLook, ReplicaRole};
use blocks::{BLOCK_BYTES, VolumeId};
use replication::{GroupInfo, HostId, Member, Members, NotReady, Role};
use std::time::{Duration, Instant};
use storage_plan::HaveReplica;

/// Who lacks what was committed so long ago is behind.
const BEHIND_AFTER: Duration = Duration::from_secs(1);
/// Entries that may be on their way to a follower at any time.
const ON_THE_WAY: u64 = 256;

/// What was committed at two times in the past: who lacks the older one is behind.
#[derive(Debug, Clone, Copy)]
pub(super) struct Marks {
    old: u64,
    new: u64,
    at: Instant,
}

impl Running {
    pub(super) fn seen(&mut self) -> Seen {
        self.mark();
        let store = self.host.store();
        let all = || {
            let ours = |volume| Some((volume, identity::volume_back(volume)?));
            store.volumes().filter_map(ours)
        };
        let replicas = all().filter_map(|(volume, id)| Some((id, self.replica(volume)?)));
        let have = all().filter_map(|(volume, id)| Some((id, self.have(volume)?)));
        let (host, disk) = (self.host.counters(), store.counters());
        let scrubbed = self.host.scrubbed();
        let figures = Figures {
            waiting_requests: self.asked.len() as u64,
            waiting_io: self.begun.len() as u64,
            frames: host.frames,
            messages: host.messages,
            refused_messages: host.refused,
            batches: disk.batches,
            checkpoints: disk.checkpoints,
            log_bytes: disk.log_bytes,
            extent_bytes: disk.extent_bytes,
            map_bytes: disk.map_bytes,
            damaged_blocks: disk.damaged_blocks,
            scrubbed_chunks: scrubbed.chunks,
            scrub_rounds: scrubbed.rounds,
            ..self.figures.clone()
        };
        Seen {
            replicas: replicas.collect(),
            have: have.collect(),
            space: store.space(),
            dead: self.host.dead().map(str::to_owned),
            figures,
        }
    }

    /// Notes what is committed, of volumes that are led here.
    fn mark(&mut self) {
        let now = Instant::now();
        let marks = std::mem::take(&mut self.marks);
        for volume in self.host.store().volumes() {
            let Some(group) = self.host.group(volume).filter(|it| it.role == Role::Leader) else {
                continue;
            };
            let first = Marks {
                old: group.committed.saturating_sub(ON_THE_WAY).max(1),
                new: group.committed,
                at: now,
            };
            let mut held = marks.get(&volume).copied().unwrap_or(first);
            if held.at + BEHIND_AFTER <= now {
                (held.old, held.new, held.at) = (held.new, group.committed, now);
            }
            self.marks.insert(volume, held);
        }
    }

    fn have(&self, volume: VolumeId) -> Option<HaveReplica> {
        let info = self.host.store().volume(volume)?;
        let group = self.host.group(volume);
        let leads = group.as_ref().is_some_and(|it| it.role == Role::Leader);
        let recovery = group.as_ref().map_or(u64::MAX, |it| it.recovery);
        let members = group.map(|group| group.members);
        let members = members.or_else(|| Members::decode(&info.config.1).ok());
        let here = HostId(self.host.store().identity().host);
        let number = members.as_ref().and_then(|members| members.replica(here));
        let wanted = members.iter().flat_map(Members::wanted);
        let numbers = members.iter().flat_map(Members::iter);
        Some(HaveReplica {
            bytes: info.blocks * BLOCK_BYTES as u64,
            number: number.map_or(0, |number| number.0),
            // One that is being opened, or cannot be used, recovers nothing.
            recovery,
            leads,
            wanted: wanted
                .filter_map(|it| Some((it.replica.0, identity::host_back(it.host)?)))
                .collect(),
            numbered: numbers.map(|it| it.replica.0).max().unwrap_or(0),
        })
    }

    /// All replicas, as who leads knows them.
    fn members(&self, volume: VolumeId, group: &GroupInfo) -> Vec<MemberLook> {
        let Some(marks) = self.marks.get(&volume) else {
            return Vec::new();
        };
        let wanted = group.members.wanted();
        let look = |member: Member| {
            let follower = group.followers.iter().find(|it| it.member == member);
            // Who is no follower is the leader itself.
            let matched = follower.map_or(group.last, |it| it.matched);
            MemberLook {
                number: member.replica.0,
                host: identity::host_back(member.host),
                there: follower.is_none_or(|it| it.there),
                votes: group.members.votes(member.replica),
                wanted: wanted.contains(&member),
                matched,
                behind: matched < marks.old,
                differs: follower.map_or(0, |it| it.differs.len() as u64),
            }
        };
        group.members.iter().map(look).collect()
    }

    fn replica(&self, volume: VolumeId) -> Option<ReplicaLook> {
        let info = self.host.store().volume(volume)?;
        let members = Members::decode(&info.config.1).ok();
        let look = ReplicaLook {
            role: ReplicaRole::Opening,
            term: info.hard.term,
            leader: None,
            last: info.last,
            last_term: self.host.store().term(volume, info.last).unwrap_or(0),
            partial: info.mixed || info.applied == 0,
            voters: members.iter().flat_map(voters).collect(),
            committed: info.hard.commit,
            applied: info.applied,
            epoch: replication::Stamp::from_entry(info.epoch).epoch(),
            bytes: info.blocks * BLOCK_BYTES as u64,
            digest: format!("{:032x}", info.digest.0),
            failed: info.broken,
            catching_up: None,
            damaged_entries: 0,
            mended_blocks: 0,
            lost_blocks: 0,
            changing: false,
            members: Vec::new(),
            commits: Histogram::default(),
        };
        let Some(group) = self.host.group(volume) else {
            let unusable = self.host.unusable().iter().find(|not_ready| {
                matches!(not_ready, NotReady::Unusable { volume: of, .. } if *of == volume)
            });
            let dead = self
                .host
                .dead()
                .map(|why| format!("the disk failed: {why}"));
            let failed = unusable.map(ToString::to_string).or(look.failed).or(dead);
            let role = match failed {
                Some(_) => ReplicaRole::Unusable,
                None => ReplicaRole::Opening,
            };
            return Some(ReplicaLook {
                role,
                failed,
                ..look
            });
        };
        let members_of = match group.role {
            Role::Leader => self.members(volume, &group),
            Role::Follower | Role::Candidate => Vec::new(),
        };
        let leader = group
            .leader
            .and_then(|leader| members.as_ref()?.host(leader));
        Some(ReplicaLook {
            role: match group.role {
                Role::Leader => ReplicaRole::Leader,
                Role::Follower => ReplicaRole::Follower,
                Role::Candidate => ReplicaRole::Candidate,
            },
            term: group.term,
            leader: leader.and_then(identity::host_back),
            committed: group.committed,
            failed: group.failed.or(look.failed),
            catching_up: group.catching_up,
            damaged_entries: group.damaged_entries,
            mended_blocks: group.mended,
            lost_blocks: group.given_up,
            changing: group.members.is_changing(),
            members: members_of,
            commits: Histogram::of(&group.commits),
            ..look
        })
    }
}

fn voters(members: &Members) -> impl Iterator<Item = u64> {
    let votes = move |member: &Member| members.votes(member.replica);
    members.iter().filter(votes).map(|member| member.replica.0)
}
