//! Opening a disk: what it has is read, checked, and played again.
//!
//! Superblocks, the whole log for headers, the chain of batches, the map, the entries' payloads, and at
//! last one sync: what was read may be in the disk's cache only, and is told to be durable from then on.

mod chain;
mod finish;
mod format;
mod maps;
mod payloads;
mod replay;
mod told;

pub use format::Formatted;
pub use told::{DamagedEntry, OpenError, Recovered};

use crate::format::PageRef;
use crate::format::layout::{Layout, SUPERBLOCK_COPIES};
use crate::format::pages::PageBody;
use crate::format::superblock::{BadSuperblock, Superblock};
use crate::{Buffer, Done, Identity, Io, Store, Token, VolumeId};
use chain::{Candidates, Chain};
use replay::Replay;
use std::collections::{BTreeMap, VecDeque};

/// Blocks of one read of the log at most, and reads at once: 16 MiB in memory.
const SCAN_BLOCKS: u32 = 256;
const SCAN_READS: u32 = 16;

/// A disk that is being opened: hands out IO until it has a store, or says why there is none.
#[derive(Debug)]
pub struct Opening {
    expected: Identity,
    bytes: u64,
    next_token: u64,
    pending: BTreeMap<Token, usize>,
    results: Vec<Option<Buffer>>,
    /// An IO that failed, of those under way.
    failed: Option<String>,
    out: VecDeque<(Token, Io)>,
    stage: Stage,
    recovered: Recovered,
    finished: Option<Result<Box<Store>, OpenError>>,
}

/// What the reads that are under way are for.
#[derive(Debug)]
enum Stage {
    Superblocks,
    Scan {
        candidates: Candidates,
        next: u32,
    },
    /// Block by block, what could not be read at once.
    Rescan {
        candidates: Candidates,
        blocks: Vec<u32>,
        next: u32,
    },
    Headers {
        candidates: Candidates,
    },
    LastChunks {
        chain: Chain,
    },
    Directory {
        replay: Replay,
    },
    Volumes {
        replay: Replay,
        pages: Vec<(VolumeId, PageRef)>,
    },
    Map {
        replay: Replay,
    },
    Payloads {
        replay: Replay,
    },
    /// Payloads of which the newest copy is damaged and another is not are written to the newest anew.
    Mend {
        replay: Replay,
    },
    Sync {
        replay: Replay,
    },
    Over,
}

/// What comes next: reads, or the end.
type Next = (Stage, Vec<(u64, usize)>);

impl Opening {
    /// Opens what has to be this disk, in a file of so many bytes.
    pub fn new(expected: Identity, bytes: u64) -> Self {
        let mut opening = Self {
            expected,
            bytes,
            next_token: 0,
            pending: BTreeMap::new(),
            results: Vec::new(),
            failed: None,
            out: VecDeque::new(),
            stage: Stage::Over,
            recovered: Recovered::default(),
            finished: None,
        };
        let copies = (0..SUPERBLOCK_COPIES).map(Layout::superblock_at);
        let inside = copies.filter(|at| at + crate::BLOCK_BYTES as u64 <= bytes);
        let reads: Vec<_> = inside.map(|at| (at, 1)).collect();
        if reads.is_empty() {
            opening.finished = Some(Err(OpenError::NotFormatted));
        }
        opening.ask((Stage::Superblocks, reads));
        opening
    }

    /// IO to carry out.
    pub fn poll_io(&mut self) -> Option<(Token, Io)> {
        self.out.pop_front()
    }

    /// Says what became of an IO.
    ///
    /// # Panics
    /// When no such IO was handed out.
    pub fn handle_done(&mut self, token: Token, done: Done) {
        let number = self
            .pending
            .remove(&token)
            .expect("completions are of IO that was handed out");
        match done {
            Done::Read(data) => self.results[number] = Some(data),
            Done::Ok => {}
            Done::Failed(why) => _ = self.failed.get_or_insert(why),
        }
        if !self.pending.is_empty() {
            return;
        }
        // A stage may need nothing from the disk.
        loop {
            let results = std::mem::take(&mut self.results);
            let stage = std::mem::replace(&mut self.stage, Stage::Over);
            let failed = self.failed.take();
            match self.advance(stage, results, failed) {
                Ok((Stage::Over, _)) => return,
                Ok(next) => self.ask(next),
                Err(error) => return self.finished = Some(Err(error)),
            }
            if !self.pending.is_empty() {
                return;
            }
        }
    }

    /// The store, once there is one: to be asked when nothing is under way any more.
    pub fn finish(self) -> Option<Result<(Store, Recovered), OpenError>> {
        let recovered = self.recovered;
        Some(self.finished?.map(|store| (*store, recovered)))
    }

    /// Whether there is something to be finished with.
    pub const fn is_finished(&self) -> bool {
        self.finished.is_some()
    }

    fn ask(&mut self, (stage, reads): Next) {
        let sync = matches!(stage, Stage::Sync { .. });
        let mends = match &stage {
            Stage::Mend { replay } => replay.mends(),
            _ => Vec::new(),
        };
        self.stage = stage;
        self.results = vec![None; reads.len()];
        let ios = reads
            .into_iter()
            .map(|(at, blocks)| Io::Read { at, blocks });
        let ios = ios.chain(mends).chain(sync.then_some(Io::Sync));
        for (number, io) in ios.enumerate() {
            self.next_token += 1;
            let token = Token(self.next_token);
            self.pending.insert(token, number);
            self.out.push_back((token, io));
        }
    }

    fn advance(
        &mut self,
        stage: Stage,
        results: Vec<Option<Buffer>>,
        failed: Option<String>,
    ) -> Result<Next, OpenError> {
        match stage {
            Stage::Superblocks => self.superblocks(&results),
            Stage::Scan {
                mut candidates,
                next,
            } => {
                let layout = candidates.layout();
                let starts = (next..layout.wal_blocks).step_by(SCAN_BLOCKS as usize);
                let mut blocks = Vec::new();
                for (start, result) in starts.zip(&results) {
                    match result {
                        Some(result) => candidates.scan(start, Some(result)),
                        None => {
                            blocks.extend(start..layout.wal_blocks.min(start + SCAN_BLOCKS));
                        }
                    }
                }
                let next = next + SCAN_READS * SCAN_BLOCKS;
                let reads = blocks
                    .iter()
                    .map(|block| (layout.wal_at(*block), 1))
                    .collect();
                let rescan = Stage::Rescan {
                    candidates,
                    blocks,
                    next,
                };
                Ok((rescan, reads))
            }
            Stage::Rescan {
                mut candidates,
                blocks,
                next,
            } => {
                for (block, result) in blocks.into_iter().zip(&results) {
                    candidates.scan(block, result.as_ref());
                }
                Ok(scan(candidates, next))
            }
            Stage::Headers { mut candidates } => {
                if candidates.take_headers(&results) {
                    return Ok(headers(candidates));
                }
                let chain = candidates.chain()?;
                let reads = chain.last_chunks();
                Ok((Stage::LastChunks { chain }, reads))
            }
            Stage::LastChunks { chain } => {
                let bad = chain.bad_chunks(&results);
                let named = bad.iter().map(|chunk| (chunk.volume, chunk.number));
                self.recovered.not_taken = named.collect();
                self.recovered.torn = chain.hidden();
                self.recovered.damaged_headers = chain.damaged_headers();
                self.recovered.batches = chain.batches();
                let replay = Replay::new(chain, bad);
                let reads = replay.directory_page()?;
                Ok((Stage::Directory { replay }, reads))
            }
            Stage::Directory { mut replay } => {
                if let [result] = &results[..] {
                    replay.take_directory(result.as_ref())?;
                    let reads = replay.directory_page()?;
                    if !reads.is_empty() {
                        return Ok((Stage::Directory { replay }, reads));
                    }
                }
                let pages = replay.volume_pages()?;
                let layout = replay.layout();
                let reads = pages
                    .iter()
                    .map(|(_, page)| (layout.page_at(page.page), 1))
                    .collect();
                Ok((Stage::Volumes { replay, pages }, reads))
            }
            Stage::Volumes { mut replay, pages } => {
                for ((volume, page), result) in pages.into_iter().zip(&results) {
                    replay.take_volume(volume, page, result.as_ref());
                }
                let reads = replay.map_pages();
                Ok((Stage::Map { replay }, reads))
            }
            Stage::Map { mut replay } => {
                replay.take_map_pages(&results);
                let reads = replay.map_pages();
                if !reads.is_empty() {
                    return Ok((Stage::Map { replay }, reads));
                }
                replay.check_maps();
                replay.play()?;
                let reads = replay.payloads();
                Ok((Stage::Payloads { replay }, reads))
            }
            Stage::Payloads { mut replay } => {
                replay.take_payloads(&results);
                let reads = replay.payloads();
                if !reads.is_empty() {
                    return Ok((Stage::Payloads { replay }, reads));
                }
                Ok((Stage::Mend { replay }, Vec::new()))
            }
            Stage::Mend { replay } => match failed {
                Some(why) => Err(OpenError::Mend { why }),
                None => Ok((Stage::Sync { replay }, Vec::new())),
            },
            Stage::Sync { replay } => {
                if let Some(why) = failed {
                    return Err(OpenError::Sync { why });
                }
                let store = replay.into_store(&mut self.recovered);
                self.finished = Some(Ok(Box::new(store)));
                Ok((Stage::Over, Vec::new()))
            }
            Stage::Over => Ok((Stage::Over, Vec::new())),
        }
    }

    fn superblocks(&mut self, results: &[Option<Buffer>]) -> Result<Next, OpenError> {
        let mut found: Vec<Superblock> = Vec::new();
        let mut bad = Vec::new();
        for (copy, result) in (0..).zip(results) {
            match result
                .as_ref()
                .map(|page| Superblock::decode(&page.pages()[0], copy))
            {
                Some(Ok(superblock)) => found.push(superblock),
                Some(Err(error)) => bad.push(error),
                None => bad.push(BadSuperblock::Damaged),
            }
        }
        self.recovered.superblocks = found.len();
        let Some(newest) = found
            .into_iter()
            .max_by_key(|superblock| superblock.sequence)
        else {
            return Err(no_superblock(&bad));
        };
        if newest.identity != self.expected {
            return Err(OpenError::Foreign {
                found: newest.identity,
                expected: self.expected,
            });
        }
        if newest.layout.bytes() > self.bytes {
            return Err(OpenError::Small {
                bytes: self.bytes,
                formatted: newest.layout.bytes(),
            });
        }
        self.recovered.checkpoint = newest.sequence;
        Ok(scan(Candidates::new(newest), 0))
    }
}

fn no_superblock(bad: &[BadSuperblock]) -> OpenError {
    for error in bad {
        match error {
            BadSuperblock::Version { found } => return OpenError::Version { found: *found },
            BadSuperblock::Features { features } => {
                return OpenError::Features {
                    features: *features,
                };
            }
            BadSuperblock::Absent | BadSuperblock::Damaged => {}
        }
    }
    if bad.iter().all(|error| *error == BadSuperblock::Absent) {
        return OpenError::NotFormatted;
    }
    let copies: Vec<String> = bad.iter().map(ToString::to_string).collect();
    OpenError::NoSuperblock {
        copies: copies.join(", "),
    }
}

/// The log's next blocks, looked through for headers.
fn scan(candidates: Candidates, next: u32) -> Next {
    let layout = candidates.layout();
    let starts = (0..SCAN_READS).map(|number| next + number * SCAN_BLOCKS);
    let reads: Vec<_> = starts
        .take_while(|start| *start < layout.wal_blocks)
        .map(|start| {
            let blocks = SCAN_BLOCKS.min(layout.wal_blocks - start);
            (layout.wal_at(start), blocks as usize)
        })
        .collect();
    if reads.is_empty() {
        return headers(candidates);
    }
    (Stage::Scan { candidates, next }, reads)
}

fn headers(candidates: Candidates) -> Next {
    let reads = candidates.header_reads();
    (Stage::Headers { candidates }, reads)
}

/// A page, if it is the one that was meant.
fn page_of(
    superblock: &Superblock,
    wanted: PageRef,
    volume: VolumeId,
    level: u32,
    number: u64,
    result: Option<&Buffer>,
) -> Option<PageBody> {
    let page = &result?.pages()[0];
    if crc32c::crc32c(&page.0) != wanted.crc {
        return None;
    }
    let (head, body) = PageBody::decode(page)?;
    let right = head.store == superblock.store
        && head.page == wanted.page
        && head.volume == volume
        && head.level == level
        && head.number == number
        && head.checkpoint <= superblock.sequence;
    right.then_some(body)
}
