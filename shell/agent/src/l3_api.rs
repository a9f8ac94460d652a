//! The host's own L3 service: routers with no management server. On the socket of `local_api`.

use crate::events::Request;
use crate::local_api::{Answer, Local, Streamed, draw, gone, id, invalid, matches_origin, missing};
use crate::view::View;
use api::tonic::{self, Response, Status};
use api::v1;
use host_plan::{OwnedName, RouterLink, Way};
use model::{MacAddr, ObjectId, RouterConfig, RouterId, Stack, SubnetId};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;

#[tonic::async_trait]
impl v1::l3_server::L3 for Local {
    async fn add_router(
        &self,
        request: tonic::Request<v1::AddHostRouterRequest>,
    ) -> Answer<v1::HostRouterState> {
        let request = request.into_inner();
        let mut wire = request.router.ok_or_else(|| missing("router"))?;
        complete(&self.now(), &mut wire);
        let router = RouterConfig::try_from(wire).map_err(invalid)?;
        let (id, replace) = (router.id, request.replace);
        self.ask(|reply| Request::AddRouter {
            router: Box::new(router),
            replace,
            reply,
        })
        .await?;
        self.settle(request.wait_ms).await?;
        let view = self.now();
        let router = find(&view, id).ok_or_else(|| gone("router", &id.to_string()))?;
        Ok(Response::new(state(&view, router)))
    }

    async fn get_router(
        &self,
        request: tonic::Request<v1::GetHostRouterRequest>,
    ) -> Answer<v1::HostRouterState> {
        let view = self.now();
        let router = by_id(&view, &request.into_inner().router_id)?;
        Ok(Response::new(state(&view, router)))
    }

    async fn list_routers(
        &self,
        request: tonic::Request<v1::ListHostRoutersRequest>,
    ) -> Answer<v1::ListHostRoutersResponse> {
        let wanted = request.into_inner().origin;
        let view = self.now();
        let routers = view.routers.iter().map(|router| state(&view, router));
        let routers = routers
            .filter(|state| matches_origin(wanted, state.origin))
            .collect();
        Ok(Response::new(v1::ListHostRoutersResponse { routers }))
    }

    async fn router_status(
        &self,
        request: tonic::Request<v1::GetHostRouterRequest>,
    ) -> Answer<v1::HostRouterStatus> {
        let view = self.now();
        let router = by_id(&view, &request.into_inner().router_id)?;
        let netns = OwnedName::router_netns(router.id);
        let observed = view.observed.as_ref();
        let inside = observed.and_then(|observed| observed.routers.get(&netns));
        let links = inside.into_iter().flat_map(|inside| &inside.links);
        let routes = inside.into_iter().flat_map(|inside| &inside.routes);
        Ok(Response::new(v1::HostRouterStatus {
            state: Some(state(&view, router)),
            links: links
                .map(|(name, link)| kernel_link(name.as_str(), link))
                .collect(),
            routes: routes.map(kernel_route).collect(),
            figures: self.meter.of(router.id),
            netns: netns.to_string(),
        }))
    }

    async fn delete_router(
        &self,
        request: tonic::Request<v1::DeleteHostRouterRequest>,
    ) -> Answer<v1::DeleteHostRouterResponse> {
        let v1::DeleteHostRouterRequest { router_id, wait_ms } = request.into_inner();
        let router = id(&router_id, "router_id")?;
        self.ask(|reply| Request::DeleteRouter(router, reply))
            .await?;
        self.settle(wait_ms).await?;
        Ok(Response::new(v1::DeleteHostRouterResponse {}))
    }

    type WatchRoutersStream = Streamed<v1::HostRouterEvent>;

    async fn watch_routers(
        &self,
        _: tonic::Request<v1::WatchHostRoutersRequest>,
    ) -> Answer<Self::WatchRoutersStream> {
        let (send, receive) = mpsc::channel(16);
        tokio::spawn(watch(self.view.clone(), send));
        Ok(Response::new(Box::pin(ReceiverStream::new(receive))))
    }
}

/// Fills in what the caller left to the agent: what the router has already, or something new.
fn complete(view: &View, wire: &mut v1::RouterConfig) {
    draw(&mut wire.router_id, || {
        RouterId::from_random(rand::random()).to_string()
    });
    if wire.name.is_empty() {
        wire.name = format!("local/{}", wire.router_id);
    }
    let there = wire.router_id.parse().ok().and_then(|id| find(view, id));
    let stack = view
        .stacks
        .iter()
        .find(|stack| stack.vpc.to_string() == wire.vpc_id);
    let new_mac = || MacAddr::local_from_random(rand::random()).to_string();
    for leg in &mut wire.legs {
        let subnet = leg.subnet_id.parse::<SubnetId>().ok();
        let of_subnet = |router: &RouterConfig| {
            let mut legs = router.legs.iter();
            legs.find(|leg| Some(leg.subnet) == subnet)
                .map(|leg| leg.mac)
        };
        let mac = there.and_then(of_subnet);
        draw(&mut leg.mac, || {
            mac.map_or_else(new_mac, |mac| mac.to_string())
        });
        let segment = stack
            .zip(subnet)
            .and_then(|(stack, subnet)| stack.segment(subnet));
        if let Some(segment) = segment.filter(|_| leg.mtu == 0) {
            leg.mtu = segment.mtu.get().into();
        }
    }
    if let Some(uplink) = &mut wire.uplink {
        let mac = there
            .and_then(|router| router.uplink.as_ref())
            .map(|uplink| uplink.mac);
        draw(&mut uplink.mac, || {
            mac.map_or_else(new_mac, |mac| mac.to_string())
        });
    }
    wire.legs.sort_by(|a, b| a.subnet_id.cmp(&b.subnet_id));
}

fn find(view: &View, id: RouterId) -> Option<&RouterConfig> {
    let mut routers = view.routers.iter().map(Arc::as_ref);
    routers.find(|router| router.id == id)
}

fn by_id<'a>(view: &'a View, text: &str) -> Result<&'a RouterConfig, Status> {
    find(view, id(text, "router_id")?).ok_or_else(|| {
        Status::not_found(format!(
            "there is no router {text} on this host: list what there is with ListRouters"
        ))
    })
}

fn state(view: &View, router: &RouterConfig) -> v1::HostRouterState {
    let managed = view.managed.iter().flat_map(|config| &config.routers);
    let origin = match managed.into_iter().any(|other| other.id == router.id) {
        true => v1::Origin::Managed,
        false => v1::Origin::Local,
    };
    let conditions = view.conditions_of([ObjectId::Router(router.id)]);
    v1::HostRouterState {
        router: Some(router.into()),
        origin: origin.into(),
        ready: view.ready.routers.contains(&router.id),
        conditions: conditions.into_iter().map(Into::into).collect(),
    }
}

fn kernel_link(name: &str, link: &RouterLink) -> v1::RouterLink {
    v1::RouterLink {
        name: name.to_owned(),
        mac: link.mac.to_string(),
        mtu: link.mtu,
        up: link.up,
        addresses: link.addresses.iter().map(ToString::to_string).collect(),
    }
}

fn kernel_route(route: &host_plan::Route) -> v1::RouterRoute {
    let hops = match &route.way {
        Way::Blackhole => Vec::new(),
        Way::Hops { hops, .. } => hops
            .iter()
            .map(|hop| v1::RouterHop {
                link: hop.device.to_string(),
                gateway: hop.gateway.map_or(String::new(), |ip| ip.to_string()),
            })
            .collect(),
    };
    v1::RouterRoute {
        table: route.table,
        prefix: route.prefix.to_string(),
        hops,
    }
}

/// Every router at first, then each that changes, until the agent or the reader is gone.
async fn watch(
    mut view: watch::Receiver<Arc<View>>,
    send: mpsc::Sender<Result<v1::HostRouterEvent, Status>>,
) {
    let mut told: BTreeMap<RouterId, v1::HostRouterState> = BTreeMap::new();
    let mut first = true;
    loop {
        let now = Arc::clone(&view.borrow_and_update());
        let routers = now.routers.iter();
        let states: BTreeMap<_, _> = routers
            .map(|router| (router.id, state(&now, router)))
            .collect();
        let event = |router: &v1::HostRouterState, deleted| v1::HostRouterEvent {
            router: Some(router.clone()),
            deleted,
            snapshot_complete: false,
        };
        let changed = states
            .iter()
            .filter(|(id, state)| told.get(id) != Some(state));
        let mut events: Vec<_> = changed.map(|(_, state)| event(state, false)).collect();
        let gone = told.iter().filter(|(id, _)| !states.contains_key(id));
        events.extend(gone.map(|(_, state)| event(state, true)));
        if std::mem::take(&mut first) {
            events.push(v1::HostRouterEvent {
                snapshot_complete: true,
                ..v1::HostRouterEvent::default()
            });
        }
        for event in events {
            if send.send(Ok(event)).await.is_err() {
                return;
            }
        }
        told = states;
        tokio::select! {
            changed = view.changed() => if changed.is_err() { return },
            () = send.closed() => return,
        }
    }
}

/// A stack is the same whether or not its routers are known to it.
pub(crate) fn without_gateways_of(stack: &mut Stack, asked: &Stack) {
    for segment in &mut stack.segments {
        let asked = asked.segment(segment.subnet);
        if asked.is_some_and(|asked| asked.gateway.is_none()) {
            segment.gateway = None;
        }
    }
}
