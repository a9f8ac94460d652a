//! Disks of the block store that somebody else wrote, or that went bad.

use blocks::{
    Body, Buffer, Done, Entry, Formatted, Identity, Io, Opening, Page, Store, Submission, VolumeId,
};
use std::collections::BTreeMap;
use std::sync::OnceLock;

const IDENTITY: Identity = Identity {
    cluster: 1,
    host: 1,
    disk: 1,
};
const BYTES: u64 = 7 << 20;
const BLOCK: u64 = blocks::BLOCK_BYTES as u64;
const V: VolumeId = VolumeId::new(1);

type Disk = BTreeMap<u64, Page>;

/// `| edit.. |`, an edit: `| which block 2 | from 2 | length 1 | bytes |`. Checksums are put right after
/// it where that is possible, so that what is behind them is met too.
pub fn block_store(data: &[u8]) {
    let mut disk = template().clone();
    let places: Vec<u64> = disk.keys().copied().collect();
    let mut rest = data;
    while let Some((head, tail)) = rest.split_first_chunk::<5>() {
        let block = places[usize::from(u16::from_le_bytes([head[0], head[1]])) % places.len()];
        let from = usize::from(u16::from_le_bytes([head[2], head[3]])) % blocks::BLOCK_BYTES;
        let len = usize::from(head[4])
            .min(tail.len())
            .min(blocks::BLOCK_BYTES - from);
        let (bytes, tail) = tail.split_at(len);
        let page = disk.get_mut(&block).expect("a place that was listed");
        page.0[from..from + len].copy_from_slice(bytes);
        if page.0.starts_with(b"vpcBLK\r\n") || page.0.starts_with(b"vpcLOG\r\n") {
            let crc = crc32c::crc32c(&page.0[12..]);
            page.0[8..12].copy_from_slice(&crc.to_le_bytes());
        }
        rest = tail;
    }
    let Some(mut store) = open(&mut disk) else {
        return;
    };
    let volumes: Vec<VolumeId> = store.volumes().collect();
    for volume in volumes {
        let info = store.volume(volume).expect("just listed");
        if info.broken.is_none() {
            let _ = store.read(volume, 0, info.blocks.min(64));
            let _ = store.committed(volume, info.last);
            let _ = store.read_entry(volume, info.last);
            let _ = store.lose(volume, info.applied + 1);
            let _ = store.submit(volume, write(info.last + 1, 7));
        }
    }
    store.checkpoint();
    settle(&mut store, &mut disk);
}

fn write(index: u64, lba: u64) -> Submission {
    let entry = Entry {
        index,
        term: u64::MAX,
        epoch: u64::MAX,
        body: Body::Write {
            lba,
            data: Buffer::copied(&index.to_le_bytes()),
        },
    };
    Submission {
        hard: None,
        entries: vec![entry],
    }
}

/// A disk with a checkpoint, and entries after it.
fn template() -> &'static Disk {
    static TEMPLATE: OnceLock<Disk> = OnceLock::new();
    TEMPLATE.get_or_init(|| {
        let formatted = Formatted::new(IDENTITY, 9, BYTES, 1 << 20).expect("it is large enough");
        let mut disk = Disk::new();
        for (at, buffer) in formatted.log.into_iter().chain(formatted.superblocks) {
            carry_out(
                &mut disk,
                Io::Write {
                    at,
                    buffers: vec![buffer],
                },
            );
        }
        let mut store = open(&mut disk).expect("it was just made");
        store.create(V, 100).expect("there is room");
        for index in 1..=6 {
            store.submit(V, write(index, index)).expect("there is room");
            settle(&mut store, &mut disk);
            if index == 3 {
                store.committed(V, 3).expect("they are there");
                store.checkpoint();
            }
        }
        // The last batch: whole extents, one of which takes effect, and a block.
        let entries = [(7, 16, 16), (8, 32, 16), (9, 17, 1)].map(|(index, lba, blocks)| Entry {
            index,
            term: u64::MAX,
            epoch: u64::MAX,
            body: Body::Write {
                lba,
                data: Buffer::from_pages(vec![Page([index as u8; 4096]); blocks]),
            },
        });
        // One by one: each is reckoned as if its payload went to the log, until it is known that it does not.
        for entry in entries {
            let entries = vec![entry];
            let hard = None;
            let submission = Submission { hard, entries };
            store.submit(V, submission).expect("there is room");
        }
        store.committed(V, 7).expect("they are there");
        settle(&mut store, &mut disk);
        disk
    })
}

fn open(disk: &mut Disk) -> Option<Store> {
    let mut opening = Opening::new(IDENTITY, BYTES);
    while let Some((token, io)) = opening.poll_io() {
        opening.handle_done(token, carry_out(disk, io));
    }
    let opened = opening.finish().expect("nothing is under way");
    opened.ok().map(|(store, _)| store)
}

fn settle(store: &mut Store, disk: &mut Disk) {
    while let Some((token, io)) = store.poll_io() {
        store.handle_done(token, carry_out(disk, io));
    }
    while store.poll_event().is_some() {}
}

fn carry_out(disk: &mut Disk, io: Io) -> Done {
    match io {
        Io::Read { at, blocks } if at.saturating_add(blocks as u64 * BLOCK) > BYTES => {
            Done::Failed("beyond the end".to_owned())
        }
        Io::Read { at, blocks } => {
            let places = (at / BLOCK..).take(blocks);
            let pages = places.map(|block| disk.get(&block).cloned().unwrap_or(Page::ZERO));
            Done::Read(Buffer::from_pages(pages.collect()))
        }
        Io::Write { at, buffers } | Io::WriteSync { at, buffers } => {
            let pages = buffers
                .iter()
                .flat_map(|buffer| buffer.pages().iter().cloned());
            disk.extend((at / BLOCK..).zip(pages));
            Done::Ok
        }
        Io::Sync => Done::Ok,
    }
}
