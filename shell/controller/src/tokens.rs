//! Join tokens: made, listed and revoked by administrators.

use crate::cluster::ClusterContext;
use crate::owner::{chain, now};
use api::tonic::Status;
use api::{Field, parse, v1};
use fleet_plan::{JoinToken, TokenSecret};
use model::{Role, UnixMillis};
use std::collections::BTreeSet;
use store::StoreError;
use tracing::info;

const DEFAULT_TTL_SECS: u32 = 3600;
const LONGEST_TTL_SECS: u32 = 30 * 86_400;
/// Expired tokens stay listed for a day, so that `host join` can say that one expired.
const EXPIRED_KEPT_MILLIS: u64 = 86_400_000;

pub(crate) async fn create(
    cluster: &ClusterContext,
    actor: &str,
    wire: v1::CreateJoinTokenRequest,
) -> Result<v1::CreateJoinTokenResponse, Status> {
    let name = match wire.host_name.as_str() {
        "" => None,
        name => Some(parse(Field::root("host_name"), name)?),
    };
    let mut roles = Field::root("roles").roles(wire.roles)?;
    if roles.is_empty() {
        roles = BTreeSet::from([Role::Compute]);
    }
    let ttl_secs = match wire.ttl_seconds {
        0 => DEFAULT_TTL_SECS,
        ttl if ttl <= LONGEST_TTL_SECS => ttl,
        ttl => {
            return Err(Field::root("ttl_seconds")
                .bad(format_args!(
                    "{ttl} is more than 30 days ({LONGEST_TTL_SECS})"
                ))
                .into());
        }
    };
    let created = now();
    let secret = TokenSecret::mint(rand::random(), rand::random());
    let token = JoinToken {
        id: secret.id,
        secret_sha256: secret.sha256(),
        roles,
        name,
        zone: None,
        created,
        expires: UnixMillis(created.0 + u64::from(ttl_secs) * 1000),
        used: None,
    };
    let store = &cluster.store;
    store
        .purge_tokens(UnixMillis(created.0.saturating_sub(EXPIRED_KEPT_MILLIS)))
        .await
        .map_err(|error| failed(&error))?;
    store
        .create_token(&token)
        .await
        .map_err(|error| failed(&error))?;
    info!(target: "audit", actor, action = "create join token", object = %token.id, "Changed");
    let text = api::JoinToken::new(secret.reveal(), cluster.authority.fingerprint());
    Ok(v1::CreateJoinTokenResponse {
        token: Some(view(&token, created)),
        text: text.reveal(),
    })
}

pub(crate) async fn list(cluster: &ClusterContext) -> Result<v1::ListJoinTokensResponse, Status> {
    let now = now();
    let tokens = cluster
        .store
        .tokens()
        .await
        .map_err(|error| failed(&error))?;
    Ok(v1::ListJoinTokensResponse {
        tokens: tokens.iter().map(|token| view(token, now)).collect(),
    })
}

pub(crate) async fn revoke(
    cluster: &ClusterContext,
    actor: &str,
    wire: v1::RevokeJoinTokenRequest,
) -> Result<v1::RevokeJoinTokenResponse, Status> {
    let id = parse(Field::root("id"), &wire.id)?;
    let there = cluster
        .store
        .delete_token(id)
        .await
        .map_err(|error| failed(&error))?;
    if !there {
        return Err(Status::not_found(format!(
            "there is no join token {id}: it was revoked before, or expired long ago"
        )));
    }
    info!(target: "audit", actor, action = "revoke join token", object = %id, "Changed");
    Ok(v1::RevokeJoinTokenResponse {})
}

fn view(token: &JoinToken, now: UnixMillis) -> v1::JoinToken {
    use v1::join_token::State;
    let state = match token.used {
        Some(_) => State::Used,
        None if token.expires <= now => State::Expired,
        None => State::Open,
    };
    v1::JoinToken {
        id: token.id.to_string(),
        host_name: token
            .name
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default(),
        roles: token
            .roles
            .iter()
            .map(|role| v1::Role::from(*role).into())
            .collect(),
        created_unix_ms: token.created.0,
        expires_unix_ms: token.expires.0,
        state: state.into(),
        used_by_host_id: token
            .used
            .map(|used| used.host.to_string())
            .unwrap_or_default(),
    }
}

pub(crate) fn failed(error: &StoreError) -> Status {
    tracing::error!(error = chain(error), "The store failed");
    Status::unavailable(format!("{}: try again", chain(error)))
}
