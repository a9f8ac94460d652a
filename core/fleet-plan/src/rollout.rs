//! Which configuration each host has, and when it needs a new generation of it.

use crate::decision::hex;
use crate::plan::plan_again;
use crate::voting::voting;
use crate::{Delta, Draft, Electorate, Intent, plan};
use model::{
    Generation, HostConfig, HostId, Object, Reflector, Role, Router, RouterId, SubnetId, Vpc, VpcId,
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
    planned: BTreeMap<HostId, Planned>,
    stale: BTreeMap<HostId, Extent>,
    /// Who is in a subnet, as its hosts were planned or are about to be; of an absent one it is not known.
    seated: BTreeMap<SubnetId, BTreeSet<IpAddr>>,
}

/// A host's newest configuration, with the digests of its parts.
#[derive(Debug)]
struct Planned {
    config: Arc<HostConfig>,
    digests: PartDigests,
}

/// How much of a host is to be planned anew.
#[derive(Debug)]
enum Extent {
    /// What it has of some VPCs, and what is of no VPC.
    Vpcs(BTreeSet<VpcId>),
    Whole,
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

/// SHA-256 over a configuration without its generation, in hex.
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
            planned: BTreeMap::new(),
            stale: BTreeMap::new(),
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
                Object::Vpc(vpc) => self.mark(intent.hosts_of_vpc(vpc.id), vpc.id),
                Object::Subnet(subnet) => {
                    self.mark(intent.hosts_of_subnet(subnet.id), subnet.vpc);
                    self.note_members(intent, subnet.id, Some(subnet.vpc));
                    self.note_routers(intent, subnet.vpc);
                }
                Object::Nic(nic) => {
                    let other = nic.moving.as_ref().map(|m| m.other.host);
                    let hosts = std::iter::once(nic.placement.host).chain(other);
                    // Gone since: what was made of it is looked for everywhere.
                    let vpc = intent.subnet(nic.subnet).map(|subnet| subnet.vpc);
                    match vpc {
                        Some(vpc) => self.mark(hosts, vpc),
                        None => self.mark_whole(hosts),
                    }
                    self.note_members(intent, nic.subnet, vpc);
                    if let Some(vpc) = vpc {
                        self.note_routers(intent, vpc);
                    }
                }
                Object::Host(host) => {
                    self.mark_whole([host.id]);
                    // Route hosts know each other.
                    self.note_voters(intent);
                }
                Object::Router(router) => self.note_router(intent, router),
                Object::External(network) => {
                    let routers = intent.routers_of_external(network.id);
                    self.mark_whole(routers.flat_map(Router::hosts));
                }
                Object::Volume(volume) => {
                    self.mark_rest(volume.hosts());
                    // Where it was attached before.
                    let has_it = |planned: &Planned| {
                        let storage = &planned.config.storage;
                        let mut volumes = storage.volumes.iter();
                        volumes.any(|other| other.id == volume.id)
                            || storage.deleted.contains(&volume.id)
                    };
                    let old = self.planned.iter().filter(|(_, planned)| has_it(planned));
                    let old: Vec<HostId> = old.map(|(host, _)| *host).collect();
                    self.mark_rest(old);
                }
                // Whatever it stood for before or stands for now: it is by one of these.
                Object::PublicIp(public) => {
                    let routers = intent.routers_of_external(public.network);
                    self.mark_whole(routers.flat_map(Router::hosts));
                }
            }
        }
    }

    /// What hosts have of a VPC is to be planned anew.
    fn mark(&mut self, hosts: impl IntoIterator<Item = HostId>, vpc: VpcId) {
        for host in hosts {
            self.mark_rest([host]);
            if let Some(Extent::Vpcs(vpcs)) = self.stale.get_mut(&host) {
                vpcs.insert(vpc);
            }
        }
    }

    /// What they have of no VPC is to be planned anew: it is with every host, whatever it has anew.
    fn mark_rest(&mut self, hosts: impl IntoIterator<Item = HostId>) {
        for host in hosts {
            let none = || Extent::Vpcs(BTreeSet::new());
            self.stale.entry(host).or_insert_with(none);
        }
    }

    fn mark_whole(&mut self, hosts: impl IntoIterator<Item = HostId>) {
        let whole = hosts.into_iter().map(|host| (host, Extent::Whole));
        self.stale.extend(whole);
    }

    fn note_router(&mut self, intent: &Intent, router: &Router) {
        let vpc = router.vpc;
        self.mark(router.hosts().chain(router.standby.host()), vpc);
        // Hosts with NICs know the gateways of their subnets, and where the legs are.
        self.mark(intent.hosts_of_vpc(vpc), vpc);
        for subnet in intent.subnets_of(vpc) {
            self.note_members(intent, subnet.id, Some(vpc));
        }
        // Where it was before.
        let has_it = |planned: &Planned| {
            let mut runs = planned.config.routers.iter();
            runs.any(|other| other.id == router.id)
                || planned.config.standby_for.contains_key(&router.id)
        };
        let old = self.planned.iter().filter(|(_, planned)| has_it(planned));
        let old: Vec<HostId> = old.map(|(host, _)| *host).collect();
        self.mark(old, vpc);
    }

    /// All hosts of a subnet know who else is there: they are marked if that changed, which is when a
    /// host gets its first seat or loses its last, not with every NIC. `vpc` is whose it is, if it is
    /// there.
    fn note_members(&mut self, intent: &Intent, subnet: SubnetId, vpc: Option<VpcId>) {
        let now = intent.vteps_of_subnet(subnet);
        if self.seated.get(&subnet) == Some(&now) {
            return;
        }
        match vpc {
            Some(vpc) => self.mark(intent.hosts_of_subnet(subnet), vpc),
            None => self.mark_whole(intent.hosts_of_subnet(subnet)),
        }
        match now.is_empty() {
            true => self.seated.remove(&subnet),
            false => self.seated.insert(subnet, now),
        };
    }

    /// Routers tell the names of all NICs of their VPC.
    fn note_routers(&mut self, intent: &Intent, vpc: VpcId) {
        self.mark(intent.routers_of_vpc(vpc).flat_map(Router::hosts), vpc);
        // So do gateways, which are where the NICs are.
        if intent.vpc(vpc).and_then(Vpc::gateway_mac).is_some() {
            self.mark(intent.hosts_of_vpc(vpc), vpc);
        }
    }

    /// Who votes is of no VPC.
    fn note_voters(&mut self, intent: &Intent) {
        let route = intent.hosts().filter(|h| h.roles.contains(&Role::Route));
        self.mark_rest(route.map(|host| host.id));
    }

    /// Marks all hosts: `intent` was loaded afresh.
    pub fn note_all(&mut self, intent: &Intent) {
        let planned: Vec<HostId> = self.planned.keys().copied().collect();
        self.mark_whole(planned);
        self.mark_whole(intent.hosts().map(|host| host.id));
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
            self.note_voters(intent);
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
            self.planned.remove(&host);
            self.issued.insert(host, row);
            self.mark_whole([host]);
        }
    }

    /// Plans the marked hosts and returns a new generation for each whose configuration differs
    /// from its last.
    pub fn poll(&mut self, intent: &Intent) -> Vec<Issued> {
        std::mem::take(&mut self.stale)
            .into_iter()
            .filter_map(|(host, extent)| self.replan(intent, host, extent))
            .collect()
    }

    /// A host's newest configuration.
    pub fn config(&self, host: HostId) -> Option<&Arc<HostConfig>> {
        Some(&self.planned.get(&host)?.config)
    }

    fn replan(&mut self, intent: &Intent, host: HostId, extent: Extent) -> Option<Issued> {
        let last = self.planned.get(&host);
        let reflectors = &self.reflectors;
        let draft = match (extent, last) {
            (Extent::Vpcs(vpcs), Some(last)) => {
                plan_again(intent, host, reflectors, &last.config, &vpcs)
            }
            _ => plan(intent, host, reflectors),
        };
        let Some(draft) = draft else {
            self.planned.remove(&host);
            self.issued.remove(&host);
            return None;
        };
        let mut draft = draft.with_voting(voting(intent, host, &self.electorate));
        if let Some(last) = last {
            draft.share_with(&last.config);
        }
        if last.is_some_and(|last| draft.says(&last.config)) {
            return None;
        }
        let digests = PartDigests::of(draft.config(), last);
        let digest = Digest::of(&draft, &digests);
        let issued = self.issued.get(&host);
        let (generation, known) = match issued {
            // As before the restart.
            Some(issued) if issued.digest == digest => (issued.generation, true),
            Some(issued) => (Generation(issued.generation.0 + 1), false),
            None => (Generation(1), false),
        };
        let config = Arc::new(draft.issue(generation));
        let planned = Planned {
            config: Arc::clone(&config),
            digests,
        };
        self.planned.insert(host, planned);
        if known {
            return None;
        }
        let row = IssuedRow {
            host,
            generation,
            digest,
        };
        self.issued.insert(host, row.clone());
        Some(Issued { row, config })
    }
}

/// SHA-256 of each stack and router of a configuration, in their order.
#[derive(Debug, Default)]
struct PartDigests {
    stacks: BTreeMap<VpcId, [u8; 32]>,
    routers: BTreeMap<RouterId, [u8; 32]>,
}

impl PartDigests {
    /// Those of parts that `last` shares are known.
    fn of(config: &HostConfig, last: Option<&Planned>) -> Self {
        fn each<T: Serialize, K: Ord>(
            parts: &[Arc<T>],
            (before, known): (&[Arc<T>], &BTreeMap<K, [u8; 32]>),
            key: impl Fn(&T) -> K,
        ) -> BTreeMap<K, [u8; 32]> {
            let held = before.iter();
            let held = held.filter_map(|part| Some((Arc::as_ptr(part), known.get(&key(part))?)));
            let held: BTreeMap<*const T, &[u8; 32]> = held.collect();
            let digest = |part: &Arc<T>| match held.get(&Arc::as_ptr(part)) {
                Some(digest) => **digest,
                None => sha256(part.as_ref()),
            };
            let parts = parts.iter();
            parts.map(|part| (key(part), digest(part))).collect()
        }
        let none = Self::default();
        let (stacks, routers, digests) = match last {
            Some(last) => (
                &last.config.stacks[..],
                &last.config.routers[..],
                &last.digests,
            ),
            None => (&[][..], &[][..], &none),
        };
        Self {
            stacks: each(&config.stacks, (stacks, &digests.stacks), |s| s.vpc),
            routers: each(&config.routers, (routers, &digests.routers), |r| r.id),
        }
    }
}

/// Of a value's JSON.
fn sha256<T: Serialize>(value: &T) -> [u8; 32] {
    let text = serde_json::to_vec(value)
        .expect("a part of a configuration has string keys only, so it has a JSON form");
    Sha256::digest(text).into()
}

impl Digest {
    /// Of what is of no VPC, and of the digests of the rest.
    fn of(draft: &Draft, parts: &PartDigests) -> Self {
        let rest = HostConfig {
            stacks: Vec::new(),
            routers: Vec::new(),
            ..draft.config().clone()
        };
        let mut whole = Sha256::new();
        whole.update(sha256(&rest));
        for (count, digests) in [
            (parts.stacks.len(), parts.stacks.values().collect()),
            (
                parts.routers.len(),
                parts.routers.values().collect::<Vec<_>>(),
            ),
        ] {
            whole.update(u64::try_from(count).unwrap_or(u64::MAX).to_be_bytes());
            for digest in digests {
                whole.update(digest);
            }
        }
        Self(hex(&whole.finalize()))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
