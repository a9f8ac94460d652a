//! Reads: of blocks, and of entries of the log.

use crate::buffer::SHARED_ZEROES;
use crate::log::{Body, Entry, Kind, Payload};
use crate::refused::invalid;
use crate::store::Purpose;
use crate::volume::Volume;
use crate::{
    Buffer, Chunk, Done, EXTENT_BLOCKS, Event, Io, Page, Refused, Store, Ticket, VolumeId,
    block_crc,
};

/// Why a read gives no blocks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// These are not what was written. [`Store::repair`] takes them from a peer.
    #[error("blocks {lbas:?} are damaged on this disk; they have to come from a peer")]
    Damaged {
        /// Which.
        lbas: Vec<u64>,
    },
}

/// Why an entry cannot be read back.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// It is in the log no more: who lacks it needs the chunks that changed since.
    #[error("entry {index} is in the log no more")]
    Compacted {
        /// Which.
        index: u64,
    },
    /// It is in the log, and is not what was written.
    #[error("entry {index} is damaged on this disk; it has to come from a peer")]
    Damaged {
        /// Which.
        index: u64,
    },
}

/// A read under way.
#[derive(Debug)]
pub(crate) struct Reading {
    ticket: Ticket,
    volume: VolumeId,
    parts: Vec<Part>,
    waiting: usize,
    damaged: Vec<u64>,
    /// It is for a peer: what of the chunk is there.
    chunk: Option<Chunk>,
}

#[derive(Debug)]
pub(crate) enum Part {
    Ready(Buffer),
    /// So many blocks that nothing is stored for; no more than the shared zeroes have.
    Hole(usize),
    /// On disk at this place; the blocks' CRCs as the map had them.
    Stored {
        at: u64,
        lba: u64,
        crcs: Vec<u32>,
    },
}

/// An entry that is being read back.
#[derive(Debug)]
pub(crate) struct EntryReading {
    ticket: Ticket,
    volume: VolumeId,
    index: u64,
    serial: u64,
    /// Extents or log blocks, in order.
    parts: Vec<Option<Buffer>>,
    waiting: usize,
    failed: bool,
}

impl Store {
    /// Reads blocks as of now: all that is committed, none that is not. [`Event::Read`] brings them.
    pub fn read(&mut self, volume: VolumeId, lba: u64, blocks: u64) -> Result<Ticket, Refused> {
        let layout = self.superblock.layout;
        let (held, _) = self.volume_mut(volume)?;
        let inside = lba
            .checked_add(blocks)
            .is_some_and(|end| end <= held.blocks);
        if !inside || blocks == 0 {
            let has = held.blocks;
            return Err(invalid(format!(
                "{blocks} blocks at {lba} of a volume of {has}"
            )));
        }
        let parts = parts_of(held, &layout, lba..lba + blocks);
        Ok(self.begin_read(volume, parts, None))
    }

    /// Reads parts; what is in memory is there already.
    pub(crate) fn begin_read(
        &mut self,
        volume: VolumeId,
        parts: Vec<Part>,
        chunk: Option<Chunk>,
    ) -> Ticket {
        let ticket = Ticket(self.number());
        let read = self.number();
        let mut reading = Reading {
            ticket,
            volume,
            parts,
            waiting: 0,
            damaged: Vec::new(),
            chunk,
        };
        for (number, part) in reading.parts.iter().enumerate() {
            if let Part::Stored { at, crcs, .. } = part {
                let (at, blocks) = (*at, crcs.len());
                let part = number;
                self.issue(Purpose::Read { read, part }, Io::Read { at, blocks });
                reading.waiting += 1;
            }
        }
        if reading.waiting == 0 {
            self.finish_read(reading);
        } else {
            self.reads.insert(read, reading);
        }
        ticket
    }

    pub(crate) fn read_done(&mut self, read: u64, part: usize, done: Done) {
        let reading = self
            .reads
            .get_mut(&read)
            .expect("reads stay until all parts are there");
        let Part::Stored { lba, crcs, .. } = &reading.parts[part] else {
            unreachable!("a part is read once");
        };
        let volume = reading.volume;
        let data = match done {
            Done::Read(data) if data.blocks() == crcs.len() => data,
            _ => {
                // Which of them cannot be read is not known: all are asked of a peer.
                let all = *lba..*lba + crcs.len() as u64;
                self.counters.damaged_blocks += crcs.len() as u64;
                reading.damaged.extend(all);
                Buffer::zeroed(0)
            }
        };
        for ((lba, page), crc) in (*lba..).zip(data.pages()).zip(crcs) {
            if block_crc(volume, lba, page) != *crc {
                reading.damaged.push(lba);
                self.counters.damaged_blocks += 1;
            }
        }
        reading.parts[part] = Part::Ready(data);
        reading.waiting -= 1;
        if reading.waiting == 0 {
            let reading = self.reads.remove(&read).expect("it was there");
            self.finish_read(reading);
            self.reads_went_on();
        }
    }

    fn finish_read(&mut self, reading: Reading) {
        let Reading {
            ticket,
            parts,
            mut damaged,
            chunk,
            ..
        } = reading;
        damaged.sort_unstable();
        let buffers = parts.into_iter().filter_map(|part| match part {
            Part::Ready(buffer) => Some(buffer),
            Part::Hole(blocks) => Some(Buffer::shared_zeroes(blocks)),
            Part::Stored { .. } => None,
        });
        let result = if damaged.is_empty() {
            Ok(buffers.collect())
        } else {
            Err(ReadError::Damaged { lbas: damaged })
        };
        self.events.push_back(match chunk {
            None => Event::Read { ticket, result },
            Some(chunk) => Event::Chunk {
                ticket,
                result: result.map(|data| Chunk { data, ..chunk }),
            },
        });
    }

    /// Reads an entry back, for a peer that lacks it. [`Event::Entry`] brings it.
    pub fn read_entry(&mut self, volume: VolumeId, index: u64) -> Result<Ticket, Refused> {
        let layout = self.superblock.layout;
        let (held, _) = self.volume_mut(volume)?;
        if index > held.log.last() {
            let last = held.log.last();
            return Err(invalid(format!(
                "there is no entry {index}: the last one is {last}"
            )));
        }
        let damaged = held.log.get(index).is_some_and(|entry| entry.is_lost());
        let (serial, places) = match held.log.get(index) {
            None => return Ok(self.tell_entry(Err(EntryError::Compacted { index }))),
            Some(_) if damaged => return Ok(self.tell_entry(Err(EntryError::Damaged { index }))),
            Some(entry) => match (entry.in_memory(index), &entry.kind) {
                (Some(entry), _) => return Ok(self.tell_entry(Ok(entry))),
                (
                    None,
                    Kind::Write {
                        at: Payload::At(at),
                        crcs,
                        ..
                    },
                ) => (entry.serial, vec![(layout.wal_at(*at), crcs.len())]),
                (None, Kind::Redirected { extents, .. }) => {
                    let place =
                        |extent: &u32| (layout.extent_at(*extent, 0), EXTENT_BLOCKS as usize);
                    (entry.serial, extents.iter().map(place).collect())
                }
                (None, _) => unreachable!("what is not on disk is in memory"),
            },
        };
        let ticket = Ticket(self.number());
        let read = self.number();
        self.entry_reads.insert(
            read,
            EntryReading {
                ticket,
                volume,
                index,
                serial,
                parts: vec![None; places.len()],
                waiting: places.len(),
                failed: false,
            },
        );
        for (part, (at, blocks)) in places.into_iter().enumerate() {
            self.issue(Purpose::Entry { read, part }, Io::Read { at, blocks });
        }
        Ok(ticket)
    }

    fn tell_entry(&mut self, result: Result<Entry, EntryError>) -> Ticket {
        let ticket = Ticket(self.number());
        self.events.push_back(Event::Entry { ticket, result });
        ticket
    }

    pub(crate) fn entry_done(&mut self, read: u64, part: usize, done: Done) {
        let reading = self
            .entry_reads
            .get_mut(&read)
            .expect("reads stay until all parts are there");
        match done {
            Done::Read(data) => reading.parts[part] = Some(data),
            Done::Ok | Done::Failed(_) => reading.failed = true,
        }
        reading.waiting -= 1;
        if reading.waiting > 0 {
            return;
        }
        let reading = self.entry_reads.remove(&read).expect("it was there");
        let result = self.entry_of(&reading);
        let ticket = reading.ticket;
        self.events.push_back(Event::Entry { ticket, result });
        self.reads_went_on();
    }

    /// Puts an entry together, unless it left the log meanwhile.
    fn entry_of(&self, reading: &EntryReading) -> Result<Entry, EntryError> {
        let (volume, index) = (reading.volume, reading.index);
        let compacted = EntryError::Compacted { index };
        let held = self
            .volumes
            .get(&volume)
            .and_then(|held| held.log.get(index));
        let entry = held
            .filter(|entry| entry.serial == reading.serial)
            .ok_or(compacted.clone())?;
        let (lba, crcs, wrong) = match &entry.kind {
            Kind::Write { lba, crcs, .. } => (*lba, crcs, EntryError::Damaged { index }),
            // Its extents may have been written or freed since.
            Kind::Redirected { lba, crcs, .. } => (*lba, crcs, compacted),
            Kind::Zero { .. }
            | Kind::Attach
            | Kind::Config(_)
            | Kind::Empty
            | Kind::Grow { .. } => return Err(compacted),
        };
        let parts = reading.parts.iter().flatten();
        let pages: Vec<_> = parts
            .flat_map(|part| part.pages().iter().cloned())
            .collect();
        let right = |((lba, page), crc): ((u64, &Page), &u32)| block_crc(volume, lba, page) == *crc;
        if reading.failed
            || pages.len() != crcs.len()
            || !(lba..).zip(&pages).zip(crcs.iter()).all(right)
        {
            return Err(wrong);
        }
        let data = Buffer::from_pages(pages);
        Ok(Entry {
            index,
            term: entry.term,
            epoch: entry.epoch,
            body: Body::Write { lba, data },
        })
    }

    pub(crate) fn oldest_read(&self) -> Option<u64> {
        let blocks = self.reads.keys().next();
        let entries = self.entry_reads.keys().next();
        blocks.into_iter().chain(entries).min().copied()
    }

    fn reads_went_on(&mut self) {
        let oldest = self.oldest_read().unwrap_or(u64::MAX);
        self.space.reads_done_before(oldest);
    }
}

/// Where blocks are; those that lie one behind the other on disk are one part.
pub(crate) fn parts_of(
    held: &Volume,
    layout: &crate::Layout,
    lbas: impl IntoIterator<Item = u64>,
) -> Vec<Part> {
    let mut parts: Vec<Part> = Vec::new();
    for lba in lbas {
        let part = part(held, layout, lba);
        match (parts.last_mut(), part) {
            (
                Some(Part::Stored {
                    at,
                    lba: first,
                    crcs,
                }),
                Part::Stored {
                    at: next,
                    lba,
                    crcs: crc,
                },
            ) if *at + (crcs.len() * crate::BLOCK_BYTES) as u64 == next
                && *first + crcs.len() as u64 == lba =>
            {
                crcs.extend(crc);
            }
            (Some(Part::Hole(blocks)), Part::Hole(more)) if *blocks + more <= SHARED_ZEROES => {
                *blocks += more;
            }
            (_, part) => parts.push(part),
        }
    }
    parts
}

/// Where a block is: in memory, on disk, or nowhere.
fn part(held: &Volume, layout: &crate::Layout, lba: u64) -> Part {
    let Some(place) = held.map.place(lba) else {
        return Part::Hole(1);
    };
    let unwritten = || held.unwritten.get(&lba).map(|(_, block)| block);
    match held
        .dirty
        .get(&lba)
        .or_else(|| held.flushing.get(&lba))
        .or_else(unwritten)
    {
        Some(block) => Part::Ready(block.clone()),
        None => Part::Stored {
            at: layout.extent_at(place.extent, place.block),
            lba,
            crcs: vec![place.crc],
        },
    }
}
