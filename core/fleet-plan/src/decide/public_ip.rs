//! Public addresses: where they come from, and what they stand for.

use super::router_rules::check_count;
use super::{Work, limits};
use crate::intent::{Scope, missing};
use crate::{AttachPublicIp, CreatePublicIp, Refusal};
use model::{
    Kind, NicId, Object, ObjectId, PublicIp, PublicIpId, PublicTarget, Router, RouterId,
    SourcePolicy,
};

impl Work<'_> {
    pub(super) fn create_public_ip(&mut self, create: CreatePublicIp) -> Result<Object, Refusal> {
        self.intent.require(ObjectId::Account(create.account))?;
        let scope = Scope::PublicIps(create.account);
        self.check_name(Kind::PublicIp, scope, &create.name)?;
        let network = self.outside(create.network)?;
        let users = self.intent.users_of_external(network.id);
        let held = users.filter(|user| user.kind() == Kind::PublicIp).count();
        if held >= limits::PUBLIC_IPS_PER_NETWORK {
            return Err(Refusal::TooMany {
                object: format!("external network {}", network.name),
                what: "public addresses",
                count: held + 1,
                most: limits::PUBLIC_IPS_PER_NETWORK,
            });
        }
        let address = match create.address {
            Some(address) => {
                self.check_public(network, address)?;
                address
            }
            None => self.free_public(network, create.v6)?,
        };
        let public = PublicIp {
            id: self.draw(PublicIpId::from_random, ObjectId::PublicIp),
            account: create.account,
            name: create.name,
            network: network.id,
            address,
            target: None,
            meta: self.new_meta(create.labels)?,
        };
        Ok(self.put(Object::PublicIp(public)))
    }

    pub(super) fn attach_public_ip(&mut self, asked: AttachPublicIp) -> Result<Object, Refusal> {
        let id = ObjectId::PublicIp(asked.public);
        let Object::PublicIp(mut public) = self.expected(id, asked.expect)? else {
            return Err(missing(id));
        };
        if public.target == asked.target {
            return Ok(Object::PublicIp(public));
        }
        match asked.target {
            None => self.check_detachable(&public)?,
            Some(target) => {
                self.check_unattached(&public)?;
                match target {
                    PublicTarget::Nic(nic) => self.check_nic_target(&public, nic)?,
                    PublicTarget::Router(router) => self.check_router_target(&public, router)?,
                }
            }
        }
        public.target = asked.target;
        Ok(self.put(Object::PublicIp(public)))
    }

    pub(super) fn check_unattached(&self, public: &PublicIp) -> Result<(), Refusal> {
        match public.target {
            None => Ok(()),
            Some(target) => Err(Refusal::PublicTaken {
                public: self.intent.path(ObjectId::PublicIp(public.id)),
                by: self.intent.describe(target_id(target)),
            }),
        }
    }

    fn check_nic_target(&self, public: &PublicIp, nic: NicId) -> Result<(), Refusal> {
        let id = ObjectId::Nic(nic);
        let nic = self.intent.nic(nic).ok_or_else(|| missing(id))?;
        let bad = |reason: String| self.unusable(public, id, reason);
        if self.intent.account_of(id) != Some(public.account) {
            return Err(bad(
                "it is another account's: make a public address in that account".to_owned(),
            ));
        }
        let same_family = |other: &&PublicIp| other.address.is_ipv4() == public.address.is_ipv4();
        if !nic
            .addresses
            .iter()
            .any(|a| a.is_ipv4() == public.address.is_ipv4())
        {
            return Err(bad(
                "it has no address of that family: use one of the other".to_owned(),
            ));
        }
        let target = PublicTarget::Nic(nic.id);
        if let Some(other) = self.intent.public_ips_of(target).find(same_family) {
            let other = self.intent.path(ObjectId::PublicIp(other.id));
            return Err(bad(format!(
                "it has public address {other} of that family already: detach that first (vpc publicip detach {other})"
            )));
        }
        let subnet = self.intent.path(ObjectId::Subnet(nic.subnet));
        match self.intent.router_of_subnet(nic.subnet) {
            None => Err(bad(format!(
                "subnet {subnet} has no router: make one with an uplink (vpc router create), or attach the subnet to one"
            ))),
            Some(router) => self.check_way_out(public, id, router),
        }
    }

    fn check_router_target(&self, public: &PublicIp, router: RouterId) -> Result<(), Refusal> {
        let id = ObjectId::Router(router);
        let router = self.intent.router(router).ok_or_else(|| missing(id))?;
        if self.intent.account_of(id) != Some(public.account) {
            let reason = "it is another account's: make a public address in that account";
            return Err(self.unusable(public, id, reason.to_owned()));
        }
        let own = self
            .intent
            .public_ips_of(PublicTarget::Router(router.id))
            .count();
        let path = self.intent.path(id);
        check_count(
            &path,
            "public addresses of its own",
            own + 1,
            limits::OWN_PER_ROUTER,
        )?;
        self.check_way_out(public, id, router)
    }

    fn check_way_out(
        &self,
        public: &PublicIp,
        target: ObjectId,
        router: &Router,
    ) -> Result<(), Refusal> {
        let network = self.intent.path(ObjectId::External(public.network));
        let path = self.intent.path(ObjectId::Router(router.id));
        if router.uplink.as_ref().map(|uplink| uplink.network) == Some(public.network) {
            return Ok(());
        }
        Err(self.unusable(
            public,
            target,
            format!(
                "router {path} has no uplink in external network {network}: give it one (vpc router uplink {path} {network})"
            ),
        ))
    }

    /// A router that still needs an address of its own keeps it.
    fn check_detachable(&self, public: &PublicIp) -> Result<(), Refusal> {
        let Some(PublicTarget::Router(id)) = public.target else {
            return Ok(());
        };
        let Some(router) = self.intent.router(id) else {
            return Ok(());
        };
        let needs = |reason: String| Refusal::RouterNeeds {
            router: self.intent.path(ObjectId::Router(id)),
            action: format!("lose public address {}", public.address),
            reason,
        };
        if let Some(forward) = router
            .forwards
            .iter()
            .find(|f| f.public == Some(public.address))
        {
            return Err(needs(format!(
                "port forward {} uses it: delete that first (vpc nat forward delete)",
                super::router_rules::forward_text(forward)
            )));
        }
        let own = self.intent.public_ips_of(PublicTarget::Router(id)).count();
        if router.source == SourcePolicy::Addresses && own == 1 {
            return Err(needs(
                "its source translation has no other: change that first (vpc nat source)"
                    .to_owned(),
            ));
        }
        Ok(())
    }

    fn unusable(&self, public: &PublicIp, target: ObjectId, reason: String) -> Refusal {
        Refusal::PublicUnusable {
            public: self.intent.path(ObjectId::PublicIp(public.id)),
            target: self.intent.describe(target),
            reason,
        }
    }
}

const fn target_id(target: PublicTarget) -> ObjectId {
    match target {
        PublicTarget::Nic(nic) => ObjectId::Nic(nic),
        PublicTarget::Router(router) => ObjectId::Router(router),
    }
}
