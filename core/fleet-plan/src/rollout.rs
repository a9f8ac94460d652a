//! Which configuration each host has, and when it needs a new generation of it.

use crate::decision::hex;
use crate::voting::voting;
use crate::{Delta, Draft, Electorate, Intent, plan};
use model::{
    Generation, HostConfig, HostId, Object, Reflector, Role, Router, SubnetId, Vpc, VpcId,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

/// Keeps the newest configuration of every host. Tell it of every applied delta with
/// [`Rollout::note`]; [`Rollout::poll`] then plans the hosts concerned and gives a new generation
/// to those whose configuration differs. The store keeps the issued rows, so that after a restart
/// the same configuration has the same generation.
#[derive(Debug)]
pub struct Rollout {
    reflectors: Vec<Reflector>,
    electorate: Electorate,
    issued: BTreeMap<HostId, IssuedRow>,
    configs: BTreeMap<HostId, Arc<HostConfig>>,
    stale: BTreeSet<HostId>,
    /// Who is in a subnet, as its hosts were planned or are about to be; of an absent one it is not known.
    seated: BTreeMap<SubnetId, BTreeSet<IpAddr>>,
}

/// What the store remembers of a host's newest configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IssuedRow {
    /// Whose.
    pub host: HostId,
    /// Its generation.
    pub generation: Generation,
    /// What it says.
    pub digest: Digest,
}

/// SHA-256 of a configuration without its generation, in hex.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Digest(pub String);

/// A new generation. Save `row`, then hand `config` to the host; not the other way round, or after
/// a crash the generation would be issued twice.
#[derive(Debug, Clone)]
pub struct Issued {
    /// For the store.
    pub row: IssuedRow,
    /// For the host.
    pub config: Arc<HostConfig>,
}

impl Rollout {
    /// From what the store remembers. All hosts of `intent` are planned at the next poll.
    pub fn new(rows: Vec<IssuedRow>, intent: &Intent, reflectors: Vec<Reflector>) -> Self {
        let mut rollout = Self {
            reflectors,
            electorate: Electorate::default(),
            issued: rows.into_iter().map(|row| (row.host, row)).collect(),
            configs: BTreeMap::new(),
            stale: BTreeSet::new(),
            seated: BTreeMap::new(),
        };
        rollout.note_all(intent);
        rollout
    }

    /// Marks the hosts that `delta` may concern. Call it after the delta was applied to `intent`.
    pub fn note(&mut self, intent: &Intent, delta: &Delta) {
        for change in &delta.changes {
            match &change.object {
                // Accounts show in names only, and those do not change.
                Object::Account(_) => {}
                Object::Vpc(vpc) => self.stale.extend(intent.hosts_of_vpc(vpc.id)),
                Object::Subnet(subnet) => {
                    self.stale.extend(intent.hosts_of_subnet(subnet.id));
                    self.note_members(intent, subnet.id);
                    self.note_routers(intent, subnet.vpc);
                }
                Object::Nic(nic) => {
                    self.stale.insert(nic.placement.host);
                    self.stale.extend(nic.moving.as_ref().map(|m| m.other.host));
                    self.note_members(intent, nic.subnet);
                    if let Some(subnet) = intent.subnet(nic.subnet) {
                        self.note_routers(intent, subnet.vpc);
                    }
                }
                Object::Host(host) => {
                    self.stale.insert(host.id);
                    // Route hosts know each other.
                    let route = intent.hosts().filter(|h| h.roles.contains(&Role::Route));
                    self.stale.extend(route.map(|host| host.id));
                }
                Object::Router(router) => {
                    self.stale.extend(router.hosts());
                    self.stale.extend(router.standby.host());
                    // Hosts with NICs know the gateways of their subnets, and where the legs are.
                    self.stale.extend(intent.hosts_of_vpc(router.vpc));
                    for subnet in intent.subnets_of(router.vpc) {
                        self.note_members(intent, subnet.id);
                    }
                    // Where it was before.
                    let has_it = |config: &HostConfig| {
                        let runs = config.routers.iter().any(|other| other.id == router.id);
                        runs || config.standby_for.contains_key(&router.id)
                    };
                    let old = self.configs.iter().filter(|(_, config)| has_it(config));
                    self.stale.extend(old.map(|(host, _)| *host));
                }
                Object::External(network) => {
                    let routers = intent.routers_of_external(network.id);
                    self.stale.extend(routers.flat_map(Router::hosts));
                }
                // Whatever it stood for before or stands for now: it is by one of these.
                Object::PublicIp(public) => {
                    let routers = intent.routers_of_external(public.network);
                    self.stale.extend(routers.flat_map(Router::hosts));
                }
            }
        }
    }

    /// All hosts of a subnet know who else is there: they are marked if that changed, which is when a
    /// host gets its first seat or loses its last, not with every NIC.
    fn note_members(&mut self, intent: &Intent, subnet: SubnetId) {
        let now = intent.vteps_of_subnet(subnet);
        if self.seated.get(&subnet) == Some(&now) {
            return;
        }
        self.stale.extend(intent.hosts_of_subnet(subnet));
        match now.is_empty() {
            true => self.seated.remove(&subnet),
            false => self.seated.insert(subnet, now),
        };
    }

    /// Routers tell the names of all NICs of their VPC.
    fn note_routers(&mut self, intent: &Intent, vpc: VpcId) {
        let routers = intent.routers_of_vpc(vpc);
        self.stale.extend(routers.flat_map(Router::hosts));
        // So do gateways, which are where the NICs are.
        if intent.vpc(vpc).and_then(Vpc::gateway_mac).is_some() {
            self.stale.extend(intent.hosts_of_vpc(vpc));
        }
    }

    /// Marks all hosts: `intent` was loaded afresh.
    pub fn note_all(&mut self, intent: &Intent) {
        self.stale.extend(self.configs.keys());
        self.stale.extend(intent.hosts().map(|host| host.id));
        let seated = intent.all_subnets().map(|subnet| subnet.id);
        let seated = seated.map(|subnet| (subnet, intent.vteps_of_subnet(subnet)));
        self.seated = seated.filter(|(_, vteps)| !vteps.is_empty()).collect();
    }

    /// The route reflectors that hosts connect to from now on.
    pub fn set_reflectors(&mut self, intent: &Intent, reflectors: Vec<Reflector>) {
        if self.reflectors != reflectors {
            self.reflectors = reflectors;
            self.note_all(intent);
        }
    }

    /// Who votes on where routers run from now on.
    pub fn set_electorate(&mut self, intent: &Intent, electorate: Electorate) {
        if self.electorate != electorate {
            self.electorate = electorate;
            let route = intent.hosts().filter(|h| h.roles.contains(&Role::Route));
            self.stale.extend(route.map(|host| host.id));
        }
    }

    /// Takes over what another server issued: the next generation of that host will be higher.
    pub fn adopt(&mut self, row: IssuedRow) {
        let host = row.host;
        let newer = self
            .issued
            .get(&host)
            .is_none_or(|held| held.generation < row.generation);
        if newer {
            self.configs.remove(&host);
            self.issued.insert(host, row);
            self.stale.insert(host);
        }
    }

    /// Plans the marked hosts and returns a new generation for each whose configuration differs
    /// from its last.
    pub fn poll(&mut self, intent: &Intent) -> Vec<Issued> {
        std::mem::take(&mut self.stale)
            .into_iter()
            .filter_map(|host| self.replan(intent, host))
            .collect()
    }

    /// A host's newest configuration.
    pub fn config(&self, host: HostId) -> Option<&Arc<HostConfig>> {
        self.configs.get(&host)
    }

    fn replan(&mut self, intent: &Intent, host: HostId) -> Option<Issued> {
        let Some(draft) = plan(intent, host, &self.reflectors) else {
            self.configs.remove(&host);
            self.issued.remove(&host);
            return None;
        };
        let draft = draft.with_voting(voting(intent, host, &self.electorate));
        if self
            .configs
            .get(&host)
            .is_some_and(|config| draft.says(config))
        {
            return None;
        }
        let digest = Digest::of(&draft);
        let last = self.issued.get(&host);
        if let Some(last) = last
            && last.digest == digest
        {
            // As before the restart.
            let config = Arc::new(draft.issue(last.generation));
            self.configs.insert(host, config);
            return None;
        }
        let row = IssuedRow {
            host,
            generation: Generation(last.map_or(0, |last| last.generation.0) + 1),
            digest,
        };
        let config = Arc::new(draft.issue(row.generation));
        self.configs.insert(host, Arc::clone(&config));
        self.issued.insert(host, row.clone());
        Some(Issued { row, config })
    }
}

impl Digest {
    fn of(draft: &Draft) -> Self {
        let text = serde_json::to_vec(draft.config())
            .expect("a configuration has string keys only, so it has a JSON form");
        Self(hex(&Sha256::digest(text)))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
