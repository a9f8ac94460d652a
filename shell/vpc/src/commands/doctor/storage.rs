//! Volumes here: the disk, the replicas on it, what is attached, and the other hosts.

use super::{Finding, Verdict, ok};
use crate::block_on;
use crate::settings::RUN_DIR;
use sbs::{AttachmentState, Client, Look, SbsError};
use std::path::Path;

/// What the storage process tells; nothing where none runs.
pub(super) fn findings() -> Vec<Finding> {
    let look = async {
        let mut client = Client::connect(Path::new(RUN_DIR)).await?;
        client.look().await
    };
    let Ok(looked) = block_on(async { Ok(look.await) }) else {
        return Vec::new();
    };
    match looked {
        Ok(look) => judge(&look),
        Err(SbsError::Absent { .. }) => Vec::new(),
        Err(error) => vec![wrong(
            "process",
            error.to_string(),
            "see storage.log in the run directory; `vpc storage stop` ends it, and the agent starts another",
        )],
    }
}

fn wrong(kind: &str, detail: String, remedy: &str) -> Finding {
    Finding {
        check: "storage",
        verdict: Verdict::Wrong {
            kind: kind.to_owned(),
            detail,
            remedy: remedy.to_owned(),
        },
    }
}

/// Less than so much of a disk that is free is told of.
const LITTLE: u64 = 10;

fn judge(look: &Look) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some(disk) = &look.disk {
        let free = disk.free_bytes.saturating_mul(100) / disk.bytes.max(1);
        let path = disk.path.display();
        findings.push(match &disk.dead {
            Some(why) => wrong(
                "disk",
                format!("the disk {path} failed: {why}"),
                "replace it; or, if it is whole, vpc storage stop: the agent starts the process anew",
            ),
            None if free < LITTLE => wrong(
                "disk",
                format!("the disk {path} has {free} % left"),
                "delete volumes, or move replicas to other hosts (vpc volume move)",
            ),
            None => ok("storage", format!("disk {path}: {free} % free")),
        });
    }
    for (volume, replica) in &look.replicas {
        if let Some(why) = &replica.failed {
            findings.push(wrong(
                "replica",
                format!("the replica of volume {volume} cannot be used: {why}"),
                "another takes its place by itself, or by vpc volume move",
            ));
        }
        let behind = replica.members.iter().filter(|it| it.behind || !it.there);
        let behind: Vec<String> = behind.map(|it| it.number.to_string()).collect();
        if !behind.is_empty() {
            findings.push(wrong(
                "behind",
                format!(
                    "volume {volume}: replicas {} are away or behind",
                    behind.join(", ")
                ),
                "see vpc volume show, and how their hosts are",
            ));
        }
        let differ = replica.members.iter().filter(|it| it.differs > 0);
        for member in differ {
            findings.push(wrong(
                "differs",
                format!(
                    "volume {volume}: replica {} holds something else in {} chunks",
                    member.number, member.differs
                ),
                "find out which of them is right; then vpc volume move takes the other away",
            ));
        }
        if replica.lost_blocks > 0 {
            findings.push(wrong(
                "lost",
                format!(
                    "volume {volume}: {} blocks are damaged, and no replica has them",
                    replica.lost_blocks
                ),
                "reads of them fail until they are written anew",
            ));
        }
    }
    for (volume, attachment) in &look.attachments {
        let detail = match &attachment.state {
            AttachmentState::Attached => continue,
            AttachmentState::Attaching { trouble } => trouble
                .clone()
                .unwrap_or_else(|| "its replicas do not answer yet".to_owned()),
            AttachmentState::Fenced => "it was attached elsewhere since".to_owned(),
        };
        findings.push(wrong(
            "attachment",
            format!(
                "volume {} ({volume}) is not served: {detail}",
                attachment.name
            ),
            "see vpc volume show",
        ));
    }
    for (host, peer) in look.peers.iter().filter(|(_, peer)| !peer.connected) {
        let why = peer.trouble.clone().unwrap_or_default();
        findings.push(wrong(
            "peer",
            format!(
                "the storage of host {host} at {} is not reached: {why}",
                peer.address
            ),
            "see that it runs, and that TCP port 7445 is open between storage hosts",
        ));
    }
    for (volume, why) in &look.troubles {
        findings.push(wrong(
            "volume",
            format!("volume {volume}: {why}"),
            "see vpc volume show",
        ));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use sbs::DiskLook;

    #[test]
    fn a_disk_that_failed_and_a_volume_in_trouble_are_told() {
        let disk = |dead: Option<&str>, free_bytes| DiskLook {
            id: model::DiskId(1),
            path: "/disk".into(),
            bytes: 1000,
            free_bytes,
            dead: dead.map(str::to_owned),
        };
        let look = |disk| Look {
            disk: Some(disk),
            ..Look::default()
        };
        let told = |look: &Look| -> Vec<String> {
            let text = |finding: &Finding| match &finding.verdict {
                Verdict::Ok { detail } | Verdict::Wrong { detail, .. } => detail.clone(),
                _ => String::new(),
            };
            judge(look).iter().map(text).collect()
        };
        assert_eq!(told(&look(disk(None, 500))), ["disk /disk: 50 % free"]);
        assert_eq!(told(&look(disk(None, 50))), ["the disk /disk has 5 % left"]);
        let mut failed = look(disk(Some("EIO"), 500));
        let volume = model::VolumeId::from_random(1);
        failed.troubles.insert(volume, "no room".to_owned());
        let volume = format!("volume {volume}: no room");
        assert_eq!(
            told(&failed),
            ["the disk /disk failed: EIO".to_owned(), volume]
        );
    }
}
