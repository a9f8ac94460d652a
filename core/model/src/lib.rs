//! Checked types of the domain: ids, addresses, intent, host configuration. Pure data, no IO.
//!
//! Every newtype has one checked door (`new`, `FromStr`, `TryFrom`); holding a value is the proof
//! that it was checked. `serde` goes through the same doors, so a file or a database row cannot
//! smuggle in what the command line would refuse.

mod addr;
mod forwarding;
mod host_change;
mod host_config;
mod id;
mod intent;
mod name;
mod names;
mod network;
mod router_config;
mod routing;
mod subnet_options;
mod tracked;
mod volume;
mod voting;

pub use addr::{BadCidr, BadMac, MacAddr, canonical_cidr};
pub use forwarding::{EviForwarding, Forwarding, IpVrfForwarding, Tag};
pub use host_change::{HostChange, NotTheBase};
pub use host_config::{
    Attachment, BadAttachment, BadSpeaker, BadTransport, BgpConfig, Encapsulation, Gateway,
    HostConfig, Port, PortRole, Reflector, Secret, Segment, SpeakerKind, Stack, Transport,
    Underlay,
};
pub use id::{
    AccountId, BadId, ExternalNetworkId, HostId, NicId, PublicIpId, RouterId, SubnetId, TokenId,
    VolumeId, VpcId,
};
pub use intent::{
    Account, Capability, Change, Cluster, Condition, Generation, Host, HostStatus, Kind, Labels,
    Liveness, Meta, Move, MovePhase, Nic, Object, ObjectId, Placement, Resources, Revision, Role,
    Subnet, UnixMillis, Vpc,
};
pub use name::{BadName, DomainName, IfName, Name, NetnsName};
pub use names::{
    BadUserData, METADATA_V4, METADATA_V6, NamedNic, NamedSubnet, UserData, VpcNames, ZONE,
};
pub use network::{
    Asn, BadEncoding, BadRouting, BadUnknownNeighbours, Encoding, Mtu, MtuOutOfRange, Routing,
    UnknownNeighbours, VlanId, VlanOutOfRange, Vni, VniOutOfRange,
};
pub use router_config::{
    BadPortRange, BadProtocol, NatConfig, OneToOne, PortForward, PortRange, Protocol, RouterConfig,
    RouterLeg, SourceNat, StaticRoute, Transit, Uplink, UplinkAddress, Via,
};
pub use routing::{
    AddressRange, BadAddressRange, BadSourcePolicy, ExternalNetwork, Leg, OuterLeg, PublicIp,
    PublicTarget, Router, RouterMove, RouterPlacement, SourcePolicy, Standby,
};
pub use subnet_options::{BadOptions, DhcpOptions, SubnetOptions};
pub use tracked::{Ends, Tracked};
pub use volume::{
    AttachedTo, BadDiskId, BadVolumeSize, Deleted, DiskId, Founding, Leaving, MOST_REPLICAS,
    Recovered, Recovery, Replica, STORAGE_PORT, StorageConfig, Volume, VolumeAttachment,
    VolumeConfig, VolumeSize,
};
pub use voting::{BadVoter, LEASE_PORT, Voter, VoterSet, Voting};
