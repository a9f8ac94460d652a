//! The userspace transport: TAPs in the place of VXLAN devices, and what the datapath behind them
//! is told. Rows that lead to VTEPs, and who has which address, are its own; the bridge's rows
//! towards a TAP are as those towards a VXLAN device.

use super::{Facts, Membership, Want, WantLink, What, legs_in, tag_of, tunnel_flags};
use crate::{Desired, OwnedName, Problem, Stamp, Subject, VlanMembership};
use datapath::{Binding, Domain, Neighbour, Place, Unknown};
use model::{
    Capability, Encoding, EviForwarding, IfName, MacAddr, Mtu, RouterConfig, Segment, Stack, Tag,
    Transport, Vni,
};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// The domain of a segment.
pub(super) fn domain_of(stack: &Stack, segment: &Segment) -> Domain {
    Domain {
        vni: segment.vni,
        tag: tag_of(stack, segment),
    }
}

/// Where a segment's frames meet the datapath. Where the kernel filters VLANs, one TAP is a tagged
/// trunk of the VPC's bridge; else each segment has its own.
pub(super) fn place_of(stack: &Stack, segment: &Segment, filtering: bool) -> Place {
    let uplink = crate::Uplink::of(stack, segment, filtering, Transport::Tap);
    Place {
        tap: uplink.link,
        vlan: uplink.vlan,
    }
}

/// True if this host makes TAPs.
pub(super) fn makes_taps(facts: &Facts) -> bool {
    facts.capabilities.contains(&Capability::Tap)
}

impl Want {
    /// The tunnel of a stack whose segments have one TAP in common.
    pub(super) fn stack_tap(&mut self, stack: &Stack, mtu: Mtu) {
        let name = match stack.encoding {
            Encoding::VlanAwareBundle => OwnedName::tunnel(stack.vni),
            Encoding::VlanBased => OwnedName::vpc_uplink(stack.vpc),
        };
        let mut segments = stack.segments.iter();
        // What has to stay apart from it are isolated ports, and nothing else is one.
        let isolated = segments.any(|segment| self.places.anycast.contains(&segment.subnet));
        let vlans = stack.segments.iter();
        let membership = Membership {
            bridge: OwnedName::vpc_bridge(stack.vpc),
            flags: tunnel_flags(false, isolated),
            vlans: Some(vlans.map(|s| (s.vlan, VlanMembership::Tagged)).collect()),
        };
        let (subject, stamp) = (Subject::Vpc(stack.vpc), Stamp::Vpc(stack.vpc));
        self.tap(name, subject, stamp, mtu, membership);
    }

    /// The TAP of one segment, or of the segment among routers.
    pub(super) fn tap(
        &mut self,
        name: IfName,
        subject: Subject,
        stamp: Stamp,
        mtu: Mtu,
        membership: Membership,
    ) {
        let link = WantLink {
            subject,
            stamp,
            what: What::TunnelTap,
            mtu,
            membership: Some(membership),
            guard: None,
        };
        self.links.insert(name, link);
    }

    /// True if TAPs can be made, and a word on what is in the way. Where FRR is the client they stay, and
    /// carry; but it does not announce what is behind them.
    pub(super) fn can_tap(&mut self, desired: &Desired<'_>, facts: &Facts, stack: &Stack) -> bool {
        let trouble = match (makes_taps(facts), desired.local_neighbours) {
            (true, false) => return true,
            (true, true) => {
                "FRR, the EVPN client of this host, knows of no tunnels but the kernel's: set \
                 transport = \"kernel\" in the agent's settings, or have the built-in speaker here \
                 (vpc host set HOST --speaker builtin)"
            }
            (false, _) => {
                "the kernel makes no TAP devices: load tun (modprobe tun), or set transport = \
                 \"kernel\" in the agent's settings"
            }
        };
        self.problems.push(Problem {
            subject: Subject::Vpc(stack.vpc),
            message: format!("VPC {}: {trouble}", stack.name),
            blocks: true,
        });
        makes_taps(facts)
    }

    /// Puts a domain at its place. Without a datapath the TAP is there, and nobody behind it.
    pub(super) fn bind(
        &mut self,
        facts: &Facts,
        subject: Subject,
        name: &str,
        place: Place,
        binding: Binding,
    ) {
        if !facts.has_datapath {
            let trouble = facts.datapath_trouble.as_deref();
            let why = trouble.map(|why| format!(" ({why})")).unwrap_or_default();
            self.problems.push(Problem {
                subject,
                blocks: true,
                message: format!(
                    "{name} does not reach other hosts: no datapath runs on this one{why}; the \
                     agent tries again to start it, and its log says more; or set transport = \
                     \"kernel\" in the agent's settings"
                ),
            });
        }
        self.domains.insert(binding.domain, subject);
        self.tables.bindings.insert(place, binding);
    }

    /// What the datapath is told of a segment.
    pub(super) fn segment_tables(
        &mut self,
        desired: &Desired<'_>,
        facts: &Facts,
        stack: &Stack,
        segment: &Segment,
        filtering: bool,
    ) {
        let binding = Binding {
            domain: domain_of(stack, segment),
            mtu: segment.mtu,
            unknown: stack.unknown_neighbours,
        };
        let subject = Subject::Subnet(segment.subnet);
        let name = format!("subnet {}", segment.name);
        let place = place_of(stack, segment, filtering);
        self.bind(facts, subject, &name, place, binding);
        if let Some(evi) = desired.forwarding.evis.get(&segment.vni) {
            self.learned(desired, segment, binding.domain, evi);
        }
    }

    /// What EVPN learned of a domain. An anycast gateway's MAC and addresses are nobody's elsewhere.
    fn learned(
        &mut self,
        desired: &Desired<'_>,
        segment: &Segment,
        domain: Domain,
        evi: &EviForwarding,
    ) {
        let (own_macs, own_addresses) = super::anycast_in(desired.routers, segment.subnet);
        let of_tag = |of: &Tag| *of == domain.tag;
        let flood = evi.flood.iter().filter(|(of, _)| of_tag(of));
        let flood = flood.map(|(_, vtep)| (domain, *vtep));
        self.tables.flood.extend(flood);
        let macs = evi.macs.iter().filter(|((of, _), _)| of_tag(of));
        let macs = macs.filter(|((_, mac), _)| !own_macs.contains(mac));
        let macs = macs.map(|((_, mac), vtep)| ((domain, *mac), *vtep));
        self.tables.macs.extend(macs);
        let all = evi.neighbours.iter().filter(|((of, _), _)| of_tag(of));
        let all =
            all.filter(|((_, ip), mac)| !own_addresses.contains(ip) && !own_macs.contains(*mac));
        for (key, mac) in all {
            let neighbour = Neighbour {
                mac: *mac,
                router: key.1.is_ipv6() && evi.routers.contains(key),
                here: false,
            };
            let held = self.tables.neighbours.entry((domain, key.1));
            held.or_insert(neighbour);
        }
    }

    /// An address is on this host, whatever is still told of it from elsewhere.
    pub(super) fn address_here(
        &mut self,
        subject: Subject,
        domain: Domain,
        ip: IpAddr,
        mac: MacAddr,
        router: bool,
    ) {
        let neighbour = Neighbour {
            mac,
            router,
            here: true,
        };
        self.tables.neighbours.insert((domain, ip), neighbour);
        self.addresses_here.insert((domain, ip), subject);
    }

    /// What the datapath is told of the segment among a VPC's routers: who is behind which VTEP, and
    /// that nothing is asked there.
    pub(super) fn transit_tables(
        &mut self,
        facts: &Facts,
        config: &RouterConfig,
        vni: Vni,
        mtu: Mtu,
    ) -> Domain {
        let domain = Domain { vni, tag: None };
        let place = Place {
            tap: OwnedName::tunnel(vni),
            vlan: None,
        };
        let binding = Binding {
            domain,
            mtu,
            unknown: Unknown::Drop,
        };
        let subject = Subject::Transit(config.vpc);
        let name = format!("router {}", config.name);
        self.bind(facts, subject, &name, place, binding);
        domain
    }
}

/// MACs that are at ports of this host, so that no bridge sends what is for them into a tunnel.
pub(super) fn macs_here(
    desired: &Desired<'_>,
    stack: &Stack,
    segment: &Segment,
    evi: &EviForwarding,
) -> BTreeSet<MacAddr> {
    let tag = tag_of(stack, segment);
    let ports = stack.ports.iter();
    ports
        .filter(|port| port.subnet == segment.subnet)
        .filter(|port| {
            let standby = port.role == model::PortRole::Standby;
            !standby && !super::is_away(port, evi, (tag, port.mac))
        })
        .map(|port| port.mac)
        .chain(legs_in(desired.routers, segment.subnet))
        .collect()
}
