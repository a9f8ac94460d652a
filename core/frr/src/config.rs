//! What an instance of FRR is to do, and its configuration as lines within lines.

use crate::show::RunningInstance;
use evpn::{LocalState, Rd, RouteTarget, RouteTargets};
use model::{Asn, BgpConfig, Encoding, MacAddr, Secret, Vni};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};

/// The route map that lets nothing of the listener's in.
const NOTHING: &str = "vpc-nothing";
/// Makes it an EVPN client. There is no command for some devices alone.
const ADVERTISE_ALL: &str = "advertise-all-vni";

/// Before 10.3 bgpd forgets what is withdrawn while the second runs that it waits before it tells a new
/// session its table (FRR commit 92c92ae7c6): if it had told the route all the same, as it does when a policy
/// changed or a refresh was asked for, the session never hears that it is gone. So it does not wait.
const NO_COALESCING: &str = "coalesce-time 0";

/// MACs with their addresses.
pub type Macs = BTreeMap<MacAddr, BTreeSet<IpAddr>>;

/// All that an instance of FRR is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// What it is.
    pub role: Role,
    /// BGP identifier.
    pub router_id: Ipv4Addr,
    /// The fabric's AS.
    pub asn: Asn,
    /// Source of its sessions.
    pub local: IpAddr,
    /// Its sessions, but for the listener's.
    pub neighbours: BTreeMap<IpAddr, Neighbour>,
    /// Who is told every route, on this host; has none of its own.
    pub listener: Option<Listener>,
    /// EVPN instances, with their distinguishers. Of a client alone.
    pub instances: BTreeMap<Vni, Instance>,
    /// What they are to announce, of those whose device is there.
    pub announced: BTreeMap<Vni, Macs>,
    /// MACs that another host has won or takes over: announced from here or not, both is right.
    pub contested: BTreeSet<(Vni, MacAddr)>,
    /// What it does about a MAC that is announced from here and there in turns.
    pub duplicates: Duplicates,
}

/// What an instance of FRR is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Announces what is in the kernel of this host.
    Client,
    /// Reflects between its clients.
    Reflector {
        /// Cluster (RFC 4456 §7).
        cluster_id: Ipv4Addr,
    },
}

/// A session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Neighbour {
    /// TCP port.
    pub port: u16,
    /// TCP-MD5 key.
    pub password: Option<Secret>,
    /// GTSM (RFC 5082) over one hop.
    pub gtsm: bool,
    /// A client of this reflector's, which connects to it.
    pub client: bool,
}

/// A session with a process of this host that is told all routes and tells none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    /// Its address, in 127.0.0.0/8 and on no interface: bgpd takes no address of its own host.
    pub address: Ipv4Addr,
    /// TCP-MD5 key: any user of the host can open a connection.
    pub password: Secret,
}

/// One EVPN instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// Route distinguisher.
    pub rd: Rd,
    /// Routes with one of these are taken in.
    pub import: BTreeSet<RouteTarget>,
    /// Put on its routes.
    pub export: BTreeSet<RouteTarget>,
}

/// Duplicate address detection (RFC 7432 §15.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Duplicates {
    /// How often a MAC may move ...
    pub max_moves: u16,
    /// ... within so many seconds.
    pub seconds: u16,
    /// What happens to one that moves more often.
    pub freeze: Freeze,
}

/// What happens to a MAC that moves too often.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freeze {
    /// It is logged.
    Never,
    /// It moves no more for so many seconds, 30 to 3600.
    Seconds(u16),
    /// It moves no more until somebody clears it.
    Permanent,
}

impl Default for Duplicates {
    /// The standard's five moves in 180 seconds; frozen ones are let go after a quarter of an hour.
    fn default() -> Self {
        Self {
            max_moves: 5,
            seconds: 180,
            freeze: Freeze::Seconds(900),
        }
    }
}

impl Wanted {
    /// A client of a host's reflectors, without instances and listener.
    pub fn client(router_id: Ipv4Addr, local: IpAddr, bgp: &BgpConfig) -> Self {
        let neighbours = bgp.reflectors.iter().map(|reflector| {
            let neighbour = Neighbour {
                port: reflector.port,
                password: reflector.password.clone(),
                gtsm: true,
                client: false,
            };
            (reflector.address, neighbour)
        });
        Self {
            role: Role::Client,
            router_id,
            asn: bgp.asn,
            local,
            neighbours: neighbours.collect(),
            listener: None,
            instances: BTreeMap::new(),
            announced: BTreeMap::new(),
            contested: BTreeSet::new(),
            duplicates: Duplicates::default(),
        }
    }

    /// Takes over the instances that FRR can have: those of VLAN-based service.
    pub fn set_instances(&mut self, local: &LocalState) {
        let based = |evi: &&evpn::LocalEvi| evi.encoding == Encoding::VlanBased;
        self.instances = local
            .evis
            .iter()
            .filter(|(_, evi)| based(evi))
            .map(|(vni, evi)| {
                let auto = BTreeSet::from([RouteTarget::auto(self.asn, *vni)]);
                let (import, export) = match &evi.targets {
                    RouteTargets::Auto => (auto.clone(), auto),
                    RouteTargets::AutoRfc8365 => {
                        let other = BTreeSet::from([RouteTarget::auto_rfc8365(self.asn, *vni)]);
                        (auto.union(&other).copied().collect(), other)
                    }
                    RouteTargets::Manual { import, export } => (import.clone(), export.clone()),
                };
                let rd = Rd::of_instance(self.router_id, evi.rd_index);
                (*vni, Instance { rd, import, export })
            })
            .collect();
    }

    /// The whole configuration.
    pub fn config(&self) -> Config {
        let mut bgp = Line::new(format!("router bgp {}", self.asn), "exit");
        bgp.add(format!("bgp router-id {}", self.router_id));
        // Sessions are iBGP. Said all the same: without it an eBGP session added by hand would
        // take in nothing, and not say so.
        bgp.add("no bgp ebgp-requires-policy");
        bgp.add("no bgp default ipv4-unicast");
        bgp.add(NO_COALESCING);
        if let Role::Reflector { cluster_id } = self.role {
            bgp.add(format!("bgp cluster-id {cluster_id}"));
        }
        // What reflectors have of this host stays while bgpd is restarted, 120 s by default: the
        // kernel goes on forwarding.
        bgp.add("bgp graceful-restart");
        bgp.add("bgp graceful-restart preserve-fw-state");
        let mut family = Line::new("address-family l2vpn evpn", "exit-address-family");
        for (address, neighbour) in &self.neighbours {
            self.neighbour(&mut bgp, *address, neighbour);
            family.add(format!("neighbor {address} activate"));
            if neighbour.client {
                family.add(format!("neighbor {address} route-reflector-client"));
            }
        }
        if let Some(listener) = &self.listener {
            let address = listener.address;
            let mut say = |text: String| bgp.add(format!("neighbor {address} {text}"));
            say(format!("remote-as {}", self.asn));
            say(format!("password {}", listener.password.0));
            // It connects: bgpd would wait for a route to it, and zebra has none for loopback.
            say("passive".to_owned());
            say("timers 3 9".to_owned());
            family.add(format!("neighbor {address} activate"));
            family.add(format!("neighbor {address} route-reflector-client"));
            family.add(format!("neighbor {address} route-map {NOTHING} in"));
        }
        if self.role == Role::Client {
            // Before the instances: bgpd takes nothing of theirs without it.
            family.add(ADVERTISE_ALL);
            for (vni, instance) in &self.instances {
                family.children.push(instance_lines(*vni, instance));
            }
            let Duplicates {
                max_moves,
                seconds,
                freeze,
            } = self.duplicates;
            family.add(format!(
                "dup-addr-detection max-moves {max_moves} time {seconds}"
            ));
            match freeze {
                Freeze::Never => {}
                Freeze::Seconds(seconds) => {
                    family.add(format!("dup-addr-detection freeze {seconds}"));
                }
                Freeze::Permanent => family.add("dup-addr-detection freeze permanent"),
            }
        }
        // FRR does not show one with nothing in it.
        if !family.children.is_empty() {
            bgp.children.push(family);
        }
        let mut config = Config { lines: vec![bgp] };
        if self.listener.is_some() {
            let map = Line::new(format!("route-map {NOTHING} deny 10"), "exit");
            // First: bgpd warns of a map that is not there yet.
            config.lines.insert(0, map);
        }
        config
    }

    fn neighbour(&self, bgp: &mut Line, address: IpAddr, neighbour: &Neighbour) {
        let mut say = |text: String| bgp.add(format!("neighbor {address} {text}"));
        say(format!("remote-as {}", self.asn));
        if neighbour.client {
            say("passive".to_owned());
        }
        if let Some(Secret(password)) = &neighbour.password {
            say(format!("password {password}"));
        }
        if neighbour.gtsm {
            say("ttl-security hops 1".to_owned());
        }
        if neighbour.port != 179 {
            say(format!("port {}", neighbour.port));
        }
        say(format!("update-source {}", self.local));
        // As the built-in speaker: a host that died is gone after 9 s.
        say("timers 3 9".to_owned());
        say("timers connect 1".to_owned());
    }
}

/// True if a running configuration has FRR announce every VXLAN device of its host.
pub fn announces_all_vnis(running: &str) -> bool {
    running.lines().any(|line| line.trim() == ADVERTISE_ALL)
}

fn instance_lines(vni: Vni, instance: &Instance) -> Line {
    let mut lines = Line::new(format!("vni {vni}"), "exit-vni");
    lines.add(format!("rd {}", instance.rd));
    for target in &instance.import {
        lines.add(format!("route-target import {target}"));
    }
    for target in &instance.export {
        lines.add(format!("route-target export {target}"));
    }
    lines
}

/// A configuration: lines, some with lines inside.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Config {
    /// The outermost lines.
    pub lines: Vec<Line>,
}

/// A command, and those inside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Without indentation.
    pub text: String,
    /// What is inside.
    pub children: Vec<Line>,
    /// The command that leaves it, if it is a block.
    pub exit: Option<&'static str>,
}

impl Line {
    fn new(text: impl Into<String>, exit: &'static str) -> Self {
        Self {
            text: text.into(),
            children: Vec::new(),
            exit: Some(exit),
        }
    }

    fn add(&mut self, text: impl Into<String>) {
        self.children.push(Self {
            text: text.into(),
            children: Vec::new(),
            exit: None,
        });
    }
}

impl Config {
    /// True if an EVPN instance is in it: before, bgpd answers no question about instances.
    pub fn has_instances(&self) -> bool {
        let mut families = self.lines.iter().flat_map(|line| &line.children);
        families.any(|family| {
            family
                .children
                .iter()
                .any(|line| line.text.starts_with("vni "))
        })
    }

    /// As a file that FRR reads.
    pub fn render(&self) -> String {
        let mut text = String::new();
        for line in &self.lines {
            render(&mut text, line, 0);
            text.push_str("!\n");
        }
        text
    }

    /// Reads a configuration as FRR writes it: one space deeper is inside. Comments, the lines
    /// that leave a block and what FRR says of itself are left out.
    pub fn parse(text: &str) -> Self {
        let mut config = Self::default();
        // Depths of the blocks that the next line may be in, and the way to the last line.
        let mut path: Vec<usize> = Vec::new();
        for raw in text.lines() {
            let line = raw.trim_start_matches(' ');
            let depth = raw.len() - line.len();
            let line = line.trim_end();
            if is_noise(line) {
                continue;
            }
            while path.last().is_some_and(|last| *last >= depth) {
                path.pop();
            }
            let mut siblings = &mut config.lines;
            for _ in 0..path.len() {
                let parent = siblings.last_mut().expect("the path leads over last lines");
                siblings = &mut parent.children;
            }
            siblings.push(Line {
                text: line.to_owned(),
                children: Vec::new(),
                exit: exit_of(line),
            });
            path.push(depth);
        }
        config
    }
}

/// The distinguishers that bgpd has and does not show: it takes no `rd` that is what it has made up itself
/// already, and then has no such line.
pub fn unsaid_distinguishers(
    running: &mut Config,
    wanted: &BTreeMap<Vni, Instance>,
    have: &BTreeMap<Vni, RunningInstance>,
) {
    let families = running.lines.iter_mut().flat_map(|line| &mut line.children);
    for block in families.flat_map(|family| &mut family.children) {
        let vni = block.text.strip_prefix("vni ");
        let vni = vni.and_then(|vni| Vni::new(vni.parse().ok()?).ok());
        let Some((want, have)) = vni.and_then(|vni| Some((wanted.get(&vni)?, have.get(&vni)?)))
        else {
            continue;
        };
        let is_said = block
            .children
            .iter()
            .any(|line| line.text.starts_with("rd "));
        if !is_said && have.rd == want.rd.to_string() {
            block.add(format!("rd {}", want.rd));
        }
    }
}

fn render(text: &mut String, line: &Line, depth: usize) {
    // Writing to a String does not fail.
    let _infallible = writeln!(text, "{:depth$}{}", "", line.text);
    for child in &line.children {
        render(text, child, depth + 1);
    }
    if let Some(exit) = line.exit {
        let _infallible = writeln!(text, "{:depth$}{exit}", "");
    }
}

fn is_noise(line: &str) -> bool {
    const STARTS: [&str; 5] = [
        "!",
        "exit",
        "frr version",
        "Building config",
        "Current config",
    ];
    line.is_empty() || line == "end" || STARTS.iter().any(|start| line.starts_with(start))
}

pub(crate) fn exit_of(line: &str) -> Option<&'static str> {
    match line.split(' ').next().unwrap_or_default() {
        "router" | "route-map" | "interface" | "vrf" => Some("exit"),
        "address-family" => Some("exit-address-family"),
        "vni" => Some("exit-vni"),
        _ => None,
    }
}
