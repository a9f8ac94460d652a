//! `vpc server`.

use super::logging;
use super::reflector::{ReflectorConfig, ShowReflector};
use crate::connect::ADMIN_CREDENTIAL;
use crate::failure::{Doing, Failure, Outcome};
use crate::options::Global;
use crate::reflector::{self, Reflector};
use crate::settings::{
    ReflectorKind, ReflectorWord, SERVER, SERVER_CONFIG, SERVER_DATA, SERVER_EXAMPLE,
    ServerSettings, Sources, parse_reflector, parse_reflector_word,
};
use api::Credential;
use clap::{Args, Subcommand};
use controller::{InitOptions, RunOptions, Server as Running};
use model::{Asn, Mtu};
use serde::Serialize;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use tokio::signal::unix::{SignalKind, signal};
use tracing::info;

/// The management server.
#[derive(Debug, Subcommand)]
pub(crate) enum Server {
    /// Make a cluster: data directory, certificate authority, administrator's credential
    #[command(after_help = "Examples:
  vpc server init --advertise 192.0.2.1
  vpc server init --advertise 192.0.2.1:7443 --database postgres://vpc@db/vpc --underlay-mtu 9000

Writes the administrator's credential and the server's settings below /etc/vpc; the server is
then run with `vpc server run`.")]
    Init(Box<Init>),
    /// Run the server
    #[command(after_help = run_help())]
    Run(Run),
    /// How this server's route reflector is
    #[command(after_help = "Examples:\n  vpc server reflector\n  vpc server reflector -o json")]
    Reflector(ShowReflector),
    /// The whole configuration of a route reflector that is not this server's
    #[command(after_help = "Examples:
  vpc server reflector-config gobgp
  vpc server reflector-config frr --address 192.0.2.9 > /etc/frr/frr.conf

It has the cluster's key and every host that has joined: print it again when hosts come or go.")]
    ReflectorConfig(ReflectorConfig),
}

/// `vpc server init`.
#[derive(Debug, Args)]
pub(crate) struct Init {
    /// HOST or HOST:PORT by which hosts and administrators reach the server; may be given several
    /// times
    #[arg(long, visible_alias = "address", value_name = "HOST:PORT", required = true,
          value_parser = crate::connect::with_port)]
    advertise: Vec<String>,
    /// Where to listen; on all addresses, at the port of --advertise, if not given
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,
    /// What reflects routes, builtin, frr or external, or where, ADDRESS or ADDRESS:PORT; may be
    /// given several times. Built in, at the address of --advertise, if nothing is said
    #[arg(long, value_name = "KIND|ADDRESS", value_parser = parse_reflector_word)]
    reflector: Vec<ReflectorWord>,
    /// postgres://USER:PASSWORD@HOST/DATABASE; SQLite in the data directory if not given
    #[arg(
        long,
        value_name = "URL",
        env = "VPC_SERVER_DATABASE",
        hide_env_values = true
    )]
    database: Option<String>,
    /// Where the cluster's keys and the SQLite database are to be; must be empty
    #[arg(long, value_name = "DIR", default_value = SERVER_DATA)]
    data_dir: PathBuf,
    /// AS of the fabric
    #[arg(long, value_parser = parse_asn)]
    asn: Option<Asn>,
    /// What the underlay carries between any two hosts
    #[arg(long, value_name = "BYTES", default_value_t = 1500)]
    underlay_mtu: u32,
    /// How long a freed address, MAC, VNI or VLAN stays unused
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    hold: u32,
    /// Where to put the administrator's credential
    #[arg(long, value_name = "FILE", default_value = ADMIN_CREDENTIAL)]
    admin_credential: PathBuf,
    /// Where to put the server's settings
    #[arg(long, value_name = "FILE", default_value = SERVER_CONFIG)]
    config: PathBuf,
}

/// `vpc server run`. A flag wins over the environment, that over the file.
#[derive(Debug, Args)]
pub(crate) struct Run {
    /// The file with its settings
    #[arg(long, value_name = "FILE", env = "VPC_SERVER_CONFIG")]
    config: Option<PathBuf>,
    /// What `vpc server init` made
    #[arg(long, value_name = "DIR")]
    data_dir: Option<String>,
    /// Where to listen
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<String>,
    /// What reflects routes, builtin, frr (run by this server) or external, or where, ADDRESS or
    /// ADDRESS:PORT; may be given several times
    #[arg(long, value_name = "KIND|ADDRESS", value_parser = parse_reflector_word)]
    reflector: Vec<ReflectorWord>,
    /// Instead of the database that `init` was told
    #[arg(long, value_name = "URL")]
    database: Option<String>,
    /// Where to give out metrics, over HTTP
    #[arg(long, value_name = "ADDRESS:PORT")]
    metrics: Option<String>,
    /// What to log, as RUST_LOG has it
    #[arg(long)]
    log: Option<String>,
}

fn run_help() -> String {
    format!(
        "Examples:
  vpc server run
  vpc server run --reflector frr
  VPC_SERVER_LOG=debug vpc server run --config /etc/vpc/server.toml

Settings come from {SERVER_CONFIG}, then VPC_SERVER_* (as in VPC_SERVER_DATA_DIR), then flags;
the later wins. A file with every key:

{SERVER_EXAMPLE}"
    )
}

fn parse_asn(text: &str) -> Result<Asn, String> {
    text.parse::<u32>()
        .ok()
        .and_then(Asn::new)
        .ok_or_else(|| format!("{text:?} is not a number from 1 to 4294967295"))
}

impl Server {
    /// Does it.
    pub(crate) fn run(self, global: &Global) -> Outcome {
        match self {
            Self::Init(init) => init.run(global),
            Self::Run(run) => run.run(),
            Self::Reflector(show) => show.run(global),
            Self::ReflectorConfig(config) => config.run(),
        }
    }
}

/// What `init` made.
#[derive(Debug, Serialize)]
struct Made {
    cluster_id: String,
    ca_fingerprint: String,
    data_dir: PathBuf,
    credential: PathBuf,
    config: PathBuf,
}

/// The settings that `init` writes.
#[derive(Debug, Serialize)]
struct ServerFile {
    data_dir: PathBuf,
    listen: SocketAddr,
    advertise: Vec<String>,
    #[serde(skip_serializing_if = "is_builtin")]
    reflector_kind: ReflectorKind,
    #[serde(skip_serializing_if = "Option::is_none")]
    reflector: Option<SocketAddr>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    reflectors: Vec<SocketAddr>,
    asn: u32,
}

impl Init {
    fn run(self, global: &Global) -> Outcome {
        let doing = "making a cluster";
        for file in [&self.admin_credential, &self.config] {
            if file.exists() {
                return Err(Failure::new(format!("{doing}: {} exists", file.display()))
                    .hint("it is of another cluster: move it away, or name another with --admin-credential and --config"));
            }
        }
        let port = port_of(&self.advertise)?;
        let mut options = InitOptions::new(&self.data_dir, self.advertise.clone());
        options.database.clone_from(&self.database);
        options.underlay_mtu =
            Mtu::new(self.underlay_mtu).map_err(|bad| Failure::new(format!("{doing}: {bad}")))?;
        options.hold_millis = u64::from(self.hold) * 1000;
        if let Some(asn) = self.asn {
            options.asn = asn;
        }
        let (kind, addresses) = told(&self.reflector);
        let kind = kind.unwrap_or_default();
        let external = kind == ReflectorKind::External;
        if external && addresses.is_empty() {
            return Err(
                Failure::new(format!("{doing}: --reflector external, and no address"))
                    .hint("add --reflector ADDRESS for each route reflector"),
            );
        }
        let own = addresses
            .first()
            .copied()
            .or_else(|| own_reflector(&self.advertise));
        let file = ServerFile {
            data_dir: self.data_dir.clone(),
            listen: self
                .listen
                .unwrap_or_else(|| SocketAddr::from(([0_u16; 8], port))),
            advertise: self.advertise.clone(),
            reflector_kind: kind,
            reflector: own.filter(|_| !external),
            reflectors: match external {
                true => addresses,
                false => Vec::new(),
            },
            asn: options.asn.get(),
        };
        let made =
            crate::block_on(async { controller::init(options).await.doing(|| doing.to_owned()) })?;
        let credential = Credential::load(&made.admin_credential)
            .doing(|| "reading the new credential".to_owned())?;
        make_parent(&self.admin_credential)?;
        credential
            .save(&self.admin_credential)
            .doing(|| "keeping the new credential".to_owned())?;
        write_settings(&self.config, &file)?;
        let made = Made {
            cluster_id: made.cluster,
            ca_fingerprint: made.ca_fingerprint,
            data_dir: self.data_dir,
            credential: self.admin_credential,
            config: self.config,
        };
        let details = [
            ("cluster", made.cluster_id.clone()),
            ("CA fingerprint", made.ca_fingerprint.clone()),
            ("data", made.data_dir.display().to_string()),
            ("credential", made.credential.display().to_string()),
            ("settings", made.config.display().to_string()),
            (
                "next",
                "systemctl enable --now vpc-server, or vpc server run".to_owned(),
            ),
        ];
        global.output.one(&made, &details)
    }
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "what serde calls takes a reference"
)]
fn is_builtin(kind: &ReflectorKind) -> bool {
    *kind == ReflectorKind::Builtin
}

/// What reflects, if it was said, and where.
fn told(words: &[ReflectorWord]) -> (Option<ReflectorKind>, Vec<SocketAddr>) {
    let (mut kind, mut addresses) = (None, Vec::new());
    for word in words {
        match word {
            ReflectorWord::Kind(said) => kind = Some(*said),
            ReflectorWord::At(address) => addresses.push(*address),
        }
    }
    (kind, addresses)
}

fn port_of(advertise: &[String]) -> Outcome<u16> {
    let [first, ..] = advertise else {
        return Err(Failure::new("making a cluster: no address was given"));
    };
    first
        .rsplit_once(':')
        .and_then(|(_, port)| port.parse().ok())
        .ok_or_else(|| {
            Failure::new(format!("--advertise {first}: it has no port"))
                .hint("write HOST:PORT, as in 192.0.2.1:7443")
        })
}

/// The reflector beside the server, if the server is known by an address.
fn own_reflector(advertise: &[String]) -> Option<SocketAddr> {
    let address: SocketAddr = advertise.first()?.parse().ok()?;
    parse_reflector(&address.ip().to_string()).ok()
}

fn make_parent(file: &Path) -> Outcome {
    let Some(dir) = file.parent() else {
        return Ok(());
    };
    fs::create_dir_all(dir).doing(|| format!("making {}", dir.display()))
}

/// Only for its owner: an administrator may add a database's password.
fn write_settings(path: &Path, file: &ServerFile) -> Outcome {
    use std::io::Write;
    make_parent(path)?;
    let text = toml::to_string(file).doing(|| format!("writing {}", path.display()))?;
    fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut to| {
            writeln!(
                to,
                "# Settings of the server; `vpc server run --help` shows every key."
            )?;
            to.write_all(text.as_bytes())
        })
        .doing(|| format!("writing {}", path.display()))
}

impl Run {
    fn run(&self) -> Outcome {
        let settings = self.settings()?;
        logging::start(&settings.log)?;
        tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .doing(|| "starting the event loop".to_owned())?
            .block_on(serve(settings))
    }

    fn settings(&self) -> Outcome<ServerSettings> {
        let mut sources = Sources::new(&SERVER);
        match &self.config {
            Some(path) => sources.read_file(path, true)?,
            None => sources.read_file(SERVER_CONFIG.as_ref(), false)?,
        }
        sources.add_env();
        for (key, flag) in [
            ("data_dir", &self.data_dir),
            ("listen", &self.listen),
            ("database", &self.database),
            ("metrics", &self.metrics),
            ("log", &self.log),
        ] {
            if let Some(value) = flag {
                sources.add_flag(key, value);
            }
        }
        let (kind, addresses) = told(&self.reflector);
        if let Some(kind) = kind {
            sources.add_flag("reflector_kind", kind.name());
        }
        let key = match kind {
            Some(ReflectorKind::External) => "reflectors",
            _ => "reflector",
        };
        let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        if !addresses.is_empty() {
            sources.add_flag(key, &addresses.join(","));
        }
        sources.server()
    }
}

async fn serve(settings: ServerSettings) -> Outcome {
    let listen = settings.listen.ok_or_else(|| {
        Failure::new("settings of the server: listen is not set").hint(format!(
            "`vpc server init` writes {SERVER_CONFIG}; or give it with --listen ADDRESS:PORT"
        ))
    })?;
    let mut options = RunOptions::new(&settings.data_dir, listen);
    options.database.clone_from(&settings.database);
    options.advertise.clone_from(&settings.advertise);
    options.names.clone_from(&settings.names);
    options.sign_bgp = settings.sign_bgp;
    options.reflectors = reflector::addresses(&settings)?;
    if let Some(after) = settings.replace_replicas {
        options.replace_after = after;
    }
    let watching = || "watching for signals".to_owned();
    let mut terminate = signal(SignalKind::terminate()).doing(watching)?;
    let mut interrupt = signal(SignalKind::interrupt()).doing(watching)?;
    let mut server = Running::start(options)
        .await
        .doing(|| "starting the server".to_owned())?;
    let mut reflector = Reflector::start(&server, &settings).await?;
    if let Some(address) = settings.metrics {
        reflector.give_out_metrics(address);
    }
    let ended = tokio::select! {
        ended = server.ended() => Some(ended),
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
    };
    reflector.stop().await;
    match ended {
        Some(ended) => ended.doing(|| "running the server".to_owned()),
        None => {
            info!("Stopping");
            server
                .stop()
                .await
                .doing(|| "stopping the server".to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reflector_is_where_the_server_is() {
        let found = |text: &str| own_reflector(&[text.to_owned()]).map(|a| a.to_string());
        assert_eq!(found("192.0.2.1:7443").as_deref(), Some("192.0.2.1:179"));
        assert_eq!(found("vpc.example.net:7443"), None);
    }
}
