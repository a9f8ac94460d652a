//! Checked types to messages. Total: what we hold can always be said.

mod router;
mod routing;
mod storage;

pub use routing::external;

use crate::pki::Issued;
use crate::v1;
use model::{
    Account, Attachment, Condition, Host, HostChange, HostConfig, HostId, HostStatus, Meta,
    MovePhase, Nic, Port, PortRole, Secret, Segment, Stack, Subnet, SubnetOptions, VoterSet,
    Voting, Vpc,
};
use router::texts;
use std::net::SocketAddr;
use std::time::{SystemTime, UNIX_EPOCH};

impl From<&Meta> for v1::Meta {
    fn from(meta: &Meta) -> Self {
        Self {
            resource_version: meta.revision.0,
            created_unix_ms: meta.created.0,
            labels: meta.labels.clone().into_iter().collect(),
        }
    }
}

impl From<&Account> for v1::Account {
    fn from(account: &Account) -> Self {
        Self {
            id: account.id.to_string(),
            name: account.name.to_string(),
            meta: Some((&account.meta).into()),
        }
    }
}

/// With its path, `account/vpc`.
impl From<(&Vpc, String)> for v1::Vpc {
    fn from((vpc, path): (&Vpc, String)) -> Self {
        Self {
            id: vpc.id.to_string(),
            name: vpc.name.to_string(),
            path,
            account_id: vpc.account.to_string(),
            cidrs: vpc.cidrs.iter().map(ToString::to_string).collect(),
            vni: vpc.vni.get(),
            asn: vpc.asn().get(),
            encoding: v1::Encoding::from(vpc.encoding).into(),
            routing: v1::Routing::from(vpc.routing).into(),
            unknown_neighbours: v1::UnknownNeighbours::from(vpc.unknown_neighbours).into(),
            gateway_mac: text(&vpc.gateway_mac()),
            meta: Some((&vpc.meta).into()),
        }
    }
}

/// With its path, `account/vpc/subnet`.
impl From<(&Subnet, String)> for v1::Subnet {
    fn from((subnet, path): (&Subnet, String)) -> Self {
        Self {
            id: subnet.id.to_string(),
            name: subnet.name.to_string(),
            path,
            vpc_id: subnet.vpc.to_string(),
            ipv4_cidr: text(&subnet.v4),
            ipv6_cidr: text(&subnet.v6),
            vlan: subnet.vlan.get().into(),
            vni: subnet.vni.get(),
            mtu: subnet.mtu.get().into(),
            meta: Some((&subnet.meta).into()),
            options: Some((&subnet.options).into()),
        }
    }
}

impl From<&SubnetOptions> for v1::SubnetOptions {
    fn from(options: &SubnetOptions) -> Self {
        Self {
            dhcp_off: !options.dhcp,
            dns: options.dns.iter().map(ToString::to_string).collect(),
            domain: text(&options.domain),
            search: options.search.iter().map(ToString::to_string).collect(),
            ntp: options.ntp.iter().map(ToString::to_string).collect(),
            custom: (options.custom.iter())
                .map(|(code, bytes)| (u32::from(*code), bytes.clone()))
                .collect(),
        }
    }
}

/// A NIC with its path and the names of its hosts.
pub fn nic(
    nic: &Nic,
    path: String,
    name_of: impl Fn(HostId) -> String,
    status: Option<v1::NicStatus>,
) -> v1::Nic {
    v1::Nic {
        id: nic.id.to_string(),
        name: nic.name.to_string(),
        path,
        subnet_id: nic.subnet.to_string(),
        mac: nic.mac.to_string(),
        addresses: nic.addresses.iter().map(ToString::to_string).collect(),
        host_id: nic.placement.host.to_string(),
        host_name: name_of(nic.placement.host),
        attachment: Some((&nic.placement.attachment).into()),
        meta: Some((&nic.meta).into()),
        status,
        moves: nic.moves,
        moving: nic.moving.as_ref().map(|moving| v1::NicMove {
            phase: v1::nic_move::Phase::from(moving.phase).into(),
            other_host_id: moving.other.host.to_string(),
            other_host_name: name_of(moving.other.host),
            other_attachment: Some((&moving.other.attachment).into()),
            started_unix_ms: moving.started.0,
            since_unix_ms: moving.since.0,
            taken_back: moving.taken_back.clone(),
        }),
        user_data_bytes: nic.user_data.as_ref().map_or(0, |data| {
            u32::try_from(data.bytes().len()).unwrap_or(u32::MAX)
        }),
    }
}

impl From<MovePhase> for v1::nic_move::Phase {
    fn from(phase: MovePhase) -> Self {
        match phase {
            MovePhase::Provision => Self::Provision,
            MovePhase::Switch => Self::Switch,
            MovePhase::Retire => Self::Retire,
        }
    }
}

impl From<PortRole> for v1::PortRole {
    fn from(role: PortRole) -> Self {
        match role {
            PortRole::Settled => Self::Unspecified,
            PortRole::Standby => Self::Standby,
            PortRole::Leaving => Self::Leaving,
            PortRole::Arrived => Self::Arrived,
        }
    }
}

/// A host, with what is known of how it is.
pub fn host(host: &Host, status: Option<v1::HostStatus>) -> v1::Host {
    v1::Host {
        id: host.id.to_string(),
        name: host.name.to_string(),
        roles: host
            .roles
            .iter()
            .map(|role| v1::Role::from(*role).into())
            .collect(),
        underlay_address: host.underlay.to_string(),
        zone: text(&host.zone),
        draining: host.draining,
        meta: Some((&host.meta).into()),
        status,
        speaker: v1::Speaker::from(host.speaker).into(),
    }
}

/// What a host reported; the server fills in liveness, the generation it wants and the MTU.
impl From<&HostStatus> for v1::HostStatus {
    fn from(status: &HostStatus) -> Self {
        Self {
            liveness: v1::Liveness::Unspecified.into(),
            last_checkin_unix_ms: status.last_checkin.0,
            agent_version: status.agent_version.clone(),
            kernel_version: status.kernel_version.clone(),
            capabilities: status
                .capabilities
                .iter()
                .map(|capability| v1::Capability::from(*capability).into())
                .collect(),
            resources: Some(v1::Resources {
                cpus: status.resources.cpus,
                memory_total_bytes: status.resources.memory_total_bytes,
                memory_free_bytes: status.resources.memory_free_bytes,
                disk_free_bytes: status.resources.disk_free_bytes,
            }),
            wanted_generation: 0,
            received_generation: status.received.0,
            applied_generation: status.applied.0,
            conditions: status.conditions.iter().map(Into::into).collect(),
            underlay_mtu: 0,
            frr_version: status.frr_version.clone(),
            transport: v1::Transport::from(status.transport).into(),
        }
    }
}

/// What an agent reports; it adds the underlay's MTU, and what it understands.
impl From<&HostStatus> for v1::HostReport {
    fn from(status: &HostStatus) -> Self {
        let shown = v1::HostStatus::from(status);
        Self {
            agent_version: shown.agent_version,
            kernel_version: shown.kernel_version,
            capabilities: shown.capabilities,
            resources: shown.resources,
            received_generation: shown.received_generation,
            applied_generation: shown.applied_generation,
            conditions: shown.conditions,
            underlay_mtu: 0,
            elsewhere_nic_ids: status.elsewhere.iter().map(ToString::to_string).collect(),
            frr_version: shown.frr_version,
            transport: shown.transport,
            takes_changes: false,
            routers: Vec::new(),
            storage: None,
            routing: (!status.voters.is_empty() || !status.heard.is_empty()).then(|| {
                v1::RoutingReport {
                    voters: texts(&status.voters),
                    heard_host_ids: texts(&status.heard),
                }
            }),
        }
    }
}

impl From<&Condition> for v1::Condition {
    fn from(condition: &Condition) -> Self {
        let object = condition.object;
        Self {
            kind: v1::Kind::from(object.kind()).into(),
            object_id: object.id_text(),
            message: condition.message.clone(),
            since_unix_ms: condition.since.0,
            attempts: condition.attempts,
        }
    }
}

impl From<&HostConfig> for v1::HostConfig {
    fn from(config: &HostConfig) -> Self {
        Self {
            host_id: config.host.to_string(),
            generation: config.generation.0,
            underlay: Some(v1::Underlay {
                address: config.underlay.address.to_string(),
                mtu: config.underlay.mtu.get().into(),
            }),
            bgp: Some(v1::BgpConfig {
                asn: config.bgp.asn.get(),
                reflectors: config
                    .bgp
                    .reflectors
                    .iter()
                    .map(|reflector| v1::Reflector {
                        address: reflector.address.to_string(),
                        port: reflector.port.into(),
                        password: match &reflector.password {
                            Some(Secret(key)) => key.clone(),
                            None => String::new(),
                        },
                    })
                    .collect(),
                speaker: v1::Speaker::from(config.bgp.speaker).into(),
            }),
            stacks: config.stacks.iter().map(|s| s.as_ref().into()).collect(),
            routers: config.routers.iter().map(|r| r.as_ref().into()).collect(),
            voting: config.voting.as_ref().map(Into::into),
            members: config
                .members
                .iter()
                .map(|(subnet, vteps)| v1::SubnetMembers {
                    subnet_id: subnet.to_string(),
                    vteps: texts(vteps),
                })
                .collect(),
            standby_for: config
                .standby_for
                .iter()
                .map(|(router, name)| v1::StandbyRouter {
                    router_id: router.to_string(),
                    name: name.clone(),
                })
                .collect(),
            storage: (!config.storage.is_empty()).then(|| (&config.storage).into()),
        }
    }
}

impl From<&HostChange> for v1::HostConfigChange {
    fn from(change: &HostChange) -> Self {
        Self {
            base_generation: change.base.0,
            changed: Some((&change.changed).into()),
            gone_vpc_ids: texts(&change.gone_stacks),
            gone_router_ids: texts(&change.gone_routers),
            gone_subnet_ids: texts(&change.gone_members),
            gone_standby_router_ids: texts(&change.gone_standby_for),
        }
    }
}

impl From<&Voting> for v1::Voting {
    fn from(voting: &Voting) -> Self {
        let set = |voters: &VoterSet| v1::VoterSet {
            voters: texts(voters),
        };
        let peer = |(host, address): (&HostId, &SocketAddr)| v1::VotingPeer {
            host_id: host.to_string(),
            address: address.to_string(),
        };
        Self {
            sets: voting.sets.iter().map(set).collect(),
            peers: voting.peers.iter().map(peer).collect(),
        }
    }
}

/// Takes the secrets out of a configuration, to show it to people.
pub fn without_secrets(config: &mut v1::HostConfig) {
    for reflector in config.bgp.iter_mut().flat_map(|bgp| &mut bgp.reflectors) {
        reflector.password.clear();
    }
    let names = config.routers.iter_mut().flat_map(|r| &mut r.names);
    for nic in names.flat_map(|n| &mut n.subnets).flat_map(|s| &mut s.nics) {
        nic.user_data.clear();
    }
}

impl From<&Stack> for v1::Stack {
    fn from(stack: &Stack) -> Self {
        Self {
            vpc_id: stack.vpc.to_string(),
            name: stack.name.clone(),
            vni: stack.vni.get(),
            encoding: v1::Encoding::from(stack.encoding).into(),
            unknown_neighbours: v1::UnknownNeighbours::from(stack.unknown_neighbours).into(),
            segments: stack.segments.iter().map(Into::into).collect(),
            ports: stack.ports.iter().map(Into::into).collect(),
        }
    }
}

impl From<&Segment> for v1::Segment {
    fn from(segment: &Segment) -> Self {
        Self {
            subnet_id: segment.subnet.to_string(),
            name: segment.name.clone(),
            vlan: segment.vlan.get().into(),
            vni: segment.vni.get(),
            mtu: segment.mtu.get().into(),
            ipv4_cidr: text(&segment.v4),
            ipv6_cidr: text(&segment.v6),
            options: (!segment.options.is_default()).then(|| (&segment.options).into()),
            gateway: segment.gateway.as_ref().map(|gateway| v1::Gateway {
                mac: gateway.mac.to_string(),
                addresses: gateway.addresses.iter().map(ToString::to_string).collect(),
            }),
        }
    }
}

impl From<&Port> for v1::Port {
    fn from(port: &Port) -> Self {
        Self {
            nic_id: port.nic.to_string(),
            name: port.name.clone(),
            subnet_id: port.subnet.to_string(),
            mac: port.mac.to_string(),
            addresses: port.addresses.iter().map(ToString::to_string).collect(),
            behind: port.behind.iter().map(ToString::to_string).collect(),
            attachment: Some((&port.attachment).into()),
            role: v1::PortRole::from(port.role).into(),
            sequence: port.sequence,
        }
    }
}

impl From<&Attachment> for v1::Attachment {
    fn from(attachment: &Attachment) -> Self {
        use v1::attachment::{Existing, Kind, Netns, Tap};
        Self {
            kind: Some(match attachment {
                Attachment::Tap => Kind::Tap(Tap {}),
                Attachment::Netns { netns, device } => Kind::Netns(Netns {
                    netns: netns.to_string(),
                    device: device.to_string(),
                }),
                Attachment::Existing { ifname } => Kind::Existing(Existing {
                    ifname: ifname.to_string(),
                }),
            }),
        }
    }
}

/// A certificate for its holder, with the CA's.
pub fn certificate(issued: &Issued, ca: &[u8]) -> v1::Certificate {
    v1::Certificate {
        chain_der: issued.chain.iter().map(|der| der.to_vec()).collect(),
        ca_der: ca.to_vec(),
        not_before_unix_ms: unix_ms(issued.not_before),
        not_after_unix_ms: unix_ms(issued.not_after),
    }
}

fn unix_ms(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn text(value: &Option<impl ToString>) -> String {
    value.as_ref().map(ToString::to_string).unwrap_or_default()
}
