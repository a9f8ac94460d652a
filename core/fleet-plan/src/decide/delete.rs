//! Deletion: only of what nothing stands on.

use super::{Work, limits};
use crate::intent::scope_below;
use crate::{DeleteVolume, Expect, KEEP_DELETED_MILLIS, Refusal};
use model::{Kind, Object, ObjectId, PublicTarget, Volume};

type Blockers<'a> = Box<dyn Iterator<Item = ObjectId> + 'a>;

impl Work<'_> {
    pub(super) fn delete(&mut self, id: ObjectId, expect: Expect) -> Result<Object, Refusal> {
        let object = self.expected(id, expect)?;
        if let Object::PublicIp(public) = &object {
            self.check_unattached(public)?;
        }
        if let Object::Volume(volume) = object {
            return self.delete_volume(DeleteVolume {
                volume: volume.id,
                expect,
                keep_millis: KEEP_DELETED_MILLIS,
            });
        }
        for (what, blockers) in self.standing_on(id) {
            let mut blockers = blockers.peekable();
            if blockers.peek().is_some() {
                return Err(self.in_use(id, "be deleted", what, blockers));
            }
        }
        if let Object::Host(host) = &object {
            self.forget_replicas_on(host.id);
        }
        Ok(self.remove(object))
    }

    pub(super) fn in_use(
        &self,
        id: ObjectId,
        action: &'static str,
        what: &'static str,
        blockers: impl Iterator<Item = ObjectId>,
    ) -> Refusal {
        let mut by: Vec<String> = blockers.map(|blocker| self.intent.path(blocker)).collect();
        let count = by.len();
        by.sort();
        by.truncate(limits::NAMED_BLOCKERS);
        Refusal::InUse {
            object: self.intent.describe(id),
            action,
            what,
            by,
            count,
        }
    }

    /// What stands on an object, by what it is called.
    fn standing_on(&self, id: ObjectId) -> Vec<(&'static str, Blockers<'_>)> {
        let intent = self.intent;
        let children = |what, kind| {
            let scope = scope_below(id, kind);
            let ids = scope.into_iter().flat_map(|scope| intent.children(scope));
            (what, Box::new(ids) as Blockers<'_>)
        };
        let public = |target| {
            let ids = intent
                .public_ips_of(target)
                .map(|public| ObjectId::PublicIp(public.id));
            ("public addresses", Box::new(ids) as Blockers<'_>)
        };
        match id {
            ObjectId::Account(_) => vec![
                children("VPCs", Kind::Vpc),
                children("public addresses", Kind::PublicIp),
                children("volumes", Kind::Volume),
            ],
            ObjectId::Vpc(_) => vec![
                children("subnets", Kind::Subnet),
                children("routers", Kind::Router),
            ],
            ObjectId::Subnet(subnet) => {
                let router = intent.router_of_subnet(subnet);
                let router = router.map(|router| ObjectId::Router(router.id));
                vec![
                    children("NICs", Kind::Nic),
                    ("legs of routers", Box::new(router.into_iter())),
                ]
            }
            ObjectId::Nic(nic) => vec![public(PublicTarget::Nic(nic))],
            ObjectId::Router(router) => vec![public(PublicTarget::Router(router))],
            ObjectId::External(network) => {
                vec![("users", Box::new(intent.users_of_external(network)))]
            }
            ObjectId::Host(host) => {
                let nics = intent.nics_of_host(host).map(|nic| ObjectId::Nic(nic.id));
                let routers = intent.routers_of_host(host);
                let routers = routers.chain(intent.routers_prepared_on(host));
                let routers = routers.map(|router| ObjectId::Router(router.id));
                let has = move |volume: &&Volume| volume.hosts_in_use().any(|other| other == host);
                let volumes = intent.volumes().filter(has);
                let volumes = volumes.map(|volume| ObjectId::Volume(volume.id));
                vec![
                    ("NICs", Box::new(nics)),
                    ("routers", Box::new(routers)),
                    ("volumes", Box::new(volumes)),
                ]
            }
            ObjectId::PublicIp(_) | ObjectId::Volume(_) => Vec::new(),
        }
    }
}
