//! Deletion: only of what nothing stands on.

use super::{Work, limits};
use crate::intent::scope_below;
use crate::{Expect, Refusal};
use model::{Object, ObjectId};

impl Work<'_> {
    pub(super) fn delete(&mut self, id: ObjectId, expect: Expect) -> Result<Object, Refusal> {
        let object = self.expected(id, expect)?;
        let what = match id {
            ObjectId::Account(_) => "VPCs",
            ObjectId::Vpc(_) => "subnets",
            ObjectId::Subnet(_) | ObjectId::Host(_) => "NICs",
            ObjectId::Nic(_) => "",
        };
        if self.standing_on(id).next().is_some() {
            return Err(self.in_use(id, "be deleted", what, self.standing_on(id)));
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

    fn standing_on(&self, id: ObjectId) -> Box<dyn Iterator<Item = ObjectId> + '_> {
        match (id, scope_below(id)) {
            (ObjectId::Host(host), _) => Box::new(
                self.intent
                    .nics_of_host(host)
                    .map(|nic| ObjectId::Nic(nic.id)),
            ),
            (_, Some(scope)) => Box::new(self.intent.children(scope)),
            (_, None) => Box::new(std::iter::empty()),
        }
    }
}
