//! Hosts: enrolment, roles, draining.

use super::Work;
use crate::intent::Scope;
use crate::{CreateHost, Refusal, UpdateHost};
use model::{
    Encapsulation, Encoding, Host, HostId, Kind, Name, Object, ObjectId, Role, Routing,
    SpeakerKind, SubnetId, Underlay, VpcId,
};
use std::collections::BTreeSet;
use std::net::IpAddr;

impl Work<'_> {
    pub(super) fn create_host(&mut self, create: CreateHost) -> Result<Object, Refusal> {
        self.check_name(Kind::Host, Scope::Hosts, &create.name)?;
        check_roles(&create.name, &create.roles)?;
        self.check_underlay(&create.name, create.underlay)?;
        let host = Host {
            id: self.draw(HostId::from_random, ObjectId::Host),
            name: create.name,
            roles: create.roles,
            underlay: create.underlay,
            zone: create.zone,
            draining: false,
            speaker: create.speaker,
            meta: self.new_meta(create.labels)?,
        };
        Ok(self.put(Object::Host(host)))
    }

    pub(super) fn update_host(&mut self, update: UpdateHost) -> Result<Object, Refusal> {
        let id = ObjectId::Host(update.host);
        let mut object = self.expected(id, update.expect)?;
        self.relabel(&mut object, update.labels)?;
        if let Object::Host(host) = &mut object {
            if let Some(roles) = update.roles {
                check_roles(&host.name, &roles)?;
                self.check_role_kept(host, &roles)?;
                host.roles = roles;
            }
            if let Some(zone) = update.zone {
                host.zone = zone;
            }
            if let Some(draining) = update.draining {
                host.draining = draining;
            }
            if let Some(speaker) = update.speaker {
                self.check_speaker_fits(host, speaker)?;
                host.speaker = speaker;
            }
        }
        Ok(self.put_if_changed(object))
    }

    fn check_role_kept(&self, host: &Host, roles: &BTreeSet<Role>) -> Result<(), Refusal> {
        let id = ObjectId::Host(host.id);
        let loses = |role| host.roles.contains(&role) && !roles.contains(&role);
        let nics = self.intent.nics_of_host(host.id);
        let mut nics = nics.map(|nic| ObjectId::Nic(nic.id)).peekable();
        if loses(Role::Compute) && nics.peek().is_some() {
            return Err(self.in_use(id, "give up its compute role", "NICs", nics));
        }
        let routers = self.intent.routers_of_host(host.id);
        let routers = routers.chain(self.intent.routers_prepared_on(host.id));
        let mut routers = routers.map(|router| ObjectId::Router(router.id)).peekable();
        if loses(Role::Route) && routers.peek().is_some() {
            return Err(self.in_use(id, "give up its route role", "routers", routers));
        }
        Ok(())
    }

    fn check_speaker_fits(&self, host: &Host, speaker: SpeakerKind) -> Result<(), Refusal> {
        let subnets: BTreeSet<SubnetId> = self
            .intent
            .nics_of_host(host.id)
            .map(|nic| nic.subnet)
            .collect();
        let vpcs: BTreeSet<VpcId> = subnets
            .into_iter()
            .filter_map(|subnet| Some(self.intent.subnet(subnet)?.vpc))
            .chain(
                self.intent
                    .routers_of_host(host.id)
                    .chain(self.intent.routers_prepared_on(host.id))
                    .map(|router| router.vpc),
            )
            .collect();
        vpcs.into_iter()
            .try_for_each(|vpc| self.check_speaker(&host.name, speaker, vpc))
    }

    /// FRR maps one VLAN to a VNI, so a bundle's subnets would be one broadcast domain to it; and it
    /// would have to see the inside of the host's gateways.
    pub(super) fn check_speaker(
        &self,
        host: &Name,
        speaker: SpeakerKind,
        vpc: VpcId,
    ) -> Result<(), Refusal> {
        let path = || self.intent.path(ObjectId::Vpc(vpc));
        let host = host.to_string();
        match (speaker, self.intent.vpc(vpc)) {
            (SpeakerKind::Frr, Some(of)) if of.encoding == Encoding::VlanAwareBundle => {
                Err(Refusal::FrrBundle { host, vpc: path() })
            }
            (SpeakerKind::Frr, Some(of)) if of.routing == Routing::Distributed => {
                Err(Refusal::FrrDistributed { host, vpc: path() })
            }
            _ => Ok(()),
        }
    }

    fn check_underlay(&self, name: &Name, address: IpAddr) -> Result<(), Refusal> {
        let bad = |reason: String| Refusal::Underlay {
            address,
            host: name.to_string(),
            reason,
        };
        if let Some(what) = not_unicast(address) {
            return Err(bad(format!(
                "it is {what}; give an address at which the other hosts reach this one"
            )));
        }
        if let Some(owner) = self.intent.underlay_owner(address) {
            return Err(Refusal::Taken {
                what: format!("underlay address {address}"),
                by: self.intent.describe(ObjectId::Host(owner)),
                automatic: false,
            });
        }
        match self.intent.hosts().min_by_key(|host| &host.name) {
            Some(other) if other.underlay.is_ipv4() != address.is_ipv4() => Err(bad(format!(
                "host {} has {}, and tunnel endpoints of IPv4 and IPv6 do not reach each other; \
                 give an address of the same family",
                other.name, other.underlay
            ))),
            Some(_) => Ok(()),
            None => self.check_mtus_fit(address).map_err(bad),
        }
    }

    /// The first host decides the family; subnets made before it counted on IPv4.
    fn check_mtus_fit(&self, address: IpAddr) -> Result<(), String> {
        let underlay = Underlay {
            address,
            mtu: self.intent.cluster().underlay_mtu,
        };
        let too_large = self.intent.all_subnets().find(|subnet| {
            let most = self
                .intent
                .vpc(subnet.vpc)
                .and_then(|vpc| Encapsulation::inner_mtu(underlay, vpc.encoding));
            most.is_none_or(|most| subnet.mtu > most)
        });
        match too_large {
            None => Ok(()),
            Some(subnet) => Err(format!(
                "{} has MTU {}, more than is left inside tunnels of this family; join with an \
                 IPv4 address, or delete the subnet and make it again afterwards",
                self.intent.describe(ObjectId::Subnet(subnet.id)),
                subnet.mtu
            )),
        }
    }
}

fn check_roles(name: &Name, roles: &BTreeSet<Role>) -> Result<(), Refusal> {
    if roles.is_empty() {
        return Err(Refusal::NoRole {
            host: name.to_string(),
        });
    }
    Ok(())
}

fn not_unicast(address: IpAddr) -> Option<&'static str> {
    if address.is_unspecified() {
        return Some("unspecified");
    }
    if address.is_loopback() {
        return Some("a loopback address");
    }
    if address.is_multicast() {
        return Some("a multicast address");
    }
    match address {
        IpAddr::V4(a) if a.is_broadcast() => Some("the broadcast address"),
        IpAddr::V4(a) if a.octets()[0] == 0 || a.octets()[0] >= 240 => Some("reserved"),
        IpAddr::V4(a) if a.is_link_local() => Some("link-local"),
        IpAddr::V6(a) if a.is_unicast_link_local() => Some("link-local"),
        IpAddr::V6(a) if a.to_ipv4_mapped().is_some() => {
            Some("an IPv4 address in IPv6 clothes; write it as IPv4")
        }
        IpAddr::V4(_) | IpAddr::V6(_) => None,
    }
}
