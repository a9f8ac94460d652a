//! Why a command is refused. Each text names the object, the reason and what to do.

use crate::RequestId;
use ipnet::IpNet;
use model::{
    AddressRange, Attachment, BadCidr, BadOptions, IfName, Kind, MacAddr, Mtu, NetnsName, Revision,
    Role, UnixMillis, VolumeSize,
};
use std::fmt;
use std::net::IpAddr;

/// Stable classes of refusals, for programs. Each maps to one gRPC status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Code {
    /// The object is not there (NOT_FOUND).
    NotFound,
    /// A name, address, MAC, VLAN, VNI or device is taken (ALREADY_EXISTS).
    AlreadyExists,
    /// Something stands on the object (FAILED_PRECONDITION).
    InUse,
    /// The request cannot ever be carried out (INVALID_ARGUMENT).
    Invalid,
    /// Nothing is left to hand out (RESOURCE_EXHAUSTED).
    Exhausted,
    /// Freed a moment ago and not to be handed out yet (FAILED_PRECONDITION).
    Held,
    /// The host takes no such NIC now (FAILED_PRECONDITION).
    UnsuitableHost,
    /// The object changed since the caller saw it (ABORTED).
    VersionConflict,
    /// The request id was used for something else (INVALID_ARGUMENT).
    RequestReused,
}

impl Code {
    /// All of them.
    pub const ALL: [Code; 9] = [
        Code::NotFound,
        Code::AlreadyExists,
        Code::InUse,
        Code::Invalid,
        Code::Exhausted,
        Code::Held,
        Code::UnsuitableHost,
        Code::VersionConflict,
        Code::RequestReused,
    ];

    /// The stable text.
    pub const fn as_str(self) -> &'static str {
        match self {
            Code::NotFound => "not-found",
            Code::AlreadyExists => "already-exists",
            Code::InUse => "in-use",
            Code::Invalid => "invalid",
            Code::Exhausted => "exhausted",
            Code::Held => "held",
            Code::UnsuitableHost => "unsuitable-host",
            Code::VersionConflict => "version-conflict",
            Code::RequestReused => "request-reused",
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Why a command is refused. Objects are named as users know them: `vpc default/blue`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No such object.
    #[error("there is no {kind} {what}: {}", list_hint(.kind))]
    NotFound {
        /// Its kind.
        kind: Kind,
        /// Name, path or id, as asked for.
        what: String,
    },
    /// The name is taken among its siblings.
    #[error("{kind} {path} already exists: choose another name, or use the one that is there")]
    NameTaken {
        /// Its kind.
        kind: Kind,
        /// The object that has the name.
        path: String,
    },
    /// An address, MAC, VLAN, VNI or underlay address is in use.
    #[error("{what} is taken by {by}: choose another{}", auto_hint(.automatic))]
    Taken {
        /// As in "address 10.4.1.5".
        what: String,
        /// The object that has it.
        by: String,
        /// True if leaving it out makes the system choose.
        automatic: bool,
    },
    /// The device exists in the namespace.
    #[error(
        "device {device} in namespace {netns} on host {host} belongs to {by}: choose another device, or leave it out to get the next free one"
    )]
    DeviceTaken {
        /// Where.
        host: String,
        /// The namespace.
        netns: NetnsName,
        /// The device.
        device: IfName,
        /// The NIC that has it.
        by: String,
    },
    /// The interface is another NIC's.
    #[error(
        "interface {ifname} on host {host} belongs to {by}: an interface carries one NIC, choose another"
    )]
    InterfaceTaken {
        /// Where.
        host: String,
        /// The interface.
        ifname: IfName,
        /// The NIC that has it.
        by: String,
    },
    /// Something stands on the object.
    #[error("{object} cannot {action}: {}; delete or move {} first", things(.by, .count, .what), them(.count))]
    InUse {
        /// What was to change, as in "vpc default/blue".
        object: String,
        /// As in "be deleted".
        action: &'static str,
        /// Plural of what stands in the way, as in "subnets".
        what: &'static str,
        /// The first few of them.
        by: Vec<String>,
        /// How many there are.
        count: usize,
    },
    /// The object is not at the version that the caller meant.
    #[error(
        "{object} is at version {actual}, not {expected}: it changed meanwhile; read it again and repeat the change if it still makes sense"
    )]
    VersionConflict {
        /// Which.
        object: String,
        /// What the caller saw.
        expected: Revision,
        /// What it is.
        actual: Revision,
    },
    /// The request id was used for something else.
    #[error(
        "request id {id} was used within the last 24 h for another request: use a new id for each new request"
    )]
    RequestReused {
        /// The id.
        id: RequestId,
    },
    /// Nothing left to hand out.
    #[error("{what} are used up{}{remedy}", next_free(.frees, .now))]
    Exhausted {
        /// As in "the IPv4 addresses of subnet default/blue/web (10.4.1.0/24)".
        what: String,
        /// When the next one that is on hold becomes free.
        frees: Option<UnixMillis>,
        /// When the question was asked.
        now: UnixMillis,
        /// What to do.
        remedy: &'static str,
    },
    /// Freed a moment ago.
    #[error("{what} was freed lately and is on hold for {} more: wait, or choose another", seconds(.until, .now))]
    Held {
        /// As in "address 10.4.1.5".
        what: String,
        /// Free from then on.
        until: UnixMillis,
        /// When the question was asked.
        now: UnixMillis,
    },
    /// The prefix is not one that can be used.
    #[error(transparent)]
    BadCidr(#[from] BadCidr),
    /// No prefix at all.
    #[error("{kind} {path} has no prefix: give at least one, as in {example}")]
    NoCidr {
        /// Of what.
        kind: Kind,
        /// Its name.
        path: String,
        /// One that would do.
        example: &'static str,
    },
    /// Prefix length out of range.
    #[error("{cidr} is not a prefix for a {kind}: {reason}")]
    CidrSize {
        /// The prefix.
        cidr: IpNet,
        /// For what.
        kind: Kind,
        /// The limits, and why they are there.
        reason: &'static str,
    },
    /// Two prefixes share addresses.
    #[error(
        "{cidr} overlaps {other} of {owner}: prefixes inside one VPC must not share addresses, choose another"
    )]
    CidrOverlap {
        /// As asked for.
        cidr: IpNet,
        /// What is there.
        other: IpNet,
        /// Whose it is.
        owner: String,
    },
    /// The router of a VPC that is routed on every host leads a new subnet's prefix outside.
    #[error(
        "{cidr} has a route of router {router}, so packets would go one way or the other: delete that first (vpc route delete {router} {cidr}), or choose another prefix"
    )]
    CidrRouted {
        /// As asked for.
        cidr: IpNet,
        /// Which router.
        router: String,
    },
    /// A subnet's prefix is not in its VPC's.
    #[error("{cidr} is not inside {vpc}, which has {}: choose a part of one of them, or add a prefix to the VPC", list(.cidrs))]
    CidrOutside {
        /// As asked for.
        cidr: IpNet,
        /// The VPC.
        vpc: String,
        /// Its prefixes.
        cidrs: Vec<IpNet>,
    },
    /// Two prefixes of one family.
    #[error(
        "{first} and {second} are of one family: a subnet has one IPv4 and one IPv6 prefix at most; make two subnets"
    )]
    CidrFamily {
        /// One.
        first: IpNet,
        /// The other.
        second: IpNet,
    },
    /// Too many of something.
    #[error("{object} would have {count} {what}, the limit is {most}: use fewer")]
    TooMany {
        /// Whose.
        object: String,
        /// Of what, plural.
        what: &'static str,
        /// How many.
        count: usize,
        /// How many at most.
        most: usize,
    },
    /// A label that cannot be.
    #[error("label {key:?} {reason}")]
    Label {
        /// Its key.
        key: String,
        /// The rule it breaks.
        reason: &'static str,
    },
    /// Its NICs cannot be told that.
    #[error("subnet {subnet}: {source}")]
    SubnetOptions {
        /// Its path.
        subnet: String,
        /// What, and what to do.
        source: BadOptions,
    },
    /// The address belongs to no prefix of the subnet.
    #[error("address {address} is not inside {subnet}, which has {}: choose one that is, or leave it out", list(.cidrs))]
    AddressOutside {
        /// As asked for.
        address: IpAddr,
        /// The subnet.
        subnet: String,
        /// Its prefixes.
        cidrs: Vec<IpNet>,
    },
    /// The address has another use.
    #[error("address {address} of {subnet} is its {role}: choose another, or leave it out")]
    AddressReserved {
        /// As asked for.
        address: IpAddr,
        /// The subnet.
        subnet: String,
        /// As in "gateway".
        role: &'static str,
    },
    /// Two addresses of one family.
    #[error(
        "addresses {first} and {second} are of one family: a NIC has one for each prefix of its subnet; make two NICs"
    )]
    AddressFamily {
        /// One.
        first: IpAddr,
        /// The other.
        second: IpAddr,
    },
    /// A MAC that no interface may have.
    #[error("MAC {mac} cannot be an interface's: it is {}; choose a unicast one such as 02:00:00:00:00:01, or leave it out", if .mac.is_multicast() { "a group address" } else { "all zeroes" })]
    MacUnusable {
        /// As asked for.
        mac: MacAddr,
    },
    /// The underlay cannot carry it.
    #[error(
        "MTU {asked} of subnet {subnet} is too large: an underlay of {underlay} less {overhead} of encapsulation leaves {most}; ask for at most that, or raise the underlay's MTU"
    )]
    MtuTooLarge {
        /// The subnet.
        subnet: String,
        /// As asked for.
        asked: u16,
        /// The underlay's.
        underlay: Mtu,
        /// Bytes of encapsulation.
        overhead: u16,
        /// What is left.
        most: u16,
    },
    /// IPv6 needs more.
    #[error(
        "MTU {mtu} of subnet {subnet} is too small: IPv6 needs at least 1280 (RFC 8200); raise it, or leave the IPv6 prefix out"
    )]
    MtuTooSmall {
        /// The subnet.
        subnet: String,
        /// What it would be.
        mtu: u16,
    },
    /// The subnets of a bundle share the VPC's VNI.
    #[error(
        "subnet {subnet} cannot have a VNI of its own: {vpc} is a vlan-aware-bundle, whose subnets share the VPC's VNI; leave it out, or use a vlan-based VPC"
    )]
    BundleVni {
        /// The subnet.
        subnet: String,
        /// The VPC.
        vpc: String,
    },
    /// A bundle's VNI is on its subnets' frames.
    #[error(
        "vpc {vpc} cannot be a vlan-aware-bundle and be routed on every host: a bundle's VNI is on its subnets' frames, and none is left for what is routed; use encoding vlan-based, or routing central"
    )]
    BundleDistributed {
        /// The VPC.
        vpc: String,
    },
    /// FRR does not see the inside of a gateway.
    #[error(
        "host {host} has FRR as its EVPN client, and VPC {vpc} is routed on every host (routing distributed), which takes the built-in speaker: use another host, the built-in speaker (vpc host set {host} --speaker builtin), or a VPC with routing central"
    )]
    FrrDistributed {
        /// Which host.
        host: String,
        /// Which VPC.
        vpc: String,
    },
    /// What each host routes has one way out.
    #[error(
        "router {router} cannot be made: VPC {vpc} is routed on every host (routing distributed) and has its one way out already, router {other}: use that one"
    )]
    SecondWayOut {
        /// The router that was to be.
        router: String,
        /// Which VPC.
        vpc: String,
        /// The one that is there.
        other: String,
    },
    /// The host takes no new NICs.
    #[error(
        "host {host} is draining and takes nothing new: choose another host, or end the draining"
    )]
    HostDraining {
        /// Which.
        host: String,
    },
    /// The host is not for workloads.
    #[error("host {host} carries no workloads, its roles are {}: choose a compute host, or give it that role", list(.roles))]
    HostRole {
        /// Which.
        host: String,
        /// What it is for.
        roles: Vec<Role>,
    },
    /// FRR knows one VLAN a VNI.
    #[error(
        "host {host} with FRR as its EVPN client does VLAN-based service only, and VPC {vpc} is a vlan-aware-bundle: use another host, the built-in speaker (vpc host set {host} --speaker builtin), or a vlan-based VPC"
    )]
    FrrBundle {
        /// Which host.
        host: String,
        /// Which VPC.
        vpc: String,
    },
    /// FRR knows no tunnels but the kernel's.
    #[error(
        "host {host} cannot have FRR as its EVPN client: its transport is tap, and FRR knows of no tunnels but the kernel's; set transport = \"kernel\" in its agent's settings first, or leave it to the built-in speaker"
    )]
    FrrTap {
        /// Which host.
        host: String,
    },
    /// The host cannot make the NIC now.
    #[error("nic {nic} cannot move to host {host}: {reason}")]
    HostUnable {
        /// Which NIC.
        nic: String,
        /// Where it was to go.
        host: String,
        /// Why not, and what to do.
        reason: String,
    },
    /// It is on its way to another host.
    #[error(
        "nic {nic} is moving from host {from} to host {to}: wait for the end of that (vpc nic show {nic}), or end it with vpc nic move {nic} --host {from}"
    )]
    Moving {
        /// Which NIC.
        nic: String,
        /// Where it comes from.
        from: String,
        /// Where it goes.
        to: String,
    },
    /// A NIC has one port on a host.
    #[error(
        "nic {nic} has its port on host {host} already, as {attachment}: a move does not change the attachment on one host; leave it out, or move to another host"
    )]
    AttachedOtherwise {
        /// Which NIC.
        nic: String,
        /// Where.
        host: String,
        /// As what.
        attachment: Attachment,
    },
    /// A host without a purpose.
    #[error(
        "host {host} has no role: give it one or more of compute, route, management and storage"
    )]
    NoRole {
        /// Which.
        host: String,
    },
    /// An interface that must not become a NIC.
    #[error("interface {ifname} cannot become a NIC: {reason}; choose another")]
    InterfaceReserved {
        /// As asked for.
        ifname: IfName,
        /// Why not.
        reason: &'static str,
    },
    /// A subnet has one gateway.
    #[error(
        "subnet {subnet} has a gateway already, router {router}: detach it there first (vpc router detach {router} {subnet}), or attach it to nothing else"
    )]
    LegTaken {
        /// Which subnet.
        subnet: String,
        /// The router that has it.
        router: String,
    },
    /// A router joins what is in its VPC.
    #[error(
        "subnet {subnet} is not in the VPC of router {router}: a router joins subnets of its own VPC, choose one of those"
    )]
    LegElsewhere {
        /// Which subnet.
        subnet: String,
        /// Which router.
        router: String,
    },
    /// It has no leg there.
    #[error(
        "router {router} has no leg in subnet {subnet}: attach it first (vpc router attach {router} {subnet})"
    )]
    NoLeg {
        /// Which router.
        router: String,
        /// Which subnet.
        subnet: String,
    },
    /// Two legs cannot have the same addresses.
    #[error(
        "router {router} cannot have a leg in both {one} and {other}: their addresses overlap; use another network outside or another subnet"
    )]
    LegOverlap {
        /// Which router.
        router: String,
        /// A leg with its prefix.
        one: String,
        /// The other one.
        other: String,
    },
    /// A route that leads nowhere, or in a circle.
    #[error("route {prefix} of router {router} cannot be: {reason}")]
    Route {
        /// Which router.
        router: String,
        /// Where to.
        prefix: IpNet,
        /// Why not, and what to do.
        reason: String,
    },
    /// There is one already.
    #[error(
        "router {router} has a route for {prefix} already, {other}: delete it first (vpc route delete {router} {prefix})"
    )]
    RouteTaken {
        /// Which router.
        router: String,
        /// Where to.
        prefix: IpNet,
        /// As in "via 10.4.1.9".
        other: String,
    },
    /// No such route or forward.
    #[error("router {router} has no {what}: {list} shows those there are")]
    NotThere {
        /// Which router.
        router: String,
        /// As in "route for 10.9.0.0/16".
        what: String,
        /// The command that lists them.
        list: String,
    },
    /// A port forward that cannot be.
    #[error("port forward {forward} of router {router} cannot be: {reason}")]
    Forward {
        /// Which router.
        router: String,
        /// As in "tcp 8080 to 10.4.1.2:80".
        forward: String,
        /// Why not, and what to do.
        reason: String,
    },
    /// Something on the router needs what was to go, or is not there yet.
    #[error("router {router} cannot {action}: {reason}")]
    RouterNeeds {
        /// Which router.
        router: String,
        /// As in "lose its uplink".
        action: String,
        /// Why not, and what to do.
        reason: String,
    },
    /// Nowhere to run it.
    #[error("router {router} has no host to run on: {reason}")]
    NoRouteHost {
        /// Which router.
        router: String,
        /// Why not, and what to do.
        reason: String,
    },
    /// Nowhere to keep it.
    #[error("volume {volume} has no hosts to be kept on: {reason}")]
    NoStorage {
        /// Which volume.
        volume: String,
        /// Why not, and what to do.
        reason: String,
    },
    /// How many replicas.
    #[error(
        "volume {volume} cannot have {count} replicas: 1, 3 or 5 make sense, as a majority has to be there"
    )]
    Replicas {
        /// Which volume.
        volume: String,
        /// How many were asked for.
        count: usize,
    },
    /// It is in use.
    #[error(
        "volume {volume} is attached to host {host}: detach it first (vpc volume detach {volume})"
    )]
    VolumeAttached {
        /// Which volume.
        volume: String,
        /// Where.
        host: String,
    },
    /// It was deleted long ago.
    #[error(
        "volume {volume} is being erased, and cannot come back: its name is free when its hosts are done (vpc volume show {volume})"
    )]
    VolumeErased {
        /// Which volume.
        volume: String,
    },
    /// Smaller than it is.
    #[error(
        "volume {volume} has {size}, and cannot become smaller ({asked}), as whatever is beyond would be lost: make another one and copy what is needed"
    )]
    VolumeShrinks {
        /// Which volume.
        volume: String,
        /// What it has.
        size: VolumeSize,
        /// What was asked for.
        asked: VolumeSize,
    },
    /// A disk of its own has no room.
    #[error(
        "volume {volume} cannot grow by {more} bytes: the disk of host {host} has {left} left; move that replica (vpc volume move {volume} --from {host}), or ask for less"
    )]
    VolumeRoom {
        /// Which volume.
        volume: String,
        /// Which host.
        host: String,
        /// What its disk has left.
        left: u64,
        /// What is needed.
        more: u64,
    },
    /// Nothing to move.
    #[error(
        "volume {volume} has no replica on host {host}: vpc volume show {volume} says where they are"
    )]
    NoReplica {
        /// Which volume.
        volume: String,
        /// Which host.
        host: String,
    },
    /// Two in one zone where there need not be.
    #[error(
        "volume {volume} gets no replica on host {host}, as {others} others are in the same zone, and one that has fewer has room: move it to host {better}, or leave out --to"
    )]
    ZoneCrowded {
        /// Which volume.
        volume: String,
        /// The host that was asked for.
        host: String,
        /// Replicas in its zone.
        others: usize,
        /// A host of a zone that has fewer.
        better: String,
    },
    /// It has a majority.
    #[error(
        "volume {volume} is led by its replica on host {host}, so nothing is to be recovered: replicas that are away come back or are replaced (vpc volume show {volume})"
    )]
    VolumeLed {
        /// Which volume.
        volume: String,
        /// Where its leader is.
        host: String,
    },
    /// Nothing is left of it.
    #[error(
        "volume {volume} has no replica that it could go on from ({replicas}): bring one of these hosts back"
    )]
    NoSurvivor {
        /// Which volume.
        volume: String,
        /// Why each of its replicas cannot be used.
        replicas: String,
    },
    /// There may be a majority again.
    #[error(
        "volume {volume} may come back without loss, {} ({why}): wait, or bring these hosts back{}",
        if *.majority { "as a majority of its replicas works" } else { "as these are not lost for good" },
        give_up(.dead)
    )]
    MayComeBack {
        /// Which volume.
        volume: String,
        /// A majority works, and only does not lead yet.
        majority: bool,
        /// Which replicas, and how they are.
        why: String,
        /// The hosts that can be given up.
        dead: Vec<String>,
    },
    /// It was not said that this may be.
    #[error(
        "volume {volume} is not recovered, as what only its other replicas have is lost by that: {loss}. Say --accept-loss if that is to be"
    )]
    LossNotAccepted {
        /// Which volume.
        volume: String,
        /// What is lost.
        loss: String,
    },
    /// It is to go.
    #[error("volume {volume} is deleted: restore it first (vpc volume restore {volume})")]
    VolumeDeleted {
        /// Which volume.
        volume: String,
    },
    /// Nowhere for a standby.
    #[error("router {router} has no host to stand by for it: {reason}")]
    NoStandby {
        /// Which router.
        router: String,
        /// Why not, and what to do.
        reason: String,
    },
    /// A host cannot take over from itself.
    #[error(
        "host {host} runs router {router}, and what stands by has to be another: name another route host, or none, so that one is chosen"
    )]
    StandbyOfItself {
        /// Which router.
        router: String,
        /// Which host.
        host: String,
    },
    /// The host carries no routers.
    #[error("host {host} carries no routers, its roles are {}: choose a route host, or give it that role (vpc host set {host} --role route)", list(.roles))]
    NotARouteHost {
        /// Which.
        host: String,
        /// What it is for.
        roles: Vec<Role>,
    },
    /// None, or several, and none named.
    #[error("which external network is meant? {reason}")]
    WhichExternal {
        /// What there is, and what to do.
        reason: String,
    },
    /// An external network that cannot be.
    #[error("external network {name} cannot be: {reason}")]
    External {
        /// Its name.
        name: String,
        /// Why not, and what to do.
        reason: String,
    },
    /// The address is in no pool.
    #[error("address {address} is in no pool of external network {network}, which has {}: choose one that is, or leave it out", list(.pools))]
    NotInPool {
        /// As asked for.
        address: IpAddr,
        /// The network.
        network: String,
        /// Its pools.
        pools: Vec<AddressRange>,
    },
    /// It stands for something else.
    #[error(
        "public address {public} is in use by {by}: detach it first (vpc publicip detach {public}), or use another"
    )]
    PublicTaken {
        /// Which.
        public: String,
        /// What it stands for.
        by: String,
    },
    /// It cannot stand for this.
    #[error("public address {public} cannot be attached to {target}: {reason}")]
    PublicUnusable {
        /// Which.
        public: String,
        /// What it was to stand for.
        target: String,
        /// Why not, and what to do.
        reason: String,
    },
    /// A VTEP cannot have this address.
    #[error("underlay address {address} of host {host} cannot be used: {reason}")]
    Underlay {
        /// As offered.
        address: IpAddr,
        /// Of which host.
        host: String,
        /// Why not, and what to do.
        reason: String,
    },
}

impl Refusal {
    /// Its class.
    pub const fn code(&self) -> Code {
        match self {
            Self::NotFound { .. } | Self::NotThere { .. } | Self::NoReplica { .. } => {
                Code::NotFound
            }
            Self::NameTaken { .. }
            | Self::Taken { .. }
            | Self::DeviceTaken { .. }
            | Self::InterfaceTaken { .. }
            | Self::LegTaken { .. }
            | Self::RouteTaken { .. } => Code::AlreadyExists,
            Self::PublicTaken { .. } | Self::RouterNeeds { .. } => Code::InUse,
            Self::InUse { .. }
            | Self::VolumeAttached { .. }
            | Self::VolumeDeleted { .. }
            | Self::VolumeErased { .. }
            | Self::VolumeLed { .. }
            | Self::MayComeBack { .. }
            | Self::LossNotAccepted { .. }
            | Self::Moving { .. }
            | Self::AttachedOtherwise { .. } => Code::InUse,
            Self::VersionConflict { .. } => Code::VersionConflict,
            Self::RequestReused { .. } => Code::RequestReused,
            Self::Exhausted { .. } => Code::Exhausted,
            Self::Held { .. } => Code::Held,
            Self::HostDraining { .. }
            | Self::HostRole { .. }
            | Self::FrrBundle { .. }
            | Self::FrrDistributed { .. }
            | Self::FrrTap { .. }
            | Self::NoRouteHost { .. }
            | Self::NoStandby { .. }
            | Self::NoStorage { .. }
            | Self::NoSurvivor { .. }
            | Self::ZoneCrowded { .. }
            | Self::VolumeRoom { .. }
            | Self::StandbyOfItself { .. }
            | Self::NotARouteHost { .. }
            | Self::HostUnable { .. } => Code::UnsuitableHost,
            Self::BadCidr(_)
            | Self::NoCidr { .. }
            | Self::CidrSize { .. }
            | Self::CidrOverlap { .. }
            | Self::CidrRouted { .. }
            | Self::CidrOutside { .. }
            | Self::CidrFamily { .. }
            | Self::TooMany { .. }
            | Self::Label { .. }
            | Self::SubnetOptions { .. }
            | Self::AddressOutside { .. }
            | Self::AddressReserved { .. }
            | Self::AddressFamily { .. }
            | Self::MacUnusable { .. }
            | Self::MtuTooLarge { .. }
            | Self::MtuTooSmall { .. }
            | Self::BundleVni { .. }
            | Self::BundleDistributed { .. }
            | Self::SecondWayOut { .. }
            | Self::NoRole { .. }
            | Self::InterfaceReserved { .. }
            | Self::LegElsewhere { .. }
            | Self::NoLeg { .. }
            | Self::LegOverlap { .. }
            | Self::Route { .. }
            | Self::Forward { .. }
            | Self::WhichExternal { .. }
            | Self::Replicas { .. }
            | Self::VolumeShrinks { .. }
            | Self::External { .. }
            | Self::NotInPool { .. }
            | Self::PublicUnusable { .. }
            | Self::Underlay { .. } => Code::Invalid,
        }
    }
}

fn list_hint(kind: &Kind) -> String {
    match kind {
        Kind::Vpc => "`vpc list` shows those there are".to_owned(),
        Kind::Account
        | Kind::Subnet
        | Kind::Nic
        | Kind::Host
        | Kind::Router
        | Kind::External
        | Kind::PublicIp
        | Kind::Volume => {
            format!("`vpc {kind} list` shows those there are")
        }
    }
}

fn auto_hint(automatic: &bool) -> &'static str {
    if *automatic { ", or leave it out" } else { "" }
}

fn things(by: &[String], count: &usize, what: &str) -> String {
    let names = by.join(", ");
    match count.saturating_sub(by.len()) {
        0 => format!("it has {what} {names}"),
        more => format!("it has {count} {what}: {names} and {more} more"),
    }
}

fn give_up(dead: &[String]) -> String {
    if dead.is_empty() {
        return String::new();
    }
    let flags: Vec<String> = dead.iter().map(|host| format!("--dead {host}")).collect();
    format!(
        "; if they never come back, give them up with {}",
        flags.join(" ")
    )
}

fn them(count: &usize) -> &'static str {
    if *count == 1 { "it" } else { "them" }
}

fn list<T: ListItem>(items: &[T]) -> String {
    if items.is_empty() {
        return "none".to_owned();
    }
    items.iter().map(T::text).collect::<Vec<_>>().join(", ")
}

trait ListItem {
    fn text(&self) -> String;
}

impl ListItem for IpNet {
    fn text(&self) -> String {
        self.to_string()
    }
}

impl ListItem for AddressRange {
    fn text(&self) -> String {
        self.to_string()
    }
}

impl ListItem for Role {
    fn text(&self) -> String {
        match self {
            Role::Compute => "compute",
            Role::Route => "route",
            Role::Management => "management",
            Role::Storage => "storage",
        }
        .to_owned()
    }
}

fn seconds(until: &UnixMillis, now: &UnixMillis) -> String {
    format!("{} s", until.0.saturating_sub(now.0).div_ceil(1000))
}

fn next_free(frees: &Option<UnixMillis>, now: &UnixMillis) -> String {
    match frees {
        Some(until) => format!(
            ", and the next one on hold is free in {}: wait, ",
            seconds(until, now)
        ),
        None => ": ".to_owned(),
    }
}
