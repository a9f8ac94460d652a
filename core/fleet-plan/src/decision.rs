//! What a command comes to: exactly what the store persists in one transaction.

use crate::{Command, Context, RequestId};
use model::{Change, ExternalNetworkId, MacAddr, Object, Revision, UnixMillis, VlanId, Vni, VpcId};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::fmt;
use std::net::IpAddr;

/// How long a request id is remembered: a client that retries for a day gets its first result.
pub const REQUEST_KEPT_MILLIS: u64 = 24 * 3600 * 1000;

/// A command that was found good, and what it does. Commit `delta` on top of `base`, then
/// [`crate::Intent::apply`] it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// The revision that it was decided on: the store refuses it on any other.
    pub base: Revision,
    /// What changes. Empty if the command was already carried out or changes nothing.
    pub delta: Delta,
    /// The answer to the caller: the object after the change; as it was last, if deleted.
    pub object: Object,
}

impl Decision {
    /// True if there is nothing to commit: a repeated request, or an update to what already is.
    pub fn is_noop(&self) -> bool {
        self.delta.changes.is_empty()
    }

    /// The revision after it.
    pub fn revision(&self) -> Revision {
        self.delta.revision().unwrap_or(self.base)
    }
}

/// A stretch of history: changes, and what else has to be remembered about them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Delta {
    /// When. Holds and requests that end at or before it are forgotten.
    pub at: UnixMillis,
    /// Changes with consecutive revisions.
    pub changes: Vec<Change>,
    /// Resources freed by them.
    pub holds: Vec<Hold>,
    /// Requests that they answered.
    pub requests: Vec<RequestRecord>,
}

impl Delta {
    /// The revision of its last change.
    pub fn revision(&self) -> Option<Revision> {
        self.changes.last().map(|change| change.revision)
    }
}

/// A freed resource that is not to be handed out yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    /// Which.
    pub resource: Resource,
    /// It is free from then on.
    pub until: UnixMillis,
    /// The change that freed it.
    pub revision: Revision,
}

/// Something that is handed out once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Resource {
    /// An address in a VPC.
    Address(VpcId, IpAddr),
    /// A MAC in a VPC.
    Mac(VpcId, MacAddr),
    /// A VLAN in a VPC.
    Vlan(VpcId, VlanId),
    /// A VNI in the cluster.
    Vni(Vni),
    /// An address of an external network.
    Public(ExternalNetworkId, IpAddr),
    /// The MAC of an outer leg on an external network.
    OuterMac(ExternalNetworkId, MacAddr),
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(_, address) => write!(f, "address {address}"),
            Self::Public(_, address) => write!(f, "public address {address}"),
            Self::Mac(_, mac) | Self::OuterMac(_, mac) => write!(f, "MAC {mac}"),
            Self::Vlan(_, vlan) => write!(f, "VLAN {vlan}"),
            Self::Vni(vni) => write!(f, "VNI {vni}"),
        }
    }
}

/// The memory of one request, so that it is carried out once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestRecord {
    /// The client's id.
    pub id: RequestId,
    /// Of the command and who sent it.
    pub fingerprint: Fingerprint,
    /// The answer that was given.
    pub object: Object,
    /// It is forgotten then.
    pub until: UnixMillis,
    /// The last change that it made.
    pub revision: Revision,
}

/// SHA-256 of a command and its actor.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fingerprint(pub String);

impl Fingerprint {
    pub(crate) fn of(command: &Command, context: &Context) -> Self {
        let text = serde_json::to_string(&(&context.actor, command))
            .expect("commands have string keys only, so they have a JSON form");
        Self(hex(&Sha256::digest(text)))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
