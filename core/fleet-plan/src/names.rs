//! Names: what users type for an object, and what they read.

use crate::intent::{Scope, scope_below};
use crate::{Intent, Refusal};
use model::{Account, AccountId, Host, Kind, Name, ObjectId};

impl Intent {
    /// An account by name.
    pub fn account_named(&self, name: &Name) -> Option<&Account> {
        match self.named(Scope::Accounts, name)? {
            ObjectId::Account(id) => self.account(id),
            _ => None,
        }
    }

    /// A host by name.
    pub fn host_named(&self, name: &Name) -> Option<&Host> {
        match self.named(Scope::Hosts, name)? {
            ObjectId::Host(id) => self.host(id),
            _ => None,
        }
    }

    /// What a user typed for an object of `kind`: its id, or its path. Paths are relative to
    /// `home`, the caller's account: `blue/web/a1`; or whole: `default/blue/web/a1`. Accounts, hosts
    /// and external networks have plain names. An id comes before a name that looks like it, because scripts use
    /// ids and nobody can choose one.
    pub fn resolve(
        &self,
        kind: Kind,
        home: Option<AccountId>,
        text: &str,
    ) -> Result<ObjectId, Refusal> {
        self.by_id(kind, text)
            .or_else(|| self.by_path(kind, home, text))
            .ok_or_else(|| Refusal::NotFound {
                kind,
                what: text.chars().take(260).collect(),
            })
    }

    /// How people call an object: `default/blue/web/a1`, or a host's name. An object that is gone
    /// is called by its id.
    pub fn path(&self, id: ObjectId) -> String {
        let below = |parent: ObjectId, name: &Name| format!("{}/{name}", self.path(parent));
        match id {
            ObjectId::Account(id) => self.account(id).map(|o| o.name.to_string()),
            ObjectId::Host(id) => self.host(id).map(|o| o.name.to_string()),
            ObjectId::Vpc(id) => self
                .vpc(id)
                .map(|o| below(ObjectId::Account(o.account), &o.name)),
            ObjectId::Subnet(id) => self
                .subnet(id)
                .map(|o| below(ObjectId::Vpc(o.vpc), &o.name)),
            ObjectId::Nic(id) => self
                .nic(id)
                .map(|o| below(ObjectId::Subnet(o.subnet), &o.name)),
            ObjectId::Router(id) => self
                .router(id)
                .map(|o| below(ObjectId::Vpc(o.vpc), &o.name)),
            ObjectId::External(id) => self.external(id).map(|o| o.name.to_string()),
            ObjectId::PublicIp(id) => self
                .public_ip(id)
                .map(|o| below(ObjectId::Account(o.account), &o.name)),
            ObjectId::Volume(id) => self
                .volume(id)
                .map(|o| below(ObjectId::Account(o.account), &o.name)),
        }
        .unwrap_or_else(|| id.id_text())
    }

    /// Kind and path: `vpc default/blue`.
    pub fn describe(&self, id: ObjectId) -> String {
        format!("{} {}", id.kind(), self.path(id))
    }

    /// The account that owns an object; none for hosts, external networks and what is gone.
    pub fn account_of(&self, id: ObjectId) -> Option<AccountId> {
        match id {
            ObjectId::Account(id) => Some(id),
            ObjectId::Vpc(id) => self.vpc(id).map(|vpc| vpc.account),
            ObjectId::Subnet(id) => self.account_of(ObjectId::Vpc(self.subnet(id)?.vpc)),
            ObjectId::Nic(id) => self.account_of(ObjectId::Subnet(self.nic(id)?.subnet)),
            ObjectId::Router(id) => self.account_of(ObjectId::Vpc(self.router(id)?.vpc)),
            ObjectId::PublicIp(id) => self.public_ip(id).map(|public| public.account),
            ObjectId::Volume(id) => self.volume(id).map(|volume| volume.account),
            ObjectId::Host(_) | ObjectId::External(_) => None,
        }
    }

    fn by_id(&self, kind: Kind, text: &str) -> Option<ObjectId> {
        let id = match kind {
            Kind::Account => ObjectId::Account(text.parse().ok()?),
            Kind::Vpc => ObjectId::Vpc(text.parse().ok()?),
            Kind::Subnet => ObjectId::Subnet(text.parse().ok()?),
            Kind::Nic => ObjectId::Nic(text.parse().ok()?),
            Kind::Host => ObjectId::Host(text.parse().ok()?),
            Kind::Router => ObjectId::Router(text.parse().ok()?),
            Kind::External => ObjectId::External(text.parse().ok()?),
            Kind::PublicIp => ObjectId::PublicIp(text.parse().ok()?),
            Kind::Volume => ObjectId::Volume(text.parse().ok()?),
        };
        self.get(id).map(|_| id)
    }

    fn by_path(&self, kind: Kind, home: Option<AccountId>, text: &str) -> Option<ObjectId> {
        let names: Vec<Name> = text
            .split('/')
            .map(|part| part.parse().ok())
            .collect::<Option<_>>()?;
        // The kinds from the account down to the object's own.
        let kinds: &[Kind] = match kind {
            Kind::Host => return self.plainly_named(Scope::Hosts, &names),
            Kind::Account => return self.plainly_named(Scope::Accounts, &names),
            Kind::External => return self.plainly_named(Scope::Externals, &names),
            Kind::Vpc => &[Kind::Vpc],
            Kind::PublicIp => &[Kind::PublicIp],
            Kind::Volume => &[Kind::Volume],
            Kind::Subnet => &[Kind::Vpc, Kind::Subnet],
            Kind::Router => &[Kind::Vpc, Kind::Router],
            Kind::Nic => &[Kind::Vpc, Kind::Subnet, Kind::Nic],
        };
        let (account, rest) = match names.len() {
            n if n == kinds.len() => (home?, names.as_slice()),
            n if n == kinds.len() + 1 => (self.account_named(&names[0])?.id, &names[1..]),
            _ => return None,
        };
        let mut at = ObjectId::Account(account);
        for (name, kind) in rest.iter().zip(kinds) {
            at = self.named(scope_below(at, *kind)?, name)?;
        }
        Some(at)
    }

    fn plainly_named(&self, scope: Scope, names: &[Name]) -> Option<ObjectId> {
        match names {
            [name] => self.named(scope, name),
            _ => None,
        }
    }
}
