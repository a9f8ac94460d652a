//! The Management service: what administrators call.

use crate::cluster::ClusterContext;
use crate::list::{PageQuery, PageView};
use crate::owner::{Handle, refused};
use crate::request::{self, Reference, Unresolved};
use crate::{auth, routing, tokens, volumes, wait, watch};
use api::tonic::{Request, Response, Status};
use api::{BadRequest, Field, v1};
use fleet_plan::RequestId;
use model::{Kind, Object, ObjectId};
use std::sync::Arc;
use v1::change::Object as View;
use v1::management_server::Management;

pub(crate) struct Service {
    pub(crate) owner: Handle,
    pub(crate) cluster: Arc<ClusterContext>,
}

impl Service {
    fn actor<T>(&self, request: &Request<T>) -> Result<String, Status> {
        auth::admin(request, &self.cluster.id)
    }

    /// A change that has a name of the client's, so that it is made once.
    async fn asked<W>(
        &self,
        request: Request<W>,
        name: fn(&W) -> &str,
        change: fn(W) -> Result<Unresolved, BadRequest>,
    ) -> Result<View, Status> {
        let actor = self.actor(&request)?;
        let wire = request.into_inner();
        let id = request::request_id(name(&wire))?;
        self.change(actor, id, change(wire)?).await
    }

    async fn change(
        &self,
        actor: String,
        request: Option<RequestId>,
        unresolved: Unresolved,
    ) -> Result<View, Status> {
        Ok(self.owner.change(actor, request, unresolved).await?.view)
    }

    async fn get(&self, kind: Kind, wire: v1::GetRequest) -> Result<View, Status> {
        let reference = Reference::new(Field::root("object"), kind, wire.object)?;
        self.owner
            .read(move |state| {
                let id = reference.resolve(&state.intent).map_err(refused)?;
                let object = state.intent.require(id).map_err(refused)?;
                Ok(state.view_with_status(&object))
            })
            .await?
    }

    async fn list(&self, kind: Kind, wire: v1::ListRequest) -> Result<PageView, Status> {
        let query = PageQuery::new(kind, wire)?;
        self.owner.read(move |state| query.run(state)).await?
    }

    async fn delete(
        &self,
        kind: Kind,
        request: Request<v1::DeleteRequest>,
    ) -> Result<Response<v1::DeleteResponse>, Status> {
        let actor = self.actor(&request)?;
        let unresolved = request::delete(kind, request.into_inner())?;
        let done = self.owner.change(actor, None, unresolved).await?;
        Ok(Response::new(v1::DeleteResponse {
            revision: done.revision.0,
        }))
    }
}

/// The view of one kind out of a view of any.
macro_rules! only {
    ($view:expr, $kind:ident) => {
        match $view {
            View::$kind(object) => Ok(Response::new(object)),
            _ => Err(Status::internal(
                "the answer is an object of another kind: this is a bug",
            )),
        }
    };
}

/// A change of one kind that has a name of the client's.
macro_rules! asked {
    ($service:ident, $request:ident, $change:path, $kind:ident) => {
        only!(
            $service
                .asked($request, |it| &it.request_id, $change)
                .await?,
            $kind
        )
    };
}

macro_rules! page {
    ($page:expr, $kind:ident, $answer:ident { $field:ident }) => {{
        let page: PageView = $page;
        Ok(Response::new(v1::$answer {
            $field: page
                .items
                .into_iter()
                .filter_map(|view| match view {
                    View::$kind(object) => Some(object),
                    _ => None,
                })
                .collect(),
            next_page_token: page.next_page_token,
            revision: page.revision,
        }))
    }};
}

type Answer<T> = Result<Response<T>, Status>;

#[api::tonic::async_trait]
impl Management for Service {
    async fn get_server_info(
        &self,
        request: Request<v1::GetServerInfoRequest>,
    ) -> Answer<v1::ServerInfo> {
        self.actor(&request)?;
        let cluster = Arc::clone(&self.cluster);
        let info = self
            .owner
            .read(move |state| v1::ServerInfo {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                cluster_id: cluster.id.clone(),
                revision: state.intent.revision().0,
                ca_fingerprint: cluster.authority.fingerprint().to_string(),
                store: cluster.store_kind.to_owned(),
                hosts_up: count(
                    state
                        .intent
                        .hosts()
                        .filter(|host| state.liveness(host.id) == model::Liveness::Up),
                ),
                hosts: count(state.intent.hosts()),
            })
            .await?;
        Ok(Response::new(info))
    }

    async fn create_account(
        &self,
        request: Request<v1::CreateAccountRequest>,
    ) -> Answer<v1::Account> {
        asked!(self, request, request::create_account, Account)
    }

    async fn get_account(&self, request: Request<v1::GetRequest>) -> Answer<v1::Account> {
        self.actor(&request)?;
        only!(
            self.get(Kind::Account, request.into_inner()).await?,
            Account
        )
    }

    async fn list_accounts(
        &self,
        request: Request<v1::ListRequest>,
    ) -> Answer<v1::ListAccountsResponse> {
        self.actor(&request)?;
        page!(
            self.list(Kind::Account, request.into_inner()).await?,
            Account,
            ListAccountsResponse { accounts }
        )
    }

    async fn update_account(
        &self,
        request: Request<v1::UpdateAccountRequest>,
    ) -> Answer<v1::Account> {
        let actor = self.actor(&request)?;
        let wire = request.into_inner();
        let change = request::set_labels(
            Kind::Account,
            wire.object,
            wire.resource_version,
            wire.labels,
        )?;
        only!(self.change(actor, None, change).await?, Account)
    }

    async fn delete_account(
        &self,
        request: Request<v1::DeleteRequest>,
    ) -> Answer<v1::DeleteResponse> {
        self.delete(Kind::Account, request).await
    }

    async fn create_vpc(&self, request: Request<v1::CreateVpcRequest>) -> Answer<v1::Vpc> {
        asked!(self, request, request::create_vpc, Vpc)
    }

    async fn get_vpc(&self, request: Request<v1::GetRequest>) -> Answer<v1::Vpc> {
        self.actor(&request)?;
        only!(self.get(Kind::Vpc, request.into_inner()).await?, Vpc)
    }

    async fn list_vpcs(&self, request: Request<v1::ListRequest>) -> Answer<v1::ListVpcsResponse> {
        self.actor(&request)?;
        page!(
            self.list(Kind::Vpc, request.into_inner()).await?,
            Vpc,
            ListVpcsResponse { vpcs }
        )
    }

    async fn update_vpc(&self, request: Request<v1::UpdateVpcRequest>) -> Answer<v1::Vpc> {
        let actor = self.actor(&request)?;
        let change = request::update_vpc(request.into_inner())?;
        only!(self.change(actor, None, change).await?, Vpc)
    }

    async fn delete_vpc(&self, request: Request<v1::DeleteRequest>) -> Answer<v1::DeleteResponse> {
        self.delete(Kind::Vpc, request).await
    }

    async fn create_subnet(&self, request: Request<v1::CreateSubnetRequest>) -> Answer<v1::Subnet> {
        asked!(self, request, request::create_subnet, Subnet)
    }

    async fn get_subnet(&self, request: Request<v1::GetRequest>) -> Answer<v1::Subnet> {
        self.actor(&request)?;
        only!(self.get(Kind::Subnet, request.into_inner()).await?, Subnet)
    }

    async fn list_subnets(
        &self,
        request: Request<v1::ListRequest>,
    ) -> Answer<v1::ListSubnetsResponse> {
        self.actor(&request)?;
        page!(
            self.list(Kind::Subnet, request.into_inner()).await?,
            Subnet,
            ListSubnetsResponse { subnets }
        )
    }

    async fn update_subnet(&self, request: Request<v1::UpdateSubnetRequest>) -> Answer<v1::Subnet> {
        let actor = self.actor(&request)?;
        let wire = request.into_inner();
        let change = request::update_subnet(wire)?;
        only!(self.change(actor, None, change).await?, Subnet)
    }

    async fn delete_subnet(
        &self,
        request: Request<v1::DeleteRequest>,
    ) -> Answer<v1::DeleteResponse> {
        self.delete(Kind::Subnet, request).await
    }

    async fn create_nic(&self, request: Request<v1::CreateNicRequest>) -> Answer<v1::Nic> {
        asked!(self, request, request::create_nic, Nic)
    }

    async fn get_nic(&self, request: Request<v1::GetRequest>) -> Answer<v1::Nic> {
        self.actor(&request)?;
        only!(self.get(Kind::Nic, request.into_inner()).await?, Nic)
    }

    async fn list_nics(&self, request: Request<v1::ListRequest>) -> Answer<v1::ListNicsResponse> {
        self.actor(&request)?;
        page!(
            self.list(Kind::Nic, request.into_inner()).await?,
            Nic,
            ListNicsResponse { nics }
        )
    }

    async fn update_nic(&self, request: Request<v1::UpdateNicRequest>) -> Answer<v1::Nic> {
        let actor = self.actor(&request)?;
        let wire = request.into_inner();
        let change =
            request::set_labels(Kind::Nic, wire.object, wire.resource_version, wire.labels)?;
        only!(self.change(actor, None, change).await?, Nic)
    }

    async fn move_nic(&self, request: Request<v1::MoveNicRequest>) -> Answer<v1::Nic> {
        asked!(self, request, request::move_nic, Nic)
    }

    async fn delete_nic(&self, request: Request<v1::DeleteRequest>) -> Answer<v1::DeleteResponse> {
        self.delete(Kind::Nic, request).await
    }

    async fn create_router(&self, request: Request<v1::CreateRouterRequest>) -> Answer<v1::Router> {
        asked!(self, request, routing::create_router, Router)
    }

    async fn get_router(&self, request: Request<v1::GetRequest>) -> Answer<v1::Router> {
        self.actor(&request)?;
        only!(self.get(Kind::Router, request.into_inner()).await?, Router)
    }

    async fn list_routers(
        &self,
        request: Request<v1::ListRequest>,
    ) -> Answer<v1::ListRoutersResponse> {
        self.actor(&request)?;
        page!(
            self.list(Kind::Router, request.into_inner()).await?,
            Router,
            ListRoutersResponse { routers }
        )
    }

    async fn update_router(&self, request: Request<v1::UpdateRouterRequest>) -> Answer<v1::Router> {
        asked!(self, request, routing::update_router, Router)
    }

    async fn delete_router(
        &self,
        request: Request<v1::DeleteRequest>,
    ) -> Answer<v1::DeleteResponse> {
        self.delete(Kind::Router, request).await
    }

    async fn create_external_network(
        &self,
        request: Request<v1::CreateExternalNetworkRequest>,
    ) -> Answer<v1::ExternalNetwork> {
        asked!(self, request, routing::create_external, External)
    }

    async fn get_external_network(
        &self,
        request: Request<v1::GetRequest>,
    ) -> Answer<v1::ExternalNetwork> {
        self.actor(&request)?;
        let found = self.get(Kind::External, request.into_inner()).await?;
        only!(found, External)
    }

    async fn list_external_networks(
        &self,
        request: Request<v1::ListRequest>,
    ) -> Answer<v1::ListExternalNetworksResponse> {
        self.actor(&request)?;
        page!(
            self.list(Kind::External, request.into_inner()).await?,
            External,
            ListExternalNetworksResponse { networks }
        )
    }

    async fn delete_external_network(
        &self,
        request: Request<v1::DeleteRequest>,
    ) -> Answer<v1::DeleteResponse> {
        self.delete(Kind::External, request).await
    }

    async fn create_public_ip(
        &self,
        request: Request<v1::CreatePublicIpRequest>,
    ) -> Answer<v1::PublicIp> {
        asked!(self, request, routing::create_public_ip, PublicIp)
    }

    async fn get_public_ip(&self, request: Request<v1::GetRequest>) -> Answer<v1::PublicIp> {
        self.actor(&request)?;
        let found = self.get(Kind::PublicIp, request.into_inner()).await?;
        only!(found, PublicIp)
    }

    async fn list_public_ips(
        &self,
        request: Request<v1::ListRequest>,
    ) -> Answer<v1::ListPublicIpsResponse> {
        self.actor(&request)?;
        page!(
            self.list(Kind::PublicIp, request.into_inner()).await?,
            PublicIp,
            ListPublicIpsResponse { public_ips }
        )
    }

    async fn attach_public_ip(
        &self,
        request: Request<v1::AttachPublicIpRequest>,
    ) -> Answer<v1::PublicIp> {
        asked!(self, request, routing::attach_public_ip, PublicIp)
    }

    async fn delete_public_ip(
        &self,
        request: Request<v1::DeleteRequest>,
    ) -> Answer<v1::DeleteResponse> {
        self.delete(Kind::PublicIp, request).await
    }

    async fn create_volume(&self, request: Request<v1::CreateVolumeRequest>) -> Answer<v1::Volume> {
        asked!(self, request, volumes::create, Volume)
    }

    async fn get_volume(&self, request: Request<v1::GetRequest>) -> Answer<v1::Volume> {
        self.actor(&request)?;
        only!(self.get(Kind::Volume, request.into_inner()).await?, Volume)
    }

    async fn list_volumes(
        &self,
        request: Request<v1::ListRequest>,
    ) -> Answer<v1::ListVolumesResponse> {
        self.actor(&request)?;
        page!(
            self.list(Kind::Volume, request.into_inner()).await?,
            Volume,
            ListVolumesResponse { volumes }
        )
    }

    async fn attach_volume(&self, request: Request<v1::AttachVolumeRequest>) -> Answer<v1::Volume> {
        asked!(self, request, volumes::attach, Volume)
    }

    async fn restore_volume(
        &self,
        request: Request<v1::RestoreVolumeRequest>,
    ) -> Answer<v1::Volume> {
        asked!(self, request, volumes::restore, Volume)
    }

    async fn resize_volume(&self, request: Request<v1::ResizeVolumeRequest>) -> Answer<v1::Volume> {
        asked!(self, request, volumes::resize, Volume)
    }

    async fn set_replicas(&self, request: Request<v1::SetReplicasRequest>) -> Answer<v1::Volume> {
        asked!(self, request, volumes::set_replicas, Volume)
    }

    async fn move_replica(&self, request: Request<v1::MoveReplicaRequest>) -> Answer<v1::Volume> {
        asked!(self, request, volumes::move_replica, Volume)
    }

    async fn recover_volume(
        &self,
        request: Request<v1::RecoverVolumeRequest>,
    ) -> Answer<v1::Volume> {
        asked!(self, request, volumes::recover, Volume)
    }

    async fn delete_volume(
        &self,
        request: Request<v1::DeleteVolumeRequest>,
    ) -> Answer<v1::DeleteResponse> {
        let actor = self.actor(&request)?;
        let unresolved = volumes::delete(request.into_inner())?;
        let done = self.owner.change(actor, None, unresolved).await?;
        Ok(Response::new(v1::DeleteResponse {
            revision: done.revision.0,
        }))
    }

    async fn get_host(&self, request: Request<v1::GetRequest>) -> Answer<v1::Host> {
        self.actor(&request)?;
        only!(self.get(Kind::Host, request.into_inner()).await?, Host)
    }

    async fn list_hosts(&self, request: Request<v1::ListRequest>) -> Answer<v1::ListHostsResponse> {
        self.actor(&request)?;
        page!(
            self.list(Kind::Host, request.into_inner()).await?,
            Host,
            ListHostsResponse { hosts }
        )
    }

    async fn update_host(&self, request: Request<v1::UpdateHostRequest>) -> Answer<v1::Host> {
        let actor = self.actor(&request)?;
        let change = request::update_host(request.into_inner())?;
        only!(self.change(actor, None, change).await?, Host)
    }

    async fn delete_host(&self, request: Request<v1::DeleteRequest>) -> Answer<v1::DeleteResponse> {
        self.delete(Kind::Host, request).await
    }

    type WatchStream = watch::Stream;

    async fn watch(&self, request: Request<v1::WatchRequest>) -> Answer<Self::WatchStream> {
        self.actor(&request)?;
        let stream = watch::start(
            self.owner.clone(),
            Arc::clone(&self.cluster),
            request.into_inner(),
        )
        .await?;
        Ok(Response::new(stream))
    }

    type WaitAppliedStream = wait::Stream;

    async fn wait_applied(
        &self,
        request: Request<v1::WaitAppliedRequest>,
    ) -> Answer<Self::WaitAppliedStream> {
        self.actor(&request)?;
        let stream = wait::start(
            self.owner.clone(),
            Arc::clone(&self.cluster),
            request.into_inner(),
        )
        .await?;
        Ok(Response::new(stream))
    }

    async fn create_join_token(
        &self,
        request: Request<v1::CreateJoinTokenRequest>,
    ) -> Answer<v1::CreateJoinTokenResponse> {
        let actor = self.actor(&request)?;
        tokens::create(&self.cluster, &actor, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn list_join_tokens(
        &self,
        request: Request<v1::ListJoinTokensRequest>,
    ) -> Answer<v1::ListJoinTokensResponse> {
        self.actor(&request)?;
        tokens::list(&self.cluster).await.map(Response::new)
    }

    async fn revoke_join_token(
        &self,
        request: Request<v1::RevokeJoinTokenRequest>,
    ) -> Answer<v1::RevokeJoinTokenResponse> {
        let actor = self.actor(&request)?;
        tokens::revoke(&self.cluster, &actor, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn get_host_config(&self, request: Request<v1::GetRequest>) -> Answer<v1::HostConfig> {
        self.actor(&request)?;
        let reference = Reference::new(
            Field::root("object"),
            Kind::Host,
            request.into_inner().object,
        )?;
        let config = self
            .owner
            .read(move |state| {
                let host = reference.host(&state.intent).map_err(refused)?;
                state.config(host).cloned().ok_or_else(|| {
                    Status::unavailable(format!("host {host} has no configuration yet: try again"))
                })
            })
            .await??;
        let mut wire = v1::HostConfig::from(config.as_ref());
        api::without_secrets(&mut wire);
        Ok(Response::new(wire))
    }
}

fn count(items: impl Iterator) -> u32 {
    u32::try_from(items.count()).unwrap_or(u32::MAX)
}

/// Hosts whose configuration an object is part of.
pub(crate) fn concerned(
    intent: &fleet_plan::Intent,
    object: &Object,
) -> std::collections::BTreeSet<model::HostId> {
    match object {
        Object::Account(_) => Default::default(),
        Object::Vpc(vpc) => intent.hosts_of_vpc(vpc.id),
        Object::Subnet(subnet) => intent.hosts_of_subnet(subnet.id).collect(),
        Object::Nic(nic) => std::iter::once(nic.placement.host)
            .chain(nic.moving.as_ref().map(|moving| moving.other.host))
            .collect(),
        Object::Router(router) => router
            .hosts()
            .chain(
                router
                    .legs
                    .iter()
                    .flat_map(|leg| intent.hosts_of_subnet(leg.subnet)),
            )
            .collect(),
        Object::External(network) => intent
            .routers_of_external(network.id)
            .map(|router| router.placement.host)
            .collect(),
        Object::PublicIp(public) => intent
            .routers_of_external(public.network)
            .map(|router| router.placement.host)
            .collect(),
        Object::Volume(volume) => volume.hosts().collect(),
        Object::Host(host) => match intent.get(ObjectId::Host(host.id)) {
            Some(_) => [host.id].into(),
            None => Default::default(),
        },
    }
}
