//! Inside of routers' namespaces: what is there, and changes of it.
//!
//! Each is entered by a thread of its own, so that its sockets and sysctls are the namespace's.

mod carry;
mod elements;
mod flows;
mod follow;
mod held;
mod meter;
mod outer;
mod route;
mod rules;

pub use carry::{track_connections, tracked_connections};
pub use follow::{ConnectionEvents, Drained};
pub(crate) use held::Held;
pub use meter::{
    FlowCounts, LinkCounts, NatCount, RouterCounts, RuleCount, refuse_flows, router_counts,
};
pub use outer::OuterSocket;

use crate::error::{Cause, Doing, Error};
use crate::fdb::{self, RawNeighbour};
use crate::kept::with_netfilter;
use crate::link::{self, RawLink};
use crate::netns::{Netns, on_own_thread};
use crate::observe;
use crate::socket::Socket;
use crate::sys;
use crate::sysctl::Sysctls;
use host_plan::{
    Fingerprint, NextHop, RouterChange, RouterChanges, RouterLink, RouterState, base_sysctls,
    device_sysctls,
};
use model::{IfName, MacAddr, NetnsName};
use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};

type Outcome = Result<(), Cause>;

/// Looks into a router's namespace; none if it is not there.
pub(crate) fn look(
    name: &NetnsName,
    held: &mut Option<Held>,
) -> Result<Option<RouterState>, Error> {
    let Some(netns) = Netns::find(name)? else {
        return Ok(None);
    };
    let found = on_own_thread(|| {
        netns.enter()?;
        look_here(held)
    });
    found
        .map(Some)
        .doing(|| format!("look into namespace {name}"))
}

/// Looks at a router's rules alone; none if they are not there as we made them.
pub(crate) fn look_at_rules(
    name: &NetnsName,
    held: &mut Option<Held>,
) -> Result<Option<Fingerprint>, Error> {
    let Some(netns) = Netns::find(name)? else {
        return Ok(None);
    };
    let found = on_own_thread(|| {
        netns.enter()?;
        with_netfilter(|socket| rules::installed(socket, held))
    });
    found.doing(|| format!("look at the rules of namespace {name}"))
}

fn look_here(held: &mut Option<Held>) -> Result<RouterState, Cause> {
    let mut socket = Socket::route()?;
    let raw = observe::raw_links(&mut socket)?;
    let mut addresses: HashMap<u32, BTreeSet<_>> = HashMap::new();
    socket.dump(link::get_addresses(), |_, payload| {
        if let Some((index, address)) = link::parse_address(payload) {
            addresses.entry(index).or_default().insert(address);
        }
    })?;
    let mut state = RouterState::default();
    let mut names = BTreeMap::new();
    for raw in raw {
        let Ok(name) = IfName::new(raw.name.as_str()) else {
            continue;
        };
        let link = RouterLink {
            mac: raw.mac.unwrap_or(MacAddr::ZERO),
            mtu: raw.mtu,
            up: raw.up,
            ipv6_disabled: raw.ipv6_disabled,
            addresses: addresses.remove(&raw.index).unwrap_or_default(),
        };
        names.insert(raw.index, name.clone());
        state.links.insert(name, link);
    }
    let devices = state.links.keys().map(IfName::as_str);
    let of_devices = devices
        .filter(|name| *name != "lo")
        .flat_map(device_sysctls);
    let sysctls = Sysctls::here()?;
    state.wrong_sysctls = base_sysctls()
        .chain(of_devices)
        .filter(|(path, value)| !sysctls.holds(path, value))
        .map(|(path, _)| path)
        .collect();
    state.routes = route::all(&mut socket, &names)?;
    state.rules = route::rules(&mut socket)?;
    state.next_hops = next_hops(&mut socket, &names)?;
    state.firewall = with_netfilter(|socket| rules::installed(socket, held))?;
    Ok(state)
}

/// Our neighbour rows: next hops, which have IPv6 addresses, and NICs that a gateway asks nobody for.
fn next_hops(
    socket: &mut Socket,
    names: &BTreeMap<u32, IfName>,
) -> Result<BTreeSet<NextHop>, Cause> {
    let mut hops = BTreeSet::new();
    let hop = |payload: &[u8]| {
        let row = RawNeighbour::parse(payload).filter(|row| row.protocol == PROTOCOL)?;
        Some(NextHop {
            device: names.get(&row.index)?.clone(),
            address: row.ip,
            mac: row.mac,
        })
    };
    for (family, ipv6) in [(libc::AF_INET, false), (libc::AF_INET6, true)] {
        let request = fdb::get_neighbours(family);
        let result = socket.dump(request, |_, payload| hops.extend(hop(payload)));
        route::tolerate_no_ipv6(ipv6, result)?;
    }
    Ok(hops)
}

/// Makes changes inside of routers' namespaces. Whoever calls has seen that they are ours.
/// `held` is what is known of its rules.
pub(crate) fn change(router: &RouterChanges, held: &mut Option<Held>) -> Outcome {
    on_own_thread(|| {
        let netns = Netns::named(&router.netns).map_err(|error| error.cause)?;
        netns.enter()?;
        Inside {
            route: Socket::route()?,
            indices: HashMap::new(),
            sysctls: OnceCell::new(),
            held,
        }
        .run(&router.changes)
    })
}

struct Inside<'a> {
    route: Socket,
    indices: HashMap<IfName, u32>,
    sysctls: OnceCell<Sysctls>,
    held: &'a mut Option<Held>,
}

impl Inside<'_> {
    /// In order; requests to the kernel that follow each other are sent together.
    fn run(&mut self, changes: &[RouterChange]) -> Outcome {
        let mut requests = Vec::new();
        for change in changes {
            match change {
                RouterChange::SetSysctl { path, value } => {
                    self.send(&mut requests)?;
                    self.sysctls()?.write(path, value)?;
                }
                RouterChange::SetIpv6 { link, on } => {
                    self.send(&mut requests)?;
                    let path = format!("net/ipv6/conf/{link}/disable_ipv6");
                    self.sysctls()?.write(&path, if *on { "0" } else { "1" })?;
                }
                RouterChange::SetFirewall(firewall) => {
                    self.send(&mut requests)?;
                    with_netfilter(|socket| rules::install(socket, firewall, self.held))?;
                }
                other => requests.push(self.request(other)?),
            }
        }
        self.send(&mut requests)
    }

    /// Opened for the first that is set.
    fn sysctls(&self) -> Result<&Sysctls, Cause> {
        if let Some(sysctls) = self.sysctls.get() {
            return Ok(sysctls);
        }
        let sysctls = Sysctls::here()?;
        Ok(self.sysctls.get_or_init(|| sysctls))
    }

    fn send(&mut self, requests: &mut Vec<(crate::attr::Message, &'static [i32])>) -> Outcome {
        let (mut messages, tolerated): (Vec<_>, Vec<_>) = requests.drain(..).unzip();
        if messages.is_empty() {
            return Ok(());
        }
        let results = self.route.transact(&mut messages);
        results
            .into_iter()
            .zip(tolerated)
            .try_for_each(|(result, tolerated)| match result {
                Err(cause) if cause.errno().is_some_and(|no| tolerated.contains(&no)) => Ok(()),
                other => other,
            })
    }

    fn request(
        &mut self,
        change: &RouterChange,
    ) -> Result<(crate::attr::Message, &'static [i32]), Cause> {
        const NONE: &[i32] = &[];
        const THERE: &[i32] = &[libc::EEXIST];
        const GONE: &[i32] = &[libc::ENOENT, libc::ESRCH, libc::ENODEV, libc::EADDRNOTAVAIL];
        Ok(match change {
            RouterChange::SetMac { link, mac } => (link::set_mac(link, *mac), NONE),
            RouterChange::SetMtu { link, mtu } => (link::set_mtu(link, *mtu), NONE),
            RouterChange::SetUp { link } => (link::set_up(link, true), NONE),
            RouterChange::AddAddress { link, address } => {
                (link::add_address(self.index(link)?, *address), THERE)
            }
            RouterChange::DeleteAddress { link, address } => {
                (link::delete_address(self.index(link)?, *address), GONE)
            }
            RouterChange::SetRoute(route) => {
                (route::set(route, &mut |name| self.index(name))?, NONE)
            }
            RouterChange::DeleteRoute(route) => {
                (route::delete(route, &mut |name| self.index(name))?, GONE)
            }
            RouterChange::AddRule(rule) => (route::add_rule(rule), THERE),
            RouterChange::DeleteRule(rule) => (route::delete_rule(rule), GONE),
            RouterChange::SetNextHop(hop) => {
                (fdb::set_next_hop(hop, self.index(&hop.device)?), NONE)
            }
            RouterChange::DeleteNextHop(hop) => {
                (fdb::delete_next_hop(hop, self.index(&hop.device)?), GONE)
            }
            RouterChange::SetSysctl { .. }
            | RouterChange::SetIpv6 { .. }
            | RouterChange::SetFirewall(_) => unreachable!("it is no request"),
        })
    }

    fn index(&mut self, name: &IfName) -> Result<u32, Cause> {
        if let Some(index) = self.indices.get(name) {
            return Ok(*index);
        }
        let mut found = None;
        let result = self.route.get(link::get(name), |payload| {
            found = RawLink::parse(payload);
        });
        match (result, found) {
            (Ok(()), Some(link)) => {
                self.indices.insert(name.clone(), link.index);
                Ok(link.index)
            }
            (Err(cause), _) if cause.errno() == Some(libc::ENODEV) => Err(Cause::Kernel {
                errno: libc::ENODEV,
                text: Some(format!("there is no interface {name} in it")),
            }),
            (Err(cause), _) => Err(cause),
            (Ok(()), None) => Err(Cause::Garbled("an answer without an interface")),
        }
    }
}

/// Our protocol number on routes and rules.
const PROTOCOL: u8 = sys::PROTOCOL;
