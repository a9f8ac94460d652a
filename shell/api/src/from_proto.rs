//! Messages to checked types: the only door for what comes from the network. Every refusal names
//! the field.

mod router;
mod storage;
mod voting;

pub use router::{port_forward, user_data};
pub use storage::{disk_room, sized_report};
pub use voting::{MAX_TRACKED, confirmed, handed_over, replicated};

use crate::v1;
use ipnet::IpNet;
use model::{
    Asn, Attachment, BgpConfig, Capability, Condition, Encoding, Gateway, Generation, HostChange,
    HostConfig, HostStatus, IfName, Kind, Liveness, MacAddr, ObjectId, Port, PortRole, Protocol,
    Reflector, Resources, Role, Routing, Secret, Segment, SourcePolicy, SpeakerKind, Stack,
    SubnetId, SubnetOptions, Transport, Underlay, UnixMillis, UnknownNeighbours, canonical_cidr,
};
use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

/// Conditions in one report at most; the agent names the most important first.
pub const MAX_CONDITIONS: usize = 1000;
const MAX_STACKS: usize = 4096;
const MAX_SEGMENTS: usize = 4094;
const MAX_ROUTERS: usize = 4096;
const MAX_PORTS: usize = 65_536;
const MAX_ADDRESSES: usize = 16;
/// As many as a router has routes.
const MAX_BEHIND: usize = 1024;
const MAX_REFLECTORS: usize = 64;
const MAX_MEMBERS: usize = 65_536;
const MAX_TEXT: usize = 255;
const MAX_MESSAGE: usize = 4096;

/// A message that cannot be taken, with the field that is to blame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct BadRequest {
    /// Path of the field, as in `stacks[2].ports[0].mac`.
    pub field: String,
    /// What is wrong, and what would be right.
    pub reason: String,
}

impl From<BadRequest> for tonic::Status {
    fn from(bad: BadRequest) -> Self {
        Self::invalid_argument(bad.to_string())
    }
}

/// Where we are in a message.
#[derive(Clone, Copy)]
pub struct Field<'a> {
    parent: Option<&'a Field<'a>>,
    name: &'a str,
    index: Option<usize>,
}

impl<'a> Field<'a> {
    /// A field of the outermost message.
    pub const fn root(name: &'a str) -> Self {
        Self {
            parent: None,
            name,
            index: None,
        }
    }

    /// A field of the message in this field.
    pub const fn of(&'a self, name: &'a str) -> Field<'a> {
        Field {
            parent: Some(self),
            name,
            index: None,
        }
    }

    /// One of a list.
    pub const fn at(self, index: usize) -> Self {
        Self {
            index: Some(index),
            ..self
        }
    }

    /// Refuses what is in it.
    pub fn bad(&self, reason: impl fmt::Display) -> BadRequest {
        BadRequest {
            field: self.to_string(),
            reason: reason.to_string(),
        }
    }
}

impl fmt::Display for Field<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = self.parent.filter(|parent| !parent.name.is_empty()) {
            write!(f, "{parent}.")?;
        }
        f.write_str(self.name)?;
        match self.index {
            Some(index) => write!(f, "[{index}]"),
            None => Ok(()),
        }
    }
}

/// Text of bounded length.
pub fn bounded(field: Field<'_>, text: &str, most: usize) -> Result<String, BadRequest> {
    if text.len() <= most {
        Ok(text.to_owned())
    } else {
        Err(field.bad(format_args!("{} bytes, the limit is {most}", text.len())))
    }
}

/// Text through the checked door of its type.
pub fn parse<T>(field: Field<'_>, text: &str) -> Result<T, BadRequest>
where
    T: FromStr<Err: fmt::Display>,
{
    if text.len() > MAX_TEXT {
        return Err(field.bad(format_args!(
            "{} bytes, the limit is {MAX_TEXT}",
            text.len()
        )));
    }
    text.parse().map_err(|error| field.bad(error))
}

/// A number through the checked door of its type.
pub fn number<T, R>(field: Field<'_>, raw: R) -> Result<T, BadRequest>
where
    T: TryFrom<R, Error: fmt::Display>,
{
    T::try_from(raw).map_err(|error| field.bad(error))
}

/// A list of bounded length, each item through `convert`.
pub fn list<T, U>(
    field: Field<'_>,
    items: Vec<T>,
    most: usize,
    convert: impl Fn(Field<'_>, T) -> Result<U, BadRequest>,
) -> Result<Vec<U>, BadRequest> {
    if items.len() > most {
        return Err(field.bad(format_args!("{} of them, the limit is {most}", items.len())));
    }
    items
        .into_iter()
        .enumerate()
        .map(|(index, item)| convert(field.at(index), item))
        .collect()
}

fn optional<T>(
    text: &str,
    parse: impl FnOnce(&str) -> Result<T, BadRequest>,
) -> Result<Option<T>, BadRequest> {
    if text.is_empty() {
        return Ok(None);
    }
    parse(text).map(Some)
}

fn present<T>(field: Field<'_>, message: Option<T>) -> Result<T, BadRequest> {
    message.ok_or_else(|| field.bad("it is missing"))
}

macro_rules! closed_enum {
    ($wire:ty, $ours:ty, $what:literal, { $($wire_name:ident <-> $name:ident),+ $(,)? }) => {
        impl TryFrom<$wire> for $ours {
            type Error = String;
            fn try_from(wire: $wire) -> Result<Self, String> {
                match wire {
                    $(<$wire>::$wire_name => Ok(Self::$name),)+
                    <$wire>::Unspecified => Err(concat!("no ", $what, " is given").to_owned()),
                }
            }
        }
        impl From<$ours> for $wire {
            fn from(ours: $ours) -> Self {
                match ours { $(<$ours>::$name => Self::$wire_name,)+ }
            }
        }
    };
}

closed_enum!(v1::Kind, Kind, "kind", {
    Account <-> Account, Vpc <-> Vpc, Subnet <-> Subnet, Nic <-> Nic, Host <-> Host,
    Router <-> Router, External <-> External, PublicIp <-> PublicIp, Volume <-> Volume,
});
closed_enum!(v1::SourcePolicy, SourcePolicy, "source translation", {
    None <-> None, Masquerade <-> Masquerade, Addresses <-> Addresses,
});
closed_enum!(v1::Role, Role, "role", {
    Compute <-> Compute, Route <-> Route, Management <-> Management, Storage <-> Storage,
});
closed_enum!(v1::Encoding, Encoding, "encoding", {
    VlanBased <-> VlanBased, VlanAwareBundle <-> VlanAwareBundle,
});
closed_enum!(v1::Routing, Routing, "routing", {
    Central <-> Central, Distributed <-> Distributed,
});
closed_enum!(v1::UnknownNeighbours, UnknownNeighbours, "unknown neighbours", {
    Flood <-> Flood, Drop <-> Drop,
});
closed_enum!(v1::Speaker, SpeakerKind, "speaker", {
    Builtin <-> Builtin, Frr <-> Frr,
});
closed_enum!(v1::Transport, Transport, "transport", {
    Kernel <-> Kernel, Tap <-> Tap,
});
closed_enum!(v1::Liveness, Liveness, "liveness", {
    Joining <-> Joining, Up <-> Up, Down <-> Down,
});
closed_enum!(v1::Capability, Capability, "capability", {
    VlanFiltering <-> VlanFiltering, VlanDevices <-> VlanDevices, Vxlan <-> Vxlan,
    NftBridge <-> NftBridge, Tap <-> Tap, ClsBpf <-> ClsBpf, TcpMd5 <-> TcpMd5,
});

closed_enum!(v1::TransportProtocol, Protocol, "protocol", { Tcp <-> Tcp, Udp <-> Udp });

impl Field<'_> {
    /// An enumeration that must be given and known.
    pub fn enumeration<W, T>(self, raw: i32) -> Result<T, BadRequest>
    where
        W: TryFrom<i32>,
        T: TryFrom<W, Error = String>,
    {
        let wire = W::try_from(raw)
            .map_err(|_| self.bad(format_args!("{raw} is not a value this version knows")))?;
        T::try_from(wire).map_err(|reason| self.bad(reason))
    }

    /// An EVPN client; none if none is named.
    pub fn speaker(self, raw: i32) -> Result<Option<SpeakerKind>, BadRequest> {
        match raw {
            0 => Ok(None),
            raw => self.enumeration::<v1::Speaker, SpeakerKind>(raw).map(Some),
        }
    }

    /// A set of roles.
    pub fn roles(self, raw: Vec<i32>) -> Result<BTreeSet<Role>, BadRequest> {
        list(self, raw, 16, |field, raw| {
            field.enumeration::<v1::Role, Role>(raw)
        })
        .map(BTreeSet::from_iter)
    }

    /// The identity of an object of any kind.
    pub fn object_id(self, kind: i32, id: &str) -> Result<ObjectId, BadRequest> {
        let field = self.of("object_id");
        Ok(match self.of("kind").enumeration::<v1::Kind, Kind>(kind)? {
            Kind::Account => ObjectId::Account(parse(field, id)?),
            Kind::Vpc => ObjectId::Vpc(parse(field, id)?),
            Kind::Subnet => ObjectId::Subnet(parse(field, id)?),
            Kind::Nic => ObjectId::Nic(parse(field, id)?),
            Kind::Host => ObjectId::Host(parse(field, id)?),
            Kind::Router => ObjectId::Router(parse(field, id)?),
            Kind::External => ObjectId::External(parse(field, id)?),
            Kind::PublicIp => ObjectId::PublicIp(parse(field, id)?),
            Kind::Volume => ObjectId::Volume(parse(field, id)?),
        })
    }
}

impl TryFrom<v1::HostConfig> for HostConfig {
    type Error = BadRequest;
    fn try_from(wire: v1::HostConfig) -> Result<Self, BadRequest> {
        let underlay = Field::root("underlay");
        let bgp = Field::root("bgp");
        Ok(Self {
            host: parse(Field::root("host_id"), &wire.host_id)?,
            generation: Generation(wire.generation),
            underlay: {
                let wire = present(underlay, wire.underlay)?;
                Underlay {
                    address: parse(underlay.of("address"), &wire.address)?,
                    mtu: number(underlay.of("mtu"), wire.mtu)?,
                }
            },
            bgp: {
                let wire = present(bgp, wire.bgp)?;
                BgpConfig {
                    asn: number::<Asn, _>(bgp.of("asn"), wire.asn)?,
                    reflectors: list(
                        bgp.of("reflectors"),
                        wire.reflectors,
                        MAX_REFLECTORS,
                        reflector,
                    )?,
                    speaker: bgp.of("speaker").speaker(wire.speaker)?.unwrap_or_default(),
                }
            },
            stacks: list(
                Field::root("stacks"),
                wire.stacks,
                MAX_STACKS,
                |field, wire| stack(field, wire).map(Arc::new),
            )?,
            routers: list(
                Field::root("routers"),
                wire.routers,
                MAX_ROUTERS,
                |field, wire| router::config(field, wire).map(Arc::new),
            )?,
            voting: wire.voting.map(voting::voting).transpose()?,
            members: list(
                Field::root("members"),
                wire.members,
                MAX_STACKS * MAX_SEGMENTS,
                members,
            )?
            .into_iter()
            .collect(),
            standby_for: list(
                Field::root("standby_for"),
                wire.standby_for,
                MAX_ROUTERS,
                |field, wire| {
                    let name = bounded(field.of("name"), &wire.name, MAX_TEXT)?;
                    Ok((parse(field.of("router_id"), &wire.router_id)?, name))
                },
            )?
            .into_iter()
            .collect(),
            storage: storage::config(wire.storage.unwrap_or_default())?,
        })
    }
}

impl TryFrom<v1::HostConfigChange> for HostChange {
    type Error = BadRequest;
    fn try_from(wire: v1::HostConfigChange) -> Result<Self, BadRequest> {
        fn ids<T: FromStr + Ord>(
            name: &'static str,
            wire: Vec<String>,
            most: usize,
        ) -> Result<BTreeSet<T>, BadRequest>
        where
            T::Err: fmt::Display,
        {
            let ids = list(Field::root(name), wire, most, |field, id| parse(field, &id))?;
            Ok(ids.into_iter().collect())
        }
        const SUBNETS: usize = MAX_STACKS * MAX_SEGMENTS;
        Ok(Self {
            base: Generation(wire.base_generation),
            changed: present(Field::root("changed"), wire.changed)?.try_into()?,
            gone_stacks: ids("gone_vpc_ids", wire.gone_vpc_ids, MAX_STACKS)?,
            gone_routers: ids("gone_router_ids", wire.gone_router_ids, MAX_ROUTERS)?,
            gone_members: ids("gone_subnet_ids", wire.gone_subnet_ids, SUBNETS)?,
            gone_standby_for: ids(
                "gone_standby_router_ids",
                wire.gone_standby_router_ids,
                MAX_ROUTERS,
            )?,
        })
    }
}

impl TryFrom<v1::Stack> for Stack {
    type Error = BadRequest;
    fn try_from(wire: v1::Stack) -> Result<Self, BadRequest> {
        stack(Field::root("stack"), wire)
    }
}

impl TryFrom<v1::Segment> for Segment {
    type Error = BadRequest;
    fn try_from(wire: v1::Segment) -> Result<Self, BadRequest> {
        segment(Field::root("segment"), wire)
    }
}

impl TryFrom<v1::Port> for Port {
    type Error = BadRequest;
    fn try_from(wire: v1::Port) -> Result<Self, BadRequest> {
        port(Field::root("port"), wire)
    }
}

impl TryFrom<v1::Attachment> for Attachment {
    type Error = BadRequest;
    fn try_from(wire: v1::Attachment) -> Result<Self, BadRequest> {
        attachment(Field::root("attachment"), Some(wire))
    }
}

/// What the host says of itself; when it was heard, the server fills in.
impl TryFrom<v1::HostReport> for HostStatus {
    type Error = BadRequest;
    fn try_from(wire: v1::HostReport) -> Result<Self, BadRequest> {
        let resources = wire.resources.unwrap_or_default();
        let (voters, heard) = voting::report(wire.routing.unwrap_or_default())?;
        Ok(Self {
            last_checkin: UnixMillis(0),
            agent_version: version(Field::root("agent_version"), &wire.agent_version)?,
            kernel_version: version(Field::root("kernel_version"), &wire.kernel_version)?,
            // One that this server does not know is of no use to it, and no reason to refuse a
            // newer agent.
            capabilities: wire
                .capabilities
                .into_iter()
                .filter_map(|raw| v1::Capability::try_from(raw).ok()?.try_into().ok())
                .collect(),
            resources: Resources {
                cpus: resources.cpus,
                memory_total_bytes: resources.memory_total_bytes,
                memory_free_bytes: resources.memory_free_bytes,
                disk_free_bytes: resources.disk_free_bytes,
            },
            frr_version: version(Field::root("frr_version"), &wire.frr_version)?,
            // An agent of before has the one that there was; of a newer one's nothing depends here.
            transport: v1::Transport::try_from(wire.transport)
                .ok()
                .and_then(|told| told.try_into().ok())
                .unwrap_or_default(),
            received: Generation(wire.received_generation),
            applied: Generation(wire.applied_generation),
            conditions: list(
                Field::root("conditions"),
                wire.conditions,
                MAX_CONDITIONS,
                condition,
            )?,
            elsewhere: list(
                Field::root("elsewhere_nic_ids"),
                wire.elsewhere_nic_ids,
                MAX_PORTS,
                |field, text| parse(field, &text),
            )?
            .into_iter()
            .collect(),
            voters,
            heard,
        })
    }
}

impl TryFrom<v1::Condition> for Condition {
    type Error = BadRequest;
    fn try_from(wire: v1::Condition) -> Result<Self, BadRequest> {
        condition(Field::root("condition"), wire)
    }
}

fn version(field: Field<'_>, text: &str) -> Result<String, BadRequest> {
    bounded(field, text, MAX_TEXT)
}

fn condition(field: Field<'_>, wire: v1::Condition) -> Result<Condition, BadRequest> {
    Ok(Condition {
        object: field.object_id(wire.kind, &wire.object_id)?,
        message: bounded(field.of("message"), &wire.message, MAX_MESSAGE)?,
        since: UnixMillis(wire.since_unix_ms),
        attempts: wire.attempts,
    })
}

fn reflector(field: Field<'_>, wire: v1::Reflector) -> Result<Reflector, BadRequest> {
    let port = field.of("port");
    Ok(Reflector {
        address: parse(field.of("address"), &wire.address)?,
        port: match u16::try_from(wire.port) {
            Ok(0) | Err(_) => return Err(port.bad("not a TCP port: 1 to 65535")),
            Ok(number) => number,
        },
        password: optional(&wire.password, |text| {
            // What TCP_MD5SIG takes at most.
            bounded(field.of("password"), text, 80).map(Secret)
        })?,
    })
}

fn stack(field: Field<'_>, wire: v1::Stack) -> Result<Stack, BadRequest> {
    let stack = Stack {
        vpc: parse(field.of("vpc_id"), &wire.vpc_id)?,
        name: bounded(field.of("name"), &wire.name, MAX_TEXT)?,
        vni: number(field.of("vni"), wire.vni)?,
        encoding: match wire.encoding {
            0 => Encoding::default(),
            raw => field
                .of("encoding")
                .enumeration::<v1::Encoding, Encoding>(raw)?,
        },
        unknown_neighbours: match wire.unknown_neighbours {
            0 => UnknownNeighbours::default(),
            raw => field
                .of("unknown_neighbours")
                .enumeration::<v1::UnknownNeighbours, UnknownNeighbours>(raw)?,
        },
        segments: list(field.of("segments"), wire.segments, MAX_SEGMENTS, segment)?,
        ports: list(field.of("ports"), wire.ports, MAX_PORTS, port)?,
    };
    let known: BTreeSet<_> = stack.segments.iter().map(|s| s.subnet).collect();
    match stack.ports.iter().position(|p| !known.contains(&p.subnet)) {
        Some(index) => Err(field
            .of("ports")
            .at(index)
            .of("subnet_id")
            .bad("no segment of this stack")),
        None => Ok(stack),
    }
}

fn members(
    field: Field<'_>,
    wire: v1::SubnetMembers,
) -> Result<(SubnetId, BTreeSet<IpAddr>), BadRequest> {
    let address = |field: Field<'_>, text: String| parse(field, &text);
    let vteps = list(field.of("vteps"), wire.vteps, MAX_MEMBERS, address)?;
    let subnet = parse(field.of("subnet_id"), &wire.subnet_id)?;
    Ok((subnet, vteps.into_iter().collect()))
}

fn segment(field: Field<'_>, wire: v1::Segment) -> Result<Segment, BadRequest> {
    let vlan = field.of("vlan");
    let raw = u16::try_from(wire.vlan).map_err(|_| vlan.bad("VLAN is out of range: 1 to 4094"))?;
    Ok(Segment {
        subnet: parse(field.of("subnet_id"), &wire.subnet_id)?,
        name: bounded(field.of("name"), &wire.name, MAX_TEXT)?,
        vlan: number(vlan, raw)?,
        vni: number(field.of("vni"), wire.vni)?,
        mtu: number(field.of("mtu"), wire.mtu)?,
        v4: optional(&wire.ipv4_cidr, |text| {
            match cidr(field.of("ipv4_cidr"), text)? {
                IpNet::V4(net) => Ok(net),
                IpNet::V6(_) => Err(field.of("ipv4_cidr").bad("it is an IPv6 prefix")),
            }
        })?,
        v6: optional(&wire.ipv6_cidr, |text| {
            match cidr(field.of("ipv6_cidr"), text)? {
                IpNet::V6(net) => Ok(net),
                IpNet::V4(_) => Err(field.of("ipv6_cidr").bad("it is an IPv4 prefix")),
            }
        })?,
        options: subnet_options(field.of("options"), wire.options)?,
        gateway: wire
            .gateway
            .map(|wire| gateway(field.of("gateway"), wire))
            .transpose()?,
    })
}

fn gateway(field: Field<'_>, wire: v1::Gateway) -> Result<Gateway, BadRequest> {
    let mac: MacAddr = parse(field.of("mac"), &wire.mac)?;
    if !mac.is_usable() {
        let text = format_args!("{mac} is not a unicast address");
        return Err(field.of("mac").bad(text));
    }
    let addresses = list(field.of("addresses"), wire.addresses, 2, |field, text| {
        parse(field, &text)
    })?;
    Ok(Gateway { mac, addresses })
}

/// What a subnet's NICs are told; the usual if nothing is said.
pub fn subnet_options(
    field: Field<'_>,
    wire: Option<v1::SubnetOptions>,
) -> Result<SubnetOptions, BadRequest> {
    /// No message is worked on for long: [`SubnetOptions::check`] allows less.
    const MOST: usize = 64;
    let Some(wire) = wire else {
        return Ok(SubnetOptions::default());
    };
    let custom = field.of("custom");
    if wire.custom.len() > 256 {
        return Err(custom.bad("there are 256 codes"));
    }
    let options = SubnetOptions {
        dhcp: !wire.dhcp_off,
        dns: list(field.of("dns"), wire.dns, MOST, |f, text| parse(f, &text))?,
        domain: optional(&wire.domain, |text| parse(field.of("domain"), text))?,
        search: list(field.of("search"), wire.search, MOST, |f, text| {
            parse(f, &text)
        })?,
        ntp: list(field.of("ntp"), wire.ntp, MOST, |f, text| parse(f, &text))?,
        custom: (wire.custom.into_iter())
            .map(|(code, bytes)| {
                let code = u8::try_from(code)
                    .map_err(|_| custom.bad(format_args!("{code} is no code: 1 to 254")))?;
                Ok((code, bytes))
            })
            .collect::<Result<_, _>>()?,
    };
    match options.check() {
        Ok(()) => Ok(options),
        Err(error) => Err(field.bad(error)),
    }
}

fn cidr(field: Field<'_>, text: &str) -> Result<IpNet, BadRequest> {
    canonical_cidr(text).map_err(|error| field.bad(error))
}

fn port(field: Field<'_>, wire: v1::Port) -> Result<Port, BadRequest> {
    Ok(Port {
        nic: parse(field.of("nic_id"), &wire.nic_id)?,
        name: bounded(field.of("name"), &wire.name, MAX_TEXT)?,
        subnet: parse(field.of("subnet_id"), &wire.subnet_id)?,
        mac: mac_address(field.of("mac"), &wire.mac)?,
        addresses: list(
            field.of("addresses"),
            wire.addresses,
            MAX_ADDRESSES,
            |field, text| parse(field, &text),
        )?,
        behind: list(
            field.of("behind"),
            wire.behind,
            MAX_BEHIND,
            |field, text| router::prefix(field, &text),
        )?,
        attachment: attachment(field.of("attachment"), wire.attachment)?,
        role: match v1::PortRole::try_from(wire.role) {
            Ok(v1::PortRole::Unspecified) => PortRole::Settled,
            Ok(v1::PortRole::Standby) => PortRole::Standby,
            Ok(v1::PortRole::Leaving) => PortRole::Leaving,
            Ok(v1::PortRole::Arrived) => PortRole::Arrived,
            Err(_) => return Err(field.of("role").bad("no role of a port that is known here")),
        },
        sequence: wire.sequence,
    })
}

fn attachment(field: Field<'_>, wire: Option<v1::Attachment>) -> Result<Attachment, BadRequest> {
    use v1::attachment::Kind as Wire;
    let kind = wire.and_then(|wire| wire.kind);
    Ok(
        match kind.ok_or_else(|| field.bad("it is missing: tap, netns or existing"))? {
            Wire::Tap(_) => Attachment::Tap,
            Wire::Netns(wire) => Attachment::Netns {
                netns: parse(field.of("netns").of("netns"), &wire.netns)?,
                device: match wire.device.as_str() {
                    "" => IfName::new("eth0").expect("eth0 is an interface name"),
                    device => parse(field.of("netns").of("device"), device)?,
                },
            },
            Wire::Existing(wire) => Attachment::Existing {
                ifname: parse(field.of("existing").of("ifname"), &wire.ifname)?,
            },
        },
    )
}

/// A unicast MAC address.
fn mac_address(field: Field<'_>, text: &str) -> Result<MacAddr, BadRequest> {
    let mac: MacAddr = parse(field, text)?;
    if mac.is_usable() {
        Ok(mac)
    } else {
        Err(field.bad(format_args!("{mac} is not a unicast address")))
    }
}

#[cfg(test)]
mod tests;
