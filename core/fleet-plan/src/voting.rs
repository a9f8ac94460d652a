//! By whose word route hosts run their routers.

use crate::Intent;
use model::{Host, HostId, LEASE_PORT, Role, Voter, VoterSet, Voting};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

/// More would ask more of each owner and survive no fault that matters.
const MOST: usize = 5;

/// What hosts and servers say of themselves that decides who votes. Empty: nobody does, and every host
/// runs what it is given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Electorate {
    /// There is one server, which votes where its vote makes the number odd. Several would have to
    /// remember together.
    pub one_server: bool,
    /// By whose word each route host that ever checked in runs its routers; empty for one that asks nobody.
    pub reported: BTreeMap<HostId, VoterSet>,
}

/// What a host is told; none if it is no route host, or one that never checked in.
pub(crate) fn voting(intent: &Intent, host: HostId, electorate: &Electorate) -> Option<Voting> {
    let known = |host: &&Host| {
        host.roles.contains(&Role::Route) && electorate.reported.contains_key(&host.id)
    };
    let hosts: Vec<&Host> = intent.hosts().filter(known).collect();
    if !hosts.iter().any(|known| known.id == host) {
        return None;
    }
    let mut current: VoterSet = hosts
        .iter()
        .map(|host| Voter::Host(host.id))
        .take(MOST)
        .collect();
    if electorate.one_server && current.len().is_multiple_of(2) {
        current.insert(Voter::Server);
    }
    let members: BTreeSet<HostId> = hosts.iter().map(|host| host.id).collect();
    // What some host may still go by: a majority of it has to agree, too.
    let former: BTreeSet<&VoterSet> = electorate
        .reported
        .iter()
        .filter(|(host, set)| members.contains(host) && !set.is_empty() && **set != current)
        .map(|(_, set)| set)
        .collect();
    let former: Vec<VoterSet> = former.into_iter().cloned().collect();
    let others = hosts.iter().filter(|other| other.id != host);
    let peers = others.map(|other| (other.id, SocketAddr::new(other.underlay, LEASE_PORT)));
    Some(Voting {
        peers: peers.collect(),
        sets: std::iter::once(current).chain(former).collect(),
    })
}
