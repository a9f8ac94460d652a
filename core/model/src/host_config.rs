//! What one host has to make true: the contract between the management planner, the host's local
//! API and the host planner.

use crate::{
    Asn, BadName, Encoding, Generation, HostId, IfName, MacAddr, Mtu, NetnsName, NicId,
    RouterConfig, RouterId, StorageConfig, SubnetId, SubnetOptions, UnknownNeighbours, VlanId, Vni,
    Voting, VpcId,
};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

/// Everything the management plane wants of one host. Holds only what the host needs: subnets
/// without a NIC or a router's leg on the host are not in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostConfig {
    /// Which host.
    pub host: HostId,
    /// Grows with every change; an older one is refused.
    pub generation: Generation,
    /// How the host is attached to the underlay.
    pub underlay: Underlay,
    /// The EVPN control plane.
    pub bgp: BgpConfig,
    /// VPCs with a NIC or a router on this host, ordered by id. Shared by all generations that have them alike,
    /// so that a host with many is compared and told of in what a change costs, not in what it has.
    pub stacks: Vec<Arc<Stack>>,
    /// Routers that run on this host, ordered by id.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routers: Vec<Arc<RouterConfig>>,
    /// By whose word a route host runs them; none is nobody's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub voting: Option<Voting>,
    /// VTEPs of other hosts with a port or a router's leg in the subnets that this one has. They make no
    /// rows: routes do.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub members: BTreeMap<SubnetId, BTreeSet<IpAddr>>,
    /// Routers of other hosts whose tracked connections are kept here, should this host have to take over;
    /// with their names, `vpc/router`, for people.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub standby_for: BTreeMap<RouterId, String>,
    /// Volumes that have a replica here, or are attached here.
    #[serde(default, skip_serializing_if = "StorageConfig::is_empty")]
    pub storage: StorageConfig,
}

/// A host's place on the underlay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Underlay {
    /// The VTEP's address.
    pub address: IpAddr,
    /// What the underlay carries between any two hosts.
    pub mtu: Mtu,
}

/// The EVPN control plane of a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BgpConfig {
    /// The fabric's AS: all sessions are iBGP.
    pub asn: Asn,
    /// Where the host's client connects.
    pub reflectors: Vec<Reflector>,
    /// Which program is the client.
    #[serde(default, skip_serializing_if = "SpeakerKind::is_default")]
    pub speaker: SpeakerKind,
}

/// Which program is a host's EVPN client.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum SpeakerKind {
    /// The speaker in the agent.
    #[default]
    Builtin,
    /// FRR's bgpd and zebra, run by the agent. Does VLAN-based service only.
    Frr,
}

impl SpeakerKind {
    /// True for the one that is meant where none is named.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Text that names no speaker.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a speaker: builtin or frr")]
pub struct BadSpeaker(String);

impl FromStr for SpeakerKind {
    type Err = BadSpeaker;
    fn from_str(text: &str) -> Result<Self, BadSpeaker> {
        match text {
            "builtin" => Ok(Self::Builtin),
            "frr" => Ok(Self::Frr),
            _ => Err(BadSpeaker(text.to_owned())),
        }
    }
}

impl fmt::Display for SpeakerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Builtin => "builtin",
            Self::Frr => "frr",
        })
    }
}

/// What carries a host's frames to other hosts. The wire is the same, so both kinds share VPCs.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Transport {
    /// The kernel's VXLAN devices.
    #[default]
    Kernel,
    /// TAP devices, and a process that encapsulates what they give: the datapath.
    Tap,
}

/// Text that names no transport.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a transport: kernel or tap")]
pub struct BadTransport(String);

impl FromStr for Transport {
    type Err = BadTransport;
    fn from_str(text: &str) -> Result<Self, BadTransport> {
        match text {
            "kernel" => Ok(Self::Kernel),
            "tap" => Ok(Self::Tap),
            _ => Err(BadTransport(text.to_owned())),
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Kernel => "kernel",
            Self::Tap => "tap",
        })
    }
}

/// One route reflector.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reflector {
    /// Its address.
    pub address: IpAddr,
    /// TCP port, usually 179.
    pub port: u16,
    /// TCP-MD5 key (RFC 2385), if sessions are signed.
    pub password: Option<Secret>,
}

/// Text that never shows in logs or debug output.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// One VPC on one host: its bridge, its tunnel endpoints, its ports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stack {
    /// Which VPC.
    pub vpc: VpcId,
    /// For people: `account/vpc`.
    pub name: String,
    /// The VPC's own VNI: of its routers, and of all its frames in a bundle.
    pub vni: Vni,
    /// How subnets are told apart on the wire.
    pub encoding: Encoding,
    /// What becomes of questions for addresses that nobody announced.
    #[serde(default, skip_serializing_if = "UnknownNeighbours::is_default")]
    pub unknown_neighbours: UnknownNeighbours,
    /// Subnets with a port or a router's leg here, ordered by id.
    pub segments: Vec<Segment>,
    /// NICs placed here, ordered by id.
    pub ports: Vec<Port>,
}

/// One subnet on one host: a broadcast domain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// Which subnet.
    pub subnet: SubnetId,
    /// For people: `vpc/subnet`.
    pub name: String,
    /// Its VLAN on the bridge; in a bundle also the tag on the wire.
    pub vlan: VlanId,
    /// The VNI on the wire: the subnet's own, or in a bundle the VPC's.
    pub vni: Vni,
    /// Inner MTU, the same on every host.
    pub mtu: Mtu,
    /// IPv4 prefix, if any.
    pub v4: Option<Ipv4Net>,
    /// IPv6 prefix, if any.
    pub v6: Option<Ipv6Net>,
    /// What its NICs are told.
    #[serde(default, skip_serializing_if = "SubnetOptions::is_default")]
    pub options: SubnetOptions,
    /// The router's leg in it, if a router has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<Gateway>,
}

/// A router's leg in a subnet, as the subnet's NICs see it. The same wherever the router runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gateway {
    /// Unicast.
    pub mac: MacAddr,
    /// At most one of each family, inside the subnet's prefixes.
    pub addresses: Vec<IpAddr>,
}

/// One NIC on this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// Which NIC.
    pub nic: NicId,
    /// For people: `vpc/subnet/nic`.
    pub name: String,
    /// Its subnet; a segment of the same stack.
    pub subnet: SubnetId,
    /// Its MAC, unicast.
    pub mac: MacAddr,
    /// Its addresses; frames from any other that is not behind it never leave the port.
    pub addresses: Vec<IpAddr>,
    /// Prefixes that routes lead to by the NIC: sources that may be behind it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub behind: Vec<IpNet>,
    /// What is at the other end.
    pub attachment: Attachment,
    /// What it is to its NIC.
    #[serde(default, skip_serializing_if = "PortRole::is_settled")]
    pub role: PortRole,
    /// The mobility sequence that the NIC is announced with at least (RFC 7432 §15).
    #[serde(default, skip_serializing_if = "is_zero")]
    pub sequence: u32,
}

/// What a port is to its NIC, which may be on its way from one host to another.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum PortRole {
    /// The NIC is here.
    #[default]
    Settled,
    /// The NIC is to come here: the port is made, but closed and not announced.
    Standby,
    /// The NIC is in use here until the host that it goes to announces it.
    Leaving,
    /// The NIC has come here: as settled, and everybody on its subnet is to hear of it.
    Arrived,
}

impl PortRole {
    /// The usual one.
    pub fn is_settled(&self) -> bool {
        *self == Self::Settled
    }
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde hands over a reference"
)]
const fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// What a NIC is plugged into.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Attachment {
    /// A TAP device for a virtual machine: multi-queue, with virtio-net headers.
    Tap,
    /// A veth pair into a named network namespace, configured inside.
    Netns {
        /// The namespace; made if it does not exist.
        netns: NetnsName,
        /// The interface's name inside.
        device: IfName,
    },
    /// An interface that already exists on the host and stays there when the NIC goes.
    Existing {
        /// Its name.
        ifname: IfName,
    },
}

/// Text that is no attachment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadAttachment {
    /// Not one of the three kinds.
    #[error("{0:?} is not an attachment: tap, netns:NAME, netns:NAME:DEVICE or existing:IFNAME")]
    Unknown(String),
    /// A name in it is wrong.
    #[error(transparent)]
    Name(#[from] BadName),
}

impl FromStr for Attachment {
    type Err = BadAttachment;
    fn from_str(text: &str) -> Result<Self, BadAttachment> {
        match text.split_once(':') {
            None if text == "tap" => Ok(Self::Tap),
            Some(("netns", rest)) => {
                let (netns, device) = rest.split_once(':').unwrap_or((rest, "eth0"));
                Ok(Self::Netns {
                    netns: netns.parse()?,
                    device: device.parse()?,
                })
            }
            Some(("existing", ifname)) => Ok(Self::Existing {
                ifname: ifname.parse()?,
            }),
            _ => Err(BadAttachment::Unknown(text.to_owned())),
        }
    }
}

impl fmt::Display for Attachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tap => f.pad("tap"),
            Self::Netns { netns, device } if device.as_str() == "eth0" => {
                f.pad(&format!("netns:{netns}"))
            }
            Self::Netns { netns, device } => f.pad(&format!("netns:{netns}:{device}")),
            Self::Existing { ifname } => f.pad(&format!("existing:{ifname}")),
        }
    }
}

/// What the tunnel adds to a tenant's IP packet on the underlay.
pub struct Encapsulation;

impl Encapsulation {
    /// Bytes added: outer IPv4 20 or IPv6 40, UDP 8, VXLAN 8, inner Ethernet 14, and 4 for the
    /// inner 802.1Q tag of a bundle.
    pub const fn overhead_bytes(underlay: IpAddr, encoding: Encoding) -> u16 {
        let outer = if underlay.is_ipv4() { 20 } else { 40 };
        let tag = match encoding {
            Encoding::VlanBased => 0,
            Encoding::VlanAwareBundle => 4,
        };
        outer + 8 + 8 + 14 + tag
    }

    /// The largest inner MTU that the underlay carries without fragments; none if it would be
    /// below what [`Mtu`] allows.
    pub fn inner_mtu(underlay: Underlay, encoding: Encoding) -> Option<Mtu> {
        let overhead = Self::overhead_bytes(underlay.address, encoding);
        Mtu::new(u32::from(underlay.mtu.get().checked_sub(overhead)?)).ok()
    }
}

impl Stack {
    /// The segment of a subnet of this stack.
    pub fn segment(&self, subnet: SubnetId) -> Option<&Segment> {
        self.segments
            .iter()
            .find(|segment| segment.subnet == subnet)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attachments_survive_their_text() {
        for text in ["tap", "netns:a1", "netns:a1:eth1", "existing:ens3"] {
            assert_eq!(text.parse::<Attachment>().unwrap().to_string(), text);
        }
        for bad in [
            "",
            "tap:x",
            "netns",
            "netns:",
            "netns:..",
            "existing:",
            "existing:0123456789abcdef",
            "bridge:x",
        ] {
            assert!(bad.parse::<Attachment>().is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn a_configuration_of_before_has_no_members() {
        let text = r#"{"host":"0123456789","generation":1,"underlay":{"address":"192.0.2.1","mtu":1500},
            "bgp":{"asn":65000,"reflectors":[]},"stacks":[]}"#;
        let mut config: HostConfig = serde_json::from_str(text).unwrap();
        assert_eq!(config.members, BTreeMap::new());
        assert!(!serde_json::to_string(&config).unwrap().contains("members"));
        let vteps = BTreeSet::from(["192.0.2.2".parse().unwrap()]);
        config.members.insert(SubnetId::from_random(7), vteps);
        let text = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<HostConfig>(&text).unwrap(), config);
    }

    #[test]
    fn a_configuration_of_before_has_the_builtin_speaker() {
        let bgp: BgpConfig = serde_json::from_str(r#"{"asn":65000,"reflectors":[]}"#).unwrap();
        assert_eq!(bgp.speaker, SpeakerKind::Builtin);
        assert_eq!(
            serde_json::to_string(&bgp).unwrap(),
            r#"{"asn":65000,"reflectors":[]}"#
        );
        for text in ["builtin", "frr"] {
            assert_eq!(text.parse::<SpeakerKind>().unwrap().to_string(), text);
        }
        assert!("bird".parse::<SpeakerKind>().is_err());
    }

    #[test]
    fn a_transport_survives_its_text() {
        for transport in [Transport::Kernel, Transport::Tap] {
            assert_eq!(transport.to_string().parse(), Ok(transport));
        }
        assert!("vxlan".parse::<Transport>().is_err());
    }

    #[test]
    fn inner_mtu_is_the_underlays_less_the_encapsulation() {
        let underlay = |address: &str, mtu| Underlay {
            address: address.parse().unwrap(),
            mtu: Mtu::new(mtu).unwrap(),
        };
        let inner = |underlay, encoding| Encapsulation::inner_mtu(underlay, encoding).map(Mtu::get);
        assert_eq!(
            inner(underlay("10.0.0.1", 1500), Encoding::VlanBased),
            Some(1450)
        );
        assert_eq!(
            inner(underlay("10.0.0.1", 1500), Encoding::VlanAwareBundle),
            Some(1446)
        );
        assert_eq!(
            inner(underlay("fd00::1", 1500), Encoding::VlanBased),
            Some(1430)
        );
        assert_eq!(inner(underlay("10.0.0.1", 600), Encoding::VlanBased), None);
    }
}
