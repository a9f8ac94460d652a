//! A reference kernel: what each action does to the observed state, for scripts and properties.

use datapath::{Change, Domain};
use host_plan::{
    Action, BridgePort, FdbRow, FdbState, FdbTarget, HostState, InsideLink, Link, LinkKind,
    NetnsState, Route, RouterChange, RouterChanges, Stamp, Trunk, Way,
};
use model::{IfName, MacAddr};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Does to `state` what `shell/linux` does to a host.
pub(crate) fn apply(state: &mut HostState, action: &Action) {
    match action {
        Action::InstallFirewall => state.firewall = true,
        Action::SetVteps(vteps) => state.vteps = vteps.clone().into(),
        Action::CreateBridge {
            name,
            mac,
            mtu,
            vlan_filtering,
            stamp,
        } => {
            let kind = LinkKind::Bridge {
                vlan_filtering: *vlan_filtering,
                default_pvid: if *vlan_filtering { 0 } else { 1 },
                mcast_snooping: false,
            };
            add(state, name, kind, *mac, mtu.get(), *stamp);
        }
        Action::CreateVxlan {
            name,
            vni,
            local,
            port,
            mac,
            mtu,
            stamp,
        } => {
            let kind = LinkKind::Vxlan {
                vni: Some(*vni),
                local: Some(*local),
                port: *port,
                learning: false,
            };
            add(state, name, kind, *mac, mtu.get(), *stamp);
        }
        Action::CreateVlanDevice {
            name,
            bridge,
            vlan,
            stamp,
        } => {
            let parent = state.links[bridge].index;
            let kind = LinkKind::Vlan {
                parent,
                vlan: *vlan,
            };
            add(state, name, kind, MacAddr::ZERO, 1500, *stamp);
            state.links.get_mut(name).unwrap().ipv6_disabled = false;
        }
        Action::CreateTrunkPair(pair) => {
            assert!(
                state.links.contains_key(&pair.vxlan),
                "{} is connected with no tunnel",
                pair.outer
            );
            let (vlan, vxlan) = (pair.vlan, pair.vxlan.clone());
            state
                .trunks
                .insert(pair.outer.clone(), Trunk { vlan, vxlan });
            for name in [&pair.inner, &pair.outer] {
                if state.links.contains_key(name) {
                    continue;
                }
                let kind = LinkKind::Veth {
                    peer: 0,
                    peer_netns: None,
                    peer_is_local: true,
                };
                add(state, name, kind, MacAddr::ZERO, pair.mtu.get(), pair.stamp);
            }
        }
        Action::CreateVeth(veth) => {
            let kind = LinkKind::Veth {
                peer: 2,
                peer_netns: None,
                peer_is_local: false,
            };
            add(
                state,
                &veth.name,
                kind,
                MacAddr::ZERO,
                veth.mtu.get(),
                veth.stamp,
            );
            if let Some(router) = state.routers.get_mut(&veth.netns) {
                let link = host_plan::RouterLink {
                    mac: veth.mac,
                    mtu: veth.mtu.get().into(),
                    up: false,
                    ipv6_disabled: true,
                    addresses: Default::default(),
                };
                Arc::make_mut(router)
                    .links
                    .insert(veth.device.clone(), link);
                return;
            }
            let inside = state.netns.get_mut(&veth.netns).expect("made before");
            inside.links.insert(
                veth.device.clone(),
                InsideLink {
                    index: 2,
                    mac: veth.mac,
                    mtu: veth.mtu.get().into(),
                    up: false,
                    addresses: Default::default(),
                },
            );
        }
        Action::CreateTap { name, mtu, stamp } => {
            assert!(!is_bound(state, name), "{name} is made anew, still bound");
            let kind = LinkKind::Tap {
                multi_queue: true,
                vnet_hdr: true,
            };
            add(state, name, kind, MacAddr::ZERO, mtu.get(), *stamp);
        }
        Action::Adopt { name, stamp } => {
            let link = state.links.get_mut(name).unwrap();
            link.alias = Some(stamp.to_string());
            link.ipv6_disabled = true;
        }
        Action::Release { name } => {
            let link = state.links.get_mut(name).unwrap();
            link.alias = None;
            link.ipv6_disabled = false;
        }
        Action::DeleteLinks(names) => names.iter().for_each(|name| remove(state, name)),
        Action::CreateNetns(netns) => {
            if !state.netns.contains_key(netns) {
                state.netns.insert(netns.clone(), NetnsState::default());
                state.owned_netns.insert(netns.clone());
            }
        }
        Action::DeleteNetns(netns) => {
            state.netns.remove(netns);
            state.routers.remove(netns);
            state.owned_netns.remove(netns);
        }
        Action::Enslave { link, bridge } => {
            assert!(
                state.links.contains_key(bridge),
                "{link} joins {bridge}, which is not there"
            );
            leave(state, link);
            state.links.get_mut(link).unwrap().port = Some(BridgePort {
                bridge: bridge.clone(),
                isolated: true,
                learning: true,
                unicast_flood: true,
                neigh_suppress: false,
                vlans: Default::default(),
            });
        }
        Action::LeaveBridge { link } => leave(state, link),
        Action::SetPortFlags { link, flags } => {
            let port = port(state, link);
            port.isolated = flags.isolated;
            port.learning = flags.learning;
            port.unicast_flood = flags.unicast_flood;
            port.neigh_suppress = flags.neigh_suppress;
        }
        Action::AddVlan {
            link,
            vlan,
            membership,
        } => {
            port(state, link).vlans.insert(*vlan, *membership);
        }
        Action::DeleteVlan { link, vlan } => {
            port(state, link).vlans.remove(vlan);
            state
                .fdb
                .retain(|row| row.dev != *link || row.target != FdbTarget::Bridge(Some(*vlan)));
        }
        Action::SetGuard { link, guard } => {
            // Set elements are all there is of a guard; other names than ours are in a set as well.
            if guard.macs.is_empty() && host_plan::OwnedName::is_port(link) {
                state.guards.remove(link);
            } else {
                state.guards.insert(link.clone(), guard.clone());
            }
        }
        Action::ClearGuard { link } => {
            state.guards.remove(link);
        }
        Action::SetMtu { link, mtu } => {
            state.links.get_mut(link).unwrap().mtu = mtu.get().into();
        }
        Action::SetMac { link, mac } => state.links.get_mut(link).unwrap().mac = *mac,
        Action::DisableIpv6 { link } => state.links.get_mut(link).unwrap().ipv6_disabled = true,
        Action::SetUp { link } => {
            let there = &state.links[link];
            assert!(there.ipv6_disabled, "{link} comes up with IPv6 on");
            let stamp: Option<Stamp> = there.alias.as_deref().and_then(|a| a.parse().ok());
            if matches!(
                stamp,
                Some(Stamp::Nic(_) | Stamp::Adopted(_) | Stamp::Router(_))
            ) {
                let guard = state.guards.get(link);
                // A port of our own without one may send nothing.
                let closed = host_plan::OwnedName::is_port(link);
                assert!(guard.is_some() || closed, "{link} comes up unguarded");
                let port = there
                    .port
                    .as_ref()
                    .expect("a port joins before it comes up");
                // A gateway that every host has stays apart from the tunnel.
                let apart = matches!(stamp, Some(Stamp::Router(_)));
                assert!(!port.isolated || apart, "{link} comes up isolated for good");
            }
            state.links.get_mut(link).unwrap().up = true;
        }
        Action::SetDown { link } => state.links.get_mut(link).unwrap().up = false,
        Action::ConfigureInside(inside) => {
            let netns = state.netns.get_mut(&inside.netns).expect("made before");
            let link = netns.links.get_mut(&inside.device).expect("made before");
            link.mac = inside.mac;
            link.mtu = inside.mtu.get().into();
            link.up = true;
            link.addresses.extend(&inside.addresses);
        }
        Action::ChangeRouter(router) => change_router(state, router),
        Action::AddFdb(row) => {
            assert!(
                state.links.contains_key(&row.dev),
                "row {row} on no interface"
            );
            if matches!(row.target, FdbTarget::Vtep(_)) && row.mac != MacAddr::ZERO {
                let other = |o: &FdbRow| matches!(o.target, FdbTarget::Vtep(_));
                state
                    .fdb
                    .retain(|o| o.dev != row.dev || o.mac != row.mac || !other(o));
            }
            let mut row = row.clone();
            if let FdbTarget::Bridge(_) = row.target {
                let bridge = |dev: &IfName| state.links.get(dev)?.port.clone().map(|p| p.bridge);
                let same = |o: &&FdbRow| {
                    o.mac == row.mac && o.target == row.target && bridge(&o.dev) == bridge(&row.dev)
                };
                let replaced: Vec<FdbRow> = state.fdb.iter().filter(same).cloned().collect();
                for other in replaced {
                    // The flag stays with a row, whatever it becomes.
                    if other.state == FdbState::ExternLearned && row.state == FdbState::Static {
                        row.state = FdbState::ExternLearned;
                    }
                    state.fdb.remove(&other);
                }
            }
            state.fdb.insert(row);
        }
        Action::Send(_) => {}
        Action::ChangeDatapath(change) => change_datapath(state, change),
        Action::DeleteFdb(row) => {
            assert!(
                row.state != FdbState::Local,
                "the kernel's own row {row} is not ours to delete"
            );
            state.fdb.remove(row);
        }
        Action::SetNeighbour(row) => {
            state
                .neighbours
                .retain(|other| other.dev != row.dev || other.ip != row.ip);
            state.neighbours.insert(row.clone());
        }
        Action::DeleteNeighbour(row) => {
            state.neighbours.remove(row);
        }
    }
}

/// True if the datapath has an interface of this name open, or had.
fn is_bound(state: &HostState, name: &IfName) -> bool {
    let tables = state.datapath.iter();
    let mut places = tables.flat_map(|tables| tables.bindings.keys());
    places.any(|place| place.tap == *name)
}

/// As the datapath would take it, and in the order in which it could.
fn change_datapath(state: &mut HostState, change: &Change) {
    let tables = state.datapath.as_mut().expect("one runs");
    let bound = |domain: &Domain| {
        let mut bindings = tables.bindings.values();
        bindings.any(|binding| binding.domain == *domain)
    };
    match change {
        Change::SetLocal(Some(_)) => {
            let mut links = state.links.values();
            let taken = links.any(|link| matches!(link.kind, LinkKind::Vxlan { .. }));
            assert!(!taken, "a VXLAN device has the tunnel's port");
        }
        Change::Bind { place, .. } => {
            let link = state.links.get(&place.tap);
            let link = link.unwrap_or_else(|| panic!("{place} is bound before it is there"));
            assert!(matches!(link.kind, LinkKind::Tap { .. }), "{place}");
        }
        Change::SetMac { domain, .. }
        | Change::AddFlood { domain, .. }
        | Change::SetNeighbour { domain, .. } => {
            assert!(bound(domain), "a row of {domain}, which is nowhere");
        }
        Change::SetLocal(None)
        | Change::SetLimits(_)
        | Change::Unbind { .. }
        | Change::DeleteMac { .. }
        | Change::DeleteFlood { .. }
        | Change::DeleteNeighbour { .. } => {}
    }
    tables.apply(change);
    let domains: BTreeSet<Domain> = tables.bindings.values().map(|b| b.domain).collect();
    assert_eq!(
        domains.len(),
        tables.bindings.len(),
        "a domain at two places"
    );
}

/// A namespace that nobody has changed yet has every sysctl wrong.
fn change_router(state: &mut HostState, router: &RouterChanges) {
    assert!(
        state.owned_netns.contains(&router.netns),
        "{router:?} in no namespace of ours"
    );
    // It is known from now on.
    state.netns.remove(&router.netns);
    let inside = state
        .routers
        .entry(router.netns.clone())
        .or_insert_with(|| {
            let lo = host_plan::RouterLink {
                mac: MacAddr::ZERO,
                mtu: 65536,
                up: false,
                ipv6_disabled: false,
                addresses: Default::default(),
            };
            Arc::new(host_plan::RouterState {
                wrong_sysctls: host_plan::base_sysctls().map(|(path, _)| path).collect(),
                links: [(IfName::new("lo").unwrap(), lo)].into(),
                ..Default::default()
            })
        });
    let inside = Arc::make_mut(inside);
    let safe = |inside: &host_plan::RouterState| {
        inside.firewall.is_some() && inside.wrong_sysctls.is_empty()
    };
    for change in &router.changes {
        match change {
            RouterChange::SetSysctl { path, .. } => drop(inside.wrong_sysctls.remove(path)),
            RouterChange::SetFirewall(rules) => inside.firewall = Some(rules.fingerprint()),
            RouterChange::SetMac { link, mac } => inside.links.get_mut(link).unwrap().mac = *mac,
            RouterChange::SetMtu { link, mtu } => {
                inside.links.get_mut(link).unwrap().mtu = mtu.get().into();
            }
            RouterChange::SetIpv6 { link, on } => {
                inside.links.get_mut(link).unwrap().ipv6_disabled = !on;
            }
            RouterChange::AddAddress { link, address } => {
                let link = inside.links.get_mut(link).unwrap();
                let v6 = address.addr().is_ipv6();
                assert!(!v6 || !link.ipv6_disabled, "{address} where IPv6 is off");
                assert!(
                    link.addresses.insert(*address),
                    "{address} is there already"
                );
            }
            RouterChange::DeleteAddress { link, address } => {
                assert!(
                    inside
                        .links
                        .get_mut(link)
                        .unwrap()
                        .addresses
                        .remove(address)
                );
            }
            RouterChange::SetUp { link } => {
                assert!(
                    link.as_str() == "lo" || safe(inside),
                    "{link} comes up unsafe"
                );
                inside.links.get_mut(link).unwrap().up = true;
            }
            RouterChange::SetRoute(route) => {
                let same = |old: &Route| (old.table, old.prefix) == (route.table, route.prefix);
                if let Way::Hops { hops, .. } = &route.way {
                    let up = |hop: &host_plan::Hop| inside.links[&hop.device].up;
                    assert!(hops.iter().all(up), "{route} by an interface that is down");
                }
                inside.routes.retain(|old| !same(old));
                inside.routes.insert(route.clone());
            }
            RouterChange::DeleteRoute(route) => assert!(inside.routes.remove(route)),
            RouterChange::AddRule(rule) => assert!(inside.rules.insert(rule.clone())),
            RouterChange::DeleteRule(rule) => assert!(inside.rules.remove(rule)),
            RouterChange::SetNextHop(hop) => {
                let same = |old: &host_plan::NextHop| {
                    (&old.device, old.address) == (&hop.device, hop.address)
                };
                let has_ipv6 = !inside.links[&hop.device].ipv6_disabled;
                assert!(has_ipv6 || hop.address.is_ipv4(), "{hop:?}");
                inside.next_hops.retain(|old| !same(old));
                inside.next_hops.insert(hop.clone());
            }
            RouterChange::DeleteNextHop(hop) => assert!(inside.next_hops.remove(hop)),
        }
    }
}

fn add(state: &mut HostState, name: &IfName, kind: LinkKind, mac: MacAddr, mtu: u16, stamp: Stamp) {
    let index = state
        .links
        .values()
        .map(|link| link.index)
        .max()
        .unwrap_or(1)
        + 1;
    let link = Link {
        index,
        kind,
        alias: Some(stamp.to_string()),
        mac,
        mtu: mtu.into(),
        up: false,
        ipv6_disabled: true,
        port: None,
    };
    let before = state.links.insert(name.clone(), link);
    assert!(before.is_none(), "{name} is made twice");
}

fn port<'a>(state: &'a mut HostState, link: &IfName) -> &'a mut BridgePort {
    let port = state
        .links
        .get_mut(link)
        .expect("it is there")
        .port
        .as_mut();
    port.unwrap_or_else(|| panic!("{link} is no port"))
}

fn leave(state: &mut HostState, link: &IfName) {
    state.links.get_mut(link).unwrap().port = None;
    state
        .fdb
        .retain(|row| row.dev != *link || matches!(row.target, FdbTarget::Vtep(_)));
}

/// What the kernel does when an interface goes.
pub(crate) fn remove(state: &mut HostState, name: &IfName) {
    let Some(link) = state.links.remove(name) else {
        return;
    };
    for router in state.routers.values_mut().map(Arc::make_mut) {
        router.links.remove(name);
        router.rules.retain(|rule| rule.device != *name);
        router.next_hops.retain(|hop| hop.device != *name);
        router.routes.retain(|route| match &route.way {
            Way::Blackhole => true,
            Way::Hops { hops, .. } => !hops.iter().any(|hop| hop.device == *name),
        });
    }
    state.fdb.retain(|row| row.dev != *name);
    state.neighbours.retain(|row| row.dev != *name);
    state
        .trunks
        .retain(|outer, trunk| outer != name && trunk.vxlan != *name);
    let mut after = Vec::new();
    for (other, there) in state.links.iter_mut() {
        if there.port.as_ref().is_some_and(|port| port.bridge == *name) {
            there.port = None;
            state
                .fdb
                .retain(|row| row.dev != *other || matches!(row.target, FdbTarget::Vtep(_)));
        }
        if matches!(there.kind, LinkKind::Vlan { parent, .. } if parent == link.index) {
            after.push(other.clone());
        }
    }
    let id = name.as_str().get(2..).unwrap_or_default();
    for (end, peer) in [("u-", "w-"), ("w-", "u-")] {
        if name.as_str().starts_with(end) {
            after.push(IfName::new(format!("{peer}{id}")).unwrap());
        }
    }
    after.iter().for_each(|name| remove(state, name));
}
