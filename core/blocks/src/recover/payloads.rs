//! Payloads of entries that are yet to take effect: whether they are what was written.

use super::replay::AT_ONCE;
use crate::format::layout::Layout;
use crate::log::{Kind, Payload};
use crate::volume::Volume;
use crate::{Buffer, EXTENT_BLOCKS, Io, VolumeId, block_crc};
use std::collections::{BTreeMap, VecDeque};

/// An entry, for good: volume, index, term.
type Name = (VolumeId, u64, u64);

/// Payloads that are to be read, and what came of others.
#[derive(Debug, Default)]
pub(super) struct Payloads {
    wanted: VecDeque<(VolumeId, u64)>,
    /// Under way, each with the number of its reads.
    asked: Vec<(VolumeId, u64, usize)>,
    /// Where else in the log an entry is: checkpoints carry it on. The newest is last.
    others: BTreeMap<Name, Vec<u32>>,
    /// The newest copy is bad: where it is, what was read there, and what is lost of it.
    tried: BTreeMap<Name, (u32, Option<Buffer>, Vec<u32>)>,
    /// Copies to be written anew.
    mends: Vec<(u32, Buffer)>,
}

impl Payloads {
    pub(super) fn want(&mut self, volume: VolumeId, index: u64) {
        self.wanted.push_back((volume, index));
    }

    /// An entry was in this place before a later batch carried it on.
    pub(super) fn another(&mut self, name: Name, at: u32) {
        self.others.entry(name).or_default().push(at);
    }

    /// Reads for some of them.
    pub(super) fn next(
        &mut self,
        volumes: &BTreeMap<VolumeId, Volume>,
        layout: &Layout,
    ) -> Vec<(u64, usize)> {
        self.asked.clear();
        let mut reads = Vec::new();
        while reads.len() < AT_ONCE
            && let Some((volume, index)) = self.wanted.pop_front()
        {
            let held = volumes.get(&volume);
            let entry = held.and_then(|held| held.log.get(index));
            let before = reads.len();
            match entry.map(|entry| &entry.kind) {
                Some(Kind::Write {
                    at: Payload::At(at),
                    crcs,
                    ..
                }) => reads.push((layout.wal_at(*at), crcs.len())),
                Some(Kind::Redirected { extents, .. }) => {
                    let places = extents.iter().map(|extent| layout.extent_at(*extent, 0));
                    reads.extend(places.map(|at| (at, EXTENT_BLOCKS as usize)));
                }
                _ => continue,
            }
            self.asked.push((volume, index, reads.len() - before));
        }
        reads
    }

    /// What was read.
    pub(super) fn take(
        &mut self,
        volumes: &mut BTreeMap<VolumeId, Volume>,
        results: &[Option<Buffer>],
    ) {
        let mut results = results.iter();
        for (volume, index, reads) in std::mem::take(&mut self.asked) {
            let parts: Vec<&Option<Buffer>> = results.by_ref().take(reads).collect();
            let held = volumes.get_mut(&volume).expect("asked for one of these");
            self.judge(held, index, &parts);
        }
    }

    fn judge(&mut self, held: &mut Volume, index: u64, parts: &[&Option<Buffer>]) {
        let volume = held.id;
        let entry = held.log.get_mut(index).expect("asked for one of its log");
        let name = (volume, index, entry.term);
        match &mut entry.kind {
            Kind::Redirected { lba, crcs, .. } => {
                let blocks = crcs.chunks(EXTENT_BLOCKS as usize).zip(parts);
                let mut lost = Vec::new();
                for (number, (crcs, part)) in (0..).zip(blocks) {
                    let first = number * EXTENT_BLOCKS;
                    let bad = bad_blocks(volume, *lba + u64::from(first), crcs, part);
                    lost.extend(bad.map(|offset| first + offset));
                }
                let first = *lba;
                // A checkpoint that was cut off may have written newer blocks there; they are in the log.
                lost.retain(|offset| !is_written_after(held, index, first + u64::from(*offset)));
                if !lost.is_empty() {
                    held.lose(index, lost);
                }
            }
            Kind::Write {
                lba,
                crcs,
                at,
                data,
            } => {
                let Payload::At(place) = *at else {
                    return;
                };
                let read = parts.first().and_then(|part| (*part).clone());
                let lost: Vec<u32> = bad_blocks(volume, *lba, crcs, &read).collect();
                if lost.is_empty() {
                    if let Some((newest, ..)) = self.tried.remove(&name) {
                        // Later it is looked for there again, and a checkpoint may begin with it.
                        *at = Payload::At(newest);
                        self.mends.extend(read.clone().map(|data| (newest, data)));
                    }
                    *data = read;
                    return;
                }
                let tried = self.tried.remove(&name);
                let newest = tried.unwrap_or((place, read, lost));
                if let Some(other) = self.others.get_mut(&name).and_then(Vec::pop) {
                    *at = Payload::At(other);
                    self.tried.insert(name, newest);
                    self.wanted.push_back((volume, index));
                    return;
                }
                let (_, read, lost) = newest;
                *data = read;
                held.lose(index, lost);
            }
            _ => {}
        }
    }

    pub(super) fn mends(&self, layout: &Layout) -> Vec<Io> {
        let mends = self.mends.iter().map(|(place, data)| Io::Write {
            at: layout.wal_at(*place),
            buffers: vec![data.clone()],
        });
        mends.collect()
    }
}

/// Whether a later entry that is committed writes a block.
fn is_written_after(held: &Volume, index: u64, lba: u64) -> bool {
    let commit = held.hard.commit;
    let later = held.log.after(index);
    let mut later = later.take_while(|(index, _)| *index <= commit);
    later.any(|(_, entry)| match &entry.kind {
        Kind::Write { lba: at, crcs, .. } => (*at..*at + crcs.len() as u64).contains(&lba),
        _ => false,
    })
}

/// Blocks that are not what was written.
fn bad_blocks(
    volume: VolumeId,
    lba: u64,
    crcs: &[u32],
    read: &Option<Buffer>,
) -> impl Iterator<Item = u32> {
    let bad = move |(offset, crc): (usize, &u32)| {
        let page = read.as_ref().and_then(|data| data.pages().get(offset));
        let is = page.map(|page| block_crc(volume, lba + offset as u64, page));
        (is != Some(*crc)).then_some(offset as u32)
    };
    crcs.iter().enumerate().filter_map(bad)
}
