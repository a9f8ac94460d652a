//! Routers by the API.

use super::{Server, now};
use crate::wire::{Answer, NewRouter, Spent};
use api::v1;

fn by_path(path: &str) -> v1::Ref {
    v1::Ref {
        by: Some(v1::r#ref::By::Path(path.to_owned())),
    }
}

fn by_id(id: String) -> v1::Ref {
    v1::Ref {
        by: Some(v1::r#ref::By::Id(id)),
    }
}

fn request(router: &NewRouter) -> v1::CreateRouterRequest {
    let outside = !router.uplink.is_empty();
    let subnets = router.subnets.iter();
    v1::CreateRouterRequest {
        vpc: Some(by_path(&router.vpc)),
        name: router.name.clone(),
        subnets: subnets
            .map(|subnet| by_path(&format!("{}/{subnet}", router.vpc)))
            .collect(),
        uplink: outside.then(|| v1::Outside {
            network: Some(by_path(&router.uplink)),
        }),
        source: match outside {
            true => v1::SourcePolicy::Masquerade.into(),
            false => v1::SourcePolicy::None.into(),
        },
        ..v1::CreateRouterRequest::default()
    }
}

impl Server {
    pub(super) fn create_router(&mut self, router: &NewRouter) -> Answer {
        self.connect();
        let mut client = self.clients[0].clone();
        let request = request(router);
        let sent = now();
        let made = self.runtime.block_on(client.create_router(request));
        let answered = now();
        self.routers
            .push(made.expect("the router is created").into_inner().id);
        Answer::Made(Spent {
            sent,
            answered,
            applied: answered,
        })
    }

    pub(super) fn fill_routers(&mut self, routers: Vec<NewRouter>) -> Answer {
        self.connect_anew();
        let sent = now();
        let made = self.each(routers, async |client, router| {
            let made = client.create_router(request(&router)).await;
            let made = made.expect("the router is created").into_inner();
            (made.id, made.meta.unwrap_or_default().resource_version)
        });
        let answered = now();
        let newest = made.iter().map(|(_, revision)| *revision).max();
        self.routers.extend(made.into_iter().map(|(id, _)| id));
        self.applied(sent, answered, newest)
    }

    pub(super) fn clear_routers(&mut self) -> Answer {
        self.connect_anew();
        let sent = now();
        let ids = std::mem::take(&mut self.routers);
        let deleted = self.each(ids, async |client, id| {
            let request = v1::DeleteRequest {
                object: Some(by_id(id)),
                resource_version: 0,
            };
            let deleted = client.delete_router(request).await;
            deleted
                .expect("the router is deleted")
                .into_inner()
                .revision
        });
        let answered = now();
        self.applied(sent, answered, deleted.into_iter().max())
    }

    /// Port forwards, one request each, to as many ports of one inner address.
    pub(super) fn forwards(&mut self, router: &str, first: usize, count: usize) -> Answer {
        self.connect();
        let mut client = self.clients[0].clone();
        let sent = now();
        let mut newest = None;
        for number in first..first + count {
            let port = 10_000 + number;
            let forward = v1::PortForward {
                protocol: v1::TransportProtocol::Tcp.into(),
                public: String::new(),
                ports: port.to_string(),
                to: "10.4.1.9".to_owned(),
                to_port: 80,
            };
            let request = v1::UpdateRouterRequest {
                object: Some(by_path(router)),
                change: Some(v1::update_router_request::Change::AddForward(forward)),
                ..v1::UpdateRouterRequest::default()
            };
            let changed = self.runtime.block_on(client.update_router(request));
            let changed = changed.expect("the router is changed").into_inner();
            newest = Some(changed.meta.unwrap_or_default().resource_version);
        }
        self.applied(sent, now(), newest)
    }
}
