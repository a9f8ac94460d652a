//! What becomes of a volume when one of its disks fails or holds what it should not.

use super::contract::{GOES_ON, clients, storage_off, storage_on, tell};
use super::{attach, create, read, up, wait_healthy};
use lab::Lab;
use lab::disk::socket;
use lab::faults::FaultyStorage;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Instant;

const BLOCK: usize = 4096;
const SOME: usize = 200;

/// A host's disk, stopped.
struct Disk {
    file: File,
    blocks: u64,
}

impl Disk {
    fn of(lab: &Lab, host: &str) -> Self {
        let path = format!("/proc/{}/root/var/lib/vpc/storage/disk", lab.holder(host));
        let path = PathBuf::from(path);
        let file = File::options().read(true).write(true).open(&path);
        let file = file.expect("the host has a disk");
        let bytes = file.metadata().expect("it has a size").len();
        Self {
            file,
            blocks: bytes / BLOCK as u64,
        }
    }

    fn block(&self, at: u64) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        self.file
            .read_exact_at(&mut block, at * BLOCK as u64)
            .expect("it can be read");
        block
    }

    fn find(&self, from: u64, is: impl Fn(&[u8; BLOCK]) -> bool) -> Vec<u64> {
        (from..self.blocks)
            .filter(|at| is(&self.block(*at)))
            .collect()
    }

    /// Behind the log: superblocks tell how long that is (`core/blocks/src/format/superblock.rs`).
    fn extents(&self) -> u64 {
        let superblock = self.block(0);
        let log = u32::from_le_bytes(superblock[88..92].try_into().expect("four bytes"));
        1024 + u64::from(log)
    }

    fn flip(&self, block: u64, byte: u64) {
        let at = block * BLOCK as u64 + byte;
        let mut one = [0];
        self.file
            .read_exact_at(&mut one, at)
            .expect("it can be read");
        self.file
            .write_all_at(&[one[0] ^ 0x10], at)
            .expect("it can be written");
    }
}

fn starts(magic: &'static [u8]) -> impl Fn(&[u8; BLOCK]) -> bool {
    move |block| block.starts_with(magic)
}

#[test]
fn a_byte_is_flipped_in_each_structure_of_one_disk() {
    let lab = up();
    let clients = clients(&lab, "c1");
    // More than the log holds, so that there are checkpoints.
    let uri = lab.admin("volume show data")["uri"].clone();
    let uri = uri.as_str().expect("it is served");
    lab.sh("c1", &format!(
        "cd /run && fio --name=fill --ioengine=nbd '--uri={uri}' --rw=randwrite --bs=4k --iodepth=32 --offset=8m --size=24m"
    ));
    let began = Instant::now();
    for what in [
        "superblock",
        "older superblock",
        "old header",
        "payload",
        "last header",
        "page of the map",
    ] {
        clients.wait_done(Instant::now(), SOME);
        storage_off(&lab, "c2");
        let disk = Disk::of(&lab, "c2");
        let headers = disk.find(1024, starts(b"vpcLOG\r\n"));
        let number = |at: &u64| {
            let block = disk.block(*at);
            // | magic, CRC, version ... number |: all that grows with time is its place in the ring.
            u64::from_le_bytes(block[32..40].try_into().expect("eight bytes"))
        };
        let mut headers = headers;
        headers.sort_by_key(number);
        let (block, byte) = match what {
            "superblock" => (0, 100),
            "older superblock" => (512, 100),
            "old header" => (headers[headers.len() / 2], 100),
            "payload" => (headers[headers.len() - 3] + 1, 7),
            "last header" => (headers[headers.len() - 1], 100),
            _ => {
                let pages = disk.find(disk.extents(), starts(b"vpcM"));
                (*pages.last().expect("there is a map"), 200)
            }
        };
        disk.flip(block, byte);
        storage_on(&lab, "c2");
        clients.wait_done(Instant::now(), SOME);
    }
    let gap = clients.longest_gap(began);
    let summary = clients.finish();
    tell("bytes flipped", gap, &summary);
    assert!(summary.failures.is_empty(), "{summary:?}");
}

#[test]
fn a_block_that_is_damaged_is_read_from_others_and_mended() {
    let lab = up();
    create(&lab);
    let uri = attach(&lab, "c1");
    let written = super::write(&lab, "c1", &uri);
    wait_healthy(&lab);
    storage_off(&lab, "c2");
    let image = std::fs::read(format!("/proc/{}/root/run/image", lab.holder("c1")));
    let image = image.expect("it was written there");
    let disk = Disk::of(&lab, "c2");
    let wanted = &image[5 << 20..][..BLOCK];
    let found = disk.find(disk.extents(), |block| block == wanted);
    let at = *found
        .first()
        .expect("whole extents are written in their place");
    disk.flip(at, 99);
    storage_on(&lab, "c2");
    // Who is attached leads, and reads its own disk.
    let uri = attach(&lab, "c2");
    assert_eq!(read(&lab, "c2", &uri), written);
    let figures = lab.json("c2", "vpc storage status -o json")["figures"].clone();
    assert_eq!(figures["damaged_blocks"], 1, "{figures}");
    assert_eq!(read(&lab, "c2", &uri), written);
    let again = lab.json("c2", "vpc storage status -o json")["figures"].clone();
    assert_eq!(again["damaged_blocks"], 1, "mended: {again}");
    wait_healthy(&lab);
}

#[test]
fn a_followers_disk_that_fails_is_noticed_by_nobody() {
    for words in ["write-error", "sync-error", "no-space", "slow", "short"] {
        let lab = up();
        let faulty = FaultyStorage::start(&lab, "c2");
        let clients = clients(&lab, "c1");
        let began = Instant::now();
        faulty.fail(words);
        clients.wait_done(Instant::now(), SOME);
        let gap = clients.longest_gap(began);
        if words == "slow" || words == "short" {
            faulty.fail("");
        } else {
            lab.eventually("the disk is out", || {
                let status = lab.json("c2", "vpc storage status -o json");
                let dead = status["disk"]["dead"].is_string();
                dead.then_some(()).ok_or_else(|| status["disk"].to_string())
            });
            faulty.fail("");
            lab.kill("c2", "agent");
            lab.sh("c2", "vpc storage stop");
            drop(faulty);
            storage_on(&lab, "c2");
        }
        clients.wait_done(Instant::now(), SOME);
        let summary = clients.finish();
        tell(&format!("a follower's disk: {words}"), gap, &summary);
        assert!(summary.failures.is_empty(), "{words}: {summary:?}");
        assert!(gap < GOES_ON, "{words}: {gap:?}");
        wait_healthy(&lab);
    }
}

#[test]
fn the_leaders_disk_that_fails_costs_no_more_than_a_moment() {
    for words in ["read-error", "write-error", "sync-error", "short"] {
        let lab = up();
        let faulty = FaultyStorage::start(&lab, "c1");
        let clients = clients(&lab, "c1");
        let began = Instant::now();
        faulty.fail(words);
        if words == "short" || words == "read-error" {
            clients.wait_done(Instant::now(), SOME);
            faulty.fail("");
        } else {
            let uri = attach(&lab, "c2");
            clients.go(socket(&lab, "c2", &uri));
        }
        clients.wait_done(Instant::now(), SOME);
        let gap = clients.longest_gap(began);
        tell(
            &format!("the leader's disk: {words}"),
            gap,
            &clients.finish(),
        );
        assert!(gap < GOES_ON, "{words}: {gap:?}");
    }
}
