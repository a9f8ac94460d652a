//! `vpc server reflector` and `vpc server reflector-config`.

use crate::failure::{Failure, Outcome};
use crate::options::Global;
use crate::output::{Format, Row, ago, print};
use crate::reflector::{self, Asked, PeerState, SOCKET, gobgp, reflector_id};
use crate::settings::parse_reflector;
use clap::{Args, ValueEnum};
use frr::Wanted;
use model::{Asn, Secret};
use std::net::SocketAddr;
use std::path::PathBuf;

/// `vpc server reflector`.
#[derive(Debug, Args)]
pub(crate) struct ShowReflector {
    /// Where the server tells of its reflector
    #[arg(long, value_name = "PATH", default_value = SOCKET)]
    socket: PathBuf,
}

/// `vpc server reflector-config`.
#[derive(Debug, Args)]
pub(crate) struct ReflectorConfig {
    /// For what
    software: Software,
    /// Where it is to listen; the only reflector that hosts are told of, if not given
    #[arg(long, value_name = "ADDRESS", value_parser = parse_reflector)]
    address: Option<SocketAddr>,
    /// Where the server tells of its hosts
    #[arg(long, value_name = "PATH", default_value = SOCKET)]
    socket: PathBuf,
}

/// What a configuration can be printed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Software {
    /// GoBGP 3, as gobgpd.toml
    Gobgp,
    /// FRR 8.4 or later, as frr.conf
    Frr,
}

impl ShowReflector {
    /// Does it.
    pub(crate) fn run(&self, global: &Global) -> Outcome {
        let state = reflector::ask(&self.socket)?.state;
        if global.output == Format::Json {
            return crate::output::json(&state);
        }
        let list: Vec<String> = state.reflectors.iter().map(ToString::to_string).collect();
        let or_nothing = |count: u64| match count {
            0 => String::new(),
            count => count.to_string(),
        };
        let details = [
            ("kind", state.kind.name().to_owned()),
            (
                "listens",
                state.listen.map_or_else(String::new, |at| at.to_string()),
            ),
            ("hosts use", list.join(", ")),
            ("version", state.version.clone().unwrap_or_default()),
            ("problem", state.problem.clone().unwrap_or_default()),
            ("restarts", or_nothing(state.restarts)),
            ("drift", or_nothing(state.drift)),
        ];
        global.output.one(&state, &details)?;
        if state.listen.is_none() {
            return print(
                "\nThis server runs none: its own tools, and `vpc evpn peers` on hosts, show more.",
            );
        }
        print("")?;
        global.output.many(&state.peers)
    }
}

impl Row for PeerState {
    const COLUMNS: &'static [&'static str] =
        &["peer", "state", "since", "received", "sent", "problem"];
    fn cells(&self) -> Vec<String> {
        vec![
            self.address.to_string(),
            self.state.clone(),
            ago(self.since_unix_ms),
            self.routes_received.to_string(),
            self.sent.to_string(),
            self.problem.clone().unwrap_or_else(|| "-".to_owned()),
        ]
    }
}

impl ReflectorConfig {
    /// Does it.
    pub(crate) fn run(&self) -> Outcome {
        let told = reflector::ask(&self.socket)?;
        let doing = "printing a reflector's configuration";
        let listen = match (self.address, told.state.reflectors.as_slice()) {
            (Some(address), _) => address,
            (None, [only]) => *only,
            (None, all) => {
                return Err(Failure::new(format!(
                    "{doing}: the server's setting reflectors has {} addresses",
                    all.len()
                ))
                .hint("say with --address for which"));
            }
        };
        let asn = told
            .asn
            .and_then(Asn::new)
            .ok_or_else(|| Failure::new(format!("{doing}: the server's setting asn is not set")))?;
        print(self.software.render(listen, asn, &told).trim_end())
    }
}

impl Software {
    fn render(self, listen: SocketAddr, asn: Asn, told: &Asked) -> String {
        match self {
            Self::Gobgp => {
                let key = told.key.as_ref().map(|Secret(key)| key.as_str());
                gobgp(listen, asn.get(), &told.hosts, key)
            }
            Self::Frr => {
                let local = listen.ip();
                let mut wanted = Wanted::reflector(reflector_id(local), local, asn);
                wanted.set_clients(&told.hosts, told.key.as_ref());
                wanted.config().render()
            }
        }
    }
}
