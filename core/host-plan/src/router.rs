//! What is inside of a router's namespace, and the changes that make it what it should be.

mod bound;
mod flows;
mod nat;

pub use bound::{FLOWS_PER_ROUTER, is_full};
pub use flows::Flow;
pub use nat::{NatRule, NoNatRule};

use ipnet::IpNet;
use model::{IfName, MacAddr, Mtu, NetnsName, PortRange, Protocol};
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::net::IpAddr;
use std::num::NonZeroU16;

/// A router's namespace as it was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RouterState {
    /// Sysctls whose value is not the one of [`GLOBAL_SYSCTLS`] and [`DEVICE_SYSCTLS`], by their
    /// path below `/proc/sys`.
    pub wrong_sysctls: BTreeSet<String>,
    /// What our ruleset was made from, if it is there as this version words it and whole.
    pub firewall: Option<Fingerprint>,
    /// All interfaces.
    pub links: BTreeMap<IfName, RouterLink>,
    /// Routes with our protocol number, of all tables.
    pub routes: BTreeSet<Route>,
    /// Rules with our protocol number.
    pub rules: BTreeSet<RouteRule>,
    /// Permanent neighbour rows with our protocol number.
    pub next_hops: BTreeSet<NextHop>,
}

/// An interface in a router's namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouterLink {
    /// Its MAC.
    pub mac: MacAddr,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// `disable_ipv6` is set.
    pub ipv6_disabled: bool,
    /// Addresses with their prefix length.
    pub addresses: BTreeSet<IpNet>,
}

/// A route in a table of a router.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Route {
    /// The kernel's number of the table; 254 is the main one.
    pub table: u32,
    /// Where to.
    pub prefix: IpNet,
    /// Which way.
    pub way: Way,
}

/// Which way a route leads.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Way {
    /// Nowhere, in silence.
    Blackhole,
    /// Out of interfaces, which share the flows.
    Hops {
        /// At least one.
        hops: BTreeSet<Hop>,
        /// The source of what the router itself sends there (errors, most of all).
        source: Option<IpAddr>,
    },
}

/// One next hop.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hop {
    /// Out of this interface.
    pub device: IfName,
    /// To this neighbour; none is the destination itself.
    pub gateway: Option<IpAddr>,
}

/// A neighbour that nobody asks for: EVPN or the planner says which MAC it has.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NextHop {
    /// The interface.
    pub device: IfName,
    /// Its address, that of routes' gateways.
    pub address: IpAddr,
    /// Its MAC.
    pub mac: MacAddr,
}

/// "What comes in by this interface is routed by this table".
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RouteRule {
    /// The interface.
    pub device: IfName,
    /// The table.
    pub table: u32,
    /// For IPv6; else for IPv4.
    pub ipv6: bool,
}

/// Changes of one router's namespace, in order.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RouterChanges {
    /// The namespace.
    pub netns: NetnsName,
    /// What to do in it.
    pub changes: Vec<RouterChange>,
}

/// One change in a router's namespace.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[expect(
    missing_docs,
    reason = "each variant is documented; its fields are named for what they are"
)]
pub enum RouterChange {
    /// Write a sysctl; the path is below `/proc/sys`.
    SetSysctl { path: String, value: &'static str },
    /// Put our ruleset in the place of the one that is there, at once; end flows that it does not
    /// allow.
    SetFirewall(Box<RouterFirewall>),
    /// Set an interface's MAC.
    SetMac { link: IfName, mac: MacAddr },
    /// Set an interface's MTU.
    SetMtu { link: IfName, mtu: Mtu },
    /// Switch an interface's IPv6 on or off.
    SetIpv6 { link: IfName, on: bool },
    /// Give an interface an address.
    AddAddress { link: IfName, address: IpNet },
    /// Take an address off an interface.
    DeleteAddress { link: IfName, address: IpNet },
    /// Bring an interface up.
    SetUp { link: IfName },
    /// Add a route, in the place of one to the same prefix in the same table.
    SetRoute(Route),
    /// Remove exactly this route.
    DeleteRoute(Route),
    /// Add a rule.
    AddRule(RouteRule),
    /// Remove exactly this rule.
    DeleteRule(RouteRule),
    /// Put a permanent neighbour row with our protocol number, in the place of one for the same
    /// address.
    SetNextHop(NextHop),
    /// Remove exactly this row.
    DeleteNextHop(NextHop),
}

impl RouterChange {
    /// True for permanent neighbours.
    pub(crate) const fn is_neighbour(&self) -> bool {
        matches!(self, Self::SetNextHop(_) | Self::DeleteNextHop(_))
    }

    /// True for routes and the neighbours that they lead to.
    pub(crate) const fn is_way(&self) -> bool {
        match self {
            Self::SetRoute(_)
            | Self::DeleteRoute(_)
            | Self::SetNextHop(_)
            | Self::DeleteNextHop(_) => true,
            Self::SetSysctl { .. }
            | Self::SetFirewall(_)
            | Self::SetMac { .. }
            | Self::SetMtu { .. }
            | Self::SetIpv6 { .. }
            | Self::AddAddress { .. }
            | Self::DeleteAddress { .. }
            | Self::SetUp { .. }
            | Self::AddRule(_)
            | Self::DeleteRule(_) => false,
        }
    }
}

/// What a router lets pass and what it translates: the data of its ruleset.
///
/// Between legs and out everything passes, in only what is opened here; the router itself answers
/// nobody but for echoes of its inside, questions for names and metadata, and what belongs to passing
/// flows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct RouterFirewall {
    /// Interfaces of the inside.
    pub legs: BTreeSet<IfName>,
    /// Interfaces that connections of which are not tracked: nothing is translated, and all passes.
    pub untracked: BTreeSet<IfName>,
    /// By which interface it sends back what came by it from another router of the VPC, for a public address
    /// of its own.
    pub turns_at: Option<IfName>,
    /// And as whom: its addresses outside, so that the answer comes back here.
    pub turns_as: BTreeSet<IpAddr>,
    /// What is reached by them: the prefixes of legs, and of routes by them.
    pub inside: BTreeSet<IpNet>,
    /// The interface to the outside.
    pub outer: Option<IfName>,
    /// What the source of what leaves becomes, by family; a family without one leaves as it is.
    pub sources: BTreeSet<IpAddr>,
    /// Inner address by public address.
    pub public: BTreeMap<IpAddr, IpAddr>,
    /// Inner addresses that are open to the outside as they are.
    pub open: BTreeSet<IpAddr>,
    /// Where ports lead; the ranges of an address and protocol do not overlap.
    pub forwards: BTreeMap<(IpAddr, Protocol, PortRange), (IpAddr, NonZeroU16)>,
    /// Legs with the addresses that names are asked at, by that leg alone: port 53.
    pub resolvers: BTreeSet<(IfName, IpAddr)>,
    /// Legs with the addresses that metadata are asked at: port 80 of TCP.
    pub metadata: BTreeSet<(IfName, IpAddr)>,
}

/// What a ruleset was made from, in short.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint(pub u64);

impl RouterFirewall {
    /// The same for the same data.
    pub fn fingerprint(&self) -> Fingerprint {
        let mut hash = Fnv(0xcbf2_9ce4_8422_2325);
        self.hash(&mut hash);
        Fingerprint(hash.finish())
    }
}

/// FNV-1a, 64 bits: not against an adversary, only to see that something else is wanted.
struct Fnv(u64);

impl Hasher for Fnv {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

/// The kernel's main table of routes.
pub const MAIN_TABLE: u32 = 254;

/// Sysctls of a router's namespace that are of no interface, by their path below `/proc/sys`. They
/// are all set before its first interface is there.
pub const GLOBAL_SYSCTLS: &[(&str, &str)] = &[
    // The first, because it sets others.
    ("net/ipv4/ip_forward", "1"),
    ("net/ipv4/fib_multipath_hash_policy", "1"),
    // A gateway that does not answer ARP gets no flows while another does.
    ("net/ipv4/fib_multipath_use_neigh", "1"),
    ("net/ipv4/icmp_echo_ignore_broadcasts", "1"),
    ("net/ipv4/ip_no_pmtu_disc", "0"),
    ("net/ipv6/fib_multipath_hash_policy", "1"),
    // An interface has no IPv6 before it is told to.
    ("net/ipv6/conf/default/disable_ipv6", "1"),
    // The least that RFC 5382 §5, RFC 4787 §4.3 and RFC 5508 §3.2 ask for; the kernel's own are
    // five days, half a minute (for flows with no answer yet) and half a minute.
    ("net/netfilter/nf_conntrack_tcp_timeout_established", "7440"),
    ("net/netfilter/nf_conntrack_udp_timeout", "120"),
    ("net/netfilter/nf_conntrack_udp_timeout_stream", "300"),
    ("net/netfilter/nf_conntrack_icmp_timeout", "60"),
    ("net/netfilter/nf_conntrack_icmpv6_timeout", "60"),
];

/// Sysctls that every interface of a router has, by their path below `/proc/sys/net`, with `*` for
/// the interface. `all` and `default` get them before the first interface is there.
pub const DEVICE_SYSCTLS: &[(&str, &str)] = &[
    ("ipv4/conf/*/forwarding", "1"),
    ("ipv4/conf/*/rp_filter", "1"),
    ("ipv4/conf/*/send_redirects", "0"),
    ("ipv4/conf/*/accept_redirects", "0"),
    ("ipv4/conf/*/secure_redirects", "0"),
    ("ipv4/conf/*/accept_source_route", "0"),
    ("ipv4/conf/*/accept_local", "0"),
    ("ipv4/conf/*/route_localnet", "0"),
    ("ipv4/conf/*/proxy_arp", "0"),
    ("ipv4/conf/*/arp_ignore", "1"),
    ("ipv4/conf/*/arp_announce", "2"),
    // Neighbours hear of a router that came here from another host.
    ("ipv4/conf/*/arp_notify", "1"),
    ("ipv4/conf/*/promote_secondaries", "1"),
    ("ipv6/conf/*/forwarding", "1"),
    ("ipv6/conf/*/accept_ra", "0"),
    ("ipv6/conf/*/accept_redirects", "0"),
    ("ipv6/conf/*/autoconf", "0"),
    // Its addresses are the planner's: nobody else has them, and they answer at once.
    ("ipv6/conf/*/accept_dad", "0"),
    ("ipv6/conf/*/dad_transmits", "0"),
    ("ipv6/conf/*/ndisc_notify", "1"),
];

/// The path below `/proc/sys` of one of [`DEVICE_SYSCTLS`] for an interface.
pub fn device_sysctl(pattern: &str, device: &str) -> String {
    format!("net/{}", pattern.replacen('*', device, 1))
}

/// The sysctls that are set in a router's namespace before its first interface is there.
pub fn base_sysctls() -> impl Iterator<Item = (String, &'static str)> {
    let global = GLOBAL_SYSCTLS
        .iter()
        .map(|(path, value)| ((*path).to_owned(), *value));
    let devices = ["all", "default"].into_iter().flat_map(device_sysctls);
    global.chain(devices)
}

/// The sysctls of one interface.
pub fn device_sysctls(device: &str) -> impl Iterator<Item = (String, &'static str)> {
    DEVICE_SYSCTLS
        .iter()
        .map(move |(pattern, value)| (device_sysctl(pattern, device), *value))
}
