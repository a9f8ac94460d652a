//! Plans and steps as people read them: in logs, golden scripts and on the command line.

use crate::{
    Action, FdbRow, FdbTarget, Plan, Route, RouteRule, RouterChange, Service, Step, Subject,
    VlanMembership, Way,
};
use datapath::{Change, Unknown};
use std::fmt;

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host => f.write_str("host"),
            Self::Vpc(id) => write!(f, "vpc {id}"),
            Self::Subnet(id) => write!(f, "subnet {id}"),
            Self::Nic(id) => write!(f, "nic {id}"),
            Self::Router(id) => write!(f, "router {id}"),
            Self::Transit(id) => write!(f, "routers of {id}"),
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.subject, self.action)
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for step in &self.steps {
            writeln!(f, "{step}")?;
        }
        for problem in &self.problems {
            writeln!(f, "{}: problem: {}", problem.subject, problem.message)?;
        }
        Ok(())
    }
}

impl fmt::Display for FdbRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on {}", self.mac, self.dev)?;
        match self.target {
            FdbTarget::Bridge(None) => f.write_str(" in bridge"),
            FdbTarget::Bridge(Some(vlan)) => write!(f, " in bridge vlan {vlan}"),
            FdbTarget::Vtep(vtep) => write!(f, " to {vtep}"),
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InstallFirewall => f.write_str("install firewall"),
            Self::SetVteps(vteps) => {
                f.write_str("accept tunnels from")?;
                vteps.iter().try_for_each(|vtep| write!(f, " {vtep}"))
            }
            Self::CreateBridge {
                name,
                mac,
                mtu,
                vlan_filtering,
                ..
            } => {
                let kind = if *vlan_filtering {
                    "filtering bridge"
                } else {
                    "bridge"
                };
                write!(f, "create {kind} {name} mac {mac} mtu {mtu}")
            }
            Self::CreateVxlan {
                name,
                vni,
                local,
                port,
                mtu,
                ..
            } => {
                write!(
                    f,
                    "create vxlan {name} vni {vni} local {local} port {port} mtu {mtu}"
                )
            }
            Self::CreateVlanDevice {
                name, bridge, vlan, ..
            } => {
                write!(f, "create vlan device {name} on {bridge} vlan {vlan}")
            }
            Self::CreateTrunkPair(pair) => write!(
                f,
                "create trunk pair {}-{} to {} vlan {} mtu {}",
                pair.inner, pair.outer, pair.vxlan, pair.vlan, pair.mtu
            ),
            Self::CreateVeth(veth) => write!(
                f,
                "create veth {} to {} in {} mac {} mtu {}",
                veth.name, veth.device, veth.netns, veth.mac, veth.mtu
            ),
            Self::CreateTap { name, mtu, .. } => write!(f, "create tap {name} mtu {mtu}"),
            Self::Adopt { name, .. } => write!(f, "adopt {name}"),
            Self::Release { name } => write!(f, "release {name}"),
            Self::DeleteLinks(names) => {
                f.write_str("delete links")?;
                names.iter().try_for_each(|name| write!(f, " {name}"))
            }
            Self::CreateNetns(netns) => write!(f, "create namespace {netns}"),
            Self::DeleteNetns(netns) => write!(f, "delete namespace {netns}"),
            Self::Enslave { link, bridge } => write!(f, "join {link} to {bridge}, isolated"),
            Self::LeaveBridge { link } => write!(f, "take {link} out of its bridge"),
            Self::SetPortFlags { link, flags } => {
                write!(f, "flags of {link}")?;
                let named = [
                    (flags.isolated, "isolated"),
                    (flags.learning, "learning"),
                    (flags.unicast_flood, "flood"),
                    (flags.neigh_suppress, "suppress"),
                ];
                named
                    .iter()
                    .filter(|(on, _)| *on)
                    .try_for_each(|(_, name)| write!(f, " {name}"))
            }
            Self::AddVlan {
                link,
                vlan,
                membership,
            } => {
                let kind = match membership {
                    VlanMembership::Access => "access",
                    VlanMembership::Tagged => "tagged",
                };
                write!(f, "add vlan {vlan} {kind} to {link}")
            }
            Self::DeleteVlan { link, vlan } => write!(f, "delete vlan {vlan} from {link}"),
            Self::SetGuard { link, guard } => {
                write!(f, "guard {link}")?;
                guard.macs.iter().try_for_each(|mac| write!(f, " {mac}"))?;
                guard
                    .addresses
                    .iter()
                    .try_for_each(|ip| write!(f, " {ip}"))?;
                guard
                    .behind
                    .iter()
                    .try_for_each(|net| write!(f, " behind {net}"))?;
                match guard.service {
                    Service::None => Ok(()),
                    Service::Dhcp => f.write_str(" dhcp"),
                    Service::DhcpAt(server) => write!(f, " dhcp at {server}"),
                }
            }
            Self::ClearGuard { link } => write!(f, "clear guard of {link}"),
            Self::SetMtu { link, mtu } => write!(f, "mtu {mtu} on {link}"),
            Self::SetMac { link, mac } => write!(f, "mac {mac} on {link}"),
            Self::DisableIpv6 { link } => write!(f, "ipv6 off on {link}"),
            Self::SetUp { link } => write!(f, "up {link}"),
            Self::SetDown { link } => write!(f, "down {link}"),
            Self::ConfigureInside(inside) => {
                write!(
                    f,
                    "inside {}: {} mac {} mtu {}",
                    inside.netns, inside.device, inside.mac, inside.mtu
                )?;
                inside
                    .addresses
                    .iter()
                    .try_for_each(|net| write!(f, " {net}"))
            }
            Self::ChangeRouter(router) => {
                write!(f, "change {}:", router.netns)?;
                // Sysctls come by the dozen.
                let is_sysctl = |c: &RouterChange| matches!(c, RouterChange::SetSysctl { .. });
                let runs = router.changes.chunk_by(|a, b| is_sysctl(a) && is_sysctl(b));
                for (n, run) in runs.enumerate() {
                    f.write_str(if n == 0 { " " } else { "; " })?;
                    match run {
                        [one] => write!(f, "{one}")?,
                        many => write!(f, "{} sysctls", many.len())?,
                    }
                }
                Ok(())
            }
            Self::AddFdb(row) => write!(f, "add fdb {row}"),
            Self::DeleteFdb(row) => write!(f, "delete fdb {row}"),
            Self::SetNeighbour(row) => {
                let what = if row.router { ", a router" } else { "" };
                write!(
                    f,
                    "neighbour {} is {} on {}{what}",
                    row.ip, row.mac, row.dev
                )
            }
            Self::DeleteNeighbour(row) => write!(f, "delete neighbour {} on {}", row.ip, row.dev),
            Self::Send(greeting) => {
                let (mac, count) = (greeting.mac, greeting.frames.len());
                write!(f, "tell of {mac} in {count} frames out of")?;
                greeting
                    .links
                    .iter()
                    .try_for_each(|(link, vlan)| match vlan {
                        None => write!(f, " {link}"),
                        Some(vlan) => write!(f, " {link}.{vlan}"),
                    })
            }
            Self::ChangeDatapath(change) => show_change(change, f),
        }
    }
}

fn show_change(change: &Change, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match change {
        Change::SetLocal(Some(address)) => write!(f, "datapath: tunnels at {address}"),
        Change::SetLocal(None) => f.write_str("datapath: no tunnels"),
        Change::SetLimits(limits) => write!(
            f,
            "datapath: {} questions of a port and {} frames to all of a subnet a second",
            limits.questions_per_s, limits.flood_per_s
        ),
        Change::Bind { place, binding } => {
            let (domain, mtu) = (binding.domain, binding.mtu);
            write!(f, "datapath: bind {place} to {domain} mtu {mtu}")?;
            match binding.unknown {
                Unknown::Flood => Ok(()),
                Unknown::Drop => f.write_str(", unknown dropped"),
            }
        }
        Change::Unbind { place } => write!(f, "datapath: unbind {place}"),
        Change::SetMac { domain, mac, vtep } => {
            write!(f, "datapath: {mac} of {domain} to {vtep}")
        }
        Change::DeleteMac { domain, mac } => write!(f, "datapath: delete {mac} of {domain}"),
        Change::AddFlood { domain, vtep } => write!(f, "datapath: flood {domain} to {vtep}"),
        Change::DeleteFlood { domain, vtep } => {
            write!(f, "datapath: flood {domain} no more to {vtep}")
        }
        Change::SetNeighbour {
            domain,
            ip,
            neighbour,
        } => {
            write!(f, "datapath: {ip} of {domain} is {}", neighbour.mac)?;
            f.write_str(if neighbour.router { ", a router" } else { "" })?;
            f.write_str(if neighbour.here { ", here" } else { "" })
        }
        Change::DeleteNeighbour { domain, ip } => {
            write!(f, "datapath: delete {ip} of {domain}")
        }
    }
}

impl fmt::Display for RouterChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SetSysctl { path, value } => write!(f, "{path}={value}"),
            Self::SetFirewall(firewall) => {
                let (opened, sources) = (
                    firewall.public.len() + firewall.open.len() + firewall.forwards.len(),
                    firewall.sources.iter().map(ToString::to_string),
                );
                let sources = sources.collect::<Vec<_>>().join(",");
                let sources = if sources.is_empty() { "none" } else { &sources };
                write!(f, "rules, nat {sources}, {opened} opened")?;
                match firewall.untracked.is_empty() {
                    true => Ok(()),
                    false => f.write_str(", nothing tracked"),
                }
            }
            Self::SetMac { link, mac } => write!(f, "mac {mac} on {link}"),
            Self::SetMtu { link, mtu } => write!(f, "mtu {mtu} on {link}"),
            Self::SetIpv6 { link, on: true } => write!(f, "ipv6 on {link}"),
            Self::SetIpv6 { link, on: false } => write!(f, "ipv6 off on {link}"),
            Self::AddAddress { link, address } => write!(f, "add {address} to {link}"),
            Self::DeleteAddress { link, address } => write!(f, "delete {address} from {link}"),
            Self::SetUp { link } => write!(f, "up {link}"),
            Self::SetRoute(route) => write!(f, "route {route}"),
            Self::DeleteRoute(route) => write!(f, "delete route {route}"),
            Self::AddRule(rule) => write!(f, "rule {rule}"),
            Self::DeleteRule(rule) => write!(f, "delete rule {rule}"),
            Self::SetNextHop(hop) => {
                write!(
                    f,
                    "neighbour {} is {} on {}",
                    hop.address, hop.mac, hop.device
                )
            }
            Self::DeleteNextHop(hop) => {
                write!(f, "delete neighbour {} on {}", hop.address, hop.device)
            }
        }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.table != crate::MAIN_TABLE {
            write!(f, "table {} ", self.table)?;
        }
        write!(f, "{}", self.prefix)?;
        match &self.way {
            Way::Blackhole => f.write_str(" blackhole"),
            Way::Hops { hops, .. } => hops.iter().try_for_each(|hop| match hop.gateway {
                Some(gateway) => write!(f, " via {gateway} on {}", hop.device),
                None => write!(f, " on {}", hop.device),
            }),
        }
    }
}

impl fmt::Display for RouteRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = if self.ipv6 { "IPv6" } else { "IPv4" };
        write!(f, "{family} from {} by table {}", self.device, self.table)
    }
}
