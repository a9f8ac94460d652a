//! What can be asked of the intent.

use crate::{
    AttachPublicIp, AttachVolume, AttachmentSpec, CreateExternal, CreatePublicIp, CreateRouter,
    CreateVolume, DeleteVolume, DiskRoom, MoveReplica, MoveStep, RecoverVolume, ReplicaTold,
    ResizeVolume, SetReplicas, UpdateRouter, VolumeStep,
};
use ipnet::IpNet;
use model::{
    AccountId, Encoding, HostId, Labels, MacAddr, Mtu, Name, NicId, ObjectId, Revision, Role,
    Routing, SpeakerKind, SubnetId, SubnetOptions, UnixMillis, UnknownNeighbours, UserData, VlanId,
    Vni, VolumeId, VpcId,
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// One request for a change. Objects are named by id; [`crate::Intent::resolve`] turns what a
/// user typed into one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Command {
    /// A new tenant.
    CreateAccount(CreateAccount),
    /// A new VPC.
    CreateVpc(CreateVpc),
    /// A new subnet.
    CreateSubnet(CreateSubnet),
    /// A new NIC.
    CreateNic(CreateNic),
    /// A NIC goes to another host.
    MoveNic(MoveNic),
    /// The next phase of a move; the server's own, when hosts reported or time is up.
    AdvanceMove {
        /// Which NIC.
        nic: NicId,
        /// The version of it that the step was worked out for.
        expect: Expect,
        /// What comes next.
        step: MoveStep,
    },
    /// A host joins.
    CreateHost(CreateHost),
    /// A new external network.
    CreateExternal(CreateExternal),
    /// A new router.
    CreateRouter(CreateRouter),
    /// Changes a router.
    UpdateRouter(UpdateRouter),
    /// A new public address.
    CreatePublicIp(CreatePublicIp),
    /// A public address is for something else.
    AttachPublicIp(AttachPublicIp),
    /// A new volume.
    CreateVolume(CreateVolume),
    /// A volume is attached elsewhere, or nowhere.
    AttachVolume(AttachVolume),
    /// A volume becomes larger.
    ResizeVolume(ResizeVolume),
    /// A volume has more replicas, or fewer.
    SetReplicas(SetReplicas),
    /// A replica goes to another host.
    MoveReplica(MoveReplica),
    /// A volume goes on from one of its replicas.
    RecoverVolume(RecoverVolume),
    /// A volume is deleted, after a while for good.
    DeleteVolume(DeleteVolume),
    /// What is next for a volume; the server's own, when hosts reported or time is up.
    AdvanceVolume {
        /// Which.
        volume: VolumeId,
        /// The version of it that the step was worked out for.
        expect: Expect,
        /// What comes next.
        step: VolumeStep,
    },
    /// A deleted volume is there again.
    RestoreVolume {
        /// Which.
        volume: VolumeId,
        /// The version it must have.
        expect: Expect,
    },
    /// Replaces the labels of any object.
    SetLabels {
        /// Which.
        object: ObjectId,
        /// The version it must have.
        expect: Expect,
        /// All its labels from now on.
        labels: Labels,
    },
    /// Changes a VPC.
    UpdateVpc(UpdateVpc),
    /// Changes a subnet.
    UpdateSubnet(UpdateSubnet),
    /// Changes a host.
    UpdateHost(UpdateHost),
    /// Deletes any object that nothing stands on.
    Delete {
        /// Which.
        object: ObjectId,
        /// The version it must have.
        expect: Expect,
    },
}

/// Which version of an object an update or delete is meant for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Expect {
    /// Whatever it is now; said on purpose.
    Any,
    /// The one the caller saw (`meta.revision`).
    Exactly(Revision),
}

/// A new tenant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateAccount {
    /// Unique in the cluster.
    pub name: Name,
    /// The users' labels.
    pub labels: Labels,
}

/// A new VPC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateVpc {
    /// Owner.
    pub account: AccountId,
    /// Unique in the account.
    pub name: Name,
    /// 1 to 50 canonical prefixes that do not overlap.
    pub cidrs: Vec<IpNet>,
    /// A VNI of the caller's choice; otherwise the lowest free from 4096 up, so that those below
    /// stay for people to pick.
    pub vni: Option<Vni>,
    /// How subnets are told apart on the wire.
    pub encoding: Encoding,
    /// Where its subnets are routed, for good.
    #[serde(default)]
    pub routing: Routing,
    /// What becomes of questions for addresses that nobody announced.
    #[serde(default)]
    pub unknown_neighbours: UnknownNeighbours,
    /// The users' labels.
    pub labels: Labels,
}

/// A new subnet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateSubnet {
    /// Owner.
    pub vpc: VpcId,
    /// Unique in the VPC.
    pub name: Name,
    /// One IPv4 prefix up to /30, one IPv6 prefix of /64 to /126, or both; inside the VPC's.
    pub cidrs: Vec<IpNet>,
    /// A VLAN of the caller's choice; otherwise the lowest free (1 last of all, because bridges
    /// made by other tools use it for everything).
    pub vlan: Option<VlanId>,
    /// A VNI of the caller's choice; only for vlan-based VPCs.
    pub vni: Option<Vni>,
    /// Less than the underlay allows, if wanted.
    pub mtu: Option<Mtu>,
    /// What its NICs are told.
    #[serde(default, skip_serializing_if = "SubnetOptions::is_default")]
    pub options: SubnetOptions,
    /// The users' labels.
    pub labels: Labels,
}

/// A new NIC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateNic {
    /// Owner.
    pub subnet: SubnetId,
    /// Unique in the subnet.
    pub name: Name,
    /// Where it goes: a compute host that is not draining.
    pub host: HostId,
    /// What it is plugged into there.
    pub attachment: AttachmentSpec,
    /// A MAC of the caller's choice; otherwise a random locally administered one.
    pub mac: Option<MacAddr>,
    /// Addresses of the caller's choice, at most one per family; the others are allocated.
    pub addresses: Vec<IpAddr>,
    /// What it may read of its user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_data: Option<UserData>,
    /// The users' labels.
    pub labels: Labels,
}

/// A NIC goes to another host, with its addresses and its MAC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveNic {
    /// Which.
    pub nic: NicId,
    /// The version it must have.
    pub expect: Expect,
    /// Where it goes: a compute host that is not draining.
    pub host: HostId,
    /// What it is plugged into there; otherwise the same as where it is.
    pub attachment: Option<AttachmentSpec>,
}

/// A host joins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateHost {
    /// Unique in the cluster.
    pub name: Name,
    /// What it is for; at least one.
    pub roles: BTreeSet<Role>,
    /// Its VTEP's address: unicast, unique, of the same family as all others'.
    pub underlay: IpAddr,
    /// Failure domain.
    pub zone: Option<Name>,
    /// Its EVPN client.
    #[serde(default, skip_serializing_if = "SpeakerKind::is_default")]
    pub speaker: SpeakerKind,
    /// The users' labels.
    pub labels: Labels,
}

/// Changes a VPC. `None` leaves a field as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdateVpc {
    /// Which.
    pub vpc: VpcId,
    /// The version it must have.
    pub expect: Expect,
    /// All its prefixes from now on; one that a subnet lies in cannot go.
    pub cidrs: Option<Vec<IpNet>>,
    /// All its labels from now on.
    pub labels: Option<Labels>,
}

/// Changes a subnet. `None` leaves a field as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdateSubnet {
    /// Which.
    pub subnet: SubnetId,
    /// The version it must have.
    pub expect: Expect,
    /// All that its NICs are told from now on.
    pub options: Option<SubnetOptions>,
    /// All its labels from now on.
    pub labels: Option<Labels>,
}

/// Changes a host. `None` leaves a field as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdateHost {
    /// Which.
    pub host: HostId,
    /// The version it must have.
    pub expect: Expect,
    /// All its roles from now on.
    pub roles: Option<BTreeSet<Role>>,
    /// Its zone from now on; `Some(None)` takes it out of its zone.
    pub zone: Option<Option<Name>>,
    /// True: it takes no new workloads.
    pub draining: Option<bool>,
    /// Its EVPN client from now on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub speaker: Option<SpeakerKind>,
    /// All its labels from now on.
    pub labels: Option<Labels>,
}

impl Command {
    /// What it does, for the audit log.
    pub const fn action(&self) -> &'static str {
        match self {
            Self::CreateAccount(_) => "create account",
            Self::CreateVpc(_) => "create vpc",
            Self::CreateSubnet(_) => "create subnet",
            Self::CreateNic(_) => "create nic",
            Self::MoveNic(_) => "move nic",
            Self::AdvanceMove { .. } => "advance move",
            Self::CreateHost(_) => "create host",
            Self::CreateExternal(_) => "create external",
            Self::CreateRouter(_) => "create router",
            Self::UpdateRouter(_) => "update router",
            Self::CreatePublicIp(_) => "create publicip",
            Self::AttachPublicIp(_) => "attach publicip",
            Self::CreateVolume(_) => "create volume",
            Self::AttachVolume(_) => "attach volume",
            Self::ResizeVolume(_) => "resize volume",
            Self::SetReplicas(_) => "set replicas",
            Self::MoveReplica(_) => "move replica",
            Self::RecoverVolume(_) => "recover volume",
            Self::DeleteVolume(_) => "delete volume",
            Self::AdvanceVolume { .. } => "advance volume",
            Self::RestoreVolume { .. } => "restore volume",
            Self::SetLabels { .. } => "set labels",
            Self::UpdateVpc(_) => "update vpc",
            Self::UpdateSubnet(_) => "update subnet",
            Self::UpdateHost(_) => "update host",
            Self::Delete { .. } => "delete",
        }
    }
}

/// What surrounds a command. Keep it when a commit loses a race and the command is decided again.
#[derive(Debug, Clone)]
pub struct Context {
    /// The server's clock.
    pub now: UnixMillis,
    /// 64 random bits, fresh for each request: ids and MACs come from it.
    pub seed: u64,
    /// Makes the command idempotent: the same id and command again give the first result.
    pub request: Option<RequestId>,
    /// Hosts that are not heard of: nothing is placed on one of them by itself.
    pub down: BTreeSet<HostId>,
    /// Disks of hosts, for volumes to be placed on.
    pub disks: BTreeMap<HostId, DiskRoom>,
    /// By number, replicas of the volume that is to be recovered; of other commands none.
    pub replicas: BTreeMap<u64, ReplicaTold>,
    /// Who asks. The same request id from another actor is another request's, and refused.
    pub actor: String,
}

/// A client's name for one request: 1 to 128 printable ASCII characters, usually a UUID.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RequestId(String);

/// Text that is not a request id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("request id {0:?} is not 1 to 128 printable ASCII characters: use a UUID")]
pub struct BadRequestId(pub String);

impl RequestId {
    /// Checks `text` and keeps it.
    pub fn new(text: impl Into<String>) -> Result<Self, BadRequestId> {
        let text = text.into();
        if (1..=128).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic()) {
            Ok(Self(text))
        } else {
            Err(BadRequestId(text.chars().take(128).collect()))
        }
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for RequestId {
    type Err = BadRequestId;
    fn from_str(text: &str) -> Result<Self, BadRequestId> {
        Self::new(text)
    }
}

impl TryFrom<String> for RequestId {
    type Error = BadRequestId;
    fn try_from(text: String) -> Result<Self, BadRequestId> {
        Self::new(text)
    }
}

impl From<RequestId> for String {
    fn from(id: RequestId) -> String {
        id.0
    }
}
