//! `vpc host`.

use super::request::{Deletion, Selection, get, pages};
use crate::block_on;
use crate::connect::{HOST_CREDENTIAL, reference, refused};
use crate::failure::{Doing, Failure, Outcome, with_causes};
use crate::options::Global;
use crate::output::{Format, json, print, remark};
use crate::settings::{AGENT_CONFIG, parse_role};
use crate::views::{HostView, TokenView};
use api::{Credential, EnrollError, Enrolled, Enrollment, JoinToken, v1};
use clap::{Args, Subcommand};
use model::{Name, Role, SpeakerKind, Transport};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::{IpAddr, ToSocketAddrs, UdpSocket};
use std::path::{Path, PathBuf};

/// Hosts of the cluster.
#[derive(Debug, Subcommand)]
pub(crate) enum Host {
    /// Make this machine a host of a cluster
    #[command(after_help = "Examples:
  vpc host join --server 192.0.2.1:7443 --token ID.SECRET.FINGERPRINT
  vpc host join --server 192.0.2.1:7443 --token @/root/token --name c1 --underlay 192.0.2.7 --role compute

Get a token on the management host with `vpc host token create`.")]
    Join(Join),
    /// Join tokens
    #[command(subcommand)]
    Token(Token),
    /// List hosts
    #[command(after_help = "Examples:\n  vpc host list\n  vpc host list -o json")]
    List(Selection),
    /// Show a host and what is wrong on it
    #[command(after_help = "Examples:\n  vpc host show c1")]
    Show {
        /// Name, or id:ID
        host: String,
    },
    /// Let a host take no new NICs and routers
    #[command(after_help = "Examples:\n  vpc host drain c1\n  vpc host drain c1 --undo")]
    Drain {
        /// Name, or id:ID
        host: String,
        /// Let it take new workloads again
        #[arg(long)]
        undo: bool,
    },
    /// Change a host
    #[command(after_help = "Examples:
  vpc host set c1 --speaker frr
  vpc host set c1 --role compute --role route --zone rack-2")]
    Set(Set),
    /// Remove a host without NICs and routers; its certificate is refused from then on
    #[command(after_help = "Examples:\n  vpc host remove c1")]
    Remove {
        /// Name, or id:ID
        host: String,
        #[command(flatten)]
        deletion: Deletion,
    },
}

/// `vpc host set`.
#[derive(Debug, Args)]
pub(crate) struct Set {
    /// Name, or id:ID
    host: String,
    #[command(flatten)]
    change: Change,
}

/// What of a host changes; the rest stays as it is.
#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
struct Change {
    /// Its EVPN client: builtin, or frr (FRR's bgpd and zebra, run by the agent)
    #[arg(long)]
    speaker: Option<SpeakerKind>,
    /// All its roles from now on; may be given several times
    #[arg(long, value_parser = parse_role, value_delimiter = ',')]
    role: Vec<Role>,
    /// Its failure domain from now on; empty for none
    #[arg(long)]
    zone: Option<String>,
}

/// Join tokens.
#[derive(Debug, Subcommand)]
pub(crate) enum Token {
    /// Make a token with which one host can join once; it is shown only now
    #[command(after_help = "Examples:
  vpc host token create
  vpc host token create --host c1 --role compute --ttl 600 -o json")]
    Create {
        /// The name that the host must take
        #[arg(long, value_name = "NAME")]
        host: Option<Name>,
        /// A role that it may take; may be given several times
        #[arg(long, value_parser = parse_role)]
        role: Vec<Role>,
        /// How long it is good, in seconds
        #[arg(long, value_name = "SECONDS", default_value_t = 3600,
              value_parser = clap::value_parser!(u32).range(1..=2_592_000))]
        ttl: u32,
    },
    /// List tokens
    #[command(after_help = "Examples:\n  vpc host token list")]
    List,
    /// Make a token useless
    #[command(after_help = "Examples:\n  vpc host token revoke 9k3v0c7m2a")]
    Revoke {
        /// The part of the token before its first dot
        id: String,
    },
}

/// `vpc host join`.
#[derive(Debug, Args)]
pub(crate) struct Join {
    /// HOST or HOST:PORT of a management server; may be given several times
    #[arg(long, value_name = "HOST:PORT", required = true,
          value_parser = crate::connect::with_port)]
    server: Vec<String>,
    /// The text of a token, or @FILE that holds it
    #[arg(long, env = "VPC_JOIN_TOKEN", hide_env_values = true)]
    token: String,
    /// The name of this host; its host name up to the first dot, if not given
    #[arg(long)]
    name: Option<Name>,
    /// Its address on the underlay; the one it reaches the server from, if not given
    #[arg(long, value_name = "ADDRESS")]
    underlay: Option<IpAddr>,
    /// What it is for: compute, route, management or storage; may be given several times
    #[arg(long, value_parser = parse_role, value_delimiter = ',')]
    role: Vec<Role>,
    /// Its failure domain
    #[arg(long)]
    zone: Option<Name>,
    /// Its EVPN client: builtin, or frr (FRR's bgpd and zebra, run by the agent)
    #[arg(long, default_value_t)]
    speaker: SpeakerKind,
    /// What carries its frames to other hosts, kernel or tap; a setting of its agent
    #[arg(long, default_value_t)]
    transport: Transport,
    /// Where to keep its key and certificate
    #[arg(long, value_name = "FILE", default_value = HOST_CREDENTIAL)]
    host_credential: PathBuf,
    /// Settings of the agent to write, if there are none
    #[arg(long, value_name = "FILE", default_value = AGENT_CONFIG)]
    agent_config: PathBuf,
}

impl Host {
    /// Does it.
    pub(crate) fn run(self, global: &Global) -> Outcome {
        match self {
            Self::Join(join) => join.run(global),
            Self::Token(token) => token.run(global),
            Self::List(selection) => block_on(async {
                let client = global.server.management().await?;
                let hosts = pages("listing hosts", selection.filter(), |request| {
                    let mut client = client.clone();
                    async move {
                        let page = client.list_hosts(request).await?.into_inner();
                        Ok((page.hosts, page.next_page_token))
                    }
                })
                .await?;
                let mut views: Vec<HostView> = hosts.into_iter().map(Into::into).collect();
                views.sort_by(|a, b| a.name.cmp(&b.name));
                global.output.many(&views)
            }),
            Self::Show { host } => block_on(async {
                let mut client = global.server.management().await?;
                let found = client
                    .get_host(get(&host))
                    .await
                    .map_err(|status| refused(&format!("showing host {host}"), &status))?;
                let view = HostView::from(found.into_inner());
                global.output.one(&view, &view.details())
            }),
            Self::Drain { host, undo } => {
                let doing = match undo {
                    false => format!("draining host {host}"),
                    true => format!("undraining host {host}"),
                };
                update(global, &host, &doing, |request| {
                    request.draining = Some(!undo)
                })
            }
            Self::Set(set) => set.run(global),
            Self::Remove { host, deletion } => block_on(async {
                let mut client = global.server.management().await?;
                client
                    .delete_host(deletion.of(&host))
                    .await
                    .map(drop)
                    .map_err(|status| refused(&format!("removing host {host}"), &status))
            }),
        }
    }
}

impl Set {
    fn run(self, global: &Global) -> Outcome {
        let Change {
            speaker,
            role,
            zone,
        } = self.change;
        let doing = format!("changing host {}", self.host);
        update(global, &self.host, &doing, |request| {
            if let Some(speaker) = speaker {
                request.speaker = v1::Speaker::from(speaker).into();
            }
            if !role.is_empty() {
                let roles = role.iter().map(|role| v1::Role::from(*role).into());
                request.roles = Some(v1::update_host_request::Roles {
                    roles: roles.collect(),
                });
            }
            request.zone = zone;
        })
    }
}

fn update(
    global: &Global,
    host: &str,
    doing: &str,
    change: impl FnOnce(&mut v1::UpdateHostRequest),
) -> Outcome {
    block_on(async {
        let mut client = global.server.management().await?;
        // An update needs the version it is based on; what is changed here does not depend on
        // the rest.
        let found = client
            .get_host(get(host))
            .await
            .map_err(|status| refused(doing, &status))?
            .into_inner();
        let mut request = v1::UpdateHostRequest {
            object: Some(reference(&format!("id:{}", found.id))),
            resource_version: found.meta.unwrap_or_default().resource_version,
            ..v1::UpdateHostRequest::default()
        };
        change(&mut request);
        let changed = client
            .update_host(request)
            .await
            .map_err(|status| refused(doing, &status))?;
        let view = HostView::from(changed.into_inner());
        global.output.one(&view, &view.details())
    })
}

/// A token and its text.
#[derive(Debug, Serialize)]
struct NewToken {
    #[serde(flatten)]
    token: TokenView,
    text: String,
}

impl Token {
    fn run(self, global: &Global) -> Outcome {
        block_on(async {
            let mut client = global.server.management().await?;
            match self {
                Self::Create { host, role, ttl } => {
                    let request = v1::CreateJoinTokenRequest {
                        host_name: host.map(|name| name.to_string()).unwrap_or_default(),
                        roles: role
                            .iter()
                            .map(|role| v1::Role::from(*role).into())
                            .collect(),
                        ttl_seconds: ttl,
                    };
                    let made = client
                        .create_join_token(request)
                        .await
                        .map_err(|status| refused("creating a join token", &status))?
                        .into_inner();
                    match global.output {
                        // The token alone on standard output, so that it can be caught.
                        Format::Table => {
                            remark(
                                "Good for one host. On it, as root: vpc host join --server HOST:PORT --token TOKEN",
                            );
                            print(&made.text)
                        }
                        Format::Json => json(&NewToken {
                            token: made.token.unwrap_or_default().into(),
                            text: made.text,
                        }),
                    }
                }
                Self::List => {
                    let tokens = client
                        .list_join_tokens(v1::ListJoinTokensRequest {})
                        .await
                        .map_err(|status| refused("listing join tokens", &status))?
                        .into_inner()
                        .tokens;
                    let views: Vec<TokenView> = tokens.into_iter().map(Into::into).collect();
                    global.output.many(&views)
                }
                Self::Revoke { id } => {
                    // Whoever pastes the whole text means its first part.
                    let id = id.split('.').next().unwrap_or_default().to_owned();
                    let doing = format!("revoking join token {id}");
                    client
                        .revoke_join_token(v1::RevokeJoinTokenRequest { id })
                        .await
                        .map(drop)
                        .map_err(|status| refused(&doing, &status))
                }
            }
        })
    }
}

/// What came of joining.
#[derive(Debug, Serialize)]
struct Joined {
    host_id: String,
    host_name: String,
    cluster_id: String,
    credential: PathBuf,
    agent_config: PathBuf,
    servers: Vec<String>,
}

/// That an EVPN client and a transport go together.
fn fit(speaker: SpeakerKind, transport: Transport) -> Outcome {
    match (speaker, transport) {
        (SpeakerKind::Frr, Transport::Tap) => Err(Failure::new(
            "joining this host: FRR, its EVPN client, knows of no tunnels but the kernel's, and the \
             transport is tap",
        )
        .hint("leave out --speaker frr, or --transport tap")),
        _ => Ok(()),
    }
}

/// The key of a join that did not get its answer yet: a retry must come with the same.
#[derive(Serialize, Deserialize)]
struct Pending {
    key: String,
    csr: Vec<u8>,
}

impl Join {
    fn run(self, global: &Global) -> Outcome {
        let doing = "joining this host";
        fit(self.speaker, self.transport)?;
        if self.host_credential.exists() {
            return Err(Failure::new(format!(
                "{doing}: it joined already: {} exists",
                self.host_credential.display()
            ))
            .hint("to join anew, remove the host from its cluster with `vpc host remove`, then this file"));
        }
        let token = read_token(&self.token)?;
        let name = match self.name.clone() {
            Some(name) => name,
            None => own_name()?,
        };
        let underlay = match self.underlay {
            Some(address) => address,
            None => address_towards(&self.server)?,
        };
        let enrollment = Enrollment {
            servers: self.server.clone(),
            token,
            host_name: name.clone(),
            underlay,
            roles: self.role.iter().copied().collect(),
            zone: self.zone.clone(),
            speaker: self.speaker,
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            kernel_version: nix::sys::utsname::uname()
                .map(|uname| uname.release().to_string_lossy().into_owned())
                .unwrap_or_default(),
        };
        for file in [&self.host_credential, &self.agent_config] {
            if let Some(dir) = file.parent() {
                fs::create_dir_all(dir).doing(|| format!("making {}", dir.display()))?;
            }
        }
        let pending = pending_key(&self.host_credential)?;
        let enrolled = block_on(async {
            api::enroll_with(&enrollment, &(pending.key, pending.csr))
                .await
                .map_err(|error| not_joined(&error))
        })?;
        enrolled
            .credential
            .save(&self.host_credential)
            .doing(|| format!("{doing}: it is a member, but keeping its credential failed"))?;
        drop(fs::remove_file(pending_path(&self.host_credential)));
        self.write_agent_config(&name, underlay)?;
        self.report(global, &name, enrolled)
    }

    fn write_agent_config(&self, name: &Name, underlay: IpAddr) -> Outcome {
        let path = &self.agent_config;
        if path.exists() {
            return Ok(());
        }
        let roles: BTreeSet<Role> = match self.role.as_slice() {
            [] => BTreeSet::from([Role::Compute]),
            roles => roles.iter().copied().collect(),
        };
        let roles: Vec<String> = roles
            .into_iter()
            .map(|role| format!("\"{}\"", crate::views::role(role.into())))
            .collect();
        let transport = match self.transport {
            Transport::Kernel => String::new(),
            other => format!("transport = \"{other}\"\n"),
        };
        let text = format!(
            "# Settings of this host's agent; `vpc agent run --help` shows every key.\n\
             name = \"{name}\"\nunderlay_address = \"{underlay}\"\nroles = [{}]\n{transport}credential = {:?}\n",
            roles.join(", "),
            self.host_credential.display().to_string()
        );
        fs::write(path, text).doing(|| format!("writing {}", path.display()))
    }

    fn report(&self, global: &Global, name: &Name, enrolled: Enrolled) -> Outcome {
        let joined = Joined {
            host_id: enrolled.host.to_string(),
            host_name: name.to_string(),
            cluster_id: enrolled.cluster.cluster_id,
            credential: self.host_credential.clone(),
            agent_config: self.agent_config.clone(),
            servers: enrolled.credential.servers,
        };
        let details = [
            ("host", joined.host_name.clone()),
            ("id", joined.host_id.clone()),
            ("cluster", joined.cluster_id.clone()),
            ("credential", joined.credential.display().to_string()),
            ("settings", joined.agent_config.display().to_string()),
            (
                "next",
                "systemctl enable --now vpc-agent, or vpc agent run".to_owned(),
            ),
        ];
        global.output.one(&joined, &details)
    }
}

fn read_token(text: &str) -> Outcome<JoinToken> {
    let text = match text.strip_prefix('@') {
        Some(path) => fs::read_to_string(path).doing(|| format!("reading token file {path}"))?,
        None => text.to_owned(),
    };
    text.parse::<JoinToken>()
        .map_err(|bad| Failure::new(format!("--token: {bad}")))
}

fn not_joined(error: &EnrollError) -> Failure {
    let failure = Failure::new(with_causes(error));
    match error {
        EnrollError::Refused { .. } => {
            failure.hint("a token is good for one host and one hour: make one with `vpc host token create`")
        }
        EnrollError::Connect(_) => failure.hint(
            "check --server, and that the token is of this server's cluster; then repeat the command",
        ),
        EnrollError::Key(_) | EnrollError::Answer { .. } => failure,
    }
}

/// The host name up to its first dot.
pub(crate) fn own_name() -> Outcome<Name> {
    let full = nix::unistd::gethostname().doing(|| "asking for the host's name".to_owned())?;
    let full = full.to_string_lossy();
    let first = full.split('.').next().unwrap_or_default().to_lowercase();
    Name::new(first).map_err(|bad| {
        Failure::new(format!("this host's name: {bad}")).hint("give it a name with --name")
    })
}

/// The address that packets to the server leave from. Nothing is sent.
fn address_towards(servers: &[String]) -> Outcome<IpAddr> {
    let ask = |server: &String| -> io::Result<IpAddr> {
        let target = server
            .to_socket_addrs()?
            .next()
            .ok_or_else(|| io::Error::other("it has no address"))?;
        let any: IpAddr = match target.is_ipv4() {
            true => [0, 0, 0, 0].into(),
            false => [0_u16; 8].into(),
        };
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect(target)?;
        Ok(socket.local_addr()?.ip())
    };
    let [first, ..] = servers else {
        return Err(Failure::new("joining this host: no server was named"));
    };
    ask(first).map_err(|error| {
        Failure::new(format!(
            "joining this host: finding its address towards {first}: {error}"
        ))
        .hint("write the server as HOST:PORT, or name this host's address with --underlay")
    })
}

fn pending_path(credential: &Path) -> PathBuf {
    let mut name = credential.as_os_str().to_owned();
    name.push(".joining");
    PathBuf::from(name)
}

fn pending_key(credential: &Path) -> Outcome<Pending> {
    let path = pending_path(credential);
    match fs::read_to_string(&path) {
        Ok(text) => {
            if let Ok(pending) = serde_json::from_str(&text) {
                return Ok(pending);
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).doing(|| format!("reading {}", path.display())),
    }
    let (key, csr) = api::pki::host_csr().doing(|| "making this host's key".to_owned())?;
    let pending = Pending { key, csr };
    let text = serde_json::to_string(&pending).expect("a text and a list have a JSON form");
    api::write_private(&path, text.as_bytes()).doing(|| format!("writing {}", path.display()))?;
    Ok(pending)
}

/// Until when this host's certificate is good; for `vpc doctor`.
pub(crate) fn credential_state(path: &Path) -> Outcome<(Credential, u64)> {
    let credential = Credential::load(path).doing(|| "this host's credential".to_owned())?;
    let (_, until) = credential
        .validity()
        .doing(|| "this host's credential".to_owned())?;
    let until = until
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    Ok((
        credential,
        u64::try_from(until.as_millis()).unwrap_or(u64::MAX),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frr_does_not_join_with_taps() {
        let kinds = [SpeakerKind::Builtin, SpeakerKind::Frr];
        let transports = [Transport::Kernel, Transport::Tap];
        for (speaker, transport) in kinds.into_iter().flat_map(|k| transports.map(|t| (k, t))) {
            let refused = speaker == SpeakerKind::Frr && transport == Transport::Tap;
            assert_eq!(fit(speaker, transport).is_err(), refused);
        }
        let refusal = fit(SpeakerKind::Frr, Transport::Tap).unwrap_err();
        assert!(
            refusal
                .message()
                .contains("knows of no tunnels but the kernel's")
        );
    }
}
