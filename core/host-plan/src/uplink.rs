//! Where a NIC's subnet goes on to other hosts, and what of its frames has to be carried there.
//!
//! The tunnel's port suppresses neighbour discovery (`neigh_suppress`), and with the questions that
//! the bridge answers it drops what nobody asked for: gratuitous ARP, unsolicited neighbour
//! advertisements, probes for a duplicate. RFC 9161 §3.6 has them forwarded. Kernels that can be told
//! so are newer than those that this runs on, so the firewall hands such frames, once they passed the
//! port's guard, to the agent as well, and it sends them out of the uplink. Where the transport is
//! `tap` the bridge suppresses nothing, and the datapath forwards them itself.

use crate::OwnedName;
use model::{
    Attachment, Capability, Encoding, IfName, Port, Segment, Stack, Transport, VlanId, Vni,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The way out of a subnet on this host, towards all others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uplink {
    /// The interface whose other side is the tunnel.
    pub link: IfName,
    /// The tag that frames have there.
    pub vlan: Option<VlanId>,
    /// Of the tunnel.
    pub vni: Vni,
}

impl Uplink {
    pub(crate) fn of(
        stack: &Stack,
        segment: &Segment,
        filtering: bool,
        transport: Transport,
    ) -> Self {
        let (link, vlan) = match (stack.encoding, filtering, transport) {
            (Encoding::VlanAwareBundle, true, _) => {
                (OwnedName::tunnel(stack.vni), Some(segment.vlan))
            }
            (Encoding::VlanAwareBundle, false, _) => (OwnedName::trunk_inner(segment.subnet), None),
            (Encoding::VlanBased, true, Transport::Tap) => {
                (OwnedName::vpc_uplink(stack.vpc), Some(segment.vlan))
            }
            (Encoding::VlanBased, ..) => (OwnedName::tunnel(segment.vni), None),
        };
        let vni = segment.vni;
        Self { link, vlan, vni }
    }
}

/// The interface that is a NIC's port.
pub(crate) fn port_link(port: &Port) -> IfName {
    match &port.attachment {
        Attachment::Existing { ifname } => ifname.clone(),
        Attachment::Tap | Attachment::Netns { .. } => OwnedName::port(port.nic),
    }
}

/// True if the bridge answers for neighbours behind the tunnel, so that it keeps announcements from
/// it. Suppression drops what it cannot answer from a neighbour's row only if such rows can be
/// there: with VLAN filtering they hang on VLAN devices.
pub(crate) fn suppresses(capabilities: &BTreeSet<Capability>, transport: Transport) -> bool {
    let has_rows = !capabilities.contains(&Capability::VlanFiltering)
        || capabilities.contains(&Capability::VlanDevices);
    has_rows && transport == Transport::Kernel
}

/// The uplink of each port from which announcements have to be carried, by the interface that a frame
/// comes in by.
pub fn uplinks(
    stacks: &[Arc<Stack>],
    capabilities: &BTreeSet<Capability>,
    transport: Transport,
) -> BTreeMap<IfName, Uplink> {
    if !suppresses(capabilities, transport) {
        return BTreeMap::new();
    }
    let filtering = capabilities.contains(&Capability::VlanFiltering);
    let mut uplinks = BTreeMap::new();
    for stack in stacks {
        let of: BTreeMap<_, Uplink> = stack
            .segments
            .iter()
            .map(|segment| {
                let uplink = Uplink::of(stack, segment, filtering, transport);
                (segment.subnet, uplink)
            })
            .collect();
        for port in &stack.ports {
            if let Some(uplink) = of.get(&port.subnet) {
                uplinks.insert(port_link(port), uplink.clone());
            }
        }
    }
    uplinks
}
