//! A volume of which too many replicas are lost goes on from one that is left.

use crate::Expect;
use model::{HostId, VolumeId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// A volume goes on from the replica that has most, as those that could outvote it are lost for good.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecoverVolume {
    /// Which.
    pub volume: VolumeId,
    /// The version it must have.
    pub expect: Expect,
    /// What only the others have may be lost.
    pub accept_loss: bool,
    /// Hosts whose replicas are given up, although they may come back.
    pub dead: BTreeSet<HostId>,
}

/// What is known of a replica of a volume that is to be recovered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicaTold {
    /// Whether it could go on, or come back.
    pub standing: Standing,
    /// It leads.
    pub leads: bool,
    /// Term and index of its last entry, as its host told last; zeroes if it never did.
    pub last: (u64, u64),
    /// Entries of its log that are damaged: what comes after them cannot stand without them.
    pub damaged_entries: u64,
    /// The numbers of the replicas that decide, as its own log has them.
    pub voters: BTreeSet<u64>,
}

/// Whether a replica could go on, or come back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// It can be used.
    Works,
    /// It may come back; why it is away.
    Away(String),
    /// It lacks part of the contents, which others may bring; why.
    Partial(String),
    /// It does not come back; why.
    Lost(String),
}

impl ReplicaTold {
    /// Of one of which nothing was heard.
    pub fn nothing(why: &str) -> Self {
        Self {
            standing: Standing::Away(why.to_owned()),
            leads: false,
            last: (0, 0),
            damaged_entries: 0,
            voters: BTreeSet::new(),
        }
    }
}
