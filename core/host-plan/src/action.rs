//! What can be done to the host. Running an action that already holds is a no-op.

use crate::{FdbRow, Guard, Neighbour, RouterChanges, Stamp};
use ipnet::IpNet;
use model::{IfName, MacAddr, Mtu, NetnsName, NicId, RouterId, SubnetId, VlanId, Vni, VpcId};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// An action and the object that it is for, so that a failure becomes a condition of that object.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Step {
    /// Whom it is for. When one step of a subject fails, its later ones are not run in this pass.
    pub subject: Subject,
    /// What to do.
    pub action: Action,
}

/// The object that a step is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Subject {
    /// The host as a whole.
    Host,
    /// A VPC's bridge or trunk.
    Vpc(VpcId),
    /// A subnet's bridge, tunnel endpoint or rows.
    Subnet(SubnetId),
    /// A NIC's port.
    Nic(NicId),
    /// A router's namespace or one of its ports.
    Router(RouterId),
    /// The segment over which a VPC's routers reach each other.
    Transit(VpcId),
}

/// One thing to do. Every action names all it needs; the executor chooses nothing.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[expect(
    missing_docs,
    reason = "each variant is documented; its fields are named for what they are"
)]
pub enum Action {
    /// Install our nftables tables, replacing an older wording of them. Set elements survive.
    InstallFirewall,
    /// Take tunnel packets from exactly these underlay addresses.
    SetVteps(BTreeSet<IpAddr>),
    /// Make a bridge: down, IPv6 off, no default VLAN, no multicast snooping, stamped.
    CreateBridge {
        name: IfName,
        mac: MacAddr,
        mtu: Mtu,
        vlan_filtering: bool,
        stamp: Stamp,
    },
    /// Make a VXLAN device: down, IPv6 off, learning off, DF set on IPv4, stamped.
    CreateVxlan {
        name: IfName,
        vni: Vni,
        local: IpAddr,
        port: u16,
        mac: MacAddr,
        mtu: Mtu,
        stamp: Stamp,
    },
    /// Make a VLAN device on a bridge that carries neighbour rows only: it never comes up, has no
    /// address and makes none (`addrgenmode none`), and its IPv6 stays on so that it can hold ND rows.
    CreateVlanDevice {
        name: IfName,
        bridge: IfName,
        vlan: VlanId,
        stamp: Stamp,
    },
    /// Make a veth pair that carries one VLAN of a bundle between an unfiltered bridge and the
    /// tagged tunnel (push and pop by BPF); both ends down, IPv6 off, stamped. If the pair is there,
    /// its programs are put in place.
    CreateTrunkPair(TrunkPair),
    /// Make a veth pair with its far end in a namespace: both ends down, host end IPv6 off, stamped.
    CreateVeth(VethToNetns),
    /// Make a persistent TAP device: multi-queue, virtio-net headers, down, IPv6 off, stamped. A
    /// NIC's port, or a tunnel whose other side is the datapath.
    CreateTap {
        name: IfName,
        mtu: Mtu,
        stamp: Stamp,
    },
    /// Stamp an interface that we did not make (an `existing` attachment), switch its IPv6 off.
    Adopt { name: IfName, stamp: Stamp },
    /// Take our stamp off an interface that stays, and put its IPv6 back on.
    Release { name: IfName },
    /// Remove interfaces that we made; all in one go, as the kernel waits once for a group.
    DeleteLinks(Vec<IfName>),
    /// Make a named namespace, marked as ours.
    CreateNetns(NetnsName),
    /// Remove a namespace that we made.
    DeleteNetns(NetnsName),
    /// Make an interface a port of a bridge, isolated, with these flags, in one request; it stays
    /// isolated until `SetPortFlags` says otherwise.
    Enslave { link: IfName, bridge: IfName },
    /// Take an interface out of its bridge.
    LeaveBridge { link: IfName },
    /// Set a port's flags.
    SetPortFlags {
        link: IfName,
        flags: BridgePortFlags,
    },
    /// Make a port a member of a VLAN.
    AddVlan {
        link: IfName,
        vlan: VlanId,
        membership: VlanMembership,
    },
    /// End a port's membership.
    DeleteVlan { link: IfName, vlan: VlanId },
    /// Set what frames a port may send; replaces the guard it has.
    SetGuard { link: IfName, guard: Guard },
    /// Forget a port's guard: it may send nothing.
    ClearGuard { link: IfName },
    /// Set an interface's MTU.
    SetMtu { link: IfName, mtu: Mtu },
    /// Set an interface's MAC.
    SetMac { link: IfName, mac: MacAddr },
    /// Switch an interface's IPv6 off.
    DisableIpv6 { link: IfName },
    /// Bring an interface up.
    SetUp { link: IfName },
    /// Take an interface down.
    SetDown { link: IfName },
    /// Set up the far end of a NIC inside its namespace: MAC, MTU, addresses, routes, `lo` and
    /// itself up. Adds what is missing, removes nothing.
    ConfigureInside(Inside),
    /// Change what is inside of a router's namespace, in order.
    ChangeRouter(RouterChanges),
    /// Put rows into forwarding databases; each is added beside what is there (`append`).
    AddFdb(FdbRow),
    /// Remove exactly this row.
    DeleteFdb(FdbRow),
    /// Put a permanent row with our protocol number into the ARP or ND table, replacing a row for
    /// the same address.
    SetNeighbour(Neighbour),
    /// Remove exactly this row.
    DeleteNeighbour(Neighbour),
    /// Send frames out of interfaces.
    Send(Greeting),
    /// Tell the datapath of a binding or a row. It keeps them while no agent runs.
    ChangeDatapath(datapath::Change),
}

/// Frames by which a subnet hears that a NIC is here now. See [`crate::greeting`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Greeting {
    /// The NIC's MAC, for people.
    pub mac: MacAddr,
    /// Where they go out, and with which VLAN tag: the tunnel, and all other ports of the subnet.
    pub links: Vec<(IfName, Option<VlanId>)>,
    /// Ethernet frames without a tag.
    pub frames: Vec<Vec<u8>>,
}

/// See [`Action::CreateVeth`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct VethToNetns {
    /// Name of the end on the host.
    pub name: IfName,
    /// Where the far end goes.
    pub netns: NetnsName,
    /// Name of the far end.
    pub device: IfName,
    /// MAC of the far end: the NIC's.
    pub mac: MacAddr,
    /// MTU of both.
    pub mtu: Mtu,
    /// Ownership of the near end.
    pub stamp: Stamp,
}

/// See [`Action::CreateTrunkPair`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TrunkPair {
    /// The end that becomes a port of the subnet's bridge.
    pub inner: IfName,
    /// The end that trades frames with the tunnel.
    pub outer: IfName,
    /// The VXLAN device.
    pub vxlan: IfName,
    /// The tag on the wire.
    pub vlan: VlanId,
    /// MTU of both.
    pub mtu: Mtu,
    /// Ownership.
    pub stamp: Stamp,
}

/// See [`Action::ConfigureInside`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Inside {
    /// The namespace.
    pub netns: NetnsName,
    /// The interface in it.
    pub device: IfName,
    /// The NIC's MAC.
    pub mac: MacAddr,
    /// The subnet's MTU.
    pub mtu: Mtu,
    /// Addresses with the subnets' prefix lengths; the on-link routes come with them.
    pub addresses: BTreeSet<IpNet>,
}

/// A port's membership in a VLAN.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum VlanMembership {
    /// Untagged both ways, and what comes untagged belongs to it: an access port.
    Access,
    /// Tagged both ways: a trunk.
    Tagged,
}

/// Flags of a bridge port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BridgePortFlags {
    /// May not talk to other isolated ports.
    pub isolated: bool,
    /// Learns MACs.
    pub learning: bool,
    /// Gets unicast of unknown destination.
    pub unicast_flood: bool,
    /// ARP and ND are answered from the neighbour table instead of being flooded here.
    pub neigh_suppress: bool,
}

impl From<Subject> for Option<model::ObjectId> {
    fn from(subject: Subject) -> Self {
        match subject {
            Subject::Host => None,
            Subject::Router(id) => Some(model::ObjectId::Router(id)),
            Subject::Vpc(id) | Subject::Transit(id) => Some(model::ObjectId::Vpc(id)),
            Subject::Subnet(id) => Some(model::ObjectId::Subnet(id)),
            Subject::Nic(id) => Some(model::ObjectId::Nic(id)),
        }
    }
}
