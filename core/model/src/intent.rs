//! What users asked for, and what hosts report: the rows of the management database.

use crate::{
    AccountId, Asn, Attachment, Encoding, ExternalNetwork, ExternalNetworkId, HostId, MacAddr, Mtu,
    Name, NicId, PublicIp, PublicIpId, Router, RouterId, Routing, SpeakerKind, SubnetId,
    SubnetOptions, Transport, UnknownNeighbours, UserData, VlanId, Vni, Volume, VolumeId, VoterSet,
    VpcId,
};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

/// Milliseconds since 1970-01-01 UTC.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct UnixMillis(pub u64);

/// A point in the history of the whole database. Every change has its own; a watch resumes from
/// one, and an object's resource version is the revision of its last change.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Revision(pub u64);

/// Version of a host's configuration; grows by one with every change of it.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Generation(pub u64);

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Free text that users hang on objects, to filter by.
pub type Labels = BTreeMap<String, String>;

/// What every object has.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Meta {
    /// Revision of the object's last change: its resource version.
    pub revision: Revision,
    /// When it was created.
    pub created: UnixMillis,
    /// The users' labels.
    pub labels: Labels,
}

/// What is the same for the whole cluster, set when the server is initialised.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    /// Random, names the cluster in certificates.
    pub id: String,
    /// AS of the fabric.
    pub asn: Asn,
    /// What the underlay carries between any two hosts.
    pub underlay_mtu: Mtu,
    /// How long a freed address, MAC, VNI or VLAN stays unused, in milliseconds.
    pub hold_millis: u64,
}

/// A tenant; owns everything below it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// Identity.
    pub id: AccountId,
    /// Unique in the cluster.
    pub name: Name,
    /// Revision, age, labels.
    pub meta: Meta,
}

/// A virtual private cloud: an address space of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vpc {
    /// Identity.
    pub id: VpcId,
    /// Owner.
    pub account: AccountId,
    /// Unique in the account.
    pub name: Name,
    /// IPv4 and IPv6 prefixes that its subnets come from; they do not overlap.
    pub cidrs: Vec<IpNet>,
    /// The VPC's own VNI, unique in the cluster.
    pub vni: Vni,
    /// How subnets are told apart on the wire.
    pub encoding: Encoding,
    /// Where its subnets are routed.
    #[serde(default, skip_serializing_if = "Routing::is_default")]
    pub routing: Routing,
    /// What becomes of questions for addresses that nobody announced.
    #[serde(default, skip_serializing_if = "UnknownNeighbours::is_default")]
    pub unknown_neighbours: UnknownNeighbours,
    /// Revision, age, labels.
    pub meta: Meta,
}

impl Vpc {
    /// The VPC's private AS number.
    pub const fn asn(&self) -> Asn {
        Asn::of_vpc(self.vni)
    }

    /// MAC of the gateway in each of its subnets, on every host: none if the subnets are routed by
    /// routers, each of which has MACs of its own.
    pub const fn gateway_mac(&self) -> Option<MacAddr> {
        let [.., a, b, c, d, e] = self.id.bits().to_be_bytes();
        match self.routing {
            Routing::Central => None,
            Routing::Distributed => Some(MacAddr([0x1a, a, b, c, d, e])),
        }
    }
}

/// A subnet: a broadcast domain with at least one prefix.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subnet {
    /// Identity.
    pub id: SubnetId,
    /// Owner.
    pub vpc: VpcId,
    /// Unique in the VPC.
    pub name: Name,
    /// IPv4 prefix, inside one of the VPC's.
    pub v4: Option<Ipv4Net>,
    /// IPv6 prefix, inside one of the VPC's.
    pub v6: Option<Ipv6Net>,
    /// Unique in the VPC.
    pub vlan: VlanId,
    /// The VNI on the wire: its own, or in a bundle the VPC's.
    pub vni: Vni,
    /// Inner MTU.
    pub mtu: Mtu,
    /// What its NICs are told.
    #[serde(default, skip_serializing_if = "SubnetOptions::is_default")]
    pub options: SubnetOptions,
    /// Revision, age, labels.
    pub meta: Meta,
}

/// A network interface of a workload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nic {
    /// Identity; also the name of its interface on the host.
    pub id: NicId,
    /// Owner.
    pub subnet: SubnetId,
    /// Unique in the subnet.
    pub name: Name,
    /// Unique in the VPC.
    pub mac: MacAddr,
    /// One for each prefix of the subnet.
    pub addresses: Vec<IpAddr>,
    /// Where it is.
    pub placement: Placement,
    /// How often it has moved to another host. Its host announces it with this mobility sequence
    /// at least (RFC 7432 §15), so that an earlier host never wins it back.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub moves: u32,
    /// The move that is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moving: Option<Move>,
    /// What its user gave it to read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_data: Option<UserData>,
    /// Revision, age, labels.
    pub meta: Meta,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde hands over a reference"
)]
const fn is_zero(number: &u32) -> bool {
    *number == 0
}

impl Nic {
    /// The places where the NIC has a port: its host, and while it moves the other one until that
    /// has to give it up.
    pub fn seats(&self) -> impl Iterator<Item = &Placement> {
        let other = self
            .moving
            .as_ref()
            .filter(|m| m.phase != MovePhase::Retire);
        std::iter::once(&self.placement).chain(other.map(|m| &m.other))
    }
}

/// A NIC on its way from one host to another. The old place works until the new one does:
///
/// | phase | `placement` | `other` |
/// |---|---|---|
/// | provision | the old host, in use | the new host, made and closed |
/// | switch | the new host, in use and announced | the old host, still made |
/// | retire | where the NIC is from now on | has to remove its port |
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Move {
    /// How far it is.
    pub phase: MovePhase,
    /// The place that the NIC goes to, or comes from.
    pub other: Placement,
    /// When it was asked for.
    pub started: UnixMillis,
    /// When this phase began.
    pub since: UnixMillis,
    /// Why the NIC went back to where it was; empty if it did not.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub taken_back: String,
}

/// See [`Move`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MovePhase {
    /// The new host makes the port.
    Provision,
    /// The new host announces the NIC; the old one still has its port.
    Switch,
    /// The other host removes its port.
    Retire,
}

impl fmt::Display for MovePhase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Provision => "provision",
            Self::Switch => "switch",
            Self::Retire => "retire",
        })
    }
}

/// Where a NIC is, and what it is plugged into there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// The host.
    pub host: HostId,
    /// The other end.
    pub attachment: Attachment,
}

/// What a host is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Carries workloads.
    Compute,
    /// Carries virtual routers.
    Route,
    /// Carries the API and the route reflectors.
    Management,
    /// Carries volumes.
    Storage,
}

/// A machine that joined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// Identity; in its certificate.
    pub id: HostId,
    /// Unique in the cluster.
    pub name: Name,
    /// What it is for.
    pub roles: BTreeSet<Role>,
    /// Its VTEP's address; unique in the cluster.
    pub underlay: IpAddr,
    /// Failure domain.
    pub zone: Option<Name>,
    /// True while it takes no new workloads.
    pub draining: bool,
    /// Its EVPN client.
    #[serde(default, skip_serializing_if = "SpeakerKind::is_default")]
    pub speaker: SpeakerKind,
    /// Revision, age, labels.
    pub meta: Meta,
}

/// What a host reported of itself. Not intent: kept beside it, no history.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct HostStatus {
    /// When it last checked in, by the server's clock.
    pub last_checkin: UnixMillis,
    /// Version of its agent.
    pub agent_version: String,
    /// Version of its kernel.
    pub kernel_version: String,
    /// What its kernel can do.
    pub capabilities: BTreeSet<Capability>,
    /// What it has and what of it is free.
    pub resources: Resources,
    /// The configuration it was last given.
    pub received: Generation,
    /// The newest configuration that it made true.
    pub applied: Generation,
    /// Objects that are not as they should be; empty if all is well.
    pub conditions: Vec<Condition>,
    /// NICs with an open port here that another host announces, and wins.
    #[serde(default)]
    pub elsewhere: BTreeSet<NicId>,
    /// Version of the FRR that is installed; empty if none is.
    #[serde(default)]
    pub frr_version: String,
    /// What carries its frames to other hosts, by its own settings.
    #[serde(default)]
    pub transport: Transport,
    /// The voters by whose word it runs its routers, as far as they are new to it; empty if it asks nobody.
    #[serde(default)]
    pub voters: VoterSet,
    /// Route hosts that lately asked it whether they may run their routers.
    #[serde(default)]
    pub heard: BTreeSet<HostId>,
}

/// What a kernel and host can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Capability {
    /// Bridges filter VLANs: one bridge per VPC.
    VlanFiltering,
    /// 802.1Q devices: neighbour rows of a VLAN, so that ARP and ND are suppressed there.
    VlanDevices,
    /// The VXLAN device.
    Vxlan,
    /// nftables' bridge family: ports are guarded.
    NftBridge,
    /// TAP devices.
    Tap,
    /// BPF programs on interfaces: bundles without VLAN filtering.
    ClsBpf,
    /// Signed BGP sessions.
    TcpMd5,
}

/// What a host has and what of it is free.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Resources {
    /// Processors.
    pub cpus: u32,
    /// Bytes of memory.
    pub memory_total_bytes: u64,
    /// Bytes of memory that a new workload could have.
    pub memory_free_bytes: u64,
    /// Bytes free where the agent keeps its state.
    pub disk_free_bytes: u64,
}

/// Something that is not as it should be with one object on one host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condition {
    /// The object.
    pub object: ObjectId,
    /// What was being done, to what, why it failed, what to do.
    pub message: String,
    /// Since when.
    pub since: UnixMillis,
    /// How often it was tried.
    pub attempts: u32,
}

/// Whether a host is heard of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Liveness {
    /// It never checked in.
    Joining,
    /// It checked in lately.
    Up,
    /// It did not.
    Down,
}

/// Kinds of objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// [`Account`].
    Account,
    /// [`Vpc`].
    Vpc,
    /// [`Subnet`].
    Subnet,
    /// [`Nic`].
    Nic,
    /// [`Host`].
    Host,
    /// [`Router`].
    Router,
    /// [`ExternalNetwork`].
    External,
    /// [`PublicIp`].
    #[serde(rename = "publicip")]
    PublicIp,
    /// [`Volume`].
    Volume,
}

impl Kind {
    /// All of them, owners before what they own.
    pub const ALL: [Kind; 9] = [
        Kind::Account,
        Kind::Host,
        Kind::External,
        Kind::Vpc,
        Kind::Subnet,
        Kind::Nic,
        Kind::Router,
        Kind::PublicIp,
        Kind::Volume,
    ];
}

/// The identity of any object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ObjectId {
    /// An account.
    Account(AccountId),
    /// A VPC.
    Vpc(VpcId),
    /// A subnet.
    Subnet(SubnetId),
    /// A NIC.
    Nic(NicId),
    /// A host.
    Host(HostId),
    /// A router.
    Router(RouterId),
    /// An external network.
    External(ExternalNetworkId),
    /// A public address.
    #[serde(rename = "publicip")]
    PublicIp(PublicIpId),
    /// A volume.
    Volume(VolumeId),
}

/// Any object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Object {
    /// An account.
    Account(Account),
    /// A VPC.
    Vpc(Vpc),
    /// A subnet.
    Subnet(Subnet),
    /// A NIC.
    Nic(Nic),
    /// A host.
    Host(Host),
    /// A router.
    Router(Router),
    /// An external network.
    External(ExternalNetwork),
    /// A public address.
    #[serde(rename = "publicip")]
    PublicIp(PublicIp),
    /// A volume.
    Volume(Volume),
}

/// One change of one object: what a watch delivers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Its place in history; no two changes share one.
    pub revision: Revision,
    /// When.
    pub at: UnixMillis,
    /// The object after the change, or as it was last if it was deleted.
    pub object: Object,
    /// True if it was deleted.
    pub deleted: bool,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Account => "account",
            Self::Vpc => "vpc",
            Self::Subnet => "subnet",
            Self::Nic => "nic",
            Self::Host => "host",
            Self::Router => "router",
            Self::External => "external",
            Self::PublicIp => "publicip",
            Self::Volume => "volume",
        })
    }
}

impl ObjectId {
    /// Its kind.
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Account(_) => Kind::Account,
            Self::Vpc(_) => Kind::Vpc,
            Self::Subnet(_) => Kind::Subnet,
            Self::Nic(_) => Kind::Nic,
            Self::Host(_) => Kind::Host,
            Self::Router(_) => Kind::Router,
            Self::External(_) => Kind::External,
            Self::PublicIp(_) => Kind::PublicIp,
            Self::Volume(_) => Kind::Volume,
        }
    }
}

impl ObjectId {
    /// The id alone, without its kind.
    pub fn id_text(&self) -> String {
        match self {
            Self::Account(id) => id.to_string(),
            Self::Vpc(id) => id.to_string(),
            Self::Subnet(id) => id.to_string(),
            Self::Nic(id) => id.to_string(),
            Self::Host(id) => id.to_string(),
            Self::Router(id) => id.to_string(),
            Self::External(id) => id.to_string(),
            Self::PublicIp(id) => id.to_string(),
            Self::Volume(id) => id.to_string(),
        }
    }
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind(), self.id_text())
    }
}

impl Object {
    /// Its identity.
    pub const fn id(&self) -> ObjectId {
        match self {
            Self::Account(o) => ObjectId::Account(o.id),
            Self::Vpc(o) => ObjectId::Vpc(o.id),
            Self::Subnet(o) => ObjectId::Subnet(o.id),
            Self::Nic(o) => ObjectId::Nic(o.id),
            Self::Host(o) => ObjectId::Host(o.id),
            Self::Router(o) => ObjectId::Router(o.id),
            Self::External(o) => ObjectId::External(o.id),
            Self::PublicIp(o) => ObjectId::PublicIp(o.id),
            Self::Volume(o) => ObjectId::Volume(o.id),
        }
    }

    /// What it is called among its siblings.
    pub const fn name(&self) -> &Name {
        match self {
            Self::Account(o) => &o.name,
            Self::Vpc(o) => &o.name,
            Self::Subnet(o) => &o.name,
            Self::Nic(o) => &o.name,
            Self::Host(o) => &o.name,
            Self::Router(o) => &o.name,
            Self::External(o) => &o.name,
            Self::PublicIp(o) => &o.name,
            Self::Volume(o) => &o.name,
        }
    }

    /// Revision, age, labels, to change.
    pub const fn meta_mut(&mut self) -> &mut Meta {
        match self {
            Self::Account(o) => &mut o.meta,
            Self::Vpc(o) => &mut o.meta,
            Self::Subnet(o) => &mut o.meta,
            Self::Nic(o) => &mut o.meta,
            Self::Host(o) => &mut o.meta,
            Self::Router(o) => &mut o.meta,
            Self::External(o) => &mut o.meta,
            Self::PublicIp(o) => &mut o.meta,
            Self::Volume(o) => &mut o.meta,
        }
    }

    /// Revision, age, labels.
    pub const fn meta(&self) -> &Meta {
        match self {
            Self::Account(o) => &o.meta,
            Self::Vpc(o) => &o.meta,
            Self::Subnet(o) => &o.meta,
            Self::Nic(o) => &o.meta,
            Self::Host(o) => &o.meta,
            Self::Router(o) => &o.meta,
            Self::External(o) => &o.meta,
            Self::PublicIp(o) => &o.meta,
            Self::Volume(o) => &o.meta,
        }
    }
}
