//! Which host a router runs on, and which stands by.

use super::Work;
use crate::intent::missing;
use crate::{Context, Intent, Refusal, StandbyHost};
use model::{
    Host, HostId, ObjectId, Role, Router, RouterPlacement, Routing, Standby, UnixMillis, VpcId,
};
use std::collections::{BTreeMap, BTreeSet};

impl<'a> Work<'a> {
    /// The host asked for, or the route host with the fewest routers; of several the first by name.
    /// `leaves` is the host that the router is to go away from. Hosts that were `tried` come after all others,
    /// the one that was tried last at the end.
    pub(super) fn pick_route_host(
        &self,
        router: &str,
        vpc: VpcId,
        asked: Option<HostId>,
        leaves: Option<HostId>,
        tried: &BTreeMap<HostId, UnixMillis>,
    ) -> Result<&'a Host, Refusal> {
        if let Some(id) = asked {
            return self.asked_route_host(id, vpc);
        }
        let none = |reason: &str| Refusal::NoRouteHost {
            router: router.to_owned(),
            reason: reason.to_owned(),
        };
        let hosts = self.fit_route_hosts(vpc, leaves, ", or name one with --host");
        let hosts = hosts.map_err(|reason| none(&reason))?;
        let routers = |host: &Host| {
            let comes = self.intent.routers_prepared_on(host.id);
            self.intent.routers_of_host(host.id).count() + comes.count()
        };
        let fewest = hosts
            .into_iter()
            .min_by_key(|host| (tried.get(&host.id), routers(host), &host.name));
        Ok(fewest.expect("where no host is fit there is a reason"))
    }

    /// Route hosts that a router of the VPC can be put on, but for one; at least one, or why there is none, with
    /// what else can be done.
    fn fit_route_hosts(
        &self,
        vpc: VpcId,
        leaves: Option<HostId>,
        or: &str,
    ) -> Result<Vec<&'a Host>, String> {
        let other = if leaves.is_some() { "other " } else { "" };
        let mut hosts: Vec<&Host> = self
            .intent
            .hosts()
            .filter(|host| host.roles.contains(&Role::Route) && Some(host.id) != leaves)
            .collect();
        if hosts.is_empty() {
            return Err(format!(
                "there is no {other}host with the role route: let one join (vpc host join --role route), or give a host that role"
            ));
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
            return Err(format!(
                "every {other}route host {}: see vpc host list{or}",
                reasons.join(" or ")
            ));
        }
        Ok(hosts)
    }

    /// The standby that is asked for.
    pub(super) fn standby(
        &self,
        router: &str,
        vpc: VpcId,
        placement: RouterPlacement,
        wanted: Option<StandbyHost>,
    ) -> Result<Standby, Refusal> {
        match wanted {
            None => Ok(Standby::Off),
            Some(StandbyHost::Host(host)) if host == placement.host => {
                Err(Refusal::StandbyOfItself {
                    router: router.to_owned(),
                    host: self.intent.path(ObjectId::Host(host)),
                })
            }
            Some(StandbyHost::Host(host)) => Ok(Standby::On(self.asked_route_host(host, vpc)?.id)),
            Some(StandbyHost::Any) => match self.pick_standby(vpc, placement.host) {
                Ok(host) => Ok(Standby::On(host)),
                Err(reason) => Err(Refusal::NoStandby {
                    router: router.to_owned(),
                    reason,
                }),
            },
        }
    }

    fn pick_standby(&self, vpc: VpcId, runs_on: HostId) -> Result<HostId, String> {
        let hosts = self.fit_route_hosts(vpc, Some(runs_on), "")?;
        let load = |host: &Host| {
            let own = self.intent.routers_of_host(host.id).count();
            own + self.intent.standby_for(host.id).count()
        };
        let least = hosts
            .into_iter()
            .min_by_key(|host| (load(host), &host.name));
        Ok(least.expect("where no host is fit there is a reason").id)
    }

    /// It has a standby that could take it over.
    pub(super) fn stands_by(&self, router: &Router) -> bool {
        let fit = |host| {
            let hosts = self.fit_route_hosts(router.vpc, Some(router.placement.host), "");
            hosts.is_ok_and(|hosts| hosts.iter().any(|fit| fit.id == host))
        };
        router.standby.host().is_some_and(fit)
    }

    pub(super) fn renew_standby(&self, router: &mut Router) {
        if router.standby.is_off() || self.stands_by(router) {
            return;
        }
        router.standby = match self.pick_standby(router.vpc, router.placement.host) {
            Ok(host) => Standby::On(host),
            Err(_) => Standby::Missing,
        };
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

/// Routers whose standby is not fit any more, or that lack one though a host is fit, while these hosts are
/// not heard of.
pub fn standbys_to_renew<'a>(intent: &'a Intent, down: &BTreeSet<HostId>) -> Vec<&'a Router> {
    let context = Context {
        now: UnixMillis(0),
        seed: 0,
        request: None,
        down: down.clone(),
        disks: BTreeMap::new(),
        replicas: BTreeMap::new(),
        actor: String::new(),
    };
    let work = Work::new(intent, &context);
    let due = |router: &&Router| {
        let mut renewed = (*router).clone();
        work.renew_standby(&mut renewed);
        renewed.standby != router.standby
    };
    let wanted = intent.all_routers().filter(|r| !r.standby.is_off());
    wanted.filter(due).collect()
}
