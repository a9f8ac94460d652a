//! Lists of objects: filtered, in order of id, a page at a time.

use crate::Intent;
use model::{AccountId, HostId, Kind, Labels, Name, Object, ObjectId, SubnetId, VpcId};

/// Which objects to list. Everything that is set must hold; what makes no sense for a kind (the
/// host of a VPC) excludes all of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Filter {
    /// Only what this account owns.
    pub account: Option<AccountId>,
    /// Only what this VPC owns.
    pub vpc: Option<VpcId>,
    /// Only what this subnet owns.
    pub subnet: Option<SubnetId>,
    /// Only NICs and routers on this host.
    pub host: Option<HostId>,
    /// Only objects of this name.
    pub name: Option<Name>,
    /// Only objects that have all of these labels.
    pub labels: Labels,
}

/// Part of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// In order of id.
    pub items: Vec<Object>,
    /// Ask for what comes after this one; none if that was all.
    pub next: Option<ObjectId>,
}

impl Intent {
    /// At most `limit` objects of `kind` that `filter` lets through, with ids after `after`.
    /// A page token is the id of the last object seen, so pages stay right while objects come
    /// and go: nothing that is there all along is missed or shown twice.
    pub fn list(&self, kind: Kind, filter: &Filter, after: Option<ObjectId>, limit: usize) -> Page {
        let mut items = Vec::new();
        let mut next = None;
        for object in self.objects_after(kind, after) {
            if !self.matches(filter, &object) {
                continue;
            }
            if items.len() == limit.max(1) {
                next = items.last().map(Object::id);
                break;
            }
            items.push(object);
        }
        Page { items, next }
    }

    /// True if `filter` lets `object` through. Watches use it too, on changes. When the subnet of
    /// a deleted NIC is gone as well, nobody knows its VPC and account any more: filters on those
    /// then exclude it.
    pub fn matches(&self, filter: &Filter, object: &Object) -> bool {
        let owners = Owners::of(self, object);
        fn is<T: PartialEq>(wanted: &Option<T>, actual: Option<T>) -> bool {
            wanted.is_none() || *wanted == actual
        }
        is(&filter.account, owners.account)
            && is(&filter.vpc, owners.vpc)
            && is(&filter.subnet, owners.subnet)
            && is(&filter.host, owners.host)
            && filter
                .name
                .as_ref()
                .is_none_or(|name| name == object.name())
            && filter
                .labels
                .iter()
                .all(|(key, value)| object.meta().labels.get(key) == Some(value))
    }
}

#[derive(Default)]
struct Owners {
    account: Option<AccountId>,
    vpc: Option<VpcId>,
    subnet: Option<SubnetId>,
    host: Option<HostId>,
}

impl Owners {
    fn of(intent: &Intent, object: &Object) -> Self {
        match object {
            Object::Account(account) => Self {
                account: Some(account.id),
                ..Self::default()
            },
            Object::Vpc(vpc) => Self {
                account: Some(vpc.account),
                vpc: Some(vpc.id),
                ..Self::default()
            },
            Object::Subnet(subnet) => Self {
                subnet: Some(subnet.id),
                vpc: Some(subnet.vpc),
                account: intent.vpc(subnet.vpc).map(|vpc| vpc.account),
                host: None,
            },
            Object::Nic(nic) => {
                let vpc = intent.subnet(nic.subnet).map(|subnet| subnet.vpc);
                Self {
                    subnet: Some(nic.subnet),
                    vpc,
                    account: vpc.and_then(|id| intent.vpc(id)).map(|vpc| vpc.account),
                    host: Some(nic.placement.host),
                }
            }
            Object::Host(host) => Self {
                host: Some(host.id),
                ..Self::default()
            },
            Object::Router(router) => Self {
                vpc: Some(router.vpc),
                account: intent.vpc(router.vpc).map(|vpc| vpc.account),
                host: Some(router.placement.host),
                subnet: None,
            },
            Object::External(_) => Self::default(),
            Object::PublicIp(public) => Self {
                account: Some(public.account),
                ..Self::default()
            },
            Object::Volume(volume) => Self {
                account: Some(volume.account),
                host: volume.attached.first().map(|attached| attached.host),
                ..Self::default()
            },
        }
    }
}
