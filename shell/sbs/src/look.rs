//! How a storage process is, for operators, the agent and the management server.

use crate::figures::{Figures, Histogram};
use model::{DiskId, HostId, VolumeAttachment, VolumeId};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;

/// Everything that is to be seen of it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Look {
    /// The process.
    pub pid: u32,
    /// None if the host has none.
    pub disk: Option<DiskLook>,
    /// Replicas here.
    pub replicas: BTreeMap<VolumeId, ReplicaLook>,
    /// Volumes that are attached here, or being attached.
    pub attachments: BTreeMap<VolumeId, AttachmentLook>,
    /// The other hosts.
    pub peers: BTreeMap<HostId, PeerLook>,
    /// Volumes that are to be gone here, and are.
    #[serde(default)]
    pub erased: BTreeSet<VolumeId>,
    /// What is wanted and cannot be, for people.
    pub troubles: BTreeMap<VolumeId, String>,
    /// What was counted and timed.
    pub figures: Figures,
}

/// A disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskLook {
    /// Which one.
    pub id: DiskId,
    /// Where it is.
    pub path: PathBuf,
    /// For the contents of volumes.
    pub bytes: u64,
    /// Of those, what is neither used nor promised.
    pub free_bytes: u64,
    /// Why it takes part no more: it failed.
    pub dead: Option<String>,
}

/// A replica.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaLook {
    /// What it is.
    pub role: ReplicaRole,
    /// The newest term that it heard of.
    pub term: u64,
    /// The host of the replica that leads, as far as it knows.
    pub leader: Option<HostId>,
    /// Its last entry.
    pub last: u64,
    /// The term of that.
    #[serde(default)]
    pub last_term: u64,
    /// Part of the contents is yet to come from another replica.
    #[serde(default)]
    pub partial: bool,
    /// The numbers of the replicas that decide, as its own log has them.
    #[serde(default)]
    pub voters: Vec<u64>,
    /// Known to be committed.
    pub committed: u64,
    /// In effect here.
    pub applied: u64,
    /// Attachments that there were.
    pub epoch: u64,
    /// The size of the volume.
    pub bytes: u64,
    /// Of its contents at `applied`: the same on all replicas.
    pub digest: String,
    /// Why it cannot be used.
    pub failed: Option<String>,
    /// Chunks that came from a peer, and that are known to be missing, while it takes what no log has.
    #[serde(default)]
    pub catching_up: Option<(u64, u64)>,
    /// Entries of its log that are damaged, until a peer brings them.
    #[serde(default)]
    pub damaged_entries: u64,
    /// Blocks that were damaged, and came from a peer.
    #[serde(default)]
    pub mended_blocks: u64,
    /// Blocks that are damaged, and that no peer had when it was asked last.
    #[serde(default)]
    pub lost_blocks: u64,
    /// Replicas come or go.
    #[serde(default)]
    pub changing: bool,
    /// All replicas, as who leads knows them; nothing where another one leads.
    #[serde(default)]
    pub members: Vec<MemberLook>,
    /// Writes that were taken in here while it led, from then to when they were committed.
    #[serde(default)]
    pub commits: Histogram,
}

/// A replica, to who leads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberLook {
    /// Which.
    pub number: u64,
    /// Where.
    pub host: Option<HostId>,
    /// Its host is there, with the disk that it is on.
    pub there: bool,
    /// It is of those that decide.
    pub votes: bool,
    /// It is to stay.
    pub wanted: bool,
    /// It has all entries up to this one.
    pub matched: u64,
    /// It lacks what was committed a second ago.
    pub behind: bool,
    /// Chunks that it was seen to hold other contents of.
    pub differs: u64,
}

/// What a replica is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReplicaRole {
    /// It is being opened.
    Opening,
    /// It leads.
    Leader,
    /// It follows.
    Follower,
    /// It wants to lead.
    Candidate,
    /// It cannot be used.
    Unusable,
}

impl ReplicaRole {
    /// As it is shown.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Opening => "opening",
            Self::Leader => "leader",
            Self::Follower => "follower",
            Self::Candidate => "candidate",
            Self::Unusable => "unusable",
        }
    }
}

/// A volume that is served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachmentLook {
    /// The name of its export.
    pub name: String,
    /// Which attachment it is.
    pub attachment: VolumeAttachment,
    /// Bytes that are served.
    pub bytes: u64,
    /// How far it is.
    pub state: AttachmentState,
    /// Where clients come to.
    pub socket: PathBuf,
    /// Where clients come to, for those that know no sockets of this kind.
    pub tcp: Option<String>,
}

/// How far an attachment is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AttachmentState {
    /// The volume's replicas were asked, or there is trouble of its own.
    Attaching {
        /// What the trouble is, if any.
        trouble: Option<String>,
    },
    /// It serves.
    Attached,
    /// It serves no more: the volume was attached elsewhere since.
    Fenced,
}

impl AttachmentState {
    /// As it is shown.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Attaching { .. } => "attaching",
            Self::Attached => "attached",
            Self::Fenced => "fenced",
        }
    }
}

/// Another host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerLook {
    /// Where it is.
    pub address: IpAddr,
    /// It is reached.
    pub connected: bool,
    /// Why it is not.
    pub trouble: Option<String>,
    /// Frames that were not sent, as it was not reached or is too slow.
    pub dropped_frames: u64,
}
