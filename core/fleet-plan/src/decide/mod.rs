//! One command on one intent: what it comes to, or why not.

mod delete;
mod external;
mod host;
mod limits;
mod moving;
mod nic;
mod placement;
mod public_ip;
mod recovery;
mod router;
mod router_rules;
mod subnet;
mod volume;
mod vpc;

pub use placement::standbys_to_renew;

use crate::decision::{Fingerprint, REQUEST_KEPT_MILLIS};
use crate::intent::{PoolKey, Scope, missing};
use crate::pool::State;
use crate::{
    Command, Context, CreateAccount, Decision, Delta, Expect, Hold, Intent, Refusal, RequestRecord,
    Resource,
};
use model::{
    Account, AccountId, Change, Kind, Labels, Meta, Name, Object, ObjectId, Revision, UnixMillis,
};

pub(crate) fn decide(
    intent: &Intent,
    command: Command,
    context: &Context,
) -> Result<Decision, Refusal> {
    let fingerprint = Fingerprint::of(&command, context);
    if let Some(id) = &context.request
        && let Some(record) = intent.request(id)
        && record.until > context.now
    {
        if record.fingerprint != fingerprint {
            return Err(Refusal::RequestReused { id: id.clone() });
        }
        return Ok(Decision {
            base: intent.revision(),
            delta: Delta::default(),
            object: record.object.clone(),
        });
    }
    let mut work = Work::new(intent, context);
    let object = match command {
        Command::CreateAccount(create) => work.create_account(create),
        Command::CreateVpc(create) => work.create_vpc(create),
        Command::CreateSubnet(create) => work.create_subnet(create),
        Command::CreateNic(create) => work.create_nic(create),
        Command::MoveNic(asked) => work.move_nic(asked),
        Command::AdvanceMove { nic, expect, step } => work.advance_move(nic, expect, step),
        Command::CreateHost(create) => work.create_host(create),
        Command::CreateExternal(create) => work.create_external(create),
        Command::CreateRouter(create) => work.create_router(create),
        Command::UpdateRouter(update) => work.update_router(update),
        Command::CreatePublicIp(create) => work.create_public_ip(create),
        Command::AttachPublicIp(attach) => work.attach_public_ip(attach),
        Command::CreateVolume(create) => work.create_volume(create),
        Command::AttachVolume(asked) => work.attach_volume(asked),
        Command::ResizeVolume(asked) => work.resize_volume(asked),
        Command::SetReplicas(asked) => work.set_replicas(asked),
        Command::MoveReplica(asked) => work.move_replica(asked),
        Command::RecoverVolume(asked) => work.recover_volume(asked),
        Command::DeleteVolume(asked) => work.delete_volume(asked),
        Command::AdvanceVolume {
            volume,
            expect,
            step,
        } => work.advance_volume(volume, expect, step),
        Command::RestoreVolume { volume, expect } => work.restore_volume(volume, expect),
        Command::SetLabels {
            object,
            expect,
            labels,
        } => work.set_labels(object, expect, labels),
        Command::UpdateVpc(update) => work.update_vpc(update),
        Command::UpdateSubnet(update) => work.update_subnet(update),
        Command::UpdateHost(update) => work.update_host(update),
        Command::Delete { object, expect } => work.delete(object, expect),
    }?;
    Ok(work.finish(object, fingerprint))
}

/// A decision in the making.
struct Work<'a> {
    intent: &'a Intent,
    context: &'a Context,
    random: SplitMix64,
    changes: Vec<Change>,
    holds: Vec<Hold>,
}

impl<'a> Work<'a> {
    fn new(intent: &'a Intent, context: &'a Context) -> Self {
        Self {
            intent,
            context,
            random: SplitMix64(context.seed),
            changes: Vec::new(),
            holds: Vec::new(),
        }
    }

    fn finish(self, object: Object, fingerprint: Fingerprint) -> Decision {
        let revision = self.changes.last().map(|change| change.revision);
        let requests = revision
            .zip(self.context.request.clone())
            .map(|(revision, id)| RequestRecord {
                id,
                fingerprint,
                object: object.clone(),
                until: after(self.context.now, REQUEST_KEPT_MILLIS),
                revision,
            });
        Decision {
            base: self.intent.revision(),
            delta: Delta {
                at: self.context.now,
                changes: self.changes,
                holds: self.holds,
                requests: requests.into_iter().collect(),
            },
            object,
        }
    }

    fn create_account(&mut self, create: CreateAccount) -> Result<Object, Refusal> {
        self.check_name(Kind::Account, Scope::Accounts, &create.name)?;
        let id = self.draw(AccountId::from_random, ObjectId::Account);
        let account = Account {
            id,
            name: create.name,
            meta: self.new_meta(create.labels)?,
        };
        Ok(self.put(Object::Account(account)))
    }

    fn set_labels(
        &mut self,
        id: ObjectId,
        expect: Expect,
        labels: Labels,
    ) -> Result<Object, Refusal> {
        let mut object = self.expected(id, expect)?;
        self.relabel(&mut object, Some(labels))?;
        Ok(self.put_if_changed(object))
    }

    /// The object, if it is at the version meant.
    fn expected(&self, id: ObjectId, expect: Expect) -> Result<Object, Refusal> {
        let object = self.intent.get(id).ok_or_else(|| missing(id))?;
        let actual = object.meta().revision;
        match expect {
            Expect::Exactly(expected) if expected != actual => Err(Refusal::VersionConflict {
                object: self.intent.describe(id),
                expected,
                actual,
            }),
            _ => Ok(object),
        }
    }

    fn check_name(&self, kind: Kind, scope: Scope, name: &Name) -> Result<(), Refusal> {
        match self.intent.named(scope, name) {
            None => Ok(()),
            Some(id) => Err(Refusal::NameTaken {
                kind,
                path: self.intent.path(id),
            }),
        }
    }

    /// A fresh id.
    fn draw<T: Copy>(&mut self, of: fn(u64) -> T, any: fn(T) -> ObjectId) -> T {
        loop {
            let id = of(self.random.next());
            if self.intent.get(any(id)).is_none() {
                return id;
            }
        }
    }

    fn new_meta(&self, labels: Labels) -> Result<Meta, Refusal> {
        limits::check_labels(&labels)?;
        Ok(Meta {
            revision: self.next_revision(),
            created: self.context.now,
            labels,
        })
    }

    fn relabel(&self, object: &mut Object, labels: Option<Labels>) -> Result<(), Refusal> {
        if let Some(labels) = labels {
            limits::check_labels(&labels)?;
            object.meta_mut().labels = labels;
        }
        Ok(())
    }

    /// Records the object's new state, at the next revision. What it had and has no more is put on
    /// hold.
    fn put(&mut self, object: Object) -> Object {
        if let Some(old) = self.intent.get(object.id()) {
            let kept = self.intent.resources_of(&object);
            let had = self.intent.resources_of(&old).into_iter();
            self.hold(had.filter(|resource| !kept.contains(resource)).collect());
        }
        self.record(object, false)
    }

    fn put_if_changed(&mut self, object: Object) -> Object {
        if self.intent.get(object.id()).as_ref() == Some(&object) {
            return object;
        }
        self.put(object)
    }

    /// Records that the object is gone, and puts on hold what it had.
    fn remove(&mut self, object: Object) -> Object {
        self.hold(self.intent.resources_of(&object));
        self.record(object, true)
    }

    /// As of the next revision.
    fn hold(&mut self, freed: Vec<Resource>) {
        let revision = self.next_revision();
        let until = after(self.context.now, self.intent.cluster().hold_millis);
        self.holds.extend(freed.into_iter().map(|resource| Hold {
            resource,
            until,
            revision,
        }));
    }

    fn record(&mut self, mut object: Object, deleted: bool) -> Object {
        let revision = self.next_revision();
        object.meta_mut().revision = revision;
        self.changes.push(Change {
            revision,
            at: self.context.now,
            object: object.clone(),
            deleted,
        });
        object
    }

    fn next_revision(&self) -> Revision {
        Revision(self.intent.revision().0 + self.changes.len() as u64 + 1)
    }

    /// That `resource`, which the caller chose, is free.
    fn check_free(&self, resource: Resource) -> Result<(), Refusal> {
        let (key, number) = PoolKey::of(resource);
        let now = self.context.now;
        let state = self
            .intent
            .pool(key)
            .map_or(State::Free, |pool| pool.state(number, now));
        match state {
            State::Free => Ok(()),
            State::Owned(owner) => Err(Refusal::Taken {
                what: resource.to_string(),
                by: self.intent.describe(owner),
                automatic: true,
            }),
            State::Held(until) => Err(Refusal::Held {
                what: resource.to_string(),
                until,
                now,
            }),
        }
    }

    /// The lowest free number of a pool in `first..=last`.
    fn lowest_free(&self, key: PoolKey, first: u128, last: u128) -> Option<u128> {
        match self.intent.pool(key) {
            None => (first <= last).then_some(first),
            Some(pool) => pool.lowest_free(first..=last, self.context.now),
        }
    }

    fn exhausted(
        &self,
        key: PoolKey,
        (first, last): (u128, u128),
        what: String,
        remedy: &'static str,
    ) -> Refusal {
        Refusal::Exhausted {
            what,
            frees: self
                .intent
                .pool(key)
                .and_then(|pool| pool.next_release(first..=last)),
            now: self.context.now,
            remedy,
        }
    }
}

fn after(now: UnixMillis, millis: u64) -> UnixMillis {
    UnixMillis(now.0.saturating_add(millis))
}

/// Spreads the caller's 64 random bits over as many draws as a decision needs
/// (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}
