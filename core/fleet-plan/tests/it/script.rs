//! A small language for tests: one command a line, in the words of the command line.

use crate::{routing, volumes};
use fleet_plan::{
    Command, Context, CreateAccount, CreateHost, CreateNic, CreateSubnet, CreateVpc, Decision,
    DiskRoom, Expect, Intent, IssuedRow, MoveNic, MoveStep, Refusal, ReplicaTold, RequestId,
    Rollout, UpdateHost, UpdateSubnet, UpdateVpc,
};
use model::{
    AccountId, Asn, Change, Cluster, DiskId, Encoding, ExternalNetworkId, HostConfig, HostId, Kind,
    Labels, MacAddr, Mtu, Name, NicId, Object, ObjectId, Port, PortRole, PublicIpId, Reflector,
    Revision, Role, RouterId, SpeakerKind, SubnetId, SubnetOptions, UnixMillis, UserData, VlanId,
    Vni, VolumeId, VpcId,
};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::str::FromStr;

/// A cluster that commands are tried on.
pub(crate) struct World {
    pub(crate) intent: Intent,
    pub(crate) rollout: Rollout,
    pub(crate) now: UnixMillis,
    /// Hosts that are not heard of.
    down: BTreeSet<HostId>,
    disks: BTreeMap<HostId, DiskRoom>,
    /// What is known of replicas of the volume that is to be recovered.
    pub(crate) told: BTreeMap<u64, ReplicaTold>,
    issued: BTreeMap<HostId, IssuedRow>,
    seed: u64,
    last: Option<Command>,
}

/// Words of one line: what is before the first known key, then key and value pairs.
pub(crate) struct Line<'a> {
    pub(crate) words: Vec<&'a str>,
}

impl<'a> Line<'a> {
    pub(crate) fn arg(&self, place: usize) -> &'a str {
        self.maybe(place)
            .unwrap_or_else(|| panic!("word {place} is missing in {:?}", self.words))
    }

    pub(crate) fn maybe(&self, place: usize) -> Option<&'a str> {
        self.words.get(place).copied()
    }

    pub(crate) fn all(&self, key: &str) -> Vec<&'a str> {
        let pairs = self.words.windows(2);
        pairs
            .filter(|pair| pair[0] == key)
            .map(|pair| pair[1])
            .collect()
    }

    pub(crate) fn get<T: FromStr>(&self, key: &str) -> Option<T> {
        self.all(key).first().map(|text| parsed(text))
    }

    pub(crate) fn labels(&self) -> Labels {
        let pairs = self.all("label");
        pairs
            .iter()
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
            .map(|(key, value)| (key.replace("\\n", "\n"), value.replace("\\n", "\n")))
            .collect()
    }

    pub(crate) fn cidrs<T: FromStr>(&self) -> Vec<T> {
        let has_length = |word: &&&str| word.contains('/') && !word.contains('=');
        self.words[2..]
            .iter()
            .filter(has_length)
            .map(|w| parsed(w))
            .collect()
    }
}

fn reflectors() -> Vec<Reflector> {
    vec![Reflector {
        address: "192.0.2.1".parse().unwrap(),
        port: 179,
        password: None,
    }]
}

pub(crate) fn parsed<T: FromStr>(text: &str) -> T {
    text.parse()
        .unwrap_or_else(|_| panic!("{text:?} is not what the script needs"))
}

fn parsed_unless_none(text: &str) -> Option<Name> {
    (text != "none").then(|| parsed(text))
}

fn roles(text: &str) -> BTreeSet<Role> {
    text.split(',')
        .filter(|word| *word != "none")
        .map(|word| match word {
            "compute" => Role::Compute,
            "route" => Role::Route,
            "management" => Role::Management,
            "storage" => Role::Storage,
            other => panic!("no role {other}"),
        })
        .collect()
}

impl World {
    pub(crate) fn new() -> Self {
        Self::with_mtu(1500)
    }

    pub(crate) fn with_mtu(mtu: u32) -> Self {
        let intent = Intent::new(Cluster {
            id: "lab".to_owned(),
            asn: Asn::new(64512).unwrap(),
            underlay_mtu: Mtu::new(mtu).unwrap(),
            hold_millis: 60_000,
        });
        Self {
            rollout: Rollout::new(Vec::new(), &intent, reflectors()),
            issued: BTreeMap::new(),
            intent,
            now: UnixMillis(1_000_000),
            down: BTreeSet::new(),
            disks: Default::default(),
            told: Default::default(),
            seed: 0,
            last: None,
        }
    }

    pub(crate) fn reflectors(&self) -> Vec<Reflector> {
        reflectors()
    }

    /// Runs one line and says what came of it.
    pub(crate) fn line(&mut self, line: &str) -> String {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["clock", millis] => {
                self.now.0 += parsed::<u64>(millis);
                return String::new();
            }
            ["down", host] => {
                let host = self.host(host).expect("the script names a host");
                self.down.insert(host);
                return String::new();
            }
            ["disk", host, number, mib] => {
                let host = self.host(host).expect("the script names a host");
                let room = DiskRoom {
                    id: DiskId(parsed(number)),
                    bytes: parsed::<u64>(mib) << 20,
                };
                self.disks.insert(host, room);
                return String::new();
            }
            ["up", host] => {
                let host = self.host(host).expect("the script names a host");
                self.down.remove(&host);
                return String::new();
            }
            ["told", ..] => {
                let line = Line {
                    words: line.split_whitespace().collect(),
                };
                volumes::told(self, &line);
                return String::new();
            }
            ["tend", ..] => {
                let line = Line {
                    words: line.split_whitespace().collect(),
                };
                return volumes::tend(self, &line);
            }
            ["mtu", mtu] => {
                *self = Self::with_mtu(parsed(mtu));
                return String::new();
            }
            ["configs"] => {
                let issued = self.rollout.poll(&self.intent);
                self.issued.extend(
                    issued
                        .iter()
                        .map(|issued| (issued.row.host, issued.row.clone())),
                );
                return issued
                    .iter()
                    .map(|issued| self.show_config(&issued.config))
                    .collect();
            }
            ["restart"] => {
                // What a server does that starts over what the store kept.
                let rows = self.issued.values().cloned().collect();
                self.intent = Intent::from_rows(self.intent.to_rows()).unwrap();
                self.rollout = Rollout::new(rows, &self.intent, reflectors());
                return String::new();
            }
            _ => {}
        }
        match self.run(line) {
            Ok(decision) => self.show_decision(&decision),
            Err(refusal) => format!("refused, {}: {refusal}\n", refusal.code()),
        }
    }

    /// Decides and applies one line.
    pub(crate) fn run(&mut self, line: &str) -> Result<Decision, Refusal> {
        let line = Line {
            words: line.split_whitespace().collect(),
        };
        let command = match line.words.as_slice() {
            // The same command, with the ids it had, although its names may be gone.
            ["again", ..] => self.last.clone().expect("there was a command before"),
            _ => self.command(&line)?,
        };
        self.last = Some(command.clone());
        let actor = line.get("actor").unwrap_or_else(|| "admin".to_owned());
        self.decide(command, line.get::<RequestId>("request"), actor)
    }

    /// As [`Self::run`], of a command that has no line.
    pub(crate) fn command_and_show(&mut self, command: Command) -> String {
        match self.decide(command, None, "server".to_owned()) {
            Ok(decision) => self.show_decision(&decision),
            Err(refusal) => format!("refused, {}: {refusal}\n", refusal.code()),
        }
    }

    fn decide(
        &mut self,
        command: Command,
        request: Option<RequestId>,
        actor: String,
    ) -> Result<Decision, Refusal> {
        self.seed += 1;
        let context = Context {
            now: self.now,
            seed: self.seed,
            request,
            down: self.down.clone(),
            disks: self.disks.clone(),
            replicas: self.told.clone(),
            actor,
        };
        let decision = self.intent.decide(command, &context)?;
        self.intent.apply(&decision);
        self.rollout.note(&self.intent, &decision.delta);
        Ok(decision)
    }

    fn command(&self, line: &Line<'_>) -> Result<Command, Refusal> {
        let path = line.arg(1);
        Ok(match line.arg(0) {
            "account" => Command::CreateAccount(CreateAccount {
                name: parsed(path),
                labels: line.labels(),
            }),
            "vpc" => {
                let (account, name) = self.below::<AccountId>(Kind::Account, path)?;
                Command::CreateVpc(CreateVpc {
                    account,
                    name,
                    cidrs: line.cidrs(),
                    vni: line.get::<u32>("vni").map(|raw| Vni::new(raw).unwrap()),
                    encoding: line.get::<Encoding>("encoding").unwrap_or_default(),
                    routing: line.get("routing").unwrap_or_default(),
                    unknown_neighbours: line.get("unknown").unwrap_or_default(),
                    labels: line.labels(),
                })
            }
            "subnet" => {
                let (vpc, name) = self.below::<VpcId>(Kind::Vpc, path)?;
                Command::CreateSubnet(CreateSubnet {
                    vpc,
                    name,
                    cidrs: line.cidrs(),
                    vlan: line.get::<u16>("vlan").map(|raw| VlanId::new(raw).unwrap()),
                    vni: line.get::<u32>("vni").map(|raw| Vni::new(raw).unwrap()),
                    mtu: line.get::<u32>("mtu").map(|raw| Mtu::new(raw).unwrap()),
                    options: options(line),
                    labels: line.labels(),
                })
            }
            "nic" => {
                let (subnet, name) = self.below::<SubnetId>(Kind::Subnet, path)?;
                Command::CreateNic(CreateNic {
                    subnet,
                    name,
                    host: self.host(line.arg(2))?,
                    attachment: parsed(line.arg(3)),
                    mac: line.get::<MacAddr>("mac"),
                    addresses: line.all("ip").iter().map(|text| parsed(text)).collect(),
                    user_data: line
                        .get::<String>("user-data")
                        .map(|text| UserData::new(text.into_bytes()).unwrap()),
                    labels: line.labels(),
                })
            }
            "move" => Command::MoveNic(MoveNic {
                nic: id(self.intent.resolve(Kind::Nic, None, path)?),
                expect: expect(line),
                host: self.host(line.arg(2))?,
                attachment: line.get("attach"),
            }),
            "advance" => Command::AdvanceMove {
                nic: id(self.intent.resolve(Kind::Nic, None, path)?),
                expect: expect(line),
                step: match line.arg(2) {
                    "switch" => MoveStep::Switch,
                    "retire" => MoveStep::Retire,
                    "finish" => MoveStep::Finish,
                    "back" => MoveStep::Back {
                        reason: line.words[3..].join(" "),
                    },
                    other => panic!("no step {other}"),
                },
            },
            "host" => Command::CreateHost(CreateHost {
                name: parsed(path),
                roles: roles(line.all("roles").first().unwrap_or(&"compute")),
                underlay: parsed(line.arg(2)),
                zone: line.get::<Name>("zone"),
                speaker: line.get("speaker").unwrap_or_default(),
                labels: line.labels(),
            }),
            "update-host" => Command::UpdateHost(UpdateHost {
                host: self.host(path)?,
                expect: expect(line),
                roles: line.all("roles").first().map(|text| roles(text)),
                zone: line
                    .all("zone")
                    .first()
                    .map(|text| parsed_unless_none(text)),
                draining: line.get("draining"),
                speaker: line.get("speaker"),
                labels: None,
            }),
            "update-vpc" => Command::UpdateVpc(UpdateVpc {
                vpc: id(self.intent.resolve(Kind::Vpc, None, path)?),
                expect: expect(line),
                cidrs: Some(line.cidrs()).filter(|cidrs| !cidrs.is_empty()),
                labels: Some(line.labels()).filter(|labels| !labels.is_empty()),
            }),
            "update-subnet" => Command::UpdateSubnet(UpdateSubnet {
                subnet: id(self.intent.resolve(Kind::Subnet, None, path)?),
                expect: expect(line),
                options: Some(options(line)),
                labels: None,
            }),
            "set-labels" => Command::SetLabels {
                object: self.intent.resolve(kind(path), None, line.arg(2))?,
                expect: expect(line),
                labels: line.labels(),
            },
            "volume" | "attach-volume" | "restore-volume" | "resize-volume" | "set-replicas"
            | "move-replica" | "recover-volume" | "delete-volume" => volumes::command(self, line)?,
            "delete" => Command::Delete {
                object: self.intent.resolve(kind(path), None, line.arg(2))?,
                expect: expect(line),
            },
            _ => routing::command(self, line)?,
        })
    }

    pub(crate) fn below<T: FromObject>(
        &self,
        kind: Kind,
        path: &str,
    ) -> Result<(T, Name), Refusal> {
        let (parent, name) = path.rsplit_once('/').expect("a path has a parent");
        // What no longer has a name can still be asked for: an id nobody has.
        let parent = match parent {
            "gone" => T::gone(),
            parent => T::from(self.intent.resolve(kind, None, parent)?),
        };
        Ok((parent, parsed(name)))
    }

    pub(crate) fn host(&self, name: &str) -> Result<HostId, Refusal> {
        match name {
            "gone" => Ok(HostId::from_random(0)),
            name => Ok(id(self.intent.resolve(Kind::Host, None, name)?)),
        }
    }

    fn show_decision(&self, decision: &Decision) -> String {
        if decision.is_noop() {
            return format!("nothing to do: {}\n", show(&self.intent, &decision.object));
        }
        let mut out = String::new();
        for change in &decision.delta.changes {
            out.push_str(&self.show_change(change));
        }
        for hold in &decision.delta.holds {
            let millis = hold.until.0 - self.now.0;
            writeln!(out, "  {} is on hold for {millis} ms", hold.resource).unwrap();
        }
        out
    }

    fn show_change(&self, change: &Change) -> String {
        let sign = if change.deleted { '-' } else { '+' };
        let object = show(&self.intent, &change.object);
        format!("{sign} {} {object}\n", change.revision)
    }

    fn show_config(&self, config: &HostConfig) -> String {
        let host = self.intent.path(ObjectId::Host(config.host));
        let mut out = format!("{host} generation {}\n", config.generation);
        out += &volumes::show_config(&self.intent, &config.storage);
        for stack in &config.stacks {
            writeln!(out, "  {} vni {} {}", stack.name, stack.vni, stack.encoding).unwrap();
            for segment in &stack.segments {
                let nets = [
                    segment.v4.map(|net| net.to_string()),
                    segment.v6.map(|net| net.to_string()),
                ];
                writeln!(
                    out,
                    "    {} vlan {} vni {} mtu {} {}{}",
                    segment.name,
                    segment.vlan,
                    segment.vni,
                    segment.mtu,
                    nets.into_iter().flatten().collect::<Vec<_>>().join(" "),
                    told(&segment.options)
                )
                .unwrap();
                if let Some(gateway) = &segment.gateway {
                    let (mac, addresses) = (gateway.mac, &gateway.addresses);
                    writeln!(out, "      gateway {mac} {addresses:?}").unwrap();
                }
            }
            for port in &stack.ports {
                writeln!(
                    out,
                    "    {} {} {:?}{}",
                    port.name,
                    port.attachment,
                    port.addresses,
                    role(port)
                )
                .unwrap();
                for net in &port.behind {
                    writeln!(out, "      behind it {net}").unwrap();
                }
            }
        }
        for (subnet, vteps) in &config.members {
            let subnet = self.intent.path(ObjectId::Subnet(*subnet));
            writeln!(out, "  members of {subnet} {vteps:?}").unwrap();
        }
        for router in &config.routers {
            out.push_str(&routing::show_config(&self.intent, router));
        }
        out
    }
}

fn role(port: &Port) -> String {
    match (port.role, port.sequence) {
        (PortRole::Settled, 0) => String::new(),
        (role, sequence) => format!(" {role:?} sequence {sequence}"),
    }
}

fn show(intent: &Intent, object: &Object) -> String {
    let labels: String = object
        .meta()
        .labels
        .iter()
        .map(|(key, value)| format!(" {key}={value}"))
        .collect();
    let text = match object {
        Object::Account(account) => format!("account {}", account.name),
        Object::Vpc(vpc) => {
            let cidrs: Vec<String> = vpc.cidrs.iter().map(ToString::to_string).collect();
            let owner = intent.path(ObjectId::Account(vpc.account));
            format!(
                "vpc {owner}/{} {} vni {} {}",
                vpc.name,
                cidrs.join(" "),
                vpc.vni,
                vpc.encoding
            )
        }
        Object::Subnet(subnet) => {
            let owner = intent.path(ObjectId::Vpc(subnet.vpc));
            let nets = [
                subnet.v4.map(|net| net.to_string()),
                subnet.v6.map(|net| net.to_string()),
            ];
            let nets: Vec<String> = nets.into_iter().flatten().collect();
            format!(
                "subnet {owner}/{} {} vlan {} vni {} mtu {}{}",
                subnet.name,
                nets.join(" "),
                subnet.vlan,
                subnet.vni,
                subnet.mtu,
                told(&subnet.options)
            )
        }
        Object::Nic(nic) => {
            let owner = intent.path(ObjectId::Subnet(nic.subnet));
            let host = intent.path(ObjectId::Host(nic.placement.host));
            let moving = nic.moving.as_ref().map_or(String::new(), |moving| {
                let other = intent.path(ObjectId::Host(moving.other.host));
                let why = match moving.taken_back.as_str() {
                    "" => String::new(),
                    why => format!(", taken back: {why}"),
                };
                format!(
                    ", {} with {other} {}{why}",
                    moving.phase, moving.other.attachment
                )
            });
            format!(
                "nic {owner}/{} {} {:?} on {host} {}{moving}",
                nic.name, nic.mac, nic.addresses, nic.placement.attachment
            )
        }
        Object::Host(host) => {
            let zone = host
                .zone
                .as_ref()
                .map_or(String::new(), |zone| format!(" zone {zone}"));
            let draining = if host.draining { " draining" } else { "" };
            let frr = match host.speaker {
                SpeakerKind::Builtin => "",
                SpeakerKind::Frr => " frr",
            };
            format!(
                "host {} {} {:?}{zone}{draining}{frr}",
                host.name, host.underlay, host.roles
            )
        }
        Object::Router(router) => routing::show_router(intent, router),
        Object::External(network) => routing::show_external(network),
        Object::PublicIp(public) => routing::show_public_ip(intent, public),
        Object::Volume(volume) => volumes::show(intent, volume),
    };
    text + &labels
}

fn options(line: &Line<'_>) -> SubnetOptions {
    SubnetOptions {
        dhcp: line.get::<bool>("dhcp").unwrap_or(true),
        dns: line.all("dns").iter().map(|text| parsed(text)).collect(),
        domain: line.get("domain"),
        custom: line
            .all("option")
            .iter()
            .map(|text| {
                let (code, value) = text.split_once(':').expect("an option is CODE:TEXT");
                (parsed(code), value.as_bytes().to_vec())
            })
            .collect(),
        ..SubnetOptions::default()
    }
}

fn told(options: &SubnetOptions) -> String {
    match options.is_default() {
        true => String::new(),
        false => format!(" {}", serde_json::to_string(options).unwrap()),
    }
}

pub(crate) fn expect(line: &Line<'_>) -> Expect {
    line.get("version")
        .map_or(Expect::Any, |raw| Expect::Exactly(Revision(raw)))
}

fn kind(text: &str) -> Kind {
    match text {
        "account" => Kind::Account,
        "vpc" => Kind::Vpc,
        "subnet" => Kind::Subnet,
        "nic" => Kind::Nic,
        "host" => Kind::Host,
        "router" => Kind::Router,
        "external" => Kind::External,
        "publicip" => Kind::PublicIp,
        "volume" => Kind::Volume,
        other => panic!("no kind {other}"),
    }
}

pub(crate) fn id<T: FromObject>(object: ObjectId) -> T {
    T::from(object)
}

pub(crate) trait FromObject {
    fn from(object: ObjectId) -> Self;
    fn gone() -> Self;
}

macro_rules! from_object {
    ($($kind:ident $id:ident),+) => {$(
        impl FromObject for $id {
            fn from(object: ObjectId) -> Self {
                match object {
                    ObjectId::$kind(id) => id,
                    other => panic!("{other} is of another kind"),
                }
            }
            fn gone() -> Self {
                $id::from_random(0)
            }
        }
    )+};
}

from_object!(
    Account AccountId, Vpc VpcId, Subnet SubnetId, Nic NicId, Host HostId, Router RouterId,
    External ExternalNetworkId, PublicIp PublicIpId, Volume VolumeId
);
