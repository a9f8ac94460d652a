//! Batches of the log: one is being written while the next one fills.

use crate::format::record::{BodyRecord, ChunkRecord, Record};
use crate::format::wal::{Header, Link};
use crate::log::{Kind, Logged, Payload};
use crate::store::Purpose;
use crate::volume::Volume;
use crate::{BLOCK_BYTES, Buffer, EXTENT_BLOCKS, Event, Io, Layout, Store, Ticket, VolumeId};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Blocks of payload in a batch at most, 4 MiB: one that is much larger makes those behind it wait.
const MOST_PAYLOAD_BLOCKS: u32 = 1024;

/// What waits for a batch.
#[derive(Debug)]
pub(crate) enum Queued {
    /// `born`: of the volume that it creates.
    Record { record: Record, born: u64 },
    Entry {
        volume: VolumeId,
        index: u64,
        serial: u64,
    },
    /// A chunk of a peer, and what goes to its extents.
    Chunk {
        record: ChunkRecord,
        serial: u64,
        writes: VecDeque<(u64, Vec<Buffer>)>,
    },
    /// All before it is durable with the batch that takes this.
    Ticket(Ticket, VolumeId),
}

impl Queued {
    /// Bytes of records that are no entries.
    pub(crate) fn local_bytes(&self) -> usize {
        match self {
            Self::Record { record, .. } => record.bytes(),
            Self::Chunk { record, .. } => record.bytes(),
            Self::Entry { .. } | Self::Ticket(..) => 0,
        }
    }
}

/// The batch that is being written.
#[derive(Debug)]
pub(crate) struct Batch {
    tickets: Vec<(Ticket, VolumeId)>,
    entries: Vec<(VolumeId, u64, u64)>,
    chunks: Vec<(VolumeId, u64, u64)>,
    writes: usize,
    /// All of it is one write, which is synced by itself.
    synced: bool,
    /// A checkpoint begins with it.
    checkpoints: bool,
}

/// What goes into a batch.
#[derive(Debug, Default)]
struct Gathered {
    /// Of the queue.
    taken: usize,
    records: Vec<Record>,
    records_bytes: usize,
    payload: Vec<Buffer>,
    payload_blocks: u32,
    /// Payloads that go to extents.
    redirected: Vec<(u64, Vec<Buffer>)>,
    tickets: Vec<(Ticket, VolumeId)>,
    entries: Vec<(VolumeId, u64, u64)>,
    /// Chunks: volume, number, serial.
    chunks: Vec<(VolumeId, u64, u64)>,
    chunk_blocks: u32,
    sealed: BTreeMap<VolumeId, u64>,
    created: BTreeMap<VolumeId, u64>,
}

impl Gathered {
    fn record(&mut self, record: Record) {
        if let Record::Base { volume, base } = &record {
            self.sealed(*volume, base.index);
        }
        self.records_bytes += record.bytes();
        self.records.push(record);
    }

    fn chunk(&mut self, record: &ChunkRecord, serial: u64, writes: &VecDeque<(u64, Vec<Buffer>)>) {
        self.chunks.push((record.volume, record.number, serial));
        self.chunk_blocks += writes.iter().map(|(_, it)| it.len() as u32).sum::<u32>();
        self.redirected.extend(writes.iter().cloned());
        self.record(Record::Chunk(record.clone()));
    }

    fn local(&mut self, record: &Record, born: u64) {
        if let Record::Create { volume, .. } = record {
            self.created.insert(*volume, born);
        }
        self.record(record.clone());
    }

    fn entry(&mut self, volume: VolumeId, index: u64, logged: &Logged, layout: &Layout) {
        self.record(Record::Entry(logged.record(
            volume,
            index,
            self.payload_blocks,
        )));
        self.payload_blocks += logged.payload_blocks();
        match &logged.kind {
            Kind::Write { data, at, .. } if !matches!(at, Payload::Lost(_)) => {
                self.payload
                    .push(data.clone().expect("kept until a checkpoint has it"));
            }
            // In a later batch the payload is there already.
            Kind::Redirected {
                extents,
                data: Some(data),
                ..
            } if logged.batch == 0 => {
                for (number, extent) in extents.iter().enumerate() {
                    let part = data.part(number * EXTENT_BLOCKS as usize, EXTENT_BLOCKS as usize);
                    self.redirected
                        .push((layout.extent_at(*extent, 0), vec![part]));
                }
            }
            _ => {}
        }
        self.entries.push((volume, index, logged.serial));
        self.sealed(volume, index);
    }

    /// What is cut off is none of this: see [`Volume::cut_after`].
    fn sealed(&mut self, volume: VolumeId, index: u64) {
        let sealed = self.sealed.entry(volume).or_default();
        *sealed = index.max(*sealed);
    }
}

impl Store {
    /// Makes the next batch of what waits, if none is being written and it fits.
    pub(crate) fn seal(&mut self) {
        if self.batch.is_some() {
            return;
        }
        let checkpoints = self.checkpoint_wanted && self.checkpoint.is_none();
        if !checkpoints && self.queue.is_empty() {
            return;
        }
        let mut gathered = if checkpoints {
            self.gather_all()
        } else {
            self.gather()
        };
        let hard = self.gather_hard(&gathered);
        hard.into_iter().for_each(|record| gathered.record(record));
        let previous: usize = self.ring.last_records.iter().map(Record::bytes).sum();
        let header_blocks = Header::blocks_for(gathered.records_bytes, previous);
        let blocks = header_blocks + gathered.payload_blocks;
        if !checkpoints && !self.ring.fits(blocks, self.reserve()) {
            self.checkpoint_wanted = true;
            if self.checkpoint.is_none() {
                self.seal();
            }
            return;
        }
        for record in &mut gathered.records {
            if let Record::Entry(entry) = record
                && let BodyRecord::Write {
                    payload: Some(at), ..
                } = &mut entry.body
            {
                *at += header_blocks;
            }
        }
        self.note_volumes(&gathered);
        self.not_taken.clear();
        let link = self.write_batch(gathered, blocks, header_blocks, checkpoints);
        let quarter = u64::from(self.superblock.layout.wal_blocks / 4);
        self.checkpoint_wanted |= self.checkpoint.is_none() && self.ring.used() > quarter;
        if checkpoints {
            self.checkpoint_wanted = false;
            let empty = !self
                .ring
                .last_records
                .iter()
                .any(|it| matches!(it, Record::Entry(_)));
            self.begin_checkpoint(link, empty);
        }
    }

    /// What an ordinary batch leaves: a checkpoint's carries what is live, an eighth of the log, with
    /// records and hard states beside it, and may have to leave as much unused at the ring's end.
    pub(crate) fn reserve(&self) -> u64 {
        u64::from(self.superblock.layout.wal_blocks) * 3 / 8
    }

    fn write_batch(
        &mut self,
        gathered: Gathered,
        blocks: u32,
        header_blocks: u32,
        checkpoints: bool,
    ) -> Link {
        let start = self.ring.start_of(blocks);
        let position = self.ring.position(start);
        let seq = self.ring.next_seq;
        let header = Header {
            store: self.superblock.store,
            seq,
            position,
            blocks,
            carries: checkpoints,
            checkpoint: self.superblock.sequence,
            previous: self.ring.last,
            before: self.ring.before,
            records: gathered.records,
            previous_records: std::mem::take(&mut self.ring.last_records),
        };
        let (pages, hash) = header.encode();
        assert_eq!(
            pages.len(),
            header_blocks as usize,
            "the header is as long as reckoned"
        );
        let link = Link {
            seq,
            position,
            blocks,
            carries: checkpoints,
            hash,
        };
        self.note_places(&header.records, seq, position);
        let taken = self.queue.drain(..gathered.taken);
        self.queued_bytes -= taken.map(|it| it.local_bytes()).sum::<usize>();
        let volumes: BTreeSet<VolumeId> = gathered
            .entries
            .iter()
            .map(|(volume, ..)| *volume)
            .collect();
        self.overwrite(link, header.records, volumes.into_iter().collect());
        let mut buffers = vec![Buffer::from_pages(pages)];
        buffers.extend(gathered.payload);
        self.counters.batches += 1;
        self.counters.log_bytes += u64::from(blocks) * BLOCK_BYTES as u64;
        let writes = 1 + gathered.redirected.len();
        let at = self.superblock.layout.wal_at(position);
        let synced = gathered.redirected.is_empty();
        let io = match synced {
            true => Io::WriteSync { at, buffers },
            false => Io::Write { at, buffers },
        };
        self.issue(Purpose::Batch, io);
        for (at, buffers) in gathered.redirected {
            let blocks: usize = buffers.iter().map(Buffer::blocks).sum();
            self.counters.extent_bytes += (blocks * BLOCK_BYTES) as u64;
            self.issue(Purpose::Batch, Io::Write { at, buffers });
        }
        self.batch = Some(Batch {
            tickets: gathered.tickets,
            entries: gathered.entries,
            chunks: gathered.chunks,
            writes,
            synced,
            checkpoints,
        });
        link
    }

    pub(crate) fn batch_done(&mut self, purpose: Purpose) {
        let batch = self.batch.as_mut().expect("one is being written");
        if purpose == Purpose::Batch {
            batch.writes -= 1;
            if batch.writes > 0 {
                return;
            }
            if !batch.synced {
                self.issue(Purpose::BatchSync, Io::Sync);
                return;
            }
        }
        let batch = self.batch.take().expect("it was there");
        for (volume, index, serial) in batch.entries {
            if let Some(held) = self.volumes.get_mut(&volume) {
                let before = held.live;
                held.durable(index, serial);
                self.live = self.live - before + held.live;
            }
        }
        for (volume, chunk, serial) in batch.chunks {
            if let Some(held) = self.volumes.get_mut(&volume) {
                held.chunk_durable(chunk, serial);
            }
        }
        for (ticket, volume) in batch.tickets {
            self.events.push_back(Event::Durable { ticket, volume });
        }
        if batch.checkpoints {
            self.checkpoint_batch_is_durable();
        }
    }

    /// As much of the queue as one batch takes.
    fn gather(&self) -> Gathered {
        let mut gathered = Gathered::default();
        self.not_taken
            .iter()
            .for_each(|chunk| gathered.record(Record::NotTaken(*chunk)));
        let most_payload = MOST_PAYLOAD_BLOCKS.min(self.superblock.layout.wal_blocks / 16);
        let most_records = self.most_records();
        for queued in &self.queue {
            let full = gathered.payload_blocks >= most_payload
                || gathered.records_bytes >= most_records
                || gathered.chunk_blocks >= MOST_PAYLOAD_BLOCKS;
            match queued {
                Queued::Ticket(ticket, volume) => gathered.tickets.push((*ticket, *volume)),
                _ if full => break,
                Queued::Record { record, born } => gathered.local(record, *born),
                Queued::Chunk {
                    record,
                    serial,
                    writes,
                } => gathered.chunk(record, *serial, writes),
                Queued::Entry {
                    volume,
                    index,
                    serial,
                } => {
                    if let Some(logged) = self.queued_entry(*volume, *index, *serial) {
                        let more = gathered.payload_blocks + logged.payload_blocks();
                        if more > most_payload && gathered.payload_blocks > 0 {
                            break;
                        }
                        gathered.entry(*volume, *index, logged, &self.superblock.layout);
                    }
                }
            }
            gathered.taken += 1;
        }
        gathered
    }

    /// All of the queue, and all entries that are live: the log begins with this batch.
    fn gather_all(&self) -> Gathered {
        let mut gathered = Gathered {
            taken: self.queue.len(),
            ..Gathered::default()
        };
        self.not_taken
            .iter()
            .for_each(|chunk| gathered.record(Record::NotTaken(*chunk)));
        for queued in &self.queue {
            match queued {
                Queued::Ticket(ticket, volume) => gathered.tickets.push((*ticket, *volume)),
                Queued::Record { record, born } => gathered.local(record, *born),
                Queued::Chunk {
                    record,
                    serial,
                    writes,
                } => gathered.chunk(record, *serial, writes),
                Queued::Entry { .. } => {}
            }
        }
        for held in self.volumes.values() {
            for (index, logged) in held.log.after(held.carried_from()) {
                gathered.entry(held.id, index, logged, &self.superblock.layout);
            }
        }
        gathered
    }

    /// An entry that waits, unless another one took its place.
    fn queued_entry(&self, volume: VolumeId, index: u64, serial: u64) -> Option<&Logged> {
        let logged = self.volumes.get(&volume)?.log.get(index)?;
        (logged.serial == serial).then_some(logged)
    }

    /// Hard states that changed. A commit is told only as far as its entries are in the log with it.
    fn gather_hard(&self, gathered: &Gathered) -> Vec<Record> {
        let changed = self.hard_changed.iter();
        let changed = changed.filter_map(|volume| self.volumes.get(volume));
        let created = |held: &Volume| gathered.created.get(&held.id) == Some(&held.born);
        let known = changed.filter(|held| held.announced || created(held));
        let record = |held: &Volume| {
            let sealed = gathered.sealed.get(&held.id).copied().unwrap_or(0);
            let sealed = sealed.max(held.sealed);
            let mut hard = held.hard;
            hard.commit = hard.commit.min(sealed);
            let volume = held.id;
            Record::Hard { volume, hard }
        };
        known.map(record).collect()
    }

    /// What a batch says of volumes is not said again.
    fn note_volumes(&mut self, gathered: &Gathered) {
        for (volume, born) in &gathered.created {
            if let Some(held) = self.volumes.get_mut(volume).filter(|it| it.born == *born) {
                held.announced = true;
            }
        }
        for (volume, sealed) in &gathered.sealed {
            if let Some(held) = self.volumes.get_mut(volume) {
                held.sealed = held.sealed.max(*sealed);
            }
        }
        for record in &gathered.records {
            if let Record::Hard { volume, hard } = record {
                let held = self
                    .volumes
                    .get_mut(volume)
                    .expect("it was gathered from there");
                held.hard_changed = *hard != held.hard;
                if !held.hard_changed {
                    self.hard_changed.remove(volume);
                }
            }
        }
    }

    /// Entries know which batch has them, and where.
    fn note_places(&mut self, records: &[Record], seq: u64, position: u32) {
        // From the last one on: what is behind has its new place already.
        for record in records.iter().rev() {
            let Record::Entry(record) = record else {
                continue;
            };
            let held = self
                .volumes
                .get_mut(&record.volume)
                .expect("it was gathered from there");
            // One that is put in again is forgotten no later than those behind it.
            let behind = held
                .log
                .get(record.index + 1)
                .map_or(0, |entry| entry.batch);
            let entry = held
                .log
                .get_mut(record.index)
                .expect("it was gathered from there");
            entry.batch = if behind == 0 { seq } else { seq.min(behind) };
            if let BodyRecord::Write {
                payload: Some(offset),
                ..
            } = record.body
                && let Kind::Write { at, .. } = &mut entry.kind
            {
                *at = Payload::At(position + offset);
            }
        }
    }

    fn overwrite(&mut self, link: Link, records: Vec<Record>, volumes: Vec<VolumeId>) {
        for gone in self.ring.push(link, records, volumes) {
            for volume in gone.volumes {
                if let Some(held) = self.volumes.get_mut(&volume) {
                    held.log.forget_batches(gone.seq, held.checkpointed);
                }
            }
        }
    }
}
