//! One volume with one replica: what a write costs, beside plain writes to the same file system.
//!
//! `cargo run --release -p disk --example measure -- FOLDER [SECONDS]`

use blocks::{
    BLOCK_BYTES, Body, Buffer, Counters, Entry, Event, Identity, Refused, Submission, Ticket,
    VolumeId,
};
use disk::{Disk, Engine, Options, format};
use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const GIB: u64 = 1 << 30;
const V: VolumeId = VolumeId::new(1);
/// 512 MiB are written at random.
const VOLUME_BLOCKS: u64 = 128 << 10;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let folder = PathBuf::from(args.next().ok_or("which folder?")?);
    let time = Duration::from_secs(args.next().map_or(Ok(3), |seconds| seconds.parse())?);
    let mut out = std::io::stdout().lock();
    let raw = raw_dsync(&folder, time)?;
    writeln!(out, "plain 4 KiB O_DIRECT|O_DSYNC writes: {raw:.0}/s")?;
    for engine in [Engine::Best, Engine::Threads] {
        for (blocks, depth) in [(1, 1), (1, 64), (16, 1), (16, 16)] {
            let path = folder.join("measure.disk");
            let made = measure(&path, engine, blocks, depth, time);
            std::fs::remove_file(&path)?;
            let (writes, seconds, counters) = made?;
            let per_second = writes as f64 / seconds;
            let user = writes as f64 * (blocks * BLOCK_BYTES as u64) as f64;
            writeln!(
                out,
                "{engine:?} {:>2} KiB depth {depth:>2}: {per_second:>7.0}/s = {:.2} of plain; {:.3} syncs a write; \
                 written per byte: log {:.2}, extents {:.2}, map {:.2}; {} checkpoints",
                blocks * 4,
                per_second / raw,
                counters.syncs as f64 / writes as f64,
                counters.log_bytes as f64 / user,
                counters.extent_bytes as f64 / user,
                counters.map_bytes as f64 / user,
                counters.checkpoints
            )?;
        }
    }
    Ok(())
}

/// One 4 KiB write after another, each durable before the next.
fn raw_dsync(folder: &Path, time: Duration) -> std::io::Result<f64> {
    let path = folder.join("measure.raw");
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .custom_flags(libc::O_DIRECT | libc::O_DSYNC)
        .open(&path)?;
    let block = Buffer::zeroed(1);
    let places = 16 << 10;
    for place in 0..places {
        file.write_all_at(&block.pages()[0].0, place * BLOCK_BYTES as u64)?;
        if place == 4096 {
            break;
        }
    }
    let start = Instant::now();
    let mut writes = 0_u64;
    while start.elapsed() < time {
        let place = scramble(writes) % 4096;
        file.write_all_at(&block.pages()[0].0, place * BLOCK_BYTES as u64)?;
        writes += 1;
    }
    let seconds = start.elapsed().as_secs_f64();
    std::fs::remove_file(path)?;
    Ok(writes as f64 / seconds)
}

type Measured = (u64, f64, Counters);

fn measure(
    path: &Path,
    engine: Engine,
    blocks: u64,
    depth: usize,
    time: Duration,
) -> Result<Measured, Box<dyn std::error::Error>> {
    let identity = Identity {
        cluster: 1,
        host: 1,
        disk: 1,
    };
    format(path, (GIB, GIB / 4), identity, 1, &mut |_| {})?;
    let options = Options {
        engine,
        fault: None,
    };
    let (mut disk, _) = Disk::open(path, identity, options)?;
    disk.store.create(V, VOLUME_BLOCKS)?;
    let start = Instant::now();
    let mut under_way: BTreeSet<Ticket> = BTreeSet::new();
    let (mut last, mut writes) = (0, 0);
    while start.elapsed() < time {
        while under_way.len() < depth {
            let lba = scramble(last) % (VOLUME_BLOCKS / blocks) * blocks;
            let data =
                Buffer::copied(&last.to_le_bytes().repeat(blocks as usize * BLOCK_BYTES / 8));
            last += 1;
            let entry = Entry {
                index: last,
                term: 1,
                epoch: 0,
                body: Body::Write { lba, data },
            };
            let entries = vec![entry];
            match disk.store.submit(
                V,
                Submission {
                    hard: None,
                    entries,
                },
            ) {
                Ok(ticket) => _ = under_way.insert(ticket),
                // The next checkpoint makes room.
                Err(Refused::NotYet { .. }) => {
                    last -= 1;
                    break;
                }
                Err(error) => return Err(error.into()),
            }
        }
        for event in disk.turn(Duration::from_secs(1)) {
            match event {
                Event::Durable { ticket, .. } => writes += u64::from(under_way.remove(&ticket)),
                Event::Dead { cause } => return Err(cause.into()),
                Event::Read { .. }
                | Event::Entry { .. }
                | Event::Chunk { .. }
                | Event::Checkpointed { .. } => {}
            }
        }
        let durable = disk.store.volume(V).expect("it was made").durable;
        disk.store.committed(V, durable)?;
    }
    let seconds = start.elapsed().as_secs_f64();
    // What is yet to be written in place belongs to these writes too.
    disk.store.checkpoint();
    while !disk.store.is_idle() {
        disk.turn(Duration::from_secs(1));
    }
    Ok((writes, seconds, disk.store.counters()))
}

const fn scramble(value: u64) -> u64 {
    let z = value
        .wrapping_add(0x9e37_79b9_7f4a_7c15)
        .wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (z ^ (z >> 31)).wrapping_mul(0x94d0_49bb_1331_11eb) >> 11
}
