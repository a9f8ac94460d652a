//! `vpc agent l2`: the agent's own API, usable with no server.

use crate::block_on;
use crate::connect::{AgentAccess, refused};
use crate::failure::{Failure, Outcome};
use crate::options::Global;
use crate::output::{Format, Row, json, print, table};
use crate::views::{ConditionView, attachment, condition_lines, hyphened, some, word};
use api::v1;
use clap::{Args, Subcommand};
use ipnet::IpNet;
use serde::Serialize;
use std::net::IpAddr;

/// How long `--wait` waits here: a host that works takes milliseconds.
const WAIT_MS: u32 = 30_000;

/// VPCs on this host.
#[derive(Debug, Subcommand)]
pub(crate) enum Stack {
    /// List stacks, those from the server included
    #[command(after_help = "Examples:\n  vpc agent l2 stack list -o json")]
    List {
        #[command(flatten)]
        agent: AgentAccess,
    },
    /// Show a stack as the kernel has it
    #[command(after_help = "Examples:\n  vpc agent l2 stack show 9k3v0c7m2a")]
    Show {
        /// Id of its VPC
        vpc_id: String,
        #[command(flatten)]
        agent: AgentAccess,
    },
    /// Make a stack: a bridge and its tunnel endpoints
    #[command(after_help = "Examples:
  vpc agent l2 stack create lab/blue --vni 4097 --segment web,vlan=10,vni=4098,cidr=10.4.1.0/24,mtu=1450 --wait

The answer has the ids that ports need.")]
    Create(CreateStack),
    /// Delete a stack that was made here
    #[command(after_help = "Examples:\n  vpc agent l2 stack delete 9k3v0c7m2a --with-nics --wait")]
    Delete {
        /// Id of its VPC
        vpc_id: String,
        /// Its NICs too
        #[arg(long)]
        with_nics: bool,
        /// Return when the kernel has it
        #[arg(long)]
        wait: bool,
        #[command(flatten)]
        agent: AgentAccess,
    },
    /// Stacks as they change
    #[command(after_help = "Examples:\n  vpc agent l2 stack watch -o json")]
    Watch {
        #[command(flatten)]
        agent: AgentAccess,
    },
}

/// `vpc agent l2 stack create`.
#[derive(Debug, Args)]
pub(crate) struct CreateStack {
    /// What people call it
    name: String,
    /// Id of its VPC; drawn by the agent if not given
    #[arg(long, value_name = "ID")]
    vpc_id: Option<model::VpcId>,
    /// The VPC's own VNI
    #[arg(long)]
    vni: super::vpc::model_vni::Arg,
    /// vlan-based or vlan-aware-bundle
    #[arg(long, default_value = "vlan-based")]
    encoding: model::Encoding,
    /// A subnet: NAME,vlan=N,vni=N,mtu=N[,id=ID][,cidr=CIDR][,cidr=CIDR]; may be given several times
    #[arg(long, value_name = "SEGMENT", value_parser = segment)]
    segment: Vec<v1::Segment>,
    /// Return when the kernel has it
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    agent: AgentAccess,
}

/// NICs on this host.
#[derive(Debug, Subcommand)]
pub(crate) enum Port {
    /// List ports, those from the server included
    #[command(
        after_help = "Examples:\n  vpc agent l2 port list\n  vpc agent l2 port list --vpc-id 9k3v0c7m2a"
    )]
    List {
        /// Only those of this VPC
        #[arg(long, value_name = "ID")]
        vpc_id: Option<String>,
        #[command(flatten)]
        agent: AgentAccess,
    },
    /// Show a port as the kernel has it
    #[command(after_help = "Examples:\n  vpc agent l2 port show 9k3v0c7m2a")]
    Show {
        /// Id of its NIC
        nic_id: String,
        #[command(flatten)]
        agent: AgentAccess,
    },
    /// Make a port in a stack that was made here
    #[command(after_help = "Examples:
  vpc agent l2 port create a1 --vpc-id 9k3v0c7m2a --subnet-id 5t0qj2v8xk --attach netns:a1 --ip 10.4.1.7 --wait")]
    Create(Box<CreatePort>),
    /// Delete a port that was made here
    #[command(after_help = "Examples:\n  vpc agent l2 port delete 9k3v0c7m2a --wait")]
    Delete {
        /// Id of its NIC
        nic_id: String,
        /// Return when the kernel has it
        #[arg(long)]
        wait: bool,
        #[command(flatten)]
        agent: AgentAccess,
    },
}

/// `vpc agent l2 port create`.
#[derive(Debug, Args)]
pub(crate) struct CreatePort {
    /// What people call it
    name: String,
    /// Id of its VPC
    #[arg(long, value_name = "ID")]
    vpc_id: model::VpcId,
    /// Id of its subnet
    #[arg(long, value_name = "ID")]
    subnet_id: model::SubnetId,
    /// Id of its NIC; drawn by the agent if not given
    #[arg(long, value_name = "ID")]
    nic_id: Option<model::NicId>,
    /// tap, netns:NAME, netns:NAME:DEVICE or existing:IFNAME
    #[arg(long, value_name = "ATTACHMENT")]
    attach: model::Attachment,
    /// Its MAC; drawn by the agent if not given
    #[arg(long)]
    mac: Option<model::MacAddr>,
    /// Its addresses
    #[arg(long, value_name = "ADDRESS")]
    ip: Vec<IpAddr>,
    /// A prefix that is behind it: packets from there may come out of it
    #[arg(long, value_name = "PREFIX")]
    behind: Vec<IpNet>,
    /// Return when the kernel has it
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    agent: AgentAccess,
}

fn segment(text: &str) -> Result<v1::Segment, String> {
    let mut parts = text.split(',');
    let mut segment = v1::Segment {
        name: parts.next().unwrap_or_default().to_owned(),
        ..v1::Segment::default()
    };
    for part in parts {
        let (key, value) = part
            .split_once('=')
            .ok_or_else(|| format!("{part:?} is not KEY=VALUE"))?;
        let number = || value.parse().map_err(|_| format!("{part:?}: not a number"));
        match key {
            "vlan" => segment.vlan = number()?,
            "vni" => segment.vni = number()?,
            "mtu" => segment.mtu = number()?,
            "id" => value.clone_into(&mut segment.subnet_id),
            "cidr" if value.contains(':') => value.clone_into(&mut segment.ipv6_cidr),
            "cidr" => value.clone_into(&mut segment.ipv4_cidr),
            _ => return Err(format!("{key:?} is none of vlan, vni, mtu, id and cidr")),
        }
    }
    match segment {
        v1::Segment { vlan: 0, .. } => Err("vlan is missing".to_owned()),
        v1::Segment { vni: 0, .. } => Err("vni is missing".to_owned()),
        v1::Segment { mtu: 0, .. } => Err("mtu is missing".to_owned()),
        _ => Ok(segment),
    }
}

/// A VPC on this host.
#[derive(Debug, Serialize)]
struct StackView {
    vpc_id: String,
    name: String,
    vni: u32,
    encoding: String,
    /// "local" or "managed".
    origin: String,
    ready: bool,
    conditions: Vec<ConditionView>,
    segments: Vec<SegmentView>,
    ports: Vec<PortView>,
}

#[derive(Debug, Serialize)]
struct SegmentView {
    subnet_id: String,
    name: String,
    vlan: u32,
    vni: u32,
    mtu: u32,
    ipv4_cidr: Option<String>,
    ipv6_cidr: Option<String>,
}

#[derive(Debug, Serialize)]
struct PortView {
    nic_id: String,
    name: String,
    subnet_id: String,
    mac: String,
    addresses: Vec<String>,
    attachment: String,
}

#[derive(Debug, Serialize)]
struct NicStateView {
    vpc_id: String,
    #[serde(flatten)]
    port: PortView,
    origin: String,
    ready: bool,
    conditions: Vec<ConditionView>,
}

#[derive(Debug, Serialize)]
struct LinkView {
    name: String,
    kind: String,
    ifindex: u32,
    mac: String,
    mtu: u32,
    up: bool,
    master: Option<String>,
    vni: Option<u32>,
    local: Option<String>,
    learning: bool,
}

#[derive(Debug, Serialize)]
struct VlanView {
    link: String,
    vlan: u32,
    pvid: bool,
    untagged: bool,
}

#[derive(Debug, Serialize)]
struct FdbView {
    link: String,
    mac: String,
    destination: Option<String>,
    vlan: Option<u32>,
    vni: Option<u32>,
    protocol: Option<String>,
}

#[derive(Debug, Serialize)]
struct NeighbourView {
    link: String,
    address: String,
    mac: String,
    protocol: Option<String>,
}

#[derive(Debug, Serialize)]
struct StackStatusView {
    vpc_id: String,
    origin: String,
    ready: bool,
    conditions: Vec<ConditionView>,
    links: Vec<LinkView>,
    vlans: Vec<VlanView>,
    fdb: Vec<FdbView>,
    neighbours: Vec<NeighbourView>,
}

#[derive(Debug, Serialize)]
struct NicStatusView {
    nic_id: String,
    origin: String,
    ready: bool,
    conditions: Vec<ConditionView>,
    links: Vec<LinkView>,
    vlans: Vec<VlanView>,
    rx_bytes: u64,
    tx_bytes: u64,
    rx_packets: u64,
    tx_packets: u64,
    dropped_packets: u64,
}

#[derive(Debug, Serialize)]
struct StackEventView {
    deleted: bool,
    snapshot_complete: bool,
    stack: Option<StackView>,
}

impl Stack {
    /// Does it.
    pub(crate) fn run(self, global: &Global) -> Outcome {
        match self {
            Self::List { agent } => block_on(async {
                let stacks = agent
                    .l2()
                    .await?
                    .list_stacks(v1::ListStacksRequest::default())
                    .await
                    .map_err(|status| refused("listing stacks", &status))?
                    .into_inner()
                    .stacks;
                let views: Vec<StackView> = stacks.into_iter().map(Into::into).collect();
                global.output.many(&views)
            }),
            Self::Show { vpc_id, agent } => block_on(async {
                let request = v1::StackStatusRequest {
                    vpc_id: vpc_id.clone(),
                };
                let status = agent
                    .l2()
                    .await?
                    .stack_status(request)
                    .await
                    .map_err(|status| refused(&format!("showing stack {vpc_id}"), &status))?;
                show_stack(global, status.into_inner())
            }),
            Self::Create(create) => create.run(global),
            Self::Delete {
                vpc_id,
                with_nics,
                wait,
                agent,
            } => block_on(async {
                let request = v1::DeleteStackRequest {
                    vpc_id: vpc_id.clone(),
                    with_nics,
                    wait_ms: if wait { WAIT_MS } else { 0 },
                };
                agent
                    .l2()
                    .await?
                    .delete_stack(request)
                    .await
                    .map(drop)
                    .map_err(|status| refused(&format!("deleting stack {vpc_id}"), &status))
            }),
            Self::Watch { agent } => block_on(async {
                let doing = "watching stacks";
                let mut stream = agent
                    .l2()
                    .await?
                    .watch_stacks(v1::WatchStacksRequest {})
                    .await
                    .map_err(|status| refused(doing, &status))?
                    .into_inner();
                while let Some(event) = stream
                    .message()
                    .await
                    .map_err(|status| refused(doing, &status))?
                {
                    show_event(global, event)?;
                }
                Err(Failure::new("watching stacks: the agent ended the stream")
                    .hint("`vpc agent status` says whether it runs"))
            }),
        }
    }
}

fn show_event(global: &Global, event: v1::StackEvent) -> Outcome {
    let view = StackEventView {
        deleted: event.deleted,
        snapshot_complete: event.snapshot_complete,
        stack: event.stack.map(Into::into),
    };
    if global.output == Format::Table && view.stack.is_none() {
        return Ok(());
    }
    global.output.event(&view, || {
        let what = match (&view.stack, view.deleted) {
            (Some(stack), true) => format!("deleted  {}", stack.name),
            (Some(stack), false) if stack.ready => format!("ready    {}", stack.name),
            (Some(stack), false) => format!("working  {}", stack.name),
            (None, _) => String::new(),
        };
        let wrong = view
            .stack
            .iter()
            .flat_map(|stack| &stack.conditions)
            .count();
        match wrong {
            0 => what,
            count => format!("{what}  ({count} things wrong)"),
        }
    })
}

impl CreateStack {
    fn run(self, global: &Global) -> Outcome {
        let doing = format!("creating stack {}", self.name);
        let request = v1::AddStackRequest {
            stack: Some(v1::Stack {
                vpc_id: self.vpc_id.map(|id| id.to_string()).unwrap_or_default(),
                name: self.name.clone(),
                vni: self.vni.0,
                encoding: v1::Encoding::from(self.encoding).into(),
                unknown_neighbours: v1::UnknownNeighbours::Unspecified.into(),
                segments: self.segment,
                ports: Vec::new(),
            }),
            wait_ms: if self.wait { WAIT_MS } else { 0 },
        };
        block_on(async {
            let state = self
                .agent
                .l2()
                .await?
                .add_stack(request)
                .await
                .map_err(|status| refused(&doing, &status))?;
            let view = StackView::from(state.into_inner());
            let mut details = vec![
                ("stack", view.name.clone()),
                ("vpc id", view.vpc_id.clone()),
                ("vni", view.vni.to_string()),
            ];
            for segment in &view.segments {
                details.push(("segment", format!("{} {}", segment.subnet_id, segment.name)));
            }
            details.extend(condition_lines(&view.conditions));
            global.output.one(&view, &details)
        })
    }
}

impl Port {
    /// Does it.
    pub(crate) fn run(self, global: &Global) -> Outcome {
        match self {
            Self::List { vpc_id, agent } => block_on(async {
                let request = v1::ListHostNicsRequest {
                    vpc_id: vpc_id.unwrap_or_default(),
                    ..v1::ListHostNicsRequest::default()
                };
                let nics = agent
                    .l2()
                    .await?
                    .list_nics(request)
                    .await
                    .map_err(|status| refused("listing ports", &status))?
                    .into_inner()
                    .nics;
                let views: Vec<NicStateView> = nics.into_iter().map(Into::into).collect();
                global.output.many(&views)
            }),
            Self::Show { nic_id, agent } => block_on(async {
                let request = v1::NicStatusRequest {
                    nic_id: nic_id.clone(),
                };
                let status = agent
                    .l2()
                    .await?
                    .nic_status(request)
                    .await
                    .map_err(|status| refused(&format!("showing port {nic_id}"), &status))?;
                show_port(global, status.into_inner())
            }),
            Self::Create(create) => create.run(global),
            Self::Delete {
                nic_id,
                wait,
                agent,
            } => block_on(async {
                let request = v1::DeleteNicRequest {
                    nic_id: nic_id.clone(),
                    wait_ms: if wait { WAIT_MS } else { 0 },
                };
                agent
                    .l2()
                    .await?
                    .delete_nic(request)
                    .await
                    .map(drop)
                    .map_err(|status| refused(&format!("deleting port {nic_id}"), &status))
            }),
        }
    }
}

impl CreatePort {
    fn run(self, global: &Global) -> Outcome {
        let doing = format!("creating port {}", self.name);
        let request = v1::AddNicRequest {
            vpc_id: self.vpc_id.to_string(),
            port: Some(v1::Port {
                nic_id: self.nic_id.map(|id| id.to_string()).unwrap_or_default(),
                name: self.name.clone(),
                subnet_id: self.subnet_id.to_string(),
                mac: self.mac.map(|mac| mac.to_string()).unwrap_or_default(),
                addresses: self.ip.iter().map(ToString::to_string).collect(),
                behind: self.behind.iter().map(ToString::to_string).collect(),
                attachment: Some((&self.attach).into()),
                ..v1::Port::default()
            }),
            segment: None,
            wait_ms: if self.wait { WAIT_MS } else { 0 },
        };
        block_on(async {
            let state = self
                .agent
                .l2()
                .await?
                .add_nic(request)
                .await
                .map_err(|status| refused(&doing, &status))?;
            let view = NicStateView::from(state.into_inner());
            let mut details = vec![
                ("port", view.port.name.clone()),
                ("nic id", view.port.nic_id.clone()),
                ("mac", view.port.mac.clone()),
                ("addresses", view.port.addresses.join(" ")),
                ("attachment", view.port.attachment.clone()),
            ];
            details.extend(condition_lines(&view.conditions));
            global.output.one(&view, &details)
        })
    }
}

fn show_stack(global: &Global, status: v1::StackStatusResponse) -> Outcome {
    let view = StackStatusView {
        origin: origin(status.origin()),
        vpc_id: status.vpc_id,
        ready: status.ready,
        conditions: status.conditions.into_iter().map(Into::into).collect(),
        links: status.links.into_iter().map(Into::into).collect(),
        vlans: status.vlans.into_iter().map(Into::into).collect(),
        fdb: status.fdb.into_iter().map(Into::into).collect(),
        neighbours: status.neighbours.into_iter().map(Into::into).collect(),
    };
    if global.output == Format::Json {
        return json(&view);
    }
    let mut details = vec![
        ("vpc id", view.vpc_id.clone()),
        ("origin", view.origin.clone()),
        ("ready", yes(view.ready)),
    ];
    details.extend(condition_lines(&view.conditions));
    global.output.one(&view, &details)?;
    print_links(&view.links, &view.vlans)?;
    let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    let fdb = view.fdb.iter().map(|row| {
        let vlan = row
            .vlan
            .map_or_else(|| "-".to_owned(), |vlan| vlan.to_string());
        vec![
            row.link.clone(),
            row.mac.clone(),
            or_dash(&row.destination),
            vlan,
            or_dash(&row.protocol),
        ]
    });
    print("")?;
    print(&table(&["fdb on", "mac", "to", "vlan", "by"], fdb))?;
    let neighbours = view.neighbours.iter().map(|row| {
        vec![
            row.link.clone(),
            row.address.clone(),
            row.mac.clone(),
            or_dash(&row.protocol),
        ]
    });
    print("")?;
    print(&table(
        &["neighbours on", "address", "mac", "by"],
        neighbours,
    ))
}

fn show_port(global: &Global, status: v1::NicStatusResponse) -> Outcome {
    let view = NicStatusView {
        origin: origin(status.origin()),
        nic_id: status.nic_id,
        ready: status.ready,
        conditions: status.conditions.into_iter().map(Into::into).collect(),
        links: status.links.into_iter().map(Into::into).collect(),
        vlans: status.vlans.into_iter().map(Into::into).collect(),
        rx_bytes: status.rx_bytes,
        tx_bytes: status.tx_bytes,
        rx_packets: status.rx_packets,
        tx_packets: status.tx_packets,
        dropped_packets: status.dropped_packets,
    };
    if global.output == Format::Json {
        return json(&view);
    }
    let mut details = vec![
        ("nic id", view.nic_id.clone()),
        ("origin", view.origin.clone()),
        ("ready", yes(view.ready)),
        (
            "received",
            format!("{} packets, {} bytes", view.rx_packets, view.rx_bytes),
        ),
        (
            "sent",
            format!("{} packets, {} bytes", view.tx_packets, view.tx_bytes),
        ),
        ("dropped", format!("{} packets", view.dropped_packets)),
    ];
    details.extend(condition_lines(&view.conditions));
    global.output.one(&view, &details)?;
    print_links(&view.links, &view.vlans)
}

fn print_links(links: &[LinkView], vlans: &[VlanView]) -> Outcome {
    let rows = links.iter().map(|link| {
        let vlans: Vec<String> = vlans
            .iter()
            .filter(|row| row.link == link.name)
            .map(|row| match row.pvid {
                true => format!("{}*", row.vlan),
                false => row.vlan.to_string(),
            })
            .collect();
        vec![
            link.name.clone(),
            link.kind.clone(),
            link.mac.clone(),
            link.mtu.to_string(),
            if link.up { "up" } else { "down" }.to_owned(),
            link.master.clone().unwrap_or_else(|| "-".to_owned()),
            vlans.join(","),
        ]
    });
    print("")?;
    print(&table(
        &["link", "kind", "mac", "mtu", "state", "bridge", "vlans"],
        rows,
    ))
}

fn yes(value: bool) -> String {
    if value { "yes" } else { "no" }.to_owned()
}

fn origin(origin: v1::Origin) -> String {
    word(origin.as_str_name(), "ORIGIN_")
}

impl From<v1::StackState> for StackView {
    fn from(state: v1::StackState) -> Self {
        let origin = origin(state.origin());
        let stack = state.stack.unwrap_or_default();
        Self {
            encoding: hyphened(stack.encoding().as_str_name(), "ENCODING_"),
            vpc_id: stack.vpc_id,
            name: stack.name,
            vni: stack.vni,
            origin,
            ready: state.ready,
            conditions: state.conditions.into_iter().map(Into::into).collect(),
            segments: stack.segments.into_iter().map(Into::into).collect(),
            ports: stack.ports.into_iter().map(Into::into).collect(),
        }
    }
}

impl From<v1::Segment> for SegmentView {
    fn from(segment: v1::Segment) -> Self {
        Self {
            subnet_id: segment.subnet_id,
            name: segment.name,
            vlan: segment.vlan,
            vni: segment.vni,
            mtu: segment.mtu,
            ipv4_cidr: some(segment.ipv4_cidr),
            ipv6_cidr: some(segment.ipv6_cidr),
        }
    }
}

impl From<v1::Port> for PortView {
    fn from(port: v1::Port) -> Self {
        Self {
            attachment: attachment(port.attachment.as_ref()),
            nic_id: port.nic_id,
            name: port.name,
            subnet_id: port.subnet_id,
            mac: port.mac,
            addresses: port.addresses,
        }
    }
}

impl From<v1::NicState> for NicStateView {
    fn from(state: v1::NicState) -> Self {
        Self {
            origin: origin(state.origin()),
            vpc_id: state.vpc_id,
            port: state.port.unwrap_or_default().into(),
            ready: state.ready,
            conditions: state.conditions.into_iter().map(Into::into).collect(),
        }
    }
}

impl From<v1::KernelLink> for LinkView {
    fn from(link: v1::KernelLink) -> Self {
        Self {
            name: link.name,
            kind: link.kind,
            ifindex: link.ifindex,
            mac: link.mac,
            mtu: link.mtu,
            up: link.up,
            master: some(link.master),
            vni: (link.vni != 0).then_some(link.vni),
            local: some(link.local),
            learning: link.learning,
        }
    }
}

impl From<v1::KernelVlan> for VlanView {
    fn from(row: v1::KernelVlan) -> Self {
        Self {
            link: row.link,
            vlan: row.vlan,
            pvid: row.pvid,
            untagged: row.untagged,
        }
    }
}

impl From<v1::KernelFdbRow> for FdbView {
    fn from(row: v1::KernelFdbRow) -> Self {
        Self {
            link: row.link,
            mac: row.mac,
            destination: some(row.destination),
            vlan: (row.vlan != 0).then_some(row.vlan),
            vni: (row.vni != 0).then_some(row.vni),
            protocol: some(row.protocol),
        }
    }
}

impl From<v1::KernelNeighbour> for NeighbourView {
    fn from(row: v1::KernelNeighbour) -> Self {
        Self {
            link: row.link,
            address: row.address,
            mac: row.mac,
            protocol: some(row.protocol),
        }
    }
}

impl Row for StackView {
    const COLUMNS: &'static [&'static str] = &[
        "stack", "vpc id", "vni", "encoding", "origin", "segments", "ports", "state",
    ];
    fn cells(&self) -> Vec<String> {
        vec![
            self.name.clone(),
            self.vpc_id.clone(),
            self.vni.to_string(),
            self.encoding.clone(),
            self.origin.clone(),
            self.segments.len().to_string(),
            self.ports.len().to_string(),
            readiness(self.ready, &self.conditions),
        ]
    }
}

impl Row for NicStateView {
    const COLUMNS: &'static [&'static str] = &[
        "port",
        "nic id",
        "addresses",
        "mac",
        "attachment",
        "origin",
        "state",
    ];
    fn cells(&self) -> Vec<String> {
        vec![
            self.port.name.clone(),
            self.port.nic_id.clone(),
            self.port.addresses.join(" "),
            self.port.mac.clone(),
            self.port.attachment.clone(),
            self.origin.clone(),
            readiness(self.ready, &self.conditions),
        ]
    }
}

fn readiness(ready: bool, conditions: &[ConditionView]) -> String {
    match (ready, conditions.len()) {
        (true, _) => "ready".to_owned(),
        (false, 0) => "working".to_owned(),
        (false, count) => format!("{count} wrong"),
    }
}

#[cfg(test)]
mod tests {
    use super::segment;

    #[test]
    fn a_segment_names_its_parts() {
        let parsed =
            segment("web,vlan=10,vni=4098,mtu=1450,cidr=10.4.1.0/24,cidr=fd00::/64").unwrap();
        assert_eq!(
            (parsed.name.as_str(), parsed.vlan, parsed.vni),
            ("web", 10, 4098)
        );
        assert_eq!(
            (parsed.ipv4_cidr.as_str(), parsed.ipv6_cidr.as_str()),
            ("10.4.1.0/24", "fd00::/64")
        );
        for bad in [
            "web",
            "web,vlan=x",
            "web,vlan=1,vni=2",
            "web,vlan=1,vni=2,mtu=1450,x=1",
        ] {
            assert!(segment(bad).is_err(), "{bad}");
        }
    }
}
