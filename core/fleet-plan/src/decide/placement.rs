//! Which host a router runs on.

use super::Work;
use crate::Refusal;
use crate::intent::missing;
use model::{Host, HostId, ObjectId, Role, Routing, VpcId};
use std::collections::BTreeSet;

impl<'a> Work<'a> {
    /// The host asked for, or the route host with the fewest routers; of several the first by name.
    /// `leaves` is the host that the router is to go away from.
    pub(super) fn pick_route_host(
        &self,
        router: &str,
        vpc: VpcId,
        asked: Option<HostId>,
        leaves: Option<HostId>,
    ) -> Result<&'a Host, Refusal> {
        if let Some(id) = asked {
            return self.asked_route_host(id, vpc);
        }
        let none = |reason: &str| Refusal::NoRouteHost {
            router: router.to_owned(),
            reason: reason.to_owned(),
        };
        let other = if leaves.is_some() { "other " } else { "" };
        let mut hosts: Vec<&Host> = self
            .intent
            .hosts()
            .filter(|host| host.roles.contains(&Role::Route) && Some(host.id) != leaves)
            .collect();
        if hosts.is_empty() {
            return Err(none(&format!(
                "there is no {other}host with the role route: let one join (vpc host join --role route), or give a host that role"
            )));
        }
        let unsuitable = |host: &Host| {
            if host.draining {
                Some("is draining")
            } else if self.context.down.contains(&host.id) {
                Some("is down")
            } else if self.check_speaker(&host.name, host.speaker, vpc).is_err() {
                Some(match self.intent.vpc(vpc).map(|vpc| vpc.routing) {
                    Some(Routing::Distributed) => {
                        "has FRR as its EVPN client, and the VPC is routed on every host, which takes the built-in speaker"
                    }
                    _ => "has FRR as its EVPN client, which does no vlan-aware bundles",
                })
            } else {
                None
            }
        };
        let reasons: BTreeSet<&str> = hosts.iter().filter_map(|host| unsuitable(host)).collect();
        hosts.retain(|host| unsuitable(host).is_none());
        if hosts.is_empty() {
            let reasons: Vec<&str> = reasons.into_iter().collect();
            return Err(none(&format!(
                "every {other}route host {}: see vpc host list, or name one with --host",
                reasons.join(" or ")
            )));
        }
        let load = |host: &Host| {
            let comes = self.intent.routers_prepared_on(host.id);
            self.intent.routers_of_host(host.id).count() + comes.count()
        };
        Ok(hosts
            .into_iter()
            .min_by_key(|host| (load(host), &host.name))
            .expect("it was seen not to be empty"))
    }

    fn asked_route_host(&self, id: HostId, vpc: VpcId) -> Result<&'a Host, Refusal> {
        let host = self
            .intent
            .host(id)
            .ok_or_else(|| missing(ObjectId::Host(id)))?;
        if !host.roles.contains(&Role::Route) {
            return Err(Refusal::NotARouteHost {
                host: host.name.to_string(),
                roles: host.roles.iter().copied().collect(),
            });
        }
        if host.draining {
            return Err(Refusal::HostDraining {
                host: host.name.to_string(),
            });
        }
        self.check_speaker(&host.name, host.speaker, vpc)?;
        Ok(host)
    }
}
