//! Reading what FRR answers. Its JSON differs from release to release: what is not there is not
//! known, and nothing in it is taken on trust.

use crate::config::Macs;
use evpn::Rd;
use model::{MacAddr, Vni};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

/// An answer that is not what was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("FRR answered {command:?} with {got:?}, which is no JSON object")]
pub struct BadOutput {
    /// What was asked.
    pub command: &'static str,
    /// The beginning of the answer.
    pub got: String,
}

/// All sessions, from `show bgp l2vpn evpn summary json`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sessions {
    /// By the peer's address.
    pub peers: BTreeMap<IpAddr, Session>,
}

/// One session.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Session {
    /// As FRR calls it: `Established`, `Active`, `Idle` and so on.
    pub state: String,
    /// For how long it has been up, or was not.
    pub since: Duration,
    /// Routes received.
    pub received: u64,
    /// Routes sent.
    pub sent: u64,
    /// How often it was lost.
    pub dropped: u64,
}

impl Session {
    /// True if routes are exchanged.
    pub fn is_up(&self) -> bool {
        self.state == "Established"
    }
}

impl Sessions {
    /// The command whose answer this is.
    pub const COMMAND: &'static str = "show bgp l2vpn evpn summary json";

    /// Reads the answer. Peers that are named by interface are left out.
    pub fn parse(text: &str) -> Result<Self, BadOutput> {
        let root = object(Self::COMMAND, text)?;
        // Nested in the family's name where the whole `show bgp summary` was asked for.
        let peers = root
            .get("peers")
            .or_else(|| root.get("l2VpnEvpn")?.get("peers"))
            .and_then(Value::as_object);
        let number = |peer: &Value, key: &str| peer.get(key).and_then(Value::as_u64).unwrap_or(0);
        let peers = peers
            .into_iter()
            .flatten()
            .filter_map(|(address, peer)| {
                let session = Session {
                    state: peer.get("state")?.as_str()?.to_owned(),
                    since: Duration::from_millis(number(peer, "peerUptimeMsec")),
                    received: number(peer, "pfxRcd"),
                    sent: number(peer, "pfxSnt"),
                    dropped: number(peer, "connectionsDropped"),
                };
                Some((address.parse().ok()?, session))
            })
            .collect();
        Ok(Self { peers })
    }

    /// True if what bgpd withdraws may be believed: a session with one of `reflectors` has been up
    /// for `settled`. bgpd (before 10.6) withdraws all of a reflector's routes with its session,
    /// and a reflector that has just come up has not heard all of its clients yet.
    pub fn settled(&self, reflectors: &BTreeSet<IpAddr>, settled: Duration) -> bool {
        let with = |(address, session): (&IpAddr, &Session)| {
            reflectors.contains(address) && session.is_up() && session.since >= settled
        };
        self.peers.iter().any(with)
    }
}

/// An instance as bgpd has it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RunningInstance {
    /// zebra told bgpd of its VXLAN device.
    pub in_kernel: bool,
    /// Its route distinguisher.
    pub rd: String,
    /// Route targets of import.
    pub import: BTreeSet<String>,
    /// Route targets of export.
    pub export: BTreeSet<String>,
}

/// Instances as bgpd has them, from `show bgp l2vpn evpn vni json`.
pub fn instances(text: &str) -> Result<BTreeMap<Vni, RunningInstance>, BadOutput> {
    let root = object("show bgp l2vpn evpn vni json", text)?;
    let texts = |value: Option<&Value>| -> BTreeSet<String> {
        let list = value.and_then(Value::as_array).into_iter().flatten();
        list.filter_map(|text| Some(text.as_str()?.to_owned()))
            .collect()
    };
    let read = |(_, value): (&String, &Value)| {
        let vni = vni(value)?;
        let instance = RunningInstance {
            in_kernel: is_true(value.get("inKernel")),
            rd: value
                .get("rd")
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned(),
            import: texts(value.get("importRTs")),
            export: texts(value.get("exportRTs")),
        };
        Some((vni, instance))
    };
    Ok(root.iter().filter_map(read).collect())
}

/// VNIs that zebra has, with the names of their VXLAN devices, from `show evpn vni json`.
pub fn kernel_instances(text: &str) -> Result<BTreeMap<Vni, String>, BadOutput> {
    let root = object("show evpn vni json", text)?;
    let read = |(_, value): (&String, &Value)| {
        let name = value.get("vxlanIf").and_then(Value::as_str);
        Some((vni(value)?, name.unwrap_or_default().to_owned()))
    };
    Ok(root.iter().filter_map(read).collect())
}

/// The command whose answer [`announced`] reads: what an instance of this host announces.
pub fn announced_command(rd: Rd) -> String {
    format!("show bgp l2vpn evpn route rd {rd} json")
}

/// MACs that an instance of this host announces, with their addresses. Routes with its distinguisher
/// that somebody else made are left out.
pub fn announced(text: &str) -> Result<Macs, BadOutput> {
    let root = object("show bgp l2vpn evpn route rd json", text)?;
    let mut macs = Macs::new();
    let routes = root.values().filter_map(Value::as_object).flatten();
    for (_, route) in routes {
        // Type 2 alone has a MAC.
        let Some(mac) = text_of(route, "mac").and_then(|mac| mac.parse::<MacAddr>().ok()) else {
            continue;
        };
        let paths = route.get("paths").and_then(Value::as_array);
        // A list of paths, each a list of one or, in some releases, itself.
        let mut paths = paths.into_iter().flatten().flat_map(|path| match path {
            Value::Array(paths) => paths.iter().collect::<Vec<_>>(),
            path => vec![path],
        });
        if !paths.any(|path| is_true(path.get("local")) || is_true(path.get("sourced"))) {
            continue;
        }
        let addresses = macs.entry(mac).or_default();
        if let Some(ip) = text_of(route, "ip").and_then(|ip| ip.parse().ok()) {
            addresses.insert(ip);
        }
    }
    Ok(macs)
}

fn text_of<'a>(value: &'a Value, key: &str) -> Option<&'a str> {
    value.get(key)?.as_str()
}

fn vni(value: &Value) -> Option<Vni> {
    let raw = value.get("vni")?.as_u64()?;
    Vni::new(u32::try_from(raw).ok()?).ok()
}

fn is_true(value: Option<&Value>) -> bool {
    match value {
        Some(Value::Bool(yes)) => *yes,
        Some(Value::String(text)) => text.eq_ignore_ascii_case("true"),
        _ => false,
    }
}

fn object(command: &'static str, text: &str) -> Result<serde_json::Map<String, Value>, BadOutput> {
    match serde_json::from_str(text) {
        Ok(Value::Object(object)) => Ok(object),
        // Nothing configured: some releases answer with nothing at all.
        _ if text.trim().is_empty() => Ok(serde_json::Map::new()),
        _ => Err(BadOutput {
            command,
            got: text.chars().take(80).collect(),
        }),
    }
}
