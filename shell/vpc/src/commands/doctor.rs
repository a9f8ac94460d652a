//! `vpc doctor`: needs no server and no agent. If there is an agent, it is asked for its sessions.

mod storage;

use super::host::credential_state;
use crate::block_on;
use crate::connect::{AGENT_SOCKET, AgentAccess, EvpnAccess, HOST_CREDENTIAL, refused};
use crate::failure::{Failure, Outcome, with_causes};
use crate::options::Global;
use crate::output::{Format, Row, ago, json, print, time};
use crate::reflector::{self, PeerState};
use crate::settings::{AGENT, AGENT_CONFIG, Sources};
use api::v1;
use clap::Args;
use frr::Feature;
use frr_driver::Installed;
use linux::BridgeNetfilter;
use model::{Capability, Transport};
use serde::Serialize;
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use tunnel::TunnelError;

/// `vpc doctor`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  vpc doctor
  vpc doctor -o json

Exit status 1 if something is missing that the agent cannot do without, or wrong.")]
pub(crate) struct Doctor {}

/// A fabric that is down as a whole is not told of host by host.
const TROUBLES_MAX: usize = 8;

/// What was found of one thing.
#[derive(Debug, Serialize)]
struct Finding {
    check: &'static str,
    #[serde(flatten)]
    verdict: Verdict,
}

#[derive(Debug, Serialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
enum Verdict {
    /// As it should be.
    Ok { detail: String },
    /// It works without, in another way.
    Fallback { detail: String, remedy: String },
    /// It does not work without.
    Missing { detail: String, remedy: String },
    /// Somebody has to set it right: it hurts, here or elsewhere.
    Wrong {
        kind: String,
        detail: String,
        remedy: String,
    },
    /// Not there, which may be meant.
    Absent { detail: String, remedy: String },
}

impl Doctor {
    /// Does it.
    pub(crate) fn run(self, global: &Global) -> Outcome {
        let mut findings = vec![root(), kernel(), nft(), tun()];
        let capabilities = probe();
        let agent = ask_agent().ok();
        let transport = transport(agent.as_ref());
        findings.extend(meanings(&capabilities, transport));
        findings.push(datapath(transport, agent.is_some()));
        findings.push(bridge_netfilter());
        findings.push(frr());
        findings.extend(rival());
        findings.push(agent_here());
        findings.extend(storage::findings());
        findings.extend(agent.iter().flat_map(server));
        findings.extend(gateways(&capabilities, transport));
        findings.extend(evpn());
        findings.extend(reflector_here());
        findings.extend(reflector_alerts());
        findings.push(credential());
        match global.output {
            Format::Json => json(&findings)?,
            Format::Table => {
                global.output.many(&findings)?;
                for finding in &findings {
                    if let Verdict::Fallback { remedy, .. }
                    | Verdict::Missing { remedy, .. }
                    | Verdict::Wrong { remedy, .. }
                    | Verdict::Absent { remedy, .. } = &finding.verdict
                    {
                        print(&format!("\n{}: {remedy}", finding.check))?;
                    }
                }
            }
        }
        verdict(&findings)
    }
}

/// What the command ends with.
fn verdict(findings: &[Finding]) -> Outcome {
    let missing: Vec<&str> = findings
        .iter()
        .filter(|finding| matches!(finding.verdict, Verdict::Missing { .. }))
        .map(|finding| finding.check)
        .collect();
    let wrong: Vec<&str> = findings
        .iter()
        .filter_map(|finding| match &finding.verdict {
            Verdict::Wrong { kind, .. } => Some(kind.as_str()),
            _ => None,
        })
        .collect();
    let mut problems = Vec::new();
    if !missing.is_empty() {
        problems.push(format!("this host lacks {}", missing.join(", ")));
    }
    if !wrong.is_empty() {
        problems.push(format!("there are problems: {}", wrong.join(", ")));
    }
    match problems.is_empty() {
        true => Ok(()),
        false => Err(Failure::new(problems.join("; ")).hint("the remedies are above")),
    }
}

impl Row for Finding {
    const COLUMNS: &'static [&'static str] = &["check", "verdict", "detail"];
    fn cells(&self) -> Vec<String> {
        let (verdict, detail) = match &self.verdict {
            Verdict::Ok { detail } => ("ok", detail),
            Verdict::Fallback { detail, .. } => ("fallback", detail),
            Verdict::Missing { detail, .. } => ("MISSING", detail),
            Verdict::Wrong { detail, .. } => ("WRONG", detail),
            Verdict::Absent { detail, .. } => ("absent", detail),
        };
        vec![self.check.to_owned(), verdict.to_owned(), detail.clone()]
    }
}

fn ok(check: &'static str, detail: impl Into<String>) -> Finding {
    let detail = detail.into();
    Finding {
        check,
        verdict: Verdict::Ok { detail },
    }
}

fn fallback(check: &'static str, detail: impl Into<String>, remedy: &str) -> Finding {
    Finding {
        check,
        verdict: Verdict::Fallback {
            detail: detail.into(),
            remedy: remedy.to_owned(),
        },
    }
}

fn missing(check: &'static str, detail: impl Into<String>, remedy: &str) -> Finding {
    Finding {
        check,
        verdict: Verdict::Missing {
            detail: detail.into(),
            remedy: remedy.to_owned(),
        },
    }
}

fn absent(check: &'static str, detail: impl Into<String>, remedy: &str) -> Finding {
    Finding {
        check,
        verdict: Verdict::Absent {
            detail: detail.into(),
            remedy: remedy.to_owned(),
        },
    }
}

fn root() -> Finding {
    match nix::unistd::geteuid().is_root() {
        true => ok("root", "yes"),
        false => missing(
            "root",
            "not root: what follows is guesswork",
            "run it as root; the agent has to change interfaces, namespaces and nftables",
        ),
    }
}

fn kernel() -> Finding {
    ok("kernel", linux::kernel_version())
}

fn nft() -> Finding {
    let found = Command::new("nft")
        .arg("--version")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output();
    match found {
        Ok(output) if output.status.success() => {
            ok("nft", String::from_utf8_lossy(&output.stdout).trim())
        }
        Ok(output) => missing(
            "nft",
            format!("nft: {}", output.status),
            "reinstall nftables",
        ),
        Err(error) => missing("nft", format!("nft: {error}"), "apt-get install nftables"),
    }
}

fn tun() -> Finding {
    match fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
    {
        Ok(_) => ok("/dev/net/tun", "can be opened"),
        Err(error) => fallback(
            "/dev/net/tun",
            error.to_string(),
            "modprobe tun; without it NICs of virtual machines (--attach tap) fail",
        ),
    }
}

/// What carries this host's frames: as the agent has it, or would.
fn transport(agent: Option<&v1::AgentStatus>) -> Transport {
    if let Some(status) = agent {
        return Transport::try_from(status.transport()).unwrap_or_default();
    }
    let mut sources = Sources::new(&AGENT);
    // What is wrong with its settings, the agent says.
    let read = sources.read_file(AGENT_CONFIG.as_ref(), false);
    sources.add_env();
    let settings = read.and_then(|()| sources.agent());
    settings.map_or_else(|_| Transport::default(), |settings| settings.transport)
}

fn ask_agent() -> Outcome<v1::AgentStatus> {
    block_on(async {
        let mut agent = AgentAccess::usual().agent().await?;
        let status = agent.status(v1::AgentStatusRequest {}).await;
        let status = status.map_err(|status| refused("asking the agent how it is", &status))?;
        Ok(status.into_inner())
    })
}

/// The process that carries frames where the transport is tap.
fn datapath(transport: Transport, has_agent: bool) -> Finding {
    const CHECK: &str = "datapath";
    let run_dir = Path::new(AGENT_SOCKET).parent().unwrap_or(Path::new("/"));
    match tunnel::Client::connect(run_dir) {
        Ok(client) => ok(CHECK, format!("runs: process {}", client.pid())),
        Err(TunnelError::Absent { .. }) if transport == Transport::Tap && has_agent => missing(
            CHECK,
            "none runs: no frame reaches another host",
            "the agent tries again and again; /run/vpc/datapath.log and its own log say why not",
        ),
        Err(TunnelError::Absent { .. }) if transport == Transport::Tap => absent(
            CHECK,
            "none runs: no frame reaches another host",
            "the agent starts it",
        ),
        Err(TunnelError::Absent { .. }) => absent(
            CHECK,
            "none runs: the kernel carries frames to other hosts",
            "transport = \"tap\" in agent.toml, if a datapath is to carry them",
        ),
        Err(error) => fallback(
            CHECK,
            with_causes(&error),
            "see /run/vpc/datapath.log; the agent replaces one that does not answer",
        ),
    }
}

/// Whether tenants' frames meet rules that were not made for them.
fn bridge_netfilter() -> Finding {
    const CHECK: &str = "bridge-netfilter";
    const REMEDY: &str = "sysctl net.bridge.bridge-nf-call-iptables=0 (and -ip6tables, -arptables), unless \
        those rules are to see bridged frames, as Docker and Kubernetes want it; or have them let vpc's \
        bridges (b-*) pass";
    match linux::bridge_netfilter() {
        Ok(BridgeNetfilter::Off) => ok(CHECK, "off: tenants' frames meet the bridge's hooks only"),
        Ok(BridgeNetfilter::Idle) => fallback(
            CHECK,
            "on, with nobody's rules there: it costs a small packet about a tenth",
            "the agent switches it off when it starts, unless bridge_netfilter is \"keep\"",
        ),
        Ok(BridgeNetfilter::Used(tables)) => {
            let tables: Vec<String> = tables.into_iter().collect();
            let detail = format!(
                "on: tenants' frames pass the chains of {}; one that drops what is forwarded cuts them off",
                tables.join(", ")
            );
            fallback(CHECK, detail, REMEDY)
        }
        Err(error) => fallback(CHECK, with_causes(&error), REMEDY),
    }
}

/// The FRR that could be this host's EVPN client or a reflector.
fn frr() -> Finding {
    const CHECK: &str = "frr";
    let Some(version) = Installed::default().version() else {
        return absent(
            CHECK,
            "not installed: the built-in speaker does without",
            "apt install frr, if it is to be this host's EVPN client or a reflector",
        );
    };
    let (has, lacks): (Vec<Feature>, _) = Feature::ALL
        .into_iter()
        .partition(|feature| version.has(*feature));
    let names = |features: &[Feature]| {
        let names: Vec<&str> = features.iter().map(|feature| feature.name()).collect();
        names.join(", ")
    };
    if !version.has(Feature::Evpn) {
        return fallback(
            CHECK,
            format!("{version}: too old to be used here"),
            "a release from 8.4 on; or leave EVPN to the built-in speaker",
        );
    }
    let lacking = match lacks.is_empty() {
        true => String::new(),
        false => format!("; without {}", names(&lacks)),
    };
    let detail = format!("{version}: {}{lacking}", names(&has));
    match fs::read_to_string("/proc/sys/user/max_user_namespaces") {
        Ok(most) if most.trim() == "0" => fallback(
            CHECK,
            format!("{detail}; but zebra cannot be run, for want of user namespaces"),
            "sysctl user.max_user_namespaces=1000, if FRR is to be this host's EVPN client",
        ),
        _ => ok(CHECK, detail),
    }
}

/// FRR's own service, if it is in the way of whoever speaks EVPN here.
fn rival() -> Option<Finding> {
    let own = Path::new(AGENT_SOCKET).with_file_name("frr");
    let found = block_on(async { Ok(frr_driver::rival(&own).await) });
    let (detail, remedy) = found.ok().flatten()?;
    Some(Finding {
        check: "frr",
        verdict: Verdict::Wrong {
            kind: "frr-service".to_owned(),
            detail,
            remedy,
        },
    })
}

/// What each capability is called here, and what its absence means.
struct Meaning {
    capability: Capability,
    name: &'static str,
    without: Without,
    /// Which transport does without, if one does.
    spared_by: Option<Transport>,
}

enum Without {
    Fallback(&'static str, &'static str),
    Missing(&'static str),
}

const MEANINGS: &[Meaning] = &[
    Meaning {
        capability: Capability::Vxlan,
        name: "vxlan",
        without: Without::Missing("modprobe vxlan, or a kernel with CONFIG_VXLAN"),
        spared_by: Some(Transport::Tap),
    },
    Meaning {
        capability: Capability::NftBridge,
        name: "nft-bridge",
        without: Without::Missing(
            "modprobe nf_tables, or a kernel with CONFIG_NF_TABLES_BRIDGE: ports are guarded there",
        ),
        spared_by: None,
    },
    Meaning {
        capability: Capability::VlanFiltering,
        name: "vlan-filtering",
        without: Without::Fallback(
            "one bridge per subnet instead of one per VPC; the wire is the same",
            "a kernel with CONFIG_BRIDGE_VLAN_FILTERING, as distributions ship",
        ),
        spared_by: None,
    },
    Meaning {
        capability: Capability::VlanDevices,
        name: "vlan-devices",
        without: Without::Fallback(
            "ARP and ND of a filtered bridge are not suppressed",
            "modprobe 8021q, or a kernel with CONFIG_VLAN_8021Q",
        ),
        spared_by: Some(Transport::Tap),
    },
    Meaning {
        capability: Capability::Tap,
        name: "tap",
        without: Without::Fallback(
            "no NICs for virtual machines, and no transport \"tap\"",
            "modprobe tun, or a kernel with CONFIG_TUN",
        ),
        spared_by: None,
    },
    Meaning {
        capability: Capability::ClsBpf,
        name: "cls-bpf",
        without: Without::Fallback(
            "no vlan-aware-bundle where bridges do not filter VLANs",
            "a kernel with CONFIG_NET_CLS_BPF and CONFIG_NET_CLS_ACT",
        ),
        spared_by: Some(Transport::Tap),
    },
    Meaning {
        capability: Capability::TcpMd5,
        name: "tcp-md5",
        without: Without::Fallback(
            "BGP sessions cannot be signed",
            "a kernel with CONFIG_TCP_MD5SIG",
        ),
        spared_by: None,
    },
];

fn meanings(
    probed: &Result<BTreeSet<Capability>, linux::Error>,
    transport: Transport,
) -> Vec<Finding> {
    let found = match probed {
        Ok(found) => found,
        Err(error) => {
            return vec![missing(
                "capabilities",
                with_causes(error),
                "the kernel could not be asked: run it as root, outside of a restricted container",
            )];
        }
    };
    let meanings = MEANINGS.iter();
    meanings
        .map(|meaning| meaning.of(found.contains(&meaning.capability), transport))
        .collect()
}

impl Meaning {
    fn of(&self, is_there: bool, transport: Transport) -> Finding {
        match &self.without {
            _ if is_there => ok(self.name, "yes"),
            Without::Missing(remedy) | Without::Fallback(_, remedy)
                if self.spared_by == Some(transport) =>
            {
                let detail = format!("no, and not needed: the transport is {transport}");
                absent(
                    self.name,
                    detail,
                    &format!("{remedy}; for another transport"),
                )
            }
            // Frames have no way out.
            Without::Fallback(_, remedy)
                if (self.capability, transport) == (Capability::Tap, Transport::Tap) =>
            {
                missing(self.name, "no, and the transport is tap", remedy)
            }
            Without::Missing(remedy) => missing(self.name, "no", remedy),
            Without::Fallback(instead, remedy) => {
                fallback(self.name, format!("no: {instead}"), remedy)
            }
        }
    }
}

/// The agent remembers namespaces in a directory of its own; here it is one that goes again.
fn probe() -> Result<BTreeSet<Capability>, linux::Error> {
    let dir = std::env::temp_dir().join(format!("vpc-doctor-{}", std::process::id()));
    let found = linux::Kernel::open(&dir).and_then(|mut kernel| kernel.capabilities().cloned());
    // That it was never made is as good.
    drop(fs::remove_dir_all(&dir));
    found
}

fn agent_here() -> Finding {
    match UnixStream::connect(AGENT_SOCKET) {
        Ok(_) => ok(
            "agent",
            format!("listens at {AGENT_SOCKET}; see `vpc agent status`"),
        ),
        Err(error) => absent(
            "agent",
            format!("does not answer at {AGENT_SOCKET}: {error}"),
            "systemctl start vpc-agent, or vpc agent run",
        ),
    }
}

/// What the agent tells of its server, and of its clock beside the server's. None if it needs no server.
fn server(status: &v1::AgentStatus) -> Vec<Finding> {
    const CHECK: &str = "server";
    let wrong = |kind: &str, detail: String, remedy: &str| Finding {
        check: CHECK,
        verdict: Verdict::Wrong {
            kind: kind.to_owned(),
            detail,
            remedy: remedy.to_owned(),
        },
    };
    let mut findings = Vec::new();
    if !status.server_trouble.is_empty() {
        findings.push(wrong(
            "server",
            format!("not connected: {}", status.server_trouble),
            "see that the server runs and can be reached; the host works on from the configuration it has",
        ));
    } else if status.server_connected {
        findings.push(ok(CHECK, format!("connected to {}", status.server)));
    }
    if let Some(told) = status.clock_ahead_ms.and_then(agent::far_clock) {
        let (detail, remedy) = told;
        findings.push(wrong("clock", detail, remedy));
    }
    findings.extend(routers(status));
    findings
}

/// What is wrong with routers here, as the agent tells it: it names the router and what to do.
fn routers(status: &v1::AgentStatus) -> impl Iterator<Item = Finding> {
    let conditions = status.conditions.iter();
    let of_routers = conditions.filter(|condition| condition.kind() == v1::Kind::Router);
    of_routers.map(|condition| {
        let (detail, remedy) = match condition.message.rsplit_once(": ") {
            Some((detail, remedy)) => (detail, remedy),
            None => (condition.message.as_str(), "see the agent's log"),
        };
        Finding {
            check: "router",
            verdict: Verdict::Wrong {
                kind: "router".to_owned(),
                detail: detail.to_owned(),
                remedy: remedy.to_owned(),
            },
        }
    })
}

/// The gateways here of VPCs that are routed on every host. None if there is no agent, or no such VPC.
fn gateways(
    probed: &Result<BTreeSet<Capability>, linux::Error>,
    transport: Transport,
) -> Option<Finding> {
    let asked: Outcome<Vec<v1::HostRouterState>> = block_on(async {
        let mut agent = AgentAccess::usual().l3().await?;
        let listed = agent.list_routers(v1::ListHostRoutersRequest::default());
        let listed = listed.await;
        let listed = listed.map_err(|status| refused("listing the routers here", &status))?;
        Ok(listed.into_inner().routers)
    });
    gateways_among(&asked.ok()?, probed.as_ref().ok()?, transport)
}

fn gateways_among(
    routers: &[v1::HostRouterState],
    found: &BTreeSet<Capability>,
    transport: Transport,
) -> Option<Finding> {
    const CHECK: &str = "gateways";
    let configs = routers.iter().filter_map(|state| state.router.as_ref());
    let gateways: Vec<_> = configs.filter(|config| config.anycast).collect();
    let names: Vec<&str> = gateways.iter().map(|config| &config.name[..]).collect();
    if names.is_empty() {
        return None;
    }
    let mut legs = gateways.iter().flat_map(|config| &config.legs);
    let has_v6 = legs.any(|leg| leg.addresses.iter().any(|ip| ip.contains(':')));
    let rows = [Capability::VlanFiltering, Capability::VlanDevices];
    // A datapath answers, whatever the kernel can.
    let answers = transport == Transport::Tap || rows.iter().all(|row| found.contains(row));
    let detail = format!("routed here as on every host: {}", names.join(", "));
    Some(match has_v6 && !answers {
        false => ok(CHECK, detail),
        true => fallback(
            CHECK,
            format!(
                "{detail}; what their NICs ask for the gateway's IPv6 address (ND) goes to all hosts of the \
                 subnet, though only this one answers"
            ),
            "a kernel with CONFIG_BRIDGE_VLAN_FILTERING and CONFIG_VLAN_8021Q, as distributions ship; it \
             costs a frame for each question and nothing else",
        ),
    })
}

/// What the agent tells of its EVPN: peers that something is wrong with, MACs and addresses that are
/// in use twice and the like. None if there is no agent.
fn evpn() -> Vec<Finding> {
    let Some((peers, alerts)) = ask_evpn(&EvpnAccess::agent()) else {
        return Vec::new();
    };
    let mut findings = troubles("bgp", &peers);
    if findings.is_empty() && !peers.is_empty() {
        findings.push(ok("bgp", format!("sessions that are up: {}", peers.len())));
    }
    findings.extend(alerts.iter().map(alert));
    findings
}

/// Peers that something is wrong with, and what.
fn troubles(check: &'static str, peers: &[v1::Peer]) -> Vec<Finding> {
    let mut wrong = peers.iter().filter(|peer| !peer.problem.is_empty());
    let finding = |peer: &v1::Peer| {
        let causes = peer.causes.join("; or ");
        let detail = match causes.as_str() {
            "" => peer.problem.clone(),
            causes => format!("{}: perhaps {causes}", peer.problem),
        };
        absent(check, detail, &peer.remedy)
    };
    let mut findings: Vec<Finding> = wrong.by_ref().take(TROUBLES_MAX).map(finding).collect();
    let more = wrong.count();
    if more > 0 {
        findings.push(absent(
            check,
            format!("something is wrong with {more} more"),
            "vpc evpn peers, with --reflector on a server, tells of each",
        ));
    }
    findings
}

/// The route reflector of this host's server; none if there is no server.
fn reflector_here() -> Option<Finding> {
    let state = reflector::ask(Path::new(reflector::SOCKET)).ok()?.state;
    let kind = state.kind.name();
    let up = |peer: &&PeerState| peer.state == "established";
    let connected = state.peers.iter().filter(up).count();
    Some(match (state.problem, state.listen) {
        (Some(problem), _) => absent(
            "reflector",
            format!("{kind}: {problem}"),
            "see `vpc server reflector`, and the server's log",
        ),
        (None, None) => ok("reflector", format!("{kind}: not run by this server")),
        (None, Some(listen)) => ok(
            "reflector",
            format!(
                "{kind} at {listen}: {connected} of {} hosts connected; see `vpc server reflector`",
                state.peers.len()
            ),
        ),
    })
}

type Told = (Vec<v1::Peer>, Vec<v1::EvpnAlert>);

fn ask_evpn(of: &EvpnAccess) -> Option<Told> {
    let asked: Outcome<Told> = block_on(async {
        let mut evpn = of.evpn().await?;
        let peers = evpn.peers(v1::PeersRequest {}).await;
        let peers = peers.map_err(|status| refused("listing EVPN peers", &status))?;
        let summary = evpn.evpn_summary(v1::EvpnSummaryRequest {}).await;
        let summary = summary.map_err(|status| refused("asking for EVPN alerts", &status))?;
        Ok((peers.into_inner().peers, summary.into_inner().alerts))
    });
    // Whether there is one is told elsewhere.
    asked.ok()
}

/// What our own reflector of this host's server sees wrong with hosts' sessions and routes.
fn reflector_alerts() -> Vec<Finding> {
    let Some((peers, alerts)) = ask_evpn(&EvpnAccess::reflector()) else {
        return Vec::new();
    };
    let mut findings = troubles("reflector", &peers);
    findings.extend(alerts.iter().map(alert));
    findings
}

fn alert(alert: &v1::EvpnAlert) -> Finding {
    Finding {
        check: "evpn",
        verdict: Verdict::Wrong {
            kind: alert.kind.clone(),
            detail: format!("{}: {}", alert.place, alert.what),
            remedy: alert.remedy.clone(),
        },
    }
}

fn credential() -> Finding {
    let path = Path::new(HOST_CREDENTIAL);
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return absent(
                "credential",
                "this host did not join a cluster",
                "vpc host join, with a token of `vpc host token create`",
            );
        }
        _ => {}
    }
    match credential_state(path) {
        Ok((_, until)) if ago(until) != "0s" => missing(
            "credential",
            format!("{HOST_CREDENTIAL} ended {} ago", ago(until)),
            "remove the host with `vpc host remove`, remove the file, join again",
        ),
        Ok((_, until)) => ok(
            "credential",
            format!("{HOST_CREDENTIAL}, good until {}", time(until)),
        ),
        Err(failure) => missing(
            "credential",
            failure.message(),
            "remove the file and join again",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gateways_on_every_host_are_told_of_and_what_the_kernel_does_not_do_for_them() {
        let router = |name: &str, anycast, address: &str| v1::HostRouterState {
            router: Some(v1::RouterConfig {
                name: name.to_owned(),
                anycast,
                legs: vec![v1::RouterLeg {
                    addresses: vec![address.to_owned()],
                    ..v1::RouterLeg::default()
                }],
                ..v1::RouterConfig::default()
            }),
            ..v1::HostRouterState::default()
        };
        let plain = BTreeSet::from([Capability::VlanDevices]);
        let filtering = BTreeSet::from([Capability::VlanDevices, Capability::VlanFiltering]);
        let other = router("red/gw", false, "fd00:5::1/64");
        let [v4, v6] = ["10.4.1.1/24", "fd00:4::1/64"].map(|a| router("blue/gateway", true, a));
        let kernel = Transport::Kernel;
        assert!(gateways_among(std::slice::from_ref(&other), &plain, kernel).is_none());
        let over = |transport, routers: &[v1::HostRouterState], found| {
            let finding = gateways_among(routers, found, transport).unwrap();
            finding.cells()[1..].join(" ")
        };
        let cells = |routers: &[v1::HostRouterState], found| over(kernel, routers, found);
        let told = "ok routed here as on every host: blue/gateway";
        assert_eq!(cells(&[other.clone(), v4], &plain), told);
        assert_eq!(cells(&[other.clone(), v6.clone()], &filtering), told);
        assert_eq!(
            over(Transport::Tap, std::slice::from_ref(&v6), &plain),
            told
        );
        let crosses = cells(&[v6, other], &plain);
        assert!(crosses.starts_with("fallback ") && crosses.contains("(ND) goes to all hosts"));
    }

    #[test]
    fn what_a_transport_does_without_is_not_missed() {
        let nothing = Ok(BTreeSet::new());
        let verdicts = |transport| {
            let findings = meanings(&nothing, transport);
            let words = findings.into_iter().map(|finding| {
                let cells = finding.cells();
                format!("{} {}", cells[0], cells[1])
            });
            words.collect::<BTreeSet<String>>()
        };
        let (kernel, tap) = (verdicts(Transport::Kernel), verdicts(Transport::Tap));
        let only = |these: &BTreeSet<String>, others| {
            let only: Vec<String> = these.difference(others).cloned().collect();
            only.join(", ")
        };
        assert_eq!(
            only(&kernel, &tap),
            "cls-bpf fallback, tap fallback, vlan-devices fallback, vxlan MISSING"
        );
        assert_eq!(
            only(&tap, &kernel),
            "cls-bpf absent, tap MISSING, vlan-devices absent, vxlan absent"
        );
        let findings = meanings(&nothing, Transport::Tap);
        let vxlan = findings.iter().find(|finding| finding.check == "vxlan");
        let vxlan = serde_json::to_value(vxlan.unwrap()).unwrap();
        assert_eq!(vxlan["detail"], "no, and not needed: the transport is tap");
        assert_eq!(vxlan["verdict"], "absent");
    }

    #[test]
    fn an_alert_is_a_problem_with_a_remedy() {
        let told = v1::EvpnAlert {
            kind: "duplicate-vtep".to_owned(),
            what: "router 10.0.0.9 announces this host's VTEP address 10.0.0.1 as its own"
                .to_owned(),
            place: "routes from 10.0.0.3".to_owned(),
            remedy: "give the host of router 10.0.0.9 an underlay address of its own".to_owned(),
            ..v1::EvpnAlert::default()
        };
        let finding = alert(&told);
        assert_eq!(
            finding.cells(),
            [
                "evpn",
                "WRONG",
                "routes from 10.0.0.3: router 10.0.0.9 announces this host's VTEP address 10.0.0.1 as \
                 its own"
            ]
        );
        let json = serde_json::to_value(&finding).unwrap();
        assert_eq!(json["verdict"], "wrong");
        assert_eq!(json["remedy"], told.remedy);
        let failure = verdict(&[ok("kernel", "6.1"), finding]).unwrap_err();
        assert_eq!(failure.message(), "there are problems: duplicate-vtep");
        assert!(verdict(&[ok("kernel", "6.1")]).is_ok());
    }
}
