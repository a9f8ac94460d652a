//! The Enrollment service: how a machine becomes a host.

use crate::auth;
use crate::cluster::ClusterContext;
use crate::limit::RateLimit;
use crate::owner::{Event, Handle, PendingJoin, chain, now};
use crate::tokens::failed;
use api::tonic::{Request, Response, Status};
use api::{Field, bounded, parse, v1};
use fleet_plan::{CreateHost, JoinToken, RequestId, TokenRefusal, TokenSecret};
use model::{Labels, Name, Role};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use tokio::sync::oneshot;
use tracing::warn;
use v1::enrollment_server::Enrollment;

/// A P-256 request is about 250 bytes.
const LARGEST_CSR_BYTES: usize = 4096;

pub(crate) struct Service {
    pub(crate) owner: Handle,
    pub(crate) cluster: Arc<ClusterContext>,
    pub(crate) limit: RateLimit,
}

#[api::tonic::async_trait]
impl Enrollment for Service {
    async fn join(
        &self,
        request: Request<v1::JoinRequest>,
    ) -> Result<Response<v1::JoinResponse>, Status> {
        let address = auth::peer(&request)?.address;
        if !self.limit.take(address) {
            return Err(Status::resource_exhausted(
                "too many attempts to join from this address: wait a minute",
            ));
        }
        let answer = self.try_join(address, request.into_inner()).await;
        if let Err(status) = &answer {
            warn!(%address, reason = status.message(), "Join refused");
        }
        answer.map(Response::new)
    }
}

impl Service {
    async fn try_join(
        &self,
        address: IpAddr,
        wire: v1::JoinRequest,
    ) -> Result<v1::JoinResponse, Status> {
        let secret: TokenSecret = parse(Field::root("token"), &wire.token)?;
        let token = self.token(&secret).await?;
        let name: Name = parse(Field::root("host_name"), &wire.host_name)?;
        let name = token.host_name(name).map_err(denied)?;
        let csr = Field::root("csr_der");
        if wire.csr_der.len() > LARGEST_CSR_BYTES {
            return Err(csr.bad("larger than any signing request").into());
        }
        let key = api::pki::csr_key(&wire.csr_der).map_err(|error| csr.bad(chain(&error)))?;
        bounded(Field::root("agent_version"), &wire.agent_version, 255)?;
        bounded(Field::root("kernel_version"), &wire.kernel_version, 255)?;
        let create = CreateHost {
            name,
            roles: roles(&token, Field::root("roles").roles(wire.roles)?)?,
            underlay: parse(Field::root("underlay_address"), &wire.underlay_address)?,
            zone: match wire.zone.as_str() {
                "" => token.zone.clone(),
                zone => Some(parse(Field::root("zone"), zone)?),
            },
            speaker: Field::root("speaker")
                .speaker(wire.speaker)?
                .unwrap_or_default(),
            labels: Labels::new(),
        };
        // The same token with the same key is the same request, sent again.
        let request = RequestId::new(format!("join:{}:{key}", token.id))
            .map_err(|error| Status::internal(error.to_string()))?;
        let (answer, answered) = oneshot::channel();
        let join = PendingJoin {
            create,
            request,
            secret,
            token,
            address,
            answer,
        };
        self.owner.send(Event::Join(Box::new(join))).await?;
        let host = answered
            .await
            .map_err(|_| Status::unavailable("the server is stopping: try again"))??;
        let authority = &self.cluster.authority;
        let issued = authority
            .issue_host(host.id, &wire.csr_der, self.cluster.lifetimes.host)
            .map_err(|error| csr.bad(chain(&error)))?;
        Ok(v1::JoinResponse {
            host_id: host.id.to_string(),
            certificate: Some(api::certificate(&issued, authority.certificate())),
            cluster: Some(self.cluster.settings.clone()),
        })
    }

    /// The token, if the secret is right. Whether it still opens is asked when it is used: an
    /// outsider without the secret learns nothing of it.
    async fn token(&self, secret: &TokenSecret) -> Result<JoinToken, Status> {
        let token = self
            .cluster
            .store
            .token(secret.id)
            .await
            .map_err(|error| failed(&error))?
            .ok_or_else(|| denied(TokenRefusal::Unknown))?;
        match token.check(secret, now()) {
            Err(TokenRefusal::Unknown) => Err(denied(TokenRefusal::Unknown)),
            _ => Ok(token),
        }
    }
}

fn roles(token: &JoinToken, asked: BTreeSet<Role>) -> Result<BTreeSet<Role>, Status> {
    if asked.is_empty() {
        return Ok(token.roles.clone());
    }
    if asked.is_subset(&token.roles) {
        return Ok(asked);
    }
    Err(Status::permission_denied(format!(
        "join token {} does not allow these roles: ask the administrator for one that does, or leave the roles out",
        token.id
    )))
}

fn denied(refusal: TokenRefusal) -> Status {
    Status::permission_denied(refusal.to_string())
}
