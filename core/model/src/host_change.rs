//! What differs between two generations of a host's configuration: a host with many VPCs is told of a
//! change in what the change costs, not in what it has.

use crate::{Generation, HostConfig, RouterId, SubnetId, VpcId};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// How to make a configuration of an earlier one of the same host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostChange {
    /// The generation that it is a change of.
    pub base: Generation,
    /// The newer configuration, but of its stacks, routers, members and routers to stand by for only those
    /// that the earlier one does not have, or has otherwise.
    pub changed: HostConfig,
    /// Stacks that the newer one does not have.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub gone_stacks: BTreeSet<VpcId>,
    /// Routers that it does not have.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub gone_routers: BTreeSet<RouterId>,
    /// Subnets with members that it does not have.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub gone_members: BTreeSet<SubnetId>,
    /// Routers to stand by for that it does not have.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub gone_standby_for: BTreeSet<RouterId>,
}

/// A change that does not lead on from a configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a change of generation {base} was told to a host that has {}", text_of(*held))]
pub struct NotTheBase {
    /// What it is a change of.
    pub base: Generation,
    /// What there is; none if there is nothing.
    pub held: Option<Generation>,
}

fn text_of(held: Option<Generation>) -> String {
    held.map_or_else(
        || "none".to_owned(),
        |generation| format!("generation {generation}"),
    )
}

impl HostChange {
    /// From `old` to `new`, which are of one host. Parts that both share are not looked into.
    pub fn between(old: &HostConfig, new: &HostConfig) -> Self {
        let (stacks, gone_stacks) = news(&old.stacks, &new.stacks, |stack| stack.vpc);
        let (routers, gone_routers) = news(&old.routers, &new.routers, |router| router.id);
        let (members, gone_members) = map_news(&old.members, &new.members);
        let (standby_for, gone_standby_for) = map_news(&old.standby_for, &new.standby_for);
        Self {
            base: old.generation,
            changed: HostConfig {
                host: new.host,
                generation: new.generation,
                underlay: new.underlay,
                bgp: new.bgp.clone(),
                stacks,
                routers,
                voting: new.voting.clone(),
                members,
                standby_for,
                storage: new.storage.clone(),
            },
            gone_stacks,
            gone_routers,
            gone_members,
            gone_standby_for,
        }
    }

    /// The newer configuration. What did not change is shared with `old`.
    pub fn apply(self, old: Option<&HostConfig>) -> Result<HostConfig, NotTheBase> {
        let Some(old) = old.filter(|old| old.generation == self.base) else {
            return Err(NotTheBase {
                base: self.base,
                held: old.map(|old| old.generation),
            });
        };
        let changed = self.changed;
        Ok(HostConfig {
            stacks: merged(&old.stacks, changed.stacks, &self.gone_stacks, |s| s.vpc),
            routers: merged(&old.routers, changed.routers, &self.gone_routers, |r| r.id),
            members: map_merged(&old.members, changed.members, &self.gone_members),
            standby_for: map_merged(
                &old.standby_for,
                changed.standby_for,
                &self.gone_standby_for,
            ),
            ..changed
        })
    }
}

/// What `new` has that `old` has not, or otherwise; and what only `old` has.
fn news<T: Eq, K: Ord>(
    old: &[Arc<T>],
    new: &[Arc<T>],
    key: impl Fn(&T) -> K,
) -> (Vec<Arc<T>>, BTreeSet<K>) {
    let mut before: BTreeMap<K, &Arc<T>> = old.iter().map(|part| (key(part), part)).collect();
    let mut news = Vec::new();
    for part in new {
        // The same part in both is found the same by its place, without a look into it.
        if before.remove(&key(part)) != Some(part) {
            news.push(Arc::clone(part));
        }
    }
    (news, before.into_keys().collect())
}

fn merged<T, K: Ord>(
    old: &[Arc<T>],
    changed: Vec<Arc<T>>,
    gone: &BTreeSet<K>,
    key: impl Fn(&T) -> K,
) -> Vec<Arc<T>> {
    let mut parts: BTreeMap<K, Arc<T>> = old
        .iter()
        .map(|part| (key(part), Arc::clone(part)))
        .collect();
    parts.retain(|key, _| !gone.contains(key));
    parts.extend(changed.into_iter().map(|part| (key(&part), part)));
    parts.into_values().collect()
}

fn map_news<K: Ord + Copy, V: Eq + Clone>(
    old: &BTreeMap<K, V>,
    new: &BTreeMap<K, V>,
) -> (BTreeMap<K, V>, BTreeSet<K>) {
    let other = new
        .iter()
        .filter(|(key, value)| old.get(key) != Some(value));
    let gone = old.keys().filter(|key| !new.contains_key(key));
    (
        other.map(|(key, value)| (*key, value.clone())).collect(),
        gone.copied().collect(),
    )
}

fn map_merged<K: Ord + Copy, V: Clone>(
    old: &BTreeMap<K, V>,
    changed: BTreeMap<K, V>,
    gone: &BTreeSet<K>,
) -> BTreeMap<K, V> {
    let mut map = old.clone();
    map.retain(|key, _| !gone.contains(key));
    map.extend(changed);
    map
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Asn, BgpConfig, Encoding, HostId, Mtu, RouterConfig, Stack, Underlay, Vni};
    use proptest::prelude::*;
    use std::net::IpAddr;

    fn stack(id: u64, vni: u32) -> Arc<Stack> {
        Arc::new(Stack {
            vpc: VpcId::from_random(id),
            name: format!("v{id}"),
            vni: Vni::new(vni).unwrap(),
            encoding: Encoding::VlanBased,
            unknown_neighbours: Default::default(),
            segments: Vec::new(),
            ports: Vec::new(),
        })
    }

    fn router(id: u64, epoch: u64) -> Arc<RouterConfig> {
        Arc::new(RouterConfig {
            id: RouterId::from_random(id),
            vpc: VpcId::from_random(id),
            name: format!("v{id}/r"),
            legs: Vec::new(),
            uplink: None,
            routes: Vec::new(),
            nat: Default::default(),
            names: Default::default(),
            transit: None,
            epoch,
            anycast: false,
            prepared: false,
            inner: Vec::new(),
            standby: None,
        })
    }

    fn config() -> impl Strategy<Value = HostConfig> {
        type Few<T> = BTreeMap<u64, T>;
        fn few<T: std::fmt::Debug>(
            value: impl Strategy<Value = T>,
        ) -> impl Strategy<Value = Few<T>> {
            proptest::collection::btree_map(0_u64..5, value, 0..5)
        }
        let parts = (few(1_u32..3), few(1_u64..3), few(1_u8..3), few(1_u8..3));
        (any::<bool>(), parts).prop_map(|(large, (stacks, routers, members, standby))| HostConfig {
            host: HostId::from_random(1),
            generation: Generation(1),
            underlay: Underlay {
                address: [100, 64, 0, 1].into(),
                mtu: Mtu::new(if large { 9000 } else { 1500 }).unwrap(),
            },
            bgp: BgpConfig {
                asn: Asn::new(65_000).unwrap(),
                reflectors: Vec::new(),
                speaker: Default::default(),
            },
            stacks: stacks.into_iter().map(|(id, vni)| stack(id, vni)).collect(),
            routers: routers.into_iter().map(|(id, e)| router(id, e)).collect(),
            voting: None,
            members: members
                .into_iter()
                .map(|(id, last)| {
                    let vtep = IpAddr::from([100, 64, 0, last]);
                    (SubnetId::from_random(id), BTreeSet::from([vtep]))
                })
                .collect(),
            standby_for: standby
                .into_iter()
                .map(|(id, name)| (RouterId::from_random(id), name.to_string()))
                .collect(),
            storage: Default::default(),
        })
    }

    proptest! {
        #[test]
        fn a_change_leads_from_one_to_the_other(old in config(), new in config()) {
            let mut new = new;
            new.generation = Generation(2);
            let change = HostChange::between(&old, &new);
            let told = change.changed.stacks.len() + change.changed.routers.len();
            let made = change.clone().apply(Some(&old)).unwrap();
            prop_assert_eq!(&made, &new);
            // What is as before is not told again, and is the same part afterwards.
            let mut shared = 0;
            for stack in &made.stacks {
                shared += usize::from(old.stacks.iter().any(|other| Arc::ptr_eq(other, stack)));
                prop_assert!(
                    !old.stacks.contains(stack)
                        || old.stacks.iter().any(|other| Arc::ptr_eq(other, stack))
                );
            }
            let routers = made.routers.iter();
            shared += routers
                .filter(|router| old.routers.iter().any(|other| Arc::ptr_eq(other, router)))
                .count();
            prop_assert_eq!(told + shared, new.stacks.len() + new.routers.len());

            let none = change.clone().apply(None).unwrap_err().to_string();
            prop_assert!(none.ends_with("a host that has none"), "{}", none);
            prop_assert!(change.apply(Some(&new)).is_err());
        }
    }
}
