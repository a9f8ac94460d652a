//! Who has replicas of a volume, as the log has it.

use crate::{HostId, ReplicaId};

/// A replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// Which.
    pub replica: ReplicaId,
    /// Where.
    pub host: HostId,
}

/// A volume's replicas; all of them vote.
///
/// `| version 1 | count 1 | replica 8, host 16 .. |`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Members(Vec<Member>);

/// Most replicas of a volume.
const MOST: usize = 7;
const VERSION: u8 = 1;
const MEMBER_BYTES: usize = 24;

/// Why these are no members.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadMembers {
    /// Too few, too many, or twice the same.
    #[error(
        "{count} replicas: a volume has 1 to {MOST}, each with a number of its own on a host of its own"
    )]
    Number {
        /// How many.
        count: usize,
    },
    /// Bytes that are none.
    #[error("the volume's configuration cannot be read; it is of another release, or damaged")]
    Unreadable,
}

impl Members {
    /// Checked: numbers and hosts differ, and no number is zero.
    pub fn new(mut members: Vec<Member>) -> Result<Self, BadMembers> {
        let count = members.len();
        members.sort_by_key(|member| member.replica);
        let zero = members.first().is_none_or(|first| first.replica.0 == 0);
        let twice = members
            .windows(2)
            .any(|two| two[0].replica == two[1].replica);
        let shared =
            (1..count).any(|at| members[..at].iter().any(|it| it.host == members[at].host));
        if zero || twice || shared || count > MOST {
            return Err(BadMembers::Number { count });
        }
        Ok(Self(members))
    }

    /// As the log has them.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION, self.0.len() as u8];
        for member in &self.0 {
            bytes.extend(member.replica.0.to_le_bytes());
            bytes.extend(member.host.0.to_le_bytes());
        }
        bytes
    }

    /// From the log.
    pub fn decode(bytes: &[u8]) -> Result<Self, BadMembers> {
        let [VERSION, count, rest @ ..] = bytes else {
            return Err(BadMembers::Unreadable);
        };
        if rest.len() != usize::from(*count) * MEMBER_BYTES {
            return Err(BadMembers::Unreadable);
        }
        let member = |bytes: &[u8]| {
            let (replica, host) = bytes.split_at(8);
            Some(Member {
                replica: ReplicaId(u64::from_le_bytes(replica.try_into().ok()?)),
                host: HostId(u128::from_le_bytes(host.try_into().ok()?)),
            })
        };
        let members: Option<Vec<Member>> = rest.chunks_exact(MEMBER_BYTES).map(member).collect();
        Self::new(members.ok_or(BadMembers::Unreadable)?)
    }

    /// All of them, by number.
    pub fn iter(&self) -> impl Iterator<Item = Member> {
        self.0.iter().copied()
    }

    /// Where a replica is.
    pub fn host(&self, replica: ReplicaId) -> Option<HostId> {
        let found = self.0.iter().find(|member| member.replica == replica);
        found.map(|member| member.host)
    }

    /// A host's replica.
    pub fn replica(&self, host: HostId) -> Option<ReplicaId> {
        let found = self.0.iter().find(|member| member.host == host);
        found.map(|member| member.replica)
    }

    /// How many make a majority.
    pub fn majority(&self) -> usize {
        self.0.len() / 2 + 1
    }

    /// A replica's place among the others.
    pub(crate) fn rank(&self, replica: ReplicaId) -> usize {
        self.0
            .iter()
            .position(|member| member.replica == replica)
            .unwrap_or(0)
    }

    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }
}
