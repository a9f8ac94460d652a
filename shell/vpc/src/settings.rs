//! Settings of the daemons: a TOML file, then `VPC_AGENT_*` or `VPC_SERVER_*` in the environment,
//! then flags. The later wins. Every bad key is reported at once, with where it came from.

use crate::connect::{AGENT_SOCKET, HOST_CREDENTIAL};
use crate::failure::{Doing, Failure, Outcome};
use datapath::Limits;
use model::{Asn, Capability, Name, Role, Transport, VolumeSize};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where the agent's settings are.
pub(crate) const AGENT_CONFIG: &str = "/etc/vpc/agent.toml";
/// Where the server's settings are.
pub(crate) const SERVER_CONFIG: &str = "/etc/vpc/server.toml";
/// Where the server keeps the cluster, unless it is told otherwise.
pub(crate) const SERVER_DATA: &str = "/var/lib/vpc/server";
/// The server's run directory, unless it is told otherwise.
pub(crate) const RUN_DIR: &str = "/run/vpc";
/// The port of BGP (RFC 4271 §8.2.1).
const BGP_PORT: u16 = 179;
/// The port of DNS.
const DNS_PORT: u16 = 53;
/// The longest pace that makes sense, in seconds.
const LONGEST_PACE: u64 = 86_400;

/// How an agent runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AgentSettings {
    /// The name of the host, as it joined. Its host name up to the first dot, if absent.
    pub(crate) name: Option<Name>,
    /// The VTEP's address, on an interface of this host. Required.
    pub(crate) underlay_address: Option<IpAddr>,
    /// What carries frames to other hosts.
    pub(crate) transport: Transport,
    /// Questions of a port that the datapath answers in a second.
    pub(crate) port_questions: Option<u32>,
    /// Frames of a subnet that the datapath sends to all in a second.
    pub(crate) subnet_flood: Option<u32>,
    /// What the kernel can do, and is not to be used.
    pub(crate) without: BTreeSet<Capability>,
    /// What the host is for. In this build all roles run the same parts.
    pub(crate) roles: BTreeSet<Role>,
    /// What `vpc host join` wrote. Absent: no server, only the API of this host.
    pub(crate) credential: Option<PathBuf>,
    /// Configuration and local objects, kept over restarts and reboots.
    pub(crate) state_dir: Option<PathBuf>,
    /// What is gone after a reboot, as the kernel's objects are.
    pub(crate) run_dir: Option<PathBuf>,
    /// Where the API of this host listens.
    pub(crate) socket: PathBuf,
    /// Between full looks at the kernel.
    pub(crate) resync: Option<Duration>,
    /// How long a local stack without NICs stays.
    pub(crate) unused_stack: Option<Duration>,
    /// `auto` or `keep`: whether bridged frames go on to meet the host's IP hooks where nobody has
    /// rules there.
    pub(crate) keep_bridge_netfilter: bool,
    /// The most MACs of other hosts in an EVPN instance.
    pub(crate) mac_limit: Option<u32>,
    /// The most flows that a router here tracks.
    pub(crate) router_flows: Option<u32>,
    /// Where metrics are given out.
    pub(crate) metrics: Option<SocketAddr>,
    /// Whom routers of this host ask for names outside of their VPC.
    pub(crate) resolvers: Option<Vec<SocketAddr>>,
    /// The disk for replicas of volumes: a file, which is made, or a block device.
    pub(crate) storage_path: Option<PathBuf>,
    /// The size of the file that is made.
    pub(crate) storage_size: Option<VolumeSize>,
    /// What to log, as `RUST_LOG` has it: `info`, `agent=debug`.
    pub(crate) log: String,
}

/// How a server runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServerSettings {
    /// What `vpc server init` made.
    pub(crate) data_dir: PathBuf,
    /// Instead of the database that `init` was told.
    pub(crate) database: Option<String>,
    /// Where the API listens. Required.
    pub(crate) listen: Option<SocketAddr>,
    /// `host:port` of every server of the cluster.
    pub(crate) advertise: Vec<String>,
    /// For the certificate.
    pub(crate) names: Vec<String>,
    /// What is gone after a reboot: the socket that tells of the reflector, and FRR's files.
    pub(crate) run_dir: PathBuf,
    /// What reflects on this host.
    pub(crate) reflector_kind: ReflectorKind,
    /// Where the route reflector of this server listens.
    pub(crate) reflector: Option<SocketAddr>,
    /// Every route reflector of the cluster.
    pub(crate) reflectors: Vec<SocketAddr>,
    /// AS of the fabric.
    pub(crate) asn: Option<Asn>,
    /// BGP sessions are signed.
    /// How long a replica of a volume may be away.
    pub(crate) replace_replicas: Option<Duration>,
    pub(crate) sign_bgp: bool,
    /// Where metrics are given out.
    pub(crate) metrics: Option<SocketAddr>,
    /// What to log.
    pub(crate) log: String,
}

/// What reflects routes on a management host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ReflectorKind {
    /// This process.
    #[default]
    Builtin,
    /// FRR, which the server configures and watches.
    Frr,
    /// Somebody else's: hosts are told where.
    External,
}

impl ReflectorKind {
    /// As it is written.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Builtin => "builtin",
            Self::Frr => "frr",
            Self::External => "external",
        }
    }
}

/// A word about reflectors: what reflects, or where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReflectorWord {
    /// What.
    Kind(ReflectorKind),
    /// Where.
    At(SocketAddr),
}

/// A setting that cannot be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BadKey {
    key: String,
    origin: String,
    reason: String,
}

/// A value and where it came from.
#[derive(Debug, Clone)]
struct Given {
    origin: String,
    value: toml::Value,
}

/// What a daemon can be told.
#[derive(Debug)]
pub(crate) struct Schema {
    /// Whose settings these are.
    pub(crate) what: &'static str,
    /// Of variables.
    prefix: &'static str,
    /// Keys, and how a word of the environment or of a flag becomes a value.
    keys: &'static [(&'static str, Word)],
}

/// How one word becomes a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Word {
    Text,
    /// With commas between.
    List,
    Number,
    /// true or false.
    Flag,
}

/// The agent's.
pub(crate) const AGENT: Schema = Schema {
    what: "agent",
    prefix: "VPC_AGENT_",
    keys: &[
        ("bridge_netfilter", Word::Text),
        ("credential", Word::Text),
        ("log", Word::Text),
        ("mac_limit", Word::Number),
        ("metrics", Word::Text),
        ("metrics_public", Word::Flag),
        ("name", Word::Text),
        ("port_questions_per_s", Word::Number),
        ("resolvers", Word::List),
        ("resync_secs", Word::Number),
        ("roles", Word::List),
        ("router_flows", Word::Number),
        ("run_dir", Word::Text),
        ("socket", Word::Text),
        ("state_dir", Word::Text),
        ("storage_path", Word::Text),
        ("storage_size", Word::Text),
        ("subnet_flood_per_s", Word::Number),
        ("transport", Word::Text),
        ("underlay_address", Word::Text),
        ("unused_stack_secs", Word::Number),
        ("without", Word::List),
    ],
};

/// The server's.
pub(crate) const SERVER: Schema = Schema {
    what: "server",
    prefix: "VPC_SERVER_",
    keys: &[
        ("advertise", Word::List),
        ("asn", Word::Number),
        ("data_dir", Word::Text),
        ("database", Word::Text),
        ("listen", Word::Text),
        ("log", Word::Text),
        ("metrics", Word::Text),
        ("metrics_public", Word::Flag),
        ("names", Word::List),
        ("reflector", Word::Text),
        ("reflector_kind", Word::Text),
        ("reflectors", Word::List),
        ("replace_replicas_secs", Word::Number),
        ("run_dir", Word::Text),
        ("sign_bgp", Word::Flag),
    ],
};

/// Values by key; a later source replaces an earlier one's.
#[derive(Debug)]
pub(crate) struct Sources {
    schema: &'static Schema,
    given: BTreeMap<String, Given>,
}

/// A file with every key, for `--help`.
pub(crate) const AGENT_EXAMPLE: &str = r#"name = "c1"                          # as it joined
underlay_address = "192.0.2.7"       # the VTEP's; required
transport = "kernel"                 # kernel: VXLAN devices; tap: TAP devices and a process of its own
port_questions_per_s = 200           # of ARP and ND, answered for each port where the transport is tap
subnet_flood_per_s = 10000           # broadcast and multicast frames of a subnet sent to all, where it is tap
without = []                         # of the kernel not used: "vlan-filtering", "vlan-devices", "cls-bpf"
roles = ["compute"]                  # compute, route, management, storage
credential = "/etc/vpc/host.toml"    # of `vpc host join`; without it no server
state_dir = "/var/lib/vpc/agent"
run_dir = "/run/vpc"
socket = "/run/vpc/agent.sock"
resync_secs = 30                     # between full looks at the kernel
unused_stack_secs = 600              # a local stack without NICs goes after this
bridge_netfilter = "auto"            # bridge-nf-call-*: off if nobody has rules there; or "keep"
mac_limit = 20000                    # MACs of other hosts in a subnet, at most; without it any number
router_flows = 65536                 # flows that a router here tracks, at most
metrics = "127.0.0.1:9476"           # for Prometheus, over HTTP; without it none
metrics_public = false               # true: metrics may be at an address that others reach
resolvers = ["192.0.2.53"]           # asked by routers here for other names; [] for none, without it those of /etc/resolv.conf
storage_path = "/var/lib/vpc/storage/disk"  # replicas of volumes: a file, or a block device
storage_size = "100GiB"              # of the file, which is written through once; without it no file is made
log = "info"                         # as RUST_LOG has it"#;

/// A file with every key, for `--help`.
pub(crate) const SERVER_EXAMPLE: &str = r#"data_dir = "/var/lib/vpc/server"     # what `vpc server init` made
listen = "[::]:7443"
advertise = ["192.0.2.1:7443"]       # every server, as hosts and administrators reach it
names = ["vpc.example.net"]          # for the certificate, for clients that are not ours
database = "postgres://..."          # instead of the one that `init` was told
reflector = "192.0.2.1:179"          # where this server's route reflector listens; without it none
reflector_kind = "builtin"           # builtin, frr (this server runs it), external (it runs none)
reflectors = ["192.0.2.1:179"]       # every route reflector, for the hosts; else only this one
run_dir = "/run/vpc"
asn = 65000                          # of the fabric, as `init` was told
sign_bgp = true                      # TCP-MD5 with the cluster's secret
replace_replicas_secs = 600          # a replica of a volume that is away for so long gives way to another
metrics = "127.0.0.1:9475"           # for Prometheus, over HTTP; without it none
metrics_public = false               # true: metrics may be at an address that others reach
log = "info"                         # as RUST_LOG has it"#;

impl Sources {
    /// Nothing yet.
    pub(crate) fn new(schema: &'static Schema) -> Self {
        Self {
            schema,
            given: BTreeMap::new(),
        }
    }

    /// From a file, which may be absent if it is where it is looked for by default.
    pub(crate) fn read_file(&mut self, path: &Path, required: bool) -> Outcome {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound && !required => return Ok(()),
            Err(error) => {
                return Err(error).doing(|| format!("reading {}", path.display()));
            }
        };
        self.add_text(&path.display().to_string(), &text)
    }

    fn add_text(&mut self, origin: &str, text: &str) -> Outcome {
        let table: toml::Table = toml::from_str(text).map_err(|error| {
            Failure::new(format!("{origin}: {}", error.to_string().trim_end()))
                .hint("it is a TOML file: KEY = VALUE, with texts in double quotes")
        })?;
        for (key, value) in table {
            self.set(&key, origin, value);
        }
        Ok(())
    }

    /// From the environment: `VPC_AGENT_STATE_DIR` is `state_dir`; lists have commas.
    pub(crate) fn add_env(&mut self) {
        let text = |(name, value): (OsString, OsString)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        self.add_variables(std::env::vars_os().filter_map(text));
    }

    fn add_variables(&mut self, variables: impl Iterator<Item = (String, String)>) {
        for (name, value) in variables {
            match name.strip_prefix(self.schema.prefix) {
                // Names the file itself.
                None | Some("CONFIG") => {}
                Some(key) => self.add_word(&key.to_lowercase(), &name, &value),
            }
        }
    }

    /// From a flag.
    pub(crate) fn add_flag(&mut self, key: &str, value: &str) {
        self.add_word(key, &format!("--{}", key.replace('_', "-")), value);
    }

    fn add_word(&mut self, key: &str, origin: &str, word: &str) {
        let kind = self.schema.keys.iter().find(|(known, _)| *known == key);
        let value = match kind.map_or(Word::Text, |(_, kind)| *kind) {
            Word::Text => word.into(),
            Word::List => words(word),
            // What does not parse stays text, and is told as what it is not.
            Word::Number => word
                .parse::<i64>()
                .map_or_else(|_| word.into(), toml::Value::Integer),
            Word::Flag => word
                .parse::<bool>()
                .map_or_else(|_| word.into(), toml::Value::Boolean),
        };
        self.set(key, origin, value);
    }

    fn set(&mut self, key: &str, origin: &str, value: toml::Value) {
        let origin = origin.to_owned();
        self.given.insert(key.to_owned(), Given { origin, value });
    }

    fn reader(self) -> Reader {
        Reader {
            schema: self.schema,
            given: self.given,
            bad: Vec::new(),
        }
    }

    /// An agent's settings, or all that is wrong with them.
    pub(crate) fn agent(self) -> Outcome<AgentSettings> {
        let mut reader = self.reader();
        let settings = AgentSettings {
            name: reader.parsed("name"),
            underlay_address: reader.checked("underlay_address", parse_underlay),
            transport: reader
                .checked("transport", parse_transport)
                .unwrap_or_default(),
            port_questions: reader.per_second("port_questions_per_s"),
            subnet_flood: reader.per_second("subnet_flood_per_s"),
            without: reader
                .list("without", parse_spared)
                .map_or_else(BTreeSet::new, BTreeSet::from_iter),
            roles: reader
                .list("roles", parse_role)
                .map_or_else(|| BTreeSet::from([Role::Compute]), BTreeSet::from_iter),
            credential: reader.path("credential").or_else(found_credential),
            state_dir: reader.path("state_dir"),
            run_dir: reader.path("run_dir"),
            socket: reader
                .path("socket")
                .unwrap_or_else(|| PathBuf::from(AGENT_SOCKET)),
            resync: reader.seconds("resync_secs"),
            unused_stack: reader.seconds("unused_stack_secs"),
            keep_bridge_netfilter: reader
                .checked("bridge_netfilter", parse_bridge_netfilter)
                .unwrap_or(false),
            mac_limit: reader.mac_limit(),
            router_flows: reader.router_flows(),
            metrics: reader.metrics(),
            resolvers: reader.list("resolvers", parse_resolver),
            storage_path: reader.path("storage_path"),
            storage_size: reader.checked("storage_size", parse_size),
            log: reader.text("log").unwrap_or_else(|| "info".to_owned()),
        };
        reader.done(settings)
    }

    /// A server's settings, or all that is wrong with them.
    pub(crate) fn server(self) -> Outcome<ServerSettings> {
        let mut reader = self.reader();
        let settings = ServerSettings {
            data_dir: reader
                .path("data_dir")
                .unwrap_or_else(|| PathBuf::from(SERVER_DATA)),
            database: reader.text("database"),
            listen: reader.checked("listen", parse_listen),
            advertise: reader
                .list("advertise", |text| Ok(text.to_owned()))
                .unwrap_or_default(),
            names: reader
                .list("names", |text| Ok(text.to_owned()))
                .unwrap_or_default(),
            run_dir: reader
                .path("run_dir")
                .unwrap_or_else(|| PathBuf::from(RUN_DIR)),
            reflector_kind: reader
                .checked("reflector_kind", parse_reflector_kind)
                .unwrap_or_default(),
            reflector: reader.checked("reflector", parse_reflector),
            reflectors: reader
                .list("reflectors", parse_reflector)
                .unwrap_or_default(),
            asn: reader.asn("asn"),
            replace_replicas: reader.seconds("replace_replicas_secs"),
            sign_bgp: reader.flag("sign_bgp").unwrap_or(true),
            metrics: reader.metrics(),
            log: reader.text("log").unwrap_or_else(|| "info".to_owned()),
        };
        reader.done(settings)
    }
}

fn words(text: &str) -> toml::Value {
    text.split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .map(|part| toml::Value::String(part.to_owned()))
        .collect::<Vec<_>>()
        .into()
}

/// The default place counts only if something is there: a host that did not join has no server.
fn found_credential() -> Option<PathBuf> {
    let path = PathBuf::from(HOST_CREDENTIAL);
    path.exists().then_some(path)
}

/// A role by its word.
pub(crate) fn parse_role(text: &str) -> Result<Role, String> {
    match text {
        "compute" => Ok(Role::Compute),
        "route" => Ok(Role::Route),
        "management" => Ok(Role::Management),
        "storage" => Ok(Role::Storage),
        _ => Err(format!(
            "{text:?} is not a role: compute, route, management or storage"
        )),
    }
}

fn parse_size(text: &str) -> Result<VolumeSize, String> {
    text.parse()
        .map_err(|error: model::BadVolumeSize| error.to_string())
}

fn parse_transport(text: &str) -> Result<Transport, String> {
    text.parse()
        .map_err(|error: model::BadTransport| error.to_string())
}

/// What there is another way for.
fn parse_spared(text: &str) -> Result<Capability, String> {
    match text {
        "vlan-filtering" => Ok(Capability::VlanFiltering),
        "vlan-devices" => Ok(Capability::VlanDevices),
        "cls-bpf" => Ok(Capability::ClsBpf),
        _ => Err(format!(
            "{text:?} is none of what there is another way for: vlan-filtering, vlan-devices, cls-bpf"
        )),
    }
}

fn parse_bridge_netfilter(text: &str) -> Result<bool, String> {
    match text {
        "auto" => Ok(false),
        "keep" => Ok(true),
        _ => Err(format!("{text:?} is neither auto nor keep")),
    }
}

fn parse_underlay(text: &str) -> Result<IpAddr, String> {
    let address: IpAddr = text
        .parse()
        .map_err(|_| format!("{text:?} is not an address"))?;
    match address.is_multicast() || address.is_unspecified() || address.is_loopback() {
        true => Err(format!(
            "{address} is not a unicast address that other hosts reach"
        )),
        false => Ok(address),
    }
}

fn parse_listen(text: &str) -> Result<SocketAddr, String> {
    text.parse()
        .map_err(|_| format!("{text:?} is not ADDRESS:PORT"))
}

fn parse_reflector_kind(text: &str) -> Result<ReflectorKind, String> {
    use ReflectorKind::{Builtin, External, Frr};
    [Builtin, Frr, External]
        .into_iter()
        .find(|kind| kind.name() == text)
        .ok_or_else(|| format!("{text:?} is not builtin, frr or external"))
}

/// What reflects, or where.
pub(crate) fn parse_reflector_word(text: &str) -> Result<ReflectorWord, String> {
    parse_reflector_kind(text)
        .map(ReflectorWord::Kind)
        .or_else(|_| parse_reflector(text).map(ReflectorWord::At))
        .map_err(|_| {
            format!("{text:?} is not builtin, frr or external, and not ADDRESS or ADDRESS:PORT")
        })
}

/// A resolver of others has the port of DNS unless it names another. Loopback is taken where it is asked
/// for.
fn parse_resolver(text: &str) -> Result<SocketAddr, String> {
    let bad = || format!("{text:?} is not ADDRESS or ADDRESS:PORT");
    let address = (text.parse::<SocketAddr>())
        .or_else(|_| {
            text.parse::<IpAddr>()
                .map(|ip| SocketAddr::new(ip, DNS_PORT))
        })
        .map_err(|_| bad())?;
    let ip = address.ip();
    match ip.is_unspecified() || ip.is_multicast() || address.port() == 0 {
        true => Err(bad()),
        false => Ok(address),
    }
}

/// A reflector has the port of BGP unless it names another.
pub(crate) fn parse_reflector(text: &str) -> Result<SocketAddr, String> {
    text.parse::<SocketAddr>()
        .or_else(|_| {
            text.parse::<IpAddr>()
                .map(|ip| SocketAddr::new(ip, BGP_PORT))
        })
        .map_err(|_| format!("{text:?} is not ADDRESS or ADDRESS:PORT"))
}

struct Reader {
    schema: &'static Schema,
    given: BTreeMap<String, Given>,
    bad: Vec<BadKey>,
}

impl Reader {
    /// The settings, if nothing was wrong and no key is left over.
    fn done<T>(mut self, settings: T) -> Outcome<T> {
        let known: Vec<&str> = self.schema.keys.iter().map(|(key, _)| *key).collect();
        for (key, given) in std::mem::take(&mut self.given) {
            self.bad.push(BadKey {
                key,
                origin: given.origin,
                reason: format!("there is no such key; known are {}", known.join(", ")),
            });
        }
        if self.bad.is_empty() {
            return Ok(settings);
        }
        let lines: Vec<String> = self
            .bad
            .iter()
            .map(
                |BadKey {
                     key,
                     origin,
                     reason,
                 }| format!("{key} (from {origin}): {reason}"),
            )
            .collect();
        let what = self.schema.what;
        Err(Failure::new(format!(
            "settings of the {what}: {}",
            lines.join("\n       ")
        ))
        .hint(format!(
            "`vpc {what} run --help` shows a file with every key"
        )))
    }

    fn take<T>(
        &mut self,
        key: &str,
        read: impl FnOnce(&toml::Value) -> Result<T, String>,
    ) -> Option<T> {
        let given = self.given.remove(key)?;
        match read(&given.value) {
            Ok(value) => Some(value),
            Err(reason) => {
                self.bad.push(BadKey {
                    key: key.to_owned(),
                    origin: given.origin,
                    reason,
                });
                None
            }
        }
    }

    fn checked<T>(&mut self, key: &str, check: fn(&str) -> Result<T, String>) -> Option<T> {
        self.take(key, |value| check(text(value)?))
    }

    fn text(&mut self, key: &str) -> Option<String> {
        self.take(key, |value| text(value).map(str::to_owned))
    }

    fn parsed(&mut self, key: &str) -> Option<Name> {
        self.take(key, |value| {
            Name::new(text(value)?).map_err(|bad| bad.to_string())
        })
    }

    fn path(&mut self, key: &str) -> Option<PathBuf> {
        self.take(key, |value| match Path::new(text(value)?) {
            path if path.is_absolute() => Ok(path.to_owned()),
            path => Err(format!("{} is not an absolute path", path.display())),
        })
    }

    fn list<T>(&mut self, key: &str, check: fn(&str) -> Result<T, String>) -> Option<Vec<T>> {
        self.take(key, |value| {
            let items = value.as_array().ok_or("it is not a list")?;
            items.iter().map(|item| check(text(item)?)).collect()
        })
    }

    fn flag(&mut self, key: &str) -> Option<bool> {
        self.take(key, |value| {
            value
                .as_bool()
                .ok_or_else(|| "it is neither true nor false".to_owned())
        })
    }

    /// Beyond loopback only if that was said: whoever reaches the address may read them.
    fn metrics(&mut self) -> Option<SocketAddr> {
        let public = self.flag("metrics_public").unwrap_or(false);
        self.take("metrics", |value| {
            let address = parse_listen(text(value)?)?;
            match metrics::may_listen(address.ip(), public) {
                true => Ok(address),
                false => Err(format!(
                    "{address} is not on loopback, and metrics name peers and addresses to whoever \
                     asks: give 127.0.0.1:{} and have them fetched there, or set metrics_public = \
                     true and keep others away with a firewall",
                    address.port()
                )),
            }
        })
    }

    fn asn(&mut self, key: &str) -> Option<Asn> {
        self.take(key, |value| {
            value
                .as_integer()
                .and_then(|raw| u32::try_from(raw).ok())
                .and_then(Asn::new)
                .ok_or_else(|| "it is not a number from 1 to 4294967295".to_owned())
        })
    }

    fn mac_limit(&mut self) -> Option<u32> {
        self.take("mac_limit", |value| {
            value
                .as_integer()
                .and_then(|raw| u32::try_from(raw).ok())
                .filter(|limit| *limit > 0)
                .ok_or_else(|| "it is not a number of MACs from 1 to 4294967295".to_owned())
        })
    }

    fn router_flows(&mut self) -> Option<u32> {
        self.take("router_flows", |value| {
            value
                .as_integer()
                .and_then(|raw| u32::try_from(raw).ok())
                .filter(|most| *most > 0)
                .ok_or_else(|| "it is not a number of flows from 1 to 4294967295".to_owned())
        })
    }

    fn per_second(&mut self, key: &str) -> Option<u32> {
        self.take(key, |value| {
            value
                .as_integer()
                .and_then(|raw| u32::try_from(raw).ok())
                .filter(|most| (1..=Limits::MOST_PER_S).contains(most))
                .ok_or_else(|| format!("it is not a number from 1 to {}", Limits::MOST_PER_S))
        })
    }

    fn seconds(&mut self, key: &str) -> Option<Duration> {
        self.take(key, |value| {
            value
                .as_integer()
                .and_then(|raw| u64::try_from(raw).ok())
                .filter(|secs| (1..=LONGEST_PACE).contains(secs))
                .map(Duration::from_secs)
                .ok_or_else(|| format!("it is not a number of seconds from 1 to {LONGEST_PACE}"))
        })
    }
}

fn text(value: &toml::Value) -> Result<&str, String> {
    value.as_str().ok_or_else(|| "it is not a text".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settled(
        file: &str,
        env: &[(&str, &str)],
        flags: &[(&str, &str)],
    ) -> Result<AgentSettings, String> {
        let mut sources = Sources::new(&AGENT);
        sources.add_text("agent.toml", file).unwrap();
        let env = env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        sources.add_variables(env);
        for (key, value) in flags {
            sources.add_flag(key, value);
        }
        sources
            .agent()
            .map_err(|failure| failure.message().to_owned())
    }

    #[test]
    fn flags_win_over_the_environment_and_that_over_the_file() {
        let file = "state_dir = \"/file\"\nlog = \"debug\"\nroles = [\"route\"]";
        let settings = settled(
            file,
            &[
                ("VPC_AGENT_STATE_DIR", "/env"),
                ("VPC_AGENT_ROLES", "compute,storage"),
                ("OTHER", "x"),
            ],
            &[("state_dir", "/flag")],
        )
        .unwrap();
        assert_eq!(settings.state_dir.as_deref(), Some(Path::new("/flag")));
        assert_eq!(
            settings.roles,
            BTreeSet::from([Role::Compute, Role::Storage])
        );
        assert_eq!(settings.log, "debug");
    }

    #[test]
    fn every_bad_key_is_told_at_once() {
        let file =
            "roles = [\"king\"]\nunderlay_address = \"224.0.0.1\"\ncolour = 1\nresync_secs = 0";
        let message = settled(
            file,
            &[("VPC_AGENT_SOCKET", "here")],
            &[("unused_stack_secs", "x")],
        )
        .unwrap_err();
        for part in [
            "roles (from agent.toml): \"king\" is not a role",
            "underlay_address (from agent.toml): 224.0.0.1 is not a unicast address",
            "colour (from agent.toml): there is no such key",
            "resync_secs (from agent.toml): it is not a number",
            "socket (from VPC_AGENT_SOCKET): here is not an absolute path",
            "unused_stack_secs (from --unused-stack-secs): it is not a number",
        ] {
            assert!(message.contains(part), "{part:?} is not in {message}");
        }
    }

    #[test]
    fn the_kernel_carries_unless_it_is_said() {
        let transport = |file: &str, env: &[(&str, &str)], flags: &[(&str, &str)]| {
            settled(file, env, flags).map(|settings| settings.transport)
        };
        assert_eq!(transport("", &[], &[]), Ok(Transport::Kernel));
        let file = "transport = \"tap\"";
        assert_eq!(transport(file, &[], &[]), Ok(Transport::Tap));
        let env = [("VPC_AGENT_TRANSPORT", "tap")];
        assert_eq!(transport("", &env, &[]), Ok(Transport::Tap));
        let flags = [("transport", "kernel")];
        assert_eq!(transport(file, &env, &flags), Ok(Transport::Kernel));
        let refused = transport("transport = \"vxlan\"", &[], &[]).unwrap_err();
        let says = "transport (from agent.toml): \"vxlan\" is not a transport: kernel or tap";
        assert!(refused.contains(says), "{refused}");
    }

    #[test]
    fn limits_of_the_datapath_have_bounds() {
        let limits = |file: &str| {
            settled(file, &[], &[]).map(|settings| (settings.port_questions, settings.subnet_flood))
        };
        assert_eq!(limits(""), Ok((None, None)));
        let file = "port_questions_per_s = 1\nsubnet_flood_per_s = 10000000";
        assert_eq!(limits(file), Ok((Some(1), Some(10_000_000))));
        for key in ["port_questions_per_s", "subnet_flood_per_s"] {
            for bad in ["0", "10000001", "-1", "\"many\""] {
                let refused = limits(&format!("{key} = {bad}")).unwrap_err();
                let says = format!("{key} (from agent.toml): it is not a number");
                assert!(refused.contains(&says), "{refused}");
            }
        }
    }

    #[test]
    fn only_what_there_is_another_way_for_may_be_left_unused() {
        let without = |file: &str| settled(file, &[], &[]).map(|settings| settings.without);
        assert_eq!(without(""), Ok(BTreeSet::new()));
        let all = "without = [\"cls-bpf\", \"vlan-devices\", \"vlan-filtering\"]";
        let named = [
            Capability::VlanFiltering,
            Capability::VlanDevices,
            Capability::ClsBpf,
        ];
        assert_eq!(without(all), Ok(BTreeSet::from(named)));
        let refused = without("without = [\"nft-bridge\"]").unwrap_err();
        let says =
            "without (from agent.toml): \"nft-bridge\" is none of what there is another way for";
        assert!(refused.contains(says), "{refused}");
    }

    #[test]
    fn metrics_stay_on_loopback_unless_it_is_said() {
        let metrics = |file: &str| settled(file, &[], &[]).map(|settings| settings.metrics);
        let local = Some("[::1]:9476".parse().unwrap());
        assert_eq!(metrics("metrics = \"[::1]:9476\""), Ok(local));
        assert_eq!(metrics(""), Ok(None));
        let refused = metrics("metrics = \"0.0.0.0:9476\"").unwrap_err();
        let says = "metrics (from agent.toml): 0.0.0.0:9476 is not on loopback";
        assert!(refused.contains(says), "{refused}");
        let public = "metrics = \"192.0.2.7:9476\"\nmetrics_public = true";
        assert_eq!(metrics(public), Ok(Some("192.0.2.7:9476".parse().unwrap())));
        assert!(metrics("metrics = \"9476\"").is_err());
    }

    #[test]
    fn the_examples_hold_every_key() {
        let check = |schema: &'static Schema, example: &str| {
            let mut sources = Sources::new(schema);
            sources.add_text("example", example).unwrap();
            for (key, _) in schema.keys {
                assert!(example.contains(&format!("{key} =")), "{key}");
            }
            sources
        };
        check(&AGENT, AGENT_EXAMPLE).agent().unwrap();
        let server = check(&SERVER, SERVER_EXAMPLE).server().unwrap();
        assert_eq!(server.reflector, Some("192.0.2.1:179".parse().unwrap()));
    }
}
