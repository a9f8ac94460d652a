//! From the newest checkpoint and the log after it to a store.

use super::chain::{Chain, ChainLink};
use super::{OpenError, Recovered, page_of};
use crate::format::PageRef;
use crate::format::layout::Layout;
use crate::format::pages::{Leaf, PageBody};
use crate::format::wal::{BodyRecord, EntryRecord, Record};
use crate::log::{Kind, Logged, Payload};
use crate::ring::Ring;
use crate::space::{Need, Space};
use crate::store::Counters;
use crate::volume::Volume;
use crate::{Buffer, Digest, EXTENT_BLOCKS, Store, VolumeId, block_crc};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Pages, or payloads, read at once.
const AT_ONCE: usize = 256;

/// An entry whose payload cannot be read, or is not what was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DamagedEntry {
    /// Whose log.
    pub volume: VolumeId,
    /// Which.
    pub index: u64,
    /// Its term.
    pub term: u64,
    /// Whether it took effect: then its blocks are to be repaired, else it is to be submitted again.
    pub applied: bool,
    /// The blocks that are damaged.
    pub lbas: Vec<u64>,
}

/// A store in the making.
#[derive(Debug)]
pub(super) struct Replay {
    chain: Chain,
    space: Space,
    volumes: BTreeMap<VolumeId, Volume>,
    next_directory: Option<PageRef>,
    directory: Vec<u32>,
    directory_changed: bool,
    listed: Vec<(VolumeId, PageRef)>,
    pages: VecDeque<MapPage>,
    pages_asked: Vec<MapPage>,
    digests: BTreeMap<VolumeId, Digest>,
    payloads: VecDeque<(VolumeId, u64)>,
    payloads_asked: Vec<(VolumeId, u64)>,
    born: u64,
}

#[derive(Debug, Clone, Copy)]
struct MapPage {
    volume: VolumeId,
    level: u32,
    number: u64,
    page: PageRef,
}

impl Replay {
    pub(super) fn new(chain: Chain) -> Self {
        let layout = chain.superblock.layout;
        Self {
            next_directory: chain.superblock.directory,
            chain,
            space: Space::new(layout.extents, layout.map_pages),
            volumes: BTreeMap::new(),
            directory: Vec::new(),
            directory_changed: false,
            listed: Vec::new(),
            pages: VecDeque::new(),
            pages_asked: Vec::new(),
            digests: BTreeMap::new(),
            payloads: VecDeque::new(),
            payloads_asked: Vec::new(),
            born: 0,
        }
    }

    pub(super) const fn layout(&self) -> Layout {
        self.chain.superblock.layout
    }

    /// The next page of the directory, if there is one.
    pub(super) fn directory_page(&self) -> Result<Vec<(u64, usize)>, OpenError> {
        let Some(next) = self.next_directory else {
            return Ok(Vec::new());
        };
        if next.page >= self.layout().map_pages {
            return Err(OpenError::Directory { page: next.page });
        }
        Ok(vec![(self.layout().page_at(next.page), 1)])
    }

    pub(super) fn take_directory(&mut self, result: Option<&Buffer>) -> Result<(), OpenError> {
        let Some(wanted) = self.next_directory else {
            return Ok(());
        };
        let damaged = OpenError::Directory { page: wanted.page };
        let (none, number) = (VolumeId::new(0), self.directory.len() as u64);
        let body = page_of(&self.chain.superblock, wanted, none, 0, number, result);
        let Some(PageBody::Directory { next, volumes }) = body else {
            return Err(damaged);
        };
        // A page that is on the list already is no next one.
        if !self.space.pages.mark(wanted.page) {
            return Err(damaged);
        }
        self.directory.push(wanted.page);
        self.listed.extend(volumes);
        self.next_directory = next;
        Ok(())
    }

    /// The pages of the volumes.
    pub(super) fn volume_pages(&mut self) -> Result<Vec<(VolumeId, PageRef)>, OpenError> {
        let pages = std::mem::take(&mut self.listed);
        for (volume, page) in &pages {
            if !self.space.pages.mark(page.page) {
                let what = format!("page {} of volume {volume} is in use", page.page);
                return Err(OpenError::Inconsistent { what });
            }
        }
        Ok(pages)
    }

    pub(super) fn take_volume(&mut self, volume: VolumeId, page: PageRef, result: Option<&Buffer>) {
        self.born += 1;
        let body = page_of(&self.chain.superblock, page, volume, 0, 0, result);
        let Some(PageBody::Volume(state)) = body else {
            let mut held = Volume::new(volume, self.born, 1);
            (held.page, held.changed, held.announced) = (Some(page), false, true);
            held.broken = Some(format!("its page {} of the map is damaged", page.page));
            self.volumes.insert(volume, held);
            return;
        };
        let held = Volume::restored(volume, self.born, &state, Some(page));
        let fits = held.map.levels() == state.levels;
        self.volumes.insert(volume, held);
        if !fits {
            self.break_volume(
                volume,
                "its map has another height than its size asks for".to_owned(),
            );
        } else if let Some(page) = state.root {
            self.want(MapPage {
                volume,
                level: state.levels,
                number: 0,
                page,
            });
        }
    }

    fn want(&mut self, wanted: MapPage) {
        let page = wanted.page.page;
        if self.space.pages.mark(page) {
            self.pages.push_back(wanted);
        } else {
            let why = format!("page {page} of the map has two uses, or is none");
            self.break_volume(wanted.volume, why);
        }
    }

    /// The next pages of maps.
    pub(super) fn map_pages(&mut self) -> Vec<(u64, usize)> {
        let number = self.pages.len().min(AT_ONCE);
        self.pages_asked = self.pages.drain(..number).collect();
        let layout = self.layout();
        self.pages_asked
            .iter()
            .map(|asked| (layout.page_at(asked.page.page), 1))
            .collect()
    }

    pub(super) fn take_map_pages(&mut self, results: &[Option<Buffer>]) {
        for (asked, result) in std::mem::take(&mut self.pages_asked)
            .into_iter()
            .zip(results)
        {
            let MapPage {
                volume,
                level,
                number,
                page,
            } = asked;
            let body = page_of(
                &self.chain.superblock,
                page,
                volume,
                level,
                number,
                result.as_ref(),
            );
            let held = self.volumes.get_mut(&volume).expect("asked for a volume");
            match body {
                Some(PageBody::Node(children)) if level > 0 => {
                    held.map.restore_node(level, number, page);
                    let first = number * children.len() as u64;
                    for (number, page) in (first..).zip(children) {
                        if let Some(page) = page {
                            let level = level - 1;
                            self.want(MapPage {
                                volume,
                                level,
                                number,
                                page,
                            });
                        }
                    }
                }
                Some(PageBody::Leaf(leaf)) if level == 0 => {
                    let sound = self.take_leaf(volume, number, &leaf);
                    let held = self.volumes.get_mut(&volume).expect("asked for a volume");
                    held.map.restore_leaf(number, leaf, page);
                    if let Err(why) = sound {
                        self.break_volume(volume, why);
                    }
                }
                _ => self.break_volume(volume, format!("page {} of its map is damaged", page.page)),
            }
        }
    }

    fn take_leaf(&mut self, volume: VolumeId, number: u64, leaf: &Leaf) -> Result<(), String> {
        let digest = self.digests.entry(volume).or_default();
        let first = number * leaf.extents.len() as u64;
        for (number, extent) in (first..).zip(&leaf.extents) {
            let Some(at) = extent.at else { continue };
            if !self.space.extents.mark(at) {
                return Err(format!("extent {at} has two uses, or is none"));
            }
            let lbas = number * u64::from(EXTENT_BLOCKS)..;
            for (block, (lba, crc)) in lbas.zip(extent.crcs).enumerate() {
                if extent.valid & 1 << block != 0 {
                    digest.add(lba, crc);
                }
            }
        }
        Ok(())
    }

    /// I6: what was read is what the digest was of.
    pub(super) fn check_maps(&mut self) {
        let differs = |(id, held): (&VolumeId, &Volume)| {
            let read = self.digests.get(id).copied().unwrap_or_default();
            (held.broken.is_none() && held.digest != read).then_some(*id)
        };
        let wrong: Vec<VolumeId> = self.volumes.iter().filter_map(differs).collect();
        for volume in wrong {
            self.break_volume(volume, "its map is not what its digest says".to_owned());
        }
    }

    fn break_volume(&mut self, volume: VolumeId, why: String) {
        if let Some(held) = self.volumes.get_mut(&volume) {
            held.broken.get_or_insert(why);
            held.changed = false;
        }
    }

    /// Plays the batches again, without payloads.
    pub(super) fn play(&mut self) -> Result<(), OpenError> {
        let as_of = self.chain.superblock.as_of;
        for ChainLink { link, records, .. } in self.chain.links.clone() {
            for record in &records {
                // The checkpoint has all that batches up to its moment say of volumes.
                let entries = matches!(record, Record::Entry(_) | Record::LogEnd { .. });
                if link.seq > as_of || entries {
                    self.play_record(record, link.seq, link.position);
                }
            }
        }
        self.take_extents();
        for held in self.volumes.values().filter(|held| held.broken.is_none()) {
            let entries = held.log.after(held.folded.0);
            let stored = entries.filter(|(_, entry)| matches!(entry.kind, Kind::Write { .. }));
            self.payloads
                .extend(stored.map(|(index, _)| (held.id, index)));
        }
        Ok(())
    }

    /// Only entries that are still in the log have extents: those of others may be somebody else's by now.
    fn take_extents(&mut self) {
        let mut wrong = Vec::new();
        for held in self.volumes.values().filter(|held| held.broken.is_none()) {
            for (index, entry) in held.log.after(held.folded.0) {
                let Kind::Redirected { extents, .. } = &entry.kind else {
                    continue;
                };
                for extent in extents.iter() {
                    if !self.space.extents.mark(*extent) {
                        let why =
                            format!("extent {extent} of entry {index} has two uses, or is none");
                        wrong.push((held.id, why));
                    }
                }
            }
        }
        wrong
            .into_iter()
            .for_each(|(volume, why)| self.break_volume(volume, why));
    }

    fn play_record(&mut self, record: &Record, seq: u64, position: u32) {
        match record {
            Record::Create { volume, blocks } => {
                self.born += 1;
                let mut held = Volume::new(*volume, self.born, *blocks);
                held.announced = true;
                self.volumes.entry(*volume).or_insert(held);
                self.directory_changed = true;
            }
            Record::Delete { volume } => {
                self.directory_changed = true;
                if let Some(mut held) = self.volumes.remove(volume) {
                    self.space.pages_needed += held.map.pages() + 1;
                    held.forget_after(held.folded.0);
                    held.free_all(&mut self.space);
                }
            }
            Record::Grow { volume, blocks } => {
                if let Some(held) = self.usable(*volume) {
                    held.blocks = held.blocks.max(*blocks);
                    held.changed = true;
                    let blocks = held.blocks;
                    let held = self.volumes.get_mut(volume).expect("it is usable");
                    held.map.grow(blocks, &mut self.space);
                }
            }
            Record::Hard { volume, hard } => {
                if let Some(held) = self.usable(*volume) {
                    held.hard = *hard;
                    held.changed = true;
                }
            }
            Record::LogEnd { volume, last } => {
                if let Some(held) = self.volumes.get_mut(volume)
                    && held.broken.is_none()
                    && *last >= held.folded.0
                {
                    held.forget_after(*last);
                }
            }
            Record::Entry(entry) => {
                if let Err(why) = self.play_entry(entry, seq, position) {
                    self.break_volume(entry.volume, why);
                }
            }
        }
    }

    fn usable(&mut self, volume: VolumeId) -> Option<&mut Volume> {
        self.volumes
            .get_mut(&volume)
            .filter(|held| held.broken.is_none())
    }

    fn play_entry(&mut self, entry: &EntryRecord, seq: u64, position: u32) -> Result<(), String> {
        let Some(held) = self
            .volumes
            .get_mut(&entry.volume)
            .filter(|it| it.broken.is_none())
        else {
            return Ok(());
        };
        let index = entry.index;
        if index <= held.folded.0 {
            return Ok(());
        }
        if index > held.log.last() + 1 {
            return Err(format!(
                "its log has no entry {} before {index}",
                held.log.last() + 1
            ));
        }
        let logged = logged(entry, held.blocks, seq, position)?;
        let old = held.log.get(index).filter(|old| old.term == entry.term);
        if old.is_some() {
            held.refill(index, logged);
        } else {
            held.forget_after(index - 1);
            held.append(logged, &mut self.space);
        }
        Ok(())
    }

    /// The next payloads.
    pub(super) fn payloads(&mut self) -> Vec<(u64, usize)> {
        let layout = self.layout();
        self.payloads_asked.clear();
        let mut reads = Vec::new();
        while reads.len() < AT_ONCE
            && let Some((volume, index)) = self.payloads.pop_front()
        {
            let held = self
                .volumes
                .get(&volume)
                .and_then(|held| held.log.get(index));
            if let Some(Kind::Write {
                at: Payload::At(at),
                crcs,
                ..
            }) = held.map(|it| &it.kind)
            {
                self.payloads_asked.push((volume, index));
                reads.push((layout.wal_at(*at), crcs.len()));
            }
        }
        reads
    }

    pub(super) fn take_payloads(&mut self, results: &[Option<Buffer>]) {
        for ((volume, index), result) in self.payloads_asked.drain(..).zip(results) {
            let held = self
                .volumes
                .get_mut(&volume)
                .expect("asked for one that is there");
            let (before, id) = (held.live, held.id);
            let entry = held
                .log
                .get_mut(index)
                .expect("asked for one that is there");
            let cost = entry.cost(id);
            let Kind::Write {
                lba,
                crcs,
                at,
                data,
            } = &mut entry.kind
            else {
                continue;
            };
            let right = |offset: &u32| {
                let page = result
                    .as_ref()
                    .and_then(|data| data.pages().get(*offset as usize));
                let crc = page.map(|page| block_crc(volume, *lba + u64::from(*offset), page));
                crc == Some(crcs[*offset as usize])
            };
            let lost: Vec<u32> = (0..crcs.len() as u32)
                .filter(|offset| !right(offset))
                .collect();
            data.clone_from(result);
            if !lost.is_empty() {
                *at = Payload::Lost(lost);
                entry.durable = false;
            }
            let entry = held.log.get(index).expect("it was there");
            held.live = before - cost + entry.cost(id);
        }
    }

    /// Lets committed entries take effect, and makes the store.
    pub(super) fn into_store(mut self, recovered: &mut Recovered) -> Result<Store, OpenError> {
        let ids: Vec<VolumeId> = self.volumes.keys().copied().collect();
        self.space.pages_needed = 1 + ids.len() as u32;
        self.space.pages_needed += self
            .volumes
            .values()
            .map(|held| held.map.pages())
            .sum::<u32>();
        for id in &ids {
            let held = self.volumes.get_mut(id).expect("just listed");
            if held.broken.is_none()
                && let Err(why) = apply(held, &mut self.space, &mut recovered.damaged)
            {
                self.break_volume(*id, why);
            }
        }
        for held in self
            .volumes
            .values_mut()
            .filter(|held| held.broken.is_none())
        {
            promise(held, &mut self.space);
        }
        let broken = self.volumes.values();
        let broken = broken.filter_map(|held| Some((held.id, held.broken.clone()?)));
        recovered.broken = broken.collect();
        let ring = ring(&self.chain)?;
        let carries = self
            .chain
            .links
            .iter()
            .map(|link| link.link)
            .rfind(|link| link.carries);
        let mut store = Store {
            superblock: self.chain.superblock,
            volumes: self.volumes,
            space: self.space,
            ring,
            queue: VecDeque::new(),
            batch: None,
            checkpoint: None,
            checkpoint_wanted: false,
            directory_changed: self.directory_changed,
            directory: self.directory,
            reads: BTreeMap::new(),
            entry_reads: BTreeMap::new(),
            inflight: BTreeMap::new(),
            out: VecDeque::new(),
            events: VecDeque::new(),
            dead: None,
            next: self.born,
            counters: Counters::default(),
        };
        if let Some(carries) = carries
            && !store.ring.fits(0, store.reserve())
        {
            store.begin_checkpoint_again(carries);
        }
        Ok(store)
    }
}

fn logged(
    entry: &EntryRecord,
    volume_blocks: u64,
    seq: u64,
    position: u32,
) -> Result<Logged, String> {
    let (kind, end) = match &entry.body {
        BodyRecord::Write { lba, payload, crcs } => {
            let all = || Payload::Lost((0..crcs.len() as u32).collect());
            let kind = Kind::Write {
                lba: *lba,
                crcs: crcs.clone(),
                at: payload.map_or_else(all, |offset| Payload::At(position + offset)),
                data: None,
            };
            (kind, lba + crcs.len() as u64)
        }
        BodyRecord::Redirected { lba, extents, crcs } => {
            let kind = Kind::Redirected {
                lba: *lba,
                extents: extents.clone(),
                crcs: crcs.clone(),
                data: None,
            };
            (kind, lba + crcs.len() as u64)
        }
        BodyRecord::Zero { lba, blocks } => {
            let (lba, blocks) = (*lba, *blocks);
            (Kind::Zero { lba, blocks }, lba + blocks)
        }
        BodyRecord::Attach => (Kind::Attach, 0),
        BodyRecord::Config(bytes) => (Kind::Config(bytes.clone()), 0),
        BodyRecord::Empty => (Kind::Empty, 0),
    };
    if end > volume_blocks {
        return Err(format!(
            "entry {} is for blocks beyond its {volume_blocks}",
            entry.index
        ));
    }
    let mut logged = Logged {
        term: entry.term,
        epoch: entry.epoch,
        kind,
        need: Need::default(),
        serial: 0,
        batch: seq,
        durable: true,
    };
    logged.durable = !logged.is_lost();
    Ok(logged)
}

/// Lets the entries up to the commit take effect. Those without payload leave their blocks damaged.
fn apply(
    held: &mut Volume,
    space: &mut Space,
    damaged: &mut Vec<DamagedEntry>,
) -> Result<(), String> {
    let commit = held.hard.commit;
    held.sealed = held.log.last();
    for (index, entry) in held.log.after(held.folded.0) {
        if let Kind::Write {
            lba,
            at: Payload::Lost(lost),
            ..
        } = &entry.kind
        {
            damaged.push(DamagedEntry {
                volume: held.id,
                index,
                term: entry.term,
                applied: index <= commit,
                lbas: lost.iter().map(|offset| lba + u64::from(*offset)).collect(),
            });
        }
    }
    while held.folded.0 < commit {
        let index = held.folded.0 + 1;
        if held.log.get(index).is_none() {
            return Err(format!("entry {index} is committed and not in the log"));
        }
        if !held.has_room(space) {
            return Err(format!("there is no room for entry {index}"));
        }
        // A committed entry needs no second copy: what it lacks is lacking in the blocks.
        held.log.get_mut(index).expect("just seen").durable = true;
        held.fold_next(space);
    }
    held.log.advance_durable();
    held.settle();
    Ok(())
}

/// Promises what entries that are yet to be committed may take, as when they were accepted.
fn promise(held: &mut Volume, space: &mut Space) {
    let mut emptied = false;
    let mut needs = Vec::new();
    for (index, entry) in held.log.after(held.folded.0) {
        let mut need = Need::default();
        match &entry.kind {
            Kind::Write { lba, crcs, .. } => need = held.need(*lba, crcs.len() as u64, emptied),
            Kind::Redirected { lba, crcs, .. } => {
                need.pages = held.need(*lba, crcs.len() as u64, false).pages;
            }
            Kind::Zero { .. } => emptied = true,
            Kind::Attach | Kind::Config(_) | Kind::Empty => {}
        }
        needs.push((index, need));
    }
    for (index, need) in needs {
        held.log.get_mut(index).expect("just seen").need = need;
        space.promise(need);
    }
}

fn ring(chain: &Chain) -> Result<Ring, OpenError> {
    let blocks = chain.superblock.layout.wal_blocks;
    let mut ring = Ring::new(blocks, chain.superblock.tail);
    for ChainLink { link, records, .. } in &chain.links {
        ring.skip_to(link.position);
        if !link.fits(blocks) || !ring.fits(link.blocks, 0) {
            let why = "it overlaps the batches before it".to_owned();
            return Err(OpenError::Log { seq: link.seq, why });
        }
        let volumes = records.iter().filter_map(|record| match record {
            Record::Entry(entry) => Some(entry.volume),
            _ => None,
        });
        let volumes: BTreeSet<VolumeId> = volumes.collect();
        ring.push(*link, records.clone(), volumes.into_iter().collect());
    }
    ring.next_seq = chain.next_seq;
    Ok(ring)
}
