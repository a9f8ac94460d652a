//! Volumes, as they are shown.

use super::{MetaView, dash, short, some};
use crate::output::{Row, time};
use api::v1;
use model::VolumeSize;
use serde::Serialize;

/// A volume.
#[derive(Debug, Serialize)]
pub(crate) struct VolumeView {
    /// Identity.
    pub(crate) id: String,
    name: String,
    /// account/name
    pub(crate) path: String,
    account_id: String,
    size_bytes: u64,
    /// "healthy", "degraded", "rebuilding", "lost-blocks", "down", "deleted", "erasing"
    state: String,
    trouble: Option<String>,
    replicas: Vec<ReplicaView>,
    attachments: Vec<AttachedView>,
    /// Of the attachment that was asked for, or the first: where it is.
    attached_host: Option<String>,
    /// "attached", "attaching", "fenced"
    attached_state: Option<String>,
    attached_trouble: Option<String>,
    read_only: bool,
    /// For clients on the host that it is attached to.
    pub(crate) uri: Option<String>,
    /// For clients there that know TCP only.
    tcp: Option<String>,
    /// The last time that it went on from one replica.
    recovered: Option<RecoveredView>,
    /// Replicas that there was no room for yet.
    lacking: u32,
    deleted_at: Option<String>,
    /// From then on it cannot be restored.
    erased_at: Option<String>,
    #[serde(flatten)]
    meta: MetaView,
}

/// When a volume went on from one replica, and what was known then.
#[derive(Debug, Serialize)]
pub(crate) struct RecoveredView {
    at: Option<String>,
    /// Which recovery of the volume.
    number: u64,
    /// The number of the replica.
    replica: u64,
    /// Its last entry.
    kept: u64,
    /// The last entry that any replica was known to have.
    known: u64,
}

impl From<v1::volume::Recovered> for RecoveredView {
    fn from(recovered: v1::volume::Recovered) -> Self {
        let recovery = recovered.recovery.unwrap_or_default();
        Self {
            at: (recovered.at_unix_ms > 0).then(|| time(recovered.at_unix_ms)),
            number: recovery.number,
            replica: recovery.replica,
            kept: recovered.kept,
            known: recovered.known,
        }
    }
}

impl RecoveredView {
    fn line(&self) -> String {
        let at = self.at.as_deref().unwrap_or_default();
        let (replica, kept) = (self.replica, self.kept);
        let lost = match self.known.saturating_sub(kept) {
            0 => String::new(),
            some => format!(", {some} that are known were lost"),
        };
        format!("{at} from replica {replica} with entries to {kept}{lost}")
    }
}

/// Where it is attached.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct AttachedView {
    host_id: String,
    host: String,
    /// "attached", "attaching", "fenced"
    state: String,
    trouble: Option<String>,
    read_only: bool,
    /// What clients that connect now get.
    size_bytes: u64,
    uri: Option<String>,
    tcp: Option<String>,
}

/// A replica.
#[derive(Debug, Serialize)]
pub(crate) struct ReplicaView {
    number: u64,
    host_id: String,
    host_name: String,
    disk_id: String,
    /// "leader", "follower", "down" ...
    role: String,
    /// "leader", "follower", "behind", "rebuilding", "coming", "away", "down", "unusable", "leaving", "gone" ...
    state: String,
    term: u64,
    last: u64,
    committed: u64,
    applied: u64,
    /// As who leads knows.
    matched: u64,
    size_bytes: u64,
    digest: Option<String>,
    /// Of what it has to take in, while it is rebuilding.
    percent: u32,
    damaged_entries: u64,
    mended_blocks: u64,
    lost_blocks: u64,
    trouble: Option<String>,
}

impl From<v1::volume::VolumeReplica> for ReplicaView {
    fn from(replica: v1::volume::VolumeReplica) -> Self {
        let down = replica.host() == v1::Liveness::Down;
        let report = replica.report.unwrap_or_default();
        let role = match (down, report.role.as_str()) {
            (true, _) => "down",
            (false, "") => "unknown",
            (false, role) => role,
        };
        Self {
            number: replica.number,
            host_id: replica.host_id,
            host_name: replica.host_name,
            disk_id: replica.disk_id,
            role: role.to_owned(),
            state: replica.state,
            term: report.term,
            last: report.last,
            committed: report.committed,
            applied: report.applied,
            matched: replica.matched,
            size_bytes: report.size_bytes,
            digest: some(report.digest),
            percent: replica.percent,
            damaged_entries: report.damaged_entries,
            mended_blocks: report.mended_blocks,
            lost_blocks: report.lost_blocks,
            trouble: some(report.trouble).or_else(|| some(replica.trouble)),
        }
    }
}

impl ReplicaView {
    fn is_leaving(&self) -> bool {
        matches!(self.state.as_str(), "leaving" | "lost" | "gone")
    }

    fn line(&self) -> String {
        let mut line = format!("{} on {}: {}", self.number, self.host_name, self.state);
        if self.state == "rebuilding" && self.percent > 0 {
            line.push_str(&format!(" {} %", self.percent));
        }
        line.push_str(&format!(
            ", term {}, last {}, committed {}, applied {}",
            self.term, self.last, self.committed, self.applied
        ));
        if self.matched > 0 {
            line.push_str(&format!(", matched {}", self.matched));
        }
        for (count, what) in [
            (self.damaged_entries, "damaged entries"),
            (self.mended_blocks, "mended blocks"),
            (self.lost_blocks, "lost blocks"),
        ] {
            if count > 0 {
                line.push_str(&format!(", {count} {what}"));
            }
        }
        if let Some(trouble) = &self.trouble {
            line.push_str(": ");
            line.push_str(trouble);
        }
        line
    }
}

impl From<v1::volume::Attached> for AttachedView {
    fn from(attached: v1::volume::Attached) -> Self {
        let report = attached.report;
        Self {
            host_id: attached.host_id,
            host: attached.host_name,
            state: match &report {
                Some(report) => report.state.clone(),
                None => "attaching".to_owned(),
            },
            read_only: attached.attachment.is_some_and(|it| it.read_only),
            size_bytes: report.as_ref().map_or(0, |report| report.size_bytes),
            trouble: report.as_ref().and_then(|it| some(it.trouble.clone())),
            uri: some(attached.uri),
            tcp: report.and_then(|report| some(report.tcp)),
        }
    }
}

impl From<v1::Volume> for VolumeView {
    fn from(volume: v1::Volume) -> Self {
        let at = |millis| (millis > 0).then(|| time(millis));
        let attachments = volume.attached.into_iter().map(Into::into);
        let mut view = Self {
            id: volume.id,
            name: volume.name,
            path: volume.path,
            account_id: volume.account_id,
            size_bytes: volume.size_bytes,
            state: volume.state,
            trouble: some(volume.trouble),
            replicas: volume.replicas.into_iter().map(Into::into).collect(),
            attachments: attachments.collect(),
            attached_host: None,
            attached_state: None,
            attached_trouble: None,
            read_only: false,
            uri: None,
            tcp: None,
            recovered: volume.recovered.map(Into::into),
            lacking: volume.lacking,
            deleted_at: at(volume.deleted_unix_ms),
            erased_at: at(volume.erased_unix_ms),
            meta: MetaView::of(volume.meta),
        };
        if let Some(first) = view.attachments.first().map(|first| first.host.clone()) {
            view.look_from(&first);
        }
        view
    }
}

impl VolumeView {
    fn attachment(&self, host: &str) -> Option<&AttachedView> {
        let id = host.strip_prefix("id:");
        let named = |it: &&AttachedView| it.host == host || id == Some(it.host_id.as_str());
        self.attachments.iter().find(named)
    }

    /// Shows how a host has it attached.
    pub(crate) fn look_from(&mut self, host: &str) {
        let Some(attached) = self.attachment(host).cloned() else {
            return;
        };
        self.attached_host = Some(attached.host);
        self.attached_state = Some(attached.state);
        self.attached_trouble = attached.trouble;
        self.read_only = attached.read_only;
        self.uri = attached.uri;
        self.tcp = attached.tcp;
    }

    /// True when clients can come to it on a host.
    pub(crate) fn is_attached_to(&self, host: &str) -> bool {
        self.attachment(host).is_some_and(|it| it.uri.is_some())
    }

    /// What stands in the way of what was asked for.
    pub(crate) fn trouble(&self) -> Option<&str> {
        let replicas = self.replicas.iter();
        let replica = replicas
            .filter_map(|replica| replica.trouble.as_deref())
            .next();
        let attached = self.attached_trouble.as_deref();
        attached.or(self.trouble.as_deref()).or(replica)
    }

    /// All of its replicas are there, and have all there is.
    pub(crate) fn is_healthy(&self) -> bool {
        self.state == "healthy"
    }

    /// The same, and none is about to leave.
    pub(crate) fn is_settled(&self) -> bool {
        let goes = |it: &ReplicaView| matches!(it.state.as_str(), "leaving" | "lost");
        self.is_healthy() && !self.replicas.iter().any(goes)
    }

    /// It can be used, by the replicas that it is to have, whether or not these are filled.
    pub(crate) fn is_led_as_placed(&self) -> bool {
        let goes = |it: &ReplicaView| matches!(it.state.as_str(), "leaving" | "lost");
        self.state != "down" && !self.replicas.iter().any(goes)
    }

    /// Who leads has so much, and clients that connect get it.
    pub(crate) fn has_size(&self, bytes: u64) -> bool {
        let leads = |replica: &&ReplicaView| replica.role == "leader";
        let leader = self.replicas.iter().find(leads);
        leader.is_some_and(|leader| leader.size_bytes >= bytes)
            && self.attachments.iter().all(|it| it.size_bytes >= bytes)
    }

    fn size(&self) -> String {
        let size = VolumeSize::new(self.size_bytes);
        size.map_or_else(|_| self.size_bytes.to_string(), |size| size.to_string())
    }

    fn attached(&self) -> String {
        let attached = self.attachments.iter().map(|attached| {
            let state = match attached.state.as_str() {
                "attached" => String::new(),
                state => format!(" ({state})"),
            };
            let mode = if attached.read_only {
                ", read only"
            } else {
                ""
            };
            format!("{}{state}{mode}", attached.host)
        });
        let text = attached.collect::<Vec<String>>().join("; ");
        dash((!text.is_empty()).then_some(text.as_str()))
    }

    /// Lines for people.
    pub(crate) fn details(&self) -> Vec<(&'static str, String)> {
        let trouble = self.trouble.clone().or(self.attached_trouble.clone());
        let mut details = vec![
            ("volume", self.path.clone()),
            ("id", self.id.clone()),
            ("size", self.size()),
            ("state", self.state.clone()),
            ("attached to", self.attached()),
            ("trouble", trouble.unwrap_or_default()),
            ("uri", self.uri.clone().unwrap_or_default()),
            ("tcp", self.tcp.clone().unwrap_or_default()),
            (
                "recovered",
                self.recovered
                    .as_ref()
                    .map(RecoveredView::line)
                    .unwrap_or_default(),
            ),
            (
                "lacking",
                match self.lacking {
                    0 => String::new(),
                    some => format!("{some} replicas, until there is room"),
                },
            ),
            ("deleted", self.deleted_at.clone().unwrap_or_default()),
            ("erased", self.erased_at.clone().unwrap_or_default()),
        ];
        let replicas = self.replicas.iter();
        details.extend(replicas.map(|replica| ("replica", replica.line())));
        details.extend(self.meta.details());
        details
    }
}

impl Row for VolumeView {
    const COLUMNS: &'static [&'static str] =
        &["volume", "size", "state", "replicas", "attached to"];
    fn cells(&self) -> Vec<String> {
        let stay = self.replicas.iter().filter(|it| !it.is_leaving());
        let hosts = stay.map(|replica| match replica.role.as_str() {
            "leader" => format!("{}*", replica.host_name),
            _ => replica.host_name.clone(),
        });
        let hosts: Vec<String> = hosts.collect();
        vec![
            short(&self.path).to_owned(),
            self.size(),
            self.state.clone(),
            hosts.join(" "),
            self.attached(),
        ]
    }
}
