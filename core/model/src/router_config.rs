//! What a route host has to make true of one virtual router.

use crate::{HostId, IfName, MacAddr, Mtu, RouterId, SubnetId, Vni, VpcId, VpcNames};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::str::FromStr;

/// One virtual router on one host: a network namespace with a leg in each of its subnets and, where
/// it has a way out, an outer leg.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouterConfig {
    /// Which router.
    pub id: RouterId,
    /// Its VPC; a stack of the same host has its segments.
    pub vpc: VpcId,
    /// For people: `vpc/router`.
    pub name: String,
    /// Its legs, ordered by subnet; one a subnet.
    pub legs: Vec<RouterLeg>,
    /// The way out, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uplink: Option<Uplink>,
    /// Routes beside those to its legs' prefixes and by its gateways. The longest prefix wins.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<StaticRoute>,
    /// Address translation, and what of the inside is open to the outside.
    #[serde(default, skip_serializing_if = "NatConfig::is_none")]
    pub nat: NatConfig,
    /// Which placement of the router this is: each has a higher one than the one before it.
    #[serde(default)]
    pub epoch: u64,
    /// The VPC's names, and what its NICs are told of themselves.
    #[serde(default, skip_serializing_if = "VpcNames::is_empty")]
    pub names: VpcNames,
    /// How it reaches the VPC's other routers; none if it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transit: Option<Transit>,
    /// It is one of as many as there are hosts with NICs of the VPC: legs of all of them have the same
    /// MAC and addresses, each is for the NICs of its own host alone, and nobody elsewhere hears of it
    /// but as the way to those (symmetric IRB, RFC 9135 §5).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub anycast: bool,
    /// Prefixes that are the VPC's, of which an address that nobody has leads nowhere, and not outside.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inner: Vec<IpNet>,
    /// Another host runs it, and this one is to be ready to: all of it is made, silent and announced to
    /// nobody, and what is for it goes where it runs.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub prepared: bool,
    /// The route host that is to know what it tracks, if any; one of the voting peers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub standby: Option<HostId>,
}

/// A router's place among the routers of its VPC: all of them, on whichever hosts, have a leg in one
/// segment that carries nothing but what they forward to each other (symmetric routing, RFC 9136
/// §4.4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transit {
    /// The segment's VNI, the VPC's own (L3VNI): no stack of the host has a segment with it.
    pub vni: Vni,
    /// MAC of the leg, unicast: the Router's MAC of its routes.
    pub mac: MacAddr,
}

/// A router's interface in a subnet. Its MAC and addresses are the same wherever the router runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouterLeg {
    /// The subnet; a segment of the VPC's stack on the same host.
    pub subnet: SubnetId,
    /// Unicast.
    pub mac: MacAddr,
    /// The gateway's addresses with the subnet's prefix lengths.
    pub addresses: Vec<IpNet>,
    /// The subnet's.
    pub mtu: Mtu,
}

/// A router's way out: its outer leg on a bridge of the host that leads to the outside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Uplink {
    /// The host's external bridge. It is the operator's, and is not made here.
    pub bridge: IfName,
    /// MAC of the outer leg, unicast.
    pub mac: MacAddr,
    /// Where its address comes from.
    pub address: UplinkAddress,
    /// Default routes, on-link. Several of one family share the flows (ECMP by addresses and ports).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gateways: Vec<IpAddr>,
    /// None is the bridge's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<Mtu>,
}

/// Where the address of an outer leg comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UplinkAddress {
    /// The planner's. Each with the prefix length of the network outside.
    Static(Vec<IpNet>),
    /// A DHCP server's outside, and with it the gateway.
    Dhcp,
}

/// A route of a router.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct StaticRoute {
    /// For packets that come from this subnet only: its leg's own route table, in which this route
    /// takes the place of one for the same prefix that is for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<SubnetId>,
    /// Where to; without host bits.
    pub prefix: IpNet,
    /// Which way.
    pub via: Via,
}

/// Which way a route leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Via {
    /// To the neighbour with this address, on one of the legs or outside.
    Address(IpAddr),
    /// Nowhere: packets are dropped in silence.
    Blackhole,
}

/// A router's address translation. What is not opened here is not reached from outside.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NatConfig {
    /// What becomes of the source of what leaves by the outer leg; none leaves it as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<SourceNat>,
    /// Public addresses that stand for one inner address each, both ways.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub public: Vec<OneToOne>,
    /// Ports that lead to an inner address.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub forwards: Vec<PortForward>,
    /// `source` is for IPv6, too. If not, IPv6 leaves with the source that it has.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub source_v6: bool,
}

impl NatConfig {
    /// Nothing is translated and nothing opened.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

/// What the source address of a packet becomes on its way out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SourceNat {
    /// The outer leg's own.
    Masquerade,
    /// One of these; an inner address keeps to one of them. The outer leg answers for them.
    Addresses(Vec<IpAddr>),
}

/// A public address that stands for an inner one. If both are the same nothing is translated: the
/// address is open to the outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct OneToOne {
    /// Outside. The outer leg answers for it, if it is not the inner one itself.
    pub public: IpAddr,
    /// Inside; of the same family.
    pub private: IpAddr,
}

/// Ports of a public address that lead to an inner address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PortForward {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Outside; none is the outer leg's own address (of the family of `to`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public: Option<IpAddr>,
    /// The ports outside.
    pub ports: PortRange,
    /// Inside.
    pub to: IpAddr,
    /// The port inside of the first port outside; the others follow in order.
    pub to_port: NonZeroU16,
}

/// A transport protocol with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// RFC 9293.
    Tcp,
    /// RFC 768.
    Udp,
}

/// Text that is no [`Protocol`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a protocol with ports: tcp or udp")]
pub struct BadProtocol(String);

impl FromStr for Protocol {
    type Err = BadProtocol;
    fn from_str(text: &str) -> Result<Self, BadProtocol> {
        match text {
            "tcp" => Ok(Self::Tcp),
            "udp" => Ok(Self::Udp),
            _ => Err(BadProtocol(text.to_owned())),
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// Ports from one to another, both included; 0 is none of them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PortRange {
    first: NonZeroU16,
    last: NonZeroU16,
}

/// What is no [`PortRange`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a range of ports: PORT or FIRST-LAST, 1 to 65535")]
pub struct BadPortRange(String);

impl PortRange {
    /// Checks that `first` is not above `last`.
    pub fn new(first: NonZeroU16, last: NonZeroU16) -> Result<Self, BadPortRange> {
        if first > last {
            return Err(BadPortRange(format!("{first}-{last}")));
        }
        Ok(Self { first, last })
    }

    /// The lowest.
    pub const fn first(&self) -> NonZeroU16 {
        self.first
    }

    /// The highest.
    pub const fn last(&self) -> NonZeroU16 {
        self.last
    }

    /// True if a port is in both.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

impl FromStr for PortRange {
    type Err = BadPortRange;
    fn from_str(text: &str) -> Result<Self, BadPortRange> {
        let bad = || BadPortRange(text.to_owned());
        let number = |text: &str| {
            let plain = text.bytes().all(|b| b.is_ascii_digit());
            text.parse().ok().filter(|_| plain).ok_or_else(bad)
        };
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        Self::new(number(first)?, number(last)?).map_err(|_| bad())
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            return f.pad(&self.first.to_string());
        }
        f.pad(&format!("{}-{}", self.first, self.last))
    }
}

impl fmt::Debug for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl TryFrom<String> for PortRange {
    type Error = BadPortRange;
    fn try_from(text: String) -> Result<Self, BadPortRange> {
        text.parse()
    }
}

impl From<PortRange> for String {
    fn from(range: PortRange) -> String {
        range.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_ports_survive_their_text() {
        for text in ["1", "65535", "80-443", "1-65535"] {
            assert_eq!(text.parse::<PortRange>().unwrap().to_string(), text);
        }
        for bad in [
            "", "0", "65536", "2-1", "1-", "-1", "0-5", "+1", "1-2-3", "1 - 2",
        ] {
            assert!(bad.parse::<PortRange>().is_err(), "{bad:?} was taken");
        }
        let range = |text: &str| text.parse::<PortRange>().unwrap();
        assert!(range("1-5").overlaps(&range("5-9")) && !range("1-4").overlaps(&range("5-9")));
    }

    #[test]
    fn a_router_without_anything_is_short_on_disk() {
        let router = RouterConfig {
            id: RouterId::from_random(1),
            vpc: VpcId::from_random(2),
            name: "blue/r1".to_owned(),
            legs: Vec::new(),
            uplink: None,
            routes: Vec::new(),
            nat: NatConfig::default(),
            epoch: 3,
            names: VpcNames::default(),
            transit: None,
            anycast: false,
            inner: Vec::new(),
            prepared: false,
            standby: None,
        };
        let text = serde_json::to_string(&router).unwrap();
        let expected =
            r#"{"id":"0000000001","vpc":"0000000002","name":"blue/r1","legs":[],"epoch":3}"#;
        assert_eq!(text, expected);
        assert_eq!(serde_json::from_str::<RouterConfig>(&text).unwrap(), router);
    }
}
