//! Volumes here, as figures.

use super::Figures;
use metrics::{Counted, Labels, Page};
use sbs::{AttachmentLook, DiskLook, Histogram, Look, ReplicaLook, ReplicaRole};
use std::collections::BTreeMap;

impl Figures {
    pub(super) fn storage(&self, page: &mut Page) {
        let Some(seen) = self.storage.as_ref().map(|seen| seen.borrow().clone()) else {
            return;
        };
        let up = i64::from(seen.is_some());
        page.gauge(
            "vpc_storage_up",
            "1 if the storage process answers.",
            [(Vec::new(), up)],
        );
        let Some(seen) = seen else {
            return;
        };
        let look = &seen.look;
        if let Some(disk) = &look.disk {
            of_disk(page, disk);
        }
        of_process(page, look);
        of_volumes(page, look);
    }
}

fn label(name: &'static str, value: &str) -> Labels {
    vec![(name, value.to_owned())]
}

fn gauge(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn of_disk(page: &mut Page, disk: &DiskLook) {
    page.gauge(
        "vpc_storage_disk_bytes",
        "Bytes of the disk for the contents of volumes, and those that are neither used nor promised.",
        [
            (label("kind", "all"), gauge(disk.bytes)),
            (label("kind", "free"), gauge(disk.free_bytes)),
        ],
    );
    page.gauge(
        "vpc_storage_disk_failed",
        "1 if the disk failed, and its replicas take part no more.",
        [(Vec::new(), i64::from(disk.dead.is_some()))],
    );
}

fn counted(histogram: &Histogram) -> Counted {
    let (sum, buckets) = histogram.in_seconds();
    Counted { sum, buckets }
}

fn of_process(page: &mut Page, look: &Look) {
    let figures = &look.figures;
    page.histograms(
        "vpc_storage_request_seconds",
        "Requests of attached volumes here, from when a client asked to when it was answered.",
        [
            ("write", &figures.writes),
            ("read", &figures.reads),
            ("zero", &figures.zeroes),
        ]
        .map(|(kind, histogram)| (label("kind", kind), counted(histogram))),
    );
    page.histograms(
        "vpc_storage_disk_seconds",
        "IO of the disk: of a write's way, its batch is written and then synced.",
        [
            ("write", &figures.disk_writes),
            ("read", &figures.disk_reads),
            ("sync", &figures.disk_syncs),
        ]
        .map(|(kind, histogram)| (label("kind", kind), counted(histogram))),
    );
    page.gauge(
        "vpc_storage_under_way",
        "Requests of attached volumes here, and IO of the disk, that are not done yet.",
        [
            (label("kind", "requests"), gauge(figures.waiting_requests)),
            (label("kind", "io"), gauge(figures.waiting_io)),
        ],
    );
    let counters = [
        (
            "vpc_storage_failed_requests",
            "Requests of attached volumes here that were answered with an error.",
            figures.failed_requests,
        ),
        (
            "vpc_storage_frames",
            "Frames that were sent to other hosts.",
            figures.frames,
        ),
        (
            "vpc_storage_messages",
            "Messages in frames to other hosts.",
            figures.messages,
        ),
        (
            "vpc_storage_refused_messages",
            "Messages that were not heard: of who promised otherwise, or what cannot be.",
            figures.refused_messages,
        ),
        (
            "vpc_storage_batches",
            "Batches of the disk's log; each is one sync.",
            figures.batches,
        ),
        (
            "vpc_storage_checkpoints",
            "Checkpoints of the disk.",
            figures.checkpoints,
        ),
        (
            "vpc_storage_damaged_blocks",
            "Blocks read that were damaged.",
            figures.damaged_blocks,
        ),
        (
            "vpc_storage_scrubbed_chunks",
            "Chunks of 1 MiB that were read to see whether they are whole.",
            figures.scrubbed_chunks,
        ),
        (
            "vpc_storage_scrub_rounds",
            "Times that all replicas here were read through.",
            figures.scrub_rounds,
        ),
    ];
    for (name, help, value) in counters {
        page.counter(name, help, [(Vec::new(), value)]);
    }
    page.counter(
        "vpc_storage_written_bytes",
        "Bytes written to the disk: to the log, to extents, and to the map with its superblocks.",
        [
            (label("to", "log"), figures.log_bytes),
            (label("to", "extents"), figures.extent_bytes),
            (label("to", "map"), figures.map_bytes),
        ],
    );
    let peer = |host: &model::HostId| label("host", &host.to_string());
    page.gauge(
        "vpc_storage_peer_connected",
        "1 if another host's storage is reached.",
        (look.peers.iter()).map(|(host, it)| (peer(host), i64::from(it.connected))),
    );
    page.counter(
        "vpc_storage_peer_dropped_frames",
        "Frames that were not sent, as a host was not reached or is too slow.",
        (look.peers.iter()).map(|(host, it)| (peer(host), it.dropped_frames)),
    );
}

fn of_volumes(page: &mut Page, look: &Look) {
    let mut roles: BTreeMap<&str, i64> = BTreeMap::new();
    for replica in look.replicas.values() {
        *roles.entry(replica.role.name()).or_default() += 1;
    }
    page.gauge(
        "vpc_storage_replicas",
        "Replicas here, by what they are.",
        roles
            .iter()
            .map(|(role, count)| (label("role", role), *count)),
    );
    let mut states: BTreeMap<&str, i64> = BTreeMap::new();
    for AttachmentLook { state, .. } in look.attachments.values() {
        *states.entry(state.name()).or_default() += 1;
    }
    page.gauge(
        "vpc_storage_attachments",
        "Volumes that are attached here, by how far that is.",
        states
            .iter()
            .map(|(state, count)| (label("state", state), *count)),
    );
    page.gauge(
        "vpc_storage_troubles",
        "Volumes that are not as they should be here: `vpc storage show` says why.",
        [(Vec::new(), gauge(look.troubles.len() as u64))],
    );
    let timed = look.replicas.iter();
    let timed = timed.filter(|(_, replica)| replica.commits.count() > 0);
    page.histograms(
        "vpc_volume_commit_seconds",
        "Writes that the replica here took in while it led, from then to when a majority had them on disk.",
        timed.map(|(volume, it)| (label("volume", &volume.to_string()), counted(&it.commits))),
    );
    let mut each = |name, help, value: fn(&ReplicaLook) -> u64| {
        let values = look.replicas.iter();
        page.gauge(
            name,
            help,
            values.map(|(volume, it)| (label("volume", &volume.to_string()), gauge(value(it)))),
        );
    };
    each(
        "vpc_volume_term",
        "The newest term that a replica here heard of.",
        |it| it.term,
    );
    each(
        "vpc_volume_last_entry",
        "The last entry of the log of a replica here.",
        |it| it.last,
    );
    each(
        "vpc_volume_committed",
        "Entries known to be committed by a replica here.",
        |it| it.committed,
    );
    each(
        "vpc_volume_applied",
        "Entries that are in effect in a replica here.",
        |it| it.applied,
    );
    each("vpc_volume_leads", "1 if the replica here leads.", |it| {
        u64::from(it.role == ReplicaRole::Leader)
    });
    each(
        "vpc_volume_behind",
        "Replicas that are away, or lack what was committed a second ago, as the leader here knows.",
        |it| {
            let behind = it.members.iter().filter(|it| it.behind || !it.there);
            behind.count() as u64
        },
    );
    each(
        "vpc_volume_missing_chunks",
        "Chunks of 1 MiB that a replica here is known to lack.",
        |it| it.catching_up.map_or(0, |(_, missing)| missing),
    );
    each(
        "vpc_volume_damaged_entries",
        "Entries of the log of a replica here that are damaged.",
        |it| it.damaged_entries,
    );
    each(
        "vpc_volume_mended_blocks",
        "Blocks that were damaged here, and came from another replica.",
        |it| it.mended_blocks,
    );
    each(
        "vpc_volume_lost_blocks",
        "Blocks that are damaged here, and that no other replica had.",
        |it| it.lost_blocks,
    );
    each(
        "vpc_volume_differing_chunks",
        "Chunks of other replicas that hold something else than the leader here.",
        |it| it.members.iter().map(|it| it.differs).sum(),
    );
}
