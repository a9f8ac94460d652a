//! What was observed on the host: plain data, filled by `shell/linux`, printed by the command line.

use crate::{RouterState, Shared};
use ipnet::IpNet;
use model::{Capability, IfName, MacAddr, NetnsName, VlanId, Vni};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

/// The parts of the kernel's state that a plan is made from, all of the host's own network
/// namespace unless said otherwise. Foreign objects are in it too: the planner decides what is ours.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostState {
    /// What the kernel can do.
    pub capabilities: BTreeSet<Capability>,
    /// All interfaces.
    pub links: Shared<BTreeMap<IfName, Link>>,
    /// FDB rows of bridge ports and VXLAN devices.
    pub fdb: Shared<BTreeSet<FdbRow>>,
    /// Neighbour rows (ARP and ND tables) of bridges and VLAN devices.
    pub neighbours: Shared<BTreeSet<Neighbour>>,
    /// Trunk pairs whose programs are all in place, by their outer end.
    pub trunks: BTreeMap<IfName, Trunk>,
    /// The namespaces that the scope asked for; one that does not exist is absent.
    pub netns: BTreeMap<NetnsName, NetnsState>,
    /// The routers' namespaces that the scope asked for and that are ours. Of one that is as it was at the
    /// look before this is the same value.
    pub routers: BTreeMap<NetnsName, Arc<RouterState>>,
    /// All namespaces that carry our marker, looked into or not.
    pub owned_netns: Shared<BTreeSet<NetnsName>>,
    /// Our nftables ruleset is there in the wording of this version.
    pub firewall: bool,
    /// Port guards in our nftables sets.
    pub guards: Shared<BTreeMap<IfName, Guard>>,
    /// Underlay addresses that tunnel packets are taken from, in our nftables sets.
    pub vteps: Shared<BTreeSet<IpAddr>>,
    /// What the datapath was told, or the one before while another takes over; none if none runs.
    pub datapath: Option<datapath::Tables>,
    /// Why none runs or answers, if one should.
    pub datapath_trouble: Option<String>,
}

/// What to look at beyond links, rows and guards of the host's own namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scope {
    /// Namespaces to look into.
    pub netns: BTreeSet<NetnsName>,
    /// Routers' namespaces to say what is known of; those that nothing is known of are looked into.
    pub routers: BTreeSet<NetnsName>,
}

/// An interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// The kernel's number for it.
    pub index: u32,
    /// What it is.
    pub kind: LinkKind,
    /// `ifalias`: our ownership stamp is here.
    pub alias: Option<String>,
    /// Its MAC; zero for devices without one.
    pub mac: MacAddr,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// `disable_ipv6` is set.
    pub ipv6_disabled: bool,
    /// Set if it is a port of a bridge.
    pub port: Option<BridgePort>,
}

/// What an interface is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkKind {
    /// A bridge.
    Bridge {
        /// VLANs are told apart.
        vlan_filtering: bool,
        /// VLAN that a new port gets; 0 is none.
        default_pvid: u16,
        /// Multicast is pruned by IGMP and MLD.
        mcast_snooping: bool,
    },
    /// A VXLAN device.
    Vxlan {
        /// Its VNI; none if it takes it from metadata.
        vni: Option<Vni>,
        /// The address it sends from.
        local: Option<IpAddr>,
        /// UDP port.
        port: u16,
        /// Learns from the data plane.
        learning: bool,
    },
    /// A VLAN on top of another interface.
    Vlan {
        /// Index of the interface below.
        parent: u32,
        /// The VLAN.
        vlan: VlanId,
    },
    /// One end of a veth pair.
    Veth {
        /// Index of the other end, in its own namespace's numbering.
        peer: u32,
        /// The namespace of the other end if it is one of the scope's; the host's own, or one that
        /// was not looked into, is none.
        peer_netns: Option<NetnsName>,
        /// The other end is in this same namespace.
        peer_is_local: bool,
    },
    /// A TAP device.
    Tap {
        /// Several queues.
        multi_queue: bool,
        /// Frames carry a virtio-net header.
        vnet_hdr: bool,
    },
    /// Something else, by its kind in the kernel (empty for hardware).
    Other(String),
}

/// An interface's membership in a bridge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BridgePort {
    /// The bridge.
    pub bridge: IfName,
    /// May not talk to other isolated ports.
    pub isolated: bool,
    /// Learns MACs.
    pub learning: bool,
    /// Gets unicast of unknown destination.
    pub unicast_flood: bool,
    /// ARP and ND are answered from the neighbour table instead of being flooded here.
    pub neigh_suppress: bool,
    /// VLAN memberships; empty where the kernel does not filter.
    pub vlans: BTreeMap<VlanId, crate::VlanMembership>,
}

/// A row of a forwarding database.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FdbRow {
    /// The bridge port or VXLAN device.
    pub dev: IfName,
    /// Destination MAC; zero for a flood-list entry of a VXLAN device.
    pub mac: MacAddr,
    /// Which table, and where it points.
    pub target: FdbTarget,
    /// Who put it there.
    pub state: FdbState,
}

/// Which of the two tables of a VXLAN port a row is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FdbTarget {
    /// The bridge's table (`master`): the frame leaves by `dev`. VLAN only where the bridge filters.
    Bridge(Option<VlanId>),
    /// The VXLAN device's own table (`self`): the frame goes to this VTEP.
    Vtep(IpAddr),
}

/// How a row came to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FdbState {
    /// The interface's own MAC.
    Local,
    /// Put there by somebody, does not age.
    Static,
    /// Put there by a control plane (`NTF_EXT_LEARNED`): on our devices, by us. The kernel keeps no
    /// protocol number on FDB rows, so this flag is the stamp.
    ExternLearned,
    /// Learned from traffic.
    Dynamic,
}

/// A row of the ARP or ND table.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Neighbour {
    /// Interface.
    pub dev: IfName,
    /// Address.
    pub ip: IpAddr,
    /// Its MAC.
    pub mac: MacAddr,
    /// It carries our protocol number (`NDA_PROTOCOL`).
    pub ours: bool,
    /// A control plane learned it from elsewhere (`NTF_EXT_LEARNED`). To FRR's zebra a row without
    /// this flag is of this host, and announced.
    pub remote: bool,
    /// An IPv6 router's (`NTF_ROUTER`): the answer that suppression gives for it says so (RFC 4861
    /// §4.4, RFC 9047). The kernel keeps the flag for IPv4 too, where it means nothing.
    pub router: bool,
}

/// What the programs of a trunk pair and its tunnel connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trunk {
    /// The tag that is put on and taken off.
    pub vlan: VlanId,
    /// The VXLAN device.
    pub vxlan: IfName,
}

/// What frames a port may send.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Guard {
    /// Source MACs.
    pub macs: BTreeSet<MacAddr>,
    /// Source addresses, link-local ones included.
    pub addresses: BTreeSet<IpAddr>,
    /// Prefixes that packets may come from by way of the port; none overlaps another, as sets of the kernel's have it.
    pub behind: BTreeSet<IpNet>,
    /// Whose questions for DHCP servers and routers the host answers, so that they go no further and
    /// the port may answer nobody's.
    pub service: Service,
}

/// What the host answers at a port.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Service {
    /// Nothing: questions and answers pass.
    #[default]
    None,
    /// DHCP and solicitations of routers.
    Dhcp,
    /// The same, and ARP for this address, which no router has.
    DhcpAt(Ipv4Addr),
}

/// A network namespace of a workload.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NetnsState {
    /// Its interfaces that are far ends of the host's veth pairs.
    pub links: BTreeMap<IfName, InsideLink>,
}

/// An interface inside a workload's namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InsideLink {
    /// The kernel's number for it, in that namespace.
    pub index: u32,
    /// Its MAC.
    pub mac: MacAddr,
    /// Its MTU.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// Addresses with their prefix length.
    pub addresses: BTreeSet<IpNet>,
}
