//! What can be asked of routers, external networks and public addresses.

use crate::Expect;
use ipnet::IpNet;
use model::{
    AccountId, AddressRange, ExternalNetworkId, HostId, IfName, Labels, Mtu, Name, PortForward,
    PortRange, Protocol, PublicIpId, PublicTarget, RouterId, SourcePolicy, StaticRoute, SubnetId,
    VpcId,
};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// A new external network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateExternal {
    /// Unique in the cluster.
    pub name: Name,
    /// Its bridge on every route host.
    pub bridge: IfName,
    /// At most one of each family. None with `dhcp`.
    pub cidrs: Vec<IpNet>,
    /// Inside the prefixes, outside of the pools.
    pub gateways: Vec<IpAddr>,
    /// Inside the prefixes; they do not overlap.
    pub pools: Vec<AddressRange>,
    /// Routers get their IPv4 address from the DHCP server there.
    pub dhcp: bool,
    /// What it carries, if the bridge does not tell.
    pub mtu: Option<Mtu>,
    /// The users' labels.
    pub labels: Labels,
}

/// Which external network is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outside {
    /// The only one there is.
    Only,
    /// This one.
    Network(ExternalNetworkId),
}

/// A new router.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateRouter {
    /// Owner.
    pub vpc: VpcId,
    /// Unique among the VPC's routers.
    pub name: Name,
    /// Subnets of the VPC that it has a leg in, which no other router has.
    pub subnets: Vec<SubnetId>,
    /// The network outside, if it has a way out.
    pub uplink: Option<Outside>,
    /// What becomes of the source of what goes out.
    pub source: SourcePolicy,
    /// `source` is for IPv6, too.
    pub source_v6: bool,
    /// Where it runs; otherwise the route host with the fewest routers.
    pub host: Option<HostId>,
    /// Which host stands by for it, if one is to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub standby: Option<StandbyHost>,
    /// The users' labels.
    pub labels: Labels,
}

/// Which host is to stand by for a router.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StandbyHost {
    /// A route host that it does not run on, the one with the fewest routers of its own and others'.
    Any,
    /// This one, as long as it lives and does not run the router itself.
    Host(HostId),
}

/// Changes a router.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdateRouter {
    /// Which.
    pub router: RouterId,
    /// The version it must have.
    pub expect: Expect,
    /// What changes.
    pub change: RouterChange,
}

/// One change of a router.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RouterChange {
    /// A leg in one more subnet. Nothing if it has it.
    Attach(SubnetId),
    /// No leg in this subnet any more. Nothing if it has none.
    Detach(SubnetId),
    /// A way out, or none.
    Uplink(Option<Outside>),
    /// One more route. Nothing if it is there.
    AddRoute(StaticRoute),
    /// The route for this prefix goes, whichever way it leads.
    DeleteRoute {
        /// Of which table; none is the one for all.
        table: Option<SubnetId>,
        /// Its prefix.
        prefix: IpNet,
    },
    /// What becomes of the source of what goes out.
    Source {
        /// For IPv4.
        policy: SourcePolicy,
        /// For IPv6, too.
        v6: bool,
    },
    /// One more port forward. Nothing if it is there.
    AddForward(PortForward),
    /// The forward of these ports goes, wherever it leads.
    DeleteForward {
        /// TCP or UDP.
        protocol: Protocol,
        /// Outside; none is the outer leg's own.
        public: Option<IpAddr>,
        /// The ports outside.
        ports: PortRange,
    },
    /// It goes there: as soon as that host has it ready, or at once if the one it is on is down. None is
    /// its standby, or else the route host with the fewest routers that is not the one it is on.
    Place(Option<HostId>),
    /// The end of a move; the server's own, when the hosts reported or time is up.
    Advance(RouterStep),
    /// Another host stands by, or none.
    Standby(Option<StandbyHost>),
    /// The server's: one that is not fit to stand by any more gives way to one that is, if there is one.
    RenewStandby,
}

/// How the move of a router ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RouterStep {
    /// The new host has it ready: it runs there from now on.
    Switch,
    /// The new host does not do it: the router is where it was.
    Stay {
        /// Why.
        reason: String,
    },
}

/// A new public address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreatePublicIp {
    /// Owner.
    pub account: AccountId,
    /// Unique among the account's.
    pub name: Name,
    /// Whose pool it comes from.
    pub network: Outside,
    /// Which one; otherwise the lowest free of `v6`'s family.
    pub address: Option<IpAddr>,
    /// An IPv6 address is wanted.
    pub v6: bool,
    /// The users' labels.
    pub labels: Labels,
}

/// A public address stands for something else, or for nothing, from now on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachPublicIp {
    /// Which.
    pub public: PublicIpId,
    /// The version it must have.
    pub expect: Expect,
    /// What it stands for; none takes it away.
    pub target: Option<PublicTarget>,
}
