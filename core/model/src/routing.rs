//! Routers, the networks outside and public addresses, as users asked for them.

use crate::{
    AccountId, ExternalNetworkId, HostId, IfName, MacAddr, Meta, Mtu, Name, NicId, PortForward,
    PublicIpId, RouterId, StaticRoute, Subnet, SubnetId, UnixMillis, VpcId,
};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// A virtual router of a VPC: the gateway of its subnets, and their way out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Router {
    /// Identity; also the name of its namespace on the host.
    pub id: RouterId,
    /// Owner.
    pub vpc: VpcId,
    /// Unique among the VPC's routers.
    pub name: Name,
    /// Its legs, ordered by subnet; a subnet is in one router at most.
    pub legs: Vec<Leg>,
    /// The way out, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uplink: Option<OuterLeg>,
    /// Static routes, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<StaticRoute>,
    /// What becomes of the source address of what goes out.
    #[serde(default)]
    pub source: SourcePolicy,
    /// `source` is for IPv6, too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub source_v6: bool,
    /// Ports of public addresses that lead inside, in order. A public address is the router's own
    /// ([`PublicTarget::Router`]).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub forwards: Vec<PortForward>,
    /// Where it runs.
    pub placement: RouterPlacement,
    /// Where it goes from there, or did not come to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moving: Option<RouterMove>,
    /// Where what it tracks is kept as well, for when that host fails.
    #[serde(default, skip_serializing_if = "Standby::is_off")]
    pub standby: Standby,
    /// Revision, age, labels.
    pub meta: Meta,
}

/// A router's interface in a subnet. Its addresses are the subnet's gateways.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Leg {
    /// Which subnet.
    pub subnet: SubnetId,
    /// Unique in the VPC; the same wherever the router runs.
    pub mac: MacAddr,
}

/// A router's interface on a network outside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OuterLeg {
    /// Which network.
    pub network: ExternalNetworkId,
    /// Unique on the network; the same wherever the router runs.
    pub mac: MacAddr,
    /// From the network's pools, one for each family that it hands out. Empty where the network's
    /// DHCP server gives it one.
    pub addresses: Vec<IpAddr>,
}

/// Where a router runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RouterPlacement {
    /// The route host.
    pub host: HostId,
    /// Grows with each placement, from 1: the host with an older one has lost the router.
    pub epoch: u64,
}

/// The way of a router from a host that lives to another: that one makes it ready first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouterMove {
    /// The route host that it goes to.
    pub to: HostId,
    /// When it was asked to.
    pub since: UnixMillis,
    /// Why it stays where it is after all; empty while it is on its way.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub taken_back: String,
    /// Hosts that earlier moves were taken back from, and when those were asked for.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tried: BTreeMap<HostId, UnixMillis>,
}

impl Router {
    /// The host that makes it ready, to run it next.
    pub fn goes_to(&self) -> Option<HostId> {
        let moving = self.moving.as_ref()?;
        moving.taken_back.is_empty().then_some(moving.to)
    }

    /// Hosts that did not make it ready, and when they were asked to, the last one included.
    pub fn failed_on(&self) -> BTreeMap<HostId, UnixMillis> {
        let Some(moving) = &self.moving else {
            return BTreeMap::new();
        };
        let mut failed = moving.tried.clone();
        if !moving.taken_back.is_empty() {
            failed.insert(moving.to, moving.since);
        }
        failed
    }

    /// Hosts that have it: the one that runs it, and the one that makes it ready.
    pub fn hosts(&self) -> impl Iterator<Item = HostId> + use<> {
        std::iter::once(self.placement.host).chain(self.goes_to())
    }
}

/// A second route host that knows the connections a router tracks, and takes the router over with them.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Standby {
    /// None is wanted.
    #[default]
    Off,
    /// One is wanted, and for now no route host is fit to be it.
    Missing,
    /// This one; never the one that the router runs on.
    On(HostId),
}

impl Standby {
    /// True if none is wanted.
    pub fn is_off(&self) -> bool {
        *self == Self::Off
    }

    /// The host, if there is one.
    pub fn host(self) -> Option<HostId> {
        match self {
            Self::On(host) => Some(host),
            Self::Off | Self::Missing => None,
        }
    }
}

/// What the source address of packets becomes on their way out of a router.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum SourcePolicy {
    /// They keep it.
    #[default]
    None,
    /// The outer leg's.
    Masquerade,
    /// One of the public addresses that are the router's own.
    Addresses,
}

/// Text that is no [`SourcePolicy`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a source translation: none, masquerade or addresses")]
pub struct BadSourcePolicy(String);

impl FromStr for SourcePolicy {
    type Err = BadSourcePolicy;
    fn from_str(text: &str) -> Result<Self, BadSourcePolicy> {
        match text {
            "none" => Ok(Self::None),
            "masquerade" => Ok(Self::Masquerade),
            "addresses" => Ok(Self::Addresses),
            _ => Err(BadSourcePolicy(text.to_owned())),
        }
    }
}

impl fmt::Display for SourcePolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::None => "none",
            Self::Masquerade => "masquerade",
            Self::Addresses => "addresses",
        })
    }
}

/// A network outside of the cluster that route hosts reach by a bridge. The operator's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExternalNetwork {
    /// Identity.
    pub id: ExternalNetworkId,
    /// Unique in the cluster.
    pub name: Name,
    /// Its bridge on every route host.
    pub bridge: IfName,
    /// Its IPv4 prefix, if any.
    pub v4: Option<Ipv4Net>,
    /// Its IPv6 prefix, if any.
    pub v6: Option<Ipv6Net>,
    /// Where everything else is reached, on-link. Several of one family share the flows.
    pub gateways: Vec<IpAddr>,
    /// What of it is handed out to routers and public addresses; they do not overlap.
    pub pools: Vec<AddressRange>,
    /// Routers get their IPv4 address from the DHCP server there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dhcp: bool,
    /// What it carries; none is what the bridge does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<Mtu>,
    /// Revision, age, labels.
    pub meta: Meta,
}

impl ExternalNetwork {
    /// Its prefixes.
    pub fn prefixes(&self) -> impl Iterator<Item = IpNet> + use<> {
        let prefixes = [self.v4.map(IpNet::V4), self.v6.map(IpNet::V6)];
        prefixes.into_iter().flatten()
    }

    /// The prefix that `address` is in.
    pub fn prefix_of(&self, address: IpAddr) -> Option<IpNet> {
        self.prefixes().find(|prefix| prefix.contains(&address))
    }
}

/// An address of an external network that is an account's to use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublicIp {
    /// Identity.
    pub id: PublicIpId,
    /// Owner.
    pub account: AccountId,
    /// Unique among the account's public addresses.
    pub name: Name,
    /// Whose pool it is from.
    pub network: ExternalNetworkId,
    /// Unique in the network.
    pub address: IpAddr,
    /// What it stands for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<PublicTarget>,
    /// Revision, age, labels.
    pub meta: Meta,
}

/// What a public address stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PublicTarget {
    /// A NIC's address of the same family, both ways.
    Nic(NicId),
    /// A router's own: for its source translation and its port forwards.
    Router(RouterId),
}

/// Addresses from one to another of the same family, both included.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AddressRange {
    first: IpAddr,
    last: IpAddr,
}

/// Text that is no range of addresses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a range of addresses: write FIRST-LAST, as in 198.51.100.100-198.51.100.199")]
pub struct BadAddressRange(String);

impl AddressRange {
    /// The lowest.
    pub const fn first(&self) -> IpAddr {
        self.first
    }

    /// The highest.
    pub const fn last(&self) -> IpAddr {
        self.last
    }

    /// True if the address is one of them.
    pub fn contains(&self, address: IpAddr) -> bool {
        // The families do not mix: an IPv4 address is below any IPv6 one, so it is below `first`.
        self.first <= address && address <= self.last
    }

    /// True if an address is in both.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

impl FromStr for AddressRange {
    type Err = BadAddressRange;
    fn from_str(text: &str) -> Result<Self, BadAddressRange> {
        let bad = || BadAddressRange(text.to_owned());
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let first: IpAddr = first.parse().map_err(|_| bad())?;
        let last: IpAddr = last.parse().map_err(|_| bad())?;
        if first.is_ipv4() != last.is_ipv4() || first > last {
            return Err(bad());
        }
        Ok(Self { first, last })
    }
}

impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            return f.pad(&self.first.to_string());
        }
        f.pad(&format!("{}-{}", self.first, self.last))
    }
}

impl fmt::Debug for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl TryFrom<String> for AddressRange {
    type Error = BadAddressRange;
    fn try_from(text: String) -> Result<Self, BadAddressRange> {
        text.parse()
    }
}

impl From<AddressRange> for String {
    fn from(range: AddressRange) -> String {
        range.to_string()
    }
}

impl Subnet {
    /// Where a router of the subnet is: the first address of each prefix that a host can have, with
    /// the prefix's length. No NIC ever has it.
    pub fn gateways(&self) -> impl Iterator<Item = IpNet> + use<> {
        let v4 = self.v4.map(|net| {
            let address = Ipv4Addr::from(u32::from(net.network()) + 1);
            IpNet::new(address.into(), net.prefix_len()).expect("the length is the prefix's own")
        });
        // The very first is the subnet-router anycast address (RFC 4291 §2.6.1).
        let v6 = self.v6.map(|net| {
            let address = Ipv6Addr::from(u128::from(net.network()) + 1);
            IpNet::new(address.into(), net.prefix_len()).expect("the length is the prefix's own")
        });
        v4.into_iter().chain(v6)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_addresses_survive_their_text() {
        for text in ["198.51.100.7", "10.0.0.1-10.0.0.9", "fd00::1-fd00::ff"] {
            assert_eq!(text.parse::<AddressRange>().unwrap().to_string(), text);
        }
        for bad in [
            "",
            "10.0.0.9-10.0.0.1",
            "10.0.0.1-fd00::1",
            "10.0.0.0/24",
            "1-2",
        ] {
            assert!(bad.parse::<AddressRange>().is_err(), "{bad:?} was taken");
        }
        let range: AddressRange = "10.0.0.1-10.0.0.9".parse().unwrap();
        assert!(range.contains("10.0.0.9".parse().unwrap()));
        assert!(!range.contains("10.0.0.10".parse().unwrap()));
        assert!(!range.contains("::a00:1".parse().unwrap()));
    }

    #[test]
    fn a_source_policy_survives_its_text() {
        for text in ["none", "masquerade", "addresses"] {
            assert_eq!(text.parse::<SourcePolicy>().unwrap().to_string(), text);
        }
        assert!("snat".parse::<SourcePolicy>().is_err());
    }
}
