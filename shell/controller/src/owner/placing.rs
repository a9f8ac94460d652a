//! Where routers run and who stands by for them, as hosts come and go.

use super::Owner;
use fleet_plan::{Command, Expect, RouterChange, UpdateRouter, standbys_to_renew};
use model::{HostId, ObjectId, Router, Standby};
use std::collections::BTreeSet;
use tracing::{info, warn};

impl Owner {
    /// Routers whose host fell silent or drains go to another.
    pub(super) async fn place_routers(&mut self) {
        let silent = self.state.silent_hosts(&self.votes, !self.shared_store);
        let routers = self.state.routers_to_place(&silent);
        if routers.is_empty() {
            return;
        }
        self.update_routers(&routers, &RouterChange::Place(None), &silent)
            .await;
        for before in routers {
            let Some(router) = self.state.intent.router(before.id) else {
                continue;
            };
            let name = |id| self.state.intent.path(id);
            let path = name(ObjectId::Router(router.id));
            let from = name(ObjectId::Host(before.placement.host));
            if router.placement != before.placement {
                let to = name(ObjectId::Host(router.placement.host));
                warn!(
                    router = path,
                    from, to, "Router is taken over: its host is silent"
                );
            } else if let Some(to) = router.goes_to().filter(|_| router.moving != before.moving) {
                let to = name(ObjectId::Host(to));
                info!(router = path, from, to, "Router leaves a host that drains");
            }
        }
        self.issue().await;
    }

    /// Standbys that are down, drain or now run the router themselves give way to others.
    pub(super) async fn renew_standbys(&mut self) {
        let intent = &self.state.intent;
        let gone = self.state.unfit_to_stand_by();
        // One that is silent for a moment may go on to stand by, but is not chosen.
        let unfit = &gone | &self.state.silent_hosts(&self.votes, !self.shared_store);
        let due = standbys_to_renew(intent, &gone);
        let routers: Vec<Router> = standbys_to_renew(intent, &unfit)
            .into_iter()
            .filter(|router| due.iter().any(|other| other.id == router.id))
            .cloned()
            .collect();
        if routers.is_empty() {
            return;
        }
        self.update_routers(&routers, &RouterChange::RenewStandby, &unfit)
            .await;
        for before in routers {
            let Some(router) = self.state.intent.router(before.id) else {
                continue;
            };
            let name = |id| self.state.intent.path(id);
            let path = name(ObjectId::Router(router.id));
            match router.standby {
                Standby::On(host) => {
                    let standby = name(ObjectId::Host(host));
                    info!(router = path, standby, "Router has another standby");
                }
                Standby::Missing => warn!(
                    router = path,
                    "Router has no standby: no other route host is up and takes routers"
                ),
                Standby::Off => {}
            }
        }
        self.issue().await;
    }

    /// The server's own changes of routers, as they were when it was looked at them.
    async fn update_routers(
        &mut self,
        routers: &[Router],
        change: &RouterChange,
        down: &BTreeSet<HostId>,
    ) {
        let mut changes = Vec::new();
        for router in routers {
            let mut update = self.own_change(Command::UpdateRouter(UpdateRouter {
                router: router.id,
                expect: Expect::Exactly(router.meta.revision),
                change: change.clone(),
            }));
            update.context.down.clone_from(down);
            changes.push(update);
        }
        self.commit(changes).await;
    }
}
