//! Reaching the server and the agent of this host, and what to say when they refuse.

use crate::failure::{Failure, Outcome, with_causes};
use crate::reflector::EVPN_SOCKET;
use api::ConnectError;
use api::CredentialError;
use api::tonic::transport::Channel;
use api::tonic::{Code, Status};
use api::v1;
use api::v1::agent_control_client::AgentControlClient;
use api::v1::evpn_client::EvpnClient;
use api::v1::l2_client::L2Client;
use api::v1::l3_client::L3Client;
use api::v1::management_client::ManagementClient;
use api::v1::sbs_client::SbsClient;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

/// Where the administrator's credential is after `vpc server init`.
pub(crate) const ADMIN_CREDENTIAL: &str = "/etc/vpc/admin.toml";
/// Where the host's credential is after `vpc host join`.
pub(crate) const HOST_CREDENTIAL: &str = "/etc/vpc/host.toml";
/// Where the agent of this host listens.
pub(crate) const AGENT_SOCKET: &str = "/run/vpc/agent.sock";

/// Where the server listens, unless it is told otherwise.
pub(crate) const SERVER_PORT: u16 = 7443;

/// `HOST` or `HOST:PORT` as `HOST:PORT`; an IPv6 address has brackets if it has a port.
#[expect(clippy::unnecessary_wraps, reason = "what clap calls returns a result")]
pub(crate) fn with_port(text: &str) -> Result<String, String> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(SocketAddr::new(address, SERVER_PORT).to_string());
    }
    let has_port = text
        .rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
    match has_port {
        true => Ok(text.to_owned()),
        false => Ok(format!("{text}:{SERVER_PORT}")),
    }
}

/// How to reach the server.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ServerAccess {
    /// Credential file of an administrator
    #[arg(long, global = true, env = "VPC_CREDENTIAL", value_name = "FILE",
          default_value = ADMIN_CREDENTIAL, hide_default_value = true)]
    pub(crate) credential: PathBuf,
}

/// How to reach the agent of this host.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct AgentAccess {
    /// Socket of this host's agent
    #[arg(long, env = "VPC_AGENT_SOCKET", value_name = "PATH",
          default_value = AGENT_SOCKET)]
    pub(crate) socket: PathBuf,
}

impl ServerAccess {
    /// A client of the management API.
    pub(crate) async fn management(&self) -> Outcome<ManagementClient<Channel>> {
        let path = &self.credential;
        api::connect_admin(path).await.map_err(|error| {
            let failure = Failure::new(with_causes(&error));
            match &error {
                ConnectError::Credential(CredentialError::Read { source, .. })
                    if source.kind() == io::ErrorKind::NotFound =>
                {
                    failure.hint(format!(
                        "name a credential with --credential or VPC_CREDENTIAL; `vpc server init` \
                         writes {ADMIN_CREDENTIAL} on the management host"
                    ))
                }
                ConnectError::Unreachable { .. } => failure.hint(format!(
                    "is the server up, and are the `servers` in {} where it is? On the management \
                     host: systemctl status vpc-server",
                    path.display()
                )),
                ConnectError::Credential(_) | ConnectError::Tls(_) => failure,
            }
        })
    }
}

/// Whose EVPN it is.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct EvpnAccess {
    #[command(flatten)]
    agent: AgentAccess,
    /// Of the route reflector of this host's server, in place of the agent's
    #[arg(long, value_name = "SOCKET", num_args = 0..=1, require_equals = true,
          default_missing_value = EVPN_SOCKET)]
    reflector: Option<PathBuf>,
}

impl EvpnAccess {
    /// The agent of this host.
    pub(crate) fn agent() -> Self {
        Self {
            agent: AgentAccess::usual(),
            reflector: None,
        }
    }

    /// The reflector of this host's server.
    pub(crate) fn reflector() -> Self {
        Self {
            reflector: Some(PathBuf::from(EVPN_SOCKET)),
            ..Self::agent()
        }
    }

    /// A client of what knows.
    pub(crate) async fn evpn(&self) -> Outcome<EvpnClient<Channel>> {
        let Some(reflector) = &self.reflector else {
            let evpn = api::connect_evpn(&self.agent.socket).await;
            return evpn.map_err(|error| self.agent.unreachable(&error));
        };
        let evpn = api::connect_evpn(reflector).await;
        evpn.map_err(|error| {
            Failure::new(with_causes(&error)).hint(
                "run it as root where `vpc server run` has a builtin reflector; `vpc server reflector` \
                 shows what this host has",
            )
        })
    }
}

impl AgentAccess {
    /// Where it listens unless it is told otherwise.
    pub(crate) fn usual() -> Self {
        let socket = PathBuf::from(AGENT_SOCKET);
        Self { socket }
    }

    /// A client of the agent itself.
    pub(crate) async fn agent(&self) -> Outcome<AgentControlClient<Channel>> {
        api::connect_agent(&self.socket)
            .await
            .map_err(|error| self.unreachable(&error))
    }

    /// A client of the agent's L2 service.
    pub(crate) async fn l2(&self) -> Outcome<L2Client<Channel>> {
        api::connect_l2(&self.socket)
            .await
            .map_err(|error| self.unreachable(&error))
    }

    /// A client of the agent's L3 service.
    pub(crate) async fn l3(&self) -> Outcome<L3Client<Channel>> {
        api::connect_l3(&self.socket)
            .await
            .map_err(|error| self.unreachable(&error))
    }

    /// A client of the agent's SBS service.
    pub(crate) async fn sbs(&self) -> Outcome<SbsClient<Channel>> {
        api::connect_sbs(&self.socket)
            .await
            .map_err(|error| self.unreachable(&error))
    }

    fn unreachable(&self, error: &ConnectError) -> Failure {
        Failure::new(with_causes(error)).hint(no_agent(&self.socket))
    }
}

fn no_agent(socket: &Path) -> String {
    format!(
        "start it with `vpc agent run` or systemctl start vpc-agent; {} needs root",
        socket.display()
    )
}

/// A call that was refused: what was being done, why not, what to do.
pub(crate) fn refused(doing: &str, status: &Status) -> Failure {
    let reason = match status.message() {
        "" => status.code().description(),
        message => message,
    };
    let failure = Failure::new(format!("{doing}: {reason}"));
    match status.code() {
        Code::Unauthenticated | Code::PermissionDenied => {
            failure.hint("use the credential of an administrator of this cluster (--credential)")
        }
        Code::Unavailable => {
            failure.hint("the server went away or cannot reach its database; try again")
        }
        Code::Aborted => failure.hint("somebody else changed it; look at it again, then repeat"),
        Code::DeadlineExceeded => failure.hint(
            "the change is accepted and hosts go on with it; `vpc host list` shows who is behind",
        ),
        Code::Unimplemented => {
            failure.hint("the other side is of another version; upgrade the older")
        }
        Code::NotFound => failure
            .hint("check the name; `vpc list`, `vpc nic list` and the like show what there is"),
        _ => failure,
    }
}

/// What `id:9k3v0c7m2a` and `blue/web` mean in a request.
pub(crate) fn reference(text: &str) -> v1::Ref {
    let by = match text.strip_prefix("id:") {
        Some(id) => v1::r#ref::By::Id(id.to_owned()),
        None => v1::r#ref::By::Path(text.to_owned()),
    };
    v1::Ref { by: Some(by) }
}

#[cfg(test)]
mod tests {
    use super::with_port;

    #[test]
    fn a_server_has_our_port_unless_it_names_one() {
        let port = |text| with_port(text).unwrap();
        assert_eq!(port("192.0.2.1"), "192.0.2.1:7443");
        assert_eq!(port("192.0.2.1:1"), "192.0.2.1:1");
        assert_eq!(port("2001:db8::1"), "[2001:db8::1]:7443");
        assert_eq!(port("[2001:db8::1]:9"), "[2001:db8::1]:9");
        assert_eq!(port("vpc.example.net"), "vpc.example.net:7443");
    }
}
