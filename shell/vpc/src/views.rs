//! What the command line shows of each object. The JSON field names are a contract: they may be
//! added to, never renamed.

mod router_figures;
mod routing;
mod volume;

pub(crate) use router_figures::FiguresView;
pub(crate) use routing::{ExternalView, PublicIpView, RouterView};
pub(crate) use volume::VolumeView;

use crate::commands::subnet_options::OptionsView;
use crate::output::{Row, ago, time};
use api::v1;
use serde::Serialize;
use std::collections::BTreeMap;

/// What every object has.
#[derive(Debug, Serialize)]
pub(crate) struct MetaView {
    labels: BTreeMap<String, String>,
    resource_version: u64,
    created: String,
}

/// An account.
#[derive(Debug, Serialize)]
pub(crate) struct AccountView {
    /// Identity.
    pub(crate) id: String,
    /// Unique in the cluster.
    pub(crate) name: String,
    #[serde(flatten)]
    meta: MetaView,
}

/// A VPC.
#[derive(Debug, Serialize)]
pub(crate) struct VpcView {
    /// Identity.
    pub(crate) id: String,
    name: String,
    /// account/vpc and so on.
    pub(crate) path: String,
    account_id: String,
    cidrs: Vec<String>,
    vni: u32,
    asn: u32,
    encoding: String,
    /// central or distributed
    pub(crate) routing: String,
    /// flood or drop
    unknown_neighbours: String,
    /// Of the gateway on every host; empty with routing central.
    gateway_mac: String,
    #[serde(flatten)]
    meta: MetaView,
}

/// A subnet.
#[derive(Debug, Serialize)]
pub(crate) struct SubnetView {
    /// Identity.
    pub(crate) id: String,
    /// Unique in the VPC.
    name: String,
    /// account/vpc and so on.
    pub(crate) path: String,
    vpc_id: String,
    ipv4_cidr: Option<String>,
    ipv6_cidr: Option<String>,
    vlan: u32,
    vni: u32,
    mtu: u32,
    options: OptionsView,
    #[serde(flatten)]
    meta: MetaView,
}

/// A NIC.
#[derive(Debug, Serialize)]
pub(crate) struct NicView {
    /// Identity.
    pub(crate) id: String,
    /// Unique in the subnet.
    name: String,
    /// account/vpc and so on.
    pub(crate) path: String,
    /// Its subnet.
    pub(crate) subnet_id: String,
    /// Its MAC.
    pub(crate) mac: String,
    /// Its addresses.
    pub(crate) addresses: Vec<String>,
    host_id: String,
    /// Where it is.
    pub(crate) host_name: String,
    /// What it is plugged into.
    pub(crate) attachment: String,
    /// "pending", "applied", "failed" or "host_down".
    pub(crate) state: String,
    generation: u64,
    applied_generation: u64,
    conditions: Vec<ConditionView>,
    moves: u32,
    moving: Option<MoveView>,
    user_data_bytes: u32,
    #[serde(flatten)]
    meta: MetaView,
}

/// A NIC on its way to another host.
#[derive(Debug, Serialize)]
struct MoveView {
    /// "provision", "switch" or "retire".
    phase: String,
    other_host_id: String,
    other_host_name: String,
    other_attachment: String,
    started: String,
    since: String,
    taken_back: Option<String>,
}

/// A host.
#[derive(Debug, Serialize)]
pub(crate) struct HostView {
    /// Identity.
    pub(crate) id: String,
    /// Unique in the cluster.
    pub(crate) name: String,
    roles: Vec<String>,
    underlay_address: String,
    underlay_mtu: Option<u32>,
    zone: Option<String>,
    draining: bool,
    /// "builtin" or "frr".
    speaker: String,
    /// "kernel" or "tap"; empty if it never checked in.
    transport: String,
    /// "joining", "up" or "down".
    pub(crate) state: String,
    last_checkin: Option<String>,
    agent_version: String,
    frr_version: String,
    kernel_version: String,
    capabilities: Vec<String>,
    cpus: u32,
    memory_total_bytes: u64,
    memory_free_bytes: u64,
    disk_free_bytes: u64,
    wanted_generation: u64,
    received_generation: u64,
    applied_generation: u64,
    conditions: Vec<ConditionView>,
    #[serde(flatten)]
    meta: MetaView,
    #[serde(skip)]
    last_checkin_unix_ms: u64,
}

/// Something that is not as it should be.
#[derive(Debug, Serialize)]
pub(crate) struct ConditionView {
    kind: String,
    object_id: String,
    message: String,
    since: String,
    attempts: u32,
}

/// A join token, without its secret.
#[derive(Debug, Serialize)]
pub(crate) struct TokenView {
    id: String,
    host_name: Option<String>,
    roles: Vec<String>,
    created: String,
    expires: String,
    /// "open", "used" or "expired".
    state: String,
    used_by_host_id: Option<String>,
}

/// `KIND_HOST_DOWN` less its prefix, as in `host_down`.
pub(crate) fn word(name: &str, prefix: &str) -> String {
    name.strip_prefix(prefix).unwrap_or(name).to_lowercase()
}

/// A word where the product writes hyphens, as in `vlan-based`.
pub(crate) fn hyphened(name: &str, prefix: &str) -> String {
    word(name, prefix).replace('_', "-")
}

/// A path without the account that is meant when none is named.
pub(crate) fn short(path: &str) -> &str {
    path.strip_prefix("default/").unwrap_or(path)
}

/// `tap`, `netns:a1`, `existing:ens3`.
pub(crate) fn attachment(attachment: Option<&v1::Attachment>) -> String {
    use v1::attachment::Kind;
    match attachment.and_then(|attachment| attachment.kind.as_ref()) {
        None => String::new(),
        Some(Kind::Tap(_)) => "tap".to_owned(),
        Some(Kind::Netns(netns)) if netns.device.is_empty() || netns.device == "eth0" => {
            format!("netns:{}", netns.netns)
        }
        Some(Kind::Netns(netns)) => format!("netns:{}:{}", netns.netns, netns.device),
        Some(Kind::Existing(existing)) => format!("existing:{}", existing.ifname),
    }
}

/// A role as the command line writes it.
pub(crate) fn role(role: v1::Role) -> String {
    word(role.as_str_name(), "ROLE_")
}

/// A capability as `vpc doctor` and `vpc host show` write it.
pub(crate) fn capability(capability: v1::Capability) -> String {
    hyphened(capability.as_str_name(), "CAPABILITY_")
}

/// Text that may be absent.
pub(crate) fn some(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

fn dash(text: Option<&str>) -> String {
    text.unwrap_or("-").to_owned()
}

impl MetaView {
    fn of(meta: Option<v1::Meta>) -> Self {
        let meta = meta.unwrap_or_default();
        Self {
            labels: meta.labels.into_iter().collect(),
            resource_version: meta.resource_version,
            created: time(meta.created_unix_ms),
        }
    }

    fn details(&self) -> Vec<(&'static str, String)> {
        let labels: Vec<String> = self
            .labels
            .iter()
            .map(|(k, v)| format!("{k}={v}"))
            .collect();
        vec![
            ("labels", labels.join(" ")),
            ("created", self.created.clone()),
            ("resource version", self.resource_version.to_string()),
        ]
    }
}

impl From<v1::Account> for AccountView {
    fn from(account: v1::Account) -> Self {
        Self {
            id: account.id,
            name: account.name,
            meta: MetaView::of(account.meta),
        }
    }
}

impl AccountView {
    /// Lines for people.
    pub(crate) fn details(&self) -> Vec<(&'static str, String)> {
        let mut details = vec![("account", self.name.clone()), ("id", self.id.clone())];
        details.extend(self.meta.details());
        details
    }
}

impl From<v1::Vpc> for VpcView {
    fn from(vpc: v1::Vpc) -> Self {
        Self {
            encoding: hyphened(vpc.encoding().as_str_name(), "ENCODING_"),
            routing: hyphened(vpc.routing().as_str_name(), "ROUTING_"),
            unknown_neighbours: hyphened(
                vpc.unknown_neighbours().as_str_name(),
                "UNKNOWN_NEIGHBOURS_",
            ),
            gateway_mac: vpc.gateway_mac,
            id: vpc.id,
            name: vpc.name,
            path: vpc.path,
            account_id: vpc.account_id,
            cidrs: vpc.cidrs,
            vni: vpc.vni,
            asn: vpc.asn,
            meta: MetaView::of(vpc.meta),
        }
    }
}

impl VpcView {
    /// True if its subnets are routed on each host with NICs in them.
    pub(crate) fn is_distributed(&self) -> bool {
        self.routing == "distributed"
    }

    /// Lines for people.
    pub(crate) fn details(&self) -> Vec<(&'static str, String)> {
        let mut details = vec![
            ("vpc", self.path.clone()),
            ("id", self.id.clone()),
            ("cidrs", self.cidrs.join(" ")),
            ("vni", self.vni.to_string()),
            ("asn", self.asn.to_string()),
            ("encoding", self.encoding.clone()),
            ("routing", self.routing.clone()),
        ];
        if !self.gateway_mac.is_empty() {
            details.push(("gateway mac", self.gateway_mac.clone()));
        }
        details.extend(self.meta.details());
        details
    }
}

impl From<v1::Subnet> for SubnetView {
    fn from(subnet: v1::Subnet) -> Self {
        Self {
            id: subnet.id,
            name: subnet.name,
            path: subnet.path,
            vpc_id: subnet.vpc_id,
            ipv4_cidr: some(subnet.ipv4_cidr),
            ipv6_cidr: some(subnet.ipv6_cidr),
            vlan: subnet.vlan,
            vni: subnet.vni,
            mtu: subnet.mtu,
            options: subnet.options.unwrap_or_default().into(),
            meta: MetaView::of(subnet.meta),
        }
    }
}

impl SubnetView {
    /// Its prefixes.
    pub(crate) fn cidrs(&self) -> String {
        let both: Vec<&str> = [&self.ipv4_cidr, &self.ipv6_cidr]
            .into_iter()
            .filter_map(|cidr| cidr.as_deref())
            .collect();
        both.join(" ")
    }

    /// One line of a tree.
    pub(crate) fn summary(&self) -> String {
        let (vlan, vni, mtu) = (self.vlan, self.vni, self.mtu);
        format!(
            "{}  {}  vlan {vlan} vni {vni} mtu {mtu}",
            self.name,
            self.cidrs()
        )
    }

    /// Lines for people.
    pub(crate) fn details(&self) -> Vec<(&'static str, String)> {
        let mut details = vec![
            ("subnet", self.path.clone()),
            ("id", self.id.clone()),
            ("cidrs", self.cidrs()),
            ("vlan", self.vlan.to_string()),
            ("vni", self.vni.to_string()),
            ("mtu", self.mtu.to_string()),
        ];
        details.extend(self.options.details());
        details.extend(self.meta.details());
        details
    }
}

impl From<v1::Nic> for NicView {
    fn from(nic: v1::Nic) -> Self {
        let status = nic.status.unwrap_or_default();
        Self {
            state: word(status.state().as_str_name(), "STATE_"),
            generation: status.generation,
            applied_generation: status.applied_generation,
            conditions: status.conditions.into_iter().map(Into::into).collect(),
            attachment: attachment(nic.attachment.as_ref()),
            id: nic.id,
            name: nic.name,
            path: nic.path,
            subnet_id: nic.subnet_id,
            mac: nic.mac,
            addresses: nic.addresses,
            host_id: nic.host_id,
            host_name: nic.host_name,
            moves: nic.moves,
            moving: nic.moving.map(Into::into),
            user_data_bytes: nic.user_data_bytes,
            meta: MetaView::of(nic.meta),
        }
    }
}

impl From<v1::NicMove> for MoveView {
    fn from(moving: v1::NicMove) -> Self {
        Self {
            phase: word(moving.phase().as_str_name(), "PHASE_"),
            other_attachment: attachment(moving.other_attachment.as_ref()),
            other_host_id: moving.other_host_id,
            other_host_name: moving.other_host_name,
            started: time(moving.started_unix_ms),
            since: time(moving.since_unix_ms),
            taken_back: Some(moving.taken_back).filter(|why| !why.is_empty()),
        }
    }
}

impl MoveView {
    fn in_words(&self) -> String {
        let other = &self.other_host_name;
        match (self.phase.as_str(), &self.taken_back) {
            ("provision", _) => format!("provision: host {other} makes the port"),
            ("switch", _) => format!("switch: announced here, host {other} still has its port"),
            (_, None) => format!("retire: host {other} removes its port"),
            (_, Some(why)) => format!("taken back ({why}): host {other} removes its port"),
        }
    }
}

impl NicView {
    /// Hosts with a port of it.
    pub(crate) fn hosts(&self) -> impl Iterator<Item = &str> {
        let other = self.moving.iter().map(|to| to.other_host_name.as_str());
        std::iter::once(self.host_name.as_str()).chain(other)
    }

    /// One line of a tree.
    pub(crate) fn summary(&self) -> String {
        let first = format!(
            "{}  {}  {}  on {} ({})",
            self.name,
            self.addresses.join(" "),
            self.mac,
            self.host_name,
            self.attachment
        );
        match self.state.as_str() {
            "applied" => first,
            state => format!("{first}  {state}"),
        }
    }

    /// Lines for people; what is wrong comes last, in full.
    pub(crate) fn details(&self) -> Vec<(&'static str, String)> {
        let mut details = vec![
            ("nic", self.path.clone()),
            ("id", self.id.clone()),
            ("addresses", self.addresses.join(" ")),
            ("mac", self.mac.clone()),
            ("host", self.host_name.clone()),
            ("attachment", self.attachment.clone()),
        ];
        if self.user_data_bytes > 0 {
            details.push(("user data", format!("{} bytes", self.user_data_bytes)));
        }
        details.extend(self.meta.details());
        details.push(("state", self.state_in_words()));
        if let Some(moving) = &self.moving {
            details.push(("move", moving.in_words()));
        }
        details.extend(condition_lines(&self.conditions));
        details
    }

    /// Why it does not work, if it does not.
    pub(crate) fn wrong(&self) -> Option<String> {
        if self.state == "applied" {
            return None;
        }
        let why: Vec<&str> = self
            .conditions
            .iter()
            .map(|condition| condition.message.as_str())
            .collect();
        Some(match why.is_empty() {
            true => self.state_in_words(),
            false => why.join("; "),
        })
    }

    fn state_in_words(&self) -> String {
        match self.state.as_str() {
            "applied" => "applied: the host reported it as made".to_owned(),
            "pending" => format!(
                "pending: the host is at generation {}, this NIC needs {}",
                self.applied_generation, self.generation
            ),
            "failed" => "failed: the host goes on trying".to_owned(),
            "host_down" => format!("unknown: host {} is not heard of", self.host_name),
            other => other.to_owned(),
        }
    }
}

impl From<v1::Host> for HostView {
    fn from(host: v1::Host) -> Self {
        let roles = host.roles().map(role).collect();
        let speaker = word(host.speaker().as_str_name(), "SPEAKER_");
        let status = host.status.unwrap_or_default();
        let resources = status.resources.unwrap_or_default();
        Self {
            speaker,
            state: word(status.liveness().as_str_name(), "LIVENESS_"),
            transport: transport(status.transport()),
            capabilities: status.capabilities().map(capability).collect(),
            roles,
            id: host.id,
            name: host.name,
            underlay_address: host.underlay_address,
            underlay_mtu: (status.underlay_mtu != 0).then_some(status.underlay_mtu),
            zone: some(host.zone),
            draining: host.draining,
            last_checkin: some(time(status.last_checkin_unix_ms)),
            last_checkin_unix_ms: status.last_checkin_unix_ms,
            agent_version: status.agent_version,
            frr_version: status.frr_version,
            kernel_version: status.kernel_version,
            cpus: resources.cpus,
            memory_total_bytes: resources.memory_total_bytes,
            memory_free_bytes: resources.memory_free_bytes,
            disk_free_bytes: resources.disk_free_bytes,
            wanted_generation: status.wanted_generation,
            received_generation: status.received_generation,
            applied_generation: status.applied_generation,
            conditions: status.conditions.into_iter().map(Into::into).collect(),
            meta: MetaView::of(host.meta),
        }
    }
}

/// What carries a host's frames: "kernel" or "tap"; empty if it did not say.
pub(crate) fn transport(told: v1::Transport) -> String {
    match told {
        v1::Transport::Unspecified => String::new(),
        told => word(told.as_str_name(), "TRANSPORT_"),
    }
}

impl HostView {
    /// Lines for people; what is wrong comes last, in full.
    pub(crate) fn details(&self) -> Vec<(&'static str, String)> {
        const GIB: u64 = 1 << 30;
        let mut details = vec![
            ("host", self.name.clone()),
            ("id", self.id.clone()),
            ("roles", self.roles.join(" ")),
            ("underlay", self.underlay_address.clone()),
            ("zone", self.zone.clone().unwrap_or_default()),
            (
                "draining",
                if self.draining { "yes" } else { "no" }.to_owned(),
            ),
            ("speaker", self.speaker.clone()),
            ("transport", self.transport.clone()),
            ("agent", self.agent_version.clone()),
            ("kernel", self.kernel_version.clone()),
            ("frr", self.frr_version.clone()),
            ("capabilities", self.capabilities.join(" ")),
            (
                "resources",
                format!(
                    "{} processors, {} of {} GiB memory free, {} GiB disk free",
                    self.cpus,
                    self.memory_free_bytes / GIB,
                    self.memory_total_bytes / GIB,
                    self.disk_free_bytes / GIB
                ),
            ),
            (
                "generation",
                format!(
                    "{} wanted, {} received, {} applied",
                    self.wanted_generation, self.received_generation, self.applied_generation
                ),
            ),
        ];
        details.extend(self.meta.details());
        details.push((
            "state",
            format!(
                "{}, last heard of {} ago",
                self.state,
                ago(self.last_checkin_unix_ms)
            ),
        ));
        details.extend(condition_lines(&self.conditions));
        details
    }
}

impl From<v1::Condition> for ConditionView {
    fn from(condition: v1::Condition) -> Self {
        Self {
            kind: word(condition.kind().as_str_name(), "KIND_"),
            object_id: condition.object_id,
            message: condition.message,
            since: time(condition.since_unix_ms),
            attempts: condition.attempts,
        }
    }
}

/// A condition, a line each.
pub(crate) fn condition_lines(conditions: &[ConditionView]) -> Vec<(&'static str, String)> {
    conditions
        .iter()
        .map(|condition| {
            let ConditionView {
                message,
                since,
                attempts,
                ..
            } = condition;
            (
                "wrong",
                format!("{message} (since {since}, {attempts} attempts)"),
            )
        })
        .collect()
}

impl From<v1::JoinToken> for TokenView {
    fn from(token: v1::JoinToken) -> Self {
        Self {
            roles: token.roles().map(role).collect(),
            state: word(token.state().as_str_name(), "STATE_"),
            id: token.id,
            host_name: some(token.host_name),
            created: time(token.created_unix_ms),
            expires: time(token.expires_unix_ms),
            used_by_host_id: some(token.used_by_host_id),
        }
    }
}

impl Row for AccountView {
    const COLUMNS: &'static [&'static str] = &["name", "id", "created"];
    fn cells(&self) -> Vec<String> {
        vec![
            self.name.clone(),
            self.id.clone(),
            self.meta.created.clone(),
        ]
    }
}

impl Row for VpcView {
    const COLUMNS: &'static [&'static str] = &["vpc", "cidrs", "vni", "encoding", "id"];
    fn cells(&self) -> Vec<String> {
        vec![
            short(&self.path).to_owned(),
            self.cidrs.join(" "),
            self.vni.to_string(),
            self.encoding.clone(),
            self.id.clone(),
        ]
    }
}

impl Row for SubnetView {
    const COLUMNS: &'static [&'static str] = &["subnet", "cidrs", "vlan", "vni", "mtu", "id"];
    fn cells(&self) -> Vec<String> {
        vec![
            short(&self.path).to_owned(),
            self.cidrs(),
            self.vlan.to_string(),
            self.vni.to_string(),
            self.mtu.to_string(),
            self.id.clone(),
        ]
    }
}

impl Row for NicView {
    const COLUMNS: &'static [&'static str] =
        &["nic", "addresses", "mac", "host", "attachment", "state"];
    fn cells(&self) -> Vec<String> {
        vec![
            short(&self.path).to_owned(),
            self.addresses.join(" "),
            self.mac.clone(),
            self.host_name.clone(),
            self.attachment.clone(),
            match &self.moving {
                None => self.state.clone(),
                Some(moving) => format!(
                    "{}, {} {}",
                    self.state, moving.phase, moving.other_host_name
                ),
            },
        ]
    }
}

impl Row for HostView {
    const COLUMNS: &'static [&'static str] = &[
        "host",
        "roles",
        "underlay",
        "zone",
        "state",
        "seen",
        "generation",
        "wrong",
    ];
    fn cells(&self) -> Vec<String> {
        let drain = if self.draining { " (draining)" } else { "" };
        vec![
            self.name.clone(),
            self.roles.join(","),
            self.underlay_address.clone(),
            dash(self.zone.as_deref()),
            format!("{}{drain}", self.state),
            ago(self.last_checkin_unix_ms),
            format!("{}/{}", self.applied_generation, self.wanted_generation),
            match self.conditions.len() {
                0 => "-".to_owned(),
                count => count.to_string(),
            },
        ]
    }
}

impl Row for TokenView {
    const COLUMNS: &'static [&'static str] = &["token", "host", "roles", "expires", "state"];
    fn cells(&self) -> Vec<String> {
        vec![
            self.id.clone(),
            dash(self.host_name.as_deref()),
            self.roles.join(","),
            self.expires.clone(),
            self.state.clone(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta() -> Option<v1::Meta> {
        Some(v1::Meta {
            resource_version: 7,
            created_unix_ms: 1_700_000_000_123,
            labels: [("tier".to_owned(), "front".to_owned())].into(),
        })
    }

    fn condition() -> v1::Condition {
        v1::Condition {
            kind: v1::Kind::Nic.into(),
            object_id: "9k3v0c7m2a".to_owned(),
            message: "creating n-9k3v0c7m2a: no".to_owned(),
            since_unix_ms: 1_700_000_000_123,
            attempts: 3,
        }
    }

    /// Field names in their order. Scripts depend on them: add, never rename or remove.
    pub(super) fn fields(view: &impl Serialize) -> String {
        let text = serde_json::to_string(view).unwrap();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        let object = value.as_object().unwrap();
        let mut names: Vec<&str> = object.keys().map(String::as_str).collect();
        names.sort_unstable();
        names.join(" ")
    }

    #[test]
    fn json_field_names_are_stable() {
        let account = AccountView::from(v1::Account::default());
        assert_eq!(fields(&account), "created id labels name resource_version");
        let vpc = VpcView::from(v1::Vpc::default());
        assert_eq!(
            fields(&vpc),
            "account_id asn cidrs created encoding gateway_mac id labels name path resource_version \
             routing unknown_neighbours vni"
        );
        let subnet = SubnetView::from(v1::Subnet::default());
        assert_eq!(
            fields(&subnet),
            "created id ipv4_cidr ipv6_cidr labels mtu name options path resource_version vlan vni \
             vpc_id"
        );
        let nic = NicView::from(v1::Nic::default());
        assert_eq!(
            fields(&nic),
            "addresses applied_generation attachment conditions created generation host_id \
             host_name id labels mac moves moving name path resource_version state subnet_id user_data_bytes"
        );
        let host = HostView::from(v1::Host::default());
        assert_eq!(
            fields(&host),
            "agent_version applied_generation capabilities conditions cpus created \
             disk_free_bytes draining frr_version id kernel_version labels last_checkin memory_free_bytes \
             memory_total_bytes name received_generation resource_version roles speaker \
             state transport underlay_address underlay_mtu wanted_generation zone"
        );
        let token = TokenView::from(v1::JoinToken::default());
        assert_eq!(
            fields(&token),
            "created expires host_name id roles state used_by_host_id"
        );
        let condition = ConditionView::from(condition());
        assert_eq!(fields(&condition), "attempts kind message object_id since");
    }

    #[test]
    fn a_nic_says_what_is_wrong_with_it() {
        let view = NicView::from(v1::Nic {
            path: "default/blue/web/a1".to_owned(),
            host_name: "c1".to_owned(),
            meta: meta(),
            status: Some(v1::NicStatus {
                state: v1::nic_status::State::Failed.into(),
                conditions: vec![condition()],
                ..v1::NicStatus::default()
            }),
            ..v1::Nic::default()
        });
        let details = view.details();
        let last_two: Vec<String> = details[details.len() - 2..]
            .iter()
            .map(|(key, value)| format!("{key}: {value}"))
            .collect();
        assert_eq!(
            last_two,
            [
                "state: failed: the host goes on trying",
                "wrong: creating n-9k3v0c7m2a: no (since 2023-11-14T22:13:20.123Z, 3 attempts)",
            ]
        );
        assert_eq!(view.state, "failed");
    }

    #[test]
    fn words_are_those_of_the_command_line() {
        let vpc = VpcView::from(v1::Vpc {
            encoding: v1::Encoding::VlanAwareBundle.into(),
            meta: meta(),
            ..v1::Vpc::default()
        });
        let json = serde_json::to_value(&vpc).unwrap();
        assert_eq!(json["encoding"], "vlan-aware-bundle");
        assert_eq!(json["labels"]["tier"], "front");
        assert_eq!(json["created"], "2023-11-14T22:13:20.123Z");
        assert_eq!(role(v1::Role::Compute), "compute");
        assert_eq!(capability(v1::Capability::TcpMd5), "tcp-md5");
        assert_eq!(short("default/blue/web"), "blue/web");
        assert_eq!(short("acme/blue"), "acme/blue");
    }
}
