//! Who may call what.

use crate::listener::Peer;
use api::pki::Role;
use api::tonic::{Request, Status};
use model::HostId;

/// The certificates' cluster is that of the CA, which the handshake verified; it is compared all
/// the same, for the case that two clusters were made with one CA key.
pub(crate) fn admin<T>(request: &Request<T>, cluster: &str) -> Result<String, Status> {
    match role(request, cluster)? {
        Role::Admin(name) => Ok(format!("admin/{name}")),
        Role::Host(_) => Err(Status::permission_denied(
            "this call is for administrators, and a host's certificate was shown: use an admin credential (`vpc server init` writes one)",
        )),
    }
}

/// The host that calls.
pub(crate) fn host<T>(request: &Request<T>, cluster: &str) -> Result<HostId, Status> {
    match role(request, cluster)? {
        Role::Host(id) => Ok(id),
        Role::Admin(_) => Err(Status::permission_denied(
            "this call is for hosts, and an administrator's certificate was shown: let the machine join (`vpc host join`)",
        )),
    }
}

/// Where the call comes from.
pub(crate) fn peer<T>(request: &Request<T>) -> Result<&Peer, Status> {
    request
        .extensions()
        .get()
        .ok_or_else(|| Status::internal("the connection has no peer: this is a bug"))
}

fn role<T>(request: &Request<T>, cluster: &str) -> Result<Role, Status> {
    let identity = peer(request)?.identity.as_ref().ok_or_else(|| {
        Status::unauthenticated(
            "this call needs a client certificate of the cluster: use an admin credential, or join this host",
        )
    })?;
    if identity.cluster != cluster {
        return Err(Status::unauthenticated(format!(
            "the certificate is of cluster {}, this is {cluster}: use a credential of this cluster",
            identity.cluster
        )));
    }
    Ok(identity.role.clone())
}
