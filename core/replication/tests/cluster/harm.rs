//! What becomes of disks: they go bad, fail, fill up, lose what was written, or are gone for good.

use crate::clients::page;
use crate::rng::Rng;
use crate::world::{Event, MILLIS, World, empty_disk, identity, try_open};
use blocks::{BLOCK_BYTES, Buffer, Done, EXTENT_BLOCKS, Io, Page, VolumeId};
use replication::{Op, SessionId};
use std::ops::Range;

const BLOCK: u64 = BLOCK_BYTES as u64;
/// Sessions of those who fill disks.
const FILLS: u128 = 1 << 110;

/// What is wrong with a disk, beside what is on it.
#[derive(Debug, Default)]
pub(crate) struct Harm {
    /// Writes and syncs fail.
    pub(crate) fails: bool,
    /// So many writes of extents are reported, and forgotten when power is lost.
    forgets: u64,
    /// Those that may be forgotten, and what was there before.
    before: Vec<(u64, Page)>,
    /// A volume that takes up all room, and its next block.
    fills: Option<(SessionId, u64)>,
}

impl World {
    /// Where a host's extents are, in blocks.
    fn extents(&self, node: usize) -> Range<u64> {
        let host = self.nodes[node].host.as_ref().expect("it is up");
        let layout = host.store().layout();
        layout.extent_at(0, 0) / BLOCK..layout.page_at(0) / BLOCK
    }

    /// Damages a block of the one disk that goes bad, where extents are.
    pub(crate) fn damage_extents(&mut self) {
        let Some(node) = self.victim.filter(|node| self.nodes[*node].host.is_some()) else {
            return;
        };
        let places = self.extents(node);
        let at = &mut self.nodes[node];
        let written = at.disk.written().into_iter();
        let blocks: Vec<u64> = written.filter(|it| places.contains(it)).collect();
        if blocks.is_empty() {
            return;
        }
        for _ in 0..1 + self.rng.below(4) {
            let block = blocks[self.rng.below(blocks.len() as u64) as usize];
            let from = blocks[self.rng.below(blocks.len() as u64) as usize];
            match self.rng.below(4) {
                0 => {
                    at.disk.unreadable.push(block);
                    self.faults.unreadable += 1;
                }
                1 => {
                    at.disk.misdirect(from, block);
                    self.faults.misdirected += 1;
                }
                2 => at.harm.forgets += 1 + self.rng.below(20),
                _ => {
                    at.disk.corrupt(block, &mut self.rng);
                    self.faults.flipped += 1;
                }
            }
        }
    }

    /// Damages a block of the log of the one disk that goes bad, while its host is down. Not of the last
    /// batch, which one disk cannot tell from one that was never whole, nor two headers in a row.
    pub(crate) fn damage_log(&mut self, node: usize) {
        if self.victim != Some(node) || !self.rng.one_in(2) {
            return;
        }
        let bytes = self.bytes;
        let opened = |disk: &crate::disk::Disk, rng: &mut Rng| {
            let mut disk = disk.clone();
            try_open(&mut disk, identity(node), bytes, rng)
        };
        let mut rng = Rng(self.rng.next());
        let Ok((store, whole)) = opened(&self.nodes[node].disk, &mut rng) else {
            return;
        };
        let layout = store.layout();
        let log = layout.wal_at(0) / BLOCK..layout.extent_at(0, 0) / BLOCK;
        let written = self.nodes[node].disk.written();
        let blocks: Vec<u64> = written.into_iter().filter(|it| log.contains(it)).collect();
        let block = blocks[rng.below(blocks.len() as u64) as usize];
        let mut disk = self.nodes[node].disk.clone();
        disk.corrupt(block, &mut rng);
        let bad = opened(&disk, &mut rng);
        if let Ok((_, bad)) = bad
            && bad.torn == whole.torn
            && bad.broken.is_empty()
            && bad.damaged != whole.damaged
        {
            self.nodes[node].disk = disk;
            self.faults.log_damaged += 1;
        }
    }

    /// An IO that a host's disk fails, if it does. What it had in its cache is gone, or not.
    pub(crate) fn failed_io(&mut self, node: usize, io: &Io) -> Option<Done> {
        let at = &mut self.nodes[node];
        let fails = at.harm.fails && !matches!(io, Io::Read { .. });
        if fails && matches!(io, Io::Sync | Io::WriteSync { .. }) {
            if let Io::WriteSync { at: place, buffers } = io {
                at.disk.write(*place, buffers);
            }
            at.disk.lose_power(&mut self.rng);
        }
        fails.then(|| Done::Failed("EIO".to_owned()))
    }

    /// Notes what a write is about to replace that the disk will forget.
    pub(crate) fn perhaps_forget(&mut self, node: usize, io: &Io) {
        let (Io::Write { at: place, buffers } | Io::WriteSync { at: place, buffers }) = io else {
            return;
        };
        if self.victim != Some(node) || self.nodes[node].host.is_none() {
            return;
        }
        let extents = self.extents(node);
        let at = &mut self.nodes[node];
        let count: usize = buffers.iter().map(Buffer::blocks).sum();
        for block in (place / BLOCK..).take(count) {
            at.harm.before.retain(|(other, _)| *other != block);
            if at.harm.forgets > 0 && extents.contains(&block) {
                at.harm.forgets -= 1;
                at.harm.before.push((block, at.disk.current(block)));
            }
        }
    }

    /// Power is lost: some blocks are as they were before, synced or not.
    pub(crate) fn forget_writes(&mut self, node: usize) {
        let at = &mut self.nodes[node];
        for (block, page) in std::mem::take(&mut at.harm.before) {
            if at.disk.current(block) != page {
                self.faults.forgotten += 1;
            }
            at.disk
                .write(block * BLOCK, &[Buffer::from_pages(vec![page])]);
            at.disk.sync(at.disk.mark());
        }
    }

    /// A host's writes and syncs fail from now on, until its process starts anew.
    pub(crate) fn fail_disk(&mut self, node: usize, micros: u64) {
        if self.nodes[node].host.is_some() && !self.nodes[node].harm.fails {
            self.nodes[node].harm.fails = true;
            self.faults.failed_disks += 1;
            self.after(micros, Event::Replug { node });
        }
    }

    /// The disk works again, and the process is started anew.
    pub(crate) fn replug(&mut self, node: usize) {
        if self.nodes[node].harm.fails && self.nodes[node].host.is_some() {
            self.kill(node, false);
            self.start(node);
        }
    }

    /// Somebody else's volume takes all room of a host's disk, for so long.
    pub(crate) fn fill_disk(&mut self, node: usize, micros: u64) {
        let now = self.clock(node);
        let volume = filling(node);
        let members = self.members(&[node]);
        self.sessions += 1;
        let session = SessionId(FILLS | self.sessions);
        let at = &mut self.nodes[node];
        let Some(host) = at.host.as_mut().filter(|_| at.harm.fills.is_none()) else {
            return;
        };
        let blocks = u64::from(host.store().layout().extents + 1) * u64::from(EXTENT_BLOCKS);
        if host.dead().is_some() || host.create(volume, blocks, &members, now).is_err() {
            return;
        }
        let hosts = vec![at.id];
        host.open_session(session, volume, hosts);
        host.ask(session, Op::Attach { claim: 0 }, now);
        at.harm.fills = Some((session, 0));
        self.faults.full += 1;
        self.drain(node);
        self.after(MILLIS, Event::Fill { node, session });
        self.after(micros, Event::Empty { node });
    }

    /// Takes some more room, and says again what was refused.
    pub(crate) fn fill_on(&mut self, node: usize, session: SessionId) {
        let now = self.clock(node);
        let frozen = self.nodes[node].paused_until > self.now;
        let at = &mut self.nodes[node];
        let Some((_, next)) = at.harm.fills.as_mut().filter(|(it, _)| *it == session) else {
            return;
        };
        if let Some(host) = at.host.as_mut().filter(|_| !frozen) {
            let blocks = u64::from(EXTENT_BLOCKS);
            let room = host.store().volume(filling(node)).map_or(0, |it| it.blocks);
            for _ in 0..8 {
                let lba = *next * blocks % room.max(blocks);
                let data = Buffer::from_pages(vec![page(*next + 1); blocks as usize]);
                if room > 0 && host.store().space().free > 0 {
                    host.ask(session, Op::Write { lba, data }, now);
                    *next += 1;
                }
            }
            self.drain(node);
        }
        self.after(20 * MILLIS, Event::Fill { node, session });
    }

    /// The other volume is deleted; again, if the power went before that was durable.
    pub(crate) fn empty_disk(&mut self, node: usize) {
        let now = self.clock(node);
        let at = &mut self.nodes[node];
        let store = at.host.as_ref().map(|host| host.store());
        let there = store.is_some_and(|store| store.volume(filling(node)).is_some());
        if at.harm.fills.is_none() && !there {
            return;
        }
        let deleted = at.host.as_mut().map(|host| {
            let gone = host.store().volume(filling(node)).is_none();
            gone || host.delete(filling(node), now).is_ok()
        });
        if deleted == Some(true) {
            let session = at.harm.fills.take().map(|(session, _)| session);
            if let (Some(host), Some(session)) = (at.host.as_mut(), session) {
                host.close_session(session);
            }
            self.drain(node);
        } else {
            self.after(20 * MILLIS, Event::Empty { node });
        }
    }

    /// A host has another disk, with nothing on it.
    pub(crate) fn wipe(&mut self, node: usize, wal_bytes: u64) {
        self.formats += 1;
        let format = 0x1_0000 + self.formats;
        self.nodes[node].disk = empty_disk(identity(node), format, self.bytes, wal_bytes);
        self.nodes[node].harm = Harm::default();
    }
}

/// The volume that fills a host's disk.
fn filling(node: usize) -> VolumeId {
    VolumeId::new(0xf111 << 64 | node as u128)
}
