//! What is known of the kernel's state, kept true by what the kernel tells of changes.
//!
//! A look at the whole host is taken once. From then on the kernel's notifications say what changed,
//! whoever changed it: an interface that is named is read again by its number, a row is taken from
//! its notification. What our own actions touch is read again as well, because of some changes (an
//! alias or a port's flags on an interface that is down, a sysctl) the kernel says nothing.
//!
//! Whenever that could be wrong (events were lost, an action failed, an interface was renamed)
//! everything is forgotten, and the next look is a whole one.

use crate::bpf;
use crate::error::{Doing, Error};
use crate::fdb::{RawFdb, RawNeighbour};
use crate::link::{self, RawLink};
use crate::monitor::Event;
use crate::netns::Marks;
use crate::nft::Nft;
use crate::observe::{self, PortVlans};
use crate::socket::Socket;
use host_plan::{FdbRow, FdbState, FdbTarget, HostState, LinkKind, Neighbour, Stamp, Trunk};
use model::{Capability, IfName, MacAddr, NetnsName, VlanId};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;

/// What is read with.
pub(crate) struct Sources<'a> {
    pub(crate) route: &'a mut Socket,
    pub(crate) nft: Option<&'a mut Nft>,
    pub(crate) marks: &'a Marks,
    pub(crate) capabilities: &'a BTreeSet<Capability>,
}

/// What the kernel told and what we did since the state was last brought up to date.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    /// Everything has to be read: why.
    pub(crate) doubt: Option<Doubt>,
    links: BTreeSet<u32>,
    /// Names that came with those numbers.
    told: HashSet<String>,
    /// Interfaces that we acted on.
    touched: BTreeSet<IfName>,
    fdb: Vec<(bool, RawFdb)>,
    neighbours: Vec<(bool, RawNeighbour)>,
    vlans: bool,
    filters: bool,
    guards: bool,
    /// We changed elements of our sets: of these ports, or whom tunnel packets are taken from.
    elements: bool,
    guarded: BTreeSet<IfName>,
    netns: BTreeSet<NetnsName>,
}

/// Why nothing is known any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Doubt {
    /// The kernel dropped events.
    Lost,
    /// Something else.
    Other,
}

impl Changes {
    pub(crate) fn told(&mut self, event: Event) {
        match event {
            Event::Link(index, name) => {
                self.links.insert(index);
                self.told.extend(name);
            }
            Event::Fdb { there, row } => self.fdb.push((there, row)),
            Event::Neighbour { there, row } => self.neighbours.push((there, row)),
            Event::Vlans => self.vlans = true,
            Event::Filters => self.filters = true,
            Event::Guards => self.guards = true,
            Event::Lost => self.doubt = Some(Doubt::Lost),
        }
    }

    pub(crate) fn doubt(&mut self) {
        self.doubt.get_or_insert(Doubt::Other);
    }

    /// We changed an interface, or tried to.
    pub(crate) fn touch(&mut self, name: &IfName) {
        self.touched.insert(name.clone());
    }

    /// We changed the guard of a port, or whom tunnel packets are taken from (none).
    pub(crate) fn touch_elements(&mut self, port: Option<&IfName>) {
        self.elements = true;
        self.guarded.extend(port.cloned());
    }

    /// We made or removed a namespace.
    pub(crate) fn touch_netns(&mut self, name: &NetnsName) {
        self.netns.insert(name.clone());
    }

    pub(crate) fn touch_vlans(&mut self) {
        self.vlans = true;
    }

    pub(crate) fn touch_filters(&mut self) {
        self.filters = true;
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.doubt.is_none()
            && self.links.is_empty()
            && self.touched.is_empty()
            && self.fdb.is_empty()
            && self.neighbours.is_empty()
            && !self.vlans
            && !self.filters
            && !self.guards
            && !self.elements
            && self.netns.is_empty()
    }
}

/// A row by what it replaces: a bridge knows a MAC in one place a VLAN, a tunnel sends a unicast MAC
/// to one VTEP; the kernel tells of the new row only.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum FdbKey {
    Bridge {
        bridge: u32,
        mac: MacAddr,
        vlan: Option<VlanId>,
    },
    Tunnel {
        device: u32,
        mac: MacAddr,
    },
    Flood {
        device: u32,
        mac: MacAddr,
        to: IpAddr,
    },
}

/// The host as last seen. What is inside of namespaces is looked at each time, not kept.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) state: HostState,
    pub(crate) raw: BTreeMap<u32, RawLink>,
    vlans: PortVlans,
    rows: HashMap<FdbKey, FdbRow>,
    neighbours: HashMap<(u32, IpAddr), Neighbour>,
}

/// What came of bringing the state up to date.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Updated {
    Same,
    Differs,
    /// This cannot be told by parts.
    Unclear,
}

impl Seen {
    /// Reads everything.
    pub(crate) fn whole(sources: &mut Sources<'_>) -> Result<Self, Error> {
        let route = &mut *sources.route;
        let raw = observe::raw_links(route).doing(|| "list interfaces".to_owned())?;
        let mut seen = Self {
            state: HostState {
                capabilities: sources.capabilities.clone(),
                owned_netns: sources.marks.ours().into(),
                ..HostState::default()
            },
            raw: raw.into_iter().map(|raw| (raw.index, raw)).collect(),
            vlans: port_vlans(route, sources.capabilities)?,
            rows: HashMap::new(),
            neighbours: HashMap::new(),
        };
        for index in seen.raw.keys().copied().collect::<Vec<_>>() {
            seen.tell(index);
        }
        for row in observe::fdb(route).doing(|| "list FDB rows".to_owned())? {
            seen.fdb_row(true, &row);
        }
        for row in observe::neighbours(route).doing(|| "list neighbour rows".to_owned())? {
            seen.neighbour(true, &row);
        }
        seen.read_trunks(sources.route)?;
        if let Some(nft) = sources.nft.as_deref_mut() {
            seen.read_guards(nft)?;
        }
        Ok(seen)
    }

    /// Takes in what changed. What was known is only good if this succeeds.
    pub(crate) fn update(
        &mut self,
        changes: Changes,
        sources: &mut Sources<'_>,
    ) -> Result<Updated, Error> {
        let mut differs = false;
        let mut again = BTreeSet::new();
        if changes.vlans {
            let vlans = port_vlans(sources.route, sources.capabilities)?;
            let before = std::mem::replace(&mut self.vlans, vlans);
            let all = before.keys().chain(self.vlans.keys());
            again.extend(all.filter(|index| before.get(index) != self.vlans.get(index)));
        }
        let Some(gone) = self.read_links(&changes, sources.route, &mut again)? else {
            return Ok(Updated::Unclear);
        };
        for name in &gone {
            differs |= self.state.links.remove(name).is_some();
        }
        for index in again {
            differs |= self.tell(index);
        }
        for (there, row) in &changes.fdb {
            differs |= self.fdb_row(*there, row);
        }
        for (there, row) in &changes.neighbours {
            differs |= self.neighbour(*there, row);
        }
        // The kernel tells of the rows that go with an interface, but a device may have been made
        // and gone between two looks.
        if !gone.is_empty() {
            differs |= self.forget_rows_of(&gone);
        }
        // Of filters that go with their interface the kernel says nothing.
        if changes.filters || (!gone.is_empty() && !self.state.trunks.is_empty()) {
            differs |= self.read_trunks(sources.route)?;
        }
        if let Some(nft) = sources.nft.as_deref_mut() {
            if changes.guards {
                let before = (
                    self.state.firewall,
                    std::mem::take(&mut self.state.guards),
                    std::mem::take(&mut self.state.vteps),
                );
                self.read_guards(nft)?;
                let now = (self.state.firewall, &self.state.guards, &self.state.vteps);
                differs |= (before.0, &before.1, &before.2) != now;
            } else if changes.elements {
                let known = nft
                    .known()
                    .doing(|| "read our nftables tables".to_owned())?;
                for name in changes.guarded {
                    match known.of_port(&name).guards().remove(&name) {
                        Some(guard) => self.state.guards.insert(name, guard),
                        None => self.state.guards.remove(&name),
                    };
                }
                self.state.vteps = known.tunnel_sources().into();
                differs = true;
            }
        }
        for name in changes.netns {
            differs |= match sources.marks.is_ours(&name) {
                true => self.state.owned_netns.insert(name),
                false => self.state.owned_netns.remove(&name),
            };
        }
        Ok(if differs {
            Updated::Differs
        } else {
            Updated::Same
        })
    }

    /// Reads the interfaces that changed; which of them are to be told anew, and the names of those
    /// that are gone. None if names changed hands.
    fn read_links(
        &mut self,
        changes: &Changes,
        route: &mut Socket,
        again: &mut BTreeSet<u32>,
    ) -> Result<Option<Vec<IfName>>, Error> {
        let mut indices = changes.links.clone();
        let mut names = Vec::new();
        for name in &changes.touched {
            match self.state.links.get(name) {
                Some(link) => drop(indices.insert(link.index)),
                None if changes.told.contains(name.as_str()) => {}
                None => names.push(name),
            }
        }
        let asked: Vec<u32> = indices.into_iter().collect();
        let by_index = asked.iter().map(|index| link::get_index(*index));
        let mut questions: Vec<_> = by_index.chain(names.iter().map(|n| link::get(n))).collect();
        let mut found: Vec<Option<RawLink>> = Vec::new();
        found.resize_with(questions.len(), || None);
        let results = route.ask(&mut questions, |position, payload| {
            found[position] = RawLink::parse(payload);
        });
        let mut gone = Vec::new();
        for (position, result) in results.into_iter().enumerate() {
            match result {
                Err(cause) if cause.errno() == Some(libc::ENODEV) => {
                    let raw = asked.get(position).and_then(|index| self.raw.remove(index));
                    gone.extend(raw.and_then(|raw| IfName::new(raw.name).ok()));
                }
                other => other.doing(|| "read interfaces".to_owned())?,
            }
        }
        for raw in found.into_iter().flatten() {
            let renamed = self
                .raw
                .get(&raw.index)
                .is_some_and(|old| old.name != raw.name);
            let name = IfName::new(raw.name.as_str()).ok();
            let taken = name.as_ref().is_some_and(|name| {
                let holder = self.state.links.get(name);
                holder.is_some_and(|link| link.index != raw.index && !gone.contains(name))
            });
            if renamed || taken {
                return Ok(None);
            }
            again.insert(raw.index);
            self.raw.insert(raw.index, raw);
        }
        // A name that is gone may be there again, with another number.
        Ok(Some(gone))
    }

    /// Tells an interface from what was read of it. True if that differs.
    fn tell(&mut self, index: u32) -> bool {
        let Some(raw) = self.raw.get(&index) else {
            return false;
        };
        let master = raw.master.and_then(|master| self.raw.get(&master));
        let Some((name, link)) = observe::link(raw, master, self.vlans.get(&index)) else {
            return false;
        };
        if self.state.links.get(&name) == Some(&link) {
            return false;
        }
        self.state.links.insert(name, link);
        true
    }

    fn device(&self, index: u32) -> Option<(&IfName, &host_plan::Link)> {
        let name = IfName::new(self.raw.get(&index)?.name.as_str()).ok()?;
        self.state.links.get_key_value(&name)
    }

    /// A row of a bridge's port or a VXLAN device. Rows of a bridge itself and of the multicast
    /// filters of other devices are left out. True if what was known differs, leaving out what a
    /// bridge learned from traffic: that is no change of anybody's mind.
    fn fdb_row(&mut self, there: bool, raw: &RawFdb) -> bool {
        let multicast = raw.mac == MacAddr::ZERO || raw.mac.0[0] & 1 == 1;
        let key = match (raw.master, raw.dst) {
            (Some(bridge), _) => FdbKey::Bridge {
                bridge,
                mac: raw.mac,
                vlan: raw.vlan,
            },
            (None, Some(to)) if multicast => FdbKey::Flood {
                device: raw.index,
                mac: raw.mac,
                to,
            },
            (None, Some(_)) => FdbKey::Tunnel {
                device: raw.index,
                mac: raw.mac,
            },
            (None, None) => return false,
        };
        let target = match (raw.master, raw.dst) {
            (None, Some(vtep)) => FdbTarget::Vtep(vtep),
            _ => FdbTarget::Bridge(raw.vlan),
        };
        let told = self.device(raw.index).filter(|(_, link)| {
            let tunnel = matches!(link.kind, LinkKind::Vxlan { .. });
            tunnel || (link.port.is_some() && matches!(target, FdbTarget::Bridge(_)))
        });
        let row = told.map(|(name, _)| FdbRow {
            dev: name.clone(),
            mac: raw.mac,
            target,
            state: raw.state,
        });
        let before = match &row {
            Some(row) if there => self.rows.insert(key, row.clone()),
            // It went from there; it may be somewhere else by now.
            Some(row) => {
                let held = self.rows.get(&key);
                match held.is_some_and(|held| held.dev == row.dev && held.target == row.target) {
                    true => self.rows.remove(&key),
                    false => return false,
                }
            }
            None => self.rows.remove(&key),
        };
        let after = row.filter(|_| there);
        if before == after {
            return false;
        }
        let counts = |row: &Option<FdbRow>| {
            row.as_ref()
                .is_some_and(|row| row.state != FdbState::Dynamic)
        };
        let differs = counts(&before) || counts(&after);
        if let Some(before) = before {
            self.state.fdb.remove(&before);
        }
        self.state.fdb.extend(after);
        differs
    }

    /// A row of a bridge or a VLAN device.
    fn neighbour(&mut self, there: bool, raw: &RawNeighbour) -> bool {
        if raw.ip.is_multicast() {
            return false;
        }
        let told = self.device(raw.index).filter(|(_, link)| {
            matches!(link.kind, LinkKind::Bridge { .. } | LinkKind::Vlan { .. })
        });
        let row = told.filter(|_| there).map(|(name, _)| Neighbour {
            dev: name.clone(),
            ip: raw.ip,
            mac: raw.mac,
            ours: raw.protocol == crate::sys::PROTOCOL,
            remote: raw.remote,
            router: raw.router,
        });
        let key = (raw.index, raw.ip);
        let before = match &row {
            Some(row) => self.neighbours.insert(key, row.clone()),
            None => self.neighbours.remove(&key),
        };
        if before == row {
            return false;
        }
        if let Some(before) = before {
            self.state.neighbours.remove(&before);
        }
        self.state.neighbours.extend(row);
        true
    }

    /// Rows of interfaces that are not there, or that the kernel made anew since.
    fn forget_rows_of(&mut self, gone: &[IfName]) -> bool {
        let mut differs = false;
        let there: HashMap<&str, u32> = self
            .raw
            .values()
            .map(|l| (l.name.as_str(), l.index))
            .collect();
        let gone: HashSet<&IfName> = gone.iter().collect();
        let left = |dev: &IfName| gone.contains(dev) && !there.contains_key(dev.as_str());
        let stale: Vec<_> = self
            .rows
            .iter()
            .filter(|(_, row)| left(&row.dev))
            .map(|(key, row)| (key.clone(), row.clone()))
            .collect();
        for (key, row) in stale {
            self.rows.remove(&key);
            differs |= self.state.fdb.remove(&row);
        }
        let stale: Vec<_> = self
            .neighbours
            .iter()
            .filter(|((index, _), row)| {
                gone.contains(&row.dev) && there.get(row.dev.as_str()) != Some(index)
            })
            .map(|(key, row)| (*key, row.clone()))
            .collect();
        for (key, row) in stale {
            self.neighbours.remove(&key);
            differs |= self.state.neighbours.remove(&row);
        }
        differs
    }

    /// Looks which trunk pairs are connected. True if that differs.
    fn read_trunks(&mut self, route: &mut Socket) -> Result<bool, Error> {
        let is_ours = |raw: &RawLink| {
            let stamp = raw.alias.as_deref().map(str::parse::<Stamp>);
            raw.kind == "veth" && raw.link_netns.is_none() && matches!(stamp, Some(Ok(_)))
        };
        let ends = self.raw.values().filter(|raw| is_ours(raw));
        let ends: Vec<u32> = ends.map(|raw| raw.index).collect();
        let connected =
            bpf::connected(route, &ends).doing(|| "read filters of trunk pairs".to_owned())?;
        let name = |index| IfName::new(self.raw.get(&index)?.name.as_str()).ok();
        let trunks = connected
            .into_iter()
            .filter_map(|pair| {
                let (vlan, vxlan) = (pair.vlan, name(pair.vxlan)?);
                Some((name(pair.outer)?, Trunk { vlan, vxlan }))
            })
            .collect();
        let differs = self.state.trunks != trunks;
        self.state.trunks = trunks;
        Ok(differs)
    }

    fn read_guards(&mut self, nft: &mut Nft) -> Result<(), Error> {
        let doing = || "read our nftables tables".to_owned();
        self.state.firewall = nft.is_installed().doing(doing)?;
        let elements = nft.elements().doing(doing)?;
        self.state.guards = elements.guards().into();
        self.state.vteps = elements.tunnel_sources().into();
        Ok(())
    }
}

fn port_vlans(route: &mut Socket, capabilities: &BTreeSet<Capability>) -> Result<PortVlans, Error> {
    if !capabilities.contains(&Capability::VlanFiltering) {
        return Ok(HashMap::new());
    }
    observe::port_vlans(route).doing(|| "list the VLANs of ports".to_owned())
}
